"""The command `record`: groups into a capture file."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from multicast import capture
from multicast.measure import rtp_payload
from multicast.poller import Poller
from multicast.sockets import Group

from ._app import (
    GROUP,
    command,
    count_option,
    deadline_option,
    interfaces_option,
    strip_rtp_option,
    tell_rtp,
)
from ._captures import output_file
from ._errors import Exit, wording
from ._input import named
from ._output import Output, plural, printable
from ._progress import Progress
from ._sealing import counted, key_option, not_opened

__all__ = ["record"]

if TYPE_CHECKING:
    from multicast.sealed import Seal

    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # in older versions not generic



class _SizeType(_Type):
    name = "size"
    _WRITTEN = re.compile(r"([0-9]+)([kmg]?)b?", re.IGNORECASE)
    _FACTORS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}  # noqa: RUF012 -- never changed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = self._WRITTEN.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write 100M for 100 million bytes, 500k, 2G, or a number", param, ctx)
        return int(match[1]) * self._FACTORS[match[2].lower()]


class _RotateType(_Type):
    name = "size"
    _WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|h|d)", re.IGNORECASE)
    _SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}  # noqa: RUF012 -- never changed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Return a size as an int, or a time in seconds as a float."""
        match = self._WRITTEN.fullmatch(str(value).strip())
        if match is None:
            return _SIZE.convert(value, param, ctx)
        return float(match[1]) * self._SECONDS[match[2].lower()]


_SIZE = _SizeType()
_ROTATE = _RotateType()




class _WithoutRtp(capture.Recorder):
    """Records packets without the headers of RTP."""

    def kept(self, packets: list[bytes]) -> list[bytes]:
        stripped = [rtp_payload(packet) for packet in packets]
        return [packet if found is None else found for packet, found in zip(packets, stripped, strict=True)]


@command(
    "record",
    json=True,
    examples=[
        "multicast record 239.1.2.3:5000 -o feed.pcapng",
        "multicast record mdns ssdp -o discovery.pcapng -w 60",
        "multicast record 239.1.2.3:5000 -o feed.pcapng --rotate 100M --keep 10",
    ],
)
@click.argument("groups", metavar="[GROUP...]", nargs=-1, type=GROUP)
@click.option("-o", "--output", "path", metavar="FILE", required=True,
              help="The file to write, in pcapng; .gz or .zst at the end of its name compress it; - is standard output."
                   " One that is there is replaced.")
