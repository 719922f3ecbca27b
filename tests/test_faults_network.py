"""What a network can do to packets, row by row of the catalogue of faults, and what comes of it here.

The rows have the names N1 to N25. N4, N5 and N8 are about repair, which is not part of the package.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from helpers import Keeper, settle

import multicast
from multicast import Poller

pytestmark = [pytest.mark.fault, pytest.mark.needs_namespaces]

GROUP, PORT = "239.90.1.1", 4390
RELAY = Path(__file__).with_name("relay.py")


class Path3:
    """Three hosts in a row: alice with va, the relay between, bob with vb."""

    def __init__(self, lab: netns.Lab, **faults: Any) -> None:
        self.alice, self.middle, self.bob = (lab.host(name) for name in ("alice", "relay", "bob"))
        lab.link(self.alice, "va", self.middle, "ra", net=0)
        lab.link(self.middle, "rb", self.bob, "vb", net=1)
        # Bundles would be one frame on a wire that can carry them; a real one cannot.
        self.alice.ip("link set va gso_max_segs 1")
        command = [sys.executable, str(RELAY), "ra", "rb", json.dumps(faults)]
        self.relay = self.middle.popen(command, stdin=subprocess.PIPE)
        assert self.relay.stdout is not None
        assert self.relay.stdout.readline() == "ready\n"

    @contextlib.contextmanager
    def listening(self, poller: Poller, **options: Any) -> Iterator[Keeper]:
        with self.bob.inside():
            keeper = Keeper(ip=GROUP, port=PORT, interface="vb", rcvbuf=4 << 20, poller=poller, **options)
        with keeper:
            yield keeper

    def send(self, packets: Any, **options: Any) -> int:
        with self.alice.inside():
            return multicast.sendto(packets, GROUP, PORT, **{"interface": "va", **options})

    def end(self) -> dict[str, list[int]]:
        """Stop the relay, when it has passed on everything; return the numbers of what it did."""
        out, _ = self.relay.communicate(timeout=20)
        did: dict[str, list[int]] = json.loads(out)
        return did


def numbered(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield b"%05d" % number


def numbers(keeper: Keeper) -> list[int]:
    return [int(packet) for packet in keeper.packets if packet.isdigit()]


def without(count: int, missing: list[int]) -> list[int]:
    return [number for number in range(count) if number not in set(missing)]


def counters(host: netns.Host, prefix: str) -> dict[str, int]:
    """Return the kernel's counters of one protocol on a host, from /proc/net/snmp."""
    with host.inside():
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    heads, values = (line.split()[1:] for line in lines if line.startswith(prefix + ":"))
    return dict(zip(heads, map(int, values), strict=True))


def test_n1_random_loss_leaves_exactly_its_gaps_and_is_not_taken_for_ours(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, seed=1, loss=0.2)
    with way.listening(poller) as keeper:
        way.send(numbered(500))
        lost = way.end()["lost"]
        assert 50 < len(lost) < 150
        settle(poller, lambda: len(keeper.packets) >= 500 - len(lost))
        assert numbers(keeper) == without(500, lost)
        assert keeper.statistics().dropped == 0


def test_n1_the_same_seed_loses_the_same(lab: netns.Lab) -> None:
    both = []
    for _ in range(2):
        with netns.Lab() as once:
            way = Path3(once, seed=7, loss=0.1)
            with Poller() as poller, way.listening(poller):
                way.send(numbered(200))
                both.append(way.end()["lost"])
    assert both[0] == both[1] != []


def test_n2_deterministic_loss_leaves_the_expected_gaps(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, every=10)
    with way.listening(poller) as keeper:
        way.send(numbered(500))
        assert way.end()["lost"] == list(range(0, 500, 10))
        settle(poller, lambda: len(keeper.packets) >= 450)
        assert numbers(keeper) == [number for number in range(500) if number % 10]


def test_n3_reception_goes_on_after_a_black_hole(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, drop=list(range(100, 300)))
    with way.listening(poller) as keeper:
        way.send(numbered(400))
        way.end()
        settle(poller, lambda: len(keeper.packets) >= 200)
        assert numbers(keeper) == [*range(100), *range(300, 400)]


