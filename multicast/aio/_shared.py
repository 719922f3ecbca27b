"""What both kinds of event loop need: a descriptor that stays open while it is watched, and errors as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from multicast.errors import advise


@contextmanager
def copied(fd: int) -> Iterator[int]:
    """A descriptor of the same open file, to be watched by an event loop in place of `fd`, which may be closed.

    Event loops keep a number, and do not learn that it was closed. asyncio and trio then wait for ever, or for what
    has the number next; uvloop tells epoll late, and libuv ends the process when epoll refuses (`uv__io_poll`). The
    copy of an epoll set whose own descriptors are closed is a set without members, which is never ready.
    """
    try:
        copy = os.dup(fd)
    except OSError as error:
        raise advise(error, "open") from None
    try:
        yield copy
    finally:
        os.close(copy)


def raise_as_it_is(error: BaseException) -> NoReturn:
    """Raise an error that was caught elsewhere, with the cause and the context it had there."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context  # and not what is being handled here, which is how it was carried


def put_before(error: BaseException, raised: BaseException, cancellation: type[BaseException]) -> None:
    """Make `error` the context of `raised`, in the place of the `cancellation` that was its messenger."""
    seen = {id(error)}
    while id(raised) not in seen:
        seen.add(id(raised))
        if isinstance(raised.__cause__, cancellation):
            raised.__cause__ = error
        if raised.__context__ is None or isinstance(raised.__context__, cancellation):
            raised.__context__ = error
            return
        raised = raised.__context__
