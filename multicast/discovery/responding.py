"""Answering a group's requests: whom, how often and with how much."""

from __future__ import annotations

import socket
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from multicast import batch, sockets
from multicast.batch import Address
from multicast.errors import ArgumentError, PacketSizeError, check_number
from multicast.filters import Filter
from multicast.listeners import MulticastListener
from multicast.sealed import OVERHEAD, Seal, reference
from multicast.sockets import DEFAULT_IP, DEFAULT_PORT

from .rules import Allowance, Copies, answerable, arrival

# To how many of the last sealed requests there can be a reply.
_MOST_SEALED = 4096
# Any IPv6 path carries packets of 1280 bytes (RFC 8200 section 5), of which the headers of IPv6 and UDP take 48.
_UNFRAGMENTED = 1232


@dataclass(frozen=True, slots=True)
class ReplyStatistics:
    """What a responder has counted so far."""

    #: Requests that passed the filter.
    requests: int
    #: Replies handed to the kernel.
    sent: int
    #: Requests left out as copies of one that came by another interface.
    copies: int
    #: Requests left out because no reply may go to their source: no single host, or a port below 1024.
    unanswerable: int
    #: Requests or replies left out because the allowance of the source or of all together was used up.
    limited: int
    #: Replies that the kernel refused to send.
    failed: int


class Responder(MulticastListener):
    """Answers the requests sent to a group: subclasses implement `handle_request`.

    `filter`, `ip`, `port`, `mtu`, and the keywords `interface`, `sources`, `exclude`, `rcvbuf` and `poller` are those
    of `MulticastListener`. With `seal` (a `sealed.Seal`) requests are opened, and each reply is sealed for its request
    alone, so that a recorded reply is good for no other.

    The reply goes to the requester alone, from the address of the interface that the request came in by, and by that
    interface. So that nobody can have it flood a third host with forged requests, there is at most one reply to each,
    none to an address that is not a single host's or to a port below 1024, at most `per_source` a second to one
    address and `total` a second to all (as many at once after a pause, and after that the rate), no reply is longer
    than `longest` bytes, and none goes farther than `ttl`: 1 is the subnet, more is for requesters behind routers. By
    default an address gets at most 50 replies at once and 50 a second from then on, of 1232 bytes, and all together
    500.
    """

    _reply_socket: socket.socket | None = None

    def __init__(
        self,
        filter: Filter = None,
        ip: str = DEFAULT_IP,
        port: int = DEFAULT_PORT,
        mtu: int = 4096,
        *,
        per_source: float = 50,
        total: float = 500,
        longest: int = _UNFRAGMENTED,
        ttl: int = 1,
        seal: Seal | None = None,
        **options: Any,
    ) -> None:
        self._allowance = Allowance(per_source, total)
        self._copies = Copies()
        check_number("longest", longest, 0, 65507, of="bytes")
        if sockets.check_ttl(ttl) == 0:
            raise ArgumentError("ttl must be 1 or more for replies: packets to a single host cannot have 0")
        #: The most bytes of a reply.
        self.longest = longest
        self._tally = dict.fromkeys(ReplyStatistics.__dataclass_fields__, 0)
        super().__init__(filter, ip, port, mtu, details=True, seal=seal, **options)
        self._sealer = None if seal is None else seal.sealer()
        # What the replies to the last requests refer to, by the identity of their addresses, which are kept here.
        self._references: dict[int, tuple[Address, bytes]] = {}
        # Nobody reads from this socket, so the kernel need not keep what is sent to it.
        self._reply_socket = sockets.open_unicast(self.group.table.everywhere, 0, hops=ttl, rcvbuf=1)

    @abstractmethod
    def handle_request(self, packet: bytes, addr: Address) -> str | bytes | None:
        """Called with each request; return the reply, bytes-like or text, or None for no reply.

        To reply later, return None and call `reply` with the same `addr`, once.
        """

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Have a request answered where that is allowed; called for each packet that passes the filter."""
        now = self.poller.time()
        self._tally["requests"] += 1
        if not answerable(addr.host, addr.port):
            self._tally["unanswerable"] += 1
        elif self._copies.seen(packet, addr.port, addr.interface, arrival(addr.timestamp, time.time_ns(), now)):
            self._tally["copies"] += 1
        elif not self._allowance.permits(addr.host, now):
            self._tally["limited"] += 1
        else:
            reply = self.handle_request(packet, addr)
            if reply is not None:
                self.reply(reply, addr)

    def reply(self, packet: str | bytes, addr: Address) -> bool:
        """Send `packet` to the requester at `addr`, which `handle_request` was called with; return whether it went.

        It does not go when the limits forbid it, the kernel refuses it or the responder is closed; that is counted.
        Raises `PacketTypeError`, and `PacketSizeError` for a reply of more than `longest` bytes.
        """
        data = batch.encode(packet)
        if self._sealer is not None:
            asked, request = self._references.get(id(addr), (None, b""))
            if asked is not addr:
                raise ArgumentError(
                    "a sealed reply needs the very `addr` that handle_request was called with, for one of the last"
                    f" {_MOST_SEALED} requests"
                )
            data = self._sealer.seal_reply(data, request)
        if len(data) > self.longest:
            raise PacketSizeError(
                f"the reply has {len(data)} bytes and this responder sends {self.longest} at most"
                f"{'' if self._sealer is None else f', of which the seal takes {OVERHEAD}'}; shorten it, or raise"
                " longest= where requests cannot be forged"
            )
        if self._reply_socket is None:
            return False
        if not answerable(addr.host, addr.port):
            self._tally["unanswerable"] += 1
            return False
        now = self.poller.time()
        if not self._allowance.permits(addr.host, now):
            self._tally["limited"] += 1
            return False
        self._allowance.take(addr.host, now)
        # With the interface given and no address, the kernel takes that address of the interface which suits the
        # requester. The flow label of IPv6 is the requester's own business.
        index = next((interface.index for interface in self.interfaces if interface.name == addr.interface), 0)
        sockaddr = tuple(addr) if len(addr) == 2 else (addr[0], addr[1], 0, addr[3])
        try:
            sockets.send_by(self._reply_socket, data, sockaddr, index)
        except OSError:
            # What a requester writes as its source must not be able to stop us, so this is counted and not raised.
            self._tally["failed"] += 1
            return False
        self._tally["sent"] += 1
        return True

    def _open_all(self, packets: list[bytes], addresses: list[Address]) -> list[bytes | None]:
        opened = super()._open_all(packets, addresses)
        references = self._references
        for packet, addr, plain in zip(packets, addresses, opened, strict=True):
            if plain is not None:
                references[id(addr)] = addr, reference(packet)
                if len(references) > _MOST_SEALED:
                    del references[next(iter(references))]
        return opened

    @property
    def room(self) -> int:
        """The most bytes of a reply before it is sealed."""
        return self.longest - (0 if self._sealer is None else OVERHEAD)

    def reply_statistics(self) -> ReplyStatistics:
        """Return what was counted of requests and replies so far."""
        return ReplyStatistics(**self._tally)

    def close(self) -> None:
        """Leave the group and close both sockets. Idempotent."""
        self._close_reply_socket()
        super().close()

    def _abandon(self) -> None:
        self._close_reply_socket()
        super()._abandon()

    def _close_reply_socket(self) -> None:
        replying, self._reply_socket = self._reply_socket, None
        if replying is not None:
            replying.close()
