"""Packets that wait to be published, bounded in bytes; without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ["OVERHEAD", "Buffer", "Waiting"]

#: The bytes of memory that a packet takes beside its payload: tuple, header text and the head of a bytes object.
OVERHEAD = 224

#: A packet that waits: what it belongs to, the part of its header that is known when it is heard, and its payload.
Waiting: TypeAlias = "tuple[Any, str, bytes]"


class Buffer:
    """A queue of packets of `limit` bytes at most, each with `OVERHEAD` bytes beside its payload.

    Where a packet does not fit, the oldest give way, or with `keep` ``oldest`` the new one is left out.
    """

    def __init__(self, limit: int, keep: str = "newest") -> None:
        self.limit = limit
        self._keep_oldest = keep == "oldest"
        self._queue: deque[Waiting] = deque()
        #: The bytes of what waits, with the overhead.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, packets: Iterable[Waiting]) -> int:
        """Add packets; return how many did not fit, new or old."""
        queue, limit = self._queue, self.limit
        lost = 0
        for waiting in packets:
            size = len(waiting[2]) + OVERHEAD
            if self.bytes + size > limit:
                if self._keep_oldest or size > limit:
                    lost += 1
                    continue
                while queue and self.bytes + size > limit:
                    self.bytes -= len(queue.popleft()[2]) + OVERHEAD
                    lost += 1
            self.bytes += size
            queue.append(waiting)
        return lost

    def take(self, most: int) -> list[Waiting]:
        """Remove up to `most` packets, the oldest first, and return them."""
        queue = self._queue
        taken = [queue.popleft() for _ in range(min(most, len(queue)))]
        self.bytes -= sum(len(waiting[2]) for waiting in taken) + OVERHEAD * len(taken)
        return taken

    def give_back(self, packets: list[Waiting]) -> None:
        """Put packets that were taken, and not used, before the others."""
        self._queue.extendleft(reversed(packets))
        self.bytes += sum(len(waiting[2]) for waiting in packets) + OVERHEAD * len(packets)
