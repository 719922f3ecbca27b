"""The commands `top`, `bench` and `completion`, as they run."""

from __future__ import annotations

import fcntl
import html.parser
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import helpers
import netns
import pytest
from programs import MULTICAST, Running, environment, events, multicast
from programs import Running as Program

import multicast as library
from multicast.cli import COMMANDS, _app, top
from multicast.cli._report import chart, page
from multicast.cli.bench import histogram_lines
from multicast.measure import Cell, FlowKey, Histogram, Meters

GROUP, PORT = "239.77.9.5", 5095
PLACE = f"{GROUP}:{PORT}"


def rtp(number: int, stamp: int | None = None) -> bytes:
    stamp = number * 1800 if stamp is None else stamp
    return struct.pack("!BBHII", 0x80, 33, number & 0xFFFF, stamp & 0xFFFFFFFF, 7) + bytes(188)


def send(packets: Sequence[bytes], **options: Any) -> None:
    library.sendto(packets, GROUP, PORT, 0, offload=False, **options)


def ready(running: Running) -> Running:
    return running.until_said("measuring ")


# -- top into a pipe -----------------------------------------------------------------------------------------------


def test_gaps_that_were_made_are_counted() -> None:
    with ready(Running("top", PLACE, "--json")) as top:
        numbers = [number for number in range(65500, 65600) if number not in (65510, 65511, 65550)]
        numbers[20:22] = numbers[21], numbers[20]
        numbers.insert(30, numbers[29])
        send([rtp(number) for number in numbers], source_port=40112)
        send([b"hello"] * 3, source_port=40113)
        seen = [json.loads(top.line()) for _ in range(2)]
        top.interrupt()
        code, out, _ = top.end()
    assert code == 0
    assert {event["event"] for event in seen} == {"flow"}
    rest = events(out)
    totals = {event["source_port"]: event for event in rest if event["event"] == "total"}
    stream = totals[40112]
    assert stream.pop("jitter") >= 0
    assert stream == {
        "v": 1, "event": "total", "group": GROUP, "port": PORT, "source": "127.0.0.1", "source_port": 40112,
        "interface": "lo", "numbering": "rtp", "packets": 98, "bytes": 98 * 200, "numbered": 97, "lost": 3,
        "duplicates": 1, "reordered": 1, "restarts": 0, "ttl": 0,
    }  # fmt: skip
    assert (totals[40113]["numbering"], totals[40113]["packets"], totals[40113]["lost"]) == ("none", 3, 0)
    summary = rest[-1]
    assert summary.pop("seconds") >= 1
    assert summary == {
        "v": 1, "event": "summary", "packets": 101, "bytes": 98 * 200 + 15, "sources": 2, "others": 0, "forgotten": 0,
        "dropped": 0,
    }  # fmt: skip


def test_a_line_for_each_source_and_second_and_a_table_at_the_end() -> None:
    with ready(Running("top", PLACE)) as top:
        send([rtp(number) for number in (1, 2, 4, 5)], source_port=40112)
        line = top.line()
        top.interrupt(signal.SIGTERM)
        code, out, said = top.end()
    assert code == 0
    assert re.fullmatch(
        rf"[0-9:]{{8}} lo  127\.0\.0\.1:40112 > {PLACE}  [0-9.]+ pkt/s  [0-9.]+kbit/s  loss 20\.00%"
        r"  jitter [0-9.]+[mu]s",
        line,
    )
    head, row = out.splitlines()[-2:]
    assert head.split()[:7] == ["GROUP", "SOURCE", "IF", "TYPE", "PACKETS", "BYTES", "LOST"]
    assert row.split()[:10] == [PLACE, "127.0.0.1", "lo", "RTP", "4", "800", "1", "20.00%", "0", "0"]
    assert re.search(r"4 packets of 1 source in [0-9.]+ s; kernel dropped 0", said)


