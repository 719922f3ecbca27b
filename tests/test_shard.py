"""Shards: several sockets, in several processes, that divide the packets of one group among them."""

from __future__ import annotations

import collections
import json
import socket
import struct
import subprocess
from typing import Any

import helpers
import netns
import pytest
from helpers import Keeper, turns
from hypothesis import given
from hypothesis import strategies as st
from test_kernel_filter import PASS, run

import multicast
from multicast import ArgumentError, filters
from multicast.senders import forget_senders

GROUP = "239.7.7.7"

hosts = st.one_of(
    st.ip_addresses(v=4).map(str).map(lambda host: (host, False)),
    st.ip_addresses(v=6).map(lambda host: (host.exploded, True)),
)


@given(
    st.integers(1, 9),
    st.one_of(st.just("source"), st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 4]))),
    hosts,
    st.integers(0, 65535),
    st.binary(max_size=12),
)
def test_each_packet_belongs_to_one_shard(
    count: int, key: filters.ShardKey, host: tuple[str, bool], port: int, packet: bytes
) -> None:
    address, ipv6 = host
    verdicts = [
        run(filters.assemble(filters.shard_refusals((index, count), key, ipv6)), packet, address, port)
        for index in range(count)
    ]
    assert sorted(verdicts) == [0] * (count - 1) + [PASS]
    if isinstance(key, tuple):
        offset, length = key
        field = packet[offset : offset + length]
        expected = int.from_bytes(field, "big") % count if len(field) == length else 0
        assert verdicts.index(PASS) == expected
    else:
        program = filters.assemble(filters.shard_refusals((verdicts.index(PASS), count), key, ipv6))
        assert run(program, b"", address, port) == PASS, "the payload does not matter"


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_senders_are_dealt_out_evenly(count: int, ipv6: bool) -> None:
    programs = [filters.assemble(filters.shard_refusals((index, count), "source", ipv6)) for index in range(count)]
    many_ports = [("fd00::1" if ipv6 else "10.0.0.1", port) for port in range(40000, 40400)]
    prefix = "fd00::1:" if ipv6 else "10.0.0."
    many_hosts = [(f"{prefix}{number}", 5000) for number in range(1, 255)]
    for senders in (many_ports, many_hosts):
        dealt = collections.Counter(
            next(index for index, program in enumerate(programs) if run(program, b"", host, port))
            for host, port in senders
        )
        assert len(dealt) == count
        assert max(dealt.values()) < 2 * min(dealt.values())


@pytest.mark.parametrize(
    "shard",
    [(2, 2), (-1, 2), (0, 0), (0, 65537), (0,), 3, (0, 1, 2), ("0", 2), (0.0, 2), (True, 2), [0, 2]],
    ids=helpers.name,
)
def test_a_shard_is_an_index_below_a_count(shard: Any) -> None:
    with pytest.raises(ArgumentError, match="shard"):
        Keeper(ip=GROUP, interface="lo", shard=shard)


def test_what_is_refused_of_a_shard_is_told_with_its_limit() -> None:
    with pytest.raises(ArgumentError, match=r"a count from 1 to 65536 .*, not \(0, 70000\)$"):
        Keeper(ip=GROUP, interface="lo", shard=(0, 70000))
    with pytest.raises(ArgumentError, match=r"among the first 65535 of the payload, not \(65532, 4\)$"):
        Keeper(ip=GROUP, interface="lo", shard=(0, 2), shard_key=(65532, 4))


@pytest.mark.parametrize(
    "key", ["sender", None, 4, (0,), (0, 3), (0, 8), (-1, 4), (65532, 4), ("0", 4), (0, True)], ids=helpers.name
)
def test_a_shard_key_is_the_source_or_a_field(key: Any) -> None:
    with pytest.raises(ArgumentError, match="shard_key"):
        Keeper(ip=GROUP, interface="lo", shard=(0, 2), shard_key=key)


def test_one_shard_of_one_gets_everything(poller: multicast.Poller, free_port: int) -> None:
    listener = Keeper(ip=GROUP, port=free_port, interface="lo", poller=poller, shard=(0, 1), shard_key=(0, 4))
    multicast.sendto(["one", b"", "two"], GROUP, free_port, interface="lo")
    turns(poller)
    assert listener.packets == [b"one", b"", b"two"]


