"""The commands `send`, `listen` and `interfaces`."""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import click

from multicast.batch import Address
from multicast.errors import MulticastError
from multicast.interfaces import interfaces, memberships, resolve, route
from multicast.listeners import MulticastListener
from multicast.poller import Poller
from multicast.senders import Multicaster, SenderStatistics
from multicast.sockets import Group, open_sender

from . import COMMANDS
from .commands import (
    GROUP,
    RATE,
    Rate,
    command,
    count_option,
    deadline_option,
    destination,
    interface_option,
    interfaces_option,
    ttl_option,
)
from .failures import BadData, Exit, in_words, wording
from .output import Output, payload, plural, printable, quoted, shown, where

# -- send ----------------------------------------------------------------------------------------------------------

_CHUNK = 65536


class _Sender(Multicaster):
    """Sends what is given, or read from a file or a pipe."""

    # The input waits where it is read, so there is nothing to be gained by asking later.
    _NOTHING = 0.0

    def __init__(self, out: Output, packets: Iterator[bytes | None], **options: Any) -> None:
        super().__init__(**options)
        self._out = out
        self._given = packets
        self._told_after = 0  # how many packets were sent when it was told that the network is gone

    def __iter__(self) -> Iterator[bytes | None]:
        return self._given

    def handle_error(self, error: Exception) -> None:
        """Say once in each outage that the network is gone, if it was there before; all else ends the command."""
        sent = self.statistics().packets
        if error is not self.outage or not sent:
            raise error
        if self._told_after != sent:
            self._told_after = sent
            text = in_words(error, self._out)
            self._out.fail(f"{text} Waiting until the network is back; {plural(sent, 'packet')} sent so far.")


class _Input:
    """A file or pipe that is read as packets, in pieces, whatever its size.

    After each piece comes a None: what was cut from it is sent before the next piece is waited for, which may be long
    in coming.
    """

    def __init__(self, out: Output, path: str, as_hex: bool) -> None:
        self._out = out
        self._name = "standard input" if path == "-" else path
        self._hex = as_hex
        self._fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._fd:
            os.close(self._fd)

    def _read(self) -> bytes:
        with self._out.reading_input():
            try:
                return os.read(self._fd, _CHUNK)
            except OSError as error:
                error.filename = self._name
                raise

    def lines(self, longest: int) -> Iterator[bytes | None]:
        """One packet for each line, without its end."""
        rest, number = b"", 0
        while chunk := self._read():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                yield self._checked(line, number, longest)
            if len(rest) > 3 * longest:  # even in hexadecimal digits with spaces between
                self._checked(rest, number + 1, 0)
            yield None
        if rest:
            yield self._checked(rest, number + 1, longest)

    def pieces(self, size: int) -> Iterator[bytes | None]:
        """Packets of `size` bytes; the last may be shorter."""
        rest = b""
        while chunk := self._read():
            rest += chunk
            for start in range(0, len(rest) - size + 1, size):
                yield rest[start : start + size]
            rest = rest[len(rest) - len(rest) % size :]
            yield None
        if rest:
            yield rest

    def _checked(self, line: bytes, number: int, longest: int) -> bytes:
        where = f"{self._name}, line {number}"
        if self._hex and longest:
            line = _unhex(line.decode("ascii", "replace"), lambda text: BadData(f"{where}: {text}"))
        if len(line) > longest:
            raise BadData(f"{where} does not fit in one UDP packet; `--size 1316` cuts by bytes instead of by lines")
        return line


def _unhex(digits: str, problem: Callable[[str], Exception]) -> bytes:
    """Return the bytes that hexadecimal digits stand for; blanks, colons and 0x between them do not count."""
    plain = digits.lower().replace("0x", "").replace(":", "").replace(",", "")
    try:
        return bytes.fromhex(plain)
    except ValueError:
        raise problem(f"{quoted(digits[:60])} is not bytes in hexadecimal digits, such as 02 00 ff 10") from None


@command(
    "send",
    json=True,
    examples=[
        "multicast send 239.1.2.3:5000 hello",
        "multicast send '[ff15::1]:5000%eth0' --hex '02 00 ff 10' -c 10 --interval 0.5",
        "tail -f log | multicast send 239.1.2.3:5000 -",
    ],
)
@click.argument("words", metavar="[GROUP] [TEXT...]", nargs=-1)
@click.option("-x", "--hex", "as_hex", is_flag=True, help="TEXT, or each line, is bytes in hexadecimal digits.")
@click.option("-f", "--file", "path", metavar="F", help="Send a packet for each line of F; - is standard input.")
@click.option("-s", "--size", type=click.IntRange(1, 65507), metavar="N",
              help="Send the input as it is, in packets of N bytes, instead of by lines.")
