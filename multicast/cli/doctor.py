"""The command `doctor`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from multicast.doctor import Comparison, Diagnosis, Finding, Sending, compare_with, diagnose, diagnose_sending
from multicast.sockets import Group

from ._app import GROUP, SECONDS, command, interfaces_option
from ._errors import Exit, in_options
from ._output import Output, columns, plural, printable, where
from ._sealing import key_option

if TYPE_CHECKING:
    from multicast.sealed import Seal

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
# For how many seconds the report of a sender is waited for, which somebody has to copy.
_PATIENCE = 600.0
_WORDS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "skip": "skip"}


@command(
    "doctor",
    json=True,
    examples=[
        "multicast doctor 239.1.2.3:5000",
        "sudo multicast doctor 239.1.2.3:5000 -i eth0 --from 10.0.0.5",
        "multicast doctor '[ff02::c%eth0]:1900' -w 10 --json",
        "sudo multicast doctor 239.1.2.3:5000 --sending --json > sender.json",
        "sudo multicast doctor 239.1.2.3:5000 --compare sender.json",
    ],
)
@click.argument("group", metavar="[GROUP]", type=GROUP, default="")
@interfaces_option("Where the packets should arrive: a name, an index, an address, several with commas or by several"
                   " -i, or all. Left out, anywhere.")
@click.option("--from", "sources", metavar="SOURCE", multiple=True,
              help="Who should send them: an address, several by several --from. Left out, anybody.")
@click.option("-w", "--deadline", type=SECONDS, metavar="SECONDS", default=5.0, show_default=True,
              help="How long to look. Meanwhile there should be traffic.")
@click.option("--line", "lines", metavar="GROUP", multiple=True, type=GROUP,
              help="Another group that carries the same numbered feed, MoldUDP64 or RTP: what does one of them lack?")
@click.option("--program", metavar="PID|NAME", default="",
              help="Judge the sockets of this program, and of no other: does it get the packets?")
@click.option("--sending", is_flag=True,
              help="Look at what leaves this host for the group instead; to be run on the sender while it sends.")
@click.option("--compare", "report", metavar="FILE", type=click.Path(dir_okay=False),
              help="Compare what arrives with what --sending --json has written on the sender, best at the same time. A"
                   " file that is not there yet is waited for.")
@key_option("Compare the packets")
def doctor(
    out: Output,
    group: Group,
    interfaces: list[str] | None,
    sources: tuple[str, ...],
    deadline: float,
    lines: tuple[Group, ...],
    program: str,
    sending: bool,
    report: str | None,
    seal: Seal | None,
) -> Exit:
    """Find out why nothing arrives.

    Run it where packets are missed, while the sender sends and, if there is one, the program runs that misses them.
    It listens for some seconds, compares the kernel's counters, and looks at interfaces, routes, filters and sockets;
    as root also at the wire and at the firewall. Then it says what each check has found, with -v also of those that
    found nothing wrong, and last what stops the packets and what mends it. It changes nothing and sends nothing to the
    group.

    Exit code 0 when no fault was found, 1 when one was or nothing arrived, 3 when the system refused to let it look.
    """
    if not deadline:
        raise click.UsageError("-w must be more than 0 seconds: what happens in no time cannot be seen")
    both = sending and report is not None
    if both or ((sending or report is not None) and (sources or lines or seal or program)):
        raise click.UsageError("--sending and --compare go with -i, -w and --json, and neither with the other")
    watch = _Watch(out, group, deadline)
    chosen = interfaces or list(group.interfaces) or None
    diagnosis: Diagnosis
    try:
        if report is not None:
            return _compare(out, report, group, chosen, deadline, watch)
        if sending:
            diagnosis = diagnose_sending(group, interface=chosen, wait=deadline, progress=watch.tell)
        else:
            diagnosis = diagnose(
                group,
                interface=chosen,
                source=sources or None,
                wait=deadline,
                progress=watch.tell,
                seal=seal,
                lines=lines,
                program=program,
            )
    finally:
        watch.clear()
    if out.json:
        _write_json(out, diagnosis)
    else:
        _write_text(out, diagnosis)
    return Exit.YES if diagnosis.healthy else Exit.NO


def _compare(
    out: Output, report: str, group: Group, interfaces: list[str] | None, deadline: float, watch: _Watch
) -> Exit:
    """Say what became of what the sender's report tells of."""

    def tell(left: float, packets: int) -> None:
        watch.tell(left, packets)
        if not left and not os.path.exists(report):
            watch.clear()
            out.say(f"waiting for {printable(report)}, the report of the sender")

    found = compare_with(report, group, interface=interfaces, wait=deadline, patience=_PATIENCE, progress=tell)
    watch.clear()
    finding = found.finding
    if out.json:
        out.event("check", **_fields(finding))
        failed, warned = finding.status == "fail", finding.status == "warn"
        _write_summary(out, found, not failed, finding if failed else None, [finding.code] if warned else [])
    elif finding.status == "ok":
        _write(out, "", f"No fault found: {finding.cause}.", "green")
    else:
        _write_causes(out, finding, *(("But:", "yellow") if finding.status == "warn" else ("Cause:", "red")))
    return Exit.NO if finding.status == "fail" else Exit.YES


