"""`Replayer`: a sender that plays a capture file back, at the pace at which it was recorded.

Nothing is sent before the whole file has been read once: a file that is damaged at its end is refused at its beginning.
And nothing is sent to where nobody asked: the groups in the file count only when that is said.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO, TypeAlias

from multicast import batch
from multicast.errors import ArgumentError, check_amount, check_number
from multicast.interfaces import resolve
from multicast.poller import Poller, load_clock
from multicast.senders import Multicaster, destination
from multicast.sockets import Endpoint, Group, WhichInterface, bind_foreign, open_sender, set_dscp

from .packets import Counts, Packet, link_name
from .reading import Path, Reader, Series
from .runs import Run

__all__ = ["Pattern", "Replayer", "Summary", "Timing", "survey"]

# A packet may leave so many seconds before its time, when others leave anyway.
_EARLY = 10e-6
# From the ring of a timer to the first line of its callback it takes about so many seconds, of which most are the
# processor's waking up. So timers are set earlier by this, and what is left of it is spent turning in a loop.
_LEAD = 60e-6
# So many batches are sent in one turn: at full speed that is less than a tenth of a millisecond, and the turns of the
# poller are what costs most then.
_TURN = 8
# How many sources of a file have sockets of their own.
_SOURCES = 256
# Hostile files may name a new group in each packet. No more than so many are remembered.
_GROUPS = 4096

#: A group as text, with port or without; or as an object.
Place: TypeAlias = "str | Endpoint"


@dataclass(slots=True)
class Summary:
    """What a capture file holds."""

    #: UDP packets, and the bytes they carry in the file.
    packets: int = 0
    bytes: int = 0
    #: Packets of which the file has only the first part.
    truncated: int = 0
    #: The times of the first and the last packet, in nanoseconds since 1970.
    first: int = 0
    last: int = 0
    #: How many packets went to each address and port; the first 4,096 that the file names are told apart.
    groups: dict[tuple[str, int], int] = field(default_factory=dict)
    #: Packets to further ones.
    others: int = 0
    #: What is no UDP packet.
    counts: Counts = field(default_factory=Counts)
    #: Packets the capturing system dropped.
    dropped: int = 0
    #: Where and how the file ends too early, when that is allowed.
    cut: str | None = None

    @property
    def duration(self) -> float:
        """Seconds from the first packet to the last."""
        return max(0, self.last - self.first) / 1e9


def _found(summary: Summary) -> str:
    """Return in words why there is nothing to send."""
    if summary.groups:
        named = ", ".join(f"{group}:{port}" for group, port in list(summary.groups)[:10])
        more = len(summary.groups) - 10
        if summary.others:
            return f"its packets go to {named} and more than {more} others"
        return f"its packets go to {named}" + (f" and {more} more" if more > 0 else "")
    counts = summary.counts
    if counts.links:
        number, link = max((number, link) for link, number in counts.links.items())
        return f"it holds {number} frames of {link_name(link)}, which cannot be read"
    others = counts.other + counts.malformed + counts.fragments
    return "it holds no whole UDP packet" + (f", but {others} of other kinds or damaged" if others else "")


def survey(path: str | os.PathLike[str] | BinaryIO | Reader) -> Summary:
    """Read a capture file from the beginning to the end and return what it holds.

    Raises `CaptureError` with the offset where the file is malformed or cut short.
    """
    if not isinstance(path, Reader):
        with Reader(path) as reader:
            return survey(reader)
    return _survey(path, lambda group, port: None)


def _survey(path: Reader | Series, further: Callable[[str, int], object]) -> Summary:
    """Return what a file holds; `further` is called with each address and port beyond those that are told apart."""
    summary = Summary()
    groups = summary.groups
    last: Run | Packet | None = None
    for item in path.runs():
        if isinstance(item, Run):
            payload, _, group, port, _, _, _, length, _ = item.first
            count = item.count
        else:
            payload, _, group, port, timestamp, _, _, length, _ = item
            count = 1
            if last is None:
                summary.first = timestamp
        last = item
        summary.packets += count
        summary.bytes += count * len(payload)
        if length > len(payload):
            summary.truncated += count
        key = (group, port)
        if key in groups:
            groups[key] += count
        elif len(groups) < _GROUPS:
            groups[key] = count
        else:
            summary.others += count
            further(group, port)
    if last is not None:
        summary.last = last.times()[-1] if isinstance(last, Run) else last.timestamp
    summary.counts, summary.dropped, summary.cut = path.counts, path.dropped, path.cut
    return summary


class Timing:
    """How far from their time packets were sent, in a memory that does not grow.

    Errors are counted in classes of two digits, so percentiles are exact to a twentieth.
    """

    def __init__(self) -> None:
        self._classes: dict[int, int] = {}
        self._count = 0
        #: The largest error, in seconds.
        self.max = 0.0

    def add(self, error: float) -> None:
        """Count one error, in seconds."""
        error = abs(error)
        if error > self.max:
            self.max = error
        tenths = int(error * 1e7)  # of a microsecond
        scale = 1
        while tenths >= 100:
            tenths //= 10
            scale *= 10
        key = tenths * scale
        self._classes[key] = self._classes.get(key, 0) + 1
        self._count += 1

    def percentile(self, percent: float) -> float:
        """Return the error that so many percent of the packets do not exceed, in seconds; 0 when there are none."""
        rank = self._count * percent / 100
        for key in sorted(self._classes):
            rank -= self._classes[key]
            if rank <= 0:
                step = int("1" + "0" * (len(str(key)) - 2)) if key >= 100 else 1
                return min((key + step) / 1e7, self.max)
        return 0.0


@dataclass(frozen=True, slots=True)
class Pattern:
    """An address, and a port or any: how packets of a file are chosen."""

    address: str
    port: int | None
    interfaces: tuple[str, ...] = ()

    @classmethod
    def of(cls, place: Place) -> Pattern:
        """Return what `place` means. Raises `GroupError` and `ArgumentError`."""
        if isinstance(place, Endpoint):
            return cls(place.address, place.port, place.interfaces)
        text, _, zone = place.strip().partition("%")
        try:
            plain = ipaddress.ip_address(text.strip("[]"))
        except ValueError:
            pass
        else:
            return cls(str(plain), None, (zone,) if zone else ())
        try:
            group = Group.parse(place)
        except ArgumentError:
            host, _, port = text.rpartition(":")
            if not port.isdecimal():
                raise
            single = Endpoint(host.strip("[]"), int(port))
            return cls(single.address, single.port, (zone,) if zone else ())
        return cls(group.address, group.port, group.interfaces)

    def matches(self, address: str, port: int) -> bool:
        """Whether packets that went there are meant."""
        return self.address == address and self.port in (None, port)

    def at(self, port: int) -> Endpoint:
        """Return where packets of `port` go."""
        zone = f"%{self.interfaces[0]}" if self.interfaces else ""
        return destination(self.address + zone, port if self.port is None else self.port)


class Replayer(Multicaster):
    """Sends the UDP packets of a capture file, or of several as one, at the pace at which they were recorded.

    Where they go has to be said, for a capture may come from anywhere: `to` takes all packets that went to a group,
    `map` gives a new destination for an old one, and with `as_recorded` packets go to the groups in the file. `to` and
    the keys and values of `map` are addresses with a port or without; without, the port is any, or stays as it was.
    With `only` packets for other groups are left out.

    `speed` is how many times as fast as recorded; `math.inf` means as fast as can be. `max_gap` shortens longer pauses
    to so many seconds. `pps` sends so many packets a second instead, and `bps` so many bits of payload. With `loop` it
    begins again at the end. `start` and `end` are the part to send, in seconds from the first packet of the file, and
    `limit` is the most packets to send. With `partial` a file that ends too early is sent as far as it goes. What comes
    out of a pipe is copied to a temporary file first.

    Each source in the file has a socket of its own, with its port where that is free and another one where it is not,
    so receivers tell the senders apart as they did. Each has the TTL and the DSCP that its first packet had on arrival.
    `ttl` and `dscp` (0 to 63, RFC 2474), where they are given, hold for all of them. With `keep_source` each has its
    address too, which needs CAP_NET_ADMIN. A `source_port` makes all of them one sender, with a TTL of 1 unless one is
    given. More sources than 256 share one socket; `merged` counts them. The other arguments are those of `Multicaster`.

    Packets that have a time leave one by one; only with a `speed` of `math.inf` do runs of one size leave as bursts.

    The file is read once before anything is sent, so `CaptureError` is raised here, for whatever is wrong with it.
    `ArgumentError` is raised when no packet in it would be sent.
    """

    def __init__(
        self,
        path: Path | BinaryIO | Sequence[Path | BinaryIO],
        *,
        to: Place | None = None,
        map: Mapping[str, Place] | None = None,  # noqa: A002 -- the name of the option
        as_recorded: bool = False,
        only: Place | Iterable[Place] = (),
        speed: float = 1.0,
        loop: bool = False,
        start: float = 0.0,
        end: float | None = None,
        max_gap: float | None = None,
        pps: float | None = None,
        bps: float | None = None,
        limit: int | None = None,
        partial: bool = False,
        ttl: int | None = None,
        dscp: int | None = None,
        interface: WhichInterface | None = None,
        source_ip: str | None = None,
        source_port: int = 0,
        keep_source: bool = False,
        loopback: bool = True,
        poller: Poller | None = None,
    ) -> None:
        if to is None and not map and not as_recorded:
            raise ArgumentError(
                "say where the packets go: to=GROUP for all of them, map={OLD: NEW} for some, or as_recorded=True for"
                " the groups in the file"
            )
        if not speed > 0:
            raise ArgumentError(f"speed must be more than 0, and math.inf for as fast as can be, not {speed!r}")
        if not start >= 0 or (end is not None and not end > start):
            raise ArgumentError(
                f"start and end are seconds from the first packet, end after start; not {start!r} and {end!r}"
            )
        for name, value, unit in (
            ("max_gap", max_gap, "seconds"), ("pps", pps, "packets per second"), ("bps", bps, "bits per second")
        ):  # fmt: skip
            if value is not None:
                check_amount(name, value, unit, zero=False)
        if (pps is not None) + (bps is not None) + (speed != 1.0) > 1:
            raise ArgumentError("speed, pps and bps all say how fast to send; give one of them")
        if limit is not None:
            check_number("limit", limit, of="packets")
        if dscp is not None:
            check_number("dscp", dscp, 0, 63)
        if keep_source and (source_ip is not None or source_port):
            raise ArgumentError(
                "keep_source sends from the addresses in the file, source_ip and source_port from others; leave either"
                " out"
            )
        self._dscp, self._keep_source = dscp, keep_source
        self._max_gap = None if max_gap is None else int(max_gap * 1e9)
        self._pps, self._bps = pps, bps
        self._left = limit
        self._apart = source_port == 0
        #: How many sources of the file were told apart, and how many of them had to share a socket.
        self.sources = self.merged = 0
        self._to = None if to is None else Pattern.of(to)
        self._map = [(Pattern.of(old), Pattern.of(new)) for old, new in (map or {}).items()]
        self._as_recorded = as_recorded
        self._only = [Pattern.of(one) for one in ([only] if isinstance(only, (str, Endpoint)) else only)]
        self._options: dict[str, Any] = {
            "interface": interface,
            "source_ip": source_ip,
            "source_port": source_port,
            "loopback": loopback,
        }
        self._ttl = ttl
        self.speed = speed
        self._loop = loop
        self._span = (int(start * 1e9), None if end is None else int(end * 1e9))
        one = isinstance(path, (str, os.PathLike)) or hasattr(path, "read")
        self._file = Series([path] if one else path, partial=partial)  # type: ignore[list-item, arg-type]
        self._others: dict[tuple[Any, ...], socket.socket] = {}
        self._ports: dict[int, tuple[str, int]] = {}  # the source that has a port of the file
        self._known_sources: dict[tuple[str, int], bool] = {}  # whether each has sockets of its own
        try:
            self._file.spool()  # it is read twice
            #: What the file holds.
            self.summary, first = self._look_through()
            if first is None:
                raise ArgumentError(f"no packet in {self._file.name} would be sent; {_found(self.summary)}")
            zone = f"%{first.interfaces[0]}" if first.interfaces else ""
            # A burst would leave as one packet for who looks at the device, and its packets at one time.
            bursts = math.isinf(speed)
            given = 1 if ttl is None else ttl
            super().__init__(first.address + zone, first.port, given, offload=bursts, poller=poller, **self._options)
        except BaseException:
            self._file.close()
            raise
        if dscp is not None and self.socket is not None:
            set_dscp(self.socket, dscp)
        load_clock()  # now, and not between the first packet and the second
        #: How far from their time the packets were sent.
        self.timing = Timing()
        #: Packets that could not be sent: cut short in the file, or longer than fits in a packet to the new group.
        self.unsendable = 0
        # The least of the families; what is longer fits IPv6 alone, by 20 bytes.
        self._longest = 65507
        #: How many times the file was played to its end.
        self.rounds = 0
        self._routes: dict[tuple[Any, ...], batch.Writer | None] = {}
        self._schedule = self._timed() if self._is_paced else self._hurried()
        self._ahead: tuple[float, list[bytes], batch.Writer] | None = None
        self._dues: list[float] = []

    def __iter__(self) -> Iterator[bytes]:
        """Yield the payloads of the packets to send, in their order."""
        for _, payloads, _ in self._schedule:
            yield from payloads

    # -- where to --------------------------------------------------------------------------------------------------

    def _look_through(self) -> tuple[Summary, Endpoint | None]:
        """Read the file; return what it holds, and where the first packet goes that goes anywhere."""
        late: list[Endpoint] = []

        def further(group: str, port: int) -> None:
            if not late and (to := self.destination_of(group, port)) is not None:
                late.append(to)

        summary = _survey(self._file, further)
        early = filter(None, (self.destination_of(*place) for place in summary.groups))
        return summary, next(chain(early, late), None)

    def destination_of(self, group: str, port: int) -> Endpoint | None:
        """Return where packets go that went to `group` and `port`, None for nowhere."""
        if port == 0 or (self._only and not any(one.matches(group, port) for one in self._only)):
            return None
        for old, new in self._map:
            if old.matches(group, port):
                return new.at(port)
        if not ipaddress.ip_address(group).is_multicast:
            return None
        if self._to is not None:
            return self._to.at(port)
        return destination(group, port) if self._as_recorded else None

    def _key(self, packet: Packet) -> tuple[Any, ...]:
        """Return what decides how a packet is sent: where it goes, and who sends it."""
        return packet.group, packet.port, packet.source if self._apart else None

    def _route(self, packet: Packet) -> batch.Writer | None:
        """Return how packets like this one are sent, None when they are not."""
        if len(self._routes) >= _GROUPS:
            self._routes.clear()
        to = self.destination_of(packet.group, packet.port)
        writer = None
        if to is not None:
            source = packet.source if self._apart and self._is_apart(packet.source) else None
            opened, index = self._socket(to, source, packet)
            writer = batch.Writer(opened, to.sockaddr(index), offload=self._socket_writer.offload)
        self._routes[self._key(packet)] = writer
        return writer

    def _is_apart(self, source: tuple[str, int]) -> bool:
        """Whether a source of the file has sockets of its own."""
        known = self._known_sources.get(source)
        if known is None:
            known = len(self._known_sources) < _SOURCES
            if len(self._known_sources) < _GROUPS:
                self._known_sources[source] = known
            self.sources += 1
            self.merged += not known
        return known

    def _socket(
        self, to: Endpoint, source: tuple[str, int] | None, first: Packet
    ) -> tuple[socket.socket, int]:
        """Return a socket for `to` and the number of its interface; all groups of one family share one.

        Its TTL and DSCP are those of the `first` packet of the source, unless they were given.
        """
        index = 0
        if to.needs_interface and (to.interfaces or self._options["interface"] is not None):
            index = resolve(to.interfaces[0] if to.interfaces else self._options["interface"]).index
        family = (to.family, to.is_multicast)
        # Our own socket has the port that was given, and the TTL.
        ours = family == (self.group.family, self.group.is_multicast) and source is None
        if ours and self.socket is not None:
            return self.socket, index
        kind = (*family, source)
        if kind not in self._others:
            # A packet to a single host cannot have 0, and one to a group would stay here with it.
            hops = max(1, first.ttl) if self._ttl is None else self._ttl
            self._others[kind] = opened = self._open(to, hops, source, index)
            dscp = self._dscp if self._dscp is not None or source is None else first.dscp
            if dscp:
                set_dscp(opened, dscp)
        return self._others[kind], index

    def _open(self, to: Endpoint, hops: int, source: tuple[str, int] | None, index: int) -> socket.socket:
        """Return a socket with the port of a source, or with any where another one has that or it is not for us."""
        if self._keep_source and source is not None and (":" in source[0]) == (to.family == socket.AF_INET6):
            opened = open_sender(to, hops, **self._options)[0]
            try:
                bind_foreign(opened, source if to.family == socket.AF_INET else (*source, 0, index))
            except BaseException:
                opened.close()
                raise
            return opened
        if source is not None and self._ports.setdefault(source[1], source) == source:
            try:
                return open_sender(to, hops, **{**self._options, "source_port": source[1]})[0]
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        return open_sender(to, hops, **self._options)[0]

    # -- when ------------------------------------------------------------------------------------------------------

    def _timed(self) -> Iterator[tuple[float, list[bytes], batch.Writer]]:
        """Yield when, what and how to send, one packet at a time."""
        routes = self._routes
        scale = 1e-9 / self.speed
        max_gap, key_of, latest = self._max_gap, self._key, 0
        begun = self.poller.time()
        while True:
            earliest: int | None = None
            due = begun
            sent = 0
            for packet in self._chosen():
                payload, _, _, _, timestamp, _, _, length, _ = packet
                key = key_of(packet)
                writer = routes[key] if key in routes else self._route(packet)
                if writer is None:
                    continue
                if length > len(payload) or len(payload) > self._longest:
                    self.unsendable += 1
                    continue
                if earliest is None:
                    earliest = latest = timestamp
                if max_gap is not None and timestamp - latest > max_gap:
                    earliest += timestamp - latest - max_gap  # the rest of a pause is left out
                latest = max(latest, timestamp)
                # Clocks are set back now and then, and packets overtake each other; time only goes on.
                if self._pps is not None:
                    due = begun + sent / self._pps
                elif self._bps is not None:
                    due = max(due, begun)
                    begun = due + 8 * len(payload) / self._bps
                else:
                    due = max(due, begun + (timestamp - earliest) * scale)
                sent += 1
                yield due, [payload], writer
                if self._left is not None:
                    self._left -= 1
                    if self._left <= 0:
                        self.rounds += 1
                        return
            if not self._again(sent):
                return
            # From the last packet to the first of the next round it takes as long as between others on the average.
            begun = due + ((due - begun) / (sent - 1) if sent > 1 and due > begun else 1.0)

    def _chosen(self) -> Iterator[Packet]:
        """Yield the packets of the part that is to be sent."""
        start, end = self._span
        start += self.summary.first
        stop = math.inf if end is None else end + self.summary.first
        if start <= self.summary.first and end is None:
            start = -1  # packets out of order at the beginning belong to it too
        for packet in self._file:
            if start <= packet.timestamp < stop:
                yield packet

    def _hurried(self) -> Iterator[tuple[float, list[bytes], batch.Writer]]:
        """Yield what to send and how, many packets at a time; the time is always now."""
        whole = self._span == (0, None)
        while True:
            sent = 0
            gathered: list[bytes] = []
            last: batch.Writer | None = None
            for item in self._file.runs() if whole else self._chosen():
                run = item if isinstance(item, Run) else None
                first = item if isinstance(item, Packet) else item.first
                payload, length = first.payload, first.length
                key = self._key(first)
                writer = self._routes[key] if key in self._routes else self._route(first)
                if writer is None:
                    continue
                payloads = [payload] if run is None else run.payloads()
                if length > len(payload) or len(payload) > self._longest:
                    self.unsendable += len(payloads)
                    continue
                if writer is not last and last is not None and gathered:
                    yield 0.0, gathered, last
                    gathered = []
                last = writer
                if self._left is not None:
                    payloads = payloads[: self._left]
                    self._left -= len(payloads)
                sent += len(payloads)
                gathered += payloads
                if len(gathered) >= batch.LIMIT:
                    yield 0.0, gathered, last
                    gathered = []
                if self._left == 0:
                    break
            if last is not None and gathered:
                yield 0.0, gathered, last
            if not self._again(sent) or self._left == 0:
                return

    def _again(self, sent: int) -> bool:
        """Count a round in which so many packets were sent; return whether another follows."""
        self.rounds += 1
        if self._loop and not sent:
            raise ArgumentError(f"{self._file.name} has no packets to send between the times given")
        return self._loop

    @property
    def _is_paced(self) -> bool:
        return not math.isinf(self.speed)

    def _take_due(self) -> bool:
        taken = self._taken_packets
        writer: batch.Writer | None = None
        now = self.poller.time() + _EARLY
        try:
            while len(taken) < batch.LIMIT:
                item, self._ahead = self._ahead or next(self._schedule), None
                due, payloads, its = item
                if due > now and not taken:
                    now = self._approach(due)
                if due > now or its is not writer is not None:
                    self._ahead = item
                    self._next_due = max(self._next_due, due - _LEAD)
                    break
                writer = its
                taken += payloads
                if self._is_paced:
                    self._dues.append(due)
        except StopIteration:
            self._iterable_ended = True
        except Exception as error:
            self._iterable_ended = True
            self._iterable_failure = error
        if writer is not None:
            self._use(writer)
        return False

    def _approach(self, due: float) -> float:
        """Let the last microseconds before `due` pass; return until when packets are due now."""
        clock = self.poller.time
        self._next_due = 0.0
        now = clock()
        while due - _LEAD <= now < due - _EARLY:
            before, now = now, clock()
            if now == before:  # it is turned by hand, or stands: a timer will do
                self._next_due = due
                break
        return now + _EARLY

    def _send_taken(self) -> bool:
        before = len(self._taken_packets)
        done = False
        try:
            for _ in range(_TURN):
                done = super()._send_taken()
                if done or self.poller.time() < self._rest_until or len(self._taken_packets) == before:
                    break
        finally:
            gone = before - len(self._taken_packets)
            if self._is_paced and gone:
                now = self.poller.time()
                for due in self._dues[:gone]:
                    self.timing.add(now - due)
            del self._dues[:gone]
        # The poller tells when our own socket is writable, and knows nothing of the others.
        waits = not done and not gone and self.poller.time() >= self._rest_until
        if waits and self._socket_writer.socket is not self.socket:
            self._rest_till(self.poller.time() + 0.001)
        return done

    def _renew_writer(self) -> None:
        # The network being back, a packet still goes where it was to go, and not to the first destination.
        self._choose_again()

    def close(self) -> None:
        """Stop sending, close the sockets and the file. Idempotent."""
        try:
            super().close()
        finally:
            others, self._others = self._others, {}
            for opened in others.values():
                opened.close()
            self._file.close()
