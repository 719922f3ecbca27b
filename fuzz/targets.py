"""What is fuzzed: each function takes any bytes and raises AssertionError where a promise is broken.

Every one of them reads what strangers may send, and promises an error of its own kind or a value that keeps to some
rule; nothing here opens a socket. Run one under the coverage-guided engine with

    python fuzz/targets.py NAME CORPUS_DIRECTORY [options of libFuzzer]

or all of them with ``make fuzz``. The tests replay what the corpus keeps, without the engine.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

instrument: Any = contextlib.nullcontext
if __name__ == "__main__":
    import atheris

    def instrument() -> Any:
        return atheris.instrument_imports(include=["multicast"])


with instrument():
    from multicast import batch, capture, filters, measure, sealed, streams
    from multicast.capture import reading
    from multicast.cli import chat as chatting
    from multicast.discovery import rules
    from multicast.errors import ArgumentError, CaptureError, FilterError, FrameError
    from multicast.feeds import history, moldudp64, repairs, window
    from multicast.sockets import Group


class Bytes:
    """Numbers and pieces taken from the front of what the engine gives; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._left = len(data)

    def __bool__(self) -> bool:
        return self._left > 0

    def take(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        return data

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        return self.take(self._left)


def group(data: bytes) -> None:
    """Whatever is typed as a group is one, which is written as it is read, or is refused in words."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = Group.parse(text)
    except ArgumentError:
        return
    assert found.ip.is_multicast
    assert 1 <= found.port <= 65535
    assert Group.parse(str(found)) == found


def _messages(framer: streams.Framer, pieces: list[bytes]) -> tuple[list[bytes], bool]:
    found: list[bytes] = []
    try:
        for piece in pieces:
            framer.feed(piece)
            while (message := framer.take()) is not None:
                found.append(message)
        last = framer.end()
        if last is not None:
            found.append(last)
    except FrameError:
        return found, False
    return found, True


def framers(data: bytes) -> None:
    """Messages do not depend on how the bytes were cut, keep to the limit, and come back from what they encode to."""
    source = Bytes(data)
    width, limit, cut = source.number() % 10 + 1, source.number() % 99 + 1, source.number() % 7 + 1
    body = source.rest()
    limit = min(limit, 10**width - 1)
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
    makes: list[Callable[[], streams.Framer]] = [
        lambda: streams.Lines(limit),
        lambda: streams.Prefixed(width, limit),
        streams.Raw,
    ]
    for make in makes:
        whole, parts = _messages(make(), [body]), _messages(make(), pieces)
        if make is streams.Raw:
            assert b"".join(whole[0]) == b"".join(parts[0]) == body
            continue
        assert whole == parts, (whole, parts)
        assert all(len(message) <= limit for message in whole[0])
        if make().encode(b"") == b"\n" and any(message.endswith(b"\r") for message in whole[0]):
            continue  # lines with carriage returns in them, which a line cannot carry
        if whole[1]:
            again = b"".join(make().encode(message) for message in whole[0])
            assert _messages(make(), [again]) == whole


def captures(data: bytes) -> None:
    """A capture file is read or refused with an offset, the same with and without runs, in bounded memory."""
    found = []
    for shortest in (4, 1 << 30):
        before, capture.runs._SHORTEST = capture.runs._SHORTEST, shortest  # type: ignore[attr-defined]
        packets: list[object] = []
        fault = ""
        reader = reading.Reader(io.BytesIO(data))
        try:
            for number, packet in enumerate(reader):
                if number >= 2000:
                    break
                assert len(packet.payload) <= 65535
                packets.append(packet)
        except CaptureError as error:
            fault = str(error)
            assert "offset" in fault or "zstd" in fault
        finally:
            capture.runs._SHORTEST = before  # type: ignore[attr-defined]
        found.append((packets, fault, reader.counts))
    assert found[0] == found[1]


def measures(data: bytes) -> None:
    """Probes are parsed or are none; what counts them stays bounded; no reply is longer than what it replies to."""
    source = Bytes(data)
    hearing, ledger, flows = measure.Hearing("name"), measure.Ledger(1), measure.Meters(8)
    now = 0.0
    while source:
        length = source.number(2) % 1400
        packet = source.take(length)
        if length % 3:
            packet = measure.PREFIX + packet
        now += source.number() / 50
        ttl = source.number()
        probe = measure.parse(packet)
        if probe is not None:
            again = measure.parse(probe.encode(len(packet)))
            assert again is not None
            assert (again.kind, again.session, again.sequence) == (probe.kind, probe.session, probe.sequence)
            if hearing.take(probe):
                size = len(packet)
                assert len(hearing.reply(probe, size, 1, ttl)) <= max(size, 28 + 21)
            hearing.beacon(probe, 1, now)
        ledger.number(packet)
        ledger.take(packet, now, f"10.0.0.{ttl}", ttl)
        key = measure.FlowKey("239.1.1.1", 5000, f"10.0.0.{ttl}", length % 16, "lo")
        flow = flows.take(key, packet, now, ttl)
        if flow is not None:
            assert math.isnan(flow.loss) or 0 <= flow.loss <= 1, flow.loss
            flow.marks(10)
        if ttl % 8 == 0:
            flows.tick(now - 1, 1.0)
            flows.ordered()
        assert len(flows) <= 8
        assert len(hearing) <= 64


def replies(data: bytes) -> None:
    """Replies never count beyond their limit, allowances hold in every second, and no table grows with strangers."""
    source = Bytes(data)
    limit = source.number() % 8 or None
    rate, total = source.number() % 5 + 1, source.number() % 20 + 1
    exchange, allowance, copies = rules.Exchange(limit), rules.Allowance(rate, total), rules.Copies()
    sent: list[float] = []
    now = 0.0
    while source:
        what, who, when = source.number(), source.number(), source.number()
        now += when / 100
        if what % 4 == 0:
            exchange.ask(now)
        elif what % 4 == 1:
            took = exchange.answer(who, now - (what >> 2) / 10, who % 7, what >> 4)
            assert took is None or took >= 0
        elif what % 4 == 2:
            host = f"10.0.{what >> 2}.{who}"
            if allowance.permits(host, now):
                allowance.take(host, now)
                sent.append(now)
                assert len(sent) <= 2 * total or sent[-1] - sent[-1 - 2 * total] >= 1 - 1e-6
        else:
            copies.seen(source.take(who % 4), 30000 + (what << 4), f"i{who}", now)
        assert limit is None or exchange.replies <= limit
        assert len(exchange._ways) <= 1025
        assert len(exchange._sent) <= 1024
        assert len(allowance) <= 2 * total + 1
        assert len(copies) <= 1024
        packed = struct.pack("!BBBB", what, who, when, 1)
        rules.answerable(socket.inet_ntoa(packed), what << 8 | who)


class _Told:
    """A socket that tells what the engine wants it to tell."""

    def __init__(self, source: Bytes) -> None:
        self._source = source

    def fileno(self) -> int:
        return 1 << 20  # open nowhere

    def recvmsg(self, longest: int, space: int) -> tuple[Any, ...]:
        source = self._source
        if not source:
            raise BlockingIOError
        data = b"x" * (source.number(2) % (longest + 1))
        told = []
        for _ in range(source.number() % 6):
            kind = source.number()
            level, name = _KINDS[kind % len(_KINDS)]
            told.append((level, name, source.take(kind >> 3)))
        flags = socket.MSG_TRUNC if source.number() & 1 else 0
        address = ("10.0.0.1", 5000) if source.number() & 1 else ("fe80::1", 5000, 0, source.number())
        return data, told, flags, address


_KINDS = [
    (socket.SOL_SOCKET, 35),
    (socket.IPPROTO_IP, socket.IP_TTL),
    (socket.IPPROTO_IP, 8),
    (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT),
    (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO),
    (socket.IPPROTO_UDP, 104),
    (socket.SOL_SOCKET, 40),
]


def details(data: bytes) -> None:
    """Whatever the kernel tells beside a packet, and however short, packets come as they are, cut to mtu."""
    source = Bytes(data)
    mtu = source.number(2) % 2000 + 1
    told, offload = bool(source.number() & 1), bool(source.number() & 1)
    reader = python_batch.Reader(
        _Told(source), mtu, group="239.1.1.1", interface="lo", details=told, offload=offload
    )
    packets, addresses = python_batch.receive(reader)
    assert len(packets) == len(addresses) == reader.packets
    assert sum(map(len, packets)) == reader.bytes
    assert all(len(packet) <= mtu for packet in packets)
    assert sum(address.truncated for address in addresses) == reader.truncated
    for address in addresses:
        assert address.ttl is None or isinstance(address.ttl, int)


def chat(data: bytes) -> None:
    """Packets of a chat are understood or left alone, nobody can fill the room, and texts are cut."""
    source = Bytes(data)
    room = chatting.Room("me")
    now = 0.0
    while source:
        now += source.number()
        packet = source.take(source.number(2) % 400)
        room.take(packet, now)
        room.lost(now)
        assert len(room.names()) <= 256


def expressions(data: bytes) -> None:
    """No packet that an expression matches is refused by the program that is made of it for the kernel."""
    source = Bytes(data)
    expression = source.take(source.number() % 24)
    packet = source.rest()[:64]
    if re.search(rb"[*+?}][*+?]|\{\d{3,}|(\([^)]*[*+}][^)]*\)[*+{])", expression):
        return  # may take for ever, or be repeated beyond reason
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = filters.pattern(expression)
            if compiled is None:
                return
            sets, least = filters.prefix(compiled)
            program = filters.refusals(expression)
    except FilterError:
        return
    assert len(program) <= 255
    if compiled.match(packet):
        assert len(packet) >= least
        assert all(sets[at] >> byte & 1 for at, byte in enumerate(packet[: len(sets)]))


def _python_form() -> Any:
    """Return the Python form of multicast.batch, whichever is in use."""
    import importlib.util

    spec = importlib.util.find_spec("multicast.batch")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    present = sys.modules.get("multicast._batch")
    sys.modules["multicast._batch"] = None  # type: ignore[assignment]
    try:
        spec.loader.exec_module(module)
    finally:
        if present is None:
            del sys.modules["multicast._batch"]
        else:
            sys.modules["multicast._batch"] = present
    return module


with instrument():
    python_batch = batch if batch.ENGINE == "python" else _python_form()

_SESSION = b"SESSION   "


def feed_packets(data: bytes) -> None:
    """Whatever packets of a feed come, each number is told once and in order, and little is kept.

    The input is a row of packets: what each is, its number, its count, and how much time passes.
    """
    given = Bytes(data)
    kept = window.Window(limit=64, give_up=0.5, chance=lambda: 0.5)
    told, now = 0, 0.0

    def take() -> None:
        nonlocal told
        for one in kept.ready():
            first, count = (one.first, one.amount) if isinstance(one, window.Lost) else (one[0], 1)
            assert first == told + 1
            told += count

    while given:
        kind, number, count = given.number() % 6, 1 + given.number(2), given.number() % 70
        now += given.number() / 100
        packet = moldudp64.pack(_SESSION, number, [b"x" * (place % 5) for place in range(count)])
        found = moldudp64.parse(packet[: len(packet) - (given.number() if kind == 5 else 0)])
        if found is None or found.held == moldudp64.END:
            continue
        if kind == 0:
            kept.heard(number, now)
        elif kind == 1:
            kept.gone(number)
        else:
            if kind == 2:
                kept.skipped(number)
            kept.add(number, found.messages, now, repair=kind == 2)
        take()
        assert kept.waiting <= 64 + 70
        for first, amount in kept.due(now, 20):
            assert kept.next <= first < first + amount <= kept.known
        kept.expire(now)
        take()
    moldudp64.parse(data)


def feed_requests(data: bytes) -> None:
    """A request is answered with messages that were asked for, within the allowance, or counted."""
    given = Bytes(data)
    past = history.History(_SESSION, 2000)
    number = 1
    for size in (1, 30, 3, 20, 20, 20):
        past.append(number, size, moldudp64.pack(_SESSION, number, [b"%d" % place for place in range(size)]))
        number += size
    desk = repairs.Repairs(past, room=200, linger=0.01, share=0.5, sending=lambda now: 0.0)
    now, sent, requests = 1.0, 0, 0
    while given:
        now += given.number() / 1000
        whole = moldudp64.HEADER.pack(_SESSION, given.number(2), given.number(2))
        request = given.take(20) if given.number() % 2 else whole
        requests += 1
        answer = desk.request(request, given.number() % 5, now)
        if answer is None:
            continue
        found = moldudp64.parse(answer.packet)
        assert found is not None
        assert found.held == answer.messages
        _, first, count = moldudp64.HEADER.unpack(request)
        assert not answer.messages or first <= found.number < found.next <= first + count
        assert len(answer.packet) <= 200 or answer.messages == 1
        sent += len(answer.packet)
    assert sent <= (1 << 20) * (now + 1)
    counts = desk.counts
    causes = ("other_session", "ahead", "limited", "suppressed", "gone", "repairs", "malformed")
    assert sum(counts[cause] for cause in causes) == requests


def _sealed_packets() -> tuple[Any, Any, list[bytes]]:
    """Return a seal, a clock, and packets of it that have been opened but for the last."""
    now = [1_700_000_000.0]

    def clock() -> float:
        return now[0]

    seal = sealed.Seal(bytes(range(32)), sessions=4, window=64)
    sealer = seal.sealer(clock)
    return seal, clock, [sealer.seal(b"open the door %d" % number) for number in range(3)]


def seals(data: bytes) -> None:
    """Whatever is done to a sealed packet, it does not open, and nothing is remembered of it.

    The input says which genuine packet it begins with, where it is cut, and what replaces its bytes.
    """
    seal, clock, genuine = _sealed_packets()
    opener = seal.opener(clock)
    assert opener.open_all(genuine[:2]) == [b"open the door 0", b"open the door 1"]
    given = Bytes(data)
    packets = []
    while given and len(packets) < 8:
        packet = bytearray(genuine[given.number() % 3])
        for _ in range(given.number() % 4):
            place = given.number() % len(packet)
            packet[place : place + 1] = given.take(1)
        packets.append(bytes(packet[: len(packet) - given.number() % 64]) + given.take(given.number() % 5))
    packets.append(given.rest())
    before = [(name, state.highest, bytes(state.seen), state.latest) for name, state in opener._sessions.items()]
    wanted = [b"open the door 2" if packet == genuine[2] and packet not in packets[:place] else None
              for place, packet in enumerate(packets)]
    assert opener.open_all(packets) == wanted
    assert sum(opener.rejected) == wanted.count(None)
    if not any(wanted):
        after = [(name, state.highest, bytes(state.seen), state.latest) for name, state in opener._sessions.items()]
        assert before == after
    for packet in packets:
        assert opener.open_reply(packet, {packet[18:24]: bytes(8)}) is None
        sealed.header(packet)


def decoders(data: bytes) -> None:
    """Whatever a packet holds, it is decoded in one short line or not at all; RTP payloads are parts of packets."""
    for port in (319, 1900, 5353, 5568, 9875, 7667):
        for numbering in measure.Numbering:
            said = measure.decode(data, port, numbering)
            assert said is None or (said and len(said) < 1000 + 4 * len(data))
    payload = measure.rtp_payload(data)
    assert payload is None or payload in data


TARGETS: dict[str, Callable[[bytes], None]] = {
    "group": group,
    "framers": framers,
    "captures": captures,
    "measures": measures,
    "replies": replies,
    "details": details,
    "chat": chat,
    "expressions": expressions,
    "seals": seals,
    "feed_packets": feed_packets,
    "feed_requests": feed_requests,
    "decoders": decoders,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    # libFuzzer starts the program anew to merge a corpus, by this name and without the target's.
    sys.argv[0] = os.environ.get("FUZZ_PROGRAM", sys.argv[0])
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
