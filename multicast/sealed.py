"""Sealed packets: only members of a group can read and make them, and each is taken once (extra ``secure``).

A `Seal` holds the key that the members share. A sender has a `Sealer`, and a receiver an `Opener`, each for itself::

    from multicast import sealed

    seal = sealed.Seal.from_file("group.key")
    sealer = seal.sealer()
    multicast.sendto(sealer.seal(b"open the door"), "239.1.2.3", 5000)

    class Door(multicast.MulticastListener):
        opener = seal.opener()

        def handle_packet(self, packet, addr):
            plain = self.opener.open(packet)
            if plain is not None:
                print(plain)

The cryptography is that of the package cryptography: AES-256-GCM or ChaCha20-Poly1305 (RFC 5116, RFC 8439) and HKDF
with SHA-256 (RFC 5869). This module has the format, the sessions and the windows against replay:

====== ===== =====================================================================================
offset bytes
====== ===== =====================================================================================
0      1     version 1 in the upper four bits; the suite in the lower: 1 AES-256-GCM, 2 ChaCha20-Poly1305
1      3     the id of the key, derived from it
4      8     the session, random: of one sealer in one process
12     6     the number of the packet in its session, from 0
18     6     when it was sealed, in milliseconds since 1970 by the sender's clock
24           the payload, encrypted
end    16    the tag, over the header and the payload
====== ===== =====================================================================================

Numbers are big-endian. Each session has its own key, HKDF of the group's key with the session as info, and the number
of the packet is its nonce. So no nonce is used twice under one key, whatever the number of senders, restarts and forks:
a forked child begins a new session, and so does a sealer that has used all numbers.

A receiver accepts each number of a session once, within a window that allows for reordering (RFC 3711 section 3.3.2,
RFC 4303 section 3.4.3), and no packet that was sealed more than `max_age` seconds before or after its own time. Nothing
is remembered of a packet before its tag has been verified.
"""

from __future__ import annotations

import os
import secrets
import stat
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

from .errors import ArgumentError, check_amount, check_number

__all__ = ["OVERHEAD", "SUITES", "Opener", "Rejected", "Seal", "Sealer", "new_key_file"]

_HEADER = struct.Struct(">I8sHIHI")  # version, suite and key; session; number and time, each in two parts
#: How many bytes longer a sealed packet is than what is in it.
OVERHEAD = _HEADER.size + 16
_VERSION = 1
#: The suites by name, with their number in the header.
SUITES = {"aes-256-gcm": 1, "chacha20-poly1305": 2}
_KEY_SIZE = 32
# The last number that a session gives to a packet.
_LAST_NUMBER = (1 << 48) - 1
# How many keys of sessions that are not known are derived a second, and how many at once after a pause. It takes ten
# times as long as opening, so a flood of packets with invented sessions would cost ten times as much as one of others.
_DERIVED, _DERIVED_AT_ONCE = 500.0, 500.0

# Raised in a forked child. A sealer with another number begins a new session.
_generation = 0


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


class Rejected(NamedTuple):
    """How many packets an `Opener` has not opened, by cause."""

    #: Too short, or of another version or suite.
    not_sealed: int = 0
    #: Sealed with a key that is not among the accepted ones.
    unknown_key: int = 0
    #: The tag is wrong.
    forged: int = 0
    #: The number was accepted before.
    replayed: int = 0
    #: Sealed too long before or after the time of this host, below the window, or before its session was forgotten.
    too_old: int = 0
    #: Of a session that is not known, while too many of these came.
    limited: int = 0


