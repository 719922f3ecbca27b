"""Send ticks to a group and print what arrives there, in one asyncio program."""

import asyncio
import sys

from multicast import aio

GROUP, PORT = "239.1.2.3", 5000


async def tick(count: int) -> None:
    async with aio.Sender(GROUP, PORT) as sender:
        for number in range(count):
            await sender.send(f"tick {number}")
            await asyncio.sleep(0.1)


async def main(count: int) -> None:
    async with aio.listen(GROUP, PORT, limit=count) as packets:
        ticking = asyncio.create_task(tick(count))
        async for packet, addr in packets:
            print(addr.host, packet.decode())
        await ticking


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
