"""How much recording costs, and how true replay is. Run it in a network namespace of its own, as root:

    unshare -n sh -c 'ip link set lo up; ip route add 224.0.0.0/4 dev lo src 127.0.0.1; exec "$@"' sh \\
        python benchmarks/capture.py

Four figures, each on 64-byte packets over lo:

* cost: a burst waits in the socket; the CPU time of reading it with a listener that does nothing, and with a recorder.
  Bursts alternate between the two, and the medians are compared.
* pace: a second process sends 200,000 packets a second for 10 seconds; what was recorded, dropped and sent has to add
  up.
* timing: a capture of 10,000 packets a second is replayed; how far from its time each packet was given to the kernel,
  by the replayer's own count, and how far its kernel receive time is from where it ought to be, by a recording of it.
* speed: the same packets by `sendto`, and by a replayer with speed=math.inf, while one listener has joined and does not
  read; and with no listener, where the kernel drops each burst as a whole and sending costs next to nothing. By the
  clock, and by the time of the processor, which others on the machine disturb less. The reading of the file before it,
  which checks it, is given apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from multicast import MulticastListener, Poller, capture, sendto
from multicast.batch import ENGINE, Address

GROUP, PORT = "239.77.0.1", 7700
PACKET = bytes(range(64))


class Nothing(MulticastListener):
    def handle_packet(self, packet: bytes, addr: Address) -> None:
        pass


def drain(listener: MulticastListener, poller: Poller, wanted: int) -> float:
    """Return the CPU seconds it takes to read what waits."""
    begun = time.process_time()
    while listener.statistics().packets < wanted:
        poller.poll(None)
    return time.process_time() - begun


def cost(folder: Path, rounds: int = 30, burst: int = 10_000) -> dict[str, float]:
    found: dict[str, list[float]] = {}

    def recorder(poller: Poller) -> MulticastListener:
        return capture.Recorder(folder / "cost.pcapng", ip=GROUP, port=PORT, interface="lo", poller=poller)

    def plain(details: bool) -> Callable[[Poller], MulticastListener]:
        return lambda poller: Nothing(
            ip=GROUP, port=PORT, interface="lo", rcvbuf=1 << 24, details=details, poller=poller
        )

    makers = {"receive": plain(False), "receive_details": plain(True), "record": recorder}
    for _ in range(rounds):
        for name, make in makers.items():
            with Poller() as poller, make(poller) as listener:
                poller.poll(0)
                sendto([PACKET] * burst, GROUP, PORT, ttl=0)
                found.setdefault(name, []).append(drain(listener, poller, burst) / burst)
                assert listener.statistics().dropped == 0
    result = {f"{name}_us": round(1e6 * statistics.median(values), 3) for name, values in found.items()}
    result["ratio"] = round(result["record_us"] / result["receive_us"], 2)
    return result


SENDER = """
import sys, time
from multicast import batch, sockets
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
opened, sockaddr = sockets.open_sender(sockets.Group.of(sys.argv[3], int(sys.argv[4])), 0)
writer = batch.Writer(opened, sockaddr)
packets = [bytes(range(64))] * 64
step = len(packets) / rate
begun = time.perf_counter()
sent = 0
while sent < rate * seconds:
    wait = begun + sent / rate - time.perf_counter()
    if wait > 0:
        time.sleep(wait)
    try:
        sent += batch.send(writer, packets)
    except BlockingIOError:
        pass
