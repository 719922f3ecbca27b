"""What is on the wire: packets to groups, counted by kind, as a packet socket shows them (packet(7))."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass, replace
from typing import Any

from multicast import batch
from multicast.sockets import open_wire

__all__ = ["Packet", "Seen", "Table", "Wire", "dissect"]

# Of how many keys packets are told apart.
_MOST_KEYS = 16
# Forged sources must not fill the memory; a person reads no more of them anyway.
_MOST = 512


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
    #: Why the kernel takes none of them: ``mac`` for the Ethernet address of another host, ``vlan 7`` for the tag of a
    #: VLAN, ``length`` for a length of UDP that does not fit; on the wire alone.
    astray: str = ""
    #: How many.
    packets: int = 1


@dataclass(frozen=True, slots=True)
class Sealed:
    """Packets that are sealed with one key, or with none."""

    #: The id of the key; empty for packets that are not sealed.
    key: str = ""
    packets: int = 0
    #: By how many seconds the sender's clock is ahead of this one, for the packet where that is least.
    skew: float = 0.0


class Table:
    """Counts packets that are alike, up to so many kinds of them."""

    def __init__(self) -> None:
        self.counts: dict[tuple[Any, ...], int] = {}
        #: Packets by the key they are sealed with.
        self.seals: dict[str, Sealed] = {}

    def clear(self) -> None:
        """Count from 0."""
        self.counts.clear()
        self.seals.clear()

    def add_seal(self, key: str, skew: float) -> None:
        """Count a packet that is sealed with this key, or with none where it is empty."""
        before = self.seals.get(key)
        if before is None and len(self.seals) >= _MOST_KEYS:
            return
        before = before or Sealed(key, 0, skew)
        self.seals[key] = Sealed(key, before.packets + 1, min(before.skew, skew, key=abs))

    def add(self, *key: Any) -> None:
        """Count one with these fields of `Seen`."""
        if key in self.counts or len(self.counts) < _MOST:
            self.counts[key] = self.counts.get(key, 0) + 1

    def seen(self) -> tuple[Seen, ...]:
        """Return what was counted, the most frequent first."""
        most_first = sorted(self.counts.items(), key=lambda item: -item[1])
        return tuple(replace(Seen(*key), packets=packets) for key, packets in most_first)


class Wire:
    """Counts what is on the wire, with room kept for what goes to one group and port whatever else there is."""

    def __init__(self, group: str, port: int) -> None:
        """Raise `OSError` where packet sockets are not allowed."""
        self._socket = open_wire()
        self._asked = group, port
        self._to_asked, self._others = Table(), Table()
        self.queriers: dict[tuple[str, str], None] = {}
        #: The interfaces by which this host has reported memberships.
        self.reporting: dict[str, None] = {}
        #: Later fragments of datagrams for the group.
        self.fragments = 0

    def fileno(self) -> int:
        """Return the descriptor to watch for reading."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop looking."""
        self._socket.close()

    def seen(self) -> tuple[Seen, ...]:
        """Return what was counted since `restart`, what goes to the group and port first."""
        return self._to_asked.seen() + self._others.seen()

    def restart(self) -> None:
        """Count all anew, but for the queriers."""
        self._to_asked.counts.clear()
        self._others.counts.clear()
        self.fragments = 0

    def handle_read(self) -> None:
        """Read and count one batch; called by the poller."""
        for _ in range(batch.LIMIT):
            try:
                data, extra, _, (name, _, kind, *_) = self._socket.recvmsg(256, _EXTRA)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # an interface went down, and the socket says so once
                    raise
                continue
            outgoing = kind == socket.PACKET_OUTGOING
            if not (outgoing and name == "lo"):  # lo shows what it carries twice
                astray = "" if outgoing else "mac" if kind == socket.PACKET_OTHERHOST else _tag(extra)
                self._note(data, name, outgoing, astray)

    def _note(self, data: bytes, name: str, outgoing: bool, astray: str) -> None:
        try:
            packet = dissect(data)
        except (struct.error, IndexError, ValueError):  # shorter than it says
            return
        if packet is None:
            return
        if packet.kind in ("query", "report"):
            if (":" in packet.group) != (":" in self._asked[0]):
                return  # MLD says nothing about IGMP
            if packet.kind == "report" and outgoing:
                self.reporting[name] = None
            elif packet.kind == "query" and not outgoing and len(self.queriers) < _MOST:
                self.queriers[name, packet.source] = None
        elif packet.kind == "fragment":
            self.fragments += packet.group == self._asked[0] and not outgoing
        elif packet.kind == "udp":
            table = self._to_asked if (packet.group, packet.port) == self._asked else self._others
            astray = astray or ("" if outgoing or packet.whole else "length")
            table.add(name, packet.group, packet.port, packet.source, packet.ttl, outgoing, packet.fragmented, astray)


