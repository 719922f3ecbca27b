"""The command `chat`: people in one room, over multicast without a server, or over TCP with one.

Over multicast each packet is a JSON object in UTF-8, at most 8 KiB long:

    {"chat": 1, "id": "9f86d081884c7d65", "n": 7, "name": "Anna", "is": "says", "text": "hello"}

``id`` is drawn at random when somebody joins, so that own packets are known wherever they come from and two people
may have one name; ``n`` counts the packets of an id, so that the same packet by two interfaces is heard once. ``is`` is
one of

* ``hello``: has just joined. The others answer with ``here``, each after a short time of its own choice;
* ``here``: is still there; sent every five seconds. Nothing answers it, so answers cause no answers;
* ``says``: has said ``text``;
* ``bye``: leaves. Who is not heard of for sixteen seconds has left without a word.

Over TCP each message has its length in eight characters before it. The first one of a guest is the name, the others are
what the guest says; the server's are lines to be shown.

Nobody is who they say they are: anybody on the network can send under any name. What peers send is never written as it
came, and all tables are bounded.
"""

from __future__ import annotations

import getpass
import json
import random
import re
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from multicast import sockets
from multicast.batch import Address
from multicast.errors import GroupError
from multicast.listeners import MulticastListener
from multicast.poller import Poller, Timer
from multicast.sockets import DEFAULT_PORT, Group
from multicast.streams import Acceptor, Prefixed, Stream, connect

from ._app import command, deadline_option, interfaces_option, parse_group, ttl_option
from ._errors import Exit
from ._keyboard import Editor, Keyboard, typing
from ._output import Output, plural, printable, where
from ._sealing import key_option

if TYPE_CHECKING:
    from multicast.sealed import Seal

# In characters; what is longer is cut, on both sides.
_NAME, _TEXT = 30, 1000
_MTU = 8192


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# -- the room ------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """Something that happened in the room."""

    #: here joined says left lost
    kind: str
    name: str
    text: str = ""


@dataclass(slots=True)
class _Person:
    name: str
    heard: float
    number: int


class Room:
    """Who is here and who said what, from packets and times; no I/O."""

    #: Seconds between two signs of life, and after how many of silence somebody has left.
    EVERY = 5.0
    SILENCE = 16.0
    #: The most people that are kept in mind; what others say is not shown.
    MOST = 256

    def __init__(self, name: str) -> None:
        self.name = name
        self.me = secrets.token_hex(8)
        #: Somebody has just joined, and wants to know who is here.
        self.asked = False
        self._sent = 0
        self._people: dict[str, _Person] = {}

    def packet(self, kind: str, text: str = "") -> bytes:
        """Return our next packet."""
        self._sent += 1
        fields: dict[str, object] = {"chat": 1, "id": self.me, "n": self._sent, "name": self.name, "is": kind}
        if text:
            fields["text"] = _cut(text, _TEXT)
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")

    def take(self, packet: bytes, now: float) -> Event | None:
        """Return what a packet tells, None for our own, repeated, and foreign ones."""
        fields = self._fields(packet)
        if fields is None or fields["id"] == self.me:
            return None
        identity, number, kind = fields["id"], fields["n"], fields["is"]
        person = self._people.get(identity)
        if person is not None and number <= person.number:
            return None
        known = person is not None
        if person is None:
            if kind == "bye" or len(self._people) >= self.MOST:
                return None
            person = self._people[identity] = _Person("", now, number)
        person.name, person.heard, person.number = fields["name"], now, number
        name = self._label(identity)
        if kind == "hello":
            self.asked = True
            return Event("joined", name)
        if kind == "says":
            return Event("says", name, fields["text"])
        if kind == "bye":
            del self._people[identity]
            return Event("left", name)
        return None if known else Event("here", name)

    @staticmethod
    def _fields(packet: bytes) -> dict[str, Any] | None:
        """Return the fields of a packet when all are there and what they should be."""
        try:
            fields = json.loads(packet)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict) or fields.get("chat") != 1:
            return None
        identity, number, name, text = fields.get("id"), fields.get("n"), fields.get("name"), fields.get("text", "")
        if not (isinstance(identity, str) and re.fullmatch("[0-9a-f]{16}", identity)):
            return None
        if not (type(number) is int and 0 < number < 2**53 and isinstance(name, str) and isinstance(text, str)):
            return None
        if fields.get("is") not in ("hello", "here", "says", "bye"):
            return None
        return {**fields, "name": _cut(name.strip(), _NAME) or "?", "text": _cut(text, _TEXT)}

    def lost(self, now: float) -> list[Event]:
        """Forget whom nobody has heard of for long, and return who that is."""
        silent = [identity for identity, person in self._people.items() if now - person.heard > self.SILENCE]
        events = [Event("lost", self._label(identity)) for identity in silent]
        for identity in silent:
            del self._people[identity]
        return events

    def names(self) -> list[str]:
        """Return who is here besides us."""
        return sorted(map(self._label, self._people))

    def _label(self, identity: str) -> str:
        """Return a name that no other has."""
        name = self._people[identity].name
        others = [person.name for other, person in self._people.items() if other != identity]
        return f"{name} #{identity[:4]}" if name in (self.name, *others) else name


