"""The examples in the docstrings and in README.rst do what they say."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import multicast
from multicast import capture

README = Path(__file__).parents[1] / "README.rst"


def examples() -> list[doctest.DocTest]:
    """Return the examples of every module; each may use the public names without importing them."""
    found = []
    for info in pkgutil.walk_packages(multicast.__path__, "multicast."):
        if not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            public = {name: getattr(multicast, name) for name in multicast.__all__}
            found += doctest.DocTestFinder().find(module, extraglobs=public)
    found += doctest.DocTestFinder().find(multicast)
    return [test for test in found if test.examples]


def run(test: doctest.DocTest) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST)
    output: list[str] = []
    runner.run(test, out=output.append)
    assert not runner.failures, "".join(output)


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_docstring(test: doctest.DocTest, tmp_path: Path) -> None:
    """Examples may use a capture file of one packet, whose path is `example`."""
    path = tmp_path / "example.pcapng"
    with capture.write(path) as file:
        file.write(capture.Packet(b"hello", ("10.0.0.5", 40112), "239.1.2.3", 5000))
    test.globs["example"] = str(path)
    run(test)


def test_readme() -> None:
    text = README.read_text()
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, README.name, str(README), 0)
    assert test.examples
    run(test)
