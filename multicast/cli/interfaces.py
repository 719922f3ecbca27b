"""The command `interfaces`: the interfaces of this host and the groups joined there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multicast.interfaces import interfaces as interfaces_here
from multicast.interfaces import memberships

from ._app import (
    command,
)
from ._errors import Exit
from ._output import Output, printable


@command(
    "interfaces",
    json=True,
    examples=["multicast interfaces", "multicast interfaces --json", "multicast interfaces | grep 239.1.2.3"],
)
def interfaces(out: Output) -> Exit:
    """Show the network interfaces of this host, and which groups are joined there.

    A group that more than one socket has joined is followed by how many. The kernel joins some by itself, such as
    224.0.0.1 and ff02::1. What a narrow terminal has no room for is left out; a pipe and --json get all of it.
    """
    joined = memberships()
    rows = []
    for one in interfaces_here():
        groups = [(each.group, each.users) for each in joined if each.interface == one.name]
        if out.json:
            out.event(
                "interface",
                index=one.index,
                name=one.name,
                addresses=one.addresses,
                up=one.up,
                carrier=one.running,
                multicast=one.multicast or one.loopback,
                loopback=one.loopback,
                mtu=one.mtu,
                groups=[{"group": group, "users": users} for group, users in groups],
            )
            continue
        state = "down" if not one.up else "up" if one.running else "no carrier"
        able = "yes" if one.multicast or one.loopback else "no"
        texts = [group if users == 1 else f"{group} x{users}" for group, users in groups]
        for number in range(max(1, len(one.addresses), len(texts))):
            about = (str(one.index), one.name, state, able, str(one.mtu)) if number == 0 else ("",) * 5
            rows.append((*about, *("".join(column[number : number + 1]) for column in (one.addresses, texts))))
    if not out.json:
        head = ("INDEX", "NAME", "STATE", "MULTICAST", "MTU", "ADDRESSES", "GROUPS JOINED")
        out.table(head, rows, spare=("INDEX", "MTU", "MULTICAST"), otherwise=lambda: _stacked(out, rows))
    return Exit.YES


def _stacked(out: Output, rows: Iterable[Sequence[str]]) -> None:
    """Write the rows of the table one below the other, for a terminal that is narrow or addresses that are long."""
    groups: list[str] = []
    for _, name, state, able, _, address, group in rows:
        if name:
            _write_joined(out, groups)
            text = f"{printable(name)}  {state}" + ("" if able == "yes" else ", no multicast")
            out.line(out.style(text, "bold"))
            groups = []
        if address:
            out.line(f"  {address}")
        if group:
            groups.append(group)
    _write_joined(out, groups)


def _write_joined(out: Output, groups: Sequence[str]) -> None:
    for group in groups:
        out.line(f"  joined {group}")
