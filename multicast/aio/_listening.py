"""Packets of a group, awaited."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Self, overload

from multicast.batch import Address
from multicast.errors import check_number
from multicast.filters import Filter
from multicast.listeners import MulticastListener, Newest, Statistics
from multicast.sealed import Seal
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterfaces

from ._driving import Awaited

__all__ = ["Packets", "listen"]

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
        self._awaited: Awaited | None = None
        self._listener: _Receiving | None = None

    async def __aenter__(self) -> Self:
        self._awaited = Awaited("packet", "a listener")
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
