"""The command `ping`, and what `respond --ping` does."""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import click

from multicast import errors
from multicast.batch import Address
from multicast.discovery import Requester, Responder
from multicast.listeners import MulticastListener
from multicast.measure import (
    ASK_SIZE,
    PING_SIZE,
    PREFIX,
    Hearing,
    Kind,
    Ledger,
    Order,
    Probe,
    Responses,
    Sequence,
    parse,
)
from multicast.measure import matrix as who_hears_whom
from multicast.measure.probes import hops as hops_between
from multicast.poller import Poller, Timer
from multicast.senders import sendto
from multicast.sockets import Group, ways

from . import COMMANDS
from ._app import GROUP, SECONDS, command, count_option, deadline_option, interfaces_option, ttl_option
from ._errors import Exit, in_words
from ._output import Output, host_of, plural, printable, where
from ._sealing import counted, key_option, not_opened

if TYPE_CHECKING:
    from multicast.sealed import Seal

# What a `Responder` answers to one address in a second, and to all.
_PER_SOURCE, _TOTAL = 50, 500
# A report is asked for so often, for the question may be lost as well.
_QUESTIONS = 3
# Beacons of more hosts than these are not counted.
_MOST = 1000


def _seconds(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 9)


def _identity(number: int) -> str:
    return f"{number:016x}"


# -- the far side --------------------------------------------------------------------------------------------------


