"""Do the programs of this host take it, and is this package the one they import?"""

from __future__ import annotations

from multicast.doctor.evidence import Evidence
from multicast.doctor.kernel import Holder
from multicast.doctor.messages import Finding

from .facts import (
    about,
    amount,
    finding,
    kernel_joins,
    lasted,
    listed,
    ok,
    or_others,
    owners,
    packets,
    sole,
    target,
    unique,
)

__all__ = ["check_buffer", "check_engine", "check_package", "check_program"]


def check_program(e: Evidence) -> Finding:
    """Have the programs of this host joined what comes?"""
    name, group = "program", e.group.address
    mine = [one for one in e.joined if one.group == group]
    came = e.anywhere or e.arrived
    # What other checks tell of reaches this host as well.
    reached = [*came, *e.on_wire]
    if came and e.strangers and not e.holders:
        own = listed(unique(f"{one.address}:{one.port}" for one in e.strangers))
        seen = f"{packets(amount(came))} came here, none for {own}"
        return finding(name, "fail", "bound-unicast", seen,
                       **{**about(e), "program": owners(e.strangers), "bound": own})
    for holder in e.holders:
        words = {**about(e), "program": holder.name}
        if holder.queued and holder.state in ("T", "t"):
            seen = f"{holder.queued} bytes at {holder.address}:{holder.port}, process state {holder.state}"
            pid = holder.program.rpartition("(pid ")[2].rstrip(")")
            return finding(name, "fail", "stopped", seen, **{**words, "queued": holder.queued, "pid": pid})
        places = unique(one.interface for one in came)
        if came and holder.device and holder.device not in places:
            seen = f"{packets(amount(came))} on {listed(places)}; the socket is bound to {holder.device}"
            return finding(name, "fail", "bound-device", seen,
                           **{**words, "device": holder.device, "arriving": or_others(places)})
    if not e.holders:
        text = "no program of this host listens at the port" + (
            f"; {group} is joined on {listed(unique(one.interface for one in mine))}" if mine else ""
        )
        return ok(name, text)
    words = {**about(e), "program": owners(e.holders)}
    if not mine:
        bound = [one for one in e.holders if one.address == group]
        if bound and not kernel_joins(group):
            seen = f"a socket bound to {group}:{e.group.port}, and no membership"
            return finding(name, "fail", "not-joined", seen, **{**words, "program": owners(bound)})
        groups = unique(one.group for one in e.joined if not kernel_joins(one.group))
        seen = f"joined here: {listed(groups[:6] or ['nothing'])}"
        return finding(name, "warn", "joined-other-group", seen, **words)
    places = unique(one.interface for one in mine)
    arriving = unique(one.interface for one in came)
    if came and not set(places) & set(arriving):
        seen = f"{packets(amount(came))} on {listed(arriving)}; memberships on {listed(places)}"
        return finding(name, "fail", "joined-elsewhere", seen,
                       **{**words, "arriving": or_others(arriving), "named": ",".join(arriving),
                          "interface": listed(places)})
    for membership in mine:
        rows = [one for one in e.filters if (one.interface, one.group) == (membership.interface, group)]
        wanted = [one.source for one in rows if one.included]
        sources = unique(one.source for one in reached if one.interface == membership.interface)
        if not sources:
            continue
        words |= {"arriving": or_others(sources), "found": target(group, e.group.port, sources=sources[:1])}
        seen = f"{packets(amount(came))} from {listed(sources[:4])}"
        # As many sockets ask for one and the same source as have joined at all: nobody takes the others.
        if wanted and max(one.included for one in rows) >= membership.users and not set(sources) & set(wanted):
            return finding(name, "fail", "joined-for-others", f"{seen}; joined for {listed(wanted[:4])}",
                           **{**words, "source": listed(wanted), "wanted": wanted[0]})
        if {one.source for one in rows if one.excluded >= membership.users}.issuperset(sources):
            return finding(name, "fail", "source-blocked", f"{seen}; refused by all that have joined", **words)
    return ok(name, f"{words['program']}; joined on {listed(places)}")


