"""The doctor at the sender's end, and both ends compared."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import netns
import pytest
from programs import events
from programs import multicast as command

from multicast.doctor import MESSAGES, Finding
from multicast.doctor.checks.departure import judge_departure
from multicast.doctor.comparing import Sent, compare, report_events, sent_from
from multicast.doctor.departure import Departure, Queue, Sketch, Stream
from multicast.doctor.firewall import Match, Rule
from multicast.errors import ArgumentError
from multicast.interfaces import Interface, Route
from multicast.sockets import Group

LO = Interface(1, "lo", ("127.0.0.1", "::1"), multicast=False, loopback=True, mtu=65536)
ETH0 = Interface(2, "eth0", ("10.0.0.7", "fe80::7"), mtu=1500)
TUN = Interface(3, "tun0", ("10.8.0.7",), multicast=False, mtu=1400)
GROUP = Group("239.1.2.3", 5000)
SENT = Stream("eth0", "10.0.0.7", 40000, 4, "01:00:5e:01:02:03", 100, 20_000, 200, 200, 0)
BY_LO = replace(SENT, interface="lo", source="127.0.0.1", mac="00:00:00:00:00:00")
#: A host that sends nothing, and one that sends as it should.
IDLE = Departure(GROUP, present=(LO, ETH0, TUN), route=Route("eth0", "10.0.0.7"))
SENDING = replace(IDLE, streams=(SENT,))
DROP = Rule("inet", "t", "c", "drop", "udp dport 5000 drop", "output", matches=(Match("dport", ("5000",)),))

#: A case for each message about the sender's end: its status, and the evidence.
AT_THE_SENDER: dict[str, tuple[str, Departure]] = {
    "unsent": ("fail", IDLE),
    "unsent-no-route": ("fail", replace(IDLE, route=None)),
    "egress-filter": ("fail", replace(IDLE, egress=("eth0",))),
    "unsent-candidate": ("warn", replace(IDLE, rules=(
        replace(DROP, matches=(*DROP.matches, Match("", ("what is not understood",)))),
    ))),
    "queue-drops": ("fail", replace(SENDING, queues=(Queue("eth0", "tbf", 70), Queue("eth1", "pfifo", 900)))),
    "sent-ttl-zero": ("fail", replace(IDLE, streams=(replace(BY_LO, ttl=0),))),
    "stays-on-lo": ("fail", replace(IDLE, streams=(BY_LO,))),
    "leaves-elsewhere": ("fail", replace(SENDING, asked=("eth1",))),
    "by-tunnel": ("warn", replace(SENDING, streams=(replace(SENT, interface="tun0", source="10.8.0.7", mac=""),))),
    "foreign-source": ("warn", replace(SENDING, streams=(replace(SENT, source="10.8.0.7"),))),
    "sent-other-mac": ("warn", replace(SENDING, streams=(replace(SENT, mac="02:00:00:00:00:01"),))),
    "sent-fragments": ("warn", replace(SENDING, streams=(replace(SENT, largest=3000, fragmented=50),))),
}  # fmt: skip


def put_in_words(found: Finding, code: str, status: str) -> None:
    assert (found.code, found.status) == (code, status)
    assert found.cause.endswith(".")
    assert found.fixes
    assert not re.search(r"[{}]|None", "".join([found.cause, *found.fixes, found.seen]))


@pytest.mark.parametrize("code", AT_THE_SENDER)
def test_a_fault_at_the_sender_is_found_and_put_in_words(code: str) -> None:
    status, evidence = AT_THE_SENDER[code]
    (found,) = [one for one in judge_departure(evidence) if one.code == code]
    put_in_words(found, code, status)
    faults = [one.code for one in judge_departure(evidence) if one.status == "fail"]
    assert faults[:1] == ([code] if status == "fail" else faults[:1])


@pytest.mark.parametrize(
    "evidence",
    [
        SENDING,
        replace(SENDING, asked=("eth0",)),
        replace(SENDING, rules=None),
        replace(SENDING, rules=(replace(DROP, packets=9, grew=0),)),
        replace(SENDING, rules=(DROP,)),  # which has not counted: what left has not met it
        replace(SENDING, queues=(Queue("eth1", "tbf", 70),)),
        replace(SENDING, egress=("eth0",)),
        replace(SENDING, streams=(replace(SENT, ttl=1), BY_LO)),
        replace(SENDING, members=("eth0",), heard=100),
        Departure(Group("ff15::1", 5000), present=(LO, ETH0), streams=(
            Stream("eth0", "fe80::7", 9, 1, "33:33:00:00:00:01", 5, 50, 10, 10, 0),
        )),
    ],
)  # fmt: skip
def test_a_healthy_sender_is_told_so(evidence: Departure) -> None:
    assert [one.code for one in judge_departure(evidence) if one.status in ("fail", "warn")] == []


def test_a_rule_that_counts_is_the_cause_though_packets_leave() -> None:
    found = judge_departure(replace(SENDING, rules=(replace(DROP, packets=9, grew=9),)))
    assert [one.code for one in found if one.status == "fail"] == ["output-rule"]


def test_programs_that_do_not_hear_what_their_host_sends_are_told() -> None:
    found = judge_departure(replace(SENDING, members=("eth0",), heard=0))
    assert [one.code for one in found if one.status == "warn"] == ["unheard"]


def test_what_may_not_be_looked_at_is_no_fault() -> None:
    found = {one.check: one.status for one in judge_departure(replace(IDLE, streams=None, rules=None))}
    assert set(found.values()) == {"skip", "ok"}
    assert found["departure"] == "skip"


# -- both ends -------------------------------------------------------------------------------------------------------


def payload(number: int, size: int = 100) -> bytes:
    return b"%06d" % number + bytes(size - 6)


def looked(
    numbers: range, begun: float = 0.0, source: str = "10.0.0.7", size: int = 100, sketch: Sketch | None = None
) -> Sketch:
    """Return a sample of numbered payloads, a hundred a second from 0 on, at an end that began to look at `begun`."""
    sketch = sketch or Sketch()
    for number in numbers:
        sketch.add(payload(number, size)[:128], size, number / 100 - begun, source)
    return sketch


def sent_by(sketch: Sketch, *streams: Stream, fault: str = "", seconds: float = 5.0) -> Sent:
    """Return the report of a sender, as it comes out of its file."""
    lines = [json.dumps({"event": name, **values}) for name, values in report_events(streams, sketch, b"salt" * 4)]
    cause = {"cause": fault} if fault else None
    summary = {"event": "summary", "group": GROUP.address, "port": 5000, "seconds": seconds, "fault": cause}
    lines.append(json.dumps(summary))
    return sent_from("\n".join(lines), "sender.json")


HERE = replace(SENT, interface="eth1", packets=500)
ROUTER = Route("eth1", "10.0.1.7", "10.0.1.1")
ALL = sent_by(looked(range(500)), replace(SENT, packets=500))


def verdict(sent: Sent, came: Sketch, *streams: Stream, back: Route | None = None, group: Group = GROUP) -> Finding:
    return compare(sent, group, 5.0, streams, came, back)


def mixed() -> Finding:
    """Every second packet is long, and of these none arrives."""
    both = looked(range(1, 500, 2), size=3000, sketch=looked(range(0, 500, 2)))
    sent = sent_by(both, replace(SENT, packets=500, smallest=100, largest=3000, fragmented=250))
    return verdict(sent, looked(range(0, 500, 2)), replace(HERE, packets=250))


def two_sources() -> Finding:
    both = looked(range(1, 500, 2), source="10.0.0.8", sketch=looked(range(0, 500, 2)))
    sent = sent_by(both, replace(SENT, packets=250), replace(SENT, source="10.0.0.8", packets=250))
    return verdict(sent, looked(range(0, 500, 2)), replace(HERE, packets=250))


#: A case for each message about both ends.
BETWEEN: dict[str, tuple[str, Finding]] = {
    "sent-elsewhere": ("fail", verdict(ALL, Sketch(), group=Group("239.9.9.9", 5000))),
    "sender-silent": ("fail", verdict(sent_by(Sketch(), fault="The interface eth0 is down."), Sketch())),
    "sender-fault": ("fail", verdict(replace(ALL, fault="The queue drops."), looked(range(500)), HERE)),
    "ttl-spent": ("fail", verdict(replace(ALL, streams=(replace(SENT, ttl=1),)), Sketch(), back=ROUTER)),
    "lost-at-router": ("fail", verdict(ALL, Sketch(), back=ROUTER)),
    "lost-on-link": ("fail", verdict(ALL, Sketch(), back=Route("eth1", "10.0.0.9"))),
    "lost-by-size": ("fail", mixed()),
    "lost-by-source": ("fail", two_sources()),
    "lost-in-part": ("fail", verdict(ALL, looked(range(0, 500, 3)), replace(HERE, packets=167))),
    "lost-by-rate": ("fail", verdict(ALL, looked(range(9000, 9100)), replace(HERE, packets=100))),
    "translated": ("warn", verdict(ALL, looked(range(500), source="10.9.9.9"), replace(HERE, source="10.9.9.9"))),
}  # fmt: skip


def test_there_is_a_case_for_each_message() -> None:
    codes = list(MESSAGES)
    assert codes[codes.index("unsent") :] == [*AT_THE_SENDER, *BETWEEN]


@pytest.mark.parametrize("code", BETWEEN)
def test_what_became_of_packets_on_the_way_is_put_in_words(code: str) -> None:
    status, found = BETWEEN[code]
    put_in_words(found, code, status)


@pytest.mark.parametrize("begun", [0.0, 2.0, -2.0])
def test_what_arrives_is_told_though_the_looks_began_apart(begun: float) -> None:
    # This end sees what was sent while it looked: from 2 s on, or from before the sender's look.
    seen = range(max(0, int(100 * begun)), 500)
    found = verdict(ALL, looked(seen, begun), replace(HERE, packets=len(seen), ttl=2))
    assert (found.status, found.code) == ("ok", "")
    assert "2 routers between" in found.cause


def test_losses_are_counted_where_both_looked() -> None:
    # Looked from 2 s on, where the half of it is missing.
    found = verdict(ALL, looked(range(200, 500, 2), 2.0), replace(HERE, packets=150))
    assert found.code == "lost-in-part"
    assert re.match(r"(49|50)[.0-9]* % of the packets", found.cause)


@pytest.mark.parametrize("seen_twice", [True, False])
def test_what_two_devices_show_is_one_packet(seen_twice: bool) -> None:
    # A VLAN, a bridge or a bond, and the device below it.
    below = [replace(SENT, interface="eth9", packets=500)] if seen_twice else []
    sent = replace(ALL, streams=(replace(SENT, packets=500), *below))
    assert sent.packets == 500
    assert verdict(sent, looked(range(9000, 9500)), HERE).status == "ok"


def test_a_smaller_sample_at_this_end_is_no_loss() -> None:
    # Here much more came than the sample holds, so most payloads of the sender are not in it.
    came = looked(range(500, 20_000), source="10.0.0.9", sketch=looked(range(500)))
    assert came.limit < 1 << 32
    found = verdict(ALL, came, HERE, replace(HERE, source="10.0.0.9", packets=19_500))
    assert (found.status, found.code) == ("ok", "")


def test_at_another_time_rates_are_compared() -> None:
    found = verdict(ALL, looked(range(9000, 9500)), HERE)
    assert found.status == "ok"
    assert "as many arrive as are sent" in found.cause


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"event":"summary"}', '[1]\n{"event":"payloads"}'])
def test_a_file_that_is_no_report_is_refused_with_words(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"x\.json is no report of a sender .*--sending --json > sender\.json"):
        sent_from(text, "x.json")


def test_a_report_has_no_payloads() -> None:
    sketch = looked(range(20))
    text = json.dumps(report_events([SENT], sketch, b"1" * 16))
    assert "000007" not in text
    assert {one.digest for one in sketch.payloads(b"1" * 16)}.isdisjoint(
        {one.digest for one in sketch.payloads(b"2" * 16)}
    )


# -- on real networks ------------------------------------------------------------------------------------------------

SENDER = """
import multicast, os, sys, time
ttl, interface, sizes = int(sys.argv[1]), sys.argv[2] or None, [int(size) for size in sys.argv[3].split(",")]
end = time.monotonic() + 20
with multicast.Sender("239.1.2.3", 5000, ttl, interface=interface) as sender:
    print("sending", flush=True)
    for number in range(100_000):
        if time.monotonic() > end:
            break
        try:
            sender.send(b"%06d" % number + os.urandom(sizes[number % len(sizes)]))
        except OSError:
            pass
        time.sleep(0.01)
