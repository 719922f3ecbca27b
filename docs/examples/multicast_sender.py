"""Send a counter to a group from a chosen address of this host, twice a second.

Nobody on this host hears it, except from 127.0.0.1, the default: such packets go by lo, where they end here.

Usage: multicast_sender.py [ADDRESS [COUNT]]
"""

import itertools
import sys
from contextlib import suppress

import multicast

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"  # of this host
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else None  # end after so many


class Counter(multicast.Multicaster):
    def __iter__(self):
        for number in itertools.islice(itertools.count(), COUNT):
            message = f"Hello world: {number}"
            print(message, flush=True)
            yield message


Counter("239.255.0.1", 4000, source_ip=ADDRESS, loopback=False, interval=0.5)
with suppress(KeyboardInterrupt):
    multicast.loop()