@strip_rtp_option
@count_option("Stop after N packets.")
@deadline_option("Stop after so many seconds.")
@click.option("--rotate", "rotations", type=_ROTATE, metavar="SIZE|TIME", multiple=True,
              help="Begin another file when this one has SIZE bytes, as 100M, or is as old as TIME, as 10min, 1h or 1d:"
                   " NAME-00001.pcapng and so on. Both may be given.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="With --rotate: keep the N latest files.")
@click.option("--snaplen", type=click.IntRange(min=64), metavar="N",
              help="Keep the first N bytes of each packet, headers included.")
@click.option("--filter", "expression", metavar="REGEX",
              help="Only packets that match this regular expression at their start.")
@interfaces_option("Record on this interface: a name, an index, an address, several with commas or by several -i, or"
                   " all. Left out, all that are up and can do multicast.")
@key_option("Open the packets")
@click.option("--sealed", "keep_sealed", is_flag=True,
              help="With --key: record the packets that open as they came, sealed.")
def record(
    out: Output,
    groups: tuple[Group, ...],
    path: str,
    strip_rtp: bool,
    count: int | None,
    deadline: float | None,
    rotations: tuple[int | float, ...],
    keep: int | None,
    snaplen: int | None,
    expression: str | None,
    interfaces: list[str] | None,
    seal: Seal | None,
    keep_sealed: bool,
) -> Exit:
    """Record groups to a capture file that Wireshark, tcpdump and `multicast replay` open.

    Each packet has the time at which the kernel received it, in nanoseconds. The file is brought up to date every
    second, and on SIGUSR1. Ctrl-C, SIGTERM and SIGHUP close it. GROUP is written as for `multicast listen`.
    """
    target = output_file(out, path)
    rotate = next((one for one in rotations if isinstance(one, int)), None)
    every = next((one for one in rotations if isinstance(one, float)), None)
    if len(rotations) > (rotate is not None) + (every is not None):
        raise click.UsageError("--rotate: give one size and one time at the most")
    if rotations and path == "-":
        raise click.UsageError("--rotate makes files, and -o - writes to standard output; give a name")
    if keep is not None and not rotations:
        raise click.UsageError("--keep says how many files stay, so it needs --rotate")
    if rotate is not None and rotate < 4096:
        raise click.UsageError(f"--rotate: {rotate} bytes are no room for packets; 4096 are the least")
    if keep_sealed and seal is None:
        raise click.UsageError("--sealed says what becomes of packets that open, so it needs --key FILE")
    wanted = list(dict.fromkeys(groups or (Group(),)))
    tell_rtp(out, strip_rtp)
    with Poller() as poller:
        kind = _WithoutRtp if strip_rtp else capture.Recorder
        file = capture.Writer(target, snaplen=snaplen, rotate=rotate, every=every, keep=keep)
        with file, wording("--filter"), _written_on_signal(poller, file):
            recorders = [
                kind(
                    file,
                    expression,
                    group.address,
                    group.port,
                    limit=count,
                    interface=interfaces or list(group.interfaces) or None,
                    sources=group.sources,
                    seal=seal,
                    keep_sealed=keep_sealed,
                    poller=poller,
                )
                for group in wanted
            ]
            for recorder in recorders:
                names = ", ".join(printable(interface.name) for interface in recorder.interfaces)
                out.say(f"recording {recorder.group} on {names} to {named(path, 'standard output')}")

            def dropped() -> int:
                return sum(recorder.statistics().dropped for recorder in recorders)

            began = time.monotonic()
            progress = Progress(
                out,
                poller,
                lambda: (
                    f"{plural(file.packets, 'packet')}, {plural(file.bytes, 'byte')}, {time.monotonic() - began:.0f} s;"
                    f" kernel dropped {dropped()}"
                ),
                lambda: {"packets": file.packets, "bytes": file.bytes, "dropped": dropped()},
            )
            finished = True
            try:
                with _told_last(file):
                    finished = out.drive(poller, lambda: recorders[0].complete, deadline, writes=out.json)
            finally:
                progress.end()
            seconds = time.monotonic() - began
            for recorder in recorders:
                with _told_last(file):
                    recorder.close()
            with _told_last(file):
                file.close()
            lost = dropped()
            filtered = sum(recorder.statistics().filtered for recorder in recorders)
    if out.json:
        out.event(
            "summary",
            file=file.path,
            packets=file.packets,
            bytes=file.bytes,
            seconds=round(seconds, 6),
            dropped=lost,
            filtered=filtered,
            lost=file.lost,
            **counted(*recorders),
        )
    unopened = not_opened(*recorders)
    if unopened:
        out.say(unopened)
    text = f"{plural(file.packets, 'packet')}, {plural(file.bytes, 'byte')}, {seconds:.1f} s"
    text += f", {plural(filtered, 'packet')} refused by the filter" if filtered else ""
    written = named(path if path == "-" else file.path, "standard output")
    out.say(f"{written}: {text}; kernel dropped {lost}")
    if file.error is not None:
        raise file.error
    if not file.packets:
        out.say(f"nothing arrived. Next: multicast listen {' '.join(map(str, wanted))}")
        return Exit.NO if finished else Exit.INTERRUPTED
    return Exit.YES


@contextmanager
def _written_on_signal(poller: Poller, file: capture.Writer) -> Iterator[None]:
    """Have SIGUSR1 write what is gathered, in the next poll."""

    def write() -> None:
        if not file.closed:
            file.flush()

    before = signal.signal(signal.SIGUSR1, lambda number, frame: poller.call_soon(write))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _told_last(file: capture.Writer) -> Iterator[None]:
    """Go on where the file ends early, for the disk is full: what is in it is to be told before the error."""
    try:
        yield
    except OSError as error:
        if error is not file.error:
            raise


