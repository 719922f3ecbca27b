"""Listeners: what reaches the handler, in which order, and what is counted; `listen` in both forms."""

from __future__ import annotations

import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
from helpers import PATIENCE, Clock, Keeper, Pair, descriptors, joined, need_on_lo, polling_thread, settle, turns

import multicast
from multicast import (
    Address,
    ArgumentError,
    DatagramListener,
    FilterError,
    GroupError,
    Inbox,
    InterfaceError,
    MulticastError,
    MulticastListener,
    Poller,
    RegistrationError,
    listen,
    sockets,
)
from multicast.interfaces import resolve

# These tests keep to this host, so that they may run where there is no private network namespace.
pytestmark = pytest.mark.lo_alone

ON_LO: dict[str, Any] = {"interface": "lo"}


def send(packets: Any, port: int, **options: Any) -> int:
    return multicast.sendto(packets, port=port, ttl=0, **options)


# -- the handler ---------------------------------------------------------------------------------------------


def test_packets_reach_the_handler_in_order_with_where_they_came_from(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    send(["one", b"two", bytearray(b"three")], free_port)
    poller.poll()
    assert listener.packets == [b"one", b"two", b"three"]
    assert [type(packet) for packet in listener.packets] == [bytes] * 3
    addr = listener.addrs[0]
    assert (addr.host, addr.port) == tuple(addr)
    assert addr.host == "127.0.0.1"


@pytest.mark.parametrize("ip, address, length", [("239.1.1.1", "127.0.0.1", 2), ("ff15::4242", "::1", 4)])
def test_the_address_equals_what_recvfrom_returns(
    poller: Poller, free_port: int, ip: str, address: str, length: int
) -> None:
    listener = Keeper(ip=need_on_lo(ip), port=free_port, poller=poller, **ON_LO)
    with multicast.sockets.open_sender(listener.group, 0, source_ip=address)[0] as sender:
        sender.sendto(b"x", listener.group.sockaddr())
        poller.poll()
        assert [tuple(addr) for addr in listener.addrs] == [sender.getsockname()]
    assert listener.addrs[0].group == ip
    assert len(listener.addrs[0]) == length


def test_an_empty_datagram_is_a_packet(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    assert send([b"", "", b"x"], free_port) == 3
    poller.poll()
    assert listener.packets == [b"", b"", b"x"]


def test_packets_that_were_delivered_are_not_kept(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    send("a packet", free_port)
    poller.poll()
    references = sys.getrefcount(listener.packets[0])  # in the list of the test, and as the argument
    assert references == 2


def test_a_true_result_closes_the_listener_and_not_the_poller(poller: Poller, free_port: int) -> None:
    class Once(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            super().handle_packet(packet, addr)
            return "anything true"

    once, always = Once(port=free_port, poller=poller, **ON_LO), Keeper(port=free_port, poller=poller, **ON_LO)
    send(["one", "two"], free_port)
    turns(poller)
    assert (once.packets, once.closed) == ([b"one"], True)
    assert (once.statistics().packets, once.statistics().delivered) == (2, 1)
    assert (always.packets, always.closed) == ([b"one", b"two"], False)
    assert poller.polling
    assert list(poller) == [always]


def test_a_listener_without_a_name_is_kept(free_port: int) -> None:
    seen: list[bytes] = []

    class Printer(MulticastListener):
        filter = lambda packet, addr: True  # noqa: E731 -- as the specification writes it

        def handle_packet(self, packet: bytes, addr: Address) -> object:
            seen.append(packet)
            return True

    Printer(port=free_port, **ON_LO)
    send("test", free_port)
    multicast.poll()
    assert seen == [b"test"]
    assert not multicast._defaultPoller.polling


def test_a_handler_may_close_its_listener(poller: Poller, free_port: int) -> None:
    class Closing(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            super().handle_packet(packet, addr)
            self.close()
            return None

    closing = Closing(port=free_port, poller=poller, **ON_LO)
    send(["one", "two"], free_port)
    turns(poller)
    assert closing.packets == [b"one"]
    assert joined("224.0.42.42") == []


def test_a_handler_may_close_other_listeners(poller: Poller, free_port: int) -> None:
    class Rival(Keeper):
        rival: Rival

        def handle_packet(self, packet: bytes, addr: Address) -> object:
            super().handle_packet(packet, addr)
            self.rival.close()
            return None

    one, two = Rival(port=free_port, poller=poller, **ON_LO), Rival(port=free_port, poller=poller, **ON_LO)
    one.rival, two.rival = two, one
    send(["a", "b"], free_port)
    turns(poller)
    assert sorted([one.packets, two.packets]) == [[], [b"a", b"b"]]
    assert one.closed is not two.closed


def test_a_handler_that_unregisters_its_listener_still_gets_what_was_read(poller: Poller, free_port: int) -> None:
    class Leaving(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            super().handle_packet(packet, addr)
            self.poller.unregister(self)
            return None

    leaving = Leaving(port=free_port, poller=poller, **ON_LO)
    send(["one", "two"], free_port)
    poller.poll()
    send("three", free_port)
    turns(poller)
    assert leaving.packets == [b"one", b"two"]
    assert not leaving.closed, "unregister only removes"
    poller.register(leaving)
    poller.poll()
    assert leaving.packets == [b"one", b"two", b"three"]
    leaving.close()


def test_a_listener_without_handle_packet_cannot_be_made(free_port: int) -> None:
    before = descriptors()
    with pytest.raises(TypeError, match="handle_packet"):
        MulticastListener(port=free_port, **ON_LO)
    assert descriptors() == before


# -- what a handler raises -----------------------------------------------------------------------------------


class Failing(Keeper):
    """Fails at the packets it is told."""

    def __init__(self, at: set[bytes], error: type[BaseException] = ZeroDivisionError, **options: Any) -> None:
        self.at = at
        self.error = error
        super().__init__(**options)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        super().handle_packet(packet, addr)
        if packet in self.at:
            raise self.error(packet)
        return None


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_packets_already_read_are_not_lost_when_a_handler_raises(
    poller: Poller, free_port: int, error: type[BaseException]
) -> None:
    failing = Failing({b"2", b"3"}, error, port=free_port, poller=poller, **ON_LO)
    send(map(str, range(5)), free_port)
    with pytest.raises(error):
        poller.poll()
    assert failing.packets == [b"0", b"1", b"2"]
    with pytest.raises(error):
        poller.poll()
    assert failing.packets == [b"0", b"1", b"2", b"3"]
    send("5", free_port)
    turns(poller)
    assert failing.packets == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert failing.statistics().delivered == 6


def test_packets_read_before_an_error_come_although_the_kernel_has_no_more(poller: Poller, free_port: int) -> None:
    failing = Failing({b"0"}, port=free_port, poller=poller, **ON_LO)
    send(["0", "1"], free_port)
    with pytest.raises(ZeroDivisionError):
        poller.poll(None)
    settle(poller, lambda: len(failing.packets) == 2)


def test_packets_read_before_an_error_move_with_the_listener(poller: Poller, free_port: int) -> None:
    failing = Failing({b"0"}, port=free_port, poller=poller, **ON_LO)
    send(["0", "1"], free_port)
    with pytest.raises(ZeroDivisionError):
        poller.poll()
    assert failing.pending
    with Poller() as other:
        other.register(failing)
        assert failing.poller is other
        settle(other, lambda: len(failing.packets) == 2)
        assert not failing.pending


def test_what_handle_error_gets_stops_nothing(poller: Poller, free_port: int) -> None:
    class Careful(Failing):
        errors: list[Exception]

        def handle_error(self, error: Exception) -> None:
            self.errors.append(error)

    careful = Careful({b"1"}, port=free_port, poller=poller, **ON_LO)
    careful.errors = []
    send(map(str, range(4)), free_port)
    turns(poller)
    assert careful.packets == [b"0", b"1", b"2", b"3"]
    assert [type(error) for error in careful.errors] == [ZeroDivisionError]


def test_a_filter_that_raises_rejects_its_packet_and_loses_no_other(poller: Poller, free_port: int) -> None:
    def choosy(packet: bytes, addr: Address) -> bool:
        return 1 / int(packet) > 0

    listener = Keeper(choosy, port=free_port, poller=poller, **ON_LO)
    send(["1", "0", "2"], free_port)
    with pytest.raises(ZeroDivisionError):
        poller.poll()
    turns(poller)
    assert listener.packets == [b"1", b"2"]


def test_order_is_kept_when_a_handler_polls(poller: Poller, free_port: int) -> None:
    class Nesting(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            super().handle_packet(packet, addr)
            if packet in (b"0", b"70"):
                poller.poll()
            return None

    nesting = Nesting(port=free_port, poller=poller, **ON_LO)
    send(map(str, range(200)), free_port)
    turns(poller)
    assert nesting.packets == [b"%d" % number for number in range(200)]


def test_a_turn_is_a_batch_so_a_flood_starves_no_neighbour(poller: Poller, free_port: int) -> None:
    poller.budget = 0  # so that each poll is one round
    flooded, other = Keeper(port=free_port, poller=poller, **ON_LO), Pair()
    poller.register(other)
    send(map(str, range(200)), free_port)
    other.tell()
    poller.poll()
    assert 0 < len(flooded.packets) < 200
    assert other.got == [b"x"]
    turns(poller)
    assert len(flooded.packets) == 200
    poller.unregister(other)
    other.close()


# -- rounds --------------------------------------------------------------------------------------------------

AMPLE = 30.0  # seconds; a budget that no test spends


class Reacting(Keeper):
    """Calls a function at one of its packets."""

    def __init__(self, at: int, react: Callable[[], object], **options: Any) -> None:
        super().__init__(**options)
        self.at, self.react = at, react

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        super().handle_packet(packet, addr)
        if len(self.packets) == self.at:
            self.react()
        return None


def test_one_poll_empties_what_is_ready(poller: Poller, free_port: int) -> None:
    poller.budget = AMPLE
    listeners = [Keeper(port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO) for _ in range(2)]
    send(map(str, range(1000)), free_port)
    poller.poll()
    assert [len(listener.packets) for listener in listeners] == [1000, 1000]


def test_a_round_serves_timers_that_fell_due_and_what_became_ready(poller: Poller, free_port: int) -> None:
    poller.budget = AMPLE
    seen: dict[str, int] = {}
    other = Pair(lambda pair: seen.setdefault("neighbour", len(flooded.packets)))
    poller.register(other)

    def at_ten() -> None:
        other.tell()
        poller.call_later(0, lambda: seen.setdefault("timer", len(flooded.packets)))
        poller.call_soon(lambda: seen.setdefault("call", len(flooded.packets)))

    flooded = Reacting(10, at_ten, port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO)
    send(map(str, range(500)), free_port)
    poller.poll()
    assert len(flooded.packets) == 500
    assert set(seen) == {"neighbour", "timer", "call"}
    assert all(10 <= after <= 128 for after in seen.values()), seen
    poller.unregister(other)
    other.close()


def test_objects_that_are_no_dispatchers_are_called_once_a_poll(poller: Poller, free_port: int) -> None:
    class Ready(Pair):
        calls = 0

        def handle_read(self) -> Any:
            self.calls += 1
            return True  # as a foreign object may

    poller.budget = AMPLE
    flooded, plain = Keeper(port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO), Ready()
    poller.register(plain)
    plain.tell()
    send(map(str, range(500)), free_port)
    poller.poll()
    assert len(flooded.packets) == 500
    assert plain.calls == 1
    poller.unregister(plain)
    plain.close()


def test_stop_ends_the_rounds(poller: Poller, free_port: int) -> None:
    poller.budget = AMPLE
    flooded = Reacting(10, poller.stop, port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO)
    send(map(str, range(500)), free_port)
    poller.poll()
    assert 10 <= len(flooded.packets) <= 64


def test_the_budget_ends_the_rounds_although_the_clock_of_the_poller_stands(free_port: int) -> None:
    with Poller(clock=helpers.Clock()) as poller:
        poller.budget = 1e-6
        flooded = Keeper(port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO)
        send(map(str, range(1000)), free_port)
        poller.poll()
        assert 64 <= len(flooded.packets) < 1000


class Slow(Keeper):
    """A listener whose handler takes some time, of a clock that the test turns."""

    clock: helpers.Clock
    cost = 0.005

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        self.clock.advance(self.cost)
        return super().handle_packet(packet, addr)


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> helpers.Clock:
    """The clock by which turns are measured."""
    clock = helpers.Clock()
    monkeypatch.setattr("multicast.listeners.datagrams.monotonic", clock)
    return clock


def test_slow_handlers_hold_their_neighbours_back_for_one_call(
    poller: Poller, free_port: int, turned: helpers.Clock
) -> None:
    poller.budget = 0
    slow, other = Slow(port=free_port, poller=poller, **ON_LO), Pair()
    slow.clock = turned
    poller.register(other)
    send(map(str, range(200)), free_port)
    for number in range(1, 100):
        other.tell()
        poller.poll()
        assert len(slow.packets) == number
        assert len(other.got) == number
    poller.unregister(other)
    other.close()


def test_a_handler_that_becomes_slow_holds_its_neighbours_back_for_sixteen_calls_once(
    poller: Poller, free_port: int, turned: helpers.Clock
) -> None:
    poller.budget = 0
    slow = Slow(port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO)
    slow.clock, slow.cost = turned, 0
    send(map(str, range(800)), free_port)
    poller.poll()
    poller.poll()
    before = len(slow.packets)
    assert before == 128  # whole batches, as they cost nothing
    slow.cost = 0.005
    poller.poll()
    assert len(slow.packets) - before == 16
    poller.poll()
    assert len(slow.packets) - before == 17
    slow.cost = 0
    for _ in range(12):
        poller.poll()
    before = len(slow.packets)
    poller.poll()
    assert len(slow.packets) - before == 64  # fast again, whole batches again


def test_a_millisecond_decides_how_many_packets_a_turn_has(
    poller: Poller, free_port: int, turned: helpers.Clock
) -> None:
    poller.budget = 0
    slow = Slow(port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO)
    slow.clock, slow.cost = turned, 0.0001
    send(map(str, range(600)), free_port)
    turns(poller, 20)
    before = len(slow.packets)
    poller.poll()
    assert 8 <= len(slow.packets) - before <= 16


# -- batches -------------------------------------------------------------------------------------------------


class Batches(MulticastListener):
    """Keeps its batches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.batches: list[tuple[list[bytes], list[Address]]] = []
        super().__init__(*args, **options)

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> object:
        self.batches.append((packets, addresses))
        return packets[-1] == b"last"

    @property
    def packets(self) -> list[bytes]:
        return [packet for packets, _ in self.batches for packet in packets]


def test_a_batch_listener_is_called_once_for_each_batch(poller: Poller, free_port: int) -> None:
    poller.budget = AMPLE
    listener = Batches(port=free_port, rcvbuf=4 << 20, poller=poller, **ON_LO)
    send(map(str, range(200)), free_port)
    poller.poll()
    assert listener.packets == [str(number).encode() for number in range(200)]
    assert [len(packets) for packets, _ in listener.batches] == [64, 64, 64, 8]
    assert all(len(packets) == len(addresses) for packets, addresses in listener.batches)
    assert {addr.host for _, addresses in listener.batches for addr in addresses} == {"127.0.0.1"}
    assert listener.statistics().delivered == 200


def test_a_batch_has_what_passes_the_filter(poller: Poller, free_port: int) -> None:
    listener = Batches("[0-9]*[02468]$", port=free_port, kernel_filter=False, poller=poller, **ON_LO)
    send(map(str, range(20)), free_port)
    poller.poll()
    assert listener.packets == [str(number).encode() for number in range(0, 20, 2)]
    assert (listener.statistics().delivered, listener.statistics().filtered) == (10, 10)


@pytest.mark.parametrize("kind", [Keeper, Batches])
def test_filtered_packets_are_counted_over_all_turns(
    poller: Poller, free_port: int, kind: type[Keeper | Batches]
) -> None:
    listener = kind("t", port=free_port, kernel_filter=False, poller=poller, **ON_LO)
    for turn in range(1, 4):
        send(["one", "two", "six"], free_port)
        poller.poll()
        assert (listener.statistics().delivered, listener.statistics().filtered) == (turn, 2 * turn)


def test_no_batch_is_empty(poller: Poller, free_port: int) -> None:
    listener = Batches(lambda packet, addr: False, port=free_port, poller=poller, **ON_LO)
    send(["one", "two"], free_port)
    turns(poller)
    assert listener.batches == []
    assert listener.statistics().filtered == 2


def test_a_true_result_closes_a_batch_listener(poller: Poller, free_port: int) -> None:
    listener = Batches(port=free_port, poller=poller, **ON_LO)
    send(["one", "last"], free_port)
    poller.poll()
    assert listener.closed
    assert listener.packets == [b"one", b"last"]


def test_a_filter_that_raises_loses_no_other_packet_of_its_batch(poller: Poller, free_port: int) -> None:
    def accept(packet: bytes, addr: Address) -> bool:
        if packet == b"2":
            raise ZeroDivisionError
        return True

    listener = Batches(accept, port=free_port, poller=poller, **ON_LO)
    send(map(str, range(5)), free_port)
    with pytest.raises(ZeroDivisionError):
        poller.poll()
    assert listener.batches == []
    assert listener.statistics().delivered == 1  # the one in the hands of the filter
    poller.poll()
    assert listener.packets == [b"0", b"1", b"3", b"4"]
    listener.close()
    assert listener.statistics().packets == 5


def test_batches_of_slow_handlers_shrink(poller: Poller, free_port: int, turned: helpers.Clock) -> None:
    class SlowBatches(Batches):
        def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> object:
            turned.advance(0.0001 * len(packets))
            return super().handle_packets(packets, addresses)

    poller.budget = 0
    listener = SlowBatches(port=free_port, poller=poller, **ON_LO)
    send(map(str, range(100)), free_port)
    turns(poller, 3)
    sizes = [len(packets) for packets, _ in listener.batches]
    assert sizes[0] == 64
    assert all(8 <= size <= 11 for size in sizes[1:])


def test_a_batch_listener_takes_single_packets_by_hand(poller: Poller, free_port: int) -> None:
    listener = Batches(port=free_port, poller=poller, **ON_LO)
    listener.handle_packet(b"x", Address(("127.0.0.1", 1)))
    assert listener.packets == [b"x"]


# -- own packets and new packets -----------------------------------------------------------------------------


def test_packets_of_ignored_senders_are_filtered(poller: Poller, free_port: int) -> None:
    with multicast.Sender(port=free_port, ttl=0) as own, multicast.Sender(port=free_port, ttl=0) as other:
        listener = Keeper(port=free_port, ignore=[own], poller=poller, **ON_LO)
        own.send("own")
        other.send("other")
        own.send("own again")
        turns(poller)
        assert listener.packets == [b"other"]
        own.send("last")
    turns(poller)  # the sender is closed, and its last packet comes now
    assert listener.packets == [b"other"]
    assert listener.statistics().filtered == 3


@pytest.mark.parametrize("host, heard", [("127.0.0.1", 0), ("0.0.0.0", 0), ("10.9.8.7", 1)])  # noqa: S104
def test_a_sender_is_ignored_by_its_address_and_port(poller: Poller, free_port: int, host: str, heard: int) -> None:
    with multicast.Sender(port=free_port, ttl=0) as sender:
        assert sender.address is not None
        ignored = SimpleNamespace(address=(host, sender.address[1]))
        listener = Keeper(port=free_port, ignore=[ignored], poller=poller, **ON_LO)
        sender.send("x")
        turns(poller)
    assert len(listener.packets) == heard


def test_a_packet_for_a_single_address_tells_it(poller: Poller) -> None:
    class Plain(DatagramListener):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            got.append((packet, addr.group))
            return True

    got: list[tuple[bytes, str | None]] = []
    for ip in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 -- on lo, for a moment
        plain = Plain(None, ip, 0, poller=poller)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(ip.encode(), ("127.0.0.1", plain.address[1]))
        turns(poller)
    assert got == [(b"127.0.0.1", "127.0.0.1"), (b"0.0.0.0", None)]


def test_ignored_senders_go_together_with_a_filter(poller: Poller, free_port: int) -> None:
    with multicast.Sender(port=free_port, ttl=0, source_ip="127.0.0.1") as own:
        listener = Keeper("o", port=free_port, ignore=iter([own]), poller=poller, **ON_LO)
        own.send("own")
        send(["other", "this"], free_port)
        turns(poller)
    assert listener.packets == [b"other"]


def test_what_does_not_send_cannot_be_ignored(poller: Poller, free_port: int) -> None:
    with pytest.raises(ArgumentError, match="ignore takes senders"):
        Keeper(port=free_port, ignore=["239.1.2.3"], poller=poller, **ON_LO)


def test_an_inbox_can_hold_the_newest_packet_of_each_source(poller: Poller, free_port: int) -> None:
    with multicast.Sender(port=free_port, ttl=0) as one, multicast.Sender(port=free_port, ttl=0) as two:
        inbox = multicast.Inbox(port=free_port, latest=True, poller=poller, **ON_LO)
        one.send("one 1")
        two.send("two 1")
        one.send("one 2")
        one.send("one 3")
        poller.poll()
        assert len(inbox) == 2
        assert [next(inbox), next(inbox)] == [b"one 3", b"two 1"]
        assert inbox.superseded == 2
        two.send("two 2")
        assert next(inbox) == b"two 2"
        assert inbox.addr is not None
        assert inbox.addr.host == "127.0.0.1"


def test_an_inbox_of_the_newest_holds_few_sources_and_never_stops_reading(poller: Poller, free_port: int) -> None:
    inbox = multicast.Inbox(port=free_port, latest=True, capacity=3, poller=poller, **ON_LO)
    for number in range(10):
        with multicast.Sender(port=free_port, ttl=0) as sender:
            sender.send(str(number))
    turns(poller)
    assert [next(inbox) for _ in range(len(inbox))] == [b"7", b"8", b"9"]
    assert inbox.superseded == 7


# -- filters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filter",
    [
        "t[eo]st",
        b"t[eo]st",
        re.compile("T[EO]ST", re.IGNORECASE),
        re.compile(b"t[eo]st"),
        lambda packet, addr: packet in (b"test", b"tost!"),
    ],
    ids=["text", "bytes", "compiled text", "compiled bytes", "callable"],
)
def test_only_what_passes_the_filter_is_delivered(poller: Poller, free_port: int, filter: Any) -> None:
    listener = Keeper(filter, port=free_port, poller=poller, **ON_LO)
    send(["test", "other", "tost!", " test", ""], free_port)
    turns(poller)
    assert listener.packets == [b"test", b"tost!"]


def test_a_callable_filter_sees_the_address(poller: Poller, free_port: int) -> None:
    seen: list[Any] = []

    def note(packet: bytes, addr: Address) -> None:
        seen.append((packet, addr.host, addr.group))

    listener = Keeper(note, port=free_port, poller=poller, **ON_LO)
    send("x", free_port)
    turns(poller)
    assert seen == [(b"x", "127.0.0.1", "224.0.42.42")]
    assert listener.packets == []


def test_the_filter_of_the_class_is_used_and_that_of_the_instance_comes_first(poller: Poller, free_port: int) -> None:
    class Choosy(Keeper):
        filter = lambda packet, addr: packet == b"class"  # noqa: E731

    of_class = Choosy(port=free_port, poller=poller, **ON_LO)
    of_instance = Choosy("inst", port=free_port, poller=poller, **ON_LO)
    send(["class", "instance", "other"], free_port)
    turns(poller)
    assert of_class.packets == [b"class"]
    assert of_instance.packets == [b"instance"]


def test_a_class_filter_that_is_a_method_may_look_at_attributes_made_in_the_constructor(
    poller: Poller, free_port: int
) -> None:
    class Choosy(Keeper):
        def __init__(self, wanted: bytes, **options: Any) -> None:
            super().__init__(**options)
            self.wanted = wanted

        def filter(self, packet: bytes, addr: Address) -> bool:
            return packet == self.wanted

    choosy = Choosy(b"this", port=free_port, poller=poller, **ON_LO)
    send(["that", "this"], free_port)
    turns(poller)
    assert choosy.packets == [b"this"]


# -- the size of packets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [False, True])
def test_longer_packets_are_cut_marked_and_counted(poller: Poller, free_port: int, details: bool) -> None:
    listener = Keeper(None, "224.0.42.42", free_port, 4, poller=poller, details=details, **ON_LO)
    send(["12345678", "1234", "123", "", "12345"], free_port)
    turns(poller)
    assert listener.packets == [b"1234", b"1234", b"123", b"", b"1234"]
    assert [addr.truncated for addr in listener.addrs] == [True, False, False, False, True]
    statistics = listener.statistics()
    assert (statistics.packets, statistics.bytes, statistics.truncated) == (5, 15, 2)


def test_by_default_4096_bytes_are_kept(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    send([bytes(4096), bytes(4097)], free_port)
    turns(poller)
    assert [(len(p), a.truncated) for p, a in zip(listener.packets, listener.addrs, strict=True)] == [
        (4096, False),
        (4096, True),
    ]


@pytest.mark.parametrize("ip, size", [("239.1.1.1", 65507), ("ff15::1", 65527)])
def test_the_longest_packet_of_each_family_goes_and_comes_whole(
    poller: Poller, free_port: int, ip: str, size: int
) -> None:
    listener = Keeper(ip=need_on_lo(ip), port=free_port, mtu=100_000, poller=poller, **ON_LO)
    packet = bytes(range(256)) * 256
    multicast.sendto(packet[:size], ip, free_port, 0)
    turns(poller)
    assert listener.packets == [packet[:size]]
    assert not listener.addrs[0].truncated


# -- details -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", ["239.1.1.1", "ff15::1"])
def test_details_are_told_when_asked_for(poller: Poller, free_port: int, ip: str) -> None:
    listener = Keeper(ip=need_on_lo(ip), port=free_port, poller=poller, details=True, **ON_LO)
    began = time.time_ns()
    multicast.sendto("x", ip, free_port, 0)
    turns(poller)
    (addr,) = listener.addrs
    assert (addr.group, addr.interface, addr.ttl, addr.dscp, addr.truncated) == (ip, "lo", 0, 0, False)
    assert addr.timestamp is not None
    assert began - 10**9 < addr.timestamp < time.time_ns() + 10**9


def test_without_details_group_and_truncation_are_known_and_the_interface_where_there_is_one(
    poller: Poller, free_port: int
) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    send("x", free_port)
    turns(poller)
    (addr,) = listener.addrs
    assert (addr.group, addr.interface, addr.truncated) == ("224.0.42.42", "lo", False)
    assert (addr.ttl, addr.timestamp, addr.dscp) == (None, None, None)


def test_an_address_is_a_value_with_attributes() -> None:
    addr = Address(("10.0.0.1", 5), "239.1.1.1", "eth0", 7, 123, True)
    assert tuple(addr) == ("10.0.0.1", 5)
    assert hash(addr) == hash(("10.0.0.1", 5))
    host, port = addr
    assert (host, port) == (addr.host, addr.port) == ("10.0.0.1", 5)
    again = pickle.loads(pickle.dumps(addr))  # noqa: S301 -- our own
    assert again == addr
    assert (again.group, again.interface, again.ttl, again.timestamp, again.truncated) == (
        "239.1.1.1",
        "eth0",
        7,
        123,
        True,
    )


# -- statistics ----------------------------------------------------------------------------------------------


def test_statistics_count_every_packet_once(poller: Poller, free_port: int) -> None:
    # What the kernel filters is not read, so it is neither in `packets` nor in `bytes`; see test_kernel_filter.
    listener = Keeper("t", port=free_port, mtu=3, poller=poller, kernel_filter=False, **ON_LO)
    send(["test", "ten", "other", "t"], free_port)
    turns(poller)
    found = listener.statistics()
    assert (found.packets, found.bytes, found.delivered, found.filtered) == (4, 10, 3, 1)
    assert (found.truncated, found.dropped) == (2, 0)
    listener.close()
    assert listener.statistics() == found, "stays readable"


def test_what_the_kernel_drops_is_counted_exactly(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, rcvbuf=2304, **ON_LO)
    assert send(map(str, range(500)), free_port) == 500
    turns(poller, 20)
    found = listener.statistics()
    assert found.dropped > 0
    assert found.packets + found.dropped == 500
    assert listener.packets == [b"%d" % number for number in range(found.packets)]
    assert listener.statistics().dropped == found.dropped, "asking does not count"
    send("x", free_port)
    turns(poller)
    assert listener.statistics().packets == found.packets + 1
    send(map(str, range(500)), free_port)
    listener.close()
    after = listener.statistics()
    assert after.packets == found.packets + 1
    assert after.dropped > found.dropped


def test_the_receive_buffer_granted_is_told(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, rcvbuf=50_000, **ON_LO)
    assert listener.rcvbuf == 50_000
    listener.close()
    assert listener.rcvbuf == 0


# -- arguments -----------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ip": "10.0.0.1"}, GroupError, "not a multicast address"),
    ({"ip": "nonsense"}, GroupError, "names are not looked up"),
    ({"ip": "239.1.1.1 evil"}, GroupError, "not an IP address"),
    ({"ip": None}, GroupError, "as text"),
    ({"port": 0}, ArgumentError, "port"),
    ({"port": 65536}, ArgumentError, "port"),
    ({"port": "4242"}, ArgumentError, "port"),
    ({"mtu": 0}, ArgumentError, "mtu"),
    ({"mtu": -1}, ArgumentError, "mtu"),
    ({"mtu": 1.5}, ArgumentError, "mtu"),
    ({"mtu": True}, ArgumentError, "mtu"),
    ({"filter": "("}, FilterError, "not a regular expression"),
    ({"filter": 5}, FilterError, "a filter is None"),
    ({"interface": "eth7"}, InterfaceError, "no interface 'eth7'"),
    ({"interface": ["lo", "eth7"]}, InterfaceError, "no interface 'eth7'"),
    ({"interface": []}, InterfaceError, "empty"),
    ({"interface": 1.5}, InterfaceError, "a name, an index, an address or a list"),
    ({"interface": b"lo"}, InterfaceError, "a name, an index, an address or a list"),
    ({"rcvbuf": 0}, ArgumentError, "rcvbuf"),
    ({"silence": 0}, ArgumentError, "silence"),
    ({"rcvbuf": -5}, ArgumentError, "rcvbuf"),
    ({"sources": ["239.1.1.1"]}, GroupError, "single IPv4 host"),
    ({"sources": ["::1"]}, GroupError, "single IPv4 host"),
    ({"sources": "nonsense"}, GroupError, "nonsense"),
    ({"exclude": ["nonsense"]}, GroupError, "nonsense"),
    ({"sources": ["10.0.0.1"], "exclude": ["10.0.0.2"]}, GroupError, "cannot be combined"),
]


@pytest.mark.parametrize("arguments, error, words", BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_refused_before_a_socket_is_opened(
    poller: Poller,
    arguments: dict[str, Any],
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Any] = []
    make = socket.socket

    def counting(*args: Any, **options: Any) -> socket.socket:
        if not args or args[0] in (socket.AF_INET, socket.AF_INET6):
            opened.append(args)
        return make(*args, **options)

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr("socket.socket", counting)
        with pytest.raises(error, match=words):
            Keeper(**{"port": 4242, "poller": poller, **ON_LO, **arguments})
    assert opened == []
    assert descriptors() == before
    assert len(poller) == 0
    assert issubclass(error, MulticastError)


def test_a_function_gets_each_packet_and_where_it_came_from(poller: Poller, free_port: int) -> None:
    got: list[tuple[bytes, str]] = []

    def handle(packet: bytes, addr: Address) -> bool:
        got.append((packet, addr.host))
        return packet == b"last"

    poller.call_soon(send, ["one", "last", "after"], free_port)
    assert listen(handle, port=free_port, poller=poller, **ON_LO) is True
    assert got == [(b"one", "127.0.0.1"), (b"last", "127.0.0.1")]


def test_what_is_no_poller_is_refused(free_port: int) -> None:
    before = descriptors()
    with pytest.raises(ArgumentError, match="poller must be a Poller, not 5"):
        Keeper(port=free_port, poller=5, **ON_LO)
    assert descriptors() == before


def test_a_listener_whose_descriptor_somebody_has_closed_can_be_asked_and_closed(
    poller: Poller, free_port: int
) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    send("one", free_port)
    poller.poll()
    assert listener.socket is not None
    listener.socket.close()
    assert listener.statistics().packets == 1
    listener.close()
    listener.close()
    assert listener.closed
    assert len(poller) == 0


def test_the_count_of_drops_goes_on_when_the_kernels_counter_wraps(
    poller: Poller, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([2**32 - 3, 2**32 - 1, 4])
    monkeypatch.setattr("multicast.listeners.datagrams.drops", lambda opened: next(counts))
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    before = listener.statistics().dropped
    assert listener.statistics().dropped == before + 2
    assert listener.statistics().dropped == before + 7
    monkeypatch.undo()


@pytest.mark.parametrize("which", ["limit", "capacity"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True], ids=helpers.name)
def test_a_bad_count_is_refused(free_port: int, which: str, value: Any) -> None:
    before = descriptors()
    with pytest.raises(ArgumentError, match=which):
        listen(port=free_port, **{which: value}, **ON_LO)
    if which == "limit":
        with pytest.raises(ArgumentError, match=which):
            listen(lambda packet, addr: None, port=free_port, limit=value, **ON_LO)
    assert descriptors() == before


def test_a_listener_says_what_it_is(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    assert repr(listener) == f"<Keeper 224.0.42.42:{free_port} on lo>"
    assert [interface.name for interface in listener.interfaces] == ["lo"]
    assert (listener.group.address, listener.group.port) == ("224.0.42.42", free_port)
    listener.close()
    assert "closed" in repr(listener)


def test_closing_leaves_the_group(poller: Poller, free_port: int) -> None:
    listener = Keeper(ip="239.7.7.7", port=free_port, poller=poller, **ON_LO)
    assert joined("239.7.7.7") == ["lo"]
    copy = socket.socket(fileno=socket.dup(listener.fileno()))
    listener.close()
    with copy:
        assert joined("239.7.7.7") == [], "although a copy of the socket is open"
    listener.close()
    specific = Keeper(ip="232.7.7.7", port=free_port, poller=poller, sources=["127.0.0.1", "127.0.0.2"], **ON_LO)
    assert joined("232.7.7.7") == ["lo"]
    copy = socket.socket(fileno=socket.dup(specific.fileno()))
    specific.close()
    with copy:
        assert joined("232.7.7.7") == []


# -- who is heard --------------------------------------------------------------------------------------------


def heard(listener: Keeper, port: int, *senders: str) -> list[str]:
    """Send from these addresses of `lo`; return whom the listener hears."""
    ip = listener.group.address
    for sender in senders:
        multicast.sendto(sender, ip, port, 0, source_ip=sender)
    turns(listener.poller)
    packets = [packet.decode() for packet in listener.packets]
    assert packets == [addr.host for addr in listener.addrs]
    listener.packets.clear()
    listener.addrs.clear()
    return packets


def test_sources_are_the_only_ones_heard(poller: Poller, free_port: int) -> None:
    everybody = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    for sources, expected in (
        (["127.0.0.2"], ["127.0.0.2"]),
        ("127.0.0.3", ["127.0.0.3"]),
        (("127.0.0.1", "127.0.0.3"), ["127.0.0.1", "127.0.0.3"]),
        ([], list(everybody)),
        (None, list(everybody)),
    ):
        with Keeper(ip="232.1.1.1", port=free_port, poller=poller, sources=sources, **ON_LO) as listener:
            assert heard(listener, free_port, *everybody) == expected


def test_those_excluded_are_not_heard(poller: Poller, free_port: int) -> None:
    for exclude in (["127.0.0.2"], "127.0.0.2", ("127.0.0.2",), iter(["127.0.0.2"])):
        with Keeper(ip="239.1.1.1", port=free_port, poller=poller, exclude=exclude, **ON_LO) as listener:
            assert heard(listener, free_port, "127.0.0.1", "127.0.0.2", "127.0.0.3") == ["127.0.0.1", "127.0.0.3"]


def test_an_ipv6_listener_takes_sources_too(poller: Poller, free_port: int) -> None:
    need_on_lo("ff35::1")
    with Keeper(ip="ff35::1", port=free_port, poller=poller, sources=["::1"], **ON_LO) as listener:
        assert heard(listener, free_port, "::1") == ["::1"]
    with Keeper(ip="ff35::1", port=free_port, poller=poller, sources=["2001:db8::5"], **ON_LO) as listener:
        assert heard(listener, free_port, "::1") == []
    with Keeper(ip="ff15::1", port=free_port, poller=poller, exclude=["::1"], **ON_LO) as listener:
        assert heard(listener, free_port, "::1") == []


def test_several_listeners_of_one_group_get_a_copy_each(poller: Poller, free_port: int) -> None:
    listeners = [Keeper(port=free_port, poller=poller, **ON_LO) for _ in range(3)]
    send(["one", "two"], free_port)
    turns(poller)
    assert [listener.packets for listener in listeners] == [[b"one", b"two"]] * 3


def test_other_groups_and_ports_are_not_heard(poller: Poller, free_port: int) -> None:
    mine = Keeper(ip="239.1.1.1", port=free_port, poller=poller, **ON_LO)
    other = Keeper(ip="239.1.1.2", port=free_port, poller=poller, **ON_LO)
    multicast.sendto("other group", "239.1.1.2", free_port, 0)
    multicast.sendto("other port", "239.1.1.1", free_port - 1, 0)
    multicast.sendto("mine", "239.1.1.1", free_port, 0)
    turns(poller)
    assert (mine.packets, other.packets) == ([b"mine"], [b"other group"])


def test_a_packet_sent_to_the_host_itself_is_not_heard(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"unicast", ("127.0.0.1", free_port))
    send("multicast", free_port)
    turns(poller)
    assert listener.packets == [b"multicast"]


def test_interfaces_may_be_named_by_index_address_and_in_lists(poller: Poller, free_port: int) -> None:
    lo = socket.if_nametoindex("lo")
    spellings: list[Any] = ["lo", lo, str(lo), "127.0.0.1", "::1", ["lo"], ("127.0.0.1", lo), resolve("lo")]
    for interface in spellings:
        listener = Keeper(port=free_port, poller=poller, interface=interface)
        assert [one.name for one in listener.interfaces] == ["lo"]
        listener.close()


def test_an_interface_may_be_named_in_the_address(poller: Poller, free_port: int) -> None:
    need_on_lo("ff12::1")
    listener = Keeper(ip="ff12::1%lo", port=free_port, poller=poller)
    multicast.sendto("x", "ff12::1%lo", free_port, 0)
    turns(poller)
    assert listener.packets == [b"x"]
    listener.close()


# -- listen with a handler -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 64, 100])
def test_listen_hands_exactly_so_many_packets_to_the_handler(poller: Poller, free_port: int, limit: int) -> None:
    packets: list[bytes] = []

    def handler(packet: bytes, addr: Address) -> None:
        packets.append(packet)

    poller.call_soon(send, list(map(str, range(130))), free_port)
    assert listen(handler, port=free_port, limit=limit, poller=poller, **ON_LO) is None
    assert packets == [b"%d" % number for number in range(limit)]
    assert len(poller) == 0
    assert joined("224.0.42.42") == []


def test_listen_counts_what_passes_the_filter(poller: Poller, free_port: int) -> None:
    packets: list[bytes] = []
    poller.call_soon(send, ["a1", "b1", "a2", "a3"], free_port)
    listen(
        lambda packet, addr: packets.append(packet), port=free_port, limit=2, filter="a", poller=poller, **ON_LO
    )
    assert packets == [b"a1", b"a2"]


def test_listen_returns_what_the_handler_said_last(poller: Poller, free_port: int) -> None:
    answers = iter([None, 0, "", "found it", "too late"])
    poller.call_soon(send, ["x"] * 5, free_port)
    assert listen(lambda packet, addr: next(answers), port=free_port, poller=poller, **ON_LO) == "found it"
    assert next(answers) == "too late"
    answers = iter([1, 2])
    poller.call_soon(send, ["x"] * 5, free_port)
    assert listen(lambda packet, addr: [], port=free_port, limit=2, poller=poller, **ON_LO) == []


def test_other_objects_run_while_listen_waits(poller: Poller, free_port: int) -> None:
    other = Keeper(port=free_port, poller=poller, **ON_LO)
    pair = Pair(lambda _: send("now", free_port))
    poller.register(pair)
    pair.tell()
    assert listen(lambda packet, addr: packet, port=free_port, poller=poller, **ON_LO) == b"now"
    turns(poller)
    assert other.packets == [b"now"]
    assert list(poller) == [other, pair]
    poller.unregister(pair)
    pair.close()


def test_what_the_handler_of_listen_raises_closes_its_listener(poller: Poller, free_port: int) -> None:
    def handler(packet: bytes, addr: Address) -> None:
        raise ZeroDivisionError

    poller.call_soon(send, "x", free_port)
    with pytest.raises(ZeroDivisionError):
        listen(handler, port=free_port, poller=poller, **ON_LO)
    assert len(poller) == 0
    assert joined("224.0.42.42") == []


def test_stop_ends_listen(poller: Poller, free_port: int) -> None:
    poller.call_soon(poller.stop)
    assert listen(lambda packet, addr: True, port=free_port, poller=poller, **ON_LO) is None
    assert len(poller) == 0


def test_the_handler_of_listen_may_poll(poller: Poller, free_port: int) -> None:
    packets: list[bytes] = []

    def handler(packet: bytes, addr: Address) -> None:
        packets.append(packet)
        send("more", free_port)
        turns(poller)

    poller.call_soon(send, "first", free_port)
    listen(handler, port=free_port, limit=1, poller=poller, **ON_LO)
    assert packets == [b"first"]


def test_listen_uses_the_default_poller_and_can_be_called_again(free_port: int) -> None:
    for _ in range(2):
        multicast._defaultPoller.call_soon(send, "x", free_port)
        assert listen(lambda packet, addr: packet, port=free_port, **ON_LO) == b"x"


@pytest.mark.parametrize("handler", [5, "print", object()], ids=helpers.name)
def test_a_handler_that_cannot_be_called_is_refused(free_port: int, handler: Any) -> None:
    before = descriptors()
    with pytest.raises(ArgumentError, match="packet_handler must be callable"):
        listen(handler, port=free_port, **ON_LO)
    assert descriptors() == before


# -- listen without one --------------------------------------------------------------------------------------


def test_listen_without_a_handler_returns_an_iterator_of_packets(free_port: int) -> None:
    listener = listen(port=free_port, **ON_LO)
    assert isinstance(listener, Inbox)
    send(["one", "two"], free_port)
    multicast.poll()
    assert len(listener) == 2
    assert next(listener) == b"one"
    assert listener.next() == b"two"
    assert listener.addr is not None
    assert listener.addr.host == "127.0.0.1"
    assert len(listener) == 0
    assert listener, "an empty inbox is no false value"
    listener.close()


def test_an_empty_inbox_polls_until_a_packet_comes(poller: Poller, free_port: int) -> None:
    listener = listen(port=free_port, poller=poller, **ON_LO)
    poller.call_later(0.001, send, "late", free_port)
    assert next(listener) == b"late"


def test_a_handler_may_wait_for_an_inbox(poller: Poller, free_port: int) -> None:
    answers = listen(ip="239.1.1.2", port=free_port, poller=poller, **ON_LO)
    got: list[bytes] = []

    class Asking(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            poller.call_later(0.001, multicast.sendto, b"answer to " + packet, "239.1.1.2", free_port, 0)
            got.append(next(answers))
            return None

    Asking(ip="239.1.1.1", port=free_port, poller=poller, **ON_LO)
    multicast.sendto(["one", "two"], "239.1.1.1", free_port, 0)
    settle(poller, lambda: len(got) == 2)
    assert got == [b"answer to one", b"answer to two"]


def test_an_empty_inbox_that_nobody_polls_says_so(poller: Poller, free_port: int) -> None:
    inbox = listen(port=free_port, poller=poller, **ON_LO)
    poller.unregister(inbox)
    with pytest.raises(RegistrationError, match="register it"):
        next(inbox)
    poller.register(inbox)
    poller.call_soon(poller.unregister, inbox)
    with pytest.raises(RegistrationError, match="register it"):
        next(inbox)
    inbox.close()


def test_stop_ends_the_wait_for_a_packet(poller: Poller, free_port: int) -> None:
    inbox = listen(port=free_port, poller=poller, **ON_LO)
    poller.call_soon(poller.stop)
    assert list(inbox) == []
    assert not inbox.closed
    send("x", free_port)
    assert next(inbox) == b"x", "it can be waited for again"


def test_iteration_ends_after_limit_packets(poller: Poller, free_port: int) -> None:
    listener = listen(port=free_port, limit=3, poller=poller, **ON_LO)
    send(map(str, range(10)), free_port)
    assert list(listener) == [b"0", b"1", b"2"]
    assert listener.closed
    assert list(listener) == []


def test_iteration_ends_when_the_inbox_is_closed_and_empty(poller: Poller, free_port: int) -> None:
    listener = listen(port=free_port, poller=poller, **ON_LO)
    send(["one", "two"], free_port)
    poller.poll()
    listener.close()
    assert list(listener) == [b"one", b"two"]
    waiting = listen(port=free_port, poller=poller, **ON_LO)
    poller.call_soon(waiting.close)
    assert list(waiting) == []


def test_a_full_inbox_leaves_packets_in_the_kernel(poller: Poller, free_port: int) -> None:
    inbox = Inbox(port=free_port, capacity=3, poller=poller, **ON_LO)
    send(map(str, range(8)), free_port)
    turns(poller)
    assert len(inbox) == 3
    assert inbox.statistics().packets == 3
    assert next(inbox) == b"0"
    turns(poller)
    assert len(inbox) == 3
    assert [next(inbox) for _ in range(7)] == [b"%d" % number for number in range(1, 8)]
    assert inbox.statistics().dropped == 0


def test_an_inbox_that_stays_full_does_not_keep_the_poller_busy(poller: Poller, free_port: int) -> None:
    inbox = Inbox(port=free_port, capacity=1, poller=poller, **ON_LO)
    send(map(str, range(8)), free_port)
    turns(poller)
    done: list[bool] = []
    poller.call_later(0.01, done.append, True)
    polls = 0
    while not done:
        poller.poll(None)
        polls += 1
    assert polls <= 2
    assert len(inbox) == 1


def test_a_full_inbox_that_is_moved_stays_full(poller: Poller, free_port: int) -> None:
    inbox = Inbox(port=free_port, capacity=2, poller=poller, **ON_LO)
    send(map(str, range(8)), free_port)
    turns(poller)
    with Poller() as other:
        other.register(inbox)
        turns(other)
        assert len(inbox) == 2
        assert [next(inbox) for _ in range(8)] == [b"%d" % number for number in range(8)]


def test_what_an_inbox_holds_can_be_taken_when_it_is_unregistered(poller: Poller, free_port: int) -> None:
    inbox = Inbox(port=free_port, capacity=2, poller=poller, **ON_LO)
    send(map(str, range(3)), free_port)
    turns(poller)
    poller.unregister(inbox)
    assert [next(inbox), next(inbox)] == [b"0", b"1"]
    poller.register(inbox)
    assert next(inbox) == b"2"
    inbox.close()


def test_an_inbox_may_be_read_by_hand(poller: Poller, free_port: int) -> None:
    inbox = Inbox(port=free_port, capacity=2, poller=poller, **ON_LO)
    poller.unregister(inbox)
    send(map(str, range(3)), free_port)
    for _ in range(3):
        inbox.handle_read()
    assert len(inbox) == 2
    assert [next(inbox), next(inbox)] == [b"0", b"1"]
    inbox.handle_read()
    assert next(inbox) == b"2"
    inbox.close()


def test_an_inbox_takes_the_arguments_of_a_listener(poller: Poller, free_port: int) -> None:
    inbox = listen(
        ip="239.1.1.1", port=free_port, mtu=2, filter="t", details=True, sources=["127.0.0.1"], poller=poller, **ON_LO
    )
    multicast.sendto(["other", "test"], "239.1.1.1", free_port, 0)
    assert next(inbox) == b"te"
    assert inbox.addr is not None
    assert inbox.addr.truncated
    assert inbox.addr.ttl == 0
    with pytest.raises(TypeError):
        listen(port=free_port, colour="red", poller=poller, **ON_LO)  # type: ignore[call-overload]


def test_a_subclass_of_an_inbox_may_have_a_handler_for_each_packet(poller: Poller, free_port: int) -> None:
    class Upper(Inbox):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            return super().handle_packet(packet.upper(), addr)

    inbox = Upper(port=free_port, poller=poller, **ON_LO)
    send(["one", "two"], free_port)
    assert [next(inbox), next(inbox)] == [b"ONE", b"TWO"]


def test_an_inbox_is_iterated_over_and_asked_in_turns(poller: Poller, free_port: int) -> None:
    inbox = listen(port=free_port, limit=6, poller=poller, **ON_LO)
    send([str(number) for number in range(8)], free_port)
    found = []
    for packet in inbox:
        assert inbox.addr is not None
        found.append((packet, inbox.addr.host))
        if packet == b"1":
            found.append((next(inbox), inbox.addr.host))
        if packet == b"3":
            break
    assert next(inbox) == b"4"
    found += [(packet, inbox.addr.host) for packet in inbox]  # until the limit
    assert [packet for packet, _ in found] == [b"0", b"1", b"2", b"3", b"5"]
    assert {host for _, host in found} == {"127.0.0.1"}
    assert inbox.closed


# -- silence -------------------------------------------------------------------------------------------------


class Watchful(Keeper):
    def __init__(self, **options: Any) -> None:
        self.silences: list[float] = []
        super().__init__(silence=2, **ON_LO, **options)

    def handle_silence(self, seconds: float) -> None:
        self.silences.append(seconds)


def test_what_the_handler_of_silence_raises_goes_where_other_errors_go(free_port: int) -> None:
    class Raising(Watchful):
        def handle_silence(self, seconds: float) -> None:
            raise ZeroDivisionError

    class Careful(Raising):
        def handle_error(self, error: Exception) -> None:
            errors.append(error)

    clock, errors = Clock(), list[Exception]()
    with Poller(clock=clock) as poller:
        Careful(port=free_port, poller=poller)
        clock.advance(2)
        poller.poll()
        assert [type(error) for error in errors] == [ZeroDivisionError]
    with Poller(clock=clock) as poller:
        Raising(port=free_port, poller=poller)
        clock.advance(2)
        with pytest.raises(ZeroDivisionError):
            poller.poll()


def test_silence_is_told_again_and_again_until_a_packet_comes(free_port: int) -> None:
    clock = Clock()

    def pass_time(seconds: int) -> None:
        for _ in range(seconds):
            clock.advance(1)
            poller.poll()

    with Poller(clock=clock) as poller, Watchful(port=free_port, poller=poller) as listener:
        pass_time(1)
        assert listener.silences == []
        pass_time(5)
        assert listener.silences == [2, 4, 6]
        for number in range(6):
            send(str(number), free_port)
            pass_time(1)
        assert listener.silences == [2, 4, 6]
        pass_time(4)
        assert listener.silences == [2, 4, 6, 2]


def test_packets_the_filter_refuses_are_no_silence(free_port: int) -> None:
    clock = Clock()
    for kernel_filter in (False, True):
        with (
            Poller(clock=clock) as poller,
            Watchful(filter="never", port=free_port, kernel_filter=kernel_filter, poller=poller) as listener,
        ):
            for _ in range(6):
                send("another", free_port)
                clock.advance(1)
                poller.poll()
            assert listener.packets == []
            assert listener.silences == []


def test_a_silent_group_is_joined_again_and_logged_once(free_port: int, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        listener = Keeper(ip="239.1.1.9", port=free_port, silence=3, poller=poller, **ON_LO)
        assert listener.socket is not None
        sockets.leave(listener.socket, listener.group, listener.interfaces[0].index)
        assert joined("239.1.1.9") == []
        for _ in range(10):
            clock.advance(1)
            poller.poll()
        assert joined("239.1.1.9") == ["lo"]
        send("heard", free_port, ip="239.1.1.9")
        settle(poller, lambda: listener.packets)
        listener.close()
        for _ in range(10):
            clock.advance(1)
            poller.poll()
    assert [record.getMessage() for record in caplog.records] == [
        f"239.1.1.9:{free_port}: no packet for 3 s; `multicast doctor 239.1.1.9:{free_port}` looks for the cause"
    ]


# -- moving, sharing, closing --------------------------------------------------------------------------------


def test_a_listener_registered_with_two_pollers_belongs_to_the_second(free_port: int) -> None:
    listener = Keeper(port=free_port, **ON_LO)
    with Poller() as mine:
        mine.register(listener)
        assert len(multicast._defaultPoller) == 0
        send("x", free_port)
        mine.poll()
        assert listener.packets == [b"x"]
        listener.close()
        assert len(mine) == 0
        mine.loop()


def test_a_listener_may_say_what_it_is_equal_to_and_so_have_no_hash(poller: Poller, free_port: int) -> None:
    class Equal(Keeper):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    one, two = (Equal(port=free_port, poller=poller, **ON_LO) for _ in range(2))
    assert list(map(id, poller)) == [id(one), id(two)]
    send("x", free_port)
    poller.poll()
    assert one.packets == two.packets == [b"x"]
    one.close()
    assert two in poller
    assert one not in poller
    two.close()


def test_unregister_leaves_the_listener_open_and_in_its_group(free_port: int) -> None:
    listener = Keeper(port=free_port, **ON_LO)
    multicast.unregister(listener)
    multicast.unregister(listener)
    assert not listener.closed
    assert joined("224.0.42.42") == ["lo"]
    listener.close()
    listener.close()
    assert joined("224.0.42.42") == []


def test_a_loop_ends_when_the_last_listener_is_closed(free_port: int) -> None:
    class Once(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            return True

    for _ in range(3):
        Once(port=free_port, **ON_LO)
        Once(port=free_port, **ON_LO)
        send("x", free_port)
        multicast.loop()


def test_closing_a_poller_from_another_thread_under_traffic_raises_nothing(free_port: int) -> None:
    for _ in range(30):
        poller = Poller()
        flowing = threading.Event()

        class Counting(Keeper):
            def handle_packet(self, packet: bytes, addr: Address, flowing: threading.Event = flowing) -> object:
                flowing.set()
                return None

        Counting(port=free_port, poller=poller, **ON_LO)

        class Flood(multicast.Multicaster):
            def __iter__(self) -> Iterator[bytes]:
                while True:
                    yield b"x"

        Flood(port=free_port, ttl=0, poller=poller)
        with polling_thread(poller) as raised:
            assert flowing.wait(PATIENCE)
            poller.close()
        assert raised == []


# -- unicast -------------------------------------------------------------------------------------------------


class Post(DatagramListener):
    """Keeps what is sent to this host."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.packets: list[bytes] = []
        self.addrs: list[Address] = []
        super().__init__(*args, **options)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        self.packets.append(packet)
        self.addrs.append(addr)
        return None


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_a_datagram_listener_receives_at_an_address_of_this_host(poller: Poller, ip: str) -> None:
    post = Post(ip=ip, port=0, poller=poller, details=True, mtu=3)
    port = post.address[1]
    assert port > 0
    assert multicast.sendto(["one", "three"], ip, port) == 2
    turns(poller)
    assert post.packets == [b"one", b"thr"]
    assert [addr.truncated for addr in post.addrs] == [False, True]
    assert post.addrs[0].group == ip
    assert post.addrs[0].interface == "lo"
    post.close()
    with pytest.raises(OSError, match="closed"):
        _ = post.address


def test_the_port_of_a_datagram_listener_is_not_shared(poller: Poller) -> None:
    post = Post(port=0, poller=poller)
    before = descriptors()
    with pytest.raises(OSError, match="already in use") as taken:
        Post(port=post.address[1], poller=poller)
    taken.value.__traceback__ = None
    assert descriptors() == before
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="already in use"):
            thief.bind(post.address)


def test_a_group_is_no_address_for_a_datagram_listener(poller: Poller) -> None:
    with pytest.raises(GroupError, match="MulticastListener"):
        Post(ip="239.1.1.1", poller=poller)
