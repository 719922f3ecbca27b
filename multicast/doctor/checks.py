"""What the evidence means: pure functions, one for each check, in the order of a packet's way.

Each returns a `Finding`. It says no more than was measured: where a cause is likely and not certain, the sentence says
so. A setting that would stop packets is a fault only when packets are missing; when they arrive all the same it is a
warning at most. What other programs on this host suffer is a fault whether or not packets reach us.

That nothing arrived is a fault of its own only where no other check explains it, so that check is judged last and put
in its place on the way.
"""

from __future__ import annotations

import errno
import ipaddress
import shlex
from collections.abc import Callable, Iterable
from typing import TypeAlias

from multicast.interfaces import Interface, Route

from .evidence import Evidence, reason
from .firewall import blocking
from .kernel import Holder
from .messages import MESSAGES, Finding, Status
from .wire import Seen

__all__ = ["CHECKS", "judge"]

_EADDRINUSE, _ENOBUFS = errno.EADDRINUSE, errno.ENOBUFS

def _found(check: str, status: Status, code: str, seen: str = "", **words: object) -> Finding:
    cause, fixes = MESSAGES[code]
    texts = {name: str(word) for name, word in words.items()}
    sentence = cause.format_map(texts)
    if sentence.startswith("a program "):  # and not the name of one
        sentence = "A" + sentence[1:]
    return Finding(
        check,
        status,
        code,
        sentence,
        tuple(fix.format_map(texts) for fix in fixes),
        seen,
    )


def _ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", cause=text)


def _skip(check: str, text: str) -> Finding:
    return Finding(check, "skip", cause=text)


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _packets(number: int) -> str:
    return f"{number} packet{'' if number == 1 else 's'}"


def _seconds(e: Evidence) -> str:
    return f"{e.seconds:.3g}"


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _total(seen: Iterable[Seen]) -> int:
    return sum(one.packets for one in seen)


def _words(e: Evidence) -> dict[str, object]:
    """What most messages speak of."""
    return {
        "group": e.group.address,
        "port": e.group.port,
        "seconds": _seconds(e),
        "source": _and(e.group.sources) if e.group.sources else "SOURCE",
        "interface": ",".join(e.asked) or _suggested(e),
        "target": _target(e.group.address, e.group.port),
        "again": " ".join(["multicast doctor", _target(e.group.address, e.group.port), *_asked(e)]),
        "six": "-6 " if e.family == "IPv6" else "",
        "net": "ff00::/8" if e.family == "IPv6" else "224.0.0.0/4",
    }


def _target(address: str, port: int | str, zone: str = "") -> str:
    """A group as the command line takes it; brackets mean something to shells."""
    host = f"[{address}]" if ":" in address else address
    return shlex.quote(f"{host}:{port}{zone}")


def _asked(e: Evidence) -> list[str]:
    """The options that repeat the question."""
    interfaces = ["-i " + shlex.quote(",".join(e.asked))] if e.asked else []
    return [*interfaces, *(f"--from {source}" for source in e.group.sources)]


def _suggested(e: Evidence) -> str:
    """The interface that somebody who named none most likely means."""
    good = [one.name for one in _outer(e) if _problem(e, one) is None]
    return good[0] if len(good) == 1 else "INTERFACE"


# -- what is on the wire -------------------------------------------------------------------------------------------


def _on_wire(e: Evidence) -> list[Seen]:
    """What came in on the wire just as asked."""
    return [
        seen
        for seen in e.wire or ()
        if not seen.outgoing
        and (seen.group, seen.port) == (e.group.address, e.group.port)
        and (not e.asked or seen.interface in e.asked)
        and (not e.group.sources or seen.source in e.group.sources)
    ]


def _undelivered(e: Evidence) -> list[Seen]:
    """What came in on the wire just as asked, when none of it was delivered."""
    return [] if e.delivered else _on_wire(e)


def _missing(e: Evidence) -> bool:
    """Whether packets are missing that may have reached this host: where the wire was looked at, those that did."""
    return not e.delivered and (e.wire is None or bool(_on_wire(e)))


