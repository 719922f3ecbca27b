"""A thousand TCP clients on one echo server, and a multicast listener at 10,000 packets a second, on one poller.

Run it in a network namespace of its own:

    unshare -rn sh -c 'ip link set lo up; ip route add 224.0.0.0/4 dev lo src 127.0.0.1; exec "$@"' sh \\
        python benchmarks/conversations.py [--clients 1000] [--seconds 5] [--rate 10000] [--size 1000]

The server, with its listener, is one process with one thread. The clients are another, and the sender of the packets a
third. Each client sends a message, waits for its echo, compares it byte by byte, and sends the next, as fast as it
goes. Among them are four of the bad kind: one sends a byte a second, one sends without ever reading, one announces a
message of 4 GiB, and one resets its connection again and again.

What has to hold, and gives exit code 1 otherwise: all bytes were echoed, and each packet was delivered or counted as
dropped by the kernel. The times are those of a round trip seen by a client, while all others do the same.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from typing import Any, ClassVar

from multicast import Multicaster, MulticastListener, Poller
from multicast.streams import Acceptor, Prefixed, Stream, connect

GROUP, PORT = "239.77.0.2", 7701


class Echo(Stream):
    @staticmethod
    def framing() -> Prefixed:
        return Prefixed(width=10, limit=1_000_000)

    def handle_message(self, message: bytes) -> None:
        self.write(message)


class Sequence(MulticastListener):
    """Counts what arrives, and that nothing arrives twice or out of order."""

    expected = 0
    disorder = 0

    def handle_packet(self, packet: bytes, addr: object) -> None:
        (number,) = struct.unpack_from("!Q", packet)
        self.disorder += number < self.expected
        self.expected = number + 1


class Parent:
    """Standard input, which ends when the run is over."""

    def __init__(self, poller: Poller, grace: float) -> None:
        self.poller, self.grace = poller, grace

    def fileno(self) -> int:
        return 0

    def handle_read(self) -> None:
        if not os.read(0, 100):
            self.poller.unregister(self)
            self.poller.call_later(self.grace, self.poller.stop)


def serve(options: argparse.Namespace) -> dict[str, Any]:
    with Poller() as poller:
        acceptor = Acceptor("127.0.0.1", 0, Echo, max_connections=options.clients + 10, poller=poller)
        listener = Sequence(ip=GROUP, port=PORT, rcvbuf=4_000_000, poller=poller)
        poller.register(Parent(poller, 0.5))
        print(acceptor.address.port, flush=True)
        began = time.process_time(), time.monotonic()
        poller.loop()
        counted = listener.statistics()
        return {
            "accepted": acceptor.accepted,
            "delivered": counted.delivered,
            "dropped": counted.dropped,
            "disorder": listener.disorder,
            "cpu": (time.process_time() - began[0]) / (time.monotonic() - began[1]),
        }


class Client(Stream):
    """Sends a message, compares the echo, sends the next."""

    framing = Echo.framing
    times: ClassVar[list[float]] = []
    sent = echoed = wrong = failed = 0
    open = 0

    def __init__(self, *args: Any, number: int, size: int, until: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.data = hashlib.shake_128(str(number).encode()).digest(size)
        self.until = until
        self.round = 0
        self.expected = b""

    def handle_connected(self) -> None:
        self.say()

    def say(self) -> None:
        self.round += 1
        self.expected = b"%d %b" % (self.round, self.data)
        Client.sent += len(self.expected)
        self.began = time.perf_counter()
        self.write(self.expected)

    def handle_message(self, message: bytes) -> None:
        Client.times.append(time.perf_counter() - self.began)
        Client.echoed += len(message)
        Client.wrong += message != self.expected
        if self.poller.time() < self.until:
            self.say()
        else:
            self.finish()

    def handle_close(self, error: Exception | None) -> None:
        Client.failed += error is not None
        Client.open -= 1
        if not Client.open:
            self.poller.stop()


class Bad:
    """The four that the others are not to notice. Plain sockets, which keep to no rules."""

    def __init__(self, poller: Poller, port: int) -> None:
        self.poller, self.address = poller, ("127.0.0.1", port)
        self.slow, self.deaf, liar = (socket.create_connection(self.address) for _ in range(3))
        self.deaf.setblocking(False)
        liar.sendall(b"4294967296")
        self.liar = liar
        self.drops = itertools.chain(b"900000    ", itertools.repeat(0))
        self.drip()
        self.pour()
        self.reset()

    def drip(self) -> None:
        self.slow.send(bytes([next(self.drops)]))
        self.poller.call_later(1, self.drip)

    def pour(self) -> None:
        try:
            self.deaf.send((b"%-10d" % 50_000 + bytes(50_000)) * 4)
        except OSError:
            pass
        self.poller.call_later(0.01, self.pour)

    def reset(self) -> None:
        with socket.create_connection(self.address) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            rude.send(b"5         hel")
        self.poller.call_later(0.05, self.reset)

    def close(self) -> None:
        for one in (self.slow, self.deaf, self.liar):
            one.close()


def talk(options: argparse.Namespace) -> dict[str, Any]:
    with Poller() as poller:
        bad = Bad(poller, options.port)
        until = poller.time() + options.seconds
        Client.open = options.clients
        shared = {"size": options.size, "until": until, "stall": 60, "poller": poller}
        for number in range(options.clients):
            connect("127.0.0.1", options.port, Client, number=number, **shared)
        poller.loop()
        bad.liar.settimeout(5)
        refused = bad.liar.recv(1) == b""
        bad.close()
    times = sorted(Client.times)
    return {
        "sent": Client.sent,
        "echoed": Client.echoed,
        "wrong": Client.wrong,
        "failed": Client.failed,
        "liar_refused": refused,
        "round_trips": len(times),
        "median": statistics.median(times),
        "p99": times[len(times) * 99 // 100],
        "longest": times[-1],
    }


class Numbers(Multicaster):
    def __init__(self, count: int, rate: int) -> None:
        super().__init__(GROUP, PORT, interval=1 / rate)
        self.count = count

    def __iter__(self) -> Any:
        for number in range(self.count):
            yield struct.pack("!Q56x", number)


def emit(options: argparse.Namespace) -> dict[str, Any]:
    sender = Numbers(int(options.rate * options.seconds), options.rate)
    began = time.monotonic()
    sender.poller.loop()
    taken = time.monotonic() - began
    return {"packets": sender.statistics().packets, "rate": sender.statistics().packets / taken}


def start(role: str, options: argparse.Namespace, port: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", role, "--port", str(port)]
    for name in ("clients", "seconds", "rate", "size"):
        command += [f"--{name}", str(getattr(options, name))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(options: argparse.Namespace) -> int:
    limit = options.seconds + 60
    with start("serve", options) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with start("talk", options, port) as clients, start("emit", options) as sender:
            emitted = json.loads(sender.communicate(timeout=limit)[0])
            talked = json.loads(clients.communicate(timeout=limit)[0])
        served = json.loads(server.communicate(timeout=limit)[0])
    lost = emitted["packets"] - served["delivered"] - served["dropped"]
    good = (
        talked["sent"] == talked["echoed"]
        and not talked["wrong"]
        and not talked["failed"]
        and talked["liar_refused"]
        and not lost
        and not served["disorder"]
    )
    if options.json:
        print(json.dumps({"served": served, "talked": talked, "emitted": emitted, "unaccounted": lost, "good": good}))
        return not good
    print(f"{options.clients} clients, {talked['round_trips']} round trips with {options.size} bytes each")
    print("  bytes sent {sent}, echoed {echoed}; wrong echoes {wrong}, failed connections {failed}".format(**talked))
    print(
        f"  round trip: median {1000 * talked['median']:.1f} ms, 99 in 100 below {1000 * talked['p99']:.1f} ms,"
        f" longest {1000 * talked['longest']:.1f} ms"
    )
    print(f"{emitted['packets']} packets at {emitted['rate']:.0f} a second")
    print(f"  delivered {served['delivered']}, counted as dropped {served['dropped']}, unaccounted {lost}")
    print(f"the server used {100 * served['cpu']:.0f} % of a processor and took {served['accepted']} connections")
    print("all bytes echoed, all packets accounted for" if good else "NOT as it has to be")
    return not good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=int, default=10000, help="packets a second")
    parser.add_argument("--size", type=int, default=1000, help="bytes in each message")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("serve", "talk", "emit"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = options.clients + 50
    if soft < needed:
        if hard < needed:
            sys.exit(f"{options.clients} clients need {needed} descriptors; at most {hard} are allowed (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    if options.role is None:
        return run(options)
    print(json.dumps({"serve": serve, "talk": talk, "emit": emit}[options.role](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
