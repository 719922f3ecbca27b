"""Groups, and sockets that are set up for them: the only place that sets socket options.

Facts about Linux that decide what is set, and in which order (ip(7), ipv6(7), socket(7), and measurements):

* By default a socket receives what *any* socket of the host has joined (IP_MULTICAST_ALL). So receivers switch that
  off, and bind to the group: then neither other groups on the port, nor the same group on another interface, nor
  unicast sent to the port comes in.
* Bound to a group, a socket may share its port with everybody (SO_REUSEADDR and SO_REUSEPORT): each gets its own copy
  of each packet, and there is no unicast to be stolen. Sockets on a host's own address set neither.
* But sockets that are bound with SO_REUSEPORT to one group form a set, and where a packet is for one of them alone, by
  its interface or its source, newer kernels give it to *any* of the set (IPv4, seen on Linux 6.18). So that option is
  set only when the socket is bound, which lets others in and joins no set.
* Joins go by interface index, through requests that are the same for both families (RFC 3678). Addresses change,
  an index stays as long as the interface does.
* TTL 0 does not keep a packet on the host: with no local member on the outgoing interface it goes on the wire. So a
  sender with TTL 0 is pinned to the loopback interface.
* A full transmit queue or a firewall drops silently and reports success, unless IP_RECVERR is set.
* The wire a packet leaves by and the source address it carries are two things, and both have to be said.
"""

from __future__ import annotations

import array
import enum
import errno
import ipaddress
import logging
import re
import socket
import struct
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import ArgumentError, GroupError, InterfaceError, advise
from .interfaces import Interface, interfaces, listing, resolve, usable

__all__ = [
    "DEFAULT_IP",
    "DEFAULT_PORT",
    "Endpoint",
    "Group",
    "Scope",
    "Way",
    "WhichInterface",
    "WhichInterfaces",
    "drops",
    "join",
    "leave",
    "open_acceptor",
    "open_receiver",
    "open_sender",
    "open_stream",
    "open_unicast",
    "overflows",
    "prepare_stream",
    "receive_buffer",
    "send_by",
    "set_up_receiver",
    "takes_bursts",
    "ways",
]

_log = logging.getLogger("multicast")

#: The group and port everything uses when none is given.
DEFAULT_IP = "224.0.42.42"
DEFAULT_PORT = 4242

# Numbers that Python's socket module lacks, from Linux' include/uapi/linux/in.h, in6.h and asm-generic/socket.h.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_IP_PKTINFO = 8
_IP_RECVTTL = 12
_MCAST_JOIN_GROUP = 42
_MCAST_BLOCK_SOURCE = 43
_MCAST_LEAVE_GROUP = 45
_MCAST_JOIN_SOURCE_GROUP = 46
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_MEMINFO = 55
_SO_NETNS_COOKIE = 71
_UDP_GRO = 104
_SK_MEMINFO_DROPS = 8

#: One interface: a name, an index, or one of its addresses.
WhichInterface: TypeAlias = "str | int | Interface"
#: Several of them; None and "all" mean every one that is up and can do multicast, and ``lo``.
WhichInterfaces: TypeAlias = "WhichInterface | Sequence[WhichInterface] | None"
#: A program for the kernel, as `filters.assemble` returns it; empty for none.
Program: TypeAlias = Sequence[tuple[int, int, int, int]]


class Scope(enum.IntEnum):
    """How far a packet may go, as a TTL.

    Each router takes one off, and those at the border of a site, a region or a continent let pass only what has more
    left than this number. Many networks go by the group's address instead (RFC 2365), so ask who runs yours.
    """

    HOST = 0
    SUBNET = 1
    SITE = 32
    REGION = 64
    CONTINENT = 128
    UNRESTRICTED = 255


@dataclass(frozen=True, slots=True)
class _Family:
    """What the two families do alike under other numbers."""

    name: str
    family: int
    level: int
    all: int
    recverr: int
    interface: int
    ttl: int
    hops: int
    loop: int
    details: tuple[int, ...]
    longest: int


_IPV4 = _Family(
    name="IPv4",
    family=socket.AF_INET,
    level=socket.IPPROTO_IP,
    all=_IP_MULTICAST_ALL,
    recverr=_IP_RECVERR,
    interface=socket.IP_MULTICAST_IF,
    ttl=socket.IP_MULTICAST_TTL,
    hops=socket.IP_TTL,
    loop=socket.IP_MULTICAST_LOOP,
    details=(_IP_PKTINFO, _IP_RECVTTL),
    longest=65507,  # 65535 less an IP header of 20 and a UDP header of 8
)
_IPV6 = _Family(
    name="IPv6",
    family=socket.AF_INET6,
    level=socket.IPPROTO_IPV6,
    all=_IPV6_MULTICAST_ALL,
    recverr=_IPV6_RECVERR,
    interface=socket.IPV6_MULTICAST_IF,
    ttl=socket.IPV6_MULTICAST_HOPS,
    hops=socket.IPV6_UNICAST_HOPS,
    loop=socket.IPV6_MULTICAST_LOOP,
    details=(socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT),
    longest=65527,  # the length field of IPv6 does not count its own header
)


