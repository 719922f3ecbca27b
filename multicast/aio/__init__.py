"""The same things awaited: on asyncio, uvloop, trio, and anyio on either of them.

Nothing is implemented twice here. A `Poller` has a descriptor that is readable whenever it has something to do, its
timers included, so an event loop drives it by watching that one descriptor. Which event loop runs is found out when
something has to be awaited; the others are not imported.

Packets are read when somebody awaits them, a batch at a time, and wait in the kernel's buffer otherwise: a slow
consumer costs no memory, and what overflows is counted there. Each object here has a poller of its own, so an error in
a handler is raised in the task that awaits that object, and cancelling the task closes it at once.
"""

from __future__ import annotations

import errno
import select
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

from multicast import batch
from multicast.batch import Address
from multicast.discovery import Reply, Requester, Responder
from multicast.errors import check_number, check_seal
from multicast.filters import Filter, ShardKey
from multicast.listeners import HasAddress, MulticastListener, Newest, Statistics
from multicast.poller import Poller
from multicast.sealed import Seal
from multicast.senders import Transmission, as_packets, destination
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterface, WhichInterfaces, open_sender, takes_bursts

from ._shared import copied

if TYPE_CHECKING:
    import asyncio

    from multicast.feeds.subscriber import Line

    from ._endpoint import MulticastTransport
    from ._feeds import Messages

    _Protocol = TypeVar("_Protocol", bound=asyncio.DatagramProtocol)

__all__ = [
    "Packets",
    "Replies",
    "Sender",
    "create_multicast_endpoint",
    "drive",
    "listen",
    "request",
    "responder",
    "sendto",
    "subscribe",
]


