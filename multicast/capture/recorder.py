"""`Recorder`: a listener that writes every packet to a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from itertools import compress
from operator import length_hint
from typing import Any

from multicast import batch
from multicast.batch import Address
from multicast.errors import ArgumentError, check_number
from multicast.filters import Filter
from multicast.listeners import MulticastListener
from multicast.poller import Poller, Timer, report
from multicast.sealed import Seal
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterfaces

from .writing import Writer

__all__ = ["Recorder"]

# How often what is gathered goes to the file, in seconds: a crash costs no more than that.
_FLUSH = 1.0
# 200 milliseconds of 200,000 small packets a second, each of which the kernel counts as 832 bytes.
_RCVBUF = 1 << 24
# For how long closing takes packets, in seconds, should they not end.
_DRAIN = 1.0


class Recorder(MulticastListener):
    """Writes every packet of a group to a pcapng file, with the time at which the kernel received it.

    `path` is where the file is to be, or a `Writer` that several recorders share, one for each group; they leave its
    closing to whoever made it. `snaplen`, `rotate`, `every` and `keep` are those of `Writer`. Recording ends when the
    file has `limit` packets. With `seal` (a `sealed.Seal`) it has the packets that open, as they are when opened, or
    with `keep_sealed` as they came. `rcvbuf`, in bytes, is how much the kernel may keep while the program is busy
    elsewhere. The other arguments are those of `MulticastListener`.

    The file is brought up to date once a second, and by `close`, which also takes what waits in the kernel. It says
    which groups were joined and how many packets the kernel had to drop. A disk that is full ends the recording: the
    error leaves `poll`, or is given to `handle_error(exc)` where a subclass has it, and the file stays good.

    `filter` is asked here and never in the kernel, which counts what it refuses and what it has to drop in one: the
    counts of a recording are exact. So what does not pass takes room in the kernel's buffer as well. The kernel counts
    by socket; where the group is joined on several interfaces nobody knows by which of them the dropped packets came,
    and the file has their number under the name of the socket.

    The time of the very first packet may be that of its reading: the kernel needs up to a tenth of a second to switch
    time stamps on, when no other program uses them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Writer,
        filter: Filter = None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        *,
        limit: int | None = None,
        snaplen: int | None = None,
        rotate: int | None = None,
        every: float | None = None,
        keep: int | None = None,
        interface: WhichInterfaces = None,
        sources: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        rcvbuf: int | None = _RCVBUF,
        seal: Seal | None = None,
        keep_sealed: bool = False,
        poller: Poller | None = None,
    ) -> None:
        if limit is not None:
            check_number("limit", limit, of="packets")
        if keep_sealed and seal is None:
            raise ArgumentError("keep_sealed is for packets that a seal opens; give seal=, or leave keep_sealed out")
        self._keep_sealed = keep_sealed
        super().__init__(
            filter,
            ip,
            port,
            65535,
            interface=interface,
            sources=sources,
            exclude=exclude,
            rcvbuf=rcvbuf,
            details=True,
            kernel_filter=False,
            seal=seal,
            poller=poller,
        )
        # After the joins, for they may fail, and an old recording be lost for nothing.
        #: The file.
        self.file = (
            path
            if isinstance(path, Writer)
            else Writer(path, snaplen=snaplen, rotate=rotate, every=every, keep=keep)
        )
        names = ", ".join(interface.name for interface in self.interfaces)
        self.file.describe(f"{self.group} joined on {names}")
        for joined in self.interfaces:
            self.file.interface(joined.name)
        self._joined = tuple(interface.name for interface in self.interfaces)
        self._limit = limit
        self._told = 0  # drops that the file knows of
        self._file_had = 0  # packets, before the batch that is being written
        self._own_file = not isinstance(path, Writer)
        self._recording = True

    def _finish_construction(self) -> None:
        super()._finish_construction()
        # In the first poll, when all that share the file have said what they joined.
        self.poller.call_soon(self._tick)

    def handle_read(self) -> bool | None:
        """Receive a batch and write it; return whether more may be waiting. Called by the poller."""
        before = self._socket_reader.packets
        self._record()
        return self._socket_reader.packets - before >= batch.LIMIT

    def _open_all(self, packets: list[bytes], addresses: list[Address]) -> list[bytes | None]:
        opened = super()._open_all(packets, addresses)
        self._opened_sealed = [packet for packet, data in zip(packets, opened, strict=True) if data is not None]
        return opened

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Write one packet. The poller's packets are written by the batch, and do not come by here."""
        self.file.extend([packet], [addr], self.group.address, self.group.port)
        return False

    def kept(self, packets: list[bytes]) -> list[bytes]:
        """Return what is written of a batch of packets, in a list of the same length; for subclasses."""
        return packets

    def _record(self) -> bool:
        """Receive one batch and write it; return whether there was any."""
        file = self.file
        if file.closed:  # by another recorder, for the disk is full
            self.close()
            return False
        if not self._to_write[0] and not self._take_batch():
            return False
        try:
            self._file_had = file.packets
            file.extend(*self._to_write, self.group.address, self.group.port)
            self._to_write = [], []
        except OSError:
            self._to_write = [], []
            self.close()
            raise
        if self.complete:
            self.close()
        return True

    def _take_batch(self) -> bool:
        """Receive one batch, and find out what of it is to be written; return whether there was any."""
        reader = self._socket_reader
        if not length_hint(reader.left):
            batch.receive(reader)
            if not reader.batch[0]:
                return False
        if self._opener is not None and self._opened_batch is not reader.batch:
            self._open_batch()
        packets, addrs = reader.batch
        kept = self._opened_sealed if self._keep_sealed else packets
        accept = self._passes_filter
        if accept is not None:
            passed = [accept(*pair) for pair in zip(packets, addrs, strict=True)]
            kept, addrs = list(compress(kept, passed)), list(compress(addrs, passed))
        refused, forgotten = self._filter_refused + len(packets) - len(kept), self._unread_forgotten
        packets = self.kept(kept)
        if self._limit is not None:
            room = max(0, self._limit - self.file.packets)
            forgotten += max(0, len(packets) - room)
            packets, addrs = packets[:room], addrs[:room]
        gone: Any = (packets, addrs), ([], []), iter(()), refused, forgotten
        self._to_write, reader.batch, reader.left, self._filter_refused, self._unread_forgotten = gone  # one step
        return True

    def _resume(self) -> None:
        done = max(0, self.file.packets - self._file_had)  # of a batch whose writing was interrupted
        self._to_write = self._to_write[0][done:], self._to_write[1][done:]
        self._file_had += done
        super()._resume()

    @property
    def _waiting(self) -> int:
        return super()._waiting + len(self._to_write[0])

    @property
    def complete(self) -> bool:
        """Whether the file has the packets that were wanted."""
        return self._limit is not None and self.file.packets >= self._limit

    def _tick(self) -> None:
        if self.closed:
            return
        if self.file.closed or self.complete:  # by what another recorder wrote
            self.close()
            return
        self._timer = self.poller.call_later(_FLUSH, self._tick)
        try:
            self._tell_drops()
            self.file.flush()
        except OSError as error:
            self.close()
            report(self, error)

    def _tell_drops(self) -> None:
        self._count_drops()
        new, self._told = self._kernel_dropped - self._told, self._kernel_dropped
        # They may have come by an interface that was joined since, or that is gone.
        now = tuple(interface.name for interface in self.interfaces)
        names = tuple(dict.fromkeys((*self._joined, *now)))
        self._joined = now or self._joined
        if self.file.closed:
            return
        if len(names) == 1:
            self.file.dropped(names[0], new)
        else:
            self.file.dropped(
                f"socket of {self.group}",
                new,
                f"dropped at a socket joined on {', '.join(names)}; the kernel does not tell interfaces apart",
                among=names,
            )

    def _leave(self, socket: Any) -> None:
        """Leave the group, so that nothing more comes, and take what the kernel has received until then."""
        super()._leave(socket)
        if not self._recording:  # the constructor has failed
            return
        self._closing = True
        # Before Linux 4.20 packets of an IPv6 group that another program has joined go on coming.
        enough = time.monotonic() + _DRAIN
        try:
            while not self.file.closed and not self.complete and self._record() and time.monotonic() < enough:
                pass
        finally:
            self._tell_drops()

    _closing = _recording = _own_file = False
    _to_write: tuple[list[bytes], list[Address]] = [], []  # taken from the reader
    _timer: Timer | None = None

    def close(self) -> None:
        """Write what is left, leave the group, and close the socket; and the file, unless it is shared. Idempotent."""
        if self.closed or self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            super().close()
        finally:
            if self._own_file:
                self.file.close()
