"""The targets of the fuzzers keep their promises for what the corpus holds, and for arbitrary bytes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parents[1] / "fuzz"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


targets = load("targets")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_the_corpus_holds_breaks_no_promise(name: str) -> None:
    kept = sorted((FUZZ / "corpus" / name).iterdir())
    assert kept
    for path in kept:
        try:
            targets.TARGETS[name](path.read_bytes())
        except Exception as error:
            error.add_note(f"given {path}")
            raise


@pytest.mark.parametrize("name", targets.TARGETS)
@settings(max_examples=100)
@given(data=st.binary(max_size=300))
def test_no_bytes_break_a_promise(name: str, data: bytes) -> None:
    targets.TARGETS[name](data)


def test_every_target_is_run_and_explained() -> None:
    run, readme = load("run"), (FUZZ / "README.rst").read_text()
    names = list(targets.TARGETS)
    assert names == run.PYTHON_TARGETS
    assert re.findall(r"^(\w+)  +\w", readme, re.MULTILINE)[1:] == ["batch", *names]


def test_an_unknown_target_is_refused() -> None:
    command = [sys.executable, str(FUZZ / "run.py"), "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("no such target: nothing; there are batch, group, ")


def test_a_fuzzer_that_cannot_run_has_found_nothing(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError('no atheris here')\n")
    command = [sys.executable, str(FUZZ / "run.py"), "group"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1", "FUZZ_SECONDS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "no atheris here" in done.stdout
    assert done.stdout.endswith("group: did not run to its end; what it said is above\n")
