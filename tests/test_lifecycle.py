"""Beginnings and ends: of processes, interpreters, threads and objects, in odd orders."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from helpers import Keeper, Pair, Script, in_child, joined, settle

import multicast
from multicast import Poller

pytestmark = [pytest.mark.needs_namespaces]

GROUP, PORT = "239.90.5.1", 4395
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = netns.python(code)
    command[1:1] = options
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, **environment},
    )


# -- programs --------------------------------------------------------------------------------------------------


PROGRAM = f"""
    import multicast, sys, threading, time
    from multicast import streams

    class Listener(multicast.MulticastListener):
        def handle_packet(self, packet, addr):
            pass

    class Sender(multicast.Multicaster):
        def __iter__(self):
            while True:
                yield "x"

    class Timed(Listener):
        def __init__(self, **options):
            super().__init__(**options)
            self.poller.call_later(1000, self.close)

    mine = multicast.Poller()
    kept = Timed(ip={GROUP!r}, port={PORT}, details=True)
    Listener(ip={GROUP!r}, port={PORT}, poller=mine)
    Sender({GROUP!r}, {PORT}, interval=0.001, poller=mine)
    acceptor = streams.Acceptor("127.0.0.1", 0, streams.Stream, poller=mine)
    stream = streams.connect("127.0.0.1", acceptor.address.port, poller=mine)
    inbox = multicast.listen(ip={GROUP!r}, port={PORT})
    multicast.poll()