def test_what_the_kernel_dropped_is_counted() -> None:
    with ready(Running("top", PLACE, "--json")) as top:
        top.process.send_signal(signal.SIGSTOP)
        try:
            send([bytes(20000)] * 3000)
        finally:
            top.process.send_signal(signal.SIGCONT)
        top.line()
        top.interrupt()
        code, out, _ = top.end()
    assert code == 0
    summary = events(out)[-1]
    assert summary["dropped"] > 0
    assert summary["packets"] + summary["dropped"] == 3000


def test_nothing_arrives() -> None:
    done = multicast("top", PLACE, "-w", "0.05")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"^nothing arrived in [0-9.]+ s\.", done.stderr, re.MULTILINE)
    with ready(Running("top", PLACE)) as top:
        top.interrupt()
        assert top.end()[0] == 130


def test_our_own_ping_is_recognised() -> None:
    with ready(Running("top", PLACE, "--json", "-w", "5")) as top:
        multicast("ping", PLACE, "-t", "0", "-c", "3", "--interval", "0.01", "-W", "0.01")
        flow = json.loads(top.line())
        top.interrupt()
        top.end()
    assert (flow["numbering"], flow["numbered"], flow["lost"]) == ("probe", 3, 0)


@pytest.mark.needs_program("ffmpeg")
@pytest.mark.parametrize(
    "form, place, numbering",
    [(["-f", "rtp_mpegts"], f"rtp://{GROUP}:{PORT}?ttl=0&pkt_size=1328", "rtp"),
     (["-f", "mpegts"], f"udp://{GROUP}:{PORT}?ttl=0&pkt_size=1316", "mpegts")],
    ids=["rtp", "mpegts"],
)  # fmt: skip
def test_a_real_stream(form: list[str], place: str, numbering: str) -> None:
    command = ["ffmpeg", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25", "-t", "1.5",
               "-c:v", "mpeg2video", *form, place]  # fmt: skip
    with ready(Running("top", PLACE, "--json")) as top:
        with Program(program=command) as ffmpeg:
            assert ffmpeg.end()[0] == 0
        top.interrupt()
        code, out, _ = top.end()
    (total,) = [event for event in events(out) if event["event"] == "total" and event["port"] == PORT]
    assert code == 0
    assert total["numbering"] == numbering
    assert total["numbered"] >= total["packets"] - 1
    assert (total["lost"], total["duplicates"], total["reordered"], total["restarts"]) == (0, 0, 0, 0)


def test_a_reader_that_goes_away_ends_it() -> None:
    with ready(Running("top", PLACE)) as top:
        assert top.process.stdout is not None
        top.process.stdout.close()
        top.process.stdout = None
        assert top.end()[0] == 141


# -- top on a terminal ---------------------------------------------------------------------------------------------


class Terminal:
    """A terminal of some size, with a program on it."""

    def __init__(self, command: Sequence[str], columns: int = 100, lines: int = 20, **env: str | None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._theirs = theirs
        self.before = termios.tcgetattr(theirs)
        changed = {"TERM": "xterm-256color", "COLUMNS": None, "LINES": None, "NO_COLOR": None, **env}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**changed), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.text = ""
        self._from = 0

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read(self, patience: float) -> bool:
        if not select.select([self._ours], [], [], patience)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def shows(self, pattern: str) -> str:
        """Wait until something is shown after what was waited for last; return it."""
        deadline = time.monotonic() + helpers.PATIENCE
        while True:
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text[self._from :])
            if found := re.search(pattern, plain):
                self._from = len(self.text)
                return found[0]
            assert time.monotonic() < deadline, f"{pattern!r} is not in {plain!r}"
            self.read(0.1)

    def end(self) -> int:
        deadline = time.monotonic() + helpers.PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.05)
        while self.read(0):
            pass
        return self.process.wait(1)

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def terminal(*args: str, **options: Any) -> Iterator[Terminal]:
    made = Terminal([*MULTICAST, *args], **options)
    try:
        yield made
    finally:
        made.close()


