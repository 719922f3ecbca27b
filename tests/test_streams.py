from __future__ import annotations

import errno
import itertools
import json
import random
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import alone, no_descriptor_left
from hypothesis import given
from hypothesis import strategies as st

from multicast import Poller
from multicast.errors import ArgumentError, FrameError, GroupError, PacketTypeError, PeerTimeout
from multicast.streams import Acceptor, Framer, Lines, Prefixed, Raw, Stream, connect

# -- framers ---------------------------------------------------------------------------------------------------------


def cut(framer: Framer, pieces: list[bytes]) -> tuple[list[bytes], str]:
    """Feed the pieces; return the messages, and what was wrong with the stream."""
    messages = []
    try:
        for piece in pieces:
            framer.feed(piece)
            while (message := framer.take()) is not None:
                messages.append(message)
        last = framer.end()
    except FrameError as error:
        return messages, str(error)
    return messages + ([] if last is None else [last]), ""


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


FRAMERS: list[tuple[Callable[[], Framer], st.SearchStrategy[bytes]]] = [
    (lambda: Prefixed(limit=50), st.binary(max_size=50)),
    (lambda: Prefixed(2, 9), st.binary(max_size=9)),
    (lambda: Lines(limit=50), st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" ").rstrip(b"\r"))),
]
each_framer = pytest.mark.parametrize("framer, messages", FRAMERS, ids=["prefixed", "prefixed-2", "lines"])


@each_framer
@given(data=st.data())
def test_messages_come_back_however_the_bytes_are_cut(
    framer: Callable[[], Framer], messages: st.SearchStrategy[bytes], data: st.DataObject
) -> None:
    sent = data.draw(st.lists(messages, max_size=8))
    encoder = framer()
    stream = b"".join(map(encoder.encode, sent))
    cuts = data.draw(st.lists(st.integers(0, 1000)))
    for pieces in ([stream], [bytes([byte]) for byte in stream], pieces_of(stream, cuts)):
        assert cut(framer(), pieces) == (sent, "")


@each_framer
@given(data=st.data())
def test_any_bytes_give_the_same_however_they_are_cut(
    framer: Callable[[], Framer], messages: st.SearchStrategy[bytes], data: st.DataObject
) -> None:
    stream = b"".join(map(framer().encode, data.draw(st.lists(messages, max_size=3))))
    stream += data.draw(st.one_of(st.binary(max_size=120), st.text("0123456789 \r\n+-", max_size=120).map(str.encode)))
    whole = cut(framer(), [stream])
    assert cut(framer(), [bytes([byte]) for byte in stream]) == whole
    assert cut(framer(), pieces_of(stream, data.draw(st.lists(st.integers(0, 1000))))) == whole


def test_the_header_is_the_length_in_bytes_on_the_left_of_eight_characters() -> None:
    framer = Prefixed()
    assert framer.encode(b"Hello there") == b"11      Hello there"
    assert framer.encode(b"Hello there, how are you?") == b"25      Hello there, how are you?"
    assert framer.encode("Grüße".encode()) == b"7       Gr\xc3\xbc\xc3\x9fe"
    assert framer.encode(b"") == b"0       "


def test_an_empty_message_is_a_message() -> None:
    assert cut(Prefixed(), [b"0       0       1       x"]) == ([b"", b"", b"x"], "")
    assert cut(Lines(), [b"\n\r\nx"]) == ([b"", b"", b"x"], "")


@pytest.mark.parametrize(
    "header",
    [b" " * 8, b"-1      ", b"+1      ", b"1_0     ", b" 1      ", b"1 1     ", b"00000001", b"0x10    ", b"GET / HT"],
)
@pytest.mark.parametrize("tail", [b"", b"5"])
def test_what_is_no_length_is_a_frame_error(header: bytes, tail: bytes) -> None:
    assert len(header) == 8
    framer = Prefixed()
    framer.feed(framer.encode(b"good") + header + tail)
    assert framer.take() == b"good"
    with pytest.raises(FrameError, match="is not the length of a message"):
        framer.take()


def test_a_frame_over_the_limit_is_refused_at_its_header() -> None:
    framer = Prefixed(width=10, limit=1000)
    framer.feed(b"4294967296")
    with pytest.raises(FrameError, match="4294967296 bytes is announced; 1000 are allowed"):
        framer.take()
    framer = Prefixed()
    framer.feed(b"99999999")
    with pytest.raises(FrameError, match="99999999 bytes"):
        framer.take()
    framer = Prefixed(limit=3)
    framer.feed(b"3       abc4")
    assert framer.take() == b"abc"
    framer.feed(b"       ")
    with pytest.raises(FrameError):
        framer.take()


def test_an_end_in_the_middle_of_a_message_is_a_frame_error() -> None:
    for rest in (b"1", b"1       ", b"3       ab"):
        assert cut(Prefixed(), [rest]) == ([], "the stream has ended in the middle of a message")


def test_a_line_ends_with_line_feed_or_both_or_the_end_of_the_stream() -> None:
    assert cut(Lines(), [b"a\nb\r", b"\nc\rd\n\re"]) == ([b"a", b"b", b"c\rd", b"\re"], "")


