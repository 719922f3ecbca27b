"""The format of MoldUDP64, version 1.00: sequenced messages in packets, heartbeats, the end of a session, requests.

A downstream packet is the session, 10 bytes; the number of its first message, 8 bytes; the count of its messages, 2
bytes; then for each message its length, 2 bytes, and its bytes. Numbers are big-endian. Messages are numbered from 1. A
count of 0 is a heartbeat, and the number is that of the next message to come. A count of 0xFFFF is the end of the
session, with the same number; it counts no messages. A request has the same header: session, first number wanted, and
how many. The answer is a downstream packet.

No I/O, and no state.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from multicast.errors import ArgumentError

__all__ = ["END", "HEADER", "LONGEST", "MOST", "Packet", "pack", "parse", "session_bytes", "split"]

#: Session, number, count.
HEADER = struct.Struct(">10sQH")
#: The count that ends a session.
END = 0xFFFF
#: The most messages of a packet.
MOST = 0xFFFE
#: The longest message that fits in a packet of IPv4, in bytes.
LONGEST = 65507 - HEADER.size - 2
# So many messages are cut by one call; a layout for more would take longer to make than it saves.
_MOST_AT_ONCE = 256
_LENGTHS = [length.to_bytes(2, "big") for length in range(2048)]


class Packet(NamedTuple):
    """What a downstream packet says."""

    session: bytes
    #: The number of the first message, or of the next one to come.
    number: int
    #: How many messages; 0 for a heartbeat, `END` for the end of the session.
    held: int
    messages: Sequence[bytes] = ()

    @property
    def next(self) -> int:
        """The number of the message after this packet."""
        return self.number + (0 if self.held == END else self.held)


def session_bytes(session: str | bytes) -> bytes:
    """Return a session as it stands in packets: 10 bytes, filled up with blanks on the right.

    Raises `ArgumentError` for more, or for anything but printable ASCII.
    """
    data = session.encode("ascii", "replace") if isinstance(session, str) else session
    if not isinstance(data, bytes) or not 0 < len(data) <= 10 or any(not 32 <= byte < 127 for byte in data):
        raise ArgumentError(f"session is 1 to 10 printable characters of ASCII, not {session!r}")
    if isinstance(session, str) and not session.isascii():
        raise ArgumentError(f"session is 1 to 10 printable characters of ASCII, not {session!r}")
    return data.ljust(10)


def pack(session: bytes, number: int, messages: Sequence[bytes]) -> bytes:
    """Return a downstream packet with these messages, of which the first has `number`."""
    count, length = len(messages), len(messages[0]) if messages else 0
    if 1 < count <= _MOST_AT_ONCE and list(map(len, messages)).count(length) == count:
        flat: list[Any] = [length] * (2 * count)
        flat[1::2] = messages
        return HEADER.pack(session, number, count) + _layout(count, length).pack(*flat)
    parts = [HEADER.pack(session, number, count)]
    for message in messages:
        length = len(message)
        parts.append(_LENGTHS[length] if length < 2048 else length.to_bytes(2, "big"))
        parts.append(message)
    return b"".join(parts)


@functools.lru_cache(maxsize=256)
def _layout(count: int, length: int) -> struct.Struct:
    return struct.Struct(">" + f"H{length}s" * count)


def split(data: bytes, count: int) -> Sequence[bytes] | None:
    """Return the `count` messages of a downstream packet; None where it is too short for them.

    Bytes after the last message are left alone.
    """
    size = len(data)
    if size < 22:
        return None if count else ()
    length = data[20] << 8 | data[21]
    if count == 1:
        return None if 22 + length > size else (data[22 : 22 + length],)
    # As a rule all messages have one length.
    if size == 20 + count * (length + 2) and count <= _MOST_AT_ONCE:
        parts = _layout(count, length).unpack_from(data, 20)
        if parts[::2].count(length) == count:
            return parts[1::2]
    messages = []
    at = 20
    for _ in range(count):
        start = at + 2
        if start > size:
            return None
        at = start + (data[start - 2] << 8 | data[start - 1])
        if at > size:
            return None
        messages.append(data[start:at])
    return messages


def parse(data: bytes) -> Packet | None:
    """Return what a downstream packet says, or None where the bytes are none."""
    if len(data) < HEADER.size:
        return None
    session, number, count = HEADER.unpack_from(data)
    if count in (0, END):
        return Packet(session, number, count)
    messages = split(data, count)
    return None if messages is None else Packet(session, number, count, messages)
