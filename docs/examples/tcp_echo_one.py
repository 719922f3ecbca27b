"""Echo server for one client at a time: the next one waits until the first has left.

Usage: tcp_echo_one.py [PORT [CLIENTS]]
"""

import sys
from contextlib import suppress

import multicast
from multicast.streams import Acceptor, Stream

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
CLIENTS = int(sys.argv[2]) if len(sys.argv) > 2 else None  # end after so many


class Echo(Stream):
    def handle_message(self, message):
        print(message, flush=True)
        self.write(message)

    def handle_close(self, error):
        if acceptor.accepted == CLIENTS:
            acceptor.close()


acceptor = Acceptor("127.0.0.1", PORT, Echo, max_connections=1)
print("listening on port", acceptor.address.port, flush=True)
with suppress(KeyboardInterrupt):
    multicast.loop()
