"""Rate, loss and jitter of flows; no sockets."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicast.measure import Cell, Flow, FlowKey, Jitter, Kind, Meters, Numbering, Probe, spark

KEY = FlowKey("239.1.2.3", 5000, "10.0.0.5", 40112, "eth0")


def rtp(number: int, stamp: int = 0, ssrc: int = 7, kind: int = 33) -> bytes:
    return struct.pack("!BBHII", 0x80, kind, number & 0xFFFF, stamp & 0xFFFFFFFF, ssrc) + bytes(100)


def piece(pid: int, counter: int, payload: bool = True, discontinuity: bool = False) -> bytes:
    flags = (0x10 if payload else 0) | (0x20 if discontinuity else 0)
    field = b"\x01\x80" if discontinuity else b""
    return (struct.pack("!BHB", 0x47, pid, flags | counter & 0x0F) + field).ljust(188, b"\xff")


def ping(number: int, sent: float = 0, session: int = 9, kind: Kind = Kind.PING) -> bytes:
    return Probe(kind, session, number, int(sent * 1e9), 1).encode(64)


def feed(number: int, count: int = 1, session: bytes = b"SESSION   ") -> bytes:
    return struct.pack("!10sQH", session, number, count) + b"\0\3abc" * (0 if count == 0xFFFF else count)


def flow_of(packets: Iterable[bytes], pause: float = 0.02) -> Flow:
    flow = Flow(KEY, 100.0)
    for place, packet in enumerate(packets):
        flow.take(packet, 100 + place * pause)
    return flow


def counted(flow: Flow) -> tuple[int, int, int, int, int]:
    return flow.packets, flow.numbered, flow.lost, flow.duplicates, flow.reordered


# -- what is recognised ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packets, numbering",
    [
        ([b"hello"] * 3, Numbering.NONE),
        ([b""] * 3, Numbering.NONE),
        ([rtp(1), rtp(2)], Numbering.RTP),
        ([rtp(1), rtp(3), rtp(5)], Numbering.NONE),
        ([rtp(1), rtp(2, ssrc=8), rtp(3)], Numbering.NONE),
        ([b"\x80" + bytes(range(40))] * 3, Numbering.NONE),
        ([rtp(number, kind=72) for number in range(5)], Numbering.NONE),  # RTCP
        ([piece(256, 0) * 7], Numbering.TS),
        ([piece(256, 0) + bytes(188)], Numbering.NONE),
        ([piece(256, 0)[:187]], Numbering.NONE),
        ([ping(1)], Numbering.PROBE),
        ([b"mcPg\x02" + bytes(40)], Numbering.NONE),
    ],
)
def test_what_is_numbered_is_recognised(packets: list[bytes], numbering: Numbering) -> None:
    flow = flow_of(packets)
    assert flow.numbering is numbering
    assert flow.packets == len(packets)
    assert math.isnan(flow.loss) == (numbering is Numbering.NONE)


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_no_bytes_at_all_are_trouble(packets: list[bytes]) -> None:
    flow = flow_of(packets)
    assert flow.bytes == sum(map(len, packets))


# -- gaps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, counts",
    [
        (range(10), (10, 10, 0, 0, 0)),
        ([1, 2, 4, 5], (4, 4, 1, 0, 0)),
        ([1, 2, 4, 3, 5], (5, 5, 0, 0, 1)),
        ([1, 2, 3, 3, 3, 4], (6, 4, 0, 2, 0)),
        (range(65530, 65545), (15, 15, 0, 0, 0)),
        ([65533, 65534, 65537, 65538], (4, 4, 2, 0, 0)),
        ([1, 2, 2 + 32768, 3], (4, 3, 0, 0, 0)),
        ([1, 2, 2 - 32768, 3], (4, 3, 0, 0, 0)),
        ([1, 2, 40000, 40001, 40002], (5, 5, 0, 0, 0)),
    ],
)
def test_gaps_of_rtp(numbers: Iterable[int], counts: tuple[int, ...]) -> None:
    flow = flow_of(map(rtp, numbers))
    assert counted(flow) == counts


def test_a_sender_that_starts_anew_is_no_loss() -> None:
    flow = flow_of([rtp(1), rtp(2), rtp(40000), rtp(40001), rtp(9, ssrc=8), rtp(10, ssrc=8), rtp(11, ssrc=8)])
    assert (flow.lost, flow.restarts, flow.numbered) == (0, 1, 7)


def test_streams_that_share_a_port_are_told_apart_and_only_so_many() -> None:
    mixed = [rtp(number, ssrc=ssrc) for number in range(1, 10) for ssrc in range(5) if number != 4 or ssrc]
    assert counted(flow_of(mixed)) == (44, 44, 1, 0, 0)
    flow = flow_of(rtp(number, ssrc=number) for number in range(10_000))
    assert len(flow._rtps) == 16


def test_gaps_of_a_transport_stream_by_its_counters() -> None:
    whole = [piece(256, number) for number in range(70)]
    packets = [b"".join(whole[start : start + 7]) for start in range(0, 70, 7)]
    assert counted(flow_of(packets)) == (10, 70, 0, 0, 0)
    del packets[4]
    flow = flow_of(packets)
    assert counted(flow) == (9, 63, 7, 0, 0)
    assert flow.loss == pytest.approx(0.1)


@pytest.mark.parametrize(
    "pieces, counts",
    [
        ([piece(256, 15), piece(256, 0)], (2, 2, 0, 0, 0)),
        ([piece(256, 1), piece(512, 7), piece(256, 2), piece(512, 8)], (4, 4, 0, 0, 0)),
        ([piece(256, 1), piece(256, 1), piece(256, 2)], (3, 2, 0, 1, 0)),  # one repetition is allowed
        ([piece(256, 1), piece(256, 1), piece(256, 1)], (3, 2, 15, 1, 0)),
        ([piece(256, 1), piece(256, 1, payload=False), piece(256, 2)], (3, 2, 0, 0, 0)),
        ([piece(256, 1, payload=False), piece(256, 2)], (2, 1, 0, 0, 0)),
        ([piece(256, 1), piece(256, 9, discontinuity=True), piece(256, 10)], (3, 3, 0, 0, 0)),
        ([piece(0x1FFF, 1), piece(0x1FFF, 9)], (2, 0, 0, 0, 0)),  # padding
        ([piece(0x1FFF, 1) + piece(256, 1), piece(0x1FFF, 9) + piece(256, 3)], (2, 2, 1, 0, 0)),
        # A field that is empty, or that does not announce it, is no discontinuity, whatever follows it.
        ([piece(256, 1), piece(256, 9, discontinuity=True).replace(b"\1\x80", b"\0\x80", 1)], (2, 2, 7, 0, 0)),
        ([piece(256, 1), piece(256, 9, discontinuity=True).replace(b"\1\x80", b"\1\x00", 1)], (2, 2, 7, 0, 0)),
    ],
)
def test_the_rules_of_the_counter(pieces: list[bytes], counts: tuple[int, ...]) -> None:
    assert counted(flow_of(pieces)) == counts


def test_pids_are_bounded() -> None:
    flow = flow_of(piece(number % 8191, 0) for number in range(8191))
    assert len(flow._pids) == 64


def test_gaps_of_pings() -> None:
    numbers = [1, 2, 5, 4, 4, 6]
    assert counted(flow_of(map(ping, numbers))) == (6, 5, 1, 1, 1)
    other = flow_of([*map(ping, numbers), ping(1, session=10), ping(2, session=10), ping(3, kind=Kind.ASK)])
    assert (other.lost, other.restarts) == (1, 1)


# -- jitter ------------------------------------------------------------------------------------------------------


def test_jitter_is_that_of_the_standard() -> None:
    jitter = Jitter()
    assert math.isnan(jitter.value)
    for transit in (1.0, 1.016, 1.016, 1.0):
        jitter.take(transit)
    # |D| is 16, 0 and 16 ms; the first is where it begins.
    first = 0.016
    second = first - first / 16
    assert jitter.value == pytest.approx(second + (0.016 - second) / 16)


def test_a_regular_rtp_stream_has_no_jitter_though_it_comes_in_bursts_of_one_stamp() -> None:
    flow = Flow(KEY, 0)
    for number in range(100):
        frame = number // 4
        flow.take(rtp(number, stamp=frame * 3600 + 2**32 - 9000), frame * 0.04)  # the stamps wrap
    assert flow.jitter == pytest.approx(0, abs=1e-9)


def test_an_rtp_stream_that_comes_irregularly_has_jitter() -> None:
    flow = Flow(KEY, 0)
    for number in range(500):
        flow.take(rtp(number, stamp=number * 1800), number * 0.02 + (0.005 if number % 2 else 0))
    assert flow.jitter == pytest.approx(0.005, rel=0.01)


@pytest.mark.parametrize("start", [0, 1000])
def test_the_clock_of_an_unknown_payload_type_is_measured(start: float) -> None:
    flow = Flow(KEY, start)
    for number in range(500):
        now = start + number * 0.02 + (0.001 if number % 2 else 0)
        flow.take(rtp(number, stamp=number * 960, kind=96), now)
    (stream,) = flow._rtps.values()
    assert stream.clock == 48000
    assert flow.jitter == pytest.approx(0.001, rel=0.05)


def test_a_clock_that_is_none_is_not_believed() -> None:
    flow = Flow(KEY, 0)
    for number in range(500):
        flow.take(rtp(number, stamp=number, kind=96), number * 0.02)
    (stream,) = flow._rtps.values()
    assert stream.clock == 0
    assert flow.jitter == pytest.approx(0, abs=1e-9)  # of the times between packets


def test_pings_tell_when_they_were_sent() -> None:
    flow = Flow(KEY, 0)
    for number in range(1, 100):
        sent = number * 0.1 + (number % 7) * 0.01  # sent irregularly, and always as long on the way
        flow.take(ping(number, sent), sent + 5)
    assert flow.jitter == pytest.approx(0, abs=1e-6)


def test_pings_that_were_late_or_came_twice_and_beacons_have_no_part_in_it() -> None:
    flow = Flow(KEY, 0)
    for number in (1, 2, 3, 4, 5, 6, 8, 9, 10):
        flow.take(ping(number, number * 0.1), number * 0.1 + 5)
    for now in (9.0, 9.1):
        flow.take(ping(7, 0.7), now)
    flow.take(ping(11, 0, kind=Kind.BEACON), 9.2)
    assert counted(flow) == (12, 11, 0, 1, 1)
    assert flow.jitter == pytest.approx(0, abs=1e-6)


def test_other_packets_have_the_jitter_of_their_intervals() -> None:
    flow = Flow(KEY, 0)
    now = 0.0
    for number in range(400):
        now += 0.03 if number % 2 else 0.01
        flow.take(b"hello", now)
    assert flow.jitter == pytest.approx(0.02, rel=0.01)


# -- seconds -----------------------------------------------------------------------------------------------------


def test_the_strip_has_a_character_for_each_second() -> None:
    flow = Flow(KEY, 0)
    seconds = [[1, 2, 3], [4, 6], [], [7, 7], [10, 9, 8], [11], [12]]
    for second, numbers in enumerate(seconds):
        for number in numbers:
            flow.take(rtp(number), second)
        flow.tick(second, 1.0, dropped=2 if second == 6 else 0)
    assert flow.marks() == "._ :<.!"
    assert flow.marks(3) == "<.!"
    assert [cell.packets for cell in flow.strip] == [3, 2, 0, 2, 3, 1, 1]


def test_the_strip_of_what_is_not_numbered_shows_its_rate() -> None:
    flow = Flow(KEY, 0)
    for second, count in enumerate([1, 0, 4, 8, 8]):
        for _ in range(count):
            flow.take(b"hello", second)
        flow.tick(second, 1.0, dropped=second == 4)
    assert flow.marks() == "▁ ▄▇!"


def test_rates_take_the_time_that_really_passed() -> None:
    flow = Flow(KEY, 0)
    for number in range(10):
        flow.take(rtp(number), 0)
    cell = flow.tick(0, 2.0)
    assert (cell.rate, cell.bits, cell.loss) == (5, 8 * 10 * 112 / 2, 0)
    assert math.isnan(Cell().loss)


def test_history_covers_all_the_time_in_bounded_memory() -> None:
    flow = Flow(KEY, 0)
    for second in range(5000):
        flow.take(b"x", second)
        flow.tick(second, 1.0)
    assert 150 <= len(flow.moments) <= 300
    assert (flow.moments[0].start, {cell.seconds for cell in flow.moments[:-1]}) == (0, {32.0})
    assert sum(cell.packets for cell in flow.moments) == 5000


def test_what_is_counted_in_seconds_is_the_whole_of_the_flow() -> None:
    flow = Flow(KEY, 0)
    number = 0
    for second in range(1000):
        for step in (1, 1, 0, 1, 3, -1, 2):  # in order, twice, a gap of two, one of which comes late
            number += step
            flow.take(rtp(number), second)
        flow.tick(second, 1.0, dropped=second % 2)
    assert counted(flow) == (7000, 6000, 2000 - 1000, 1000, 1000)
    cells = flow.moments
    assert len(cells) < 300
    assert sum(cell.packets for cell in cells) == flow.packets
    assert sum(cell.bytes for cell in cells) == flow.bytes
    assert sum(cell.numbered for cell in cells) == flow.numbered
    assert sum(cell.lost for cell in cells) == flow.lost
    assert sum(cell.duplicates for cell in cells) == flow.duplicates
    assert sum(cell.reordered for cell in cells) == flow.reordered
    assert sum(cell.dropped for cell in cells) == 500
    assert sum(cell.seconds for cell in cells) == 1000


def test_two_seconds_as_one_have_the_greater_jitter_if_it_is_known() -> None:
    known, more, unknown = Cell(jitter=0.1), Cell(jitter=0.2), Cell()
    assert (known.and_(more).jitter, more.and_(known).jitter, unknown.and_(known).jitter) == (0.2, 0.2, 0.1)
    assert math.isnan(unknown.and_(unknown).jitter)


def test_a_flow_knows_when_it_came_first_and_last() -> None:
    flow = Flow(KEY, 5.0)
    assert (flow.first, flow.last) == (5.0, 5.0)
    flow.take(b"x", 7.0)
    assert (flow.first, flow.last) == (5.0, 7.0)


def test_a_second_in_which_nothing_came_has_no_jitter() -> None:
    flow = flow_of([b"x"] * 20)
    assert flow.tick(0, 1.0).jitter == flow.jitter == pytest.approx(0)
    assert math.isnan(flow.tick(1, 1.0).jitter)


def test_reset_counts_from_zero_and_knows_the_numbers() -> None:
    meters = Meters()
    for number in (1, 2, 4):
        meters.take(KEY, rtp(number), 0)
    meters.reset()
    meters.take(KEY, rtp(6), 1)
    (flow,) = meters
    assert counted(flow) == (1, 1, 1, 0, 0)
    assert list(flow.strip) == []


@pytest.mark.parametrize("values, bars", [([], ""), ([0, 0], "  "), ([1, 2, 4, 8], "▂▃▅█"), ([0.001, 8], "▁█")])
def test_bars(values: list[float], bars: str) -> None:
    assert spark(values) == bars


# -- many flows --------------------------------------------------------------------------------------------------


def source(number: int) -> FlowKey:
    return KEY._replace(source=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")


def test_a_million_sources_take_no_more_room_than_some() -> None:
    meters = Meters(most=200)
    for number in range(1000):
        meters.take(source(number), b"x", 0)
    for number in range(1_000_000):
        meters.take(FlowKey("239.1.2.3", 5000, "10.9.9.9", number, "eth0"), b"x", 1)
    assert (len(meters), meters.others, meters.forgotten) == (200, 1_000_800, 0)
    assert set(vars(meters)) == {"_most", "_flows", "others", "forgotten"}  # there is no other table that could grow


def test_there_is_room_for_a_thousand_flows() -> None:
    meters = Meters()
    taken = [meters.take(source(number), b"x", 0) is not None for number in range(1001)]
    assert taken == [True] * 1000 + [False]
    assert (len(meters), meters.others) == (1000, 1)


def test_silent_flows_make_room() -> None:
    meters = Meters(most=2)
    for second in range(30):
        meters.take(source(1), b"x", second)
        if second == 0:
            meters.take(source(2), b"x", 0)
        meters.tick(second, 1.0)
        if second == 5:
            assert meters.take(source(3), b"x", 5) is None
    assert meters.take(source(3), b"x", 30) is not None
    assert [flow.key for flow in meters] == [source(1), source(3)]
    assert (meters.others, meters.forgotten) == (1, 1)


def test_flows_are_ordered() -> None:
    meters = Meters()
    for number in range(1, 11):
        meters.take(source(1), rtp(number * 2), number / 10)  # never two in a row: no RTP
        meters.take(source(2), rtp(number if number < 5 else number + 1, stamp=number * 9000), number / 10)
    meters.take(source(3), bytes(5000), 0)
    meters.tick(0, 1.0)
    assert meters.ordered("bytes")[0].key == source(3)
    assert meters.ordered("loss")[0].key == source(2)
    assert meters.ordered("rate")[-1].key == source(3)
    assert [flow.key for flow in meters.ordered()] == [flow.key for flow in meters.ordered("rate")]
    assert meters.ordered("jitter")[-1].key == source(3)


def test_drops_of_a_socket_are_shown_at_all_its_flows() -> None:
    meters = Meters()
    meters.take(source(1), rtp(1), 0)
    meters.take(source(2)._replace(port=5001), rtp(1), 0)
    meters.tick(0, 1.0, {("239.1.2.3", 5000): 7})
    assert [flow.now.dropped for flow in meters] == [7, 0]


# -- sequenced feeds -------------------------------------------------------------------------------------------------


def test_the_messages_of_a_feed_are_counted() -> None:
    flow = flow_of([feed(1, 3), feed(4, 0), feed(4, 2), feed(9, 1), feed(6, 3), feed(10, 0xFFFF)])
    assert flow.numbering is Numbering.MOLDUDP64
    assert counted(flow) == (6, 6, 3, 3, 0)


def test_a_heartbeat_tells_what_is_lost_and_an_overlap_what_is_new() -> None:
    flow = flow_of([feed(1, 2), feed(3, 0), feed(6, 0), feed(4, 4), feed(8, 1)])
    assert (flow.numbered, flow.lost, flow.duplicates) == (2 + 2 + 1, 3, 2)


def test_one_packet_that_looks_like_a_feed_is_none() -> None:
    assert flow_of([feed(7, 1)]).numbering is Numbering.NONE
    assert flow_of([feed(0, 0)] * 3).numbering is Numbering.NONE  # there is no message 0
    assert flow_of([feed(7, 9)[:37], feed(16, 1)]).numbering is Numbering.NONE  # too short for nine messages
    assert flow_of([feed(7, 1), feed(70, 1), feed(700, 1)]).numbering is Numbering.NONE
    assert flow_of([b"x" * 40, b"y" * 40]).numbering is Numbering.NONE


def test_another_session_is_a_restart() -> None:
    flow = flow_of([feed(1), feed(2), feed(1, 1, b"OTHER     "), feed(2, 1, b"OTHER     ")])
    assert flow.restarts == 1
    assert flow.lost == 0
