"""The command `bridge`: carry groups to other sites over NATS."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from multicast import aio
from multicast.bridge import Bridge, BridgeStatistics, Credentials, Link, ask_status, serving
from multicast.errors import GroupError
from multicast.poller import Poller
from multicast.sockets import Group

from ._app import ADDRESS, GROUP, command, deadline_option, interfaces_option, parse_group, ttl_option
from ._errors import BadData, Exit
from ._output import Output, ending_signals, plural, printable
from ._sealing import key_option

if TYPE_CHECKING:
    from multicast.sealed import Seal

_PORT = 4222
# Descriptors that are needed beside one for each group.
_SPARE = 64
# What each count means in words.
_CAUSES = {
    "injected": "of bridges",
    "standby": "while another bridge of the site is active",
    "no_server": "without a server",
    "full": "for want of room",
    "oversize": "longer than the server takes",
    "own_site": "of this site",
    "doubled": "doubles",
    "malformed": "with malformed headers",
    "rejected": "not opened with the key",
    "slow": "that this bridge was too slow for",
    "failed": "that the kernel refused",
}


class _Bridge(Bridge):
    """Says when there is a connection, and when there is none."""

    def __init__(self, out: Output, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._out = out
        self.was_connected = False

    def handle_connected(self, server: str, dropped: int) -> None:
        self.was_connected = True
        if self._out.json:
            self._out.event("connected", server=server, dropped=dropped)
            self._out.flush()
        lost = f"; {plural(dropped, 'packet')} dropped meanwhile" if dropped else ""
        self._out.say(printable(f"connected to {server}{lost}"))

    def handle_active(self, active: int, groups: int) -> None:
        if self._out.json:
            self._out.event("leases", active=active, groups=groups)
            self._out.flush()
        if groups == 1:
            self._out.say("active" if active else "standby: another bridge of this site is active")
        else:
            self._out.say(f"active for {active} of {groups} groups")

    def handle_disconnected(self) -> None:
        if self._out.json:
            self._out.event("disconnected")
            self._out.flush()
        self._out.warn("the connection to the server is lost; packets wait until it is there again")


# -- what was asked for --------------------------------------------------------------------------------------------


def _links(groups: Sequence[Group], maps: Sequence[str], ins: Sequence[Group], outs: Sequence[Group]) -> list[Link]:
    """Return the groups with what each crosses as, and in which direction."""
    remotes: dict[Group, Group] = {group: group for group in (*groups, *ins, *outs)}
    for text in maps:
        local, equals, remote = text.rpartition("=")
        if not equals:
            raise click.UsageError(f"--map is LOCAL=REMOTE, as 239.1.2.3:5000=239.9.2.3:5000, not {printable(text)!r}")
        remotes[parse_group(local)] = parse_group(remote)
    directions = {**dict.fromkeys(outs, "out"), **dict.fromkeys(ins, "in")}
    for group in ins:
        if group in outs:
            raise click.UsageError(f"{group} is both --in and --out; name it without either")
    return [Link.of(group, remote, directions.get(group, "both")) for group, remote in remotes.items()]


def _served(value: str) -> tuple[str, int]:
    if not value:
        return "127.0.0.1", _PORT
    text = value if ":" in value or value.isdigit() else f"{value}:{_PORT}"
    address: tuple[str, int] = ADDRESS.convert(text, None, None)
    return address


def _is_group(value: str) -> bool:
    try:
        Group.parse(value)
    except GroupError:
        return False
    return True


def _secret(path: str | None, option: str) -> str | None:
    """Return the first line of a file."""
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        line = file.readline().rstrip("\r\n")
    if not line:
        raise BadData(f"{path}: {option} takes the first line of this file, and it is empty")
    return line


def _tls(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if ca is None and certificate is None and key is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        elif key is not None:
            raise click.UsageError("--tls-key is the key of a certificate; give --tls-cert too")
    except ssl.SSLError as error:
        paths = ", ".join(path for path in (ca, certificate, key) if path is not None)
        reason = error.reason or error.args[-1]
        raise BadData(f"{paths}: no certificates or keys in PEM format that belong together ({reason})") from None
    return context


def _site(text: str | None) -> str:
    """Return the name of this site: that of the host unless one is given."""
    if text is not None:
        return text
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:64] or "site"


def _allow_descriptors(count: int) -> None:
    """Raise the soft limit of open files as far as it may be, where `count` groups need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard < 0 else min(needed, hard), hard))


