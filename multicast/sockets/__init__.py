"""Groups, and sockets that are set up for them: the only place that sets socket options.

Facts about Linux that decide what is set, and in which order (ip(7), ipv6(7), socket(7), and measurements):

* By default a socket receives what *any* socket of the host has joined (IP_MULTICAST_ALL). So receivers switch that
  off, and bind to the group: then neither other groups on the port, nor the same group on another interface, nor
  unicast sent to the port comes in. For IPv6 the interface is not looked at all the same; there a program in the
  kernel does it.
* Bound to a group, a socket may share its port with everybody (SO_REUSEADDR and SO_REUSEPORT): each gets its own copy
  of each packet, and there is no unicast to be stolen. Sockets on a host's own address set neither.
* But sockets that are bound with SO_REUSEPORT to one group form a set, and where a packet is for one of them alone, by
  its interface or its source, newer kernels give it to *any* of the set (IPv4, seen on Linux 6.18). So that option is
  set only when the socket is bound, which lets others in and joins no set.
* A socket takes 20 memberships (net.ipv4.igmp_max_memberships). On a host with more interfaces further sockets hold the
  rest, and the receiver gets what any socket of the host has joined for its group: on all interfaces that is the same.
* Joins go by interface index, through requests that are the same for both families (RFC 3678). Addresses change,
  an index stays as long as the interface does.
* TTL 0 does not keep a packet on the host: with no local member on the outgoing interface it goes on the wire. So a
  sender with TTL 0 is pinned to the loopback interface.
* A full transmit queue or a firewall drops silently and reports success, unless IP_RECVERR is set.
* The wire a packet leaves by and the source address it carries are two things, and both have to be said.
"""

from __future__ import annotations

from .choosing import Way, WhichInterface, WhichInterfaces, named, receiving, stranded, ways
from .datagrams import (
    bind_foreign,
    confine,
    crosses_interfaces,
    drops,
    join,
    join_on,
    leave,
    not_sent,
    open_sender,
    open_unicast,
    open_wire,
    overflows,
    pin,
    receive_buffer,
    send_by,
    set_dscp,
    set_up_receiver,
    takes_bursts,
)
from .groups import DEFAULT_IP, DEFAULT_PORT, NAMES, Endpoint, Group, Scope, check_port, check_ttl
from .memberships import Memberships, join_each, open_receiver
from .streams import open_acceptor, open_stream, prepare_stream

__all__ = [
    "DEFAULT_IP",
    "DEFAULT_PORT",
    "NAMES",
    "Endpoint",
    "Group",
    "Memberships",
    "Scope",
    "Way",
    "WhichInterface",
    "WhichInterfaces",
    "bind_foreign",
    "check_port",
    "check_ttl",
    "confine",
    "crosses_interfaces",
    "drops",
    "join",
    "join_each",
    "join_on",
    "leave",
    "named",
    "not_sent",
    "open_acceptor",
    "open_receiver",
    "open_sender",
    "open_stream",
    "open_unicast",
    "open_wire",
    "overflows",
    "pin",
    "prepare_stream",
    "receive_buffer",
    "receiving",
    "send_by",
    "set_dscp",
    "set_up_receiver",
    "stranded",
    "takes_bursts",
    "ways",
]