def _lost_in_kernel(e: Evidence) -> int:
    """How many packets to joined groups the kernel took in and gave to nobody, as far as its counters tell.

    Packets to groups nobody has joined are received and not delivered, and are not counted as multicast; so the smaller
    of both numbers, and never too high a one: delivered unicast, and the reports of our own joins, which come back on
    lo, are taken off as well, and a few for IGMP.
    """
    count = e.counters.get
    reassembled = count("Ip:ReasmReqds", 0) - count("Ip:ReasmOKs", 0)
    missing = count("Ip:InReceives", 0) - count("Ip:InDelivers", 0) - count("Ip:ForwDatagrams", 0) - reassembled
    missing -= count("TcpExt:IPReversePathFilter", 0)
    dealt_with = ("InDatagrams", "IgnoredMulti", "RcvbufErrors", "InCsumErrors")
    undelivered = count("Ip:InMcastPkts", 0) - sum(count(f"Udp:{name}", 0) for name in dealt_with)
    return max(0, min(missing, undelivered) - count("Ip:OutMcastPkts", 0) - _IGMP_ALLOWANCE)


# How many packets of IGMP itself may come in while we look: queries, and reports of others.
_IGMP_ALLOWANCE = 3


# -- the checks ----------------------------------------------------------------------------------------------------


def check_group(e: Evidence) -> Finding:
    """Is the group one that can be joined as it was asked for?"""
    group = e.group
    if group.needs_interface and not e.asked:
        heard = _unique(seen.interface for seen in e.arrived)
        outer = [one.name for one in _outer(e)]
        seen = f"it arrived on {_and(heard)}" if heard else f"this host has {_and([str(one) for one in e.present])}"
        name = heard[0] if len(heard) == 1 else outer[0] if len(outer) == 1 else "INTERFACE"
        words = {**_words(e), "zoned": _target(group.address, group.port, f"%{name}")}
        return _found("group", "fail", "zone-missing", seen, **words)
    if group.is_source_specific and not group.sources:
        seen = f"{_packets(e.delivered)} arrived in {_seconds(e)} s"
        heard = _unique(one.source for one in e.arrived)
        words = {**_words(e), "source": heard[0] if len(heard) == 1 else "SOURCE"}
        return _found("group", "warn" if e.delivered else "fail", "source-missing", seen, **words)
    sources = f" from {_and(group.sources)}" if group.sources else ""
    return _ok("group", f"{group.address}{sources}, port {group.port}: {_scope(e)}")


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


def _outer(e: Evidence) -> list[Interface]:
    return [one for one in e.present if not one.loopback]


def _problem(e: Evidence, one: Interface) -> str | None:
    """Return the code of what is wrong with an interface, or None."""
    if not one.up:
        return "interface-down"
    if one.loopback:
        return None
    if not one.multicast:
        return "no-multicast-flag"
    if not one.running:
        return "no-carrier"
    if e.family == "IPv4" and one.ipv4 is None:
        return "no-address"
    return "no-ipv6" if e.family == "IPv6" and one.ipv6 is None else None


