"""Why do I receive nothing? `diagnose` looks at the way of a packet and says what stops it.

It listens for a while, to the group as asked and to everything near it, and compares the kernel's counters before and
after. As root it looks at the wire and the firewall as well. It changes nothing: its memberships end with it, and it
sends nothing to the group.

The files of the package: `evidence` gathers, from `kernel` and `wire`; `firewall` understands rules; `checks` judges,
without any input or output; `messages` has all that can be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from multicast.errors import ArgumentError, check_seal
from multicast.sealed import Seal
from multicast.sockets import Group, WhichInterfaces

from .checks import judge
from .evidence import gather
from .messages import MESSAGES, Finding, Message

__all__ = ["MESSAGES", "Diagnosis", "Finding", "Message", "diagnose"]


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
    of them lacks is a fault. `program`, a process id or a name, is the program to judge, and no other then.
    Without CAP_NET_RAW and CAP_NET_ADMIN some checks are
    skipped, and say so.

    Raises `GroupError`, `ArgumentError`, `InterfaceError` for an interface that does not exist, and `OSError`.
    """
    if not isinstance(group, Group):
        group = Group.parse(group)
    if source is not None:
        sources = (source,) if isinstance(source, str) else tuple(source)
        group = Group(group.address, group.port, group.interfaces, sources)
    if not 0 < wait < 1e9:
        raise ArgumentError(f"wait must be a number of seconds, more than 0, not {wait!r}")
    check_seal(seal)
    others = [Group.parse(line) if isinstance(line, str) else line for line in lines]
    evidence = gather(group, interface, wait, progress, seal, others, str(program))
    return Diagnosis(group, evidence.asked, wait, evidence.delivered, judge(evidence))
