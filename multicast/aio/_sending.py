"""Sending, awaited."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Self

from multicast import batch
from multicast.errors import check_seal
from multicast.sealed import Seal
from multicast.senders import Transmission, as_packets, destination
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT, WhichInterface, open_sender, takes_bursts

from ._driving import current_backend
from ._shared import copied

__all__ = ["Sender", "sendto"]


class Sender:
    """Sends to a group, again and again, from one socket; an async context manager.

    The arguments are those of `multicast.sendto`. `send` waits while the kernel has no room, so a fast producer is
    slowed to what the network takes.
    """

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
        self._to = destination(ip, port)
        self._encode = None if seal is None else seal.sealer().encode
        self._wakers: set[Callable[[], object]] = set()  # of the tasks that wait for room
        self._socket, sockaddr = open_sender(
            self._to, ttl, interface=interface, source_ip=source_ip, source_port=source_port, loopback=loopback
        )
        self._writer = batch.Writer(self._socket, sockaddr, offload=offload and takes_bursts())

    async def send(self, packets: str | bytes | Iterable[str | bytes]) -> int:
        """Send one packet or an iterable of packets; return how many, once the kernel has taken all of them.

        Raises what `multicast.sendto` raises. Other tasks run meanwhile; two of them may send at the same time, and
        their packets mix.
        """
        backend = current_backend()
        source = as_packets(packets)
        encode = self._encode
        if encode is not None:
            source = (encode(packet, self._to.longest) for packet in source)
        transmission = Transmission(self._writer, self._to, source)
        try:
            for pause in transmission:
                if pause is None:
                    # A copy for each who waits, as event loops know one for each descriptor.
                    with copied(self._socket.fileno()) as fd:
                        await backend.writable(fd, self._wakers)
                else:
                    await backend.sleep(pause)
        except OSError as error:
            if error.errno == errno.EBADF and self._socket.fileno() < 0:
                error.add_note("The sender is closed; make another one to send more.")
            raise
        return transmission.sent

    def close(self) -> None:
        """Close the socket. Idempotent. A task that waits in `send` gets an `OSError`, as one has that sends later."""
        self._socket.close()
        for wake in list(self._wakers):
            wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self.close()


async def sendto(
    packets: str | bytes | Iterable[str | bytes],
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
    """Send packets to a group and return how many, as `multicast.sendto` does, letting other tasks run meanwhile."""
    async with Sender(
        ip,
        port,
        ttl,
        interface=interface,
        source_ip=source_ip,
        source_port=source_port,
        loopback=loopback,
        offload=offload,
        seal=seal,
    ) as sender:
        return await sender.send(packets)
