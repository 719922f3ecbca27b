"""Groups as people write them, and sockets that are set up for them."""

from __future__ import annotations

import copy
import ipaddress
import logging
import pickle
import socket
import struct
from contextlib import suppress
from typing import Any

import helpers
import netns
import pytest
from helpers import BAD_SENDERS, descriptors, joined
from hypothesis import given
from hypothesis import strategies as st

from multicast import ArgumentError, Group, GroupError, InterfaceError, Scope, sockets
from multicast.interfaces import resolve
from multicast.sockets import Endpoint, open_receiver, open_sender, receiving
from multicast.sockets.groups import unused_options

# These tests keep to this host, so that they may run where there is no private network namespace.
pytestmark = pytest.mark.lo_alone

# -- groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, address, port, interfaces, sources",
    [
        ("", "224.0.42.42", 4242, (), ()),
        (":5000", "224.0.42.42", 5000, (), ()),
        ("%eth0", "224.0.42.42", 4242, ("eth0",), ()),
        ("239.1.2.3", "239.1.2.3", 4242, (), ()),
        (" 239.1.2.3:5000 ", "239.1.2.3", 5000, (), ()),
        ("239.1.2.3:5000%eth0", "239.1.2.3", 5000, ("eth0",), ()),
        ("239.1.2.3%eth0", "239.1.2.3", 4242, ("eth0",), ()),
        ("239.1.2.3%eth0,eth1.7", "239.1.2.3", 4242, ("eth0", "eth1.7"), ()),
        ("239.1.2.3%all", "239.1.2.3", 4242, ("all",), ()),
        ("239.1.2.3%10.0.0.5", "239.1.2.3", 4242, ("10.0.0.5",), ()),
        ("10.0.0.5@232.1.1.1:5000", "232.1.1.1", 5000, (), ("10.0.0.5",)),
        ("10.0.0.5,10.0.0.6@232.1.1.1", "232.1.1.1", 4242, (), ("10.0.0.5", "10.0.0.6")),
        ("@239.1.2.3:5000", "239.1.2.3", 5000, (), ()),
        ("ff02::1", "ff02::1", 4242, (), ()),
        ("FF02:0::1", "ff02::1", 4242, (), ()),
        ("ff02::1%eth0", "ff02::1", 4242, ("eth0",), ()),
        ("[ff02::1]", "ff02::1", 4242, (), ()),
        ("[ff02::1]:5000", "ff02::1", 5000, (), ()),
        ("[ff02::1]:5000%eth0", "ff02::1", 5000, ("eth0",), ()),
        ("[ff02::1%eth0]:5000", "ff02::1", 5000, ("eth0",), ()),
        ("2001:db8::5@[ff3e::1]:5000", "ff3e::1", 5000, (), ("2001:db8::5",)),
        ("udp://@239.1.1.1:5000", "239.1.1.1", 5000, (), ()),
        ("UDP://239.1.1.1:5000", "239.1.1.1", 5000, (), ()),
        ("rtp://239.1.1.1:5004", "239.1.1.1", 5004, (), ()),
        ("udp://10.0.0.5@232.1.1.1:5000", "232.1.1.1", 5000, (), ("10.0.0.5",)),
        ("udp://@[ff05::1]:5000", "ff05::1", 5000, (), ()),
        ("udp://239.1.1.1:5000?localaddr=10.0.0.5&pkt_size=1316", "239.1.1.1", 5000, ("10.0.0.5",), ()),
        ("udp://239.1.1.1:5000?ttl=3&reuse&localaddr=&sources=&block=", "239.1.1.1", 5000, (), ()),
        ("udp://232.1.1.1:5000?sources=10.0.0.5,10.0.0.6", "232.1.1.1", 5000, (), ("10.0.0.5", "10.0.0.6")),
        ("ssdp", "239.255.255.250", 1900, (), ()),
        ("mdns", "224.0.0.251", 5353, (), ()),
        ("MDNS%eth0", "224.0.0.251", 5353, ("eth0",), ()),
        ("llmnr", "224.0.0.252", 5355, (), ()),
        ("wsd", "239.255.255.250", 3702, (), ()),
        ("knx", "224.0.23.12", 3671, (), ()),
        ("coap", "224.0.1.187", 5683, (), ()),
        ("ptp", "224.0.1.129", 319, (), ()),
        ("sap", "224.2.127.254", 9875, (), ()),
        ("lcm", "239.255.76.67", 7667, (), ()),
        ("mdns:5354", "224.0.0.251", 5354, (), ()),
        ("sacn/1", "239.255.0.1", 5568, (), ()),
        ("sacn/63999", "239.255.249.255", 5568, (), ()),
    ],
)
def test_a_group_is_understood_as_people_write_it(
    text: str, address: str, port: int, interfaces: tuple[str, ...], sources: tuple[str, ...]
) -> None:
    group = Group.parse(text)
    assert group == Group(address, port, interfaces, sources)
    assert Group.parse(str(group)) == group


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "239.1.1",
        "239.1.1.1.1",
        "239.1.1.256",
        "239.01.1.1",
        "0xef010101",
        "239.1.1.1 evil",
        "239.1.1.1:5000:6000",
        "239.1.1.1:",
        "239.1.1.1:http",
        "239.1.1.1:-1",
        "ff02::1:2:3:4:5:6:7:8:9",
        "[ff02::1",
        "ff02::1]:5",
        "fe80::1",
        "::",
        "localhost",
        "example.com",
        "mdnsx",
        "sacn",
        "sacn/0",
        "sacn/64000",
        "sacn/x",
        "nobody@239.1.1.1",
        "239.1.1.1@239.1.1.1",
        "0.0.0.0@239.1.1.1",
        "::1@239.1.1.1",
        "10.0.0.1@ff02::1",
        "http://239.1.1.1",
        "239.1.1.1/8",
        "²39.1.1.1",
        "239.1.1.1:5000%eth\x1b0",
        "239.1.1.1:5000%eth 0",
        "udp://239.1.1.1:5000?localaddr=a%2Cb",
        "udp://239.1.1.1:5000?localaddr=a%3Fb",
    ],
)
def test_what_is_not_a_group_is_refused(text: str) -> None:
    with pytest.raises(GroupError):
        Group.parse(text)


