"""Bursts: what senders hand to the kernel in one piece, and what receivers are handed in one piece."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import netns
import pytest
from helpers import Keeper, turns
from test_batch_c import GROUP, batch, drain, ends, receiver, send_all, sender

import multicast
from multicast import sockets

__all__ = ["batch", "ends"]

UDP_SEGMENT, UDP_GRO = 103, 104


class Watched:
    """A socket that notes what is sent by it, and refuses bursts as a path would."""

    def __init__(self, opened: socket.socket, refuse: int = 0) -> None:
        self._opened = opened
        self._refuse = refuse
        self.bursts: list[int] = []
        self.single = 0

    def fileno(self) -> int:
        return self._opened.fileno()

    def sendto(self, packet: bytes, to: Any) -> int:
        self.single += 1
        return self._opened.sendto(packet, to)

    def sendmsg(self, packets: list[bytes], ancillary: Any, flags: int, to: Any) -> int:
        if self._refuse:
            raise OSError(self._refuse, "refused")
        self.bursts.append(len(packets))
        return self._opened.sendmsg(packets, ancillary, flags, to)


def bursts(opened: socket.socket) -> list[tuple[int, int]]:
    """Read what waits as the kernel gives it: the size of each datagram, and of the packets in it."""
    opened.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    found: list[tuple[int, int]] = []
    while True:
        try:
            data, ancillary, _, _ = opened.recvmsg(65535, 100)
        except BlockingIOError:
            return found
        sizes = [struct.unpack("@i", value)[0] for level, kind, value in ancillary if (level, kind) == (17, UDP_GRO)]
        found.append((len(data), sizes[0] if sizes else len(data)))


# -- sending -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([100] * 64, [(6400, 100)]),
        ([100] * 65, [(6400, 100), (100, 100)]),
        ([100] * 130, [(6400, 100), (6400, 100), (200, 100)]),
        ([100, 100, 40, 100, 100], [(240, 100), (200, 100)]),  # a shorter one ends a burst
        ([100, 100, 101, 101], [(200, 100), (202, 101)]),  # a longer one begins the next
        ([100, 0, 100], [(100, 100), (0, 0), (100, 100)]),
        ([0, 0, 0], [(0, 0), (0, 0), (0, 0)]),
        ([3, 2, 1], [(5, 3), (1, 1)]),
        ([1400] * 50, [(46 * 1400, 1400), (4 * 1400, 1400)]),  # and so do 64 KiB
        ([40000, 40000], [(40000, 40000), (40000, 40000)]),
        ([65507], [(65507, 65507)]),
    ],
    ids=str,
)
def test_runs_of_one_size_go_in_bursts(
    batch: Any,
    free_port: int,
    sizes: list[int],
    expected: list[tuple[int, int]],
) -> None:
    with receiver(port=free_port, bursts=True) as opened:
        sending, to = sender(port=free_port)
        with sending:
            writer = batch.Writer(sending, to, offload=True)
            send_all(batch, writer, [bytes(size) for size in sizes])
            assert bursts(opened) == expected
            assert writer.offload


def test_without_offload_each_packet_goes_alone(batch: Any, free_port: int) -> None:
    with receiver(port=free_port, bursts=True) as opened:
        sending, to = sender(port=free_port)
        with sending:
            send_all(batch, batch.Writer(sending, to), [b"same"] * 100)
            assert bursts(opened) == [(4, 4)] * 100


def test_a_plain_receiver_sees_no_difference(batch: Any, free_port: int) -> None:
    sizes = [1000] * 70 + [999] + [5] * 3 + [0] + [1472] * 90 + [7]
    sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    with receiver(port=free_port) as plain, receiver(port=free_port, bursts=True) as other:
        sending, to = sender(port=free_port)
        with sending:
            send_all(batch, batch.Writer(sending, to, offload=True), sent)
            packets, addresses = drain(batch, batch.Reader(plain, 4096))
            assert packets == sent
            assert set(addresses) == {("127.0.0.1", sending.getsockname()[1])}
            # The other member of the same group, which took bursts, has the same.
            again, sources = drain(batch, batch.Reader(other, 4096, offload=True))
            assert again == sent
            assert sources == addresses


@pytest.mark.parametrize("size", [1000, 2000, 4000])
def test_a_path_too_narrow_for_a_segment_ends_bursts_for_good(
    batch: Any, hosts: tuple[netns.Host, netns.Host], size: int
) -> None:
    near, far = hosts
    with far.inside():
        opened = receiver_on(far, "vb")
    with opened, near.inside():
        sending, to = sockets.open_sender(sockets.Endpoint(GROUP, 5000), interface="va")
        with sending:
            writer = batch.Writer(sending, to, offload=True)
            sent = [bytes([number]) * size for number in range(100)]
            send_all(batch, writer, sent)
            assert drain(batch, batch.Reader(opened, 4096))[0] == sent, "nothing lost, nothing twice"
            assert writer.offload is (size < 1472), "packets of 1500 bytes and more do not go in bursts"
            small = [bytes([number]) * 10 for number in range(100)]
            send_all(batch, writer, small)
            assert drain(batch, batch.Reader(opened, 4096))[0] == small
            assert writer.offload is (size < 1472), "for good"


def receiver_on(host: netns.Host, device: str) -> socket.socket:
    found = multicast.Group.of(GROUP, 5000)
    return sockets.open_receiver(found, sockets.receiving(found, device), rcvbuf=8 << 20)[0]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT])
def test_each_refusal_of_the_path_falls_back_once(
    ends: tuple[socket.socket, socket.socket, tuple[Any, ...]], number: int
) -> None:
    from test_batch_c import PURE

    opened, sending, to = ends
    watched = Watched(sending, number)
    writer = PURE.Writer(watched, to, offload=True)
    packets = [b"%d" % (number % 10) for number in range(150)]
    send_all(PURE, writer, packets)
    assert writer.offload is False
    assert watched.single == 150
    assert drain(PURE, PURE.Reader(opened, 100))[0] == packets


@pytest.mark.needs_program("strace")
@pytest.mark.parametrize("name", ["EINVAL", "EIO", "EMSGSIZE", "ENOPROTOOPT"])
def test_each_refusal_falls_back_in_the_installed_form(name: str) -> None:
    code = """
        import multicast
        from multicast import batch
        with multicast.listen(interface="lo", rcvbuf=1 << 20) as inbox:
            packets = [b"%d" % (number % 10) for number in range(300)]
            assert multicast.sendto(packets, interface="lo") == 300
            while len(inbox) < 300:
                multicast.poll(1)
            assert [next(inbox) for _ in packets] == packets
    """
    inject = f"inject=sendmmsg,sendmsg:error={name}:when=1"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=sendmmsg,sendmsg", "-e", inject]
    done = subprocess.run([*command, *netns.python(code)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_errors_that_are_not_the_path_s_do_not_end_bursts(
    ends: tuple[socket.socket, socket.socket, tuple[Any, ...]],
) -> None:
    from test_batch_c import PURE

    _, sending, to = ends
    writer = PURE.Writer(Watched(sending, errno.ENOBUFS), to, offload=True)
    with pytest.raises(OSError, match="refused"):
        PURE.send(writer, [b"a", b"a"])
    assert writer.offload


# -- the public senders --------------------------------------------------------------------------------------


@pytest.fixture
def taker(free_port: int) -> Iterator[socket.socket]:
    with receiver(port=free_port, bursts=True) as opened:
        yield opened


def test_sendto_bundles_what_is_alike(taker: socket.socket, free_port: int) -> None:
    assert multicast.sendto([b"x" * 10] * 100, GROUP, free_port, interface="lo") == 100
    assert sum(size for size, _ in bursts(taker)) == 1000
    multicast.sendto(iter([b"x" * 10] * 64), GROUP, free_port, interface="lo")
    assert sum(size for size, _ in bursts(taker)) == 640
    multicast.sendto([b"x" * 10] * 3, GROUP, free_port, interface="lo", offload=False)
    assert bursts(taker) == [(10, 10)] * 3
    multicast.sendto(["ä" * 5] * 3, GROUP, free_port, interface="lo")
    assert bursts(taker) == [(30, 10)]


class Equal(multicast.Multicaster):
    """Yields equal packets."""

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(GROUP, interface="lo", **options)
        self.count = count

    def __iter__(self) -> Iterator[bytes]:
        yield from (b"x" * 10 for _ in range(self.count))


@pytest.mark.parametrize("offload", [True, False])
def test_a_multicaster_bundles_what_is_alike(
    taker: socket.socket, free_port: int, poller: multicast.Poller, offload: bool
) -> None:
    source = Equal(200, port=free_port, poller=poller, offload=offload)
    poller.run_until(lambda: source.closed)
    found = bursts(taker)
    assert sum(size for size, _ in found) == 2000
    assert len(found) < 20 if offload else len(found) == 200
    assert source.statistics().packets == 200
    assert source.statistics().bytes == 2000


@pytest.mark.parametrize("pace", [{"interval": 0.01}, {"rate": 8000}], ids=str)
def test_a_paced_sender_is_never_ahead_of_its_pace(
    taker: socket.socket, free_port: int, pace: dict[str, float]
) -> None:
    now = 100.0
    with multicast.Poller(clock=lambda: now) as poller:
        source = Equal(1000, port=free_port, poller=poller, **pace)
        turns(poller)
        sent = len(bursts(taker))
        assert sent == 1
        for _ in range(50):
            now += 0.01
            turns(poller)
            found = bursts(taker)
            assert [size for size, _ in found] == [10] * len(found), "nothing was bundled"
            sent += len(found)
            assert sent <= (now - 100.0) / 0.01 + 1.1
        assert sent == 51
        # What became due while it could not send may go together, but no more than that.
        now += 0.1
        turns(poller, 40)
        assert sum(size for size, _ in bursts(taker)) == 100
        source.close()


@pytest.mark.needs_program("tc")
def test_a_traffic_shaper_gets_no_bursts(lab: netns.Lab) -> None:
    # It would drop a part of one and say nothing: 4 kB of queue do not hold what is sent here.
    near, far = lab.pair()
    with near.inside():
        assert sockets.takes_bursts()
        shaper = ["tbf", "rate", "10mbit", "burst", "2kb", "limit", "4kb"]
        near.run(["tc", "qdisc", "add", "dev", "va", "root", *shaper])
        assert not sockets.takes_bursts()
    with far.inside():
        opened = receiver_on(far, "vb")
    with opened:
        with near.inside():
            assert multicast.sendto([b"x" * 100] * 300, GROUP, 5000, interface="va") == 300
        assert len(drain_slowly(opened, 300)) == 300, "every packet that was accepted arrives"


def drain_slowly(opened: socket.socket, count: int) -> list[bytes]:
    """Read `count` packets that are still on their way."""
    found: list[bytes] = []
    opened.settimeout(10)
    while len(found) < count:
        found.append(opened.recv(4096))
    return found


# -- receiving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("mtu", [4096, 50, 100, 1])
def test_bursts_are_cut_into_their_packets(batch: Any, free_port: int, details: bool, mtu: int) -> None:
    with receiver(port=free_port, bursts=True, details=details) as opened:
        sending, to = sender(port=free_port)
        with sending:
            sent = [bytes([number]) * 100 for number in range(63)] + [b"last"] + [b"", b"y" * 1400, b"z"]
            send_all(batch, batch.Writer(sending, to, offload=True), sent)
            reader = batch.Reader(opened, mtu, details=details, offload=True)
            packets, addresses = batch.receive(reader)
    assert packets == [packet[:mtu] for packet in sent]
    assert [address.truncated for address in addresses] == [len(packet) > mtu for packet in sent]
    assert (reader.packets, reader.bytes) == (len(sent), sum(map(len, packets)))
    assert reader.truncated == sum(len(packet) > mtu for packet in sent)
    if details:
        assert {(address.interface, address.ttl) for address in addresses} == {("lo", 1)}


def test_fewer_datagrams_are_read_at_once_while_they_are_bursts(batch: Any, free_port: int) -> None:
    with receiver(port=free_port, bursts=True) as opened:
        sending, to = sender(port=free_port)
        with sending:
            reader = batch.Reader(opened, 4096, offload=True)
            send_all(batch, batch.Writer(sending, to, offload=True), [b"x" * 10] * 64 * 10)
            counts = []
            while True:
                packets, _ = batch.receive(reader)
                if not packets:
                    break
                counts.append(len(packets))
            assert counts == [640], "it could not know"
            send_all(batch, batch.Writer(sending, to, offload=True), [b"x" * 10] * 64 * 3)
            assert [len(batch.receive(reader)[0]) for _ in range(4)] == [64, 64, 64, 0]
            for _ in range(100):
                sending.sendto(b"x", to)
            assert len(batch.receive(reader)[0]) == 1
            assert len(batch.receive(reader)[0]) == 64


@pytest.mark.parametrize("details", [False, True])
def test_a_listener_filters_packets_and_not_bursts(
    poller: multicast.Poller, free_port: int, details: bool
) -> None:
    sent = [b"%04d" % number for number in range(1000)]
    listeners = [
        Keeper(filter, GROUP, free_port, interface="lo", rcvbuf=8 << 20, poller=poller, offload=True, details=details)
        for filter in (None, rb"...7", lambda packet, addr: packet.endswith(b"7"))
    ]
    multicast.sendto(sent, GROUP, free_port, interface="lo")
    turns(poller, 40)
    assert listeners[0].packets == sent
    assert listeners[1].packets == listeners[2].packets == sent[7::10]
    for listener in listeners:
        found = listener.statistics()
        assert found.delivered + found.filtered == 1000
        assert found.dropped == 0


def test_a_turn_is_a_batch_however_packets_come(poller: multicast.Poller, free_port: int) -> None:
    order: list[str] = []

    class Named(Keeper):
        def handle_packet(self, packet: bytes, addr: multicast.Address) -> object:
            order.append(self.group.address)
            return super().handle_packet(packet, addr)

    poller.budget = 0  # so that each poll is one round
    flooded = Named(ip=GROUP, port=free_port, interface="lo", rcvbuf=8 << 20, poller=poller, offload=True)
    other = Named(ip="239.7.7.8", port=free_port, interface="lo", poller=poller)
    multicast.sendto([b"x" * 10] * 6400, GROUP, free_port, interface="lo")
    multicast.sendto(["hello"], "239.7.7.8", free_port, interface="lo")
    poller.poll()
    assert order.count(GROUP) == 64
    assert order.count("239.7.7.8") == 1
    assert flooded.pending
    assert flooded.statistics().delivered == 64
    turns(poller, 110)
    assert len(flooded.packets) == 6400
    assert other.packets == [b"hello"]
    assert not flooded.pending


def test_a_handler_that_raises_loses_nothing_of_a_burst(poller: multicast.Poller, free_port: int) -> None:
    seen: list[bytes] = []

    class Fragile(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            seen.append(packet)
            if len(seen) % 50 == 0:
                raise LookupError(len(seen))

    Fragile(None, GROUP, free_port, interface="lo", poller=poller, offload=True)
    sent = [b"%04d" % number for number in range(300)]
    multicast.sendto(sent, GROUP, free_port, interface="lo")
    raised = 0
    for _ in range(30):
        try:
            poller.poll()
        except LookupError:
            raised += 1
    assert seen == sent
    assert raised == 6


def test_a_burst_that_finds_no_room_counts_as_one(poller: multicast.Poller, free_port: int) -> None:
    # What the documentation of `dropped` says; with the default, each packet is counted.
    taking = Keeper(ip=GROUP, port=free_port, interface="lo", rcvbuf=4096, poller=poller, offload=True)
    plain = Keeper(ip=GROUP, port=free_port, interface="lo", rcvbuf=4096, poller=poller)
    multicast.sendto([b"x" * 100] * 6400, GROUP, free_port, interface="lo")
    turns(poller, 200)
    found = plain.statistics()
    assert found.delivered + found.dropped == 6400
    found = taking.statistics()
    assert found.dropped > 0
    assert found.delivered + 64 * found.dropped == 6400


@pytest.mark.parametrize("group", [GROUP, "ff15::7:8"])
def test_from_sender_to_listener_in_bursts(poller: multicast.Poller, free_port: int, group: str) -> None:
    listener = Keeper(ip=group, port=free_port, interface="lo", rcvbuf=8 << 20, poller=poller, offload=True)
    sent = [b"%06d" % number for number in range(5000)] + [b"", b"end"]
    multicast.sendto(sent, group, free_port, interface="lo")
    turns(poller, 200)
    assert listener.packets == sent
