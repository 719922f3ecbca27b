"""What the doctor says to another user than root and than those whose programs it looks at: a process with its uid."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import helpers
import netns
import pytest

from multicast import sockets
from multicast.sockets import Group

pytestmark = [pytest.mark.needs_namespaces, pytest.mark.needs_root]

GROUP, PORT = "239.1.1.1", 5000
TARGET = f"{GROUP}:{PORT}"
NOBODY = 65534


class Scene:
    """Hosts, and what root has open on them."""

    def __init__(self, lab: netns.Lab, stack: ExitStack) -> None:
        self.lab, self._stack = lab, stack

    def sender(self, host: netns.Host, target: str = TARGET, **options: Any) -> Callable[[], None]:
        """Open a sender on a host; return what sends."""
        with host.inside():
            opened, address = sockets.open_sender(Group.parse(target), **options)
        self._stack.enter_context(opened)

        def send() -> None:
            for _ in range(20):
                opened.sendto(b"x", address)

        return send

    def program(self, host: netns.Host, option: int | None = socket.SO_REUSEPORT, group: str = GROUP) -> socket.socket:
        """Open a program's socket that shares its port by one option, or does not, and has joined a group."""
        with host.inside():
            opened = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            if option is not None:
                opened.setsockopt(socket.SOL_SOCKET, option, 1)
            opened.bind(("", PORT))
            index = socket.if_nametoindex("vb")
            request = struct.pack("@4s4si", socket.inet_aton(group), bytes(4), index)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        return opened

    def look(self, host: netns.Host, target: str, send: Callable[[], None], *options: str) -> dict[str, dict[str, Any]]:
        """Have another user's doctor look while something is sent; return its checks and the summary by their names."""
        words = [sys.executable, "-m", "multicast", "doctor", target, "-w", "0.6", "--json", *options]
        try:
            with host.inside():
                process = subprocess.Popen(
                    words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                    user=NOBODY, group=NOBODY, extra_groups=[],
                )  # fmt: skip
        except PermissionError:
            pytest.skip("this Python is installed where other users may not run it")
        with process:
            assert process.stderr is not None
            started = process.stderr.readline()  # it has begun to count
            send()
            said, complaint = process.communicate(timeout=helpers.PATIENCE)
        if "No module named" in started + complaint:
            pytest.skip("the package is installed where other users may not read it")
        assert "looking for packets" in started, started + complaint
        events = [json.loads(line) for line in said.splitlines()]
        assert process.returncode == (0 if events[-1]["healthy"] else 1)
        return {event.get("check", "summary"): event for event in events}


@pytest.fixture
def scene(lab: netns.Lab) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(lab, stack)


def no_alarm(said: dict[str, dict[str, Any]]) -> None:
    alarms = [one for one in said.values() if one.get("status") in ("warn", "fail") and one["code"] != "engine-missing"]
    assert alarms == []
    assert said["summary"]["packets"] == 20


# -- healthy hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [TARGET, f"[ff15::1]:{PORT}", f"[ff02::77%vb]:{PORT}", f"10.99.0.1@232.1.1.1:{PORT}"]
)
def test_no_alarm_on_a_host_that_receives(scene: Scene, target: str) -> None:
    alice, bob = scene.lab.pair()
    outgoing = target.replace("%vb", "%va").rpartition("@")[2]
    no_alarm(scene.look(bob, target, scene.sender(alice, outgoing, interface="va")))


