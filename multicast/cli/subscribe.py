"""The command `subscribe`: print the messages of a sequenced feed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from multicast.batch import Address
from multicast.feeds import Subscriber
from multicast.poller import Poller
from multicast.sockets import Group

from . import COMMANDS
from ._app import ADDRESS, GROUP, SECONDS, command, count_option, deadline_option, interfaces_option
from ._errors import Exit
from ._output import Output, host_of, payload, plural, printable, shown, where
from ._sealing import key_option

if TYPE_CHECKING:
    from multicast.sealed import Seal

    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # in older versions not generic

_RCVBUF = 4 << 20
_CAUSES = {
    "unanswered": "nobody answered the requests for it",
    "history": "those that are asked do not have it any more",
    "window": "too much came after it",
    "missing": "it came by no line",
    "session": "another session has begun",
}


class _Board(Subscriber):
    """Prints the messages."""

    def __init__(self, out: Output, form: str, count: int | None, lines: list[Group], **options: Any) -> None:
        self._out = out
        self._form = form
        self._remaining = count
        self.ended = False
        self.gaps = 0
        self.lost = 0
        self._names = [where(line.address, line.port) for line in lines]
        super().__init__(lines, **options)

    def handle_message(self, message: bytes, number: int, addr: Address) -> object:
        out = self._out
        if self._form == "raw":
            out.raw(message)
        elif self._form == "json":
            out.event(
                "message",
                number=number,
                **payload(message),
                source=addr.host,
                line=None if self.line is None else self._names[self.line],
            )
        else:
            source = out.style(printable(host_of(addr)), "cyan")
            out.line(f"{number:>8}  {source}  {shown(message)}".rstrip())
        if self._remaining is not None:
            self._remaining -= 1
        return self._remaining == 0

    def handle_gap(self, first: int, count: int) -> None:
        self.gaps += 1
        self.lost += count
        last = first + count - 1
        if self._form == "json":
            self._out.event("gap", first=first, count=count, cause=self.gap_cause)
            return
        numbers = f"message {first} is" if count == 1 else f"messages {first} to {last} are"
        text = f"{numbers} lost: {_CAUSES[self.gap_cause]}"
        if self._form == "raw":
            self._out.say(text)
        else:
            self._out.line(self._out.style(text, "red"))

    def handle_session(self, old: bytes, new: bytes) -> None:
        names = old.decode("ascii", "replace").rstrip(), new.decode("ascii", "replace").rstrip()
        if self._form == "json":
            self._out.event("session", old=names[0], new=names[1])
        else:
            self._out.say(printable(f"session {names[0]} has given way to {names[1]}, numbered from 1"))

    def handle_end(self) -> None:
        self.ended = True
        if self._form == "json":
            self._out.event("end", number=self.next - 1)


class _StartType(_Type):
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value in ("live", "first"):
            return str(value)
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is no number of a message; write 1 or more, first, or live", param, ctx)
        return number


@command(
    "subscribe",
    json=True,
    examples=[
        "multicast subscribe 239.1.2.3:5000",
        "multicast subscribe 239.1.2.3:5000%eth0 239.1.3.3:5000%eth1 --from first --json",
        "multicast subscribe 239.1.2.3:5000 --repair 10.0.0.5:5999 --expect 1000 -w 60",
    ],
)
@click.argument("groups", metavar="GROUP [GROUP_B...]", nargs=-1, required=True, type=GROUP)
@click.option("--from", "start", type=_StartType(), default="live", show_default=True, metavar="N",
              help="Begin with message N, with the first of the session, or live with what comes.")
@click.option("--raw", is_flag=True, help="Write the messages to standard output, and nothing else.")
@count_option("Stop after N messages.")
@deadline_option("Stop after so many seconds.")
@click.option("--expect", type=click.IntRange(min=1), metavar="N",
              help="Exit with 1 when fewer than N messages came.")
@click.option("--session", metavar="NAME", help="Follow this session alone.")
@click.option("--repair", "servers", metavar="HOST:PORT", multiple=True, type=ADDRESS,
              help="Ask this server for what is missing, several by several --repair. Left out, the publisher.")
@click.option("--no-repair", is_flag=True, help="Ask for nothing.")
@click.option("--patience", type=SECONDS, default=0.02, show_default=True, metavar="S",
              help="How long a message may be late before it is asked for.")
@click.option("--give-up", type=SECONDS, default=2.0, show_default=True, metavar="S",
              help="How long to ask for a message without an answer.")
@interfaces_option("Listen on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
@key_option("Open the packets")
def subscribe(
    out: Output,
    groups: tuple[Group, ...],
    start: str | int,
    raw: bool,
    count: int | None,
    deadline: float | None,
    expect: int | None,
    session: str | None,
    servers: tuple[tuple[str, int], ...],
    no_repair: bool,
    patience: float,
    give_up: float,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    """Print the messages of a sequenced feed (MoldUDP64), in order and each once.

    GROUP is written as for `multicast listen`. Several groups are lines that carry the same feed: a message counts when
    it has come by one of them. What is missing is asked for; what does not come is told in its place. Ends with the
    session. Exits with 1 when nothing came, or messages are lost.
    """
    if raw and out.json:
        raise click.UsageError("--raw and --json are two ways to write a message; choose one")
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw writes what peers send as it is, and no terminal should get that: add > FILE")
    if servers and no_repair:
        raise click.UsageError("--repair names a server to ask, and --no-repair asks for nothing; give one of them")
    form = "raw" if raw else "json" if out.json else "line"
    lines = list(groups)
    with Poller() as poller:
        began = time.monotonic()
        board = _Board(
            out,
            form,
            count,
            lines,
            start=start,
            session=session,
            repair=list(servers) or not no_repair,
            patience=patience,
            give_up=give_up,
            rcvbuf=_RCVBUF,
            seal=seal,
            poller=poller,
            **({} if interfaces is None else {"interface": interfaces}),
        )
        names = " and ".join(where(line.address, line.port) for line in lines)
        finished = out.drive(
            poller,
            lambda: board.closed or board.ended,
            deadline,
            ready=lambda: out.say(f"subscribed to {names}" + ("" if deadline else ", Ctrl-C to stop")),
        )
        seconds = time.monotonic() - began
        counted = board.statistics()
        rejected = board.rejected
        board.close()
    if out.json:
        out.event(
            "summary",
            messages=counted.messages,
            bytes=counted.bytes,
            lost=board.lost,
            gaps=board.gaps,
            requests=counted.requests,
            repaired=counted.repaired,
            lines=[
                {"group": where(line.address, line.port), **state._asdict()}
                for line, state in zip(lines, counted.lines, strict=True)
            ],
            ended=board.ended,
            seconds=round(seconds, 6),
            **({} if rejected is None else {"rejected": rejected}),
        )
    out.say(_summary(counted, board, lines, seconds))
    if not counted.messages and not board.ended:
        return Exit.NO if finished else Exit.INTERRUPTED
    return Exit.NO if board.lost or (expect is not None and counted.messages < expect) else Exit.YES


def _summary(counted: Any, board: _Board, lines: list[Group], seconds: float) -> str:
    if not counted.messages and not board.ended:
        text = f"no message of a feed in {seconds:.3g} s"
        if counted.malformed:
            text += f"; {plural(counted.malformed, 'packet')} of something else"
        if counted.other_sessions:
            text += f"; {plural(counted.other_sessions, 'packet')} of another session"
        return text + (f". Next: multicast doctor {lines[0]}" if "doctor" in COMMANDS else "")
    text = f"{plural(counted.messages, 'message')} in {seconds:.1f} s"
    if counted.repaired:
        text += f", {counted.repaired} of them repaired by {plural(counted.requests, 'request')}"
    text += f"; {board.lost} lost"
    if len(lines) > 1:
        pairs = zip(lines, counted.lines, strict=True)
        missing = ", ".join(f"{where(line.address, line.port)} {state.lost}" for line, state in pairs)
        text += f"; missing by line: {missing}"
    return text
