"""Who asks: the answers that came, by responder, and what they tell of the ways between hosts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping

from .probes import Kind, Peer, Probe, hops, parse
from .sequences import Histogram, Order, Sequence

__all__ = ["Ledger", "Responses", "matrix"]


class Responses:
    """What one responder has answered."""

    def __init__(self, host: str, peer: Peer) -> None:
        #: Its address, as the first reply came from it.
        self.host = host
        #: Who it is, as it said last.
        self.peer = peer
        #: Which pings it has answered.
        self.numbers = Sequence(dropout=None)
        #: The round-trip times, in seconds.
        self.times = Histogram()
        #: How many routers lie on the way there, and back; None where that is not known.
        self.hops: int | None = None
        self.hops_back: int | None = None
        #: What it has reported of the session; None if it has not.
        self.report: Peer | None = None
        self._told_at = 0

    @property
    def replies(self) -> int:
        """How many pings it has answered, as far as the answers have come."""
        return self.numbers.received

    @property
    def held_back(self) -> int:
        """How many pings it has received and not answered, for it answers so many a second at most."""
        known = self.report or self.peer
        return max(0, known.received - known.answered)

    def lost(self, sent: int) -> int:
        """Return how many of `sent` pings were lost, or their answers."""
        return max(0, sent - self.replies - self.held_back)

    def lost_there(self, sent: int) -> int | None:
        """Return how many of `sent` pings did not reach it; None where it has not been asked."""
        return None if self.report is None else max(0, sent - self.report.received)

    def _take(self, probe: Probe, round_trip: float, arrived: int | None) -> Order:
        assert probe.peer is not None  # noqa: S101 -- `Ledger.take` has looked
        if probe.kind is Kind.REPORT:
            self.report = probe.peer
            return Order.NEXT
        order = self.numbers.take(probe.sequence)
        if order is not Order.DUPLICATE:
            self.times.add(round_trip)
        if probe.sequence >= self._told_at:
            self._told_at, self.peer = probe.sequence, probe.peer
        self.hops = probe.hops
        self.hops_back = hops(probe.ttl, arrived)
        return order


class Ledger:
    """Who has answered the pings of a session, in the order in which they were first heard from.

    It keeps up to `most` responders apart; replies of more are counted in `others`.
    """

    def __init__(self, session: int | None = None, most: int = 1000) -> None:
        #: The number of the session; random unless given.
        self.session = secrets.randbits(64) if session is None else session
        #: Replies of responders beyond those that are kept apart.
        self.others = 0
        self._most = most
        self._known: dict[int, Responses] = {}

    def __iter__(self) -> Iterator[Responses]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def number(self, packet: bytes) -> int | None:
        """Return the number of the ping that a packet answers, None when it is no answer of this session."""
        probe = parse(packet)
        if probe is None or probe.session != self.session or probe.kind not in (Kind.PONG, Kind.REPORT):
            return None
        return probe.sequence

    def take(self, packet: bytes, round_trip: float, host: str, ttl: int | None) -> tuple[Responses, Order] | None:
        """Take an answer: how long it took in seconds, where it came from, its TTL on arrival.

        Return whose it is and whether it came before; None when it is no answer of this session, or of one responder
        too many.
        """
        probe = parse(packet)
        if probe is None or probe.peer is None or self.number(packet) is None:
            return None
        known = self._known.get(probe.peer.identity)
        if known is None:
            if len(self._known) >= self._most:
                self.others += 1
                return None
            known = self._known[probe.peer.identity] = Responses(host, probe.peer)
        return known, known._take(probe, round_trip, ttl)


def matrix(
    ledger: Ledger, sent: int, heard_here: Mapping[int, int], here: int = 0
) -> dict[tuple[int, int], float | None]:
    """Return who hears whom: (who sends, who listens) -> the share that was lost, None where nobody can tell.

    Hosts are the identities of the responders, and `here` for the pinger, which has `sent` pings and heard of each so
    many beacons. Nobody can tell of a responder that gave no report what it heard, and of one that sent no beacon who
    hears it.
    """
    found: dict[tuple[int, int], float | None] = {}
    for listener in ledger:
        who, report = listener.peer.identity, listener.report
        found[here, who] = None if report is None or not sent else _share(report.received, sent)
        for sender in ledger:
            other = sender.peer.identity
            if other == who:
                continue
            beacons = sender.report.beacons if sender.report is not None else 0
            found[other, who] = None if report is None or not beacons else _share(report.heard.get(other, 0), beacons)
        beacons = report.beacons if report is not None else 0
        found[who, here] = _share(heard_here.get(who, 0), beacons) if beacons else None
    return found


def _share(heard: int, sent: int) -> float:
    return max(0.0, 1 - heard / sent)
