"""Which network interfaces this host has, and which one somebody means.

People name an interface in three ways: by its name (network people), by its index (embedded people), by one of its
addresses (audio and video people). All three are accepted wherever an interface is asked for. The answer is looked
up afresh each time, for interfaces come and go, and an index is never given twice.
"""

from __future__ import annotations

import difflib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import InterfaceError

__all__ = ["Interface", "interfaces", "resolve", "usable"]


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface, as it was when it was looked at."""

    #: The kernel's number for it, never used twice while the system runs.
    index: int
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

    addresses = psutil.net_if_addrs()
    found = []
    for name, stats in psutil.net_if_stats().items():
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
            )
        )
    return sorted(found, key=lambda interface: interface.index)


def usable(present: Iterable[Interface] | None = None) -> list[Interface]:
    """Return the interfaces that are up and can do multicast, and ``lo``."""
    return [
        interface
        for interface in (interfaces() if present is None else present)
        if interface.up and (interface.multicast or interface.loopback)
    ]


def resolve(what: str | int | Interface, present: Iterable[Interface] | None = None) -> Interface:
    """Return the interface that `what` means: a name, an index (also as text) or one of its addresses.

    `present` are the interfaces to choose from, by default those of this host. Raises `InterfaceError`, which lists
    what there is and names the nearest.
    """
    if isinstance(what, Interface):
        what = what.index
    here = list(interfaces() if present is None else present)
    text = str(what).strip()
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
    near = difflib.get_close_matches(text, [interface.name for interface in here], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InterfaceError(f"no interface {text!r}.{hint} This host has: {listed}")


def listing() -> str:
    """Return the names and addresses of the interfaces in one line, for messages."""
    return ", ".join(map(str, interfaces())) or "none"
