"""Capture files as arguments of commands: files that are read, that are written, and that stand beside groups."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from multicast import capture
from multicast.errors import GroupError
from multicast.sockets import Group

from ._app import parse_group
from ._output import Output, printable

__all__ = ["PLACE", "CaptureFile", "apart", "as_if_they_arrived", "capture_file", "output_file"]

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # in older versions not generic


def capture_file(path: str) -> str | BinaryIO:
    """Return what is to be opened for a capture file that was named; - is standard input."""
    if path == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError("- is standard input, and there is none but the keyboard; give a pipe or a file")
        return sys.stdin.buffer
    if not os.path.exists(path):
        raise click.UsageError(f"there is no file {printable(path)}")
    return path


def output_file(out: Output, path: str) -> str:
    """Return what is to be opened for a capture file that is written; - is standard output, for a pipe or a file."""
    if path != "-":
        return path
    if out.json:
        raise click.UsageError("-o - and --json both write to standard output; give -o a name")
    if sys.stdout.isatty():
        raise click.UsageError("-o - writes bytes, and no terminal should get them: add | PROGRAM or > FILE")
    return "/dev/stdout"


# -- groups and files side by side -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptureFile:
    """A capture file that is named where a group may be."""

    path: str


class _PlaceType(_Type):
    name = "group or file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Group | CaptureFile:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            return parse_group(value)
        except GroupError:
            if value != "-" and not os.path.isfile(value) and not _LIKE_A_FILE.search(value):
                raise
        return CaptureFile(value)


# The names of captures, and paths: neither can be a group.
_LIKE_A_FILE = re.compile(r"/[^/]*/|^\.|\.(?:pcap|pcapng|cap|gz|zst)$")
#: A group, or a capture file whose packets are taken as if they arrived.
PLACE = _PlaceType()


def apart(
    places: Sequence[Group | CaptureFile], not_for_files: Sequence[tuple[str, object]]
) -> tuple[list[Group], list[CaptureFile]]:
    """Return the groups and the files among `places`; refuse options that mean nothing where there are files.

    `not_for_files` are these options, each with what it was given, None where it was not.
    """
    groups = [place for place in places if isinstance(place, Group)]
    files = [place for place in places if isinstance(place, CaptureFile)]
    given = [name for name, value in not_for_files if value is not None]
    if files and given:
        names, it = (f"{given[0]} is", "it") if len(given) == 1 else (f"{' and '.join(given)} are", "them")
        raise click.UsageError(f"{names} for what arrives, and a file was named; leave {it} out")
    return groups, files


@contextmanager
def as_if_they_arrived(
    files: Sequence[CaptureFile], groups: Sequence[Group]
) -> Iterator[tuple[capture.Series, Iterator[capture.Packet]]]:
    """Open capture files; the packets are those for `groups`, from the sources that these name, or all without."""
    wanted = {(group.address, group.port): group.sources for group in groups}

    def chosen(series: capture.Series) -> Iterator[capture.Packet]:
        for packet in series:
            sources = wanted.get((packet.group, packet.port))
            if wanted and (sources is None or (sources and packet.source[0] not in sources)):
                continue
            yield packet

    with capture.Series([capture_file(file.path) for file in files], partial=True) as series:
        yield series, chosen(series)
