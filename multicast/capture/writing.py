"""Capture files, written: pcapng with nanoseconds, for Wireshark and its kin.

The packets of a listener have lost their headers in the kernel, so IPv4 or IPv6 and UDP headers are built again, from
what the kernel tells of each packet, with right checksums. Before them stands an Ethernet header, with the address that
belongs to the group and no source: "raw IP" would be plainer, but libpcap up to 1.10 does not read files with several
interfaces of that type, and programs that send captures want Ethernet.

* Blocks are gathered and written in one piece, at the latest each time `flush` is called. What is written always ends
  with a whole block, so a program that is killed leaves a good file.
* When the disk is full the file is cut back to its last whole block and gets its statistics, and the error says what is
  missing. A file of which nothing could be written is removed.
* Of several files the next is opened when there is something to put in it, so none is empty.
* Who counts what was dropped may not know by which interface it came, but statistics belong to interfaces. So such a
  count stands by itself, under an interface made for it, and those it may belong to leave open what they have lost and
  received: a 0 would be wrong there.
* How a packet of one length from one source begins is the same each time: it is packed once. What is left for each
  packet is its time, its checksum and one `pack`.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Self, TypeAlias

from multicast.batch import Address
from multicast.errors import ArgumentError, GroupError, PacketSizeError, check_amount, check_number

from .compression import compressor, split_name
from .packets import LINKTYPE_ETHERNET, Packet

__all__ = ["Writer", "write"]

# Written when this much is gathered; a megabyte goes to the page cache in a fraction of a millisecond.
_GATHERED = 1 << 20
_TEMPLATES = 1024
_LONGEST_FRAME = 1 << 18
# What a block has at most beside the payload: its own 32 bytes, 3 of padding, and Ethernet, IPv6 and UDP headers.
_BESIDE, _HEADERS = 35, 62
_LATEST = (1 << 64) - 1  # what a time of the format holds, in nanoseconds: the year 2554

_SECTION_HEADER, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_COMMENT, _SHB_USERAPPL, _IF_NAME, _IF_TSRESOL = 1, 4, 2, 9
_ISB_IFRECV, _ISB_IFDROP, _ISB_USRDELIV = 4, 5, 8
_NANOSECONDS = 9

_LOW = 0xFFFFFFFF

# How a packet block begins, and how others do as far as their length: kind, length, interface, time, bytes kept, bytes.
_BLOCK = struct.Struct("<IIIIIII")


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: int, text: str) -> bytes:
    # A length is 16 bits; cut where it cannot split a character.
    return _option(code, text.encode()[:65000].decode(errors="ignore").encode())


def _station(packed: bytes) -> bytes:
    """Return an Ethernet address for a host, made from its IP address: the same for all its packets.

    It is a locally administered one (IEEE 802, clause 8.4), as nothing is known of the real one. An address of zeros
    would do for a file, but bridges and switches discard frames that come from it.
    """
    return b"\x02" + hashlib.blake2b(packed, digest_size=5).digest()


def _ethernet(group: str, host: str) -> bytes:
    """Return an Ethernet header for packets from `host` to `group` (RFC 1112 section 6.4, RFC 2464 section 7)."""
    if ":" in group:
        packed, source = (socket.inet_pton(socket.AF_INET6, one) for one in (group, host))
        to = b"\x33\x33" + packed[12:] if packed[0] == 0xFF else _station(packed)
        return to + _station(source) + b"\x86\xdd"
    packed, source = (socket.inet_aton(one) for one in (group, host))
    to = b"\x01\0\x5e" + bytes([packed[1] & 0x7F]) + packed[2:] if packed[0] >> 4 == 14 else _station(packed)
    return to + _station(source) + b"\x08\0"


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


@dataclass(slots=True)
class _Counted:
    """What goes into the statistics of one interface."""

    recorded: int = 0
    #: Of these, how many had no room on the disk.
    lost: int = 0
    dropped: int = 0
    comment: str = ""
    #: Whether more may have been dropped, which stand elsewhere.
    unsure: bool = False
    #: Whether it is an interface, or stands for who has counted drops on several.
    real: bool = True


# How to pack a block, how it begins, its middle, what its checksum begins with, its length, and where it is counted.
_Template: TypeAlias = tuple[Callable[..., bytes], bytes, bytes, int, int, _Counted]


# Formats that are read and not written, by the end of the name.
_REFUSED = (".pcap", ".cap")


class Writer:
    """A pcapng file to write UDP packets to.

    `comment` is kept in the file, before the packets. With `snaplen` no more than so many bytes of each packet are
    kept, headers included. With `rotate` the file ends with the packet that makes it so many bytes, and its statistics,
    and the packet after it begins the next one; names are then ``NAME-00001.pcapng`` and so on, after those there are
    already. With `every` a file ends so many seconds after its first packet, as soon as `flush` is called. `keep` is
    how many of its own files stay. With a `path` that ends in ``.gz`` or ``.zst`` what is written is compressed;
    `rotate` then counts bytes before that. ``.zst`` needs the extra ``capture`` before Python 3.14.

    Packets are gathered: call `flush` about once a second, or use a `Recorder`, which does. Use it as a context
    manager, or call `close`, which writes the statistics.

    Raises `ArgumentError`, and `OSError` when the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        comment: str = "",
        snaplen: int | None = None,
        rotate: int | None = None,
        every: float | None = None,
        keep: int | None = None,
    ) -> None:
        for name, value, least in (("snaplen", snaplen, 64), ("rotate", rotate, 4096), ("keep", keep, 1)):
            if value is not None:
                check_number(name, value, least)
        if every is not None:
            check_amount("every", every, "seconds", zero=False)
        if keep is not None and rotate is None and every is None:
            raise ArgumentError(
                "keep says how many files stay, so it needs rotate, the size at which the next begins, or every, the"
                " time"
            )
        self._path = os.fspath(path)
        plain, compressed = split_name(self._path)
        for ending in _REFUSED:
            if plain.endswith(ending):
                advised = plain.removesuffix(ending) + ".pcapng" + compressed
                raise ArgumentError(f"{self._path}: recordings are pcapng; write {advised}")
        # Each piece that is written is a compressed stream of its own, so what is in the file can always be read.
        self._compress = compressor(compressed)
        self._comments = [comment] if comment else []
        self._snaplen = min(snaplen or _LONGEST_FRAME, _LONGEST_FRAME)
        self._rotate: float = math.inf if rotate is None else rotate
        self._keep = keep
        self._files: list[str] = []
        self._every = every
        self._first_at: float | None = None  # when this file got its first packet, on the monotonic clock
        self._series = rotate is not None or every is not None
        numbers = self._there() if self._series else []
        self._number = max(numbers, default=0)
        # Files of earlier runs, the oldest first, as long as they are not removed.
        self._earlier = [] if keep is None else [self._numbered(number) for number in sorted(numbers)]
        self._interfaces: dict[str, int] = {}
        self._counted: list[_Counted] = []
        self._statistics_due = False
        self._templates: dict[Any, _Template] = {}
        self._blocks: list[bytes] = []
        # Taken from the blocks and not all in the file: as it is, and as it is stored; and how much of that is written.
        self._outgoing = b"", b""
        self._written: list[int] = []
        self._gathered = 0
        self._size = 0  # bytes of this file, before compression
        self._stored = 0  # bytes of it on the disk
        self._full = self._rotate
        self._fd = -1  # also between a file that has its size and the next
        self._closed = False
        self._new = self._old = False  # whether there was no file, and whether there was one with something in it
        self._held = -1  # a copy of the descriptor of the newest file of a series, for its lock
        self._last = 0
        self._to_come = 0  # packets that were given with those being written, and have their turn after them
        #: Packets written or about to be, in all files.
        self.packets = 0
        #: Bytes of payload in them.
        self.bytes = 0
        #: Packets that could not be written, for the disk was full.
        self.lost = 0
        #: Why the file was closed before its time; None where it was not.
        self.error: OSError | None = None
        self._open()

    # -- files -----------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The file being written; with `rotate` it changes."""
        return self._files[-1] if self._files else self._path

    @property
    def closed(self) -> bool:
        """Whether the file is closed, by `close` or because the disk was full."""
        return self._closed

    @property
    def _name_parts(self) -> tuple[str, str]:
        """What stands before and after the number in the names of a series."""
        plain, compressed = split_name(PurePath(self._path).name)
        return PurePath(plain).stem, PurePath(plain).suffix + compressed

    def _numbered(self, number: int) -> str:
        stem, suffix = self._name_parts
        return str(PurePath(self._path).with_name(f"{stem}-{number:05d}{suffix}"))

    def _there(self) -> list[int]:
        """Return the numbers of the files of this name that are there."""
        stem, suffix = self._name_parts
        numbers = []
        for name in os.listdir(PurePath(self._path).parent):
            middle = name.removeprefix(f"{stem}-").removesuffix(suffix)
            if middle.isdecimal() and name == PurePath(self._numbered(int(middle))).name:
                numbers.append(int(middle))
        return numbers

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        if not self._series:
            path = self._path
            self._new = not os.path.exists(path)
            # What is there stays until there is a packet to put in its place.
            self._fd = os.open(path, flags, 0o666)
            self._lock(path)
            self._old = os.fstat(self._fd).st_size > 0
        else:
            path = self._next_of_series(flags)
            self._new, self._old = True, False
        if self._files:
            self._make_room(1)
        self._files.append(path)

    def _make_room(self, more: int) -> None:
        """Remove the oldest files of the series, until with `more` of them there are as many as are kept.

        Those of earlier runs go only when this one has a file with packets.
        """
        while self._keep is not None and len(self._earlier) + len(self._files) + more > self._keep:
            oldest = self._earlier or self._files
            if not oldest:
                return
            try:
                os.unlink(oldest.pop(0))
            except FileNotFoundError:
                pass

    def _next_of_series(self, flags: int) -> str:
        """Open the first file of the series whose number is free; return its path."""
        if not self._files and self._number:
            # The recorder that writes the series has its newest file locked, and keeps the lock until the next is open.
            newest = self._numbered(self._number)
            self._fd = os.open(newest, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._lock(newest)
            finally:
                if self._fd >= 0:
                    os.close(self._fd)
                    self._fd = -1
        while True:
            self._number += 1
            path = self._numbered(self._number)
            try:
                self._fd = os.open(path, flags | os.O_EXCL, 0o666)
            except FileExistsError:
                continue
            self._lock(path)
            if self._held >= 0:
                os.close(self._held)
            self._held = os.dup(self._fd)
            return path

    def _lock(self, path: str) -> None:
        """Refuse a file that another process, or another writer of this one, is recording to."""
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _locked_by(status)
            os.close(self._fd)
            self._fd = -1
            raise ArgumentError(
                f"{path} is being recorded to by {owner}; record to another file, or end that recording first"
            ) from None
        except OSError:  # a file system without locks
            pass

    def describe(self, text: str) -> None:
        """Add a comment to the head of the file. It counts for the next file where packets are written already."""
        self._comments.append(text)

    def _head(self) -> bytes:
        options = b"".join(_text(_COMMENT, comment) for comment in self._comments)
        options += _text(_SHB_USERAPPL, "multicast") + _option(0, b"")
        parts = [_block(_SECTION_HEADER, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1) + options)]
        parts += [self._interface_block(name) for name in self._interfaces]
        return b"".join(parts)

    def _interface_block(self, name: str) -> bytes:
        options = _text(_IF_NAME, name) if name else b""
        options += _option(_IF_TSRESOL, bytes([_NANOSECONDS])) + _option(0, b"")
        return _block(_INTERFACE, struct.pack("<HHI", LINKTYPE_ETHERNET, 0, self._snaplen) + options)

    def interface(self, name: str | None) -> int:
        """Return the number of the interface called `name`, which is described in the file when it is new."""
        name = name or ""
        number = self._interfaces.get(name)
        if number is None:
            if self._started:
                self._add(self._interface_block(name))
            number = self._interfaces[name] = len(self._interfaces)
            self._counted.append(_Counted())
        return number

    @property
    def _started(self) -> bool:
        """Whether this file has its head, written or about to be."""
        return bool(self._size or self._outgoing[0] or self._blocks)

    @property
    def _between_files(self) -> bool:
        """Whether the last file has its size, and there is nothing yet for the next."""
        return self._fd < 0 and not self._outgoing[0] and not self._blocks and not self._statistics_due

    def dropped(self, name: str | None, count: int, comment: str = "", *, among: Iterable[str] = ()) -> None:
        """Add to the statistics that `count` more packets of the interface called `name` were dropped.

        Where it is not known by which interface they came, `among` are those it may have been, and `name` says who
        has counted; it is described in the file like an interface, as there is no other place for such a count.
        """
        if count:
            counted = self._counted[self.interface(name)]
            counted.dropped += count
            counted.comment = comment or counted.comment
            for one in among:
                counted.real = False
                self._counted[self.interface(one)].unsure = True
            self._statistics_due = True

    def _statistics(self) -> bytes:
        parts = []
        for number, counted in enumerate(self._counted):
            options = _text(_COMMENT, counted.comment) if counted.comment else b""
            if counted.real and not counted.unsure:
                options += _option(_ISB_IFRECV, struct.pack("<Q", counted.recorded + counted.dropped))
            if counted.dropped or not counted.unsure:
                options += _option(_ISB_IFDROP, struct.pack("<Q", counted.dropped))
            if counted.real:
                options += _option(_ISB_USRDELIV, struct.pack("<Q", counted.recorded - counted.lost))
            now = self._last
            body = struct.pack("<III", number, now >> 32 & _LOW, now & _LOW) + options + _option(0, b"")
            parts.append(_block(_STATISTICS, body))
        self._statistics_due = False
        return b"".join(parts)

    # -- packets ---------------------------------------------------------------------------------------------------

    def write(self, packet: Packet) -> None:
        """Write one packet. Raises `OSError` when the disk is full; see `flush`."""
        self._begin()
        self._note_first()
        payload, source, group, port, timestamp, interface, ttl, length, dscp = packet
        key = (source, interface, ttl, group, port, len(payload), length if length > len(payload) else 0, dscp)
        pack, head, middle, base, total, counted = self._templates.get(key) or self._template(*key)
        timestamp = min(max(timestamp, 0), _LATEST)
        checksum = 65535 - (base + int.from_bytes(payload, "little")) % 65535
        self._add(pack(head, timestamp >> 32, timestamp & 0xFFFFFFFF, middle, checksum, payload, total))
        counted.recorded += 1
        self._last = timestamp
        self.packets += 1
        self.bytes += len(payload)
        self._flush_what_is_enough()

    def _begin(self) -> None:
        """Have the head of this file gathered, or of the next after one that has its size."""
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if not self._started:
            head = self._head()
            self._add(head)
            # Files that are mostly head would be of no use, and very many.
            self._full = max(self._rotate, 2 * len(head))

    def _note_first(self) -> None:
        if self._every is not None and self._first_at is None:
            self._first_at = time.monotonic()

    def _flush_what_is_enough(self) -> None:
        if self._gathered >= _GATHERED or self._size + self._gathered >= self._full:
            self.flush()

    def extend(self, packets: Sequence[bytes], addrs: Sequence[Address], group: str, port: int) -> None:
        """Write `packets`, which came from `addrs` and went to `group` on `port`, each with the time its address has.

        Raises `OSError` when the disk is full; see `flush`.
        """
        self._begin()
        self._note_first()
        if len(packets) > 1 and self._may_be_full_with(packets):
            # They may be more than this file has room for. The one after it begins where this one is full.
            half = len(packets) // 2
            rest = packets[half:]
            self._to_come += len(rest)
            try:
                self.extend(packets[:half], addrs[:half], group, port)
            finally:
                self._to_come -= len(rest)
            self.extend(rest, addrs[half:], group, port)
            return
        blocks = self._blocks
        from_bytes = int.from_bytes
        timestamp = self._last
        last: Address | None = None
        size = -1
        interface: str | None = None
        ttl: int | None = None
        dscp: int | None = None
        gathered, begun, made = self._gathered, len(blocks), 0
        # A signal handler may raise at any line: what is among the blocks then is counted, so the caller sees how many.
        try:
            for packet, addr in zip(packets, addrs, strict=True):
                if (
                    addr != last
                    or len(packet) != size
                    or addr.interface != interface
                    or addr.ttl != ttl
                    or addr.dscp != dscp
                ):
                    last, size, interface, ttl, dscp = addr, len(packet), addr.interface, addr.ttl, addr.dscp
                    key = (addr, interface, ttl, group, port, size, 0, dscp or 0)
                    pack, head, middle, base, total, counted = self._templates.get(key) or self._template(*key)
                timestamp = addr.timestamp or timestamp
                # The sum of ones' complement is the number modulo 65535, in either byte order (RFC 1071, section 2).
                checksum = 65535 - (base + from_bytes(packet, "little")) % 65535
                block = pack(head, timestamp >> 32, timestamp & 0xFFFFFFFF, middle, checksum, packet, total)
                blocks.append(block); counted.recorded += 1; made += 1  # noqa: E702
            self._count(packets[:made], gathered, begun, timestamp)
        except BaseException:
            self._count(packets[:made], gathered, begun, timestamp)
            raise
        self._flush_what_is_enough()

    def _count(self, packets: Sequence[bytes], gathered: int, begun: int, timestamp: int) -> None:
        """Count `packets`, which are in the blocks from number `begun` on, before which `gathered` bytes were there."""
        gathered += sum(map(len, self._blocks[begun:]))
        count, octets = self.packets + len(packets), self.bytes + sum(map(len, packets))
        self._gathered, self._last, self.packets, self.bytes = gathered, timestamp, count, octets  # one step

    def _may_be_full_with(self, packets: Sequence[bytes]) -> bool:
        if math.isinf(self._full):
            return False
        most = min(sum(map(len, packets)) + _HEADERS * len(packets), self._snaplen * len(packets))
        return self._size + self._gathered + most + _BESIDE * len(packets) > self._full

    def _add(self, block: bytes) -> None:
        self._blocks.append(block)
        self._gathered += len(block)

    def _template(
        self,
        addr: tuple[Any, ...],
        interface: str | None,
        ttl: int | None,
        group: str,
        port: int,
        kept: int,
        length: int,
        dscp: int,
    ) -> _Template:
        """Return what all packets of `kept` bytes from one source to one group have in common."""
        host = str(addr[0]).partition("%")[0]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            addresses = socket.inet_pton(family, host) + socket.inet_pton(family, group)
        except OSError:
            raise GroupError(f"{host!r} and {group!r} are not both addresses of one family") from None
        udp_length = 8 + max(kept, length)
        if udp_length > (65535 if family == socket.AF_INET6 else 65515):
            raise PacketSizeError(f"no UDP packet from {host} has {udp_length - 8} bytes")
        ports = struct.pack(">HHH", addr[1], port, udp_length)
        if family == socket.AF_INET6:
            header = struct.pack(">IHBB", 6 << 28 | dscp << 22, udp_length, 17, ttl or 0) + addresses
        else:
            header = struct.pack(">BBHHHBBH", 0x45, dscp << 2, 20 + udp_length, 0, 0, ttl or 0, 17, 0) + addresses
            own = 65535 - int.from_bytes(header, "little") % 65535
            header = header[:10] + struct.pack("<H", own) + header[12:]
        # The pseudo header (RFC 768, RFC 8200 section 8.1): addresses, length, protocol; then the UDP header itself.
        base = int.from_bytes(addresses + struct.pack(">HH", udp_length, 17) + ports, "little") % 65535
        header = _ethernet(group, host) + header
        original = len(header) + udp_length
        captured = min(len(header) + 8 + kept, self._snaplen)
        payload = captured - len(header) - 8
        padding = -captured % 4
        total = 32 + captured + padding
        middle = struct.pack("<II", captured, original) + header + ports
        layout = struct.Struct(f"<12sII{len(middle)}sH{payload}s{padding}xI")
        if len(self._templates) >= _TEMPLATES:
            self._templates.clear()
        number = self.interface(interface)
        head = struct.pack("<III", _PACKET, total, number)
        template = (layout.pack, head, middle, base, total, self._counted[number])
        self._templates[(addr, interface, ttl, group, port, kept, length, dscp)] = template
        return template

    # -- writing ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what is gathered, and end this file when it has its size.

        Raises `OSError` when it cannot be written. The file is closed then, after its last whole packet.
        """
        if self._closed or self._between_files or self._keeps_old:
            return
        self._begin()
        began = self._first_at
        late = began is not None and self._every is not None and time.monotonic() - began >= self._every
        if self._size + self._gathered >= self._full or late:
            self._finish()
            return
        if self._statistics_due:
            self._add(self._statistics())
        self._put()

    @property
    def _keeps_old(self) -> bool:
        """Whether an older recording stands in the file, and there is nothing yet to put in its place."""
        return self._old and not self._started and not self._statistics_due

    def _put(self) -> None:
        # What is on its way to the file, and how much of it has gone, stays known when a signal handler raises.
        written = self._written
        while self._blocks or self._outgoing[0]:
            if not self._outgoing[0]:
                data = b"".join(self._blocks)
                stored = data if self._compress is None else self._compress(data)
                self._outgoing = data, stored; del self._blocks[:]; self._gathered = 0  # noqa: E702
            data, stored = self._outgoing
            try:
                if self._fd < 0:
                    self._open()
                if self._size == 0 and not written and stat.S_ISREG(os.fstat(self._fd).st_mode):
                    os.ftruncate(self._fd, 0)
                with memoryview(stored) as view:
                    while (done := sum(written)) < len(stored):
                        with view[done:] as rest:
                            written.extend(map(os.write, (self._fd,), (rest,)))
            except OSError as error:
                self._outgoing = b"", b""
                self._rescue(data, sum(written), error)
                raise
            self._size += len(data); self._stored += done; self._outgoing = b"", b""; del written[:]  # noqa: E702

    def _rescue(self, data: bytes, done: int, error: OSError) -> None:
        """Cut the file after its last whole block that leaves room for the statistics, and close it."""
        # Of a compressed piece that is cut nothing can be read, so its room is for the statistics.
        room = done - len(self._statistics()) if self._compress is None else 0
        whole = position = lost = 0
        while position < len(data):
            kind, length, number, _, _, kept, original = _BLOCK.unpack_from(data, position)
            if position + length <= room:
                whole = position + length
            elif kind == _PACKET:
                lost += 1
                self._counted[number].lost += 1
                # How long it was, as far as the block tells: one that was cut short before is no longer than it is.
                ethernet = position + 28
                headers = 42 if data[ethernet + 12 : ethernet + 14] == b"\x08\0" else 62
                self.bytes -= (kept if kept < min(original, self._snaplen) else original) - headers
            position += length
        self.packets -= lost
        self.lost = lost + self._to_come
        last = self._statistics()
        if self._compress is not None:
            last = self._compress(last)
        end = self._stored + whole
        fd, self._fd = self._fd, -1
        self._closed = True
        self._release()
        if fd < 0:
            what, where = "The next file cannot be begun", "in those before it"
        else:
            error.filename = self.path
            self._cut(fd, end, last if end else b"")
            what, where = "The file is closed after its last whole packet", "in it and those before it"
            if not end:
                what, where = "There was no room to begin the file", "in those before it"
        error.add_note(
            f"{what}; {self.packets} packets are {where}, {self.lost} are not. Make room, or keep fewer files (rotate=,"
            " keep=)."
        )
        self.error = error

    def _cut(self, fd: int, end: int, last: bytes) -> None:
        """Have the file end with `last` after `end` bytes, and close it; remove it when that is nothing."""
        try:
            os.ftruncate(fd, end)
            if os.pwrite(fd, last, end) != len(last):
                os.ftruncate(fd, end)
            status = os.fstat(fd)
            # No more than what was opened here: not a device, nor what somebody has put in its place.
            if not end and stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.lstat(self.path)):
                os.unlink(self._files.pop())
        except OSError:
            pass  # what stands there is whole
        finally:
            os.close(fd)

    def _finish(self) -> None:
        """Write the statistics and close this file."""
        self._add(self._statistics())
        self._put()
        os.close(self._fd)
        self._fd = -1
        self._size = self._stored = 0
        self._first_at = None
        for counted in self._counted:  # each file tells of its own packets
            counted.recorded = counted.dropped = 0
            counted.comment, counted.unsure = "", False

    def close(self) -> None:
        """Write what is gathered and the statistics, and close the file. Idempotent."""
        if self._closed:
            return
        try:
            if not self._between_files and not self._keeps_old:
                self._begin()
                self._finish()
            if self.packets:
                self._make_room(0)
        finally:
            self._closed = True
            self._release()

    def _release(self) -> None:
        """Close the descriptors, and with them give the lock back."""
        for fd in (self._fd, self._held):
            if fd >= 0:
                os.close(fd)
        self._fd = self._held = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, *exc_info: object) -> None:
        if exc_type is not None and self._fd >= 0 and not self._size and not self.packets:
            # Nothing has begun: it is as if the file had not been opened.
            self._release()
            self._closed = True
            if self._new:
                os.unlink(self.path)
            return
        self.close()


def _locked_by(status: os.stat_result) -> str:
    """Return which process has a file locked, as far as /proc/locks tells (proc(5))."""
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                words = line.split()
                if len(words) > 5 and words[1] == "FLOCK" and words[5] == place:
                    if int(words[4]) == os.getpid():
                        return "this process"
                    with open(f"/proc/{words[4]}/comm", encoding="utf-8", errors="replace") as comm:
                        return f"{comm.read().strip()} (pid {words[4]})"
    except OSError:
        pass
    return "another process"


def write(path: str | os.PathLike[str], **options: Any) -> Writer:
    """Open a pcapng file at `path` for writing; see `Writer` for the keywords.

    >>> with write(example) as file:
    ...     file.write(Packet(b"hello", ("10.0.0.5", 40112), "239.1.2.3", 5000))
    """
    return Writer(path, **options)