class _Watch:
    """Tells on stderr how the look goes on: once, and on a terminal again and again in the same line."""

    def __init__(self, out: Output, group: Group, seconds: float) -> None:
        self._out = out
        self._live = sys.stderr.isatty() and not out.quiet
        self._text = f"looking for packets to {group}"
        self._seconds = seconds
        self._told = False
        self._width = 0

    def tell(self, left: float, packets: int) -> None:
        """Say how it stands; called when the look begins, which what was asked for may not let it, and then on."""
        if not self._told and not self._live:
            self._out.say(f"{self._text} for {self._seconds:.3g} s")
        self._told = True
        if self._live:
            room = (columns(sys.stderr) or 80) - 1
            news = f"{plural(packets, 'packet')}, {left:.0f} s left"
            text = f"{self._text}: {news}"
            text = text if len(text) <= room else news[:room]
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Make room for the result."""
        if self._live and self._told:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


def _write_json(out: Output, diagnosis: Diagnosis) -> None:
    for finding in diagnosis.findings:
        out.event("check", **_fields(finding))
    if isinstance(diagnosis, Sending):
        for name, values in diagnosis.report():
            out.event(name, **values)
    warnings = [finding.code for finding in diagnosis.warnings]
    _write_summary(out, diagnosis, diagnosis.healthy, diagnosis.fault, warnings)


def _write_summary(
    out: Output, found: Diagnosis | Comparison, healthy: bool, fault: Finding | None, warnings: list[str]
) -> None:
    out.event(
        "summary",
        healthy=healthy,
        fault=None if fault is None else _fields(fault),
        warnings=warnings,
        group=found.group.address,
        port=found.group.port,
        sources=found.group.sources,
        interfaces=found.interfaces,
        packets=found.packets,
        seconds=found.seconds,
    )


def _fields(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "status": finding.status,
        "code": finding.code or None,
        "cause": finding.cause,
        "fixes": finding.fixes,
        "seen": finding.seen or None,
    }


def _write_text(out: Output, diagnosis: Diagnosis) -> None:
    """Write what the checks have found, and last, where it stays on the screen, what stops the packets."""
    fault = diagnosis.fault
    told = {fault} if fault is not None else set(diagnosis.warnings)
    _write_checks(out, diagnosis.findings, told)
    out.line()
    if fault is not None:
        _write_causes(out, fault, "Cause:", "red")
        return
    target = where(diagnosis.group.address, diagnosis.group.port)
    if isinstance(diagnosis, Sending):
        left = plural(diagnosis.packets, "packet")
        text = f"No fault found: {left} for {target} left in {diagnosis.seconds:.3g} s."
        if not diagnosis.packets:
            text = f"No fault found; whether anything for {target} leaves takes root to see."
    elif diagnosis.packets:
        arrived = plural(diagnosis.packets, "packet")
        text = f"No fault found: {arrived} for {target} arrived in {diagnosis.seconds:.3g} s."
    else:  # that nothing arrives is a fault, but where it could not listen
        text = f"No fault found; whether anything for {target} arrives could not be heard."
    _write(out, "", text, "green")
    for warning in diagnosis.warnings:
        _write_causes(out, warning, "But:", "yellow")


def _write_checks(out: Output, findings: Sequence[Finding], told: Collection[Finding]) -> None:
    """Write a line for each check; of those that found nothing wrong, or had nothing to look at, one for all."""
    if not out.verbose:
        for status in ("ok", "skip"):
            names = [finding.check for finding in findings if finding.status == status]
            if names:
                _write_check(out, status, ", ".join(names))
        findings = [finding for finding in findings if finding.status not in ("ok", "skip")]
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        # What stands below in full is not said twice.
        text = finding.seen if finding in told else finding.cause + (f" ({finding.seen})" if finding.seen else "")
        _write_check(out, finding.status, text, f"{finding.check:{width}}  ")


def _write_check(out: Output, status: str, text: str, name: str = "") -> None:
    lead = f"{_WORDS[status]:4}  {name}"
    first, *more = _wrapped(text, len(lead))
    out.line(out.style(lead[:4], _COLOURS[status]) + lead[4:] + first)
    for line in more:
        out.line(" " * len(lead) + line)


def _write_causes(out: Output, finding: Finding, label: str, colour: str) -> None:
    _write(out, label, finding.cause, colour)
    for number, fix in enumerate(finding.fixes):
        # Commands are not broken into lines: they are there to be copied.
        out.line(f"{'Fix:' if number == 0 else '   or':7}{printable(in_options(_runnable(fix)))}")
    _write(out, "Seen:", finding.seen, "")


def _runnable(fix: str) -> str:
    """Return a command with the path of this one where sudo would not find it.

    sudo(8) has a search path of its own, without virtual environments and homes.
    """
    path = shutil.which("multicast", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}")
    elsewhere = "  # on " in fix  # another host, which may have it anywhere
    if not fix.startswith("sudo multicast ") or elsewhere or path is None or os.path.dirname(path) in _SECURE_PATH:
        return fix
    return fix.replace("multicast", shlex.quote(path), 1)


# The search path that sudo has on most systems (secure_path in sudoers(5)).
_SECURE_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def _write(out: Output, label: str, text: str, colour: str) -> None:
    lead = f"{label:7}" if label else ""
    for number, line in enumerate(_wrapped(text, len(lead))):
        start = lead if number == 0 else " " * len(lead)
        out.line(start + (out.style(line, "bold", colour) if colour else line))


def _wrapped(text: str, indent: int) -> list[str]:
    """Return `text` in lines that fit on the terminal; in one line where there is none."""
    text = printable(text)
    width = columns(sys.stdout)
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - indent), break_long_words=False, break_on_hyphens=False) or [""]
