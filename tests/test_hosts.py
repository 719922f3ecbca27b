"""Several hosts on wires: which way packets go, who hears them, and what happens when the way is blocked."""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import netns
import pytest
from helpers import PATIENCE, Clock, Keeper, Script, joined, settle, sources, turns

import multicast
from multicast import Poller, interfaces, sendto

pytestmark = pytest.mark.needs_namespaces

V4, V6 = "239.1.1.1", "ff05::4242"
PORT = 4242


@contextmanager
def at(host: netns.Host) -> Iterator[Poller]:
    """Be on a host, with a poller of its own."""
    with host.inside(), Poller() as poller:
        yield poller


class Ears:
    """Listeners on a host, made and driven there."""

    def __init__(self, host: netns.Host) -> None:
        self.host = host
        self.poller = Poller()

    def listen(self, *args: Any, **options: Any) -> Keeper:
        with self.host.inside():
            return Keeper(*args, poller=self.poller, **options)

    def until(self, done: Callable[[], object]) -> None:
        with self.host.inside():
            settle(self.poller, done)

    def close(self) -> None:
        with self.host.inside():
            self.poller.close()


@pytest.fixture
def ears() -> Iterator[Callable[[netns.Host], Ears]]:
    made: list[Ears] = []

    def make(host: netns.Host) -> Ears:
        made.append(Ears(host))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Sniffer:
    """Sees every frame that comes in by a device."""

    def __init__(self, host: netns.Host, device: str) -> None:
        with host.inside():
            # ETH_P_ALL in linux/if_ether.h, as packet(7) wants it.
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            self.socket.bind((device, 3))
        self.frames: list[bytes] = []

    def look(self) -> None:
        while True:
            try:
                self.frames.append(self.socket.recv(65536))
            except BlockingIOError:
                return

    def count(self, mark: bytes) -> int:
        """Return how many frames had these bytes in them."""
        self.look()
        return sum(mark in frame for frame in self.frames)

    def wait_for(self, mark: bytes) -> None:
        waiting = select.poll()
        waiting.register(self.socket, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while not self.count(mark):
            assert time.monotonic() < deadline, f"no frame with {mark!r}"
            waiting.poll(1000)


@pytest.fixture
def sniffer() -> Iterator[Callable[[netns.Host, str], Sniffer]]:
    made: list[Sniffer] = []

    def make(host: netns.Host, device: str) -> Sniffer:
        made.append(Sniffer(host, device))
        return made[-1]

    yield make
    for one in made:
        one.socket.close()


@pytest.fixture
def two_wires(lab: netns.Lab) -> tuple[netns.Host, netns.Host]:
    """Two hosts with two wires between them: va to vb is net 0, where the routes lead, and vc to vd net 1."""
    alice, bob = lab.pair()
    lab.link(alice, "vc", bob, "vd", net=1)
    return alice, bob


def send(host: netns.Host, packets: Any, ip: str = V4, **options: Any) -> int:
    with host.inside():
        return multicast.sendto(packets, ip, PORT, **options)


# -- across a wire -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip, source", [(V4, "10.99.0.1"), (V6, "fd99::1")])
@pytest.mark.parametrize("ttl", [1, 32, 255])
def test_packets_cross_the_wire_with_their_ttl(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], ip: str, source: str, ttl: int
) -> None:
    alice, bob = hosts
    at_bob = ears(bob)
    listener = at_bob.listen(ip=ip, port=PORT, details=True)
    assert [one.name for one in listener.interfaces] == ["lo", "vb"]
    assert send(alice, ["one", "two"], ip, ttl=ttl) == 2
    at_bob.until(lambda: len(listener.packets) == 2)
    assert listener.packets == [b"one", b"two"]
    addr = listener.addrs[0]
    assert (addr.host, addr.group, addr.interface, addr.ttl) == (source, ip, "vb", ttl)


