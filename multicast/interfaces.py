"""Which network interfaces this host has, and which one somebody means.

People name an interface in three ways: by its name (network people), by its index (embedded people), by one of its
addresses (audio and video people). All three are accepted wherever an interface is asked for. The answer is looked
up afresh each time, for interfaces come and go, and an index is never given twice.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .errors import InterfaceError, advise

__all__ = ["Interface", "Membership", "Route", "Watch", "interfaces", "memberships", "resolve", "route", "usable"]


class Interface(NamedTuple):
    """One network interface, as it was when it was looked at."""

    #: The kernel's number for it, never used twice while the system runs.
    index: int  # type: ignore[assignment]  # a method of tuples, which nobody asks of an interface
    #: Its name, such as ``eth0``.
    name: str
    #: Its addresses as text, IPv4 first; IPv6 ones without zone.
    addresses: tuple[str, ...] = ()
    #: Whether it is switched on (IFF_UP).
    up: bool = True
    #: Whether it has a carrier (IFF_RUNNING).
    running: bool = True
    #: Whether it says that it can do multicast (IFF_MULTICAST). ``lo`` does not say so, and can.
    multicast: bool = True
    #: Whether it is the loopback interface.
    loopback: bool = False
    #: The largest packet it carries, in bytes.
    mtu: int = 0
    #: Whether it belongs to a bridge, a bond or a team, which takes what arrives by it.
    enslaved: bool = False

    @property
    def ipv4(self) -> str | None:
        """Its first IPv4 address, or None."""
        return next((address for address in self.addresses if ":" not in address), None)

    @property
    def ipv6(self) -> str | None:
        """Its first IPv6 address, or None."""
        return next((address for address in self.addresses if ":" in address), None)

    def __str__(self) -> str:
        return f"{self.name} {self.addresses[0]}" if self.addresses else self.name


def interfaces() -> list[Interface]:
    """Return the interfaces of this host (of this network namespace), by index."""
    import psutil  # takes longer to import than all the rest together, so only when it is asked

    try:
        addresses = psutil.net_if_addrs()
        states = psutil.net_if_stats()
    except OSError as error:
        raise advise(error, "open") from None
    slaves = _slaves()
    found = []
    for name, stats in states.items():
        try:
            index = socket.if_nametoindex(name)
        except OSError:  # gone since it was listed
            continue
        flags = stats.flags.split(",")
        texts = [
            entry.address.partition("%")[0]
            for family in (socket.AF_INET, socket.AF_INET6)
            for entry in addresses.get(name, ())
            if entry.family == family
        ]
        found.append(
            Interface(
                index=index,
                name=name,
                addresses=tuple(texts),
                up="up" in flags,
                running="running" in flags,
                multicast="multicast" in flags,
                loopback="loopback" in flags,
                mtu=stats.mtu,
                enslaved=index in slaves,
            )
        )
    return sorted(found, key=lambda interface: interface.index)


def usable(present: Iterable[Interface] | None = None) -> list[Interface]:
    """Return the interfaces that are up and can do multicast, and ``lo``.

    Those that belong to a bridge, a bond or a team are left out: what arrives by them arrives at their master.
    """
    return [
        interface
        for interface in (interfaces() if present is None else present)
        if interface.up and (interface.multicast or interface.loopback) and not interface.enslaved
    ]


# rtnetlink(7): a request for all links, and the attributes that tell of a master and of what kind it is
# (linux/if_link.h).
_RTM_NEWLINK, _RTM_GETLINK, _NLM_F_DUMP, _NLMSG_DONE, _NLMSG_ERROR = 16, 18, 0x300, 3, 2
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_SLAVE_KIND = 10, 18, 4
_IFINFOMSG = struct.Struct("=BxHiII")
# Members of a VRF have a master as well, and receive their packets themselves.
_TAKING = frozenset({b"bridge", b"bond", b"team", b"ovs-system"})


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, begin and end of each attribute."""
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4:
            return
        yield kind & 0x3FFF, at + 4, min(at + size, end)
        at += (size + 3) & ~3


def _slaves() -> set[int]:
    """Return the numbers of the interfaces that belong to a bridge, a bond or a team; none where that is not told."""
    found: set[int] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
            body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            kernel.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
            while True:
                data = kernel.recv(1 << 18)
                at = 0
                while at + _HEADER.size <= len(data):
                    length, kind, *_ = _HEADER.unpack_from(data, at)
                    if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                        return found
                    # The attribute that tells of a master is short, and most links have none.
                    _look_at_link(data, at + _HEADER.size, at + length, found)
                    at += (length + 3) & ~3
    except OSError:
        return found


def _look_at_link(data: bytes, at: int, end: int, found: set[int]) -> None:
    index = _IFINFOMSG.unpack_from(data, at)[2]
    master, slave_kind = False, b""
    for kind, begin, stop in _attributes(data, at + _IFINFOMSG.size, end):
        if kind == _IFLA_MASTER:
            master = True
        elif kind == _IFLA_LINKINFO:
            for inner, first, last in _attributes(data, begin, stop):
                if inner == _IFLA_INFO_SLAVE_KIND:
                    slave_kind = data[first:last].rstrip(b"\0")
    if master and slave_kind in _TAKING:
        found.add(index)


# The kernel gives the loopback interface of each network namespace this number (include/net/flow.h).
LOOPBACK_INDEX = 1


