"""What the kernel tells of itself: files of /proc, sockets by netlink, and the programs `ip`, `nft` and `iptables`."""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.metadata
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multicast import batch

from . import firewall
from .firewall import Rule

__all__ = [
    "Bridge",
    "Holder",
    "Inside",
    "Program",
    "SourceFilter",
    "apart",
    "bridges",
    "called",
    "counters",
    "distributions",
    "engine",
    "find",
    "holders",
    "inside",
    "masters",
    "openers",
    "options",
    "powers",
    "programs",
    "rules",
    "run",
    "sockets_of",
    "source_filters",
    "sysctls",
    "unrouted",
    "versions",
]

# CAP_NET_ADMIN and CAP_NET_RAW in linux/capability.h.
_NET_ADMIN, _NET_RAW = 12, 13


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
class Inside:
    """What a UDP socket of another program says of itself."""

    #: Whether it has a filter for packets (SO_ATTACH_FILTER, SO_ATTACH_BPF).
    filtered: bool = False
    #: Whether it takes packets to groups that it has not joined itself (IP_MULTICAST_ALL).
    every: bool = True
    #: The interfaces on which it has joined the group that was asked for.
    joined: tuple[str, ...] = ()
    #: Whether it has joined some other group.
    elsewhere: bool = False
    #: Whether it shares its port by SO_REUSEPORT alone, and so was bound with it, as one of a set.
    reuseport: bool = False
    #: The size of its receive buffer in bytes, as the kernel counts (SO_RCVBUF).
    rcvbuf: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """The program that was asked for."""

    #: As it was asked for, a name or a process id.
    name: str
    pids: tuple[int, ...] = ()
    #: Its UDP sockets, at whatever port.
    sockets: tuple[Holder, ...] = ()
    #: Whether we may not see which sockets it has.
    hidden: bool = False
    #: Whether it is in another network namespace.
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """A UDP socket of a program on this host."""

    address: str
    port: int
    uid: int
    inode: int
    #: The program and its process id, as ``name (pid N)``; empty where only root may know.
    program: str = ""
    #: What the kernel dropped there while we looked.
    dropped: int = 0
    #: How many bytes waited there at the end, with the kernel's own for each packet.
    queued: int = 0
    #: How many waited when the look began.
    before: int = 0
    #: The address it is connected to; empty where it is not.
    peer: str = ""
    #: What a copy of its descriptor told; None where that was not permitted.
    inside: Inside | None = None
    #: The name of the interface it is bound to (SO_BINDTODEVICE); empty for any.
    device: str = ""
    #: The state of its process, a letter as in proc_pid_stat(5): T is stopped, t traced.
    state: str = ""
    #: Whether it is for IPv6 alone (IPV6_V6ONLY).
    alone: bool = False
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
    for line in read("/proc/thread-self/net/xfrm_stat").splitlines():
        name, value = line.split()
        found[f"Xfrm:{name}"] = int(value)
    if ipv6:
        found = {name: value for name, value in found.items() if not name.startswith(("Ip:", "Udp:", "TcpExt:"))}
        for line in read("/proc/thread-self/net/snmp6").splitlines():
            name, value = line.split()
            for prefix in ("Ip6", "Udp6"):
                if name.startswith(prefix):
                    found[f"{prefix[:-1]}:{name.removeprefix(prefix)}"] = int(value)
    return found


def _address(digits: str, family: int) -> str:
    """Return an address as /proc/net/udp has it: each four bytes of it are printed as a number of this machine."""
    packed = b"".join(int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8))
    return socket.inet_ntop(family, packed)


def holders(read: Callable[[str], str] = _read) -> dict[int, tuple[Holder, int]]:
    """Return the UDP sockets of this host by inode, each with what it has dropped since it was opened."""
    found = {}
    for name, family in (("udp", socket.AF_INET), ("udp6", socket.AF_INET6)):
        for line in read(f"/proc/thread-self/net/{name}").splitlines()[1:]:
            words = line.split()
            if len(words) < 13:
                continue
            digits, _, port = words[1].partition(":")
            address = _address(digits, family)
            queued = int(words[4].partition(":")[2], 16)
            peer = "" if int(words[2].replace(":", ""), 16) == 0 else _address(words[2].partition(":")[0], family)
            holder = Holder(address, int(port, 16), int(words[7]), int(words[9]), queued=queued, peer=peer)
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


