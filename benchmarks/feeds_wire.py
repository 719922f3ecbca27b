"""Measure the time to repair on a veth that loses packets: ``python tests/netns.py python benchmarks/feeds_wire.py``.

Two hosts, each a network namespace and a process, are joined by a veth. nft drops 1 % of the packets at the input of
both: data, requests and repairs. The publisher sends a message with its time in each packet, every 0.2 ms; the
subscriber has a `patience` of 0. The time is from sending a message that was lost to the handler's call for it, so the
0.2 ms until the next packet are part of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import multicast
from multicast import Poller, feeds

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import netns

GROUP, PORT = "239.255.42.43", 21020


class Clock(feeds.Publisher):
    """Publishes the time, `count` times."""

    def __init__(self, count: int, *args: Any, **options: Any) -> None:
        self._left = count
        super().__init__(*args, **options)

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._left):
            yield time.monotonic_ns().to_bytes(8, "big")


class Reader(feeds.Subscriber):
    """Keeps how long the messages took that were repaired, in ms."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.times: list[float] = []
        self.lost = 0
        super().__init__(*args, **options)

    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        if self.line is None:
            self.times.append((time.monotonic_ns() - int.from_bytes(message, "big")) / 1e6)

    def handle_gap(self, first: int, count: int) -> None:
        self.lost += count

    def handle_end(self) -> None:
        self.close()


def publish(count: int) -> None:
    # A packet is as large as a message, so each has one.
    Clock(count, GROUP, PORT, 1, interval=0.0002, fill=32)
    multicast.loop()


def measure(count: int, loss: int) -> None:
    with netns.Lab() as lab:
        alice, bob = lab.pair()
        for host in (alice, bob):
            rule = f"udp dport > 0 numgen random mod 100 < {loss} drop"
            table = f"table inet t {{ chain c {{ type filter hook input priority 0\n{rule}\n}}\n}}\n"
            done = host.run(["nft", "-f", "-"], input=table)
            if done.returncode:
                sys.exit(f"not measured: nft: {done.stderr}")
        with bob.inside():
            poller = Poller()
            reader = Reader((GROUP, PORT), interface="vb", patience=0.0, rcvbuf=4 << 20, poller=poller)
        publisher = alice.popen([sys.executable, __file__, "--publish", str(count)])
        deadline = time.monotonic() + 10 + count * 0.0004
        while not reader.closed and time.monotonic() < deadline:
            poller.poll(0.1)
        counted = reader.statistics()
        publisher.wait(60)
        poller.close()
    times = sorted(reader.times)
    if not times or not reader.closed:
        sys.exit(f"not measured: {counted}")
    line = counted.lines[0]
    print(f"{counted.messages} messages, {line.lost} lost on the way, {reader.lost} not delivered")
    print(f"requests for each lost message    {counted.requests / line.lost:.2f}")
    p50, p99 = times[len(times) // 2], times[int(0.99 * len(times))]
    print(f"time to repair                    p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {times[-1]:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many messages to send")
    parser.add_argument("--loss", type=int, default=1, help="how many of 100 packets are dropped, each way")
    parser.add_argument("--publish", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.publish)
    else:
        measure(arguments.count, arguments.loss)


if __name__ == "__main__":
    main()
