"""Stream sockets: TCP, connecting and listening."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from multicast.errors import GroupError, advise
from multicast.interfaces import resolve

from .datagrams import bind, open_socket
from .groups import IPV4, IPV6, Endpoint, Family, check_port, parse_address, plain

# How many connections the kernel keeps until they are accepted; it takes less where net.core.somaxconn is less.
_BACKLOG = 1024


def open_acceptor(ip: str, port: int) -> socket.socket:
    """Open a non-blocking TCP socket that listens at an address of this host.

    `ip` may be ``0.0.0.0`` or ``::`` for all addresses of the family, `port` 0 for any free one. Raises
    `ArgumentError`, `GroupError`, `InterfaceError`, and `OSError` with advice; nothing stays open then.
    """
    address, table, sockaddr = _stream_address(ip, port)
    if address.is_multicast:
        raise GroupError(f"{address} is a group, and TCP connects single hosts")
    opened = open_socket(table, socket.SOCK_STREAM)
    try:
        # Before bind, or it does nothing: connections of the last run that are not forgotten yet (TIME_WAIT) keep
        # the port for a minute otherwise. On a listening socket it shares nothing.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind(opened, sockaddr, "accept")
        try:
            opened.listen(_BACKLOG)
        except OSError as error:
            raise advise(error, "accept", address=sockaddr[0], port=sockaddr[1]) from None
    except BaseException:
        opened.close()
        raise
    return opened


def open_stream(ip: str, port: int, *, source_ip: str | None = None) -> tuple[socket.socket, OSError | None]:
    """Open a non-blocking TCP socket and start connecting it; return it, and the error if that failed already.

    The connection stands, or has failed (SO_ERROR), when the socket is writable: connect(2), EINPROGRESS.
    `source_ip` is the address it comes from. Raises `ArgumentError`, `GroupError`, `InterfaceError`, and `OSError`
    with advice when the socket cannot be made; nothing stays open then.
    """
    to = Endpoint(ip, port)
    if to.is_multicast:
        raise GroupError(f"{to.address} is a group, and TCP connects single hosts")
    _, table, sockaddr = _stream_address(ip, port)
    own = None if source_ip is None else _stream_address(source_ip, 0)
    if own is not None and own[1] is not table:
        raise GroupError(f"source_ip {source_ip} and {to.address} are not of one family")
    opened = open_socket(table, socket.SOCK_STREAM)
    failed: OSError | None = None
    try:
        if own is not None:
            bind(opened, own[2])
        try:
            opened.connect(sockaddr)
        except BlockingIOError:
            pass
        except OSError as error:
            failed = error
    except BaseException:
        opened.close()
        raise
    return opened, failed


def _stream_address(
    ip: str, port: int
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, Family, tuple[Any, ...]]:
    address = parse_address(ip, "address")
    if port != 0:
        check_port(port)
    if address.version == 4:
        return address, IPV4, (str(address), port)
    zone = address.scope_id
    return address, IPV6, (plain(address), port, 0, resolve(zone).index if zone else 0)


def prepare_stream(opened: socket.socket) -> None:
    """Make a stream socket non-blocking, and have TCP send at once what it is given and notice a peer that vanished.

    Without TCP_NODELAY a small message may wait for the acknowledgement of the one before, 40 ms or more (tcp(7));
    streams gather what belongs together themselves. A host that was switched off says nothing, ever: after a minute
    of silence the kernel asks it, and after another minute without an answer it ends the connection.
    """
    opened.setblocking(False)
    if opened.family in (socket.AF_INET, socket.AF_INET6):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
