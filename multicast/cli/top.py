"""The command `top`: what arrives from whom, how fast, how complete and how regular, second by second."""

from __future__ import annotations

import math
import os
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multicast.batch import Address
from multicast.listeners import MulticastListener
from multicast.measure import STRIP, Cell, Flow, FlowKey, Meters, Numbering
from multicast.poller import Poller
from multicast.sockets import Group

from . import COMMANDS
from ._app import ADDRESS, command, deadline_option, interfaces_option
from ._captures import PLACE, CaptureFile, apart, as_if_they_arrived
from ._errors import Exit
from ._keyboard import typing
from ._output import Output, host_of, narrowed, plural, printable, where
from ._report import Report
from ._sealing import counted, key_option, not_opened

if TYPE_CHECKING:
    from rich.text import Text

    from multicast.sealed import Seal

    from ._web import Events, Server

SORTS = ("rate", "bytes", "loss", "jitter")

_RCVBUF = 4 << 20
_KEYS = 4096
# How often the table is drawn, and how long a second is, in seconds.
_SECOND = 1.0
# Longer addresses are cut in the table.
_WIDEST = 26


# -- numbers for people --------------------------------------------------------------------------------------------


def amount(value: float) -> str:
    """Return a number of any size in at most five characters: 998, 12.3k, 8.14M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            digits = value / factor
            return f"{digits:.{2 if digits < 9.995 else 1 if digits < 99.95 else 0}f}{letter}"
    return f"{value:.{1 if 0 < value < 9.95 and value != int(value) else 0}f}"


def span(seconds: float) -> str:
    """Return a short time: 41us, 1.2ms, 3.4s; - for none."""
    if math.isnan(seconds):
        return "-"
    if seconds < 0.9995e-3:
        return f"{1e6 * seconds:.0f}us"
    if seconds < 0.9995:
        milliseconds = 1e3 * seconds
        return f"{milliseconds:.{1 if milliseconds < 99.5 else 0}f}ms"
    return f"{seconds:.1f}s"


def percent(share: float) -> str:
    """Return a share as a percentage; - for none. What is not nothing is not shown as nothing."""
    if math.isnan(share):
        return "-"
    return "<0.01%" if 0 < share < 0.00005 else f"{100 * share:.2f}%"


def clock(seconds: float) -> str:
    """Return a time as HH:MM:SS."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


# -- measuring -----------------------------------------------------------------------------------------------------


