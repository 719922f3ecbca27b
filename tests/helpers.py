"""What several test files use: objects that keep what they saw, a clock that is set by hand, ways to wait."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import multicast
from multicast import ArgumentError, GroupError, InterfaceError

#: A test that waits longer than this for what must happen has failed.
PATIENCE = 20

_PYTEST = os.getpid()

#: Keywords that no sender takes, what they raise, and a word of what it says.
BAD_SENDERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ttl": 256}, ArgumentError, "ttl"),
    ({"ttl": -1}, ArgumentError, "ttl"),
    ({"ttl": "1"}, ArgumentError, "ttl"),
    ({"ttl": True}, ArgumentError, "ttl"),
    ({"ttl": 1.0}, ArgumentError, "ttl"),
    ({"source_port": 65536}, ArgumentError, "source_port"),
    ({"source_port": -1}, ArgumentError, "source_port"),
    ({"interface": "eth7"}, InterfaceError, "eth7"),
    ({"interface": 4711}, InterfaceError, "4711"),
    ({"source_ip": "10.9.8.7"}, InterfaceError, "10.9.8.7"),
    ({"source_ip": "nonsense"}, GroupError, "nonsense"),
    ({"source_ip": "::1"}, GroupError, "one family"),
]


def name(value: object) -> str:
    """Return the name of a test's parameter: ASCII without backslashes, and without the address of an object.

    The workers of a parallel run compare the names of tests. pytest escapes such a name again when it collects a second
    time in one process, as mutmut has it do.
    """
    plain = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return re.sub(r"[^\x20-\x5b\x5d-\x7e]", "~", plain)


def settle(poller: multicast.Poller, done: Callable[[], object]) -> None:
    """Poll until `done()` is true; fail when it does not become so."""
    late: list[bool] = []
    timer = poller.call_later(PATIENCE, late.append, True)
    try:
        poller.run_until(lambda: late or done())
    finally:
        timer.cancel()
    assert not late, f"waited {PATIENCE} s in vain"


def batch_with(c_form: Any) -> Any:
    """Load `multicast.batch` a second time, as if its C form were this one, or with None not built."""
    spec = importlib.util.find_spec("multicast.batch")
    assert spec is not None
    assert spec.origin is not None
    own = importlib.util.spec_from_file_location("multicast.batch_in_python", spec.origin)
    assert own is not None
    assert own.loader is not None
    module = importlib.util.module_from_spec(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "multicast._batch", c_form)
        own.loader.exec_module(module)
    assert module.ENGINE == "python"
    return module


def turns(poller: multicast.Poller, count: int = 10) -> None:
    """Poll so often that whatever can happen by itself has happened; on `lo` what was sent is there already."""
    for _ in range(count):
        poller.poll()


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Keeper(multicast.MulticastListener):
    """A listener that keeps its packets and where they came from."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.packets: list[bytes] = []
        self.addrs: list[multicast.Address] = []
        super().__init__(*args, **options)

    def handle_packet(self, packet: bytes, addr: multicast.Address) -> object:
        self.packets.append(packet)
        self.addrs.append(addr)
        return False


class Script(multicast.Multicaster):
    """A sender of the packets it is given."""

    def __init__(self, packets: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.packets = packets

    def __iter__(self) -> Iterator[Any]:
        return iter(self.packets)


class Pair:
    """A plain object with one end of a socket pair; it keeps what it reads, and gives itself to `reaction`, if any."""

    def __init__(self, reaction: Callable[[Pair], object] | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.got: list[bytes] = []
        self.reaction = reaction

    def fileno(self) -> int:
        return self.ours.fileno()

    def handle_read(self) -> None:
        self.got.append(self.ours.recv(100))
        if self.reaction is not None:
            self.reaction(self)

    def tell(self, data: bytes = b"x") -> None:
        self.theirs.send(data)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@functools.cache
def _ipv6_on_lo() -> bool:
    """Whether `lo` carries IPv6 groups here; without a route of its own for them it does not."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("lo"))
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
            probe.sendto(b"", ("ff11::4242", 9))  # interface-local: it cannot leave
    except OSError:
        return False
    return True


def need_on_lo(ip: str) -> str:
    """Skip the test where `lo` does not carry groups of the family of `ip`; return `ip`."""
    if ":" in ip and not _ipv6_on_lo():
        pytest.skip("lo carries no IPv6 groups here: it has no route for them")
    return ip


def descriptors() -> set[str]:
    """Return what is open, each as "number -> target"."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} -> {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            pass
    return found


def joined(group: str) -> list[str]:
    """Return the interfaces that are members of an IPv4 or IPv6 group in the network namespace we are in."""
    if ":" in group:
        packed = socket.inet_pton(socket.AF_INET6, group).hex()
        rows = [line.split() for line in Path("/proc/thread-self/net/igmp6").read_text().splitlines()]
        return [row[1] for row in rows if row[2] == packed]
    wanted = socket.inet_aton(group)[::-1].hex().upper()
    found, device = [], ""
    for line in Path("/proc/thread-self/net/igmp").read_text().splitlines()[1:]:
        words = line.split()
        if line.startswith("\t"):
            if words[0] == wanted:
                found.append(device)
        else:
            device = words[1]
    return found


@contextmanager
def polling_thread(poller: multicast.Poller, run: Callable[[], object] | None = None) -> Iterator[list[BaseException]]:
    """Drive a poller in another thread meanwhile, by `loop` or what is given; it must end by itself or be stopped.

    Gives a list of what it raised.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            (run or poller.loop)()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, name="polling")
    thread.start()
    try:
        yield raised
    finally:
        thread.join(PATIENCE)
        alive = thread.is_alive()
        if alive:
            poller.stop()
            thread.join(PATIENCE)
        assert not alive, "the polling thread did not end"


def in_child(run: Callable[[], object]) -> str:
    """Fork, call `run` in the child, and return its result as text, or what it raised; the child is gone then."""
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(inlet)
            try:
                said = str(run())
            except BaseException as error:
                said = repr(error)
            with os.fdopen(outlet, "w") as pipe:
                pipe.write(said)
        finally:
            os._exit(0)
    os.close(outlet)
    try:
        with os.fdopen(inlet) as pipe:
            return pipe.read()
    except BaseException:  # pytest-timeout ends a wait that is too long
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)


def sources(addrs: Sequence[multicast.Address]) -> list[str]:
    """Return the senders' addresses."""
    return [addr[0] for addr in addrs]


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked child, for one that changes its process: its limits, its umask, what SIGALRM does.

    In the process of pytest a limit would hold for what pytest itself opens and writes, and the alarm is that of
    pytest-timeout. A poller that was made before is empty in the child, as in every forked child.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        def whole() -> str:
            try:
                test(*arguments, **fixtures)
            except BaseException:
                return traceback.format_exc()
            return ""

        said = in_child(whole)
        assert not said, said

    return run


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no further descriptor meanwhile; for tests that run `alone`."""
    assert os.getpid() != _PYTEST, "the limit would hold for what pytest itself opens"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
