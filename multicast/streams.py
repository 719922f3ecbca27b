"""TCP on the same poller: `Acceptor` takes connections, `connect` makes one, a `Stream` is one, framers cut it up.

TCP carries bytes and no borders between messages: what was written at once may arrive in pieces or together with
the next. So each stream has a framer, an object without I/O that takes bytes as they come and gives messages.

What a stream does about its peer:

* It reads at most 64 KiB in a turn, so a flood on one connection leaves time for the others.
* What the peer does not take at once is kept, and sent when the socket is writable again. When more than
  `high_water` bytes are kept, the stream stops listening to that peer until half of it is gone: whoever does not
  take answers is not asked for more questions, and echoing or answering needs no code for it. (Two peers that both
  pour out unasked more than that and only then listen would wait for each other; `stall` ends it.)
* When more than `limit` bytes are kept, which can only happen when others cause the writing, as in a chat, the peer
  is too slow and its connection is closed with `PeerTimeout`. So it is when it takes nothing for `stall` seconds.
* With `idle`, a connection on which no message was completed and nothing sent for so many seconds is closed with
  `PeerTimeout`. A peer that sends a byte now and then does not complete messages.
* Each direction ends on its own. When the peer has finished, `handle_end` is called and writing goes on;
  `finish` ends our own direction after all that was written.
* Whatever goes wrong with a connection ends that connection alone, with `handle_close(error)`.

What a peer can make us keep is `limit` and one message on the way out, and one message of the framer's limit and
64 KiB on the way in; times `Acceptor(max_connections=...)`.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket as _socket
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from . import batch, sockets
from .batch import Address
from .errors import ArgumentError, FrameError, PeerTimeout, advise
from .poller import Dispatcher, Poller, Timer

__all__ = ["Acceptor", "Framer", "Lines", "Prefixed", "Raw", "Stream", "connect"]

_READ_AT_ONCE = 65536
_WRITE_AT_ONCE = 262144
_ACCEPT_AT_ONCE = 64
# When no descriptor is left, the connection stays in the queue and the socket stays readable: look again later.
_REST = 0.1
# Nothing to watch for. Errors and hang-ups are reported all the same, and a hang-up never goes away: once is enough.
_NOTHING = select.EPOLLERR | select.EPOLLET

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# accept(2) hands over errors of the connection that is being taken; the next may be good.
_NOT_THIS_ONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)


# -- framers -------------------------------------------------------------------------------------------------------


class Framer(Protocol):
    """What a stream asks of a framer: bytes in, messages out, and no I/O.

    A framer belongs to one stream, for it keeps the bytes of the message that is not complete yet.
    """

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""

    def take(self) -> bytes | None:
        """Return the next complete message, None when there is none yet. Raises `FrameError`."""

    def end(self) -> bytes | None:
        """Called when no more bytes come and `take` has returned None: return what is left, if that is a message.

        Raises `FrameError` when it is part of one.
        """

    def encode(self, message: bytes) -> bytes:
        """Return the bytes that carry the message. Raises `ArgumentError` when they cannot."""


class Raw:
    """No framing: messages are the bytes as they come, cut wherever the network cut them."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._data += data

    def take(self) -> bytes | None:
        """Return what has come since the last call, None when that is nothing."""
        data, self._data = self._data, b""
        return data or None

    def end(self) -> None:
        """There is never anything left."""

    def encode(self, message: bytes) -> bytes:
        """Return the message as it is."""
        return message


