"""The command `demo`: the library at work where no network is at hand.

Where the system allows it, the demonstration runs in a network namespace of its own: a network that this program alone
is in. Elsewhere it keeps to the loopback interface, with TTL 0. Either way nothing leaves the host.

Each part is a function that gets the `Stage`, shows something and says what must have come of it; add another to
`PARTS`. Nothing is asserted that was not counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from multicast.batch import Address
from multicast.discovery import Requester, Responder
from multicast.errors import InterfaceError
from multicast.interfaces import interfaces
from multicast.listeners import MulticastListener
from multicast.poller import Poller
from multicast.senders import Multicaster, sendto
from multicast.streams import Acceptor, Prefixed, Stream, connect

from ._app import command
from ._errors import Exit
from ._output import Output, plural, quoted

_GROUP, _PORT = "239.255.42.42", 4242
# Generous, as it is reached only when something does not arrive.
_PATIENCE = 3.0


class Stage:
    """What the parts share: one poller, one clock, one way to show things."""

    def __init__(self, out: Output, poller: Poller, *, private: bool, quick: bool) -> None:
        self._out = out
        #: The one poller that drives everything.
        self.poller = poller
        #: Whether the network is this program's own; otherwise it is the loopback interface, with TTL 0.
        self.private = private
        #: Arguments for everything that sends, and for everything that listens.
        self.sending: dict[str, Any] = {"ttl": 1} if private else {"ttl": 0}
        self.listening: dict[str, Any] = {"poller": poller} if private else {"poller": poller, "interface": "lo"}
        #: Seconds between the packets of a paced sender.
        self.interval = 0.01 if quick else 0.25
        self._began = time.monotonic()
        self._parts = 0
        self._failed = 0
        self._skipped = 0
        self._sent = 0
        self._received = 0
        self._dropped = 0

    def title(self, text: str) -> None:
        """Begin a part."""
        self._parts += 1
        self._out.line()
        self._out.line(self._out.style(f"{self._parts}  {text}", "bold"))

    def introduce(self, name: str, text: str) -> None:
        """Say who takes part."""
        self._out.line(f"   {self._out.style(f'{name:<12}', 'cyan')} {text}")

    def shows(self, name: str, verb: str, packet: bytes) -> None:
        """Tell that somebody sends or gets a packet, as it happens."""
        when = self._out.style(f"{time.monotonic() - self._began:4.2f} s", "dim")
        text = quoted(packet.decode(errors="backslashreplace"))
        if verb == "gets":
            text = self._out.style(text, "green")
        self._out.line(f"   {when}  {self._out.style(f'{name:<12}', 'cyan')} {verb:<5} {text}")

    def sendto(self, packet: str, ip: str = _GROUP, **options: Any) -> None:
        """Send one packet with `sendto`, and show it."""
        self.shows("sendto", "sends", packet.encode())
        self._sent += sendto(packet, ip, _PORT, **self.sending, **options)

    def drive(self, done: Callable[[], object]) -> None:
        """Run the poller until `done()`, but not for ever."""
        if not self._out.drive(self.poller, done, _PATIENCE):
            raise KeyboardInterrupt

    def expect(self, listener: Listener | Asker, wanted: Sequence[str]) -> None:
        """Say whether a listener got what it should have, and close it."""
        counts = listener.statistics()
        received = counts.delivered + counts.filtered
        self._received += received
        self._dropped += counts.dropped
        listener.close()
        self._judge(listener.name, f"received {received}, let {len(listener.got)} pass", listener.got, wanted)

    def heard(self, guest: Guest, wanted: Sequence[str]) -> None:
        """Say whether a guest got what it should have, and end its connection."""
        guest.close()
        self._judge(guest.name, f"heard {plural(len(guest.got), 'message')}", guest.got, wanted)

    def _judge(self, who: str, what: str, packets: Sequence[bytes], wanted: Sequence[str]) -> None:
        got = [packet.decode(errors="backslashreplace") for packet in packets]
        text = f"   {self._out.style(f'{who:<12}', 'cyan')} {what}"
        if got == list(wanted):
            self._out.line(f"{text}: {self._out.style('as it should be', 'green')}")
        else:
            self._failed += 1
            self._out.line(f"{text}: {self._out.style('WRONG', 'red', 'bold')}, it should have got {len(wanted)}")
            for missing in (packet for packet in wanted if packet not in got):
                self._out.line(f"   {'':<12} missing {quoted(missing)}")

    def count(self, sender: Multicaster) -> None:
        """Add what a sender has sent, and close it."""
        self._sent += sender.statistics().packets
        sender.close()

    def asked(self, requester: Asker) -> None:
        """Add the requests that were sent."""
        self._sent += requester.asked

    def retire(self, responder: Helper) -> None:
        """Add what a responder has received and sent, and close it."""
        counts = responder.statistics()
        self._received += counts.packets
        self._dropped += counts.dropped
        self._sent += responder.reply_statistics().sent
        responder.close()

    def skip(self, text: str) -> None:
        """Say that a part cannot be shown here."""
        self._skipped += 1
        self._out.line(f"   {self._out.style('skipped', 'yellow')}: {text}")

    def end(self) -> Exit:
        """Print the summary; return the exit code."""
        seconds = time.monotonic() - self._began
        self._out.line()
        counted = (
            f"{plural(self._sent, 'packet')} sent, {self._received} received, {self._dropped} dropped, {seconds:.1f} s"
        )
        skipped = f", {plural(self._skipped, 'part')} skipped" if self._skipped else ""
        if self._failed:
            verdict = self._out.style("not all arrived as it should", "red", "bold")
            self._out.line(f"{verdict}: {counted}{skipped}")
            return Exit.NO
        self._out.line(f"{self._out.style('all as it should be', 'green', 'bold')}: {counted}{skipped}")
        return Exit.YES


class Listener(MulticastListener):
    """Shows and keeps what passes its filter."""

    def __init__(self, stage: Stage, name: str, filter: Any = None, ip: str = _GROUP, **options: Any) -> None:
        super().__init__(filter, ip, _PORT, **stage.listening, **options)
        self.name = name
        self.got: list[bytes] = []
        self._stage = stage

    @property
    def seen(self) -> int:
        """How many packets came, with those that the filter refused, in the kernel already or here."""
        counts = self.statistics()
        return counts.delivered + counts.filtered

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Show and keep the packet."""
        self.got.append(packet)
        self._stage.shows(self.name, "gets", packet)