"""
ENDINGS = {
    "the end of the program": "",
    "with a loop in a daemon thread": "threading.Thread(target=mine.loop, daemon=True).start(); time.sleep(0.05)",
    "with the default loop in a daemon thread": """
    for poller in (mine, multicast._defaultPoller):
        threading.Thread(target=poller.loop, daemon=True).start()
    time.sleep(0.05)
    """,
    "sys.exit in a handler": """
    class Leaving(Listener):
        def handle_packet(self, packet, addr):
            sys.exit(0)
    Leaving(ip=GROUP, port=PORT)
    multicast.sendto("x", GROUP, PORT)
    multicast.loop()
    """.replace("GROUP", repr(GROUP)).replace("PORT", str(PORT)),
    "in a circle": "kept.circle = [kept, mine]; mine.circle = kept; del kept, mine",
    "with everything in sys": "sys.everything = (kept, mine, stream, inbox)",
    "at the end of a thread that is waited for": """
    def end():
        time.sleep(0.05)
        mine.stop()
    threading.Thread(target=end).start()
    mine.loop()
    """,
    "with a function for the exit": """
    import atexit
    atexit.register(lambda: (multicast.poll(), multicast.sendto("x", GROUP, PORT), kept.close()))
    """.replace("GROUP", repr(GROUP)).replace("PORT", str(PORT)),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interpreter_that_ends_with_everything_open_says_nothing(ending: str) -> None:
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(ENDINGS[ending])
    done = run(code, "-X", "dev", "-W", "error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_ended_by_a_signal_is_no_member_any_more(number: int) -> None:
    group = f"239.90.5.{int(number)}"
    code = f"""
        import multicast
        multicast.listen(ip={group!r}, port={PORT})
        print("ready", flush=True)
        multicast.loop()
    """
    with subprocess.Popen(netns.python(code), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert joined(group) == ["lo"]
        process.send_signal(number)
        assert process.wait(20) in (-number, 1, 130)
    assert joined(group) == []


def test_a_program_that_replaces_ours_inherits_no_descriptor(tmp_path: Path) -> None:
    """PEP 446; also for what the package opens beside sockets: sets, alarms, wake-ups, the watch, capture files."""
    code = f"""
        import multicast, os, sys
        from multicast import capture, discovery, streams
        before = sorted(os.listdir("/proc/self/fd"))

        class Echo(discovery.Responder):
            def handle_request(self, packet, addr):
                return packet

        everything = [
            multicast.listen(ip={GROUP!r}, port={PORT}, details=True),
            Echo(ip={GROUP!r}, port={PORT}),
            streams.Acceptor("127.0.0.1", 0, streams.Stream),
            capture.Recorder({str(tmp_path / "feed.pcapng")!r}, ip={GROUP!r}, port={PORT}),
        ]
        multicast._defaultPoller.call_later(1000, print)
        multicast._defaultPoller.fileno()
        multicast.poll()
        assert len(os.listdir("/proc/self/fd")) > len(before) + 6
        listing = "import os, sys; print(sorted(os.listdir('/proc/self/fd')) == sys.argv[1:])"
        os.execv(sys.executable, [sys.executable, "-c", listing, *before])
    """
    done = run(code)
    assert done.stdout == "True\n", done.stderr
    assert joined(GROUP) == []


def test_a_child_that_is_started_by_subprocess_inherits_no_descriptor(poller: Poller) -> None:
    with Keeper(ip=GROUP, port=PORT, poller=poller):
        poller.poll()
        done = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False, check=True)
        for number in done.stdout.split():
            assert int(number) <= 2 or os.readlink(f"/proc/self/fd/{number}") not in {
                os.readlink(f"/proc/self/fd/{fd}") for fd in (poller.fileno(), *(one.fileno() for one in poller))
            }


# -- threads and forks -----------------------------------------------------------------------------------------


def test_a_fork_in_one_thread_while_others_poll_leaves_all_of_them_working(free_port: int) -> None:
    pollers = [Poller() for _ in range(3)]
    keepers = [Keeper(ip=GROUP, port=free_port, poller=poller) for poller in pollers]
    threads = [threading.Thread(target=poller.loop) for poller in pollers]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            # In the child nobody polls, every set is empty, and it can begin anew.
            said = in_child(lambda: ([len(poller) for poller in pollers], *children(free_port)))
            assert said == "([0, 0, 0], 1)"
            multicast.sendto(str(number), GROUP, free_port)
        deadline = threading.Event()
        for _ in range(2000):
            if all(keeper.packets and keeper.packets[-1] == b"7" for keeper in keepers):
                break
            deadline.wait(0.01)
        for keeper in keepers:
            assert [packet for packet in keeper.packets if packet.isdigit()] == [b"%d" % n for n in range(8)]
    finally:
        for poller, thread in zip(pollers, threads, strict=True):
            poller.close()
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def children(port: int) -> Iterator[int]:
    with Poller() as poller:
        keeper = Keeper(ip="239.90.5.2", port=port, poller=poller)
        multicast.sendto("from the child", "239.90.5.2", port)
        while not keeper.packets:
            poller.poll(1)
        yield len(keeper.packets)


def test_a_child_of_a_child_starts_empty_too(poller: Poller) -> None:
    with Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:

        def child() -> str:
            own = Keeper(ip=GROUP, port=PORT, poller=poller)
            said = in_child(lambda: (len(poller), keeper.closed, own.closed))
            return f"{said} {len(poller)}"

        assert in_child(child) == "(0, True, True) 1"
        multicast.sendto("x", GROUP, PORT)
        settle(poller, lambda: keeper.packets)


def test_objects_made_in_a_thread_that_has_ended_are_driven_by_another(poller: Poller) -> None:
    made: list[Keeper] = []
    thread = threading.Thread(target=lambda: made.append(Keeper(ip=GROUP, port=PORT, poller=poller)))
    thread.start()
    thread.join()
    with made[0] as keeper:
        multicast.sendto("x", GROUP, PORT)
        settle(poller, lambda: keeper.packets)


# -- the collector ---------------------------------------------------------------------------------------------

PARTS = ("poller", "listener", "sender", "plain", "inner")


@pytest.mark.parametrize("order", list(itertools.permutations(PARTS))[::7], ids="-".join)
def test_a_circle_is_freed_whole_in_whatever_order_it_is_let_go(order: tuple[str, ...]) -> None:
    poller, inner = Poller(), Poller()
    listener = Keeper(ip=GROUP, port=PORT, poller=poller)
    pair = Pair(lambda pair: None)
    ends = (pair.ours, pair.theirs)
    held: dict[str, Any] = {
        "poller": poller,
        "listener": listener,
        "sender": Script(iter(lambda: None, 1), GROUP, PORT, poller=inner),
        "plain": pair,
        "inner": inner,
    }
    poller.register(pair)
    poller.register(inner)
    poller.call_later(1000, listener.close)
    pair.reaction = poller.unregister
    listener.circle = held["sender"].circle = held  # type: ignore[attr-defined]
    poller.poll()
    seen = [weakref.ref(one) for one in held.values()]
    del poller, inner, listener, pair
    for name in order:
        del held[name]
        gc.collect()
    del held
    gc.collect()
    for end in ends:
        end.close()
    assert [ref() for ref in seen if ref() is not None] == []
    assert joined(GROUP) == []


def test_what_a_handler_leaves_to_the_collector_goes_while_the_poller_runs(poller: Poller) -> None:
    """The collector may come at any allocation, and then closes listeners in the midst of somebody else's poll."""
    gone: list[int] = []

    def make(number: int) -> None:
        other = Poller()
        keeper = Keeper(ip=GROUP, port=PORT, poller=other)
        keeper.circle = keeper  # type: ignore[attr-defined]
        weakref.finalize(keeper, gone.append, number)

    with Keeper(ip=GROUP, port=PORT, poller=poller) as stays:
        before = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for number in range(30):
                poller.call_soon(make, number)
                multicast.sendto("x", GROUP, PORT)
                poller.poll()
        finally:
            gc.set_threshold(*before)
        settle(poller, lambda: len(stays.packets) == 30)
        gc.collect()
    assert len(gone) == 30


