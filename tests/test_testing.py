"""Groups in memory: what a program sees of them, and that nothing of them remains."""

from __future__ import annotations

import itertools
import runpy
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import multicast
from multicast import (
    ArgumentError,
    DatagramListener,
    InterfaceError,
    Multicaster,
    MulticastListener,
    Poller,
    batch,
    discovery,
    interfaces,
    listen,
    sendto,
    testing,
)
from multicast.batch import Address

GROUP = "239.7.2.1"


class Receiver(MulticastListener):
    """Keeps what it hears; as a user would write it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heard: list[tuple[bytes, Address]] = []

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        self.heard.append((packet, addr))

    @property
    def packets(self) -> list[bytes]:
        return [packet for packet, _ in self.heard]


class Beacon(Multicaster):
    """Sends a number again and again; as a user would write it."""

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"beacon {number}"


@pytest.fixture
def net() -> Iterator[testing.Network]:
    with testing.Network(seed=7) as net:
        yield net


# -- the same program ----------------------------------------------------------------------------------------------


def conversation() -> list[Any]:
    """Do what the specification shows."""
    result: list[Any] = []
    listener = listen()
    sendto("test")
    multicast.poll()
    result.append(next(listener))
    result.append((listener.addr is not None, listener.statistics().packets))
    listener.close()
    receiver = Receiver(lambda packet, addr: packet[:4] == b"keep", ip=GROUP, port=5000)
    sendto(["keep 1", "drop", b"keep 2", ""], GROUP, 5000)
    multicast.poll()
    receiver.close()
    result.append(receiver.packets)
    result.append(receiver.statistics())
    receiver = Receiver(ip="239.7.2.2", port=5000, mtu=3)
    sendto("too long", "239.7.2.2", 5000)
    multicast.poll()
    result.append([(packet, addr.group, addr.truncated, addr.ttl) for packet, addr in receiver.heard])
    receiver.close()
    return result


def test_a_program_does_the_same_as_on_a_real_network() -> None:
    real = conversation()
    with testing.Network():
        assert conversation() == real


def test_time_passes_when_the_test_says_so(net: testing.Network) -> None:
    receiver = Receiver(details=True)
    Beacon(interval=1.0)
    began = time.monotonic()
    net.advance(0)
    assert receiver.packets == [b"beacon 1"]
    net.advance(0.999)
    assert len(receiver.heard) == 1
    net.advance(0.001)
    assert len(receiver.heard) == 2
    net.advance(3600)
    assert len(receiver.heard) == 3602
    assert time.monotonic() - began < 60
    times = [addr.timestamp for _, addr in receiver.heard]
    assert times == [(testing._EPOCH + second) * 1_000_000_000 for second in range(3602)]
    assert net.time() == 3601


def test_waiting_turns_the_clock_to_the_next_event(net: testing.Network) -> None:
    Beacon(interval=10)
    heard: list[bytes] = []
    assert listen(lambda packet, addr: heard.append(packet), limit=3) is None
    assert heard == [b"beacon 1", b"beacon 2", b"beacon 3"]
    assert net.time() == 20
    multicast.poll(3)
    assert net.time() == 23
    rung: list[float] = []
    own = Poller()
    own.call_later(100, lambda: rung.append(net.time()))
    own.run_until(lambda: rung)
    assert rung == [123]


def test_waiting_for_what_cannot_come_is_an_error(net: testing.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        listen(lambda packet, addr: True)
    monkeypatch.setattr(testing, "_PATIENCE", 100)
    Beacon()
    with pytest.raises(RuntimeError, match="always something to do"):
        net.advance(1)


def test_a_loop_ends_with_its_senders(net: testing.Network) -> None:
    class Countdown(Multicaster):
        def __iter__(self) -> Iterator[str]:
            yield from "321"

    sender = Countdown(interval=1)
    multicast.loop()
    assert sender.closed
    assert net.time() == pytest.approx(2, abs=1.1)
    assert net.traffic.sent == 3
    Countdown(interval=1)
    multicast.loop(interval=0.25)


# -- what happens on the way ---------------------------------------------------------------------------------------


def lossy(seed: int, count: int = 2000, **faults: Any) -> tuple[list[int], testing.Traffic]:
    """Return the numbers that arrive of `count` packets a millisecond apart."""

    class Counting(Multicaster):
        def __iter__(self) -> Iterator[str]:
            return map(str, range(count))

    with testing.Network(seed=seed, **faults) as net:
        receiver = Receiver()
        Counting(interval=0.001)
        net.advance(count * 0.001 + 10)
        return [int(packet) for packet in receiver.packets], net.traffic


def test_loss_is_as_wanted_and_the_same_for_the_same_seed() -> None:
    found, traffic = lossy(1, loss=0.2)
    assert found == sorted(set(found))
    assert 300 < traffic.lost < 500
    assert (traffic.sent, traffic.delivered) == (2000, 2000 - traffic.lost)
    assert len(found) == traffic.delivered
    assert lossy(1, loss=0.2)[0] == found
    assert lossy(2, loss=0.2)[0] != found


def test_duplicates_come_twice() -> None:
    found, traffic = lossy(1, duplicate=0.1)
    assert 140 < traffic.duplicated < 260
    assert len(found) == 2000 + traffic.duplicated
    assert sorted(set(found)) == list(range(2000))


def test_reordered_packets_are_overtaken() -> None:
    found, traffic = lossy(1, reorder=0.1)
    assert sorted(found) == list(range(2000))
    assert 140 < traffic.reordered < 260
    late = sum(after < before for before, after in itertools.pairwise(found))
    assert traffic.reordered / 2 < late <= traffic.reordered


def test_delay_keeps_the_order_and_jitter_does_not() -> None:
    assert lossy(1, delay=0.5)[0] == list(range(2000))
    found, _ = lossy(1, delay=0.05, jitter=0.01)
    assert found != list(range(2000))
    assert sorted(found) == list(range(2000))


def test_packets_take_their_time(net: testing.Network) -> None:
    net.delay = 0.5
    receiver = Receiver(details=True)
    sendto("later")
    net.advance(0.49)
    assert receiver.packets == []
    net.advance(0.01)
    assert receiver.packets == [b"later"]
    assert receiver.heard[0][1].timestamp == testing._EPOCH * 1_000_000_000 + 500_000_000


def test_faults_may_be_changed_at_any_time(net: testing.Network) -> None:
    receiver = Receiver()
    Beacon(interval=1)
    net.advance(4.5)
    net.loss = 1
    net.advance(10)
    net.loss = 0
    net.advance(5)
    assert receiver.packets == [f"beacon {number}".encode() for number in (1, 2, 3, 4, 5, 16, 17, 18, 19, 20)]


def test_each_receiver_has_its_own_losses() -> None:
    with testing.Network(seed=1, loss=0.5):
        one, two = Receiver(), Receiver()
        sendto([str(number) for number in range(200)])
        for _ in range(10):
            multicast.poll()
        assert one.packets != two.packets
        assert 60 < len(one.heard) < 140


def test_a_full_receive_buffer_drops_and_counts(net: testing.Network) -> None:
    receiver = Receiver(rcvbuf=10_000)
    assert receiver.rcvbuf == 10_000
    sendto([b"x" * 100] * 1000)
    net.advance(0)
    counted = receiver.statistics()
    assert counted.dropped == net.traffic.dropped == 1000 - counted.packets
    assert 10 < counted.packets < 30


# -- who hears what ------------------------------------------------------------------------------------------------


def test_groups_and_ports_are_kept_apart(net: testing.Network) -> None:
    wanted = Receiver(ip=GROUP, port=5000)
    others = [
        Receiver(ip=GROUP, port=5001),
        Receiver(ip="239.7.2.2", port=5000),
        Receiver(ip="ff02::7%eth0", port=5000),
    ]
    sendto("x", GROUP, 5000)
    net.advance(1)
    assert wanted.packets == [b"x"]
    assert [other.packets for other in others] == [[], [], []]


def test_details_are_told(net: testing.Network) -> None:
    receiver = Receiver(ip=GROUP, details=True)
    six = Receiver(ip="ff02::7%eth0", details=True)
    sendto("x", GROUP, ttl=9, source_port=7000)
    sendto("y", "ff02::7", interface="eth0", ttl=3)
    sendto("z", GROUP, ttl=0)
    net.advance(1)
    (_, addr), (_, local) = receiver.heard
    assert (tuple(addr), addr.group, addr.interface, addr.ttl) == (("10.0.0.1", 7000), GROUP, "eth0", 9)
    assert (local.host, local.interface, local.ttl) == ("127.0.0.1", "lo", 0)
    ((_, addr),) = six.heard
    assert (addr.host, addr.group, addr.interface, addr.ttl) == ("fd00::1", "ff02::7", "eth0", 3)


def test_interfaces_are_wires_of_their_own() -> None:
    with testing.Network(interfaces=["eth0", "wlan0"]) as net:
        assert [str(one) for one in interfaces.interfaces()] == ["lo 127.0.0.1", "eth0 10.0.0.1", "wlan0 10.0.1.1"]
        wire, air, both = Receiver(interface="eth0"), Receiver(interface="10.0.1.1"), Receiver(details=True)
        sendto("by wire")
        sendto("by air", interface="wlan0")
        sendto("from the address of air", source_ip="10.0.1.1")
        net.advance(1)
        assert wire.packets == [b"by wire"]
        assert air.packets == [b"by air", b"from the address of air"]
        assert [(addr.interface, addr.host) for _, addr in both.heard] == [
            ("eth0", "10.0.0.1"),
            ("wlan0", "10.0.1.1"),
            ("wlan0", "10.0.1.1"),
        ]
        with pytest.raises(InterfaceError, match="eth7"):
            Receiver(interface="eth7")


def test_hosts_are_told_apart(net: testing.Network) -> None:
    here = Receiver()
    with net.host(2):
        there = Receiver()
        sendto("from two")
        sendto("two alone", ttl=0)
        sendto("not for oneself", loopback=False)
    net.advance(1)
    assert here.packets == [b"from two", b"not for oneself"]
    assert here.heard[0][1].host == "10.0.0.2"
    assert there.packets == [b"from two", b"two alone"]


def test_sources_are_chosen_and_excluded(net: testing.Network) -> None:
    chosen = Receiver(ip="232.1.1.1", sources=["10.0.0.2"])
    rest = Receiver(ip="232.1.1.1", exclude=["10.0.0.2"])
    for number in (1, 2, 3):
        with net.host(number):
            sendto(f"from {number}", "232.1.1.1")
    net.advance(1)
    assert chosen.packets == [b"from 2"]
    assert rest.packets == [b"from 1", b"from 3"]


def test_who_has_left_hears_nothing(net: testing.Network) -> None:
    net.delay = 1
    receiver = Receiver()
    sendto("too late")
    receiver.close()
    net.advance(2)
    assert receiver.packets == []
    assert net.traffic == testing.Traffic(sent=1)


def test_unicast_goes_to_one_host(net: testing.Network) -> None:
    class Single(DatagramListener):
        def handle_packet(self, packet: bytes, addr: Address) -> None:
            heard.append((packet, addr.host))

    heard: list[tuple[bytes, str]] = []
    with net.host(2):
        single = Single(ip="10.0.0.2", port=0)
    sendto("hello", "10.0.0.2", single.address[1])
    sendto("nobody", "10.0.0.3", single.address[1])
    net.advance(1)
    assert heard == [(b"hello", "10.0.0.1")]


def test_requests_are_answered(net: testing.Network) -> None:
    class Answering(discovery.Responder):
        def handle_request(self, packet: bytes, addr: Address) -> bytes:
            return b"yes to " + packet[:4]

    net.delay = 0.25
    for number in (2, 3):
        with net.host(number):
            Answering(ip=GROUP)
    found = [(packet, addr.host) for packet, addr in discovery.request("who?", GROUP, timeout=2)]
    assert found == [(b"yes to who?", "10.0.0.2"), (b"yes to who?", "10.0.0.3")]
    assert net.time() == 2


# -- around it -----------------------------------------------------------------------------------------------------


def test_everything_is_as_before_afterwards() -> None:
    names = [
        (batch, "Reader"),
        (batch, "receive"),
        (batch, "send"),
        (interfaces, "interfaces"),
        (interfaces.Watch, "__init__"),
        (Poller, "_wait"),
        (Poller, "__init__"),
    ]
    before = [getattr(*name) for name in names]
    own = Poller()
    own.call_later(1000, print)
    with testing.Network() as net:
        receiver = Receiver(poller=own)
        Beacon(interval=1, poller=Poller())
        net.advance(10)
        assert own.time() == 10
    assert [getattr(*name) for name in names] == before
    assert receiver.closed
    assert own.time() == pytest.approx(time.monotonic(), abs=60)
    assert own._timers.next_deadline() == pytest.approx(time.monotonic() + 1000, abs=60)
    own.close()
    listener = listen(interface="lo")
    assert isinstance(listener.socket, socket.socket)
    listener.close()


def test_networks_do_not_nest(net: testing.Network) -> None:
    with pytest.raises(RuntimeError, match="nest"), testing.Network():
        pass
    sendto("it goes on")


@pytest.mark.parametrize(
    "options",
    [
        {"loss": 1.5},
        {"duplicate": -1},
        {"reorder": float("nan")},
        {"delay": -1},
        {"interfaces": []},
        {"interfaces": "eth0"},
        {"interfaces": ["lo"]},
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        testing.Network(**options)


def test_the_clock_goes_forward_only(net: testing.Network) -> None:
    with pytest.raises(ArgumentError):
        net.advance(-1)
    with pytest.raises(ArgumentError), net.host(0):
        pass


def test_the_example_of_the_documentation_passes() -> None:
    path = Path(__file__).parents[1] / "docs" / "examples" / "test_thermometer.py"
    runpy.run_path(str(path))["test_the_display_forgets_what_is_old"]()
