"""Subclasses may give their attributes the names that come to mind: the base classes do not use them."""

from __future__ import annotations

from typing import Any

import pytest

import multicast
from multicast import feeds
from multicast.discovery import Requester, Responder
from multicast.streams import Acceptor, Stream, connect

# What programs call things of their own. A base class that used one of these would break them without a word.
LIKELY = """
_accept _batch _buffer _cache _client _close _conn _count _counter _data _deliver _done _drop _dropped _due
_ended _failure _file _full _handler _handle _index _items _join _last _left _limit _lock _log _logger _loop
_name _next _offload _open _out _messages _message _packet _packets _parse _port _prepare _process _program
_queue _rate _read _reader _received _refused _rest _results _room _run _seen _send _sent _seq _sequence _size
_sock _source _start _state _stats _stop _take _taken _thread _timer _total _unread _update _wait _wanted _write
_writer
""".split()  # noqa: SIM905 -- sixty quotation marks say nothing


class Sender(multicast.Multicaster):
    def __iter__(self) -> Any:
        yield b"x"


class Listener(multicast.MulticastListener):
    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        pass


class Unicast(multicast.DatagramListener):
    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        pass


class Asking(Requester):
    def handle_reply(self, packet: bytes, addr: multicast.Address) -> None:
        pass


class Answering(Responder):
    def handle_request(self, packet: bytes, addr: multicast.Address) -> None:
        pass


class Talking(Stream):
    def handle_message(self, message: bytes) -> None:
        pass


class Published(feeds.Publisher):
    pass


class Subscribed(feeds.Subscriber):
    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        pass


class Served(feeds.RepairServer):
    pass


class Merged(feeds.Arbiter):
    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        pass


def test_likely_names_are_free_in_streams(poller: multicast.Poller) -> None:
    with Acceptor("127.0.0.1", 0, Talking, poller=poller) as acceptor:
        host, port = acceptor.address[:2]
        stream = connect(host, port, Talking, poller=poller)
        assert [name for name in LIKELY if hasattr(stream, name) or hasattr(acceptor, name)] == []
        stream.close()
        poller.poll(1)


def test_likely_names_are_free_in_an_inbox(poller: multicast.Poller) -> None:
    with multicast.Inbox(poller=poller) as inbox:
        assert [name for name in LIKELY if hasattr(inbox, name)] == []


@pytest.mark.parametrize(
    "cls,arguments",
    [(Sender, {}), (Listener, {}), (Unicast, {"port": 0}), (Asking, {"packet": None}), (Answering, {}), (Published, {}),
     (Subscribed, {"lines": "239.1.2.3:5000"}), (Served, {"lines": "239.1.2.3:5000", "port": 0}),
     (Merged, {"lines": "239.1.2.3:5000"})],
)
def test_likely_names_are_free(cls: Any, arguments: dict[str, Any], poller: multicast.Poller) -> None:
    with cls(poller=poller, **arguments) as instance:
        assert [name for name in LIKELY if hasattr(instance, name)] == []