def test_a_finalizer_may_send_poll_and_listen(poller: Poller) -> None:
    class Last:
        def __del__(self) -> None:
            multicast.sendto("last words", GROUP, PORT)
            poller.poll()
            Keeper(ip="239.90.5.3", port=PORT, poller=poller).close()

    with Keeper(ip=GROUP, port=PORT, poller=poller) as keeper:
        last: Any = Last()
        last.circle = last
        del last
        gc.collect()
        settle(poller, lambda: keeper.packets)


# -- interpreters ----------------------------------------------------------------------------------------------


def test_a_second_interpreter_in_the_process_is_refused_in_words_or_works() -> None:
    """The package promises one interpreter a process; what it must not do is crash."""
    code = f"""
        import multicast
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            import _interpreters as interpreters
        other = interpreters.create()
        script = 'import multicast; multicast.sendto("x", "{GROUP}", {PORT})'
        try:
            interpreters.run_string(other, script)
        except Exception as error:
            print("refused", file=__import__("sys").stderr)
        interpreters.destroy(other)
        multicast.sendto("x", {GROUP!r}, {PORT})
        print("lives")
    """
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python is not a free-threaded one")
def test_without_the_global_lock_each_thread_has_a_poller_of_its_own(free_port: int) -> None:
    counts: list[int] = []

    def listen() -> None:
        with Poller() as poller, Keeper(ip=GROUP, port=free_port, poller=poller) as keeper:
            ready.wait()
            settle(poller, lambda: len(keeper.packets) == 200)
            counts.append(len(keeper.packets))

    ready = threading.Barrier(5)
    threads = [threading.Thread(target=listen) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    multicast.sendto(map(str, range(200)), GROUP, free_port)
    for thread in threads:
        thread.join(40)
    assert counts == [200] * 4


# -- the long runs, in short -----------------------------------------------------------------------------------


def test_opening_and_closing_in_every_way_leaves_nothing() -> None:
    command = [sys.executable, str(BENCHMARKS / "lifecycle.py"), "--cycles", "1500", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout)["left"] == []
    assert done.returncode == 0


def test_a_flood_and_many_sources_are_survived() -> None:
    """The times are for the long run: others have the processor here, so only what is out of all bounds counts."""
    command = [sys.executable, str(BENCHMARKS / "flood.py"), "--seconds", "2", "--sources", "30000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.stderr == ""
    result = json.loads(done.stdout)
    flood, many = result["flood"], result["many"]
    assert set(result["wrong"]) <= {"descriptors beside the flood", "timers beside the flood", "stop"}
    assert flood["sent"] > flood["delivered"] > 0
    assert max(flood["descriptor_p99"], flood["timer_p99"], flood["stop_median"]) < 2
    assert many["delivered"] + many["dropped"] == many["sources"] + 1
    assert many["limited"] > 0


@pytest.mark.parametrize("name", ["flood", "lifecycle"])
def test_the_long_runs_refuse_a_machine_with_wires(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(module.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    main: Callable[[], int] = module.main
    try:
        with pytest.raises(SystemExit, match="namespace of its own"):
            main()
    finally:
        for taken in (getattr(module, "_taken", None), getattr(module, "_poller", None)):
            if taken is not None:
                taken.close()
