"""Receiving from groups: `MulticastListener` to subclass, `listen` for the simple cases, `Inbox` to iterate over.

The way of a packet: `Poller.poll` -> `handle_read` -> `batch.receive` -> the filter -> `handle_packet`.
"""

from __future__ import annotations

import errno
import functools
import logging
import select
import socket
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from . import batch, filters
from .batch import Address
from .errors import ArgumentError, InterfaceError, RegistrationError, check_number
from .filters import Filter
from .interfaces import Interface, Watch, interfaces, memberships, resolve, usable
from .poller import Dispatcher, Poller, Timer
from .sockets import (
    DEFAULT_IP,
    DEFAULT_PORT,
    Group,
    WhichInterfaces,
    confine,
    crosses_interfaces,
    drops,
    join_on,
    leave,
    named,
    open_receiver,
    open_unicast,
    overflows,
    receive_buffer,
    receiving,
)

__all__ = ["DatagramListener", "Inbox", "MulticastListener", "Statistics", "listen"]

_log = logging.getLogger("multicast")

_Result = TypeVar("_Result")

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    class Options(TypedDict, total=False):
        """The keywords of `MulticastListener` that `Inbox` takes too."""

        interface: WhichInterfaces
        sources: Iterable[str] | None
        exclude: Iterable[str] | None
        rcvbuf: int | None
        details: bool
        kernel_filter: bool
        shard: tuple[int, int] | None
        shard_key: filters.ShardKey
        offload: bool
        poller: Poller | None

    class ListenOptions(Options, total=False):
        """Those that `listen` takes."""

        filter: Filter


class Statistics(NamedTuple):
    """What a listener has counted so far."""

    #: Packets read from the socket.
    packets: int
    #: Their bytes, as far as they were kept.
    bytes: int
    #: Packets given to `handle_packet`.
    delivered: int
    #: Packets the filter refused, in the kernel or here; with `shard` those of the other shards as well, and for IPv6
    #: on named interfaces those that came by others.
    filtered: int
    #: Packets longer than `mtu`, which were cut.
    truncated: int
    #: Packets the kernel dropped at this socket, because its buffer was full. They are in no other number: `delivered`,
    #: `filtered` and `dropped` together are what came here, once all of it is read. Where the kernel filters, it counts
    #: both in one; they are told apart by what the whole host has lost meanwhile, so this may be too high, and
    #: `filtered` too low, while other sockets overflow too; their sum is exact. With `offload` a burst that was
    #: dropped, or belongs to another shard, counts as one packet.
    dropped: int


