"""The programs in docs/examples, run as processes of their own."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import netns
import pytest
from programs import wait_for

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PAGE = EXAMPLES.parent / "examples.rst"

Process = subprocess.Popen[str]
Start = Callable[..., Process]


def command(name: str, *args: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, args)]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program; whatever still runs when the test is over is ended."""
    with ExitStack() as stack:

        def start(name: str, *args: object) -> Process:
            process = subprocess.Popen(
                command(name, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def line(process: Any) -> str:
    """Return the next line it prints."""
    assert process.stdout is not None
    text = process.stdout.readline()
    assert text, process.stderr.read()
    return str(text).rstrip("\n")


def port_of(server: Process) -> int:
    words = line(server).rsplit(" ", 1)
    assert words[0] == "listening on port"
    return int(words[1])


def say(process: Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def end(process: Any, stdin: str | None = None) -> str:
    """Wait for a good end; return what it printed since."""
    out, err = process.communicate(stdin, timeout=20)
    assert (process.returncode, err) == (0, "")
    return str(out)


def programs() -> list[str]:
    return sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", programs())
def test_each_is_read_on_one_screen_and_said_what_it_is_for(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("name", programs())
def test_each_is_shown_in_the_documentation(name: str) -> None:
    assert any(f"literalinclude:: examples/{name}" in page.read_text() for page in PAGE.parent.glob("*.rst"))


@pytest.mark.parametrize(
    "name, args",
    [
        ("acknowledge", []),
        ("chat_server", [0]),
        ("multicast_receiver", ["lo"]),
        ("multicast_sender", []),
        ("price_board", []),
        ("source_check", []),
        ("tcp_echo_many", [0]),
        ("tcp_echo_one", [0]),
        ("udp_receiver", ["127.0.0.1", 0]),
        ("udp_sender", []),
    ],
)
def test_those_that_run_until_ctrl_c_end_quietly(start: Start, name: str, args: list[object]) -> None:
    program = start(name, *args)
    line(program)
    stat = Path(f"/proc/{program.pid}/stat")  # proc(5): S is asleep, as it is in its loop and not before
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "waiting in the loop")
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (130 if name == "source_check" else 0, "")


# -- TCP -------------------------------------------------------------------------------------------------------------


def test_echo_for_one_client_lets_the_next_wait(start: Start) -> None:
    server = start("tcp_echo_one", 0, 2)
    address = ("127.0.0.1", port_of(server))
    with socket.create_connection(address, 10) as first, socket.create_connection(address, 10) as second:
        second.sendall(b"second")
        first.sendall(b"first")
        assert first.recv(100) == b"first"
        assert line(server) == "b'first'"
        first.close()
        assert second.recv(100) == b"second"
    assert end(server) == "b'second'\n"


def test_echo_for_many_clients_serves_them_together(start: Start) -> None:
    server = start("tcp_echo_many", 0, 6)
    address = ("127.0.0.1", port_of(server))
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(5)]
        for number, client in reversed(list(enumerate(clients))):
            client.sendall(b"%d" % number)
        assert [client.recv(10) for client in clients] == [b"0", b"1", b"2", b"3", b"4"]
        with socket.create_connection(address, 10) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        clients[0].sendall(b"still here")
        assert clients[0].recv(100) == b"still here"
    said = end(server).splitlines()
    assert sum(text.startswith("goodbye 127.0.0.1") for text in said) == 6


@pytest.mark.parametrize("typed", ["one\nzwölf\n\nafter an empty line", "one\nzwölf"])
def test_echo_client_sends_lines_and_prints_the_answers(start: Start, typed: str) -> None:
    server = start("tcp_echo_one", 0, 1)
    client = start("tcp_echo_client", port_of(server))
    assert end(client, typed) == "b'one'\nb'zw\\xc3\\xb6lf'\n"
    end(server)


def test_echo_client_says_why_there_is_no_connection(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = start("tcp_echo_client", port)
    out, err = client.communicate("hello\n", timeout=20)
    assert (client.returncode, out) == (1, "")
    assert "Connection refused" in err


def test_chat_tells_everybody_else(start: Start) -> None:
    server = start("chat_server", 0)
    port = port_of(server)
    anna = start("chat_client", "Anna", port)
    assert line(anna) == "Hello Anna, there are 1 of us"
    ben = start("chat_client", "Ben", port)
    assert line(ben) == "Hello Ben, there are 2 of us"
    assert line(anna) == "Ben has joined"
    say(ben, "guten Morgen, schöne Welt")
    assert line(anna) == "Ben: guten Morgen, schöne Welt"
    say(anna, "\x1b[2Jand you")
    assert line(ben) == "Anna: ?[2Jand you"
    # Somebody whose header is nonsense is gone alone.
    with socket.create_connection(("127.0.0.1", port), 10) as stranger:
        stranger.sendall(b"no chat!")
        assert stranger.recv(100) == b""
    assert end(ben) == ""
    assert line(anna) == "Ben has left"
    server.terminate()
    server.wait(10)
    assert end(anna) == ""


# -- UDP -------------------------------------------------------------------------------------------------------------


def test_udp_sender_counts_and_the_receiver_prints(start: Start) -> None:
    receiver = start("udp_receiver", "127.0.0.1", 0, 2)
    sender = start("udp_sender", "127.0.0.1", port_of(receiver), 2)
    assert end(sender) == "Hello world: 0\nHello world: 1\n"
    received = [text.split(maxsplit=2) for text in end(receiver).splitlines()]
    assert [(host, packet) for host, _, packet in received] == [
        ("127.0.0.1", "b'Hello world: 0'"),
        ("127.0.0.1", "b'Hello world: 1'"),
    ]


def test_sending_and_listening_in_one_program(start: Start) -> None:
    assert end(start("send_and_listen", 3)).splitlines() == [f"I hear myself: 'tick {n}'" for n in range(3)]


# -- groups, on hosts of their own -----------------------------------------------------------------------------------


def test_several_receivers_hear_a_sender_that_chooses_its_address(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    receivers = [bob.popen(command("multicast_receiver", *args, 2)) for args in (["vb"], ["10.99.0.2"], ["vb"])]
    here = alice.popen(command("multicast_receiver", "va", 1))
    for receiver in (*receivers, here):
        assert line(receiver).startswith("listening on")
    sender = alice.popen(command("multicast_sender", "10.99.0.1", 2))
    assert end(sender) == "Hello world: 0\nHello world: 1\n"
    for receiver in receivers:
        assert end(receiver) == "10.99.0.1 b'Hello world: 0'\n10.99.0.1 b'Hello world: 1'\n"
    assert here.poll() is None  # heard nothing: the sender's own host is left out
    here.kill()


@pytest.mark.parametrize("net", [0, 1])
def test_the_source_address_decides_what_receivers_see_and_the_wire(lab: netns.Lab, net: int) -> None:
    alice, bob, carol = lab.host("alice"), lab.host("bob"), lab.host("carol")
    lab.link(alice, "va", bob, "v", net=0)
    lab.link(alice, "wa", carol, "v", net=1)
    alice.ip("route del 224.0.0.0/4 metric 1", "route del 224.0.0.0/4 metric 2")
    alice.ip(f"route add 224.0.0.0/4 dev {'wa' if net == 0 else 'va'}")  # the routes point the other way
    right, wrong = (bob, carol) if net == 0 else (carol, bob)
    address = f"10.99.{net}.1"
    hears, silent = (host.popen(command("source_check", address)) for host in (right, wrong))
    assert line(hears) == line(silent) == "listening"
    end(alice.popen(command("source_sender", address, 31000)))
    assert end(hears) == f"13 bytes from {address} port 31000, arrived on v\n"
    assert silent.poll() is None
    # Without it the packet takes the other wire, with the other address.
    alice.python("import multicast; multicast.sendto(b'by route', '225.17.0.18', 30000)")
    silent.wait(10)
    assert silent.returncode == 1
    assert line(silent).startswith(f"8 bytes from 10.99.{1 - net}.1 port")


# -- feeds -----------------------------------------------------------------------------------------------------------


def test_the_board_gets_all_prices_by_two_lines(start: Start) -> None:
    board = start("price_board", 5021)
    assert line(board) == "waiting for prices"
    feed = start("price_feed", 5021, 20)
    *prices, first, second = end(board).splitlines()
    assert [price.split()[:3] for price in prices] == [[str(number), str(number), "EUR"] for number in range(1, 21)]
    counts = [int(text.split()[1]) for text in (first, second)]
    assert sum(counts) == 20
    end(feed)


def test_telemetry_has_no_hole_for_those_who_join_late(start: Start) -> None:
    probe = start("telemetry", "send", 5022, 12)
    early = start("telemetry", "receive", 5022)
    assert line(early) == "1 0.0"
    wanted = "".join(f"{number} {(number - 1) / 10}\n" for number in range(1, 13))
    late = start("telemetry", "receive", 5022)
    assert end(late) == wanted
    assert early.stdout is not None
    assert early.stdout.read() == wanted.partition("\n")[2]
    assert early.wait(20) == 0
    end(probe)