def test_a_link_local_ipv6_group_works_on_the_link_that_is_named(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = two_wires
    at_bob = ears(bob)
    on_vb = at_bob.listen(ip="ff02::4242", port=PORT, interface="vb")
    on_vd = at_bob.listen(ip="ff02::4242%vd", port=PORT)
    send(alice, "by va", "ff02::4242%va")
    send(alice, "by vc", "ff02::4242", interface="vc")
    at_bob.until(lambda: on_vb.packets and on_vd.packets)
    assert (on_vb.packets, on_vd.packets) == ([b"by va"], [b"by vc"])
    with bob.inside():
        assert on_vb.addrs[0][3] == socket.if_nametoindex("vb"), "the scope of the sender's address"


@pytest.mark.parametrize("ip", [V4, V6])
def test_the_interface_decides_the_wire(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], ip: str
) -> None:
    alice, bob = two_wires
    at_bob = ears(bob)
    listener = at_bob.listen(ip=ip, port=PORT, details=True)
    addresses = ["10.99.0.1", "10.99.1.1"] if ip == V4 else ["fd99::1", "fd99:0:0:1::1"]
    with alice.inside():
        index = socket.if_nametoindex("vc")
    ways: list[tuple[Any, str, str]] = [
        ("va", "vb", addresses[0]),
        ("vc", "vd", addresses[1]),
        (index, "vd", addresses[1]),
        (addresses[1], "vd", addresses[1]),
        (addresses[0], "vb", addresses[0]),
    ]
    if ip == V4:
        ways.append((None, "vb", addresses[0]))
    for way, _, _ in ways:
        send(alice, repr(way), ip, interface=way)
    at_bob.until(lambda: len(listener.packets) == len(ways))
    heard = {packet.decode(): addr for packet, addr in zip(listener.packets, listener.addrs, strict=True)}
    assert {name: (addr.interface, addr.host) for name, addr in heard.items()} == {
        repr(way): (device, source) for way, device, source in ways
    }


@pytest.mark.parametrize("ip, source", [(V4, "10.99.1.1"), (V6, "fd99:0:0:1::1")])
def test_the_source_address_decides_address_and_wire_against_the_routes(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], ip: str, source: str
) -> None:
    alice, bob = two_wires
    alice.ip("-6 route add multicast ff00::/8 dev va table local metric 1")
    at_bob = ears(bob)
    listener = at_bob.listen(ip=ip, port=PORT, details=True)
    send(alice, "as the routes say", ip)
    send(alice, "from the other address", ip, source_ip=source)
    with at(alice) as poller:
        Script(["from a sender"], ip, PORT, source_ip=source, poller=poller)
        poller.loop()
    at_bob.until(lambda: len(listener.packets) == 3)
    ways = {packet: (addr.interface, addr.host) for packet, addr in zip(listener.packets, listener.addrs, strict=True)}
    assert ways[b"as the routes say"][0] == "vb"
    assert ways[b"from the other address"] == ("vd", source)
    assert ways[b"from a sender"] == ("vd", source)


