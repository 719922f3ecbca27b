"""The option --key of the commands, and what is said of packets that did not open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._output import plural

if TYPE_CHECKING:
    from multicast.listeners import DatagramListener
    from multicast.sealed import Seal

__all__ = ["counted", "key_option", "not_opened"]

_F = TypeVar("_F", bound=Callable[..., Any])

# The causes of `sealed.Rejected` in words.
_CAUSES = {
    "not_sealed": "not sealed",
    "unknown_key": "sealed with another key",
    "forged": "forged",
    "replayed": "replayed",
    "too_old": "sealed too long ago, or by another clock",
    "limited": "of too many new senders at once",
    "cut": "cut",
}


def key_option(text: str) -> Callable[[_F], _F]:
    """Add the option --key: a `Seal`, or None. `text` says what is done with the key."""
    return click.option(
        "--key", "seal", metavar="FILE", multiple=True, callback=_seal,
        help=f"{text} with the key in FILE, which `multicast key` makes. Of several, the first seals and all open.",
    )


def _seal(ctx: click.Context, parameter: click.Parameter, paths: Sequence[str]) -> Seal | None:
    if not paths:
        return None
    from multicast.sealed import Seal, read_key_file

    return Seal.from_file(paths[0], accept=[read_key_file(path) for path in paths[1:]])


def _total(listeners: Iterable[DatagramListener]) -> dict[str, int] | None:
    """Return how many packets did not open, by cause; None where none is sealed."""
    total: dict[str, int] | None = None
    for listener in listeners:
        rejected = listener.rejected
        if rejected is not None:
            total = dict.fromkeys(_CAUSES, 0) if total is None else total
            for cause, count in rejected._asdict().items():
                total[cause] += count
    return total


def counted(*listeners: DatagramListener) -> dict[str, object]:
    """Return the field ``rejected`` of a summary, the packets that did not open by cause; none without a key."""
    total = _total(listeners)
    return {} if total is None else {"rejected": total}


def not_opened(*listeners: DatagramListener) -> str:
    """Return how many packets did not open, and why, in words; empty where all did."""
    total = _total(listeners) or {}
    causes = [f"{count} {_CAUSES[cause]}" for cause, count in total.items() if count]
    if not causes:
        return ""
    return f"{plural(sum(total.values()), 'packet')} did not open: {', '.join(causes)}"