def test_a_line_over_the_limit_is_a_frame_error_also_without_its_end() -> None:
    for stream in (b"ok\nabcd\n", b"ok\nabcd", b"ok\nabc\r\n"):
        assert cut(Lines(limit=3), [stream]) == ([b"ok"], "a line is longer than 3 bytes")
    assert cut(Lines(limit=3), [b"abc\nabc"]) == ([b"abc", b"abc"], "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lines().encode(b"a\nb"),
        lambda: Lines().encode(b"a\r"),
        lambda: Lines(3).encode(b"four"),
        lambda: Lines(0),
        lambda: Prefixed(limit=3).encode(b"four"),
        lambda: Prefixed(width=0),
        lambda: Prefixed(width=2, limit=100),
        lambda: Prefixed(width=True),
    ],
)
def test_what_a_framer_cannot_carry_is_an_argument_error(make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError):
        make()


@pytest.mark.parametrize(
    "make",
    [lambda: Lines(5), lambda: Prefixed(limit=5), lambda: Prefixed(1, 5), lambda: Prefixed(2, 99)],
    ids=["lines", "prefixed", "narrow", "full"],
)
def test_a_message_as_long_as_the_limit_is_carried(make: Callable[[], Lines | Prefixed]) -> None:
    framer = make()
    message = b"x" * framer.limit
    framer.feed(framer.encode(message))
    assert framer.take() == message
    with pytest.raises(ArgumentError, match=f"{framer.limit} bytes"):
        framer.encode(message + b"x")


@pytest.mark.parametrize("kind, limit", [(Lines, 65536), (Prefixed, 1048576)])
def test_the_limit_when_none_is_given(kind: type[Lines | Prefixed], limit: int) -> None:
    framer = kind()
    assert len(framer.encode(bytes(limit))) > limit
    with pytest.raises(ArgumentError, match=f"{limit} bytes"):
        framer.encode(bytes(limit + 1))


def test_an_empty_line_is_not_measured_by_what_follows_it() -> None:
    assert cut(Lines(limit=3), [b"\nabc\n\nabc"]) == ([b"", b"abc", b"", b"abc"], "")


def test_without_framing_bytes_come_as_they_are() -> None:
    framer = Raw()
    framer.feed(b"one")
    framer.feed(b"two")
    assert (framer.take(), framer.take()) == (b"onetwo", None)
    assert framer.encode(b"three") == b"three"
    assert cut(Raw(), [b"a", b"", b"b\n"]) == ([b"a", b"b\n"], "")


# -- streams ---------------------------------------------------------------------------------------------------------


class Talker(Stream):
    """Writes down what happens to it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.events: list[object] = []
        self.writes = 0
        super().__init__(*args, **options)

    def handle_connected(self) -> None:
        self.events.append("connected")

    def handle_message(self, message: bytes) -> object:
        self.events.append(message)
        return True  # means nothing here

    def handle_drained(self) -> None:
        self.events.append("drained")

    def handle_end(self) -> None:
        self.events.append("end")

    def handle_close(self, error: Exception | None) -> None:
        self.events.append(error if error is None else type(error))

    def handle_write(self) -> None:
        self.writes += 1
        super().handle_write()

    @property
    def text(self) -> bytes:
        return b"".join(event for event in self.events if isinstance(event, bytes))


class Echo(Talker):
    def handle_message(self, message: bytes) -> object:
        super().handle_message(message)
        return self.write(message)

    def handle_end(self) -> None:
        super().handle_end()
        self.finish()


class LineTalker(Talker):
    framing = Lines


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(clock: Clock) -> Iterator[Poller]:
    with Poller(clock=clock) as poller:
        yield poller


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The ends of a TCP connection: ours, to be made a stream, and the peer's, with a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname(), timeout=10)
        ours, _ = server.accept()
    with ours, peer:
        yield ours, peer


Pair = tuple[socket.socket, socket.socket]


def reset(peer: socket.socket) -> None:
    """Close a connection the hard way."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def read_all(peer: socket.socket) -> bytes:
    data = bytearray()
    while piece := peer.recv(65536):
        data += piece
    return bytes(data)


def turns(poller: Poller, count: int = 5) -> None:
    for _ in range(count):
        poller.poll()


def test_messages_go_both_ways(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=poller)
    peer.sendall(b"one\ntwo\nthr")
    poller.run_until(lambda: len(stream.events) == 3)
    assert stream.write("grün")
    assert stream.write(b"blau")
    assert stream.write(bytearray(b"rot"))  # type: ignore[arg-type]
    assert peer.recv(100) == "grün\nblau\nrot\n".encode()
    peer.sendall(b"ee\n")
    poller.run_until(lambda: len(stream.events) == 4)
    assert stream.events == ["connected", b"one", b"two", b"three"]
    assert stream.peer == peer.getsockname()
    stream.close()
    stream.close()
    assert stream.events[4:] == [None]
    assert not poller.polling


def test_any_stream_socket_will_do(poller: Poller) -> None:
    left, right = socket.socketpair()
    echo, talker = Echo(left, poller=poller), Talker(right, poller=poller)
    talker.write("hello")
    talker.finish()
    poller.run_until(lambda: "end" in talker.events)
    talker.finish()
    poller.run_until(lambda: talker.closed)
    assert talker.events == ["connected", b"hello", "end", None]
    assert echo.closed


