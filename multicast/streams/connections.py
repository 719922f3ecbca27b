"""Where connections come from: others make them and an `Acceptor` takes them, or `connect` makes one."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from multicast import sockets
from multicast.batch import Address
from multicast.errors import ArgumentError, check_number
from multicast.poller import Dispatcher, Poller, Timer

from .stream import NOTHING, Stream, describe

_ACCEPT_AT_ONCE = 64
# When no descriptor is left, the connection stays in the queue and the socket stays readable: look again later.
_REST = 0.1

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# accept(2) hands over errors of the connection that is being taken; the next may be good.
_NOT_THIS_ONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)

_StreamT = TypeVar("_StreamT", bound=Stream)


def connect(
    host: str,
    port: int,
    factory: Callable[..., _StreamT] = Stream,  # type: ignore[assignment]
    *,
    source_ip: str | None = None,
    poller: Poller | None = None,
    **options: Any,
) -> _StreamT:
    """Start a TCP connection to the IP address `host` at `port`, and return the stream at once.

    `factory(socket, poller=poller, **options)` makes the stream; by default it is `Stream`. `source_ip` is the local
    address it comes from. What is written before the connection stands is sent then. `handle_connected` is called
    when it stands, `handle_close(error)` when it fails; both come from the poller. Names are not looked up.

    Raises `GroupError`, `ArgumentError` and `InterfaceError` for addresses, and `OSError` when no socket can be had.
    """
    opened, failed = sockets.open_stream(host, port, source_ip=source_ip)
    try:
        stream = factory(opened, poller=poller, **options)
    except BaseException:
        opened.close()
        raise
    stream._stream_dialled = True
    if stream.peer is None:
        stream.peer = Address((host, port))
    if failed is not None:
        stream.poller.call_soon(stream._stream_not_connected, failed)
    return stream


class Acceptor(Dispatcher):
    """Listens at a TCP address of this host and makes a stream of each connection.

    `host` is an IP address, ``0.0.0.0`` or ``::`` for all of this host; `port` 0 takes a free port, and `address`
    tells which. `factory(socket, poller=poller)` makes the stream, so a subclass of `Stream` will do; if it returns
    None the connection is refused.

    At most `max_connections` streams are open at a time, and `max_per_host` from one address, if given. Further
    clients wait in the kernel's queue until one leaves; those over the limit of their own address are turned away.
    When the process has no descriptor left, accepting rests for a tenth of a second; `exhausted` counts how often.

    Closing the acceptor leaves its streams open. Raises `GroupError`, `ArgumentError`, `InterfaceError`, and
    `OSError` with advice.

    >>> class Echo(Stream):
    ...     def handle_message(self, message):
    ...         self.write(message)
    >>> acceptor = Acceptor("127.0.0.1", 0, Echo)
    >>> class Client(Stream):
    ...     def handle_connected(self):
    ...         self.write("hello")
    ...     def handle_message(self, message):
    ...         print(message)
    ...         self.close()
    >>> client = connect("127.0.0.1", acceptor.address.port, Client)
    >>> client.poller.run_until(lambda: client.closed)
    b'hello'
    >>> acceptor.poller.close()
    """

    _acceptor_timer: Timer | None = None

    def __init__(
        self,
        host: str,
        port: int,
        factory: Callable[..., Stream | None],
        *,
        max_connections: int = 1024,
        max_per_host: int | None = None,
        poller: Poller | None = None,
    ) -> None:
        if not callable(factory):
            raise ArgumentError(f"factory must make a Stream of a socket, which {factory!r} cannot")
        self.max_connections = check_number("max_connections", max_connections)
        self.max_per_host = None if max_per_host is None else check_number("max_per_host", max_per_host)
        opened = sockets.open_acceptor(host, port)
        super().__init__(opened, poller)
        self._flags = select.EPOLLIN
        self._acceptor_factory = factory
        #: Where it listens, with the port that was chosen.
        self.address = Address(opened.getsockname())
        self._acceptor_streams: dict[int, tuple[Stream, str]] = {}  # and the host of each; by identity
        self._acceptor_hosts: dict[str, int] = {}
        #: Connections taken so far.
        self.accepted = 0
        #: How many of these were turned away.
        self.refused = 0
        #: How often there was no descriptor or memory for a connection.
        self.exhausted = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {describe(self.address)}{', closed' if self.closed else ''}>"

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that are open, oldest first."""
        return tuple(stream for stream, _ in self._acceptor_streams.values())

    def handle_read(self) -> None:
        """Take the connections that wait, up to 64; called by the poller."""
        for _ in range(_ACCEPT_AT_ONCE):
            if self.socket is None:
                return
            if len(self._acceptor_streams) >= self.max_connections:
                self.poller.modify(self, NOTHING)
                return
            try:
                connection, name = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NOT_THIS_ONE:
                    continue
                if error.errno not in _NO_ROOM:
                    raise
                self.exhausted += 1
                self.poller.modify(self, NOTHING)
                self._acceptor_timer = self.poller.call_later(_REST, self._acceptor_go_on)
                return
            self.accepted += 1
            self._acceptor_take(connection, Address(name))

    def _acceptor_take(self, connection: socket.socket, peer: Address) -> None:
        stream = None
        host = peer.host
        try:
            if self.max_per_host is None or self._acceptor_hosts.get(host, 0) < self.max_per_host:
                stream = self._acceptor_factory(connection, poller=self.poller)
        finally:
            if stream is None:
                self.refused += 1
                connection.close()
        if stream is not None and not stream.closed:
            stream.peer = peer  # the kernel forgets it when the peer has gone again already
            self._acceptor_streams[id(stream)] = (stream, host)
            self._acceptor_hosts[host] = self._acceptor_hosts.get(host, 0) + 1
            stream._stream_forget = self._acceptor_forget

    def _acceptor_forget(self, stream: Stream) -> None:
        """A stream was closed: there is room for another."""
        present = self._acceptor_streams.pop(id(stream), None)
        if present is None:
            return
        host = present[1]
        self._acceptor_hosts[host] -= 1
        if not self._acceptor_hosts[host]:
            del self._acceptor_hosts[host]
        if self._acceptor_timer is None:
            self._acceptor_go_on()

    def _acceptor_go_on(self) -> None:
        self._acceptor_timer = None
        if self.socket is not None and self in self.poller:
            self.poller.modify(self, select.EPOLLIN)

    def close(self) -> None:
        """Listen no more; streams stay open, and clients still in the queue are turned away. Idempotent."""
        if self._acceptor_timer is not None:
            self._acceptor_timer.cancel()
            self._acceptor_timer = None
        super().close()
