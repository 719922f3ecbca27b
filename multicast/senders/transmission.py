"""Packets on their way from an iterable to the kernel, without the waiting in between."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from multicast import batch
from multicast.sockets import Endpoint, Group, not_sent

# The queue of an interface drains within milliseconds. These are the first and the longest pause before another try,
# and how long a queue may be full in all, in seconds.
FULL_FIRST, _FULL_LAST, _FULL_ENOUGH = 0.001, 0.01, 10.0
# How many packets are taken from a list at once.
LARGE = 1024
# An iterable that takes longer than this for its packets, in seconds, is slow: its packets do not wait for the next.
SLOW = 0.001


def bound_name(opened: socket.socket) -> tuple[Any, ...] | None:
    """Return the address and port of a socket; None before the kernel has given it a port."""
    name: tuple[Any, ...] = opened.getsockname()
    return name if name[1] else None


def destination(ip: str, port: int) -> Endpoint:
    """Return the group or the single host at `ip`. Raises `GroupError` and `ArgumentError`."""
    endpoint = Endpoint(ip, port)
    return Group.of(ip, port) if endpoint.is_multicast else endpoint


def as_packets(packets: object) -> Iterator[object]:
    """One packet, or an iterable of them: text and buffers are *one* packet."""
    if isinstance(packets, (str, bytes)):
        return iter((packets,))
    try:
        memoryview(packets)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(packets, Iterable):
            return iter(packets)
        batch.encode(packets)  # says what is wrong with it
    return iter((packets,))


class Transmission:
    """Packets on their way to the kernel, all of them and in order; the caller does the waiting.

    Iterating sends; what it yields is what to wait for before going on: None until the socket is writable, a number
    of seconds to pause, 0 where others may have their turn. `sent` counts the packets taken by the kernel. Raises
    what `sendto` raises.
    """

    def __init__(
        self, writer: batch.Writer, to: Endpoint, packets: Iterable[object], chunk: int | None = None
    ) -> None:
        self._chunk = chunk  # how many packets to take at once; None: as many as the iterable has without delay
        self._socket_writer = writer
        self._to = to
        self._packet_iterator = iter(packets)
        #: How many packets the kernel has taken.
        self.sent = 0

    def __iter__(self) -> Iterator[float | None]:
        failure: Exception | None = None
        size = self._chunk or 0
        while failure is None:
            chunk: list[bytes] = []
            began = time.perf_counter()
            try:
                if batch.take(self._packet_iterator, chunk, size or 1, self._to.longest):
                    batch.encode(None)  # says what is wrong with it
            except Exception as error:
                failure = error  # raised when what came before it is sent
            if self._chunk is None:
                size = 0 if time.perf_counter() - began > SLOW else min(2 * size or 1, batch.LIMIT)
            if not chunk:
                break
            yield from self._send_taken(chunk)
            yield 0
        if failure is not None:
            raise failure

    def _send_taken(self, packets: list[bytes]) -> Iterator[float | None]:
        done = 0
        full_since: float | None = None
        pause = FULL_FIRST
        while done < len(packets):
            try:
                count = batch.send(self._socket_writer, packets, done)
            except BlockingIOError:
                yield None
            except OSError as error:
                now = time.monotonic()
                full_since = now if full_since is None else full_since
                if error.errno != errno.ENOBUFS or now - full_since > _FULL_ENOUGH:
                    if self.sent:
                        error.add_note(f"{self.sent} packets were sent before.")
                    raise not_sent(error, self._to.address) from None
                yield pause
                pause = min(2 * pause, _FULL_LAST)
            else:
                done += count
                self.sent += count
                full_since, pause = None, FULL_FIRST
