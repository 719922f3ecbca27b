"""Capture files, read.

Two formats are read, pcapng (draft-ietf-opsawg-pcapng) and the older pcap (draft-ietf-opsawg-pcap), each in both byte
orders, and compressed by gzip or zstd as well. The file is read in pieces, never whole. Nothing in it is believed: a
length is checked before anything is reserved for it, and the first thing that does not fit is a `CaptureError` with the
offset.

The code is our own, because the libraries for these formats hide what matters here. One cuts packets at the end of the
file in silence and gives times as floats, which have no room for nanoseconds; neither says where in the file the fault
is; and the one that knows pcapng whole takes 18 microseconds for each packet, where this takes about one.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Self, TypeAlias

from multicast.errors import CaptureError

from .compression import zstd_module
from .packets import Counts, Decoder, Link, Packet
from .runs import Run, Runs

__all__ = ["Reader", "Series", "read"]

Path: TypeAlias = "str | os.PathLike[str]"

# What a processor has room for close by; larger pieces take longer for each byte.
_CHUNK = 1 << 16
# Wireshark takes no longer block, and neither Wireshark nor libpcap a longer frame (WTAP_MAX_PACKET_SIZE_STANDARD,
# MAXIMUM_SNAPLEN).
_LONGEST_BLOCK = 1 << 24
_LONGEST_FRAME = 1 << 18
_INTERFACES = 4096

_SECTION_HEADER = 0x0A0D0D0A
_BYTE_ORDER = 0x1A2B3C4D
_INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _STATISTICS, _PACKET = 1, 2, 3, 5, 6
_END, _COMMENT, _IF_NAME, _IF_TSRESOL, _IF_TSOFFSET, _ISB_IFDROP = 0, 1, 2, 9, 14, 5

# Magic number -> byte order, nanoseconds in one unit of the second time field, bytes before each frame. The last two
# are of a tcpdump that Linux distributions had around 2000: the interface's index, the protocol and the kind of packet
# follow what pcap has.
_PCAP = {
    b"\xa1\xb2\xc3\xd4": (">", 1000, 16),
    b"\xd4\xc3\xb2\xa1": ("<", 1000, 16),
    b"\xa1\xb2\x3c\x4d": (">", 1, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 1, 16),
    b"\xa1\xb2\xcd\x34": (">", 1000, 24),
    b"\x34\xcd\xb2\xa1": ("<", 1000, 24),
}


class _CutShort(CaptureError):
    """The file ends too early."""


class _Interface:
    """One interface of a pcapng section."""

    __slots__ = ("decode", "drops", "link", "multiply", "name", "offset", "shift", "snaplen")

    def __init__(self, link: Link, snaplen: int) -> None:
        self.link = link
        self.decode = link.decode
        self.snaplen = snaplen
        self.name: str | None = None
        # A time is (ticks * multiply >> shift) + offset; the default resolution is microseconds.
        self.multiply: int = 1000
        self.shift: int = 0
        self.offset: int = 0
        self.drops = 0

    def time(self, high: int, low: int) -> int:
        """Return the time that both halves of a number of ticks mean."""
        return ((high << 32 | low) * self.multiply >> self.shift) + self.offset


class Reader:
    """The UDP packets of a capture file, one by one: pcapng or pcap, plain, gzip or zstd.

    Iterate over it to get `Packet` objects; each new iteration begins at the start of the file again, where the file
    allows that. What is not a UDP packet is passed over and counted. Memory stays the same whatever the size of the
    file. Use it as a context manager, or call `close`.

    Raises `CaptureError` with the offset where the file is malformed or cut short, after the packets before that
    place, and `OSError` for a file that cannot be opened. With `partial` a file that ends too early, as after a loss of
    power, is read as far as it goes, and `cut` says where it ends. Reading zstd needs the extra ``capture`` before
    Python 3.14.
    """

    def __init__(self, path: Path | BinaryIO, *, partial: bool = False) -> None:
        self._partial = partial
        if isinstance(path, (str, os.PathLike)):
            self.name = os.fspath(path)
            self._raw: BinaryIO = open(path, "rb")  # noqa: SIM115 -- closed by close()
        else:
            self.name = str(getattr(path, "name", "the file"))
            self._raw = path
        self._started = False
        # Runs found before, as long as the file is the same.
        self._known: dict[int, int] = {}
        self._version = self._file_version()
        self._reset()

    def _file_version(self) -> tuple[int, int] | None:
        try:
            status = os.fstat(self._raw.fileno())
        except (OSError, ValueError, AttributeError):
            return None
        return status.st_mtime_ns, status.st_size

    def _reset(self) -> None:
        self._decoder = Decoder()
        self._file: Any = None
        self._data = b""
        self._position = 0
        self._base = 0  # the offset of _data in the file
        #: Where and how the file ends too early, in words; only with `partial`, and after the packets before.
        self.cut: str | None = None
        #: The comments of the file's sections.
        self.comments: list[str] = []
        self._dropped = 0
        self._interfaces: list[_Interface] = []

    @property
    def counts(self) -> Counts:
        """What was passed over so far."""
        return self._decoder.counts

    @property
    def dropped(self) -> int:
        """Packets that the capturing system has dropped, by the statistics in the file."""
        return self._dropped + sum(interface.drops for interface in self._interfaces)

    @property
    def offset(self) -> int:
        """How many bytes of the file, uncompressed, are dealt with."""
        return self._base + self._position

    @property
    def again(self) -> bool:
        """Whether the file can be read more than once; a pipe cannot."""
        return self._raw.seekable()

    def spool(self) -> None:
        """Copy what comes out of a pipe to a file without a name, so that it can be read more than once.

        To be called before the first packet is read.
        """
        with self._raw as pipe:
            copy = tempfile.TemporaryFile(prefix="multicast-")  # noqa: SIM115 -- closed by close()
            self._raw = copy
            shutil.copyfileobj(pipe, copy, 1 << 20)
        copy.seek(0)
        self._version = self._file_version()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Packet]:
        for item in self.runs():
            if isinstance(item, Run):
                yield from item
            else:
                yield item

    def runs(self) -> Iterator[Packet | Run]:
        """Iterate over the packets as `iter` does, with those that are alike together; for who wants to be fast."""
        if self._started:
            try:
                self._raw.seek(0)
            except (OSError, ValueError):
                raise CaptureError(f"{self.name} cannot be read a second time; save it to a file first") from None
            self._reset()
            before, self._version = self._version, self._file_version()
            if before is None or before != self._version:
                self._known.clear()
        self._started = True
        self._open()
        if not self._fill(4):
            have = len(self._data)
            raise self._fault("the file is empty" if not have else "too short to be a capture file")
        magic = self._data[:4]
        try:
            if magic == b"\x0a\x0d\x0d\x0a":
                yield from self._pcapng()
            elif magic in _PCAP:
                yield from self._pcap(*_PCAP[magic])
            else:
                raise self._fault(f"not a capture file: it begins with {magic.hex(' ')}, neither pcapng nor pcap")
        except _CutShort as error:
            if not self._partial:
                raise
            self.cut = str(error)
        self._decoder.finish()

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _fault(self, what: str, at: int | None = None, kind: type[CaptureError] = CaptureError) -> CaptureError:
        offset = self.offset if at is None else at
        return kind(f"{self.name}, offset {offset}: {what}")

    def _open(self) -> None:
        """Find out whether the file is compressed, without seeking, for it may be a pipe."""
        raw = self._raw if isinstance(self._raw, io.BufferedReader) else io.BufferedReader(_Unbuffered(self._raw))
        magic = raw.peek(4)[:4]
        if magic[:2] == b"\x1f\x8b":
            self._file = gzip.GzipFile(fileobj=raw)
        elif magic == b"\x28\xb5\x2f\xfd":
            zstd = zstd_module()
            if zstd is None:
                raise CaptureError(
                    f"{self.name} is compressed by zstd, which this Python cannot read: pip install"
                    " 'multicast-poller[capture]', or unpack it first with zstd -d"
                )
            self._file = zstd.ZstdFile(raw)
        else:
            self._file = raw

    def _fill(self, size: int) -> bool:
        """Have `size` bytes from the current position on, if the file has so many."""
        missing = size - (len(self._data) - self._position)
        if missing <= 0:
            return True
        rest = self._data[self._position :]
        self._base += self._position
        self._position = 0
        parts = [rest]
        while missing > 0:
            try:
                # One read of what is below, so that what it has is not lost when the next one fails.
                piece = self._file.read1(max(_CHUNK, missing))
            except (EOFError, OSError, zlib.error) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                self._data = b"".join(parts)
                raise self._compression(error) from None
            except Exception as error:
                # The class that zstd raises has another home in each Python; everything else is not ours.
                if type(error).__name__ != "ZstdError":
                    raise
                self._data = b"".join(parts)
                raise self._compression(error) from None
            if not piece:
                break
            parts.append(piece)
            missing -= len(piece)
        self._data = b"".join(parts)
        return missing <= 0

    def _compression(self, error: Exception) -> CaptureError:
        at = self._base + len(self._data)
        kind = _CutShort if isinstance(error, EOFError) else CaptureError
        return self._fault(f"the compressed data is damaged or cut short after this ({error})", at, kind)

    def _need(self, size: int, what: str) -> None:
        if not self._fill(size):
            have = len(self._data) - self._position
            raise self._fault(f"cut short: {what} has {size} bytes, the file only {have} more", kind=_CutShort)

    # -- formats ---------------------------------------------------------------------------------------------------

    def _pcap(self, order: str, unit: int, before: int) -> Iterator[Packet | Run]:
        self._need(24, "the file header")
        major, minor, snaplen, link_type = struct.unpack_from(order + "4xHH8xII", self._data)
        if major != 2:
            raise self._fault(f"pcap version {major}.{minor} is unknown; 2.4 is usual", 4)
        link = self._decoder.link(link_type & 0xFFFF)  # the upper half tells of frame check sequences
        decode = link.decode
        find = Runs(order, before, tuple(range(8, 16)), 0, 0, self._known).find

        def time(seconds: int, fraction: int) -> int:
            return seconds * 1_000_000_000 + fraction * unit

        limit = self._frame_limit(snaplen)
        unpack = struct.Struct(order + "IIII").unpack_from
        self._position = 24
        while True:
            position, data = self._position, self._data
            if position + before > len(data):
                if not self._fill(before):
                    break
                position, data = self._position, self._data
            seconds, fraction, size, original = unpack(data, position)
            odd = (size > limit or original < size) and self._is_odd(size, original, limit, self.offset + 8)
            start = position + before
            stop = start + size
            if stop > len(data):
                self._need(before + size, "the packet")
                position, data = self._position, self._data
                start = position + before
                stop = start + size
            packet = decode(data, start, stop, time(seconds, fraction), None)
            self._position = stop
            if packet is not None:
                yield packet
                if data[stop + 8 : stop + 16] == data[position + 8 : position + 16]:
                    run = find(data, self._base, position, stop, packet, link, time)
                    if run is not None:
                        self._position = stop + run.count * (stop - position)
                        self.counts.oversize += run.count if odd else 0
                        yield run
        if self._position != len(self._data):
            self._need(before, "the packet header")

    def _is_odd(self, size: int, original: int, snaplen: int, at: int) -> bool:
        """Count a frame that is longer than the file says it can be, or than it is said to have been.

        Programs write such files, and the bytes are there. Raises `CaptureError` where no frame has so many.
        """
        if size > _LONGEST_FRAME:
            raise self._fault(f"a packet of {size} bytes, and none has more than {_LONGEST_FRAME}", at)
        odd = size > snaplen or 0 < original < size
        self.counts.oversize += odd
        return odd

    @staticmethod
    def _frame_limit(snaplen: int) -> int:
        """Return how long a frame may be; 0, and numbers beyond any frame, stand for no limit of the file's own."""
        return min(snaplen or _LONGEST_FRAME, _LONGEST_FRAME)

    def _pcapng(self) -> Iterator[Packet | Run]:
        order = ""
        interfaces: list[_Interface] = self._interfaces
        head = struct.Struct("<IIIIIII")
        tail = struct.Struct("<I")
        find = Runs("<", 28, (), 12, 4, self._known).find
        while True:
            position, data = self._position, self._data
            if position + 32 > len(data):  # as long as a packet block is at least: most need no second look
                self._fill(32)
                if self._position == len(self._data):
                    return
                self._need(12, "the block")
                # The shortest block has 12 bytes, and `head` takes more.
                position, data = self._position, self._data + bytes(20)
            if data[position : position + 4] == b"\x0a\x0d\x0d\x0a":
                order = self._byte_order()
                head, tail = struct.Struct(order + "IIIIIII"), struct.Struct(order + "I")
                find = Runs(order, 28, (*range(12), *range(20, 28)), 12, 4, self._known).find
                self._dropped += sum(interface.drops for interface in interfaces)
                interfaces = self._interfaces = []
            kind, length, number, high, low, size, original = head.unpack_from(data, position)
            if length < 12 or length % 4 or length > _LONGEST_BLOCK:
                raise self._fault(f"a block of {length} bytes; blocks have 12 to {_LONGEST_BLOCK}, a multiple of 4")
            if position + length > len(self._data):
                self._need(length, "the block")
                position, data = self._position, self._data
            stop = position + length
            if tail.unpack_from(data, stop - 4)[0] != length:
                at = self._base + stop - 4
                raise self._fault(f"the block is {length} bytes long at its start, and not at its end", at)
            if kind == _PACKET:
                if length < 32:
                    raise self._fault(f"a packet block of {length} bytes, which needs 32")
                try:
                    interface = interfaces[number]
                except IndexError:
                    raise self._no_interface(number, len(interfaces)) from None
                if size > length - 32:
                    raise self._fault(f"{size} bytes are kept of a packet, in a block of {length}", self.offset + 20)
                snaplen = interface.snaplen
                odd = (size > snaplen or original < size) and self._is_odd(size, original, snaplen, self.offset + 20)
                ticks = high << 32 | low
                timestamp = (ticks * interface.multiply >> interface.shift) + interface.offset
                packet = interface.decode(data, position + 28, position + 28 + size, timestamp, interface.name)
                self._position = stop
                if packet is not None:
                    yield packet
                    if data[stop : stop + 12] == data[position : position + 12]:
                        run = find(data, self._base, position, stop, packet, interface.link, interface.time)
                        if run is not None:
                            self._position = stop + run.count * length
                            self.counts.oversize += run.count if odd else 0
                            yield run
                continue
            found = self._other_block(kind, order, position, stop)
            self._position = stop
            if found is not None:
                yield found

    def _no_interface(self, number: int, known: int) -> CaptureError:
        return self._fault(f"a packet of interface {number}, and only {known} are described", self.offset + 8)

    def _byte_order(self) -> str:
        self._need(28, "the section header")
        mark = self._data[self._position + 8 : self._position + 12]
        for order in "<>":
            if struct.unpack(order + "I", mark)[0] == _BYTE_ORDER:
                major, minor = struct.unpack_from(order + "HH", self._data, self._position + 12)
                if major != 1:
                    raise self._fault(f"pcapng version {major}.{minor} is unknown; 1.0 is usual", self.offset + 12)
                return order
        raise self._fault(f"{mark.hex(' ')} is no byte-order mark of pcapng", self.offset + 8)

    def _other_block(self, kind: int, order: str, position: int, stop: int) -> Packet | None:
        """Deal with a block that is not an enhanced packet; return the packet when it is one of an older kind."""
        data = self._data
        if kind == _SECTION_HEADER:
            for code, value in self._options(order, position + 24, stop - 4):
                if code == _COMMENT:
                    self.comments = [*self.comments[-15:], value.decode("utf-8", "replace")]
        elif kind == _INTERFACE:
            self._describe_interface(order, position, stop)
        elif kind == _STATISTICS:
            if stop - position < 24:
                raise self._fault("the statistics block is too short")
            (number,) = struct.unpack_from(order + "I", data, position + 8)
            if number >= len(self._interfaces):
                raise self._no_interface(number, len(self._interfaces))
            for code, value in self._options(order, position + 20, stop - 4):
                if code == _ISB_IFDROP and len(value) == 8:
                    # A later block counts on from an earlier one.
                    (self._interfaces[number].drops,) = struct.unpack(order + "Q", value)
        elif kind == _SIMPLE_PACKET:
            return self._old_packet(order, position, stop, simple=True)
        elif kind == _OLD_PACKET:
            return self._old_packet(order, position, stop, simple=False)
        return None

    def _old_packet(self, order: str, position: int, stop: int, *, simple: bool) -> Packet | None:
        if stop - position < (16 if simple else 32):
            raise self._fault("the packet block is too short")
        if simple:
            number, high, low = 0, 0, 0
            (original,) = struct.unpack_from(order + "I", self._data, position + 8)
            start = position + 12
        else:
            number, high, low, size, original = struct.unpack_from(order + "HxxIIII", self._data, position + 8)
            start = position + 28
        if number >= len(self._interfaces):
            raise self._no_interface(number, len(self._interfaces))
        interface = self._interfaces[number]
        if simple:
            size = min(original, interface.snaplen)
        if size > stop - 4 - start:
            raise self._fault(f"{size} bytes are kept of a packet of {original}, more than the block has")
        if size > interface.snaplen or original < size:
            self._is_odd(size, original, interface.snaplen, self.offset)
        timestamp = ((high << 32 | low) * interface.multiply >> interface.shift) + interface.offset
        return interface.decode(self._data, start, start + size, 0 if simple else timestamp, interface.name)

    def _describe_interface(self, order: str, position: int, stop: int) -> None:
        if stop - position < 20:
            raise self._fault("the interface block is too short")
        if len(self._interfaces) >= _INTERFACES:
            raise self._fault(f"more than {_INTERFACES} interfaces")
        link_type, snaplen = struct.unpack_from(order + "HxxI", self._data, position + 8)
        interface = _Interface(self._decoder.link(link_type), self._frame_limit(snaplen))
        for code, value in self._options(order, position + 16, stop - 4):
            if code == _IF_NAME:
                interface.name = value[:255].decode("utf-8", "replace")
            elif code == _IF_TSRESOL and len(value) == 1:
                power = value[0] & 0x7F
                if value[0] & 0x80:
                    interface.multiply, interface.shift = 1_000_000_000, power
                elif power <= 9:
                    interface.multiply = 10 ** (9 - power)
                else:  # finer than nanoseconds: a division, written so that it is exact for 64 bits
                    interface.shift = 512
                    interface.multiply = -((-1 << 512) // 10 ** (power - 9))
            elif code == _IF_TSOFFSET and len(value) == 8:
                interface.offset = 1_000_000_000 * struct.unpack(order + "q", value)[0]
        self._interfaces.append(interface)

    def _options(self, order: str, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Yield code and value of the options between two places of the data."""
        header = struct.Struct(order + "HH")
        while start + 4 <= stop:
            code, length = header.unpack_from(self._data, start)
            if code == _END:
                return
            start += 4
            if start + length > stop:
                raise self._fault(f"an option of {length} bytes reaches beyond its block", self._base + start - 4)
            yield code, self._data[start : start + length]
            start += length + -length % 4


class Series:
    """Several capture files, one after the other, read as one: the set that a recorder with ``rotate`` has made.

    It has the attributes of `Reader`, and raises what that raises.
    """

    def __init__(self, paths: Iterable[Path | BinaryIO], *, partial: bool = False) -> None:
        self.readers: list[Reader] = []
        try:
            for path in paths:
                self.readers.append(Reader(path, partial=partial))
        except BaseException:
            self.close()
            raise
        self.name = " and ".join(reader.name for reader in self.readers)

    @property
    def counts(self) -> Counts:
        """What was passed over so far, in all files."""
        total = Counts()
        for reader in self.readers:
            counts = reader.counts
            total.other += counts.other
            total.malformed += counts.malformed
            total.fragments += counts.fragments
            total.oversize += counts.oversize
            for link, number in counts.links.items():
                total.links[link] = total.links.get(link, 0) + number
        return total

    @property
    def dropped(self) -> int:
        """Packets that the capturing system has dropped, by the statistics in the files."""
        return sum(reader.dropped for reader in self.readers)

    @property
    def cut(self) -> str | None:
        """Where and how files end too early, in words."""
        return "; ".join(reader.cut for reader in self.readers if reader.cut) or None

    def spool(self) -> None:
        """See to it that each file can be read more than once; see `Reader.spool`."""
        for reader in self.readers:
            if not reader.again:
                reader.spool()

    def runs(self) -> Iterator[Packet | Run]:
        """Iterate over the packets of all files; see `Reader.runs`."""
        for reader in self.readers:
            yield from reader.runs()

    def __iter__(self) -> Iterator[Packet]:
        for reader in self.readers:
            yield from reader

    def close(self) -> None:
        """Close the files. Idempotent."""
        for reader in self.readers:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Unbuffered(io.RawIOBase):
    """Any object with `read`, as a raw file for `io.BufferedReader`."""

    def __init__(self, file: BinaryIO) -> None:
        self._read = file.read

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there is more; return how far."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read(path: Path | BinaryIO, *, partial: bool = False) -> Reader:
    """Open the capture file at `path` and return an iterator of its UDP packets; see `Reader`.

    >>> with read(example) as packets:
    ...     for packet in packets:
    ...         print(packet.group, packet.port, packet.payload)
    239.1.2.3 5000 b'hello'
    """
    return Reader(path, partial=partial)
