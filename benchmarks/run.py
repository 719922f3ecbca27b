"""Measure the library beside its peers, print the table, write the figures, draw the charts.

``make bench`` runs it in a private network namespace; README.rst says how each figure is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multicast.sealed import Seal

HERE = Path(__file__).resolve().parent
GROUP = "239.255.42.42"
FIRST_PORT = 20000
SIZE = 64
UDP_SEGMENT = 103
KEY = bytes(range(32))  # that of peers.py


@dataclass
class Row:
    """One line of the table."""

    #: What is measured, and of whom.
    what: str
    #: The figure, in `unit`; the median of all rounds.
    value: float
    unit: str
    #: A ratio to something measured in the same run: its value, to what, the limit it is to keep, and whether it does.
    ratio: float | None = None
    to: str = ""
    limit: str = ""
    reached: bool | None = None


@dataclass
class Limit:
    """What a ratio or a figure is to be: at most or at least so much."""

    bound: float
    least: bool = False

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.bound:g}"

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound


def at_most(bound: float) -> Limit:
    return Limit(bound)


def at_least(bound: float) -> Limit:
    return Limit(bound, least=True)


# -- peers ---------------------------------------------------------------------------------------------------


class Peer:
    """One program under measurement, in a fresh process on a core of its own."""

    def __init__(self, name: str, command: Sequence[str], port: int, core: int, env: dict[str, str] | None) -> None:
        self.name = name
        self.port = port
        self.results: list[float] = []

        def pin() -> None:
            os.sched_setaffinity(0, {core})

        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
            preexec_fn=pin,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        found = self.process.stdout.readline()
        if not found:
            assert self.process.stderr is not None
            reason = self.process.stderr.read().strip().splitlines()
            raise RuntimeError(reason[-1] if reason else "it ended")
        return found.strip()

    def ready(self) -> None:
        assert self.line() == "ready"

    def begin(self) -> None:
        """Start one round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> tuple[float, int, float]:
        """Wait for its end: nanoseconds, packets, and the third number."""
        first, second, third = self.line().split()
        return float(first), int(second), float(third)

    def go(self) -> tuple[float, int, float]:
        """Run one round."""
        self.begin()
        return self.end()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Bench:
    """One run: the machine, the rounds, the rows."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._port = FIRST_PORT
        cores = sorted(os.sched_getaffinity(0))
        self.here, self.there = cores[0], cores[-1]
        if self.here == self.there:
            self.notes.append("one core only: senders and receivers share it, and latencies mean little")
        os.sched_setaffinity(0, {self.here})
        self.floor = self._compile()
        self._sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))

    def _compile(self) -> Path | None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            self.notes.append("no C compiler: the floor is not measured, and no ratio to it")
            return None
        made = Path(os.environ.get("TMPDIR", "/tmp")) / f"multicast-floor-{os.getpid()}"  # noqa: S108
        subprocess.run([compiler, "-O2", "-o", str(made), str(HERE / "floor.c")], check=True)
        return made

    def close(self) -> None:
        self._sending.close()
        if self.floor is not None:
            self.floor.unlink()

    def port(self) -> int:
        self._port += 10
        return self._port

    def peer(
        self,
        role: str,
        kind: str,
        count: int,
        *,
        name: str = "",
        env: dict[str, str] | None = None,
        group: str = GROUP,
        port: int = 0,
    ) -> Peer | None:
        port = port or self.port()
        if role == "floor":
            if self.floor is None:
                return None
            command = [str(self.floor), group, str(port), str(count)]
        else:
            command = [sys.executable, "-P", str(HERE / "peers.py"), role, kind, group, str(port), str(count)]
        found = Peer(name or kind, command, port, self.there, env)
        try:
            if role != "many":
                found.ready()
        except (RuntimeError, AssertionError) as error:
            self.notes.append(f"{found.name} is not measured: {error}")
            found.close()
            return None
        return found

    def fill(self, port: int, packets: Sequence[bytes], group: str = GROUP) -> None:
        put, to = self._sending.sendto, (group, port)
        for packet in packets:
            put(packet, to)

    def fill_in_bursts(self, port: int, count: int, group: str = GROUP) -> None:
        segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", SIZE))]
        for first in range(0, count, 64):
            self._sending.sendmsg([bytes(SIZE * min(64, count - first))], segment, 0, (group, port))

    def row(
        self, what: str, value: float, unit: str, *limits: tuple[str, float | None, Limit | None], inverse: bool = False
    ) -> None:
        """Add a figure, with one line for each ratio: to what, its figure, and the limit."""
        if not limits:
            self.rows.append(Row(what, value, unit))
        for to, other, limit in limits:
            if other is None:
                self.rows.append(Row(what, value, unit))
                continue
            ratio = value / other if not (limit is not None and limit.least) else other / value
            self.rows.append(
                Row(
                    what,
                    value,
                    unit,
                    ratio,
                    to,
                    "" if limit is None else str(limit),
                    None if limit is None else limit.holds(ratio),
                )
            )

    def figure(self, what: str, value: float, unit: str, limit: Limit | None = None) -> None:
        """Add a figure that is judged by itself."""
        wanted, reached = ("", None) if limit is None else (str(limit), limit.holds(value))
        self.rows.append(Row(what, value, unit, None, "", wanted, reached))

    def alternate(
        self, peers: Sequence[Peer | None], rounds: int, fill: Callable[[Peer], None], count: Callable[[Peer], int]
    ) -> dict[str, float]:
        """Run rounds of all peers in turn, in another order each time; return the median for one packet each."""
        there = [peer for peer in peers if peer is not None]
        try:
            for number in range(rounds + 2):
                random.shuffle(there)
                for peer in list(there):
                    fill(peer)
                    try:
                        took, packets, dropped = peer.go()
                    except RuntimeError as error:
                        self.notes.append(f"{peer.name} failed: {error}")
                        there.remove(peer)
                        continue
                    if dropped or packets < count(peer):
                        raise SystemExit(
                            f"{peer.name}: {packets} packets came and {dropped:g} were dropped; raise"
                            " net.core.rmem_max, or run as root"
                        )
                    if number >= 2:  # the first ones warm up
                        peer.results.append(took / packets)
            return {peer.name: statistics.median(peer.results) for peer in there}
        finally:
            for one in peers:
                if one is not None:
                    one.close()

    # -- the figures -----------------------------------------------------------------------------------------

    def receive(self) -> None:
        # So many that finding its own code in the cache again, after the others' turns, is no part of a packet's cost.
        count, rounds = (1000, 15) if self.quick else (4000, 60)
        no_mmap = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
        peers = [
            self.peer("floor", "floor", count, name="C recvmmsg, thrown away (the floor)"),
            self.peer("ours", "c", count, name="multicast"),
            self.peer("ours", "c-batches", count, name="multicast, handle_packets"),
            self.peer("ours", "c-iterated", count, name="multicast, for packet in listen()"),
            self.peer("ours", "c-details", count, name="multicast, details"),
            self.peer("ours", "c-offload", count, name="multicast, bursts"),
            self.peer("ours", "python", count, name="multicast, Python form"),
            self.peer("ours", "python-details", count, name="multicast, Python form, details"),
            self.peer("ours", "python-offload", count, name="multicast, Python form, bursts"),
            self.peer("recvfrom", "recvfrom", count, name="recvfrom loop"),
            self.peer("asyncio", "asyncio", count, name="asyncio"),
            self.peer("asyncio", "asyncio", count, name="asyncio, without mmap", env=no_mmap),
            self.peer("uvloop", "uvloop", count, name="uvloop"),
            self.peer("twisted", "twisted", count, name="Twisted"),
            self.peer("multicast_expert", "multicast_expert", count, name="multicast_expert"),
        ]

        def fill(peer: Peer) -> None:
            if "bursts" in peer.name:
                self.fill_in_bursts(peer.port, count)
            else:
                self.fill(peer.port, [bytes(SIZE)] * count)

        found = self.alternate(peers, rounds, fill, lambda peer: count)
        floor = found.get("C recvmmsg, thrown away (the floor)")
        aio = min((found[name] for name in ("asyncio", "asyncio, without mmap") if name in found), default=None)
        wanted: dict[str, list[tuple[str, float | None, Limit | None]]] = {
            "multicast": [
                ("floor", floor, at_most(1.22)),
                ("asyncio (the better)", aio, at_least(7)),
                ("uvloop", found.get("uvloop"), at_least(2.2)),
                ("recvfrom loop", found.get("recvfrom loop"), at_least(2)),
                ("Twisted", found.get("Twisted"), at_least(1)),
                ("multicast_expert", found.get("multicast_expert"), at_least(1)),
            ],
            "multicast, handle_packets": [("floor", floor, at_most(1.12))],
            "multicast, for packet in listen()": [
                ("floor", floor, None), ("multicast", found.get("multicast"), at_most(1.25))
            ],
            "multicast, details": [("floor", floor, at_most(1.7))],
            "multicast, bursts": [("floor", floor, at_most(0.5))],
            "multicast, Python form": [("floor", floor, None), ("asyncio (the better)", aio, at_least(2))],
            "multicast, Python form, bursts": [("floor", floor, at_most(0.5))],
        }
        for name in sorted(found, key=found.__getitem__):
            self.row(f"receive: {name}", found[name], "ns/packet", *wanted.get(name, [("floor", floor, None)]))

    def awaited(self) -> None:
        count, rounds = (1000, 12) if self.quick else (2000, 40)
        no_mmap = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
        kinds = {
            "listen": "async for over aio.listen",
            "listen-uvloop": "async for over aio.listen, uvloop",
            "queue": "asyncio endpoint and queue",
            "endpoint": "aio.create_multicast_endpoint",
            "endpoint-uvloop": "aio.create_multicast_endpoint, uvloop",
            "protocol": "asyncio endpoint",
        }
        # Without mmap asyncio's own endpoint is several times faster; it is compared at its best.
        peers = [self.peer("awaited", kind, count, name=name, env=no_mmap) for kind, name in kinds.items()]
        found = self.alternate(
            peers, rounds, lambda peer: self.fill(peer.port, [bytes(SIZE)] * count), lambda peer: count
        )
        wanted = {
            kinds["listen"]: ("endpoint and queue", found.get(kinds["queue"]), at_least(2)),
            kinds["endpoint"]: ("asyncio endpoint", found.get(kinds["protocol"]), at_least(3)),
        }
        for name in sorted(found, key=found.__getitem__):
            self.row(f"awaited: {name}", found[name], "ns/packet", *([wanted[name]] if name in wanted else []))

    def receive_lcm(self) -> None:
        count, rounds = (500, 10) if self.quick else (1000, 30)
        found = self.peer("lcm", "lcm", count, name="LCM (its thread reads the socket meanwhile)")
        if found is None:
            return
        magic = 0x4C433032  # LCM's short message: magic, sequence, channel, payload (its UDP multicast protocol)
        packets = [struct.pack("!II", magic, number) + b"BENCH\0" + bytes(SIZE - 14) for number in range(count)]

        def fill(peer: Peer) -> None:
            self.fill(peer.port, packets)
            time.sleep(0.01)  # until its thread has read them

        result = self.alternate([found], rounds, fill, lambda peer: count)
        for name, value in result.items():
            self.row(f"receive: {name}", value, "ns/packet")

    def filters(self) -> None:
        count, rounds = (10000, 6) if self.quick else (20000, 20)
        packets = [(b"match-this" if number % 100 == 99 else b"some other").ljust(SIZE) for number in range(count)]
        peers = [
            self.peer("ours", "c-literal", count, name="filter in the kernel"),
            self.peer("ours", "c-literal-unfiltered", count, name="filter in Python"),
        ]
        found = self.alternate(peers, rounds, lambda peer: self.fill(peer.port, packets), lambda peer: count // 100)
        inside, outside = (found[name] / 100 for name in ("filter in the kernel", "filter in Python"))
        self.row("filter: in Python", outside, "ns/packet sent")
        self.row("filter: in the kernel", inside, "ns/packet sent", ("in Python", outside, at_least(40)))

    def sealed(self) -> None:
        """What opening adds to receiving, sealing to sending, and what a flood of forged packets costs."""
        count, rounds = (5000, 8) if self.quick else (5000, 30)
        sealer = Seal(KEY).sealer()

        def fill(peer: Peer) -> None:
            if "sealed" in peer.name:
                self.fill(peer.port, [sealer.seal(bytes(SIZE)) for _ in range(count)])
            else:
                self.fill(peer.port, [bytes(SIZE)] * count)

        peers = [self.peer("ours", "c", count, name="plain"), self.peer("ours", "c-sealed", count, name="sealed")]
        found = self.alternate(peers, rounds, fill, lambda peer: count)
        plain, opened = found["plain"], found["sealed"]
        self.row("sealed: receive plain packets", plain, "ns/packet")
        self.row("sealed: receive and open", opened, "ns/packet", ("plain", plain, None))
        self.figure("sealed: opening alone", opened - plain, "ns/packet", at_most(1500))

        def few(peer: Peer) -> None:
            real = [sealer.seal(b"match-this".ljust(SIZE)) for _ in range(count)]
            if "forged" in peer.name:
                forged = [packet if number % 100 == 99 else packet[:-1] + bytes([packet[-1] ^ 1])
                          for number, packet in enumerate(real)]
                self.fill(peer.port, forged)
            else:
                other = (b"some other").ljust(SIZE)
                self.fill(peer.port, [b"match-this" if number % 100 == 99 else other for number in range(count)])

        peers = [
            self.peer("ours", "c-literal-unfiltered", count, name="refused by a filter"),
            self.peer("ours", "c-forged", count, name="forged"),
        ]
        found = self.alternate(peers, rounds, few, lambda peer: count // 100)
        refused, forged = (found[name] / 100 for name in ("refused by a filter", "forged"))
        self.row("sealed: refuse by a filter", refused, "ns/packet sent")
        self.row("sealed: refuse forged packets", forged, "ns/packet sent", ("by a filter", refused, at_most(1.5)))

        peers = [self.peer("send", "one", count, name="plain"), self.peer("send", "one-sealed", count, name="sealed")]
        found = self.alternate(peers, rounds, lambda peer: None, lambda peer: count)
        plain, sealed = found["plain"], found["sealed"]
        self.row("sealed: Sender.send of one plain packet", plain, "ns/packet")
        self.row("sealed: Sender.send of one sealed packet", sealed, "ns/packet", ("plain", plain, None))
        self.figure("sealed: sealing alone", sealed - plain, "ns/packet", at_most(1500))

    def feeds(self) -> None:
        """What sequenced feeds add; see feeds.py."""
        import feeds

        plain, shared, single = feeds.receiving(self._sending.sendto)
        self.row("feeds: a plain packet for a handler", plain, "ns")
        self.row("feeds: a message, 20 in a packet", shared, "ns", ("plain packet", plain, at_most(0.4)))
        self.row("feeds: a message, one in a packet", single, "ns", ("plain packet", plain, at_most(1.6)))
        sendto, published = feeds.publishing(self._sending.sendto)
        self.row("feeds: publish a message", published, "ns", ("socket.sendto", sendto, at_most(0.1)))
        median, late = feeds.repairing()
        self.figure("feeds: time to repair, p50", median, "ms", at_most(1.5))
        self.figure("feeds: time to repair, p99", late, "ms", at_most(5))

    def sending(self) -> None:
        count, rounds = (20000, 8) if self.quick else (20000, 25)
        members: list[socket.socket] = []
        for situation, limit in (("no local member", 20), ("one plain local member", 4)):
            peers = [self.peer("send", "ours", count, name="ours"), self.peer("send", "loop", count, name="loop")]
            if members:
                for peer in peers:
                    assert peer is not None
                    member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    member.bind((GROUP, peer.port))
                    membership = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
                    member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
                    members.append(member)

            def empty(peer: Peer) -> None:
                for member in members[1:]:
                    while True:
                        try:
                            member.recv(SIZE, socket.MSG_DONTWAIT)
                        except BlockingIOError:
                            break

            found = self.alternate(peers, rounds, empty, lambda peer: count)
            self.row(f"send: sendto loop, {situation}", found["loop"], "ns/packet")
            ratio = ("sendto loop", found["loop"], at_least(limit))
            self.row(f"send: multicast.sendto, {situation}", found["ours"], "ns/packet", ratio)
            members.append(socket.socket())  # a mark: from now on there are members
        for member in members:
            member.close()

    def one_packet(self) -> None:
        """One packet in each call of `sendto`, and packets of a generator, beside what the standard library needs."""
        count, rounds = (5000, 8) if self.quick else (10000, 25)
        names = {
            "loop": "socket.sendto", "sendto-routes": "multicast.sendto of one packet, by the routes",
            "sendto-interface": "multicast.sendto of one packet, interface='lo'",
            "generated": "Multicaster of a generator, no pace", "ours": "multicast.sendto of a list",
        }  # fmt: skip
        peers = [self.peer("send", kind, count, name=name) for kind, name in names.items()]
        found = self.alternate(peers, rounds, lambda peer: None, lambda peer: count)
        plain, listed = found[names["loop"]], found[names["ours"]]
        self.row(f"one: {names['loop']}", plain, "ns/packet")
        for kind in ("sendto-routes", "sendto-interface"):
            self.row(f"one: {names[kind]}", found[names[kind]], "ns/packet", (names["loop"], plain, at_most(2)))
        self.row(f"one: {names['ours']}", listed, "ns/packet")
        generated = found[names["generated"]]
        self.row(f"one: {names['generated']}", generated, "ns/packet", ("sendto of a list", listed, at_most(2.5)))

    def senders(self) -> None:
        peer = self.peer("senders", "senders", 2 if self.quick else 5)
        assert peer is not None
        used, packets, _ = peer.go()
        peer.close()
        cost = used / packets / 1000
        self.figure("many: 1,000 senders, 10 packets a second each, CPU", cost, "us/packet", at_most(10))

    def shards(self) -> None:
        """Two processes on two cores, each with its half of what waits, beside one that has all."""
        count, rounds = (4000, 8) if self.quick else (20000, 20)
        packets = [struct.pack("!I", number) + bytes(SIZE - 4) for number in range(count)]
        one = self.peer("ours", "c", count, name="one process")
        port = self.port()
        both = [self.peer("ours", f"c-shard-{part}", count // 2, name=f"shard {part}", port=port) for part in (0, 1)]
        pair = [peer for peer in both if peer is not None]
        if self.here == self.there or one is None or len(pair) < 2:
            self.notes.append("shards are not measured: they need two cores")
            return
        os.sched_setaffinity(pair[0].process.pid, {self.here})
        alone, together = [], []
        for number in range(rounds + 2):
            self.fill(one.port, packets)
            took, _, dropped = one.go()
            self.fill(pair[0].port, packets)
            started = time.perf_counter_ns()
            for peer in pair:
                peer.begin()
            results = [peer.end() for peer in pair]
            passed = time.perf_counter_ns() - started
            if dropped or any(result[2] for result in results):
                raise SystemExit("packets were dropped; raise net.core.rmem_max, or run as root")
            if number >= 2:
                alone.append(took / count)
                together.append(passed / count)
        for peer in (one, *pair):
            peer.close()
        single = statistics.median(alone)
        self.row("shards: one process", single, "ns/packet")
        self.row("shards: two processes, by the clock", statistics.median(together), "ns/packet",
                 ("one process", single, at_least(1.8)))

    def recordings(self) -> None:
        """What `multicast record` costs beside dumpcap; recordings.py has more."""
        import recordings

        names = [name for name in ("multicast", "dumpcap") if name == "multicast" or shutil.which(name)]
        if os.geteuid() or len(names) < 2:
            self.notes.append("recording is not measured beside dumpcap: it needs root, dumpcap and ip")
            return
        seconds, rounds = (2, 1) if self.quick else (5, 3)
        with tempfile.TemporaryDirectory() as folder:
            found = recordings.recorded(Path(folder), names, 150_000, seconds, 200, rounds)
            (ours, _, _), (theirs, _, _) = found["multicast"], found["dumpcap"]
            self.row("record: dumpcap -w, 150,000 a second of 200 bytes", theirs, "us/packet")
            self.row("record: multicast record, the same", ours, "us/packet", ("dumpcap", theirs, at_most(1.3)))
            found = recordings.recorded(Path(folder), names, 0, seconds, 1316, rounds)
            (_, ours, _), (_, theirs, _) = found["multicast"], found["dumpcap"]
            self.figure("record: dumpcap -w keeps of 1,316 bytes flat out", 100 * theirs, "%")
            self.row("record: multicast record keeps", 100 * ours, "%", ("dumpcap", 100 * theirs, None))

    def round_trips(self) -> None:
        trips, turns = (300, 5) if self.quick else (1000, 12)
        peers = [self.peer("echo", kind, 0) for kind in ("recvfrom", "loop", "busy")]
        times: dict[str, list[float]] = {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            asking.settimeout(5)
            # One after the other: the busy one would take the core from the rest.
            for peer in [peer for peer in peers if peer is not None]:
                os.kill(peer.process.pid, 19)  # SIGSTOP
            for _ in range(turns):
                for peer in [peer for peer in peers if peer is not None]:
                    os.kill(peer.process.pid, 18)  # SIGCONT
                    for number in range(trips):
                        start = time.perf_counter_ns()
                        asking.sendto(b"x" * SIZE, (GROUP, peer.port))
                        asking.recv(100)
                        if number >= 20:
                            times.setdefault(peer.name, []).append(time.perf_counter_ns() - start)
                    os.kill(peer.process.pid, 19)
        for peer in [peer for peer in peers if peer is not None]:
            os.kill(peer.process.pid, 18)
            peer.close()
        middle = {name: statistics.median(values) / 1000 for name, values in times.items()}
        plain = middle["recvfrom"]
        self.row("round trip, p50: blocking recvfrom", plain, "us")
        self.row("round trip, p50: loop()", middle["loop"], "us", ("recvfrom", plain, at_most(1.08)))
        self.row("round trip, p50: loop(busy=True)", middle["busy"], "us", ("recvfrom", plain, at_most(0.65)))
        for name, values in times.items():
            self.figure(f"round trip, p99: {name}", statistics.quantiles(values, n=100)[98] / 1000, "us")

    def thousand(self) -> None:
        count, rounds = (1000, 8) if self.quick else (1000, 25)
        first = struct.unpack("!I", socket.inet_aton("239.200.0.1"))[0]
        peers = []
        opened: dict[str, tuple[float, float]] = {}
        for number, name in ((count, "1,000 listeners"), (1, "one listener")):
            peer = self.peer("many", "many", number, name=name, group="239.200.0.1" if number > 1 else "239.201.0.1")
            assert peer is not None
            opening, memory = map(float, peer.line().split())
            opened[name] = (opening, memory)
            peer.ready()
            peers.append(peer)

        def fill(peer: Peer) -> None:
            if peer.name == "one listener":
                self.fill(peer.port, [bytes(SIZE)] * 16, "239.201.0.1")
                return
            for number in range(count):
                self.fill(peer.port, [bytes(SIZE)] * 16, socket.inet_ntoa(struct.pack("!I", first + number)))

        # One packet of 16 says little about a cache that 16,000 went through, so the one is asked more often.
        one = peers[1]
        for _ in range(rounds * 10):
            fill(one)
            took, packets, _ = one.go()
            one.results.append(took / packets)
        found = self.alternate([peers[0], one], rounds, fill, lambda peer: 16 if peer is one else 16 * count)
        self.row("many: one listener, 16 waiting", found["one listener"], "ns/packet")
        self.row(
            "many: 1,000 listeners, 16 waiting for each",
            found["1,000 listeners"],
            "ns/packet",
            ("one listener", found["one listener"], at_most(1.3)),
        )
        opening, memory = opened["1,000 listeners"]
        self.figure("many: opening 1,000 listeners", opening / 1e9, "s", at_most(2))
        self.figure("many: memory for each", memory / 1024, "KiB", at_most(10))

    def pacing(self) -> None:
        seconds = 2 if self.quick else 10
        for kind, pace, limit in (("interval", 1000, 0.001), ("rate", 100_000, 0.01)):
            peer = self.peer("pace", kind, pace * seconds)
            assert peer is not None
            took, gaps, cpu = peer.go()
            peer.close()
            what = f"pace: {pace:,} a second by {kind}"
            self.figure(f"{what}, off the mean rate by", abs(gaps / took * 1e9 / pace - 1), "", at_most(limit))
            self.figure(f"{what}, CPU", cpu, "of a core", at_most(0.05) if kind == "interval" else None)

    def idle(self) -> None:
        seconds = 1 if self.quick else 5
        peer = self.peer("idle", "idle", 0)
        assert peer is not None
        assert peer.process.stdin is not None
        peer.process.stdin.write("go\n")
        peer.process.stdin.flush()
        time.sleep(seconds)
        self.fill(peer.port, [b"end"])
        nanoseconds, wakes, _ = map(float, peer.line().split())
        peer.close()
        self.figure(f"idle: wake-ups in {seconds} s", wakes, "", at_most(0))
        self.figure(f"idle: CPU in {seconds} s", nanoseconds / 1e6, "ms", at_most(1))

    def importing(self) -> None:
        rounds = 10 if self.quick else 30
        times: dict[str, list[float]] = {"": [], "import multicast": []}
        with tempfile.TemporaryDirectory() as cache:
            env = os.environ | {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
            for number in range(rounds + 1):
                for code, results in times.items():
                    start = time.perf_counter()
                    subprocess.run([sys.executable, "-P", "-c", code or "pass"], env=env, check=True)
                    if number:  # the first compiles
                        results.append(time.perf_counter() - start)
        bare, full = (statistics.median(results) * 1000 for results in times.values())
        self.figure("import multicast, over bare Python", full - bare, "ms", at_most(40))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "receive": Bench.receive,
    "awaited": Bench.awaited,
    "lcm": Bench.receive_lcm,
    "filter": Bench.filters,
    "sealed": Bench.sealed,
    "feeds": Bench.feeds,
    "send": Bench.sending,
    "one": Bench.one_packet,
    "latency": Bench.round_trips,
    "many": Bench.thousand,
    "senders": Bench.senders,
    "shards": Bench.shards,
    "record": Bench.recordings,
    "pace": Bench.pacing,
    "idle": Bench.idle,
    "import": Bench.importing,
}


def show(rows: Sequence[Row]) -> str:
    """Return the table as text."""
    lines = [("what", "figure", "", "ratio", "to", "wanted", "")]
    before = ""
    for row in rows:
        fresh = row.what != before
        before = row.what
        # Where more is better, the ratio says how many times faster; else, how many times the cost.
        value = f"{row.value:.4f}" if row.value < 0.1 else f"{row.value:,.1f}"
        lines.append(
            (
                row.what if fresh else "",
                value if fresh else "",
                row.unit if fresh else "",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                row.to,
                row.limit,
                "" if row.reached is None else "reached" if row.reached else "MISSED",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    right = {1, 3}
    text = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute, and noisier")
    parser.add_argument("--only", action="append", choices=sorted(SECTIONS), help="one part (repeatable)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--charts", type=Path, help="the directory for charts, the table and the figures")
    arguments = parser.parse_args()
    about = machine()
    bench = Bench(arguments.quick)
    started = time.monotonic()
    try:
        for name in arguments.only or SECTIONS:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            SECTIONS[name](bench)
    finally:
        bench.close()
    where = f"{about['processor']}, {about['cores']} cores, Linux {about['kernel']}, Python {about['python']}"
    table = f"{where}\n\n{show(bench.rows)}\n"
    print(table)
    for note in bench.notes:
        print(f"\nNote: {note}")
    print(f"\n{time.monotonic() - started:.0f} s; load before: {about['load before']}")
    if about["load before"] > 0.5:
        print("Something else was running, which makes all figures worse, and the ratios uncertain.")
    result = {"machine": about, "rows": [asdict(row) for row in bench.rows], "notes": bench.notes}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.charts and not arguments.only:  # a part of a run does not replace a whole one
        arguments.charts.mkdir(parents=True, exist_ok=True)
        (arguments.charts / "table.txt").write_text(table)
        (arguments.charts / "figures.json").write_text(json.dumps(result, indent=1) + "\n")
        try:
            import charts
        except ImportError as error:
            print(f"no charts: {error}", file=sys.stderr)
        else:
            charts.draw(result, arguments.charts)


if __name__ == "__main__":
    main()
