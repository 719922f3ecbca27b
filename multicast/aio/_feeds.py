"""The messages of a sequenced feed, awaited."""

from __future__ import annotations

from collections import deque
from typing import Any, Self

from multicast.batch import Address
from multicast.errors import MessagesLost
from multicast.feeds import Subscriber, SubscriberStatistics

from ._driving import Awaited

__all__ = ["Messages"]


class _Keeping(Subscriber):
    """A subscriber that keeps what it has for the task that awaits it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.waiting: deque[tuple[bytes, int, Address] | MessagesLost] = deque()
        self.complete = False
        super().__init__(*args, **options)

    def handle_message(self, message: bytes, number: int, addr: Address) -> object:
        self.waiting.append((message, number, addr))
        return False

    def handle_gap(self, first: int, count: int) -> None:
        text = f"{count} messages of the feed from number {first} on are lost: {self.gap_cause}"
        self.waiting.append(MessagesLost(text, first, count, self.gap_cause))

    def handle_end(self) -> None:
        self.complete = True


class Messages:
    """The messages of a feed, to iterate over with ``async for``; made by `subscribe`.

    One task at a time may wait for the next message. Cancelling that wait closes it; in a context (``async with``) it
    stays open, so a wait with a timeout may be repeated, and nothing is lost by that.
    """

    def __init__(self, lines: Any, options: dict[str, Any]) -> None:
        #: The number of the message returned last, and where it came from; None before the first.
        self.number: int | None = None
        self.addr: Address | None = None
        self._entered = False
        self._awaited = Awaited("message", "a subscriber")
        try:
            self._subscriber = _Keeping(lines, poller=self._awaited.poller, **options)
        except BaseException:
            self._awaited.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next message, once there is one.

        Raises `MessagesLost` in the place of messages that will not come; iterating may go on after that.
        """
        subscriber = self._subscriber
        if not subscriber.waiting and not subscriber.complete and not subscriber.closed:
            with self._awaited as awaited:
                try:
                    await awaited.until(lambda: subscriber.waiting or subscriber.complete or subscriber.closed)
                except BaseException:
                    if not self._entered:
                        self.close()
                    raise
        if not subscriber.waiting:
            self.close()
            raise StopAsyncIteration
        found = subscriber.waiting.popleft()
        if isinstance(found, MessagesLost):
            raise found
        message, self.number, self.addr = found
        return message

    def statistics(self) -> SubscriberStatistics:
        """Return what was counted so far; it stays readable after `close`."""
        return self._subscriber.statistics()

    def close(self) -> None:
        """Leave the groups and end the iteration, that of a task that waits too. Idempotent."""
        self._subscriber.close()
        self._awaited.close()

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_subscriber"):
            self.close()
