"""What leaves this host for a group, packet by packet as it is on the wire, and what may keep it from leaving.

The sender's end of the look: `gather_departure` reads the wire, the firewall, the queues and the counters while the
program sends. It joins the group only where programs of this host have joined it, and sends nothing.

`Sketch` is a sample of payloads that two hosts draw alike without knowing of each other: those with the least CRC. So
both can be compared afterwards, whatever their clocks say, and a report carries salted digests and no payload.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import json
import secrets
import socket
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from multicast import batch
from multicast.batch import Address
from multicast.errors import InterfaceError
from multicast.interfaces import Interface, Route, interfaces, memberships, resolve, route
from multicast.listeners import MulticastListener
from multicast.poller import Poller
from multicast.sockets import Group, WhichInterfaces, named, open_wire

from . import firewall, kernel
from .firewall import Rule
from .wire import dissect

__all__ = ["Departure", "Payload", "Queue", "Sketch", "Stream", "arrivals", "gather_departure", "new_salt", "total"]

# What is read of a packet, its headers included, and what of a payload counts.
_SNAP, _HEAD = 256, 128
# How many payloads a sample has, and how many streams are told apart.
_SAMPLE, _STREAMS = 1000, 256
_UDP = 17


@dataclass(frozen=True, slots=True)
class Stream:
    """Packets of one sender to the group by one interface."""

    #: The name of the interface.
    interface: str
    #: The address and port they come from; the port is 0 where it was not seen.
    source: str
    source_port: int
    #: Their TTL or hop limit.
    ttl: int
    #: The Ethernet address they go to; empty where there is none.
    mac: str = ""
    #: How many, and the bytes of their payloads.
    packets: int = 0
    bytes: int = 0
    #: The least and the most bytes of a payload.
    smallest: int = 0
    largest: int = 0
    #: How many of them were cut into fragments.
    fragmented: int = 0


def total(streams: Iterable[Stream]) -> int:
    """Return how many packets there were, each counted once though several devices showed it."""
    by_sender: dict[tuple[str, int], dict[str, int]] = {}
    for one in streams:
        seen = by_sender.setdefault((one.source, one.source_port), {})
        seen[one.interface] = seen.get(one.interface, 0) + one.packets
    return sum(max(seen.values()) for seen in by_sender.values())


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload of the sample."""

    #: Its salted digest, as hexadecimal digits.
    digest: str
    #: Its length in bytes, and how many packets had it.
    length: int
    packets: int
    #: When the first of them was seen, in seconds since the look began.
    seconds: float
    #: Where it came from.
    source: str
    #: The upper eight bits of its CRC, which say whether it is in a smaller sample too.
    mark: int


class Sketch:
    """A sample of payloads: the thousand with the least CRC of those that were seen."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[bytes, int, list[int], float, str]] = {}
        self._heap: list[int] = []  # the same by their CRC, the largest first, so negative
        #: All payloads with a CRC below this are in the sample.
        self.limit = 1 << 32

    def add(self, head: bytes, length: int, seconds: float, source: str) -> None:
        """Take a payload, of which `head` is the beginning and `length` the bytes of all."""
        told = head[:_HEAD] + length.to_bytes(4, "big")
        mark = zlib.crc32(told)
        if mark >= self.limit:
            return
        known = self._kept.get(mark)
        if known is not None:
            known[2][0] += 1
            return
        self._kept[mark] = told, length, [1], seconds, source
        heapq.heappush(self._heap, -mark)
        if len(self._heap) > _SAMPLE:
            self.limit = -heapq.heappop(self._heap)
            del self._kept[self.limit]

    def payloads(self, salt: bytes, limit: int = 1 << 32) -> list[Payload]:
        """Return those of the sample with a CRC below `limit`, with digests salted by `salt`."""
        return [
            Payload(
                hashlib.blake2b(told, digest_size=8, key=salt).hexdigest(),
                length,
                count[0],
                round(seconds, 6),
                source,
                mark >> 24,
            )
            for mark, (told, length, count, seconds, source) in self._kept.items()
            if mark < limit
        ]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queueing discipline of an interface (tc(8)), and what it dropped."""

    interface: str
    kind: str
    dropped: int = 0


