"""Many datagrams at once, between a socket and lists of packets.

`receive` and `send` each handle up to `LIMIT` datagrams. This is the form in Python; where the C module `_batch` is
built it takes its place, with the same results.

With segmentation offload (udp(7): UDP_SEGMENT, UDP_GRO) a datagram of the system call is a *burst* of packets: equal
in size, but for the last, which may be shorter. Whoever sends hands the kernel a whole burst; it is cut into packets
when it leaves the host, or when it comes to a receiver that did not ask for bursts. Whoever receives so reads one
where it finds one and cuts it here, before anybody sees a packet.

* A datagram is read by recvmsg, which alone tells whether it was cut (MSG_TRUNC) and where it came in.
* A signal handler may raise at any line here. So system calls are made in one step with noting what they did, by an
  `extend` of a list that the reader or the writer keeps: what was read belongs to the reader until all of it is made
  into packets, and what the kernel took counts as sent, whatever line is interrupted.
* Addresses are made once and looked up by what the kernel reported. The table is bounded, so that forged sources
  cannot fill the memory.
* A burst needs a buffer for the longest datagram there is: what does not fit is lost, packets and all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from .errors import PacketSizeError, PacketTypeError

__all__ = ["ENGINE", "LIMIT", "Address", "Packet", "Reader", "Writer", "encode", "receive", "send", "take"]

#: What can be sent: bytes-like, or text, which is sent as UTF-8.
Packet: TypeAlias = "str | bytes | bytearray | memoryview"

#: Which form is in use: ``"c"`` or ``"python"``.
ENGINE = "python"

#: The most datagrams handled in one call.
LIMIT = 64

# The C form and this file belong together. Raised whenever what one asks of the other changes.
FORM = 4
_LONGEST = 65535
_ADDRESSES = 4096
# A name is looked up again after so many seconds: an index is never given twice, but a name may change.
_NAME_AGE = 1.0
# Older kernels take no more packets in one burst (UDP_MAX_SEGMENTS); the bytes fit either family with all headers.
_SEGMENTS = 64
_BURST = 65487

_IP_PKTINFO = 8
_SO_TIMESTAMPNS = 35
_SIOCGIFNAME = 0x8910
_UDP_SEGMENT = 103
_UDP_GRO = 104
_TRUNCATED = int(socket.MSG_TRUNC)  # as a flag of an enum it would cost more than all the rest
# Room for packet info of either family, TTL, traffic class, time and segment size, each with its header (cmsg(3)).
_DETAILS = socket.CMSG_SPACE(20) + 3 * socket.CMSG_SPACE(4) + socket.CMSG_SPACE(16)
_GRO = socket.CMSG_SPACE(4)
_TIMESPEC = struct.Struct("@ll")
_INT = struct.Struct("@i")
_SEGMENT = struct.Struct("@H")
_IFREQ = struct.Struct("@16si20x")
# The path, and not the packet or the moment, may be why a burst was refused: its packets with their headers are
# longer than the path takes, or the device cannot do checksums, or the kernel is old (udp(7), udp_send_skb in Linux).
_REFUSALS = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP})


class Address(tuple[Any, ...]):
    """Where a packet came from, and what else is known of it.

    A tuple equal to the one `socket.recvfrom` returns: host and port, for IPv6 flow label and scope as well.
    Attributes that the kernel was not asked for are None; see the argument `details` of the listeners.
    """

    #: The address the packet was sent to, as text.
    group: str | None
    #: The name of the interface it arrived on.
    interface: str | None
    #: Its TTL or hop limit on arrival.
    ttl: int | None
    #: When the kernel received it, in integer nanoseconds since 1970.
    timestamp: int | None
    #: Whether it was longer than the listener's `mtu` and has been cut.
    truncated: bool
    #: Its differentiated services code point, 0 to 63 (RFC 2474).
    dscp: int | None

    def __new__(
        cls,
        sockaddr: Sequence[Any],
        group: str | None = None,
        interface: str | None = None,
        ttl: int | None = None,
        timestamp: int | None = None,
        truncated: bool = False,
        dscp: int | None = None,
    ) -> Self:
        """Make one; for tests and for listeners that are fed by hand."""
        self = tuple.__new__(cls, sockaddr)
        self.group = group
        self.interface = interface
        self.ttl = ttl
        self.timestamp = timestamp
        self.truncated = truncated
        self.dscp = dscp
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Address, (tuple(self), self.group, self.interface, self.ttl, self.timestamp, self.truncated, self.dscp)

    @property
    def host(self) -> str:
        """The address of the sender, as text."""
        host: str = self[0]
        return host

    @property
    def port(self) -> int:
        """The port of the sender."""
        port: int = self[1]
        return port


class Reader:
    """A receiving socket as `receive` needs to know it, and what was counted there.

    `mtu` is the most bytes kept of a packet. `group` and `interface` are what is known of every packet beforehand;
    with `details` the kernel tells the rest with each (it must have been asked to, by `sockets.enable_details`).
    With `offload` it may hand over bursts (`sockets.enable_bursts`).
    """

    __slots__ = (
        "_names",
        "_raw",
        "_slots",
        "batch",
        "bytes",
        "details",
        "error",
        "group",
        "interface",
        "left",
        "mtu",
        "offload",
        "origin",
        "packets",
        "socket",
        "truncated",
        "unread",
    )

    def __init__(
        self,
        socket: socket.socket,
        mtu: int,
        *,
        group: str | None = None,
        interface: str | None = None,
        details: bool = False,
        offload: bool = False,
    ) -> None:
        if mtu < 1:
            raise ValueError(f"mtu must be a number of bytes, 1 or more, not {mtu}")
        self.socket = socket
        self.mtu = min(mtu, _LONGEST)
        self.group = group
        self.interface = interface
        self.details = details
        self.offload = offload
        #: The address of all packets read last, where they have one and the same.
        self.origin: Address | None = None
        #: What was read last: packets and addresses, as `receive` returned them.
        self.batch: tuple[list[bytes], list[Address]] = [], []
        #: What is left of these packets for a caller that takes them from here, and the same with their addresses, made
        #: by that caller; None for each batch that comes.
        self.left: Iterator[bytes] = iter(self.batch[0])
        self.unread: Iterator[tuple[bytes, Address]] | None = None
        #: Packets, bytes and cut packets read so far.
        self.packets = 0
        self.bytes = 0
        self.truncated = 0
        #: An error that came after packets had been read; the next call raises it.
        self.error: OSError | None = None
        self._names: dict[int, tuple[float, str]] = {}
        self._raw: list[tuple[Any, ...]] = []  # what recvmsg returned, until it is made into packets
        # How many datagrams to read at once; fewer while they come in bursts.
        self._slots = LIMIT

    @property
    def unmade(self) -> int:
        """How many datagrams were read and not made into packets, as that was interrupted; the next call does it."""
        return len(self._raw)


class Writer:
    """A sending socket and the address its packets go to, as `send` needs to know them.

    With `offload` runs of packets of one size are handed over as bursts; the first that the path refuses switches it
    off, for good. `packets` and `bytes` count what the kernel has taken, from the system call on.
    """

    __slots__ = ("_bytes", "_packets", "_runs", "_sizes", "offload", "sockaddr", "socket")

    def __init__(self, socket: socket.socket, sockaddr: tuple[Any, ...], *, offload: bool = False) -> None:
        self.socket = socket
        self.sockaddr = sockaddr
        self.offload = offload
        self._packets = self._bytes = 0
        # How many packets are in each message of the last call, and the bytes of those that the kernel took.
        self._runs: list[int] = []
        self._sizes: list[int] = []

    def _settle(self) -> int:
        """Count what the last call has done; return how many packets that are."""
        count, octets = sum(self._runs[: len(self._sizes)]), sum(self._sizes)
        self._packets, self._bytes, self._sizes = self._packets + count, self._bytes + octets, []
        return count

    @property
    def packets(self) -> int:
        """How many packets the kernel has taken."""
        return self._packets + sum(self._runs[: len(self._sizes)])

    @property
    def bytes(self) -> int:
        """Their payload, in bytes."""
        return self._bytes + sum(self._sizes)


def encode(packet: object, longest: int = 65507, overhead: int = 0) -> bytes:
    """Return `packet` as it goes on the wire: text as UTF-8, bytes as they are, other buffers copied.

    Raises `PacketTypeError` for anything else and `PacketSizeError` for more than `longest` bytes, of which `overhead`
    are added later.
    """
    if isinstance(packet, bytes):
        data = packet
    elif isinstance(packet, str):
        data = packet.encode()
    else:
        try:
            data = bytes(memoryview(packet))  # type: ignore[arg-type]
        except TypeError:
            raise PacketTypeError(
                f"a packet is bytes-like or text, not {type(packet).__name__} ({packet!r:.60})"
            ) from None
    if len(data) + overhead > longest:
        unbroken = 1472 if longest <= 65507 else 1452  # 1500 less the headers; 65527 is the longest payload of IPv6
        sealed = " when sealed" if overhead else ""
        raise PacketSizeError(
            f"{len(data)} bytes do not fit in one UDP packet{sealed} ({longest - overhead} at most; up to"
            f" {unbroken - overhead} avoid fragments on Ethernet); split it into several"
        )
    return data


def take(packets: Iterator[object], into: list[bytes], count: int, longest: int) -> bool:
    """Append up to `count` packets from the iterator `packets` to the list `into`, as they go on the wire.

    A None among them ends it, and is left out; return whether one did. Raises what the iterator raises and what
    `encode` does; the list then holds what came before.
    """
    for packet in islice(packets, count):
        if packet is None:
            return True
        into.append(packet if type(packet) is bytes and len(packet) <= longest else encode(packet, longest))
    return False


_known: dict[Any, Address] = {}


def receive(reader: Reader, limit: int = LIMIT) -> tuple[list[bytes], list[Address]]:
    """Read up to `limit` waiting datagrams; return the packets and, at the same places, where they came from.

    Both lists are empty when nothing waits. A burst that the kernel joined (UDP_GRO) counts as one datagram and is
    returned as the packets it was made of. An `OSError` is raised only when nothing was read before it.
    """
    details, offload, mtu = reader.details, reader.offload, reader.mtu
    raw = reader._raw
    if not raw:
        if reader.error is not None:
            error, reader.error = reader.error, None
            raise error
        sizes = repeat(_LONGEST if offload else mtu, min(limit, reader._slots))
        try:
            raw.extend(map(reader.socket.recvmsg, sizes, repeat(_DETAILS if details else _GRO if offload else 0)))
        except BlockingIOError:
            pass
        except OSError as problem:
            if not raw:
                raise
            reader.error = problem
    packets: list[bytes] = []
    addresses: list[Address] = []
    known = _known
    group, interface = reader.group, reader.interface
    cut = 0
    for data, ancillary, flags, sockaddr in raw:
        truncated = flags & _TRUNCATED != 0
        if details:
            address = _detailed(reader, sockaddr, ancillary)
        else:
            key = (sockaddr, group, interface)
            found = known.get(key)
            if found is None:
                found = Address(sockaddr, group, interface)
                if len(known) >= _ADDRESSES:
                    known.clear()
                known[key] = found
            address = found
        if offload:
            size = len(data)
            segment = _segment(ancillary, size)
            if 0 < segment < size:
                whole_ones, rest = divmod(size, segment)
                # struct makes all the pieces in one call, and keeps what it has compiled.
                pieces = list(struct.unpack_from(f"{segment}s" * whole_ones, data))
                if rest:
                    pieces.append(data[size - rest :])
                origins = [address] * len(pieces)
                if segment > mtu:
                    origins = [_cut(address) if len(piece) > mtu else address for piece in pieces]
                    pieces = [piece[:mtu] for piece in pieces]
                    cut += sum(origin.truncated for origin in origins)
                packets += pieces
                addresses += origins
                continue
            if size > mtu:
                data, truncated = data[:mtu], True
        if truncated:
            cut += 1
            address = _cut(address)
        packets.append(data)
        addresses.append(address)
    total = sum(map(len, packets))
    # A turn is about LIMIT packets, however many of them come in each datagram.
    slots = max(1, LIMIT // -(-len(packets) // len(raw))) if offload and raw else reader._slots
    origin = addresses[0] if len(set(map(id, addresses))) == 1 else None
    r, left, both = reader, iter(packets), (packets, addresses)
    # One step.
    r.packets, r.bytes, r.truncated, r.origin, r.batch, r.left, r.unread, r._slots, r._raw = (
        r.packets + len(packets), r.bytes + total, r.truncated + cut, origin, both, left, None, slots, []
    )  # fmt: skip
    return packets, addresses


def _segment(ancillary: list[tuple[int, int, bytes]], size: int) -> int:
    """Return of how many bytes each the packets of a burst are; 0 when it is a single one."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO and len(data) >= _INT.size:
            segment: int = _INT.unpack_from(data)[0]
            return segment
    return 0


