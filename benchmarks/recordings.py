"""Recording and replay beside the programs that others use for them. As root:

    python tests/netns.py python benchmarks/recordings.py

Two hosts, each a network namespace, are joined by a veth; nothing leaves the machine. The packets are messages of LCM,
so that lcm-logger, which records nothing else, sees the same as all. Programs that are not installed are left out.

* record: a process sends so many packets a second for some seconds; recorders take turns. What is in the file, and the
  time of the processor that the recorder used meanwhile; its start and its end are not counted. "flat out" is as fast
  as one process sends, sender and recorder on a core each.
* kill: the recorder is killed by SIGKILL in the middle. Whether capinfos reads the file without a complaint, and how
  long before the end the last packet in it was sent.
* replay: a recording with the times of a Poisson process is replayed; tcpdump on the other host has the times of
  arrival. How far each packet is from its time, when the median of all is 0; the processor time of the whole run.

Rounds alternate, and the figures are medians of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from multicast import batch, capture, sockets

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import netns

GROUP, PORT = "239.255.76.67", 7667
RECORDERS = ("multicast", "tcpdump", "dumpcap", "lcm-logger")
REPLAYERS = ("multicast", "tcpreplay", "lcm-logplayer")


def message(number: int, size: int) -> bytes:
    """Return an LCM message of `size` bytes in all, with its number at the end."""
    head = struct.pack(">II", 0x4C433032, number & 0xFFFFFFFF) + b"BENCH\0"
    return head + bytes(size - 22) + struct.pack(">Q", number)


def number_of(packet: bytes) -> int:
    return int.from_bytes(packet[-8:], "big")


# -- the programs ------------------------------------------------------------------------------------------------------


def program(name: str) -> str | None:
    """Return the path of a program. Those of LCM stand in its package, behind scripts that only start them."""
    lcm = importlib.util.find_spec("lcm") if name.startswith("lcm-") else None
    if lcm is not None and lcm.origin is not None:
        return str(Path(lcm.origin).parent.parent / "bin" / name)
    return shutil.which(name)


def record_command(name: str, path: Path) -> list[str]:
    """Return the command that records the group to `path` by vb."""
    wanted = f"udp and host {GROUP}"
    url = f"udpm://{GROUP}:{PORT}?recv_buf_size=16777216"
    return {
        "multicast": [sys.executable, "-m", "multicast", "record", f"{GROUP}:{PORT}", "-o", str(path), "-i", "vb"],
        "tcpdump": ["tcpdump", "-i", "vb", "-w", str(path), "-B", "16384", "-Z", "root", wanted],
        "dumpcap": ["dumpcap", "-q", "-i", "vb", "-w", str(path), "-B", "16", "-f", wanted],
        "lcm-logger": [program("lcm-logger") or "", "-l", url, "-f", str(path)],
    }[name]


def replay_command(name: str, path: Path, log: Path) -> list[str]:
    """Return the command that replays a capture, or a log of LCM, by va."""
    return {
        "multicast": [sys.executable, "-m", "multicast", "replay", str(path), "--as-recorded", "-i", "va"],
        "tcpreplay": ["tcpreplay", "-q", "-i", "va", str(path)],
        "lcm-logplayer": [program("lcm-logplayer") or "", "-l", f"udpm://{GROUP}:{PORT}?ttl=1", str(log)],
    }[name]


def installed(names: Sequence[str]) -> list[str]:
    """Return those of the programs that are there."""
    found = [name for name in names if name == "multicast" or program(name)]
    for name in sorted(set(names) - set(found)):
        print(f"{name} is not installed, and left out", file=sys.stderr)
    return found


def log_messages(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield time in microseconds and message of a log of LCM, as far as it is whole."""
    data = path.read_bytes()
    position = 0
    while position + 28 <= len(data):
        sync, _, stamp, channel, size = struct.unpack_from(">IQQII", data, position)
        end = position + 28 + channel + size
        if sync != 0xEDA1DA01 or end > len(data):
            return
        yield stamp, data[end - size : end]
        position = end


def numbers_in(name: str, path: Path) -> list[int]:
    """Return the numbers of the messages in a recording."""
    if name == "lcm-logger":
        return [number_of(message) for _, message in log_messages(path)]
    with capture.read(path, partial=True) as reader:
        return [number_of(packet.payload) for packet in reader]


