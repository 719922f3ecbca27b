"""Asking a group: `request` waits for the answers, a `Requester` is told of them, a `Responder` gives them.

Facts that decide the shape of this file:

* Replies come from single hosts, so a request is sent from an unconnected socket on a port of its own. A socket that
  were connected to the group would hear only what the group itself sends, which is nothing. Any packet that arrives
  at that port is a reply to what was sent from it: the payload needs no header, and programs that know nothing of
  this one can answer.
* A multicast packet leaves by one interface. To ask everybody, the same packet is sent by each. It goes out from one
  socket, so that hosts that hear it twice can tell that it is the same one, and so can we of their replies.
* A reply comes from the address of the interface that the request came in by (packet info in ip(7), RFC 3542), since
  firewalls and address translation expect it from there. It leaves by that interface too, and by default does not
  cross a router.
* The source of a UDP packet is whatever its sender wrote there, so a responder works for whoever forges it. What can
  be had from ours that way is bounded: no reply to an address that is not a single host's or to a port that services
  use, one reply for each request, no longer than fits in any packet, so many a second for each address and so many
  for all of them together. The tables that this takes do not grow with the number of addresses somebody invents.
* Nothing is ever read from the socket that replies are sent from, so no reply causes another.

What has a state over time (`Exchange`, `Allowance`, `Copies`) is written without sockets and clocks.
"""

from __future__ import annotations

import ipaddress
import logging
import select
import socket
import time
from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from . import batch, sockets
from .batch import Address
from .errors import ArgumentError, NoReply, PacketSizeError
from .filters import Filter
from .interfaces import interfaces
from .listeners import DatagramListener, MulticastListener
from .poller import Poller, Timer
from .senders import destination
from .sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterfaces

__all__ = ["Replies", "Reply", "ReplyStatistics", "Requester", "Responder", "request"]

_log = logging.getLogger("multicast")

# How many requests are remembered so that late replies find theirs, and how many responders to them.
_REMEMBERED = 1024
# Services have the ports below; many of them answer whatever they get, so a reply there could go round for ever.
_FIRST_PORT = 1024
# Where ports that the kernel chooses begin (ip_local_port_range in ip(7)). A port below was chosen by people, and
# several hosts may send from it.
_FIRST_CHOSEN_BY_KERNEL = 32768
# Copies of one request are sent one after the other; only the wire and its queues are between them, in seconds.
_COPIES_WITHIN = 0.1
# Any IPv6 path carries packets of 1280 bytes (RFC 8200 section 5), of which the headers of IPv6 and UDP take 48.
_UNFRAGMENTED = 1232
# A reply is read whole, however long.
_LONGEST = 65535
# How many batches are read at the end of the time, of replies that came before it and were not read yet. More than
# the default receive buffer holds (socket(7)), so that only those who flood us are cut off.
_LAST_BATCHES = 64


# -- without I/O ---------------------------------------------------------------------------------------------------


