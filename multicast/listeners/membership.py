"""`MulticastListener`: which groups are joined on which interfaces, and that they stay so."""

from __future__ import annotations

import errno
import functools
import logging
import math
import socket
from collections.abc import Callable, Container, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from multicast import batch, filters
from multicast.batch import Address
from multicast.errors import ArgumentError, InterfaceError, check_amount
from multicast.filters import Filter
from multicast.interfaces import Interface, Watch, interfaces, memberships, resolve, usable
from multicast.poller import Poller, Timer, report
from multicast.sockets import (
    DEFAULT_IP,
    DEFAULT_PORT,
    Group,
    WhichInterfaces,
    confine,
    crosses_interfaces,
    join_each,
    named,
    open_receiver,
    receiving,
)

from .datagrams import DatagramListener

if TYPE_CHECKING:
    from multicast.sealed import Seal

_log = logging.getLogger("multicast")


class HasAddress(Protocol):
    """An object that sends: a `Sender`, a `Multicaster`, a `Requester`."""

    @property
    def address(self) -> tuple[Any, ...] | None:
        """The address and port it sends from, as `socket.getsockname` gives them; None while it has none."""


# How old the list of this host's addresses may be, in seconds.
_ADDRESSES_AGE = 1.0


class _Ignore:
    """Tells whether a packet came from one of some senders of this process."""

    def __init__(self, senders: Iterable[HasAddress], accept: Callable[[bytes, Address], object] | None) -> None:
        self._senders = tuple(senders)
        for sender in self._senders:
            if not hasattr(sender, "address"):
                raise ArgumentError(f"ignore takes senders, such as a Multicaster or a Sender, not {sender!r}")
        self._accept = accept
        self._last: dict[int, tuple[Any, ...]] = {}  # of senders that are closed now, whose packets may still arrive
        self._own: frozenset[str] = frozenset()
        self._own_until = -math.inf

    def __call__(self, packet: bytes, addr: Address) -> object:
        for place, sender in enumerate(self._senders):
            name = sender.address or self._last.get(place)
            if name is None:
                continue
            self._last[place] = name
            if name[1] == addr[1] and (name[0] == addr[0] or (name[0] in _ANY and self._is_own(addr[0]))):
                return False
        return True if self._accept is None else self._accept(packet, addr)

    def _is_own(self, host: str) -> bool:
        now = monotonic()
        if host not in self._own and now >= self._own_until:
            self._own = frozenset(address for one in interfaces() for address in one.addresses)
            self._own_until = now + _ADDRESSES_AGE
        return host.partition("%")[0] in self._own


