"""What each line of a numbered feed lacks, for the doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multicast.batch import Address
from multicast.feeds import RTP, Arbiter, Subscriber, SubscriberStatistics
from multicast.poller import Poller
from multicast.sockets import Group

__all__ = ["Line", "Lines"]

# How long a number that came by one line may come by the other, in seconds.
_PATIENCE = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """What came by one line."""

    group: str
    #: Messages, or packets of RTP.
    received: int = 0
    #: Those that came by another line, and not by this one.
    missing: int = 0


class _Silent(Subscriber):
    def handle_message(self, message: bytes, number: int, addr: Address) -> None:
        pass

    def handle_gap(self, first: int, count: int) -> None:
        pass


class _SilentRtp(Arbiter):
    def handle_message(self, message: bytes, number: int, addr: Address) -> None:
        pass

    def handle_gap(self, first: int, count: int) -> None:
        pass


class Lines:
    """Listens to the lines of a feed, MoldUDP64 or RTP, and compares their numbers."""

    def __init__(self, groups: Sequence[Group], interface: Any, poller: Poller) -> None:
        options: dict[str, Any] = {"patience": _PATIENCE, "rcvbuf": 1 << 20, "poller": poller}
        if interface is not None:
            options["interface"] = interface
        self._groups = groups
        self._mold = _Silent(groups, repair=False, **options)
        self._rtp = _SilentRtp(groups, RTP, **options)

    def found(self) -> tuple[Line, ...]:
        """Return what came by each line; empty where the feed is not numbered."""
        mold, rtp = self._mold.statistics(), self._rtp.statistics()
        counted: SubscriberStatistics = mold if mold.messages >= rtp.messages else rtp
        if not counted.messages:
            return ()
        # What none of the lines has is no difference between them.
        both = counted.unrecoverable if counted is mold else 0
        return tuple(
            Line(f"{group.address}:{group.port}", line.messages, max(0, line.lost - both))
            for group, line in zip(self._groups, counted.lines, strict=True)
        )

    def close(self) -> None:
        """Leave the groups."""
        self._mold.close()
        self._rtp.close()
