"""The command `cut`: a part of capture files, or several as one, into a new file."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from contextlib import ExitStack

import click

from multicast import capture
from multicast.batch import Address
from multicast.filters import predicate

from ._app import command
from ._captures import capture_file, output_file
from ._errors import Exit, wording
from ._input import named
from ._output import Output, plural, printable
from .replay import MOMENT

_SECOND = 1_000_000_000


@command(
    "cut",
    json=True,
    examples=[
        "multicast cut day.pcapng -o part.pcapng --from 10:00 --until 10:30",
        "multicast cut day.pcapng -o feed.pcapng --only 239.1.2.3:5000 --source 10.0.0.5",
        "multicast cut a.pcapng b.pcapng -o both.pcapng",
    ],
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", "target", metavar="FILE", required=True,
              help="The file to write, in pcapng; .gz or .zst at the end of its name compress it; - is standard"
                   " output.")
@click.option("--only", metavar="GROUP", multiple=True, help="Packets for this group alone, with a port or without.")
@click.option("--source", "sources", metavar="ADDRESS", multiple=True, help="Packets of this source alone.")
@click.option("--filter", "expression", metavar="REGEX",
              help="Packets that match this regular expression at their start; .* first finds it anywhere.")
@click.option("--from", "start", type=MOMENT, default=0.0, metavar="T",
              help="Begin T seconds after the first packet; MM:SS and HH:MM:SS are understood.")
@click.option("--until", "end", type=MOMENT, metavar="T", help="End T seconds after the first packet.")
def cut(
    out: Output,
    paths: tuple[str, ...],
    target: str,
    only: tuple[str, ...],
    sources: tuple[str, ...],
    expression: str | None,
    start: float,
    end: float | None,
) -> Exit:
    """Write the UDP packets of capture files that are wanted to a new file, in the order of their times.

    Several files are merged; - is standard input. The new file has what UDP carries, its addresses and times; what is
    not UDP is left out.
    """
    if end is not None and end <= start:
        raise click.UsageError("--until has to be later than --from")
    files = [capture_file(path) for path in paths]
    written = output_file(out, target)
    for path in files:
        if isinstance(path, str) and os.path.exists(target) and os.path.samefile(path, target):
            raise click.UsageError(f"-o: {printable(target)} is one of the files that are read")
    patterns = [capture.Pattern.of(one) for one in only]
    with wording("--filter"):
        accept = predicate(expression)
    read = kept = 0
    with ExitStack() as stack:
        readers = [stack.enter_context(capture.Reader(path)) for path in files]
        packets: Iterator[capture.Packet] = heapq.merge(*readers, key=lambda packet: packet.timestamp)
        writer: capture.Writer | None = None
        first: int | None = None
        for packet in packets:
            read += 1
            first = packet.timestamp if first is None else first
            moment = (packet.timestamp - first) / _SECOND
            if moment < start or (end is not None and moment >= end):
                continue
            if patterns and not any(one.matches(packet.group, packet.port) for one in patterns):
                continue
            if sources and packet.source[0] not in sources:
                continue
            if accept is not None and not accept(packet.payload, Address(packet.source, packet.group)):
                continue
            if writer is None:
                writer = stack.enter_context(capture.write(written))
            writer.write(packet)
            kept += 1
    if out.json:
        out.event("summary", file=target, read=read, packets=kept)
    name = named(target, "standard output")
    if not kept:
        out.say(f"none of {plural(read, 'packet')} was wanted, so {name} was not written")
        return Exit.NO
    out.say(f"{name}: {kept} of {plural(read, 'packet')}")
    return Exit.YES
