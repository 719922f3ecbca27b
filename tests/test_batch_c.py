"""`multicast.batch` in both of its forms: the same cases for the one in C and the one in Python."""

from __future__ import annotations

import copy
import errno
import importlib
import importlib.util
import os
import pickle
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import netns
import pytest

import multicast
from multicast import sockets

GROUP = "239.7.7.7"
DETAILS = ("group", "interface", "ttl", "timestamp", "truncated", "dscp")


def _load(name: str, c: bool) -> ModuleType:
    """Return a `multicast.batch` of its own in one of the two forms."""
    kept = sys.modules.get("multicast._batch")
    origin = importlib.import_module("multicast.batch").__file__
    assert origin is not None
    spec = importlib.util.spec_from_file_location(f"multicast.{name}", origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if not c:
        sys.modules["multicast._batch"] = None  # type: ignore[assignment]
    try:
        spec.loader.exec_module(module)
    finally:
        if kept is not None:
            sys.modules["multicast._batch"] = kept
        else:
            sys.modules.pop("multicast._batch", None)
    return module


PURE = _load("batch_pure", c=False)
BUILT = importlib.util.find_spec("multicast._batch") is not None


@pytest.fixture(params=["c", "python"])
def batch(request: pytest.FixtureRequest) -> Any:
    """The module in each form; what it returns is Any, for the types are those of the installed one."""
    if request.param == "python":
        return PURE
    if not BUILT:
        pytest.skip("the C module is not built")
    return importlib.import_module("multicast.batch")


def receiver(group: str = GROUP, port: int = 5000, **options: Any) -> socket.socket:
    """A joined socket, with room for all that a test sends."""
    found = multicast.Group.of(group, port)
    options = {"details": False, "bursts": False} | options
    opened, _, _ = sockets.open_receiver(found, sockets.receiving(found, "lo"), rcvbuf=8 << 20, **options)
    return opened


def sender(group: str = GROUP, port: int = 5000) -> tuple[socket.socket, tuple[Any, ...]]:
    return sockets.open_sender(sockets.Endpoint(group, port), interface="lo")


def drain(batch: Any, reader: Any) -> tuple[list[bytes], list[Any]]:
    packets: list[bytes] = []
    addresses: list[Any] = []
    while True:
        some, places = batch.receive(reader)
        assert len(some) == len(places)
        if not some:
            return packets, addresses
        packets += some
        addresses += places


def send_all(batch: Any, writer: Any, packets: list[bytes]) -> None:
    done = 0
    while done < len(packets):
        done += batch.send(writer, packets, done)


@pytest.fixture
def ends(free_port: int) -> Iterator[tuple[socket.socket, socket.socket, tuple[Any, ...]]]:
    """A receiving socket, a sending one, and where it sends."""
    with receiver(port=free_port) as opened:
        sending, to = sender(port=free_port)
        with sending:
            yield opened, sending, to


# -- which form ----------------------------------------------------------------------------------------------


def test_the_engine_is_named() -> None:
    assert ("c" if BUILT else "python") == importlib.import_module("multicast.batch").ENGINE
    assert PURE.ENGINE == "python"


def test_a_python_without_the_c_module_gets_the_other_form() -> None:
    code = """
        import sys
        sys.modules["multicast._batch"] = None
        import multicast, multicast.batch
        assert multicast.batch.ENGINE == "python"
        with multicast.listen(interface="lo") as inbox:
            multicast.sendto(["one", "two"], interface="lo")
            assert [next(inbox), next(inbox)] == [b"one", b"two"]
    """
    subprocess.run(netns.python(code), timeout=20, check=True)


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sockaddr", [("192.0.2.1", 7), ("fe80::1", 7, 5, 2), ()])
def test_an_address_is_the_tuple_of_recvfrom(batch: Any, sockaddr: tuple[Any, ...]) -> None:
    address = batch.Address(sockaddr)
    assert address == sockaddr
    assert sockaddr == address
    assert hash(address) == hash(sockaddr)
    assert repr(address) == repr(sockaddr)
    assert (*address,) == sockaddr
    assert len(address) == len(sockaddr)
    assert isinstance(address, tuple)
    assert address[:1] == sockaddr[:1]
    assert {sockaddr: 1}.get(address) == 1
    assert [getattr(address, name) for name in DETAILS] == [None, None, None, None, False, None]


def test_an_address_knows_more_than_the_tuple(batch: Any) -> None:
    address = batch.Address(("192.0.2.1", 7), "239.1.1.1", "eth0", 255, 2**62, True, 63)
    assert (address.host, address.port) == ("192.0.2.1", 7)
    assert [getattr(address, name) for name in DETAILS] == ["239.1.1.1", "eth0", 255, 2**62, True, 63]
    named = batch.Address(sockaddr=["h", 1], group="g", interface="i", ttl=0, timestamp=0, truncated=False, dscp=0)
    assert [getattr(named, name) for name in DETAILS] == ["g", "i", 0, 0, False, 0]
    assert named == ("h", 1)


def test_addresses_are_copied_and_pickled_whole() -> None:
    for address in (
        multicast.Address(("192.0.2.1", 7), "239.1.1.1", "eth0", 255, 1, True, 46),
        multicast.Address(("fe80::1", 7, 5, 2)),
    ):
        for again in (copy.copy(address), copy.deepcopy(address), pickle.loads(pickle.dumps(address))):  # noqa: S301
            assert type(again) is multicast.Address
            assert again == address
            assert [getattr(again, name) for name in DETAILS] == [getattr(address, name) for name in DETAILS]


def test_an_address_needs_something_to_be_made_of(batch: Any) -> None:
    with pytest.raises(TypeError):
        batch.Address()
    with pytest.raises(TypeError):
        batch.Address(5)
    with pytest.raises(TypeError):
        batch.Address(("h", 1), colour="red")


# -- receiving -----------------------------------------------------------------------------------------------


def test_nothing_waiting_is_two_empty_lists(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]]
) -> None:
    assert batch.receive(batch.Reader(ends[0], 100)) == ([], [])


