"""Which interface packets leave by and come in by, when somebody names one, several, all or none."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from multicast.errors import ArgumentError, GroupError, InterfaceError
from multicast.interfaces import LOOPBACK_INDEX, Interface, interfaces, listing, resolve, usable

from .groups import Endpoint, Group, check_ttl, parse_address, plain

_log = logging.getLogger("multicast")

#: One interface: a name, an index, or one of its addresses.
WhichInterface: TypeAlias = "str | int | Interface"
#: Several of them; None and "all" mean every one that is up and can do multicast, and ``lo``.
WhichInterfaces: TypeAlias = "WhichInterface | Sequence[WhichInterface] | None"


def _choose(to: Endpoint, interface: WhichInterfaces) -> tuple[list[Interface], bool]:
    """Return the interfaces meant by `interface`, or else by the zone of `to`, and whether that is all of them."""
    here = interfaces()
    wanted = named(to, interface)
    if not wanted:
        chosen = usable(here)
        if not chosen:
            raise InterfaceError(
                "no interface is up and can do multicast. This host has:"
                f" {', '.join(map(str, here)) or 'none'}. Bring one up: ip link set dev lo up"
            )
        return chosen, True
    return list({found.index: found for found in (resolve(one, here) for one in wanted)}.values()), False


def named(to: Endpoint, interface: WhichInterfaces) -> tuple[WhichInterface, ...]:
    """Return what names the interfaces, one by one: `interface`, or else the zone of `to`; nothing means all."""
    wanted: Sequence[WhichInterface]
    if interface is None:
        wanted = to.interfaces
    elif isinstance(interface, (str, int, Interface)):
        wanted = (interface,)
    elif isinstance(interface, (bytes, bytearray)) or not isinstance(interface, Iterable):
        raise InterfaceError(f"interface must be a name, an index, an address or a list of these, not {interface!r}")
    else:
        wanted = tuple(interface)
        if not wanted:
            raise InterfaceError("the list of interfaces is empty; leave interface out to use all of them")
    return () if tuple(wanted) == ("all",) else tuple(wanted)


def receiving(group: Group, interface: WhichInterfaces) -> list[Interface]:
    """Return the interfaces to join `group` on when `interface` was asked for.

    Raises `InterfaceError` when one does not exist, or when a link-local IPv6 group does not say which.
    """
    chosen, _ = _choose(group, interface)
    if group.needs_interface and len(chosen) != 1:
        raise InterfaceError(
            f"{group.address} is a different group on each link, so it needs one interface:"
            f" {group.address}%{chosen[-1].name}, or interface={chosen[-1].name!r}."
            f" This host has: {listing()}"
        )
    return chosen


class Way(NamedTuple):
    """How packets leave."""

    #: The number of the interface; 0 is as the routes say.
    index: int = 0  # type: ignore[assignment]  # a method of tuples, which nobody asks of a way
    #: The address they come from; empty is the kernel's choice.
    source: str = ""
    #: Whether they leave so for want of a route, and not because somebody asked for it.
    stranded: bool = False


def ways(to: Endpoint, ttl: int, interface: WhichInterfaces) -> tuple[list[Way], bool]:
    """Return the ways to send one packet to a group by each interface in turn, and whether that is all of them.

    `interface` None means all that are up, can do multicast and have an address of the group's family. With `ttl` 0
    it is ``lo`` alone. To a single host there is one way, as the routes say. Raises `InterfaceError`, and
    `ArgumentError` when `ttl` 0 and `interface` exclude each other.
    """
    check_ttl(ttl)
    if not to.is_multicast:
        if interface is not None and not isinstance(interface, (str, int, Interface)):
            raise InterfaceError(f"packets to a single host leave by one interface, so name one, not {interface!r}")
        return [sending(to, ttl, interface, None)], False
    chosen, every = _choose(to, interface)
    if ttl == 0:
        if every:
            chosen = [one for one in chosen if one.loopback]
        elif not all(one.loopback for one in chosen):
            names = ", ".join(one.name for one in chosen if not one.loopback)
            raise ArgumentError(
                f"ttl=0 keeps packets on this host, so they go by lo and not by {names};"
                " leave interface out, or use a ttl from 1 on"
            )
    found = []
    for one in chosen:
        own = one.ipv4 if to.family == socket.AF_INET else one.ipv6
        # An address that names an interface is also the one to send from. The kernel's own choice is right for
        # IPv6, where each scope has its address; for IPv4 it would be 0.0.0.0 on lo.
        if isinstance(interface, str) and interface in one.addresses and (":" in interface) == (":" in to.address):
            found.append(Way(one.index, interface))
        elif own is not None and not (every and one.loopback and not routed(to, one.index)):
            found.append(Way(one.index, own if to.family == socket.AF_INET else ""))
        elif not every:
            raise InterfaceError(
                f"{one.name} has no {to.table.name} address, so nothing can be sent to {to.address} by it."
                f" This host has: {listing()}"
            )
    if not found:
        raise InterfaceError(
            f"no interface that is up has an {to.table.name} address, so nothing can be sent to {to.address}."
            f" This host has: {listing()}"
        )
    return found, every


_told_about_loopback = False


def by_routes(to: Endpoint, ttl: int, interface: WhichInterface | None, source_ip: str | None) -> bool:
    """Whether the routes decide by which interface packets leave, as nothing else does."""
    if to.is_multicast and ttl == 0:
        return False
    return interface is None and source_ip is None and not to.interfaces and not to.needs_interface


def stranded(to: Endpoint, ttl: int, interface: WhichInterface | None, source_ip: str | None) -> bool:
    """Whether packets to a group stay on this host for want of a route."""
    # Those of IPv6 could not go by lo either: without a route the kernel has none for lo.
    if not to.is_multicast or to.family == socket.AF_INET6:
        return False
    return by_routes(to, ttl, interface, source_ip) and not routed(to)


def sending(to: Endpoint, ttl: int, interface: WhichInterface | None, source_ip: str | None) -> Way:
    """Return how packets to `to` are to leave, from what the caller asked for."""
    if interface is None and to.interfaces:
        if len(to.interfaces) > 1 or to.interfaces == ("all",):
            raise InterfaceError(f"packets leave by one interface, so name one, not {','.join(to.interfaces)}")
        interface = to.interfaces[0]
    if ttl == 0 and not to.is_multicast and not to.ip.is_loopback:
        raise ArgumentError(
            f"ttl=0 keeps packets to groups on this host, and {to.address} is a single host; leave ttl out, which does"
            " not count for single hosts, or send to 127.0.0.1 or ::1"
        )
    source = ""
    if source_ip is not None:
        address = parse_address(source_ip, "source_ip")
        source = plain(address)
        if address.version != to.ip.version:
            raise GroupError(f"source_ip {source} and {to.address} are not of one family")
    chosen = (_by_name(interface) or resolve(interface)) if interface is not None else None
    if chosen is not None and not source and str(interface) in chosen.addresses:
        source_of_name = str(interface)
        if (":" in source_of_name) == (":" in to.address):
            source = source_of_name
    if chosen is None and source and not ipaddress.ip_address(source).is_loopback:
        chosen = resolve(source)
    if to.is_multicast and ttl == 0:
        if interface is not None and chosen is not None and not chosen.loopback:
            raise ArgumentError(
                f"ttl=0 keeps packets on this host, so they go by lo and not by {chosen.name};"
                " leave interface out, or use a ttl from 1 on"
            )
        return _by_loopback(to, source)
    if chosen is not None:
        return _by_loopback(to, source) if chosen.loopback else Way(chosen.index, source)
    if source:
        return _by_loopback(to, source)
    if to.needs_interface:
        raise InterfaceError(
            f"{to.address} is a different address on each link, so it needs an interface: interface='eth0', or"
            f" {to.address}%eth0. This host has: {listing()}"
        )
    if stranded(to, ttl, interface, source_ip):
        global _told_about_loopback
        if not _told_about_loopback:
            _told_about_loopback = True
            _log.warning(
                "no route for %s: its packets go out of lo and stay on this host; name an interface to send by",
                to.address,
            )
        return _by_loopback(to, source)._replace(stranded=True)
    return Way()


def _by_name(name: WhichInterface) -> Interface | None:
    """Return the interface with this name, without its addresses; None where `name` is something else.

    Listing all interfaces takes twenty times as long.
    """
    if not isinstance(name, str):
        return None
    try:
        index = socket.if_nametoindex(name)
    except (OSError, ValueError):
        return None
    return Interface(index, name, loopback=index == LOOPBACK_INDEX)


def _by_loopback(to: Endpoint, source: str) -> Way:
    # Left alone, the kernel finds no IPv4 address there that is good for groups, and sends from 0.0.0.0.
    return Way(LOOPBACK_INDEX, source or ("127.0.0.1" if to.family == socket.AF_INET else ""))


def routed(to: Endpoint, index: int = 0) -> bool:
    """Whether the routes lead to `to`, by the interface with number `index` if given, from an address to answer to.

    For IPv6 groups the kernel needs a route also where the interface is named, and on ``lo`` there is none as a rule.
    """
    with socket.socket(to.family, socket.SOCK_DGRAM) as probe:
        try:
            if index and to.family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            elif index:
                return True
            probe.connect(to.sockaddr(index))  # sends nothing; only looks the route up
        except OSError:
            return False
        return not ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]).is_unspecified
