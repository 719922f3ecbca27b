"""Many datagrams at once: the same cases for the form in Python and, where it is built, the form in C."""

from __future__ import annotations

import array
import copy
import errno
import os
import pickle
import select
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import helpers
import pytest
from helpers import PATIENCE, need_on_lo
from hypothesis import given
from hypothesis import strategies as st

import multicast
from multicast import PacketSizeError, PacketTypeError
from multicast.sockets import Group, open_receiver, open_sender, receiving, takes_bursts

pytestmark = pytest.mark.lo_alone


def test_a_c_form_of_another_version_is_not_used() -> None:
    other = types.ModuleType("multicast._batch")
    helpers.batch_with(other)
    other.FORM = multicast.batch.FORM + 1  # type: ignore[attr-defined]
    helpers.batch_with(other)


IN_PYTHON = helpers.batch_with(None)
FORMS = [
    pytest.param(IN_PYTHON, id="python"),
    pytest.param(
        multicast.batch, id="c", marks=pytest.mark.skipif(multicast.batch.ENGINE != "c", reason="C form not built")
    ),
]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Any:
    return request.param


class Line:
    """A sender, and a receiver in the group it sends to; with a reader and a writer for them."""

    def __init__(
        self, form: Any, ip: str = "239.1.1.1", *, mtu: int = 4096, offload: bool = False, details: bool = False
    ) -> None:
        family = socket.AF_INET6 if ":" in need_on_lo(ip) else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(("", 0))
            self.group = Group(ip, probe.getsockname()[1])
        bursts = offload and takes_bursts()
        self.receiver, _, _ = open_receiver(
            self.group, receiving(self.group, "lo"), details=details, bursts=bursts, rcvbuf=4_000_000
        )
        self.sender, self.sockaddr = open_sender(self.group, 0, source_ip="::1" if ":" in ip else "127.0.0.1")
        self.reader = form.Reader(self.receiver, mtu, group=ip, interface="lo", details=details, offload=bursts)
        self.writer = form.Writer(self.sender, self.sockaddr, offload=offload and takes_bursts())

    def put(self, *packets: bytes) -> None:
        """Send without the form under test."""
        for packet in packets:
            self.sender.sendto(packet, self.sockaddr)

    def got(self) -> list[bytes]:
        """Receive without the form under test."""
        packets = []
        while True:
            try:
                packets.append(self.receiver.recv(70000))
            except BlockingIOError:
                return packets

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


@contextmanager
def line(form: Any, *args: Any, **options: Any) -> Iterator[Line]:
    line = Line(form, *args, **options)
    try:
        yield line
    finally:
        line.close()


# -- receiving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", ["239.1.1.1", "ff15::1"])
@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_packets_are_received_in_order_with_where_they_came_from(
    form: Any, ip: str, details: bool, offload: bool
) -> None:
    with line(form, ip, details=details, offload=offload) as wire:
        began = time.time_ns()
        wire.put(b"one", b"", b"three")
        packets, addresses = form.receive(wire.reader)
        assert packets == [b"one", b"", b"three"]
        assert [type(packet) for packet in packets] == [bytes] * 3
        assert [tuple(address) for address in addresses] == [wire.sender.getsockname()] * 3
        for address in addresses:
            assert isinstance(address, form.Address)
            assert (address.host, address.port) == wire.sender.getsockname()[:2]
            assert (address.group, address.interface, address.truncated) == (ip, "lo", False)
            if details:
                assert address.ttl == 0
                assert began - 10**9 < address.timestamp < time.time_ns() + 10**9
            else:
                assert (address.ttl, address.timestamp) == (None, None)
        assert form.receive(wire.reader) == ([], [])
        assert (wire.reader.packets, wire.reader.bytes, wire.reader.truncated) == (3, 8, 0)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("details", [False, True])
def test_longer_packets_are_cut_to_mtu_and_marked(form: Any, details: bool, offload: bool) -> None:
    with line(form, mtu=4, details=details, offload=offload) as wire:
        wire.put(b"12345", b"1234", b"", b"1234567890", b"123")
        packets, addresses = form.receive(wire.reader)
        assert packets == [b"1234", b"1234", b"", b"1234", b"123"]
        assert [address.truncated for address in addresses] == [True, False, False, True, False]
        assert (wire.reader.packets, wire.reader.bytes, wire.reader.truncated) == (5, 15, 2)


