"""The commands `ping` and `respond --ping`."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import netns
import pytest
from programs import Running, events, multicast

from multicast.measure import Hearing, Kind, parse

GROUP = "239.77.9.3:5093"
Respond = Callable[..., Running]


@pytest.fixture
def respond() -> Iterator[Respond]:
    """Starts a responder and returns when it is ready; it ends with the test."""
    with ExitStack() as stack:

        def start(*args: str, host: netns.Host | None = None) -> Running:
            running = stack.enter_context(Running("respond", "--ping", *(args or (GROUP,)), host=host))
            return running.until_said("answering pings to ")

        yield start


def kinds(text: str) -> dict[str, list[dict[str, Any]]]:
    """Return the JSON objects by their kinds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events(text):
        assert event.pop("v") == 1
        found.setdefault(event.pop("event"), []).append(event)
    return found


def test_each_answer_is_a_line_and_each_responder_a_row(respond: Respond) -> None:
    respond()
    respond()
    done = multicast("ping", GROUP, "-c", "2", "--interval", "0.05", "-W", "0.5")
    assert done.returncode == 0
    lines, _, table = done.stdout.partition("\n\n")
    name = re.escape(socket.gethostname())
    assert sorted(line.split()[1] for line in lines.splitlines()) == ["1", "1", "2", "2"]
    assert all(re.fullmatch(rf"seq [12]   127\.0\.0\.1 +[0-9]+\.[0-9]{{3}} ms  {name}", line)
               for line in lines.splitlines())
    head, *rows = table.splitlines()
    assert head.split() == ["RESPONDER", "NAME", "HOPS", "REPLIES", "LOST", "DUP", "MIN", "ms", "MEDIAN", "P99", "MAX"]
    assert [row.split()[:6] for row in rows] == [["127.0.0.1", socket.gethostname(), "0", "2/2", "0.0%", "0"]] * 2
    said = done.stderr.splitlines()
    assert said[0] == f"pinging {GROUP} by lo, ttl 1, 96 bytes"
    assert re.fullmatch(r"2 pings, 4 answers of 2 responders in [0-9.]+ s", said[1])


def test_nobody_answers() -> None:
    done = multicast("ping", GROUP, "-c", "1", "-W", "0.01")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody answered 1 ping in 0." in done.stderr
    assert f"`multicast respond --ping {GROUP}`" in done.stderr


def test_answers_as_json(respond: Respond) -> None:
    responder = respond(GROUP, "--json", "-c", "2")
    done = multicast("ping", GROUP, "-c", "2", "--interval", "0.02", "-W", "0.5", "--json", "-q")
    assert done.stderr == ""
    found = kinds(done.stdout)
    assert list(found) == ["reply", "responder", "summary"]
    first = found["reply"][0]
    assert 0 < first.pop("round_trip") < 20
    identity = first.pop("responder")
    assert re.fullmatch("[0-9a-f]{16}", identity)
    assert first.pop("source_port") > 1024
    assert first == {
        "sequence": 1, "source": "127.0.0.1", "interface": "lo", "name": socket.gethostname(), "hops": 0,
        "hops_back": 0, "duplicate": False,
    }  # fmt: skip
    (row,) = found["responder"]
    assert 0 < row.pop("min") <= row.pop("median") <= row.pop("p99") <= row.pop("max")
    assert row == {
        "source": "127.0.0.1", "responder": identity, "name": socket.gethostname(), "sent": 2, "replies": 2, "lost": 0,
        "lost_there": None, "held_back": 0, "duplicates": 0, "reordered": 0, "hops": 0, "hops_back": 0,
    }  # fmt: skip
    (summary,) = found["summary"]
    assert summary.pop("seconds") > 0
    assert summary == {"pings": 2, "responders": 1, "replies": 2, "duplicates": 0, "others": 0, "dropped": 0}
    code, out, _ = responder.end()
    far = kinds(out)
    assert code == 0
    assert [ping["sequence"] for ping in far["ping"]] == [1, 2]
    assert far["ping"][0] | {"hops": 0, "ttl": 1, "interface": "lo", "replied": True} == far["ping"][0]
    assert far["summary"][0]["replies"] == 2