class _Probe(MulticastListener):
    """Has the packets of one group measured."""

    def __init__(self, meters: Meters, **options: Any) -> None:
        self._meters = meters
        self._dropped_before = 0
        # What is made of an address, by the address; it is needed for each packet.
        self._keys: dict[tuple[object, str | None], FlowKey] = {}
        super().__init__(mtu=65535, rcvbuf=_RCVBUF, details=True, **options)
        self._ours = (self.group.address, self.group.port)

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Measure a packet, at the time when the kernel got it."""
        interface = addr.interface
        key = self._keys.get((addr, interface))
        if key is None:
            key = FlowKey(*self._ours, host_of(addr), addr.port, interface or "?")
            if len(self._keys) >= _KEYS:
                self._keys.clear()
            self._keys[tuple(addr), interface] = key
        self._meters.take(key, packet, (addr.timestamp or time.time_ns()) / 1e9, addr.ttl)

    def newly_dropped(self) -> int:
        """Return how many packets the kernel has dropped since the last call."""
        dropped = self.statistics().dropped
        new, self._dropped_before = dropped - self._dropped_before, dropped
        return new


class _Recorded:
    """The packets of capture files, and the seconds of the clock with which they were recorded."""

    def __init__(
        self, files: Sequence[CaptureFile], groups: Sequence[Group], each_second: Callable[[_Recorded], object]
    ) -> None:
        """Read all; `each_second` is called at the end of each second in which something came."""
        self.meters = Meters()
        self.began_at = 0.0
        self.seconds = 0.0
        self._names: set[str] = set()
        self._each_second = each_second
        began: float | None = None
        with as_if_they_arrived(files, groups) as (series, packets):
            for packet in packets:
                now = packet.timestamp / 1e9
                if began is None:
                    began = self.began_at = now
                passed = now - began - self.seconds
                if passed >= _SECOND:
                    self._end(_SECOND)
                    if passed >= 2 * _SECOND:  # a silence is one piece, however long
                        self._end(math.floor(passed - _SECOND))
                name = packet.interface or "?"
                self._names.add(name)
                key = FlowKey(packet.group, packet.port, *packet.source, name)
                self.meters.take(key, packet.payload, now, packet.ttl)
            self.dropped, self.cut = series.dropped, series.cut
        if began is not None:
            self._end(max(now - began - self.seconds, 1e-9))

    @property
    def interfaces(self) -> list[str]:
        """The names of all interfaces by which something came."""
        return sorted(self._names)

    @property
    def now(self) -> int:
        """The end of the last second, in nanoseconds since 1970."""
        return round(1e9 * (self.began_at + self.seconds))

    def _end(self, seconds: float) -> None:
        self.meters.tick(self.seconds, seconds)
        self.seconds += seconds
        self._each_second(self)


class _Measurement:
    """All groups of one run, and the seconds as they pass."""

    def __init__(
        self,
        poller: Poller,
        groups: Sequence[Group],
        interfaces: list[str] | None,
        seal: Seal | None,
        after: Callable[[], object],
    ) -> None:
        self.meters = Meters()
        self.dropped = 0
        self._poller = poller
        self._after = after
        self.probes = [
            _Probe(
                self.meters,
                ip=group.address,
                port=group.port,
                interface=interfaces or list(group.interfaces) or None,
                sources=group.sources,
                seal=seal,
                poller=poller,
            )
            for group in groups
        ]
        self.began = self._last = poller.time()
        self.began_at = time.time()
        poller.call_at(self.began + _SECOND, self._tick, self.began + _SECOND)

    @property
    def interfaces(self) -> list[str]:
        """The names of all interfaces that are listened on."""
        return sorted({interface.name for probe in self.probes for interface in probe.interfaces})

    @property
    def now(self) -> int:
        """The time, in nanoseconds since 1970."""
        return time.time_ns()

    @property
    def seconds(self) -> float:
        """How long it has been measured."""
        return self._poller.time() - self.began

    def _tick(self, due: float) -> None:
        self.end_second()
        following = max(due + _SECOND, self._poller.time() + _SECOND / 2)
        self._poller.call_at(following, self._tick, following)
        self._after()

    def end_second(self) -> None:
        """Count what came since the last second ended as one."""
        now = self._poller.time()
        passed, began = now - self._last, self._last - self.began
        if passed <= 0:
            return
        self._last = now
        dropped = {}
        for probe in self.probes:
            new = probe.newly_dropped()
            self.dropped += new
            dropped[probe.group.address, probe.group.port] = new
        self.meters.tick(began, passed, dropped)

    def reset(self) -> None:
        """Count from 0 again."""
        self.meters.reset()
        self.dropped = 0
        self.began = self._last = self._poller.time()
        self.began_at = time.time()


# -- the table -----------------------------------------------------------------------------------------------------


def _cut(text: str, width: int = _WIDEST) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _sources(flows: Sequence[Flow]) -> dict[FlowKey, str]:
    """Return how each source is written: with its port where the address alone does not tell it from another."""
    seen: dict[tuple[str, int, str, str], int] = {}
    for flow in flows:
        key = flow.key
        place = (key.group, key.port, key.source, key.interface)
        seen[place] = seen.get(place, 0) + 1
    return {
        flow.key: where(flow.key.source, flow.key.source_port)
        if seen[flow.key.group, flow.key.port, flow.key.source, flow.key.interface] > 1
        else flow.key.source
        for flow in flows
    }


_MARKS = {"_": "red", "!": "bold red", ":": "yellow", "<": "yellow", ".": "green"}
#: What the ways to number packets are called in tables.
KINDS = {
    Numbering.NONE: "-",
    Numbering.RTP: "RTP",
    Numbering.TS: "TS",
    Numbering.PROBE: "ping",
    Numbering.MOLDUDP64: "feed",
}


class Table:
    """Draws the flows for a terminal of some size."""

    def __init__(self, measurement: _Measurement, sort: str) -> None:
        self._measurement = measurement
        self.sort = sort
        self.paused = False

    def lines(self, width: int, height: int) -> list[Text]:
        """Return the lines of the screen."""
        from rich.text import Text

        measurement = self._measurement
        flows = measurement.meters.ordered(self.sort)
        interfaces = measurement.interfaces
        groups = len(measurement.probes)
        title = Text("multicast top", "bold")
        title.append(
            f"  {plural(groups, 'group')}, {plural(len(flows), 'source')} on {_cut(','.join(interfaces), 20)}"
            f"  up {clock(measurement.seconds)}  by {self.sort}",
            "not bold",
        )
        if self.paused:
            title.append("  PAUSED", "bold yellow")
        room = max(1, height - 5)
        shown = flows if len(flows) <= room else flows[: room - 1]
        rows = self._rows(shown, width, len(interfaces) > 1)
        if not flows:
            rows.append(Text(f"nothing has arrived yet; listening to {self._groups()}", "dim"))
        elif len(shown) < len(flows):
            rows.append(Text(f"and {plural(len(flows) - len(shown), 'source')} more", "dim"))
        rows += [Text("")] * (height - 4 - len(rows))
        for line in (title, *rows):
            line.truncate(width, overflow="ellipsis")
        return [title, Text(""), *rows, *self._foot(width)]

    def _groups(self) -> str:
        return ", ".join(where(probe.group.address, probe.group.port) for probe in self._measurement.probes)

    def _foot(self, width: int) -> list[Text]:
        from rich.text import Text

        measurement = self._measurement
        counts = Text("kernel dropped 0")
        if measurement.dropped:
            counts = Text(f"kernel dropped {measurement.dropped}", "bold red")
            counts.append(", for this host is too slow; LOSS has them too", "not bold")
        if measurement.meters.others:
            counts.append(f"   {plural(measurement.meters.others, 'packet')} of more sources than are kept apart")
        legend = Text("   ")
        for mark, meaning in ((".", "all there"), ("_", "lost"), (":", "twice"), ("<", "order"), ("!", "dropped")):
            legend.append(mark, _MARKS[mark])
            legend.append(f" {meaning}  ", "dim")
        if counts.cell_len + legend.cell_len <= width + 2:
            counts.append_text(legend)
        keys = Text()
        for key, meaning in (("q", "quit"), ("p", "pause"), ("s", "sort"), ("r", "reset")):
            keys.append(key, "bold")
            keys.append(f" {meaning}   ", "dim")
        for line in (counts, keys):
            line.rstrip()
            line.truncate(width, overflow="ellipsis")
        return [counts, keys]

    def _rows(self, flows: Sequence[Flow], width: int, several: bool) -> list[Text]:
        from rich.text import Text

        head = ["GROUP", "SOURCE", "IF", "TYPE", "PKT/S", "BIT/S", "LOSS", "JITTER"]
        left = 4
        written = _sources(flows)
        cells = [
            [
                _cut(where(flow.key.group, flow.key.port)),
                _cut(written[flow.key]),
                _cut(flow.key.interface, 15),
                KINDS[flow.numbering],
                amount(flow.now.rate),
                amount(flow.now.bits),
                percent(flow.loss),
                span(flow.jitter),
            ]
            for flow in flows
        ]
        # Numbers that change must not have the columns dance.
        least = [14, 9, 2, 4, 5, 5, 6, 6]
        widths = [
            max(len(title), small, *(len(row[place]) for row in cells))
            for place, (title, small) in enumerate(zip(head, least, strict=True))
        ]
        # What a narrow terminal has no room for is left out, the least interesting first.
        keep = [place for place in range(len(head)) if place != 2 or several]
        for spare in (3, 2):
            if spare in keep and width - sum(widths[place] + 2 for place in keep) < 16:
                keep.remove(spare)
        for spare in (5, 7):
            if width < sum(widths[place] + 2 for place in keep) - 2:
                keep.remove(spare)
        widths[:2] = narrowed(widths[:2], max(0, sum(widths[place] + 2 for place in keep) - 2 - width))
        strip = max(0, min(STRIP, width - sum(widths[place] + 2 for place in keep)))
        lines = [Text("  ".join(
            head[place].ljust(widths[place]) if place < left else head[place].rjust(widths[place]) for place in keep
        ) + (f"  LAST {strip} s" if strip > 9 else ""), "bold")]
        for flow, row in zip(flows, cells, strict=True):
            line = Text(style="dim" if not flow.now.packets else "")
            for place in keep:
                text = _cut(row[place], widths[place])
                text = text.ljust(widths[place]) if place < left else text.rjust(widths[place])
                style = "red" if place == 6 and flow.lost else "cyan" if place == 1 else ""
                line.append(text + "  ", style)
            marks = flow.marks(strip).rjust(strip) if strip else ""
            for mark in marks:
                line.append(mark, _MARKS.get(mark, "cyan"))
            if not strip:
                line.rstrip()  # or what is cut at the edge would be blanks, and yet look like something
            lines.append(line)
        return lines


class _Screen:
    """The table on a terminal, and the keys."""

    def __init__(self, out: Output, table: Table, poller: Poller, reset: Callable[[], object]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._table = table
        self._poller = poller
        self._reset = reset
        self.quit = False
        self._console = Console(no_color=not out.colour, highlight=False, emoji=False, soft_wrap=False)
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the terminal for the table meanwhile, and for nothing else."""
        with self._live:
            self._poller.register(self)
            self._draw()
            try:
                yield
            finally:
                self._poller.unregister(self)

    def fileno(self) -> int:
        """The keyboard."""
        return 0

    def handle_read(self) -> None:
        """Do what the keys say."""
        try:
            keys = os.read(0, 64)
        except OSError:
            keys = b""
        if not keys:  # the terminal is gone
            self.quit = True
            self._poller.modify(self, select.EPOLLERR)
        for key in keys.decode("ascii", "replace").lower():
            if key == "q":
                self.quit = True
            elif key == "p":
                self._table.paused = not self._table.paused
            elif key == "s":
                self._table.sort = SORTS[(SORTS.index(self._table.sort) + 1) % len(SORTS)]
            elif key == "r":
                self._reset()
        if not self.quit:
            self._draw()

    def tick(self) -> None:
        """Draw anew, if that is wanted."""
        if not self._table.paused:
            self._draw()

    def _draw(self) -> None:
        from rich.console import Group as Lines

        size = self._console.size
        self._live.update(Lines(*self._table.lines(size.width, size.height)), refresh=True)


