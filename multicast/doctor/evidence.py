"""What the doctor looks at: it listens, and has the kernel and the wire read; judging is in `checks`.

Facts about Linux that decide how it is looked at:

* /proc/net is that of the process; /proc/thread-self/net that of the network namespace this thread is in. What /sys
  shows of devices follows neither, so bridges are asked of `ip`, where that is installed.
* Counters are per network namespace, and count since it was made. Only what they grew by meanwhile says something.
* A packet to a group that nobody has joined leaves no trace but on the wire. So the doctor joins, on all interfaces,
  for as long as it looks. What came in by another interface or from another source is then seen without privileges.
* Its own joins send membership reports. They count as multicast packets sent, and on a host that is a router of groups
  also as received.
* Packet sockets see a packet before the firewall, the reverse path filter and the checksums; but not the copies that
  the kernel makes for members on the sending host.

Nothing is changed but for these memberships, and no packet goes to the group. One packet with TTL 0 goes by ``lo`` to
another group, to see whether anything can arrive at all.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from multicast import sealed
from multicast.batch import Address
from multicast.errors import InterfaceError, describe
from multicast.interfaces import Interface, Membership, Route, interfaces, memberships, resolve, route, usable
from multicast.listeners import MulticastListener
from multicast.poller import Poller
from multicast.sealed import Seal
from multicast.senders import sendto
from multicast.sockets import Group, WhichInterfaces, named

from . import firewall, kernel
from .departure import watch_for
from .firewall import Rule
from .kernel import Bridge, Holder, Program, SourceFilter
from .lines import Line, Lines
from .wire import Sealed, Seen, Table, Wire

__all__ = ["BETWEEN_LOOKS", "Evidence", "gather"]

_log = logging.getLogger("multicast")

_SELF_TEST = "239.255.77.77"
# Of how many other groups the sockets of programs are asked whether they have joined them.
_ASKED_MOST = 32
# Of how many interfaces the filters of tc are asked for; a program is started for each.
_TC_MOST = 8
#: How many packets may come between two looks that are meant to be at the same time.
BETWEEN_LOOKS = 5
# How many batches are read before the look begins and when it is over. A flood does not end with it.
_DRAIN = 16


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found out; the defaults are those of a healthy host where nothing happened."""

    group: Group = field(default_factory=Group)
    #: The names of the interfaces that were asked for; empty means all.
    asked: tuple[str, ...] = ()
    #: How long the counters ran, in seconds.
    seconds: float = 5.0
    present: tuple[Interface, ...] = ()
    route: Route | None = None
    #: The routes back to the sources that are known.
    back: Mapping[str, Route | None] = field(default_factory=dict)
    #: What had joined before we did.
    joined: tuple[Membership, ...] = ()
    filters: tuple[SourceFilter, ...] = ()
    #: IGMP versions in use, by interface.
    versions: Mapping[str, int] = field(default_factory=dict)
    #: Kernel parameters by name, such as ``net.ipv4.conf.all.rp_filter``.
    sysctl: Mapping[str, int] = field(default_factory=dict)
    #: What the kernel's counters grew by; those of IPv6 under the names of IPv4.
    counters: Mapping[str, int] = field(default_factory=dict)
    #: What arrived as asked: interface and source.
    arrived: tuple[Seen, ...] = ()
    #: What arrived for the group and port by any interface from any source.
    anywhere: tuple[Seen, ...] = ()
    #: What arrived on the same port for other groups that programs of this host have joined.
    others: tuple[Seen, ...] = ()
    #: What arrived as asked, by the key it is sealed with.
    seals: tuple[Sealed, ...] = ()
    #: Whether lines of a feed were compared, and what came by each.
    compared: bool = False
    lines: tuple[Line, ...] = ()
    #: The id of the key that the program has, and how many seconds clocks may differ; empty where none was given.
    key: str = ""
    max_age: float | None = None
    #: What was on the wire; None where we may not look.
    wire: tuple[Seen, ...] | None = ()
    #: Fragments other than the first on the wire, for the group.
    fragments: int = 0
    #: Where queries of IGMP or MLD were seen on the wire.
    queriers: tuple[tuple[str, str], ...] = ()
    #: By which interfaces this host was seen to report memberships.
    reporting: tuple[str, ...] = ()
    #: The user we are.
    uid: int = 0
    #: Sockets of other programs on the port, and those that cannot be heard on this host.
    holders: tuple[Holder, ...] = ()
    #: Interfaces with IPv6 that have no route for the group, by which the kernel takes packets to it; of IPv6 alone.
    unrouted: tuple[str, ...] = ()
    #: How many packets our own sockets did not get, with room in their buffers.
    refused_here: int = 0
    #: Interfaces with an XDP program, and those with filters of tc(8) for what comes in.
    xdp: tuple[str, ...] = ()
    ingress: tuple[str, ...] = ()
    #: Sockets at the port that no packet for a group can reach: bound to an address of this host.
    strangers: tuple[Holder, ...] = ()
    silent: tuple[Holder, ...] = ()
    #: The program that was asked for.
    program: Program | None = None
    #: Why we could not join, by interface; "" is for all of them.
    refused: Mapping[str, OSError] = field(default_factory=dict)
    #: Firewall rules in the way of incoming packets; None where we may not look.
    rules: tuple[Rule, ...] | None = ()
    #: The programs that should have told of rules, and did not or not in a form known here.
    unread: tuple[str, ...] = ()
    #: What takes the packets of an interface in its stead, by the interface's name: bridges and the like.
    masters: Mapping[str, str] = field(default_factory=dict)
    #: Bridges that snoop; None where `ip` is missing.
    bridges: tuple[Bridge, ...] | None = ()
    #: Whether the packet of the self-test came back; None where there was none.
    loopback: bool | None = True
    #: Whether the system did not permit us to send that packet.
    forbidden: bool = False
    container: bool = False
    #: The distributions that own the name of this package.
    distributions: tuple[str, ...] = ()
    engine: str = "c"
    engine_reason: str = ""

    @property
    def family(self) -> str:
        """IPv4 or IPv6."""
        return "IPv6" if ":" in self.group.address else "IPv4"

    @property
    def own(self) -> frozenset[str]:
        """The addresses of this host."""
        return frozenset(address for interface in self.present for address in interface.addresses)

    @property
    def delivered(self) -> int:
        """How many packets arrived as asked."""
        return sum(seen.packets for seen in self.arrived)

    @property
    def outer(self) -> list[Interface]:
        """The interfaces but lo."""
        return [one for one in self.present if not one.loopback]

    @property
    def on_wire(self) -> list[Seen]:
        """What came in on the wire just as asked.

        What comes in by a port of a bridge or a bond is seen there and at the master; it is counted at the master.
        """
        return [
            seen
            for seen in self.wire or ()
            if not seen.outgoing
            and (seen.group, seen.port) == (self.group.address, self.group.port)
            and not seen.astray
            and seen.interface not in self.masters
            and (not self.asked or seen.interface in self.asked)
            and (not self.group.sources or seen.source in self.group.sources)
        ]

    @property
    def astray(self) -> list[Seen]:
        """What came in on the wire just as asked, in a form that the kernel does not take, when all of it did."""
        if self.on_wire or not self.lacking:
            return []
        return [
            seen
            for seen in self.wire or ()
            if seen.astray
            and (seen.group, seen.port) == (self.group.address, self.group.port)
            and (not self.asked or seen.interface in self.asked)
            and (not self.group.sources or seen.source in self.group.sources)
        ]

    @property
    def undelivered(self) -> list[Seen]:
        """What came in on the wire just as asked, when none of it was delivered."""
        return self.on_wire if self.lacking else []

    @property
    def short(self) -> list[Seen]:
        """What is missing of each source of which fewer packets were delivered than were on the wire.

        A few more on the wire than delivered are those between two looks that are meant to be at the same time. Where a
        buffer of this host has overflowed, packets are missing for that. What this host sends itself is delivered by
        the interface it leaves by, wherever else it comes in again.
        """
        if not self.delivered or self.counters.get("Udp:RcvbufErrors"):
            return []
        got: dict[str, int] = {}
        by: dict[tuple[str, str], int] = {}
        for one in self.arrived:
            got[one.source] = got.get(one.source, 0) + one.packets
            by[one.interface, one.source] = by.get((one.interface, one.source), 0) + one.packets
        came: dict[str, list[Seen]] = {}
        for one in self.on_wire:
            if one.source not in self.own:
                came.setdefault(one.source, []).append(one)
        found = []
        for source, seen in came.items():
            count = sum(one.packets for one in seen)
            lost = count - got.get(source, 0)
            if lost > max(BETWEEN_LOOKS, count // 5) and not any(one.fragmented for one in seen):
                worst = max(seen, key=lambda one: one.packets - by.get((one.interface, one.source), 0))
                found.append(replace(worst, packets=lost))
        return found

    @property
    def lost(self) -> list[Seen]:
        """What came in on the wire just as asked and was not delivered: all of it, or what each source lacks."""
        return self.undelivered or self.short

    @property
    def missing(self) -> bool:
        """Whether packets are missing that may have reached this host: where the wire was looked at, those that did."""
        return self.lacking and (self.wire is None or bool(self.on_wire))

    @property
    def lacking(self) -> bool:
        """Whether we listened and got nothing as asked."""
        return not self.delivered and not self.deaf

    @property
    def deaf(self) -> bool:
        """Whether we could not listen at the port, for a reason that other programs need not share."""
        number = None if "" not in self.refused else self.refused[""].errno
        others = number == errno.EADDRINUSE and any(one.uid != self.uid for one in self.in_the_way)
        return others or number == errno.EACCES

    @property
    def judged(self) -> list[Holder]:
        """The sockets that may take the packets: those of the program that was asked for, or all."""
        if self.program is None:
            return list(self.holders)
        inodes = {one.inode for one in self.program.sockets}
        return [one for one in self.holders if one.inode in inodes]

    @property
    def in_the_way(self) -> list[Holder]:
        """The sockets that keep others from the port unless they share it; one of another group does not."""
        return [one for one in self.holders if one.address in ("0.0.0.0", "::", self.group.address)]  # noqa: S104


class _Ear(MulticastListener):
    """Counts what it hears."""

    def __init__(self, table: Table, **options: Any) -> None:
        self._table = table
        super().__init__(mtu=sealed.OVERHEAD, details=True, **options)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        # With details the kernel tells all of these.
        self._table.add(addr.interface or "?", addr.group or "?", self.group.port, addr.host, addr.ttl or 0)
        found = sealed.header(packet)
        if found is None:
            self._table.add_seal("", 0.0)
        else:
            self._table.add_seal(found.key_id, found.sealed_at - (addr.timestamp or time.time_ns()) / 1e9)
        return False


# -- gathering -----------------------------------------------------------------------------------------------------


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep what our own listeners log to ourselves: the doctor says it in its own words."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    _log.addFilter(refuse)
    try:
        yield
    finally:
        _log.removeFilter(refuse)


class _Ears:
    """The listeners of one examination."""

    def __init__(self, group: Group, asked: tuple[Interface, ...], present: list[Interface], poller: Poller) -> None:
        self.narrow, self.broad, self.other = Table(), Table(), Table()
        self.refused: dict[str, OSError] = {}
        self._group, self._poller = group, poller
        able = usable(present)
        restricted = bool(asked or group.sources)
        if not restricted and group.needs_interface:
            asked_or_each: list[Interface | None] = [*able]  # a group of its own on each; nobody said which
        else:
            asked_or_each = [*asked] or [None]
        for one in asked_or_each:
            self._open(self.narrow, group, one, group.sources)
        if not restricted:
            self.broad = self.narrow
        elif "" not in self.refused:
            elsewhere: list[Interface | None] = [*able] if group.needs_interface else [None]
            for one in elsewhere:
                self._open(self.broad, group, one, ())

    def _open(self, table: Table, group: Group, interface: Interface | None, sources: Iterable[str]) -> None:
        try:
            _Ear(
                table,
                ip=group.address,
                port=group.port,
                sources=sources or None,
                interface=interface,
                rcvbuf=1 << 20,
                poller=self._poller,
            )
        except InterfaceError:
            pass  # none is up: that is seen from the interfaces themselves
        except OSError as error:
            if table is self.other:
                pass  # only a try: their port may be held by a program that shares it with nobody
            elif error.errno in (errno.EADDRINUSE, errno.EACCES):
                self.refused[""] = error
            elif error.errno in (errno.ENOBUFS, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL):
                if table is self.narrow:
                    self.refused["" if interface is None else interface.name] = error
            else:
                raise

    def open_others(self, groups: Iterable[str]) -> None:
        """Hear what comes to the same port for other groups; they are joined already, by somebody else."""
        for address in groups:
            group = Group.of(address, self._group.port)
            if not group.needs_interface:
                self._open(self.other, group, None, ())

    def inodes(self) -> set[int]:
        return {os.fstat(ear.fileno()).st_ino for ear in self._poller if isinstance(ear, MulticastListener)}


def _loopback_works(poller: Poller) -> tuple[bool, bool]:
    """Whether a packet with TTL 0 that goes by ``lo`` comes back, and whether it was not permitted to leave."""
    heard: list[bool] = []

    class Echo(MulticastListener):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            heard.append(True)
            return True

    # Any port will do; this socket has one of its own that nobody else has for the moment.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lender:
        lender.bind(("127.0.0.1", 0))
        port = lender.getsockname()[1]
    try:
        echo = Echo(ip=_SELF_TEST, port=port, interface="lo", poller=poller)
    except (InterfaceError, OSError):
        return False, False
    timer = poller.call_later(0.3, poller.stop)
    try:
        sendto(b"multicast doctor", ip=_SELF_TEST, port=port, ttl=0, interface="lo")
        poller.run_until(lambda: heard)
    except PermissionError:  # by a rule of the firewall, or a BPF program of the cgroup
        return False, True
    except (InterfaceError, OSError):
        return False, False
    finally:
        timer.cancel()  # or it would end the look that follows
        echo.close()
    return bool(heard), False


def gather(
    group: Group,
    interface: WhichInterfaces,
    wait: float,
    progress: Callable[[float, int], object] | None = None,
    seal: Seal | None = None,
    lines: Sequence[Group] = (),
    program: str = "",
) -> Evidence:
    """Look for `wait` seconds at what happens to packets for `group`; return what was found.

    Raises `InterfaceError` for an interface that does not exist, and `OSError` for what is no fault of the network,
    such as a port that needs root.
    """
    present = interfaces()
    asked = tuple({one.index: one for one in (resolve(each, present) for each in named(group, interface))}.values())
    joined = tuple(memberships())
    filters = tuple(kernel.source_filters({one.index: one.name for one in present}))
    before = kernel.holders()
    on_wire, with_rules = kernel.powers()
    ipv6 = ":" in group.address
    with ExitStack() as stack, _unlogged():
        poller = stack.enter_context(Poller())
        stack.callback(_close_ears, poller)
        loopback, forbidden = (None, False) if ipv6 else _loopback_works(poller)
        # Takes its time, so it is done before there is anything that packets could queue at meanwhile.
        rules_before = kernel.rules()[0] if with_rules else ()
        wire = None
        if on_wire:
            try:
                wire = Wire(group.address, group.port)
                stack.callback(wire.close)
                poller.register(wire)
            except OSError:  # no packet sockets in this kernel
                wire = None
        ears = _Ears(group, asked, present, poller)
        compared = None
        if lines and not ears.refused:
            compared = Lines([group, *lines], interface, poller)
            stack.callback(compared.close)
        if not ears.refused:
            others = dict.fromkeys(
                one.group for one in joined if (":" in one.group) == ipv6 and one.group != group.address
            )
            ears.open_others([address for address in others if address != "224.0.0.1"][:16])
        _drain(poller)
        for table in (ears.narrow, ears.broad, ears.other):
            table.clear()  # all is counted from here on
        if wire is not None:
            wire.restart()
        counted = kernel.counters(ipv6)
        first = kernel.holders()
        dropped = {inode: drops for inode, (_, drops) in first.items()}
        watch_for(poller, wait, progress, lambda: sum(ears.narrow.counts.values()))
        counted = {name: value - counted.get(name, 0) for name, value in kernel.counters(ipv6).items()}
        after = kernel.holders()
        refused_here = sum(
            after[inode][1] - dropped.get(inode, 0) & 0xFFFFFFFF for inode in ears.inodes() if inode in after
        )
        rules, unread = kernel.rules() if with_rules else (None, ())
        found_lines = () if compared is None else compared.found()
        ours = ears.inodes()
    six = kernel.options(socket.AF_INET6)
    four = six if ipv6 else kernel.options(socket.AF_INET)
    # Sockets of IPv6 alone are no concern of a group of IPv4.
    apart = ours if ipv6 else ours | six.alone
    names_of = {one.index: one.name for one in present}
    devices = {inode: names_of.get(index, str(index)) for inode, index in {**six.devices, **four.devices}.items()}
    relevant = [
        (holder, drops - dropped.get(inode, 0))
        for inode, (holder, drops) in {**before, **after}.items()
        if inode not in apart and holder.port == group.port and _could_get(holder.address, group)
    ]
    quiet: set[int] = set()
    if _sent_and_unheard(counted, wire, group, ears):
        quiet = four.silent - ours
    own = {address for one in present for address in one.addresses}
    strange = [
        holder
        for inode, (holder, _) in after.items()
        if inode not in apart and holder.port == group.port and holder.address in own
    ]
    pids = kernel.find(program) if program else ()
    inodes, hidden = kernel.sockets_of(pids)
    openers = kernel.openers(
        [*(one.inode for one, _ in relevant), *(one.inode for one in strange), *quiet, *(inodes & after.keys())]
    )
    names = {inode: kernel.called(pid) for inode, (pid, _) in openers.items()}
    others_joined = list(dict.fromkeys(one.group for one in joined if one.group != group.address))[:_ASKED_MOST]

    def filled(holder: Holder, drops: int = 0) -> Holder:
        opener = openers.get(holder.inode)
        return replace(
            after.get(holder.inode, (holder, 0))[0],
            program=names.get(holder.inode, ""),
            dropped=drops & 0xFFFFFFFF,
            before=first[holder.inode][0].queued if holder.inode in first else 0,
            device=devices.get(holder.inode, ""),
            state=kernel.state(names.get(holder.inode, "")),
            inside=None if opener is None else kernel.inside(*opener, group.address, others_joined, names_of),
        )

    known = _sources(group, ears, wire, filters)
    links = kernel.run("ip", "-details", "-json", "link", "show")
    engine_used, reason = kernel.engine()
    return Evidence(
        group=group,
        asked=tuple(one.name for one in asked),
        seconds=wait,
        present=tuple(interfaces()),  # again, for a carrier may have come or gone
        route=_route(group.address, asked[0].index if group.needs_interface and asked else 0),
        back={source: _route(source) for source in known},
        joined=joined,
        filters=filters,
        versions=kernel.versions(),
        sysctl=kernel.sysctls(one.name for one in present),
        counters=counted,
        arrived=ears.narrow.seen(),
        anywhere=ears.broad.seen(),
        others=ears.other.seen(),
        seals=tuple(ears.narrow.seals.values()),
        compared=compared is not None,
        lines=found_lines,
        key="" if seal is None else seal.key_id,
        max_age=None if seal is None else seal.max_age,
        wire=None if wire is None else wire.seen(),
        fragments=0 if wire is None else wire.fragments,
        queriers=() if wire is None else tuple(wire.queriers),
        reporting=() if wire is None else tuple(wire.reporting),
        uid=os.geteuid(),
        holders=tuple(filled(holder, drops) for holder, drops in relevant),
        strangers=tuple(replace(holder, program=names.get(holder.inode, "")) for holder in strange),
        program=None if not program else Program(
            program,
            pids,
            tuple(replace(filled(holder), alone=inode in six.alone) for inode, (holder, _) in after.items()
                  if inode in inodes),
            hidden,
            bool(pids) and kernel.apart(pids),
        ),
        silent=tuple(
            replace(holder, program=names.get(inode, ""), loopback=False)
            for inode, (holder, _) in after.items()
            if inode in quiet
        ),
        refused=ears.refused,
        rules=None if rules is None else firewall.grown(rules_before, rules),
        unread=unread,
        masters=kernel.masters(links),
        unrouted=kernel.unrouted(group.address) if ipv6 else (),
        refused_here=0 if counted.get("Udp:RcvbufErrors") else refused_here,
        xdp=kernel.with_xdp(links),
        ingress=kernel.with_ingress_filters(one.name for one in (asked or present)[:_TC_MOST]),
        bridges=kernel.bridges(links),
        loopback=loopback,
        forbidden=forbidden,
        container=os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"),
        distributions=kernel.distributions((__package__ or "").partition(".")[0]),
        engine=engine_used,
        engine_reason=reason,
    )


def _close_ears(poller: Poller) -> None:
    for ear in list(poller):
        if isinstance(ear, _Ear):
            ear.close()


def _drain(poller: Poller) -> None:
    """Read what came in the last moment, or while this thread had to wait for a processor or a program."""
    for _ in range(_DRAIN):
        poller.poll()


def _could_get(address: str, group: Group) -> bool:
    """Whether a socket bound to `address` could receive what goes to `group`, or was meant to receive a group."""
    if address in ("::", group.address):
        return True
    if (":" in address) != (":" in group.address):
        return False
    return address == "0.0.0.0" or ipaddress.ip_address(address).is_multicast  # noqa: S104


def _route(address: str, interface: int = 0) -> Route | None:
    try:
        return route(address, interface)
    except OSError:
        return None


def _sent_and_unheard(counted: Mapping[str, int], wire: Wire | None, group: Group, ears: _Ears) -> bool:
    """Whether a program of this host may send to the group without being heard here."""
    if ears.broad.counts:
        return False
    if wire is not None:
        return any(seen.outgoing and seen.group == group.address for seen in wire.seen())
    return bool(counted.get("Udp:OutDatagrams") and counted.get("Ip:OutMcastPkts"))


def _sources(group: Group, ears: _Ears, wire: Wire | None, filters: Iterable[SourceFilter]) -> list[str]:
    """Return the addresses from where packets came or should come."""
    wanted = [one.source for one in filters if one.group == group.address and one.included]
    seen = [*ears.narrow.seen(), *ears.broad.seen(), *(wire.seen() if wire is not None else ())]
    heard = [one.source for one in seen if one.group == group.address and not one.outgoing]
    return list(dict.fromkeys([*group.sources, *wanted, *heard]))[:64]


def reason(error: OSError) -> str:
    """Return why a join was refused, as a clause for the middle of a sentence."""
    return describe(error).partition(" (errno")[0].lower()
