"""Groups without a network, for the tests of programs that use this package.

Inside a `Network` listeners and senders meet in memory, on a clock that the test turns by hand. The program under test
is the same as ever: it makes its listeners, senders and pollers, and calls `sendto`, `listen`, `poll` and `loop`::

    from multicast import testing

    def test_the_beacon_is_heard_in_spite_of_loss():
        with testing.Network(seed=1, loss=0.3) as net:
            receiver = Receiver()              # a MulticastListener of the program
            Beacon(interval=1.0)               # a Multicaster of the program
            net.advance(60)
            assert 30 < receiver.heard < 60

What is replaced is what lies below the package: the sockets of the kernel by `Socket`, which knows the same options,
the interfaces of the host by made-up ones, and the waiting of pollers by turning the clock. All else is the package
itself. TCP is left as it is.

The same seed gives the same losses in the same places, as long as the program does the same. A network is for one
thread.
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from multicast import batch, interfaces
from multicast.errors import ArgumentError, check_amount
from multicast.poller import Dispatcher, Poller, polling
from multicast.poller.timers import Schedule
from multicast.senders import forget_senders, sender
from multicast.sockets import choosing, datagrams

from .memory import Datagram, Reader, Socket, Traffic, Wires, Writer

__all__ = ["Network", "Traffic"]

# What `addr.timestamp` begins with, in seconds since 1970: the year 2100. It is the same in every run, and later than
# the clock of the host, so that nothing takes a packet for one that has waited for long.
_EPOCH = 4_102_444_800
# A poller that is ready so often with no time passing is never done. In so many turns a sender sends 640,000 packets.
_PATIENCE = 10_000


class Network:
    """A network in memory with a clock of its own; a context manager, inside which the package uses it.

    `loss`, `duplicate` and `reorder` are shares of packets, 0 to 1, drawn for each receiver by itself from a random
    sequence that begins with `seed`. A packet takes `delay` seconds, and up to `jitter` more. One that is reordered
    takes `hold` seconds longer, so that those sent in the meantime overtake it. All these are attributes too, and may
    be changed at any time.

    There is one host, unless `host` is used, with ``lo`` and the named `interfaces`: on the first of them it is
    10.0.0.1 and fd00::1, on the second 10.0.1.1, and so on. What is sent by one is heard by those joined on it.
    Without a name packets leave by the first, and with `ttl` 0 by ``lo``, as on a real host. TTLs do not limit anything
    else, for there are no routers.

    The clock stands until `advance` is called. Code that waits, as `loop`, `listen` with a handler and `poll` with a
    timeout do, turns it itself to the moment at which something happens; when nothing ever will, `RuntimeError` is
    raised instead. `addr.timestamp` and the timers of pollers go by this clock, `time.time()` does not.

    At the end what is still open in the network is closed.

    >>> from multicast import Inbox, sendto
    >>> with Network(delay=0.5) as net:
    ...     inbox = Inbox(details=True)
    ...     sendto("hello")
    ...     net.advance(0.4)
    ...     len(inbox)
    ...     net.advance(0.1)
    ...     len(inbox)
    1
    0
    1
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
        hold: float = 0.005,
        interfaces: Sequence[str] = ("eth0",),
    ) -> None:
        for name, value in (("loss", loss), ("duplicate", duplicate), ("reorder", reorder)):
            if not 0 <= value <= 1:
                raise ArgumentError(f"{name} is a share from 0 to 1, not {value!r}")
        for name, value in (("delay", delay), ("jitter", jitter), ("hold", hold)):
            check_amount(name, value, "seconds")
        if isinstance(interfaces, str) or not interfaces or "lo" in interfaces:
            raise ArgumentError(f"interfaces are one or more names beside lo, as a list; not {interfaces!r}")
        self.loss = loss
        self.duplicate = duplicate
        self.reorder = reorder
        self.delay = delay
        self.jitter = jitter
        self.hold = hold
        #: What was counted so far.
        self.traffic = Traffic()
        self._wires = Wires(interfaces, self._carry, self.traffic)
        self._random = random.Random(seed)  # noqa: S311 -- the same faults in each run are what it is for
        self._now = 0.0
        self._order = itertools.count()
        self._flying: list[tuple[float, int, Socket, Datagram]] = []
        self._pollers: list[weakref.ref[Poller]] = []
        self._undo: list[Callable[[], object]] = []

    # -- the clock -------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return what the clock says, in seconds; 0 at the beginning."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass: packets arrive, timers run and handlers are called, each at its moment."""
        if not seconds >= 0:
            raise ArgumentError(f"seconds must be 0 or more, not {seconds!r}: the clock goes forward only")
        until = self._now + seconds
        self._settle()
        while True:
            moments = [poller._timers.next_deadline() for poller in self._driven()]
            moments += [self._flying[0][0] if self._flying else None]
            moment = min((moment for moment in moments if moment is not None), default=until)
            if moment > until or (moment == until and self._now == until):
                break
            self._turn(max(moment, self._now))
            self._settle()
        self._turn(until)
        self._settle()

    def _turn(self, moment: float) -> None:
        """Set the clock and deliver what has arrived by then."""
        self._now = moment
        while self._flying and self._flying[0][0] <= moment:
            _, _, receiver, datagram = heapq.heappop(self._flying)
            self._deliver(receiver, datagram)

    def _driven(self) -> list[Poller]:
        """Return the pollers that have something to drive, in the order they were made."""
        self._pollers = [ref for ref in self._pollers if ref() is not None]
        return [poller for ref in self._pollers if (poller := ref()) is not None and self._lives(poller)]

    @staticmethod
    def _lives(driven: Poller) -> bool:
        return bool(len(driven) or driven._timers or driven._calls)

    def _settle(self) -> None:
        """Poll until nothing more happens at this moment."""
        for _ in range(_PATIENCE):
            busy = [driven for driven in self._driven() if self._busy(driven)]
            if not busy:
                return
            for driven in busy:
                driven.poll(0)
        raise RuntimeError(
            f"at {self._now} s there is always something to do: a sender without an end, a rate or an interval? {busy}"
        )

    def _busy(self, driven: Poller) -> bool:
        if driven._calls or driven._revisit or driven._late:
            return True
        deadline = driven._timers.next_deadline()
        if deadline is not None and deadline <= self._now:
            return True
        epoll = driven._epoll
        return epoll is not None and bool(epoll.poll(0, 1))

    def _wait(self, original: Callable[..., Any], waiting: Poller, timeout: float | None, *rest: Any) -> Any:
        """Take the place of a poller's waiting: turn the clock to the next thing that happens."""
        ready = original(waiting, 0, *rest)
        if ready or ready is None or timeout == 0 or self._busy(waiting):
            return ready
        moments = [self._flying[0][0] if self._flying else None, waiting._timers.next_deadline()]
        moments += [None if timeout is None else self._now + timeout]
        moment = min((moment for moment in moments if moment is not None), default=None)
        if moment is None:
            raise RuntimeError(
                "the program waits, and nothing will ever happen: no packet is on its way, no timer is set, and nobody"
                " else is going to send"
            )
        self._turn(max(moment, self._now))
        return original(waiting, 0, *rest)

    # -- hosts and packets -----------------------------------------------------------------------------------------

    @contextmanager
    def host(self, number: int) -> Iterator[None]:
        """Open what is opened inside on another host: number 2 is 10.0.0.2 and fd00::2, up to 254."""
        if not 1 <= number <= 254:
            raise ArgumentError(f"hosts have numbers from 1 to 254, not {number!r}")
        before, self._wires.host = self._wires.host, number
        try:
            yield
        finally:
            self._wires.host = before

    def _carry(self, receiver: Socket, datagram: Datagram) -> None:
        """Bring one copy to one receiver, with what may happen to it on the way."""
        if self.loss and self._random.random() < self.loss:
            self.traffic.lost += 1
            return
        copies = 1
        if self.duplicate and self._random.random() < self.duplicate:
            self.traffic.duplicated += 1
            copies = 2
        for _ in range(copies):
            delay = self.delay + (self._random.uniform(0, self.jitter) if self.jitter else 0.0)
            if self.reorder and self._random.random() < self.reorder:
                self.traffic.reordered += 1
                delay += self.hold
            if delay:
                heapq.heappush(self._flying, (self._now + delay, next(self._order), receiver, datagram))
            else:
                self._deliver(receiver, datagram)

    def _deliver(self, receiver: Socket, datagram: Datagram) -> None:
        arrived = datagram._replace(timestamp=_EPOCH * 1_000_000_000 + round(self._now * 1e9))
        if receiver.put(arrived):
            self.traffic.delivered += 1
        elif receiver.fileno() >= 0:
            self.traffic.dropped += 1

    # -- taking the place of the kernel ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        global _active
        if _active is not None:
            raise RuntimeError("a network is in use already; networks do not nest")
        _active = self
        try:
            self._install()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _install(self) -> None:
        def make(original: Any) -> Any:
            def open_(table: Any, kind: int = socket.SOCK_DGRAM) -> Any:
                if kind != socket.SOCK_DGRAM:
                    return original(table, kind)
                return self._wires.open(table.family)

            return open_

        self._replace(datagrams, "open_socket", make(datagrams.open_socket))
        self._replace(choosing, "routed", lambda *_: True)
        # All hosts are on one link.
        self._everywhere(interfaces.route, lambda *_: interfaces.Route("eth0", None))
        self._everywhere(interfaces.interfaces, self._wires.interfaces)

        self._replace(choosing, "_by_name", lambda _: None)

        def idle(watch: Any, changed: Callable[[], object], *, routes: bool = False) -> None:
            watch._changed = changed
            watch._socket = self._wires.open(socket.AF_INET)

        self._replace(interfaces.Watch, "__init__", idle)
        # No sender of `sendto` outlives the network, or comes into it.
        forget_senders()
        self._replace(sender._Recent, "_look", lambda _: False)

        reader, writer, receive, send = batch.Reader, batch.Writer, batch.receive, batch.send

        def any_reader(opened: Any, *arguments: Any, **options: Any) -> Any:
            return (Reader if isinstance(opened, Socket) else reader)(opened, *arguments, **options)

        def any_writer(opened: Any, *arguments: Any, **options: Any) -> Any:
            return (Writer if isinstance(opened, Socket) else writer)(opened, *arguments, **options)

        def any_receive(which: Any, *arguments: Any) -> Any:
            return which.receive(*arguments) if isinstance(which, Reader) else receive(which, *arguments)

        def any_send(which: Any, *arguments: Any) -> Any:
            return which.send(*arguments) if isinstance(which, Writer) else send(which, *arguments)

        self._everywhere(reader, any_reader)
        self._everywhere(writer, any_writer)
        self._everywhere(receive, any_receive)
        self._everywhere(send, any_send)

        wait, built = Poller._wait, Poller.__init__
        self._replace(Poller, "_wait", lambda waiting, timeout, *rest: self._wait(wait, waiting, timeout, *rest))
        self._replace(Poller, "_sleep", lambda sleeping, seconds, *_: self._turn(self._now + seconds))

        def make_poller(new: Poller, *, clock: Callable[[], float] | None = None) -> None:
            built(new, clock=clock or self.time)
            self._pollers.append(weakref.ref(new))

        self._replace(Poller, "__init__", make_poller)
        for present in list(polling._pollers):
            self._adopt(present)

    def _adopt(self, present: Poller) -> None:
        """Give a poller that was there before the clock of the network, and no timers, until the end."""
        clock, timers = present._clock, present._timers
        present._clock, present._timers = self.time, Schedule()

        def give_back() -> None:
            present._clock, present._timers = clock, timers

        self._undo.append(give_back)
        self._pollers.append(weakref.ref(present))

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        original = getattr(owner, name)
        setattr(owner, name, new)
        self._undo.append(lambda: setattr(owner, name, original))

    def _everywhere(self, original: Any, new: Any) -> None:
        """Replace a function of this package in all its modules, under whatever name they have imported it."""
        package = __name__.partition(".")[0]
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == package and module is not None:
                for attribute, value in list(vars(module).items()):
                    if value is original:
                        self._replace(module, attribute, new)

    def __exit__(self, *exc_info: object) -> None:
        global _active
        try:
            for driven in [poller for ref in self._pollers if (poller := ref()) is not None]:
                for target in driven:
                    if isinstance(target, Dispatcher) and isinstance(target.socket, Socket):
                        target.close()
            for opened in list(self._wires.sockets):
                opened.close()
            self._flying.clear()
        finally:
            while self._undo:
                self._undo.pop()()
            _active = None


_active: Network | None = None
