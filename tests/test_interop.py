"""Together with other programs, and across hosts: what `multicast` sends others receive, and the other way round."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import helpers
import netns
import pytest
from programs import Running, events, multicast, wait_for

# -- ffmpeg ----------------------------------------------------------------------------------------------------------

TS_PACKET = 188  # ISO/IEC 13818-1


def stream(*to: str) -> list[str]:
    """Return the command that plays a test picture, at its own pace, to a destination."""
    picture = "testsrc=duration=2:size=320x240:rate=25"
    return [
        "ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", picture,
        "-c:v", "mpeg2video", "-b:v", "2M", *to,
    ]  # fmt: skip


def frames(path: Path) -> int:
    """Return how many pictures are in a file, when there is nothing wrong with it."""
    probe = ["ffprobe", "-loglevel", "warning", "-count_frames", "-show_entries", "stream=codec_name,nb_read_frames"]
    done = subprocess.run([*probe, "-of", "json", path], capture_output=True, text=True, check=True, timeout=50)
    assert done.stderr == ""
    (found,) = json.loads(done.stdout)["streams"]
    assert found["codec_name"] == "mpeg2video"
    return int(found["nb_read_frames"])


def datagrams_sent() -> int:
    """Return how many UDP datagrams this host has sent (RFC 4113)."""
    head, counts = (
        line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Udp:")
    )
    return int(counts[head.index("OutDatagrams")])


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("ffmpeg", "ffprobe")
def test_a_stream_of_ffmpeg_is_received_whole(tmp_path: Path) -> None:
    received, original = tmp_path / "received.ts", tmp_path / "original.ts"
    url = "udp://239.1.2.3:5000?pkt_size=1316&localaddr=127.0.0.1&ttl=1"
    before = datagrams_sent()
    with open(received, "wb") as file, Running("listen", url, "--raw", stdout=file).joined() as listening:
        subprocess.run(
            stream("-f", "tee", "-map", "0:v", f"[f=mpegts]{url}|[f=mpegts]{original}"), check=True, timeout=50
        )
        sent = datagrams_sent() - before
        listening.interrupt()
        code, _, said = listening.end()
    assert code == 0
    counted = re.search(r"^([\d ]+) packets, ([\d ]+) bytes, 1 source, .* kernel dropped 0$", said, re.MULTILINE)
    assert counted is not None, said
    packets, size = (int(number.replace(" ", "")) for number in counted.groups())
    assert packets == sent
    assert size == received.stat().st_size

    # The same stream, written to a file and never sent, has as many TS packets, each beginning with the sync byte.
    data = received.read_bytes()
    assert len(data) % TS_PACKET == 0
    assert set(data[::TS_PACKET]) == {0x47}
    assert len(data) == original.stat().st_size

    assert frames(received) == 50


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("ffmpeg", "ffprobe")
def test_ffmpeg_receives_a_stream_that_was_sent_from_a_file(tmp_path: Path) -> None:
    original, received = tmp_path / "original.ts", tmp_path / "received.ts"
    subprocess.run([*stream("-f", "mpegts"), original], check=True, timeout=50)
    # It looks at the beginning before it copies anything, so the stream is longer than what it takes.
    receive = [
        "ffmpeg", "-nostdin", "-loglevel", "error", "-analyzeduration", "500000", "-f", "mpegts",
        "-i", "udp://239.1.2.3:5000?localaddr=127.0.0.1", "-c", "copy", "-frames:v", "20", str(received),
    ]  # fmt: skip
    with Running(program=receive) as receiving:
        wait_for(lambda: helpers.joined("239.1.2.3"), "ffmpeg has joined")
        done = multicast("send", "239.1.2.3:5000", "-f", str(original), "-s", "1316", "-b", "500k")
        assert done.returncode == 0
        code, _, said = receiving.end()
    assert (code, said.strip()) == (0, "")
    assert frames(received) == 20


# -- socat -----------------------------------------------------------------------------------------------------------

FAMILIES = pytest.mark.parametrize(
    "group, to, at",
    [
        (
            "239.1.2.3:5000",
            "UDP4-DATAGRAM:239.1.2.3:5000,ip-multicast-if=127.0.0.1",
            "UDP4-RECV:5000,reuseaddr,ip-add-membership=239.1.2.3:127.0.0.1",
        ),
        (
            "[ff15::1234]:5000",
            "UDP6-DATAGRAM:[ff15::1234]:5000",
            "UDP6-RECV:5000,reuseaddr,ipv6-join-group=[ff15::1234]:lo",
        ),
    ],
    ids=["IPv4", "IPv6"],
)


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("socat")
@FAMILIES
def test_what_socat_sends_is_received(group: str, to: str, at: str) -> None:
    with Running("listen", group, "--json", "-c", "2").joined() as listening:
        for text in ("from socat", "again"):
            subprocess.run(["socat", "-u", "-", to], input=text.encode(), check=True, timeout=20)
        code, data, said = listening.end()
    assert code == 0, said
    assert [packet.get("text") for packet in events(data)] == ["from socat", "again", None]


@pytest.mark.needs_namespaces
@pytest.mark.needs_program("socat")
@FAMILIES
def test_socat_receives_what_is_sent(group: str, to: str, at: str) -> None:
    address = group.rpartition(":")[0].strip("[]")
    with Running(program=["socat", "-u", at, "-"]) as receiving:
        wait_for(lambda: helpers.joined(address), "socat has joined")
        assert multicast("send", group, "-", input="to socat\nagain\n").returncode == 0
        assert receiving.process.stdout is not None
        got = b""
        while len(got) < len("to socatagain"):
            got += receiving.process.stdout.read(100)
        receiving.interrupt(signal.SIGTERM)
    assert got == b"to socatagain"


# -- across hosts ----------------------------------------------------------------------------------------------------


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("group", ["[ff05::1234]:5000", "[ff12::1234]:5000", "239.1.2.3:5000"])
def test_a_packet_crosses_the_wire(hosts: tuple[netns.Host, netns.Host], group: str) -> None:
    alice, bob = hosts
    with Running("listen", f"{group}%vb", "--json", "-c", "1", host=bob).joined() as listening:
        done = multicast("send", f"{group}%va", "over the wire", "--ttl", "3", host=alice)
        assert done.returncode == 0, done.stderr
        code, data, said = listening.end()
    assert code == 0, said
    packet, _ = events(data)
    assert (packet["text"], packet["interface"], packet["ttl"]) == ("over the wire", "vb", 3)
    # What `send` said of the source is what the other side has seen.
    assert f" from {packet['source']} by va, ttl 3" in done.stderr
    assert packet["source"] in ("fd99::1", "10.99.0.1") or packet["source"].startswith("fe80::")


@pytest.mark.needs_namespaces
@pytest.mark.parametrize(
    "source, other, group",
    [("10.99.0.1", "10.99.0.9", "232.1.1.1:5000"), ("fd99::1", "fd99::9", "[ff3e::8000:1]:5000")],
    ids=["IPv4", "IPv6"],
)
def test_a_source_specific_listener_hears_its_source_alone(
    hosts: tuple[netns.Host, netns.Host], source: str, other: str, group: str
) -> None:
    alice, bob = hosts
    alice.ip(f"address add {other}/{64 if ':' in other else 24} dev va {'nodad' if ':' in other else ''}")
    with (
        Running("listen", f"{source}@{group}", "-i", "vb", "--json", "-c", "2", host=bob).joined() as one,
        # Another program on the same host, which has joined for everybody, changes nothing for the first.
        Running("listen", f"{source},{other}@{group}", "-i", "vb", "--json", "-c", "4", host=bob).joined() as both,
    ):
        assert one.said[0].startswith(f"joined {source}@{group.rpartition(':')[0].strip('[]')} on vb (")
        for sender in (other, source, other, source):
            done = multicast("send", group, sender, "--source-ip", sender, host=alice)
            assert f" from {sender} by va," in done.stderr
        heard_by_one = events(one.end()[1])
        heard_by_both = events(both.end()[1])
    assert [packet.get("source") for packet in heard_by_one] == [source, source, None]
    assert [packet.get("text") for packet in heard_by_both] == [other, source, other, source, None]


@pytest.mark.needs_namespaces
def test_ttl_0_does_not_cross_the_wire(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    with Running("listen", "239.1.2.3:5000", "--json", "-c", "1", host=bob).joined() as listening:
        done = multicast("send", "239.1.2.3:5000", "stays", "-t", "0", host=alice)
        assert " by lo, ttl 0" in done.stderr
        multicast("send", "239.1.2.3:5000", "goes", "-t", "1", host=alice)
        packet, _ = events(listening.end()[1])
    assert packet["text"] == "goes"


@pytest.mark.needs_namespaces
@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-i", "va"],
        ["-i", "10.99.0.9"],
        ["--source-ip", "10.99.0.9"],
        ["-i", "lo", "--source-ip", "10.99.0.9"],
        ["-t", "0"],
        ["-t", "0", "--source-ip", "127.0.0.1"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("group", ["239.1.2.3:5000", "[ff15::1]:5000"])
def test_the_way_of_a_packet_is_told_as_it_is(
    hosts: tuple[netns.Host, netns.Host], args: list[str], group: str
) -> None:
    alice, _ = hosts
    alice.ip("address add 10.99.0.9/24 dev va", "-6 address add fd99::9/64 dev va nodad")
    if group.startswith("["):
        args = [arg.replace("10.99.0.", "fd99::").replace("127.0.0.1", "::1") for arg in args]
    compare_ways(alice, group, args)


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("group", ["239.1.2.3:5000", "[ff15::1]:5000"])
def test_the_way_of_a_packet_is_told_as_it_is_where_there_is_no_route(
    hosts: tuple[netns.Host, netns.Host], group: str
) -> None:
    alice, _ = hosts
    alice.ip("route del 224.0.0.0/4 dev va", "-6 route del multicast ff00::/8 dev va table local")
    compare_ways(alice, group, [])


def compare_ways(alice: netns.Host, group: str, args: list[str]) -> None:
    """Send, and look whether what the sender said of the way is what a listener on the same host sees."""
    with Running("listen", group, "--json", "-c", "1", host=alice).joined() as listening:
        done = multicast("send", group, "x", *args, "--json", host=alice)
        assert done.returncode == 0, done.stderr
        packet, _ = events(listening.end()[1])
    (told,) = events(done.stdout)
    assert (told["source"], told["interface"]) == (packet["source"], packet["interface"])
