"""Packets that measure the way they go: what ping, its responders and bench send, and what their numbers tell.

Everything here is without I/O: bytes, numbers and times in, values out. All tables are bounded, whatever comes in.

A probe is 28 bytes in network order, and then what its kind needs:

====== ===== ===========================================================================================
offset bytes
====== ===== ===========================================================================================
0      4     the letters mcPg
4      1     the version of the format, 1
5      1     the kind, see `Kind`
6      1     the TTL or hop limit it was sent with
7      1     of replies: how many routers the ping has crossed, 255 where that is not known
8      8     the session: random, of one run of a ping or a bench; replies repeat it
16     4     the number of the packet in its session, the first being 1; replies repeat it
20     8     when it was sent, in nanoseconds of the sender's clock, since 1970; replies repeat it
====== ===== ===========================================================================================

PONG and REPORT go on with who replies: its random identity (8 bytes), how many pings of the session it has received,
how many of them it has answered, how many beacons it has sent for it (4 each), the length of its name (1), its name in
UTF-8. REPORT then lists, to its end, whom it has heard in this session: identity (8) and how many beacons (4). The rest
of a packet is padding. A reply is never longer than what it replies to, so nobody can have responders send more bytes
to a third host than they get: a PING is long enough for a name, an ASK as long as the longest REPORT.
"""

from __future__ import annotations

import enum
import math
import secrets
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .errors import ArgumentError

__all__ = [
    "ASK_SIZE",
    "PING_SIZE",
    "PREFIX",
    "Hearing",
    "Histogram",
    "Kind",
    "Ledger",
    "Order",
    "Peer",
    "Probe",
    "Responses",
    "Sequence",
    "matrix",
    "parse",
    "peek",
]

#: What every probe of this version begins with, for filters.
PREFIX = b"mcPg\x01"
#: The size of a ping in bytes: room for a name of 47 in the reply.
PING_SIZE = 96
#: The size of a question for a report: what any IPv6 path carries whole (RFC 8200 section 5), without the headers.
ASK_SIZE = 1232

_HEADER = struct.Struct("!4sBBBBQIQ")
_WHO = struct.Struct("!QIIIB")
_HEARD = struct.Struct("!QI")
_UNKNOWN = 255
_LARGEST = 0xFFFFFFFF

# A responder remembers so many sessions, and so many others in each: as many as a report has room for.
_SESSIONS = 64
_PEERS = (ASK_SIZE - _HEADER.size - _WHO.size - 64) // _HEARD.size
# So far back it is known which numbers came, where any step is a gap.
_REMEMBERED = 1024
# Beacons go to the whole group, so a responder sends few, whoever calls for how many: seconds from one to the next.
_BEACON_PAUSE = 0.1


# -- what numbers tell ---------------------------------------------------------------------------------------------


class Order(enum.Enum):
    """What the number of a packet says of it."""

    #: The next one, or the first of all.
    NEXT = "next"
    #: Some before it are missing.
    GAP = "gap"
    #: One that was missing, after later ones.
    LATE = "late"
    #: It came before.
    DUPLICATE = "duplicate"
    #: A number far from the last: the sender starts anew, or it is none of its packets.
    JUMP = "jump"


class Sequence:
    """Counts what is lost, repeated and out of order, from numbers of `bits` bits that go round.

    A step forward of up to `dropout` numbers is a gap, one back by up to `misorder` a packet that was late or came
    twice; anything else is a jump, and the second packet of the new order starts it (RFC 3550 appendix A.1, where 3000
    and 100 come from). None for `dropout` is all that can be: then there are no jumps, for numbers of a session that
    has an identity besides.
    """

    __slots__ = (
        "_after_jump",
        "_half",
        "_highest",
        "_mask",
        "_seen",
        "_window",
        "dropout",
        "duplicates",
        "lost",
        "misorder",
        "received",
        "reordered",
        "restarts",
    )

    def __init__(self, bits: int = 32, *, dropout: int | None = 3000, misorder: int = 100) -> None:
        self._half = 1 << (bits - 1)
        self._mask = (1 << bits) - 1
        self.dropout = self._half - 1 if dropout is None else dropout
        self.misorder = self._half if dropout is None else misorder
        #: Packets that count: neither twice nor off the order.
        self.received = 0
        #: Numbers that were left out and did not come later.
        self.lost = 0
        #: Packets that came twice.
        self.duplicates = 0
        #: Packets that came after ones with higher numbers.
        self.reordered = 0
        #: How often the numbers have begun anew.
        self.restarts = 0
        self._highest = -1
        self._after_jump = -1
        # Which of the last numbers came: bit n stands for the highest less n.
        self._seen = 0
        self._window = (1 << (_REMEMBERED if dropout is None else max(128, misorder))) - 1

    @property
    def highest(self) -> int | None:
        """The last number in order; None before the first."""
        return None if self._highest < 0 else self._highest

    def take(self, number: int) -> Order:
        """Take the number of the next packet; return what it says."""
        highest = self._highest
        if highest >= 0:
            step = (number - highest) & self._mask
            if step == 1:
                self._highest = number
                self._seen = ((self._seen << 1) | 1) & self._window
                self.received += 1
                self._after_jump = -1
                return Order.NEXT
            back = -step & self._mask
            if 0 < step <= self.dropout and step < self._half:
                self.lost += step - 1
                self._highest = number
                self._seen = ((self._seen << min(step, 4096)) | 1) & self._window
                self.received += 1
                self._after_jump = -1
                return Order.GAP
            if back <= self.misorder:
                return self._take_old(back)
            if number != self._after_jump:
                self._after_jump = (number + 1) & self._mask
                return Order.JUMP
            self.restarts += 1
            self.received += 1  # the one before it, which was taken for a jump
            self._seen = 0b11
        else:
            self._seen = 1
        self._highest = number
        self._after_jump = -1
        self.received += 1
        return Order.NEXT

    def _take_old(self, back: int) -> Order:
        if back < self._window.bit_length():
            if self._seen >> back & 1:
                self.duplicates += 1
                return Order.DUPLICATE
            self._seen |= 1 << back
        # Older than what is remembered: it may have come before, but being late is the more frequent.
        self.reordered += 1
        self.received += 1
        self.lost = max(0, self.lost - 1)
        return Order.LATE


