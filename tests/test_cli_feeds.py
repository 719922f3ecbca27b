"""The commands `publish` and `subscribe`, and feeds as other programs see them."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import netns
import programs
import pytest
from programs import Running, events, wait_for

from multicast import sendto
from multicast.feeds.moldudp64 import END, HEADER, pack

PLACE, PLACE_B = "239.77.14.1:5014", "239.77.14.2:5014"


def subscriber(*arguments: str, host: netns.Host | None = None) -> Running:
    return Running("subscribe", *arguments, host=host).until_said("subscribed")


def test_messages_of_a_pipe_are_published_as_they_come_and_printed_in_order() -> None:
    with (
        subscriber(PLACE, "-i", "lo") as subscribed,
        Running("publish", PLACE, "-", "-t", "0", "--session", "S1", stdin=subprocess.PIPE) as publishing,
    ):
        publishing.until_said("publishing session S1")
        stdin = publishing.process.stdin
        assert stdin is not None
        stdin.write(b"one\ntwo\n")
        assert subscribed.line().endswith('"one"')
        assert subscribed.line().endswith('"two"')
        stdin.write(b"three\n")
        line = subscribed.line()
        assert line.split()[0] == "3"
        assert line.endswith('"three"')
        stdin.close()
        publishing.process.stdin = None
        code, out, err = subscribed.end()
        assert (code, out) == (0, "")
        assert "3 messages in" in err
        assert "0 lost" in err
        code, _, err = publishing.end()
        assert code == 0
        assert "published 3 messages in" in err


def test_json_of_both(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"one\nt\xff\n")
    with subscriber(PLACE, PLACE_B, "-i", "lo", "--json") as subscribed:
        done = programs.multicast("publish", PLACE, "--file", str(file), "-t", "0", "--session", "S", "--json")
        code, out, _ = subscribed.end()
    assert code == 0
    first, second, end, summary = events(out)
    assert first.pop("source").startswith("127.")
    assert first == {"v": 1, "event": "message", "number": 1, "text": "one", "line": PLACE}
    assert (second["number"], second["base64"]) == (2, "dP8=")
    assert (end["event"], end["number"]) == ("end", 2)
    assert (summary["messages"], summary["lost"], summary["ended"]) == (2, 0, True)
    assert [line["group"] for line in summary["lines"]] == [PLACE, PLACE_B]
    assert [line["firsts"] for line in summary["lines"]] == [2, 0]
    (published,) = events(done.stdout)
    assert (published["messages"], published["session"], published["repairs"]) == (2, "S", 0)


def test_a_late_joiner_gets_all_and_raw_is_raw() -> None:
    with Running("publish", PLACE, "-", "-t", "0", "--heartbeat", "0.05", stdin=subprocess.PIPE) as publishing:
        publishing.until_said("publishing")
        stdin = publishing.process.stdin
        assert stdin is not None
        stdin.write(b"".join(b"message %d\n" % number for number in range(1000)))
        with Running("subscribe", PLACE, "-i", "lo", "--from", "first", "--raw", "-c", "1000") as subscribed:
            code, out, err = subscribed.end()
        assert code == 0
        assert out == "".join(f"message {number}" for number in range(1000))
        assert "repaired by" in err
        with Running("subscribe", PLACE, "-i", "lo", "--from", "990", "--json", "-c", "11") as subscribed:
            _, out, _ = subscribed.end()
        assert [event.get("number") for event in events(out)[:-1]] == [*range(990, 1001)]


def test_what_is_lost_is_told_and_the_exit_code_says_so() -> None:
    with subscriber(PLACE, "-i", "lo", "--no-repair", "--json", "--patience", "0.01") as subscribed:
        session = b"LOSSY     "
        sendto(
            [pack(session, 1, [b"1"]), pack(session, 4, [b"4"]), HEADER.pack(session, 5, END)], "239.77.14.1", 5014, 0
        )
        code, out, _ = subscribed.end()
    assert code == 1
    assert [(event["event"], event.get("first"), event.get("count"), event.get("cause")) for event in events(out)] == [
        ("message", None, None, None),
        ("gap", 2, 2, "missing"),
        ("message", None, None, None),
        ("end", None, None, None),
        ("summary", None, None, None),
    ]


def test_nothing_came() -> None:
    done = programs.multicast("subscribe", PLACE, "-i", "lo", "-w", "0.1")
    assert done.returncode == 1
    assert re.search(r"no message of a feed in 0\.1[0-9]* s\. Next: multicast doctor", done.stderr)
    with subscriber(PLACE, "-i", "lo", "-w", "1") as subscribed:
        sendto("something else", "239.77.14.1", 5014, 0)
        code, _, err = subscribed.end()
    assert code == 1
    assert "1 packet of something else" in err


def test_listen_counts_what_is_lost_by_the_numbers() -> None:
    with Running("listen", PLACE, "-i", "lo", "-c", "3", "--json").joined() as listening:
        packets = [pack(b"NUMBERS   ", number, [b"x"]) for number in (1, 2, 6)]
        sendto(packets, "239.77.14.1", 5014, 0)
        _, out, err = listening.end()
    assert events(out)[-1]["lost"] == 3
    assert "3 lost by their numbers, kernel dropped 0" in err


def test_doctor_names_the_line_that_loses() -> None:
    session = b"LINES     "
    with Running("doctor", PLACE, "--line", PLACE_B, "-i", "lo", "-w", "1", "--json") as doctor:
        doctor.until_said("looking for")
        for number in range(1, 60):
            packet = pack(session, number, [b"x"])
            sendto(packet, "239.77.14.1", 5014, 0)
            if number % 10:
                sendto(packet, "239.77.14.2", 5014, 0)
            time.sleep(0.005)
        code, out, _ = doctor.end()
    assert code == 1
    *checks, summary = events(out)
    assert summary["fault"]["code"] == "line-lacks"
    assert PLACE_B in summary["fault"]["cause"]
    assert [check["status"] for check in checks if check["check"] == "lines"] == ["fail"]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["subscribe"], "Missing argument"),
        (["subscribe", PLACE, "--from", "0"], "no number of a message"),
        (["subscribe", PLACE, "--repair", "10.0.0.1:5", "--no-repair"], "--no-repair"),
        (["subscribe", PLACE, "--raw", "--json"], "choose one"),
        (["publish", PLACE, "x", "--file", "y"], "either a TEXT or --file"),
        (["publish", PLACE, "x", "--session", "much too long"], "1 to 10 printable"),
        (["publish", PLACE, "x", "--answer", "everybody"], "answer"),
        (["publish", PLACE, "x", "--rate", "1m", "--interval", "1"], "give one of them"),
    ],
    ids=lambda value: value[0] + value[-1] if isinstance(value, list) else "",
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = programs.multicast(*arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_a_line_that_is_too_long_for_a_message() -> None:
    done = programs.multicast("publish", PLACE, "-", input="x" * 70000)
    assert done.returncode == 4
    assert "standard input, line 1 does not fit in one UDP packet; a message is one line, so split it" in done.stderr


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.needs_namespaces
def test_tshark_decodes_everything(hosts: tuple[netns.Host, netns.Host], tmp_path: Path) -> None:
    """Data, heartbeats, requests, repairs and the end, as Wireshark's dissector reads them."""
    alice, bob = hosts
    file = tmp_path / "feed.pcapng"
    dump = bob.popen(["tshark", "-q", "-i", "vb", "-w", str(file), "-f", "udp"])
    assert dump.stderr is not None
    try:
        for line in dump.stderr:
            if "apturing on" in line:
                break
        with Running(
            "publish",
            PLACE,
            "-",
            "-i",
            "va",
            "--source-port",
            "5015",
            "--heartbeat",
            "0.1",
            host=alice,
            stdin=subprocess.PIPE,
        ) as publishing:
            publishing.until_said("publishing")
            stdin = publishing.process.stdin
            assert stdin is not None
            stdin.write(b"one\ntwo\nthree\n")
            with subscriber(PLACE, "-i", "vb", "--from", "first", "--json", host=bob) as subscribed:
                while '"number":3' not in subscribed.line():
                    pass
                stdin.close()
                publishing.process.stdin = None
                assert subscribed.end()[0] == 0
            publishing.end()
        wait_for(lambda: file.exists() and file.stat().st_size > 2000, "the capture is written")
    finally:
        dump.terminate()
        dump.wait(20)
        dump.stderr.close()
        if dump.stdout is not None:
            dump.stdout.close()
    fields = ["moldudp64.session", "moldudp64.sequence", "moldudp64.count", "_ws.malformed", "udp.dstport"]
    command = [
        "tshark",
        "-r",
        str(file),
        "-d",
        "udp.port==5014,moldudp64",
        "-d",
        "udp.port==5015,moldudp64",
        "-T",
        "fields",
    ]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    feed = [row for row in rows if "5014" in row[4] or row[0]]
    assert not any(row[3] for row in feed), "malformed"
    counts = [row[2].split(",")[0] for row in feed]
    assert "0" in counts, "heartbeats"
    assert "65535" in counts, "the end"
    assert any(row[4] == "5015" and row[2].split(",")[0] == "3" for row in feed), "the request"
    assert any(row[4] not in ("5014", "5015") and row[2].split(",")[0] == "3" for row in feed), "the repair"


def test_publish_and_subscribe_with_a_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    key = str(tmp_path / "feed.key")
    assert programs.multicast("key", key).returncode == 0
    with (
        Running(
            "publish", PLACE, "-", "-t", "0", "--heartbeat", "0.05", "--key", key, stdin=subprocess.PIPE
        ) as publishing,
        subscriber(PLACE, "-i", "lo", "-w", "1", "--json") as stranger,
    ):
        publishing.until_said("publishing")
        stdin = publishing.process.stdin
        assert stdin is not None
        stdin.write(b"one\ntwo\n")
        with Running("subscribe", PLACE, "-i", "lo", "--from", "first", "-c", "2", "--json", "--key", key) as member:
            code, out, _ = member.end()
        assert code == 0
        *messages, summary = events(out)
        assert [message["text"] for message in messages] == ["one", "two"]
        assert summary["repaired"] == 2
        assert set(summary["rejected"].values()) == {0}
        assert [event["event"] for event in events(stranger.end()[1])] == ["summary"]
