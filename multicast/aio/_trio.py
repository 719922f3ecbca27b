"""What `multicast.aio` needs of trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self

import trio

from multicast.poller import Poller

sleep = trio.sleep
readable = trio.lowlevel.wait_readable
writable = trio.lowlevel.wait_writable


@contextmanager
def _plain() -> Iterator[None]:
    """Raise what a nursery raises without the group around it, when it is a single error."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


@asynccontextmanager
async def driving(poller: Poller) -> AsyncIterator[None]:
    """Run `poller` from the event loop; what its handlers raise is raised in the task inside."""

    async def turn() -> None:
        while True:
            await readable(poller.fileno())
            poller.handle_read()

    async with Tasks() as tasks:
        tasks.start(turn)
        yield


class Tasks:
    """Tasks that run beside the body of an async context, and end with it; an error in one is raised there."""

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    def start(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run `function(*args)` as a task."""
        self._nursery.start_soon(function, *args)

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._nursery.cancel_scope.cancel()
        with _plain():
            await self._manager.__aexit__(kind, raised, traceback)
