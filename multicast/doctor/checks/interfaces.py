"""Is this host set up for the group: the address itself, the interfaces, the route."""

from __future__ import annotations

import errno
import ipaddress

from multicast.doctor.evidence import Evidence, reason
from multicast.doctor.messages import Finding, Status
from multicast.interfaces import Interface

from .facts import about, finding, lasted, listed, ok, packets, problem, skip, target, unique, way

__all__ = ["check_group", "check_interface", "check_route"]


def check_group(e: Evidence) -> Finding:
    """Is the group one that can be joined as it was asked for?"""
    group = e.group
    if group.needs_interface and not e.asked:
        heard = unique(seen.interface for seen in e.arrived)
        outer = [one.name for one in e.outer]
        seen = f"it arrived on {listed(heard)}" if heard else f"this host has {listed([str(one) for one in e.present])}"
        name = heard[0] if len(heard) == 1 else outer[0] if len(outer) == 1 else "INTERFACE"
        words = {**about(e), "zoned": target(group.address, group.port, f"%{name}")}
        return finding("group", "fail", "zone-missing", seen, **words)
    if group.is_source_specific and not group.sources:
        seen = f"{packets(e.delivered)} arrived in {lasted(e)} s"
        heard = unique(one.source for one in e.arrived)
        words = {**about(e), "source": heard[0] if len(heard) == 1 else "SOURCE"}
        return finding("group", "fail" if e.lacking else "warn", "source-missing", seen, **words)
    sources = f" from {listed(group.sources)}" if group.sources else ""
    return ok("group", f"{group.address}{sources}, port {group.port}: {_scope(e)}")


# RFC 4291 section 2.7 and RFC 7346; RFC 2365, RFC 5771.
_SCOPES = {
    1: "this host", 2: "link-local", 3: "realm-local", 4: "admin-local", 5: "site-local", 8: "organization-local"
}


def _scope(e: Evidence) -> str:
    address = ipaddress.ip_address(e.group.address)
    if address.version == 6:
        return _SCOPES.get(address.packed[1] & 15, "global scope")
    if address.packed[:3] == b"\xe0\0\0":
        return "link-local, never routed"
    if address.packed[0] == 239:
        return "administratively scoped"
    return "source-specific" if e.group.is_source_specific else "globally scoped"


def check_interface(e: Evidence) -> Finding:
    """Can the interfaces receive?"""
    if not e.asked and not any(one.up for one in e.present):
        states = "; ".join(map(_state, e.present))
        name = next((one.name for one in e.outer if one.addresses), "lo")
        return finding("interface", "fail", "none-up", states, **{**about(e), "interface": name})
    wanted = (
        [one for one in e.present if one.name in e.asked]
        if e.asked
        else [one for one in e.outer if one.name not in e.masters]
    )
    status: Status = "fail" if e.lacking else "warn"
    bad = [(one, code) for one in wanted if (code := problem(e, one)) is not None]
    # Who named none has others to receive by, if only lo: when something arrives, all is well.
    if bad and (e.asked or (len(bad) == len(wanted) and not e.delivered)):
        one, code = next((each for each in bad if each[0].addresses), bad[0])
        # What such a bridge keeps from its port is another check's matter.
        if any(one.name in bridge.unflooded for bridge in e.bridges or ()):
            status = "warn"
        words = {**about(e), "interface": one.name, "master": e.masters.get(one.name, "")}
        return finding("interface", status, code, _state(one), **words)
    elsewhere = (errno.ENOBUFS, errno.EADDRINUSE, errno.EACCES)  # what the checks of membership and port tell
    why = {name: reason(error) for name, error in e.refused.items() if error.errno not in elsewhere}
    why |= {name: "it is gone" for name in e.asked if name not in [one.name for one in e.present]}
    for name in (*e.asked, ""):
        if name in why:
            states = "; ".join(map(_state, wanted)) or "it was there when the look began"
            words = {**about(e), "interface": name or "any interface", "reason": why[name]}
            return finding("interface", "fail", "join-refused", states, **words)
    good = [one for one in wanted if one not in [each for each, _ in bad]]
    notes = [f"{one.name} {_SHORT[code]}" for one, code in bad]
    text = "; ".join([*map(_state, good[:4]), *notes[:4]])
    return ok("interface", text or "only lo, which stays on this host")


_SHORT = {
    "interface-down": "is down",
    "no-carrier": "has no carrier",
    "bridge-port": "is a port of a bridge",
    "no-multicast-flag": "lacks the flag MULTICAST",
    "no-address": "has no IPv4 address",
    "no-ipv6": "has no IPv6 address",
}


def _state(one: Interface) -> str:
    flags = [
        "up" if one.up else "down",
        "carrier" if one.running else "no carrier",
        "MULTICAST" if one.multicast else "lo" if one.loopback else "no MULTICAST flag",
    ]
    return f"{one.name} {', '.join([*flags, *(one.addresses[:2] or ['no address']), f'MTU {one.mtu}'])}"


def _without_group_route(e: Evidence) -> Finding | None:
    """Return what it means that interfaces have no route for a group of IPv6, None where it means nothing."""
    places = e.asked or unique(one.interface for one in e.lost)
    places = places or [one.name for one in e.outer if problem(e, one) is None]
    without = [name for name in places if name in e.unrouted]
    if not without or (len(without) < len(places) and not e.lost):
        return None
    seen = f"no route for {e.group.address} on {listed(without)}, in any table"
    status: Status = "fail" if e.lacking or e.lost else "warn"
    return finding("route", status, "no-group-route", seen, **{**about(e), "interface": without[0]})


def check_route(e: Evidence) -> Finding:
    """Where do programs go that name no interface?"""
    without = _without_group_route(e)
    if without is not None:
        return without
    if e.asked:
        return ok("route", f"not needed with {listed(e.asked)} named")
    if e.group.needs_interface:
        return skip("route", "the group needs an interface, and then no route")
    # What has joined by naming an interface needs no route.
    joined = e.group.address in [one.group for one in e.joined]
    if e.route is None and joined:
        return ok("route", f"there is none for {e.group.address}, which a program that has joined it does not need")
    status: Status = "fail" if e.lacking else "warn"
    if e.route is None:
        # Routes go with their interface, and come back with it.
        down = [one.name for one in e.outer if not one.up]
        if down:
            seen = f"the kernel knows none; down: {listed(down)}"
            return finding("route", status, "no-route-down", seen, **{**about(e), "down": down[0]})
        return finding("route", status, "no-route", "the kernel knows none", **about(e))
    one = next((one for one in e.present if one.name == e.route.interface), None)
    code = None if one is None else problem(e, one)
    others = any(problem(e, each) is None for each in e.outer)
    if one is not None and one.loopback and others and e.lacking:
        words = {**about(e), "routed": one.name, "problem": "stays on this host"}
        return finding("route", "warn", "route-elsewhere", f"the route leads to {one.name}", **words)
    if one is not None and code is not None and others and e.lacking:
        words = {**about(e), "routed": one.name, "problem": _SHORT[code]}
        return finding("route", "fail", "route-elsewhere", f"the route leads to {one.name}", **words)
    return ok("route", f"{e.group.address} goes by {way(e.route)}")
