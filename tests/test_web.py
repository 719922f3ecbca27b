"""The page and the metrics that `multicast top` serves."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import helpers
import netns
import pytest

import multicast

pytest.importorskip("h11", reason="h11 is not installed")

from multicast.cli._web import Body, Events, Server

PAGE = Body("text/html", b"<p>hello</p>")


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def server(poller: multicast.Poller, events: Events) -> Iterator[Server]:
    with Server("127.0.0.1", 0, {"/": lambda accept: PAGE, "/events": events}, poller=poller) as server:
        yield server


Ask = Callable[[bytes], bytes]


@pytest.fixture
def ask(poller: multicast.Poller, server: Server) -> Ask:
    """Send bytes to the server; return what it answers, up to its end or a pause."""

    def asked(request: bytes) -> bytes:
        with socket.create_connection(server.address[:2]) as client:
            client.sendall(request)
            client.setblocking(False)
            answer = b""
            for _ in range(50):
                poller.poll(0.01)
                try:
                    piece = client.recv(65536)
                except BlockingIOError:
                    if answer:
                        break
                    continue
                if not piece:
                    break
                answer += piece
            client.shutdown(socket.SHUT_WR)
            helpers.turns(poller)
        return answer

    return asked


def request(path: str = "/", method: str = "GET", host: str = "127.0.0.1:80") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def test_a_page_is_answered_and_may_load_nothing(ask: Ask) -> None:
    head, _, body = ask(request()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == PAGE.data
    assert b"Content-Security-Policy: default-src 'none'" in head
    assert b"nosniff" in head


def test_several_requests_on_one_connection(ask: Ask) -> None:
    assert ask(request() * 3).count(PAGE.data) == 3


def test_head_has_no_body(ask: Ask) -> None:
    assert ask(request(method="HEAD")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(ask: Ask, method: str) -> None:
    assert ask(request(method=method)).startswith(b"HTTP/1.1 405 ")


def test_another_path_is_told_which_there_are(ask: Ask) -> None:
    answer = ask(request("/secret"))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"/events" in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9000", "[::1]:9000", "10.1.2.3:9000"])
def test_addresses_and_localhost_are_this_server(ask: Ask, host: str) -> None:
    assert ask(request(host=host)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:90", "127.0.0.1.evil.example", "localhost.evil:80", ""])
def test_a_foreign_name_in_the_host_header_is_refused(ask: Ask, host: str) -> None:
    answer = ask(request(host=host))
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert PAGE.data not in answer


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X" * 100_000],
    ids=["TLS", "no path", "endless header"],
)
def test_garbage_ends_the_connection_and_not_the_server(ask: Ask, garbage: bytes) -> None:
    answer = ask(garbage)
    assert not answer or re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert ask(request()).endswith(PAGE.data)


def test_events_come_as_they_are_sent_the_latest_first(
    poller: multicast.Poller, server: Server, events: Events
) -> None:
    events.send({"second": 1})
    with socket.create_connection(server.address[:2]) as client:
        client.sendall(request("/events"))
        helpers.turns(poller)
        events.send({"second": 2})
        helpers.turns(poller)
        client.setblocking(False)
        text = client.recv(65536)
    assert b"text/event-stream" in text
    assert re.findall(rb"data: (.*)\n\n", text) == [b'{"second":1}', b'{"second":2}']
    helpers.turns(poller)
    events.send({"second": 3})  # its browser has gone


def test_a_browser_that_does_not_read_is_left_out_and_keeps_no_memory(
    poller: multicast.Poller, server: Server, events: Events
) -> None:
    with socket.create_connection(server.address[:2]) as client:
        client.sendall(request("/events"))
        helpers.turns(poller)
        for number in range(300):
            events.send({"second": number, "filling": "x" * 50_000})
            poller.poll()
        assert events.skipped > 100
        (one,) = events._clients
        assert one.waiting < 200_000


def test_closing_the_server_closes_its_connections(poller: multicast.Poller, server: Server) -> None:
    with socket.create_connection(server.address[:2]) as client:
        client.sendall(request("/events"))
        helpers.turns(poller)
        server.close()
        client.settimeout(5)
        while client.recv(65536):
            pass
    assert len(poller) == 0


# -- the command -----------------------------------------------------------------------------------------------------

SCRIPT = """
    import socket, subprocess, sys, time
    import multicast
    top = subprocess.Popen(
        [sys.executable, "-m", "multicast", "top", "239.1.2.3:5000", "-i", "lo", "--json"]
        + ["--web", "0", "--metrics", "0"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )
    ports = []
    for line in top.stderr:
        if "http://" in line:
            ports.append(int(line.rpartition(":")[2].partition("/")[0]))
        if len(ports) == 2:
            break

    def get(port, path):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(10)
            client.sendall(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n".encode())
            data = b""
            while piece := client.recv(65536):
                data += piece
                if b'"rows":[{' in data:
                    break
        return data.decode()

    multicast.sendto([b"x"] * 5, "239.1.2.3", 5000, ttl=0)
    print("<title>multicast top</title>" in get(ports[0], "/"))
    print('"group":"239.1.2.3:5000"' in get(ports[0], "/events"))
    print(get(ports[1], "/metrics"))
    top.terminate()
    top.wait(10)
    top.stderr.close()
"""


@pytest.mark.needs_namespaces
def test_top_serves_its_table_and_its_metrics() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    done = subprocess.run(netns.python(SCRIPT), capture_output=True, text=True, timeout=40)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["True", "True"], done.stderr
    labels = 'group="239.1.2.3:5000"'
    assert re.search(rf"^multicast_listener_packets_total\{{{labels},name=\"\w+\"\}} 5.0$", done.stdout, re.MULTILINE)
    assert re.search(rf"^multicast_flow_packets_total\{{{labels},.*\}} 5.0$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("address", ["x", "127.0.0.1:", "::1:5", "localhost", "1:99999"])
def test_an_address_that_is_none_is_a_usage_error(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "multicast", "top", "--web", address], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert "[HOST:]PORT" in done.stderr


BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--timeout=9000",
]  # fmt: skip


@pytest.mark.needs_program("chromium")
@pytest.mark.needs_namespaces
def test_a_browser_draws_the_rows_and_believes_no_markup(
    poller: multicast.Poller, events: Events, tmp_path: Path
) -> None:
    # The browser prints the page once all of it is loaded. An image that does not come holds that off until the row is
    # drawn; the page as it is has none.
    held = socket.create_server(("127.0.0.1", 0))
    image = f'<img src="http://127.0.0.1:{held.getsockname()[1]}/"></body>'.encode()
    page = Path(sys.modules["multicast.cli._web"].__file__ or "").with_name("_top.html").read_bytes()
    policy = "default-src 'none'; script-src 'unsafe-inline'; connect-src 'self'; img-src *"
    answer = Body("text/html", page.replace(b"</body>", image), policy)
    row = {"group": "<b>239.1.2.3:5000", "source": "10.0.0.5", "interface": "eth0", "kind": "RTP", "rate": 500.0,
           "bits": 4000000, "loss": 0.02, "jitter": None, "rates": [500, 480], "marks": "._"}  # fmt: skip
    counts = {"seconds": 5, "dropped": 1, "others": 0, "left_out": 0}
    events.send({"groups": ["g"], "interfaces": ["eth0"], **counts, "rows": [row]})
    with Server("127.0.0.1", 0, {"/": lambda accept: answer, "/events": events}, poller=poller) as server:
        command = [*BROWSER, f"--user-data-dir={tmp_path}", server.url]
        browser = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            until = time.monotonic() + 40
            while browser.poll() is None and time.monotonic() < until:
                poller.poll(0.05)
                if events._clients and held.fileno() >= 0 and time.monotonic() > until - 37:
                    held.close()
        finally:
            held.close()
            browser.kill()
            drawn = browser.communicate()[0]
    assert "&lt;b&gt;239.1.2.3:5000" in drawn
    assert "2.00 %" in drawn
    assert drawn.count("<rect") == 2
    assert json.dumps("dropped by this host: 1")[1:-1] in drawn
