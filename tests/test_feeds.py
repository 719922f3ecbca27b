"""Sequenced feeds: published, received in order and without gaps, over two lines, repaired."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from helpers import Keeper, settle
from hypothesis import given
from hypothesis import strategies as st

import multicast
from multicast import ArgumentError, PacketSizeError, PacketTypeError, Poller, aio, feeds, interfaces, sendto
from multicast.feeds import moldudp64, publisher
from multicast.feeds.history import History
from multicast.feeds.moldudp64 import END, HEADER, pack, parse, split
from multicast.feeds.publisher import new_session
from multicast.feeds.repairs import Repairs
from multicast.feeds.window import Lost, Window
from multicast.testing import Network

GROUP, PORT = "239.77.12.1", 5012
LINE, LINE_B = f"{GROUP}:{PORT}", f"239.77.12.2:{PORT}"
SESSION = b"TEST000001"


# -- the format --------------------------------------------------------------------------------------------------------


@given(messages=st.lists(st.binary(max_size=40), max_size=20), number=st.integers(0, 2**64 - 1))
def test_what_is_packed_is_parsed(messages: list[bytes], number: int) -> None:
    data = pack(SESSION, number, messages)
    found = parse(data)
    assert found is not None
    assert (found.session, found.number, found.held, [*found.messages]) == (SESSION, number, len(messages), messages)
    assert found.next == number + len(messages)
    assert parse(data + b"what is after the last message is left alone") is not None
    for cut in range(len(data)):
        shorter = parse(data[:cut])
        assert shorter is None or shorter.messages == ()


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes) -> None:
    found = parse(data)
    if found is not None and found.held not in (0, END):
        assert len(found.messages) == found.held


def test_equal_and_different_messages_are_cut_alike() -> None:
    for messages in ([b"abc"] * 5, [b"abc", b"abcd", b"ab"], [b""] * 3, [b"", b"x"], [bytes(1000)], [bytes(3000)] * 2):
        data = pack(SESSION, 1, messages)
        found = split(data, len(messages))
        assert found is not None
        assert [*found] == messages
        assert split(data[:-1], len(messages)) is None or not messages[-1]


def test_the_end_of_a_session_counts_no_messages() -> None:
    found = parse(HEADER.pack(SESSION, 7, END))
    assert found is not None
    assert (found.next, found.messages) == (7, ())


@pytest.mark.parametrize("wrong", ["", "eleven char", "ümlaut", b"\0", 5, None], ids=str)
def test_what_is_no_session_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="1 to 10 printable characters"):
        moldudp64.session_bytes(wrong)


def test_sessions_differ() -> None:
    assert moldudp64.session_bytes("A") == b"A         "
    assert len({new_session() for _ in range(30)}) == 30


# -- the history -------------------------------------------------------------------------------------------------------


def history(*sizes: int, limit: int = 1 << 20, first: int = 1) -> History:
    """Return a history of packets with so many messages each, which are their numbers."""
    kept = History(SESSION, limit)
    number = first
    for size in sizes:
        kept.append(number, size, pack(SESSION, number, [b"%06d" % one for one in range(number, number + size)]))
        number += size
    return kept


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    first=st.integers(1, 700),
    count=st.integers(1, 200),
    room=st.integers(22, 400),
)
def test_an_answer_has_whole_messages_that_fit(sizes: list[int], first: int, count: int, room: int) -> None:
    kept = history(*sizes)
    packet, messages = kept.answer(first, count, room)
    found = parse(packet)
    assert found is not None
    total = sum(sizes)
    if first > total:
        assert messages == 0
        return
    assert found.number == first
    assert [*found.messages] == [b"%06d" % one for one in range(first, first + messages)]
    assert 1 <= messages <= min(count, total + 1 - first)
    assert len(packet) <= max(room, HEADER.size + 8)
    if messages < min(count, total + 1 - first):
        assert len(packet) + 8 > room


def test_a_history_forgets_the_oldest_and_says_so() -> None:
    kept = history(*[10] * 1000, limit=1000)
    assert kept.bytes <= 1000
    assert kept.next == 10001
    oldest = kept.first
    assert oldest > 9900
    assert kept.answer(1, 5, 1400) == (HEADER.pack(SESSION, oldest, 0), 0)
    packet, messages = kept.answer(oldest - 3, 10, 1400)
    found = parse(packet)
    assert found is not None
    assert (found.number, messages) == (oldest, 7)
    assert len(kept._packets) < 9000, "the lists do not grow with what is gone"


def test_a_hole_in_a_history_is_skipped_and_may_be_filled() -> None:
    kept = history(5)
    kept.append(11, 5, pack(SESSION, 11, [b"%06d" % one for one in range(11, 16)]))
    for first, count, expected in ((1, 20, (1, 5)), (6, 20, (11, 5)), (8, 5, (11, 2))):
        found = parse(kept.answer(first, count, 1400)[0])
        assert found is not None
        assert (found.number, found.held) == expected
    # Nothing says that these will not come.
    assert kept.answer(6, 3, 1400) == (b"", 0)
    kept.append(6, 5, pack(SESSION, 6, [b"%06d" % one for one in range(6, 11)]))
    found = parse(kept.answer(6, 3, 1400)[0])
    assert found is not None
    assert (found.number, found.held) == (6, 3)


def test_what_comes_after_it_was_forgotten_is_not_kept() -> None:
    kept = History(SESSION, 100)
    for number in (2, 3, 4, 5):
        kept.append(number, 1, pack(SESSION, number, [bytes(20)]))
    assert kept.first == 4
    kept.append(1, 1, pack(SESSION, 1, [bytes(20)]))
    assert kept.bytes == 84
    assert kept.answer(1, 1, 1400) == (HEADER.pack(SESSION, 4, 0), 0)


# -- who is answered ---------------------------------------------------------------------------------------------------


def repairs(**changes: Any) -> Repairs:
    options: dict[str, Any] = {"room": 1400, "linger": 0.01, "share": 0.5, "sending": lambda now: 0.0, **changes}
    return Repairs(history(*[20] * 100), **options)


def request(first: int, count: int = 1, session: bytes = SESSION) -> bytes:
    return HEADER.pack(session, first, count)


def test_one_gets_its_answer_alone_and_several_get_it_once_in_the_group() -> None:
    desk = repairs()
    one, two, three = ("10.0.0.1", 5000), ("10.0.0.2", 5000), ("10.0.0.3", 5000)
    answers = [desk.request(request(5), who, now) for who, now in ((one, 1.0), (two, 1.001), (three, 1.002))]
    assert [None if answer is None else answer.to_group for answer in answers] == [False, True, None]
    assert desk.counts["suppressed"] == 1
    again = desk.request(request(5), three, 1.1)
    assert again is not None
    assert not again.to_group
    assert desk.counts["repairs"] == 3
    assert desk.counts["group_repairs"] == 1


def test_the_same_again_goes_to_the_same_alone() -> None:
    desk = repairs()
    for now in (1.0, 1.001, 1.002):
        answer = desk.request(request(5), "one", now)
        assert answer is not None
        assert not answer.to_group


def test_repairs_to_the_group_alone_tell_a_requester_nothing() -> None:
    kept = History(SESSION, 60)
    for number in range(1, 6):
        kept.append(number, 1, pack(SESSION, number, [bytes(20)]))
    answers = Repairs(kept, room=1400, linger=0.01, share=0.5, sending=lambda now: 0.0)
    assert answers.request(HEADER.pack(SESSION, 1, 1), "A", 1.0, group_only=True) is None
    assert answers.counts["gone"] == 1
    answer = answers.request(HEADER.pack(SESSION, 5, 1), "A", 1.0, group_only=True)
    assert answer is not None
    assert answer.to_group


def test_by_default_only_hosts_on_connected_networks_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def route(host: str) -> interfaces.Route | None:
        asked.append(host)
        return {
            "10.0.0.7": interfaces.Route("eth0", "10.0.0.1"),
            "192.0.2.7": interfaces.Route("eth0", "10.0.0.1", "10.0.0.254"),
        }.get(host)

    monkeypatch.setattr(publisher, "route", route)
    access = publisher.Access("connected")
    hosts = ["10.0.0.7", "192.0.2.7", "198.51.100.7", "127.0.0.1", "fe80::1%eth0"]
    allowed = [access.allows(multicast.Address((host, 5000)), 1.0) for host in hosts * 2]
    assert allowed == [True, False, False, True, True] * 2
    assert asked == hosts[:3], "the answer holds for a while"
    assert not access.allows(multicast.Address(("10.0.0.7", 53)), 1.0), "no service is answered"
    access.allows(multicast.Address(("10.0.0.7", 5000)), 20.0)
    assert asked[3:] == ["10.0.0.7"]
    assert publisher.Access("all").allows(multicast.Address(("192.0.2.7", 5000)), 1.0)
    assert not publisher.Access("none").allows(multicast.Address(("10.0.0.7", 5000)), 1.0)


def test_what_is_no_request_is_counted_by_its_cause() -> None:
    desk = repairs()
    for data in (b"", bytes(19), bytes(21), request(0), request(5, 0)):
        assert desk.request(data, "x", 1.0) is None
    assert desk.request(request(5, session=b"OTHER     "), "x", 1.0) is None
    assert desk.request(request(2001), "x", 1.0) is None
    counts = desk.counts
    assert (counts["malformed"], counts["other_session"], counts["ahead"], counts["repairs"]) == (5, 1, 1, 0)


def test_answers_have_an_allowance_for_each_and_for_all() -> None:
    desk = repairs(linger=0.0)
    now, sent = 100.0, {"one": 0, "two": 0, "three": 0}
    for step in range(10000):
        now += 0.0001
        for who in ("one", "two", "three") if step < 5000 else ("one",):
            answer = desk.request(request(1 + step % 100, 20), who, now)
            if answer is not None:
                sent[who] += len(answer.packet) + 42
    assert sum(sent.values()) <= (1 << 20) * 1.3
    assert min(sent.values()) > 100_000, "others are served while one floods"
    assert desk.counts["limited"] > 5000


def test_a_million_forged_requesters_fill_no_table() -> None:
    desk = repairs()
    served = 0
    for number in range(100_000):
        served += desk.request(request(5), ("10.0.0.1", number), number / 1e5) is not None
    assert len(desk) <= 1024
    assert len(desk._given) <= 1025
    assert served * 70 <= (1 << 20) * 1.3


# -- the window --------------------------------------------------------------------------------------------------------


def numbers(window: Window) -> list[Any]:
    return [one if isinstance(one, Lost) else one[0] for one in window.ready()]


def expired(window: Window, now: float) -> list[Any]:
    window.expire(now)
    return numbers(window)


def window(**options: Any) -> Window:
    return Window(**{"patience": 0.0, "chance": lambda: 0.0, **options})


def messages(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def test_messages_come_in_order_and_gaps_are_asked_for() -> None:
    one = window()
    one.add(1, messages(1, 3), 0.0)
    one.add(6, messages(6, 2), 0.0)
    assert numbers(one) == [1, 2, 3]
    assert one.due(0.0, 10) == [(4, 2)]
    assert one.due(0.0, 10) == []
    assert one.missing == 2
    one.add(4, messages(4, 1), 0.001, repair=True)
    assert numbers(one) == [4]
    assert one.due(0.001, 10) == [(5, 1)], "the answer had no more, so the rest is not on its way"
    one.add(5, messages(5, 1), 0.002, repair=True)
    assert numbers(one) == [5, 6, 7]
    assert one.clear
    assert one.repaired == 2


def test_a_packet_that_is_part_old_and_part_new() -> None:
    one = window()
    one.add(1, messages(1, 3), 0.0)
    assert one.add(2, messages(2, 4), 0.0) == 2
    assert list(one.ready()) == [(number, b"%d" % number) for number in range(1, 6)]
    assert one.add(1, messages(1, 5), 0.0) == 0


def test_one_old_packet_does_not_make_a_gap_complete() -> None:
    one = window()
    one.heard(10, 0.0)
    one.add(1, messages(1, 2), 0.0)
    assert numbers(one) == [1, 2]
    assert not one.clear
    assert one.missing == 7


def test_what_is_on_its_way_is_not_asked_for_again_and_what_is_not_is() -> None:
    one = window(give_up=2.0)
    one.heard(2, 0.0)
    asked = []
    now = 0.0
    while not one.clear or now < 2.5:
        one.expire(now)
        if numbers(one):
            break
        if one.due(now, 10):
            asked.append(now)
        now = round(one.next_due(), 9)
    assert asked[0] == 0
    assert asked[1] >= 0.1, "no answer could have come yet"
    assert one.unrecoverable == 1
    # After round trips of a millisecond thirty attempts fit.
    quick = window(give_up=2.0)
    for number in range(1, 200, 2):
        quick.heard(number + 1, number / 100)
        assert quick.due(number / 100, 1) == [(number, 1)]
        quick.add(number, [b"x"], number / 100 + 0.001, repair=True)
        quick.add(number + 1, [b"x"], number / 100 + 0.001)
        list(quick.ready())
    now, count = 10.0, 0
    quick.heard(quick.known + 1, now)
    while not expired(quick, now):
        count += len(quick.due(now, 10))
        now = quick.next_due()
    assert 30 <= count <= 600
    assert 12 <= now < 12.1


def test_answers_that_come_twice_are_waited_for_longer_but_not_long() -> None:
    one = window()
    number, now = 2, 0.0

    def gap() -> float:
        """Make a gap, ask for it, and return how long the answer is waited for."""
        nonlocal number, now
        now += 1.0
        one.add(number, messages(number, 1), now)
        assert one.due(now, 10) == [(number - 1, 1)]
        return one.next_due() - now

    def answer(times: int) -> None:
        nonlocal number
        for _ in range(times):
            one.add(number - 1, messages(number - 1, 1), now + 0.001, repair=True)
        numbers(one)
        number += 2

    waits = []
    for times in [1] * 30 + [2] * 40 + [1] * 200:
        waits.append(gap())
        answer(times)
    # An answer took 1 ms, each time.
    assert waits[29] == pytest.approx(0.001, rel=0.05)
    assert waits[69] == pytest.approx(0.02)
    assert waits[-1] == pytest.approx(0.001, rel=0.05)


def test_a_server_that_is_gone_is_not_flooded() -> None:
    one = window()
    one.add(2, messages(2, 1), 0.0)
    assert one.due(0.0, 10) == [(1, 1)]
    one.add(1, messages(1, 1), 0.0002, repair=True)
    numbers(one)
    for number in range(4, 1000, 2):
        one.add(number, messages(number, 1), 1.0)
    now, requests = 1.0, [1.0 for _ in one.due(1.0, 10)]
    while not (told := numbers(one)):
        now = max(now, one.next_due())
        one.expire(now)
        requests += [now for _ in one.due(now, 10)]
    # All are told at the same time, those as well that waited for their turn.
    assert now == pytest.approx(3.0, abs=0.001)
    assert len(told) == 998 - 2
    assert one.clear
    # 64 gaps are asked for at the same time.
    assert 64 * 30 <= len(requests) < 64 * 60
    assert len([at for at in requests if at < 1.12]) >= 64 * 24


def test_what_nobody_has_is_told_in_its_place() -> None:
    one = window(give_up=1.0)
    one.add(1, messages(1, 2), 0.0)
    one.add(5, messages(5, 2), 0.0)
    assert one.due(0.0, 10) == [(3, 2)]
    assert numbers(one) == [1, 2]
    one.expire(1.0)
    assert numbers(one) == [Lost(3, 2, "unanswered"), 5, 6]
    assert one.add(3, messages(3, 2), 1.5) == 0
    assert one.given_up(3)
    one.add(9, messages(9, 1), 2.0)
    one.gone(8)
    assert numbers(one) == [Lost(7, 1, "history")]
    assert one.due(2.0, 10) == [(8, 1)]


def test_giving_up_is_counted_from_the_first_request() -> None:
    one = window(patience=5.0, give_up=1.0)
    one.heard(2, 0.0)
    assert one.due(4.9, 10) == []
    assert one.due(5.0, 10) == [(1, 1)]
    one.expire(5.9)
    assert numbers(one) == []
    one.expire(6.0)
    assert numbers(one) == [Lost(1, 1, "unanswered")]


def test_an_answer_that_begins_later_says_what_is_gone() -> None:
    one = window()
    one.heard(11, 0.0)
    assert one.due(0.0, 10) == [(1, 10)]
    one.skipped(4)
    one.add(4, messages(4, 7), 0.1, repair=True)
    assert numbers(one) == [Lost(1, 3, "history"), *range(4, 11)]


def test_a_full_window_gives_up_the_gap_and_goes_on() -> None:
    one = window(limit=100)
    one.add(1, messages(1, 1), 0.0)
    for number in range(3, 103):
        one.add(number, messages(number, 1), 0.0)
        assert one.waiting <= 101
    assert numbers(one) == [1, Lost(2, 1, "window"), *range(3, 103)]
    small = window(room=1000)
    small.add(2, [bytes(600)], 0.0)
    small.add(3, [bytes(600)], 0.0)
    assert numbers(small) == [Lost(1, 1, "window"), 2, 3]


def test_a_number_far_ahead_does_not_fill_the_memory() -> None:
    one = window(limit=100)
    one.heard(10**15, 0.0)
    assert numbers(one) == [Lost(1, 10**15 - 101, "window")]
    assert one.missing == 100


def test_without_order_only_what_has_come_is_known() -> None:
    one = window(ordered=False)
    assert not one.has(5)
    one.add(5, messages(5, 1), 0.0)
    assert one.has(5)
    assert not one.has(4)


@given(data=st.data())
def test_every_message_is_told_once_and_in_order_whatever_comes(data: Any) -> None:
    total = data.draw(st.integers(1, 60))
    one = window(limit=data.draw(st.sampled_from([8, 64, 1000])), give_up=1.0)
    now = 0.0
    told: list[int] = []

    def take() -> None:
        for found in one.ready():
            if isinstance(found, Lost):
                told.extend(range(found.first, found.first + found.amount))
            else:
                assert found[1] == b"%d" % found[0]
                told.append(found[0])

    for _ in range(data.draw(st.integers(0, 40))):
        now += data.draw(st.sampled_from([0.0, 0.001, 0.3]))
        first = data.draw(st.integers(1, total))
        count = data.draw(st.integers(1, min(10, total + 1 - first)))
        kind = data.draw(st.sampled_from(["add", "repair", "heard", "due", "gone"]))
        if kind == "heard":
            one.heard(first, now)
        elif kind == "due":
            for asked, amount in one.due(now, 4):
                assert one.next <= asked < asked + amount <= one.known
        elif kind == "gone":
            one.gone(first)
        else:
            one.add(first, messages(first, count), now, repair=kind == "repair")
        if data.draw(st.booleans()):
            one.expire(now)
        take()
        gaps = [(gap.first, gap.end) for gap in one._gaps]
        assert gaps == sorted(gaps)
        assert all(low < high for low, high in gaps)
        assert one._firsts == [low for low, _ in gaps]
        assert one._bytes == sum(map(len, one._kept.values()))
    one.heard(total + 1, now)
    for _ in range(200):
        one.due(now, 100)
        one.expire(now)
        take()
        if one.clear:
            break
        now = max(now, one.next_due())
    assert told == [*range(1, total + 1)]


# -- a publisher and subscribers, in memory ----------------------------------------------------------------------------


class Feed(feeds.Publisher):
    def __init__(self, messages: Iterable[Any], *args: Any, **options: Any) -> None:
        self._feed = messages
        super().__init__(*args, **options)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._feed)


class Board(feeds.Subscriber):
    def __init__(self, lines: Any = LINE, **options: Any) -> None:
        self.told: list[Any] = []
        self.ends = 0
        super().__init__(lines, **options)

    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> object:
        self.told.append((number, message))
        return None

    def handle_gap(self, first: int, count: int) -> None:
        self.told.append((first, count, self.gap_cause))

    def handle_session(self, old: bytes, new: bytes) -> None:
        self.told.append((old, new))

    def handle_end(self) -> None:
        self.ends += 1


def texts(count: int, first: int = 1) -> list[tuple[int, bytes]]:
    return [(number, b"message %d" % number) for number in range(first, first + count)]


def feed(count: int) -> list[str]:
    return [f"message {number}" for number in range(1, count + 1)]


def test_messages_arrive_in_order_and_then_the_session_ends() -> None:
    with Network() as net:
        board = Board()
        sender = Feed(feed(500), GROUP, PORT)
        net.advance(10)
        assert board.told == texts(500)
        assert board.ends == 1
        assert sender.closed
        counted = board.statistics()
        assert (counted.messages, counted.requests, counted.unrecoverable) == (500, 0, 0)
        assert sender.statistics().messages == 500
        assert counted.lines[0].firsts == 500


def test_messages_that_are_there_share_packets() -> None:
    with Network() as net:
        keeper = Keeper(ip=GROUP, port=PORT)
        Feed([b"x" * 64] * 100, GROUP, PORT, session="S")
        net.advance(0.001)
        found = [parse(packet) for packet in keeper.packets]
        assert [one.held for one in found if one is not None][:5] == [20] * 5
        assert [one.number for one in found if one is not None][:6] == [1, 21, 41, 61, 81, 101]
        assert max(map(len, keeper.packets)) <= 1400


def test_publish_from_outside_and_the_end() -> None:
    with Network() as net:
        board = Board()
        publisher = feeds.Publisher(GROUP, PORT)
        net.advance(1.5)
        publisher.publish("message 1")
        publisher.publish(b"message 2")
        net.advance(0)
        assert board.told == texts(2), "at once, and not at the next heartbeat"
        net.advance(5)
        publisher.publish("message 3")
        publisher.end()
        net.advance(5)
        assert board.told == texts(3)
        assert board.ends == 1
        assert publisher.closed
        with pytest.raises(ArgumentError, match="has ended"):
            publisher.publish("x")
        assert publisher.statistics().heartbeats > 6


def test_a_message_waits_for_others_for_the_delay_at_most() -> None:
    with Network() as net:
        keeper = Keeper(ip=GROUP, port=PORT)
        publisher = feeds.Publisher(GROUP, PORT, delay=0.01)
        net.advance(0.1)
        publisher.publish("1")
        net.advance(0.005)
        publisher.publish("2")
        assert not keeper.packets
        net.advance(0.0051)
        (packet,) = keeper.packets
        found = parse(packet)
        assert found is not None
        assert [*found.messages] == [b"1", b"2"]
        publisher.close()


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("disorder", [False, True])
def test_nothing_is_lost_whatever_the_network_loses(loss: float, disorder: bool) -> None:
    count = 100_000 if disorder else 20_000
    options: dict[str, Any] = {"duplicate": 0.05, "reorder": 0.05, "hold": 0.002, "jitter": 0.0001}
    options = options if disorder else {}
    with Network(seed=int(1000 * loss) + disorder, loss=loss, delay=0.0002, **options) as net:
        board = Board(patience=0.0, start="first")
        sender = Feed(feed(count), GROUP, PORT, rate=40e6, fill=1400 if disorder else 100, session="S")
        net.advance(60)
        assert board.told == texts(count)
        assert board.ends == 1
        counted = board.statistics()
        assert counted.unrecoverable == 0
        assert counted.repaired > 0
        assert counted.missing == counted.waiting == 0
        if not disorder:
            assert sender.statistics().repaired <= 1.2 * counted.lines[0].lost / (1 - loss)


def test_a_gap_is_asked_for_about_once() -> None:
    with Network(seed=5, loss=0.01, delay=0.0002) as net:
        board = Board(patience=0.0)
        sender = Feed(feed(20_000), GROUP, PORT, rate=20e6, fill=200)
        net.advance(60)
        assert len(board.told) == 20_000
        gaps = board.statistics().lines[0].lost
        assert gaps > 50
        packets = board.statistics().requests
        lost_packets = net.traffic.lost
        assert packets <= 1.5 * lost_packets
        assert sender.statistics().repairs <= 1.2 * lost_packets / 0.99


def test_jitter_makes_no_storm_of_requests() -> None:
    """Row N8: delays of up to 100 ms more."""
    with Network(seed=8, loss=0.01, delay=0.01, jitter=0.1) as net:
        board = Board(patience=0.12, start="first")
        Feed(feed(20_000), GROUP, PORT, interval=0.002, fill=100)
        net.advance(60)
        assert board.told == texts(20_000)
        assert board.statistics().requests <= 1.5 * net.traffic.lost


def test_the_last_message_is_missed_by_the_heartbeat() -> None:
    """Row N4: nothing comes after what is lost."""
    with Network() as net:
        board = Board(patience=0.0)
        publisher = feeds.Publisher(GROUP, PORT, heartbeat=1.0)
        publisher.publish("message 1")
        net.advance(0.1)
        net.loss = 1.0
        publisher.publish("message 2")
        net.advance(0.1)
        net.loss = 0.0
        assert board.told == texts(1)
        net.advance(2)
        assert board.told == texts(2)
        publisher.close()


def test_requests_and_repairs_may_be_lost_as_well() -> None:
    """Row N5: at 30 % loss both ways each attempt fails half the time."""
    with Network(seed=5, loss=0.3, delay=0.0002) as net:
        board = Board(patience=0.0)
        Feed(feed(2000), GROUP, PORT, rate=5e6, fill=100)
        net.advance(30)
        assert board.told == texts(2000)
        assert board.statistics().requests > 1.5 * 2000 * 0.3 / 6


def test_a_publisher_that_is_gone_is_told_and_what_came_is_handed_on() -> None:
    with Network() as net:
        board = Board(patience=0.0, give_up=1.0)
        publisher = feeds.Publisher(GROUP, PORT, session="S")
        publisher.publish("message 1")
        net.advance(0.1)
        net.loss = 1.0
        publisher.publish("message 2")
        net.advance(0.1)
        net.loss = 0.0
        publisher.publish("message 3")
        net.advance(0)
        publisher.close()
        net.advance(3)
        assert board.told == [*texts(1), (2, 1, "unanswered"), *texts(1, 3)] or board.told == texts(3)


def test_a_gap_that_nobody_has_any_more() -> None:
    with Network() as net:
        Feed(feed(5000), GROUP, PORT, history=2000, rate=1e6, session="S")
        net.advance(0.3)
        board = Board(start="first")
        net.advance(10)
        first, count, cause = board.told[0]
        assert (first, cause) == (1, "history")
        assert board.told[1:] == texts(5000 - count, count + 1)


@pytest.mark.parametrize("start", ["first", 1500, "live"])
def test_a_late_joiner_begins_where_it_wants(start: Any) -> None:
    with Network() as net:
        Feed(feed(20_000), GROUP, PORT, rate=2e6)
        net.advance(0.5)
        board = Board(start=start, window=2000)
        net.advance(60)
        first = {"first": 1, 1500: 1500}.get(start) or board.told[0][0]
        assert first > 2000 or start != "live"
        assert board.told == texts(len(board.told), first)
        assert board.told[-1][0] == 20_000
        assert board.statistics().unrecoverable == 0


def test_two_lines_lose_nothing_that_one_of_them_has() -> None:
    with Network(seed=3, loss=0.2, delay=0.001) as net:
        board = Board([LINE, LINE_B], repair=False, patience=0.05)
        for group in (GROUP, "239.77.12.2"):
            Feed(feed(5000), group, PORT, session="AB", rate=1e6, fill=100)
        net.advance(30)
        told = [one for one in board.told if len(one) == 2]
        lost = [one for one in board.told if len(one) == 3]
        assert sum(count for _, count, _ in lost) + len(told) == 5000
        assert {cause for *_, cause in lost} == {"missing"}
        assert len(told) > 5000 * 0.93
        lines = board.statistics().lines
        assert sum(line.firsts for line in lines) == len(told)
        assert all(800 < line.lost < 1200 for line in lines)
        assert sum(line.duplicates for line in lines) > 2500


def test_a_shared_loss_is_repaired_once_for_ten() -> None:
    with Network(seed=10, delay=0.0002) as net:
        boards = []
        for number in range(10):
            with net.host(number + 2):
                boards.append(Board(patience=0.0))
        publisher = feeds.Publisher(GROUP, PORT)
        requests = []
        net.advance(0.1)
        for number in range(40):
            publisher.publish(f"message {2 * number + 1}")
            net.advance(0.1)
            before = publisher.statistics()
            net.loss = 1.0
            publisher.publish(f"message {2 * number + 2}")
            net.advance(0.0001)
            net.loss = 0.0
            net.advance(2)
            after = publisher.statistics()
            requests.append(after.requests - before.requests)
            if number > 5:
                assert after.repairs - before.repairs <= 2
                assert after.group_repairs - before.group_repairs == 1
        assert all(board.told == texts(80) for board in boards)
        assert sorted(requests[6:])[len(requests[6:]) // 2] <= 3
        publisher.close()


def test_a_publisher_that_starts_again_has_another_session() -> None:
    with Network() as net:
        board = Board()
        first = feeds.Publisher(GROUP, PORT, session="ONE")
        first.publish("message 1")
        net.advance(0.1)
        first.close()
        with net.host(1):
            second = feeds.Publisher(GROUP, PORT, session="TWO")
        net.loss = 1.0
        second.publish("message 1")
        net.advance(0)
        net.loss = 0.0
        second.publish("message 2")
        net.advance(1)
        assert board.told == [*texts(1), (b"ONE       ", b"TWO       "), *texts(2)]
        assert board.session == b"TWO       "
        second.close()


def test_a_stranger_does_not_take_over_the_session() -> None:
    with Network() as net:
        board = Board(rcvbuf=1 << 22)
        publisher = feeds.Publisher(GROUP, PORT)
        publisher.publish("message 1")
        net.advance(0.1)
        with net.host(9):
            for number in range(1000):
                sendto(pack(b"%010d" % number, 1, [b"forged"]), GROUP, PORT)
        net.advance(0.1)
        publisher.publish("message 2")
        net.advance(0.1)
        assert board.told == texts(2)
        assert board.statistics().other_sessions == 1000
        publisher.close()


def test_a_publisher_on_another_host_is_followed_when_the_first_is_silent() -> None:
    with Network() as net:
        board = Board()
        first = feeds.Publisher(GROUP, PORT, session="ONE")
        first.publish("message 1")
        net.advance(0.5)
        with net.host(2):
            second = feeds.Publisher(GROUP, PORT, session="TWO")
        second.publish("message 1")
        net.advance(2)
        assert board.told == texts(1), "the first is there"
        first.close()
        net.advance(6)
        assert board.told == [*texts(1), (b"ONE       ", b"TWO       "), *texts(1)]
        second.close()


def test_a_subscriber_without_a_handler_is_refused() -> None:
    classes: list[Any] = [feeds.Subscriber, feeds.Arbiter]
    for cls in classes:
        with pytest.raises(TypeError, match="abstract"):
            cls(LINE)


def test_a_named_session_is_the_only_one() -> None:
    with Network() as net:
        board = Board(session="TWO")
        Feed(["x"], GROUP, PORT, session="ONE")
        Feed(["message 1"], GROUP, PORT, session="TWO")
        net.advance(5)
        assert board.told == texts(1)
        assert board.statistics().other_sessions > 0


def test_strangers_get_no_answers_and_give_none() -> None:
    with Network() as net:
        board = Board(patience=0.0)
        publisher = feeds.Publisher(GROUP, PORT, session="S", answer=["10.0.0.0/30"])
        publisher.publish("message 1")
        net.advance(0.1)
        address = publisher.address
        assert address is not None
        with net.host(77):
            sendto([HEADER.pack(b"S".ljust(10), 1, 1)] * 10, "10.0.0.1", address[1])
        desk = board._feed_desk
        assert desk is not None
        sendto(pack(b"S".ljust(10), 2, [b"forged"]), "10.0.0.1", desk.address[1])
        net.advance(0.1)
        assert publisher.statistics().unanswered["not_connected"] == 10
        assert publisher.statistics().repairs == 0
        assert board.told == texts(1)
        assert board.statistics().malformed == 1
        publisher.close()


def test_a_repair_server_answers_when_the_publisher_does_not() -> None:
    with Network(seed=2, delay=0.0002) as net:
        with net.host(2):
            server = feeds.RepairServer(LINE, port=5999)
        with net.host(3):
            board = Board(repair=[("10.0.0.2", 5999)], patience=0.0)
        publisher = Feed(feed(2000), GROUP, PORT, session="S", answer="none", rate=2e6, fill=100)
        net.advance(0.1)
        net.loss = 0.1
        net.advance(0.3)
        net.loss = 0.0
        net.advance(20)
        told = [one for one in board.told if len(one) == 2]
        gaps = [one for one in board.told if len(one) == 3]
        assert sum(count for _, count, _ in gaps) + len(told) == 2000
        assert server.repair_statistics().repairs > 0
        # Only what the server has missed itself is lost, as the publisher answers no request.
        assert {cause for *_, cause in gaps} <= {"unanswered"}
        assert board.statistics().unrecoverable <= server.statistics().unrecoverable
        assert publisher.statistics().repairs == 0


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_repair_server_has_missed_as_well_comes_from_the_publisher_by_it(times: int) -> None:
    with Network(seed=2, delay=0.0002) as net:
        with net.host(2):
            server = feeds.RepairServer(LINE, port=5999)
        with net.host(3):
            board = Board(repair=[("10.0.0.2", 5999)] * times)
        publisher = feeds.Publisher(GROUP, PORT)
        publisher.publish("message 1")
        net.advance(0.1)
        for number in range(2, 42, 2):
            net.loss = 1.0
            publisher.publish(f"message {number}")
            net.advance(0.0001)
            net.loss = 0.0
            publisher.publish(f"message {number + 1}")
            net.advance(1)
        assert board.told == texts(41)
        assert server.statistics().repaired == 20
        assert server.repair_statistics().repaired == 20
        publisher.close()


@pytest.mark.parametrize("size", [100, 1000])
def test_a_repair_server_has_what_it_heard_before_it_was_asked(size: int) -> None:
    with Network(seed=2, delay=0.0002) as net:
        with net.host(2):
            server = feeds.RepairServer(LINE, port=5999, history=150_000)
        publisher = Feed([bytes(size)] * 200, GROUP, PORT, answer="none", rate=8e6)
        net.advance(0.5)
        with net.host(3):
            board = Board(repair=[("10.0.0.2", 5999)], start="first")
        net.advance(3)
        assert server.statistics().messages == 200
        if size == 100:
            assert [number for number, *_ in board.told] == [*range(1, 201)]
        else:  # the history is over for the first ones, and 1,022 bytes are kept of each of the last
            first = 201 - 150_000 // 1022
            assert board.told[0] == (1, first - 1, "history")
            assert [number for number, *_ in board.told[1:]] == [*range(first, 201)]
        publisher.close()


def test_of_two_repair_servers_the_one_with_the_longer_history_counts() -> None:
    with Network(seed=2, delay=0.0002) as net:
        for host, history in ((2, 3000), (3, 1 << 20)):
            with net.host(host):
                feeds.RepairServer(LINE, port=5999, history=history)
        publisher = Feed([bytes(1000)] * 50, GROUP, PORT, answer="none")
        net.advance(0.1)
        with net.host(4):
            board = Board(repair=[("10.0.0.2", 5999), ("10.0.0.3", 5999)], start="first")
        net.advance(5)
        assert [number for number, *_ in board.told] == [*range(1, 51)]
        publisher.close()


def test_a_feed_that_is_taken_over_by_another_host_is_followed() -> None:
    with Network() as net:
        board = Board()
        with net.host(2):
            first = feeds.Publisher(GROUP, PORT, session="ONE")
        first.publish("message 1")
        net.advance(0.1)
        first.close()
        net.advance(5)
        with net.host(3):
            second = feeds.Publisher(GROUP, PORT, session="TWO")
        for number in (1, 2):
            second.publish(f"message {number}")
            net.advance(0.1)
        assert board.told == [*texts(1), (b"ONE       ", b"TWO       "), *texts(2)]
        second.close()


def test_without_order_messages_come_at_once_and_each_once() -> None:
    with Network(seed=4, loss=0.1, delay=0.001, reorder=0.1, duplicate=0.1) as net:
        board = Board(ordered=False, patience=0.0)
        Feed(feed(3000), GROUP, PORT, rate=5e6, fill=100)
        net.advance(30)
        assert sorted(board.told) == texts(3000)
        assert board.told != texts(3000)


def test_a_late_joiner_gets_each_message_once_without_order_and_room() -> None:
    with Network(seed=4, delay=0.0002) as net:
        Feed(feed(1000), GROUP, PORT, rate=2e6, fill=100)
        net.advance(0.03)
        board = Board(ordered=False, start="first", window=50, patience=0.0)
        net.advance(30)
        assert sorted(board.told) == texts(1000)


def test_a_handler_that_raises_loses_nothing() -> None:
    class Fragile(Board):
        def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> object:
            super().handle_message(message, number, addr)
            if number % 7 == 0:
                raise ValueError(number)
            return None

    with Network(seed=1, loss=0.05) as net:
        board = Fragile(patience=0.0)
        Feed(feed(300), GROUP, PORT, fill=200, interval=0.001)
        raised = 0
        for _ in range(2000):
            try:
                net.advance(0.01)
            except ValueError:
                raised += 1
        assert board.told == texts(300)
        assert raised == 42


def test_a_true_result_closes() -> None:
    class Few(Board):
        def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> object:
            super().handle_message(message, number, addr)
            return number == 5

    with Network() as net:
        board = Few()
        Feed(feed(100), GROUP, PORT)
        net.advance(1)
        assert board.told == texts(5)
        assert board.closed
        assert board.statistics().messages == 5


def test_a_gap_is_logged_where_no_handler_is(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(feeds.Subscriber):
        def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
            pass

    with Network() as net, caplog.at_level(logging.WARNING, "multicast"):
        Plain(LINE, repair=False)
        sendto([pack(SESSION, 1, [b"1"]), pack(SESSION, 3, [b"3"])], GROUP, PORT)
        net.advance(1)
        assert "1 messages from number 2 on are lost: missing" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"lines": []}, {"lines": 5}, {"start": "later"}, {"start": 0}, {"patience": -1}, {"give_up": 0}, {"window": 0},
     {"session": "much too long"}, {"lines": "10.0.0.1:5000"}, {"repair": [("no..name", 5999)]},
     {"repair": ["10.0.0.5:5999"]}, {"repair": [("10.0.0.5", 0)]}, {"repair": [("::1", 5999)]},
     {"lines": ["239.1.2.3:5000", "[ff15::1]:5000"]}],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_of_a_subscriber(options: dict[str, Any], poller: Poller) -> None:
    with pytest.raises((ArgumentError, TypeError)):
        Board(**{"poller": poller, **options})


@pytest.mark.parametrize(
    "options",
    [{"history": -1}, {"heartbeat": 0}, {"fill": 21}, {"fill": 70000}, {"delay": -1}, {"repair_share": -1},
     {"answer": "everybody"}, {"answer": ["10.0.0.0/99"]}, {"session": ""}, {"linger": -1}],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_of_a_publisher(options: dict[str, Any], poller: Poller) -> None:
    with pytest.raises(ArgumentError):
        feeds.Publisher(GROUP, PORT, 0, poller=poller, **options)


@pytest.mark.parametrize("wrong", [b"x" * 70000, 5])
def test_what_came_before_a_failure_of_the_iterable_is_sent(wrong: Any) -> None:
    def given() -> Iterator[Any]:
        yield from feed(3)
        yield wrong
        yield "more"

    with Network() as net:
        board = Board()
        publisher = Feed(given(), GROUP, PORT)
        with pytest.raises((PacketSizeError, PacketTypeError)):
            net.advance(0.1)
        net.advance(0.1)
        assert board.told == texts(3)
        assert publisher.closed


def test_the_end_before_the_first_poll_holds() -> None:
    with Network() as net:
        board = Board()
        publisher = Feed(feed(3), GROUP, PORT)
        publisher.publish("message 1")
        publisher.end()
        net.advance(5)
        assert board.told == texts(1)
        assert board.ends == 1
        assert publisher.closed


def test_a_message_that_fits_in_no_packet(poller: Poller) -> None:
    with feeds.Publisher(GROUP, PORT, 0, poller=poller) as publisher:
        with pytest.raises(PacketSizeError, match="65485 bytes at most"):
            publisher.publish(bytes(65486))
        publisher.publish(bytes(65485))


# -- real sockets ------------------------------------------------------------------------------------------------------


def test_requesters_that_are_gone_do_not_disturb_the_feed(poller: Poller) -> None:
    publisher = feeds.Publisher(GROUP, PORT, 0, session="S", linger=0.0, poller=poller)
    board = Board(interface="lo", repair=False, poller=poller)
    publisher.publish("message 1")
    while len(board.told) < 1:
        poller.poll(1)
    address = publisher.address
    assert address is not None
    for number in range(2, 50):
        # The answers cause ICMP port unreachable, which on one host is there when the call that sends returns.
        for _ in range(2):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as requester:
                requester.sendto(HEADER.pack(b"S".ljust(10), 1, 1), ("127.0.0.1", address[1]))
        while publisher.statistics().requests < 2 * (number - 1):
            poller.poll(1)
        publisher.publish(f"message {number}")
        while len(board.told) < number:
            poller.poll(1)
    assert board.told == texts(49)
    counted = publisher.statistics()
    assert counted.refused == 0
    assert (counted.repairs, counted.unanswered["failed"]) == (96, 0)


def test_over_real_sockets_with_a_seal(poller: Poller) -> None:
    sealed = pytest.importorskip("multicast.sealed")
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    seal = sealed.Seal(bytes(32))
    with Board(LINE + "%lo", start="first", seal=seal, poller=poller) as board:
        board.close()
    sender = Feed([], GROUP, PORT, 0, seal=seal, poller=poller)
    sender.close()
    publisher = feeds.Publisher(GROUP, PORT, 0, seal=seal, heartbeat=0.05, poller=poller)
    publisher.publish("message 1")
    poller.poll(0.01)
    board = Board(LINE + "%lo", start="first", seal=seal, patience=0.0, poller=poller)
    publisher.publish("message 2")
    settle(poller, lambda: len(board.told) == 2)
    assert board.told == texts(2)
    assert board.statistics().repaired == 1
    board.close()
    publisher.close()


def test_a_repair_server_has_a_name(poller: Poller, free_port: int) -> None:
    server = feeds.RepairServer(LINE, "127.0.0.1", free_port, interface="lo", poller=poller)
    publisher = feeds.Publisher(GROUP, PORT, 0, answer="none", heartbeat=0.05, poller=poller)
    for number in range(1, 4):
        publisher.publish(f"message {number}")
    while server.statistics().messages < 3:
        poller.poll(1)
    board = Board(interface="lo", start="first", repair=[("localhost", server.address[1])], poller=poller)
    while len(board.told) < 3:
        poller.poll(1)
    assert board.told == texts(3)
    assert server.repair_statistics().repaired >= 3


def test_over_real_sockets_a_late_joiner_gets_all(poller: Poller) -> None:
    publisher = feeds.Publisher(GROUP, PORT, 0, heartbeat=0.05, poller=poller)
    for text in feed(1000):
        publisher.publish(text)
    poller.poll(0.01)
    board = Board(LINE, start="first", patience=0.0, interface="lo", poller=poller)
    settle(poller, lambda: len(board.told) == 1000)
    publisher.publish("message 1001")
    publisher.end()
    settle(poller, lambda: board.ends)
    assert board.told == texts(1001)
    board.close()
    publisher.close()


# -- awaited -----------------------------------------------------------------------------------------------------------


def test_messages_are_awaited_and_what_is_lost_is_raised_in_its_place() -> None:
    told: list[Any] = []

    async def run() -> None:
        async with aio.subscribe(LINE, interface="lo", repair=False, patience=0.01) as messages:
            sendto([pack(SESSION, 1, [b"1"]), pack(SESSION, 4, [b"4"]), HEADER.pack(SESSION, 5, END)], GROUP, PORT, 0)
            while True:
                try:
                    async for message in messages:
                        told.append((messages.number, message))
                    break
                except multicast.MessagesLost as lost:
                    told.append((lost.first, lost.count, lost.cause))
            assert messages.statistics().messages == 2
            assert messages.addr is not None

    asyncio.run(run())
    assert told == [(1, b"1"), (2, 2, "missing"), (4, b"4")]


def test_closing_ends_the_iteration_of_a_task_that_waits() -> None:
    async def run() -> None:
        messages = aio.subscribe(LINE, interface="lo")

        async def read() -> list[bytes]:
            return [message async for message in messages]

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        messages.close()
        assert await task == []
        with pytest.raises(ArgumentError):
            aio.subscribe(LINE, start="later")

    asyncio.run(run())


def test_a_wait_that_is_cancelled_loses_nothing_in_a_context() -> None:
    async def run() -> list[bytes]:
        told = []
        async with aio.subscribe(LINE, interface="lo", repair=False) as messages:
            for number in range(1, 4):
                wait = asyncio.ensure_future(anext(messages))
                await asyncio.sleep(0)
                wait.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await wait
                sendto(pack(SESSION, number, [b"%d" % number]), GROUP, PORT, 0)
                told.append(await anext(messages))
        alone = aio.subscribe(LINE, interface="lo")
        wait = asyncio.ensure_future(anext(alone))
        await asyncio.sleep(0)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert alone._subscriber.closed
        return told

    assert asyncio.run(run()) == [b"1", b"2", b"3"]


# -- the arbiter -------------------------------------------------------------------------------------------------------


class Merged(feeds.Arbiter):
    def __init__(self, *args: Any, **options: Any) -> None:
        self.told: list[Any] = []
        super().__init__(*args, **options)

    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> object:
        self.told.append((self.stream, number))
        return None

    def handle_gap(self, first: int, count: int) -> None:
        self.told.append((self.stream, first, count))


def rtp(number: int, ssrc: int = 7) -> bytes:
    return b"\x80\x60" + (number & 0xFFFF).to_bytes(2, "big") + bytes(4) + ssrc.to_bytes(4, "big") + b"payload"


def test_two_lines_of_rtp_become_one_stream_and_numbers_go_round() -> None:
    start, count = 65000, 2000
    kept = [random.Random(1).sample(range(count), count - 200), random.Random(2).sample(range(count), count - 200)]
    with Network() as net:
        merged = Merged([LINE, LINE_B], feeds.RTP, patience=0.05)
        for number in range(count):
            for group, present in ((GROUP, kept[0]), ("239.77.12.2", kept[1])):
                if number in set(present) or number == 0:
                    sendto(rtp(start + number), group, PORT)
            net.advance(0.001)
        net.advance(1)
        ssrc = (7).to_bytes(4, "big")
        missing = set(range(1, count)) - set(kept[0]) - set(kept[1])
        assert 0 < len(missing) < 50
        wanted = [(start + number) % 65536 for number in range(count) if number not in missing]
        assert [one[1] for one in merged.told if len(one) == 2] == wanted
        assert {one[0] for one in merged.told} == {ssrc}
        assert sum(one[2] for one in merged.told if len(one) == 3) == len(missing)
        counted = merged.statistics()
        assert counted.unrecoverable == len(missing)
        assert all(line.packets == len(set(present) | {0}) for line, present in zip(counted.lines, kept, strict=True))


def test_a_line_that_is_behind_does_not_begin_a_stream_anew() -> None:
    with Network() as net:
        merged = Merged([LINE, LINE_B], feeds.field(0, 4))
        old = [number.to_bytes(4, "big") for number in range(50000, 50010)]
        new = [number.to_bytes(4, "big") for number in range(10)]
        sendto(old, GROUP, PORT)
        net.advance(0.001)
        for ahead, behind in zip(new, old, strict=True):
            sendto(ahead, GROUP, PORT)
            net.advance(0.001)
            sendto(behind, "239.77.12.2", PORT)
            net.advance(0.001)
        sendto(new, "239.77.12.2", PORT)
        net.advance(0.1)
        assert [number for _, number in merged.told] == [*range(50000, 50010), *range(10)]
        assert [line.duplicates for line in merged.statistics().lines] == [0, 20]


def test_two_sources_of_rtp_are_two_streams() -> None:
    with Network() as net:
        merged = Merged(LINE)
        sendto([rtp(5, 1), rtp(900, 2), rtp(6, 1), rtp(901, 2), rtp(7, 1), b"short", b"\0" * 20], GROUP, PORT)
        net.advance(1)
        one, two = (1).to_bytes(4, "big"), (2).to_bytes(4, "big")
        assert merged.told == [(one, 5), (two, 900), (one, 6), (two, 901), (one, 7)]
        assert merged.statistics().malformed == 2


def test_a_handler_of_an_arbiter_that_raises_loses_nothing() -> None:
    class Fragile(Merged):
        def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> object:
            super().handle_message(message, number, addr)
            if number % 3 == 0:
                raise ValueError(number)
            return None

    with Network() as net:
        arbiter = Fragile(LINE, feeds.field(0, 1))
        sendto([bytes([number]) for number in (1, 2, 3, 4, 6, 5, 7, 8, 10)], GROUP, PORT)
        raised = 0
        for _ in range(20):
            try:
                net.advance(0.01)
            except ValueError:
                raised += 1
        assert arbiter.told == [*((None, number) for number in range(1, 9)), (None, 9, 1), (None, 10)]
        assert raised == 2


def test_a_handler_of_an_arbiter_may_poll() -> None:
    class Polling(Merged):
        def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> object:
            super().handle_message(message, number, addr)
            if number == 3:
                sendto([bytes([number]) for number in (11, 12)], GROUP, PORT)
                self.poller.poll(0)
            return number == 12

    with Network() as net:
        arbiter = Polling(LINE, feeds.field(0, 1))
        sendto([bytes([number]) for number in range(1, 11)], GROUP, PORT)
        net.advance(1)
        assert arbiter.told == [(None, number) for number in range(1, 13)]
        assert arbiter.closed


@pytest.mark.parametrize("order", ["big", "little"])
def test_any_field_is_a_number(order: Any) -> None:
    with Network() as net:
        merged = Merged(LINE, feeds.field(2, 1, order), patience=0.01)
        sendto([b"xx" + bytes([number % 256]) for number in range(250, 260)], GROUP, PORT)
        sendto([b"xx\x06", b"xx\x05", b"xx\x05", b"xx"], GROUP, PORT)
        net.advance(1)
        assert merged.told == [*[(None, n % 256) for n in range(250, 260)], (None, 4, 1), (None, 5), (None, 6)]


def test_a_function_gives_the_number_and_a_stream_that_jumps_begins_anew() -> None:
    with Network() as net:
        merged = Merged(LINE, lambda packet: int(packet) if packet.isdigit() else None)
        sendto(["5", "6", "x", "1000000", "1000001", "1"], GROUP, PORT)
        net.advance(1)
        assert [number for _, number in merged.told] == [5, 6, 1000000, 1000001, 1]


def test_without_order_an_arbiter_waits_for_nothing() -> None:
    with Network() as net:
        merged = Merged(LINE, feeds.field(0, 2), ordered=False)
        sendto([number.to_bytes(2, "big") for number in (1, 3, 2, 2, 3, 4)], GROUP, PORT)
        net.advance(0)
        assert [number for _, number in merged.told] == [1, 3, 2, 4]
        assert merged.statistics().lines[0].duplicates == 2


def test_invented_streams_do_not_fill_the_memory() -> None:
    with Network() as net:
        merged = Merged(LINE, rcvbuf=1 << 24)
        sendto([rtp(1, ssrc) for ssrc in range(3000)], GROUP, PORT)
        net.advance(1)
        assert len(merged.told) == 3000
        assert len(merged._feed_streams) == 1024


@pytest.mark.parametrize("number", [5, "rtp"], ids=str)
def test_wrong_arguments_of_an_arbiter(number: Any, poller: Poller) -> None:
    with pytest.raises(ArgumentError):
        Merged(LINE, number, poller=poller)
    with pytest.raises(ArgumentError):
        feeds.field(0, 9)
