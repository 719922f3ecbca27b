"""Which requests are answered, to whom, and with how much. No I/O."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from .history import History
from .moldudp64 import HEADER

__all__ = ["Answer", "Repairs"]

# How many requesters have an allowance at the same time, and how many answers are kept in mind.
_MOST_REQUESTERS, _MOST_ANSWERS = 1024, 1024
# What all together get in a second at the least, in bytes, however little is sent.
_LEAST = 1 << 20
# A requester is present for so long after its last request, and so often those present are counted, in seconds.
_PRESENT, _COUNTED = 1.0, 0.1
# Buckets hold what they get in this time, in seconds.
_BURST = 0.25


class Answer(NamedTuple):
    """A packet that answers a request."""

    packet: bytes
    #: How many messages are in it.
    messages: int
    #: Whether it goes to the group, as several have asked for it; otherwise to the requester.
    to_group: bool


class _Given(NamedTuple):
    """An answer that was given."""

    first: int
    end: int
    at: float
    requester: object
    to_group: bool


class _Bucket:
    """An allowance in bytes that fills with time."""

    __slots__ = ("at", "left")

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at

    def fill(self, rate: float, now: float) -> float:
        self.left = min(rate * _BURST, self.left + max(0.0, now - self.at) * rate)
        self.at = now
        return self.left


class Repairs:
    """Answers requests from a history.

    `room` is the most bytes of an answer. What a second requester asks for within `linger` seconds of an answer to
    another goes to the group, and what the group got within that time is not sent again. All answers together are at
    most `share` of the bytes that `sending` tells per second, and at least a mebibyte per second; each requester gets
    an equal part of that.
    """

    def __init__(
        self, history: History, *, room: int, linger: float, share: float, sending: Callable[[float], float]
    ) -> None:
        self._history = history
        self._room = room
        self._linger = linger
        self._share = share
        self._sending = sending
        self._given: deque[_Given] = deque()
        self._all = _Bucket(_LEAST * _BURST, 0.0)
        self._each: OrderedDict[object, _Bucket] = OrderedDict()
        self._present, self._counted_at = 1, 0.0
        #: What was counted.
        self.counts = dict.fromkeys(
            ("requests", "malformed", "other_session", "ahead", "gone", "limited", "suppressed", "repairs",
             "group_repairs", "repaired"), 0
        )  # fmt: skip

    def __len__(self) -> int:
        """Return how many requesters are present."""
        return len(self._each)

    def request(self, data: bytes, requester: object, now: float, *, group_only: bool = False) -> Answer | None:
        """Return the answer to a request, or None for none; that is counted with its cause."""
        counts = self.counts
        if len(data) != HEADER.size:
            counts["malformed"] += 1
            return None
        session, first, count = HEADER.unpack(data)
        counts["requests"] += 1
        if session != self._history.session:
            counts["other_session"] += 1
            return None
        if not first or not count:
            counts["malformed"] += 1
            return None
        if first >= self._history.next:
            counts["ahead"] += 1
            return None
        end = min(first + count, self._history.next)
        given = self._given
        while given and (now - given[0].at > self._linger or len(given) > _MOST_ANSWERS):
            given.popleft()
        to_group = group_only
        for one in given:
            if one.first <= first < one.end:
                if one.to_group:
                    counts["suppressed"] += 1
                    return None
                to_group = to_group or one.requester != requester
        rate = max(_LEAST, self._share * self._sending(now))
        # An allowance may be overdrawn by one packet.
        own = self._allowance(requester, rate, now)
        if own <= 0 or self._all.fill(rate, now) <= 0:
            counts["limited"] += 1
            return None
        packet, messages = self._history.answer(first, count, self._room)
        if not packet:
            counts["ahead"] += 1
            return None
        self._all.left -= len(packet)
        self._each[requester].left -= len(packet)
        if not messages:
            counts["gone"] += 1
            # In the group this would be a heartbeat with an old number.
            return None if group_only else Answer(packet, 0, False)
        held = int.from_bytes(packet[10:18], "big")
        given.append(_Given(min(first, held), min(end, held + messages), now, requester, to_group))
        counts["repairs"] += 1
        counts["group_repairs"] += to_group
        counts["repaired"] += messages
        return Answer(packet, messages, to_group)

    def _allowance(self, requester: object, rate: float, now: float) -> float:
        bucket = self._each.get(requester)
        if bucket is None:
            if len(self._each) >= _MOST_REQUESTERS:
                self._each.popitem(last=False)  # the one whose last request is the oldest
            bucket = self._each[requester] = _Bucket(0.0, now - _BURST)
        else:
            self._each.move_to_end(requester)
        if now - self._counted_at > _COUNTED or len(self._each) <= 2:
            self._counted_at = now
            while self._each and now - next(iter(self._each.values())).at > _PRESENT:
                self._each.popitem(last=False)
            self._present = max(1, len(self._each))
            self._each[requester] = bucket
        return bucket.fill(rate / self._present, now)
