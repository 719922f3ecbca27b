"""A datagram transport of asyncio's kind over a multicast listener and a private sending socket."""

from __future__ import annotations

import asyncio
import functools
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, overload

from multicast import batch
from multicast.batch import Address
from multicast.errors import GroupError
from multicast.listeners import MulticastListener
from multicast.poller import Dispatcher, Poller
from multicast.sealed import Seal
from multicast.senders import destination
from multicast.sockets import Endpoint, Group, WhichInterface, open_sender

_Protocol = TypeVar("_Protocol", bound=asyncio.DatagramProtocol)

# Where asyncio's own transports stop and resume their protocols, in bytes waiting to be sent.
_HIGH = 64 * 1024


@functools.lru_cache(maxsize=1024)
def _sockaddr(addr: tuple[Any, ...], family: int) -> tuple[Any, ...]:
    """Return the address that somebody gave to `sendto`, when it is one that needs no looking up.

    The socket would look up a name, and the whole event loop would wait for DNS. Raises `GroupError` and
    `ArgumentError`.
    """
    if len(addr) < 2:
        raise GroupError(f"an address to send to is a tuple of address and port, not {addr!r}")
    to = Endpoint(addr[0], addr[1])
    if to.family != family:
        raise GroupError(f"{to.address} is an {to.table.name} address, and the group of this transport is not")
    return addr


class _Group(MulticastListener):
    """The receiving half: what the group gets."""

    def __init__(self, received: Callable[[bytes, Any], None], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._received = received

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        self._received(packet, addr)


class _Private(Dispatcher):
    """The sending half, and the answers to what was sent: a socket of our own, connected to nobody."""

    _flags = select.EPOLLIN

    def __init__(self, transport: MulticastTransport, opened: Any, sockaddr: tuple[Any, ...], poller: Poller) -> None:
        super().__init__(opened, poller)
        self._transport = transport
        self._reader = batch.Reader(opened, 65535)
        self.sockaddr = sockaddr
        self.queue: deque[tuple[bytes, tuple[Any, ...]]] = deque()
        self.queued = 0

    def handle_read(self) -> bool | None:
        try:
            packets, addresses = batch.receive(self._reader)
        except OSError as error:
            batch.drain_errors(self._reader.socket)
            self._transport._protocol.error_received(error)
            return False
        if not packets:  # an error waits in the queue, behind none that receiving would meet
            batch.drain_errors(self._reader.socket)
        more = len(packets) >= batch.LIMIT
        if self._transport._group.rejected is not None:
            opened = self._transport._group._open_all(packets, addresses)
        else:
            opened = [*packets]
        for packet, addr in zip(opened, addresses, strict=True):
            if packet is not None:
                self._transport._protocol.datagram_received(packet, addr)
        return more

    def send(self, packet: bytes, sockaddr: tuple[Any, ...]) -> bool:
        """Send at once if the kernel has room; return whether it had."""
        if self.socket is None:
            return True
        try:
            self.socket.sendto(packet, sockaddr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._transport._protocol.error_received(error)
        return True

    def handle_write(self) -> None:
        while self.queue and self.send(*self.queue[0]):
            packet, _ = self.queue.popleft()
            self.queued -= len(packet)
        if not self.queue and not self.closed:
            self.poller.modify(self, select.EPOLLIN)
        self._transport._drained()


class MulticastTransport(asyncio.DatagramTransport):
    """What `create_multicast_endpoint` returns: sends to the group, and to whoever is named."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.DatagramProtocol, seal: Seal | None) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._poller = Poller()
        self._encode = batch.encode if seal is None else seal.sealer().encode
        self._closing = False
        self._paused = False

    def _open(self, listener: dict[str, Any], sender: tuple[Any, tuple[Any, ...]]) -> None:
        try:
            self._private = _Private(self, *sender, self._poller)
            self._group = _Group(self._protocol.datagram_received, poller=self._poller, **listener)
        except BaseException:
            self._closing = True
            sender[0].close()
            self._poller.close()
            raise
        self._family = self._group.group.family
        self._fd = self._poller.fileno()
        self._extra = {"socket": self._group.socket, "sockname": self._group.address, "group": self._group.group}
        self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._protocol.connection_made(self)
        if not self._closing:
            self._loop.add_reader(self._fd, self._turn)

    def _turn(self) -> None:
        try:
            self._poller.handle_read()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._loop.call_exception_handler(
                {
                    "message": "datagram_received() raised",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )

    @overload
    def get_extra_info(self, name: Literal["socket"], default: object = None) -> socket.socket: ...

    @overload
    def get_extra_info(self, name: Literal["sockname"], default: object = None) -> tuple[Any, ...]: ...

    @overload
    def get_extra_info(self, name: Literal["group"], default: object = None) -> Group: ...

    @overload
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the receiving ``socket``, its address ``sockname``, the ``group``; `default` for any other name."""
        return super().get_extra_info(name, default)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send `data` to the group, or to `addr`; what the kernel has no room for is kept until it has.

        Names are not looked up. Raises `GroupError`, `ArgumentError`, `PacketTypeError` and `PacketSizeError`; errors
        of the network reach the protocol's `error_received`.
        """
        private = self._private
        packet = self._encode(data, self._group.group.longest)
        sockaddr = private.sockaddr if addr is None else _sockaddr(tuple(addr), self._family)
        if self._closing:
            return
        if not private.queue and private.send(packet, sockaddr):
            return
        private.queue.append((packet, sockaddr))
        private.queued += len(packet)
        private.poller.modify(private, select.EPOLLIN | select.EPOLLOUT)
        if private.queued > _HIGH and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _drained(self) -> None:
        if self._paused and self._private.queued <= _HIGH // 4:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing and not self._private.queue:
            self._finish(None)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._private.queued

    def is_closing(self) -> bool:
        """Return whether `close` or `abort` was called."""
        return self._closing

    def close(self) -> None:
        """Leave the group at once, send what waits, then call the protocol's `connection_lost`. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._group.close()
        if not self._private.queue:
            self._finish(None)

    def abort(self) -> None:
        """Close without sending what waits."""
        self._private.queue.clear()
        self._private.queued = 0
        if self._closing:
            self._finish(None)
        else:
            self.close()

    def _finish(self, error: Exception | None) -> None:
        if self._private.closed:
            return
        self._loop.remove_reader(self._fd)
        self._poller.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def __del__(self) -> None:
        if hasattr(self, "_private") and not self._closing and not self._loop.is_closed():
            self.close()


def open_endpoint(
    protocol_factory: Callable[[], _Protocol],
    ip: str,
    port: int,
    *,
    interface: WhichInterface | None,
    sources: Iterable[str] | None,
    ttl: int,
    mtu: int,
    rcvbuf: int | None,
    loopback: bool,
    seal: Seal | None,
) -> tuple[MulticastTransport, _Protocol]:
    """Open what `create_multicast_endpoint` returns."""
    loop = asyncio.get_running_loop()
    protocol = protocol_factory()
    transport = MulticastTransport(loop, protocol, seal)
    sender = open_sender(destination(ip, port), ttl, interface=interface, loopback=loopback)
    listener = {
        "ip": ip,
        "port": port,
        "mtu": mtu,
        "interface": interface,
        "sources": sources,
        "rcvbuf": rcvbuf,
        "seal": seal,
    }
    transport._open(listener, sender)
    return transport, protocol
