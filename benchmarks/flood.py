"""Under attack: an unthrottled flood, and packets from a million invented sources.

Run it in a network namespace of its own; it refuses to start in one that has more than `lo`:

    unshare -rn sh -c 'ip link set lo up; ip route add 224.0.0.0/4 dev lo src 127.0.0.1; exec "$@"' sh \\
        python benchmarks/flood.py [--seconds 60] [--sources 1000000] [--json]

First one process sends to a group as fast as the kernel takes it. Another has a listener there, whose handler does
something with each packet, and on the same poller a pipe, into which a third process writes the time every 5 ms, and a
timer every 10 ms. How late both come is measured; so is what a `stop` from another thread takes, and how the memory
grows. Then frames with a different source each are written to `lo`, for a listener and a responder that answers
everybody. What must hold:

* the memory grows by at most 16 MiB,
* other descriptors and timers are served within 50 ms (99 of 100),
* `stop` ends the loop within 10 ms (in the median, as other programs share the processor),
* at most 10 lines are logged,
* no table grows with the number of sources.

Exit code 1 if one of these does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from typing import Any

import multicast
from multicast import batch
from multicast.discovery import Responder

GROUP, PORT = "239.77.0.4", 7704
MEMORY, LATE, STOP, LINES = 16 << 20, 0.05, 0.01, 10
_STAMP = struct.Struct("@d")


class Lines(logging.Handler):
    """Counts what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


class Flooded(multicast.MulticastListener):
    """Looks at each packet, as a program would."""

    handled = octets = 0

    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        self.handled += 1
        self.octets += len(packet) + len(addr.host)


class Pipe:
    """A descriptor beside the flood: keeps how late what was written there is read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.late: list[float] = []

    def fileno(self) -> int:
        return self._fd

    def handle_read(self) -> None:
        data = os.read(self._fd, 4096)
        now = time.monotonic()  # one clock for all processes (clock_gettime(2))
        self.late += [now - stamp for (stamp,) in _STAMP.iter_unpack(data)]


def flood(seconds: float) -> None:
    """Send without a pause; print how many were sent."""
    packets = [b"%05d" % number + bytes(95) for number in range(512)]
    end = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < end:
        sent += multicast.sendto(packets, GROUP, PORT)
    print(sent)


def tick(seconds: float) -> None:
    """Write the time to standard output every 5 ms."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            os.write(1, _STAMP.pack(time.monotonic()))
            time.sleep(0.005)
    except BrokenPipeError:  # nobody wants to know any more
        pass


def forge(count: int) -> None:
    """Write frames to `lo`, each from another host: 11.0.0.0 and on."""
    payload = b"who is there?"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("lo", 0))
        udp = struct.pack("!HHHH", 40000, PORT, 8 + len(payload), 0) + payload
        group = socket.inet_aton(GROUP)
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 1, socket.IPPROTO_UDP, 0)
        partial = sum(struct.unpack("!10H", fixed + group + bytes(4)))
        ethernet = b"\x01\x00\x5e" + bytes([group[1] & 127]) + group[2:] + bytes(6) + b"\x08\x00"
        for number in range(count):
            source = 0x0B000000 + number
            total = partial + (source >> 16) + (source & 0xFFFF)
            total = (total & 0xFFFF) + (total >> 16)
            total = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
            head = fixed[:10] + total.to_bytes(2, "big") + source.to_bytes(4, "big") + group
            wire.send(ethernet + head + udp)
            if number % 500 == 499:
                time.sleep(0.002)  # a listener that only drops would show nothing


