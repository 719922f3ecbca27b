"""The command `replay`: send the packets of a capture file as they were recorded."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from multicast import capture
from multicast.poller import Poller

from ._app import SECONDS, command, count_option, deadline_option, interface_option
from ._captures import capture_file
from ._errors import Exit
from ._output import Output, plural, printable, where
from ._progress import Progress

__all__ = ["replay"]

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # in older versions not generic

# More groups than these are counted, and not named.
_NAMED = 3


class _MomentType(_Type):
    name = "moment"
    _WRITTEN = re.compile(r"(?:(?:([0-9]+):)?([0-9]{1,2}):)?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = self._WRITTEN.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time; write seconds, MM:SS or HH:MM:SS from the first packet", param, ctx)
        return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3])


class _DscpType(_Type):
    name = "dscp"
    _WRITTEN = re.compile(
        r"(?P<number>[0-9]{1,2})|CS(?P<class>[0-7])|AF(?P<high>[1-4])(?P<drop>[1-3])|EF", re.IGNORECASE
    )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the code point that is named (RFC 2474 section 4.2.2, RFC 2597 section 6, RFC 3246)."""
        match = self._WRITTEN.fullmatch(str(value).strip())
        number = 64
        if match is not None and match["number"]:
            number = int(match["number"])
        elif match is not None and match["class"]:
            number = 8 * int(match["class"])
        elif match is not None:
            number = 8 * int(match["high"]) + 2 * int(match["drop"]) if match["high"] else 46
        if number > 63:
            self.fail(f"{value!r} is not a DSCP; write 0 to 63, EF, AF11 to AF43, or CS0 to CS7", param, ctx)
        return number


class _PairType(_Type):
    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        old, equals, new = str(value).partition("=")
        if not (old and equals and new):
            self.fail(f"{value!r} is not a pair; write OLD=NEW, as 239.1.2.3:5000=239.9.9.9:5000", param, ctx)
        return old, new


#: A time from the first packet of a file, in seconds.
MOMENT = _MomentType()
_PAIR = _PairType()
_DSCP = _DscpType()




@command(
    "replay",
    json=True,
    examples=[
        "multicast replay feed.pcapng --to 239.9.9.9:5000",
        "multicast replay day-*.pcapng --as-recorded -i eth1 --speed 2",
        "multicast replay day.pcapng --map 239.1.2.3=239.9.9.9 --only 239.1.2.3 --from 10:00 --until 10:30",
    ],
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True)
@click.option("--to", metavar="GROUP", help="Send all packets that went to a group to this one. Without a port, each"
              " keeps its own.")
@click.option("--map", "pairs", type=_PAIR, metavar="OLD=NEW", multiple=True,
              help="Send packets for OLD to NEW; both with a port or without.")
@click.option("--as-recorded", is_flag=True, help="Send to the groups in the file.")
@click.option("--only", metavar="GROUP", multiple=True, help="Leave out packets for other groups.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, metavar="X",
              help="Play X times as fast as it was recorded.")
@click.option("--max", "maximum", is_flag=True, help="Play as fast as can be.")
@click.option("--pps", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="Send N packets a second, and not at the recorded pace.")
@click.option("--mbps", type=click.FloatRange(min=0, min_open=True), metavar="M",
              help="Send M million bits of payload a second, and not at the recorded pace.")
@click.option("--max-gap", type=SECONDS, metavar="S", help="Shorten longer pauses to S seconds.")
@count_option("Stop after N packets.")
@click.option("--partial", is_flag=True, help="Send what there is of a file that ends too early.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent where, and send nothing.")
@click.option("--loop", is_flag=True, help="Begin again at the end, until Ctrl-C or -w.")
@click.option("--from", "start", type=MOMENT, default=0.0, metavar="T",
              help="Begin T seconds after the first packet; MM:SS and HH:MM:SS are understood.")
@click.option("--until", "end", type=MOMENT, metavar="T", help="End T seconds after the first packet.")
@deadline_option("Stop after so many seconds.")
@interface_option("Send by this interface: a name, an index or an address.")
@click.option("-t", "--ttl", type=click.IntRange(0, 255), metavar="TTL",
              help="How far packets go: 0 this host, 1 this subnet. Left out, each has the TTL it was recorded with.")
