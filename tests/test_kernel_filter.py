"""Filters in the kernel: what they refuse is refused by the expression too, and is counted apart from drops."""

from __future__ import annotations

import random
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

import helpers
import pytest
from helpers import Keeper, turns
from hypothesis import example, given, settings
from hypothesis import strategies as st

import multicast
from multicast import filters, sockets

GROUP = "239.7.7.7"
PASS, REFUSE = 0xFFFFFFFF, 0


def run(program: list[filters.Instruction], packet: bytes, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Run a program as the kernel does (Linux, Documentation/networking/filter.rst) on what a UDP socket gets."""
    data = struct.pack("!HHHH", port, 1, 8 + len(packet), 0) + packet
    source = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    header = bytes(8) + source + bytes(16) if ":" in host else bytes(12) + source + bytes(4)
    a = x = at = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        if code == 0x06:
            return k
        if code in (0x20, 0x28, 0x30):
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            where, offset = (header, k - 0xFFF00000) if k >= 0xFFF00000 else (data, k)
            if offset + size > len(where):
                return REFUSE
            a = int.from_bytes(where[offset : offset + size], "big")
        elif code == 0x80:
            a = len(data)
        elif code == 0x54:
            a &= k
        elif code == 0x24:
            a = a * k & PASS
        elif code == 0x74:
            a >>= k
        elif code == 0x94:
            a %= k
        elif code == 0xAC:
            a ^= x
        elif code == 0x07:
            x = a
        else:
            held = {0x15: a == k, 0x25: a > k, 0x35: a >= k}[code]
            at += true if held else false
    raise AssertionError


def lets_through(expression: Any, packet: bytes) -> bool:
    verdict = run(filters.assemble(filters.refusals(expression)), packet)
    assert verdict in (PASS, REFUSE)
    return verdict == PASS


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression, passed, refused",
    [
        (rb"literal", [b"literal", b"literally"], [b"", b"litera", b"Literal", b"x", b"litersl"]),
        ("text", [b"text"], [b"test"]),
        (re.compile("comp"), [b"comp"], [b"com"]),
        (rb"(?i)no Case 1", [b"NO CASE 1", b"no case 1"], [b"no case 2", b"nq case 1", b"No\x00case 1"]),
        (rb"[a-f]x", [b"ax", b"fx"], [b"gx", b"`x", b"a", b"ay"]),
        (rb"[^a-f]x", [b"gx", b"\xffx"], [b"ax", b"fx"]),
        (rb"(?:a|bc){2}d", [b"aad", b"bcad", b"abcd", b"bcbcd"], [b"xaad", b"", b"dad"]),
        (rb"(?:ab|c)+d", [b"abd", b"cd", b"cabd"], [b"d", b"xd"]),
        (rb"[^a]x", [b"bx", b"\nx", b"Ax"], [b"ax", b"by"]),
        (rb"(?i)[^a]x", [b"bx", b"\xffX"], [b"ax", b"AX"]),
        (rb"[0-2bdfhjlnprtvx-z]!", [b"0!", b"1!", b"b!", b"z!"], [b"/!", b"{!"]),
        (rb"\d\d:\d\d", [b"12:34"], [b"1a:34", b"12 34", b"12:3"]),
        (rb"\w\s", [b"a ", b"_\t"], [b"- ", b"aa"]),
        (rb"[aeiou0-3 ]!", [b"a!", b"2!", b" !"], [b"b!", b"4!"]),
        (rb".b", [b"ab", b"\x00b"], [b"\nb", b"aa"]),
        (rb"(?s).b", [b"\nb"], [b"aa"]),
        (rb"(?:foo|bar)1", [b"foo1", b"bar1"], [b"fo", b"qoo1", b"foo2"]),
        (rb"(?:ab|c)d", [b"abd", b"cd"], [b"xd", b"a"]),
        (rb"a{3}b", [b"aaab"], [b"aab", b"aaac"]),
        (rb"a{2,3}b", [b"aab", b"aaab"], [b"ab", b"bab"]),
        (rb"(ab)+c", [b"abc", b"ababc"], [b"ac", b"bc"]),
        (rb"\Aab", [b"ab"], [b"ba"]),
        (rb"^(?P<name>ab)(?=c)", [b"abc"], [b"ba", b"a"]),
        (rb"(?>ab)c", [b"abc"], [b"acc"]),
        (rb"a(?i:b)c", [b"abc", b"aBc"], [b"Abc", b"abC"]),
        (rb".{4}x", [b"1234x"], [b"1234", b"1234y"]),
        (rb"....", [b"1234"], [b"123"]),
        (rb"ab*c{2}", [b"acc", b"abcc"], [b"b", b"ac"]),
        (b"x" * 500, [b"x" * 500], [b"x" * 63 + b"y" + b"x" * 436, b"x" * 499]),
        (b"[acegik]" * 300, [b"a" * 300], [b"b" + b"a" * 299, b"a" * 299]),
        (rb"(?!)", [], []),
    ],
    ids=helpers.name,
)
def test_what_certainly_does_not_match_is_refused(expression: Any, passed: list[bytes], refused: list[bytes]) -> None:
    compiled = filters.pattern(expression)
    assert compiled is not None
    for packet in passed:
        assert compiled.match(packet)
        assert lets_through(expression, packet)
    for packet in refused:
        assert not compiled.match(packet)
        assert not lets_through(expression, packet)


@pytest.mark.parametrize(
    "expression", [b"", rb".*", rb"(?:a|)", rb"(?=ab)", rb"\b", rb"a?", rb"(?L:a)?", rb"(?L)a?", rb"x*y*"]
)
def test_where_nothing_is_certain_there_is_no_program(expression: bytes) -> None:
    assert filters.refusals(expression) == []


def test_other_filters_have_no_program() -> None:
    class Other:
        def match(self, packet: bytes) -> bool:
            return True

    for filter in (None, lambda packet, addr: True, Other()):
        assert filters.refusals(filter) == []


PIECES = r"""
    a b \x00 \xff K . \n \d \D \w \W \s \S [ab] [^ab] [a-k] [^\n] [\d_] [^\w] [A-z] [aceg1-4]
    ^ $ \b \Z \A \B (?=a) (?!a) (?i:k) (?-i:k) (?s:.)
"""
pieces = st.sampled_from([piece.encode() for piece in PIECES.split()])
REPEATS = [b"*", b"+", b"?", b"{2}", b"{0}", b"{1,3}", b"{2,}", b"*?", b"+?", b"{3}?", b"*+", b"++", b"?+"]


def combined(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=5).map(b"".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: b"(?:" + b"|".join(parts) + b")"),
        inner.map(lambda part: b"(" + part + b")"),
        st.tuples(inner, st.sampled_from(REPEATS)).map(lambda both: b"(?:" + both[0] + b")" + both[1]),
        inner.map(lambda part: b"(?>" + part + b")"),
    )


expressions = st.recursive(pieces, combined, max_leaves=8)
packets = st.one_of(
    st.text("abcgkKAB1_ \n\0", max_size=10).map(str.encode), st.binary(max_size=8), st.just(b"a" * 70)
)
flags = st.sampled_from([0, re.IGNORECASE, re.DOTALL, re.MULTILINE, re.IGNORECASE | re.DOTALL])


@given(expressions, flags, st.lists(packets, min_size=1, max_size=12))
@settings(max_examples=800)
@example(rb"(?i)[^k]", 0, [b"K", b"k", b"\xe2\x84\xaa"])
@example(rb"[^\W]", re.IGNORECASE, [b"a", b"-"])
def test_nothing_that_matches_is_refused(expression: bytes, flags: int, packets: list[bytes]) -> None:
    try:
        compiled = re.compile(expression, flags)
    except re.error:
        return
    program = filters.assemble(filters.refusals(compiled))
    assert len(program) <= 255
    for packet in packets:
        verdict = run(program, packet)
        assert verdict in (PASS, REFUSE)
        if compiled.match(packet):
            assert verdict == PASS


class Grammar:
    """Draws regular expressions, and with each a way to draw packets that match it.

    A packet drawn at random seldom matches a long expression, and it is those that match which must not be refused.
    """

    Drawn = tuple[bytes, Callable[[], bytes]]
    BYTES = b"abckXYZ09_ .-\n\x00\xff"
    CATEGORIES = (rb"\d", rb"\w", rb"\s", rb"\D", rb"\W", rb"\S", b".")
    # The repetition, and how often what it repeats is drawn.
    REPEATS = (
        (b"?", 0, 1), (b"*", 0, 3), (b"+", 1, 3), (b"{2}", 2, 2), (b"{1,3}", 1, 3), (b"{3}", 3, 3), (b"{0}", 0, 0),
        (b"{2,}", 2, 4), (b"*?", 0, 2), (b"+?", 1, 2),
    )  # fmt: skip

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def draw(self, depth: int = 4, repeated: bool = False) -> Drawn:
        """Return an expression, and what draws a packet that it matches. Only what does not repeat is repeated."""
        chance = self._random.random()
        if depth == 0 or chance < 0.2:
            return self._byte()
        if chance < 0.35:
            return self._class()
        if chance < 0.55:
            return self._sequence([self.draw(depth - 1, repeated) for _ in range(self._random.randint(2, 4))])
        if chance < 0.7:
            return self._alternatives([self.draw(depth - 1, repeated) for _ in range(self._random.randint(2, 3))])
        if chance < 0.95 and not repeated:
            inner = [self.draw(depth - 1, True) for _ in range(self._random.randint(1, 3))]
            return self._repetition(inner[0] if len(inner) == 1 else self._alternatives(inner))
        expression, sample = self.draw(depth - 1, repeated)
        return self._random.choice([b"(", b"(?:", b"(?i:", b"(?s:", b"(?-i:"]) + expression + b")", sample

    def _byte(self) -> Drawn:
        byte = bytes([self._random.choice(self.BYTES)])
        return re.escape(byte), lambda: byte

    def _class(self) -> Drawn:
        low, high = sorted(self._random.sample(range(32, 127), 2))
        ranged = b"[%s%s-%s%s]" % (
            self._random.choice([b"", b"", b"^"]), re.escape(bytes([low])), re.escape(bytes([high])),
            self._random.choice([b"", rb"\d", rb"\s"]),
        )  # fmt: skip
        expression = self._random.choice([ranged, self._random.choice(self.CATEGORIES)])
        matching = [byte for byte in map(bytes, zip(range(256), strict=False)) if re.match(expression, byte)]
        return (expression, lambda: self._random.choice(matching)) if matching else self._byte()

    def _sequence(self, parts: list[Drawn]) -> Drawn:
        return b"".join(part for part, _ in parts), lambda: b"".join(sample() for _, sample in parts)

    def _alternatives(self, parts: list[Drawn]) -> Drawn:
        return b"(?:" + b"|".join(part for part, _ in parts) + b")", lambda: self._random.choice(parts)[1]()

    def _repetition(self, part: Drawn) -> Drawn:
        suffix, least, most = self._random.choice(self.REPEATS)
        expression, sample = part
        return b"(?:%s)%s" % (expression, suffix), lambda: b"".join(
            sample() for _ in range(self._random.randint(least, most))
        )

    def packet(self, sample: Callable[[], bytes]) -> bytes:
        """Return a packet that matches, as a rule: some are longer, nearly match, or are in the other case."""
        packet = bytearray(sample() + self._random.choice([b"", b"", b"tail", b"\n"]))
        if packet and self._random.random() < 0.3:
            packet[self._random.randrange(len(packet))] = self._random.randrange(256)
        if self._random.random() < 0.2:
            packet = packet.swapcase()
        return bytes(packet)


@given(st.integers(0, 2**63), flags)
@settings(max_examples=300, deadline=None)
def test_nothing_is_refused_that_was_made_to_match(seed: int, flags: int) -> None:
    grammar = Grammar(seed)
    for _ in range(8):
        expression, sample = grammar.draw()
        compiled = re.compile(expression, flags)
        program = filters.assemble(filters.refusals(compiled))
        for _ in range(12):
            packet = grammar.packet(sample)
            if compiled.match(packet):
                assert run(program, packet) == PASS, (expression, packet)


def test_most_of_what_is_made_to_match_does() -> None:
    matched = programs = 0
    for seed in range(300):
        grammar = Grammar(seed)
        expression, sample = grammar.draw()
        programs += bool(filters.refusals(re.compile(expression)))
        matched += sum(bool(re.match(expression, grammar.packet(sample))) for _ in range(10))
    assert matched > 1500
    assert programs > 150


@given(expressions, flags, st.lists(packets, min_size=1, max_size=30))
@settings(max_examples=60)
def test_listeners_hear_the_same_with_and_without(expression: bytes, flags: int, packets: list[bytes]) -> None:
    try:
        compiled = re.compile(expression, flags)
    except re.error:
        return
    with multicast.Poller() as poller, socket.socket(type=socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        heard = [
            Keeper(compiled, GROUP, 5000, interface="lo", poller=poller, kernel_filter=kernel_filter)
            for kernel_filter in (True, False)
        ]
        for packet in packets:
            sending.sendto(packet, (GROUP, 5000))
        turns(poller, 3)
        assert heard[0].packets == heard[1].packets == [packet for packet in packets if compiled.match(packet)]
        with_it, without = (listener.statistics() for listener in heard)
        assert with_it.delivered == without.delivered
        assert with_it.filtered == without.filtered
        assert with_it.dropped == without.dropped == 0
        poller.close()


# -- in the kernel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [GROUP, "ff15::7:9"])
@pytest.mark.parametrize("kernel_filter", [True, False])
def test_what_is_refused_does_not_come_to_the_process(
    poller: multicast.Poller, free_port: int, group: str, kernel_filter: bool
) -> None:
    listener = Keeper(
        "yes", group, free_port, interface="lo", poller=poller, rcvbuf=1 << 20, kernel_filter=kernel_filter
    )
    multicast.sendto(["yes 1", "no", "no", "yes 2", "yet"] * 100, group, free_port, interface="lo")
    turns(poller, 20)
    assert listener.packets == [b"yes 1", b"yes 2"] * 100
    found = listener.statistics()
    assert (found.delivered, found.filtered, found.dropped) == (200, 300, 0)
    assert found.packets == (200 if kernel_filter else 500)


def test_it_holds_for_class_filters_and_for_unicast(poller: multicast.Poller) -> None:
    class Own(multicast.DatagramListener):
        filter = "yes"

        def __init__(self, **options: Any) -> None:
            self.packets: list[bytes] = []
            super().__init__(port=0, poller=poller, **options)

        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            self.packets.append(packet)

    listener = Own()
    with socket.socket(type=socket.SOCK_DGRAM) as sending:
        for packet in (b"yes", b"no"):
            sending.sendto(packet, listener.address)
    turns(poller)
    assert listener.packets == [b"yes"]
    found = listener.statistics()
    assert (found.packets, found.delivered, found.filtered, found.dropped) == (1, 1, 1, 0)
    listener.close()


def test_refused_packets_take_no_room(poller: multicast.Poller, free_port: int) -> None:
    options: dict[str, Any] = {"interface": "lo", "poller": poller, "rcvbuf": 4096}
    listener = Keeper("yes", GROUP, free_port, **options)
    multicast.sendto(["no"] * 1000 + ["yes"], GROUP, free_port, interface="lo")
    turns(poller)
    assert listener.packets == [b"yes"]
    found = listener.statistics()
    assert (found.filtered, found.dropped) == (1000, 0)


def test_drops_and_refusals_are_told_apart(poller: multicast.Poller, free_port: int) -> None:
    # The kernel's counter of the socket has both in one.
    listener = Keeper("yes", GROUP, free_port, interface="lo", poller=poller, rcvbuf=4096)
    assert multicast.sendto(["yes", "no"] * 500, GROUP, free_port, interface="lo") == 1000
    turns(poller, 20)
    found = listener.statistics()
    assert 0 < found.delivered < 500
    assert found.delivered + found.dropped == 500
    assert found.filtered == 500
    assert listener.socket is not None
    assert sockets.drops(listener.socket) == found.dropped + 500
    assert listener.statistics() == found
    multicast.sendto(["no"] * 7, GROUP, free_port, interface="lo")
    listener.close()
    assert listener.statistics().filtered == 507
    assert listener.statistics().dropped == found.dropped


def test_while_others_overflow_the_sum_is_exact_and_drops_are_a_bound(poller: multicast.Poller, free_port: int) -> None:
    listener = Keeper("yes", GROUP, free_port, interface="lo", poller=poller)
    other = Keeper(None, "239.7.7.8", free_port, interface="lo", poller=poller, rcvbuf=4096)
    multicast.sendto(["no"] * 300 + ["yes"] * 5, GROUP, free_port, interface="lo")
    multicast.sendto(["flood"] * 200, "239.7.7.8", free_port, interface="lo")
    turns(poller, 20)
    lost = other.statistics().dropped
    assert lost > 100
    found = listener.statistics()
    assert found.delivered == 5
    assert found.filtered + found.dropped == 300
    assert found.dropped <= lost
    # Asked before, it knows better: what was lost elsewhere before or after is not taken for its own.
    multicast.sendto(["no"] * 300, GROUP, free_port, interface="lo")
    assert listener.statistics().filtered == found.filtered + 300


@pytest.mark.parametrize("group", [GROUP, "ff15::7:9"])
def test_the_host_s_counter_is_that_of_the_socket_s_namespace(lab: Any, group: str) -> None:
    first, second = lab.pair()
    with first.inside():
        there = socket.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM)
    with there:
        with second.inside():
            assert sockets.overflows(there) is None
        with first.inside():
            assert sockets.overflows(there) == 0


def test_elsewhere_everything_counts_as_dropped(
    poller: multicast.Poller, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multicast.listeners.datagrams.overflows", lambda opened: None)
    listener = Keeper("yes", GROUP, free_port, interface="lo", poller=poller)
    multicast.sendto(["no"] * 10, GROUP, free_port, interface="lo")
    found = listener.statistics()
    assert (found.filtered, found.dropped) == (0, 10), "the most it can be, as the documentation says"


def test_where_the_kernel_takes_no_program_the_expression_does_it_all(
    poller: multicast.Poller, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket.setsockopt

    def refuse(self: socket.socket, level: int, option: int, *value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, 26):
            raise OSError(12, "Cannot allocate memory")
        real(self, level, option, *value)

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    listener = Keeper("yes", GROUP, free_port, interface="lo", poller=poller)
    multicast.sendto(["no", "yes"], GROUP, free_port, interface="lo")
    turns(poller)
    assert listener.packets == [b"yes"]
    found = listener.statistics()
    assert (found.packets, found.filtered) == (2, 1)
    with pytest.raises(OSError, match="Cannot allocate"):
        Keeper("yes", GROUP, free_port, interface="lo", poller=poller, shard=(0, 2))


def test_a_packet_that_passes_is_whole(poller: multicast.Poller, free_port: int) -> None:
    listener = Keeper("x", GROUP, free_port, mtu=65535, interface="lo", poller=poller)
    for size in (1, 2, 1472, 60000):
        multicast.sendto(b"x" * size, GROUP, free_port, interface="lo")
    turns(poller)
    assert [len(packet) for packet in listener.packets] == [1, 2, 1472, 60000]
    assert not any(addr.truncated for addr in listener.addrs)


def test_bursts_are_not_judged_by_their_first_packet(poller: multicast.Poller, free_port: int) -> None:
    listener = Keeper("yes", GROUP, free_port, interface="lo", rcvbuf=1 << 20, poller=poller, offload=True)
    multicast.sendto([b"no!", b"yes"] * 50 + [b"yes", b"no!"] * 50, GROUP, free_port, interface="lo")
    turns(poller, 10)
    assert listener.packets == [b"yes"] * 100