def _memory() -> int:
    """Return the most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE)


def under_flood(seconds: float, lines: Lines) -> dict[str, Any]:
    """Be flooded; return what was measured."""
    poller = multicast.Poller()
    listener = Flooded(ip=GROUP, port=PORT, poller=poller)
    late: list[float] = []

    def ring(due: float) -> None:
        now = poller.time()
        late.append(now - due)
        poller.call_at(now + 0.01, ring, now + 0.01)

    stops: list[float] = []
    begin = threading.Event()

    def stop_now_and_then() -> None:
        begin.wait()
        while not over:
            time.sleep(min(1.0, seconds / 20))
            asked.append(time.monotonic())
            poller.stop()

    asked: list[float] = []
    over: list[bool] = []
    with _start("--flood", seconds + 1) as sender, _start("--tick", seconds + 1) as ticking:
        assert ticking.stdout is not None
        assert sender.stdout is not None
        pipe = Pipe(ticking.stdout.fileno())
        poller.register(pipe)
        poller.call_later(0, ring, poller.time())
        stopper = threading.Thread(target=stop_now_and_then)
        stopper.start()
        settled = time.monotonic() + min(1.0, seconds / 4)  # until then everything is used for the first time
        poller.run_until(lambda: time.monotonic() > settled)
        memory = _memory()
        late.clear()
        pipe.late.clear()
        end = time.monotonic() + seconds - min(1.0, seconds / 4)
        begin.set()
        while time.monotonic() < end:
            poller.loop()
            if asked:
                stops.append(time.monotonic() - asked.pop())
                asked.clear()
        over.append(True)
        stopper.join()
        counted = listener.statistics()
        grown = _memory() - memory
        poller.unregister(pipe)
        listener.close()
        sent = int(sender.stdout.read())
    poller.close()
    return {
        "engine": batch.ENGINE,
        "seconds": seconds,
        "sent": sent,
        "delivered": counted.delivered,
        "dropped": counted.dropped,
        "memory_grown": grown,
        "descriptor_p99": _percentile(pipe.late, 0.99),
        "descriptor_max": max(pipe.late, default=float("nan")),
        "timer_p99": _percentile(late, 0.99),
        "timer_max": max(late, default=float("nan")),
        "stop_median": statistics.median(stops) if stops else float("nan"),
        "stop_max": max(stops, default=float("nan")),
        "log_lines": lines.count,
    }


class Answering(Responder):
    """Answers everybody, as far as it may."""

    def handle_request(self, packet: bytes, addr: multicast.Address) -> bytes:
        return b"here"


def under_many_sources(count: int, lines: Lines) -> dict[str, Any]:
    """Hear from so many hosts; return how large the tables got."""
    poller = multicast.Poller()
    listener = Flooded(ip=GROUP, port=PORT, rcvbuf=4 << 20, poller=poller)
    responder = Answering(ip=GROUP, port=PORT, rcvbuf=4 << 20, poller=poller)
    multicast.sendto(b"warm", GROUP, PORT)
    poller.poll()
    poller.poll()
    before = lines.count
    memory = 0
    largest = 0
    with _start("--forge", count) as forging:
        while forging.poll() is None:
            poller.poll(0.05)
            largest = max(largest, len(responder._allowance), len(responder._copies))
            if not memory and listener.handled > count // 20:
                memory = _memory()  # the tables of fixed size are full by now
        last = -1
        while listener.handled != last:
            last = listener.handled
            poller.poll(0.05)
        assert forging.returncode == 0
    counted, replied = listener.statistics(), responder.reply_statistics()
    result = {
        "sources": count,
        "delivered": counted.delivered,
        "dropped": counted.dropped,
        "memory_grown": _memory() - memory,
        "largest_table": max(largest, len(batch._known)),
        "replies": replied.sent + replied.failed,
        "limited": replied.limited,
        "log_lines": lines.count - before,
    }
    responder.close()
    listener.close()
    poller.close()
    return result


def main() -> int:
    """Measure, and say what does not hold."""
    parser = argparse.ArgumentParser(description="A flood, and a million sources.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sources", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--flood", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--tick", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--forge", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise SystemExit("this is no namespace of its own: it has more than lo (see the head of this file)")
    if arguments.flood is not None:
        flood(arguments.flood)
    elif arguments.tick is not None:
        tick(arguments.tick)
    elif arguments.forge is not None:
        forge(arguments.forge)
    else:
        lines = Lines()
        logging.getLogger().addHandler(lines)
        logging.getLogger().setLevel(logging.DEBUG)
        flooded = under_flood(arguments.seconds, lines)
        many = under_many_sources(arguments.sources, lines)
        wrong = [
            what
            for what, holds in {
                "memory under the flood": flooded["memory_grown"] <= MEMORY,
                "descriptors beside the flood": flooded["descriptor_p99"] <= LATE,
                "timers beside the flood": flooded["timer_p99"] <= LATE,
                "stop": flooded["stop_median"] <= STOP,
                "log lines": flooded["log_lines"] + many["log_lines"] <= LINES,
                "memory with many sources": many["memory_grown"] <= MEMORY,
                "tables": many["largest_table"] <= 4096,
            }.items()
            if not holds
        ]
        result = {"flood": flooded, "many": many, "wrong": wrong}
        if arguments.json:
            print(json.dumps(result))
        else:
            for part in (flooded, many):
                for name, value in part.items():
                    print(f"{name.replace('_', ' '):>16}  {value if not isinstance(value, float) else round(value, 6)}")
                print()
            print("wrong: " + ", ".join(wrong) if wrong else "all promises hold")
        return 1 if wrong else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