@count_option("Send TEXT N times, or at most N packets of the input.")
@click.option("--interval", type=click.FloatRange(min=0), metavar="S",
              help="Seconds from one packet to the next. Without -c, TEXT is sent until Ctrl-C.")
@click.option("-b", "--rate", type=RATE, metavar="RATE",
              help="Send so fast: 10m is 10 million bits a second of payload, 500pps is 500 packets a second."
              " Without -c, TEXT is sent until Ctrl-C.")
@ttl_option
@interface_option("Send by this interface: a name, an index or an address.")
@click.option("--source-ip", "--source", "source_ip", metavar="A", help="Send from this address of this host.")
@click.option("--source-port", type=click.IntRange(1, 65535), metavar="PORT", help="Send from this port.")
@click.option("--no-loopback", is_flag=True, help="Listeners on this host do not get the packets.")
def send(
    out: Output,
    words: tuple[str, ...],
    as_hex: bool,
    path: str | None,
    size: int | None,
    count: int | None,
    interval: float | None,
    rate: Rate | None,
    ttl: int,
    interface: str | None,
    source_ip: str | None,
    source_port: int | None,
    no_loopback: bool,
) -> Exit:
    """Send packets to a group.

    GROUP is written [SOURCE@]ADDRESS[:PORT][%IFACE], with IPv6 in brackets, or a name such as mdns; left out, it is
    224.0.42.42:4242. The words of TEXT are joined by spaces and sent as one packet; - is standard input, which sends
    one packet for each line, and so is no TEXT at all, unless standard input is a terminal.

    A single argument is a GROUP if it can be one, otherwise the TEXT. To send a text that looks like a group to the
    default group, write an empty GROUP before it: multicast send '' mdns
    """
    group, text = destination(words, path is not None)
    if list(text) == ["-"] and path is None:
        path, text = "-", ()
    if path is None and not text:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError(f"there is nothing to send to {group}: give a TEXT, or --file, or - and a pipe")
        path = "-"
    if path is not None and text:
        raise click.UsageError(f"either a TEXT or --file, not both; {quoted(' '.join(text))} is left over")
    if size is not None and (path is None or as_hex):
        raise click.UsageError("--size cuts a file or a pipe by bytes, so it goes with --file or -, and without --hex")
    if rate is not None and interval is not None:
        raise click.UsageError("--rate and --interval both say how fast to send; give one of them")
    if source_ip is None and len(group.sources) == 1:
        source_ip = group.sources[0]  # who listens to SOURCE@GROUP hears nothing else
    if interface is None and group.interfaces:
        if len(group.interfaces) > 1:
            raise click.UsageError(f"packets leave by one interface, so name one, not {','.join(group.interfaces)}")
        (interface,) = group.interfaces
    if rate is not None and rate.packets is not None:
        interval = 1 / rate.packets

    given: _Input | None = None
    packets: Iterator[bytes | None]
    if path is None:
        packet = os.fsencode(" ".join(text))
        if as_hex:
            packet = _unhex(packet.decode("ascii", "replace"), lambda text: click.BadParameter(text, param_hint="TEXT"))
        endless = count is None and bool(interval or rate)
        packets = repeat(packet) if endless else repeat(packet, count or 1)
    else:
        given = _Input(out, path, as_hex)
        endless = False
        packets = given.lines(group.longest) if size is None else given.pieces(size)
        if count is not None:
            packets = _first(packets, count)
    began = time.monotonic()
    try:
        with Poller() as poller:
            sender = _Sender(
                out,
                packets,
                ip=group.address,
                port=group.port,
                ttl=ttl,
                interface=interface,
                source_ip=source_ip,
                source_port=source_port or 0,
                loopback=not no_loopback,
                rate=None if rate is None else rate.bits,
                interval=interval or 0,
                poller=poller,
            )
            by, source = _way(group, ttl, interface, source_ip)
            finished = None
            try:
                finished = out.drive(poller, lambda: sender.closed, writes=False)
            finally:
                sent = sender.statistics()
                if finished is not None or sent.packets:  # what goes wrong before the first packet is told alone
                    _tell(out, sent, group, by, source, ttl, time.monotonic() - began)
    finally:
        if given is not None:
            given.close()
    return Exit.YES if finished or (endless and sent.packets) else Exit.INTERRUPTED


