"""`Publisher`: a sequenced feed of messages to a group, with a history from which it answers requests."""

from __future__ import annotations

import errno
import ipaddress
import math
import random
import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from multicast import batch
from multicast.batch import Address
from multicast.discovery.rules import answerable
from multicast.errors import ArgumentError, PacketSizeError, check_amount, check_number
from multicast.interfaces import route
from multicast.sealed import OVERHEAD, Opener, Seal, Sealer
from multicast.senders import Multicaster
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT

from .history import History
from .moldudp64 import END, HEADER, pack, session_bytes
from .repairs import Repairs

__all__ = ["Access", "Publisher", "PublisherStatistics"]

_HISTORY = 64 << 20
_FILL = 1400
# What several ask for within this time goes to the group, in seconds.
_LINGER = 0.01
# For how many seconds the end of the session is told, in place of heartbeats, and after the last request; how often;
# and for how long at the most.
_END_FOR, _END_EVERY, _END_MOST = 3.0, 0.25, 60.0
# How long the answer to "is this address on a connected network?" holds, in seconds, and for how many addresses.
_ROUTE_AGE, _MOST_ROUTES = 10.0, 1024
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def new_session() -> bytes:
    """Return a session that no other has: the time in minutes, in base 36, and five random characters."""
    minutes, text = int(time.time()) // 60, ""
    for _ in range(5):
        minutes, digit = divmod(minutes, 36)
        text = _DIGITS[digit] + text
    return (text + "".join(random.SystemRandom().choice(_DIGITS) for _ in range(5))).encode()


class PublisherStatistics(NamedTuple):
    """What a publisher, or a repair server, has counted so far."""

    #: Messages that were given to it, or that it has heard.
    messages: int
    #: Packets handed to the kernel: messages, heartbeats and ends; not repairs.
    packets: int
    #: Their bytes.
    bytes: int
    #: Packets the kernel refused, each reported as an error.
    refused: int
    #: How often the interface's queue was full and sending had to be tried again.
    full: int
    #: Heartbeats and ends of the session.
    heartbeats: int
    #: Requests that were read.
    requests: int
    #: Packets sent as answers, how many of them to the group, and the messages in them.
    repairs: int
    group_repairs: int
    repaired: int
    #: Requests that got no answer, by cause.
    unanswered: dict[str, int]
    #: The bytes of the history.
    history: int


class Access:
    """Which addresses are answered.

    ``connected``: those on networks this host is connected to, as its routes say; ``all``; ``group``: nobody, repairs
    go to the group alone; ``none``; or networks, as text or `ipaddress` has them.
    """

    def __init__(self, answer: str | Iterable[Any]) -> None:
        self.group_only = answer == "group"
        self._networks: list[Any] | None = None
        self._rule = answer if isinstance(answer, str) else ""
        if isinstance(answer, str):
            if answer not in ("connected", "all", "group", "none"):
                raise ArgumentError(
                    f"answer is 'connected', 'all', 'group', 'none' or a list of networks, not {answer!r}"
                )
        else:
            try:
                self._networks = [ipaddress.ip_network(one) for one in answer]
            except ValueError as error:
                raise ArgumentError(f"answer: {error}") from None
        self._known: OrderedDict[str, tuple[bool, float]] = OrderedDict()

    def allows(self, addr: Address, now: float) -> bool:
        """Whether requests from there are answered."""
        host = addr[0]
        if self._rule == "none" or not answerable(host.partition("%")[0], addr[1]):
            return False
        if self._networks is not None:
            address = ipaddress.ip_address(host.partition("%")[0])
            return any(address in network for network in self._networks)
        if self._rule != "connected":
            return True
        if "%" in host or host.startswith("127."):
            return True
        known = self._known.get(host)
        if known is None or now - known[1] > _ROUTE_AGE:
            found = route(host)
            known = self._known[host] = (found is not None and found.gateway is None, now)
            if len(self._known) > _MOST_ROUTES:
                self._known.popitem(last=False)
        return known[0]