class Exchange:
    """Requests that were sent, and which of them a reply answers. Times are seconds of any one clock; no I/O.

    `limit` is how many replies are wanted, None for any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ArgumentError(f"limit must be a number, 1 or more, not {limit!r}")
        self.limit = limit
        #: How many requests were sent, replies counted, copies of replies and unexpected packets left out.
        self.asked = self.replies = self.duplicates = self.strays = 0
        self._sent: dict[int, float] = {}
        self._ways: dict[tuple[int, Hashable], Hashable] = {}

    @property
    def done(self) -> bool:
        """Whether as many replies as wanted have come."""
        return self.limit is not None and self.replies >= self.limit

    def ask(self, now: float) -> int:
        """Take note that a request is sent; return its number, the first being 1."""
        self.asked += 1
        self._sent[self.asked] = now
        self._sent.pop(self.asked - _REMEMBERED, None)
        return self.asked

    def answer(self, number: int | None, now: float, responder: Hashable, way: Hashable) -> float | None:
        """Take a reply to the request with that number; return how long it took, None when it does not count.

        A request sent by several interfaces may reach one responder several times, and have it reply as often, by
        several ways. Only those by the way of its first reply count: one responder that can be reached by two
        interfaces makes one, and three that share an address and a port make three.
        """
        sent = self._sent.get(number) if number is not None else None
        if sent is None or number is None or self.done:
            self.strays += 1
            return None
        key = (number, responder)
        if self._ways.setdefault(key, way) != way:
            self.duplicates += 1
            return None
        if len(self._ways) > _REMEMBERED:
            del self._ways[next(iter(self._ways))]
        self.replies += 1
        return max(0.0, now - sent)


class Allowance:
    """How many replies may be sent: `per_source` a second to each address, `total` a second to all. No I/O.

    As many as in one second may go at once, after a pause; at least one. An address that got nothing for so long that
    its allowance is whole again is forgotten, and one that is refused is not remembered either: so the table never
    holds more than `total` allows in that time, whatever addresses are invented.
    """

    def __init__(self, per_source: float, total: float) -> None:
        for name, rate in (("per_source", per_source), ("total", total)):
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
                raise ArgumentError(f"{name} must be a number of replies per second, more than 0, not {rate!r}")
        # One number is enough for a bucket of tokens: the time at which it is full again. Each reply moves it on by
        # what it takes to regain one token, and it may not lie farther ahead than it takes to regain all.
        self._step, self._total_step = 1 / per_source, 1 / total
        self._horizon, self._total_horizon = max(1.0, self._step), max(1.0, self._total_step)
        self._total_full = float("-inf")
        self._full: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full)

    def permits(self, source: str, now: float) -> bool:
        """Whether a reply may be sent to that address now."""
        tolerance = now + 1e-9
        return (
            max(now, self._total_full) + self._total_step <= tolerance + self._total_horizon
            and max(now, self._full.get(source, now)) + self._step <= tolerance + self._horizon
        )

    def take(self, source: str, now: float) -> None:
        """Take note that a reply is sent to that address."""
        self._total_full = max(now, self._total_full) + self._total_step
        self._full[source] = max(now, self._full.get(source, now)) + self._step
        self._full.move_to_end(source)
        while next(iter(self._full.values())) <= now:
            self._full.popitem(last=False)


class Copies:
    """Which requests are copies of one that came by another interface a moment before. No I/O.

    A copy has the payload and the port of the first, and the port is one that the kernel chooses for a single socket.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[int, int, int], tuple[float, set[str]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def seen(self, packet: bytes, port: int, interface: str | None, now: float) -> bool:
        """Whether a request that arrived at `now` by `interface` is a copy; it is remembered if it is not."""
        if port < _FIRST_CHOSEN_BY_KERNEL or interface is None:
            return False
        key = (port, len(packet), hash(packet))
        when, by = self._seen.get(key, (float("-inf"), set()))
        if abs(now - when) <= _COPIES_WITHIN and interface not in by:
            by.add(interface)
            return True
        self._seen[key] = (now, {interface})
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False


def answerable(host: str, port: int) -> bool:
    """Whether a reply may be sent there: to a single host, and not to a port below 1024, where services listen.

    Broadcast addresses of a subnet look like any other; to those the kernel refuses to send (EACCES).
    """
    address = ipaddress.ip_address(host)
    if port < _FIRST_PORT or address.is_multicast or address.is_unspecified:
        return False
    if address.version == 6:
        return address.ipv4_mapped is None
    # 0.0.0.0/8 is this host without an address, 240.0.0.0/4 reserved, with 255.255.255.255 at its end (RFC 6890).
    return 0 < address.packed[0] < 240


def _arrival(addr: Address, now: float) -> float:
    """Return when a packet arrived, on the clock that says `now`: it may have waited for us since."""
    if addr.timestamp is None:
        return now
    # The kernel's time of arrival is on another clock, which may be set; so only the difference counts.
    return now - max(0.0, (time.time_ns() - addr.timestamp) / 1e9)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}, which is gone"


