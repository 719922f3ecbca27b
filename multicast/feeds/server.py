"""`RepairServer`: answers requests for a feed that another host publishes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from multicast.batch import Address
from multicast.errors import check_amount, check_number
from multicast.poller import Dispatcher, Poller
from multicast.sealed import OVERHEAD, Seal
from multicast.sockets import DEFAULT_PORT, open_unicast

from .history import History
from .moldudp64 import HEADER, pack
from .publisher import Access, Desk, PublisherStatistics
from .repairs import Repairs
from .subscriber import Line, Subscriber

__all__ = ["RepairServer"]


class _Counter(Dispatcher):
    """The socket at which a repair server is asked."""

    def __init__(self, server: RepairServer, ip: str, port: int, poller: Poller) -> None:
        super().__init__(open_unicast(ip, port), poller)
        self._server = server

    def handle_read(self) -> bool:
        """Answer requests; return whether there may be more."""
        return self._server._feed_serve()


class RepairServer(Subscriber):
    """Listens to a feed, keeps its last messages, and answers requests for them, by unicast.

    `lines` and the further keywords are those of `Subscriber`; by default what this server misses it asks the publisher
    for. `ip` and `port` are where it is asked: subscribers name them in `repair`. `history`, `fill`, `linger`,
    `repair_share`, `answer` and `seal` are those of `Publisher`; here it answers each requester alone.

    Raises what `Subscriber` raises.
    """

    def __init__(
        self,
        lines: Line | Iterable[Line],
        ip: str = "0.0.0.0",  # noqa: S104 -- requests come from anywhere
        port: int = DEFAULT_PORT,
        *,
        history: int = 64 << 20,
        fill: int = 1400,
        repair_share: float = 0.5,
        answer: str | Iterable[Any] = "connected",
        seal: Seal | None = None,
        poller: Poller | None = None,
        **options: Any,
    ) -> None:
        check_number("history", history, 0, of="bytes")
        check_number("fill", fill, HEADER.size + 2, 65507 - (0 if seal is None else OVERHEAD), of="bytes")
        check_amount("repair_share", repair_share, "of the rate of the feed")
        access = Access(answer)
        self._feed_limit, self._feed_fill, self._feed_share = history, fill, repair_share
        self._feed_gathered: list[bytes] = []
        self._feed_gathered_first = self._feed_gathered_size = 0
        self._feed_heard_bytes = 0
        self._feed_begin_history(b"")
        self._feed_counter: _Counter | None = None
        # A history takes messages as they come, and so does not wait for those that this server misses.
        super().__init__(lines, seal=seal, ordered=False, poller=poller, **options)
        try:
            self._feed_counter = _Counter(self, ip, port, self.poller)
        except BaseException:
            self.close()
            raise
        assert self._feed_counter.socket is not None  # noqa: S101 -- it was opened above
        sealer, opener = (None, None) if seal is None else (seal.sealer(), seal.opener())
        self._feed_answers = Desk(self._feed_repairs, access, self._feed_counter.socket, sealer, opener)

    def _feed_begin_history(self, session: bytes) -> None:
        self._feed_history = History(session, self._feed_limit)
        # What it repairs is measured by what it hears, as it sends nothing else.
        began, heard = None, 0

        def sending(now: float) -> float:
            nonlocal began, heard
            if began is None or now - began > 1:
                began, heard = now, self._feed_heard_bytes
            return float(self._feed_heard_bytes - heard)

        self._feed_repairs = Repairs(
            self._feed_history, room=self._feed_fill, linger=0.0, share=self._feed_share, sending=sending
        )

    @property
    def address(self) -> tuple[Any, ...]:
        """The address and port at which it is asked."""
        assert self._feed_counter is not None  # noqa: S101
        assert self._feed_counter.socket is not None  # noqa: S101
        name: tuple[Any, ...] = self._feed_counter.socket.getsockname()
        return name

    def handle_message(self, message: bytes, number: int, addr: Address) -> None:
        """Keep a message."""
        follows = number == self._feed_gathered_first + len(self._feed_gathered)
        if self._feed_gathered and (not follows or self._feed_gathered_size + 2 + len(message) > self._feed_fill):
            self._feed_keep()
        if not self._feed_gathered:
            self._feed_gathered_first, self._feed_gathered_size = number, HEADER.size
        self._feed_gathered.append(message)
        self._feed_gathered_size += 2 + len(message)
        self._feed_heard_bytes += 2 + len(message)

    def handle_session(self, old: bytes, new: bytes) -> None:
        """Forget the messages of the old session."""
        self._feed_gathered.clear()
        counts = self._feed_repairs.counts
        self._feed_begin_history(new)
        self._feed_repairs.counts = counts
        self._feed_answers.repairs = self._feed_repairs

    def _feed_keep(self) -> None:
        """Move what was gathered to the history."""
        if self._feed_gathered:
            packet = pack(self._feed_history.session, self._feed_gathered_first, self._feed_gathered)
            self._feed_history.append(self._feed_gathered_first, len(self._feed_gathered), packet)
            self._feed_gathered = []

    def _feed_follow(self, session: bytes, number: int, count: int, addr: Address, now: float) -> bool:
        """Begin the history with the session."""
        followed = super()._feed_follow(session, number, count, addr, now)
        if followed:
            self._feed_history.session, self._feed_history.first = session, self._feed_window.next
        return followed

    def _feed_serve(self) -> bool:
        self._feed_keep()
        return self._feed_answers.serve(self.poller.time(), None)

    def repair_statistics(self) -> PublisherStatistics:
        """Return what was counted of requests and answers; `statistics` has what was received."""
        counts = self._feed_repairs.counts
        return PublisherStatistics(
            self._feed_messages, 0, 0, 0, 0, 0,
            counts["requests"] + self._feed_answers.refused + self._feed_answers.rejected,
            counts["repairs"], 0, counts["repaired"], self._feed_answers.unanswered, self._feed_history.bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Leave the groups and close all sockets. Idempotent."""
        super().close()
        if self._feed_counter is not None:
            self._feed_counter.close()
