"""An exception at any line of the library, as a signal handler raises it: what was begun goes on in the next poll."""

from __future__ import annotations

import gc
import itertools
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import helpers
import pytest
from helpers import PATIENCE, Clock, Keeper, Script, turns

import multicast
from multicast import Address, MulticastListener, Poller
from multicast.capture import Reader, Recorder
from multicast.discovery import Requester
from multicast.sockets import DEFAULT_IP
from multicast.streams import Lines, Prefixed, Stream

pytestmark = pytest.mark.lo_alone

LIBRARY = os.path.dirname(multicast.__file__) + os.sep
PACKETS = [b"%d" % number for number in range(10)]
OTHERS = [b"other %d" % number for number in range(3)]


@pytest.fixture(params=["c", "python"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use one form of `multicast.batch`."""
    if request.param == "python":
        module = helpers.batch_with(None)
        for name in ("ENGINE", "Reader", "Writer", "receive", "send", "take"):
            monkeypatch.setattr(multicast.batch, name, getattr(module, name))
    elif multicast.batch.ENGINE != "c":
        pytest.skip("the C form is not built")
    return str(request.param)


def interrupted(place: int, turn: Callable[[], object]) -> str:
    """Call `turn`, and raise at the line with this number of those of the library that run; return which, if any."""
    lines = itertools.count()
    where = ""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal where
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "line" and next(lines) == place:
            where = f"{frame.f_code.co_filename.removeprefix(LIBRARY)}:{frame.f_lineno}"
            raise KeyboardInterrupt
        return trace

    gc.disable()  # what the collector calls is no part of the turn
    sys.settrace(trace)
    try:
        turn()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
        gc.enable()
    return where


def each_place(trial: Callable[[int], str]) -> int:
    """Call `trial` with 0, 1, 2, ... until it says that no line was interrupted; return how many were."""
    return sum(1 for _ in itertools.takewhile(bool, map(trial, itertools.count())))


# -- receiving -----------------------------------------------------------------------------------------------


class Batches(MulticastListener):
    """A listener that keeps its packets, and is called with batches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.packets: list[bytes] = []
        super().__init__(*args, **options)

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> object:
        self.packets += packets
        return False


def accept_even(packet: bytes, addr: Address) -> bool:
    return int(packet) % 2 == 0


@pytest.mark.parametrize("filter", [None, "[0-9]*[02468]$", accept_even], ids=["all", "expression", "function"])
@pytest.mark.parametrize("kind, senders", [(Keeper, 1), (Keeper, 2), (Batches, 2)], ids=["one", "several", "batches"])
def test_every_packet_is_delivered_once_and_counted_once(
    form: str, kind: Any, filter: Any, senders: int, poller: Poller, free_port: int
) -> None:
    wanted = PACKETS if filter is None else PACKETS[::2]
    listener = kind(filter, port=free_port, interface="lo", kernel_filter=False, poller=poller)
    neighbour = Keeper(ip="224.0.42.43", port=free_port, interface="lo", poller=poller)

    def trial(place: int) -> str:
        made: list[str] = []
        listener.packets.clear()
        neighbour.packets.clear()
        before = listener.statistics()
        poller.call_later(0, made.append, "timer")
        poller.call_soon(made.append, "call")
        for packet, sender in zip(PACKETS, itertools.cycle(sending), strict=False):
            sender.send(packet)
        other.send(OTHERS)
        where = interrupted(place, poller.poll)
        turns(poller, 3)
        assert listener.packets == wanted, where
        assert neighbour.packets == OTHERS, where
        assert sorted(made) == ["call", "timer"], where
        new = [now - then for now, then in zip(listener.statistics(), before, strict=True)]
        assert new[:4] == [10, 10, len(wanted), 10 - len(wanted)], where
        assert not listener.pending, where
        return where

    sending = [multicast.Sender(port=free_port, ttl=0, interface="lo") for _ in range(senders)]
    with multicast.Sender("224.0.42.43", free_port, 0, interface="lo") as other:
        try:
            assert each_place(trial) > 100
        finally:
            for sender in sending:
                sender.close()


@pytest.mark.parametrize("options", [{"details": True}, {"offload": True}, {"mtu": 1}], ids=str)
def test_addresses_and_cuts_belong_to_their_packets(form: str, options: dict[str, Any], free_port: int) -> None:
    packets = [b"%02d" % number for number in range(4)]
    kept = [packet[: options.get("mtu", 2)] for packet in packets]

    def trial(place: int) -> str:
        with Poller() as poller:
            listener = Keeper(port=free_port, interface="lo", poller=poller, **options)
            for packet, sender in zip(packets, itertools.cycle((one, two)), strict=False):
                sender.send(packet)
            where = interrupted(place, poller.poll)
            turns(poller, 3)
            assert listener.packets == kept, where
            assert [addr.port for addr in listener.addrs] == ports * 2, where
            assert [addr.truncated for addr in listener.addrs] == ["mtu" in options] * 4, where
            counted = listener.statistics()
            assert (counted.packets, counted.truncated) == (4, 4 if "mtu" in options else 0), where
        return where

    with (
        multicast.Sender(port=free_port, ttl=0, interface="lo") as one,
        multicast.Sender(port=free_port, ttl=0, interface="lo") as two,
    ):
        one.send(b"")
        two.send(b"")
        ports = [address[1] for address in (one.address, two.address) if address is not None]
        assert each_place(trial) > 50


def test_what_a_slow_handler_leaves_is_delivered(form: str, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handlers take so long that a batch needs several turns, each of which may be interrupted."""
    clock = Clock()
    monkeypatch.setattr("multicast.listeners.datagrams.monotonic", clock)

    class Slow(Keeper):
        def handle_packet(self, packet: bytes, addr: Address) -> object:
            clock.advance(0.002)
            return super().handle_packet(packet, addr)

    def trial(place: int) -> str:
        with Poller() as poller:
            poller.budget = 0
            listener = Slow(port=free_port, interface="lo", poller=poller)
            sender.send(PACKETS)
            poller.poll()
            where = interrupted(place, poller.poll)
            turns(poller, 12)
            assert listener.packets == PACKETS, where
        return where

    with multicast.Sender(port=free_port, ttl=0, interface="lo") as sender:
        assert each_place(trial) > 50


@pytest.mark.parametrize("options", [{}, {"details": True}, {"offload": True}], ids=str)
def test_what_was_read_is_kept_until_there_is_memory_for_it(
    options: dict[str, Any], poller: Poller, free_port: int
) -> None:
    failing = pytest.importorskip("_testcapi", reason="this Python is built without its test modules")
    if multicast.batch.ENGINE != "c":
        pytest.skip("the C form is not built")

    def trial(number: int) -> str:
        """Let the allocation with this number fail; return what that raised."""
        raised = ""
        sender.send(PACKETS)
        failing.set_nomemory(number, number + 1)
        try:
            receive(reader)
        except MemoryError:
            raised = "MemoryError"
        finally:
            failing.remove_mem_hooks()
        if raised:
            receive(reader)
        assert reader.batch[0] == PACKETS, number
        assert [addr.port for addr in reader.batch[1]] == [port] * 10, number
        assert [*reader.left] == PACKETS, number
        assert reader.packets == 10 * (number + 1), number
        assert reader.unmade == 0, number
        return raised

    receive = multicast.batch.receive
    with (
        Keeper(port=free_port, interface="lo", poller=poller, **options) as listener,
        multicast.Sender(port=free_port, ttl=0, interface="lo") as sender,
    ):
        assert listener.socket is not None
        details, offload = options.get("details", False), options.get("offload", False)
        reader = multicast.batch.Reader(listener.socket, 100, details=details, offload=offload)
        sender.send(b"")
        receive(reader)
        port = reader.batch[1][0].port
        reader = multicast.batch.Reader(listener.socket, 100, details=details, offload=offload)
        assert each_place(trial) > 1


# -- sending -------------------------------------------------------------------------------------------------


@pytest.fixture
def ear(free_port: int) -> Iterator[socket.socket]:
    """A socket that hears the default group on ``lo``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((DEFAULT_IP, free_port))
        membership = socket.inet_aton(DEFAULT_IP) + struct.pack("=4si", b"", socket.if_nametoindex("lo"))
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        opened.setblocking(False)
        yield opened


def heard(ear: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(ear.recv(100))
    except BlockingIOError:
        return found


def pausing() -> Iterator[Any]:
    for packet in PACKETS:
        yield None
        yield packet


MAKERS: list[tuple[str, Callable[[], Any], dict[str, Any]]] = [
    ("a list", lambda: PACKETS, {}),
    ("a list, one by one", lambda: PACKETS, {"offload": False}),
    ("a generator", lambda: (packet for packet in PACKETS), {}),
    ("text", lambda: (packet.decode() for packet in PACKETS), {}),
    ("with pauses", pausing, {}),
    ("at an interval", lambda: PACKETS, {"interval": 0.001}),
    ("text at a rate", lambda: (packet.decode() for packet in PACKETS), {"rate": 8000}),
    ("with pauses at an interval", pausing, {"interval": 0.001}),
]


@pytest.mark.parametrize("make, options", [entry[1:] for entry in MAKERS], ids=[entry[0] for entry in MAKERS])
def test_every_packet_is_sent_once_and_counted_once(
    form: str, make: Any, options: dict[str, Any], free_port: int, ear: socket.socket
) -> None:
    def trial(place: int) -> str:
        clock = Clock()

        def some_turns() -> None:
            for _ in range(4):
                poller.poll()
                clock.advance(0.0005)

        with Poller(clock=clock) as poller:
            sender = Script(make(), port=free_port, ttl=0, interface="lo", poller=poller, **options)
            where = interrupted(place, some_turns)
            for _ in range(100):
                poller.poll()
                clock.advance(0.002)
            assert heard(ear) == PACKETS, where
            assert sender.closed, where
            assert sender.statistics()[:2] == (10, 10), where
            assert len(poller) == 0, where
        return where

    assert each_place(trial) > 100


def test_the_pace_is_kept(free_port: int, ear: socket.socket) -> None:
    """An interrupted turn neither sends a packet before it is due nor puts off those after it."""

    def trial(place: int) -> str:
        clock = Clock()
        with Poller(clock=clock) as poller:
            Script(PACKETS, port=free_port, ttl=0, interface="lo", poller=poller, interval=0.1)
            where = interrupted(place, poller.poll)
            poller.poll()
            counts = [len(heard(ear))]
            for _ in range(3):
                clock.advance(0.1)
                turns(poller, 2)
                counts.append(len(heard(ear)))
            assert counts == [1, 1, 1, 1], where
        return where

    assert each_place(trial) > 100


# -- timers and calls ----------------------------------------------------------------------------------------


def test_a_call_that_repeats_is_made_once_each_time() -> None:
    def trial(place: int) -> str:
        clock = Clock()
        made: list[float] = []
        with Poller(clock=clock) as poller:
            repeater = poller.call_every(1, lambda: made.append(clock.now))
            clock.advance(1)
            where = interrupted(place, poller.poll)
            for _ in range(3):
                turns(poller, 2)
                clock.advance(1)
            assert made == [1001, 1002, 1003], where
            assert repeater.missed == 0, where
        return where

    assert each_place(trial) > 30


def test_a_poller_that_was_interrupted_rings_for_its_next_timer() -> None:
    def trial(place: int) -> str:
        made: list[int] = []
        with Poller() as poller:
            number = poller.fileno()
            poller.call_later(0, made.append, 1)
            assert select.select([number], [], [], PATIENCE)[0]
            where = interrupted(place, poller.poll)
            poller.poll()
            assert made == [1], where
            poller.call_later(0, made.append, 2)
            assert select.select([number], [], [], PATIENCE)[0], where
            poller.poll()
            assert made == [1, 2], where
        return where

    assert each_place(trial) > 30


# -- requests and streams ------------------------------------------------------------------------------------


class Asker(Requester):
    """A requester that keeps its replies."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.got: list[bytes] = []
        self.ends = 0
        super().__init__(*args, **options)

    def handle_reply(self, packet: bytes, addr: Address) -> object:
        self.got.append(packet)
        return False

    def handle_timeout(self) -> None:
        self.ends += 1


# The lines that tell host and port of an address, which the handler of a requester asks for; in C there are none.
_OF_ADDRESSES = {
    f"batch.py:{line}"
    for name in ("host", "port")
    if (told := getattr(vars(Address)[name], "fget", None)) is not None
    for _, _, line in told.__code__.co_lines()
}


def test_a_request_ends_once_and_loses_no_reply_but_the_one_that_is_looked_at(free_port: int) -> None:
    def trial(place: int) -> str:
        clock = Clock()

        def some_turns() -> None:
            poller.poll()
            clock.advance(1.1)
            turns(poller, 2)

        with Poller(clock=clock) as poller, socket.socket(type=socket.SOCK_DGRAM) as responder:
            responder.bind(("127.0.0.1", 0))
            asker = Asker("anybody?", port=free_port, ttl=0, interface="lo", timeout=1, poller=poller)
            for packet in PACKETS[:3]:
                responder.sendto(packet, ("127.0.0.1", asker.address[1]))
            where = interrupted(place, some_turns)
            for _ in range(3):
                turns(poller, 2)
                clock.advance(1.1)
            assert asker.closed, where
            assert asker.ends == 1, where
            if asker.got != PACKETS[:3]:
                # Its own handler had the reply in its hands: it finds out what it answers before it hands it on.
                assert len(asker.got) == 2, where
                assert where.startswith(("discovery/", "poller/polling.py")) or where in _OF_ADDRESSES, where
        return where

    assert each_place(trial) > 100


class Talk(Stream):
    """A stream that keeps what it hears."""

    framing = Lines

    def __init__(self, *args: Any, **options: Any) -> None:
        self.got: list[object] = []
        super().__init__(*args, **options)

    def handle_message(self, message: bytes) -> None:
        self.got.append(message)

    def handle_end(self) -> None:
        self.got.append("end")

    def handle_close(self, error: Exception | None) -> None:
        self.got.append(error)


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        yield one, other


@pytest.mark.parametrize("framing, begin", [(Lines, b"a\r\nb\nc"), (Prefixed, b"1       a1       b1       c")])
def test_every_message_of_a_stream_is_delivered_once(framing: Any, begin: bytes) -> None:
    def trial(place: int) -> str:
        with Poller() as poller, connection() as (one, other):
            stream = Talk(other, framing(), poller=poller)
            turns(poller, 2)
            one.sendall(begin)
            one.shutdown(socket.SHUT_WR)
            where = interrupted(place, lambda: turns(poller, 3))
            turns(poller, 3)
            assert stream.got == [b"a", b"b", b"c", "end"], where
            stream.finish()
            turns(poller, 3)
            assert stream.got[4:] == [None], where
        return where

    assert each_place(trial) > 50


def test_every_byte_of_a_stream_is_sent_once_and_its_end_too() -> None:
    lines = [b"a" * 500, b"b" * 3000]

    def trial(place: int) -> str:
        with Poller() as poller, connection() as (one, other):
            stream = Talk(other, poller=poller, high_water=1000)
            for line in lines:  # kept, as it is not connected yet
                stream.write(line)
            stream.finish()
            where = interrupted(place, lambda: turns(poller, 2))
            one.shutdown(socket.SHUT_WR)
            turns(poller, 5)
            assert b"".join(iter(lambda: one.recv(10000), b"")) == b"".join(line + b"\n" for line in lines), where
            assert stream.got == ["end", None], where
        return where

    assert each_place(trial) > 50


# -- recording -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", [None, "[0-9]*[02468]$"], ids=["all", "expression"])
def test_every_packet_is_recorded_once(filter: Any, free_port: int, tmp_path: Path) -> None:
    wanted = PACKETS if filter is None else PACKETS[::2]
    path = tmp_path / "feed.pcapng"

    def trial(place: int) -> str:
        with Poller() as poller:
            recorder = Recorder(path, filter, port=free_port, interface="lo", poller=poller)

            def recorded() -> None:
                poller.poll()
                recorder.file.flush()

            sender.send(PACKETS)
            where = interrupted(place, recorded)
            turns(poller, 3)
            counted = recorder.statistics()
            assert (counted.packets, counted.delivered, counted.filtered) == (10, len(wanted), 10 - len(wanted)), where
            recorder.close()
            assert recorder.file.packets == len(wanted), where
        with Reader(path) as packets:
            assert [packet.payload for packet in packets] == wanted, where
        return where

    with multicast.Sender(port=free_port, ttl=0, interface="lo") as sender:
        assert each_place(trial) > 100
