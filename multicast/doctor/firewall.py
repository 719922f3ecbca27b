"""Rules of the firewall: what nft and iptables print, and which rule stands in the way of a packet.

Both are read in the form meant for programs, and only so far as needed to follow one packet: where a rule says more
than is understood here, it may match or not, and what it does is a possibility and no certainty. Counters decide
where there are some.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["LEAVING", "Match", "Rule", "blocking", "dropping", "from_nft", "from_save", "grown"]

#: Where incoming packets for this host are looked at, in this order.
HOOKS = ("ingress", "prerouting", "input")
#: Where packets are looked at that this host sends.
LEAVING = ("output", "postrouting", "egress")


@dataclass(frozen=True, slots=True)
class Match:
    """One condition of a rule: a field of the packet has one of these values, or has none of them."""

    #: daddr saddr dport iif oif proto nexthdr family state type message; "" for what is not understood here.
    field: str
    values: tuple[str, ...] = ()
    negated: bool = False

    def holds(self, facts: Mapping[str, str]) -> bool | None:
        """Whether a packet with these fields matches; None when that cannot be told."""
        fact = facts.get(self.field)
        if not self.field or fact is None:
            return None
        answers = [_equal(self.field, value, fact) for value in self.values]
        if None in answers and True not in answers:
            return None
        return (True in answers) != self.negated


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the firewall, or the policy of a chain, which is what happens at its end."""

    #: ip, ip6, inet, netdev.
    family: str
    table: str
    chain: str
    #: drop, accept, jump, goto, return, translate (to another address or port); "" for rules that decide nothing.
    action: str
    #: The rule as it is written.
    text: str = ""
    #: Where the chain begins, of `HOOKS` or `LEAVING`; "" for chains that are jumped to.
    hook: str = ""
    priority: int = 0
    matches: tuple[Match, ...] = ()
    #: The chain to go on with.
    target: str = ""
    #: How many packets it has matched; None where it does not count.
    packets: int | None = None
    #: How many of them while we looked.
    grew: int = 0
    #: The program to change it with.
    program: str = "nft"
    #: Whether it is the end of its chain.
    policy: bool = False

    @property
    def name(self) -> str:
        """The rule for people, with where it is."""
        return f"{self.program}, table {self.family} {self.table}, chain {self.chain}: {self.text}"

    @property
    def listing(self) -> str:
        """The command that shows the rule with what it is deleted by."""
        if self.program == "nft":
            return f"sudo nft -a list chain {self.family} {self.table} {self.chain}"
        return f"sudo {self.program} -t {self.table} -L {self.chain} -n --line-numbers"

    def allowing(self, group: str, port: int) -> str:
        """Return the command that lets packets to a group through here."""
        if self.program == "nft":
            family = "ip6" if ":" in group else "ip"
            where = f"{self.family} {self.table} {self.chain}"
            return f"sudo nft insert rule {where} {family} daddr {group} udp dport {port} accept"
        table = "" if self.table == "filter" else f"-t {self.table} "
        return f"sudo {self.program} {table}-I {self.chain} -d {group} -p udp --dport {port} -j ACCEPT"


    def allowing_reports(self, six: bool) -> str:
        """Return the command that lets IGMP through here, or MLD for IPv6."""
        if self.program == "nft":
            what = "icmpv6 type { 130, 131, 132, 143 }" if six else "ip protocol igmp"
            return f"sudo nft insert rule {self.family} {self.table} {self.chain} {what} accept"
        table = "" if self.table == "filter" else f"-t {self.table} "
        return f"sudo {self.program} {table}-I {self.chain} -p {'icmpv6' if six else 'igmp'} -j ACCEPT"


# What nft calls the types of messages of IGMP and of ICMPv6, as facts have them.
_TYPES = {
    "membership-query": "17", "membership-report-v1": "18", "membership-report-v2": "22", "membership-report-v3": "34",
    "leave-group": "23", "mld-listener-query": "130", "mld-listener-report": "131", "mld-listener-done": "132",
    "mld-listener-reduction": "132", "mld2-listener-report": "143",
}


