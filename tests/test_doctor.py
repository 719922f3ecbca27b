"""What the doctor makes of its evidence, without any network."""

from __future__ import annotations

import errno
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from multicast import doctor
from multicast.doctor import MESSAGES, Diagnosis, checks
from multicast.doctor.evidence import Evidence
from multicast.doctor.firewall import Match, Rule
from multicast.doctor.kernel import Bridge, Holder, Inside, Program, SourceFilter
from multicast.doctor.lines import Line
from multicast.doctor.wire import Sealed, Seen
from multicast.errors import ArgumentError, GroupError
from multicast.interfaces import Interface, Membership, Route
from multicast.sockets import Group

DOCS = Path(__file__).parents[1] / "docs"

LO = Interface(1, "lo", ("127.0.0.1", "::1"), multicast=False, loopback=True, mtu=65536)
ETH0 = Interface(2, "eth0", ("10.0.0.7", "fe80::7"), mtu=1500)
ETH1 = Interface(3, "eth1", ("10.0.1.7", "fe80::8"), mtu=1500)
GROUP = Group("239.1.1.1", 5000)
HEARD = Seen("eth0", "239.1.1.1", 5000, "10.0.0.5", 1)
SPECIFIC = Group("232.1.1.1", 5000, sources=("10.0.0.5",))
PLAYER = Holder("0.0.0.0", 5000, 1000, 77, "player (pid 42)")  # noqa: S104 -- nothing is bound
#: A host on which nothing happened.
SILENT = Evidence(
    group=GROUP,
    present=(LO, ETH0),
    route=Route("eth0", "10.0.0.7"),
    sysctl={"net.ipv4.igmp_max_memberships": 20, "net.ipv4.igmp_max_msf": 10, "net.core.rmem_max": 212992},
    versions={"eth0": 3},
    distributions=("multicast-poller",),
)
#: A host on which packets arrive.
HEALTHY = replace(SILENT, arrived=(HEARD,), anywhere=(HEARD,), wire=(HEARD,))
#: What the kernel counts when buffers of sockets are full.
FULL = {"Udp:RcvbufErrors": 9}
#: A host whose kernel drops what is on the wire.
DROPPED = replace(SILENT, wire=(replace(HEARD, packets=7),))
DROP = Rule("inet", "f", "in", "drop", "udp dport 5000 drop", "input", matches=(Match("dport", ("5000",)),))


REPORT_DROP = Rule("ip", "f", "x", "drop", "igmp drop", "input", matches=(Match("proto", ("igmp",)),))


def only(source: str) -> Group:
    return Group(GROUP.address, GROUP.port, sources=(source,))


def interface(**changes: object) -> tuple[Interface, ...]:
    return (LO, ETH0._replace(**changes))  # type: ignore[arg-type]


