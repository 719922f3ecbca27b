"""The `multicast` command: a table of its commands, and the way into them.

The libraries the command needs are an extra, so this file imports none of them; and a command's module is imported
when the command is run, so that `multicast send` does not wait for what only other commands use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["COMMANDS", "main"]


class Entry(NamedTuple):
    """Where a command is, and what it is for."""

    module: str
    function: str
    summary: str


#: The commands in the order of the help. Each is a function of a module beside this file.
COMMANDS: dict[str, Entry] = {
    "send": Entry("basic", "send", "send packets to a group"),
    "listen": Entry("basic", "listen", "print what arrives from groups"),
    "request": Entry("conversation", "request", "ask a group, and print who answers what"),
    "respond": Entry("conversation", "respond", "answer requests to a group"),
    "ping": Entry("ping", "ping", "ping a group: who is there, how far, how much is lost"),
    "top": Entry("live", "top", "show rate, loss and jitter of each source, live"),
    "bench": Entry("bench", "bench", "measure throughput, loss and delay"),
    "chat": Entry("chat", "chat", "talk, over multicast or TCP"),
    "doctor": Entry("diagnosis", "doctor", "find out why nothing arrives"),
    "interfaces": Entry("basic", "show_interfaces", "show the interfaces of this host, and the groups joined"),
    "record": Entry("record", "record", "record groups to a capture file"),
    "replay": Entry("record", "replay", "send the packets of a capture file as they were recorded"),
    "demo": Entry("demo", "demo", "show the library at work, without a network"),
    "completion": Entry("shell", "completion", "print what completes commands in a shell"),
}

# Which extra brings a library (setup.cfg), by the name it is imported under.
_EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "matplotlib": "plot",
    "prometheus_client": "metrics",
    "cryptography": "secure",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, by default that of the process; return the exit code.

    0 yes, 1 it ran but the answer is no, 2 usage, 3 the system refused, 4 bad data, 130 interrupted before an answer.
    """
    try:
        from .commands import run

        return run(args)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        print(
            f'multicast: this command needs {library}, which is not installed: pip install'
            f' "multicast-poller[{_EXTRAS[library]}]"',
            file=sys.stderr,
        )
        return 3
