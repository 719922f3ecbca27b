"""Groups as people write them, addresses, ports and TTLs, and what differs between the two families.

Values only: nothing here opens a socket, and nothing asks the kernel.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

from multicast.errors import ArgumentError, GroupError, check_number

#: The group and port everything uses when none is given.
DEFAULT_IP = "224.0.42.42"
DEFAULT_PORT = 4242

# Numbers that Python's socket module lacks, from Linux' include/uapi/linux/in.h and in6.h.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_IP_RECVERR = 11
_IPV6_RECVERR = 25
IP_PKTINFO = 8
_IP_RECVTTL = 12
_IP_RECVTOS = 13
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75


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


class Family(NamedTuple):
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
    traffic_class: int  # DSCP and ECN
    transparent: int
    details: tuple[int, ...]
    longest: int
    everywhere: str  # as a local address: any of the host's


IPV4 = Family(
    name="IPv4",
    family=socket.AF_INET,
    level=socket.IPPROTO_IP,
    all=_IP_MULTICAST_ALL,
    recverr=_IP_RECVERR,
    interface=socket.IP_MULTICAST_IF,
    ttl=socket.IP_MULTICAST_TTL,
    hops=socket.IP_TTL,
    loop=socket.IP_MULTICAST_LOOP,
    traffic_class=socket.IP_TOS,
    transparent=_IP_TRANSPARENT,
    details=(IP_PKTINFO, _IP_RECVTTL, _IP_RECVTOS),
    longest=65507,  # 65535 less an IP header of 20 and a UDP header of 8
    everywhere="0.0.0.0",  # noqa: S104 -- replies and requests go by whichever is asked for
)
IPV6 = Family(
    name="IPv6",
    family=socket.AF_INET6,
    level=socket.IPPROTO_IPV6,
    all=_IPV6_MULTICAST_ALL,
    recverr=_IPV6_RECVERR,
    interface=socket.IPV6_MULTICAST_IF,
    ttl=socket.IPV6_MULTICAST_HOPS,
    hops=socket.IPV6_UNICAST_HOPS,
    loop=socket.IPV6_MULTICAST_LOOP,
    traffic_class=socket.IPV6_TCLASS,
    transparent=_IPV6_TRANSPARENT,
    details=(socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT, socket.IPV6_RECVTCLASS),
    longest=65527,  # the length field of IPv6 does not count its own header
    everywhere="::",
)


def parse_address(text: object, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address that `text` is; `what` says in the error what it was meant for. Raises `GroupError`."""
    if not isinstance(text, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        raise GroupError(f"{what} must be an IP address as text, not {text!r}")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise GroupError(f"{text!r} is not an IP address; names are not looked up, give the {what} in digits") from None


def plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return an address as text, without its zone."""
    return str(address).partition("%")[0]


def check_port(port: object) -> int:
    """Return `port` when it is one a packet can be sent to: 1 to 65535. Raises `ArgumentError`."""
    return check_number("port", port, 1, 65535)


def check_ttl(ttl: object) -> int:
    """Return `ttl` when it is one: 0 to 255. Raises `ArgumentError`."""
    if isinstance(ttl, bool) or not isinstance(ttl, int) or not 0 <= ttl <= 255:
        raise ArgumentError(
            f"ttl must be a number from 0 (this host) to 255 (unrestricted), not {ttl!r}; 1 stays on the subnet"
        )
    return int(ttl)


class Endpoint:
    """An IP address and a port that packets are sent to or received at, and the interface they go by, if one is named.

    Raises `GroupError` for what is not an IP address or cannot be a destination, `ArgumentError` for the port.
    """

    # By hand and not a dataclass, as that module takes a third of the time in which all of ours are imported.
    __slots__ = ("address", "interfaces", "port")
    __match_args__: tuple[str, ...] = ("address", "port", "interfaces")
    #: The address as text, without zone.
    address: str
    #: The port, 1 to 65535.
    port: int
    #: The interfaces named with it, as they were written; ``("all",)`` for all of them.
    interfaces: tuple[str, ...]

    def __init__(self, address: str, port: int, interfaces: tuple[str, ...] = ()) -> None:
        parsed = parse_address(address, "address")
        check_port(port)
        if parsed.is_unspecified or str(parsed) == "255.255.255.255":
            raise GroupError(f"{parsed} is neither a group nor a single host, so nothing can be sent there")
        zone = getattr(parsed, "scope_id", None)
        self._set(address=plain(parsed), port=port, interfaces=interfaces or ((zone,) if zone else ()))

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the {name} of a {type(self).__name__} cannot be set; make another one")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__name__}({', '.join(values)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address as an object of `ipaddress`."""
        return ipaddress.ip_address(self.address)

    @property
    def family(self) -> int:
        """`socket.AF_INET` or `socket.AF_INET6`."""
        return self.table.family

    @property
    def longest(self) -> int:
        """The longest payload of one datagram, in bytes: 65507 for IPv4, 65527 for IPv6 (udp(7), RFC 8200)."""
        return self.table.longest

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
    def table(self) -> Family:
        """What is particular to the family of the address."""
        return IPV6 if ":" in self.address else IPV4

    def sockaddr(self, index: int = 0) -> tuple[Any, ...]:
        """Return what `socket.sendto` and `bind` take; `index` is that of the interface, for IPv6 scopes."""
        if self.family == socket.AF_INET:
            return (self.address, self.port)
        return (self.address, self.port, 0, index if self.needs_interface else 0)

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        zone = f"%{','.join(self.interfaces)}" if self.interfaces else ""
        return f"{host}:{self.port}{zone}"


class Group(Endpoint):
    """A multicast group and its port; for source-specific multicast with the sources.

    Raises `GroupError` for an address that is no group's and for sources that are not single hosts of its family.
    """

    __slots__ = ("sources",)
    __match_args__ = ("address", "port", "interfaces", "sources")
    #: The senders to receive from; empty for any (RFC 4607).
    sources: tuple[str, ...]

    def __init__(
        self,
        address: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        interfaces: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
    ) -> None:
        super().__init__(address, port, interfaces)
        if not self.ip.is_multicast:
            raise GroupError(
                f"{self.address} is not a multicast address (224.0.0.0 to 239.255.255.255, or ff00::/8)"
            )
        self._set(sources=self.check_sources(sources, "source"))

    def check_sources(self, sources: Iterable[str], what: str) -> tuple[str, ...]:
        """Return `sources` as plain addresses when each is a single host of the group's family."""
        checked = []
        for text in (sources,) if isinstance(sources, str) else sources:
            source = parse_address(text, what)
            if source.is_multicast or source.is_unspecified or source.version != self.ip.version:
                raise GroupError(
                    f"{what} {source} is not the address of a single {self.table.name} host,"
                    f" as the {what}s of {self.address} must be"
                )
            checked.append(plain(source))
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
        ``udp://@239.1.1.1:5000?localaddr=10.0.0.5``. Of the options of such a URL those that name the interface
        (iface, interface, localaddr) and the senders to hear (source, sources) count. One that names senders to leave
        out (block) is refused, for they would be heard; a listener takes them as ``exclude``. All others, such as ttl,
        are no part of a group, and are passed over without a word.

        Raises `GroupError`, and `ArgumentError` for a port out of range.

        >>> Group.parse("10.0.0.5@232.1.1.1:5000%eth0")
        Group(address='232.1.1.1', port=5000, interfaces=('eth0',), sources=('10.0.0.5',))
        >>> str(Group.parse("mdns"))
        '224.0.0.251:5353'
        """
        rest, options = _split(text)
        if any(options.get("block", ())):
            blocked = ",".join(options["block"])
            raise GroupError(
                f"block={blocked} in {text!r} cannot be kept, as a group says whom to hear and not whom to leave out:"
                f" write the senders to hear, SOURCE@ADDRESS:PORT, or in Python give exclude={blocked.split(',')}"
            )
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
        if inner and zone and inner != zone:
            raise GroupError(f"{text!r} names two interfaces, {inner} and {zone}; write one of them")
        zones = [name for name in (inner or zone or "").split(",") if name]
        for key in _INTERFACE_OPTIONS:
            zones += filter(None, options.get(key, []))
        for name in zones:
            if not name.isprintable() or _NO_NAME.search(name):
                raise GroupError(f"{name!r} in {text!r} does not name an interface")
        for key in _SOURCE_OPTIONS:
            sources += [source for value in filter(None, options.get(key, [])) for source in value.split(",")]
        return cls(host or DEFAULT_IP, port, tuple(zones), tuple(sources))


def unused_options(text: str) -> list[tuple[str, str]]:
    """Return the options of a pasted URL that `Group.parse` passes over and that its writer may miss, with values.

    Sizes of buffers, and ports that are shared, are not among them: they do not change what is sent and heard.

    >>> unused_options("udp://239.1.1.1:5000?ttl=3&pkt_size=1316&fifo_size=50000")
    [('ttl', '3')]
    """
    _, options = _split(text)
    used = {*_INTERFACE_OPTIONS, *_SOURCE_OPTIONS, *_HARMLESS_OPTIONS}
    return [(key, value) for key, values in options.items() if key not in used for value in values]


def _split(text: str) -> tuple[str, dict[str, list[str]]]:
    """Return the text of a group without what makes it a URL, and the options of the URL."""
    rest, _, query = _URL.sub("", text.strip()).partition("?")
    if not query:
        return rest, {}
    from urllib.parse import parse_qs  # not small, and seldom needed

    return rest, parse_qs(query, keep_blank_values=True)


_INTERFACE_OPTIONS = ("iface", "interface", "localaddr")
_SOURCE_OPTIONS = ("source", "sources")
# The options of udp and rtp in ffmpeg's list of protocols that change neither what is sent nor what is heard.
_HARMLESS_OPTIONS = frozenset(
    {"broadcast", "buffer_size", "burst_bits", "connect", "fifo_size", "overrun_nonfatal", "pkt_size", "reuse"}
    | {"reuse_socket", "rtcpport", "localrtcpport"}
)
# What the kernel allows in no name, and what has a meaning in the text of a group.
_NO_NAME = re.compile(r"[\s/,%@?]")
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
