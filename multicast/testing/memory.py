"""The part of the kernel that listeners and senders meet in memory: sockets, and what carries packets between them.

Sockets know the options this package sets, memberships and sources among them, and decide by the kernel's rules what is
for them.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from multicast import batch
from multicast.batch import Address
from multicast.interfaces import Interface

__all__ = ["Datagram", "Reader", "Socket", "Traffic", "Wires", "Writer"]

# What Linux counts for a small packet in a receive buffer, and the size of that buffer unless another is asked for.
_OVERHEAD, _RCVBUF = 768, 212_992
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_MEMINFO = 26, 33, 55
_JOIN, _BLOCK, _LEAVE, _JOIN_SOURCE = 42, 43, 45, 46
_PKTINFO = {(socket.IPPROTO_IP, 8), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)}
_TTL = {(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS)}
_TRAFFIC_CLASS = {(socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}
_TRANSPARENT = {(socket.IPPROTO_IP, 19), (socket.IPPROTO_IPV6, 75)}
_UNICAST_TTL = {(socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
_LOOP = {(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP)}
_EGRESS = {(socket.IPPROTO_IP, socket.IP_MULTICAST_IF), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF)}
_EPHEMERAL = 32_768  # as net.ipv4.ip_local_port_range has it


class Datagram(NamedTuple):
    """A packet on its way, or in a receive buffer."""

    data: bytes
    source: tuple[Any, ...]
    group: str
    device: int
    ttl: int
    timestamp: int = 0
    dscp: int = 0


class Socket:
    """A UDP socket in memory: the part of `socket.socket` that this package uses.

    Its descriptor is an eventfd(2), readable while packets wait and always writable, so epoll takes it for a socket.
    """

    type = socket.SOCK_DGRAM

    def __init__(self, wires: Wires, family: int) -> None:
        self.family = family
        self.host = wires.host
        self.drops = 0
        self._wires = wires
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._address = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 -- nothing is bound
        self._port = 0
        self._scope = 0
        self._ttl = self._hops = -1
        self._dscp = 0
        self._transparent = False
        self._loop = True
        self._egress = 0
        # (group, interface) -> the sources it is joined for, None for any; and the sources that are blocked.
        self._joined: dict[tuple[str, int], set[str] | None] = {}
        self._blocked: set[tuple[str, int, str]] = set()
        self._room = _RCVBUF
        self._used = 0
        self._queue: deque[Datagram] = deque()

    # -- what socket.socket has ------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The eventfd."""
        return self._fd

    def close(self) -> None:
        """Close it; nobody reaches it any more. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._wires.sockets.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def bind(self, address: tuple[Any, ...]) -> None:
        """Take an address and a port; 0 is any free one."""
        self._address = address[0].partition("%")[0] or self._address
        self._port = address[1] or self._wires.free_port()
        self._scope = address[3] if len(address) > 3 else 0

    def getsockname(self) -> tuple[Any, ...]:
        """Return address and port."""
        if self.family == socket.AF_INET:
            return (self._address, self._port)
        return (self._address, self._port, 0, self._scope)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Set what this package sets; ignore what makes no difference here."""
        if level in (socket.IPPROTO_IP, socket.IPPROTO_IPV6) and option in (_JOIN, _JOIN_SOURCE, _LEAVE, _BLOCK):
            self._membership(option, value)
        elif level == socket.SOL_SOCKET and option == _SO_ATTACH_FILTER:
            # As kernels without it say; filters are applied in Python then.
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        elif level == socket.SOL_SOCKET and option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            self._room = 2 * value
        elif (level, option) in _TTL:
            self._ttl = value
        elif (level, option) in _UNICAST_TTL:
            self._hops = value
        elif (level, option) in _TRAFFIC_CLASS:
            self._dscp = value >> 2
        elif (level, option) in _TRANSPARENT:
            self._transparent = bool(value)
        elif (level, option) in _LOOP:
            self._loop = bool(value)
        elif (level, option) in _EGRESS:
            # struct ip_mreqn ends with the index; IPv6 takes the index alone.
            self._egress = value if isinstance(value, int) else struct.unpack_from("@i", value, 8)[0]

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        """Return the room for packets, or the count of drops; 0 for the rest."""
        if level == socket.SOL_SOCKET and option == socket.SO_RCVBUF:
            return self._room
        if level == socket.SOL_SOCKET and option == _SO_MEMINFO:
            return struct.pack("@9I", *([0] * 8), self.drops & 0xFFFFFFFF)
        return bytes(size) if size else 0

    def sendto(self, data: bytes, address: tuple[Any, ...]) -> int:
        """Send one packet; return its size."""
        return self.sendmsg([data], (), 0, address)

    def sendmsg(
        self,
        buffers: Sequence[bytes],
        ancillary: Sequence[tuple[int, int, bytes]],
        flags: int,
        address: tuple[Any, ...],
    ) -> int:
        """Send one packet, by the interface and from the address in `ancillary`, where it says; return its size."""
        index, source = self._egress, self._address
        for level, kind, value in ancillary:
            if (level, kind) in _PKTINFO:
                offset, local = (16, value[:16]) if level == socket.IPPROTO_IPV6 else (0, value[4:8])
                index = struct.unpack_from("@i", value, offset)[0] or index
                source = socket.inet_ntop(self.family, local) if any(local) else source
        if not self._port:
            self._port = self._wires.free_port()
        data = b"".join(buffers)
        self._wires.transmit(self, data, address, index or (address[3] if len(address) > 3 else 0), source)
        return len(data)

    def recvmsg(self, *arguments: Any) -> Any:
        """Say that no error waits (MSG_ERRQUEUE); packets are read by a `Reader`."""
        raise BlockingIOError(errno.EAGAIN, "no error waits")

    # -- what the network asks of it -------------------------------------------------------------------------------

    def _membership(self, option: int, value: bytes) -> None:
        # struct group_req and group_source_req: an index, then one or two sockaddr_storage of 128 bytes.
        index = struct.unpack_from("@I", value)[0]
        start = struct.calcsize("@I0P")
        offset, width = (4, 4) if self.family == socket.AF_INET else (8, 16)
        addresses = [
            socket.inet_ntop(self.family, value[at + offset : at + offset + width])
            for at in range(start, len(value), 128)
        ]
        key = (addresses[0], index)
        if option == _LEAVE:
            if key not in self._joined:
                raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
            del self._joined[key]
        elif option == _BLOCK:
            self._blocked.add((*key, addresses[1]))
        elif option == _JOIN_SOURCE:
            sources = self._joined.setdefault(key, set())
            if sources is not None:
                sources.add(addresses[1])
        elif key in self._joined:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        else:
            self._joined[key] = None

    def wants(self, to: str, port: int, multicast: bool, index: int, source: str) -> bool:
        """Whether a packet is for this socket."""
        if self._port != port:
            return False
        if not multicast:
            everything = self._address in ("0.0.0.0", "::")  # noqa: S104
            return self._address == to or (everything and to in self._wires.addresses(self.host))
        if self._address not in (to, "0.0.0.0", "::"):  # noqa: S104
            return False
        sources = self._joined.get((to, index), ())
        return (sources is None or source in sources) and (to, index, source) not in self._blocked

    def put(self, datagram: Datagram) -> bool:
        """Add a packet to the receive buffer; return whether there was room."""
        size = len(datagram.data) + _OVERHEAD
        if self._fd < 0:
            return False
        if self._used + size > self._room:
            self.drops += 1
            return False
        self._used += size
        self._queue.append(datagram)
        if len(self._queue) == 1:
            os.eventfd_write(self._fd, 1)
        return True

    def take(self, limit: int) -> list[Datagram]:
        """Return up to `limit` packets from the receive buffer."""
        taken = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
        self._used -= sum(len(datagram.data) + _OVERHEAD for datagram in taken)
        if taken and not self._queue:
            os.eventfd_read(self._fd)
        return taken


