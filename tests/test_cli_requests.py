"""The commands `request` and `respond`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import netns
import pytest
from helpers import settle

from multicast import Poller, cli
from multicast.cli.respond import _Job

GROUP = "239.77.0.3:5003"
MULTICAST = [sys.executable, "-m", "multicast"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(lab: netns.Lab) -> Run:
    """Runs the command to its end, on this host or another."""

    def run(*arguments: str, host: netns.Host | None = None) -> subprocess.CompletedProcess[str]:
        return (host or lab.here).run([*MULTICAST, *arguments])

    return run


@pytest.fixture
def respond(lab: netns.Lab) -> Start:
    """Starts a responder and returns when it is ready."""

    def respond(*arguments: str, host: netns.Host | None = None) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = (host or lab.here).popen([*MULTICAST, "respond", *arguments])
        assert process.stderr is not None
        assert process.stderr.readline().startswith("answering requests to ")
        return process

    return respond


def finish(process: subprocess.Popen[str], number: int | None = None) -> tuple[int, list[str], str]:
    """Wait for the end, after a signal if one is given; return exit code, lines, last message."""
    if number is not None:
        process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    return process.returncode, output.splitlines(), errors.strip()


# -- request -------------------------------------------------------------------------------------------------


def test_each_reply_is_a_line_and_then_they_are_counted(run: Run, respond: Start) -> None:
    respond(GROUP)
    respond(GROUP, "--reply", "21.4 C")
    done = run("request", GROUP, "how", "warm?", "--want", "2")
    lines = sorted(re.sub(r"[0-9.]+ ms", "N ms", line).split("  ")[-1] for line in done.stdout.splitlines())
    assert lines == ['"21.4 C"', '"ack"']
    assert all(re.match(r"127\.0\.0\.1 +[0-9]+\.[0-9]{2} ms  ", line) for line in done.stdout.splitlines())
    assert re.fullmatch(r"2 answers in [0-9.]+ s\n", done.stderr)
    assert done.returncode == 0


def test_what_is_asked_are_the_words_of_the_command_line(run: Run, respond: Start) -> None:
    responder = respond(GROUP, "-c", "1")
    run("request", GROUP, "how", "warm?", "--first")
    code, (line,), summary = finish(responder)
    assert re.fullmatch(r'[0-9:.]{15} lo +127\.0\.0\.1:[0-9]+  "how warm\?" -> "ack"', line)
    assert re.fullmatch(r"1 request, 1 reply in [0-9.]+ s", summary)
    assert code == 0


def test_nobody_answers(run: Run) -> None:
    done = run("request", GROUP, "anybody?", "-w", "0.01")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nobody answered in 0.0")


def test_fewer_answer_than_wanted(run: Run, respond: Start) -> None:
    respond(GROUP)
    done = run("request", GROUP, "anybody?", "-w", "1", "--want", "2")
    assert done.returncode == 1
    assert re.fullmatch(r"1 answer in 1\.[0-9] s; 2 were wanted\n", done.stderr)


def test_replies_as_json(run: Run, respond: Start) -> None:
    respond(GROUP, "--reply", "tëxt")
    done = run("request", GROUP, "what?", "--first", "--json", "--quiet")
    assert done.stderr == ""
    reply, summary = map(json.loads, done.stdout.splitlines())
    assert reply.pop("round_trip") > 0
    assert reply.pop("source_port") >= 1024
    assert reply == {"v": 1, "event": "reply", "source": "127.0.0.1", "interface": "lo", "length": 5, "text": "tëxt"}
    assert summary.pop("seconds") > 0
    assert summary == {"v": 1, "event": "summary", "replies": 1, "duplicates": 0, "dropped": 0}


def test_what_peers_send_does_not_reach_the_terminal_raw(run: Run, respond: Start) -> None:
    responder = respond(GROUP, "--reply", "\x1b[31mred\x07 \u202egnol", "-c", "1")
    done = run("request", GROUP, "\x1b]0;title\x07", "--first")
    assert done.stdout.rstrip().endswith(r'"\x1b[31mred\x07 \u202egnol"')
    _, (line,), _ = finish(responder)
    assert r'"\x1b]0;title\x07" -> "\x1b[31mred\x07 \u202egnol"' in line


def test_a_peer_on_the_link_is_shown_with_its_interface(
    run: Run, respond: Start, hosts: tuple[netns.Host, netns.Host]
) -> None:
    alice, bob = hosts
    responder = respond("[ff02::42]:5003%vb", "-c", "1", host=bob)
    done = run("request", "[ff02::42]:5003%va", "hello", "--first", host=alice)
    assert re.match(r"fe80::[0-9a-f:]+%va +[0-9.]+ ms  \"ack\"", done.stdout)
    _, (line,), _ = finish(responder)
    assert re.search(r" vb  \[fe80::[0-9a-f:]+%vb\]:[0-9]+  \"hello\" -> \"ack\"", line)


def test_three_hosts_answer(run: Run, respond: Start, lab: netns.Lab) -> None:
    asking, *others = (lab.host(name) for name in ("asking", "first", "second", "third"))
    lab.segment(asking, *others)
    for host in others:
        respond(GROUP, "--reply", host.name, host=host)
    done = run("request", GROUP, "who?", "--want", "3", host=asking)
    assert sorted(re.findall(r'^(\S+) .* "(.*)"$', done.stdout, re.MULTILINE)) == [
        ("10.99.0.2", "first"),
        ("10.99.0.3", "second"),
        ("10.99.0.4", "third"),
    ]


def test_interrupted_before_an_answer(lab: netns.Lab, tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w") as errors:
        # It listens when it has sent; a receiver of ours knows of that.
        witness = lab.here.popen([*MULTICAST, "listen", GROUP, "-c", "1"])
        assert witness.stderr is not None
        witness.stderr.readline()
        process = lab.here.popen([*MULTICAST, "request", GROUP, "anybody?", "-w", "1000"], stderr=errors)
        witness.communicate(timeout=20)
        code, lines, _ = finish_without_errors(process, signal.SIGINT)
    assert (code, lines) == (130, [])
    assert (tmp_path / "errors").read_text().startswith("nobody answered in ")


def finish_without_errors(process: subprocess.Popen[str], number: int) -> tuple[int, list[str], None]:
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    return process.returncode, output.splitlines(), None


# -- respond -------------------------------------------------------------------------------------------------


def test_only_matching_requests_are_answered(run: Run, respond: Start) -> None:
    responder = respond(GROUP, "--match", "stat(us|e)", "-c", "1")
    assert run("request", GROUP, "other", "-w", "0.01").returncode == 1
    assert run("request", GROUP, "status?", "--first").returncode == 0
    _, (line,), summary = finish(responder)
    assert '"status?"' in line
    assert summary.startswith("1 request, 1 reply")


def test_a_program_works_out_the_reply_without_a_shell(run: Run, respond: Start) -> None:
    respond(GROUP, "--exec", "sed s/^/$HOME;ls:/")
    done = run("request", GROUP, "two words", "--first")
    assert done.stdout.rstrip().endswith('"$HOME;ls:two words"')


def test_a_program_that_fails_gives_no_reply(run: Run, respond: Start) -> None:
    responder = respond(GROUP, "--exec", "sh -c 'cat; exit 3'")
    assert run("request", GROUP, "hello", "-w", "0.5").returncode == 1
    code, (line,), summary = finish(responder, signal.SIGINT)
    assert line.endswith('"hello" -> no reply (exit code 3)')
    assert summary.startswith("1 request, 0 replies")
    assert code == 130


def test_requests_as_json(run: Run, respond: Start) -> None:
    responder = respond(GROUP, "--json", "-c", "1")
    run("request", GROUP, "hello", "--first")
    code, lines, _ = finish(responder)
    request, summary = map(json.loads, lines)
    assert (request.pop("time_ns") > 0, request.pop("source_port") >= 1024) == (True, True)
    assert request == {
        "v": 1,
        "event": "request",
        "interface": "lo",
        "source": "127.0.0.1",
        "group": "239.77.0.3",
        "port": 5003,
        "ttl": 1,
        "length": 5,
        "text": "hello",
        "replied": True,
        "reply": {"text": "ack"},
        "note": None,
    }
    assert (summary["event"], summary["requests"], summary["replies"]) == ("summary", 1, 1)
    assert code == 0


def test_the_programs_of_a_responder_end_with_it(run: Run, respond: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    responder = respond(GROUP, "--exec", f"sh -c 'sleep 1000 & echo $$ $! > {pids}; wait'", "--jobs", "1")
    assert run("request", GROUP, "first", "-w", "0").returncode == 1
    numbers = [int(word) for word in pids.read_text().split()]
    assert run("request", GROUP, "second", "-w", "0.5").returncode == 1
    _, (line,), _ = finish(responder, signal.SIGTERM)
    assert line.endswith('"second" -> no reply (1 program running already)')
    for number in numbers:
        assert ended(number)


def ended(pid: int) -> bool:
    try:
        # Whoever has no parent left here is a zombie until the machine's first process looks after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_responder_ends_after_its_time(run: Run, respond: Start) -> None:
    code, lines, summary = finish(respond(GROUP, "-w", "0.01"))
    assert (code, lines) == (1, [])
    assert summary.startswith("0 requests, 0 replies")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["request", GROUP], "nothing to ask 239.77.0.3:5003"),
        (["request", "10.0.0.1:5003", "hello"], "not a multicast address"),
        (["request", "10.0.0.5@" + GROUP, "hello"], "without SOURCE@"),
        (["request", GROUP, "hello", "--first", "--want", "2"], "--first is --want 1"),
        (["request", GROUP, "hello", "--want", "0"], "--want"),
        (["respond", GROUP, "--reply", "yes", "--exec", "date"], "--reply and --exec"),
        (["respond", GROUP, "--exec", "nosuchprogram -x"], 'no program "nosuchprogram"'),
        (["respond", GROUP, "--exec", "date '"], "no closing quotation"),
        (["respond", GROUP, "--exec", " "], "names no program"),
        (["respond", GROUP, "--match", "("], "--match: the filter '(' is not a regular expression"),
        (["respond", GROUP, "--reply", "x" * 1233], "1 233 bytes; a reply has 1232 at most"),
        (["respond", GROUP, "-t", "0"], "--ttl"),
    ],
)
def test_mistakes_are_told_in_words(arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert words in errors


def test_an_unknown_interface_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["request", GROUP, "hello", "-i", "nosuch0"]) == 3
    assert 'no interface "nosuch0"' in capsys.readouterr().err.replace("'", '"')


# -- programs that work out replies --------------------------------------------------------------------------


def outcome(poller: Poller, words: Sequence[str], request: bytes = b"", limit: float = 20) -> tuple[bytes | None, str]:
    """Run a program to its end and return its reply, and what there is to say about it."""
    found: list[tuple[bytes | None, str]] = []
    job = _Job(poller, words, request, 10, limit, lambda _, reply, why: found.append((reply, why)))
    settle(poller, lambda: found)
    job.close()
    return found[0]


def test_the_request_is_its_input_and_its_output_the_reply(poller: Poller) -> None:
    assert outcome(poller, ["cat"], b"line\n") == (b"line", "")
    assert outcome(poller, ["cat"], b"\x00\xff\n\n") == (b"\x00\xff\n", "")
    assert outcome(poller, ["true"], b"unread") == (b"", "")
    assert outcome(poller, ["wc", "-c"], bytes(65507)) == (b"65507", "")


def test_long_output_is_cut_but_not_within_a_character(poller: Poller) -> None:
    assert outcome(poller, ["head", "-c", "1000000", "/dev/zero"]) == (bytes(10), "cut to 10 bytes")
    assert outcome(poller, ["cat"], "123456789ë".encode()) == (b"123456789", "cut to 10 bytes")
    assert outcome(poller, ["cat"], "1234567ë89".encode()) == ("1234567ë8".encode(), "cut to 10 bytes")
    assert outcome(poller, ["cat"], b"\xff123456789abc") == (b"\xff123456789", "cut to 10 bytes")
    assert outcome(poller, ["cat"], b"0123456789") == (b"0123456789", "")


def test_failures_give_no_reply(poller: Poller) -> None:
    assert outcome(poller, ["sh", "-c", "echo no; exit 7"]) == (None, "exit code 7")
    assert outcome(poller, ["sh", "-c", "kill -9 $$"]) == (None, "ended by SIGKILL")


def test_a_program_that_closes_its_output_is_waited_for(poller: Poller) -> None:
    assert outcome(poller, ["sh", "-c", "echo early; exec >&-; sleep 0.01; exit 5"]) == (None, "exit code 5")


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000",
        "sleep 1000 & wait",
        "exec >&-; sleep 1000",
        "trap '' TERM INT HUP; while :; do echo flood; done",
    ],
)
def test_a_program_that_takes_too_long_is_ended(script: str, poller: Poller) -> None:
    assert outcome(poller, ["sh", "-c", script], limit=0.05) == (None, "it took longer than 0.05 s")


def test_somebody_else_with_the_pipe_does_not_keep_us_waiting(poller: Poller, tmp_path: Path) -> None:
    # What leaves the session is beyond our reach; here it ends by itself.
    end = tmp_path / "end"
    os.mkfifo(end)
    script = f"setsid sh -c 'read line < {end}' & exit 0"
    try:
        assert outcome(poller, ["sh", "-c", script], limit=0.2) == (None, "it took longer than 0.2 s")
    finally:
        end.write_text("now\n")


def test_waiting_for_a_program_leaves_the_poller_free(poller: Poller) -> None:
    ticks: list[int] = []
    found: list[object] = []
    job = _Job(poller, ["cat", "/dev/zero"], b"", 10, 20, lambda *result: found.append(result))
    poller.call_later(0, ticks.append, 1)
    settle(poller, lambda: ticks)
    assert found == []
    job.close()
    assert len(poller) == 0