# One piece of evidence for each message, and the status it gets.
CASES: dict[str, tuple[str, Evidence]] = {
    "zone-missing": ("fail", replace(HEALTHY, group=Group("ff02::77", 5000))),
    "source-missing": ("fail", replace(SILENT, group=Group("232.1.1.1", 5000))),
    "none-up": ("fail", replace(SILENT, present=(LO._replace(up=False), ETH0._replace(up=False)))),
    "interface-down": ("fail", replace(SILENT, present=interface(up=False))),
    "no-carrier": ("fail", replace(SILENT, present=interface(running=False))),
    "no-multicast-flag": ("fail", replace(SILENT, present=interface(multicast=False))),
    "bridge-port": ("fail", replace(SILENT, asked=("eth0",), masters={"eth0": "br0"})),
    "no-address": ("fail", replace(SILENT, present=interface(addresses=("fe80::7",)))),
    "no-ipv6": ("fail", replace(SILENT, group=Group("ff15::1", 5000), present=interface(addresses=("10.0.0.7",)))),
    "join-refused": ("fail", replace(SILENT, asked=("eth0",), refused={"eth0": OSError(errno.ENODEV, "")})),
    "no-route": ("fail", replace(SILENT, route=None)),
    "no-route-down": ("fail", replace(SILENT, route=None, present=(LO, ETH0, ETH1._replace(up=False)))),
    "route-elsewhere": (
        "fail", replace(SILENT, present=(LO, ETH0, ETH1._replace(running=False)), route=Route("eth1", None))
    ),
    "no-group-route": ("fail", replace(SILENT, group=Group("ff15::1", 5000), unrouted=("eth0",))),
    "other-interface": ("fail", replace(SILENT, asked=("eth1",), present=(LO, ETH0, ETH1), anywhere=(HEARD,))),
    "other-source": ("fail", replace(SILENT, group=only("10.0.0.9"), anywhere=(HEARD,))),
    "other-interface-sent": (
        "fail",
        replace(SILENT, asked=("eth1",), present=(LO, ETH0, ETH1), anywhere=(replace(HEARD, source="10.0.0.7"),)),
    ),
    "other-port": ("fail", replace(SILENT, wire=(replace(HEARD, port=5001),))),
    "other-group": ("fail", replace(SILENT, wire=(replace(HEARD, group="239.1.1.2"),))),
    "lost-in-bridge": (
        "fail",
        replace(
            SILENT, wire=(HEARD,), masters={"eth0": "eth1"}, present=(LO, ETH0, ETH1), route=Route("eth1", "10.0.1.7")
        ),
    ),
    "unread-port": ("fail", replace(SILENT, wire=None, counters={"Udp:IgnoredMulti": 5, "Ip:InMcastPkts": 5})),
    "xdp": ("fail", replace(SILENT, wire=(), xdp=("eth0",))),
    "behind-router": (
        "fail",
        replace(
            SILENT, group=only("10.9.0.1"), back={"10.9.0.1": Route("eth0", None, "10.0.0.1")}
        ),
    ),
    "nothing": ("fail", SILENT),
    "nothing-unseen": ("fail", replace(SILENT, wire=None, container=True)),
    "no-querier": ("fail", replace(SILENT, asked=("eth0",), bridges=(Bridge("br0", False, ("eth0",), ("eth0",)),))),
    "ttl-zero": ("warn", replace(HEALTHY, anywhere=(replace(HEARD, ttl=0),))),
    "other-mac": ("fail", replace(SILENT, wire=(replace(HEARD, astray="mac"),))),
    "vlan-tag": ("fail", replace(SILENT, wire=(replace(HEARD, astray="vlan 42"),))),
    "bad-length": ("fail", replace(SILENT, wire=(replace(HEARD, astray="length"),))),
    "duplicate-address": ("fail", replace(SILENT, wire=(replace(HEARD, source="10.0.0.7"),))),
    "own-source": (
        "fail",
        replace(
            SILENT,
            asked=("eth1",),
            present=(LO, ETH0, ETH1),
            anywhere=(replace(HEARD, source="10.0.0.7"),),
            wire=(
                replace(HEARD, source="10.0.0.7", outgoing=True),
                replace(HEARD, interface="eth1", source="10.0.0.7"),
            ),
        ),
    ),
    "martian-source": ("fail", replace(SILENT, wire=(replace(HEARD, source="127.0.1.1"),))),
    "fragments-lost": (
        "fail",
        replace(
            DROPPED,
            wire=(replace(HEARD, fragmented=True, packets=4),),
            counters={"Ip:ReasmReqds": 4, "Ip:ReasmOKs": 1},
        ),
    ),
    "fragments-unfinished": (
        "fail", replace(SILENT, wire=None, counters={"Ip:ReasmReqds": 9, "Ip:InMcastPkts": 12})
    ),
    "bad-checksum": ("fail", replace(DROPPED, counters={"Udp:InCsumErrors": 7})),
    "strict-reverse-path": (
        "fail",
        replace(
            DROPPED,
            sysctl={"net.ipv4.conf.all.rp_filter": 1},
            counters={"TcpExt:IPReversePathFilter": 7},
            back={"10.0.0.5": Route("eth1", None)},
        ),
    ),
    "loose-reverse-path": (
        "fail",
        replace(
            DROPPED,
            sysctl={"net.ipv4.conf.eth0.rp_filter": 2},
            counters={"TcpExt:IPReversePathFilter": 7},
            back={"10.0.0.5": None},
        ),
    ),
    "reverse-path": (
        "warn",
        replace(
            SILENT,
            wire=None,
            sysctl={"net.ipv4.conf.all.rp_filter": 1},
            counters={"TcpExt:IPReversePathFilter": 7},
        ),
    ),
    "would-be-filtered": (
        "warn",
        replace(
            SILENT,
            asked=("eth0",),
            group=only("10.9.0.1"),
            sysctl={"net.ipv4.conf.all.rp_filter": 1},
            back={"10.9.0.1": None},
        ),
    ),
    "firewall-rule": ("fail", replace(DROPPED, rules=(replace(DROP, packets=9, grew=7),))),
    "firewall-translates": ("fail", replace(DROPPED, rules=(replace(DROP, action="translate", hook="prerouting"),))),
    "tc-ingress": ("fail", replace(DROPPED, rules=(), ingress=("eth0",))),
    "firewall-candidate": ("fail", replace(DROPPED, rules=(DROP,))),
    "discarded": ("fail", replace(SILENT, wire=None, rules=None,
                                  counters={"Ip:InReceives": 50, "Ip:InMcastPkts": 50})),
    "version-forced": (
        "fail", replace(SILENT, group=SPECIFIC, sysctl={"net.ipv4.conf.eth0.force_igmp_version": 2})
    ),
    "version-old": ("fail", replace(SILENT, group=SPECIFIC, versions={"eth0": 2})),
    "reports-dropped": ("fail", replace(SILENT, rules=(replace(REPORT_DROP, hook="output"),))),
    "queries-dropped": ("warn", replace(SILENT, rules=(REPORT_DROP,))),
    "no-query": ("warn", replace(HEALTHY, seconds=140)),
    "port-held": ("fail", replace(SILENT, refused={"": OSError(errno.EADDRINUSE, "")}, holders=(PLAYER,), uid=1000)),
    "port-other-user": ("warn", replace(SILENT, refused={"": OSError(errno.EADDRINUSE, "")}, holders=(PLAYER,))),
    "port-privileged": ("warn", replace(SILENT, refused={"": OSError(errno.EACCES, "")}, uid=1000)),
    "limit-reached": ("fail", replace(SILENT, refused={"eth0": OSError(errno.ENOBUFS, "")})),
    "limit-sources": (
        "fail",
        replace(
            SILENT,
            group=Group(GROUP.address, GROUP.port, sources=tuple(f"10.0.0.{number}" for number in range(1, 12))),
            refused={"": OSError(errno.ENOBUFS, "")},
        ),
    ),
    "limit-reached-other": (
        "warn",
        replace(
            HEALTHY,
            holders=(PLAYER,),
            joined=tuple(Membership("eth0", f"239.2.0.{number}", 1) for number in range(21)),
        ),
    ),
    "loopback-off": (
        "fail",
        replace(SILENT, wire=(replace(HEARD, source="10.0.0.7", outgoing=True),), silent=(PLAYER,)),
    ),
    "unheard": ("fail", replace(SILENT, wire=(replace(HEARD, source="10.0.0.7", outgoing=True),))),
    "loopback-perhaps": (
        "warn",
        replace(SILENT, wire=None, silent=(PLAYER,), counters={"Ip:OutMcastPkts": 50, "Udp:OutDatagrams": 50}),
    ),
    "output-rule": ("fail", replace(SILENT, rules=(replace(DROP, hook="output", packets=9, grew=7),))),
    "output-candidate": (
        "fail", replace(SILENT, rules=(replace(DROP, hook="output"),), counters={"Ip:OutDiscards": 7})
    ),
    "output-refused": ("warn", replace(SILENT, loopback=False, forbidden=True)),
    "lo-dead": ("warn", replace(HEALTHY, loopback=False)),
    "partly-delivered": (
        "fail", replace(HEALTHY, wire=(HEARD, replace(HEARD, source="10.0.0.9", packets=50)))
    ),
    "partly-firewall": (
        "fail",
        replace(HEALTHY, wire=(HEARD, replace(HEARD, source="10.0.0.9", packets=50)), rules=(replace(DROP, grew=50),)),
    ),
    "not-delivered": ("fail", DROPPED),
    "line-silent": (
        "fail",
        replace(HEALTHY, compared=True, lines=(Line("239.1.1.1:5000", 9, 0), Line("239.1.1.2:5000", 0, 9))),
    ),
    "line-lacks": (
        "fail",
        replace(HEALTHY, compared=True, lines=(Line("239.1.1.1:5000", 9, 0), Line("239.1.1.2:5000", 6, 3))),
    ),
    "not-sealed": ("fail", replace(HEALTHY, key="27111a", max_age=30.0, seals=(Sealed("", 9),))),
    "other-key": ("fail", replace(HEALTHY, key="27111a", max_age=30.0, seals=(Sealed("", 1), Sealed("aabbcc", 8)))),
    "other-clock": ("fail", replace(HEALTHY, key="27111a", max_age=30.0, seals=(Sealed("27111a", 9, -40.0),))),
    "joined-elsewhere": ("fail", replace(HEALTHY, holders=(PLAYER,), joined=(Membership("eth1", "239.1.1.1", 1),))),
    "joined-for-others": (
        "fail",
        replace(
            HEALTHY,
            holders=(PLAYER,),
            joined=(Membership("eth0", "239.1.1.1", 1),),
            filters=(SourceFilter("eth0", "239.1.1.1", "10.0.0.9", 1, 0),),
        ),
    ),
    "source-blocked": (
        "fail",
        replace(
            HEALTHY,
            holders=(PLAYER,),
            joined=(Membership("eth0", "239.1.1.1", 2),),
            filters=(SourceFilter("eth0", "239.1.1.1", "10.0.0.5", 0, 2),),
        ),
    ),
    "stopped": ("fail", replace(HEALTHY, holders=(replace(PLAYER, queued=4096, state="T"),))),
    "bound-unicast": ("fail", replace(HEALTHY, strangers=(replace(PLAYER, address="10.0.0.7"),))),
    "bound-device": ("fail", replace(HEALTHY, holders=(replace(PLAYER, device="eth9"),))),
    "connected-unicast": ("fail", replace(HEALTHY, strangers=(replace(PLAYER, address="10.0.0.7", peer="10.0.0.9"),))),
    "connected": ("fail", replace(HEALTHY, holders=(replace(PLAYER, peer="10.0.0.9"),))),
    "bound-other-group": (
        "fail", replace(HEALTHY, holders=(replace(PLAYER, address="239.9.9.9", inside=Inside(joined=("eth0",))),))
    ),
    "not-joined-itself": ("fail", replace(HEALTHY, holders=(replace(PLAYER, inside=Inside(every=False)),))),
    "shared-by-hash": (
        "warn",
        replace(
            HEALTHY,
            holders=(
                replace(PLAYER, address="239.1.1.1", inside=Inside(every=False, joined=("eth0",), reuseport=True)),
                replace(PLAYER, address="239.1.1.1", inode=78, inside=Inside(False, False, (), True, True)),
            ),
            joined=(Membership("eth0", "239.1.1.1", 1),),
        ),
    ),
    "no-program": ("fail", replace(HEALTHY, program=Program("player"))),
    "program-apart": ("fail", replace(HEALTHY, program=Program("player", (42,), apart=True))),
    "program-hidden": ("warn", replace(HEALTHY, program=Program("player", (42,), hidden=True))),
    "program-no-socket": ("fail", replace(HEALTHY, program=Program("player", (42,)))),
    "program-other-port": ("fail", replace(HEALTHY, program=Program("player", (42,), (replace(PLAYER, port=5001),)))),
    "ipv6-only": ("fail", replace(HEALTHY, program=Program("player", (42,), (replace(PLAYER, alone=True),)))),
    "not-joined": ("fail", replace(HEALTHY, holders=(replace(PLAYER, address="239.1.1.1"),))),
    "joined-other-group": ("warn", replace(HEALTHY, holders=(PLAYER,))),
    "reads-nothing": (
        "fail",
        replace(
            HEALTHY,
            arrived=(replace(HEARD, packets=100),),
            holders=(replace(PLAYER, dropped=99),),
            joined=(Membership("eth0", "239.1.1.1", 1),),
            counters=FULL,
        ),
    ),
    "overflow": (
        "fail",
        replace(
            HEALTHY, holders=(replace(PLAYER, dropped=9),), joined=(Membership("eth0", "239.1.1.1", 1),), counters=FULL
        ),
    ),
    "overflow-own-buffer": (
        "fail",
        replace(
            HEALTHY,
            holders=(replace(PLAYER, dropped=9, inside=Inside(rcvbuf=4096)),),
            joined=(Membership("eth0", "239.1.1.1", 1),),
            counters=FULL,
        ),
    ),
    "queue-grows": (
        "warn",
        replace(
            HEALTHY,
            arrived=(replace(HEARD, packets=10),),
            holders=(replace(PLAYER, before=768, queued=8448),),
            joined=(Membership("eth0", "239.1.1.1", 1),),
        ),
    ),
    "refused-at-socket": (
        "warn",
        replace(
            HEALTHY,
            holders=(replace(PLAYER, address="239.1.1.1", dropped=HEALTHY.delivered),),
            joined=(Membership("eth0", "239.1.1.1", 1),),
        ),
    ),
    "refused-by-cgroup": (
        "fail",
        replace(
            HEALTHY,
            arrived=(replace(HEARD, packets=100),),
            holders=(replace(PLAYER, address="239.1.1.1", dropped=100, inside=Inside()),),
            joined=(Membership("eth0", "239.1.1.1", 1),),
        ),
    ),
    "refused-here": ("fail", replace(DROPPED, refused_here=7)),
    "ipsec": (
        "fail",
        replace(
            HEALTHY,
            holders=(replace(PLAYER, address="239.1.1.1", dropped=9),),
            joined=(Membership("eth0", "239.1.1.1", 1),),
            counters={"Xfrm:XfrmInNoPols": 9},
        ),
    ),
    "two-packages": ("warn", replace(HEALTHY, distributions=("multicast", "multicast-poller"))),
    "engine-missing": ("warn", replace(HEALTHY, engine="python", engine_reason="it was not built")),
}


