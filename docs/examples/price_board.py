"""Receives the feed of price_feed.py by both lines, from its first message on: python price_board.py [PORT]."""

import sys
from contextlib import suppress

import multicast
from multicast import feeds

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 5000


class Board(feeds.Subscriber):
    def handle_message(self, message: bytes, number: int, addr: multicast.Address) -> None:
        print(number, message.decode(), flush=True)

    def handle_gap(self, first: int, count: int) -> None:
        print(f"{count} messages from number {first} on are lost: {self.gap_cause}")

    def handle_end(self) -> None:
        for group, line in zip(self.lines, self.statistics().lines, strict=True):
            print(f"{group}: {line.firsts} first, {line.duplicates} second, {line.lost} left out")
        self.close()


if __name__ == "__main__":
    Board([f"239.1.2.3:{PORT}", f"239.1.3.3:{PORT}"], start="first")
    print("waiting for prices", flush=True)
    with suppress(KeyboardInterrupt):
        multicast.loop()
