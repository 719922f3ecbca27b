"""Multicast UDP on an epoll poller.

A `Poller` drives registered objects: `Multicaster` subclasses send the packets they yield, `MulticastListener`
subclasses get the packets that pass a filter. The functions `sendto`, `listen`, `register`, `unregister`, `poll` and
`loop` act on one default poller::

    import multicast

    class Printer(multicast.MulticastListener):
        def handle_packet(self, packet, addr):
            print(addr.host, packet)

    Printer(ip="239.1.2.3", port=5000)
    multicast.loop()
"""

from __future__ import annotations

from .batch import Address
from .errors import (
    ArgumentError,
    BridgeError,
    CaptureError,
    FilterError,
    FrameError,
    GroupError,
    InterfaceError,
    MessagesLost,
    MulticastError,
    NoReply,
    PacketSizeError,
    PacketTypeError,
    PeerTimeout,
    RegistrationError,
)
from .interfaces import Interface
from .listeners import DatagramListener, Inbox, MulticastListener, Statistics, listen
from .poller import Dispatcher, HasFileno, Poller, Repeater, Timer
from .poller import _defaultPoller as _defaultPoller
from .senders import Multicaster, Sender, SenderStatistics, sendto
from .sockets import Group, Scope

__all__ = [
    "Address",
    "ArgumentError",
    "BridgeError",
    "CaptureError",
    "DatagramListener",
    "Dispatcher",
    "FilterError",
    "FrameError",
    "Group",
    "GroupError",
    "Inbox",
    "Interface",
    "InterfaceError",
    "MessagesLost",
    "MulticastError",
    "MulticastListener",
    "Multicaster",
    "NoReply",
    "PacketSizeError",
    "PacketTypeError",
    "PeerTimeout",
    "Poller",
    "RegistrationError",
    "Repeater",
    "Scope",
    "Sender",
    "SenderStatistics",
    "Statistics",
    "Timer",
    "listen",
    "loop",
    "poll",
    "register",
    "sendto",
    "unregister",
]

__version__ = "0.2.0"


def register(fd: HasFileno, flags: int = 0) -> None:
    """Register `fd` with the default poller; see `Poller.register`."""
    _defaultPoller.register(fd, flags)


def unregister(fd: HasFileno | int) -> None:
    """Remove `fd` from the default poller; see `Poller.unregister`."""
    _defaultPoller.unregister(fd)


def poll(timeout: float | None = 0) -> None:
    """Look once for events on what is registered with the default poller; see `Poller.poll`."""
    _defaultPoller.poll(timeout)


def loop(timeout: float = 0, interval: float = 0, *, busy: bool = False) -> None:
    """Poll with the default poller until nothing is registered or it is stopped; see `Poller.loop`."""
    _defaultPoller.loop(timeout, interval, busy=busy)
