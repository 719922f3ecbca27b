"""What can go wrong, in words.

The tree is short, and every class is also the built-in exception a caller would catch anyway::

    MulticastError
     +-- ArgumentError      ValueError             a TTL, port, size or limit out of range
     |    +-- GroupError                           not a group, or not written as one
     |    +-- FilterError                          a filter that cannot be used
     |    +-- PacketSizeError                      more bytes than a datagram holds
     +-- PacketTypeError    TypeError              a packet neither bytes nor text
     +-- InterfaceError     LookupError            no such interface, or no usable one
     +-- RegistrationError  TypeError, ValueError  an object that cannot be polled
     +-- FrameError         ValueError             a stream that breaks its framing
     +-- PeerTimeout        TimeoutError           a peer too slow, or silent too long
     +-- CaptureError       ValueError             a capture file that cannot be read
     +-- NoReply            TimeoutError           nobody answered in time

An `OSError` from the kernel is never wrapped: it keeps its class, its errno and its traceback, and `advise`
adds a note (`BaseException.add_note`) that says what the error means for this operation and what to do.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "ArgumentError",
    "CaptureError",
    "FilterError",
    "FrameError",
    "GroupError",
    "InterfaceError",
    "MulticastError",
    "NoReply",
    "PacketSizeError",
    "PacketTypeError",
    "PeerTimeout",
    "RegistrationError",
    "advise",
    "check_amount",
    "check_number",
]


class MulticastError(Exception):
    """The root of everything this package raises on its own account."""


class ArgumentError(MulticastError, ValueError):
    """An argument is outside its range; the message names it and shows its value."""


def check_seal(seal: object) -> None:
    """Raise `ArgumentError` unless `seal` is a `sealed.Seal` or None."""
    if seal is not None and not hasattr(seal, "sealer"):
        raise ArgumentError(f"seal is a multicast.sealed.Seal, made of a key, not {type(seal).__name__}")


def check_number(name: str, value: object, least: int = 1, most: int | None = None, *, of: str = "") -> int:
    """Return the argument `name` when it is a whole number from `least` to `most`, None meaning any.

    `of` says what it is a number of. Raises `ArgumentError`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        unit = f" of {of}" if of else ""
        if most is None:
            raise ArgumentError(f"{name} must be a number{unit}, {least} or more, not {value!r}")
        raise ArgumentError(f"{name} must be a number{unit} from {least} to {most}, not {value!r}")
    return value


