"""`DatagramListener`: from the socket by way of the filter to the handler, and every packet counted."""

from __future__ import annotations

import errno
import functools
import logging
import socket
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, islice
from operator import length_hint
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from multicast import batch, filters
from multicast.batch import Address
from multicast.errors import ArgumentError, check_number, check_seal
from multicast.filters import Filter
from multicast.poller import Dispatcher, Poller
from multicast.sockets import DEFAULT_PORT, drops, open_unicast, overflows, receive_buffer

_Result = TypeVar("_Result")

_log = logging.getLogger("multicast")

# A turn ends when it has taken this many seconds.
_TURN = 0.001
# The clock is read after so many packets at the most. A handler that suddenly becomes slow holds the other objects back
# for so many calls, once.
_MOST_UNTIMED = 16
# The batch of a reader that has none, and what is left of it.
_NONE: tuple[tuple[list[bytes], list[Address]], Iterator[bytes]] = ([], []), iter(())


class Statistics(NamedTuple):
    """What a listener has counted so far."""

    #: Packets read from the socket.
    packets: int
    #: Their bytes, as far as they were kept; with `seal` those of the packets that were opened, without the seal.
    bytes: int
    #: Packets given to `handle_packet`.
    delivered: int
    #: Packets the filter refused, in the kernel or here; with `shard` those of the other shards as well, and for IPv6
    #: on named interfaces those that came by others.
    filtered: int
    #: Packets longer than `mtu`, which were cut.
    truncated: int
    #: Packets the kernel dropped at this socket, because its buffer was full. They are in no other number: `delivered`,
    #: `filtered`, `rejected` and `dropped` together are what came here, once all of it is read. Where the kernel
    #: filters, it counts both in one; they are told apart by what the whole host has lost meanwhile, so this may be too
    #: high, and `filtered` too low, while other sockets overflow too; their sum is exact. With `offload` a burst that
    #: was dropped, or belongs to another shard, counts as one packet.
    dropped: int
    #: With `seal`, packets that were not opened; the property `rejected` of the listener counts them by cause.
    rejected: int = 0


if TYPE_CHECKING:
    from multicast.sealed import Rejected, Seal

    def _abstract(method: _Result) -> _Result:
        """For type checkers the method is there: a subclass may have `handle_packets` in its place."""
        return method

else:
    _abstract = abstractmethod


