"""One TCP connection: what was written and not taken yet, what was read and not delivered yet, and time limits."""

from __future__ import annotations

import errno
import os
import select
import socket as _socket
import sys
from collections.abc import Callable

from multicast import batch, sockets
from multicast.batch import Address
from multicast.errors import FrameError, PeerTimeout, advise, check_amount, check_number
from multicast.poller import Dispatcher, Poller, Timer

from .framers import Framer, Raw

# Bytes of one turn: neither a flood nor a peer that takes whatever it gets may leave the others waiting.
_READ_AT_ONCE = 65536
_WRITE_AT_ONCE = 262144
# Nothing to watch for. Errors and hang-ups are reported all the same, and a hang-up never goes away: once is enough.
NOTHING = select.EPOLLERR | select.EPOLLET
# How far the peer's direction has come: bytes may come; no more will; the framer has given what was left of them;
# `handle_end` was called.
_OPEN, _ENDED, _EMPTIED, _TOLD = range(4)


def _nothing() -> None:
    """Stand in for the end of a framer whose stream has failed."""


class Stream(Dispatcher):
    """One connection: `write` sends messages, `handle_message` gets them.

    `socket` is a connected stream socket, or one that is being connected; it belongs to the stream from now on.
    `framer` cuts the bytes into messages; without one, the class attribute `framing` makes it, which subclasses set:
    ``framing = Lines``. The stream is registered with `poller`, by default the default poller.

    `high_water` and `limit` are bytes kept for the peer, `stall` and `idle` seconds (None: no limit); what they do
    is said at the head of `multicast.streams`. A connection that is not made within `stall` seconds fails as well.

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
    _stream_told = False  # handle_close was called
    _stream_alive = False  # the constructor is done: handlers may be called
    _stream_dialled = False  # made by connect()
    _stream_opening = True  # the connection does not stand yet, or handle_connected is still to be called
    _stream_forget: Callable[[Stream], object] | None = None  # for the acceptor that has it, to be told of its end

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
        self.high_water = check_number("high_water", high_water)
        self.limit = max(check_number("limit", limit), high_water)
        self.stall = None if stall is None else check_amount("stall", stall, "seconds", zero=False)
        self.idle = None if idle is None else check_amount("idle", idle, "seconds", zero=False)
        self.framer: Framer = type(self).framing() if framer is None else framer
        sockets.prepare_stream(socket)
        super().__init__(socket, poller)
        self._flags = select.EPOLLOUT
        self._stream_out = bytearray()
        self._stream_above = False  # over the high water mark, and not told yet that it has fallen
        self._stream_paused = False
        # While a turn of reading is on, what it causes to be written is kept, and sent in one go at its end.
        self._stream_corked = False
        # A signal handler may raise at any line. What was read, the message to be delivered next and how much was sent
        # are here from the step that gives them on; so what stands in one line below stays in one line.
        self._stream_read: list[bytes] = []
        self._stream_message: bytes | None = None
        self._stream_sent: list[int] = []
        self._stream_pending = False  # the framer may have messages that were not delivered
        self._stream_incoming = _OPEN  # the peer's direction
        # Our own: finish() was called; and the end was sent, or nothing can be sent any more.
        self._stream_finishing = self._stream_finished = False
        self._stream_failure: Exception | None = None  # sending has failed; what the peer said before is still read
        # When the peer last completed a message; when it last took something, or there first was something to take.
        self._stream_heard = self._stream_progress = 0.0

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ", opening" if self._stream_opening else ""
        return f"<{type(self).__name__} with {describe(self.peer)}{state}>"

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
            self._stream_give_up(PeerTimeout(f"{describe(self.peer)} is too slow: {len(out)} bytes wait for it"))
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
        return bool(self._stream_pending or self._stream_read)

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
        self._stream_heard = self._stream_progress = self.poller.time()  # clocks of two pollers need not agree
        self._stream_set_timer()

    def _detached(self, poller: Poller) -> None:
        if self._stream_timer is not None:
            self._stream_timer.cancel()

    def _stream_open(self) -> None:
        """The socket is writable for the first time: the connection stands, or has failed."""
        socket = self.socket
        assert socket is not None  # noqa: S101 -- the poller calls only what is registered
        error = _error_of(socket)
        if error is None:
            try:
                self.peer = Address(socket.getpeername())
            except OSError as gone:
                error = gone
        if error is not None:
            self._stream_not_connected(error)
            return
        self._stream_opening = False
        self._stream_heard = self.poller.time()
        self._stream_set_timer()
        self._stream_watch()
        self.handle_connected()

    def _stream_not_connected(self, error: OSError) -> None:
        self._stream_shut(self._stream_explained(error, "connect"))

    def _stream_explained(self, error: OSError, operation: str = "stream") -> OSError:
        return advise(error, operation, address=describe(self.peer))

    def _stream_shut(self, error: Exception | None) -> None:
        if self.socket is None:
            return
        self.error = error
        try:
            super().close()
            self._stream_tell_end()
        except BaseException:
            if self.socket is None and not self._stream_told:
                self.poller.call_soon(self._stream_tell_end)
            raise

    def _stream_tell_end(self) -> None:
        if not self._stream_alive:
            return  # its constructor failed
        self._stream_out.clear()
        if self._stream_forget is not None:
            self._stream_forget(self)
        self._stream_told = True; self.handle_close(self.error)  # noqa: E702

    def _resume(self) -> None:
        if self.socket is None:
            return
        self._stream_corked = False
        self._flags = -1  # what the poller was told is not known
        self._stream_watch()
        if self._stream_finishing:
            self.poller.call_soon(self._stream_end_if_sent)
        if self.pending and not self._stream_held:
            self.poller.revisit(self)

    def _stream_watch(self) -> None:
        """Tell the poller what we wait for, and see that the peer takes what is kept for it in time."""
        ending = self._stream_finishing and not self._stream_finished
        writes = self._stream_opening or self._stream_out or self._stream_above or ending
        flags = select.EPOLLOUT if writes else 0
        if not (self._stream_opening or self._stream_incoming != _OPEN or self._stream_held):
            flags |= select.EPOLLIN
        flags = flags or NOTHING
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

    def _stream_deadline(self) -> float | None:
        """When the peer will have been too slow or silent too long, if nothing happens until then."""
        deadlines = []
        if self.stall is not None and (self._stream_out or self._stream_opening):
            deadlines.append(self._stream_progress + self.stall)
        if self.idle is not None and not self._stream_opening:
            deadlines.append(max(self._stream_heard, self._stream_progress) + self.idle)
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
            self._stream_not_connected(_os_error(errno.ETIMEDOUT))
        elif self.stall is not None and self._stream_out and now >= self._stream_progress + self.stall:
            self._stream_shut(PeerTimeout(f"{describe(self.peer)} has taken nothing for {self.stall:g} s"))
        else:
            self._stream_shut(PeerTimeout(f"nothing was heard from {describe(self.peer)} for {self.idle:g} s"))

    # Reading.

    def handle_read(self) -> bool | None:
        """Read once and deliver the messages that are complete; return whether more may be waiting.

        Called by the poller.
        """
        socket = self.socket
        more = False
        if socket is None or self._stream_opening:
            return False
        if self._stream_held or (self._stream_incoming != _OPEN and not self.pending):
            # Nothing is read now: a fault brings us here, or somebody else's call.
            fault = _error_of(socket)
            if fault is not None:
                self._stream_break(fault)
            return False
        if not self._stream_pending:
            read = self._stream_read
            try:
                read.extend(map(socket.recv, () if read else (_READ_AT_ONCE,)))
            except BlockingIOError:
                return False
            except OSError as error:
                self._stream_shut(self._stream_failure or self._stream_explained(error))
                return False
            more = len(read[0]) == _READ_AT_ONCE
            if not read[0]:
                self._stream_incoming = _ENDED
            self.framer.feed(read[0]); self._stream_pending = True; read.clear()  # noqa: E702
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
        return more

    def _stream_deliver(self) -> None:
        while True:
            try:
                if self._stream_message is None:
                    self._stream_message = self.framer.take()
                if self._stream_message is None and self._stream_incoming == _ENDED:
                    # Without a branch: Python 3.12 traces the target of one as a line, though it is the same.
                    end = self.framer.end if self._stream_failure is None else _nothing
                    self._stream_message = end(); self._stream_incoming = _EMPTIED  # noqa: E702
            except FrameError as error:
                self._stream_shut(self._stream_failure or error)
                return
            message = self._stream_message
            if message is None:
                break
            self._stream_heard = self.poller.time()
            self._stream_message = None; self.handle_message(message)  # noqa: E702
            if self.socket is None:
                return
            if self._stream_above:
                self._stream_flush()  # that may be all it takes
            if self._stream_held:
                return
        if self._stream_incoming == _OPEN:
            self._stream_pending = False
            return
        if self._stream_failure is not None:
            self._stream_shut(self._stream_failure)
        elif self._stream_incoming != _TOLD:
            self._stream_pending = False; self._stream_incoming = _TOLD; self.handle_end()  # noqa: E702

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
        out, sent, socket = self._stream_out, self._stream_sent, self.socket
        del out[: sum(sent)]; sent.clear()  # noqa: E702 -- of a call that was interrupted
        if not out or socket is None:
            return
        try:
            with memoryview(out) as whole, whole[:_WRITE_AT_ONCE] as part:
                sent.extend(map(socket.send, (part,)))
        except BlockingIOError:
            return
        except OSError as error:
            self._stream_break(error)
            return
        del out[: sum(sent)]; sent.clear()  # noqa: E702
        self._stream_progress = self.poller.time()

    def _stream_stop_sending(self, error: Exception) -> None:
        """Nothing goes out any more, and `error` is why."""
        self._stream_out.clear()
        self._stream_above = False
        self._stream_finished = True
        self._stream_failure = self._stream_failure or error
        self._stream_watch()

    def _stream_give_up(self, error: Exception) -> None:
        """Close with an error, but not now: somebody is in the middle of writing to many."""
        self._stream_stop_sending(error)
        self.poller.call_soon(self._stream_shut, error)

    def _stream_break(self, error: OSError) -> None:
        """Sending has failed for good. What the peer said before that is still in the kernel, so read on."""
        self._stream_stop_sending(self._stream_explained(error))
        if self._stream_incoming == _TOLD:
            self.poller.call_soon(self._stream_shut, self._stream_failure)
        elif self._stream_pending and not self._stream_paused:
            self.poller.revisit(self)

    def _stream_end_if_sent(self) -> None:
        """After `finish`, when the last byte has gone, end our direction, and the stream if the other has ended too."""
        if not self._stream_finishing or self._stream_out or self._stream_opening or self.socket is None:
            return
        if not self._stream_finished:
            try:
                self.socket.shutdown(_socket.SHUT_WR)
            except OSError:
                pass  # it is gone anyway, and reading will say why
            self._stream_finished = True
        if self._stream_incoming == _TOLD:
            self._stream_shut(self._stream_failure)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _error_of(socket: _socket.socket) -> OSError | None:
    """Return what has gone wrong with the connection meanwhile (SO_ERROR in socket(7)); the kernel tells it once."""
    number = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
    return _os_error(number) if number else None


def describe(peer: Address | None) -> str:
    """Return a peer for people."""
    if not peer:
        return "the peer"
    return f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"
