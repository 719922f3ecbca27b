"""The programs that are measured: each run is one peer, in a process of its own.

``python peers.py ROLE KIND GROUP PORT COUNT`` says "ready" when it can be sent to. A receiver then drains COUNT packets
for each line it reads, and answers with the nanoseconds that took, how many packets they were, and how many the kernel
dropped so far. What a peer does before "ready" and between rounds is not measured.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

#: The key of sealed packets.
KEY = bytes(range(32))
_RCVBUF = 64 << 20
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55


def plain_socket(group: str, port: int) -> socket.socket:
    """A joined socket with a large buffer, made with the standard library."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RCVBUF)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RCVBUF)
    opened.bind((group, port))
    membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    opened.setblocking(False)
    return opened


def drops(opened: socket.socket) -> int:
    return int(struct.unpack_from("@I", opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36), 32)[0])


def rounds(drain: Callable[[], tuple[int, int]], dropped: Callable[[], int]) -> None:
    """Answer each line with one measured round."""
    print("ready", flush=True)
    for _ in sys.stdin:
        nanoseconds, packets = drain()
        print(nanoseconds, packets, dropped(), flush=True)


def use_python_form() -> None:
    """Make `multicast.batch` believe that its C form is not built."""
    sys.modules["multicast._batch"] = None  # type: ignore[assignment]


# -- receivers -----------------------------------------------------------------------------------------------


def ours(kind: str, group: str, port: int, count: int) -> None:
    words = kind.split("-")
    if "python" in words:
        use_python_form()
    import multicast
    from multicast import batch

    assert ("python" if "python" in words else "c") == batch.ENGINE, "the C module is not built"

    class Counter(multicast.MulticastListener):
        count = 0

        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            self.count += 1

    class Batches(multicast.MulticastListener):
        count = 0

        def handle_packets(self, packets: list[bytes], addresses: list[multicast.Address]) -> None:
            self.count += len(packets)

    if "iterated" in words:
        inbox = multicast.listen(None, group, port, interface="lo", rcvbuf=_RCVBUF, poller=multicast.Poller())

        def iterate() -> tuple[int, int]:
            left = count
            start = time.perf_counter_ns()
            for _ in inbox:
                left -= 1
                if not left:
                    break
            return time.perf_counter_ns() - start, count

        rounds(iterate, lambda: inbox.statistics().dropped)
        return
    shard = (int(words[-1]), 2) if "shard" in words else None
    filter = seal = None
    if "literal" in words:
        filter = rb"match-this"
    if "sealed" in words or "forged" in words:
        from multicast.sealed import Seal

        seal = Seal(KEY)
    poller = multicast.Poller()
    listener = (Batches if "batches" in words else Counter)(
        filter,
        group,
        port,
        interface="lo",
        rcvbuf=_RCVBUF,
        details="details" in words,
        offload="offload" in words,
        kernel_filter="unfiltered" not in words,
        seal=seal,
        shard=shard,
        shard_key=None if shard is None else (0, 4),
        poller=poller,
    )

    def drain() -> tuple[int, int]:
        listener.count = 0
        few = filter is not None or "forged" in words  # one packet in a hundred is delivered
        wanted = count // 100 if few else count
        poll = poller.poll
        start = time.perf_counter_ns()
        while listener.count < wanted:
            poll()
        took = time.perf_counter_ns() - start
        if few:
            poll()  # what is refused after the last that is delivered belongs to the round, but is seldom any
        return took, listener.count

    # With a filter in the kernel its counter mixes drops and refusals, so the listener's own is asked.
    rounds(drain, lambda: listener.statistics().dropped)


