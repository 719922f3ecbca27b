"""Interfaces that go, come and change under listeners and senders."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import helpers
import netns
import pytest
from helpers import Clock

import multicast
from multicast import Address, Interface, MulticastListener, Poller, interfaces, sockets

pytestmark = pytest.mark.needs_namespaces

GROUP = "239.88.1.1"
PORT = 4321


class Collector(MulticastListener):
    def __init__(self, **options: Any) -> None:
        self.got: list[tuple[bytes, str | None]] = []
        self.changes: list[tuple[list[str], list[str]]] = []
        super().__init__(port=PORT, **{"ip": GROUP, **options})

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        self.got.append((packet, addr.interface))

    def handle_interfaces(self, gone: Iterable[Interface], joined: Iterable[Interface]) -> None:
        self.changes.append(([one.name for one in gone], [one.name for one in joined]))
        super().handle_interfaces(list(gone), list(joined))


def poll_until(poller: Poller, done: Callable[[], object]) -> None:
    """Poll until something is so; give up after a time that only a fault can take."""
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "it never came to that"
        poller.poll(0.05)


def send(host: netns.Host, text: str, **options: Any) -> None:
    with host.inside():
        multicast.sendto(text, **{"ip": GROUP, "port": PORT, "interface": "va", **options})


def receives(poller: Poller, listener: Collector, sender: netns.Host, text: str, **options: Any) -> None:
    """Send until it is heard: a new wire may lose the first packets, and a rejoin takes a moment."""

    def heard() -> bool:
        send(sender, text, **options)
        return any(packet == text.encode() for packet, _ in listener.got)

    poll_until(poller, heard)


def make_wire(a: netns.Host, b: netns.Host) -> None:
    """Join two hosts anew, by devices of the names they had."""
    a.ip(f"link add va type veth peer name vb netns {b.path}")
    for host, device, number in ((a, "va", 1), (b, "vb", 2)):
        host.ip(f"addr add 10.99.0.{number}/24 dev {device}", f"addr add fd99::{number}/64 dev {device} nodad")
        host.ip(f"link set {device} up")


def test_reception_goes_on_after_the_link_was_down(hosts: tuple[netns.Host, netns.Host], poller: Poller) -> None:
    a, b = hosts
    with b.inside(), Collector(interface="vb", poller=poller) as listener:
        receives(poller, listener, a, "before")
        b.ip("link set vb down")
        b.ip("link set vb up")
        receives(poller, listener, a, "after")


def test_reception_goes_on_after_the_address_was_changed(hosts: tuple[netns.Host, netns.Host], poller: Poller) -> None:
    a, b = hosts
    with b.inside(), Collector(interface="10.99.0.2", poller=poller) as listener:
        receives(poller, listener, a, "before")
        b.ip("addr del 10.99.0.2/24 dev vb", "addr add 10.99.0.7/24 dev vb")
        receives(poller, listener, a, "after")


@pytest.mark.parametrize("group", [GROUP, "ff05::88:1", "ff02::88:1"])
def test_a_device_that_is_made_anew_is_joined_again(
    hosts: tuple[netns.Host, netns.Host], poller: Poller, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = hosts
    with b.inside(), Collector(ip=group, interface="vb", poller=poller) as listener:
        receives(poller, listener, a, "before", ip=group)
        b.ip("link del vb")
        poll_until(poller, lambda: (["vb"], []) in listener.changes)
        assert listener.interfaces == ()
        make_wire(a, b)
        poll_until(poller, lambda: ([], ["vb"]) in listener.changes)
        receives(poller, listener, a, "after", ip=group)
        assert listener.statistics().dropped == 0
    # Each change is reported once, however often the kernel says that something happened.
    assert listener.changes == [(["vb"], []), ([], ["vb"])]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_new_interface_is_joined_by_a_listener_on_all(lab: netns.Lab, poller: Poller) -> None:
    a, b = lab.host("a"), lab.host("b")
    for host in (a, b):
        host.ip("link set lo up")
    with b.inside(), Collector(poller=poller) as listener:
        assert [one.name for one in listener.interfaces] == ["lo"]
        make_wire(a, b)
        poll_until(poller, lambda: listener.changes == [([], ["vb"])])
        receives(poller, listener, a, "from the new wire")


def test_flapping_is_damped(
    hosts: tuple[netns.Host, netns.Host], poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = hosts
    looks = 0
    look = interfaces.memberships

    def counted() -> Any:
        nonlocal looks
        looks += 1
        return look()

    monkeypatch.setattr("multicast.listeners.membership.memberships", counted)
    with b.inside(), Collector(interface="vb", poller=poller) as listener:
        for _ in range(20):
            b.ip("link set vb down", "link set vb up")
            poller.poll(0)
        poll_until(poller, lambda: looks)
        assert looks < 10
    assert listener.changes == []


def test_changes_that_do_not_end_do_not_put_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    clock = Clock()

    def look() -> list[interfaces.Membership]:
        looks.append(clock())
        return []

    monkeypatch.setattr("multicast.listeners.membership.memberships", look)
    with Poller(clock=clock) as poller, Collector(interface="lo", poller=poller):
        watch = poller.helper(interfaces.Watch)
        assert watch is not None
        began = clock()
        for _ in range(50):  # five seconds of it
            watch._changed()
            clock.advance(0.1)
            poller.poll(0)
    assert looks
    assert looks[0] - began <= 1.2
    assert 3 <= len(looks) <= 6


def test_notes_of_changes_that_were_lost_are_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says ENOBUFS (netlink(7)) when there were more than its buffer holds."""

    class Overrun:
        answers = iter([OSError(errno.ENOBUFS, ""), BlockingIOError()])

        def recv(self, size: int) -> bytes:
            raise next(self.answers)

    changes: list[None] = []
    watch = interfaces.Watch(lambda: changes.append(None))
    watch.close()
    monkeypatch.setattr(watch, "_socket", Overrun())
    watch.handle_read()
    assert changes == [None]


