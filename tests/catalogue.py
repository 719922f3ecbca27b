"""The documentation's table of faults, read: its rows, and the tests it names."""

from __future__ import annotations

import re
from pathlib import Path

_TABLE = Path(__file__).parents[1] / "docs" / "faults.rst"


def rows() -> dict[str, str]:
    """Return the rows of the table: name, and what stands there. There are none where the documentation is not."""
    text = _TABLE.read_text() if _TABLE.exists() else ""
    parts = re.split(r"^   \* - (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: text for name, text in zip(parts[::2], parts[1::2], strict=True) if name != "Row"}


def tests(text: str) -> list[tuple[str, str]]:
    """Return the tests named in some text of the table: their file, without .py, and their name."""
    return re.findall(r"``(test_\w+)::(test_\w+)``", text)


def all_tests() -> set[tuple[str, str]]:
    """Return all tests of the table."""
    return {test for text in rows().values() for test in tests(text)}
