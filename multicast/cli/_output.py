"""What is printed where, and how a command waits and is interrupted.

* Data goes to stdout, everything else to stderr; so a pipe or a file gets data alone.
* Lines are written in blocks and flushed before each wait: a reader of the pipe has every packet at once, and a flood
  does not cost a system call for each line.
* What comes from peers is never written as it came: a packet that could move the cursor, or turn the text around, could
  make the terminal lie.
* Ctrl-C, SIGTERM and SIGHUP end the poller's loop and let the command finish its sentence; a second one does not wait.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from multicast.batch import Address
from multicast.poller import Poller

__all__ = [
    "Closed",
    "Output",
    "columns",
    "ending_signals",
    "handling",
    "narrowed",
    "payload",
    "plural",
    "printable",
    "quoted",
    "shown",
    "where",
]


class Closed(Exception):
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


def host_of(addr: Address) -> str:
    """Return the address of a peer, with its interface where it means nothing without one."""
    link_local = addr.host.lower().startswith("fe80:")
    return f"{addr.host}%{addr.interface}" if link_local and addr.interface else addr.host


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


def columns(stream: TextIO) -> int | None:
    """Return how many columns the terminal has that `stream` writes to; None where it is no terminal."""
    if not stream.isatty():
        return None
    try:
        asked = int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        asked = 0
    # A terminal that does not tell its size says 0.
    return asked if asked > 0 else os.get_terminal_size(stream.fileno()).columns or 80


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

    def table(
        self,
        head: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        spare: Sequence[str] = (),
        cut: int = 0,
        otherwise: Callable[[], object] | None = None,
    ) -> None:
        """Write rows in columns; as wide as they are, for a pipe has no width.

        A terminal has one. Where it is too narrow, columns of `spare` are left out, from the first on, then cells of
        the first `cut` columns are shortened. Where that is not enough either, `otherwise` is called instead.
        """
        cells = [[printable(cell) for cell in row] for row in (head, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        keep = list(range(len(widths)))
        room = columns(sys.stdout)

        def over() -> int:
            return 0 if room is None else max(0, sum(widths[place] + 2 for place in keep) - 2 - room)

        for name in spare:
            if over():
                keep.remove(head.index(name))
        widths[:cut] = narrowed(widths[:cut], over())
        if over() and otherwise is not None:
            otherwise()
            return
        for number, row in enumerate(cells):
            text = "  ".join(_fitted(row[place], widths[place]) for place in keep).rstrip()
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

        with handling(stop):
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


# What is left of a cell that is cut, in characters; less would say nothing.
_SHORTEST = 8


def narrowed(widths: Sequence[int], over: int) -> list[int]:
    """Return widths of columns that are less by `over` together, as far as that goes; the widest give most."""
    less = list(widths)
    for _ in range(over):
        widest = max(range(len(less)), key=less.__getitem__, default=None)
        if widest is None or less[widest] <= _SHORTEST:
            break
        less[widest] -= 1
    return less


def _fitted(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


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
        raise Closed


def _watch_reader() -> _Reader | None:
    try:
        fd = sys.stdout.fileno()
        return _Reader(fd) if stat.S_ISFIFO(os.fstat(fd).st_mode) else None
    except (OSError, ValueError):  # closed, or not a file at all
        return None


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end a command; below nohup(1) a hang-up ends nothing."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    return numbers if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*numbers, signal.SIGHUP]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a hang-up of the terminal call `handler` meanwhile."""
    numbers = ending_signals()
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