@dataclass(slots=True)
class _Whole:
    """A datagram that comes in fragments: how many bytes there are, and what its first fragment says."""

    came: int = 0
    first: tuple[bytes, int, tuple[str, str, int, int, str]] | None = None


class _Heard:
    """Counts packets by stream, and draws a sample of their payloads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun = now()
        self._counts: dict[tuple[str, str, int, int, str], list[int]] = {}
        # By which interface each sender was seen first: what goes by a VLAN, a bridge or a bond is seen there, and once
        # more at the device below.
        self._first: dict[tuple[str, int], str] = {}
        self.sketch = Sketch()

    def take(self, head: bytes, length: int, key: tuple[str, str, int, int, str], fragmented: bool = False) -> None:
        """Count a packet: `key` is interface, source, source port, TTL and Ethernet address."""
        counted = self._counts.get(key)
        if counted is None:
            if len(self._counts) >= _STREAMS:
                return
            counted = self._counts[key] = [0, 0, length, length, 0]
        counted[0] += 1
        counted[1] += length
        counted[2], counted[3] = min(counted[2], length), max(counted[3], length)
        counted[4] += fragmented
        if self._first.setdefault(key[1:3], key[0]) == key[0]:
            self.sketch.add(head, length, self._now() - self._begun, key[1])

    def streams(self) -> tuple[Stream, ...]:
        """Return what was counted, the most frequent first."""
        found = [Stream(*key, *counted) for key, counted in self._counts.items()]
        return tuple(sorted(found, key=lambda one: -one.packets))


class Watcher(_Heard):
    """Sees packets for one group and port on the wire: those that leave this host, or those that come in."""

    def __init__(self, group: Group, now: Callable[[], float], outgoing: bool) -> None:
        """Raise `OSError` where packet sockets are not allowed."""
        super().__init__(now)
        self._group, self._outgoing = group, outgoing
        self._wholes: dict[tuple[str, bytes, int], _Whole] = {}
        self._socket = open_wire(frames=True)

    def fileno(self) -> int:
        """Return the descriptor to watch for reading."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop looking."""
        self._socket.close()

    def handle_read(self) -> None:
        """Read and count one batch; called by the poller."""
        for _ in range(batch.LIMIT):
            try:
                data, (name, _, kind, hardware, _) = self._socket.recvfrom(_SNAP)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # an interface went down, and the socket says so once
                    raise
                continue
            if (kind == socket.PACKET_OUTGOING) == self._outgoing:
                mac, packet = _unframed(data, hardware)
                self._take(mac, packet, name)

    def _take(self, mac: str, data: bytes, name: str) -> None:
        try:
            packet = dissect(data)
            if packet is None or packet.kind not in ("udp", "fragment") or packet.group != self._group.address:
                return
            start = 4 * (data[0] & 15) if data[0] >> 4 == 4 else 40 if data[6] == _UDP else 48
            whole: _Whole | None = None
            if packet.kind == "fragment" or packet.fragmented:
                whole = self._whole(data, name)
            if packet.kind == "udp":
                if packet.port != self._group.port:
                    return
                port, _, length = struct.unpack_from("!HHH", data, start)
                key = name, packet.source, port, packet.ttl, mac
                if whole is None:
                    self.take(data[start + 8 :], max(0, length - 8), key)
                    return
                whole.first = data[start + 8 :], length, key
        except (struct.error, IndexError, ValueError):  # shorter than it says
            return
        if whole is not None and whole.first is not None and whole.came >= whole.first[1]:
            head, length, key = whole.first
            self.take(head, max(0, length - 8), key, True)
            whole.first = None

    def _whole(self, data: bytes, name: str) -> _Whole:
        """Return what there is of the datagram that a fragment is of, this fragment counted (RFC 791, RFC 8200)."""
        if data[0] >> 4 == 4:
            length, identity = struct.unpack_from("!HH", data, 2)
            size, place = length - 4 * (data[0] & 15), (name, data[12:16], identity)
        else:
            (length,) = struct.unpack_from("!H", data, 4)
            size, place = length - 8, (name, data[8:24], struct.unpack_from("!I", data, 44)[0])
        found = self._wholes.get(place)
        if found is None:
            if len(self._wholes) >= _STREAMS:
                del self._wholes[next(iter(self._wholes))]
            found = self._wholes[place] = _Whole()
        found.came += size
        return found