def _cut(address: Address) -> Address:
    """Return an address equal to this one in all but that its packet was cut."""
    return Address(address, address.group, address.interface, address.ttl, address.timestamp, True, address.dscp)


def _detailed(reader: Reader, sockaddr: tuple[Any, ...], ancillary: list[tuple[int, int, bytes]]) -> Address:
    """Return the address of a packet with what the kernel said of it."""
    group, interface = reader.group, reader.interface
    ttl: int | None = None
    dscp: int | None = None
    timestamp: int | None = None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            timestamp = seconds * 1_000_000_000 + nanoseconds
        elif level == socket.IPPROTO_IP:
            if kind == socket.IP_TTL and len(data) >= _INT.size:
                (ttl,) = _INT.unpack_from(data)
            elif kind == socket.IP_TOS and data:
                dscp = data[0] >> 2
            elif kind == _IP_PKTINFO and len(data) >= 12:
                # struct in_pktinfo: arrival interface, the local address, the destination in the header.
                interface = _name(reader, _INT.unpack_from(data)[0])
                group = socket.inet_ntop(socket.AF_INET, data[8:12])
        elif level == socket.IPPROTO_IPV6:
            if kind == socket.IPV6_HOPLIMIT and len(data) >= _INT.size:
                (ttl,) = _INT.unpack_from(data)
            elif kind == socket.IPV6_TCLASS and len(data) >= _INT.size:
                dscp = _INT.unpack_from(data)[0] >> 2 & 63
            elif kind == socket.IPV6_PKTINFO and len(data) >= 20:
                interface = _name(reader, _INT.unpack_from(data, 16)[0])
                group = socket.inet_ntop(socket.AF_INET6, data[:16])
    return Address(sockaddr, group, interface, ttl, timestamp, False, dscp)


