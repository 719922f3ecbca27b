"""What the doctor looks at: all input and output is here, judging is in `checks`.

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
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import ipaddress
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import batch
from ..batch import Address
from ..errors import InterfaceError, describe
from ..interfaces import Interface, Membership, Route, interfaces, memberships, resolve, route, usable
from ..listeners import MulticastListener
from ..poller import Poller
from ..senders import sendto
from ..sockets import Group, WhichInterfaces, named, open_wire
from . import firewall
from .firewall import Rule

__all__ = ["Bridge", "Evidence", "Holder", "Seen", "SourceFilter", "gather"]

_log = logging.getLogger("multicast")

# CAP_NET_ADMIN and CAP_NET_RAW in linux/capability.h.
_NET_ADMIN, _NET_RAW = 12, 13
# Forged sources must not fill the memory; a person reads no more of them anyway.
_MOST = 512
_SELF_TEST = "239.255.77.77"
# How many batches are read at the end, when the time is over. A flood does not end with it.
_DRAIN = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """Packets that are alike, and how many of them came."""

    #: The name of the interface.
    interface: str
    #: The address they went to.
    group: str
    #: The port they went to; 0 where a fragment does not tell.
    port: int
    #: The address they came from.
    source: str
    #: Their TTL or hop limit.
    ttl: int
    #: Whether they left this host; on the wire alone.
    outgoing: bool = False
    #: Whether they are first fragments of longer datagrams; on the wire alone.
    fragmented: bool = False
    #: How many.
    packets: int = 1


@dataclass(frozen=True, slots=True)
class SourceFilter:
    """What the sockets of this host that have joined a group say of one source."""

    interface: str
    group: str
    source: str
    #: How many sockets have joined for it.
    included: int
    #: How many refuse it.
    excluded: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A UDP socket of a program on this host."""

    address: str
    port: int
    uid: int
    inode: int
    #: The program and its process id, as ``name (pid N)``; empty where only root may know.
    program: str = ""
    #: What the kernel dropped there while we looked, because its buffer was full.
    dropped: int = 0
    #: Whether what it sends can be heard on this host; None where that was not asked.
    loopback: bool | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        return self.program or f"a program of user {self.uid}"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of this host that looks into IGMP and MLD (bridge(8), mcast_snooping)."""

    name: str
    #: Whether it asks for memberships itself.
    querier: bool
    #: The interfaces in it.
    ports: tuple[str, ...] = ()
    #: Those of them that get no groups nobody is known to want.
    unflooded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found out; the defaults are those of a healthy host where nothing happened."""

    group: Group = Group()
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
    #: What was on the wire; None where we may not look.
    wire: tuple[Seen, ...] | None = ()
    #: Fragments other than the first on the wire, for the group.
    fragments: int = 0
    #: Where queries of IGMP or MLD were seen on the wire.
    queriers: tuple[tuple[str, str], ...] = ()
    #: Sockets of other programs on the port, and those that cannot be heard on this host.
    holders: tuple[Holder, ...] = ()
    silent: tuple[Holder, ...] = ()
    #: Why we could not join, by interface; "" is for all of them.
    refused: Mapping[str, OSError] = field(default_factory=dict)
    #: Firewall rules in the way of incoming packets; None where we may not look.
    rules: tuple[Rule, ...] | None = ()
    #: Bridges that snoop; None where `ip` is missing.
    bridges: tuple[Bridge, ...] | None = ()
    #: Whether the packet of the self-test came back; None where there was none.
    loopback: bool | None = True
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


class _Table:
    """Counts packets that are alike, up to so many kinds of them."""

    def __init__(self) -> None:
        self.counts: dict[tuple[Any, ...], int] = {}

    def add(self, *key: Any) -> None:
        if key in self.counts or len(self.counts) < _MOST:
            self.counts[key] = self.counts.get(key, 0) + 1

    def seen(self) -> tuple[Seen, ...]:
        most_first = sorted(self.counts.items(), key=lambda item: -item[1])
        return tuple(replace(Seen(*key), packets=packets) for key, packets in most_first)


