"""What `multicast.aio` needs of trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import trio

from multicast.poller import Poller

from ._shared import copied, put_before, raise_as_it_is

sleep = trio.sleep
readable = trio.lowlevel.wait_readable


async def writable(fd: int, wakers: set[Callable[[], object]]) -> None:
    """Wait until `fd` is writable, or somebody calls what this adds to `wakers`."""
    with trio.CancelScope() as scope:
        wakers.add(scope.cancel)
        try:
            await trio.lowlevel.wait_writable(fd)
        finally:
            wakers.discard(scope.cancel)


@asynccontextmanager
async def driving(poller: Poller) -> AsyncIterator[None]:
    """Run `poller` from the event loop; what its handlers raise is raised in the task inside."""
    with copied(poller.fileno()) as fd:

        async def turn() -> None:
            while True:
                await readable(fd)
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
        try:
            await self._manager.__aexit__(kind, raised, traceback)
        except BaseExceptionGroup as group:
            # The nursery puts a group around what the body raised too, which goes on without one.
            goes_on = any(error is raised for error in group.exceptions)
            failures = [
                error for error in group.exceptions if error is not raised and not isinstance(error, trio.Cancelled)
            ]
            if not failures:
                if goes_on:
                    return
                raise
            failure = failures[0] if len(failures) == 1 else group.derive(failures)
            if raised is None or not goes_on or isinstance(raised, trio.Cancelled):
                raise_as_it_is(failure)
            put_before(failure, raised, trio.Cancelled)
