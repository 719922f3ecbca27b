"""A line of progress on the terminal, or an event a second with --json, while a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from multicast.poller import Poller

from ._output import Output, columns

# How often progress is shown, in seconds.
_PROGRESS = 1.0


class Progress:
    """A line for people that is written over while a command runs."""

    def __init__(
        self, out: Output, poller: Poller, text: Callable[[], str], fields: Callable[[], dict[str, Any]]
    ) -> None:
        self._out = out
        self._poller = poller
        self._text = text
        self._fields = fields
        self._shown = sys.stderr.isatty() and not out.quiet and not out.json
        self._timer = poller.call_later(_PROGRESS, self._tick) if self._shown or out.json else None

    def _tick(self) -> None:
        self._timer = self._poller.call_later(_PROGRESS, self._tick)
        if self._out.json:
            self._out.event("progress", **self._fields())
        else:
            text = self._text()[: (columns(sys.stderr) or 80) - 1]  # a longer line cannot be written over
            sys.stderr.write(f"\r{text}\033[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Make room for what is said last."""
        if self._timer is not None:
            self._timer.cancel()
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