def test_n6_duplicates_are_delivered_as_they_come(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, seed=3, dup=0.1)
    with way.listening(poller) as keeper:
        way.send(numbered(500))
        doubled = way.end()["duplicated"]
        assert doubled
        settle(poller, lambda: len(keeper.packets) >= 500 + len(doubled))
        assert numbers(keeper) == sorted([*range(500), *doubled])


def test_n7_what_was_reordered_comes_in_the_order_of_the_wire(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, seed=4, reorder=0.1)
    with way.listening(poller) as keeper:
        way.send(numbered(500))
        did = way.end()
        assert did["reordered"]
        settle(poller, lambda: len(keeper.packets) >= 500)
        assert numbers(keeper) == did["sent"] != list(range(500))


def test_n9_corruption_that_the_checksum_catches_is_counted_by_the_kernel(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, seed=5, corrupt=0.1)
    before = counters(way.bob, "Udp")["InCsumErrors"]
    with way.listening(poller) as keeper:
        way.send(numbered(500))
        corrupted = way.end()["corrupted"]
        assert corrupted
        settle(poller, lambda: len(keeper.packets) >= 500 - len(corrupted))
        assert numbers(keeper) == without(500, corrupted)
        assert counters(way.bob, "Udp")["InCsumErrors"] - before == len(corrupted)


def test_n10_corruption_with_a_forged_checksum_is_delivered(lab: netns.Lab, poller: Poller) -> None:
    """Nobody below the program can tell; what needs more brings a checksum of its own."""
    way = Path3(lab, seed=6, corrupt=0.1, forge=True)
    with way.listening(poller) as keeper:
        way.send(numbered(500))
        corrupted = way.end()["corrupted"]
        settle(poller, lambda: len(keeper.packets) >= 500)
        assert [at for at, packet in enumerate(keeper.packets) if not packet.isdigit()] == corrupted != []


def test_n11_a_rate_limit_on_the_path_shows_as_gaps(lab: netns.Lab, poller: Poller) -> None:
    way = Path3(lab, rate=100)
    with way.listening(poller) as keeper:
        way.send(numbered(300))
        lost = way.end()["lost"]
        assert len(lost) > 100
        settle(poller, lambda: len(keeper.packets) >= 300 - len(lost))
        assert numbers(keeper) == without(300, lost)


def test_n12_a_datagram_whose_fragment_is_lost_is_missing_whole(lab: netns.Lab, poller: Poller) -> None:
    # The relay sees the first fragments only, and drops one in ten of them.
    way = Path3(lab, every=10)
    before = counters(way.bob, "Ip")["ReasmReqds"]
    with way.listening(poller, mtu=65535) as keeper:
        way.send(b"%05d" % number + bytes(8995) for number in range(50))
        way.end()
        settle(poller, lambda: len(keeper.packets) >= 45)
        assert [int(packet[:5]) for packet in keeper.packets] == [number for number in range(50) if number % 10]
        assert {len(packet) for packet in keeper.packets} == {9000}
        assert counters(way.bob, "Ip")["ReasmReqds"] > before


def test_n13_packets_that_no_longer_fit_are_fragmented_and_arrive(
    hosts: tuple[netns.Host, netns.Host], poller: Poller
) -> None:
    alice, bob = hosts
    with bob.inside(), Keeper(ip=GROUP, port=PORT, interface="vb", poller=poller) as keeper:
        with alice.inside():
            multicast.sendto(bytes(1000), GROUP, PORT, interface="va")
            alice.ip("link set va mtu 600")
            # A bundle, whose segments do not fit any more, and a single packet.
            assert multicast.sendto([bytes(1000)] * 20, GROUP, PORT, interface="va") == 20
            multicast.sendto(bytes(1400), GROUP, PORT, interface="va")
        settle(poller, lambda: len(keeper.packets) >= 22)
        assert [len(packet) for packet in keeper.packets] == [1000] * 21 + [1400]


def test_n17_a_route_that_moves_does_not_move_a_pinned_sender(lab: netns.Lab, poller: Poller) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    lab.link(alice, "va", bob, "vb", net=0)
    lab.link(alice, "vc", bob, "vd", net=1)
    with bob.inside():
        right = Keeper(ip=GROUP, port=PORT, interface="vb", poller=poller)
        wrong = Keeper(ip=GROUP, port=PORT, interface="vd", poller=poller)
    with right, wrong, alice.inside():
        multicast.sendto("1", GROUP, PORT, interface="va")
        alice.ip("route replace 224.0.0.0/4 dev vc metric 1")
        multicast.sendto("2", GROUP, PORT, interface="va")
        multicast.sendto("3", GROUP, PORT)
        settle(poller, lambda: len(right.packets) >= 2 and wrong.packets)
        assert (right.packets, wrong.packets) == ([b"1", b"2"], [b"3"])


