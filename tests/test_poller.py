"""The poller: whom it calls and when, what it keeps, and how it comes through what goes wrong."""

from __future__ import annotations

import errno
import gc
import inspect
import itertools
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Self

import pytest
from helpers import (
    PATIENCE,
    Clock,
    Keeper,
    Pair,
    Script,
    alone,
    descriptors,
    in_child,
    joined,
    no_descriptor_left,
    polling_thread,
    settle,
    turns,
)

import multicast
from multicast import ArgumentError, Dispatcher, Poller, RegistrationError
from multicast.poller import polling, timers
from multicast.poller.registration import number_of

# These tests keep to this host, so that they may run where there is no private network namespace.
pytestmark = pytest.mark.lo_alone

ON_LO: dict[str, Any] = {"interface": "lo"}


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """Make `Pair` objects that are closed at the end."""
    made: list[Pair] = []

    def make(reaction: Callable[[Pair], object] | None = None) -> Pair:
        made.append(Pair(reaction))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Have threads take turns after hardly an instruction, which brings out what depends on their order."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Connection(Dispatcher):
    """A dispatcher on one end of a socket pair."""

    def __init__(self, poller: Poller, reaction: Callable[[Connection], object] | None = None) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        super().__init__(ours, poller)
        self.reaction = reaction
        self.got: list[bytes] = []

    def handle_read(self) -> None:
        assert self.socket is not None
        self.got.append(self.socket.recv(100))
        if self.reaction is not None:
            self.reaction(self)

    def close(self) -> None:
        super().close()
        self.theirs.close()


# -- registering ---------------------------------------------------------------------------------------------


def test_a_repeater_calls_without_drift_and_counts_what_it_missed() -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        calls: list[float] = []
        repeater = poller.call_every(0.1, lambda: calls.append(round(clock.now - 1000, 3)))
        for passed in (0.05, 0.06, 0.1, 0.1, 0.34, 0.07, 0.01):
            clock.advance(passed)
            poller.poll()
        assert calls == [0.11, 0.21, 0.31, 0.65, 0.72]
        assert repeater.missed == 2  # those of 0.4 and 0.5; that of 0.6 was late
        assert repeater.active
        assert repeater.when == pytest.approx(1000.8)
        repeater.cancel()
        assert not repeater.active
        clock.advance(1)
        poller.poll()
        assert len(calls) == 5


def test_a_repeater_stays_although_its_call_raises_and_may_cancel_itself() -> None:
    clock = Clock()
    with Poller(clock=clock) as poller:
        calls: list[int] = []

        def call(value: int) -> None:
            calls.append(value)
            if len(calls) == 1:
                raise ZeroDivisionError
            if len(calls) == 3:
                repeater.cancel()

        repeater = poller.call_every(1, call, 5)
        clock.advance(1)
        with pytest.raises(ZeroDivisionError):
            poller.poll()
        for _ in range(5):
            clock.advance(1)
            poller.poll()
        assert calls == [5, 5, 5]


@pytest.mark.parametrize("interval", [0, -1, float("nan"), "1"])
def test_a_repeater_needs_an_interval(poller: Poller, interval: Any) -> None:
    with pytest.raises(ArgumentError):
        poller.call_every(interval, print)


