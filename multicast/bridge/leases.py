"""Which bridge of a site is active for a group: state over time, without I/O.

The bridges of a site tell each other twice a second that they are there, and, when it changes, which groups they have
and for which of these they are active. Each decides for itself, by these rules:

* Active for a group is one bridge. It stays active while it is heard from.
* When none is active, that one becomes active whose session comes first in the alphabet, of those that have the group.
* A bridge that was not heard from for two seconds is gone.
* Becoming active counts the term of the group up. Of two active bridges the one with the lower term gives way, as
  after a stop or a split of the network; with equal terms the one whose session comes later.
* After connecting a bridge listens before it acts, and so it does when it has not run for as long as a lease lasts:
  another may have taken its place.

That is a lease by subject, and no agreement of a majority. While the network is split each part may have an active
bridge; the terms in the messages let the far side tell them apart (`Arrivals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

__all__ = ["BEAT", "LEASE", "Leases"]

#: How often a bridge tells that it is there, in seconds.
BEAT = 0.5
#: After how many seconds without being heard from a bridge is gone.
LEASE = 2.0
# For how many seconds a bridge listens before it acts. After a break of the connection the bridges of other sites have
# to come back too: they miss what is published before.
_SETTLE, _SETTLE_AGAIN = 0.6, 1.5
# For how many seconds a group may be without an active bridge before any bridge takes it, first in line or not.
_VACANT = 1.0


class _Peer:
    """Another bridge of the site."""

    __slots__ = ("heard", "revision", "terms")

    def __init__(self, now: float) -> None:
        self.heard = now
        self.revision = -1
        #: The groups it has; the number is the term where it is active, and otherwise 0.
        self.terms: dict[str, int] = {}


class Leases:
    """The leases of one bridge, by subject.

    `session` names the bridge. `clock` tells the time in milliseconds since 1970; terms are made of it, so that a
    bridge that is started again has a higher one than before.
    """

    def __init__(self, session: str, subjects: Iterable[str], clock: Callable[[], int]) -> None:
        self.session = session
        self._subjects = tuple(dict.fromkeys(subjects))
        self._clock = clock
        #: The subjects this bridge is active for, and their terms.
        self.held: dict[str, int] = {}
        #: Counts the changes of `held`.
        self.revision = 0
        self._peers: dict[str, _Peer] = {}
        self._highest: dict[str, int] = {}  # term of each subject, of all that were told
        self._vacant: dict[str, float] = {}  # since when a subject has no active bridge, where another is first in line
        self._connected = self._was_connected = False
        self._settled = False
        self._settles_at = math.inf
        self._renewed = -math.inf
        self._look = True  # whether something has changed that `tick` has to look at

    # -- what happens ----------------------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """There is a connection: begin to listen."""
        self._connected = True
        self._listen(now, _SETTLE_AGAIN if self._was_connected else _SETTLE)
        self._was_connected = True

    def disconnected(self) -> None:
        """The connection is gone; what is held stays held until others have told that they have it."""
        self._connected = False
        self._settled = False

    def _listen(self, now: float, seconds: float) -> None:
        self._settled = False
        self._settles_at = now + seconds
        self._renewed = now
        for peer in self._peers.values():
            peer.heard = now  # it could not be heard meanwhile

    def beat(self, session: str, revision: int, now: float) -> bool:
        """Note that another bridge is there; return whether its groups have to be asked for."""
        peer = self._peers.get(session)
        if peer is None:
            peer = self._peers[session] = _Peer(now)
        peer.heard = now
        return peer.revision != revision

    def told(self, session: str, revision: int, terms: Mapping[str, int], now: float) -> None:
        """Note the groups of another bridge, with the terms of those it is active for, and 0 for the others."""
        self.beat(session, revision, now)
        peer = self._peers[session]
        peer.revision = revision
        peer.terms = dict(terms)
        for subject, term in terms.items():
            if term > self._highest.get(subject, 0):
                self._highest[subject] = term
        self._look = True

    def left(self, session: str) -> None:
        """Note that another bridge has ended."""
        if self._peers.pop(session, None) is not None:
            self._look = True

    # -- what follows ----------------------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Decide; to be called every `BEAT` seconds while connected. Return whether `held` has changed."""
        if not self._connected:
            return False
        if self._peers and now - self._renewed > LEASE:
            self._listen(now, _SETTLE)  # this process was stopped, or the host slept
        self._renewed = now
        for session, peer in list(self._peers.items()):
            if now - peer.heard > LEASE:
                del self._peers[session]
                self._look = True
        if now < self._settles_at:
            return False
        if not self._settled:
            self._settled = True
            self._look = True
        if not self._look and not self._vacant:
            return False
        self._look = False
        changes = [self._decide(subject, now) for subject in self._subjects]
        if not any(changes):
            return False
        self.revision += 1
        return True

    def _decide(self, subject: str, now: float) -> bool:
        """Take the lease of a subject, or give it up, where that is due; return whether it was."""
        rivals = [(peer.terms[subject], session) for session, peer in self._peers.items() if subject in peer.terms]
        active = [(-term, session) for term, session in rivals if term]
        mine = self.held.get(subject)
        if mine is not None:
            if active and min(active) < (-mine, self.session):
                del self.held[subject]
                return True
            return False
        if active:
            self._vacant.pop(subject, None)
            return False
        first = not any(session < self.session for _, session in rivals)
        if not first and now - self._vacant.setdefault(subject, now) < _VACANT:
            return False
        self._vacant.pop(subject, None)
        self.held[subject] = self._highest[subject] = max(self._highest.get(subject, 0) + 1, self._clock())
        return True

    # -- what may be done ------------------------------------------------------------------------------------------

    def may_act(self, now: float) -> bool:
        """Whether `held` can be relied on for publishing and injecting."""
        return self._settled and (not self._peers or now - self._renewed <= LEASE)

    @property
    def settled(self) -> bool:
        """Whether it is known for which subjects this bridge is active."""
        return self._settled

    @property
    def peers(self) -> list[str]:
        """The sessions of the other bridges of the site."""
        return sorted(self._peers)

    def holder(self, subject: str) -> str:
        """Return the session of the bridge that is active for a subject; empty where none is known."""
        if subject in self.held:
            return self.session
        active = [(-peer.terms.get(subject, 0), session) for session, peer in self._peers.items()]
        return min((pair for pair in active if pair[0]), default=(0, ""))[1]

    def terms(self) -> dict[str, int]:
        """Return what is to be told to the others: all subjects, with the terms of those that are held."""
        return {subject: self.held.get(subject, 0) for subject in self._subjects}
