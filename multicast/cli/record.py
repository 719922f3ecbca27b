"""The commands `record` and `replay`: groups into capture files, and back.

Progress goes to stderr, and only to a terminal, where it stays in one line; with --json it is an event a second.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from multicast import capture
from multicast.poller import Poller
from multicast.sockets import Group

from .commands import GROUP, command, count_option, deadline_option, interface_option, interfaces_option, ttl_option
from .failures import Exit, wording
from .output import Output, columns, plural, printable, where

__all__ = ["record", "replay"]

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # in older versions not generic

# How often progress is shown, in seconds.
_PROGRESS = 1.0
# More groups than these are counted, and not named.
_NAMED = 3


class _SizeType(_Type):
    name = "size"
    _WRITTEN = re.compile(r"([0-9]+)([kmg]?)b?", re.IGNORECASE)
    _FACTORS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}  # noqa: RUF012 -- never changed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = self._WRITTEN.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write 100M for 100 million bytes, 500k, 2G, or a number", param, ctx)
        return int(match[1]) * self._FACTORS[match[2].lower()]


class _MomentType(_Type):
    name = "moment"
    _WRITTEN = re.compile(r"(?:(?:([0-9]+):)?([0-9]{1,2}):)?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = self._WRITTEN.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time; write seconds, MM:SS or HH:MM:SS from the first packet", param, ctx)
        return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3])


class _PairType(_Type):
    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        old, equals, new = str(value).partition("=")
        if not (old and equals and new):
            self.fail(f"{value!r} is not a pair; write OLD=NEW, as 239.1.2.3:5000=239.9.9.9:5000", param, ctx)
        return old, new


_SIZE, _MOMENT, _PAIR = _SizeType(), _MomentType(), _PairType()


class _Progress:
    """A line for people that is written over while a command runs."""

    def __init__(
        self, out: Output, poller: Poller, text: Callable[[], str], fields: Callable[[], dict[str, Any]]
    ) -> None:
        self._out = out
        self._poller = poller
        self._text = text
        self._fields = fields
        self._shown = sys.stderr.isatty() and not out.quiet and not out.json
        self._timer = poller.call_later(_PROGRESS, self._tick) if self._shown or out.json else None

    def _tick(self) -> None:
        self._timer = self._poller.call_later(_PROGRESS, self._tick)
        if self._out.json:
            self._out.event("progress", **self._fields())
        else:
            text = self._text()[: (columns(sys.stderr) or 80) - 1]  # a longer line cannot be written over
            sys.stderr.write(f"\r{text}\033[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Make room for what is said last."""
        if self._timer is not None:
            self._timer.cancel()
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


# -- record --------------------------------------------------------------------------------------------------------


@command(
    "record",
    json=True,
    examples=[
        "multicast record 239.1.2.3:5000 -o feed.pcapng",
        "multicast record mdns ssdp -o discovery.pcapng -w 60",
        "multicast record 239.1.2.3:5000 -o feed.pcapng --rotate 100M --keep 10",
    ],
)
@click.argument("groups", metavar="[GROUP...]", nargs=-1, type=GROUP)
@click.option("-o", "--output", "path", metavar="FILE", required=True,
              help="The file to write, in pcapng. One that is there is replaced.")
