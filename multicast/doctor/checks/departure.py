"""What the evidence of the sender's end means: does anything leave, how, and what keeps it from leaving?"""

from __future__ import annotations

from collections.abc import Sequence

from multicast.doctor.departure import Departure, Stream, total
from multicast.doctor.firewall import LEAVING, blocking
from multicast.doctor.messages import Finding

from .facts import finding, listed, mac_of, ok, packets, skip, stays_on_link, target, unique, where

__all__ = ["judge_departure"]

# On an Ethernet of 1,500 bytes so many are left for UDP.
_ONE_FRAME = {"IPv4": 1472, "IPv6": 1452}


def judge_departure(e: Departure) -> tuple[Finding, ...]:
    """Return what each check makes of the evidence, in the order of a packet's way out of this host."""
    found = [check(e) for check in (_check_firewall, _check_queue, _check_ttl, _check_interface, _check_source,
                                    _check_address, _check_size, _check_loopback)]  # fmt: skip
    explained = next((one for one in found if one.status == "fail"), None)
    return (_check_departure(e, explained), *found)


def _about(e: Departure, streams: Sequence[Stream] = ()) -> dict[str, object]:
    names = ",".join(unique(one.interface for one in streams)) or ",".join(e.asked) or "INTERFACE"
    return {
        "group": e.group.address,
        "where": where(e.group.address, e.group.port),
        "target": target(e.group.address, e.group.port),
        "seconds": f"{e.seconds:.3g}",
        "interface": names,
        "six": "-6 " if e.family == "IPv6" else "",
        "net": "ff00::/8" if e.family == "IPv6" else "224.0.0.0/4",
    }


def _check_departure(e: Departure, explained: Finding | None) -> Finding:
    """Does anything leave?"""
    name = "departure"
    if e.streams is None:
        return skip(name, "what leaves was not looked at, which needs root")
    sent = e.outer
    if sent:
        first = sent[0]
        sizes = str(first.smallest) if first.smallest == first.largest else f"{first.smallest} to {first.largest}"
        more = f"; {len(sent) - 1} more senders or ways" if len(sent) > 1 else ""
        mac = f" to {first.mac}" if first.mac else ""
        return ok(
            name,
            f"{packets(total(sent))} in {e.seconds:.3g} s, {total(sent) / e.seconds:.3g} a second, by"
            f" {listed(unique(one.interface for one in sent))}; from {where(first.source, first.source_port)}{mac}, ttl"
            f" {first.ttl}, {sizes} bytes{more}",
        )
    asked = e.counters.get("Ip:OutRequests", 0)
    seen = f"0 packets for {where(e.group.address, e.group.port)} left in {e.seconds:.3g} s"
    if e.local:
        return Finding(name, "warn", cause=f"{packets(total(e.local))} went by lo alone")
    if explained is not None:
        return Finding(name, "warn", cause=f"{seen}; see {explained.check}")
    if e.route is None and not e.group.needs_interface:
        return finding(name, "fail", "unsent-no-route", seen, **_about(e))
    if e.egress:
        return finding(name, "fail", "egress-filter", seen, **{**_about(e), "interface": e.egress[0]})
    return finding(name, "fail", "unsent", f"{seen}; this host sent {packets(asked)} in all", **_about(e))


def _check_firewall(e: Departure) -> Finding:
    """Does a rule for what this host sends drop the packets?"""
    name = "firewall"
    if e.rules is None:
        return skip(name, "the rules were not looked at, which needs root")
    ways = [*e.asked] or ([e.route.interface] if e.route is not None else [])
    facts = {
        "daddr": e.group.address, "dport": str(e.group.port), "proto": "udp", "nexthdr": "udp", "state": "new",
        "family": "ipv6" if e.family == "IPv6" else "ipv4", "type": "multicast",
    }  # fmt: skip
    rule = blocking(e.rules, facts if len(ways) != 1 else {**facts, "oif": ways[0]}, LEAVING)
    if rule is None:
        return ok(name, "no rule for what leaves can match")
    blocked, certain = rule
    seen = f"it has counted {blocked.grew} in {e.seconds:.3g} s" if blocked.grew else "it matches, and does not count"
    words = {**_about(e), "rule": blocked.name, "allow": blocked.allowing(e.group.address, e.group.port)}
    if blocked.grew and certain:
        return finding(name, "fail", "output-rule", seen, **words)
    if e.streams is not None and not e.outer:
        code = "output-rule" if certain else "unsent-candidate"
        return finding(name, "fail" if certain else "warn", code, seen, **words)
    return ok(name, "no rule has dropped packets that must be these")