def _backend() -> Any:
    """Return the module for the event loop that runs the current task."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        from . import _trio

        return _trio
    from . import _asyncio

    return _asyncio


@asynccontextmanager
async def drive(poller: Poller) -> AsyncIterator[Poller]:
    """Run `poller` inside the running event loop, timers included, for as long as the context lasts.

    What a handler raises is raised in the task that is inside the context, wherever it waits; what that task raises
    in answer has it as its `__context__`. Nothing is closed on leaving; an idle poller wakes nobody. A poller that is
    closed inside is driven no more. Use it for pollers with handlers of your own::

        async with aio.drive(poller):
            await something
    """
    async with _backend().driving(poller):
        yield poller


class _Awaited:
    """A poller of its own for one object, polled by the task that waits for the next thing from it.

    Entering is claiming the wait. Whoever closes it meanwhile wakes that task, which frees the poller on leaving: an
    event loop never watches what is closed.
    """

    def __init__(self, thing: str, owner: str) -> None:
        self.poller = Poller()
        self._thing = thing
        self._owner = owner
        self._claimed = False
        self._closed = False

    def __enter__(self) -> Self:
        if self._claimed:
            raise RuntimeError(
                f"another task waits for the next {self._thing} already; give each task {self._owner} of its own"
            )
        self._claimed = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._claimed = False
        if self._closed:
            self.poller.close()

    async def until(self, done: Callable[[], object]) -> None:
        """Poll until `done()` is true, which it must be once this is closed."""
        readable = _backend().readable
        while not done():
            await readable(self.poller.fileno())
            self.poller.poll(0)

    def close(self) -> None:
        self._closed = True
        if self._claimed:
            self.poller.call_soon(lambda: None)  # wakes the task that waits
        else:
            self.poller.close()


# Of how many sources `latest` keeps the newest packet.
_SOURCES = 1024


class _Receiving(MulticastListener):
    """A listener that keeps what it read for the task that awaits it."""

    def __init__(self, *args: Any, latest: bool, **options: Any) -> None:
        self.waiting: deque[tuple[bytes, Address]] | Newest = Newest(_SOURCES) if latest else deque()
        super().__init__(*args, **options)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        self.waiting.append((packet, addr))
        return False


class Packets:
    """The packets of a group, to iterate over with ``async for``; made by `listen`.

    One task at a time may wait for the next packet.
    """

    def __init__(self, limit: int | None, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._limit = limit
        self._arguments = arguments
        self._options = options
        self._awaited: _Awaited | None = None
        self._listener: _Receiving | None = None

    async def __aenter__(self) -> Self:
        self._awaited = _Awaited("packet", "a listener")
        try:
            self._listener = _Receiving(*self._arguments, poller=self._awaited.poller, **self._options)
        except BaseException:
            self._awaited.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        """Return the next packet and where it came from, once there is one."""
        listener, awaited = self._listener, self._awaited
        if listener is None or awaited is None:
            raise RuntimeError("enter the context first: async with aio.listen(...) as packets")
        if self._limit is not None and self._limit <= 0:
            self.close()
        waiting = listener.waiting
        if not waiting:
            with awaited:
                await awaited.until(lambda: waiting or listener.closed)
        if not waiting or listener.closed:
            raise StopAsyncIteration
        if self._limit is not None:
            self._limit -= 1
        return waiting.popleft()

    def close(self) -> None:
        """Leave the group and end the iteration, that of a task that waits too. Idempotent."""
        if self._listener is not None and self._awaited is not None:
            self._listener.close()
            self._awaited.close()

    def statistics(self) -> Statistics:
        """Return what was counted so far; readable after leaving the context too."""
        if self._listener is None:
            raise RuntimeError("enter the context first: async with aio.listen(...) as packets")
        return self._listener.statistics()

    @property
    def superseded(self) -> int:
        """How many packets a newer one of their source has replaced, with `latest`; 0 without."""
        waiting = None if self._listener is None else self._listener.waiting
        return waiting.superseded if isinstance(waiting, Newest) else 0


@overload
def listen(
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    *,
    filter: Filter = None,
    interface: WhichInterfaces = None,
    sources: Iterable[str] | None = None,
    exclude: None = None,
    rcvbuf: int | None = None,
    details: bool = False,
    kernel_filter: bool = True,
    offload: bool = False,
    latest: bool = False,
    seal: Seal | None = None,
) -> Packets: ...


@overload
def listen(
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    *,
    filter: Filter = None,
    interface: WhichInterfaces = None,
    sources: None = None,
    exclude: Iterable[str],
    rcvbuf: int | None = None,
    details: bool = False,
    kernel_filter: bool = True,
    offload: bool = False,
    latest: bool = False,
    seal: Seal | None = None,
) -> Packets: ...


def listen(
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    *,
    filter: Filter = None,
    interface: WhichInterfaces = None,
    sources: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    rcvbuf: int | None = None,
    details: bool = False,
    kernel_filter: bool = True,
    offload: bool = False,
    latest: bool = False,
    seal: Seal | None = None,
) -> Packets:
    """Return the packets of a group, as an async context manager to iterate over.

    ::

        async with aio.listen("239.1.2.3", 5000) as packets:
            async for packet, addr in packets:
                ...

    Ends after `limit` packets where that is given; raises `ArgumentError` where that is less than 1. The other
    arguments are those of `MulticastListener`, and so are the errors, which are raised on entering; `sources` and
    `exclude` cannot be combined. With `latest` it gives the newest packet of each source, as `Inbox` does. Leaving the
    context, also by cancellation, leaves the group at once. While nobody asks for the next packet, packets stay in the
    kernel's buffer (`rcvbuf`); what has no room there is counted in `statistics().dropped`.
    """
    if limit is not None:
        check_number("limit", limit, of="packets")
    options = {
        "interface": interface,
        "sources": sources,
        "exclude": exclude,
        "rcvbuf": rcvbuf,
        "details": details,
        "kernel_filter": kernel_filter,
        "offload": offload,
        "latest": latest,
        "seal": seal,
    }
    return Packets(limit, (filter, ip, port, mtu), options)


class Sender:
    """Sends to a group, again and again, from one socket; an async context manager.

    The arguments are those of `multicast.sendto`. `send` waits while the kernel has no room, so a fast producer is
    slowed to what the network takes.
    """

    def __init__(
        self,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        ttl: int = 1,
        *,
        interface: WhichInterface | None = None,
        source_ip: str | None = None,
        source_port: int = 0,
        loopback: bool = True,
        offload: bool = True,
        seal: Seal | None = None,
    ) -> None:
        check_seal(seal)
        self._to = destination(ip, port)
        self._encode = None if seal is None else seal.sealer().encode
        self._wakers: set[Callable[[], object]] = set()  # of the tasks that wait for room
        self._socket, sockaddr = open_sender(
            self._to, ttl, interface=interface, source_ip=source_ip, source_port=source_port, loopback=loopback
        )
        self._writer = batch.Writer(self._socket, sockaddr, offload=offload and takes_bursts())

    async def send(self, packets: str | bytes | Iterable[str | bytes]) -> int:
        """Send one packet or an iterable of packets; return how many, once the kernel has taken all of them.

        Raises what `multicast.sendto` raises. Other tasks run meanwhile; two of them may send at the same time, and
        their packets mix.
        """
        backend = _backend()
        source = as_packets(packets)
        encode = self._encode
        if encode is not None:
            source = (encode(packet, self._to.longest) for packet in source)
        transmission = Transmission(self._writer, self._to, source)
        try:
            for pause in transmission:
                if pause is None:
                    # A copy for each who waits, as event loops know one for each descriptor.
                    with copied(self._socket.fileno()) as fd:
                        await backend.writable(fd, self._wakers)
                else:
                    await backend.sleep(pause)
        except OSError as error:
            if error.errno == errno.EBADF and self._socket.fileno() < 0:
                error.add_note("The sender is closed; make another one to send more.")
            raise
        return transmission.sent

    def close(self) -> None:
        """Close the socket. Idempotent. A task that waits in `send` gets an `OSError`, as one has that sends later."""
        self._socket.close()
        for wake in list(self._wakers):
            wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self.close()


async def sendto(
    packets: str | bytes | Iterable[str | bytes],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    ttl: int = 1,
    *,
    interface: WhichInterface | None = None,
    source_ip: str | None = None,
    source_port: int = 0,
    loopback: bool = True,
    offload: bool = True,
    seal: Seal | None = None,
) -> int:
    """Send packets to a group and return how many, as `multicast.sendto` does, letting other tasks run meanwhile."""
    async with Sender(
        ip,
        port,
        ttl,
        interface=interface,
        source_ip=source_ip,
        source_port=source_port,
        loopback=loopback,
        offload=offload,
        seal=seal,
    ) as sender:
        return await sender.send(packets)


class _Asking(Requester):
    """A requester that keeps replies for whoever awaits them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.waiting: deque[Reply] = deque()
        super().__init__(*args, **options)

    def handle_reply(self, packet: bytes, addr: Address) -> object:
        if self.reply is not None:
            self.waiting.append(self.reply)
        return False


