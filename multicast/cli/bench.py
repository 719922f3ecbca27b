"""The command `bench`: how fast, how much is lost, how long it takes."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from multicast import batch
from multicast.batch import Address
from multicast.interfaces import interfaces as interfaces_here
from multicast.listeners import MulticastListener
from multicast.measure import Histogram, Kind, Probe, Sequence, parse
from multicast.poller import Poller, Timer
from multicast.senders import Multicaster
from multicast.sockets import Group

from ._app import GROUP, RATE, SECONDS, Rate, command, interfaces_option
from ._errors import Exit
from ._output import Output, plural, printable, where
from .ping import Pinger, PingResponder

_RCVBUF = 8 << 20
# The end is told so often, for packets that say so may be lost as well.
_ENDS = 5
# The receiver waits so long after the last packet when nobody tells the end, in seconds.
_QUIET = 1.0
# Others may go on sending to the group, so it is not emptied for longer than this, in seconds.
_EMPTYING = 10.0
# How often round trips are measured while packets flow to another host, in seconds.
_PING_PAUSE = 0.1
_BAR = 30


# -- both sides ----------------------------------------------------------------------------------------------------


class _Load(Multicaster):
    """Sends numbered packets for some time."""

    def __init__(self, size: int, seconds: float, ttl: int, **options: Any) -> None:
        super().__init__(ttl=ttl, **options)
        self.session = secrets.randbits(64)
        self._size = size
        self._seconds = seconds
        self._ttl = ttl
        #: How many were sent, and how long that took; the end is not among them.
        self.packets = 0
        self.began = self.took = 0.0
        #: Set to have it come to its end.
        self.stopped = False

    def __iter__(self) -> Iterator[bytes | None]:
        # Only the number and the time change; the rest is worked out once.
        first = Probe(Kind.LOAD, self.session, 0, 0, self._ttl).encode(self._size)
        head, rest = first[:16], first[28:]
        now = time.time_ns
        self.began = time.perf_counter()
        over = now() + int(self._seconds * 1e9)
        number = 0
        while (moment := now()) < over and not self.stopped and number < 0xFFFFFFFF:
            number += 1
            self.packets = number
            yield head + number.to_bytes(4) + moment.to_bytes(8) + rest
        self.took = time.perf_counter() - self.began
        self.rate, self.interval = None, 0
        for _ in range(_ENDS):
            yield None  # a short pause
            yield Probe(Kind.END, self.session, number, now(), self._ttl).encode()


class _Receiver(MulticastListener):
    """Takes the packets of the first bench it hears."""

    def __init__(self, **options: Any) -> None:
        # No filter, for where the kernel filters it hands over no bursts.
        super().__init__(mtu=65535, rcvbuf=_RCVBUF, offload=True, **options)
        self.session: int | None = None
        self.numbers = Sequence(dropout=None)
        self.delays = Histogram()
        self.bytes = 0
        self.foreign = 0
        self.first = self.last = 0.0
        #: How many packets were sent, once that was told.
        self.sent: int | None = None
        self.source: Address | None = None
        self._ours = b"none yet"

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Count a packet; what all of them have is looked at first."""
        now = time.time_ns()
        if packet[8:16] != self._ours and not self._begins(packet, addr):
            return
        if packet[5] == Kind.LOAD:
            self.numbers.take(int.from_bytes(packet[16:20]))
            self.delays.add((now - int.from_bytes(packet[20:28])) / 1e9)
            self.bytes += len(packet)
            self.last = now / 1e9
        elif packet[5] == Kind.END:
            self.sent = int.from_bytes(packet[16:20])

    def _begins(self, packet: bytes, addr: Address) -> bool:
        probe = parse(packet)
        if probe is None or probe.kind is not Kind.LOAD:
            return False
        if self.session is not None:
            self.foreign += 1
            return False
        self.session, self._ours, self.source = probe.session, packet[8:16], addr
        self.first = time.time()
        return True

    @property
    def lost(self) -> int:
        """How many packets did not come, as far as it is known how many there were."""
        return self.numbers.lost if self.sent is None else max(0, self.sent - self.numbers.received)

    @property
    def silent(self) -> bool:
        """Whether it began, and nothing has come for some time."""
        return self.session is not None and time.time() - self.last > _QUIET


# -- numbers for people --------------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{1e6 * seconds:.3g} us"


def _bits(value: float) -> str:
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bit/s"