@count_option("Stop after N packets.")
@deadline_option("Stop after so many seconds.")
@click.option("--rotate", type=_SIZE, metavar="SIZE",
              help="Begin another file when this one has SIZE bytes, as 100M: NAME-00001.pcapng and so on.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="With --rotate: keep the N latest files.")
@click.option("--snaplen", type=click.IntRange(min=64), metavar="N",
              help="Keep the first N bytes of each packet, headers included.")
@click.option("--filter", "expression", metavar="REGEX",
              help="Only packets that match this regular expression at their start.")
@interfaces_option("Record on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
def record(
    out: Output,
    groups: tuple[Group, ...],
    path: str,
    count: int | None,
    deadline: float | None,
    rotate: int | None,
    keep: int | None,
    snaplen: int | None,
    expression: str | None,
    interfaces: list[str] | None,
) -> Exit:
    """Record groups to a capture file that Wireshark, tcpdump and `multicast replay` open.

    Each packet has the time at which the kernel received it, in nanoseconds. The file is brought up to date every
    second, so that little is lost when the machine fails. GROUP is written as for `multicast listen`.
    """
    if path == "-":
        raise click.UsageError("-o: give the name of a file; a recording is not written to a pipe")
    if keep is not None and rotate is None:
        raise click.UsageError("--keep says how many files stay, so it needs --rotate SIZE")
    if rotate is not None and rotate < 4096:
        raise click.UsageError(f"--rotate: {rotate} bytes are no room for packets; 4096 are the least")
    wanted = list(dict.fromkeys(groups or (Group(),)))
    with Poller() as poller:
        file = capture.Writer(path, snaplen=snaplen, rotate=rotate, keep=keep)
        with file, wording("--filter"):
            recorders = [
                capture.Recorder(
                    file,
                    expression,
                    group.address,
                    group.port,
                    limit=count,
                    interface=interfaces or list(group.interfaces) or None,
                    sources=group.sources,
                    poller=poller,
                )
                for group in wanted
            ]
            for recorder in recorders:
                names = ", ".join(printable(interface.name) for interface in recorder.interfaces)
                out.say(f"recording {recorder.group} on {names} to {printable(path)}")

            def dropped() -> int:
                return sum(recorder.statistics().dropped for recorder in recorders)

            began = time.monotonic()
            progress = _Progress(
                out,
                poller,
                lambda: (
                    f"{plural(file.packets, 'packet')}, {plural(file.bytes, 'byte')}, {time.monotonic() - began:.0f} s;"
                    f" kernel dropped {dropped()}"
                ),
                lambda: {"packets": file.packets, "bytes": file.bytes, "dropped": dropped()},
            )
            finished = True
            try:
                with _told_last(file):
                    finished = out.drive(poller, lambda: recorders[0].complete, deadline, writes=out.json)
            finally:
                progress.end()
            seconds = time.monotonic() - began
            for recorder in recorders:
                with _told_last(file):
                    recorder.close()
            with _told_last(file):
                file.close()
            lost = dropped()
            filtered = sum(recorder.statistics().filtered for recorder in recorders)
    if out.json:
        out.event(
            "summary",
            file=file.path,
            packets=file.packets,
            bytes=file.bytes,
            seconds=round(seconds, 6),
            dropped=lost,
            filtered=filtered,
            lost=file.lost,
        )
    text = f"{plural(file.packets, 'packet')}, {plural(file.bytes, 'byte')}, {seconds:.1f} s"
    text += f", {plural(filtered, 'packet')} refused by the filter" if filtered else ""
    out.say(f"{printable(file.path)}: {text}; kernel dropped {lost}")
    if file.error is not None:
        raise file.error
    if not file.packets:
        out.say(f"nothing arrived. Next: multicast listen {' '.join(map(str, wanted))}")
        return Exit.NO if finished else Exit.INTERRUPTED
    return Exit.YES


@contextmanager
def _told_last(file: capture.Writer) -> Iterator[None]:
    """Go on where the file ends early, for the disk is full: what is in it is to be told before the error."""
    try:
        yield
    except OSError as error:
        if error is not file.error:
            raise


# -- replay --------------------------------------------------------------------------------------------------------


@command(
    "replay",
    json=True,
    examples=[
        "multicast replay feed.pcapng --to 239.9.9.9:5000",
        "multicast replay feed.pcapng --as-recorded -i eth1 --speed 2",
        "multicast replay day.pcapng --map 239.1.2.3=239.9.9.9 --only 239.1.2.3 --from 10:00 --until 10:30",
    ],
)
@click.argument("path", metavar="FILE")
@click.option("--to", metavar="GROUP", help="Send all packets that went to a group to this one. Without a port, each"
              " keeps its own.")
@click.option("--map", "pairs", type=_PAIR, metavar="OLD=NEW", multiple=True,
              help="Send packets for OLD to NEW; both with a port or without.")
@click.option("--as-recorded", is_flag=True, help="Send to the groups in the file.")
@click.option("--only", metavar="GROUP", multiple=True, help="Leave out packets for other groups.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, metavar="X",
              help="Play X times as fast as it was recorded.")
@click.option("--max", "maximum", is_flag=True, help="Play as fast as can be.")
@click.option("--loop", is_flag=True, help="Begin again at the end, until Ctrl-C or -w.")
@click.option("--from", "start", type=_MOMENT, default=0.0, metavar="T",
              help="Begin T seconds after the first packet; MM:SS and HH:MM:SS are understood.")
@click.option("--until", "end", type=_MOMENT, metavar="T", help="End T seconds after the first packet.")
@deadline_option("Stop after so many seconds.")
@interface_option("Send by this interface: a name, an index or an address.")
@ttl_option
@click.option("--source-ip", metavar="IP", help="Send from this address of the host.")
def replay(
    out: Output,
    path: str,
    to: str | None,
    pairs: tuple[tuple[str, str], ...],
    as_recorded: bool,
    only: tuple[str, ...],
    speed: float,
    maximum: bool,
    loop: bool,
    start: float,
    end: float | None,
    deadline: float | None,
    interface: str | None,
    ttl: int,
    source_ip: str | None,
) -> Exit:
    """Send the packets of a capture file with the timing they had.

    FILE is what `multicast record`, tcpdump, dumpcap or Wireshark have written: pcapng or pcap, plain, gzip or zstd. It
    is read and checked before anything is sent. Where packets go has to be said: --to, --map or --as-recorded.
    """
    if to is None and not pairs and not as_recorded:
        raise click.UsageError("say where the packets go: --to GROUP, --map OLD=NEW, or --as-recorded")
    if maximum and speed != 1.0:
        raise click.UsageError("--speed and --max are two ways to say how fast; choose one")
    if end is not None and end <= start:
        raise click.UsageError("--until has to be later than --from")
    if not os.path.exists(path):
        raise click.UsageError(f"there is no file {printable(path)}")
    with Poller() as poller:
        replayer = capture.Replayer(
            path,
            to=to,
            map=dict(pairs),
            as_recorded=as_recorded,
            only=only,
            speed=math.inf if maximum else speed,
            loop=loop,
            start=start,
            end=end,
            ttl=ttl,
            interface=interface,
            source_ip=source_ip,
            poller=poller,
        )
        summary = replayer.summary
        out.say(f"{printable(path)}: {_contents(summary)}")
        began = time.monotonic()
        progress = _Progress(
            out,
            poller,
            lambda: f"{plural(replayer.statistics().packets, 'packet')} sent, {time.monotonic() - began:.0f} s",
            lambda: {"packets": replayer.statistics().packets},
        )
        try:
            finished = out.drive(poller, lambda: replayer.closed, deadline, writes=out.json)
        finally:
            progress.end()
            replayer.close()
        seconds = time.monotonic() - began
    counted, timing = replayer.statistics(), replayer.timing
    p50, p99 = timing.percentile(50), timing.percentile(99)
    if out.json:
        out.event(
            "summary",
            packets=counted.packets,
            bytes=counted.bytes,
            unsendable=replayer.unsendable,
            refused=counted.refused,
            seconds=round(seconds, 6),
            timing_error_p50_ns=None if maximum else round(p50 * 1e9),
            timing_error_p99_ns=None if maximum else round(p99 * 1e9),
        )
    text = f"{plural(counted.packets, 'packet')}, {plural(counted.bytes, 'byte')}, {seconds:.2f} s"
    if not maximum:
        text += f"; timing error p50 {_microseconds(p50)}, p99 {_microseconds(p99)}"
    elif seconds:
        text += f"; {counted.packets / seconds:,.0f} packets a second".replace(",", " ")
    if replayer.unsendable:
        # `Replayer.unsendable` has both reasons in one number.
        text += f"; {plural(replayer.unsendable, 'packet')} not sent: cut short in the file, or too long to be sent on"
    out.say(text)
    if not finished and not loop:
        return Exit.INTERRUPTED
    return Exit.YES if counted.packets and not counted.refused and not replayer.unsendable else Exit.NO


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 0.001 else f"{seconds * 1e3:.1f} ms"


def _contents(summary: capture.Summary) -> str:
    """Return what a file holds, in one line."""
    groups: Sequence[tuple[str, int]] = list(summary.groups)
    named = ", ".join(where(*group) for group in groups[:_NAMED])
    more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    if summary.others:  # among these packets the groups are not told apart
        more = f" and more than {len(groups) - _NAMED} others"
    text = f"{plural(summary.packets, 'packet')} in {summary.duration:.1f} s, for {named}{more}"
    for number, what in (
        (summary.truncated, "cut short in the file"),
        (summary.counts.fragments, "in fragments that are not complete"),
        (summary.counts.malformed, "malformed"),
        (summary.dropped, "dropped when it was recorded"),
    ):
        if number:
            text += f"; {number} {what}"
    return text