def test_a_plain_object_with_fileno_and_handle_read_is_driven(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    poller.poll()
    assert plain.got == []
    plain.tell(b"one")
    poller.poll()
    assert plain.got == [b"one"]
    poller.unregister(plain)
    plain.tell(b"two")
    poller.poll()
    assert plain.got == [b"one"]
    assert plain.ours.fileno() >= 0, "unregister must not close"


def test_an_object_with_handle_write_alone_is_called_when_it_can_write(poller: Poller) -> None:
    class Writer:
        def __init__(self) -> None:
            self.ours, self.theirs = socket.socketpair()
            self.turns = 0

        def fileno(self) -> int:
            return self.ours.fileno()

        def handle_write(self) -> None:
            self.turns += 1
            if self.turns == 2:
                poller.unregister(self)

    writer = Writer()
    with writer.ours, writer.theirs:
        poller.register(writer)
        poller.loop()
        assert writer.turns == 2


def test_reading_and_writing_come_in_one_turn(poller: Poller) -> None:
    class Both(Pair):
        def handle_write(self) -> None:
            self.got.append(b"write")

    both = Both()
    poller.register(both)
    both.tell(b"read")
    poller.poll()
    assert both.got == [b"read", b"write"]
    poller.modify(both, select.EPOLLIN)
    both.tell(b"again")
    poller.poll()
    assert both.got == [b"read", b"write", b"again"]
    both.close()


def test_an_object_without_handle_read_is_not_woken_by_data(poller: Poller) -> None:
    class Writer:
        def __init__(self) -> None:
            self.ours, self.theirs = socket.socketpair()
            self.ours.setblocking(False)
            self.turns = 0

        def fileno(self) -> int:
            return self.ours.fileno()

        def handle_write(self) -> None:
            self.turns += 1

    writer = Writer()
    with writer.ours, writer.theirs:
        with suppress(BlockingIOError):
            while True:
                writer.ours.send(bytes(4096))
        poller.register(writer)
        writer.theirs.send(b"x")
        turns(poller, 3)
        assert writer.turns == 0
        assert select.select([poller], [], [], 0) == ([], [], [])
        poller.unregister(writer)


@pytest.mark.parametrize("flags", [-1, 1 << 32, 1 << 33])
def test_flags_that_are_no_events_are_refused(poller: Poller, pair: Callable[..., Pair], flags: int) -> None:
    with pytest.raises(ArgumentError, match="must be events of epoll"):
        poller.register(pair(), flags)
    assert len(poller) == 0


def test_a_number_is_to_be_wrapped_and_anything_else_is_not(poller: Poller) -> None:
    with pytest.raises(RegistrationError, match=r"^5 has no fileno\(\) method.*; wrap the number in an object with"):
        poller.register(5)  # type: ignore[arg-type]
    with pytest.raises(RegistrationError, match=r"so it cannot be registered$"):
        poller.register(object())  # type: ignore[arg-type]


def test_descriptor_0_is_one_like_any_other() -> None:
    class Zero:
        def fileno(self) -> int:
            return 0

    assert number_of(Zero()) == 0


def test_a_dispatcher_may_have_its_own_new(poller: Poller) -> None:
    class Labelled(Connection):
        given: tuple[Any, ...]

        def __new__(cls, *args: Any, **options: Any) -> Self:
            instance = super().__new__(cls)
            instance.given = (args, options)
            return instance

    labelled = Labelled(poller, reaction=None)
    assert labelled.given == ((poller,), {"reaction": None})
    assert labelled in poller
    labelled.close()


def test_urgent_data_is_read(poller: Poller) -> None:
    class Urgent:
        def __init__(self, connected: socket.socket) -> None:
            self.socket = connected
            self.got: list[bytes] = []

        def fileno(self) -> int:
            return self.socket.fileno()

        def handle_read(self) -> None:
            self.got.append(self.socket.recv(10, socket.MSG_OOB))

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted = server.accept()[0]
        with accepted:
            urgent = Urgent(accepted)
            poller.register(urgent)
            client.send(b"!", socket.MSG_OOB)
            settle(poller, lambda: urgent.got)
            assert urgent.got == [b"!"]


def test_registering_keeps_the_object_alive_and_unregistering_lets_it_go(poller: Poller) -> None:
    seen: list[bytes] = []

    class Nameless(Connection):
        def handle_read(self) -> None:
            assert self.socket is not None
            seen.append(self.socket.recv(100))

    theirs = Nameless(poller).theirs
    reference = weakref.ref(next(iter(poller)))
    gc.collect()
    theirs.send(b"x")
    poller.poll()
    assert seen == [b"x"]
    found = reference()
    assert found is not None
    found.close()
    del found
    gc.collect()
    assert reference() is None


def test_flags_choose_the_events(poller: Poller) -> None:
    class Both(Pair):
        def handle_write(self) -> None:
            self.got.append(b"write")

    both = Both()
    poller.register(both, select.EPOLLOUT)
    both.tell()
    poller.poll()
    assert both.got == [b"write"]
    poller.modify(both, 0)
    poller.poll()
    assert both.got == [b"write", b"x", b"write"]
    poller.register(both, select.EPOLLIN)
    poller.poll()
    assert both.got == [b"write", b"x", b"write"], "registering again sets the flags"
    assert len(poller) == 1
    both.close()


def test_paused_interest_costs_no_turns(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    poller.modify(plain, select.EPOLLERR)
    plain.tell()
    turns(poller)
    assert plain.got == []
    poller.modify(plain, select.EPOLLIN)
    poller.poll()
    assert plain.got == [b"x"]


def test_an_object_without_handlers_is_refused(poller: Poller, pair: Callable[..., Pair]) -> None:
    with pytest.raises(RegistrationError, match="handle_read"):
        poller.register(pair().ours)
    assert len(poller) == 0
    assert not poller.polling


def test_a_number_is_refused_with_advice(poller: Poller) -> None:
    with pytest.raises(RegistrationError, match="wrap the number"):
        poller.register(0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        poller.register(object())  # type: ignore[arg-type]


def test_flags_without_their_handler_are_refused(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    with pytest.raises(RegistrationError, match="handle_write"):
        poller.register(plain, select.EPOLLIN | select.EPOLLOUT)
    poller.register(plain)
    with pytest.raises(RegistrationError, match="handle_write"):
        poller.modify(plain, select.EPOLLOUT)
    plain.tell()
    poller.poll()
    assert plain.got == [b"x"]


class Numbered:
    """An object under a descriptor of the test's choice."""

    def __init__(self, number: Any) -> None:
        self.number = number
        self.reads = 0

    def fileno(self) -> Any:
        return self.number

    def handle_read(self) -> None:
        self.reads += 1


@pytest.mark.parametrize("number", [-1, None, "7"])
def test_a_closed_object_is_refused(poller: Poller, number: object) -> None:
    with pytest.raises(RegistrationError, match="closed"):
        poller.register(Numbered(number))
    assert len(poller) == 0


def test_descriptors_that_epoll_refuses_are_refused_with_advice(poller: Poller) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError) as regular:
        poller.register(Numbered(file.fileno()))
    assert "regular files" in regular.value.__notes__[0]
    free = os.dup(0)
    os.close(free)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as closed:
        poller.register(Numbered(free))
    assert "closed" in closed.value.__notes__[0]
    assert len(poller) == 0


def test_two_objects_cannot_share_a_descriptor(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    with pytest.raises(FileExistsError) as refused:
        poller.register(Numbered(plain.fileno()))
    assert "Pair" in refused.value.__notes__[0]
    plain.tell()
    poller.poll()
    assert plain.got == [b"x"], "the first goes on undisturbed"


@alone
def test_a_registration_that_fails_half_way_is_undone(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    poller.unregister(listener)
    with no_descriptor_left():  # so that it cannot watch the interfaces
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            poller.register(listener)
        assert listener not in poller
        assert len(poller) == 0
    poller.register(listener)
    multicast.sendto("x", port=free_port, ttl=0)
    poller.poll()
    assert listener.packets == [b"x"]
    listener.close()


def test_a_refused_registration_leaves_the_object_where_it_was(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    with Poller() as other:
        with pytest.raises(RegistrationError):
            other.register(plain, select.EPOLLOUT)
        assert plain in poller
        assert plain not in other


def test_unregistering_what_is_not_registered_is_harmless(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.unregister(plain)
    poller.register(plain)
    poller.unregister(plain)
    poller.unregister(plain)
    poller.unregister(12345)
    poller.register(plain)
    plain.ours.close()
    poller.unregister(plain)
    assert len(poller) == 0


def test_an_object_can_be_unregistered_by_its_number(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    poller.unregister(plain.fileno())
    assert plain not in poller


def test_modifying_what_is_not_registered_is_refused(poller: Poller, pair: Callable[..., Pair]) -> None:
    with pytest.raises(RegistrationError, match="register it first"):
        poller.modify(pair(), select.EPOLLIN)


def test_registering_with_another_poller_moves_the_object(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    with Poller() as other:
        other.register(plain)
        assert plain not in poller
        assert not poller.polling
        plain.tell()
        poller.poll()
        assert plain.got == []
        other.poll()
        assert plain.got == [b"x"]
        poller.unregister(plain)  # not its own any more
        assert plain in other


def test_a_moved_dispatcher_knows_its_poller(poller: Poller) -> None:
    connection = Connection(poller)
    with Poller() as other:
        other.register(connection)
        assert connection.poller is other
        connection.close()
        assert len(other) == 0


def test_an_object_that_has_got_another_descriptor_can_be_registered_again(
    poller: Poller, pair: Callable[..., Pair]
) -> None:
    plain, spare = pair(), pair()
    poller.register(plain)
    plain.ours, spare.ours = spare.ours, plain.ours
    plain.theirs, spare.theirs = spare.theirs, plain.theirs
    poller.register(plain)
    assert len(poller) == 1
    spare.tell()
    plain.tell(b"new")
    poller.poll()
    assert plain.got == [b"new"]


def test_an_object_that_opened_its_descriptor_afresh_under_the_same_number_is_watched_again(
    poller: Poller, pair: Callable[..., Pair]
) -> None:
    plain, spare = pair(), pair()
    poller.register(plain)
    number = plain.ours.detach()
    os.close(number)
    assert os.dup2(spare.ours.fileno(), number) == number
    plain.ours, plain.theirs, old = socket.socket(fileno=number), spare.theirs, plain.theirs
    poller.register(plain)
    plain.tell(b"new")
    poller.poll()
    assert plain.got == [b"new"]
    old.close()


def test_objects_that_are_equal_are_not_mixed_up(poller: Poller) -> None:
    class Equal(Pair):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    first, second = Equal(), Equal()
    poller.register(first)
    poller.register(second)
    poller.unregister(first)
    second.tell()
    poller.poll()
    assert second.got == [b"x"]
    second.close()
    first.close()


def test_an_attribute_named_pending_of_a_plain_object_means_nothing(poller: Poller, pair: Callable[..., Pair]) -> None:
    class Secure(Pair):
        def pending(self) -> int:  # as ssl.SSLSocket has it
            return 0

    secure = Secure()
    poller.register(secure)
    poller.poll()
    assert secure.got == []
    secure.close()


def test_the_table_can_be_looked_at(poller: Poller, pair: Callable[..., Pair]) -> None:
    first, second = pair(), pair()
    poller.register(first)
    poller.register(second)
    assert list(poller) == [first, second]
    assert len(poller) == 2
    assert first in poller
    assert "2 registered" in repr(poller)
    poller.unregister(first)
    assert first not in poller
    assert bool(Poller()), "an empty poller is no false value"


# -- what handlers may do ------------------------------------------------------------------------------------


def test_handlers_of_one_batch_may_close_each_other(poller: Poller) -> None:
    one = Connection(poller, lambda _: other.close())
    other = Connection(poller, lambda _: one.close())
    one.theirs.send(b"x")
    other.theirs.send(b"x")
    poller.poll()
    assert len(one.got) + len(other.got) == 1
    assert len(poller) == 1
    one.close()
    other.close()


@pytest.mark.parametrize("politely", [True, False], ids=["closed", "closed behind our back"])
def test_a_new_object_does_not_get_the_event_of_the_one_whose_number_it_has(poller: Poller, politely: bool) -> None:
    new: list[Connection] = []

    def replace(connection: Connection) -> None:
        victim = two if connection is one else one
        number = victim.fileno()
        assert victim.socket is not None
        if politely:
            victim.close()
        else:
            victim.socket.close()
        fillers = []
        while True:
            new.append(Connection(poller))
            if new[-1].fileno() == number:
                break
            fillers.append(new.pop())
        for filler in fillers:
            filler.close()

    one, two = Connection(poller, replace), Connection(poller, replace)
    one.theirs.send(b"x")
    two.theirs.send(b"x")
    poller.poll()
    assert len(new) == 1
    assert new[0].got == [], "would have been BlockingIOError"
    new[0].theirs.send(b"for the new one")
    poller.poll()
    assert new[0].got == [b"for the new one"]
    for connection in (*new, one, two):
        connection.close()


def test_a_handler_may_register_and_unregister(poller: Poller, pair: Callable[..., Pair]) -> None:
    late = pair()
    late.tell(b"late")

    def swap() -> None:
        poller.unregister(first)
        poller.register(late)

    first = pair(lambda _: swap())
    poller.register(first)
    first.tell()
    poller.poll()
    poller.poll()
    first.tell()
    poller.poll()
    assert (first.got, late.got) == ([b"x"], [b"late"])


def test_a_handler_may_poll(poller: Poller, pair: Callable[..., Pair]) -> None:
    inner = pair()

    def nested() -> None:
        inner.tell(b"inner")
        poller.poll()
        assert inner.got == [b"inner"]

    outer = pair(lambda _: nested())
    poller.register(outer)
    poller.register(inner)
    outer.tell()
    poller.poll()
    assert outer.got == [b"x"]


def test_a_hang_up_is_met_in_the_handler(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair(poller.unregister)
    poller.register(plain)
    plain.theirs.close()
    poller.loop()
    assert plain.got == [b""]


def test_an_error_reaches_an_object_that_watches_for_nothing(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair(poller.unregister)
    poller.register(plain)
    poller.modify(plain, select.EPOLLERR)
    plain.theirs.close()
    poller.loop()
    assert plain.got == [b""]


def test_an_error_reaches_both_handlers_of_an_object_that_watches_for_nothing(poller: Poller) -> None:
    class Both(Pair):
        def handle_write(self) -> None:
            self.got.append(b"write")
            poller.unregister(self)

    both = Both()
    poller.register(both)
    poller.modify(both, select.EPOLLERR)
    both.theirs.close()
    turns(poller)
    assert both.got == [b"", b"write"]
    both.close()


def test_an_error_reaches_the_writing_handler_of_an_object_that_watches_for_room(poller: Poller) -> None:
    """A full pipe without a reader is not writable: the kernel reports EPOLLERR alone (pipe(7))."""

    class Pipe:
        def __init__(self) -> None:
            self.theirs, self.ours = os.pipe()
            os.set_blocking(self.ours, False)
            self.met: list[str] = []

        def fileno(self) -> int:
            return self.ours

        def handle_read(self) -> None:
            self.met.append("read")

        def handle_write(self) -> None:
            try:
                os.write(self.ours, b"x")
            except BrokenPipeError:
                self.met.append("broken")
                poller.unregister(self)

    pipe = Pipe()
    with suppress(BlockingIOError):
        while True:
            os.write(pipe.ours, bytes(4096))
    poller.register(pipe, select.EPOLLOUT)
    turns(poller)
    assert pipe.met == []
    os.close(pipe.theirs)
    turns(poller)
    assert pipe.met == ["broken"]
    os.close(pipe.ours)


def test_one_poll_goes_on_until_nothing_is_left_and_no_longer(poller: Poller) -> None:
    class Eager(Connection):
        def handle_read(self) -> bool:  # type: ignore[override]
            assert self.socket is not None
            self.got.append(self.socket.recv(1))
            return len(self.got) % 3 != 0

    poller.budget = 1000
    eager = Eager(poller)
    for text in (b"abc", b"def"):
        eager.theirs.send(text)
        poller.poll()
        assert b"".join(eager.got).endswith(text)
    eager.close()


@pytest.mark.parametrize(
    "options, timeouts",
    [
        ({}, [None] * 3),
        ({"timeout": 0.5}, [0.5] * 3),
        ({"busy": True}, [0] * 3),
        ({"busy": True, "timeout": 7}, [0] * 3),
    ],
)
def test_a_loop_waits_as_long_as_it_is_told(options: dict[str, Any], timeouts: list[float | None]) -> None:
    asked: list[float | None] = []

    class Counting(Poller):
        def poll(self, timeout: float | None = 0) -> None:
            asked.append(timeout)
            if len(asked) == 3:
                self.stop()

    with Counting() as poller, Poller() as other:
        poller.register(other)
        poller.loop(**options)
    assert asked == timeouts


def test_a_poller_is_polling_while_it_runs_until_something(poller: Poller, pair: Callable[..., Pair]) -> None:
    seen: list[bool] = []
    plain = pair(lambda _: seen.append(poller.polling))
    poller.register(plain)
    poller.stop()
    plain.tell()
    poller.run_until(lambda: seen)
    assert seen == [True]


# -- what handlers raise -------------------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise ZeroDivisionError("on purpose")


def test_what_a_handler_raises_leaves_poll_and_the_object_stays(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair(fail)
    poller.register(plain)
    plain.tell(b"one")
    with pytest.raises(ZeroDivisionError):
        poller.poll()
    assert plain in poller
    plain.reaction = None
    plain.tell(b"two")
    poller.poll()
    assert plain.got == [b"one", b"two"]


def test_an_object_that_always_fails_does_not_starve_the_others(poller: Poller, pair: Callable[..., Pair]) -> None:
    class Failing(Pair):
        def handle_read(self) -> None:  # reads nothing, so it is ready for ever
            raise ZeroDivisionError("on purpose")

    objects = [Failing(), Failing(), pair(), Failing(), Failing(), pair()]
    for one in objects:
        poller.register(one)
        one.tell()
    for _ in range(12):
        with pytest.raises(ZeroDivisionError):
            poller.poll()
    assert [one.got for one in objects] == [[], [], [b"x"], [], [], [b"x"]]
    for one in objects:
        one.close()


def test_handle_error_gets_what_the_handler_raised(poller: Poller) -> None:
    class Careful(Pair):
        errors: list[Exception]

        def handle_error(self, error: Exception) -> None:
            self.errors.append(error)

    careful = Careful(fail)
    careful.errors = []
    poller.register(careful)
    careful.tell()
    poller.poll()
    assert [type(error) for error in careful.errors] == [ZeroDivisionError]
    assert careful in poller
    careful.close()


def test_what_handle_error_raises_leaves_poll(poller: Poller) -> None:
    class Strict(Pair):
        def handle_error(self, error: Exception) -> None:
            raise KeyError("worse") from error

    strict = Strict(fail)
    poller.register(strict)
    strict.tell()
    with pytest.raises(KeyError):
        poller.poll()
    strict.close()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through_handle_error(poller: Poller, raised: type[BaseException]) -> None:
    class Careful(Pair):
        def handle_read(self) -> None:
            super().handle_read()
            raise raised

        def handle_error(self, error: Exception) -> None:
            raise AssertionError("not for this")

    careful = Careful()
    poller.register(careful)
    careful.tell()
    with pytest.raises(raised):
        poller.loop()
    assert careful in poller, "what is registered stays so"
    careful.close()


# -- descriptors closed behind our back ----------------------------------------------------------------------


@pytest.mark.parametrize("quiet", [True, False], ids=["quiet", "raising"])
def test_a_descriptor_that_is_closed_and_lives_on_in_a_copy_is_noticed(
    poller: Poller, pair: Callable[..., Pair], quiet: bool
) -> None:
    calls = 0

    class Closed(Pair):
        def handle_read(self) -> None:
            nonlocal calls
            calls += 1
            if not quiet:
                super().handle_read()

    closed, neighbour = Closed(), pair()
    poller.register(closed)
    poller.register(neighbour)
    copy = os.dup(closed.fileno())
    try:
        closed.tell()
        closed.ours.close()
        for _ in range(5000):
            with suppress(OSError):  # EBADF, as a handler that lets it be seen meets it
                poller.poll()
        before = calls
        turns(poller, 100)
        assert calls == before, "would spin for ever"
        assert closed not in poller
        neighbour.tell()
        poller.poll()
        assert neighbour.got == [b"x"], "the others are watched as before"
    finally:
        os.close(copy)
        closed.close()


def test_an_unregistered_descriptor_that_lives_on_in_a_copy_is_noticed(
    poller: Poller, pair: Callable[..., Pair]
) -> None:
    closed, neighbour = pair(), pair()
    poller.register(closed)
    poller.register(neighbour)
    copy = os.dup(closed.fileno())
    try:
        closed.ours.close()
        poller.unregister(closed)
        closed.tell()
        turns(poller)
        neighbour.tell(b"in time")
        polls = 0
        while not neighbour.got:
            poller.poll(PATIENCE)
            polls += 1
        assert neighbour.got == [b"in time"]
        assert polls == 1, "the dead descriptor still wakes us"
    finally:
        os.close(copy)


def test_what_lives_on_in_a_copy_does_not_trouble_the_next_object_with_its_number(
    poller: Poller, pair: Callable[..., Pair]
) -> None:
    dead, heir = pair(), pair()
    poller.register(dead)
    copy = os.dup(dead.fileno())
    number = dead.fileno()
    try:
        dead.ours.close()
        poller.unregister(dead)
        old = heir.ours.detach()
        heir.ours = socket.socket(fileno=os.dup2(old, number))
        os.close(old)
        poller.register(heir)
        dead.tell()  # the copy is ready from now on, under the number that is the heir's
        for _ in range(3):
            with suppress(BlockingIOError):
                poller.poll()
        turns(poller, 100)  # would be BlockingIOError again and again
        heir.tell(b"for the heir")
        poller.poll()
        assert heir.got == [b"for the heir"]
    finally:
        os.close(copy)


def test_a_set_made_anew_does_not_watch_the_wrong_file(poller: Poller, pair: Callable[..., Pair]) -> None:
    dead, moved, innocent = pair(), pair(), pair()
    poller.register(dead)
    poller.register(moved)
    copy = os.dup(dead.fileno())
    number = moved.fileno()
    moved.ours.close()
    os.dup2(innocent.ours.fileno(), number)  # somebody else's file has its number now
    try:
        innocent.tell()
        dead.ours.close()
        poller.unregister(dead)
        dead.tell()
        turns(poller)
        assert moved.got == []
    finally:
        os.close(copy)
        os.close(number)


def test_a_set_made_anew_watches_for_what_was_asked(poller: Poller, pair: Callable[..., Pair]) -> None:
    class Both(Pair):
        def handle_write(self) -> None:
            self.got.append(b"write")

    dead, both, helper = pair(), Both(), pair()
    poller.register(dead)
    poller.register(both, select.EPOLLIN)
    copy = os.dup(dead.fileno())
    try:
        dead.ours.close()
        poller.unregister(dead)
        dead.tell()
        poller.add_helper(helper)
        turns(poller, 3)
        assert select.select([poller], [], [], 0) == ([], [], []), "the copy wakes it no longer"
        both.tell()
        helper.tell()
        turns(poller, 3)
    finally:
        os.close(copy)
    assert (both.got, helper.got) == ([b"x"], [b"x"])
    poller.remove_helper(helper)
    both.close()


def test_a_descriptor_that_was_replaced_is_watched_for_what_is_asked(poller: Poller) -> None:
    class Both(Pair):
        def handle_write(self) -> None:
            self.got.append(b"write")

    both, other = Both(), Both()
    poller.register(both, select.EPOLLIN)
    os.dup2(other.ours.fileno(), both.ours.fileno())  # the kernel forgets the one that was there
    poller.register(both, select.EPOLLIN)
    other.tell()
    turns(poller, 3)
    assert both.got == [b"x"]
    poller.unregister(both)
    for one in (both, other):
        one.close()


def test_what_an_object_raises_when_it_is_closed_is_raised_when_all_are_closed() -> None:
    class Failing(Connection):
        def close(self) -> None:
            super().close()
            raise ZeroDivisionError

    poller = Poller()
    first, second = Failing(poller), Connection(poller)
    with pytest.raises(ZeroDivisionError):
        poller.close()
    assert (first.closed, second.closed, len(poller)) == (True, True, 0)


def test_an_object_that_closes_itself_and_raises_is_registered_no_longer(poller: Poller) -> None:
    class Broken(Pair):
        def fileno(self) -> int:
            if self.ours.fileno() < 0:
                raise ValueError("closed, as files say it")
            return self.ours.fileno()

        def handle_read(self) -> None:
            self.ours.close()
            raise ZeroDivisionError

    broken = Broken()
    poller.register(broken)
    broken.tell()
    with pytest.raises(ZeroDivisionError):
        poller.poll()
    assert list(poller) == []
    assert not poller.polling
    broken.close()


def test_timers_and_calls_wake_a_set_made_anew(poller: Poller, pair: Callable[..., Pair]) -> None:
    dead, neighbour = pair(), pair()
    poller.register(dead)
    poller.register(neighbour)
    calls: list[str] = []
    poller.call_later(0.05, calls.append, "timer")
    poller.poll(0.001)  # waits, and so sets the alarm
    copy = os.dup(dead.fileno())
    try:
        dead.ours.close()
        poller.unregister(dead)
        dead.tell()
        turns(poller, 3)
        while not calls:
            poller.poll(None)
        with polling_thread(poller):
            poller.call_soon(poller.stop)
    finally:
        os.close(copy)
    assert calls == ["timer"]


@alone
def test_no_room_for_a_new_set_is_reported_and_nobody_is_forgotten(poller: Poller, pair: Callable[..., Pair]) -> None:
    dead, neighbour = pair(), pair()
    poller.register(dead)
    poller.register(neighbour)
    copy = os.dup(dead.fileno())
    dead.ours.close()
    poller.unregister(dead)
    dead.tell()
    with no_descriptor_left(), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        poller.poll()
    os.close(copy)
    neighbour.tell()
    turns(poller, 3)
    assert neighbour.got == [b"x"]


def test_closing_without_unregistering_is_cleaned_up_by_unregister(poller: Poller) -> None:
    connection = Connection(poller)
    assert connection.socket is not None
    connection.socket.close()
    connection.close()
    assert len(poller) == 0


# -- many ----------------------------------------------------------------------------------------------------


# How many descriptors a process may open at most, and how many the test below needs; -1 stands for no limit.
_MAY_OPEN, _NEEDED = resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1300


@pytest.mark.skipif(0 <= _MAY_OPEN < _NEEDED, reason=f"may open {_MAY_OPEN} descriptors at most")
@alone
def test_more_ready_descriptors_than_one_report_holds_are_all_served(poller: Poller) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_NEEDED, _MAY_OPEN))
    ready = [Numbered(os.eventfd(1, os.EFD_NONBLOCK)) for _ in range(1100)]
    for one in ready:
        poller.register(one)
    poller.poll()
    poller.poll()
    assert min(one.reads for one in ready) >= 1


def test_opening_and_closing_leaves_nothing(poller: Poller, free_port: int) -> None:
    turns(poller, 1)
    before = descriptors()
    for _ in range(500):
        Keeper(poller=poller, port=free_port, **ON_LO).close()
    assert descriptors() == before
    assert joined("224.0.42.42") == []
    assert len(poller) == 0


# -- timers --------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(clock: Clock) -> Iterator[Poller]:
    with Poller(clock=clock) as poller:
        yield poller


def test_timers_come_in_the_order_of_their_time(timed: Poller, clock: Clock) -> None:
    calls: list[str] = []
    timed.call_later(3, calls.append, "third")
    timed.call_later(1, calls.append, "first")
    timed.call_later(2, calls.append, "second, set before")
    timed.call_at(clock.now + 2, calls.append, "second, set after")
    timed.poll()
    assert calls == []
    clock.advance(1)
    timed.poll()
    assert calls == ["first"]
    clock.advance(5)
    timed.poll()
    assert calls == ["first", "second, set before", "second, set after", "third"]
    assert timed.time() == clock.now


def test_a_cancelled_timer_does_not_run(timed: Poller, clock: Clock) -> None:
    calls: list[int] = []
    timers = [timed.call_later(1, calls.append, number) for number in range(500)]
    assert timers[0].when == clock.now + 1
    for timer in timers[1:]:
        timer.cancel()
        timer.cancel()
    assert timers[0].active
    assert not timers[1].active
    clock.advance(1)
    timed.poll()
    assert calls == [0]
    assert not timers[0].active
    timers[0].cancel()


def test_a_timer_may_cancel_another_that_is_due_too(timed: Poller, clock: Clock) -> None:
    calls: list[str] = []
    timed.call_later(1, lambda: second.cancel())
    second = timed.call_later(1, calls.append, "second")
    clock.advance(1)
    timed.poll()
    assert calls == []


def test_cancelled_timers_do_not_pile_up(timed: Poller) -> None:
    class Heavy:
        def call(self) -> None:
            pass

    heavy = Heavy()
    reference = weakref.ref(heavy)
    timed.call_later(1, heavy.call).cancel()
    del heavy
    gc.collect()
    assert reference() is None


def test_a_timer_that_sets_itself_again_runs_once_a_poll(timed: Poller) -> None:
    calls: list[float] = []

    def again() -> None:
        calls.append(timed.time())
        if len(calls) < 10:
            timed.call_later(0, again)

    timed.call_later(0, again)
    timed.poll()
    assert len(calls) == 1
    timed.poll()
    assert len(calls) == 2


def test_a_call_that_asks_for_itself_again_runs_once_a_poll(poller: Poller) -> None:
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        poller.call_soon(again)

    poller.call_soon(again)
    poller.poll(None)
    poller.poll(None)
    assert len(calls) == 2


def test_an_exception_in_a_timer_loses_none_of_the_others(timed: Poller, clock: Clock) -> None:
    calls: list[str] = []
    timed.call_soon(calls.append, "soon 1")
    timed.call_soon(fail)
    timed.call_soon(calls.append, "soon 2")
    timed.call_later(1, calls.append, "later 1")
    timed.call_later(1, fail)
    timed.call_later(1, calls.append, "later 2")
    clock.advance(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            timed.poll()
    timed.poll()
    assert calls == ["soon 1", "soon 2", "later 1", "later 2"]


def test_a_timer_that_always_fails_does_not_starve_the_objects(timed: Poller, pair: Callable[..., Pair]) -> None:
    def always() -> None:
        timed.call_later(0, always)
        fail()

    plain = pair()
    timed.register(plain)
    plain.tell()
    always_timer = timed.call_later(0, always)
    for _ in range(4):
        with pytest.raises(ZeroDivisionError):
            timed.poll()
    assert plain.got == [b"x"]
    always_timer.cancel()


def test_timers_wake_a_waiting_poll(poller: Poller) -> None:
    calls: list[str] = []
    poller.call_later(0.03, calls.append, "second")
    poller.call_later(0.0003, calls.append, "first")
    while len(calls) < 2:
        poller.poll(None)
    assert calls == ["first", "second"]


def test_a_timer_set_in_a_handler_wakes_the_next_poll(poller: Poller, pair: Callable[..., Pair]) -> None:
    calls: list[str] = []
    plain = pair(lambda _: poller.call_later(0.001, calls.append, "timer"))
    poller.register(plain)
    plain.tell()
    poller.call_later(PATIENCE, calls.append, "too late")
    while not calls:
        poller.poll(None)
    assert calls == ["timer"]


@pytest.mark.parametrize("delay", [1e6, 1e12, float("inf")])
def test_a_timer_may_be_far_away(poller: Poller, pair: Callable[..., Pair], delay: float) -> None:
    plain = pair()
    poller.register(plain)
    plain.tell()
    timer = poller.call_later(delay, fail)
    poller.poll(None)
    assert plain.got == [b"x"]
    timer.cancel()


@pytest.mark.parametrize("delay", [-1, -0.001, float("nan")])
def test_a_bad_delay_is_refused(poller: Poller, delay: float) -> None:
    with pytest.raises(ArgumentError, match="delay"):
        poller.call_later(delay, fail)
    turns(poller)


def test_a_timer_at_no_time_is_refused(poller: Poller) -> None:
    with pytest.raises(ArgumentError, match="when"):
        poller.call_at(float("nan"), fail)


def test_an_object_can_be_revisited_without_news_from_the_kernel(poller: Poller) -> None:
    with_more = Numbered(os.eventfd(0))
    poller.revisit(with_more)  # not registered: harmless
    poller.register(with_more)
    turns(poller)
    assert with_more.reads == 0
    poller.revisit(with_more)
    poller.poll(None)
    turns(poller)
    assert with_more.reads == 1
    poller.revisit(with_more)
    poller.unregister(with_more)
    turns(poller)
    assert with_more.reads == 1
    os.close(with_more.number)


# -- polling and looping -------------------------------------------------------------------------------------


def test_polling_says_whether_something_is_registered_and_nobody_stopped(
    poller: Poller, pair: Callable[..., Pair]
) -> None:
    assert not poller.polling
    plain = pair()
    poller.register(plain)
    assert poller.polling
    poller.stop()
    assert not poller.polling
    assert plain in poller
    poller.register(pair())
    assert poller.polling, "a later register starts afresh"
    poller.polling = False
    assert not poller.polling
    poller.polling = True
    assert poller.polling
    poller.close()
    assert not poller.polling
    assert "stopped" in repr(poller)


def test_loop_returns_at_once_with_nothing_registered(poller: Poller) -> None:
    poller.loop()


def test_loop_ends_with_the_last_object_and_can_be_entered_again(poller: Poller, pair: Callable[..., Pair]) -> None:
    for _ in range(3):
        plain = pair(poller.unregister)
        poller.register(plain)
        plain.tell()
        poller.loop()
        assert plain.got == [b"x"]


def test_loop_goes_on_when_a_handler_replaces_the_last_object(poller: Poller, pair: Callable[..., Pair]) -> None:
    def replace() -> None:
        poller.unregister(first)
        poller.register(second)
        second.tell()

    first = pair(lambda _: replace())
    second = pair(poller.unregister)
    poller.register(first)
    first.tell()
    poller.loop()
    assert second.got == [b"x"]


@pytest.mark.parametrize("how", ["stop", "polling"])
@pytest.mark.parametrize("options", [{}, {"timeout": PATIENCE}, {"busy": True}, {"interval": 0.001}], ids=str)
def test_a_handler_stops_the_loop(
    poller: Poller, pair: Callable[..., Pair], how: str, options: dict[str, Any]
) -> None:
    plain = pair(lambda _: poller.stop() if how == "stop" else setattr(poller, "polling", False))
    poller.register(plain)
    plain.tell()
    poller.loop(**options)
    assert plain.got == [b"x"]
    assert not poller.polling
    plain.tell()
    poller.loop(**options)
    assert plain.got == [b"x", b"x"], "a later loop starts afresh"


def test_a_handler_that_stops_the_loop_may_register_afterwards(poller: Poller, pair: Callable[..., Pair]) -> None:
    late = pair()

    def stop_and_register() -> None:
        poller.stop()
        poller.register(late)

    plain = pair(lambda _: stop_and_register())
    poller.register(plain)
    plain.tell()
    with polling_thread(poller):
        pass
    assert plain.got == [b"x"]


def test_a_stop_is_not_lost_in_a_wait_inside_a_handler(poller: Poller, pair: Callable[..., Pair]) -> None:
    def stop_and_wait() -> None:
        poller.stop()
        poller.call_soon(done.append, True)
        poller.run_until(lambda: done)

    done: list[bool] = []
    plain = pair(lambda _: stop_and_wait())
    poller.register(plain)
    plain.tell()
    with polling_thread(poller):
        pass
    assert done == [True]


@pytest.mark.parametrize(
    "options",
    [{}, {"timeout": 1000}, {"interval": 1000}, {"busy": True}],
    ids=["waiting", "in a timeout", "between polls", "busy"],
)
def test_another_thread_stops_the_loop(poller: Poller, pair: Callable[..., Pair], options: dict[str, Any]) -> None:
    polled = threading.Event()
    plain = pair(lambda _: polled.set())
    poller.register(plain)
    plain.tell()
    with polling_thread(poller, lambda: poller.loop(**options)) as raised:
        assert polled.wait(PATIENCE)
        poller.stop()
    assert raised == []
    assert plain in poller


@pytest.mark.usefixtures("eager_threads")
def test_another_thread_stops_the_loop_from_any_moment(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    for _ in range(200):
        entered = threading.Event()

        def run(entered: threading.Event = entered) -> None:
            poller.call_soon(entered.set)
            poller.loop()

        with polling_thread(poller, run) as raised:
            assert entered.wait(PATIENCE)
            poller.polling = False
        assert raised == []


def test_an_idle_loop_does_not_wake(pair: Callable[..., Pair]) -> None:
    class Counting(Poller):
        polls = 0

        def poll(self, timeout: float | None = 0) -> None:
            self.polls += 1
            super().poll(timeout)

    with Counting() as poller:
        poller.register(pair())
        poller.call_later(0.2, poller.stop)
        poller.loop()
        assert poller.polls <= 3


def test_loop_sleeps_between_polls_as_told(poller: Poller, pair: Callable[..., Pair]) -> None:
    moments: list[float] = []

    def note(plain: Pair) -> None:
        moments.append(time.monotonic())
        plain.tell()
        if len(moments) == 3:
            poller.stop()

    plain = pair(note)
    poller.register(plain)
    plain.tell()
    poller.loop(interval=0.02)
    assert moments[1] - moments[0] >= 0.02
    assert moments[2] - moments[1] >= 0.02


def test_calls_do_not_shorten_the_sleep_between_polls(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    began = time.monotonic()
    poller.call_soon(poller.call_soon, poller.stop)
    poller.loop(interval=0.05)
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_bad_timeout_is_refused(poller: Poller, timeout: float) -> None:
    with pytest.raises(ArgumentError, match="timeout"):
        poller.poll(timeout)


def test_a_bad_interval_is_refused(poller: Poller, pair: Callable[..., Pair]) -> None:
    poller.register(pair())
    with pytest.raises(ArgumentError, match="interval"):
        poller.loop(interval=-1)


@pytest.mark.parametrize("timeout", [1e7, 1e12, float("inf")])
def test_a_timeout_may_be_long(poller: Poller, pair: Callable[..., Pair], timeout: float) -> None:
    plain = pair()
    poller.register(plain)
    plain.tell()
    poller.poll(timeout)
    assert plain.got == [b"x"]


def test_poll_waits_no_longer_than_told(poller: Poller, pair: Callable[..., Pair]) -> None:
    poller.register(pair())
    poller.poll()
    poller.poll(0)
    poller.poll(0.001)


def test_waits_below_a_millisecond_are_waits_and_not_turns_without_end(
    poller: Poller, pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    poller.register(pair())
    waits = 0
    poll = Poller.poll

    def counted(self: Poller, timeout: float | None = 0) -> None:
        nonlocal waits
        waits += 1
        poll(self, timeout)

    monkeypatch.setattr(Poller, "poll", counted)
    begin = time.monotonic()
    for _ in range(20):
        poller.poll(0.0003)
    assert time.monotonic() - begin >= 20 * 0.0003
    waits = 0
    for _ in range(20):
        due = time.monotonic() + 0.0003
        timer = poller.call_later(0.0003, int)
        while timer.active:
            poller.poll(None)
        assert time.monotonic() >= due
    assert waits <= 60


def test_run_until_asks_before_it_waits(poller: Poller) -> None:
    poller.run_until(lambda: True)
    done: list[int] = []
    poller.call_soon(done.append, 1)
    poller.run_until(lambda: done)
    poller.call_soon(poller.stop)
    poller.run_until(lambda: False)


@pytest.mark.usefixtures("eager_threads")
def test_a_call_from_another_thread_wakes_a_waiting_poll(poller: Poller) -> None:
    calls: list[int] = []
    rounds = 300

    def feed() -> None:
        for number in range(rounds):
            poller.call_soon(calls.append, number)

    feeders = [threading.Thread(target=feed) for _ in range(2)]
    for feeder in feeders:
        feeder.start()
    settle(poller, lambda: len(calls) == 2 * rounds)
    for feeder in feeders:
        feeder.join()
    assert sorted(calls) == sorted(2 * list(range(rounds)))


# -- signals -------------------------------------------------------------------------------------------------


def alarm(call: Callable[[], object]) -> None:
    """Have SIGALRM call a function, soon; for tests that run `alone`, for in pytest it is the alarm of a timeout."""
    signal.signal(signal.SIGALRM, lambda number, frame: call())
    signal.setitimer(signal.ITIMER_REAL, 0.02)


@alone
def test_a_signal_handler_stops_the_loop(poller: Poller, pair: Callable[..., Pair]) -> None:
    poller.register(pair())
    alarm(poller.stop)
    poller.loop()


@alone
def test_a_signal_handler_stops_the_sleep_between_polls(poller: Poller, pair: Callable[..., Pair]) -> None:
    poller.register(pair())
    alarm(poller.stop)
    poller.loop(interval=1000)


@alone
def test_a_signal_handler_may_ask_for_a_call(poller: Poller, pair: Callable[..., Pair]) -> None:
    poller.register(pair())
    alarm(lambda: poller.call_soon(poller.stop))
    poller.loop()


@alone
def test_a_signal_handler_may_close_the_poller() -> None:
    before = descriptors()
    poller = Poller()
    with_socket = Connection(poller)
    alarm(poller.close)
    poller.loop()
    with_socket.close()
    assert descriptors() == before


@alone
def test_a_signal_without_consequence_does_not_end_the_wait(poller: Poller, pair: Callable[..., Pair]) -> None:
    signals: list[int] = []
    poller.register(pair())
    alarm(lambda: signals.append(1))
    poller.call_later(0.1, poller.stop)
    poller.loop()
    assert signals == [1]


@alone
def test_ctrl_c_leaves_as_keyboard_interrupt(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    alarm(lambda: signal.default_int_handler(signal.SIGINT, None))
    with pytest.raises(KeyboardInterrupt):
        poller.loop()
    assert plain in poller
    plain.tell()
    poller.poll()
    assert plain.got == [b"x"]


# -- a poller in a poller ------------------------------------------------------------------------------------


def test_a_poller_is_driven_by_another(poller: Poller, pair: Callable[..., Pair]) -> None:
    with Poller() as inner:
        plain = pair(lambda _: poller.stop())
        inner.register(plain)
        poller.register(inner)
        plain.tell()
        poller.loop()
        assert plain.got == [b"x"]
        poller.unregister(inner)


def test_the_timers_and_calls_of_an_inner_poller_wake_the_outer(poller: Poller) -> None:
    calls: list[str] = []
    with Poller() as inner:
        inner.call_soon(calls.append, "set before")
        inner.call_later(0.01, calls.append, "timer set before")
        poller.register(inner)
        settle(poller, lambda: len(calls) == 2)
        inner.call_later(0.01, calls.append, "timer")
        timer = inner.call_later(0.001, calls.append, "cancelled")
        timer.cancel()
        settle(poller, lambda: len(calls) == 3)
        inner.call_soon(calls.append, "call")
        settle(poller, lambda: len(calls) == 4)
        inner.call_soon(lambda: inner.call_soon(calls.append, "call from a call"))
        settle(poller, lambda: len(calls) == 5)
    assert calls == ["set before", "timer set before", "timer", "call", "call from a call"]


def test_an_idle_inner_poller_does_not_wake_the_outer(poller: Poller, pair: Callable[..., Pair]) -> None:
    visits = 0

    class Counting(Poller):
        def handle_read(self) -> None:
            nonlocal visits
            visits += 1
            super().handle_read()

    with Counting() as inner:
        plain = pair()
        inner.register(plain)
        inner.call_later(0.001, plain.tell)
        poller.register(inner)
        settle(poller, lambda: plain.got)
        before = visits
        turns(poller, 50)
        assert visits <= before + 1


def test_what_an_inner_poller_raises_delays_none_of_its_calls(poller: Poller, pair: Callable[..., Pair]) -> None:
    calls: list[str] = []
    with Poller() as inner:
        poller.register(inner)
        inner.call_soon(fail)
        inner.call_soon(calls.append, "call")
        with pytest.raises(ZeroDivisionError):
            poller.poll(PATIENCE)
        settle(poller, lambda: calls == ["call"])
        inner.call_later(0.001, fail)
        inner.call_later(0.002, calls.append, "timer")
        with pytest.raises(ZeroDivisionError):
            settle(poller, lambda: False)
        settle(poller, lambda: calls == ["call", "timer"])
        plain = pair(fail)
        inner.register(plain)
        plain.tell()
        inner.call_later(0.001, calls.append, "timer beside a failing handler")
        with pytest.raises(ZeroDivisionError):
            settle(poller, lambda: False)
        settle(poller, lambda: len(calls) == 3)


def test_a_poller_in_a_poller_is_driven_by_any_loop(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    with Poller() as inner, select.epoll() as outside:
        inner.register(plain)
        poller.register(inner)
        outside.register(poller.fileno(), select.EPOLLIN)
        inner.call_soon(plain.tell)
        while not plain.got:
            assert outside.poll(PATIENCE)
            poller.handle_read()
        assert outside.poll(0) == []


def test_an_inner_poller_that_is_closed_leaves_the_outer(poller: Poller) -> None:
    inner = Poller()
    poller.register(inner)
    inner.close()
    assert len(poller) == 0
    poller.loop()


def test_closing_inner_and_outer_in_any_order_leaves_nothing_open(pair: Callable[..., Pair]) -> None:
    plain = pair()
    before = descriptors()
    for first in (0, 1):
        outer, inner = Poller(), Poller()
        inner.register(plain)
        outer.register(inner)
        both = (outer, inner)
        both[first].close()
        both[1 - first].close()
        assert descriptors() == before


def test_an_inner_poller_made_anew_is_still_watched(poller: Poller, pair: Callable[..., Pair]) -> None:
    dead, neighbour = pair(), pair()
    with Poller() as inner:
        inner.register(dead)
        inner.register(neighbour)
        poller.register(inner)
        copy = os.dup(dead.fileno())
        try:
            dead.ours.close()
            inner.unregister(dead)
            dead.tell()
            turns(poller)
            neighbour.tell()
            settle(poller, lambda: neighbour.got)
        finally:
            os.close(copy)


def test_any_loop_that_watches_descriptors_drives_a_poller(poller: Poller, pair: Callable[..., Pair]) -> None:
    plain = pair()
    poller.register(plain)
    outside = select.poll()
    outside.register(poller.fileno(), select.POLLIN)
    assert outside.poll(0) == []
    plain.tell()
    assert outside.poll(PATIENCE * 1000)
    poller.handle_read()
    assert plain.got == [b"x"]
    assert outside.poll(0) == []
    calls: list[int] = []
    poller.call_later(0.002, calls.append, 1)
    while not calls:
        assert outside.poll(PATIENCE * 1000), "a timer makes the descriptor readable"
        poller.handle_read()


def test_another_loop_hears_of_a_set_made_anew(poller: Poller, pair: Callable[..., Pair]) -> None:
    dead, neighbour = pair(), pair()
    poller.register(dead)
    poller.register(neighbour)
    with select.epoll() as outside:
        outside.register(poller.fileno(), select.EPOLLIN)
        copy = os.dup(dead.fileno())
        try:
            dead.ours.close()
            poller.unregister(dead)
            dead.tell()
            for _ in range(10):
                if outside.poll(0):
                    poller.handle_read()
            neighbour.tell()
            assert outside.poll(PATIENCE), "the other loop watches a set that is gone"
            poller.handle_read()
            assert neighbour.got == [b"x"]
        finally:
            os.close(copy)


def test_pollers_in_a_circle_are_refused(poller: Poller) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)) as itself:
        poller.register(poller)
    assert "circle" in itself.value.__notes__[0]
    with Poller() as inner:
        poller.register(inner)
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)) as circle:
            inner.register(poller)
        assert "circle" in circle.value.__notes__[0]
        assert len(inner) == 0


# -- closing -------------------------------------------------------------------------------------------------


def test_a_poller_opens_nothing_until_it_is_used(pair: Callable[..., Pair]) -> None:
    plain = pair()
    before = descriptors()
    poller = Poller()
    poller.stop()
    poller.call_soon(fail)
    assert not poller.polling
    assert descriptors() == before
    poller.close()
    poller.register(plain)
    assert descriptors() != before
    poller.close()
    assert descriptors() == before


def test_what_was_unregistered_is_forgotten_whole(poller: Poller, pair: Callable[..., Pair]) -> None:
    before = len(polling._owners)
    one = pair()
    for _ in range(10):
        poller.register(one)
        poller.unregister(one)
    assert len(polling._owners) == before


def test_a_closed_poller_has_closed_its_dispatchers_and_let_the_rest_go(pair: Callable[..., Pair]) -> None:
    before = descriptors()
    plain = pair()
    with Poller() as poller:
        connection = Connection(poller)
        poller.register(plain)
        timer = poller.call_later(1, fail)
        poller.call_soon(fail)
    assert connection.closed
    assert not plain.ours._closed  # type: ignore[attr-defined]
    assert timer is not None
    poller.close()
    poller.poll()  # may be used again; the timers and calls are gone
    poller.register(plain)
    plain.tell()
    poller.poll()
    assert plain.got == [b"x"]
    poller.close()
    plain.close()
    assert descriptors() == before


def test_a_forgotten_poller_frees_what_it_opened(pair: Callable[..., Pair]) -> None:
    plain = pair()
    before = descriptors()
    poller = Poller()
    poller.register(plain)
    poller.call_later(1, fail)
    poller.poll(0.001)
    del poller
    gc.collect()
    assert descriptors() == before
    with Poller() as other:
        other.register(plain)
        plain.tell()
        other.poll()
    assert plain.got == [b"x"]


@pytest.mark.parametrize(
    "options",
    [{}, {"timeout": 1000}, {"interval": 1000}],
    ids=["waiting", "in a timeout", "between polls"],
)
def test_closing_from_another_thread_ends_the_loop(pair: Callable[..., Pair], options: dict[str, Any]) -> None:
    before = descriptors()
    poller = Poller()
    polled = threading.Event()
    connection = Connection(poller, lambda _: polled.set())
    connection.theirs.send(b"x")
    with polling_thread(poller, lambda: poller.loop(**options)) as raised:
        assert polled.wait(PATIENCE)
        poller.close()
    assert raised == []
    connection.close()
    assert descriptors() == before


@pytest.mark.usefixtures("eager_threads")
def test_closing_from_another_thread_at_any_moment_ends_the_loop(pair: Callable[..., Pair]) -> None:
    before = descriptors()
    poller = Poller()
    for _ in range(200):
        entered = threading.Event()

        def react(plain: Pair, entered: threading.Event = entered) -> None:
            entered.set()
            plain.tell()

        plain = pair(react)
        poller.register(plain)
        plain.tell()
        with polling_thread(poller) as raised:
            assert entered.wait(PATIENCE)
            poller.close()
        assert raised == []
        plain.close()
    poller.close()
    assert descriptors() == before


# -- dispatchers ---------------------------------------------------------------------------------------------


def test_a_dispatcher_is_registered_when_its_whole_constructor_is_done(poller: Poller, free_port: int) -> None:
    ready: list[bool] = []
    polls = 0
    more = threading.Condition()
    finished = False

    class Slow(Keeper):
        def __init__(self, **options: Any) -> None:
            super().__init__(port=free_port, poller=poller, **ON_LO, **options)
            multicast.sendto("early", port=free_port, ttl=0)
            with more:  # several polls pass
                target = polls + 3
                assert more.wait_for(lambda: polls >= target, PATIENCE)
            self.ready = True

        def handle_packet(self, packet: bytes, addr: multicast.Address) -> object:
            ready.append(getattr(self, "ready", False))
            return True

    def run() -> None:
        nonlocal polls
        while not finished:
            poller.poll(0.001)
            with more:
                polls += 1
                more.notify_all()

    with polling_thread(poller, run) as raised:
        try:
            slow = Slow()
            with more:
                assert more.wait_for(lambda: ready, PATIENCE)
        finally:
            finished = True
    assert raised == []
    assert ready == [True]
    slow.close()


def test_a_dispatcher_whose_constructor_fails_leaves_nothing(poller: Poller, free_port: int) -> None:
    class Failing(Keeper):
        def __init__(self) -> None:
            super().__init__(port=free_port, poller=poller, **ON_LO)
            fail()

    class FailingTwice(Failing):
        def close(self) -> None:
            self.file.close()  # type: ignore[attr-defined]
            super().close()

    before = descriptors()
    for one in (Failing, FailingTwice):
        with pytest.raises(ZeroDivisionError) as caught:
            one()
        caught.value.__traceback__ = None
        assert len(poller) == 0
        assert joined("224.0.42.42") == []
        assert descriptors() == before


def test_a_dispatcher_whose_base_was_never_constructed_is_refused_with_words(poller: Poller) -> None:
    class Forgetful(Keeper):
        def __init__(self) -> None:
            self.poller = poller

    with pytest.raises(RegistrationError, match=r"Forgetful .*super\(\)\.__init__\(\)"):
        Forgetful()
    assert len(poller) == 0


def test_a_dispatcher_closed_in_its_constructor_is_not_registered(poller: Poller) -> None:
    class Short(Connection):
        def __init__(self) -> None:
            super().__init__(poller)
            self.close()

    assert Short().closed
    assert len(poller) == 0


def test_a_dispatcher_closes_with_its_with_statement(poller: Poller) -> None:
    with Connection(poller) as connection:
        assert connection in poller
        assert connection.fileno() >= 0
    assert connection.closed
    assert connection.fileno() == -1
    assert len(poller) == 0
    connection.close()


def test_the_arguments_of_a_dispatcher_can_be_inspected() -> None:
    assert list(inspect.signature(multicast.MulticastListener).parameters)[:4] == ["filter", "ip", "port", "mtu"]
    assert list(inspect.signature(multicast.Multicaster).parameters)[:3] == ["ip", "port", "ttl"]


@pytest.mark.usefixtures("eager_threads")
def test_objects_registered_while_another_thread_polls_miss_no_event(poller: Poller, pair: Callable[..., Pair]) -> None:
    poller.register(pair())  # so that the loop does not end
    with polling_thread(poller) as raised:
        for _ in range(500):
            met = threading.Event()

            def react(one: Pair, met: threading.Event = met) -> None:
                poller.unregister(one)
                met.set()

            ready = Pair(react)
            ready.tell()
            poller.register(ready)
            assert met.wait(PATIENCE), "its first event was lost"
            ready.close()
        poller.stop()
    assert raised == []


# -- forks ---------------------------------------------------------------------------------------------------


def test_a_forked_child_starts_with_an_empty_poller_and_leaves_the_parents_alone(
    poller: Poller, pair: Callable[..., Pair], free_port: int
) -> None:
    plain = pair()
    poller.register(plain)
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    sender = Script(["from the sender"], port=free_port, ttl=0, poller=poller)
    poller.call_soon(plain.tell, b"call")
    poller.call_later(0, plain.tell, b"timer")

    def child() -> str:
        left = len(poller)
        poller.unregister(plain)
        poller.unregister(listener)
        poller.unregister(plain.fileno())
        listener.close()
        sender.close()
        poller.poll()
        poller.register(plain)  # a set of its own
        poller.unregister(plain)
        poller.loop()
        poller.close()
        return f"{left} {listener.closed}"

    assert in_child(child) == "0 True"
    assert joined("224.0.42.42") == ["lo"], "the child must not leave the parent's groups"
    settle(poller, lambda: plain.got and listener.packets)
    assert b"".join(plain.got) == b"calltimer"
    assert listener.packets == [b"from the sender"]
    listener.close()


def test_a_child_that_closes_a_listener_nobody_polls_does_not_leave_the_parents_group(
    poller: Poller, free_port: int
) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    poller.unregister(listener)
    assert in_child(listener.close) == "None"
    assert joined("224.0.42.42") == ["lo"]
    poller.register(listener)
    multicast.sendto("x", port=free_port, ttl=0)
    settle(poller, lambda: listener.packets)
    listener.close()


def test_a_child_forked_in_a_handler_leaves_the_loop(poller: Poller, pair: Callable[..., Pair]) -> None:
    said: list[str] = []
    children: list[int] = []

    def fork() -> None:
        children.append(os.fork())

    plain, second = pair(lambda _: fork()), pair(lambda _: said.append("second"))
    poller.register(plain)
    poller.register(second)
    plain.tell()
    second.tell()
    poller.call_later(PATIENCE, poller.stop)
    inlet, outlet = os.pipe()
    try:
        poller.poll()
        if children == [0]:
            poller.loop()  # nothing is registered here
            os.write(outlet, b"%d" % len(poller))
    finally:
        if children == [0]:
            os._exit(0)
        os.close(outlet)
    with os.fdopen(inlet) as pipe:
        assert pipe.read() == "0"
    os.waitpid(children[0], 0)
    assert said == ["second"]


def test_a_child_may_listen_on_its_own_account(poller: Poller, free_port: int) -> None:
    inherited = Keeper(port=free_port, poller=poller, **ON_LO)

    def child() -> bytes:
        own = Keeper(port=free_port, poller=poller, **ON_LO)
        multicast.sendto("hello", port=free_port, ttl=0)
        settle(poller, lambda: own.packets)
        own.close()
        return own.packets[0]

    assert in_child(child) == "b'hello'"
    settle(poller, lambda: inherited.packets)
    assert inherited.packets == [b"hello"]
    inherited.close()


def test_the_exit_of_a_child_changes_nothing(poller: Poller, free_port: int) -> None:
    inherited = Keeper(port=free_port, poller=poller, **ON_LO)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert joined("224.0.42.42") == ["lo"]
    multicast.sendto("hello", port=free_port, ttl=0)
    settle(poller, lambda: inherited.packets)
    inherited.close()
    assert joined("224.0.42.42") == []


def test_membership_ends_with_close_although_a_child_lives_on(poller: Poller, free_port: int) -> None:
    listener = Keeper(port=free_port, poller=poller, **ON_LO)
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(outlet)
        os.read(inlet, 1)  # until the parent says so
        os._exit(0)
    listener.close()
    assert joined("224.0.42.42") == []
    os.close(outlet)
    os.waitpid(child, 0)
    os.close(inlet)


# -- the default poller --------------------------------------------------------------------------------------


def test_the_functions_of_the_module_use_the_default_poller(pair: Callable[..., Pair]) -> None:
    plain = pair(multicast.unregister)
    multicast.register(plain)
    assert plain in multicast._defaultPoller
    plain.tell()
    multicast.poll()
    assert plain.got == [b"x"]
    multicast.register(plain, select.EPOLLIN)
    plain.tell()
    multicast.loop()
    assert plain.got == [b"x", b"x"]


def test_the_arguments_are_as_specified() -> None:
    def arguments(function: Callable[..., object]) -> str:
        parameters = inspect.signature(function).parameters.values()
        return ", ".join(
            parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
            for parameter in parameters
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )

    where = "ip='224.0.42.42', port=4242"
    assert arguments(multicast.sendto) == f"packets, {where}, ttl=1"
    assert arguments(multicast.listen) == f"packet_handler=None, {where}, mtu=4096, limit=None"
    assert arguments(multicast.register) == "fd, flags=0"
    assert arguments(multicast.unregister) == "fd"
    assert arguments(multicast.poll) == "timeout=0"
    assert arguments(multicast.loop) == "timeout=0, interval=0"
    assert arguments(multicast.Poller.register) == "self, fd, flags=0"
    assert arguments(multicast.Poller.poll) == "self, timeout=0"
    assert arguments(multicast.Poller.loop) == "self, timeout=0, interval=0"
    assert arguments(multicast.Multicaster.__init__) == f"self, {where}, ttl=1"
    assert arguments(multicast.MulticastListener.__init__) == f"self, filter=None, {where}, mtu=4096"
    assert arguments(multicast.Poller) == ""


def test_a_signal_handler_that_raises_anywhere_leaves_timers_to_come_or_made() -> None:
    """Whatever line of the timers is interrupted, each call is made once, in order, in this poll or the next."""

    def tried(place: int) -> bool:
        """Raise at the line with this number of those that run; return whether there was one."""
        schedule = timers.Schedule()
        made: list[int] = []
        for number in range(4):
            schedule.add(timers.Timer(float(number), made.append, (number,)))
        schedule[2][2].cancel()
        wanted = [number for number in range(4) if any(entry[0] == number and entry[2].active for entry in schedule)]
        lines = itertools.count()

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if frame.f_code.co_filename != timers.__file__:
                return None
            if event == "line" and next(lines) == place:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            schedule.run(10.0)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
            schedule.run(10.0)
            assert made == wanted, f"interrupted at line {place} of those that run"
            assert schedule.next_deadline() is None
        return False

    assert sum(itertools.takewhile(bool, map(tried, itertools.count()))) > 15