def test_senders_that_a_url_leaves_out_are_not_heard_in_silence() -> None:
    with pytest.raises(GroupError, match=r"block=10\.1\.0\.2,10\.1\.0\.3 .* exclude=\['10\.1\.0\.2', '10\.1\.0\.3'\]"):
        Group.parse("udp://@232.1.1.1:5000?block=10.1.0.2,10.1.0.3")


def test_options_of_a_url_that_may_be_missed_are_known() -> None:
    text = "udp://@239.1.1.1:5000?ttl=3&fifo_size=5&reuse&localaddr=10.0.0.5&sources=10.0.0.6&x&ttl=4"
    assert unused_options(text) == [("ttl", "3"), ("ttl", "4"), ("x", "")]
    assert unused_options("239.1.1.1:5000") == []


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ArgumentError, match="port"):
        Group("239.1.1.1", port)
    if port >= 0:
        with pytest.raises(ArgumentError, match="port"):
            Group.parse(f"239.1.1.1:{port}")


@pytest.mark.parametrize("port", ["5000", 5000.0, None, True], ids=helpers.name)
def test_a_port_that_is_no_number_is_refused(port: Any) -> None:
    with pytest.raises(ArgumentError, match="port must be a number"):
        Group("239.1.1.1", port)


@pytest.mark.parametrize("address", [None, 5, b"\xef\x01\x01\x01", ("239.1.1.1",)], ids=helpers.name)
def test_an_address_that_is_no_text_is_refused(address: Any) -> None:
    with pytest.raises(GroupError, match="as text"):
        Group(address)


def test_an_address_of_the_standard_library_will_do() -> None:
    assert Group(ipaddress.ip_address("239.1.1.1")) == Group("239.1.1.1")  # type: ignore[arg-type]


def hosts(version: int) -> st.SearchStrategy[str]:
    addresses = st.ip_addresses(v=version)  # type: ignore[arg-type]
    return addresses.filter(lambda a: not (a.is_multicast or a.is_unspecified)).map(str)


NAMES = st.one_of(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789._-:", min_size=1, max_size=15),
    st.ip_addresses(v=4).map(str),
)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    if draw(st.booleans()):
        address, version = str(ipaddress.IPv4Address(draw(st.integers(0xE0000000, 0xEFFFFFFF)))), 4
    else:
        address, version = str(ipaddress.IPv6Address(draw(st.integers(0xFF << 120, (1 << 128) - 1)))), 6
    return Group(
        address,
        draw(st.integers(1, 65535)),
        tuple(draw(st.lists(NAMES, max_size=3))),
        tuple(draw(st.lists(hosts(version), max_size=3))),
    )