def test_the_framer_may_be_given_or_come_from_the_class(poller: Poller, pair: Pair) -> None:
    framer = Prefixed(limit=10)
    assert Stream(pair[0], framer, poller=poller).framer is framer
    assert isinstance(LineTalker(pair[1], poller=poller).framer, Lines)
    assert isinstance(Stream(socket.socket(), poller=poller).framer, Raw)


def test_writing_is_watched_only_while_there_is_something_to_write(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = Talker(ours, poller=poller)
    turns(poller)
    assert stream.writes == 1  # which said that the connection stands
    assert stream.write("small")
    turns(poller)
    assert stream.writes == 1  # it went at once
    while not stream.waiting:
        stream.write(b"x" * 100_000)
    turns(poller)
    assert stream.writes == 1
    stream.finish()
    assert peer.recv(5) == b"small"
    peer.settimeout(0)
    while not stream.events.count("end") and not stream._stream_finished:
        poller.poll()
        try:
            while peer.recv(65536):
                pass
        except BlockingIOError:
            pass
    turns(poller)
    seen = stream.writes
    turns(poller)
    assert stream.writes == seen > 1


def test_partial_writes_lose_and_repeat_nothing(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, lambda s, poller: Echo(s, poller=poller, high_water=10_000), poller=poller)
    client = connect("127.0.0.1", acceptor.address.port, Talker, poller=poller, limit=10_000_000)
    sent = b"".join(struct.pack("I", number) for number in range(1_000_000))
    assert not client.write(sent)
    client.finish()
    poller.run_until(lambda: "end" in client.events)
    assert client.text == sent
    assert "drained" in client.events
    client.close()
    acceptor.close()


def test_what_is_written_before_the_connection_stands_is_sent_then(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, Echo, poller=poller)
    client = connect("127.0.0.1", acceptor.address.port, Talker, poller=poller)
    assert client.write("early")
    client.finish()
    assert client.events == []
    assert not client.write("late")
    poller.run_until(lambda: client.closed and not acceptor.streams)
    assert client.events == ["connected", b"early", "end", None]
    assert acceptor.streams == ()
    acceptor.close()


def test_streams_may_be_equal_to_each_other_and_so_have_no_hash(poller: Poller) -> None:
    class Equal(Echo):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    acceptor = Acceptor("127.0.0.1", 0, Equal, poller=poller, max_per_host=2)
    clients = [connect("127.0.0.1", acceptor.address.port, Talker, poller=poller) for _ in range(2)]
    for client in clients:
        client.write("hello")
    poller.run_until(lambda: all(client.text == b"hello" for client in clients))
    clients[0].close()
    poller.run_until(lambda: len(acceptor.streams) == 1)
    clients[1].close()
    poller.run_until(lambda: not acceptor.streams)
    acceptor.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_families_connect(poller: Poller, host: str) -> None:
    acceptor = Acceptor(host, 0, Echo, poller=poller)
    client = connect(host, acceptor.address.port, Talker, source_ip=host, poller=poller)
    client.write("hello")
    poller.run_until(lambda: client.text == b"hello")
    (server,) = acceptor.streams
    assert server.peer == client.socket.getsockname()  # type: ignore[union-attr]
    assert client.peer is not None
    assert client.peer[:2] == (host, acceptor.address.port)
    client.close()
    poller.run_until(lambda: not acceptor.streams)
    acceptor.close()


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_refused_connection_is_told_with_advice(poller: Poller) -> None:
    port = refused_port()
    client = connect("127.0.0.1", port, Talker, poller=poller)
    assert not client.closed  # it is told by the poller, however early it is known
    poller.run_until(lambda: client.closed)
    assert client.events == [ConnectionRefusedError]
    assert f"No program listens at 127.0.0.1:{port}" in client.error.__notes__[0]  # type: ignore[union-attr]


def test_a_failure_nobody_handles_leaves_poll(poller: Poller) -> None:
    connect("127.0.0.1", refused_port(), poller=poller)
    with pytest.raises(ConnectionRefusedError):
        poller.loop()
    assert not poller.polling


@pytest.mark.needs_namespaces
def test_an_address_without_a_route_fails_the_same_way(poller: Poller) -> None:
    client = connect("192.0.2.1", 9, Talker, poller=poller)
    poller.run_until(lambda: client.closed)
    assert client.events == [OSError]
    assert isinstance(client.error, OSError)
    assert client.error.errno == errno.ENETUNREACH


def test_a_connection_not_made_in_time_fails(clock: Clock, timed: Poller) -> None:
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)  # room for one; those after it get no answer
        first.connect(server.getsockname())
        second.setblocking(False)
        second.connect_ex(server.getsockname())
        client = connect("127.0.0.1", server.getsockname()[1], Talker, stall=10, poller=timed)
        turns(timed)
        clock.now += 9.9
        turns(timed)
        assert client.events == []
        clock.now += 0.2
        timed.poll()
        assert client.events == [TimeoutError]
        assert "does not answer" in client.error.__notes__[0]  # type: ignore[union-attr]


