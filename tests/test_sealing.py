"""Sealed packets everywhere a packet enters or leaves: senders, listeners, requests, aio, recordings, commands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import programs
import pytest
from helpers import Keeper, Script, in_child, settle, turns
from programs import Running, events

import multicast
from multicast import ArgumentError, Inbox, MulticastListener, PacketSizeError, Poller, Sender, aio, capture, sendto
from multicast.discovery import Requester, Responder, request

pytest.importorskip("cryptography", reason="cryptography is not installed")

from multicast.sealed import OVERHEAD, Rejected, Seal, new_key_file

GROUP, PORT = "239.77.13.1", 5113
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@pytest.fixture
def seal() -> Seal:
    return Seal(KEY)


@pytest.fixture
def door(poller: Poller, seal: Seal) -> Iterator[Keeper]:
    with Keeper(ip=GROUP, port=PORT, interface="lo", seal=seal, poller=poller) as door:
        yield door


# -- senders ---------------------------------------------------------------------------------------------------------


def test_sendto_seals_one_packet_and_many(door: Keeper, poller: Poller, seal: Seal) -> None:
    plain = Keeper(ip=GROUP, port=PORT, interface="lo", poller=poller)
    assert sendto("open the door", GROUP, PORT, 0, seal=seal) == 1
    assert sendto([b"one", "two"], GROUP, PORT, 0, seal=seal) == 2
    assert sendto((text for text in ("three", b"four")), GROUP, PORT, 0, seal=seal) == 2
    settle(poller, lambda: len(plain.packets) == 5)
    assert door.packets == [b"open the door", b"one", b"two", b"three", b"four"]
    assert [len(packet) - OVERHEAD for packet in plain.packets] == [13, 3, 3, 5, 4]
    assert not any(b"door" in packet for packet in plain.packets)
    plain.close()


def test_senders_seal(door: Keeper, poller: Poller, seal: Seal) -> None:
    with Sender(GROUP, PORT, 0, seal=seal) as sender:
        sender.send("one")
        sender.send(["two", "three"])
    Script([b"four", None, "five"], GROUP, PORT, 0, seal=seal, poller=poller)
    settle(poller, lambda: len(door.packets) == 5)
    assert door.packets == [b"one", b"two", b"three", b"four", b"five"]
    assert door.statistics().rejected == 0


def test_one_sealed_and_one_plain_call_of_sendto_do_not_share_a_sender(
    door: Keeper, poller: Poller, seal: Seal
) -> None:
    for number in range(3):
        sendto(b"sealed %d" % number, GROUP, PORT, 0, seal=seal)
        sendto(b"plain", GROUP, PORT, 0)
    settle(poller, lambda: len(door.packets) == 3 and door.statistics().rejected == 3)
    assert door.packets == [b"sealed 0", b"sealed 1", b"sealed 2"]
    assert door.rejected == Rejected(not_sealed=3)


@pytest.mark.parametrize("many", [False, True])
def test_the_size_of_a_packet_includes_its_seal(many: bool, seal: Seal, poller: Poller) -> None:
    longest = 65507 - OVERHEAD
    for packet in (bytes(longest + 1), "x" * (longest + 1)):
        with pytest.raises(PacketSizeError, match=rf"when sealed \({longest} at most; up to 1432 avoid fragments"):
            sendto([packet] if many else packet, GROUP, PORT, 0, seal=seal)
    assert sendto([bytes(longest)] if many else bytes(longest), GROUP, PORT, 0, seal=seal) == 1
    Script([bytes(longest + 1)], GROUP, PORT, 0, seal=seal, poller=poller)
    with pytest.raises(PacketSizeError, match="when sealed"):
        turns(poller)
    for wrong in (iter([bytes(longest + 1)]), [b"", bytes(longest + 1)]):
        with pytest.raises(PacketSizeError, match="when sealed"):
            sendto(wrong, GROUP, PORT, 0, seal=seal)


@pytest.mark.parametrize("wrong", [KEY, "group.key", 1], ids=["bytes", "path", "number"])
def test_what_is_no_seal_is_refused(wrong: Any, poller: Poller) -> None:
    for make in (
        lambda: sendto("x", GROUP, PORT, 0, seal=wrong),
        lambda: Sender(GROUP, PORT, 0, seal=wrong),
        lambda: Script([], GROUP, PORT, 0, seal=wrong, poller=poller),
        lambda: Keeper(ip=GROUP, port=PORT, seal=wrong, poller=poller),
        lambda: request("x", GROUP, PORT, 0, seal=wrong, poller=poller),
        lambda: aio.Sender(GROUP, PORT, 0, seal=wrong),
    ):
        with pytest.raises(ArgumentError, match=r"a multicast\.sealed\.Seal"):
            make()


# -- listeners -------------------------------------------------------------------------------------------------------


def test_filters_and_statistics_see_the_plain_packet(poller: Poller, seal: Seal) -> None:
    seen: list[bytes] = []

    def accept(packet: bytes, addr: multicast.Address) -> bool:
        seen.append(packet)
        return packet.startswith(b"open")

    expression = Keeper("open", GROUP, PORT, interface="lo", seal=seal, poller=poller)
    function = Keeper(accept, GROUP, PORT, interface="lo", seal=seal, poller=poller)
    sendto(["open the door", "close it"], GROUP, PORT, 0, seal=seal)
    sendto("open", GROUP, PORT, 0)
    settle(poller, lambda: all(one.statistics().packets == 3 for one in (expression, function)))
    assert seen == [b"open the door", b"close it"]
    for one in (expression, function):
        assert one.packets == [b"open the door"]
        counted = one.statistics()
        assert (counted.packets, counted.delivered, counted.filtered, counted.rejected, counted.dropped) == (
            3,
            1,
            1,
            1,
            0,
        )
        assert counted.bytes == len("open the door") + len("close it")
        one.close()


def test_the_kernel_does_not_filter_sealed_packets_and_a_message_says_so(
    poller: Poller, seal: Seal, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "multicast"):
        Keeper("open", GROUP, PORT, interface="lo", seal=seal, poller=poller).close()
    assert "Keeper: its packets are sealed, so its filter works after opening, not in the kernel" in caplog.messages
    with pytest.raises(ArgumentError, match="a field of a sealed packet"):
        Keeper(ip=GROUP, port=PORT, shard=(0, 2), shard_key=(0, 4), seal=seal, poller=poller)


def test_each_cause_is_counted_and_leaves_no_trace(
    door: Keeper, poller: Poller, seal: Seal, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1_700_000_000.0]
    sealer = seal.sealer()
    packet = sealer.seal(b"x")
    old = seal.sealer(lambda: now[0]).seal(b"yesterday")
    sendto([packet, packet, b"plain", Seal(OTHER).sealer().seal(b"x"), packet[:-1] + b"\0", old], GROUP, PORT, 0)
    settle(poller, lambda: door.statistics().packets == 6)
    assert door.packets == [b"x"]
    # The last byte may happen to be 0.
    assert door.rejected in (
        Rejected(not_sealed=1, unknown_key=1, forged=0, replayed=2, too_old=1),
        Rejected(not_sealed=1, unknown_key=1, forged=1, replayed=1, too_old=1),
    )
    assert door.statistics().rejected == 5
    assert not caplog.records


def test_mtu_is_that_of_the_plain_packet(poller: Poller, seal: Seal) -> None:
    with Keeper(ip=GROUP, port=PORT, mtu=100, interface="lo", seal=seal, poller=poller) as short:
        sendto([bytes(100), bytes(101)], GROUP, PORT, 0, seal=seal)
        settle(poller, lambda: short.statistics().packets == 2)
        assert short.packets == [bytes(100)]
        assert short.rejected == Rejected(cut=1)
        assert short.statistics().truncated == 1


def test_batches_hold_the_packets_that_opened(poller: Poller, seal: Seal) -> None:
    class Batches(MulticastListener):
        def handle_packets(self, packets: list[bytes], addresses: list[multicast.Address]) -> None:
            found.append((packets, [addr.port for addr in addresses]))

    found: list[tuple[list[bytes], list[int]]] = []
    listener = Batches(ip=GROUP, port=PORT, interface="lo", seal=seal, poller=poller)
    with Sender(GROUP, PORT, 0) as sender:
        mine = seal.sealer()
        sender.send([mine.seal(b"one"), b"plain", mine.seal(b"two")])
        address = sender.address
        assert address is not None
        settle(poller, lambda: listener.statistics().packets == 3)
        assert found == [([b"one", b"two"], [address[1]] * 2)]
        sender.send([b"plain"])
        settle(poller, lambda: listener.statistics().packets == 4)
    assert len(found) == 1, "a batch of which nothing opens is no batch"
    assert listener.statistics().delivered == 2
    listener.close()


def test_a_handler_that_raises_loses_no_opened_packet(poller: Poller, seal: Seal) -> None:
    class Fragile(Keeper):
        def handle_packet(self, packet: bytes, addr: multicast.Address) -> object:
            super().handle_packet(packet, addr)
            if packet == b"two":
                raise ValueError(packet)
            return False

    listener = Fragile(ip=GROUP, port=PORT, interface="lo", seal=seal, poller=poller)
    sendto(["one", "two", "three"], GROUP, PORT, 0, seal=seal)
    with pytest.raises(ValueError, match="two"):
        settle(poller, lambda: listener.statistics().packets == 3)
    settle(poller, lambda: len(listener.packets) == 3)
    assert listener.packets == [b"one", b"two", b"three"]
    assert listener.statistics().delivered == 3
    listener.close()


def test_inboxes_and_listen_open(poller: Poller, seal: Seal) -> None:
    inbox = Inbox(ip=GROUP, port=PORT, interface="lo", seal=seal, poller=poller)
    newest = multicast.listen(ip=GROUP, port=PORT, interface="lo", seal=seal, poller=poller)
    sendto(["one", "two"], GROUP, PORT, 0, seal=seal)
    assert [next(inbox), next(inbox)] == [b"one", b"two"]
    assert next(newest) == b"one"
    inbox.close()
    newest.close()


def test_a_forked_child_begins_a_session(door: Keeper, poller: Poller, seal: Seal) -> None:
    with Sender(GROUP, PORT, 0, seal=seal) as sender:
        sender.send("parent 1")
        in_child(lambda: str(sender.send("child")))
        sender.send("parent 2")
    settle(poller, lambda: door.statistics().packets == 3)
    assert door.packets == [b"parent 1", b"child", b"parent 2"]


# -- requests --------------------------------------------------------------------------------------------------------


class Helper(Responder):
    def __init__(self, **options: Any) -> None:
        super().__init__(ip=GROUP, port=PORT, interface="lo", **options)
        self.asked: list[bytes] = []

    def handle_request(self, packet: bytes, addr: multicast.Address) -> bytes:
        self.asked.append(packet)
        return b"answer to " + packet


def test_requests_and_replies_are_sealed(poller: Poller, seal: Seal) -> None:
    with Helper(seal=seal, poller=poller) as helper:
        replies = request("status?", GROUP, PORT, interface="lo", limit=1, seal=seal, poller=poller)
        assert [packet for packet, _ in replies] == [b"answer to status?"]
        assert helper.asked == [b"status?"]
        # A request that is not sealed gets no reply, and a requester without the key no answer that it could read.
        assert not list(request("status?", GROUP, PORT, interface="lo", timeout=0.05, poller=poller))
        assert helper.statistics().rejected == 1
        assert helper.reply_statistics().requests == 1


def test_a_reply_is_good_for_its_request_alone(poller: Poller, seal: Seal) -> None:
    """A recorded reply is sent again to a requester that has asked the same again."""

    class Asking(Requester):
        def handle_reply(self, packet: bytes, addr: multicast.Address) -> None:
            got.append(packet)

    got: list[bytes] = []
    recorded: list[bytes] = []
    with Helper(seal=seal, poller=poller) as helper:
        original = helper._sealer.seal_reply  # type: ignore[union-attr]

        def recording(packet: bytes, reference: bytes) -> bytes:
            recorded.append(original(packet, reference))
            return recorded[-1]

        helper._sealer.seal_reply = recording  # type: ignore[method-assign, union-attr]
        with Asking("open?", GROUP, PORT, timeout=None, interface="lo", seal=seal, poller=poller) as asking:
            settle(poller, lambda: got)
            assert asking.address is not None
            sendto(recorded * 3, "127.0.0.1", asking.address[1])  # the same requester: it was taken
            settle(poller, lambda: asking.statistics().rejected == 3)
            assert asking.rejected == Rejected(replayed=3)
        with Asking("open?", GROUP, PORT, timeout=None, interface="lo", seal=seal, poller=poller) as other:
            settle(poller, lambda: len(got) == 2)
            sendto(recorded[:1], "127.0.0.1", other.address[1])
            settle(poller, lambda: other.statistics().rejected == 1)
            assert other.rejected in (Rejected(forged=1), Rejected(too_old=1))
    assert got == [b"answer to open?"] * 2


def test_a_packet_of_the_group_is_no_reply_and_a_reply_is_no_packet(door: Keeper, poller: Poller, seal: Seal) -> None:
    replies: list[bytes] = []

    class Asking(Requester):
        def handle_reply(self, packet: bytes, addr: multicast.Address) -> None:
            replies.append(packet)

    with Asking("x", GROUP, PORT, timeout=None, interface="lo", seal=seal, poller=poller) as asking:
        settle(poller, lambda: door.packets == [b"x"])
        sendto("x", "127.0.0.1", asking.address[1], seal=seal)
        settle(poller, lambda: asking.statistics().rejected == 1)
        assert asking.rejected == Rejected(not_sealed=1)
    sendto(seal.sealer().seal_reply(b"x", bytes(14)), GROUP, PORT, 0)
    settle(poller, lambda: door.statistics().rejected == 1)
    assert door.rejected == Rejected(not_sealed=1)
    assert not replies


def test_a_reply_has_room_for_its_seal_and_needs_the_address_of_its_request(poller: Poller, seal: Seal) -> None:
    with Helper(longest=100, seal=seal, poller=poller) as helper:
        addrs: list[multicast.Address] = []

        def later(packet: bytes, addr: multicast.Address) -> None:
            addrs.append(addr)

        helper.handle_request = later  # type: ignore[method-assign, assignment]
        asking = request("x", GROUP, PORT, interface="lo", limit=1, seal=seal, poller=poller)
        settle(poller, lambda: addrs)
        assert helper.room == 60
        with pytest.raises(
            PacketSizeError, match="101 bytes and this responder sends 100 at most, of which the seal takes 40"
        ):
            helper.reply(bytes(61), addrs[0])
        with pytest.raises(ArgumentError, match="handle_request was called with"):
            helper.reply(b"x", multicast.Address(tuple(addrs[0])))
        assert helper.reply(bytes(60), addrs[0])
        assert [packet for packet, _ in asking] == [bytes(60)]


def test_by_several_interfaces_a_request_is_answered_once(hosts: tuple[netns.Host, netns.Host], seal: Seal) -> None:
    alice, _ = hosts
    with alice.inside(), Poller() as poller, Helper(seal=seal, poller=poller) as helper:
        helper.close()
        with Keeper(ip=GROUP, port=PORT, seal=seal, poller=poller) as keeper:
            asking = request("x", GROUP, PORT, timeout=0.05, seal=seal, poller=poller)
            list(asking)
            settle(poller, lambda: keeper.packets)
            assert keeper.statistics().rejected == 0, "each interface has a packet with a number of its own"


# -- awaited ---------------------------------------------------------------------------------------------------------


def test_the_awaited_forms_seal_and_open(seal: Seal) -> None:
    async def answer(packet: bytes, addr: multicast.Address) -> bytes:
        return b"answer to " + packet

    async def run() -> None:
        async with aio.listen(GROUP, PORT, interface="lo", limit=3, seal=seal) as packets:
            await aio.sendto("one", GROUP, PORT, 0, seal=seal)
            async with aio.Sender(GROUP, PORT, 0, seal=seal) as sender:
                assert await sender.send(["two", b"three"]) == 2
            assert [packet async for packet, _ in packets] == [b"one", b"two", b"three"]
        async with aio.responder(answer, GROUP, PORT, interface="lo", seal=seal):
            ((packet, _),) = await aio.request("x", GROUP, PORT, interface="lo", limit=1, seal=seal)
            assert packet == b"answer to x"

    asyncio.run(run())


def test_an_endpoint_seals_and_opens(seal: Seal) -> None:
    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            got.append(data)
            enough.set()

    got: list[bytes] = []
    enough = asyncio.Event()

    async def run() -> None:
        transport, _ = await aio.create_multicast_endpoint(Protocol, GROUP, PORT, interface="lo", seal=seal)
        sendto("plain", GROUP, PORT, 0)
        transport.sendto(b"sealed")
        await asyncio.wait_for(enough.wait(), 20)
        enough.clear()
        opened = transport._private.socket
        assert opened is not None
        private = opened.getsockname()[1]
        sendto("plain", "127.0.0.1", private)
        sendto("an answer", "127.0.0.1", private, seal=seal)
        await asyncio.wait_for(enough.wait(), 20)
        transport.close()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert got == [b"sealed", b"an answer"]


# -- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_sealed", [False, True])
def test_a_recording_has_what_was_opened_or_the_sealed_packets(
    tmp_path: Path, poller: Poller, seal: Seal, keep_sealed: bool
) -> None:
    path = tmp_path / "x.pcapng"
    recorder = capture.Recorder(
        path, "open", GROUP, PORT, interface="lo", seal=seal, keep_sealed=keep_sealed, poller=poller
    )
    with recorder:
        sendto(["open the door", "close it", "open it"], GROUP, PORT, 0, seal=seal)
        sendto("open", GROUP, PORT, 0)
        settle(poller, lambda: recorder.statistics().packets == 4)
    packets = [packet.payload for packet in recorded(path)]
    if keep_sealed:
        packets = [seal.opener().open(packet) or b"" for packet in packets]
    assert packets == [b"open the door", b"open it"]
    counted = recorder.statistics()
    assert (counted.filtered, counted.rejected, counted.delivered) == (1, 1, 2)


def recorded(path: str | Path) -> list[Any]:
    with capture.Reader(path) as packets:
        return list(packets)


def test_keep_sealed_needs_a_seal(tmp_path: Path, poller: Poller) -> None:
    with pytest.raises(ArgumentError, match="keep_sealed"):
        capture.Recorder(tmp_path / "x.pcapng", ip=GROUP, port=PORT, keep_sealed=True, poller=poller)


# -- the command line ------------------------------------------------------------------------------------------------

PLACE = f"{GROUP}:{PORT}"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    names = str(tmp_path / "one.key"), str(tmp_path / "two.key")
    for name in names:
        new_key_file(name)
    return names


def test_key_makes_a_key_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "group.key"
    done = programs.multicast("key", str(path))
    assert done.returncode == 0
    assert f"{path} holds a new key, {Seal.from_file(path).key_id}" in done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    again = programs.multicast("key", str(path))
    assert again.returncode == 3
    assert "File exists" in again.stderr
    assert path.read_text() == text
    path.chmod(0o644)
    refused = programs.multicast("send", PLACE, "x", "--key", str(path))
    assert refused.returncode == 2
    assert f"chmod 600 {path}" in refused.stderr
    (event,) = events(programs.multicast("key", str(tmp_path / "two.key"), "--json").stdout)
    assert event["id"] == Seal.from_file(tmp_path / "two.key").key_id


def test_send_and_listen_with_a_key(keys: tuple[str, str]) -> None:
    one, two = keys
    with Running("listen", PLACE, "-i", "lo", "-c", "3", "--key", one, "--key", two, "--json") as listening:
        listening.joined()
        programs.multicast("send", PLACE, "plain", "-t", "0")
        programs.multicast("send", PLACE, "hello", "-t", "0", "--key", one)
        programs.multicast("send", PLACE, "-", "-t", "0", "--key", two, input="a\nb\n")
        code, out, err = listening.end()
    *packets, summary = events(out)
    assert [packet["text"] for packet in packets] == ["hello", "a", "b"]
    assert code == 0
    assert {cause: count for cause, count in summary["rejected"].items() if count} == {"not_sealed": 1}
    assert "1 packet did not open: 1 not sealed" in err


def test_listen_says_why_nothing_opened(keys: tuple[str, str]) -> None:
    one, two = keys
    with Running("listen", PLACE, "-i", "lo", "-w", "1", "--key", one) as listening:
        listening.joined()
        sendto("hello", GROUP, PORT, 0, seal=Seal.from_file(two))
        code, out, err = listening.end()
    assert (code, out) == (1, "")
    assert "1 packet did not open: 1 sealed with another key" in err
    assert "nothing arrived" not in err


def test_request_respond_and_ping_with_a_key(keys: tuple[str, str]) -> None:
    one, two = keys
    with Running("respond", PLACE, "-i", "lo", "--key", one) as responding:
        responding.until_said("answering")
        assert '"ack"' in programs.multicast("request", PLACE, "x", "--first", "-i", "lo", "--key", one).stdout
        assert programs.multicast("request", PLACE, "x", "-w", "0.05", "-i", "lo", "--key", two).returncode == 1
        responding.interrupt()
        _, _, err = responding.end()
    assert "1 request, 1 reply" in err
    assert "1 packet did not open: 1 sealed with another key" in err
    with Running("respond", "--ping", PLACE, "-i", "lo", "--key", one) as responding:
        responding.until_said("answering")
        done = programs.multicast("ping", PLACE, "-c", "2", "--interval", "0.01", "-i", "lo", "--key", one, "--json")
        assert [one["event"] for one in events(done.stdout)] == ["reply", "reply", "responder", "summary"]
        done = programs.multicast(
            "ping", PLACE, "-c", "2", "--interval", "0.2", "-W", "0.1", "--matrix", "-i", "lo", "--key", one
        )
        assert "lost on the way to" in done.stdout
        assert "100.0%" not in done.stdout


def test_top_and_record_with_a_key(keys: tuple[str, str], tmp_path: Path) -> None:
    one, _ = keys
    path = str(tmp_path / "x.pcapng")
    with (
        Running("top", PLACE, "-i", "lo", "-w", "20", "--key", one, "--json") as top,
        Running("record", PLACE, "-i", "lo", "-c", "1", "-o", path, "--key", one, "--sealed") as recording,
    ):
        top.until_said("measuring")
        recording.until_said("recording")
        programs.multicast("send", PLACE, "plain", "-t", "0")
        programs.multicast("send", PLACE, "hello", "-t", "0", "--key", one)
        code, _, err = recording.end()
        top.interrupt()
        _, out, _ = top.end()
    assert code == 0
    assert "1 packet did not open: 1 not sealed" in err
    (packet,) = recorded(path)
    assert Seal.from_file(one).opener().open(packet.payload) == b"hello"
    summary = events(out)[-1]
    assert (summary["packets"], summary["bytes"], summary["rejected"]["not_sealed"]) == (1, 5, 1)
    done = programs.multicast("record", PLACE, "-o", path, "--sealed")
    assert done.returncode == 2
    assert "--sealed" in done.stderr


def test_chat_with_a_key(keys: tuple[str, str]) -> None:
    one, two = keys
    with (
        Running("chat", PLACE, "--name", "Anna", "-i", "lo", "-w", "2", "--key", one) as anna,
        Running("chat", PLACE, "--name", "Eve", "-i", "lo", "-w", "2", "--key", two) as eve,
    ):
        anna.until_said("you are Anna")
        eve.until_said("you are Eve")
        with Running("chat", PLACE, "--name", "Ben", "-i", "lo", "-w", "1", "--key", one) as ben:
            _, heard, _ = ben.end()
        _, out, err = anna.end()
        _, other, _ = eve.end()
    assert "Ben" in out + err
    assert "Anna" in heard or "Ben" in out + err
    assert "Ben" not in other
    done = programs.multicast("chat", "tcp://127.0.0.1:1", "--name", "Anna", "--key", one)
    assert done.returncode == 2
    assert "--key" in done.stderr


def test_doctor_compares_keys(keys: tuple[str, str]) -> None:
    one, two = keys
    with Running("send", PLACE, "x", "-i", "lo", "--interval", "0.02", "--key", one):
        found = [
            events(programs.multicast("doctor", PLACE, "-w", "0.3", "--json", *arguments).stdout)
            for arguments in ((), ("--key", one), ("--key", two))
        ]
    status = [{event["check"]: (event["status"], event["code"]) for event in one[:-1]}["seal"] for one in found]
    assert status == [("ok", None), ("ok", None), ("fail", "other-key")]
    with Running("send", PLACE, "x", "-i", "lo", "--interval", "0.02"):
        done = programs.multicast("doctor", PLACE, "-w", "0.3", "--key", one)
    assert "The packets are not sealed, so a program with a key refuses all of them." in done.stdout
    assert done.returncode == 1


# -- what strangers do -----------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_s5_nothing_that_was_recorded_is_taken_again(seal: Seal) -> None:
    sealer, opener = seal.sealer(), seal.opener()
    recorded = [sealer.seal(b"%d" % number) for number in range(5000)]
    assert sum(one is not None for one in opener.open_all(recorded)) == 5000
    random.Random(5).shuffle(recorded)
    for _ in range(4):
        assert opener.open_all(recorded) == [None] * 5000
    assert opener.rejected.replayed + opener.rejected.too_old == 20000


@pytest.mark.fault
def test_s6_nothing_forged_is_taken_and_nothing_changes(seal: Seal) -> None:
    sealer, opener = seal.sealer(), seal.opener()
    first, second = sealer.seal(b"open the door"), sealer.seal(b"close the door")
    assert opener.open(first) == b"open the door"
    state = opener._sessions[first[:12]]
    before = (state.highest, bytes(state.seen), state.latest, len(opener._sessions))
    forged = [
        bytes([*second[:at], second[at] ^ 1 << bit, *second[at + 1 :]]) for at in range(len(second)) for bit in range(8)
    ]
    forged += [second[:cut] for cut in range(len(second))] + [second + b"\0"]
    forged += [first[:cut] + second[cut:] for cut in (12, 18, 24, 40) if first[:cut] + second[cut:] != second]
    forged += [Seal(OTHER).sealer().seal(b"x"), second[:4] + bytes(8) + second[12:]]
    assert opener.open_all(forged) == [None] * len(forged)
    assert (state.highest, bytes(state.seen), state.latest, len(opener._sessions)) == before
    assert opener.open(second) == b"close the door"
