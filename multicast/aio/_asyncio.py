"""What `multicast.aio` needs of asyncio, and of uvloop, which is driven through the same calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self

from multicast.poller import Poller

sleep = asyncio.sleep


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def readable(fd: int) -> None:
    """Wait until `fd` is readable."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Wait until `fd` is writable."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


class _Interruption:
    """Raises an error in the task that is inside this context, wherever it waits.

    The same means as `asyncio.timeout` uses: cancel the task, and turn the cancellation into the error on the way
    out, unless somebody else has cancelled it too.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "an async context is entered in a task"  # noqa: S101 -- cannot be otherwise
        self._task = task
        self._before = task.cancelling()
        self.error: BaseException | None = None

    def __call__(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self._task.cancel()

    async def settle(self, raised: BaseException | None) -> None:
        """Raise the error, if there was one, in place of the cancellation it caused."""
        if self.error is None:
            return
        if raised is None:
            # The body ended before the cancellation reached it; take it here, or the next await would.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancellation:
                raised = cancellation
        others = self._task.uncancel() > self._before
        if raised is None or (isinstance(raised, asyncio.CancelledError) and not others):
            raise self.error from None


@asynccontextmanager
async def driving(poller: Poller) -> AsyncIterator[None]:
    """Run `poller` from the event loop; what its handlers raise is raised in the task inside."""
    loop = asyncio.get_running_loop()
    interrupt = _Interruption()
    fd = poller.fileno()

    def turn() -> None:
        try:
            poller.handle_read()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            loop.remove_reader(fd)
            interrupt(error)

    loop.add_reader(fd, turn)
    raised: BaseException | None = None
    try:
        yield
    except BaseException as error:
        raised = error
        raise
    finally:
        loop.remove_reader(fd)
        await interrupt.settle(raised)


class Tasks:
    """Tasks that run beside the body of an async context, and end with it; an error in one is raised there."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._interrupt = _Interruption()
        return self

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run `function(*args)` as a task."""
        task = asyncio.get_running_loop().create_task(function(*args))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._interrupt(error)

    async def __aexit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._interrupt.settle(raised)