# struct tpacket_auxdata in linux/if_packet.h; SOL_PACKET, PACKET_AUXDATA.
_AUXDATA, _LEVEL, _KIND = struct.Struct("=IIIHHHH"), 263, 8
_EXTRA = socket.CMSG_SPACE(_AUXDATA.size)
_TAGGED, _VLAN_ID = 0x10, 0xFFF  # TP_STATUS_VLAN_VALID; IEEE 802.1Q


def _tag(extra: list[tuple[int, int, bytes]]) -> str:
    """Return the VLAN of a frame as `Seen.astray` has it. Number 0 is a priority alone, and the kernel takes it."""
    for level, kind, data in extra:
        if (level, kind) == (_LEVEL, _KIND) and len(data) >= _AUXDATA.size:
            status, *_, tag, _ = _AUXDATA.unpack_from(data)
            if status & _TAGGED and tag & _VLAN_ID:
                return f"vlan {tag & _VLAN_ID}"
    return ""


@dataclass(frozen=True, slots=True)
class Packet:
    """What the headers of a packet say: a ``udp`` datagram, a later ``fragment`` of it, a ``query`` or a ``report``."""

    kind: str
    source: str
    group: str
    ttl: int
    port: int = 0
    fragmented: bool = False
    #: Whether the length of UDP fits into that of IP.
    whole: bool = True


# Protocol numbers of IANA; RFC 8200 (extension headers).
_IGMP, _UDP, _ICMP6, _HOP_BY_HOP, _ROUTING, _FRAGMENT, _OPTIONS = 2, 17, 58, 0, 43, 44, 60


# RFC 3376 section 4 (IGMP), RFC 2710 section 3.1 and RFC 3810 section 5 (MLD).
_MESSAGES = {
    (_IGMP, 0x11): "query", (_IGMP, 0x12): "report", (_IGMP, 0x16): "report", (_IGMP, 0x22): "report",
    (_ICMP6, 130): "query", (_ICMP6, 131): "report", (_ICMP6, 143): "report",
}


def dissect(data: bytes) -> Packet | None:
    """Return what an IP packet to a group is about, as far as the doctor is interested; None for others."""
    length = 0
    if data[0] >> 4 == 4:
        if data[16] & 0xF0 != 0xE0:
            return None
        start = 4 * (data[0] & 15)
        length, flags = struct.unpack_from("!H2xH", data, 2)
        later, more = flags & 0x1FFF, flags & 0x2000
        ttl, protocol = data[8], data[9]
        source, group = socket.inet_ntop(socket.AF_INET, data[12:16]), socket.inet_ntop(socket.AF_INET, data[16:20])
    else:
        if data[24] != 0xFF:
            return None
        start, protocol, ttl, later, more = 40, data[6], data[7], 0, 0
        length = 40 + struct.unpack_from("!H", data, 4)[0]
        source, group = socket.inet_ntop(socket.AF_INET6, data[8:24]), socket.inet_ntop(socket.AF_INET6, data[24:40])
        while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _OPTIONS):
            size = 8
            if protocol == _FRAGMENT:
                flags = struct.unpack_from("!H", data, start + 2)[0]
                later, more = flags & 0xFFF8, flags & 1
            else:
                size = 8 * (data[start + 1] + 1)
            protocol = data[start]
            start += size
            if later:
                break
    if later:
        return Packet("fragment", source, group, ttl) if protocol == _UDP else None
    if protocol == _UDP:
        port, inner = struct.unpack_from("!HH", data, start + 2)
        # Of fragments only the whole tells; a length of 0 is a jumbogram (RFC 2675), or offloading to a device.
        whole = bool(more) or not inner or not length or 8 <= inner <= length - start
        return Packet("udp", source, group, ttl, port, bool(more), whole)
    if protocol in (_IGMP, _ICMP6) and (protocol, data[start]) in _MESSAGES:
        return Packet(_MESSAGES[protocol, data[start]], source, group, ttl)
    return None
