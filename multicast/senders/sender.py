"""`Sender`: packets to one destination from one socket. `sendto`: the same from a sender that was opened before."""

from __future__ import annotations

import atexit
import errno
import math
import os
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self

from multicast import batch
from multicast.batch import Packet
from multicast.errors import check_seal
from multicast.interfaces import Watch
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, Endpoint, WhichInterface, open_sender, takes_bursts

from .transmission import LARGE, Transmission, as_packets, bound_name, destination

if TYPE_CHECKING:
    from multicast.sealed import Seal


class Sender:
    """Sends packets to one group, or one host, from one socket.

    `ip`, `port`, `ttl`, `interface`, `source_ip`, `source_port`, `loopback`, `offload` and `seal` are as in `sendto`.
    The socket stays open until `close`, so the interface and the source address are chosen once: a program that
    outlives changes of the network makes another sender, or uses `Multicaster`. A sender is a context manager and may
    be used by one thread at a time.

    Raises `GroupError`, `ArgumentError`, `InterfaceError`, and `OSError` with advice.

    >>> with Sender(ttl=0) as sender:
    ...     sender.send("one"), sender.send(["two", "three"])
    (1, 2)
    """

    _socket: socket.socket | None = None

    def __init__(
        self,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        ttl: int = 1,
        *,
        interface: WhichInterface | None = None,
        source_ip: str | None = None,
        source_port: int = 0,
        loopback: bool = True,
        offload: bool = True,
        seal: Seal | None = None,
    ) -> None:
        check_seal(seal)
        self._open(destination(ip, port), ttl, interface, source_ip, source_port, loopback, offload, seal)

    def _open(
        self,
        to: Endpoint,
        ttl: int,
        interface: WhichInterface | None,
        source_ip: str | None,
        source_port: int,
        loopback: bool,
        offload: bool,
        seal: Seal | None,
    ) -> None:
        #: Where the packets go.
        self.group = to
        self._longest = to.longest
        self._encode = batch.encode if seal is None else seal.sealer().encode
        self._socket, self._sockaddr = open_sender(
            to, ttl, interface=interface, source_ip=source_ip, source_port=source_port, loopback=loopback
        )
        self._writer = batch.Writer(self._socket, self._sockaddr, offload=offload and takes_bursts())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.group}{', closed' if self.closed else ''}>"

    def send(self, packets: Packet | Iterable[object]) -> int:
        """Send one packet or an iterable of packets; return how many, once the kernel has taken all of them.

        A packet is bytes-like, or text, which is sent as UTF-8. While the kernel has no room it waits. Raises
        `PacketTypeError`, `PacketSizeError`, and `OSError` with advice; packets before the one that failed are sent.
        """
        if isinstance(packets, (bytes, str)):
            data = self._encode(packets, self._longest)
            try:
                self._opened().sendto(data, self._sockaddr)
            except OSError:
                pass  # no room, or an error of a packet before: below, this one is tried again
            else:
                return 1
        opened = self._opened()
        # What is all there already can go in large pieces.
        chunk = LARGE if isinstance(packets, (list, tuple)) else None
        transmission = Transmission(self._writer, self.group, self._encoded(as_packets(packets)), chunk)
        for pause in transmission:
            if pause is None:
                waiting = select.poll()
                waiting.register(opened, select.POLLOUT)
                waiting.poll()
            elif pause:
                sleep(pause)
        return transmission.sent

    def _encoded(self, packets: Iterator[object]) -> Iterator[object]:
        encode = self._encode
        return packets if encode is batch.encode else (encode(packet, self._longest) for packet in packets)

    def _opened(self) -> socket.socket:
        if self._socket is None:
            raise OSError(errno.EBADF, "the sender is closed; make another one to send more")
        return self._socket

    @property
    def address(self) -> tuple[Any, ...] | None:
        """The address and port it sends from, as `socket.getsockname` gives them; None before the first packet.

        Unless `source_ip` or `interface` names an address, the kernel chooses it for each packet, and it is 0.0.0.0 or
        ``::`` here.
        """
        return None if self._socket is None else bound_name(self._socket)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket is None

    def close(self) -> None:
        """Close the socket. Idempotent."""
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


