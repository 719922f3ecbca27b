"""From a captured frame to the UDP packet in it.

Frames begin in one of a few ways (the link type of the file says which); what counts begins at the IP header. This is
not a dissector: everything that is not a whole UDP packet is counted and passed over. Formats: RFC 791 (IPv4), RFC 8200
(IPv6 and its extension headers), RFC 768 (UDP), IEEE 802.1Q (VLAN tags), and the list of link types at tcpdump.org.

Captures come from strangers. All lengths are checked against what is there, and what is kept between packets, the
fragments that wait for the rest of their datagram, is bounded in number and size.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

__all__ = ["LINKTYPE_ETHERNET", "Counts", "Decoder", "Link", "Packet", "link_name"]

# From the list of link types; files also have the numbers that some systems used in place of 101 and 108.
LINKTYPE_NULL = 0
LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101
LINKTYPE_LOOP = 108
LINKTYPE_LINUX_SLL = 113
LINKTYPE_IPV4 = 228
LINKTYPE_IPV6 = 229
LINKTYPE_LINUX_SLL2 = 276
_RAW_ELSEWHERE = (12, 14)

_ETHERTYPE_IPV4, _ETHERTYPE_IPV6 = 0x0800, 0x86DD
# 802.1Q, 802.1ad, and the number many switches used for it before there was a standard.
_VLAN = frozenset({0x8100, 0x88A8, 0x9100})

_UDP = 17
_FRAGMENT = 44
# IPv6 extension headers that have their length in the second byte, in units of 8: hop-by-hop, routing, destination.
_EXTENSIONS = frozenset({0, 43, 60})
_AUTHENTICATION = 51  # in units of 4 (RFC 4302)

# Version and header length, DSCP and ECN, total length, flags and offset, TTL, protocol, then both addresses and both
# ports as one key, and the UDP length: all of an IPv4 packet without options that is looked at.
_IPV4_UDP = struct.Struct(">BBHxxHBBxx12sH")
# Version, DSCP, ECN and flow label, payload length, next header, hop limit, addresses.
_IPV6 = struct.Struct(">IHBB32s")
_SHORT = struct.Struct(">H")
_LONG = struct.Struct(">I")

_FLOWS = 4096
# Fragments wait for the rest in so many datagrams, each with so many pieces and of no more bytes than IP allows.
_DATAGRAMS = 256
_PIECES = 128
# How long fragments wait for the others, in nanoseconds: as long as Linux keeps them (net.ipv4.ipfrag_time; RFC 791 and
# RFC 8200 section 4.5 allow 15 and 60 s).
_PATIENCE = 30 * 10**9
# Another piece for the same place is of a new datagram when it comes so many nanoseconds after the first piece. Earlier
# it contradicts it.
_AT_ONCE = 10 * 10**6
_LONGEST = 65535


class Packet(NamedTuple):
    """One UDP packet of a capture."""

    #: What it carries.
    payload: bytes
    #: The address and port it came from.
    source: tuple[str, int]
    #: The address it went to, and its port.
    group: str
    port: int
    #: When it was captured, in integer nanoseconds since 1970.
    timestamp: int = 0
    #: The name of the interface it was captured on, where the file tells.
    interface: str | None = None
    #: Its TTL or hop limit.
    ttl: int = 1
    #: The bytes it carried; more than `payload` has when the capture cut it short. 0 means as many.
    length: int = 0
    #: Its differentiated services code point, 0 to 63 (RFC 2474): how urgent it is to routers and switches.
    dscp: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the capture holds only the first part of it."""
        return self.length > len(self.payload)


#: Addresses and ports of a packet: source, group, port.
_Flow: TypeAlias = "tuple[tuple[str, int], str, int]"
_make: Callable[[type[Packet], tuple[object, ...]], Packet] = tuple.__new__


@dataclass(slots=True)
class Counts:
    """What was found in a capture file that is no whole UDP packet."""

    #: Frames that are not IP, and IP packets that are not UDP.
    other: int = 0
    #: Packets that do not keep to their protocol: lengths that cannot be.
    malformed: int = 0
    #: Fragments of datagrams that are not complete in the file.
    fragments: int = 0
    #: Frames that are longer than the file says any can be, or than they are said to have been. They are read.
    oversize: int = 0
    #: Frames of link types that are not read, by the number of the type (tcpdump.org/linktypes.html); in `other` too.
    links: dict[int, int] = field(default_factory=dict)


