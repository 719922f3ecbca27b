"""Answer requests with an async function, and ask a group who is there; asyncio."""

import asyncio

from multicast import Address, aio

GROUP, PORT = "239.1.2.3", 5000


async def answer(packet: bytes, addr: Address) -> str | None:
    if packet != b"who is there?":
        return None
    await asyncio.sleep(0.01)  # a look into a database, say
    return "the thermometer in the hall"


async def main() -> None:
    async with aio.responder(answer, GROUP, PORT):
        asked = aio.request("who is there?", GROUP, PORT, limit=1)
        async for packet, addr in asked:
            print(f"{addr.host}: {packet.decode()}")
        print("answered in time" if asked.round_trip < 1 else "answered late")


asyncio.run(main())