@pytest.mark.parametrize("ip", ["239.1.1.1", "ff15::1"])
@pytest.mark.parametrize("offload", [False, True])
def test_the_address_that_all_packets_have_is_told(form: Any, ip: str, offload: bool) -> None:
    with line(form, ip, mtu=4, offload=offload) as wire, socket.socket(wire.sender.family, socket.SOCK_DGRAM) as other:
        other.bind((wire.sender.getsockname()[0], 0))
        assert wire.reader.origin is None
        wire.put(b"one", b"", b"two")
        _, addresses = form.receive(wire.reader)
        assert wire.reader.origin is addresses[0]
        assert all(address is addresses[0] for address in addresses)
        wire.put(b"one", b"longer")
        form.receive(wire.reader)
        assert wire.reader.origin is None, "the address says that a packet was cut"
        wire.put(b"one")
        other.sendto(b"two", wire.receiver.getsockname())
        wire.put(b"three")
        _, addresses = form.receive(wire.reader)
        assert wire.reader.origin is None
        assert [tuple(address) for address in addresses[::2]] == [wire.sender.getsockname()] * 2
        assert tuple(addresses[1]) == other.getsockname()
        wire.put(b"four")
        form.receive(wire.reader)
        assert wire.reader.origin == wire.sender.getsockname()
        form.receive(wire.reader)
        assert wire.reader.origin is None, "nothing came"


def test_packets_with_details_have_an_address_each(form: Any) -> None:
    with line(form, details=True) as wire:
        wire.put(b"one", b"two")
        form.receive(wire.reader)
        assert wire.reader.origin is None


@pytest.mark.parametrize("mtu", [65507, 65535, 65536, 10**9])
def test_the_longest_packet_comes_whole(form: Any, mtu: int) -> None:
    with line(form, mtu=mtu) as wire:
        packet = os.urandom(65507)
        wire.put(packet)
        packets, addresses = form.receive(wire.reader)
        assert packets == [packet]
        assert not addresses[0].truncated


def test_at_most_a_batch_is_received_at_once(form: Any) -> None:
    with line(form) as wire:
        wire.put(*(b"%d" % number for number in range(150)))
        assert form.LIMIT == 64
        for expected in (range(64), range(64, 128), range(128, 150), range(0)):
            packets, addresses = form.receive(wire.reader)
            assert packets == [b"%d" % number for number in expected]
            assert len(addresses) == len(packets)


@pytest.mark.parametrize("limit", [1, 2, 63, 64])
def test_fewer_can_be_asked_for(form: Any, limit: int) -> None:
    with line(form) as wire:
        wire.put(*(b"%d" % number for number in range(100)))
        packets, _ = form.receive(wire.reader, limit)
        assert packets == [b"%d" % number for number in range(limit)]


def test_an_error_of_the_socket_is_raised(form: Any) -> None:
    with line(form) as wire:
        wire.receiver.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            form.receive(wire.reader)