def cpu_of(pid: int) -> float:
    """Return the processor time of all threads of a process, in seconds (/proc/PID/schedstat in proc(5))."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total / 1e9


def pinned(command: Sequence[str], core: int) -> list[str]:
    return ["taskset", "-c", str(core % (os.cpu_count() or 1)), *command]


def program_of(process: subprocess.Popen[Any], wanted: Callable[[], bool]) -> None:
    """Wait until a program is at work."""
    deadline = time.monotonic() + 15
    while not wanted():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"not measured: {process.args!r} did not begin: {process.stderr.read() if process.stderr else ''}")
        time.sleep(0.05)


# -- sending -----------------------------------------------------------------------------------------------------------


def send(rate: float, seconds: float, size: int) -> None:
    """Send numbered messages, `rate` of them a second or 0 for as many as can be; print the begin and how many."""
    opened, sockaddr = sockets.open_sender(sockets.Group.of(GROUP, PORT), 1, interface="va")
    writer = batch.Writer(opened, sockaddr)
    step = 64 if not rate else max(1, min(64, int(rate / 1000)))
    number, begun = 0, time.monotonic()
    print(begun, flush=True)
    while (now := time.monotonic() - begun) < seconds:
        if rate and number / rate > now:
            time.sleep(number / rate - now)
            continue
        packets = [message(number + place, size) for place in range(step)]
        sent = 0
        while sent < step:
            try:
                sent += batch.send(writer, packets[sent:])
            except BlockingIOError:
                time.sleep(0.0001)
        number += step
    print(number)


def sender(alice: netns.Host, rate: float, seconds: float, size: int) -> subprocess.Popen[Any]:
    words = [sys.executable, __file__, "--send", str(rate), str(seconds), str(size)]
    return alice.popen(pinned(words, 0))


# -- the figures -------------------------------------------------------------------------------------------------------


def recorder(bob: netns.Host, name: str, path: Path) -> subprocess.Popen[Any]:
    """Start a recorder, and return when it takes packets."""
    process = bob.popen(pinned(record_command(name, path), 1), stdout=subprocess.DEVNULL)
    proc = Path(f"/proc/{process.pid}")

    def at_work() -> bool:
        if proc.joinpath("comm").read_text().strip() == "taskset":
            return False
        with bob.inside():
            if name in ("multicast", "lcm-logger"):
                return "4CFFEF" in Path("/proc/thread-self/net/igmp").read_text() or (
                    f"{GROUP}" in subprocess.run(["ip", "maddress"], capture_output=True, text=True).stdout
                )
            return len(Path("/proc/thread-self/net/packet").read_text().splitlines()) > 1

    program_of(process, at_work)
    time.sleep(0.3)
    return process


def recorded(
    folder: Path, names: Sequence[str], rate: float, seconds: float, size: int, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Return for each recorder the microseconds of a packet, the share that is in the file, and how many were sent."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(names), len(names)):
            path = folder / f"{name}.recording"
            path.unlink(missing_ok=True)
            with netns.Lab() as lab:
                alice, bob = lab.pair()
                process = recorder(bob, name, path)
                before = cpu_of(process.pid)
                with sender(alice, rate, seconds, size) as sending:
                    sent = int(sending.communicate(timeout=seconds + 30)[0].split()[1])
                time.sleep(1.2)  # until what waits is written
                used = cpu_of(process.pid) - before
                process.send_signal(signal.SIGINT)
                process.wait(20)
            kept = len(set(numbers_in(name, path)))
            found.setdefault(name, []).append((1e6 * used / max(kept, 1), kept / sent, sent))
    return {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))  # type: ignore[misc]
        for name, rows in found.items()
    }


def record(folder: Path, names: Sequence[str], rate: float, seconds: float, size: int, rounds: int) -> None:
    what = f"{rate:,.0f}/s" if rate else "flat out"
    print(f"\nrecord, {what} of {size} bytes for {seconds:g} s, {rounds} rounds")
    for name, (cpu, share, sent) in recorded(folder, names, rate, seconds, size, rounds).items():
        print(
            f"  {name:14} {cpu:6.2f} us a packet   {100 * share:6.2f} % in the file"
            f"   {sent / seconds:9,.0f} sent a second"
        )


def kill(folder: Path, names: Sequence[str], rounds: int) -> None:
    found: dict[str, list[tuple[str, float]]] = {}
    rate = 2000
    for _ in range(rounds):
        for name in names:
            path = folder / f"{name}.killed"
            path.unlink(missing_ok=True)
            with netns.Lab() as lab:
                alice, bob = lab.pair()
                process = recorder(bob, name, path)
                with sender(alice, rate, 6, 200) as sending:
                    begun = float(sending.stdout.readline())  # type: ignore[union-attr]
                    time.sleep(3.4)
                    process.kill()
                    lived = time.monotonic() - begun
                    process.wait(10)
                    sending.communicate(timeout=30)
            said = "opens"
            if name != "lcm-logger":
                done = subprocess.run(["capinfos", "-c", path], capture_output=True, text=True)
                said = "opens" if done.returncode == 0 and not done.stderr else "cut short"
            numbers = numbers_in(name, path) if path.exists() and path.stat().st_size else []
            if not numbers:
                said = "empty"
            found.setdefault(name, []).append((said, lived - max(numbers, default=0) / rate))
    print(f"\nkilled after 3.4 s of {rate:,} packets a second, {rounds} rounds")
    for name, rows in found.items():
        said = ", ".join(sorted({one for one, _ in rows}))
        missing = [last for _, last in rows]
        print(f"  {name:14} {said:10}   the last {min(missing):.2f} to {max(missing):.2f} s are missing")


def replay(folder: Path, names: Sequence[str], rate: float, seconds: float, rounds: int) -> None:
    path, log, heard = folder / "made.pcapng", folder / "made.lcm", folder / "heard.pcap"
    when, times = 1_700_000_000_000_000_000, []
    draw = random.Random(11)
    with capture.write(path) as file, log.open("wb") as lcm:
        for number in range(int(rate * seconds)):
            when += round(1e9 * draw.expovariate(rate))
            times.append(when)
            packet = message(number, 200)
            file.write(capture.Packet(packet, ("10.99.0.1", 45000), GROUP, PORT, when, "va", 1))
            data = packet[14:]
            lcm.write(struct.pack(">IQQII", 0xEDA1DA01, number, when // 1000, 5, len(data)) + b"BENCH" + data)
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(names), len(names)):
            with netns.Lab() as lab:
                alice, bob = lab.pair()
                words = ["tcpdump", "-i", "vb", "-w", str(heard), "-B", "65536", "--time-stamp-precision=nano"]
                witness = bob.popen(pinned([*words, "-Z", "root", f"udp and dst host {GROUP}"], 1))
                time.sleep(1.0)
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                done = alice.run(pinned(replay_command(name, path, log), 0), timeout=seconds + 60)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                if done.returncode:
                    print(f"{name}: {done.stderr.strip()[-200:]}", file=sys.stderr)
                time.sleep(1.5)  # the kernel hands over blocks that are full, or a second old
                witness.send_signal(signal.SIGINT)
                witness.wait(20)
            with capture.read(heard) as reader:
                came = {number_of(packet.payload): packet.timestamp for packet in reader}
            offsets = [stamp - times[number] for number, stamp in came.items()]
            middle = statistics.median(offsets)
            errors = sorted(abs(offset - middle) / 1e3 for offset in offsets)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found.setdefault(name, []).append(
                (errors[len(errors) // 2], errors[int(0.99 * len(errors))], len(came) / len(times), used)
            )
    print(f"\nreplay, {rate:,.0f} packets a second of 200 bytes for {seconds:g} s, {rounds} rounds")
    for name, rows in found.items():
        p50, p99, share, used = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"  {name:14} error p50 {p50:7.1f} us, p99 {p99:8.1f} us   {100 * share:6.2f} % arrived"
            f"   {used:5.2f} s of the processor"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="*", choices=["record", "kill", "replay", []], help="which; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--send", nargs=3, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        rate, seconds, size = arguments.send
        return send(rate, seconds, int(size))
    chosen = arguments.figure or ["record", "kill", "replay"]
    rounds, seconds = arguments.rounds, arguments.seconds
    versions = [sys.version.split()[0], *(
        (subprocess.run([name, "--version"], capture_output=True, text=True).stdout.splitlines() or [name])[0]
        for name in ("tcpdump", "dumpcap", "tcpreplay") if shutil.which(name)
    )]  # fmt: skip
    print(json.dumps({"engine": batch.ENGINE, "cpus": os.cpu_count(), "versions": versions}))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorders = installed(RECORDERS)
        if "record" in chosen:
            record(folder, recorders, 20_000, seconds, 200, rounds)
            record(folder, recorders, 150_000, seconds, 200, rounds)
            record(folder, recorders, 0, seconds, 1316, rounds)
        if "kill" in chosen:
            kill(folder, recorders, rounds)
        if "replay" in chosen:
            replay(folder, installed(REPLAYERS), 1_000, 2 * seconds, rounds)
            replay(folder, installed(REPLAYERS), 10_000, 2 * seconds, rounds)
    return None


if __name__ == "__main__":
    main()
