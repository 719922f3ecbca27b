"""`Bridge`: groups of this network over NATS."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from multicast import aio
from multicast.batch import Address
from multicast.errors import ArgumentError, BridgeError, MulticastError, check_number, check_seal
from multicast.interfaces import Interface
from multicast.listeners import MulticastListener
from multicast.poller import Poller
from multicast.sockets import Group, WhichInterface, WhichInterfaces, check_ttl

from .arrivals import Arrivals, Lag
from .buffer import Buffer, Waiting
from .injector import Injector, Outlet
from .leases import BEAT, Leases
from .naming import (
    HEADER,
    Link,
    check_prefix,
    check_site,
    header_head,
    heard_text,
    parse_head,
    parse_header,
    subject_of,
)

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from multicast.sealed import Seal

__all__ = ["Bridge", "BridgeStatistics", "Credentials"]

_log = logging.getLogger("multicast")

_LIMIT = 64 << 20
_RCVBUF = 4 << 20
# How many packets are published before other tasks have their turn, and how many bytes may wait in the client.
_TURN, _CLIENT = 64, 1 << 20
# The bytes of a message that are neither payload nor the text of the header: "NATS/1.0", the name, line ends.
_FRAME = len(b"NATS/1.0\r\n" + HEADER.encode() + b": \r\n\r\n")
# How long the server may take to answer, in seconds.
_ANSWERS = 10
# After so many seconds is looked again whether messages that wait may be injected.
_PAUSE = 0.05
# How long what waits may take to go when the bridge is closed, in seconds.
_LAST = 2.0
# How often the counts of each group are noted, for rates, and the addresses of this host looked up, in seconds.
_SAMPLE = 5.0
# More groups than these could not be told in one message of the length that servers take by default, 1 MiB.
_MOST_LINKS = 10_000
# Of so many other bridges the addresses are known, and for so long after they were told, in seconds.
_MOST_OTHERS, _OTHERS_LAST = 4096, 30.0
# After so many seconds a packet from a port of ours and an address that is not has the addresses looked up.
_LOOK_AGAIN = 0.2
# Of so many groups a status tells.
_MOST_GROUPS = 1000


class BridgeStatistics(NamedTuple):
    """What a bridge has counted so far.

    ``received`` is the sum of ``published``, ``filtered``, ``dropped`` and ``waiting``; ``told`` is the sum of
    ``injected``, ``discarded`` and ``held``.
    """

    #: Packets heard in the groups of this network.
    received: int
    #: Packets handed to the client of the server, and the bytes of their payload.
    published: int
    published_bytes: int
    #: Packets that were not to be published, by cause: ``injected`` by a bridge; ``standby``, as another bridge of the
    #: site is active.
    filtered: dict[str, int]
    #: Packets that were lost here, by cause: ``no_server`` and ``full``, as the buffer was full, without a server and
    #: with one; ``oversize``, as the server does not take messages of this length.
    dropped: dict[str, int]
    #: Packets that the kernel dropped before they were read.
    overflowed: int
    #: Packets in the buffer.
    waiting: int
    #: Messages that came from the server.
    told: int
    #: Packets injected into groups of this network, and their bytes.
    injected: int
    injected_bytes: int
    #: Messages that were not injected, by cause: of the ``own_site``; ``doubled``; ``malformed`` headers; ``rejected``,
    #: as they did not open; ``standby``; ``full``, for want of room in a queue; ``slow``, as this process did not keep
    #: up with the server; ``failed``, as the kernel refused them.
    discarded: dict[str, int]
    #: Packets that wait for room in the queue of an interface.
    held: int
    #: Messages whose numbers are missing: published at another site, and lost on the way here.
    gaps: int
    #: Connections to a server that were lost.
    disconnects: int


class Credentials(NamedTuple):
    """How a bridge proves to the server who it is; see the documentation of nats-py.

    `credentials` and `nkey` are paths of files, `tls` is an `ssl.SSLContext`.
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey: str | None = None
    tls: Any = None
    tls_hostname: str | None = None

    def options(self) -> dict[str, Any]:
        """Return them as `nats.connect` takes them."""
        named = {
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials,
            "nkeys_seed": self.nkey,
            "tls": self.tls,
            "tls_hostname": self.tls_hostname,
        }
        return {name: value for name, value in named.items() if value is not None}


