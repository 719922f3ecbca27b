"""What the documentation promises, and what `help()` shows."""

from __future__ import annotations

import inspect

import pytest

import multicast


@pytest.mark.parametrize("name", ["MulticastListener", "Multicaster", "Inbox"])
def test_help_shows_the_arguments_of_the_constructor(name: str) -> None:
    shown = list(inspect.signature(getattr(multicast, name)).parameters)
    assert shown == list(inspect.signature(getattr(multicast, name).__init__).parameters)[1:]
    assert {"ip", "port"} <= set(shown)