# -- asking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply to a request."""

    packet: bytes
    #: Where it came from.
    addr: Address
    #: The time from sending the request to receiving this, in seconds.
    round_trip: float
    #: The number of the request it answers; the first has 1.
    number: int


class Requester(DatagramListener):
    """Sends a request to a group and calls `handle_reply` for each reply; never blocks.

    `packet` is the request, bytes-like or text, and is sent by the constructor; with None nothing is sent before
    `ask` is called. `ip`, `port` and `ttl` say where it goes and how far, as for `sendto`; `ip` may also be a single
    host. It is sent by every interface that is up and can do multicast, or by those named with `interface` (a name,
    an index, a local address or a list of these); with `ttl` 0 by ``lo``. Where it goes out by several, a failure of
    some of them is logged.

    The replies come to a port of the requester's own, from any host. Those that a responder sends twice, because the
    request reached it by two interfaces, are counted once. After `limit` replies, or when `handle_reply` returns
    something true, the requester closes itself. When `timeout` seconds have passed since the last request,
    `handle_timeout` is called, and the requester closes unless that has sent another; None waits for ever. `rcvbuf`
    asks for a receive buffer of so many bytes, for the replies of many.

    It is registered with `poller`, by default the default poller, and uses its clock. Raises `GroupError`,
    `ArgumentError`, `InterfaceError`, `PacketTypeError`, `PacketSizeError`, and `OSError` with advice.
    """

    _timeout_timer: Timer | None = None

    def __init__(
        self,
        packet: str | bytes | None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        ttl: int = 1,
        *,
        timeout: float | None = 1.0,
        limit: int | None = None,
        interface: WhichInterfaces = None,
        rcvbuf: int | None = None,
        poller: Poller | None = None,
    ) -> None:
        #: Where the requests go.
        self.group = destination(ip, port)
        if timeout is not None and not timeout >= 0:
            raise ArgumentError(f"timeout must be None or 0 or more seconds, not {timeout!r}")
        self.timeout = timeout
        self._exchange = Exchange(limit)
        self._request_packet = None if packet is None else batch.encode(packet, self.group.longest)
        self._wanted_ways = (ttl, interface)
        self._look_around()
        self._batches_left: int | None = None  # None while the time is not over
        #: The reply that `handle_reply` is called with, or was called with last.
        self.reply: Reply | None = None
        self._check_arguments(None, _LONGEST)
        everywhere = "::" if self.group.family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 -- whichever is asked
        opened = sockets.open_unicast(everywhere, 0, ttl=ttl, rcvbuf=rcvbuf, details=True)
        self._take_over(opened, _LONGEST, None, None, True, poller)
        if self._request_packet is not None:
            self.ask()

    def _look_around(self) -> None:
        """See which interfaces and addresses this host has."""
        self._ways, self._by_all = sockets.ways(self.group, *self._wanted_ways)
        # An address of this host stands for the host: which of them a local reply comes from says nothing.
        self._own_addresses = frozenset(address for present in interfaces() for address in present.addresses)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.group}{', closed' if self.closed else ''}>"

    @abstractmethod
    def handle_reply(self, packet: bytes, addr: Address) -> object:
        """Called with each reply; a true result closes this requester. `self.reply` has its round-trip time."""

    def handle_timeout(self) -> None:
        """Called when the time is over; sending another request here keeps the requester open."""

    def which(self, packet: bytes, addr: Address) -> int | None:
        """Return the number of the request that `packet` answers, None for none of them.

        By default it is the last one sent. Those who send several, and put a number into each, read it here.
        """
        return self._exchange.asked

    @property
    def asked(self) -> int:
        """How many requests were sent; the next one has the number after it."""
        return self._exchange.asked

    @property
    def replies(self) -> int:
        """How many replies were counted."""
        return self._exchange.replies

    @property
    def duplicates(self) -> int:
        """How many replies were left out, as second ones of the same responder by another interface."""
        return self._exchange.duplicates

    def ask(self, packet: str | bytes | None = None) -> int:
        """Send another request, by default the same again, and start the timeout anew; return its number.

        Interfaces that came or went since the last are taken into account. Raises what the constructor raises.
        """
        if packet is not None:
            self._request_packet = batch.encode(packet, self.group.longest)
        if self._request_packet is None:
            raise ArgumentError("there is no request to send again; give ask() a packet")
        if self.socket is None:
            raise ArgumentError("this requester is closed; make another one to ask again")
        if self._exchange.asked:
            self._look_around()
        now = self.poller.time()
        self._send_by_each(self.socket, self._request_packet)
        number = self._exchange.ask(now)
        self._batches_left = None
        if self._timeout_timer is not None:
            self._timeout_timer.cancel()
        if self.timeout is not None:
            self._timeout_timer = self.poller.call_at(now + self.timeout, self._time_is_over)
        return number

    def _send_by_each(self, opened: socket.socket, packet: bytes) -> None:
        failures: list[OSError] = []
        for way in self._ways:
            try:
                sockets.send_by(opened, packet, self.group.sockaddr(way.index), way.index, way.source or None)
            except OSError as error:
                if not self._by_all:
                    raise
                failures.append(error)
                _log.warning("the request to %s is not sent by %s: %s", self.group, _name(way.index), error)
        if len(failures) == len(self._ways):
            raise failures[0]

    def handle_read(self) -> None:
        """Receive one batch of replies and deliver it; called by the poller."""
        if self._batches_left is None:
            super().handle_read()
            return
        before = self._socket_reader.packets
        more = self.pending
        self._batches_left -= 1
        try:
            super().handle_read()
        except BaseException:
            if self._batches_left > 0:
                self.poller.revisit(self)
            else:
                self.close()
            raise
        more = more or self._socket_reader.packets - before >= batch.LIMIT
        if self.closed or self._batches_left is None:
            return
        if more and self._batches_left > 0:
            self.poller.revisit(self)
            return
        asked = self._exchange.asked
        self.handle_timeout()
        if self._exchange.asked == asked:
            self.close()

    def _time_is_over(self) -> None:
        # What came in time may wait at the socket still: it is read before the end.
        self._batches_left = _LAST_BATCHES
        self.poller.revisit(self)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Find out what `packet` answers and hand it on; called for each packet that arrives."""
        now = _arrival(addr, self.poller.time())
        here = addr.host in self._own_addresses or addr.host.startswith("127.")
        responder, way = ("", addr.port) if here else (addr.host, addr.port), (addr.host, addr.group)
        number = self.which(packet, addr)
        round_trip = self._exchange.answer(number, now, responder, way)
        if round_trip is None or number is None:
            return False
        self.reply = Reply(packet, addr, round_trip, number)
        return self.handle_reply(packet, addr) or self._exchange.done

    def close(self) -> None:
        """Stop waiting for replies and close the socket. Idempotent."""
        if self._timeout_timer is not None:
            self._timeout_timer.cancel()
        super().close()


class _Gatherer(Requester):
    """What `request` registers: keeps replies until they are asked for."""

    _CAPACITY = 1024

    def __init__(self, *args: Any, **options: Any) -> None:
        self.waiting: deque[Reply] = deque()
        self._full = False
        super().__init__(*args, **options)

    def handle_reply(self, packet: bytes, addr: Address) -> None:
        if self.reply is not None:
            self.waiting.append(self.reply)
        if len(self.waiting) >= self._CAPACITY and not self._full:
            # Leave the rest in the kernel, which counts what it has no room for.
            self._full = True
            self.poller.modify(self, select.EPOLLERR)

    def take(self) -> Reply:
        reply = self.waiting.popleft()
        if self._full and not self.closed:
            self._full = False
            self.poller.modify(self, select.EPOLLIN)
        return reply


class Replies(Iterator[tuple[bytes, Address]]):
    """The replies to a request, as they come; made by `request`.

    Iterating yields `(packet, addr)` and polls while there is none. It ends with the timeout or the limit of the
    request, when it is closed, or when somebody stops the poller. `reply` is the `Reply` yielded last, None before
    the first; `round_trip` is its time in seconds. It closes when it is not referred to any more, and may be used as
    a context manager.
    """

    def __init__(self, gatherer: _Gatherer) -> None:
        self._gatherer = gatherer
        self.reply: Reply | None = None

    def __next__(self) -> tuple[bytes, Address]:
        """Return the next reply, polling until one comes."""
        gatherer = self._gatherer
        if not gatherer.waiting:
            gatherer.poller.run_until(lambda: gatherer.waiting or gatherer.closed)
            if not gatherer.waiting:
                self.close()
                raise StopIteration
        self.reply = gatherer.take()
        return self.reply.packet, self.reply.addr

    def first(self) -> tuple[bytes, Address]:
        """Return the next reply and wait for no more. Raises `NoReply` when none comes in time."""
        with self:
            for reply in self:
                return reply
        raise NoReply(
            f"nobody answered the request to {self._gatherer.group} in time; nobody listens there, it is more than"
            " `ttl` away, or a firewall on this host keeps the replies out"
        )

    @property
    def round_trip(self) -> float:
        """The time from sending the request to receiving the reply yielded last, in seconds; 0 before the first."""
        return 0.0 if self.reply is None else self.reply.round_trip

    def close(self) -> None:
        """Wait for no more replies. Idempotent."""
        self._gatherer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # noqa: S110 -- at interpreter shutdown whatever close() uses may be gone already
            pass


def request(
    packet: str | bytes,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    ttl: int = 1,
    *,
    timeout: float | None = 1.0,
    limit: int | None = None,
    interface: WhichInterfaces = None,
    rcvbuf: int | None = None,
    poller: Poller | None = None,
) -> Replies:
    """Send a request to the multicast group at `ip` on `port` and return its replies, an iterator of `(packet, addr)`.

    The request is sent now. Each reply is yielded as it comes, until `timeout` seconds have passed since, or `limit`
    replies have come. While it waits, `poller` is driven, so whatever else is registered there runs, a responder in
    the same program among it. The arguments are those of `Requester`, and so is what it raises.

    >>> class Acknowledge(Responder):
    ...     def handle_request(self, packet, addr):
    ...         return b"ack"
    >>> responder = Acknowledge()
    >>> for packet, addr in request("Hello", limit=1):
    ...     print(packet.decode(), "from", addr.host)
    ack from 127.0.0.1
    >>> responder.close()
    """
    return Replies(
        _Gatherer(
            packet, ip, port, ttl, timeout=timeout, limit=limit, interface=interface, rcvbuf=rcvbuf, poller=poller
        )
    )


# -- answering -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplyStatistics:
    """What a responder has counted so far."""

    #: Requests that passed the filter.
    requests: int
    #: Replies handed to the kernel.
    sent: int
    #: Requests left out as copies of one that came by another interface.
    copies: int
    #: Requests left out because no reply may go to their source: no single host, or a port below 1024.
    unanswerable: int
    #: Requests or replies left out because the allowance of the source or of all together was used up.
    limited: int
    #: Replies that the kernel refused to send.
    failed: int


class Responder(MulticastListener):
    """Answers the requests sent to a group: subclasses implement `handle_request`.

    `filter`, `ip`, `port`, `mtu`, and the keywords `interface`, `sources`, `exclude`, `rcvbuf` and `poller` are those
    of `MulticastListener`.

    The reply goes to the requester alone, from the address of the interface that the request came in by, and by that
    interface. So that nobody can have it flood a third host with forged requests, there is at most one reply to each,
    none to an address that is not a single host's or to a port below 1024, at most `per_source` a second to one
    address and `total` a second to all (as many at once after a pause, and after that the rate), no reply is longer
    than `longest` bytes, and none goes farther than `ttl`: 1 is the subnet, more is for requesters behind routers. By
    default an address gets at most 50 replies at once and 50 a second from then on, of 1232 bytes, and all together
    500.
    """

    _reply_socket: socket.socket | None = None

    def __init__(
        self,
        filter: Filter = None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        per_source: float = 50,
        total: float = 500,
        longest: int = _UNFRAGMENTED,
        ttl: int = 1,
        **options: Any,
    ) -> None:
        self._allowance = Allowance(per_source, total)
        self._copies = Copies()
        if isinstance(longest, bool) or not isinstance(longest, int) or not 0 <= longest <= 65507:
            raise ArgumentError(f"longest must be a number of bytes from 0 to 65507, not {longest!r}")
        if sockets.check_ttl(ttl) == 0:
            raise ArgumentError("ttl must be 1 or more for replies: packets to a single host cannot have 0")
        #: The most bytes of a reply.
        self.longest = longest
        self._tally = dict.fromkeys(ReplyStatistics.__dataclass_fields__, 0)
        super().__init__(filter, ip, port, mtu, details=True, **options)
        everywhere = "::" if self.group.family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 -- see reply()
        # Nobody reads from this socket, so the kernel need not keep what is sent to it.
        self._reply_socket = sockets.open_unicast(everywhere, 0, hops=ttl, rcvbuf=1)

    @abstractmethod
    def handle_request(self, packet: bytes, addr: Address) -> str | bytes | None:
        """Called with each request; return the reply, bytes-like or text, or None for no reply.

        To reply later, return None and call `reply` with the same `addr`, once.
        """

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Have a request answered where that is allowed; called for each packet that passes the filter."""
        now = self.poller.time()
        self._tally["requests"] += 1
        if not answerable(addr.host, addr.port):
            self._tally["unanswerable"] += 1
        elif self._copies.seen(packet, addr.port, addr.interface, _arrival(addr, now)):
            self._tally["copies"] += 1
        elif not self._allowance.permits(addr.host, now):
            self._tally["limited"] += 1
        else:
            reply = self.handle_request(packet, addr)
            if reply is not None:
                self.reply(reply, addr)

    def reply(self, packet: str | bytes, addr: Address) -> bool:
        """Send `packet` to the requester at `addr`, which `handle_request` was called with; return whether it went.

        It does not go when the limits forbid it, the kernel refuses it or the responder is closed; that is counted.
        Raises `PacketTypeError`, and `PacketSizeError` for a reply of more than `longest` bytes.
        """
        data = batch.encode(packet)
        if len(data) > self.longest:
            raise PacketSizeError(
                f"the reply has {len(data)} bytes and this responder sends {self.longest} at most; shorten it, or raise"
                " longest= where requests cannot be forged"
            )
        if self._reply_socket is None:
            return False
        if not answerable(addr.host, addr.port):
            self._tally["unanswerable"] += 1
            return False
        now = self.poller.time()
        if not self._allowance.permits(addr.host, now):
            self._tally["limited"] += 1
            return False
        self._allowance.take(addr.host, now)
        # With the interface given and no address, the kernel takes that address of the interface which suits the
        # requester. The flow label of IPv6 is the requester's own business.
        index = next((interface.index for interface in self.interfaces if interface.name == addr.interface), 0)
        sockaddr = tuple(addr) if len(addr) == 2 else (addr[0], addr[1], 0, addr[3])
        try:
            sockets.send_by(self._reply_socket, data, sockaddr, index)
        except OSError:
            # What a requester writes as its source must not be able to stop us, so this is counted and not raised.
            self._tally["failed"] += 1
            return False
        self._tally["sent"] += 1
        return True

    def reply_statistics(self) -> ReplyStatistics:
        """Return what was counted of requests and replies so far."""
        return ReplyStatistics(**self._tally)

    def close(self) -> None:
        """Leave the group and close both sockets. Idempotent."""
        replying, self._reply_socket = self._reply_socket, None
        if replying is not None:
            replying.close()
        super().close()

    def _abandon(self) -> None:
        replying, self._reply_socket = self._reply_socket, None
        if replying is not None:
            replying.close()
        super()._abandon()
