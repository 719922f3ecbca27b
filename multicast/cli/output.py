"""What all commands share: what is printed where, exit codes, errors in words, signals, options.

* Data goes to stdout, everything else to stderr; so a pipe or a file gets data alone.
* Lines are written in blocks and flushed before each wait: a reader of the pipe has every packet at once, and a flood
  does not cost a system call for each line.
* What comes from peers is never written as it came: a packet that could move the cursor, or turn the text around, could
  make the terminal lie.
* Ctrl-C and SIGTERM end the poller's loop and let the command finish its sentence; a second one does not wait.
"""

from __future__ import annotations

import base64
import difflib
import enum
import importlib
import json
import logging
import os
import re
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from multicast import batch, errors
from multicast.poller import Poller
from multicast.sockets import Group

from . import COMMANDS

__all__ = [
    "GROUP",
    "RATE",
    "SECONDS",
    "BadData",
    "Exit",
    "Output",
    "Rate",
    "command",
    "count_option",
    "deadline_option",
    "destination",
    "interface_option",
    "interfaces_option",
    "payload",
    "plural",
    "printable",
    "program",
    "quoted",
    "run",
    "shown",
    "ttl_option",
    "where",
    "wording",
]


class Exit(enum.IntEnum):
    """The exit codes; a command returns one of them, or None for yes."""

    YES = 0
    #: It ran, and the answer is no: nothing arrived, nobody answered, fewer than expected.
    NO = 1
    USAGE = 2
    #: The system refused: no such interface, no permission, port not shared, a library is missing.
    REFUSED = 3
    #: A file or a line of input is not what it should be.
    DATA = 4
    #: Interrupted before there was an answer.
    INTERRUPTED = 130
    #: The reader of our output has gone; what a shell reports of a program that SIGPIPE ended.
    CLOSED = 141


class BadData(errors.MulticastError, ValueError):
    """A line of input or a file is not what it should be; the message says where."""


class _Closed(Exception):
    """Nobody reads stdout any more."""


# -- text ----------------------------------------------------------------------------------------------------------

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def printable(text: str) -> str:
    """Return `text` with everything escaped that is not a visible character or a space.

    That is control characters, among them the escapes of terminals, and those that change the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def quoted(text: str) -> str:
    """Return `text` between quotation marks, as `printable` has it, with quotation marks and backslashes escaped."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def plural(number: int, noun: str) -> str:
    """Return number and noun, as "1 packet", "2 packets", "12 431 packets"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", " ")


# How much of a packet a line shows of itself; -x, --json and --raw have all of it.
_TEXT_SHOWN, _BYTES_SHOWN = 1000, 32


def where(address: str, port: int) -> str:
    """Return address and port as they are written and pasted, with IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _readable(packet: bytes) -> str | None:
    """Return the packet as text when it is UTF-8 and mostly visible; None when hexadecimal digits say more."""
    try:
        text = packet.decode()
    except UnicodeDecodeError:
        return None
    if text.isprintable():
        return text
    hidden = sum(not (character.isprintable() or character in "\t\r\n") for character in text)
    return None if 4 * hidden > len(text) else text


def shown(packet: bytes) -> str:
    """Return a packet for a line: its text between quotation marks, or its bytes in hexadecimal digits."""
    text = _readable(packet)
    if text is not None:
        return quoted(text) if len(text) <= _TEXT_SHOWN else quoted(text[:_TEXT_SHOWN]) + " ..."
    if len(packet) > _BYTES_SHOWN:
        return packet[:_BYTES_SHOWN].hex(" ") + " ..."
    return packet.hex(" ")


def payload(packet: bytes) -> dict[str, str]:
    """Return the field of a JSON object that has the bytes of a packet: `text` if they are UTF-8, else `base64`."""
    try:
        return {"text": packet.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(packet).decode()}


_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one for each line


