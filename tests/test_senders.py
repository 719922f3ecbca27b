"""Senders: what is sent, in which order and at which pace, and what becomes of packets that cannot go."""

from __future__ import annotations

import array
import errno
import gc
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
from helpers import BAD_SENDERS, Clock, Keeper, Pair, Script, descriptors, need_on_lo, settle, turns

import multicast
from multicast import (
    ArgumentError,
    GroupError,
    Multicaster,
    PacketSizeError,
    PacketTypeError,
    Poller,
    Sender,
    sendto,
)
from multicast.senders import forget_senders, sender, transmission
from multicast.sockets import DEFAULT_IP, Group, open_receiver, receiving

# These tests keep to this host, so that they may run where there is no private network namespace.
pytestmark = pytest.mark.lo_alone


class Ear:
    """Hears what is sent to a group, without any poller of the library's."""

    def __init__(self, port: int, ip: str = "224.0.42.42") -> None:
        group = Group(ip, port)
        self.socket, _, _ = open_receiver(group, receiving(group, "lo"))
        self.addrs: list[Any] = []

    def heard(self) -> list[bytes]:
        """Return what came since it was asked last."""
        packets: list[bytes] = []
        while True:
            try:
                packet, addr = self.socket.recvfrom(70000)
            except BlockingIOError:
                return packets
            packets.append(packet)
            self.addrs.append(addr)


@pytest.fixture
def ear(free_port: int) -> Iterator[Ear]:
    """Something that hears the default group on `free_port`."""
    ear = Ear(free_port)
    yield ear
    ear.socket.close()


# -- sendto --------------------------------------------------------------------------------------------------


def one_two() -> Iterator[str]:
    yield "one"
    yield "two"


@pytest.mark.parametrize(
    "packets, sent",
    [
        ("test", [b"test"]),
        ("größe", ["größe".encode()]),
        (b"test", [b"test"]),
        (bytearray(b"test"), [b"test"]),
        (memoryview(b"xtestx")[1:5], [b"test"]),
        (memoryview(b"t.e.s.t.")[::2], [b"test"]),
        (array.array("B", b"test"), [b"test"]),
        ("", [b""]),
        (b"", [b""]),
        (["one", b"two"], [b"one", b"two"]),
        (("one", bytearray(b"two")), [b"one", b"two"]),
        ({"one": 1, "two": 2}, [b"one", b"two"]),
        (one_two(), [b"one", b"two"]),
        (map(str, range(200)), [b"%d" % number for number in range(200)]),
        ([b"", "", b"x"], [b"", b"", b"x"]),
        ([], []),
        (iter(()), []),
    ],
    ids=lambda value: helpers.name(value)[:30],
)
def test_sendto_sends_one_packet_or_those_of_an_iterable(
    ear: Ear, free_port: int, packets: Any, sent: list[bytes]
) -> None:
    assert sendto(packets, port=free_port, ttl=0) == len(sent)
    assert ear.heard() == sent


def test_two_calls_in_a_row_both_send_everything(ear: Ear, free_port: int) -> None:
    assert sendto(["1", "2", "3"], port=free_port, ttl=0) == 3
    assert sendto(["4", "5", "6"], port=free_port, ttl=0) == 3
    assert ear.heard() == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_sendto_runs_nobody_elses_handler(free_port: int) -> None:
    listener = Keeper(port=free_port, interface="lo")
    other = Script(["other"], port=free_port, ttl=0)
    calls: list[int] = []
    multicast._defaultPoller.call_soon(calls.append, 1)
    assert sendto(["a", "b"], port=free_port, ttl=0) == 2
    assert listener.packets == []
    assert calls == []
    assert not other.closed
    multicast.poll()
    assert listener.packets[:2] == [b"a", b"b"]
    listener.close()
    other.close()


def test_sendto_works_in_a_handler(poller: Poller, ear: Ear, free_port: int) -> None:
    pair = Pair(lambda _: sendto("from a handler", port=free_port, ttl=0))
    poller.register(pair)
    pair.tell()
    poller.poll()
    assert ear.heard() == [b"from a handler"]
    poller.unregister(pair)
    pair.close()


def test_sendto_needs_no_poller_and_keeps_sockets_only_for_its_next_call(ear: Ear, free_port: int) -> None:
    before = descriptors()
    sendto("x", port=free_port, ttl=0)
    forget_senders()
    assert descriptors() == before


@pytest.mark.parametrize("options", [{}, {"interface": "lo"}, {"source_ip": "127.0.0.1"}], ids=helpers.name)
def test_sendto_takes_the_socket_of_its_last_call(ear: Ear, free_port: int, options: dict[str, Any]) -> None:
    for number in range(5):
        assert sendto(str(number), port=free_port, ttl=0, **options) == 1
    assert ear.heard() == [b"0", b"1", b"2", b"3", b"4"]
    assert len({addr[1] for addr in ear.addrs}) == 1


