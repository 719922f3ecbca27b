"""Do sockets get it: the port, the memberships, the way back of what this host sends itself."""

from __future__ import annotations

import errno

from multicast.doctor.evidence import Evidence, reason
from multicast.doctor.firewall import LEAVING, blocking
from multicast.doctor.messages import Finding

from .facts import (
    about,
    amount,
    finding,
    kernel_joins,
    lasted,
    leaving_facts,
    listed,
    ok,
    or_others,
    owners,
    packet_facts,
    packets,
    skip,
    unique,
    where,
)

__all__ = ["check_delivery", "check_loopback", "check_membership", "check_port"]


def check_port(e: Evidence) -> Finding:
    """Can the port be shared?"""
    refused = e.refused.get("")
    if refused is not None and refused.errno in (errno.EADDRINUSE, errno.EACCES):
        seen = f"bind to {where(e.group.address, e.group.port)}: {reason(refused)}"
        if refused.errno == errno.EACCES:
            return finding("port", "warn", "port-privileged", seen, **about(e))
        words = {**about(e), "program": owners(e.in_the_way) if e.in_the_way else "a program"}
        # With SO_REUSEPORT alone a program shares the port with those of its own user (socket(7)).
        others = [one.uid for one in e.in_the_way if one.uid != e.uid]
        if others:
            return finding("port", "warn", "port-other-user", seen, **{**words, "user": others[0]})
        return finding("port", "fail", "port-held", seen, **words)
    if not e.holders:
        return ok("port", f"{e.group.port} is free")
    return ok("port", f"{e.group.port} is shared with {owners(e.holders)}")


def check_membership(e: Evidence) -> Finding:
    """Are there as many memberships as can be?"""
    limit = e.sysctl.get("net.ipv4.igmp_max_memberships")
    words = {**about(e), "limit": limit, "more": 10 * max(10, limit or 0)}
    for name, error in e.refused.items():
        if error.errno == errno.ENOBUFS:
            seen = f"joining{f' on {name}' if name else ''} failed with ENOBUFS"
            setting = "net.ipv6.mld_max_msf" if e.family == "IPv6" else "net.ipv4.igmp_max_msf"
            many, most = len(e.group.sources), e.sysctl.get(setting)
            if most is not None and many > most:
                words = {**words, "count": many, "limit": most, "setting": setting, "more": 2 * many}
                return finding("membership", "fail", "limit-sources", f"{seen}; {setting} = {most}", **words)
            seen += f"; net.ipv4.igmp_max_memberships = {limit}"
            return finding("membership", "fail", "limit-reached", seen, **words)
    if e.refused and not e.delivered:
        return skip("membership", "the group could not be joined")
    if e.family == "IPv6":
        return ok("membership", "joined; IPv6 sets no limit")
    pairs = [(one.interface, one.group) for one in e.joined if ":" not in one.group and not kernel_joins(one.group)]
    # Which socket has joined which of them the kernel tells nobody.
    if e.holders and limit and len(pairs) >= limit and e.group.address not in [group for _, group in pairs]:
        seen = f"{len(pairs)} memberships, none of {e.group.address}; net.ipv4.igmp_max_memberships = {limit}"
        return finding("membership", "warn", "limit-reached-other", seen,
                       **{**words, "program": owners(e.holders), "count": len(pairs)})
    return ok("membership", f"joined; {limit} for each socket at most" if limit else "joined")