def test_no_alarm_with_several_interfaces_some_of_them_bad(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.lab.link(alice, "va1", bob, "vb1", net=1)
    bob.ip("link add vx type veth peer name vy", "link set vx up", "link add vz type bridge", "link set vz up")
    no_alarm(scene.look(bob, TARGET, scene.sender(alice, interface="va1")))


@pytest.mark.parametrize("target", [TARGET, f"[ff15::1]:{PORT}"])
def test_no_alarm_on_lo_alone(scene: Scene, target: str) -> None:
    no_alarm(scene.look(scene.lab.here, target, scene.sender(scene.lab.here, target, ttl=0)))


def test_no_alarm_on_a_bridge(scene: Scene) -> None:
    outside, inside = scene.lab.host("outside"), scene.lab.host("inside")
    inside.ip("link add br0 type bridge", "link set br0 up", "address add 172.17.0.2/16 dev br0")
    inside.ip(f"link add p0 type veth peer name eth0 netns {outside.path}", "link set p0 master br0 up")
    inside.ip("route add default via 172.17.0.1")
    outside.ip("link set eth0 up", "address add 172.17.0.1/16 dev eth0")
    no_alarm(scene.look(inside, TARGET, scene.sender(outside, interface="eth0")))


def test_no_alarm_beside_a_program_that_shares_its_port_with_everybody(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.program(bob, socket.SO_REUSEADDR)
    no_alarm(scene.look(bob, TARGET, scene.sender(alice)))


def test_no_alarm_on_a_host_with_other_groups(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.program(bob, socket.SO_REUSEADDR)
    scene.program(bob, socket.SO_REUSEADDR, "239.2.2.2")
    send, other = scene.sender(alice), scene.sender(alice, f"239.2.2.2:{PORT}")
    no_alarm(scene.look(bob, TARGET, lambda: [send(), other()][0]))


# -- what this user may not do, and root's program may ----------------------------------------------------------------


@pytest.mark.parametrize("option", [socket.SO_REUSEPORT, None], ids=["shared with its own user", "not shared"])
@pytest.mark.parametrize("routed", [True, False])
def test_a_port_of_root_s_program_is_no_fault(scene: Scene, option: int | None, routed: bool) -> None:
    alice, bob = scene.lab.pair()
    if not routed:
        bob.ip("route del 224.0.0.0/4")
    program = scene.program(bob, option)
    said = scene.look(bob, TARGET, scene.sender(alice))
    assert program.recv(9) == b"x"
    assert said["summary"]["healthy"]
    port = said["port"]
    assert (port["status"], port["code"]) == ("warn", "port-other-user")
    assert port["cause"].startswith(f"Port {PORT} is held by a program of user 0 and not shared with other users")
    assert port["fixes"] == [f"sudo -u '#0' multicast doctor {TARGET}"]
    assert "no-route" not in said["summary"]["warnings"]  # a program that has joined needs none


def test_a_port_that_is_for_root_is_looked_at_as_far_as_can_be(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    said = scene.look(bob, f"{GROUP}:319", scene.sender(alice, f"{GROUP}:319"))
    assert (said["port"]["status"], said["port"]["code"]) == ("warn", "port-privileged")
    assert said["port"]["fixes"] == [f"sudo multicast doctor {GROUP}:319"]
    assert said["summary"]["healthy"]
    assert said["arrival"]["status"] == "skip"


# -- faults ----------------------------------------------------------------------------------------------------------


def drop(host: netns.Host, what: str) -> None:
    done = host.run(["nft", f"table inet f {{ chain in {{ type filter hook input priority 0; {what} drop; }}; }}"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target, code", [(TARGET, "discarded"), (f"[ff15::1]:{PORT}", "nothing-unseen")])
def test_a_firewall_is_never_taken_for_silence_on_the_wire(scene: Scene, target: str, code: str) -> None:
    alice, bob = scene.lab.pair()
    drop(bob, f"udp dport {PORT}")
    said = scene.look(bob, target, scene.sender(alice, target, interface="va"))
    assert said["summary"]["fault"]["code"] == code


def test_the_firewall_of_another_group_is_no_cause_of_silence(scene: Scene) -> None:
    alice, bob = scene.lab.pair()
    scene.program(bob, socket.SO_REUSEADDR, "239.2.2.2")
    drop(bob, "udp dport 5353")
    said = scene.look(bob, TARGET, scene.sender(alice, "239.2.2.2:5353"))
    assert said["summary"]["fault"]["code"] == "nothing-unseen"
    assert (said["firewall"]["status"], said["firewall"]["code"]) == ("warn", "discarded")