# Other ways to write protocols.
_PROTOCOLS = {"2": "igmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6"}


def _equal(field: str, value: str, fact: str) -> bool | None:
    """Whether `fact` is `value`, or in the range or prefix that it writes."""
    if field in ("daddr", "saddr"):
        try:
            if "-" in value:
                low, high = (ipaddress.ip_address(part) for part in value.split("-"))
                address = ipaddress.ip_address(fact)
                return low.version == address.version and int(low) <= int(address) <= int(high)
            network = ipaddress.ip_network(value, strict=False)
            address = ipaddress.ip_address(fact)
            return network.version == address.version and address in network
        except ValueError:
            return None
    if field == "dport":
        low_text, _, high_text = value.replace(":", "-").partition("-")
        if not low_text.isdecimal():
            return None
        return int(low_text) <= int(fact) <= int(high_text or low_text)
    if field == "proto":
        return _PROTOCOLS.get(value, value) == fact
    if field == "message":
        low_text, _, high_text = value.partition("-")
        if low_text.isdecimal() and high_text.isdecimal():
            return int(low_text) <= int(fact) <= int(high_text)
        return _TYPES.get(value, value) == fact
    if value[-1:] in ("*", "+"):
        return fact.startswith(value[:-1])
    return None if value.startswith("@") else value == fact


# -- nft -----------------------------------------------------------------------------------------------------------

# What nft calls the fields, and what they are here.
_NFT_FIELDS = {
    ("payload", "ip", "daddr"): "daddr",
    ("payload", "ip6", "daddr"): "daddr",
    ("payload", "ip", "saddr"): "saddr",
    ("payload", "ip6", "saddr"): "saddr",
    ("payload", "udp", "dport"): "dport",
    ("payload", "th", "dport"): "dport",
    ("payload", "ip", "protocol"): "proto",
    ("payload", "ip6", "nexthdr"): "nexthdr",
    ("meta", "", "l4proto"): "proto",
    ("meta", "", "nfproto"): "family",
    ("meta", "", "iifname"): "iif",
    ("meta", "", "iif"): "iif",
    ("meta", "", "oifname"): "oif",
    ("meta", "", "oif"): "oif",
    ("payload", "igmp", "type"): "message",
    ("payload", "icmpv6", "type"): "message",
    ("meta", "", "pkttype"): "type",
    ("ct", "", "state"): "state",
}
_ACTIONS = {
    "redirect": "translate", "dnat": "translate", "tproxy": "translate",
    "drop": "drop", "reject": "drop", "accept": "accept", "jump": "jump", "goto": "goto", "return": "return",
}


def from_nft(text: str) -> list[Rule]:
    """Return the rules that `nft -j list ruleset` prints, each chain with its policy last."""
    entries = json.loads(text)["nftables"]
    chains: dict[tuple[str, str, str], dict[str, Any]] = {}
    maps: dict[tuple[str, str, str], list[Any]] = {}
    sets: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for entry in entries:
        if "chain" in entry:
            chain = entry["chain"]
            chains[chain["family"], chain["table"], chain["name"]] = chain
        elif "map" in entry:
            named = entry["map"]
            maps[named["family"], named["table"], f"@{named['name']}"] = named.get("elem", [])
        elif "set" in entry:
            named = entry["set"]
            # Of a set of several fields together the values would mean nothing here.
            if isinstance(named.get("type"), str):
                values = tuple(_nft_values(named.get("elem", [])))
                sets[named["family"], named["table"], f"@{named['name']}"] = values
    found = []
    for entry in entries:
        if "rule" in entry:
            rule = entry["rule"]
            found += _nft_rules(rule, chains.get((rule["family"], rule["table"], rule["chain"]), {}), maps, sets)
    for (family, table, name), chain in chains.items():
        if "hook" in chain:
            policy = chain.get("policy", "accept")
            found.append(
                Rule(family, table, name, policy, f"policy {policy}", chain["hook"], _priority(chain),
                     tuple(_devices(chain)), policy=True)
            )
    return found