def test_ctrl_c_gives_the_summary_and_counts_nothing_as_lost_that_may_come(respond: Respond) -> None:
    respond()
    with Running("ping", GROUP, "--interval", "0.02", "-W", "20", "--json") as pinging:
        seen = [json.loads(pinging.line()) for _ in range(3)]
        pinging.interrupt(signal.SIGINT)
        code, out, _ = pinging.end()
    assert [event["sequence"] for event in seen] == [1, 2, 3]
    found = kinds(out)
    assert code == 0
    assert found["responder"][0]["lost"] == 0
    assert found["summary"][0]["replies"] == found["responder"][0]["replies"] >= 3


def test_ctrl_c_before_anybody_answered() -> None:
    with Running("ping", GROUP, "-W", "20") as pinging:
        pinging.until_said("pinging ")
        pinging.interrupt()
        code, out, _ = pinging.end()
    assert (code, out) == (130, "")


def test_the_deadline_has_room_for_the_last_answers(respond: Respond) -> None:
    respond()
    done = multicast("ping", GROUP, "-w", "0.5", "-W", "0.3", "--interval", "0.1", "--json")
    found = kinds(done.stdout)
    assert done.returncode == 0
    assert 1 <= found["summary"][0]["pings"] <= 3
    assert found["summary"][0]["replies"] == found["summary"][0]["pings"]


def test_a_ping_longer_than_a_reply_may_be_is_answered_and_ends_nobody(respond: Respond) -> None:
    responder = respond(GROUP, "-c", "2")
    for size in ("5000", "49"):
        assert multicast("ping", GROUP, "-c", "1", "-s", size, "-w", "10").returncode == 0
    assert responder.end()[0] == 0


def test_what_the_limits_hold_back_is_not_called_lost(respond: Respond) -> None:
    respond()
    done = multicast("ping", GROUP, "-c", "120", "--interval", "0.002", "-W", "0.3", "--json")
    assert "responders answer 50 pings a second of one host, and these are 500" in done.stderr
    (row,) = kinds(done.stdout)["responder"]
    assert row["held_back"] > 20
    assert row["replies"] + row["held_back"] == 120
    assert (row["lost"], row["lost_there"]) == (0, 0)


def test_held_back_in_words(respond: Respond) -> None:
    respond()
    done = multicast("ping", GROUP, "-c", "100", "--interval", "0.002", "-W", "0.3")
    assert re.search(r"has held back [0-9]+ answers: 50 a second to one host and 500 to all", done.stderr)
    assert "lost on the way" not in done.stderr


@contextmanager
def member() -> Iterator[socket.socket]:
    """A plain socket that hears 239.77.9.4:5094 on lo."""
    group = socket.inet_aton("239.77.9.4") + socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("239.77.9.4", 5094))
        ours.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        ours.settimeout(20)
        yield ours


def test_what_is_lost_there_is_told_from_what_is_lost_back() -> None:
    """The responder here is the test's own, and drops what it is told to."""
    bob = Hearing("bob")
    command = ["ping", "239.77.9.4:5094", "-c", "5", "--interval", "0.05", "-W", "0.3"]
    with member() as ours, Running(*command) as pinging:
        while True:
            packet, source = ours.recvfrom(2000)
            probe = parse(packet)
            assert probe is not None
            if probe.sequence == 2:
                continue  # lost on its way there
            assert bob.take(probe)
            reply = bob.reply(probe, len(packet), 1, 1)
            if probe.sequence == 3:
                continue  # lost on its way back
            ours.sendto(reply, source)
            if probe.sequence == 4:
                ours.sendto(reply, source)
            if probe.kind is Kind.ASK:
                break
        code, out, said = pinging.end()
    assert code == 0
    row = out.splitlines()[-1].split()
    assert (row[1], row[3], row[4], row[5]) == ("bob", "3/5", "40.0%", "1")
    assert "(duplicate)" in out
    assert "127.0.0.1 (bob): 1 ping lost on the way there, 1 answer on the way back" in said


def test_names_do_not_reach_the_terminal_raw() -> None:
    bob = Hearing("b\x1b[31mob\n")
    with member() as ours, Running("ping", "239.77.9.4:5094", "-c", "1", "-W", "0.5") as pinging:
        packet, source = ours.recvfrom(2000)
        probe = parse(packet)
        assert probe is not None
        bob.take(probe)
        ours.sendto(bob.reply(probe, len(packet), 1, 1), source)
        _, out, _ = pinging.end()
    assert "\x1b" not in out
    assert out.count(r"b\x1b[31mob\n") == 2


# -- several hosts -------------------------------------------------------------------------------------------------


