"""The command `key`: make a key for sealed packets."""

from __future__ import annotations

import click

from multicast.sealed import Seal, new_key_file

from ._app import command
from ._errors import Exit
from ._output import Output, printable


@command(
    "key",
    json=True,
    examples=[
        "multicast key group.key",
        "multicast key cameras.key --json",
        "multicast key group.key && scp group.key 10.0.0.7:",
    ],
)
@click.argument("path", metavar="FILE")
def key(out: Output, path: str) -> Exit:
    """Make a new key for sealed packets, and write it to FILE.

    FILE holds 32 random bytes as hexadecimal digits. Only its owner can read it, and commands refuse a key file that
    others can read. A file that exists is not replaced. Copy it by a safe way to all who take part, such as scp.
    """
    new_key_file(path)
    seal = Seal.from_file(path)
    if out.json:
        out.event("key", file=path, id=seal.key_id)
    else:
        out.say(f"{printable(path)} holds a new key, {seal.key_id}; only you can read it")
    return Exit.YES
