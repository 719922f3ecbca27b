"""Requests and replies: the rules without sockets, then on this host, then between hosts that are forged."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import netns
import pytest
from helpers import Clock, descriptors, in_child, turns
from hypothesis import given
from hypothesis import strategies as st

from multicast import Address, Poller
from multicast.discovery import Replies, Requester, Responder, request
from multicast.discovery.rules import Allowance, Copies, Exchange, answerable
from multicast.errors import ArgumentError, GroupError, InterfaceError, NoReply, PacketSizeError, PacketTypeError
from multicast.sockets import Endpoint, Way, ways

GROUP = "239.77.0.1"
GROUP6 = "ff02::4242"


class Echo(Responder):
    """Answers with what it was asked, and keeps a list of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.asked: list[tuple[bytes, Address]] = []
        super().__init__(*args, **options)

    def handle_request(self, packet: bytes, addr: Address) -> bytes:
        self.asked.append((packet, addr))
        return b"echo " + packet


class Collector(Requester):
    """Keeps the replies, and whether the time was over."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.heard: list[bytes] = []
        self.timeouts = 0
        super().__init__(*args, **options)

    def handle_reply(self, packet: bytes, addr: Address) -> object:
        self.heard.append(packet)
        return False

    def handle_timeout(self) -> None:
        self.timeouts += 1


# -- which request a reply answers ---------------------------------------------------------------------------


def test_a_reply_takes_as_long_as_it_took() -> None:
    exchange = Exchange()
    number = exchange.ask(10.0)
    assert exchange.answer(number, 10.25, "a", "way") == 0.25
    assert exchange.answer(number, 9.0, "b", "way") == 0.0  # a clock that was moved makes no negative times
    assert exchange.replies == 2


def test_replies_find_their_own_request() -> None:
    exchange = Exchange()
    assert [exchange.ask(1.0), exchange.ask(2.0), exchange.ask(3.0)] == [1, 2, 3]
    assert exchange.answer(2, 3.5, "a", "way") == 1.5
    assert exchange.answer(1, 3.5, "a", "way") == 2.5


def test_a_reply_to_nothing_is_a_stray() -> None:
    exchange = Exchange()
    assert exchange.answer(0, 1.0, "a", "way") is None
    exchange.ask(1.0)
    assert exchange.answer(None, 1.0, "a", "way") is None
    assert exchange.answer(2, 1.0, "a", "way") is None
    assert (exchange.replies, exchange.strays) == (0, 3)


def test_one_responder_by_two_ways_counts_once_and_three_at_one_address_count_thrice() -> None:
    exchange = Exchange()
    number = exchange.ask(1.0)
    assert [exchange.answer(number, 1.0, "host", way) for way in ("lo", "eth0")] == [0.0, None]
    assert [exchange.answer(number, 1.0, "shared", way) for way in "ababab"] == [0.0, None] * 3
    assert (exchange.replies, exchange.duplicates) == (4, 4)
    # The next request may be answered by another way.
    assert exchange.answer(exchange.ask(2.0), 2.0, "host", "eth0") == 0.0


def test_no_more_replies_than_wanted_are_counted() -> None:
    exchange = Exchange(limit=2)
    number = exchange.ask(1.0)
    assert [exchange.answer(number, 1.0, source, "way") for source in "abc"] == [0.0, 0.0, None]
    assert exchange.done
    assert exchange.replies == 2


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_is_a_number_from_1_on(limit: Any) -> None:
    with pytest.raises(ArgumentError, match="limit"):
        Exchange(limit)


def test_what_an_exchange_remembers_is_bounded() -> None:
    exchange = Exchange()
    for _ in range(3000):
        exchange.ask(1.0)
    for port in range(3000):
        assert exchange.answer(3000, 1.0, ("host", port), "way") == 0.0
    assert exchange.answer(1, 2.0, "late", "way") is None
    assert exchange.answer(3000 - 1023, 2.0, "late", "way") == 1.0
    assert len(exchange._sent) == 1024
    assert len(exchange._ways) == 1024


# -- how many replies may be sent ----------------------------------------------------------------------------


def granted(allowance: Allowance, source: str, now: float, tries: int) -> int:
    count = 0
    for _ in range(tries):
        if allowance.permits(source, now):
            allowance.take(source, now)
            count += 1
    return count


def test_a_source_gets_a_second_of_replies_at_once_and_then_the_rate() -> None:
    allowance = Allowance(per_source=10, total=1000)
    assert granted(allowance, "a", 5.0, 100) == 10
    assert granted(allowance, "b", 5.0, 100) == 10
    assert granted(allowance, "a", 5.5, 100) == 5
    assert granted(allowance, "a", 60.0, 100) == 10


def test_all_sources_together_are_limited() -> None:
    allowance = Allowance(per_source=10, total=25)
    assert sum(granted(allowance, f"10.0.0.{number}", 5.0, 10) for number in range(200)) == 25
    assert sum(granted(allowance, f"10.0.1.{number}", 6.0, 10) for number in range(200)) == 25


def test_less_than_one_reply_a_second_is_one_from_time_to_time() -> None:
    allowance = Allowance(per_source=0.5, total=10)
    assert [granted(allowance, "a", now, 5) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [1, 0, 1, 0, 1]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 0.7)), max_size=300))
def test_no_window_of_time_has_more_than_the_allowance(requests: list[tuple[str, float]]) -> None:
    allowance = Allowance(per_source=4, total=7)
    now = 0.0
    sent: list[tuple[str, float]] = []
    for source, pause in requests:
        now += pause / 10
        if allowance.permits(source, now):
            allowance.take(source, now)
            sent.append((source, now))
    for start in range(len(sent)):
        for end in range(start, len(sent)):
            window = sent[end][1] - sent[start][1]
            assert end - start + 1 <= 7 + 7 * window + 1e-6
            for name in "abc":
                count = sum(source == name for source, _ in sent[start : end + 1])
                assert count <= 4 + 4 * window + 1e-6


def test_invented_sources_do_not_fill_the_memory() -> None:
    allowance = Allowance(per_source=10, total=100)
    now, most = 0.0, 0
    for number in range(50_000):
        now += 0.0001
        granted(allowance, f"source {number}", now, 1)
        most = max(most, len(allowance))
    assert most <= 200
    # And those who had their share are not forgotten over it before it is whole again.
    allowance = Allowance(per_source=1, total=1e9)
    assert granted(allowance, "a", 1.0, 2) == 1
    for number in range(50_000):
        granted(allowance, f"source {number}", 1.0, 1)
    assert granted(allowance, "a", 1.9, 1) == 0


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan"), True, "10", None])
def test_an_allowance_is_a_number_more_than_0(rate: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^per_source"):
        Allowance(rate, 10)
    with pytest.raises(ArgumentError, match=r"^total"):
        Allowance(10, rate)


# -- copies of a request -------------------------------------------------------------------------------------


def test_a_request_that_comes_by_two_interfaces_is_one() -> None:
    copies = Copies()
    assert [copies.seen(b"who?", 40000, interface, 1.0) for interface in ("lo", "eth0", "eth1")] == [False, True, True]


def test_the_same_request_again_is_another_one() -> None:
    copies = Copies()
    arrivals = [("lo", 1.00), ("eth0", 1.01), ("eth0", 1.02), ("lo", 1.03), ("lo", 1.04)]
    seen = [copies.seen(b"who?", 40000, interface, now) for interface, now in arrivals]
    assert seen == [False, True, False, True, False]


def test_a_copy_comes_at_once_or_not_at_all() -> None:
    copies = Copies()
    assert not copies.seen(b"who?", 40000, "lo", 1.0)
    assert not copies.seen(b"who?", 40000, "eth0", 1.2)


def test_other_requests_are_no_copies() -> None:
    copies = Copies()
    assert not copies.seen(b"who?", 40000, "lo", 1.0)
    assert not copies.seen(b"what?", 40000, "eth0", 1.0)
    assert not copies.seen(b"who?", 40001, "eth0", 1.0)
    assert not copies.seen(b"who?", 40000, None, 1.0)


def test_a_port_that_people_chose_may_be_that_of_several_hosts() -> None:
    copies = Copies()
    assert [copies.seen(b"who?", 5353, interface, 1.0) for interface in ("eth0", "eth1")] == [False, False]
    assert [copies.seen(b"who?", 32767, interface, 1.0) for interface in ("eth0", "eth1")] == [False, False]
    assert [copies.seen(b"who?", 32768, interface, 1.0) for interface in ("eth0", "eth1")] == [False, True]


def test_invented_requests_do_not_fill_the_memory() -> None:
    copies = Copies()
    for number in range(5000):
        copies.seen(b"%d" % number, 40000, "eth0", 1.0)
    assert len(copies) == 1024
    assert [copies.seen(b"%d" % number, 40000, "eth1", 1.0) for number in (4999, 3976, 3975)] == [True, True, False]


# -- where a reply may go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, port",
    [
        ("255.255.255.255", 5000),
        ("239.1.2.3", 5000),
        ("224.0.0.1", 5000),
        ("0.0.0.0", 5000),  # noqa: S104
        ("0.1.2.3", 5000),
        ("240.0.0.1", 5000),
        ("10.0.0.1", 0),
        ("10.0.0.1", 19),
        ("10.0.0.1", 1023),
        ("::", 5000),
        ("ff02::1", 5000),
        ("::ffff:255.255.255.255", 5000),
        ("::ffff:10.0.0.1", 5000),
        ("fe80::1", 0),
        ("fe80::1", 53),
    ],
)
def test_some_sources_are_not_answered(host: str, port: int, poller: Poller) -> None:
    assert not answerable(host, port)
    responder = Echo(ip=GROUP, poller=poller)
    addr = Address((host, port) if ":" not in host else (host, port, 0, 0), GROUP, "lo")
    responder.handle_packet(b"who?", addr)
    assert not responder.reply(b"me", addr)
    assert responder.asked == []
    assert responder.reply_statistics().unanswerable == 2
    assert responder.reply_statistics().sent == 0


@pytest.mark.parametrize(
    "host", ["1.0.0.1", "10.0.0.1", "127.0.0.1", "223.255.255.255", "192.168.1.255", "fe80::1", "2001:db8::1", "::1"]
)
def test_single_hosts_are_answered(host: str) -> None:
    assert answerable(host, 1024)
    assert answerable(host, 65535)


# -- by which ways a request goes ----------------------------------------------------------------------------


def test_a_request_goes_by_every_interface_that_has_an_address(lab: netns.Lab) -> None:
    host, left, right = lab.host("host"), lab.host("left"), lab.host("right")
    lab.link(host, "h0", left, "l0", net=0)
    lab.link(host, "h1", right, "r0", net=1)
    with host.inside():
        index = {name: socket.if_nametoindex(name) for name in ("lo", "h0", "h1")}
        four, six = Endpoint(GROUP, 5000), Endpoint("ff05::42", 5000)
        assert ways(four, 1, None) == (
            [Way(index["lo"], "127.0.0.1"), Way(index["h0"], "10.99.0.1"), Way(index["h1"], "10.99.1.1")],
            True,
        )
        assert ways(six, 1, None) == ([Way(index[name]) for name in ("lo", "h0", "h1")], True)
        assert ways(four, 1, ["h1", "h1"]) == ([Way(index["h1"], "10.99.1.1")], False)
        assert ways(four, 1, "10.99.1.1") == ([Way(index["h1"], "10.99.1.1")], False)
        assert ways(Endpoint(GROUP, 5000, ("h0",)), 1, None) == ([Way(index["h0"], "10.99.0.1")], False)
        assert ways(four, 0, None) == ([Way(index["lo"], "127.0.0.1")], True)
        assert ways(Endpoint("10.99.0.2", 5000), 1, None) == ([Way()], False)
        host.ip("address del 10.99.1.1/24 dev h1", "link set h0 down")
        assert ways(four, 1, None) == ([Way(index["lo"], "127.0.0.1")], True)
        with pytest.raises(InterfaceError, match="h1 has no IPv4 address"):
            ways(four, 1, "h1")
        with pytest.raises(ArgumentError, match="not by h1"):
            ways(four, 0, "h1")
        with pytest.raises(InterfaceError, match="name one"):
            ways(Endpoint("10.99.0.2", 5000), 1, ["h0", "h1"])
        host.ip("address del 127.0.0.1/8 dev lo")
        with pytest.raises(InterfaceError, match="no interface that is up has an IPv4 address"):
            ways(four, 1, None)


# -- on this host --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", [GROUP, "ff05::4242", f"{GROUP6}%lo"])
def test_a_responder_in_the_same_program_answers(ip: str, poller: Poller) -> None:
    with Echo(ip=ip, poller=poller) as responder:
        (packet, addr), *others = request("Hello", ip, limit=1, timeout=10, poller=poller)
    assert packet == b"echo Hello"
    assert others == []
    assert addr.host == ("127.0.0.1" if ip == GROUP else "::1")
    assert addr.interface == "lo"
    ((asked, by),) = responder.asked
    assert asked == b"Hello"
    assert by.group == ip.partition("%")[0]
    assert by.port != addr.port


def test_a_reply_does_not_come_from_the_port_of_the_group(poller: Poller) -> None:
    # Sockets on that port are shared with any program; a reply to it could be had by another one.
    with Echo(ip=GROUP, port=5001, poller=poller):
        ((_, addr),) = request("Hello", GROUP, 5001, limit=1, timeout=10, poller=poller)
    assert addr.port != 5001


def test_every_reply_is_yielded_as_it_comes_with_its_round_trip(poller: Poller) -> None:
    with Echo(ip=GROUP, poller=poller), Echo(ip=GROUP, poller=poller), Echo(ip=GROUP, poller=poller):
        replies = request("Hello", GROUP, limit=3, timeout=10, poller=poller)
        assert (replies.reply, replies.round_trip) == (None, 0.0)
        ports = set()
        for packet, addr in replies:
            assert packet == b"echo Hello"
            assert replies.reply is not None
            assert (replies.reply.packet, replies.reply.addr) == (packet, addr)
            assert replies.reply.number == 1
            assert 0 < replies.round_trip < 10
            ports.add(addr.port)
    assert len(ports) == 3


def test_nobody_answers_in_time() -> None:
    with Poller() as poller:
        replies = request("Hello", GROUP, timeout=0, poller=poller)
        assert list(replies) == []
        assert list(replies) == []
        assert len(poller) == 0


def test_what_came_in_time_is_yielded_even_if_nobody_looked_before() -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        requester = Collector("Hello", GROUP, timeout=1, poller=poller)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
            for number in range(200):
                responder.sendto(b"%d" % number, ("127.0.0.1", requester.address[1]))
        clock.now += 5
        poller.run_until(lambda: requester.closed)
        assert requester.heard == [b"%d" % number for number in range(200)]
        assert requester.timeouts == 1


def test_a_flood_does_not_keep_a_requester_from_ending() -> None:
    class Flooded(Collector):
        def handle_reply(self, packet: bytes, addr: Address) -> object:
            flood.sendto(packet, addr_of_requester)  # each one read brings another
            return super().handle_reply(packet, addr)

    clock = Clock()
    with Poller(clock=clock) as poller, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        requester = Flooded("Hello", GROUP, timeout=1, poller=poller)
        addr_of_requester = ("127.0.0.1", requester.address[1])
        for _ in range(100):
            flood.sendto(b"again", addr_of_requester)
        clock.now += 5
        poller.run_until(lambda: requester.closed)
        assert requester.timeouts == 1


def test_breaking_off_closes_the_request(poller: Poller) -> None:
    with Echo(ip=GROUP, poller=poller):
        for packet, _ in request("Hello", GROUP, timeout=10, poller=poller):
            assert packet == b"echo Hello"
            break
        assert len(poller) == 1  # the responder alone
    with request("Hello", GROUP, timeout=10, poller=poller):
        assert len(poller) == 1
    assert len(poller) == 0


def test_the_first_reply_alone(poller: Poller) -> None:
    with Echo(ip=GROUP, poller=poller):
        packet, addr = request("Hello", GROUP, timeout=10, poller=poller).first()
        assert (packet, addr.host) == (b"echo Hello", "127.0.0.1")
        assert len(poller) == 1
    with pytest.raises(NoReply, match=r"239\.77\.0\.1:4242 in time"):
        request("Hello", GROUP, timeout=0, poller=poller).first()
    assert len(poller) == 0


def test_stopping_the_poller_ends_a_request(poller: Poller) -> None:
    poller.call_soon(poller.stop)
    assert list(request("Hello", GROUP, timeout=None, poller=poller)) == []


def test_a_request_waits_in_the_kernel_when_the_program_takes_replies_too_slowly(poller: Poller) -> None:
    replies: Replies = request("Hello", GROUP, timeout=None, limit=3000, rcvbuf=1 << 20, poller=poller)
    requester = replies._gatherer
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
        for number in range(1200):
            responder.sendto(b"%d" % number, ("127.0.0.1", requester.address[1]))
            poller.poll(0)
    assert len(requester.waiting) == 1024
    taken = [next(replies)[0] for _ in range(1200)]
    assert taken == [b"%d" % number for number in range(1200)]
    replies.close()


def test_a_requester_does_not_block_and_is_told_of_each_reply(poller: Poller) -> None:
    with Echo(ip=GROUP, poller=poller):
        requester = Collector("Hello", GROUP, limit=1, timeout=10, poller=poller)
        assert requester.heard == []
        poller.run_until(lambda: requester.closed)
    assert requester.heard == [b"echo Hello"]
    assert (requester.asked, requester.replies, requester.timeouts) == (1, 1, 0)


def test_a_true_result_ends_a_requester(poller: Poller) -> None:
    class Content(Collector):
        def handle_reply(self, packet: bytes, addr: Address) -> object:
            super().handle_reply(packet, addr)
            return packet == b"echo Hello"

    with Echo(ip=GROUP, poller=poller):
        requester = Content("Hello", GROUP, timeout=None, poller=poller)
        poller.run_until(lambda: requester.closed)
    assert requester.heard == [b"echo Hello"]


def test_a_timeout_may_ask_again() -> None:
    class Patient(Collector):
        def handle_timeout(self) -> None:
            super().handle_timeout()
            if self.timeouts < 3:
                self.ask()

    clock = Clock()
    with Poller(clock=clock) as poller, Echo(ip=GROUP, poller=poller) as responder:
        requester = Patient("Hello", GROUP, timeout=1, poller=poller)
        for count in range(1, 4):
            while len(requester.heard) < count:
                poller.poll(None)
            assert requester.timeouts == count - 1
            assert not requester.closed
            clock.now += 1
            poller.poll(0)
        assert requester.closed
        assert requester.timeouts == 3
        assert len(responder.asked) == 3
        assert {addr.port for _, addr in responder.asked} == {responder.asked[0][1].port}


def test_requests_with_a_number_get_the_time_of_their_own() -> None:
    class Numbered(Requester):
        def __init__(self, poller: Poller) -> None:
            self.times: list[tuple[int, float]] = []
            super().__init__(None, GROUP, timeout=None, poller=poller)

        def which(self, packet: bytes, addr: Address) -> int | None:
            return int(packet) if packet.isdigit() else None

        def handle_reply(self, packet: bytes, addr: Address) -> None:
            assert self.reply is not None
            self.times.append((self.reply.number, round(self.reply.round_trip, 6)))

    clock = Clock()
    with Poller(clock=clock) as poller:
        requester = Numbered(poller)
        assert requester.asked == 0
        for number in (1, 2, 3):
            assert requester.ask(f"{requester.asked + 1}") == number
            clock.now += 1
        addr = Address(("10.0.0.1", 40000), "10.0.0.2", "eth0")
        for packet in (b"3", b"1", b"2", b"what?", b"4"):
            requester.handle_packet(packet, addr)
        assert requester.times == [(3, 1.0), (1, 3.0), (2, 2.0)]


def test_the_time_a_reply_waits_to_be_read_is_not_in_its_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000_000)
    clock = Clock()
    with Poller(clock=clock) as poller:
        requester = Collector("Hello", GROUP, poller=poller)
        clock.now += 0.75
        addr = Address(("10.0.0.1", 40000), "10.0.0.2", "eth0", timestamp=4_500_000_000)
        requester.handle_packet(b"ack", addr)
        assert requester.reply is not None
        assert requester.reply.round_trip == 0.25


def test_one_program_that_answers_from_two_addresses_of_this_host_counts_once(lab: netns.Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "h0", other, "o0")
    with host.inside(), Poller() as poller, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as simple:
        requester = Collector("Hello", GROUP, timeout=None, poller=poller)
        to = requester.address[1]
        simple.bind(("", 0))
        for own in ("127.0.0.1", "10.99.0.1"):
            simple.sendto(b"ack", (own, to))
        poller.run_until(lambda: requester.replies + requester.duplicates == 2)
        assert requester.heard == [b"ack"]


def test_a_program_may_reply_later(poller: Poller) -> None:
    class Later(Echo):
        def handle_request(self, packet: bytes, addr: Address) -> Any:
            self.poller.call_soon(self.reply, b"at last", addr)

    with Later(ip=GROUP, poller=poller) as responder:
        ((packet, _),) = request("Hello", GROUP, limit=1, timeout=10, poller=poller)
        assert packet == b"at last"
        assert responder.reply_statistics().sent == 1
    assert not responder.reply(b"too late", Address(("127.0.0.1", 40000), GROUP, "lo"))


def test_a_responder_may_be_silent(poller: Poller) -> None:
    class Choosy(Echo):
        def handle_request(self, packet: bytes, addr: Address) -> Any:
            return None if packet == b"boring" else super().handle_request(packet, addr)

    with Choosy(ip=GROUP, poller=poller) as responder:
        first = Collector("boring", GROUP, timeout=None, poller=poller)
        ((packet, _),) = request("Hello", GROUP, limit=1, timeout=10, poller=poller)
        assert packet == b"echo Hello"
        assert first.heard == []
        first.close()
        assert responder.reply_statistics().requests == 2
        assert responder.reply_statistics().sent == 1


def test_a_filter_chooses_requests(poller: Poller) -> None:
    with Echo("who", GROUP, poller=poller) as responder:
        first = Collector("what?", GROUP, timeout=None, poller=poller)
        list(request("who?", GROUP, limit=1, timeout=10, poller=poller))
        first.close()
    assert [packet for packet, _ in responder.asked] == [b"who?"]


def test_a_reply_is_not_longer_than_allowed(poller: Poller) -> None:
    responder = Echo(ip=GROUP, poller=poller)
    addr = Address(("127.0.0.1", 40000), GROUP, "lo")
    assert responder.longest == 1232
    assert responder.reply(bytes(1232), addr)
    with pytest.raises(PacketSizeError, match=r"1233 bytes .* 1232 at most"):
        responder.reply(bytes(1233), addr)
    with pytest.raises(PacketTypeError):
        responder.reply(7, addr)  # type: ignore[arg-type]
    assert Echo(ip=GROUP, longest=65507, poller=poller).reply(bytes(65507), addr)


def test_the_limits_hold_for_what_is_asked_and_for_what_is_replied() -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        responder = Echo(ip=GROUP, per_source=3, total=5, poller=poller)
        first, second = (Address((host, 40000), GROUP, "lo") for host in ("127.0.0.1", "127.0.0.2"))
        for _ in range(10):
            responder.handle_packet(b"who?", first)
        assert len(responder.asked) == 3  # nor is the program bothered with the others
        assert [responder.reply(b"me", second) for _ in range(4)] == [True, True, False, False]
        statistics = responder.reply_statistics()
        assert (statistics.requests, statistics.sent, statistics.limited) == (10, 5, 9)
        clock.now += 1
        assert responder.reply(b"me", first)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"ip": "10.0.0.1"}, GroupError, "not a multicast address"),
        ({"ttl": 0}, ArgumentError, "ttl must be 1 or more"),
        ({"ttl": 256}, ArgumentError, "ttl"),
        ({"longest": -1}, ArgumentError, "longest"),
        ({"longest": 65508}, ArgumentError, "longest"),
        ({"per_source": 0}, ArgumentError, "per_source"),
        ({"interface": "nosuch0"}, InterfaceError, "nosuch0"),
    ],
)
def test_a_responder_that_cannot_be_made_leaves_nothing(
    options: dict[str, Any], error: type[Exception], words: str, poller: Poller
) -> None:
    with pytest.raises(error, match=words):
        Echo(**{"ip": GROUP, "poller": poller, **options})


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"packet": 7}, PacketTypeError, "bytes-like"),
        ({"packet": bytes(65508)}, PacketSizeError, "65508"),
        ({"ip": "nowhere"}, GroupError, "not an IP address"),
        ({"port": 0}, ArgumentError, "port"),
        ({"ttl": 256}, ArgumentError, "ttl"),
        ({"timeout": -1}, ArgumentError, "timeout"),
        ({"limit": 0}, ArgumentError, "limit"),
        ({"interface": "nosuch0"}, InterfaceError, "nosuch0"),
    ],
)
def test_a_request_that_cannot_be_made_leaves_nothing(
    options: dict[str, Any], error: type[Exception], words: str, poller: Poller
) -> None:
    with pytest.raises(error, match=words):
        request(**{"packet": "Hello", "ip": GROUP, "poller": poller, **options})


def test_asking_needs_something_to_ask_and_somebody_open(poller: Poller) -> None:
    requester = Collector(None, GROUP, poller=poller)
    with pytest.raises(ArgumentError, match="give ask"):
        requester.ask()
    requester.close()
    with pytest.raises(ArgumentError, match="closed"):
        requester.ask("Hello")


def test_a_request_to_a_single_host_is_answered_by_it(poller: Poller) -> None:
    class Server:
        def __init__(self) -> None:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind(("127.0.0.1", 0))

        def fileno(self) -> int:
            return self.socket.fileno()

        def handle_read(self) -> None:
            packet, addr = self.socket.recvfrom(100)
            self.socket.sendto(packet.upper(), addr)

    server = Server()
    poller.register(server)
    with server.socket:
        port = server.socket.getsockname()[1]
        ((packet, addr),) = request("Hello", "127.0.0.1", port, limit=1, timeout=10, poller=poller)
        assert (packet, addr) == (b"HELLO", ("127.0.0.1", port))
        poller.unregister(server)


def test_an_interface_that_fails_does_not_keep_a_request_from_the_others(
    lab: netns.Lab, caplog: pytest.LogCaptureFixture
) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "h0", other, "o0")
    lab.link(other, "p1", host, "o1", net=1)
    with host.inside(), Poller() as poller, Echo(ip=GROUP, poller=poller):
        everywhere = Collector(None, GROUP, limit=1, timeout=None, poller=poller)
        there = Collector(None, GROUP, interface="h0", poller=poller)
        host.ip("address del 10.99.0.1/24 dev h0")
        everywhere.ask("Hello")
        assert "is not sent by h0" in caplog.text
        poller.run_until(lambda: everywhere.closed)
        assert everywhere.heard == [b"echo Hello"]
        both = Collector(None, GROUP, interface=["lo", "o1"], poller=poller)
        nowhere = Collector(None, GROUP, poller=poller)
        host.ip("address del 127.0.0.1/8 dev lo")
        for requester in (there, both):
            with pytest.raises(OSError, match=r"\[Errno"):
                requester.ask("Hello")
            assert requester.asked == 0
        host.ip("address del 10.99.1.2/24 dev o1")
        with pytest.raises(OSError, match=r"\[Errno"):
            nowhere.ask("Hello")


def test_an_interface_that_goes_on_failing_is_told_once_with_what_to_do(
    lab: netns.Lab, caplog: pytest.LogCaptureFixture
) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.link(host, "h0", other, "o0")
    if shutil.which("nft") is None:
        pytest.skip("the program nft is not installed")
    rules = "table ip f { chain out { type filter hook output priority 0; oifname h0 udp dport 4242 drop; }; }"

    def told(requester: Collector) -> int:
        caplog.clear()
        requester.ask("Hello")
        return len(caplog.records)

    with host.inside(), Poller() as poller:
        everywhere = Collector(None, GROUP, timeout=None, poller=poller)
        assert told(everywhere) == 0
        assert host.run(["nft", rules]).returncode == 0
        assert told(everywhere) == 1
        said = f"the request to {GROUP}:4242 is not sent by h0: Operation not permitted (errno 1, EPERM). A local"
        assert caplog.records[0].getMessage().startswith(said)
        assert told(everywhere) == told(everywhere) == 0
        assert host.run(["nft", "flush ruleset"]).returncode == 0
        assert told(everywhere) == 0
        assert host.run(["nft", rules]).returncode == 0
        assert told(everywhere) == 1
        everywhere.close()


def test_a_request_sent_again_goes_by_the_interfaces_there_are_then(lab: netns.Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    with host.inside(), Poller() as poller:
        requester = Collector("Hello", GROUP, timeout=None, poller=poller)
        lab.link(host, "h0", other, "o0")
        start(other, GROUP)
        requester.ask()
        poller.run_until(lambda: requester.heard)
    assert requester.heard == [b"other heard Hello 0"]


def test_an_error_of_a_handler_reaches_the_caller_and_the_request_still_ends() -> None:
    class Failing(Collector):
        def handle_reply(self, packet: bytes, addr: Address) -> object:
            super().handle_reply(packet, addr)
            raise RuntimeError(packet)

    clock = Clock()
    with Poller(clock=clock) as poller:
        requester = Failing("Hello", GROUP, timeout=1, poller=poller)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
            for packet in (b"one", b"two"):
                responder.sendto(packet, ("127.0.0.1", requester.address[1]))
            clock.now += 5
            with pytest.raises(RuntimeError, match="one"):
                poller.poll(0)
            responder.sendto(b"three", ("127.0.0.1", requester.address[1]))
        for words in ("two", "three"):
            with pytest.raises(RuntimeError, match=words):
                poller.poll(0)
        poller.run_until(lambda: requester.closed)
        assert requester.timeouts == 1


def test_who_asks_again_and_then_fails_goes_on_waiting() -> None:
    class Insistent(Collector):
        def handle_reply(self, packet: bytes, addr: Address) -> object:
            self.ask()
            raise RuntimeError("not that one")

    clock = Clock()
    with Poller(clock=clock) as poller:
        requester = Insistent("Hello", GROUP, timeout=1, poller=poller)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
            responder.sendto(b"in time", ("127.0.0.1", requester.address[1]))
        clock.now += 1
        with pytest.raises(RuntimeError, match="not that one"):
            poller.poll(0)
        turns(poller)
        assert (requester.closed, requester.asked, requester.timeouts) == (False, 2, 0)
        clock.now += 1
        turns(poller)
        assert (requester.closed, requester.timeouts) == (True, 1)


def test_the_request_ends_also_when_the_timeout_is_not_taken_well() -> None:
    class Impatient(Collector):
        def handle_timeout(self) -> None:
            raise RuntimeError("nobody there")

    clock = Clock()
    with Poller(clock=clock) as poller:
        requester = Impatient("Hello", GROUP, timeout=1, poller=poller)
        clock.now += 1
        with pytest.raises(RuntimeError, match="nobody there"):
            turns(poller)
        assert requester.closed


def test_a_requester_that_is_gone_does_not_disturb_the_next(poller: Poller) -> None:
    # Its host says that the port is closed (ICMP), which must not fail the replies to others.
    with Echo(ip=GROUP, poller=poller) as responder:
        for _ in range(5):
            request("Hello", GROUP, poller=poller).close()
        assert request("Hello", GROUP, timeout=10, poller=poller).first()[0] == b"echo Hello"
        statistics = responder.reply_statistics()
        assert (statistics.sent, statistics.failed) == (6, 0)


def test_a_request_to_a_closed_port_is_not_an_error(poller: Poller) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    requester = Collector("Hello", "127.0.0.1", port, timeout=None, poller=poller)
    requester.ask()
    turns(poller)
    assert requester.heard == []
    requester.close()


def test_a_child_process_leaves_the_responder_to_its_parent(poller: Poller) -> None:
    with Echo(ip=GROUP, poller=poller) as responder:
        addr = Address(("127.0.0.1", 40000), GROUP, "lo")
        ours = {os.fstat(opened.fileno()).st_ino for opened in (responder.socket, responder._reply_socket) if opened}

        def look() -> tuple[bool, bool, list[str]]:
            still = [target for target in descriptors() if any(f"[{number}]" in target for number in ours)]
            return responder.closed, responder.reply(b"mine", addr), still

        assert in_child(look) == "(True, False, [])"
        assert request("Hello", GROUP, timeout=10, poller=poller).first()[0] == b"echo Hello"


# -- between hosts -------------------------------------------------------------------------------------------

RESPONDER = """
    import sys
    from multicast.discovery import Responder

    class Named(Responder):
        def handle_request(self, packet, addr):
            return f"{sys.argv[1]} heard {packet.decode()} {self.reply_statistics().copies}"

    responder = Named(ip=sys.argv[2])
    print("ready", flush=True)
    responder.poller.loop()
