"""Send to a group and listen to it in one program, and tell one's own packets from those of others.

The sender's address and port are a poor mark, for others may forge them and several programs may share a host: a
number drawn at random, in each packet, says whose it is.

Usage: send_and_listen.py [COUNT]
"""

import secrets
import sys

import multicast

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10
ME = secrets.token_hex(8)


class Ticks(multicast.Multicaster):
    def __iter__(self):
        for number in range(COUNT):
            yield f"{ME} tick {number}"


class Others(multicast.MulticastListener):
    def handle_packet(self, packet, addr):
        whose, _, text = packet.decode(errors="replace").partition(" ")
        print("I hear myself:" if whose == ME else f"{addr.host}:", ascii(text), flush=True)
        return text == f"tick {COUNT - 1}" and whose == ME


Others(ip="239.255.0.2", port=4000)
Ticks("239.255.0.2", 4000, interval=0.1)
multicast.loop()