def _tell(
    out: Output, sent: SenderStatistics, group: Group, by: str | None, source: str | None, ttl: int, seconds: float
) -> None:
    """Say what was sent, with what is known of its way."""
    if out.json:
        out.event(
            "summary",
            packets=sent.packets,
            bytes=sent.bytes,
            group=group.address,
            port=group.port,
            source=source,
            interface=by,
            ttl=ttl,
            seconds=round(seconds, 6),
        )
        return
    text = f"sent {plural(sent.packets, 'packet')}, {plural(sent.bytes, 'byte')}"
    text += f", to {where(group.address, group.port)}"
    if group.needs_interface and by:
        text += f"%{printable(by)}"
    if source:
        text += f" from {source}"
    if by:
        text += f" by {printable(by)}"
    out.say(f"{text}, ttl {ttl}")


def _first(packets: Iterator[bytes | None], count: int) -> Iterator[bytes | None]:
    """Return packets up to the given number of them, with the pauses between."""
    for packet in packets:
        yield packet
        if packet is not None:
            count -= 1
            if not count:
                return


def _way(group: Group, ttl: int, interface: str | None, source_ip: str | None) -> tuple[str | None, str | None]:
    """Return the interface that packets to `group` leave by and the address they come from, where we know them.

    `open_sender` says what decides. The address is asked of a socket like the sender's, connected, which sends nothing;
    where nothing was asked for, the routes tell the interface, as they are now.
    """
    try:
        probe, to = open_sender(group, ttl, interface=interface, source_ip=source_ip)
        with probe:
            probe.connect(to)
            source = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
        if ttl == 0 or (interface is None and source.is_loopback):
            by = next((one.name for one in interfaces() if one.loopback), None)
        elif interface is not None or source_ip is not None:
            by = resolve(interface or source_ip or "").name
        else:
            found = route(group.address)
            by = None if found is None else found.interface
    except (MulticastError, OSError):
        return None, source_ip  # sending has told what is wrong, or will
    return by, None if source.is_unspecified else str(source)


# -- listen --------------------------------------------------------------------------------------------------------

# What a slow terminal or disk may be behind before the kernel drops packets: two seconds of a 16 Mbit/s stream. The
# kernel may grant less; what it drops is counted and reported.
_RCVBUF = 4 << 20
# How long that may take to be read when it is time to stop, in seconds.
_LAST_LOOK = 0.5
# Forged sources must not fill the memory; nobody needs to tell more apart.
_MOST_SOURCES = 100_000


class _Listening:
    """What one run of `listen` has seen, over all its groups."""

    def __init__(self, out: Output, form: str, count: int | None) -> None:
        self._out = out
        self._form = form
        self._count = count
        self.width = 0
        self.packets = 0
        self.bytes = 0
        self.sources: set[str] = set()
        self.began = time.monotonic()
        self._second, self._clock = 0, ""

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
        form = self._form
        if form == "raw":
            self._out.raw(packet)
        elif form == "json":
            self._write_json(packet, addr, port)
        else:
            self._write_line(packet, addr, port, packet.hex(" ") if form == "hex" else shown(packet))
        return self.enough

    def _write_json(self, packet: bytes, addr: Address, port: int) -> None:
        self._out.event(
            "packet",
            time_ns=addr.timestamp or time.time_ns(),
            interface=addr.interface,
            source=addr.host,
            source_port=addr.port,
            group=addr.group,
            port=port,
            ttl=addr.ttl,
            length=len(packet),
            **payload(packet),
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
    ],
)
@click.argument("groups", metavar="[GROUP...]", nargs=-1, type=GROUP)
@click.option("--filter", "expression", metavar="REGEX",
              help="Only packets that match this regular expression at their start; .* first finds it anywhere.")
@click.option("-x", "--hex", "as_hex", is_flag=True, help="Show all bytes of each packet in hexadecimal digits.")
@click.option("--raw", is_flag=True, help="Write the payloads to standard output, and nothing else.")
@count_option("Stop after N packets.")
@deadline_option("Stop after so many seconds.")
@click.option("--expect", type=click.IntRange(min=1), metavar="N",
              help="Exit with 1 when fewer than N packets came. With neither -c nor -w, stop when they have come.")
