"""The header of RTP (RFC 3550 section 5.1), taken off."""

from __future__ import annotations

from .flows import RTP

__all__ = ["rtp_payload"]


def rtp_payload(packet: bytes) -> bytes | None:
    """Return what an RTP packet carries, without header, sources, extension and padding; None for what is no RTP."""
    if len(packet) < RTP.size or packet[0] >> 6 != 2:
        return None
    begin = RTP.size + 4 * (packet[0] & 15)
    if packet[0] & 0x10:  # an extension: 16 bits of its own, and its length in words of 32 bits
        if len(packet) < begin + 4:
            return None
        begin += 4 + 4 * int.from_bytes(packet[begin + 2 : begin + 4], "big")
    end = len(packet) - (packet[-1] if packet[0] & 0x20 else 0)
    return packet[begin:end] if begin <= end else None