class Replies:
    """The replies to a request: iterate over them as they come, or await all of them; made by `request`.

    One task at a time may wait for the next reply.
    """

    def __init__(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._reply: Reply | None = None
        self._awaited = _Awaited("reply", "a request")
        try:
            self._requester = _Asking(*arguments, poller=self._awaited.poller, **options)
        except BaseException:
            self._awaited.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        """Return the next reply and where it came from, once there is one."""
        requester = self._requester
        if not requester.waiting:
            with self._awaited as awaited:
                try:
                    await awaited.until(lambda: requester.waiting or requester.closed)
                except BaseException:
                    self.close()
                    raise
        if not requester.waiting:
            self.close()
            raise StopAsyncIteration
        self._reply = requester.waiting.popleft()
        return self._reply.packet, self._reply.addr

    def __await__(self) -> Generator[Any, None, list[tuple[bytes, Address]]]:
        return self._all().__await__()

    async def _all(self) -> list[tuple[bytes, Address]]:
        return [reply async for reply in self]

    @property
    def round_trip(self) -> float:
        """The time from sending the request to receiving the reply returned last, in seconds; 0 before the first."""
        return 0.0 if self._reply is None else self._reply.round_trip

    def close(self) -> None:
        """Wait for no more replies, also in a task that waits for the next one. Idempotent."""
        self._requester.close()
        self._awaited.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_requester"):
            self.close()


def request(
    packet: str | bytes,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    ttl: int = 1,
    *,
    timeout: float | None = 1.0,
    limit: int | None = None,
    interface: WhichInterfaces = None,
    source_ip: str | None = None,
    source_port: int = 0,
    seal: Seal | None = None,
) -> Replies:
    """Send a request to a group and return its replies, to await all of them or to iterate over them as they come.

    ::

        for packet, addr in await aio.request("who is there?", "239.1.2.3", 5000):
            ...
        async for packet, addr in aio.request("who is there?", "239.1.2.3", 5000, limit=1):
            ...

    The request is sent now, and replies are awaited until `timeout` seconds have passed or `limit` of them have come.
    The arguments and the errors are those of `multicast.discovery.request`.
    """
    options = {
        "timeout": timeout,
        "limit": limit,
        "interface": interface,
        "source_ip": source_ip,
        "source_port": source_port,
        "seal": seal,
    }
    return Replies((packet, ip, port, ttl), options)


class _Answering(Responder):
    """A responder whose answers are awaited, so many at a time."""

    def __init__(self, begin: Callable[[bytes, Address], None], concurrent: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begin = begin
        self._free = concurrent
        self._held: deque[tuple[bytes, Address]] = deque()

    def handle_request(self, packet: bytes, addr: Address) -> None:
        if self._free:
            self._free -= 1
            self._begin(packet, addr)
            return
        # The rest of this batch is held here; from then on requests wait in the kernel, which counts what it drops.
        self._held.append((packet, addr))
        self.poller.modify(self, select.EPOLLERR)

    def finished(self) -> None:
        """Take note that one answer was given."""
        if self.closed:
            return
        if self._held:
            self._begin(*self._held.popleft())
            return
        self._free += 1
        self.poller.modify(self, select.EPOLLIN)


class _ResponderOptions(TypedDict, total=False):
    """The keywords of `responder` that it hands on, but for those of which only one may be given."""

    filter: Filter
    interface: WhichInterfaces
    rcvbuf: int | None
    kernel_filter: bool
    offload: bool
    shard: tuple[int, int] | None
    shard_key: ShardKey
    ignore: Iterable[HasAddress]
    silence: float | None
    seal: Seal | None
    per_source: float
    total: float
    longest: int
    ttl: int


@overload
def responder(
    handler: Callable[[bytes, Address], Awaitable[str | bytes | None]],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    *,
    concurrent: int = 100,
    sources: Iterable[str] | None = None,
    exclude: None = None,
    **options: Unpack[_ResponderOptions],
) -> AbstractAsyncContextManager[Responder]: ...


@overload
def responder(
    handler: Callable[[bytes, Address], Awaitable[str | bytes | None]],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    *,
    concurrent: int = 100,
    sources: None = None,
    exclude: Iterable[str],
    **options: Unpack[_ResponderOptions],
) -> AbstractAsyncContextManager[Responder]: ...


@asynccontextmanager
async def responder(
    handler: Callable[[bytes, Address], Awaitable[str | bytes | None]],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    *,
    concurrent: int = 100,
    **options: Any,
) -> AsyncIterator[Responder]:
    """Answer the requests to a group for as long as the context lasts.

    `await handler(packet, addr)` returns the reply to a request, or None for no reply. At most `concurrent` handlers
    run at the same time; further requests wait in the kernel's buffer. What a handler raises is raised in the task
    inside the context. The keywords `filter`, `interface`, `sources` or `exclude`, `rcvbuf`, `kernel_filter`,
    `offload`, `shard`, `shard_key`, `ignore`, `seal`, `per_source`, `total`, `longest` and `ttl`, the limits and the
    errors are those of `multicast.discovery.Responder`::

        async def answer(packet, addr):
            return await look_up(packet)

        async with aio.responder(answer, "239.1.2.3", 5000):
            await forever
    """
    check_number("concurrent", concurrent, of="handlers")
    backend = _backend()

    async def answer(packet: bytes, addr: Address) -> None:
        try:
            reply = await handler(packet, addr)
            if reply is not None:
                answering.reply(reply, addr)
        finally:
            answering.finished()

    with Poller() as poller:
        async with backend.Tasks() as tasks, backend.driving(poller):

            def begin(packet: bytes, addr: Address) -> None:
                tasks.start(answer, packet, addr)

            answering = _Answering(begin, concurrent, ip=ip, port=port, mtu=mtu, poller=poller, **options)
            with answering:
                yield answering


def subscribe(
    lines: Line | Iterable[Line],
    *,
    start: str | int = "live",
    session: str | bytes | None = None,
    repair: bool | Sequence[tuple[str, int]] = True,
    patience: float = 0.02,
    give_up: float = 2.0,
    window: int = 65536,
    **options: Any,
) -> Messages:
    """Subscribe to a sequenced feed and return its messages, in order and each once, to iterate over.

    ::

        async for message in aio.subscribe("239.1.2.3:5000", start="first"):
            ...

    Ends with the session. In the place of messages that will not come it raises `MessagesLost`, after which iterating
    may go on; `number` and `addr` of the iterator tell which message was returned last, and where it came from. The
    arguments and the errors are those of `multicast.feeds.Subscriber`.
    """
    from ._feeds import Messages

    wanted = {"start": start, "session": session, "repair": repair, "patience": patience, "give_up": give_up}
    return Messages(lines, {**wanted, "window": window, **options})


async def create_multicast_endpoint(
    protocol_factory: Callable[[], _Protocol],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    *,
    interface: WhichInterface | None = None,
    sources: Iterable[str] | None = None,
    ttl: int = 1,
    mtu: int = 65535,
    rcvbuf: int | None = None,
    loopback: bool = True,
    seal: Seal | None = None,
) -> tuple[MulticastTransport, _Protocol]:
    """Join a group for code written against `asyncio.DatagramProtocol`; return `(transport, protocol)`.

    `datagram_received(data, addr)` is called for packets to the group and for answers to what was sent.
    `transport.sendto(data)` without an address goes to the group, by `interface` and with `ttl`; with an address it
    goes there. Nothing is connected, so answers from anywhere arrive. With `seal` all that is sent is sealed, answers
    too, and what arrives is opened. Runs on asyncio and uvloop; the rest is as in
    `loop.create_datagram_endpoint`.
    """
    from ._endpoint import open_endpoint

    return open_endpoint(
        protocol_factory,
        ip,
        port,
        interface=interface,
        sources=sources,
        ttl=ttl,
        mtu=mtu,
        rcvbuf=rcvbuf,
        loopback=loopback,
        seal=seal,
    )