class PingResponder(Responder):
    """Answers pings, and prints which, unless it is to be `quiet`."""

    def __init__(
        self, out: Output, *, ttl: int = 1, quiet: bool = False, seal: Seal | None = None, **options: Any
    ) -> None:
        self._out = out
        self._seal = seal
        self._quiet = quiet
        self._ttl = ttl
        self._hearing = Hearing(socket.gethostname())
        super().__init__(PREFIX, ttl=ttl, per_source=_PER_SOURCE, total=_TOTAL, seal=seal, **options)
        self._width = max(len(printable(interface.name)) for interface in self.interfaces)

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Count what was heard, also what the limits leave unanswered."""
        probe = parse(packet)
        if probe is not None and self._hearing.take(probe):
            super().handle_packet(packet, addr)

    def handle_request(self, packet: bytes, addr: Address) -> None:
        """Answer a ping, and let the others hear us if it calls for that."""
        probe = parse(packet)
        assert probe is not None  # noqa: S101 -- handle_packet has looked
        # Anybody can send a ping that is longer than our replies may be, and it must not end us.
        size = min(len(packet), self.room)
        replied = self.reply(self._hearing.reply(probe, size, self._ttl, addr.ttl), addr)
        beacon = self._hearing.beacon(probe, self._ttl, self.poller.time())
        if beacon is not None:
            try:
                group = self.group
                sendto(beacon, group.address, group.port, self._ttl, interface=addr.interface, seal=self._seal)
            except (errors.MulticastError, OSError) as error:
                self._out.warn(f"the others cannot hear this host: {in_words(error, self._out)}")
        if not self._quiet:
            self._tell(probe, addr, replied)

    def _tell(self, probe: Probe, addr: Address, replied: bool) -> None:
        now = addr.timestamp or time.time_ns()
        routers = hops_between(probe.ttl, addr.ttl)
        if self._out.json:
            self._out.event(
                "ping",
                time_ns=now,
                interface=addr.interface,
                source=addr.host,
                source_port=addr.port,
                session=_identity(probe.session),
                sequence=probe.sequence,
                ttl=addr.ttl,
                hops=routers,
                question=probe.kind is Kind.ASK,
                replied=replied,
            )
            return
        style = self._out.style
        when = f"{time.strftime('%H:%M:%S', time.localtime(now // 10**9))}.{now % 10**9 // 1000:06d}"
        text = f"{style(when, 'dim')} {printable(addr.interface or '?').ljust(self._width)}  "
        text += style(printable(where(host_of(addr), addr.port)), "cyan")
        text += "  asks what was heard" if probe.kind is Kind.ASK else f"  seq {probe.sequence}"
        text += f"  hops {routers}" if routers else ""
        self._out.line(text if replied else text + style("  the answer could not be sent", "yellow"))


# -- pinging -------------------------------------------------------------------------------------------------------


class Pinger(Requester):
    """Sends pings, one after the other, and prints the answers as they come, unless it is to be `quiet`."""

    def __init__(
        self,
        out: Output,
        *,
        size: int,
        count: int | None,
        interval: float,
        wait: float,
        until: float | None,
        call: bool,
        ttl: int,
        quiet: bool = False,
        **options: Any,
    ) -> None:
        self.ledger = Ledger()
        self._quiet = quiet
        self.pings = 0
        #: Pings are over, and so is the time for answers to the last.
        self.done = False
        self._out = out
        self._size = size
        self._count = count
        self._interval = interval
        self._wait = wait
        self._until = until
        self._kind = Kind.CALL if call else Kind.PING
        self._probe_ttl = ttl
        self._waiting_for: deque[float] = deque()  # when the pings were sent that may be answered yet
        self._trouble: str | None = None
        self._clock: Timer | None = None
        super().__init__(None, ttl=ttl, timeout=None, **options)

    def start(self) -> None:
        """Send the first ping; the others follow by themselves."""
        now = self.poller.time()
        self._last_at = math.inf if self._until is None else now + max(0.0, self._until - self._wait)
        self._over_at = math.inf if self._until is None else now + self._until
        self._ping(now)

    def _ping(self, due: float) -> None:
        now = self.poller.time()
        try:
            self.ask(Probe(self._kind, self.ledger.session, self.asked + 1, time.time_ns(), self._probe_ttl)
                     .encode(self._size))
        except (errors.MulticastError, OSError) as error:
            if not self.pings:
                raise
            text = in_words(error, self._out)
            if text != self._trouble:  # it may pass; said once
                self._out.warn(text)
            self._trouble = text
        else:
            self.pings += 1
            self._trouble = None
            self._waiting_for.append(now)
        self._expire(now)
        following = max(due + self._interval, now)
        if (self._count is not None and self.pings >= self._count) or following > self._last_at:
            self._clock = self.poller.call_at(min(now + self._wait, self._over_at), self._end)
        else:
            self._clock = self.poller.call_at(following, self._ping, following)

    def _expire(self, now: float) -> None:
        while self._waiting_for and self._waiting_for[0] < now - self._wait:
            self._waiting_for.popleft()

    def _end(self) -> None:
        self._waiting_for.clear()
        self.done = True

    def stop(self) -> None:
        """Send no more pings."""
        if self._clock is not None:
            self._clock.cancel()
        self._expire(self.poller.time())

    def sent_to(self, found: Responses) -> int:
        """Return how many pings a responder had the time to answer."""
        settled = self.pings - len(self._waiting_for)
        return max(settled, min(self.pings, found.numbers.highest or 0))

    # What is missing is asked for.

    def ask_for_reports(self) -> None:
        """Ask what was received, so that loss is told from what was held back, and the way there from the way back."""
        self._questions = 0
        self._question()

    def _question(self) -> None:
        if self.reported or self._questions >= _QUESTIONS:
            self.done = True
            return
        self.done = False
        self._questions += 1
        probe = Probe(Kind.ASK, self.ledger.session, self.asked + 1, time.time_ns(), self._probe_ttl)
        try:
            self.ask(probe.encode(ASK_SIZE))
        except (errors.MulticastError, OSError):
            self.done = True  # then it is not known
            return
        self._clock = self.poller.call_later(max(self._wait / 2, 0.05), self._question)

    @property
    def reported(self) -> bool:
        """Whether everybody has said what they received."""
        return all(found.report is not None for found in self.ledger)

    # Answers.

    def which(self, packet: bytes, addr: Address) -> int | None:
        """Return the number in the answer."""
        return self.ledger.number(packet)

    def handle_reply(self, packet: bytes, addr: Address) -> None:
        """Take note of an answer, and print it."""
        assert self.reply is not None  # noqa: S101 -- for the type checker
        taken = self.ledger.take(packet, self.reply.round_trip, host_of(addr), addr.ttl)
        if taken is None:
            return
        found, order = taken
        probe = parse(packet)
        if self._quiet or probe is None or probe.kind is not Kind.PONG:
            return
        if self._out.json:
            self._out.event(
                "reply",
                sequence=probe.sequence,
                source=addr.host,
                source_port=addr.port,
                interface=addr.interface,
                responder=_identity(found.peer.identity),
                name=found.peer.name,
                round_trip=round(self.reply.round_trip, 9),
                hops=found.hops,
                hops_back=found.hops_back,
                duplicate=order is Order.DUPLICATE,
            )
            return
        style = self._out.style
        text = f"seq {probe.sequence:<3} {style(printable(host_of(addr)).ljust(15), 'cyan')}"
        text += f" {1000 * self.reply.round_trip:8.3f} ms  {printable(found.peer.name)}"
        text += f"  hops {found.hops}" if found.hops else ""
        if order is Order.DUPLICATE:
            text += style("  (duplicate)", "yellow")
        elif order is Order.LATE:
            text += style("  (after later ones)", "yellow")
        self._out.line(text.rstrip())


class _Ears(MulticastListener):
    """Counts the beacons that reach this host."""

    def __init__(self, session: int, **options: Any) -> None:
        self._session = session
        self._heard: dict[int, Sequence] = {}
        super().__init__(PREFIX, **options)

    @property
    def heard(self) -> dict[int, int]:
        """How many beacons came, by who sent them."""
        return {identity: numbers.received for identity, numbers in self._heard.items()}

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Count a beacon."""
        probe = parse(packet)
        if probe is None or probe.kind is not Kind.BEACON or probe.session != self._session or probe.peer is None:
            return
        if probe.peer.identity in self._heard or len(self._heard) < _MOST:
            self._heard.setdefault(probe.peer.identity, Sequence(dropout=None)).take(probe.sequence)