class Sender(Multicaster):
    """Shows and sends its packets, one every `Stage.interval` seconds."""

    def __init__(self, stage: Stage, name: str, packets: Iterable[str], ip: str = _GROUP, **options: Any) -> None:
        super().__init__(ip, _PORT, interval=stage.interval, poller=stage.poller, **stage.sending, **options)
        self.name = name
        self._stage = stage
        self._given = packets

    def __iter__(self) -> Iterator[bytes]:
        for packet in self._given:
            self._stage.shows(self.name, "sends", packet.encode())
            yield packet.encode()


class Helper(Responder):
    """Shows the requests, and answers with its name."""

    def __init__(self, stage: Stage, name: str, ip: str) -> None:
        super().__init__(ip=ip, port=_PORT, **stage.listening)
        self.name = name
        self._stage = stage

    def handle_request(self, packet: bytes, addr: Address) -> str:
        """Show the request, and reply."""
        self._stage.shows(self.name, "gets", packet)
        return f"{self.name} is here"


class Asker(Requester):
    """Sends a request, shows and keeps the replies."""

    def __init__(self, stage: Stage, name: str, packet: str, ip: str) -> None:
        stage.shows(name, "asks", packet.encode())
        super().__init__(packet, ip, _PORT, timeout=_PATIENCE, poller=stage.poller, **stage.sending)
        self.name = name
        self.got: list[bytes] = []
        self._stage = stage

    def handle_reply(self, packet: bytes, addr: Address) -> None:
        """Show and keep the reply."""
        self.got.append(packet)
        self._stage.shows(self.name, "gets", packet)


