"""What ping, bench and top count: bytes, numbers and times go in, values come out; no I/O.

========= ==============================================================================================================
probes    the wire format of the probes that ping, its responders and bench send
sequences counting of sequence numbers: lost, duplicate, late; histograms of times
hearing   what a responder has received in each session
matrices  what an asking host has received from each responder, and the matrix of which host hears which
flows     rate, loss and jitter of each source of a group: RTP, MPEG transport streams, probes
rtp       the header of RTP, taken off
decoders  what well-known packets say, in one line: RTP, MPEG-TS, DNS, SSDP, SAP, PTP, sACN, LCM, MoldUDP64
========= ==============================================================================================================

All tables are bounded, whatever arrives. The core of the library does not use this package.
"""

from __future__ import annotations

from .decoders import decode
from .flows import STRIP, Cell, Flow, FlowKey, Jitter, Meters, Numbering, spark
from .hearing import Hearing
from .matrices import Ledger, Responses, matrix
from .probes import ASK_SIZE, PING_SIZE, PREFIX, Kind, Peer, Probe, parse, peek
from .rtp import rtp_payload
from .sequences import Histogram, Order, Sequence

__all__ = [
    "ASK_SIZE",
    "PING_SIZE",
    "PREFIX",
    "STRIP",
    "Cell",
    "Flow",
    "FlowKey",
    "Hearing",
    "Histogram",
    "Jitter",
    "Kind",
    "Ledger",
    "Meters",
    "Numbering",
    "Order",
    "Peer",
    "Probe",
    "Responses",
    "Sequence",
    "decode",
    "matrix",
    "parse",
    "peek",
    "rtp_payload",
    "spark",
]