# -- what is said at the end ---------------------------------------------------------------------------------------


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _milliseconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{1000 * value:.3f}"


def _tell_responders(out: Output, pinger: Pinger) -> None:
    """Write a row for each responder, and then where what is lost was lost."""
    rows, notes = [], []
    for found in pinger.ledger:
        sent = pinger.sent_to(found)
        times, lost = found.times, found.lost(sent)
        there = found.lost_there(sent)
        if out.json:
            out.event(
                "responder",
                source=found.host,
                responder=_identity(found.peer.identity),
                name=found.peer.name,
                sent=sent,
                replies=found.replies,
                lost=lost,
                lost_there=there,
                held_back=found.held_back,
                duplicates=found.numbers.duplicates,
                reordered=found.numbers.reordered,
                hops=found.hops,
                hops_back=found.hops_back,
                min=_seconds(times.least),
                median=_seconds(times.quantile(0.5)),
                p99=_seconds(times.quantile(0.99)),
                max=_seconds(times.greatest),
            )
            continue
        numbers = [times.least, times.quantile(0.5), times.quantile(0.99), times.greatest]
        rows.append((
            found.host,
            found.peer.name or "-",
            "-" if found.hops is None else str(found.hops),
            f"{found.replies}/{sent}",
            _percent(lost, sent),
            str(found.numbers.duplicates),
            *map(_milliseconds, numbers),
        ))  # fmt: skip
        who = printable(f"{found.host} ({found.peer.name})" if found.peer.name else found.host)
        if found.held_back:
            notes.append(
                f"{who} has held back {plural(found.held_back, 'answer')}: {_PER_SOURCE} a second to one host and"
                f" {_TOTAL} to all are its limits. These are not lost"
            )
        if lost and there is not None:
            back = max(0, lost - there)
            notes.append(
                f"{who}: {plural(there, 'ping')} lost on the way there, {plural(back, 'answer')} on the way back"
            )
    if rows:
        out.line()
        head = ("RESPONDER", "NAME", "HOPS", "REPLIES", "LOST", "DUP", "MIN ms", "MEDIAN", "P99", "MAX")
        out.table(head, rows, spare=("DUP", "HOPS", "P99", "MAX", "NAME"), cut=2)
    out.flush()
    for note in notes:
        out.say(note)


