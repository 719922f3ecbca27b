"""The table of faults in the documentation names every row, and tests that exist and are chosen by their marker."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import catalogue
import pytest

ROWS = [
    *(f"N{number}" for number in range(1, 26)),
    *(f"K{number}" for number in range(1, 18)),
    *(f"E{number}" for number in range(1, 18)),
    *(f"S{number}" for number in range(1, 19)),
]


@functools.cache
def functions(file: str) -> set[str]:
    """Return the names of the functions of a test file."""
    text = Path(__file__).with_name(f"{file}.py").read_text()
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there_in_order() -> None:
    assert list(catalogue.rows()) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_tests_or_says_why_not(row: str) -> None:
    text = catalogue.rows()[row]
    named = catalogue.tests(text)
    assert bool(named) != ("Not part of the package yet" in text)
    for file, test in named:
        assert test in functions(file)


def test_the_tests_named_are_marked(request: pytest.FixtureRequest) -> None:
    named = catalogue.all_tests()
    assert len(named) > 100
    for item in request.session.items:
        if isinstance(item, pytest.Function) and (item.path.stem, item.originalname) in named:
            assert item.get_closest_marker("fault"), item.nodeid