def test_what_there_was_fits_on_the_terminal() -> None:
    with terminal("top", PLACE, columns=60) as screen:
        screen.shows("nothing has arrived yet")
        send([rtp(number) for number in (1, 2, 4, 5)], source_port=40112)
        screen.shows("127\\.0\\.0\\.1")
        screen.press("q")
        assert screen.end() == 0
        head, row = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.text.rpartition("\x1b[?1049l")[2]).splitlines()[:2]
    assert head.split() == ["GROUP", "SOURCE", "PACKETS", "BYTES", "LOST", "LOSS"]
    assert row.split() == [PLACE, "127.0.0.1", "4", "800", "1", "20.00%"]
    assert max(len(head), len(row)) <= 60


def test_the_keys_do_what_they_say() -> None:
    with terminal("top", PLACE) as screen:
        screen.shows("nothing has arrived yet")
        send([rtp(number) for number in (1, 2, 4, 5)], source_port=40112)
        assert screen.shows(rf"{PLACE}  127\.0\.0\.1 +RTP .*20\.00%.*_")
        screen.press("s")
        screen.shows("by bytes")
        screen.press("p")
        screen.shows("PAUSED")
        screen.press("p")
        screen.shows("by bytes(?!  PAUSED)")
        screen.press("r")
        screen.shows("up 00:00:00")
        screen.press("sss")
        screen.shows("by rate")
        send([rtp(6)], source_port=40112)
        screen.shows(r"RTP .*0\.00%")
        screen.press("q")
        assert screen.end() == 0
        assert screen.attributes() == screen.before
        # It was on the other screen, has left that, and says what there was.
        before, _, after = screen.text.rpartition("\x1b[?1049l")
        assert "\x1b[?1049h" in before
        assert "TYPE" in after
        assert "1 packet of 1 source" in after
        assert after.count("\x1b[?25h") or "\x1b[?25h" in before[-200:]  # the cursor is shown again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_terminal_as_it_was(number: int) -> None:
    with terminal("top", PLACE) as screen:
        screen.shows("nothing has arrived yet")
        screen.process.send_signal(number)
        assert screen.end() == 130
        assert screen.attributes() == screen.before
        assert "\x1b[?1049l" in screen.text


def test_a_terminal_that_hangs_up_ends_it() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MULTICAST, "top", PLACE], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True,
        env=environment(TERM="xterm"),
    )  # fmt: skip
    os.close(theirs)
    try:
        assert os.read(ours, 10)
        os.close(ours)
        assert process.wait(helpers.PATIENCE) != 0
    finally:
        process.kill()
        process.wait()


def test_without_colours() -> None:
    with terminal("--no-color", "top", PLACE) as screen:
        send([rtp(1), rtp(2), rtp(4)])
        screen.shows("RTP|nothing")
        screen.press("q")
        screen.end()
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", screen.text)


@pytest.mark.parametrize("columns, lines", [(40, 10), (80, 24), (120, 40), (20, 5), (200, 8)])
def test_the_table_fits_the_terminal(columns: int, lines: int) -> None:
    meters = Meters()
    for host in range(30):
        key = FlowKey(f"239.1.2.{host}", 5000, f"2001:db8:1234:5678:9abc:def0:1234:{host:x}", 65000, "eth0")
        for number in range(3):
            meters.take(key, rtp(number * (1 + host % 2)), number / 10)
    meters.tick(0, 1.0, {("239.1.2.1", 5000): 3})

    for measured in (meters, Meters()):
        drawn = top.Table(measurement(measured, ["eth0", "eth1"]), "rate").lines(columns, lines)
        assert len(drawn) <= max(lines, 5 + 1)
        assert all(line.cell_len <= columns for line in drawn)
        assert drawn[-1].plain.startswith("q quit")


def test_a_narrow_terminal_shows_what_is_lost_and_not_all_of_the_addresses() -> None:
    meters = Meters()
    for number in (1, 2, 4, 5):
        meters.take(FlowKey("239.255.255.250", 65000, "192.168.100.200", 65000, "eth0"), rtp(number), number / 10)
    meters.tick(0, 1.0)
    for columns in (40, 44, 49, 50, 60):
        drawn = [line.plain for line in top.Table(measurement(meters, ["eth0"]), "rate").lines(columns, 24)]
        head, row = drawn[2:4]
        assert "LOSS" in head.split()
        assert "20.00%" in row.split()
        assert not row.endswith("…")


