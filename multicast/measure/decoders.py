"""What well-known packets say, in one line each: pure functions of a packet, and a table of them.

Nothing in a packet is believed: where a length does not fit, it is not decoded. What is returned may hold characters
that the packet has brought; escape it before it is shown.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from .flows import MOLD, MOLD_END, RTP, TS_SIZE, TS_SYNC, Numbering

__all__ = ["decode"]

# RFC 3551 section 6, those that are met.
_PAYLOAD_TYPES = {0: "PCMU", 3: "GSM", 8: "PCMA", 9: "G722", 10: "L16", 11: "L16", 14: "MPA", 26: "JPEG", 31: "H261",
                  32: "MPV", 33: "MP2T", 34: "H263"}  # fmt: skip
# IEEE 1588-2019 table 36.
_PTP_MESSAGES = {0: "Sync", 1: "Delay_Req", 2: "Pdelay_Req", 3: "Pdelay_Resp", 8: "Follow_Up", 9: "Delay_Resp",
                 10: "Pdelay_Resp_Follow_Up", 11: "Announce", 12: "Signaling", 13: "Management"}  # fmt: skip
# So many PIDs, SDP media and DNS names are named.
_NAMED = 4


def rtp(packet: bytes) -> str | None:
    """Decode RTP (RFC 3550 section 5.1)."""
    if len(packet) < RTP.size or packet[0] >> 6 != 2:
        return None
    _, kind, number, stamp, source = RTP.unpack_from(packet)
    name = _PAYLOAD_TYPES.get(kind & 0x7F, "dynamic" if kind & 0x7F >= 96 else "unassigned")
    text = f"RTP {name} ({kind & 0x7F}) seq {number} time {stamp} ssrc {source:08x}"
    return text + (" marker" if kind & 0x80 else "")


def mpeg_ts(packet: bytes) -> str | None:
    """Decode pieces of an MPEG transport stream (ISO/IEC 13818-1 section 2.4.3)."""
    count, rest = divmod(len(packet), TS_SIZE)
    if not count or rest or any(packet[place] != TS_SYNC for place in range(0, len(packet), TS_SIZE)):
        return None
    pids = dict.fromkeys(
        (packet[place + 1] & 0x1F) << 8 | packet[place + 2] for place in range(0, len(packet), TS_SIZE)
    )
    named = " ".join(f"{pid:#x}" for pid in list(pids)[:_NAMED])
    return f"MPEG-TS {count} packets, PID {named}{' ...' if len(pids) > _NAMED else ''}"


def moldudp64(packet: bytes) -> str | None:
    """Decode a packet of a feed (MoldUDP64 1.00)."""
    if len(packet) < MOLD.size:
        return None
    session, number, count = MOLD.unpack_from(packet)
    name = session.decode("ascii", "replace").rstrip()
    if count == MOLD_END:
        return f"MoldUDP64 {name} ends before {number}"
    if not count:
        return f"MoldUDP64 {name} heartbeat, next {number}"
    return f"MoldUDP64 {name} {number}" + (f" to {number + count - 1}" if count > 1 else "")


def ssdp(packet: bytes) -> str | None:
    """Decode a message of SSDP (UPnP Device Architecture 2.0 section 1)."""
    head, *lines = packet.decode("utf-8", "replace").split("\r\n")
    method = head.split(" ")[0]
    if method not in ("NOTIFY", "M-SEARCH", "HTTP/1.1"):
        return None
    fields = dict(reversed([(name.strip().upper(), value.strip()) for name, _, value in
                            (line.partition(":") for line in lines)]))  # fmt: skip
    wanted = {"NOTIFY": ("NTS", "NT", "LOCATION"), "M-SEARCH": ("ST", "MX"), "HTTP/1.1": ("ST", "LOCATION")}[method]
    words = [fields[name] for name in wanted if fields.get(name)]
    return " ".join(["SSDP", "reply" if method == "HTTP/1.1" else method, *words])


def sap(packet: bytes) -> str | None:
    """Decode an announcement (RFC 2974 section 3) with the session it announces (SDP, RFC 8866)."""
    if len(packet) < 8 or packet[0] >> 5 != 1 or packet[0] & 3:  # encrypted or compressed: it cannot be read
        return None
    kind = "deletion" if packet[0] & 4 else "announcement"
    start = 4 + (16 if packet[0] & 0x10 else 4) + 4 * packet[1]
    body = packet[start:]
    if body[:2] != b"v=":
        _, _, body = body.partition(b"\0")  # the type of the payload stood before it
    lines = body.decode("utf-8", "replace").splitlines()
    name = next((line[2:] for line in lines if line.startswith("s=")), None)
    if name is None:
        return None
    place = next((line.split(" ")[-1].partition("/")[0] for line in lines if line.startswith("c=")), "")
    media = [" ".join(line[2:].split(" ")[:2]) for line in lines if line.startswith("m=")]
    text = f"SAP {kind} {name!r}"
    text += f" at {place}" if place else ""
    return text + (f", {', '.join(media[:_NAMED])}" if media else "")


def ptp(packet: bytes) -> str | None:
    """Decode the header of PTP version 2 (IEEE 1588-2019 section 13.3)."""
    if len(packet) < 34 or packet[1] & 15 != 2:
        return None
    name = _PTP_MESSAGES.get(packet[0] & 15)
    (length,) = struct.unpack_from("!H", packet, 2)
    if name is None or length > len(packet):
        return None
    clock, port, number = struct.unpack_from("!8sHH", packet, 20)
    return f"PTP {name} seq {number} domain {packet[4]} from {clock.hex()}-{port}"


def sacn(packet: bytes) -> str | None:
    """Decode a packet of streaming ACN (ANSI E1.31-2018 sections 5 and 6)."""
    if len(packet) < 126 or packet[4:16] != b"ASC-E1.17\0\0\0":
        return None
    vector, frame = struct.unpack_from("!I", packet, 18)[0], struct.unpack_from("!I", packet, 40)[0]
    if (vector, frame) != (4, 2):
        return None
    name = packet[44:108].partition(b"\0")[0].decode("utf-8", "replace")
    (universe,) = struct.unpack_from("!H", packet, 113)
    (values,) = struct.unpack_from("!H", packet, 123)
    state = f"seq {packet[111]} priority {packet[108]}, {max(0, values - 1)} slots"
    return f"sACN universe {universe} {state} from {name!r}{' ends' if packet[112] & 0x40 else ''}"


def lcm(packet: bytes) -> str | None:
    """Decode a message of LCM (its UDP multicast protocol description)."""
    if len(packet) < 8 or packet[:3] != b"LC0":
        return None
    (number,) = struct.unpack_from("!I", packet, 4)
    if packet[3:4] == b"2":
        channel, end, data = packet[8:].partition(b"\0")
        return f"LCM {channel.decode('utf-8', 'replace')} seq {number}, {len(data)} bytes" if end else None
    if packet[3:4] != b"3" or len(packet) < 20:
        return None
    size, _, fragment, count = struct.unpack_from("!IIHH", packet, 8)
    if fragment:
        return f"LCM seq {number}, fragment {fragment + 1} of {count}"
    channel, end, _ = packet[20:].partition(b"\0")
    return f"LCM {channel.decode('utf-8', 'replace')} seq {number}, {size} bytes in {count} fragments" if end else None


def dns(packet: bytes) -> str | None:
    """Decode multicast DNS (RFC 6762) and LLMNR (RFC 4795); with dnspython, and None without it."""
    try:
        import dns.exception
        import dns.message
        import dns.rdatatype
    except ModuleNotFoundError:
        return None
    try:
        message = dns.message.from_wire(packet, ignore_trailing=True)
        is_reply = bool(message.flags & 0x8000)
        found = [one for part in (message.answer if is_reply else message.question,) for one in part]
        names = [f"{dns.rdatatype.to_text(one.rdtype)} {one.name.to_text(omit_final_dot=True)}" for one in found]
    except (dns.exception.DNSException, ValueError):
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"DNS {'reply' if is_reply else 'query'} {', '.join(names[:_NAMED])}{more}".rstrip()


_Decoder = Callable[[bytes], "str | None"]

# By the port the packets went to.
_PORTS: dict[int, _Decoder] = {
    319: ptp, 320: ptp, 1900: ssdp, 5353: dns, 5355: dns, 5568: sacn, 9875: sap,
}  # fmt: skip
# By what the numbers of a flow have shown it to be.
_NUMBERINGS: dict[Numbering, _Decoder] = {
    Numbering.RTP: rtp, Numbering.TS: mpeg_ts, Numbering.MOLDUDP64: moldudp64,
}  # fmt: skip


def decode(packet: bytes, port: int, numbering: Numbering = Numbering.NONE) -> str | None:
    """Return in one line what a packet says: the name of its protocol first; None for what is not known.

    `port` is where it went to, and `numbering` what the flow it belongs to has been found to be.
    """
    decoder = _PORTS.get(port) or _NUMBERINGS.get(numbering) or lcm
    return decoder(packet)
