"""Both ends of the way: what left the sender, by its report, and what arrived here. No input and no output.

Packets are matched by salted digests of their payloads, as the clocks of two hosts differ: those that both have tell by
how much the looks began apart, and what the sender sent while this end looked has to be here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from multicast.errors import ArgumentError
from multicast.interfaces import Route
from multicast.sockets import Group

from .checks.facts import finding, listed, packets, target, unique, where
from .departure import Payload, Sketch, Stream, total
from .messages import Finding

__all__ = ["Sent", "compare", "report_events", "sent_from"]

# At the edges of the look a packet may be seen by one end alone, in seconds.
_EDGE = 0.25
# So many payloads say something about a share; less than this share of them is a loss.
_ENOUGH, _ALL = 5, 0.98


@dataclass(frozen=True, slots=True)
class Sent:
    """The sender's report."""

    group: Group
    #: How long it was looked, in seconds.
    seconds: float
    streams: tuple[Stream, ...]
    #: The salt of the digests, and the CRC below which all payloads are in the sample.
    salt: bytes
    limit: int
    payloads: tuple[Payload, ...]
    #: What the sender's end found to be wrong; empty for nothing.
    fault: str = ""

    @property
    def packets(self) -> int:
        """How many packets left."""
        return total(self.streams)


def report_events(streams: Iterable[Stream], sketch: Sketch, salt: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return what a report has beside the checks: events by name, each with its fields."""
    events: list[tuple[str, dict[str, Any]]] = [("sent", asdict(one)) for one in streams]
    payloads = [[getattr(one, field.name) for field in fields(Payload)] for one in sketch.payloads(salt)]
    events.append(("payloads", {"salt": salt.hex(), "limit": sketch.limit, "sample": payloads}))
    return events


def sent_from(text: str, name: str) -> Sent:
    """Return the report in `text`, the JSON of ``multicast doctor --sending --json``; `name` is that of its file.

    Raises `ArgumentError` where it is no such report.
    """
    try:
        events = [json.loads(line) for line in text.splitlines() if line.strip()]
        (sample,) = [one for one in events if one["event"] == "payloads"]
        (summary,) = [one for one in events if one["event"] == "summary"]
        names = {field.name for field in fields(Stream)}
        streams = [
            Stream(**{key: value for key, value in one.items() if key in names})
            for one in events
            if one["event"] == "sent"
        ]
        fault = summary["fault"]
        return Sent(
            Group.of(summary["group"], summary["port"]),
            float(summary["seconds"]),
            tuple(streams),
            bytes.fromhex(sample["salt"]),
            int(sample["limit"]),
            tuple(Payload(*one) for one in sample["sample"]),
            "" if fault is None else str(fault["cause"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"{name} is no report of a sender ({type(error).__name__}: {error}); make one there with: sudo multicast"
            " doctor GROUP --sending --json > sender.json"
        ) from None


@dataclass(frozen=True, slots=True)
class _Share:
    """How many of some packets arrived."""

    sent: int = 0
    came: int = 0

    @property
    def part(self) -> float:
        return self.came / self.sent if self.sent else 1.0

    def __str__(self) -> str:
        return f"{100 * self.part:.3g} %"


def compare(
    sent: Sent, group: Group, seconds: float, streams: Sequence[Stream], sketch: Sketch, back: Route | None
) -> Finding:
    """Return what became of what `sent` tells of, on the way to this host.

    `streams` and `sketch` are what arrived here for `group` in so many `seconds`, `back` is the route to the sender.
    """
    name = "way"
    words = _words(sent, group)
    if (sent.group.address, sent.group.port) != (group.address, group.port):
        there = where(sent.group.address, sent.group.port)
        return finding(name, "fail", "sent-elsewhere", "", **{
            **words, "sent": there, "there": target(sent.group.address, sent.group.port)
        })  # fmt: skip
    left, came = sent.packets, total(streams)
    seen = f"{packets(left)} left in {sent.seconds:.3g} s, {packets(came)} arrived in {seconds:.3g} s"
    if not left:
        reason = sent.fault or "no program sent."
        return finding(name, "fail", "sender-silent", seen, **{**words, "reason": reason})
    if not came:
        return _none(sent, back, seen, words)
    here = {one.digest: one for one in sketch.payloads(sent.salt, min(sent.limit, sketch.limit))}
    both = [(one, here[one.digest]) for one in sent.payloads if one.digest in here]
    if not both:
        return _by_rate(sent, seconds, came, seen, words)
    return _matched(sent, seconds, streams, sketch, both, seen, words)


def _words(sent: Sent, group: Group) -> dict[str, object]:
    sources = unique(one.source for one in sent.streams)
    return {
        "group": group.address, "where": where(group.address, group.port), "target": target(group.address, group.port),
        "source": listed(sources[:4]) if sources else "SOURCE", "count": packets(sent.packets),
    }  # fmt: skip


def _none(sent: Sent, back: Route | None, seen: str, words: dict[str, object]) -> Finding:
    """Nothing arrived: where does it look as if it were lost?"""
    ttl = max(one.ttl for one in sent.streams)
    gateway = None if back is None else back.gateway
    words = {**words, "ttl": ttl, "gateway": gateway}
    if gateway is None:
        return finding("way", "fail", "lost-on-link", seen, **words)
    return finding("way", "fail", "ttl-spent" if ttl <= 1 else "lost-at-router", seen, **words)


def _by_rate(sent: Sent, seconds: float, came: int, seen: str, words: dict[str, object]) -> Finding:
    """No payload is in both samples: the looks were at different times, or the payloads were changed."""
    theirs, ours = sent.packets / sent.seconds, came / seconds
    if ours >= 0.9 * theirs and sent.fault:
        return finding("way", "fail", "sender-fault", seen, **{**words, "reason": sent.fault})
    if ours >= 0.9 * theirs:
        return Finding("way", "ok", cause=f"as many arrive as are sent, {ours:.3g} a second ({seen})")
    return finding("way", "fail", "lost-by-rate", seen, **{**words, "sent": f"{theirs:.3g}", "came": f"{ours:.3g}"})


def _matched(
    sent: Sent,
    seconds: float,
    streams: Sequence[Stream],
    sketch: Sketch,
    both: Sequence[tuple[Payload, Payload]],
    seen: str,
    words: dict[str, object],
) -> Finding:
    """Compare what was sent while both looked, payload by payload."""
    apart = statistics.median(ours.seconds - theirs.seconds for theirs, ours in both)
    begin, end = max(0.0, -apart) + _EDGE, min(sent.seconds, seconds - apart) - _EDGE
    found = {theirs.digest: ours for theirs, ours in both}
    meant = [one for one in sent.payloads if begin <= one.seconds <= end and (one.mark + 1) << 24 <= sketch.limit]
    longest = max((one.largest for one in sent.streams if not one.fragmented), default=0)
    cut = any(one.fragmented for one in sent.streams)
    least_cut = min((one.largest for one in sent.streams if one.fragmented), default=0)
    limit = longest if longest and longest < least_cut else 1452

    def share(chosen: Iterable[Payload]) -> _Share:
        those = list(chosen)
        return _Share(sum(one.packets for one in those),
                      sum(min(one.packets, found[one.digest].packets) for one in those if one.digest in found))

    whole = share(meant)
    hops = max(one.ttl for one in sent.streams) - max(one.ttl for one in streams)
    routers = f"; {hops} router{'' if hops == 1 else 's'} between" if hops > 0 else ""
    seen += f"; of {whole.sent} that both could see {whole.came} arrived{routers}"
    if whole.sent < _ENOUGH or whole.part >= _ALL:
        moved = {(theirs.source, ours.source) for theirs, ours in both if theirs.source != ours.source}
        if moved:
            before, after = sorted(moved)[0]
            return finding("way", "warn", "translated", seen, **{
                **words, "source": before, "found": after,
                "listened": target(sent.group.address, sent.group.port, sources=[after]),
            })  # fmt: skip
        if sent.fault:
            return finding("way", "fail", "sender-fault", seen, **{**words, "reason": sent.fault})
        return Finding("way", "ok", cause=f"what leaves the sender arrives ({seen})")
    short, long = share(one for one in meant if one.length <= limit), share(one for one in meant if one.length > limit)
    if cut and short.sent >= _ENOUGH and long.sent >= _ENOUGH and long.part < 0.5 * short.part:
        return finding("way", "fail", "lost-by-size", seen, **{**words, "long": long, "short": short})
    shares = {source: share(one for one in meant if one.source == source) for source in {one.source for one in meant}}
    good = [source for source, one in shares.items() if one.part >= _ALL]
    bad = min(shares, key=lambda source: shares[source].part)
    if good and shares[bad].part < 0.5:
        return finding("way", "fail", "lost-by-source", seen, **{
            **words, "lost": bad, "share": shares[bad], "good": listed(sorted(good)[:4])
        })  # fmt: skip
    return finding("way", "fail", "lost-in-part", seen, **{**words, "share": whole})
