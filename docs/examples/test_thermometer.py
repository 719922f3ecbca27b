"""A program of yours, and its test: `pytest test_thermometer.py`."""

import multicast
from multicast import testing


class Thermometer(multicast.Multicaster):
    def __iter__(self):
        while True:
            yield "21.5"


class Display(multicast.MulticastListener):
    """Shows the last temperature, for as long as it is fresh."""

    shown = "--.-"
    timer = None

    def handle_packet(self, packet, addr):
        if self.timer is not None:
            self.timer.cancel()
        self.shown = packet.decode()
        self.timer = self.poller.call_later(5, self.forget)

    def forget(self):
        self.shown = "--.-"


def test_the_display_forgets_what_is_old():
    with testing.Network(seed=1, loss=0.3, delay=0.02) as net:
        display = Display()
        Thermometer(interval=1)
        net.advance(60)
        assert display.shown == "21.5"  # though a third of the packets is lost
        net.loss = 1
        net.advance(60)
        assert display.shown == "--.-"
        net.loss = 0
        net.advance(2)
        assert display.shown == "21.5"
