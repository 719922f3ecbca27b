"""Rate, loss and jitter of what arrives, for each source; no I/O: packets and times go in, numbers come out.

What is lost can be seen only where packets are numbered, so the payload is looked at:

* RTP (RFC 3550): a sequence number of 16 bits and a time stamp. Anything may look like RTP by chance, so it is taken
  for that only when two packets follow each other with one source identifier (appendix A.1, probation).
* MPEG transport streams (ISO/IEC 13818-1 section 2.4.3.3): each piece of 188 bytes with a payload has a counter of 4
  bits for its PID, so a gap of a multiple of 16 pieces is not seen. What is inside RTP is counted by RTP. Loss is that
  of pieces.
* Probes, those of `multicast ping` and `bench`.
* MoldUDP64: messages are numbered, so loss is that of messages. Anything may look like it by chance, so it is taken for
  that only when a second packet of the session goes on where the first ended.

Jitter is that of RFC 3550 section 6.4.1: the mean change of the time on the way, smoothed over 16 packets. Where a
packet does not tell when it was sent, it is the mean change of the time between packets.

Everything is bounded: flows, what is kept of each, and the memory of each second.
"""

from __future__ import annotations

import enum
import math
import struct
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from . import probes
from .sequences import Order, Sequence

__all__ = ["Cell", "Flow", "FlowKey", "Jitter", "Meters", "Numbering", "spark"]

# An MPEG transport stream is made of pieces of this many bytes, which begin with this one.
TS_SIZE, TS_SYNC = 188, 0x47
_TS_NULL = 0x1FFF
_TS_PIDS = 64
# RTP streams that are told apart in one flow.
_SSRCS = 16
RTP = struct.Struct("!BBHII")
# Time stamps a second, by payload type (RFC 3551 section 6); of others it is measured.
_RTP_CLOCKS = {
    **dict.fromkeys((0, 3, 4, 5, 7, 8, 9, 12, 13, 15, 18), 8000), 6: 16000, 10: 44100, 11: 44100, 16: 11025, 17: 22050,
    **dict.fromkeys((14, 25, 26, 28, 31, 32, 33, 34), 90000),
}  # fmt: skip
_RTP_LIKELY = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 90000, 96000, 192000)
# RTCP on the same port has these payload types (RFC 5761 section 4).
_RTCP = range(72, 77)
# The first byte of a probe, and those that have the number of another one, or none.
_PROBE = probes.PREFIX[0]
_NO_NUMBER = frozenset({int(probes.Kind.ASK), int(probes.Kind.END)})
# The header of MoldUDP64: session, number of the first message, count; and the count that ends a session.
MOLD, MOLD_END = struct.Struct(">10sQH"), 0xFFFF
# So long the time stamps are watched before their clock is believed, in seconds.
_CLOCK_AFTER = 2.0
#: How many seconds a strip shows.
STRIP = 30
# Of how many moments the history of a flow consists. When it is full, every two become one, of twice the length.
_MOMENTS = 300
# A flow may give way to a new one when it was silent for so long, in seconds.
_SILENT = 10.0


class Numbering(enum.Enum):
    """How the packets of a flow are numbered."""

    NONE = "none"
    RTP = "rtp"
    TS = "mpegts"
    PROBE = "probe"
    MOLDUDP64 = "moldudp64"


class Jitter:
    """The variation of the time on the way, in seconds (RFC 3550 section 6.4.1)."""

    __slots__ = ("_last", "value")

    def __init__(self) -> None:
        #: What it is; nan before there were enough packets.
        self.value = math.nan
        self._last: float | None = None

    def take(self, transit: float) -> None:
        """Take the time that a packet was on the way, with any constant error of the clocks."""
        last, self._last = self._last, transit
        if last is not None:
            change = abs(transit - last)
            self.value = change if math.isnan(self.value) else self.value + (change - self.value) / 16

    def skip(self) -> None:
        """Do not compare the next packet with the last."""
        self._last = None


