"""The command `respond`: answer the requests to a group."""

from __future__ import annotations

import codecs
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from multicast.batch import Address
from multicast.discovery import Responder
from multicast.poller import Poller, Timer
from multicast.sockets import Group

from ._app import GROUP, SECONDS, command, count_option, deadline_option, interfaces_option
from ._errors import Exit, in_words, wording
from ._output import Output, host_of, payload, plural, printable, quoted, shown, where
from ._sealing import counted, key_option, not_opened

if TYPE_CHECKING:
    from multicast.sealed import Seal

# What a program may write before its time is over is read and forgotten, apart from what fits in a reply.
_CHUNK = 65536
# Between the end of a program's output and its own end lie microseconds, as a rule; then it is asked more seldom.
_ENDING_FIRST, _ENDING_LAST = 0.001, 0.05


class _Job:
    """A program that works out one reply: it reads the request, and what it writes is the reply."""

    def __init__(
        self,
        poller: Poller,
        words: Sequence[str],
        request: bytes,
        longest: int,
        limit: float,
        done: Callable[[_Job, bytes | None, str], object],
    ) -> None:
        self._poller = poller
        self._longest = longest
        self._done = done
        self._limit = limit
        self._output = bytearray()
        self._cut = False
        self._pause = _ENDING_FIRST
        self._late = False
        # A file in memory holds the request, so that nobody has to wait until the program reads it.
        stdin = os.memfd_create("request")
        try:
            os.write(stdin, request)
            os.lseek(stdin, 0, os.SEEK_SET)
            # In a session of its own it can be ended together with the programs it starts, and Ctrl-C is ours alone.
            self._process = subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, start_new_session=True)
        finally:
            os.close(stdin)
        assert self._process.stdout is not None  # noqa: S101 -- for the type checker
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        poller.register(self)
        self._timer: Timer = poller.call_later(limit, self._too_late)

    def fileno(self) -> int:
        return self._pipe.fileno()

    def handle_read(self) -> None:
        try:
            data = os.read(self._pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._stop_reading()
            return
        room = self._longest - len(self._output)
        self._output += data[:room]
        self._cut = self._cut or len(data) > room

    def _stop_reading(self) -> None:
        if not self._pipe.closed:
            self._poller.unregister(self)
            self._pipe.close()
            self._await_end()

    def _await_end(self) -> None:
        status = self._process.poll()
        if status is None:
            self._poller.call_later(self._pause, self._await_end)
            self._pause = min(2 * self._pause, _ENDING_LAST)
            return
        self._timer.cancel()
        if self._late:
            self._done(self, None, f"it took longer than {self._limit:g} s")
        elif status:
            how = f"exit code {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
            self._done(self, None, how)
        else:
            self._done(self, self._reply(), f"cut to {self._longest} bytes" if self._cut else "")

    def _reply(self) -> bytes:
        """Return what it wrote: without the newline at the end, or not cut within a character."""
        written = bytes(self._output)
        if not self._cut:
            return written.removesuffix(b"\n")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(written)
        except UnicodeDecodeError:
            return written
        return written.removesuffix(decoder.getstate()[0])

    def _too_late(self) -> None:
        self._late = True
        self._kill()
        self._stop_reading()  # somebody it started may have left its session, and hold the pipe open

    def _kill(self) -> None:
        # Not asked for its status since, it is at least a zombie, so the number cannot be another's.
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it and what it has started, and wait until it is gone."""
        self._timer.cancel()
        self._kill()
        self._process.wait()
        if not self._pipe.closed:
            self._poller.unregister(self)
            self._pipe.close()


class _Responding(Responder):
    """Replies with a text or with what a program makes of the request, and prints both."""

    def __init__(
        self, out: Output, text: bytes, words: Sequence[str], limit: float, jobs: int, **options: Any
    ) -> None:
        self._out = out
        self._text = text
        self._words = words
        self._limit = limit
        self._most = jobs
        self._jobs: dict[_Job, None] = {}
        super().__init__(**options)
        self._width = max(len(printable(interface.name)) for interface in self.interfaces)

    def handle_request(self, packet: bytes, addr: Address) -> None:
        if not self._words:
            self._answer(packet, addr, self._text)
        elif len(self._jobs) >= self._most:
            self._answer(packet, addr, None, f"{plural(self._most, 'program')} running already")
        else:
            self._run(packet, addr)

    def _run(self, packet: bytes, addr: Address) -> None:
        def done(job: _Job, reply: bytes | None, why: str) -> None:
            self._jobs.pop(job, None)
            self._answer(packet, addr, reply, why)

        try:
            job = _Job(self.poller, self._words, packet, self.room, self._limit, done)
        except OSError as error:
            self._answer(packet, addr, None, in_words(error, self._out))
        else:
            self._jobs[job] = None

    def _answer(self, packet: bytes, addr: Address, reply: bytes | None, why: str = "") -> None:
        """Send the reply, if there is one, and print how it went."""
        if reply is not None and not self.reply(reply, addr):
            reply, why = None, "it could not be sent"
        now = addr.timestamp or time.time_ns()
        if self._out.json:
            self._out.event(
                "request",
                time_ns=now,
                interface=addr.interface,
                source=addr.host,
                source_port=addr.port,
                group=addr.group,
                port=self.group.port,
                ttl=addr.ttl,
                length=len(packet),
                **payload(packet),
                replied=reply is not None,
                reply=None if reply is None else payload(reply),
                note=why or None,
            )
            return
        style = self._out.style
        seconds, nanoseconds = divmod(now, 1_000_000_000)
        when = time.strftime("%H:%M:%S", time.localtime(seconds))
        text = style(f"{when}.{nanoseconds // 1000:06d}", "dim")
        text += f" {printable(addr.interface or '?').ljust(self._width)}  "
        text += f"{style(printable(where(host_of(addr), addr.port)), 'cyan')}  {shown(packet)} -> "
        text += style("no reply", "yellow") if reply is None else shown(reply)
        self._out.line(text + (f" ({printable(why)})" if why else ""))

    def close(self) -> None:
        """Leave the group, and end the programs that are still running. Idempotent."""
        super().close()
        jobs, self._jobs = self._jobs, {}
        for job in jobs:
            job.close()


def _program(text: str) -> list[str]:
    """Return the words of a command line, when the program is there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(f"{quoted(text)}: {str(error).lower()}", param_hint="--exec") from None
    if not words:
        raise click.BadParameter("it names no program", param_hint="--exec")
    if shutil.which(words[0]) is None:
        raise click.BadParameter(
            f"there is no program {quoted(words[0])} to run; no shell is involved, so for what a shell does write"
            " --exec 'sh -c \"...\"'",
            param_hint="--exec",
        )
    return words


@command(
    "respond",
    json=True,
    examples=[
        "multicast respond 239.1.2.3:5000",
        "multicast respond 239.1.2.3:5000 --match 'status' --exec 'uptime -p'",
        "multicast respond --ping 239.1.2.3:5000",
        "multicast respond '[ff02::1]:5000%eth0' --reply \"$(hostname)\" --json",
    ],
)
@click.argument("group", metavar="[GROUP]", required=False, type=GROUP)
@click.option("--reply", "text", metavar="TEXT", help="Reply with this text; left out, it is ack.")
@click.option("--ping", "pings", is_flag=True, help="Answer the pings of multicast ping, and nothing else.")
@click.option("--exec", "program", metavar="CMD",
              help="Reply with what this program writes; it reads the request from its standard input. No shell is"
              " involved. When it fails, there is no reply.")
@click.option("--time-limit", type=SECONDS, default=5.0, show_default=True, metavar="SECONDS",
              help="End the program of --exec after so many seconds; there is no reply then.")
@click.option("--jobs", type=click.IntRange(1, 1000), default=4, show_default=True, metavar="N",
              help="Run the program of --exec for at most N requests at a time; others get no reply.")
@click.option("--match", "expression", metavar="REGEX",
              help="Only requests that match this regular expression at their start; .* first finds it anywhere.")
@count_option("Stop after N replies.")
@deadline_option("Stop after so many seconds.")
@click.option("-t", "--ttl", type=click.IntRange(1, 255), default=1, show_default=True, metavar="TTL",
              help="How far replies go: 1 this subnet, more for who asks from behind routers.")
@interfaces_option("Listen on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
@key_option("Open the requests and seal the replies")
def respond(
    out: Output,
    group: Group | None,
    text: str | None,
    pings: bool,
    program: str | None,
    time_limit: float,
    jobs: int,
    expression: str | None,
    count: int | None,
    deadline: float | None,
    ttl: int,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    """Answer the requests that others send to a group, and print them.

    GROUP is written [SOURCE[,SOURCE]@]ADDRESS[:PORT][%IFACE], with IPv6 in brackets; left out, it is
    224.0.42.42:4242. The reply goes to who asked, from the address the request reached. Requests can be forged, so
    replies are limited: 50 a second to one address, 500 in all, 1232 bytes, none to ports below 1024.
    """
    if text is not None and program is not None:
        raise click.UsageError("--reply and --exec both say what to reply; give one of them")
    if pings and (text is not None or program is not None or expression is not None):
        raise click.UsageError("--ping says what to answer and how, so --reply, --exec and --match do not go with it")
    group = group or Group()
    reply = b"ack" if text is None else os.fsencode(text)
    words = () if program is None else _program(program)
    with Poller() as poller:
        options: dict[str, Any] = {
            "ip": group.address,
            "port": group.port,
            "mtu": 65535,
            "ttl": ttl,
            "interface": interfaces or list(group.interfaces) or None,
            "sources": group.sources,
            "seal": seal,
            "poller": poller,
        }
        responder: Responder
        if pings:
            from .ping import PingResponder

            responder = PingResponder(out, **options)
        else:
            with wording("--match"):
                responder = _Responding(out, reply, words, time_limit, jobs, filter=expression, **options)
        longest = responder.room
        if len(reply) > longest:
            text = f"{plural(len(reply), 'byte')}; a reply has {longest} at most"
            raise click.BadParameter(text, param_hint="--reply")
        names = ", ".join(printable(interface.name) for interface in responder.interfaces)
        out.say(
            f"answering {'pings' if pings else 'requests'} to {group.address} on {names}, port {group.port}"
            + (", Ctrl-C to stop" if count is None and deadline is None else "")
        )
        began = time.monotonic()
        finished = out.drive(
            poller, lambda: count is not None and responder.reply_statistics().sent >= count, deadline
        )
        seconds = time.monotonic() - began
        tally = responder.reply_statistics()
        dropped = responder.statistics().dropped
    if out.json:
        out.event(
            "summary",
            requests=tally.requests,
            replies=tally.sent,
            copies=tally.copies,
            unanswerable=tally.unanswerable,
            limited=tally.limited,
            failed=tally.failed,
            dropped=dropped,
            seconds=round(seconds, 6),
            **counted(responder),
        )
    left_out = [
        f"{number} {what}"
        for number, what in (
            (tally.copies, "copies of requests by another interface"),
            (tally.unanswerable, "from where no reply may go"),
            (tally.limited, "over the limit"),
            (tally.failed, "could not be sent"),
            (dropped, "dropped by the kernel"),
        )
        if number
    ]
    unopened = not_opened(responder)
    left_out += [unopened] if unopened else []
    replies = "1 reply" if tally.sent == 1 else f"{tally.sent} replies"
    asked = plural(tally.requests, "ping" if pings else "request")
    out.say("; ".join([f"{asked}, {replies} in {seconds:.1f} s", *left_out]))
    if tally.sent >= (count or 1):
        return Exit.YES
    return Exit.NO if finished else Exit.INTERRUPTED
