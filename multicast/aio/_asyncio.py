"""What `multicast.aio` needs of asyncio, and of uvloop, which is driven through the same calls."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self

from multicast.poller import Poller

from ._shared import copied, put_before, raise_as_it_is

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


async def writable(fd: int, wakers: set[Callable[[], object]]) -> None:
    """Wait until `fd` is writable, or somebody calls what this adds to `wakers`."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    wake = functools.partial(_resolve, ready)
    wakers.add(wake)
    loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_writer(fd)
        wakers.discard(wake)


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
        self._cancelled = False
        #: Whether the body has ended, so that there is nothing to interrupt any more.
        self.ended = False
        self.error: BaseException | None = None

    def __call__(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            if not self.ended:
                self._cancelled = True
                self._task.cancel()

    async def settle(self, raised: BaseException | None) -> None:
        """Raise the error, if there was one, in place of the cancellation it caused.

        `raised` is what leaves the context now. Where the body has answered with an error of its own, or somebody
        else has cancelled it too, that goes on, and the error is its context.
        """
        if self.error is None:
            return
        swallowed = False
        if self._cancelled:
            if raised is None:
                # The body ended before the cancellation reached it; take it here, or the next await would.
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as cancellation:
                    raised = cancellation
                    swallowed = True
            self._task.uncancel()
        others = self._task.cancelling() > self._before
        if raised is None or (isinstance(raised, asyncio.CancelledError) and not others):
            raise_as_it_is(self.error)
        put_before(self.error, raised, asyncio.CancelledError)
        if swallowed:
            raise_as_it_is(raised)


@asynccontextmanager
async def driving(poller: Poller) -> AsyncIterator[None]:
    """Run `poller` from the event loop; what its handlers raise is raised in the task inside."""
    loop = asyncio.get_running_loop()
    interrupt = _Interruption()
    with copied(poller.fileno()) as fd:

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
        self._interrupt.ended = True
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        except asyncio.CancelledError as cancellation:
            raised = cancellation
            raise
        finally:
            await self._interrupt.settle(raised)