def check_loopback(e: Evidence) -> Finding:
    """Does what this host sends come back to it?"""
    sent = [
        one
        for one in e.wire or ()
        if one.outgoing and (one.group, one.port) == (e.group.address, e.group.port) and one.source in e.own
    ]
    if e.deaf:
        return skip("loopback", "the port could not be listened at")
    counted, came = e.counters.get("Ip:OutMcastPkts", 0), e.counters.get("Ip:InMcastPkts", 0)
    if sent and not e.anywhere and not e.on_wire:
        code = "loopback-off" if e.silent else "unheard"
        program = owners(e.silent) if e.silent else ""
        places = listed(unique(one.interface for one in sent))
        seen = f"{packets(amount(sent))} left by {places} in {lasted(e)} s, 0 came back"
        return finding("loopback", "fail", code, seen, **{**about(e), "program": program})
    if not sent and e.lacking and not e.anywhere and not e.on_wire:
        refused = _not_let_out(e)
        if refused is not None:
            return refused
    # Reports of our own joins are among what is sent: two for each join, and the self-test has joined as well.
    reports = 4 * len(e.present)
    if e.wire is None and e.silent and min(counted, e.counters.get("Udp:OutDatagrams", 0)) - came > reports:
        seen = f"OutMcastPkts +{counted}, InMcastPkts +{came} in {lasted(e)} s"
        return finding("loopback", "warn", "loopback-perhaps", seen, **{**about(e), "program": owners(e.silent)})
    if e.forbidden:
        seen = "our own packet with TTL 0 by lo was refused (EPERM)"
        if e.delivered or e.on_wire or e.anywhere:
            return ok("loopback", seen)
        return finding("loopback", "warn", "output-refused", seen, **about(e))
    if e.loopback is False:
        return finding("loopback", "warn", "lo-dead", "a packet of our own with TTL 0 was lost", **about(e))
    return ok("loopback", "our own packet with TTL 0 came back" if e.loopback else "nothing sent is missing")


def _not_let_out(e: Evidence) -> Finding | None:
    """Return which rule drops what this host sends to the group; None where that is not seen."""
    discarded = e.counters.get("Ip:OutDiscards", 0)
    rule, sure = blocking(e.rules or (), leaving_facts(e), LEAVING) or (None, False)
    if rule is None or not sure or not (rule.grew or discarded):
        return None
    words = {**about(e), "rule": rule.name, "allow": rule.allowing(e.group.address, e.group.port)}
    if rule.grew:
        return finding("loopback", "fail", "output-rule", f"the rule's counter +{rule.grew} in {lasted(e)} s", **words)
    seen = f"OutDiscards +{discarded} in {lasted(e)} s; the rule does not count"
    return finding("loopback", "fail", "output-candidate", seen, **words)


def _partly(e: Evidence) -> Finding:
    """Return why a part of what is on the wire is not delivered."""
    blocked = [(one, blocking(e.rules or (), packet_facts(e, one))) for one in e.short]
    first = next((found for _, found in blocked if found is not None), None)
    short = [one for one, found in blocked if first is None or (found is not None and found[0] == first[0])]
    senders = unique(one.source for one in short)
    came = amount(one for one in e.on_wire if one.source in senders)
    lost = amount(short)
    words = {**about(e), "senders": or_others(senders), "lost": lost, "came": came}
    seen = f"{packets(came)} of {listed(senders[:4])} on the wire in {lasted(e)} s, {came - lost} delivered"
    if first is None:
        return finding("delivery", "fail", "partly-delivered", seen, **words)
    rule, _ = first
    words |= {"rule": rule.name, "allow": rule.allowing(e.group.address, e.group.port)}
    return finding("delivery", "fail", "partly-firewall", f"{seen}; the rule's counter +{rule.grew}", **words)


# The checks that tell why packets that reach this host are not delivered.
_TELL_WHY = frozenset({"fragments", "checksum", "rp_filter", "firewall", "route", "address"})


def check_delivery(e: Evidence, explained: Finding | None) -> Finding:
    """Does what reaches the host reach a socket?"""
    lost = e.undelivered
    told = explained is not None and (not e.delivered or explained.check in _TELL_WHY)
    if lost and not e.refused:
        text = f"{packets(amount(lost))} on the wire of {listed(unique(one.interface for one in lost))}, 0 delivered"
        if told:
            return Finding("delivery", "warn", cause=text)
        return finding("delivery", "fail", "not-delivered", text, **about(e))
    if e.refused:
        return skip("delivery", "the group could not be joined")
    if e.wire is None and not e.delivered:
        return skip("delivery", "whether anything reaches this host, only the wire tells, which needs root")
    if e.short and told:
        return Finding("delivery", "warn", cause=f"{packets(amount(e.short))} on the wire are missing")
    if e.short:
        return _partly(e)
    return ok("delivery", f"{packets(e.delivered)} delivered" if e.delivered else "nothing came to be delivered")
