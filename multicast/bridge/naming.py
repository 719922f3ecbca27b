"""Subjects of groups, and the header of a message: text and values only, without I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from multicast.batch import Address
from multicast.errors import ArgumentError
from multicast.sockets import Group

__all__ = [
    "HEADER",
    "Link",
    "Origin",
    "check_prefix",
    "check_site",
    "header_head",
    "heard_text",
    "parse_head",
    "parse_header",
    "subject_of",
]

#: The name of the header that each message has.
HEADER = "Multicast"

#: The version of the header.
_VERSION = "1"
_DIRECTIONS = ("both", "in", "out")
# A site and a prefix are tokens of subjects; NATS allows more, and some of it is trouble in shells and consoles.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}(?:\.[A-Za-z0-9_-]{1,64}){0,7}")
_LONGEST = 400  # of a header that is taken apart


class Link(NamedTuple):
    """One group of this site and what it is connected with.

    `group` is the group of this network. `remote` is the group whose subject the packets cross under, by default the
    same. `direction` is ``both``, ``out`` (from this network alone) or ``in`` (to this network alone).
    """

    group: Group
    remote: Group
    direction: str = "both"

    @classmethod
    def of(cls, group: str | Group, remote: str | Group | None = None, direction: str = "both") -> Link:
        """Make one of groups as text or as `Group`. Raises `GroupError` and `ArgumentError`."""
        local = group if isinstance(group, Group) else Group.parse(group)
        far = local if remote is None else remote if isinstance(remote, Group) else Group.parse(remote)
        if direction not in _DIRECTIONS:
            raise ArgumentError(f"the direction of {local} is both, in or out, not {direction!r}")
        return cls(local, far, direction)

    @property
    def outward(self) -> bool:
        """Whether packets of this network are published."""
        return self.direction != "in"

    @property
    def inward(self) -> bool:
        """Whether packets of other sites are injected here."""
        return self.direction != "out"


def check_site(site: object) -> str:
    """Return `site` when it can be part of a subject. Raises `ArgumentError`."""
    if not isinstance(site, str) or not _TOKEN.fullmatch(site):
        raise ArgumentError(f"site is a name of letters, digits, - and _, 64 at most, not {site!r}")
    return site


def check_prefix(name: str, prefix: object) -> str:
    """Return the argument `name` when it can begin a subject. Raises `ArgumentError`."""
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ArgumentError(f"{name} is made of letters, digits, - and _, with dots between parts, not {prefix!r}")
    return prefix


def subject_of(group: Group, prefix: str = "multicast") -> str:
    """Return the subject of a group: prefix, address with dashes, port.

    >>> subject_of(Group("239.1.2.3", 5000)), subject_of(Group("ff15::1:2", 5000))
    ('multicast.239-1-2-3.5000', 'multicast.ff15--1-2.5000')
    """
    return f"{prefix}.{group.address.replace('.', '-').replace(':', '-')}.{group.port}"


class Origin(NamedTuple):
    """What the header of a message says of its packet."""

    #: The site it was heard at.
    site: str
    #: The session of the bridge that heard it.
    session: str
    #: Which bridge of a site may publish: of two, the one whose lease has the higher number.
    term: int
    #: The number of the message: of one subject and session, from 1.
    number: int
    #: The address and the port it was sent from.
    host: str
    port: int
    #: Its TTL or hop limit when it was heard; None where the kernel did not tell.
    ttl: int | None
    #: When it was heard, in nanoseconds since 1970, by the clock of the bridge's host.
    time: int


def header_head(site: str, session: str, term: int) -> str:
    """Return the first part of a header; the number of the message follows, a space, and what `heard_text` returns."""
    return f"{_VERSION} {site} {session} {term} "


def heard_text(addr: Address) -> str:
    """Return the part of a header that is known when a packet is heard."""
    host, port = addr[0], addr[1]
    ttl = addr.ttl
    return f"{host} {port} {'-' if ttl is None else ttl} {addr.timestamp or 0}"


def parse_head(text: str | None) -> tuple[str, str, int, int] | None:
    """Return what a header says first: site, session, term and number; None where it is not one of a bridge.

    The rest, which is only shown, is not looked at.
    """
    if text is None or len(text) > _LONGEST:
        return None
    try:
        version, site, session, term, number, _ = text.split(" ", 5)
        if version == _VERSION:
            return site, session, int(term), int(number)
    except ValueError:
        pass
    return None


def parse_header(text: str | None) -> Origin | None:
    """Return what a header says; None where it is not one that a bridge has written."""
    head = parse_head(text)
    if head is None or text is None or not _TOKEN.fullmatch(head[0]):
        return None
    try:
        host, port, ttl, time = text.split(" ", 5)[5].split(" ")
        return Origin(*head, host, int(port), None if ttl == "-" else int(ttl), int(time))
    except ValueError:
        return None
