"""Running the `multicast` command and other programs, and waiting until they are ready."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import helpers
import netns

#: The command, run by the interpreter that runs the tests.
MULTICAST = [sys.executable, "-m", "multicast"]


def multicast(*args: str, host: netns.Host | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, here or on another host."""
    options = {"capture_output": True, "text": True, "timeout": helpers.PATIENCE, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    if host is None:
        return subprocess.run([*MULTICAST, *args], **options)
    with host.inside():
        return subprocess.run([*MULTICAST, *args], **options)


class Running:
    """The command while it runs; a context manager, which ends it."""

    def __init__(
        self, *args: str, host: netns.Host | None = None, program: Sequence[str] = MULTICAST, **options: Any
    ) -> None:
        # Unbuffered, so that reading a line takes no more than that line.
        options = {
            "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0, **options
        }
        if host is None:
            self.process = subprocess.Popen([*program, *args], **options)
        else:
            with host.inside():
                self.process = subprocess.Popen([*program, *args], **options)
        self.said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(helpers.PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def line(self) -> str:
        """Wait for a line of data."""
        assert self.process.stdout is not None
        return str(self.process.stdout.readline().decode().rstrip("\n"))

    def until_said(self, begin: str, times: int = 1) -> Self:
        """Wait until lines that begin so have come on stderr."""
        assert self.process.stderr is not None
        while times:
            line = self.process.stderr.readline().decode()
            assert line, f"it ended, and said {self.said}"
            self.said.append(line.rstrip("\n"))
            times -= line.startswith(begin)
        return self

    def joined(self, groups: int = 1) -> Self:
        """Wait until it listens."""
        return self.until_said("joined ", groups)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return exit code, the rest of its data, and all it said."""
        out, err = self.process.communicate(timeout=helpers.PATIENCE)
        return self.process.returncode, (out or b"").decode(), "\n".join([*self.said, (err or b"").decode()])


def events(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of the lines; each line must be one."""
    return [json.loads(line) for line in text.splitlines()]


def wait_for(done: Callable[[], object], what: str) -> None:
    """Wait for something that the kernel or another program does."""
    deadline = time.monotonic() + helpers.PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.002)


def environment(**changes: str | None) -> dict[str, str]:
    """Return this process's environment with changes; None leaves a variable out."""
    changed = {**os.environ, **{name: value for name, value in changes.items() if value is not None}}
    return {name: value for name, value in changed.items() if changes.get(name, "") is not None}