def test_packets_come_in_order_with_their_source(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]]
) -> None:
    opened, sending, to = ends
    sent = [bytes([number]) * number for number in range(200)]
    for packet in sent:
        sending.sendto(packet, to)
    reader = batch.Reader(opened, 4096, group=GROUP, interface="lo")
    packets, addresses = drain(batch, reader)
    assert packets == sent
    assert all(type(packet) is bytes for packet in packets)
    assert all(type(address) is batch.Address for address in addresses)
    assert set(addresses) == {("127.0.0.1", sending.getsockname()[1])}
    assert {(address.group, address.interface, address.ttl, address.timestamp) for address in addresses} == {
        (GROUP, "lo", None, None)
    }
    assert len({id(address) for address in addresses}) == 1, "it is made once"
    assert (reader.packets, reader.bytes, reader.truncated) == (200, sum(map(len, sent)), 0)


@pytest.mark.parametrize("limit", [1, 5, 64, 1000])
def test_at_most_a_batch_is_read_at_once(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]], limit: int
) -> None:
    opened, sending, to = ends
    for number in range(70):
        sending.sendto(b"%d" % number, to)
    packets, _ = batch.receive(batch.Reader(opened, 100), limit)
    assert packets == [b"%d" % number for number in range(min(limit, 64))]


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("mtu", [1, 63, 64, 65, 1000, 65535, 1 << 40])
def test_longer_packets_are_cut_and_marked(
    batch: Any, free_port: int, mtu: int, details: bool, offload: bool
) -> None:
    with receiver(port=free_port, details=details, bursts=offload) as opened:
        sending, to = sender(port=free_port)
        with sending:
            sent = [b"x" * size for size in (0, 1, 63, 64, 65, 66, 999, 1000, 1001, 5000, 65507, 0, 2)]
            for packet in sent:
                sending.sendto(packet, to)
            reader = batch.Reader(opened, mtu, details=details, offload=offload)
            packets, addresses = drain(batch, reader)
    assert packets == [packet[:mtu] for packet in sent]
    assert [address.truncated for address in addresses] == [len(packet) > mtu for packet in sent]
    assert reader.truncated == sum(len(packet) > mtu for packet in sent)
    assert reader.bytes == sum(map(len, packets))


