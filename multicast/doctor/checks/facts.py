"""What several checks ask of the evidence, and how a finding is put together."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable

from multicast.doctor.evidence import Evidence
from multicast.doctor.kernel import Holder
from multicast.doctor.messages import MESSAGES, Finding, Status
from multicast.doctor.wire import Seen
from multicast.interfaces import Interface, Route

__all__ = [
    "IGMP_ALLOWANCE",
    "about",
    "amount",
    "blame",
    "finding",
    "kernel_joins",
    "lasted",
    "leaving_facts",
    "listed",
    "mac_of",
    "message_facts",
    "ok",
    "or_others",
    "owners",
    "packets",
    "problem",
    "skip",
    "sole",
    "stays_on_link",
    "target",
    "unique",
    "way",
    "where",
]


def finding(check: str, status: Status, code: str, seen: str = "", **words: object) -> Finding:
    """Return a finding with the sentences of `MESSAGES[code]`, filled in with `words`."""
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


def ok(check: str, text: str) -> Finding:
    """Return that all is well, and what was looked at."""
    return Finding(check, "ok", cause=text)


def skip(check: str, text: str) -> Finding:
    """Return that it could not be looked at, and why."""
    return Finding(check, "skip", cause=text)


def listed(words: Iterable[str]) -> str:
    """Return words as they are listed in a sentence."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def or_others(found: list[str]) -> str:
    """Return the first of what was found, and whether there is more."""
    return found[0] if len(found) == 1 else " and ".join(found[:3]) + (" and others" if len(found) > 3 else "")


def unique(words: Iterable[str]) -> list[str]:
    """Return each word once, in the order they came in."""
    return list(dict.fromkeys(words))


def packets(number: int) -> str:
    """Return a number of packets in words."""
    return f"{number} packet{'' if number == 1 else 's'}"


def amount(seen: Iterable[Seen]) -> int:
    """Return how many packets these are."""
    return sum(one.packets for one in seen)


def packet_facts(e: Evidence, one: Seen) -> dict[str, str]:
    """Return the fields of packets that were seen, as rules of a firewall see them."""
    return {
        "daddr": e.group.address,
        "dport": str(e.group.port),
        "saddr": one.source,
        "iif": one.interface,
        "proto": "udp",
        "nexthdr": "udp",
        "family": "ipv6" if e.family == "IPv6" else "ipv4",
        "state": "new",
        "type": "multicast",
    }


def leaving_facts(e: Evidence) -> dict[str, str]:
    """Return the fields of packets for the group that this host sends, so far as they are known."""
    names = e.asked[:1] if e.asked else (() if e.route is None else (e.route.interface,))
    return {
        "daddr": e.group.address,
        "dport": str(e.group.port),
        "proto": "udp",
        "nexthdr": "udp",
        "family": "ipv6" if e.family == "IPv6" else "ipv4",
        "state": "new",
        "type": "multicast",
        **({"oif": names[0]} if names else {}),
    }


def message_facts(e: Evidence, interface: str, query: bool) -> dict[str, str]:
    """Return the fields of a query of IGMP or MLD, or else of a report, on an interface."""
    six = e.family == "IPv6"
    address = ("ff02::1" if six else "224.0.0.1") if query else ("ff02::16" if six else "224.0.0.22")
    return {
        "daddr": address,
        "proto": "icmpv6" if six else "igmp",
        "nexthdr": "hopopt",  # MLD has a router alert in front (RFC 3810 section 5)
        "message": ("130" if six else "17") if query else ("143" if six else "34"),
        "family": "ipv6" if six else "ipv4",
        "type": "multicast",
        "state": "untracked" if six else "new",
        "iif" if query else "oif": interface,
    }


def blame(e: Evidence, counted: int) -> Status:
    """Return ``fail`` where packets asked for must be among those the kernel has counted, else ``warn``.

    Its counters are of the whole host. Either the wire shows that packets are missing, and that they may all be among
    the counted, or so many packets to groups came while nobody here has joined any other group.
    """
    if e.wire is not None:
        missing = amount(e.undelivered)
        return "fail" if 0 < missing <= 2 * counted else "warn"
    if e.family == "IPv6":  # where packets to groups are counted that nobody has joined
        return "warn"
    as_many = IGMP_ALLOWANCE < counted <= e.counters.get("Ip:InMcastPkts", 0)
    return "fail" if e.lacking and sole(e) and as_many else "warn"


