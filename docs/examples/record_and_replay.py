"""Record a group, play the recording back to another one, and compare what is heard."""

import tempfile
from pathlib import Path

import multicast
from multicast import capture


class Printer(multicast.MulticastListener):
    def handle_packet(self, packet, addr):
        print(packet.decode())
        return packet == b"three"  # the last one


path = Path(tempfile.mkdtemp()) / "feed.pcapng"

recorder = capture.Recorder(path, ip="239.1.2.3", port=5000, limit=3)
multicast.sendto(["one", "two", "three"], "239.1.2.3", 5000, ttl=0)
while not recorder.closed:
    multicast.poll(1)

Printer(ip="239.9.9.9", port=5000)
capture.Replayer(path, to="239.9.9.9", ttl=0)
multicast.loop()
