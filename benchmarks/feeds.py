"""Measure sequenced feeds beside plain packets: ``python tests/netns.py python benchmarks/feeds.py``.

Receiving: packets are sent beforehand, and a round reads all of them; the median of 15 rounds, taken in turn.
Publishing: 200,000 messages without pace, beside as many calls of ``socket.sendto``; the median of 7 rounds. Repair: a
message is packed and not sent, on ``lo``; the time is from publishing the next one to the handler's call for the lost
one, with a `patience` of 0.
"""

from __future__ import annotations

import socket
import statistics
import time
from typing import Any

import multicast
from multicast import Poller, feeds
from multicast.feeds.moldudp64 import pack

GROUP = "239.255.42.42"
SIZE = 64
ROOM = 64 << 20


class Counter(multicast.MulticastListener):
    count = 0

    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        self.count += 1


class Reader(feeds.Subscriber):
    count = 0

    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        self.count += 1


def receiving(put: Any) -> list[float]:
    """Return what a plain packet, a message of 20 in a packet, and a single message take, in nanoseconds."""
    poller = Poller()
    options: dict[str, Any] = {"interface": "lo", "rcvbuf": ROOM, "poller": poller}
    plain = Counter(None, GROUP, 21001, **options)
    readers = {20: Reader((GROUP, 21002), **options), 1: Reader((GROUP, 21003), **options)}
    following = {20: 1, 1: 1}
    results: dict[int, list[float]] = {0: [], 20: [], 1: []}
    for turn in range(17):
        for each in results:
            packets = 4000 if each < 2 else 2000
            messages = packets * max(1, each)
            for _ in range(packets):
                if each:
                    put(
                        pack(b"S         ", following[each], [bytes(SIZE)] * each),
                        (GROUP, 21002 if each == 20 else 21003),
                    )
                    following[each] += each
                else:
                    put(bytes(SIZE), (GROUP, 21001))
            counter: Any = readers.get(each, plain)
            counter.count = 0
            start = time.perf_counter_ns()
            while counter.count < messages:
                poller.poll()
            if turn >= 2:
                results[each].append((time.perf_counter_ns() - start) / messages)
    poller.close()
    return [statistics.median(results[each]) for each in (0, 20, 1)]


class Stream(feeds.Publisher):
    def __iter__(self) -> Any:
        message = bytes(SIZE)
        for _ in range(200_000):
            yield message


def publishing(put: Any) -> tuple[float, float]:
    """Return what a call of sendto and a published message take, in nanoseconds."""
    loops, published = [], []
    for _ in range(7):
        start = time.perf_counter_ns()
        for _ in range(20_000):
            put(bytes(SIZE), (GROUP, 21009))
        loops.append((time.perf_counter_ns() - start) / 20_000)
        poller = Poller()
        stream = Stream(GROUP, 21009, interface="lo", poller=poller)
        start = time.perf_counter_ns()
        while stream.next <= 200_000:
            poller.poll()
        published.append((time.perf_counter_ns() - start) / 200_000)
        poller.close()
    return statistics.median(loops), statistics.median(published)


class Timed(feeds.Subscriber):
    def __init__(self, *args: Any, **options: Any) -> None:
        self.times: list[float] = []
        self.since = 0.0
        self.wanted = 0
        super().__init__(*args, **options)

    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        if number == self.wanted:
            self.times.append(time.perf_counter() - self.since)


def repairing() -> tuple[float, float]:
    """Return the median and the 99th percentile of the time to repair, in milliseconds."""
    poller = Poller()
    publisher = feeds.Publisher(GROUP, 21010, interface="lo", poller=poller)
    board = Timed((GROUP, 21010), interface="lo", patience=0.0, poller=poller)
    publisher.publish(b"first")
    poller.poll(0.1)
    for _ in range(2000):
        # A message that only the history has: it is packed, and not sent.
        board.wanted = publisher.next
        publisher._feed_packed([b"lost"])
        publisher.publish(b"next")
        board.since = time.perf_counter()
        count = len(board.times)
        while len(board.times) == count:
            poller.poll(0.01)
    poller.close()
    times = sorted(1000 * one for one in board.times)
    return times[1000], times[1980]


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        plain, shared, single = receiving(opened.sendto)
        print(f"a plain packet                    {plain:7.0f} ns")
        print(f"a message of 20 in a packet       {shared:7.0f} ns  {shared / plain:.2f}")
        print(f"a message in a packet of its own  {single:7.0f} ns  {single / plain:.2f}")
        sendto, published = publishing(opened.sendto)
        print(f"socket.sendto                     {sendto:7.0f} ns")
        print(f"a published message               {published:7.0f} ns  {published / sendto:.3f}")
    median, late = repairing()
    print(f"time to repair                    p50 {median:.2f} ms, p99 {late:.2f} ms")


if __name__ == "__main__":
    main()