class Desk:
    """Reads requests at a socket and sends the answers from there."""

    def __init__(
        self, repairs: Repairs, access: Access, opened: socket.socket, sealer: Sealer | None, opener: Opener | None
    ) -> None:
        self.repairs = repairs
        self.access = access
        self._socket = opened
        self._reader = batch.Reader(opened, 2048)
        self._sealer = sealer
        self._opener = opener
        #: Requests from addresses that are not answered, requests that did not open, and answers that did not go.
        self.refused = self.rejected = self.failed = 0

    def serve(self, now: float, group: tuple[Any, ...] | None) -> bool:
        """Read one batch of requests and answer them; return whether there may be more.

        `group` is where repairs go that several have asked for; None where they cannot.
        """
        try:
            packets, addresses = batch.receive(self._reader)
        except OSError:
            # A requester that is gone (ECONNREFUSED): an error of its answer, and no matter of the feed.
            batch.drain_errors(self._reader.socket)
            return False
        if not packets:
            batch.drain_errors(self._reader.socket)
        more = len(packets) >= batch.LIMIT
        requests: list[bytes | None] = [*packets] if self._opener is None else self._opener.open_all(packets)
        for data, addr in zip(requests, addresses, strict=True):
            if data is None:
                self.rejected += 1
            elif not self.access.allows(addr, now):
                self.refused += 1
            else:
                answer = self.repairs.request(data, addr[:2], now, group_only=self.access.group_only)
                if answer is not None:
                    packet = answer.packet if self._sealer is None else self._sealer.seal(answer.packet)
                    to = group if answer.to_group and group is not None else tuple(addr)
                    self._send(packet, to)
        return more

    def _send(self, packet: bytes, to: tuple[Any, ...]) -> None:
        try:
            try:
                self._socket.sendto(packet, to)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    raise
                # It may be the error of an earlier answer; this one was not sent.
                batch.drain_errors(self._reader.socket)
                self._socket.sendto(packet, to)
        except OSError:
            self.failed += 1  # it is asked for again

    @property
    def unanswered(self) -> dict[str, int]:
        """Requests that got no answer, by cause."""
        counts = self.repairs.counts
        return {
            **{one: counts[one] for one in ("malformed", "other_session", "ahead", "limited", "suppressed", "gone")},
            "not_connected": self.refused,
            "rejected": self.rejected,
            "failed": self.failed,
        }


class _Rate:
    """The bytes that are sent in a second, of the last second."""

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])

    def note(self, total: int, now: float) -> float:
        """Take note that so many bytes were sent until now; return the rate."""
        marks = self._marks
        if now - marks[-1][0] >= 0.05:
            marks.append((now, total))
        while len(marks) > 1 and now - marks[1][0] >= 1.0:
            marks.popleft()
        since, before = marks[0]
        return (total - before) / max(0.1, now - since)