# -- sendto --------------------------------------------------------------------------------------------------------

# How many senders of `sendto` a thread keeps, and for how many seconds after their last use.
_MOST, _KEPT = 8, 1.0
# A call that follows another at once does not look for changes, which takes half as long as sending. At once is within
# this share of the time that the call before took, or of the least time seen where that is much less. Where a call
# takes 3 microseconds, 0.5 pass between two of a loop, and setns(2) by ctypes, to enter another network namespace,
# takes 1.3 more. How fast the machine is changes all of them alike.
_SHARE, _MUCH = 0.4, 1.2
# By so much the least time rises with each call, as processors change their speed.
_RISE = 1.05
# A loop that sends without a pause looks for changes after so many seconds.
_LOOK = 1e-3


class _Namespace:
    """The network namespace that a thread is in. By a descriptor it is looked up in a third of the time."""

    def __init__(self) -> None:
        self._fd: int = os.open("/proc/thread-self/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = os.readlink("net", dir_fd=self._fd)

    def is_left(self) -> bool:
        """Whether the thread is in another one now."""
        return os.readlink("net", dir_fd=self._fd) != self._name

    def __del__(self) -> None:
        os.close(self._fd)


class _Recent:
    """The senders that `sendto` has used lately in one thread.

    They belong to a thread, as its network namespace does. They are forgotten when the interfaces, addresses or routes
    of the namespace change, when the thread enters another namespace, when they were not used for a second, in a forked
    child, and at the end of the thread or of the program. A sender is looked at when `sendto` is called next: closing
    it on time would need a thread or a signal, so up to eight sockets, and two descriptors for the changes, may stay
    open in a thread that stops sending. `forget_senders` closes them.
    """

    def __init__(self) -> None:
        self._senders: dict[object, tuple[Sender, float]] = {}  # the one used last is the last
        self._watch: Watch | None = None
        self._changes: select.poll | None = None
        self._namespace: _Namespace | None = None
        self._began = math.inf  # when the last call began to send, with a sender from here
        self._least = math.inf  # the least time that a call took, of late
        self._trusted_until = self._look_at = 0.0

    def take(self, key: object, began: float) -> Sender | None:
        """Return the sender for `key`, which is not among the recent ones until `keep`, or None.

        `began` is when `sendto` was called.
        """
        self._began = math.inf
        if not self._senders:
            return None
        if began > self._trusted_until:
            if self._changes is None or self._changes.poll(0) or self._namespace is None or self._namespace.is_left():
                self.forget()
                return None
            while self._senders:
                oldest = next(iter(self._senders))
                if began - self._senders[oldest][1] < _KEPT:
                    break
                self._senders.pop(oldest)[0].close()
            began = monotonic()
            self._look_at = began + _LOOK
        found = self._senders.pop(key, None)
        if found is None:
            return None
        self._began = began
        return found[0]

    def keep(self, key: object, sender: Sender) -> None:
        """Keep a sender for the next call."""
        took = monotonic() - self._began  # below 0 for a new sender
        if self._watch is None and not self._look():
            sender.close()
            return
        double = self._senders.pop(key, None)  # of a call within the call
        if double is not None:
            double[0].close()
        if len(self._senders) >= _MOST:
            self._senders.pop(next(iter(self._senders)))[0].close()
        if took > 0:
            self._least = min(took, _RISE * self._least)
        now = monotonic()
        self._senders[key] = (sender, now)
        self._trusted_until = now + _SHARE * min(took, _MUCH * self._least) if now < self._look_at else 0.0

    def _look(self) -> bool:
        """Look for changes from now on; return whether that is possible."""
        try:
            self._namespace = _Namespace()
            self._watch = Watch(self.forget, routes=True)
        except OSError:  # no /proc, or no descriptor left
            self.forget()
            return False
        self._changes = select.poll()
        self._changes.register(self._watch, select.POLLIN)
        return True

    def forget(self) -> None:
        """Close all of them."""
        senders, self._senders = self._senders, {}
        for sender, _ in senders.values():
            sender.close()
        watch, self._watch, self._changes, self._namespace = self._watch, None, None, None
        if watch is not None:
            watch.close()


class _Recents(threading.local):
    """What each thread has sent lately: to be looked up once in a call, as that takes a tenth of a microsecond."""

    def __init__(self) -> None:
        self.of_thread = _Recent()


_recent = _Recents()


def forget_senders() -> None:
    """Close the sockets that `sendto` keeps for its next call in this thread.

    It keeps those of the last destinations, eight at most, and closes each that was not used for a second when it is
    called again. This closes them now.
    """
    _recent.of_thread.forget()


os.register_at_fork(after_in_child=forget_senders)
atexit.register(forget_senders)

def sendto(
    packets: Packet | Iterable[Packet],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    ttl: int = 1,
    *,
    interface: WhichInterface | None = None,
    source_ip: str | None = None,
    source_port: int = 0,
    loopback: bool = True,
    offload: bool = True,
    seal: Seal | None = None,
) -> int:
    """Send packets to the multicast group at `ip` on `port`; return how many were handed to the kernel.

    `packets` is one packet, bytes-like or text (sent as UTF-8), or an iterable of packets. They are sent now, before
    the function returns; no other object's handler runs meanwhile. `ttl` says how far packets to a group go: 0 same
    host, 1 same subnet, 32 same site, 64 same region, 128 same continent, 255 unrestricted.

    `interface` (name, index or address) is the wire they leave by, `source_ip` the address they come from, together
    with its interface, `source_port` the port they come from. With `loopback` False listeners on this host do not
    hear them. `ip` may also be the address of a single host. Runs of packets of one size are handed to the kernel as
    bursts (UDP_SEGMENT), which is many times faster and on the wire the same; with `offload` False each goes alone.
    `seal` (a `sealed.Seal`) encrypts and authenticates each packet; it is then 40 bytes longer.

    Raises `GroupError`, `ArgumentError`, `InterfaceError`, `PacketTypeError`, `PacketSizeError` and `OSError`, each
    with words that say what to do.

    >>> sendto(["one", b"two"], ttl=0)
    2
    """
    began = monotonic()
    if seal is not None:
        check_seal(seal)
    sender = None
    recent = _recent.of_thread
    wanted: Packet | Iterable[object] = packets
    # Other types may be equal to these, and be refused: they go the way on which everything is looked at.
    key = (
        (ip, port, ttl, interface, source_ip, loopback, offload, seal)
        if type(ip) is str and type(port) is int and type(ttl) is int and (interface is None or type(interface) is str)
        and (source_ip is None or type(source_ip) is str) and type(source_port) is int and source_port == 0
        else None
    )  # fmt: skip
    if key is not None:
        sender = recent.take(key, began)
    if sender is None:
        # The first packet is looked at before a socket is opened: most mistakes are in all packets alike.
        to = destination(ip, port)
        longest, overhead = to.longest, 0 if seal is None else seal.overhead
        if isinstance(packets, (bytes, str)):
            batch.encode(packets, longest, overhead)
        elif not isinstance(packets, (list, tuple)):
            source = as_packets(packets)
            first: list[object] = [batch.encode(packet, longest, overhead) for packet in islice(source, 1)]
            wanted = chain(first, source)
        elif packets:
            batch.encode(packets[0], longest, overhead)
        sender = Sender.__new__(Sender)
        sender._open(to, ttl, interface, source_ip, source_port, loopback, offload, seal)
    try:
        sent = sender.send(wanted)
    except BaseException:
        sender.close()
        raise
    if key is None:
        sender.close()
    else:
        recent.keep(key, sender)
    return sent