# -- where it goes -------------------------------------------------------------------------------------------------

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def _colourful(stream: TextIO) -> bool:
    """Whether `stream` gets colours: no-color.org, force-color.org, and otherwise on a terminal alone."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Output:
    """What a command prints with; made once for a run, from the options all commands have."""

    def __init__(self) -> None:
        #: Write JSON, one object to a line, instead of lines for people.
        self.json = False
        #: Say nothing on stderr but errors.
        self.quiet = False
        #: Say more: numbers of errors, and details.
        self.verbose = False
        #: Show where in the program an error came from.
        self.debug = False
        #: Whether data lines on stdout may have colours.
        self.colour = _colourful(sys.stdout)
        self._colour_messages = _colourful(sys.stderr)
        self._reading = False

    def no_colour(self) -> None:
        """Use no colours, whatever the terminal can do."""
        self.colour = self._colour_messages = False

    # Data, on stdout.

    def line(self, text: str = "") -> None:
        """Write a line of data."""
        sys.stdout.write(text + "\n")

    def event(self, event: str, **fields: object) -> None:
        """Write a JSON object in one line: the version of the schema, the kind of event, its fields.

        Everything outside ASCII is escaped, so that no terminal takes what peers sent for commands.
        """
        text = _encode({"v": 1, "event": event, **fields})
        sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")

    def raw(self, data: bytes) -> None:
        """Write bytes as they are. Not to be mixed with lines."""
        sys.stdout.buffer.write(data)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write rows in columns; as wide as they are, for a pipe has no width."""
        cells = [[printable(cell) for cell in row] for row in (head, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for number, row in enumerate(cells):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self.line(self.style(text, "bold") if number == 0 else text)

    def style(self, text: str, *styles: str) -> str:
        """Return `text` in the given styles (bold dim red green yellow cyan) where stdout has colours."""
        return _styled(text, styles) if self.colour else text

    def flush(self) -> None:
        """Hand over what was written so far."""
        sys.stdout.flush()

    # Messages, on stderr.

    def say(self, text: str) -> None:
        """Tell the person something that is not data, unless they asked for quiet."""
        if not self.quiet:
            sys.stdout.flush()  # so that both come in order where they meet
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Tell the person about something that may not be what they want."""
        self.say(f"{self._prefix('yellow')}{text}")

    def fail(self, text: str) -> None:
        """Say what went wrong; quiet or not."""
        try:
            sys.stderr.write(f"{self._prefix('red')}{text}\n")
            sys.stderr.flush()
        except OSError:  # nobody is there to be told; the exit code remains
            pass

    def _prefix(self, colour: str) -> str:
        return _styled("multicast:", ("bold", colour)) + " " if self._colour_messages else "multicast: "

    # Running.

    def drive(
        self,
        poller: Poller,
        done: Callable[[], object] = lambda: False,
        limit: float | None = None,
        *,
        ready: Callable[[], object] = lambda: None,
        writes: bool = True,
    ) -> bool:
        """Poll until `done()` is true, `limit` seconds have passed or somebody calls `poller.stop()`; return True.

        Return False when Ctrl-C or SIGTERM came first. Either way no handler was torn apart, and the command goes on:
        it can print what it has. `ready()` is called first: who learns from what it prints that we are ready may
        interrupt us at once. What was written is flushed before each wait. Unless `writes` says that nothing is
        written meanwhile, the command ends at once and quietly when the reader of a pipe on stdout goes away.
        """
        timer = None if limit is None else poller.call_later(limit, poller.stop)
        watch = _watch_reader() if writes else None
        if watch is not None:
            poller.register(watch, _WATCH_ONLY)
        try:
            with self._stopping(poller) as signals:

                def over() -> object:
                    self.flush()
                    return signals or done()

                ready()
                poller.run_until(over)
            self.flush()
        finally:
            if timer is not None:
                timer.cancel()
            if watch is not None:
                poller.unregister(watch)
        return not signals

    @contextmanager
    def _stopping(self, poller: Poller) -> Iterator[list[int]]:
        """Have Ctrl-C and SIGTERM stop `poller`; the list says which came. The second is not waited for."""
        came: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            came.append(number)
            if self._reading or len(came) > 1:
                raise KeyboardInterrupt
            poller.stop()

        with _handling(stop):
            try:
                yield came
            except KeyboardInterrupt:
                if len(came) != 1:
                    raise

    @contextmanager
    def reading_input(self) -> Iterator[None]:
        """While something is read that may be long in coming, Ctrl-C ends the reading and not only the loop."""
        self._reading = True
        try:
            yield
        finally:
            self._reading = False


def _styled(text: str, styles: Iterable[str]) -> str:
    return f"\033[{';'.join(_STYLES[style] for style in styles)}m{text}\033[0m"


_WATCH_ONLY = 0x8  # EPOLLERR, which a pipe's writing end reports when the last reader has closed it


class _Reader:
    """Stands for whoever reads our stdout."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def handle_write(self) -> None:
        raise _Closed


def _watch_reader() -> _Reader | None:
    try:
        fd = sys.stdout.fileno()
        return _Reader(fd) if stat.S_ISFIFO(os.fstat(fd).st_mode) else None
    except (OSError, ValueError):  # closed, or not a file at all
        return None


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, handler) for number in numbers]
    except ValueError:  # not in the main thread, where signals do not come anyway
        yield
        return
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Log(logging.Handler):
    """Shows what the library logs, as messages to the person."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        # A receive buffer smaller than asked for matters only when packets are dropped, and then it is said.
        if record.funcName != "receive_buffer" or self._out.verbose:
            self._out.warn(in_options(record.getMessage()))


# -- errors in words -----------------------------------------------------------------------------------------------

# The library's messages speak of arguments; here they are options.
_OPTIONS = {
    "interface": "-i ",
    "source_ip": "--source-ip ",
    "sources": "SOURCE@GROUP",
    "rate": "--rate",
    "interval": "--interval",
    "rotate": "--rotate",
    "keep": "--keep",
}
_ARGUMENT = re.compile(rf"\b({'|'.join(_OPTIONS)})=(?:'([^']*)')?")
_NUMBER = re.compile(r" \(errno \d+, [A-Z0-9?]+\)")


def in_options(text: str) -> str:
    """Return a message of the library as one about the command line."""

    def option(match: re.Match[str]) -> str:
        return (_OPTIONS[match[1]] + (match[2] or "")).rstrip()

    return _ARGUMENT.sub(option, text)


def _code(error: BaseException) -> Exit:
    if isinstance(error, (errors.CaptureError, errors.FrameError, BadData)):
        return Exit.DATA
    if isinstance(error, (errors.InterfaceError, OSError)) and not isinstance(error, errors.NoReply):
        return Exit.REFUSED
    return Exit.NO if isinstance(error, errors.NoReply) else Exit.USAGE


def _explain(out: Output, error: Exception) -> Exit:
    """Say in words what went wrong: the cause, then what to do. Return the exit code."""
    if out.debug:
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show(sys.stderr)
        return Exit.USAGE
    if isinstance(error, click.UsageError):
        text = error.format_message()
        where = error.ctx.command_path if error.ctx is not None else "multicast"
        out.fail(f"{text} (`{where} --help` shows how)")
        return Exit.USAGE
    if isinstance(error, click.ClickException):
        out.fail(error.format_message())
        return Exit(error.exit_code)
    text = errors.describe(error)
    text = _NUMBER.sub(r"\g<0>." if out.verbose else ".", text)
    out.fail(printable(in_options(text)))
    return _code(error)


# -- the program ---------------------------------------------------------------------------------------------------


class Command(click.Command):
    """A command whose help shows examples before the options."""

    examples: Sequence[str] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the options."""
        _write_examples(self.examples, formatter)
        super().format_options(ctx, formatter)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class _Program(click.Group):
    """The group of commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f".{entry.module}", __package__)
        found: click.Command = getattr(module, entry.function)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {printable(name)!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            if COMMANDS:
                formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(
            [
                "multicast listen 239.1.2.3:5000",
                "multicast send 239.1.2.3:5000 hello",
                "multicast demo",
            ],
            formatter,
        )
        super().format_options(ctx, formatter)

    # A broken pipe is told apart before click makes something else of it.

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            raise _Closed from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _Closed from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, explain what goes wrong, and leave with the exit code, as `SystemExit`."""
        _open_missing()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a character that the terminal has not is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        out = Output()
        log = logging.getLogger("multicast")
        handler = _Log(out)
        log.addHandler(handler)
        try:
            with _handling(_interrupt):
                code = super().main(args, "multicast", "_MULTICAST_COMPLETE", False, obj=out, **extra)
                sys.stdout.flush()
        except (_Closed, BrokenPipeError):
            code = Exit.CLOSED
        except (click.Abort, KeyboardInterrupt):
            code = Exit.INTERRUPTED
        except (click.ClickException, errors.MulticastError, OSError) as error:
            code = _explain(out, error)
        finally:
            log.removeHandler(handler)
        _finish()
        sys.exit(int(code or 0))


