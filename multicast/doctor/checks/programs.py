"""Do the programs of this host take it, and is this package the one they import?"""

from __future__ import annotations

from multicast.doctor.evidence import BETWEEN_LOOKS, Evidence
from multicast.doctor.kernel import Holder, Program
from multicast.doctor.messages import Finding, Status

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
    where,
)

__all__ = ["check_buffer", "check_engine", "check_package", "check_program"]


def check_program(e: Evidence) -> Finding:
    """Have the programs of this host joined what comes?"""
    name, group = "program", e.group.address
    if e.program is not None:
        without = _without_sockets(e, e.program)
        if without is not None:
            return without
    holders = e.judged
    mine = [one for one in e.joined if one.group == group]
    came = e.anywhere or e.arrived
    # What other checks tell of reaches this host as well.
    reached = [*came, *e.on_wire]
    strangers = [one for one in e.strangers if e.program is None or one.inode in _inodes(e.program)]
    if came and strangers and not holders:
        return _on_an_own_address(e, strangers)
    doubt: Finding | None = None
    for holder in holders:
        deaf = _deaf(e, holder, unique(one.source for one in came))
        if deaf is not None and deaf.status == "fail":
            return deaf
        doubt = doubt or deaf
        words = {**about(e), "program": holder.name}
        if holder.queued and holder.state in ("T", "t"):
            seen = f"{holder.queued} bytes at {holder.address}:{holder.port}, process state {holder.state}"
            return finding(name, "fail", "stopped", seen, **{**words, "queued": holder.queued, "pid": _pid(holder)})
        places = unique(one.interface for one in came)
        if came and holder.device and holder.device not in places:
            seen = f"{packets(amount(came))} on {listed(places)}; the socket is bound to {holder.device}"
            return finding(name, "fail", "bound-device", seen,
                           **{**words, "device": holder.device, "arriving": or_others(places)})
    if not holders:
        text = "no program of this host listens at the port" + (
            f"; {group} is joined on {listed(unique(one.interface for one in mine))}" if mine else ""
        )
        return ok(name, text)
    words = {**about(e), "program": owners(holders)}
    if not mine:
        bound = [one for one in holders if one.address == group]
        if bound and not kernel_joins(group):
            seen = f"a socket bound to {group}:{e.group.port}, and no membership"
            return finding(name, "fail", "not-joined", seen, **{**words, "program": owners(bound)})
        groups = unique(one.group for one in e.joined if not kernel_joins(one.group))
        seen = f"joined here: {listed(groups[:6] or ['nothing'])}"
        # Without a program that was asked for, it may be one that wants other packets.
        asked = e.program is not None and bool(came)
        return finding(name, "fail" if asked else "warn", "joined-other-group", seen, **words)
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
    return _shared_by_hash(e) or doubt or ok(name, f"{words['program']}; joined on {listed(places)}")


def _shared_by_hash(e: Evidence) -> Finding | None:
    """Return that a socket shares its port with others that want nothing of what it wants, and loses packets to them.

    Where a single socket matches a packet to a group, the kernel finds it early (udp_v4_early_demux), and then chooses
    among all that share the port with it by SO_REUSEPORT, whatever these have joined (inet_steal_sock): seen with 6.18.
    Our own socket matches too, so while we look all is well. With SO_REUSEADDR it need not happen.
    """
    for interface in unique(one.interface for one in e.anywhere or e.arrived):
        for holder in e.judged:
            sharing = [
                (one, one.inside)
                for one in e.holders
                if (one.address, one.uid, one.device) == (holder.address, holder.uid, holder.device)
                and one.inside is not None and one.inside.reuseport
            ]
            takers = [one for one, told in sharing if told.every or interface in told.joined]
            if takers == [holder] and len(sharing) > 1:
                others = [one for one, _ in sharing if one is not holder]
                seen = f"{len(sharing)} sockets at {where(holder.address, holder.port)}, one has joined on {interface}"
                words = {**about(e), "program": holder.name, "others": owners(others), "arriving": interface}
                return finding("program", "warn", "shared-by-hash", seen, **words)
    return None