@given(groups())
def test_a_group_is_written_as_it_is_read(group: Group) -> None:
    assert Group.parse(str(group)) == group


@given(st.text(max_size=40))
def test_any_other_text_is_a_group_or_is_refused_in_words(text: str) -> None:
    with suppress(ArgumentError):  # any other error is a failure
        Group.parse(text)


def test_groups_are_values() -> None:
    assert len({Group("ff05::1", 5), Group("FF05:0::1", 5), Group("ff05::2", 5)}) == 2
    group = Group("232.1.1.1", 5, ("eth0",), ("10.0.0.1",))
    assert copy.copy(group) == pickle.loads(pickle.dumps(group)) == group  # noqa: S301 -- our own
    assert repr(group) == "Group(address='232.1.1.1', port=5, interfaces=('eth0',), sources=('10.0.0.1',))"
    assert Group("239.1.1.1", 5) != Endpoint("239.1.1.1", 5) != ("239.1.1.1", 5, ())
    with pytest.raises(AttributeError, match="make another one"):
        group.port = 5


def test_sources_are_single_hosts_named_once() -> None:
    assert Group("232.1.1.1", 5, (), ("10.0.0.1", "10.0.0.2", "10.0.0.1")).sources == ("10.0.0.1", "10.0.0.2")
    assert Group.of("232.1.1.1", 5, "10.0.0.1").sources == ("10.0.0.1",)
    assert Group.of("232.1.1.1", 5, iter(["10.0.0.1"])).sources == ("10.0.0.1",)
    assert Group.of("232.1.1.1", 5, None).sources == ()
    assert Group("ff3e::1", 5, (), ("fe80::1%eth0",)).sources == ("fe80::1",)


def test_a_zone_in_the_address_names_the_interface() -> None:
    group = Group("ff02::1%eth0", 5)
    assert (group.address, group.interfaces) == ("ff02::1", ("eth0",))


@pytest.mark.parametrize(
    "address, specific",
    [
        ("232.0.0.1", True),
        ("231.255.255.255", False),
        ("233.0.0.0", False),
        ("ff3e::1", True),
        ("ff35::8000:1", True),
        ("ff3e:20::1", False),
        ("ff0e::1", False),
    ],
)
def test_the_source_specific_ranges_are_known(address: str, specific: bool) -> None:
    assert Group(address).is_source_specific is specific


@pytest.mark.parametrize(
    "address, needs",
    [("ff01::1", True), ("ff02::1", True), ("ff12::1", True), ("ff05::1", False), ("224.0.0.1", False)],
)
def test_what_means_something_on_one_link_only_is_known(address: str, needs: bool) -> None:
    assert Group(address).needs_interface is needs
    assert Endpoint("fe80::1", 5).needs_interface
    assert not Endpoint("10.0.0.1", 5).needs_interface


def test_the_scopes_are_those_specified() -> None:
    assert [(scope.name, int(scope)) for scope in Scope] == [
        ("HOST", 0),
        ("SUBNET", 1),
        ("SITE", 32),
        ("REGION", 64),
        ("CONTINENT", 128),
        ("UNRESTRICTED", 255),
    ]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "255.255.255.255"])  # noqa: S104 -- binds nothing
def test_what_is_no_destination_is_refused(address: str) -> None:
    with pytest.raises(GroupError, match="nothing can be sent there"):
        Endpoint(address, 5)


# -- which interfaces ----------------------------------------------------------------------------------------


def names(group: Group, interface: Any = None) -> list[str]:
    return [one.name for one in receiving(group, interface)]