print(sent, time.perf_counter() - begun)
"""


def pace(folder: Path, rate: int = 200_000, seconds: float = 10) -> dict[str, float]:
    path = folder / "pace.pcapng"
    with Poller() as poller, capture.Recorder(path, ip=GROUP, port=PORT, interface="lo", poller=poller) as recorder:
        command = [sys.executable, "-c", SENDER, str(rate), str(seconds), GROUP, str(PORT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
            begun = time.process_time()
            while sender.poll() is None:
                poller.poll(0.1)
            recorder.close()
            used = time.process_time() - begun
            assert sender.stdout is not None
            sent, took = sender.stdout.read().split()
        counted = recorder.statistics()
    with capture.read(path) as reader:
        in_file = sum(1 for _ in reader)
        dropped = reader.dropped
    return {
        "sent": int(sent),
        "sent_per_second": round(int(sent) / float(took)),
        "recorded": counted.delivered,
        "dropped": counted.dropped,
        "missing": int(sent) - counted.delivered - counted.dropped,
        "in_file": in_file,
        "dropped_by_file": dropped,
        "cpu_share": round(used / float(took), 2),
    }


def made(path: Path, count: int, spacing: int) -> Path:
    with capture.write(path) as file:
        for number in range(count):
            file.write(capture.Packet(PACKET, ("10.0.0.1", 4000), GROUP, PORT, 10**18 + number * spacing, "lo"))
    return path


def timing(folder: Path, rate: int = 10_000, seconds: float = 10) -> dict[str, float]:
    path = made(folder / "timing.pcapng", int(rate * seconds), 10**9 // rate)
    again = folder / "again.pcapng"
    code = (
        "import sys\nfrom multicast import capture, Poller\n"
        "with Poller() as poller:\n"
        "    r = capture.Recorder(sys.argv[1], ip=sys.argv[2], port=int(sys.argv[3]), interface='lo', poller=poller,"
        " limit=int(sys.argv[4]))\n"
        "    poller.call_later(0.3, lambda: print('ready', flush=True))\n"
        "    poller.run_until(lambda: r.closed)\n"
    )
    command = [sys.executable, "-c", code, str(again), "239.77.0.2", str(PORT), str(int(rate * seconds))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder, Poller() as poller:
        assert recorder.stdout is not None
        recorder.stdout.readline()
        begun = time.process_time(), time.perf_counter()
        replayer = capture.Replayer(path, to="239.77.0.2", ttl=0, poller=poller)
        poller.run_until(lambda: replayer.closed)
        used = (time.process_time() - begun[0]) / (time.perf_counter() - begun[1])
        recorder.wait(20)
    with capture.read(again) as reader:
        times = [packet.timestamp for packet in reader]
    # Where the receive times ought to be is known but for a constant: take the one that the middle of them says.
    offsets = [time - number * (10**9 // rate) for number, time in enumerate(times)]
    middle = statistics.median(offsets)
    errors = sorted(abs(offset - middle) for offset in offsets)
    own = replayer.timing
    return {
        "packets": len(times),
        "given_to_kernel_p50_us": round(own.percentile(50) * 1e6, 1),
        "given_to_kernel_p99_us": round(own.percentile(99) * 1e6, 1),
        "given_to_kernel_max_us": round(own.max * 1e6, 1),
        "received_p50_us": round(errors[len(errors) // 2] / 1e3, 1),
        "received_p99_us": round(errors[len(errors) * 99 // 100] / 1e3, 1),
        "cpu_share": round(used, 2),
    }


def speed(folder: Path, count: int = 200_000, rounds: int = 9) -> dict[str, float]:
    path = made(folder / "speed.pcapng", count, 1000)
    with capture.read(path) as reader:
        packets = [packet.payload for packet in reader]
    result: dict[str, float] = {}
    for heard in (True, False):
        found: dict[str, list[float]] = {}
        with Poller() as idle:
            if heard:
                Nothing(ip=GROUP, port=PORT, interface="lo", poller=idle)
            for _ in range(rounds):
                begun = time.perf_counter(), time.process_time()
                sendto(packets, GROUP, PORT, ttl=0)
                done = time.perf_counter(), time.process_time()
                found.setdefault("sendto", []).append(count / (done[0] - begun[0]))
                found.setdefault("sendto_cpu", []).append(count / (done[1] - begun[1]))
                with Poller() as poller:
                    checking = time.perf_counter()
                    replayer = capture.Replayer(path, to=GROUP, speed=math.inf, ttl=0, poller=poller)
                    begun = time.perf_counter(), time.process_time()
                    poller.run_until(lambda replayer=replayer: replayer.closed)  # type: ignore[misc]
                    done = time.perf_counter(), time.process_time()
                    assert replayer.statistics().packets == count
                found.setdefault("replay", []).append(count / (done[0] - begun[0]))
                found.setdefault("replay_cpu", []).append(count / (done[1] - begun[1]))
                found.setdefault("check", []).append(count / (begun[0] - checking))
        end = "" if heard else "_unheard"
        middle = {name: statistics.median(values) for name, values in found.items()}
        for name in ("sendto", "replay", *(["check"] if heard else [])):
            result[f"{name}_per_second{end}"] = round(middle[name])
        result[f"share{end}"] = round(middle["replay"] / middle["sendto"], 2)
        result[f"share_cpu{end}"] = round(middle["replay_cpu"] / middle["sendto_cpu"], 2)
    return result


def main() -> None:
    figures = {"cost": cost, "pace": pace, "timing": timing, "speed": speed}
    parser = argparse.ArgumentParser(description="Measure recording and replay.")
    parser.add_argument("figure", nargs="*", choices=[*figures, []], help="which figures; all of them by default")
    chosen = parser.parse_args().figure or list(figures)
    print(json.dumps({"engine": ENGINE, "python": sys.version.split()[0], "cpus": os.cpu_count()}))
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            print(json.dumps({"figure": name, **figures[name](Path(folder))}), flush=True)


if __name__ == "__main__":
    main()
