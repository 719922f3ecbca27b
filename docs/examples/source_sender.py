"""Send to a group from one address of a host that has several, whatever its routes say.

`source_ip` decides both: the address that receivers see, and the interface the packet leaves by.

Usage: source_sender.py [ADDRESS [PORT]]     where PORT is the port it comes from, any if it is left out
"""

import sys

import multicast

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 0

packet = bytes([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x88, 0xAA, 0xBB, 0xCC, 0xDD])
multicast.sendto(packet, "225.17.0.18", 30000, source_ip=ADDRESS, source_port=PORT)
