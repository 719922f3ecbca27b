"""Everything a program does with the library, again and again, while its system calls fail here and there.

Run by test_faults_kernel.py below strace. Prints as JSON how often what was raised, and what was left behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import multicast
from multicast.discovery import Requester, Responder
from multicast.senders import forget_senders

GROUP = "239.90.2.1"


class Keeper(multicast.MulticastListener):
    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        pass


class Script(multicast.Multicaster):
    def __iter__(self) -> Any:
        yield from (b"one", b"two")


class Echo(Responder):
    def handle_request(self, packet: bytes, addr: multicast.Address) -> bytes:
        return packet


class Ask(Requester):
    def handle_reply(self, packet: bytes, addr: multicast.Address) -> None:
        pass


def scenario(port: int) -> None:
    with multicast.Poller() as poller:
        poller.call_later(0, int)
        poller.call_later(60, int)  # still to come whenever it polls, so there is an alarm to be set
        listener = Keeper(ip=GROUP, port=port, rcvbuf=100_000, details=True, poller=poller)
        Keeper(b"two", "ff05::90:1", port, interface="lo", poller=poller)
        Keeper(ip="232.90.1.1", port=port, sources=["127.0.0.1"], poller=poller)
        Script(GROUP, port, poller=poller)
        multicast.sendto([b"a", b"b", b"longer"], GROUP, port, source_ip="127.0.0.1")
        Echo(ip=GROUP, port=port + 1, poller=poller)
        Ask("question", GROUP, port + 1, timeout=0.001, poller=poller)
        for _ in range(6):
            poller.poll(0.002)
        listener.statistics()


def left_behind() -> list[str]:
    forget_senders()
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if "socket" in target or "anon_inode" in target:
            found.append(target)
    for line in Path("/proc/self/net/igmp").read_text().splitlines():
        if line.startswith("\t") and line.split()[0] != "010000E0":
            found.append(line.strip())
    return found


def main() -> None:
    raised: Counter[str] = Counter()
    left: list[str] = []
    rounds = int(sys.argv[1])
    for _ in range(rounds):
        try:
            scenario(4391)
        except multicast.MulticastError as error:
            raised[type(error).__name__] += 1
        except OSError as error:
            raised[str(error.errno)] += 1
        left += left_behind()
    print(json.dumps({"rounds": rounds, "raised": raised, "left": left[:10]}))


if __name__ == "__main__":
    main()
