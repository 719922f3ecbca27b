"""Groups over NATS: what is sent to a group at one site is heard at the others.

Clouds, Wi-Fi and the internet do not carry multicast. A `Bridge` at each site publishes the packets of its groups to a
NATS server, under a subject for each group, and injects what the bridges of other sites have published. Extra
``bridge``. The modules beside that of `Bridge` hold what it decides, without I/O: names and headers (`naming`), the
bounded buffer (`buffer`), which bridge of a site is active (`leases`), gaps and doubles (`arrivals`).
"""

from __future__ import annotations

from .bridging import Bridge, BridgeStatistics, Credentials
from .naming import Link, Origin, parse_header, subject_of
from .servers import Server, ask_status, find_server, serving

__all__ = [
    "Bridge",
    "BridgeStatistics",
    "Credentials",
    "Link",
    "Origin",
    "Server",
    "ask_status",
    "find_server",
    "parse_header",
    "serving",
    "subject_of",
]