class Reader:
    """`batch.Reader` for a socket in memory."""

    def __init__(
        self,
        socket: Socket,
        mtu: int,
        *,
        group: str | None = None,
        interface: str | None = None,
        details: bool = False,
        **others: Any,
    ) -> None:
        self.socket = socket
        self.mtu = mtu
        self.group = group
        self.interface = interface
        self.details = details
        self.origin: Address | None = None
        self.packets = self.bytes = self.truncated = self.unmade = 0
        self._keep([], [])
        self.error: OSError | None = None
        self.__dict__.update(others)

    def receive(self, limit: int = batch.LIMIT) -> tuple[list[bytes], list[Address]]:
        """Do what `batch.receive` does."""
        packets, addresses = [], []
        for datagram in self.socket.take(limit):
            data = datagram.data[: self.mtu]
            truncated = len(data) < len(datagram.data)
            packets.append(data)
            self.bytes += len(data)
            self.truncated += truncated
            if self.details:
                name = self.socket._wires.names[datagram.device]
                told = (datagram.group, name, datagram.ttl, datagram.timestamp, truncated, datagram.dscp)
                addresses.append(Address(datagram.source, *told))
            else:
                addresses.append(Address(datagram.source, self.group, self.interface, None, None, truncated))
        self.packets += len(packets)
        self._keep(packets, addresses)
        return packets, addresses

    def _keep(self, packets: list[bytes], addresses: list[Address]) -> None:
        self.batch = packets, addresses
        self.left = iter(packets)
        self.unread = None


