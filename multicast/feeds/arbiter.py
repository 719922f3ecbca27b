"""`Arbiter`: one stream out of several lines of a numbered feed that is not MoldUDP64, such as RTP."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Self

from multicast.batch import Address
from multicast.errors import ArgumentError, check_amount, check_number, check_seal
from multicast.poller import Poller, Timer, _defaultPoller, report
from multicast.sealed import Seal
from multicast.sockets import Group

from .subscriber import Ear, Line, LineStatistics, SubscriberStatistics, _LineState, as_lines
from .window import Lost, Window

__all__ = ["RTP", "Arbiter", "Numbering", "field"]

_log = logging.getLogger("multicast")

# A jump of more than this, or of half the numbers where there are fewer, begins the stream anew.
_JUMP = 1 << 14
# For so long after that, packets of before are those of a line that is behind, in seconds.
_ANEW = 1.0
# How many streams are told apart.
_MOST_STREAMS = 1024


class Numbering:
    """Where the number of a packet is, and what stream it belongs to.

    `read(packet)` returns stream and number, or None for a packet that has none. The numbers have `bits` bits and go
    round.
    """

    def __init__(self, read: Callable[[bytes], tuple[object, int] | None], bits: int) -> None:
        self.read = read
        self.bits = bits


def field(offset: int, size: int, order: Literal["big", "little"] = "big") -> Numbering:
    """Return the numbering by a field of `size` bytes at `offset` of the payload; the numbers go round.

    Raises `ArgumentError`.
    """
    check_number("offset", offset, 0, 65535)
    check_number("size", size, 1, 8)
    if order not in ("big", "little"):
        raise ArgumentError(f"order is 'big' or 'little', not {order!r}")

    def read(packet: bytes) -> tuple[object, int] | None:
        data = packet[offset : offset + size]
        return (None, int.from_bytes(data, order)) if len(data) == size else None

    return Numbering(read, 8 * size)


def _read_rtp(packet: bytes) -> tuple[object, int] | None:
    if len(packet) < 12 or packet[0] >> 6 != 2:
        return None
    return packet[8:12], packet[2] << 8 | packet[3]


#: The sequence number of RTP (RFC 3550 section 5.1), 16 bits; each SSRC is a stream.
RTP = Numbering(_read_rtp, 16)


class _Stream:
    """One stream: its window, and its numbers made to go on."""

    __slots__ = ("before", "by", "highest", "latest", "since", "states", "window")

    def __init__(self, window: Window, lines: int, latest: float) -> None:
        self.window = window
        self.highest = 0  # the highest number, of those that go on
        self.states = [0] * lines
        self.latest = latest
        # The highest number before the stream began anew, as it is in packets; when that was, and by which line.
        self.before: int | None = None
        self.since = latest
        self.by: int | None = None


class Arbiter(ABC):
    """Merges the lines of a numbered feed: each packet once, in order, and gaps told; subclasses have `handle_message`.

    `lines` are as for `Subscriber`. `number` says where the number of a packet is: `RTP`; `field`; a `Numbering`; or a
    function of the packet that returns its number, or None. A packet that comes by no line within `patience` seconds
    is missing. Each stream (an SSRC of RTP) has numbers for itself. This is what SMPTE ST 2022-7 calls seamless
    protection switching; nothing is asked for.

    `window` is how many packets wait for missing ones; with `ordered` False none waits. The further keywords are those
    of `MulticastListener`.
    """

    #: The stream of the packet that a handler is called with: for RTP its SSRC, 4 bytes.
    stream: object = None
    #: The place in `lines` by which the packet given to `handle_message` came.
    line: int | None = None

    def __init__(
        self,
        lines: Line | Iterable[Line],
        number: Numbering | Callable[[bytes], int | None] = RTP,
        *,
        patience: float = 0.02,
        window: int = 4096,
        ordered: bool = True,
        seal: Seal | None = None,
        poller: Poller | None = None,
        **options: Any,
    ) -> None:
        groups = as_lines(lines)
        check_amount("patience", patience, "seconds")
        check_number("window", window, of="packets")
        check_seal(seal)
        if not isinstance(number, Numbering):
            if not callable(number):
                raise ArgumentError(f"number is feeds.RTP, feeds.field(...) or a function of a packet, not {number!r}")
            function = number

            def read(packet: bytes) -> tuple[object, int] | None:
                found = function(packet)
                return None if found is None else (None, found)

            number = Numbering(read, 64)
        #: The poller that drives it.
        self.poller = _defaultPoller if poller is None else poller
        #: The groups of the lines.
        self.lines = tuple(groups)
        self._feed_numbering = number
        self._feed_patience, self._feed_limit = patience, window
        self._feed_ordered = ordered
        self._feed_streams: OrderedDict[object, _Stream] = OrderedDict()
        self._feed_states = [_LineState() for _ in groups]
        self._feed_messages = self._feed_bytes = self._feed_malformed = 0
        self._feed_unrecoverable = self._feed_restarts = 0
        # Batches that came while a handler was at work or had raised.
        self._feed_later: deque[tuple[int, Iterator[tuple[bytes, Address]]]] = deque()
        self._feed_busy = False
        self._feed_timer: Timer | None = None
        self._feed_closed = False
        self._feed_ears: list[Ear] = []
        try:
            for place, group in enumerate(groups):
                self._feed_ears.append(Ear(self, place, group, {"seal": seal, "poller": self.poller, **options}))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        lines = " and ".join(map(str, self.lines))
        return f"<{type(self).__name__} of {lines}{', closed' if self._feed_closed else ''}>"

    @abstractmethod
    def handle_message(self, message: bytes, number: int, addr: Address) -> object:
        """Called with each packet, in order and once; a true result closes this arbiter.

        `number` is the one in the packet.
        """

    @property
    def group(self) -> Group:
        """The group of the first line."""
        return self.lines[0]

    def handle_gap(self, first: int, count: int) -> None:
        """Called in the place of `count` packets from number `first` on that came by no line; logs it."""
        _log.warning("%r: %d packets from number %d on are missing", self, count, first)

    def _feed_new_window(self) -> Window:
        return Window(
            patience=0.0, give_up=self._feed_patience, limit=self._feed_limit, ordered=self._feed_ordered, asks=False
        )

    def _feed_take(self, place: int, packets: list[bytes], addresses: list[Address]) -> None:
        """Take a batch of packets of a line; what a handler raises leaves the rest for the next time."""
        self._feed_later.append((place, zip(packets, addresses, strict=True)))
        self._feed_work()

    def _feed_work(self) -> None:
        """Do what there is to do, unless a handler that polls does it already further out."""
        if self._feed_busy:
            return
        self._feed_busy = True
        later = self._feed_later
        try:
            while later and not self._feed_closed:
                self._feed_process(*later[0])
                if later:  # `close` empties it
                    later.popleft()
            if not self._feed_closed:
                self._feed_go_on()
        except BaseException:
            if not self._feed_closed:
                self.poller.call_soon(self._feed_on_time)
            raise
        finally:
            self._feed_busy = False

    def _feed_process(self, place: int, pairs: Iterator[tuple[bytes, Address]]) -> None:
        now = self.poller.time()
        read, bits = self._feed_numbering.read, self._feed_numbering.bits
        mask, half = (1 << bits) - 1, 1 << (bits - 1)
        jump = min(_JUMP, half)
        state = self._feed_states[place]
        for packet, addr in pairs:
            found = read(packet)
            if found is None:
                self._feed_malformed += 1
                continue
            name, number = found
            number &= mask
            state.packets += 1
            state.messages += 1
            stream = self._feed_streams.get(name)
            if stream is None:
                stream = self._feed_begin(name, number, now)
            # The number that goes on: of those with these bits the one nearest to the highest (RFC 3550 appendix A.1).
            step = (number - stream.highest) & mask
            if step >= half:
                step -= mask + 1
            if not -jump < step < jump:
                if (
                    stream.before is not None
                    and place != stream.by
                    and now - stream.since < _ANEW
                    and (stream.before - number) & mask < jump
                ):
                    # Another line has not come to the new beginning yet.
                    state.duplicates += 1
                    continue
                before = stream.highest & mask
                stream.window.end()
                self._feed_drain(name, stream)
                if self._feed_closed:
                    return
                self._feed_restarts += 1
                self._feed_unrecoverable += stream.window.unrecoverable
                stream = self._feed_begin(name, number, now)
                stream.before, stream.by = before, place
                step = 0
            absolute = stream.highest + step
            stream.highest = max(stream.highest, absolute)
            stream.latest = now
            window = stream.window
            if window.next <= absolute and not window.has(absolute):
                state.firsts += 1
                if self._feed_ordered:
                    window.add(absolute, [(packet, addr, place)], now)
                else:
                    window.add(absolute, [(b"",)], now)
                    self._feed_hand_on(name, packet, absolute, addr, place)
                    if self._feed_closed:
                        return
                self._feed_drain(name, stream)
                if self._feed_closed:
                    return
            elif window.given_up(absolute):
                state.late += 1
            else:
                state.duplicates += 1

    def _feed_begin(self, name: object, number: int, now: float) -> _Stream:
        if name not in self._feed_streams and len(self._feed_streams) >= _MOST_STREAMS:
            quiet = min(self._feed_streams, key=lambda one: self._feed_streams[one].latest)
            self._feed_unrecoverable += self._feed_streams.pop(quiet).window.unrecoverable
        stream = self._feed_streams[name] = _Stream(self._feed_new_window(), len(self.lines), now)
        # Late packets of before the first are told apart from those that went round.
        stream.highest = number + (1 << self._feed_numbering.bits)
        stream.window.start(stream.highest, stream.highest, now)
        return stream

    def _feed_hand_on(self, name: object, packet: bytes, absolute: int, addr: Address, place: int) -> None:
        self._feed_messages += 1
        self._feed_bytes += len(packet)
        self.stream, self.line = name, place
        if self.handle_message(packet, absolute & ((1 << self._feed_numbering.bits) - 1), addr):
            self.close()

    def _feed_drain(self, name: object, stream: _Stream) -> None:
        mask = (1 << self._feed_numbering.bits) - 1
        for one in stream.window.ready():
            if isinstance(one, Lost):
                self.stream = name
                self.handle_gap(one.first & mask, one.amount)
            elif self._feed_ordered:
                absolute, (packet, addr, place) = one
                self._feed_hand_on(name, packet, absolute, addr, place)
            if self._feed_closed:
                return

    def _feed_go_on(self) -> None:
        """Give up what is missing for long enough, and see when to look again."""
        if self._feed_timer is not None:
            self._feed_timer.cancel()
            self._feed_timer = None
        now = self.poller.time()
        soonest = float("inf")
        for name, stream in list(self._feed_streams.items()):
            if stream.window.clear:
                continue
            stream.window.expire(now)
            self._feed_drain(name, stream)
            if self._feed_closed:
                return
            soonest = min(soonest, stream.window.next_due())
        if soonest < float("inf"):
            self._feed_timer = self.poller.call_at(soonest, self._feed_on_time)

    def _feed_on_time(self) -> None:
        self._feed_timer = None
        try:
            if not self._feed_closed:
                self._feed_work()
        except Exception as error:
            report(self, error)

    def statistics(self) -> SubscriberStatistics:
        """Return what was counted so far; packets count as messages. It stays readable after `close`."""
        windows = [stream.window for stream in self._feed_streams.values()]
        lines = tuple(
            LineStatistics(
                state.packets, state.messages, state.firsts, state.duplicates,
                max(0, self._feed_messages - state.firsts - state.duplicates - state.late), state.late,
                ear.statistics().dropped,
            )
            for state, ear in zip(self._feed_states, self._feed_ears, strict=False)
        )  # fmt: skip
        return SubscriberStatistics(
            self._feed_messages,
            self._feed_bytes,
            lines,
            0,
            0,
            self._feed_unrecoverable + sum(window.unrecoverable for window in windows),
            self._feed_restarts,
            self._feed_malformed,
            sum(window.missing for window in windows),
            sum(window.waiting for window in windows),
            float("nan"),
            0.0,
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._feed_closed

    def close(self) -> None:
        """Leave the groups and close the sockets. Idempotent."""
        self._feed_closed = True
        if self._feed_timer is not None:
            self._feed_timer.cancel()
            self._feed_timer = None
        self._feed_later.clear()
        for ear in self._feed_ears:
            ear.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
