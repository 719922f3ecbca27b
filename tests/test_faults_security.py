"""What peers and strangers can do, row by row of the catalogue of faults, and what comes of it here: S1 to S17."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import netns
import pytest
from helpers import Clock, Keeper, Pair, alone, in_child, settle, turns
from relay import checksum

import multicast
from multicast import Address, ArgumentError, FilterError, Poller, filters
from multicast.filters import Limited

pytestmark = [pytest.mark.fault, pytest.mark.needs_namespaces]

GROUP, PORT = "239.90.3.1", 4392
Hosts = tuple[netns.Host, netns.Host]


def frame(
    source: str,
    payload: bytes,
    *,
    group: str = GROUP,
    port: int = PORT,
    source_port: int = 5000,
    ttl: int = 1,
    length: int | None = None,
) -> bytes:
    """Return an Ethernet frame with a UDP packet to a group, with whatever is asked for in its headers."""
    udp_length = 8 + len(payload) if length is None else length
    udp = struct.pack("!HHHH", source_port, port, udp_length, 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(group)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, ttl, socket.IPPROTO_UDP, 0) + addresses
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    mac = b"\x01\x00\x5e" + bytes([socket.inet_aton(group)[1] & 127]) + socket.inet_aton(group)[2:]
    return mac + b"\x02\0\0\0\0\x01" + b"\x08\0" + head + udp


@pytest.fixture
def wire(hosts: Hosts) -> Iterator[socket.socket]:
    """Frames written here come out on the other host."""
    alice, _ = hosts
    with alice.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
        opened.bind(("va", 0))
        yield opened


def test_s1_forged_sources_do_not_pass_a_list_of_sources(
    hosts: Hosts, wire: socket.socket, poller: Poller
) -> None:
    _, bob = hosts
    with bob.inside():
        anybody = Keeper(ip=GROUP, port=PORT, interface="vb", poller=poller)
        chosen = Keeper(ip=GROUP, port=PORT, interface="vb", sources=["10.99.0.1"], poller=poller)
        refused = Keeper(ip=GROUP, port=PORT, interface="vb", exclude=["8.8.8.8"], poller=poller)
    with anybody, chosen, refused:
        for source in ("10.99.0.77", "8.8.8.8", "10.99.0.1"):
            wire.send(frame(source, source.encode()))
        settle(poller, lambda: len(anybody.packets) == 3 and chosen.packets and len(refused.packets) == 2)
        assert chosen.packets == [b"10.99.0.1"]
        assert refused.packets == [b"10.99.0.77", b"10.99.0.1"]


def test_s2_a_packet_from_port_0_is_delivered(hosts: Hosts, wire: socket.socket, poller: Poller) -> None:
    """That a responder does not answer it is among its own tests."""
    _, bob = hosts
    with bob.inside(), Keeper(ip=GROUP, port=PORT, interface="vb", poller=poller) as keeper:
        wire.send(frame("10.99.0.1", b"from port 0", source_port=0))
        settle(poller, lambda: keeper.packets)
        assert keeper.addrs[0] == ("10.99.0.1", 0)


def test_s3_malformed_lengths_are_the_kernels_and_ttl_0_is_delivered(
    hosts: Hosts, wire: socket.socket, poller: Poller
) -> None:
    _, bob = hosts
    with bob.inside(), Keeper(ip=GROUP, port=PORT, interface="vb", details=True, poller=poller) as keeper:
        wire.send(frame("10.99.0.1", b"too long", length=100))
        wire.send(frame("10.99.0.1", b"too short", length=7))
        wire.send(frame("10.99.0.1", b"trimmed", length=8 + 4))
        wire.send(frame("10.99.0.1", b"ttl 0", ttl=0))
        settle(poller, lambda: len(keeper.packets) == 2)
        assert keeper.packets == [b"trim", b"ttl 0"]
        assert keeper.addrs[1].ttl == 0


def test_s4_other_groups_and_unicast_do_not_come_in(hosts: Hosts, poller: Poller) -> None:
    alice, bob = hosts
    with bob.inside():
        keeper = Keeper(ip=GROUP, port=PORT, interface="vb", poller=poller)
        other = Keeper(ip="239.90.3.2", port=PORT, interface="vb", poller=poller)
    with keeper, other, alice.inside():
        multicast.sendto("other", "239.90.3.2", PORT, interface="va")
        multicast.sendto("unicast", "10.99.0.2", PORT)
        multicast.sendto("right", GROUP, PORT, interface="va")
        settle(poller, lambda: keeper.packets and other.packets)
        assert (keeper.packets, other.packets) == ([b"right"], [b"other"])


def test_s7_many_forged_sources_fill_no_table(hosts: Hosts, wire: socket.socket, poller: Poller) -> None:
    class Count(multicast.MulticastListener):
        count = 0

        def handle_packet(self, packet: bytes, addr: Address) -> None:
            self.count += 1

    _, bob = hosts
    total = 60_000
    with bob.inside(), Count(ip=GROUP, port=PORT, interface="vb", rcvbuf=1 << 20, poller=poller) as listener:
        template = frame("10.99.0.1", b"x")
        poller.poll()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(total):
            source = socket.inet_aton(f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")
            head = template[14:24] + b"\0\0" + source + template[30:34]
            forged = template[:14] + head[:10] + struct.pack("!H", checksum(head)) + head[12:] + template[34:]
            wire.send(forged)
            if number % 64 == 0:
                poller.poll()
        settle(poller, lambda: listener.count + listener.statistics().dropped == total)
        assert listener.count > total // 2
        # 60,000 kept addresses would take more than 10 MiB.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * 1024


def test_s9_patterns_that_backtrack_without_end_are_given_up(poller: Poller) -> None:
    slow = Limited(rb"(a+)+$", seconds=0.02)
    poison = b"a" * 60 + b"!"
    with Keeper(slow, GROUP, PORT, poller=poller) as keeper:
        multicast.sendto([b"aaa", poison, b"aaaa", poison, b"aaaaa"], GROUP, PORT)
        settle(poller, lambda: len(keeper.packets) == 3)
        assert keeper.packets == [b"aaa", b"aaaa", b"aaaaa"]
        assert slow.timeouts == keeper.statistics().filtered == 2


def test_s9_a_bound_on_the_length_holds_in_every_thread() -> None:
    found: list[object] = []
    short = Limited(rb"(a+)+$", length=10)
    thread = threading.Thread(target=lambda: found.append(short.match(b"a" * 60 + b"!")))
    thread.start()
    thread.join(20)
    assert found[0] is not None  # ten times a, and nothing else was looked at


@alone
def test_s9_somebody_elses_alarm_still_rings() -> None:
    rang: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    assert Limited("(a+)+$", seconds=0.1).match(b"a" * 60 + b"!") is None
    assert Limited("a", seconds=10).match(b"a") is not None
    deadline = time.monotonic() + 20
    while not rang and time.monotonic() < deadline:
        time.sleep(0.001)
    assert rang == [signal.SIGALRM]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_s9_any_engine_with_match_is_a_filter(poller: Poller) -> None:
    class Linear:
        def match(self, packet: bytes) -> object:
            return packet.startswith(b"k")

    with Keeper(Linear(), GROUP, PORT, poller=poller) as keeper:
        multicast.sendto([b"keep", b"drop"], GROUP, PORT)
        settle(poller, lambda: keeper.statistics().packets == 2)
        assert keeper.packets == [b"keep"]


@pytest.mark.parametrize(
    "filter,options,error",
    [
        (len, {}, FilterError),
        (None, {}, FilterError),
        ("(", {}, FilterError),
        ("a", {"seconds": 0}, ArgumentError),
        ("a", {"length": 0}, ArgumentError),
    ],
)
def test_s9_limits_that_make_no_sense_are_refused(filter: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        filters.Limited(filter, **options)


def test_s10_packets_never_reach_the_log(poller: Poller, caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            super().handle_packet(packet, addr)
            raise LookupError("in the handler")

        def handle_error(self, exc: Exception) -> None:
            pass

    with caplog.at_level(logging.DEBUG), Raising(ip=GROUP, port=PORT, poller=poller) as keeper:
        multicast.sendto([b"\x1b[31mred %d" % number for number in range(1000)], GROUP, PORT)
        settle(poller, lambda: keeper.statistics().packets + keeper.statistics().dropped == 1000 and not keeper.pending)
    assert caplog.records == []


@pytest.mark.needs_root
def test_s11_another_user_cannot_take_a_port_that_is_not_shared(poller: Poller) -> None:
    class Private(multicast.DatagramListener):
        def handle_packet(self, packet: bytes, addr: Address) -> None:
            pass

    def attack() -> str:
        os.setuid(65534)
        results = []
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
                thief.setsockopt(socket.SOL_SOCKET, option, 1)
                try:
                    thief.bind(("127.0.0.1", port))
                    results.append("stolen")
                except OSError as error:
                    results.append(os.strerror(error.errno or 0))
        return ", ".join(results)

    with Private(port=0, poller=poller) as listener:
        port = listener.address[1]
        assert in_child(attack) == "Address already in use, Address already in use"


def test_s14_a_flood_does_not_fill_the_memory() -> None:
    code = f"""
        import resource, multicast, sys
        inbox = multicast.listen(ip={GROUP!r}, port={PORT})
        multicast.sendto([bytes(1000)] * 100, {GROUP!r}, {PORT})
        multicast.poll()
        for _ in range(100): next(inbox)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(200):
            multicast.sendto([bytes(1000)] * 500, {GROUP!r}, {PORT})
            multicast.poll()
        counted = inbox.statistics()
        assert counted.dropped > 10_000
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
    """
    done = subprocess.run(netns.python(code), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * 1024


def test_s15_timers_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rang = Clock(), list[str]()
    with Poller(clock=clock) as poller:
        poller.call_later(10, rang.append, "rang")
        monkeypatch.setattr(time, "time", lambda: 0.0)
        poller.poll()
        assert rang == []
        clock.advance(10)
        poller.poll()
        assert rang == ["rang"]
    assert Poller()._clock is time.monotonic


def test_e14_a_flood_on_one_descriptor_leaves_turns_for_the_others(poller: Poller) -> None:
    class Flooded(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: Address) -> None:
            order.append("packet")

    order: list[str] = []
    poller.budget = 0  # so that the poll is one round
    pair = Pair(lambda pair: order.append("pair"))
    with Flooded(ip=GROUP, port=PORT, rcvbuf=4 << 20, poller=poller):
        multicast.sendto([b"x"] * 2000, GROUP, PORT)
        poller.register(pair)
        poller.call_later(0, order.append, "timer")
        pair.tell()
        poller.poll()
        assert "pair" in order
        assert "timer" in order
        assert order.count("packet") <= 64
        poller.unregister(pair)
    pair.close()


def test_e17_opening_and_closing_again_and_again_leaves_nothing(poller: Poller) -> None:
    def cycle(count: int) -> None:
        for number in range(count):
            Keeper(ip=GROUP, port=PORT, interface="lo", poller=poller).close()
            multicast.sendto("x", GROUP, PORT)
            if number % 3 == 0:
                with pytest.raises(FilterError):
                    Keeper("(", GROUP, PORT, poller=poller)
            elif number % 3 == 1:
                sources = [f"127.0.0.{last}" for last in range(2, 14)]
                with pytest.raises(OSError, match=re.escape("No buffer space")):
                    Keeper(ip="232.90.3.1", port=PORT, interface="lo", sources=sources, poller=poller)

    cycle(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cycle(1500)
    turns(poller)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 1024
    assert len(os.listdir("/proc/self/fd")) < 60
