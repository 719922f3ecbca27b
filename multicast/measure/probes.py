"""The wire format of the probes that ping, its responders and bench send.

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
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from multicast.errors import ArgumentError

__all__ = [
    "ASK_SIZE",
    "LEAST_REPLY",
    "MOST_HEARD",
    "PING_SIZE",
    "PREFIX",
    "Kind",
    "Peer",
    "Probe",
    "hops",
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

#: No reply is shorter than this, in bytes: it says at least who gives it.
LEAST_REPLY = _HEADER.size + _WHO.size
#: So many responders have room in a report, beside a name.
MOST_HEARD = (ASK_SIZE - LEAST_REPLY - 64) // _HEARD.size


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
    if len(packet) < LEAST_REPLY:
        return None
    identity, received, answered, beacons, length = _WHO.unpack_from(packet, _HEADER.size)
    start = LEAST_REPLY
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