@click.option("--dscp", type=_DSCP, metavar="DSCP",
              help="How urgent packets are to routers and switches: 0 to 63, or a name such as EF, AF41 or CS5. Left"
                   " out, each source has what it was recorded with.")
@click.option("--keep-source", is_flag=True,
              help="Send from the addresses in the file, which need not be of this host. Needs root.")
@click.option("--source-ip", metavar="IP", help="Send from this address of the host.")
@click.option("--source-port", type=click.IntRange(1, 65535), metavar="PORT",
              help="Send all from this port. Left out, each recorded source has a port: its own where that is free.")
def replay(
    out: Output,
    paths: tuple[str, ...],
    to: str | None,
    pairs: tuple[tuple[str, str], ...],
    as_recorded: bool,
    only: tuple[str, ...],
    speed: float,
    maximum: bool,
    pps: float | None,
    mbps: float | None,
    max_gap: float | None,
    count: int | None,
    partial: bool,
    dry_run: bool,
    loop: bool,
    start: float,
    end: float | None,
    deadline: float | None,
    interface: str | None,
    ttl: int | None,
    dscp: int | None,
    keep_source: bool,
    source_ip: str | None,
    source_port: int | None,
) -> Exit:
    """Send the packets of a capture file with the timing they had.

    FILE is what `multicast record`, tcpdump, dumpcap or Wireshark have written: pcapng or pcap, plain, gzip or zstd; -
    is standard input. Several are sent one after the other, as one. They are read and checked before anything is sent.
    Where packets go has to be said: --to, --map or --as-recorded. Each recorded source has a socket of its own, so
    receivers tell the senders apart as they did.
    """
    if to is None and not pairs and not as_recorded:
        raise click.UsageError("say where the packets go: --to GROUP, --map OLD=NEW, or --as-recorded")
    if maximum + (speed != 1.0) + (pps is not None) + (mbps is not None) > 1:
        raise click.UsageError("--speed, --max, --pps and --mbps all say how fast; choose one")
    if max_gap is not None and not max_gap:
        raise click.UsageError("--max-gap: a pause of 0 seconds is no pause; --max sends without any")
    if end is not None and end <= start:
        raise click.UsageError("--until has to be later than --from")
    if keep_source and (source_ip is not None or source_port is not None):
        raise click.UsageError(
            "--keep-source sends from the addresses in the file, --source-ip and --source-port from others; choose one"
        )
    sources = [capture_file(path) for path in paths]
    with Poller() as poller:
        replayer = capture.Replayer(
            sources,
            partial=partial,
            to=to,
            map=dict(pairs),
            as_recorded=as_recorded,
            only=only,
            speed=math.inf if maximum else speed,
            max_gap=max_gap,
            pps=pps,
            bps=None if mbps is None else mbps * 1e6,
            limit=count,
            loop=loop,
            start=start,
            end=end,
            ttl=ttl,
            dscp=dscp,
            keep_source=keep_source,
            interface=interface,
            source_ip=source_ip,
            source_port=source_port or 0,
            poller=poller,
        )
        summary = replayer.summary
        named = printable(paths[0]) if len(paths) == 1 else f"{len(paths)} files"
        out.say(f"{named}: {_contents(summary)}")
        if dry_run:
            _plan(out, replayer)
            replayer.close()
            return Exit.YES
        began = time.monotonic()
        progress = Progress(
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
            sources=replayer.sources,
            merged=replayer.merged,
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
    if replayer.merged:
        text += f"; {plural(replayer.merged, 'source')} of the file share one port, as no more than 256 are told apart"
    out.say(text)
    if not finished and not loop:
        return Exit.INTERRUPTED
    return Exit.YES if counted.packets and not counted.refused and not replayer.unsendable else Exit.NO


def _plan(out: Output, replayer: capture.Replayer) -> None:
    """Say what would be sent where."""
    for (group, port), packets in replayer.summary.groups.items():
        to = replayer.destination_of(group, port)
        if out.json:
            place = None if to is None else {"group": to.address, "port": to.port}
            out.event("plan", group=group, port=port, packets=packets, to=place)
        else:
            goes = "nowhere" if to is None else str(to)
            out.line(f"{where(group, port)} -> {goes}  {plural(packets, 'packet')}")


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
    if summary.cut:
        text += f"; it ends too early: {printable(summary.cut)}"
    return text
