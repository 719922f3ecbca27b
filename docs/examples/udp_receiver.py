"""Print what is sent by UDP to an address of this host.

Usage: udp_receiver.py [ADDRESS [PORT [COUNT]]]
"""

import sys
from contextlib import suppress

import multicast

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else None  # end after so many


class Printer(multicast.DatagramListener):
    count = 0

    def handle_packet(self, packet, addr):
        print(addr.host, addr.port, packet, flush=True)
        self.count += 1
        return self.count == COUNT  # something true closes the listener


printer = Printer(ip=ADDRESS, port=PORT)
print("listening on port", printer.address[1], flush=True)
with suppress(KeyboardInterrupt):
    multicast.loop()