@pytest.mark.needs_namespaces
def test_interfaces_to_join_on_are_chosen_as_asked(lab: netns.Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "va", other, "vb")
    lab.link(host, "vc", other, "vd", net=1)
    lab.link(host, "vx", other, "vy", net=2)
    host.ip("link set vx down")
    any_group = Group("239.1.1.1")
    with host.inside():
        assert names(any_group) == ["lo", "va", "vc"]
        assert names(any_group, "all") == ["lo", "va", "vc"]
        assert names(any_group, ["all"]) == ["lo", "va", "vc"]
        assert names(any_group, "va") == ["va"]
        assert names(any_group, socket.if_nametoindex("vc")) == ["vc"]
        assert names(any_group, "10.99.1.1") == ["vc"]
        assert names(any_group, "fd99::1") == ["va"]
        assert names(any_group, resolve("va")) == ["va"]
        assert names(any_group, ["va", "vc"]) == ["va", "vc"]
        assert names(any_group, ("vc", "10.99.1.1", "lo")) == ["vc", "lo"]
        assert names(any_group, "vx") == ["vx"], "one that is named may be down"
        assert names(Group.parse("239.1.1.1%vc")) == ["vc"]
        assert names(Group.parse("239.1.1.1%va,vc")) == ["va", "vc"]
        assert names(Group.parse("239.1.1.1%all")) == ["lo", "va", "vc"]
        assert names(Group.parse("239.1.1.1%vc"), "va") == ["va"], "the argument has the last word"
        assert names(Group("ff02::1"), "va") == ["va"]
        with pytest.raises(InterfaceError, match="no interface 'vz'"):
            names(any_group, ["va", "vz"])
        with pytest.raises(InterfaceError, match="the list of interfaces is empty"):
            names(any_group, [])
        for asked in (None, "all", ["va", "vc"]):
            with pytest.raises(InterfaceError, match="needs one interface: ff02::1%vc"):
                names(Group("ff02::1"), asked)


@pytest.mark.needs_namespaces
def test_a_host_without_a_working_interface_is_told_so(lab: netns.Lab) -> None:
    host = lab.host("host")
    host.ip("link set lo down")
    with host.inside(), pytest.raises(InterfaceError, match="ip link set dev lo up"):
        receiving(Group(), None)


# -- sockets -------------------------------------------------------------------------------------------------


def options(opened: socket.socket, *which: tuple[int, int]) -> list[int]:
    return [opened.getsockopt(level, option) for level, option in which]


@pytest.mark.parametrize("address", ["239.1.1.1", "ff05::1"])
def test_a_receiver_is_bound_to_its_group_shares_its_port_and_hears_nobody_elses_groups(
    free_port: int, address: str
) -> None:
    group = Group(address, free_port)
    opened, _, joined_on = open_receiver(group, receiving(group, "lo"))
    with opened:
        assert opened.getsockname()[:2] == (address, free_port)
        level, multicast_all = (socket.IPPROTO_IP, 49) if group.family == socket.AF_INET else (socket.IPPROTO_IPV6, 29)
        assert options(
            opened,
            (socket.SOL_SOCKET, socket.SO_REUSEADDR),
            (socket.SOL_SOCKET, socket.SO_REUSEPORT),
            (level, multicast_all),
        ) == [1, 1, 0]
        assert not opened.getblocking()
        assert not opened.get_inheritable()
        assert [one.name for one in joined_on] == ["lo"]
        assert joined(address) == ["lo"]
        for way in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as older and as newer programs share a port
            with socket.socket(group.family, socket.SOCK_DGRAM) as foreign:
                foreign.setsockopt(socket.SOL_SOCKET, way, 1)
                foreign.bind(("", free_port))
                also, _, _ = open_receiver(group, receiving(group, "lo"))
                also.close()
    assert joined(address) == []


@pytest.mark.parametrize("ttl", [0, 1, 255])
def test_a_sender_has_the_ttl_and_the_loopback_switch_it_was_given(ttl: int) -> None:
    for loopback in (True, False):
        opened, sockaddr = open_sender(Group("239.1.1.1", 5), ttl, interface="lo", loopback=loopback)
        with opened:
            assert sockaddr == ("239.1.1.1", 5)
            assert options(
                opened,
                (socket.IPPROTO_IP, socket.IP_MULTICAST_TTL),
                (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP),
            ) == [ttl, loopback]
            assert not opened.getblocking()
        opened, sockaddr = open_sender(Group("ff05::1", 5), ttl, interface="lo", loopback=loopback)
        with opened:
            assert sockaddr == ("ff05::1", 5, 0, 0)
            assert options(
                opened,
                (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS),
                (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP),
            ) == [ttl, loopback]


def test_the_address_of_a_link_local_group_carries_its_interface() -> None:
    opened, sockaddr = open_sender(Group("ff02::1", 5), 1, interface="lo")
    with opened:
        assert sockaddr == ("ff02::1", 5, 0, socket.if_nametoindex("lo"))


def test_a_sender_has_the_source_port_it_was_given(free_port: int) -> None:
    for group in (Group("239.1.1.1", 5), Group("ff05::1", 5)):
        opened, _ = open_sender(group, 1, interface="lo", source_port=free_port)
        with opened:
            assert opened.getsockname()[1] == free_port
            with pytest.raises(OSError, match="already in use") as taken:
                open_sender(group, 1, interface="lo", source_port=free_port)
            assert str(free_port) in taken.value.__notes__[0]