class Lines:
    r"""Messages are lines: they end with a line feed, or with carriage return and line feed; neither is in the message.

    A last line without its line feed is a message too, as it is in a file. A line longer than `limit` bytes is a
    `FrameError`.

    >>> framer = Lines()
    >>> framer.feed(b"one\r\ntw")
    >>> framer.take(), framer.take()
    (b'one', None)
    >>> framer.encode(b"three")
    b'three\n'
    """

    def __init__(self, limit: int = 65536) -> None:
        self.limit = _size("limit", limit)
        self._data = bytearray()
        self._searched = 0  # in these there is no line feed; without it, bytes that trickle in cost their square

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._data += data

    def take(self) -> bytes | None:
        """Return the next line, None when none is complete. Raises `FrameError` when it is too long."""
        data = self._data
        at = data.find(b"\n", self._searched)
        self._searched = len(data) if at < 0 else 0
        if (len(data) if at < 0 else at) > self.limit:
            raise FrameError(f"a line is longer than {self.limit} bytes")
        if at < 0:
            return None
        line = bytes(data[:at])
        del data[: at + 1]
        return line.removesuffix(b"\r")

    def end(self) -> bytes | None:
        """Return the last line if it has no line feed."""
        line, self._data, self._searched = bytes(self._data), bytearray(), 0
        return line or None

    def encode(self, message: bytes) -> bytes:
        """Return the line. Raises `ArgumentError` for a message that is not one line, or is too long."""
        if b"\n" in message or message.endswith(b"\r"):
            raise ArgumentError(f"a line cannot contain a line break: {message!r:.60}; send its parts one by one")
        if len(message) > self.limit:
            raise ArgumentError(f"a line has at most {self.limit} bytes, not {len(message)}")
        return message + b"\n"


class Prefixed:
    """Each message has its length in front: a decimal number, left-aligned in `width` characters.

    The length counts the bytes of the message, not its characters. A message may be empty. One longer than `limit`
    bytes is a `FrameError` as soon as its header is there, before any of it is kept; so is a header that is
    anything else than digits, without leading zeros, and then spaces.

    >>> framer = Prefixed()
    >>> framer.encode(b"Hello there")
    b'11      Hello there'
    >>> framer.feed(b"5       Hello11      Hel")
    >>> framer.take(), framer.take()
    (b'Hello', None)
    """

    _HEADER = re.compile(rb"(0|[1-9][0-9]*) *")

    def __init__(self, width: int = 8, limit: int = 1048576) -> None:
        self.width = _size("width", width)
        self.limit = _size("limit", limit)
        if len(str(limit)) > width:
            raise ArgumentError(f"limit must fit in {width} digits, and {limit} does not")
        self._data = bytearray()
        self._length = -1  # of the message whose header has been read

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._data += data

    def take(self) -> bytes | None:
        """Return the next message, None when none is complete. Raises `FrameError` for what cannot be a header."""
        data = self._data
        if self._length < 0:
            if len(data) < self.width:
                return None
            header = bytes(data[: self.width])
            match = self._HEADER.fullmatch(header)
            if match is None:
                raise FrameError(f"{header!r} is not the length of a message, left-aligned in {self.width} characters")
            length = int(match[1])
            if length > self.limit:
                raise FrameError(f"a message of {length} bytes is announced; {self.limit} are allowed")
            self._length = length
            del data[: self.width]
        if len(data) < self._length:
            return None
        message = bytes(data[: self._length])
        del data[: self._length]
        self._length = -1
        return message

    def end(self) -> None:
        """Raise `FrameError` when a message has begun and is not complete."""
        if self._data or self._length >= 0:
            raise FrameError("the stream has ended in the middle of a message")

    def encode(self, message: bytes) -> bytes:
        """Return header and message. Raises `ArgumentError` for one that is too long."""
        if len(message) > self.limit:
            raise ArgumentError(f"a message has at most {self.limit} bytes here, not {len(message)}")
        return b"%-*d%b" % (self.width, len(message), message)


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name} must be a number, 1 or more, not {value!r}")
    return value


