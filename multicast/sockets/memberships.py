"""Receivers of groups: `open_receiver`, and `Memberships` on as many interfaces as a host has."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable, Sequence

from multicast.errors import GroupError
from multicast.interfaces import Interface

from . import datagrams
from .datagrams import Program, bind_shared, join_on, leave, only_from, set_up_receiver
from .groups import Group

__all__ = ["Memberships", "join_each", "open_receiver"]

_log = logging.getLogger("multicast")

# How many interfaces a message names.
_MOST_SHOWN = 5

# What a socket says that takes no more memberships: net.ipv4.igmp_max_memberships, 20 by default, counts for each
# socket, and net.core.optmem_max limits the memory (ip(7), __ip_mc_join_group and ipv6_sock_mc_join in Linux).
_FULL = frozenset({errno.ENOBUFS, errno.ENOMEM})


class Memberships:
    """The memberships of the receiver `opened` in `group`.

    With `everywhere` True the receiver is to hear the group on all interfaces. When its socket takes no more
    memberships, further sockets hold the rest. The kernel then gives the receiver what comes by any interface that
    somebody on this host has joined on (IP_MULTICAST_ALL), which is what it is to hear. It is not possible for groups
    with sources, which the kernel compares with the memberships of the receiver's own socket.
    """

    def __init__(
        self, opened: socket.socket, group: Group, excluded: Sequence[str] = (), *, everywhere: bool = False
    ) -> None:
        self._socket = opened
        self._group = group
        self._excluded = tuple(excluded)
        self._spreads = everywhere and not group.sources and not excluded
        self._full = False  # the receiver's own socket
        self._holders: list[socket.socket] = []
        self._holder_of: dict[int, socket.socket] = {}  # by the number of the interface

    def __len__(self) -> int:
        """Return how many sockets hold memberships besides the receiver's own."""
        return len(self._holders)

    def join(self, interface: Interface) -> None:
        """Join on an interface. Raises `OSError` with advice."""
        if not self._full:
            try:
                join_on(self._socket, self._group, interface, self._excluded)
            except OSError as error:
                if error.errno not in _FULL or not self._spreads:
                    raise
                self._full = True
            else:
                return
        # The last one has room as a rule.
        for holder in reversed(self._holders):
            try:
                join_on(holder, self._group, interface, ())
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            else:
                self._holder_of[interface.index] = holder
                return
        holder = datagrams.open_socket(self._group.table)
        try:
            join_on(holder, self._group, interface, ())
            self._socket.setsockopt(self._group.table.level, self._group.table.all, 1)
        except BaseException:
            holder.close()
            raise
        self._holders.append(holder)
        self._holder_of[interface.index] = holder

    def leave(self, index: int) -> None:
        """Leave on the interface with this number. Harmless when it is not joined."""
        holder = self._holder_of.pop(index, None)
        if holder is None:
            leave(self._socket, self._group, index)
            self._full = False
            return
        leave(holder, self._group, index)
        if holder not in self._holder_of.values():
            self._holders.remove(holder)
            holder.close()

    def close(self) -> None:
        """Close the sockets that hold memberships, all but the receiver's own. Idempotent."""
        for holder in self._holders:
            holder.close()
        self._holders.clear()
        self._holder_of.clear()


def open_receiver(
    group: Group,
    chosen: Sequence[Interface],
    *,
    exclude: Iterable[str] = (),
    rcvbuf: int | None = None,
    details: bool = False,
    optional: bool = False,
    program: Program = (),
    bursts: bool = False,
) -> tuple[socket.socket, Memberships, list[Interface]]:
    """Open a non-blocking socket that receives `group` on the interfaces `chosen`.

    Return it with its memberships and the interfaces joined.

    With sources in `group` the joins are source-specific; packets from `exclude` are refused otherwise. `rcvbuf` is
    the size of the receive buffer wanted, in bytes. With `details` the kernel adds arrival interface, TTL, DSCP and
    time to each packet. With `optional` `chosen` are all interfaces, and it is enough that one of them can be joined;
    the others are logged, in one line. `program` and `bursts` are for `set_up_receiver`.

    Raises `GroupError` and `OSError` with advice; nothing stays open then.
    """
    excluded = group.check_sources(exclude, "exclude")
    if excluded and group.sources:
        raise GroupError("sources and exclude cannot be combined: with sources, everybody else is excluded already")
    if group.is_source_specific and not group.sources:
        _log.warning(
            "%s is in the source-specific range and joined without sources: routers will not forward it (RFC 4607);"
            " give the sender's address with sources=",
            group.address,
        )
    table = group.table
    opened = datagrams.open_socket(table)
    try:
        opened.setsockopt(table.level, table.all, 0)
        if not optional:
            program = only_from(group, chosen, program)
        set_up_receiver(opened, rcvbuf, details, program, bursts)
        bind_shared(opened, group.sockaddr(chosen[0].index))
        memberships = Memberships(opened, group, excluded, everywhere=optional)
        try:
            joined = join_each(memberships, group, chosen, optional=optional)
        except BaseException:
            memberships.close()
            raise
    except BaseException:
        opened.close()
        raise
    return opened, memberships, joined


def join_each(
    memberships: Memberships, group: Group, chosen: Iterable[Interface], *, optional: bool
) -> list[Interface]:
    """Join on each interface of `chosen`; return those where it worked.

    Those where it did not are logged, in one line for each reason. Raises `OSError` with advice where it worked on
    none, and without `optional` where it failed on one.
    """
    joined: list[Interface] = []
    refused: dict[int | None, tuple[OSError, list[str]]] = {}
    for interface in chosen:
        try:
            memberships.join(interface)
        except OSError as error:
            if not optional:
                raise
            refused.setdefault(error.errno, (error, []))[1].append(interface.name)
        else:
            joined.append(interface)
    if refused and not joined:
        raise next(iter(refused.values()))[0]
    for reason, names in refused.values():
        more = f" and {len(names) - _MOST_SHOWN} more" if names[_MOST_SHOWN:] else ""
        _log.warning("%s is not joined on %s%s: %s", group.address, ", ".join(names[:_MOST_SHOWN]), more, reason)
    return joined