class FlowKey(NamedTuple):
    """What makes a flow: a source and a group."""

    group: str
    port: int
    source: str
    source_port: int
    interface: str


@dataclass(slots=True)
class Cell:
    """What arrived in some time, by default a second."""

    #: When it began and how long it is, in seconds.
    start: float = 0.0
    seconds: float = 1.0
    packets: int = 0
    bytes: int = 0
    #: What had a number, and was not a repetition: packets, or pieces of a transport stream.
    numbered: int = 0
    #: Numbers that were missing.
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    #: Packets the kernel dropped at the socket meanwhile.
    dropped: int = 0
    #: At its end, in seconds; nan if unknown.
    jitter: float = math.nan

    @property
    def rate(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds

    @property
    def bits(self) -> float:
        """Bits of payload a second."""
        return 8 * self.bytes / self.seconds

    @property
    def loss(self) -> float:
        """The share of what is numbered that was lost, 0 to 1; nan when there was nothing."""
        whole = self.numbered + self.lost
        return self.lost / whole if whole else math.nan

    def and_(self, other: Cell) -> Cell:
        """Return the two as one."""
        jitters = [one for one in (self.jitter, other.jitter) if not math.isnan(one)]
        return Cell(
            self.start,
            self.seconds + other.seconds,
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.numbered + other.numbered,
            self.lost + other.lost,
            self.duplicates + other.duplicates,
            self.reordered + other.reordered,
            self.dropped + other.dropped,
            max(jitters, default=math.nan),
        )


def spark(values: list[float], top: float | None = None) -> str:
    """Return values as a row of bars, in proportion to the greatest or to `top`; 0 is blank."""
    most = top or max(values, default=0)
    if not most > 0:
        return " " * len(values)
    return "".join(" " if not value > 0 else "▁▂▃▄▅▆▇█"[min(7, int(8 * value / most))] for value in values)


class _Rtp:
    """What the headers of one RTP stream tell."""

    def __init__(self, number: int, kind: int) -> None:
        self.first = number
        self.valid = False
        self.transit = Jitter()
        self.sequence = Sequence(16)
        self.clock = _RTP_CLOCKS.get(kind, 0)
        self._kind = kind
        self._stamp: int | None = None
        self._ticks = 0  # time stamps without the wrap
        self._since: tuple[float, int] | None = None

    def ticks(self, stamp: int) -> int:
        """Return the time stamp as a number that does not wrap."""
        last, self._stamp = self._stamp, stamp
        if last is not None:
            step = (stamp - last) & 0xFFFFFFFF
            self._ticks += step - (1 << 32) if step >> 31 else step
        return self._ticks

    def sent(self, stamp: int, kind: int, now: float) -> float | None:
        """Return when the packet was sent, by its own clock, in seconds; None while the clock is unknown."""
        ticks = self.ticks(stamp)
        if kind != self._kind:
            self._kind, self.clock, self._since = kind, _RTP_CLOCKS.get(kind, 0), None
        if not self.clock:
            if self._since is None:
                self._since = (now, ticks)
                return None
            passed = now - self._since[0]
            if passed < _CLOCK_AFTER:
                return None
            measured = (ticks - self._since[1]) / passed
            nearest = min(_RTP_LIKELY, key=lambda clock: abs(clock - measured))
            if abs(nearest - measured) > 0.05 * nearest:
                self._since = (now, ticks)  # a pause, or no clock that we know
                return None
            self.clock = nearest
        return ticks / self.clock


class Flow:
    """What came from one source to one group."""

    __slots__ = (
        "_cell",
        "_history",
        "_interval",
        "_last",
        "_mold",
        "_pids",
        "_probe",
        "_rtps",
        "_stage",
        "_stage_of",
        "_transit",
        "_width",
        "bytes",
        "duplicates",
        "first",
        "jitter",
        "key",
        "last",
        "lost",
        "numbered",
        "numbering",
        "packets",
        "reordered",
        "restarts",
        "strip",
        "ttl",
    )

    def __init__(self, key: FlowKey, now: float) -> None:
        #: Which flow it is.
        self.key = key
        #: How its packets are numbered, as far as was found out.
        self.numbering = Numbering.NONE
        #: Packets and bytes of payload since the beginning.
        self.packets = 0
        self.bytes = 0
        #: Missing numbers, packets that came twice, packets out of order, and how often the numbers began anew.
        self.lost = 0
        self.duplicates = 0
        self.reordered = 0
        self.restarts = 0
        #: What had a number, and was not a repetition: packets, or pieces of a transport stream.
        self.numbered = 0
        #: The jitter in seconds, nan if unknown.
        self.jitter = math.nan
        #: When the first and the last packet came.
        self.first = self.last = now
        #: The TTL of the last packet, None if unknown.
        self.ttl: int | None = None
        #: The last seconds, one cell for each.
        self.strip: deque[Cell] = deque(maxlen=STRIP)
        # All the time since the beginning, in cells of equal length: a second, and longer when it has been long.
        self._history: list[Cell] = []
        self._cell = Cell()
        self._stage: Cell | None = None
        self._stage_of = 0
        self._width = 1
        self._transit = Jitter()
        self._interval = Jitter()
        self._last: float | None = None
        self._rtps: dict[int, _Rtp] = {}
        self._pids: dict[int, int] = {}
        self._probe: tuple[int, Sequence] | None = None
        self._mold: tuple[bytes, int, int] | None = None

    # -- packets

    def take(self, packet: bytes, now: float) -> None:
        """Take a packet that arrived at `now`, in seconds of a clock that is not set."""
        cell = self._cell
        self.packets += 1
        cell.packets += 1
        size = len(packet)
        self.bytes += size
        cell.bytes += size
        self._look(packet, size, now)
        last, self._last = self._last, now
        self.last = now
        if last is not None:
            self._interval.take(now - last)
        # Only what tells when it was sent has a time on the way.
        self.jitter = self._interval.value if math.isnan(self._transit.value) else self._transit.value

    def _look(self, packet: bytes, size: int, now: float) -> None:
        """Find the number of the packet, and what it says."""
        if size < 12:
            return
        first = packet[0]
        if first >> 6 == 2:
            self._take_rtp(packet, now)
        elif first == TS_SYNC and size % TS_SIZE == 0:
            self._take_ts(packet, size)
        elif first == _PROBE and (probe := probes.peek(packet)) is not None:
            self._take_probe(*probe, now)
        elif size >= MOLD.size and 32 <= first < 127:
            self._take_mold(packet, size)

    def _take_rtp(self, packet: bytes, now: float) -> None:
        _, kind, number, stamp, ssrc = RTP.unpack_from(packet)
        kind &= 0x7F
        if kind in _RTCP:
            return
        rtp = self._rtps.get(ssrc)
        if rtp is None:
            if len(self._rtps) >= _SSRCS:
                del self._rtps[next(iter(self._rtps))]
            self._rtps[ssrc] = _Rtp(number, kind)
            return
        if not rtp.valid:
            if number != (rtp.first + 1) & 0xFFFF:
                rtp.first = number
                return
            rtp.valid = True
            self.numbering = Numbering.RTP
            self._count(rtp.sequence, rtp.first)
        order = self._count(rtp.sequence, number)
        sent = rtp.sent(stamp, kind, now)
        if sent is not None and (order is Order.NEXT or order is Order.GAP):
            rtp.transit.take(now - sent)
        self._transit = rtp.transit

    def _take_mold(self, packet: bytes, size: int) -> None:
        session, number, count = MOLD.unpack_from(packet)
        if count == MOLD_END:
            count = 0
        if not number or size < MOLD.size + 2 * count or not session.isascii():
            return
        known = self._mold
        if known is None or known[0] != session:
            self._mold = (session, number, number + count)
            if known is not None and self.numbering is Numbering.MOLDUDP64:
                self.restarts += 1
            return
        _, first, expected = known
        if self.numbering is not Numbering.MOLDUDP64:
            if number != expected:
                self._mold = (session, number, number + count)
                return
            self.numbering = Numbering.MOLDUDP64
            self._add(expected - first, 0, 0, 0)
        following = number + count
        lost = number - expected
        if lost > 0:
            self._add(count, lost, 0, 0)
        elif lost == 0:
            self._add(count, 0, 0, 0)
        elif following <= expected:
            # Old numbers: a repair to the group, or a packet that came twice or late.
            self._add(0, 0, count, 0)
        else:
            self._add(following - expected, 0, expected - number, 0)
        self._mold = (session, first, max(expected, following))

    def _take_probe(self, kind: int, session: int, number: int, sent: int, now: float) -> None:
        if kind in _NO_NUMBER:
            return
        known = self._probe
        if known is None or known[0] != session:
            if known is not None:
                self.restarts += 1
            known = self._probe = (session, Sequence(dropout=None))
            self.numbering = Numbering.PROBE
            self._transit = Jitter()
        order = self._count(known[1], number)
        if (order is Order.NEXT or order is Order.GAP) and kind != probes.Kind.BEACON:
            self._transit.take(now - sent / 1e9)

    def _count(self, sequence: Sequence, number: int) -> Order:
        lost, received, restarts = sequence.lost, sequence.received, sequence.restarts
        order = sequence.take(number)
        if order is Order.NEXT:
            count = sequence.received - received
            self.numbered += count
            self._cell.numbered += count
            if sequence.restarts != restarts:
                self.restarts += 1
                self._transit.skip()
        elif order is not Order.JUMP:
            late, again = order is Order.LATE, order is Order.DUPLICATE
            self._add(sequence.received - received, sequence.lost - lost, again, late)
        return order

    def _add(self, numbered: int, lost: int, duplicates: int, reordered: int) -> None:
        cell = self._cell
        self.numbered += numbered
        cell.numbered += numbered
        self.lost += lost
        cell.lost += lost
        self.duplicates += duplicates
        cell.duplicates += duplicates
        self.reordered += reordered
        cell.reordered += reordered

    def _take_ts(self, packet: bytes, size: int) -> None:
        if any(packet[start] != TS_SYNC for start in range(0, size, TS_SIZE)):
            return
        self.numbering = Numbering.TS
        pids = self._pids
        for start in range(0, size, TS_SIZE):
            pid = (packet[start + 1] & 0x1F) << 8 | packet[start + 2]
            flags = packet[start + 3]
            if pid == _TS_NULL:
                continue
            counter, payload, field = flags & 0x0F, flags & 0x10, flags & 0x20
            announced = field and packet[start + 4] and packet[start + 5] & 0x80  # discontinuity_indicator
            last = pids.get(pid)
            if last is None and len(pids) >= _TS_PIDS:
                continue
            # Bit 4 of what is kept: this number was repeated, which is allowed once.
            if last is None or announced:
                pids[pid] = counter
                self._add(1 if payload else 0, 0, 0, 0)
            elif payload:
                before = last & 0x0F
                if counter == before and not last & 0x10:
                    pids[pid] = counter | 0x10
                    self._add(0, 0, 1, 0)
                else:
                    self._add(1, (counter - before - 1) & 0x0F, 0, 0)
                    pids[pid] = counter

    # -- seconds

    @property
    def loss(self) -> float:
        """The share of what is numbered that was lost since the beginning, 0 to 1; nan where there are no numbers."""
        whole = self.numbered + self.lost
        return self.lost / whole if whole > 0 else math.nan

    @property
    def now(self) -> Cell:
        """The last whole second."""
        return self.strip[-1] if self.strip else self._cell

    def tick(self, start: float, seconds: float, dropped: int = 0) -> Cell:
        """End a second that began at `start`; return it."""
        cell, self._cell = self._cell, Cell()
        cell.start, cell.seconds, cell.dropped = start, seconds, dropped
        cell.jitter = self.jitter if cell.packets else math.nan
        # A packet that was late may make up for a loss of the second before.
        cell.lost = max(0, cell.lost)
        self.strip.append(cell)
        self._stage = replace(cell) if self._stage is None else self._stage.and_(cell)
        self._stage_of += 1
        if self._stage_of >= self._width:
            self._history.append(self._stage)
            self._stage, self._stage_of = None, 0
            if len(self._history) >= _MOMENTS:
                pairs = zip(self._history[::2], self._history[1::2], strict=False)
                self._history = [one.and_(other) for one, other in pairs]
                self._width *= 2
        return cell

    @property
    def moments(self) -> list[Cell]:
        """All the time since the beginning, as cells; the last may be shorter than the others."""
        return self._history if self._stage is None else [*self._history, self._stage]

    def marks(self, width: int = STRIP) -> str:
        """Return the last seconds as a strip, a character for each.

        Where packets are numbered: ``.`` all there, ``_`` some lost, ``:`` some twice, ``<`` some out of order; else
        bars of the rate. ``!`` the kernel dropped some, blank: nothing came.
        """
        cells = list(self.strip)[-width:]
        if self.numbering is Numbering.NONE:
            rates = [cell.rate for cell in cells]
            # Not the whole height: rows that stand one above the other must not grow together.
            bars = spark(rates, 1.3 * max(rates, default=0))
            return "".join("!" if cell.dropped else bar for cell, bar in zip(cells, bars, strict=True))
        return "".join(map(_mark, cells))

    def reset(self) -> None:
        """Count from 0 again; the numbers of packets go on from where they are."""
        self.packets = self.bytes = self.numbered = self.lost = self.duplicates = self.reordered = self.restarts = 0
        self._history.clear()
        self.strip.clear()
        self._stage, self._stage_of, self._width = None, 0, 1
        self._cell = Cell()
        self.first = self.last


def _mark(cell: Cell) -> str:
    if cell.dropped:
        return "!"
    if cell.lost:
        return "_"
    if not cell.packets:
        return " "
    return ":" if cell.duplicates else "<" if cell.reordered else "."


class Meters:
    """The flows there are, up to `most`; what is more is counted in `others`.

    A flow that has been silent for ten seconds makes room for a new one. Times are seconds of a clock that is not set;
    to have the time on the way, the clock of the senders.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._flows: OrderedDict[FlowKey, Flow] = OrderedDict()
        #: Packets of flows for which there was no room, and flows that made room.
        self.others = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def take(self, key: FlowKey, packet: bytes, now: float, ttl: int | None = None) -> Flow | None:
        """Take a packet of a flow; return the flow, None if there is no room for it."""
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._most and not self._make_room(now):
                self.others += 1
                return None
            flow = self._flows[key] = Flow(key, now)
        flow.ttl = ttl
        flow.take(packet, now)
        return flow

    def _make_room(self, now: float) -> bool:
        # The first has not moved for longest: `tick` puts those that are heard behind the others.
        key, flow = next(iter(self._flows.items()))
        if now - flow.last < _SILENT:
            return False
        del self._flows[key]
        self.forgotten += 1
        return True

    def tick(self, start: float, seconds: float, dropped: dict[tuple[str, int], int] | None = None) -> None:
        """End a second that began at `start`; `dropped` is what the kernel dropped, by group and port."""
        for key, flow in list(self._flows.items()):
            cell = flow.tick(start, seconds, (dropped or {}).get((key.group, key.port), 0))
            if cell.packets:
                self._flows.move_to_end(key)

    def reset(self) -> None:
        """Count from 0 again."""
        for flow in self:
            flow.reset()
        self.others = self.forgotten = 0

    def ordered(self, by: str = "rate") -> list[Flow]:
        """Return the flows, those with most of `by` first: rate, bytes, loss or jitter."""

        def rank(flow: Flow) -> tuple[float, ...]:
            values = {"rate": flow.now.rate, "bytes": flow.bytes, "loss": flow.loss, "jitter": flow.jitter}
            value = values[by]
            return (-1.0 if math.isnan(value) else value, flow.now.rate, flow.packets)

        return sorted(self, key=rank, reverse=True)
