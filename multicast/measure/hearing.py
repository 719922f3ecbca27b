"""Who answers: what a responder remembers of each session, and what it replies."""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict

from .probes import LEAST_REPLY, MOST_HEARD, Kind, Peer, Probe, hops
from .sequences import Sequence

__all__ = ["Hearing"]

# A responder remembers so many sessions, and in each as many others as a report has room for.
_SESSIONS = 64
# Beacons go to the whole group, so a responder sends few, whoever calls for how many: seconds from one to the next.
_BEACON_PAUSE = 0.1
_TO_GROUP = frozenset({Kind.PING, Kind.CALL, Kind.ASK})


class _Session:
    __slots__ = ("answered", "beacons", "heard", "pings")

    def __init__(self) -> None:
        self.pings = Sequence(dropout=None)
        self.answered = self.beacons = 0
        self.heard: dict[int, Sequence] = {}


class Hearing:
    """What a responder has heard, for each session, and what it replies. Times are seconds of any one clock.

    `name` is what it calls itself; at most 63 bytes of it are sent.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        #: Who this responder is, to those who hear it; random.
        self.identity = secrets.randbits(63) + 1
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._beacon_due = -math.inf

    def __len__(self) -> int:
        return len(self._sessions)

    def _session(self, number: int) -> _Session:
        session = self._sessions.get(number)
        if session is None:
            session = self._sessions[number] = _Session()
            if len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(number)
        return session

    def take(self, probe: Probe) -> bool:
        """Count a probe that arrived; return whether it wants a reply."""
        if probe.kind is Kind.BEACON:
            if probe.peer is not None and probe.peer.identity != self.identity:
                heard = self._session(probe.session).heard
                who = probe.peer.identity
                if who in heard or len(heard) < MOST_HEARD:
                    heard.setdefault(who, Sequence(dropout=None)).take(probe.sequence)
            return False
        if probe.kind in (Kind.PING, Kind.CALL):
            self._session(probe.session).pings.take(probe.sequence)
        return probe.kind in _TO_GROUP

    def reply(self, probe: Probe, size: int, ttl: int, arrived: int | None) -> bytes:
        """Return the reply to a probe that `take` said wants one.

        `size` is how long the probe was, which no reply exceeds (but for its first 49 bytes), `ttl` what the reply is
        sent with and `arrived` the TTL the probe came with.
        """
        session = self._session(probe.session)
        report = probe.kind is Kind.ASK
        if not report:
            session.answered += 1
        heard = {who: numbers.received for who, numbers in session.heard.items()} if report else {}
        peer = Peer(
            self.identity, session.pings.received, session.answered, session.beacons, self.name, heard
        )
        kind = Kind.REPORT if report else Kind.PONG
        reply = Probe(kind, probe.session, probe.sequence, probe.time, ttl, hops(probe.ttl, arrived), peer)
        return reply.encode(max(size, LEAST_REPLY))

    def beacon(self, probe: Probe, ttl: int, now: float) -> bytes | None:
        """Return the beacon that a call is answered with; None when there is none: 10 a second are the most."""
        if probe.kind is not Kind.CALL or now < self._beacon_due:
            return None
        self._beacon_due = now + _BEACON_PAUSE * 0.9  # those who call ten times a second are not that exact
        session = self._session(probe.session)
        session.beacons += 1
        peer = Peer(self.identity, name=self.name)
        return Probe(Kind.BEACON, probe.session, session.beacons, probe.time, ttl, None, peer).encode()
