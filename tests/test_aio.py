"""The awaited form: the same cases on every event loop it promises to run on."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_type

import anyio
import helpers
import pytest
import trio
import uvloop

import multicast
from multicast import Address, MulticastListener, Poller, aio
from multicast.aio._asking import ResponderOptions
from multicast.discovery import Responder
from multicast.sockets import Group

GROUP = "239.77.1.1"
OTHER = "239.77.1.2"


def on_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


def on_uvloop(main: Callable[[], Awaitable[Any]]) -> Any:
    return uvloop.run(main())  # type: ignore[arg-type]


def on_trio(main: Callable[[], Awaitable[Any]]) -> Any:
    return trio.run(main)


def on_anyio(main: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(main, backend="asyncio")


def on_anyio_over_trio(main: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(main, backend="trio")


LOOPS = [on_asyncio, on_uvloop, on_trio, on_anyio, on_anyio_over_trio]
ASYNCIO_LOOPS = [on_asyncio, on_uvloop]

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=LOOPS, ids=lambda function: function.__name__[3:])
def run(request: pytest.FixtureRequest) -> Run:
    function: Run = request.param
    return function


@pytest.fixture(params=ASYNCIO_LOOPS, ids=lambda function: function.__name__[3:])
def run_asyncio(request: pytest.FixtureRequest) -> Run:
    function: Run = request.param
    return function


@pytest.fixture(scope="module", autouse=True)
def loops_have_run_once() -> None:
    """Event loops keep some descriptors for the life of the process; those are not ours to close."""

    async def nothing() -> None:
        pass

    for function in LOOPS:
        function(nothing)


class Collector(MulticastListener):
    """Keeps what it gets, and ends at a packet that says so."""

    def __init__(self, **options: Any) -> None:
        self.got: list[bytes] = []
        super().__init__(ip=GROUP, **options)

    def handle_packet(self, packet: bytes, addr: Address) -> bool:
        self.got.append(packet)
        return packet == b"end"


# -- listening -----------------------------------------------------------------------------------------------------


def test_listen_yields_packets_and_addresses_in_order(run: Run, free_port: int) -> None:
    async def main() -> list[tuple[bytes, str, str | None]]:
        got = []
        async with aio.listen(GROUP, free_port) as packets:
            multicast.sendto([b"one", b"two", b"three"], GROUP, free_port)
            async for packet, addr in packets:
                got.append((packet, addr.host, addr.group))
                if len(got) == 3:
                    break
        return got

    assert run(main) == [(text, "127.0.0.1", GROUP) for text in (b"one", b"two", b"three")]


def test_listen_can_give_the_newest_packet_of_each_source(run: Run, free_port: int) -> None:
    async def main() -> tuple[list[bytes], int]:
        async with aio.listen(GROUP, free_port, latest=True) as packets:
            with multicast.Sender(GROUP, free_port) as one, multicast.Sender(GROUP, free_port) as two:
                one.send(["one 1", "one 2"])
                two.send("two 1")
                one.send("one 3")
            got = [(await anext(packets))[0] for _ in range(2)]
            return got, packets.superseded

    assert run(main) == ([b"one 3", b"two 1"], 2)


def test_listen_ends_after_its_limit_and_filters(run: Run, free_port: int) -> None:
    async def main() -> tuple[list[bytes], int]:
        async with aio.listen(GROUP, free_port, filter=rb"\d", limit=2) as packets:
            await aio.sendto(["a", "1", "b", "2", "3"], GROUP, free_port)
            got = [packet async for packet, addr in packets]
        return got, packets.statistics().filtered

    got, filtered = run(main)
    assert got == [b"1", b"2"]
    assert filtered == 2


def test_packets_wait_in_the_kernel_while_nobody_asks_and_overflow_is_counted(run: Run, free_port: int) -> None:
    async def main() -> tuple[int, int]:
        async with aio.listen(GROUP, free_port, rcvbuf=4096) as packets:
            await aio.sendto((b"x" * 500 for _ in range(200)), GROUP, free_port)
            await aio.sendto(b"", GROUP, free_port)
            before = packets.statistics()
            assert before.packets == 0  # nothing was read in advance
            count = 0
            while before.dropped + count < 201:
                await anext(packets)
                count += 1
        return before.dropped, count

    dropped, received = run(main)
    assert dropped > 0
    assert dropped + received == 201


def test_several_listeners_are_awaited_together(run: Run, free_port: int) -> None:
    async def main() -> dict[str, list[bytes]]:
        got: dict[str, list[bytes]] = {GROUP: [], OTHER: []}

        async def receive(group: str) -> None:
            async with aio.listen(group, free_port, limit=2) as packets:
                async for packet, _ in packets:
                    got[group].append(packet)

        async with in_tasks(receive, GROUP, OTHER):
            await joined(GROUP, OTHER)
            await aio.sendto([b"1", b"2"], GROUP, free_port)
            await aio.sendto([b"3", b"4"], OTHER, free_port)
        return got

    assert run(main) == {GROUP: [b"1", b"2"], OTHER: [b"3", b"4"]}


def test_cancelling_leaves_the_group_at_once(run: Run, free_port: int) -> None:
    async def main() -> None:
        async def receive(group: str) -> None:
            async with aio.listen(group, free_port) as packets:
                async for _ in packets:
                    raise AssertionError("nobody sends")

        with anyio.move_on_after(30) as scope:
            async with in_tasks(receive, GROUP):
                await joined(GROUP)
                scope.cancel()
        assert not helpers.joined(GROUP)

    run(main)


def test_closing_ends_the_iteration_of_a_task_that_waits(run: Run, free_port: int) -> None:
    async def main() -> list[str]:
        events = []
        packets = aio.listen(GROUP, free_port)

        async def receive(_: str) -> None:
            async with packets:
                async for _packet in packets:
                    events.append("packet")
            events.append("ended")

        before = descriptors()
        async with in_tasks(receive, GROUP):
            await joined(GROUP)
            packets.close()
            packets.close()
        assert descriptors() == before
        return events

    assert run(main) == ["ended"]


def test_leaving_the_context_ends_the_iteration_of_another_task(run: Run, free_port: int) -> None:
    async def main() -> list[str]:
        events: list[str] = []
        packets = aio.listen(GROUP, free_port)
        before = descriptors()

        async def receive(_: str) -> None:
            await entered.wait()
            async for _packet in packets:
                events.append("packet")
            events.append("ended")

        entered = anyio.Event()
        async with in_tasks(receive, GROUP), packets:
            entered.set()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
        assert descriptors() == before
        return events

    assert run(main) == ["ended"]


def test_two_tasks_cannot_wait_on_one_listener(run: Run, free_port: int) -> None:
    async def main() -> None:
        async with aio.listen(GROUP, free_port) as packets:
            started = anyio.Event()

            async def first(_: str) -> None:
                started.set()
                async for _packet in packets:
                    break

            async with in_tasks(first, GROUP):
                await started.wait()
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                with pytest.raises(RuntimeError, match="another task"):
                    await anext(packets)
                packets.close()

    run(main)


def test_a_failing_filter_raises_in_the_task_that_awaits(run: Run, free_port: int) -> None:
    def fails(packet: bytes, addr: Address) -> bool:
        raise LookupError("no such packet")

    async def main() -> None:
        async with aio.listen(GROUP, free_port, filter=fails) as packets:
            await aio.sendto("x", GROUP, free_port)
            with pytest.raises(LookupError, match="no such packet"):
                await anext(packets)

    run(main)


def test_bad_arguments_raise_on_entering_and_leave_nothing(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(multicast.GroupError):
            async with aio.listen("10.0.0.1"):
                pass
        with pytest.raises(RuntimeError, match="enter the context"):
            await anext(aio.listen(GROUP))

    run(main)


@pytest.mark.parametrize("limit", [0, -1, "x", True])
def test_a_limit_that_is_no_number_of_packets_is_refused_before_anything_is_opened(limit: Any) -> None:
    with pytest.raises(multicast.ArgumentError, match="limit must be a number of packets, 1 or more"):
        aio.listen(GROUP, limit=limit)


# -- sending -------------------------------------------------------------------------------------------------------


def test_sendto_lets_other_tasks_run_between_batches(run: Run, free_port: int) -> None:
    async def main() -> tuple[int, list[int]]:
        order: list[int] = []

        def packets() -> Iterator[bytes]:
            for number in range(1000):
                order.append(number)
                yield b"x"

        seen: list[int] = []

        async def other(_: str) -> None:
            while len(order) < 1000:
                seen.append(len(order))
                await anyio.lowlevel.checkpoint()

        async with in_tasks(other, GROUP):
            sent = await aio.sendto(packets(), GROUP, free_port)
        return sent, seen

    sent, seen = run(main)
    assert sent == 1000
    assert any(0 < count < 1000 for count in seen)


def test_a_sender_sends_again_and_again_from_one_port(run: Run, free_port: int) -> None:
    async def main() -> tuple[list[bytes], int]:
        ports = set()
        got = []
        async with aio.listen(GROUP, free_port, limit=3) as packets, aio.Sender(GROUP, free_port) as sender:
            await sender.send("a")
            await sender.send([b"b", "c"])
            async for packet, addr in packets:
                got.append(packet)
                ports.add(addr.port)
        return got, len(ports)

    assert run(main) == ([b"a", b"b", b"c"], 1)


@contextmanager
def slow_wire(rate: str) -> Iterator[None]:
    """Make "vslow", a veth pair in our own namespace that takes packets at `rate`; the other end, "vfar", nobody reads.

    The burst is a token bucket's: so many bytes go at once.
    """
    subprocess.run(["ip", "link", "add", "vslow", "type", "veth", "peer", "name", "vfar"], check=True)
    try:
        for name in ("vslow", "vfar"):
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        subprocess.run(["ip", "addr", "add", "10.88.0.1/24", "dev", "vslow"], check=True)
        tbf = f"tc qdisc replace dev vslow root tbf rate {rate} burst 4kb limit 10mb"
        subprocess.run(tbf.split(), check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "del", "vslow"], check=True)


def small_sender(port: int) -> aio.Sender:
    """A sender by the slow wire whose socket has room for few packets."""
    sender = aio.Sender(GROUP, port, interface="vslow")
    sender._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return sender


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("tc")
def test_a_sender_waits_while_the_kernel_has_no_room(run: Run, lab: Any, free_port: int) -> None:
    """With a slow queue and a small socket buffer, everything is sent, in order."""
    with slow_wire("4mbit"):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        with sniffer:
            sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # all frames, before any is read
            sniffer.bind(("vfar", 0x0800))
            sniffer.settimeout(10)

            async def main() -> int:
                async with small_sender(free_port) as sender:
                    return await sender.send(b"%04d" % number + bytes(996) for number in range(100))

            assert run(main) == 100
            numbers: list[int] = []
            while len(numbers) < 100:
                frame = sniffer.recv(2000)
                if frame[9] == socket.IPPROTO_UDP and frame[16:20] == socket.inet_aton(GROUP):
                    numbers.append(int(frame[28:32]))
            assert numbers == list(range(100))


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("tc")
def test_two_tasks_may_wait_for_room_at_one_sender(run: Run, lab: Any, free_port: int) -> None:
    async def main() -> list[int]:
        sent: list[int] = []
        async with small_sender(free_port) as sender:

            async def send(_: str) -> None:
                sent.append(await sender.send(bytes(1000) for _ in range(50)))

            async with in_tasks(send, "one", "two"):
                pass
            assert not sender._wakers
        return sent

    with slow_wire("4mbit"):
        assert run(main) == [50, 50]


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("tc")
def test_closing_a_sender_ends_the_waiting_of_a_task(run: Run, lab: Any, free_port: int) -> None:
    async def main() -> list[str]:
        notes: list[str] = []
        sender = small_sender(free_port)
        before = descriptors()

        async def send(_: str) -> None:
            with pytest.raises(OSError) as caught:
                await sender.send(bytes(1000) for _ in range(100))
            notes.extend(caught.value.__notes__)

        async with in_tasks(send, "one", "two"):
            while len(sender._wakers) < 2:
                await anyio.lowlevel.checkpoint()
            sender.close()
            sender.close()
        assert len(descriptors()) == len(before) - 1
        return notes

    with slow_wire("1kbit"):
        notes = run(main)
    assert notes.count("The sender is closed; make another one to send more.") == 2


def test_a_sender_that_was_closed_says_so(run: Run, free_port: int) -> None:
    async def main() -> None:
        async with aio.Sender(GROUP, free_port) as sender:
            pass
        with pytest.raises(OSError) as caught:
            await sender.send("x")
        assert "The sender is closed; make another one to send more." in caught.value.__notes__

    run(main)


# -- driving a poller ----------------------------------------------------------------------------------------------


def test_drive_runs_handlers_and_timers_of_a_poller(run: Run, poller: Poller, free_port: int) -> None:
    async def main() -> tuple[list[bytes], list[str]]:
        listener = Collector(port=free_port, poller=poller)
        done = anyio.Event()
        rang: list[str] = []
        async with aio.drive(poller):
            poller.call_later(0.001, rang.append, "timer")
            poller.call_later(0.002, lambda: aio_send(free_port))
            poller.call_later(0.02, done.set)
            await done.wait()
            while not listener.closed:
                await anyio.sleep(0.001)
        return listener.got, rang

    def aio_send(port: int) -> None:
        multicast.sendto(["one", "end"], GROUP, port)

    assert run(main) == ([b"one", b"end"], ["timer"])


def test_what_a_handler_raises_reaches_the_task_inside_drive(run: Run, poller: Poller) -> None:
    def fails() -> None:
        raise LookupError("from a timer")

    async def main() -> None:
        with pytest.raises(LookupError, match="from a timer"):  # noqa: PT012 -- the body is where it must arrive
            async with aio.drive(poller):
                poller.call_later(0.001, fails)
                await anyio.sleep(30)
        await anyio.sleep(0)  # and no cancellation is left over

    run(main)


def test_an_error_that_comes_as_the_body_ends_is_raised_all_the_same(run_asyncio: Run, poller: Poller) -> None:
    async def main() -> str:
        try:
            async with aio.drive(poller):
                poller.call_soon(int, "no number")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await asyncio.sleep(0.01)
        except ValueError:
            await asyncio.sleep(0)
            return "raised"
        return "lost"

    assert run_asyncio(main) == "raised"


def test_a_cancellation_from_outside_stays_a_cancellation(run_asyncio: Run, poller: Poller) -> None:
    async def main() -> str:
        async def inside() -> None:
            async with aio.drive(poller):
                await asyncio.sleep(30)

        task = asyncio.create_task(inside())
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "not cancelled"

    assert run_asyncio(main) == "cancelled"


def test_a_cancellation_from_outside_is_not_lost_to_an_error(run_asyncio: Run, poller: Poller) -> None:
    async def main() -> tuple[bool, str]:
        contexts: list[str] = []

        def fails() -> None:
            task.cancel()
            raise LookupError("at the same moment")

        async def inside() -> None:
            try:
                async with aio.drive(poller):
                    poller.call_soon(fails)
                    await asyncio.sleep(30)
            except asyncio.CancelledError as cancellation:
                contexts.append(repr(cancellation.__context__))
                raise

        task = asyncio.create_task(inside())
        await asyncio.wait([task])
        return task.cancelled(), contexts[0]

    assert run_asyncio(main) == (True, "LookupError('at the same moment')")


def test_a_cancellation_from_outside_is_not_lost_as_the_body_ends(run_asyncio: Run, poller: Poller) -> None:
    async def main() -> bool:
        async def inside() -> None:
            async with aio.drive(poller):
                poller.call_soon(int, "no number")
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    task.cancel()  # by somebody else, as it seems

        task = asyncio.create_task(inside())
        await asyncio.wait([task])
        return task.cancelled()

    assert run_asyncio(main) is True


@pytest.mark.parametrize("run_trio", [on_trio, on_anyio_over_trio])
def test_on_trio_an_error_goes_before_a_cancellation_from_outside(run_trio: Run, poller: Poller) -> None:
    """As in trio's own nurseries: what is cancelled can be cancelled later, and an error is there once."""

    async def main() -> None:
        def fails() -> None:
            scope.cancel()
            raise LookupError("at the same moment")

        scope = trio.CancelScope()
        with pytest.raises(LookupError, match="at the same moment"), scope:  # noqa: PT012 -- this is where it must arrive
            async with aio.drive(poller):
                poller.call_soon(fails)
                await trio.sleep(30)

    run_trio(main)