# -- what is seen --------------------------------------------------------------------------------------------------


class Screen:
    """Shows what happens, above the line that is being typed where there is a terminal."""

    def __init__(self, out: Output, editor: Editor | None) -> None:
        self._out = out
        self._editor = editor
        self._drawn = False
        self._typing = False

    def show(self, event: Event) -> None:
        """Show what somebody says or does."""
        if self._out.json:
            fields = {"text": event.text} if event.kind == "says" else {}
            self._out.event(event.kind, time_ns=time.time_ns(), name=event.name, **fields)
            return
        name = printable(event.name)
        if event.kind == "says":
            self._line(f"{self._out.style(name, 'bold', 'cyan')}: {printable(event.text)}")
        else:
            words = {"here": "is here", "joined": "has joined", "left": "has left", "lost": "is not heard of any more"}
            self._line(self._out.style(f"* {name} {words[event.kind]}", "dim"))

    def own(self, name: str, text: str) -> None:
        """Show what we have said ourselves, where the terminal has not shown it already."""
        if self._editor is not None and not self._out.json:
            self._line(f"{self._out.style(printable(name), 'bold', 'green')}: {printable(text)}")

    def line(self, text: str) -> None:
        """Show a line that a server sent."""
        if self._out.json:
            self._out.event("line", time_ns=time.time_ns(), text=text)
        else:
            self._line(printable(text))

    def note(self, text: str) -> None:
        """Tell the person something about the program."""
        self._wipe()
        self._out.say(text)
        self._redraw()

    def _line(self, text: str) -> None:
        self._wipe()
        self._out.line(f"{self._out.style(time.strftime('%H:%M'), 'dim')}  {text}")
        self._redraw()

    def _wipe(self) -> None:
        if self._drawn:
            sys.stdout.write("\r\033[K")  # to the first column; erase the line (ECMA-48: EL)
            self._drawn = False

    def draw(self) -> None:
        """Show the line that is being typed, from now on."""
        self._typing = self._editor is not None
        self._redraw()

    def _redraw(self) -> None:
        if self._typing and self._editor is not None:
            self._wipe()
            columns = max(10, shutil.get_terminal_size().columns)
            sys.stdout.write("> " + self._editor.shown(columns - 3))
            sys.stdout.flush()
            self._drawn = True

    def close(self) -> None:
        """Show it no longer."""
        self._wipe()
        self._typing = False


# -- without a server ----------------------------------------------------------------------------------------------


class Conversation(MulticastListener):
    """Takes part in the room of a group."""

    def __init__(
        self,
        room: Room,
        screen: Screen,
        group: Group,
        ttl: int,
        interfaces: list[str] | None,
        seal: Seal | None,
        poller: Poller,
    ) -> None:
        chosen = interfaces or list(group.interfaces) or None
        self._ways, _ = sockets.ways(group, ttl, chosen)
        super().__init__(
            None, group.address, group.port, _MTU, interface=chosen, sources=group.sources, seal=seal, poller=poller
        )
        self._sealer = None if seal is None else seal.sealer()
        self._present = room
        self._screen = screen
        self._sending = sockets.open_unicast(group.table.everywhere, 0, ttl=ttl)
        try:
            self._send("hello")
        except BaseException:
            self._sending.close()
            raise
        self._still_here = poller.call_later(room.EVERY, self._announce)
        self._answer: Timer | None = None

    def _send(self, kind: str, text: str = "") -> None:
        """Send by each interface; it is enough that one takes it."""
        packet = self._present.packet(kind, text)
        failures: list[OSError] = []
        if self._sealer is not None:
            packet = self._sealer.seal(packet)
        for way in self._ways:
            try:
                sockets.send_by(
                    self._sending, packet, self.group.sockaddr(way.index), way.index, way.source or None
                )
            except OSError as error:
                failures.append(error)
        if len(failures) == len(self._ways):
            raise failures[0]

    def say(self, text: str) -> None:
        """Say something to all, or carry out a command."""
        if text == "/who":
            names = ", ".join(map(printable, self._present.names())) or "nobody else"
            self._screen.note(f"here: {names}")
        elif text.startswith("/"):
            self._screen.note("commands are /who and /quit")
        else:
            self._screen.own(self._present.name, text)
            try:
                self._send("says", text)
            except OSError as error:
                self._screen.note(f"that was not sent: {error.strerror}")

    def _announce(self) -> None:
        self._still_here = self.poller.call_later(self._present.EVERY, self._announce)
        self._say_here()
        for event in self._present.lost(self.poller.time()):
            self._screen.show(event)

    def _say_here(self) -> None:
        self._answer = None
        try:
            self._send("here")
        except OSError:
            pass  # the network may come back; what the person says is what matters

    def handle_packet(self, packet: bytes, addr: Address) -> None:
        """Show what it tells, and answer those who have just joined."""
        event = self._present.take(packet, self.poller.time())
        if event is not None:
            self._screen.show(event)
        if self._present.asked:
            self._present.asked = False
            if self._answer is None:
                self._answer = self.poller.call_later(random.uniform(0.02, 0.3), self._say_here)  # noqa: S311

    def close(self) -> None:
        """Say goodbye and leave."""
        if not self.closed and hasattr(self, "_still_here"):
            self._still_here.cancel()
            if self._answer is not None:
                self._answer.cancel()
            try:
                self._send("bye")
            except OSError:
                pass
            self._sending.close()
        super().close()


