"""Watch two groups at once, for some seconds, in a trio program."""

import sys

import trio

from multicast import aio

GROUPS, PORT = ("239.1.2.3", "239.1.2.4"), 5000


async def watch(group: str) -> None:
    async with aio.listen(group, PORT) as packets:
        print("watching", group)
        async for packet, addr in packets:
            print(f"{group}: {packet.decode()} from {addr.host}")


async def main(seconds: float) -> None:
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for group in GROUPS:
                nursery.start_soon(watch, group)
            await trio.sleep(0.1)
            for group in GROUPS:
                await aio.sendto(f"hello {group}", group, PORT)
    print("left both groups")


trio.run(main, float(sys.argv[1]) if len(sys.argv) > 1 else 1)