#: How many packets of IGMP itself may come in while we look: queries, and reports of others.
IGMP_ALLOWANCE = 3


def lasted(e: Evidence) -> str:
    """Return for how many seconds it was looked, in words."""
    return f"{e.seconds:.3g}"


def owners(holders: Iterable[Holder]) -> str:
    """Return the names of the programs that sockets belong to."""
    return listed(unique(holder.name for holder in holders)[:4])


def about(e: Evidence) -> dict[str, object]:
    """Return the words that most messages speak of."""
    return {
        "group": e.group.address,
        "port": e.group.port,
        "seconds": lasted(e),
        "source": listed(e.group.sources) if e.group.sources else "SOURCE",
        "interface": ",".join(e.asked) or _suggested(e),
        "first": e.asked[0] if e.asked else _suggested(e),
        "where": where(e.group.address, e.group.port),
        "target": target(e.group.address, e.group.port),
        "listened": target(e.group.address, e.group.port, sources=e.group.sources),
        "again": " ".join(["multicast doctor", target(e.group.address, e.group.port), *_asked(e)]),
        "six": "-6 " if e.family == "IPv6" else "",
        "net": "ff00::/8" if e.family == "IPv6" else "224.0.0.0/4",
    }


def where(address: str, port: int | str) -> str:
    """Return an address and a port as they are written."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def target(address: str, port: int | str, zone: str = "", sources: Iterable[str] = ()) -> str:
    """Return a group as a shell takes it, to which brackets mean something."""
    who = ",".join(sources)
    return shlex.quote(f"{who}@{where(address, port)}{zone}" if who else f"{where(address, port)}{zone}")


def _asked(e: Evidence) -> list[str]:
    """The options that repeat the question."""
    interfaces = ["-i " + shlex.quote(",".join(e.asked))] if e.asked else []
    return [*interfaces, *(f"--from {source}" for source in e.group.sources)]


def _suggested(e: Evidence) -> str:
    """The interface that somebody who named none most likely means."""
    good = [one.name for one in e.outer if problem(e, one) is None]
    return good[0] if len(good) == 1 else "INTERFACE"


def problem(e: Evidence, one: Interface) -> str | None:
    """Return the code of what is wrong with an interface, or None."""
    if not one.up:
        return "interface-down"
    if one.loopback:
        return None
    if one.name in e.masters:
        return "bridge-port"
    if not one.multicast:
        return "no-multicast-flag"
    if not one.running:
        return "no-carrier"
    if e.family == "IPv4" and one.ipv4 is None:
        return "no-address"
    return "no-ipv6" if e.family == "IPv6" and one.ipv6 is None else None


def stays_on_link(group: str) -> bool:
    """Whether no router forwards the group, whatever the TTL: 224.0.0.0/24, and IPv6 scopes 1 and 2."""
    packed = ipaddress.ip_address(group).packed
    return packed[:3] == b"\xe0\0\0" if len(packed) == 4 else packed[1] & 15 in (1, 2)


def mac_of(group: str) -> str:
    """Return the Ethernet address of a group (RFC 1112 section 6.4, RFC 2464 section 7)."""
    packed = ipaddress.ip_address(group).packed
    octets = b"\x33\x33" + packed[-4:] if len(packed) == 16 else bytes([1, 0, 0x5E, packed[1] & 0x7F, *packed[2:]])
    return octets.hex(":")


def kernel_joins(address: str) -> bool:
    """Whether the kernel joins the group by itself: all nodes, and solicited nodes (RFC 4291 section 2.7.1)."""
    return address in ("224.0.0.1", "ff01::1", "ff02::1") or address.startswith("ff02::1:ff")


def sole(e: Evidence) -> bool:
    """Whether nobody here has joined any other group of the family, so that packets to groups are those asked for."""
    six = ":" in e.group.address
    others = {one.group for one in e.joined if (":" in one.group) is six and not kernel_joins(one.group)}
    return others <= {e.group.address}


def way(route: Route) -> str:
    """Return a route in words: the interface, the router, the source address."""
    source = f" from {route.source}" if route.source else ""
    return route.interface + (f" to the router {route.gateway}" if route.gateway else "") + source