"""


def start(host: netns.Host, ip: str) -> None:
    process = host.popen(netns.python(RESPONDER, host.name, ip))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("ip", [GROUP, "ff05::4242", GROUP6])
def test_three_hosts_answer_one_request(ip: str, lab: netns.Lab) -> None:
    names = ("asking", "first", "second", "third")
    asking, *others = (lab.host(name) for name in names)
    lab.segment(asking, *others)
    for host in others:
        start(host, f"{ip}%v0" if ip == GROUP6 else ip)
    with asking.inside(), Poller() as poller:
        replies = request("Hello", ip, limit=3, timeout=10, poller=poller)
        heard = dict(replies)
    assert set(heard) == {b"%s heard Hello 0" % name.encode() for name in names[1:]}
    for number, name in enumerate(names[1:], 2):
        addr = heard[b"%s heard Hello 0" % name.encode()]
        if ip == GROUP:
            assert addr.host == f"10.99.0.{number}"
        elif ip == GROUP6:
            assert addr.host.startswith("fe80::")
            assert addr[3] != 0
        else:
            assert addr.host == f"fd99::{number}"
        assert addr.interface == "v0"


@pytest.mark.parametrize("ip", [GROUP, "ff05::4242"])
def test_a_reply_comes_from_the_address_the_request_reached(ip: str, lab: netns.Lab) -> None:
    left, middle, right = lab.host("left"), lab.host("middle"), lab.host("right")
    lab.link(left, "l0", middle, "m0", net=0)
    lab.link(right, "r0", middle, "m1", net=1)
    # The routes point the other way, each through the other wire.
    middle.ip(
        "route add 10.99.0.1/32 dev m1",
        "route add 10.99.1.1/32 dev m0",
        "-6 route add fd99::1/128 dev m1",
        "-6 route add fd99:0:0:1::1/128 dev m0",
    )
    start(middle, ip)
    expected = {GROUP: ("10.99.0.2", "10.99.1.2")}.get(ip, ("fd99::2", "fd99:0:0:1::2"))
    for host, own in zip((left, right), expected, strict=True):
        with host.inside(), Poller() as poller:
            ((_, addr),) = request("Hello", ip, limit=1, timeout=10, poller=poller)
            assert addr.host == own


def test_a_host_reached_by_two_wires_answers_once(lab: netns.Lab) -> None:
    asking, other = lab.host("asking"), lab.host("other")
    lab.link(asking, "a0", other, "b0", net=0)
    lab.link(asking, "a1", other, "b1", net=1)
    start(other, GROUP)
    with asking.inside(), Poller() as poller:
        ((first, _),) = request("one", GROUP, limit=1, timeout=10, poller=poller)
        ((second, _),) = request("two", GROUP, limit=1, timeout=10, poller=poller)
    assert first == b"other heard one 0"
    assert second == b"other heard two 1"  # the copy of the first request was left out


def test_a_reply_does_not_cross_a_router_unless_told_to(lab: netns.Lab) -> None:
    host, router = lab.host("host"), lab.host("router")
    lab.link(host, "h0", router, "r0")
    host.ip("route add 192.0.2.0/24 via 10.99.0.2")
    with sniffer(router, "r0") as sniffed, host.inside(), Poller() as poller:
        addr = Address(("192.0.2.9", 40000), GROUP, "h0")
        assert Echo(ip=GROUP, poller=poller).reply(b"near", addr)
        assert Echo(ip=GROUP, ttl=5, poller=poller).reply(b"far", addr)
        frames = [sniffed(), sniffed()]
    assert [(frame[22], frame[42:]) for frame in frames] == [(1, b"near"), (5, b"far")]


# -- forged requests -----------------------------------------------------------------------------------------

UDP = 17


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def forged(source: str, source_port: int, group: str, port: int, payload: bytes) -> bytes:
    """Return an Ethernet frame with a packet to a group, from whoever `source` is."""
    udp = struct.pack("!4H", source_port, port, 8 + len(payload), 0)
    if ":" in group:
        to = socket.inet_pton(socket.AF_INET6, group)
        addresses = socket.inet_pton(socket.AF_INET6, source) + to
        pseudo = addresses + struct.pack("!I3xB", len(udp) + len(payload), UDP)
        udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + payload) or 0xFFFF)
        ip = struct.pack("!IHBB", 6 << 28, len(udp) + len(payload), UDP, 1) + addresses
        return b"\x33\x33" + to[12:] + b"\x02\0\0\0\0\x01" + b"\x86\xdd" + ip + udp + payload
    to = socket.inet_aton(group)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 1, UDP, 0) + socket.inet_aton(source) + to
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    mac = b"\x01\0\x5e" + bytes((to[1] & 127, to[2], to[3]))
    return mac + b"\x02\0\0\0\0\x01" + b"\x08\0" + ip + udp + payload


@contextmanager
def wire(host: netns.Host, device: str) -> Iterator[Callable[[bytes], object]]:
    """Yield what puts frames on the wire at a host."""
    with host.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        yield raw.send


@contextmanager
def sniffer(host: netns.Host, device: str) -> Iterator[Callable[[], bytes]]:
    """Yield what waits for the next UDP frame that arrives at a host, whoever it is for."""
    with host.inside():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
    with raw:
        raw.bind((device, 0))
        raw.settimeout(10)

        def receive() -> bytes:
            while True:
                frame, (_, _, kind, *_) = raw.recvfrom(2000)
                if kind == 4:  # PACKET_OUTGOING
                    continue
                if frame[12:14] == b"\x08\0" and frame[23] == UDP:
                    return frame
                if frame[12:14] == b"\x86\xdd" and frame[20] == UDP:
                    return frame

        yield receive


@pytest.mark.parametrize("ip", [GROUP, "ff05::4242"])
def test_a_third_host_gets_no_more_replies_than_the_limit(ip: str, lab: netns.Lab) -> None:
    attacker, responding, victim = lab.host("attacker"), lab.host("responding"), lab.host("victim")
    lab.segment(attacker, responding, victim)
    address = "10.99.0.3" if ip == GROUP else "fd99::3"
    family = socket.AF_INET if ip == GROUP else socket.AF_INET6
    with victim.inside():
        target = socket.socket(family, socket.SOCK_DGRAM)
        target.bind(("", 40000))
        target.settimeout(10)
    clock = Clock()
    with target, wire(attacker, "v0") as put, Poller(clock=clock) as poller:
        with responding.inside():
            responder = Echo(ip=ip, poller=poller)

            def attack() -> None:
                done = responder.statistics().packets + 200
                for number in range(200):
                    with attacker.inside():
                        put(forged(address, 40000, ip, 4242, b"request %d" % number))
                poller.run_until(lambda: responder.statistics().packets == done)

            attack()
            assert responder.reply_statistics().sent == 50
            clock.now += 1
            attack()
        assert responder.reply_statistics().sent == 100
        assert responder.reply_statistics().limited == 300
        heard = [target.recvfrom(2000) for _ in range(100)]
        assert {addr[0] for _, addr in heard} == {"10.99.0.2" if ip == GROUP else "fd99::2"}
        target.setblocking(False)
        with pytest.raises(BlockingIOError):
            target.recv(2000)


def test_many_invented_hosts_get_no_more_replies_than_the_limit(hosts: tuple[netns.Host, netns.Host]) -> None:
    attacker, responding = hosts
    with wire(attacker, "va") as put, Poller(clock=Clock()) as poller, responding.inside():
        responder = Echo(ip=GROUP, total=70, poller=poller)
        for number in range(200):
            put(forged(f"10.99.0.{number + 10}", 40000, GROUP, 4242, b"x"))
        poller.run_until(lambda: responder.statistics().packets == 200)
    assert responder.reply_statistics().sent == 70
    assert len(responder._allowance) == 70


def test_nobody_can_direct_replies_to_a_group_a_broadcast_address_or_port_0(
    hosts: tuple[netns.Host, netns.Host],
) -> None:
    attacker, responding = hosts
    group = "224.0.0.99"  # the kernel lets 0.0.0.0 pass for groups of the link (RFC 5771 section 4)
    sources = [
        ("255.255.255.255", 40000),
        ("239.1.2.3", 40000),
        ("224.0.0.99", 40000),
        ("0.0.0.0", 40000),  # noqa: S104
        ("10.99.0.255", 40000),
        ("127.0.0.1", 40000),
        ("240.1.2.3", 40000),
        ("10.99.0.1", 0),
        ("10.99.0.1", 53),
    ]
    with attacker.inside():
        witness = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        witness.bind(("10.99.0.1", 0))
        witness.settimeout(10)
    with witness, wire(attacker, "va") as put, sniffer(attacker, "va") as sniffed, Poller() as poller:
        with responding.inside():
            responder = Echo(ip=group, poller=poller)
            for host, port in sources:
                put(forged(host, port, group, 4242, b"forged"))
            put(forged("10.99.0.1", witness.getsockname()[1], group, 4242, b"honest"))
            poller.run_until(lambda: responder.reply_statistics().sent)
        assert witness.recv(100) == b"echo honest"
        assert sniffed()[42:] == b"echo honest"  # and nothing before it
        statistics = responder.reply_statistics()
    assert statistics.sent == 1
    assert statistics.unanswerable >= 3  # 0.0.0.0 and the two ports; the kernel itself refused the rest
    assert statistics.failed == 1  # the broadcast address of the subnet, which the kernel refuses to send to


# -- where requests come from ------------------------------------------------------------------------------------------


class Fixed(Responder):
    """Answers to a port that is not the requester's, as some devices do."""

    def __init__(self, to: int, **options: Any) -> None:
        super().__init__(**options)
        self.heard: list[tuple[Any, ...]] = []
        self._to = to

    def handle_request(self, packet: bytes, addr: Address) -> None:
        self.heard.append(tuple(addr))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
            device.sendto(b"here", (addr.host, self._to))