class Histogram:
    """Times, or other numbers from 0 on, in bins that grow with them: any number of values in little memory.

    Least and greatest are exact; quantiles are off by 0.4 percent at most. Values are seconds.
    """

    # Bins for each power of two.
    _FINE = 128
    _BITS = 7

    def __init__(self) -> None:
        #: How many values there are.
        self.count = 0
        #: The least and the greatest; nan before the first.
        self.least = self.greatest = math.nan
        self._bins: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Take a value; what is below 0 counts as 0."""
        if not seconds > 0:
            seconds = 0.0
        if not self.count:
            self.least = self.greatest = seconds
        elif seconds < self.least:
            self.least = seconds
        elif seconds > self.greatest:
            self.greatest = seconds
        self.count += 1
        value = int(seconds * 1e9)
        shift = max(0, value.bit_length() - self._BITS - 1)
        key = (shift << 16) + (value >> shift)
        self._bins[key] = self._bins.get(key, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Take all values of another one."""
        if other.count:
            if not self.count:
                self.least, self.greatest = other.least, other.greatest
            self.least = min(self.least, other.least)
            self.greatest = max(self.greatest, other.greatest)
            self.count += other.count
            for key, count in other._bins.items():
                self._bins[key] = self._bins.get(key, 0) + count

    def quantile(self, share: float) -> float:
        """Return the value that the given share (0 to 1) of all do not exceed; nan when there are none."""
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(share * self.count))
        if rank == 1:
            return self.least
        if rank == self.count:
            return self.greatest
        seen = 0
        for key in sorted(self._bins):
            seen += self._bins[key]
            if seen >= rank:
                shift, value = key >> 16, key & 0xFFFF
                middle = ((value << shift) + ((1 << shift) - 1) / 2) / 1e9
                return min(max(middle, self.least), self.greatest)
        return self.greatest

    def octaves(self) -> list[tuple[float, int]]:
        """Return how many values lie from each time on to twice that, as pairs, empty ones between them included.

        The times are 1 microsecond and its doubles; what is less than 1 microsecond counts there too.
        """
        found: dict[int, int] = {}
        for key, count in self._bins.items():
            nanoseconds = (key & 0xFFFF) << (key >> 16)
            octave = max(0, (nanoseconds // 1000).bit_length() - 1)
            found[octave] = found.get(octave, 0) + count
        if not found:
            return []
        return [(1e-6 * 2**octave, found.get(octave, 0)) for octave in range(min(found), max(found) + 1)]


# -- the packets ---------------------------------------------------------------------------------------------------


class Kind(enum.IntEnum):
    """What a probe is."""

    #: To the group: who is there?
    PING = 1
    #: To the pinger: I am.
    PONG = 2
    #: To the group: who is there? And let the others hear you.
    CALL = 3
    #: To the group, from a responder that was called: others count it.
    BEACON = 4
    #: To the group: what have you heard in this session?
    ASK = 5
    #: To the pinger: this.
    REPORT = 6
    #: To the group: one of many.
    LOAD = 7
    #: To the group: there were so many.
    END = 8


_KINDS = {int(kind): kind for kind in Kind}
_TO_GROUP = frozenset({Kind.PING, Kind.CALL, Kind.ASK})


@dataclass(frozen=True, slots=True)
class Peer:
    """Who replies to a ping, and what it says of the session."""

    #: Random, of one responder while it runs.
    identity: int
    #: Pings of the session that it has received, each counted once.
    received: int = 0
    #: How many of them it has answered; its limits may hold answers back.
    answered: int = 0
    #: Beacons it has sent in the session.
    beacons: int = 0
    #: What it calls itself.
    name: str = ""
    #: Beacons that it has heard in the session, by who sent them.
    heard: Mapping[int, int] = field(default_factory=dict)

    def _encode(self, room: int) -> bytes:
        name = self.name.encode()[: max(0, min(63, room - _WHO.size))]
        name = name.decode(errors="ignore").encode()  # not cut within a character
        counts = (min(number, _LARGEST) for number in (self.received, self.answered, self.beacons))
        parts = [_WHO.pack(self.identity, *counts, len(name)), name]
        room -= _WHO.size + len(name)
        for identity, count in self.heard.items():
            room -= _HEARD.size
            if room < 0:
                break
            parts.append(_HEARD.pack(identity, min(count, _LARGEST)))
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Probe:
    """One packet."""

    kind: Kind
    #: The run of a ping or bench it belongs to.
    session: int
    #: Its number in the session.
    sequence: int
    #: When the packet, or the ping that it answers, was sent: nanoseconds since 1970, by that sender's clock.
    time: int = 0
    #: The TTL it was sent with.
    ttl: int = 0
    #: In replies: how many routers the ping has crossed, None where that is not known.
    hops: int | None = None
    #: In replies: who gives it. In a beacon: who sends it.
    peer: Peer | None = None

    def encode(self, size: int = 0) -> bytes:
        """Return it as it goes on the wire, padded with zeros to `size` bytes.

        Replies are cut to that size: first the list of who was heard, then the name. Raises `ArgumentError` for a
        number out of its range.
        """
        hops = _UNKNOWN if self.hops is None else self.hops
        try:
            header = _HEADER.pack(
                PREFIX[:4], PREFIX[4], self.kind, self.ttl, hops, self.session, self.sequence, self.time
            )
        except struct.error as error:
            raise ArgumentError(f"no probe can have these numbers ({error}): {self!r:.200}") from None
        if self.peer is None:
            return header.ljust(size, b"\0")
        return (header + self.peer._encode((size or ASK_SIZE) - len(header))).ljust(size, b"\0")


def parse(packet: bytes) -> Probe | None:
    """Return what a packet says if it is a probe, else None."""
    if len(packet) < _HEADER.size or not packet.startswith(PREFIX):
        return None
    _, _, number, ttl, hops, session, sequence, sent = _HEADER.unpack_from(packet)
    kind = _KINDS.get(number)
    if kind is None:
        return None
    peer = None
    if kind in (Kind.PONG, Kind.REPORT, Kind.BEACON):
        peer = _parse_peer(packet, kind is Kind.REPORT)
        if peer is None:
            return None
    return Probe(kind, session, sequence, sent, ttl, None if hops == _UNKNOWN else hops, peer)


def peek(packet: bytes) -> tuple[int, int, int, int] | None:
    """Return kind, session, sequence and time of a probe, None for another packet: `parse` for those in a hurry."""
    if len(packet) < _HEADER.size or not packet.startswith(PREFIX):
        return None
    _, _, kind, _, _, session, sequence, sent = _HEADER.unpack_from(packet)
    return (kind, session, sequence, sent) if kind in _KINDS else None


def _parse_peer(packet: bytes, report: bool) -> Peer | None:
    if len(packet) < _HEADER.size + _WHO.size:
        return None
    identity, received, answered, beacons, length = _WHO.unpack_from(packet, _HEADER.size)
    start = _HEADER.size + _WHO.size
    name = packet[start : start + length].decode(errors="replace")
    heard = {}
    if report:
        start += length
        for offset in range(start, len(packet) - _HEARD.size + 1, _HEARD.size):
            other, count = _HEARD.unpack_from(packet, offset)
            if other:
                heard[other] = count
    return Peer(identity, received, answered, beacons, name, heard)


def hops(sent: int, arrived: int | None) -> int | None:
    """Return how many routers a packet has crossed, from its TTL when it left and when it arrived; None: unknown."""
    return sent - arrived if arrived is not None and 0 <= sent - arrived < _UNKNOWN else None


# -- who answers ---------------------------------------------------------------------------------------------------


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
                if who in heard or len(heard) < _PEERS:
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
        return reply.encode(max(size, _HEADER.size + _WHO.size))

    def beacon(self, probe: Probe, ttl: int, now: float) -> bytes | None:
        """Return the beacon that a call is answered with; None when there is none: 10 a second are the most."""
        if probe.kind is not Kind.CALL or now < self._beacon_due:
            return None
        self._beacon_due = now + _BEACON_PAUSE * 0.9  # those who call ten times a second are not that exact
        session = self._session(probe.session)
        session.beacons += 1
        peer = Peer(self.identity, name=self.name)
        return Probe(Kind.BEACON, probe.session, session.beacons, probe.time, ttl, None, peer).encode()


# -- who asks ------------------------------------------------------------------------------------------------------


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