def test_when_the_peer_has_finished_we_may_go_on(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=poller)
    peer.sendall(b"question\nand the rest")
    peer.shutdown(socket.SHUT_WR)
    poller.run_until(lambda: "end" in stream.events)
    assert stream.events == ["connected", b"question", b"and the rest", "end"]
    turns(poller)
    assert stream.writes == 1  # an end that stays readable does not keep it busy
    stream.write("answer")
    stream.finish()
    assert stream.events[4:] == [None]
    assert read_all(peer) == b"answer\n"


def test_when_we_have_finished_the_peer_may_go_on(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=poller)
    stream.write("question")
    stream.finish()
    poller.run_until(lambda: stream.events)
    assert read_all(peer) == b"question\n"
    peer.sendall(b"long\nanswer\n")
    peer.close()
    poller.run_until(lambda: stream.closed)
    assert stream.events == ["connected", b"long", b"answer", "end", None]


def test_by_default_an_end_is_answered_after_everything_was_sent(poller: Poller, pair: Pair) -> None:
    class Repeat(Stream):
        def handle_message(self, message: bytes) -> None:
            self.write(message * 100)

    ours, peer = pair
    stream = Repeat(ours, poller=poller)
    peer.sendall(b"x" * 10_000)
    peer.shutdown(socket.SHUT_WR)
    poller.run_until(lambda: stream.waiting or stream.closed)
    peer.settimeout(0)
    got = 0
    while not stream.closed:
        poller.poll()
        try:
            while data := peer.recv(65536):
                got += len(data)
        except BlockingIOError:
            pass
    peer.settimeout(10)
    assert got + len(read_all(peer)) == 1_000_000
    assert stream.error is None


def test_a_reset_is_an_error_of_this_stream_after_what_was_said_before(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=poller)
    poller.run_until(lambda: stream.events)
    peer.sendall(b"last words\n")
    reset(peer)
    poller.run_until(lambda: stream.closed)
    assert stream.events == ["connected", b"last words", ConnectionResetError]
    assert "broken the connection off" in stream.error.__notes__[0]  # type: ignore[union-attr]
    assert stream.write("nobody") is False


def test_writing_to_a_peer_that_is_gone_raises_nothing(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=poller)
    poller.run_until(lambda: stream.events)
    peer.sendall(b"last words\n")
    reset(peer)
    while stream.write("more"):
        pass
    assert stream.events == ["connected"]
    poller.run_until(lambda: stream.closed)
    assert stream.events[:2] == ["connected", b"last words"]
    assert isinstance(stream.error, ConnectionResetError | BrokenPipeError)


def test_a_reset_is_noticed_while_reading_is_paused(poller: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=poller)
    poller.run_until(lambda: stream.events)
    stream.pause()
    peer.sendall(b"last words\n")
    reset(peer)
    turns(poller)
    assert stream.events == ["connected"]
    assert not stream.write("more")
    stream.resume()
    poller.run_until(lambda: stream.closed)
    assert stream.events == ["connected", b"last words", ConnectionResetError]


def test_a_peer_that_resets_before_it_is_greeted_is_no_trouble(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, Echo, poller=poller)
    reset(socket.create_connection(acceptor.address[:2]))
    client = connect("127.0.0.1", acceptor.address.port, Talker, poller=poller)
    client.write("hello")
    poller.run_until(lambda: client.text == b"hello")
    assert len(acceptor.streams) == 1
    assert acceptor.accepted == 2
    client.close()
    poller.run_until(lambda: not acceptor.streams)
    acceptor.close()


def test_pause_and_resume(poller: Poller, pair: Pair) -> None:
    class OneAtATime(LineTalker):
        def handle_message(self, message: bytes) -> None:
            self.events.append(message)
            self.pause()

    ours, peer = pair
    stream = OneAtATime(ours, poller=poller)
    peer.sendall(b"1\n2\n3\n")
    poller.run_until(lambda: len(stream.events) == 2)
    turns(poller)
    assert stream.events == ["connected", b"1"]
    assert stream.pending
    stream.resume()
    poller.poll()
    assert stream.events == ["connected", b"1", b"2"]
    peer.close()
    stream.resume()
    poller.poll()
    stream.resume()
    poller.run_until(lambda: "end" in stream.events)
    assert stream.events == ["connected", b"1", b"2", b"3", "end"]
    stream.close()


def test_a_peer_that_is_gone_keeps_a_paused_stream_not_busy(poller: Poller) -> None:
    class Counting(LineTalker):
        calls = 0

        def handle_read(self) -> None:
            self.calls += 1
            super().handle_read()

    for close in (socket.socket.close, reset):
        with socket.create_server(("127.0.0.1", 0)) as server:
            peer = socket.create_connection(server.getsockname(), timeout=10)
            stream = Counting(server.accept()[0], poller=poller)
        poller.run_until(lambda: stream.events)  # noqa: B023
        stream.finish()
        stream.pause()
        peer.sendall(b"last words\n")
        close(peer)
        turns(poller, 50)
        assert stream.calls + stream.writes <= 5
        assert stream.events == ["connected"]
        stream.resume()
        poller.run_until(lambda: stream.closed)  # noqa: B023
        assert stream.events[:2] == ["connected", b"last words"]


# -- slow and silent peers -------------------------------------------------------------------------------------------


