"""Send a counter to a single host by UDP, once a second.

Usage: udp_sender.py [HOST [PORT [COUNT]]]
"""

import itertools
import sys
from contextlib import suppress

import multicast

HOST = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else None  # end after so many


class Counter(multicast.Multicaster):
    def __iter__(self):
        for number in itertools.islice(itertools.count(), COUNT):
            message = f"Hello world: {number}"
            print(message, flush=True)
            yield message


Counter(HOST, PORT, interval=1)
with suppress(KeyboardInterrupt):
    multicast.loop()