def measurement(meters: Meters, interfaces: list[str]) -> Any:
    return SimpleNamespace(meters=meters, interfaces=interfaces, probes=[], seconds=3661, dropped=3)


def test_as_many_as_fit_are_shown_and_the_rest_is_counted() -> None:
    meters = Meters()
    for host in range(30):
        meters.take(FlowKey("239.1.2.3", 5000, f"10.0.0.{host}", 1, "eth0"), b"x", 0)
    meters.tick(0, 1.0)
    drawn = [line.plain for line in top.Table(measurement(meters, ["eth0"]), "rate").lines(80, 24)]
    assert len(drawn) == 24
    assert sum("10.0.0." in line for line in drawn) == 18
    assert "and 12 sources more" in drawn


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (0.5, "0.5"), (9, "9"), (998, "998"), (999.6, "1.00k"), (12345, "12.3k"), (8_144_000, "8.14M"),
     (123_456_789, "123M"), (1.5e9, "1.50G")],
)  # fmt: skip
def test_amounts(value: float, text: str) -> None:
    assert top.amount(value) == text


@pytest.mark.parametrize(
    "value, text",
    [(float("nan"), "-"), (0, "0us"), (41e-6, "41us"), (0.9999e-3, "1.0ms"), (0.0012, "1.2ms"), (0.31, "310ms"),
     (3.42, "3.4s")],
)  # fmt: skip
def test_spans(value: float, text: str) -> None:
    assert top.span(value) == text


@pytest.mark.parametrize("value, text", [(float("nan"), "-"), (0, "0.00%"), (0.00001, "<0.01%"), (0.0213, "2.13%")])
def test_shares(value: float, text: str) -> None:
    assert top.percent(value) == text


# -- the report ----------------------------------------------------------------------------------------------------


class _Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_report_is_one_page_with_charts(tmp_path: Path) -> None:
    path = tmp_path / "seen.html"
    with ready(Running("top", PLACE, "--report", str(path))) as top:
        send([rtp(number) for number in (1, 2, 4, 5)])
        top.line()
        top.interrupt()
        code, _, said = top.end()
    assert code == 0
    assert f"the charts are in {path}" in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["seen.html"]
    text = path.read_text()
    reader = read(text)
    assert [tag for tag, _ in reader.seen].count("svg") == 3
    assert "127.0.0.1" in text
    assert f"multicast top {PLACE} --report" in text
    assert f"multicast {library.__version__}, engine " in text
    assert "1 of 5" in text
    # It asks for nothing, and may not.
    assert not re.search(r"(src=|href|url\(|@import|<script|<link|https?:)", text)
    assert "default-src 'none'" in text


def test_the_report_is_written_with_nothing_in_it_too(tmp_path: Path) -> None:
    path = tmp_path / "seen.html"
    assert multicast("top", PLACE, "--report", str(path), "-w", "0.05").returncode == 1
    read(path.read_text())


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    done = multicast("top", PLACE, "--report", str(tmp_path / "not" / "there.html"))
    assert done.returncode == 3
    assert "there.html" in done.stderr
    assert "measuring" not in done.stderr


def test_what_came_from_elsewhere_is_escaped() -> None:
    meters = Meters()
    key = FlowKey("239.1.2.3", 5000, "<script>alert(1)</script>", 1, '"><img src=x>')
    meters.take(key, b"x", 0)
    meters.tick(0, 1.0)
    text = page(meters, 0, 1, 0, ["top", "<b>&"])
    read(text)
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;b&gt;&amp;" in text


def test_many_flows_make_a_page_of_bounded_size() -> None:
    meters = Meters()
    for host in range(500):
        meters.take(FlowKey("239.1.2.3", 5000, f"10.0.{host // 256}.{host % 256}", 1, "eth0"), rtp(1), 0)
    for second in range(400):
        meters.tick(second, 1.0)
    text = page(meters, 0, 400, 0, ["top"])
    assert text.count("<tr>") == 501
    assert text.count("<h2>") == 41
    assert len(text) < 3_000_000


