"""Recording groups to capture files, and playing captures back with their own timing.

`Recorder` is a listener that writes every packet to a pcapng file, `Replayer` a sender that takes its packets from one.
`read` and `write` are the files themselves, for what else is to be done with them::

    from multicast import capture

    with capture.read("feed.pcapng") as packets, capture.write("one-group.pcapng") as file:
        for packet in packets:
            if packet.group == "239.1.2.3":
                file.write(packet)
"""

from __future__ import annotations

from .packets import Counts, Packet, link_name
from .reading import Reader, Series, read
from .recorder import Recorder
from .replayer import Pattern, Replayer, Summary, Timing, survey
from .writing import Writer, write

__all__ = [
    "Counts",
    "Packet",
    "Pattern",
    "Reader",
    "Recorder",
    "Replayer",
    "Series",
    "Summary",
    "Timing",
    "Writer",
    "link_name",
    "read",
    "survey",
    "write",
]
