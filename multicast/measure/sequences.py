"""What the numbers of packets tell, and how times are spread."""

from __future__ import annotations

import enum
import math

__all__ = ["Histogram", "Order", "Sequence"]

# So far back it is known which numbers came, where any step is a gap.
_REMEMBERED = 1024


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
