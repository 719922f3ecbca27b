"""What the documentation shows is so: its commands exist, its program prints what it says, its picture is true."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_frame

import multicast
from multicast import sealed
from multicast.cli import COMMANDS, _app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["MulticastListener", "Multicaster", "Inbox"])
def test_help_shows_the_arguments_of_the_constructor(name: str) -> None:
    shown = list(inspect.signature(getattr(multicast, name)).parameters)
    assert shown == list(inspect.signature(getattr(multicast, name).__init__).parameters)[1:]
    assert {"ip", "port"} <= set(shown)


def command_lines() -> Iterator[tuple[str, str]]:
    """Return the lines that readers are shown to type, with the page each is on."""
    for page in [ROOT / "README.rst", *sorted(DOCS.rglob("*.rst"))]:
        prompt = r"^    multicast (.*)$" if page.parent == ROOT else r"^ +[$#] multicast (.*)$"
        for line in re.findall(prompt, page.read_text().replace("\\\n", ""), re.MULTILINE):
            yield page.name, line


@pytest.mark.parametrize("page, line", list(command_lines()))
def test_every_command_line_shown_is_understood(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--key" in line:
        pytest.importorskip("cryptography", reason="cryptography is not installed")
        sealed.new_key_file(tmp_path / "group.key")
        monkeypatch.chdir(tmp_path)
    shell = "|<>&;"
    words = shlex.shlex(line, posix=True, punctuation_chars=shell)
    words.whitespace_split = True
    name, *arguments = itertools.takewhile(lambda word: word[0] not in shell, words)
    if name.startswith("-"):
        return
    assert name in COMMANDS
    program = _app.program.make_context("multicast", [], resilient_parsing=True)
    command = _app.program.get_command(program, name)
    assert command is not None
    command.make_context(name, arguments, program)


def test_the_program_of_the_tutorial_prints_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "tutorial" / "station.py"], capture_output=True, text=True, timeout=20, check=True
    )
    # Which of two listeners hears a packet first is the kernel's choice.
    assert sorted(done.stdout.splitlines()) == sorted((DOCS / "tutorial" / "station.txt").read_text().splitlines())


def strings(path: Path) -> Iterator[str]:
    """Return the texts written in a program, with a mark for what is filled in."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[ds]", "\0", node.value)


def test_the_messages_explained_are_those_given() -> None:
    given = "\n".join(text for path in test_frame.modules() for text in strings(path))
    explained = re.findall(r"\*\*(.+?)\*\*", (DOCS / "errors.rst").read_text())
    assert len(explained) > 40
    filled_in = r"\b(?:[A-Z]{2,}|N|M|IPv[46])\b|\.\.\.|-1"
    parts = [part.strip(" ,.") for message in explained for part in re.split(filled_in, message)]
    assert not [part for part in parts if len(part) > 4 and part not in given]


def test_the_picture_of_the_layers_has_every_room_on_its_level() -> None:
    drawn: dict[str, int] = {}
    level = None
    for text in re.findall(r"<text[^>]*>(.*?)</text>", (DOCS / "drawings" / "layers.html").read_text()):
        if heading := re.match(r"([0-9]) &#160; ", text):
            level = int(heading[1])
        elif level is not None and text.isidentifier():
            drawn[text] = level
    assert drawn == {room: level for room, level in test_frame.LEVELS.items() if room != "__main__"}


def test_the_bridge_in_containers_is_valid_yaml_and_a_command_that_is_understood() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    compose = yaml.safe_load((DOCS / "bridge" / "compose.yaml").read_text())
    (deployment,) = yaml.safe_load_all((DOCS / "bridge" / "kubernetes.yaml").read_text())
    assert set(compose) == {"services"}
    bridge = compose["services"]["bridge"]
    assert bridge["network_mode"] == "host"
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert template["spec"]["hostNetwork"] is True
    (container,) = template["spec"]["containers"]
    names = {one["name"] for one in container["env"]} | set(bridge["environment"])
    program = _app.program.make_context("multicast", [], resilient_parsing=True)
    for name, *arguments in (bridge["command"], container["args"]):
        command = _app.program.get_command(program, name)
        assert command is not None
        context = command.make_context(name, arguments, program)
        assert context.params["site"]
        given = {variable for one in command.params for variable in [one.envvar] if isinstance(variable, str)}
        assert names <= given | {"NATS_TOKEN"}
