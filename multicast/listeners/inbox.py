"""Listeners that need no subclass: `listen` calls a function, `Inbox` is iterated over."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from multicast import batch, filters
from multicast.batch import Address
from multicast.errors import ArgumentError, RegistrationError, check_number
from multicast.filters import Filter
from multicast.poller import Poller
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterfaces

from .membership import HasAddress, MulticastListener

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from multicast.sealed import Seal

    class Options(TypedDict, total=False):
        """The keywords of `MulticastListener` that `Inbox` takes too."""

        interface: WhichInterfaces
        sources: Iterable[str] | None
        exclude: Iterable[str] | None
        rcvbuf: int | None
        details: bool
        kernel_filter: bool
        shard: tuple[int, int] | None
        shard_key: filters.ShardKey
        offload: bool
        silence: float | None
        ignore: Iterable[HasAddress]
        seal: Seal | None
        poller: Poller | None

    class ListenOptions(Options, total=False):
        """Those that `listen` takes."""

        filter: Filter

_Result = TypeVar("_Result")


class Newest:
    """The newest packet of each source, in the order in which the sources were heard first; used like a deque.

    A packet replaces the one of its source that still waits. Of more than `capacity` sources, those that wait longest
    make room.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._packets: dict[Address, tuple[bytes, Address]] = {}
        #: How many packets were replaced, or made room, before they were taken.
        self.superseded = 0

    def append(self, pair: tuple[bytes, Address]) -> None:
        """Keep a packet and where it came from."""
        packets = self._packets
        if pair[1] in packets:
            self.superseded += 1
        elif len(packets) >= self._capacity:
            del packets[next(iter(packets))]
            self.superseded += 1
        packets[pair[1]] = pair

    def extend(self, pairs: Iterable[tuple[bytes, Address]]) -> None:
        """Keep packets, in their order."""
        for pair in pairs:
            self.append(pair)

    def popleft(self) -> tuple[bytes, Address]:
        """Return the packet of the source that waits longest."""
        return self._packets.pop(next(iter(self._packets)))

    def __len__(self) -> int:
        return len(self._packets)