NO_CREDENTIALS = Credentials()


def _host() -> str:
    """Return what tells this host, in the sense of a network namespace, from others while it runs."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/thread-self/ns/net').st_ino}"
    except OSError:
        return socket.gethostname()


def new_client() -> Client:
    try:
        from nats.aio.client import Client
    except ModuleNotFoundError as error:
        error.add_note('bridges need nats-py: pip install "multicast-poller[bridge]"')
        raise
    return Client()


def error_text(error: Exception) -> str:
    """Return the words of an error of nats-py, without what it puts around those of the server."""
    return str(error).removeprefix("nats: ").strip("'\"") or type(error).__name__


class _Crossing:
    """One group at work: what was counted, and what is known of the other sites."""

    __slots__ = (
        "arrivals", "injecting", "link", "number", "outlet", "rates", "sample", "subject", "subscription", "told",
    )  # fmt: skip

    def __init__(self, link: Link, subject: str) -> None:
        self.link = link
        self.subject = subject
        self.number = 0  # of the message published last, and so of how many were
        self.arrivals = Arrivals()
        self.outlet: Outlet | None = None
        self.subscription: Any = None
        self.told: list[tuple[str | None, bytes]] = []  # messages that came and are not looked at yet
        self.injecting = False
        self.sample = (0.0, 0, 0)  # time, published, injected
        self.rates = (0.0, 0.0)

    def note_rates(self, now: float) -> None:
        """Work out the rates since the note before."""
        then, published, injected = self.sample
        sent = 0 if self.outlet is None else self.outlet.sent
        if then and now > then:
            self.rates = (self.number - published) / (now - then), (sent - injected) / (now - then)
        self.sample = (now, self.number, sent)


class _Ear(MulticastListener):
    """Hears one group for a bridge."""

    def __init__(self, crossing: _Crossing, heard: Callable[..., None], **options: Any) -> None:
        self._crossing = crossing
        self._heard = heard
        group = crossing.link.group
        super().__init__(
            None, group.address, group.port, 65535, sources=group.sources or None, details=True, rcvbuf=_RCVBUF,
            **options,
        )  # fmt: skip

    def handle_packets(self, packets: list[bytes], addresses: list[Address]) -> None:
        self._heard(self._crossing, packets, addresses)


class Bridge:
    """Carries groups between this network and other sites, over NATS.

    `groups` are groups as text, `Group`, or `Link`, which says under which other group's subject the packets cross, and
    in which direction. `servers` is the URL of a server, ``nats://``, ``tls://`` or ``ws://``, or several URLs of one
    cluster. `site` names this network: letters, digits, ``-`` and ``_``. All bridges of a network need the same one.
    `prefix` begins the subjects of groups, `control` those by which bridges speak to each other.

    `interface` is where groups are heard, as for `MulticastListener`, and `inject_interface` that by which packets of
    other sites are sent, by default `interface` where it is a single one; they are sent with `ttl`. `limit` is how many
    bytes of packets wait while there is no server, or a slow one; beyond it those that waited longest are dropped, or,
    with `keep` ``oldest``, the new ones. `seal` (a `sealed.Seal`) encrypts and authenticates packets between the sites,
    and what the bridges tell each other; all of them need the key. `credentials` are for the server.

    Use it as an asynchronous context manager, on asyncio or uvloop::

        async with Bridge(["239.1.2.3:5000"], "nats://hub:4222", site="berlin") as bridge:
            await bridge.wait()

    Several bridges of a site are one active and the others standby, for each group. Raises on entering what
    `MulticastListener` and `Sender` raise, and `ModuleNotFoundError` without nats-py; it does not wait for the server.
    """

    def __init__(
        self,
        groups: Iterable[str | Group | Link],
        servers: str | Iterable[str] = "nats://127.0.0.1:4222",
        *,
        site: str,
        prefix: str = "multicast",
        control: str = "multicast-bridges",
        interface: WhichInterfaces = None,
        inject_interface: WhichInterface | None = None,
        ttl: int = 1,
        limit: int = _LIMIT,
        keep: str = "newest",
        seal: Seal | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        #: The name of this network.
        self.site = check_site(site)
        self._control = check_prefix("control", control)
        self._ttl = check_ttl(ttl)
        check_seal(seal)
        check_number("limit", limit, of="bytes")
        if keep not in ("newest", "oldest"):
            raise ArgumentError(f"keep is newest or oldest, not {keep!r}")
        links = [one if isinstance(one, Link) else Link.of(one) for one in groups]
        if len(links) > _MOST_LINKS:
            raise ArgumentError(f"a bridge has {_MOST_LINKS:,} groups at most, not {len(links):,}; start several")
        if not links:
            raise ArgumentError("a bridge needs a group: Bridge(['239.1.2.3:5000'], ...)")
        prefix = check_prefix("prefix", prefix)
        self._crossings = [_Crossing(link, subject_of(link.remote, prefix)) for link in links]
        _check_links(self._crossings)
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        self._credentials = credentials
        self._interface = interface
        self._inject_interface = inject_interface
        #: The name of this run of the bridge: others count its messages by it.
        self.session = secrets.token_hex(6)
        self._leases = Leases(self.session, [one.subject for one in self._crossings], lambda: time.time_ns() // 10**6)
        self._buffer = Buffer(limit, keep)
        self._sealer = None if seal is None else seal.sealer()
        self._opener = None if seal is None else seal.opener()
        # What bridges tell each other has windows of its own against repetition.
        self._control_sealer = None if seal is None else seal.sealer()
        self._control_opener = None if seal is None else seal.opener()
        self._listeners: list[_Ear] = []
        self._lag = Lag()
        self._began = time.time()
        self._received = self._published = self._published_bytes = self._told = self._disconnects = 0
        self._filtered = {"injected": 0, "standby": 0}
        self._dropped = {"no_server": 0, "full": 0, "oversize": 0}
        self._discarded = {"own_site": 0, "malformed": 0, "rejected": 0, "standby": 0, "slow": 0}
        self._own: set[tuple[str, int]] = set()  # addresses that this bridge injects from
        self._own_ports: set[int] = set()
        self._looked = 0.0  # when they were looked up
        # Where the packets come from that other bridges inject: site, addresses, when it was told; by session.
        self._others: dict[str, tuple[str, frozenset[tuple[str, int]], float]] = {}
        self._ports: set[int] = set()  # of all of them
        self._same_network: set[str] = set()  # other sites that were heard on this network
        self._was_dropped = 0  # when the connection was lost
        self._renewed = False  # whether the client is a new one, without subscriptions
        self._last_error = ""
        self._full_told = False  # that packets are dropped
        self._large_told = False  # that the server does not take what is to be told
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._announcements: set[asyncio.Task[None]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Bridge of {len(self._crossings)} groups, site {self.site}{', closed' if self._closed else ''}>"

    # -- beginning and end -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._nats = new_client()
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._wake = asyncio.Event()
        self._gone = asyncio.Event()
        self._host = _host()
        self._injector = Injector(self._ttl, self._inject_interface, _single(self._interface))
        try:
            self._stack.callback(self._injector.close)
            poller = self._stack.enter_context(Poller())
            for number, crossing in enumerate(self._crossings):
                if crossing.link.inward:
                    crossing.outlet = self._injector.outlet(crossing.link.group)
                if crossing.link.outward:
                    interface = list(crossing.link.group.interfaces) or self._interface
                    self._listeners.append(_Ear(crossing, self._heard, interface=interface, poller=poller))
                    self._stack.callback(self._listeners[-1].close)
                if number % 64 == 63:
                    await asyncio.sleep(0)
            self._look_up_addresses()
            await self._stack.enter_async_context(aio.drive(poller))
        except BaseException:
            await self._stack.aclose()
            raise
        for run in (self._connect, self._pump, self._beat):
            task = self._loop.create_task(run())
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)

    async def wait(self) -> None:
        """Wait until the bridge is closed. Raises `BridgeError` when a server refuses it."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Publish what waits, for two seconds at most, say goodbye and close everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            for listener in self._listeners:
                listener.close()
            if self._nats.is_connected:
                with suppress(Exception):
                    await asyncio.wait_for(self._say_goodbye(), _LAST)
        finally:
            tasks = [*self._tasks, *self._announcements]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(Exception):
                await asyncio.wait_for(self._nats.close(), _LAST)
            await self._stack.aclose()
            if self._failure.done():
                self._failure.exception()  # it was told, or nobody has asked
            else:
                self._failure.set_result(None)

    async def _say_goodbye(self) -> None:
        while len(self._buffer) and self._leases.may_act(time.monotonic()):
            self._wake.set()
            await asyncio.sleep(0.01)
        await self._tell("bye")
        await self._nats.flush()

    # -- the connection --------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Connect, and again with a new client where the server has ended a connection for good, as for an error."""
        while True:
            self._gone.clear()
            await self._nats.connect(
                servers=self._servers,
                name=f"multicast bridge {self.site}",
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_connected,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.5,  # type: ignore[arg-type]  # seconds, whole or not
                connect_timeout=3,
                ping_interval=5,
                max_outstanding_pings=2,
                no_echo=True,
                pending_size=4 * _CLIENT,
                **self._credentials.options(),
            )
            listened = {
                f"{self._control}.bridges": self._on_bridge,
                f"{self._control}.site.{self.site}": self._on_peer,
                f"{self._control}.status": self._on_status,
            }
            for subject, callback in listened.items():
                await self._nats.subscribe(subject, cb=callback)
            await self._on_connected()
            await self._gone.wait()
            self._nats = new_client()
            for crossing in self._crossings:
                crossing.subscription = None
            self._renewed = True
            await asyncio.sleep(0.5)

    async def _on_closed(self) -> None:
        self._gone.set()

    async def _on_connected(self) -> None:
        url = self._nats.connected_url
        self._last_error = ""
        self._full_told = self._large_told = False
        now = time.monotonic()
        self._others = {session: (site, known, now) for session, (site, known, _) in self._others.items()}
        await self._tell_addresses(answer=True)
        await self._tell("ask")
        self._leases.connected(time.monotonic())
        lost = sum(self._dropped.values()) - self._was_dropped
        self._was_dropped += lost
        self.handle_connected("" if url is None else f"{url.hostname}:{url.port}", lost)

    async def _on_disconnected(self) -> None:
        if self._closed:
            return
        self._disconnects += 1
        self._leases.disconnected()
        self._was_dropped = sum(self._dropped.values())
        self._full_told = False
        self.handle_disconnected()

    def handle_connected(self, server: str, dropped: int) -> None:
        """Called when there is a connection, first or again: to which server, and how many packets were lost meanwhile.

        The default logs it.
        """
        _log.info("bridge: connected to %s; %d packets were dropped meanwhile", server, dropped)

    def handle_active(self, active: int, groups: int) -> None:
        """Called when it has changed for how many groups, of how many, this bridge is active; the default logs it."""
        _log.info("bridge: active for %d of %d groups", active, groups)

    def handle_disconnected(self) -> None:
        """Called when the connection is lost; the default logs it. It is tried again until the bridge is closed."""
        _log.warning("bridge: the connection to the server is lost; packets wait in a buffer until it is there again")

    async def _on_error(self, error: Exception) -> None:
        from nats import errors

        if isinstance(error, errors.SlowConsumerError):
            self._told += 1
            self._discarded["slow"] += 1
            return
        text = error_text(error)
        refused = "authorization" in text.lower() or "authentication" in text.lower()
        if refused and not self._disconnects and not self._failure.done():
            self._failure.set_exception(
                BridgeError(
                    f"the server refuses this bridge ({text}); look at the user, password, token or files that it was"
                    " given"
                )
            )
        elif text != self._last_error:
            self._last_error = text
            _log.warning("bridge: the server: %s; trying again until it works", text)

    # -- between bridges -------------------------------------------------------------------------------------------

    def _packed(self, **fields: object) -> bytes:
        data = json.dumps({"v": 1, "site": self.site, "session": self.session, **fields}).encode()
        return data if self._control_sealer is None else self._control_sealer.seal(data)

    def _unpacked(self, data: bytes) -> dict[str, Any] | None:
        """Return what another bridge says; None for what is not understood."""
        if self._control_opener is not None:
            opened = self._control_opener.open(data)
            if opened is None:
                return None
            data = opened
        try:
            fields = json.loads(data)
        except ValueError:
            return None
        if not isinstance(fields, dict) or fields.get("v") != 1 or not isinstance(fields.get("session"), str):
            return None
        return fields if isinstance(fields.get("site"), str) else None

    async def _tell(self, kind: str) -> None:
        """Tell the bridges of this site: a ``beat``, the ``state`` of the groups, to ``ask`` for theirs, ``bye``."""
        fields: dict[str, object] = {"kind": kind, "revision": self._leases.revision}
        if kind == "state" or kind == "ask":
            fields["terms"] = self._leases.terms()
        data = self._packed(**fields)
        if self._nats.is_connected and len(data) > self._nats.max_payload and not self._large_told:
            self._large_told = True
            _log.warning(
                "bridge: the server takes messages of %d bytes (max_payload), and to tell other bridges of %d groups"
                " takes %d; so several bridges of a site may be active", self._nats.max_payload,
                len(self._crossings), len(data),
            )  # fmt: skip
        with suppress(Exception):  # without a connection it is told again when there is one
            await self._nats.publish(f"{self._control}.site.{self.site}", data)

    async def _on_peer(self, message: Msg) -> None:
        fields = self._unpacked(message.data)
        if fields is None or fields["site"] != self.site:
            return
        session, kind, now = fields["session"], fields.get("kind"), time.monotonic()
        revision, terms = fields.get("revision"), fields.get("terms")
        if session == self.session or not isinstance(revision, int):
            return
        if kind == "bye":
            self._leases.left(session)
            self._others.pop(session, None)
            self._note_ports()
        elif isinstance(terms, dict) and all(isinstance(term, int) for term in terms.values()):
            self._leases.told(session, revision, terms, now)
        elif self._leases.beat(session, revision, now):
            await self._tell("ask")
        if kind == "ask":
            await self._tell("state")

    async def _tell_addresses(self, *, answer: bool) -> None:
        """Tell all bridges where injected packets come from, and with `answer` have them tell where theirs do."""
        with suppress(Exception):
            data = self._packed(addresses=sorted(self._own), answer=answer, host=self._host)
            await self._nats.publish(f"{self._control}.bridges", data)

    async def _on_bridge(self, message: Msg) -> None:
        fields = self._unpacked(message.data)
        if fields is None or fields["session"] == self.session or not isinstance(fields.get("addresses"), list):
            return
        try:
            addresses = frozenset((str(host), int(port)) for host, port in fields["addresses"])
        except (TypeError, ValueError):
            return
        if fields.get("host") != self._host:  # every host has the addresses of `lo`
            addresses = frozenset(one for one in addresses if not one[0].startswith("127.") and one[0] != "::1")
        known = self._others.get(fields["session"])
        if known is not None or len(self._others) < _MOST_OTHERS:
            self._others[fields["session"]] = fields["site"], addresses, time.monotonic()
            if known is None or known[1] != addresses:
                self._note_ports()
        if fields.get("answer"):
            await self._tell_addresses(answer=False)

    def _look_up_addresses(self) -> None:
        self._looked = time.monotonic()
        before, self._own = self._own, self._injector.addresses()
        if before != self._own:
            self._own_ports = {port for _, port in self._own}
            self._note_ports()

    def _forget_others(self, now: float) -> None:
        """Forget the addresses of bridges that tell them no more; programs may have them by now."""
        gone = [session for session, (_, _, told) in self._others.items() if now - told > _OTHERS_LAST]
        for session in gone:
            del self._others[session]
        if gone:
            self._note_ports()

    def _note_ports(self) -> None:
        self._ports = {port for _, port in self._own}
        for _, addresses, _ in self._others.values():
            self._ports.update(port for _, port in addresses)

    def _injected(self, addr: Address) -> bool:
        """Whether a bridge has sent this packet."""
        if addr in self._own:  # an IPv4 address is equal to host and port
            return True
        source = addr[0].partition("%")[0], addr[1]
        if source in self._own:
            return True
        if addr[1] in self._own_ports and time.monotonic() - self._looked > _LOOK_AGAIN:
            self._look_up_addresses()  # this host may have got another address
            if source in self._own:
                return True
        for site, addresses, _ in self._others.values():
            if source in addresses:
                if site != self.site and site not in self._same_network:
                    self._same_network.add(site)
                    _log.warning(
                        "bridge: packets that site %s has injected are heard at site %s, so both are one network: give"
                        " their bridges the same site, or each packet arrives several times", site, self.site,
                    )  # fmt: skip
                return True
        return False

    async def _beat(self) -> None:
        """Tell that this bridge is there, and do what follows from what others tell."""
        sampled = time.monotonic()
        while True:
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            if now - sampled > _SAMPLE:
                sampled = now
                for crossing in self._crossings:
                    crossing.note_rates(now)
                self._renew_outlets()
                self._look_up_addresses()
                if self._nats.is_connected:
                    self._forget_others(now)
                    await self._tell_addresses(answer=False)
            if not self._nats.is_connected:
                continue
            changed = self._leases.tick(now)
            await self._tell("state" if changed else "beat")
            if changed or self._renewed:
                try:
                    await self._follow_leases()
                except Exception as error:  # the connection broke off meanwhile: once more, when it is there again
                    _log.debug("bridge: not subscribed: %s", error)
                    self._renewed = True
                    continue
                self._renewed = False
                task = self._loop.create_task(self._announce())
                self._announcements.add(task)
                task.add_done_callback(self._announcements.discard)
                task.add_done_callback(self._ended)
            self._wake.set()

    def _renew_outlets(self) -> None:
        """Open the sockets of injected packets again when the kernel refuses them, as for an interface that is gone."""
        outlets = [one.outlet for one in self._crossings if one.outlet is not None]
        if any(outlet.troubled for outlet in outlets):
            with suppress(OSError, MulticastError):  # what is wrong was logged, and it is tried again
                self._injector.renew(outlets)

    async def _follow_leases(self) -> None:
        """Subscribe to what this bridge is active for, and to nothing else."""
        held = self._leases.held
        for number, crossing in enumerate(self._crossings):
            if crossing.link.inward and crossing.subject in held and crossing.subscription is None:
                crossing.subscription = await self._nats.subscribe(
                    crossing.subject, cb=self._hears(crossing), pending_bytes_limit=self._buffer.limit
                )
            elif crossing.subject not in held and crossing.subscription is not None:
                subscription, crossing.subscription = crossing.subscription, None
                with suppress(Exception):
                    await subscription.unsubscribe()
            if number % 64 == 63:
                await asyncio.sleep(0)

    async def _announce(self) -> None:
        """Tell for how many groups this bridge is active, when the server knows what it has subscribed to."""
        active = len(self._leases.held)
        with suppress(Exception):
            await self._nats.flush(timeout=_ANSWERS)
        if not self._closed:
            self.handle_active(active, len(self._crossings))

    # -- from this network to the others ---------------------------------------------------------------------------

    def _heard(self, crossing: _Crossing, packets: list[bytes], addresses: list[Address]) -> None:
        self._received += len(packets)
        if not self._ports.isdisjoint([addr[1] for addr in addresses]):
            kept = [(packet, addr) for packet, addr in zip(packets, addresses, strict=True) if not self._injected(addr)]
            self._filtered["injected"] += len(packets) - len(kept)
            if not kept:
                return
            packets, addresses = [packet for packet, _ in kept], [addr for _, addr in kept]
        if self._leases.settled and crossing.subject not in self._leases.held:
            self._filtered["standby"] += len(packets)
            return
        waiting: list[Waiting] = [
            (crossing, heard_text(addr), packet) for packet, addr in zip(packets, addresses, strict=True)
        ]
        lost = self._buffer.add(waiting)
        if lost:
            connected = self._nats.is_connected
            if not self._full_told:
                self._full_told = True
                _log.warning(
                    "bridge: the buffer of %d MiB is full, so packets are dropped and counted: %s",
                    self._buffer.limit >> 20,
                    "the server, or the way to it, is slower than the groups" if connected else "there is no server",
                )
            self._dropped["full" if connected else "no_server"] += lost
        self._wake.set()

    async def _pump(self) -> None:
        """Publish what waits, while there is a connection and this bridge is active."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while len(self._buffer) and self._nats.is_connected and self._leases.may_act(time.monotonic()):
                if self._nats.pending_data_size > _CLIENT:
                    await asyncio.sleep(0.002)  # the server, or the way there, is slower than the group
                    continue
                await self._publish(self._buffer.take(_TURN))
                await asyncio.sleep(0)

    async def _publish(self, taken: list[Waiting]) -> None:
        """Publish packets; what the client does not take goes back into the buffer."""
        client, held, sealer = self._nats, self._leases.held, self._sealer
        publish = client.publish
        longest = client.max_payload - _FRAME
        done = published = size = 0
        before: _Crossing | None = None
        head = ""
        try:
            for crossing, heard, packet in taken:
                if crossing is not before:
                    term = held.get(crossing.subject)
                    if term is None:
                        self._filtered["standby"] += 1
                        done += 1
                        continue
                    before, head = crossing, header_head(self.site, self.session, term)
                number = crossing.number + 1
                text = f"{head}{number} {heard}"
                data = packet if sealer is None else sealer.seal(text.encode() + b"\n" + packet)
                if len(data) + len(text) > longest:
                    self._dropped["oversize"] += 1
                else:
                    await publish(crossing.subject, data, headers={HEADER: text})
                    crossing.number = number
                    published += 1
                    size += len(packet)
                done += 1
        except Exception as error:  # there is no connection any more, as a rule
            self._buffer.give_back(taken[done:])
            _log.debug("bridge: not published: %s", error)
            await asyncio.sleep(0.05)
        finally:
            self._published += published
            self._published_bytes += size

    # -- from the others to this network ---------------------------------------------------------------------------

    def _hears(self, crossing: _Crossing) -> Callable[[Msg], Awaitable[None]]:
        told, soon, inject = crossing.told, self._loop.call_soon, self._inject

        async def hear(message: Msg) -> None:
            headers = message.headers
            told.append((None if headers is None else headers.get(HEADER), message.data))
            if not crossing.injecting:
                crossing.injecting = True
                soon(inject, crossing)

        return hear

    def _inject(self, crossing: _Crossing) -> None:
        """Look at the messages that came, and inject what is new."""
        crossing.injecting = False
        now = time.monotonic()
        acting = self._leases.may_act(now)
        unsure = crossing.subject in self._leases.held and not acting  # another bridge may have taken the place
        if unsure and sum(len(data) for _, data in crossing.told) <= self._buffer.limit:
            crossing.injecting = True
            self._loop.call_later(_PAUSE, self._inject, crossing)
            return
        outlet = crossing.outlet
        messages = crossing.told.copy()
        crossing.told.clear()
        self._told += len(messages)
        if outlet is None or crossing.subject not in self._leases.held or not acting:
            self._discarded["standby"] += len(messages)
            return
        packets = []
        accept, site, latest = crossing.arrivals.accept, self.site, None
        for header, data in messages if self._opener is None else self._opened(messages):
            head = parse_head(header)
            if head is None or head[3] < 1:
                self._discarded["malformed"] += 1
            elif head[0] == site:
                self._discarded["own_site"] += 1
            elif accept(*head, now):
                packets.append(data)
                latest = header
        origin = parse_header(latest)
        if origin is not None and origin.time:
            self._lag.note((time.time_ns() - origin.time) / 1e9, now)
        if outlet.send(packets) and not crossing.injecting:
            crossing.injecting = True
            self._loop.call_later(0.001, self._inject, crossing)

    def _opened(self, messages: list[tuple[str | None, bytes]]) -> list[tuple[str | None, bytes]]:
        """Open sealed messages. The header inside the seal counts, as the other one may be forged."""
        found: list[tuple[str | None, bytes]] = []
        assert self._opener is not None  # noqa: S101 -- the caller has looked
        for opened in self._opener.open_all([data for _, data in messages]):
            if opened is None:
                self._discarded["rejected"] += 1
                continue
            header, _, packet = opened.partition(b"\n")
            found.append((header.decode("ascii", "replace"), packet))
        return found

    # -- what is told ----------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def connected(self) -> bool:
        """Whether there is a connection to a server."""
        return not self._closed and hasattr(self, "_nats") and self._nats.is_connected

    def is_active(self, group: str | Group) -> bool:
        """Whether this bridge, and no other of its site, carries a group of this network."""
        wanted = group if isinstance(group, Group) else Group.parse(group)
        now = time.monotonic()
        return self._leases.may_act(now) and any(
            one.subject in self._leases.held for one in self._crossings if one.link.group == wanted
        )

    def statistics(self) -> BridgeStatistics:
        """Return what was counted so far; it stays readable after `close`."""
        outlets = [one.outlet for one in self._crossings if one.outlet is not None]
        discarded = {
            **self._discarded,
            "doubled": sum(one.arrivals.doubled for one in self._crossings),
            "full": sum(outlet.full for outlet in outlets),
            "failed": sum(outlet.failed for outlet in outlets),
        }
        return BridgeStatistics(
            received=self._received,
            published=self._published,
            published_bytes=self._published_bytes,
            filtered=dict(self._filtered),
            dropped=dict(self._dropped),
            overflowed=sum(listener.statistics().dropped for listener in self._listeners),
            waiting=len(self._buffer),
            told=self._told,
            injected=sum(outlet.sent for outlet in outlets),
            injected_bytes=sum(outlet.sent_bytes for outlet in outlets),
            discarded=discarded,
            held=sum(outlet.waiting for outlet in outlets),
            gaps=sum(one.arrivals.missing for one in self._crossings),
            disconnects=self._disconnects,
        )

    def status(self) -> dict[str, Any]:
        """Return the state of the bridge as values for JSON: who and where it is, its groups, and its counts.

        Rates are packets a second of the last seconds; lag is how much later than the quickest ones of the last minute
        messages arrive, in seconds.
        """
        held = self._leases.held
        groups = [
            {
                "group": str(one.link.group),
                "subject": one.subject,
                "direction": one.link.direction,
                "state": "active" if one.subject in held else "standby",
                "active": self._leases.holder(one.subject),
                "out_rate": round(one.rates[0], 1),
                "in_rate": round(one.rates[1], 1),
                "gaps": one.arrivals.missing,
            }
            for one in self._crossings[:_MOST_GROUPS]
        ]
        return {
            "site": self.site,
            "session": self.session,
            "host": socket.gethostname(),
            "since": round(self._began, 3),
            "connected": self.connected,
            "peers": self._leases.peers,
            "lag": round(self._lag.seconds, 6),
            "groups": groups,
            "groups_total": len(self._crossings),
            "statistics": self.statistics()._asdict(),
        }

    async def _on_status(self, message: Msg) -> None:
        if message.reply:
            with suppress(Exception):
                await self._nats.publish(message.reply, json.dumps({"v": 1, **self.status()}).encode())


def _single(interface: WhichInterfaces) -> WhichInterface | None:
    """Return the interface where it is one; None where it is none, several or all."""
    named = [interface] if isinstance(interface, str | int | Interface) else list(interface or ())
    return named[0] if len(named) == 1 and named[0] != "all" else None


def _check_links(crossings: list[_Crossing]) -> None:
    """Raise `ArgumentError` where two links have the same group, or the same subject, of this site."""
    groups: set[Group] = set()
    subjects: dict[str, Group] = {}
    for crossing in crossings:
        group = crossing.link.group
        if group in groups:
            raise ArgumentError(f"{group} is named twice; name it once, with the direction both for in and out")
        if crossing.subject in subjects:
            raise ArgumentError(
                f"{subjects[crossing.subject]} and {group} both cross as {crossing.subject}; map one of them to another"
            )
        groups.add(group)
        subjects[crossing.subject] = group
