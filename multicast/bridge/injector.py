"""`Injector`: sends what came from other sites to the groups of this network."""

from __future__ import annotations

import errno
import logging
import socket
from collections import deque
from collections.abc import Iterable

from multicast import batch
from multicast.errors import describe
from multicast.interfaces import interfaces
from multicast.senders import destination
from multicast.sockets import Group, WhichInterface, open_sender, pin, stranded

__all__ = ["Injector", "Outlet"]

_log = logging.getLogger("multicast")

# How many bytes wait for one group while the queue of its interface is full.
_WAITING = 4 << 20


class Outlet:
    """The way to one group: packets wait here while the kernel has no room."""

    __slots__ = ("_size", "_told", "_waiting", "failed", "full", "group", "sent", "sent_bytes", "writer")

    def __init__(self, group: Group, writer: batch.Writer) -> None:
        self.group = group
        self.writer = writer
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._told = False  # of an error
        #: Packets that the kernel took, and their bytes.
        self.sent = self.sent_bytes = 0
        #: Packets that it refused, and those for which there was no room.
        self.failed = self.full = 0

    @property
    def troubled(self) -> bool:
        """Whether the packet that was sent last was refused."""
        return self._told

    @property
    def waiting(self) -> int:
        """How many packets wait."""
        return len(self._waiting)

    def send(self, packets: list[bytes]) -> bool:
        """Send packets after those that wait; return whether some have to wait, for `send` to be called again."""
        if self._waiting:
            for packet in packets:
                if self._size + len(packet) > _WAITING:
                    self.full += 1
                else:
                    self._waiting.append(packet)
                    self._size += len(packet)
            packets = list(self._waiting)
            self._waiting.clear()
            self._size = 0
        done, end = 0, len(packets)
        while done < end:
            try:
                count = batch.send(self.writer, packets, done)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    break
                # This packet does not go; the next one may, as one that is shorter.
                self.failed += 1
                done += 1
                if not self._told:
                    self._told = True
                    _log.warning("bridge: packets are not injected into %s: %s", self.group, describe(error))
            else:
                self.sent += count
                self.sent_bytes += sum(map(len, packets[done : done + count]))
                done += count
                self._told = False
        self._waiting.extend(packets[done:])
        self._size = sum(map(len, self._waiting))
        return bool(self._waiting)


class Injector:
    """The sockets that packets are injected from.

    Groups of one family and interface share a socket, so that a bridge of thousands of groups has few addresses to tell
    the others, who tell its packets from those of programs by them.
    """

    def __init__(self, ttl: int, interface: WhichInterface | None, otherwise: WhichInterface | None) -> None:
        """`interface` is that of all groups; `otherwise` that of groups which name none themselves."""
        self._ttl = ttl
        self._interface = interface
        self._otherwise = otherwise
        self._sockets: dict[object, socket.socket] = {}

    def outlet(self, group: Group) -> Outlet:
        """Return the way to a group. Raises what `Sender` raises."""
        return Outlet(group, self._writer(group))

    def renew(self, outlets: Iterable[Outlet]) -> None:
        """Open new sockets, as for an interface that was made again. Raises what `Sender` raises."""
        before, self._sockets = self._sockets, {}
        try:
            for outlet in outlets:
                outlet.writer = self._writer(outlet.group)
        except BaseException:
            before.update(self._sockets)  # some outlets have a new one already
            self._sockets = before
            raise
        for opened in before.values():
            opened.close()

    def _writer(self, group: Group) -> batch.Writer:
        interface = self._interface
        if interface is None:
            interface = group.interfaces[0] if group.interfaces else self._otherwise
        to = destination(group.address, group.port)
        alone = stranded(to, self._ttl, interface, None)
        key = (group.family, interface, alone)
        found = self._sockets.get(key)
        if found is None:
            opened, sockaddr = open_sender(to, self._ttl, interface=interface)
            if not opened.getsockname()[1]:
                opened.bind((group.table.everywhere, 0))  # the port has to be known before the first packet
            self._sockets[key] = opened
        else:
            opened = found
            sockaddr = to.sockaddr() if alone else pin(opened, to, self._ttl, interface, None)
        return batch.Writer(opened, sockaddr, offload=True)

    def addresses(self) -> set[tuple[str, int]]:
        """Return the addresses and ports that injected packets come from."""
        ports = {opened.getsockname()[1] for opened in self._sockets.values()}
        own = {address.partition("%")[0] for one in interfaces() for address in one.addresses}
        return {(address, port) for address in own for port in ports}

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()
