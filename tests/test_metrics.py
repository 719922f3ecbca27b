"""Statistics as metrics, read back by the parser of prometheus-client."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import helpers
import pytest
from helpers import Keeper

import multicast
from multicast import feeds
from multicast.measure import FlowKey, Meters
from multicast.testing import Network

prometheus = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
parser = pytest.importorskip("prometheus_client.parser")
metrics = pytest.importorskip("multicast.metrics")

GROUP = "239.1.2.3"


def values(collector: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return what a scrape gives: names and labels to values."""
    registry = prometheus.CollectorRegistry()
    registry.register(collector)
    text = prometheus.generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def named(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str) -> list[float]:
    return [value for (one, _), value in found.items() if one == name]


class LineStatistics(NamedTuple):
    firsts: int


class PublisherStatistics(NamedTuple):
    messages: int
    delay: float
    rejected: dict[str, int]
    lines: tuple[LineStatistics, ...]
    session: str
    since: None


class Publisher:
    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.closed = False

    def statistics(self) -> PublisherStatistics:
        lines = (LineStatistics(3), LineStatistics(4))
        return PublisherStatistics(self.messages, 0.5, {"forged": 2}, lines, "A", None)


def test_what_is_registered_with_a_poller_is_counted(poller: multicast.Poller, free_port: int) -> None:
    collector = metrics.collector(poller)
    listener = Keeper(ip=GROUP, port=free_port, interface="lo", poller=poller)
    multicast.sendto([b"one", b"three"], GROUP, free_port, ttl=0)
    helpers.settle(poller, lambda: len(listener.packets) == 2)
    labels = frozenset({("group", f"{GROUP}:{free_port}"), ("name", "Keeper")})
    found = values(collector)
    assert found["multicast_listener_packets_total", labels] == 2
    assert found["multicast_listener_bytes_total", labels] == 8
    assert found["multicast_listener_dropped_total", labels] == 0


def test_fields_become_counters_gauges_and_labels() -> None:
    found = values(metrics.collector(Publisher(7)))
    own = {("group", ""), ("name", "Publisher")}
    assert found == {
        ("multicast_publisher_messages_total", frozenset(own)): 7,
        ("multicast_publisher_delay", frozenset(own)): 0.5,
        ("multicast_publisher_rejected_total", frozenset({*own, ("cause", "forged")})): 2,
        ("multicast_publisher_lines_firsts_total", frozenset({*own, ("line", "0")})): 3,
        ("multicast_publisher_lines_firsts_total", frozenset({*own, ("line", "1")})): 4,
    }


def test_equal_labels_are_added_and_what_is_closed_stays_in_the_sum() -> None:
    one, two = Publisher(1), Publisher(10)
    present = [one, two]
    collector = metrics.collector(lambda: present)
    assert named(values(collector), "multicast_publisher_messages_total") == [11]
    two.messages = 20  # counted after the last reading
    two.closed = True
    present.remove(two)
    assert named(values(collector), "multicast_publisher_messages_total") == [21]
    present.append(Publisher(100))
    assert named(values(collector), "multicast_publisher_messages_total") == [121]


def test_an_object_that_comes_back_is_not_counted_twice() -> None:
    one = Publisher(5)
    present = [one]
    collector = metrics.collector(lambda: present)
    for objects in ([one], [], [one]):
        present[:] = objects
        assert named(values(collector), "multicast_publisher_messages_total") == [5]


def test_the_number_of_labels_is_bounded() -> None:
    kinds = [type(f"Kind{number}", (Publisher,), {})(1) for number in range(20)]
    found = values(metrics.collector(kinds, most=5))
    sums = {dict(labels)["name"]: value for (name, labels), value in found.items() if name.endswith("messages_total")}
    assert sums == {**{f"Kind{number}": 1 for number in range(5)}, "other": 15}


def test_flows_have_their_source() -> None:
    meters = Meters()
    meters.take(FlowKey(GROUP, 5000, "10.0.0.5", 4000, "eth0"), b"abc", 1.0)
    meters.take(FlowKey("ff02::1", 5000, "fe80::1", 4000, "eth0"), b"abc", 1.0)
    found = values(metrics.collector(meters))
    labels = {("group", f"{GROUP}:5000"), ("source", "10.0.0.5:4000"), ("interface", "eth0")}
    assert found["multicast_flow_bytes_total", frozenset(labels)] == 3
    assert not any(name == "multicast_flow_jitter" for name, _ in found)  # unknown after one packet
    assert any(("source", "[fe80::1]:4000") in labels for _, labels in found)


def test_another_prefix() -> None:
    assert named(values(metrics.collector(Publisher(1), prefix="rig")), "rig_publisher_messages_total") == [1]


@pytest.mark.parametrize("wrong", [{"prefix": "a b"}, {"prefix": "1a"}, {"most": 0}], ids=str)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(multicast.ArgumentError):
        metrics.collector(**wrong)


def test_what_counts_nothing_is_refused() -> None:
    with pytest.raises(multicast.ArgumentError, match="counts nothing"):
        metrics.collector(5)


def test_the_dashboard_asks_for_metrics_that_exist(poller: multicast.Poller, free_port: int) -> None:
    page = Path(__file__).parents[1] / "docs" / "live" / "dashboard.json"
    asked = set(re.findall(r"multicast_\w+", " ".join(
        target["expr"] for panel in json.loads(page.read_text())["panels"] for target in panel["targets"]
    )))  # fmt: skip
    meters = Meters()
    for second in range(3):
        meters.take(FlowKey(GROUP, 5000, "10.0.0.5", 4000, "eth0"), b"abc", second)
    Keeper(ip=GROUP, port=free_port, interface="lo", poller=poller)
    sender = helpers.Script([], ip=GROUP, port=free_port, ttl=0, poller=poller)
    there = {name for name, _ in values(metrics.collector(poller, meters))}
    sender.close()
    assert asked <= there


def test_packets_that_did_not_open_are_told_by_cause(poller: multicast.Poller) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from multicast.sealed import Seal

    with helpers.Keeper(ip=GROUP, port=5000, interface="lo", seal=Seal(bytes(32)), poller=poller) as keeper:
        plain = helpers.Keeper(ip=GROUP, port=5000, interface="lo", poller=poller)
        multicast.sendto("not sealed", GROUP, 5000, 0)
        helpers.settle(poller, lambda: keeper.statistics().rejected and plain.packets)
        found = values(metrics.collector(poller))
        plain.close()
    counted = [(dict(labels), value) for (name, labels), value in found.items() if name.endswith("rejected_total")]
    causes = {labels["cause"]: value for labels, value in counted}
    assert causes.pop("not_sealed") == 1
    assert set(causes.values()) == {0}


def test_feeds_count_by_line_and_by_cause_and_have_states() -> None:
    class Board(feeds.Subscriber):
        def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
            pass

    with Network() as net:
        board = Board(["239.1.2.3:5000", "239.1.2.4:5000"])
        publisher = feeds.Publisher("239.1.2.3", 5000)
        publisher.publish("message")
        net.advance(0.1)
        found = {(name, dict(labels).get("line")): value for (name, labels), value in
                 values(metrics.collector(board, publisher)).items()}
        assert found["multicast_subscriber_messages_total", None] == 1
        assert found["multicast_subscriber_lines_firsts_total", "0"] == 1
        assert found["multicast_subscriber_lines_firsts_total", "1"] == 0
        assert found["multicast_subscriber_missing", None] == 0
        assert found["multicast_publisher_history", None] > 20
        publisher.close()
