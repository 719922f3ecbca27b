"""Receiving from groups: `MulticastListener` to subclass, `listen` for the simple cases, `Inbox` to iterate over.

The way of a packet: `Poller.poll` -> `handle_read` -> `batch.receive` -> the filter -> `handle_packet`.
"""

from __future__ import annotations

from .datagrams import DatagramListener, Statistics
from .inbox import Inbox, Newest, listen
from .membership import HasAddress, MulticastListener

__all__ = ["DatagramListener", "HasAddress", "Inbox", "MulticastListener", "Newest", "Statistics", "listen"]
