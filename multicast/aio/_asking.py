"""Requests and answers, awaited."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self, TypedDict, Unpack, overload

from multicast.batch import Address
from multicast.discovery import Reply, Requester, Responder
from multicast.errors import check_number
from multicast.filters import Filter, ShardKey
from multicast.listeners import HasAddress
from multicast.poller import Poller
from multicast.sealed import Seal
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterfaces

from ._driving import Awaited, current_backend

__all__ = ["Replies", "ResponderOptions", "request", "responder"]


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
        self._awaited = Awaited("reply", "a request")
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


class ResponderOptions(TypedDict, total=False):
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
    **options: Unpack[ResponderOptions],
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
    **options: Unpack[ResponderOptions],
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
    backend = current_backend()

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
