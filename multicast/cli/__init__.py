"""The `multicast` command: a table of its commands, and the way into them.

The libraries the command needs are an extra, so this file imports none of them; and a command's module is imported
when the command is run, so that `multicast send` does not wait for what only other commands use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]


#: The commands in the order of the help, and what each is for. The module beside this file that has the name of a
#: command holds it, under the same name.
COMMANDS = {
    "send": "send packets to a group",
    "listen": "print what arrives from groups",
    "request": "ask a group, and print who answers what",
    "respond": "answer requests to a group",
    "publish": "publish messages as a sequenced feed",
    "subscribe": "print the messages of a sequenced feed, in order, without gaps",
    "bridge": "carry groups to other sites, over NATS",
    "ping": "ping a group: who is there, how far, how much is lost",
    "top": "show rate, loss and jitter of each source, live",
    "bench": "measure throughput, loss and delay",
    "chat": "talk, over multicast or TCP",
    "doctor": "find out why nothing arrives",
    "interfaces": "show the interfaces of this host, and the groups joined",
    "record": "record groups to a capture file",
    "replay": "send the packets of a capture file as they were recorded",
    "info": "say what a capture file holds",
    "cut": "write a part of capture files to a new one, or merge several",
    "key": "make a key for sealed packets",
    "demo": "show the library at work, without a network",
    "completion": "print what completes commands in a shell",
}

# Which extra brings a library (setup.cfg), by the name it is imported under.
_EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "h11": "web",
    "prometheus_client": "metrics",
    "cryptography": "secure",
    "nats": "bridge",
    "nkeys": "bridge",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, by default that of the process; return the exit code.

    0 yes, 1 it ran but the answer is no, 2 usage, 3 the system refused, 4 bad data, 130 interrupted before an answer.
    """
    try:
        from ._app import run

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
