"""One group and port, several sockets: each gets what is for it, all of it and nothing else."""

from __future__ import annotations

import socket

import helpers
import netns
import pytest
from helpers import Keeper

import multicast

GROUP, PORT = "239.1.2.3", 5000

SEND = """
    import sys, multicast
    from multicast.senders import forget_senders
    for number in range(20):
        forget_senders()
        # A new source port each time: the kernel spreads by it, where it spreads.
        multicast.sendto(sys.argv[1], sys.argv[2], 5000, interface=sys.argv[3], source_ip=sys.argv[4] or None)
"""


def delivered(poller: multicast.Poller, listeners: list[Keeper], expected: int) -> list[int]:
    helpers.settle(poller, lambda: sum(len(listener.packets) for listener in listeners) >= expected)
    helpers.turns(poller)
    return [len(listener.packets) for listener in listeners]


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("group", [GROUP, "ff15::1", "ff02::1:1"])
def test_listeners_on_different_interfaces_do_not_get_each_others_packets(
    lab: netns.Lab, poller: multicast.Poller, group: str
) -> None:
    alice = lab.host("alice")
    lab.link(alice, "va", lab.here, "vh", 0)
    lab.link(alice, "wa", lab.here, "wh", 1)
    wanted = [("vh",), ("wh",), ("lo",)] if group == "ff02::1:1" else [("vh",), ("wh",), ("lo",), ("wh", "lo")]
    listeners = [Keeper(ip=group, port=PORT, interface=list(names), poller=poller) for names in wanted]
    both = (len(wanted) - 3) * 20
    alice.python(SEND, "by v", group, "va", "")
    assert delivered(poller, listeners, 20)[:3] == [20, 0, 0]
    alice.python(SEND, "by w", group, "wa", "")
    assert delivered(poller, listeners, 40 + both) == [20, 20, 0, both][: len(wanted)]
    assert [listener.statistics().dropped for listener in listeners] == [0] * len(wanted)


@pytest.mark.needs_namespaces
@pytest.mark.parametrize(
    "group, first, second", [(GROUP, "127.0.0.1", "127.0.0.2"), ("ff15::1", "::1", "fd99::2")]
)
def test_listeners_to_different_sources_do_not_get_each_others_packets(
    lab: netns.Lab, poller: multicast.Poller, group: str, first: str, second: str
) -> None:
    if ":" in second:
        lab.here.ip(f"-6 address add {second}/128 dev lo nodad")
    try:
        listeners = [
            Keeper(ip=group, port=PORT, interface="lo", sources=sources, poller=poller)
            for sources in ([first], [second], [first, second])
        ]
        for source in (first, second, second):
            lab.here.python(SEND, source, group, "lo", source)
        assert delivered(poller, listeners, 120) == [20, 40, 60]
        assert {packet.decode() for packet in listeners[0].packets} == {first}
    finally:
        if ":" in second:
            lab.here.ip(f"-6 address del {second}/128 dev lo")


@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
@pytest.mark.parametrize("address", ["", GROUP])
def test_the_port_is_shared_with_programs_that_share_it_in_either_way_whoever_comes_first(
    poller: multicast.Poller, option: str, address: str
) -> None:
    def other() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        opened.bind((address, PORT))
        return opened

    with other(), Keeper(ip=GROUP, port=PORT, poller=poller) as listener, other():
        multicast.sendto("x", GROUP, PORT)
        assert delivered(poller, [listener], 1) == [1]