# Of linux/if_arp.h: hardware that has an Ethernet header; and of IEEE 802.1Q, a tag in it.
_WITH_HEADER = (1, 772)
_TAG = b"\x81\x00"


def _unframed(data: bytes, hardware: int) -> tuple[str, bytes]:
    """Return the Ethernet address a frame goes to, empty where it has none, and what is in the frame."""
    if hardware not in _WITH_HEADER:
        return "", data
    start = 18 if data[12:14] == _TAG else 14
    return data[:6].hex(":"), data[start:]


class Ear(MulticastListener):
    """Hears what arrives, for those who may not look at the wire, and what programs of this host can hear."""

    def __init__(self, watcher: _Heard | None, **options: Any) -> None:
        self.heard = 0
        self._watcher = watcher
        super().__init__(mtu=65535, details=True, **options)

    def handle_packet(self, packet: bytes, addr: Address) -> object:
        """Count a packet."""
        self.heard += 1
        if self._watcher is not None:
            key = addr.interface or "?", addr.host, addr.port, addr.ttl or 0, ""
            self._watcher.take(packet[:_HEAD], len(packet), key)
        return False


@dataclass(frozen=True, slots=True)
class Departure:
    """All that was found out at the sender's end; the defaults are those of a healthy host where nothing is sent."""

    group: Group = field(default_factory=Group)
    #: The names of the interfaces that were asked for; empty means all.
    asked: tuple[str, ...] = ()
    seconds: float = 5.0
    present: tuple[Interface, ...] = ()
    #: The route for the group, by which packets leave whose program names no interface.
    route: Route | None = None
    #: What left; None where we may not look.
    streams: tuple[Stream, ...] | None = ()
    #: What the kernel's counters grew by; those of IPv6 under the names of IPv4.
    counters: Mapping[str, int] = field(default_factory=dict)
    #: Firewall rules; None where we may not look.
    rules: tuple[Rule, ...] | None = ()
    #: Queues that dropped something meanwhile.
    queues: tuple[Queue, ...] = ()
    #: Interfaces with filters of tc(8) for what leaves.
    egress: tuple[str, ...] = ()
    #: Where programs of this host have joined the group, and how many packets could be heard there; None without.
    members: tuple[str, ...] = ()
    heard: int | None = None

    @property
    def family(self) -> str:
        """IPv4 or IPv6."""
        return "IPv6" if ":" in self.group.address else "IPv4"

    @property
    def outer(self) -> list[Stream]:
        """What left by interfaces but lo."""
        local = {one.name for one in self.present if one.loopback}
        return [one for one in self.streams or () if one.interface not in local]

    @property
    def local(self) -> list[Stream]:
        """What went by lo."""
        outer = self.outer
        return [one for one in self.streams or () if one not in outer]


def gather_departure(
    group: Group,
    interface: WhichInterfaces,
    wait: float,
    progress: Callable[[float, int], object] | None = None,
) -> tuple[Departure, Sketch]:
    """Look for `wait` seconds at what leaves this host for `group`; return what was found, and a sample of payloads.

    Raises `InterfaceError` for an interface that does not exist, and `OSError`.
    """
    present = interfaces()
    asked = tuple({one.index: one for one in (resolve(each, present) for each in named(group, interface))}.values())
    members = tuple(dict.fromkeys(one.interface for one in memberships() if one.group == group.address))
    on_wire, with_rules = kernel.powers()
    ipv6 = ":" in group.address
    with ExitStack() as stack:
        poller = stack.enter_context(Poller())
        rules_before = kernel.rules()[0] if with_rules else ()
        watcher = ear = None
        if members:
            try:
                ear = Ear(None, ip=group.address, port=group.port, rcvbuf=1 << 20, poller=poller)
                stack.callback(ear.close)
            except (InterfaceError, OSError):
                pass  # the port is held by a program that shares it with nobody
        if on_wire:
            try:
                watcher = Watcher(group, poller.time, outgoing=True)
                stack.callback(watcher.close)
                poller.register(watcher)
            except OSError:  # no packet sockets in this kernel
                watcher = None
        counted, queues = kernel.counters(ipv6), _queues()
        watch_for(poller, wait, progress, lambda: total(watcher.streams()) if watcher else 0)
        counters = {name: value - counted.get(name, 0) for name, value in kernel.counters(ipv6).items()}
        dropping = tuple(
            replace(queue, dropped=queue.dropped - queues[place].dropped)
            for place, queue in _queues().items()
            if place in queues and queue.dropped > queues[place].dropped
        )
        rules = firewall.grown(rules_before, kernel.rules()[0]) if with_rules else None
        streams = None if watcher is None else _as_they_left(watcher.streams(), present)
        heard = None if ear is None else ear.heard
    index = asked[0].index if group.needs_interface and asked else 0
    try:
        way = route(group.address, index)
    except OSError:
        way = None
    names = [one.name for one in (asked or present)[:8]]
    found = Departure(
        group=group,
        asked=tuple(one.name for one in asked),
        seconds=wait,
        present=tuple(interfaces()),
        route=way,
        streams=streams,
        counters=counters,
        rules=rules,
        queues=dropping,
        egress=tuple(name for name in names if kernel.run("tc", "filter", "show", "dev", name, "egress")),
        members=members,
        heard=heard,
    )
    return found, Sketch() if watcher is None else watcher.sketch