def test_a_chart_has_gaps_where_nothing_is_known() -> None:
    nan = float("nan")
    cells = [Cell(start, 1.0) for start in range(5)]
    drawn = chart("Jitter", "", "jitter", cells, 5, [0.001, 0.002, nan, nan, 0.001], str)
    assert drawn.count('class="curve') == 2
    assert "nan" not in drawn
    assert "nothing came" in chart("Loss", "", "loss", cells, 5, [nan] * 5, str)
    assert "nothing lost" in chart("Loss", "", "loss", cells, 5, [0.0] * 5, str)
    assert chart("Loss", "", "loss", cells, 5, [0, 0.5, 0, 0.1, nan], str).count("<rect") == 2


# -- bench ---------------------------------------------------------------------------------------------------------


def test_bench_on_this_host() -> None:
    done = multicast("bench", PLACE, "-w", "0.3", "-b", "500pps")
    assert done.returncode == 0, done.stderr
    sent, received, lost, _, title, *bins = done.stdout.splitlines()
    assert re.fullmatch(r"sent +[0-9]+ packets in 0\.[0-9]+ s +[0-9]+ packets/s +[0-9]+ kbit/s", sent)
    assert sent.split()[1] == received.split()[1]
    assert re.fullmatch(r"lost +0 packets, 0 %", lost)
    assert re.match(r"one-way delay: min .* median .* p99 .* max ", title)
    assert sum(int(line.split()[-1].replace(" ", "")) for line in bins) == int(sent.split()[1])
    assert "one sender, one receiver on this host" in done.stderr
    assert re.search(r"engine (c|python)$", done.stderr.splitlines()[0])