def test_each_way_to_send_has_its_socket(ear: Ear, free_port: int) -> None:
    for options in ({}, {"interface": "lo"}, {"loopback": True, "offload": False}, {"source_ip": "127.0.0.1"}):
        sendto("x", port=free_port, ttl=0, **options)
    ear.heard()
    assert len({addr[1] for addr in ear.addrs}) == 4


def test_sendto_keeps_few_sockets(free_port: int) -> None:
    before = len(descriptors())
    for number in range(50):
        sendto("x", f"239.1.2.{number}", free_port, ttl=0)
    assert len(descriptors()) - before == 10  # eight senders, and two to look for changes


def test_sockets_that_were_not_used_for_a_second_are_closed_by_the_next_call(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = helpers.Clock()
    monkeypatch.setattr("multicast.senders.sender.monotonic", clock)
    before = len(descriptors())
    for number in range(5):
        sendto("x", f"239.1.2.{number}", free_port, ttl=0)
    clock.advance(1.1)
    sendto("x", "239.1.2.9", free_port, ttl=0)
    assert len(descriptors()) - before == 3


def test_a_port_that_was_asked_for_is_free_after_the_call(ear: Ear, free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sendto("x", port=free_port, ttl=0, source_port=port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))


def test_arguments_are_checked_although_equal_ones_were_taken(free_port: int) -> None:
    sendto("x", port=free_port, ttl=1, interface="lo")
    wrong: list[dict[str, Any]] = [{"ttl": 1.0, "port": free_port}, {"port": float(free_port)}]
    for options in wrong:
        with pytest.raises(ArgumentError):
            sendto("x", interface="lo", **options)
    with pytest.raises(PacketSizeError):
        sendto(bytes(70_000), port=free_port, ttl=1, interface="lo")
    with pytest.raises(PacketTypeError):
        sendto([5], port=free_port, ttl=1, interface="lo")  # type: ignore[list-item]


def test_an_iterable_may_call_sendto_with_the_same_arguments(ear: Ear, free_port: int) -> None:
    def packets() -> Iterator[str]:
        for number in range(3):
            sendto(f"inner {number}", port=free_port, ttl=0)
            yield f"outer {number}"

    sendto("before", port=free_port, ttl=0)
    assert sendto(packets(), port=free_port, ttl=0) == 3
    assert sorted(ear.heard()) == sorted(
        [b"before", *(f"{which} {number}".encode() for which in ("inner", "outer") for number in range(3))]
    )


def test_threads_have_sockets_that_end_with_them(ear: Ear, free_port: int) -> None:
    sendto("x", port=free_port, ttl=0)
    before = descriptors()
    thread = threading.Thread(target=lambda: [sendto("y", port=free_port, ttl=0) for _ in range(100)])
    thread.start()
    thread.join()
    gc.collect()
    assert ear.heard() == [b"x"] + [b"y"] * 100
    assert len({addr[1] for addr in ear.addrs}) == 2
    assert descriptors() == before


def test_a_forked_child_opens_sockets_of_its_own(ear: Ear, free_port: int) -> None:
    sendto("parent", port=free_port, ttl=0)
    assert helpers.in_child(lambda: sendto("child", port=free_port, ttl=0)) == "1"
    sendto("parent", port=free_port, ttl=0)
    assert ear.heard() == [b"parent", b"child", b"parent"]
    ports = [addr[1] for addr in ear.addrs]
    assert ports[0] == ports[2] != ports[1]


def test_a_program_that_ends_after_sending_says_nothing(free_port: int) -> None:
    code = "import multicast; multicast.sendto('x', port=int(__import__('sys').argv[1]), ttl=0)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(free_port)], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- Sender ---------------------------------------------------------------------------------------------------


def test_a_sender_sends_one_packet_or_those_of_an_iterable(ear: Ear, free_port: int) -> None:
    with Sender(port=free_port, ttl=0) as sender:
        assert sender.send("one") == 1
        assert sender.send(b"") == 1
        assert sender.send(["two", bytearray(b"three")]) == 2
        assert sender.send(str(number) for number in range(3)) == 3
        assert sender.send([]) == 0
        assert not sender.closed
    assert sender.closed
    assert ear.heard() == [b"one", b"", b"two", b"three", b"0", b"1", b"2"]
    assert len({addr[1] for addr in ear.addrs}) == 1


def test_a_closed_sender_says_what_to_do(free_port: int) -> None:
    sender = Sender(port=free_port, ttl=0)
    sender.close()
    sender.close()
    for packets in ("x", ["x"]):
        with pytest.raises(OSError, match="make another one"):
            sender.send(packets)
    assert repr(sender) == f"<Sender to 224.0.42.42:{free_port}, closed>"


def test_a_sender_waits_for_room(free_port: int) -> None:
    # A host of its own would be needed to fill the queue of an interface; the buffer of the socket is enough here.
    with Sender(port=free_port, ttl=0) as sender:
        assert sender._socket is not None
        sender._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        assert sender.send([bytes(4000)] * 200) == 200


@pytest.mark.parametrize("packet", [bytes(70_000), 5, None, [b"x", 5]], ids=helpers.name)
def test_a_sender_refuses_what_is_no_packet(free_port: int, packet: Any) -> None:
    with Sender(port=free_port, ttl=0) as sender, pytest.raises((PacketSizeError, PacketTypeError)):
        sender.send(packet)


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_sendto_also_reaches_a_single_host(ip: str) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((ip, 0))
        receiver.setblocking(False)
        assert sendto(["one", "two"], ip, receiver.getsockname()[1]) == 2
        assert [receiver.recv(10), receiver.recv(10)] == [b"one", b"two"]


def test_packets_of_a_slow_iterable_do_not_wait_for_the_next(ear: Ear, free_port: int) -> None:
    seen: list[bytes] = []
    counts: list[int] = []

    def slow() -> Iterator[str]:
        for number in range(5):
            time.sleep(0.005)
            seen.extend(ear.heard())
            counts.append(len(seen))
            yield str(number)

    assert sendto(slow(), port=free_port, ttl=0) == 5
    assert counts == [0, 1, 2, 3, 4]


def test_what_an_iterable_yields_before_it_raises_is_sent(ear: Ear, free_port: int) -> None:
    def failing() -> Iterator[str]:
        for number in range(5):
            yield str(number)
        raise ZeroDivisionError

    before = descriptors()
    with pytest.raises(ZeroDivisionError):
        sendto(failing(), port=free_port, ttl=0)
    assert ear.heard() == [b"0", b"1", b"2", b"3", b"4"]
    assert descriptors() == before


@pytest.mark.parametrize("bad", [5, None, 1.5, object(), ["nested"]], ids=helpers.name)
def test_what_is_no_packet_is_refused(ear: Ear, free_port: int, bad: Any) -> None:
    before = descriptors()
    if not isinstance(bad, list):
        with pytest.raises(PacketTypeError, match="a packet is bytes-like or text"):
            sendto(bad, port=free_port, ttl=0)
    with pytest.raises(PacketTypeError, match="a packet is bytes-like or text"):
        sendto(["good", "good too", bad, "late"], port=free_port, ttl=0)
    assert ear.heard() == [b"good", b"good too"], "those before it are sent"
    assert descriptors() == before


@pytest.mark.parametrize("ip, longest", [("224.0.42.42", 65507), ("ff15::1", 65527), ("127.0.0.1", 65507)])
def test_what_does_not_fit_a_datagram_is_refused_with_the_limit(free_port: int, ip: str, longest: int) -> None:
    need_on_lo(ip)
    with pytest.raises(PacketSizeError, match=str(longest)):
        sendto(bytes(longest + 1), ip, free_port, 0)
    assert sendto(bytes(longest), ip, free_port, 0, interface=None if ip == "127.0.0.1" else "lo") == 1


@pytest.mark.parametrize("arguments, error, words", BAD_SENDERS, ids=lambda value: helpers.name(value)[:40])
def test_bad_arguments_are_refused_before_anything_is_opened_or_sent(
    ear: Ear,
    free_port: int,
    poller: Poller,
    arguments: dict[str, Any],
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"port": free_port, "ttl": 0, **arguments}
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
            sendto("x", **options)
        with pytest.raises(error, match=words):
            Script(["x"], poller=poller, **options)
    assert opened == []
    assert ear.heard() == []
    assert descriptors() == before
    assert len(poller) == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        *(({"rate": value}, "rate must be more than 0 bits") for value in (0, -1, float("nan"), "10m", True)),
        *(({"interval": value}, "interval must be 0 or more seconds") for value in (-1, "1", None)),
    ],
    ids=helpers.name,
)
def test_a_bad_pace_is_refused(poller: Poller, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Script([], poller=poller, **arguments)
    assert len(poller) == 0


def test_ttl_0_is_refused_for_a_single_host_that_may_be_another() -> None:
    with pytest.raises(ArgumentError, match=r"ttl=0 .* 10\.1\.2\.3 is a single host"):
        sendto("x", "10.1.2.3", ttl=0)
    assert sendto("x", "127.0.0.1", 9, ttl=0) == 1


def test_a_sender_whose_rest_an_error_has_ended_goes_on(free_port: int) -> None:
    """The socket reports an error when the rest is over and its timer has not run yet."""
    clock = Clock()
    with Poller(clock=clock) as poller:
        sender = Script([None, *(["x"] * 200)], port=free_port, ttl=0, poller=poller)
        turns(poller)
        assert sender.statistics().packets == 0
        clock.advance(1)
        sender.handle_write()
        turns(poller, 50)
        assert sender.closed
        assert sender.statistics().packets == 200


def test_an_iterable_may_poll_to_wait_for_an_answer(poller: Poller, free_port: int) -> None:
    answers = multicast.listen(port=free_port, interface="lo", poller=poller)
    turns = 0

    class Asking(Multicaster):
        def __iter__(self) -> Iterator[str]:
            yield "first"
            assert next(answers) == b"first"
            poller.call_later(0.05, sendto, "answer", DEFAULT_IP, free_port, 0)
            yield next(answers).decode() + ", heard"

        def handle_write(self) -> None:
            nonlocal turns
            turns += 1
            super().handle_write()

    sender = Asking(port=free_port, ttl=0, poller=poller)
    settle(poller, lambda: sender.closed)
    assert next(answers) == b"answer, heard"
    assert turns < 10, "it does not spin meanwhile"
    answers.close()


def test_a_destination_that_is_none_is_refused() -> None:
    for ip in ("0.0.0.0", "255.255.255.255", "::", "localhost", ""):  # noqa: S104 -- binds nothing
        with pytest.raises(GroupError):
            sendto("x", ip)


def test_the_source_port_is_as_asked(ear: Ear, free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    sendto("x", port=free_port, ttl=0, source_port=port)
    assert ear.heard() == [b"x"]
    assert ear.addrs[0][1] == port


# -- a sender and its iterable -------------------------------------------------------------------------------


def test_a_multicaster_sends_what_its_iterable_yields_and_closes(poller: Poller, ear: Ear, free_port: int) -> None:
    class Numbers(Multicaster):
        def __iter__(self) -> Iterator[Any]:
            yield "text"
            yield b"bytes"
            yield bytearray(b"bytearray")
            yield memoryview(b"memoryview")
            yield b""

    sender = Numbers(port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert ear.heard() == [b"text", b"bytes", b"bytearray", b"memoryview", b""]
    assert sender.closed
    assert (sender.statistics().packets, sender.statistics().bytes) == (5, 28)


def test_a_long_iterable_is_sent_in_order_and_whole(poller: Poller, ear: Ear, free_port: int) -> None:
    sender = Script(map(str, range(200)), port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert ear.heard() == [b"%d" % number for number in range(200)]
    assert sender.statistics().packets == 200


def test_a_multicaster_without_a_name_is_kept(ear: Ear, free_port: int) -> None:
    Script(["x"], port=free_port, ttl=0)
    multicast.loop()
    assert ear.heard() == [b"x"]


def test_iter_is_called_at_the_first_write_when_the_constructor_is_done(
    poller: Poller, ear: Ear, free_port: int
) -> None:
    called: list[str] = []

    class Late(Multicaster):
        def __init__(self) -> None:
            super().__init__(port=free_port, ttl=0, poller=poller)
            self.packets = ["made after the base constructor"]

        def __iter__(self) -> Iterator[str]:
            called.append("iter")
            return iter(self.packets)

    Late()
    assert called == []
    poller.loop()
    assert called == ["iter"]
    assert ear.heard() == [b"made after the base constructor"]


def test_iter_may_return_any_iterator(poller: Poller, ear: Ear, free_port: int) -> None:
    class Own(Multicaster):
        left = 3

        def __iter__(self) -> Own:
            return self

        def __next__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return str(self.left)

    Own(port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert ear.heard() == [b"2", b"1", b"0"]


def test_a_multicaster_without_iter_cannot_be_made() -> None:
    before = descriptors()
    with pytest.raises(TypeError, match="__iter__"):
        Multicaster(ttl=0)  # type: ignore[abstract]
    assert descriptors() == before


def test_none_means_nothing_for_now_and_does_not_keep_the_poller_busy(
    ear: Ear, free_port: int
) -> None:
    clock = Clock()
    queue: list[str | None] = []
    asked: list[float] = []

    class Queue(Multicaster):
        def __iter__(self) -> Iterator[str | None]:
            while True:
                asked.append(clock.now)
                yield queue.pop(0) if queue else None

    with Poller(clock=clock) as poller:
        Queue(port=free_port, ttl=0, poller=poller)
        turns(poller, 50)
        assert len(asked) == 1
        queue += ["a", "b"]
        clock.advance(1)
        turns(poller, 50)
        assert ear.heard() == [b"a", b"b"]
        assert len(asked) <= 5


def test_what_was_yielded_before_none_is_sent_at_once(ear: Ear, free_port: int) -> None:
    with Poller(clock=Clock()) as poller:
        sender = Script(["a", None, "b"], port=free_port, ttl=0, poller=poller)
        turns(poller)
        assert ear.heard() == [b"a"]
        assert not sender.closed


def test_an_error_in_the_iterable_ends_that_sender_alone(poller: Poller, ear: Ear, free_port: int) -> None:
    def failing() -> Iterator[str]:
        yield "before"
        raise ZeroDivisionError("on purpose")

    failed = Script(failing(), port=free_port, ttl=0, poller=poller)
    other = Script(map(str, range(100)), port=free_port, ttl=0, poller=poller)
    with pytest.raises(ZeroDivisionError):
        poller.loop()
    assert failed.closed
    assert list(poller) in ([other], [])
    poller.loop()
    heard = ear.heard()
    assert heard.count(b"before") == 1
    assert [packet for packet in heard if packet != b"before"] == [b"%d" % number for number in range(100)]
    assert len(poller) == 0


def test_an_error_in_the_iterable_goes_to_handle_error(poller: Poller, free_port: int) -> None:
    errors: list[Exception] = []

    class Careful(Script):
        def handle_error(self, error: Exception) -> None:
            errors.append(error)

    sender = Careful(["x", 5, "y"], port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert [type(error) for error in errors] == [PacketTypeError]
    assert sender.closed
    assert sender.statistics().packets == 1


@pytest.mark.parametrize(
    "bad, error",
    [(5, PacketTypeError), (["x"], PacketTypeError), (bytes(65508), PacketSizeError)],
    ids=["a number", "a list", "too long"],
)
def test_what_is_no_packet_ends_the_sender(
    poller: Poller, ear: Ear, free_port: int, bad: Any, error: type[Exception]
) -> None:
    sender = Script(["good", bad, "late"], port=free_port, ttl=0, poller=poller)
    with pytest.raises(error):
        poller.loop()
    assert sender.closed
    assert ear.heard() == [b"good"]
    assert len(poller) == 0


def test_an_error_of_iter_itself_ends_the_sender(poller: Poller, free_port: int) -> None:
    class Broken(Multicaster):
        def __iter__(self) -> Iterator[str]:
            raise ZeroDivisionError

    sender = Broken(port=free_port, ttl=0, poller=poller)
    with pytest.raises(ZeroDivisionError):
        poller.loop()
    assert sender.closed


def test_an_iterable_may_close_its_sender(poller: Poller, ear: Ear, free_port: int) -> None:
    class Short(Multicaster):
        def __iter__(self) -> Iterator[str]:
            yield "one"
            yield "two"
            self.close()
            yield "three"

    sender = Short(port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert sender.closed
    assert b"three" not in ear.heard()


def test_a_paced_sender_that_its_iterable_has_closed_is_forgotten(poller: Poller, free_port: int) -> None:
    class Short(Multicaster):
        def __iter__(self) -> Iterator[str]:
            self.close()
            yield "too late"

    sender = Short(port=free_port, ttl=0, poller=poller, interval=1000)
    reference = weakref.ref(sender)
    poller.loop()
    del sender
    gc.collect()
    assert reference() is None


def test_an_iterable_may_send_listen_and_stop(poller: Poller, ear: Ear, free_port: int) -> None:
    class Busy(Multicaster):
        def __iter__(self) -> Iterator[str]:
            sendto("by the way", port=free_port, ttl=0)
            self.poller.stop()
            yield "one"

    Busy(port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert sorted(ear.heard()) == [b"by the way", b"one"]


def test_ctrl_c_in_an_iterable_leaves_the_loop_and_loses_nothing(poller: Poller, ear: Ear, free_port: int) -> None:
    def interrupted() -> Iterator[str]:
        yield "one"
        yield "two"
        raise KeyboardInterrupt

    Script(interrupted(), port=free_port, ttl=0, poller=poller)
    with pytest.raises(KeyboardInterrupt):
        poller.loop()
    poller.loop()
    assert ear.heard() == [b"one", b"two"]


def test_a_sender_can_be_closed_at_any_time(poller: Poller, free_port: int) -> None:
    sender = Script(iter(lambda: "x", "never"), port=free_port, ttl=0, poller=poller, interval=1000)
    turns(poller)
    assert repr(sender) == f"<Script to 224.0.42.42:{free_port}>"
    sender.close()
    sender.close()
    assert repr(sender) == f"<Script to 224.0.42.42:{free_port}, closed>"
    poller.loop()
    assert sender.statistics().packets == 1


def test_an_endless_sender_starves_nobody(poller: Poller, free_port: int) -> None:
    Script(iter(lambda: "x", "never"), port=free_port, ttl=0, poller=poller)
    calls: list[int] = []
    pair = Pair(lambda _: poller.stop())
    poller.register(pair)
    poller.call_later(0, calls.append, 1)
    pair.tell()
    poller.loop()
    assert calls == [1]
    poller.unregister(pair)
    pair.close()


# -- pace ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[0.0, 0.2, 1000.0, -50.0], ids="clock at {}".format)
def timed(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Poller]:
    """A poller whose clock, `clock`, starts anywhere."""
    clock.now = request.param
    with Poller(clock=clock) as poller:
        yield poller


def test_interval_is_the_time_from_packet_to_packet(timed: Poller, clock: Clock, ear: Ear, free_port: int) -> None:
    sender = Script(map(str, range(100)), port=free_port, ttl=0, poller=timed, interval=0.1)
    turns(timed)
    counts = [len(ear.heard())]
    for _ in range(10):
        clock.advance(0.05001)  # a hair more, for sums of fractions may fall short
        turns(timed)
        counts.append(len(ear.heard()))
    assert counts == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    sender.close()


def test_rate_is_in_bits_of_payload_per_second(timed: Poller, clock: Clock, ear: Ear, free_port: int) -> None:
    sender = Script((bytes(125) for _ in range(100)), port=free_port, ttl=0, poller=timed, rate=10_000)
    turns(timed)
    counts = [len(ear.heard())]
    for _ in range(5):
        clock.advance(0.1001)
        turns(timed)
        counts.append(len(ear.heard()))
    assert counts == [1, 1, 1, 1, 1, 1]
    sender.close()


def test_a_high_rate_is_kept_in_the_mean(timed: Poller, clock: Clock, ear: Ear, free_port: int) -> None:
    # 10,000 packets a second: more than one for each tick of a timer.
    sender = Script((bytes(100) for _ in range(100_000)), port=free_port, ttl=0, poller=timed, rate=8_000_000)
    turns(timed)
    ear.heard()
    total = 0
    for _ in range(50):
        clock.advance(0.002)
        turns(timed)
        total += len(ear.heard())
    assert 980 <= total <= 1020
    sender.close()


def test_a_sender_that_was_held_up_a_little_catches_up(timed: Poller, clock: Clock, ear: Ear, free_port: int) -> None:
    sender = Script(map(str, range(1000)), port=free_port, ttl=0, poller=timed, interval=0.1)
    turns(timed)
    assert len(ear.heard()) == 1
    clock.advance(0.4001)
    turns(timed)
    assert len(ear.heard()) == 4
    clock.advance(1000)
    turns(timed)
    assert len(ear.heard()) == 1, "but it does not send a thousand seconds' worth at once"
    sender.close()


def test_a_pause_of_the_iterable_is_not_made_up_for(timed: Poller, clock: Clock, ear: Ear, free_port: int) -> None:
    queue: list[str] = []

    class Queue(Multicaster):
        def __iter__(self) -> Iterator[str | None]:
            while True:
                yield queue.pop(0) if queue else None

    sender = Queue(port=free_port, ttl=0, poller=timed, interval=0.1)
    for _ in range(8):
        turns(timed)
        clock.advance(0.05)
    queue += map(str, range(20))
    turns(timed)
    counts = [len(ear.heard())]
    for _ in range(4):
        clock.advance(0.1001)
        turns(timed)
        counts.append(len(ear.heard()))
    assert counts == [1, 1, 1, 1, 1]
    sender.close()


def test_the_pace_can_be_changed(timed: Poller, clock: Clock, ear: Ear, free_port: int) -> None:
    sender = Script(map(str, range(100)), port=free_port, ttl=0, poller=timed, interval=1)
    turns(timed)
    sender.interval = 0.1
    clock.advance(1)
    turns(timed)
    assert len(ear.heard()) == 2
    clock.advance(0.1001)
    turns(timed)
    assert len(ear.heard()) == 1
    sender.close()


def test_a_paced_sender_does_not_keep_the_poller_busy(ear: Ear, free_port: int) -> None:
    class Counting(Poller):
        polls = 0

        def poll(self, timeout: float | None = 0) -> None:
            self.polls += 1
            super().poll(timeout)

    with Counting() as poller:
        sender = Script(["a", "b", "c"], port=free_port, ttl=0, poller=poller, interval=0.03)
        poller.loop()
        assert sender.closed
        assert poller.polls < 20
    assert ear.heard() == [b"a", b"b", b"c"]


def test_a_paced_sender_goes_on_with_another_poller_and_does_not_spin(
    timed: Poller, clock: Clock, ear: Ear, free_port: int
) -> None:
    asked: list[float] = []

    class Counting(Poller):
        def modify(self, fd: Any, flags: int) -> None:
            asked.append(clock.now)
            super().modify(fd, flags)

    sender = Script(map(str, range(100)), port=free_port, ttl=0, poller=timed, interval=1)
    turns(timed)
    with Counting(clock=clock) as other:
        other.register(sender)
        assert sender.poller is other
        turns(other, 100)
        assert len(asked) <= 2
        assert len(ear.heard()) == 1
        clock.advance(1)
        turns(timed)
        assert ear.heard() == []
        turns(other)
        assert ear.heard() == [b"1"]


def test_a_resting_sender_can_be_unregistered_and_registered_again(
    timed: Poller, clock: Clock, ear: Ear, free_port: int
) -> None:
    sender = Script(map(str, range(100)), port=free_port, ttl=0, poller=timed, interval=1)
    turns(timed)
    timed.unregister(sender)
    clock.advance(5)
    turns(timed)
    assert ear.heard() == [b"0"]
    assert not sender.closed
    timed.register(sender)
    turns(timed)
    assert ear.heard() == [b"1"]
    sender.close()


def test_a_sender_can_be_driven_by_a_loop_of_ones_own(ear: Ear, free_port: int) -> None:
    sender = Script(["a", None, "b"], port=free_port, ttl=0)
    multicast.unregister(sender)
    loop = select.poll()
    loop.register(sender, select.POLLOUT)
    deadline = time.monotonic() + 20
    while not sender.closed and time.monotonic() < deadline:
        if loop.poll(1000):
            sender.handle_write()
    assert ear.heard() == [b"a", b"b"]


def test_a_paced_sender_closes_after_its_last_packet(poller: Poller, free_port: int) -> None:
    sender = Script(["a", "b"], port=free_port, ttl=0, poller=poller, interval=0.001)
    poller.loop()
    assert sender.closed


# -- the system says no --------------------------------------------------------------------------------------


class Refusing:
    """Stands before a sender's socket and refuses, as the system would, what the test says.

    `errors` are the numbers of the errors, 0 where it takes packets; `most` is how many it takes at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int, most: int | None = None) -> None:
        self.errors = list(errors)
        send = multicast.batch.send

        def refuse(writer: Any, packets: Any, start: int = 0) -> int:
            if self.errors:
                number = self.errors.pop(0)
                if number:
                    raise OSError(number, os.strerror(number))
            return send(writer, packets if most is None else packets[: start + most], start)

        monkeypatch.setattr(multicast.batch, "send", refuse)


def test_a_full_socket_buffer_is_waited_for(
    poller: Poller, ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Refusing(monkeypatch, errno.EAGAIN, 0, errno.EAGAIN)
    Script(map(str, range(100)), port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert ear.heard() == [b"%d" % number for number in range(100)]
    Refusing(monkeypatch, errno.EAGAIN, 0, errno.EAGAIN)
    assert sendto(map(str, range(100)), port=free_port, ttl=0) == 100
    assert ear.heard() == [b"%d" % number for number in range(100)]


def test_a_full_queue_is_tried_again_on_a_timer_and_counted(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    refusing = Refusing(monkeypatch, errno.ENOBUFS, errno.ENOBUFS)
    with Poller(clock=clock) as poller:
        sender = Script(["a", "b"], port=free_port, ttl=0, poller=poller)
        turns(poller, 50)
        assert len(refusing.errors) == 1, "no spinning: the socket says it is writable"
        clock.advance(0.1)
        turns(poller, 50)
        assert ear.heard() == []
        clock.advance(0.1)
        turns(poller, 50)
        assert ear.heard() == [b"a", b"b"]
        assert sender.statistics().full == 2
        assert sender.closed


def test_sendto_tries_again_when_the_queue_is_full(ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Refusing(monkeypatch, errno.ENOBUFS, errno.ENOBUFS, 0, errno.ENOBUFS)
    assert sendto(map(str, range(100)), port=free_port, ttl=0) == 100
    assert ear.heard() == [b"%d" % number for number in range(100)]


def test_a_paced_sender_tries_a_full_queue_again_before_its_next_packet_is_due(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    Refusing(monkeypatch, errno.ENOBUFS)
    with Poller(clock=clock) as poller:
        Script(["a", "b"], port=free_port, ttl=0, poller=poller, interval=10)
        turns(poller)
        assert ear.heard() == []
        clock.advance(0.1)
        turns(poller)
        assert ear.heard() == [b"a"]


def test_a_paced_sender_does_not_try_a_network_that_is_gone_at_its_pace(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    refusing = Refusing(monkeypatch, *[errno.ENETDOWN] * 100)
    with Poller(clock=clock) as poller:
        sender = Script(map(str, range(100)), port=free_port, ttl=0, poller=poller, interval=0.001)
        with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)):
            turns(poller)
        for tries in (1, 2, 3):
            for _ in range(20):
                clock.advance(0.001)
                turns(poller)
            assert len(refusing.errors) == 100 - tries
            clock.advance(1)
            turns(poller)
        sender.close()


def test_a_sender_that_is_not_registered_sends_when_it_is_called_and_at_no_other_time(
    ear: Ear, free_port: int
) -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        sender = Script(["a", "b"], port=free_port, ttl=0, poller=poller, interval=1)
        turns(poller, 1)
        assert ear.heard() == [b"a"]
        poller.unregister(sender)
        sender.handle_write()  # nothing is due
        clock.advance(2)
        turns(poller)
        assert ear.heard() == []
        sender.handle_write()
        assert ear.heard() == [b"b"]
        sender.close()


def test_a_sender_has_no_address_before_the_kernel_has_chosen_its_port(free_port: int) -> None:
    with Sender(port=free_port) as sender:
        assert sender.address is None
        assert repr(sender) == f"<Sender to 224.0.42.42:{free_port}>"
    assert repr(sender) == f"<Sender to 224.0.42.42:{free_port}, closed>"


def test_a_sender_is_heard_on_this_host_from_the_port_and_the_address_chosen(ear: Ear, free_port: int) -> None:
    with Sender(port=free_port, ttl=0) as first, Sender(port=free_port, ttl=0) as second:
        assert first.send("a") == second.send("b") == 1
        chosen = [sender.address[1] for sender in (first, second) if sender.address]
    with Sender(port=free_port, ttl=0, source_ip="127.0.0.2") as third:
        third.send("c")
    assert ear.heard() == [b"a", b"b", b"c"]
    assert [host for host, _ in ear.addrs] == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    ports = [port for _, port in ear.addrs]
    assert ports[:2] == chosen
    assert min(ports) >= 1024
    assert len(set(chosen)) == 2


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of `sendto`, in seconds; they pass at once."""
    clock, made = Clock(), []

    def pause(seconds: float) -> None:
        made.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr(transmission, "time", SimpleNamespace(monotonic=clock, perf_counter=time.perf_counter))
    monkeypatch.setattr(sender, "sleep", pause)
    return made


def test_a_queue_that_stays_full_is_an_error_after_ten_seconds(
    free_port: int, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    Refusing(monkeypatch, *[errno.ENOBUFS] * 2000)
    with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)) as raised:
        sendto(["a", "b"], port=free_port, ttl=0)
    assert 10 < sum(pauses) < 10.1
    assert max(pauses) == 0.01
    assert "queue" in raised.value.__notes__[0]


def test_a_queue_that_has_room_now_and_then_is_tried_for_longer(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    full = [errno.ENOBUFS] * 600  # six seconds
    Refusing(monkeypatch, *full, 0, *full, 0, most=1)
    assert sendto(["a", "b"], port=free_port, ttl=0) == 2
    assert sum(pauses) > 11
    assert ear.heard() == [b"a", b"b"]


def test_the_pauses_for_a_full_queue_begin_short_again_after_a_success(
    free_port: int, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    full = [errno.ENOBUFS] * 6
    Refusing(monkeypatch, *full, 0, *full, 0, most=1)
    assert sendto(["a", "b"], port=free_port, ttl=0) == 2
    assert pauses == 2 * [0.001, 0.002, 0.004, 0.008, 0.01, 0.01]


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENODEV])
def test_a_packet_is_kept_until_the_network_is_back(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        refusing = Refusing(monkeypatch, number, number)
        sender = Script(["a", "b"], port=free_port, ttl=0, poller=poller)
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            turns(poller)
        assert raised.value.__notes__
        turns(poller, 50)
        assert len(refusing.errors) == 1, "it waits, and does not spin"
        clock.advance(10)
        turns(poller)  # the same trouble is reported once
        clock.advance(10)
        turns(poller)
        assert ear.heard() == [b"a", b"b"]
        assert sender.closed
        assert sender.statistics().refused == 0


def test_the_same_trouble_is_reported_again_when_it_comes_again(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    reported: list[Exception] = []

    class Careful(Script):
        def handle_error(self, error: Exception) -> None:
            reported.append(error)

    with Poller(clock=clock) as poller:
        gone = errno.ENETDOWN
        Refusing(monkeypatch, gone, gone, 0, gone, gone)
        Careful(["a", "b", "c"], port=free_port, ttl=0, poller=poller, interval=1)
        for _ in range(10):
            turns(poller)
            clock.advance(1)
    assert [error.errno for error in reported if isinstance(error, OSError)] == [gone, gone]
    assert ear.heard() == [b"a", b"b", b"c"]


def test_a_packet_that_is_refused_is_reported_and_counted_and_the_next_goes(
    poller: Poller, ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Refusing(monkeypatch, errno.EPERM, 0)
    sender = Script(["a", "b", "c"], port=free_port, ttl=0, poller=poller)
    with pytest.raises(PermissionError) as raised:
        poller.loop()
    assert "firewall" in raised.value.__notes__[0]
    poller.loop()
    assert ear.heard() == [b"b", b"c"]
    assert (sender.statistics().packets, sender.statistics().refused) == (2, 1)
    assert sender.closed


def test_errors_go_to_handle_error(
    poller: Poller, ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []

    class Careful(Script):
        def handle_error(self, error: Exception) -> None:
            errors.append(error)

    Refusing(monkeypatch, errno.EPERM, errno.EMSGSIZE)
    Careful(["a", "b", "c"], port=free_port, ttl=0, poller=poller)
    poller.loop()
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.EPERM, errno.EMSGSIZE]
    assert ear.heard() == [b"c"]


def test_sendto_says_what_happened_and_how_many_went_before(
    ear: Ear, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    Refusing(monkeypatch, 0, errno.ENETUNREACH)
    with pytest.raises(OSError, match="unreachable") as raised:
        sendto(map(str, range(100)), port=free_port, ttl=0)
    notes = " ".join(raised.value.__notes__)
    count = len(ear.heard())
    assert f"{count} packet" in notes
    assert "ip route add 224.0.0.0/4" in notes
    raised.value.__traceback__ = None
    assert descriptors() == before


def test_many_senders_share_a_poller(poller: Poller, ear: Ear, free_port: int) -> None:
    for name in "abc":
        Script([f"{name}{number}" for number in range(60)], port=free_port, ttl=0, poller=poller)
    settle(poller, lambda: len(poller) == 0)
    heard = ear.heard()
    for name in "abc":
        assert [packet for packet in heard if packet.startswith(name.encode())] == [
            f"{name}{number}".encode() for number in range(60)
        ]
