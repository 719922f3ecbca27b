"""Each fault set up in network namespaces, and what the doctor says to it: as root, and with no privileges at all.

Traffic is sent in the moment the doctor begins to count, by sockets that were opened before; so nothing here waits for
luck, and a look can be short.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import helpers
import netns
import programs
import pytest

from multicast import sockets
from multicast.cli import doctor as cli_doctor
from multicast.doctor import Diagnosis, Finding, diagnose, kernel
from multicast.doctor.checks import CHECKS
from multicast.interfaces import resolve
from multicast.sockets import Group

pytestmark = pytest.mark.needs_namespaces

GROUP, PORT = "239.1.1.1", 5000
TARGET = f"{GROUP}:{PORT}"
WAIT = 0.1
# The machine that runs the tests may be a container itself.
NOTHING = ("nothing",)
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def without_powers() -> Iterator[None]:
    """Have no capabilities, with the calling thread, for the length of a with statement."""
    # capset(2): version 3 of the header, for this thread; then effective, permitted and inheritable, twice.
    header = struct.pack("=Ii", 0x20080522, 0)
    before = ctypes.create_string_buffer(24)
    assert _libc.capget(header, before) == 0
    values = list(struct.unpack("=6I", before.raw))
    values[0] = values[3] = 0
    assert _libc.capset(header, struct.pack("=6I", *values)) == 0
    try:
        yield
    finally:
        assert _libc.capset(header, before.raw) == 0


class Scene:
    """Hosts, what is open on them, and who looks."""

    def __init__(self, lab: netns.Lab, root: bool, stack: ExitStack) -> None:
        self.lab, self.root, self._stack = lab, root, stack

    def sender(
        self, host: netns.Host, target: str = TARGET, *, packets: int = 5, size: int = 5, **options: Any
    ) -> Callable[[], None]:
        """Open a sender on a host; return what sends."""
        with host.inside():
            opened, address = sockets.open_sender(Group.parse(target), **options)
        self._stack.enter_context(opened)

        def send() -> None:
            for _ in range(packets):
                opened.sendto(b"x" * size, address)

        return send

    def receiver(self, host: netns.Host, target: str = TARGET, interface: Any = None, **options: Any) -> socket.socket:
        """Open a program's socket on a host that has joined a group."""
        group = Group.parse(target)
        with host.inside():
            opened, _, _ = sockets.open_receiver(group, sockets.receiving(group, interface), **options)
        self._stack.enter_context(opened)
        return opened

    def look(
        self, host: netns.Host, target: str = TARGET, *traffic: Callable[[], object], wait: float = WAIT, **options: Any
    ) -> Diagnosis:
        """Have the doctor look, and send the traffic when it begins to count."""
        rest = list(traffic)

        def progress(left: float, packets: int) -> None:
            while rest:
                rest.pop(0)()

        with host.inside(), ExitStack() as stack:
            if not self.root:
                stack.enter_context(without_powers())
            return diagnose(target, wait=wait, progress=progress, **options)


@pytest.fixture(params=["root", "user"])
def scene(request: pytest.FixtureRequest, lab: netns.Lab) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(lab, request.param == "root", stack)


def finding(diagnosis: Diagnosis, check: str) -> Finding:
    return next(one for one in diagnosis.findings if one.check == check)


def fault(diagnosis: Diagnosis) -> Finding:
    found = diagnosis.fault
    assert found is not None, diagnosis.findings
    if "DOCTOR_SAID" in os.environ:
        said(found)
    return found


