"""The click side of the command: the program, what makes a function a command of it, options and their types.

A command's module is imported when the command is run, as the table beside this file has it.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from multicast import batch, errors
from multicast.sockets import Group
from multicast.sockets.groups import unused_options

from . import COMMANDS
from ._errors import Exit, Log, explain
from ._output import Closed, Output, columns, handling, printable

__all__ = [
    "GROUP",
    "RATE",
    "SECONDS",
    "Command",
    "Rate",
    "command",
    "count_option",
    "deadline_option",
    "destination",
    "interface_option",
    "interfaces_option",
    "parse_group",
    "program",
    "run",
    "strip_rtp_option",
    "tell_rtp",
    "ttl_option",
]


# -- the program ---------------------------------------------------------------------------------------------------


class _Formatter(click.HelpFormatter):
    """Help that fits on a narrow terminal too; click has none narrower than 50 columns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        room = columns(sys.stdout)
        if room is not None:
            self.width = min(self.width, max(20, room - 1))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write terms and what they mean: side by side, or where terms would take too much of the width, below them."""
        rows = list(rows)
        if self.width < 60 and any(len(term) > self.width // 3 for term, _ in rows):
            col_max = 4  # longer terms stand in a line by themselves, and what they mean is indented by this
        super().write_dl(rows, col_max, col_spacing)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write command lines so that they can be copied, from a narrow terminal too: broken as a shell allows."""
    room = columns(sys.stdout)
    with formatter.section("Examples"):
        lead = " " * formatter.current_indent
        for example in examples:
            lines = [example] if room is None else _continued(example, room - 1 - len(lead))
            formatter.write("".join(f"{lead}{line}\n" for line in lines))


def _continued(line: str, room: int) -> list[str]:
    """Return a command line in lines of `room` columns, each but the last with a backslash at its end."""
    first, *words = re.findall(r"(?:'[^']*'|\"[^\"]*\"|\S)+", line)
    lines = [first]
    for left, word in zip(reversed(range(len(words))), words, strict=True):
        if len(lines[-1]) + 1 + len(word) + (2 if left else 0) <= room:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {word}")
    return lines


class _Context(click.Context):
    formatter_class = _Formatter


class Command(click.Command):
    """A command whose help shows examples before the options."""

    context_class = _Context
    examples: Sequence[str] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the options."""
        _write_examples(self.examples, formatter)
        super().format_options(ctx, formatter)


class _Program(click.Group):
    """The group of commands, each imported when it is needed."""

    context_class = _Context
    examples = ("multicast listen 239.1.2.3:5000", "multicast send 239.1.2.3:5000 hello", "multicast demo")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        found: click.Command = getattr(module, cmd_name)
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
            formatter.write_dl(list(COMMANDS.items()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(self.examples, formatter)
        super().format_options(ctx, formatter)

    # A broken pipe is told apart before click makes something else of it.

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            raise Closed from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise Closed from None

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
        handler = Log(out)
        log.addHandler(handler)
        try:
            with handling(_interrupt):
                code = super().main(args, "multicast", "_MULTICAST_COMPLETE", False, obj=out, **extra)
                sys.stdout.flush()
        except (Closed, BrokenPipeError):
            code = Exit.CLOSED
        except (click.Abort, KeyboardInterrupt):
            code = Exit.INTERRUPTED
        except (click.ClickException, errors.MulticastError, OSError) as error:
            code = explain(out, error)
        finally:
            log.removeHandler(handler)
        _finish()
        sys.exit(int(code or 0))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _open_missing() -> None:
    """See to it that 0, 1 and 2 are open; otherwise a socket of ours would get the number, and then the output.

    What is written to a stdout that was closed must not seem to have arrived, so there writing is an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                # This gets the lowest number that is free.
                os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
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
        return value if isinstance(value, Group) else parse_group(value)


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


class _AddressType(_Type):
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not (port.isdigit() and int(port) < 65536 and (":" not in host or (host[0], host[-1]) == ("[", "]"))):
            self.fail(f"{value!r} is not [HOST:]PORT; write 9100, 127.0.0.1:9100 or [::1]:9100", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)


#: A group as people write it; see `Group.parse`.
GROUP = _GroupType()
#: A time in seconds, as a decimal number.
SECONDS = _SecondsType()
#: A `Rate`: 10m, 500k, 1g, 500pps.
RATE = _RateType()
#: Where a server listens, as (host, port).
ADDRESS = _AddressType()


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

# Options of pasted URLs that are options of commands here: which parameter, and how it is written.
_OPTIONS_OF_URLS = {"ttl": ("ttl", "-t"), "bitrate": ("rate", "-b"), "localport": ("source_port", "--source-port")}
# Who receives does not miss them.
_FOR_SENDERS = frozenset({"ttl", "bitrate"})


def parse_group(text: str) -> Group:
    """Return the group that `text` names; say which options of a pasted URL have no effect. Raises `GroupError`."""
    group = Group.parse(text)
    context = click.get_current_context(silent=True)
    out = None if context is None else context.find_object(Output)
    if context is None or out is None:
        return group
    if text.strip().lower().startswith("rtp://"):
        context.meta[_RTP_URL] = True
    takes = {parameter.name for parameter in context.command.params}
    for key, value in unused_options(text):
        parameter, option = _OPTIONS_OF_URLS.get(key, ("", ""))
        said = f"{key}{'=' if value else ''}{value} in the URL is not used"
        if parameter in takes:
            if context.get_parameter_source(parameter) is not ParameterSource.COMMANDLINE:
                out.warn(printable(f"{said}; give {option} {value}"))
        elif key not in _FOR_SENDERS:
            out.warn(printable(said))
    return group


# Set in the context of a command where a group was written as an rtp:// URL.
_RTP_URL = "multicast.rtp"


def strip_rtp_option(function: _F) -> _F:
    """Add the option --strip-rtp: leave out the headers of RTP."""
    return click.option("--strip-rtp", is_flag=True, help="Leave out the RTP header where a packet has one.")(function)


def tell_rtp(out: Output, stripped: bool) -> None:
    """Say that RTP headers stay, where a group was written as an rtp:// URL and they were not to be left out."""
    if not stripped and click.get_current_context().meta.get(_RTP_URL):
        out.say("packets keep their RTP headers; --strip-rtp leaves them out")


# What can only have been meant to say where to send, though it is no group: a typing mistake in an address.
_ADDRESS = re.compile(r"(udp|rtp)://.*|@.*|\[.*|[0-9]+(\.[0-9]+)+(:.*)?", re.IGNORECASE | re.DOTALL)


def destination(words: Sequence[str], other_input: bool) -> tuple[Group, Sequence[str]]:
    """Return the group, and what remains of the arguments as text."""
    if not words:
        return Group(), ()
    try:
        return parse_group(words[0]), words[1:]
    except errors.GroupError:
        # One word alone may be a text for the default group, unless it was clearly meant to say where to send.
        if len(words) > 1 or other_input or _ADDRESS.fullmatch(words[0]):
            raise
        return Group(), words
