"""What was sent lately, for those that ask again. No I/O."""

from __future__ import annotations

from bisect import bisect_right

from .moldudp64 import HEADER, MOST, pack, split

__all__ = ["History"]

# How many packets may have made room before the lists are cut.
_SLACK = 4096


class History:
    """The last messages of a session, as the packets in which they were sent; up to `limit` bytes of them."""

    def __init__(self, session: bytes, limit: int) -> None:
        self.session = session
        self._limit = limit
        self._firsts: list[int] = []  # the number of the first message of each packet
        self._packets: list[bytes] = []
        self._start = 0  # those before it have made room
        #: The bytes that are kept.
        self.bytes = 0
        #: The number of the next message.
        self.next = 1
        #: No message before this number is kept, nor will be.
        self.first = 1

    def append(self, number: int, count: int, packet: bytes) -> None:
        """Keep a packet with `count` messages from `number` on, of which none is kept already."""
        if number + count <= self.first:
            return
        if number >= self.next:
            self._firsts.append(number)
            self._packets.append(packet)
            self.next = number + count
        else:  # it was missing
            place = bisect_right(self._firsts, number, self._start)
            self._firsts.insert(place, number)
            self._packets.insert(place, packet)
        self.bytes += len(packet)
        while self.bytes > self._limit:
            self.bytes -= len(self._packets[self._start])
            self.first = max(self.first, self._firsts[self._start] + self._held(self._start))
            self._packets[self._start] = b""
            self._start += 1
        if self._start > _SLACK and 2 * self._start > len(self._firsts):
            del self._firsts[: self._start], self._packets[: self._start]
            self._start = 0

    def answer(self, first: int, count: int, room: int) -> tuple[bytes, int]:
        """Return a packet with the messages from `first` on, up to `count` of them and `room` bytes, and their count.

        At least one message is in it, however long, where there is one. Where the first is not kept any more, the
        packet has those from the oldest on that were asked for; without any of these it has none, and the number of the
        oldest. Where none has come yet, the packet is empty.
        """
        end = min(first + count, self.next)
        first = max(first, self.first)
        if first >= end:
            return HEADER.pack(self.session, self.first, 0), 0
        place = bisect_right(self._firsts, first, self._start) - 1
        if place < self._start or first >= self._firsts[place] + self._held(place):  # a hole
            place += 1
            if place >= len(self._firsts) or self._firsts[place] >= end:
                return b"", 0
            first = self._firsts[place]
        if self._firsts[place] == first:
            whole = self._packets[place]
            held = self._held(place)
            following = first + held
            fits = len(whole) <= room or held == 1
            if fits and (following == end or (following < end and len(whole) + 2 > room)):
                return whole, held
        taken: list[bytes] = []
        size = HEADER.size
        number = first
        while number < end and place < len(self._firsts) and self._firsts[place] <= number:
            messages = split(self._packets[place], self._held(place)) or ()
            for message in messages[number - self._firsts[place] : end - self._firsts[place]]:
                size += 2 + len(message)
                if taken and (size > room or len(taken) == MOST):
                    return pack(self.session, first, taken), len(taken)
                taken.append(message)
                number += 1
            place += 1
        return pack(self.session, first, taken), len(taken)

    def _held(self, place: int) -> int:
        return int.from_bytes(self._packets[place][18:20], "big")