class Inbox(MulticastListener):
    """A listener to iterate over: `next` returns one packet after the other.

    On an empty inbox `next` polls until a packet comes; `addr` is then where the packet came from. Iteration ends
    when `limit` packets were taken, or when the inbox is closed and empty. It holds up to `capacity` packets; more
    stay in the kernel's buffer until there is room again.

    With `latest` it holds the newest packet of each source, of `capacity` sources at the most, and counts in
    `superseded` those that a newer one replaced before they were taken.

    The other arguments are those of `MulticastListener`.
    """

    def __init__(
        self,
        filter: Filter = None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        limit: int | None = None,
        capacity: int = 1024,
        latest: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if limit is not None:
            check_number("limit", limit, of="packets")
        check_number("capacity", capacity, of="packets")
        super().__init__(filter, ip, port, mtu, **options)
        #: Where the packet last returned came from; None before the first.
        self.addr: Address | None = None
        self._inbox_limit = limit
        self._inbox_capacity = capacity
        self._inbox_waiting: deque[tuple[bytes, Address]] | Newest = Newest(capacity) if latest else deque()
        self._inbox_full = False

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> object:
        """Keep packets until they are asked for."""
        self._inbox_waiting.extend(zip(packets, addresses, strict=True))
        return False

    def handle_read(self) -> bool | None:
        """Receive as many packets as there is room for; return whether more may be waiting. Called by the poller."""
        more: bool | None = False
        if (room := self._inbox_room()) > 0:
            # Its handler is our own, whose cost is known.
            self._share = min(batch.LIMIT, room)
            more = super().handle_read()
        if self._inbox_room() <= 0 and self in self.poller:
            # Leave the rest in the kernel, which counts what it has no room for.
            self._inbox_full = True
            self.poller.modify(self, select.EPOLLERR)
            return False
        return more

    @property
    def superseded(self) -> int:
        """How many packets a newer one of their source has replaced, with `latest`; 0 without."""
        return self._inbox_waiting.superseded if isinstance(self._inbox_waiting, Newest) else 0

    def _inbox_room(self) -> int:
        if isinstance(self._inbox_waiting, Newest):
            return batch.LIMIT  # a new packet takes the place of an old one
        return self._inbox_capacity - len(self._inbox_waiting)

    def __len__(self) -> int:
        """Return how many packets wait."""
        return len(self._inbox_waiting)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        """Yield packets as `next` returns them; those that wait without a call of `next` for each."""
        for packet in iter(self.__next__, None):
            yield packet
            waiting = self._inbox_waiting
            while waiting and self._inbox_limit is None and not self._inbox_full:
                packet, self.addr = waiting.popleft()
                yield packet

    def __next__(self) -> bytes:
        """Return the next packet, polling until one comes when none waits."""
        if self._inbox_limit is not None and self._inbox_limit <= 0:
            self.close()
            raise StopIteration
        if not self._inbox_waiting:
            self.poller.run_until(lambda: self._inbox_waiting or self.closed or self not in self.poller)
            if not self._inbox_waiting:
                if not self.closed and self not in self.poller:
                    raise RegistrationError(f"{self!r} is not registered with a poller, so nothing comes; register it")
                raise StopIteration
        if self._inbox_full and self in self.poller:
            self.poller.modify(self, 0)
            if self.pending:
                self.poller.revisit(self)
            self._inbox_full = False
        packet, self.addr = self._inbox_waiting.popleft()
        if self._inbox_limit is not None:
            self._inbox_limit -= 1
        return packet

    def next(self) -> bytes:
        """Return the next packet, as `next(inbox)` does; the older spelling."""
        return self.__next__()


class _Delivery(MulticastListener):
    """What `listen` registers: hands packets to a function, and remembers what it said last."""

    def __init__(self, handler: Callable[[bytes, Address], object], limit: int | None, **options: Any) -> None:
        super().__init__(**options)
        self._handler = handler
        self._left = limit
        self.result: object = None

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        if self._left is not None:
            if self._left == 0:  # the handler polls, and is called with the last packet right now
                return True
            self._left -= 1
        self.result = self._handler(packet, addr)
        return self.result or self._left == 0


@overload
def listen(
    packet_handler: None = None,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    **options: Unpack[ListenOptions],
) -> Inbox: ...


@overload
def listen(
    packet_handler: Callable[[bytes, Address], _Result],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    **options: Unpack[ListenOptions],
) -> _Result: ...


def listen(
    packet_handler: Callable[[bytes, Address], Any] | None = None,
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    mtu: int = 4096,
    limit: int | None = None,
    **options: Unpack[ListenOptions],
) -> Any:
    """Call `packet_handler(packet, addr)` for each packet sent to the multicast group at `ip` on `port`.

    Does not return until the handler returns something true, or has been called with `limit` packets; returns what
    the handler returned last, and closes its listener. Other registered objects run meanwhile. `mtu` is the most
    bytes kept of a packet. The keywords of `MulticastListener` (`filter`, `interface`, `sources`, ...) are taken too.

    Without a handler it returns an `Inbox` at once, an iterator of packets:

    >>> listener = listen()
    >>> sendto("test")
    1
    >>> poll()
    >>> next(listener)
    b'test'
    >>> listener.close()
    """
    if limit is not None:
        check_number("limit", limit, of="packets")
    if packet_handler is None:
        return Inbox(ip=ip, port=port, mtu=mtu, limit=limit, **options)
    if not callable(packet_handler):
        raise ArgumentError(f"packet_handler must be callable with (packet, addr), not {packet_handler!r}")
    with _Delivery(packet_handler, limit, ip=ip, port=port, mtu=mtu, **options) as listener:
        listener.poller.run_until(lambda: listener.closed)
        return listener.result
