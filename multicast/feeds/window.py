"""What has come of a numbered feed, what is missing, and what is to be asked for when. No I/O.

A `Window` puts messages in order, and knows the gaps: ranges of numbers that are missing although later ones were
heard of. A gap is asked for after `patience` and a random delay, again when no answer came within a few round trips,
and given up after `give_up` seconds without any progress. What is given up is told in its place among the messages.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Lost", "Window"]

# The first delay of a request among several receivers is up to this, in seconds, and it grows with those seen to ask.
_SPREAD = 0.0005
_MOST_OTHERS = 16.0
# What is waited for an answer before any round trip was measured, and at the least, in seconds.
_FIRST_WAIT, _LEAST_WAIT = 0.1, 0.001
# What is waited for the first answer at the most where answers take longer than measured: so many times as long, and so
# many seconds. A window that fills in a fifth of a second has time for several attempts.
_MOST_STRETCH, _LATEST = 32.0, 0.02
# So many attempts fit into `give_up`: at 30 % loss both ways one of 10^8 messages needs more.
_ATTEMPTS = 30
# So many are a few round trips apart: at 30 % loss both ways one of 10^7 gaps needs more, before a window fills. After
# that the server is gone, or refuses for want of an allowance, and more would be a flood.
_QUICK = 24
# How many requests may wait for their answers.
_IN_FLIGHT = 64


class Lost(NamedTuple):
    """Messages that will not come any more."""

    first: int
    amount: int
    #: ``unanswered``, ``history``: those that have them have them no more; ``window``: more was missing than is kept
    #: in mind; ``session``: another session has begun.
    cause: str


class _Gap:
    """Numbers that are missing, `first` to before `end`."""

    __slots__ = ("asked", "asked_at", "due", "end", "first", "progress", "since")

    def __init__(self, first: int, end: int, since: float, due: float) -> None:
        self.first = first
        self.end = end
        self.since = since  # when it was noticed
        self.progress = since  # when it was asked for first, or a part of it came last
        self.due = due  # when it is to be asked for
        self.asked = 0  # how many times it was asked for
        self.asked_at = since

    def part(self, first: int, end: int) -> _Gap:
        """Return a part of it."""
        part = _Gap(first, end, self.since, self.due)
        part.progress, part.asked, part.asked_at = self.progress, self.asked, self.asked_at
        return part


class Window:
    """The messages of one session on their way to a handler.

    `limit` is how many numbers, and `room` how many bytes, may wait for missing ones. With `ordered` False messages
    need not wait, and the window only knows which have come.
    """

    def __init__(
        self,
        *,
        patience: float = 0.02,
        give_up: float = 2.0,
        limit: int = 65536,
        room: int = 64 << 20,
        ordered: bool = True,
        asks: bool = True,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._patience = patience
        self._give_up = give_up
        self._limit = limit
        self._room = room
        self._ordered = ordered
        self._asks = asks
        self._chance = chance
        #: The number of the next message for the handler.
        self.next = 1
        #: The number after the highest that was heard of.
        self.known = 1
        #: Whether nothing is missing and nothing waits: `next` is `known`.
        self.clear = True
        self._backlog = 0  # before this number nothing is given up for want of room
        self._kept: dict[int, Any] = {}
        self._bytes = 0
        self._firsts: list[int] = []
        self._gaps: list[_Gap] = []
        self._lost: dict[int, Lost] = {}  # by their first number, in their place
        #: What was given up lately.
        self.given_up_lately: deque[Lost] = deque(maxlen=64)
        #: All of that is before this number.
        self.given_up_before = 0
        self._answered = -math.inf  # when something came last that was asked for
        self._others = 1.0
        self._round_trip = self._variation = -1.0
        self._stretch = 1.0  # by how much longer than measured an answer takes
        #: How many numbers came that were asked for, and what was told as lost.
        self.repaired = self.unrecoverable = 0
        #: The sum and the greatest of the times from noticing a gap to its repair, in seconds.
        self.delay_sum = self.delay_max = 0.0

    @property
    def missing(self) -> int:
        """How many numbers are missing now."""
        return sum(gap.end - gap.first for gap in self._gaps)

    @property
    def waiting(self) -> int:
        """How many messages wait for missing ones."""
        return len(self._kept)

    def start(self, number: int, following: int, now: float) -> None:
        """Begin with `number`: what is before it is not wanted; what is from there to before `following` is asked for.

        However much that is, nothing of it is given up for want of room: while it comes, later messages that have no
        room are asked for when their turn has come.
        """
        self.next = self.known = number
        if following > number:
            self._backlog = following
            self._open(number, following, now - self._patience)
            self.known = following
        self.clear = self.next == self.known

    # -- what comes ------------------------------------------------------------------------------------------------

    def add(self, number: int, messages: Sequence[Any], now: float, *, repair: bool = False) -> int:
        """Take messages, of which the first has this number; return how many of them are new.

        `repair` says that they come as an answer to a request, so what is missing after them is not on its way.
        """
        end = number + len(messages)
        if self.next < self._backlog and (end > self.next + self._limit or self._bytes > self._room):
            if number > self.next and end > self.known:
                self._backlog = max(self._backlog, end)
                self.heard(end, now)
            if number > self.next:
                return 0
        if end > self.known:
            if number > self.known:
                self._open(self.known, number, now)
            self.known = end
        first = max(number, self.next)
        new = 0
        kept = self._kept
        for place in range(first, end):
            if place in kept:
                continue
            if self._lost and self._is_lost(place):
                continue
            message = messages[place - number]
            kept[place] = message
            self._bytes += len(message) if isinstance(message, bytes) else len(message[0])
            new += 1
        if new and self._gaps:
            self._close(first, end, now, repair)
        elif repair and not new:
            # It was asked for again while the first answer was on its way, so answers take longer than measured: those
            # that come late are not measured, as it is not known which request they answer.
            self._stretch = min(_MOST_STRETCH, 1.2 * self._stretch)
        self._bound()
        self.clear = self.next == self.known
        return new

    def skipped(self, number: int) -> None:
        """Take note that an answer begins with this number: what was asked for before it is not there any more."""
        for gap in self._gaps:
            if gap.asked and gap.first < number < gap.end:
                self._lose(gap, number, "history")
                return

    def given_up(self, number: int) -> bool:
        """Whether this message is among those given up lately."""
        return any(lost.first <= number < lost.first + lost.amount for lost in self.given_up_lately)

    def has(self, number: int) -> bool:
        """Whether this message has come, was given up, or is not wanted."""
        return number < self.next or number in self._kept or self._is_lost(number)

    def heard(self, following: int, now: float) -> None:
        """Take note that all messages before this number exist."""
        if following > self.known:
            self._open(self.known, following, now)
            self.known = following
            self._bound()
            self.clear = self.next == self.known

    def gone(self, oldest: int) -> None:
        """Take note that messages before this number cannot be had any more; those that are missing are lost."""
        for gap in [gap for gap in self._gaps if gap.first < oldest]:
            self._lose(gap, min(gap.end, oldest), "history")

    def _is_lost(self, number: int) -> bool:
        return any(lost.first <= number < lost.first + lost.amount for lost in self._lost.values())

    def _open(self, first: int, end: int, now: float) -> None:
        due = now + self._patience + self._chance() * _SPREAD * self._others
        self._firsts.append(first)
        self._gaps.append(_Gap(first, end, now, due))

    def _close(self, first: int, end: int, now: float, repair: bool) -> None:
        """Take the numbers from `first` to before `end` out of the gaps."""
        place = max(0, bisect_right(self._firsts, first) - 1)
        gaps = self._gaps
        while place < len(gaps) and gaps[place].first < end:
            gap = gaps[place]
            if gap.end <= first:
                place += 1
                continue
            low, high = max(gap.first, first), min(gap.end, end)
            if gap.asked:
                self._answered = now
            self._note_repair(gap, high - low, now, repair)
            rest = []
            if gap.first < low:
                rest.append(gap.part(gap.first, low))
            if high < gap.end:
                rest.append(gap.part(high, gap.end))
                if repair and gap.asked:
                    # The answer had room for no more, so what follows is not on its way.
                    rest[-1].due, rest[-1].asked = now, 0
            for one in rest:
                one.progress = now
            gaps[place : place + 1] = rest
            self._firsts[place : place + 1] = [one.first for one in rest]
            place += len(rest)

    def _note_repair(self, gap: _Gap, count: int, now: float, repair: bool) -> None:
        if gap.asked:
            self.repaired += count
            delay = now - gap.since
            self.delay_sum += delay
            self.delay_max = max(self.delay_max, delay)
        if not repair:
            if self._asks and now - gap.since > self._patience:
                # An answer to another receiver's request, so there are others.
                self._others = min(_MOST_OTHERS, 2 * self._others)
            return
        self._others = max(1.0, 0.9 * self._others)
        self._stretch = max(1.0, 0.98 * self._stretch)
        if gap.asked == 1:  # with more it is not known which was answered (Karn's rule)
            took = now - gap.asked_at
            if self._round_trip < 0:
                self._round_trip, self._variation = took, took / 2
            else:  # RFC 6298 section 2
                self._variation += (abs(took - self._round_trip) - self._variation) / 4
                self._round_trip += (took - self._round_trip) / 8

    # -- what is lost ----------------------------------------------------------------------------------------------

    def _lose(self, gap: _Gap, end: int, cause: str) -> None:
        """Give up the numbers of a gap to before `end`."""
        place = self._gaps.index(gap)
        self.unrecoverable += end - gap.first
        lost = self._lost[gap.first] = Lost(gap.first, end - gap.first, cause)
        self.given_up_lately.append(lost)
        self.given_up_before = max(self.given_up_before, end)
        if end < gap.end:
            gap.first = end
            self._firsts[place] = end
        else:
            del self._gaps[place], self._firsts[place]

    def _bound(self) -> None:
        """Give up the first gap while too much waits for it."""
        while self._gaps and self._gaps[0].first >= self._backlog:
            gap = self._gaps[0]
            if self.known - gap.first > self._limit:
                self._lose(gap, max(gap.first + 1, min(gap.end, self.known - self._limit)), "window")
            else:
                if self._bytes > self._room:
                    self._lose(gap, gap.end, "window")
                return

    def end(self) -> None:
        """Give up all that is missing: another session has begun."""
        for gap in list(self._gaps):
            self._lose(gap, gap.end, "session")

    # -- what goes on ----------------------------------------------------------------------------------------------

    def ready(self) -> Iterator[tuple[int, Any] | Lost]:
        """Yield what can be handed on: ``(number, message)`` and `Lost`, in order."""
        kept, lost = self._kept, self._lost
        while True:
            number = self.next
            if number in kept:
                message = kept.pop(number)
                self._bytes -= len(message) if isinstance(message, bytes) else len(message[0])
                self.next = number + 1
                self.clear = self.next == self.known
                yield number, message
            elif number in lost:
                one = lost.pop(number)
                while (following := lost.get(one.first + one.amount)) is not None and following.cause == one.cause:
                    del lost[following.first]
                    one = Lost(one.first, one.amount + following.amount, one.cause)
                self.next = number + one.amount
                self.clear = self.next == self.known
                yield one
            else:
                return

    # -- what is asked for -----------------------------------------------------------------------------------------

    @property
    def _wait(self) -> float:
        """How long to wait for an answer, in seconds."""
        if self._round_trip < 0:
            return _FIRST_WAIT
        return max(_LEAST_WAIT, self._round_trip + 4 * self._variation)

    def next_due(self) -> float:
        """When `due` or `expire` has something to do; infinite where nothing is missing."""
        if not self._gaps:
            return math.inf
        asked = sum(gap.asked > 0 for gap in self._gaps)
        soonest = math.inf
        for gap in self._gaps:
            soonest = min(soonest, self._waits_since(gap) + self._give_up)
            if self._asks and (gap.asked or asked < _IN_FLIGHT):
                soonest = min(soonest, gap.due)
        return soonest

    def _waits_since(self, gap: _Gap) -> float:
        """Return since when a gap waits in vain. One whose turn to be asked for has not come waits while others get no
        answers.
        """
        if gap.asked or not self._asks:
            return gap.progress
        return max(gap.progress + self._patience, self._answered)

    def expire(self, now: float) -> None:
        """Give up what was asked for long enough without any progress; without asking, what is missing long enough."""
        for gap in list(self._gaps):
            if now - self._waits_since(gap) >= self._give_up - 1e-9:
                self._lose(gap, gap.end, "unanswered" if self._asks else "missing")

    def due(self, now: float, chunk: int) -> list[tuple[int, int]]:
        """Return what to ask for now: first number and count of each request, `chunk` messages at most."""
        wanted: list[tuple[int, int]] = []
        if not self._asks:
            return wanted
        flying = sum(gap.asked > 0 for gap in self._gaps)
        place = 0
        while place < len(self._gaps):
            gap = self._gaps[place]
            place += 1
            if gap.due > now + 1e-9:
                continue
            if not gap.asked:
                if flying >= _IN_FLIGHT:
                    continue
                flying += 1
                gap.progress = now
            if gap.end - gap.first > chunk:
                rest = gap.part(gap.first + chunk, gap.end)
                rest.asked = 0
                gap.end = rest.first
                self._gaps.insert(place, rest)
                self._firsts.insert(place, rest.first)
            wait = self._wait
            most = max(wait, min(4 * wait, self._give_up / _ATTEMPTS))
            first = max(wait, min(self._stretch * wait, _LATEST))
            if not gap.asked:
                gap.due = now + first
            elif gap.asked < _QUICK:
                gap.due = now + min(wait * 2**gap.asked, most)
            else:
                gap.due = now + max(most, min(most * 2 ** (gap.asked - _QUICK + 1), self._give_up / _ATTEMPTS))
            gap.asked += 1
            gap.asked_at = now
            wanted.append((gap.first, gap.end - gap.first))
        return wanted