def diagnosis(evidence: Evidence) -> Diagnosis:
    return Diagnosis(evidence.group, evidence.asked, evidence.seconds, evidence.delivered, checks.judge(evidence))


def codes(evidence: Evidence) -> dict[str, str]:
    return {one.code: one.status for one in checks.judge(evidence) if one.code}


# -- judging ---------------------------------------------------------------------------------------------------------


def test_there_is_a_case_for_each_message() -> None:
    codes = list(MESSAGES)
    assert list(CASES) == codes[: codes.index("unsent")]  # those after are in test_doctor_sending.py


@pytest.mark.parametrize("code", CASES)
def test_a_fault_is_found_and_put_in_words(code: str) -> None:
    status, evidence = CASES[code]
    found = [one for one in checks.judge(evidence) if one.code == code]
    assert [one.status for one in found] == [status]
    (one,) = found
    assert one.cause.endswith(".")
    assert one.fixes
    assert one.seen
    assert not re.search(r"[{}]|None", "".join([one.cause, *one.fixes, one.seen]))
    if status == "fail":
        fault = diagnosis(evidence).fault
        assert fault is not None
        assert fault.code == code  # and nothing else comes before it
    else:
        assert one in diagnosis(evidence).warnings


@pytest.mark.parametrize("evidence", [
    HEALTHY,
    replace(HEALTHY, wire=None, rules=None),
    replace(HEALTHY, holders=(PLAYER,), joined=(Membership("eth0", "239.1.1.1", 1),)),
    replace(HEALTHY, present=(LO, ETH0, ETH1._replace(up=False)), bridges=None, loopback=None),
    replace(HEALTHY, group=Group("232.1.1.1", 5000, (), ("10.0.0.5",))),
    replace(HEALTHY, bridges=(Bridge("br0", False, ("eth0",)), Bridge("br1", True, ("eth0",), ("eth0",)))),
    replace(HEALTHY, sysctl={"net.ipv4.conf.all.rp_filter": 1}, back={"10.0.0.5": Route("eth0", None)}),
    replace(HEALTHY, seconds=140, queriers=(("eth0", "10.0.0.1"),)),
    replace(HEALTHY, compared=True, lines=(Line("239.1.1.1:5000", 9, 0), Line("239.1.1.2:5000", 9, 0))),
    replace(HEALTHY, compared=True),
    replace(HEALTHY, seals=(Sealed("aabbcc", 8, 99.0), Sealed("", 1))),
    replace(HEALTHY, key="27111a", max_age=30.0, seals=(Sealed("27111a", 9, 29.0), Sealed("aabbcc", 8))),
    replace(HEALTHY, key="27111a", max_age=None, seals=(Sealed("27111a", 9, 99.0),)),
])
def test_nothing_is_found_on_a_healthy_host(evidence: Evidence) -> None:
    assert codes(evidence) == {}
    assert diagnosis(evidence).healthy
    assert [one.check for one in checks.judge(evidence)] == list(checks.CHECKS)
    assert {one.status for one in checks.judge(evidence)} <= {"ok", "skip"}
    assert all(one.cause for one in checks.judge(evidence))


