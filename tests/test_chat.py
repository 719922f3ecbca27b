from __future__ import annotations

import itertools
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import netns
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicast.cli._keyboard import Editor
from multicast.cli.chat import Event, Room
from multicast.sockets import DEFAULT_PORT

# -- the room, without a network -------------------------------------------------------------------------------------


def test_who_joins_hears_who_is_here_and_what_is_said() -> None:
    anna, ben = Room("Anna"), Room("Ben")
    assert ben.take(anna.packet("hello"), 0) == Event("joined", "Anna")
    assert ben.asked
    assert anna.take(ben.packet("here"), 0) == Event("here", "Ben")
    assert not anna.asked  # an answer asks for no answer
    assert anna.take(ben.packet("here"), 5) is None
    assert anna.take(ben.packet("says", "grüß dich"), 6) == Event("says", "Ben", "grüß dich")
    assert anna.names() == ["Ben"]
    assert anna.take(ben.packet("bye"), 7) == Event("left", "Ben")
    assert anna.names() == []


def test_own_packets_and_repeated_ones_are_not_heard() -> None:
    anna, ben = Room("Anna"), Room("Ben")
    said = [ben.packet("hello"), ben.packet("says", "1"), ben.packet("says", "2")]
    assert [anna.take(packet, 0) for packet in (said[0], said[0], said[1], said[2], said[1], said[2])] == [
        Event("joined", "Ben"),
        None,
        Event("says", "Ben", "1"),
        Event("says", "Ben", "2"),
        None,
        None,
    ]
    assert anna.take(anna.packet("says", "me"), 0) is None
    bye = ben.packet("bye")
    assert anna.take(bye, 0) == Event("left", "Ben")
    assert anna.take(bye, 0) is None


def test_who_is_silent_for_long_is_lost() -> None:
    anna, ben, cleo = Room("Anna"), Room("Ben"), Room("Cleo")
    anna.take(ben.packet("hello"), 0)
    anna.take(cleo.packet("hello"), 0)
    anna.take(cleo.packet("here"), 5)
    assert anna.lost(16) == []
    assert anna.lost(16.1) == [Event("lost", "Ben")]
    assert anna.names() == ["Cleo"]
    assert anna.take(ben.packet("here"), 17) == Event("here", "Ben")


def test_two_with_one_name_are_told_apart() -> None:
    anna, other = Room("Anna"), Room("Anna")
    assert anna.take(other.packet("hello"), 0) == Event("joined", f"Anna #{other.me[:4]}")
    ben, third = Room("Ben"), Room("Anna")
    ben.take(other.packet("here"), 0)
    assert ben.names() == ["Anna"]
    ben.take(third.packet("here"), 0)
    assert ben.names() == sorted(f"Anna #{room.me[:4]}" for room in (other, third))


def test_the_room_keeps_a_bounded_number_of_people() -> None:
    anna = Room("Anna")
    for number in range(2 * Room.MOST):
        anna.take(Room(f"guest {number}").packet("says", "hi"), 0)
    assert len(anna.names()) == Room.MOST
    anna.lost(100)
    assert anna.take(Room("Ben").packet("hello"), 100) == Event("joined", "Ben")


def test_names_and_texts_are_cut() -> None:
    anna, ben = Room("Anna"), Room("n" * 1000)
    event = anna.take(ben.packet("says", "t" * 3000), 0)
    assert event is not None
    assert (len(event.name), len(event.text)) == (30, 1000)
    assert len(Room("ü" * 30).packet("says", "\N{GRINNING FACE}" * 5000)) < 8192


GOOD = {"chat": 1, "id": "0123456789abcdef", "n": 1, "name": "Ben", "is": "says", "text": "hi"}


def test_a_packet_in_the_documented_form_is_understood() -> None:
    assert Room("Anna").take(json.dumps(GOOD).encode(), 0) == Event("says", "Ben", "hi")


@pytest.mark.parametrize(
    "change",
    [
        {"chat": 2},
        {"id": "0123"},
        {"id": 5},
        {"id": "0123456789abcdeG"},
        {"n": 0},
        {"n": -1},
        {"n": 2**53},
        {"n": True},
        {"n": 1.5},
        {"n": "1"},
        {"name": None},
        {"text": ["hi"]},
        {"is": "shouts"},
        {"is": ["says"]},
        *({key: ...} for key in GOOD if key != "text"),
    ],
)
def test_a_packet_of_another_form_is_not(change: dict[str, Any]) -> None:
    fields = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    room = Room("Anna")
    assert room.take(json.dumps(fields).encode(), 0) is None
    assert room.names() == []