def _devices(chain: Mapping[str, Any]) -> Iterator[Match]:
    """Yield what the devices of a chain of the family netdev say of its packets."""
    if "dev" in chain:
        yield Match("oif" if chain.get("hook") == "egress" else "iif", tuple(_nft_values(chain["dev"])))


def _priority(chain: Mapping[str, Any]) -> int:
    return int(chain.get("prio", 0))


def _nft_rules(
    rule: Mapping[str, Any],
    chain: Mapping[str, Any],
    maps: Mapping[tuple[str, str, str], list[Any]],
    sets: Mapping[tuple[str, str, str], tuple[str, ...]],
) -> list[Rule]:
    """Return what a rule comes to: one rule, or one for each element of a map of verdicts."""
    matches, words, packets = list(_devices(chain)), [], None
    verdicts: list[tuple[str, Any, tuple[Match, ...], str]] = []
    for expression in rule.get("expr", ()):
        ((kind, value),) = expression.items()
        if kind == "counter":
            packets = int(value.get("packets", 0)) if isinstance(value, dict) else None
        elif kind in _ACTIONS:
            verdicts.append((kind, value, (), ""))
        elif kind == "match":
            match, written = _nft_match(value)
            named = sets.get((rule["family"], rule["table"], match.values[0])) if len(match.values) == 1 else None
            matches.append(match if named is None else replace(match, values=named))
            matches += _implied(value["left"])
            words.append(written)
        elif kind == "vmap":
            packets = None  # it counts what comes to the map, and not what goes by one of its elements
            data = value["data"]
            for key, verdict in maps[rule["family"], rule["table"], data] if isinstance(data, str) else data["set"]:
                match, written = _nft_match({"left": value["key"], "right": key})
                ((action, to),) = verdict.items()
                verdicts.append((action, to, (match,), f"vmap {written}"))
        else:
            words.append(kind)
            if kind not in ("log", "notrack", "mangle"):
                matches.append(Match(""))  # a limit, for instance, matches sometimes
    found = []
    for action, to, also, written in verdicts or [("", None, (), "")]:
        target = to.get("target", "") if action in ("jump", "goto") else ""
        found.append(
            Rule(
                rule["family"],
                rule["table"],
                rule["chain"],
                _ACTIONS.get(action, ""),
                " ".join(filter(None, [*words, written, action, target])),
                chain.get("hook", ""),
                _priority(chain),
                (*matches, *also),
                target,
                packets,
            )
        )
    return found


# A field of one of these headers is there in packets of that protocol alone.
_TRANSPORTS = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "igmp", "esp", "ah", "comp"})


def _implied(left: Any) -> Iterator[Match]:
    """Yield what a condition about a field of a header says of the packet besides (nft(8), PAYLOAD EXPRESSIONS)."""
    about = left.get("payload", {}) if isinstance(left, dict) else {}
    protocol = about.get("protocol", "") if isinstance(about, dict) else ""
    if protocol in _TRANSPORTS:
        yield Match("proto", (protocol,))
    elif protocol in ("ip", "ip6"):
        yield Match("family", ("ipv4" if protocol == "ip" else "ipv6",))


def _nft_match(value: Mapping[str, Any]) -> tuple[Match, str]:
    left, right, op = value["left"], value["right"], value.get("op", "==")
    ((kind, about),) = left.items() if isinstance(left, dict) and len(left) == 1 else (("", {}),)
    about = about if isinstance(about, dict) else {}
    protocol, name = about.get("protocol", ""), about.get("field", "") or about.get("key", "")
    values = tuple(_nft_values(right))
    field = _NFT_FIELDS.get((kind, protocol, name), "")
    written = f"{protocol or kind} {name}".strip() + ("" if op in ("==", "in") else f" {op}")
    listed = values[0] if len(values) == 1 else "{ " + ", ".join(values) + " }"
    known = field if op in ("==", "!=", "in") and values else ""
    return Match(known, values, op == "!="), f"{written} {listed}"


