"""The `multicast` command: what it prints where, how it ends, and what it says when something is wrong."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import helpers
import netns
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from programs import MULTICAST, Running, environment, events, multicast, wait_for

from multicast import errors, sendto
from multicast.cli import COMMANDS, _app, _errors, _output, demo, interfaces, listen

GROUP = "239.1.2.3:5000"
LINE = re.compile(
    r"(?P<time>\d\d:\d\d:\d\d\.\d{6}) (?P<interface>\S+) +(?P<source>\S+) > (?P<group>\S+)  ttl (?P<ttl>\d+)"
    r"  len (?P<length>\d+)  (?P<payload>.*)"
)


def invoke(*args: str) -> Result:
    """Run the command in this process; for what opens no socket and handles no signal."""
    return CliRunner().invoke(_app.program, list(args))


# -- the frame -------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_the_table() -> None:
    shown = invoke("--help").stdout
    assert re.findall(r"^  (\w+)  +(.*)$", shown[shown.index("Commands:") :], re.MULTILINE) == [
        (name, summary) for name, summary in COMMANDS.items()
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_shows_three_examples_before_the_options(name: str) -> None:
    result = invoke(name, "-h")
    assert result.exit_code == 0
    shown = result.stdout
    assert result.stdout == invoke(name, "--help").stdout
    examples = shown[shown.index("Examples:") : shown.index("Options:")].splitlines()
    assert len([line for line in examples if f"multicast {name}" in line]) >= 3
    assert not any(len(line) > 80 for line in shown.splitlines() if line not in examples)


def on_columns(width: int, *args: str) -> list[str]:
    """Return the lines that the command writes on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    env = environment(COLUMNS=None, FORCE_COLOR=None, NO_COLOR="1")
    process = subprocess.Popen([*MULTICAST, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # the other end is closed
        while piece := terminal.read(4096):
            written += piece
    assert process.wait(helpers.PATIENCE) == 0
    return written.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", ["", "send", "listen", "completion"])
def test_help_fits_on_the_terminal_and_its_examples_can_still_be_copied(name: str, width: int) -> None:
    lines = on_columns(width, *name.split(), "--help")
    # A word is broken no more than a command is: it is there to be copied.
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []
    shown = "\n".join(lines)
    examples = shown[shown.index("Examples:\n") + 10 : shown.index("\nOptions:")].replace("\\\n", "")
    command = _app.program.get_command(click.Context(_app.program), name) if name else _app.program
    assert isinstance(command, (_app.Command, type(_app.program)))
    assert list(map(shlex.split, examples.splitlines())) == list(map(shlex.split, command.examples))


def table_on(width: int | None, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    monkeypatch.setattr(_output, "columns", lambda stream: width)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        _output.Output().table(("GROUP", "TYPE", "LOST"), [("239.1.2.3:5000", "RTP", "12")], **options)
    return written.getvalue().splitlines()


def test_a_table_is_as_wide_as_it_is_and_on_a_narrow_terminal_less(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ["GROUP           TYPE  LOST", "239.1.2.3:5000  RTP   12"]
    for width in (None, 26):
        assert table_on(width, monkeypatch, spare=["TYPE"], cut=1) == whole
    assert table_on(25, monkeypatch, spare=["TYPE"], cut=1) == ["GROUP           LOST", "239.1.2.3:5000  12"]
    assert table_on(18, monkeypatch, spare=["TYPE"], cut=1) == ["GROUP         LOST", "239.1.2.3:5…  12"]
    assert table_on(18, monkeypatch) == whole  # what may not be left out is not
    assert table_on(18, monkeypatch, otherwise=lambda: sys.stdout.write("instead")) == ["instead"]


def test_interfaces_are_stacked_where_they_have_no_room_side_by_side() -> None:
    assert on_columns(80, "interfaces")[1].split()[1] == "lo"
    assert on_columns(30, "interfaces")[:3] == ["lo  up", "  127.0.0.1", "  ::1"]
    assert "  joined 224.0.0.1" in on_columns(30, "interfaces")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_shared_options(name: str) -> None:
    command = _app.program.get_command(_app.program.make_context("multicast", [], resilient_parsing=True), name)
    assert command is not None
    spellings = {spelling for parameter in command.params for spelling in parameter.opts}
    assert {"-q", "--quiet", "-v", "--verbose", "--no-color", "--debug"} <= spellings


def test_a_command_that_does_not_exist_is_answered_with_the_nearest() -> None:
    result = invoke("lisen")
    assert result.exit_code == 2
    assert result.stderr.startswith("multicast: no command 'lisen'; did you mean listen?")


def test_no_command_at_all_shows_the_help_and_is_a_usage_error() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: multicast ")


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_names_the_engine(option: str) -> None:
    import multicast as facade
    from multicast import batch

    assert invoke(option).stdout == f"multicast {facade.__version__} (engine: {batch.ENGINE})\n"


def test_a_command_loads_only_what_it_needs() -> None:
    code = """
        import sys
        from multicast.cli import main
        main(sys.argv[1:])
        print(*sorted(sys.modules), file=sys.stderr)
    """
    for args in (["--help"], ["send", "--help"], ["send", "hello"]):
        done = subprocess.run(netns.python(code, *args), capture_output=True, text=True, timeout=20, check=True)
        loaded = set(done.stderr.splitlines()[-1].split())
        assert "multicast.poller" in loaded
        assert not loaded & {"rich", "asyncio", "multicast.cli.demo", "multicast.capture", "multicast.doctor"}
        assert ("multicast.cli.send" in loaded) == (args[0] == "send")


def test_the_table_names_functions_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    context = _app.program.make_context("multicast", [], resilient_parsing=True)
    for name in COMMANDS:
        command = _app.program.get_command(context, name)
        assert isinstance(command, _app.Command)
        assert command.name == name


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_the_extra_one_sentence_says_what_to_install(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
        import sys
        sys.modules[{library!r}] = None
        from multicast.cli import COMMANDS, main
        sys.modules["multicast.cli.needy"] = None
        if {library!r} == "rich":  # a command that needs it
            del sys.modules["multicast.cli.needy"]
            import types
            COMMANDS["needy"] = ""
            class Finder:
                def find_spec(self, name, path, target=None):
                    if name == "multicast.cli.needy":
                        import rich
            sys.meta_path.insert(0, Finder())
        sys.exit(main(["needy"]))
    """
    done = subprocess.run(netns.python(code), capture_output=True, text=True, timeout=20)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        f"multicast: this command needs {library}, which is not installed: pip install"
        ' "multicast-poller[cli]"\n'
    )


def test_a_module_that_is_missing_for_another_reason_is_not_explained_away() -> None:
    code = """
        import sys
        from multicast.cli import COMMANDS, main
        COMMANDS["no_such_module"] = ""
        main(["no_such_module"])
    """
    done = subprocess.run(netns.python(code), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'multicast.cli.no_such_module'" in done.stderr


# -- the page about it -----------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "cli.rst"


def test_every_command_has_its_section() -> None:
    sections = re.findall(r"^(\w+)\n-+\n\n\.\. command-help:: (\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sections == [(name, name) for name in COMMANDS]


def documented_keys(command: str) -> dict[str, set[str]]:
    """Return the keys of each event, as the page has them."""
    table = PAGE.read_text().partition(f".. list-table:: ``multicast {command} --json``")[2].partition("\n.. ")[0]
    found: dict[str, set[str]] = {}
    event = ""
    for kind, keys in re.findall(r"^   \* -(.*)\n     - (.*)$", table, re.MULTILINE):
        event = kind.strip() or event
        found.setdefault(event, set()).update(re.findall(r"``(\w+)``", keys))
    found.pop("Event")
    return found


def test_the_documented_keys_are_those_that_are_written() -> None:
    with Running("listen", GROUP, "--json", "-c", "3").joined() as listening:
        sent = events(multicast("send", GROUP, "text", "--json").stdout)
        multicast("send", GROUP, "-x", "ff")
        multicast("send", GROUP, "-x", b"LC02\0\0\0\1POSE\0".hex())
        heard = events(listening.end()[1])
    shown = events(multicast("interfaces", "--json").stdout)
    for command, written in (("send", sent), ("listen", heard), ("interfaces", shown)):
        keys: dict[str, set[str]] = {}
        for event in written:
            keys.setdefault(event["event"], set()).update(event.keys() - {"v", "event"})
        assert keys == documented_keys(command)


def written_keys(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Return the events a module writes under a fixed name, and the keys it names."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event":
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value), {keyword.arg for keyword in node.keywords if keyword.arg is not None}


def test_every_key_a_command_writes_is_on_the_page() -> None:
    documented: dict[str, set[str]] = {}
    for command in COMMANDS:
        if f"``multicast {command} --json``" in PAGE.read_text():
            for event, keys in documented_keys(command).items():
                documented.setdefault(event, set()).update(keys)
    folder = Path(_output.__file__).parent
    for module in folder.glob("*.py"):
        for event, keys in written_keys(module):
            assert keys <= documented.get(event, set()), f"{module.name} writes {event}"


# -- text ------------------------------------------------------------------------------------------------------------


@given(st.text())
def test_text_for_people_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    for made in (_output.printable(text), _output.quoted(text)):
        assert made.isprintable()


@given(st.text())
def test_quoted_text_says_exactly_what_the_text_is(text: str) -> None:
    assert ast.literal_eval(_output.quoted(text)) == text


@given(st.binary(max_size=300))
def test_json_gives_every_packet_back_and_is_plain_ascii(packet: bytes) -> None:
    import base64

    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        _output.Output().event("packet", **_output.payload(packet))
    line = written.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    read = json.loads(line)
    assert list(read)[:2] == ["v", "event"]
    assert (read["text"].encode() if "text" in read else base64.b64decode(read["base64"])) == packet


@pytest.mark.parametrize(
    "packet, shown",
    [
        (b"hello", '"hello"'),
        (b"", '""'),
        (b"\x02\x00\xff\x10", "02 00 ff 10"),
        (b"\x00\x01\x02", "00 01 02"),
        ("Grüße".encode(), '"Grüße"'),
        (b'say "no"\\', r'"say \"no\"\\"'),
        (b"\x1b[31mred, then more", r'"\x1b[31mred, then more"'),
        (b"C string\0", r'"C string\x00"'),
        ("left\u202eright".encode(), r'"left\u202eright"'),
        (b"x" * 2000, '"' + "x" * 1000 + '" ...'),
        (b"\xff" * 33, "ff " * 32 + "..."),
    ],
)
def test_a_packet_is_shown_as_text_or_as_digits(packet: bytes, shown: str) -> None:
    assert _output.shown(packet) == shown


@pytest.mark.parametrize(
    "said, shown",
    [
        ("name one with interface=.", "name one with -i."),
        ("it needs an interface: interface='eth0', or", "it needs an interface: -i eth0, or"),
        ("Give one of them as source_ip=.", "Give one of them as --source-ip."),
        ("Send more slowly (rate=, interval=).", "Send more slowly (--rate, --interval)."),
        ("by with sources=", "by with SOURCE@GROUP"),
        ("ttl=0 keeps packets on this host", "ttl=0 keeps packets on this host"),
    ],
)
def test_messages_of_the_library_speak_of_options(said: str, shown: str) -> None:
    assert _errors.in_options(said) == shown


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.GroupError("x"), 2),
        (errors.PacketSizeError("x"), 2),
        (errors.InterfaceError("x"), 3),
        (PermissionError(1, "x"), 3),
        (errors.CaptureError("x"), 4),
        (errors.FrameError("x"), 4),
        (_errors.BadData("x"), 4),
        (errors.NoReply("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(interfaces, "interfaces_here", fail)
    result = invoke("interfaces")
    assert result.exit_code == code
    assert result.stderr.startswith("multicast: ")
    assert "Traceback" not in result.stderr
    assert "Traceback" in invoke("interfaces", "--debug").stderr
    assert "Traceback" in invoke("--debug", "interfaces").stderr


def test_verbose_adds_the_number_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise errors.advise(OSError(19, "x"), "join", group="239.1.2.3", interfaces="lo")

    monkeypatch.setattr(interfaces, "interfaces_here", fail)
    assert invoke("interfaces").stderr.startswith("multicast: No such device. The kernel knows no interface for")
    assert invoke("interfaces", "-v").stderr.startswith("multicast: No such device (errno 19, ENODEV). The kernel")


# -- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, says",
    [
        (["send", "10.1.2.3:5000", "x"], "10.1.2.3 is not a multicast address (224.0.0.0 to 239."),
        (["send", "10.1.2.3:5000"], "10.1.2.3 is not a multicast address"),
        (["send", "239.1.2.300:5000", "x"], "'239.1.2.300' is not an IP address"),
        (["send", "239.1.2.3:70000", "x"], "port must be a number from 1 to 65535, not 70000"),
        (["send", "hello", "world"], "'hello' is neither an IP address nor a well-known group"),
        (["send", GROUP, "x", "-t", "256"], "256 is not in the range"),
        (["send", GROUP, "x", "--rate", "fast"], "'fast' is not a rate; write 10m"),
        (["send", GROUP, "x", "--rate", "0"], "'0' is not a rate"),
        (["send", GROUP, "x", "--rate", "1m", "--interval", "1"], "--rate and --interval both"),
        (["send", GROUP, "x", "--interval", "-1"], "-1.0 is not in the range"),
        (["send", GROUP, "x", "-c", "0"], "0 is not in the range"),
        (["send", GROUP, "--hex", "0g"], '"0g" is not bytes in hexadecimal digits'),
        (["send", GROUP, "x", "--file", "f"], 'either a TEXT or --file, not both; "x" is left over'),
        (["send", GROUP, "x", "--size", "10"], "--size cuts a file or a pipe by bytes"),
        (["send", "239.1.2.3:5000%lo,eth0", "x"], "packets leave by one interface, so name one, not lo,eth0"),
        (["listen", "nonsense"], "'nonsense' is neither an IP address nor a well-known group; names are ssdp"),
        (["listen", "--filter", "("], "--filter: the filter '(' is not a regular expression"),
        (["listen", "--raw", "--json"], "--raw, --hex and --json are three ways to write a packet; choose one"),
        (["listen", "-w", "soon"], "'soon' is not a number of seconds, 0 or more"),
        (["listen", "-w", "nan"], "'nan' is not a number of seconds, 0 or more"),
        (["listen", "--nonsense"], "No such option"),
        (["interfaces", "eth0"], "Got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_said_in_words(args: list[str], says: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("multicast: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "written, rate",
    [
        ("10m", _app.Rate(bits=10e6)),
        ("1.5k", _app.Rate(bits=1500)),
        ("2G", _app.Rate(bits=2e9)),
        ("64000", _app.Rate(bits=64000)),
        ("10mbps", _app.Rate(bits=10e6)),
        ("500pps", _app.Rate(packets=500)),
        ("2kpps", _app.Rate(packets=2000)),
    ],
)
def test_rates_are_written_as_people_do(written: str, rate: _app.Rate) -> None:
    assert _app.RATE.convert(written, None, None) == rate


@pytest.mark.parametrize(
    "args, says",
    [
        (["send", GROUP, "x", "-i", "low"], "no interface 'low'. Did you mean lo? This host has: lo 127.0.0.1"),
        (["send", GROUP, "x", "--source-ip", "192.0.2.1"], "no interface '192.0.2.1'"),
        (["listen", GROUP, "-i", "eth9"], "no interface 'eth9'"),
        (["send", "[ff02::1]:5000", "x"], "ff02::1 is a different address on each link, so it needs an interface: -i"),
        (["send", GROUP, "--file", "/nonexistent"], "/nonexistent: No such file or directory."),
        (["send", GROUP, "--file", "/"], "/: Is a directory."),
    ],
)
def test_what_the_system_refuses_is_exit_code_3(args: list[str], says: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 3
    assert says in result.stderr
    assert result.stderr.startswith("multicast: ")
    assert result.stdout == ""


def test_a_port_that_is_not_shared_is_refused_with_advice() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
        selfish.bind(("", 5000))
        result = invoke("listen", GROUP)
    assert result.exit_code == 3
    assert "Another program holds port 5000 and does not share it" in result.stderr


# -- send ------------------------------------------------------------------------------------------------------------


def received(count: int, *send: str, group: str = GROUP, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """Send while somebody listens; return the packets as JSON objects, and what `send` said."""
    with Running("listen", group, "--json", "-c", str(count)).joined() as listening:
        done = multicast("send", *send, **options)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        code, data, _ = listening.end()
    assert code == 0
    *packets, summary = events(data)
    assert summary["packets"] == count
    return packets, done.stderr


def test_words_are_sent_as_one_packet() -> None:
    (packet,), said = received(1, GROUP, "hello,", "all")
    assert packet["text"] == "hello, all"
    assert said == "sent 1 packet, 10 bytes, to 239.1.2.3:5000 from 127.0.0.1 by lo, ttl 1\n"


def test_bytes_are_written_in_hexadecimal_digits() -> None:
    packets, _ = received(1, GROUP, "--hex", "02 00", "0xff:10")
    assert packets[0]["base64"] == "AgD/EA=="


def test_lines_of_standard_input_are_packets_with_empty_ones_too() -> None:
    packets, said = received(4, GROUP, "-", input="one\n\nthree\nno end")
    assert [packet["text"] for packet in packets] == ["one", "", "three", "no end"]
    assert said.startswith("sent 4 packets, 14 bytes,")


def test_standard_input_is_read_when_there_is_no_text() -> None:
    packets, _ = received(2, GROUP, input="one\ntwo\n")
    assert [packet["text"] for packet in packets] == ["one", "two"]


def test_lines_of_a_file_are_packets_up_to_the_count(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("01\n02 03\n04\n")
    packets, said = received(2, GROUP, "--file", str(tmp_path / "f"), "-x", "-c", "2")
    assert [packet["text"] for packet in packets] == ["\x01", "\x02\x03"]
    assert said.startswith("sent 2 packets, 3 bytes,")


def test_a_file_is_sent_in_pieces_and_received_as_it_was(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    (tmp_path / "f").write_bytes(content)
    count = -(-len(content) // 1316)
    with (
        open(tmp_path / "got", "wb") as got,
        Running("listen", GROUP, "--raw", "-c", str(count), stdout=got).joined() as listening,
    ):
        done = multicast("send", GROUP, "--file", str(tmp_path / "f"), "--size", "1316")
        code, _, said = listening.end()
    assert code == 0
    assert (tmp_path / "got").read_bytes() == content
    assert done.stderr.startswith(f"sent {count} packets, 25 600 bytes,")
    assert f"{count} packets, 25 600 bytes, 1 source," in said


def test_a_line_goes_out_before_the_next_is_there() -> None:
    with (
        Running("listen", GROUP, "--json").joined() as listening,
        Running("send", GROUP, "-", stdin=subprocess.PIPE) as sending,
    ):
        assert sending.process.stdin is not None
        for text in ("one", "two"):
            sending.process.stdin.write(text.encode() + b"\n")
            assert json.loads(listening.line())["text"] == text
        sending.process.stdin.close()
        sending.process.stdin = None
        assert sending.end()[0] == 0
        listening.interrupt()
        assert listening.end()[0] == 0


def test_large_input_does_not_fill_the_memory(tmp_path: Path) -> None:
    size = 200 << 20
    with open(tmp_path / "large", "wb") as file:
        file.truncate(size)
    code = """
        import sys
        from multicast.cli import main
        code = main(sys.argv[1:])
        # Not ru_maxrss, which a new program takes over from the process that started it.
        most = dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"]
        print(code, int(most.split()[0]) << 10)
    """
    args = ["send", "-q", "239.255.9.9:5000", "--file", str(tmp_path / "large"), "--size", "60000"]
    done = subprocess.run(netns.python(code, *args), capture_output=True, text=True, timeout=50, check=True)
    result, used = map(int, done.stdout.split())
    assert result == 0
    assert used < size / 2


@pytest.mark.parametrize(
    "args, given, says",
    [
        (["-"], "x" * 70000, "standard input, line 1 does not fit in one UDP packet"),
        (["-"], "x" * 300000, "standard input, line 1 does not fit in one UDP packet"),
        (["-", "-x"], "00\nxyz\n", 'standard input, line 2: "xyz" is not bytes in hexadecimal digits'),
    ],
)
def test_bad_input_is_exit_code_4_and_says_where(args: list[str], given: str, says: str) -> None:
    done = multicast("send", GROUP, *args, input=given)
    assert done.returncode == 4
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_does_not_fit_is_a_usage_error() -> None:
    done = multicast("send", GROUP, "x" * 65508)
    assert done.returncode == 2
    assert done.stderr == (
        "multicast: 65508 bytes do not fit in one UDP packet (65507 at most; up to 1472 avoid fragments on Ethernet);"
        " split it into several\n"
    )


def test_a_single_argument_is_a_text_unless_it_is_a_group() -> None:
    packets, _ = received(1, "hello", group="224.0.42.42")
    assert packets[0]["text"] == "hello"
    packets, _ = received(1, "", "mdns", group="224.0.42.42")
    assert packets[0]["text"] == "mdns"


def test_nothing_to_send_is_a_usage_error_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        done = multicast("send", GROUP, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert "there is nothing to send to 239.1.2.3:5000: give a TEXT" in done.stderr


def test_the_summary_of_send_is_json_when_asked_for() -> None:
    done = multicast("send", GROUP, "x", "-c", "3", "--json", "-t", "0")
    assert done.stderr == ""
    (summary,) = events(done.stdout)
    assert summary.pop("seconds") >= 0
    assert summary == {
        "v": 1, "event": "summary", "packets": 3, "bytes": 3, "group": "239.1.2.3", "port": 5000,
        "source": "127.0.0.1", "interface": "lo", "ttl": 0,
    }  # fmt: skip


def test_quiet_says_nothing() -> None:
    done = multicast("-q", "send", GROUP, "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "args, said",
    [
        (
            ["send", f"udp://{GROUP}?ttl=3&localport=6000&bitrate=5", "x"],
            [
                "ttl=3 in the URL is not used; give -t 3",
                "localport=6000 in the URL is not used; give --source-port 6000",
                "bitrate=5 in the URL is not used; give -b 5",
            ],
        ),
        (["send", "-t", "3", f"udp://{GROUP}?ttl=3", "x"], []),
        (["respond", f"udp://{GROUP}?ttl=3", "-w", "0"], ["ttl=3 in the URL is not used; give -t 3"]),
        (["chat", f"udp://{GROUP}?ttl=3", "-w", "0"], ["ttl=3 in the URL is not used; give -t 3"]),
        (["listen", f"udp://@{GROUP}?ttl=3&pkt_size=1316&fifo_size=9&overrun_nonfatal=1&reuse=1", "-w", "0"], []),
        (
            ["listen", f"udp://@{GROUP}?typo=%1b&ring", "-w", "0"],
            ["typo=\\x1b in the URL is not used", "ring in the URL is not used"],
        ),
        (["-q", "send", f"udp://{GROUP}?ttl=3", "x"], []),
    ],
)
def test_what_a_pasted_url_asks_for_in_vain_is_said(args: list[str], said: list[str]) -> None:
    done = multicast(*args)
    assert [line for line in done.stderr.splitlines() if "URL" in line] == [f"multicast: {text}" for text in said]


def test_the_source_of_a_source_specific_group_is_the_address_sent_from() -> None:
    packets, said = received(1, "127.0.0.9@239.1.2.3:5000", "x")
    assert packets[0]["source"] == "127.0.0.9"
    assert "from 127.0.0.9 by lo" in said


def test_the_zone_of_a_link_local_group_is_told() -> None:
    helpers.need_on_lo("ff02::1")
    said = multicast("send", "[ff02::1]:5000%lo", "x").stderr
    assert said == "sent 1 packet, 1 byte, to [ff02::1]:5000%lo from ::1 by lo, ttl 1\n"


def test_sending_with_a_pace_goes_on_until_it_is_interrupted() -> None:
    with (
        Running("listen", GROUP, "--json", "-c", "3").joined() as listening,
        Running("send", GROUP, "x", "--rate", "200pps", "--source-port", "5999") as sending,
    ):
        code, data, _ = listening.end()
        sending.interrupt()
        assert sending.end()[0] == 0
    assert code == 0
    assert {packet.get("source_port") for packet in events(data)} == {5999, None}


@pytest.mark.parametrize("choice", [["-i", "va"], []], ids=["by an interface", "by the routes"])
def test_sending_waits_for_a_network_that_goes_away_and_keeps_its_count(
    hosts: tuple[netns.Host, netns.Host], choice: list[str]
) -> None:
    a, b = hosts
    with (
        Running("listen", f"{GROUP}%vb", "--json", host=b).joined() as listening,
        Running("send", *choice, GROUP, "x", "--rate", "100pps", host=a) as sending,
    ):
        listening.line()
        for number in (1, 2):
            a.ip("link set va down")
            sending.until_said("multicast: ")
            back = time.time_ns()
            a.ip("link set va up", "route replace 224.0.0.0/4 dev va")
            while json.loads(listening.line())["time_ns"] < back:
                pass
            assert len(sending.said) == number, "an outage is told once"
        sending.interrupt()
        code, _, said = sending.end()
    assert code == 0
    outage = r"multicast: .*\. Waiting until the network is back; ([1-9][0-9]*) packets? sent so far\."
    told = rf"^(?:{outage}|sent ([0-9]+) .*)$"
    counts = [int(first or last) for first, last in re.findall(told, said, re.MULTILINE)]
    assert len(counts) == len(said.splitlines()) == 3
    assert counts == sorted(set(counts)), "it goes on counting"


def test_what_cannot_be_sent_from_the_beginning_is_refused(hosts: tuple[netns.Host, netns.Host]) -> None:
    a, _ = hosts
    a.ip("link set va down")
    done = multicast("send", "-i", "va", GROUP, "x", "--rate", "100pps", host=a)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sending_interrupted_before_its_end_is_130(number: int) -> None:
    with Running("listen", GROUP).joined() as listening:
        with Running("send", GROUP, "x", "--interval", "60", "-c", "2") as sending:
            listening.line()
            sending.interrupt(number)
            code, _, said = sending.end()
        assert code == 130
        assert said.strip() == "sent 1 packet, 1 byte, to 239.1.2.3:5000 from 127.0.0.1 by lo, ttl 1"
        with Running("send", GROUP, "-", stdin=subprocess.PIPE) as sending:
            assert sending.process.stdin is not None
            sending.process.stdin.write(b"one line, and no more\n")
            listening.line()
            sending.interrupt(number)
            code, _, said = sending.end()
        assert code == 130
        assert said.startswith("sent 1 packet, 21 bytes,")
        assert "Traceback" not in said


# -- listen ----------------------------------------------------------------------------------------------------------


def deliver(*packets: str | bytes, to: str = GROUP, ttl: int = 1, source_port: int = 0) -> None:
    """Send packets from this process, which takes less time than the command does."""
    group, _, port = to.rpartition(":")
    sendto(packets, group.strip("[]"), int(port), ttl, source_port=source_port)


def test_a_packet_is_a_line_that_can_be_read_and_pasted() -> None:
    with Running("listen", GROUP, "-c", "2").joined() as listening:
        assert listening.said == ["joined 239.1.2.3 on lo (127.0.0.1); waiting on port 5000"]
        deliver("hello", source_port=5999)
        deliver(bytes.fromhex("0200ff10"), ttl=7, source_port=5999)
        code, data, said = listening.end()
    assert code == 0
    first, second = map(LINE.fullmatch, data.splitlines())
    assert first is not None
    assert second is not None
    assert first.groupdict() | {"time": ""} == {
        "time": "", "interface": "lo", "source": "127.0.0.1:5999", "group": GROUP, "ttl": "1", "length": "5",
        "payload": '"hello"',
    }  # fmt: skip
    assert (second["ttl"], second["length"], second["payload"]) == ("7", "4", "02 00 ff 10")
    assert re.search(r"^2 packets, 9 bytes, 1 source, \d+\.\d s; kernel dropped 0$", said, re.MULTILINE)


def test_json_has_the_documented_keys_in_their_order() -> None:
    with Running("listen", GROUP, "--json", "-c", "2").joined() as listening:
        deliver("hello", source_port=5999)
        deliver(b"\xff", source_port=5999)
        code, data, _ = listening.end()
    assert code == 0
    first, second, summary = events(data)
    assert isinstance(first.pop("time_ns"), int)
    assert list(first.items()) == [
        ("v", 1), ("event", "packet"), ("interface", "lo"), ("source", "127.0.0.1"), ("source_port", 5999),
        ("group", "239.1.2.3"), ("port", 5000), ("ttl", 1), ("dscp", 0), ("length", 5),
        ("text", "hello"),
    ]  # fmt: skip
    assert list(second)[:3] == ["v", "event", "time_ns"]
    assert "text" not in second
    assert second["base64"] == "/w=="
    assert summary.pop("seconds") > 0
    assert list(summary.items()) == [
        ("v", 1), ("event", "summary"), ("packets", 2), ("bytes", 6), ("sources", 1), ("dropped", 0), ("filtered", 0),
        ("lost", None),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_summary_comes_when_it_is_interrupted_too(number: int) -> None:
    with Running("listen", GROUP, "--json").joined() as listening:
        deliver("hello")
        listening.line()
        listening.interrupt(number)
        code, data, said = listening.end()
    assert code == 0
    assert [event["event"] for event in events(data)] == ["summary"]
    assert "Traceback" not in said


def test_what_had_arrived_when_it_was_interrupted_is_not_lost() -> None:
    with Running("listen", GROUP, "--json").joined() as listening:
        listening.interrupt(signal.SIGSTOP)
        multicast("send", GROUP, "x", "-c", "1000")
        listening.interrupt()
        listening.interrupt(signal.SIGCONT)
        code, data, _ = listening.end()
    assert code == 0
    *packets, summary = events(data)
    assert len(packets) == summary["packets"] == 1000
    assert summary["dropped"] == 0


def test_an_interrupt_before_anything_arrived_is_130() -> None:
    with Running("listen", GROUP).joined() as listening:
        listening.interrupt()
        code, data, said = listening.end()
    assert (code, data) == (130, "")
    assert "nothing arrived in" in said


def test_nothing_arrived_is_exit_code_1_and_names_the_next_step() -> None:
    done = multicast("listen", GROUP, "-w", "0.05")
    assert done.returncode == 1
    assert done.stdout == ""
    next_step = " Next: multicast doctor 239.1.2.3:5000" if "doctor" in COMMANDS else ""
    assert re.search(rf"^nothing arrived in 0\.\d+ s\.{next_step}$", done.stderr, re.MULTILINE)


def test_the_doctor_is_named_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "COMMANDS", {"listen": ""})
    assert "doctor" not in invoke("listen", GROUP, "-w", "0").stderr
    monkeypatch.setattr(listen, "COMMANDS", {"doctor": ""})
    assert " s. Next: multicast doctor 239.1.2.3:5000\n" in invoke("listen", GROUP, "-w", "0").stderr


def test_fewer_than_expected_is_exit_code_1() -> None:
    with Running("listen", GROUP, "--expect", "3", "-c", "2").joined() as listening:
        deliver("x", "x")
        code, _, said = listening.end()
    assert code == 1
    assert said.rstrip().endswith("3 packets were expected")


def test_as_many_as_expected_end_it_when_nothing_else_does() -> None:
    with Running("listen", GROUP, "--expect", "3").joined() as listening:
        deliver("x", "x", "x")
        assert listening.end()[0] == 0


def test_an_interrupt_before_as_many_came_as_expected_is_130() -> None:
    with Running("listen", GROUP, "--expect", "3", "-w", "100").joined() as listening:
        deliver("x")
        listening.line()
        listening.interrupt()
        assert listening.end()[0] == 130


def test_a_filter_lets_pass_what_matches_at_the_start() -> None:
    with Running("listen", GROUP, "--filter", "al", "-w", "100", "-c", "1").joined() as listening:
        deliver("normal", "alarm")
        code, data, said = listening.end()
    assert code == 0
    assert data.endswith('"alarm"\n')
    assert "1 source" in said
    assert "1 packet refused by the filter," in said


def test_that_all_were_refused_by_the_filter_is_said() -> None:
    with Running("listen", GROUP, "--filter", "al").joined() as listening:
        deliver("normal")
        listening.interrupt()
        code, _, said = listening.end()
    assert code == 130
    assert re.search(r'1 packet arrived in .* s, and none matched "al"\.', said)


def test_digits_on_request_are_all_of_them_and_can_be_sent_again() -> None:
    packet = bytes(range(256))
    with Running("listen", GROUP, "-x", "-c", "2").joined() as listening:
        deliver(packet)
        shown = listening.line().split("  ")[-1]
        assert bytes.fromhex(shown) == packet
        multicast("send", GROUP, "-x", shown)
        assert listening.end()[1].rstrip().endswith(shown)


def test_several_groups_are_listened_to_at_once_and_the_count_is_over_all() -> None:
    groups = [GROUP, "239.1.2.4:5001", "[ff15::1]:5002", GROUP]
    with Running("listen", *groups, "-c", "3", "--json").joined(3) as listening:
        for group in ("[ff15::1]:5002", "239.1.2.4:5001", GROUP, GROUP):
            deliver(group, to=group)
        code, data, said = listening.end()
    assert code == 0
    assert [packet["text"] for packet in events(data)[:-1]] == ["[ff15::1]:5002", "239.1.2.4:5001", GROUP]
    assert said.count("joined ") == 3


def test_names_and_pasted_addresses_are_groups() -> None:
    with Running("listen", "mdns", "udp://@239.1.2.3:5000", "-w", "0.05").joined(2) as listening:
        assert [said.split(";")[0] for said in listening.said] == [
            "joined 224.0.0.251 on lo (127.0.0.1)",
            "joined 239.1.2.3 on lo (127.0.0.1)",
        ]
        assert listening.end()[0] == 1


@pytest.mark.parametrize("choice", [["-i", "lo"], ["-i", "127.0.0.1,1"], ["-i", "1", "-I", "lo"], ["-i", "all"]])
def test_interfaces_are_chosen_in_every_way_there_is(choice: list[str]) -> None:
    with Running("listen", GROUP, "-w", "0.05", *choice).joined() as listening:
        assert listening.said == ["joined 239.1.2.3 on lo (127.0.0.1); waiting on port 5000"]
        listening.end()


@pytest.mark.parametrize("choice", [["-i", ""], ["-i", "lo,"], ["-i", ",", "-i", "lo"]])
def test_an_interface_without_a_name_is_refused(choice: list[str]) -> None:
    result = multicast("listen", GROUP, "-w", "0.05", *choice)
    assert result.returncode == 2
    assert "--interface" in result.stderr


def test_raw_is_payloads_and_nothing_else() -> None:
    with Running("listen", GROUP, "--raw", "-c", "2").joined() as listening:
        deliver(bytes.fromhex("00ff1b0a"), "end")
        out, _ = listening.process.communicate(timeout=20)
    assert out == b"\x00\xff\x1b\x0aend"


def test_drops_are_counted_and_reported() -> None:
    with Running("listen", GROUP, "--json").joined() as listening:
        listening.interrupt(signal.SIGSTOP)
        # More than any buffer holds that the kernel grants for 4 MiB.
        sent = events(multicast("send", GROUP, "x" * 60000, "-c", "400", "--json").stdout)[0]["packets"]
        listening.interrupt()
        listening.interrupt(signal.SIGCONT)
        _, data, said = listening.end()
    summary = events(data)[-1]
    assert summary["dropped"] > 0
    assert summary["packets"] + summary["dropped"] == sent
    assert f"kernel dropped {summary['dropped']}. They came faster than they could be written" in said


# -- pipes and terminals ---------------------------------------------------------------------------------------------


def test_each_packet_is_in_the_pipe_when_it_has_come() -> None:
    for form in ([], ["--json"], ["--hex"]):
        with Running("listen", GROUP, *form).joined() as listening:
            deliver("one")
            assert "239.1.2.3" in listening.line()


def test_a_closed_pipe_ends_it_quietly_and_at_once() -> None:
    with Running("listen", GROUP).joined() as listening:
        deliver("one")
        listening.line()
        assert listening.process.stdout is not None
        listening.process.stdout.close()
        listening.process.stdout = None
        # No further packet is needed for it to notice.
        code, _, said = listening.end()
    assert code == 141
    assert said.splitlines() == listening.said


def test_writing_into_a_closed_pipe_ends_quietly() -> None:
    for args in (["--help"], ["interfaces"], ["interfaces", "--json"]):
        inlet, outlet = os.pipe()
        os.close(inlet)
        done = multicast(*args, stdout=outlet, capture_output=False, stderr=subprocess.PIPE)
        os.close(outlet)
        assert (done.returncode, done.stderr) == (141, "")


def test_sending_does_not_mind_who_reads_its_empty_output() -> None:
    inlet, outlet = os.pipe()
    os.close(inlet)
    done = multicast("send", GROUP, "x", stdout=outlet, capture_output=False, stderr=subprocess.PIPE)
    os.close(outlet)
    assert done.returncode == 0


def test_a_full_disk_is_said_in_words() -> None:
    with open("/dev/full", "w") as full:
        done = multicast("interfaces", stdout=full, capture_output=False, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr == "multicast: No space left on device.\n"


@pytest.mark.parametrize("redirected", [">&-", "1</dev/null"])
@pytest.mark.parametrize("args", [["interfaces"], ["interfaces", "--json"], ["--help"], ["send", "--help"], ["-V"],
                                  ["completion", "bash"], ["send", GROUP, "x", "--json"]], ids=" ".join)
def test_a_result_that_cannot_be_written_is_not_taken_for_written(args: list[str], redirected: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {redirected}', "sh", *MULTICAST, *args]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 3
    complaint = "multicast: what this command prints cannot be written: standard output is closed\n"
    assert done.stderr.endswith(complaint)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(closed: str) -> None:
    with Running("listen", GROUP, "-c", "1", "--json").joined() as listening:
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *MULTICAST, "send", GROUP, "x"]
        done = subprocess.run(shell, capture_output=True, timeout=20)
        assert done.returncode == 0
        (packet, _) = events(listening.end()[1])
    assert packet["text"] == "x"


def on_terminal(*args: str, sends: str = "", **environ: str | None) -> bytes:
    """Return what a terminal gets while the command listens and one packet comes."""
    ours, theirs = pty.openpty()
    try:
        env = environment(**{"NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm", **environ})
        with Running("listen", GROUP, "-c", "1", *args, stdout=theirs, env=env).joined() as listening:
            deliver(sends)
            assert listening.end()[0] == 0
        return os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)


def test_colours_are_for_terminals_and_can_be_refused_or_forced() -> None:
    assert b"\x1b[36m127.0.0.1" in on_terminal()
    assert b"\x1b" not in on_terminal("--no-color")
    assert b"\x1b" not in on_terminal(NO_COLOR="1")
    assert b"\x1b" not in on_terminal(TERM="dumb")
    assert b"\x1b" not in on_terminal(NO_COLOR="1", FORCE_COLOR="1")
    assert b"\x1b" not in on_terminal("--json")
    with Running("listen", GROUP, "-c", "1", env=environment(NO_COLOR=None, FORCE_COLOR="1")).joined() as listening:
        deliver("x")
        assert "\x1b[36m" in listening.end()[1]


def test_what_peers_send_cannot_command_the_terminal() -> None:
    evil = "\x1b]0;title\x07 \x1b[2J \x9b31m \u202e"
    for args in (["--no-color"], ["--json"], ["--no-color", "-x"]):
        shown = on_terminal(*args, sends=evil).decode()
        assert shown.endswith("\r\n")
        assert shown.replace("\r\n", "").isprintable()


def test_raw_bytes_are_not_written_to_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        done = multicast("listen", GROUP, "--raw", stdout=theirs, capture_output=False, stderr=subprocess.PIPE)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert "no terminal should get that" in done.stderr


# -- interfaces ------------------------------------------------------------------------------------------------------


def test_interfaces_are_listed_with_the_groups_joined() -> None:
    with Running("listen", GROUP).joined(), Running("listen", GROUP).joined():
        lines = multicast("interfaces").stdout.splitlines()
        (lo,) = [event for event in events(multicast("interfaces", "--json").stdout) if event["name"] == "lo"]
    assert lines[0].split() == ["INDEX", "NAME", "STATE", "MULTICAST", "MTU", "ADDRESSES", "GROUPS", "JOINED"]
    assert lines[1].split()[:6] == ["1", "lo", "up", "yes", "65536", "127.0.0.1"]
    assert any(line.endswith(" 239.1.2.3 x2") for line in lines)
    assert {"group": "239.1.2.3", "users": 2} in lo.pop("groups")
    assert lo == {
        "v": 1, "event": "interface", "index": 1, "name": "lo", "addresses": ["127.0.0.1", "::1"], "up": True,
        "carrier": True, "multicast": True, "loopback": True, "mtu": 65536,
    }  # fmt: skip


@pytest.mark.needs_namespaces
def test_interfaces_that_are_down_or_have_no_carrier_are_said_to_be(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    bob.ip("link set vb down")

    def shown(host: netns.Host, line: str) -> re.Match[str] | None:
        return re.search(rf"^\d+ +{line} +yes +1500 ", multicast("interfaces", host=host).stdout, re.MULTILINE)

    assert shown(bob, "vb +down")
    # The kernel takes its time to notice at the other end.
    wait_for(lambda: shown(alice, "va +no carrier"), "the carrier is gone")


# -- demo ------------------------------------------------------------------------------------------------------------


def test_the_demonstration_works_in_a_network_of_its_own() -> None:
    done = multicast("demo", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "In a network of this program's own" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("all as it should be: ")
    assert "skipped" not in done.stdout
    assert "alarms       received 7, let 1 pass: as it should be" in done.stdout
    assert not any(len(line) > 80 for line in done.stdout.splitlines())
    for part in demo.PARTS:
        assert (part.__doc__ or "").splitlines()[0].rstrip(".") in done.stdout


DEMO = """
    import sys
    from multicast.cli import demo, main
    {change}
    sys.exit(main(["demo", "--quick"]))
"""


def test_the_demonstration_works_on_the_loopback_interface_alone() -> None:
    code = DEMO.format(change="demo.enter_private_network = lambda: (False, 'for a test')")
    done = subprocess.run(netns.python(code), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "On the loopback interface, with TTL 0" in done.stdout
    assert "for a test" in done.stderr
    assert "1 part skipped" in done.stdout


def test_the_demonstration_without_any_network_says_what_it_needs(lab: netns.Lab) -> None:
    host = lab.host("host")
    host.ip("link set lo down")
    done = host.run(netns.python(DEMO.format(change="demo.enter_private_network = lambda: (False, 'for a test')")))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "multicast: this demonstration needs the loopback interface, which is down (for a test). Bring it up:"
        " ip link set dev lo up\n"
    )


def test_the_demonstration_does_not_pretend() -> None:
    code = DEMO.format(change="demo._PATIENCE = 0.1; demo.sendto = lambda *args, **options: 1")
    done = subprocess.run(netns.python(code), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert 'WRONG, it should have got 1\n                missing "alarm: door open"' in done.stdout
    assert done.stdout.splitlines()[-1].startswith("not all arrived as it should: ")


def test_the_demonstration_can_be_interrupted() -> None:
    with Running("demo") as running:
        while "thermometer  sends" not in running.line():
            pass
        running.interrupt()
        code, _, said = running.end()
    assert code == 130
    assert "Traceback" not in said


# -- running the module ----------------------------------------------------------------------------------------------


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "multicast", "-V"], capture_output=True, text=True, timeout=20)
    assert done.stdout == invoke("-V").stdout