def _seconds(name: str, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise ArgumentError(f"{name} must be None or more than 0 seconds, not {value!r}")
    return value


# -- streams -------------------------------------------------------------------------------------------------------


class Stream(Dispatcher):
    """One connection: `write` sends messages, `handle_message` gets them.

    `socket` is a connected stream socket, or one that is being connected; it belongs to the stream from now on.
    `framer` cuts the bytes into messages; without one, the class attribute `framing` makes it, which subclasses set:
    ``framing = Lines``. The stream is registered with `poller`, by default the default poller.

    `high_water` and `limit` are bytes kept for the peer, `stall` and `idle` seconds (None: no limit); what they do
    is said at the head of this module. A connection that is not made within `stall` seconds fails as well.

    Subclasses override what they need of `handle_connected`, `handle_message`, `handle_end`, `handle_drained` and
    `handle_close`. They are called by the poller. What they raise leaves `poll`, or is given to `handle_error(exc)`
    where there is one; messages that were read already come in the next `poll`.
    """

    #: Makes the framer of each stream: a class, or a function without arguments.
    framing: Callable[[], Framer] = Raw
    #: Where the peer is; None until the connection stands.
    peer: Address | None = None
    #: Why the stream was closed: None while it is open, and after an orderly end.
    error: Exception | None = None

    _stream_timer: Timer | None = None
    _stream_alive = False  # the constructor is done: handlers may be called
    _stream_dialled = False  # made by connect()
    _stream_opening = True  # the connection does not stand yet, or handle_connected is still to be called
    _stream_acceptor: Acceptor | None = None

    def __init__(
        self,
        socket: _socket.socket,
        framer: Framer | None = None,
        *,
        high_water: int = 262144,
        limit: int = 4194304,
        stall: float | None = 30.0,
        idle: float | None = None,
        poller: Poller | None = None,
    ) -> None:
        self.high_water = _size("high_water", high_water)
        self.limit = max(_size("limit", limit), high_water)
        self.stall = _seconds("stall", stall)
        self.idle = _seconds("idle", idle)
        self.framer: Framer = type(self).framing() if framer is None else framer
        sockets.prepare_stream(socket)
        super().__init__(socket, poller)
        self._flags = select.EPOLLOUT
        self._stream_out = bytearray()
        self._stream_above = False  # over the high water mark, and not told yet that it has fallen
        self._stream_paused = False
        # While a turn of reading is on, what it causes to be written is kept, and sent in one go at its end.
        self._stream_corked = False
        self._stream_pending = False  # the framer may have messages that were not delivered
        # The peer's direction: it has ended; the framer gave its rest; handle_end was called.
        self._stream_ended = self._stream_rested = self._stream_told = False
        # Our own: finish() was called; and the end was sent, or nothing can be sent any more.
        self._stream_finishing = self._stream_finished = False
        self._stream_failure: Exception | None = None  # sending has failed; what the peer said before is still read
        self._stream_last = self._stream_progress = 0.0

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ", opening" if self._stream_opening else ""
        return f"<{type(self).__name__} with {_text(self.peer)}{state}>"

    # What subclasses override.

    def handle_connected(self) -> None:
        """Called once, before any other handler, when the connection stands."""

    def handle_message(self, message: bytes) -> object:
        """Called with each message, complete and without its framing. What it returns is ignored."""

    def handle_end(self) -> None:
        """Called once when the peer has finished sending. Writing is possible still.

        As it is here, it answers in kind, with `finish`: what was written goes out, then the stream is closed.
        """
        self.finish()

    def handle_drained(self) -> None:
        """Called when the bytes kept have fallen to half of `high_water`, after `write` had returned False."""

    def handle_close(self, error: Exception | None) -> None:
        """Called once, when the stream is closed: with None by `close` or after both sides have finished.

        Otherwise `error` says what went wrong: an `OSError` of the connection, `FrameError` or `PeerTimeout`. As it
        is here, it raises the error if the stream was made by `connect`, so that it leaves `poll`; the failures of
        peers that came by themselves are theirs, and `error` keeps them.
        """
        if error is not None and self._stream_dialled:
            raise error

    # What callers use.

    def write(self, message: str | bytes) -> bool:
        """Send a message, bytes-like or text (as UTF-8); return whether more may follow at once.

        It never waits and never calls handlers. False means: more than `high_water` bytes are kept for the peer, so
        hold on until `handle_drained`; or this stream is finished or closed, and the message goes nowhere. Raises
        `ArgumentError` for what the framer cannot carry and `PacketTypeError` for what is neither bytes nor text.
        """
        data = self.framer.encode(batch.encode(message, sys.maxsize))
        if self.socket is None or self._stream_finishing or self._stream_finished:
            return False
        out = self._stream_out
        if len(out) > self.limit:
            self._stream_give_up(PeerTimeout(f"{_text(self.peer)} is too slow: {len(out)} bytes wait for it"))
            return False
        if not out:
            self._stream_progress = self.poller.time()
        out += data
        if len(out) == len(data) and not self._stream_corked and not self._stream_opening:
            self._stream_flush()
        if len(out) > self.high_water:
            self._stream_above = True
        self._stream_watch()
        return not (self._stream_above or self._stream_finished)

    def finish(self) -> None:
        """Send nothing more: when all that was written has gone, tell the peer so. It may go on talking.

        The stream is closed when both have finished. A peer that never does keeps it open, unless `idle` is set.
        """
        if self.socket is None or self._stream_finishing:
            return
        self._stream_finishing = True
        self._stream_end_if_sent()
        self._stream_watch()

    def pause(self) -> None:
        """Read nothing more from the peer until `resume`; soon it will not be able to send. For relays."""
        self._stream_paused = True
        self._stream_watch()

    def resume(self) -> None:
        """Read again."""
        self._stream_paused = False
        self._stream_watch()
        if self._stream_pending:
            self.poller.revisit(self)

    @property
    def waiting(self) -> int:
        """How many bytes are kept for the peer, besides those the kernel holds."""
        return len(self._stream_out)

    @property
    def pending(self) -> bool:
        """Whether bytes were read from the socket that are not delivered yet."""
        return self._stream_pending

    def close(self) -> None:
        """Close the connection now. What was written and not sent is dropped; see `finish`. Idempotent."""
        self._stream_shut(None)

    # Opening and closing.

    def _finish_construction(self) -> None:
        if self.socket is None:
            return
        try:
            self.peer = Address(self.socket.getpeername())
        except OSError:
            pass  # being connected
        self._stream_alive = True
        super()._finish_construction()

    def _attached(self) -> None:
        self._stream_last = self._stream_progress = self.poller.time()  # clocks of two pollers need not agree
        self._stream_set_timer()

    def _detached(self, poller: Poller) -> None:
        if self._stream_timer is not None:
            self._stream_timer.cancel()

    def _stream_open(self) -> None:
        """The socket is writable for the first time: the connection stands, or has failed."""
        socket = self.socket
        assert socket is not None  # noqa: S101 -- the poller calls only what is registered
        number = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            self._stream_shut(self._stream_explained(OSError(number, os.strerror(number)), "connect"))
            return
        try:
            self.peer = Address(socket.getpeername())
        except OSError as error:
            self._stream_shut(self._stream_explained(error, "connect"))
            return
        self._stream_opening = False
        self._stream_touch()
        self._stream_set_timer()
        self._stream_watch()
        self.handle_connected()

    def _stream_explained(self, error: OSError, operation: str = "stream") -> OSError:
        return advise(error, operation, address=_text(self.peer))

    def _stream_shut(self, error: Exception | None) -> None:
        if self.socket is None:
            return
        self.error = error
        super().close()
        if not self._stream_alive:
            return  # its constructor failed
        self._stream_out.clear()
        if self._stream_acceptor is not None:
            self._stream_acceptor._acceptor_gone(self)
        self.handle_close(error)

    def _stream_give_up(self, error: Exception) -> None:
        """Close with an error, but not now: somebody is in the middle of writing to many."""
        self._stream_out.clear()
        self._stream_above = False
        self._stream_finished = True
        self._stream_failure = error
        self._stream_watch()
        self.poller.call_soon(self._stream_shut, error)

    def _stream_watch(self) -> None:
        """Tell the poller what we wait for, and set the timer for what we do not wait for any longer."""
        ending = self._stream_finishing and not self._stream_finished
        writes = self._stream_opening or self._stream_out or self._stream_above or ending
        flags = select.EPOLLOUT if writes else 0
        if not (self._stream_opening or self._stream_ended or self._stream_held):
            flags |= select.EPOLLIN
        flags = flags or _NOTHING
        if flags != self._flags:
            self._flags = flags
            if self in self.poller:
                self.poller.modify(self, flags)
        if self._stream_out:
            self._stream_set_timer()

    @property
    def _stream_held(self) -> bool:
        return self._stream_above or self._stream_paused

    # Time limits.

    def _stream_touch(self) -> None:
        self._stream_last = self.poller.time()

    def _stream_deadline(self) -> float | None:
        """When the peer will have been too slow or silent too long, if nothing happens until then."""
        deadlines = []
        if self.stall is not None and (self._stream_out or self._stream_opening):
            deadlines.append(self._stream_progress + self.stall)
        if self.idle is not None and not self._stream_opening:
            deadlines.append(max(self._stream_last, self._stream_progress) + self.idle)
        return min(deadlines, default=None)

    def _stream_set_timer(self) -> None:
        # One timer, which is not touched while all goes well: when it rings it looks how much time is left.
        when = self._stream_deadline()
        if when is None or not self._stream_alive:
            return
        timer = self._stream_timer
        if timer is not None and timer.active:
            if timer.when <= when:
                return
            timer.cancel()
        self._stream_timer = self.poller.call_at(when, self._stream_look_at_time)

    def _stream_look_at_time(self) -> None:
        when = self._stream_deadline()
        if self.socket is None or when is None:
            return
        now = self.poller.time()
        if now < when:
            self._stream_set_timer()
        elif self._stream_opening:
            self._stream_shut(self._stream_explained(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), "connect"))
        elif self.stall is not None and self._stream_out and now >= self._stream_progress + self.stall:
            self._stream_shut(PeerTimeout(f"{_text(self.peer)} has taken nothing for {self.stall:g} s"))
        else:
            self._stream_shut(PeerTimeout(f"nothing was heard from {_text(self.peer)} for {self.idle:g} s"))

    # Reading.

    def handle_read(self) -> None:
        """Read once and deliver the messages that are complete; called by the poller."""
        socket = self.socket
        if socket is None or self._stream_opening:
            return
        if self._stream_held or (self._stream_ended and not self._stream_pending):
            # Nothing is read now: a fault brings us here, or somebody else's call.
            number = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if number:
                self._stream_break(OSError(number, os.strerror(number)))
            return
        if not self._stream_pending:
            try:
                data = socket.recv(_READ_AT_ONCE)
            except BlockingIOError:
                return
            except OSError as error:
                self._stream_shut(self._stream_failure or self._stream_explained(error))
                return
            self.framer.feed(data)
            self._stream_ended = not data
            self._stream_pending = True
        self._stream_corked = True
        try:
            self._stream_deliver()
        finally:
            self._stream_corked = False
            self._stream_flush()
            self._stream_end_if_sent()
            if self.socket is not None:
                self._stream_watch()
                if self._stream_pending and not self._stream_held:
                    self.poller.revisit(self)

    def _stream_deliver(self) -> None:
        while True:
            try:
                message = self.framer.take()
                if message is None and self._stream_ended and not self._stream_rested:
                    if self._stream_failure is None:
                        message = self.framer.end()
                    self._stream_rested = True
            except FrameError as error:
                self._stream_shut(self._stream_failure or error)
                return
            if message is None:
                break
            self._stream_touch()
            self.handle_message(message)
            if self.socket is None:
                return
            if self._stream_above:
                self._stream_flush()  # that may be all it takes
            if self._stream_held:
                return
        self._stream_pending = False
        if not self._stream_ended:
            return
        if self._stream_failure is not None:
            self._stream_shut(self._stream_failure)
            return
        if not self._stream_told:
            self._stream_told = True
            self.handle_end()
        if self._stream_finished:
            self._stream_shut(self._stream_failure)

    # Writing.

    def handle_write(self) -> None:
        """Send what the socket takes; called by the poller."""
        if self.socket is None:
            return
        if self._stream_opening:
            self._stream_open()
            if self.socket is None or self._stream_opening:
                return
        self._stream_flush()
        self._stream_end_if_sent()
        if self.socket is None:
            return
        drained = self._stream_above and len(self._stream_out) <= self.high_water // 2
        if drained:
            self._stream_above = False
            if self._stream_pending and not self._stream_paused:
                self.poller.revisit(self)
        self._stream_watch()
        if self in self.poller:
            self.poller.modify(self, self._flags)  # whoever registered us again may have asked for something else
        if drained:
            self.handle_drained()

    def _stream_flush(self) -> None:
        """Send some of what is kept; calls no handler."""
        out, socket = self._stream_out, self.socket
        if not out or socket is None:
            return
        try:
            with memoryview(out) as whole, whole[:_WRITE_AT_ONCE] as part:
                sent = socket.send(part)
        except BlockingIOError:
            return
        except OSError as error:
            self._stream_break(error)
            return
        del out[:sent]
        self._stream_progress = self.poller.time()

    def _stream_break(self, error: OSError) -> None:
        """Sending has failed for good. What the peer said before that is still in the kernel, so read on."""
        self._stream_out.clear()
        self._stream_finished = True
        self._stream_above = False
        self._stream_failure = self._stream_failure or self._stream_explained(error)
        if self._stream_told:
            self.poller.call_soon(self._stream_shut, self._stream_failure)
        elif self._stream_pending and not self._stream_paused:
            self.poller.revisit(self)
        self._stream_watch()

    def _stream_end_if_sent(self) -> None:
        """After `finish`, when the last byte has gone, end our direction, and the stream if the other has ended too."""
        if not self._stream_finishing or self._stream_out or self._stream_opening or self.socket is None:
            return
        if not self._stream_finished:
            self._stream_finished = True
            try:
                self.socket.shutdown(_socket.SHUT_WR)
            except OSError:
                pass  # it is gone anyway, and reading will say why
        if self._stream_told:
            self._stream_shut(self._stream_failure)


