"""A relay between two network devices that does to packets what bad networks do, the same for the same seed.

Run as a program on the host between: ``python relay.py ra rb '{"seed": 1, "loss": 0.2}'``. It prints ``ready``, relays
every frame between the devices until its stdin is closed, and prints as JSON what it did. Faults befall UDP packets to
IPv4 groups only, those on their way from the first device to the second, numbered from 0 in the order they come:

``loss`` ``dup`` ``corrupt`` ``reorder``  probability of each; `reorder` holds a packet back until `depth` later ones
                                          have passed
``drop``                                  numbers to drop
``every``                                 drop each packet whose number has remainder 0 by this
``forge``                                 with `corrupt`: make the checksum 0, "not computed", so that nobody notices
``rate``                                  packets per second that pass, in bursts of up to a tenth of them

Checksums are computed anew for what is not corrupted: devices leave them to hardware that is not there.
"""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import sys
import time
from typing import Any


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_to_group(frame: bytes) -> int | None:
    """Return where the UDP header of a frame is, None if it has none or goes to no IPv4 group."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP or frame[30] >> 4 != 14:
        return None
    if frame[20] & 0x1F or frame[21]:  # a fragment, and not the first
        return None
    return 14 + 4 * (frame[14] & 15)


def with_checksum(frame: bytes, at: int) -> bytes:
    if frame[20] & 0x20:  # more fragments follow: the checksum is over all of them
        return frame
    length = struct.unpack_from("!H", frame, at + 4)[0]
    datagram = frame[at : at + 6] + b"\0\0" + frame[at + 8 : at + length]
    value = checksum(frame[26:34] + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length) + datagram) or 0xFFFF
    return frame[: at + 6] + struct.pack("!H", value) + frame[at + 8 :]


class Faults:
    """Decides what becomes of each packet; no I/O."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted = wanted
        self.random = random.Random(wanted.get("seed", 0))
        self.number = -1
        self.held: list[list[Any]] = []
        self.tokens = wanted.get("rate", 0) / 10
        self.last = time.monotonic()
        self.did: dict[str, list[int]] = {"lost": [], "duplicated": [], "corrupted": [], "reordered": [], "sent": []}

    def chance(self, what: str) -> bool:
        # Asked for every packet and kind, so that one fault more does not change where the others fall.
        return self.random.random() < float(self.wanted.get(what, 0))

    def apply(self, frame: bytes, at: int) -> list[bytes]:
        """Return the frames to send on for this one."""
        self.number += 1
        lost, doubled, corrupted, held = (self.chance(what) for what in ("loss", "dup", "corrupt", "reorder"))
        every = self.wanted.get("every")
        if lost or self.number in self.wanted.get("drop", ()) or (every and self.number % every == 0) or self.late():
            self.did["lost"].append(self.number)
            return self.release()
        if corrupted:
            self.did["corrupted"].append(self.number)
            frame = frame[:-1] + bytes([frame[-1] ^ 0xFF])
            if self.wanted.get("forge"):
                frame = frame[: at + 6] + b"\0\0" + frame[at + 8 :]
        frames = [frame]
        if doubled:
            self.did["duplicated"].append(self.number)
            frames.append(frame)
        if held:
            self.did["reordered"].append(self.number)
            self.held.append([self.wanted.get("depth", 3), frame, self.number])
            frames = []
        self.did["sent"] += [self.number] * len(frames)
        return frames + self.release()

    def late(self) -> bool:
        rate = self.wanted.get("rate")
        if not rate:
            return False
        now = time.monotonic()
        self.tokens = min(rate / 10, self.tokens + rate * (now - self.last))
        self.last = now
        if self.tokens < 1:
            return True
        self.tokens -= 1
        return False

    def release(self) -> list[bytes]:
        for entry in self.held:
            entry[0] -= 1
        out = [entry for entry in self.held if entry[0] < 0]
        self.held = [entry for entry in self.held if entry[0] >= 0]
        self.did["sent"] += [number for _, _, number in out]
        return [frame for _, frame, _ in out]


def main() -> None:
    names, faults = sys.argv[1:3], Faults(json.loads(sys.argv[3]))
    wires = []
    for name in names:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        wire.bind((name, 3))
        wires.append(wire)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([*wires, sys.stdin], [], [])
        for here, there in ((wires[0], wires[1]), (wires[1], wires[0])):
            if here not in ready:
                continue
            frame, origin = here.recvfrom(65536)
            if origin[2] == socket.PACKET_OUTGOING:
                continue
            at = udp_to_group(frame)
            if at is None:
                there.send(frame)
                continue
            frame = with_checksum(frame, at)
            for out in faults.apply(frame, at) if here is wires[0] else [frame]:
                there.send(out)
        if sys.stdin in ready and not [wire for wire in wires if wire in ready]:
            break
    for _, frame, number in faults.held:
        wires[1].send(frame)
        faults.did["sent"].append(number)
    print(json.dumps(faults.did), flush=True)


if __name__ == "__main__":
    main()
