"""Well-known packets in one line."""

from __future__ import annotations

import struct

import pytest

from multicast.feeds.moldudp64 import END, pack
from multicast.measure import Numbering, decode, rtp_payload

CLOCK = bytes.fromhex("0050c2fffe123456")


def sdp(name: str) -> bytes:
    return (
        f"v=0\r\no=- 1 1 IN IP4 10.0.0.5\r\ns={name}\r\nc=IN IP4 239.1.2.3/32\r\nt=0 0\r\n"
        "m=video 5004 RTP/AVP 96\r\nm=audio 5006 RTP/AVP 97\r\n"
    ).encode()


def sacn(options: int = 0) -> bytes:
    head = struct.pack("!HH12sHI16s", 16, 0, b"ASC-E1.17\0\0\0", 0x7000, 4, bytes(16))
    frame = struct.pack("!HI64sBHBBH", 0x7000, 2, b"Console", 100, 0, 7, options, 3)
    return head + frame + struct.pack("!HBBHHH", 0x7000, 2, 0xA1, 0, 1, 513) + bytes(513)


def ptp(kind: int, number: int) -> bytes:
    return struct.pack("!BBHBBHq4s8sHHBb", kind, 2, 44, 1, 0, 0, 0, bytes(4), CLOCK, 1, number, 0, 0) + bytes(10)