def test_who_does_not_take_answers_is_not_listened_to(poller: Poller, pair: Pair) -> None:
    class Generous(LineTalker):
        def handle_message(self, message: bytes) -> None:
            self.events.append(message)
            self.write(message * 500)

    ours, peer = pair
    for end in pair:  # with small buffers of the kernel there are fewer questions to answer
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    stream = Generous(ours, poller=poller, high_water=50_000, limit=100_000)
    peer.settimeout(0)
    questions = b"x" * 99 + b"\n"
    sent = 0
    try:
        while True:
            sent += peer.send(questions * 100)
            turns(poller, 2)
    except BlockingIOError:
        pass
    assert stream.waiting < 50_000 + 100_000  # the mark and one answer
    assert not stream.closed
    read = len(stream.events)
    turns(poller)
    assert len(stream.events) == read
    got = 0
    peer.setblocking(False)
    while got < sent // 100 * 49_501:
        turns(poller, 1)
        try:
            got += len(peer.recv(1_000_000))
        except BlockingIOError:
            pass
    assert len([event for event in stream.events if isinstance(event, bytes)]) == sent // 100
    assert "drained" in stream.events
    stream.close()


def test_who_is_told_more_than_the_limit_is_closed_and_the_others_hear_everything(poller: Poller) -> None:
    acceptor = Acceptor(
        "127.0.0.1", 0, lambda s, poller: LineTalker(s, poller=poller, high_water=1000, limit=2000), poller=poller
    )
    with socket.create_connection(acceptor.address[:2]):  # never reads
        listeners = [connect("127.0.0.1", acceptor.address.port, LineTalker, poller=poller) for _ in range(3)]
        poller.run_until(lambda: len(acceptor.streams) == 4 and all(listener.events for listener in listeners))
        everybody = acceptor.streams
        said = 0
        line = "y" * 900
        while not any(stream.closed for stream in everybody):
            # The talker goes on until somebody has had enough, and waits for those who listen.
            for stream in everybody:
                stream.write(line)
            said += 1
            while not all(len(listener.events) == said + 1 for listener in listeners):
                poller.poll(None)
            poller.poll()
        (slow,) = (stream for stream in everybody if stream.closed)
        assert isinstance(slow, LineTalker)
        assert isinstance(slow.error, PeerTimeout)
        assert slow.events == ["connected", PeerTimeout]
        assert "is too slow" in str(slow.error)
        assert all(listener.events == ["connected", *[line.encode()] * said] for listener in listeners)
    acceptor.close()
    for stream in (*listeners, *acceptor.streams):
        stream.close()


def test_closing_a_slow_peer_never_happens_inside_write(poller: Poller, pair: Pair) -> None:
    stream = Talker(pair[0], poller=poller, high_water=1, limit=1)
    poller.run_until(lambda: stream.events)
    while not stream.waiting:
        stream.write(b"z" * 65536)
    assert stream.write(b"z") is False
    assert stream.write(b"z") is False
    assert stream.events == ["connected"]
    poller.poll()
    assert stream.events == ["connected", PeerTimeout]


def test_who_takes_nothing_for_the_stall_time_is_closed(clock: Clock, timed: Poller) -> None:
    ours, peer = socket.socketpair()  # not TCP, which goes on working by itself for a while
    stream = Talker(ours, poller=timed, stall=5)
    timed.poll()
    while stream.waiting < 500_000:
        stream.write(b"z" * 100_000)
    turns(timed)
    clock.now += 4
    left = stream.waiting
    while stream.waiting == left:  # it takes something, so its time begins anew
        peer.recv(65536)
        timed.poll()
    clock.now += 4
    turns(timed, 50)
    assert not stream.closed
    clock.now += 1.5
    timed.poll()
    assert isinstance(stream.error, PeerTimeout)
    assert "has taken nothing for 5 s" in str(stream.error)
    peer.close()


def test_an_idle_connection_is_closed_and_a_busy_one_not(clock: Clock, timed: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=timed, idle=10)
    turns(timed)
    for _ in range(3):
        clock.now += 9
        peer.sendall(b"still here\n")
        timed.poll(1)
        clock.now += 9
        stream.write("so am I")
        timed.poll()
    assert stream.events == ["connected", *[b"still here"] * 3]
    clock.now += 10.1
    timed.poll()
    assert isinstance(stream.error, PeerTimeout)
    assert "nothing was heard" in str(stream.error)
    assert isinstance(stream.error, TimeoutError)


def test_bytes_that_complete_no_message_do_not_count_as_life(clock: Clock, timed: Poller, pair: Pair) -> None:
    ours, peer = pair
    stream = LineTalker(ours, poller=timed, idle=10)
    turns(timed)
    for _ in range(11):
        peer.sendall(b"x")
        turns(timed, 1)
        clock.now += 1
    timed.poll()
    assert isinstance(stream.error, PeerTimeout)


# -- what handlers do ------------------------------------------------------------------------------------------------