def switch_with(lab: netns.Lab, *names: str, options: str = "") -> tuple[netns.Host, list[netns.Host]]:
    """A bridge that looks into memberships, and hosts at its ports, each with the device v0."""
    switch, hosts = lab.host("switch"), [lab.host(name) for name in names]
    switch.ip(f"link add br0 type bridge mcast_snooping 1 {options}", "link set br0 up")
    switch.ip("address add 10.99.0.9/24 dev br0")
    for number, host in enumerate(hosts, 1):
        switch.ip(f"link add p{number} type veth peer name v0 netns {host.path}", f"link set p{number} master br0 up")
        # What is not known to have members goes nowhere, so nothing can come by flooding.
        switch.ip(f"link set p{number} type bridge_slave mcast_flood off")
        host.ip(f"address add 10.99.0.{number}/24 dev v0", "link set v0 up", "route add 224.0.0.0/4 dev v0")
    return switch, hosts


def send_until_heard(sender: netns.Host, keeper: Keeper, poller: Poller, packet: bytes) -> None:
    """A switch takes its time to learn who is a member."""
    for _ in range(1000):
        with sender.inside():
            multicast.sendto(packet, GROUP, PORT, interface="v0")
        poller.poll(0.02)
        if packet in keeper.packets:
            return
    raise AssertionError(f"{packet!r} was never heard")


def test_n18_a_snooping_switch_with_a_querier_passes_packets_to_members_alone(
    lab: netns.Lab, poller: Poller
) -> None:
    # Short intervals, and before the querier begins; in hundredths of a second (ip-link(8)).
    intervals = (
        "mcast_query_response_interval 50 mcast_startup_query_interval 50 mcast_last_member_interval 20"
        " mcast_query_interval 100 mcast_membership_interval 500 mcast_querier_interval 500"
    )
    switch, (alice, bob, carol) = switch_with(lab, "alice", "bob", "carol", options=intervals)
    with carol.inside():
        stranger = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(0x0800))
        stranger.bind(("v0", 0x0800))
    with bob.inside():
        keeper = Keeper(ip=GROUP, port=PORT, interface="v0", poller=poller)
    with stranger, keeper:
        switch.ip("link set br0 type bridge mcast_querier 1")
        send_until_heard(alice, keeper, poller, b"there?")
        with alice.inside():
            multicast.sendto(numbered(200), GROUP, PORT, interface="v0")
        settle(poller, lambda: b"00199" in keeper.packets)
        assert numbers(keeper) == list(range(200))
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(stranger.recv(65536))
        assert [frame for frame in frames if frame.endswith(b"00199") or b"there?" in frame] == []


def test_n19_a_switch_that_has_forgotten_a_member_hears_of_it_when_the_group_is_silent(
    lab: netns.Lab, poller: Poller, caplog: pytest.LogCaptureFixture
) -> None:
    # The querier asks once, and for as long as this takes no more.
    options = "mcast_startup_query_count 1 mcast_query_response_interval 10"
    switch, (alice, bob) = switch_with(lab, "alice", "bob", options=options)
    with bob.inside():
        keeper = Keeper(ip=GROUP, port=PORT, interface="v0", silence=0.5, poller=poller)
    with keeper:
        switch.ip("link set br0 type bridge mcast_querier 1")
        send_until_heard(alice, keeper, poller, b"there?")
        for number in range(100):  # its answer to that may still be on the way
            switch.run(["bridge", "mdb", "del", "dev", "br0", "port", "p2", "grp", GROUP])
            with alice.inside():
                multicast.sendto(b"%d" % number, GROUP, PORT, interface="v0")
            poller.poll(0.02)
            if b"%d" % number not in keeper.packets:
                break
        else:
            raise AssertionError("the switch cannot be made to forget")
        send_until_heard(alice, keeper, poller, b"again")
    assert "no packet for 0.5 s" in caplog.text