def _nft_values(right: Any) -> Iterator[str]:
    if isinstance(right, list):
        for one in right:
            yield from _nft_values(one)
    elif isinstance(right, dict):
        if "set" in right:
            yield from _nft_values(right["set"])
        elif "prefix" in right:
            yield f"{right['prefix']['addr']}/{right['prefix']['len']}"
        elif "range" in right:
            yield "-".join(str(end) for end in right["range"])
        elif "elem" in right:
            yield from _nft_values(right["elem"].get("val"))
        else:
            yield "@" + next(iter(right), "?")
    else:
        yield str(right)


# -- iptables ------------------------------------------------------------------------------------------------------

_SAVE_FIELDS = {
    "-d": "daddr",
    "-s": "saddr",
    "-i": "iif",
    "-o": "oif",
    "-p": "proto",
    "--dport": "dport",
    "--dports": "dport",
    "--ctstate": "state",
    "--state": "state",
    "--pkt-type": "type",
}
_SAVE_ACTIONS = {
    "REDIRECT": "translate", "DNAT": "translate", "TPROXY": "translate",
    "DROP": "drop", "REJECT": "drop", "ACCEPT": "accept", "RETURN": "return",
}
_SAVE_HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "OUTPUT": "output", "POSTROUTING": "postrouting"}
# raw comes first, then mangle, nat, filter (iptables(8)).
_SAVE_PRIORITY = {"raw": -300, "mangle": -150, "nat": -100}


def from_save(text: str, family: str, program: str) -> list[Rule]:
    """Return the rules that `iptables-save -c` prints, each chain with its policy last."""
    found: list[Rule] = []
    policies: list[Rule] = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, *rest = line[1:].split()
            if name in _SAVE_HOOKS and policy in _SAVE_ACTIONS:
                count = rest[0].strip("[]").partition(":")[0] if rest else ""
                policies.append(
                    Rule(family, table, name, _SAVE_ACTIONS[policy], f"policy {policy}", _SAVE_HOOKS[name],
                         _SAVE_PRIORITY.get(table, 0), packets=int(count) if count.isdecimal() else None,
                         program=program, policy=True)
                )
        elif line.startswith("["):
            counted, _, written = line.partition("] ")
            found.append(_saved(written, int(counted[1:].partition(":")[0]), family, table, program))
    return found + policies


def _saved(written: str, packets: int, family: str, table: str, program: str) -> Rule:
    words = shlex.split(written)
    chain, matches, action, target = words[1], [], "", ""
    negated = False
    at = 2
    while at < len(words):
        word = words[at]
        value = words[at + 1] if at + 1 < len(words) else ""
        if word == "!":
            negated = True
            at += 1
            continue
        if word in ("-j", "-g"):
            action = _SAVE_ACTIONS.get(value, "goto" if word == "-g" else "jump")
            target = value if action in ("jump", "goto") else ""
            break  # what follows is about the target
        if word in _SAVE_FIELDS:
            values = tuple(value.lower().split(",") if word in ("--ctstate", "--state") else value.split(","))
            matches.append(Match(_SAVE_FIELDS[word], values, negated))
            at += 2
        elif word in ("-m", "--match", "--comment"):
            at += 2
        else:
            matches.append(Match(""))
            at += 1
            while at < len(words) and not words[at].startswith("-") and words[at] != "!":
                at += 1
        negated = False
    return Rule(family, table, chain, action, " ".join(words[2:]), _SAVE_HOOKS.get(chain, ""),
                _SAVE_PRIORITY.get(table, 0), tuple(matches), target, packets, program=program)


# -- judging -------------------------------------------------------------------------------------------------------