# -- in a browser --------------------------------------------------------------------------------------------------

# A page of more rows is too much for a telephone. The rows that are left out are counted.
_MOST_ROWS = 200


class _Page:
    """The table as a page, with a new picture each second."""

    def __init__(self, measurement: _Measurement, address: tuple[str, int], poller: Poller) -> None:
        from ._web import Body, Events, Server

        page = Path(__file__).with_name("_top.html").read_bytes()
        # The page is one file, so its style and its script stand in it. It may load nothing but the events.
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        answer = Body("text/html; charset=utf-8", page, policy)
        self._measurement = measurement
        self._events: Events = Events()
        self.server: Server = Server(*address, {"/": lambda accept: answer, "/events": self._events}, poller=poller)
        self.tick()

    def tick(self) -> None:
        """Send the figures of the last second to the browsers."""
        measurement = self._measurement
        flows = measurement.meters.ordered()
        written = _sources(flows)
        self._events.send({
            "groups": [where(probe.group.address, probe.group.port) for probe in measurement.probes],
            "interfaces": measurement.interfaces,
            "seconds": round(measurement.seconds),
            "dropped": measurement.dropped,
            "others": measurement.meters.others,
            "left_out": max(0, len(flows) - _MOST_ROWS),
            "rows": [_web_row(flow, written[flow.key]) for flow in flows[:_MOST_ROWS]],
        })  # fmt: skip