class _Ear(MulticastListener):
    """Counts what it hears."""

    def __init__(self, table: _Table, **options: Any) -> None:
        self._table = table
        super().__init__(mtu=1, details=True, **options)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        self._table.add(addr.interface or "?", addr.group or "?", self.group.port, addr.host, addr.ttl or 0)
        return False


class _Wire:
    """Counts what is on the wire."""

    def __init__(self) -> None:
        self._socket = open_wire()
        self.packets = _Table()
        self.queriers: dict[tuple[str, str], None] = {}
        self.fragments: dict[str, int] = {}

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def handle_read(self) -> None:
        for _ in range(batch.LIMIT):
            try:
                data, (name, _, kind, *_) = self._socket.recvfrom(256)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # an interface went down, and the socket says so once
                    raise
                continue
            outgoing = kind == socket.PACKET_OUTGOING
            if not (outgoing and name == "lo"):  # lo shows what it carries twice
                self._note(data, name, outgoing)

    def _note(self, data: bytes, name: str, outgoing: bool) -> None:
        try:
            packet = _dissect(data)
        except (struct.error, IndexError, ValueError):  # shorter than it says
            return
        if packet is None:
            return
        if packet.kind == "query" and not outgoing and len(self.queriers) < _MOST:
            self.queriers[name, packet.source] = None
        elif packet.kind == "fragment":
            if packet.group in self.fragments or len(self.fragments) < _MOST:
                self.fragments[packet.group] = self.fragments.get(packet.group, 0) + (not outgoing)
        elif packet.kind == "udp":
            self.packets.add(
                name, packet.group, packet.port, packet.source, packet.ttl, outgoing, packet.fragmented
            )


@dataclass(frozen=True, slots=True)
class _Packet:
    kind: str
    source: str
    group: str
    ttl: int
    port: int = 0
    fragmented: bool = False


# Protocol numbers of IANA; RFC 2236 (IGMP query 0x11), RFC 2710 (MLD query 130), RFC 8200 (extension headers).
_IGMP, _UDP, _ICMP6, _HOP_BY_HOP, _ROUTING, _FRAGMENT, _OPTIONS = 2, 17, 58, 0, 43, 44, 60


def _dissect(data: bytes) -> _Packet | None:
    """Return what an IP packet to a group is about, as far as the doctor is interested; None for others."""
    if data[0] >> 4 == 4:
        if data[16] & 0xF0 != 0xE0:
            return None
        start = 4 * (data[0] & 15)
        flags = struct.unpack_from("!H", data, 6)[0]
        later, more = flags & 0x1FFF, flags & 0x2000
        ttl, protocol = data[8], data[9]
        source, group = socket.inet_ntop(socket.AF_INET, data[12:16]), socket.inet_ntop(socket.AF_INET, data[16:20])
    else:
        if data[24] != 0xFF:
            return None
        start, protocol, ttl, later, more = 40, data[6], data[7], 0, 0
        source, group = socket.inet_ntop(socket.AF_INET6, data[8:24]), socket.inet_ntop(socket.AF_INET6, data[24:40])
        while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _OPTIONS):
            length = 8
            if protocol == _FRAGMENT:
                flags = struct.unpack_from("!H", data, start + 2)[0]
                later, more = flags & 0xFFF8, flags & 1
            else:
                length = 8 * (data[start + 1] + 1)
            protocol = data[start]
            start += length
            if later:
                break
    if later:
        return _Packet("fragment", source, group, ttl) if protocol == _UDP else None
    if protocol == _UDP:
        return _Packet("udp", source, group, ttl, struct.unpack_from("!H", data, start + 2)[0], bool(more))
    if (protocol == _IGMP and data[start] == 0x11) or (protocol == _ICMP6 and data[start] == 130):
        return _Packet("query", source, group, ttl)
    return None


# -- the files of /proc --------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not in this kernel, or not for us
        return ""


def powers(text: str | None = None) -> tuple[bool, bool]:
    """Return whether this thread may look at the wire, and at the firewall."""
    status = _read("/proc/thread-self/status") if text is None else text
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return bool(bits >> _NET_RAW & 1), bool(bits >> _NET_ADMIN & 1)
    return False, False


