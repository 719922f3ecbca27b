"""Sealed packets: only members of a group can read and make them, and each is taken once (extra ``secure``).

A `Seal` holds the key that the members share. Senders and listeners take it as an argument::

    from multicast import sealed

    seal = sealed.Seal.from_file("group.key")
    multicast.sendto("open the door", "239.1.2.3", 5000, seal=seal)

    class Door(multicast.MulticastListener):
        def handle_packet(self, packet, addr):
            print(packet)  # plain; packets that do not open are counted, and do not come here

    Door(ip="239.1.2.3", port=5000, seal=seal)

Other programs use a `Sealer` for each sender and an `Opener` for each receiver.

The cryptography is that of the package cryptography: AES-256-GCM or ChaCha20-Poly1305 (RFC 5116, RFC 8439) and HKDF
with SHA-256 (RFC 5869). This module has the format, the sessions and the windows against replay:

====== ===== =====================================================================================
offset bytes
====== ===== =====================================================================================
0      1     version 1 in the upper four bits; in the lower the suite, 1 AES-256-GCM,
             2 ChaCha20-Poly1305, and 8 more for a reply
1      3     the id of the key, derived from it
4      8     the session, random: of one sealer in one process
12     6     the number of the packet in its session, from 0
18     6     when it was sealed, in milliseconds since 1970 by the sender's clock; in a reply the
             number of the request
24           the payload, encrypted
end    16    the tag, over the header and the payload; in a reply over the session of the request
             as well
====== ===== =====================================================================================

Numbers are big-endian. Each session has its own key, HKDF of the group's key with the session as info. The nonce is
bytes 12 to 24 of the header, which begin with the number of the packet. So no nonce is used twice under one key,
whatever the number of senders, restarts and forks: a forked child begins a new session, and so does a sealer that has
used all numbers.

A receiver accepts each number of a session once, within a window that allows for reordering (RFC 3711 section 3.3.2,
RFC 4303 section 3.4.3), and no packet that was sealed more than `max_age` seconds before or after its own time. A reply
is accepted for a request of the receiver alone, and so needs no time. Nothing is remembered of a packet before its tag
has been verified.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from .batch import encode
from .errors import ArgumentError, check_amount, check_number

__all__ = ["OVERHEAD", "SUITES", "Header", "Opener", "Rejected", "Seal", "Sealer", "header", "new_key_file"]

_HEADER = 24
#: How many bytes longer a sealed packet is than what is in it.
OVERHEAD = _HEADER + 16
_VERSION = 1
#: The suites by name, with their number in the header.
SUITES = {"aes-256-gcm": 1, "chacha20-poly1305": 2}
# What a reply has in the first byte of its header besides.
_REPLY = 8
_KEY_SIZE = 32
# In the nonce, 12 bytes, the number of the packet stands above the time, which has these bits.
_LOW = (1 << 48) - 1
_STEP = 1 << 48
_NO_NUMBER = 1 << 96
# How many keys of sessions that are not known are derived a second, once as many as the table holds were derived at
# once. It takes ten times as long as opening, so a flood of packets with invented sessions would cost ten times as much
# as one of others.
_DERIVED = 500.0

# Raised in a forked child. A sealer with another number begins a new session.
_generation = 0


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


class Rejected(NamedTuple):
    """How many packets an `Opener` has not opened, by cause."""

    #: Too short, or of another version or suite; a reply where none is awaited, and a packet where replies are.
    not_sealed: int = 0
    #: Sealed with a key that is not among the accepted ones.
    unknown_key: int = 0
    #: The tag is wrong.
    forged: int = 0
    #: The number was accepted before.
    replayed: int = 0
    #: Sealed too long before or after the time of this host, below the window, or before its session was forgotten; a
    #: reply to a request that is not waited for.
    too_old: int = 0
    #: Of a session that is not known, while too many of these came.
    limited: int = 0
    #: Longer than the receiver's `mtu`, and so without its tag.
    cut: int = 0


_NOT_SEALED, _UNKNOWN_KEY, _FORGED, _REPLAYED, _TOO_OLD, _LIMITED, _CUT = range(len(Rejected._fields))


class _Secret:
    """A group's key, and what is derived from it."""

    def __init__(self, key: bytes, suite: int) -> None:
        if not isinstance(key, bytes | bytearray) or len(key) != _KEY_SIZE:
            found = f"{len(key)} bytes" if isinstance(key, bytes | bytearray) else type(key).__name__
            raise ArgumentError(
                f"a key is {_KEY_SIZE} random bytes, not {found}; `multicast key FILE` makes one, and Seal.from_file"
                " reads it"
            )
        self._key = bytes(key)
        self.suite = suite
        key_id = self._derive(b"key id", 3)
        #: How the header of a packet begins, and that of a reply: version, suite and key.
        self.packet = bytes((_VERSION << 4 | suite,)) + key_id
        self.reply = bytes((_VERSION << 4 | _REPLY | suite,)) + key_id

    def _derive(self, info: bytes, length: int) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        salt = b"multicast sealed 1, suite %d" % self.suite
        return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(self._key)

    def cipher(self, session: bytes) -> Any:
        """Return what seals and opens the packets of a session."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

        key = self._derive(b"session" + session, _KEY_SIZE)
        return AESGCM(key) if self.suite == SUITES["aes-256-gcm"] else ChaCha20Poly1305(key)


class Seal:
    """The key of a group, and how packets are sealed with it.

    `key` is 32 random bytes, which all members have. `suite` is ``aes-256-gcm`` or ``chacha20-poly1305``; both ends
    must have the same, as nothing is negotiated. `accept` are further keys whose packets are opened, so that keys can
    be changed without a break: first every receiver accepts the new one, then the senders use it, then the old one
    is dropped.

    `max_age` is how many seconds the time in a packet may differ from that of this host, either way: clocks of the
    members may differ by that, less the time on the way. With None any time is accepted; then a receiver that starts
    later accepts a packet that was recorded. `window` is how many numbers a packet may be behind the highest one of its
    session, 64 to 65536; a session takes as many bytes of memory. `sessions` is how many senders are kept apart.

    Raises `ArgumentError`, and `ModuleNotFoundError` without the package cryptography.

    The text of a seal does not hold its keys, and it cannot be pickled.
    """

    #: How many bytes longer a sealed packet is.
    overhead = OVERHEAD

    def __init__(
        self,
        key: bytes,
        *,
        suite: str = "aes-256-gcm",
        accept: Iterable[bytes] = (),
        max_age: float | None = 30.0,
        window: int = 1024,
        sessions: int = 1024,
    ) -> None:
        try:
            import cryptography  # noqa: F401 -- to be known here, and not at the first packet
        except ModuleNotFoundError as error:
            error.add_note('sealed packets need cryptography: pip install "multicast-poller[secure]"')
            raise
        if suite not in SUITES:
            raise ArgumentError(f"suite is one of {', '.join(SUITES)}, not {suite!r}")
        if max_age is not None:
            check_amount("max_age", max_age, "seconds", zero=False)
        self.suite = suite
        self.max_age = max_age
        self.window = check_number("window", window, 64, 65536)
        self.sessions = check_number("sessions", sessions)
        self._own = _Secret(key, SUITES[suite])
        self._accepted = [self._own, *(_Secret(one, SUITES[suite]) for one in accept)]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Return a seal with the key in a file that `new_key_file` has made.

        The keywords are those of `Seal`. Raises `ArgumentError` for a file that others than its owner can read, or that
        holds no key, and `OSError`.
        """
        return cls(read_key_file(path), **options)

    @property
    def key_id(self) -> str:
        """The id of the key, which is in the header of each packet: 6 hexadecimal digits."""
        return self._own.packet[1:].hex()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.suite}, key {self.key_id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Seal is not pickled, as its key would be in the clear; make it again from its key file")

    def sealer(self, clock: Callable[[], float] = time.time) -> Sealer:
        """Return what seals the packets of one sender. `clock` gives the seconds since 1970."""
        return Sealer(self._own, clock)

    def opener(self, clock: Callable[[], float] = time.time) -> Opener:
        """Return what opens packets for one receiver. `clock` gives the seconds since 1970."""
        return Opener(self._accepted, self.max_age, self.window, self.sessions, clock)


class Sealer:
    """Seals the packets of one sender; made by `Seal.sealer`. Threads may share it."""

    def __init__(self, secret: _Secret, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock
        self._renew()

    def _renew(self) -> None:
        # In a forked child the old lock may be held by a thread that is not there.
        self._lock = threading.Lock()
        self._generation = _generation
        self._begin_session()

    def _begin_session(self) -> None:
        session = os.urandom(8)
        encrypt = self._secret.cipher(session).encrypt
        self._state: tuple[bytes, bytes, Callable[..., bytes]] = self._secret.packet + session, session, encrypt
        self._next = 0  # the next number, where it stands in the nonce

    def _number(self) -> tuple[int, bytes, Callable[..., bytes]]:
        """Return the next number, where it stands in the nonce, and its session: for replies, which are seldom."""
        if self._generation != _generation:
            self._renew()
        with self._lock:
            number = self._next
            if number >= _NO_NUMBER:
                self._begin_session()
                number = 0
            self._next = number + _STEP
            _, session, encrypt = self._state
        return number, session, encrypt

    def seal(self, packet: bytes) -> bytes:
        """Return a packet sealed: its number is given to no other."""
        return self.encode(packet, sys.maxsize)

    def encode(self, packet: object, longest: int = 65507) -> bytes:
        """Return `packet`, bytes-like or text, sealed, as `batch.encode` returns it plain.

        Raises `PacketTypeError`, and `PacketSizeError` for a packet that is longer than `longest` bytes when sealed.
        """
        if type(packet) is not bytes or len(packet) + OVERHEAD > longest:
            packet = encode(packet, longest, OVERHEAD)
        if self._generation != _generation:
            self._renew()
        now = int(self._clock() * 1000)
        with self._lock:
            number = self._next
            self._next = number + _STEP
            head, _, encrypt = self._state
        try:
            nonce = (number | now).to_bytes(12, "big")
        except OverflowError:  # the numbers of the session are used up
            number, session, encrypt = self._number()
            head, nonce = self._secret.packet + session, (number | now).to_bytes(12, "big")
        header = head + nonce
        return header + encrypt(nonce, packet, header)

    def seal_reply(self, packet: bytes, request: bytes) -> bytes:
        """Return the reply to a request, sealed so that the sender of the request alone accepts it, and for it alone.

        `request` is what `reference` returned for the sealed request.
        """
        number, session, encrypt = self._number()
        nonce = number.to_bytes(12, "big")[:6] + request[8:]
        header = self._secret.reply + session + nonce
        return header + encrypt(nonce, packet, header + request[:8])


class Header(NamedTuple):
    """What the header of a sealed packet says; nothing of it is verified."""

    #: The id of the key, 6 hexadecimal digits.
    key_id: str
    #: When it was sealed, in seconds since 1970 by the sender's clock.
    sealed_at: float


def header(packet: bytes) -> Header | None:
    """Return the header of a packet that looks sealed, of which the first 40 bytes are enough, or None.

    A payload that happens to begin so passes as well: one in 128 does, if its bytes are random.
    """
    if len(packet) < OVERHEAD or packet[0] >> 4 != _VERSION or packet[0] & 15 not in SUITES.values():
        return None
    return Header(packet[1:4].hex(), int.from_bytes(packet[18:_HEADER], "big") / 1000)


def reference(packet: bytes) -> bytes:
    """Return what a reply to this sealed packet refers to it by: its session and number, 14 bytes."""
    return packet[4:18]


class _Session:
    """What a receiver knows of a sender: its key, and which of its packets have come."""

    __slots__ = ("decrypt", "highest", "latest", "seen")

    def __init__(self, decrypt: Callable[[bytes, bytes, bytes], bytes], window: int) -> None:
        self.decrypt = decrypt
        self.highest = -1
        self.seen = bytearray(window)  # 1 at the remainder of each number that has come
        self.latest = 0  # the latest time of a packet of it, in milliseconds

    def refused(self, number: int) -> int | None:
        """Return why a packet with this number is not accepted: it is below the window, or has come; or None."""
        window = len(self.seen)
        if self.highest - number >= window:
            return _TOO_OLD
        return _REPLAYED if number <= self.highest and self.seen[number % window] else None

    def note(self, number: int) -> None:
        """Note that a number has come, which is not below the window."""
        seen = self.seen
        window = len(seen)
        ahead = number - self.highest
        if ahead > 0:
            if ahead > window:
                seen[:] = bytes(window)
            elif ahead > 1:
                # The numbers in between have not come.
                first, last = (self.highest + 1) % window, number % window
                if first <= last:
                    seen[first:last] = bytes(last - first)
                else:
                    seen[first:] = bytes(window - first)
                    seen[:last] = bytes(last)
            self.highest = number
        seen[number % window] = 1


class Opener:
    """Opens the packets of a group for one receiver; made by `Seal.opener`. One thread uses it at a time.

    The table of sessions is bounded. When a session makes room for another, the time of its last packet is kept, and
    packets of sessions that are not known are accepted only if they were sealed later.
    """

    #: How many bytes longer a sealed packet is.
    overhead = OVERHEAD

    def __init__(
        self,
        secrets: Iterable[_Secret],
        max_age: float | None,
        window: int,
        sessions: int,
        clock: Callable[[], float],
    ) -> None:
        from cryptography.exceptions import InvalidTag

        secrets = list(secrets)
        self._of_packets = {secret.packet: secret for secret in secrets}
        self._of_replies = {secret.reply: secret for secret in secrets}
        self._max_age = None if max_age is None else int(max_age * 1000)
        self._window = window
        self._most = sessions
        self._clock = clock
        self._invalid = InvalidTag
        self._sessions: dict[bytes, _Session] = {}
        self._forgotten = -1  # the latest time of a packet of a session that has made room
        self._at_once = self._allowance = float(sessions)
        self._allowed_at = clock()
        self._rejected = [0] * len(Rejected._fields)

    @property
    def rejected(self) -> Rejected:
        """How many packets were not opened, by cause."""
        return Rejected(*self._rejected)

    def _reject(self, cause: int) -> bytes | None:
        self._rejected[cause] += 1
        return None

    def reject_cut(self, count: int) -> None:
        """Count packets that the receiver has cut, so that they cannot be opened."""
        self._rejected[_CUT] += count

    def open(self, packet: bytes) -> bytes | None:
        """Return what is in a sealed packet, or None where it is not accepted; that is counted with its cause."""
        return self.open_all((packet,))[0]

    def open_all(self, packets: Iterable[bytes]) -> list[bytes | None]:
        """Return what `open` returns for each of `packets`, which takes less time for many."""
        now = self._clock()
        find, window, from_bytes = self._sessions.get, self._window, int.from_bytes
        if self._max_age is None:
            oldest, newest = 0, _LOW
        else:
            oldest, newest = int(now * 1000) - self._max_age, int(now * 1000) + self._max_age
        opened: list[bytes | None] = []
        put = opened.append
        for packet in packets:
            # The key is part of the name: a session under another key is another session.
            state = find(packet[:12])
            nonce = packet[12:_HEADER]
            number = from_bytes(nonce, "big")
            sealed_at = number & _LOW
            number >>= 48
            known = state is not None
            if state is None or len(packet) < OVERHEAD:
                cause = self._kind(packet, self._of_packets)
                if cause is None and not self._forgotten < sealed_at:
                    cause = _TOO_OLD
                if cause is not None:
                    opened.append(self._reject(cause))
                    continue
            if not oldest <= sealed_at <= newest:
                opened.append(self._reject(_TOO_OLD))
                continue
            if state is None:
                state = self._begin(self._of_packets, packet[:12], now)
                if state is None:
                    opened.append(self._reject(_LIMITED))
                    continue
            elif number <= state.highest:
                cause = state.refused(number)
                if cause is not None:
                    opened.append(self._reject(cause))
                    continue
            try:
                plain = state.decrypt(nonce, packet[_HEADER:], packet[:_HEADER])
            except self._invalid:
                opened.append(self._reject(_FORGED))
                continue
            # It is genuine: from here on it may change what is remembered.
            if not known:
                self._remember(packet[:12], state)
            if number == state.highest + 1:
                state.highest = number
                state.seen[number % window] = 1
            else:
                state.note(number)
            if sealed_at > state.latest:
                state.latest = sealed_at
            put(plain)
        return opened

    def open_reply(self, packet: bytes, requests: Mapping[bytes, bytes]) -> bytes | None:
        """Return what is in a reply to one of `requests`, or None where it is not accepted; that is counted.

        `requests` gives the session, 8 bytes, of each request that is waited for, by its number, 6 bytes: the two parts
        of its `reference`.
        """
        cause = self._kind(packet, self._of_replies)
        if cause is not None:
            return self._reject(cause)
        asked = requests.get(packet[18:_HEADER])
        if asked is None:
            return self._reject(_TOO_OLD)
        name = packet[:12]
        number = int.from_bytes(packet[12:18], "big")
        state = self._sessions.get(name)
        known = state is not None
        if state is None:
            state = self._begin(self._of_replies, name, self._clock())
            if state is None:
                return self._reject(_LIMITED)
        elif (cause := state.refused(number)) is not None:
            return self._reject(cause)
        try:
            plain = state.decrypt(packet[12:_HEADER], packet[_HEADER:], packet[:_HEADER] + asked)
        except self._invalid:
            return self._reject(_FORGED)
        if not known:
            self._remember(name, state)
        state.note(number)
        return plain

    def _kind(self, packet: bytes, wanted: Mapping[bytes, _Secret]) -> int | None:
        """Return why a packet is none of those sealed with one of `wanted`, or None."""
        if len(packet) < OVERHEAD:
            return _NOT_SEALED
        if packet[:4] in wanted:
            return None
        return _UNKNOWN_KEY if packet[0] in {head[0] for head in wanted} else _NOT_SEALED

    def _begin(self, secrets: Mapping[bytes, _Secret], name: bytes, now: float) -> _Session | None:
        """Return the session of this name, not remembered yet; None while too many are begun."""
        self._allowance = min(self._at_once, self._allowance + max(0.0, now - self._allowed_at) * _DERIVED)
        self._allowed_at = now
        if self._allowance < 1:
            return None
        self._allowance -= 1
        return _Session(secrets[name[:4]].cipher(name[4:]).decrypt, self._window)

    def _remember(self, name: bytes, state: _Session) -> None:
        if len(self._sessions) >= self._most:
            # The one that was begun first: to move each that is heard to the end would cost something for each packet.
            oldest = self._sessions.pop(next(iter(self._sessions)))
            self._forgotten = max(self._forgotten, oldest.latest)
        self._sessions[name] = state


# -- key files -----------------------------------------------------------------------------------------------------


def new_key_file(path: str | os.PathLike[str]) -> None:
    """Make a new key and write it to a file that only its owner can read: 64 hexadecimal digits and a line feed.

    Raises `OSError`, also where the file exists.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        os.fchmod(fd, 0o600)  # whatever the umask
        file.write(os.urandom(_KEY_SIZE).hex() + "\n")


def read_key_file(path: str | os.PathLike[str]) -> bytes:
    """Return the key in a file. Raises `ArgumentError` if others can read it or it holds none, and `OSError`."""
    with open(path, encoding="ascii", errors="replace") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & 0o077:
            raise ArgumentError(
                f"{os.fspath(path)} can be read or changed by others than its owner, so the key is not safe:"
                f" chmod 600 {os.fspath(path)}"
            )
        text = file.read(1024).strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_SIZE:
        raise ArgumentError(
            f"{os.fspath(path)} holds no key, which is {2 * _KEY_SIZE} hexadecimal digits; `multicast key FILE` makes"
            " one"
        )
    return key