def test_bench_as_json() -> None:
    done = multicast("bench", "[ff11::93]:5095%lo", "-w", "0.2", "-b", "300pps", "-s", "100", "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    sent, received = events(done.stdout)
    assert (sent["event"], received["event"]) == ("sent", "received")
    assert sent["packets"] == received["packets"] == received["sent"] == sum(n for _, n in received["delays"])
    assert sent["bytes"] == 100 * sent["packets"] == received["bytes"]
    assert (received["lost"], received["duplicates"], received["same_host"], sent["ttl"]) == (0, 0, True, 0)
    assert 0 < received["delay_min"] <= received["delay_median"] <= received["delay_p99"] <= received["delay_max"]
    assert sent["engine"] == received["engine"] == library.batch.ENGINE


def test_bench_as_fast_as_can_be_accounts_for_every_packet() -> None:
    done = multicast("bench", PLACE, "-w", "0.2", "--json")
    sent, received = events(done.stdout)
    assert done.returncode == 0
    assert received["packets"] + received["lost"] == sent["packets"] > 1000


@pytest.mark.needs_namespaces
def test_bench_without_a_route_by_lo_says_what_can_be_done(lab: netns.Lab) -> None:
    alice, _ = lab.pair()
    alice.ip("-6 route del local ff00::/8 dev lo table local")
    target = "[ff05::1]:5000"
    done = multicast("bench", target, "-w", "0.2", host=alice)
    assert (done.returncode, done.stdout) == (3, "")
    assert "the sender failed: Network is unreachable" in done.stderr
    assert "ip -6 route add local ff00::/8 dev lo table local." in done.stderr
    assert done.stderr.endswith(f"by another: multicast bench '{target}' -t 1 -i INTERFACE.\n")
    assert multicast("bench", target, "-w", "0.2", "-b", "200pps", "-t", "1", "-i", "va", host=alice).returncode == 0


@pytest.mark.needs_namespaces
def test_bench_between_hosts(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    with Running("bench", PLACE, "--receiver", "--json", host=bob) as receiver:
        receiver.until_said("waiting for a sender ")
        done = multicast("bench", PLACE, "--sender", "-w", "0.5", "-b", "200pps", "--json", host=alice)
        code, out, said = receiver.end()
    (sent,) = events(done.stdout)
    (received,) = events(out)
    assert (done.returncode, code) == (0, 0)
    assert (received["packets"], received["lost"], received["sent"]) == (sent["packets"], 0, sent["packets"])
    # Their clocks may differ, so there are round trips and no delays.
    assert (received["same_host"], received["delays"], received["delay_median"]) == (False, None, None)
    assert sent["responders"] == 1
    assert sent["round_trips"] >= 2
    assert sent["round_trip_median"] > 0
    assert "its clock is another one" not in said


def test_bench_without_a_sender() -> None:
    done = multicast("bench", PLACE, "--receiver", "-w", "0.05")
    assert done.returncode == 1
    assert "no sender was heard" in done.stderr


def test_ctrl_c_ends_bench_with_what_there_was() -> None:
    with Running("bench", PLACE, "-w", "60", "-b", "500pps", "--json") as running:
        running.until_said("one sender, one receiver")
        with library.Poller() as poller:
            heard = library.Inbox(ip=GROUP, port=PORT, poller=poller)
            next(heard)  # it flows
            heard.close()
        running.interrupt()
        code, out, _ = running.end()
    sent, received = events(out)
    assert code == 0
    assert sent["packets"] == received["packets"] > 0


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--sender", "--receiver"], 2, "two sides"),
        (["10.0.0.5@239.1.2.3"], 2, "without SOURCE@"),
        (["-b", "fast"], 2, "is not a rate"),
        (["-s", "10"], 2, "--size"),
        (["-i", "lo,nope"], 2, "name one"),
        (["-i", "nope"], 3, "nope"),
        (["-i", "nope", "--sender"], 3, "nope"),
    ],
)
def test_bench_says_what_is_wrong(arguments: list[str], code: int, words: str) -> None:
    done = multicast("bench", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_histogram_has_a_bar_for_each_octave() -> None:
    histogram = Histogram()
    for microseconds, count in ((20, 12), (40, 1200), (300, 1)):
        for _ in range(count):
            histogram.add(microseconds * 1e-6)
    assert histogram_lines(histogram) == [
        f"   16 us | {'▎':30}     12",
        f"   32 us | {'█' * 30}  1 200",
        f"   64 us | {'':30}      0",
        f"  128 us | {'':30}      0",
        f"  256 us | {'▏':30}      1",
    ]
    assert histogram_lines(histogram, unicode=False)[0] == f"   16 us | {'#':30}     12"
    assert histogram_lines(Histogram()) == []


# -- completion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    done = multicast("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{shell}_complete" in done.stdout


@pytest.mark.needs_program("bash")
def test_bash_takes_the_script_and_completes_commands_and_options() -> None:
    script = multicast("completion", "bash").stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    assert multicast("completion", "tcsh").returncode == 2
    for words, number, expected in (
        ("multicast ", 1, set(COMMANDS)),
        ("multicast to", 1, {"top"}),
        ("multicast top --so", 2, {"--sort"}),
        ("multicast completion ", 2, {"bash", "zsh", "fish"}),
    ):
        done = multicast(
            env=environment(_MULTICAST_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(number))
        )
        assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


# -- the manual page -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manual() -> str:
    tool = Path(__file__).parents[1] / "tools" / "manpage"
    if not tool.exists():
        pytest.skip("the tools are not here")
    return subprocess.run([sys.executable, tool], capture_output=True, text=True, timeout=20, check=True).stdout


def test_the_manual_has_every_command_and_option(manual: str) -> None:
    plain = manual.replace("\\-", "-")
    context = click.Context(_app.program)
    for name in COMMANDS:
        assert f".SS multicast {name} " in plain
        command = _app.program.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in plain, f"{name} {parameter.opts}"


@pytest.mark.needs_program("groff")
def test_the_manual_can_be_set(manual: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-Kutf8"], input=manual, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "multicast ping" in re.sub("\x1b\\[[0-9;]*m|.\x08", "", done.stdout)