def _inodes(program: Program) -> set[int]:
    return {one.inode for one in program.sockets}


def _without_sockets(e: Evidence, program: Program) -> Finding | None:
    """Return that the program that was asked for has no socket that could take the packets; None where it has one."""
    name, words = "program", {**about(e), "name": program.name}
    if not program.pids:
        return finding(name, "fail", "no-program", "no such process id, or name of a process, in /proc", **words)
    words |= {"pid": program.pids[0]}
    if program.apart:
        return finding(name, "fail", "program-apart", f"/proc/{program.pids[0]}/ns/net is another than ours", **words)
    at_port = [one for one in program.sockets if one.port == e.group.port]
    if at_port and not (e.family == "IPv4" and all(one.alone for one in at_port)):
        return None
    if program.hidden and not at_port:
        seen = f"/proc/{program.pids[0]}/fd may not be read"
        words |= {"again": f"{words['again']} --program {program.name}"}
        return finding(name, "warn", "program-hidden", seen, **words)
    ids = listed([str(pid) for pid in program.pids[:4]])
    if at_port:
        return finding(name, "fail", "ipv6-only", f"process {ids}: IPV6_V6ONLY is on", **words)
    if not program.sockets:
        return finding(name, "fail", "program-no-socket", f"process {ids}: no UDP socket", **words)
    places = unique(where(one.address, one.port) for one in program.sockets)
    words |= {"places": or_others(places)}
    return finding(name, "fail", "program-other-port", f"process {ids}: {listed(places[:6])}", **words)


def _on_an_own_address(e: Evidence, holders: list[Holder]) -> Finding:
    """Return that sockets have an address of this host, by bind or by connect."""
    own = listed(unique(f"{one.address}:{one.port}" for one in holders))
    seen = f"{packets(amount(e.anywhere or e.arrived))} came here, none for {own}"
    words = {**about(e), "program": owners(holders), "bound": own}
    connected = [one.peer for one in holders if one.peer]
    if len(connected) == len(holders):
        return finding("program", "fail", "connected-unicast", seen, **{**words, "peer": listed(unique(connected))})
    return finding("program", "fail", "bound-unicast", seen, **words)


