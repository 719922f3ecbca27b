"""What the evidence means: pure functions, one for each check, in the order of a packet's way.

Each returns a `Finding`. It says no more than was measured: where a cause is likely and not certain, the sentence says
so. A setting that would stop packets is a fault only when packets are missing; when they arrive all the same it is a
warning at most. What other programs on this host suffer is a fault whether or not packets reach us.

That nothing arrived is a fault of its own only where no other check explains it, so that check is judged last and put
in its place on the way.

The files beside this one are stations of the way. `wire` and `kernel` judge what the files of these names one folder up
have read; `facts` is what all of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from multicast.doctor.evidence import Evidence
from multicast.doctor.messages import Finding

from . import interfaces, kernel, lines, programs, seal, sockets, wire

__all__ = ["CHECKS", "judge"]

# The way of a packet: wire, interface, kernel, socket, program. None stands where a check is judged after the others,
# for what they explain is no fault of its own.
_WAY: dict[str, Callable[[Evidence], Finding] | None] = {
    "group": interfaces.check_group,
    "interface": interfaces.check_interface,
    "route": interfaces.check_route,
    "arrival": None,
    "bridge": wire.check_bridge,
    "ttl": wire.check_ttl,
    "address": wire.check_address,
    "fragments": kernel.check_fragments,
    "checksum": kernel.check_checksum,
    "rp_filter": kernel.check_reverse_path,
    "firewall": kernel.check_firewall,
    "igmp": kernel.check_igmp,
    "port": sockets.check_port,
    "membership": sockets.check_membership,
    "loopback": sockets.check_loopback,
    "delivery": None,
    "lines": lines.check_lines,
    "seal": seal.check_seal,
    "program": programs.check_program,
    "buffer": programs.check_buffer,
    "package": programs.check_package,
    "engine": programs.check_engine,
}

#: The names of the checks, in their order.
CHECKS = tuple(_WAY)


def judge(e: Evidence) -> tuple[Finding, ...]:
    """Return what each check makes of the evidence, in the order of `CHECKS`."""
    found = {name: check(e) for name, check in _WAY.items() if check is not None}
    # The checksum of UDP is looked at after the rules for input: packets that a rule drops are not among the counted.
    if found["firewall"].status == found["checksum"].status == "fail":
        found["checksum"] = replace(found["checksum"], status="warn")
    # Measured before likely: a route that is missing stops no program that names its interface.
    if found["route"].status == "fail" and found["rp_filter"].status == "fail":
        found["route"] = replace(found["route"], status="warn")
    explained = next((found[name] for name in CHECKS if name in found and found[name].status == "fail"), None)
    found["arrival"] = wire.check_arrival(e, explained)
    arrival = found["arrival"] if found["arrival"].status == "fail" else None
    found["delivery"] = sockets.check_delivery(e, explained or arrival)
    return tuple(found[name] for name in CHECKS)