def said(found: Finding) -> None:
    """Keep what was said, for the table in a report."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[2].partition(" ")[0]
    with open(os.environ["DOCTOR_SAID"], "a", encoding="utf-8") as file:
        file.write(f"{test}\t{found.status} {found.code}\t{found.cause}\t{' | '.join(found.fixes)}\t{found.seen}\n")


def warning(diagnosis: Diagnosis, code: str) -> Finding:
    found = next((one for one in diagnosis.warnings if one.code == code), None)
    assert found is not None, [(one.status, one.check, one.code, one.cause) for one in diagnosis.findings]
    if "DOCTOR_SAID" in os.environ:
        said(found)
    return found


def warnings(diagnosis: Diagnosis) -> list[str]:
    """The codes of the warnings, but for the one of an installation without the C module."""
    return [one.code for one in diagnosis.warnings if one.code != "engine-missing"]


def no_alarm(diagnosis: Diagnosis) -> None:
    alarms = [one for one in diagnosis.findings if one.status not in ("ok", "skip") and one.code != "engine-missing"]
    assert alarms == []
    assert diagnosis.packets > 0


# -- healthy hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [TARGET, f"[ff15::1]:{PORT}", f"[ff02::77%vb]:{PORT}", f"10.99.0.1@232.1.1.1:{PORT}"]
)
def test_no_alarm_on_a_host_that_receives(scene: Scene, target: str) -> None:
    alice, bob = scene.lab.pair()
    scene.receiver(bob, target)
    outgoing = target.replace("%vb", "%va").rpartition("@")[2]
    no_alarm(scene.look(bob, target, scene.sender(alice, outgoing, interface="va")))


def test_no_alarm_with_an_ipv6_source(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    send = scene.sender(alice, f"[ff35::1]:{PORT}", interface="va", source_ip="fd99::1")
    no_alarm(scene.look(bob, f"[ff35::1]:{PORT}", send, source="fd99::1"))


def test_no_alarm_with_several_interfaces_some_of_them_bad(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.lab.link(alice, "va1", bob, "vb1", net=1)
    bob.ip("link add vx type veth peer name vy", "link set vx up", "link add vz type bridge", "link set vz up")
    scene.receiver(bob, interface="vb1")
    no_alarm(scene.look(bob, TARGET, scene.sender(alice, interface="va1")))


@pytest.mark.parametrize("target", [TARGET, f"[ff15::1]:{PORT}"])
def test_no_alarm_on_lo_alone(scene: Scene, target: str) -> None:
    scene.receiver(scene.lab.here, target)
    no_alarm(scene.look(scene.lab.here, target, scene.sender(scene.lab.here, target, ttl=0)))


def test_no_alarm_in_a_container_whose_network_passes_groups(scene: Scene) -> None:
    outside, inside = scene.lab.host("outside"), scene.lab.host("inside")
    outside.ip("link add br0 type bridge", "link set br0 up", "address add 172.17.0.1/16 dev br0")
    outside.ip(f"link add veth0 type veth peer name eth0 netns {inside.path}", "link set veth0 master br0 up")
    inside.ip("link set eth0 up", "address add 172.17.0.2/16 dev eth0", "route add default via 172.17.0.1")
    scene.receiver(inside)
    no_alarm(scene.look(inside, TARGET, scene.sender(outside, interface="br0")))


def test_no_alarm_where_the_firewall_lets_the_group_in(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    nft(bob, "table inet f { chain in { type filter hook input priority 0; policy drop;"
             f" ip daddr {GROUP} udp dport {PORT} accept; ip protocol igmp accept; iif lo accept; }}; }}")
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))


def test_no_alarm_on_a_bridge_whose_ports_show_the_packets_as_well(scene: Scene) -> None:
    alice, bob = scene.lab.host("alice"), scene.lab.host("bob")
    bob.ip("link add br0 type bridge", "link set br0 up", "address add 10.99.0.2/24 dev br0")
    bob.ip("route add 224.0.0.0/4 dev br0")
    bob.ip(f"link add p1 type veth peer name va netns {alice.path}", "link set p1 master br0 up")
    alice.ip("link set va up", "address add 10.99.0.1/24 dev va")
    no_alarm(scene.look(bob, TARGET, scene.sender(alice, interface="va", packets=50)))


def test_no_alarm_where_the_firewall_lets_no_group_out(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    nft(bob, "table inet f { chain out { type filter hook output priority 0; ip daddr 224.0.0.0/4 counter drop; }; }")
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))


# -- interfaces and routes -------------------------------------------------------------------------------------------


def test_no_route_and_no_interface_named(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    bob.ip("route del 224.0.0.0/4")
    found = fault(scene.look(bob))
    assert found.code == "no-route"
    assert "sudo ip route add 224.0.0.0/4 dev vb" in found.fixes
    assert finding(scene.look(bob, interface="vb"), "route").status == "ok"
    arriving = scene.look(bob, TARGET, scene.sender(alice))
    assert arriving.healthy
    assert warnings(arriving) == ["no-route"]


def test_no_route_is_no_cause_where_a_program_has_joined_by_its_interface(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    bob.ip("route del 224.0.0.0/4")
    scene.receiver(bob, interface="vb")
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))
    assert fault(scene.look(bob)).code == ("nothing" if scene.root else "nothing-unseen")


@pytest.mark.parametrize("named", [True, False])
def test_an_interface_that_is_down(scene: Scene, named: bool) -> None:
    _, bob = scene.lab.pair()
    bob.ip("link set vb down")
    found = fault(scene.look(bob, interface="vb" if named else None))
    assert (found.code, found.fixes) == ("interface-down", ("sudo ip link set dev vb up",))


def test_no_interface_that_is_up(scene: Scene) -> None:
    host = scene.lab.host("mute")
    host.ip("link set lo down")
    assert fault(scene.look(host)).code == "none-up"


def test_no_carrier(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    alice.ip("link set va down")
    with bob.inside():  # the kernel tells in its own time
        deadline = time.monotonic() + helpers.PATIENCE
        while resolve("vb").running and time.monotonic() < deadline:
            time.sleep(0.01)
    found = fault(scene.look(bob, interface="vb"))
    assert found.code == "no-carrier"
    assert "no carrier" in found.seen


def test_no_address(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    bob.ip("address del 10.99.0.2/24 dev vb")
    found = fault(scene.look(bob, interface="vb"))
    assert found.code == "no-address"
    assert warnings(scene.look(bob, TARGET, scene.sender(alice), interface="vb")) == ["no-address"]


def test_no_ipv6(scene: Scene) -> None:
    _, bob = scene.lab.pair()
    bob.sysctl("ipv6.conf.vb.disable_ipv6", 1)
    assert fault(scene.look(bob, f"[ff15::1]:{PORT}", interface="vb")).code == "no-ipv6"


@pytest.mark.parametrize("named", [True, False])
def test_an_interface_without_the_multicast_flag(scene: Scene, named: bool) -> None:
    _, bob = scene.lab.pair()
    bob.ip("link set vb multicast off")
    found = fault(scene.look(bob, interface="vb" if named else None))
    assert (found.code, found.fixes) == ("no-multicast-flag", ("sudo ip link set dev vb multicast on",))


# -- what arrives is something else ----------------------------------------------------------------------------------


@pytest.fixture
def twice(scene: Scene) -> tuple[netns.Host, netns.Host]:
    """Two hosts joined by two wires, va - vb and va1 - vb1."""
    alice, bob = scene.lab.pair()
    scene.lab.link(alice, "va1", bob, "vb1", net=1)
    return alice, bob


def test_the_packets_arrive_on_another_interface(scene: Scene, twice: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = twice
    found = fault(scene.look(bob, TARGET, scene.sender(alice, interface="va1"), interface="vb"))
    assert found.code == "other-interface"
    assert found.cause == "The packets arrive on vb1, and not on vb."
    assert found.fixes == (f"multicast listen {TARGET} -i vb1",)


def test_a_program_has_joined_on_another_interface(scene: Scene, twice: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = twice
    scene.receiver(bob, interface="vb")
    found = fault(scene.look(bob, TARGET, scene.sender(alice, interface="va1")))
    assert found.code == "joined-elsewhere"
    assert f"{GROUP} is joined on vb only; the port is used by " in found.cause
    assert f"(pid {os.getpid()})" in found.cause


def test_the_sender_uses_another_interface(scene: Scene, twice: tuple[netns.Host, netns.Host]) -> None:
    alice, _ = twice
    found = fault(scene.look(alice, TARGET, scene.sender(alice, interface="va1"), interface="va"))
    assert found.code == "other-interface-sent"
    assert "by va1, and not by va" in found.cause


def test_the_sender_uses_another_address(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    alice.ip("address add 10.99.0.77/24 dev va")
    send = scene.sender(alice, source_ip="10.99.0.77")
    found = fault(scene.look(bob, TARGET, send, source="10.99.0.1"))
    assert found.code == "other-source"
    assert found.cause == "The packets come from 10.99.0.77, and not from 10.99.0.1."


def test_the_right_port_and_the_wrong_group(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    send = scene.sender(alice, f"239.1.1.2:{PORT}")
    found = fault(scene.look(bob, TARGET, send))
    if scene.root:
        assert (found.code, found.fixes) == ("other-group", (f"multicast listen 239.1.1.2:{PORT}",))
    else:
        assert found.code == "nothing-unseen"
    scene.receiver(bob, f"239.1.1.2:{PORT}")  # somebody has joined it: then it is seen without privileges
    assert fault(scene.look(bob, TARGET, send)).code == "other-group"


def test_a_program_has_joined_the_wrong_group(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.receiver(bob, f"239.1.1.2:{PORT}")
    diagnosis = scene.look(bob, TARGET, scene.sender(alice))
    assert diagnosis.healthy
    found = warning(diagnosis, "joined-other-group")
    assert f"(pid {os.getpid()})" in found.cause
    assert "239.1.1.2" in found.seen


def test_the_right_group_and_the_wrong_port(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    found = fault(scene.look(bob, TARGET, scene.sender(alice, f"{GROUP}:5001")))
    if scene.root:
        assert found.cause == f"The packets for {GROUP} go to port 5001, and not to port {PORT}."
    else:
        assert found.code == "unread-port"
        assert "UdpIgnoredMulti +5" in found.seen


def test_nothing_is_sent_at_all(scene: Scene) -> None:
    _, bob = scene.lab.pair()
    found = fault(scene.look(bob))
    if scene.root:
        assert found.code in NOTHING
        assert "nothing for it on the wire" in found.seen
    else:
        assert found.code == "nothing-unseen"
        assert "whether it reached this host takes root to see" in found.cause


# -- the kernel ------------------------------------------------------------------------------------------------------


def far_source(scene: Scene) -> tuple[netns.Host, Callable[[], None]]:
    """A host, and a sender to it whose address it has no route to."""
    alice, bob = scene.lab.pair()
    alice.ip("address add 172.16.4.2/32 dev va")
    return bob, scene.sender(alice, source_ip="172.16.4.2")


@pytest.mark.parametrize("told", [True, False])
def test_a_strict_reverse_path_filter(scene: Scene, told: bool) -> None:
    bob, send = far_source(scene)
    bob.sysctl("ipv4.conf.vb.rp_filter", 1)
    bob.ip("route add 172.16.4.0/24 dev lo")  # there is one, and it leads elsewhere
    diagnosis = scene.look(bob, TARGET, send, interface="vb", source="172.16.4.2" if told else None)
    found = fault(diagnosis)
    if scene.root or told:
        # Whether the counted packets are those asked for, only the wire tells.
        assert found.code == ("strict-reverse-path" if scene.root else "would-be-filtered")
        assert found.fixes == ("sudo ip route add 172.16.4.2 dev vb", "sudo sysctl -w net/ipv4/conf/vb/rp_filter=2")
    else:
        assert found.code == "nothing-unseen"
        found = warning(diagnosis, "reverse-path")
    assert "IPReversePathFilter +5" in found.seen


@pytest.mark.parametrize("every, own", [(0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("route", ["route add 172.16.4.0/24 dev lo", None])
def test_what_mends_a_reverse_path_filter_does(lab: netns.Lab, every: int, own: int, route: str | None) -> None:
    with ExitStack() as stack:
        scene = Scene(lab, True, stack)
        bob, send = far_source(scene)
        bob.sysctl("ipv4.conf.all.rp_filter", every)
        bob.sysctl("ipv4.conf.vb.rp_filter", own)
        if route:
            bob.ip(route)
        fix = fault(scene.look(bob, TARGET, send, interface="vb")).fixes[1]
        assert bob.run(fix.removeprefix("sudo ").split()).returncode == 0
        assert scene.look(bob, TARGET, send, interface="vb").packets == 5


def test_a_loose_reverse_path_filter(scene: Scene) -> None:
    bob, send = far_source(scene)
    bob.sysctl("ipv4.conf.all.rp_filter", 2)
    found = fault(scene.look(bob, TARGET, send, source="172.16.4.2"))
    assert found.code == ("loose-reverse-path" if scene.root else "would-be-filtered")
    assert found.fixes[1] == "sudo sysctl -w net/ipv4/conf/all/rp_filter=0"


@pytest.mark.parametrize("told", [True, False])
def test_a_reverse_path_filter_that_discards_one_of_two_sources(scene: Scene, told: bool) -> None:
    alice, bob = scene.lab.pair()
    alice.ip("address add 172.16.4.2/32 dev va")
    bob.sysctl("ipv4.conf.vb.rp_filter", 1)
    bob.ip("route add 172.16.4.0/24 dev lo")
    scene.receiver(bob, f"172.16.4.2@{TARGET}", "vb")
    near = scene.sender(alice, source_ip="10.99.0.1", packets=20)
    far = scene.sender(alice, source_ip="172.16.4.2", packets=20)
    found = fault(scene.look(bob, TARGET, near, far, source="172.16.4.2" if told else None))
    assert found.code == ("strict-reverse-path" if scene.root else "would-be-filtered")
    assert "172.16.4.2" in found.cause
    assert "IPReversePathFilter +20" in found.seen
    bob.run(found.fixes[1].removeprefix("sudo ").split())
    assert scene.look(bob, TARGET, near, far, source="172.16.4.2" if told else None).healthy


def nft(host: netns.Host, rules: str) -> None:
    if shutil.which("nft") is None:
        pytest.skip("the program nft is not installed")
    done = host.run(["nft", rules])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("counts", ["counter ", ""])
def test_a_firewall_that_drops(scene: Scene, counts: str) -> None:
    alice, bob = scene.lab.pair()
    nft(bob, f"table inet f {{ chain in {{ type filter hook input priority 0; ip daddr {GROUP} {counts}drop; }}; }}")
    found = fault(scene.look(bob, TARGET, scene.sender(alice, packets=50)))
    if scene.root:
        assert found.code == ("firewall-rule" if counts else "firewall-candidate")
        assert f"table inet f, chain in: ip daddr {GROUP} drop" in found.cause
        assert found.fixes == (f"sudo nft insert rule inet f in ip daddr {GROUP} udp dport {PORT} accept",)
    else:
        assert found.code == "discarded"
    if scene.root:
        assert bob.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert scene.look(bob, TARGET, scene.sender(alice)).healthy  # the fix is one


@pytest.mark.parametrize("rules, seen", [
    # iptables makes up chains for tables of these names, and does not tell of those that are there.
    ("table ip filter { chain input { type filter hook input priority 0; udp dport 5000 drop; }; }", "udp dport 5000"),
    ("table ip filter { chain in { type filter hook input priority 0; policy drop; iif lo accept; }; }", "policy drop"),
    ("table ip raw { chain pre { type filter hook prerouting priority raw; udp dport 5000 drop; }; }", "chain pre"),
    ("table inet f { chain c { counter drop; }; chain in { type filter hook input priority 0;"
     " iifname vmap { vb : jump c, lo : accept }; }; }", "table inet f, chain c: drop"),
    ("table inet f { map m { type inet_service : verdict; elements = { 5000 : drop }; };"
     " chain in { type filter hook input priority 0; udp dport vmap @m; }; }", "vmap udp dport 5000 drop"),
], ids=["named as one of iptables", "policy", "prerouting", "map of interfaces", "named map"])
def test_a_firewall_of_nft_s_own_kind(lab: netns.Lab, rules: str, seen: str) -> None:
    with ExitStack() as stack:
        scene = Scene(lab, True, stack)
        alice, bob = lab.pair()
        nft(bob, rules)
        found = fault(scene.look(bob, TARGET, scene.sender(alice, packets=50)))
        assert found.code in ("firewall-rule", "firewall-candidate")
        assert seen in found.cause
        assert bob.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert scene.look(bob, TARGET, scene.sender(alice)).healthy


def test_a_firewall_made_by_iptables(scene: Scene) -> None:
    if shutil.which("iptables") is None:
        pytest.skip("the program iptables is not installed")
    alice, bob = scene.lab.pair()
    done = bob.run(["iptables", "-A", "INPUT", "-p", "udp", "--dport", str(PORT), "-j", "DROP"])
    assert done.returncode == 0, done.stderr
    found = fault(scene.look(bob, TARGET, scene.sender(alice, packets=50)))
    if scene.root:
        assert found.code == "firewall-rule"
        assert "iptables, table ip filter, chain INPUT" in found.cause
        assert bob.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert scene.look(bob, TARGET, scene.sender(alice)).healthy
    else:
        assert found.code == "discarded"


def test_a_ttl_of_1_is_no_fault_and_told(scene: Scene) -> None:
    alice, _ = scene.lab.pair()
    diagnosis = scene.look(alice, TARGET, scene.sender(alice, ttl=1))
    assert (diagnosis.healthy, warnings(diagnosis)) == (True, [])
    (ttl,) = [finding for finding in diagnosis.findings if finding.check == "ttl"]
    assert ttl.cause == "1 in what this host sends by va: it stays on that network"


@contextmanager
def forwarding(router: netns.Host, group: str, source: str, first: str, second: str) -> Iterator[None]:
    """Forward a group from the interface `first` to `second`, as a multicast router does."""
    # linux/mroute.h: MRT_INIT, MRT_ADD_VIF (struct vifctl, by index), MRT_ADD_MFC (struct mfcctl).
    init, add_vif, add_mfc, by_index = 200, 202, 204, 8
    with router.inside():
        opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
    with opened:
        opened.setsockopt(socket.IPPROTO_IP, init, struct.pack("i", 1))
        with router.inside():
            for number, device in enumerate((first, second)):
                index = socket.if_nametoindex(device)
                opened.setsockopt(
                    socket.IPPROTO_IP, add_vif, struct.pack("=HBBIi4x", number, by_index, 1, 0, index)
                )
        counts = struct.pack("=4s4sH32B2xIIIi", socket.inet_aton(source), socket.inet_aton(group), 0,
                             *([0, 1] + [0] * 30), 0, 0, 0, 0)
        opened.setsockopt(socket.IPPROTO_IP, add_mfc, counts)
        yield


def test_the_receiver_behind_a_router(scene: Scene) -> None:
    alice, router, bob = (scene.lab.host(name) for name in ("alice", "router", "bob"))
    scene.lab.link(alice, "va", router, "ra", net=0)
    scene.lab.link(router, "rb", bob, "vb", net=1)
    router.sysctl("ipv4.ip_forward", 1)
    bob.ip("route add default via 10.99.1.1")
    with forwarding(router, GROUP, "10.99.0.1", "ra", "rb"):
        found = fault(scene.look(bob, TARGET, scene.sender(alice, ttl=1), source="10.99.0.1"))
        assert found.code == "behind-router"
        assert "the router 10.99.1.1" in found.cause
        no_alarm(scene.look(bob, TARGET, scene.sender(alice, ttl=2), source="10.99.0.1"))


def test_ttl_zero_from_another_host(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    with alice.inside():  # our own senders pin such packets to lo
        leaky = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with leaky:
        leaky.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        diagnosis = scene.look(bob, TARGET, lambda: leaky.sendto(b"x", (GROUP, PORT)))
    assert diagnosis.healthy
    assert "10.99.0.1 sends with TTL 0" in warning(diagnosis, "ttl-zero").cause


def test_a_source_specific_join_for_the_wrong_source(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    target = f"232.1.1.1:{PORT}"
    scene.receiver(bob, f"10.99.0.9@{target}")
    send = scene.sender(alice, target)
    found = fault(scene.look(bob, f"10.99.0.9@{target}", send))
    assert (found.code, found.fixes) == ("other-source", (f"multicast listen 10.99.0.1@{target}",))
    # Asked for the right one, the doctor gets the packets, and sees what the program has joined for.
    found = fault(scene.look(bob, f"10.99.0.1@{target}", send))
    assert found.code == "joined-for-others"
    assert "for 10.99.0.9 only" in found.cause


def test_a_program_that_refuses_the_source(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    opened = scene.receiver(bob, interface="vb")
    # struct ip_mreq_source: group, own address, source; IP_BLOCK_SOURCE is 38 (linux/in.h).
    request = b"".join(map(socket.inet_aton, (GROUP, "10.99.0.2", "10.99.0.1")))
    opened.setsockopt(socket.IPPROTO_IP, 38, request)
    found = fault(scene.look(bob, TARGET, scene.sender(alice)))
    assert found.code == "source-blocked"
    assert "come from 10.99.0.1, which all that have joined" in found.cause


def test_programs_of_the_other_family_at_the_port_are_not_blamed(
    scene: Scene, twice: tuple[netns.Host, netns.Host]
) -> None:
    alice, bob = twice
    scene.receiver(bob, interface="vb")
    with bob.inside():
        other = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("::", PORT))
        inode = os.fstat(other.fileno()).st_ino
        assert inode in kernel_options(bob)
        diagnosis = scene.look(bob, TARGET, scene.sender(alice, interface="va1"))
    assert fault(diagnosis).code == "joined-elsewhere"
    assert fault(diagnosis).cause.count("(pid ") == 1


def kernel_options(host: netns.Host) -> set[int]:
    with host.inside():
        return kernel.options(socket.AF_INET6)[1]


def test_a_source_specific_group_without_a_source(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    target = f"232.1.1.1:{PORT}"
    assert fault(scene.look(bob, target)).code == "source-missing"
    diagnosis = scene.look(bob, target, scene.sender(alice, target))
    assert diagnosis.healthy
    assert warning(diagnosis, "source-missing").fixes == (f"multicast doctor 10.99.0.1@{target}",)


def test_the_sender_on_the_same_host_has_its_loopback_off(scene: Scene) -> None:
    alice, _ = scene.lab.pair()
    diagnosis = scene.look(alice, TARGET, scene.sender(alice, packets=50, loopback=False))
    assert fault(diagnosis).code == ("loopback-off" if scene.root else "nothing-unseen")
    found = fault(diagnosis) if scene.root else warning(diagnosis, "loopback-perhaps")
    assert f"(pid {os.getpid()})" in found.cause
    assert "IP_MULTICAST_LOOP" in found.cause


def test_igmp_forced_to_version_2(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    bob.sysctl("ipv4.conf.vb.force_igmp_version", 2)
    target = f"10.99.0.1@232.1.1.1:{PORT}"
    found = fault(scene.look(bob, target, interface="vb"))
    assert (found.code, found.fixes) == ("version-forced", ("sudo sysctl -w net/ipv4/conf/vb/force_igmp_version=0",))
    diagnosis = scene.look(bob, target, scene.sender(alice, f"232.1.1.1:{PORT}"), interface="vb")
    assert diagnosis.healthy
    assert warnings(diagnosis) == ["version-forced"]
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))  # other groups do without


def test_a_snooping_bridge_without_a_querier(scene: Scene) -> None:
    alice, middle, bob = (scene.lab.host(name) for name in ("alice", "middle", "bob"))
    middle.ip("link add br0 type bridge mcast_snooping 1", "link set br0 up", "address add 10.99.0.9/24 dev br0")
    for number, host in enumerate((alice, bob), 1):
        middle.ip(f"link add p{number} type veth peer name eth0 netns {host.path}", f"link set p{number} master br0 up")
        host.ip(f"address add 10.99.0.{number}/24 dev eth0", "link set eth0 up", "route add 224.0.0.0/4 dev eth0")
    middle.ip("route add 224.0.0.0/4 dev br0")
    middle.ip("link set p2 type bridge_slave mcast_flood off")
    found = fault(scene.look(middle, TARGET, interface="br0"))
    assert found.code == "no-querier"
    assert "sudo ip link set dev br0 type bridge mcast_querier 1" in found.fixes
    middle.ip("link set br0 type bridge mcast_querier 1")
    assert finding(scene.look(middle, TARGET, interface="br0"), "bridge").status == "ok"


def test_a_port_of_a_bridge_is_where_nothing_is_received(scene: Scene) -> None:
    alice, bob = scene.lab.host("alice"), scene.lab.host("bob")
    bob.ip("link add br0 type bridge", "link set br0 up", "address add 10.99.0.2/24 dev br0")
    bob.ip(f"link add p1 type veth peer name va netns {alice.path}", "link set p1 master br0 up")
    alice.ip("link set va up", "address add 10.99.0.1/24 dev va")
    diagnosis = scene.look(bob, TARGET, scene.sender(alice, interface="va"), interface="p1")
    found = fault(diagnosis)
    assert (found.code, found.fixes) == ("bridge-port", (f"multicast listen {TARGET} -i br0",))
    assert finding(diagnosis, "arrival").code == "other-interface"
    assert scene.look(bob, TARGET, scene.sender(alice, interface="va"), interface="br0").healthy


def test_a_bridge_that_floods_is_no_fault(scene: Scene) -> None:
    host = scene.lab.host("docker")
    host.ip("link add br0 type bridge mcast_snooping 1", "link set br0 up", "address add 172.17.0.1/16 dev br0")
    assert finding(scene.look(host, TARGET, interface="br0"), "bridge").status == "ok"


# -- sockets and programs --------------------------------------------------------------------------------------------


def test_the_limit_of_memberships_for_the_doctor(scene: Scene) -> None:
    _, bob = scene.lab.pair()
    bob.sysctl("ipv4.igmp_max_memberships", 0)
    found = fault(scene.look(bob, interface="vb"))
    assert (found.code, found.fixes) == ("limit-reached", ("sudo sysctl -w net.ipv4.igmp_max_memberships=100",))


def test_the_limit_of_memberships_for_a_program(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    with bob.inside():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("", PORT))
        own = socket.inet_aton("10.99.0.2")
        for number in range(2, 22):
            group = socket.inet_aton(f"239.1.1.{number}")
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + own)
        with pytest.raises(OSError):
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + own)
        scene.receiver(bob, "224.0.0.251:5353", "vb")  # and others have joined other groups
        found = warning(scene.look(bob, TARGET, scene.sender(alice)), "limit-reached-other")
    assert f"Port {PORT} is used by " in found.cause
    assert f"(pid {os.getpid()})" in found.cause
    assert "21 memberships are on this host, and a socket can have 20" in found.cause


def test_the_limit_of_sources(scene: Scene) -> None:
    _, bob = scene.lab.pair()
    found = fault(scene.look(bob, source=[f"10.99.0.{number}" for number in range(100, 113)]))
    assert (found.code, found.fixes) == ("limit-sources", ("sudo sysctl -w net.ipv4.igmp_max_msf=26",))


def test_a_port_that_is_not_shared(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    with bob.inside():
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with holder:
        holder.bind(("", PORT))
        found = fault(scene.look(bob, TARGET, scene.sender(alice)))
    assert found.code == "port-held"
    assert f"Port {PORT} is held by " in found.cause
    assert f"(pid {os.getpid()}) and not shared" in found.cause


def test_an_ipv6_group_without_a_zone(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    found = fault(scene.look(bob, f"[ff02::77]:{PORT}", scene.sender(alice, f"[ff02::77%va]:{PORT}")))
    assert (found.code, found.fixes) == ("zone-missing", (f"multicast doctor '[ff02::77]:{PORT}%vb'",))
    assert found.seen == "it arrived on vb"


def test_a_receive_buffer_that_overflows(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.receiver(bob, rcvbuf=2304)  # and it is never read
    found = fault(scene.look(bob, TARGET, scene.sender(alice, packets=50)))
    assert found.code == "reads-nothing"
    assert f"(pid {os.getpid()}) does not read, or hardly" in found.cause
    assert str(os.getpid()) in found.fixes[0]


def test_a_receive_buffer_that_overflows_now_and_then(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    program = scene.receiver(bob, rcvbuf=2304)
    program.setblocking(False)
    send = scene.sender(alice, packets=10)

    def send_and_read() -> None:
        send()
        with suppress(BlockingIOError):
            while program.recv(9):
                pass

    found = fault(scene.look(bob, TARGET, *[send_and_read] * 10))
    assert found.code == "overflow-own-buffer"
    assert f"(pid {os.getpid()}) reads too slowly" in found.cause
    assert "of the 2304 bytes that it asked for" in found.cause


# -- programs --------------------------------------------------------------------------------------------------------


def program(host: netns.Host, lines: str) -> int:
    """Start a program with an UDP socket `s` for the group; return its process id when it is ready."""
    code = f"""
        import socket, struct, sys, threading
        def join(group, interface):
            request = struct.pack("4s4si", socket.inet_aton(group), bytes(4), socket.if_nametoindex(interface))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        {lines}
        def read():
            try:
                while True:
                    s.recv(99)
            except OSError:
                pass
        threading.Thread(target=read, daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
    """
    started = host.popen(netns.python(code), stdin=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started.pid


EVERY_OFF = "s.setsockopt(0, 49, 0); s.bind(('', 5000))"


@pytest.mark.parametrize("lines, code", [
    ("s.bind(('10.99.0.2', 5000))", "bound-unicast"),
    ("s.bind(('', 5000)); s.connect(('10.99.0.1', 7))", "connected-unicast"),
    ("s.bind(('239.1.1.1', 5000)); join('239.1.1.1', 'vb'); s.connect(('10.99.0.77', 7))", "connected"),
    ("s.bind(('239.9.9.9', 5000)); join('239.1.1.1', 'vb')", "bound-other-group"),
    (EVERY_OFF, "not-joined-itself"),
    (f"{EVERY_OFF}; join('239.1.1.1', 'lo')", "not-joined-itself"),
])
def test_a_program_whose_socket_gets_nothing_of_what_arrives(lab: netns.Lab, lines: str, code: str) -> None:
    with ExitStack() as stack:
        scene = Scene(lab, True, stack)
        alice, bob = lab.pair()
        scene.receiver(bob)  # another program that is in order
        pid = program(bob, lines)
        send = scene.sender(alice)
        found = fault(scene.look(bob, TARGET, send, program=pid))
        assert (found.check, found.code) == ("program", code)
        # Where others are in order, an address of this host or another interface may be meant.
        if code not in ("bound-unicast", "connected-unicast") and "'lo'" not in lines:
            found = fault(scene.look(bob, TARGET, send))
            assert code == found.code
            assert f"(pid {pid})" in found.cause


@pytest.mark.parametrize("lines", [
    "s.bind(('', 5000)); join('239.1.1.1', 'vb')",
    "s.bind(('239.1.1.1', 5000)); join('239.1.1.1', 'vb'); s.connect(('10.99.0.1', 7))",
    f"{EVERY_OFF}; join('239.1.1.1', 'vb')",
])
def test_no_alarm_for_a_program_that_gets_what_arrives(scene: Scene, lines: str) -> None:
    alice, bob = scene.lab.pair()
    pid = program(bob, lines)
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))
    asked = scene.look(bob, TARGET, scene.sender(alice), program=pid)
    if scene.root:
        no_alarm(asked)
    else:  # without privileges it may not be seen which sockets a program has
        assert asked.healthy
        assert set(warnings(asked)) <= {"program-hidden"}


def test_two_programs_that_share_the_port_and_want_different_interfaces(
    scene: Scene, twice: tuple[netns.Host, netns.Host]
) -> None:
    alice, bob = twice
    send = scene.sender(alice, interface="va1")
    scene.receiver(bob, interface="vb1")
    scene.receiver(bob, interface="vb")
    diagnosis = scene.look(bob, TARGET, send)
    assert diagnosis.healthy
    assert warning(diagnosis, "not-joined-itself")  # that nothing comes on vb may be a fault, and the network's
    assert finding(scene.look(bob, TARGET, send, scene.sender(alice, interface="va")), "program").status == "ok"


def test_a_program_loses_packets_to_another_that_was_bound_with_so_reuseport(
    lab: netns.Lab, twice: tuple[netns.Host, netns.Host]
) -> None:
    with ExitStack() as stack:
        scene = Scene(lab, True, stack)
        alice, bob = twice
        alone = "s.setsockopt(1, socket.SO_REUSEADDR, 0); s.setsockopt(1, socket.SO_REUSEPORT, 1)"
        for interface in ("vb1", "vb"):
            program(bob, f"{alone}; {EVERY_OFF}; join('239.1.1.1', '{interface}')")
        diagnosis = scene.look(bob, TARGET, scene.sender(alice, interface="va1"))
        assert warning(diagnosis, "shared-by-hash")
        assert diagnosis.healthy


@pytest.mark.parametrize("lines", [
    f"{EVERY_OFF}; join('239.9.9.9', 'vb')",
    "s.bind(('239.9.9.9', 5000)); join('239.9.9.9', 'vb')",
])
def test_a_program_for_another_group_is_a_fault_only_where_it_is_asked_for(scene: Scene, lines: str) -> None:
    alice, bob = scene.lab.pair()
    scene.receiver(bob)
    pid = program(bob, lines)
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))
    if scene.root:
        assert fault(scene.look(bob, TARGET, scene.sender(alice), program=pid)).check == "program"


def test_a_program_that_cannot_be_judged(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    send = scene.sender(alice)
    assert fault(scene.look(bob, TARGET, send, program="no-such-program")).code == "no-program"
    apart = program(alice, "s.bind(('', 5000))")
    without = program(bob, "s.close()")
    elsewhere = program(bob, "s.bind(('', 5001))")
    only = program(bob, "s.close(); s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM);"
                        " s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); s.bind(('::', 5000))")
    for pid, code in ((apart, "program-apart"), (without, "program-no-socket"), (elsewhere, "program-other-port"),
                      (only, "ipv6-only")):
        said = finding(scene.look(bob, TARGET, send, program=pid), "program")
        if scene.root:
            assert (said.status, said.code) == ("fail", code)
        else:
            assert said.code in ("program-hidden", code)


def test_a_rule_that_sends_the_packets_to_another_port(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    nft(bob, "table ip n { chain pre { type nat hook prerouting priority -100; udp dport 5000 redirect to :5001; }; }")
    found = fault(scene.look(bob, TARGET, scene.sender(alice)))
    assert found.code == ("firewall-translates" if scene.root else "nothing-unseen")
    if scene.root:
        assert "redirect" in bob.run(found.fixes[0].partition("  #")[0].removeprefix("sudo ").split()).stdout


def test_a_rule_of_a_bridge_that_drops(scene: Scene) -> None:
    alice, bob = scene.lab.host("alice"), scene.lab.host("bob")
    bob.ip("link add br0 type bridge mcast_snooping 0", "link set br0 up", "address add 10.99.0.2/24 dev br0")
    bob.ip("route add 224.0.0.0/4 dev br0")
    bob.ip(f"link add p1 type veth peer name va netns {alice.path}", "link set p1 master br0 up")
    alice.ip("link set va up", "address add 10.99.0.1/24 dev va")
    nft(bob, "table bridge f { chain in { type filter hook input priority 0; udp dport 5000 drop; }; }")
    found = fault(scene.look(bob, TARGET, scene.sender(alice, interface="va")))
    assert found.code == ("lost-in-bridge" if scene.root else "nothing-unseen")


def bad_checksum(host: netns.Host, source: str) -> Callable[[], None]:
    """Send a packet with a wrong checksum from a host; return what sends."""
    with host.inside():
        opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))

    def send() -> None:
        with opened:
            for _ in range(20):
                opened.sendto(struct.pack("!HHHH", 4000, PORT, 8 + 5, 0x1234) + b"hello", (GROUP, 0))

    return send


def test_checksums_that_are_wrong(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    found = fault(scene.look(bob, TARGET, bad_checksum(alice, "10.99.0.1"), interface="vb"))
    assert found.code == "bad-checksum"
    assert "InCsumErrors +" in found.seen


def frames(
    host: netns.Host, *, mac: str = "01005e010101", tag: str = "", source: str = "10.99.0.1", length: int | None = None
) -> Callable[[], None]:
    """What sends five packets for the group in Ethernet frames made by hand."""
    payload = b"x" * 20
    udp = struct.pack("!HHHH", 4000, PORT, 8 + len(payload) if length is None else length, 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(GROUP)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 1, 17, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = header[:10] + struct.pack("!H", checksum) + header[12:] + udp
    with host.inside():
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        opened.bind(("va", 0))

    def send() -> None:
        with opened:
            frame = bytes.fromhex(f"{mac} 020000000001 {tag} 0800") + packet
            for _ in range(5):
                opened.send(frame)

    return send


@pytest.mark.parametrize("made, code, says", [
    ({"mac": "020000000099"}, "other-mac", "they should go to 01:00:5e:01:01:01"),
    ({"tag": "8100 002a"}, "vlan-tag", "the tag of VLAN 42"),
    ({"length": 4000}, "bad-length", "a length of UDP that does not fit"),
    ({"source": "10.99.0.2"}, "duplicate-address", "10.99.0.2, which is also an address of this host"),
    ({"source": "127.0.1.1"}, "martian-source", "127.0.1.1, which is no address"),
    ({"source": "0.0.0.0"}, "martian-source", "0.0.0.0, which is no address"),  # noqa: S104 -- nothing is bound
    ({"source": "239.1.1.1"}, "martian-source", "239.1.1.1, which is no address"),
])
def test_packets_that_the_kernel_does_not_take(
    scene: Scene, made: dict[str, Any], code: str, says: str
) -> None:
    alice, bob = scene.lab.pair()
    found = fault(scene.look(bob, TARGET, frames(alice, **made)))
    assert found.code == (code if scene.root else "nothing-unseen")
    assert says in found.cause or not scene.root


@pytest.mark.parametrize("made", [{}, {"tag": "8100 e000"}], ids=["plain", "a priority"])
def test_no_alarm_for_frames_that_the_kernel_takes(scene: Scene, made: dict[str, Any]) -> None:
    alice, bob = scene.lab.pair()
    no_alarm(scene.look(bob, TARGET, frames(alice, **made)))


def test_two_interfaces_of_one_host_on_one_wire(scene: Scene) -> None:
    host = scene.lab.host("host")
    host.ip("link add v1 type veth peer name v2", "address add 10.99.0.1/24 dev v1", "address add 10.99.1.1/24 dev v2",
            "link set v1 up", "link set v2 up")
    send = scene.sender(host, interface="v1")
    found = fault(scene.look(host, TARGET, send, interface="v2"))
    assert found.code == ("own-source" if scene.root else "other-interface-sent")
    if scene.root:
        assert host.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert scene.look(host, TARGET, send, interface="v2").packets == 5


@pytest.mark.parametrize("named", [True, False])
def test_ipv6_without_a_route_for_groups(scene: Scene, named: bool) -> None:
    alice, bob = scene.lab.pair()
    target = f"[ff15::1]:{PORT}"
    send = scene.sender(alice, target, interface="va")
    bob.ip("-6 route del multicast ff00::/8 dev vb table local")
    interface = "vb" if named else None
    found = fault(scene.look(bob, target, send, interface=interface))
    assert found.code == "no-group-route"
    assert bob.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
    no_alarm(scene.look(bob, target, send, interface=interface))


def test_a_policy_of_ipsec_that_refuses_all(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    bob.ip("xfrm policy add dir in src 0.0.0.0/0 dst 239.0.0.0/8 action block")
    found = fault(scene.look(bob, TARGET, scene.sender(alice)))
    assert found.code == "ipsec"
    assert "XfrmInPolBlock" in found.seen


@pytest.mark.parametrize("counts", ["counter ", ""])
def test_a_firewall_that_drops_what_this_host_sends(scene: Scene, counts: str) -> None:
    alice, _ = scene.lab.pair()
    rule = f"ip daddr 239.0.0.0/8 {counts}drop"
    nft(alice, f"table inet f {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}")
    send = scene.sender(alice, interface="va")

    def refused() -> None:
        with pytest.raises(PermissionError):
            send()

    diagnosis = scene.look(alice, TARGET, refused)
    found = fault(diagnosis)
    if scene.root:
        assert found.code == ("output-rule" if counts else "output-candidate")
        assert alice.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert scene.look(alice, TARGET, send).healthy
    else:
        assert found.code == "nothing-unseen"
        assert warning(diagnosis, "output-refused")


@pytest.mark.parametrize("target, rule", [
    (TARGET, "ip protocol igmp drop"),
    (TARGET, "meta l4proto igmp counter drop"),
    (TARGET, "ip daddr 224.0.0.0/4 drop"),
    (f"[ff15::1]:{PORT}", "meta l4proto icmpv6 drop"),
    (f"[ff15::1]:{PORT}", "icmpv6 type mld2-listener-report drop"),
])
def test_a_firewall_that_drops_membership_reports(scene: Scene, target: str, rule: str) -> None:
    _, bob = scene.lab.pair()
    nft(bob, f"table inet f {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}")
    found = fault(scene.look(bob, target))
    assert found.code == ("reports-dropped" if scene.root else "nothing-unseen")
    if scene.root:
        assert bob.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert fault(scene.look(bob, target)).code == "nothing"


def test_a_firewall_that_drops_queries(scene: Scene) -> None:
    _, bob = scene.lab.pair()
    nft(bob, "table inet f { chain in { type filter hook input priority 0; policy drop; udp dport 5000 accept; }; }")
    diagnosis = scene.look(bob)
    assert fault(diagnosis).code == ("nothing" if scene.root else "nothing-unseen")
    if scene.root:
        found = warning(diagnosis, "queries-dropped")
        assert bob.run(found.fixes[0].removeprefix("sudo ").split()).returncode == 0
        assert "queries-dropped" not in warnings(scene.look(bob))


def test_what_went_wrong_before_the_look_is_no_alarm(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    bob.sysctl("ipv4.conf.vb.rp_filter", 1)
    program = scene.receiver(bob, rcvbuf=4096)
    program.setblocking(False)
    bad_checksum(alice, "10.99.0.1")()
    alice.ip("address add 172.16.4.2/32 dev va")
    scene.sender(alice, source_ip="172.16.4.2")()
    scene.sender(alice, packets=50)()
    with bob.inside():
        before = kernel.counters(False)
        dropped = sum(drops for _, drops in kernel.holders().values())
    assert (before["Udp:InCsumErrors"], before["TcpExt:IPReversePathFilter"]) == (20, 5)
    assert dropped > 20
    with suppress(BlockingIOError):
        while program.recv(9):
            pass
    no_alarm(scene.look(bob, TARGET, scene.sender(alice, packets=1)))


@pytest.mark.parametrize("target", [TARGET, f"[ff15::1]:{PORT}"])
def test_fragments_that_are_lost(scene: Scene, target: str) -> None:
    alice, bob = scene.lab.pair()
    # Two fragments; the second, which has an offset and no ports, is lost at the receiving device.
    lost = "ip6 nexthdr 44 @nh,336,16 & 0xfff8 != 0" if "[" in target else "ip frag-off & 0x1fff != 0"
    nft(bob, f'table netdev f {{ chain in {{ type filter hook ingress device "vb" priority 0; {lost} drop; }}; }}')
    diagnosis = scene.look(bob, target, scene.sender(alice, target, size=2000, packets=20, interface="va"))
    if not scene.root and "[" in target:
        assert fault(diagnosis).code == "nothing-unseen"
        found = warning(diagnosis, "fragments-unfinished")
    else:
        found = fault(diagnosis)
    assert found.code == ("fragments-lost" if scene.root else "fragments-unfinished")
    assert "ReasmOKs +0" in found.seen


@pytest.mark.parametrize("target", [TARGET, f"[ff15::1]:{PORT}"])
def test_fragments_that_all_arrive_are_no_fault(scene: Scene, target: str) -> None:
    alice, bob = scene.lab.pair()
    send = scene.sender(alice, target, size=5000, interface="va")
    # Datagrams that come before it counts, while it reads rules and joins, are not taken for unfinished ones.
    with pytest.MonkeyPatch.context() as patch:
        counters = kernel.counters
        patch.setattr(kernel, "counters", lambda ipv6: [send(), counters(ipv6)][1])
        no_alarm(scene.look(bob, target, send, send))


# -- the installation ------------------------------------------------------------------------------------------------


def test_two_packages_of_one_name(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "multicast-9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: multicast\nVersion: 9.9\n")
    (other / "top_level.txt").write_text("multicast\n")
    monkeypatch.syspath_prepend(tmp_path)
    alice, bob = scene.lab.pair()
    found = warning(scene.look(bob, TARGET, scene.sender(alice)), "two-packages")
    assert "multicast and multicast-poller" in found.cause
    assert found.fixes == ("pip uninstall -y multicast multicast-poller && pip install multicast-poller",)


def test_the_c_module_is_not_built(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from multicast import batch

    monkeypatch.setattr(batch, "ENGINE", "python")
    monkeypatch.setattr(batch, "__file__", "/nowhere/batch.py")
    alice, bob = scene.lab.pair()
    diagnosis = scene.look(bob, TARGET, scene.sender(alice))
    assert diagnosis.healthy
    assert "there is no _batch.*.so in /nowhere" in warning(diagnosis, "engine-missing").cause


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_cause_fix_and_what_was_seen(lab: netns.Lab) -> None:
    _, bob = lab.pair()
    bob.ip("link set vb down")
    done = programs.multicast("doctor", TARGET, "-i", "vb", "-w", "0.1", host=bob)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-4:] == [
        "",
        "Cause: The interface vb is down.",
        "Fix:   sudo ip link set dev vb up",
        "Seen:  vb down, no carrier, MULTICAST, 10.99.0.2, MTU 1500",
    ]
    assert lines[0].startswith("ok    group, ")
    assert [line for line in lines if line.startswith("FAIL  interface")]
    assert len(lines) <= 20
    every = programs.multicast("doctor", TARGET, "-i", "vb", "-w", "0.1", "-v", host=bob).stdout.splitlines()
    assert [line.split()[1] for line in every[: len(CHECKS)]] == list(CHECKS)
    assert "\033" not in done.stdout
    assert done.stderr == f"looking for packets to {TARGET} for 0.1 s\n"


@pytest.mark.parametrize("args, code, says", [
    (["-i", "nonsense"], 3, "no interface 'nonsense'. "),
    (["--from", "nonsense"], 2, "'nonsense' is not an IP address; "),
    (["--from", "ff02::1"], 2, "source ff02::1 is not the address of a single IPv4 host"),
], ids=["interface", "source", "family"])
def test_the_command_does_not_say_it_looks_when_it_cannot(args: list[str], code: int, says: str) -> None:
    done = programs.multicast("doctor", TARGET, *args)
    assert done.returncode == code
    assert done.stderr.startswith(f"multicast: {says}")
    assert done.stderr.count("\n") == 1


def test_the_command_has_its_path_where_sudo_would_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory, expected in ((tmp_path / "a venv" / "bin", f"sudo '{tmp_path}/a venv/bin/multicast' doctor x"),
                                (Path("/usr/bin"), None)):
        if expected is None:
            monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/multicast")
        else:
            directory.mkdir(parents=True)
            (directory / "multicast").touch(mode=0o755)
            monkeypatch.setattr("sys.executable", str(directory / "python"))
        assert cli_doctor._runnable("sudo multicast doctor x") == (expected or "sudo multicast doctor x")
    assert cli_doctor._runnable("sudo nft list ruleset") == "sudo nft list ruleset"


def test_the_command_writes_json(lab: netns.Lab) -> None:
    _, bob = lab.pair()
    done = programs.multicast("doctor", TARGET, "-w", "0.1", "--json", "-q", host=bob)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert [event["event"] for event in events] == ["check"] * (len(events) - 1) + ["summary"]
    assert all(event["v"] == 1 for event in events)
    assert events[-1]["fault"]["code"] in NOTHING
    assert events[-1]["healthy"] is False
    page = (Path(__file__).parents[1] / "docs" / "doctor.rst").read_text().partition("JSON\n----")[2]
    for event in events:
        assert [key for key in event if key not in ("v", "event") and f"``{key}``" not in page] == []
    assert set(events[-1]["fault"]) == set(events[0]) - {"v", "event"}
    assert [event["check"] for event in events[:-1]] == list(CHECKS)


def test_the_command_shows_on_a_terminal_how_long_it_still_looks_and_fits_in_its_width(lab: netns.Lab) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 80, 0, 0))
    with lab.host("bob").inside():
        process = subprocess.Popen(
            [*programs.MULTICAST, "doctor", TARGET, "-w", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs,
            env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
            | {"TERM": "xterm"},
        )
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
    assert process.wait(helpers.PATIENCE) == 1
    progress, _, rest = shown.decode().rpartition("\r" + " ")
    assert f"looking for packets to {TARGET}: 0 packets, 0 s left" in progress
    assert "\033[1;31m" in rest  # the cause is red
    lines = re.sub(r"\033\[[0-9;]*m", "", rest).splitlines()
    # A word that is longer than the room, as the path of a module that was not built, is not broken, to be copied.
    assert [line for line in lines if len(line) > 80 and max(map(len, line.split())) < 62] == []


def test_the_command_can_be_interrupted(lab: netns.Lab) -> None:
    with programs.Running("doctor", TARGET, "-w", "60", host=lab.host("bob")) as running:
        assert running.process.stderr is not None
        assert running.process.stderr.readline().startswith(b"looking for")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(helpers.PATIENCE) == 130
        assert running.process.stdout is not None
        assert running.process.stdout.read() == b""


def test_the_command_wants_time_to_look(lab: netns.Lab) -> None:
    done = programs.multicast("doctor", TARGET, "-w", "0", host=lab.host("bob"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "-w must be more than 0 seconds" in done.stderr


def test_the_command_is_refused_an_interface_that_does_not_exist(lab: netns.Lab) -> None:
    done = programs.multicast("doctor", TARGET, "-i", "nope", host=lab.host("bob"))
    assert done.returncode == 3
    assert "no interface 'nope'" in done.stderr
    assert done.stdout == ""
