"""What the doctor reads of the kernel and of packets on the wire."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multicast import batch
from multicast.doctor import kernel, wire
from multicast.doctor.kernel import Bridge, Holder, SourceFilter
from multicast.doctor.wire import Seen

# -- what is read ----------------------------------------------------------------------------------------------------


def files(**contents: str) -> Callable[[str], str]:
    return lambda path: contents.get(path.rpartition("/")[2], "")


def test_counters_of_both_families_have_the_same_names() -> None:
    read = files(
        snmp="Ip: Forwarding InReceives\nIp: 2 7\nUdp: InDatagrams IgnoredMulti\nUdp: 5 2\n",
        netstat="TcpExt: A IPReversePathFilter\nTcpExt: 0 3\nIpExt: InMcastPkts\nIpExt: 9\n",
        snmp6="Ip6InReceives \t11\nUdp6IgnoredMulti\t4\nIcmp6InMsgs 3\n",
    )
    assert kernel.counters(False, read)["TcpExt:IPReversePathFilter"] == 3
    assert kernel.counters(False, read)["Ip:InMcastPkts"] == 9
    assert kernel.counters(False, read)["Udp:IgnoredMulti"] == 2
    assert kernel.counters(True, read) == {"Ip:InReceives": 11, "Udp:IgnoredMulti": 4}


def test_sockets_of_both_families_are_read() -> None:
    packed = "010101EF" if sys.byteorder == "little" else "EF010101"
    four = f"  10: {packed}:1388 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000  0 4711 2 0000 12\n"
    six = f"  11: {'0' * 32}:1389 {'0' * 32}:0000 07 00000000:00000000 00:00000000 00000000  0  0 4712 2 0000 0\n"
    found = kernel.holders(files(udp="head\n" + four, udp6="head\n" + six))
    assert found == {
        4711: (Holder("239.1.1.1", 5000, 1000, 4711), 12),
        4712: (Holder("::", 5001, 0, 4712), 0),
    }


def test_source_filters_are_read_by_the_number_of_the_interface() -> None:
    read = files(
        mcfilter="Idx Device MCA SRC INC EXC\n  2  a-very 0xe8010101 0x0a000005      1      0\n",
        mcfilter6=f"Idx Device ...\n  3   eth1 {'ff35' + '0' * 27 + '1'} {'fd' + '0' * 29 + '1'} 0 2\n",
    )
    assert list(kernel.source_filters({2: "a-very-long-name", 3: "eth1"}, read)) == [
        SourceFilter("a-very-long-name", "232.1.1.1", "10.0.0.5", 1, 0),
        SourceFilter("eth1", "ff35::1", "fd00::1", 0, 2),
    ]


def test_igmp_versions_are_read() -> None:
    igmp = "Idx\tDevice    : Count Querier\n1\tlo  :  1  V3\n\t\t\t\t010000E0     1\n2\ta-long-name:  1  V2\n"
    assert kernel.versions(files(igmp=igmp)) == {"lo": 3, "a-long-name": 2}


def test_powers_are_those_of_the_thread() -> None:
    assert kernel.powers("CapInh:\t0\nCapEff:\t000001ffffffffff\n") == (True, True)
    assert kernel.powers("CapEff:\t0000000000002000\n") == (True, False)
    assert kernel.powers("") == (False, False)


def test_bridges_that_snoop_are_read() -> None:
    links = [
        {"ifname": "lo"},
        {"ifname": "br0", "linkinfo": {"info_kind": "bridge", "info_data": {"mcast_snooping": 1, "mcast_querier": 0}}},
        {"ifname": "p1", "master": "br0", "linkinfo": {"info_slave_data": {"mcast_flood": False}}},
        {"ifname": "p2", "master": "br0", "linkinfo": {"info_slave_data": {"mcast_flood": True}}},
        {"ifname": "br1", "linkinfo": {"info_kind": "bridge", "info_data": {"mcast_snooping": 0}}},
    ]
    assert kernel.bridges(json.dumps(links)) == (Bridge("br0", False, ("p1", "p2"), ("p1",)),)
    assert kernel.bridges(None) is None
    assert kernel.bridges("") == ()
    slave = {"ifname": "p1", "master": "br0", "linkinfo": {"info_slave_kind": "bridge"}}
    routed = {"ifname": "p2", "master": "vrf0", "linkinfo": {"info_slave_kind": "vrf"}}
    assert kernel.masters(json.dumps([{"ifname": "br0"}, slave, routed])) == {"p1": "br0"}
    assert kernel.masters(None) == {}


def test_programs_are_named_by_their_sockets() -> None:
    with open("/dev/null") as file:
        assert kernel.programs([os.fstat(file.fileno()).st_ino]) == {}  # a file is no socket
    assert kernel.programs([]) == {}


def test_who_owns_a_name_is_read_from_either_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (file, text) in enumerate([
        ("top_level.txt", "other\nfor_the_doctor\n"),
        ("RECORD", "other/__init__.py,,\nfor_the_doctor/__init__.py,,\n"),
        ("RECORD", "for_the_doctor.py,,\n"),
        ("RECORD", "for_the_doctor_not/__init__.py,,\n"),
    ]):
        directory = tmp_path / f"p{number}-1.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: p{number}\nVersion: 1\n")
        (directory / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert kernel.distributions("for_the_doctor") == ("p0", "p1", "p2")


def test_why_there_is_no_c_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ENGINE", "python")
    monkeypatch.setattr(batch, "__file__", str(tmp_path / "batch.py"))
    assert "there is no _batch.*.so" in kernel.engine()[1]
    (tmp_path / "_batch.cpython-27.so").write_bytes(b"")
    assert "_batch.cpython-27.so is for another Python" in kernel.engine()[1]
    (tmp_path / "_batch.abi3.so").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "multicast._batch", None)
    assert "_batch.abi3.so cannot be loaded: " in kernel.engine()[1]
    monkeypatch.setattr(batch, "ENGINE", "c")
    assert kernel.engine() == ("c", "")


# -- packets on the wire ---------------------------------------------------------------------------------------------


def ipv4(payload: bytes, protocol: int = 17, flags: int = 0, ttl: int = 3) -> bytes:
    addresses = bytes([10, 0, 0, 5]) + bytes([239, 1, 1, 1])
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, flags, ttl, protocol, 0) + addresses + payload


def ipv6(payload: bytes, protocol: int = 17) -> bytes:
    addresses = bytes.fromhex("fe80" + "0" * 27 + "5" + "ff15" + "0" * 27 + "1")
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 3) + addresses + payload


UDP = struct.pack("!HHHH", 4000, 5000, 8, 0)


@pytest.mark.parametrize("data, kind, port, fragmented", [
    (ipv4(UDP), "udp", 5000, False),
    (ipv4(UDP, flags=0x2000), "udp", 5000, True),
    (ipv4(UDP, flags=0x0010), "fragment", 0, False),
    (ipv4(b"\x11\0\0\0", protocol=2), "query", 0, False),
    (ipv4(b"\x22\0\0\0", protocol=2), "report", 0, False),
    (ipv6(b"\x3a\0\x05\x02\0\0\0\0" + b"\x8f\0\0\0", 0), "report", 0, False),
    (ipv6(UDP), "udp", 5000, False),
    (ipv6(b"\x11\0\0\x01\0\0\0\0" + UDP, 44), "udp", 5000, True),
    (ipv6(b"\x11\0\0\x10\0\0\0\0" + UDP, 44), "fragment", 0, False),
    (ipv6(b"\x3a\0\x05\x02\0\0\0\0" + b"\x82\0\0\0", 0), "query", 0, False),
])
def test_packets_are_taken_apart(data: bytes, kind: str, port: int, fragmented: bool) -> None:
    found = wire.dissect(data)
    assert found is not None
    assert (found.kind, found.port, found.fragmented, found.ttl) == (kind, port, fragmented, 3)


def test_packets_of_other_protocols_and_to_single_hosts_are_not_for_the_doctor() -> None:
    assert wire.dissect(ipv4(b"\x17\0\0\0", protocol=2)) is None
    assert wire.dissect(ipv4(UDP)[:16] + b"\x0a\0\0\7" + UDP) is None
    assert wire.dissect(ipv6(UDP)[:24] + b"\xfd" + ipv6(UDP)[25:]) is None


@given(st.binary(max_size=80))
@example(b"")
@example(ipv4(UDP)[:22])
@example(ipv6(b"\x11", 44))
def test_no_packet_breaks_the_doctor(data: bytes) -> None:
    try:
        wire.dissect(data)
    except (struct.error, IndexError, ValueError):  # which the reader takes for what it is
        pass


def test_the_table_of_packets_has_a_limit() -> None:
    table = wire.Table()
    for number in range(2000):
        table.add("eth0", "239.1.1.1", 5000, f"10.0.{number // 256}.{number % 256}", 1)
    assert len(table.seen()) == 512


class Tap:
    """A packet socket that has packets, each as from an interface eth0."""

    def __init__(self, packets: list[bytes]) -> None:
        self._left = iter(packets)

    def recvmsg(self, size: int, extra: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, tuple[str, int, int]]:
        try:
            return next(self._left)[:size], [], 0, ("eth0", 0x800, 2)
        except StopIteration:
            raise BlockingIOError from None


def test_forged_packets_leave_room_for_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def to(group: int, source: int, data: bytes = UDP) -> bytes:
        packet = bytearray(ipv4(data))
        packet[12:16], packet[19] = source.to_bytes(4, "big"), group
        return bytes(packet)

    other_port = struct.pack("!HHHH", 4000, 5001, 8, 0)
    forged = [to(2, number) for number in range(600)] + [to(1, number, other_port) for number in range(600)]
    later = bytearray(to(1, 5))
    later[6:8] = b"\0\x10"
    monkeypatch.setattr(wire, "open_wire", lambda: Tap([*forged, to(1, 7), to(1, 7), bytes(later)]))
    looking = wire.Wire("239.1.1.1", 5000)
    for _ in range(len(forged) // batch.LIMIT + 1):
        looking.handle_read()
    assert len(looking.seen()) == 1 + 512
    assert looking.seen()[0] == Seen("eth0", "239.1.1.1", 5000, "0.0.0.7", 3, packets=2)
    assert looking.fragments == 1
    looking.restart()
    assert (looking.seen(), looking.fragments) == ((), 0)
