"""Asking a group: `request` waits for the answers, a `Requester` is told of them, a `Responder` gives them.

Facts that decide the shape of this package:

* Replies come from single hosts, so a request is sent from an unconnected socket on a port of its own. A socket that
  were connected to the group would hear only what the group itself sends, which is nothing. Any packet that arrives
  at that port is a reply to what was sent from it: the payload needs no header, and programs that know nothing of
  this one can answer.
* A multicast packet leaves by one interface. To ask everybody, the same packet is sent by each. It goes out from one
  socket, so that hosts that hear it twice can tell that it is the same one, and so can we of their replies.
* A reply comes from the address of the interface that the request came in by (packet info in ip(7), RFC 3542), since
  firewalls and address translation expect it from there. It leaves by that interface too, and by default does not
  cross a router.
* The source of a UDP packet is whatever its sender wrote there, so a responder works for whoever forges it. What can
  be had from ours that way is bounded: no reply to an address that is not a single host's or to a port that services
  use, one reply for each request, no longer than fits in any packet, so many a second for each address and so many
  for all of them together. The tables that this takes do not grow with the number of addresses somebody invents.
* Nothing is ever read from the socket that replies are sent from, so no reply causes another.

What has a state over time (`Exchange`, `Allowance`, `Copies`, in `rules`) is written without sockets and clocks.
"""

from __future__ import annotations

from .requesting import Replies, Reply, Requester, request
from .responding import ReplyStatistics, Responder

__all__ = ["Replies", "Reply", "ReplyStatistics", "Requester", "Responder", "request"]