class _Secret:
    """A group's key, and what is derived from it."""

    def __init__(self, key: bytes, suite: int) -> None:
        if not isinstance(key, bytes | bytearray) or len(key) != _KEY_SIZE:
            found = f"{len(key)} bytes" if isinstance(key, bytes | bytearray) else type(key).__name__
            raise ArgumentError(f"a key is {_KEY_SIZE} random bytes, not {found}; `new_key_file` makes one")
        self._key = bytes(key)
        self.suite = suite
        #: Version, suite and key as they stand in the header.
        self.first = _VERSION << 28 | suite << 24 | int.from_bytes(self._derive(b"key id", 3), "big")

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
    goes.

    `max_age` is how many seconds the time in a packet may differ from that of this host, either way: clocks of the
    members may differ by that, less the time on the way. With None any time will do; then a packet that was recorded is
    accepted by a receiver that starts later. `window` is how many numbers a packet may be behind the highest one of its
    session, 64 to 65536. `sessions` is how many senders are kept apart.

    Raises `ArgumentError`, and `ModuleNotFoundError` without the package cryptography.

    A seal shows its keys to nobody: it cannot be pickled, and its text does not hold them.
    """

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

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.suite}, key {self._own.first & 0xFFFFFF:06x}>"

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

    #: How many bytes longer a sealed packet is.
    overhead = OVERHEAD

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
        self._session = secrets.token_bytes(8)
        self._encrypt = self._secret.cipher(self._session).encrypt
        self._next = 0

    def seal(self, packet: bytes) -> bytes:
        """Return a packet sealed: its number is given to no other."""
        if self._generation != _generation:
            self._renew()
        with self._lock:
            if self._next > _LAST_NUMBER:
                self._begin_session()
            number = self._next
            self._next = number + 1
            session, encrypt = self._session, self._encrypt
        sealed_at = int(self._clock() * 1000)
        header = _HEADER.pack(
            self._secret.first, session, number >> 32, number & 0xFFFFFFFF, sealed_at >> 32, sealed_at & 0xFFFFFFFF
        )
        sealed: bytes = encrypt(b"\0\0\0\0\0\0" + header[12:18], packet, header)
        return header + sealed


class _Session:
    """What a receiver knows of a sender: its key, and which of its packets have come."""

    __slots__ = ("decrypt", "highest", "latest", "seen")

    def __init__(self, decrypt: Callable[[bytes, bytes, bytes], bytes]) -> None:
        self.decrypt = decrypt
        self.highest = -1
        self.seen = 0  # bit n: the number `highest` - n has come
        self.latest = 0  # the latest time of a packet of it, in milliseconds


class Opener:
    """Opens the packets of a group for one receiver; made by `Seal.opener`.

    The table of sessions is bounded. When a session makes room for another, the time of its last packet is kept, and
    packets of sessions that are not known are accepted only if they were sealed later.
    """

    def __init__(
        self,
        secrets: Iterable[_Secret],
        max_age: float | None,
        window: int,
        sessions: int,
        clock: Callable[[], float],
    ) -> None:
        from cryptography.exceptions import InvalidTag

        self._secrets = {secret.first: secret for secret in secrets}
        self._max_age = None if max_age is None else int(max_age * 1000)
        self._window = window
        self._most = sessions
        self._clock = clock
        self._invalid = InvalidTag
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._forgotten = -1  # the latest time of a packet of a session that has made room
        self._allowance = _DERIVED_AT_ONCE
        self._allowed_at = clock()
        self._rejected = [0] * len(Rejected._fields)

    @property
    def rejected(self) -> Rejected:
        """How many packets were not opened, by cause."""
        return Rejected(*self._rejected)

    def _reject(self, cause: int) -> bytes | None:
        self._rejected[cause] += 1
        return None

    def open(self, packet: bytes) -> bytes | None:
        """Return what is in a sealed packet, or None where it is not to be taken; that is counted with its cause."""
        if len(packet) < OVERHEAD:
            return self._reject(0)
        first, session, number_high, number, time_high, sealed_at = _HEADER.unpack_from(packet)
        number |= number_high << 32
        sealed_at |= time_high << 32
        secret = self._secrets.get(first)
        if secret is None:
            return self._reject(1 if first >> 24 in self._kinds else 0)
        now = self._clock()
        if self._max_age is not None and abs(now * 1000 - sealed_at) > self._max_age:
            return self._reject(4)
        # The key is part of the name: a session under another key is another session.
        name = packet[:12]
        known = self._sessions.get(name)
        if known is None:
            if sealed_at <= self._forgotten:
                return self._reject(4)
            if not self._may_derive(now):
                return self._reject(5)
            state = _Session(secret.cipher(session).decrypt)
        else:
            state = known
            behind = state.highest - number
            if behind >= self._window:
                return self._reject(4)
            if behind >= 0 and state.seen >> behind & 1:
                return self._reject(3)
        header = packet[:24]
        try:
            plain = state.decrypt(b"\0\0\0\0\0\0" + header[12:18], packet[24:], header)
        except self._invalid:
            return self._reject(2)
        # It is genuine: from here on it may change what is remembered.
        if known is None:
            self._remember(name, state)
        ahead = number - state.highest
        if ahead > 0:
            state.seen = (state.seen << ahead | 1) & (1 << self._window) - 1 if ahead < self._window else 1
            state.highest = number
        else:
            state.seen |= 1 << -ahead
        if sealed_at > state.latest:
            state.latest = sealed_at
        return plain

    @property
    def _kinds(self) -> set[int]:
        """Version and suite of the keys that are accepted."""
        return {first >> 24 for first in self._secrets}

    def _may_derive(self, now: float) -> bool:
        self._allowance = min(_DERIVED_AT_ONCE, self._allowance + max(0.0, now - self._allowed_at) * _DERIVED)
        self._allowed_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _remember(self, name: bytes, state: _Session) -> None:
        if len(self._sessions) >= self._most:
            # The one that was begun first: to move each that is heard to the end would cost something for each packet.
            _, oldest = self._sessions.popitem(last=False)
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
        file.write(secrets.token_hex(_KEY_SIZE) + "\n")


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
            f"{os.fspath(path)} holds no key, which is {2 * _KEY_SIZE} hexadecimal digits; `new_key_file` makes one"
        )
    return key