def test_the_first_fault_on_the_way_is_the_cause() -> None:
    held = {"": OSError(errno.EADDRINUSE, "")}
    both = replace(SILENT, present=interface(up=False), refused=held, holders=(PLAYER,), uid=1000)
    found = diagnosis(both)
    assert found.fault is not None
    assert [one.code for one in found.findings if one.status == "fail"] == ["interface-down", "port-held"]
    assert found.fault.code == "interface-down"


def test_a_named_interface_that_is_down_is_named_whatever_else_is_down() -> None:
    down = tuple(one._replace(up=False) for one in (LO, ETH0, ETH1))
    fault = diagnosis(replace(SILENT, asked=("eth1",), present=down, route=None)).fault
    assert fault is not None
    assert (fault.cause, fault.fixes) == ("The interface eth1 is down.", ("sudo ip link set dev eth1 up",))


def test_silence_that_is_explained_is_no_fault_of_its_own() -> None:
    found = {one.check: one for one in checks.judge(replace(SILENT, present=interface(up=False)))}
    assert found["arrival"].status == "warn"
    assert found["arrival"].cause == "0 packets in 5 s; nothing for it on the wire; see interface"


def test_what_would_stop_packets_is_a_warning_when_they_arrive() -> None:
    assert codes(replace(HEALTHY, route=None)) == {"no-route": "warn"}
    assert codes(replace(HEALTHY, asked=("eth0",), present=interface(addresses=("fe80::7",)))) == {"no-address": "warn"}