def _labels(ledger: Ledger) -> dict[int, str]:
    """Return a short name for each responder, none twice."""
    names = {0: "here"}
    for found in ledger:
        name = found.peer.name or found.host
        if name in names.values():
            name = f"{name} {found.host}"
        if name in names.values():
            name = f"{name} {_identity(found.peer.identity)[:4]}"
        names[found.peer.identity] = name
    return names


def _tell_matrix(out: Output, pinger: Pinger, heard: dict[int, int], group: Group) -> bool:
    """Write who hears whom; return whether everybody hears everybody."""
    table = who_hears_whom(pinger.ledger, pinger.pings, heard)
    names = _labels(pinger.ledger)
    hosts = {found.peer.identity: found.host for found in pinger.ledger}
    if out.json:
        for (sender, listener), lost in table.items():
            out.event(
                "heard",
                sender=_identity(sender) if sender else None,
                sender_name=names[sender],
                listener=_identity(listener) if listener else None,
                listener_name=names[listener],
                lost=None if lost is None else round(lost, 6),
            )
        return all(table.values())
    rows = []
    for sender, name in names.items():
        cells = [name]
        for listener in names:
            lost = table.get((sender, listener))
            cells.append("-" if sender == listener else "?" if lost is None else f"{100 * lost:.1f}%")
        rows.append(cells)
    width = max(len(printable(name)) for name in ("from", *names.values()))
    out.line()
    out.line(out.style(f"{'':{width}}  lost on the way to", "dim"))
    out.table(("FROM", *names.values()), rows)
    out.flush()
    deaf = [pair for pair, lost in table.items() if lost == 1]
    for sender, listener in deaf[:5]:
        text = f"{printable(names[listener])} hears nothing from {printable(names[sender])}"
        if "doctor" in COMMANDS:
            source = f" --from {hosts[sender]}" if sender else ""
            place = f"on {printable(names[listener])}" if listener else "here"
            text += f". Next, {place}: multicast doctor {group}{source}"
        out.say(text)
    if any(lost is None for lost in table.values()):
        out.say("?: no report came, or nothing was sent to be heard")
    return not deaf


# -- the command ---------------------------------------------------------------------------------------------------


@command(
    "ping",
    json=True,
    examples=[
        "multicast ping 239.1.2.3:5000 -c 5",
        "multicast ping 239.1.2.3:5000 --matrix",
        "multicast ping '[ff15::1]:5000%eth0' -t 8 --interval 0.2 --json",
    ],
)
@click.argument("group", metavar="[GROUP]", required=False, type=GROUP)
@count_option("Stop after N pings; with --matrix it is 10 if nothing is said.")
@click.option("--interval", type=click.FloatRange(min=0.001), metavar="S",
              help="Seconds from one ping to the next; left out, 1, and 0.2 with --matrix.")
@deadline_option("Stop after so many seconds, those for the last answers included.")
@click.option("-W", "--timeout", "wait", type=SECONDS, default=1.0, show_default=True, metavar="SECONDS",
              help="How long to wait for answers to the last ping.")
@click.option("-s", "--size", type=click.IntRange(49, 65507), default=PING_SIZE, show_default=True, metavar="N",
              help="Bytes of each ping. The answer is no longer, and says less of its sender's name if it must.")
@click.option("--matrix", "matrix", is_flag=True, help="Show who of them hears whom.")
@ttl_option
@interfaces_option("Send by this interface: a name, an index, an address, several with commas or by several -i. Left"
                   " out, by each that is up and can do multicast.")