_SHORT = {
    "interface-down": "is down",
    "no-carrier": "has no carrier",
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


def check_interface(e: Evidence) -> Finding:
    """Can the interfaces receive?"""
    if not any(one.up for one in e.present):
        name = (e.asked or ("lo",))[0]
        states = "; ".join(map(_state, e.present))
        return _found("interface", "fail", "none-up", states, **{**_words(e), "interface": name})
    wanted = [one for one in e.present if one.name in e.asked] if e.asked else _outer(e)
    status: Status = "warn" if e.delivered else "fail"
    bad = [(one, code) for one in wanted if (code := _problem(e, one)) is not None]
    # Who named none has others to receive by, if only lo: when something arrives, all is well.
    if bad and (e.asked or (len(bad) == len(wanted) and not e.delivered)):
        one, code = next((each for each in bad if each[0].addresses), bad[0])
        return _found("interface", status, code, _state(one), **{**_words(e), "interface": one.name})
    why = {name: reason(error) for name, error in e.refused.items() if error.errno not in (_ENOBUFS, _EADDRINUSE)}
    why |= {name: "it is gone" for name in e.asked if name not in [one.name for one in e.present]}
    for name in (*e.asked, ""):
        if name in why:
            states = "; ".join(map(_state, wanted)) or "it was there when the look began"
            words = {**_words(e), "interface": name or "any interface", "reason": why[name]}
            return _found("interface", "fail", "join-refused", states, **words)
    good = [one for one in wanted if one not in [each for each, _ in bad]]
    notes = [f"{one.name} {_SHORT[code]}" for one, code in bad]
    text = "; ".join([*map(_state, good[:4]), *notes[:4]])
    return _ok("interface", text or "only lo, which stays on this host")


def check_route(e: Evidence) -> Finding:
    """Where do programs go that name no interface?"""
    if e.asked:
        return _ok("route", f"not needed with {_and(e.asked)} named")
    if e.group.needs_interface:
        return _skip("route", "the group needs an interface, and then no route")
    status: Status = "warn" if e.delivered else "fail"
    if e.route is None:
        return _found("route", status, "no-route", "the kernel knows none", **_words(e))
    one = next((one for one in e.present if one.name == e.route.interface), None)
    code = None if one is None else _problem(e, one)
    others = any(_problem(e, each) is None for each in _outer(e))
    if one is not None and one.loopback and others and not e.delivered:
        words = {**_words(e), "routed": one.name, "problem": "stays on this host"}
        return _found("route", "warn", "route-elsewhere", f"the route leads to {one.name}", **words)
    if one is not None and code is not None and others and not e.delivered:
        words = {**_words(e), "routed": one.name, "problem": _SHORT[code]}
        return _found("route", "fail", "route-elsewhere", f"the route leads to {one.name}", **words)
    return _ok("route", f"{e.group.address} goes by {_by(e.route)}")


def _by(route: Route) -> str:
    source = f" from {route.source}" if route.source else ""
    return route.interface + (f" to the router {route.gateway}" if route.gateway else "") + source


def check_arrival(e: Evidence, explained: Finding | None) -> Finding:
    """Do packets for the group come?"""
    name, words, seconds = "arrival", _words(e), _seconds(e)
    if e.delivered:
        ttls = _and(_unique(str(one.ttl) for one in e.arrived)[:4])
        places, sources = _unique(one.interface for one in e.arrived), _unique(one.source for one in e.arrived)
        more = f" and {len(sources) - 4} more" if len(sources) > 4 else ""
        whence = ", ".join(sources[:4]) + more
        text = f"{_packets(e.delivered)} in {seconds} s on {_and(places)} from {whence}, ttl {ttls}"
        return _ok(name, text)
    if e.anywhere:
        return _arrives_otherwise(e)
    if _undelivered(e):
        total = _total(_undelivered(e))
        senders = _unique(one.source for one in _undelivered(e))
        return _ok(name, f"{_packets(total)} on the wire in {seconds} s from {_and(senders[:4])}")
    if "" in e.refused and not e.wire:
        return _skip(name, "the group could not be joined")
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
        numbers, there = _unique(str(one.port) for one in ports), _and(_unique(one.interface for one in ports))
        seen = f"{_packets(_total(ports))} to {e.group.address} on {there} in {seconds} s"
        words = {**words, "arriving": _one_or(numbers), "found": _target(e.group.address, numbers[0])}
        return _found(name, "fail", "other-port", seen, **words)
    near = [one for one in incoming if (one.group, one.port) == (e.group.address, e.group.port)]
    if near:
        there, senders = _and(_unique(one.interface for one in near)), _unique(one.source for one in near)
        seen = f"{_packets(_total(near))} on the wire of {there} from {_and(senders[:4])} in {seconds} s"
        if e.asked and not any(one.interface in e.asked for one in near):
            return _found(name, "fail", "other-interface", seen, **{**words, "arriving": there})
        return _found(name, "fail", "other-source", seen, **{**words, "arriving": _one_or(senders)})
    others = [
        one for one in (*incoming, *e.others) if one.port == e.group.port and one.group != e.group.address
    ]
    if others:
        seen = f"{_packets(_total(others))} to port {e.group.port} in {seconds} s, none for {e.group.address}"
        groups = _unique(one.group for one in others)
        words = {**words, "arriving": _one_or(groups), "found": _target(groups[0], e.group.port)}
        return _found(name, "fail", "other-group", seen, **words)
    ignored, came = _ignored(e), e.counters.get("Ip:InMcastPkts", 0)
    if ignored and e.wire is None:
        counted = f"UdpIgnoredMulti +{e.counters['Udp:IgnoredMulti']}, InMcastPkts +{came}"
        return _found(name, "fail", "unread-port", f"{counted} in {seconds} s, 0 delivered", **words)
    for source, back in e.back.items():
        if back is not None and back.gateway is not None:
            words = {**words, "source": source, "gateway": back.gateway}
            return _found(name, "fail", "behind-router", f"{seen}; the route back is by {_by(back)}", **words)
    return _found(name, "fail", "nothing-container" if e.container else "nothing", seen, **words)


def _ignored(e: Evidence) -> int:
    """How many packets to joined groups met no socket at their port; the kernel counts broadcasts along with them."""
    count = e.counters.get
    return max(0, min(count("Udp:IgnoredMulti", 0) - count("Ip:InBcastPkts", 0), count("Ip:InMcastPkts", 0)))


def _one_or(found: list[str]) -> str:
    return found[0] if len(found) == 1 else " and ".join(found[:3]) + (" and others" if len(found) > 3 else "")


def _arrives_otherwise(e: Evidence) -> Finding:
    """The packets come, and not as asked: another interface, another source."""
    words, seconds = _words(e), _seconds(e)
    sources = _unique(one.source for one in e.anywhere if not e.group.sources or one.source not in e.group.sources)
    right = [one for one in e.anywhere if not e.group.sources or one.source in e.group.sources]
    here = [one for one in e.anywhere if not e.asked or one.interface in e.asked]
    total = f"{_packets(_total(e.anywhere))} in {seconds} s"
    if e.asked and not here:
        places = _and(_unique(one.interface for one in (right or e.anywhere)))
        own = all(one.source in e.own for one in e.anywhere)
        code = "other-interface-sent" if own else "other-interface"
        seen = f"{total} on {places} from {_and(_unique(one.source for one in e.anywhere)[:4])}"
        return _found("arrival", "fail", code, seen, **{**words, "arriving": places})
    return _found("arrival", "fail", "other-source", f"{total} from {_and(sources[:4])}",
                  **{**words, "arriving": _one_or(sources)})


def check_bridge(e: Evidence) -> Finding:
    """Does a bridge of this host keep the packets back?"""
    if e.bridges is None:
        return _skip("bridge", "the program ip is not installed, which tells of bridges")
    ours = set(e.asked) or {one.name for one in e.present}
    for bridge in e.bridges:
        if bridge.querier or not ({bridge.name, *bridge.ports} & ours):
            continue
        asked = any(name in (bridge.name, *bridge.ports) for name, _ in e.queriers)
        # A Linux bridge that knows no querier floods, but for the ports where that is switched off.
        if bridge.unflooded and not asked:
            seen = f"{bridge.name}: mcast_snooping 1, mcast_querier 0, mcast_flood off on {_and(bridge.unflooded)}"
            if e.queriers == () and e.wire is not None:
                seen += f"; no query in {_seconds(e)} s"
            words = {**_words(e), "bridge": bridge.name, "ports": _and(bridge.unflooded)}
            # It is its members that suffer, so this host does only where the bridge was asked about.
            return _found("bridge", "fail" if e.asked and not e.delivered else "warn", "no-querier", seen, **words)
    names = [
        f"{bridge.name} snoops, {'is a querier' if bridge.querier else 'floods while it knows no querier'}"
        for bridge in e.bridges
    ]
    return _ok("bridge", "; ".join(names) or "no bridge of this host looks into memberships")


def check_ttl(e: Evidence) -> Finding:
    """Do packets come, or leave, with a TTL that is too small?"""
    heard = e.anywhere or e.arrived
    foreign = [one for one in heard if one.source not in e.own]
    zero = [one for one in foreign if one.ttl == 0]
    if zero:
        sources = _and(_unique(one.source for one in zero)[:4])
        seen = f"{_packets(_total(zero))} with TTL 0 on {_and(_unique(one.interface for one in zero))}"
        return _found("ttl", "warn", "ttl-zero", seen, **{**_words(e), "source": sources})
    local = {one.name for one in e.present if one.loopback}
    sent = [
        one
        for one in (*heard, *(one for one in e.wire or () if one.outgoing))
        if one.source in e.own
        and one.interface not in local
        and (one.group, one.port) == (e.group.address, e.group.port)
        and one.ttl == 1
    ]
    if sent and not _stays_on_link(e.group.address):
        place = _and(_unique(one.interface for one in sent))
        return _found("ttl", "warn", "ttl-one", f"TTL 1 in what {_and(_unique(s.source for s in sent)[:4])} sends",
                      **{**_words(e), "interface": place})
    if heard:
        return _ok("ttl", f"{_and(_unique(str(one.ttl) for one in heard)[:4])} on arrival")
    return _skip("ttl", "no packet to see it in")


def _stays_on_link(group: str) -> bool:
    packed = ipaddress.ip_address(group).packed
    return packed[:3] == b"\xe0\0\0" if len(packed) == 4 else packed[1] & 15 in (1, 2)


def check_fragments(e: Evidence) -> Finding:
    """Are datagrams lost because fragments of them are?"""
    came, whole = e.counters.get("Ip:ReasmReqds", 0), e.counters.get("Ip:ReasmOKs", 0)
    failed = e.counters.get("Ip:ReasmFails", 0)
    seen = f"ReasmReqds +{came}, ReasmOKs +{whole}, ReasmFails +{failed} in {_seconds(e)} s"
    status: Status = "fail" if _missing(e) else "warn"
    begun = _total(one for one in _on_wire(e) if one.fragmented)
    if begun > whole:
        return _found("fragments", status, "fragments-lost", f"{begun} datagrams began on the wire; {seen}",
                      **{**_words(e), "lost": begun - whole, "begun": begun})
    # On the wire alone it can be told whether the fragments are those of the group.
    if came and not whole and (e.wire is None or (e.fragments and not e.delivered)):
        return _found("fragments", status, "fragments-unfinished", seen, **_words(e))
    return _ok("fragments", seen if came else "no fragments came")


def check_checksum(e: Evidence) -> Finding:
    """Are packets discarded for wrong checksums?"""
    wrong = e.counters.get("Udp:InCsumErrors", 0) + e.counters.get("Ip:InCsumErrors", 0)
    if wrong:
        place = (e.asked or tuple(_unique(one.interface for one in _on_wire(e))) or ("INTERFACE",))[0]
        return _found("checksum", "fail" if _missing(e) else "warn", "bad-checksum",
                      f"InCsumErrors +{wrong} in {_seconds(e)} s", **{**_words(e), "interface": place})
    return _ok("checksum", "no wrong ones")


def check_reverse_path(e: Evidence) -> Finding:
    """Are packets discarded because their source would be answered by another interface?"""
    name = "rp_filter"
    if e.family == "IPv6":
        return _ok(name, "the kernel has none for IPv6")
    prefix = "net.ipv4.conf."
    every = e.sysctl.get(f"{prefix}all.rp_filter", 0)

    def effective(interface: str) -> int:
        return max(every, e.sysctl.get(f"{prefix}{interface}.rp_filter", 0))

    counted = e.counters.get("TcpExt:IPReversePathFilter", 0)
    considered = e.asked or tuple(one.name for one in _outer(e))
    on = {one: effective(one) for one in considered if effective(one)}
    values = [f"{one}={e.sysctl.get(f'{prefix}{one}.rp_filter', 0)}" for one in ("all", *considered[:6])]
    settings = " ".join(values)
    seen = f"IPReversePathFilter +{counted} in {_seconds(e)} s; rp_filter {settings}"
    if not on:
        return _ok(name, f"off ({settings})")
    status: Status = "fail" if _missing(e) else "warn"
    pairs = [(one.source, one.interface) for one in _undelivered(e) if one.interface in on]
    pairs += [(source, interface) for source in e.group.sources for interface in on]
    for source, interface in pairs:
        back = e.back.get(source)
        setting = f"{prefix}{interface}.rp_filter" if not every else f"{prefix}all.rp_filter"
        words = {**_words(e), "source": source, "interface": interface, "setting": setting}
        strict = on[interface] == 1
        if back is not None and (not strict or back.interface == interface):
            continue
        if not counted:
            if e.asked and not e.delivered:
                return _found(name, "warn", "would-be-filtered", seen, **words)
            continue
        if e.delivered:
            break
        route = "no route" if back is None else f"the route is by {back.interface}"
        code = "strict-reverse-path" if strict else "loose-reverse-path"
        return _found(name, status, code, f"{seen}; back to {source} {route}", **words)
    if counted and not e.delivered:
        return _found(name, status, "reverse-path", seen, **_words(e))
    return _ok(name, seen)


def check_firewall(e: Evidence) -> Finding:
    """Does the firewall drop the packets?"""
    lost = _undelivered(e)
    if e.rules is None:
        missing = 0 if e.delivered or e.anywhere or e.refused else _lost_in_kernel(e)
        if missing and e.family == "IPv4":
            seen = f"at least {_packets(missing)} taken in and given to no program in {_seconds(e)} s, 0 delivered"
            return _found("firewall", "fail", "discarded", seen, **_words(e))
        return _skip("firewall", "rules need root to read; run with sudo for this check")
    if not e.rules:
        return _ok("firewall", "no rules")
    if not lost:
        return _ok("firewall", f"{len(e.rules)} rules, none in the way of what came" if e.delivered else
                   f"{len(e.rules)} rules, and nothing came for them to drop")
    facts = {
        "daddr": e.group.address,
        "dport": str(e.group.port),
        "saddr": lost[0].source,
        "iif": lost[0].interface,
        "proto": "udp",
        "family": "ipv6" if e.family == "IPv6" else "ipv4",
        "state": "new",
        "type": "multicast",
    }
    found = blocking(e.rules, facts)
    if found is None:
        return _ok("firewall", f"{len(e.rules)} rules, none of which drops these packets")
    rule, sure = found
    words = {**_words(e), "rule": rule.name, "allow": rule.allowing(e.group.address, e.group.port)}
    total = f"{_packets(_total(lost))} on the wire of {lost[0].interface}, 0 delivered"
    if rule.grew:
        return _found("firewall", "fail", "firewall-rule", f"the rule's counter +{rule.grew}; {total}", **words)
    # It does not count. Every packet here matches it, or may.
    match = "every one of them matches" if sure else "they may match"
    return _found("firewall", "fail", "firewall-candidate", f"{total}; the rule does not count; {match}", **words)


def check_igmp(e: Evidence) -> Finding:
    """Can the join name its sources?"""
    specific = bool(e.group.sources) or e.group.is_source_specific
    ipv6 = e.family == "IPv6"
    protocol, modern = ("MLD", 2) if ipv6 else ("IGMP", 3)
    prefix, option = ("net.ipv6.conf.", ".force_mld_version") if ipv6 else ("net.ipv4.conf.", ".force_igmp_version")
    places = e.asked or tuple(one.name for one in _outer(e) if one.up)
    status: Status = "warn" if e.delivered else "fail"
    for interface in places:
        for one in ("all", interface):
            forced = e.sysctl.get(prefix + one + option, 0)
            if forced and forced < modern and specific:
                words = {**_words(e), "protocol": protocol, "version": forced, "interface": interface}
                return _found("igmp", status, "version-forced", f"{prefix}{one}{option} = {forced}",
                              **{**words, "setting": prefix + one + option})
        version = 3 if ipv6 else e.versions.get(interface, 3)
        if version < 3 and specific:
            return _found("igmp", status, "version-old", f"/proc/net/igmp has V{version} for {interface}",
                          **{**_words(e), "version": version, "interface": interface})
    unasked = [one for one in places if one not in [name for name, _ in e.queriers]]
    if e.wire is not None and e.seconds > _QUERY_INTERVAL and unasked and not _stays_on_link(e.group.address):
        words = {**_words(e), "interface": _and(unasked)}
        return _found("igmp", "warn", "no-query", f"no query on the wire in {_seconds(e)} s", **words)
    if ipv6:
        return _ok("igmp", "MLD version 2")
    heard = [f"{name} from {source}" for name, source in e.queriers]
    queries = f"; queries on {_and(heard[:3])}" if heard else ""
    return _ok("igmp", (", ".join(f"{one} V{e.versions.get(one, 3)}" for one in places[:6]) or "lo only") + queries)


# A querier asks every 125 s (RFC 3376 section 8.2, RFC 3810 section 9.2), and who waits less can say nothing.
_QUERY_INTERVAL = 130


def _holders(e: Evidence, holders: Iterable[Holder]) -> str:
    return _and(_unique(holder.name for holder in holders)[:4])


def check_port(e: Evidence) -> Finding:
    """Can the port be shared?"""
    if "" in e.refused and e.refused[""].errno == _EADDRINUSE:
        # A socket of another group does not stand in the way.
        there = [one for one in e.holders if one.address in ("0.0.0.0", "::", e.group.address)]  # noqa: S104
        return _found("port", "fail", "port-held", f"bind to {e.group.address}:{e.group.port}: address already in use",
                      **{**_words(e), "program": _holders(e, there) if there else "a program"})
    if not e.holders:
        return _ok("port", f"{e.group.port} is free")
    return _ok("port", f"{e.group.port} is shared with {_holders(e, e.holders)}")


def _kernel_joins(address: str) -> bool:
    return address in ("224.0.0.1", "ff01::1", "ff02::1") or address.startswith("ff02::1:ff")


def check_membership(e: Evidence) -> Finding:
    """Are there as many memberships as can be?"""
    limit = e.sysctl.get("net.ipv4.igmp_max_memberships")
    words = {**_words(e), "limit": limit, "more": 10 * max(10, limit or 0)}
    for name, error in e.refused.items():
        if error.errno == _ENOBUFS:
            where = f" on {name}" if name else ""
            seen = f"joining{where} failed with ENOBUFS; net.ipv4.igmp_max_memberships = {limit}"
            return _found("membership", "fail", "limit-reached", seen, **words)
    if e.refused and not e.delivered:
        return _skip("membership", "the group could not be joined")
    if e.family == "IPv6":
        return _ok("membership", "joined; IPv6 sets no limit")
    pairs = [(one.interface, one.group) for one in e.joined if ":" not in one.group and not _kernel_joins(one.group)]
    if e.holders and limit and len(pairs) == limit and e.group.address not in [group for _, group in pairs]:
        seen = f"{len(pairs)} memberships, none of {e.group.address}; net.ipv4.igmp_max_memberships = {limit}"
        return _found("membership", "fail", "limit-reached-other", seen, **{**words, "program": _holders(e, e.holders)})
    return _ok("membership", f"joined; {limit} for each socket at most" if limit else "joined")


def check_loopback(e: Evidence) -> Finding:
    """Does what this host sends come back to it?"""
    sent = [
        one
        for one in e.wire or ()
        if one.outgoing and (one.group, one.port) == (e.group.address, e.group.port) and one.source in e.own
    ]
    counted, came = e.counters.get("Ip:OutMcastPkts", 0), e.counters.get("Ip:InMcastPkts", 0)
    if sent and not e.anywhere and not _on_wire(e):
        code = "loopback-off" if e.silent else "unheard"
        program = _holders(e, e.silent) if e.silent else ""
        places = _and(_unique(one.interface for one in sent))
        seen = f"{_packets(_total(sent))} left by {places} in {_seconds(e)} s, 0 came back"
        return _found("loopback", "fail", code, seen, **{**_words(e), "program": program})
    # Reports of our own joins are among what is sent: two for each join, and the self-test has joined as well.
    reports = 4 * len(e.present)
    if e.wire is None and e.silent and min(counted, e.counters.get("Udp:OutDatagrams", 0)) - came > reports:
        seen = f"OutMcastPkts +{counted}, InMcastPkts +{came} in {_seconds(e)} s"
        return _found("loopback", "fail", "loopback-perhaps", seen, **{**_words(e), "program": _holders(e, e.silent)})
    if e.loopback is False:
        return _found("loopback", "warn", "lo-dead", "a packet of our own with TTL 0 was lost", **_words(e))
    return _ok("loopback", "our own packet with TTL 0 came back" if e.loopback else "nothing sent is missing")


def check_delivery(e: Evidence, explained: bool) -> Finding:
    """Does what reaches the host reach a socket?"""
    lost = _undelivered(e)
    if lost and not e.refused and not e.anywhere:
        text = f"{_packets(_total(lost))} on the wire of {_and(_unique(one.interface for one in lost))}, 0 delivered"
        if explained:
            return Finding("delivery", "warn", cause=text)
        return _found("delivery", "fail", "not-delivered", text, **_words(e))
    if e.refused:
        return _skip("delivery", "the group could not be joined")
    if e.wire is None and not e.delivered:
        return _skip("delivery", "whether anything reaches this host, only the wire tells, which needs root")
    return _ok("delivery", f"{_packets(e.delivered)} delivered" if e.delivered else "nothing came to be delivered")


def check_program(e: Evidence) -> Finding:
    """Have the programs of this host joined what comes?"""
    name, group = "program", e.group.address
    mine = [one for one in e.joined if one.group == group]
    if not e.holders:
        text = "no program of this host listens at the port" + (
            f"; {group} is joined on {_and(_unique(one.interface for one in mine))}" if mine else ""
        )
        return _ok(name, text)
    words = {**_words(e), "program": _holders(e, e.holders)}
    came = e.anywhere or e.arrived
    if not mine:
        bound = [one for one in e.holders if one.address == group]
        if bound and not _kernel_joins(group):
            seen = f"a socket bound to {group}:{e.group.port}, and no membership"
            return _found(name, "fail", "not-joined", seen, **{**words, "program": _holders(e, bound)})
        groups = _unique(one.group for one in e.joined if not _kernel_joins(one.group))
        seen = f"joined here: {_and(groups[:6] or ['nothing'])}"
        return _found(name, "warn", "joined-other-group", seen, **words)
    places = _unique(one.interface for one in mine)
    arriving = _unique(one.interface for one in came)
    if came and not set(places) & set(arriving):
        seen = f"{_packets(_total(came))} on {_and(arriving)}; memberships on {_and(places)}"
        return _found(name, "fail", "joined-elsewhere", seen,
                      **{**words, "arriving": _one_or(arriving), "interface": _and(places)})
    for membership in mine:
        rows = [one for one in e.filters if (one.interface, one.group) == (membership.interface, group)]
        wanted = [one.source for one in rows if one.included]
        sources = _unique(one.source for one in came if one.interface == membership.interface)
        # As many sockets ask for one and the same source as have joined at all: nobody takes the others.
        every = bool(wanted) and max(one.included for one in rows) >= membership.users
        if every and sources and not set(sources) & set(wanted):
            seen = f"{_packets(_total(came))} from {_and(sources[:4])}; joined for {_and(wanted[:4])}"
            return _found(name, "fail", "joined-for-others", seen,
                          **{**words, "arriving": _one_or(sources), "source": _and(wanted)})
    return _ok(name, f"{words['program']}; joined on {_and(places)}")


def check_buffer(e: Evidence) -> Finding:
    """Do the programs read fast enough?"""
    worst = max(e.holders, key=lambda holder: holder.dropped, default=None)
    if worst is not None and worst.dropped:
        limit, default = e.sysctl.get("net.core.rmem_max", 0), e.sysctl.get("net.core.rmem_default", 0)
        seen = f"drops +{worst.dropped} at {worst.address}:{worst.port} in {_seconds(e)} s"
        if limit:
            seen += f"; net.core.rmem_max = {limit}" + (f", rmem_default = {default}" if default else "")
        words = {**_words(e), "program": worst.name, "dropped": worst.dropped, "wanted": max(4 << 20, 2 * limit)}
        return _found("buffer", "fail", "overflow", seen, **words)
    text = "no drops at the sockets of the port" if e.holders else "no sockets of other programs to watch"
    return _ok("buffer", text)


def check_package(e: Evidence) -> Finding:
    """Is this package what a program gets that imports it?"""
    if len(e.distributions) > 1:
        return _found("package", "warn", "two-packages", f"installed: {_and(e.distributions)}",
                      **{**_words(e), "names": _and(e.distributions), "listed": " ".join(e.distributions)})
    text = f"multicast is {e.distributions[0]}" if e.distributions else "not installed as a distribution"
    return _ok("package", text)


def check_engine(e: Evidence) -> Finding:
    """Is the C form of the packet path in use?"""
    if e.engine_reason:
        return _found("engine", "warn", "engine-missing", f"the engine is {e.engine}",
                      **{**_words(e), "reason": e.engine_reason})
    return _ok("engine", f"the {e.engine.upper()} form is in use")


# The way of a packet: wire, interface, kernel, socket, program. Judged after the others, and put where it stands:
# what they explain is no fault of its own.
_Check: TypeAlias = Callable[[Evidence], Finding]
_WAY: tuple[_Check | str, ...] = (
    check_group,
    check_interface,
    check_route,
    "arrival",
    check_bridge,
    check_ttl,
    check_fragments,
    check_checksum,
    check_reverse_path,
    check_firewall,
    check_igmp,
    check_port,
    check_membership,
    check_loopback,
    "delivery",
    check_program,
    check_buffer,
    check_package,
    check_engine,
)

#: The names of the checks, in their order.
CHECKS = (
    "group", "interface", "route", "arrival", "bridge", "ttl", "fragments", "checksum", "rp_filter", "firewall", "igmp",
    "port", "membership", "loopback", "delivery", "program", "buffer", "package", "engine",
)


def judge(e: Evidence) -> tuple[Finding, ...]:
    """Return what each check makes of the evidence, in the order of `CHECKS`."""
    found = {name: check(e) for name, check in zip(CHECKS, _WAY, strict=True) if not isinstance(check, str)}
    explained = next((found[name] for name in CHECKS if name in found and found[name].status == "fail"), None)
    found["arrival"] = check_arrival(e, explained)
    found["delivery"] = check_delivery(e, explained is not None or found["arrival"].status == "fail")
    return tuple(found[name] for name in CHECKS)