def histogram_lines(histogram: Histogram, unicode: bool = True) -> list[str]:
    """Return a histogram as lines: from which time on, a bar, how many."""
    bins = histogram.octaves()
    if not bins:
        return []
    most = max(count for _, count in bins)
    width = max(len(f"{count:,}") for _, count in bins)
    lines = []
    for start, count in bins:
        eighths = round(8 * _BAR * count / most)
        if unicode:
            bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
            bar = bar or ("▏" if count else "")
        else:
            bar = "#" * max(eighths // 8, 1 if count else 0)
        microseconds = round(start * 1e6)
        label = (
            f"{microseconds} us" if microseconds < 1024
            else f"{microseconds / 1024:.0f} ms" if microseconds < 1024**2
            else f"{microseconds / 1024**2:.0f} s"
        )  # fmt: skip
        lines.append(f"{label:>8} | {bar:{_BAR}}  {f'{count:,}'.replace(',', ' '):>{width}}")
    return lines


def _times(histogram: Histogram) -> dict[str, float | None]:
    values = {
        "min": histogram.least,
        "median": histogram.quantile(0.5),
        "p99": histogram.quantile(0.99),
        "max": histogram.greatest,
    }
    return {name: None if math.isnan(value) else round(value, 9) for name, value in values.items()}


# -- the command ---------------------------------------------------------------------------------------------------


@command(
    "bench",
    json=True,
    examples=[
        "multicast bench",
        "multicast bench -b 10000pps -s 1316 -w 5",
        "multicast bench 239.1.2.3:5000 --receiver -i eth0 --json",
    ],
)
@click.argument("group", metavar="[GROUP]", required=False, type=GROUP)
@click.option("-s", "--size", type=click.IntRange(28, 65507), default=64, show_default=True, metavar="N",
              help="Bytes of each packet.")
@click.option("-b", "--rate", type=RATE, metavar="RATE",
              help="Send so fast: 10m is 10 million bits a second of payload, 500pps is 500 packets a second; left out,"
              " as fast as can be.")
@click.option("-w", "--deadline", type=SECONDS, metavar="SECONDS",
              help="Send for so many seconds, by default 3; the receiver alone waits so long for the end.")
@click.option("--sender", is_flag=True, help="Only send; another host, or another window, has the receiver.")
@click.option("--receiver", is_flag=True, help="Only receive.")
@click.option("-t", "--ttl", type=click.IntRange(0, 255), metavar="TTL",
              help="How far packets go; left out, 0 (this host) for both sides here, and 1 for --sender.")
@interfaces_option("Send, or listen, by this interface: a name, an index or an address.")
def bench(
    out: Output,
    group: Group | None,
    size: int,
    rate: Rate | None,
    deadline: float | None,
    sender: bool,
    receiver: bool,
    ttl: int | None,
    interfaces: list[str] | None,
) -> Exit:
    """Measure throughput, loss and delay.

    GROUP is written ADDRESS[:PORT][%IFACE], with IPv6 in brackets; left out, it is 224.0.42.42:4242. With neither
    --sender nor --receiver both are on this host, in two processes, and nothing leaves it. The delay is that from one
    program to the other, on one host; for other hosts the sender shows round trips meanwhile, since clocks differ.
    Without a rate the buffers are full all the time, and the delay is that of waiting in them.
    """
    if sender and receiver:
        raise click.UsageError("--sender and --receiver are the two sides; for both on this host leave both out")
    group = group or Group()
    if group.sources:
        raise click.UsageError("write the GROUP without SOURCE@; the receiver takes the first sender it hears")
    places = interfaces or list(group.interfaces) or None
    if places is not None and len(places) > 1 and not receiver:
        raise click.UsageError(f"packets leave by one interface, so name one, not {','.join(places)}")
    seconds = 3.0 if deadline is None else deadline
    if sender:
        return _send(out, group, size, rate, seconds, 1 if ttl is None else ttl, places)
    if receiver:
        return _receive(out, group, deadline, places)
    return _both(out, group, size, rate, seconds, 0 if ttl is None else ttl, places)


def _send(
    out: Output, group: Group, size: int, rate: Rate | None, seconds: float, ttl: int, places: list[str] | None
) -> Exit:
    with Poller() as poller:
        load = _Load(
            size,
            seconds,
            ttl,
            ip=group.address,
            port=group.port,
            interface=places[0] if places else None,
            rate=None if rate is None else rate.bits,
            interval=0 if rate is None or rate.packets is None else 1 / rate.packets,
            poller=poller,
        )
        # The round trips tell of the way while it is in use; a receiver answers them.
        pinger = None
        if ttl > 0:
            pinger = Pinger(
                Output(), quiet=True, size=96, count=None, interval=_PING_PAUSE, wait=0.2, until=seconds + 0.2,
                call=False, ip=group.address, port=group.port, ttl=ttl, interface=places, poller=poller,
            )  # fmt: skip
        out.say(f"sending to {where(group.address, group.port)}, {plural(size, 'byte')} a packet, ttl {ttl},"
                f" for {seconds:g} s; engine {batch.ENGINE}")
        finished = out.drive(
            poller,
            lambda: load.closed and (pinger is None or pinger.done),
            ready=lambda: pinger.start() if pinger is not None else None,
            writes=False,
        )
        if pinger is not None:
            pinger.stop()
            pinger.close()
        if not load.closed:
            load.stopped = True
            out.drive(poller, lambda: load.closed, 1, writes=False)
        counted = load.statistics()
        load.close()
        times = Histogram()
        hosts = 0
        if pinger is not None:
            for found in pinger.ledger:
                hosts += 1
                times.merge(found.times)
    took = load.took or (time.perf_counter() - load.began if load.began else 0.0)
    octets = load.packets * size
    if out.json:
        out.event(
            "sent",
            packets=load.packets,
            bytes=octets,
            size=size,
            group=group.address,
            port=group.port,
            ttl=ttl,
            seconds=round(took, 6),
            queue_full=counted.full,
            refused=counted.refused,
            engine=batch.ENGINE,
            responders=hosts,
            round_trips=times.count,
            **{f"round_trip_{name}": value for name, value in _times(times).items()},
        )
    else:
        _row(out, "sent", load.packets, octets, took)
        if times.count:
            _tell_times(out, f"round trip to {plural(hosts, 'receiver')}, {plural(times.count, 'ping')}", times)
    return Exit.YES if load.packets else Exit.NO if finished else Exit.INTERRUPTED


def _receive(out: Output, group: Group, deadline: float | None, places: list[str] | None) -> Exit:
    with Poller() as poller:
        options: dict[str, Any] = {
            "ip": group.address, "port": group.port, "interface": places, "poller": poller
        }  # fmt: skip
        taker = _Receiver(**options)
        PingResponder(Output(), quiet=True, **options)
        names = ", ".join(printable(interface.name) for interface in taker.interfaces)
        hint = ", Ctrl-C to stop" if deadline is None else ""
        look = _Beat(poller, _QUIET / 4)
        finished = out.drive(
            poller,
            lambda: taker.sent is not None or taker.silent,
            deadline,
            ready=lambda: out.say(f"waiting for a sender to {where(group.address, group.port)} on {names}{hint}"),
            writes=False,
        )
        look.cancel()
        _drain(poller, taker)
        dropped = taker.statistics().dropped
    own = {address for interface in interfaces_here() for address in interface.addresses}
    here = taker.source is not None and (taker.source.host in own or taker.source.host.startswith("127."))
    _tell_received(out, taker, dropped, here)
    if taker.session is None:
        out.say("no sender was heard. On the other host: " + f"multicast bench {group} --sender")
        return Exit.NO if finished else Exit.INTERRUPTED
    return Exit.YES


class _Beat:
    """Wakes a poller now and then, so that what depends on the time is looked at."""

    def __init__(self, poller: Poller, pause: float) -> None:
        self._poller, self._pause = poller, pause
        self._timer: Timer = poller.call_later(pause, self._again)

    def _again(self) -> None:
        self._timer = self._poller.call_later(self._pause, self._again)

    def cancel(self) -> None:
        self._timer.cancel()


def _drain(poller: Poller, taker: _Receiver) -> None:
    """Take what had arrived when it was over: a full buffer takes a second or so to be emptied."""
    until = time.monotonic() + _EMPTYING
    seen = -1
    while time.monotonic() < until and (taker.numbers.received != seen or taker.pending):
        seen = taker.numbers.received
        poller.poll()


def _both(
    out: Output, group: Group, size: int, rate: Rate | None, seconds: float, ttl: int, places: list[str] | None
) -> Exit:
    words = [sys.executable, "-m", "multicast", "bench", "--sender", "--json", "--quiet", str(group)]
    words += ["-s", str(size), "-w", str(seconds), "-t", str(ttl)]
    if rate is not None:
        words += ["-b", f"{rate.packets:f}pps" if rate.packets is not None else f"{rate.bits:f}"]
    for place in places or ():
        words += ["-i", str(place)]
    with Poller() as poller:
        # What has TTL 0 comes by lo, and what goes elsewhere comes back by where it left.
        taker = _Receiver(ip=group.address, port=group.port, interface="lo" if ttl == 0 else places, poller=poller)
        rate_text = "as fast as can be" if rate is None else (
            f"{rate.packets:g} packets a second" if rate.packets is not None else _bits(rate.bits or 0)
        )
        out.say(
            f"one sender, one receiver on this host, {where(group.address, group.port)}, {plural(size, 'byte')} a"
            f" packet, {rate_text}, {seconds:g} s; engine {batch.ENGINE}"
        )
        look = _Beat(poller, 0.02)
        # The child finds the package where this process has found it.
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        try:
            finished = out.drive(poller, lambda: child.poll() is not None, writes=False)
            if not finished:
                child.send_signal(signal.SIGINT)
                out.drive(poller, lambda: child.poll() is not None, 2)
        finally:
            look.cancel()
            if child.poll() is None:
                child.kill()
            said, complaint = child.communicate()
        _drain(poller, taker)
        dropped = taker.statistics().dropped
    sent = next((event for event in map(json.loads, said.splitlines()) if event["event"] == "sent"), None)
    if sent is None:
        text = complaint.decode(errors="replace").strip().removeprefix("multicast: ")
        text = printable(text) or f"exit code {child.returncode}."
        if ttl == 0 and ":" in group.address:  # for which lo has no route as a rule
            target = where(group.address, group.port)
            text += f" Without -t the packets go by lo; by another: multicast bench '{target}' -t 1 -i INTERFACE."
        out.fail(f"the sender failed: {text}")
        return Exit(child.returncode) if child.returncode in list(Exit) and child.returncode else Exit.REFUSED
    taker.sent = sent["packets"]
    if out.json:
        out.event("sent", **{name: value for name, value in sent.items() if name not in ("v", "event")})
    else:
        _row(out, "sent", sent["packets"], sent["bytes"], sent["seconds"])
    _tell_received(out, taker, dropped, True)
    if rate is None and taker.lost and not out.json:
        out.say("the sender outruns the receiver; with a --rate that loses nothing, the delay is that of the way")
    if not sent["packets"] or not taker.numbers.received:
        return Exit.NO if finished else Exit.INTERRUPTED
    return Exit.YES


# -- what is said --------------------------------------------------------------------------------------------------


def _row(out: Output, what: str, packets: int, octets: int, seconds: float) -> None:
    count = f"{packets:,}".replace(",", " ")
    speed = f"{packets / seconds:,.0f}".replace(",", " ") if seconds > 0 else "-"
    out.line(f"{what:9} {count:>12} packets in {seconds:.3f} s   {speed:>10} packets/s   {_bits(8 * octets / seconds)}"
             if seconds > 0 else f"{what:9} {count:>12} packets")


def _tell_times(out: Output, title: str, times: Histogram) -> None:
    out.line()
    out.line(
        out.style(title, "bold") + f": min {_duration(times.least)}  median {_duration(times.quantile(0.5))}"
        f"  p99 {_duration(times.quantile(0.99))}  max {_duration(times.greatest)}"
    )
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    for line in histogram_lines(times, unicode):
        out.line(line)


def _tell_received(out: Output, taker: _Receiver, dropped: int, here: bool) -> None:
    numbers = taker.numbers
    seconds = max(0.0, taker.last - taker.first)
    lost = taker.lost
    if out.json:
        out.event(
            "received",
            packets=numbers.received,
            bytes=taker.bytes,
            seconds=round(seconds, 6),
            sent=taker.sent,
            lost=lost,
            dropped=dropped,
            duplicates=numbers.duplicates,
            reordered=numbers.reordered,
            foreign=taker.foreign,
            same_host=here,
            engine=batch.ENGINE,
            **{f"delay_{name}": value if here else None for name, value in _times(taker.delays).items()},
            delays=[[round(start, 9), count] for start, count in taker.delays.octaves()] if here else None,
        )
        return
    if taker.session is None:
        return
    _row(out, "received", numbers.received, taker.bytes, seconds)
    whole = taker.sent or numbers.received + numbers.lost
    text = f"{'lost':9} {f'{lost:,}'.replace(',', ' '):>12} packets, {100 * lost / max(whole, 1):.3g} %"
    if dropped:  # of bursts, each counts as one
        text += f"; the kernel dropped {'them' if dropped >= lost else 'some'} for the receiver's buffer was full"
    if numbers.duplicates or numbers.reordered:
        text += f"; {numbers.duplicates} came twice, {numbers.reordered} out of order"
    out.line(out.style(text, "red") if lost else text)
    if taker.foreign:
        out.say(f"{plural(taker.foreign, 'packet')} of another sender meanwhile")
    if here:
        _tell_times(out, "one-way delay", taker.delays)
    else:
        out.say("the sender is another host: its clock is another one, and it shows round trips")