def _check_queue(e: Departure) -> Finding:
    """Does a queueing discipline drop packets?"""
    ways = {one.interface for one in e.outer} or set(e.asked) or ({e.route.interface} if e.route else set())
    lost = [one for one in e.queues if one.interface in ways]
    if not lost:
        return ok("queue", "no queue has dropped anything")
    worst = max(lost, key=lambda one: one.dropped)
    words = {**_about(e), "interface": worst.interface, "kind": worst.kind, "count": worst.dropped}
    seen = f"{worst.kind} on {worst.interface} dropped {worst.dropped} in {e.seconds:.3g} s"
    left = total([one for one in e.outer if one.interface == worst.interface])
    return finding("queue", "fail" if worst.dropped * 50 >= left else "warn", "queue-drops", seen, **words)


def _check_ttl(e: Departure) -> Finding:
    """How far may the packets go?"""
    if not e.streams:
        return skip("ttl", "no packet to see it in")
    zero = [one for one in e.streams if one.ttl == 0]
    if zero and not e.outer:
        seen = f"{packets(total(zero))} with TTL 0 by {listed(unique(one.interface for one in zero))}"
        return finding("ttl", "fail", "sent-ttl-zero", seen, **_about(e))
    low = [one for one in e.outer if one.ttl == 1]
    if low and not stays_on_link(e.group.address):
        return ok("ttl", "1: no router passes the packets on, so only hosts on the same network get them")
    return ok("ttl", listed(unique(str(one.ttl) for one in e.streams)))


def _check_interface(e: Departure) -> Finding:
    """Do the packets leave by the interface that is meant?"""
    name = "interface"
    if not e.streams:
        return skip(name, "no packet to see it in")
    if not e.outer:
        local = e.local
        if all(one.ttl == 0 for one in local):
            return ok(name, "lo, as packets with TTL 0 do")
        seen = f"{packets(total(local))} by lo; " + (
            "this host has no route for the group" if e.route is None else f"the route is by {e.route.interface}"
        )
        return finding(name, "fail", "stays-on-lo", seen, **_about(e))
    names = unique(one.interface for one in e.outer)
    if e.asked and not set(names) & set(e.asked):
        words = {**_about(e), "interface": ",".join(e.asked), "arriving": listed(names)}
        return finding(name, "fail", "leaves-elsewhere", f"{packets(total(e.outer))} by {listed(names)}", **words)
    tunnels = [one.name for one in e.present if one.name in names and not one.multicast]
    if tunnels and len(tunnels) == len(names):
        return finding(name, "warn", "by-tunnel", f"{packets(total(e.outer))} by {listed(tunnels)}",
                       **{**_about(e), "interface": listed(tunnels)})
    return ok(name, listed(names))


def _check_source(e: Departure) -> Finding:
    """Do the packets come from an address of the interface they leave by?"""
    if not e.outer:
        return skip("source", "no packet to see it in")
    by_name = {one.name: one for one in e.present}
    for one in e.outer:
        interface = by_name.get(one.interface)
        if interface is not None and interface.addresses and one.source not in interface.addresses:
            seen = f"{packets(one.packets)} from {one.source} by {one.interface}"
            words = {**_about(e), "source": one.source, "interface": one.interface}
            return finding("source", "warn", "foreign-source", seen, **words)
    return ok("source", listed(unique(one.source for one in e.outer)))


def _check_address(e: Departure) -> Finding:
    """Do the frames go to the Ethernet address of the group?"""
    expected = mac_of(e.group.address)
    wrong = [one for one in e.outer if one.mac not in ("", expected, "00:00:00:00:00:00")]
    if wrong:
        seen = f"{packets(total(wrong))} to {wrong[0].mac}"
        return finding("address", "warn", "sent-other-mac", seen, **{**_about(e, wrong), "mac": expected})
    return ok("address", expected) if e.outer else skip("address", "no packet to see it in")


def _check_size(e: Departure) -> Finding:
    """Do the packets fit into frames?"""
    if not e.outer:
        return skip("size", "no packet to see it in")
    cut = sum(one.fragmented for one in e.outer)
    largest = max(one.largest for one in e.outer)
    if cut:
        seen = f"{cut} of {total(e.outer)} left in fragments; the longest has {largest} bytes"
        return finding("size", "warn", "sent-fragments", seen, **{**_about(e), "most": _ONE_FRAME[e.family]})
    return ok("size", f"up to {largest} bytes, each in one frame")


def _check_loopback(e: Departure) -> Finding:
    """Do the programs of this host hear what it sends?"""
    if e.heard is None or not e.outer:
        return skip("loopback", "no program of this host listens" if e.heard is None else "nothing is sent")
    if not e.heard:
        seen = f"{packets(total(e.outer))} left, 0 were heard here; joined on {listed(e.members)}"
        return finding("loopback", "warn", "unheard", seen, **_about(e))
    return ok("loopback", f"{packets(e.heard)} heard on this host")