def _name(reader: Reader, index: int) -> str | None:
    """Return the name of an interface, as the network namespace of the socket has it."""
    now = time.monotonic()
    until, name = reader._names.get(index, (0.0, ""))
    if until <= now:
        try:
            # By ioctl (netdevice(7)) and not by if_indextoname, which asks the namespace this thread is in.
            answer = fcntl.ioctl(reader.socket.fileno(), _SIOCGIFNAME, _IFREQ.pack(b"", index))
        except OSError:  # it is gone since
            return reader.interface
        name = os.fsdecode(_IFREQ.unpack(answer)[0].partition(b"\0")[0])
        if len(reader._names) >= 16:
            reader._names.clear()
        reader._names[index] = (now + _NAME_AGE, name)
    return name


def send(writer: Writer, packets: list[bytes], start: int = 0) -> int:
    """Hand `packets` from number `start` on to the kernel; return how many it took.

    Fewer than all means that there were more than fit in one call, that the socket's buffer is full, or that the
    next one fails: call again to learn. An `OSError` (`BlockingIOError` for a full buffer) is raised only when the
    kernel took none.
    """
    if writer._sizes:  # the call before was interrupted
        writer._settle()
    opened, to = writer.socket, repeat(writer.sockaddr)
    end = min(len(packets), start + LIMIT)
    calls: Iterator[int]
    if writer.offload and end > start + 1:
        bursts = []
        number = start
        while number < end:
            bursts.append(packets[number : number + _run(packets, number, end)])
            number += len(bursts[-1])
        told = [
            [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(len(burst[0])))] if len(burst) > 1 else []
            for burst in bursts
        ]
        writer._runs = [*map(len, bursts)]
        calls = map(opened.sendmsg, bursts, told, repeat(0), to)
    else:
        writer._runs = [1] * (end - start)
        calls = map(opened.sendto, islice(packets, start, end), to)
    try:
        writer._sizes.extend(calls)
    except OSError as error:
        if not writer._sizes:
            if error.errno not in _REFUSALS or writer._runs[0] == 1:
                raise
            writer.offload = False  # for good; the kernel took nothing, so nothing is sent twice
            return send(writer, packets, start)
    return writer._settle()


def _run(packets: Sequence[bytes], start: int, end: int) -> int:
    """Return how many packets from number `start` on can go in one burst."""
    size = len(packets[start])
    if size == 0:
        return 1
    total = size
    number = start + 1
    end = min(end, start + _SEGMENTS)
    while number < end:
        length = len(packets[number])
        total += length
        if length == 0 or length > size or total > _BURST:
            break
        number += 1
        if length < size:  # only the last of a burst may be shorter
            break
    return number - start


def drain_errors(opened: socket.socket) -> None:
    """Take the errors that wait at a socket, so that it stops reporting EPOLLERR (ip(7), IP_RECVERR)."""
    while True:
        try:
            opened.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                break
            raise
    opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # some errors have no entry in the queue


if not TYPE_CHECKING:
    try:
        from ._batch import FORM as _BUILT
    except ImportError:
        pass  # not built, or not for this Python
    else:
        if _BUILT == FORM:  # or else it was built from another version of this package
            from ._batch import Address, Reader, Writer, receive, send, take, use_encode

            use_encode(encode)
            ENGINE = "c"
