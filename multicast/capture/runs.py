"""Runs of packets that are alike, decoded at once.

A feed sends packet after packet of one size from one source to one group. In a capture file these are blocks of one
length that differ in their times and payloads only, beside the identification and the checksums of IP and UDP. So when
one packet has been decoded with all care, those after it need only be compared to it: each byte that has to be the same
is looked at in all blocks by one slice with a step. That takes a tenth of a microsecond for each packet, and decoding
one takes more than one: it decides whether a replay keeps up with `sendto`.

Comparing is strict, so nothing passes here that would not pass the decoder: where a block differs, the run ends before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache

from .packets import Link, Packet

__all__ = ["Run", "Runs"]

# A shorter run is not worth the search, and a longer one does not get cheaper.
_SHORTEST, _LONGEST = 8, 1024
# So many runs are remembered for the next time the file is read: some millions of packets, in a few megabytes.
_KNOWN = 16_384
# So many packets are passed by after a search that found nothing, doubled each time.
_PATIENCE, _MOST_PATIENCE = 16, 4096

# In an IPv4 header without options, and the UDP header after it: all but the identification and the checksums.
_IP_SAME = (0, 1, 2, 3, 6, 7, 8, 9, *range(12, 26))


# One call for so many records costs a third of a call for each.
_AT_ONCE = 64


@lru_cache(256)
def _layout(record: str, count: int) -> struct.Struct:
    """Return the layout of so many records, one after the other."""
    return struct.Struct(record[0] + record[1:] * count)


class Run:
    """Packets that differ in time and payload only; iterate over it to get them one by one."""

    __slots__ = ("_payload", "_records", "_stamp", "_time", "count", "first")

    def __init__(
        self,
        first: Packet,
        count: int,
        payload: str,
        stamp: str,
        records: memoryview,
        time: Callable[[int, int], int],
    ) -> None:
        #: The packet before the run, which is like those in it.
        self.first = first
        #: How many there are.
        self.count = count
        # Where the payload and the time are in a record, in the language of `struct`.
        self._payload = payload
        self._stamp = stamp
        self._records = records
        self._time = time

    def payloads(self) -> list[bytes]:
        """Return what each packet carries."""
        found: list[bytes] = []
        many = _layout(self._payload, _AT_ONCE)
        whole = len(self._records) // many.size * many.size
        for start in range(0, whole, many.size):
            found += many.unpack_from(self._records, start)
        found += [payload for (payload,) in _layout(self._payload, 1).iter_unpack(self._records[whole:])]
        return found

    def times(self) -> list[int]:
        """Return when each packet was captured, in nanoseconds since 1970."""
        time = self._time
        return [time(high, low) for high, low in _layout(self._stamp, 1).iter_unpack(self._records)]

    def __iter__(self) -> Iterator[Packet]:
        _, source, group, port, _, *rest = self.first
        make = tuple.__new__
        for payload, time in zip(self.payloads(), self.times(), strict=True):
            yield make(Packet, (payload, source, group, port, time, *rest))


class Runs:
    """Looks for runs in the records of one file.

    All places are counted from the start of a record. `frame` is where the frame begins, `same` are the bytes before it
    that a run has in common, and `tail` is how many bytes at the end repeat the length. `stamp` is where the time is,
    two numbers of 32 bits in the byte order `order`. `known` are the runs found when the file was read before, the
    number of packets by the offset in the file; what is found is added.
    """

    def __init__(
        self, order: str, frame: int, same: tuple[int, ...], stamp: int, tail: int, known: dict[int, int]
    ) -> None:
        self._known = known
        self._frame = frame
        self._same = same
        self._stamp = (order, stamp)
        self._tail = tail
        self._wait = 0
        self._patience = _PATIENCE

    def find(
        self,
        data: bytes,
        base: int,
        position: int,
        stop: int,
        packet: Packet,
        link: Link,
        time: Callable[[int, int], int],
    ) -> Run | None:
        """Return the run that begins after the record between `position` and `stop`, which gave `packet`.

        `base` is the offset of `data` in the file.
        """
        if self._wait:
            self._wait -= 1
            return None
        size = stop - position
        count = min((len(data) - stop) // size, _LONGEST)
        if count < _SHORTEST:
            return None
        frame = self._frame
        at = frame + link.header
        first = position + at
        kind = b"\x08\0" if link.type_at is None else bytes(memoryview(data)[position + frame + link.type_at :][:2])
        # The flow is looked at before the rest, as where sources alternate it differs from one packet to the next.
        if (
            data[stop + at + 12 : stop + at + 26] != data[first + 12 : first + 26]
            or kind != b"\x08\0"
            or data[first] != 0x45
            or data[first + 6] & 0x3F or data[first + 7]  # a fragment: the packet is not in this record alone
            or data[first + 9] != 17
            or packet.truncated
        ):
            self._nothing()
            return None
        checked = self._known.get(base + stop, 0)
        if checked:
            count = min(count, checked)
        else:
            after = (at + offset for offset in _IP_SAME)
            kinds = () if link.type_at is None else (frame + link.type_at, frame + link.type_at + 1)
            for offset in (*self._same, *kinds, *after, *range(size - self._tail, size)):
                column = data[stop + offset : stop + count * size : size]
                wanted = data[position + offset : position + offset + 1]
                if column != wanted * count:
                    count -= len(column.lstrip(wanted))
                    if count < _SHORTEST:
                        self._nothing()
                        return None
            if len(self._known) < _KNOWN:
                self._known[base + stop] = count
        self._patience = _PATIENCE
        records = memoryview(data)[stop : stop + count * size]
        begin, length = at + 28, len(packet.payload)
        order, stamp = self._stamp
        return Run(
            packet,
            count,
            f"<{begin}x{length}s{size - begin - length}x",
            f"{order}{stamp}xII{size - stamp - 8}x",
            records,
            time,
        )

    def _nothing(self) -> None:
        self._wait = self._patience
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