@pytest.mark.parametrize("packet", [b"", b"\xff", b"hello", b"[1]", b"[" * 8000, b"1" * 8000, b'{"chat": 1}', b"NaN"])
def test_other_peoples_packets_are_no_trouble(packet: bytes) -> None:
    assert Room("Anna").take(packet, 0) is None


@given(st.binary())
def test_no_bytes_at_all_are_trouble(packet: bytes) -> None:
    Room("Anna").take(packet, 0)


@given(st.text(), st.text())
def test_whatever_is_said_arrives_in_one_piece(name: str, text: str) -> None:
    event = Room("me").take(Room(name).packet("says", text), 0)
    assert event is not None
    assert event.text == (text if len(text) <= 1000 else text[:999] + "…")


# -- typing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed, lines, rest",
    [
        (b"hello\n", ["hello"], ""),
        (b"one\rtwo\nthree", ["one", "two"], "three"),
        ("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n".encode(), ["gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"], ""),
        (b"helo\x7flo\n", ["hello"], ""),
        (b"\x7f\x7fa\b\b\n", [""], ""),
        (b"nonsense\x15sense\n", ["sense"], ""),
        (b"one two three\x17\x17four\n", ["one four"], ""),
        (b"a\x1b[A\x1b[1;5D\x1bOPb\x1bxc\n", ["abc"], ""),
        (b"\x01\x02\x1f\tx\n", ["x"], ""),
        (b"\xff\xfe\n", ["\N{REPLACEMENT CHARACTER}" * 2], ""),
    ],
)
def test_the_line_editor(typed: bytes, lines: list[str], rest: str) -> None:
    for pieces in ([typed], [bytes([byte]) for byte in typed]):
        editor = Editor()
        assert list(itertools.chain.from_iterable(map(editor.feed, pieces))) == lines
        assert editor.text == rest
        assert not editor.ended


def test_ctrl_d_ends_an_empty_line_only() -> None:
    editor = Editor()
    assert editor.feed(b"text\x04") == []
    assert not editor.ended
    assert editor.feed(b"\nmore\n\x04ignored\n") == ["text", "more"]
    assert editor.ended


def test_the_end_of_a_long_line_is_shown() -> None:
    editor = Editor()
    editor.feed(b"abcdefgh")
    assert editor.shown(5) == "defgh"
    assert editor.shown(8) == "abcdefgh"
    editor = Editor()
    editor.feed("\u6f22\u5b57\u6f22\u5b57".encode())  # two columns each
    assert editor.shown(5) == "\u6f22\u5b57"


@given(st.binary(), st.lists(st.integers(0, 100)))
def test_keys_mean_the_same_however_they_arrive(typed: bytes, cuts: list[int]) -> None:
    whole, cut = Editor(), Editor()
    lines = whole.feed(typed)
    places = sorted({0, len(typed), *(place for place in cuts if place < len(typed))})
    pieces = [typed[start:stop] for start, stop in itertools.pairwise(places)]
    got = []
    for piece in pieces:
        if not cut.ended:
            got += cut.feed(piece)
    assert (got, cut.ended) == (lines, whole.ended)
    assert whole.ended or cut.text == whole.text
    assert cut.text.isprintable()


# -- the command -----------------------------------------------------------------------------------------------------

Process = subprocess.Popen[str]
Start = Callable[..., "Chatter"]