"""


def both_ends(
    tmp_path: Path, *, ttl: int = 4, interface: str = "v0", sizes: str = "200", at_sender: str = "", between: str = "",
    shaped: bool = False
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:  # fmt: skip
    """Send from one host to another by a switch; return what the doctor says on the sender, and comparing."""
    path = tmp_path / "sender.json"
    with netns.Lab() as lab:
        alice, bob = lab.host("alice"), lab.host("bob")
        switch = lab.segment(alice, bob)
        for host, rules in ((alice, at_sender), (switch, between)):
            if rules:
                done = host.run(["nft", "-f", "-"], input=rules)
                assert done.returncode == 0, done.stderr
        if shaped:
            shaper = "tc qdisc add dev v0 root tbf rate 50kbit burst 2000 limit 3000"
            done = alice.run(shaper.split())
            if done.returncode:
                pytest.skip(f"no tbf in this kernel: {done.stderr}")
        sending = alice.popen(netns.python(SENDER, str(ttl), interface, sizes))
        assert sending.stdout is not None
        sending.stdout.readline()
        with ThreadPoolExecutor(1) as pool:
            place = "239.1.2.3:5000"
            there = pool.submit(
                command, "doctor", place, "--compare", str(path), "--json", "-w", "4", "-i", "v0", host=bob
            )
            time.sleep(0.3)
            said = command("doctor", place, "--sending", "--json", "-w", "3", host=alice)
            path.write_text(said.stdout)
            compared = there.result()
    assert compared.stdout, compared.stderr
    return events(said.stdout), events(compared.stdout)


def fault(said: list[dict[str, object]]) -> object:
    found = said[-1]["fault"]
    return found["code"] if isinstance(found, dict) else None


@pytest.mark.needs_namespaces
@pytest.mark.needs_root
def test_packets_that_arrive_are_told_at_both_ends(tmp_path: Path) -> None:
    said, compared = both_ends(tmp_path)
    assert (fault(said), fault(compared)) == (None, None)
    (sent,) = [one for one in said if one["event"] == "sent"]
    assert (sent["interface"], sent["source"], sent["ttl"], sent["mac"]) == (
        "v0", "10.99.0.1", 4, "01:00:5e:01:02:03"
    )  # fmt: skip
    assert (sent["smallest"], sent["largest"]) == (206, 206)
    assert "what leaves the sender arrives" in str(compared[0]["cause"])


@pytest.mark.needs_namespaces
@pytest.mark.needs_root
def test_what_leaves_by_a_bridge_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "sender.json"
    with netns.Lab() as lab:
        alice, bob = lab.pair()
        alice.ip(
            "address flush dev va scope global",
            "link add br0 type bridge mcast_snooping 0",
            "link set va master br0",
            "link set br0 up",
            "address add 10.99.0.1/24 dev br0",
        )
        sending = alice.popen(netns.python(SENDER, "1", "br0", "200"))
        assert sending.stdout is not None
        sending.stdout.readline()
        said = command("doctor", "239.1.2.3:5000", "--sending", "--json", "-w", "1.5", host=alice)
        path.write_text(said.stdout)
        there = command("doctor", "239.1.2.3:5000", "--compare", str(path), "--json", "-w", "1.5", host=bob)
    assert [one["interface"] for one in events(said.stdout) if one["event"] == "sent"] == ["br0"], said.stdout
    assert [one["code"] for one in events(said.stdout)[:-1] if one.get("code")] == []
    assert fault(events(there.stdout)) is None, there.stdout


INGRESS = "table netdev t {{ chain c {{ type filter hook ingress device p1 priority 0\n{}\n}}\n}}\n"


@pytest.mark.needs_namespaces
@pytest.mark.needs_root
@pytest.mark.needs_program("nft")
@pytest.mark.parametrize(
    "options, at_sender, between",
    [
        ({"between": INGRESS.format("udp dport 5000 numgen inc mod 2 == 0 drop")}, None, "lost-in-part"),
        ({"between": INGRESS.format("udp dport 5000 drop")}, None, "lost-on-link"),
        ({"between": INGRESS.format("ip frag-off & 0x1fff != 0 drop"), "sizes": "100,3000"}, None, "lost-by-size"),
        ({"at_sender": "table inet t { chain c { type filter hook output priority 0\nudp dport 5000 drop\n}\n}\n"},
         "output-rule", "sender-silent"),
        ({"ttl": 0, "interface": ""}, "sent-ttl-zero", "sender-silent"),
        ({"interface": "lo"}, "stays-on-lo", "sender-silent"),
        ({"shaped": True}, "queue-drops", "sender-fault"),
    ],
    ids=["half", "none", "fragments", "output rule", "ttl 0", "lo", "shaper"],
)  # fmt: skip
def test_faults_on_the_way_are_named(
    tmp_path: Path, options: dict[str, object], at_sender: str | None, between: str
) -> None:
    said, compared = both_ends(tmp_path, **options)  # type: ignore[arg-type]
    assert (fault(said), fault(compared)) == (at_sender, between), (said, compared)


@pytest.mark.parametrize("words", [["--sending", "--from", "10.0.0.5"], ["--sending", "--compare", "x"]])
def test_options_that_do_not_go_together_are_refused(words: list[str]) -> None:
    done = command("doctor", "239.1.2.3:5000", *words)
    assert (done.returncode, "neither with the other" in done.stderr) == (2, True)
