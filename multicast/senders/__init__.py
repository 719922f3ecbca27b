"""Sending to groups: `sendto` and `Sender` at once, `Multicaster` from an iterable at its pace.

A packet that was taken from an iterable is sent, tried again, or reported; it is never dropped in silence.
"""

from __future__ import annotations

from .multicaster import Multicaster, SenderStatistics
from .sender import Sender, forget_senders, sendto
from .transmission import Transmission, as_packets, destination

__all__ = [
    "Multicaster",
    "Sender",
    "SenderStatistics",
    "Transmission",
    "as_packets",
    "destination",
    "forget_senders",
    "sendto",
]