def test_n20_a_member_that_is_killed_is_no_member(hosts: tuple[netns.Host, netns.Host]) -> None:
    _, bob = hosts
    code = f"""
        import multicast, sys
        multicast.listen(ip="{GROUP}", port={PORT}, interface="vb")
        print("joined", flush=True)
        sys.stdin.read()
    """
    process = bob.popen(netns.python(code), stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "joined\n"
    from multicast.interfaces import memberships

    with bob.inside():
        assert GROUP in {one.group for one in memberships()}
        process.kill()
        process.wait(20)
        assert GROUP not in {one.group for one in memberships()}


@pytest.mark.needs_program("smcrouted", "smcroutectl")
@pytest.mark.parametrize("ttl,arrive", [(1, 0), (2, 20)])
def test_n21_each_router_takes_one_off_the_ttl(
    lab: netns.Lab, poller: Poller, tmp_path: Path, ttl: int, arrive: int
) -> None:
    alice, router, bob = (lab.host(name) for name in ("alice", "router", "bob"))
    lab.link(alice, "va", router, "ra", net=0)
    lab.link(router, "rb", bob, "vb", net=1)
    config, control = tmp_path / "smcroute.conf", tmp_path / "smcroute.sock"
    config.write_text(f"phyint ra enable\nphyint rb enable\nmroute from ra group {GROUP} to rb\n")
    command = ["smcrouted", "-n", "-N", "-f", str(config), "-u", str(control), "-P", str(tmp_path / "pid")]
    daemon = router.popen(command)
    ask = ["smcroutectl", "-u", str(control), "show", "routes"]
    for _ in range(200):
        if GROUP in router.run(ask, check=False).stdout:
            break
        assert daemon.poll() is None, daemon.communicate()
    with bob.inside(), Keeper(ip=GROUP, port=PORT, interface="vb", details=True, poller=poller) as keeper:
        with alice.inside():
            # The router makes its entry for a sender when it first hears it, and may lose what comes before.
            while not keeper.packets:
                multicast.sendto("first", GROUP, PORT, 2, interface="va")
                poller.poll(0.05)
            multicast.sendto(numbered(20), GROUP, PORT, ttl, interface="va")
            multicast.sendto("last", GROUP, PORT, 2, interface="va")
        settle(poller, lambda: b"last" in keeper.packets)
        assert len(numbers(keeper)) == arrive
        assert {addr.ttl for addr in keeper.addrs} == {1}


def test_n22_with_no_route_sending_goes_by_lo_and_joining_by_all(lab: netns.Lab, poller: Poller) -> None:
    host = lab.host("alone")
    with host.inside(), Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:
        assert [interface.name for interface in keeper.interfaces] == ["lo"]
        assert multicast.sendto("x", GROUP, PORT) == 1
        settle(poller, lambda: keeper.packets)
        assert keeper.addrs[0].host == "127.0.0.1"


def test_n23_a_route_without_a_source_does_not_send_from_nowhere(lab: netns.Lab, poller: Poller) -> None:
    host = lab.host("alone")
    host.ip("route add 224.0.0.0/4 dev lo")
    with host.inside(), Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:
        multicast.sendto("x", GROUP, PORT)
        settle(poller, lambda: keeper.packets)
        assert keeper.addrs[0].host == "127.0.0.1"


def test_n24_the_loopback_switch_has_no_effect_on_lo(lab: netns.Lab, poller: Poller) -> None:
    host = lab.host("alone")
    with host.inside(), Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:
        multicast.sendto("x", GROUP, PORT, interface="lo", loopback=False)
        settle(poller, lambda: keeper.packets)


def test_n25_one_group_on_two_interfaces_is_told_apart(lab: netns.Lab, poller: Poller) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    lab.link(alice, "va", bob, "vb", net=0)
    lab.link(alice, "vc", bob, "vd", net=1)
    with bob.inside():
        both = Keeper(ip=GROUP, port=PORT, interface=["vb", "vd"], details=True, poller=poller)
        one = Keeper(ip=GROUP, port=PORT, interface="vd", poller=poller)
    with both, one, alice.inside():
        multicast.sendto("1", GROUP, PORT, interface="va")
        multicast.sendto("2", GROUP, PORT, interface="vc")
        settle(poller, lambda: len(both.packets) == 2 and one.packets)
        assert [addr.interface for addr in both.addrs] == ["vb", "vd"]
        assert one.packets == [b"2"]