class Guest(Stream):
    """Says something in a chat, shows and keeps what others say."""

    framing = Prefixed

    def __init__(self, stage: Stage, name: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.name = name
        self.got: list[bytes] = []
        self._stage = stage

    def say(self, text: str) -> None:
        """Show a message and send it."""
        self._stage.shows(self.name, "says", text.encode())
        self.write(text)

    def handle_message(self, message: bytes) -> None:
        """Show and keep the message."""
        self.got.append(message)
        self._stage.shows(self.name, "gets", message)

    def handle_close(self, error: Exception | None) -> None:
        """What is missing then is said at the end."""


# -- the parts -----------------------------------------------------------------------------------------------------


def filters(stage: Stage) -> None:
    """Two senders and two listeners on one poller."""
    stage.introduce("thermometer", "Multicaster: yields a reading, paced by the poller")
    stage.introduce("sendto", "sends an alarm, then a word")
    stage.introduce("alarms", "MulticastListener('alarm'): a regular expression")
    stage.introduce("hot", "MulticastListener(more_than_25): a callable")
    readings = [f"temp {degrees}" for degrees in (21, 24, 26, 29, 25)]

    def more_than_25(packet: bytes, addr: Address) -> bool:
        return packet.startswith(b"temp ") and int(packet[5:]) > 25

    alarms = Listener(stage, "alarms", "alarm")
    hot = Listener(stage, "hot", more_than_25)
    thermometer = Sender(stage, "thermometer", readings)
    stage.sendto("alarm: door open")
    stage.sendto("hello, everybody")
    everything = len(readings) + 2
    stage.drive(lambda: all(listener.seen >= everything for listener in (alarms, hot)))
    stage.count(thermometer)
    stage.expect(alarms, ["alarm: door open"])
    stage.expect(hot, ["temp 26", "temp 29"])


def sources(stage: Stage) -> None:
    """Source-specific: one group, two who send to it."""
    stage.introduce("subscriber", "listens with sources=['127.0.0.1']")
    stage.introduce("anybody", "listens to the same group without")
    group = "239.255.42.43"
    subscriber = Listener(stage, "subscriber", ip=group, sources=["127.0.0.1"])
    anybody = Listener(stage, "anybody", ip=group)
    stage.sendto("from 127.0.0.1", group, source_ip="127.0.0.1")
    stage.sendto("from 127.0.0.2", group, source_ip="127.0.0.2")
    stage.drive(lambda: len(anybody.got) >= 2 and subscriber.got)
    stage.expect(subscriber, ["from 127.0.0.1"])
    stage.expect(anybody, ["from 127.0.0.1", "from 127.0.0.2"])


def ipv6(stage: Stage) -> None:
    """The same with IPv6."""
    if not stage.private:
        stage.skip("IPv6 groups on the loopback interface alone need a private network")
        return
    if not Path("/proc/thread-self/net/if_inet6").exists():
        stage.skip("this kernel has no IPv6")
        return
    stage.introduce("six", "MulticastListener(ip='ff15::4242')")
    six = Listener(stage, "six", ip="ff15::4242")
    stage.sendto("hello, IPv6", "ff15::4242")
    stage.drive(lambda: six.got)
    stage.expect(six, ["hello, IPv6"])


def requests(stage: Stage) -> None:
    """A request to a group, answered by three."""
    group = "239.255.42.44"
    helpers = [Helper(stage, name, group) for name in ("anna", "berta", "carla")]
    for helper in helpers:
        stage.introduce(helper.name, "Responder: replies to who asked, and to nobody else")
    stage.introduce("asker", "Requester: asks the group, and gathers what comes back")
    asker = Asker(stage, "asker", "who is there?", group)
    stage.drive(lambda: len(asker.got) >= len(helpers))
    asker.got.sort()  # they answer in any order
    for helper in helpers:
        stage.retire(helper)
    stage.asked(asker)
    stage.expect(asker, [f"{helper.name} is here" for helper in helpers])


def chat(stage: Stage) -> None:
    """A chat over TCP, on the same poller."""

    class Place(Stream):
        framing = Prefixed

        def handle_message(self, message: bytes) -> None:
            for place in server.streams:
                if place is not self:
                    place.write(message)

    stage.introduce("server", "Acceptor: tells all others what one says")
    stage.introduce("dora", "Stream, made by connect: one of the guests; emil is the other")
    with Acceptor("127.0.0.1", 0, Place, poller=stage.poller) as server:
        dora, emil = (
            connect("127.0.0.1", server.address.port, partial(Guest, stage, name), poller=stage.poller)
            for name in ("dora", "emil")
        )
        stage.drive(lambda: len(server.streams) == 2)
        dora.say("hello, emil")
        stage.drive(lambda: emil.got)
        emil.say("hello, dora")
        stage.drive(lambda: dora.got)
        stage.heard(dora, ["hello, dora"])
        stage.heard(emil, ["hello, emil"])
        for place in server.streams:
            place.close()


#: What is shown, in this order; the first line of each docstring is the title.
PARTS: list[Callable[[Stage], None]] = [filters, sources, ipv6, requests, chat]


# -- the command ---------------------------------------------------------------------------------------------------


@command("demo", examples=["multicast demo", "multicast demo --quick", "multicast demo --no-color > demo.txt"])
@click.option("--quick", is_flag=True, help="Do not take the time that makes it pleasant to watch.")
def demo(out: Output, quick: bool) -> Exit:
    """Show the library at work, without a network.

    Everything happens in a network of this program's own, where the system allows one, otherwise on the loopback
    interface with TTL 0: nothing leaves this host. It takes less than ten seconds, and exits with 1 when anything did
    not arrive that should have.
    """
    private, why_not = enter_private_network()
    if not private and not any(one.loopback and one.up for one in interfaces()):
        raise InterfaceError(
            f"this demonstration needs the loopback interface, which is down ({why_not}). Bring it up:"
            " ip link set dev lo up"
        )
    with Poller() as poller:
        stage = Stage(out, poller, private=private, quick=quick)
        out.line(out.style("multicast demo", "bold"))
        if private:
            out.line("In a network of this program's own; nothing leaves this host.")
        else:
            out.line("On the loopback interface, with TTL 0; nothing leaves this host.")
            out.say(f"({why_not})")
        for part in PARTS:
            stage.title((part.__doc__ or part.__name__).splitlines()[0].rstrip("."))
            part(stage)
        return stage.end()


# -- a network of our own ------------------------------------------------------------------------------------------

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # clone(2)


def enter_private_network() -> tuple[bool, str]:
    """Move this process into a network that it alone is in, with ``lo`` up and the groups routed to it.

    Return whether that worked, and why not. As root it takes a network namespace; an ordinary user needs a user
    namespace around it, which some systems forbid.
    """
    problem: OSError | None = None
    for flags in (_CLONE_NEWNET, _CLONE_NEWNET | _CLONE_NEWUSER):
        # There may be no way back, and some systems give a namespace without the right to set it up. So a child
        # process tries first.
        child = os.fork()
        if child == 0:
            code = errno.EPERM
            try:
                _enter(flags)
                code = 0
            except OSError as error:
                code = error.errno or code
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            _enter(flags)
            return True, ""
        problem = OSError(code, os.strerror(code)) if code > 0 else OSError(errno.EPERM, os.strerror(errno.EPERM))
    return False, f"this system gives no private network: unshare says {problem.strerror if problem else 'nothing'}"


def _enter(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _unshare(flags)
    if flags & _CLONE_NEWUSER:  # user_namespaces(7): whoever we were, in there we are root
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path("/proc/self", name).write_text(text)
    _switch_on("lo")
    loopback = socket.if_nametoindex("lo")
    # With a source address, or the packets would have none.
    _add_route(socket.AF_INET, "224.0.0.0", 4, loopback, source="127.0.0.1")
    if Path("/proc/thread-self/net/if_inet6").exists():
        _add_route(socket.AF_INET6, "ff00::", 8, loopback)


def _unshare(flags: int) -> None:
    # Until 3.12 the standard library has no unshare.
    if hasattr(os, "unshare"):
        os.unshare(flags)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _switch_on(name: str) -> None:
    """Bring an interface up (netdevice(7))."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", name.encode(), 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, get_flags, request), 16)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", name.encode(), flags | up))


def _add_route(family: int, net: str, bits: int, interface: int, source: str | None = None) -> None:
    """Have packets to a net leave by an interface, and no other (rtnetlink(7))."""
    new_route, request, ack, create = 24, 0x1, 0x4, 0x400  # RTM_NEWROUTE, NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
    destination, out_interface, preferred_source = 1, 4, 7  # RTA_DST, RTA_OIF, RTA_PREFSRC
    # IPv6 delivers on lo what a route of type `local` in the table `local` leads there, and nothing else; IPv4 takes
    # an ordinary one in the main table, of scope `link`.
    table, scope, kind = (254, 253, 1) if family == socket.AF_INET else (255, 0, 2)

    def attribute(number: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), number) + value

    body = struct.pack("=8BI", family, bits, 0, 0, table, 3, scope, kind, 0)  # 3: RTPROT_BOOT, set by hand
    body += attribute(destination, socket.inet_pton(family, net))
    body += attribute(out_interface, struct.pack("=I", interface))
    if source is not None:
        body += attribute(preferred_source, socket.inet_pton(family, source))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), new_route, request | ack | create, 1, 0) + body)
        reply = kernel.recv(65536)
    (number,) = struct.unpack_from("=i", reply, 16)  # struct nlmsgerr: a negative errno, or 0
    if number:
        raise OSError(-number, os.strerror(-number))