@pytest.mark.parametrize("group", [GROUP, "ff15::7:7"])
def test_details_tell_group_interface_ttl_dscp_and_time(batch: Any, free_port: int, group: str) -> None:
    with receiver(group, free_port, details=True) as opened:
        sending, to = sockets.open_sender(sockets.Endpoint(group, free_port), 9, interface="lo")
        with sending:
            sockets.set_dscp(sending, 46)
            sending.sendto(b"first", to)  # its time is that of reading, for the kernel has only begun to note it
            drain(batch, batch.Reader(opened, 100, details=True))
            for number in range(3):
                sending.sendto(b"%d" % number, to)
            packets, addresses = drain(batch, batch.Reader(opened, 100, details=True))
            port = sending.getsockname()[1]
    assert packets == [b"0", b"1", b"2"]
    host = "::1" if ":" in group else "127.0.0.1"
    for address in addresses:
        assert (address.host, address.port) == (host, port)
        assert len(address) == (4 if ":" in group else 2)
        assert (address.group, address.interface, address.ttl, address.truncated) == (group, "lo", 9, False)
        assert address.dscp == 46
    now = time.time_ns()
    assert all(now - 60 * 10**9 < address.timestamp <= now for address in addresses)


def test_interleaved_sources_are_told_apart(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]]
) -> None:
    opened, _, to = ends
    senders = [sender(port=to[1])[0] for _ in range(20)]
    try:
        sent = []
        for number in range(200):
            which = senders[number * 7 % 20]
            which.sendto(b"%d" % (number * 7 % 20), to)
            sent.append(b"%d" % (number * 7 % 20))
        packets, addresses = drain(batch, batch.Reader(opened, 100))
        ports = [one.getsockname()[1] for one in senders]
    finally:
        for one in senders:
            one.close()
    assert packets == sent
    assert [address.port for address in addresses] == [ports[int(packet)] for packet in sent]
    # Made once each, but for two that may have one place in the table of the C form.
    assert len({id(address) for address in addresses}) < 100


def test_readers_of_different_groups_do_not_mix_up_addresses(batch: Any, free_port: int) -> None:
    groups = [f"239.7.8.{number}" for number in range(1, 40)]
    opened = [receiver(group, free_port) for group in groups]
    sending, _ = sender(port=free_port)
    try:
        readers = [batch.Reader(each, 100, group=group) for each, group in zip(opened, groups, strict=True)]
        for _ in range(2):
            for group in groups:
                sending.sendto(group.encode(), (group, free_port))
            for group, reader in zip(groups, readers, strict=True):
                packets, addresses = batch.receive(reader)
                assert packets == [group.encode()]
                assert addresses[0].group == group
    finally:
        sending.close()
        for each in opened:
            each.close()


def test_a_unicast_socket_is_read_alike(batch: Any) -> None:
    with sockets.open_unicast("127.0.0.1", 0, details=True) as opened, socket.socket(type=socket.SOCK_DGRAM) as other:
        for _ in range(2):
            other.sendto(b"hello", ("127.0.0.1", opened.getsockname()[1]))
            packets, addresses = batch.receive(batch.Reader(opened, 100, details=True))
        assert packets == [b"hello"]
        assert addresses == [("127.0.0.1", other.getsockname()[1])]
        assert (addresses[0].group, addresses[0].interface) == ("127.0.0.1", "lo")


def test_a_closed_socket_is_an_error(batch: Any, free_port: int) -> None:
    opened = receiver(port=free_port)
    reader = batch.Reader(opened, 100)
    opened.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        batch.receive(reader)
    sending, to = sender(port=free_port)
    writer = batch.Writer(sending, to)
    sending.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        batch.send(writer, [b"x"])


def test_an_error_of_the_socket_is_raised_once(batch: Any) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        opened.setblocking(False)
        opened.connect(closed)
        opened.send(b"anybody there?")
        reader = batch.Reader(opened, 100)
        with pytest.raises(ConnectionRefusedError):
            batch.receive(reader)
        assert batch.receive(reader) == ([], [])


