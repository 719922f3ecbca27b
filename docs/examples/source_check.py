"""Wait for one packet and tell where it came from; exit with 1 when that is not the address it should be.

Usage: source_check.py [ADDRESS]
"""

import sys

import multicast

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"


def check(packet, addr):
    print(f"{len(packet)} bytes from {addr.host} port {addr.port}, arrived on {addr.interface}", flush=True)
    return addr


print("listening", flush=True)
try:
    addr = multicast.listen(check, "225.17.0.18", 30000, details=True)
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(addr.host != ADDRESS)
