"""What the kernel can refuse, row by row of the catalogue of faults, and what comes of it here: K1 to K17."""

from __future__ import annotations

import errno
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from helpers import Keeper, Script, settle, turns

import multicast
from multicast import PacketSizeError, Poller

pytestmark = [pytest.mark.fault, pytest.mark.needs_namespaces]

GROUP, PORT = "239.90.2.1", 4391
Hosts = tuple[netns.Host, netns.Host]
# A queue with a rate; there is no netem on many kernels.
TBF = ["tc", "qdisc", "replace", "dev", "va", "root", "tbf"]


def numbered(count: int, size: int = 5) -> list[bytes]:
    return [b"%05d" % number + bytes(size - 5) for number in range(count)]


@pytest.fixture
def wire(hosts: Hosts, poller: Poller) -> Iterator[tuple[netns.Host, Keeper]]:
    """A host to send from, by its device va, and a listener on the other."""
    alice, bob = hosts
    with bob.inside():
        keeper = Keeper(ip=GROUP, port=PORT, interface="vb", rcvbuf=8 << 20, poller=poller)
    with keeper:
        yield alice, keeper


class Reporting(Script):
    """A sender that keeps what went wrong."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.errors: list[OSError] = []
        super().__init__(*args, **options)

    def handle_error(self, exc: Exception) -> None:
        assert isinstance(exc, OSError)
        self.errors.append(exc)


def test_k1_overflow_is_counted_to_the_packet(poller: Poller) -> None:
    with Keeper(ip=GROUP, port=PORT, rcvbuf=2304, poller=poller) as keeper:
        assert multicast.sendto(numbered(500), GROUP, PORT) == 500
        turns(poller)
        counted = keeper.statistics()
        assert counted.dropped > 400
        assert counted.delivered + counted.dropped == 500
        assert len(keeper.packets) == counted.delivered


def test_k2_a_full_send_buffer_delays_and_loses_nothing(
    wire: tuple[netns.Host, Keeper], poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, full = multicast.batch.send, 0

    def counting(writer: Any, packets: list[bytes], *rest: int) -> int:
        nonlocal full
        count = 0
        try:
            count = send(writer, packets, *rest)
        finally:
            full += count < min(len(packets), multicast.batch.LIMIT)
        return count

    monkeypatch.setattr("multicast.batch.send", counting)
    alice, keeper = wire
    with alice.inside():
        subprocess.run([*TBF, "rate", "8mbit", "burst", "4kb", "limit", "10mb"], check=True)
        sender = Script(numbered(200, 1000), GROUP, PORT, interface="va", poller=poller)
        assert sender.socket is not None
        sender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    settle(poller, lambda: len(keeper.packets) == 200)
    assert keeper.packets == numbered(200, 1000)
    assert sender.closed
    assert full, "the buffer was never full, so this shows nothing"


def test_k3_a_full_transmit_queue_delays_and_loses_nothing(wire: tuple[netns.Host, Keeper], poller: Poller) -> None:
    alice, keeper = wire
    with alice.inside():
        subprocess.run([*TBF, "rate", "4mbit", "burst", "4kb", "limit", "4kb"], check=True)
        sender = Script(numbered(100, 1000), GROUP, PORT, interface="va", poller=poller)
    settle(poller, lambda: len(keeper.packets) == 100)
    assert keeper.packets == numbered(100, 1000)
    assert sender.statistics().full > 0
    with alice.inside():
        assert multicast.sendto(numbered(50, 1000), GROUP, PORT, interface="va") == 50
    settle(poller, lambda: len(keeper.packets) == 150)


@pytest.mark.needs_program("nft")
def test_k4_packets_a_firewall_drops_are_reported_and_counted(wire: tuple[netns.Host, Keeper], poller: Poller) -> None:
    alice, keeper = wire
    rules = f"""
        table inet f {{
            chain out {{
                type filter hook output priority 0;
                ip daddr {GROUP} numgen inc mod 5 == 0 counter drop
            }}
        }}
    """
    with alice.inside():
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        # Of different lengths: what goes out as a bundle passes the firewall as one.
        packets = [b"%05d" % number + bytes(number % 2) for number in range(100)]
        sender = Reporting(packets, GROUP, PORT, interface="va", poller=poller)
        settle(poller, lambda: sender.closed)
    counted = sender.statistics()
    settle(poller, lambda: len(keeper.packets) == counted.packets)
    assert counted.packets + counted.refused == 100
    assert counted.refused == len(sender.errors) > 0
    assert {error.errno for error in sender.errors} == {errno.EPERM}
    assert "firewall" in sender.errors[0].__notes__[0]


def test_k5_a_packet_that_is_too_long_is_refused_before_anything_is_sent(poller: Poller) -> None:
    with Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:
        with pytest.raises(PacketSizeError, match="65508 bytes"):
            multicast.sendto(bytes(65508), GROUP, PORT)
        turns(poller)
        assert keeper.packets == []


@pytest.mark.parametrize("count", [64, 65, 129, 1000])
def test_k6_more_equal_packets_than_a_bundle_holds_all_arrive(
    wire: tuple[netns.Host, Keeper], poller: Poller, count: int
) -> None:
    alice, keeper = wire
    with alice.inside():
        assert multicast.sendto(numbered(count), GROUP, PORT, interface="va") == count
    settle(poller, lambda: len(keeper.packets) == count)
    assert keeper.packets == numbered(count)


def test_k7_bursts_read_by_a_listener_with_a_small_mtu_lose_no_datagram(poller: Poller) -> None:
    with Keeper(ip=GROUP, port=PORT, mtu=100, offload=True, poller=poller) as keeper:
        multicast.sendto(numbered(100, 1000), GROUP, PORT)
        settle(poller, lambda: len(keeper.packets) == 100)
        assert keeper.packets == [packet[:100] for packet in numbered(100, 1000)]
        assert all(addr.truncated for addr in keeper.addrs)
        assert keeper.statistics().truncated == 100


def test_k8_a_port_nobody_listens_at_does_not_spoil_the_next_packet(poller: Poller, free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        assert multicast.sendto("nobody", "127.0.0.1", free_port) == 1
        assert multicast.sendto(["somebody", "again"], "127.0.0.1", receiver.getsockname()[1]) == 2
        assert receiver.recv(100) == b"somebody"
        assert receiver.recv(100) == b"again"


def test_k9_an_error_that_waits_at_a_socket_wakes_a_sender_once_and_not_for_ever(
    wire: tuple[netns.Host, Keeper], poller: Poller
) -> None:
    alice, _ = wire
    with alice.inside():
        sender = Script(iter(lambda: None, 1), GROUP, PORT, interface="va", poller=poller)
        turns(poller)
        assert sender.socket is not None
        # Too long for the wire, and fragments forbidden: the kernel leaves an error in the queue of the socket.
        ip_mtu_discover, pmtudisc_do = 10, 2
        sender.socket.setsockopt(socket.IPPROTO_IP, ip_mtu_discover, pmtudisc_do)
        with pytest.raises(OSError, match="too long"):
            sender.socket.sendto(bytes(3000), (GROUP, PORT))
        calls = 0
        write = sender.handle_write

        def counted() -> None:
            nonlocal calls
            calls += 1
            write()

        sender.handle_write = counted  # type: ignore[method-assign]
        for _ in range(20):
            poller.poll(0.001)
        # Asked again every 10 ms whether it has something, and once for the error; not at each of the polls.
        assert calls < 10
        sender.close()


def test_k10_an_error_without_an_entry_in_the_queue_is_taken_and_ends_the_wakeups(
    wire: tuple[netns.Host, Keeper], poller: Poller
) -> None:
    """A packet socket whose link goes down (packet(7)): EPOLLERR, and nothing to be read from the queue of errors."""
    alice, _ = wire

    class Frames:
        def __init__(self) -> None:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            self.socket.bind(("va", 3))
            self.calls = 0

        def fileno(self) -> int:
            return self.socket.fileno()

        def handle_read(self) -> None:
            self.calls += 1
            multicast.batch.drain_errors(self.socket)
            try:
                while True:
                    self.socket.recv(65536)
            except BlockingIOError:
                pass

    with alice.inside():
        frames = Frames()
    with frames.socket:
        poller.register(frames)
        alice.ip("link set va down")
        settle(poller, lambda: frames.calls)
        turns(poller, 20)
        woken = frames.calls
        turns(poller, 50)
        assert frames.calls == woken
        assert frames.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        poller.unregister(frames)


def test_k11_the_limit_of_memberships_is_named(lab: netns.Lab) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    for number in range(3):
        lab.link(alice, f"va{number}", bob, f"vb{number}", net=number)
    bob.sysctl("ipv4.igmp_max_memberships", 2)
    with bob.inside():
        with pytest.raises(OSError, match="No buffer space") as caught:
            Keeper(ip=GROUP, port=PORT, interface=["vb0", "vb1", "vb2"])
        assert "net.ipv4.igmp_max_memberships is 2" in caught.value.__notes__[0]
        # One socket for each listener: the limit is that of a socket, so three of them have no trouble.
        with Poller() as poller:
            for number in range(3):
                Keeper(ip=GROUP, port=PORT, interface=f"vb{number}", poller=poller)


def test_k12_the_limit_of_sources_is_named() -> None:
    sources = [f"127.0.0.{number}" for number in range(2, 13)]
    with pytest.raises(OSError, match="No buffer space") as caught:
        Keeper(ip="232.90.1.1", port=PORT, interface="lo", sources=sources)
    assert "net.ipv4.igmp_max_msf is 10" in caught.value.__notes__[0]


def test_k13_a_group_may_be_joined_twice_and_by_source_beside(poller: Poller) -> None:
    group = "232.90.1.2"
    with (
        Keeper(ip=group, port=PORT, interface="lo", poller=poller) as first,
        Keeper(ip=group, port=PORT, interface="lo", poller=poller) as second,
        Keeper(ip=group, port=PORT, interface="lo", sources=["127.0.0.1"], poller=poller) as third,
    ):
        multicast.sendto("x", group, PORT, interface="lo")
        settle(poller, lambda: first.packets and second.packets and third.packets)


@pytest.mark.parametrize("options", [{"interface": "10.11.12.13"}, {"interface": "eth7"}, {"interface": 4711}])
def test_k14_what_is_not_of_this_host_is_refused_in_words(options: dict[str, Any]) -> None:
    with pytest.raises(multicast.InterfaceError, match=r"This host has: lo 127\.0\.0\.1"):
        Keeper(ip=GROUP, port=PORT, **options)
    with pytest.raises(multicast.InterfaceError, match=r"This host has: lo 127\.0\.0\.1"):
        multicast.sendto("x", GROUP, PORT, **options)


# The calls in which opening, joining, sending, receiving and closing consist, what each may answer, and of how many
# calls of its kind one fails: numbers that have no factor in common with how many there are in a round, so that in
# some round each place has its turn. What an error of a call that may be made again comes to, is that it is made again.
CALLS = [
    ("socket", "EMFILE", 7),
    ("setsockopt", "ENOBUFS", 13),
    ("setsockopt", "ENODEV", 17),
    ("bind", "EADDRINUSE", 5),
    ("getsockopt", "ENOBUFS", 5),
    ("getsockname", "ENOBUFS", 3),
    ("connect", "ENETUNREACH", 2),
    ("epoll_create1", "EMFILE", 2),
    ("epoll_ctl", "ENOSPC", 11),
    ("epoll_wait", "EBADF", 5),
    ("epoll_wait", "EINTR", 3),
    ("eventfd2", "EMFILE", 2),
    ("timerfd_create", "EMFILE", 2),
    ("sendmmsg", "ENOBUFS", 3),
    ("sendmmsg", "EPERM", 3),
    ("sendmsg", "EPERM", 2),
    ("sendmsg", "EINTR", 2),
    ("recvmmsg", "ENOMEM", 5),
    ("recvmmsg", "EINTR", 3),
]


@pytest.mark.needs_program("strace")
@pytest.mark.parametrize("call,error,period", CALLS, ids=lambda value: str(value))
def test_k15_a_system_call_that_fails_leaves_nothing_behind(call: str, error: str, period: int, tmp_path: Path) -> None:
    program = Path(__file__).with_name("fault_program.py")
    log = tmp_path / "calls"
    command = [
        *("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", "signal=none"),
        *("-e", f"inject={call}:error={error}:when={period}+{period}", sys.executable, str(program), "24"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("this system forbids strace")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    injected = len(re.findall(r"\(INJECTED\)", log.read_text()))
    if not injected and multicast.batch.ENGINE == "python" and "mmsg" in call:
        pytest.skip("the Python form makes other calls")
    assert injected, f"no {call} was made"
    assert result["left"] == []
    # What was raised is the error of the kernel, or one of ours that says more; or nothing, where the call is made
    # again or can be done without.
    assert set(result["raised"]) <= {str(getattr(errno, error)), "InterfaceError"}


def test_k16_an_empty_datagram_is_a_datagram(poller: Poller) -> None:
    with Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:
        assert multicast.sendto([b"", b"x", ""], GROUP, PORT) == 3
        Script([b"", b"end"], GROUP, PORT, poller=poller)
        settle(poller, lambda: b"end" in keeper.packets)
        assert keeper.packets == [b"", b"x", b"", b"", b"end"]


def test_k17_the_time_of_the_first_packet_lies_between_sending_and_reading(poller: Poller) -> None:
    """Where nobody on the host had asked for times before, the kernel may give the first packets that of reading."""
    with Keeper(ip=GROUP, port=PORT, details=True, poller=poller) as keeper:
        times = [time.time_ns()]
        for number in range(5):
            multicast.sendto(str(number), GROUP, PORT)
            times.append(time.time_ns())
        settle(poller, lambda: len(keeper.packets) == 5)
        stamps = [addr.timestamp for addr in keeper.addrs]
        for before, stamp in zip(times, stamps, strict=False):
            assert stamp is not None
            assert before <= stamp <= time.time_ns()