def counters(ipv6: bool, read: Callable[[str], str] = _read) -> dict[str, int]:
    """Return the kernel's counters of a family, under the names they have in /proc/net/snmp and netstat."""
    found: dict[str, int] = {}
    for path in ("/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"):
        lines = [line.split() for line in read(path).splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=False):
            for name, value in zip(names[1:], values[1:], strict=False):
                found[names[0].replace("IpExt", "Ip") + name] = int(value)
    if ipv6:
        found = {name: value for name, value in found.items() if not name.startswith(("Ip:", "Udp:", "TcpExt:"))}
        for line in read("/proc/thread-self/net/snmp6").splitlines():
            name, value = line.split()
            for prefix in ("Ip6", "Udp6"):
                if name.startswith(prefix):
                    found[f"{prefix[:-1]}:{name.removeprefix(prefix)}"] = int(value)
    return found


def holders(read: Callable[[str], str] = _read) -> dict[int, tuple[Holder, int]]:
    """Return the UDP sockets of this host by inode, each with what it has dropped since it was opened."""
    found = {}
    for name, family in (("udp", socket.AF_INET), ("udp6", socket.AF_INET6)):
        for line in read(f"/proc/thread-self/net/{name}").splitlines()[1:]:
            words = line.split()
            if len(words) < 13:
                continue
            digits, _, port = words[1].partition(":")
            # Each four bytes of the address are printed as a number of this machine.
            packed = b"".join(
                int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)
            )
            address = socket.inet_ntop(family, packed)
            holder = Holder(address, int(port, 16), int(words[7]), int(words[9]))
            found[holder.inode] = holder, int(words[12])
    return found


def source_filters(
    names: Mapping[int, str], read: Callable[[str], str] = _read
) -> Iterator[SourceFilter]:
    """Return what /proc/net/mcfilter and mcfilter6 say; `names` are those of the interfaces by index."""
    for path in ("/proc/thread-self/net/mcfilter", "/proc/thread-self/net/mcfilter6"):
        for line in read(path).splitlines()[1:]:
            words = line.split()
            # The name of the interface is cut to six characters, so it is not looked at.
            if len(words) >= 6 and words[0].isdecimal():
                group, source = (
                    socket.inet_ntop(socket.AF_INET, int(word, 16).to_bytes(4, "big"))
                    if word.startswith("0x")
                    else socket.inet_ntop(socket.AF_INET6, bytes.fromhex(word))
                    for word in words[-4:-2]
                )
                yield SourceFilter(names.get(int(words[0]), "?"), group, source, int(words[-2]), int(words[-1]))


def versions(read: Callable[[str], str] = _read) -> dict[str, int]:
    """Return the versions of IGMP spoken by interface; an older one than 3 means that a querier speaks it."""
    found = {}
    for line in read("/proc/thread-self/net/igmp").splitlines()[1:]:
        words = line.replace(":", " ").split()
        if not line.startswith("\t") and len(words) >= 4 and words[-1][:1] == "V":
            found[words[1]] = int(words[-1][1:])
    return found


def _sysctls(names: Iterable[str]) -> dict[str, int]:
    wanted = ["net.ipv4.igmp_max_memberships", "net.core.rmem_max", "net.core.rmem_default"]
    found = {}
    for interface in ("all", *names):
        # A dot may be part of the name of an interface, and a slash may not.
        for path in ("ipv4/conf/{}/rp_filter", "ipv4/conf/{}/force_igmp_version", "ipv6/conf/{}/force_mld_version"):
            text = _read("/proc/sys/net/" + path.format(interface))
            if text:
                found["net." + path.replace("/", ".").format(interface)] = int(text)
    for name in wanted:
        # net.core is the same for all; some of it is not shown in other network namespaces than the first.
        text = _read("/proc/sys/" + name.replace(".", "/"))
        if text:
            found[name] = int(text)
    return found