class DatagramListener(Dispatcher):
    """Receives datagrams at a unicast address and calls `handle_packet` for those that pass a filter.

    `ip` is an address of this host, or ``0.0.0.0`` or ``::`` for all of them; port 0 takes any free port, and
    `address` tells which. The port is not shared with other programs. The other arguments are those of
    `MulticastListener`.

    Raises `GroupError`, `FilterError`, `ArgumentError`, `InterfaceError`, and `OSError` with advice.
    """

    #: The filter of all instances of a class; a plain function here takes `(packet, addr)`.
    filter: Any = None
    _handles_batches = False
    _opener: Any = None  # of sealed packets
    # How many packets a turn reads and delivers: as many as take about a millisecond, 1 to `batch.LIMIT`.
    _share = batch.LIMIT
    # After how many packets the clock is read. It begins with one, as the cost of the handler is not known yet.
    _look = 1

    def __init__(
        self,
        filter: Filter = None,
        ip: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        rcvbuf: int | None = None,
        details: bool = False,
        kernel_filter: bool = True,
        offload: bool = False,
        seal: Seal | None = None,
        poller: Poller | None = None,
    ) -> None:
        self._check_arguments(filter, mtu, rcvbuf, kernel_filter=kernel_filter, offload=offload, seal=seal)
        opened = self._with_program(functools.partial(open_unicast, ip, port, rcvbuf=rcvbuf, details=details))
        own = opened.getsockname()[0]
        self._take_over(opened, mtu, None if own in ("0.0.0.0", "::") else own, None, details, poller)  # noqa: S104

    def _check_arguments(
        self,
        filter: Filter,
        mtu: int,
        rcvbuf: int | None = None,
        *,
        kernel_filter: bool = False,
        offload: bool = False,
        shard: Sequence[filters.Instruction] = (),
        whole_bursts: bool = True,
        seal: Seal | None = None,
    ) -> None:
        """Check what can be checked before a socket is opened; `shard` is the program that deals out packets."""
        wanted = filters.class_filter(self) if filter is None else filter
        self._passes_filter = filters.predicate(wanted)
        check_number("mtu", mtu, of="bytes")
        if rcvbuf is not None:
            check_number("rcvbuf", rcvbuf, of="bytes")
        refusals = filters.refusals(wanted) if kernel_filter else []
        check_seal(seal)
        if seal is not None:
            if not whole_bursts:
                raise ArgumentError("a field of a sealed packet cannot be read before it is opened; shard by source")
            if refusals:
                name = type(self).__name__
                _log.info("%s: its packets are sealed, so its filter works after opening, not in the kernel", name)
                refusals = []
            self._opener = seal.opener()
        #: The kernel's programs: all that is wanted, and the least that is needed.
        self._kernel_program = filters.assemble([*shard, *refusals]) if shard or refusals else []
        self._least_program = filters.assemble([*shard]) if shard else []
        # A program sees the first packet of a burst only, and would decide for all of them.
        self._takes_bursts = offload and whole_bursts and not refusals

    def _with_program(self, opening: Callable[..., _Result]) -> _Result:
        """Open a socket with the kernel's program; where the kernel takes none, without what is not needed."""
        try:
            return opening(program=self._kernel_program, bursts=self._takes_bursts)
        except OSError as error:
            refused = error.errno in (errno.ENOMEM, errno.ENOPROTOOPT, errno.EPERM)
            if self._kernel_program == self._least_program or not refused:
                raise
        # Too little memory for options (net.core.optmem_max), or not Linux itself: the filter in Python does it all.
        opened = opening(program=self._least_program, bursts=self._takes_bursts)
        self._kernel_program = self._least_program
        return opened

    def _take_over(
        self,
        opened: socket.socket,
        mtu: int,
        group: str | None,
        interface: str | None,
        details: bool,
        poller: Poller | None,
    ) -> None:
        """Take over the socket."""
        Dispatcher.__init__(self, opened, poller)
        if self._opener is not None:
            mtu += self._opener.overhead
        self._socket_reader = batch.Reader(
            opened, mtu, group=group, interface=interface, details=details, offload=self._takes_bursts
        )
        # What the filter said of the first packets of a batch for `handle_packets`, and the batch that was opened.
        self._verdicts: list[object] = []
        self._opened_batch: object = None
        self._unread_forgotten = 0  # read, and closed before they were delivered
        self._filter_refused = 0  # by the filter in Python
        self._not_opened = self._seal_bytes = self._truncated_before = 0
        self._refused_in_kernel = self._kernel_dropped = 0
        self._read_before = (0, 0, 0)  # packets, bytes and cut ones, by readers that this one has replaced
        self._count_from(opened)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{', closed' if self.closed else f' at {self.address}'}>"

    @property
    def address(self) -> tuple[Any, ...]:
        """The address and port it receives at, as `socket.getsockname` gives them. Raises `OSError` once closed."""
        if self.socket is None:
            raise OSError(errno.EBADF, "the listener is closed")
        name: tuple[Any, ...] = self.socket.getsockname()
        return name

    @_abstract
    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Called with each packet that passes the filter; a true result closes this listener.

        `addr` equals what `socket.recvfrom` returns, and tells more; see `Address`.
        """

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> object:
        """Called with each batch, instead of `handle_packet` with each packet, where a subclass defines it.

        `packets` are 1 to 64 packets that passed the filter, in the order of their arrival, and `addresses`, of equal
        length, where each came from; the lists belong to the method. A true result closes this listener. For programs
        that decode with struct or numpy: one call for a batch takes less time than one for each packet.
        """
        raise NotImplementedError

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "handle_packets" in vars(cls):
            cls._handles_batches = True
            if getattr(cls.handle_packet, "__isabstractmethod__", False):
                cls.handle_packet = DatagramListener._handle_one  # type: ignore[method-assign]
        elif "handle_packet" in vars(cls):  # the class below may have the other
            cls._handles_batches = False

    def _handle_one(self, packet: bytes, addr: Address) -> object:
        """Stand in for `handle_packet` in subclasses that have `handle_packets` alone, for calls by hand."""
        return self.handle_packets([packet], [addr])

    # A signal handler may raise at any line of a turn. What was read belongs to the reader from the system call on, and
    # leaves it in the line that calls the handler; so what stands in one line there must stay in one.

    def handle_read(self) -> bool | None:
        """Receive a batch and deliver it; return whether more packets may be waiting. Called by the poller."""
        reader, share, more = self._socket_reader, self._share, True
        try:
            # What is left of a batch takes turns with the other objects. The next look at the socket follows it.
            if not length_hint(reader.left):
                more = len(batch.receive(reader, share)[0]) >= share
            if self._opener is not None and self._opened_batch is not reader.batch:
                self._open_batch()
            if self._handles_batches:
                self._deliver_batch(share)
            else:
                self._deliver_packets(share)
        except BaseException:
            self._resume()
            raise
        return more

    def _resume(self) -> None:
        if self.pending:
            self.poller.revisit(self)

    def _deliver_packets(self, share: int) -> None:
        """Hand out up to `share` packets of those that were read.

        When a millisecond has passed, the rest waits for the next turn, and the share becomes as many packets as a
        millisecond was enough for.
        """
        # They are taken from the reader, so that a handler that polls gets the rest of them before newer ones. A
        # handler that closes its listener ends the loop by emptying the list below it (`_forget_unread`); and
        # `statistics` works out what was delivered from what is left there. So nothing but the calls is done for each
        # packet.
        reader, accept, handle = self._socket_reader, self._passes_filter, self.handle_packet
        close: Callable[[], object] = self.close
        left, only = reader.left, reader.origin
        source: Any = left
        if accept is not None or only is None:
            if reader.unread is None:
                reader.unread = zip(left, reader.batch[1])  # noqa: B905 -- `_forget_unread` makes one shorter
            source = reader.unread
        waiting, delivered, refused = length_hint(left), 0, 0
        began = monotonic()
        packet: Any = None  # else the one that the filter has not decided on
        try:
            while delivered < share:
                some = islice(source, min(self._look, share - delivered))
                if accept is not None:
                    for packet, addr in some:
                        if accept(packet, addr):
                            mine, packet = packet, None; handle(mine, addr) and close()  # noqa: E702
                        else:
                            refused += 1; packet = None  # noqa: E702
                elif only is not None:
                    for mine in some: handle(mine, only) and close()  # noqa: E701
                else:
                    for mine, addr in some: handle(mine, addr) and close()  # noqa: E701
                rest = length_hint(left)
                delivered = waiting - rest
                taken = monotonic() - began
                if taken > _TURN:
                    self._share = max(1, int(delivered * _TURN / taken))
                    self._look = min(self._look, self._share)
                    break
                if self._look < _MOST_UNTIMED and 4 * taken < _TURN:
                    self._look *= 4
                if delivered >= share:
                    if share < batch.LIMIT and 4 * taken < _TURN:
                        self._share = min(batch.LIMIT, 4 * share)
                    break
                if not rest:
                    break
            self._filter_refused += refused
        except BaseException as error:
            self._filter_refused += refused
            if packet is not None and not isinstance(error, Exception):  # what the filter raises refuses its packet
                packets, addresses = self._socket_reader.batch
                place = len(packets) - length_hint(self._socket_reader.left)
                packets.insert(place, packet)
                addresses.insert(place, addr)
            raise
        if length_hint(self._socket_reader.left):
            self.poller.revisit(self)
        else:
            reader.batch[0].clear()  # they need not live until the next ones come

    def _deliver_batch(self, share: int) -> None:
        """Give what was read and passes the filter to `handle_packets`; see how many a millisecond is enough for."""
        reader, accept = self._socket_reader, self._passes_filter
        packets, addrs = reader.batch
        seen, less = self._verdicts, 0
        if accept is not None:
            # A filter that raises has refused its packet; what it said of those before is kept for the next turn.
            try:
                seen.extend(map(accept, islice(packets, len(seen), None), islice(addrs, len(seen), None)))
            except Exception:
                del packets[len(seen)], addrs[len(seen)]
                raise
            passed = list(compress(packets, seen))
            less = len(packets) - len(passed)
            packets, addrs = passed, list(compress(addrs, seen))
        if not packets:
            reader.batch, reader.left = _NONE; del seen[:]; self._filter_refused += less  # noqa: E702
            return
        call, count = self.handle_packets, len(packets)
        began = monotonic()
        try:
            if accept is None:
                reader.batch, reader.left = _NONE; end = call(packets, addrs)  # noqa: E702
            else:
                reader.batch, reader.left = _NONE; del seen[:]; self._filter_refused += less; end = call(packets, addrs)  # noqa: E702
            if end:
                self.close()
        finally:
            taken = monotonic() - began
            if taken > _TURN:
                self._share = max(1, int(count * _TURN / taken))
            elif share < batch.LIMIT and count >= share and 4 * taken < _TURN:
                self._share = min(batch.LIMIT, 4 * share)

    def _open_batch(self) -> None:
        """Put what is in the sealed packets in their place."""
        reader = self._socket_reader
        both = packets, _ = self._open_packets(*reader.batch)
        reader.batch, reader.left, reader.unread, self._opened_batch = both, iter(packets), None, both

    def _open_packets(self, packets: list[bytes], addresses: list[Address]) -> tuple[list[bytes], list[Address]]:
        """Return what is in the sealed packets that are accepted, and their addresses."""
        reader = self._socket_reader
        if reader.truncated != self._truncated_before:
            self._truncated_before = reader.truncated
            whole = [(packet, addr) for packet, addr in zip(packets, addresses, strict=True) if not addr.truncated]
            cut = len(packets) - len(whole)
            self._opener.reject_cut(cut)
            self._not_opened += cut
            self._seal_bytes += cut * reader.mtu
            packets, addresses = [packet for packet, _ in whole], [addr for _, addr in whole]
        opened = self._open_all(packets, addresses)
        if None in opened:
            addresses = [addr for data, addr in zip(opened, addresses, strict=True) if data is not None]
            self._not_opened += len(opened) - len(addresses)
            self._seal_bytes += sum(len(packet) for packet, data in zip(packets, opened, strict=True) if data is None)
            opened = [data for data in opened if data is not None]
        plain = cast(list[bytes], opened)
        self._seal_bytes += self._opener.overhead * len(plain)
        return plain, addresses

    def _open_all(self, packets: list[bytes], addresses: list[Address]) -> list[bytes | None]:
        opened: list[bytes | None] = self._opener.open_all(packets)
        return opened

    def _forget_unread(self) -> None:
        """Deliver nothing of what was read before."""
        self._unread_forgotten += self._waiting; self._socket_reader.batch[0].clear()  # noqa: E702

    def close(self) -> None:
        """Leave the groups, unregister, and close the socket; nothing is delivered from then on. Idempotent."""
        if self.socket is not None:
            try:
                super().close()
            finally:
                self._forget_unread()

    def _abandon(self) -> None:
        super()._abandon()
        self._forget_unread()

    @property
    def pending(self) -> bool:
        """Whether packets were read from the socket that are not delivered yet."""
        return bool(self._waiting or self._socket_reader.unmade)

    @property
    def rcvbuf(self) -> int:
        """The receive buffer the kernel granted, in bytes; 0 once closed."""
        return 0 if self.socket is None else receive_buffer(self.socket)

    def statistics(self) -> Statistics:
        """Return what was counted so far; it stays readable after `close`."""
        self._count_drops()
        reader = self._socket_reader
        packets, octets, truncated = self._read_before
        packets += reader.packets
        return Statistics(
            packets,
            octets + reader.bytes - self._seal_bytes,
            packets - self._filter_refused - self._not_opened - self._unread_forgotten - self._waiting,
            self._filter_refused + self._refused_in_kernel,
            truncated + reader.truncated,
            self._kernel_dropped,
            self._not_opened,
        )

    @property
    def rejected(self) -> Rejected | None:
        """How many packets were not opened, by cause; None without `seal`."""
        return None if self._opener is None else self._opener.rejected

    @property
    def _waiting(self) -> int:
        """How many packets were read and not delivered yet."""
        return length_hint(self._socket_reader.left)

    @property
    def _kernel_refuses(self) -> bool:
        """Whether the kernel's counter of drops has packets in it that were not wanted."""
        return bool(self._kernel_program)

    def _count_from(self, opened: socket.socket) -> None:
        """Count what the kernel drops at this socket from now on."""
        self._dropped_here = 0
        self._overflows = (overflows(opened) or 0) if self._kernel_refuses else 0

    def _count_drops(self) -> None:
        if self.socket is None:
            return
        try:
            # The host's counter first: it must not know of drops that this socket's does not.
            overflowed = overflows(self.socket) if self._kernel_refuses else None
            # The kernel's counter has 32 bits and wraps.
            new = (drops(self.socket) - self._dropped_here) & 0xFFFFFFFF
        except OSError:  # somebody else has closed its descriptor
            return
        self._dropped_here += new
        if overflowed is not None:
            # What the host has lost since the last look is the most that can have been lost here; the rest was refused.
            lost = min(new, max(0, overflowed - self._overflows))
            self._overflows = overflowed
            self._refused_in_kernel += new - lost
            new = lost
        self._kernel_dropped += new

    def _leave(self, socket: socket.socket) -> None:
        self._count_drops()