def test_what_could_not_be_listened_to_is_not_called_silent() -> None:
    held = replace(SILENT, wire=None, rules=None, refused={"": OSError(errno.EADDRINUSE, "")})
    found = {one.check: one.status for one in checks.judge(held)}
    assert found["port"] == "fail"
    assert [found[name] for name in ("arrival", "membership", "delivery", "firewall")] == ["skip"] * 4


def test_an_interface_that_goes_while_it_is_looked_at_is_told() -> None:
    (found,) = [one for one in checks.judge(replace(SILENT, asked=("eth9",))) if one.status == "fail"]
    assert (found.code, found.cause) == ("join-refused", "239.1.1.1 cannot be joined on eth9: it is gone.")


def test_a_route_that_keeps_the_group_on_this_host_is_told() -> None:
    assert codes(replace(SILENT, route=Route("lo", None))) == {"route-elsewhere": "warn", "nothing": "fail"}
    assert codes(replace(HEALTHY, route=Route("lo", None))) == {}


def test_counters_of_other_traffic_explain_no_silence_on_the_wire() -> None:
    counted = {"TcpExt:IPReversePathFilter": 7, "Udp:InCsumErrors": 7, "Ip:ReasmReqds": 7}
    silent = replace(SILENT, counters=counted, sysctl={"net.ipv4.conf.all.rp_filter": 1})
    assert codes(silent) == {"bad-checksum": "warn", "reverse-path": "warn", "nothing": "fail"}


def test_packets_that_cannot_be_told_from_igmp_and_from_own_reports_are_no_sign_of_a_firewall() -> None:
    counted = {"Ip:InReceives": 50, "Ip:InMcastPkts": 8, "Ip:OutMcastPkts": 5}
    assert codes(replace(SILENT, wire=None, rules=None, counters=counted)) == {"nothing-unseen": "fail"}


NOISE = {"Ip:InReceives": 50, "Ip:InMcastPkts": 50}
OTHERS = (Membership("eth0", "224.0.0.251", 1), Membership("eth0", "224.0.0.1", 1), Membership("eth0", "ff02::fb", 1))


@pytest.mark.parametrize("code, counters", [
    ("discarded", NOISE),
    ("bad-checksum", {**NOISE, "Ip:InDelivers": 50, "Udp:InCsumErrors": 47}),
    ("fragments-unfinished", {**NOISE, "Ip:InDelivers": 50, "Ip:ReasmReqds": 47}),
])
def test_what_the_kernel_counts_is_a_cause_without_root_only_where_it_must_be_of_the_group(
    code: str, counters: dict[str, int]
) -> None:
    unseen = replace(SILENT, wire=None, rules=None, counters=counters)
    assert codes(unseen) == codes(replace(unseen, joined=OTHERS[1:])) == {code: "fail"}
    few = {**counters, "Ip:InMcastPkts": 3, "Udp:InCsumErrors": 3, "Ip:ReasmReqds": 3}
    assert "fail" not in {one.status for one in checks.judge(replace(unseen, counters=few)) if one.check != "arrival"}
    assert codes(replace(unseen, joined=OTHERS)) == {code: "warn", "nothing-unseen": "fail"}  # it may be of another
    unicast = codes(replace(unseen, counters={**counters, "Ip:InMcastPkts": 2}))
    assert unicast.get(code) != "fail"
    assert unicast["nothing-unseen"] == "fail"
    if code != "discarded":  # in IPv6 packets are counted that nobody has joined for
        six = replace(unseen, group=Group("ff15::1", 5000))
        assert codes(six) == {code: "warn", "nothing-unseen": "fail"}


def test_few_errors_explain_no_great_loss_on_the_wire() -> None:
    assert codes(replace(DROPPED, counters={"Udp:InCsumErrors": 4}))["bad-checksum"] == "fail"
    found = codes(replace(DROPPED, counters={"Udp:InCsumErrors": 3}))
    assert found == {"bad-checksum": "warn", "not-delivered": "fail"}


def test_packets_discarded_for_their_source_are_not_taken_for_the_firewall_s() -> None:
    counted = {**NOISE, "TcpExt:IPReversePathFilter": 50}
    assert codes(replace(SILENT, wire=None, rules=None, counters=counted)) == {"nothing-unseen": "fail"}


HELD = {"": OSError(errno.EADDRINUSE, "")}


@pytest.mark.parametrize("changes", [
    {"holders": (PLAYER,), "refused": HELD},
    {"holders": (PLAYER, replace(PLAYER, uid=0)), "refused": HELD},
    {"refused": {"": OSError(errno.EACCES, "")}, "uid": 1000},
], ids=["another user's program", "among ours", "a port of root"])
@pytest.mark.parametrize("looked", [True, False])
def test_who_could_not_listen_raises_no_alarm(changes: dict[str, Any], looked: bool) -> None:
    """A program that has the port may well receive: what would stop us is no fault then."""
    sent = replace(HEARD, source="10.0.0.7", outgoing=True)
    wire = {"wire": (HEARD, sent), "rules": (DROP,)} if looked else {"wire": None, "rules": None}
    counters = {**NOISE, "Udp:InCsumErrors": 40, "Ip:OutMcastPkts": 50, "Udp:OutDatagrams": 50}
    joined = (Membership("eth0", "239.1.1.1", 1),)
    program = replace(SILENT, route=None, joined=joined, counters=counters, silent=(PLAYER,), **wire, **changes)
    assert diagnosis(program).healthy
    said = {one.check: one for one in checks.judge(program)}
    assert said["port"].status == "warn"
    assert said["route"].status == "ok"  # what has joined needs none
    assert said["loopback"].status == "skip"
    assert said["arrival"].cause == ("1 packet on the wire in 5 s" if looked else "the group could not be joined")