@pytest.mark.parametrize("run_trio", [on_trio, on_anyio_over_trio])
def test_on_trio_an_error_is_told_from_the_cancellations_beside_it(run_trio: Run, free_port: int) -> None:
    async def main() -> None:
        begun: list[bytes] = []

        async def answer(packet: bytes, addr: Address) -> None:
            begun.append(packet)
            while len(begun) < 2:
                await trio.lowlevel.checkpoint()
            if packet == b"fails":
                scope.cancel()
                raise LookupError("at the same moment")
            await trio.sleep(30)

        scope = trio.CancelScope()
        with pytest.raises(LookupError, match="at the same moment"), scope:  # noqa: PT012 -- this is where it must arrive
            async with aio.responder(answer, GROUP, free_port):
                multicast.sendto(["waits", "fails"], GROUP, free_port)
                await trio.sleep(30)

    run_trio(main)


def test_an_error_of_the_body_in_answer_has_that_of_the_handler_as_its_context(run: Run, poller: Poller) -> None:
    def fails() -> None:
        raise LookupError("from a timer")

    async def main() -> BaseException | None:
        with pytest.raises(RuntimeError, match="of the body") as caught:  # noqa: PT012 -- the body is where it is raised
            async with aio.drive(poller):
                poller.call_later(0.001, fails)
                try:
                    await anyio.sleep(30)
                except anyio.get_cancelled_exc_class():
                    raise RuntimeError("of the body") from None
        await anyio.sleep(0)  # and no cancellation is left over
        return caught.value.__context__

    assert repr(run(main)) == "LookupError('from a timer')"