def test_an_error_that_waits_at_the_socket_is_raised_and_what_waits_behind_it_received(form: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect(nobody)
        asking.send(b"is anybody there?")
        reader = form.Reader(asking, 100)
        with pytest.raises(ConnectionRefusedError):
            form.receive(reader)
        assert form.receive(reader) == ([], [])


def test_a_packet_that_is_kept_does_not_change(form: Any) -> None:
    with line(form) as wire:
        kept = []
        for number in range(5):
            wire.put(bytes([number]) * 1000)
            kept += form.receive(wire.reader)[0]
        assert kept == [bytes([number]) * 1000 for number in range(5)]


def test_many_senders_are_told_apart(form: Any) -> None:
    with line(form) as wire:
        made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
        try:
            for number, one in enumerate(made):
                one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
                one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
                one.bind((f"127.0.0.{1 + number % 7}", 0))
            for _ in range(2):
                for one in made:
                    one.sendto(b"x", wire.sockaddr)
                assert form.receive(wire.reader)[1] == [one.getsockname() for one in made]
        finally:
            for one in made:
                one.close()


def test_threads_receive_side_by_side(form: Any) -> None:
    wrong: list[object] = []

    def run(mark: bytes) -> None:
        with line(form, mtu=3000) as wire:
            for size in range(1, 200):
                sent = [mark * (size + extra) for extra in range(5)]
                wire.put(*sent)
                packets, _ = form.receive(wire.reader)
                if packets != sent:
                    wrong.append((mark, size, packets))

    threads = [threading.Thread(target=run, args=(mark,)) for mark in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == []


@pytest.mark.parametrize("mtu", [0, -1])
def test_a_reader_keeps_at_least_a_byte(form: Any, mtu: int) -> None:
    with line(form) as wire, pytest.raises(ValueError, match="mtu"):
        form.Reader(wire.receiver, mtu)


# -- sending -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", ["239.1.1.1", "ff15::1"])
@pytest.mark.parametrize("offload", [False, True])
def test_packets_are_sent_in_order_up_to_a_batch(form: Any, ip: str, offload: bool) -> None:
    with line(form, ip, offload=offload) as wire:
        wire.receiver.setsockopt(socket.IPPROTO_UDP, 104, 0)  # UDP_GRO: what is read here is not to be joined
        packets = [b"%d" % number for number in range(100)]
        sent = form.send(wire.writer, packets)
        assert sent in ((64, 100) if offload else (64,)), "a batch is of so many bursts then"
        assert wire.got() == packets[:sent]
        assert form.send(wire.writer, packets, 64) == 36
        assert wire.got() == packets[64:]
        assert form.send(wire.writer, packets, 99) == 1
        assert wire.got() == packets[99:]
        assert form.send(wire.writer, packets, 100) == 0
        assert form.send(wire.writer, []) == 0


@pytest.mark.parametrize("offload", [False, True])
def test_a_packet_that_is_refused_is_told_when_it_is_the_first(form: Any, offload: bool) -> None:
    with line(form, offload=offload) as wire:
        wire.receiver.setsockopt(socket.IPPROTO_UDP, 104, 0)
        packets = [b"a", b"b", bytes(65508), b"c"]
        assert form.send(wire.writer, packets) == 2
        with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
            form.send(wire.writer, packets, 2)
        assert form.send(wire.writer, packets, 3) == 1
        assert wire.got() == [b"a", b"b", b"c"]


def test_sending_from_a_closed_socket_is_an_error(form: Any) -> None:
    with line(form) as wire:
        wire.sender.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            form.send(wire.writer, [b"x"])


# -- bursts --------------------------------------------------------------------------------------------------

packets_of_any_size = st.lists(
    st.one_of(
        st.integers(0, 40),
        st.sampled_from([100, 100, 100, 1000, 1000, 1472, 1473, 4095, 4096, 4097, 9000]),
    ),
    max_size=64,
).map(lambda sizes: [bytes([number]) * size for number, size in enumerate(sizes)])


@pytest.mark.parametrize("sends", FORMS)
@pytest.mark.parametrize("receives", FORMS)
@pytest.mark.parametrize("offload", [False, True])
def test_what_is_sent_is_received_in_whatever_runs_it_went(sends: Any, receives: Any, offload: bool) -> None:
    with line(receives, offload=offload, mtu=4096) as wire:
        writers = [
            sends.Writer(wire.sender, wire.sockaddr, offload=False),
            sends.Writer(wire.sender, wire.sockaddr, offload=takes_bursts()),
        ]

        @given(packets_of_any_size, st.sampled_from([0, 1]))
        def check(packets: list[bytes], which: int) -> None:
            done = 0
            while done < len(packets):
                done += sends.send(writers[which], packets, done)
            got: list[bytes] = []
            cut: list[bool] = []
            while True:
                some, addresses = receives.receive(wire.reader)
                if not some:
                    break
                got += some
                cut += [address.truncated for address in addresses]
            assert got == [packet[:4096] for packet in packets]
            assert cut == [len(packet) > 4096 for packet in packets]

        check()


def test_a_burst_that_the_path_refuses_goes_packet_by_packet(form: Any) -> None:
    if not takes_bursts():
        pytest.skip("this kernel takes no bursts")
    with line(form, offload=True) as wire:
        wire.receiver.setsockopt(socket.IPPROTO_UDP, 104, 0)
        wire.sender.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK, with which the kernel refuses bursts
        packets = [b"%d" % number for number in range(10)]
        done = 0
        while done < 10:
            done += form.send(wire.writer, packets, done)
        assert wire.got() == packets
        assert not wire.writer.offload


# -- packets as they go on the wire --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packet, data",
    [
        ("größe", "größe".encode()),
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"a.b.c.")[::2], b"abc"),
        (array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
        ("", b""),
    ],
    ids=helpers.name,
)
def test_text_goes_as_utf_8_and_buffers_as_they_are(form: Any, packet: object, data: bytes) -> None:
    assert form.encode(packet) == data
    assert type(form.encode(packet)) is bytes
    into: list[bytes] = []
    form.take(iter([packet, packet]), into, 5, 65507)
    assert into == [data, data]


def test_a_subclass_of_bytes_or_str_is_a_packet(form: Any) -> None:
    class Bytes(bytes):
        pass

    class Text(str):
        __slots__ = ()

    into: list[bytes] = []
    form.take(iter([Bytes(b"one"), Text("two")]), into, 5, 65507)
    assert into == [b"one", b"two"]


@pytest.mark.parametrize("bad", [5, 1.5, object(), ["x"], ("x",)], ids=helpers.name)
def test_anything_else_is_no_packet(form: Any, bad: object) -> None:
    with pytest.raises(PacketTypeError, match="a packet is bytes-like or text"):
        form.encode(bad)
    into: list[bytes] = []
    with pytest.raises(PacketTypeError):
        form.take(iter([b"before", bad, b"after"]), into, 5, 65507)
    assert into == [b"before"]