def _multicast(
    out: Output,
    name: str,
    group: Group,
    ttl: int,
    interfaces: list[str] | None,
    seal: Seal | None,
    deadline: float | None,
) -> Exit:
    room = Room(name)
    with Poller() as poller, typing() as editor:
        screen = Screen(out, editor)
        try:
            with Conversation(room, screen, group, ttl, interfaces, seal, poller) as conversation:
                places = ", ".join(printable(interface.name) for interface in conversation.interfaces)
                screen.note(f"you are {printable(name)} in {conversation.group} on {places}; /who, /quit or Ctrl-D")
                keyboard = Keyboard(poller, editor, screen.draw, conversation.say)
                poller.call_soon(screen.draw)  # from then on Ctrl-C is a way to leave
                out.drive(poller, lambda: keyboard.ended and deadline is None, deadline)
        finally:
            screen.close()
    return Exit.YES


# -- with a server -------------------------------------------------------------------------------------------------

_GUESTS = 256
# Seconds for a guest to say a name; who does not takes up somebody's place.
_INTRODUCTION = 30.0


def _framing() -> Prefixed:
    return Prefixed(limit=_MTU)


class Guest(Stream):
    """A connection to the server."""

    framing = _framing
    name = ""

    def __init__(self, house: House, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._house = house
        self._clock = self.poller.call_later(_INTRODUCTION, self.close)

    def handle_message(self, message: bytes) -> None:
        """The first is the name, the others are relayed."""
        text = message.decode(errors="replace").strip()
        if not self.name:
            self._clock.cancel()
            self.name = self._house.free_name(printable(_cut(text, _NAME)) or "guest")
            self._house.welcome(self)
        elif text == "/who":
            self.write(f"* here: {', '.join(self._house.names())}")
        elif text:
            self._house.tell(Event("says", self.name, printable(_cut(text, _TEXT))), self)

    def handle_close(self, error: Exception | None) -> None:
        """Tell the others."""
        self._clock.cancel()
        if self.name:
            self._house.tell(Event("left", self.name), self)


class House(Acceptor):
    """The server: what one guest says, all others hear."""

    def __init__(self, screen: Screen, host: str, port: int, poller: Poller) -> None:
        super().__init__(host, port, partial(Guest, self), max_connections=_GUESTS, poller=poller)
        self._screen = screen

    def _guests(self) -> list[Guest]:
        return [guest for guest in self.streams if isinstance(guest, Guest) and guest.name]

    def names(self) -> list[str]:
        """Return who is here."""
        return [guest.name for guest in self._guests()]

    def free_name(self, name: str) -> str:
        """Return the name, with a number if somebody has it."""
        taken = set(self.names())
        number = 2
        free = name
        while free in taken:
            free, number = f"{name} {number}", number + 1
        return free

    def welcome(self, guest: Guest) -> None:
        """Greet a guest who has said a name, and tell the others."""
        others = [name for name in self.names() if name != guest.name]
        guest.write(f"* hello {guest.name}; here: {', '.join(others) or 'nobody else'}")
        self.tell(Event("joined", guest.name), guest)

    def tell(self, event: Event, source: Guest) -> None:
        """Tell all guests but one, and the screen."""
        self._screen.show(event)
        if event.kind == "says":
            line = f"{event.name}: {event.text}"
        else:
            line = f"* {event.name} has {event.kind}"
        for guest in self._guests():
            if guest is not source:
                guest.write(line)


class Visitor(Stream):
    """The guest's end of the connection."""

    framing = _framing

    def __init__(self, screen: Screen, name: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._screen = screen
        self._name = name

    def handle_connected(self) -> None:
        """Say who we are."""
        self.write(self._name)

    def handle_message(self, message: bytes) -> None:
        """Show what the server says."""
        self._screen.line(message.decode(errors="replace"))

    def handle_close(self, error: Exception | None) -> None:
        """The command looks at it."""

    def say(self, text: str) -> None:
        """Say something to all."""
        self._screen.own(self._name, text)
        self.write(_cut(text, _TEXT))


def _serve(out: Output, host: str, port: int, deadline: float | None) -> Exit:
    screen = Screen(out, None)
    with Poller() as poller, House(screen, host, port, poller) as house:
        place = where(house.address.host, house.address.port)
        out.say(f"listening; guests join with `multicast chat tcp://{place} --name NAME`, Ctrl-C to stop")
        out.drive(poller, limit=deadline)
        out.say(f"{plural(house.accepted, 'guest')}; good night")
    return Exit.YES


def _visit(out: Output, name: str, host: str, port: int, deadline: float | None) -> Exit:
    with Poller() as poller, typing() as editor:
        screen = Screen(out, editor)
        try:
            visitor = connect(host, port, partial(Visitor, screen, name), poller=poller)
            keyboard = Keyboard(poller, editor, screen.draw, visitor.say)
            poller.call_soon(screen.draw)
            out.drive(poller, lambda: visitor.closed or (keyboard.ended and deadline is None), deadline)
            left = not visitor.closed
            if left:
                visitor.finish()
                out.drive(poller, lambda: visitor.closed, 2)
        finally:
            screen.close()
    if visitor.error is not None:
        raise visitor.error
    if not left:
        out.say("the server has ended the chat")
        return Exit.NO
    return Exit.YES


# -- the command ---------------------------------------------------------------------------------------------------

_PLACE = re.compile(r"(?:(?:\[(?P<six>[^]]+)\]|(?P<four>[^]:[]*)):)?(?P<port>[0-9]{1,5})|\[?(?P<host>[^]]+)\]?")


def _place(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``[IPV6]:PORT``, ``PORT`` or ``HOST``."""
    match = _PLACE.fullmatch(text.rstrip("/"))
    if match is None:
        raise click.UsageError(f"{text!r} is not an address; write HOST:PORT, with IPv6 as [HOST]:PORT")
    host = match["six"] or match["four"] or match["host"] or "localhost"
    return "127.0.0.1" if host == "localhost" else host, int(match["port"] or DEFAULT_PORT)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "guest"


@command(
    "chat",
    json=True,
    examples=[
        "multicast chat --name Anna",
        "multicast chat 239.1.2.3:5000 --name Ben -i eth0",
        "multicast chat --serve 0.0.0.0:5000",
        "multicast chat tcp://10.0.0.7:5000 --name Cleo",
    ],
)
@click.argument("where", metavar="[GROUP | tcp://HOST:PORT]", required=False, default="")
@click.option("--name", metavar="NAME", help="What the others call you. Left out, your login name.")
@click.option("--serve", metavar="HOST:PORT", help="Be the server for chats over TCP; 0.0.0.0 stands for this host's"
              " every address, and a port alone keeps to this host.")
@ttl_option
@interfaces_option("Talk on this interface: a name, an index, an address, several with commas or by several -i, or all."
                   " Left out, all that are up and can do multicast.")
@deadline_option("Leave after so many seconds, and not at the end of the input.")
@key_option("Seal what is said")
def chat(
    out: Output,
    where: str,
    name: str | None,
    serve: str | None,
    ttl: int,
    interfaces: list[str] | None,
    deadline: float | None,
    seal: Seal | None,
) -> Exit:
    """Talk to the people in a group, without a server; or over TCP, with one.

    Everybody who has joined the same group hears everybody else; --ttl says how far that goes. What you type is sent
    line by line. /who tells who is here; /quit, Ctrl-D or Ctrl-C leaves. Anybody in the network can listen, and can
    speak under any name, unless a --key keeps it to those who have the key.
    """
    over_tcp = where.lower().startswith("tcp://")
    if seal is not None and (over_tcp or serve is not None):
        raise click.UsageError("--key seals packets of groups; a chat over TCP has none")
    if serve is not None:
        if where or name:
            raise click.UsageError("--serve is the server, which takes no part itself: leave GROUP and --name out")
        return _serve(out, *_place(serve), deadline)
    name = _cut((name or _user()).strip(), _NAME) or "guest"
    if over_tcp:
        if interfaces:
            raise click.UsageError("-i is for groups; a TCP connection goes where the routes lead")
        return _visit(out, name, *_place(where[6:]), deadline)
    try:
        group = parse_group(where) if where else Group()
    except GroupError as error:
        raise click.BadParameter(f"{error}; a server is written tcp://HOST:PORT") from None
    return _multicast(out, name, group, ttl, interfaces, seal, deadline)