class Publisher(Multicaster):
    """Publishes messages to a group as a MoldUDP64 feed, and repairs what receivers have missed.

    Subclasses yield messages, bytes-like or text, and None where there is nothing for now; `publish` adds a message
    from outside. The session ends with the iterable; a class without `__iter__` publishes until `end` is called. Then
    the end is told for three seconds, or as long as requests come, a minute at most, and the publisher closes itself.

    Messages that are there together share packets of up to `fill` bytes; a message waits for others at most `delay`
    seconds. `session` names the session, up to 10 characters; left out, it is made of the time and chance, so a
    publisher that starts again has another. When nothing was sent for `heartbeat` seconds, a packet without messages
    tells the number of the next one.

    The last `history` bytes are kept, and requests are answered on the socket that the feed comes from, so subscribers
    need no configuration. What one of them misses goes to it alone; what several ask for within `linger` seconds goes
    to the group, once. Repairs take at most `repair_share` of the rate of the feed, or of a mebibyte per second where
    the feed sends less, in equal parts for those that ask. `answer` says who is answered: ``connected``,
    hosts on networks that this host is connected to, as a request with a forged source would send an answer to a third
    host; ``all``; a list of networks; ``group``, to repair to the group alone; or ``none``.

    The other arguments are those of `Multicaster`; `rate` and `interval` pace packets.
    """

    _also_watched = select.EPOLLIN

    def __init__(
        self,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        ttl: int = 1,
        *,
        session: str | bytes | None = None,
        history: int = _HISTORY,
        heartbeat: float = 1.0,
        linger: float = _LINGER,
        fill: int = _FILL,
        delay: float = 0.0,
        repair_share: float = 0.5,
        answer: str | Iterable[Any] = "connected",
        seal: Seal | None = None,
        **options: Any,
    ) -> None:
        check_number("history", history, 0, of="bytes")
        check_amount("heartbeat", heartbeat, "seconds", zero=False)
        check_amount("linger", linger, "seconds")
        check_number("fill", fill, HEADER.size + 2, 65507, of="bytes")
        check_amount("delay", delay, "seconds")
        check_amount("repair_share", repair_share, "of the rate of the feed")
        access = Access(answer)
        self._feed_session = new_session() if session is None else session_bytes(session)
        super().__init__(ip, port, ttl, seal=seal, **options)
        self._feed_longest = self.group.longest - HEADER.size - 2 - (0 if seal is None else OVERHEAD)
        self._feed_fill = min(fill, self._feed_longest + HEADER.size + 2)
        self._feed_delay = delay
        self._feed_heartbeat = heartbeat
        self._feed_history = History(self._feed_session, history)
        self._feed_rate_of_feed = _Rate(self.poller.time())
        repairs = Repairs(
            self._feed_history, room=self._feed_fill, linger=linger, share=repair_share,
            sending=lambda now: self._feed_rate_of_feed.note(self._bytes_sent, now),
        )  # fmt: skip
        assert self.socket is not None  # noqa: S101 -- it was opened above
        sealer, opener = (None, None) if seal is None else (seal.sealer(), seal.opener())
        self._feed_desk = Desk(repairs, access, self.socket, sealer, opener)
        self._feed_given: deque[bytes] = deque()  # by `publish`, and not sent yet
        self._feed_over = False  # no more messages from outside
        self._feed_published = 0  # the number of messages in packets
        self._feed_heartbeats = 0
        # When the last packet was made, and the last request answered.
        self._feed_last_at = self._feed_asked_at = self.poller.time()

    # -- messages --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Yield the messages; a class without an `__iter__` gets them by `publish` alone."""
        while not self._feed_over:
            yield None

    def publish(self, message: object) -> None:
        """Add a message, bytes-like or text; it is sent in the next poll.

        Raises `PacketTypeError`, `PacketSizeError`, and `ArgumentError` after the end.
        """
        if self._feed_over or self.closed:
            raise ArgumentError("the session of this publisher has ended; make another publisher")
        self._feed_given.append(self._feed_message(message))
        self.resume()

    def end(self) -> None:
        """End the session: no more messages are published. Idempotent."""
        self._feed_over = True
        self.resume()

    def resume(self) -> None:
        """Ask the iterable for messages in the next poll, and not after its rest; a paced feed keeps its pace.

        For an iterable that has yielded None and has messages now.
        """
        if self._rest_timer is not None and not (self._is_paced or self._taken_packets):
            self._rest_until = -math.inf
            self._end_rest_timer()
            self._watch(True)

    def _feed_message(self, message: object) -> bytes:
        if type(message) is bytes and len(message) <= self._feed_longest:
            return message
        data = batch.encode(message, 1 << 30)
        if len(data) > self._feed_longest:
            raise PacketSizeError(
                f"a message has {self._feed_longest} bytes at most, not {len(data)}; split it into several"
            )
        return data

    def _iterate_packets(self) -> Iterator[Any]:
        """Yield packets: those of the session, then those that tell its end."""
        given = self._feed_given
        fill, delay, longest = self._feed_fill, self._feed_delay, self._feed_longest
        # A class without an iterable has what `publish` gives it, and is told when there is something.
        source = None if type(self).__iter__ is Publisher.__iter__ else iter(self)
        over = False
        failure: Exception | None = None
        carried: bytes | None = None  # the message that did not fit in the last packet
        messages: list[bytes] = []
        size = HEADER.size
        since = 0.0
        while True:
            nothing = True
            if carried is not None:
                messages.append(carried)
                size += 2 + len(carried)
                carried = None
            while given and size < fill:
                message = given.popleft()
                size += 2 + len(message)
                if size > fill and messages:
                    carried = message
                    break
                messages.append(message)
            if source is not None and not self._feed_over and carried is None and size < fill:
                try:
                    for message in source:
                        if type(message) is not bytes:
                            if message is None:
                                break
                            message = self._feed_message(message)
                        size += 2 + len(message)
                        if size >= fill:
                            if len(message) > longest:
                                self._feed_message(message)  # raises
                            nothing = False
                            if size > fill and messages:
                                carried = message
                            else:
                                messages.append(message)
                            break
                        messages.append(message)
                    else:
                        source, over = None, True
                except Exception as error:
                    # What came before it is sent first.
                    failure, source, over = error, None, True
            over = over or (self._feed_over and not given)
            if messages:
                if nothing and carried is None and delay and not over:
                    now = self.poller.time()
                    since = since or now
                    if (left := since + delay - now) > 0:
                        self._NOTHING = left
                        yield None
                        continue
                yield self._feed_packed(messages)
                messages, size, since = [], HEADER.size, 0.0
                continue
            if over and not given:
                break
            now = self.poller.time()
            if now - self._feed_last_at >= self._feed_heartbeat - 1e-9:
                yield self._feed_beat(0)
                continue
            rest = self._feed_last_at + self._feed_heartbeat - now
            self._NOTHING = rest if source is None else min(rest, Multicaster._NOTHING)
            yield None
        self._feed_over = True
        if failure is not None:
            raise failure
        yield from self._feed_end_of_session()

    def _feed_packed(self, messages: list[bytes]) -> bytes:
        number = self._feed_published + 1
        packet = pack(self._feed_session, number, messages)
        self._feed_published += len(messages)
        self._feed_history.append(number, len(messages), packet)
        self._feed_last_at = self.poller.time()
        return packet

    def _feed_beat(self, count: int) -> bytes:
        self._feed_heartbeats += 1
        self._feed_last_at = self.poller.time()
        return HEADER.pack(self._feed_session, self._feed_published + 1, count)

    def _feed_end_of_session(self) -> Iterator[Any]:
        began = self._feed_asked_at = self.poller.time()
        while True:
            yield self._feed_beat(END)
            now = self.poller.time()
            if now - self._feed_asked_at >= _END_FOR or now - began >= _END_MOST:
                return
            self._NOTHING = min(_END_EVERY, self._feed_heartbeat)
            yield None

    def _hand_over(self, taken: list[bytes]) -> int:
        try:
            return super()._hand_over(taken)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                raise
            # It may be the error of an answer that could not be delivered: the requester has closed its socket, or its
            # host is gone. Such an error is reported by the next send, whatever that sends, and then is over.
            batch.drain_errors(self._socket_writer.socket)
            return super()._hand_over(taken)

    # -- requests --------------------------------------------------------------------------------------------------

    def handle_read(self) -> bool:
        """Read and answer requests; return whether there may be more. Called by the poller."""
        before = self._feed_desk.repairs.counts["repairs"]
        now = self.poller.time()
        more = self._feed_desk.serve(now, self._socket_writer.sockaddr)
        if self._feed_desk.repairs.counts["repairs"] != before:
            self._feed_asked_at = now
        return more

    @property
    def session(self) -> bytes:
        """The session, 10 bytes."""
        return self._feed_session

    @property
    def next(self) -> int:
        """The number of the next message that is sent."""
        return self._feed_published + 1

    def statistics(self) -> PublisherStatistics:  # type: ignore[override]
        """Return what was counted so far."""
        counts = self._feed_desk.repairs.counts
        return PublisherStatistics(
            self._feed_published + len(self._feed_given),
            self._packets_sent,
            self._bytes_sent,
            self._packets_refused,
            self._times_full,
            self._feed_heartbeats,
            counts["requests"] + self._feed_desk.refused + self._feed_desk.rejected,
            counts["repairs"],
            counts["group_repairs"],
            counts["repaired"],
            self._feed_desk.unanswered,
            self._feed_history.bytes,
        )
