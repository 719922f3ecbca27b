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

from .counting import Histogram, Order, Sequence
from .hearing import Hearing
from .ledger import Ledger, Responses, matrix
from .packets import ASK_SIZE, PING_SIZE, PREFIX, Kind, Peer, Probe, parse, peek

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