def check_buffer(e: Evidence) -> Finding:
    """Do the programs read fast enough?"""
    joined = e.group.address in [one.group for one in e.joined]
    if e.lacking and e.refused_here and (e.wire is None or e.on_wire):
        seen = f"drops +{e.refused_here} at our own sockets, RcvbufErrors +0 in {lasted(e)} s, 0 delivered"
        counter = _by_ipsec(e)
        if counter:
            seen += f"; {counter} +{e.counters[f'Xfrm:{counter}']}"
            words = {**about(e), "counter": counter, "program": "any program"}
            return finding("buffer", "fail", "ipsec", seen, **words)
        return finding("buffer", "fail", "refused-here", seen, **about(e))
    # What is bound to another group gets none of this one. What is bound to none gets that and whatever else comes.
    concerned = [one for one in e.holders if one.address == e.group.address or (joined and one in e.in_the_way)]
    worst = max(concerned, key=lambda holder: holder.dropped, default=None)
    # A socket's counter of drops counts what its buffer had no room for, and what a filter of the socket, a BPF program
    # of its cgroup or an IPsec policy refused. RcvbufErrors of the host counts the first kind alone.
    overflowed = e.counters.get("Udp:RcvbufErrors", 0)
    if worst is not None and worst.dropped and not overflowed:
        return _refused_at_socket(e, worst)
    if worst is not None and worst.dropped:
        surely = worst.address == e.group.address or sole(e)
        limit, default = e.sysctl.get("net.core.rmem_max", 0), e.sysctl.get("net.core.rmem_default", 0)
        seen = f"drops +{worst.dropped} at {worst.address}:{worst.port}, RcvbufErrors +{overflowed} in {lasted(e)} s"
        if limit:
            seen += f"; net.core.rmem_max = {limit}" + (f", rmem_default = {default}" if default else "")
        words = {**about(e), "program": worst.name, "dropped": worst.dropped, "wanted": max(4 << 20, 2 * limit)}
        if not surely:
            seen += "; they may be of other groups"
        return finding("buffer", "fail" if surely else "warn", "overflow", seen, **words)
    text = "no drops at the sockets of the group" if concerned else "no sockets of other programs to watch"
    return ok("buffer", text)


def _by_ipsec(e: Evidence) -> str:
    """Return the counter of what policies of IPsec refused that has grown; empty where none has."""
    grown = (name for name, count in e.counters.items() if name.startswith("Xfrm:XfrmIn") and count)
    return next(grown, "").partition(":")[2]


def _refused_at_socket(e: Evidence, holder: Holder) -> Finding:
    """Return what it means that a socket's drops have risen, and no buffer has overflowed."""
    seen = f"drops +{holder.dropped} at {holder.address}:{holder.port}, RcvbufErrors +0 in {lasted(e)} s"
    words = {**about(e), "program": holder.name}
    counter = _by_ipsec(e)
    if counter:
        seen += f"; {counter} +{e.counters[f'Xfrm:{counter}']}"
        return finding("buffer", "fail", "ipsec", seen, **{**words, "counter": counter})
    # A program that wants a part of the packets is in order: a regular expression, a shard.
    surely = holder.address == e.group.address or sole(e)
    if surely and e.delivered and holder.dropped >= e.delivered:
        return finding("buffer", "warn", "refused-at-socket", f"{seen}; {packets(e.delivered)} came here", **words)
    return ok("buffer", f"{holder.name} does not overflow; a filter of its socket refused {packets(holder.dropped)}")


def check_package(e: Evidence) -> Finding:
    """Is this package what a program gets that imports it?"""
    if len(e.distributions) > 1:
        return finding("package", "warn", "two-packages", f"installed: {listed(e.distributions)}",
                       **{**about(e), "names": listed(e.distributions), "listed": " ".join(e.distributions)})
    text = f"multicast is {e.distributions[0]}" if e.distributions else "not installed as a distribution"
    return ok("package", text)


def check_engine(e: Evidence) -> Finding:
    """Is the C form of the packet path in use?"""
    if e.engine_reason:
        return finding("engine", "warn", "engine-missing", f"the engine is {e.engine}",
                       **{**about(e), "reason": e.engine_reason})
    return ok("engine", f"the {e.engine.upper()} form is in use")
