"""Telemetry with a history for those who join late: python telemetry.py send|receive [PORT [COUNT]]."""

import json
import sys
import time
from collections.abc import Iterator

import multicast
from multicast import feeds

PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 5001
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 600


class Probe(feeds.Publisher):
    """Publishes a reading ten times a second, and keeps 16 MiB of them."""

    def __iter__(self) -> Iterator[str]:
        for number in range(COUNT):
            yield json.dumps({"time": time.time(), "depth": number / 10})


class Log(feeds.Subscriber):
    """Prints all readings of the session, those from before it was started as well."""

    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        print(number, json.loads(message)["depth"], flush=True)

    def handle_end(self) -> None:
        self.close()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        Probe("239.1.2.4", PORT, history=16 << 20, interval=0.1, heartbeat=0.5)
    else:
        Log(f"239.1.2.4:{PORT}", start="first")
    multicast.loop()
