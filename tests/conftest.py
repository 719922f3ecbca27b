"""What all tests share: what they need, what they may use, and that they leave nothing behind.

The process is in its private network namespace already (see the conftest.py above this folder). Where the
system refuses that, only tests marked `lo_alone` may touch the network; all others are skipped as soon as
they try.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import catalogue
import hypothesis
import netns
import pytest

if TYPE_CHECKING:
    import multicast

# The same cases in every run, and no case fails for being slow on a busy machine.
hypothesis.settings.register_profile("project", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("project")


def pytest_report_header() -> str:
    if not netns.private:
        return f"network: lo alone and TTL 0, for {netns.reason}; tests that need more are skipped"
    return f"network: private namespace, as {'root' if netns.real_root else 'an ordinary user'}"


# -- which tests cause a fault of the catalogue --------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those in the documentation's table, before -m chooses."""
    named = catalogue.all_tests()
    for item in items:
        if isinstance(item, pytest.Function) and (item.path.stem, item.originalname) in named:
            item.add_marker("fault")


def pytest_collection_finish() -> None:
    """Leave what pytest, the libraries and the tests themselves have made out of the collections of the tests.

    They stay until the end in any case. Some tests collect after each step, which takes a tenth of a second otherwise.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Take it for a success when nothing had failed that could be run once more."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("lf"):
        session.exitstatus = pytest.ExitCode.OK


# -- what a test needs ---------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_namespaces") and not netns.private:
        pytest.skip(netns.reason)
    if item.get_closest_marker("needs_root") and not (netns.private and netns.real_root):
        pytest.skip("needs root's powers over the machine")
    for marker in item.iter_markers("needs_program"):
        for name in marker.args:
            if shutil.which(name) is None:
                pytest.skip(f"the program {name} is not installed")


if not netns.private:
    import sys

    _may_use_network = True

    def _stop_at_network(event: str, args: tuple[Any, ...]) -> None:
        """Skip a test at its first attempt to open an internet socket or to start a program that might."""
        if _may_use_network:
            return
        if event == "socket.__new__" and args[1] in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET):
            pytest.skip(f"not for lo alone, and {netns.reason}")
        if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
            pytest.skip(f"starts a program, and {netns.reason}")

    sys.addaudithook(_stop_at_network)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
        global _may_use_network
        _may_use_network = item.get_closest_marker("lo_alone") is not None
        try:
            return (yield)
        finally:
            _may_use_network = True


# -- what a test leaves behind -------------------------------------------------------------------------------


def _descriptors() -> Counter[str]:
    """Return what is open, as "number -> target"."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            found[f"descriptor {number} -> {os.readlink(f'/proc/self/fd/{number}')}"] += 1
        except FileNotFoundError:  # the one that listdir used
            pass
    return found


def _threads() -> Counter[str]:
    return Counter(f"thread {thread.name!r}" for thread in threading.enumerate())


def _children() -> Counter[str]:
    found: Counter[str] = Counter()
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(f"child process {pid}" for pid in path.read_text().split())
        except OSError:  # the thread has ended meanwhile
            pass
    return found


def _memberships() -> Counter[str]:
    """Return the groups joined in our namespace, counted by their users."""
    found: Counter[str] = Counter()
    if not netns.private:
        return found  # others come and go there
    device = ""
    for line in Path("/proc/self/net/igmp").read_text().splitlines()[1:]:
        words = line.split()
        if not line.startswith("\t"):
            device = words[1]
        else:
            group = socket.inet_ntoa(int(words[0], 16).to_bytes(4, "little"))
            found[f"membership of {group} on {device}"] += int(words[1])
    igmp6 = Path("/proc/self/net/igmp6")
    for line in igmp6.read_text().splitlines() if igmp6.exists() else ():
        words = line.split()
        group = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[2]))
        found[f"membership of {group} on {words[1]}"] += int(words[3])
    return found


def _registrations() -> Counter[str]:
    """Return what is registered on the default poller; have it, and `sendto`, close the descriptors they keep."""
    try:
        from multicast.poller import _defaultPoller
        from multicast.senders import forget_senders
    except ImportError:  # a broken package makes its tests fail, not this
        return Counter()
    found = Counter(f"registration of {target!r} on the default poller" for target in _defaultPoller)
    _defaultPoller.close()
    forget_senders()
    return found


def _everything() -> Counter[str]:
    registrations = _registrations()  # first, as it closes descriptors
    return registrations + _descriptors() + _threads() + _children() + _memberships()


_LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
del _LIMITS["RLIMIT_OFILE"]  # RLIMIT_NOFILE under another name


def _settings() -> dict[str, object]:
    """Return what a process has one of, by name; a change would hold for the tests after it and for pytest."""
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "the network namespace": os.readlink("/proc/thread-self/ns/net"),
        "the working directory": os.readlink("/proc/self/cwd"),
        "the umask": next((line.split()[1] for line in status if line.startswith("Umask:")), ""),
        **{f"the limit {name}": resource.getrlimit(number) for name, number in _LIMITS.items()},
        # That of SIGALRM is pytest-timeout's, which takes it back when a test fails.
        **{f"the handler of {one!r}": signal.getsignal(one) for one in signal.valid_signals() - {signal.SIGALRM}},
        # pytest sets this one itself.
        **{f"${name}": value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
    }


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test after which more is open, running, joined or registered than before it, or a setting has changed."""
    settings = _settings()
    before = _everything()
    yield
    registrations = _registrations()
    left = registrations + (_everything() - before)
    if left:
        # Only now look closer: some objects wait for the collector, some threads are on their way out.
        gc.collect()
        for thread in threading.enumerate():
            if f"thread {thread.name!r}" in left:
                thread.join(2)
        left = registrations + (_everything() - before)
    if left:
        lines = (f"  {what}" + (f" (x {count})" if count > 1 else "") for what, count in sorted(left.items()))
        pytest.fail("the test left behind\n" + "\n".join(lines), pytrace=False)
    now = _settings()
    changed = [name for name in {**settings, **now} if settings.get(name) != now.get(name)]
    if changed:
        lines = (f"  {name}: {settings.get(name)!r} before, {now.get(name)!r} now" for name in changed)
        pytest.fail("the test left changed\n" + "\n".join(lines), pytrace=False)


# -- what a test may use -------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[netns.Lab]:
    """Hosts in network namespaces of their own; see `netns.Lab`."""
    if not netns.private:
        pytest.skip(netns.reason)
    with netns.Lab() as lab:
        yield lab


@pytest.fixture
def hosts(lab: netns.Lab) -> tuple[netns.Host, netns.Host]:
    """Two hosts joined by a wire: 10.99.0.1 and fd99::1 on va, 10.99.0.2 and fd99::2 on vb."""
    return lab.pair()


@pytest.fixture
def poller() -> Iterator[multicast.Poller]:
    """A poller of the test's own."""
    import multicast

    with multicast.Poller() as poller:
        yield poller


@pytest.fixture
def free_port() -> int:
    """A UDP port that nobody uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
