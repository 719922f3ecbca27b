"""Acknowledge every message that is sent to a group, until Ctrl-C.

Usage: acknowledge.py [GROUP [PORT]]
"""

import sys
from contextlib import suppress

import multicast
from multicast.discovery import Responder

GROUP = sys.argv[1] if len(sys.argv) > 1 else "224.0.1.2"
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 10000


class Acknowledger(Responder):
    def handle_request(self, packet, addr):
        print("received", len(packet), "bytes from", addr.host, ascii(packet.decode(errors="replace")), flush=True)
        return "ack"


Acknowledger(ip=GROUP, port=PORT)
print("waiting for messages", flush=True)
with suppress(KeyboardInterrupt):
    multicast.loop()
