"""Send a message to a group, and gather the acknowledgements that come before the time is over.

Nobody knows how many will come, so there is nothing to wait for but the time.

Usage: gather_acknowledgements.py [MESSAGE [GROUP [PORT [SECONDS]]]]
"""

import sys

from multicast.discovery import request

MESSAGE = sys.argv[1] if len(sys.argv) > 1 else "Hello, group!"
GROUP = sys.argv[2] if len(sys.argv) > 2 else "224.0.1.2"
PORT = int(sys.argv[3]) if len(sys.argv) > 3 else 10000
SECONDS = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0

count = 0
replies = request(MESSAGE, GROUP, PORT, ttl=1, timeout=SECONDS)
for packet, addr in replies:
    text = ascii(packet.decode(errors="replace"))
    print(f"received {text} from {addr.host} after {1000 * replies.round_trip:.2f} ms", flush=True)
    count += 1
print(f"the time is over, {count} acknowledged")
