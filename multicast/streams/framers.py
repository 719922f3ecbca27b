"""Framers: from the bytes of a stream to messages and back, without I/O."""

from __future__ import annotations

import re
from typing import Protocol

from multicast.errors import ArgumentError, FrameError, check_number


class Framer(Protocol):
    """What a stream asks of a framer: bytes in, messages out, and no I/O.

    A framer belongs to one stream, for it keeps the bytes of the message that is not complete yet. A signal handler may
    raise at any line; the framers here give up the bytes of a message in the line that returns it.
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
        data, self._data = self._data, b""; return data or None  # noqa: E702

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
        self.limit = check_number("limit", limit)
        self._data = bytearray()
        self._searched = 0  # in these there is no line feed; without it, bytes that trickle in cost their square

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._data += data

    def take(self) -> bytes | None:
        """Return the next line, None when none is complete. Raises `FrameError` when it is too long."""
        data = self._data
        end = data.find(b"\n", self._searched)
        length = len(data) if end < 0 else end
        if length > self.limit:
            raise FrameError(f"a line is longer than {self.limit} bytes")
        if end < 0:
            self._searched = length
            return None
        line = bytes(data[:end]).removesuffix(b"\r")
        self._searched = 0; del data[: end + 1]; return line  # noqa: E702

    def end(self) -> bytes | None:
        """Return the last line if it has no line feed."""
        line, self._data, self._searched = bytes(self._data), bytearray(), 0; return line or None  # noqa: E702

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
        self.width = check_number("width", width)
        self.limit = check_number("limit", limit)
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
            self._length = length; del data[: self.width]  # noqa: E702
        if len(data) < self._length:
            return None
        message = bytes(data[: self._length])
        del data[: self._length]; self._length = -1; return message  # noqa: E702

    def end(self) -> None:
        """Raise `FrameError` when a message has begun and is not complete."""
        if self._data or self._length >= 0:
            raise FrameError("the stream has ended in the middle of a message")

    def encode(self, message: bytes) -> bytes:
        """Return header and message. Raises `ArgumentError` for one that is too long."""
        if len(message) > self.limit:
            raise ArgumentError(f"a message has at most {self.limit} bytes here, not {len(message)}")
        return b"%-*d%b" % (self.width, len(message), message)