def test_a_packet_that_is_too_long_is_refused_with_the_limit(form: Any) -> None:
    assert len(form.encode(bytes(10), 10)) == 10
    with pytest.raises(PacketSizeError, match="11 bytes do not fit in one UDP packet"):
        form.encode(bytes(11), 10)
    with pytest.raises(PacketSizeError):
        form.encode("ä" * 6, 10)
    into: list[bytes] = []
    with pytest.raises(PacketSizeError):
        form.take(iter([bytes(10), bytes(11)]), into, 5, 10)
    assert into == [bytes(10)]


@pytest.mark.parametrize("longest, whole", [(65507, 1472), (65527, 1452)])
def test_what_is_too_long_is_told_how_much_each_family_sends_in_one_piece(
    form: Any, longest: int, whole: int
) -> None:
    with pytest.raises(PacketSizeError, match=f"{longest} at most; up to {whole} avoid fragments"):
        form.encode(bytes(longest + 1), longest)


def test_a_none_ends_what_is_taken(form: Any) -> None:
    with pytest.raises(PacketTypeError, match="a packet is bytes-like or text, not NoneType"):
        form.encode(None)
    source, into = iter(["a", b"b", None, "c", None]), [b"0"]
    assert form.take(source, into, 10, 65507) is True
    assert into == [b"0", b"a", b"b"]
    assert form.take(source, into, 1, 65507) is False
    assert into[3:] == [b"c"]
    assert form.take(source, into, 10, 65507) is True
    assert form.take(source, into, 10, 65507) is False


def test_no_more_are_taken_than_asked_for(form: Any) -> None:
    numbers = map(str, range(10))
    into = [b"first"]
    form.take(numbers, into, 3, 65507)
    assert into == [b"first", b"0", b"1", b"2"]
    assert next(numbers) == "3"
    form.take(numbers, into, 100, 65507)
    assert len(into) == 10
    form.take(numbers, into, 100, 65507)
    assert len(into) == 10


def test_what_an_iterator_raises_comes_through_after_what_it_yielded(form: Any) -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    into: list[bytes] = []
    with pytest.raises(KeyboardInterrupt):
        form.take(failing(), into, 5, 65507)
    assert into == [b"a"]


# -- addresses -----------------------------------------------------------------------------------------------


def test_an_address_is_a_tuple_with_attributes(form: Any) -> None:
    for sockaddr in (("10.0.0.1", 5), ("fe80::1", 5, 0, 2)):
        address = form.Address(sockaddr, "239.1.1.1", interface="eth0", ttl=7, timestamp=1, truncated=True, dscp=46)
        assert address == sockaddr
        assert hash(address) == hash(sockaddr)
        assert len(address) == len(sockaddr)
        assert (address.host, address.port) == sockaddr[:2]
        assert (address.group, address.interface, address.ttl, address.timestamp, address.truncated, address.dscp) == (
            "239.1.1.1",
            "eth0",
            7,
            1,
            True,
            46,
        )
        plain = form.Address(sockaddr)
        assert (plain.group, plain.interface, plain.ttl, plain.timestamp, plain.truncated, plain.dscp) == (
            None,
            None,
            None,
            None,
            False,
            None,
        )


def test_an_address_can_be_copied_and_pickled() -> None:
    address = multicast.Address(("10.0.0.1", 5), "239.1.1.1", "eth0", 7, 1, True, 46)
    for again in (pickle.loads(pickle.dumps(address)), copy.copy(address), copy.deepcopy(address)):  # noqa: S301
        assert again == address
        assert type(again) is type(address)
        assert (again.group, again.interface, again.ttl, again.timestamp, again.truncated, again.dscp) == (
            "239.1.1.1",
            "eth0",
            7,
            1,
            True,
            46,
        )


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_nothing_is_kept_of_what_went_through(form: Any, details: bool, offload: bool) -> None:
    with line(form, mtu=50, details=details, offload=offload) as wire:

        def once() -> None:
            packets: list[bytes] = []
            form.take((b"%d" % number * 20 for number in range(40)), packets, 40, 65507)
            assert form.send(wire.writer, packets) == 40
            left = 40
            while left:
                left -= len(form.receive(wire.reader)[0])
            for bad in ([5], [bytes(70000)]):
                try:
                    form.take(iter(bad), packets, 5, 65507)
                except (PacketTypeError, PacketSizeError):
                    pass
            try:
                form.send(wire.writer, [bytes(65508)])
            except OSError:
                pass

        for _ in range(20):
            once()
        before = sys.getallocatedblocks()
        for _ in range(200):
            once()
        assert sys.getallocatedblocks() - before < 200, "a block or more for each round"


def test_errors_waiting_at_a_socket_can_be_taken(form: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        asking.sendto(b"is anybody there?", nobody)
        errors = select.poll()
        errors.register(asking, 0)
        assert errors.poll(PATIENCE * 1000)
        form.drain_errors(asking)
        assert errors.poll(0) == []
        asking.sendto(b"no error is left", nobody)