def many(kind: str, group: str, port: int, count: int) -> None:
    """COUNT listeners with 16 packets waiting for each; group and port of the first, the others follow."""
    import multicast

    class Counter(multicast.MulticastListener):
        total = 0

        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            Counter.total += 1

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    poller = multicast.Poller()
    first = struct.unpack("!I", socket.inet_aton(group))[0]
    warm = Counter(None, group, port + 1, interface="lo", poller=poller)
    memory = resident()
    start = time.perf_counter_ns()
    listeners = [
        Counter(None, socket.inet_ntoa(struct.pack("!I", first + number)), port, interface="lo", poller=poller)
        for number in range(count)
    ]
    opening = time.perf_counter_ns() - start
    memory = resident() - memory
    warm.close()
    print(opening, memory // count, flush=True)

    def drain() -> tuple[int, int]:
        Counter.total = 0
        wanted = 16 * count
        poll = poller.poll
        start = time.perf_counter_ns()
        while Counter.total < wanted:
            poll()
        return time.perf_counter_ns() - start, Counter.total

    rounds(drain, lambda: sum(listener.statistics().dropped for listener in listeners))


def recvfrom(kind: str, group: str, port: int, count: int) -> None:
    opened = plain_socket(group, port)

    def drain() -> tuple[int, int]:
        read = opened.recvfrom
        number = 0
        start = time.perf_counter_ns()
        try:
            while number < count:
                _packet, _addr = read(4096)
                number += 1
        except BlockingIOError:
            pass
        return time.perf_counter_ns() - start, number

    rounds(drain, lambda: drops(opened))


def on_asyncio(kind: str, group: str, port: int, count: int) -> None:
    import asyncio

    if kind.startswith("uvloop"):
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    opened = plain_socket(group, port)

    class Protocol(asyncio.DatagramProtocol):
        count = 0

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.count += 1
            if self.count == count:
                done.set_result(time.perf_counter_ns())

    _, protocol = loop.run_until_complete(loop.create_datagram_endpoint(Protocol, sock=opened))
    assert isinstance(protocol, Protocol)
    done: asyncio.Future[int] = loop.create_future()

    def drain() -> tuple[int, int]:
        nonlocal done
        done = loop.create_future()
        protocol.count = 0
        start = time.perf_counter_ns()
        return loop.run_until_complete(done) - start, protocol.count

    rounds(drain, lambda: drops(opened))


def on_twisted(kind: str, group: str, port: int, count: int) -> None:
    from twisted.internet import protocol
    from twisted.internet import reactor as any_reactor

    reactor: Any = any_reactor
    opened = plain_socket(group, port)

    class Protocol(protocol.DatagramProtocol):
        count = 0

        def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: N802 -- Twisted's name
            self.count += 1

    counter = Protocol()
    reactor.adoptDatagramPort(opened.fileno(), socket.AF_INET, counter, maxPacketSize=4096)
    reactor.startRunning()

    def drain() -> tuple[int, int]:
        counter.count = 0
        start = time.perf_counter_ns()
        while counter.count < count:
            reactor.iterate(0)
        return time.perf_counter_ns() - start, counter.count

    rounds(drain, lambda: drops(opened))


def on_multicast_expert(kind: str, group: str, port: int, count: int) -> None:
    import multicast_expert

    with multicast_expert.McastRxSocket(
        socket.AF_INET, mcast_ips=[group], port=port, iface="127.0.0.1", blocking=True
    ) as receiver:
        for opened in receiver.sockets if hasattr(receiver, "sockets") else [receiver.socket]:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RCVBUF)

        def drain() -> tuple[int, int]:
            read = receiver.recvfrom
            start = time.perf_counter_ns()
            for _ in range(count):
                read()
            return time.perf_counter_ns() - start, count

        rounds(drain, lambda: drops(opened))


def on_lcm(kind: str, group: str, port: int, count: int) -> None:
    """LCM reads its socket in a thread of its own while we fill it, so this is the handling of messages alone."""
    import lcm

    received = 0

    def handler(channel: str, data: bytes) -> None:
        nonlocal received
        received += 1

    client = lcm.LCM(f"udpm://{group}:{port}?ttl=0&recv_buf_size={_RCVBUF}")
    client.subscribe("BENCH", handler).set_queue_capacity(count)

    def drain() -> tuple[int, int]:
        nonlocal received
        received = 0
        start = time.perf_counter_ns()
        while received < count and client.handle_timeout(200):
            pass
        return time.perf_counter_ns() - start, received

    rounds(drain, lambda: 0)


# -- senders -------------------------------------------------------------------------------------------------