def test_an_error_of_the_body_alone_is_raised_as_it_is(run: Run, poller: Poller) -> None:
    async def main() -> tuple[list[str], str]:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 -- the body is where it is raised
            async with aio.drive(poller):
                try:
                    int("no number")
                except ValueError:
                    raise ExceptionGroup("of the body", [KeyError("one")])  # noqa: B904 -- its context counts here
        return [repr(error) for error in caught.value.exceptions], type(caught.value.__context__).__name__

    assert run(main) == (["KeyError('one')"], "ValueError")


def test_an_error_of_a_handler_keeps_its_cause_and_its_context(run: Run, poller: Poller) -> None:
    def fails() -> None:
        try:
            int("no number")
        except ValueError as error:
            raise LookupError("from a timer") from error

    async def main() -> tuple[str, str]:
        with pytest.raises(LookupError) as caught:  # noqa: PT012 -- the body is where it must arrive
            async with aio.drive(poller):
                poller.call_soon(fails)
                await anyio.sleep(30)
        return type(caught.value.__cause__).__name__, type(caught.value.__context__).__name__

    assert run(main) == ("ValueError", "ValueError")


def test_after_an_error_no_handler_runs_while_the_body_clears_up(run_asyncio: Run, poller: Poller) -> None:
    ran: list[str] = []

    async def main() -> None:
        with pytest.raises(ValueError, match="no number"):  # noqa: PT012 -- the body is where it must arrive
            async with aio.drive(poller):
                poller.call_soon(int, "no number")
                poller.call_soon(ran.append, "the next")
                try:
                    await asyncio.sleep(30)
                finally:
                    for _ in range(10):
                        await asyncio.sleep(0)
                    ran.append("cleared up")

    run_asyncio(main)
    assert ran == ["cleared up"]