def test_a_limit_that_is_not_exceeded_is_not_the_one_that_is_hit() -> None:
    refused = {"": OSError(errno.ENOBUFS, "")}
    ten = Group(GROUP.address, GROUP.port, sources=tuple(f"10.0.0.{number}" for number in range(1, 11)))
    assert codes(replace(SILENT, group=ten, refused=refused))["limit-reached"] == "fail"
    six = Group("ff35::1", 5000, sources=("fd00::1", "fd00::2"))
    (found,) = [one for one in checks.judge(replace(SILENT, group=six, refused=refused,
                                                    sysctl={"net.ipv6.mld_max_msf": 1})) if one.check == "membership"]
    assert (found.code, found.fixes) == ("limit-sources", ("sudo sysctl -w net.ipv6.mld_max_msf=4",))


@pytest.mark.parametrize("number, said", [(19, "joined"), (20, "20 memberships"), (21, "21 memberships")])
def test_so_many_memberships_that_a_socket_may_be_at_its_limit_are_told(number: int, said: str) -> None:
    joined = tuple(Membership("eth0", f"239.2.0.{last}", 1) for last in range(number))
    (found,) = [one for one in checks.judge(replace(HEALTHY, holders=(PLAYER,), joined=joined))
                if one.check == "membership"]
    assert said in found.cause
    assert found.status == ("ok" if number < 20 else "warn")


ELSEWHERE = Membership("eth0", "239.2.2.2", 1)
HERE = Membership("eth0", GROUP.address, 1)


@pytest.mark.parametrize("address, joined, status", [
    ("239.1.1.1", (HERE, ELSEWHERE), "fail"),
    ("0.0.0.0", (HERE,), "fail"),  # noqa: S104
    ("0.0.0.0", (HERE, ELSEWHERE), "warn"),  # noqa: S104 -- whose packets they were nobody knows
    ("::", (HERE, ELSEWHERE), "warn"),
    ("0.0.0.0", (ELSEWHERE,), "ok"),  # noqa: S104
    ("239.2.2.2", (HERE, ELSEWHERE), "ok"),
])
def test_a_buffer_that_overflows_is_a_fault_where_it_was_the_group_s_packets(
    address: str, joined: tuple[Membership, ...], status: str
) -> None:
    # Other groups of the other family, and those that the kernel joins by itself, are no others.
    joined += OTHERS[1:]
    full = replace(PLAYER, address=address, dropped=9)
    judged = checks.judge(replace(HEALTHY, holders=(full,), joined=joined, counters=FULL))
    (found,) = [one for one in judged if one.check == "buffer"]
    assert found.status == status


def test_packets_that_a_filter_of_the_socket_refused_are_no_overflow() -> None:
    # As with a regular expression or a shard of this package, which the kernel filters for.
    joined = (HERE, *OTHERS[1:])
    many = replace(HEALTHY, arrived=(replace(HEARD, packets=9),), anywhere=(replace(HEARD, packets=9),))
    cases = (5, GROUP.address, "ok"), (9, GROUP.address, "warn"), (9, "0.0.0.0", "warn")  # noqa: S104 -- compared only
    for dropped, address, status in cases:
        holder = replace(PLAYER, address=address, dropped=dropped)
        (found,) = [
            one for one in checks.judge(replace(many, holders=(holder,), joined=joined)) if one.check == "buffer"
        ]
        others = checks.judge(replace(many, holders=(holder,), joined=(*joined, ELSEWHERE)))
        assert address == GROUP.address or next(one for one in others if one.check == "buffer").status == "ok"
        assert found.status == status
        assert "reads too slowly" not in found.cause


def test_a_buffer_that_overflows_is_a_fault_of_ipv6_as_well() -> None:
    six = replace(HEALTHY, group=Group("ff15::1", 5000), holders=(replace(PLAYER, address="::", dropped=9),),
                  counters=FULL)
    joined = [Membership("eth0", group, 1) for group in ("ff15::1", "ff02::1", "ff02::1:ff00:7", "239.2.2.2")]
    assert codes(replace(six, joined=tuple(joined)))["overflow"] == "fail"
    assert codes(replace(six, joined=(*joined, Membership("eth0", "ff02::fb", 1))))["overflow"] == "warn"


MINE = replace(HEALTHY, holders=(PLAYER,), joined=(Membership("eth0", GROUP.address, 2),))


@pytest.mark.parametrize("row", [
    SourceFilter("eth0", GROUP.address, "10.0.0.9", 1, 0),  # another has joined for all
    SourceFilter("eth0", GROUP.address, "10.0.0.5", 0, 1),  # another does not refuse it
    SourceFilter("eth0", GROUP.address, "10.0.0.9", 0, 2),
    SourceFilter("eth0", GROUP.address, "10.0.0.5", 2, 0),
])
def test_what_one_of_two_programs_does_not_want_the_other_gets(row: SourceFilter) -> None:
    assert codes(replace(MINE, filters=(row,))) == {}


SECOND = replace(HEARD, interface="eth1", source="10.0.1.5")


