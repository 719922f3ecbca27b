"""What a bridge decides, without a server and without a network: names, headers, buffer, arrivals, leases."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nats", reason="nats-py is not installed")

from multicast import Address, ArgumentError, Group, GroupError
from multicast.bridge import Bridge, Link, parse_header, subject_of
from multicast.bridge.arrivals import Arrivals, Lag
from multicast.bridge.buffer import OVERHEAD, Buffer
from multicast.bridge.leases import BEAT, LEASE, Leases
from multicast.bridge.naming import header_head, heard_text, parse_head

GROUP = "239.77.14.1:5014"

# -- names -------------------------------------------------------------------------------------------------------------


def test_a_subject_has_the_address_with_dashes() -> None:
    assert subject_of(Group("239.1.2.3", 5000)) == "multicast.239-1-2-3.5000"
    assert subject_of(Group("ff15::1:2", 5000), "plant.hall-2") == "plant.hall-2.ff15--1-2.5000"


@pytest.mark.parametrize("site", ["", "a.b", "a b", "a*", "a>", "ä", "x" * 65, 7])
def test_a_site_that_cannot_be_a_subject_is_refused(site: object) -> None:
    with pytest.raises(ArgumentError, match="site is a name"):
        Bridge([GROUP], site=site)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", ".a", "a.", "a..b", "a.*", "a b"])
def test_a_prefix_that_cannot_begin_a_subject_is_refused(prefix: str) -> None:
    with pytest.raises(ArgumentError, match="prefix is made of"):
        Bridge([GROUP], site="here", prefix=prefix)
    with pytest.raises(ArgumentError, match="control is made of"):
        Bridge([GROUP], site="here", control=prefix)


def test_a_bridge_has_groups_each_once_and_each_subject_once() -> None:
    with pytest.raises(ArgumentError, match="needs a group"):
        Bridge([], site="here")
    with pytest.raises(ArgumentError, match="named twice"):
        Bridge([GROUP, GROUP], site="here")
    with pytest.raises(ArgumentError, match="both cross as"):
        Bridge([GROUP, Link.of("239.77.14.2:5014", GROUP)], site="here")
    with pytest.raises(ArgumentError, match="both, in or out"):
        Link.of(GROUP, direction="sideways")
    with pytest.raises(GroupError):
        Bridge(["10.1.1.1:5000"], site="here")
    with pytest.raises(ArgumentError, match="newest or oldest"):
        Bridge([GROUP], site="here", keep="all")


@given(
    site=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    term=st.integers(0, 2**63),
    number=st.integers(1, 2**63),
    addr=st.sampled_from([("10.1.2.3", 4000), ("fe80::1%eth0", 4000, 0, 3)]),
    ttl=st.none() | st.integers(0, 255),
    timestamp=st.integers(1, 2**63),
)
def test_a_header_is_read_as_it_was_written(
    site: str, term: int, number: int, addr: tuple[object, ...], ttl: int | None, timestamp: int
) -> None:
    heard = heard_text(Address(addr, ttl=ttl, timestamp=timestamp))
    text = f"{header_head(site, 'abc', term)}{number} {heard}"
    found = parse_header(text)
    assert found is not None
    assert tuple(found) == (site, "abc", term, number, addr[0], addr[1], ttl, timestamp)
    assert parse_head(text) == tuple(found)[:4]


@given(text=st.text(max_size=80) | st.text("0123456789 -ab.", max_size=80).map(lambda text: "1 a b " + text))
def test_no_header_is_taken_for_more_than_it_is(text: str) -> None:
    found = parse_header(text)
    assert found is None or text.split(" ")[:2] == ["1", found.site]


def test_a_header_longer_than_any_is_not_read() -> None:
    assert parse_header("1 a b 0 1 " + "9" * 400 + " 1 1 1") is None
    assert parse_header(None) is None


# -- the buffer --------------------------------------------------------------------------------------------------------


def packets(first: int, count: int, size: int = 100) -> list[tuple[object, str, bytes]]:
    return [(None, str(number), bytes(size)) for number in range(first, first + count)]


def numbers(taken: list[tuple[object, str, bytes]]) -> list[int]:
    return [int(text) for _, text, _ in taken]


def test_a_full_buffer_keeps_the_newest() -> None:
    buffer = Buffer(5 * (100 + OVERHEAD))
    assert buffer.add(packets(0, 4)) == 0
    assert buffer.add(packets(4, 4)) == 3
    assert (len(buffer), buffer.bytes) == (5, 5 * (100 + OVERHEAD))
    assert numbers(buffer.take(9)) == [3, 4, 5, 6, 7]
    assert (len(buffer), buffer.bytes) == (0, 0)


def test_a_full_buffer_keeps_the_oldest_when_told() -> None:
    buffer = Buffer(5 * (100 + OVERHEAD), "oldest")
    assert buffer.add(packets(0, 8)) == 3
    assert numbers(buffer.take(2)) == [0, 1]
    assert buffer.add(packets(8, 1)) == 0
    assert numbers(buffer.take(9)) == [2, 3, 4, 8]


@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_a_packet_larger_than_the_buffer_does_not_empty_it(keep: str) -> None:
    buffer = Buffer(1000, keep)
    buffer.add(packets(0, 2))
    assert buffer.add(packets(2, 1, 2000)) == 1
    assert numbers(buffer.take(9)) == [0, 1]


def test_what_was_not_used_comes_first_again() -> None:
    buffer = Buffer(10_000)
    buffer.add(packets(0, 5))
    taken = buffer.take(3)
    buffer.give_back(taken[1:])
    assert buffer.bytes == 4 * (100 + OVERHEAD)
    assert numbers(buffer.take(9)) == [1, 2, 3, 4]


# -- arrivals ----------------------------------------------------------------------------------------------------------


def test_missing_numbers_are_counted() -> None:
    arrivals = Arrivals()
    assert [arrivals.accept("a", "s", 1, number, 0.0) for number in (7, 8, 11)] == [True] * 3
    assert (arrivals.missing, arrivals.doubled) == (2, 0)


def test_a_number_that_came_does_not_come_again() -> None:
    arrivals = Arrivals()
    assert [arrivals.accept("a", "s", 1, number, 0.0) for number in (1, 2, 2, 1, 3)] == [True, True, False, False, True]
    assert (arrivals.missing, arrivals.doubled) == (0, 2)


def test_sites_are_counted_apart() -> None:
    arrivals = Arrivals()
    assert arrivals.accept("a", "s", 1, 1, 0.0)
    assert arrivals.accept("b", "t", 1, 9, 0.0)
    assert arrivals.accept("a", "s", 1, 2, 0.0)
    assert arrivals.missing == 0


def test_of_two_bridges_of_a_site_that_with_the_higher_term_is_heard() -> None:
    arrivals = Arrivals()
    assert arrivals.accept("a", "old", 5, 1, 0.0)
    assert not arrivals.accept("a", "low", 4, 1, 0.1)
    assert arrivals.accept("a", "new", 6, 1, 0.2)
    assert not arrivals.accept("a", "old", 5, 2, 0.3)
    assert arrivals.doubled == 2


def test_a_bridge_that_was_silent_gives_way_to_any() -> None:
    arrivals = Arrivals()
    assert arrivals.accept("a", "old", 5, 1, 0.0)
    assert arrivals.accept("a", "low", 4, 1, 3.1)
    assert arrivals.accept("a", "old", 5, 2, 3.2)  # that with the higher term is back
    assert not arrivals.accept("a", "low", 4, 2, 3.3)


def test_a_bridge_that_took_a_lease_again_keeps_its_numbers() -> None:
    arrivals = Arrivals()
    assert arrivals.accept("a", "s", 1, 1, 0.0)
    assert arrivals.accept("a", "s", 3, 2, 0.0)
    assert not arrivals.accept("a", "t", 2, 1, 0.0)


def test_a_forger_who_invents_sites_does_not_fill_the_memory() -> None:
    arrivals = Arrivals()
    for number in range(5000):
        arrivals.accept(f"site{number}", "s", 1, 1, float(number))
    assert len(arrivals._sites) <= 4096


def test_lag_is_told_beside_the_quickest_message_whatever_the_clocks_say() -> None:
    for offset in (0.0, 3600.0, -3600.0):
        lag = Lag()
        lag.note(offset + 0.010, 0.0)
        lag.note(offset + 0.005, 1.0)
        lag.note(offset + 0.105, 2.0)
        assert lag.seconds == pytest.approx(0.1)
        for second in range(3, 100):  # a clock was set meanwhile
            lag.note(offset + 50.0, float(second))
        assert lag.seconds == pytest.approx(0.0)


# -- leases ------------------------------------------------------------------------------------------------------------


class Site:
    """Bridges of one site, and the server between them, which may lose or hold back what they tell."""

    def __init__(self, *names: str, subjects: tuple[str, ...] = ("x",)) -> None:
        self.now = 1000.0
        self.subjects = subjects
        self.running: dict[str, Leases] = {}
        self.stopped: set[str] = set()
        self.apart: set[str] = set()
        self._due: dict[str, float] = {}
        for name in names:
            self.start(name)

    def start(self, name: str, subjects: tuple[str, ...] | None = None, ahead: float = 0.0) -> Leases:
        leases = Leases(name, subjects or self.subjects, lambda: int((self.now + ahead) * 1000))
        self.running[name] = leases
        self._due[name] = self.now + BEAT
        leases.connected(self.now)
        self._tell(name, "ask")
        return leases

    def kill(self, name: str) -> None:
        del self.running[name]

    def _others(self, name: str) -> list[Leases]:
        return [
            leases
            for other, leases in self.running.items()
            if other != name and other not in self.stopped and (other in self.apart) == (name in self.apart)
        ]

    def _tell(self, name: str, kind: str) -> None:
        leases = self.running[name]
        for other in self._others(name):
            if kind == "beat":
                if other.beat(name, leases.revision, self.now):
                    other.told(name, leases.revision, leases.terms(), self.now)
            else:
                other.told(name, leases.revision, leases.terms(), self.now)
                if kind == "ask":
                    leases.told(other.session, other.revision, other.terms(), self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            for name in list(self.running):
                if name not in self.stopped and self.now >= self._due[name]:
                    self._due[name] = self.now + BEAT
                    changed = self.running[name].tick(self.now)
                    self._tell(name, "state" if changed else "beat")

    def active(self, subject: str = "x") -> list[str]:
        return sorted(
            name
            for name, leases in self.running.items()
            if name not in self.stopped and subject in leases.held and leases.may_act(self.now)
        )


def test_one_bridge_alone_becomes_active() -> None:
    site = Site("a")
    assert site.active() == []  # it listens first
    site.run(1.2)
    assert site.active() == ["a"]


def test_of_several_that_begin_together_the_first_is_active() -> None:
    site = Site("c", "a", "b")
    site.run(3)
    assert site.active() == ["a"]
    assert site.running["c"].holder("x") == "a"


def test_a_bridge_that_comes_later_stays_standby() -> None:
    site = Site("m")
    site.run(3)
    site.start("a")
    site.run(5)
    assert site.active() == ["m"]


def test_another_takes_over_within_three_seconds() -> None:
    site = Site("a", "b", "c")
    site.run(3)
    site.kill("a")
    site.run(3)
    assert site.active() == ["b"]


def test_one_that_says_goodbye_is_followed_at_once() -> None:
    site = Site("a", "b")
    site.run(3)
    site.kill("a")
    site.running["b"].left("a")
    site.run(0.6)
    assert site.active() == ["b"]


def test_one_that_was_stopped_gives_way_before_it_acts() -> None:
    site = Site("a", "b")
    site.run(3)
    site.stopped.add("a")
    site.run(5)
    assert site.active() == ["b"]
    site.stopped.clear()
    assert site.active() == ["b"]  # before a has run at all
    site.run(0.05)
    assert site.active() == ["b"]
    site.run(5)
    assert site.active() == ["b"]
    assert "x" not in site.running["a"].held


def test_after_a_split_the_higher_term_stays() -> None:
    site = Site("a", "b")
    site.run(3)
    site.apart.add("b")
    site.run(5)
    assert site.active() == ["a", "b"]  # nobody can know better
    assert site.running["b"].held["x"] > site.running["a"].held["x"]
    site.apart.clear()
    site.run(2)
    assert site.active() == ["b"]


@pytest.mark.parametrize("ahead", [-900.0, 900.0])
def test_clocks_that_differ_change_nothing(ahead: float) -> None:
    site = Site("a")
    site.start("b", ahead=ahead)
    site.run(3)
    first = site.running["a"].held["x"]
    site.kill("a")
    site.run(3)
    assert site.active() == ["b"]
    assert site.running["b"].held["x"] > first
    site.start("a")
    site.run(3)
    assert site.active() == ["b"]
    second = site.running["b"].held["x"]
    site.kill("b")
    site.run(3)
    assert site.running["a"].held["x"] > second


def test_groups_that_only_one_bridge_has_are_its_own() -> None:
    site = Site()
    site.start("a", ("x", "y"))
    site.start("b", ("y", "z"))
    site.run(3)
    assert [site.active(subject) for subject in ("x", "y", "z")] == [["a"], ["a"], ["b"]]
    site.kill("a")
    site.run(3)
    assert [site.active(subject) for subject in ("x", "y", "z")] == [[], ["b"], ["b"]]


def test_a_bridge_alone_is_not_kept_from_acting_by_a_pause() -> None:
    site = Site("a")
    site.run(2)
    site.stopped.add("a")
    site.run(LEASE + 2)
    site.stopped.clear()
    assert site.active() == ["a"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_one_is_active_when_it_is_over(seed: int) -> None:
    chance = random.Random(seed)
    site = Site("a", "b", "c")
    for step in range(12):
        site.run(chance.uniform(0, 4))
        name = chance.choice(sorted(site.running)) if site.running else ""
        happens = chance.choice(["stop", "continue", "split", "join", "kill", "start"])
        if happens == "stop" and name:
            site.stopped.add(name)
        elif happens == "continue":
            site.stopped.clear()
        elif happens == "split" and name:
            site.apart.add(name)
        elif happens == "join":
            site.apart.clear()
        elif happens == "kill" and len(site.running) > 1:
            site.kill(name)
            site.stopped.discard(name)
            site.apart.discard(name)
        elif happens == "start":
            site.start(f"{chance.choice('nz')}{step}")
    site.stopped.clear()
    site.apart.clear()
    site.run(6)
    assert len(site.active()) == 1
