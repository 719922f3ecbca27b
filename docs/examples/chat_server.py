"""Chat server: what one guest says, all others hear. A guest's first message is a name. Usage: chat_server.py [PORT]"""

import sys
from contextlib import suppress

import multicast
from multicast.streams import Acceptor, Prefixed, Stream

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 4000


class Guest(Stream):
    framing = Prefixed
    name = None

    def handle_message(self, message):
        text = message.decode(errors="replace")[:500]
        if self.name is None:
            self.name = text[:30]
            self.write(f"Hello {self.name}, there are {len(server.streams)} of us")
            self.tell(f"{self.name} has joined")
        else:
            self.tell(f"{self.name}: {text}")

    def handle_close(self, error):
        if self.name is not None:
            self.tell(f"{self.name} has left")

    def tell(self, text):
        for guest in server.streams:
            if guest is not self and guest.name is not None:
                guest.write(text)


server = Acceptor("127.0.0.1", PORT, Guest, max_connections=100)
print("listening on port", server.address.port, flush=True)
with suppress(KeyboardInterrupt):
    multicast.loop()
