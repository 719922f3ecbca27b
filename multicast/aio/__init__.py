"""The same things awaited: on asyncio, uvloop, trio, and anyio on either of them.

Nothing is implemented twice here. A `Poller` has a descriptor that is readable whenever it has something to do, its
timers included, so an event loop drives it by watching that one descriptor. Which event loop runs is found out when
something has to be awaited; the others are not imported.

Packets are read when somebody awaits them, a batch at a time, and wait in the kernel's buffer otherwise: a slow
consumer costs no memory, and what overflows is counted there. Each object here has a poller of its own, so an error in
a handler is raised in the task that awaits that object, and cancelling the task closes it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from multicast.sealed import Seal
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterface

from ._asking import Replies, request, responder
from ._driving import drive
from ._listening import Packets, listen
from ._sending import Sender, sendto

if TYPE_CHECKING:
    import asyncio

    from multicast.feeds.subscriber import Line

    from ._endpoint import MulticastTransport
    from ._feeds import Messages

    _Protocol = TypeVar("_Protocol", bound=asyncio.DatagramProtocol)

__all__ = [
    "Packets",
    "Replies",
    "Sender",
    "create_multicast_endpoint",
    "drive",
    "listen",
    "request",
    "responder",
    "sendto",
    "subscribe",
]


# What these need is imported when they are called: many programs use neither feeds nor protocols of asyncio.


def subscribe(
    lines: Line | Iterable[Line],
    *,
    start: str | int = "live",
    session: str | bytes | None = None,
    repair: bool | Sequence[tuple[str, int]] = True,
    patience: float = 0.02,
    give_up: float = 2.0,
    window: int = 65536,
    **options: Any,
) -> Messages:
    """Subscribe to a sequenced feed and return its messages, in order and each once, to iterate over.

    ::

        async for message in aio.subscribe("239.1.2.3:5000", start="first"):
            ...

    Ends with the session. In the place of messages that will not come it raises `MessagesLost`, after which iterating
    may go on; `number` and `addr` of the iterator tell which message was returned last, and where it came from. The
    arguments and the errors are those of `multicast.feeds.Subscriber`.
    """
    from ._feeds import Messages

    wanted = {"start": start, "session": session, "repair": repair, "patience": patience, "give_up": give_up}
    return Messages(lines, {**wanted, "window": window, **options})


async def create_multicast_endpoint(
    protocol_factory: Callable[[], _Protocol],
    ip: str = DEFAULT_IP,
    port: int = DEFAULT_PORT,
    *,
    interface: WhichInterface | None = None,
    sources: Iterable[str] | None = None,
    ttl: int = 1,
    mtu: int = 65535,
    rcvbuf: int | None = None,
    loopback: bool = True,
    seal: Seal | None = None,
) -> tuple[MulticastTransport, _Protocol]:
    """Join a group for code written against `asyncio.DatagramProtocol`; return `(transport, protocol)`.

    `datagram_received(data, addr)` is called for packets to the group and for answers to what was sent.
    `transport.sendto(data)` without an address goes to the group, by `interface` and with `ttl`; with an address it
    goes there. Nothing is connected, so answers from anywhere arrive. With `seal` all that is sent is sealed, answers
    too, and what arrives is opened. Runs on asyncio and uvloop; the rest is as in
    `loop.create_datagram_endpoint`.
    """
    from ._endpoint import open_endpoint

    return open_endpoint(
        protocol_factory,
        ip,
        port,
        interface=interface,
        sources=sources,
        ttl=ttl,
        mtu=mtu,
        rcvbuf=rcvbuf,
        loopback=loopback,
        seal=seal,
    )