@pytest.mark.parametrize("turns", [0, 3])
def test_a_driven_poller_may_be_closed(run: Run, poller: Poller, turns: int, free_port: int) -> None:
    async def main() -> None:
        before = descriptors()
        listener = Collector(port=free_port, poller=poller)
        async with aio.drive(poller):
            for _ in range(turns):  # event loops tell the kernel at different times what they watch
                await anyio.lowlevel.checkpoint()
            poller.close()
            # What has the numbers next is nobody's business here.
            others = socket.socketpair(), socket.socketpair()
            for pair in others:
                pair[0].send(b"readable")
            for _ in range(3):
                await anyio.sleep(0.001)
            for pair in others:
                for end in pair:
                    end.close()
        assert listener.closed
        assert descriptors() == before

    run(main)


def test_an_idle_driven_poller_wakes_nobody(run: Run, poller: Poller, free_port: int) -> None:
    polls = 0
    original = poller.poll

    def counted(timeout: float | None = 0) -> None:
        nonlocal polls
        polls += 1
        original(timeout)

    poller.poll = counted  # type: ignore[method-assign]

    async def main() -> int:
        with Collector(port=free_port, poller=poller):
            async with aio.drive(poller):
                await anyio.sleep(0.05)
                settled = polls
                await anyio.sleep(0.2)
                return polls - settled

    assert run(main) == 0


