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

What is replaced is what lies below the package: the sockets of the kernel by `_Socket`, which knows the same options,
the interfaces of the host by made-up ones, and the waiting of pollers by turning the clock. All else is the package
itself. TCP is left as it is.

The same seed gives the same losses in the same places, as long as the program does the same. A network is for one
thread.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import random
import socket
import struct
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from . import batch, interfaces, poller
from .batch import Address
from .errors import ArgumentError
from .interfaces import Interface
from .poller import Dispatcher, Poller
from .sockets import choosing, datagrams

__all__ = ["Network", "Traffic"]

# What `addr.timestamp` begins with, in seconds since 1970: the year 2100. It is the same in every run, and later than
# the clock of the host, so that nothing takes a packet for one that has waited for long.
_EPOCH = 4_102_444_800
# A poller that is ready so often with no time passing is never done. In so many turns a sender sends 640,000 packets.
_PATIENCE = 10_000
# What Linux counts for a small packet in a receive buffer, and the size of that buffer unless another is asked for.
_OVERHEAD, _RCVBUF = 768, 212_992
_EPHEMERAL = 32_768  # as net.ipv4.ip_local_port_range has it

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_MEMINFO = 26, 33, 55
_JOIN, _BLOCK, _LEAVE, _JOIN_SOURCE = 42, 43, 45, 46
_PKTINFO = {(socket.IPPROTO_IP, 8), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)}
_TTL = {(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS)}
_UNICAST_TTL = {(socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
_LOOP = {(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP)}
_EGRESS = {(socket.IPPROTO_IP, socket.IP_MULTICAST_IF), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF)}


class _Datagram(NamedTuple):
    """A packet on its way, or in a receive buffer."""

    data: bytes
    source: tuple[Any, ...]
    group: str
    device: int
    ttl: int
    timestamp: int = 0


class _Socket:
    """A UDP socket in memory: the part of `socket.socket` that this package uses.

    Its descriptor is an eventfd(2), readable while packets wait and always writable, so epoll takes it for a socket.
    """

    type = socket.SOCK_DGRAM

    def __init__(self, network: Network, family: int) -> None:
        self.family = family
        self.host = network._host
        self.drops = 0
        self._network = network
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._address = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 -- nothing is bound
        self._port = 0
        self._scope = 0
        self._ttl = self._hops = -1
        self._loop = True
        self._egress = 0
        # (group, interface) -> the sources it is joined for, None for any; and the sources that are blocked.
        self._joined: dict[tuple[str, int], set[str] | None] = {}
        self._blocked: set[tuple[str, int, str]] = set()
        self._room = _RCVBUF
        self._used = 0
        self._queue: deque[_Datagram] = deque()

    # -- what socket.socket has ------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._network._sockets.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def setblocking(self, flag: bool) -> None:
        pass

    def bind(self, address: tuple[Any, ...]) -> None:
        self._address = address[0].partition("%")[0] or self._address
        self._port = address[1] or self._network._free_port()
        self._scope = address[3] if len(address) > 3 else 0

    def getsockname(self) -> tuple[Any, ...]:
        if self.family == socket.AF_INET:
            return (self._address, self._port)
        return (self._address, self._port, 0, self._scope)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if level in (socket.IPPROTO_IP, socket.IPPROTO_IPV6) and option in (_JOIN, _JOIN_SOURCE, _LEAVE, _BLOCK):
            self._membership(option, value)
        elif level == socket.SOL_SOCKET and option == _SO_ATTACH_FILTER:
            # As kernels without it say; filters are applied in Python then.
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        elif level == socket.SOL_SOCKET and option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            self._room = 2 * value
        elif (level, option) in _TTL:
            self._ttl = value
        elif (level, option) in _UNICAST_TTL:
            self._hops = value
        elif (level, option) in _LOOP:
            self._loop = bool(value)
        elif (level, option) in _EGRESS:
            # struct ip_mreqn ends with the index; IPv6 takes the index alone.
            self._egress = value if isinstance(value, int) else struct.unpack_from("@i", value, 8)[0]

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if level == socket.SOL_SOCKET and option == socket.SO_RCVBUF:
            return self._room
        if level == socket.SOL_SOCKET and option == _SO_MEMINFO:
            return struct.pack("@9I", *([0] * 8), self.drops & 0xFFFFFFFF)
        return bytes(size) if size else 0

    def sendto(self, data: bytes, address: tuple[Any, ...]) -> int:
        return self.sendmsg([data], (), 0, address)

    def sendmsg(
        self,
        buffers: Sequence[bytes],
        ancillary: Sequence[tuple[int, int, bytes]],
        flags: int,
        address: tuple[Any, ...],
    ) -> int:
        index, source = self._egress, self._address
        for level, kind, value in ancillary:
            if (level, kind) in _PKTINFO:
                offset, local = (16, value[:16]) if level == socket.IPPROTO_IPV6 else (0, value[4:8])
                index = struct.unpack_from("@i", value, offset)[0] or index
                source = socket.inet_ntop(self.family, local) if any(local) else source
        if not self._port:
            self._port = self._network._free_port()
        data = b"".join(buffers)
        self._network._transmit(self, data, address, index or (address[3] if len(address) > 3 else 0), source)
        return len(data)

    def recvmsg(self, *arguments: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "no error waits")

    # -- what the network asks of it -------------------------------------------------------------------------------

    def _membership(self, option: int, value: bytes) -> None:
        # struct group_req and group_source_req: an index, then one or two sockaddr_storage of 128 bytes.
        index = struct.unpack_from("@I", value)[0]
        start = struct.calcsize("@I0P")
        offset, width = (4, 4) if self.family == socket.AF_INET else (8, 16)
        addresses = [
            socket.inet_ntop(self.family, value[at + offset : at + offset + width])
            for at in range(start, len(value), 128)
        ]
        key = (addresses[0], index)
        if option == _LEAVE:
            if key not in self._joined:
                raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
            del self._joined[key]
        elif option == _BLOCK:
            self._blocked.add((*key, addresses[1]))
        elif option == _JOIN_SOURCE:
            sources = self._joined.setdefault(key, set())
            if sources is not None:
                sources.add(addresses[1])
        elif key in self._joined:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        else:
            self._joined[key] = None

    def wants(self, to: str, port: int, multicast: bool, index: int, source: str) -> bool:
        """Whether a packet is for this socket."""
        if self._port != port:
            return False
        if not multicast:
            everything = self._address in ("0.0.0.0", "::")  # noqa: S104
            return self._address == to or (everything and to in self._network._addresses(self.host))
        if self._address not in (to, "0.0.0.0", "::"):  # noqa: S104
            return False
        sources = self._joined.get((to, index), ())
        return (sources is None or source in sources) and (to, index, source) not in self._blocked

    def put(self, datagram: _Datagram) -> bool:
        """Add a packet to the receive buffer; return whether there was room."""
        size = len(datagram.data) + _OVERHEAD
        if self._fd < 0:
            return False
        if self._used + size > self._room:
            self.drops += 1
            return False
        self._used += size
        self._queue.append(datagram)
        if len(self._queue) == 1:
            os.eventfd_write(self._fd, 1)
        return True

    def take(self, limit: int) -> list[_Datagram]:
        """Return up to `limit` packets from the receive buffer."""
        taken = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
        self._used -= sum(len(datagram.data) + _OVERHEAD for datagram in taken)
        if taken and not self._queue:
            os.eventfd_read(self._fd)
        return taken


class _Reader:
    """`batch.Reader` for a socket in memory."""

    def __init__(
        self,
        socket: _Socket,
        mtu: int,
        *,
        group: str | None = None,
        interface: str | None = None,
        details: bool = False,
        **others: Any,
    ) -> None:
        self.socket = socket
        self.mtu = mtu
        self.group = group
        self.interface = interface
        self.details = details
        self.packets = self.bytes = self.truncated = 0
        self.error: OSError | None = None
        self.__dict__.update(others)

    def receive(self, limit: int = batch.LIMIT) -> tuple[list[bytes], list[Address]]:
        packets, addresses = [], []
        for datagram in self.socket.take(limit):
            data = datagram.data[: self.mtu]
            truncated = len(data) < len(datagram.data)
            packets.append(data)
            self.bytes += len(data)
            self.truncated += truncated
            if self.details:
                name = self.socket._network._names[datagram.device]
                told = (datagram.group, name, datagram.ttl, datagram.timestamp, truncated)
                addresses.append(Address(datagram.source, *told))
            else:
                addresses.append(Address(datagram.source, self.group, self.interface, None, None, truncated))
        self.packets += len(packets)
        return packets, addresses


class _Writer:
    """`batch.Writer` for a socket in memory."""

    def __init__(self, socket: _Socket, sockaddr: tuple[Any, ...], **others: Any) -> None:
        self.socket = socket
        self.sockaddr = sockaddr
        self.__dict__.update(others)

    def send(self, packets: Sequence[bytes], start: int = 0) -> int:
        some = packets[start : start + batch.LIMIT]
        for packet in some:
            self.socket.sendto(packet, self.sockaddr)
        return len(some)


@dataclass(slots=True)
class Traffic:
    """What a network has counted, for each receiver of a packet by itself."""

    #: Packets that were sent, whether or not anybody heard them.
    sent: int = 0
    #: Copies that came to a listener's receive buffer.
    delivered: int = 0
    #: Copies the network has lost.
    lost: int = 0
    #: Copies that came twice.
    duplicated: int = 0
    #: Copies held back, so that later ones could overtake them.
    reordered: int = 0
    #: Copies for which the receive buffer had no room.
    dropped: int = 0


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
            if not value >= 0:
                raise ArgumentError(f"{name} must be 0 or more seconds, not {value!r}")
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
        self._names = dict(enumerate(("lo", *interfaces), 1))
        self._random = random.Random(seed)  # noqa: S311 -- the same faults in each run are what it is for
        self._now = 0.0
        self._host = 1
        self._ports = itertools.count(_EPHEMERAL)
        self._order = itertools.count()
        self._sockets: dict[_Socket, None] = {}
        self._flying: list[tuple[float, int, _Socket, _Datagram]] = []
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
            moments = [poller._next_deadline() for poller in self._driven()]
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
        deadline = driven._next_deadline()
        if deadline is not None and deadline <= self._now:
            return True
        epoll = driven._epoll
        return epoll is not None and bool(epoll.poll(0, 1))

    def _wait(self, original: Callable[[Poller, float | None], Any], waiting: Poller, timeout: float | None) -> Any:
        """Take the place of a poller's waiting: turn the clock to the next thing that happens."""
        ready = original(waiting, 0)
        if ready or ready is None or timeout == 0 or self._busy(waiting):
            return ready
        moments = [self._flying[0][0] if self._flying else None, waiting._next_deadline()]
        moments += [None if timeout is None else self._now + timeout]
        moment = min((moment for moment in moments if moment is not None), default=None)
        if moment is None:
            raise RuntimeError(
                "the program waits, and nothing will ever happen: no packet is on its way, no timer is set, and nobody"
                " else is going to send"
            )
        self._turn(max(moment, self._now))
        return original(waiting, 0)

    # -- hosts and packets -----------------------------------------------------------------------------------------

    @contextmanager
    def host(self, number: int) -> Iterator[None]:
        """Open what is opened inside on another host: number 2 is 10.0.0.2 and fd00::2, up to 254."""
        if not 1 <= number <= 254:
            raise ArgumentError(f"hosts have numbers from 1 to 254, not {number!r}")
        before, self._host = self._host, number
        try:
            yield
        finally:
            self._host = before

    def _interfaces(self) -> list[Interface]:
        """Return the interfaces of the current host."""
        found = [Interface(1, "lo", ("127.0.0.1", "::1"), multicast=False, loopback=True, mtu=65536)]
        for index, name in self._names.items():
            if index > 1:
                found.append(Interface(index, name, self._own(self._host, index), mtu=1500))
        return found

    @staticmethod
    def _own(host: int, index: int) -> tuple[str, str]:
        if index == 1:
            return ("127.0.0.1", "::1")
        lan = index - 2
        return (f"10.0.{lan}.{host}", f"fd00::{f'{lan:x}:' if lan else ''}{host:x}")

    def _addresses(self, host: int) -> set[str]:
        return {address for index in self._names for address in self._own(host, index)}

    def _free_port(self) -> int:
        used = {opened._port for opened in self._sockets}
        return next(port for port in self._ports if port not in used)

    def _transmit(self, sender: _Socket, data: bytes, to: tuple[Any, ...], index: int, source: str) -> None:
        """Send a packet to all that want it."""
        address = to[0].partition("%")[0]
        multicast = address.startswith("ff") if ":" in address else 224 <= int(address.partition(".")[0]) <= 239
        own = next((number for number in self._names if source in self._own(sender.host, number)), 0)
        if not multicast and address in self._addresses(sender.host):
            index = 1
        index = index or own or 2
        if source not in self._addresses(sender.host):
            source = self._own(sender.host, index)[":" in address]
        ttl = sender._ttl if multicast else sender._hops
        from_ = (source, sender._port) if sender.family == socket.AF_INET else (source, sender._port, 0, 0)
        datagram = _Datagram(data, from_, address, index, (1 if multicast else 64) if ttl < 0 else ttl)
        self.traffic.sent += 1
        for receiver in list(self._sockets):
            same = receiver.host == sender.host
            heard = (sender._loop or index == 1 or not multicast) if same else index != 1
            if receiver.family == sender.family and heard and receiver.wants(address, to[1], multicast, index, source):
                self._carry(receiver, datagram)

    def _carry(self, receiver: _Socket, datagram: _Datagram) -> None:
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

    def _deliver(self, receiver: _Socket, datagram: _Datagram) -> None:
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
                opened = _Socket(self, table.family)
                self._sockets[opened] = None
                return opened

            return open_

        self._replace(datagrams, "open_socket", make(datagrams.open_socket))
        self._replace(choosing, "routed", lambda to: True)
        self._everywhere(interfaces.interfaces, self._interfaces)

        def idle(watch: Any, changed: Callable[[], object]) -> None:
            watch._changed = changed
            watch._socket = _Socket(self, socket.AF_INET)

        self._replace(interfaces.Watch, "__init__", idle)

        reader, writer, receive, send = batch.Reader, batch.Writer, batch.receive, batch.send

        def any_reader(opened: Any, *arguments: Any, **options: Any) -> Any:
            return (_Reader if isinstance(opened, _Socket) else reader)(opened, *arguments, **options)

        def any_writer(opened: Any, *arguments: Any, **options: Any) -> Any:
            return (_Writer if isinstance(opened, _Socket) else writer)(opened, *arguments, **options)

        def any_receive(which: Any, *arguments: Any) -> Any:
            return which.receive(*arguments) if isinstance(which, _Reader) else receive(which, *arguments)

        def any_send(which: Any, *arguments: Any) -> Any:
            return which.send(*arguments) if isinstance(which, _Writer) else send(which, *arguments)

        self._everywhere(reader, any_reader)
        self._everywhere(writer, any_writer)
        self._everywhere(receive, any_receive)
        self._everywhere(send, any_send)

        wait, built = Poller._wait, Poller.__init__
        self._replace(Poller, "_wait", lambda waiting, timeout: self._wait(wait, waiting, timeout))
        self._replace(Poller, "_sleep", lambda sleeping, seconds, *_: self._turn(self._now + seconds))

        def make_poller(new: Poller, *, clock: Callable[[], float] | None = None) -> None:
            built(new, clock=clock or self.time)
            self._pollers.append(weakref.ref(new))

        self._replace(Poller, "__init__", make_poller)
        for present in list(poller._pollers):
            self._adopt(present)

    def _adopt(self, present: Poller) -> None:
        """Give a poller that was there before the clock of the network, and no timers, until the end."""
        clock, timers = present._clock, present._timers
        present._clock, present._timers = self.time, []

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
                    if isinstance(target, Dispatcher) and isinstance(target.socket, _Socket):
                        target.close()
            for opened in list(self._sockets):
                opened.close()
            self._flying.clear()
        finally:
            while self._undo:
                self._undo.pop()()
            _active = None


_active: Network | None = None