def unrouted(group: str, read: Callable[[str], str] = _read) -> tuple[str, ...]:
    """Return the interfaces with IPv6 that have no route for a group.

    The kernel looks for a route for what comes in too, on the interface it comes in by, and one for groups alone will
    do: a default route forwards (ip6_rt_init_dst in net/ipv6/route.c).
    """
    packed = int.from_bytes(socket.inet_pton(socket.AF_INET6, group), "big")
    routed = set()
    for line in read("/proc/thread-self/net/ipv6_route").splitlines():
        words = line.split()
        length = int(words[1], 16)
        if words[0].startswith("ff") and length >= 8 and (int(words[0], 16) ^ packed) >> (128 - length) == 0:
            routed.add(words[-1])
    with_ipv6 = [line.split()[-1] for line in read("/proc/thread-self/net/if_inet6").splitlines()]
    return tuple(dict.fromkeys(name for name in with_ipv6 if name not in routed and name != "lo"))


def sysctls(names: Iterable[str]) -> dict[str, int]:
    """Return the parameters that matter here, for all interfaces and those named."""
    wanted = [
        "net.ipv4.igmp_max_memberships",
        "net.ipv4.igmp_max_msf",
        "net.ipv6.mld_max_msf",
        "net.core.rmem_max",
        "net.core.rmem_default",
    ]
    found = {}
    settings = ("ipv4/conf/{}/rp_filter", "ipv4/conf/{}/accept_local", "ipv4/conf/{}/route_localnet",
                "ipv4/conf/{}/force_igmp_version", "ipv6/conf/{}/force_mld_version")
    for interface in ("all", *names):
        # A dot may be part of the name of an interface, and a slash may not.
        for path in settings:
            text = _read("/proc/sys/net/" + path.format(interface))
            if text:
                found["net." + path.replace("/", ".").format(interface)] = int(text)
    for name in wanted:
        # net.core is the same for all; some of it is not shown in other network namespaces than the first.
        text = _read("/proc/sys/" + name.replace(".", "/"))
        if text:
            found[name] = int(text)
    return found