def test_one_of_several_addresses_of_an_interface_can_be_the_source(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = hosts
    alice.ip("address add 10.99.0.77/24 dev va")
    at_bob = ears(bob)
    listener = at_bob.listen(ip=V4, port=PORT)
    send(alice, "1", source_ip="10.99.0.77")
    send(alice, "2", interface="10.99.0.77")
    send(alice, "3", interface="va", source_ip="10.99.0.77")
    send(alice, "4", interface="va")
    at_bob.until(lambda: len(listener.packets) == 4)
    assert sources(listener.addrs) == ["10.99.0.77", "10.99.0.77", "10.99.0.77", "10.99.0.1"]


# -- staying on the host -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", [V4, V6])
def test_ttl_0_never_leaves_the_host_whatever_the_routes_do_meanwhile(
    two_wires: tuple[netns.Host, netns.Host],
    ears: Callable[..., Ears],
    sniffer: Callable[..., Sniffer],
    ip: str,
) -> None:
    alice, bob = two_wires
    wires = [sniffer(bob, "vb"), sniffer(bob, "vd")]
    at_alice = ears(alice)
    # Not a member on the wires, for the kernel holds back what has TTL 0 only where the sending host is one.
    listener = at_alice.listen(ip=ip, port=PORT, interface="lo")
    clock = Clock()
    with at(alice), Poller(clock=clock) as poller:
        sender = Script((f"secret {number}" for number in range(100)), ip, PORT, 0, interval=1, poller=poller)
        changes = [
            [],
            ["route del 224.0.0.0/4 dev va"],
            ["route add 224.0.0.0/4 dev vc metric 1"],
            ["route replace default dev va"],
            ["link set lo down", "link set lo up"],
            ["link set va down"],
            ["link set va up", "route replace 224.0.0.0/4 dev va metric 0"],
            ["-6 route add multicast ff00::/8 dev va table local metric 1"],
        ]
        for change in changes:
            alice.ip(*change)
            for _ in range(2):
                clock.advance(1)
                try:
                    turns(poller)
                except OSError:
                    pass  # no way at all is no leak
            try:
                multicast.sendto("secret, at once", ip, PORT, 0)
                multicast.sendto("secret, from an address", ip, PORT, 0, source_ip="10.99.1.1" if ip == V4 else None)
            except OSError:
                pass
        sender.close()
        multicast.sendto("for everybody", ip, PORT, 1, interface="va")
        multicast.sendto("for everybody", ip, PORT, 1, interface="vc")
    for wire in wires:
        wire.wait_for(b"for everybody")
        assert wire.count(b"secret") == 0
    at_alice.until(lambda: b"secret 0" in listener.packets)


def test_ttl_0_refuses_another_interface(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, _ = hosts
    with pytest.raises(multicast.ArgumentError, match="ttl=0 keeps packets on this host"):
        send(alice, "x", ttl=0, interface="va")


@pytest.mark.parametrize("ip", [V4, V6])
def test_the_loopback_switch_decides_whether_this_host_hears_too(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], ip: str
) -> None:
    alice, bob = hosts
    at_alice, at_bob = ears(alice), ears(bob)
    here, there = at_alice.listen(ip=ip, port=PORT), at_bob.listen(ip=ip, port=PORT)
    send(alice, "quiet", ip, interface="va", loopback=False)
    send(alice, "loud", ip, interface="va")
    with at(alice) as poller:
        Script(["quiet too"], ip, PORT, interface="va", loopback=False, poller=poller)
        poller.loop()
    send(alice, "last", ip, interface="va")
    at_alice.until(lambda: b"last" in here.packets)
    at_bob.until(lambda: b"last" in there.packets)
    assert here.packets == [b"loud", b"last"]
    assert there.packets == [b"quiet", b"loud", b"quiet too", b"last"]


# -- source-specific -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ip, right, wrong", [("232.1.1.1", "10.99.0.1", "10.99.0.77"), ("ff35::1", "fd99::1", "fd99::77")]
)
def test_a_source_specific_listener_hears_its_source_alone(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], ip: str, right: str, wrong: str
) -> None:
    alice, bob = hosts
    alice.ip(f"address add {wrong}/64 dev va nodad" if ":" in wrong else f"address add {wrong}/24 dev va")
    at_bob = ears(bob)
    anybody = at_bob.listen(ip=ip, port=PORT, interface="vb")
    only_right = at_bob.listen(ip=ip, port=PORT, interface="vb", sources=[right])
    only_wrong = at_bob.listen(ip=ip, port=PORT, interface="vb", sources=[wrong])
    nobody = at_bob.listen(ip=ip, port=PORT, interface="vb", sources=["10.9.9.9" if "." in ip else "fd99::99"])
    both = at_bob.listen(ip=ip, port=PORT, interface="vb", sources=[right, wrong])
    not_right = at_bob.listen(ip=ip, port=PORT, interface="vb", exclude=[right])
    for _ in range(2):
        for source in (right, wrong):
            send(alice, source, ip, source_ip=source)
    at_bob.until(lambda: all(len(one.packets) == 4 for one in (anybody, both)))
    assert sources(only_right.addrs) == [right] * 2
    assert sources(only_wrong.addrs) == [wrong] * 2
    assert nobody.packets == []
    assert sources(not_right.addrs) == [wrong] * 2