class Chatter:
    """A `multicast chat` and what it prints."""

    def __init__(self, process: Any) -> None:
        self.process = process
        #: All it has printed, and what of this no test has asked for.
        self.seen: list[dict[str, Any]] = []
        self.new: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def sees(self, kind: str, **fields: str) -> dict[str, Any]:
        """Return the next event of this kind with these fields; the others are left for later."""
        wanted = {"event": kind, **fields}
        for known in self.new:
            if wanted.items() <= known.items():
                self.new.remove(known)
                return known
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            self.seen.append(event)
            if wanted.items() <= event.items():
                return event
            self.new.append(event)
        raise AssertionError(f"no {kind} {fields} in {self.seen}, and on stderr:\n{self.process.stderr.read()}")

    def told(self) -> str:
        """Return the next line on stderr."""
        return str(self.process.stderr.readline()).rstrip("\n")

    def leave(self) -> list[dict[str, Any]]:
        """End its input; return what it still printed."""
        out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "multicast", "chat", *map(str, args)]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*args: object) -> Chatter:
            process = subprocess.Popen(
                command("--json", *args),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Chatter(process)

        yield start


def test_two_terminals_and_no_server(start: Start) -> None:
    anna = start("--name", "Anna")
    assert anna.told() == "you are Anna in 224.0.42.42:4242 on lo; /who, /quit or Ctrl-D"
    ben = start("239.1.2.3:5000", "--name", "Ben")  # another room
    assert ben.told().startswith("you are Ben in 239.1.2.3:5000")
    ben.leave()
    ben = start("--name", "Ben")
    anna.sees("joined", name="Ben")
    ben.sees("here", name="Anna")
    anna.say("schöne Grüße")
    assert ben.sees("says")["text"] == "schöne Grüße"
    ben.say("  ")
    ben.say("\x1b[31mred\x07")
    assert anna.sees("says", name="Ben")["text"] == "\x1b[31mred\x07"  # JSON escapes it by itself
    anna.say("/who")
    assert anna.told() == "here: Ben"
    anna.say("/nonsense")
    assert anna.told() == "commands are /who and /quit"
    anna.say("/quit")
    ben.sees("left", name="Anna")
    assert anna.process.wait(10) == 0
    assert ben.leave() == []


def test_text_of_peers_reaches_the_terminal_escaped(start: Start) -> None:
    anna = start("--name", "Anna")
    anna.told()
    ben = subprocess.Popen(
        command("--name", "Ben", "-w", 30), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with ben:
        assert ben.stdout is not None
        anna.sees("joined", name="Ben")
        anna.say("bad \x1b]0;title\x07 \u202e \x9b2J end")
        while b"end" not in (line := ben.stdout.readline()):
            assert line
        ben.terminate()  # leaves, as with Ctrl-C
        rest = ben.stdout.read()
    assert re.fullmatch(rb"\d\d:\d\d  Anna: bad \\x1b\]0;title\\x07 \\u202e \\x9b2J end\n", line)
    assert not re.search(rb"[^\x20-\x7e\n]", line + rest)
    anna.sees("left", name="Ben")
    assert ben.returncode == 0
    anna.leave()


def test_a_file_can_be_read_out(start: Start, tmp_path: Path) -> None:
    anna = start("--name", "Anna")
    anna.told()
    (tmp_path / "text").write_text("one\ntwo")
    with (tmp_path / "text").open() as file:
        done = subprocess.run(command("--name", "Ben"), stdin=file, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    anna.sees("left", name="Ben")
    assert [event["text"] for event in anna.seen if event["event"] == "says"] == ["one", "two"]
    anna.leave()


def test_each_is_heard_once_although_all_interfaces_are_used(lab: netns.Lab) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    lab.link(alice, "va", bob, "vb", net=0)
    lab.link(alice, "wa", bob, "wb", net=1)
    options = {"stdin": subprocess.PIPE}
    anna = Chatter(alice.popen(command("--json", "--name", "Anna"), **options))
    assert anna.told().endswith("on lo, va, wa; /who, /quit or Ctrl-D")
    ben = Chatter(bob.popen(command("--json", "--name", "Ben"), **options))
    cleo = Chatter(alice.popen(command("--json", "--name", "Cleo", "-t", 0, "-i", "lo"), **options))
    for joined in (ben, cleo):
        joined.told()
    anna.sees("joined", name="Ben")
    anna.sees("joined", name="Cleo")
    for number in range(5):
        anna.say(str(number))
    for listener in (ben, cleo):
        listener.sees("says", text="4")
        assert [event["text"] for event in listener.seen if event["event"] == "says"] == list("01234")
    assert not any(event["name"] == "Cleo" for event in ben.seen)  # keeps to her host
    for one in (cleo, ben, anna):
        one.leave()


class Terminal:
    """A pseudo-terminal with a chat in it."""

    def __init__(self, *args: object) -> None:
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 40))
        self.modes = termios.tcgetattr(self.ours)
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            command(*args), stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.drawn = b""

    def types(self, data: bytes) -> None:
        os.write(self.ours, data)

    def shows(self, pattern: bytes) -> None:
        """Read what it draws until there is something new that matches."""
        while (found := re.search(pattern, self.drawn)) is None:
            self.drawn += os.read(self.ours, 4096)
        self.drawn = self.drawn[found.end() :]

    def close(self) -> int:
        code = self.process.wait(20)
        os.close(self.ours)
        return code


def test_in_a_terminal_what_is_typed_stays_below_what_happens(start: Start) -> None:
    anna = Terminal("--name", "Anna")
    anna.shows(b"you are Anna.*\r\n.*> ")
    ben = start("--name", "Ben")
    anna.shows(rb"\* Ben has joined\r\n> $")
    anna.types(b"half a sent")
    anna.shows(b"> half a sent$")
    ben.say("interruption")
    anna.shows(rb"\r\x1b\[K\d\d:\d\d  Ben: interruption\r\n> half a sent$")
    anna.types("ence, größer als die Breite\r".encode())
    assert ben.sees("says")["text"] == "half a sentence, größer als die Breite"
    anna.shows("Anna: half a sentence, größer als die Breite\r\n.*> $".encode())
    anna.types(b"\x04")
    ben.sees("left", name="Anna")
    assert anna.process.wait(20) == 0
    assert termios.tcgetattr(anna.ours) == anna.modes
    assert anna.close() == 0
    ben.leave()


def test_ctrl_c_leaves_and_gives_the_terminal_back(start: Start) -> None:
    ben = start("--name", "Ben")
    ben.told()
    anna = Terminal("--name", "Anna")
    ben.sees("joined", name="Anna")
    anna.shows(b"> $")
    os.kill(anna.process.pid, signal.SIGINT)
    ben.sees("left", name="Anna")
    assert anna.process.wait(20) == 0
    assert termios.tcgetattr(anna.ours) == anna.modes
    anna.close()
    ben.leave()


# -- over TCP --------------------------------------------------------------------------------------------------------


def serving(server: Chatter) -> str:
    match = re.search(r"multicast chat (tcp://\S+) ", server.told())
    assert match
    return match[1]


def test_a_server_and_its_guests(start: Start) -> None:
    server = start("--serve", "127.0.0.1:0")
    url = serving(server)
    anna = start(url, "--name", "Anna")
    assert anna.sees("line")["text"] == "* hello Anna; here: nobody else"
    other = start(url, "--name", "Anna")
    assert other.sees("line")["text"] == "* hello Anna 2; here: Anna"
    assert anna.sees("line")["text"] == "* Anna 2 has joined"
    other.say("hi \x1b[2J")
    assert anna.sees("line")["text"] == r"Anna 2: hi \x1b[2J"
    assert server.sees("says")["text"] == r"hi \x1b[2J"
    anna.say("/who")
    assert anna.sees("line")["text"] == "* here: Anna, Anna 2"
    assert other.leave() == []
    assert anna.sees("line")["text"] == "* Anna 2 has left"
    server.process.terminate()
    assert anna.process.wait(20) == 1
    assert server.process.wait(20) == 0
    assert "the server has ended the chat" in anna.process.stderr.read()


def test_a_guest_of_another_program_keeps_to_the_header_or_is_gone(start: Start) -> None:
    server = start("--serve", "0")
    port = int(serving(server).rpartition(":")[2])
    anna = start(f"tcp://localhost:{port}", "--name", "Anna")
    anna.sees("line")
    with socket.create_connection(("127.0.0.1", port), 10) as guest:
        guest.sendall(b"3       Ben2       hi")
        assert guest.recv(100) == b"23      * hello Ben; here: Anna"
        assert anna.sees("line", text="Ben: hi")
        guest.sendall(b"99999999 and so on")
        assert guest.recv(100) == b""
    assert anna.sees("line", text="* Ben has left")
    with socket.create_connection(("127.0.0.1", port), 10) as rude:
        rude.sendall(b"5       Rude!")
        anna.sees("line", text="* Rude! has joined")
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    anna.sees("line", text="* Rude! has left")
    anna.leave()
    server.process.terminate()
    assert server.process.wait(20) == 0


@pytest.mark.parametrize(
    "args, code, text",
    [
        (["10.0.0.1"], 2, "is not a multicast address"),
        (["tcp://somewhere:4000"], 2, "names are not looked up"),
        (["tcp://127.0.0.1:70000"], 2, "port"),
        (["tcp://127.0.0.1:4000", "-i", "lo"], 2, "-i is for groups"),
        (["--serve", "4000", "--name", "Anna"], 2, "takes no part"),
        (["--serve", "192.0.2.1:4000"], 3, "is not an address of this host"),
        (["-i", "eth7"], 3, "eth7"),
    ],
)
def test_what_cannot_be_is_said_in_words(args: list[str], code: int, text: str) -> None:
    done = subprocess.run(command(*args), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_is_said_in_words() -> None:
    done = subprocess.run(
        command("tcp://127.0.0.1", "--name", "Anna"), input="hello\n", capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 3
    assert f"No program listens at 127.0.0.1:{DEFAULT_PORT}" in done.stderr