def _as_they_left(streams: Iterable[Stream], present: Iterable[Interface]) -> tuple[Stream, ...]:
    """Return the streams without those that a device shows below the one that has their address."""
    streams = tuple(streams)
    having = {(address, one.name) for one in present for address in one.addresses}
    at_home = {(one.source, one.source_port) for one in streams if (one.source, one.interface) in having}
    return tuple(
        one
        for one in streams
        if (one.source, one.source_port) not in at_home or (one.source, one.interface) in having
    )


def arrivals(
    group: Group,
    interface: WhichInterfaces,
    wait: float,
    progress: Callable[[float, int], object] | None = None,
) -> tuple[tuple[Stream, ...], Sketch]:
    """Look for `wait` seconds at what arrives for `group`; return the streams, and a sample of payloads.

    On the wire, where we may look, while the group is joined; else what a listener gets.
    """
    with ExitStack() as stack:
        poller = stack.enter_context(Poller())
        watcher: Watcher | None = None
        try:
            watcher = Watcher(group, poller.time, outgoing=False)
        except OSError:
            pass  # packet sockets are not allowed
        heard: _Heard = watcher or _Heard(poller.time)
        options: dict[str, Any] = {"ip": group.address, "port": group.port, "interface": interface}
        ear = Ear(None if watcher else heard, sources=group.sources, rcvbuf=1 << 22, poller=poller, **options)
        stack.callback(ear.close)
        if watcher is not None:
            stack.callback(watcher.close)
            poller.register(watcher)
        watch_for(poller, wait, progress, lambda: total(heard.streams()))
        found = heard.streams()
        if interface is not None:
            names = {one.name for one in ear.interfaces}
            found = tuple(one for one in found if one.interface in names)
        return tuple(one for one in found if not group.sources or one.source in group.sources), heard.sketch


def watch_for(
    poller: Poller, wait: float, progress: Callable[[float, int], object] | None, count: Callable[[], int]
) -> None:
    """Poll for so many seconds; tell now and then how many are left, and what `count` says."""
    end = poller.time() + wait

    def tell() -> None:
        left = end - poller.time()
        if progress is not None:
            progress(max(0.0, left), count())
        if left > 0:
            poller.call_later(min(0.5, left), tell)

    tell()
    poller.run_until(lambda: poller.time() >= end)
    for _ in range(16):  # what came in the last moment
        poller.poll()


def _queues() -> dict[tuple[str, str], Queue]:
    """Return the queueing disciplines of this host, by interface and handle."""
    text = kernel.run("tc", "-s", "-json", "qdisc", "show")
    try:
        told: Sequence[Any] = json.loads(text or "[]")
        return {
            (one["dev"], one.get("handle", "") + one.get("parent", "")): Queue(
                one["dev"], one["kind"], int(one.get("drops", 0))
            )
            for one in told
        }
    except (ValueError, KeyError, TypeError):
        return {}


def new_salt() -> bytes:
    """Return a salt for the digests of one report."""
    return secrets.token_bytes(16)