@key_option("Seal the pings and open the answers")
def ping(
    out: Output,
    group: Group | None,
    count: int | None,
    interval: float | None,
    deadline: float | None,
    wait: float,
    size: int,
    matrix: bool,
    ttl: int,
    interfaces: list[str] | None,
    seal: Seal | None,
) -> Exit:
    """Ping a group: who is there, how far, and how much is lost on the way.

    GROUP is written ADDRESS[:PORT][%IFACE], with IPv6 in brackets; left out, it is 224.0.42.42:4242. Those who are to
    answer run multicast respond --ping GROUP. Without -c or -w it goes on until Ctrl-C. Exits with 1 when nobody
    answered.
    """
    group = group or Group()
    if group.sources:
        raise click.UsageError("a ping goes to a group, not to one of its sources; write the GROUP without SOURCE@")
    if matrix and interval is not None and interval < 0.1:
        raise click.UsageError("--matrix has others send to the group, ten times a second at most: --interval 0.1")
    if matrix and count is None and deadline is None:
        count = 10
    interval = interval or (0.2 if matrix else 1.0)
    where_to = interfaces or list(group.interfaces) or None
    with Poller() as poller:
        pinger = Pinger(
            out,
            size=size,
            count=count,
            interval=interval,
            wait=wait,
            until=deadline,
            call=matrix,
            quiet=matrix and not (out.verbose or out.json),  # the table tells it all
            ip=group.address,
            port=group.port,
            ttl=ttl,
            interface=where_to,
            seal=seal,
            poller=poller,
        )
        ears = None
        if matrix:
            ears = _Ears(
                pinger.ledger.session,
                ip=group.address,
                port=group.port,
                interface=where_to,
                seal=seal,
                poller=poller,
            )
        out.say(_intention(group, ttl, where_to, size, count is None and deadline is None))
        if 1 / interval > _PER_SOURCE:
            out.warn(
                f"responders answer {_PER_SOURCE} pings a second of one host, and these are {1 / interval:.0f}; what"
                " they hold back is told apart from what is lost"
            )
        began = time.monotonic()
        finished = out.drive(poller, lambda: pinger.done, ready=pinger.start)
        pinger.stop()
        seconds = time.monotonic() - began
        ledger = pinger.ledger
        if matrix or any(found.replies < pinger.sent_to(found) for found in ledger):
            pinger.ask_for_reports()
            out.drive(poller, lambda: pinger.done or pinger.reported)
        dropped = pinger.statistics().dropped
        heard = {} if ears is None else ears.heard
    _tell_responders(out, pinger)
    if matrix and len(ledger):
        _tell_matrix(out, pinger, heard, group)
    replies = sum(found.replies for found in ledger)
    if out.json:
        out.event(
            "summary",
            pings=pinger.pings,
            responders=len(ledger),
            replies=replies,
            duplicates=sum(found.numbers.duplicates for found in ledger),
            others=ledger.others,
            dropped=dropped,
            seconds=round(seconds, 6),
            **counted(pinger),
        )
    unopened = not_opened(pinger)
    if unopened:
        out.say(unopened)
    out.say(_conclusion(group, pinger, replies, seconds, dropped))
    if replies:
        return Exit.YES
    return Exit.NO if finished else Exit.INTERRUPTED


def _intention(group: Group, ttl: int, interfaces: Seq[str] | None, size: int, endless: bool) -> str:
    found, _ = ways(group, ttl, interfaces)
    names = []
    for way in found:
        try:
            names.append(printable(socket.if_indextoname(way.index)))
        except OSError:  # gone meanwhile, or left to the routes
            pass
    by = f" by {', '.join(names)}" if names else ""
    hint = ", Ctrl-C to stop" if endless else ""
    return f"pinging {where(group.address, group.port)}{by}, ttl {ttl}, {plural(size, 'byte')}{hint}"


def _conclusion(group: Group, pinger: Pinger, replies: int, seconds: float, dropped: int) -> str:
    ledger = pinger.ledger
    if not replies:
        text = f"nobody answered {plural(pinger.pings, 'ping')} in {seconds:.3g} s. Does anybody run"
        text += f" `multicast respond --ping {group}`?"
        return text + (f" If so: multicast doctor {group}" if "doctor" in COMMANDS else "")
    text = f"{plural(pinger.pings, 'ping')}, {plural(replies, 'answer')} of {plural(len(ledger), 'responder')}"
    text += f" in {seconds:.1f} s"
    if ledger.others:
        text += f"; {plural(ledger.others, 'answer')} of more responders than are kept apart"
    if dropped:
        text += f"; kernel dropped {dropped}, for they came too many at once"
    return text