@pytest.mark.parametrize("arguments, error, words", BAD_SENDERS, ids=lambda value: str(value)[:40])
def test_bad_arguments_of_a_sender_open_nothing(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    before = descriptors()
    with pytest.raises(error, match=words):
        open_sender(Group("239.1.1.1", 5), **{"ttl": 1, **arguments})
    assert descriptors() == before


def test_an_ipv6_sender_on_one_link_needs_its_interface() -> None:
    with pytest.raises(InterfaceError, match="ff02::1%eth0"):
        open_sender(Group("ff02::1", 5), 1)


def test_a_sender_sends_by_one_interface() -> None:
    with pytest.raises(InterfaceError, match="one"):
        open_sender(Group("239.1.1.1", 5, ("lo", "eth0")), 1)


# -- limits and refusals -------------------------------------------------------------------------------------


def test_the_21st_membership_names_the_limit(free_port: int) -> None:
    group = Group("239.1.1.1", free_port)
    opened, _, _ = open_receiver(group, receiving(group, "lo"))
    with opened:
        index = socket.if_nametoindex("lo")
        for number in range(2, 21):
            sockets.join(opened, Group(f"239.1.1.{number}", free_port), index)
        with pytest.raises(OSError, match="No buffer space") as limit:
            sockets.join(opened, Group("239.1.1.21", free_port), index)
        assert "net.ipv4.igmp_max_memberships is 20 groups" in limit.value.__notes__[0]


def test_the_11th_source_names_the_limit_and_leaves_nothing(free_port: int) -> None:
    before = descriptors()
    group = Group("232.1.1.1", free_port, (), tuple(f"127.0.0.{number}" for number in range(1, 12)))
    with pytest.raises(OSError, match="No buffer space") as limit:
        open_receiver(group, receiving(group, "lo"))
    assert "net.ipv4.igmp_max_msf is 10 sources" in limit.value.__notes__[0]
    limit.value.__traceback__ = None
    assert descriptors() == before
    assert joined("232.1.1.1") == []


def test_joining_twice_is_told(free_port: int) -> None:
    group = Group("239.1.1.1", free_port)
    opened, _, _ = open_receiver(group, receiving(group, "lo"))
    with opened:
        with pytest.raises(OSError, match="already in use") as twice:
            sockets.join(opened, group, socket.if_nametoindex("lo"))
        assert "joined 239.1.1.1 on that interface already" in twice.value.__notes__[0]
        sockets.leave(opened, group, socket.if_nametoindex("lo"))
        sockets.leave(opened, group, socket.if_nametoindex("lo"))
        assert joined("239.1.1.1") == []


def test_joining_on_an_interface_that_is_gone_lists_those_there_are(free_port: int) -> None:
    before = descriptors()
    (lo,) = receiving(Group(), "lo")
    gone = type(lo)(4711, "eth7")
    with pytest.raises(OSError, match="No such device") as refused:
        open_receiver(Group("239.1.1.1", free_port), [gone])
    assert "lo 127.0.0.1" in refused.value.__notes__[0]
    refused.value.__traceback__ = None
    assert descriptors() == before


def test_a_port_that_another_program_holds_alone_is_told_with_the_options_it_lacks(free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
        foreign.bind(("", free_port))
        before = descriptors()
        group = Group("239.1.1.1", free_port)
        with pytest.raises(OSError, match="already in use") as refused:
            open_receiver(group, receiving(group, "lo"))
        (note,) = refused.value.__notes__
        assert "SO_REUSEADDR and SO_REUSEPORT" in note
        assert f"sport = :{free_port}" in note
        refused.value.__traceback__ = None
        assert descriptors() == before


@pytest.mark.needs_namespaces
def test_with_all_interfaces_it_is_enough_that_one_can_be_joined(
    lab: netns.Lab, caplog: pytest.LogCaptureFixture
) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "va", other, "vb")
    host.sysctl("ipv4.igmp_max_memberships", 1)
    # The kernel compares sources with the memberships of the socket itself, so no other can hold them.
    group = Group.of("232.1.1.1", 4242, ["10.99.0.2"])
    with host.inside():
        with caplog.at_level(logging.WARNING, "multicast"):
            opened, _, joined_on = open_receiver(group, receiving(group, None), optional=True)
        with opened:
            assert [one.name for one in joined_on] == ["lo"]
        assert "232.1.1.1 is not joined on va" in caplog.text
        before = descriptors()
        with pytest.raises(OSError, match="No buffer space") as refused:
            open_receiver(group, receiving(group, ["lo", "va"]))
        assert "net.ipv4.igmp_max_memberships is 1 groups" in refused.value.__notes__[0]
        refused.value.__traceback__ = None
        assert descriptors() == before


# -- the receive buffer --------------------------------------------------------------------------------------


def test_the_receive_buffer_is_as_asked_and_can_be_read(free_port: int) -> None:
    group = Group("239.1.1.1", free_port)
    opened, _, _ = open_receiver(group, receiving(group, "lo"), rcvbuf=100_000)
    with opened:
        assert sockets.receive_buffer(opened) == 100_000
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000


@pytest.mark.parametrize("wanted", [0, -1, 1.5, "big", True], ids=helpers.name)
def test_a_bad_size_of_the_receive_buffer_is_refused(wanted: Any) -> None:
    group = Group("239.1.1.1", 4242)
    before = descriptors()
    with pytest.raises(ArgumentError, match="rcvbuf"):
        open_receiver(group, receiving(group, "lo"), rcvbuf=wanted)
    assert descriptors() == before


def test_a_smaller_buffer_than_asked_for_is_told_once_with_the_limit(
    free_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets.datagrams, "_told_about_buffer", False)
    group = Group("239.1.1.1", free_port)
    for _ in range(2):
        opened, _, _ = open_receiver(group, receiving(group, "lo"), rcvbuf=2**40)
        with opened:
            assert sockets.receive_buffer(opened) < 2**40
    assert caplog.text.count("net.core.rmem_max") == 1


# -- other helpers -------------------------------------------------------------------------------------------


def test_a_source_specific_group_without_sources_is_joined_and_noted(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    group = Group("232.1.1.1", free_port)
    opened, _, _ = open_receiver(group, receiving(group, "lo"))
    opened.close()
    assert "232.1.1.1 is in the source-specific range" in caplog.text
    caplog.clear()
    group = Group("232.1.1.1", free_port, (), ("127.0.0.1",))
    opened, _, _ = open_receiver(group, receiving(group, "lo"))
    opened.close()
    assert caplog.text == ""


def test_the_kernel_is_asked_for_details_only_where_they_are_wanted(free_port: int) -> None:
    group = Group("239.1.1.1", free_port)
    for details in (False, True):
        opened, _, _ = open_receiver(group, receiving(group, "lo"), details=details)
        with opened:
            assert options(opened, (socket.IPPROTO_IP, 8), (socket.IPPROTO_IP, 12), (socket.SOL_SOCKET, 35)) == [
                details
            ] * 3


def test_drops_are_those_of_the_socket(free_port: int) -> None:
    group = Group("239.1.1.1", free_port)
    opened, _, _ = open_receiver(group, receiving(group, "lo"), rcvbuf=1)
    sender, sockaddr = open_sender(group, 0)
    with opened, sender:
        for number in range(100):
            sender.sendto(struct.pack("@i", number), sockaddr)
        kept = 0
        while True:
            try:
                opened.recv(100)
            except BlockingIOError:
                break
            kept += 1
        assert 0 < kept < 100
        assert sockets.drops(opened) == 100 - kept


@pytest.mark.needs_namespaces
def test_the_routes_decide_where_nothing_else_does(free_port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "multicast"):
        opened, _ = open_sender(Group("239.1.1.1", free_port), 1)
    with opened:
        assert opened.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF) == 0
    assert caplog.text == ""


@pytest.mark.needs_namespaces
def test_without_a_route_packets_go_by_lo_which_is_told_once(
    lab: netns.Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets.choosing, "_told_about_loopback", False)
    host = lab.host("host")  # has lo and no other route for IPv4
    group = Group("239.1.1.1", 4242)
    with host.inside():
        receiver, _, _ = open_receiver(group, receiving(group, None))
        with receiver:
            for _ in range(2):
                opened, sockaddr = open_sender(group, 1)
                with opened:
                    opened.sendto(b"hello", sockaddr)
                assert receiver.recv(100) == b"hello"
    assert caplog.text.count("no route for 239.1.1.1") == 1


def test_two_interfaces_in_one_address_are_refused() -> None:
    with pytest.raises(GroupError, match="two interfaces, lo and eth7"):
        Group.parse("[ff02::1%lo]:5000%eth7")
    assert Group.parse("[ff02::1%lo]:5000%lo").interfaces == ("lo",)