@pytest.mark.parametrize("evidence, fixes", [
    (replace(SILENT, asked=("eth9",), anywhere=(HEARD, SECOND)), ("multicast listen 239.1.1.1:5000 -i eth0,eth1",)),
    (replace(SILENT, group=only("10.0.0.9"), anywhere=(HEARD, SECOND)), ("multicast listen 10.0.0.5@239.1.1.1:5000",)),
    (replace(SILENT, group=only("10.0.0.9"), wire=(HEARD, SECOND)), ("multicast listen 10.0.0.5@239.1.1.1:5000",)),
    (replace(SILENT, group=only("10.0.0.5"), asked=("eth9",), anywhere=(HEARD,)),
     ("multicast listen 10.0.0.5@239.1.1.1:5000 -i eth0",)),
    (replace(SILENT, asked=("eth8", "eth9"), anywhere=(replace(HEARD, source="10.0.0.7"),)),
     ("multicast send -i eth8 239.1.1.1:5000 TEXT",)),
    (replace(HEALTHY, group=only("10.0.0.5"), anywhere=(HEARD, SECOND), holders=(PLAYER,),
             joined=(Membership("eth9", GROUP.address, 1),)),
     ("multicast listen 10.0.0.5@239.1.1.1:5000 -i eth0,eth1",)),
    (replace(SILENT, group=Group("ff35::1", 5000, sources=("fd00::1", "fd00::2")), asked=("eth9",),
             anywhere=(replace(HEARD, source="fd00::1"),)),
     ("multicast listen 'fd00::1,fd00::2@[ff35::1]:5000' -i eth0",)),
])
def test_what_mends_it_is_a_command_however_many_come(evidence: Evidence, fixes: tuple[str, ...]) -> None:
    names = ("eth8", "eth9")
    present = (*evidence.present, *(Interface(20, name, ("10.9.0.7", "fd00::7")) for name in names))
    fault = diagnosis(replace(evidence, present=present)).fault
    assert fault is not None
    assert fault.fixes == fixes
    command = shlex.split(fault.fixes[0])
    Group.parse(next(word for word in command if ":" in word))


def test_sentences_are_not_quoted_for_shells() -> None:
    six = Group("ff15::77", 5000)
    for changes in ({"wire": ()}, {"wire": None}, {"container": True}):
        fault = diagnosis(replace(SILENT, group=six, **changes)).fault
        assert fault is not None
        assert "Nothing for [ff15::77]:5000 " in fault.cause
        assert "'[ff15::77]:5000'" in fault.fixes[-1]


FILTERED = replace(DROPPED, counters={"TcpExt:IPReversePathFilter": 7})


@pytest.mark.parametrize("every, own, back, code, fix", [
    # The higher of both counts (Documentation/networking/ip-sysctl.rst): a loose filter lets pass what has any route.
    (1, 2, "eth1", None, None),
    (2, 1, "eth1", None, None),
    (0, 1, "eth1", "strict-reverse-path", "net/ipv4/conf/eth0/rp_filter=2"),
    (1, 0, "eth1", "strict-reverse-path", "net/ipv4/conf/eth0/rp_filter=2"),
    (1, 1, "eth0", None, None),
    # Without any route only no filter at all helps, and both numbers make one.
    (0, 1, None, "strict-reverse-path", "net/ipv4/conf/eth0/rp_filter=0"),
    (1, 0, None, "strict-reverse-path", "net/ipv4/conf/all/rp_filter=0"),
    (1, 2, None, "loose-reverse-path", "net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/eth0/rp_filter=0"),
])
def test_the_filter_that_is_in_force_is_the_higher_one_and_the_fix_takes_it_off(
    every: int, own: int, back: str | None, code: str | None, fix: str | None
) -> None:
    sysctl = {"net.ipv4.conf.all.rp_filter": every, "net.ipv4.conf.eth0.rp_filter": own}
    route = None if back is None else Route(back, None)
    (found,) = [one for one in checks.judge(replace(FILTERED, sysctl=sysctl, back={"10.0.0.5": route}))
                if one.check == "rp_filter"]
    assert found.code == (code or "reverse-path")
    if fix is not None:
        assert found.fixes[1] == f"sudo sysctl -w {fix}"


def test_a_port_of_a_bridge_is_told_from_an_interface_without_an_address() -> None:
    port = replace(SILENT, present=(*interface(addresses=()), ETH1), masters={"eth0": "eth1"})
    port = replace(port, route=Route("eth1", "10.0.1.7"))
    assert codes(replace(port, asked=("eth0",))) == {"bridge-port": "fail"}
    assert codes(port) == {"nothing": "fail"}
    kept = replace(port, asked=("eth0",), bridges=(Bridge("eth1", False, ("eth0",), ("eth0",)),))
    assert codes(kept) == {"bridge-port": "warn", "no-querier": "fail"}


def test_a_port_of_our_own_user_s_program_is_held() -> None:
    ours = replace(SILENT, refused=HELD, holders=(PLAYER, replace(PLAYER, uid=0, address="239.9.9.9")), uid=1000)
    assert codes(ours)["port-held"] == "fail"


def test_broadcasts_that_nobody_reads_are_no_sign_of_another_port() -> None:
    counted = {"Udp:IgnoredMulti": 9, "Ip:InBcastPkts": 9, "Ip:InMcastPkts": 3}
    assert codes(replace(SILENT, wire=None, counters=counted)) == {"nothing-unseen": "fail"}


FRAGMENTED = replace(HEARD, fragmented=True, packets=100)


@pytest.mark.parametrize("came, whole, lost", [
    (300, 100, None),  # all of them
    (294, 98, None),  # two began before the other look
    (296, 98, None),  # and of two the last fragment comes after it
    (294, 97, 3),  # of two datagrams a fragment is missing, of one there is none
    (150, 50, None),  # half of them were dropped whole, which is another check's
    (100, 0, 100),  # only the first fragments came
    (500, 90, 10),  # and others of other datagrams
])
def test_fragments_are_missing_where_some_came_and_could_not_be_put_together(
    came: int, whole: int, lost: int | None
) -> None:
    counters = {"Ip:ReasmReqds": came, "Ip:ReasmOKs": whole}
    arriving = replace(HEALTHY, wire=(FRAGMENTED,), fragments=200, counters=counters)
    (found,) = [one for one in checks.judge(arriving) if one.check == "fragments"]
    assert found.code == ("" if lost is None else "fragments-lost")
    assert lost is None or f"{lost} of 100 could not be put together" in found.cause