@interfaces_option("Listen on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
def listen(
    out: Output,
    groups: tuple[Group, ...],
    expression: str | None,
    as_hex: bool,
    raw: bool,
    count: int | None,
    deadline: float | None,
    expect: int | None,
    interfaces: list[str] | None,
) -> Exit:
    """Print what arrives from groups, one line for each packet.

    GROUP is written [SOURCE[,SOURCE]@]ADDRESS[:PORT][%IFACE], with IPv6 in brackets, or a name: ssdp mdns llmnr wsd
    knx coap ptp sap lcm sacn/N. Left out, it is 224.0.42.42:4242. URLs as VLC and ffmpeg take them, such as
    udp://@239.1.1.1:5000, are understood.
    """
    if raw + as_hex + out.json > 1:
        raise click.UsageError("--raw, --hex and --json are three ways to write a packet; choose one")
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw writes what peers send as it is, and no terminal should get that: add > FILE")
    form = "raw" if raw else "hex" if as_hex else "json" if out.json else "line"
    wanted = expect if count is None and deadline is None else count
    listening = _Listening(out, form, wanted)
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
    if out.json:
        out.event(
            "summary",
            packets=listening.packets,
            bytes=listening.bytes,
            sources=len(listening.sources),
            seconds=round(seconds, 6),
            dropped=dropped,
            filtered=filtered,
        )
    if listening.packets or dropped:
        out.say(_summary(listening, seconds, filtered, dropped))
    else:
        out.say(_nothing(groups, seconds, filtered, expression))
    if listening.packets >= (1 if expect is None else expect):
        return Exit.YES
    if expect is not None and listening.packets:
        out.say(f"{plural(expect, 'packet')} {'was' if expect == 1 else 'were'} expected")
    return Exit.NO if finished else Exit.INTERRUPTED


def _finish(poller: Poller, printers: Sequence[_Printer]) -> None:
    """Take what had arrived when it was time to stop, and not what comes meanwhile: a flood must not keep us."""
    until = time.monotonic() + _LAST_LOOK
    seen = -1
    while time.monotonic() < until:
        poller.poll()
        now = sum(printer.statistics().packets for printer in printers)
        if now == seen:
            break
        seen = now


def _summary(listening: _Listening, seconds: float, filtered: int, dropped: int) -> str:
    text = (
        f"{plural(listening.packets, 'packet')}, {plural(listening.bytes, 'byte')},"
        f" {plural(len(listening.sources), 'source')}, {seconds:.1f} s;"
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


# -- interfaces ----------------------------------------------------------------------------------------------------


@command(
    "interfaces",
    json=True,
    examples=["multicast interfaces", "multicast interfaces --json", "multicast interfaces | grep 239.1.2.3"],
)
def show_interfaces(out: Output) -> Exit:
    """Show the network interfaces of this host, and which groups are joined there.

    A group that more than one socket has joined is followed by how many. The kernel joins some by itself, such as
    224.0.0.1 and ff02::1. What a narrow terminal has no room for is left out; a pipe and --json get all of it.
    """
    joined = memberships()
    rows = []
    for one in interfaces():
        groups = [(each.group, each.users) for each in joined if each.interface == one.name]
        if out.json:
            out.event(
                "interface",
                index=one.index,
                name=one.name,
                addresses=one.addresses,
                up=one.up,
                carrier=one.running,
                multicast=one.multicast or one.loopback,
                loopback=one.loopback,
                mtu=one.mtu,
                groups=[{"group": group, "users": users} for group, users in groups],
            )
            continue
        state = "down" if not one.up else "up" if one.running else "no carrier"
        able = "yes" if one.multicast or one.loopback else "no"
        texts = [group if users == 1 else f"{group} x{users}" for group, users in groups]
        for number in range(max(1, len(one.addresses), len(texts))):
            about = (str(one.index), one.name, state, able, str(one.mtu)) if number == 0 else ("",) * 5
            rows.append((*about, *("".join(column[number : number + 1]) for column in (one.addresses, texts))))
    if not out.json:
        head = ("INDEX", "NAME", "STATE", "MULTICAST", "MTU", "ADDRESSES", "GROUPS JOINED")
        out.table(head, rows, spare=("INDEX", "MTU", "MULTICAST"), otherwise=lambda: _stacked(out, rows))
    return Exit.YES


def _stacked(out: Output, rows: Iterable[Sequence[str]]) -> None:
    """Write the rows of the table one below the other, for a terminal that is narrow or addresses that are long."""
    groups: list[str] = []
    for _, name, state, able, _, address, group in rows:
        if name:
            _write_joined(out, groups)
            text = f"{printable(name)}  {state}" + ("" if able == "yes" else ", no multicast")
            out.line(out.style(text, "bold"))
            groups = []
        if address:
            out.line(f"  {address}")
        if group:
            groups.append(group)
    _write_joined(out, groups)


def _write_joined(out: Output, groups: Sequence[str]) -> None:
    for group in groups:
        out.line(f"  joined {group}")
