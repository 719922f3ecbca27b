"""Every packet accounted for: a sender in bursts, and listeners of every kind that cannot keep up with it.

Run it in a network namespace of its own; it refuses to start in one that has more than `lo`:

    unshare -rn sh -c 'ip link set lo up; ip route add 224.0.0.0/4 dev lo src 127.0.0.1; exec "$@"' sh \\
        python benchmarks/soak.py [--packets 20000000] [--seconds 3600] [--seed 1] [--json]

One process sends bursts of random length, packets of random sizes and runs of equal ones (which leave bundled), with
pauses between. Another has six listeners of the same group on one poller: one with a large buffer, one with a tiny one,
one whose filter the kernel applies, one with a filter in Python, one that cuts packets, and one that is made to stop
reading for a while every now and then. At the end, when all buffers are empty, each of them must satisfy

    sent = delivered + filtered + dropped

to the packet. `sent` is what `sendto` returned, the rest what `statistics()` says. The kernel's own counter must agree
too: UdpRcvbufErrors with the sum of what was dropped. Where the kernel filters, it counts refusals and drops in one,
and the listener can only give their sum; there the sender's word on how many of each kind it sent tells them apart.
Exit code 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import multicast

GROUP, PORT = "239.77.0.3", 7703
#: What a burst begins with; the filters let a part of them pass.
KINDS = [b"alpha", b"beta", b"gamma", b"delta"]


class Account(multicast.MulticastListener):
    """Counts in its handler what the statistics claim was delivered."""

    def __init__(self, name: str, filter: Any = None, *, pauses: bool = False, **options: Any) -> None:
        self.name = name
        self.handled = 0
        self.cut = 0
        self.pauses = pauses
        super().__init__(filter, GROUP, PORT, **options)

    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        self.handled += 1
        self.cut += addr.truncated
        if self.pauses and self.handled % 5000 == 0:
            self.poller.unregister(self)
            self.poller.call_later(0.05, self.poller.register, self)


def burst(randomness: random.Random, kind: bytes) -> Iterator[bytes]:
    """Yield the packets of one burst."""
    if randomness.random() < 0.5:
        yield from [kind + bytes(randomness.randrange(1, 1400))] * randomness.randrange(1, 2000)
    else:
        for _ in range(randomness.randrange(1, 300)):
            yield kind + bytes(randomness.randrange(0, 1400))


def send(packets: int, seconds: float, seed: int) -> dict[str, int]:
    """Send about so many packets, or for so long; return how many of each kind the kernel took."""
    randomness = random.Random(seed)
    end = time.monotonic() + seconds
    sent = {kind.decode(): 0 for kind in KINDS}
    while sum(sent.values()) < packets and time.monotonic() < end:
        kind = randomness.choice(KINDS)
        sent[kind.decode()] += multicast.sendto(burst(randomness, kind), GROUP, PORT)
        if randomness.random() < 0.02:
            time.sleep(randomness.random() / 50)
    return sent


def overflows() -> int:
    """Return the kernel's count of datagrams dropped for want of room in a buffer, here."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    heads, values = (line.split() for line in lines if line.startswith("Udp:"))
    return int(values[heads.index("RcvbufErrors")])


def run(packets: int, seconds: float, seed: int) -> dict[str, Any]:
    """Send, receive, and return the account."""
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise SystemExit("this is no namespace of its own: it has more than lo (see the head of this file)")
    poller = multicast.Poller()
    before = overflows()
    listeners = [
        Account("large buffer", rcvbuf=64 << 20, poller=poller),
        Account("tiny buffer", rcvbuf=4096, poller=poller),
        Account("kernel filter", rb"alpha", rcvbuf=1 << 20, poller=poller),
        Account("python filter", lambda packet, addr: packet[0] == ord("b"), rcvbuf=1 << 20, poller=poller),
        Account("cuts at 100", mtu=100, rcvbuf=1 << 20, poller=poller),
        Account("pauses", pauses=True, poller=poller),
    ]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    command = [sys.executable, __file__, "--send", str(packets), str(seconds), str(seed)]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        while sender.poll() is None:
            poller.poll(0.1)
        assert sender.stdout is not None
        kinds: dict[str, int] = json.loads(sender.stdout.read())
    sent = sum(kinds.values())
    # All sockets are empty when every listener is registered and one more look finds nothing.
    last = -1
    while len(poller) < len(listeners) or (seen := sum(one.statistics().packets for one in listeners)) != last:
        last = seen if len(poller) == len(listeners) else -1
        poller.poll(0.1)
    took = time.monotonic() - begin
    rows: list[dict[str, Any]] = []
    for one in listeners:
        counted = one.statistics()
        accounted = counted.delivered + counted.filtered + counted.dropped
        rows.append(
            {
                "listener": one.name,
                "sent": sent,
                "delivered": counted.delivered,
                "filtered": counted.filtered,
                "dropped": counted.dropped,
                "cut": counted.truncated,
                "missing": sent - accounted,
                "right": sent == accounted and one.handled == counted.delivered and one.cut == counted.truncated,
            }
        )
    kernel = overflows() - before
    in_kernel = listeners[2].statistics()
    dropped = sum(row["dropped"] for row in rows) - in_kernel.dropped + kinds["alpha"] - in_kernel.delivered
    poller.close()
    return {
        "sent": sent,
        "seconds": round(took, 1),
        "accounted": sent * len(rows),
        "memory_growth_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory,
        "kernel_overflows": kernel,
        "dropped": dropped,
        "right": all(row["right"] for row in rows) and kernel == dropped,
        "rows": rows,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="account for every packet")
    parser.add_argument("--packets", type=int, default=20_000_000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        packets, seconds, seed = options.send
        print(json.dumps(send(int(packets), float(seconds), int(seed))))
        return 0
    account = run(options.packets, options.seconds, options.seed)
    if options.json:
        print(json.dumps(account))
    else:
        columns = ["listener", "sent", "delivered", "filtered", "dropped", "cut", "missing"]
        print("".join(f"{column:>14}" for column in columns))
        for row in account["rows"]:
            print("".join(f"{row[column]:>14}" for column in columns))
        print(
            f"{account['accounted']} receptions of {account['sent']} packets in {account['seconds']} s;"
            f" kernel overflows {account['kernel_overflows']}, dropped {account['dropped']};"
            f" memory grew by {account['memory_growth_kib']} KiB;"
            f" {'all accounted for' if account['right'] else 'WRONG'}"
        )
    return 0 if account["right"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