def test_a_handler_that_raises_loses_no_message(poller: Poller, pair: Pair) -> None:
    class Fragile(LineTalker):
        def handle_message(self, message: bytes) -> None:
            self.events.append(message)
            if message.startswith(b"!"):
                self.write("oh")
                raise RuntimeError(message.decode())

    ours, peer = pair
    stream = Fragile(ours, poller=poller)
    turns(poller)
    peer.sendall(b"1\n!2\n!3\n4\n")
    peer.shutdown(socket.SHUT_WR)
    for text in ("!2", "!3"):
        with pytest.raises(RuntimeError, match=text):
            poller.poll(1)
    poller.run_until(lambda: "end" in stream.events)
    assert stream.events == ["connected", b"1", b"!2", b"!3", b"4", "end"]
    stream.close()


def test_handle_error_gets_what_a_handler_raised(poller: Poller, pair: Pair) -> None:
    class Careful(LineTalker):
        def handle_message(self, message: bytes) -> None:
            raise RuntimeError(message.decode())

        def handle_error(self, error: Exception) -> None:
            self.events.append(str(error))

    ours, peer = pair
    stream = Careful(ours, poller=poller)
    peer.sendall(b"1\n2\n")
    poller.run_until(lambda: len(stream.events) == 3)
    assert stream.events == ["connected", "1", "2"]
    stream.close()


def test_a_handler_may_close_its_stream(poller: Poller, pair: Pair) -> None:
    class Brief(LineTalker):
        def handle_message(self, message: bytes) -> None:
            super().handle_message(message)
            self.close()

    ours, peer = pair
    stream = Brief(ours, poller=poller)
    peer.sendall(b"1\n2\n")
    poller.run_until(lambda: stream.closed)
    turns(poller)
    assert stream.events == ["connected", b"1", None]


def test_a_handler_may_wait_for_the_next_message(poller: Poller, pair: Pair) -> None:
    class Nesting(LineTalker):
        depth = 0

        def handle_message(self, message: bytes) -> None:
            self.events.append(message)
            if message == b"1":
                peer.sendall(b"3\n4\n")
                poller.run_until(lambda: b"3" in self.events)
                self.events.append("after")

    ours, peer = pair
    stream = Nesting(ours, poller=poller)
    peer.sendall(b"1\n2\n")
    poller.run_until(lambda: "after" in stream.events)
    assert stream.events == ["connected", b"1", b"2", b"3", b"4", "after"]
    stream.close()


def test_a_flood_leaves_time_for_the_others(poller: Poller) -> None:
    order: list[str] = []

    class Counting(Stream):
        name = ""

        def handle_message(self, message: bytes) -> None:
            assert len(message) <= 65536
            order.append(self.name)

    flooded, quiet = socket.socketpair(), socket.socketpair()
    with flooded[1], quiet[1]:
        streams = [Counting(flooded[0], poller=poller), Counting(quiet[0], poller=poller)]
        streams[0].name, streams[1].name = "flooded", "quiet"
        turns(poller, 2)
        flooded[1].setblocking(False)
        poller.budget = 0  # so that each poll is one round
        for _ in range(10):
            try:
                while True:
                    flooded[1].send(b"x" * 65536)
            except BlockingIOError:
                pass
            quiet[1].send(b"y")
            poller.poll()
        assert order.count("flooded") == order.count("quiet") == 10
        for stream in streams:
            stream.close()


def test_a_malformed_header_closes_that_peer_alone(poller: Poller) -> None:
    class Framed(Echo):
        framing = Prefixed

    acceptor = Acceptor("127.0.0.1", 0, Framed, poller=poller)
    good = connect("127.0.0.1", acceptor.address.port, Talker, framer=Prefixed(), poller=poller)
    bad = connect("127.0.0.1", acceptor.address.port, Talker, poller=poller)
    poller.run_until(lambda: len(acceptor.streams) == 2 and good.events and bad.events)
    victim = next(stream for stream in acceptor.streams if stream.peer == bad.socket.getsockname())  # type: ignore[union-attr]
    bad.write(b"2       ok" + b"-1      ")
    poller.run_until(lambda: "end" in bad.events or bad.closed)
    good.write("still here")
    poller.run_until(lambda: good.text == b"still here")
    assert isinstance(victim.error, FrameError)
    assert isinstance(victim, Framed)
    assert victim.events == ["connected", b"ok", FrameError]
    acceptor.close()
    for stream in (good, bad, *acceptor.streams):
        stream.close()


def test_an_interest_that_others_changed_is_put_right(poller: Poller, pair: Pair) -> None:
    stream = Talker(pair[0], poller=poller)
    turns(poller)
    poller.unregister(stream)
    poller.register(stream)
    turns(poller)
    assert stream.writes == 2
    pair[1].send(b"hello")
    poller.run_until(lambda: stream.text == b"hello")


def test_a_stream_closed_by_its_constructor_tells_nobody(poller: Poller, pair: Pair) -> None:
    class Broken(Talker):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            raise RuntimeError("not today")

        def handle_close(self, error: Exception | None) -> None:
            raise AssertionError

    with pytest.raises(RuntimeError):
        Broken(pair[0], poller=poller)
    assert pair[0].fileno() == -1
    assert not poller.polling


@pytest.mark.parametrize("message", [None, 5, ["list"]])
def test_messages_are_bytes_or_text(poller: Poller, pair: Pair, message: Any) -> None:
    stream = Stream(pair[0], poller=poller)
    with pytest.raises(PacketTypeError):
        stream.write(message)