def _text(peer: Address | None) -> str:
    """Return a peer for people."""
    if not peer:
        return "the peer"
    return f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"


_StreamT = TypeVar("_StreamT", bound=Stream)


def connect(
    host: str,
    port: int,
    factory: Callable[..., _StreamT] = Stream,  # type: ignore[assignment]
    *,
    source_ip: str | None = None,
    poller: Poller | None = None,
    **options: Any,
) -> _StreamT:
    """Start a TCP connection to the IP address `host` at `port`, and return the stream at once.

    `factory(socket, poller=poller, **options)` makes the stream; by default it is `Stream`. `source_ip` is the local
    address it comes from. What is written before the connection stands is sent then. `handle_connected` is called
    when it stands, `handle_close(error)` when it fails; both come from the poller. Names are not looked up.

    Raises `GroupError`, `ArgumentError` and `InterfaceError` for addresses, and `OSError` when no socket can be had.
    """
    opened, failed = sockets.open_stream(host, port, source_ip=source_ip)
    try:
        stream = factory(opened, poller=poller, **options)
    except BaseException:
        opened.close()
        raise
    stream._stream_dialled = True
    if stream.peer is None:
        stream.peer = Address((host, port))
    if failed is not None:
        stream.poller.call_soon(stream._stream_shut, stream._stream_explained(failed, "connect"))
    return stream


