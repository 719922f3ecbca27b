"""`Multicaster`: sends the packets of an iterable whenever the poller finds its socket writable.

A packet that was taken from an iterable is sent, tried again, or reported; it is never dropped in silence:

* the socket's own buffer is full (EAGAIN): wait until it is writable;
* the queue of the interface is full (ENOBUFS): the socket stays "writable", so try again on a timer;
* the network is gone (ENETUNREACH, ENETDOWN, ...): report it, keep the packet, try again on a slower timer;
* this packet is refused (EMSGSIZE, EPERM): report it, count it, go on with the next.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import select
import time
from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from multicast import batch
from multicast.errors import RegistrationError, check_amount, check_seal
from multicast.interfaces import Interface, resolve
from multicast.poller import Dispatcher, Poller, Timer, report
from multicast.sockets import (
    DEFAULT_IP,
    DEFAULT_PORT,
    WhichInterface,
    not_sent,
    open_sender,
    pin,
    stranded,
    takes_bursts,
)

from .transmission import FULL_FIRST, SLOW, bound_name, destination

if TYPE_CHECKING:
    from multicast.sealed import Seal

_log = logging.getLogger("multicast")

# The network may come back, and the packet with it.
_TRANSIENT = frozenset(
    {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL}
)
_GONE_PAUSE = 0.5
# How often a sender whose packets stay on this host for want of a route looks whether there is one now.
_ROUTE_PAUSE = 1.0
# Below this a timer costs more than the packets it spaces; faster paces send a few packets at each tick.
_TICK = 0.0005
# How far a paced sender may fall behind and still catch up, so that the mean rate holds.
_LAG = 0.5
# So many packets are taken from the iterable of a sender without pace before it is looked whether it is slow.
_STEP = 8


class SenderStatistics(NamedTuple):
    """What a sender has counted so far."""

    #: Packets handed to the kernel.
    packets: int
    #: Their payload, in bytes.
    bytes: int
    #: Packets the kernel refused, each reported as an error.
    refused: int
    #: How often the interface's queue was full and sending had to be tried again.
    full: int


class Multicaster(Dispatcher):
    """Sends the packets of an iterable to a multicast group.

    Make subclasses iterable and yield packets to multicast: bytes-like, or text, which is sent as UTF-8. Yield None
    when there is nothing to send for now. `iter(self)` is called when the first packet can be sent, and the sender
    closes itself when the iterable ends.

    `ip`, `port`, `ttl`, `interface`, `source_ip`, `source_port`, `loopback`, `offload` and `seal` are as in `sendto`.
    `rate` paces it to so many bits of payload per second, a seal included, `interval` to so many seconds from one
    packet to the next; it is never ahead of its pace, so packets make a burst only where they are due together. It is
    registered with `poller`, by default the default poller, once the constructor of the subclass is done.

    An error in the iterable closes the sender and leaves `poll`. An error of the network leaves `poll` too, or is
    given to `handle_error(exc)` where the subclass has it; the packet is kept and tried again later, and `outage` is
    that error until the network is back.

    >>> class Countdown(Multicaster):
    ...     def __iter__(self):
    ...         yield from ("3", "2", "1")
    >>> sender = Countdown(ttl=0)
    >>> sender.poller.loop()
    >>> sender.statistics().packets
    3
    """

    # How long a sender whose iterable yielded None waits before it asks again, in seconds.
    _NOTHING = 0.01
    _rest_timer: Timer | None = None
    # Whether the iterable is at work, and whether the poller was told meanwhile not to call.
    _taking = _muted = False
    # Events that a subclass watches for besides.
    _also_watched = 0

    def __init__(
        self,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        ttl: int = 1,
        *,
        interface: WhichInterface | None = None,
        source_ip: str | None = None,
        source_port: int = 0,
        loopback: bool = True,
        rate: float | None = None,
        interval: float = 0,
        offload: bool = True,
        seal: Seal | None = None,
        poller: Poller | None = None,
    ) -> None:
        if rate is not None:
            check_amount("rate", rate, "bits per second", zero=False)
        check_amount("interval", interval, "seconds")
        check_seal(seal)
        #: Where the packets go.
        self.group = destination(ip, port)
        #: Bits of payload per second, or None; may be changed, as `interval` may, and holds after the next packet.
        self.rate = rate
        #: Seconds from one packet to the next.
        self.interval = interval
        opened, sockaddr = open_sender(
            self.group, ttl, interface=interface, source_ip=source_ip, source_port=source_port, loopback=loopback
        )
        super().__init__(opened, poller)
        self._socket_writer = batch.Writer(opened, sockaddr, offload=offload and takes_bursts())
        self._counted = (0, 0)  # packets and bytes of this writer that are counted below
        self._encode = batch.encode if seal is None else seal.sealer().encode
        # A device that is made anew has another index; it comes back under its name.
        name = resolve(interface).name if isinstance(interface, (int, Interface)) else interface
        self._choose_again = functools.partial(pin, opened, self.group, ttl, name, source_ip)
        self._is_stranded = functools.partial(stranded, self.group, ttl, name, source_ip)
        self._look_for_route_at = self.poller.time() + _ROUTE_PAUSE if self._is_stranded() else None
        #: The error of a network that is gone, while the packet is kept and tried again; None while packets are taken.
        self.outage: OSError | None = None
        self._packet_iterator: Iterator[Any] | None = None
        self._drawn: object = None  # taken from the iterable, and not among the next yet
        self._taken_packets: list[bytes] = []  # taken from the iterable, due, and not sent yet
        self._iterable_ended = False
        self._iterable_failure: Exception | None = None
        self._batch_size = 1  # how many to take at once: more while the iterable is quick
        self._next_due = -math.inf  # when the next packet may be taken; only paced senders use it
        self._rest_until = -math.inf
        self._packets_sent = self._bytes_sent = self._packets_refused = self._times_full = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.group}{', closed' if self.closed else ''}>"

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield the packets to send: bytes-like, text, or None for nothing now; implemented by subclasses."""

    def _iterate_packets(self) -> Iterator[Any]:
        """Return what yields the packets; subclasses that make packets of something else have their own."""
        return iter(self)

    @property
    def address(self) -> tuple[Any, ...] | None:
        """The address and port it sends from; see `Sender.address`."""
        return None if self.socket is None else bound_name(self.socket)

    def statistics(self) -> SenderStatistics:
        """Return what was counted so far."""
        return SenderStatistics(self._packets_sent, self._bytes_sent, self._packets_refused, self._times_full)

    # A signal handler may raise at any line of a turn. A packet is the sender's in the step that takes it from the
    # iterable, and the call that gives it to the kernel counts it; so what stands in one line here stays in one line.
    # When an exception has left the poller, `_resume` sees to the rest.

    def handle_write(self) -> None:
        """Send what is due; called by the poller."""
        if self._taking:  # its iterable polls, and has the next packet when it has what it waits for
            self._muted = True
            self._watch(False)
        elif self.poller.time() < self._rest_until:
            # Nothing is due. It is an error waiting at the socket that brought us here, or another poller.
            batch.drain_errors(self._socket_writer.socket)
            self._rest_till(self._rest_until)
        else:
            self._send_due()

    def _send_due(self) -> None:
        """Send what is due, and rest until something is."""
        self._rest_until = -math.inf
        if self._look_for_route_at is not None and self.poller.time() >= self._look_for_route_at:
            self._look_for_route()
        idle = False
        if not self._taken_packets and not self._iterable_ended:
            try:
                self._taking = True
                idle = self._take_due()
                self._end_taking()
            except BaseException:
                self._end_taking()
                raise
        if self._taken_packets and not self.closed and not self._send_taken():
            return
        if self._iterable_ended:
            self.close()
            if self._iterable_failure is not None:
                raise self._iterable_failure
        elif self.closed:  # by its own iterable
            return
        elif self._is_paced or idle:
            pause = self.poller.time() + self._NOTHING if idle else -math.inf
            self._rest_till(max(self._next_due, pause))

    def _end_taking(self) -> None:
        self._taking = False
        if self._muted:
            self._watch(True)
            self._muted = False

    @property
    def _is_paced(self) -> bool:
        return bool(self.rate or self.interval)

    def _take_due(self) -> bool:
        """Take the packets that are due, up to a batch; return whether the iterable had nothing for now."""
        paced = self._is_paced
        if paced:
            now = self.poller.time()
            if now - self._next_due > _LAG:
                self._next_due = now
            horizon = now + _TICK / 2
        try:
            if self._packet_iterator is None:
                self._packet_iterator = self._iterate_packets()
            if paced and self._next_due > horizon:
                return False
            encode, longest, taken = self._encode, self.group.longest, self._taken_packets
            if not paced and self._drawn is None and encode is batch.encode and batch.ENGINE == "c":
                return self._take_many(self._packet_iterator)
            source = self._packet_iterator if self._drawn is None else chain((self._drawn,), self._packet_iterator)
            due = self._next_due
            began = time.perf_counter()
            for self._drawn in source:
                if self._drawn is None:
                    if paced:
                        self._next_due = max(self._next_due, now)  # having nothing to send is no delay to catch up with
                    return True
                data = encode(self._drawn, longest)
                if paced:
                    due += self.interval + (8 * len(data) / self.rate if self.rate else 0)
                taken.append(data); self._drawn, self._next_due = None, due  # noqa: E702
                if time.perf_counter() - began > SLOW:
                    self._batch_size = 1
                    break
                if len(taken) >= self._batch_size or (paced and due > horizon):
                    self._batch_size = min(2 * self._batch_size, batch.LIMIT)
                    break
            else:
                self._iterable_ended = True
        except Exception as error:
            # What was taken before is sent first; then the sender ends with this.
            self._iterable_ended, self._iterable_failure = True, error
        return False

    def _take_many(self, source: Iterator[Any]) -> bool:
        """Take up to a batch, a few in each call of C, in which no signal handler raises; return as `_take_due`."""
        taken, longest = self._taken_packets, self.group.longest
        began = time.perf_counter()
        while (wanted := min(_STEP, self._batch_size - len(taken))) > 0:
            before = len(taken)
            if batch.take(source, taken, wanted, longest):
                return True
            if len(taken) < before + wanted:
                self._iterable_ended = True
                return False
            if time.perf_counter() - began > SLOW:
                self._batch_size = 1
                return False
        self._batch_size = min(2 * self._batch_size, batch.LIMIT)
        return False

    def _send_taken(self) -> bool:
        """Send what was taken; return whether all of it went."""
        taken = self._taken_packets
        try:
            self._hand_over(taken)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._times_full += 1
                self._rest_till(self.poller.time() + FULL_FIRST)
                return False
            if error.errno in _TRANSIENT:
                return self._wait_for_network(error)
            del taken[0]; self._packets_refused += 1  # noqa: E702
            raise not_sent(error, self.group.address) from None
        self.outage = None
        self._count_sent()
        return not taken

    def _count_sent(self) -> None:
        """Take off what the kernel has taken, and count it."""
        writer, taken, (packets, octets) = self._socket_writer, self._taken_packets, self._counted
        now = writer.packets, writer.bytes
        new, more = now[0] - packets, now[1] - octets
        del taken[:new]; self._counted = now; self._packets_sent += new; self._bytes_sent += more  # noqa: E702

    def _use(self, writer: batch.Writer) -> None:
        """Send by `writer` from now on, once what was sent by another is counted."""
        self._socket_writer, self._counted = writer, (writer.packets, writer.bytes)

    def _resume(self) -> None:
        self._count_sent()
        if self._rest_timer is None or not self._rest_timer.active:
            self._watch(True)

    def _hand_over(self, taken: list[bytes]) -> int:
        """Send packets; return how many the kernel took."""
        return batch.send(self._socket_writer, taken)

    def _wait_for_network(self, error: OSError) -> bool:
        """Rest, and report the error unless it is the one that was reported last; always False."""
        reported, self.outage = self.outage, error
        self._rest_till(self.poller.time() + _GONE_PAUSE)
        try:
            self._renew_writer()
        except (LookupError, OSError):
            pass  # it is not there yet
        if reported is None or reported.errno != error.errno:
            raise not_sent(error, self.group.address) from None
        return False

    def _renew_writer(self) -> None:
        """Have packets leave as the interfaces and routes are now."""
        before = self._socket_writer
        self._use(batch.Writer(before.socket, self._choose_again(), offload=before.offload))

    def _look_for_route(self) -> None:
        """Leave ``lo``, which stood in for a route, when there is one."""
        if self._is_stranded():
            self._look_for_route_at = self.poller.time() + _ROUTE_PAUSE
        else:
            self._look_for_route_at = None
            self._renew_writer()
            _log.info("%s: there is a route now, so its packets leave this host", self.group)

    def _rest_till(self, until: float) -> None:
        """Send nothing until then, on the poller's clock."""
        self._rest_until = until
        self._end_rest_timer()
        if self._watch(False):
            self._rest_timer = self.poller.call_at(until, self._end_of_rest)

    def _watch(self, writable: bool) -> bool:
        """Have the poller call when the socket is writable, or not; False when it is driven by hand."""
        try:
            self.poller.modify(self, (select.EPOLLOUT if writable else select.EPOLLERR) | self._also_watched)
        except RegistrationError:
            return False
        return True

    def _end_rest_timer(self) -> None:
        timer, self._rest_timer = self._rest_timer, None
        if timer is not None:
            timer.cancel()

    def _end_of_rest(self) -> None:
        """Go on after a rest. The socket is writable as a rule, so it is tried before it is watched for that."""
        self._end_rest_timer()
        try:
            self._send_due()
        except Exception as error:
            self._resume()
            report(self, error)
        finally:
            if self._rest_timer is None:
                self._watch(True)

    def _detached(self, poller: Poller) -> None:
        # Registering the sender again resumes the remaining pause.
        self._end_rest_timer()

    def close(self) -> None:
        """Stop sending and close the socket; what was taken from the iterable and not sent is dropped. Idempotent."""
        self._end_rest_timer()
        super().close()
