"""The packets of ping and bench, and what their numbers tell; no sockets."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicast import ArgumentError
from multicast.measure import Hearing, Histogram, Kind, Ledger, Order, Peer, Probe, Sequence, matrix, parse, probes
from multicast.measure.probes import MOST_HEARD

NEXT, GAP, LATE, DUPLICATE, JUMP = Order.NEXT, Order.GAP, Order.LATE, Order.DUPLICATE, Order.JUMP


def counted(sequence: Sequence) -> tuple[int, int, int, int, int]:
    return sequence.received, sequence.lost, sequence.duplicates, sequence.reordered, sequence.restarts


# -- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, orders, counts",
    [
        ([7, 8, 9], [NEXT, NEXT, NEXT], (3, 0, 0, 0, 0)),
        ([7, 9], [NEXT, GAP], (2, 1, 0, 0, 0)),
        ([7, 9, 8], [NEXT, GAP, LATE], (3, 0, 0, 1, 0)),
        ([7, 9, 8, 8], [NEXT, GAP, LATE, DUPLICATE], (3, 0, 1, 1, 0)),
        ([7, 7], [NEXT, DUPLICATE], (1, 0, 1, 0, 0)),
        ([65534, 65535, 0, 1], [NEXT] * 4, (4, 0, 0, 0, 0)),
        ([65535, 1, 0], [NEXT, GAP, LATE], (3, 0, 0, 1, 0)),
        ([0, 65535], [NEXT, LATE], (2, 0, 0, 1, 0)),
        ([0, 3000], [NEXT, GAP], (2, 2999, 0, 0, 0)),
        ([0, 3001, 1], [NEXT, JUMP, NEXT], (2, 0, 0, 0, 0)),
        ([0, 32768, 1], [NEXT, JUMP, NEXT], (2, 0, 0, 0, 0)),
        ([32768, 0, 32769], [NEXT, JUMP, NEXT], (2, 0, 0, 0, 0)),
        ([32769, 0, 1], [NEXT, JUMP, NEXT], (3, 0, 0, 0, 1)),
        ([5, 40000, 40001, 40003, 40002], [NEXT, JUMP, NEXT, GAP, LATE], (5, 0, 0, 1, 1)),
        ([5, 40000, 50000, 50001], [NEXT, JUMP, JUMP, NEXT], (3, 0, 0, 0, 1)),
        ([200, 99], [NEXT, JUMP], (1, 0, 0, 0, 0)),
        ([200, 100], [NEXT, LATE], (2, 0, 0, 1, 0)),
        ([7, 7, 7], [NEXT, DUPLICATE, DUPLICATE], (1, 0, 2, 0, 0)),
        # Numbers before a gap are remembered beyond it, and those in it are not taken for ones that came.
        ([7, 8, 10, 8, 9], [NEXT, NEXT, GAP, DUPLICATE, LATE], (4, 0, 1, 1, 0)),
        ([7, 9, 10, 8, 7], [NEXT, GAP, NEXT, LATE, DUPLICATE], (4, 0, 1, 1, 0)),
        ([7, 107, 7, 8], [NEXT, GAP, DUPLICATE, LATE], (3, 98, 1, 1, 0)),
        # Only the number right after a jump starts the new order, and what is in order ends the wait for it.
        ([5, 40000, 6, 40001], [NEXT, JUMP, NEXT, JUMP], (2, 0, 0, 0, 0)),
        ([5, 40000, 7, 40001], [NEXT, JUMP, GAP, JUMP], (2, 1, 0, 0, 0)),
        ([40000, 40001, 1], [NEXT, NEXT, JUMP], (2, 0, 0, 0, 0)),
        ([40000, 40002, 1], [NEXT, GAP, JUMP], (2, 1, 0, 0, 0)),
        ([5, 40000, 40001, 1], [NEXT, JUMP, NEXT, JUMP], (3, 0, 0, 0, 1)),
    ],
)
def test_numbers_of_16_bits(numbers: list[int], orders: list[Order], counts: tuple[int, ...]) -> None:
    sequence = Sequence(16)
    assert [sequence.take(number) for number in numbers] == orders
    assert counted(sequence) == counts


def test_a_session_has_no_jumps_only_gaps() -> None:
    sequence = Sequence(dropout=None)
    assert [sequence.take(number) for number in (1, 1_000_001, 2, 1_000_002)] == [NEXT, GAP, LATE, NEXT]
    assert counted(sequence) == (4, 999_998, 0, 1, 0)
    assert sequence.highest == 1_000_002


def test_a_session_remembers_the_last_1024_numbers() -> None:
    sequence = Sequence(dropout=None)
    sequence.take(1)
    sequence.take(5000)
    for back in (1, 1023):
        assert [sequence.take(5000 - back) for _ in range(2)] == [LATE, DUPLICATE]
    assert [sequence.take(5000 - 1024) for _ in range(2)] == [LATE, LATE]  # which is the more frequent


def test_what_counts_as_missing_never_falls_below_zero() -> None:
    sequence = Sequence(dropout=None)
    for number in (5000, 1, 2, 3):
        sequence.take(number)
    assert counted(sequence) == (4, 0, 0, 3, 0)


@given(st.integers(0, 65535), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_in_any_order_nothing_is_lost_and_nothing_is_counted_twice(first: int, count: int, seed: int) -> None:
    """Of numbers each at most 40 places from its own, some sent twice, all are received and none is missing."""
    order = random.Random(seed)
    numbers = [(first + number) & 0xFFFF for number in range(count)]
    places = sorted(range(1, count), key=lambda place: place + order.random() * 40)
    sequence = Sequence(16)
    repeated = 0
    for place in [0, *places]:
        sequence.take(numbers[place])
        if order.random() < 0.1:
            assert sequence.take(numbers[place]) is DUPLICATE
            repeated += 1
    assert counted(sequence)[:3] == (count, 0, repeated)
    assert sequence.restarts == 0


@given(st.integers(0, 65535), st.lists(st.booleans(), min_size=1, max_size=500))
def test_what_is_left_out_is_lost(first: int, arrives: list[bool]) -> None:
    numbers = [(first + number) & 0xFFFF for number, here in enumerate([True, *arrives, True]) if here]
    sequence = Sequence(16)
    for number in numbers:
        sequence.take(number)
    assert (sequence.received, sequence.lost) == (len(numbers), arrives.count(False))


# -- times -------------------------------------------------------------------------------------------------------


def test_quantiles_are_right_to_half_a_percent() -> None:
    histogram = Histogram()
    generator = random.Random(4)
    values = [generator.lognormvariate(-8, 2) for _ in range(5000)]
    for value in values:
        histogram.add(value)
    values.sort()
    assert (histogram.count, histogram.least, histogram.greatest) == (5000, values[0], values[-1])
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(share) == pytest.approx(values[math.ceil(share * 5000) - 1], rel=0.005, abs=2e-9)
    assert (histogram.quantile(0), histogram.quantile(1)) == (values[0], values[-1])


def test_few_values_and_none() -> None:
    histogram = Histogram()
    assert math.isnan(histogram.quantile(0.5))
    assert histogram.octaves() == []
    histogram.add(-1)
    histogram.add(0.25)
    assert (histogram.least, histogram.quantile(0.5), histogram.quantile(0.99)) == (0, 0, 0.25)


def test_octaves_double() -> None:
    histogram = Histogram()
    for microseconds in (0.5, 1.5, 2, 3.9, 16, 31):
        histogram.add(microseconds * 1e-6)
    assert histogram.octaves() == [(1e-6, 2), (2e-6, 2), (4e-6, 0), (8e-6, 0), (16e-6, 2)]
    long = Histogram()
    long.add(5e-6)
    assert long.octaves() == [(4e-6, 1)]


def test_merged_histograms_are_one_of_all_values() -> None:
    first, second, whole = Histogram(), Histogram(), Histogram()
    for number in range(1, 101):
        (first if 30 < number <= 70 else second).add(number * 1e-3)
        whole.add(number * 1e-3)
    empty = Histogram()
    empty.merge(Histogram())
    assert (empty.count, math.isnan(empty.least)) == (0, True)
    first.merge(empty)
    assert (first.count, first.least, first.greatest) == (40, 0.031, 0.07)
    empty.merge(first)
    assert (empty.count, empty.least, empty.greatest) == (40, 0.031, 0.07)
    first.merge(second)
    assert (first.count, first.least, first.greatest) == (100, 0.001, 0.1)
    assert [first.quantile(share / 50) for share in range(51)] == [whole.quantile(share / 50) for share in range(51)]
    assert first.octaves() == whole.octaves()
    assert second.count == 60


def test_a_histogram_of_any_times_stays_small() -> None:
    histogram = Histogram()
    generator = random.Random(2)
    for _ in range(100_000):
        histogram.add(10 ** generator.uniform(-9, 4))
    assert len(histogram._bins) < 6000


# -- packets -----------------------------------------------------------------------------------------------------

identities = st.integers(1, 2**64 - 1)
counts = st.integers(0, 2**32 - 1)


@given(
    st.sampled_from([Kind.PING, Kind.CALL, Kind.ASK, Kind.LOAD, Kind.END]),
    st.integers(0, 2**64 - 1),
    counts,
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
    st.integers(0, 1400),
)
def test_what_is_sent_to_the_group_is_read_again(
    kind: Kind, session: int, sequence: int, time: int, ttl: int, size: int
) -> None:
    probe = Probe(kind, session, sequence, time, ttl)
    packet = probe.encode(size)
    assert parse(packet) == probe
    assert probes.peek(packet) == (kind, session, sequence, time)
    assert len(packet) == max(28, size)


@given(identities, counts, counts, counts, st.text(max_size=15), st.dictionaries(identities, counts, max_size=80))
def test_replies_are_read_again(
    identity: int, received: int, answered: int, beacons: int, name: str, heard: dict[int, int]
) -> None:
    peer = Peer(identity, received, answered, beacons, name, heard)
    probe = Probe(Kind.REPORT, 1, 2, 3, 4, 5, peer)
    packet = probe.encode(probes.ASK_SIZE)
    assert parse(packet) == probe
    assert len(packet) == probes.ASK_SIZE


def test_the_layout_is_the_documented_one() -> None:
    packet = Probe(Kind.PONG, 0x0102030405060708, 9, 10, 11, 12, Peer(13, 14, 15, 16, "bob")).encode()
    assert packet.hex(" ", 4) == (
        "6d635067 01020b0c 01020304 05060708 00000009 00000000 0000000a"
        " 00000000 0000000d 0000000e 0000000f 00000010 03626f62"
    )


def test_a_long_name_is_cut_between_characters() -> None:
    packet = Probe(Kind.PONG, 1, 2, peer=Peer(3, name="\N{GRINNING FACE}" * 100)).encode(96)
    read = parse(packet)
    assert read is not None
    assert read.peer is not None
    assert (len(packet), read.peer.name) == (96, "\N{GRINNING FACE}" * 11)


def test_a_report_is_cut_to_what_it_may_have() -> None:
    packet = Probe(Kind.REPORT, 1, 2, peer=Peer(3, heard=dict.fromkeys(range(1, 1000), 1))).encode(200)
    read = parse(packet)
    assert read is not None
    assert read.peer is not None
    assert (len(packet), len(read.peer.heard)) == (200, 12)


def test_a_report_that_lost_its_end_tells_of_whom_is_whole() -> None:
    packet = Probe(Kind.REPORT, 1, 2, peer=Peer(3, heard={7: 70, 8: 80, 9: 90})).encode(85)
    assert len(packet) == 49 + 3 * 12
    for length in range(49, len(packet) + 1):
        read = parse(packet[:length])
        assert read is not None
        assert read.peer is not None
        assert list(read.peer.heard.items()) == [(7, 70), (8, 80), (9, 90)][: (length - 49) // 12]


def test_probes_are_padded_with_zeros() -> None:
    for probe, least in ((Probe(Kind.PING, 1, 2), 28), (Probe(Kind.PONG, 1, 2, peer=Peer(3, name="bob")), 52)):
        assert probe.encode(60) == probe.encode(least) + bytes(60 - least)


@pytest.mark.parametrize(
    "sent, arrived, crossed",
    [(64, 64, 0), (64, 61, 3), (128, 127, 1), (255, 1, 254), (255, 0, None), (1, 64, None), (64, None, None)],
)
def test_routers_are_counted_by_the_ttl(sent: int, arrived: int | None, crossed: int | None) -> None:
    assert probes.hops(sent, arrived) == crossed


@pytest.mark.parametrize("change", [{"sequence": 2**32}, {"ttl": 256}, {"session": -1}, {"hops": 300}])
def test_numbers_out_of_range_are_told(change: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="no probe"):
        dataclasses.replace(Probe(Kind.PING, 1, 1), **change).encode()


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"mcPg",
        b"mcPg\x02" + bytes(40),
        b"mcPg\x01\x09" + bytes(40),
        b"mcPg\x01\x00" + bytes(40),
        b"mcPg\x01\x02" + bytes(22),
        Probe(Kind.PONG, 1, 1).encode(48),
    ],
)
def test_other_packets_are_none(packet: bytes) -> None:
    assert parse(packet) is None
    assert probes.peek(packet[:27]) is None


@given(st.binary(max_size=200), st.integers(0, 9))
def test_no_bytes_at_all_are_trouble(packet: bytes, kind: int) -> None:
    assert (parse(packet) is None) >= (probes.peek(packet) is None)
    parse(b"mcPg\x01" + bytes([kind]) + packet)


# -- who answers -------------------------------------------------------------------------------------------------


def ping(number: int, session: int = 1, kind: Kind = Kind.PING, ttl: int = 1) -> Probe:
    return Probe(kind, session, number, 5, ttl)


def answer(hearing: Hearing, probe: Probe, size: int = 96, arrived: int | None = 1) -> bytes:
    assert hearing.take(probe)
    return hearing.reply(probe, size, 1, arrived)


def test_a_reply_says_what_was_received_and_answered() -> None:
    bob = Hearing("bob")
    bob.take(ping(1))
    bob.take(ping(2))
    bob.take(ping(2))  # by another interface
    reply = parse(answer(bob, ping(3, ttl=32), arrived=30))
    assert reply == Probe(Kind.PONG, 1, 3, 5, 1, 2, Peer(bob.identity, 3, 1, 0, "bob"))


def test_only_a_report_says_who_was_heard() -> None:
    bob = Hearing("bob")
    bob.take(Probe(Kind.BEACON, 1, 1, peer=Peer(7)))
    assert answer(bob, ping(1))[52:] == bytes(44)
    assert any(answer(bob, ping(1, kind=Kind.ASK))[52:])


def test_sessions_are_kept_apart_and_only_so_many() -> None:
    bob = Hearing()
    for session in range(1000):
        bob.take(ping(1, session))
    assert len(bob) == 64
    reply = parse(answer(bob, ping(2, 999)))
    assert reply is not None
    assert reply.peer is not None
    assert reply.peer.received == 2


@pytest.mark.parametrize("size", [0, 28, 49, 60, 96, 1232])
def test_no_reply_is_longer_than_what_it_replies_to(size: int) -> None:
    bob = Hearing("b" * 63)
    for who in range(1, 200):
        bob.take(Probe(Kind.BEACON, 1, 1, peer=Peer(who)))
    for kind in (Kind.PING, Kind.ASK):
        assert len(answer(bob, ping(1, kind=kind), size)) == max(49, size)


def test_beacons_and_load_want_no_reply() -> None:
    bob = Hearing()
    for kind in (Kind.PONG, Kind.BEACON, Kind.REPORT, Kind.LOAD, Kind.END):
        assert not bob.take(Probe(kind, 1, 1, peer=Peer(3)))


def test_beacons_are_sent_when_called_for_and_ten_a_second_at_most() -> None:
    bob = Hearing("bob")
    assert bob.beacon(ping(1), 1, 0.0) is None
    sent = [bob.beacon(ping(number, kind=Kind.CALL), 1, number / 100) for number in range(200)]
    packets = [packet for packet in sent if packet is not None]
    assert 19 <= len(packets) <= 23
    first = parse(packets[0])
    assert first is not None
    assert first.peer == Peer(bob.identity, name="bob")
    assert first.sequence == 1


def test_whom_it_hears_is_bounded_and_does_not_include_itself() -> None:
    bob = Hearing()
    bob.take(Probe(Kind.BEACON, 1, 1, peer=Peer(bob.identity)))
    for who in range(1, 1000):
        bob.take(Probe(Kind.BEACON, 1, 1, peer=Peer(who)))
    # A report has no room for more in any case; that more are not remembered is seen inside alone.
    assert len(bob._sessions[1].heard) == MOST_HEARD
    report = parse(answer(bob, ping(1, kind=Kind.ASK), 1232))
    assert report is not None
    assert report.peer is not None
    assert bob.identity not in report.peer.heard
    assert 80 < len(report.peer.heard) < 100


# -- who asks ----------------------------------------------------------------------------------------------------


def test_the_ledger_tells_loss_from_what_was_held_back() -> None:
    ledger, bob = Ledger(), Hearing("bob")
    answered = []
    for number in range(1, 11):
        probe = ping(number, ledger.session)
        if number == 2:
            continue  # lost on its way there
        bob.take(probe)
        if number in (5, 6):
            continue  # held back
        answered.append(bob.reply(probe, 96, 1, 1))
    del answered[2]  # lost on its way back
    for packet in answered:
        ledger.take(packet, 0.001, "10.0.0.9", 1)
    (found,) = ledger
    assert (found.replies, found.held_back, found.lost(10), found.lost_there(10)) == (6, 2, 2, None)
    ledger.take(answer(bob, ping(11, ledger.session, Kind.ASK), 1232), 0.001, "10.0.0.9", 1)
    assert (found.replies, found.held_back, found.lost(10), found.lost_there(10)) == (6, 2, 2, 1)
    assert (found.host, found.peer.name, found.hops, found.hops_back) == ("10.0.0.9", "bob", 0, 0)


def test_repeated_answers_are_counted_apart() -> None:
    ledger, bob = Ledger(), Hearing()
    packet = answer(bob, ping(1, ledger.session))
    taken = [ledger.take(packet, 0.5, "10.0.0.9", None) for _ in range(2)]
    assert [one[1] for one in taken if one is not None] == [NEXT, DUPLICATE]
    (found,) = ledger
    assert (found.replies, found.numbers.duplicates, found.times.count, found.hops_back) == (1, 1, 1, None)


def test_a_responder_is_what_its_answer_to_the_latest_ping_says() -> None:
    ledger = Ledger(1)
    for number, name in ((1, "old"), (2, "new"), (1, "late"), (2, "newest")):
        ledger.take(Probe(Kind.PONG, 1, number, peer=Peer(3, name=name)).encode(), 0.1, "10.0.0.9", 1)
    (found,) = ledger
    assert found.peer.name == "newest"


def test_of_pings_that_all_arrived_none_was_lost() -> None:
    ledger, bob = Ledger(), Hearing()
    for number in (1, 2):
        ledger.take(answer(bob, ping(number, ledger.session)), 0.1, "10.0.0.9", 1)
    ledger.take(answer(bob, ping(3, ledger.session, Kind.ASK), 1232), 0.1, "10.0.0.9", 1)
    (found,) = ledger
    assert (found.lost(2), found.lost_there(2), found.lost(3), found.lost_there(3)) == (0, 0, 1, 1)
    # The pinger may have counted fewer than the responder, as after Ctrl-C.
    assert (found.lost(1), found.lost_there(1)) == (0, 0)


def test_of_a_responder_that_gave_a_report_alone_the_way_is_not_known() -> None:
    ledger = Ledger(1)
    ledger.take(Probe(Kind.REPORT, 1, 1, 0, 64, 3, Peer(7)).encode(), 0.1, "10.0.0.9", 61)
    (found,) = ledger
    assert (found.replies, found.hops, found.hops_back, found.times.count) == (0, None, None, 0)


def test_answers_of_other_sessions_are_none() -> None:
    ledger, bob = Ledger(), Hearing()
    packet = answer(bob, ping(1, ledger.session ^ 1))
    assert ledger.number(packet) is None
    assert ledger.take(packet, 0.5, "10.0.0.9", 1) is None
    assert ledger.number(ping(1, ledger.session).encode()) is None
    assert ledger.number(b"ack") is None


def test_many_responders_do_not_fill_the_memory() -> None:
    for ledger, most in ((Ledger(1, most=100), 100), (Ledger(1), 1000)):
        for number in range(1200):
            ledger.take(Probe(Kind.PONG, 1, 1, peer=Peer(number + 1)).encode(), 0.1, "10.0.0.9", 1)
        assert (len(ledger), ledger.others) == (most, 1200 - most)


def test_who_hears_whom() -> None:
    ledger = Ledger()
    anna, bob, cleo = (Hearing(name) for name in ("anna", "bob", "cleo"))
    for number in range(1, 11):
        call = ping(number, ledger.session, Kind.CALL)
        for host in (anna, bob, cleo):
            if host is bob and number == 10:
                continue  # bob misses one call
            ledger.take(answer(host, call), 0.001, "10.0.0.9", 1)
            beacon = parse(host.beacon(call, 1, number) or b"")
            assert beacon is not None
            for other in (anna, bob, cleo):
                if not (host is bob and other is cleo):  # cleo is deaf to bob
                    other.take(beacon)
    ask = ping(11, ledger.session, Kind.ASK)
    for host in (anna, bob):
        ledger.take(answer(host, ask, 1232), 0.001, "10.0.0.9", 1)
    a, b, c = (host.identity for host in (anna, bob, cleo))
    found = matrix(ledger, 10, {a: 10, b: 8})
    assert {pair: None if share is None else round(share, 3) for pair, share in found.items()} == {
        (0, a): 0, (0, b): 0.1, (0, c): None,
        (a, 0): 0, (b, 0): 0.111, (c, 0): None,
        (a, b): 0, (b, a): 0, (a, c): None, (b, c): None, (c, a): None, (c, b): None,
    }  # fmt: skip
    ledger.take(answer(cleo, ask, 1232), 0.001, "10.0.0.9", 1)
    found = matrix(ledger, 10, {})
    assert (found[b, c], found[a, c], found[c, b], found[c, 0]) == (1, 0, 0, 1)
