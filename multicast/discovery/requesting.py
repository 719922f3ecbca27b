"""Asking a group: what was sent, the replies that are for it, and when to stop waiting."""

from __future__ import annotations

import logging
import select
import socket
import time
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from multicast import batch, sockets
from multicast.batch import Address
from multicast.errors import ArgumentError, GroupError, NoReply, check_amount, check_number, check_seal, describe
from multicast.interfaces import Interface, interfaces, resolve
from multicast.listeners import DatagramListener
from multicast.poller import Poller, Timer
from multicast.sealed import OVERHEAD, Seal, reference
from multicast.senders import destination
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterfaces
from multicast.sockets.groups import parse_address, plain

from .rules import Exchange, arrival

_log = logging.getLogger("multicast")

# A reply is read whole, however long.
_LONGEST = 65535
# To how many of the last requests sealed replies are accepted; by each interface there is another one.
_MOST_SEALED = 4096
# How many batches are read at the end of the time, of replies that came before it and were not read yet. More than
# the default receive buffer holds (socket(7)), so that only those who flood us are cut off.
_LAST_BATCHES = 64


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
    some of them is logged, once until it works again.

    The replies come to a port of the requester's own, from any host. Those that a responder sends twice, because the
    request reached it by two interfaces, are counted once. After `limit` replies, or when `handle_reply` returns
    something true, the requester closes itself. When `timeout` seconds have passed since the last request,
    `handle_timeout` is called, and the requester closes unless that has sent another; None waits for ever. `rcvbuf`
    asks for a receive buffer of so many bytes, for the replies of many.

    `source_ip` is the address of this host that requests come from, on an interface with several. `source_port` is the
    port they come from and replies are received at, for devices that answer to a fixed port of the requester; other
    programs may have the port as well, and then the socket that was bound last gets the replies.

    With `seal` (a `sealed.Seal`) requests are sealed, and replies accepted that are sealed for one of them; `rejected`
    counts the others by cause.

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
        source_ip: str | None = None,
        source_port: int = 0,
        rcvbuf: int | None = None,
        seal: Seal | None = None,
        poller: Poller | None = None,
    ) -> None:
        #: Where the requests go.
        self.group = destination(ip, port)
        if timeout is not None:
            check_amount("timeout", timeout, "seconds")
        self.timeout = timeout
        self._exchange = Exchange(limit)
        self._failing: set[int] = set()  # the interfaces by which the last request was not sent
        check_seal(seal)
        self._sealer = None if seal is None else seal.sealer()
        self._sealed_requests: dict[bytes, bytes] = {}  # the session of each by its number
        self._request_packet = None if packet is None else self._encoded(packet)
        check_number("source_port", source_port, 0, 65535)
        self._wanted_ways = (ttl, interface if source_ip is None else _from(source_ip, interface, self.group))
        self._look_around()
        self._batches_left: int | None = None  # None while the time is not over
        #: The reply that `handle_reply` is called with, or was called with last.
        self.reply: Reply | None = None
        self._check_arguments(None, _LONGEST, seal=seal)
        opened = sockets.open_unicast(
            self.group.table.everywhere, source_port, ttl=ttl, rcvbuf=rcvbuf, details=True, shared=source_port != 0
        )
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
            self._request_packet = self._encoded(packet)
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

    def _encoded(self, packet: str | bytes) -> bytes:
        return batch.encode(packet, self.group.longest, 0 if self._sealer is None else OVERHEAD)

    def _sealed(self, packet: bytes) -> bytes:
        """Return a request as it goes on the wire, another one by each interface; a sealed one is remembered."""
        if self._sealer is None:
            return packet
        sealed = self._sealer.seal(packet)
        name = reference(sealed)
        self._sealed_requests[name[8:]] = name[:8]
        if len(self._sealed_requests) > _MOST_SEALED:
            del self._sealed_requests[next(iter(self._sealed_requests))]
        return sealed

    def _open_all(self, packets: list[bytes], addresses: list[Address]) -> list[bytes | None]:
        return [self._opener.open_reply(packet, self._sealed_requests) for packet in packets]

    def _send_by_each(self, opened: socket.socket, packet: bytes) -> None:
        failures: list[OSError] = []
        for way in self._ways:
            try:
                sealed = self._sealed(packet)
                sockets.send_by(opened, sealed, self.group.sockaddr(way.index), way.index, way.source or None)
            except OSError as error:
                if not self._by_all:
                    raise
                failures.append(error)
                if way.index not in self._failing:  # what asks again and again would fill a log with it
                    self._failing.add(way.index)
                    why = describe(error)
                    _log.warning("the request to %s is not sent by %s: %s", self.group, _name(way.index), why)
            else:
                self._failing.discard(way.index)
        if len(failures) == len(self._ways):
            raise failures[0]

    def handle_read(self) -> bool | None:
        """Receive a batch of replies and deliver it; return whether more may be waiting. Called by the poller."""
        if self._batches_left is None or self._batches_left < 0:
            return super().handle_read()
        self._read_what_came_in_time(self._batches_left - 1)
        return False

    def _time_is_over(self) -> None:
        # What came in time may wait at the socket still: it is read before the end.
        self._batches_left = _LAST_BATCHES
        self.poller.revisit(self)

    def _read_what_came_in_time(self, left: int) -> None:
        """Read and deliver one of the last batches, after which `left` more may follow; end after the last of them.

        There is no end where a handler asks again, for then the time is not over.
        """
        self._batches_left = left
        asked = self._exchange.asked
        self._share = batch.LIMIT
        try:
            more = super().handle_read()
        except BaseException:
            if self._exchange.asked == asked:
                if left:
                    self.poller.revisit(self)
                else:
                    self.close()
            raise
        if self.closed or self._exchange.asked != asked:
            return
        if left and more:
            self.poller.revisit(self)
            return
        try:
            self._batches_left = -1; self.handle_timeout()  # noqa: E702 -- one step, or it may be called twice
        finally:
            if self._batches_left == -1:
                self.close()

    def _resume(self) -> None:
        super()._resume()
        timer, left = self._timeout_timer, self._batches_left
        if left is not None and left < 0:  # `handle_timeout` was called, and has sent no other request
            self.close()
        elif left is not None or (self.timeout is not None and timer is not None and not timer.active):
            self._time_is_over()

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Find out what `packet` answers and hand it on; called for each packet that arrives."""
        now = arrival(addr.timestamp, time.time_ns(), self.poller.time())
        here = addr.host in self._own_addresses or addr.host.startswith("127.")
        responder = ("" if here else addr.host, addr.port)
        number = self.which(packet, addr)
        round_trip = self._exchange.answer(number, now, responder, way=(addr.host, addr.group))
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
        # When nobody refers to this any more; at the end of the program the socket goes without our help.
        weakref.finalize(self, gatherer.close).atexit = False

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


def request(
    packet: str | bytes,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    ttl: int = 1,
    *,
    timeout: float | None = 1.0,
    limit: int | None = None,
    interface: WhichInterfaces = None,
    source_ip: str | None = None,
    source_port: int = 0,
    rcvbuf: int | None = None,
    seal: Seal | None = None,
    poller: Poller | None = None,
) -> Replies:
    """Send a request to the multicast group at `ip` on `port` and return its replies, an iterator of `(packet, addr)`.

    The request is sent now. Each reply is yielded as it comes, until `timeout` seconds have passed since, or `limit`
    replies have come. While it waits, `poller` is driven, so whatever else is registered there runs, a responder in
    the same program among it. The arguments are those of `Requester`, and so is what it raises.

    >>> from multicast.discovery import Responder
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
            packet,
            ip,
            port,
            ttl,
            timeout=timeout,
            limit=limit,
            interface=interface,
            source_ip=source_ip,
            source_port=source_port,
            rcvbuf=rcvbuf,
            seal=seal,
            poller=poller,
        )
    )


def _from(source_ip: str, interface: WhichInterfaces, to: sockets.Endpoint) -> str:
    """Return the address that requests come from, which names their interface too. Raises what `Requester` raises."""
    source = plain(parse_address(source_ip, "source_ip"))
    if (":" in source) != (":" in to.address):
        raise GroupError(f"source_ip {source} and {to.address} are not of one family")
    found = resolve(source)
    wanted = () if interface is None else [interface] if isinstance(interface, str | int | Interface) else interface
    others = [one for one in wanted if one != "all" and resolve(one).index != found.index]
    if others:
        raise ArgumentError(
            f"source_ip {source} is an address of {found.name}, and interface is {others[0]}; leave one of them out"
        )
    return source


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}, which is gone"
