"""What comes by the wire: does anything, does a bridge keep it back, does it come far enough?"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from multicast.doctor.evidence import Evidence
from multicast.doctor.messages import Finding
from multicast.doctor.wire import Seen

from .facts import (
    about,
    amount,
    finding,
    lasted,
    listed,
    mac_of,
    ok,
    or_others,
    packets,
    skip,
    stays_on_link,
    target,
    unique,
    way,
)

__all__ = ["check_address", "check_arrival", "check_bridge", "check_ttl"]


def check_arrival(e: Evidence, explained: Finding | None) -> Finding:
    """Do packets for the group come?"""
    name, words, seconds = "arrival", about(e), lasted(e)
    if e.delivered:
        ttls = listed(unique(str(one.ttl) for one in e.arrived)[:4])
        places, sources = unique(one.interface for one in e.arrived), unique(one.source for one in e.arrived)
        more = f" and {len(sources) - 4} more" if len(sources) > 4 else ""
        whence = ", ".join(sources[:4]) + more
        text = f"{packets(e.delivered)} in {seconds} s on {listed(places)} from {whence}, ttl {ttls}"
        return ok(name, text)
    # Those asked for come as well, if they are not delivered: what else comes is no reason.
    if e.undelivered:
        total = amount(e.undelivered)
        senders = unique(one.source for one in e.undelivered)
        return ok(name, f"{packets(total)} on the wire in {seconds} s from {listed(senders[:4])}")
    if e.astray:
        senders = unique(one.source for one in e.astray)
        return ok(name, f"{packets(amount(e.astray))} on the wire in {seconds} s from {listed(senders[:4])}")
    if e.anywhere:
        otherwise = _arrives_otherwise(e)
        if explained is not None and explained.check == "rp_filter":
            return replace(otherwise, status="warn")
        return otherwise
    if e.deaf and e.on_wire:
        return ok(name, f"{packets(amount(e.on_wire))} on the wire in {seconds} s")
    if e.deaf or ("" in e.refused and not e.wire):
        return skip(name, "the group could not be joined")
    if e.wire is None:
        looked = "the wire was not looked at, which needs root"
    else:
        looked = "nothing for it on the wire"
    seen = f"0 packets in {seconds} s; {looked}"
    incoming = [one for one in e.wire or () if not one.outgoing]
    # A silence that has another reason is that check's matter.
    if explained is not None:
        return Finding(name, "warn", cause=f"{seen}; see {explained.check}")
    ports = [one for one in incoming if one.group == e.group.address and one.port != e.group.port]
    if ports:
        numbers, there = unique(str(one.port) for one in ports), listed(unique(one.interface for one in ports))
        seen = f"{packets(amount(ports))} to {e.group.address} on {there} in {seconds} s"
        found = target(e.group.address, numbers[0], sources=e.group.sources)
        words = {**words, "arriving": or_others(numbers), "found": found}
        return finding(name, "fail", "other-port", seen, **words)
    near = [
        one for one in incoming if (one.group, one.port) == (e.group.address, e.group.port) and not one.astray
    ]
    right = [one for one in near if not e.group.sources or one.source in e.group.sources]
    ports = [one for one in right if one.interface in e.masters]
    if ports and not e.asked:
        there = listed(unique(one.interface for one in ports))
        master = e.masters[ports[0].interface]
        seen = f"{packets(amount(ports))} on the wire of {there} in {seconds} s, none on {master}"
        words = {**words, "arriving": there, "master": master}
        return finding(name, "fail", "lost-in-bridge", seen, **words)
    if near:
        there, senders = listed(unique(one.interface for one in near)), unique(one.source for one in near)
        seen = f"{packets(amount(near))} on the wire of {there} from {listed(senders[:4])} in {seconds} s"
        if e.asked and not any(one.interface in e.asked for one in near):
            named = ",".join(unique(one.interface for one in near))
            return finding(name, "fail", "other-interface", seen, **{**words, "arriving": there, "named": named})
        if e.group.sources:
            return finding(name, "fail", "other-source", seen, **{**words, **_as_it_comes(e, senders)})
    others = [
        one for one in (*incoming, *e.others) if one.port == e.group.port and one.group != e.group.address
    ]
    if others:
        seen = f"{packets(amount(others))} to port {e.group.port} in {seconds} s, none for {e.group.address}"
        groups = unique(one.group for one in others)
        words = {**words, "arriving": or_others(groups), "found": target(groups[0], e.group.port)}
        return finding(name, "fail", "other-group", seen, **words)
    ignored, came = _ignored(e), e.counters.get("Ip:InMcastPkts", 0)
    if ignored and e.wire is None:
        counted = f"UdpIgnoredMulti +{e.counters['Udp:IgnoredMulti']}, InMcastPkts +{came}"
        return finding(name, "fail", "unread-port", f"{counted} in {seconds} s, 0 delivered", **words)
    attached = [name for name in e.xdp if not e.asked or name in e.asked]
    if attached and e.wire is not None:
        return finding(name, "fail", "xdp", seen, **{**words, "attached": attached[0]})
    for source, back in e.back.items():
        if back is not None and back.gateway is not None:
            words = {**words, "source": source, "gateway": back.gateway}
            seen += f"; the route back is by {way(back)}"
            if e.container:
                seen += "; this host is a container, whose own host may be that router"
            return finding(name, "fail", "behind-router", seen, **words)
    code = "nothing-unseen" if e.wire is None else "nothing"
    return finding(name, "fail", code, seen, **words)


def _ignored(e: Evidence) -> int:
    """How many packets to joined groups met no socket at their port; the kernel counts broadcasts along with them."""
    count = e.counters.get
    return max(0, min(count("Udp:IgnoredMulti", 0) - count("Ip:InBcastPkts", 0), count("Ip:InMcastPkts", 0)))


def _arrives_otherwise(e: Evidence) -> Finding:
    """The packets come, and not as asked: another interface, another source."""
    words, seconds = about(e), lasted(e)
    sources = unique(one.source for one in e.anywhere if not e.group.sources or one.source not in e.group.sources)
    right = [one for one in e.anywhere if not e.group.sources or one.source in e.group.sources]
    here = [one for one in e.anywhere if not e.asked or one.interface in e.asked]
    total = f"{packets(amount(e.anywhere))} in {seconds} s"
    if e.asked and not here:
        names = unique(one.interface for one in (right or e.anywhere))
        places = listed(names)
        own = all(one.source in e.own for one in e.anywhere)
        code = "other-interface-sent" if own else "other-interface"
        seen = f"{total} on {places} from {listed(unique(one.source for one in e.anywhere)[:4])}"
        return finding("arrival", "fail", code, seen, **{**words, "arriving": places, "named": ",".join(names)})
    return finding("arrival", "fail", "other-source", f"{total} from {listed(sources[:4])}",
                   **{**words, **_as_it_comes(e, sources)})


def _as_it_comes(e: Evidence, senders: list[str]) -> dict[str, str]:
    """The words for senders other than those asked for; a command names one of them."""
    return {"arriving": or_others(senders), "found": target(e.group.address, e.group.port, sources=senders[:1])}


def check_bridge(e: Evidence) -> Finding:
    """Does a bridge of this host keep the packets back?"""
    if e.bridges is None:
        return skip("bridge", "the program ip is not installed, which tells of bridges")
    ours = set(e.asked) or {one.name for one in e.present}
    for bridge in e.bridges:
        if bridge.querier or not ({bridge.name, *bridge.ports} & ours):
            continue
        asked = any(name in (bridge.name, *bridge.ports) for name, _ in e.queriers)
        # A Linux bridge that knows no querier floods, but for the ports where that is switched off.
        if bridge.unflooded and not asked:
            seen = f"{bridge.name}: mcast_snooping 1, mcast_querier 0, mcast_flood off on {listed(bridge.unflooded)}"
            if e.queriers == () and e.wire is not None:
                seen += f"; no query in {lasted(e)} s"
            words = {**about(e), "bridge": bridge.name, "ports": listed(bridge.unflooded)}
            # It is its members that suffer, so this host does only where the bridge was asked about.
            return finding("bridge", "fail" if e.asked and e.lacking else "warn", "no-querier", seen, **words)
    names = [
        f"{bridge.name} snoops, {'is a querier' if bridge.querier else 'floods while it knows no querier'}"
        for bridge in e.bridges
    ]
    return ok("bridge", "; ".join(names) or "no bridge of this host looks into memberships")


def check_address(e: Evidence) -> Finding:
    """Does the kernel take the packets as they are: frames, lengths, source addresses?"""
    name, words = "address", about(e)
    for one in e.astray:
        words |= {"interface": one.interface, "source": one.source}
        seen = f"{packets(amount(e.astray))} from {one.source} on the wire of {one.interface} in {lasted(e)} s"
        kind, _, number = one.astray.partition(" ")
        if kind == "mac":
            return finding(name, "fail", "other-mac", seen, **{**words, "mac": mac_of(e.group.address)})
        if kind == "vlan":
            return finding(name, "fail", "vlan-tag", seen, **{**words, "vlan": f"VLAN {number}", "number": number})
        return finding(name, "fail", "bad-length", seen, **words)
    for one in e.undelivered:
        words |= {"interface": one.interface, "source": one.source}
        seen = f"{packets(one.packets)} from {one.source} on the wire of {one.interface} in {lasted(e)} s, 0 delivered"
        if _martian(e, one):
            return finding(name, "fail", "martian-source", seen, **words)
        if e.family == "IPv4" and one.source in e.own and not _allowed(e, "accept_local", one.interface):
            left = unique(
                other.interface for other in e.wire or () if other.outgoing and other.source == one.source
                and (other.group, other.port) == (one.group, one.port)
            )
            code = "own-source" if left else "duplicate-address"
            seen += f"; accept_local of {one.interface} is 0"
            return finding(name, "fail", code, seen, **{**words, "leaving": listed(left or ["lo"])})
    if e.wire is None:
        return skip(name, "only the wire tells, which needs root")
    return ok(name, "nothing that the kernel would not take")


def _martian(e: Evidence, one: Seen) -> bool:
    """Whether the kernel takes no packet from this source, whatever the routes (ip_mc_validate_source)."""
    source = ipaddress.ip_address(one.source)
    if source.is_multicast or one.source == "255.255.255.255":
        return True
    if any(other.name == one.interface and other.loopback for other in e.present):
        return False
    if source.is_loopback:
        return source.version == 6 or not _allowed(e, "route_localnet", one.interface)
    # Of this network (0.0.0.0/8), for groups that stay on the link alone.
    return source.version == 4 and source.packed[0] == 0 and not stays_on_link(e.group.address)


def _allowed(e: Evidence, setting: str, interface: str) -> bool:
    return any(e.sysctl.get(f"net.ipv4.conf.{place}.{setting}") for place in ("all", interface))


def check_ttl(e: Evidence) -> Finding:
    """Do packets come, or leave, with a TTL that is too small?"""
    heard = e.anywhere or e.arrived
    foreign = [one for one in heard if one.source not in e.own]
    zero = [one for one in foreign if one.ttl == 0]
    if zero:
        sources = listed(unique(one.source for one in zero)[:4])
        seen = f"{packets(amount(zero))} with TTL 0 on {listed(unique(one.interface for one in zero))}"
        return finding("ttl", "warn", "ttl-zero", seen, **{**about(e), "source": sources})
    local = {one.name for one in e.present if one.loopback}
    sent = [
        one
        for one in (*heard, *(one for one in e.wire or () if one.outgoing))
        if one.source in e.own
        and one.interface not in local
        and (one.group, one.port) == (e.group.address, e.group.port)
        and one.ttl == 1
    ]
    if sent and not stays_on_link(e.group.address):
        place = listed(unique(one.interface for one in sent))
        return ok("ttl", f"1 in what this host sends by {place}: it stays on that network")
    if heard:
        return ok("ttl", f"{listed(unique(str(one.ttl) for one in heard)[:4])} on arrival")
    return skip("ttl", "no packet to see it in")