def check_amount(name: str, value: object, of: str, *, zero: bool = True) -> float:
    """Return the argument `name` when it is 0 or more, or with `zero` False more than 0; `of` is its unit.

    Raises `ArgumentError`.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and (value > 0 or (zero and value == 0)):
        return value
    if zero:
        raise ArgumentError(f"{name} must be 0 or more {of}, not {value!r}")
    raise ArgumentError(f"{name} must be more than 0 {of}, not {value!r}")


class GroupError(ArgumentError):
    """The text or address does not name a multicast group (RFC 5771, RFC 4291 section 2.7)."""


class FilterError(ArgumentError):
    """The filter is neither a callable nor a regular expression, or does not compile."""


class PacketSizeError(ArgumentError):
    """The packet is longer than one UDP datagram can be."""


class PacketTypeError(MulticastError, TypeError):
    """The packet is neither bytes-like nor text."""


class InterfaceError(MulticastError, LookupError):
    """There is no such network interface, or none that can do what was asked."""


class RegistrationError(MulticastError, TypeError, ValueError):
    """The object cannot be driven by a poller; nothing was registered."""


class FrameError(MulticastError, ValueError):
    """A peer sent bytes that do not keep to the framing of its stream."""


class PeerTimeout(MulticastError, TimeoutError):
    """The peer of a stream takes what is sent to it too slowly, or has said nothing for too long."""


class CaptureError(MulticastError, ValueError):
    """A capture file is malformed, cut short or of an unknown kind; the message gives the offset in bytes."""


class BridgeError(MulticastError, ConnectionError):
    """The server of a bridge refuses it."""


class NoReply(MulticastError, TimeoutError):
    """No reply came within the time given."""


class MessagesLost(MulticastError, LookupError):
    """Messages of a feed will not come any more: `count` of them, from number `first` on, for `cause`."""

    def __init__(self, text: str, first: int = 0, count: int = 0, cause: str = "") -> None:
        super().__init__(text)
        self.first = first
        self.count = count
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        return MessagesLost, (str(self), self.first, self.count, self.cause)


_SYSCTL = "/proc/sys/"

# (operation, errno) -> what it means and what to do. `{name}` is filled from the context given to `advise`;
# `{sysctl:path}` from the running kernel. Meanings: ip(7), ipv6(7), udp(7), packet(7), epoll_ctl(2).
_ADVICE: dict[tuple[str, int], str] = {
    ("join", errno.ENODEV): (
        "The kernel knows no interface for {group}. Interfaces there are: {interfaces}. Name one of them with"
        " interface=."
    ),
    ("join", errno.ENOBUFS): (
        "The limit of memberships or sources is reached: net.ipv4.igmp_max_memberships is"
        " {sysctl:net/ipv4/igmp_max_memberships} groups for each socket, net.ipv4.igmp_max_msf is"
        " {sysctl:net/ipv4/igmp_max_msf} sources for each group, net.ipv6.mld_max_msf is {sysctl:net/ipv6/mld_max_msf}."
        " Raise it (sysctl -w), or use fewer interfaces or sources in one listener."
    ),
    ("join", errno.EADDRINUSE): "This socket has joined {group} on that interface already.",
    ("join", errno.EADDRNOTAVAIL): (
        "{group} cannot be joined there: the interface has no {family} address, or {family} is switched off on it."
    ),
    ("join", errno.EINVAL): "The kernel refuses this pair of group and source; both must be of one family.",
    ("bind", errno.EADDRINUSE): (
        "Another program holds port {port} and does not share it. It would have to set SO_REUSEADDR and SO_REUSEPORT"
        " before it binds. `ss -ulnp 'sport = :{port}'` shows which one; stop it, or use another port."
    ),
    ("bind", errno.EADDRNOTAVAIL): (
        "{address} is not an address of this host; addresses there are: {interfaces}. Give one of them as source_ip=."
    ),
    ("bind", errno.EACCES): "Ports below 1024 need root or CAP_NET_BIND_SERVICE. Use a port from 1024 on.",
    ("bind", errno.EINVAL): "The address needs an interface: a link-local group is bound on one interface only.",
    ("source", errno.EPERM): (
        "Sending from {address}, which may not be an address of this host, needs root or CAP_NET_ADMIN."
    ),
    ("open", errno.EMFILE): (
        "This process has reached its limit of open descriptors (ulimit -n). Close listeners that are no longer"
        " needed, or raise the limit."
    ),
    ("open", errno.ENFILE): "The whole system has reached its limit of open files (fs.file-max).",
    ("open", errno.EAFNOSUPPORT): "This kernel has no {family}.",
    ("send", errno.ENETUNREACH): (
        "This host has no route to {address}. Name the interface to send by with interface=; if it was named, see that"
        " it is up and has an address; or add a route: {route}."
    ),
    ("send", errno.EHOSTUNREACH): "{address} cannot be reached from this host.",
    ("send", errno.ENETDOWN): "The interface is down. Bring it up: ip link set dev INTERFACE up.",
    ("send", errno.ENODEV): "The interface is gone. Interfaces there are: {interfaces}.",
    ("send", errno.ENXIO): "The interface is gone. Interfaces there are: {interfaces}.",
    ("send", errno.EADDRNOTAVAIL): "The source address is gone from this host. Addresses there are: {interfaces}.",
    ("send", errno.EMSGSIZE): (
        "The packet does not fit: an IPv4 datagram carries at most 65507 bytes, an IPv6 one 65527; 1472 and 1452 avoid"
        " fragments on Ethernet."
    ),
    ("send", errno.ENOBUFS): (
        "The queue of the outgoing interface is full and stayed full. Send more slowly (rate=, interval=), or make"
        " the queue longer: ip link set dev INTERFACE txqueuelen N."
    ),
    ("send", errno.EPERM): (
        "A local firewall rule drops this packet. `nft list ruleset` or `iptables -L -n` (as root) shows which."
    ),
    ("send", errno.EACCES): "{address} is a broadcast address; this library sends to groups and single hosts only.",
    ("send", errno.EINVAL): "The kernel refuses {address} as a destination; port 0 cannot be sent to.",
    ("send", errno.ECONNREFUSED): "No program listens at {address}; its host said so.",
    ("accept", errno.EADDRINUSE): (
        "Another program listens at port {port}. `ss -tlnp 'sport = :{port}'` shows which one; stop it, or use another"
        " port."
    ),
    ("accept", errno.EADDRNOTAVAIL): (
        "{address} is not an address of this host; addresses there are: {interfaces}. 0.0.0.0 and :: mean all of them."
    ),
    ("accept", errno.EACCES): "Ports below 1024 need root or CAP_NET_BIND_SERVICE. Use a port from 1024 on.",
    ("connect", errno.ECONNREFUSED): "No program listens at {address}. Start it first, or check address and port.",
    ("connect", errno.ETIMEDOUT): "{address} does not answer. Check the address, and firewalls on the way.",
    ("connect", errno.ENETUNREACH): "This host has no route to {address}.",
    ("connect", errno.EHOSTUNREACH): "{address} cannot be reached from this host.",
    ("stream", errno.ECONNRESET): "{address} has broken the connection off; what it had not read yet is lost.",
    ("stream", errno.EPIPE): "{address} has closed the connection; what it had not read yet is lost.",
    ("stream", errno.ETIMEDOUT): "{address} does not answer any more.",
    ("register", errno.EPERM): (
        "This kind of file cannot be polled; epoll takes sockets, pipes and the like, not regular files."
    ),
    ("register", errno.EBADF): "The descriptor is closed already.",
    ("register", errno.EEXIST): "Another object is registered with the same descriptor: {other}. Unregister it first.",
    ("register", errno.ELOOP): "Pollers cannot be registered in a circle.",
    ("register", errno.EINVAL): "A poller cannot be registered with itself.",
    ("register", errno.ENOSPC): "The limit of watched descriptors is reached: fs.epoll.max_user_watches.",
}


def _sysctl(path: str) -> str:
    try:
        with open(_SYSCTL + path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


class _Context(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"the {key}"


def advise(error: OSError, operation: str, **context: object) -> OSError:
    """Add to `error` what it means for `operation` and what to do about it; return the same error.

    `operation` is one of ``open bind source join leave send receive accept connect stream register``. `context`
    fills the names in the text. An error the table does not know is returned as it came.
    """
    text = _ADVICE.get((operation, error.errno or 0))
    if text is None:
        return error
    while "{sysctl:" in text:
        before, _, rest = text.partition("{sysctl:")
        path, _, after = rest.partition("}")
        text = before + _sysctl(path) + after
    words = _Context({name: str(value) for name, value in context.items()})
    error.add_note(text.format_map(words))
    return error


def describe(error: BaseException) -> str:
    """Return `error` as one line for a person: what happened, then, as sentences, the notes that say what to do."""
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{os.strerror(error.errno)} (errno {error.errno}, {errno.errorcode.get(error.errno, '?')})"
        if error.filename:
            text = f"{error.filename}: {text}"
    elif isinstance(error, LookupError) and error.args:
        text = str(error.args[0])
    else:
        text = str(error) or type(error).__name__
    for note in getattr(error, "__notes__", ()):
        end = "" if text.endswith((".", "!", "?", ":")) else "."
        text = f"{text}{end} {note}"
    return text
