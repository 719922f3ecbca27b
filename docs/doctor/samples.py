"""Makes the samples beside this file: what `multicast doctor` says on a terminal 80 columns wide, from real runs.

Two hosts joined by a wire are made in network namespaces, each fault is set up there, and the command is run on the
receiving one. Run it as root: python docs/doctor/samples.py
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

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


def on_terminal(host: netns.Host, *arguments: str, colour: bool = False) -> str:
    """Run the command on a host, on a terminal of its own, and return what it shows there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **({} if colour else {"NO_COLOR": "1"})}
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


def picture(command: str, shown: str) -> None:
    """Draw what a terminal showed, with its colours."""
    console = Console(record=True, width=80, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text(f"$ {command}"))
    console.print(Text.from_ansi(shown.partition("$ echo $?")[0].rstrip()))
    drawn = console.export_svg(title="multicast doctor", unique_id="doctor")
    # Without the fonts, which a browser would fetch from elsewhere.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL).replace("Fira Code", "ui-monospace")
    (HERE / "fault.svg").write_text(drawn)


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
            if rp_filter:
                picture(f"multicast {' '.join(arguments)}", on_terminal(bob, *arguments, colour=True))


if __name__ == "__main__":
    main()