# Link types that captures of UDP have now and then, and what they are called.
_NAMES = {
    6: "Token Ring", 9: "PPP", 10: "FDDI", 50: "PPP in HDLC", 51: "PPPoE", 105: "IEEE 802.11", 119: "Prism",
    122: "Fibre Channel", 127: "IEEE 802.11 with radiotap", 187: "Bluetooth", 189: "USB", 195: "IEEE 802.15.4",
    220: "USB", 227: "CAN", 239: "NFLOG", 249: "USB of Windows", 253: "netlink",
}  # fmt: skip


def link_name(link_type: int) -> str:
    """Return what a link type is called, with its number."""
    name = _NAMES.get(link_type)
    return f"link type {link_type}" + (f" ({name})" if name else "")


class Link(NamedTuple):
    """How frames of one link type are decoded."""

    #: Takes the data, where the frame starts and ends in it, when and where it was captured.
    decode: Callable[[bytes, int, int, int, str | None], Packet | None]
    #: Where IP begins in a frame without tags, and where the type stands, if there is one.
    header: int
    type_at: int | None = None


class _Datagram:
    """The fragments of one datagram, until they are complete."""

    __slots__ = ("began", "end", "pieces", "size")

    def __init__(self, began: int) -> None:
        self.began = began  # when the first of them was captured, in nanoseconds
        self.pieces: dict[int, bytes] = {}
        self.size = 0
        self.end: int | None = None

    def whole(self) -> bytes | None:
        """Return the datagram, or None while something is missing."""
        if self.end is None or self.size != self.end:
            return None
        parts = []
        position = 0
        for offset in sorted(self.pieces):
            if offset != position:
                return None
            parts.append(self.pieces[offset])
            position += len(self.pieces[offset])
        return b"".join(parts)