# -- running -------------------------------------------------------------------------------------------------------


def _run(main: Callable[[], Coroutine[Any, Any, Exit]]) -> Exit:
    with asyncio.Runner() as runner:
        return runner.run(main())


@asynccontextmanager
async def _stopped() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C, SIGTERM and SIGHUP set; the second one ends the command at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.current_task()

    def came() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    numbers = ending_signals()
    for number in numbers:
        loop.add_signal_handler(number, came)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _until(stop: asyncio.Event, seconds: float | None, *others: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Wait for a signal, for so long at most; return whether none came. Raises what one of the others raises."""
    tasks = [asyncio.ensure_future(wait()) for wait in (stop.wait, *others)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return not stop.is_set()


async def _carry(
    out: Output,
    links: list[Link],
    servers: list[str],
    serve: tuple[str, int] | None,
    metrics: tuple[str, int] | None,
    deadline: float | None,
    **options: Any,
) -> Exit:
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(_stopped())
        others: list[Callable[[], Coroutine[Any, Any, None]]] = []
        if serve is not None:
            server = await stack.enter_async_context(serving(*serve))
            servers = [server.url]
            others.append(server.ended)
            out.say(f"serving NATS at {server.url}, without a password: for a trial")
        bridge = _Bridge(out, links, servers, **options)
        await stack.enter_async_context(bridge)
        if metrics is not None:
            from ._web import serve_metrics

            poller = stack.enter_context(Poller())
            out.say(f"metrics are at {serve_metrics(metrics, bridge, poller=poller).url}")
            await stack.enter_async_context(aio.drive(poller))
        names = ", ".join(_hidden(url) for url in servers)
        groups = str(links[0].group) if len(links) == 1 else f"{len(links)} groups"
        if out.json:
            out.event(
                "bridge", site=bridge.site, session=bridge.session, servers=[_hidden(url) for url in servers],
                groups=[{"group": str(a), "subject_of": str(b), "direction": direction} for a, b, direction in links],
            )  # fmt: skip
            out.flush()
        out.say(printable(f"bridging {groups} of site {bridge.site} over {names}, Ctrl-C to stop"))
        try:
            unhindered = await _until(stop, deadline, bridge.wait, *others)
        finally:
            await bridge.close()
            _tell(out, bridge)
    if bridge.was_connected:
        return Exit.YES
    return Exit.NO if unhindered else Exit.INTERRUPTED


def _hidden(url: str) -> str:
    """Return a URL without the password in it."""
    head, at, host = url.rpartition("@")
    return f"{head.partition('://')[0]}://...@{host}" if at else url


def _tell(out: Output, bridge: _Bridge) -> None:
    counted = bridge.statistics()
    if out.json:
        out.event("summary", site=bridge.site, connected=bridge.was_connected, **counted._asdict())
        out.flush()
    out.say(_summary(counted))
    if not bridge.was_connected:
        out.say("there was no connection to a server")


def _by_cause(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {_CAUSES[cause]}" for cause, count in counts.items() if count)


def _summary(counted: BridgeStatistics) -> str:
    """Return what became of all packets, in words."""
    parts = [f"heard {plural(counted.received, 'packet')}: {counted.published} published"]
    if causes := _by_cause(counted.filtered):
        parts.append(f"left out {causes}")
    if causes := _by_cause(counted.dropped):
        parts.append(f"dropped {causes}")
    if counted.waiting:
        parts.append(f"{counted.waiting} still waiting")
    if counted.overflowed:
        parts.append(f"{counted.overflowed} more dropped by the kernel before they were read")
    told = [f"told of {plural(counted.told, 'packet')}: {counted.injected} injected"]
    if causes := _by_cause(counted.discarded):
        told.append(f"left out {causes}")
    if counted.held:
        told.append(f"{counted.held} still waiting")
    if counted.gaps:
        told.append(f"{counted.gaps} more lost on the way")
    return f"{', '.join(parts)}; {', '.join(told)}"


# -- the state of all bridges --------------------------------------------------------------------------------------


async def _show(out: Output, servers: list[str], control: str, credentials: Credentials) -> Exit:
    found = await ask_status(servers, control=control, credentials=credentials)
    if out.json:
        for status in found:
            out.event("status", **{name: value for name, value in status.items() if name != "v"})
        return Exit.YES if found else Exit.NO
    if not found:
        out.say(f"no bridge answers at {', '.join(_hidden(url) for url in servers)}")
        return Exit.NO
    rows: list[list[str]] = []
    for status in found:
        try:
            rows += _rows(status)
        except (KeyError, TypeError, ValueError, AttributeError):
            out.warn(printable(f"a bridge of site {status['site']} answers with something else"))
    head = ["SITE", "HOST", "BRIDGE", "GROUP", "WAY", "STATE", "OUT/S", "IN/S", "GAPS", "LAG", "DROPPED", "UP"]
    out.table(head, rows, spare=("UP", "HOST", "WAY", "LAG", "BRIDGE"))
    return Exit.YES


def _rows(status: dict[str, Any]) -> list[list[str]]:
    """Return a line for each group of a bridge."""
    dropped = sum(status["statistics"]["dropped"].values())
    up = max(0, int(time.time() - float(status["since"])))
    rows = []
    for group in status["groups"]:
        rows.append([
            str(status["site"]), str(status["host"]), str(status["session"])[:6], str(group["group"]),
            str(group["direction"]), str(group["state"]), f"{float(group['out_rate']):.0f}",
            f"{float(group['in_rate']):.0f}", str(group["gaps"]), f"{1000 * float(status['lag']):.1f} ms",
            str(dropped), f"{up // 3600}:{up // 60 % 60:02}:{up % 60:02}",
        ])  # fmt: skip
    more = int(status["groups_total"]) - len(rows)
    if more > 0:
        rows.append([str(status["site"]), str(status["host"]), "", f"{more} groups more", *[""] * 8])
    return rows


# -- the command ---------------------------------------------------------------------------------------------------


def _names_of(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[str]:
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


@command(
    "bridge",
    json=True,
    examples=[
        "multicast bridge 239.1.2.3:5000 --serve",
        "multicast bridge 239.1.2.3:5000 239.1.2.4:5000 --via nats://hub.example:4222 --site berlin",
        "multicast bridge 239.1.2.3:5000 --via tls://hub.example --site tokyo --creds tokyo.creds --key feed.key",
        "multicast bridge --status --via nats://hub.example:4222",
    ],
)
@click.argument("groups", metavar="GROUP...", nargs=-1, type=GROUP)
@click.option("--via", "servers", metavar="URL", multiple=True, callback=_names_of, envvar="NATS_URL",
              help="The server, nats://, tls:// or ws://; several of one cluster with commas or by several --via.")
@click.option("--serve", metavar="[HOST:PORT]", is_flag=False, flag_value="",
              help="Start a server of our own, at 127.0.0.1:4222 unless told; without passwords, for a trial.")
@click.option("--site", metavar="NAME",
              help="The name of this network; all its bridges have the same. Left out, the name of this host.")
@click.option("--map", "maps", metavar="LOCAL=REMOTE", multiple=True,
              help="LOCAL here is REMOTE at the other sites.")
@click.option("--in", "ins", metavar="GROUP", multiple=True, type=GROUP,
              help="Inject GROUP here, and publish nothing of it.")
@click.option("--out", "outs", metavar="GROUP", multiple=True, type=GROUP,
              help="Publish GROUP, and inject nothing into it.")
@interfaces_option("Hear the groups on this interface: a name, an index, an address, several with commas or by several"
                   " -i, or all. Left out, all that are up and can do multicast.")
@click.option("--inject-interface", metavar="IFACE",
              help="Inject by this interface; left out, by that of -i where it is one.")
@ttl_option
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True, metavar="MIB",
              help="How many MiB of packets wait while there is no server.")
@click.option("--keep", type=click.Choice(["newest", "oldest"]), default="newest", show_default=True,
              help="Which packets are kept when more come than may wait.")
@click.option("--prefix", default="multicast", show_default=True, metavar="TEXT",
              help="What the subjects of groups begin with.")
@click.option("--control", default="multicast-bridges", show_default=True, metavar="TEXT",
              help="What the subjects begin with by which bridges speak to each other.")
@click.option("--user", metavar="NAME", envvar="NATS_USER", help="The user the server knows; also NATS_USER.")
@click.option("--password-file", metavar="FILE", help="The password is the first line of FILE; also NATS_PASSWORD.")
@click.option("--token-file", metavar="FILE", help="The token is the first line of FILE; also NATS_TOKEN.")
@click.option("--creds", metavar="FILE", envvar="NATS_CREDS", help="A file of credentials (JWT); also NATS_CREDS.")
@click.option("--nkey", metavar="FILE", envvar="NATS_NKEY", help="A file with the seed of an nkey; also NATS_NKEY.")
@click.option("--tls-ca", metavar="FILE", envvar="NATS_CA", help="Certificates that the server's is signed by.")
@click.option("--tls-cert", metavar="FILE", envvar="NATS_CERT", help="The certificate of this bridge.")
@click.option("--tls-key", metavar="FILE", envvar="NATS_KEY", help="The key of that certificate.")
@click.option("--metrics", metavar="[HOST:]PORT", type=ADDRESS,
              help="Answer requests of Prometheus for /metrics at this address; 127.0.0.1 unless HOST is given.")
@click.option("--status", is_flag=True, help="Ask all bridges of the server how they are, and end.")
@deadline_option("End after so many seconds.")
@key_option("Seal packets between the sites")
def bridge(
    out: Output,
    groups: tuple[Group, ...],
    servers: list[str],
    serve: str | None,
    site: str | None,
    maps: tuple[str, ...],
    ins: tuple[Group, ...],
    outs: tuple[Group, ...],
    interfaces: list[str] | None,
    inject_interface: str | None,
    ttl: int,
    limit: int,
    keep: str,
    prefix: str,
    control: str,
    user: str | None,
    password_file: str | None,
    token_file: str | None,
    creds: str | None,
    nkey: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    metrics: tuple[str, int] | None,
    status: bool,
    deadline: float | None,
    seal: Seal | None,
) -> Exit:
    """Carry groups to other sites, over NATS: what is sent to a GROUP here is heard there, and the other way round.

    GROUP is written as for `multicast listen`. A bridge runs at each site, and all of them reach one server, or the
    servers of one cluster. Several bridges of a site are one active and the others standby, for each group. Nothing is
    injected into a group that is not named here. Counts and their causes are told at the end.
    """
    credentials = Credentials(
        user=user,
        password=_secret(password_file, "--password-file") or os.environ.get("NATS_PASSWORD"),
        token=_secret(token_file, "--token-file") or os.environ.get("NATS_TOKEN"),
        credentials=creds,
        nkey=nkey,
        tls=_tls(tls_ca, tls_cert, tls_key),
    )
    for url in servers:
        _check_url(url)
        if "@" in url and not os.environ.get("NATS_URL"):
            out.warn("who lists the processes of this host sees the password in the URL; use --password-file")
    given = list(groups)
    if serve is not None and _is_group(serve):  # `--serve GROUP`, where GROUP was meant as an argument
        given.insert(0, parse_group(serve))
        serve = ""
    if status:
        if given or maps or ins or outs or serve is not None:
            raise click.UsageError("--status asks the bridges of a server, and takes neither groups nor --serve")
        return _run(lambda: _show(out, servers or [f"nats://127.0.0.1:{_PORT}"], control, credentials))
    links = _links(given, maps, ins, outs)
    if not links:
        raise click.UsageError("name the groups to carry, as 239.1.2.3:5000")
    if serve is not None and servers:
        raise click.UsageError("--via names a server, and --serve starts one; give one of them")
    if serve is None and not servers:
        raise click.UsageError("name a server, as --via nats://hub.example:4222, or start one for a trial with --serve")
    _allow_descriptors(len(links))
    return _run(
        lambda: _carry(
            out,
            links,
            servers,
            None if serve is None else _served(serve),
            metrics,
            deadline,
            site=_site(site),
            prefix=prefix,
            control=control,
            interface=interfaces,
            inject_interface=inject_interface,
            ttl=ttl,
            limit=limit << 20,
            keep=keep,
            seal=seal,
            credentials=credentials,
        )
    )


def _check_url(url: str) -> None:
    """Raise a usage error where the text is no URL of a server."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        known = parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        shown = printable(_hidden(url))
        raise click.UsageError(f"--via is the URL of a server, as nats://hub.example:4222, not {shown!r}")
