"""The shape of the project: who imports whom, what importing costs, what the metadata says."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import netns
import pytest

import multicast

ROOT = Path(__file__).parents[1]
PACKAGE = Path(multicast.__file__).parent

# Imports go down in this table, and not sideways but for the pairs below it. The facade, which re-exports the
# rest, is imported by nobody inside.
LEVELS = {
    "errors": 0,
    "sockets": 1,
    "interfaces": 1,
    "filters": 1,
    "batch": 1,
    "poller": 1,
    "senders": 2,
    "listeners": 2,
    "sealed": 2,
    "measure": 2,
    "discovery": 3,
    "streams": 3,
    "feeds": 3,
    "capture": 3,
    "aio": 3,
    "testing": 3,
    "doctor": 3,
    "bridge": 3,
    "metrics": 3,
    "cli": 4,
    "__main__": 5,
}
# Senders and listeners name the type of a seal, and do not import it when they run.
# A publisher asks the rules of discovery whether an address may be answered.
SIDEWAYS = {
    ("sockets", "interfaces"),
    ("aio", "discovery"),
    ("senders", "sealed"),
    ("listeners", "sealed"),
    ("feeds", "discovery"),
    ("aio", "feeds"),
    ("doctor", "feeds"),
    ("bridge", "aio"),
}
PRIVATE = {"_batch": "batch"}  # and who alone may import it
# What is written without I/O, and so can be tested with a loop.
WITHOUT_IO = (
    "discovery/rules.py", "streams/framers.py", "feeds/moldudp64.py", "feeds/history.py", "feeds/repairs.py",
    "feeds/window.py", "bridge/buffer.py", "bridge/arrivals.py", "bridge/leases.py",
)
FACADE = "__init__"


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """Return the name by which the table knows a file: a sub-package counts as one module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Return which modules of the package a file imports, at any depth, and on which lines."""
    home = ("multicast", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(home[: len(home) + 1 - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] != "multicast":
                continue
            known = len(name) > 1 and (name[1] in LEVELS or name[1] in PRIVATE)
            yield (name[1] if known else FACADE), node.lineno


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    importer = module(path)
    if importer == FACADE:
        return
    assert importer in LEVELS, f"{path.name} has no level in this test's table"
    wrong = [
        f"{path.name}:{line} imports {imported}"
        for imported, line in imports(path)
        if imported != importer
        and (importer, imported) not in SIDEWAYS
        and PRIVATE.get(imported) != importer
        and LEVELS.get(imported, 99) >= LEVELS[importer]
    ]
    assert not wrong


def test_the_import_check_sees_every_way_to_write_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "cli").mkdir()
    path = tmp_path / "cli" / "send.py"
    path.write_text(
        "import os, multicast\n"
        "import multicast.poller as p\n"
        "from multicast import senders\n"
        "from multicast.batch import send\n"
        "from .. import filters, _defaultPoller\n"
        "def later():\n"
        "    from ..sockets import Group\n"
        "from . import listen\n"
        "from .listen import listen\n"
        "from multicast import listen\n"
    )
    assert list(imports(path)) == [
        (FACADE, 1),
        ("poller", 2),
        ("senders", 3),
        ("batch", 4),
        ("filters", 5),
        (FACADE, 5),
        ("cli", 8),
        ("cli", 9),
        (FACADE, 10),
        ("sockets", 7),
    ]


def calls(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            name = node.func
            if isinstance(name, ast.Name):
                yield name.id, node.lineno
            elif isinstance(name, ast.Attribute):
                yield name.attr, node.lineno


@pytest.mark.parametrize("name, owner", [("print", "cli"), ("setsockopt", "sockets")])
def test_one_room_alone_touches_the_outside(name: str, owner: str) -> None:
    wrong = [
        f"{path.name}:{line}"
        for path in modules()
        if module(path) != owner
        for called, line in calls(path)
        if called == name
    ]
    assert not wrong, f"only {owner} calls {name}"


@pytest.mark.parametrize("name", WITHOUT_IO)
def test_what_is_written_without_io_imports_nothing_that_does_any(name: str) -> None:
    path = PACKAGE / name
    assert {imported for imported, _ in imports(path)} <= {"errors", module(path)}
    tree = ast.walk(ast.parse(path.read_bytes()))
    outside = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    assert not outside & {"os", "select", "socket", "time"}


def test_no_module_has_the_name_of_a_public_function() -> None:
    assert not {module(path) for path in modules()} & set(multicast.__all__)


# -- importing -----------------------------------------------------------------------------------------------


def test_importing_opens_nothing_and_loads_nothing_heavy() -> None:
    code = """
        import os, sys
        before = set(sys.modules), os.listdir("/proc/self/fd")
        import threading
        import multicast
        assert os.listdir("/proc/self/fd") == before[1], "a descriptor was opened"
        assert threading.active_count() == 1, "a thread was started"
        print(*set(sys.modules) - before[0])
    """
    done = subprocess.run(netns.python(code), capture_output=True, text=True, timeout=20, check=True)
    loaded = set(done.stdout.split())
    heavy = {"asyncio", "psutil", "ctypes", "click", "rich", "subprocess", "ssl", "email", "http"}
    assert "multicast.poller" in loaded
    assert not loaded & heavy
    # Not a time, which depends on the machine: what costs time here is the number of modules.
    assert len(loaded) < 90, sorted(loaded)


def test_what_is_tested_is_what_tox_installed() -> None:
    if "TOX_ENV_DIR" not in os.environ:
        pytest.skip("not run by tox")
    assert PACKAGE.is_relative_to(os.environ["TOX_ENV_DIR"])


# -- metadata ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_written_in_one_place(setup_cfg: configparser.ConfigParser) -> None:
    assert importlib.metadata.version("multicast-poller") == multicast.__version__
    assert setup_cfg["metadata"]["version"] == "attr: multicast.__version__"


def test_the_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_a_c_module_that_is_demanded_and_not_built_is_explained(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building needs setuptools")
    built = {}
    for required in ("0", "1"):
        environment = {**os.environ, "CC": "/nowhere/cc", "MULTICAST_REQUIRE_EXT": required, "MULTICAST_PURE": "0"}
        built[required] = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
        )
    assert built["0"].returncode == 0, built["0"].stderr
    assert built["1"].returncode != 0
    assert "error: the C module multicast._batch cannot be built" in built["1"].stderr
    assert "leave the variable out" in built["1"].stderr


def test_all_means_every_extra_for_users(setup_cfg: configparser.ConfigParser) -> None:
    extras = setup_cfg["options.extras_require"]
    users = [name for name in extras if name not in ("all", "test", "docs")]
    assert extras["all"].strip() == f"multicast-poller[{','.join(users)}]"


def test_there_is_a_console_script() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="multicast")
    assert script.value == "multicast.cli:main"


def test_the_module_runs_as_the_console_script_does() -> None:
    script = Path(sys.executable).with_name("multicast")
    by_script, by_module = (
        subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=20)
        for command in ([str(script)], [sys.executable, "-m", "multicast"])
    )
    assert by_script.returncode == 0
    assert by_module.stdout == by_script.stdout
    assert by_module.stdout.startswith("Usage: multicast ")