def _address(text: object, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if not isinstance(text, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        raise GroupError(f"{what} must be an IP address as text, not {text!r}")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise GroupError(f"{text!r} is not an IP address; names are not looked up, give the {what} in digits") from None


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(address).partition("%")[0]


def check_port(port: object) -> int:
    """Return `port` when it is one a packet can be sent to: 1 to 65535. Raises `ArgumentError`."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ArgumentError(f"port must be a number from 1 to 65535, not {port!r}")
    return port


def check_ttl(ttl: object) -> int:
    """Return `ttl` when it is one: 0 to 255. Raises `ArgumentError`."""
    if isinstance(ttl, bool) or not isinstance(ttl, int) or not 0 <= ttl <= 255:
        raise ArgumentError(
            f"ttl must be a number from 0 (this host) to 255 (unrestricted), not {ttl!r}; 1 stays on the subnet"
        )
    return int(ttl)


def check_rcvbuf(wanted: object) -> None:
    """Raise `ArgumentError` for what is no size of a receive buffer."""
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ArgumentError(f"rcvbuf must be a number of bytes, 1 or more, not {wanted!r}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address and a port that packets are sent to or received at, and the interface they go by, if one is named.

    Raises `GroupError` for what is not an IP address or cannot be a destination, `ArgumentError` for the port.
    """

    #: The address as text, without zone.
    address: str
    #: The port, 1 to 65535.
    port: int
    #: The interfaces named with it, as they were written; ``("all",)`` for all of them.
    interfaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        address = _address(self.address, "address")
        zone = getattr(address, "scope_id", None)
        if zone and not self.interfaces:
            object.__setattr__(self, "interfaces", (zone,))
        object.__setattr__(self, "address", _plain(address))
        check_port(self.port)
        if address.is_unspecified or self.address == "255.255.255.255":
            raise GroupError(f"{address} is neither a group nor a single host, so nothing can be sent there")

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address as an object of `ipaddress`."""
        return ipaddress.ip_address(self.address)

    @property
    def family(self) -> int:
        """`socket.AF_INET` or `socket.AF_INET6`."""
        return self._table.family

    @property
    def longest(self) -> int:
        """The longest payload of one datagram, in bytes: 65507 for IPv4, 65527 for IPv6 (udp(7), RFC 8200)."""
        return self._table.longest

    @property
    def is_multicast(self) -> bool:
        """Whether the address is that of a group."""
        return self.ip.is_multicast

    @property
    def needs_interface(self) -> bool:
        """Whether the address means something on one interface only: IPv6 of interface- or link-local scope."""
        address = self.ip
        if address.version == 4:
            return False
        return address.is_link_local or (address.is_multicast and address.packed[1] & 15 in (1, 2))

    @property
    def _table(self) -> _Family:
        return _IPV6 if ":" in self.address else _IPV4

    def sockaddr(self, index: int = 0) -> tuple[Any, ...]:
        """Return what `socket.sendto` and `bind` take; `index` is that of the interface, for IPv6 scopes."""
        if self.family == socket.AF_INET:
            return (self.address, self.port)
        return (self.address, self.port, 0, index if self.needs_interface else 0)

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        zone = f"%{','.join(self.interfaces)}" if self.interfaces else ""
        return f"{host}:{self.port}{zone}"


@dataclass(frozen=True, slots=True)
class Group(Endpoint):
    """A multicast group and its port; for source-specific multicast with the sources.

    Raises `GroupError` for an address that is no group's and for sources that are not single hosts of its family.
    """

    #: The address as text, without zone.
    address: str = DEFAULT_IP
    #: The port, 1 to 65535.
    port: int = DEFAULT_PORT
    #: The senders to receive from; empty for any (RFC 4607).
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Endpoint.__post_init__(self)
        if not self.ip.is_multicast:
            raise GroupError(
                f"{self.address} is not a multicast address (224.0.0.0 to 239.255.255.255, or ff00::/8)"
            )
        object.__setattr__(self, "sources", self.check_sources(self.sources, "source"))

    def check_sources(self, sources: Iterable[str], what: str) -> tuple[str, ...]:
        """Return `sources` as plain addresses when each is a single host of the group's family."""
        checked = []
        for text in (sources,) if isinstance(sources, str) else sources:
            source = _address(text, what)
            if source.is_multicast or source.is_unspecified or source.version != self.ip.version:
                raise GroupError(
                    f"{what} {source} is not the address of a single {self._table.name} host,"
                    f" as the {what}s of {self.address} must be"
                )
            checked.append(_plain(source))
        return tuple(dict.fromkeys(checked))

    @property
    def is_source_specific(self) -> bool:
        """Whether the address is in the range kept for source-specific joins (232/8, ff3x::/32; RFC 4607)."""
        packed = self.ip.packed
        if len(packed) == 4:
            return packed[0] == 232
        return packed[1] >> 4 == 3 and packed[2:4] == b"\0\0"

    def __str__(self) -> str:
        return ",".join(self.sources) + ("@" if self.sources else "") + Endpoint.__str__(self)

    @classmethod
    def of(cls, ip: str, port: int, sources: Iterable[str] | None = None) -> Group:
        """Return the group at `ip`, which may carry a zone (``ff02::1%eth0``)."""
        return cls(ip, port, (), tuple((sources,) if isinstance(sources, str) else sources or ()))

    @classmethod
    def parse(cls, text: str) -> Group:
        """Return the group that `text` names, as people write and paste it.

        ``[SOURCE[,SOURCE]@]ADDRESS[:PORT][%INTERFACE[,INTERFACE]]`` with IPv6 in brackets when a port follows;
        a well-known name (``mdns``, ``sacn/7``; see `NAMES`) in place of address and port; ``:PORT`` alone for the
        default group, nothing at all for the default group and port; and addresses as VLC and ffmpeg write them,
        ``udp://@239.1.1.1:5000?localaddr=10.0.0.5``, of which the part that names interface and sources counts.
        Raises `GroupError`.

        >>> Group.parse("10.0.0.5@232.1.1.1:5000%eth0")
        Group(address='232.1.1.1', port=5000, interfaces=('eth0',), sources=('10.0.0.5',))
        >>> str(Group.parse("mdns"))
        '224.0.0.251:5353'
        """
        rest = text.strip()
        rest, _, query = _URL.sub("", rest).partition("?")
        options = urllib.parse.parse_qs(query)
        before, at, rest = rest.rpartition("@")
        sources = [source for source in before.split(",") if source] if at else []
        match = _GROUP.fullmatch(rest)
        if match is None:
            raise GroupError(
                f"{text!r} is not a group; write ADDRESS, ADDRESS:PORT or SOURCE@ADDRESS:PORT%INTERFACE,"
                f" with IPv6 as [ADDRESS]:PORT, or one of the names {', '.join(_SPELLINGS)}"
            )
        host, port_text, zone = match["host6"] or match["host"] or "", match["port"], match["zone"]
        port = int(port_text) if port_text else DEFAULT_PORT
        if host[:1].isalpha() and ":" not in host:
            host, named_port = _well_known(host)
            port = int(port_text) if port_text else named_port
        host, _, inner = host.partition("%")
        zones = [name for name in (inner or zone or "").split(",") if name]
        for key in ("iface", "interface", "localaddr"):
            zones += options.get(key, [])
        for key in ("source", "sources"):
            sources += [source for value in options.get(key, []) for source in value.split(",")]
        return cls(host or DEFAULT_IP, port, tuple(zones), tuple(sources))


_URL = re.compile(r"^(?:udp|rtp)://", re.IGNORECASE)
_GROUP = re.compile(
    r"""(?: \[ (?P<host6> [^\]]+ ) \]        # [IPv6], with or without a zone inside
          | (?P<host> [^:\[\]%]*             # IPv4, a name, or nothing
              | [0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*  # bare IPv6: no port can follow
            )
        )
        (?: : (?P<port> [0-9]{1,6} ) )?
        (?: % (?P<zone> [^%]+ ) )?""",
    re.VERBOSE,
)

#: Well-known groups by the name people know them by.
NAMES: dict[str, tuple[str, int]] = {
    "ssdp": ("239.255.255.250", 1900),  # UPnP Device Architecture 2.0, section 1
    "mdns": ("224.0.0.251", 5353),  # RFC 6762
    "llmnr": ("224.0.0.252", 5355),  # RFC 4795
    "wsd": ("239.255.255.250", 3702),  # OASIS WS-Discovery 1.1
    "knx": ("224.0.23.12", 3671),  # KNXnet/IP, EN 13321-2; IANA multicast and port registries
    "coap": ("224.0.1.187", 5683),  # RFC 7252 section 12.8
    "ptp": ("224.0.1.129", 319),  # IEEE 1588, event messages
    "sap": ("224.2.127.254", 9875),  # RFC 2974
    "lcm": ("239.255.76.67", 7667),  # LCM's default URL
}
_SPELLINGS = (*NAMES, "sacn/N")


def _well_known(name: str) -> tuple[str, int]:
    """Return address and port of a well-known group."""
    kind, slash, number = name.lower().partition("/")
    if kind == "sacn" and slash:
        # ANSI E1.31 section 9.3.1: 239.255.<universe, high byte>.<low byte>, universes 1 to 63999.
        if not number.isdecimal() or not 1 <= int(number) <= 63999:
            raise GroupError(f"sACN universes are 1 to 63999, so {name!r} is none; write for example sacn/1")
        universe = int(number)
        return f"239.255.{universe >> 8}.{universe & 255}", 5568
    if name.lower() in NAMES:
        return NAMES[name.lower()]
    raise GroupError(
        f"{name!r} is neither an IP address nor a well-known group; names are {', '.join(_SPELLINGS)}"
    )


# -- which interface -----------------------------------------------------------------------------------------------


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
    else:
        wanted = interface
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


@dataclass(frozen=True, slots=True)
class Way:
    """How packets leave."""

    #: The number of the interface; 0 is as the routes say.
    index: int = 0
    #: The address they come from; empty is the kernel's choice.
    source: str = ""


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
        return [_sending(to, ttl, interface, None)], False
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
        elif own is not None:
            found.append(Way(one.index, own if to.family == socket.AF_INET else ""))
        elif not every:
            raise InterfaceError(
                f"{one.name} has no {to._table.name} address, so nothing can be sent to {to.address} by it."
                f" This host has: {listing()}"
            )
    if not found:
        raise InterfaceError(
            f"no interface that is up has an {to._table.name} address, so nothing can be sent to {to.address}."
            f" This host has: {listing()}"
        )
    return found, every


_told_about_loopback = False


def _sending(
    to: Endpoint, ttl: int, interface: WhichInterface | None, source_ip: str | None
) -> Way:
    """Return how packets to `to` are to leave, from what the caller asked for."""
    if interface is None and to.interfaces:
        if len(to.interfaces) > 1 or to.interfaces == ("all",):
            raise InterfaceError(f"packets leave by one interface, so name one, not {','.join(to.interfaces)}")
        interface = to.interfaces[0]
    source = ""
    if source_ip is not None:
        address = _address(source_ip, "source_ip")
        source = _plain(address)
        if address.version != to.ip.version:
            raise GroupError(f"source_ip {source} and {to.address} are not of one family")
    chosen = resolve(interface) if interface is not None else None
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
    if to.is_multicast and not _routed(to):
        global _told_about_loopback
        if not _told_about_loopback:
            _told_about_loopback = True
            _log.warning(
                "no route for %s: its packets go out of lo and stay on this host; name an interface to send by",
                to.address,
            )
        return _by_loopback(to, source)
    return Way()


def _by_loopback(to: Endpoint, source: str) -> Way:
    # Left alone, the kernel finds no IPv4 address there that is good for groups, and sends from 0.0.0.0.
    return Way(_loopback(), source or ("127.0.0.1" if to.family == socket.AF_INET else ""))


def _loopback() -> int:
    return next((one.index for one in interfaces() if one.loopback), 1)


def _routed(to: Endpoint) -> bool:
    """Whether the routes lead to `to`, from an address that can be answered."""
    with socket.socket(to.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(to.sockaddr())  # sends nothing; only looks the route up
        except OSError:
            return False
        return not ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]).is_unspecified


# -- opening -------------------------------------------------------------------------------------------------------


def _open(table: _Family, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    try:
        opened = socket.socket(table.family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if table is _IPV6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise advise(error, "open", family=table.name) from None
    return opened


def _bind(opened: socket.socket, sockaddr: tuple[Any, ...], operation: str = "bind") -> None:
    try:
        opened.bind(sockaddr)
    except OSError as error:
        raise advise(error, operation, address=sockaddr[0], port=sockaddr[1], interfaces=listing()) from None


def _bind_shared(opened: socket.socket, sockaddr: tuple[Any, ...]) -> None:
    """Bind to a group, and share it with every program that shares it in either way."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(sockaddr)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            # Somebody may share it by the other option alone, and then there is no other way in.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(opened, sockaddr)
    else:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def open_sender(
    to: Endpoint,
    ttl: int = 1,
    *,
    interface: WhichInterface | None = None,
    source_ip: str | None = None,
    source_port: int = 0,
    loopback: bool = True,
) -> tuple[socket.socket, tuple[Any, ...]]:
    """Open a non-blocking socket for sending to `to`; return it with the address to give to `sendto`.

    `ttl` says how far packets to a group go, `interface` by which wire, `source_ip` from which address of this host
    (and, unless `interface` says otherwise, by the interface that has it), `source_port` from which port (0: any).
    With `loopback` False local members do not hear them, except on ``lo``.

    With `ttl` 0 packets leave by ``lo`` whatever the routes say. With no route for a group they do so too, which is
    logged once. Raises `ArgumentError`, `InterfaceError`, and `OSError` with advice; nothing stays open then.
    """
    check_ttl(ttl)
    if source_port != 0:
        check_port(source_port)
    way = _sending(to, ttl, interface, source_ip)
    table = to._table
    opened = _open(table)
    try:
        if to.is_multicast:
            opened.setsockopt(table.level, table.ttl, ttl)
            opened.setsockopt(table.level, table.loop, loopback)
            if way.index:
                _set_interface(opened, table, way)
            # Without it a full transmit queue and a firewall drop in silence.
            opened.setsockopt(table.level, table.recverr, 1)
        if way.source or source_port:
            own = Endpoint(way.source, source_port or 1) if way.source else None
            if table is _IPV4:
                _bind(opened, (way.source, source_port))
            else:
                scope = way.index if own is not None and own.needs_interface else 0
                _bind(opened, (way.source or "::", source_port, 0, scope))
    except BaseException:
        opened.close()
        raise
    return opened, to.sockaddr(way.index)


def pin(
    opened: socket.socket, to: Endpoint, ttl: int, interface: WhichInterface | None, source_ip: str | None
) -> tuple[Any, ...]:
    """Choose the interface of an open sender again, which may have been made anew; return the address to send to.

    The arguments are those it was opened with. Raises what `open_sender` raises.
    """
    way = _sending(to, ttl, interface, source_ip)
    if to.is_multicast and way.index:
        _set_interface(opened, to._table, way)
    return to.sockaddr(way.index)


def _set_interface(opened: socket.socket, table: _Family, way: Way) -> None:
    try:
        if table is _IPV4:
            # struct ip_mreqn: group, address, index. The address is the source where nothing is bound.
            source = socket.inet_aton(way.source or "0.0.0.0")  # noqa: S104 -- means "the interface's own", binds nothing
            opened.setsockopt(table.level, table.interface, struct.pack("@4s4si", bytes(4), source, way.index))
        else:
            opened.setsockopt(table.level, table.interface, way.index)
    except OSError as error:
        raise advise(error, "send", interfaces=listing()) from None


def open_receiver(
    group: Group,
    chosen: Sequence[Interface],
    *,
    exclude: Iterable[str] = (),
    rcvbuf: int | None = None,
    details: bool = False,
    optional: bool = False,
    program: Program = (),
    bursts: bool = False,
) -> tuple[socket.socket, list[Interface]]:
    """Open a non-blocking socket that receives `group` on the interfaces `chosen`; return it with those joined.

    With sources in `group` the joins are source-specific; packets from `exclude` are refused otherwise. `rcvbuf` is
    the size of the receive buffer wanted, in bytes. With `details` the kernel adds arrival interface, TTL and time
    to each packet. With `optional` it is enough that one interface can be joined; the others are logged. `program`
    and `bursts` are for `set_up_receiver`.

    Raises `GroupError` and `OSError` with advice; nothing stays open then.
    """
    excluded = group.check_sources(exclude, "exclude")
    if excluded and group.sources:
        raise GroupError("sources and exclude cannot be combined: with sources, everybody else is excluded already")
    if group.is_source_specific and not group.sources:
        _log.warning(
            "%s is in the source-specific range and joined without sources: routers will not forward it (RFC 4607);"
            " give the sender's address with sources=",
            group.address,
        )
    table = group._table
    opened = _open(table)
    try:
        opened.setsockopt(table.level, table.all, 0)
        set_up_receiver(opened, rcvbuf, details, program, bursts)
        _bind_shared(opened, group.sockaddr(chosen[0].index))
        joined = []
        refused: OSError | None = None
        for interface in chosen:
            try:
                join_on(opened, group, interface, excluded)
                joined.append(interface)
            except OSError as error:
                if not optional:
                    raise
                refused = error
                _log.warning("%s is not joined on %s: %s", group.address, interface.name, error)
        if refused is not None and not joined:
            raise refused
    except BaseException:
        opened.close()
        raise
    return opened, joined


def open_unicast(
    ip: str,
    port: int,
    *,
    ttl: int | None = None,
    hops: int | None = None,
    rcvbuf: int | None = None,
    details: bool = False,
    program: Program = (),
    bursts: bool = False,
) -> socket.socket:
    """Open a non-blocking socket of one's own at a unicast address of this host, shared with nobody.

    `ip` may be ``0.0.0.0`` or ``::`` for all addresses, `port` 0 for any free one. It is not connected, so it hears
    answers from anywhere. `ttl` is for what is sent from it to groups, `hops` (1 to 255) the same for single hosts;
    `program` and `bursts` are for `set_up_receiver`.
    Raises `ArgumentError`, `GroupError` and `OSError` with advice; nothing stays open then.
    """
    address = _address(ip, "address")
    if port != 0:
        check_port(port)
    if ttl is not None:
        check_ttl(ttl)
    if address.is_multicast:
        raise GroupError(f"{address} is a group; join it with MulticastListener(ip={str(address)!r})")
    table = _IPV4 if address.version == 4 else _IPV6
    zone = getattr(address, "scope_id", None)
    scope = resolve(zone).index if zone else 0
    opened = _open(table)
    try:
        if ttl is not None:
            opened.setsockopt(table.level, table.ttl, ttl)
        if hops is not None:
            opened.setsockopt(table.level, table.hops, hops)
        set_up_receiver(opened, rcvbuf, details, program, bursts)
        _bind(opened, (_plain(address), port) if table is _IPV4 else (_plain(address), port, 0, scope))
    except BaseException:
        opened.close()
        raise
    return opened


def send_by(
    opened: socket.socket, packet: bytes, sockaddr: tuple[Any, ...], index: int = 0, source: str | None = None
) -> None:
    """Send one packet by the interface with number `index` and from the local address `source`, where given.

    Both hold for this packet alone (IP_PKTINFO in ip(7), RFC 3542 section 6). Raises `OSError` with advice.
    """
    if opened.family == socket.AF_INET:
        # struct in_pktinfo: index, the local address, and one that only receivers get.
        level, kind = socket.IPPROTO_IP, _IP_PKTINFO
        info = struct.pack("@i4s4x", index, bytes(4) if source is None else socket.inet_aton(source))
    else:
        level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
        info = struct.pack("@16si", bytes(16) if source is None else socket.inet_pton(socket.AF_INET6, source), index)
    try:
        opened.sendmsg([packet], [(level, kind, info)], 0, sockaddr)
    except BlockingIOError:
        raise
    except OSError as error:
        raise advise(error, "send", address=sockaddr[0], interfaces=listing()) from None


def join_on(opened: socket.socket, group: Group, interface: Interface, excluded: Sequence[str]) -> None:
    """Join `group` on one interface, for its sources, or for everybody but those excluded."""
    for source in group.sources or (None,):
        join(opened, group, interface.index, source)
    for source in excluded:
        _request(opened, _MCAST_BLOCK_SOURCE, group, interface.index, source)


def join(opened: socket.socket, group: Group, index: int, source: str | None = None) -> None:
    """Join `group` on the interface with number `index`, for packets from `source` or from anybody."""
    option = _MCAST_JOIN_GROUP if source is None else _MCAST_JOIN_SOURCE_GROUP
    _request(opened, option, group, index, source)


def leave(opened: socket.socket, group: Group, index: int) -> None:
    """Leave `group` on the interface with number `index`, with all its sources. Harmless when it is not joined."""
    try:
        _request(opened, _MCAST_LEAVE_GROUP, group, index, None)
    except OSError:
        pass  # not joined, or the interface is gone and the membership with it


def _request(opened: socket.socket, option: int, group: Group, index: int, source: str | None) -> None:
    # struct group_req and group_source_req (RFC 3678 section 5.1): a number, padded as a pointer is aligned, then
    # one or two sockaddr_storage.
    table = group._table
    value = struct.pack("@I0P", index) + _storage(group.address)
    if source is not None:
        value += _storage(source)
    try:
        opened.setsockopt(table.level, option, value)
    except OSError as error:
        raise advise(error, "join", group=group.address, family=table.name, interfaces=listing()) from None


def _storage(address: str) -> bytes:
    if ":" in address:
        packed = struct.pack("@HHI", socket.AF_INET6, 0, 0) + socket.inet_pton(socket.AF_INET6, address)
    else:
        packed = struct.pack("@HH", socket.AF_INET, 0) + socket.inet_pton(socket.AF_INET, address)
    return packed.ljust(128, b"\0")


def set_up_receiver(
    opened: socket.socket, rcvbuf: int | None, details: bool, program: Program = (), bursts: bool = False
) -> None:
    """Set the options that a socket needs before it is bound, for from then on packets come in.

    `program` is one of classic BPF, each instruction a tuple of struct sock_filter's four numbers; it sees packets
    from the UDP header on. With `bursts` the kernel hands over packets that came together as one datagram (UDP_GRO,
    udp(7)); kernels before 5.0 do not know it, and go on packet by packet.
    """
    if program:
        _attach(opened, program)
    if bursts:
        try:
            opened.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
    if details:
        enable_details(opened)
    if rcvbuf is not None:
        receive_buffer(opened, rcvbuf)


def _attach(opened: socket.socket, program: Program) -> None:
    code = array.array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    # struct sock_fprog: the number of instructions, and where they are.
    described = struct.pack("@HP", len(program), code.buffer_info()[0])
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def enable_details(opened: socket.socket) -> None:
    """Have the kernel add arrival interface, destination, TTL and receive time to each packet."""
    table = _IPV6 if opened.family == socket.AF_INET6 else _IPV4
    for option in table.details:
        opened.setsockopt(table.level, option, 1)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


_told_about_buffer = False


def receive_buffer(opened: socket.socket, wanted: int | None = None) -> int:
    """Return the size of the receive buffer in bytes, after setting it to `wanted` bytes, if given.

    The kernel keeps twice as much and counts its own overhead in it (socket(7)); the number here is comparable to
    what was asked for. A smaller one than wanted is logged once, with the setting to raise.
    """
    if wanted is not None:
        check_rcvbuf(wanted)
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, min(wanted, 0x3FFFFFFF))  # needs CAP_NET_ADMIN
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(wanted, 0x3FFFFFFF))
    granted = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    global _told_about_buffer
    if wanted is not None and granted < wanted and not _told_about_buffer:
        _told_about_buffer = True
        _log.warning(
            "asked for a receive buffer of %d bytes, the kernel granted %d; raise its limit:"
            " sysctl -w net.core.rmem_max=%d",
            wanted,
            granted,
            wanted,
        )
    return granted


def drops(opened: socket.socket) -> int:
    """Return how many packets the kernel has dropped at this socket since it was opened, modulo 2**32."""
    info = opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
    return int(struct.unpack_from("@I", info, 4 * _SK_MEMINFO_DROPS)[0])


def overflows(opened: socket.socket) -> int | None:
    """Return how many packets all sockets of this family have lost for want of room or by a bad checksum.

    That is in the network namespace of `opened`; None when this thread is in another one, or the kernel does not say.
    A single socket's own counter (`drops`) counts what its program refused along with it.
    """
    six = opened.family == socket.AF_INET6
    try:
        with socket.socket(opened.family, socket.SOCK_DGRAM) as here:
            one, other = (each.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) for each in (opened, here))
        if one != other:
            return None
        with open(f"/proc/thread-self/net/{'snmp6' if six else 'snmp'}", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("Udp6" if six else "Udp:")]
    except OSError:
        return None
    counters = {line[0].removeprefix("Udp6"): line[1] for line in lines} if six else dict(zip(*lines, strict=True))
    return sum(int(counters.get(name, 0)) for name in ("RcvbufErrors", "MemErrors", "InCsumErrors"))


# Queueing disciplines that take bursts apart, drop some of the packets where the queue is full, and report success.
_DIVIDING = (b"tbf", b"netem", b"cake", b"taprio")
# rtnetlink(7): struct nlmsghdr, struct tcmsg, and the attribute that names the discipline.
_RTM_GETQDISC, _NLM_F_DUMP, _NLMSG_DONE, _NLMSG_ERROR, _TCA_KIND = 38, 0x301, 3, 2, 1


def takes_bursts() -> bool:
    """Whether whole bursts may be handed to the interfaces of this host as they are set up now.

    They may not where a traffic shaper would drop a part of one without a sign.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
            kernel.send(struct.pack("=IHHII", 36, _RTM_GETQDISC, _NLM_F_DUMP, 1, 0) + bytes(20))
            while True:
                reply = kernel.recv(65536)
                at = 0
                while at + 16 <= len(reply):
                    length, kind = struct.unpack_from("=IH", reply, at)
                    if kind == _NLMSG_DONE:
                        return True
                    if kind == _NLMSG_ERROR or length < 16:
                        return True  # it has no disciplines, or does not tell: then it is no router with shapers
                    size, attribute = struct.unpack_from("=HH", reply, at + 36) if length >= 40 else (0, 0)
                    if attribute == _TCA_KIND and reply[at + 40 : at + 36 + size].rstrip(b"\0") in _DIVIDING:
                        return False
                    at += length + 3 & ~3
                if not reply:
                    return True
    except OSError:
        return True


# Classic BPF (linux/filter.h): code, jump if true, jump if false, operand. Taken is what goes to 224/4 or ff00::/8, as
# the network header says, and of that the first 256 bytes: enough for all headers of a datagram.
_WIRE_FILTER = (
    (0x28, 0, 0, 0xFFFFF000),  # A = the protocol of the frame
    (0x15, 0, 3, 0x0800),  # IPv4?
    (0x30, 0, 0, 16),  # A = first byte of the destination
    (0x54, 0, 0, 0xF0),
    (0x15, 3, 4, 0xE0),
    (0x15, 0, 3, 0x86DD),  # IPv6?
    (0x30, 0, 0, 24),
    (0x15, 0, 1, 0xFF),
    (0x06, 0, 0, 256),
    (0x06, 0, 0, 0),
)


def open_wire() -> socket.socket:
    """Open a non-blocking packet socket (packet(7)) that sees what goes to groups, on all interfaces, in and out.

    Each packet starts with its IP header and is cut to 256 bytes. Interfaces are not made promiscuous, so what a
    network card filters out is not seen. Copies that the kernel makes for members on the sending host are not shown
    either, and what goes by ``lo`` is shown twice. Raises `PermissionError` without CAP_NET_RAW.
    """
    everything = socket.htons(3)  # ETH_P_ALL in linux/if_ether.h
    opened = socket.socket(
        socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, everything
    )
    try:
        _attach(opened, _WIRE_FILTER)  # a packet may have come in before; who reads must look at the destination
        # Reports of memberships on lo are charged with its MTU, 64 KiB and more: two of them fill the default buffer.
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        except PermissionError:  # root of a user namespace
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    except BaseException:
        opened.close()
        raise
    return opened


# -- streams -------------------------------------------------------------------------------------------------------

# How many connections the kernel keeps until they are accepted; it takes less where net.core.somaxconn is less.
_BACKLOG = 1024


def open_acceptor(ip: str, port: int) -> socket.socket:
    """Open a non-blocking TCP socket that listens at an address of this host.

    `ip` may be ``0.0.0.0`` or ``::`` for all addresses of the family, `port` 0 for any free one. Raises
    `ArgumentError`, `GroupError`, `InterfaceError`, and `OSError` with advice; nothing stays open then.
    """
    address, table, sockaddr = _stream_address(ip, port)
    if address.is_multicast:
        raise GroupError(f"{address} is a group, and TCP connects single hosts")
    opened = _open(table, socket.SOCK_STREAM)
    try:
        # Before bind, or it does nothing: connections of the last run that are not forgotten yet (TIME_WAIT) keep
        # the port for a minute otherwise. On a listening socket it shares nothing.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(opened, sockaddr, "accept")
        try:
            opened.listen(_BACKLOG)
        except OSError as error:
            raise advise(error, "accept", address=sockaddr[0], port=sockaddr[1]) from None
    except BaseException:
        opened.close()
        raise
    return opened


def open_stream(ip: str, port: int, *, source_ip: str | None = None) -> tuple[socket.socket, OSError | None]:
    """Open a non-blocking TCP socket and start connecting it; return it, and the error if that failed already.

    The connection stands, or has failed (SO_ERROR), when the socket is writable: connect(2), EINPROGRESS.
    `source_ip` is the address it comes from. Raises `ArgumentError`, `GroupError`, `InterfaceError`, and `OSError`
    with advice when the socket cannot be made; nothing stays open then.
    """
    to = Endpoint(ip, port)
    if to.is_multicast:
        raise GroupError(f"{to.address} is a group, and TCP connects single hosts")
    _, table, sockaddr = _stream_address(ip, port)
    own = None if source_ip is None else _stream_address(source_ip, 0)
    if own is not None and own[1] is not table:
        raise GroupError(f"source_ip {source_ip} and {to.address} are not of one family")
    opened = _open(table, socket.SOCK_STREAM)
    failed: OSError | None = None
    try:
        if own is not None:
            _bind(opened, own[2])
        try:
            opened.connect(sockaddr)
        except BlockingIOError:
            pass
        except OSError as error:
            failed = error
    except BaseException:
        opened.close()
        raise
    return opened, failed


def _stream_address(
    ip: str, port: int
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, _Family, tuple[Any, ...]]:
    address = _address(ip, "address")
    if port != 0:
        check_port(port)
    if address.version == 4:
        return address, _IPV4, (str(address), port)
    zone = address.scope_id
    return address, _IPV6, (_plain(address), port, 0, resolve(zone).index if zone else 0)


def prepare_stream(opened: socket.socket) -> None:
    """Make a stream socket non-blocking, and have TCP send at once what it is given and notice a peer that vanished.

    Without TCP_NODELAY a small message may wait for the acknowledgement of the one before, 40 ms or more (tcp(7));
    streams gather what belongs together themselves. A host that was switched off says nothing, ever: after a minute
    of silence the kernel asks it, and after another minute without an answer it ends the connection.
    """
    opened.setblocking(False)
    if opened.family in (socket.AF_INET, socket.AF_INET6):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