class DatagramListener(Dispatcher):
    """Receives datagrams at a unicast address and calls `handle_packet` for those that pass a filter.

    `ip` is an address of this host, or ``0.0.0.0`` or ``::`` for all of them; port 0 takes any free port, and
    `address` tells which. The port is not shared with other programs. The other arguments are those of
    `MulticastListener`.

    Raises `GroupError`, `FilterError`, `ArgumentError`, `InterfaceError`, and `OSError` with advice.
    """

    #: The filter of all instances of a class; a plain function here takes `(packet, addr)`.
    filter: Any = None
    # How many packets a turn may deliver.
    _packets_at_once = batch.LIMIT

    def __init__(
        self,
        filter: Filter = None,
        ip: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        rcvbuf: int | None = None,
        details: bool = False,
        kernel_filter: bool = True,
        offload: bool = False,
        poller: Poller | None = None,
    ) -> None:
        self._check_arguments(filter, mtu, rcvbuf, kernel_filter=kernel_filter, offload=offload)
        opened = self._with_program(functools.partial(open_unicast, ip, port, rcvbuf=rcvbuf, details=details))
        own = opened.getsockname()[0]
        self._take_over(opened, mtu, None if own in ("0.0.0.0", "::") else own, None, details, poller)  # noqa: S104

    def _check_arguments(
        self,
        filter: Filter,
        mtu: int,
        rcvbuf: int | None = None,
        *,
        kernel_filter: bool = False,
        offload: bool = False,
        shard: Sequence[filters.Instruction] = (),
        whole_bursts: bool = True,
    ) -> None:
        """Check what can be checked before a socket is opened; `shard` is the program that deals out packets."""
        wanted = filters.class_filter(self) if filter is None else filter
        self._passes_filter = filters.predicate(wanted)
        check_number("mtu", mtu, of="bytes")
        if rcvbuf is not None:
            check_number("rcvbuf", rcvbuf, of="bytes")
        refusals = filters.refusals(wanted) if kernel_filter else []
        #: The kernel's programs: all that is wanted, and the least that is needed.
        self._kernel_program = filters.assemble([*shard, *refusals]) if shard or refusals else []
        self._least_program = filters.assemble([*shard]) if shard else []
        # A program sees the first packet of a burst only, and would decide for all of them.
        self._takes_bursts = offload and whole_bursts and not refusals

    def _with_program(self, opening: Callable[..., _Result]) -> _Result:
        """Open a socket with the kernel's program; where the kernel takes none, without what is not needed."""
        try:
            return opening(program=self._kernel_program, bursts=self._takes_bursts)
        except OSError as error:
            refused = error.errno in (errno.ENOMEM, errno.ENOPROTOOPT, errno.EPERM)
            if self._kernel_program == self._least_program or not refused:
                raise
        # Too little memory for options (net.core.optmem_max), or not Linux itself: the filter in Python does it all.
        opened = opening(program=self._least_program, bursts=self._takes_bursts)
        self._kernel_program = self._least_program
        return opened

    def _take_over(
        self,
        opened: socket.socket,
        mtu: int,
        group: str | None,
        interface: str | None,
        details: bool,
        poller: Poller | None,
    ) -> None:
        """Take over the socket."""
        Dispatcher.__init__(self, opened, poller)
        self._socket_reader = batch.Reader(
            opened, mtu, group=group, interface=interface, details=details, offload=self._takes_bursts
        )
        # Read and not delivered yet: a handler raised or is at work, or more came at once than is good for one turn.
        self._unread_packets: Iterator[tuple[bytes, Address]] | None = None
        self._batch_read: list[bytes] = []
        self._packets_left: Iterator[bytes] = iter(self._batch_read)  # what is left of it, to be counted
        self._unread_forgotten = 0  # read, and closed before they were delivered
        self._filter_refused = 0  # by the filter in Python
        self._refused_in_kernel = self._kernel_dropped = 0
        self._read_before = (0, 0, 0)  # packets, bytes and cut ones, by readers that this one has replaced
        self._count_from(opened)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{', closed' if self.closed else f' at {self.address}'}>"

    @property
    def address(self) -> tuple[Any, ...]:
        """The address and port it receives at, as `socket.getsockname` gives them. Raises `OSError` once closed."""
        if self.socket is None:
            raise OSError(errno.EBADF, "the listener is closed")
        name: tuple[Any, ...] = self.socket.getsockname()
        return name

    @abstractmethod
    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Called with each packet that passes the filter; a true result closes this listener.

        `addr` equals what `socket.recvfrom` returns, and tells more; see `Address`.
        """

    def handle_read(self) -> None:
        """Receive one batch and deliver it; called by the poller."""
        room = self._packets_at_once
        unread = self._unread_packets
        if unread is None:
            reader = self._socket_reader
            packets, addresses = batch.receive(reader, room)
            self._batch_read = packets
            self._packets_left = left = iter(packets)
            self._unread_packets = unread = zip(left, addresses, strict=False)  # `_forget` makes one shorter
            if len(packets) <= room:
                self._deliver_packets(unread, reader.origin)
                return
        # What is left from before, or came in bursts, takes turns with everybody else's.
        self._deliver_packets(islice(unread, room))

    def _deliver_packets(self, packets: Iterator[tuple[bytes, Address]], only: Address | None = None) -> None:
        """Hand out `packets`, of which `only` is the address of all, where it is given."""
        # They are taken from `_unread`, so that a handler that polls gets the rest of it before newer ones. A handler
        # that closes its listener ends the loop by emptying the list below it (`_forget`); and `statistics` works out
        # what was delivered from what is left there. So nothing but the calls is done for each packet.
        accept, handle = self._passes_filter, self.handle_packet
        filtered = 0
        try:
            if accept is None and only is not None:
                for packet in self._packets_left:
                    if handle(packet, only):
                        self.close()
            elif accept is None:
                for packet, addr in packets:
                    if handle(packet, addr):
                        self.close()
            else:
                for packet, addr in packets:
                    if not accept(packet, addr):
                        filtered += 1
                    elif handle(packet, addr):
                        self.close()
        finally:
            self._filter_refused += filtered
            if self.socket is not None and length_hint(self._packets_left):
                self.poller.revisit(self)
            else:
                self._unread_packets = None
                self._batch_read.clear()  # they need not live until the next ones come

    def _forget_unread(self) -> None:
        """Deliver nothing of what was read before."""
        self._unread_forgotten += length_hint(self._packets_left)
        self._batch_read.clear()

    def close(self) -> None:
        """Leave the groups, unregister, and close the socket; nothing is delivered from then on. Idempotent."""
        if self.socket is not None:
            try:
                super().close()
            finally:
                self._forget_unread()

    def _abandon(self) -> None:
        super()._abandon()
        self._forget_unread()

    @property
    def pending(self) -> bool:
        """Whether packets were read from the socket that are not delivered yet."""
        return self._unread_packets is not None

    @property
    def rcvbuf(self) -> int:
        """The receive buffer the kernel granted, in bytes; 0 once closed."""
        return 0 if self.socket is None else receive_buffer(self.socket)

    def statistics(self) -> Statistics:
        """Return what was counted so far; it stays readable after `close`."""
        self._count_drops()
        reader = self._socket_reader
        packets, octets, truncated = self._read_before
        packets += reader.packets
        return Statistics(
            packets,
            octets + reader.bytes,
            packets - self._filter_refused - self._unread_forgotten - length_hint(self._packets_left),
            self._filter_refused + self._refused_in_kernel,
            truncated + reader.truncated,
            self._kernel_dropped,
        )

    @property
    def _kernel_refuses(self) -> bool:
        """Whether the kernel's counter of drops has packets in it that were not wanted."""
        return bool(self._kernel_program)

    def _count_from(self, opened: socket.socket) -> None:
        """Count what the kernel drops at this socket from now on."""
        self._dropped_here = 0
        self._overflows = (overflows(opened) or 0) if self._kernel_refuses else 0

    def _count_drops(self) -> None:
        if self.socket is None:
            return
        try:
            # The host's counter first: it must not know of drops that this socket's does not.
            overflowed = overflows(self.socket) if self._kernel_refuses else None
            # The kernel's counter has 32 bits and wraps.
            new = (drops(self.socket) - self._dropped_here) & 0xFFFFFFFF
        except OSError:  # somebody else has closed its descriptor
            return
        self._dropped_here += new
        if overflowed is not None:
            # What the host has lost since the last look is the most that can have been lost here; the rest was refused.
            lost = min(new, max(0, overflowed - self._overflows))
            self._overflows = overflowed
            self._refused_in_kernel += new - lost
            new = lost
        self._kernel_dropped += new

    def _leave(self, socket: socket.socket) -> None:
        self._count_drops()