def programs(inodes: Iterable[int]) -> dict[int, str]:
    """Return which programs hold sockets, by inode; of other users' programs only root gets to know."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, str] = {}
    if not wanted:
        return found
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for number in os.listdir(process / "fd"):
                inode = wanted.get(os.readlink(process / "fd" / number))
                if inode is not None and inode not in found:
                    name = _read(f"{process}/comm").strip() or "a program"
                    found[inode] = f"{name} (pid {process.name})"
        except OSError:  # somebody else's, or gone
            pass
    return found


# linux/sock_diag.h, linux/inet_diag.h: a dump of UDP sockets with their options.
_SOCK_DIAG_BY_FAMILY, _NETLINK_SOCK_DIAG, _DUMP = 20, 4, 0x301
_INET_DIAG_SOCKOPT, _MC_LOOP = 22, 0x10
_DIAG_HEADER = struct.Struct("=IHHII")
_DIAG_INODE = 16 + 68  # the header, and where in struct inet_diag_msg the inode is


def without_loopback(family: int) -> set[int]:
    """Return the inodes of UDP sockets that have IP_MULTICAST_LOOP switched off, as far as the kernel tells."""
    found: set[int] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(1)
            body = struct.pack("=BBBBI48x", family, socket.IPPROTO_UDP, 0, 0, 0xFFFFFFFF)
            kernel.send(_DIAG_HEADER.pack(16 + len(body), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + body)
            while True:
                reply = kernel.recv(1 << 16)
                at = 0
                while at + 16 <= len(reply):
                    length, kind, *_ = _DIAG_HEADER.unpack_from(reply, at)
                    if kind != _SOCK_DIAG_BY_FAMILY or length < 16:
                        return found
                    (inode,) = struct.unpack_from("=I", reply, at + _DIAG_INODE)
                    attribute = at + 16 + 72
                    while attribute + 4 <= at + length:
                        size, name = struct.unpack_from("=HH", reply, attribute)
                        if name == _INET_DIAG_SOCKOPT and not reply[attribute + 4] & _MC_LOOP:
                            found.add(inode)
                        attribute += max(4, size + 3 & ~3)
                    at += length + 3 & ~3
    except OSError:  # a kernel without it
        return found


# -- other programs ------------------------------------------------------------------------------------------------

# Programs of the administrator are not on every user's PATH.
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def _run(*command: str) -> str | None:
    """Return what a program prints; None where it is not installed or fails."""
    path = shutil.which(command[0], path=_PATH)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def bridges(text: str | None) -> tuple[Bridge, ...] | None:
    """Return the bridges that snoop, from what `ip -details -json link show` prints."""
    if text is None:
        return None
    links = json.loads(text or "[]")
    found = []
    for link in links:
        data = link.get("linkinfo", {}).get("info_data", {})
        if link.get("linkinfo", {}).get("info_kind") != "bridge" or not data.get("mcast_snooping"):
            continue
        ports = [other for other in links if other.get("master") == link["ifname"]]
        found.append(
            Bridge(
                link["ifname"],
                bool(data.get("mcast_querier")),
                tuple(port["ifname"] for port in ports),
                tuple(
                    port["ifname"]
                    for port in ports
                    if not port.get("linkinfo", {}).get("info_slave_data", {}).get("mcast_flood", True)
                ),
            )
        )
    return tuple(found)


def _rules() -> tuple[Rule, ...]:
    found: list[Rule] = []
    saved = []
    for family, program in (("ip", "iptables"), ("ip6", "ip6tables")):
        text = _run(f"{program}-save", "-c")
        if text:
            saved += firewall.from_save(text, family, program)
        # The older kind of tables, where that is in use beside the newer one. Asking for it where it is not would
        # load it.
        if _read(f"/proc/thread-self/net/{family}_tables_names") and "nf_tables" in (_run(program, "-V") or ""):
            text = _run(f"{program}-legacy-save", "-c")
            if text:
                saved += firewall.from_save(text, family, f"{program}-legacy")
    found += saved
    text = _run("nft", "-j", "list", "ruleset")
    if text:
        # What iptables has made there is told in its own words.
        known = {(rule.family, rule.table) for rule in saved}
        found += [rule for rule in firewall.from_nft(text) if (rule.family, rule.table) not in known]
    return tuple(found)


def engine() -> tuple[str, str]:
    """Return which form of the packet path is in use, and why it is not the C form."""
    if batch.ENGINE != "python":
        return batch.ENGINE, ""
    package = Path(batch.__file__).parent
    name = f"{batch.__package__}._batch"
    built = sorted(path.name for path in package.glob("_batch*.so"))
    fitting = [file for file in built if file.removeprefix("_batch") in importlib.machinery.EXTENSION_SUFFIXES]
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if not built:
        return "python", f"there is no _batch.*.so in {package}, so it was not built when the package was installed"
    if not fitting:
        return "python", f"{built[0]} is for another Python than this {version}"
    try:
        importlib.import_module(name)
    except ImportError as error:
        return "python", f"{fitting[0]} cannot be loaded: {error}"
    return "python", f"{fitting[0]} was not there when this program started"


def distributions(name: str) -> tuple[str, ...]:
    """Return the installed distributions that say they own the top-level package `name`."""
    return tuple(sorted(set(importlib.metadata.packages_distributions().get(name, ()))))


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
        self.narrow, self.broad, self.other = _Table(), _Table(), _Table()
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

    def _open(self, table: _Table, group: Group, interface: Interface | None, sources: Iterable[str]) -> None:
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
            elif error.errno == errno.EADDRINUSE:
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
        return {os.fstat(ear.fileno()).st_ino for ear in self._poller if isinstance(ear, _Ear)}


def _loopback_works(poller: Poller) -> bool:
    """Whether a packet with TTL 0 that goes by ``lo`` comes back."""
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
        return False
    try:
        timer = poller.call_later(0.3, poller.stop)
        sendto(b"multicast doctor", ip=_SELF_TEST, port=port, ttl=0, interface="lo")
        poller.run_until(lambda: heard)
        timer.cancel()
    except (InterfaceError, OSError):
        return False
    finally:
        echo.close()
    return bool(heard)


def gather(
    group: Group,
    interface: WhichInterfaces,
    wait: float,
    progress: Callable[[float, int], object] | None = None,
) -> Evidence:
    """Look for `wait` seconds at what happens to packets for `group`; return what was found.

    Raises `InterfaceError` for an interface that does not exist, and `OSError` for what is no fault of the network,
    such as a port that needs root.
    """
    present = interfaces()
    asked = tuple({one.index: one for one in (resolve(each, present) for each in named(group, interface))}.values())
    joined = tuple(memberships())
    filters = tuple(source_filters({one.index: one.name for one in present}))
    before = holders()
    on_wire, with_rules = powers()
    ipv6 = ":" in group.address
    with ExitStack() as stack, _unlogged():
        poller = stack.enter_context(Poller())
        stack.callback(_close_ears, poller)
        loopback = None if ipv6 else _loopback_works(poller)
        wire = None
        if on_wire:
            try:
                wire = _Wire()
                stack.callback(wire.close)
                poller.register(wire)
            except OSError:  # no packet sockets in this kernel
                wire = None
        ears = _Ears(group, asked, present, poller)
        if not ears.refused:
            others = dict.fromkeys(
                one.group for one in joined if (":" in one.group) == ipv6 and one.group != group.address
            )
            ears.open_others([address for address in others if address != "224.0.0.1"][:16])
        rules_before = _rules() if with_rules else None
        counted = counters(ipv6)
        dropped = {inode: drops for inode, (_, drops) in holders().items()}
        _wait(poller, wait, ears, progress)
        counted = {name: value - counted.get(name, 0) for name, value in counters(ipv6).items()}
        after = holders()
        rules = None if rules_before is None else firewall.grown(rules_before, _rules())
        ours = ears.inodes()
    relevant = [
        (holder, drops - dropped.get(inode, 0))
        for inode, (holder, drops) in {**before, **after}.items()
        if inode not in ours and holder.port == group.port and _could_get(holder.address, group)
    ]
    quiet: set[int] = set()
    if _sent_and_unheard(counted, wire, group, ears):
        quiet = without_loopback(socket.AF_INET6 if ipv6 else socket.AF_INET) - ours
    names = programs([*(holder.inode for holder, _ in relevant), *quiet])
    known = _sources(group, ears, wire)
    engine_used, reason = engine()
    return Evidence(
        group=group,
        asked=tuple(one.name for one in asked),
        seconds=wait,
        present=tuple(interfaces()),  # again, for a carrier may have come or gone
        route=_route(group.address, asked[0].index if group.needs_interface and asked else 0),
        back={source: _route(source) for source in known},
        joined=joined,
        filters=filters,
        versions=versions(),
        sysctl=_sysctls(one.name for one in present),
        counters=counted,
        arrived=ears.narrow.seen(),
        anywhere=ears.broad.seen(),
        others=ears.other.seen(),
        wire=None if wire is None else wire.packets.seen(),
        fragments=0 if wire is None else wire.fragments.get(group.address, 0),
        queriers=() if wire is None else tuple(wire.queriers),
        holders=tuple(
            replace(holder, program=names.get(holder.inode, ""), dropped=drops & 0xFFFFFFFF)
            for holder, drops in relevant
        ),
        silent=tuple(
            replace(holder, program=names.get(inode, ""), loopback=False)
            for inode, (holder, _) in after.items()
            if inode in quiet
        ),
        refused=ears.refused,
        rules=rules,
        bridges=bridges(_run("ip", "-details", "-json", "link", "show")),
        loopback=loopback,
        container=os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"),
        distributions=distributions((__package__ or "").partition(".")[0]),
        engine=engine_used,
        engine_reason=reason,
    )


def _close_ears(poller: Poller) -> None:
    for ear in list(poller):
        if isinstance(ear, _Ear):
            ear.close()


def _wait(poller: Poller, wait: float, ears: _Ears, progress: Callable[[float, int], object] | None) -> None:
    """Poll for so many seconds, and tell from time to time how many are left and how many packets came."""
    end = poller.time() + wait

    def tell() -> None:
        left = end - poller.time()
        if progress is not None:
            progress(max(0.0, left), sum(ears.narrow.counts.values()))
        if left > 0:
            poller.call_later(min(0.5, left), tell)

    tell()
    poller.run_until(lambda: poller.time() >= end)
    for _ in range(_DRAIN):  # what came in the last moment, or while this thread had to wait for a processor
        poller.poll()


def _could_get(address: str, group: Group) -> bool:
    """Whether a socket bound to `address` could receive what goes to `group`, or was meant to receive a group."""
    if address in ("::", group.address):
        return True
    return (address == "0.0.0.0" and ":" not in group.address) or _is_group(address)  # noqa: S104


def _is_group(address: str) -> bool:
    return ipaddress.ip_address(address).is_multicast


def _route(address: str, interface: int = 0) -> Route | None:
    try:
        return route(address, interface)
    except OSError:
        return None


def _sent_and_unheard(counted: Mapping[str, int], wire: _Wire | None, group: Group, ears: _Ears) -> bool:
    """Whether a program of this host may send to the group without being heard here."""
    if ears.broad.counts:
        return False
    if wire is not None:
        return any(seen.outgoing and seen.group == group.address for seen in wire.packets.seen())
    return bool(counted.get("Udp:OutDatagrams") and counted.get("Ip:OutMcastPkts"))


def _sources(group: Group, ears: _Ears, wire: _Wire | None) -> list[str]:
    """Return the addresses from where packets came or should come."""
    seen = [*ears.narrow.seen(), *ears.broad.seen(), *(wire.packets.seen() if wire is not None else ())]
    heard = [one.source for one in seen if one.group == group.address and not one.outgoing]
    return list(dict.fromkeys([*group.sources, *heard]))[:64]


def reason(error: OSError) -> str:
    """Return why a join was refused, as a clause for the middle of a sentence."""
    return describe(error).partition(" (errno")[0].lower()