def send(kind: str, group: str, port: int, count: int) -> None:
    """For each line: send COUNT equal packets, once; 64 bytes each."""
    import multicast

    packets = [b"x" * 64] * count
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))

    def ours() -> tuple[int, int]:
        start = time.perf_counter_ns()
        number = multicast.sendto(packets, group, port, interface="lo")
        return time.perf_counter_ns() - start, number

    def loop() -> tuple[int, int]:
        put, to = opened.sendto, (group, port)
        start = time.perf_counter_ns()
        for packet in packets:
            put(packet, to)
        return time.perf_counter_ns() - start, count

    def one(sender: multicast.Sender) -> tuple[int, int]:
        put = sender.send
        start = time.perf_counter_ns()
        for packet in packets:
            put(packet)
        return time.perf_counter_ns() - start, count

    def each() -> tuple[int, int]:
        options = {"interface": "lo"} if kind == "sendto-interface" else {}
        put = multicast.sendto
        start = time.perf_counter_ns()
        for packet in packets:
            put(packet, group, port, **options)
        return time.perf_counter_ns() - start, count

    def generated() -> tuple[int, int]:
        class Equal(multicast.Multicaster):
            def __iter__(self) -> Any:
                for _ in range(count):
                    yield b"x" * 64

        with multicast.Poller() as poller:
            Equal(group, port, interface="lo", poller=poller)
            start = time.perf_counter_ns()
            poller.loop()
            return time.perf_counter_ns() - start, count

    if kind in ("sendto-routes", "sendto-interface", "generated"):
        rounds(generated if kind == "generated" else each, lambda: 0)
    elif kind.startswith("one"):
        seal = None
        if kind == "one-sealed":
            from multicast.sealed import Seal

            seal = Seal(KEY)
        with multicast.Sender(group, port, interface="lo", seal=seal) as sender:
            rounds(lambda: one(sender), lambda: 0)
    else:
        rounds(ours if kind == "ours" else loop, lambda: 0)


# -- echoes --------------------------------------------------------------------------------------------------


