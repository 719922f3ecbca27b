"""Many datagrams at once, between a socket and lists of packets.

`receive` and `send` each handle up to `LIMIT` datagrams. This is the form in Python; where the C module `_batch` is
built it takes its place, with the same results.

* The datagram is read by recvmsg into a buffer that is used again and again, for recvmsg alone tells whether it was
  cut (MSG_TRUNC) and where it came in. One bytes object for each packet is all that is made anew.
* Buffers are taken from a stack and put back, for the system call lets other threads run, pollers of their own among
  them.
* Addresses are made once and looked up by what the kernel reported. The table is bounded, so that forged sources
  cannot fill the memory.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Any, Self

from .errors import PacketSizeError, PacketTypeError

__all__ = ["ENGINE", "LIMIT", "Address", "Reader", "Writer", "encode", "receive", "send"]

#: Which form is in use: ``"c"`` or ``"python"``.
ENGINE = "python"

#: The most datagrams handled in one call.
LIMIT = 64

_LONGEST = 65535
_ADDRESSES = 1024

_IP_PKTINFO = 8
_SO_TIMESTAMPNS = 35
_TRUNCATED = socket.MSG_TRUNC
# Room for packet info of either family, a TTL and a time, each with its header (cmsg(3)).
_ANCILLARY = socket.CMSG_SPACE(20) + socket.CMSG_SPACE(4) + socket.CMSG_SPACE(16)
_TIMESPEC = struct.Struct("@ll")
_INT = struct.Struct("@i")


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

    def __new__(
        cls,
        sockaddr: Sequence[Any],
        group: str | None = None,
        interface: str | None = None,
        ttl: int | None = None,
        timestamp: int | None = None,
        truncated: bool = False,
    ) -> Self:
        """Make one; for tests and for listeners that are fed by hand."""
        self = tuple.__new__(cls, sockaddr)
        self.group = group
        self.interface = interface
        self.ttl = ttl
        self.timestamp = timestamp
        self.truncated = truncated
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (tuple(self), self.group, self.interface, self.ttl, self.timestamp, self.truncated)

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
    with `details` the kernel tells the rest with each (it must have been asked to, by `sockets.open_receiver`).
    """

    __slots__ = (
        "addresses",
        "bytes",
        "details",
        "error",
        "group",
        "interface",
        "mtu",
        "packets",
        "socket",
        "truncated",
    )

    def __init__(
        self,
        socket: socket.socket,
        mtu: int,
        *,
        group: str | None = None,
        interface: str | None = None,
        details: bool = False,
    ) -> None:
        self.socket = socket
        self.mtu = min(mtu, _LONGEST)
        self.group = group
        self.interface = interface
        self.details = details
        #: Packets, bytes and cut packets read so far.
        self.packets = 0
        self.bytes = 0
        self.truncated = 0
        self.addresses: dict[Any, Address] = {}
        #: An error that came after packets had been read; the next call raises it.
        self.error: OSError | None = None


class Writer:
    """A sending socket and the address its packets go to, as `send` needs to know them."""

    __slots__ = ("sockaddr", "socket")

    def __init__(self, socket: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        self.socket = socket
        self.sockaddr = sockaddr


def encode(packet: object, longest: int = 65507) -> bytes:
    """Return `packet` as it goes on the wire: text as UTF-8, bytes as they are, other buffers copied.

    Raises `PacketTypeError` for anything else and `PacketSizeError` for more than `longest` bytes.
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
    if len(data) > longest:
        raise PacketSizeError(
            f"{len(data)} bytes do not fit in one UDP packet ({longest} at most; up to 1472 avoid fragments on"
            " Ethernet); split it into several"
        )
    return data


_buffers: list[bytearray] = []


def receive(reader: Reader, limit: int = LIMIT) -> tuple[list[bytes], list[Address]]:
    """Read up to `limit` waiting datagrams; return the packets and, at the same places, where they came from.

    Both lists are empty when nothing waits. An `OSError` is raised only when nothing was read before it.
    """
    packets: list[bytes] = []
    addresses: list[Address] = []
    if reader.error is not None:
        error, reader.error = reader.error, None
        raise error
    details = reader.details
    space = _ANCILLARY if details else 0
    known = reader.addresses
    group, interface = reader.group, reader.interface
    total = 0
    try:
        buffer = _buffers.pop()
    except IndexError:
        buffer = bytearray(_LONGEST)
    try:
        with memoryview(buffer) as whole, whole[: reader.mtu] as window:
            into = [window]
            read = reader.socket.recvmsg_into
            for _ in range(limit):
                try:
                    size, ancillary, flags, sockaddr = read(into, space)
                except BlockingIOError:
                    break
                except OSError as problem:
                    if not packets:
                        raise
                    reader.error = problem
                    break
                packets.append(bytes(window[:size]))
                total += size
                truncated = flags & _TRUNCATED != 0
                if truncated:
                    reader.truncated += 1
                if details:
                    address = _detailed(reader, sockaddr, truncated, ancillary)
                else:
                    key = (sockaddr, truncated)
                    found = known.get(key)
                    if found is None:
                        found = Address(sockaddr, group, interface, truncated=truncated)
                        if len(known) >= _ADDRESSES:
                            known.clear()
                        known[key] = found
                    address = found
                addresses.append(address)
    finally:
        _buffers.append(buffer)
    reader.packets += len(packets)
    reader.bytes += total
    return packets, addresses


def _detailed(
    reader: Reader, sockaddr: tuple[Any, ...], truncated: bool, ancillary: list[tuple[int, int, bytes]]
) -> Address:
    """Return the address of a packet with what the kernel said of it."""
    group, interface = reader.group, reader.interface
    ttl: int | None = None
    timestamp: int | None = None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            timestamp = seconds * 1_000_000_000 + nanoseconds
        elif level == socket.IPPROTO_IP:
            if kind == socket.IP_TTL:
                (ttl,) = _INT.unpack_from(data)
            elif kind == _IP_PKTINFO:
                # struct in_pktinfo: arrival interface, the local address, the destination in the header.
                interface = _name(reader, _INT.unpack_from(data)[0])
                group = socket.inet_ntop(socket.AF_INET, data[8:12])
        elif level == socket.IPPROTO_IPV6:
            if kind == socket.IPV6_HOPLIMIT:
                (ttl,) = _INT.unpack_from(data)
            elif kind == socket.IPV6_PKTINFO:
                interface = _name(reader, _INT.unpack_from(data, 16)[0])
                group = socket.inet_ntop(socket.AF_INET6, data[:16])
    return Address(sockaddr, group, interface, ttl, timestamp, truncated)


def _name(reader: Reader, index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it is gone since
        return reader.interface


def send(writer: Writer, packets: Sequence[bytes], start: int = 0) -> int:
    """Hand `packets` from number `start` on to the kernel; return how many it took.

    Fewer than all means that the socket's buffer is full, or that the next one fails: call again to learn. An
    `OSError` (`BlockingIOError` for a full buffer) is raised only when the kernel took none.
    """
    put = writer.socket.sendto
    sockaddr = writer.sockaddr
    taken = 0
    try:
        for number in range(start, min(len(packets), start + LIMIT)):
            put(packets[number], sockaddr)
            taken += 1
    except OSError:
        if not taken:
            raise
    return taken


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