def _web_row(flow: Flow, source: str) -> dict[str, object]:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 9)

    numbered = flow.numbering is not Numbering.NONE
    return {
        "group": where(flow.key.group, flow.key.port),
        "source": source,
        "interface": flow.key.interface,
        "kind": KINDS[flow.numbering] if numbered else "",
        "rate": round(flow.now.rate, 3),
        "bits": round(flow.now.bits),
        "loss": known(flow.loss),
        "jitter": known(flow.jitter),
        "rates": [round(cell.rate) for cell in flow.strip],
        "marks": flow.marks(),
    }


def _plain(out: Output, measurement: _Measurement | _Recorded, sort: str) -> None:
    """Write a line for each flow that sent something in the last second."""
    now = measurement.now
    for flow in measurement.meters.ordered(sort):
        cell = flow.now
        if not (cell.packets or cell.lost or cell.dropped):
            continue
        if out.json:
            out.event("flow", time_ns=now, **_identity(flow), **_numbers(cell))
            continue
        key = flow.key
        out.line(
            f"{time.strftime('%H:%M:%S', time.localtime(now // 10**9))} {printable(key.interface)}"
            f"  {where(key.source, key.source_port)} > {where(key.group, key.port)}"
            f"  {amount(cell.rate)} pkt/s  {amount(cell.bits)}bit/s  loss {percent(cell.loss)}"
            f"  jitter {span(flow.jitter)}" + (f"  kernel dropped {cell.dropped}" if cell.dropped else "")
        )


