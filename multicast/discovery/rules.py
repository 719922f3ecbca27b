"""Which replies count and which requests are answered: what has a state over time, without sockets and clocks."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable

from multicast.errors import ArgumentError, check_number

# How many requests are remembered so that late replies find theirs, how many responders to them, and how many requests
# of others so that copies are known.
_REMEMBERED = 1024
# Services have the ports below; many of them answer whatever they get, so a reply there could go round for ever.
_FIRST_PORT = 1024
# Where ports that the kernel chooses begin (ip_local_port_range in ip(7)). A port below was chosen by people, and
# several hosts may send from it.
_FIRST_CHOSEN_BY_KERNEL = 32768
# Copies of one request are sent one after the other; only the wire and its queues are between them, in seconds.
_COPIES_WITHIN = 0.1


class Exchange:
    """Requests that were sent, and which of them a reply answers. Times are seconds of any one clock; no I/O.

    `limit` is how many replies are wanted, None for any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None:
            check_number("limit", limit, of="replies")
        self.limit = limit
        #: How many requests were sent, replies counted, copies of replies and unexpected packets left out.
        self.asked = self.replies = self.duplicates = self.strays = 0
        self._sent: dict[int, float] = {}
        self._ways: dict[tuple[int, Hashable], Hashable] = {}

    @property
    def done(self) -> bool:
        """Whether as many replies as wanted have come."""
        return self.limit is not None and self.replies >= self.limit

    def ask(self, now: float) -> int:
        """Take note that a request is sent; return its number, the first being 1."""
        self.asked += 1
        self._sent[self.asked] = now
        self._sent.pop(self.asked - _REMEMBERED, None)
        return self.asked

    def answer(self, number: int | None, now: float, responder: Hashable, way: Hashable) -> float | None:
        """Take a reply to the request with that number; return how long it took, None when it does not count.

        A request sent by several interfaces may reach one responder several times, and have it reply as often, by
        several ways. Only those by the way of its first reply count: one responder that can be reached by two
        interfaces makes one, and three that share an address and a port make three.
        """
        if number is None or number not in self._sent or self.done:
            self.strays += 1
            return None
        key = (number, responder)
        if self._ways.setdefault(key, way) != way:
            self.duplicates += 1
            return None
        if len(self._ways) > _REMEMBERED:
            del self._ways[next(iter(self._ways))]
        self.replies += 1
        return max(0.0, now - self._sent[number])


class Allowance:
    """How many replies may be sent: `per_source` a second to each address, `total` a second to all. No I/O.

    As many as in one second may go at once, after a pause; at least one. An address that got nothing for so long that
    its allowance is whole again is forgotten, and one that is refused is not remembered either: so the table never
    holds more than `total` allows in that time, whatever addresses are invented.
    """

    def __init__(self, per_source: float, total: float) -> None:
        for name, rate in (("per_source", per_source), ("total", total)):
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
                raise ArgumentError(f"{name} must be a number of replies per second, more than 0, not {rate!r}")
        # One number is enough for a bucket of tokens: the time at which it is full again. Each reply moves it on by
        # what it takes to regain one token, and it may not lie farther ahead than it takes to regain all.
        self._step, self._total_step = 1 / per_source, 1 / total
        self._horizon, self._total_horizon = max(1.0, self._step), max(1.0, self._total_step)
        self._total_full = float("-inf")
        self._full: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full)

    def permits(self, source: str, now: float) -> bool:
        """Whether a reply may be sent to that address now."""
        tolerance = now + 1e-9
        return (
            max(now, self._total_full) + self._total_step <= tolerance + self._total_horizon
            and max(now, self._full.get(source, now)) + self._step <= tolerance + self._horizon
        )

    def take(self, source: str, now: float) -> None:
        """Take note that a reply is sent to that address."""
        self._total_full = max(now, self._total_full) + self._total_step
        self._full[source] = max(now, self._full.get(source, now)) + self._step
        self._full.move_to_end(source)
        while next(iter(self._full.values())) <= now:
            self._full.popitem(last=False)


class Copies:
    """Which requests are copies of one that came by another interface a moment before. No I/O.

    A copy has the payload and the port of the first, and the port is one that the kernel chooses for a single socket.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[int, int, int], tuple[float, set[str]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def seen(self, packet: bytes, port: int, interface: str | None, now: float) -> bool:
        """Whether a request that arrived at `now` by `interface` is a copy; it is remembered if it is not."""
        if port < _FIRST_CHOSEN_BY_KERNEL or interface is None:
            return False
        key = (port, len(packet), hash(packet))
        when, by = self._seen.get(key, (float("-inf"), set()))
        if abs(now - when) <= _COPIES_WITHIN and interface not in by:
            by.add(interface)
            return True
        self._seen[key] = (now, {interface})
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False


def answerable(host: str, port: int) -> bool:
    """Whether a reply may be sent there: to a single host, and not to a port below 1024, where services listen.

    Broadcast addresses of a subnet look like any other; to those the kernel refuses to send (EACCES).
    """
    address = ipaddress.ip_address(host)
    if port < _FIRST_PORT or address.is_multicast or address.is_unspecified:
        return False
    if address.version == 6:
        return address.ipv4_mapped is None
    # 0.0.0.0/8 is this host without an address, 240.0.0.0/4 reserved, with 255.255.255.255 at its end (RFC 6890).
    return 0 < address.packed[0] < 240


def arrival(timestamp: int | None, clock: int, now: float) -> float:
    """Return when a packet arrived, on the clock that says `now`: it may have waited to be read since.

    `timestamp` is the kernel's time of arrival, if known, and `clock` what the same clock says now, in nanoseconds
    since 1970. That clock may be set, so only the difference counts.
    """
    return now if timestamp is None else now - max(0.0, (clock - timestamp) / 1e9)