def test_a_membership_that_was_lost_is_made_again(hosts: tuple[netns.Host, netns.Host], poller: Poller) -> None:
    """As after a driver was loaded anew: the interface is there, and the kernel does not list the group."""
    a, b = hosts
    with b.inside(), Collector(interface="vb", poller=poller) as listener:
        receives(poller, listener, a, "before")
        assert listener.socket is not None
        sockets.leave(listener.socket, listener.group, listener.interfaces[0].index)
        b.ip("addr add 10.99.0.9/24 dev vb")  # any change has it look
        poll_until(poller, lambda: listener.changes)
        receives(poller, listener, a, "after")


def test_the_watch_keeps_no_loop_running_and_is_closed_with_the_last_listener(poller: Poller) -> None:
    first, second = Collector(poller=poller), Collector(poller=poller)
    assert len(poller) == 2
    first.close()
    assert poller.polling
    second.close()
    assert not poller.polling
    poller.loop()


class Counter(multicast.Multicaster):
    """Sends numbers, and keeps what went wrong."""

    def __init__(self, ip: str = GROUP, **options: Any) -> None:
        self.errors: list[OSError] = []
        super().__init__(ip, PORT, interval=0.02, **options)

    def __iter__(self) -> Any:
        number = 0
        while True:
            yield str(number)
            number += 1

    def handle_error(self, exc: Exception) -> None:
        assert isinstance(exc, OSError)
        self.errors.append(exc)


@pytest.mark.parametrize("by", ["name", "index"])
@pytest.mark.parametrize("anew", [False, True], ids=["down and up", "made anew"])
def test_a_sender_says_once_that_the_network_is_gone_and_resumes(
    hosts: tuple[netns.Host, netns.Host], poller: Poller, anew: bool, by: str
) -> None:
    a, b = hosts
    with b.inside():
        listener = Collector(interface="vb", poller=poller)
    with a.inside():
        sender = Counter(interface=getattr(interfaces.resolve("va"), by), poller=poller)
        poll_until(poller, lambda: len(listener.got) >= 3)
        a.ip("link del va" if anew else "link set va down")
        poll_until(poller, lambda: sender.errors)
        held = sender.statistics().packets
        for _ in range(30):
            poller.poll(0.05)
        assert len(sender.errors) == 1
        assert sender.statistics().packets == held
        if anew:
            make_wire(a, b)
        else:
            a.ip("link set va up")
        poll_until(poller, lambda: sender.statistics().packets > held + 3)
        sender.close()
    with b.inside():
        poller.poll(0.05)
        received = [int(packet) for packet, _ in listener.got]
        assert received == sorted(set(received))
        listener.close()


@pytest.mark.parametrize("ip", [GROUP, "ff05::88:1"], ids=["IPv4", "IPv6"])
def test_a_sender_led_by_the_routes_resumes_when_they_are_there_again(
    hosts: tuple[netns.Host, netns.Host], poller: Poller, ip: str
) -> None:
    a, b = hosts
    a.ip("-6 route del local ff00::/8 dev lo table local")  # which would lead it to lo meanwhile
    with b.inside():
        listener = Collector(ip=ip, interface="vb", poller=poller)
    with a.inside():
        sender = Counter(ip, poller=poller)
        poll_until(poller, lambda: len(listener.got) >= 3)
        a.ip("link set va down")
        poll_until(poller, lambda: sender.errors)
        for _ in range(20):
            poller.poll(0.05)
        a.ip("link set va up", "route replace 224.0.0.0/4 dev va")
        heard = len(listener.got)
        poll_until(poller, lambda: len(listener.got) > heard + 3)
        assert len(sender.errors) == 1, "it is told once"
        sender.close()
    with b.inside():
        listener.close()


