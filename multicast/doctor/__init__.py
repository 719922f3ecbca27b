"""Why do I receive nothing? `diagnose` looks at the way of a packet and says what stops it.

It listens for a while, to the group as asked and to everything near it, and compares the kernel's counters before and
after. As root it looks at the wire and the firewall as well. It changes nothing: its memberships end with it, and it
sends nothing to the group.

The files of the package: `evidence` gathers, from `kernel` and `wire`; `firewall` understands rules; `checks` judges,
without any input or output; `messages` has all that can be said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from multicast.errors import ArgumentError, check_seal
from multicast.interfaces import route
from multicast.sealed import Seal
from multicast.sockets import Group, WhichInterfaces, named

from .checks import judge
from .checks.departure import judge_departure
from .comparing import compare, report_events, sent_from
from .departure import Sketch, Stream, arrivals, gather_departure, new_salt, total
from .evidence import gather
from .messages import MESSAGES, Finding, Message

__all__ = [
    "MESSAGES",
    "Comparison",
    "Diagnosis",
    "Finding",
    "Message",
    "Sending",
    "compare_with",
    "diagnose",
    "diagnose_sending",
]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, check by check, along the way of a packet."""

    #: What was asked for, with the sources.
    group: Group
    #: The interfaces that were asked for, by name; empty means all.
    interfaces: tuple[str, ...]
    #: How long it looked, in seconds.
    seconds: float
    #: How many packets arrived as asked.
    packets: int
    #: What each check found, in the order of a packet's way.
    findings: tuple[Finding, ...]

    @property
    def fault(self) -> Finding | None:
        """The first check that fails, or None where none does."""
        return next((finding for finding in self.findings if finding.status == "fail"), None)

    @property
    def healthy(self) -> bool:
        """Whether no check fails; there may be warnings."""
        return self.fault is None

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is no fault, and may become one."""
        return tuple(finding for finding in self.findings if finding.status == "warn" and finding.code)


def diagnose(
    group: Group | str = "",
    *,
    interface: WhichInterfaces = None,
    source: str | Iterable[str] | None = None,
    wait: float = 5.0,
    progress: Callable[[float, int], object] | None = None,
    seal: Seal | None = None,
    lines: Iterable[Group | str] = (),
    program: str | int = "",
) -> Diagnosis:
    """Find out why nothing arrives for `group`, a `Group` or text that `Group.parse` reads.

    `interface` is where the packets should arrive, None any; `source` who should send them, None anybody. It listens
    for `wait` seconds; in that time there should be traffic. `progress(left, packets)` is called now and then with the
    seconds that are left and the packets that have arrived. `seal` (a `sealed.Seal`) is that of the program; packets
    with another key are a fault then. `lines` are further groups that carry the same feed, MoldUDP64 or RTP; what one
    of them lacks is a fault. `program`, a process id or a name, is the program to judge, and no other then. Without
    CAP_NET_RAW and CAP_NET_ADMIN some checks are skipped, and say so.

    Raises `GroupError`, `ArgumentError`, `InterfaceError` for an interface that does not exist, and `OSError`.
    """
    group = _group_of(group, source)
    _check_wait(wait)
    check_seal(seal)
    others = [Group.parse(line) if isinstance(line, str) else line for line in lines]
    evidence = gather(group, interface, wait, progress, seal, others, str(program))
    return Diagnosis(group, evidence.asked, wait, evidence.delivered, judge(evidence))


@dataclass(frozen=True, slots=True)
class Sending(Diagnosis):
    """What was found at the sender's end; `packets` is how many left this host."""

    streams: tuple[Stream, ...] = ()
    _sketch: Sketch = field(default_factory=Sketch)

    def report(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what the other end needs beside the findings: events by name, with their fields.

        Payloads are in it as salted digests (BLAKE2b) of a thousand of them at the most.
        """
        return report_events(self.streams, self._sketch, new_salt())


def diagnose_sending(
    group: Group | str = "",
    *,
    interface: WhichInterfaces = None,
    wait: float = 5.0,
    progress: Callable[[float, int], object] | None = None,
) -> Sending:
    """Find out what leaves this host for `group`, and what keeps it back, while a program sends.

    The arguments and what is raised are as for `diagnose`. It sends nothing. Without CAP_NET_RAW and CAP_NET_ADMIN
    what leaves cannot be seen, and the checks say so.
    """
    group = _group_of(group, None)
    _check_wait(wait)
    found, sketch = gather_departure(group, interface, wait, progress)
    left = total(found.outer)
    return Sending(group, found.asked, wait, left, judge_departure(found), tuple(found.outer), sketch)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of what a sender sent."""

    group: Group
    #: The interfaces that were asked for; empty means all.
    interfaces: tuple[str, ...]
    #: How long it looked here, in seconds.
    seconds: float
    #: How many packets arrived.
    packets: int
    #: The verdict.
    finding: Finding


def compare_with(
    path: str | os.PathLike[str],
    group: Group | str = "",
    *,
    interface: WhichInterfaces = None,
    wait: float = 5.0,
    patience: float = 0.0,
    progress: Callable[[float, int], object] | None = None,
) -> Comparison:
    """Look at what arrives here for `group`, and compare it with the report of the sender in the file at `path`.

    The report is the output of ``multicast doctor --sending --json``. The file is read when the look is over; where it
    is not there yet, it is waited for `patience` seconds. Packets are matched where both looked at the same time. The
    other arguments are as for `diagnose`.

    Raises `ArgumentError` for a file that is no report, `OSError` for one that cannot be read, and what `diagnose`
    raises.
    """
    group = _group_of(group, None)
    _check_wait(wait)
    streams, sketch = arrivals(group, interface, wait, progress)
    until = time.monotonic() + patience
    while True:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            sent = sent_from(text, os.fspath(path))
            break
        except (FileNotFoundError, ArgumentError):
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)
    back = None
    for one in sent.streams[:1]:
        try:
            back = route(one.source)
        except OSError:
            pass
    verdict = compare(sent, group, wait, streams, sketch, back)
    asked = tuple(str(one) for one in named(group, interface))
    return Comparison(group, asked, wait, total(streams), verdict)


def _group_of(group: Group | str, source: str | Iterable[str] | None) -> Group:
    if not isinstance(group, Group):
        group = Group.parse(group)
    if source is not None:
        sources = (source,) if isinstance(source, str) else tuple(source)
        group = Group(group.address, group.port, group.interfaces, sources)
    return group


def _check_wait(wait: float) -> None:
    if not 0 < wait < 1e9:
        raise ArgumentError(f"wait must be a number of seconds, more than 0, not {wait!r}")