def _deaf(e: Evidence, holder: Holder, sources: list[str]) -> Finding | None:
    """Return why a socket surely gets nothing of what comes, as far as that is written in the socket itself."""
    name, group = "program", e.group.address
    words = {**about(e), "program": holder.name}
    if not sources:
        return None
    if holder.peer and holder.peer not in sources:
        seen = f"connected to {holder.peer}; the packets come from {listed(sources[:4])}"
        return finding(name, "fail", "connected", seen, **{**words, "peer": holder.peer})
    told = holder.inside
    # What has joined other groups may be there for those, where no program was asked for.
    meant = e.program is not None or (told is not None and (bool(told.joined) or not told.elsewhere))
    if not meant:
        return None
    joined = () if told is None else told.joined
    if holder.address not in ("0.0.0.0", "::", group) and (joined or e.program is not None):  # noqa: S104
        seen = f"bound to {holder.address}; {group} is " + (f"joined on {listed(joined)}" if joined else "not joined")
        return finding(name, "fail", "bound-other-group", seen, **{**words, "bound": holder.address})
    arriving = unique(one.interface for one in e.anywhere or e.arrived)
    nobody = not any((one.group, one.interface) in {(group, name) for name in arriving} for one in e.joined)
    if joined and nobody:
        return None  # which is told of all programs together
    if told is not None and not told.every and not set(joined) & set(arriving):
        where_joined = f"joined by it on {listed(joined)}" if joined else "not joined by it"
        seen = f"{group} arrives on {listed(arriving[:4])}, and is {where_joined}; IP_MULTICAST_ALL is off"
        # One that has joined elsewhere may wait for what comes there.
        status: Status = "fail" if e.program is not None or not joined else "warn"
        return finding(name, status, "not-joined-itself", seen, **{**words, "arriving": or_others(arriving)})
    return None


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
    concerned = [one for one in e.judged if one.address == e.group.address or (joined and one in e.in_the_way)]
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
        words = {**about(e), "program": worst.name, "dropped": worst.dropped, "wanted": max(4 << 20, 2 * limit),
                 "pid": _pid(worst), "came": e.delivered}
        few = max(BETWEEN_LOOKS, e.delivered // 20)
        if surely and worst.dropped + few >= e.delivered > 2 * few:
            return finding("buffer", "fail", "reads-nothing", seen, **words)
        size = 0 if worst.inside is None else worst.inside.rcvbuf  # twice what was asked for (socket(7))
        if size and size != default and size < 2 * limit:  # more is to be had without the administrator
            status: Status = "fail" if surely else "warn"
            return finding("buffer", status, "overflow-own-buffer", seen, **{**words, "size": size // 2})
        if not surely:
            seen += "; they may be of other groups"
        return finding("buffer", "fail" if surely else "warn", "overflow", seen, **words)
    for holder in concerned:
        # What waits in a socket is counted with the kernel's own for each packet, which is more than this.
        if e.delivered > 2 and holder.before and holder.queued - holder.before >= _CHARGED * e.delivered:
            words = {**about(e), "program": holder.name, "before": holder.before, "queued": holder.queued}
            seen = f"{packets(e.delivered)} came here meanwhile; process state {holder.state or 'unknown'}"
            return finding("buffer", "warn", "queue-grows", seen, **{**words, "pid": _pid(holder)})
    text = "no drops at the sockets of the group" if concerned else "no sockets of other programs to watch"
    return ok("buffer", text)


def _by_ipsec(e: Evidence) -> str:
    """Return the counter of what policies of IPsec refused that has grown; empty where none has."""
    grown = (name for name, count in e.counters.items() if name.startswith("Xfrm:XfrmIn") and count)
    return next(grown, "").partition(":")[2]


def _refused_at_socket(e: Evidence, holder: Holder) -> Finding:
    """Return what it means that a socket's drops have risen, and no buffer has overflowed."""
    seen = f"drops +{holder.dropped} at {holder.address}:{holder.port}, RcvbufErrors +0 in {lasted(e)} s"
    words = {**about(e), "program": holder.name, "pid": _pid(holder)}
    counter = _by_ipsec(e)
    if counter:
        seen += f"; {counter} +{e.counters[f'Xfrm:{counter}']}"
        return finding("buffer", "fail", "ipsec", seen, **{**words, "counter": counter})
    # A program that wants a part of the packets is in order: a regular expression, a shard.
    surely = holder.address == e.group.address or sole(e)
    few = max(BETWEEN_LOOKS, e.delivered // 20)
    plain = holder.inside is not None and not holder.inside.filtered
    if plain and surely and holder.dropped + few >= e.delivered > 2 * few:
        return finding("buffer", "fail", "refused-by-cgroup", f"{seen}; {packets(e.delivered)} came here", **words)
    # Sockets of one program that share the packets among them, as with `shard=`, each refuse what others take.
    siblings = [one for one in e.judged if (one.address, one.uid) == (holder.address, holder.uid)]
    if len(siblings) > 1 and sum(one.dropped for one in siblings) <= (len(siblings) - 1) * e.delivered + few:
        return ok("buffer", f"{holder.name} shares the packets with other sockets of its user")
    if surely and e.delivered and holder.dropped >= e.delivered:
        return finding("buffer", "warn", "refused-at-socket", f"{seen}; {packets(e.delivered)} came here", **words)
    return ok("buffer", f"{holder.name} does not overflow; a filter of its socket refused {packets(holder.dropped)}")


# A packet is charged with at least this, its headers included (SKB_TRUESIZE in include/linux/skbuff.h).
_CHARGED = 512


def _pid(holder: Holder) -> str:
    return holder.program.rpartition("(pid ")[2].rstrip(")") or "PID"


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
