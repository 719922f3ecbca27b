"""The command `request`: ask a group and print the answers."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from multicast.batch import Address
from multicast.discovery import Requester
from multicast.poller import Poller
from multicast.sockets import Group

from . import COMMANDS
from ._app import SECONDS, command, destination, interfaces_option, ttl_option
from ._errors import Exit
from ._output import Output, host_of, payload, plural, printable, shown
from ._sealing import counted, key_option, not_opened

if TYPE_CHECKING:
    from multicast.sealed import Seal


class _Asking(Requester):
    """Prints the replies as they come."""

    def __init__(self, out: Output, packet: bytes, **options: Any) -> None:
        super().__init__(packet, **options)
        self._out = out

    def handle_reply(self, packet: bytes, addr: Address) -> None:
        assert self.reply is not None  # noqa: S101 -- for the type checker
        round_trip = self.reply.round_trip
        if self._out.json:
            self._out.event(
                "reply",
                source=addr.host,
                source_port=addr.port,
                interface=addr.interface,
                round_trip=round(round_trip, 9),
                length=len(packet),
                **payload(packet),
            )
            return
        source = self._out.style(printable(host_of(addr)).ljust(15), "cyan")
        self._out.line(f"{source}  {1000 * round_trip:7.2f} ms  {shown(packet)}".rstrip())


@command(
    "request",
    json=True,
    examples=[
        "multicast request 239.1.2.3:5000 'status?'",
        "multicast request 239.1.2.3:5000 'who is there?' -w 0.5 --want 3",
        "multicast request '[ff02::1]:5000%eth0' hello --first --json",
    ],
)
@click.argument("words", metavar="[GROUP] TEXT...", nargs=-1, required=True)
@click.option("-w", "--deadline", type=SECONDS, default=1.0, show_default=True, metavar="SECONDS",
              help="How long to wait for replies.")
@click.option("--first", is_flag=True, help="Stop at the first reply.")
@click.option("--want", type=click.IntRange(min=1), metavar="N",
              help="Stop when N replies have come, and exit with 1 when fewer came.")
@click.option("--source-ip", metavar="IP", help="Send from this address of this host.")
@click.option("--source-port", type=click.IntRange(1, 65535), metavar="PORT",
              help="Send from this port and receive replies there, for devices that answer to a fixed port. Other"
                   " programs may have it as well.")
@ttl_option
@interfaces_option("Send by this interface: a name, an index, an address, several with commas or by several -i. Left"
                   " out, by each that is up and can do multicast.")
@key_option("Seal the request and open the replies")
def request(
    out: Output,
    words: tuple[str, ...],
    deadline: float,
    first: bool,
    want: int | None,
    source_ip: str | None,
    source_port: int | None,
    ttl: int,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    """Ask a group, and print who answers what, with the round-trip time.

    GROUP is written ADDRESS[:PORT][%IFACE], with IPv6 in brackets; left out, it is 224.0.42.42:4242. The words of
    TEXT are joined by spaces. Nobody knows how many will answer, so the command waits until the time is over, unless
    --first or --want say what is enough. Exits with 1 when nobody answered.
    """
    group, text = destination(words, other_input=False)
    if not text:
        raise click.UsageError(f"there is nothing to ask {group}: give a TEXT after the group")
    if first and want is not None:
        raise click.UsageError("--first is --want 1; give one of them")
    if group.sources:
        raise click.UsageError("a request goes to a group, not to one of its sources; write the GROUP without SOURCE@")
    want = 1 if first else want
    with Poller() as poller:
        began = time.monotonic()
        requester = _Asking(
            out,
            os.fsencode(" ".join(text)),
            ip=group.address,
            port=group.port,
            ttl=ttl,
            timeout=deadline,
            limit=want,
            interface=interfaces or list(group.interfaces) or None,
            source_ip=source_ip,
            source_port=source_port or 0,
            seal=seal,
            poller=poller,
        )
        finished = out.drive(poller, lambda: requester.closed)
        seconds = time.monotonic() - began
        replies = requester.replies
        dropped = requester.statistics().dropped
    if out.json:
        out.event(
            "summary",
            replies=replies,
            duplicates=requester.duplicates,
            dropped=dropped,
            seconds=round(seconds, 6),
            **counted(requester),
        )
    unopened = not_opened(requester)
    if unopened:
        out.say(unopened)
    out.say(_answers(group, replies, want, seconds, requester.duplicates, dropped))
    if replies >= (want or 1):
        return Exit.YES
    return Exit.NO if finished else Exit.INTERRUPTED


def _answers(group: Group, replies: int, want: int | None, seconds: float, duplicates: int, dropped: int) -> str:
    if not replies:
        text = f"nobody answered in {seconds:.3g} s."
        return text + (f" Next: multicast doctor {group}" if "doctor" in COMMANDS else "")
    text = f"{plural(replies, 'answer')} in {seconds:.{1 if seconds >= 1 else 3}f} s"
    if want is not None and replies < want:
        text += f"; {want} were wanted"
    if duplicates:
        text += f"; {duplicates} more by a second interface of the same responders"
    if dropped:
        text += f"; kernel dropped {dropped}, for they came too many at once"
    return text