def resolve(what: str | int | Interface, present: Iterable[Interface] | None = None) -> Interface:
    """Return the interface that `what` means: a name, an index (also as text) or one of its addresses.

    `present` are the interfaces to choose from, by default those of this host. Raises `InterfaceError`, which lists
    what there is and names the nearest.
    """
    if isinstance(what, Interface):
        what = what.index
    here = list(interfaces() if present is None else present)
    text = str(what).strip()
    if isinstance(what, str):  # a number is an index, even where somebody has given it as a name
        for interface in here:
            if text == interface.name:
                return interface
    if text.isdecimal():
        for interface in here:
            if int(text) == interface.index:
                return interface
    try:
        address = str(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        pass
    else:
        for interface in here:
            if address in interface.addresses:
                return interface
    listed = ", ".join(map(str, here)) or "none"
    import difflib  # only for this message, and not small

    near = difflib.get_close_matches(text, [interface.name for interface in here], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InterfaceError(f"no interface {text!r}.{hint} This host has: {listed}")


class Watch:
    """Calls a function when the interfaces of this host or their addresses change, with `routes` the routes as well.

    It has `fileno()` and `handle_read()`, so any poller can drive it. What the kernel sends (rtnetlink(7)) is only
    taken as the signal to look again: it may be incomplete, and what counts is what is there then.
    """

    # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR; RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_ROUTE in
    # linux/rtnetlink.h
    _GROUPS = 0x1 | 0x10 | 0x100
    _ROUTES = 0x40 | 0x80 | 0x400

    def __init__(self, changed: Callable[[], object], *, routes: bool = False) -> None:
        self._changed = changed
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, self._GROUPS | (self._ROUTES if routes else 0)))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to watch for reading, -1 once closed."""
        return self._socket.fileno()

    def handle_read(self) -> None:
        """Take what the kernel has sent, and call the function once."""
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost, for there were too many: a change all the same
                    raise
        self._changed()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._socket.close()

    def __del__(self) -> None:
        # Forgotten with its poller and all its listeners, in an order in which none of them could close it.
        try:
            self._socket.close()
        except AttributeError:  # the constructor failed
            pass


def listing() -> str:
    """Return the names and addresses of the interfaces in one line, for messages."""
    return ", ".join(map(str, interfaces())) or "none"


class Membership(NamedTuple):
    """A group that this host has joined on one of its interfaces."""

    #: The name of the interface.
    interface: str
    #: The group's address as text.
    group: str
    #: How many joins there are: one for each socket that has joined, and the kernel's own.
    users: int


def memberships() -> list[Membership]:
    """Return the groups joined on this host (in this network namespace), as the kernel lists them.

    Some it joins by itself: 224.0.0.1, ff01::1 and ff02::1 for all nodes (RFC 1112, RFC 4291), and one for each IPv6
    address to find duplicates of it (RFC 4861).
    """
    return [*_igmp(_lines("/proc/thread-self/net/igmp")), *_igmp6(_lines("/proc/thread-self/net/igmp6"))]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:  # a kernel without this family
        return []


def _igmp(lines: Iterable[str]) -> Iterator[Membership]:
    """A line for each interface, with a number and a name in front; its groups on lines that begin with tabs."""
    name = ""
    for line in lines:
        words = line.split()
        if line.startswith("\t") and len(words) >= 2:
            # The four bytes of the address, printed as a number of this machine.
            address = int(words[0], 16).to_bytes(4, sys.byteorder)
            yield Membership(name, socket.inet_ntop(socket.AF_INET, address), int(words[1]))
        elif len(words) >= 2:
            name = words[1].rstrip(":")  # a long name leaves no space before the colon


def _igmp6(lines: Iterable[str]) -> Iterator[Membership]:
    """A line for each membership: index and name of the interface, the address in 32 digits, users, flags, timer."""
    for line in lines:
        words = line.split()
        if len(words) >= 4:
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[2]))
            yield Membership(words[1], address, int(words[3]))


class Route(NamedTuple):
    """Where the kernel's routes lead, for packets that say nothing else."""

    #: The name of the interface.
    interface: str
    #: The source address the packets get, as text; None when the kernel did not name one.
    source: str | None
    #: The router they go to first, as text; None where the address is on the link itself.
    gateway: str | None = None


# rtnetlink(7): message types, and the attributes of a route.
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_RTMSG = struct.Struct("=8BI")  # struct rtmsg: family, length of destination in bits, the rest not asked for
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type


def route(address: str, interface: int = 0) -> Route | None:
    """Return where packets to `address` leave as the routes are now, or None where no route leads there.

    `address` is a group or a single host; `interface`, when not 0, is the index of the interface that they are to
    leave by in any case, and then only the source is of interest.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    body = _RTMSG.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(4 + len(packed), _RTA_DST) + packed
    if interface:
        body += _ATTRIBUTE.pack(8, _RTA_OIF) + struct.pack("=I", interface)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
        reply = kernel.recv(65536)
    length, kind, *_ = _HEADER.unpack_from(reply)
    if kind != _RTM_NEWROUTE:
        return None  # the kernel's "network is unreachable" and the like
    name, source, gateway = None, None, None
    at = _HEADER.size + _RTMSG.size
    while at + _ATTRIBUTE.size <= length:
        size, attribute = _ATTRIBUTE.unpack_from(reply, at)
        value = reply[at + _ATTRIBUTE.size : at + size]
        if attribute == _RTA_OIF:
            try:
                name = socket.if_indextoname(*struct.unpack("=I", value))
            except OSError:  # gone this moment
                return None
        elif attribute == _RTA_PREFSRC:
            source = socket.inet_ntop(family, value)
        elif attribute == _RTA_GATEWAY:
            gateway = socket.inet_ntop(family, value)
        at += max(4, size + 3 & ~3)
    return None if name is None else Route(name, source, gateway)