def test_rules_that_could_not_be_read_are_not_called_none() -> None:
    def said(evidence: Evidence) -> tuple[str, str]:
        (found,) = [one for one in checks.judge(evidence) if one.check == "firewall"]
        return found.status, found.cause

    innocent = "1 rule, none of which is seen to drop these packets"
    assert said(HEALTHY) == ("ok", "no rules")
    assert said(replace(HEALTHY, unread=("nft",))) == ("skip", "no rules, and nft did not tell of any")
    assert said(replace(DROPPED, unread=("nft",))) == ("skip", "no rules, and nft did not tell of any")
    assert said(DROPPED) == ("ok", "no rules")
    assert said(replace(DROPPED, rules=(replace(DROP, action="accept"),))) == ("ok", innocent)
    assert codes(replace(DROPPED, unread=("nft",), rules=(DROP,)))["firewall-candidate"] == "fail"


@pytest.mark.parametrize("grew, code", [(5, None), (6, "firewall-candidate"), (8, "firewall-candidate"), (9, None)])
def test_a_rule_that_dropped_about_as_many_as_are_missing_may_be_why_wherever_it_stands(
    grew: int, code: str | None
) -> None:
    aside = replace(DROP, hook="", chain="nobody jumps here", packets=grew, grew=grew)
    found = codes(replace(DROPPED, rules=(aside,)))
    assert found == ({"not-delivered": "fail"} if code is None else {code: "fail"})


def test_a_bridge_whose_members_suffer_is_no_reason_for_silence_on_the_host() -> None:
    silent = replace(SILENT, bridges=(Bridge("eth0", False, ("p1",), ("p1",)),))
    assert codes(silent) == {"no-querier": "warn", "nothing": "fail"}


def test_commands_quote_what_shells_would_take_for_patterns() -> None:
    (found,) = [one for one in checks.judge(replace(SILENT, group=Group("ff15::1", 5000))) if one.code == "nothing"]
    assert found.fixes[1:] == ("sudo multicast doctor '[ff15::1]:5000' --sending  # on the sender",)


def test_what_this_host_sends_is_no_reason_where_the_packets_come_or_it_sends_none() -> None:
    for rule in (replace(DROP, hook="output", packets=9, grew=7), replace(REPORT_DROP, hook="output"), REPORT_DROP):
        assert codes(replace(HEALTHY, rules=(rule,), loopback=False, forbidden=True)) == {}
    assert codes(replace(SILENT, rules=(replace(DROP, hook="output"),))) == {"nothing": "fail"}
    # The report was seen to leave, so the rule is not what it seems to be.
    reported = replace(SILENT, rules=(replace(REPORT_DROP, hook="output"),), reporting=("eth0",))
    assert codes(reported) == {"nothing": "fail"}
    asked = replace(HEALTHY, queriers=(("eth0", "10.0.0.1"),))
    assert codes(replace(asked, rules=(REPORT_DROP,))) == {"queries-dropped": "warn"}
    assert codes(replace(asked, rules=(replace(REPORT_DROP, hook="output"),))) == {"reports-dropped": "warn"}


def test_groups_that_routers_keep_on_the_link_need_no_larger_ttl() -> None:
    local = Group("224.0.0.251", 5353)
    own = Seen("eth0", "224.0.0.251", 5353, "10.0.0.7", 1)
    assert codes(replace(HEALTHY, group=local, arrived=(own,), anywhere=(own,))) == {}


def test_every_field_of_the_evidence_is_used() -> None:
    judged = "\n".join(path.read_text() for path in Path(checks.__file__).parent.glob("*.py"))
    unused = [one.name for one in fields(Evidence) if not re.search(rf"\be\.{one.name}\b", judged)]
    assert unused == []


@pytest.mark.parametrize("arguments, error", [
    ({"group": "10.0.0.1"}, GroupError),
    ({"group": "239.1.1.1", "wait": 0}, ArgumentError),
    ({"group": "239.1.1.1", "wait": float("nan")}, ArgumentError),
    ({"group": "239.1.1.1", "source": "ff02::1"}, GroupError),
])
def test_wrong_arguments_are_refused_before_anything_is_opened(
    arguments: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        doctor.diagnose(**arguments)  # type: ignore[arg-type]


def test_a_diagnosis_is_frozen() -> None:
    with pytest.raises(AttributeError):
        diagnosis(HEALTHY).packets = 0  # type: ignore[misc]


# -- the page about it -----------------------------------------------------------------------------------------------


def described(text: str) -> str:
    """A template as the page has it: what is filled in stands in capitals."""
    return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), " ".join(text.split()))


def test_the_page_has_every_message_and_every_check() -> None:
    page = (DOCS / "doctor.rst").read_text()
    flat = " ".join(page.replace("``", "").split())
    texts = {code: [message.cause, *message.fixes] for code, message in MESSAGES.items()}
    assert [code for code, parts in texts.items() if any(described(part) not in flat for part in parts)] == []
    assert [name for name in checks.CHECKS if f"``{name}``" not in page] == []
    listed = re.findall(r"^   \* - ``([a-z0-9-]+)``$", page, re.MULTILINE)
    assert [code for code in listed if code in MESSAGES] == list(MESSAGES)
