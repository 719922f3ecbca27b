"""A price feed on two lines: python price_feed.py [PORT [COUNT]]. Subscribers miss nothing: see price_board.py."""

import itertools
import random
import sys

import multicast
from multicast import feeds

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else None
LINES = "239.1.2.3", "239.1.3.3"


class Line(feeds.Publisher):
    """One line of the feed. It is told what to publish."""


def main() -> None:
    # Both lines have one session, so the numbers of their messages are the same.
    first = Line(LINES[0], PORT)
    lines = [first, Line(LINES[1], PORT, session=first.session)]
    price = 1.07
    for number in itertools.count(1):
        price += random.uniform(-0.001, 0.001)
        for line in lines:
            line.publish(f"{number} EUR {price:.4f}")
        multicast.poll(0.001)
        if number == COUNT:
            break
    for line in lines:
        line.end()
    multicast.loop()


if __name__ == "__main__":
    main()
