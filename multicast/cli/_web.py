"""A small web server for `top`: one page, its stream of events, and metrics; nothing can be changed by it.

h11 reads and writes HTTP/1.1, and `multicast.streams` are the connections, so the server runs on the poller that
measures: it needs no thread, and it reads figures between two packets. It answers GET and HEAD, looks at no body, and
refuses a request whose Host header is neither an IP address, ``localhost`` nor the name that was given to it. A page
of another site can have its own name resolved to 127.0.0.1 and would then read what it likes (DNS rebinding); the
header still carries that site's name.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import h11

from multicast.poller import Poller
from multicast.streams import Acceptor, Stream

# Browsers that watch at a time. Further ones wait in the kernel's queue.
_MOST_CLIENTS = 32
# A browser for which so many bytes wait is left out until it has taken them: it gets the next picture instead.
_SLOW = 65536
# A connection that asks nothing for so many seconds is closed. One that follows the events may be silent.
_IDLE = 60.0

_HEADERS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


class Body(NamedTuple):
    """What a path answers with."""

    content_type: str
    data: bytes
    #: A Content-Security-Policy, for pages.
    policy: str = "default-src 'none'"


#: Makes the answer of a path from the Accept header of the request.
Answer = Callable[[str], Body]


class Events:
    """A path whose answer does not end: `send` gives each browser that follows it a new value.

    These are the server-sent events of the HTML standard, section 9.2.
    """

    def __init__(self) -> None:
        self._clients: dict[_Client, None] = {}
        self._latest = b""
        #: Values that were not sent to a browser that was too slow.
        self.skipped = 0

    def send(self, value: object) -> None:
        """Send a value, as JSON, to each browser that follows."""
        self._latest = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
        for client in list(self._clients):
            if client.waiting > _SLOW:
                self.skipped += 1
            else:
                client.send_piece(self._latest)

    def _add(self, client: _Client) -> None:
        self._clients[client] = None
        # The browser asks again after so many milliseconds when the connection is lost.
        client.send_piece(b"retry: 2000\n\n" + self._latest)

    def _remove(self, client: _Client) -> None:
        self._clients.pop(client, None)


class Server(Acceptor):
    """Answers requests for `paths` at a TCP address of this host.

    `paths` maps a path to a function that makes the answer, or to `Events`. `host` is an address of this host, or
    ``localhost``. Raises what `Acceptor` raises.
    """

    def __init__(self, host: str, port: int, paths: Mapping[str, Answer | Events], *, poller: Poller) -> None:
        self.name = host
        self.paths = paths
        self._clients: dict[_Client, None] = {}
        super().__init__(
            "127.0.0.1" if host == "localhost" else host,
            port,
            partial(_Client, server=self),
            max_connections=_MOST_CLIENTS,
            poller=poller,
        )

    @property
    def url(self) -> str:
        """Where the first path is, for people."""
        host, port = self.address[:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{next(iter(self.paths))}"

    def close(self) -> None:
        """Stop answering, and close all connections. Idempotent."""
        super().close()
        for client in list(self._clients):
            client.close()

    def serves(self, host: str) -> bool:
        """Return whether a Host header means this server."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name in ("localhost", self.name):
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


class _Client(Stream):
    """One connection of a browser."""

    _request: h11.Request  # the one that is being read, or was answered last

    def __init__(self, *arguments: object, server: Server, **options: object) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER)
        self._follows: Events | None = None
        super().__init__(*arguments, idle=_IDLE, stall=30.0, **options)  # type: ignore[arg-type]
        server._clients[self] = None

    def handle_message(self, message: bytes) -> None:
        """Take what the browser sent, and answer each request that is complete."""
        try:
            self._http.receive_data(message)
            while not self.closed:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.EndOfMessage):
                    self._answer(self._request)
                    if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                        self._http.start_next_cycle()
                elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    break
            if self._http.our_state in (h11.MUST_CLOSE, h11.CLOSED):
                self.finish()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._refuse(error.error_status_hint, f"{error}.")
            self.finish()

    def handle_end(self) -> None:
        """The browser has gone, or wants nothing more."""
        self.close()

    def handle_close(self, error: Exception | None) -> None:
        """Forget the browser. That it was cut off is no fault of ours."""
        self._server._clients.pop(self, None)
        if self._follows is not None:
            self._follows._remove(self)

    def send_piece(self, data: bytes) -> None:
        """Send a piece of an answer that does not end."""
        self._send(h11.Data(data=data))

    def _answer(self, request: h11.Request) -> None:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        path = request.target.decode("ascii", "replace").partition("?")[0]
        if not self._server.serves(headers.get("host", "")):
            self._refuse(403, "The Host header names another server. Open this page by its IP address or as localhost.")
        elif request.method not in (b"GET", b"HEAD"):
            self._refuse(405, "Nothing can be changed here: only GET and HEAD are answered.", ("Allow", "GET, HEAD"))
        elif (answer := self._server.paths.get(path)) is None:
            self._refuse(404, f"There is no such page. There are: {', '.join(self._server.paths)}")
        elif not isinstance(answer, Events):
            self._reply(200, answer(headers.get("accept", "")))
        else:
            self._start(200, [("Content-Type", "text/event-stream")])
            if request.method == b"GET":
                self._follows = answer
                self.idle = None
                answer._add(self)
            else:
                self._send(h11.EndOfMessage())

    def _refuse(self, status: int, sentence: str, *headers: tuple[str, str]) -> None:
        self._reply(status, Body("text/plain; charset=utf-8", f"{sentence}\n".encode()), *headers)

    def _reply(self, status: int, body: Body, *headers: tuple[str, str]) -> None:
        self._start(status, [
            ("Content-Type", body.content_type), ("Content-Length", str(len(body.data))),
            ("Content-Security-Policy", body.policy), *headers,
        ])  # fmt: skip
        if self._http.their_state is h11.ERROR or self._request.method != b"HEAD":
            self._send(h11.Data(data=body.data))
        self._send(h11.EndOfMessage())

    def _start(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._send(h11.Response(status_code=status, headers=[*headers, *_HEADERS]))

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self.write(data)


def serve_metrics(address: tuple[str, int], *sources: Any, poller: Poller) -> Server:
    """Answer requests for ``/metrics`` at an address with what `sources` count, as `metrics.collector` takes them."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    from multicast.metrics import collector

    registry = CollectorRegistry()
    registry.register(collector(*sources))

    def answer(accept: str) -> Body:
        encode, content_type = choose_encoder(accept)
        return Body(content_type, encode(registry))

    return Server(*address, {"/metrics": answer}, poller=poller)
