"""What a poller asks of an object, what it tells one, and a row of its table."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from multicast.errors import ArgumentError, RegistrationError

if TYPE_CHECKING:
    from .polling import Poller

READ = select.EPOLLIN | select.EPOLLPRI
WRITE = select.EPOLLOUT
READABLE = READ | select.EPOLLRDHUP


@runtime_checkable
class HasFileno(Protocol):
    """What a poller asks of an object, besides `handle_read` or `handle_write`."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""


class Member:
    """What a poller tells an object that it holds; the base of `Dispatcher`."""

    #: The poller this object is registered with, or is going to be.
    poller: Poller

    def close(self) -> None:
        """Called when the poller closes."""

    def _attached(self) -> None:
        """Called when `poller` has registered this object."""

    def _detached(self, poller: Poller) -> None:
        """Called when `poller` has unregistered this object."""

    def _resume(self) -> None:
        """Called when an exception has left a turn: see to it that the next poll goes on with what was interrupted."""

    def _abandon(self) -> None:
        """Called in a forked child, whose copies of the parent's descriptors are to be closed and nothing more."""


def report(to: object, error: Exception) -> None:
    """Give what a handler or a timer of an object raised to its `handle_error`, or raise it where it has none."""
    handler = getattr(to, "handle_error", None)
    if handler is None:
        raise error
    handler(error)


class Registration:
    """One row of the table: this object, under this descriptor, with this interest."""

    __slots__ = ("fd", "flags", "ours", "reads", "target", "writes")

    def __init__(self, fd: int, target: Any, flags: int) -> None:
        self.fd = fd
        self.target = target
        # Whether what handle_read returns tells that more is waiting. Other objects may return what they like.
        self.ours = isinstance(target, Member)
        self.flags = flags
        self.reads = hasattr(target, "handle_read")
        self.writes = hasattr(target, "handle_write")


def number_of(fd: Any) -> int:
    """Return the descriptor of `fd`. Raises `RegistrationError` where there is none."""
    if not hasattr(fd, "fileno"):
        hint = "; wrap the number in an object with fileno() and handle_read()" if isinstance(fd, int) else ""
        raise RegistrationError(f"{fd!r} has no fileno() method, so it cannot be registered{hint}")
    number = fd.fileno()
    if not isinstance(number, int) or number < 0:
        raise RegistrationError(f"{fd!r} is closed: its fileno() is {number!r}, so there is nothing to watch")
    return number


def interest_of(fd: Any, flags: int) -> int:
    """Return the events to watch `fd` for: `flags`, or what its methods are for. Raises `RegistrationError`."""
    reads, writes = hasattr(fd, "handle_read"), hasattr(fd, "handle_write")
    if not (reads or writes):
        raise RegistrationError(
            f"{fd!r} has neither handle_read() nor handle_write(), so there is nothing to call; give it one of them"
        )
    if not 0 <= flags < 1 << 32:
        raise ArgumentError(f"flags must be events of epoll, such as select.EPOLLIN, not {flags!r}")
    if flags & READABLE and not reads:
        raise RegistrationError(f"{fd!r} has no handle_read(), so it cannot be watched for reading")
    if flags & WRITE and not writes:
        raise RegistrationError(f"{fd!r} has no handle_write(), so it cannot be watched for writing")
    return flags or (READ if reads else 0) | (WRITE if writes else 0)