def test_between_hosts_by_ipv6(respond: Respond, hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    respond("[ff02::93]:5093%vb", host=bob)
    done = multicast("ping", "[ff02::93]:5093%va", "-c", "1", "-W", "0.5", "--json", host=alice)
    (reply,) = kinds(done.stdout)["reply"]
    assert (reply["interface"], reply["hops"], reply["hops_back"]) == ("va", 0, 0)
    assert reply["source"].startswith("fe80::")


@pytest.mark.needs_namespaces
def test_a_network_that_goes_and_comes_back_is_said_once(
    respond: Respond, hosts: tuple[netns.Host, netns.Host]
) -> None:
    alice, bob = hosts
    respond(host=bob)
    with Running("ping", GROUP, "-i", "va", "--interval", "0.02", "--json", host=alice) as pinging:
        assert json.loads(pinging.line())["source"] == "10.99.0.2"
        alice.ip("link set va down")
        pinging.until_said("multicast: ")
        alice.ip("link set va up", "route replace 224.0.0.0/4 dev va")
        # Until something comes that was sent after the pause.
        seen = json.loads(pinging.line())["sequence"]
        while (number := json.loads(pinging.line())["sequence"]) < seen + 50:
            assert number > 0
        pinging.interrupt()
        code, _, said = pinging.end()
    assert code == 0
    assert said.count("multicast: ") == 1
    assert "see that it is up and has an address; or add a route: ip route add 224.0.0.0/4 dev INTERFACE" in said


@pytest.mark.needs_namespaces
def test_everybody_hears_everybody(respond: Respond, lab: netns.Lab) -> None:
    anna, bob, cleo = (lab.host(name) for name in ("anna", "bob", "cleo"))
    lab.segment(anna, bob, cleo)
    respond(host=bob)
    respond(host=cleo)
    done = multicast("ping", GROUP, "--matrix", "-c", "4", "--interval", "0.15", "-W", "0.4", "-i", "v0", host=anna)
    assert done.returncode == 0
    table = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()]
    name = socket.gethostname()
    assert table[0] == ["lost", "on", "the", "way", "to"]
    assert table[1][:3] == ["FROM", "here", name]
    cells = [[cell for cell in row if cell == "-" or cell.endswith("%")] for row in table[2:]]
    assert cells == [["-", "0.0%", "0.0%"], ["0.0%", "-", "0.0%"], ["0.0%", "0.0%", "-"]]


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("nft")
def test_who_is_deaf_to_whom_is_named(respond: Respond, lab: netns.Lab) -> None:
    anna, bob, cleo = (lab.host(name) for name in ("anna", "bob", "cleo"))
    lab.segment(anna, bob, cleo)
    rules = "table inet t { chain c { type filter hook input priority 0; ip saddr 10.99.0.3 drop; }; }"
    assert bob.run(["nft", "-f", "-"], input=rules).returncode == 0
    respond(host=bob)
    respond(host=cleo)
    options = ("-c", "4", "--interval", "0.15", "-W", "0.4", "-i", "v0")
    done = multicast("ping", GROUP, "--matrix", "--json", *options, host=anna)
    found = kinds(done.stdout)
    hosts = {row["responder"]: row["source"] for row in found["responder"]}
    lost = {(hosts.get(one["sender"]), hosts.get(one["listener"])): one["lost"] for one in found["heard"]}
    b, c = "10.99.0.2", "10.99.0.3"
    assert lost == {(None, b): 0, (None, c): 0, (b, None): 0, (c, None): 0, (b, c): 0, (c, b): 1}
    done = multicast("ping", GROUP, "--matrix", *options, host=anna)
    assert " hears nothing from " in done.stderr
    assert "--from 10.99.0.3" in done.stderr


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["ping", "10.0.0.5@239.77.9.3:5093"], "not to one of its sources"),
        (["ping", "--matrix", "--interval", "0.01"], "ten times a second at most"),
        (["ping", "10.1.2.3"], "10.1.2.3"),
        (["ping", "--interval", "0"], "--interval"),
        (["ping", "-s", "20"], "--size"),
        (["respond", "--ping", "--reply", "x"], "--ping"),
        (["respond", "--ping", "--match", "x"], "--ping"),
    ],
)
def test_usage(arguments: list[str], words: str) -> None:
    done = multicast(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_no_such_interface() -> None:
    done = multicast("ping", GROUP, "-i", "nope")
    assert done.returncode == 3
    assert "nope" in done.stderr
