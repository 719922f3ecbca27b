"""Sequenced feeds: every message in order and once, or its number is told as lost.

`Publisher` sends a MoldUDP64 feed and repairs what is missed; `Subscriber` receives one, from one line or several, and
asks for what is missing; `RepairServer` answers in a publisher's place. `Arbiter` merges the lines of other numbered
feeds, such as RTP, without repair::

    from multicast import feeds

    class Prices(feeds.Publisher):
        def __iter__(self):
            yield from prices()

    class Board(feeds.Subscriber):
        def handle_message(self, message, number, addr):
            print(number, message)

        def handle_gap(self, first, count):
            print(f"{count} messages from {first} on are lost: {self.gap_cause}")

    Prices("239.1.2.3", 5000)
    Board(["239.1.2.3:5000", "239.1.3.3:5000"])

The files of the package: `moldudp64` has the format; `history` and `repairs` what a publisher keeps and answers,
`window` what a subscriber misses and asks for, both without I/O; `publisher`, `server`, `subscriber` and `arbiter` the
classes.
"""

from .arbiter import RTP, Arbiter, Numbering, field
from .publisher import Publisher, PublisherStatistics
from .server import RepairServer
from .subscriber import LineStatistics, Subscriber, SubscriberStatistics

__all__ = [
    "RTP",
    "Arbiter",
    "LineStatistics",
    "Numbering",
    "Publisher",
    "PublisherStatistics",
    "RepairServer",
    "Subscriber",
    "SubscriberStatistics",
    "field",
]
