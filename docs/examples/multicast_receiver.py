"""Print what is sent to a group. Start it as often as you like: each receiver on a host hears everything.

Usage: multicast_receiver.py [INTERFACE [COUNT]]     where INTERFACE is a name, or an address of this host
"""

import sys
from contextlib import suppress

import multicast

INTERFACE = sys.argv[1] if len(sys.argv) > 1 else None  # None: all of them
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else None  # end after so many


class Printer(multicast.MulticastListener):
    count = 0

    def handle_packet(self, packet, addr):
        print(addr.host, packet, flush=True)
        self.count += 1
        return self.count == COUNT  # something true closes the listener


printer = Printer(ip="239.255.0.1", port=4000, interface=INTERFACE)
print("listening on", *printer.interfaces, flush=True)
with suppress(KeyboardInterrupt):
    multicast.loop()
