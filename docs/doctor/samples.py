"""Makes the samples beside this file: what `multicast doctor` says on a terminal 80 columns wide, from real runs.

Two hosts joined by a wire are made in network namespaces, each fault is set up there, and the command is run on the
receiving one. Run it as root: python docs/doctor/samples.py
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import netns  # noqa: E402

SEND = """
import sys, multicast
sys.stdout.write("ready"); sys.stdout.flush()
class Sender(multicast.Multicaster):
    def __iter__(self):
        for _ in range(400):
            yield b"hello"
Sender(ip="239.1.2.3", port=5000, source_ip=sys.argv[1], interval=0.02)
multicast.loop()
"""


def on_terminal(host: netns.Host, *arguments: str) -> str:
    """Run the command on a host, on a terminal of its own, and return what it shows there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 80, 0, 0))
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = host.popen(
        [sys.executable, "-m", "multicast", *arguments],
        stdout=theirs, stderr=subprocess.DEVNULL, text=False, env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += piece
    os.close(ours)
    code = process.wait(20)
    return shown.decode().replace("\r\n", "\n") + f"$ echo $?\n{code}\n"


def main() -> None:
    assert netns.enter(), netns.reason
    for name, source, rp_filter in (("healthy", "10.99.0.1", 0), ("fault", "172.16.4.2", 1)):
        with netns.Lab() as lab:
            alice, bob = lab.host("alice"), lab.host("bob")
            lab.link(alice, "eth0", bob, "eth0")
            alice.ip("address add 172.16.4.2/32 dev eth0")
            bob.sysctl("ipv4.conf.eth0.rp_filter", rp_filter)
            sender = alice.popen(netns.python(SEND, source), stderr=None)
            sender.stdout.read(5)
            arguments = ["doctor", "239.1.2.3:5000", *(["--from", source] if rp_filter else []), "-w", "2"]
            shown = on_terminal(bob, *arguments)
            (HERE / f"{name}.txt").write_text(f"$ multicast {' '.join(arguments)}\n{shown}")


if __name__ == "__main__":
    main()
