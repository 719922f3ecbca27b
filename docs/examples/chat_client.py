"""Chat client: sends what you type, prints what the others say, until Ctrl-D. Usage: chat_client.py [NAME [PORT]]"""

import os
import sys

import multicast
from multicast.streams import Lines, Prefixed, Stream, connect


class Client(Stream):
    framing = Prefixed

    def handle_message(self, message):
        text = message.decode(errors="replace")
        print("".join(c if c.isprintable() else "?" for c in text), flush=True)  # terminals obey control characters

    def handle_close(self, error):
        self.poller.stop()


class Keyboard(Lines):
    def fileno(self):
        return 0

    def handle_read(self):
        data = os.read(0, 4096)
        self.feed(data)
        while (line := self.take()) is not None:
            client.write(line)
        if not data:
            client.finish()
            multicast.unregister(self)


client = connect("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 4000, Client)
client.write(sys.argv[1] if len(sys.argv) > 1 else "somebody")
multicast.register(Keyboard())
multicast.loop()
sys.exit(client.error)
