"""Echo client: sends what you type, prints what comes back, until an empty line. Usage: tcp_echo_client.py [PORT]"""

import os
import sys

import multicast
from multicast.streams import Lines, Stream, connect

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 4000


class Client(Stream):
    framing = Lines

    def handle_message(self, message):
        print(message, flush=True)

    def handle_close(self, error):
        self.poller.stop()


class Keyboard(Lines):
    def fileno(self):
        return 0

    def handle_read(self):
        self.feed(os.read(0, 4096) or b"\n")
        while line := self.take():
            client.write(line)
        if line is not None:
            client.finish()  # the server echoes what it has, and closes
            multicast.unregister(self)


client = connect("127.0.0.1", PORT, Client)
multicast.register(Keyboard())
multicast.loop()
sys.exit(client.error)
