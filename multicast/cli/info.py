"""The command `info`: what capture files hold."""

from __future__ import annotations

import math
import time

import click

from multicast import capture
from multicast.measure import Flow, FlowKey, Meters, Numbering, decode

from ._app import command
from ._captures import capture_file
from ._errors import Exit
from ._input import named
from ._output import Output, plural, printable, where
from .top import KINDS, amount, percent, span

_SECOND = 1_000_000_000


class _File:
    """What one file holds, counted as `multicast top` counts the wire."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.meters = Meters()
        self.packets = self.bytes = self.truncated = 0
        self.first = self.last = 0
        self.protocols: dict[FlowKey, str] = {}  # by the first packet of a flow
        with capture.Reader(capture_file(path), partial=True) as reader:
            for packet in reader:
                self._take(packet)
            self.counts, self.dropped, self.comments = reader.counts, reader.dropped, list(reader.comments)
            self.cut = reader.cut

    def _take(self, packet: capture.Packet) -> None:
        if not self.packets:
            self.first = self.last = packet.timestamp
        self.first = min(self.first, packet.timestamp)
        self.last = max(self.last, packet.timestamp)
        self.packets += 1
        self.bytes += len(packet.payload)
        self.truncated += packet.truncated
        key = FlowKey(packet.group, packet.port, *packet.source, packet.interface or "?")
        flow = self.meters.take(key, packet.payload, packet.timestamp / _SECOND, packet.ttl)
        if flow is not None and flow.packets == 1:
            self.protocols[key] = (decode(packet.payload, packet.port) or "").partition(" ")[0]

    def kind(self, flow: Flow) -> str:
        """Return what the packets of a flow are, for people; - where it is not known."""
        return self.protocols.get(flow.key) or KINDS[flow.numbering]

    @property
    def seconds(self) -> float:
        return (self.last - self.first) / _SECOND


@command(
    "info",
    json=True,
    examples=[
        "multicast info feed.pcapng",
        "multicast info day-00001.pcapng day-00002.pcapng",
        "multicast info feed.pcapng --json",
    ],
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True)
def info(out: Output, paths: tuple[str, ...]) -> Exit:
    """Say what capture files hold: each source of each group, its rate, and what is missing by its numbers.

    Packets are counted as `multicast top` counts those on the wire: RTP, MPEG transport streams, MoldUDP64 and the
    probes of `multicast ping` are numbered. FILE may be -, standard input. A file that ends too early is told as far as
    it goes.
    """
    for path in paths:
        capture_file(path)
    for number, path in enumerate(paths):
        file = _File(path)
        if number and not out.json:
            out.line()
        _tell(out, file)
    return Exit.YES


def _stamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, _SECOND)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"


def _tell(out: Output, file: _File) -> None:
    flows = file.meters.ordered("bytes")
    if out.json:
        for flow in flows:
            out.event("flow", file=file.path, kind=file.kind(flow), **_fields(flow))
        out.event(
            "file",
            file=file.path,
            packets=file.packets,
            bytes=file.bytes,
            sources=len(flows),
            others=file.meters.others,
            first_ns=file.first if file.packets else None,
            last_ns=file.last if file.packets else None,
            truncated=file.truncated,
            fragments=file.counts.fragments,
            malformed=file.counts.malformed,
            not_udp=file.counts.other,
            oversize=file.counts.oversize,
            links={str(link): number for link, number in file.counts.links.items()},
            cut=file.cut,
            dropped=file.dropped,
            comments=file.comments,
        )
        return
    out.line(f"{named(file.path, 'standard input')}: {plural(file.packets, 'packet')}, {plural(file.bytes, 'byte')}")
    if file.packets:
        out.line(f"{_stamp(file.first)} to {_stamp(file.last)}, {file.seconds:.3f} s")
    rows = []
    for flow in flows:
        key, numbered = flow.key, flow.numbering is not Numbering.NONE
        seconds = flow.last - flow.first
        rows.append((
            where(key.group, key.port), where(key.source, key.source_port), key.interface, printable(file.kind(flow)),
            str(flow.packets), amount(flow.bytes), amount(flow.packets / seconds) if seconds else "-",
            str(flow.lost) if numbered else "-", percent(flow.loss), str(flow.duplicates) if numbered else "-",
            span(flow.jitter),
        ))  # fmt: skip
    if rows:
        head = ("GROUP", "SOURCE", "IF", "TYPE", "PACKETS", "BYTES", "PKT/S", "LOST", "LOSS", "DUP", "JITTER")
        out.table(head, rows, spare=("TYPE", "DUP", "JITTER", "IF", "BYTES", "PKT/S"))
    notes = [
        f"{number} {what}"
        for number, what in (
            (file.truncated, "cut short in the file"),
            (file.counts.fragments, "in fragments that are not complete"),
            (file.counts.malformed, "malformed"),
            (file.counts.other - sum(file.counts.links.values()), "that are not UDP"),
            *((number, f"of {capture.link_name(link)}, which cannot be read") for link, number in
              file.counts.links.items()),
            (file.counts.oversize, "longer than the file says"),
            (file.dropped, "dropped when it was recorded"),
            (file.meters.others, "of more sources than are kept apart"),
        )
        if number
    ]
    if notes:
        out.line(f"packets: {', '.join(notes)}")
    if file.cut:
        out.line(f"it ends too early: {printable(file.cut)}")


def _fields(flow: Flow) -> dict[str, object]:
    key = flow.key
    return {
        "group": key.group,
        "port": key.port,
        "source": key.source,
        "source_port": key.source_port,
        "interface": key.interface,
        "numbering": flow.numbering.value,
        "packets": flow.packets,
        "bytes": flow.bytes,
        "seconds": round(flow.last - flow.first, 6),
        "lost": flow.lost,
        "duplicates": flow.duplicates,
        "reordered": flow.reordered,
        "jitter": None if math.isnan(flow.jitter) else round(flow.jitter, 9),
        "ttl": flow.ttl,
    }
