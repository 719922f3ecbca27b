"""Open and close 100,000 times, in every way that works and every way that fails, and see what is left.

Run it in a network namespace of its own; it refuses to start in one that has more than `lo`:

    unshare -rn sh -c 'ip link set lo up; ip route add 224.0.0.0/4 dev lo src 127.0.0.1; exec "$@"' sh \\
        python benchmarks/lifecycle.py [--cycles 100000] [--json]

Each cycle is one of: a listener that is closed, one that is forgotten, one whose handler closes it; a sender to its
end; `sendto`; a request that is answered and closed; a stream that is connected and closed; a poller of its own with a
timer; and, as many again, constructors that fail at the filter, at the interface, at the limit of sources, at a port
that is taken, and in a subclass. After the first thousand, and when the table of addresses, which has a fixed size, is
full, no descriptor, no membership, no registration and no thread may be more than there was, and at most 1 MiB of
memory. Exit code 1 if one is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multicast
import multicast.senders
from multicast import discovery, streams
from multicast.errors import MulticastError

GROUP, PORT = "239.77.0.5", 7705
MEMORY = 1 << 20
_poller = multicast.Poller()
_taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # held alone: nobody else can bind its port


class Listener(multicast.MulticastListener):
    def handle_packet(self, packet: bytes, addr: multicast.Address) -> bool:
        return True


class Silent(multicast.MulticastListener):
    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        pass


class Sender(multicast.Multicaster):
    def __iter__(self) -> Iterator[str]:
        yield "x"


class Unfinished(Listener):
    def __init__(self) -> None:
        super().__init__(ip=GROUP, port=PORT, interface="lo", poller=_poller)
        raise LookupError


class Answering(discovery.Responder):
    def handle_request(self, packet: bytes, addr: multicast.Address) -> bytes:
        return b"here"


def closed() -> None:
    Listener(ip=GROUP, port=PORT, interface="lo", details=True, poller=_poller).close()


def forgotten() -> None:
    poller = multicast.Poller()
    Listener(ip=GROUP, port=PORT, interface="lo", poller=poller)


def closed_by_its_handler() -> None:
    listener = Listener(ip=GROUP, port=PORT, interface="lo", poller=_poller)
    multicast.sendto("x", GROUP, PORT)
    while not listener.closed:
        _poller.poll(1)


def sent() -> None:
    multicast.sendto(["x"] * 3, GROUP, PORT)


def sent_to_the_end() -> None:
    sender = Sender(GROUP, PORT, poller=_poller)
    while not sender.closed:
        _poller.poll(1)


def answered() -> None:
    with Answering(ip=GROUP, port=PORT, interface="lo", per_source=10**6, total=10**6, poller=_poller):
        discovery.request("?", GROUP, PORT, limit=1, interface="lo", poller=_poller).first()


def connected() -> None:
    acceptor = streams.Acceptor("127.0.0.1", 0, streams.Stream, poller=_poller)
    stream = streams.connect("127.0.0.1", acceptor.address.port, poller=_poller)
    while not acceptor.accepted:
        _poller.poll(1)
    for one in (stream, *acceptor.streams, acceptor):
        one.close()


def timed() -> None:
    with multicast.Poller() as poller:
        poller.call_later(0, poller.stop)
        poller.call_later(1000, poller.stop)
        poller.run_until(lambda: False)


def fails_at_the_filter() -> None:
    Listener("(", GROUP, PORT, poller=_poller)


def fails_at_the_interface() -> None:
    Listener(ip=GROUP, port=PORT, interface="eth77", poller=_poller)


def fails_at_the_limit() -> None:
    sources = [f"127.0.0.{last}" for last in range(2, 14)]
    Listener(ip="232.77.0.5", port=PORT, interface="lo", sources=sources, poller=_poller)


def fails_at_the_port() -> None:
    Listener(ip=GROUP, port=_taken.getsockname()[1], interface="lo", poller=_poller)


def fails_in_a_subclass() -> None:
    Unfinished()


def fails_at_the_packet() -> None:
    multicast.sendto(["x", 5], GROUP, PORT)


#: What is done, and whether it must fail.
WAYS: list[tuple[Callable[[], None], bool]] = [
    (closed, False),
    (fails_at_the_filter, True),
    (forgotten, False),
    (fails_at_the_interface, True),
    (closed_by_its_handler, False),
    (fails_at_the_limit, True),
    (sent, False),
    (fails_at_the_port, True),
    (sent_to_the_end, False),
    (fails_in_a_subclass, True),
    (answered, False),
    (fails_at_the_packet, True),
    (connected, False),
    (timed, False),
]


def cycle(count: int) -> None:
    """Go through the ways, so many times altogether."""
    for number in range(count):
        way, must_fail = WAYS[number % len(WAYS)]
        failed = False
        try:
            way()
        except (MulticastError, OSError, LookupError):
            failed = True
            if not must_fail:
                raise
        assert failed == must_fail, way.__name__


def fill(count: int) -> None:
    """Hear from so many ports; 20,000 fill the table of addresses."""
    with Silent(ip=GROUP, port=PORT, interface="lo", poller=_poller):
        for _ in range(count):
            multicast.sendto("x", GROUP, PORT)
            _poller.poll()


def present() -> dict[str, Any]:
    """Return what there is now that could be left behind."""
    multicast.senders.forget_senders()
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memberships": Path("/proc/self/net/igmp").read_text(),
        "registered": len(_poller),
        "threads": threading.active_count(),
        "objects": sum(isinstance(one, (multicast.Poller, multicast.Dispatcher)) for one in gc.get_objects()),
    }


def memory() -> int:
    """Return the memory this process has now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> int:
    """Go round, and say what is left."""
    parser = argparse.ArgumentParser(description="Open and close, many times.")
    parser.add_argument("--cycles", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise SystemExit("this is no namespace of its own: it has more than lo (see the head of this file)")
    _taken.bind(("", 0))
    fill(min(20_000, 2 * arguments.cycles))
    cycle(min(1000, arguments.cycles))
    before, memory_before = present(), memory()
    begin = time.monotonic()
    cycle(arguments.cycles)
    took = time.monotonic() - begin
    after, memory_after = present(), memory()
    left = sorted(what for what in before if before[what] != after[what])
    grown = memory_after - memory_before
    if grown > MEMORY:
        left.append("memory")
    result = {"cycles": arguments.cycles, "seconds": round(took, 1), "memory_grown": grown, "left": left}
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{arguments.cycles} cycles in {took:.1f} s; memory grew by {grown} bytes")
        for what in left:
            print(f"left: {what}: {before.get(what)} -> {after.get(what)}")
        print("something is left" if left else "nothing is left")
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
