"""Pollers driven by an event loop, and the wait of a task for the next thing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from multicast.poller import Poller

__all__ = ["Awaited", "current_backend", "drive"]


def current_backend() -> Any:
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
    async with current_backend().driving(poller):
        yield poller


class Awaited:
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
        readable = current_backend().readable
        while not done():
            await readable(self.poller.fileno())
            self.poller.poll(0)

    def close(self) -> None:
        self._closed = True
        if self._claimed:
            self.poller.call_soon(lambda: None)  # wakes the task that waits
        else:
            self.poller.close()
