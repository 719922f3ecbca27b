"""Recording to capture files, reading them, and replaying them."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import math
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import helpers
import netns
import pytest
from helpers import settle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from programs import Running, events, wait_for
from programs import multicast as command

import multicast.senders.multicaster
from multicast import ArgumentError, CaptureError, InterfaceError, Multicaster, Poller, capture, sendto, testing
from multicast.batch import Address
from multicast.capture import Counts, Packet, Recorder, Replayer, runs
from multicast.capture.runs import Run
from multicast.cli.replay import _DSCP, _contents
from multicast.measure import rtp_payload

GROUP, PORT = "239.7.1.1", 7101
SOURCE = ("10.0.0.5", 40112)
SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND + 123_456_789


def packets(count: int, spacing: int = 1000, **fields: Any) -> list[Packet]:
    """Return packets of one flow, `spacing` nanoseconds apart."""
    usual: dict[str, Any] = {"source": SOURCE, "group": GROUP, "port": PORT, "interface": "eth0", "ttl": 3, **fields}
    return [Packet(f"packet {number}".encode(), timestamp=BEGIN + number * spacing, **usual) for number in range(count)]


def whole(packet: Packet) -> Packet:
    """Return a packet as a file gives it back, with its length said."""
    return packet._replace(length=packet.length or len(packet.payload))


def written(path: Path, what: Iterable[Packet], **options: Any) -> Path:
    with capture.write(path, **options) as file:
        for packet in what:
            file.write(packet)
    return path


def readable(path: Path | str) -> list[Packet]:
    with capture.read(path) as reader:
        return list(reader)


def of(data: bytes) -> capture.Reader:
    return capture.read(io.BytesIO(data))


def payloads(path: Path | str) -> list[bytes]:
    return [packet.payload for packet in readable(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture.pcapng"


# -- frames, built from the standards and by other means than the package does -------------------------------------


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload: bytes, port: int = PORT) -> bytes:
    return struct.pack(">HHHH", SOURCE[1], port, 8 + len(payload), 0) + payload


def ipv4(body: bytes, *, offset: int = 0, identity: int = 7, options: bytes = b"", protocol: int = 17) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + len(body), identity, offset, 9, protocol, 0)
    return head + socket.inet_aton(SOURCE[0]) + socket.inet_aton(GROUP) + options + body


def ipv6(body: bytes, following: int = 17) -> bytes:
    head = struct.pack(">IHBB", 0x60000000, len(body), following, 9)
    return head + socket.inet_pton(socket.AF_INET6, "fe80::5") + socket.inet_pton(socket.AF_INET6, "ff02::77") + body


MACS = bytes.fromhex("01005e070101 020000000001")
ETHERNET = MACS + b"\x08\0"
LINKS: dict[str, tuple[int, bytes, bytes]] = {
    # the link type, what stands before IPv4, and before IPv6
    "ethernet": (1, ETHERNET, MACS + b"\x86\xdd"),
    "vlan": (1, MACS + b"\x81\0\0\x2a\x08\0", MACS + b"\x81\0\0\x2a\x86\xdd"),
    "two vlan tags": (1, MACS + b"\x88\xa8\0\1\x81\0\0\2\x08\0", MACS + b"\x88\xa8\0\1\x81\0\0\2\x86\xdd"),
    "raw": (101, b"", b""),
    "raw by the number of some systems": (12, b"", b""),
    "ipv4 and ipv6": (228, b"", b""),
    "cooked": (113, bytes(14) + b"\x08\0", bytes(14) + b"\x86\xdd"),
    "cooked, second form": (276, b"\x08\0" + bytes(18), b"\x86\xdd" + bytes(18)),
    "cooked with a tag": (276, b"\x81\0" + bytes(18) + b"\0\1\x08\0", b"\x81\0" + bytes(18) + b"\0\1\x86\xdd"),
    "loopback of BSD": (0, b"\2\0\0\0", b"\x1e\0\0\0"),
    "loopback of OpenBSD": (108, b"\0\0\0\2", b"\0\0\0\x18"),
}


def pcap(frames: Iterable[bytes], link: int = 1, order: str = "<", unit: int = 1, snaplen: int = 262144) -> bytes:
    magic = 0xA1B23C4D if unit == 1 else 0xA1B2C3D4
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link)]
    for number, frame in enumerate(frames):
        parts.append(struct.pack(order + "IIII", 1_700_000_000, 5000 + number, len(frame), len(frame)) + frame)
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<", major: int = 1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1), order)


def interface(link: int = 1, order: str = "<", options: bytes = b"", snaplen: int = 0) -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, snaplen) + options, order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(frame: bytes, ticks: int = 5000, order: str = "<", number: int = 0, original: int | None = None) -> bytes:
    size = len(frame) if original is None else original
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), size)
    return block(6, head + frame, order)


PCAPNG = section() + interface() + enhanced(ETHERNET + ipv4(udp(b"one"))) + enhanced(ETHERNET + ipv4(udp(b"two")))
PCAP = pcap([ETHERNET + ipv4(udp(b"one")), ETHERNET + ipv4(udp(b"two"))])


def told(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the last statistics of each interface in a file say: received, dropped, delivered, and a comment."""
    data = path.read_bytes()
    names: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    position = 0
    while position < len(data):
        kind, length, number = struct.unpack_from("<III", data, position)
        start = position + (16 if kind == 1 else 20)
        values: dict[int, bytes] = {}
        while kind in (1, 5) and (code := struct.unpack_from("<H", data, start)[0]):
            (size,) = struct.unpack_from("<H", data, start + 2)
            values[code] = data[start + 4 : start + 4 + size]
            start += 4 + size + -size % 4
        if kind == 1:
            names.append(values[2].decode())
        elif kind == 5:
            words = {4: "received", 5: "dropped", 8: "delivered"}
            found[names[number]] = {word: struct.unpack("<Q", values[code])[0]
                                    for code, word in words.items() if code in values}
            if 1 in values:
                found[names[number]]["comment"] = values[1].decode()
        position += length
    return found


# -- writing -------------------------------------------------------------------------------------------------------