class Acceptor(Dispatcher):
    """Listens at a TCP address of this host and makes a stream of each connection.

    `host` is an IP address, ``0.0.0.0`` or ``::`` for all of this host; `port` 0 takes a free port, and `address`
    tells which. `factory(socket, poller=poller)` makes the stream, so a subclass of `Stream` will do; if it returns
    None the connection is refused.

    At most `max_connections` streams are open at a time, and `max_per_host` from one address, if given. Further
    clients wait in the kernel's queue until one leaves; those over the limit of their own address are turned away.
    When the process has no descriptor left, accepting rests for a tenth of a second; `exhausted` counts how often.

    Closing the acceptor leaves its streams open. Raises `GroupError`, `ArgumentError`, `InterfaceError`, and
    `OSError` with advice.

    >>> class Echo(Stream):
    ...     def handle_message(self, message):
    ...         self.write(message)
    >>> acceptor = Acceptor("127.0.0.1", 0, Echo)
    >>> class Client(Stream):
    ...     def handle_connected(self):
    ...         self.write("hello")
    ...     def handle_message(self, message):
    ...         print(message)
    ...         self.close()
    >>> client = connect("127.0.0.1", acceptor.address.port, Client)
    >>> client.poller.run_until(lambda: client.closed)
    b'hello'
    >>> acceptor.poller.close()
    """

    _acceptor_timer: Timer | None = None

    def __init__(
        self,
        host: str,
        port: int,
        factory: Callable[..., Stream | None],
        *,
        max_connections: int = 1024,
        max_per_host: int | None = None,
        poller: Poller | None = None,
    ) -> None:
        if not callable(factory):
            raise ArgumentError(f"factory must make a Stream of a socket, which {factory!r} cannot")
        self.max_connections = _size("max_connections", max_connections)
        self.max_per_host = None if max_per_host is None else _size("max_per_host", max_per_host)
        opened = sockets.open_acceptor(host, port)
        super().__init__(opened, poller)
        self._flags = select.EPOLLIN
        self._acceptor_factory = factory
        #: Where it listens, with the port that was chosen.
        self.address = Address(opened.getsockname())
        self._acceptor_streams: dict[int, tuple[Stream, str]] = {}  # and the host of each; by identity
        self._acceptor_hosts: dict[str, int] = {}
        #: Connections taken so far, and of these: turned away.
        self.accepted = 0
        self.refused = 0
        #: How often there was no descriptor or memory for a connection.
        self.exhausted = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {_text(self.address)}{', closed' if self.closed else ''}>"

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that are open, oldest first."""
        return tuple(stream for stream, _ in self._acceptor_streams.values())

    def handle_read(self) -> None:
        """Take the connections that wait, up to 64; called by the poller."""
        for _ in range(_ACCEPT_AT_ONCE):
            if self.socket is None:
                return
            if len(self._acceptor_streams) >= self.max_connections:
                self.poller.modify(self, _NOTHING)
                return
            try:
                connection, name = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NOT_THIS_ONE:
                    continue
                if error.errno not in _NO_ROOM:
                    raise
                self.exhausted += 1
                self.poller.modify(self, _NOTHING)
                self._acceptor_timer = self.poller.call_later(_REST, self._acceptor_go_on)
                return
            self.accepted += 1
            self._acceptor_take(connection, Address(name))

    def _acceptor_take(self, connection: _socket.socket, peer: Address) -> None:
        stream = None
        host = peer.host
        try:
            if self.max_per_host is None or self._acceptor_hosts.get(host, 0) < self.max_per_host:
                stream = self._acceptor_factory(connection, poller=self.poller)
        finally:
            if stream is None:
                self.refused += 1
                connection.close()
        if stream is not None and not stream.closed:
            stream.peer = peer  # the kernel forgets it when the peer has gone again already
            self._acceptor_streams[id(stream)] = (stream, host)
            self._acceptor_hosts[host] = self._acceptor_hosts.get(host, 0) + 1
            stream._stream_acceptor = self

    def _acceptor_gone(self, stream: Stream) -> None:
        """A stream was closed: there is room for another."""
        present = self._acceptor_streams.pop(id(stream), None)
        if present is None:
            return
        host = present[1]
        self._acceptor_hosts[host] -= 1
        if not self._acceptor_hosts[host]:
            del self._acceptor_hosts[host]
        if self._acceptor_timer is None:
            self._acceptor_go_on()

    def _acceptor_go_on(self) -> None:
        self._acceptor_timer = None
        if self.socket is not None and self in self.poller:
            self.poller.modify(self, select.EPOLLIN)

    def close(self) -> None:
        """Listen no more; streams stay open, and clients still in the queue are turned away. Idempotent."""
        if self._acceptor_timer is not None:
            self._acceptor_timer.cancel()
            self._acceptor_timer = None
        super().close()