@pytest.mark.parametrize("options", [{"high_water": 0}, {"limit": 0}, {"stall": 0}, {"idle": -1}, {"limit": True}])
def test_limits_are_checked(poller: Poller, pair: Pair, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Stream(pair[0], poller=poller, **options)


class Moody(Stream):
    """Sends messages in its own time, pauses at times, and has a handler that fails at times."""

    def __init__(self, *args: Any, chance: random.Random, messages: list[bytes], **options: Any) -> None:
        super().__init__(*args, **options)
        self.chance, self.messages = chance, messages
        self.got: list[bytes] = []

    def handle_connected(self) -> None:
        self.go_on()

    def handle_drained(self) -> None:
        self.go_on()

    def go_on(self) -> None:
        while self.messages:
            if not self.write(self.messages.pop(0)):
                return
            if self.chance.random() < 0.2:
                self.poller.call_later(0.0005, self.go_on)
                return
        self.finish()

    def handle_end(self) -> None:
        pass

    def handle_message(self, message: bytes) -> None:
        self.got.append(message)
        if self.chance.random() < 0.1:
            self.pause()
            self.poller.call_later(0.0003, self.resume)
        if self.chance.random() < 0.05:
            raise RuntimeError("not in the mood")

    def handle_error(self, error: Exception) -> None:
        assert str(error) == "not in the mood"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_order_of_things_all_messages_arrive_and_both_ends_close(poller: Poller, seed: int) -> None:
    chance = random.Random(seed)
    framings: list[Callable[[], Framer]] = [lambda: Prefixed(limit=400_000), lambda: Lines(limit=400_000)]
    framing = chance.choice(framings)

    def messages() -> list[bytes]:
        sizes = [chance.choice([0, 1, 10, 1000, 200_000]) for _ in range(chance.randrange(60))]
        return [bytes(chance.choices(range(32, 127), k=10)) * (size // 10) or b"x" * size for size in sizes]

    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, chance.choice([4096, 100_000]))
    sent = messages(), messages()
    # One of them at least has to listen while it pours, or they wait for each other.
    left, right = (
        Moody(end, framing(), chance=chance, messages=list(mine), high_water=mark, limit=10**8, poller=poller)
        for end, mine, mark in zip(ends, sent, (chance.choice([1, 1000, 100_000]), 10**8), strict=True)
    )
    poller.run_until(lambda: left.closed and right.closed)
    assert (left.got, right.got) == (sent[1], sent[0])
    assert (left.error, right.error) == (None, None)


# -- accepting -------------------------------------------------------------------------------------------------------


class Patient(Acceptor):
    """Counts how often it is called."""

    calls = 0

    def handle_read(self) -> None:
        self.calls += 1
        super().handle_read()


def clients_of(acceptor: Acceptor, count: int) -> list[socket.socket]:
    return [socket.create_connection(acceptor.address[:2], timeout=10) for _ in range(count)]


@alone
def test_without_descriptors_accepting_rests_and_resumes(clock: Clock, timed: Poller) -> None:
    acceptor = Patient("127.0.0.1", 0, Echo, poller=timed)
    clients = clients_of(acceptor, 3)
    timed.poll()
    turns(timed)
    extra = clients_of(acceptor, 2)
    calls = acceptor.calls
    with no_descriptor_left():
        turns(timed, 50)
        assert acceptor.calls == calls + 1  # no spinning
        assert acceptor.exhausted == 1
        clock.now += 0.11
        turns(timed, 50)
        assert acceptor.exhausted == 2
        clients[0].sendall(b"those who are in notice nothing")
        timed.poll(1)
        timed.poll(0)
        assert clients[0].recv(100) == b"those who are in notice nothing"
    clock.now += 0.11
    turns(timed)
    assert len(acceptor.streams) == 5
    assert acceptor.accepted == 5
    for client in clients + extra:
        client.close()
    timed.run_until(lambda: not acceptor.streams)
    acceptor.close()


def test_clients_over_the_limit_wait_until_one_leaves(poller: Poller) -> None:
    acceptor = Patient("127.0.0.1", 0, Echo, max_connections=2, poller=poller)
    clients = clients_of(acceptor, 3)
    turns(poller)
    assert len(acceptor.streams) == 2
    calls = acceptor.calls
    turns(poller)
    assert acceptor.calls == calls
    clients[2].sendall(b"me too")
    clients[0].close()
    turns(poller)
    assert len(acceptor.streams) == 2
    poller.run_until(lambda: any(isinstance(s, Echo) and s.text == b"me too" for s in acceptor.streams))
    for client in clients:
        client.close()
    poller.run_until(lambda: not acceptor.streams)
    acceptor.close()


def test_one_host_cannot_take_all_places(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, Echo, max_per_host=2, poller=poller)
    clients = clients_of(acceptor, 3)
    other = socket.create_connection(acceptor.address[:2], timeout=10, source_address=("127.0.0.2", 0))
    turns(poller)
    assert [stream.peer.host for stream in acceptor.streams if stream.peer] == ["127.0.0.1"] * 2 + ["127.0.0.2"]
    assert clients[2].recv(10) == b""
    assert (acceptor.accepted, acceptor.refused) == (4, 1)
    clients[0].close()
    poller.run_until(lambda: len(acceptor.streams) == 2)
    clients.append(socket.create_connection(acceptor.address[:2], timeout=10))
    poller.run_until(lambda: len(acceptor.streams) == 3)
    for client in (*clients, other):
        client.close()
    poller.run_until(lambda: not acceptor.streams)
    assert not acceptor._acceptor_hosts
    acceptor.close()


def test_a_factory_may_refuse(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, lambda s, poller: None, poller=poller)
    (client,) = clients_of(acceptor, 1)
    turns(poller)
    assert client.recv(10) == b""
    assert (acceptor.accepted, acceptor.refused, acceptor.streams) == (1, 1, ())
    client.close()
    acceptor.close()


def test_a_factory_that_raises_closes_the_connection_and_no_other(poller: Poller) -> None:
    made: list[int] = []

    def factory(connection: socket.socket, poller: Poller) -> Stream:
        made.append(1)
        if len(made) == 2:
            raise RuntimeError("not this one")
        return Echo(connection, poller=poller)

    acceptor = Acceptor("127.0.0.1", 0, factory, poller=poller)
    clients = clients_of(acceptor, 3)
    with pytest.raises(RuntimeError):
        poller.poll(1)
    turns(poller)
    assert len(acceptor.streams) == 2
    assert clients[1].recv(10) == b""
    for client in clients:
        client.close()
    poller.run_until(lambda: not acceptor.streams)
    acceptor.close()


def test_streams_outlive_their_acceptor_and_run_on_its_poller(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, Echo, poller=poller)
    (client,) = clients_of(acceptor, 1)
    turns(poller)
    (stream,) = acceptor.streams
    acceptor.close()
    acceptor.close()
    assert stream in poller
    client.sendall(b"hello")
    poller.run_until(lambda: stream.waiting == 0 and isinstance(stream, Echo) and stream.text)
    assert client.recv(10) == b"hello"
    client.close()
    poller.run_until(lambda: stream.closed)
    assert acceptor.streams == ()


def test_a_port_can_be_used_again_at_once(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, Stream, poller=poller)
    (client,) = clients_of(acceptor, 1)
    turns(poller)
    for stream in acceptor.streams:
        stream.close()  # this side closes first, so it is this side that remembers the connection for a minute
    client.close()
    acceptor.close()
    Acceptor("127.0.0.1", acceptor.address.port, Stream, poller=poller).close()


def test_a_port_in_use_is_told_with_advice(poller: Poller) -> None:
    acceptor = Acceptor("127.0.0.1", 0, Stream, poller=poller)
    with pytest.raises(OSError, match="in use") as caught:
        Acceptor("127.0.0.1", acceptor.address.port, Stream, poller=poller)
    assert "ss -tlnp" in caught.value.__notes__[0]
    acceptor.close()


@pytest.mark.parametrize("host", ["localhost", "", "239.1.2.3", "127.0.0.1 ", None])
def test_hosts_are_addresses_and_nothing_is_looked_up(poller: Poller, host: Any) -> None:
    with pytest.raises(GroupError):
        connect(host, 4000, poller=poller)
    with pytest.raises(GroupError):
        Acceptor(host, 4000, Stream, poller=poller)


def test_arguments_are_checked_before_a_socket_is_opened(poller: Poller) -> None:
    for port in (0, 70000, "80", True):
        with pytest.raises(ArgumentError):
            connect("127.0.0.1", port, poller=poller)  # type: ignore[arg-type]
    with pytest.raises(GroupError):
        connect("127.0.0.1", 80, source_ip="::1", poller=poller)
    with pytest.raises(ArgumentError):
        Acceptor("127.0.0.1", 0, None, poller=poller)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):
        Acceptor("127.0.0.1", 0, Stream, max_connections=0, poller=poller)
    with pytest.raises(OSError, match="Cannot assign") as caught:
        Acceptor("192.0.2.1", 0, Stream, poller=poller)
    assert "addresses there are" in caught.value.__notes__[0]


def test_a_factory_that_fails_closes_what_connect_opened(poller: Poller) -> None:
    def factory(opened: socket.socket, poller: Poller) -> Stream:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        connect("127.0.0.1", refused_port(), factory, poller=poller)


def test_a_stream_that_moves_takes_its_time_limits_along(clock: Clock, timed: Poller, poller: Poller) -> None:
    left, right = socket.socketpair()
    stream = Talker(left, poller=poller, idle=10)
    turns(poller)
    timed.register(stream)
    assert not poller.polling
    clock.now += 10.1
    turns(timed)
    assert stream.events == ["connected", PeerTimeout]
    right.close()


# -- all at once -----------------------------------------------------------------------------------------------------


def test_a_thousand_clients_four_bad_ones_and_a_flood_of_packets_on_one_poller() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "conversations.py"
    # Where the system allows fewer descriptors, as many clients as it does.
    clients = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100)
    command = [sys.executable, str(script), "--json", "--clients", str(clients), "--seconds", "1", "--rate", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["talked"]["sent"] == found["talked"]["echoed"] > clients * 1000
    assert (found["talked"]["wrong"], found["talked"]["failed"]) == (0, 0)
    assert found["talked"]["liar_refused"]
    assert found["served"]["delivered"] + found["served"]["dropped"] == found["emitted"]["packets"] == 10000
    assert found["good"]