@pytest.mark.parametrize("mtu", [0, -1])
def test_a_reader_keeps_a_byte_at_least(batch: Any, mtu: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as opened, pytest.raises(ValueError, match="mtu"):
        batch.Reader(opened, mtu)


# -- taking and sending --------------------------------------------------------------------------------------


def test_packets_are_taken_as_they_go_on_the_wire(batch: Any) -> None:
    into: list[bytes] = [b"before"]
    source = iter([b"a", "é", bytearray(b"c"), memoryview(b"d"), b""])
    batch.take(source, into, 3, 10)
    assert into == [b"before", b"a", "é".encode(), b"c"]
    batch.take(source, into, 10, 10)
    assert into[4:] == [b"d", b""]
    batch.take(source, into, 10, 10)
    assert len(into) == 6


@pytest.mark.parametrize(
    "wrong, error",
    [(5, multicast.PacketTypeError), (b"x" * 11, multicast.PacketSizeError), ("x" * 11, multicast.PacketSizeError)],
)
def test_what_came_before_a_mistake_is_kept(batch: Any, wrong: Any, error: type[Exception]) -> None:
    into: list[bytes] = []
    source = iter([b"a", b"b", wrong, b"c"])
    with pytest.raises(error):
        batch.take(source, into, 10, 10)
    assert into == [b"a", b"b"]
    assert list(source) == [b"c"]


def test_an_iterator_that_raises_is_heard(batch: Any) -> None:
    def packets() -> Iterator[bytes]:
        yield b"a"
        raise LookupError("no more")

    into: list[bytes] = []
    with pytest.raises(LookupError, match="no more"):
        batch.take(packets(), into, 10, 10)
    assert into == [b"a"]


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_sent_arrives(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]], offload: bool
) -> None:
    opened, sending, to = ends
    generator = random.Random(7)
    sent: list[bytes] = []
    while len(sent) < 3000:
        sent += [generator.randbytes(generator.choice([0, 1, 64, 64, 64, 700, 1472]))] * generator.choice([1, 2, 70])
    writer = batch.Writer(sending, to, offload=offload)
    reader = batch.Reader(opened, 4096)
    arrived: list[bytes] = []
    done = 0
    while done < len(sent):
        done += batch.send(writer, sent, done)
        arrived += drain(batch, reader)[0]
    assert arrived == sent
    assert writer.offload is offload


def test_ipv6_is_sent_alike(batch: Any, free_port: int) -> None:
    with receiver("ff15::7:7", free_port) as opened:
        sending, to = sender("ff15::7:7", free_port)
        with sending:
            send_all(batch, batch.Writer(sending, to, offload=True), [b"six"] * 100)
            packets, addresses = drain(batch, batch.Reader(opened, 100))
            assert packets == [b"six"] * 100
            assert addresses[0] == ("::1", sending.getsockname()[1], 0, 0)


def test_a_full_socket_takes_what_it_has_room_for(batch: Any, lab: netns.Lab) -> None:
    near, _ = lab.pair()
    with near.inside():
        shaper = ["tbf", "rate", "1mbit", "burst", "2kb", "limit", "10mb"]
        near.run(["tc", "qdisc", "add", "dev", "va", "root", *shaper])
        sending, to = sockets.open_sender(sockets.Endpoint(GROUP, 5000), interface="va")
        with sending:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            writer = batch.Writer(sending, to)
            packets = [b"x" * 1000] * 64
            count = batch.send(writer, packets)
            assert 0 < count < 64
            with pytest.raises(BlockingIOError):
                batch.send(writer, packets, count)


def test_an_error_after_some_were_sent_waits_for_the_next_call(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]]
) -> None:
    opened, sending, to = ends
    writer = batch.Writer(sending, to)
    packets = [b"a", b"b", b"x" * 65508, b"c"]
    assert batch.send(writer, packets) == 2
    with pytest.raises(OSError, match="Message too long") as caught:
        batch.send(writer, packets, 2)
    assert caught.value.errno == errno.EMSGSIZE
    assert batch.send(writer, packets, 3) == 1
    assert drain(batch, batch.Reader(opened, 10))[0] == [b"a", b"b", b"c"]


