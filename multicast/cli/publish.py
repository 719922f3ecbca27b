"""The command `publish`: send messages to a group as a sequenced feed."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import click

from multicast.feeds import Publisher
from multicast.feeds.moldudp64 import HEADER
from multicast.poller import Poller
from multicast.sockets import Group

from ._app import RATE, Rate, command, count_option, destination, interface_option, ttl_option
from ._errors import Exit
from ._input import Input
from ._output import Output, plural, printable, quoted, where
from ._sealing import key_option

if TYPE_CHECKING:
    from multicast.sealed import Seal


class _Feed(Publisher):
    """Publishes what is given, or read from a file or a pipe."""

    def __init__(self, out: Output, messages: Iterator[bytes | None], **options: Any) -> None:
        super().__init__(**options)
        self._out = out
        self._input = messages

    def __iter__(self) -> Iterator[bytes | None]:
        yield from self._input
        self._out.say("the session has ended; requests are answered for three seconds more, and while they come")


class _Standing:
    """Standard input as a stream of messages that may be long in coming: what is not there is not waited for."""

    def __init__(self, given: Input, longest: int, poller: Poller) -> None:
        self._given = given
        self._longest = longest
        self._poller = poller
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self.feed: _Feed | None = None

    def fileno(self) -> int:
        """Standard input."""
        return 0

    def handle_read(self) -> None:
        """Have the feed read what has come."""
        self._poller.unregister(self)
        if self.feed is not None:
            self.feed.resume()

    def messages(self) -> Iterator[bytes | None]:
        """Yield messages, and None while there are none."""
        lines = self._given.lines(self._longest)
        while True:
            while not self._poll.poll(0):
                self._poller.register(self)
                yield None
            for line in lines:
                if line is None:
                    break
                yield line
            else:
                return


@command(
    "publish",
    json=True,
    examples=[
        "tail -f prices.csv | multicast publish 239.1.2.3:5000 -",
        "multicast publish 239.1.2.3:5000 --file orders.txt --rate 10m",
        "multicast publish '[ff15::1]:5000%eth0' tick -c 1000 --interval 0.1",
    ],
)
@click.argument("words", metavar="[GROUP] [TEXT...]", nargs=-1)
@click.option("-f", "--file", "path", metavar="F", help="Publish a message for each line of F; - is standard input.")
@click.option("-x", "--hex", "as_hex", is_flag=True, help="Each line is bytes in hexadecimal digits.")
@count_option("Publish TEXT N times.")
@click.option("--interval", type=click.FloatRange(min=0), metavar="S", help="Seconds from one packet to the next.")
@click.option("-b", "--rate", type=RATE, metavar="RATE",
              help="Send so fast: 10m is 10 million bits a second of payload, 500pps is 500 packets a second.")
@click.option("--session", metavar="NAME", help="The name of the session, up to 10 characters; left out, a new one.")
@click.option("--history", type=click.IntRange(min=0), default=64, show_default=True, metavar="MIB",
              help="How many MiB of messages are kept for those that ask again.")
@click.option("--heartbeat", type=click.FloatRange(min=0.001), default=1.0, show_default=True, metavar="S",
              help="When nothing was sent for so many seconds, say so.")
@click.option("--answer", default="connected", show_default=True, metavar="WHOM",
              help="Whose requests are answered: connected (hosts on networks of this host), all, group (by the group"
                   " alone), none, or networks with commas between.")
@ttl_option
@interface_option("Send by this interface: a name, an index or an address.")
@click.option("--source-ip", metavar="A", help="Send from this address of this host.")
@click.option("--source-port", type=click.IntRange(1, 65535), metavar="PORT", help="Send from this port.")
@click.option("--no-loopback", is_flag=True, help="Subscribers on this host do not get the packets.")
@key_option("Seal the packets")
def publish(
    out: Output,
    words: tuple[str, ...],
    path: str | None,
    as_hex: bool,
    count: int | None,
    interval: float | None,
    rate: Rate | None,
    session: str | None,
    history: int,
    heartbeat: float,
    answer: str,
    ttl: int,
    interface: str | None,
    source_ip: str | None,
    source_port: int | None,
    no_loopback: bool,
    seal: Seal | None,
) -> Exit:
    """Publish messages to a group as a sequenced feed (MoldUDP64), of which subscribers lose nothing.

    GROUP is written as for `multicast send`. The words of TEXT are one message; - is standard input, a message for each
    line, published as it comes. The session ends with the input. Then its end is told for three seconds, and longer
    while subscribers ask for what they have missed.
    """
    group, text = destination(words, path is not None)
    if list(text) == ["-"] and path is None:
        path, text = "-", ()
    if path is None and not text:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError(f"there is nothing to publish to {group}: give a TEXT, or --file, or - and a pipe")
        path = "-"
    if path is not None and text:
        raise click.UsageError(f"either a TEXT or --file, not both; {quoted(' '.join(text))} is left over")
    if rate is not None and interval is not None:
        raise click.UsageError("--rate and --interval both say how fast to send; give one of them")
    if interface is None and group.interfaces:
        if len(group.interfaces) > 1:
            raise click.UsageError(f"packets leave by one interface, so name one, not {','.join(group.interfaces)}")
        (interface,) = group.interfaces
    if rate is not None and rate.packets is not None:
        interval = 1 / rate.packets
    longest = group.longest - HEADER.size - 2 - (0 if seal is None else seal.overhead)
    given: Input | None = None
    standing: _Standing | None = None
    messages: Iterator[bytes | None]
    try:
        with Poller() as poller:
            if path is None:
                messages = repeat(os.fsencode(" ".join(text)), count or 1)
            else:
                given = Input(out, path, as_hex, "a message is one line, so split it")
                if path == "-":
                    standing = _Standing(given, longest, poller)
                    messages = standing.messages()
                else:
                    messages = given.lines(longest)
            feed = _Feed(
                out,
                messages,
                ip=group.address,
                port=group.port,
                ttl=ttl,
                interface=interface,
                source_ip=source_ip,
                source_port=source_port or 0,
                loopback=not no_loopback,
                rate=None if rate is None else rate.bits,
                interval=interval or 0,
                session=session,
                history=history << 20,
                heartbeat=heartbeat,
                answer=answer if answer in ("connected", "all", "group", "none") else answer.split(","),
                seal=seal,
                poller=poller,
            )
            if standing is not None:
                standing.feed = feed
            name = printable(feed.session.decode().rstrip())
            out.say(f"publishing session {name} to {where(group.address, group.port)}")
            finished = out.drive(poller, lambda: feed.closed, writes=False)
            if standing is not None:
                poller.unregister(standing)
            _tell(out, feed, group)
    finally:
        if given is not None:
            given.close()
    return Exit.YES if finished or feed.statistics().messages else Exit.INTERRUPTED


def _tell(out: Output, feed: Publisher, group: Group) -> None:
    counted = feed.statistics()
    if out.json:
        out.event(
            "summary",
            session=feed.session.decode().rstrip(),
            messages=counted.messages,
            packets=counted.packets,
            bytes=counted.bytes,
            group=group.address,
            port=group.port,
            requests=counted.requests,
            repairs=counted.repairs,
            repaired=counted.repaired,
            unanswered=counted.unanswered,
        )
        return
    text = f"published {plural(counted.messages, 'message')} in {plural(counted.packets, 'packet')}"
    if counted.requests:
        text += f"; {plural(counted.requests, 'request')}, {plural(counted.repaired, 'message')} repaired"
    out.say(text)
