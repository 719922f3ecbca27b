"""Datagram sockets: opened, joined, left, measured."""

from __future__ import annotations

import array
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from multicast.errors import GroupError, advise, check_number
from multicast.interfaces import Interface, listing, resolve

from .choosing import Way, WhichInterface, by_routes, sending
from .groups import (
    IP_PKTINFO,
    IPV4,
    IPV6,
    Endpoint,
    Family,
    Group,
    check_port,
    check_ttl,
    parse_address,
    plain,
)

_log = logging.getLogger("multicast")

# Numbers that Python's socket module lacks, from Linux' include/uapi/linux/in.h, udp.h and asm-generic/socket.h.
_MCAST_JOIN_GROUP = 42
_MCAST_BLOCK_SOURCE = 43
_MCAST_LEAVE_GROUP = 45
_MCAST_JOIN_SOURCE_GROUP = 46
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_SO_TIMESTAMPNS = 35
_SO_MEMINFO = 55
_SO_NETNS_COOKIE = 71
_UDP_GRO = 104
_SK_MEMINFO_DROPS = 8

#: A program for the kernel, as `filters.assemble` returns it; empty for none.
Program: TypeAlias = Sequence[tuple[int, int, int, int]]


def open_socket(table: Family, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """Open a non-blocking socket of one family alone. Raises `OSError` with advice."""
    try:
        opened = socket.socket(table.family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if table is IPV6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise advise(error, "open", family=table.name) from None
    return opened


def bind(opened: socket.socket, sockaddr: tuple[Any, ...], operation: str = "bind") -> None:
    """Bind a socket. Raises `OSError` with advice for `operation`."""
    try:
        opened.bind(sockaddr)
    except OSError as error:
        raise advise(error, operation, address=sockaddr[0], port=sockaddr[1], interfaces=listing()) from None


def bind_shared(opened: socket.socket, sockaddr: tuple[Any, ...]) -> None:
    """Bind to a group, and share it with every program that shares it in either way."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(sockaddr)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            # Somebody may share it by the other option alone, and then there is no other way in.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bind(opened, sockaddr)
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
    check_number("source_port", source_port, 0, 65535)
    way = sending(to, ttl, interface, source_ip)
    table = to.table
    opened = open_socket(table)
    try:
        if to.is_multicast:
            opened.setsockopt(table.level, table.ttl, ttl)
            opened.setsockopt(table.level, table.loop, bool(loopback))
            if way.index:
                _set_interface(opened, table, way)
            # Without it a full transmit queue and a firewall drop in silence.
            opened.setsockopt(table.level, table.recverr, 1)
        # One that waits for a route is not bound to the address of lo: it would keep it on the way out.
        source = "" if way.stranded else way.source
        if source or source_port:
            own = Endpoint(source, source_port or 1) if source else None
            if table is IPV4:
                bind(opened, (source, source_port))
            else:
                scope = way.index if own is not None and own.needs_interface else 0
                bind(opened, (source or "::", source_port, 0, scope))
    except BaseException:
        opened.close()
        raise
    return opened, to.sockaddr(way.index)


def set_dscp(opened: socket.socket, dscp: int) -> None:
    """Have packets that a socket sends carry a differentiated services code point, 0 to 63 (RFC 2474)."""
    table = IPV4 if opened.family == socket.AF_INET else IPV6
    opened.setsockopt(table.level, table.traffic_class, dscp << 2)


def bind_foreign(opened: socket.socket, sockaddr: tuple[Any, ...]) -> None:
    """Bind a socket to an address that need not be of this host; its packets have it as their source.

    Needs CAP_NET_ADMIN (IP_TRANSPARENT in ip(7)). Raises `OSError` with advice.
    """
    table = IPV4 if opened.family == socket.AF_INET else IPV6
    try:
        opened.setsockopt(table.level, table.transparent, 1)
    except OSError as error:
        raise advise(error, "source", address=sockaddr[0]) from None
    bind(opened, sockaddr)


def pin(
    opened: socket.socket, to: Endpoint, ttl: int, interface: WhichInterface | None, source_ip: str | None
) -> tuple[Any, ...]:
    """Choose the interface of an open sender again, which may have been made anew; return the address to send to.

    The arguments are those it was opened with. Where the routes decide, they do so for each packet from now on, and
    ``lo`` no longer stands in for one. Raises what `open_sender` raises.
    """
    way = Way() if by_routes(to, ttl, interface, source_ip) else sending(to, ttl, interface, source_ip)
    if to.is_multicast:
        _set_interface(opened, to.table, way)
    return to.sockaddr(way.index)


def _set_interface(opened: socket.socket, table: Family, way: Way) -> None:
    try:
        if table is IPV4:
            # struct ip_mreqn: group, address, index. The address is the source where nothing is bound.
            source = socket.inet_aton(way.source or "0.0.0.0")  # noqa: S104 -- means "the interface's own", binds nothing
            opened.setsockopt(table.level, table.interface, struct.pack("@4s4si", bytes(4), source, way.index))
        else:
            opened.setsockopt(table.level, table.interface, way.index)
    except OSError as error:
        raise advise(error, "send", interfaces=listing()) from None


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
    shared: bool = False,
) -> socket.socket:
    """Open a non-blocking socket at a unicast address of this host. No other program can have the port meanwhile.

    `ip` may be ``0.0.0.0`` or ``::`` for all addresses, `port` 0 for any free one. It is not connected, so it hears
    answers from anywhere. `ttl` is for what is sent from it to groups, `hops` (1 to 255) the same for single hosts;
    `program` and `bursts` are for `set_up_receiver`. With `shared` other programs may have the port as well; of several
    sockets there the one that was bound last gets what comes by unicast.
    Raises `ArgumentError`, `GroupError` and `OSError` with advice; nothing stays open then.
    """
    address = parse_address(ip, "address")
    if port != 0:
        check_port(port)
    if ttl is not None:
        check_ttl(ttl)
    if address.is_multicast:
        raise GroupError(f"{address} is a group; join it with MulticastListener(ip={str(address)!r})")
    table = IPV4 if address.version == 4 else IPV6
    zone = getattr(address, "scope_id", None)
    scope = resolve(zone).index if zone else 0
    opened = open_socket(table)
    try:
        if ttl is not None:
            opened.setsockopt(table.level, table.ttl, ttl)
        if hops is not None:
            opened.setsockopt(table.level, table.hops, hops)
        set_up_receiver(opened, rcvbuf, details, program, bursts)
        sockaddr = (plain(address), port) if table is IPV4 else (plain(address), port, 0, scope)
        (bind_shared if shared else bind)(opened, sockaddr)
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
        level, kind = socket.IPPROTO_IP, IP_PKTINFO
        info = struct.pack("@i4s4x", index, bytes(4) if source is None else socket.inet_aton(source))
    else:
        level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
        info = struct.pack("@16si", bytes(16) if source is None else socket.inet_pton(socket.AF_INET6, source), index)
    try:
        opened.sendmsg([packet], [(level, kind, info)], 0, sockaddr)
    except BlockingIOError:
        raise
    except OSError as error:
        raise not_sent(error, sockaddr[0].partition("%")[0]) from None


# What is wrong then is told by which interfaces and addresses there are.
_INTERFACE_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL})


def not_sent(error: OSError, address: str) -> OSError:
    """Add to `error` why a packet to `address` was not sent, and what to do about it; return the same error."""
    if not ipaddress.ip_address(address).is_multicast:
        route = f"ip route add {address} dev INTERFACE"
    elif ":" not in address:
        route = "ip route add 224.0.0.0/4 dev INTERFACE"
    else:
        # On lo the kernel accepts other types of route as well, and swallows what takes them.
        route = (
            "ip -6 route add multicast ff00::/8 dev INTERFACE table local, or, for packets that stay on this host,"
            " ip -6 route add local ff00::/8 dev lo table local"
        )
    present = listing() if error.errno in _INTERFACE_GONE else ""
    return advise(error, "send", address=address, route=route, interfaces=present)


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
    table = group.table
    value = struct.pack("@I0P", index) + _storage(group.address)
    if source is not None:
        value += _storage(source)
    try:
        opened.setsockopt(table.level, option, value)
    except OSError as error:
        # To list the interfaces of a crowded host takes a thousand times as long as the call.
        present = listing() if error.errno == errno.ENODEV else ""
        raise advise(error, "join", group=group.address, family=table.name, interfaces=present) from None


def _storage(address: str) -> bytes:
    if ":" in address:
        packed = struct.pack("@HHI", socket.AF_INET6, 0, 0) + socket.inet_pton(socket.AF_INET6, address)
    else:
        packed = struct.pack("@HH", socket.AF_INET, 0) + socket.inet_pton(socket.AF_INET, address)
    return packed.ljust(128, b"\0")


def crosses_interfaces(group: Group) -> bool:
    """Whether the kernel gives a socket that joined `group` on one interface what comes by another as well.

    For IPv6 it looks whether the socket has joined the group, and not where (inet6_mc_check in Linux), as soon as
    anybody on this host has joined on that other interface. Groups of link-local scope are bound to theirs.
    """
    return group.table is IPV6 and not group.needs_interface


def only_from(group: Group, wanted: Iterable[Interface], program: Program) -> Program:
    """Return `program` with a refusal in front of what does not come by the interfaces wanted, where that is needed."""
    if not crosses_interfaces(group):
        return program
    indices = [interface.index for interface in wanted]
    # Classic BPF (linux/filter.h): load the number of the interface, SKF_AD_OFF + SKF_AD_IFINDEX; go on behind the
    # refusal if it is one of these.
    code = [(0x20, 0, 0, 0xFFFFF000 + 8)]
    code += [(0x15, len(indices) - at, 0, index) for at, index in enumerate(indices)]
    return [*code, (0x06, 0, 0, 0), *(program or [(0x06, 0, 0, 0xFFFFFFFF)])]


def confine(opened: socket.socket, group: Group, wanted: Iterable[Interface], program: Program) -> None:
    """Replace the program of an open receiver, after the interfaces it is wanted on have changed."""
    if crosses_interfaces(group):
        _attach(opened, only_from(group, wanted, program))


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
    """Have the kernel add arrival interface, destination, TTL, DSCP and receive time to each packet."""
    table = IPV6 if opened.family == socket.AF_INET6 else IPV4
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
        check_number("rcvbuf", wanted, of="bytes")
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
    (0x30, 0, 0, 0xFFF00010),  # A = first byte of the destination, from where IP begins (SKF_NET_OFF)
    (0x54, 0, 0, 0xF0),
    (0x15, 3, 4, 0xE0),
    (0x15, 0, 3, 0x86DD),  # IPv6?
    (0x30, 0, 0, 0xFFF00018),
    (0x15, 0, 1, 0xFF),
    (0x06, 0, 0, 256),
    (0x06, 0, 0, 0),
)


def open_wire(frames: bool = False) -> socket.socket:
    """Open a non-blocking packet socket (packet(7)) that sees what goes to groups, on all interfaces, in and out.

    Each packet starts with its IP header, with `frames` with what stands before that, and is cut to 256 bytes.
    Interfaces are not made promiscuous, so what a network card filters out is not seen. Copies that the kernel makes
    for members on the sending host are not shown either, and what goes by ``lo`` is shown twice. Raises
    `PermissionError` without CAP_NET_RAW.
    """
    everything = socket.htons(3)  # ETH_P_ALL in linux/if_ether.h
    kind = socket.SOCK_RAW if frames else socket.SOCK_DGRAM
    opened = socket.socket(socket.AF_PACKET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, everything)
    try:
        _attach(opened, _WIRE_FILTER)  # a packet may have come in before; who reads must look at the destination
        opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        # Reports of memberships on lo are charged with its MTU, 64 KiB and more: two of them fill the default buffer.
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        except PermissionError:  # root of a user namespace
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    except BaseException:
        opened.close()
        raise
    return opened
