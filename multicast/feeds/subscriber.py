"""`Subscriber`: the messages of a sequenced feed, in order and each once, from one line or several; what is missing is
asked for.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from multicast import batch
from multicast.batch import Address
from multicast.errors import ArgumentError, check_amount, check_number, check_seal
from multicast.listeners import DatagramListener, MulticastListener
from multicast.poller import Poller, Timer, _defaultPoller, report
from multicast.sealed import Seal
from multicast.sockets import Group

from .moldudp64 import END, HEADER, session_bytes, split
from .window import Lost, Window

__all__ = ["Line", "LineStatistics", "Subscriber", "SubscriberStatistics", "as_group"]

_log = logging.getLogger("multicast")

#: How a line is given: text as `Group.parse` reads it, a `Group`, or address and port.
Line = str | Group | tuple[str, int]

# How many sessions that were left are kept in mind, so that late packets of them begin nothing.
_MOST_SESSIONS = 64
# After so many seconds without the session, another one is followed wherever it comes from.
_SILENT = 3.0
# The bytes of messages that are expected in the answer to a request.
_ROOM = 1380


class LineStatistics(NamedTuple):
    """What a subscriber has counted of one line."""

    #: Packets of the session.
    packets: int
    #: Messages in them.
    messages: int
    #: Messages that came by this line first.
    firsts: int
    #: Messages that had come already.
    duplicates: int
    #: Messages whose numbers this line has left out. What of them came by another line, or was repaired, is not lost.
    lost: int
    #: Messages that came by this line after they had been given up.
    late: int
    #: Packets that the kernel has dropped at the socket of this line.
    dropped: int


class SubscriberStatistics(NamedTuple):
    """What a subscriber has counted so far."""

    #: Messages given to `handle_message`.
    messages: int
    #: Their bytes.
    bytes: int
    #: Each line, in the order they were given.
    lines: tuple[LineStatistics, ...]
    #: Requests that were sent.
    requests: int
    #: Messages that came after they had been asked for.
    repaired: int
    #: Messages told to `handle_gap`.
    unrecoverable: int
    #: Packets of other sessions.
    other_sessions: int
    #: Packets that are none of the format, and answers that nobody was asked for.
    malformed: int
    #: Messages that are missing now, and those that wait for them.
    missing: int
    waiting: int
    #: From noticing a gap to its repair, in seconds: the mean, and the longest.
    repair_delay: float
    repair_delay_max: float


def as_group(line: Line) -> Group:
    """Return the group of a line. Raises `GroupError` and `ArgumentError`."""
    if isinstance(line, Group):
        return line
    if isinstance(line, str):
        return Group.parse(line)
    if isinstance(line, tuple) and len(line) == 2:
        return Group.of(*line)
    raise ArgumentError(f"a line is a group as text, a Group, or (ip, port), not {line!r}")


def as_lines(lines: Line | Iterable[Line]) -> list[Group]:
    """Return the groups of one line or several. Raises `GroupError` and `ArgumentError`."""
    if isinstance(lines, str | Group) or (isinstance(lines, tuple) and len(lines) == 2 and isinstance(lines[1], int)):
        groups = [as_group(lines)]
    else:
        groups = [as_group(line) for line in lines]
    if not groups:
        raise ArgumentError("lines is empty; name the group of the feed, or several that carry the same")
    return groups


def _server(server: tuple[str, int], family: socket.AddressFamily) -> tuple[str, int]:
    """Return the address of a repair server as answers have it; a name is looked up. Raises `ArgumentError`."""
    try:
        host, port = server
    except (TypeError, ValueError):
        raise ArgumentError(f"a repair server is (host, port), not {server!r}") from None
    if not isinstance(host, str):
        raise ArgumentError(f"the host of a repair server is a name or an address, not {host!r}")
    check_number("the port of a repair server", port, 1, 65535)
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        version = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise ArgumentError(
            f"the repair server {host!r} has no address of {version}, as the lines have: {error}; name another"
        ) from None
    return str(found[0][4][0]), port


class Ear(MulticastListener):
    """The socket of one line: hands each batch to what owns the line."""

    def __init__(self, owner: Any, place: int, group: Group, options: dict[str, Any]) -> None:
        self._owner = owner
        self._place = place
        options = {"interface": list(group.interfaces) or None, "sources": group.sources or None, **options}
        super().__init__(None, group.address, group.port, 65535, **options)

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> None:
        """Hand a batch on."""
        self._owner._feed_take(self._place, packets, addresses)


class _Desk(DatagramListener):
    """The socket from which a subscriber asks, and at which it gets the answers."""

    def __init__(self, owner: Subscriber, ip: str, seal: Seal | None, poller: Poller) -> None:
        self._owner = owner
        self._sealer = None if seal is None else seal.sealer()
        super().__init__(None, ip, 0, 65535, seal=seal, poller=poller)

    def ask(self, request: bytes, server: tuple[Any, ...]) -> None:
        """Send a request; one that cannot be sent is as good as lost, and comes again."""
        opened = self.socket
        if opened is None:
            return
        try:
            opened.sendto(request if self._sealer is None else self._sealer.seal(request), server)
        except OSError as error:
            _log.debug("a request to %s:%s was not sent: %s", server[0], server[1], error)
            batch.drain_errors(opened)

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> None:
        """Hand answers on."""
        self._owner._feed_take_answers(packets, addresses)


class _LineState:
    """What is counted of a line."""

    __slots__ = ("duplicates", "expected", "firsts", "late", "lost", "messages", "packets")

    def __init__(self) -> None:
        self.packets = self.messages = self.firsts = self.duplicates = self.lost = self.late = 0
        self.expected = 0  # the number it should go on with; 0 before the first packet

    def note(self, number: int, following: int) -> None:
        """Count what a packet with these numbers leaves out."""
        if self.expected and number > self.expected:
            self.lost += number - self.expected
        elif number < self.expected:
            self.lost = max(0, self.lost - (min(following, self.expected) - number))
        self.expected = max(self.expected, following)


class Subscriber(ABC):
    """Receives the messages of a MoldUDP64 feed in order, each once; subclasses implement `handle_message`.

    `lines` is one group, or several that carry the same feed; each is text as `Group.parse` reads it (with its
    interface, as ``239.1.2.3:5000%eth0``), a `Group`, or address and port. The first copy of a message counts,
    whichever line it came by, and what comes by one line is not missing.

    `start` says where to begin: ``live`` with the first message that is heard, ``first`` with the first of the session,
    or a number. `session` is the session to follow, up to 10 characters; None is the first that is heard, and its
    successor when the publisher begins another.

    What is missing is asked for: with `repair` True from where the feed comes, or from the servers in a list of (host,
    port), one after the other, whose names are looked up once, by the constructor; with False not at all. A gap is
    asked for after `patience` seconds, which is time for the other line and for packets that overtake each other, and
    given up after `give_up` seconds without an answer. Up to `window` messages, and 64 MiB, wait for missing ones. With
    `ordered` False messages are handed on as they come, each once.

    `interface`, `sources`, `exclude`, `rcvbuf`, `silence` and `seal` are those of `MulticastListener`, for all lines.
    It is registered with `poller`, by default the default poller.

    Every message is handed on in order, or its number is told to `handle_gap`. What a handler raises leaves `poll`;
    nothing is lost by that.

    Raises `GroupError`, `ArgumentError`, `InterfaceError`, and `OSError` with advice.
    """

    def __init__(
        self,
        lines: Line | Iterable[Line],
        *,
        start: str | int = "live",
        session: str | bytes | None = None,
        repair: bool | Sequence[tuple[str, int]] = True,
        patience: float = 0.02,
        give_up: float = 2.0,
        window: int = 65536,
        ordered: bool = True,
        seal: Seal | None = None,
        poller: Poller | None = None,
        **options: Any,
    ) -> None:
        groups = as_lines(lines)
        if start not in ("live", "first") and (isinstance(start, bool) or not isinstance(start, int) or start < 1):
            raise ArgumentError(f"start is 'live', 'first' or the number of a message, 1 or more; not {start!r}")
        check_amount("patience", patience, "seconds")
        check_amount("give_up", give_up, "seconds", zero=False)
        check_number("window", window, of="messages")
        check_seal(seal)
        #: The poller that drives it.
        self.poller = _defaultPoller if poller is None else poller
        #: The groups of the lines.
        self.lines = tuple(groups)
        self._feed_start = start
        self._feed_wanted_session = None if session is None else session_bytes(session)
        self._feed_asks = bool(repair)
        family = socket.AF_INET6 if ":" in groups[0].address else socket.AF_INET
        if repair and any((":" in group.address) != (family == socket.AF_INET6) for group in groups):
            raise ArgumentError(
                "some lines are of IPv4 and some of IPv6, and one socket asks for what is missing; give lines of one"
                " family, or do without repair"
            )
        self._feed_servers: list[tuple[str, int]] = []
        if not isinstance(repair, bool):
            self._feed_servers = list(dict.fromkeys(_server(one, family) for one in repair))
        self._feed_window_options: dict[str, Any] = {
            "patience": patience, "give_up": give_up if repair else patience, "limit": window, "ordered": ordered,
            "asks": self._feed_asks,
        }  # fmt: skip
        self._feed_ordered = ordered
        self._feed_window = Window(**self._feed_window_options)
        self._feed_session: bytes | None = None
        self._feed_left: OrderedDict[bytes, None] = OrderedDict()  # sessions that were followed before
        self._feed_heard_at = 0.0
        self._feed_source: tuple[Any, ...] | None = None  # where the session comes from
        self._feed_ended = self._feed_end_told = False
        self._feed_next_server = 0
        # The oldest message that each server has, of those servers that said so.
        self._feed_oldest: dict[tuple[Any, ...], int] = {}
        self._feed_asked: OrderedDict[tuple[Any, ...], None] = OrderedDict()  # the servers that may answer
        self._feed_states = [_LineState() for _ in groups]
        self._feed_messages = self._feed_bytes = self._feed_requests = 0
        self._feed_other_sessions = self._feed_malformed = 0
        self._feed_repaired = self._feed_unrecoverable = 0
        self._feed_delay_sum = self._feed_delay_max = 0.0
        # Messages that are to be handed on next, and batches that came while a handler was at work or had raised.
        self._feed_pending: deque[tuple[int, bytes, Address, int | None]] = deque()
        self._feed_later: deque[tuple[int | None, Sequence[bytes], Sequence[Address]]] = deque()
        self._feed_busy = False
        self._feed_timer: Timer | None = None
        self._feed_timer_at = 0.0
        self._feed_closed = False
        self._feed_desk: _Desk | None = None
        self._feed_ears: list[Ear] = []
        try:
            if self._feed_asks:
                ip = "::" if ":" in groups[0].address else "0.0.0.0"  # noqa: S104 -- answers come from anywhere
                self._feed_desk = _Desk(self, ip, seal, self.poller)
            for place, group in enumerate(groups):
                self._feed_ears.append(Ear(self, place, group, {"seal": seal, "poller": self.poller, **options}))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        lines = " and ".join(map(str, self.lines))
        return f"<{type(self).__name__} of {lines}{', closed' if self._feed_closed else ''}>"

    # -- for subclasses --------------------------------------------------------------------------------------------

    @abstractmethod
    def handle_message(self, message: bytes, number: int, addr: Address) -> object:
        """Called with each message, in order and once; a true result closes this subscriber.

        `addr` is where the packet came from that had it.
        """

    def handle_gap(self, first: int, count: int) -> None:
        """Called in the place of `count` messages from number `first` on that will not come any more; logs it.

        `gap_cause` says why: ``unanswered`` (no answer for `give_up` seconds), ``history`` (the publisher, or each of
        the repair servers, has them no more), ``window`` (more waited than there is room for), ``missing`` (without
        `repair`), ``session`` (another session has begun).
        """
        _log.warning("%r: %d messages from number %d on are lost: %s", self, count, first, self.gap_cause)

    def handle_session(self, old: bytes, new: bytes) -> None:  # noqa: B027 -- subclasses may leave it out
        """Called when another session began; its messages are numbered from 1 anew."""

    def handle_end(self) -> None:  # noqa: B027 -- subclasses may leave it out
        """Called when the session is complete: its end was told, and all its messages were handed on or are lost."""

    #: Why the messages told to `handle_gap` will not come.
    gap_cause = ""
    #: The place in `lines` by which the message given to `handle_message` came; None for an answer to a request.
    line: int | None = None

    # -- what comes ------------------------------------------------------------------------------------------------

    @property
    def session(self) -> bytes | None:
        """The session that is followed, 10 bytes; None before the first packet."""
        return self._feed_session

    @property
    def group(self) -> Group:
        """The group of the first line."""
        return self.lines[0]

    @property
    def next(self) -> int:
        """The number of the next message."""
        return self._feed_window.next

    def _feed_take(self, place: int, packets: list[bytes], addresses: list[Address]) -> None:
        """Take a batch of packets of a line."""
        self._feed_later.append((place, packets, addresses))
        self._feed_go_on()

    def _feed_process(self, place: int, packets: Sequence[bytes], addresses: Sequence[Address]) -> None:
        """Take a batch of packets of a line; what a handler raises leaves the rest for the next time."""
        state = self._feed_states[place]
        now = self.poller.time()
        followed, window = self._feed_session, self._feed_window
        heard: Address | None = None  # where the last packet of the session came from
        handle, unpack = self.handle_message, HEADER.unpack_from
        self.line = place
        pairs = zip(packets, addresses, strict=True)
        number, count = 0, 0
        messages: Sequence[bytes] = ()
        rest: Iterator[bytes] = iter(())
        try:
            for data, addr in pairs:
                if len(data) < 20:
                    self._feed_malformed += 1
                    continue
                session, number, count = unpack(data)
                if session != followed:
                    if heard is not None:
                        self._feed_source, self._feed_heard_at = heard, now
                    if not self._feed_follow(session, number, count, addr, now):
                        if self._feed_closed:
                            return
                        continue
                    followed, window = session, self._feed_window
                heard = addr
                state.packets += 1
                if count == 0 or count == END:
                    state.note(number, number)
                    window.heard(number, now)
                    self._feed_ended = self._feed_ended or count == END
                    continue
                if count == 1:
                    end = 22 + (data[20] << 8 | data[21]) if len(data) > 21 else 1 << 16
                    if end > len(data):
                        self._feed_malformed += 1
                        continue
                    messages = (data[22:end],)
                else:
                    found = split(data, count)
                    if found is None:
                        self._feed_malformed += 1
                        continue
                    messages = found
                state.messages += count
                if number == state.expected:
                    state.expected = number + count
                else:
                    state.note(number, number + count)
                if number != window.next or not window.clear:
                    self._feed_put(number, messages, addr, place, now)
                    self.line = place
                    continue
                # Nothing is missing and nothing waits: the way that nearly all packets go.
                state.firsts += count
                window.next = window.known = number + count
                self._feed_messages += count
                self._feed_bytes += len(data) - 20 - 2 * count
                if count == 1:
                    if handle(messages[0], number, addr) or self._feed_closed:
                        self.close()
                        return
                    continue
                rest = iter(messages)
                for message in rest:
                    if handle(message, number, addr) or self._feed_closed:
                        self.close()
                        self._feed_uncount(list(rest))
                        return
                    number += 1
            if heard is not None:
                self._feed_source, self._feed_heard_at = heard, now
            self._feed_advance(now)
        except BaseException:
            left = list(rest)
            if left:
                self._feed_uncount(left)
                self._feed_pending.extend((number + at, message, addr, place) for at, message in enumerate(left, 1))
            later = list(pairs)
            if later:
                self._feed_later.appendleft((place, [data for data, _ in later], [one for _, one in later]))
            raise

    def _feed_uncount(self, left: Sequence[bytes]) -> None:
        """Take back the count of messages that were not handed on."""
        self._feed_messages -= len(left)
        self._feed_bytes -= sum(map(len, left))

    def _feed_put(self, number: int, messages: Sequence[bytes], addr: Address, place: int | None, now: float) -> None:
        """Take messages that are not simply the next ones."""
        window = self._feed_window
        lost = 0
        if number < window.given_up_before:
            lost = sum(map(window.given_up, range(number, number + len(messages))))
        fresh: list[tuple[int, bytes, Address, int | None]] = []
        if not self._feed_ordered:
            fresh = [(one, data, addr, place) for one, data in enumerate(messages, number) if not window.has(one)]
        new = window.add(number, [(message, addr, place) for message in messages], now, repair=place is None)
        if new:  # without room all are refused, and asked for later
            self._feed_pending.extend(fresh)
        if place is not None:
            state = self._feed_states[place]
            state.firsts += new
            state.duplicates += len(messages) - new - lost
            state.late += lost
        if self._feed_ordered and window.next == number and new:
            self._feed_drain()

    def _feed_take_answers(self, packets: list[bytes], addresses: list[Address]) -> None:
        """Take answers to requests."""
        self._feed_later.append((None, packets, addresses))
        self._feed_go_on()

    def _feed_process_answers(self, packets: Sequence[bytes], addresses: Sequence[Address]) -> None:
        now = self.poller.time()
        for data, addr in zip(packets, addresses, strict=True):
            server = tuple(addr[:2])
            if len(data) < 20 or server not in self._feed_asked:
                self._feed_malformed += 1
                continue
            session, number, count = HEADER.unpack_from(data)
            if session != self._feed_session:
                self._feed_other_sessions += 1
            elif count == 0:
                # The server has nothing before this number.
                self._feed_oldest[server] = number
                if len(self._feed_oldest) >= len(self._feed_servers):
                    self._feed_window.gone(min(self._feed_oldest.values()) if self._feed_servers else number)
            elif count != END:
                messages = split(data, count)
                if messages is None:
                    self._feed_malformed += 1
                    continue
                if not self._feed_servers:  # another server may have missed what its publisher has
                    self._feed_window.skipped(number)
                self._feed_put(number, messages, addr, None, now)
        self._feed_advance(now)

    def _feed_follow(self, session: bytes, number: int, count: int, addr: Address, now: float) -> bool:
        """Return whether a packet of a session that was not followed until now is to be taken."""
        if self._feed_wanted_session is not None and session != self._feed_wanted_session:
            self._feed_other_sessions += 1
            return False
        if self._feed_session is None:
            self._feed_session = session
            following = number + (0 if count == END else count)
            if self._feed_start == "live":
                self._feed_window.start(number, number, now)
            elif self._feed_start == "first":
                self._feed_window.start(1, number, now)
            else:
                first = int(self._feed_start)
                self._feed_window.start(first, max(first, number), now)
            for state in self._feed_states:
                state.expected = 0
            _log.debug("%r: session %s, up to %d", self, session, following)
            return True
        source = self._feed_source
        silent = now - self._feed_heard_at > _SILENT
        same_host = source is not None and source[0] == addr[0]
        if session in self._feed_left or not (self._feed_ended or silent or same_host):
            self._feed_other_sessions += 1
            return False
        # The publisher began anew, and so do the numbers.
        old = self._feed_session
        self._feed_left[old] = None
        if len(self._feed_left) > _MOST_SESSIONS:
            self._feed_left.popitem(last=False)
        self._feed_window.end()
        self._feed_drain()
        if self._feed_closed:
            return False
        self._feed_keep_counts()
        self._feed_window = Window(**self._feed_window_options)
        self._feed_window.start(1, number, now)
        for state in self._feed_states:
            state.expected = 0
        self._feed_session, self._feed_ended, self._feed_end_told = session, False, False
        self._feed_oldest.clear()
        self.handle_session(old, session)
        return not self._feed_closed

    def _feed_keep_counts(self) -> None:
        window = self._feed_window
        self._feed_repaired += window.repaired
        self._feed_unrecoverable += window.unrecoverable
        self._feed_delay_sum += window.delay_sum
        self._feed_delay_max = max(self._feed_delay_max, window.delay_max)

    # -- what goes on ----------------------------------------------------------------------------------------------

    def _feed_hand(self, number: int, message: bytes, addr: Address, place: int | None) -> None:
        """Give a message to the handler."""
        self._feed_messages += 1
        self._feed_bytes += len(message)
        self.line = place
        if self.handle_message(message, number, addr):
            self.close()

    def _feed_drain(self) -> None:
        """Hand on what can be: what was left by a handler that raised, then what is in order now."""
        pending = self._feed_pending
        while pending and not self._feed_closed:
            self._feed_hand(*pending.popleft())
        if self._feed_closed:
            return
        for one in self._feed_window.ready():
            if isinstance(one, Lost):
                self.gap_cause = one.cause
                self.handle_gap(one.first, one.amount)
            elif self._feed_ordered:
                number, (message, addr, place) = one
                self._feed_hand(number, message, addr, place)
            if self._feed_closed:
                return

    def _feed_advance(self, now: float) -> None:
        """Hand on what can be, ask for what is due, and see when to go on."""
        window = self._feed_window
        if window.clear and not self._feed_pending and not self._feed_ended and self._feed_timer is None:
            return
        self._feed_drain()
        if self._feed_closed:
            return
        if not window.clear:
            window.expire(now)
            self._feed_drain()
            if self._feed_closed:
                return
            for first, count in window.due(now, self._feed_chunk()):
                self._feed_ask(first, count)
        if self._feed_ended and not self._feed_end_told and window.clear:
            self._feed_end_told = True
            self.handle_end()
            if self._feed_closed:
                return
        self._feed_set_timer(window.next_due())

    def _feed_go_on(self) -> None:
        """Do what there is to do, unless a handler that polls does it already further out."""
        if self._feed_busy:
            return
        self._feed_busy = True
        later = self._feed_later
        try:
            while later and not self._feed_closed:
                place, packets, addresses = later.popleft()
                if self._feed_pending:
                    self._feed_drain()
                if place is None:
                    self._feed_process_answers(packets, addresses)
                else:
                    self._feed_process(place, packets, addresses)
        except BaseException:
            if not self._feed_closed:
                self.poller.call_soon(self._feed_on_time)
            raise
        finally:
            self._feed_busy = False

    def _feed_set_timer(self, due: float) -> None:
        if self._feed_timer is not None:
            if due == self._feed_timer_at:
                return
            self._feed_timer.cancel()
            self._feed_timer = None
        if due < float("inf"):
            self._feed_timer_at = due
            self._feed_timer = self.poller.call_at(due, self._feed_on_time)

    def _feed_on_time(self) -> None:
        if self._feed_timer is not None:
            self._feed_timer.cancel()
            self._feed_timer = None
        if self._feed_closed or self._feed_busy:
            return
        try:
            self._feed_go_on()
            if not self._feed_closed:
                self._feed_busy = True
                try:
                    self._feed_advance(self.poller.time())
                finally:
                    self._feed_busy = False
        except Exception as error:
            if not self._feed_closed and self._feed_timer is None:
                self.poller.call_soon(self._feed_on_time)
            report(self, error)

    def _feed_chunk(self) -> int:
        """Return how many messages are expected in the answer to one request."""
        mean = self._feed_bytes / self._feed_messages if self._feed_messages else 64
        return max(1, int(_ROOM / (mean + 2)))

    def _feed_ask(self, first: int, count: int) -> None:
        if self._feed_desk is None or self._feed_session is None:
            return
        if self._feed_servers:
            server = self._feed_servers[self._feed_next_server % len(self._feed_servers)]
            self._feed_next_server += len(self._feed_servers) > 1
        elif self._feed_source is not None:
            server = tuple(self._feed_source)
        else:
            return
        key = tuple(server[:2])
        if key not in self._feed_asked:
            self._feed_asked[key] = None
            if len(self._feed_asked) > _MOST_SESSIONS:
                self._feed_asked.popitem(last=False)
        self._feed_requests += 1
        self._feed_desk.ask(HEADER.pack(self._feed_session, first, min(count, 0xFFFE)), server)

    # -- the end ---------------------------------------------------------------------------------------------------

    def statistics(self) -> SubscriberStatistics:
        """Return what was counted so far; it stays readable after `close`."""
        window = self._feed_window
        repaired = self._feed_repaired + window.repaired
        delays = self._feed_delay_sum + window.delay_sum
        return SubscriberStatistics(
            self._feed_messages,
            self._feed_bytes,
            tuple(
                LineStatistics(
                    state.packets, state.messages, state.firsts, state.duplicates, state.lost, state.late,
                    ear.statistics().dropped,
                )
                for state, ear in zip(self._feed_states, self._feed_ears, strict=False)
            ),
            self._feed_requests,
            repaired,
            self._feed_unrecoverable + window.unrecoverable,
            self._feed_other_sessions,
            self._feed_malformed,
            window.missing,
            window.waiting,
            delays / repaired if repaired else float("nan"),
            max(self._feed_delay_max, window.delay_max),
        )  # fmt: skip

    @property
    def rejected(self) -> dict[str, int] | None:
        """How many packets did not open, by cause; None without `seal`."""
        total: dict[str, int] | None = None
        for one in (*self._feed_ears, self._feed_desk):
            rejected = None if one is None else one.rejected
            if rejected is not None:
                total = {cause: count + (total or {}).get(cause, 0) for cause, count in rejected._asdict().items()}
        return total

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._feed_closed

    def close(self) -> None:
        """Leave the groups and close the sockets; nothing is handed on from then on. Idempotent."""
        self._feed_closed = True
        if self._feed_timer is not None:
            self._feed_timer.cancel()
            self._feed_timer = None
        self._feed_pending.clear()
        self._feed_later.clear()
        for one in (*self._feed_ears, self._feed_desk):
            if one is not None:
                one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