def test_nothing_to_send_is_nothing_sent(
    batch: Any, ends: tuple[socket.socket, socket.socket, tuple[Any, ...]]
) -> None:
    _, sending, to = ends
    writer = batch.Writer(sending, to)
    assert batch.send(writer, []) == 0
    assert batch.send(writer, [b"a"], 1) == 0
    assert batch.send(writer, [b"a"], 5) == 0


# -- what the C form checks before it touches memory ---------------------------------------------------------


@pytest.mark.skipif(not BUILT, reason="the C module is not built")
class TestArguments:
    def test_receive_takes_a_reader(self) -> None:
        from multicast import _batch

        with socket.socket(type=socket.SOCK_DGRAM) as opened:
            for wrong in ((), (1,), (PURE.Reader(opened, 5),), (_batch.Reader(opened, 5), 1, 1)):
                with pytest.raises(TypeError):
                    _batch.receive(*wrong)
            with pytest.raises(TypeError):
                _batch.receive(_batch.Reader(opened, 5), "many")  # type: ignore[arg-type]
            with pytest.raises(OverflowError):
                _batch.receive(_batch.Reader(opened, 5), 1 << 80)

    def test_a_reader_without_a_socket_reads_nothing(self) -> None:
        from multicast import _batch

        with pytest.raises(ValueError, match="never given a socket"):
            _batch.receive(_batch.Reader.__new__(_batch.Reader))
        with pytest.raises(ValueError, match="never given a socket"):
            _batch.send(_batch.Writer.__new__(_batch.Writer), [b"x"])
        with pytest.raises(TypeError):
            _batch.Reader()  # type: ignore[call-arg]
        with socket.socket(type=socket.SOCK_DGRAM) as opened:
            reader = _batch.Reader(opened, 5)
            with pytest.raises(TypeError, match="once"):
                reader.__init__(opened, 6)

    def test_send_takes_lists_of_bytes(self) -> None:
        from multicast import _batch

        sending, to = sender()
        with sending:
            writer = _batch.Writer(sending, to)
            with pytest.raises(TypeError):
                _batch.send(writer, (b"x",))  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                _batch.send(writer, [b"x", "y"])  # type: ignore[list-item]
            with pytest.raises(TypeError):
                _batch.send(writer, [bytearray(b"x")])  # type: ignore[list-item]

    @pytest.mark.parametrize(
        "sockaddr",
        [("239.1.1.1",), ("239.1.1.1", 70000), ("239.1.1.1", -1), ("name", 1), ["239.1.1.1", 1], ("a\0b", 1)],
    )
    def test_a_writer_takes_addresses_in_digits(self, sockaddr: Any) -> None:
        from multicast import _batch

        with socket.socket(type=socket.SOCK_DGRAM) as opened, pytest.raises((TypeError, ValueError, OverflowError)):
            _batch.Writer(opened, sockaddr)

    def test_an_object_that_is_no_socket_is_refused(self) -> None:
        from multicast import _batch

        class Odd:
            def __init__(self, number: object) -> None:
                self.number = number

            def fileno(self) -> object:
                return self.number

        for number, error in (("x", TypeError), (1 << 40, ValueError), (-7, ValueError), (1 << 80, OverflowError)):
            reader = _batch.Reader(Odd(number), 5)  # type: ignore[arg-type]
            with pytest.raises(error):
                _batch.receive(reader)
        with pytest.raises(AttributeError):
            _batch.receive(_batch.Reader(object(), 5))  # type: ignore[arg-type]

    def test_addresses_refuse_numbers_that_do_not_fit(self) -> None:
        from multicast import _batch

        for options in ({"ttl": 256}, {"ttl": -1}, {"timestamp": 1 << 64}, {"ttl": "x"}, {"dscp": 64}):
            with pytest.raises((ValueError, OverflowError, TypeError)):
                _batch.Address(("h", 1), **options)


