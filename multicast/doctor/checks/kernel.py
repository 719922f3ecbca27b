"""What the kernel does with what came: puts it together, checks it, filters it, and reports what is joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from multicast.doctor.evidence import Evidence
from multicast.doctor.firewall import LEAVING, Rule, blocking, dropping, excludes
from multicast.doctor.messages import Finding, Status

from .facts import (
    IGMP_ALLOWANCE,
    about,
    amount,
    blame,
    finding,
    lasted,
    listed,
    message_facts,
    ok,
    packet_facts,
    packets,
    skip,
    sole,
    stays_on_link,
    unique,
)

__all__ = ["check_checksum", "check_firewall", "check_fragments", "check_igmp", "check_reverse_path"]


def check_fragments(e: Evidence) -> Finding:
    """Are datagrams lost because fragments of them are?"""
    came, whole = e.counters.get("Ip:ReasmReqds", 0), e.counters.get("Ip:ReasmOKs", 0)
    failed = e.counters.get("Ip:ReasmFails", 0)
    seen = f"ReasmReqds +{came}, ReasmOKs +{whole}, ReasmFails +{failed} in {lasted(e)} s"
    begun = amount(one for one in e.on_wire if one.fragmented)
    # What the kernel took in and could not use; the rest it has dropped as whole packets, which is not for this check.
    unused = came - whole * (begun + e.fragments) / max(begun, 1)
    lost = min(begun - whole, round(unused))
    # Wire and counters are read one after the other, so a few datagrams are seen by one of them only.
    if lost > max(_FRAGMENTS_ALLOWANCE, begun // 50) or (lost > whole == 0 and not e.delivered):
        return finding("fragments", blame(e, lost), "fragments-lost", f"{begun} datagrams began on the wire; {seen}",
                       **{**about(e), "lost": lost, "begun": begun})
    # On the wire alone it can be told whether the fragments are those of the group.
    if came and not whole and (e.wire is None or (e.fragments and not e.delivered)):
        return finding("fragments", blame(e, came), "fragments-unfinished", seen, **about(e))
    return ok("fragments", seen if came else "no fragments came")


# How many datagrams may begin between two looks that are meant to be at the same time.
_FRAGMENTS_ALLOWANCE = 2


def check_checksum(e: Evidence) -> Finding:
    """Are packets discarded for wrong checksums?"""
    wrong = e.counters.get("Udp:InCsumErrors", 0) + e.counters.get("Ip:InCsumErrors", 0)
    if wrong:
        place = (e.asked or tuple(unique(one.interface for one in e.on_wire)) or ("INTERFACE",))[0]
        return finding("checksum", blame(e, wrong), "bad-checksum",
                       f"InCsumErrors +{wrong} in {lasted(e)} s", **{**about(e), "interface": place})
    return ok("checksum", "no wrong ones")


def check_reverse_path(e: Evidence) -> Finding:
    """Are packets discarded because their source would be answered by another interface?"""
    name = "rp_filter"
    if e.family == "IPv6":
        return ok(name, "the kernel has none for IPv6")
    prefix = "net.ipv4.conf."
    every = e.sysctl.get(f"{prefix}all.rp_filter", 0)

    def effective(interface: str) -> int:
        return max(every, e.sysctl.get(f"{prefix}{interface}.rp_filter", 0))

    counted = e.counters.get(_BY_REVERSE_PATH, 0)
    considered = e.asked or tuple(one.name for one in e.outer)
    on = {one: effective(one) for one in considered if effective(one)}
    values = [f"{one}={e.sysctl.get(f'{prefix}{one}.rp_filter', 0)}" for one in ("all", *considered[:6])]
    settings = " ".join(values)
    seen = f"IPReversePathFilter +{counted} in {lasted(e)} s; rp_filter {settings}"
    if not on:
        return ok(name, f"off ({settings})")
    # With slashes, as the name of an interface may contain a dot (sysctl(8)).
    path = "net/ipv4/conf/{}/rp_filter={}"
    for source, interface, lost in _perhaps_discarded(e, on):
        back = e.back.get(source)
        strict = on[interface] == 1
        if back is not None and (not strict or back.interface == interface):
            continue
        # The higher counts: a loose filter takes one of them, none takes both. Loose is enough where there is a route.
        off = [one for one in ("all", interface) if e.sysctl.get(f"{prefix}{one}.rp_filter")]
        loose = path.format(interface, 2)
        settings = " ".join(path.format(one, 0) for one in off) if back is None or not strict else loose
        words = {**about(e), "source": source, "interface": interface, "settings": settings}
        route = "no route" if back is None else f"the route is by {back.interface}"
        # On the wire they were seen, and it counted enough. Without the wire they would be among the counted.
        if lost and 2 * counted >= lost:
            code = "strict-reverse-path" if strict else "loose-reverse-path"
            return finding(name, "fail", code, f"{seen}; back to {source} {route}", **words)
        if lost is None:
            sole_way = bool(e.asked) or len(considered) == 1
            status: Status = "fail" if counted and sole_way and e.wire is None else "warn"
            return finding(name, status, "would-be-filtered", f"{seen}; back to {source} {route}", **words)
    if counted and not e.delivered:
        return finding(name, blame(e, counted), "reverse-path", seen, **about(e))
    return ok(name, seen)


def _perhaps_discarded(e: Evidence, filtering: Iterable[str]) -> Iterator[tuple[str, str, int | None]]:
    """Yield sources and interfaces whose packets a reverse path filter may discard, and how many of them are missing.

    That is None for packets that should come and were not seen: of the sources that were asked for, or that a program
    has joined for, and of which nothing was delivered.
    """
    for one in e.lost:
        if one.interface in filtering:
            yield one.source, one.interface, one.packets
    if e.deaf:
        return
    came = {one.source for one in (*e.anywhere, *e.arrived, *(e.wire or ()))}
    programs = [
        (one.source, one.interface) for one in e.filters if one.group == e.group.address and one.included
    ]
    for interface in filtering:
        asked = [(source, interface) for source in e.group.sources if e.asked or e.counters.get(_BY_REVERSE_PATH)]
        for source, place in [*asked, *programs]:
            if place == interface and source not in came:
                yield source, interface, None


_BY_REVERSE_PATH = "TcpExt:IPReversePathFilter"


def check_firewall(e: Evidence) -> Finding:
    """Does the firewall drop the packets?"""
    lost = e.undelivered
    if e.rules is None:
        missing = 0 if e.delivered or e.anywhere or e.refused else _lost_in_kernel(e)
        if missing and e.family == "IPv4":
            status: Status = "fail" if sole(e) else "warn"
            seen = f"at least {packets(missing)} taken in and given to no program in {lasted(e)} s, 0 delivered"
            return finding("firewall", status, "discarded", seen, **about(e))
        return skip("firewall", "rules need root to read; run with sudo for this check")
    number = f"{len(e.rules) or 'no'} rule{'' if len(e.rules) == 1 else 's'}"
    if lost:
        return _blocked(e, e.rules, number)
    if e.unread:
        return skip("firewall", f"{number}, and {listed(e.unread)} did not tell of any")
    if e.rules and e.deaf:
        return skip("firewall", f"{number}, and whether they let anything in could not be heard")
    if not e.rules:
        return ok("firewall", number)
    text = "none in the way of what came" if e.delivered else "and nothing came for them to drop"
    return ok("firewall", f"{number}, {text}")


def _blocked(e: Evidence, rules: tuple[Rule, ...], number: str) -> Finding:
    """Which of the rules drops what was on the wire?"""
    lost = e.undelivered
    facts = packet_facts(e, lost[0])
    count = amount(lost)
    # The last resort is a rule that has dropped about as much as is missing, wherever it stands.
    about_as_many = (
        one
        for one in rules
        if one.action == "drop" and 0.8 * count <= one.grew <= 1.25 * count and not excludes(one, facts)
    )
    rule, sure = blocking(rules, facts) or (next(about_as_many, None), False)
    if rule is None and lost[0].interface in e.ingress:
        seen = f"{packets(count)} on the wire of {lost[0].interface}, 0 delivered; tc has filters there"
        return finding("firewall", "fail", "tc-ingress", seen, **{**about(e), "interface": lost[0].interface})
    if rule is None:
        text = f"{number}, none of which is seen to drop these packets" if rules else number
        if e.unread:
            return skip("firewall", f"{text}, and {listed(e.unread)} did not tell of any")
        return ok("firewall", text)
    words = {**about(e), "rule": rule.name, "allow": rule.allowing(e.group.address, e.group.port)}
    if rule.action == "translate" and sure:
        seen = f"{packets(count)} on the wire of {lost[0].interface}, 0 delivered; every one of them matches"
        return finding("firewall", "fail", "firewall-translates", seen, **{**words, "listing": rule.listing})
    total = f"{packets(count)} on the wire of {lost[0].interface}, 0 delivered"
    counted = f"the rule's counter +{rule.grew}; {total}"
    if rule.grew and sure:
        return finding("firewall", "fail", "firewall-rule", counted, **words)
    # Where it does not count, every packet here matches it, or may.
    match = "every one of them matches" if sure else "they may match"
    seen = counted if rule.grew else f"{total}; the rule does not count; {match}"
    return finding("firewall", "fail", "firewall-candidate", seen, **words)


def _lost_in_kernel(e: Evidence) -> int:
    """How many packets to joined groups the kernel took in and gave to nobody, as far as its counters tell.

    Packets to groups nobody has joined are received and not delivered, and are not counted as multicast; so the smaller
    of both numbers, and never too high a one: delivered unicast, and the reports of our own joins, which come back on
    lo, are taken off as well, and a few for IGMP.
    """
    count = e.counters.get
    reassembled = count("Ip:ReasmReqds", 0) - count("Ip:ReasmOKs", 0)
    missing = count("Ip:InReceives", 0) - count("Ip:InDelivers", 0) - count("Ip:ForwDatagrams", 0) - reassembled
    missing -= count(_BY_REVERSE_PATH, 0)
    dealt_with = ("InDatagrams", "IgnoredMulti", "RcvbufErrors", "InCsumErrors")
    undelivered = count("Ip:InMcastPkts", 0) - sum(count(f"Udp:{name}", 0) for name in dealt_with)
    return max(0, min(missing, undelivered) - count("Ip:OutMcastPkts", 0) - IGMP_ALLOWANCE)


def check_igmp(e: Evidence) -> Finding:
    """Can the join name its sources?"""
    specific = bool(e.group.sources) or e.group.is_source_specific
    ipv6 = e.family == "IPv6"
    protocol, modern = ("MLD", 2) if ipv6 else ("IGMP", 3)
    prefix, option = ("net.ipv6.conf.", ".force_mld_version") if ipv6 else ("net.ipv4.conf.", ".force_igmp_version")
    places = e.asked or tuple(one.name for one in e.outer if one.up)
    status: Status = "fail" if e.lacking else "warn"
    for interface in places:
        for one in ("all", interface):
            forced = e.sysctl.get(prefix + one + option, 0)
            if forced and forced < modern and specific:
                words = {**about(e), "protocol": protocol, "version": forced, "interface": interface}
                return finding("igmp", status, "version-forced", f"{prefix}{one}{option} = {forced}",
                               **{**words, "setting": f"{prefix.replace('.', '/')}{one}{option.replace('.', '/')}"})
        version = 3 if ipv6 else e.versions.get(interface, 3)
        if version < 3 and specific:
            return finding("igmp", status, "version-old", f"/proc/net/igmp has V{version} for {interface}",
                           **{**about(e), "version": version, "interface": interface})
    unreported = _unreported(e, places, protocol)
    if unreported is not None:
        return unreported
    unasked = [one for one in places if one not in [name for name, _ in e.queriers]]
    if e.wire is not None and e.seconds > _QUERY_INTERVAL and unasked and not stays_on_link(e.group.address):
        words = {**about(e), "interface": listed(unasked)}
        return finding("igmp", "warn", "no-query", f"no query on the wire in {lasted(e)} s", **words)
    if ipv6:
        return ok("igmp", "MLD version 2")
    heard = [f"{name} from {source}" for name, source in e.queriers]
    queries = f"; queries on {listed(heard[:3])}" if heard else ""
    return ok("igmp", (", ".join(f"{one} V{e.versions.get(one, 3)}" for one in places[:6]) or "lo only") + queries)


def _unreported(e: Evidence, places: Sequence[str], protocol: str) -> Finding | None:
    """Return which rule of the firewall keeps routers and switches from learning of the memberships here, or None."""
    if e.rules is None or (stays_on_link(e.group.address) and e.family == "IPv4"):  # 224.0.0.0/24 always passes
        return None
    six = e.family == "IPv6"
    for interface in places:
        asked = [source for name, source in e.queriers if name == interface]
        heard = f"; a query from {asked[0]} on {interface}" if asked else ""
        rule = dropping(e.rules, message_facts(e, interface, False), LEAVING)
        silent = e.lacking and not e.on_wire and not e.anywhere
        if rule is not None and interface not in e.reporting and (silent or asked):
            words = {**about(e), "rule": rule.name, "allow": rule.allowing_reports(six)}
            seen = f"every report of {protocol} by {interface} matches{heard}"
            return finding("igmp", "fail" if silent else "warn", "reports-dropped", seen, **words)
        rule = dropping(e.rules, message_facts(e, interface, True))
        if rule is not None and (silent or asked):
            words = {**about(e), "rule": rule.name, "allow": rule.allowing_reports(six), "protocol": protocol}
            seen = f"every query of {protocol} on {interface} matches{heard}"
            # Those that ask do look into memberships.
            return finding("igmp", "fail" if silent and asked else "warn", "queries-dropped", seen, **words)
    return None


# A querier asks every 125 s (RFC 3376 section 8.2, RFC 3810 section 9.2), and who waits less can say nothing.
_QUERY_INTERVAL = 130