# What `socket.getsockname` says of a socket whose address the kernel chooses for each packet.
_ANY = ("0.0.0.0", "::")  # noqa: S104 -- compared, not bound


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

    `rcvbuf` asks for a receive buffer of so many bytes. With `details` the kernel tells arrival interface, TTL, DSCP
    and time of each packet; that takes about a fifth more time for each packet than bare receiving. The listener is
    registered with `poller`, by default the default poller, once the constructor of the subclass is done.

    Where the first bytes of an expression are certain, the kernel refuses packets that cannot match before they take
    room in the buffer; with `kernel_filter` False it does not. With `shard` (index, count) this listener gets one part
    in `count` of the packets and its like, in other processes, get the others: by sender, or, with `shard_key` (offset,
    length), by a field of the payload of 1, 2 or 4 bytes in network order, whose remainder by `count` is the index.

    With `offload` the kernel hands over whole bursts where packets came as such, from a sender on this host or from a
    network card that gathers them. Receiving then is several times faster and the buffer holds ten times more. The
    price: if there is no room for a burst, `dropped` counts it as one packet, and its packets have one time stamp.
    Where the kernel looks into packets, for an expression or a field, they come singly all the same.

    `ignore` names senders of this process, such as a `Multicaster` or a `Sender`. Packets from their address and port,
    as these are at the time, are counted as filtered. (``loopback=False`` of a sender would keep them from every
    program on this host.)

    With `seal` (a `sealed.Seal`) packets are opened before the filter and the handler see them, and `mtu` and
    `statistics` count what is in them. A packet that does not open is counted in `statistics().rejected`, and by cause
    in `rejected`. The kernel cannot look into sealed packets, so the filter works after opening alone.

    With `silence`, in seconds, `handle_silence` is called when nothing came for so long, and again each time as much
    has passed: no sooner than that, and before twice as long.

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
        silence: float | None = None,
        ignore: Iterable[HasAddress] = (),
        seal: Seal | None = None,
        poller: Poller | None = None,
    ) -> None:
        if silence is not None:
            check_amount("silence", silence, "seconds", zero=False)
        self._silence = silence
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
            seal=seal,
        )
        if ignore := tuple(ignore):
            self._passes_filter = _Ignore(ignore, self._passes_filter)
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
        opened, self._memberships, joined = self._with_program(functools.partial(self._open_joined, chosen))
        #: The interfaces the group is joined on.
        self.interfaces: tuple[Interface, ...] = tuple(joined)
        self._take_over(opened, mtu, self.group.address, self._only_interface, details, poller)

    _memberships: Any = None
    _silence: float | None = None
    _silence_timer: Timer | None = None
    _heard_before, _silent_for = 0, 0.0

    def handle_silence(self, seconds: float) -> None:
        """Called with `silence` when no packet came for `seconds`; logs it the first time, and calls `rejoin`."""
        if self._silence is not None and seconds < 2 * self._silence:
            group = self.group
            _log.warning("%s: no packet for %g s; `multicast doctor %s` looks for the cause", group, seconds, group)
        self.rejoin()

    def rejoin(self) -> None:
        """Leave the group and join it again: switches and routers that have forgotten this member hear of it anew."""
        if self.socket is None:
            return
        for interface in self.interfaces:
            self._memberships.leave(interface.index)
        self.interfaces = tuple(self._join_fresh(self.interfaces))

    def _look_for_silence(self) -> None:
        assert self._silence is not None  # noqa: S101 -- nobody calls it otherwise
        self._silence_timer = self.poller.call_later(self._silence, self._look_for_silence)
        counted = self.statistics()
        heard = counted.packets + counted.dropped + self._refused_in_kernel
        if heard != self._heard_before:
            self._heard_before, self._silent_for = heard, 0.0
            return
        self._silent_for += self._silence
        try:
            self.handle_silence(self._silent_for)
        except Exception as error:
            report(self, error)

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
        if self._silence is not None:
            self._silence_timer = self.poller.call_later(self._silence, self._look_for_silence)
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
        if self._silence_timer is not None:
            self._silence_timer.cancel()
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
            self._memberships.leave(interface.index)
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
        before = (packets + old.packets, octets + old.bytes, truncated + old.truncated)
        reader = batch.Reader(
            opened,
            old.mtu,
            group=old.group,
            interface=self._only_interface,
            details=old.details,
            offload=old.offload,
        )
        reader.batch, reader.left, reader.unread = old.batch, old.left, old.unread
        self._read_before, self._socket_reader = before, reader

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
        try:
            joined = join_each(self._memberships, self.group, fresh, optional=True)
        except OSError as error:
            names = ", ".join(interface.name for interface in fresh[:5])
            _log.warning("%s is not joined on %s: %s", self.group.address, names, error)
            joined = []
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
            opened, memberships, joined = self._with_program(functools.partial(self._open_joined, fresh))
        except OSError as error:
            _log.warning("%s is not joined on %s: %s", self.group, fresh[0].name, error)
            return []
        self._count_drops()
        poller = self.poller
        poller.unregister(self)
        self.socket.close()
        self._memberships.close()
        self.socket, self._memberships = opened, memberships
        self._count_from(opened)
        poller.register(self, self._flags)
        return joined

    def __repr__(self) -> str:
        where = ",".join(interface.name for interface in self.interfaces)
        return f"<{type(self).__name__} {self.group} on {where}{', closed' if self.closed else ''}>"

    def _leave(self, socket: socket.socket) -> None:
        for interface in self.interfaces:
            self._memberships.leave(interface.index)
        super()._leave(socket)

    def close(self) -> None:
        """Leave the groups, unregister, and close the sockets; nothing is delivered from then on. Idempotent."""
        try:
            super().close()
        finally:
            if self._memberships is not None:
                self._memberships.close()

    def _abandon(self) -> None:
        super()._abandon()
        self._memberships.close()


class _Vigil(Watch):
    """Keeps the listeners of a poller joined while interfaces come and go."""

    # Changes come in flocks. It looks when there were none for a moment, and not much later if they do not end.
    _MOMENT, _PATIENCE = 0.2, 1.0
    # On a host with hundreds of interfaces a look takes some ten milliseconds: it takes at most this share of the time.
    _SHARE = 0.01

    def __init__(self, poller: Poller) -> None:
        super().__init__(self._changed_something)
        # By identity: a subclass may say when two of them are equal, and so take away their hash.
        self.listeners: dict[int, MulticastListener] = {}
        self._poller = poller
        self._timer: Timer | None = None
        self._since: float | None = None
        self._not_before = -math.inf
        poller.add_helper(self)

    def _changed_something(self) -> None:
        now = self._poller.time()
        self._since = now if self._since is None else self._since
        if self._timer is not None:
            self._timer.cancel()
        due = max(min(now + self._MOMENT, self._since + self._PATIENCE), self._not_before)
        self._timer = self._poller.call_at(due, self._look)

    def _look(self) -> None:
        self._since = None
        began = monotonic()
        present = interfaces()
        known = {(membership.interface, membership.group) for membership in memberships()}
        for listener in list(self.listeners.values()):
            listener._follow_interfaces(present, known)
        self._not_before = self._poller.time() + (monotonic() - began) / self._SHARE

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._poller.remove_helper(self)
        super().close()