def _identity(flow: Flow) -> dict[str, object]:
    key = flow.key
    return {
        "group": key.group,
        "port": key.port,
        "source": key.source,
        "source_port": key.source_port,
        "interface": key.interface,
        "numbering": flow.numbering.value,
    }


def _numbers(cell: Cell) -> dict[str, object]:
    return {
        "seconds": round(cell.seconds, 6),
        "packets": cell.packets,
        "bytes": cell.bytes,
        "numbered": cell.numbered,
        "lost": cell.lost,
        "duplicates": cell.duplicates,
        "reordered": cell.reordered,
        "dropped": cell.dropped,
        "jitter": None if math.isnan(cell.jitter) else round(cell.jitter, 9),
    }


def _tell_totals(out: Output, measurement: _Measurement | _Recorded) -> None:
    """Write what came from each source in all the time."""
    rows = []
    flows = measurement.meters.ordered("bytes")
    written = _sources(flows)
    for flow in flows:
        if out.json:
            out.event(
                "total",
                **_identity(flow),
                packets=flow.packets,
                bytes=flow.bytes,
                numbered=flow.numbered,
                lost=flow.lost,
                duplicates=flow.duplicates,
                reordered=flow.reordered,
                restarts=flow.restarts,
                jitter=None if math.isnan(flow.jitter) else round(flow.jitter, 9),
                ttl=flow.ttl,
            )
            continue
        key, numbered = flow.key, flow.numbering is not Numbering.NONE
        rows.append((
            where(key.group, key.port), written[key], key.interface, KINDS[flow.numbering],
            str(flow.packets), amount(flow.bytes), str(flow.lost) if numbered else "-", percent(flow.loss),
            str(flow.duplicates) if numbered else "-", str(flow.reordered) if numbered else "-", span(flow.jitter),
        ))  # fmt: skip
    if rows:
        # What a narrow terminal has no room for is left out, the least interesting first.
        spare = ["TYPE", "REORDERED", "DUP", "JITTER", "BYTES", "LOST"]
        spare.insert(0 if len(measurement.interfaces) == 1 else 3, "IF")
        out.table(
            ("GROUP", "SOURCE", "IF", "TYPE", "PACKETS", "BYTES", "LOST", "LOSS", "DUP", "REORDERED", "JITTER"),
            rows,
            spare=spare,
            cut=2,
        )


# -- the command ---------------------------------------------------------------------------------------------------


@command(
    "top",
    json=True,
    examples=[
        "multicast top 239.1.2.3:5000 239.1.2.4:5000",
        "multicast top mdns ssdp -w 60 --report local.html",
        "multicast top 10.0.0.5@232.1.1.1:5000 --sort loss --json",
        "multicast top feed.pcapng --report feed.html",
    ],
)
@click.argument("places", metavar="[GROUP|FILE...]", nargs=-1, type=PLACE)
@click.option("--sort", type=click.Choice(SORTS), default="rate", show_default=True, help="What stands first.")
@click.option("--report", "path", metavar="F", type=click.Path(dir_okay=False),
              help="At the end write a page with charts of all the time to this file, HTML.")
@click.option("--web", metavar="[HOST:]PORT", type=ADDRESS,
              help="Show the table in a browser, too, at this address of this host; 127.0.0.1 unless HOST is given.")
@click.option("--metrics", metavar="[HOST:]PORT", type=ADDRESS,
              help="Answer requests of Prometheus for /metrics at this address; 127.0.0.1 unless HOST is given.")