# -- isolation -----------------------------------------------------------------------------------------------

OTHER_PROGRAM = """
    import socket, struct, sys
    port, *joins = sys.argv[1:]
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.settimeout(20)
    s.bind(("", int(port)))
    for join in joins:
        group, device = join.split("%")
        request = struct.pack("@4s4si", socket.inet_aton(group), bytes(4), socket.if_nametoindex(device))
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    print("ready", flush=True)
    while True:
        print(s.recv(100).decode(), flush=True)
"""


def test_what_other_programs_join_changes_nothing(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = two_wires
    at_bob = ears(bob)
    mine = at_bob.listen(ip="239.1.1.1", port=PORT, interface="vb")
    another = at_bob.listen(ip="239.1.1.3", port=PORT, interface="vb")
    program = bob.popen(
        netns.python(OTHER_PROGRAM, str(PORT), "239.1.1.2%vb", "239.1.1.1%vd", "239.1.1.1%vb", "239.1.1.3%vd")
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    send(alice, "other group", "239.1.1.2", interface="va")
    send(alice, "other wire", "239.1.1.1", interface="vc")
    send(alice, "both other", "239.1.1.3", interface="vc")
    with alice.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unicast:
        unicast.sendto(b"unicast", ("10.99.0.2", PORT))
    heard = {program.stdout.readline().strip() for _ in range(4)}
    assert heard == {"other group", "other wire", "both other", "unicast"}, "so all of it is at the host"
    send(alice, "mine", "239.1.1.1", interface="va")
    at_bob.until(lambda: mine.packets)
    assert mine.packets == [b"mine"]
    assert another.packets == []
    # ... and the other program has lost nothing by our being there.
    assert program.stdout.readline() == "mine\n"


def test_a_listener_hears_the_interfaces_it_asked_for(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = two_wires
    at_bob = ears(bob)
    wanted: dict[str, Any] = {
        "vb": "vb",
        "vd": "10.99.1.2",
        "vb vd": ["vb", "vd"],
        "lo": "lo",
        "lo vb vd": "all",
        "default": None,
    }
    listeners = {
        name: at_bob.listen(ip=V4, port=PORT, interface=interface, details=True) for name, interface in wanted.items()
    }
    for _ in range(3):
        send(alice, "vb", interface="va")
        send(alice, "vd", interface="vc")
    send(bob, "lo", interface="lo")
    at_bob.until(lambda: all(len(listeners[name].packets) == 7 for name in ("lo vb vd", "default")))
    for name, listener in listeners.items():
        everything = sorted(listener.packets)
        expected = "lo vb vd" if name == "default" else name
        assert everything == sorted(
            device.encode() for device in expected.split() for _ in range(1 if device == "lo" else 3)
        )
        assert [addr.interface for addr in listener.addrs] == [packet.decode() for packet in listener.packets]
        assert [one.name for one in listener.interfaces] == expected.split()


def test_closing_leaves_the_group_on_every_interface(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    _, bob = two_wires
    at_bob = ears(bob)
    for ip in (V4, V6):
        listener = at_bob.listen(ip=ip, port=PORT)
        with bob.inside():
            assert sorted(joined(ip)) == ["lo", "vb", "vd"]
            listener.close()
            assert joined(ip) == []


# -- blocked ways --------------------------------------------------------------------------------------------

COUNT = 150  # which the other side has room for
PACKETS = [b"%03d" % number + bytes(200) for number in range(COUNT)]


def numbers(listener: Keeper) -> list[int]:
    return [int(packet[:3]) for packet in listener.packets]


def throttle(host: netns.Host, limit: str) -> None:
    """Make the way out of va narrow, with room for so many bytes in front of it."""
    done = host.run(f"tc qdisc replace dev va root tbf rate 4mbit burst 2kb limit {limit}".split())
    if done.returncode:
        pytest.skip(f"this kernel has no token bucket filter: {done.stderr.strip()}")


@pytest.mark.needs_program("tc")
@pytest.mark.parametrize("offload", [False, True], ids=["packets", "bursts"])
def test_a_full_queue_of_the_interface_loses_nothing_and_keeps_the_order(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], offload: bool
) -> None:
    alice, bob = hosts
    throttle(alice, "4kb")
    at_bob = ears(bob)
    listener = at_bob.listen(ip=V4, port=PORT)
    with at(alice) as poller:
        sender = Script(PACKETS, V4, PORT, offload=offload, poller=poller)
        poller.loop()
        assert sender.statistics().packets == COUNT
        assert sender.statistics().full > 0, "the queue was not full, so this shows nothing"
        assert sender.statistics().refused == 0
    at_bob.until(lambda: len(listener.packets) >= COUNT)
    assert numbers(listener) == list(range(COUNT))
    listener.packets.clear()
    assert send(alice, PACKETS, offload=offload) == COUNT
    at_bob.until(lambda: len(listener.packets) >= COUNT)
    assert numbers(listener) == list(range(COUNT))


@pytest.mark.needs_program("tc")
@pytest.mark.parametrize("offload", [False, True], ids=["packets", "bursts"])
def test_a_full_buffer_of_the_socket_loses_nothing_and_keeps_the_order(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], offload: bool
) -> None:
    alice, bob = hosts
    throttle(alice, "10mb")
    at_bob = ears(bob)
    listener = at_bob.listen(ip=V4, port=PORT)
    polls = 0
    with at(alice) as poller:
        sender = Script(PACKETS, V4, PORT, offload=offload, poller=poller)
        assert sender.socket is not None
        sender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        while not sender.closed:
            poller.poll(PATIENCE)
            polls += 1
        assert sender.statistics().packets == COUNT
    assert 3 < polls < 5 * COUNT, "it waited for room, and did not spin"
    at_bob.until(lambda: len(listener.packets) >= COUNT)
    assert numbers(listener) == list(range(COUNT))


@pytest.mark.needs_program("nft")
def test_what_a_firewall_drops_is_reported_and_counted_and_the_rest_goes_on(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = hosts
    rules = f"""table inet f {{ chain out {{ type filter hook output priority 0;
        ip daddr {V4} @th,64,8 0x58 drop; }}; }}"""  # 0x58 is X: the first byte after the UDP header
    done = alice.run(["nft", "-f", "-"], input=rules)
    if done.returncode:
        pytest.skip(f"nft cannot be used here: {done.stderr.strip()}")
    at_bob = ears(bob)
    listener = at_bob.listen(ip=V4, port=PORT)
    errors: list[Exception] = []

    class Careful(Script):
        def handle_error(self, error: Exception) -> None:
            errors.append(error)

    with at(alice) as poller:
        sender = Careful(["one", "X", "two", "X", "X", "three"], V4, PORT, poller=poller)
        poller.loop()
        assert (sender.statistics().packets, sender.statistics().refused) == (3, 3)
        assert [type(error) for error in errors] == [PermissionError] * 3
        assert "firewall" in errors[0].__notes__[0]
        with pytest.raises(PermissionError) as refused:
            multicast.sendto(["four", "X"], V4, PORT, offload=False)
        assert any("firewall" in note for note in refused.value.__notes__)
    at_bob.until(lambda: len(listener.packets) == 4)
    assert listener.packets == [b"one", b"two", b"three", b"four"]


@pytest.mark.parametrize("ip", [V4, V6])
def test_a_sender_resumes_when_its_interface_is_up_again(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears], ip: str
) -> None:
    alice, bob = hosts
    at_bob = ears(bob)
    listener = at_bob.listen(ip=ip, port=PORT, interface="vb")
    errors: list[OSError] = []

    class Careful(Script):
        def handle_error(self, error: Exception) -> None:
            assert isinstance(error, OSError)
            errors.append(error)

    clock = Clock()
    poller = Poller(clock=clock)
    with alice.inside():
        sender = Careful(map(str, range(6)), ip, PORT, interface="va", interval=1, poller=poller)
        turns(poller)
        alice.ip("link set va down")
        for _ in range(3):
            clock.advance(1)
            turns(poller)
        assert errors, "it is told that the network is gone"
        assert errors[0].__notes__
        assert len(errors) == 1, "once"
        alice.ip("link set va up")
        if ip == V6:
            alice.ip("-6 address replace fd99::1/64 dev va nodad")
    probe = at_bob.listen(ip=ip, port=PORT + 1, interface="vb")
    until_heard(alice, probe, at_bob, ip)
    with alice.inside():
        clock.advance(100)
        deadline = time.monotonic() + PATIENCE
        while not sender.closed:
            clock.advance(1)
            turns(poller)
            assert time.monotonic() < deadline
        poller.close()
    assert sender.statistics().refused == 0
    at_bob.until(lambda: len(listener.packets) == 6)
    assert listener.packets == [b"%d" % number for number in range(6)]


def until_heard(host: netns.Host, listener: Keeper, there: Ears, ip: str) -> None:
    """Send until it is heard: after a change of a link, the kernel is ready in its own time."""
    deadline = time.monotonic() + PATIENCE
    while not listener.packets:
        assert time.monotonic() < deadline
        try:
            with host.inside():
                multicast.sendto("probe", ip, listener.group.port, interface="va")
        except OSError:
            pass
        with there.host.inside():
            there.poller.poll(0.05)


def test_a_listener_goes_on_when_its_interface_is_up_again(
    hosts: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = hosts
    at_bob = ears(bob)
    listener = at_bob.listen(ip=V4, port=PORT, interface="vb")
    send(alice, "before", interface="va")
    at_bob.until(lambda: listener.packets)
    assert listener.packets == [b"before"]
    listener.packets.clear()
    bob.ip("link set vb down", "link set vb up")
    until_heard(alice, listener, at_bob, V4)


def test_a_pinned_sender_keeps_its_wire_when_the_routes_change(
    two_wires: tuple[netns.Host, netns.Host], ears: Callable[..., Ears]
) -> None:
    alice, bob = two_wires
    at_bob = ears(bob)
    listener = at_bob.listen(ip=V4, port=PORT, details=True)
    clock = Clock()
    with alice.inside(), Poller(clock=clock) as poller:
        Script(["1", "2"], V4, PORT, interface="va", interval=1, poller=poller)
        turns(poller)
        alice.ip("route del 224.0.0.0/4 dev va")
        clock.advance(1)
        turns(poller)
    at_bob.until(lambda: len(listener.packets) == 2)
    assert [addr.interface for addr in listener.addrs] == ["vb", "vb"]


def test_no_way_to_a_single_host_is_told_with_advice(lab: netns.Lab) -> None:
    host = lab.host("host")
    with pytest.raises(OSError, match="unreachable") as refused:
        send(host, "x", "10.1.2.3")
    assert "no route to 10.1.2.3" in refused.value.__notes__[0]


def test_no_way_to_an_ipv6_group_is_told_with_advice(lab: netns.Lab) -> None:
    host = lab.host("host")
    host.ip("-6 route del local ff00::/8 dev lo table local")
    with pytest.raises(OSError, match="unreachable") as refused:
        send(host, "x", V6)
    assert "ff00::/8" in refused.value.__notes__[0]


# -- crowded hosts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(lab: netns.Lab) -> tuple[netns.Host, netns.Host]:
    """A host with more interfaces than a socket takes memberships, and one at the other ends."""
    crowded, other = lab.host("crowded"), lab.host("other")
    for number in range(4):
        lab.link(crowded, f"v{number}", other, f"w{number}", net=number)
    crowded.sysctl("ipv4.igmp_max_memberships", 2)
    return crowded, other


def send_by_each(other: netns.Host, port: int, group: str = "239.1.1.1", devices: Iterable[str] = ()) -> None:
    with other.inside():
        for device in devices or [f"w{number}" for number in range(4)]:
            sendto(device, group, port, interface=device)


def test_a_listener_hears_its_group_on_all_interfaces_whatever_a_socket_takes(
    crowd: tuple[netns.Host, netns.Host], poller: Poller, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    crowded, other = crowd
    with crowded.inside(), caplog.at_level(logging.WARNING, "multicast"):
        keeper = Keeper(ip="239.1.1.1", port=free_port, details=True, poller=poller)
        stranger = Keeper(ip="239.1.1.2", port=free_port, interface="v0", poller=poller)
        named = Keeper(ip="239.1.1.1", port=free_port, interface="v3", poller=poller)
    assert len(keeper.interfaces) == 5
    assert not caplog.records
    send_by_each(other, free_port)
    send_by_each(other, free_port, "239.1.1.2", ["w0", "w1"])
    settle(poller, lambda: len(keeper.packets) == 4 and stranger.packets and named.packets)
    turns(poller)
    heard = sorted((packet.decode(), addr.interface) for packet, addr in zip(keeper.packets, keeper.addrs, strict=True))
    assert heard == [(f"w{number}", f"v{number}") for number in range(4)]
    assert stranger.packets == [b"w0"], "other groups and interfaces stay away"
    assert named.packets == [b"w3"]
    for one in (keeper, stranger, named):
        one.close()
    with crowded.inside():
        assert not [one for one in interfaces.memberships() if one.group.startswith("239.1.1.")]


def test_a_crowded_listener_follows_interfaces_that_come_and_go(
    lab: netns.Lab, crowd: tuple[netns.Host, netns.Host], poller: Poller, free_port: int
) -> None:
    crowded, other = crowd
    with crowded.inside(), Keeper(ip="239.1.1.1", port=free_port, poller=poller) as keeper:
        held = len(keeper._memberships)
        crowded.ip("link del v3", "link del v2")
        settle(poller, lambda: {one.name for one in keeper.interfaces} == {"lo", "v0", "v1"})
        assert len(keeper._memberships) < held
        lab.link(crowded, "v2", other, "w2", net=2)
        lab.link(crowded, "v3", other, "w3", net=3)
        settle(poller, lambda: len(keeper.interfaces) == 5)
        keeper.rejoin()
        assert len(keeper.interfaces) == 5
        assert len(keeper._memberships) <= held
        send_by_each(other, free_port)
        settle(poller, lambda: len(keeper.packets) == 4)
    assert sorted(keeper.packets) == [b"w0", b"w1", b"w2", b"w3"]


def test_members_of_a_bridge_are_not_joined_and_those_of_a_vrf_are(lab: netns.Lab, poller: Poller) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    for number in range(3):
        lab.link(alice, f"v{number}", bob, f"w{number}", net=number)
    alice.ip("link add br0 type bridge", "link set v0 master br0", "link set br0 up")
    with suppress(Exception):  # a kernel without them
        alice.ip("link add red type vrf table 10", "link set v1 master red", "link set red up")
    with alice.inside():
        slaves = {one.name for one in interfaces.interfaces() if one.enslaved}
        assert slaves == {"v0"}
        with Keeper(ip="239.1.1.1", port=5000, poller=poller) as keeper:
            names = {one.name for one in keeper.interfaces}
            assert "v0" not in names
            assert names >= {"lo", "v1", "v2", "br0"}
        with Keeper(ip="239.1.1.1", port=5000, interface="v0", poller=poller) as keeper:
            assert [one.name for one in keeper.interfaces] == ["v0"], "unless it is named"