def grown(before: Sequence[Rule], after: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return the rules as they are after, each with how many packets it has matched since before."""
    known: dict[Rule, list[int]] = {}
    for rule in before:
        known.setdefault(replace(rule, packets=None), []).append(rule.packets or 0)
    found = []
    for rule in after:
        earlier = known.get(replace(rule, packets=None))
        # Alike rules are counted in their order.
        count = earlier.pop(0) if earlier else 0
        found.append(replace(rule, grew=(rule.packets or 0) - count))
    return tuple(found)


def dropping(rules: Iterable[Rule], facts: Mapping[str, str], hooks: Sequence[str] = HOOKS) -> Rule | None:
    """Return the rule that surely drops every packet with these fields, whatever it has counted; None for none."""
    return next((rule for rule, sure in _possible(rules, facts, hooks) if sure), None)


def blocking(
    rules: Iterable[Rule], facts: Mapping[str, str], hooks: Sequence[str] = HOOKS
) -> tuple[Rule, bool] | None:
    """Return the rule that drops a packet with these fields, and whether that is certain; None when none does.

    It is certain where every such packet matches the rule and the rule has counted some meanwhile. Then come a rule
    that all of them match and that does not count, one that has counted and may match, and one that may match. A rule
    that counts and has counted none is out.
    """
    possible = _possible(rules, facts, hooks)
    counted = [(rule, sure) for rule, sure in possible if rule.grew > 0]
    certain = [rule for rule, sure in counted if sure]
    if certain:
        return max(certain, key=lambda rule: rule.grew), True
    uncounted = [each for each in possible if each[0].packets is None]
    matching = next((each for each in uncounted if each[1]), None)
    if matching is not None:
        return matching
    if counted:
        return max(counted, key=lambda each: each[0].grew)
    return next(iter(uncounted), None)


def _possible(rules: Iterable[Rule], facts: Mapping[str, str], hooks: Sequence[str]) -> list[tuple[Rule, bool]]:
    """Return the rules that may drop a packet with these fields, in order, each with whether it surely does."""
    every = list(rules)
    possible: list[tuple[Rule, bool]] = []
    families = ("inet", "netdev", "ip6" if ":" in facts["daddr"] else "ip")
    starts = {
        (hooks.index(rule.hook), rule.priority, rule.family, rule.table, rule.chain, rule.program)
        for rule in every
        if rule.hook in hooks and rule.family in families
    }
    for _, _, family, table, chain, program in sorted(starts):
        here = [rule for rule in every if (rule.family, rule.table, rule.program) == (family, table, program)]
        possible += _follow(here, chain, facts, True, 0)[0]
    return possible


def excludes(rule: Rule, facts: Mapping[str, str]) -> bool:
    """Return whether a rule cannot match a packet with these fields."""
    return any(match.holds(facts) is False for match in rule.matches)


def _follow(
    rules: Sequence[Rule], chain: str, facts: Mapping[str, str], certain: bool, depth: int
) -> tuple[list[tuple[Rule, bool]], bool]:
    """Follow a packet through a chain; return what may drop it on the way, and whether it is decided at the end."""
    found: list[tuple[Rule, bool]] = []
    if depth > 16:
        return found, False
    for rule in sorted((one for one in rules if one.chain == chain), key=lambda one: one.policy):
        answers = [match.holds(facts) for match in rule.matches]
        if False in answers or not rule.action:
            continue
        sure = certain and None not in answers
        if rule.action in ("drop", "translate"):
            found.append((rule, sure))
        elif rule.action in ("jump", "goto"):
            inner, decided = _follow(rules, rule.target, facts, sure, depth + 1)
            found += inner
            if sure and (decided or rule.action == "goto"):
                return found, decided
            certain = certain and not (inner and not sure)
        if sure and rule.action in ("drop", "accept", "translate"):
            return found, True
        if sure and rule.action == "return":
            return found, False
        if None in answers:
            certain = False
    return found, False
