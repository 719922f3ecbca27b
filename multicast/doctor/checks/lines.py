"""Does each line of a feed carry all of it?"""

from __future__ import annotations

from multicast.doctor.evidence import Evidence
from multicast.doctor.messages import Finding

from .facts import about, finding, lasted, ok, skip

__all__ = ["check_lines"]


def check_lines(e: Evidence) -> Finding:
    """Do the lines of a feed lack what another of them has?"""
    name = "lines"
    if not e.compared:
        return skip(name, "there is one line alone; `--line GROUP` names another of the same feed")
    if not e.lines:
        return skip(name, "no numbered packets came, MoldUDP64 or RTP")
    counts = ", ".join(f"{line.group} {line.received} messages, {line.missing} missing" for line in e.lines)
    seen = f"{counts} in {lasted(e)} s"
    worst = max(e.lines, key=lambda line: line.missing)
    if not worst.missing:
        return ok(name, seen)
    words = {**about(e), "line": worst.group, "missing": worst.missing}
    if not worst.received:
        return finding(name, "fail", "line-silent", seen, **words)
    return finding(name, "fail", "line-lacks", seen, **words)
