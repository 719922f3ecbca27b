"""The command `send`: packets to a group, from the command line, a file or standard input."""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import click

from multicast.errors import MulticastError
from multicast.interfaces import interfaces, resolve, route
from multicast.poller import Poller
from multicast.senders import Multicaster, SenderStatistics
from multicast.sockets import Group, open_sender

from ._app import (
    RATE,
    Rate,
    command,
    count_option,
    destination,
    interface_option,
    ttl_option,
)
from ._errors import Exit, in_words
from ._input import Input, unhex
from ._output import Output, plural, printable, quoted, where
from ._sealing import key_option

if TYPE_CHECKING:
    from multicast.sealed import Seal

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
@key_option("Seal the packets")
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
    seal: Seal | None,
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

    given: Input | None = None
    packets: Iterator[bytes | None]
    if path is None:
        packet = os.fsencode(" ".join(text))
        if as_hex:
            packet = unhex(packet.decode("ascii", "replace"), lambda text: click.BadParameter(text, param_hint="TEXT"))
        endless = count is None and bool(interval or rate)
        packets = repeat(packet) if endless else repeat(packet, count or 1)
    else:
        given = Input(out, path, as_hex, "`--size 1316` cuts by bytes instead of by lines")
        endless = False
        longest = group.longest - (0 if seal is None else seal.overhead)
        packets = given.lines(longest) if size is None else given.pieces(size)
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
                seal=seal,
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


