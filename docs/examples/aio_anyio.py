"""Run listeners with handlers and timers of their own inside an anyio program, whatever loop it uses."""

import sys

import anyio

import multicast
from multicast import aio


class Meter(multicast.MulticastListener):
    """Counts packets, and says so ten times a second."""

    def __init__(self, poller: multicast.Poller) -> None:
        super().__init__(ip="239.1.2.3", port=5000, poller=poller)
        self.count = 0
        poller.call_later(0.1, self.report)

    def handle_packet(self, packet: bytes, addr: multicast.Address) -> None:
        self.count += 1

    def report(self) -> None:
        print(self.count, "packets")
        self.count = 0
        self.poller.call_later(0.1, self.report)


async def main(seconds: float) -> None:
    with multicast.Poller() as poller:
        Meter(poller)
        async with aio.drive(poller):
            await aio.sendto((b"sample" for _ in range(1000)), "239.1.2.3", 5000)
            await anyio.sleep(seconds)


anyio.run(main, float(sys.argv[1]) if len(sys.argv) > 1 else 1, backend=sys.argv[2] if len(sys.argv) > 2 else "asyncio")