def echo(kind: str, group: str, port: int, count: int) -> None:
    """Send back what comes to the group, until killed."""
    replies = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if kind == "recvfrom":
        opened = plain_socket(group, port)
        opened.setblocking(True)
        print("ready", flush=True)
        while True:
            packet, addr = opened.recvfrom(4096)
            replies.sendto(packet, addr)
    import multicast

    class Echo(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            replies.sendto(packet, addr)

    poller = multicast.Poller()
    Echo(None, group, port, interface="lo", poller=poller)
    print("ready", flush=True)
    poller.loop(busy=kind == "busy")


# -- what runs for a while -----------------------------------------------------------------------------------


def pace(kind: str, group: str, port: int, count: int) -> None:
    """Send COUNT packets of 64 bytes at 1,000 a second (interval) or 100,000 (rate); say how long, and at what cost."""
    import multicast

    sent: list[int] = []

    class Paced(multicast.Multicaster):
        def __iter__(self) -> Any:
            packet = b"x" * 64
            for number in range(count):
                if number in (0, count - 1):
                    sent.append(time.perf_counter_ns())
                yield packet

    options: dict[str, Any] = {"interval": 0.001} if kind == "interval" else {"rate": 100_000 * 64 * 8}
    poller = multicast.Poller()
    print("ready", flush=True)
    sys.stdin.readline()
    Paced(group, port, interface="lo", poller=poller, **options)
    before = time.process_time_ns()
    start = time.perf_counter_ns()
    poller.loop()
    took = time.perf_counter_ns() - start
    print(sent[1] - sent[0], count - 1, (time.process_time_ns() - before) / took, flush=True)


def senders(kind: str, group: str, port: int, count: int) -> None:
    """Let 1,000 senders in one poller send 10 packets a second each for COUNT seconds; say how many, at what cost."""
    import multicast

    class Slow(multicast.Multicaster):
        def __iter__(self) -> Any:
            while True:
                yield b"x" * 64

    print("ready", flush=True)
    sys.stdin.readline()
    with multicast.Poller() as poller:
        made = []
        for number in range(1000):  # spread over the tenth of a second
            poller.call_later(number / 10_000, lambda: made.append(
                Slow(group, port, interface="lo", interval=0.1, poller=poller)
            ))
        end = poller.time() + 0.5
        while poller.time() < end:
            poller.poll(end - poller.time())
        before, begun = sum(one.statistics().packets for one in made), time.process_time_ns()
        end = poller.time() + count
        while poller.time() < end:
            poller.poll(end - poller.time())
        used = time.process_time_ns() - begun
        print(used, sum(one.statistics().packets for one in made) - before, 0, flush=True)


def idle(kind: str, group: str, port: int, count: int) -> None:
    """Wait for COUNT milliseconds in a loop with one listener; say how often it woke, and what it cost."""
    import resource

    import multicast

    poller = multicast.Poller()

    class Silent(multicast.MulticastListener):
        def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
            poller.stop()

    Silent(None, group, port, interface="lo", poller=poller)
    print("ready", flush=True)
    sys.stdin.readline()
    before = resource.getrusage(resource.RUSAGE_SELF)
    poller.loop()  # ends with the packet that the driver sends when the time is over
    after = resource.getrusage(resource.RUSAGE_SELF)
    # The one that ends it is not counted.
    wakes = after.ru_nvcsw - before.ru_nvcsw - 1
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(int(seconds * 1e9), max(wakes, 0), 0, flush=True)


def awaited(kind: str, group: str, port: int, count: int) -> None:
    """What asyncio programs do: packets by ``async for`` or from a queue, or a protocol's method."""
    import asyncio

    from multicast import aio

    loop = asyncio.new_event_loop()
    if "uvloop" in kind:
        import uvloop

        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)

    class Counter(asyncio.DatagramProtocol):
        left = 0
        queue: asyncio.Queue[Any] | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.opened = transport.get_extra_info("socket")

        def datagram_received(self, data: bytes, addr: object) -> None:
            if self.queue is not None:
                self.queue.put_nowait((data, addr))
                return
            self.left -= 1
            if not self.left:
                self.done.set_result(None)

    async def counted(counter: Counter) -> None:
        counter.left, counter.done = count, loop.create_future()
        await counter.done

    async def taken(counter: Counter) -> None:
        assert counter.queue is not None
        for _ in range(count):
            await counter.queue.get()

    async def iterated(packets: aio.Packets) -> None:
        left = count
        async for _ in packets:
            left -= 1
            if not left:
                break

    async def set_up() -> tuple[Callable[[], Any], Callable[[], int]]:
        if kind.startswith("listen"):
            packets = await aio.listen(group, port, interface="lo", rcvbuf=_RCVBUF).__aenter__()
            return lambda: iterated(packets), lambda: packets.statistics().dropped
        if kind.startswith("endpoint"):
            _, counter = await aio.create_multicast_endpoint(Counter, group, port, interface="lo", rcvbuf=_RCVBUF)
            await asyncio.sleep(0.01)
            return lambda: counted(counter), lambda: drops(counter.opened)
        opened = plain_socket(group, port)
        _, counter = await loop.create_datagram_endpoint(Counter, sock=opened)
        if kind.startswith("queue"):
            counter.queue = asyncio.Queue()
            return lambda: taken(counter), lambda: drops(opened)
        return lambda: counted(counter), lambda: drops(opened)

    work, dropped = loop.run_until_complete(set_up())

    def drain() -> tuple[int, int]:
        start = time.perf_counter_ns()
        loop.run_until_complete(work())
        return time.perf_counter_ns() - start, count

    rounds(drain, dropped)


ROLES: dict[str, Callable[[str, str, int, int], None]] = {
    "ours": ours,
    "many": many,
    "recvfrom": recvfrom,
    "asyncio": on_asyncio,
    "uvloop": on_asyncio,
    "twisted": on_twisted,
    "awaited": awaited,
    "multicast_expert": on_multicast_expert,
    "lcm": on_lcm,
    "send": send,
    "echo": echo,
    "pace": pace,
    "senders": senders,
    "idle": idle,
}


if __name__ == "__main__":
    role, kind, group, port, count = sys.argv[1:]
    ROLES[role](kind, group, int(port), int(count))