def openers(inodes: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return which process holds a socket by which descriptor, by inode; of other users' only root gets to know."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, tuple[int, int]] = {}
    if not wanted:
        return found
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for number in os.listdir(process / "fd"):
                inode = wanted.get(os.readlink(process / "fd" / number))
                if inode is not None and inode not in found:
                    found[inode] = int(process.name), int(number)
        except OSError:  # somebody else's, or gone
            pass
    return found


def called(pid: int) -> str:
    """Return what to call a process."""
    return f"{_read(f'/proc/{pid}/comm').strip() or 'a program'} (pid {pid})"


def programs(inodes: Iterable[int]) -> dict[int, str]:
    """Return which programs hold sockets, by inode; of other users' programs only root gets to know."""
    return {inode: called(pid) for inode, (pid, _) in openers(inodes).items()}


def find(name: str) -> tuple[int, ...]:
    """Return the processes with this id, or with this name: of the process, its file or the script that it runs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if name.isdecimal():
            if process.name == name:
                return (int(name),)
            continue
        words = _read(f"{process}/cmdline").split("\0")[:2]
        if name in (_read(f"{process}/comm").strip(), *(os.path.basename(word) for word in words)):
            found.append(int(process.name))
    return tuple(pid for pid in sorted(found) if pid != os.getpid())


def sockets_of(pids: Iterable[int]) -> tuple[set[int], bool]:
    """Return the inodes of the sockets of processes, and whether we may not see some of them."""
    found, hidden = set(), False
    for pid in pids:
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                kind, _, inode = os.readlink(f"/proc/{pid}/fd/{number}").rstrip("]").partition(":[")
                if kind == "socket":
                    found.add(int(inode))
        except PermissionError:
            hidden = True
        except OSError:  # gone
            pass
    return found, hidden


def apart(pids: Iterable[int]) -> bool:
    """Whether processes are all in another network namespace than this thread, so far as we may know."""
    try:
        ours = os.stat("/proc/thread-self/ns/net").st_ino
        return all(os.stat(f"/proc/{pid}/ns/net").st_ino != ours for pid in pids)
    except OSError:
        return False


# pidfd_getfd(2), which has the same number everywhere. SO_GET_FILTER; IP_MULTICAST_ALL and IPV6_MULTICAST_ALL;
# MCAST_MSFILTER, and struct group_filter in linux/in.h up to its list of sources.
_PIDFD_GETFD, _SO_GET_FILTER, _EVERY, _EVERY6, _MSFILTER, _GROUP_FILTER = 438, 26, 49, 29, 48, 144
_libc = ctypes.CDLL(None, use_errno=True)


def inside(pid: int, number: int, group: str, others: Iterable[str], interfaces: Mapping[int, str]) -> Inside | None:
    """Return what the socket that a process has as a descriptor says of itself; None where that is not permitted.

    It is asked by a copy of the descriptor, which is closed at once. `others` are further groups, to learn whether it
    has joined one of them, and `interfaces` the names by index.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        copy = _libc.syscall(_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    if copy < 0:
        return None
    try:
        with socket.socket(fileno=copy) as opened:
            six = opened.family == socket.AF_INET6
            level, option = (socket.IPPROTO_IPV6, _EVERY6) if six else (socket.IPPROTO_IP, _EVERY)
            every = bool(opened.getsockopt(level, option))
            length = ctypes.c_uint(0)
            # With no room it tells the number of instructions, and refuses where they are of another kind.
            filtered = bool(_libc.getsockopt(copy, socket.SOL_SOCKET, _SO_GET_FILTER, None, ctypes.byref(length)))
            filtered = filtered or length.value > 0
            joined = tuple(name for index, name in interfaces.items() if _has_joined(copy, group, index))
            elsewhere = any(_has_joined(copy, one, index) for one in others for index in interfaces)
            rcvbuf = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            # With SO_REUSEADDR as well it may have been set after the bind, as by this package: no set then.
            reuseport = opened.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0
            reuseport = reuseport and not opened.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            return Inside(filtered, every, joined, elsewhere, reuseport, rcvbuf)
    except OSError:
        return None


def _has_joined(descriptor: int, group: str, index: int) -> bool:
    """Whether a socket has joined a group on an interface."""
    if ":" in group:
        level, address = socket.IPPROTO_IPV6, struct.pack("=H6x16s", socket.AF_INET6, _packed(group))
    else:
        level, address = socket.IPPROTO_IP, struct.pack("=H2x4s", socket.AF_INET, _packed(group))
    asked = struct.pack("=I4x", index) + address.ljust(128, b"\0") + struct.pack("=II", 0, 0)
    buffer = ctypes.create_string_buffer(asked, _GROUP_FILTER)
    length = ctypes.c_uint(_GROUP_FILTER)
    return bool(_libc.getsockopt(descriptor, level, _MSFILTER, buffer, ctypes.byref(length)) == 0)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


# linux/sock_diag.h, linux/inet_diag.h: a dump of UDP sockets with their options.
_SOCK_DIAG_BY_FAMILY, _NETLINK_SOCK_DIAG, _DUMP = 20, 4, 0x301
_INET_DIAG_SKV6ONLY, _INET_DIAG_SOCKOPT, _MC_LOOP = 11, 22, 0x10
_DIAG_HEADER = struct.Struct("=IHHII")
_DIAG_DEVICE = 16 + 40  # the header, and where in struct inet_diag_msg the interface is
_DIAG_INODE = 16 + 68  # the header, and where in struct inet_diag_msg the inode is


class Options(NamedTuple):
    """What sock_diag(7) tells of the options of UDP sockets, by their inodes."""

    #: Those that have IP_MULTICAST_LOOP off. The kernel does not tell of IPV6_MULTICAST_LOOP.
    silent: set[int]
    #: Those that have IPV6_V6ONLY on.
    alone: set[int]
    #: The index of the interface that a socket is bound to.
    devices: dict[int, int]


def state(program: str) -> str:
    """Return the state of the process of a program that `programs` has named; empty where that cannot be told."""
    number = program.rpartition("(pid ")[2].rstrip(")")
    return _read(f"/proc/{number}/stat").rpartition(")")[2][1:2] if number.isdecimal() else ""


def options(family: int) -> Options:
    """Return which options the UDP sockets of a family have."""
    found = Options(set(), set(), {})
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
                    (index,) = struct.unpack_from("=I", reply, at + _DIAG_DEVICE)
                    if index:
                        found.devices[inode] = index
                    attribute = at + 16 + 72
                    while attribute + 4 <= at + length:
                        size, name = struct.unpack_from("=HH", reply, attribute)
                        if name == _INET_DIAG_SOCKOPT and not reply[attribute + 4] & _MC_LOOP:
                            found.silent.add(inode)
                        elif name == _INET_DIAG_SKV6ONLY and reply[attribute + 4]:
                            found.alone.add(inode)
                        attribute += max(4, size + 3 & ~3)
                    at += length + 3 & ~3
    except OSError:  # a kernel without it
        return found


# -- other programs ------------------------------------------------------------------------------------------------

# Programs of the administrator are not on every user's PATH.
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def run(*command: str) -> str | None:
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


def masters(text: str | None) -> dict[str, str]:
    """Return the ports of bridges, bonds and teams, each with what takes its packets, from the same text."""
    return {
        link["ifname"]: link["master"]
        for link in json.loads(text or "[]")
        if link.get("linkinfo", {}).get("info_slave_kind") in ("bridge", "bond", "team")
    }


def with_xdp(text: str | None) -> tuple[str, ...]:
    """Return the interfaces that have an XDP program, from the same text."""
    return tuple(link["ifname"] for link in json.loads(text or "[]") if link.get("xdp"))


def with_ingress_filters(names: Iterable[str]) -> tuple[str, ...]:
    """Return which of these interfaces have filters of tc(8) for what comes in."""
    return tuple(name for name in names if (run("tc", "filter", "show", "dev", name, "ingress") or "").strip())


def _understood(parse: Callable[..., list[Rule]], *arguments: str) -> list[Rule] | None:
    """Return the rules in a text, None where it is written as no version known here writes it."""
    try:
        return parse(*arguments)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def rules() -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Return the rules of the firewall that incoming packets meet, and the programs that did not tell theirs.

    Needs CAP_NET_ADMIN.
    """
    found: list[Rule] = []
    told: set[tuple[str, str, str]] = set()
    silent = []
    for family, program in (("ip", "iptables"), ("ip6", "ip6tables")):
        newer = "nf_tables" in (run(program, "-V") or "")
        if newer:
            saved = _understood(firewall.from_save, run(f"{program}-save", "-c") or "", family, program) or []
            told |= {(rule.family, rule.table, rule.chain) for rule in saved}
            found += saved
        # The older kind of tables, where that is in use. Asking for it where it is not would load it.
        if _read(f"/proc/thread-self/net/{family}_tables_names"):
            older = f"{program}-legacy" if newer else program
            text = run(f"{older}-save", "-c")
            legacy = None if text is None else _understood(firewall.from_save, text, family, older)
            found += legacy or []
            if legacy is None:
                silent.append(older)
    text = run("nft", "-j", "list", "ruleset")
    listed = None if text is None else _understood(firewall.from_nft, text)
    # `iptables-nft` lists its own chains in iptables syntax and shows foreign nft chains as empty.
    found += [rule for rule in listed or () if (rule.family, rule.table, rule.chain) not in told]
    if listed is None:
        silent.append("nft")
    return tuple(found), tuple(silent)


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
        module = importlib.import_module(name)
    except ImportError as error:
        return "python", f"{fitting[0]} cannot be loaded: {error}"
    if getattr(module, "FORM", 0) != batch.FORM:
        return "python", f"{fitting[0]} was built from another version of this package"
    return "python", f"{fitting[0]} was not there when this program started"


def distributions(name: str) -> tuple[str, ...]:
    """Return the installed distributions that say they own the top-level package `name`."""
    found = set()
    for one in importlib.metadata.distributions():
        # Not packages_distributions(), which makes an object of every file there is.
        top = one.read_text("top_level.txt")
        if top is None:
            files = (one.read_text("RECORD") or "").splitlines()
            owns = any(file.startswith((f"{name}/", f"{name}.py,")) for file in files)
        else:
            owns = name in top.split()
        if owns:
            found.add(one.metadata["Name"])
    return tuple(sorted(found))