class MulticastListener(DatagramListener):
    """Joins a multicast group and calls `handle_packet` for the packets that pass a filter.

    `filter` is a callable `filter(packet, addr)`, or a regular expression (text, bytes, compiled, or any object with
    `match`) that is matched at the start of the packet's bytes. None, the default, takes what the class attribute
    `filter` says, and lets everything pass where there is none. `ip` and `port` name the group. `mtu` is the most
    bytes kept of a packet; longer ones are cut, marked and counted.

    `interface` is a name, an index, a local address or a list of these; None joins on every interface that is up and
    can do multicast, and on ``lo``. `sources` makes the join source-specific (IGMPv3, MLDv2), `exclude` refuses some
    senders. The listener gets packets of its group, on its port, from its interfaces, and nothing else; other
    programs may use the group and the port as well.

    `rcvbuf` asks for a receive buffer of so many bytes. With `details` the kernel tells arrival interface, TTL and
    time of each packet; that takes about a fifth more time for each packet than bare receiving. The listener is
    registered with `poller`, by default the default poller, once the constructor of the subclass is done.

    Where the first bytes of an expression are certain, the kernel refuses packets that cannot match before they take
    room in the buffer; with `kernel_filter` False it does not. With `shard` (index, count) this listener gets one part
    in `count` of the packets and its like, in other processes, get the others: by sender, or, with `shard_key` (offset,
    length), by a field of the payload of 1, 2 or 4 bytes in network order, whose remainder by `count` is the index.

    With `offload` the kernel hands over whole bursts where packets came as such, from a sender on this host or from a
    network card that gathers them. Receiving then is several times faster and the buffer holds ten times more. The
    price: if there is no room for a burst, `dropped` counts it as one packet, and its packets have one time stamp.
    Where the kernel looks into packets, for an expression or a field, they come singly all the same.

    Raises `GroupError`, `FilterError`, `ArgumentError`, `InterfaceError`, and `OSError` with advice.

    >>> class Printer(MulticastListener):
    ...     filter = lambda packet, addr: True
    ...     def handle_packet(self, packet, addr):
    ...         print(packet)
    ...         return True  # stop listening
    >>> Printer()
    <Printer 224.0.42.42:4242 on lo...>
    >>> sendto("test")
    1
    >>> poll()
    b'test'
    """

    def __init__(
        self,
        filter: Filter = None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        interface: WhichInterfaces = None,
        sources: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        rcvbuf: int | None = None,
        details: bool = False,
        kernel_filter: bool = True,
        shard: tuple[int, int] | None = None,
        shard_key: filters.ShardKey = "source",
        offload: bool = False,
        poller: Poller | None = None,
    ) -> None:
        #: The group, its port and sources.
        self.group = Group.of(ip, port, sources)
        self._check_arguments(
            filter,
            mtu,
            rcvbuf,
            kernel_filter=kernel_filter,
            offload=offload,
            shard=() if shard is None else filters.shard_refusals(shard, shard_key, ":" in self.group.address),
            whole_bursts=shard is None or shard_key == "source",
        )
        chosen = receiving(self.group, interface)
        # What was asked for, and the names this meant: a device that is made anew comes back under its name only.
        self._asked_interfaces = [(one, resolve(one, chosen).name) for one in named(self.group, interface)]
        self._excluded_sources = tuple(() if exclude is None else (exclude,) if isinstance(exclude, str) else exclude)
        self._open_joined = functools.partial(
            open_receiver,
            self.group,
            exclude=self._excluded_sources,
            rcvbuf=rcvbuf,
            details=details,
            optional=not self._asked_interfaces,
        )
        opened, joined = self._with_program(functools.partial(self._open_joined, chosen))
        #: The interfaces the group is joined on.
        self.interfaces: tuple[Interface, ...] = tuple(joined)
        self._take_over(opened, mtu, self.group.address, self._only_interface, details, poller)

    def handle_interfaces(self, gone: Sequence[Interface], joined: Sequence[Interface]) -> None:
        """Called when interfaces of this listener went away, or came (back) and were joined; logs it.

        A listener on all interfaces joins new ones as they appear, and one on a named interface joins it again when
        it was made anew, within about a second of the change.
        """
        # Who asked for all interfaces expects them to come and go; who named one misses it.
        level = logging.WARNING if self._asked_interfaces else logging.INFO
        for interface in gone:
            _log.log(level, "%s: the interface %s is gone; joining when it is back", self.group, interface.name)
        for interface in joined:
            _log.log(level, "%s: joined on %s, which is new or there again", self.group, interface.name)

    def _attached(self) -> None:
        vigil = self.poller.helper(_Vigil)
        if vigil is None:
            try:
                vigil = _Vigil(self.poller)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAFNOSUPPORT, errno.EPERM, errno.EPROTONOSUPPORT):
                    raise
                return  # a sandbox without netlink(7): the listener works, and does not follow its interfaces
        vigil.listeners[id(self)] = self

    def _detached(self, poller: Poller) -> None:
        vigil = poller.helper(_Vigil)
        if vigil is not None:
            vigil.listeners.pop(id(self), None)
            if not vigil.listeners:
                vigil.close()

    def _follow_interfaces(self, present: Sequence[Interface], known: Container[tuple[str, str]]) -> None:
        """Make the memberships fit the interfaces there are; `known` are those the kernel lists, by name and group."""
        if self.socket is None:
            return
        indices = {interface.index for interface in present}
        kept = [interface for interface in self.interfaces if interface.index in indices]
        gone = [interface for interface in self.interfaces if interface.index not in indices]
        wanted = self._wanted_interfaces(present)
        # The kernel's list decides, not what we did: a driver that is loaded anew loses memberships. It goes by names,
        # and these may have been changed, so it is asked under the present ones.
        before = {interface.index for interface in kept}
        fresh = [one for one in wanted if one.index not in before or (one.name, self.group.address) not in known]
        for interface in (*gone, *fresh):
            leave(self.socket, self.group, interface.index)
        joined = self._join_fresh(fresh)
        if gone or joined:
            still = [interface for interface in kept if interface.index not in {one.index for one in joined}]
            self.interfaces = (*still, *joined)
            self._renew_reader(self.socket)
            self.handle_interfaces(gone, joined)

    @property
    def _only_interface(self) -> str | None:
        """The name of the interface packets arrive on, when it can be one alone."""
        return self.interfaces[0].name if len(self.interfaces) == 1 else None

    def _renew_reader(self, opened: socket.socket) -> None:
        """Read from this socket from now on, and from the interfaces that are joined now."""
        old = self._socket_reader
        packets, octets, truncated = self._read_before
        self._read_before = (packets + old.packets, octets + old.bytes, truncated + old.truncated)
        self._socket_reader = batch.Reader(
            opened,
            old.mtu,
            group=old.group,
            interface=self._only_interface,
            details=old.details,
            offload=old.offload,
        )

    def _wanted_interfaces(self, present: Sequence[Interface]) -> list[Interface]:
        """Return which of the interfaces `present` this listener is to be joined on."""
        if not self._asked_interfaces:
            return usable(present)
        found = {}
        for one, name in self._asked_interfaces:
            for spelling in (one, name):
                try:
                    interface = resolve(spelling, present)
                except InterfaceError:
                    continue
                found[interface.index] = interface
                break
        return list(found.values())

    def _join_fresh(self, fresh: Sequence[Interface]) -> list[Interface]:
        """Join on interfaces that are new here; return those where it worked. The rest waits for the next change."""
        if not fresh or self.socket is None:
            return []
        if self.group.needs_interface:
            return self._reopen_joined(fresh)
        joined = []
        for interface in fresh:
            try:
                join_on(self.socket, self.group, interface, self._excluded_sources)
                joined.append(interface)
            except OSError as error:
                _log.warning("%s is not joined on %s: %s", self.group, interface.name, error)
        if self._asked_interfaces:
            confine(self.socket, self.group, [*self.interfaces, *joined], self._kernel_program)
        return joined

    @property
    def _kernel_refuses(self) -> bool:
        return bool(self._kernel_program) or (bool(self._asked_interfaces) and crosses_interfaces(self.group))

    def _reopen_joined(self, fresh: Sequence[Interface]) -> list[Interface]:
        """Take a new socket: one for a link-local group is bound to its interface, and does not outlive it."""
        assert self.socket is not None  # noqa: S101 -- the caller has looked
        try:
            opened, joined = self._with_program(functools.partial(self._open_joined, fresh))
        except OSError as error:
            _log.warning("%s is not joined on %s: %s", self.group, fresh[0].name, error)
            return []
        self._count_drops()
        poller = self.poller
        poller.unregister(self)
        self.socket.close()
        self.socket = opened
        self._count_from(opened)
        poller.register(self, self._flags)
        return joined

    def __repr__(self) -> str:
        where = ",".join(interface.name for interface in self.interfaces)
        return f"<{type(self).__name__} {self.group} on {where}{', closed' if self.closed else ''}>"

    def _leave(self, socket: socket.socket) -> None:
        for interface in self.interfaces:
            leave(socket, self.group, interface.index)
        super()._leave(socket)


