"""The two programs of the documentation that send a message and acknowledge it, as processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import netns
import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / program), *arguments]


def acknowledger(host: netns.Host, *arguments: str) -> subprocess.Popen[str]:
    process = host.popen(command("acknowledge.py", *arguments))
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting for messages\n"
    return process


def heard(line: str) -> tuple[str, str]:
    match = re.fullmatch(r"received (.*) from (.*) after [0-9]+\.[0-9]{2} ms", line)
    assert match is not None, line
    return match[1], match[2]


def test_three_programs_on_one_host_acknowledge_one_message(lab: netns.Lab) -> None:
    programs = [acknowledger(lab.here) for _ in range(3)]
    done = lab.here.run(command("gather_acknowledgements.py", "Hallo Multicast!", "224.0.1.2", "10000", "1.5"))
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert [heard(line) for line in lines] == [("'ack'", "127.0.0.1")] * 3
    assert last == "the time is over, 3 acknowledged"
    for program in programs:
        program.send_signal(signal.SIGINT)
        output, errors = program.communicate(timeout=20)
        assert (program.returncode, errors) == (0, "")
        assert output == "received 16 bytes from 127.0.0.1 'Hallo Multicast!'\n"


@pytest.mark.parametrize("group", ["239.77.0.2", "ff05::77"])
def test_three_hosts_acknowledge_one_message(group: str, lab: netns.Lab) -> None:
    asking, *others = (lab.host(name) for name in ("asking", "first", "second", "third"))
    lab.segment(asking, *others)
    for host in others:
        acknowledger(host, group, "5077")
    done = asking.run(command("gather_acknowledgements.py", "Hello", group, "5077", "1.5"))
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert sorted(heard(line)[1] for line in lines) == [
        f"10.99.0.{number}" if group == "239.77.0.2" else f"fd99::{number}" for number in (2, 3, 4)
    ]
    assert last == "the time is over, 3 acknowledged"


def test_nobody_acknowledges(lab: netns.Lab) -> None:
    done = lab.here.run(command("gather_acknowledgements.py", "Hello", "239.77.0.2", "5077", "0.01"))
    assert (done.stdout, done.stderr) == ("the time is over, 0 acknowledged\n", "")