def test_forged_sources_do_not_fill_the_memory(batch: Any, free_port: int) -> None:
    # Far more sources than the table has places, and never the same again.
    with receiver(port=free_port) as opened:
        reader = batch.Reader(opened, 10, group=GROUP)
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw:
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            resident = []
            for host in range(2, 6):
                for first in range(1024, 13312, 1024):
                    for port in range(first, first + 1024):
                        datagram = struct.pack("!HHHH", port, free_port, 9, 0) + b"x"
                        ends = bytes((127, 0, 0, host)) + socket.inet_aton(GROUP)
                        header = struct.pack("!BBHHHBBH", 0x45, 0, 29, 0, 0, 1, 17, 0) + ends
                        raw.sendto(header + datagram, (GROUP, 0))
                    packets, addresses = drain(batch, reader)
                    assert len(packets) == 1024
                    assert [address.port for address in addresses] == list(range(first, first + 1024))
                resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert resident[-1] - resident[0] < 6000, "kilobytes; a hundred bytes and more for each would be above that"


# -- system calls that fail ----------------------------------------------------------------------------------


@pytest.mark.needs_program("strace")
@pytest.mark.skipif(not BUILT, reason="the Python form makes calls that others make too")
@pytest.mark.parametrize("call", ["recvmmsg", "sendmmsg"])
@pytest.mark.parametrize("fault", ["EINTR", "ENOMEM", "ENOBUFS"])
def test_a_call_that_fails_once_loses_nothing(call: str, fault: str) -> None:
    code = """
        import multicast
        heard, errors = [], []

        class Steady(multicast.MulticastListener):
            def handle_packet(self, packet, addr):
                heard.append(packet)

            def handle_error(self, error):
                errors.append(error)

        listener = Steady(interface="lo", rcvbuf=1 << 20)
        packets = [b"%d" % number for number in range(300)]
        sent = 0
        while sent < 300:
            try:
                sent += multicast.sendto(packets[sent:], interface="lo")
            except OSError as error:
                errors.append(error)
        for _ in range(20):
            multicast.poll()
        assert heard == packets, (len(heard), errors)
        print(len(errors))
    """
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={fault}:when=1"]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", *inject, *netns.python(code)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    # An interrupted call is made again, and a full queue is waited for; other errors are told, once.
    told = 0 if fault == "EINTR" or (fault == "ENOBUFS" and "send" in call) else 1
    assert int(done.stdout) == told


# -- several threads -----------------------------------------------------------------------------------------


def test_threads_with_a_poller_each_do_not_meet(free_port: int) -> None:
    count, packets = 4, 3000
    received: list[list[bytes]] = [[] for _ in range(count)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(2 * count)

    def listen(number: int) -> None:
        try:
            with multicast.Poller() as poller:

                class Keeper(multicast.MulticastListener):
                    def handle_packet(self, packet: bytes, addr: multicast.Address) -> object:
                        received[number].append(packet)
                        return len(received[number]) == packets

                options: dict[str, Any] = {"details": number % 2 == 0, "offload": number >= 2}
                listener = Keeper(
                    None, f"239.7.9.{number + 1}", free_port, interface="lo", rcvbuf=8 << 20, poller=poller, **options
                )
                barrier.wait(10)
                poller.run_until(lambda: listener.closed)
        except BaseException as error:
            failures.append(error)

    def send(number: int) -> None:
        try:
            barrier.wait(10)
            for first in range(0, packets, 500):
                multicast.sendto(
                    [b"%d %d" % (number, place) for place in range(first, first + 500)],
                    f"239.7.9.{number + 1}",
                    free_port,
                    interface="lo",
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count) for work in (listen, send)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert received == [[b"%d %d" % (number, place) for place in range(packets)] for number in range(count)]


def test_a_fork_may_happen_while_others_receive(free_port: int) -> None:
    # The child gets a copy of the buffers, and needs no lock that a thread of the parent holds.
    with receiver(port=free_port) as opened:
        sending, to = sender(port=free_port)
        with sending:
            batch = importlib.import_module("multicast.batch")
            reader = batch.Reader(opened, 10)
            sending.sendto(b"x", to)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    sending.sendto(b"y", to)
                    status = 0 if drain(batch, reader)[0] == [b"x", b"y"] else 1
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