class _Vigil(Watch):
    """Keeps the listeners of a poller joined while interfaces come and go."""

    # Changes come in flocks. It looks when there were none for a moment, and not much later if they do not end.
    _MOMENT, _PATIENCE = 0.2, 1.0

    def __init__(self, poller: Poller) -> None:
        super().__init__(self._changed_something)
        # By identity: a subclass may say when two of them are equal, and so take away their hash.
        self.listeners: dict[int, MulticastListener] = {}
        self._poller = poller
        self._timer: Timer | None = None
        self._since: float | None = None
        poller.add_helper(self)

    def _changed_something(self) -> None:
        now = self._poller.time()
        self._since = now if self._since is None else self._since
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._poller.call_at(min(now + self._MOMENT, self._since + self._PATIENCE), self._look)

    def _look(self) -> None:
        self._since = None
        present = interfaces()
        known = {(membership.interface, membership.group) for membership in memberships()}
        for listener in list(self.listeners.values()):
            listener._follow_interfaces(present, known)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._poller.remove_helper(self)
        super().close()


class Inbox(MulticastListener):
    """A listener to iterate over: `next` returns one packet after the other.

    On an empty inbox `next` polls until a packet comes; `addr` is then where the packet came from. Iteration ends
    when `limit` packets were taken, or when the inbox is closed and empty. It holds up to `capacity` packets; more
    stay in the kernel's buffer until there is room again.

    The other arguments are those of `MulticastListener`.
    """

    def __init__(
        self,
        filter: Filter = None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        limit: int | None = None,
        capacity: int = 1024,
        **options: Unpack[Options],
    ) -> None:
        if limit is not None:
            check_number("limit", limit, of="packets")
        check_number("capacity", capacity, of="packets")
        super().__init__(filter, ip, port, mtu, **options)
        #: Where the packet last returned came from; None before the first.
        self.addr: Address | None = None
        self._inbox_limit = limit
        self._inbox_capacity = capacity
        self._inbox_waiting: deque[tuple[bytes, Address]] = deque()
        self._inbox_full = False

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Keep the packet until it is asked for."""
        self._inbox_waiting.append((packet, addr))
        return False

    def handle_read(self) -> None:
        """Receive as many packets as there is room for; called by the poller."""
        self._packets_at_once = min(batch.LIMIT, self._inbox_room())
        if self._packets_at_once > 0:
            super().handle_read()
        if self._inbox_room() <= 0 and self in self.poller:
            # Leave the rest in the kernel, which counts what it has no room for.
            self._inbox_full = True
            self.poller.modify(self, select.EPOLLERR)

    def _inbox_room(self) -> int:
        return self._inbox_capacity - len(self._inbox_waiting)

    def __len__(self) -> int:
        """Return how many packets wait."""
        return len(self._inbox_waiting)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Inbox:
        return self

    def __next__(self) -> bytes:
        """Return the next packet, polling until one comes when none waits."""
        if self._inbox_limit is not None and self._inbox_limit <= 0:
            self.close()
            raise StopIteration
        if not self._inbox_waiting:
            self.poller.run_until(lambda: self._inbox_waiting or self.closed or self not in self.poller)
            if not self._inbox_waiting:
                if not self.closed and self not in self.poller:
                    raise RegistrationError(f"{self!r} is not registered with a poller, so nothing comes; register it")
                raise StopIteration
        packet, self.addr = self._inbox_waiting.popleft()
        if self._inbox_full and self in self.poller:
            self._inbox_full = False
            self.poller.modify(self, 0)
            if self.pending:
                self.poller.revisit(self)
        if self._inbox_limit is not None:
            self._inbox_limit -= 1
        return packet

    def next(self) -> bytes:
        """Return the next packet, as `next(inbox)` does; the older spelling."""
        return self.__next__()


class _Delivery(MulticastListener):
    """What `listen` registers: hands packets to a function, and remembers what it said last."""

    def __init__(self, handler: Callable[[bytes, Address], object], limit: int | None, **options: Any) -> None:
        super().__init__(**options)
        self._handler = handler
        self._left = limit
        self.result: object = None

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        if self._left is not None:
            if self._left == 0:  # the handler polls, and is called with the last packet right now
                return True
            self._left -= 1
        self.result = self._handler(packet, addr)
        return self.result or self._left == 0


@overload
def listen(
    packet_handler: None = None,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    **options: Unpack[ListenOptions],
) -> Inbox: ...


@overload
def listen(
    packet_handler: Callable[[bytes, Address], _Result],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    **options: Unpack[ListenOptions],
) -> _Result: ...


def listen(
    packet_handler: Callable[[bytes, Address], Any] | None = None,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    **options: Unpack[ListenOptions],
) -> Any:
    """Call `packet_handler(packet, addr)` for each packet sent to the multicast group at `ip` on `port`.

    Does not return until the handler returns something true, or has been called with `limit` packets; returns what
    the handler returned last, and closes its listener. Other registered objects run meanwhile. `mtu` is the most
    bytes kept of a packet. The keywords of `MulticastListener` (`filter`, `interface`, `sources`, ...) are taken too.

    Without a handler it returns an `Inbox` at once, an iterator of packets:

    >>> listener = listen()
    >>> sendto("test")
    1
    >>> poll()
    >>> next(listener)
    b'test'
    >>> listener.close()
    """
    if limit is not None:
        check_number("limit", limit, of="packets")
    if packet_handler is None:
        return Inbox(ip=ip, port=port, mtu=mtu, limit=limit, **options)
    if not callable(packet_handler):
        raise ArgumentError(f"packet_handler must be callable with (packet, addr), not {packet_handler!r}")
    with _Delivery(packet_handler, limit, ip=ip, port=port, mtu=mtu, **options) as listener:
        listener.poller.run_until(lambda: listener.closed)
        return listener.result
