"""Statistics for Prometheus: what the objects of a program have counted, as metrics.

`collector` makes a collector of prometheus-client (extra ``metrics``). It reads the objects when the metrics are asked
for, so nothing is added to the path of a packet::

    from prometheus_client import REGISTRY, start_http_server
    from multicast import metrics

    REGISTRY.register(metrics.collector(poller))
    start_http_server(9100, "127.0.0.1")

What an object counts is what its `statistics()` returns, a named tuple. docs/live.rst has the rules that make metrics
of its fields.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .errors import ArgumentError, check_number
from .measure import Meters
from .poller import Poller

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

__all__ = ["Counted", "collector"]


class Counted(Protocol):
    """An object that counts: a listener, a sender, a recorder, a bridge, ..."""

    def statistics(self) -> Any:
        """Return a named tuple of what was counted."""


# Which words stand for a field in the help of a metric. A field that is not here is described by its name.
_HELP = {
    "packets": "Packets read from the socket, or handed to the kernel.",
    "bytes": "Bytes of their payload.",
    "delivered": "Packets given to the handler.",
    "filtered": "Packets a filter refused.",
    "truncated": "Packets that were longer than mtu and were cut.",
    "dropped": "Packets dropped for want of room, as in the buffer of the socket.",
    "rejected": "Sealed packets that did not open, by cause.",
    "refused": "Packets the kernel refused to send.",
    "full": "Times the queue of the interface was full.",
    "repaired": "Messages that came after they had been asked for, or were sent again.",
    "unrecoverable": "Messages that were told as lost.",
    "requests": "Requests for messages that were sent, or read.",
    "history": "Bytes of messages that are kept.",
    "missing": "Messages that are missing now.",
    "waiting": "Messages that wait for missing ones.",
    "superseded": "Packets that a newer one of the same source replaced before they were read.",
    "lost": "Numbers that did not arrive.",
    "duplicates": "Packets that arrived again.",
    "reordered": "Packets that arrived out of order.",
    "restarts": "Times a source began its numbers anew.",
    "received": "Packets heard in the groups of this network.",
    "published": "Packets handed to the client of the server.",
    "overflowed": "Packets that the kernel dropped before they were read.",
    "told": "Messages that came from the server.",
    "injected": "Packets sent to groups of this network.",
    "discarded": "Messages that were not injected, by cause.",
    "held": "Packets that wait for room in the queue of an interface.",
    "gaps": "Messages that were published elsewhere and did not come.",
    "disconnects": "Connections to a server that were lost.",
    "jitter": "Variation of the transit time in seconds (RFC 3550 section 6.4.1).",
}

# Fields that are a state, and no count.
_STATES = frozenset({"held", "history", "missing", "waiting"})

_Labels = tuple[tuple[str, str], ...]
#: Name without the prefix, whether it is a counter, labels.
_Key = tuple[str, bool, _Labels]


def kind_of(statistics: object) -> str:
    """Return what a tuple of statistics belongs to: listener, sender, publisher, ..."""
    name = type(statistics).__name__.removesuffix("Statistics")
    return name.lower() or "listener"


def samples(value: object, name: str, labels: _Labels = ()) -> Iterator[tuple[_Key, float]]:
    """Yield what a tuple of statistics, or one of its fields, says: key and value."""
    if isinstance(value, bool):
        yield (name, False, labels), float(value)
    elif isinstance(value, int):
        yield (name, name.rpartition("_")[2] not in _STATES, labels), float(value)
    elif isinstance(value, float):
        if not math.isnan(value):
            yield (name, False, labels), value
    elif hasattr(value, "_asdict"):
        for field, one in value._asdict().items():
            yield from samples(one, f"{name}_{field}", labels)
    elif isinstance(value, Mapping | tuple | list):
        label = "line" if name.endswith("lines") else "cause"
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, one in pairs:
            yield from samples(one, name, (*labels, (label, str(key))))


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _group_of(counted: object) -> str:
    group = getattr(counted, "group", None) or getattr(counted, "endpoint", None)
    return "" if group is None else str(group)


class _Collector:
    """Reads objects; made by `collector`."""

    def __init__(self, sources: tuple[Any, ...], prefix: str, most: int) -> None:
        self._sources = sources
        self._prefix = prefix
        self._most = most
        self._lock = threading.Lock()
        # What each object had counted when it was last read, by its identity, and the object itself, which keeps the
        # identity from being used again until the next reading has found that it is gone.
        self._last: dict[int, tuple[object, dict[_Key, float]]] = {}
        # What objects that are gone had counted.
        self._gone: dict[_Key, float] = {}
        self._labelled: set[_Labels] = set()

    def _objects(self) -> Iterator[Any]:
        for source in self._sources:
            if isinstance(source, Meters):
                continue
            if callable(getattr(source, "statistics", None)):
                yield source
            else:
                for one in list(source() if callable(source) else source):
                    if callable(getattr(one, "statistics", None)):
                        yield one

    def _labels(self, counted: object) -> _Labels:
        labels: _Labels = (("group", _group_of(counted)), ("name", type(counted).__name__.lstrip("_")))
        if labels not in self._labelled:
            if len(self._labelled) >= self._most:
                return (("group", "other"), ("name", "other"))
            self._labelled.add(labels)
        return labels

    def _values(self, counted: Any) -> dict[_Key, float]:
        """Return what one object has counted; packets that did not open by cause."""
        statistics = counted.statistics()
        kind, labels = kind_of(statistics), self._labels(counted)
        found = dict(samples(statistics, kind, labels))
        if hasattr(counted, "rejected"):
            found.pop((f"{kind}_rejected", True, labels), None)
            causes = counted.rejected
            if causes is not None:
                found.update(samples(causes._asdict(), f"{kind}_rejected", labels))
        return found

    def _read(self) -> dict[_Key, float]:
        """Return the sums of all that was counted."""
        present: dict[int, tuple[object, dict[_Key, float]]] = {}
        for counted in self._objects():
            if id(counted) in present:
                continue
            present[id(counted)] = (counted, self._values(counted))
        for identity, (counted, _) in self._last.items():
            if identity in present:
                continue
            # Statistics stay readable after closing, and may hold more than at the last reading.
            values = self._values(counted)
            if not getattr(counted, "closed", True):  # unregistered for a while
                present[identity] = (counted, values)
                continue
            for key, value in values.items():
                if key[1]:
                    self._gone[key] = self._gone.get(key, 0) + value
        self._last = present
        total = dict(self._gone)
        for _, values in present.values():
            for key, value in values.items():
                total[key] = total.get(key, 0) + value
        return total

    def _flows(self) -> Iterator[tuple[_Key, float]]:
        """Yield what each flow has counted. A flow that was forgotten is no longer there: its series ends."""
        for meters in self._sources:
            if not isinstance(meters, Meters):
                continue
            for flow in meters:
                key = flow.key
                labels: _Labels = (
                    ("group", _place(key.group, key.port)),
                    ("source", _place(key.source, key.source_port)),
                    ("interface", key.interface),
                )
                for field in ("packets", "bytes", "lost", "duplicates", "reordered", "restarts"):
                    yield ("flow_" + field, True, labels), float(getattr(flow, field))
                if not math.isnan(flow.jitter):
                    yield ("flow_jitter", False, labels), flow.jitter

    def describe(self) -> Iterable[Metric]:
        """Name no metrics beforehand: which there are depends on the objects."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            values = {**self._read(), **dict(self._flows())}
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for (name, counter, labels), value in sorted(values.items()):
            family = families.get(name)
            if family is None:
                kind, _, field = name.partition("_")
                words = _HELP.get(field) or _HELP.get(field.rpartition("_")[2])
                text = f"{words or field.replace('_', ' ').capitalize() + '.'} Counted by a {kind}."
                made = CounterMetricFamily if counter else GaugeMetricFamily
                family = families[name] = made(f"{self._prefix}_{name}", text, labels=[label for label, _ in labels])
            family.add_metric([text for _, text in labels], value)
        yield from families.values()