def test_a_device_may_answer_to_a_fixed_port(poller: Poller, free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        own = probe.getsockname()[1]
    responder = Fixed(own, ip="239.1.2.3", port=free_port, interface="lo", poller=poller)
    replies = request(
        "who?", "239.1.2.3", free_port, interface="lo", source_port=own, limit=1, timeout=5, poller=poller
    )
    assert [packet for packet, _ in replies] == [b"here"]
    assert [addr[1] for addr in responder.heard] == [own]


def test_the_port_of_requests_is_shared(free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("", 0))
        port = other.getsockname()[1]
        replies = request("who?", "239.1.2.3", free_port, interface="lo", source_port=port, timeout=0)
        assert list(replies) == []


def test_requests_come_from_the_address_that_was_asked_for(poller: Poller, free_port: int) -> None:
    responder = Fixed(1, ip="239.1.2.3", port=free_port, interface="lo", poller=poller)
    assert list(request("x", "239.1.2.3", free_port, source_ip="127.0.0.1", timeout=0.05, poller=poller)) == []
    assert [addr[0] for addr in responder.heard] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "options, error",
    [
        ({"source_ip": "10.255.1.2"}, InterfaceError),
        ({"source_ip": "::1"}, GroupError),
        ({"source_ip": "x"}, GroupError),
        ({"source_port": 70000}, ArgumentError),
        ({"source_port": -1}, ArgumentError),
    ],
    ids=str,
)
def test_a_wrong_place_to_send_from_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        request("x", "239.1.2.3", 5000, **options)
