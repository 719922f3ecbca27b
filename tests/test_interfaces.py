"""Interfaces: which there are, and which one somebody means."""

from __future__ import annotations

import select
import socket

import helpers
import netns
import pytest
from helpers import PATIENCE

from multicast import Interface, InterfaceError
from multicast.errors import describe
from multicast.interfaces import Watch, interfaces, listing, memberships, resolve, route, usable

LO = Interface(1, "lo", ("127.0.0.1", "::1"), multicast=False, loopback=True)
ETH0 = Interface(2, "eth0", ("10.0.0.5", "192.168.7.1", "fe80::5", "2001:db8::5"))
ETH1 = Interface(3, "eth1", ("10.1.0.5",), running=False)
DOWN = Interface(4, "wlan0", (), up=False)
TUNNEL = Interface(5, "tun0", ("10.8.0.1",), multicast=False)
NUMBER = Interface(6, "2", ())
HERE = (LO, ETH0, ETH1, DOWN, TUNNEL, NUMBER)


@pytest.mark.parametrize(
    "what, meant",
    [
        ("eth0", ETH0),
        (" eth0 ", ETH0),
        (3, ETH1),
        ("3", ETH1),
        ("10.0.0.5", ETH0),
        ("192.168.7.1", ETH0),
        ("fe80::5", ETH0),
        ("fe80:0:0::5", ETH0),
        ("fe80::5%eth0", ETH0),
        ("FE80::5", ETH0),
        ("127.0.0.1", LO),
        (ETH1, ETH1),
        (Interface(2, "old name"), ETH0),
        ("2", NUMBER),
        (2, ETH0),
    ],
    ids=str,
)
def test_an_interface_is_named_by_name_index_or_address(what: str | int | Interface, meant: Interface) -> None:
    assert resolve(what, HERE) is meant


@pytest.mark.parametrize("what", ["eth7", "", "10.0.0.6", 99, -1, "10.0.0", "::2", True], ids=helpers.name)
def test_an_unknown_interface_is_refused_with_those_there_are(what: str | int) -> None:
    with pytest.raises(InterfaceError) as refused:
        resolve(what, HERE)
    assert repr(str(what)) in str(refused.value)
    assert "lo 127.0.0.1, eth0 10.0.0.5, eth1 10.1.0.5, wlan0" in str(refused.value)
    assert isinstance(refused.value, LookupError)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(InterfaceError, match="Did you mean wlan0"):
        resolve("wlan1", HERE)
    with pytest.raises(InterfaceError, match=r"^no interface 'qqq'\. This host has"):
        resolve("qqq", HERE)


def test_a_host_without_interfaces_says_none() -> None:
    with pytest.raises(InterfaceError, match="This host has: none"):
        resolve("eth0", ())


def test_usable_are_those_that_are_up_and_can_do_multicast_and_lo() -> None:
    assert usable(HERE) == [LO, ETH0, ETH1, NUMBER]
    assert usable((DOWN, Interface(1, "lo", up=False, loopback=True))) == []


def test_an_interface_knows_its_first_address_of_each_family() -> None:
    assert (ETH0.ipv4, ETH0.ipv6) == ("10.0.0.5", "fe80::5")
    assert (ETH1.ipv4, ETH1.ipv6) == ("10.1.0.5", None)
    assert (DOWN.ipv4, DOWN.ipv6) == (None, None)
    assert (str(ETH0), str(DOWN)) == ("eth0 10.0.0.5", "wlan0")


def test_lo_is_found_as_it_is() -> None:
    lo = resolve("lo")
    assert (lo.index, lo.loopback, lo.up, lo.multicast) == (socket.if_nametoindex("lo"), True, True, False)
    assert lo.addresses[:1] == ("127.0.0.1",)
    assert lo.mtu > 1500
    assert lo in interfaces()
    assert lo in usable()
    assert "lo 127.0.0.1" in listing()


@pytest.mark.needs_namespaces
def test_what_a_host_has_is_found_by_index_with_state_and_addresses(lab: netns.Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "va", other, "vb")
    lab.link(host, "vc", other, "vd", net=1)
    host.ip("link set va mtu 1400", "address add 10.7.7.7/24 dev va", "link set vc down")
    with host.inside():
        lo, va, vc = interfaces()
        assert (lo.name, va.name, vc.name) == ("lo", "va", "vc")
        assert lo.index < va.index < vc.index
        assert (va.up, va.running, va.multicast, va.loopback, va.mtu) == (True, True, True, False, 1400)
        assert va.addresses[:2] == ("10.99.0.1", "10.7.7.7"), "IPv4 comes first"
        assert "fd99::1" in va.addresses
        assert not any("%" in address for address in va.addresses)
        assert (vc.up, vc.running) == (False, False)
        assert usable() == [lo, va]
        assert resolve("10.7.7.7") == va


@pytest.mark.needs_namespaces
def test_the_route_to_a_group_is_found(lab: netns.Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "va", other, "vb")
    with host.inside():
        found = route("239.1.1.1")
        assert found is not None
        assert (found.interface, found.source) == ("va", "10.99.0.1")
        found = route("ff05::1")
        assert found is not None
        assert found.interface == "va"
        found = route("239.1.1.1", socket.if_nametoindex("lo"))
        assert found is not None
        assert found.interface == "lo"
        assert route("10.200.0.1") is None


@pytest.mark.needs_namespaces
def test_the_memberships_of_a_host_are_found(lab: netns.Lab) -> None:
    host = lab.host("host")
    with host.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as joined:
        joined.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1"),
        )
        found = {(one.interface, one.group): one.users for one in memberships()}
        assert found["lo", "239.1.2.3"] == 1
        assert ("lo", "ff02::1") in found


@pytest.mark.needs_namespaces
def test_a_watch_tells_of_changes(lab: netns.Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    changes: list[int] = []
    with host.inside():
        watch = Watch(lambda: changes.append(1))
    try:
        ready = select.poll()
        ready.register(watch, select.POLLIN)
        assert ready.poll(0) == []
        lab.link(host, "va", other, "vb")
        assert ready.poll(PATIENCE * 1000)
        watch.handle_read()
        assert changes == [1]
        while ready.poll(0):  # IPv6 is set up in the kernel's own time
            watch.handle_read()
        changes.clear()
        host.ip("address add 10.7.7.7/24 dev va")
        assert ready.poll(PATIENCE * 1000)
        watch.handle_read()
        assert changes == [1]
    finally:
        watch.close()
        watch.close()
    assert watch.fileno() == -1


@helpers.alone
def test_no_descriptor_left_to_look_at_the_interfaces_is_told_with_advice() -> None:
    interfaces()  # what it imports is there now
    with helpers.no_descriptor_left(), pytest.raises(OSError, match="Too many open files") as caught:
        interfaces()
    assert "ulimit -n" in describe(caught.value)