@deadline_option("Stop after so many seconds.")
@interfaces_option("Listen on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
@key_option("Open the packets")
def top(
    out: Output,
    places: tuple[Group | CaptureFile, ...],
    sort: str,
    path: str | None,
    web: tuple[str, int] | None,
    metrics: tuple[str, int] | None,
    deadline: float | None,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    """Show rate, loss and jitter of each source of some groups, live.

    GROUP is written [SOURCE[,SOURCE]@]ADDRESS[:PORT][%IFACE], with IPv6 in brackets, or a name such as mdns; left out,
    it is 224.0.42.42:4242. What is lost is known where packets are numbered: RTP, MPEG transport streams, and multicast
    ping and bench. Into a pipe or a file goes a line for each source and second. A capture FILE is measured as if its
    packets arrived, or those alone for the GROUPs beside it, at once and by the times in it; - is standard input.

    Keys: q quits, p pauses the display, s sorts by the next column, r counts from 0 again. Exits with 1 when nothing
    arrived.
    """
    not_for_files = [
        ("--web", web), ("--metrics", metrics), ("-w", deadline), ("-i", interfaces), ("--key", seal)
    ]  # fmt: skip
    groups, files = apart(places, not_for_files)
    chosen = list(dict.fromkeys(groups or (Group(),)))
    report = None if path is None else Report(path)
    try:
        if files:
            return _read(out, files, groups, sort, report)
        return _run(out, chosen, sort, report, web, metrics, deadline, interfaces, seal)
    finally:
        if report is not None:
            report.close()


def _run(
    out: Output,
    groups: Sequence[Group],
    sort: str,
    report: Report | None,
    web: tuple[str, int] | None,
    metrics: tuple[str, int] | None,
    deadline: float | None,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    with Poller() as poller:
        screen: _Screen | None = None
        page: _Page | None = None

        def after() -> None:
            if page is not None:
                page.tick()
            if screen is not None:
                screen.tick()
            elif not live:
                _plain(out, measurement, sort)

        with typing() as editor:
            live = editor is not None and not out.json
            measurement = _Measurement(poller, groups, interfaces, seal, after)
            names = ", ".join(printable(name) for name in measurement.interfaces)
            hint = ", Ctrl-C to stop" if deadline is None else ""
            out.say(f"measuring {', '.join(map(str, groups))} on {names}{hint}")
            if web is not None:
                page = _Page(measurement, web, poller)
                out.say(f"the table is at {page.server.url}")
            if metrics is not None:
                from ._web import serve_metrics

                server = serve_metrics(metrics, measurement.probes, measurement.meters, poller=poller)
                out.say(f"metrics are at {server.url}")
            if live:
                screen = _Screen(out, Table(measurement, sort), poller, measurement.reset)
                with screen.shown():
                    finished = out.drive(poller, lambda: screen.quit, deadline)
            else:
                finished = out.drive(poller, limit=deadline)
        measurement.end_second()
        seconds = measurement.seconds
    if not live and seconds % _SECOND > 0.1:
        _plain(out, measurement, sort)
    if not _tell(out, measurement, seconds, report, measurement.probes):
        text = f"nothing arrived in {seconds:.3g} s."
        out.say(text + (f" Next: multicast doctor {groups[0]}" if "doctor" in COMMANDS else ""))
        return Exit.NO if finished else Exit.INTERRUPTED
    return Exit.YES


def _read(
    out: Output, files: Sequence[CaptureFile], groups: Sequence[Group], sort: str, report: Report | None
) -> Exit:
    """Measure capture files. On a terminal there are the totals alone, as nobody could read the seconds."""
    seconds_too = out.json or not sys.stdout.isatty()
    each_second = partial(_plain, out, sort=sort) if seconds_too else lambda measured: None
    measured = _Recorded(files, groups, each_second)
    if measured.cut:
        out.warn(f"it ends too early: {printable(measured.cut)}")
    if not _tell(out, measured, measured.seconds, report, ()):
        named = [shlex.quote(file.path) for file in files if file.path != "-"]
        text = f"no UDP packet {'for these groups ' if groups else ''}is in it."
        out.say(text + (f" Next: multicast info {' '.join(named)}" if named else ""))
        return Exit.NO
    return Exit.YES


def _tell(
    out: Output,
    measurement: _Measurement | _Recorded,
    seconds: float,
    report: Report | None,
    probes: Sequence[_Probe],
) -> int:
    """Write the totals and the report; return how many packets there were."""
    meters = measurement.meters
    packets = sum(flow.packets for flow in meters) + meters.others
    _tell_totals(out, measurement)
    if report is not None:
        report.write(meters, measurement.began_at, seconds, measurement.dropped, sys.argv[1:])
    if out.json:
        out.event(
            "summary",
            packets=packets,
            bytes=sum(flow.bytes for flow in meters),
            sources=len(meters),
            others=meters.others,
            forgotten=meters.forgotten,
            dropped=measurement.dropped,
            seconds=round(seconds, 6),
            **counted(*probes),
        )
    unopened = not_opened(*probes)
    if unopened:
        out.say(unopened)
    if packets:
        text = f"{plural(packets, 'packet')} of {plural(len(meters), 'source')} in {seconds:.1f} s"
        text += f"; kernel dropped {measurement.dropped}"
        if measurement.dropped:
            text += ", as they were read too slowly, and they count as lost where packets are numbered"
        if meters.others:
            text += f"; {plural(meters.others, 'packet')} of more sources than are kept apart"
        out.say(text + (f"; the charts are in {printable(report.path)}" if report is not None else ""))
    return packets