class Writer:
    """`batch.Writer` for a socket in memory."""

    def __init__(self, socket: Socket, sockaddr: tuple[Any, ...], **others: Any) -> None:
        self.socket = socket
        self.sockaddr = sockaddr
        self.packets = self.bytes = 0
        self.__dict__.update(others)

    def send(self, packets: Sequence[bytes], start: int = 0) -> int:
        """Do what `batch.send` does."""
        some = packets[start : start + batch.LIMIT]
        for packet in some:
            self.socket.sendto(packet, self.sockaddr)
            self.packets += 1
            self.bytes += len(packet)
        return len(some)


@dataclass(slots=True)
class Traffic:
    """What a network has counted, for each receiver of a packet by itself."""

    #: Packets that were sent, whether or not anybody heard them.
    sent: int = 0
    #: Copies that came to a listener's receive buffer.
    delivered: int = 0
    #: Copies the network has lost.
    lost: int = 0
    #: Copies that came twice.
    duplicated: int = 0
    #: Copies held back, so that later ones could overtake them.
    reordered: int = 0
    #: Copies for which the receive buffer had no room.
    dropped: int = 0


class Wires:
    """The hosts there are, the networks that join them, and the sockets that are open on them.

    `interfaces` are the names every host has beside ``lo``, each a network of its own. `carry(receiver, datagram)` is
    called for each socket that a packet is for.
    """

    def __init__(
        self, interfaces: Sequence[str], carry: Callable[[Socket, Datagram], object], traffic: Traffic
    ) -> None:
        #: The interfaces' names by their index.
        self.names = dict(enumerate(("lo", *interfaces), 1))
        #: The host on which sockets are opened.
        self.host = 1
        self.sockets: dict[Socket, None] = {}
        self._carry = carry
        self._traffic = traffic
        self._ports = itertools.count(_EPHEMERAL)

    def open(self, family: int) -> Socket:
        """Open a socket on the current host."""
        opened = Socket(self, family)
        self.sockets[opened] = None
        return opened

    def interfaces(self) -> list[Interface]:
        """Return the interfaces of the current host."""
        found = [Interface(1, "lo", ("127.0.0.1", "::1"), multicast=False, loopback=True, mtu=65536)]
        for index, name in self.names.items():
            if index > 1:
                found.append(Interface(index, name, self.own(self.host, index), mtu=1500))
        return found

    @staticmethod
    def own(host: int, index: int) -> tuple[str, str]:
        """Return both addresses of a host on one of its interfaces."""
        if index == 1:
            return ("127.0.0.1", "::1")
        lan = index - 2
        return (f"10.0.{lan}.{host}", f"fd00::{f'{lan:x}:' if lan else ''}{host:x}")

    def addresses(self, host: int) -> set[str]:
        """Return all addresses of a host."""
        return {address for index in self.names for address in self.own(host, index)}

    def free_port(self) -> int:
        """Return a port that no socket has."""
        used = {opened._port for opened in self.sockets}
        return next(port for port in self._ports if port not in used)

    def transmit(self, sender: Socket, data: bytes, to: tuple[Any, ...], index: int, source: str) -> None:
        """Send a packet to all that want it."""
        address = to[0].partition("%")[0]
        multicast = address.startswith("ff") if ":" in address else 224 <= int(address.partition(".")[0]) <= 239
        own = next((number for number in self.names if source in self.own(sender.host, number)), 0)
        if not multicast and address in self.addresses(sender.host):
            index = 1
            if source not in self.addresses(sender.host):
                source = address  # as the kernel's route to an address of the host has it
        index = index or own or 2
        if source not in self.addresses(sender.host) and not sender._transparent:
            source = self.own(sender.host, index)[":" in address]
        ttl = sender._ttl if multicast else sender._hops
        from_ = (source, sender._port) if sender.family == socket.AF_INET else (source, sender._port, 0, 0)
        ttl = (1 if multicast else 64) if ttl < 0 else ttl
        datagram = Datagram(data, from_, address, index, ttl, dscp=sender._dscp)
        self._traffic.sent += 1
        for receiver in list(self.sockets):
            same = receiver.host == sender.host
            heard = (sender._loop or index == 1 or not multicast) if same else index != 1
            if receiver.family == sender.family and heard and receiver.wants(address, to[1], multicast, index, source):
                self._carry(receiver, datagram)