PACKETS: dict[str, tuple[bytes, int, Numbering]] = {
    "RTP MP2T (33) seq 7 time 90000 ssrc 0000002a": (
        struct.pack("!BBHII", 0x80, 33, 7, 90000, 42) + b"x", 5004, Numbering.RTP
    ),
    "RTP dynamic (96) seq 65535 time 0 ssrc deadbeef marker": (
        struct.pack("!BBHII", 0x80, 0xE0, 65535, 0, 0xDEADBEEF), 5004, Numbering.RTP
    ),
    "MPEG-TS 3 packets, PID 0x100 0x1fff": (
        b"".join(b"\x47" + struct.pack("!H", pid) + bytes(185) for pid in (0x4100, 0x1FFF, 0x100)), 1234, Numbering.TS
    ),
    "MoldUDP64 ORDERS 7 to 9": (pack(b"ORDERS    ", 7, [b"a", b"b", b"c"]), 5000, Numbering.MOLDUDP64),
    "MoldUDP64 ORDERS 7": (pack(b"ORDERS    ", 7, [b"a"]), 5000, Numbering.MOLDUDP64),
    "MoldUDP64 ORDERS heartbeat, next 8": (pack(b"ORDERS    ", 8, []), 5000, Numbering.MOLDUDP64),
    "MoldUDP64 ORDERS ends before 8": (
        struct.pack("!10sQH", b"ORDERS    ", 8, END), 5000, Numbering.MOLDUDP64
    ),
    "SSDP M-SEARCH ssdp:all 2": (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 2\r\nST: ssdp:all\r\n\r\n',
        1900, Numbering.NONE,
    ),
    "SSDP NOTIFY ssdp:alive upnp:rootdevice http://10.0.0.1/d.xml": (
        b"NOTIFY * HTTP/1.1\r\nLocation: http://10.0.0.1/d.xml\r\nNT: upnp:rootdevice\r\nNTS: ssdp:alive\r\n\r\n",
        1900, Numbering.NONE,
    ),
    "SSDP reply ssdp:all http://10.0.0.1/d.xml": (
        b"HTTP/1.1 200 OK\r\nLOCATION: http://10.0.0.1/d.xml\r\nEXT:\r\nST: ssdp:all\r\n\r\n", 1900, Numbering.NONE
    ),
    "SAP announcement 'Lecture 3' at 239.1.2.3, video 5004, audio 5006": (
        b"\x20\0\x12\x34\x0a\0\0\x05application/sdp\0" + sdp("Lecture 3"), 9875, Numbering.NONE
    ),
    "SAP deletion 'Lecture 3' at 239.1.2.3, video 5004, audio 5006": (
        b"\x24\0\x12\x34\x0a\0\0\x05" + sdp("Lecture 3"), 9875, Numbering.NONE
    ),
    "SAP announcement 'From ::1, signed' at 239.1.2.3, video 5004, audio 5006": (
        b"\x30\2\x12\x34" + bytes(15) + b"\1" + b"s=signed" + sdp("From ::1, signed"), 9875, Numbering.NONE
    ),
    "SAP announcement 'no place \ufffd'": (
        b"\x20\0\x12\x34\x0a\0\0\x05v=0\r\ns=no place \xff\r\n", 9875, Numbering.NONE
    ),
    "PTP Sync seq 5 domain 1 from 0050c2fffe123456-1": (ptp(0, 5), 319, Numbering.NONE),
    "PTP Announce seq 6 domain 1 from 0050c2fffe123456-1": (ptp(0x1B, 6), 320, Numbering.NONE),
    "sACN universe 3 seq 7 priority 100, 512 slots from 'Console'": (sacn(), 5568, Numbering.NONE),
    "sACN universe 3 seq 7 priority 100, 512 slots from 'Console' ends": (sacn(0x40), 5568, Numbering.NONE),
    "RTP unassigned (35) seq 1 time 0 ssrc 00000001": (
        struct.pack("!BBHII", 0x80, 35, 1, 0, 1), 5004, Numbering.RTP
    ),
    "LCM POSE seq 4, 3 bytes": (b"LC02\0\0\0\4POSE\0abc", 7667, Numbering.NONE),
    "LCM \ufffd seq 4294967295, 3 bytes": (b"LC02\xff\xff\xff\xff\xff\0a\0c", 7667, Numbering.NONE),
    "LCM \ufffd seq 4, 9 bytes in 2 fragments": (
        b"LC03\0\0\0\4" + struct.pack("!IIHH", 9, 0, 0, 2) + b"\xff\0a\0c", 7667, Numbering.NONE
    ),
    "LCM IMAGE seq 4, 9000 bytes in 7 fragments": (
        b"LC03\0\0\0\4" + struct.pack("!IIHH", 9000, 0, 0, 7) + b"IMAGE\0abc", 7667, Numbering.NONE
    ),
    "LCM seq 4, fragment 2 of 7": (
        b"LC03\0\0\0\4" + struct.pack("!IIHH", 9000, 0, 1, 7) + b"abc", 7667, Numbering.NONE
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", PACKETS)
def test_a_well_known_packet_is_one_line(said: str) -> None:
    assert decode(*PACKETS[said]) == said


@pytest.mark.parametrize("said", PACKETS)
def test_a_packet_that_is_cut_is_decoded_no_further_than_it_goes(said: str) -> None:
    packet, port, numbering = PACKETS[said]
    for size in range(len(packet)):
        found = decode(packet[:size], port, numbering)
        assert found is None or found.split(" ")[0] == said.split(" ")[0]


def test_names_of_dns_are_told() -> None:
    message = pytest.importorskip("dns.message", reason="dnspython is not installed")
    query = message.make_query("_http._tcp.local.", "PTR")
    assert decode(query.to_wire(), 5353) == "DNS query PTR _http._tcp.local"
    reply = message.from_text(
        "id 0\nopcode QUERY\nrcode NOERROR\nflags QR AA\n;ANSWER\n"
        "_http._tcp.local. 120 IN PTR web._http._tcp.local.\nweb.local. 120 IN A 10.0.0.5\n"
    )
    assert decode(reply.to_wire(), 5353) == "DNS reply PTR _http._tcp.local, A web.local"
    assert decode(reply.to_wire() + b"more", 5353) == "DNS reply PTR _http._tcp.local, A web.local"
    many = [message.make_query(f"host{number}.local.", "A").question[0] for number in range(6)]
    query.question = many[:4]
    assert decode(query.to_wire(), 5353) == "DNS query A host0.local, A host1.local, A host2.local, A host3.local"
    query.question = many
    said = "DNS query A host0.local, A host1.local, A host2.local, A host3.local and 2 more"
    assert decode(query.to_wire(), 5353) == said
    assert decode(bytes(12), 5353) == "DNS query"
    assert decode(b"\0" * 5, 5353) is None


# Two sources (CSRC) and an extension of one word (RFC 3550 sections 5.1 and 5.3.1).
SOURCES, EXTENSION = bytes(range(8)), b"\xbe\xde\0\1" + b"word"


@pytest.mark.parametrize(
    "first, rest, payload",
    [
        (0x80, b"payload", b"payload"),
        (0x80, b"", b""),
        (0x82, SOURCES + b"payload", b"payload"),
        (0x81, SOURCES[:4] + b"payload", b"payload"),
        (0x82, SOURCES, b""),
        (0x82, SOURCES[:7], None),
        (0x90, EXTENSION + b"payload", b"payload"),
        (0x90, b"\xbe\xde\0\0", b""),
        (0x90, b"\xbe\xde\0", None),
        (0x90, b"\0\0\1\0" + bytes(1024) + b"payload", b"payload"),
        (0x90, EXTENSION[:7], None),
        (0x92, SOURCES + EXTENSION + b"payload", b"payload"),
        (0xA0, b"payload" + b"\0\0\3", b"payload"),
        (0xA0, b"\0\0\3", b""),
        (0xA0, b"\0\0\4", None),
        (0xB2, SOURCES + EXTENSION + b"payload\1", b"payload"),
        (0x00, b"payload", None),
        (0x40, b"payload", None),
        (0xC0, b"payload", None),
    ],
)
def test_the_payload_of_rtp_is_what_stands_between_header_and_padding(
    first: int, rest: bytes, payload: bytes | None
) -> None:
    header = bytes([first]) + struct.pack("!BHII", 96, 1, 2, 3)
    assert rtp_payload(header + rest) == payload
    assert rtp_payload(header[:11]) is None


@pytest.mark.parametrize("port", [319, 1900, 5000, 5353, 5568, 7667, 9875])
def test_what_is_something_else_is_not_decoded(port: int) -> None:
    assert decode(b"temp=21.5 and what else there is to be said in a packet of more than 34 bytes", port) is None
