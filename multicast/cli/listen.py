"""The command `listen`: print what arrives from groups."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from multicast.batch import Address
from multicast.filters import predicate
from multicast.listeners import MulticastListener
from multicast.measure import FlowKey, Meters, Numbering, decode, rtp_payload
from multicast.poller import Poller
from multicast.sockets import Group

from . import COMMANDS
from ._app import (
    command,
    count_option,
    deadline_option,
    interfaces_option,
    strip_rtp_option,
    tell_rtp,
)
from ._captures import PLACE, CaptureFile, apart, as_if_they_arrived
from ._errors import Exit, wording
from ._output import Output, payload, plural, printable, quoted, shown, where
from ._sealing import counted, key_option, not_opened

if TYPE_CHECKING:
    from multicast.sealed import Seal

# What a slow terminal or disk may be behind before the kernel drops packets: two seconds of a 16 Mbit/s stream. The
# kernel may grant less; what it drops is counted and reported.
_RCVBUF = 4 << 20
# How long that may take to be read when it is time to stop, in seconds.
_LAST_LOOK = 2.0
# Forged sources must not fill the memory; nobody needs to tell more apart.
_MOST_SOURCES = 100_000


class _Listening:
    """What one run of `listen` has seen, over all its groups."""

    def __init__(self, out: Output, form: str, count: int | None, strip_rtp: bool) -> None:
        self._out = out
        self._form = form
        self._strip_rtp = strip_rtp
        self._count = count
        self.width = 0
        self.packets = 0
        self.bytes = 0
        self.sources: set[str] = set()
        self.began = time.monotonic()
        self._second, self._clock = 0, ""
        self._meters = Meters()

    @property
    def lost(self) -> int | None:
        """How many numbers did not come, of sources whose packets are numbered; None where none are."""
        numbered = [flow for flow in self._meters if flow.numbering is not Numbering.NONE]
        return sum(flow.lost for flow in numbered) if numbered else None

    @property
    def enough(self) -> bool:
        return self._count is not None and self.packets >= self._count

    def handle(self, packet: bytes, addr: Address, port: int) -> bool:
        """Show a packet; return whether it was the last that was wanted."""
        if self.enough:
            return True
        self.packets += 1
        self.bytes += len(packet)
        if len(self.sources) < _MOST_SOURCES:
            self.sources.add(addr.host)
        key = FlowKey(addr.group or "", port, addr.host, addr.port, addr.interface or "")
        flow = self._meters.take(key, packet, (addr.timestamp or time.time_ns()) / 1e9)
        form = self._form
        said: str | None = None
        if form in ("line", "json"):
            said = decode(packet, port, Numbering.NONE if flow is None else flow.numbering)
        if self._strip_rtp:
            stripped = rtp_payload(packet)
            packet = packet if stripped is None else stripped
        if form == "raw":
            self._out.raw(packet)
        elif form == "json":
            self._write_json(packet, addr, port, said)
        elif form == "hex":
            self._write_line(packet, addr, port, packet.hex(" "))
        else:
            self._write_line(packet, addr, port, shown(packet) if said is None else printable(said))
        return self.enough

    def write_summary(self, seconds: float, filtered: int, dropped: int, **more: object) -> None:
        """Write the event at the end of all, where JSON is written."""
        if self._out.json:
            self._out.event(
                "summary",
                packets=self.packets,
                bytes=self.bytes,
                sources=len(self.sources),
                seconds=round(seconds, 6),
                dropped=dropped,
                filtered=filtered,
                lost=self.lost,
                **more,
            )

    def _write_json(self, packet: bytes, addr: Address, port: int, said: str | None) -> None:
        self._out.event(
            "packet",
            time_ns=addr.timestamp or time.time_ns(),
            interface=addr.interface,
            source=addr.host,
            source_port=addr.port,
            group=addr.group,
            port=port,
            ttl=addr.ttl,
            dscp=addr.dscp,
            length=len(packet),
            **payload(packet),
            **({} if said is None else {"decoded": said}),
        )

    def _write_line(self, packet: bytes, addr: Address, port: int, text: str) -> None:
        second, nanoseconds = divmod(addr.timestamp or time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%H:%M:%S", time.localtime(second))
        style = self._out.style
        when = style(f"{self._clock}.{nanoseconds // 1000:06d}", "dim")
        name = printable(addr.interface or "?").ljust(self.width)
        way = f"{style(where(addr.host, addr.port), 'cyan')} > {where(addr.group or '?', port)}"
        self._out.line(f"{when} {name}  {way}  ttl {addr.ttl}  len {len(packet)}  {text}".rstrip())


class _Printer(MulticastListener):
    """Listens to one of the groups."""

    def __init__(self, listening: _Listening, **options: Any) -> None:
        super().__init__(**options)
        self._listening = listening

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        return self._listening.handle(packet, addr, self.group.port)

    @property
    def joined(self) -> str:
        """Where the group is joined, for people."""
        places = []
        for interface in self.interfaces:
            address = interface.ipv6 if ":" in self.group.address else interface.ipv4
            places.append(printable(interface.name) + (f" ({address})" if address else ""))
        sources = ",".join(self.group.sources) + "@" if self.group.sources else ""
        return f"joined {sources}{self.group.address} on {', '.join(places)}; waiting on port {self.group.port}"


@command(
    "listen",
    json=True,
    examples=[
        "multicast listen 239.1.2.3:5000",
        "multicast listen 10.0.0.5@232.1.1.1:5000 -i eth0 --raw > stream.ts",
        "multicast listen ssdp mdns -w 10 --expect 1 --json",
        "multicast listen feed.pcapng 239.1.2.3:5000",
    ],
)
@click.argument("places", metavar="[GROUP|FILE...]", nargs=-1, type=PLACE)
@click.option("--filter", "expression", metavar="REGEX",
              help="Only packets that match this regular expression at their start; .* first finds it anywhere.")
@click.option("-x", "--hex", "as_hex", is_flag=True, help="Show all bytes of each packet in hexadecimal digits.")
@click.option("--raw", is_flag=True, help="Write the payloads to standard output, and nothing else.")
@strip_rtp_option
@count_option("Stop after N packets.")
@deadline_option("Stop after so many seconds.")
@click.option("--expect", type=click.IntRange(min=1), metavar="N",
              help="Exit with 1 when fewer than N packets came. With neither -c nor -w, stop when they have come.")
@interfaces_option("Listen on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
@key_option("Open the packets")
def listen(
    out: Output,
    places: tuple[Group | CaptureFile, ...],
    expression: str | None,
    as_hex: bool,
    raw: bool,
    strip_rtp: bool,
    count: int | None,
    deadline: float | None,
    expect: int | None,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    """Print what arrives from groups, one line for each packet.

    GROUP is written [SOURCE[,SOURCE]@]ADDRESS[:PORT][%IFACE], with IPv6 in brackets, or a name: ssdp mdns llmnr wsd
    knx coap ptp sap lcm sacn/N. Left out, it is 224.0.42.42:4242. URLs as VLC and ffmpeg take them, such as
    udp://@239.1.1.1:5000, are understood. What is well known is decoded: RTP, MPEG-TS, DNS, SSDP, SAP, PTP, sACN, LCM,
    MoldUDP64; -x shows the bytes. A capture FILE is printed as if its packets arrived, or those alone for the
    GROUPs beside it; - is standard input.
    """
    if raw + as_hex + out.json > 1:
        raise click.UsageError("--raw, --hex and --json are three ways to write a packet; choose one")
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw writes what peers send as it is, and no terminal should get that: add > FILE")
    form = "raw" if raw else "hex" if as_hex else "json" if out.json else "line"
    wanted = expect if count is None and deadline is None else count
    listening = _Listening(out, form, wanted, strip_rtp)
    groups, files = apart(places, [("-w", deadline), ("-i", interfaces), ("--key", seal)])
    tell_rtp(out, strip_rtp)
    if files:
        return _print_files(out, listening, files, groups, expression, expect)
    with Poller() as poller:
        with wording("--filter"):
            printers = [
                _Printer(
                    listening,
                    filter=expression,
                    ip=group.address,
                    port=group.port,
                    mtu=65535,
                    interface=interfaces or list(group.interfaces) or None,
                    sources=group.sources,
                    rcvbuf=_RCVBUF,
                    details=True,
                    seal=seal,
                    poller=poller,
                )
                for group in dict.fromkeys(groups or (Group(),))
            ]
        names = [printable(interface.name) for printer in printers for interface in printer.interfaces]
        listening.width = max(map(len, names))
        hint = ", Ctrl-C to stop" if wanted is None and deadline is None else ""
        listening.began = time.monotonic()
        finished = out.drive(
            poller,
            lambda: listening.enough,
            deadline,
            ready=lambda: out.say("\n".join(printer.joined + hint for printer in printers)),
        )
        seconds = time.monotonic() - listening.began
        _finish(poller, printers)
        counts = [printer.statistics() for printer in printers]
    dropped = sum(one.dropped for one in counts)
    filtered = sum(one.filtered for one in counts)
    listening.write_summary(seconds, filtered, dropped, **counted(*printers))
    unopened = not_opened(*printers)
    if unopened:
        out.say(unopened)
    if listening.packets or dropped:
        out.say(_summary(listening, seconds, filtered, dropped))
    elif not unopened:
        out.say(_nothing(groups, seconds, filtered, expression))
    if listening.packets >= (1 if expect is None else expect):
        return Exit.YES
    if expect is not None and listening.packets:
        out.say(f"{plural(expect, 'packet')} {'was' if expect == 1 else 'were'} expected")
    return Exit.NO if finished else Exit.INTERRUPTED


def _print_files(
    out: Output,
    listening: _Listening,
    files: Sequence[CaptureFile],
    groups: Sequence[Group],
    expression: str | None,
    expect: int | None,
) -> Exit:
    """Print the packets of capture files as if they arrived."""
    with wording("--filter"):
        accept = predicate(expression)
    filtered = 0
    first: int | None = None
    last = 0
    with as_if_they_arrived(files, groups) as (series, packets):
        for packet in packets:
            _, source, group, _, timestamp, interface, ttl, _, dscp = packet
            addr = Address(source, group, interface, ttl, timestamp, packet.truncated, dscp)
            if accept is not None and not accept(packet.payload, addr):
                filtered += 1
                continue
            first = packet.timestamp if first is None else first
            last = packet.timestamp
            if listening.handle(packet.payload, addr, packet.port):
                break
        dropped, cut = series.dropped, series.cut
    seconds = 0.0 if first is None else (last - first) / 1e9
    listening.write_summary(seconds, filtered, dropped)
    if cut:
        out.warn(f"it ends too early: {printable(cut)}")
    out.say(_summary(listening, seconds, filtered, dropped))
    return Exit.YES if listening.packets >= (1 if expect is None else expect) else Exit.NO


def _finish(poller: Poller, printers: Sequence[_Printer]) -> None:
    """Take what had arrived when it was time to stop, and not what comes meanwhile: a flood must not keep us."""
    until = time.monotonic() + _LAST_LOOK
    seen, pending = -1, True
    while time.monotonic() < until:
        # A poll that delivers the rest of a batch may read nothing new, so what was pending before it counts too.
        before, pending = pending, any(printer.pending for printer in printers)
        poller.poll()
        now = sum(printer.statistics().packets for printer in printers)
        if now == seen and not before and not pending:
            break
        seen = now


def _summary(listening: _Listening, seconds: float, filtered: int, dropped: int) -> str:
    text = (
        f"{plural(listening.packets, 'packet')}, {plural(listening.bytes, 'byte')},"
        f" {plural(len(listening.sources), 'source')}, {seconds:.1f} s;"
        + (f" {listening.lost} lost by their numbers," if listening.lost is not None else "")
        + (f" {plural(filtered, 'packet')} refused by the filter," if filtered else "")
        + f" kernel dropped {dropped}"
    )
    if dropped:
        text += ". They came faster than they could be written; a larger net.core.rmem_max helps over short peaks"
    return text


def _nothing(groups: Sequence[Group], seconds: float, filtered: int, expression: str | None) -> str:
    if filtered:
        return f"{plural(filtered, 'packet')} arrived in {seconds:.1f} s, and none matched {quoted(expression or '')}."
    text = f"nothing arrived in {seconds:.3g} s."
    if "doctor" in COMMANDS:
        text += f" Next: multicast doctor {groups[0] if groups else Group()}"
    return text