def test_ipv6_by_lo_needs_a_route_of_its_own_and_the_error_names_it(
    hosts: tuple[netns.Host, netns.Host], poller: Poller, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = hosts
    group, command = "ff15::88:1", "-6 route add local ff00::/8 dev lo table local"
    a.ip("-6 route del local ff00::/8 dev lo table local")
    with a.inside():
        with pytest.raises(OSError, match="unreachable") as caught:
            multicast.sendto("not heard", group, PORT, ttl=0)
        assert f"ip {command}" in caught.value.__notes__[0]
        assert [way.index for way in sockets.ways(multicast.Group(group, PORT), 1, None)[0]] == [
            interfaces.resolve("va").index
        ]
        a.ip(command)
        with Collector(ip=group, interface="lo", poller=poller) as listener:
            multicast.sendto("heard", group, PORT, ttl=0)
            poll_until(poller, lambda: listener.got)
        assert len(sockets.ways(multicast.Group(group, PORT), 1, None)[0]) == 2
    assert not caplog.records


def test_a_sender_that_had_to_stay_on_lo_leaves_it_when_a_route_comes(
    hosts: tuple[netns.Host, netns.Host], poller: Poller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "multicast")
    a, b = hosts
    a.ip("route del 224.0.0.0/4 dev va")
    with b.inside():
        listener = Collector(interface="vb", poller=poller)
    with a.inside():
        sender = Counter(poller=poller)
        poll_until(poller, lambda: sender.statistics().packets > 60)
        assert not listener.got, "there is no way to it"
        a.ip("route add 224.0.0.0/4 dev va")
        poll_until(poller, lambda: len(listener.got) > 3)
        assert not sender.errors
        sender.close()
    with b.inside():
        listener.close()
    assert [record.message for record in caplog.records if "route now" in record.message] == [
        f"{sender.group}: there is a route now, so its packets leave this host"
    ]


def test_a_system_without_netlink_can_listen_all_the_same(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: object, changed: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "no netlink here")

    monkeypatch.setattr("multicast.interfaces.Watch.__init__", refused)
    with Collector(interface="lo", poller=poller) as listener:
        multicast.sendto("heard", GROUP, PORT, interface="lo")
        poll_until(poller, lambda: listener.got)


# -- sendto, which keeps sockets --------------------------------------------------------------------------------------


@pytest.mark.needs_namespaces
def test_sendto_follows_the_routes_although_it_keeps_its_socket(lab: netns.Lab) -> None:
    host, first, second = lab.host("host"), lab.host("first"), lab.host("second")
    lab.link(host, "va", first, "vb", net=1)
    lab.link(host, "vc", second, "vd", net=2)
    listeners = {}
    with Poller() as poller:
        for name, other in (("first", first), ("second", second)):
            with other.inside():
                listeners[name] = helpers.Keeper(ip=GROUP, port=PORT, poller=poller)
        with host.inside():
            for device in ("va", "vc", "va"):
                host.run(["ip", "route", "replace", "224.0.0.0/4", "dev", device])
                multicast.sendto(device, GROUP, PORT)
                multicast.sendto(device, GROUP, PORT)
        poll_until(poller, lambda: sum(len(one.packets) for one in listeners.values()) >= 6)
        heard = {name: one.packets for name, one in listeners.items()}
        for name, other in (("first", first), ("second", second)):
            with other.inside():
                listeners[name].close()
    assert heard == {"first": [b"va"] * 4, "second": [b"vc"] * 2}


@pytest.mark.needs_namespaces
def test_sendto_sends_from_the_namespace_its_thread_is_in(hosts: tuple[netns.Host, netns.Host]) -> None:
    a, b = hosts
    with Poller() as poller:
        with b.inside():
            listener = helpers.Keeper(ip=GROUP, port=PORT, details=True, poller=poller)
        for host in (a, b, a, b):
            with host.inside():
                multicast.sendto(host.name, GROUP, PORT)
        poll_until(poller, lambda: len(listener.packets) >= 4)
        with b.inside():
            listener.close()
    assert [addr.host for addr in listener.addrs] == ["10.99.0.1", "10.99.0.2"] * 2