def _open_missing() -> None:
    """See to it that 0, 1 and 2 are open; otherwise a socket of ours would get the number, and then the output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _finish() -> None:
    """Write out what is left, or see to it that the interpreter does not fail over it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
            except (OSError, ValueError):
                pass


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        package = sys.modules[__package__.partition(".")[0]]
        click.echo(f"multicast {package.__version__} (engine: {batch.ENGINE})")
        ctx.exit()


def _remember(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            out = ctx.find_object(Output)
            if out is not None and name == "no_colour":
                out.no_colour()
            elif out is not None:
                setattr(out, name, True)

    return callback


def _flag(name: str, text: str, *spellings: str) -> click.Option:
    return click.Option(
        spellings, is_flag=True, expose_value=False, is_eager=True, callback=_remember(name), help=text
    )


def _shared() -> list[click.Parameter]:
    """The options that stand before a command as well as after it."""
    return [
        _flag("quiet", "Say nothing on stderr but errors.", "-q", "--quiet"),
        _flag("verbose", "Say more, such as the numbers of errors.", "-v", "--verbose"),
        _flag("no_colour", "Use no colours; NO_COLOR and FORCE_COLOR are obeyed too.", "--no-color"),
        _flag("debug", "Show where in the program an error came from.", "--debug"),
    ]


_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


_CODES = (
    "Exit codes: 0 yes; 1 it ran, and the answer is no; 2 usage; 3 the system refused; 4 bad data; 130 interrupted"
    " before there was an answer."
)


@click.group(cls=_Program, name="multicast", context_settings=_HELP, epilog=_CODES)
@click.option(
    "-V", "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version and which engine is in use, then exit.",
)
def program() -> None:
    """Send, receive and look into multicast UDP."""


program.params.extend(_shared())


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, by default that of the process; return the exit code."""
    try:
        program.main(args)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    return 0


def command(name: str, *, examples: Sequence[str], json: bool = False) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command; a decorator, to stand above those of its options.

    The function gets the `Output` first, then its options and arguments by name, and returns an `Exit` or None for
    yes. `examples` are shown in the help before the options. With `json` it takes `--json`, and `Output.json` tells.
    """

    def decorate(function: Callable[..., Any]) -> Command:
        @wraps(function)
        @click.pass_obj
        def call(out: Output, /, *args: Any, **kwargs: Any) -> Any:
            return function(out, *args, **kwargs)

        made = click.command(name, cls=Command, context_settings=_HELP)(call)
        # What all commands have stands last, so that the help begins with what this one is about.
        if json:
            made.params.append(_flag("json", "Write JSON, one object to a line.", "-J", "--json"))
        made.params.extend(_shared())
        made.examples = examples
        return made

    return decorate


# -- options and their types ---------------------------------------------------------------------------------------

_F = TypeVar("_F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # in older versions not generic


class _GroupType(_Type):
    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Group:
        return value if isinstance(value, Group) else Group.parse(value)


class _SecondsType(_Type):
    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < 1e9:
            self.fail(f"{value!r} is not a number of seconds, 0 or more", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast to send: bits of payload per second, or packets per second; one of them is None."""

    bits: float | None = None
    packets: float | None = None


_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


class _RateType(_Type):
    name = "rate"
    _WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([kmg]?)(pps|bps|bit/s|)", re.IGNORECASE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Rate:
        if isinstance(value, Rate):
            return value
        match = self._WRITTEN.fullmatch(value.strip())
        amount = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
        if match is None or not amount > 0:
            self.fail(f"{value!r} is not a rate; write 10m for 10 million bits a second, or 500pps", param, ctx)
        return Rate(packets=amount) if match[3].lower() == "pps" else Rate(bits=amount)


#: A group as people write it; see `Group.parse`.
GROUP = _GroupType()
#: A time in seconds, as a decimal number.
SECONDS = _SecondsType()
#: A `Rate`: 10m, 500k, 1g, 500pps.
RATE = _RateType()


def _names(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[str] | None:
    """Return the interfaces named, by several options or with commas between; None where none was."""
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise click.BadParameter("an interface has a name, an index or an address, and here is none", ctx, parameter)
    return names or None


def interfaces_option(text: str) -> Callable[[_F], _F]:
    """The option -i for a receiver: a list of names, indexes or addresses, or None."""
    return click.option(
        "-i", "-I", "--interface", "interfaces", metavar="IFACE", multiple=True, callback=_names, help=text
    )


def interface_option(text: str) -> Callable[[_F], _F]:
    """The option -i for a sender: one name, index or address, or None."""
    return click.option("-i", "-I", "--interface", "interface", metavar="IFACE", help=text)


def count_option(text: str) -> Callable[[_F], _F]:
    """The option -c: a number, 1 or more, or None."""
    return click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help=text)


def deadline_option(text: str) -> Callable[[_F], _F]:
    """The option -w: the seconds the whole run may take, or None."""
    return click.option("-w", "--deadline", type=SECONDS, metavar="SECONDS", help=text)


def ttl_option(function: _F) -> _F:
    """Add the option -t: how far packets go, 0 to 255."""
    return click.option(
        "-t", "--ttl", type=click.IntRange(0, 255), default=1, show_default=True, metavar="TTL",
        help="How far packets go: 0 this host, 1 this subnet, 32 this site, 255 anywhere.",
    )(function)


# -- arguments -----------------------------------------------------------------------------------------------------

# What can only have been meant to say where to send, though it is no group: a typing mistake in an address.
_ADDRESS = re.compile(r"(udp|rtp)://.*|@.*|\[.*|[0-9]+(\.[0-9]+)+(:.*)?", re.IGNORECASE | re.DOTALL)


def destination(words: Sequence[str], other_input: bool) -> tuple[Group, Sequence[str]]:
    """Return the group, and what remains of the arguments as text."""
    if not words:
        return Group(), ()
    try:
        return Group.parse(words[0]), words[1:]
    except errors.GroupError:
        # One word alone may be a text for the default group, unless it was clearly meant to say where to send.
        if len(words) > 1 or other_input or _ADDRESS.fullmatch(words[0]):
            raise
        return Group(), words


@contextmanager
def wording(option: str) -> Iterator[None]:
    """Say of a wrong expression what is wrong with it; the rest of the message is for programmers."""
    try:
        yield
    except errors.FilterError as error:
        raise click.UsageError(f"{option}: {str(error).partition(';')[0]}") from None