# -- asking and answering ------------------------------------------------------------------------------------------


def test_requests_are_answered_by_an_async_handler(run: Run, free_port: int) -> None:
    async def answer(packet: bytes, addr: Address) -> bytes | None:
        await anyio.sleep(0)
        return packet.upper() if packet != b"silence" else None

    async def main() -> tuple[list[bytes], list[bytes], float, int]:
        async with aio.responder(answer, GROUP, free_port) as responder:
            first = [packet for packet, _ in await aio.request("one", GROUP, free_port, limit=1)]
            asked = aio.request("two", GROUP, free_port, limit=1)
            second = [packet async for packet, _ in asked]
            nothing = await aio.request("silence", GROUP, free_port, timeout=0.05)
            assert nothing == []
            return first, second, asked.round_trip, responder.reply_statistics().sent

    first, second, round_trip, sent = run(main)
    assert (first, second, sent) == ([b"ONE"], [b"TWO"], 2)
    assert 0 < round_trip < 30


def test_each_reply_has_the_round_trip_of_its_own(run: Run, free_port: int) -> None:
    async def main() -> list[float]:
        times = []
        replies = aio.request("Hello", GROUP, free_port, limit=2, timeout=30)
        to = ("127.0.0.1", replies._requester.address[1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
            for packet in (b"one", b"two"):  # both wait there before anybody looks
                responder.sendto(packet, to)
        async for _ in replies:
            times.append(replies.round_trip)
        return times

    first, second = run(main)
    assert first > 0
    assert first != second


def test_what_an_async_handler_raises_reaches_the_task_inside(run: Run, free_port: int) -> None:
    async def answer(packet: bytes, addr: Address) -> bytes:
        raise LookupError("no answer to that")

    async def main() -> None:
        with pytest.raises(LookupError, match="no answer"):  # noqa: PT012 -- the body is where it must arrive
            async with aio.responder(answer, GROUP, free_port):
                await aio.sendto("question", GROUP, free_port)
                await anyio.sleep(30)
        assert not helpers.joined(GROUP)

    run(main)


def test_closing_replies_ends_the_waiting_of_a_task(run: Run, free_port: int) -> None:
    async def main(turns: int, close: Callable[[aio.Replies], object]) -> list[object]:
        got: list[object] = []
        before = descriptors()
        replies = aio.request("anybody?", GROUP, free_port, timeout=None)

        async def ask(_: str) -> None:
            got.append(await replies)

        async with in_tasks(ask, GROUP):
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            close(replies)
            close(replies)
        assert descriptors() == before
        return got

    for turns in (1, 2, 5):
        assert run(functools.partial(main, turns, lambda replies: replies.close())) == [[]]


def test_leaving_the_context_of_replies_ends_the_waiting_of_a_task(run: Run, free_port: int) -> None:
    async def main() -> list[str]:
        events = []

        async def ask(_: str) -> None:
            async for _reply in replies:
                raise AssertionError("nobody answers")
            events.append("ended")

        async with in_tasks(ask, ""), replies:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        return events

    replies = aio.request("anybody?", GROUP, free_port, timeout=None)
    assert run(main) == ["ended"]


def test_two_tasks_cannot_wait_on_one_request(run: Run, free_port: int) -> None:
    async def main() -> list[str]:
        events: list[str] = []
        replies = aio.request("anybody?", GROUP, free_port, timeout=None)

        async def ask(_: str) -> None:
            try:
                await replies
                events.append("ended")
            except RuntimeError as error:
                events.append(str(error))
                replies.close()  # only now, so the first had still waited

        async with in_tasks(ask, "one", "two"):
            pass
        return events

    refused, ended = run(main)
    assert refused == "another task waits for the next reply already; give each task a request of its own"
    assert ended == "ended"


def test_an_error_of_a_handler_that_is_cancelled_on_leaving_is_raised(run: Run, free_port: int) -> None:
    async def main() -> None:
        begun = anyio.Event()

        async def answer(packet: bytes, addr: Address) -> bytes:
            begun.set()
            try:
                await anyio.sleep(30)
            finally:
                raise LookupError("no time to answer")

        with pytest.raises(LookupError, match="no time to answer"):  # noqa: PT012 -- leaving is where it is raised
            async with aio.responder(answer, GROUP, free_port):
                await aio.sendto("question", GROUP, free_port)
                await begun.wait()
        await anyio.sleep(0)  # and no cancellation is left over

    run(main)


def test_an_error_on_leaving_lets_other_handlers_clear_up(run_asyncio: Run, free_port: int) -> None:
    async def main() -> list[bytes]:
        begun: list[bytes] = []
        cleared_up: list[bytes] = []

        async def answer(packet: bytes, addr: Address) -> None:
            begun.append(packet)
            try:
                await asyncio.sleep(30)
            finally:
                if packet == b"fails":
                    raise LookupError("no time to answer")
                for _ in range(3):
                    await asyncio.sleep(0)
                cleared_up.append(packet)

        with pytest.raises(LookupError, match="no time to answer"):  # noqa: PT012 -- leaving is where it is raised
            async with aio.responder(answer, GROUP, free_port):
                multicast.sendto(["one", "fails", "two"], GROUP, free_port)
                while len(begun) < 3:
                    await asyncio.sleep(0)
        return sorted(cleared_up)

    assert run_asyncio(main) == [b"one", b"two"]


def test_requests_that_wait_for_a_handler_are_not_begun_on_leaving(run_asyncio: Run, free_port: int) -> None:
    async def main() -> tuple[list[bytes], int]:
        begun: list[bytes] = []

        async def answer(packet: bytes, addr: Address) -> None:
            begun.append(packet)
            await asyncio.sleep(30)

        async with aio.responder(answer, GROUP, free_port, concurrent=1) as responder:
            multicast.sendto(["one", "two", "three"], GROUP, free_port)
            while not begun:
                await asyncio.sleep(0)
            assert responder.statistics().packets == 3
        return begun, len(asyncio.all_tasks())

    assert run_asyncio(main) == ([b"one"], 1)


def test_further_requests_are_left_in_the_kernel(run: Run, free_port: int) -> None:
    async def main() -> tuple[int, int]:
        begun, release = anyio.Event(), anyio.Event()

        async def answer(packet: bytes, addr: Address) -> bytes:
            begun.set()
            await release.wait()
            return packet

        async with aio.responder(answer, GROUP, free_port, concurrent=1) as responder:
            asked = [aio.request("0", GROUP, free_port, limit=1, timeout=30)]
            await begun.wait()
            for number in (1, 2, 3):
                asked.append(aio.request(str(number), GROUP, free_port, limit=1, timeout=30))
                responder.poller.poll(0)
            read = responder.statistics().packets
            release.set()
            return read, sum([len(await one) for one in asked])

    read, answered = run(main)
    assert read == 2  # the one that is answered, and the one that showed that there are too many
    assert answered == 4


@pytest.mark.parametrize("concurrent", [0, -1, 1.5])
def test_a_number_of_handlers_that_is_none_is_refused(run: Run, concurrent: Any) -> None:
    async def answer(packet: bytes, addr: Address) -> None:
        pass

    async def main() -> None:
        with pytest.raises(multicast.ArgumentError, match="concurrent must be a number of handlers, 1 or more"):
            async with aio.responder(answer, GROUP, concurrent=concurrent):
                pass

    run(main)


def test_requests_beyond_those_being_answered_wait_in_the_kernel(run: Run, free_port: int) -> None:
    async def main() -> tuple[int, int]:
        busy = most = 0

        async def answer(packet: bytes, addr: Address) -> bytes:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await anyio.sleep(0.001)
            busy -= 1
            return packet

        async with aio.responder(answer, GROUP, free_port, concurrent=2):
            asked = [aio.request(str(number), GROUP, free_port, limit=1, timeout=30) for number in range(9)]
            replies = 0
            for one in asked:
                replies += len(await one)
        return replies, most

    assert run(main) == (9, 2)


# -- asyncio's own interface ---------------------------------------------------------------------------------------


class Recording(asyncio.DatagramProtocol):
    """Writes down everything it is called with."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.changed = asyncio.Event()

    def note(self, *event: Any) -> None:
        self.events.append(event[0] if len(event) == 1 else event)
        self.changed.set()

    async def until(self, event: Any) -> None:
        while event not in self.events:
            self.changed.clear()
            await self.changed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.note("made")

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.note("received", data)

    def error_received(self, exc: Exception) -> None:
        self.note("error", type(exc).__name__)

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost", exc)

    def pause_writing(self) -> None:
        self.note("paused")

    def resume_writing(self) -> None:
        self.note("resumed")


def test_an_endpoint_receives_from_its_group_and_sends_to_it(run_asyncio: Run, free_port: int) -> None:
    async def main() -> list[Any]:
        transport, protocol = await aio.create_multicast_endpoint(Recording, GROUP, free_port)
        await protocol.until("made")
        transport.sendto(b"hello")
        await protocol.until(("received", b"hello"))
        assert transport.get_extra_info("sockname") == (GROUP, free_port)
        transport.close()
        transport.close()
        assert transport.is_closing()
        await protocol.until(("lost", None))
        return protocol.events

    assert run_asyncio(main) == ["made", ("received", b"hello"), ("lost", None)]


def test_answers_from_another_address_reach_an_endpoint(run_asyncio: Run, free_port: int) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        answerer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with answerer:
            answerer.bind(("127.0.0.1", 0))
            answerer.setblocking(False)
            async with aio.listen(GROUP, free_port) as packets:
                transport, protocol = await aio.create_multicast_endpoint(Recording, OTHER, free_port)
                transport.sendto(b"question", (GROUP, free_port))
                _, addr = await anext(packets)
                answerer.sendto(b"answer", tuple(addr))
                await protocol.until(("received", b"answer"))
                transport.close()
                await protocol.until(("lost", None))
        assert loop.is_running()
        return protocol.events

    assert run_asyncio(main) == ["made", ("received", b"answer"), ("lost", None)]


def test_an_endpoint_takes_sources_and_refuses_bad_ones(run_asyncio: Run, free_port: int) -> None:
    async def main() -> None:
        with pytest.raises(multicast.GroupError):
            await aio.create_multicast_endpoint(Recording, GROUP, free_port, sources=["239.1.1.1"])
        transport, protocol = await aio.create_multicast_endpoint(
            Recording, "232.7.7.7", free_port, sources=["127.0.0.1"], interface="lo"
        )
        multicast.sendto("from the source", "232.7.7.7", free_port, interface="lo")
        await protocol.until(("received", b"from the source"))
        transport.abort()
        await protocol.until(("lost", None))

    run_asyncio(main)


def test_what_a_protocol_raises_goes_to_the_loop_and_the_rest_is_received(run_asyncio: Run, free_port: int) -> None:
    class Fails(Recording):
        def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
            super().datagram_received(data, addr)
            if data == b"bad":
                raise LookupError("bad packet")

    async def main() -> tuple[list[Any], list[str]]:
        reports: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reports.append(str(context["exception"])))
        transport, protocol = await aio.create_multicast_endpoint(Fails, GROUP, free_port)
        await protocol.until("made")
        multicast.sendto(["good", "bad", "better"], GROUP, free_port)
        await protocol.until(("received", b"better"))
        transport.close()
        await protocol.until(("lost", None))
        return protocol.events, reports

    events, reports = run_asyncio(main)
    assert [event[1] for event in events if event[0] == "received"] == [b"good", b"bad", b"better"]
    assert reports == ["bad packet"]


@pytest.mark.parametrize(
    "address,words",
    [
        (("some.host", 1), "'some.host' is not an IP address; names are not looked up"),
        (("localhost", 1), "names are not looked up"),
        (("", 1), "names are not looked up"),
        (("::1", 1), "::1 is an IPv6 address, and the group of this transport is not"),
        (("0.0.0.0", 1), "nothing can be sent there"),  # noqa: S104 -- is what must be refused
        (("127.0.0.1",), "a tuple of address and port"),
        ("127.0.0.1:1", "names are not looked up"),
    ],
)
def test_an_endpoint_sends_to_addresses_alone_and_looks_up_no_name(
    run_asyncio: Run, free_port: int, address: Any, words: str
) -> None:
    async def main() -> list[Any]:
        transport, protocol = await aio.create_multicast_endpoint(Recording, GROUP, free_port)
        with pytest.raises(multicast.GroupError, match=words):
            transport.sendto(b"x", address)
        with pytest.raises(multicast.ArgumentError, match="port must be a number from 1 to 65535"):
            transport.sendto(b"x", ("127.0.0.1", 0))
        transport.close()
        await protocol.until(("lost", None))
        return protocol.events

    assert run_asyncio(main) == ["made", ("lost", None)]


def test_an_endpoint_takes_an_error_and_all_that_is_left_of_it(run_asyncio: Run, free_port: int) -> None:
    class Looks(Recording):
        transport: Any

        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            with pytest.raises(BlockingIOError):
                self.transport._private.socket.recvmsg(1, 0, socket.MSG_ERRQUEUE)
            self.note("nothing left")

    async def main() -> list[Any]:
        transport, protocol = await aio.create_multicast_endpoint(Looks, GROUP, free_port)
        protocol.transport = transport
        await protocol.until("made")
        transport.sendto(b"x", ("127.0.0.1", free_port))  # where the group is received, and unicast is not
        await protocol.until("nothing left")
        transport.close()
        await protocol.until(("lost", None))
        return protocol.events

    assert run_asyncio(main) == ["made", ("error", "ConnectionRefusedError"), "nothing left", ("lost", None)]


def test_a_protocol_is_resumed_before_all_of_it_is_sent(run_asyncio: Run, free_port: int) -> None:
    async def main() -> list[Any]:
        transport, protocol = await aio.create_multicast_endpoint(Recording, GROUP, free_port)
        await protocol.until("made")
        room = 0

        def send(packet: bytes, sockaddr: object) -> bool:
            nonlocal room
            room -= 1
            return room >= 0

        private = transport._private
        private.send = send  # type: ignore[method-assign]
        sizes: list[int] = []
        for number in range(70):
            transport.sendto(bytes(1000))
            if "paused" in protocol.events and not sizes:
                sizes.append(1000 * (number + 1))
        for more in range(1, 71):
            room = 1
            private.handle_write()
            if "resumed" in protocol.events:
                sizes.append(1000 * (70 - more))
                break
        assert transport.get_write_buffer_size() == sizes[-1]
        transport.abort()
        await protocol.until(("lost", None))
        return [*protocol.events, *sizes]

    # asyncio's own limits: 64 KiB, and a quarter of that.
    assert run_asyncio(main) == ["made", "paused", "resumed", ("lost", None), 66_000, 16_000]


# -- what a type checker is told ---------------------------------------------------------------------------------------


def test_a_type_checker_knows_what_is_received_and_asked(run: Run, free_port: int) -> None:
    """mypy reads this too, and finds an `assert_type` that is wrong and an `ignore` that is not needed."""

    async def answer(packet: bytes, addr: Address) -> bytes:
        return packet

    async def main() -> None:
        async with aio.responder(answer, GROUP, free_port, per_source=10, exclude=["127.0.0.9"]) as responder:
            assert_type(responder, Responder)
            assert_type(await aio.request("x", GROUP, free_port, limit=1), list[tuple[bytes, Address]])
            async for reply in aio.request("x", GROUP, free_port, limit=1):
                assert_type(reply, tuple[bytes, Address])
        async with aio.listen(GROUP, free_port, sources=["127.0.0.1"], details=True) as packets:
            assert_type(packets, aio.Packets)
            await aio.sendto("x", GROUP, free_port)
            assert_type(await anext(packets), tuple[bytes, Address])

    run(main)


def test_a_type_checker_refuses_what_is_refused_at_run_time(run: Run, free_port: int) -> None:
    async def answer(packet: bytes, addr: Address) -> bytes:
        return packet

    async def main() -> None:
        with pytest.raises(TypeError, match="rcvbufff"):
            aio.listen(GROUP, rcvbufff=3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="rcvbufff"):
            async with aio.responder(answer, GROUP, rcvbufff=3):  # type: ignore[call-overload]
                pass
        with pytest.raises(multicast.GroupError, match="cannot be combined"):
            async with aio.listen(  # type: ignore[call-overload]
                GROUP, sources=["127.0.0.1"], exclude=["127.0.0.2"]
            ):
                pass
        with pytest.raises(multicast.GroupError, match="cannot be combined"):
            async with aio.responder(  # type: ignore[call-overload]
                answer, GROUP, sources=["127.0.0.1"], exclude=["127.0.0.2"]
            ):
                pass

    run(main)


def test_a_type_checker_knows_all_keywords_of_a_responder() -> None:
    """They stand in `multicast.aio` a second time, as types; this is that none is forgotten or stays behind."""
    takes = {name for cls in (Responder, MulticastListener) for name in inspect.signature(cls).parameters}
    own = {"ip", "port", "mtu", "sources", "exclude"}  # in the signature itself
    assert set(ResponderOptions.__annotations__) == takes - own - {"options", "details", "poller"}


def test_a_type_checker_knows_the_protocol_and_the_parts_of_a_transport(run_asyncio: Run, free_port: int) -> None:
    async def main() -> None:
        transport, protocol = await aio.create_multicast_endpoint(Recording, GROUP, free_port)
        assert_type(protocol, Recording)
        opened = assert_type(transport.get_extra_info("socket"), socket.socket)
        assert opened.getsockname() == assert_type(transport.get_extra_info("sockname"), tuple[Any, ...])
        assert assert_type(transport.get_extra_info("group"), Group) == Group(GROUP, free_port)
        assert transport.get_extra_info("peername") is None
        transport.close()
        await protocol.until(("lost", None))

    run_asyncio(main)


# -- importing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loop,foreign",
    [("asyncio", ("trio", "uvloop", "anyio")), ("trio", ("asyncio", "uvloop", "anyio"))],
)
def test_event_loops_that_are_not_in_use_are_not_imported(loop: str, foreign: tuple[str, ...], free_port: int) -> None:
    code = f"""
import sys, {loop}
from multicast import aio
async def main():
    async with aio.listen({GROUP!r}, {free_port}, limit=1) as packets:
        await aio.sendto("x", {GROUP!r}, {free_port})
        async for packet, addr in packets:
            print(packet.decode())
{loop}.run(main{"()" if loop == "asyncio" else ""})
before = {{name for name in {foreign!r} if name in sys.modules}}
print(*sorted(name for name in before if name not in BASE))
"""
    base = f"import sys, {loop}; BASE = set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", base + code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["x"]


# -- the programs in the documentation --------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.mark.parametrize(
    "program,arguments,expected",
    [
        ("aio_asyncio.py", ["3"], [f"127.0.0.1 tick {number}" for number in range(3)]),
        ("aio_trio.py", ["0.5"], ["239.1.2.3: hello 239.1.2.3 from 127.0.0.1", "left both groups"]),
        ("aio_anyio.py", ["0.15"], ["1000 packets"]),
        ("aio_anyio.py", ["0.15", "trio"], ["1000 packets"]),
        ("aio_request.py", [], ["127.0.0.1: the thermometer in the hall", "answered in time"]),
    ],
)
def test_the_documented_programs_run(program: str, arguments: list[str], expected: list[str]) -> None:
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert set(expected) <= set(done.stdout.splitlines())


# -- helpers -------------------------------------------------------------------------------------------------------


def descriptors() -> list[str]:
    """Return what is open."""
    return sorted(os.listdir("/proc/self/fd"))


async def joined(*groups: str) -> None:
    """Wait until the groups are joined on this host."""
    while not all(map(helpers.joined, groups)):
        await anyio.sleep(0.001)


class in_tasks:  # noqa: N801 -- reads as a statement
    """Run a function once for each argument, beside the body; wait for all at the end."""

    def __init__(self, function: Callable[[str], Coroutine[Any, Any, None]], *arguments: str) -> None:
        self._function = function
        self._arguments: Iterable[str] = arguments

    async def __aenter__(self) -> None:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        for argument in self._arguments:
            self._group.start_soon(self._function, argument)

    async def __aexit__(self, *exc_info: object) -> bool | None:
        return await self._group.__aexit__(*exc_info)  # type: ignore[arg-type]
