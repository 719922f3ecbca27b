"""How commands end: the exit codes, and what goes wrong in words."""

from __future__ import annotations

import enum
import errno
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from multicast import errors

from ._output import Output, printable

__all__ = ["BadData", "Exit", "Log", "explain", "in_options", "in_words", "wording"]


class Exit(enum.IntEnum):
    """The exit codes; a command returns one of them, or None for yes."""

    YES = 0
    #: It ran, and the answer is no: nothing arrived, nobody answered, fewer than expected.
    NO = 1
    USAGE = 2
    #: The system refused: no such interface, or several where one must be named, no permission, port not shared, a
    #: library is missing.
    REFUSED = 3
    #: A file or a line of input is not what it should be.
    DATA = 4
    #: Interrupted before there was an answer.
    INTERRUPTED = 130
    #: The reader of our output has gone; what a shell reports of a program that SIGPIPE ended.
    CLOSED = 141


class BadData(errors.MulticastError, ValueError):
    """A line of input or a file is not what it should be; the message says where."""


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


def in_words(error: BaseException, out: Output) -> str:
    """Return what went wrong, for the command line: the cause, then what to do; numbers only for who asked for more."""
    text = errors.describe(error)
    return printable(in_options(text if out.verbose else _NUMBER.sub("", text)))


def _code(error: BaseException) -> Exit:
    if isinstance(error, (errors.CaptureError, errors.FrameError, BadData)):
        return Exit.DATA
    if isinstance(error, (errors.InterfaceError, OSError)) and not isinstance(error, errors.NoReply):
        return Exit.REFUSED
    return Exit.NO if isinstance(error, errors.NoReply) else Exit.USAGE


def explain(out: Output, error: Exception) -> Exit:
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
    if isinstance(error, OSError) and error.errno == errno.EBADF and error.filename is None:
        # No descriptor of ours is ever bad: it is stdout, which whoever started us has closed or opened for reading.
        out.fail("what this command prints cannot be written: standard output is closed")
        return Exit.REFUSED
    text = in_words(error, out)
    if isinstance(error, OSError) and error.errno is not None and not text.endswith("."):
        text += "."  # the kernel's words have none
    out.fail(text)
    return _code(error)


@contextmanager
def wording(option: str) -> Iterator[None]:
    """Say of a wrong expression what is wrong with it; the rest of the message is for programmers."""
    try:
        yield
    except errors.FilterError as error:
        raise click.UsageError(f"{option}: {str(error).partition(';')[0]}") from None


class Log(logging.Handler):
    """Shows what the library logs, as messages to the person."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, unless it is of no use."""
        # A receive buffer smaller than asked for matters only when packets are dropped, and then it is said.
        if record.funcName != "receive_buffer" or self._out.verbose:
            self._out.warn(in_options(record.getMessage()))
