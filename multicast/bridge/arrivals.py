"""Which messages of a subject are new, which came twice and how many are missing; without I/O."""

from __future__ import annotations

import math

__all__ = ["Arrivals", "Lag"]

# For so many seconds after its last message a session holds its site's place against one of the same or a lower term.
_HOLDS = 3.0
# Of so many sites the sessions are known; a forger who invents sites does not fill the memory.
_MOST_SITES = 4096


class _Site:
    __slots__ = ("heard", "next", "session", "term")

    def __init__(self, session: str, term: int, number: int, now: float) -> None:
        self.session = session
        self.term = term
        self.next = number + 1
        self.heard = now


class Arrivals:
    """The messages that came under one subject.

    A site has one active bridge for a group. While two believe that they are, as after a stop or a split of the
    network, the one with the higher term is heard, and the messages of the other are doubles.
    """

    __slots__ = ("_sites", "doubled", "missing")

    def __init__(self) -> None:
        self._sites: dict[str, _Site] = {}
        #: Numbers that did not come.
        self.missing = 0
        #: Messages that were left out as doubles.
        self.doubled = 0

    def accept(self, site: str, session: str, term: int, number: int, now: float) -> bool:
        """Whether a message of a site, with its session, term and number, is to be injected; `now` is in seconds."""
        known = self._sites.get(site)
        if known is None or (known.session != session and (term > known.term or now - known.heard > _HOLDS)):
            if known is None and len(self._sites) >= _MOST_SITES:
                del self._sites[min(self._sites, key=lambda name: self._sites[name].heard)]
            self._sites[site] = _Site(session, term, number, now)
            return True
        if known.session != session or number < known.next:
            self.doubled += 1
            return False
        self.missing += number - known.next
        known.next = number + 1
        known.heard = now
        if term > known.term:
            known.term = term
        return True


class Lag:
    """How much later than the quickest one of the last minute messages arrive.

    The clocks of two hosts differ, so the delay itself cannot be known from the time in the header; its change can.
    """

    __slots__ = ("_before", "_lately", "_turned", "seconds")

    def __init__(self) -> None:
        self._before = self._lately = math.inf
        self._turned = -math.inf
        #: The lag of the message noted last, in seconds.
        self.seconds = 0.0

    def note(self, delay: float, now: float) -> None:
        """Note the difference of the two clocks, in seconds, when a message has arrived."""
        if now - self._turned > 30.0:
            self._turned = now
            self._before, self._lately = self._lately, math.inf
        if delay < self._lately:
            self._lately = delay
        self.seconds = delay - min(self._before, self._lately)