def collector(
    *sources: Poller | Meters | Counted | Iterable[object] | Callable[[], Iterable[object]],
    prefix: str = "multicast",
    most: int = 1000,
) -> Collector:
    """Return a collector for a registry of prometheus-client that reads what `sources` have counted.

    A source is a `Poller`, which stands for all that is registered with it at the time of reading; an object with
    `statistics()`; an iterable of such objects; a function that returns one; or `measure.Meters`, whose flows become
    ``multicast_flow_...`` with the labels ``group``, ``source`` and ``interface``. `prefix` begins the name of each
    metric. `most` is how many different label values are kept: objects beyond it are counted under the label
    ``other``, so a program that opens listeners for ever does not fill the database.

    The objects are read in the thread that asks for the metrics. They count in the thread of their poller; a figure
    read meanwhile may be a packet behind the next one.

    Raises `ArgumentError` for a source that is none of these, and `ModuleNotFoundError` without prometheus-client.
    """
    try:
        import prometheus_client  # noqa: F401 -- whether it is there is to be known now, and not at the first reading
    except ModuleNotFoundError as error:
        error.add_note('metrics need prometheus-client: pip install "multicast-poller[metrics]"')
        raise
    for source in sources:
        if not (callable(getattr(source, "statistics", None)) or callable(source) or isinstance(source, Iterable)):
            raise ArgumentError(
                f"{source!r} counts nothing: give a poller, an object with statistics(), an iterable of such objects,"
                " or a function that returns one"
            )
    if not prefix.replace("_", "").isalnum() or prefix[0].isdigit():
        raise ArgumentError(f"prefix is letters, digits and underscores, and begins with a letter, not {prefix!r}")
    return _Collector(sources, prefix, check_number("most", most))
