"""Echo server for many clients at once.

Usage: tcp_echo_many.py [PORT [CLIENTS]]
"""

import sys
from contextlib import suppress

import multicast
from multicast.streams import Acceptor, Stream

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
CLIENTS = int(sys.argv[2]) if len(sys.argv) > 2 else None  # end after so many


class Echo(Stream):
    def handle_connected(self):
        print("hello", *self.peer, flush=True)

    def handle_message(self, message):
        self.write(message)

    def handle_close(self, error):
        print("goodbye", *self.peer, error or "", flush=True)
        if acceptor.accepted == CLIENTS and not acceptor.streams:
            acceptor.close()


acceptor = Acceptor("127.0.0.1", PORT, Echo)
print("listening on port", acceptor.address.port, flush=True)
with suppress(KeyboardInterrupt):
    multicast.loop()
