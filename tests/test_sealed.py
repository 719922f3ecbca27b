"""Sealed packets: the format, sessions, windows against replay, and keys."""

from __future__ import annotations

import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multicast
from multicast import ArgumentError

pytest.importorskip("cryptography", reason="cryptography is not installed")

from multicast import sealed
from multicast.sealed import OVERHEAD, Opener, Rejected, Seal

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
SUITES = pytest.mark.parametrize("suite", sealed.SUITES)


def opened(opener: Opener, packets: list[bytes]) -> list[bytes | None]:
    return [opener.open(packet) for packet in packets]


@SUITES
@pytest.mark.parametrize("plain", [b"", b"x", bytes(1400), os.urandom(65000)], ids=len)
def test_what_is_sealed_is_opened(suite: str, plain: bytes) -> None:
    seal = Seal(KEY, suite=suite)
    packet = seal.sealer().seal(plain)
    assert len(packet) == len(plain) + OVERHEAD == len(plain) + 40
    assert len(plain) < 16 or plain not in packet
    opener = seal.opener()
    assert opener.open(packet) == plain
    assert opener.rejected == Rejected()


def test_a_known_packet_is_made_with_cryptography_alone() -> None:
    """The format as the module's text has it, written down a second time."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derive(info: bytes, length: int) -> bytes:
        return HKDF(SHA256(), length, b"multicast sealed 1, suite 1", info).derive(KEY)

    session, number, time = bytes(range(100, 108)), 0x010203040506, 1_700_000_000_123
    header = b"\x11" + derive(b"key id", 3) + session + number.to_bytes(6, "big") + time.to_bytes(6, "big")
    key = derive(b"session" + session, 32)
    packet = header + AESGCM(key).encrypt(header[12:], b"open the door", header)
    assert Seal(KEY).opener(lambda: time / 1000).open(packet) == b"open the door"


def test_a_packet_that_was_made_elsewhere_is_opened() -> None:
    # By `openssl kdf` (HKDF) and `openssl enc` (AES in CTR and ECB mode), GHASH by hand after NIST SP 800-38D.
    assert Seal(KEY).opener(lambda: 1_700_000_000.5).open(VECTOR) == b"open the door"


VECTOR = bytes.fromhex(
    "1127111aa1a2a3a4a5a6a7a8000000000007018bcfe5687bc0d7ec052595d8679a8ad08bc82e86fc"
    "e5326c74eba824862f630a4e00"
)


@SUITES
def test_no_bit_can_be_changed(suite: str) -> None:
    seal = Seal(KEY, suite=suite)
    packet = seal.sealer().seal(b"open the door")
    opener = seal.opener()
    for bit in range(8 * len(packet)):
        changed = bytearray(packet)
        changed[bit // 8] ^= 1 << bit % 8
        assert opener.open(bytes(changed)) is None
    assert sum(opener.rejected) == 8 * len(packet)
    assert opener.open(packet) == b"open the door", "what was forged has changed nothing"


def test_no_part_of_a_packet_is_taken() -> None:
    seal = Seal(KEY)
    sealer, opener = seal.sealer(), seal.opener()
    one, two = sealer.seal(b"first"), sealer.seal(b"second")
    for length in range(len(one)):
        assert opener.open(one[:length]) is None
    for cut in range(1, len(one)):
        if (spliced := one[:cut] + two[cut:]) not in (one, two):
            assert opener.open(spliced) is None
    assert opener.open(one + b"x") is None
    assert opened(opener, [one, two]) == [b"first", b"second"]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_not_opened(data: bytes) -> None:
    opener = Seal(KEY).opener()
    assert opener.open(data) is None
    assert sum(opener.rejected) == 1
    assert not opener._sessions


def test_each_cause_is_counted() -> None:
    clock = helpers.Clock(1_700_000_000.0)
    seal = Seal(KEY)
    sealer, opener = seal.sealer(clock), seal.opener(clock)
    packet = sealer.seal(b"x")
    forged = packet[:-1] + bytes([packet[-1] ^ 1])
    clock.advance(-31)
    old = sealer.seal(b"old")
    clock.advance(31)
    foreign = Seal(OTHER).sealer(clock).seal(b"x")
    suite = Seal(KEY, suite="chacha20-poly1305").sealer(clock).seal(b"x")
    assert opened(opener, [packet, packet, forged, old, foreign, suite, b"plain text", b""]) == [b"x"] + 7 * [None]
    # The forged one has the number of one that was accepted, which is looked at first.
    assert opener.rejected == Rejected(not_sealed=3, unknown_key=1, forged=0, replayed=2, too_old=1)


def test_reordering_up_to_the_window_is_accepted_and_each_number_once() -> None:
    seal = Seal(KEY, window=64)
    sealer, opener = seal.sealer(), seal.opener()
    packets = [sealer.seal(b"%d" % number) for number in range(200)]
    shuffled = packets[:]
    chance = random.Random(5)
    for start in range(0, 200, 50):  # so that none is more than the window late
        part = shuffled[start : start + 50]
        chance.shuffle(part)
        shuffled[start : start + 50] = part
    assert sorted(filter(None, opened(opener, shuffled))) == sorted(b"%d" % number for number in range(200))
    assert opened(opener, packets) == [None] * 200
    assert opener.rejected.replayed == 64
    assert opener.rejected.too_old == 136


def test_a_packet_below_the_window_is_refused_and_one_at_its_edge_is_not() -> None:
    seal = Seal(KEY, window=64)
    sealer, opener = seal.sealer(), seal.opener()
    packets = [sealer.seal(b"x") for _ in range(66)]
    assert opener.open(packets[64]) == b"x"
    assert opener.open(packets[0]) is None  # 64 behind
    assert opener.open(packets[1]) == b"x"  # 63 behind
    assert opener.open(packets[65]) == b"x"


def test_after_a_jump_all_within_the_window_are_accepted() -> None:
    seal = Seal(KEY, window=64)
    sealer, opener = seal.sealer(), seal.opener()
    packets = [sealer.seal(b"x") for _ in range(200)]
    assert None not in opened(opener, packets[:64])
    assert opener.open(packets[163]) == b"x"
    assert opened(opener, packets[100:163]) == [b"x"] * 63
    assert opened(opener, packets[100:164]) == [None] * 64


def test_a_session_that_is_known_makes_no_other_give_way() -> None:
    seal = Seal(KEY, sessions=2)
    one, two, opener = seal.sealer(), seal.sealer(), seal.opener()
    for _ in range(5):
        assert opened(opener, [one.seal(b"1"), two.seal(b"2"), two.seal(b"3")]) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("offset, accepted", [(-31, False), (-29, True), (0, True), (29, True), (31, False)])
def test_a_packet_of_another_time_is_refused(offset: float, accepted: bool) -> None:
    clock = helpers.Clock(1_700_000_000.0)
    seal = Seal(KEY)
    packet = seal.sealer(lambda: clock.now + offset).seal(b"x")
    assert (seal.opener(clock).open(packet) is not None) == accepted
    assert Seal(KEY, max_age=None).opener(clock).open(packet) == b"x"


def test_packets_of_a_forgotten_session_are_not_accepted_again() -> None:
    clock = helpers.Clock(1_700_000_000.0)
    seal = Seal(KEY, sessions=3)
    opener = seal.opener(clock)
    recorded = []
    for _ in range(10):
        sealer = seal.sealer(clock)
        recorded.append(sealer.seal(b"x"))
        assert opener.open(recorded[-1]) == b"x"
        clock.advance(0.01)
    assert len(opener._sessions) == 3
    assert opened(opener, recorded) == [None] * 10
    assert opener.open(seal.sealer(clock).seal(b"new")) == b"new"


def test_forged_sessions_do_not_fill_the_table_and_cost_a_bounded_number_of_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = helpers.Clock(1_700_000_000.0)
    seal = Seal(KEY)
    sealer, opener = seal.sealer(clock), seal.opener(clock)
    assert opener.open(sealer.seal(b"x")) == b"x"
    derived: list[bytes] = []
    cipher = sealed._Secret.cipher

    def counted(secret: Any, name: bytes) -> Any:
        derived.append(name)
        return cipher(secret, name)

    monkeypatch.setattr(sealed._Secret, "cipher", counted)
    packet = sealer.seal(b"x")
    for number in range(2000):
        opener.open(packet[:4] + number.to_bytes(8, "big") + packet[12:])
    assert len(opener._sessions) == 1
    assert len(derived) <= 1024
    assert opener.rejected.limited >= 900
    assert opener.open(packet) == b"x", "a session that is known goes on"
    clock.advance(0.1)
    assert opener.open(seal.sealer(clock).seal(b"y")) == b"y", "and a new one begins a moment later"


# -- numbers that are used once ---------------------------------------------------------------------------------------


def nonce(packet: bytes) -> bytes:
    """Return the session and the number, which together are used once."""
    return packet[4:18]


def test_senders_threads_restarts_and_forks_share_no_number() -> None:
    seal = Seal(KEY)
    shared = seal.sealer()
    found: list[bytes] = []

    def work() -> None:
        mine = [shared.seal(b"x") for _ in range(2000)] + [seal.sealer().seal(b"x") for _ in range(10)]
        found.extend(map(nonce, mine))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(3):
        said = helpers.in_child(lambda: b"".join(nonce(shared.seal(b"x")) for _ in range(50)).hex())
        numbers = bytes.fromhex(said)
        found += [numbers[start : start + 14] for start in range(0, len(numbers), 14)]
        found.append(nonce(shared.seal(b"x")))
    assert len(found) == 4 * 2010 + 3 * 51
    assert len(set(found)) == len(found)


def test_numbers_do_not_wrap_but_begin_a_session() -> None:
    seal = Seal(KEY)
    sealer, opener = seal.sealer(), seal.opener()
    sealer._next = sealed._NO_NUMBER - sealed._STEP
    packets = [sealer.seal(b"last"), sealer.seal(b"first")]
    assert packets[0][12:18] == b"\xff" * 6
    assert packets[1][12:18] == bytes(6)
    assert packets[0][4:12] != packets[1][4:12]
    assert opened(opener, packets) == [b"last", b"first"]


# -- keys


def test_keys_change_without_a_break() -> None:
    old, both, new = Seal(KEY), Seal(OTHER, accept=[KEY]), Seal(OTHER)
    opener = both.opener()
    assert opened(opener, [old.sealer().seal(b"old"), new.sealer().seal(b"new")]) == [b"old", b"new"]
    assert new.opener().open(both.sealer().seal(b"x")) == b"x"
    assert new.opener().open(old.sealer().seal(b"x")) is None


@helpers.alone
def test_a_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "group.key"
    os.umask(0)
    sealed.new_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Seal.from_file(path).opener().open(Seal.from_file(path).sealer().seal(b"x")) == b"x"
    with pytest.raises(FileExistsError):
        sealed.new_key_file(path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(ArgumentError, match="chmod 600"):
            Seal.from_file(path)
    path.chmod(0o600)
    path.write_text("00")
    with pytest.raises(ArgumentError, match="64 hexadecimal digits"):
        Seal.from_file(path)


@pytest.mark.parametrize(
    "arguments",
    [{"key": b"short"}, {"key": "x" * 32}, {"suite": "rot13"}, {"max_age": 0}, {"window": 63}, {"sessions": 0},
     {"accept": [b"short"]}],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Seal(**{"key": KEY, **arguments})


def test_a_seal_shows_its_key_to_nobody() -> None:
    seal = Seal(KEY, accept=[OTHER])
    for text in (repr(seal), str(seal), repr(seal.sealer()), repr(seal.opener())):
        assert KEY.hex() not in text
        assert repr(KEY)[2:20] not in text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(seal)


def test_a_group_can_be_sealed(poller: multicast.Poller, free_port: int) -> None:
    class Door(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            found.append(opener.open(packet))

    seal = Seal(KEY)
    opener, sealer = seal.opener(), seal.sealer()
    found: list[bytes | None] = []
    Door(ip="239.1.2.3", port=free_port, interface="lo", poller=poller)
    with multicast.Sender("239.1.2.3", free_port, 0) as sender:
        packet = sealer.seal(b"open the door")
        sender.send([packet, packet, b"forged" * 10])
    helpers.settle(poller, lambda: len(found) == 3)
    assert found == [b"open the door", None, None]