FOUR = st.binary(min_size=4, max_size=4).map(socket.inet_ntoa)
SIX = st.binary(min_size=16, max_size=16).map(lambda packed: socket.inet_ntop(socket.AF_INET6, packed))
HOSTS = st.one_of(st.tuples(FOUR, FOUR), st.tuples(SIX, SIX))
PORTS = st.integers(0, 65535)
ANY_PACKET = st.builds(
    lambda hosts, ports, payload, time, name, ttl: Packet(
        payload, (hosts[0], ports[0]), hosts[1], ports[1], time, name, ttl, len(payload)
    ),
    HOSTS,
    st.tuples(PORTS, PORTS),
    st.binary(max_size=300),
    st.integers(1, 2**63),
    st.sampled_from(["eth0", "eth1", "lo"]),
    st.integers(0, 255),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all examples of a property."""
    return tmp_path_factory.mktemp("capture") / "file.pcapng"


@settings(max_examples=40)
@given(what=st.lists(ANY_PACKET, max_size=8))
@example(what=[Packet(bytes(65507), SOURCE, GROUP, PORT, 1, "eth0", 1, 65507)])
@example(what=[Packet(bytes(65527), ("fe80::1", 1), "ff02::1", PORT, 1, "eth0", 1, 65527)])
def test_what_is_written_is_read_back(scratch: Path, what: list[Packet]) -> None:
    scratch.unlink(missing_ok=True)
    assert readable(written(scratch, what)) == what


@settings(max_examples=40)
@given(what=st.lists(ANY_PACKET, max_size=8))
def test_headers_have_right_checksums(scratch: Path, what: list[Packet]) -> None:
    scratch.unlink(missing_ok=True)
    data = written(scratch, what).read_bytes()
    position = found = 0
    while position < len(data):
        kind, length = struct.unpack_from("<II", data, position)
        if kind == 6:
            (size,) = struct.unpack_from("<I", data, position + 20)
            packet = data[position + 28 : position + 28 + size][14:]
            if packet[0] >> 4 == 4:
                assert checksum(packet[:20]) == 0
                addresses, body = packet[12:20], packet[20:]
            else:
                addresses, body = packet[8:40], packet[40:]
            assert body[6:8] != b"\0\0"
            assert checksum(addresses + struct.pack(">HH", 17, len(body)) + body) == 0
            found += 1
        position += length
    assert found == len(what)


def test_a_file_tells_its_comments_interfaces_and_drops(path: Path) -> None:
    with capture.write(path, comment="by a test") as file:
        file.describe("239.7.1.1 joined on eth0")
        file.write(packets(1)[0])
        file.dropped("eth0", 3)
        file.flush()
        file.dropped("eth0", 4, "both of them")
        file.dropped("eth1", 5)
    with capture.read(path) as reader:
        (packet,) = reader
        assert packet.interface == "eth0"
        assert reader.comments == ["by a test", "239.7.1.1 joined on eth0"]
        assert reader.dropped == 12


def test_a_cut_packet_says_how_long_it_was(path: Path) -> None:
    (packet,) = readable(written(path, [Packet(bytes(500), SOURCE, GROUP, PORT, BEGIN)], snaplen=100))
    assert (len(packet.payload), packet.length, packet.truncated) == (100 - 14 - 28, 500, True)
    # and again, from a file to another
    again = path.with_name("again.pcapng")
    assert readable(written(again, [packet])) == [packet]


def test_files_rotate_and_the_latest_are_kept(tmp_path: Path) -> None:
    what = packets(300)
    (tmp_path / "feed-00007.pcapng").write_bytes(b"of another run")
    (tmp_path / "feed-now.pcapng").write_bytes(b"of somebody else")
    with capture.write(tmp_path / "feed.pcapng", rotate=5000, keep=2):
        pass
    assert len(list(tmp_path.iterdir())) == 3, "an empty file takes the place of none"
    (tmp_path / "feed-00008.pcapng").unlink()
    with capture.write(tmp_path / "feed.pcapng", comment="feed", rotate=5000, keep=2) as file:
        for packet in what:
            file.write(packet)
            file.flush()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names[-1] == "feed-now.pcapng"
    kept = [readable(tmp_path / name) for name in names[:-1]]
    assert len(kept) == 2
    assert [packet.payload for one in kept for packet in one] == [
        packet.payload for packet in what[300 - sum(map(len, kept)) :]
    ]
    assert all(5000 <= (tmp_path / name).stat().st_size < 5400 for name in names[:-2])


def test_files_of_earlier_runs_count_among_those_that_are_kept(tmp_path: Path) -> None:
    for _ in range(3):
        with capture.write(tmp_path / "feed.pcapng", every=3600, keep=2) as file:
            file.write(packets(1)[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["feed-00002.pcapng", "feed-00003.pcapng"]


@pytest.mark.parametrize("name", ["x.pcap", "x.cap", "x.pcap.gz"])
def test_a_recording_is_not_written_as_what_it_is_not(tmp_path: Path, name: str) -> None:
    advised = re.escape(re.sub(r"\.p?cap", ".pcapng", name))
    with pytest.raises(ArgumentError, match=rf"recordings are pcapng; write .*/{advised}$"):
        capture.write(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=[".gz", ".zst"])
def compressed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a compressed recording is to be."""
    if request.param == ".zst":
        _zstd()
    return tmp_path / f"feed.pcapng{request.param}"


def unpacked(path: Path) -> bytes:
    """Return what a compressed file holds, by the library and not by the package."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else _zstd().decompress(data)


def test_a_recording_is_compressed_as_its_name_says(compressed: Path, path: Path) -> None:
    what = packets(2000)
    written(path, what)
    written(compressed, what)
    assert unpacked(compressed) == path.read_bytes()
    assert compressed.stat().st_size < path.stat().st_size / 3
    assert readable(compressed) == [whole(packet) for packet in what]


def test_what_was_flushed_of_a_compressed_recording_can_be_read_at_any_time(compressed: Path) -> None:
    with capture.write(compressed) as file:
        for packet in packets(30):
            file.write(packet)
            file.flush()
            assert payloads(compressed)[-1] == packet.payload
    assert len(readable(compressed)) == 30


@helpers.alone
def test_a_full_disk_leaves_a_compressed_file_that_is_whole(
    compressed: Path, small_disk: Callable[[int], None]
) -> None:
    file = capture.write(compressed)
    noise = random.Random(7)  # which cannot be compressed
    what = [packet._replace(payload=noise.randbytes(1000)) for packet in packets(20)]
    for packet in what[:10]:
        file.write(packet)
    file.flush()
    for packet in what[10:]:
        file.write(packet)
    small_disk(15_000)
    with pytest.raises(OSError, match="File too large") as caught:
        file.flush()
    with capture.read(compressed) as reader:
        assert [packet.payload for packet in reader] == [packet.payload for packet in what[:10]]
    assert (file.packets, file.lost, file.bytes) == (10, 10, 10_000)
    assert "10 packets are in it" in caught.value.__notes__[0]
    pcapng = compressed.with_suffix("")
    pcapng.write_bytes(unpacked(compressed))
    assert told(pcapng)["eth0"] == {"received": 20, "dropped": 0, "delivered": 10}


def test_compressed_files_of_a_series_have_their_number_before_their_ending(compressed: Path) -> None:
    ending = compressed.suffix
    for _ in range(2):
        with capture.write(compressed, rotate=5000) as file:
            for packet in packets(100):
                file.write(packet)
    names = sorted(file.name for file in compressed.parent.iterdir())
    assert names == [f"feed-{number:05d}.pcapng{ending}" for number in range(1, len(names) + 1)]
    assert len(names) > 3
    assert len(unpacked(compressed.with_name(names[0]))) >= 5000 > compressed.with_name(names[0]).stat().st_size
    assert sum(len(readable(compressed.with_name(name))) for name in names) == 200


def test_without_zstd_a_recording_with_such_a_name_is_refused_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArgumentError, match=r"pip install .*, or write \.gz"):
        capture.write(tmp_path / "x.pcapng.zst")
    assert not list(tmp_path.iterdir())


@pytest.mark.needs_program("tshark")
def test_tshark_reads_compressed_recordings(compressed: Path) -> None:
    with capture.write(compressed) as file:
        for packet in packets(300):
            file.write(packet)
            file.flush()  # so it has 300 compressed pieces
    done = subprocess.run(
        ["tshark", "-r", compressed, "-T", "fields", "-e", "udp.payload"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert [bytes.fromhex(line) for line in done.stdout.split()] == [packet.payload for packet in packets(300)]


def recorded_as(what: Iterable[Packet]) -> tuple[list[bytes], list[Address]]:
    """Return packets as a listener has them."""
    what = list(what)
    return (
        [packet.payload for packet in what],
        [
            Address(packet.source, None, packet.interface, packet.ttl, packet.timestamp, False, packet.dscp)
            for packet in what
        ],
    )


@pytest.mark.parametrize("snaplen", [None, 200])
@pytest.mark.parametrize("size", [10, 1200, 9000])
def test_a_file_that_rotates_is_over_its_size_by_a_packet_at_most(
    tmp_path: Path, size: int, snaplen: int | None
) -> None:
    what = [packet._replace(payload=b"%05d" % number + bytes(size)) for number, packet in enumerate(packets(512))]
    with capture.write(tmp_path / "feed.pcapng", rotate=60_000, snaplen=snaplen) as file:
        for start in range(0, 512, 64):  # as many as a listener reads at once, and nobody flushes
            file.extend(*recorded_as(what[start : start + 64]), GROUP, PORT)
        for packet in what:
            file.write(packet)
    files = sorted(tmp_path.iterdir())
    most = 60_000 + (snaplen or size + 80) + 100  # a packet and the statistics
    sizes = [one.stat().st_size for one in files]
    assert all(60_000 <= found < most for found in sizes[:-1])
    assert sizes[-1] < most
    found = [packet for one in files for packet in readable(one)]
    kept = size + 5 if snaplen is None else min(size + 5, 200 - 42)
    assert [packet.payload for packet in found] == [packet.payload[:kept] for packet in what] * 2


def test_of_several_files_none_is_empty_at_any_time(tmp_path: Path) -> None:
    with capture.write(tmp_path / "feed.pcapng", rotate=4096) as file:
        file.write(packets(1)[0]._replace(payload=bytes(4096)))
        (first,) = tmp_path.iterdir()
        file.flush()
        file.write(packets(1)[0])
        assert list(tmp_path.iterdir()) == [first] == [Path(file.path)]
        file.flush()
        _, second = sorted(tmp_path.iterdir())
        assert readable(second) == [whole(packets(1)[0])]
        file.write(packets(1)[0]._replace(payload=bytes(4096)))
    assert sorted(tmp_path.iterdir()) == [first, second], "closing begins no other"


def test_files_with_a_long_head_have_packets_too(tmp_path: Path) -> None:
    with capture.write(tmp_path / "feed.pcapng", comment="many groups " * 1000, rotate=4096) as file:
        for packet in packets(300):
            file.write(packet)
    assert len(list(tmp_path.iterdir())) == 3


def test_each_file_tells_of_its_own_packets(tmp_path: Path) -> None:
    dropped = 0
    with capture.write(tmp_path / "feed.pcapng", rotate=5000) as file:
        for number, packet in enumerate(packets(300)):
            file.write(packet)
            if number % 10 == 0:
                file.dropped("eth0", 2)
                dropped += 2
        file.dropped("eth0", 3)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 5
    statistics = [told(one)["eth0"] for one in files]
    assert [one["delivered"] for one in statistics] == [len(readable(one)) for one in files]
    assert [one["received"] - one["dropped"] for one in statistics] == [one["delivered"] for one in statistics]
    assert sum(one["dropped"] for one in statistics) == dropped + 3


def test_what_is_dropped_when_a_file_has_its_size_is_told_by_the_next(tmp_path: Path) -> None:
    with capture.write(tmp_path / "feed.pcapng", rotate=4096) as file:
        file.write(packets(1)[0]._replace(payload=bytes(5000)))
        file.dropped("eth0", 7)
    first, second = sorted(tmp_path.iterdir())
    assert told(first) == {"eth0": {"received": 1, "dropped": 0, "delivered": 1}}
    assert told(second) == {"eth0": {"received": 7, "dropped": 7, "delivered": 0}}


def test_a_drop_by_an_unknown_interface_is_nobodys(path: Path) -> None:
    with capture.write(path) as file:
        for name in ("lo", "eth0", "eth1"):
            file.write(packets(1, interface=name)[0])
        file.dropped("eth0", 2)
        file.dropped("socket of a group", 5, "on lo or eth0", among=["lo", "eth0"])
    assert told(path) == {
        "lo": {"delivered": 1},
        "eth0": {"dropped": 2, "delivered": 1},
        "eth1": {"received": 1, "dropped": 0, "delivered": 1},
        "socket of a group": {"dropped": 5, "comment": "on lo or eth0"},
    }
    with capture.read(path) as reader:
        assert len(list(reader)) == 3
        assert reader.dropped == 7


def test_a_file_is_certain_again_after_one_that_was_not(tmp_path: Path) -> None:
    with capture.write(tmp_path / "feed.pcapng", rotate=4096) as file:
        file.dropped("socket of a group", 5, "on lo or eth0", among=["lo", "eth0"])
        for packet in packets(2):
            file.write(packet._replace(payload=bytes(5000)))
    first, second = map(told, sorted(tmp_path.iterdir()))
    assert first["eth0"] == {"delivered": 1}
    assert second == {
        "eth0": {"received": 1, "dropped": 0, "delivered": 1},
        "lo": {"received": 0, "dropped": 0, "delivered": 0},
        "socket of a group": {"dropped": 0},
    }


def test_the_memory_of_a_writer_does_not_grow_with_the_sources(path: Path) -> None:
    def peak(sources: int) -> int:
        tracemalloc.start()
        try:
            with capture.write(path) as file:
                for number in range(sources):
                    file.write(Packet(b"x", (f"10.1.{number >> 8}.{number & 255}", 7), GROUP, PORT, BEGIN))
                    if not number % 500:
                        file.flush()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(8000) < 1.5 * peak(2000)


@pytest.mark.parametrize(
    "options, word",
    [({"snaplen": 10}, "snaplen"), ({"rotate": 100}, "rotate"), ({"keep": 3}, "rotate"), ({"rotate": True}, "rotate")],
)
def test_wrong_arguments_of_a_file_are_named(path: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        capture.write(path, **options)
    assert not path.exists()


def test_a_flushed_file_opens_though_nobody_closed_it(path: Path) -> None:
    file = capture.write(path, comment="not closed")
    try:
        for count in range(1, 4):
            file.write(packets(count)[-1])
            file.flush()
            assert len(readable(path)) == count
    finally:
        file.close()


def test_an_old_file_stays_until_there_is_something_new(path: Path) -> None:
    path.write_bytes(b"an old recording, longer than what comes in its place" * 100)
    with pytest.raises(ZeroDivisionError), capture.write(path):
        raise ZeroDivisionError
    assert path.stat().st_size > 5000
    new = path.with_name("new.pcapng")
    with pytest.raises(ZeroDivisionError), capture.write(new):
        raise ZeroDivisionError
    assert not new.exists()
    with capture.write(path):
        pass
    assert path.stat().st_size > 5000
    assert readable(written(path, packets(1))) == [whole(packets(1)[0])]


@pytest.fixture
def small_disk() -> Callable[[int], None]:
    """A limit for the size of files, which stands for a full disk: the kernel writes what fits, then refuses."""
    tests = os.getpid()

    def limit(size: int) -> None:
        assert os.getpid() != tests, "the limit would hold for what pytest itself writes"
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


@pytest.mark.parametrize("room", range(5000, 5160, 20))
@helpers.alone
def test_a_full_disk_leaves_a_whole_file_with_its_statistics(
    path: Path, small_disk: Callable[[int], None], room: int
) -> None:
    what = packets(200)
    file = capture.write(path, comment="until the disk is full")
    file.dropped("eth0", 5)
    file.extend(*recorded_as(what), GROUP, PORT)
    small_disk(room)
    with pytest.raises(OSError, match="File too large") as caught:
        file.flush()
    assert file.closed
    file.close()
    with capture.read(path) as reader:
        found = list(reader)
        assert found == [whole(packet) for packet in what[: len(found)]]
        assert 20 < len(found) < 200
        assert reader.dropped == 5
    assert (file.packets, file.lost) == (len(found), 200 - len(found))
    assert file.bytes == sum(len(packet.payload) for packet in found)
    assert told(path)["eth0"] == {"received": 205, "dropped": 5, "delivered": len(found)}
    assert file.error is caught.value
    assert f"{len(found)} packets are in it" in caught.value.__notes__[0]
    assert path.stat().st_size > room - 300, "no more is cut off than has to be"


@pytest.mark.parametrize("old", [b"", b"an old recording"])
@helpers.alone
def test_a_disk_that_is_full_from_the_start_leaves_no_empty_file(
    path: Path, small_disk: Callable[[int], None], old: bytes
) -> None:
    if old:
        path.write_bytes(old)
    file = capture.write(path)
    file.write(packets(1)[0])
    small_disk(20)
    with pytest.raises(OSError, match="File too large") as caught:
        file.close()
    assert not path.exists()
    assert (file.packets, file.bytes, file.lost) == (0, 0, 1)
    assert "no room to begin the file; 0 packets are in those before it, 1 are not" in caught.value.__notes__[0]


@helpers.alone
def test_what_has_no_room_in_a_file_is_lost_with_all_that_came_with_it(
    tmp_path: Path, small_disk: Callable[[int], None]
) -> None:
    file = capture.write(tmp_path / "feed.pcapng", rotate=40_000)
    what = [packet._replace(payload=packet.payload + bytes(1000)) for packet in packets(64)]
    small_disk(30_000)
    with pytest.raises(OSError, match="File too large"):
        file.extend(*recorded_as(what), GROUP, PORT)
    assert file.closed
    found = payloads(file.path)
    assert found == [packet.payload for packet in what[: len(found)]]
    assert (file.packets, file.lost) == (len(found), 64 - len(found))
    assert file.bytes == sum(map(len, found))


def test_a_next_file_that_cannot_be_begun_is_told_with_what_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = capture.write(folder / "feed.pcapng", rotate=4096)
    file.write(packets(1)[0]._replace(payload=bytes(5000)))
    for one in folder.iterdir():
        one.unlink()
    folder.rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        file.extend(*recorded_as(packets(50)), GROUP, PORT)
    assert file.closed
    assert (file.packets, file.lost) == (1, 50)
    assert "cannot be begun; 1 packets are in those before it, 50 are not" in caught.value.__notes__[0]
    file.close()


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
def test_the_longer_records_of_an_old_tcpdump_are_read(order: str) -> None:
    frames = [ETHERNET + ipv4(udp(b"%02d" % number)) for number in range(40)]
    parts = [struct.pack(order + "IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 262144, 1)]
    for number, frame in enumerate(frames):
        more = struct.pack(order + "iHBx", number // 20, 0x0800, 2)  # interface, protocol, kind of packet
        parts.append(struct.pack(order + "IIII", 7, number, len(frame), len(frame)) + more + frame)
    data = b"".join(parts)
    with of(data) as reader:
        assert [(packet.payload, packet.timestamp) for packet in reader] == [
            (b"%02d" % number, 7 * SECOND + number * 1000) for number in range(40)
        ]
    with pytest.raises(CaptureError, match=f"offset {len(data) - len(parts[-1])}: cut short"):
        list(of(data[:-len(frames[-1]) - 1]))


def odd_files() -> dict[str, bytes]:
    """Return files whose lengths do not fit, though all bytes are there: frames of 46 bytes, 20 of them."""
    frames = [ETHERNET + ipv4(udp(b"%04d" % number)) for number in range(20)]
    beyond = pcap(frames, snaplen=40)
    records = b"".join(struct.pack("<IIII", 1, number, 46, 45) + frame for number, frame in enumerate(frames))
    return {
        "pcap beyond the snaplen": beyond,
        "pcap longer than it was": beyond[:16] + b"\0\0\4\0" + beyond[20:24] + records,
        "pcapng beyond the snaplen": section() + interface(snaplen=40) + b"".join(map(enhanced, frames)),
        "pcapng longer than it was": section() + interface() + b"".join(enhanced(one, original=45) for one in frames),
    }


@pytest.mark.parametrize("name", odd_files())
def test_frames_longer_than_the_file_says_are_read_and_counted(name: str) -> None:
    expected = [b"%04d" % number for number in range(20)]
    with of(odd_files()[name]) as reader:
        assert [packet.payload for packet in reader] == expected
        assert reader.counts == Counts(oversize=20)
    with of(odd_files()[name]) as reader:
        items = list(reader.runs())
        assert any(isinstance(item, Run) for item in items)
        assert reader.counts.oversize == 20


def test_packets_that_a_device_was_to_cut_have_no_length() -> None:
    four, six = ipv4(udp(b"offloaded")), ipv6(udp(b"offloaded"))
    frames = [ETHERNET + four[:2] + b"\0\0" + four[4:], MACS + b"\x86\xdd" + six[:4] + b"\0\0" + six[6:]]
    with of(pcap([frame + bytes(6) for frame in frames])) as reader:  # filled up, as short frames are
        assert [packet.payload for packet in reader] == [b"offloaded"] * 2
        assert reader.counts == Counts()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("unit", [1, 1000])
def test_pcap_is_read_in_both_orders_and_units(order: str, unit: int) -> None:
    with of(pcap([ETHERNET + ipv4(udp(b"x"))] * 3, order=order, unit=unit)) as reader:
        found = list(reader)
    assert [packet.timestamp for packet in found] == [
        1_700_000_000 * SECOND + (5000 + number) * unit for number in range(3)
    ]
    assert found[0]._replace(timestamp=0) == Packet(b"x", SOURCE, GROUP, PORT, 0, None, 9, 1)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("count", [1, 40])
def test_link_layers_are_known(name: str, count: int) -> None:
    link, before4, before6 = LINKS[name]
    frames = [before4 + ipv4(udp(b"four"))] * count + [before6 + ipv6(udp(b"six"))] * count
    for data in (pcap(frames, link), section() + interface(link) + b"".join(map(enhanced, frames))):
        with of(data) as reader:
            found = list(reader)
            assert [packet.payload for packet in found] == [b"four"] * count + [b"six"] * count
            assert found[-1][1:4] == (("fe80::5", SOURCE[1]), "ff02::77", PORT)
            assert reader.counts == capture.Counts()


@pytest.mark.parametrize("order", "<>")
def test_times_are_read_in_every_resolution(order: str) -> None:
    cases = [
        (b"", 1_700_000_000_123_456, 1_700_000_000_123_456_000),
        (option(9, b"\x09", order), 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (option(9, b"\x03", order), 1_700_000_000_123, 1_700_000_000_123_000_000),
        (option(9, b"\x0c", order), 123_456_789_999, 123_456_789),
        (option(9, b"\x0c", order), 123_456_789_000, 123_456_789),
        (option(9, b"\x8a", order), 1024 * 7 + 512, 7_500_000_000),
        (option(14, struct.pack(order + "q", -3), order), 5_000_000, 2_000_000_000),
    ]
    for options, ticks, expected in cases:
        frames = [enhanced(ETHERNET + ipv4(udp(b"x")), ticks, order)] * 20  # a run, too
        data = section(order) + interface(order=order, options=options) + b"".join(frames)
        with of(data) as reader:
            assert [packet.timestamp for packet in reader] == [expected] * 20


def test_sections_older_blocks_and_unknown_ones_are_read() -> None:
    frame = ETHERNET + ipv4(udp(b"x"))
    simple = block(3, struct.pack("<I", len(frame)) + frame)
    old = block(2, struct.pack("<HHIIII", 0, 0, 0, 5000, len(frame), len(frame)) + frame)
    names = interface(options=option(2, b"eth9"))
    data = section() + names + simple + block(0xBAD, b"something") + old + enhanced(frame)
    data += section(">") + interface(order=">", options=option(2, b"eth8", ">")) + enhanced(frame, 7000, ">")
    with of(data) as reader:
        assert [(packet.interface, packet.timestamp) for packet in reader] == [
            ("eth9", 0),
            ("eth9", 5_000_000),
            ("eth9", 5_000_000),
            ("eth8", 7_000_000),
        ]


@pytest.mark.parametrize("data", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
def test_compressed_files_are_read(data: bytes, path: Path) -> None:
    path.write_bytes(gzip.compress(data))
    assert payloads(path) == [b"one", b"two"]
    with capture.read(path) as reader:
        assert len(list(reader)) == len(list(reader)) == 2, "and a second time"


def _zstd() -> Any:
    return pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


@pytest.mark.parametrize("data", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
def test_files_compressed_by_zstd_are_read(data: bytes, path: Path) -> None:
    path.write_bytes(_zstd().compress(data))
    assert payloads(path) == [b"one", b"two"]
    path.write_bytes(_zstd().compress(data)[:-5])
    with pytest.raises(CaptureError, match="offset"):
        payloads(path)


def test_without_a_library_for_zstd_the_error_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    path.write_bytes(b"\x28\xb5\x2f\xfd rest")
    with pytest.raises(CaptureError, match="pip install"):
        payloads(path)


def test_a_pipe_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, PCAPNG)
    os.close(writing)
    with open(reading, "rb") as file, capture.read(file) as reader:
        assert len(list(reader)) == 2
        with pytest.raises(CaptureError, match="second time"):
            list(reader)


def test_what_is_no_udp_packet_is_counted() -> None:
    frames = [
        ETHERNET + ipv4(bytes(20), protocol=6),
        MACS + b"\x08\x06" + bytes(28),  # ARP
        ETHERNET + ipv4(udp(b"x"))[:10],
        ETHERNET + ipv4(udp(b"x"), options=b"\1\1\1\1")[:22],
        ETHERNET + ipv4(struct.pack(">HHHH", 1, 2, 3, 0)),  # a UDP length of 3
        ETHERNET + ipv4(struct.pack(">HHHH", 1, 2, 300, 0)),  # longer than IP is
        MACS + b"\x86\xdd" + ipv6(bytes(20), following=58),
        b"",
        b"short",
    ]
    for data in (pcap(frames), section() + interface() + b"".join(map(enhanced, frames))):
        with of(data) as reader:
            assert list(reader) == []
            assert reader.counts == capture.Counts(other=5, malformed=4)


def test_the_authentication_header_of_ipv4_is_stepped_over() -> None:
    inner = udp(b"within")
    ah = struct.pack(">BB22x", 17, 4)  # 24 bytes, with a check value of 12 (RFC 4302 section 2)
    around_tcp = struct.pack(">BB22x", 6, 4)
    # Several alike after each other, as they are read as a run where that is possible.
    frames = [ipv4(ah + udp(b"%06d" % number), protocol=51) for number in range(6)]
    frames += [ipv4(ah[:8], protocol=51), ipv4(around_tcp + inner, protocol=51)]
    for data in (pcap(frames, 101), section() + interface(101) + b"".join(map(enhanced, frames))):
        with of(data) as reader:
            assert [packet.payload for packet in reader] == [b"%06d" % number for number in range(6)]
            assert reader.counts == capture.Counts(other=1, malformed=1)


def test_headers_with_options_and_extensions_are_passed() -> None:
    inner = udp(b"x")
    hop = struct.pack(">BB6x", 60, 0)
    destinations = struct.pack(">BB14x", 51, 1)
    authentication = struct.pack(">BB14x", 17, 2)
    frames = [ipv4(inner, options=b"\1\1\1\0"), ipv6(hop + destinations + authentication + inner, following=0)]
    with of(pcap(frames, 101)) as reader:
        assert [packet.payload for packet in reader] == [b"x", b"x"]


# -- fragments


def fragments4(payload: bytes, size: int = 800, identity: int = 7) -> list[bytes]:
    body = udp(payload)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return [
        ETHERNET
        + ipv4(piece, offset=number * size // 8 | (0x2000 if number + 1 < len(pieces) else 0), identity=identity)
        for number, piece in enumerate(pieces)
    ]


def fragments6(payload: bytes, size: int = 800) -> list[bytes]:
    body = udp(payload)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    head = MACS + b"\x86\xdd"
    return [
        head + ipv6(struct.pack(">BBHI", 17, 0, number * size | (number + 1 < len(pieces)), 99) + piece, following=44)
        for number, piece in enumerate(pieces)
    ]


@pytest.mark.parametrize("make", [fragments4, fragments6])
def test_fragments_are_put_together_in_any_order(make: Callable[[bytes], list[bytes]]) -> None:
    payload = bytes(range(256)) * 12
    for order in itertools.permutations(make(payload)):
        with of(pcap([*order, order[0]])) as reader:
            assert [packet.payload for packet in reader] == [payload]
            # the one that came again is the beginning of another datagram, which has no end
            assert reader.counts == capture.Counts(fragments=1)


@pytest.mark.parametrize("make", [fragments4, fragments6])
def test_incomplete_datagrams_are_counted(make: Callable[[bytes], list[bytes]]) -> None:
    frames = make(bytes(3000))
    for missing in range(len(frames)):
        with of(pcap(frames[:missing] + frames[missing + 1 :])) as reader:
            assert list(reader) == []
            assert reader.counts == capture.Counts(fragments=len(frames) - 1)


def test_fragments_that_contradict_each_other_make_no_packet() -> None:
    first, second, third, last = fragments4(bytes(3000))
    other = first[:-4] + b"evil"
    beyond = ETHERNET + ipv4(bytes(800), offset=8191 | 0x2000)
    for frames in ([first, other, second, third, last], [first, last, last[:-1] + b"!"], [beyond, first]):
        with of(pcap(frames)) as reader:
            assert list(reader) == []
            assert reader.counts.fragments == len(frames) or reader.counts.fragments >= 2


def test_waiting_fragments_are_bounded() -> None:
    frames = [fragments4(bytes(3000), identity=number)[0] for number in range(500)]
    with of(pcap(frames)) as reader:
        iterator = iter(reader)
        assert list(iterator) == []
        assert reader.counts.fragments == 500
    # While reading no more than a few wait; the oldest are given up.
    frames += fragments4(bytes(3000), identity=0)[1:]
    with of(pcap(frames)) as reader:
        assert list(reader) == []


# -- files that are wrong

FAULTS = {
    "empty": (b"", 0, "empty"),
    "short": (b"\x0a", 0, "too short"),
    "text": (b"GET / HTTP/1.1\r\n", 0, "not a capture file"),
    "pcap header cut": (PCAP[:20], 0, "cut short"),
    "pcap version": (PCAP[:4] + b"\x09" + PCAP[5:], 4, "version"),
    "pcap record cut": (PCAP[:-1], len(PCAP) - 61, "cut short"),
    "pcap record header cut": (PCAP[:-55], len(PCAP) - 61, "cut short"),
    "pcap frame too long": (PCAP[:32] + b"\xff\xff\xff\x7f" + PCAP[36:], 32, "none has more than 262144"),
    "byte order mark": (PCAPNG[:8] + b"\1\2\3\4" + PCAPNG[12:], 8, "byte-order"),
    "pcapng version": (section(major=2), 12, "version 2.0"),
    "block length 0": (section() + struct.pack("<III", 1, 0, 0), 28, "0 bytes"),
    "block length 8": (section() + struct.pack("<III", 1, 8, 8), 28, "8 bytes"),
    "block length odd": (section() + struct.pack("<III", 1, 13, 13) + bytes(8), 28, "13 bytes"),
    "block length huge": (section() + struct.pack("<III", 1, 0xFFFFFFF0, 0), 28, "4294967280 bytes"),
    "block lengths differ": (section() + interface()[:-4] + b"\x18\0\0\0", 44, "not at its end"),
    "block cut": (PCAPNG[:-3], len(PCAPNG) - 80, "cut short"),
    "interface missing": (section() + enhanced(b"x"), 36, "interface 0, and only 0"),
    "interface too short": (section() + block(1, bytes(4)), 28, "too short"),
    "interfaces without end": (section() + interface() * 5000, 28 + 4096 * 20, "4096 interfaces"),
    "packet block too short": (section() + interface() + block(6, bytes(16)), 48, "28 bytes"),
    "packet longer than its block": (
        section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 99, 99) + b"x"),
        68,
        "99 bytes",
    ),
    "packet longer than any": (section() + interface() + enhanced(bytes(300_000)), 68, "none has more than 262144"),
    "option beyond its block": (section() + interface(options=b"\2\0\xff\0"), 44, "255 bytes"),
    "statistics of no interface": (section() + block(5, bytes(12)), 36, "interface 0"),
    "statistics too short": (section() + interface() + block(5, bytes(8)), 48, "too short"),
    "simple packet too short": (section() + interface() + block(3, b""), 48, "too short"),
    "simple packet too long": (section() + interface() + block(3, b"\x99\0\0\0"), 48, "more than the block"),
    "old packet too short": (section() + interface() + block(2, bytes(12)), 48, "too short"),
    "gzip cut": (gzip.compress(PCAPNG)[:-4], len(PCAPNG), "damaged or cut short"),
    "gzip damaged": (gzip.compress(PCAPNG * 50)[:40] + b"?" * 60, 0, "damaged or cut short"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_its_offset(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, offset, words = FAULTS[name]
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=f"(?s)offset {offset}:.*{words}"):
        payloads(path)
    # and nothing is opened, let alone sent
    monkeypatch.setattr(
        multicast.senders.multicaster, "open_sender", lambda *arguments, **options: pytest.fail("a socket was opened")
    )
    with pytest.raises(CaptureError, match=f"offset {offset}:"):
        Replayer(path, to="239.9.9.9")


@pytest.mark.parametrize("data", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
def test_a_file_cut_anywhere_gives_the_packets_before_the_cut(data: bytes) -> None:
    for length in range(len(data)):
        found = []
        try:
            for packet in of(data[:length]):
                found.append(packet.payload)
        except CaptureError:
            pass
        assert found == [b"one", b"two"][: len(found)]


def _long_feed() -> bytes:
    frames = [ETHERNET + ipv4(udp(bytes([number]) * 20), identity=number) for number in range(60)]
    frames[20:20] = [MACS + b"\x86\xdd" + ipv6(udp(b"six")), *fragments4(bytes(2000))]
    return (
        section()
        + interface(options=option(2, b"eth0") + option(9, b"\x09"))
        + b"".join(enhanced(frame, 10**18 + 1000 * number) for number, frame in enumerate(frames))
    )


FEEDS = {"pcapng": _long_feed(), "pcap": pcap([ETHERNET + ipv4(udp(bytes([n]) * 20), identity=n) for n in range(60)])}


def outcome(data: bytes) -> tuple[list[Packet], str, capture.Counts]:
    """Return what is read, how it ends, and what is counted."""
    reader = of(data)
    found = []
    try:
        for packet in reader:
            found.append(packet)
    except CaptureError as error:
        return found, str(error), reader.counts
    return found, "", reader.counts


@given(st.binary(max_size=200))
def test_whatever_the_bytes_nothing_but_a_capture_error_is_raised(data: bytes) -> None:
    for start in (
        b"",
        PCAP[:24],
        section(),
        section() + interface(),
        section(">") + interface(101, ">"),
        b"\x1f\x8b\x08",
    ):
        outcome(start + data)


@given(
    st.sampled_from(sorted(FEEDS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_a_damaged_file_is_read_alike_with_and_without_runs(name: str, damage: list[tuple[float, bytes]]) -> None:
    data = bytearray(FEEDS[name])
    for where, replacement in damage:
        at = int(where * len(data))
        data[at : at + len(replacement)] = replacement
    fast = outcome(bytes(data))
    shortest, runs._SHORTEST = runs._SHORTEST, 1 << 30
    try:
        plain = outcome(bytes(data))
    finally:
        runs._SHORTEST = shortest
    assert fast == plain


@settings(max_examples=40)
@given(groups=st.lists(st.tuples(st.integers(1, 30), ANY_PACKET), max_size=6))
def test_alternating_and_repeated_packets_are_read_as_they_are(scratch: Path, groups: list[tuple[int, Packet]]) -> None:
    what = [packet._replace(timestamp=number + 1) for count, packet in groups for number in range(count)]
    scratch.unlink(missing_ok=True)
    assert readable(written(scratch, what)) == what


class Endless(io.RawIOBase):
    """A capture file of many bytes, of which none are kept."""

    def __init__(self, head: bytes, repeated: bytes, times: int) -> None:
        self._head = head
        self._repeated = repeated * 64
        self._left = times // 64
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            if self._head:
                self._rest, self._head = self._head, b""
            elif self._left:
                self._left -= 1
                self._rest = self._repeated
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("times", [1_600, 6_400])
def test_memory_does_not_grow_with_the_file(times: int) -> None:
    first = fragments4(bytes(1500))[0]
    endless = Endless(section() + interface(), enhanced(ETHERNET + ipv4(udp(bytes(1000)))) + enhanced(first), times)
    tracemalloc.start()
    try:
        count = sum(1 for _ in capture.Reader(io.BufferedReader(endless)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == times // 64 * 64
    assert peak < 4_000_000


def test_a_bomb_is_unpacked_piece_by_piece(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        file.write(section() + interface())
        for _ in range(40):
            file.write(block(0xBAD, bytes(1_000_000)))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        assert payloads(path) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_a_survey_says_what_a_file_holds(path: Path) -> None:
    what = [*packets(30), *packets(10, group="ff02::5", source=("fe80::1", 9)), *packets(20, port=9)]
    summary = capture.survey(written(path, what))
    assert (summary.packets, summary.bytes) == (60, sum(len(packet.payload) for packet in what))
    assert summary.groups == {(GROUP, PORT): 30, ("ff02::5", PORT): 10, (GROUP, 9): 20}
    assert (summary.first, summary.last) == (BEGIN, BEGIN + 19_000)
    assert summary.duration == pytest.approx(19e-6)


# -- other programs ------------------------------------------------------------------------------------------------


def fields(path: Path, *names: str) -> list[list[str]]:
    """Return what tshark says of each packet."""
    command = ["tshark", "-n", "-r", str(path), "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    command += ["-T", "fields", *(word for name in names for word in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def infos(path: Path) -> dict[str, str]:
    """Return what capinfos says of a file."""
    done = subprocess.run(["capinfos", "-M", str(path)], capture_output=True, text=True, timeout=30, check=True)
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in done.stdout.splitlines())}


def mixed(path: Path) -> list[Packet]:
    what = [*packets(5), *packets(5, interface="lo", group="ff02::5", source=("fe80::1", 9)), *packets(2)]
    with capture.write(path, comment="two groups") as file:
        for packet in what:
            file.write(packet)
        file.dropped("eth0", 3)
        file.dropped("socket of a group", 2, "by one of both", among=["eth0", "lo"])
    return what


@pytest.mark.needs_program("tshark", "capinfos")
def test_wireshark_reads_what_is_written(path: Path) -> None:
    what = mixed(path)
    names = ("frame.time_epoch", "frame.interface_name", "ip.checksum.status", "udp.checksum.status", "udp.payload")
    told = fields(path, *names)
    assert [(name, status, payload) for _, name, _, status, payload in told] == [
        (packet.interface, "1", packet.payload.hex()) for packet in what
    ]
    assert {status for _, name, status, _, _ in told if name == "eth0"} == {"1"}
    assert [when.replace(".", "") for when, *_ in told] == [str(packet.timestamp) for packet in what]
    facts = infos(path)
    assert facts["Number of packets"] == "12"
    assert facts["File timestamp precision"] == "nanoseconds (9)"
    assert facts["Capture comment"] == "two groups"
    assert facts["Number of interfaces in file"] == "3", "with the one that stands for drops on either"


@pytest.mark.needs_root  # root of a user namespace cannot become the user that tcpdump reads as
@pytest.mark.needs_program("tcpdump")
def test_tcpdump_reads_what_is_written(path: Path) -> None:
    mixed(path)
    done = subprocess.run(["tcpdump", "-nvr", str(path)], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.count("udp sum ok") == 12 or done.stdout.count("UDP, length") == 12
    assert "bad" not in done.stdout


@pytest.mark.needs_program("editcap")
@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "modpcap", "pcapng"])
def test_what_wireshark_converts_is_read(path: Path, form: str) -> None:
    what = mixed(path)
    again = path.with_name("again")
    subprocess.run(["editcap", "-F", form, str(path), str(again)], timeout=30, check=True)
    unit = 1000 if form in ("pcap", "modpcap") else 1
    assert [packet[:5] for packet in readable(again)] == [
        (*packet[:4], packet.timestamp // unit * unit) for packet in what
    ]


def test_lengths_of_packets_fit_their_link(path: Path) -> None:
    # One that is shorter than the least frame of Ethernet has padding after it in captures of a wire.
    with of(pcap([(ETHERNET + ipv4(udp(b"x"))).ljust(60, b"\0")] * 20)) as reader:
        assert [packet.payload for packet in reader] == [b"x"] * 20


class Repeating(Multicaster):
    def __init__(self, packet: bytes, poller: Poller) -> None:
        # On the sending host a burst is captured whole, and late packets are due together.
        super().__init__(GROUP, PORT, 0, interval=0.02, offload=False, poller=poller)
        self._packet = packet

    def __iter__(self) -> Iterator[bytes]:
        return itertools.repeat(self._packet)


def captured(command: list[str], packet: bytes) -> None:
    """Run a program that captures until it has enough, while `packet` is sent again and again."""
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process,
        Poller() as own,
    ):
        try:
            Repeating(packet, own)
            settle(own, lambda: process.poll() is not None)
        finally:
            process.kill()
            said = process.communicate()[1]
    if process.returncode:
        pytest.skip(f"{command[0]} does not capture here: {said}")


def tcpdump(path: Path, *words: str) -> list[str]:
    owner = ["-Z", "root"] if os.geteuid() == 0 else []
    return ["tcpdump", *owner, "-n", "-U", "-w", str(path), *words]


@pytest.mark.needs_program("tcpdump")
@pytest.mark.parametrize(
    "options", [["-i", "lo"], ["-i", "any"], ["-i", "lo", "--time-stamp-precision=nano"]], ids=" ".join
)
def test_what_tcpdump_captures_is_read(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "seen.pcap"
    before = time.time_ns()
    captured(tcpdump(path, *options, "-c", "6", f"udp port {PORT}"), b"again")
    found = readable(path)
    assert {(packet.payload, packet.source[0], *packet[2:4]) for packet in found} == {
        (b"again", "127.0.0.1", GROUP, PORT)
    }
    assert len(found) == 6
    assert all(before - 1000 <= packet.timestamp <= time.time_ns() for packet in found)


@pytest.mark.needs_program("tcpdump", "ip")
def test_fragments_that_tcpdump_captures_are_put_together(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcap"
    big = bytes(range(250)) * 16
    before = Path("/sys/class/net/lo/mtu").read_text().strip()
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1500"], check=True)
    try:
        # As many fragments as there are in two datagrams; a third may have begun before.
        captured(tcpdump(path, "-i", "lo", "-c", "9", "ip[6:2] & 0x3fff != 0"), big)
    finally:
        subprocess.run(["ip", "link", "set", "lo", "mtu", before], check=True)
    found = payloads(path)
    assert len(found) >= 2
    assert set(found) == {big}


@pytest.mark.needs_program("dumpcap")
def test_what_dumpcap_captures_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    captured(["dumpcap", "-i", "lo", "-c", "3", "-f", f"udp port {PORT}", "-w", str(path)], b"again")
    with capture.read(path) as reader:
        assert [(packet.payload, packet.interface) for packet in reader] == [(b"again", "lo")] * 3


# -- recording -----------------------------------------------------------------------------------------------------


def test_a_recorder_writes_what_is_sent(path: Path, poller: Poller) -> None:
    recorder = Recorder(path, ip=GROUP, port=PORT, interface="lo", poller=poller)
    before = time.time_ns()
    assert sendto([f"packet {number}" for number in range(500)], GROUP, PORT, ttl=0, source_port=40112) == 500
    settle(poller, lambda: recorder.statistics().delivered == 500)
    recorder.close()
    with capture.read(path) as reader:
        found = list(reader)
        assert reader.comments == [f"{GROUP}:{PORT} joined on lo"]
        assert reader.dropped == 0
    assert [packet.payload for packet in found] == [f"packet {number}".encode() for number in range(500)]
    assert {packet[1:4] + packet[5:7] for packet in found} == {(("127.0.0.1", 40112), GROUP, PORT, "lo", 0)}
    # In no certain order: the kernel may have given the first of them that of their reading.
    now = time.time_ns()
    assert all(before <= packet.timestamp <= now for packet in found)


def test_recorders_of_several_groups_share_a_file(path: Path, poller: Poller) -> None:
    with capture.write(path) as file:
        options: dict[str, Any] = {"port": PORT, "interface": "lo", "poller": poller}
        four = Recorder(file, ip=GROUP, **options)
        six = Recorder(file, ip="ff02::77", **options)
        for number in range(3):
            sendto(f"four {number}", GROUP, PORT, ttl=0)
            sendto(f"six {number}", "ff02::77", PORT, interface="lo")
        settle(poller, lambda: file.packets == 6)
        four.close()
        assert not file.closed
        six.close()
    assert sorted(packet.payload for packet in readable(path)) == sorted(
        f"{name} {number}".encode() for name in ("four", "six") for number in range(3)
    )
    with capture.read(path) as reader:
        list(reader)
        assert len(reader.comments) == 2


def test_recording_ends_at_its_limit(path: Path, poller: Poller) -> None:
    with capture.write(path) as file:
        first = Recorder(file, ip=GROUP, port=PORT, interface="lo", limit=70, poller=poller)
        other = Recorder(file, ip="239.7.1.2", port=PORT, interface="lo", limit=70, poller=poller)
        sendto([b"x"] * 100, GROUP, PORT, ttl=0)
        settle(poller, lambda: first.closed and other.closed)
        assert first.complete
    assert len(readable(path)) == 70


def test_only_what_passes_the_filter_is_recorded(path: Path, poller: Poller) -> None:
    recorder = Recorder(path, "keep", ip=GROUP, port=PORT, interface="lo", poller=poller)
    sendto(["keep 1", "drop 1", "keep 2"], GROUP, PORT, ttl=0)
    settle(poller, lambda: recorder.file.packets == 2)
    recorder.close()
    assert payloads(path) == [b"keep 1", b"keep 2"]
    assert recorder.statistics().filtered == 1


def test_what_the_filter_refuses_is_not_taken_for_dropped_when_others_drop(path: Path, poller: Poller) -> None:
    class Idle(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: Address) -> None:
            pass

    recorder = Recorder(path, "keep", ip=GROUP, port=PORT, interface="lo", poller=poller)
    elsewhere = Poller()  # nobody polls it
    with elsewhere, Idle(ip=TWO, port=PORT, interface="lo", rcvbuf=2304, poller=elsewhere) as idle:
        sendto([b"drop"] * 200, GROUP, PORT, ttl=0)
        sendto([bytes(1000)] * 300, TWO, PORT, ttl=0)
        recorder.close()
        assert idle.statistics().dropped > 200
    counted = recorder.statistics()
    assert (counted.filtered, counted.dropped) == (200, 0)
    assert told(path) == {"lo": {"received": 0, "dropped": 0, "delivered": 0}}


def test_drops_stand_at_the_only_interface_or_at_none(path: Path) -> None:
    def record(**options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
        with testing.Network() as net:
            recorder = Recorder(path, ip=GROUP, port=PORT, rcvbuf=10_000, **options)
            sendto([b"x"] * 100, GROUP, PORT, interface="eth0")
            net.advance(2)
            recorder.close()
        return recorder.statistics().delivered, told(path)

    kept, found = record(interface="eth0")
    assert found == {"eth0": {"received": 100, "dropped": 100 - kept, "delivered": kept}}
    kept, found = record()
    socket_name = f"socket of {GROUP}:{PORT}"
    assert "joined on lo, eth0;" in found[socket_name].pop("comment")
    assert found == {"lo": {"delivered": 0}, "eth0": {"delivered": kept}, socket_name: {"dropped": 100 - kept}}


def test_drops_may_belong_to_an_interface_that_is_gone(path: Path) -> None:
    with testing.Network() as net:
        recorder = Recorder(path, ip=GROUP, port=PORT, interface="eth0", rcvbuf=10_000)
        recorder.interfaces, before = (), recorder.interfaces
        sendto([b"x"] * 100, GROUP, PORT, interface="eth0")
        net.advance(2)
        recorder.interfaces = before
        recorder.close()
    assert told(path)["eth0"]["dropped"] > 0


def test_recorders_of_a_file_that_has_ended_read_no_more(path: Path, poller: Poller) -> None:
    with capture.write(path) as file:
        recorder = Recorder(file, ip=GROUP, port=PORT, interface="lo", poller=poller)
        poller.poll(0)
        file.close()
        sendto([b"x"] * 10, GROUP, PORT, ttl=0)
        settle(poller, lambda: recorder.closed)
    assert recorder.statistics().packets == 0


def test_closing_takes_what_the_kernel_has(path: Path, poller: Poller) -> None:
    recorder = Recorder(path, ip=GROUP, port=PORT, interface="lo", poller=poller)
    sendto([b"x"] * 200, GROUP, PORT, ttl=0)
    recorder.close()
    recorder.close()
    assert len(readable(path)) == 200


def test_closing_takes_what_the_kernel_has_also_when_the_clock_was_set_back(
    path: Path, poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(path, ip=GROUP, port=PORT, interface="lo", poller=poller)
    sendto([b"x"] * 200, GROUP, PORT, ttl=0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    recorder.close()
    monkeypatch.undo()
    assert len(readable(path)) == 200


def test_closing_ends_although_packets_go_on_coming(path: Path, poller: Poller) -> None:
    recorder = Recorder(path, ip=GROUP, port=PORT, interface="lo", poller=poller)
    closed = threading.Event()

    def flood() -> int:
        return sendto((b"x" for _ in range(2_000_000) if not closed.is_set()), GROUP, PORT, ttl=0)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(flood)
        settle(poller, lambda: recorder.statistics().packets > 1000)
        recorder.close()
        closed.set()
    assert 1000 < len(readable(path)) <= sent.result() < 2_000_000


def test_every_packet_is_recorded_or_counted_as_dropped(path: Path, poller: Poller) -> None:
    recorder = Recorder(path, ip=GROUP, port=PORT, interface="lo", rcvbuf=20_000, poller=poller)
    for _ in range(10):
        sendto([b"x"] * 300, GROUP, PORT, ttl=0)
        poller.poll(0)
    recorder.close()
    with capture.read(path) as reader:
        recorded = sum(1 for _ in reader)
        assert recorded + reader.dropped == 3000
        assert 0 < recorded < 3000
    counted = recorder.statistics()
    assert (counted.delivered, counted.dropped) == (recorded, 3000 - recorded)


def test_the_file_is_brought_up_to_date_every_second(path: Path) -> None:
    with testing.Network() as net:
        recorder = Recorder(path, ip=GROUP, port=PORT)
        net.advance(0)
        assert readable(path) == [], "it opens from the first moment"
        for second in range(1, 5):
            sendto(f"in second {second}", GROUP, PORT)
            net.advance(1)
            assert len(readable(path)) == second, "it has all that is older than a second"
        recorder.close()
        with capture.read(path) as reader:
            assert [packet.timestamp for packet in reader] == [
                testing._EPOCH * SECOND + second * SECOND for second in range(4)
            ]
            assert reader.comments == [f"{GROUP}:{PORT} joined on lo, eth0"]


def test_drops_are_in_the_file_before_it_is_closed(path: Path) -> None:
    with testing.Network() as net:
        recorder = Recorder(path, ip=GROUP, port=PORT, rcvbuf=10_000)
        sendto([b"x"] * 100, GROUP, PORT)
        net.advance(2)
        with capture.read(path) as reader:
            recorded = len(list(reader))
            assert 0 < recorded < 100
            assert reader.dropped == 100 - recorded
        recorder.close()


@helpers.alone
def test_a_full_disk_ends_the_recording_with_one_error(
    path: Path, poller: Poller, small_disk: Callable[[int], None]
) -> None:
    recorder = Recorder(path, ip=GROUP, port=PORT, interface="lo", poller=poller)
    poller.poll()
    sendto([b"x" * 100] * 200, GROUP, PORT, ttl=0)
    settle(poller, lambda: recorder.file.packets == 200)
    small_disk(5000)
    with pytest.raises(OSError, match="File too large"):
        settle(poller, lambda: recorder.closed)
    assert recorder.closed
    poller.poll()
    assert len(readable(path)) == recorder.file.packets
    assert recorder.file.packets + recorder.file.lost == 200


@helpers.alone
def test_an_error_of_the_disk_goes_to_the_handler_of_a_subclass(
    path: Path, poller: Poller, small_disk: Callable[[int], None]
) -> None:
    class Careful(Recorder):
        def handle_error(self, error: Exception) -> None:
            seen.append(error)

    seen: list[Exception] = []
    recorder = Careful(path, ip=GROUP, port=PORT, interface="lo", poller=poller)
    sendto([b"x" * 100] * 200, GROUP, PORT, ttl=0)
    settle(poller, lambda: recorder.file.packets == 200)
    small_disk(5000)
    settle(poller, lambda: recorder.closed)
    assert [type(error) for error in seen] == [OSError]


def test_a_recorder_that_cannot_begin_leaves_nothing(path: Path, poller: Poller) -> None:
    path.write_bytes(b"an old recording")
    with pytest.raises(InterfaceError):
        Recorder(path, interface="eth7", poller=poller)
    with pytest.raises(ArgumentError, match="limit"):
        Recorder(path, interface="lo", limit=0, poller=poller)
    assert path.read_bytes() == b"an old recording"
    with pytest.raises(FileNotFoundError):
        Recorder(path.parent / "no such folder" / "x", interface="lo", poller=poller)
    with pytest.raises(ArgumentError, match="rotate"):
        Recorder(path, interface="lo", rotate=1, poller=poller)
    assert len(poller) == 0


# -- replaying -----------------------------------------------------------------------------------------------------


class Heard(multicast.MulticastListener):
    """Keeps when, where and what."""

    def __init__(self, into: list[tuple[int, str, int, bytes]], ip: str, port: int = PORT) -> None:
        super().__init__(None, ip, port, 65535, details=True, rcvbuf=1 << 24)
        self._into = into

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        assert addr.timestamp is not None
        assert addr.group is not None
        self._into.append((addr.timestamp - testing._EPOCH * SECOND, addr.group, self.group.port, packet))


def played(
    net: testing.Network, path: Any, groups: Iterable[tuple[str, int]], seconds: float = 100, **options: Any
) -> tuple[list[tuple[int, str, int, bytes]], Replayer]:
    """Return what is heard of a replay: nanoseconds from its start, group, port, payload."""
    heard: list[tuple[int, str, int, bytes]] = []
    listeners = [Heard(heard, *group) for group in groups]
    start = round(net.time() * SECOND)
    replayer = Replayer(path, **options)
    net.advance(seconds)
    for listener in listeners:
        listener.close()
    return [(when - start, *rest) for when, *rest in heard], replayer  # type: ignore[misc]


TWO = "239.9.9.9"


@pytest.fixture
def net() -> Iterator[testing.Network]:
    with testing.Network() as net:
        yield net


def test_packets_are_sent_when_they_were_recorded(net: testing.Network, path: Path) -> None:
    what = [
        packet._replace(timestamp=BEGIN + when)
        for packet, when in zip(packets(5), [0, 7, 10**8, 10**9, 10**10], strict=True)
    ]
    heard, replayer = played(net, written(path, what), [(TWO, PORT)], to=TWO)
    assert [packet for *_, packet in heard] == [packet.payload for packet in what]
    assert [when for when, *_ in heard] == pytest.approx([0, 0, 10**8, 10**9, 10**10], abs=10_000)
    assert replayer.closed
    assert replayer.rounds == 1
    assert replayer.timing.percentile(99) < 20e-6


def test_speed_and_part_can_be_chosen(net: testing.Network, path: Path) -> None:
    written(path, packets(10, SECOND))
    heard, _ = played(net, path, [(TWO, PORT)], to=TWO, speed=4)
    assert [when for when, *_ in heard] == pytest.approx([number * SECOND / 4 for number in range(10)], abs=10_000)
    heard, _ = played(net, path, [(TWO, PORT)], to=TWO, start=3, end=6)
    assert [packet for *_, packet in heard] == [b"packet 3", b"packet 4", b"packet 5"]
    assert [when for when, *_ in heard] == pytest.approx([0, SECOND, 2 * SECOND], abs=10_000)
    heard, _ = played(net, path, [(TWO, PORT)], to=TWO, start=8, speed=math.inf)
    assert [packet for *_, packet in heard] == [b"packet 8", b"packet 9"]


def test_a_loop_keeps_the_beat(net: testing.Network, path: Path) -> None:
    written(path, packets(3, SECOND))
    heard, replayer = played(net, path, [(TWO, PORT)], 8.5, to=TWO, loop=True)
    assert [when for when, *_ in heard] == pytest.approx([number * SECOND for number in range(9)], abs=20_000)
    assert [packet for *_, packet in heard] == [f"packet {number}".encode() for number in (0, 1, 2) * 3]
    assert not replayer.closed
    assert replayer.rounds == 3
    replayer.close()


def test_a_loop_of_one_packet_has_a_second_between(net: testing.Network, path: Path) -> None:
    heard, replayer = played(net, written(path, packets(1)), [(TWO, PORT)], 3.5, to=TWO, loop=True)
    assert [when for when, *_ in heard] == pytest.approx([0, SECOND, 2 * SECOND, 3 * SECOND], abs=20_000)
    replayer.close()


def test_time_does_not_go_back(net: testing.Network, path: Path) -> None:
    times = [0, 5 * SECOND, 1 * SECOND, 6 * SECOND]
    what = [packet._replace(timestamp=BEGIN + when) for packet, when in zip(packets(4), times, strict=True)]
    heard, replayer = played(net, written(path, what), [(TWO, PORT)], to=TWO)
    assert [packet for *_, packet in heard] == [packet.payload for packet in what]
    assert [when for when, *_ in heard] == pytest.approx([0, 5 * SECOND, 5 * SECOND, 6 * SECOND], abs=10_000)
    assert replayer.timing.max < 20e-6, "nothing is late: it was sent when it was due"


def test_a_clock_that_was_set_back_at_the_end_does_not_shorten_a_loop(net: testing.Network, path: Path) -> None:
    times = [0, 2 * SECOND, 4 * SECOND, 1 * SECOND]
    what = [packet._replace(timestamp=BEGIN + when) for packet, when in zip(packets(4), times, strict=True)]
    heard, replayer = played(net, written(path, what), [(TWO, PORT)], 12, to=TWO, loop=True)
    replayer.close()
    once = [0, 2 * SECOND, 4 * SECOND, 4 * SECOND]
    pause = 4 * SECOND // 3  # as between others on the average
    assert [when for when, *_ in heard] == pytest.approx(
        [*once, *(4 * SECOND + pause + when for when in once), 2 * (4 * SECOND + pause)], abs=20_000
    )


@pytest.fixture
def three(path: Path) -> Path:
    """Packets of three groups in turn, and one that went to a single host."""
    what = [
        packets(1, group=group, port=port, source=source)[0]._replace(payload=f"{group} {port}".encode())
        for _ in range(3)
        for group, port, source in (
            (GROUP, PORT, SOURCE),
            ("239.7.1.2", PORT, SOURCE),
            ("ff02::77", 9, ("fe80::1", 1)),
            ("10.0.0.9", PORT, SOURCE),
        )
    ]
    return written(path, what)


ALL = [(GROUP, PORT), ("239.7.1.2", PORT), ("ff02::77%eth0", 9), (TWO, PORT), (TWO, 9), (TWO, 1234)]


@pytest.mark.parametrize("speed", [1, math.inf])
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"to": TWO}, [f"{TWO}:{PORT}", f"{TWO}:{PORT}", f"{TWO}:9"] * 3),
        ({"to": f"{TWO}:1234"}, [f"{TWO}:1234"] * 9),
        ({"as_recorded": True}, [f"{GROUP}:{PORT}", f"239.7.1.2:{PORT}", "ff02::77:9"] * 3),
        ({"as_recorded": True, "only": GROUP}, [f"{GROUP}:{PORT}"] * 3),
        ({"as_recorded": True, "only": [f"{GROUP}:1", "[ff02::77]:9"]}, ["ff02::77:9"] * 3),
        ({"map": {GROUP: TWO}}, [f"{TWO}:{PORT}"] * 3),
        ({"map": {f"{GROUP}:{PORT}": f"{TWO}:1234", "10.0.0.9": TWO}}, [f"{TWO}:1234", f"{TWO}:{PORT}"] * 3),
        ({"map": {GROUP: TWO}, "as_recorded": True}, [f"{TWO}:{PORT}", f"239.7.1.2:{PORT}", "ff02::77:9"] * 3),
    ],
)
def test_packets_go_where_it_was_said_and_nowhere_else(
    net: testing.Network, three: Path, options: dict[str, Any], expected: list[str], speed: float
) -> None:
    heard, replayer = played(net, three, ALL, interface="eth0", speed=speed, **options)
    assert [f"{group}:{port}" for _, group, port, _ in heard] == expected
    assert net.traffic.sent == len(expected), "what nobody heard counts too"
    assert replayer.statistics().packets == len(expected)


def test_without_a_word_where_to_nothing_is_read_nor_sent(three: Path) -> None:
    with pytest.raises(ArgumentError, match="say where"):
        Replayer(three)
    with pytest.raises(ArgumentError, match="say where"):
        Replayer(three.with_name("there is no such file"), only=GROUP)


def piped(data: bytes) -> BinaryIO:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return open(reading, "rb")


def test_what_comes_out_of_a_pipe_is_replayed(net: testing.Network, path: Path) -> None:
    file = piped(written(path, packets(3)).read_bytes())
    heard, _ = played(net, file, [(TWO, PORT)], to=TWO)
    assert [packet for *_, packet in heard] == [b"packet 0", b"packet 1", b"packet 2"]
    assert file.closed


def test_several_files_are_replayed_as_one(net: testing.Network, tmp_path: Path) -> None:
    what = packets(6, SECOND)
    paths = [written(tmp_path / f"{number}.pcapng", what[2 * number : 2 * number + 2]) for number in range(3)]
    heard, replayer = played(net, paths, [(TWO, PORT)], to=TWO)
    assert [packet for *_, packet in heard] == [packet.payload for packet in what]
    assert [when for when, *_ in heard] == pytest.approx([number * SECOND for number in range(6)], abs=20_000)
    assert (replayer.summary.packets, replayer.summary.duration) == (6, 5)


def test_a_file_that_ends_too_early_is_replayed_as_far_as_it_goes(net: testing.Network, path: Path) -> None:
    data = written(path, packets(3)).read_bytes()
    path.write_bytes(pcap([ETHERNET + ipv4(udp(b"%d" % number)) for number in range(3)])[:-5])
    with pytest.raises(CaptureError, match="cut short"):
        Replayer(path, to=TWO)
    heard, replayer = played(net, path, [(TWO, PORT)], to=TWO, partial=True)
    assert [packet for *_, packet in heard] == [b"0", b"1"]
    assert "cut short" in (replayer.summary.cut or "")
    for cut in (data[:-50], gzip.compress(data)[:-4]):
        path.write_bytes(cut)
        with capture.read(path, partial=True) as reader:
            assert [packet.payload for packet in reader] == [b"packet 0", b"packet 1", b"packet 2"]
            assert "cut short" in (reader.cut or "")
    path.write_bytes(PCAPNG + b"nonsense" * 4)
    with capture.read(path, partial=True) as reader, pytest.raises(CaptureError):
        list(reader)


def test_a_replay_of_nothing_is_an_error(three: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no packet .* 239\.7\.1\.1:7101"):
        Replayer(three, map={"239.1.1.1": TWO})


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with more groups than are told apart."""
    path = tmp_path_factory.mktemp("crowded") / "crowded.pcapng"
    with capture.write(path) as file:
        for number in range(4200):
            group = f"239.{number >> 8}.{number & 255}.7"
            file.write(Packet(b"%d" % number, ("10.0.0.5", 7000), group, 7100, 10**18 + number))
    return path


@pytest.mark.parametrize("options", [
    {"only": "239.16.100.7", "to": TWO},
    {"map": {"239.16.100.7": TWO}},
    {"map": {"239.16.100.7:7100": TWO}, "as_recorded": True, "only": ["239.16.100.7"]},
])
def test_a_group_that_comes_late_in_a_file_with_very_many_is_sent_too(crowded: Path, options: dict[str, Any]) -> None:
    with Replayer(crowded, speed=math.inf, ttl=0, **options) as replayer:
        assert str(replayer.group) == f"{TWO}:7100"
        assert list(replayer) == [b"4196"]
        assert (len(replayer.summary.groups), replayer.summary.others) == (4096, 104)


def test_the_memory_of_a_replay_does_not_grow_with_the_groups(path: Path) -> None:
    def peak(groups: int) -> int:
        with capture.write(path) as file:
            for number in range(groups):
                group = f"239.{number >> 12}.{number >> 4 & 255}.{number & 15}"
                file.write(Packet(b"x", ("10.0.0.5", 7000), group, 7100, BEGIN + number))
        with Replayer(path, to=TWO, only="239.0.0.1", speed=math.inf, ttl=0) as replayer:
            tracemalloc.start()
            try:
                assert list(replayer) == [b"x"]
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert peak(8_192) < 1.5 * peak(4096)


def test_what_is_said_of_the_groups_of_a_file_does_not_hide_that_there_are_more(crowded: Path, three: Path) -> None:
    with pytest.raises(ArgumentError, match=r"239\.0\.9\.7:7100 and more than 4086 others$"):
        Replayer(crowded, map={"239.1.1.1": TWO})
    assert _contents(capture.survey(crowded)).endswith(" and more than 4093 others")
    assert capture.survey(three).others == 0


def test_a_file_without_udp_packets_is_said_to_be_one(path: Path) -> None:
    written(path, [])
    with pytest.raises(ArgumentError, match=r"no packet .* would be sent; it holds no whole UDP packet$"):
        Replayer(path, to=TWO)
    path.write_bytes(pcap([b"who knows"], link=999))
    with pytest.raises(ArgumentError, match="it holds 1 frames of link type 999, which cannot be read"):
        Replayer(path, to=TWO)
    path.write_bytes(pcap([b"beacon"] * 2, link=127))
    with pytest.raises(ArgumentError, match=r"2 frames of link type 127 \(IEEE 802.11 with radiotap\)"):
        Replayer(path, to=TWO)
    path.write_bytes(pcap([ETHERNET[:12] + b"\x08\x06" + bytes(28)]))
    with pytest.raises(ArgumentError, match="it holds no whole UDP packet, but 1 of other kinds"):
        Replayer(path, to=TWO)


@pytest.mark.parametrize(
    "options", [{"speed": 0}, {"speed": math.nan}, {"start": -1}, {"start": 5, "end": 5}, {"ttl": 256}]
)
def test_wrong_arguments_of_a_replay_are_refused(three: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Replayer(three, to=TWO, **options)


def test_packets_cut_short_are_counted_and_not_sent(net: testing.Network, path: Path) -> None:
    written(path, [*packets(2), Packet(bytes(500), SOURCE, GROUP, PORT, BEGIN + 5000)], snaplen=100)
    for speed in (1, math.inf):
        heard, replayer = played(net, path, [(TWO, PORT)], to=TWO, speed=speed)
        assert [packet for *_, packet in heard] == [b"packet 0", b"packet 1"]
        assert replayer.unsendable == 1


def test_as_fast_as_can_be_means_at_once_and_in_order(net: testing.Network, path: Path) -> None:
    what = packets(1000, SECOND)
    heard, replayer = played(net, written(path, what), [(TWO, PORT)], 0, to=TWO, speed=math.inf)
    assert [packet for *_, packet in heard] == [packet.payload for packet in what]
    assert {when for when, *_ in heard} == {0}
    assert replayer.closed


def test_a_file_is_checked_again_when_it_has_changed(path: Path) -> None:
    written(path, packets(100))
    with capture.read(path) as reader:
        assert len(list(reader)) == 100
        data = bytearray(path.read_bytes())
        where = data.index(b"packet 50") - 42 + 23  # the protocol in the IP header
        assert data[where] == 17
        data[where] = 6
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
        assert len(list(reader)) == 99
        assert reader.counts.other == 1
        data[where] = 17
        path.write_bytes(data)
        os.utime(path, ns=(2, 2))
        assert len(list(reader)) == len(list(reader)) == 100


def test_a_file_that_changes_meanwhile_ends_the_replay_with_an_error(net: testing.Network, path: Path) -> None:
    written(path, packets(50, SECOND))
    replayer = Replayer(path, to=TWO)
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(data[:200] + b"\xff" * 4000)
    with pytest.raises(CaptureError, match="offset"):
        net.advance(100)
    assert replayer.closed


def test_packets_come_out_of_a_real_socket(path: Path, poller: Poller) -> None:
    what = packets(300, 20_000)
    written(path, what)
    again = path.with_name("again.pcapng")
    recorder = Recorder(again, ip=TWO, port=PORT, interface="lo", poller=poller)
    replayer = Replayer(path, to=TWO, ttl=0, poller=poller)
    settle(poller, lambda: replayer.closed and recorder.statistics().delivered == 300)
    recorder.close()
    assert payloads(again) == [packet.payload for packet in what]
    assert replayer.statistics().packets == 300
    assert 0 < replayer.timing.percentile(50) <= replayer.timing.percentile(99) <= replayer.timing.max


@pytest.mark.parametrize("group, source", [(GROUP, SOURCE), ("ff15::7", ("fd00::5", 40112))])
def test_a_file_keeps_the_dscp_of_each_packet(path: Path, group: str, source: tuple[str, int]) -> None:
    what = [
        packet._replace(dscp=dscp, payload=b"%3d" % number)
        for number, dscp in enumerate([0] * 20 + [46] * 20 + [34, 10, 63])
        for packet in packets(1, group=group, source=source)
    ]
    assert readable(written(path, what)) == [whole(packet) for packet in what]
    batched = path.with_name("batched.pcapng")
    with capture.write(batched) as file:
        file.extend(*recorded_as(what), group, PORT)
    assert [packet.dscp for packet in readable(batched)] == [packet.dscp for packet in what]


@pytest.mark.needs_program("tshark")
def test_wireshark_reads_the_dscp_of_a_recording(path: Path) -> None:
    written(path, [*packets(1, dscp=46), *packets(1, dscp=34, group="ff15::7", source=("fd00::5", 9))])
    assert fields(path, "ip.dsfield.dscp", "ipv6.tclass.dscp") == [["46", ""], ["", "34"]]


def test_the_dscp_is_recorded_and_replayed(path: Path, poller: Poller) -> None:
    what = [packet._replace(source=("10.0.0.5", 40000 + number % 2), dscp=46 * (number % 2))
            for number, packet in enumerate(packets(20, 1_000_000))]  # fmt: skip
    written(path, what)
    for wanted, expected in ((None, [0, 46] * 10), (10, [10] * 20)):
        again = path.with_name("again.pcapng")
        recorder = Recorder(again, ip=TWO, port=PORT, interface="lo", poller=poller)
        replayer = Replayer(path, to=TWO, ttl=0, dscp=wanted, poller=poller)
        settle(poller, lambda replayer=replayer, recorder=recorder: (  # type: ignore[misc]
            replayer.closed and recorder.statistics().delivered == 20
        ))
        recorder.close()
        assert [packet.dscp for packet in readable(again)] == expected
    one = path.with_name("one.pcapng")
    with Recorder(one, ip=TWO, port=PORT, interface="lo", poller=poller) as recorder:
        replayer = Replayer(path, to=TWO, ttl=0, dscp=34, source_port=40009, poller=poller)
        settle(poller, lambda: replayer.closed and recorder.statistics().delivered == 20)
    assert {(packet.dscp, packet.source[1]) for packet in readable(one)} == {(34, 40009)}


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_replay_keeps_the_sources_of_the_file_when_asked_to(path: Path, family: str) -> None:
    six = family == "IPv6"
    group = "ff15::7" if six else GROUP
    hosts = ["fd77::5", "fd77::6"] if six else ["10.77.0.5", "10.77.0.6"]
    what = [
        packet._replace(source=(hosts[number % 2], 5004), payload=packet.payload + bytes(3000), dscp=46)
        for number, packet in enumerate(packets(10, 1_000_000, group=group))
    ]
    written(path, what)
    again = path.with_name("again.pcapng")
    place = f"[{group}]:{PORT}" if six else f"{group}:{PORT}"
    with netns.Lab() as lab:
        alice, bob = lab.pair()
        # Strict reverse path filters would discard what comes from where no route leads.
        bob.sysctl("ipv4.conf.all.rp_filter", 0)
        bob.sysctl("ipv4.conf.vb.rp_filter", 0)
        with Running("record", place, "-o", str(again), "-c", "10", "-i", "vb", host=bob) as recording:
            recording.until_said("recording ")
            done = command("replay", str(path), "--as-recorded", "-i", "va", "--keep-source", host=alice)
            assert done.returncode == 0, done.stderr
            assert recording.end()[0] == 0
    assert [(packet.payload, packet.source, packet.dscp) for packet in readable(again)] == [
        (packet.payload, packet.source, 46) for packet in what
    ]


def test_without_privileges_the_sources_of_a_file_cannot_be_kept(
    net: testing.Network, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = testing.memory.Socket.setsockopt

    def refuse(self: testing.memory.Socket, level: int, option: int, value: Any) -> None:
        if (level, option) == (socket.IPPROTO_IP, 19):  # IP_TRANSPARENT
            raise PermissionError(errno.EPERM, "Operation not permitted")
        plain(self, level, option, value)

    monkeypatch.setattr(testing.memory.Socket, "setsockopt", refuse)
    replayer = Replayer(written(path, packets(1)), to=TWO, keep_source=True)
    with pytest.raises(PermissionError) as caught:
        net.advance(1)
    assert "Sending from 10.0.0.5" in caught.value.__notes__[0]
    assert "needs root or CAP_NET_ADMIN" in caught.value.__notes__[0]
    replayer.close()


@pytest.mark.parametrize("words, number", [("46", 46), ("ef", 46), ("AF41", 34), ("AF13", 14), ("CS5", 40), ("0", 0)])
def test_a_dscp_has_a_number_or_a_name(words: str, number: int) -> None:
    assert _DSCP.convert(words, None, None) == number


@pytest.mark.parametrize("words", ["64", "-1", "AF14", "AF51", "CS8", "EF1", ""])
def test_what_is_no_dscp_is_refused(path: Path, words: str) -> None:
    done = command("replay", str(written(path, packets(1))), "--to", TWO, f"--dscp={words}")
    assert (done.returncode, "write 0 to 63, EF, AF11 to AF43, or CS0 to CS7" in done.stderr) == (2, True)


def sent_from(net: testing.Network, path: Path, **options: Any) -> tuple[list[tuple[bytes, int, int]], Replayer]:
    """Return payload, source port and TTL of what is heard of a replay."""
    found: list[tuple[bytes, int, int]] = []

    class Ports(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: Address) -> None:
            assert addr.ttl is not None
            found.append((packet, addr.port, addr.ttl))

    with Ports(ip=TWO, port=PORT, details=True, rcvbuf=1 << 24) as ports:
        replayer = Replayer(path, to=TWO, **options)
        net.advance(100)
        assert ports.statistics().dropped == 0
    replayer.close()
    return found, replayer


@pytest.mark.parametrize("speed", [1.0, math.inf])
def test_each_recorded_source_is_a_sender_with_its_port_and_ttl(net: testing.Network, path: Path, speed: float) -> None:
    sources = [("10.0.0.5", 40112), ("10.0.0.6", 40113), ("10.0.0.7", 40112)]
    what = [
        packet._replace(source=sources[number % 3], ttl=1 + number % 3) for number, packet in enumerate(packets(30))
    ]
    found, replayer = sent_from(net, written(path, what), speed=speed)
    assert [packet for packet, _, _ in found] == [packet.payload for packet in what]
    ports = [{port for packet, port, _ in found if int(packet.split()[1]) % 3 == one} for one in range(3)]
    assert ports[0] == {40112}
    assert ports[1] == {40113}
    assert len(ports[2]) == 1
    assert not ports[2] & {40112, 40113}, "distinct, though the port of the first"
    assert [ttl for _, _, ttl in found] == [1, 2, 3] * 10
    assert (replayer.sources, replayer.merged) == (3, 0)
    one, replayer = sent_from(net, path, speed=speed, source_port=5999, ttl=7)
    assert {(port, ttl) for _, port, ttl in one} == {(5999, 7)}


def test_more_sources_than_sockets_share_one(net: testing.Network, path: Path) -> None:
    what = [packet._replace(source=("10.0.0.5", 20000 + number)) for number, packet in enumerate(packets(300))]
    found, replayer = sent_from(net, written(path, what), speed=math.inf)
    assert len(found) == 300
    assert len({port for _, port, _ in found}) == 257
    assert (replayer.sources, replayer.merged) == (300, 44)


def test_pauses_are_shortened_and_the_pace_is_chosen(net: testing.Network, path: Path) -> None:
    times = [0, 1, 61, 62, 3662]
    what = [packet._replace(timestamp=BEGIN + when * SECOND) for packet, when in zip(packets(5), times, strict=True)]
    written(path, what)
    heard, _ = played(net, path, [(TWO, PORT)], to=TWO, max_gap=2)
    assert [when for when, *_ in heard] == pytest.approx([n * SECOND for n in (0, 1, 3, 4, 6)], abs=20_000)
    heard, _ = played(net, path, [(TWO, PORT)], to=TWO, pps=10)
    assert [when for when, *_ in heard] == pytest.approx([n * SECOND / 10 for n in range(5)], abs=20_000)
    heard, _ = played(net, path, [(TWO, PORT)], to=TWO, bps=640)  # 8 bytes each
    assert [when for when, *_ in heard] == pytest.approx([n * SECOND / 10 for n in range(5)], abs=20_000)
    for speed in (100.0, math.inf):
        heard, replayer = played(net, path, [(TWO, PORT)], to=TWO, speed=speed, limit=2)
        assert len(heard) == 2
        assert replayer.closed


def test_paced_packets_do_not_leave_as_a_burst(path: Path, poller: Poller) -> None:
    """What sniffs the device sees packets as they were, however close they are."""
    written(path, [packet._replace(payload=bytes(1000), length=1000) for packet in packets(40, 1000)])
    longest = {}
    for speed in (1.0, math.inf):
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sniffer:
            sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            sniffer.bind(("lo", 0x0800))
            sniffer.setblocking(False)
            replayer = Replayer(path, to=TWO, ttl=0, speed=speed, poller=poller)
            settle(poller, lambda: replayer.closed)  # noqa: B023 -- called at once
            sizes = []
            while True:
                try:
                    sizes.append(len(sniffer.recv(1 << 17)))
                except BlockingIOError:
                    break
            longest[speed] = max(sizes)
    assert longest[1.0] == 1028
    assert longest[math.inf] > 1028, "as fast as can be is in bursts"


@pytest.mark.parametrize(
    "options",
    [{"pps": 0}, {"bps": -1}, {"max_gap": 0}, {"limit": 0}, {"pps": 1, "bps": 1}, {"pps": 1, "speed": 2.0}],
    ids=str,
)
def test_wrong_paces_are_refused(three: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Replayer(three, to=TWO, **options)


def test_timing_gives_percentiles() -> None:
    timing = capture.Timing()
    assert timing.percentile(99) == 0
    for microseconds in range(1, 1001):
        timing.add(microseconds * 1e-6)
    assert timing.percentile(50) == pytest.approx(500e-6, rel=0.05)
    assert timing.percentile(99) == pytest.approx(990e-6, rel=0.05)
    assert timing.max == pytest.approx(1e-3)
    assert timing.percentile(100) <= timing.max


# -- real streams --------------------------------------------------------------------------------------------------


def recorded(path: Path, group: str, port: int, work: Callable[[Poller], Callable[[], object]]) -> Recorder:
    """Record a group while `work` goes on; it returns what says whether it is done."""
    with Poller() as own, Recorder(path, ip=group, port=port, interface="lo", poller=own) as recorder:
        done = work(own)
        settle(own, done)
        # What was sent before `done` said so waits in the socket; closing takes it.
    return recorder


def compare(first: Path, second: Path) -> tuple[list[int], int]:
    """Check that two recordings have the same payloads; return the errors in time, sorted, in nanoseconds."""
    before, after = readable(first), readable(second)
    assert [packet.payload for packet in after] == [packet.payload for packet in before]
    # The first receive time of a recording may be off, and each replay begins at a moment of its own.
    offsets = sorted(two.timestamp - one.timestamp for one, two in zip(before[1:], after[1:], strict=True))
    middle = offsets[len(offsets) // 2]
    return sorted(abs(offset - middle) for offset in offsets), len(before)


def check_by_wireshark(path: Path, count: int, port: int) -> None:
    assert infos(path)["Number of packets"] == str(count)
    told = fields(path, "udp.dstport", "udp.checksum.status", "udp.payload")
    assert len(told) == count
    assert {(to, status) for to, status, _ in told} == {(str(port), "1")}
    assert [payload for *_, payload in told] == [packet.payload.hex() for packet in readable(path)]


@pytest.mark.needs_program("ffmpeg", "tshark", "capinfos")
def test_a_stream_of_video_is_recorded_replayed_and_recorded_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first.pcapng", tmp_path / "second.pcapng"
    url = f"udp://{GROUP}:{PORT}?pkt_size=1316&ttl=0&localaddr=127.0.0.1"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc=duration=2:rate=25"]
    command += ["-c:v", "mpeg2video", "-f", "mpegts", url]

    def video(own: Poller) -> Callable[[], object]:
        process = subprocess.Popen(command)
        tick(own)
        return lambda: process.poll() is not None

    def tick(own: Poller) -> None:
        own.call_later(0.05, tick, own)

    counted = recorded(first, GROUP, PORT, video).statistics()
    assert counted.dropped == 0
    assert counted.delivered > 50
    assert b"".join(payloads(first))[:1] == b"\x47", "the sync byte of a transport stream"
    replayers: list[Replayer] = []

    def replay(own: Poller) -> Callable[[], object]:
        replayers.append(Replayer(first, to=f"{TWO}:{PORT}", ttl=0, poller=own))
        return lambda: replayers[0].closed

    recorded(second, TWO, PORT, replay)
    errors, count = compare(first, second)
    assert count == counted.delivered
    check_by_wireshark(first, count, PORT)
    check_by_wireshark(second, count, PORT)
    # No promise about a machine that others use; but a replay that ignores the times is off by seconds here.
    assert errors[len(errors) // 2] < 50_000_000


@pytest.mark.needs_program("tshark", "capinfos")
def test_names_announced_by_zeroconf_are_recorded_replayed_and_recorded_again(tmp_path: Path) -> None:
    pytest.importorskip("zeroconf")
    first, second = tmp_path / "first.pcapng", tmp_path / "second.pcapng"
    code = """
        import socket, zeroconf
        own = zeroconf.Zeroconf(interfaces=["127.0.0.1"])
        address = [socket.inet_aton("127.0.0.1")]
        info = zeroconf.ServiceInfo("_test._udp.local.", "feed._test._udp.local.", 5000, addresses=address)
        own.register_service(info)
        own.unregister_service(info)
        own.close()
    """

    def announce(own: Poller) -> Callable[[], object]:
        process = subprocess.Popen(netns.python(code))
        tick(own)
        return lambda: process.poll() is not None

    def tick(own: Poller) -> None:
        own.call_later(0.05, tick, own)

    counted = recorded(first, "224.0.0.251", 5353, announce).statistics()
    assert counted.delivered >= 4
    assert all(b"\x05_test\x04_udp\x05local" in packet for packet in payloads(first))
    assert any(b"\x04feed" in packet for packet in payloads(first))
    replayers: list[Replayer] = []

    def replay(own: Poller) -> Callable[[], object]:
        replayers.append(Replayer(first, map={"224.0.0.251:5353": f"{TWO}:{PORT}"}, ttl=0, poller=own))
        return lambda: replayers[0].closed

    recorded(second, TWO, PORT, replay)
    errors, count = compare(first, second)
    assert count == counted.delivered
    check_by_wireshark(first, count, 5353)
    check_by_wireshark(second, count, PORT)
    assert errors[len(errors) // 2] < 50_000_000


# -- the documentation ---------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_records_and_replays() -> None:
    program = Path(__file__).parents[1] / "docs" / "examples" / "record_and_replay.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "one\ntwo\nthree\n"


# -- the commands --------------------------------------------------------------------------------------------------


def test_the_commands_record_and_replay(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first.pcapng"), str(tmp_path / "second.pcapng")
    with Running("record", f"{GROUP}:{PORT}", "-o", first, "-c", "5", "-i", "lo", "--json") as recording:
        recording.until_said("recording ")
        sendto([f"packet {number}" for number in range(5)], GROUP, PORT, ttl=0)
        code, out, _ = recording.end()
    summary = events(out)[-1]
    assert code == 0
    assert summary.pop("seconds") >= 0
    assert summary == {
        "v": 1,
        "event": "summary",
        "file": first,
        "packets": 5,
        "bytes": 40,
        "dropped": 0,
        "filtered": 0,
        "lost": 0,
    }
    with Running("record", f"{TWO}:{PORT}", "-o", second, "-w", "20", "-i", "lo") as recording:
        recording.until_said("recording ")
        done = command("replay", first, "--to", TWO, "-t", "0", "--json")
        recording.interrupt()
        code, _, said = recording.end()
    assert done.returncode == 0, done.stderr
    summary = events(done.stdout)[-1]
    assert (summary["packets"], summary["unsendable"], summary["refused"]) == (5, 0, 0)
    assert 0 <= summary["timing_error_p50_ns"] <= summary["timing_error_p99_ns"]
    assert code == 0
    assert "5 packets, 40 bytes" in said
    assert "kernel dropped 0" in said
    assert payloads(second) == payloads(first)


def test_progress_is_an_event_a_second(tmp_path: Path) -> None:
    with Running("record", f"{GROUP}:{PORT}", "-o", str(tmp_path / "a.pcapng"), "-i", "lo", "--json") as recording:
        assert events(recording.line()) == [{"v": 1, "event": "progress", "packets": 0, "bytes": 0, "dropped": 0}]
        recording.interrupt()
        assert recording.end()[0] == 130, "interrupted before anything came"


@pytest.mark.parametrize(
    "options, code, words",
    [
        ([], 2, "--as-recorded"),
        (["--to", "10.1"], 2, "10.1"),
        (["--map", "239.1.1.1"], 2, "OLD=NEW"),
        (["--to", TWO, "--speed", "2", "--max"], 2, "choose one"),
        (["--to", TWO, "--from", "1:00", "--until", "30"], 2, "later"),
        (["--to", TWO, "--from", "soon"], 2, "MM:SS"),
        (["--map", "239.8.8.8=239.9.9.9"], 2, "no packet"),
        (["--to", TWO, "-i", "eth7"], 3, "eth7"),
    ],
)
def test_replay_says_what_is_wrong(path: Path, options: list[str], code: int, words: str) -> None:
    written(path, packets(3))
    done = command("replay", str(path), *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_dry_run_says_what_would_be_sent_where(path: Path) -> None:
    written(path, [*packets(3), *packets(2, group="239.1.1.9")])
    done = command("replay", str(path), "--to", f"{TWO}:6000", "--only", GROUP, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{GROUP}:{PORT} -> {TWO}:6000  3 packets",
        f"239.1.1.9:{PORT} -> nowhere  2 packets",
    ]
    (plan, other) = events(
        command("replay", str(path), "--to", TWO, "--only", GROUP, "--dry-run", "--json").stdout
    )
    assert plan["to"] == {"group": TWO, "port": PORT}
    assert other["to"] is None


def test_replay_takes_a_pace_and_a_count(path: Path) -> None:
    written(path, packets(100, SECOND))
    done = command("replay", str(path), "--to", TWO, "-t", "0", "--pps", "1000", "-c", "5", "--json")
    assert done.returncode == 0
    summary = events(done.stdout)[-1]
    assert (summary["packets"], summary["sources"], summary["merged"]) == (5, 1, 0)
    for wrong in (["--pps", "5", "--max"], ["--max-gap", "0"]):
        assert command("replay", str(path), "--to", TWO, *wrong).returncode == 2


def test_a_recording_begins_another_file_after_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with capture.write(tmp_path / "x.pcapng", every=3600, keep=2) as file:
        for number, packet in enumerate(packets(12)):
            file.write(packet)
            file.flush()
            now[0] += 1800
            file.flush()
            assert number < 1 or file.path != str(tmp_path / "x.pcapng")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["x-00005.pcapng", "x-00006.pcapng"]
    assert [len(payloads(tmp_path / name)) for name in found] == [2, 2]
    with pytest.raises(ArgumentError, match="keep"):
        capture.write(tmp_path / "y.pcapng", keep=2)
    with pytest.raises(ArgumentError, match="every"):
        capture.write(tmp_path / "y.pcapng", every=0)


def test_record_rotates_by_time(tmp_path: Path) -> None:
    with Running(
        "record", f"{GROUP}:{PORT}", "-i", "lo", "-o", str(tmp_path / "x.pcapng"), "--rotate", "0.1s", "-c", "2"
    ) as recording:
        recording.until_said("recording")
        command("send", f"{GROUP}:{PORT}", "one", "-t", "0")
        first = tmp_path / "x-00001.pcapng"
        wait_for(lambda: first.exists() and first.stat().st_size and payloads(first), "it is written")
        time.sleep(1.2)  # the file is looked at once a second
        command("send", f"{GROUP}:{PORT}", "two", "-t", "0")
        assert recording.end()[0] == 0
    assert payloads(tmp_path / "x-00001.pcapng") == [b"one"]
    assert payloads(tmp_path / "x-00002.pcapng") == [b"two"]
    for wrong in (["--rotate", "1x"], ["--rotate", "1h", "--rotate", "2h"], ["--keep", "3"]):
        assert command("record", f"{GROUP}:{PORT}", "-o", str(tmp_path / "y.pcapng"), *wrong).returncode == 2


@pytest.mark.parametrize("words", [["info", "-"], ["cut", "-", "-o", "OUT"], ["replay", "-", "--to", TWO, "--max"]])
def test_commands_read_a_capture_from_standard_input(tmp_path: Path, words: list[str]) -> None:
    written(tmp_path / "x.pcapng", packets(3))
    words = [str(tmp_path / "out.pcapng") if word == "OUT" else word for word in words]
    with open(tmp_path / "x.pcapng", "rb") as file, piped(file.read()) as pipe:
        done = command(*words, "--json", stdin=pipe)
    assert done.returncode == 0, done.stderr
    assert events(done.stdout)[-1]["packets"] == 3


def test_a_file_that_ends_too_early_is_told_and_replayed_when_asked_for(path: Path) -> None:
    path.write_bytes(PCAPNG[:-3])
    done = command("info", str(path))
    assert (done.returncode, "it ends too early" in done.stdout) == (0, True)
    assert events(command("info", str(path), "--json").stdout)[-1]["cut"].startswith(str(path))
    done = command("replay", str(path), "--to", TWO, "--max")
    assert (done.returncode, "cut short" in done.stderr) == (4, True)
    done = command("replay", str(path), str(path), "--to", TWO, "--max", "--partial")
    assert (done.returncode, "2 packets" in done.stderr, "it ends too early" in done.stderr) == (0, True, True)


def test_info_names_link_types_that_cannot_be_read(path: Path) -> None:
    path.write_bytes(pcap([b"beacon"] * 3, link=127))
    done = command("info", str(path))
    assert "3 of link type 127 (IEEE 802.11 with radiotap), which cannot be read" in done.stdout
    assert events(command("info", str(path), "--json").stdout)[-1]["links"] == {"127": 3}


def test_listen_prints_a_file_as_what_arrives(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pcapng", [*packets(3), Packet(b"other", SOURCE, "239.1.1.9", 9, BEGIN + 9 * SECOND)])
    done = command("listen", str(path))
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines)) == (0, 4)
    assert lines[0].endswith(f"{SOURCE[0]}:{SOURCE[1]} > {GROUP}:{PORT}  ttl 3  len 8  \"packet 0\"")
    assert "4 packets, 29 bytes, 1 source" in done.stderr
    wanted = command("listen", str(path), "239.1.1.9:9", "--json")
    (packet, summary) = events(wanted.stdout)
    assert (packet["text"], packet["time_ns"], summary["packets"]) == ("other", BEGIN + 9 * SECOND, 1)
    filtered = command("listen", str(path), str(path), "--filter", "packet [12]", "--raw", "-c", "3")
    assert filtered.stdout == "packet 1packet 2packet 1"
    assert command("listen", str(path), "--expect", "5").returncode == 1
    for words, said in (
        (["-w", "1"], "-w is for what arrives"),
        ([str(tmp_path / "none.pcapng")], "there is no file"),
        (["-i", "lo"], "leave it out"),
    ):
        done = command("listen", str(path), *words)
        assert (done.returncode, said in done.stderr) == (2, True)


def test_what_is_well_known_is_decoded(tmp_path: Path) -> None:
    search = b"M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n"
    path = written(tmp_path / "x.pcapng", [
        Packet(search, SOURCE, "239.255.255.250", 1900, BEGIN),
        Packet(b"LC02\0\0\0\1\x1b[31m\0", SOURCE, "239.255.76.67", 7667, BEGIN + 1),
    ])  # fmt: skip
    lines = command("listen", str(path)).stdout.splitlines()
    assert [line.partition("  len ")[2] for line in lines] == [
        f"{len(search)}  SSDP M-SEARCH ssdp:all", "14  LCM \\x1b[31m seq 1, 0 bytes"
    ]
    first, second, _ = events(command("listen", str(path), "--json").stdout)
    assert (first["decoded"], first["text"]) == ("SSDP M-SEARCH ssdp:all", search.decode())
    assert "decoded" in second
    kinds = {event["group"]: event["kind"] for event in events(command("info", str(path), "--json").stdout)[:-1]}
    assert kinds == {"239.255.255.250": "SSDP", "239.255.76.67": "LCM"}


RTP = struct.pack("!BBHII", 0x80, 33, 7, 90000, 5)


@pytest.mark.parametrize(
    "packet, payload",
    [
        (RTP + b"video", b"video"),
        (b"\x82" + RTP[1:] + bytes(8) + b"two sources", b"two sources"),
        (b"\x90" + RTP[1:] + b"\xbe\xde\0\1" + bytes(4) + b"extended", b"extended"),
        (b"\xa0" + RTP[1:] + b"padded\0\0\3", b"padded"),
        (RTP, b""),
        (RTP[:11], None),
        (b"\x47" + RTP[1:] + b"a stream that is no RTP", None),
        (b"\x8f" + RTP[1:] + b"too short", None),
        (b"\x90" + RTP[1:] + b"\0\0\xff\xff", None),
        (b"\xa0" + RTP[1:] + b"\xff", None),
    ],
)
def test_the_header_of_rtp_is_taken_off(packet: bytes, payload: bytes | None) -> None:
    assert rtp_payload(packet) == payload


def test_listen_leaves_rtp_headers_out_when_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pcapng", [
        Packet(RTP + b"video", SOURCE, GROUP, PORT, BEGIN), Packet(b"plain", SOURCE, GROUP, PORT, BEGIN + 1)
    ])  # fmt: skip
    assert command("listen", str(path), "--raw", "--strip-rtp").stdout == "videoplain"
    stays = command("listen", str(path), f"rtp://{GROUP}:{PORT}", "-x")
    assert "packets keep their RTP headers; --strip-rtp leaves them out" in stays.stderr


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("strip", [[], ["--strip-rtp"]])
def test_a_recording_goes_to_standard_output(strip: list[str]) -> None:
    words = ("record", f"rtp://{GROUP}:{PORT}", "-o", "-", "-i", "lo", "-c", "2", *strip)
    with Running(*words) as running:
        running.until_said("recording")
        sendto([RTP + b"one", b"two"], GROUP, PORT, ttl=0)
        assert running.process.stdout is not None
        with of(running.process.stdout.read()) as reader:
            found = [packet.payload for packet in reader]
        code, _, said = running.end()
    assert found == [b"one" if strip else RTP + b"one", b"two"]
    assert (code, "standard output: 2 packets" in said) == (0, True)
    assert ("packets keep their RTP headers" in said) == (not strip)


def test_a_cut_goes_to_standard_output(path: Path) -> None:
    written(path, packets(3))
    done = command("cut", str(path), "-o", "-", "--from", "0", text=False)
    with of(done.stdout) as reader:  # type: ignore[arg-type]  # it is bytes
        assert len(list(reader)) == 3
    assert command("cut", str(path), "-o", "-", "--json").returncode == 2


def test_standard_output_takes_no_series() -> None:
    done = command("record", "-o", "-", "--rotate", "1M")
    assert (done.returncode, "--rotate makes files" in done.stderr) == (2, True)


def rtp(number: int) -> bytes:
    return struct.pack("!BBHII", 0x80, 33, number, 0, 7) + bytes(100)


def test_top_measures_a_file_by_the_times_in_it(path: Path, tmp_path: Path) -> None:
    # Ten a second for two seconds, of which one is missing; an hour of silence, and two more.
    numbered = [packet._replace(payload=rtp(number)) for number, packet in enumerate(packets(22, SECOND // 10))]
    late = [packet._replace(timestamp=packet.timestamp + 3600 * SECOND) for packet in numbered[20:]]
    other = packets(2, SECOND // 2, group="239.1.1.9", source=("10.0.0.6", 4000))
    written(path, sorted([*numbered[:5], *numbered[6:20], *late, *other], key=lambda packet: packet.timestamp))
    report = tmp_path / "report.html"
    done = command("top", str(path), f"{GROUP}:{PORT}", "--json", "--report", str(report))
    *seconds, total, summary = events(done.stdout)
    assert [(one["event"], one["packets"], one["lost"]) for one in seconds] == [
        ("flow", 9, 1), ("flow", 10, 0), ("flow", 2, 0)
    ]  # fmt: skip
    assert seconds[0]["time_ns"] == pytest.approx(BEGIN + SECOND, abs=1000)
    assert seconds[2]["time_ns"] == pytest.approx(BEGIN + 3602.1 * SECOND, abs=1000)
    assert (total["packets"], total["lost"], total["numbering"]) == (21, 1, "rtp")
    assert (summary["packets"], summary["sources"], summary["seconds"]) == (21, 1, 3602.1)
    assert "239.7.1.1" in report.read_text()
    both = command("top", str(path))
    assert both.returncode == 0
    lines = both.stdout.splitlines()
    assert sum("pkt/s" in line for line in lines) == 4
    assert [line.split()[:4] for line in lines[-2:]] == [
        [f"{GROUP}:{PORT}", "10.0.0.5", "eth0", "RTP"], ["239.1.1.9:7101", "10.0.0.6", "eth0", "-"]
    ]  # fmt: skip
    assert "23 packets of 2 sources in 3602.1 s" in both.stderr


def test_top_of_a_file_says_what_it_cannot_do(path: Path) -> None:
    written(path, packets(1))
    none = command("top", str(path), "239.99.9.9:9")
    assert (none.returncode, "no UDP packet for these groups is in it" in none.stderr) == (1, True)
    live = command("top", str(path), "--web", "8000", "-w", "1")
    assert (live.returncode, "--web and -w are for what arrives" in live.stderr) == (2, True)
    path.write_bytes(path.read_bytes()[:-10])
    cut = command("top", str(path), "--json")
    assert (cut.returncode, "it ends too early" in cut.stderr) == (0, True)


def test_info_says_what_a_file_holds(path: Path) -> None:
    numbered = [packet._replace(payload=rtp(number)) for number, packet in enumerate(packets(20, SECOND // 10))]
    feed = numbered[:9] + numbered[10:]
    other = packets(5, SECOND, group="239.1.1.9", source=("10.0.0.6", 4000))
    written(path, [*feed, *other])
    done = command("info", str(path))
    assert done.returncode == 0
    assert f"{path}: 24 packets" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    row = next(row for row in rows if row[0] == f"{GROUP}:{PORT}")
    assert row[1:6] == ["10.0.0.5:40112", "eth0", "RTP", "19", "2.13k"]
    assert "1" in row[6:]
    first, second, whole_file = events(command("info", str(path), "--json").stdout)
    assert (first["packets"], first["lost"], first["numbering"]) == (19, 1, "rtp")
    assert (second["group"], second["source"], second["lost"]) == ("239.1.1.9", "10.0.0.6", 0)
    assert (whole_file["packets"], whole_file["sources"], whole_file["first_ns"]) == (24, 2, BEGIN)
    assert command("info", "there is no such file").returncode == 2


def test_cut_takes_a_part_and_merges(path: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "other.pcapng", tmp_path / "cut.pcapng"
    written(path, packets(10, SECOND))
    written(other, packets(10, SECOND, group="239.1.1.9", source=("10.0.0.6", 4000)))

    def run(*arguments: str) -> list[Packet]:
        target.unlink(missing_ok=True)
        done = command("cut", str(path), str(other), "-o", str(target), *arguments)
        assert done.returncode == 0, done.stderr
        with capture.Reader(target) as reader:
            return list(reader)

    merged = run()
    assert len(merged) == 20
    assert [packet.timestamp for packet in merged] == sorted(packet.timestamp for packet in merged)
    assert {packet.source for packet in merged} == {SOURCE, ("10.0.0.6", 4000)}
    assert [packet.payload for packet in run("--only", "239.1.1.9", "--from", "3", "--until", "5")] == [
        b"packet 3",
        b"packet 4",
    ]
    assert {packet.group for packet in run("--source", "10.0.0.5")} == {GROUP}
    assert [packet.payload for packet in run("--filter", "packet [78]", "--only", f"{GROUP}:{PORT}")] == [
        b"packet 7",
        b"packet 8",
    ]
    target.unlink()
    nothing = command("cut", str(path), "-o", str(target), "--only", "239.9.9.1")
    assert nothing.returncode == 1
    assert not target.exists()
    for wrong in (["-o", str(path)], ["-o", str(target), "--filter", "("], ["-o", "x", "--from", "5", "--until", "5"]):
        assert command("cut", str(path), *wrong).returncode == 2


def test_replay_refuses_a_damaged_file_before_it_sends(path: Path) -> None:
    written(path, packets(50))
    path.write_bytes(path.read_bytes()[:-10])
    done = command("replay", str(path), "--to", TWO, "-t", "0")
    assert done.returncode == 4
    assert "offset" in done.stderr
    assert "cut short" in done.stderr


@pytest.mark.parametrize(
    "options, words",
    [
        (["--keep", "3"], "--rotate"),
        (["--rotate", "much"], "100M"),
        (["--rotate", "1k"], "4096"),
        (["--snaplen", "1"], "64"),
        (["-o", "-", "--json"], "both write to standard output"),
    ],
)
def test_record_says_what_is_wrong(path: Path, options: list[str], words: str) -> None:
    done = command("record", "-o", str(path), *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert not path.exists()


def test_an_old_recording_outlives_a_wrong_interface(path: Path) -> None:
    path.write_bytes(b"an old recording")
    assert command("record", "-o", str(path), "-i", "eth7").returncode == 3
    assert path.read_bytes() == b"an old recording"


def test_record_says_when_nothing_came(path: Path) -> None:
    done = command("record", f"{GROUP}:{PORT}", "-o", str(path), "-w", "0.1", "-i", "lo")
    assert done.returncode == 1
    assert "nothing arrived" in done.stderr
    assert readable(path) == []


@pytest.mark.needs_program("capinfos")
def test_a_program_that_is_killed_leaves_a_good_file(path: Path) -> None:
    with Running("record", f"{GROUP}:{PORT}", "-o", str(path), "-i", "lo", "--json") as recording:
        recording.until_said("recording ")
        sendto([f"packet {number}" for number in range(10)], GROUP, PORT, ttl=0)
        while events(recording.line())[0]["packets"] < 10:
            pass
        recording.line()  # another second has passed
        recording.process.kill()
        recording.process.wait()
    assert payloads(path) == [f"packet {number}".encode() for number in range(10)]
    assert infos(path)["Number of packets"] == "10"


def test_record_rotates(tmp_path: Path) -> None:
    options = ["--rotate", "10k", "--keep", "2", "-c", "1000", "-i", "lo"]
    with Running("record", f"{GROUP}:{PORT}", "-o", str(tmp_path / "a.pcapng"), *options) as recording:
        recording.until_said("recording ")
        with Poller() as own:
            Repeating(b"x" * 1000, own).interval = 0.001
            settle(own, lambda: recording.process.poll() is not None)
        assert recording.end()[0] == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert all(readable(tmp_path / name) for name in names)


def test_the_disk_being_full_is_told(tmp_path: Path) -> None:
    done = command("record", f"{GROUP}:{PORT}", "-o", "/dev/full", "-i", "lo", "-w", "5")
    assert done.returncode == 3
    assert "No space left on device" in done.stderr
    assert "keep fewer files (--rotate, --keep)" in done.stderr


@pytest.mark.parametrize("room", [5000, 20])
def test_the_summary_tells_what_is_in_the_file_when_the_disk_is_full(path: Path, room: int) -> None:
    with Running("record", f"{GROUP}:{PORT}", "-o", str(path), "-i", "lo", "--json") as recording:
        recording.until_said("recording ")
        wait_for(lambda: path.stat().st_size, "the file has its head")
        resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE, (room, room))
        sendto([b"x" * 100] * 200, GROUP, PORT, ttl=0)
        code, out, said = recording.end()
    summary = events(out)[-1]
    found = payloads(path)
    assert code == 3
    assert summary["event"] == "summary"
    assert (summary["packets"], summary["bytes"]) == (len(found), 100 * len(found))
    assert summary["lost"] == 200 - len(found)
    assert f"{len(found)} packets are in it" in said


# -- two recorders, and what was there -------------------------------------------------------------------------------


def test_a_file_that_is_being_recorded_to_is_refused(path: Path) -> None:
    with capture.write(path) as file:
        file.write(packets(1)[0])
        with pytest.raises(ArgumentError, match="being recorded to by this process"):
            capture.write(path)
        said = helpers.in_child(lambda: capture.write(path))
        assert f"(pid {os.getpid()})" in said
        file.write(packets(2)[1])
    assert len(readable(path)) == 2
    with capture.write(path) as file:  # it is free again
        file.write(packets(1)[0])


def test_a_series_that_is_being_recorded_is_refused(path: Path) -> None:
    with capture.write(path, rotate=4096) as file:
        for packet in packets(200):
            file.write(packet)
        file.flush()
        with pytest.raises(ArgumentError, match="being recorded to by this process"):
            capture.write(path, rotate=4096)
    with capture.write(path, rotate=4096) as file:
        file.write(packets(1)[0])
    assert sum(len(readable(one)) for one in path.parent.glob("*-*.pcapng")) == 201


def test_numbered_files_take_the_next_free_number(path: Path) -> None:
    with capture.write(path, rotate=4096) as file:
        first = Path(file.path)
        taken = first.with_name(first.name.replace("00001", "00002"))
        taken.write_bytes(b"of another program")
        for packet in packets(100):
            file.write(packet)
    assert taken.read_bytes() == b"of another program"
    assert first.with_name(first.name.replace("00001", "00003")).exists()


@pytest.mark.parametrize("flush", [False, True])
def test_an_older_recording_stays_until_there_is_a_packet(path: Path, flush: bool) -> None:
    written(path, packets(3))
    before = path.read_bytes()
    file = capture.write(path)
    if flush:
        file.flush()
    assert path.read_bytes() == before
    file.close()
    assert path.read_bytes() == before
    with capture.write(path) as file:
        file.write(packets(1)[0])
    assert len(readable(path)) == 1


def test_each_host_has_an_ethernet_address_of_its_own(path: Path) -> None:
    hosts = ["10.0.0.5", "10.0.0.6", "fd00::5", "fd00::6"]
    with capture.write(path) as file:
        for host in hosts * 2:
            group = "ff15::1" if ":" in host else GROUP
            file.write(Packet(b"x", (host, 4000), group, PORT, timestamp=1))
    data, stations = path.read_bytes(), []
    position = 0
    while position < len(data):
        kind, length = struct.unpack_from("<II", data, position)
        if kind == 6:
            stations.append(data[position + 28 + 6 : position + 28 + 12])
        position += length
    assert len(stations) == 8
    assert stations[:4] == stations[4:]
    assert len(set(stations)) == 4
    assert all(station[0] == 2 for station in stations)  # unicast, locally administered


# -- fragments of different datagrams ---------------------------------------------------------------------------------


def fragment(number: int, offset: int, more: bool, piece: bytes) -> bytes:
    flags = (0x2000 if more else 0) | offset // 8
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(piece), number, flags, 5, 17, 0)
    ethernet = b"\1\0\x5e\1\2\3" + bytes(6) + b"\x08\0"
    return ethernet + header + socket.inet_aton("10.0.0.5") + socket.inet_aton(GROUP) + piece


def datagram(fill: bytes, size: int = 2000) -> bytes:
    """Return a UDP datagram with its checksum."""
    header = struct.pack(">HHH", 4000, PORT, 8 + size)
    covered = socket.inet_aton("10.0.0.5") + socket.inet_aton(GROUP) + struct.pack(">HH", 8 + size, 17) + header
    total = 65535 - int.from_bytes(covered + bytes(2) + fill * size, "big") % 65535
    return header + struct.pack(">H", total) + fill * size


def put_together(path: Path, frames: list[tuple[int, bytes]]) -> tuple[list[bytes], int]:
    """Write frames with their seconds as pcap; return the first byte of each packet found, and the fragments left."""
    path.write_bytes(
        struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
        + b"".join(struct.pack("<IIII", when, 0, len(frame), len(frame)) + frame for when, frame in frames)
    )
    with capture.read(path) as reader:
        found = [packet.payload[:1] for packet in reader]
        return found, reader.counts.fragments


A, B = datagram(b"A"), datagram(b"B")


@pytest.mark.parametrize(
    "frames, found, left",
    [
        ([(0, fragment(9, 0, True, A[:1400])), (900, fragment(9, 1400, False, B[1400:]))], [], 2),
        ([(0, fragment(9, 0, True, A[:1400])), (1, fragment(9, 1400, False, B[1400:]))], [], 2),
        ([(0, fragment(9, 0, True, A[:1400])), (20, fragment(9, 1400, False, A[1400:]))], [b"A"], 0),
        ([(0, fragment(9, 0, True, A[:1400])),
          (1, fragment(9, 0, True, B[:1400])), (1, fragment(9, 1400, False, B[1400:]))], [b"B"], 1),
        ([(0, fragment(9, 1400, False, A[1400:])),
          (1, fragment(9, 0, True, B[:1400])), (1, fragment(9, 1400, False, B[1400:]))], [b"B"], 1),
        ([(0, fragment(9, 0, True, A[:1400])), (40, fragment(9, 0, True, B[:1400])),
          (41, fragment(9, 1400, False, B[1400:]))], [b"B"], 1),
    ],
    ids=["long apart", "wrong sum", "slow", "lost tail", "lost head", "stale"],
)  # fmt: skip
def test_fragments_of_different_datagrams_are_not_joined(
    path: Path, frames: list[tuple[int, bytes]], found: list[bytes], left: int
) -> None:
    assert put_together(path, frames) == (found, left)


def test_a_datagram_without_a_checksum_is_joined(path: Path) -> None:
    plain = A[:6] + bytes(2) + A[8:]
    frames = [(0, fragment(9, 0, True, plain[:1400])), (0, fragment(9, 1400, False, plain[1400:]))]
    assert put_together(path, frames) == ([b"A"], 0)


def test_a_hundred_interleaved_datagrams_are_put_together(path: Path) -> None:
    frames = [(0, fragment(number, 0, True, A[:1400])) for number in range(100)]
    frames += [(0, fragment(number, 1400, False, A[1400:])) for number in range(100)]
    assert put_together(path, frames) == ([b"A"] * 100, 0)


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_closes_the_recording_whole(path: Path, number: signal.Signals) -> None:
    with Running("record", f"{GROUP}:{PORT}", "-o", str(path), "-i", "lo", "--json") as recording:
        recording.until_said("recording ")
        sendto(["one", "two"], GROUP, PORT, ttl=0)
        wait_for(lambda: path.stat().st_size and len(payloads(path)) == 2, "the packets are written")
        recording.process.send_signal(number)
        out, _ = recording.process.communicate(timeout=10)
    assert events(out)[-1]["packets"] == 2
    with capture.read(path) as reader:
        assert len(list(reader)) == 2
        assert reader.dropped == 0  # the statistics, which closing writes


def test_sigusr1_writes_what_is_gathered(path: Path) -> None:
    with Running("record", f"{GROUP}:{PORT}", "-o", str(path), "-i", "lo", "--json") as recording:
        recording.until_said("recording ")
        wait_for(lambda: path.exists(), "the file is there")
        sendto("one", GROUP, PORT, ttl=0)
        for _ in range(100):
            recording.process.send_signal(signal.SIGUSR1)
            if path.stat().st_size and len(payloads(path)) == 1:
                break
            time.sleep(0.01)
        assert payloads(path) == [b"one"]
        recording.interrupt()
        assert recording.end()[0] == 0