class Decoder:
    """Finds the UDP packets in the frames of one file, and counts the rest."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._flows: dict[bytes, _Flow] = {}
        self._waiting: dict[tuple[object, ...], _Datagram] = {}

    def finish(self) -> None:
        """Count the fragments that still wait: the file has no more."""
        for datagram in self._waiting.values():
            self.counts.fragments += len(datagram.pieces)
        self._waiting.clear()

    # -- link layers -----------------------------------------------------------------------------------------------

    def link(self, link_type: int) -> Link:
        """Return how frames of `link_type` are decoded."""
        return {
            LINKTYPE_NULL: Link(self.null, 4),
            LINKTYPE_LOOP: Link(self.null, 4),
            LINKTYPE_ETHERNET: Link(self.ethernet, 14, 12),
            LINKTYPE_RAW: Link(self.ip, 0),
            LINKTYPE_IPV4: Link(self.ip, 0),
            LINKTYPE_IPV6: Link(self.ip, 0),
            LINKTYPE_LINUX_SLL: Link(self.cooked, 16, 14),
            LINKTYPE_LINUX_SLL2: Link(self.cooked2, 20, 0),
        }.get(LINKTYPE_RAW if link_type in _RAW_ELSEWHERE else link_type) or Link(self._no_link(link_type), 0)

    def _no_link(self, link_type: int) -> Callable[[bytes, int, int, int, str | None], Packet | None]:
        def decode(data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
            counts = self.counts
            counts.other += 1
            counts.links[link_type] = counts.links.get(link_type, 0) + 1
            return None

        return decode

    def ethernet(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        """Decode an Ethernet frame, with any number of VLAN tags."""
        if data[start + 12 : start + 14] == b"\x08\0":
            return self.ip(data, start + 14, end, timestamp, interface)
        return self._after_type(data, start + 12, end, timestamp, interface)

    def _after_type(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        while start + 2 <= end:
            (kind,) = _SHORT.unpack_from(data, start)
            if kind in (_ETHERTYPE_IPV4, _ETHERTYPE_IPV6):
                return self.ip(data, start + 2, end, timestamp, interface)
            if kind not in _VLAN:
                break
            start += 4
        self.counts.other += 1
        return None

    def cooked(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        """Decode a frame of Linux' "any" device, first form: 14 bytes about the sender, then the type."""
        return self._after_type(data, start + 14, end, timestamp, interface)

    def cooked2(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        """Decode a frame of Linux' "any" device, second form: the type first, VLAN tags at the end of 20 bytes."""
        if start + 20 > end:
            self.counts.other += 1
            return None
        (kind,) = _SHORT.unpack_from(data, start)
        if kind in _VLAN:
            return self._after_type(data, start + 22, end, timestamp, interface)
        if kind in (_ETHERTYPE_IPV4, _ETHERTYPE_IPV6):
            return self.ip(data, start + 20, end, timestamp, interface)
        self.counts.other += 1
        return None

    def null(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        """Decode a frame of BSD's loopback: the address family, in some byte order, and differing by system."""
        return self.ip(data, start + 4, end, timestamp, interface)

    # -- IP --------------------------------------------------------------------------------------------------------

    def ip(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        """Decode an IP packet of either version."""
        if start + 28 <= end:
            version, tos, total, offset, ttl, protocol, key, length = _IPV4_UDP.unpack_from(data, start)
            if version == 0x45 and protocol == _UDP and not offset & 0x3FFF:
                # The usual case in one go: IPv4 without options, not a fragment.
                if not total:
                    return self._ipv4(data, start, end, timestamp, interface)
                if 8 <= length <= total - 20:
                    flow = self._flows.get(key)
                    if flow is None:
                        flow = self._flow(key)
                    stop = start + 20 + length
                    payload = data[start + 28 : stop if stop <= end else end]
                    return _make(Packet, (payload, *flow, timestamp, interface, ttl, length - 8, tos >> 2))
                self.counts.malformed += 1
                return None
        elif start >= end:
            self.counts.other += 1
            return None
        kind = data[start] >> 4
        if kind == 4:
            return self._ipv4(data, start, end, timestamp, interface)
        if kind == 6:
            return self._ipv6(data, start, end, timestamp, interface)
        self.counts.other += 1
        return None

    def _ipv4(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        header = 4 * (data[start] & 15)
        if header < 20 or start + header > end:
            self.counts.malformed += 1
            return None
        # A length of 0 is that of a packet that the device was to cut into several: it reaches to the end of the frame.
        (total,) = _SHORT.unpack_from(data, start + 2)
        offloaded = not total
        total = total or end - start
        (offset,) = _SHORT.unpack_from(data, start + 6)
        tos, ttl, protocol = data[start + 1], data[start + 8], data[start + 9]
        if protocol == _AUTHENTICATION and not offset & 0x3FFF:
            # RFC 4302 section 2: the next protocol, and the length in words of four bytes less two.
            if start + header + 12 > min(end, start + total):
                self.counts.malformed += 1
                return None
            protocol = data[start + header]
            header += 4 * (data[start + header + 1] + 2)
        if protocol != _UDP:
            self.counts.other += 1
            return None
        if total < header:
            self.counts.malformed += 1
            return None
        addresses = data[start + 12 : start + 20]
        stop = min(end, start + total)
        if not offset & 0x3FFF:
            room = _LONGEST if offloaded else total - header
            return self._udp(data, start + header, stop, room, addresses, ttl, tos, timestamp, interface)
        cut = start + total > end
        key = (interface, addresses, data[start + 4 : start + 6])
        piece = data[start + header : stop]
        more = bool(offset & 0x2000)
        whole = None if cut else self._reassemble(key, 8 * (offset & 0x1FFF), more, piece, timestamp)
        if cut:
            self.counts.fragments += 1
        if whole is None:
            return None
        return self._udp(whole, 0, len(whole), len(whole), addresses, ttl, tos, timestamp, interface)

    def _ipv6(self, data: bytes, start: int, end: int, timestamp: int, interface: str | None) -> Packet | None:
        if start + 40 > end:
            self.counts.malformed += 1
            return None
        word, length, following, ttl, addresses = _IPV6.unpack_from(data, start)
        tos = word >> 20 & 0xFF
        position = start + 40
        total = position + length if length else end  # where it ends on the wire
        stop = min(end, total)
        while following in _EXTENSIONS or following in (_FRAGMENT, _AUTHENTICATION):
            if position + 8 > stop:
                self.counts.malformed += 1
                return None
            if following == _FRAGMENT:
                if data[position] != _UDP:
                    self.counts.other += 1
                    return None
                (offset,) = _SHORT.unpack_from(data, position + 2)
                if total > end:
                    self.counts.fragments += 1
                    return None
                key = (interface, addresses, data[position + 4 : position + 8])
                piece = data[position + 8 : stop]
                whole = self._reassemble(key, offset & 0xFFF8, bool(offset & 1), piece, timestamp)
                if whole is None:
                    return None
                return self._udp(whole, 0, len(whole), len(whole), addresses, ttl, tos, timestamp, interface)
            units = 4 * (data[position + 1] + 2) if following == _AUTHENTICATION else 8 * (data[position + 1] + 1)
            following = data[position]
            position += units
        if following != _UDP:
            self.counts.other += 1
            return None
        room = total - position if length else _LONGEST
        return self._udp(data, position, stop, room, addresses, ttl, tos, timestamp, interface)

    def _udp(
        self,
        data: bytes,
        start: int,
        stop: int,
        room: int,
        addresses: bytes,
        ttl: int,
        tos: int,
        timestamp: int,
        interface: str | None,
    ) -> Packet | None:
        """Decode a UDP packet; `room` is how many bytes IP had for it on the wire."""
        if start + 8 > stop:
            self.counts.malformed += 1
            return None
        (length,) = _SHORT.unpack_from(data, start + 4)
        if not 8 <= length <= room:
            self.counts.malformed += 1
            return None
        key = addresses + data[start : start + 4]
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flow(key)
        payload = data[start + 8 : min(stop, start + length)]
        return _make(Packet, (payload, *flow, timestamp, interface, ttl, length - 8, tos >> 2))

    def _flow(self, key: bytes) -> _Flow:
        """Return source, group and port for both addresses and both ports as they are in the packet."""
        width = (len(key) - 4) // 2
        family = socket.AF_INET if width == 4 else socket.AF_INET6
        host, group = (socket.inet_ntop(family, part) for part in (key[:width], key[width : 2 * width]))
        (ports,) = _LONG.unpack_from(key, 2 * width)
        if len(self._flows) >= _FLOWS:
            self._flows.clear()
        flow = self._flows[key] = ((host, ports >> 16), group, ports & 0xFFFF)
        return flow

    def _reassemble(
        self, key: tuple[object, ...], offset: int, more: bool, piece: bytes, timestamp: int
    ) -> bytes | None:
        """Add a fragment; return the datagram when that completes it.

        A datagram whose pieces overlap or contradict each other is dropped whole, as RFC 5722 asks. Identifications are
        used again, so what may be of another datagram is forgotten: pieces older than `_PATIENCE`, those that another
        piece at the same place replaces, and those that do not fit the checksum of UDP.
        """
        datagram = self._waiting.get(key)
        if datagram is not None and (
            abs(timestamp - datagram.began) > _PATIENCE
            or (
                timestamp - datagram.began > _AT_ONCE
                and len(other := datagram.pieces.get(offset, b"")) == len(piece) > 0
                and other != piece
            )
        ):
            self.counts.fragments += len(datagram.pieces)
            del self._waiting[key]
            datagram = None
        if datagram is None:
            if len(self._waiting) >= _DATAGRAMS:
                oldest = self._waiting.pop(next(iter(self._waiting)))
                self.counts.fragments += len(oldest.pieces)
            datagram = self._waiting[key] = _Datagram(timestamp)
        end = offset + len(piece)
        if datagram.pieces.get(offset) == piece:
            return None  # the same again, as captures of the "any" device have it
        known = datagram.end
        datagram.pieces.setdefault(offset, piece)
        datagram.size += len(piece)
        contradiction = (
            datagram.pieces[offset] is not piece
            or not piece
            or (more and len(piece) % 8)
            or (not more and known is not None)
            or (known is not None and end > known)
            or end > _LONGEST
            or datagram.size > _LONGEST
            or len(datagram.pieces) > _PIECES
        )
        if not more:
            datagram.end = end
        whole = None if contradiction else datagram.whole()
        if contradiction or whole is not None:
            del self._waiting[key]
        if contradiction:
            self.counts.fragments += len(datagram.pieces)
        if whole is not None and not _sum_is_right(key[1], whole):
            # The piece that came last is of a new datagram, whose others may follow.
            self.counts.fragments += len(datagram.pieces) - 1
            fresh = self._waiting[key] = _Datagram(timestamp)
            fresh.pieces[offset], fresh.size, fresh.end = piece, len(piece), None if more else end
            return None
        return whole


def _sum_is_right(addresses: object, datagram: bytes) -> bool:
    """Return whether the checksum of a UDP datagram fits it and its addresses, or there is none (RFC 768)."""
    if not isinstance(addresses, bytes) or len(datagram) < 8 or datagram[6:8] == b"\0\0":
        return True
    length = int.from_bytes(datagram[4:6], "big")
    covered = datagram[:length]
    # The sum of ones' complement is the number modulo 65535; of an odd length the last byte is filled up with zero.
    whole = addresses + length.to_bytes(2, "big") + bytes([0, _UDP]) + covered + bytes(len(covered) % 2)
    return int.from_bytes(whole, "big") % 65535 == 0
