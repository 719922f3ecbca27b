"""Calls that wait for their time, and the descriptor that becomes readable when the next one's has come."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

_PURGE = 64
_NANOSECOND = 1e-9
_ITIMERSPEC = struct.Struct("@4l")


class Timer:
    """A call that waits for its time; made by `Poller.call_later`."""

    __slots__ = ("_args", "_callback", "_kept", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        #: When the call is due, in seconds of the poller's clock.
        self.when = when
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._kept = False  # until the call has returned, so that one that was interrupted is made again

    @property
    def active(self) -> bool:
        """Whether the call is still to come."""
        return self._callback is not None

    def cancel(self) -> None:
        """Drop the call. Harmless when it was made or dropped before."""
        self._callback = None
        self._args = ()


class _Clocked(Protocol):
    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer: ...


class Repeater:
    """A call that comes again and again, at times that do not drift; made by `Poller.call_every`."""

    def __init__(
        self, poller: _Clocked, interval: float, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        #: Seconds from one call to the next.
        self.interval = interval
        #: How many calls were left out, as their whole interval had passed before they could be made.
        self.missed = 0
        self._poller = poller
        self._callback = callback
        self._args = args
        self._began = poller.time()
        self._number = 1
        self._timer = self._set(1)

    @property
    def when(self) -> float:
        """When the next call is due, in seconds of the poller's clock."""
        return self._timer.when

    @property
    def active(self) -> bool:
        """Whether more calls will come."""
        return self._timer.active

    def cancel(self) -> None:
        """Make no more calls. Harmless when it was cancelled before."""
        self._timer.cancel()

    def _set(self, number: int) -> Timer:
        timer = self._poller.call_at(self._began + number * self.interval, self._run, number)
        timer._kept = True
        return timer

    def _run(self, number: int) -> None:
        if number != self._number:  # made before, and interrupted then
            return
        passed = int((self._poller.time() - self._began) / self.interval)
        missed, following = self.missed + max(0, passed - number), max(passed, number) + 1
        # First the next one: it comes although the callback raises, and the callback may cancel it.
        timer, call, args = self._set(following), self._callback, self._args
        self.missed, self._number, self._timer = missed, following, timer; call(*args)  # noqa: E702 -- as in Schedule.run


class Schedule(list[tuple[float, int, Timer]]):
    """Timers by their time: a heap. A list, and as true as one, for that is asked at each turn of a poller."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._purge = _PURGE

    def add(self, timer: Timer) -> None:
        """Take in a timer."""
        if len(self) >= self._purge:  # cancelled timers stay in the heap; no more of them than live ones
            live = [entry for entry in self if entry[2].active]
            heapq.heapify(live)
            self[:] = live
            self._purge = max(_PURGE, 2 * len(self))
        heapq.heappush(self, (timer.when, next(self._order), timer))

    def next_deadline(self) -> float | None:
        """Return when the next timer is due; None when there is none."""
        while self and self[0][2]._callback is None:
            heapq.heappop(self)
        return self[0][0] if self else None

    def run(self, now: float) -> None:
        """Make the calls that are due. Each leaves before it is made: when one raises, the rest is there for later.

        A signal handler may raise at any line here: a call is still to come then, or it was made. So the call leaves in
        the line that makes it, and what is left of the timer is removed afterwards.
        """
        last = next(self._order)  # those that are added from here on wait for the next time
        while self and self[0][0] <= now and self[0][1] < last:
            timer = self[0][2]
            callback, args = timer._callback, timer._args
            if callback is None:
                heapq.heappop(self)
                continue
            if timer._kept:
                callback(*args)
                timer.cancel()
                continue
            timer._callback, timer._args = None, (); callback(*args)  # noqa: E702 -- see above


def load_clock() -> Any:
    """Load what the first timer would otherwise load, which takes two milliseconds until Python 3.13.

    For programs that send to the microsecond: a replay calls it before its first packet.
    """
    if sys.version_info >= (3, 13):
        return None
    global _libc
    if _libc is None:
        import ctypes

        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


_libc: Any = None


class Alarm:
    """A timerfd(2) on the monotonic clock: a descriptor that becomes readable at a given time.

    It is watched for the moment it becomes so (EPOLLET), and need not be read: setting it anew starts afresh.
    """

    EVENTS = select.EPOLLIN | select.EPOLLET
    # timerfd_create(2): TFD_NONBLOCK and TFD_CLOEXEC are O_NONBLOCK and O_CLOEXEC.
    _FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
    #: When it rings, on the clock of its poller; None when it is not set.
    deadline: float | None = None

    if sys.version_info >= (3, 13):

        def __init__(self) -> None:
            self.fd = os.timerfd_create(time.CLOCK_MONOTONIC, flags=self._FLAGS)

        def set(self, delay: float) -> None:
            """Become readable in `delay` seconds; 0 or less means as soon as can be."""
            os.timerfd_settime(self.fd, initial=_NANOSECOND if delay < _NANOSECOND else delay)

    else:

        def __init__(self) -> None:
            # Until 3.13 the standard library has no timerfd.
            import ctypes

            libc = load_clock()
            self.fd = libc.timerfd_create(time.CLOCK_MONOTONIC, self._FLAGS)
            if self.fd < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            self._settime = libc.timerfd_settime

        def set(self, delay: float) -> None:
            """Become readable in `delay` seconds; 0 or less means as soon as can be."""
            nanoseconds = 1 if delay < _NANOSECOND else int(delay * 1e9)
            # struct itimerspec: interval, then value, each a timespec of two longs.
            self._settime(self.fd, 0, _ITIMERSPEC.pack(0, 0, *divmod(nanoseconds, 1_000_000_000)), None)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