@pytest.mark.parametrize("group", [GROUP, "ff15::7:9"])
@pytest.mark.parametrize("key", ["source", (1, 1), (2, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("offload", [False, True])
def test_together_they_get_everything_once(
    poller: multicast.Poller, free_port: int, group: str, key: filters.ShardKey, offload: bool
) -> None:
    options: dict[str, Any] = {"interface": "lo", "poller": poller, "rcvbuf": 8 << 20, "offload": offload}
    listeners = [Keeper(ip=group, port=free_port, shard=(index, 3), shard_key=key, **options) for index in range(3)]
    whole = Keeper(ip=group, port=free_port, **options)
    sent = []
    for sender in range(12):
        packets = [struct.pack("!HHI", sender, number * 7, number) for number in range(100)] + [b"", b"x"]
        # The kernel would give ports at random; these are dealt out the same way each time.
        multicast.sendto(packets, group, free_port, interface="lo", source_port=41000 + sender)
        sent += packets
    turns(poller, 60)
    assert whole.packets == sent
    parts = [collections.Counter(listener.packets) for listener in listeners]
    assert sum(parts, collections.Counter()) == collections.Counter(sent)
    assert all(sum(part.values()) > len(sent) // 10 for part in parts)
    for listener in listeners:
        # Those of the others are refused; none was dropped.
        found = listener.statistics()
        assert (found.delivered, found.dropped) == (len(listener.packets), 0)
        if not offload:  # bursts are refused whole, and counted so
            assert found.filtered == len(sent) - len(listener.packets)
    if key == "source":
        where: dict[Any, int] = {}
        for index, listener in enumerate(listeners):
            for addr in listener.addrs:
                assert where.setdefault(addr, index) == index, "a sender stays with its shard"


def test_a_shard_may_filter_too(poller: multicast.Poller, free_port: int) -> None:
    options: dict[str, Any] = {"interface": "lo", "poller": poller, "rcvbuf": 1 << 20, "shard_key": (0, 4)}
    listeners = [Keeper(rb"(?s)....yes", GROUP, free_port, shard=(index, 2), **options) for index in range(2)]
    packets = [struct.pack("!I", number) + (b"yes" if number % 3 else b"no!") for number in range(200)]
    multicast.sendto(packets, GROUP, free_port, interface="lo")
    turns(poller)
    for index, listener in enumerate(listeners):
        expected = [packet for packet in packets[index::2] if packet.endswith(b"yes")]
        assert listener.packets == expected
        assert listener.statistics().filtered == 200 - len(expected)
        assert listener.statistics().packets == len(expected)


@pytest.mark.parametrize("key", ["source", (0, 4)], ids=str)
def test_four_processes_share_one_feed(free_port: int, key: filters.ShardKey) -> None:
    code = """
        import json, sys
        import multicast

        index, port, key = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
        numbers = []

        class Part(multicast.MulticastListener):
            def handle_packet(self, packet, addr):
                if packet == b"end":
                    return True
                numbers.append(int.from_bytes(packet[:4], "big"))

        options = dict(interface="lo", rcvbuf=16 << 20, shard_key=key if key == "source" else tuple(key))
        part = Part(None, "239.7.7.7", port, shard=(index, 4), **options)

        class End(multicast.MulticastListener):
            # Everybody hears the end, which only one shard would.
            def handle_packet(self, packet, addr):
                return True

        end = End(None, "239.7.7.8", port, interface="lo")
        print("ready", flush=True)
        part.poller.run_until(lambda: end.closed)
        for _ in range(10000):
            before = len(numbers)
            multicast.poll()
            if len(numbers) == before:
                break
        found = part.statistics()
        print(json.dumps([numbers, found.dropped, found.filtered]))
    """
    processes = [
        subprocess.Popen(
            netns.python(code, str(index), str(free_port), json.dumps(key)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        total = 0
        for _ in range(40):
            numbers = range(total, total + 250)
            multicast.sendto([struct.pack("!I", number) for number in numbers], GROUP, free_port, interface="lo")
            total += 250
            forget_senders()  # so that the next ones come from another port
        multicast.sendto("over", "239.7.7.8", free_port, interface="lo")
        found = [json.loads(process.communicate(timeout=30)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    assert sorted(number for numbers, _, _ in found for number in numbers) == list(range(total)), "all, and none twice"
    assert all(numbers for numbers, _, _ in found), "each had a part"
    assert all(numbers == sorted(numbers) for numbers, _, _ in found)
    for numbers, dropped, filtered in found:
        assert dropped == 0
        assert len(numbers) + filtered == total
    if isinstance(key, tuple):
        assert [{number % 4 for number in numbers} for numbers, _, _ in found] == [{0}, {1}, {2}, {3}]


def test_the_program_reads_the_source_of_a_real_packet(poller: multicast.Poller, free_port: int) -> None:
    # The interpreter of these tests and the kernel agree on who gets what.
    listeners = [
        Keeper(ip=GROUP, port=free_port, interface="lo", poller=poller, shard=(index, 5)) for index in range(5)
    ]
    expected = []
    for _ in range(40):
        with socket.socket(type=socket.SOCK_DGRAM) as sending:
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sending.sendto(b"x", (GROUP, free_port))
            port = sending.getsockname()[1]
        expected.append(
            next(
                index
                for index in range(5)
                if run(filters.assemble(filters.shard_refusals((index, 5), "source", False)), b"x", "127.0.0.1", port)
            )
        )
    turns(poller)
    assert [len(listener.packets) for listener in listeners] == [expected.count(index) for index in range(5)]
