"""How Sphinx builds the documentation.

`make docs` builds it, with warnings as errors, runs its examples in a private network namespace, and looks for public
names that are not documented.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import inspect
import pkgutil
import re
import sys
from typing import Any

import click
from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import ModuleEntry
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

# What is documented is the Python form. The C form does the same, and has no comments to read.
sys.modules["multicast._batch"] = None  # type: ignore[assignment]

import multicast  # noqa: E402
import multicast.errors  # noqa: E402
from multicast.cli import _app  # noqa: E402

project = "multicast"
author = "The multicast-poller authors"
copyright = author  # noqa: A001 -- Sphinx's name for it
release = version = multicast.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.coverage",
    "sphinx.ext.doctest",
]
exclude_patterns = ["_build"]
rst_prolog = ".. py:currentmodule:: multicast\n"
# `name` in a docstring or on a page is a link where it names something of ours, and code where it does not.
default_role = "py:obj"
highlight_language = "none"
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 96
python_display_short_literal_types = True

# -- docstrings ------------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

# -- examples --------------------------------------------------------------------------------------------------------

doctest_global_setup = """
import multicast
from multicast import *
try:
    from gi.repository import GLib
except ImportError:
    GLib = None
"""
# What one page leaves registered is not the next one's business.
doctest_global_cleanup = """
import multicast
multicast._defaultPoller.close()
"""

# -- names without documentation -------------------------------------------------------------------------------------

# A module's public names are those in its __all__. Users import the names of the package itself, so there they are
# documented, and not under the module they are written in; what a module offers beside them, under its own name.
_modules = [
    info.name
    for info in pkgutil.iter_modules(multicast.__path__, "multicast.")
    if not info.name.startswith("multicast._") and info.name != "multicast.cli"
]
coverage_ignore_pyobjects = [
    f"{re.escape(module)}\\.{re.escape(name)}($|\\.)"
    for module in _modules
    for name in sorted(set(vars(importlib.import_module(module))) - set(importlib.import_module(module).__all__))
]


def _one_signature_for_listen(app: Sphinx) -> None:
    """Type checkers are told of `listen` in two forms; readers are told in words."""
    analyzer = ModuleAnalyzer.for_module("multicast.listeners.inbox")
    analyzer.analyze()
    analyzer.overloads.clear()


def _named_default(app: Sphinx, what: str, name: str, obj: object, options: object, *signature: str) -> Any:
    """A function as a default is shown by its name; a protocol has no arguments to show."""
    arguments, result = signature
    if getattr(obj, "_is_protocol", False):
        return "", result
    return (arguments or "").replace("<built-in function monotonic>", "time.monotonic") or arguments, result


def _expect_every_name(app: Sphinx, env: BuildEnvironment) -> None:
    """Have the coverage builder look at all modules, and for each name where users find it."""
    if app.builder.name != "coverage":
        return
    for module in ["multicast", *_modules]:
        env.domaindata["py"]["modules"].setdefault(module, ModuleEntry("", "", "", "", False))
        for name in importlib.import_module(module).__all__:
            named = getattr(importlib.import_module(module), name)
            if getattr(named, "__module__", "").startswith(f"{module}."):
                named.__module__ = module


def _leave_builtins_alone(app: Sphinx, page: nodes.document) -> None:
    """The type `bytes` in a signature does not mean our attribute of that name."""
    for reference in list(page.findall(addnodes.pending_xref)):
        if reference["reftype"] == "class" and hasattr(builtins, reference["reftarget"]):
            reference.replace_self(reference.children)


def _leave_out_missing_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages named in index.rst that are not written yet are not missed."""
    if docname == "index":
        there = app.env.found_docs
        source[0] = re.sub(r"^   ([a-z]+)\n", lambda line: line[0] if line[1] in there else "", source[0], flags=re.M)


# -- the look --------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"multicast {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


class AdviceTable(SphinxDirective):
    """The table of `multicast.errors`: what an `OSError` means in each operation, so that it stands in one place."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Return the table as nodes."""
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 22 78", "   :class: advice", ""]
        lines += ["   * - Error", "     - What its note says"]
        for (operation, number), text in multicast.errors._ADVICE.items():
            # {sysctl:net/ipv4/x} is filled with the value this kernel has, {name} with what the call was about.
            words = re.sub(r"\{sysctl:[^}]*\}", "N", text)
            words = re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), words)
            words = re.sub(r"`[^`]+`", lambda match: f"`{match[0]}`", words).replace("*", "\\*")
            lines += [f"   * - {operation}: {errno.errorcode[number]}", f"     - {words}"]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), self.content_offset, container)
        return container.children


class CommandHelp(SphinxDirective):
    """What `multicast NAME --help` says, so that it stands in one place; of `multicast` itself, its options."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return usage, text, examples and options as nodes."""
        name = self.arguments[0]
        program = _app.program.make_context("multicast", [], resilient_parsing=True)
        command = _app.program if name == "multicast" else _app.program.get_command(program, name)
        if command is None:
            raise self.error(f"there is no command {name!r}")
        lines: list[str] = []
        shared: set[str] = set()
        context = program
        if command is not _app.program:
            context = click.Context(command, program, name)
            shared = {option.name or "" for option in _app.program.params}
            usage = " ".join(["multicast", name, *command.collect_usage_pieces(context)])
            lines += [".. code-block:: text", "", f"   {usage}", ""]
            lines += self._plain(inspect.cleandoc(command.help or "")).splitlines()
            lines += ["", ".. code-block:: console", ""]
            lines += [f"   $ {example}" for example in getattr(command, "examples", ())]
            lines += [""]
        for option in command.params:
            record = option.get_help_record(context) if isinstance(option, click.Option) else None
            if record is not None and option.name not in shared:
                lines += [f"``{record[0]}``", f"   {self._plain(record[1])}", ""]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), self.content_offset, container)
        return container.children

    @staticmethod
    def _plain(text: str) -> str:
        """Return text without the meaning that reStructuredText gives to some characters, and options as code."""
        return re.sub(r"(?<![\w-])(--[a-z][a-z-]*|-[A-Za-z]\b)", r"``\1``", re.sub(r"([\\*`|_])", r"\\\1", text))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is made above."""
    app.add_directive("advice-table", AdviceTable)
    app.add_directive("command-help", CommandHelp)
    app.connect("builder-inited", _one_signature_for_listen)
    app.connect("autodoc-process-signature", _named_default)
    app.connect("env-updated", _expect_every_name)
    app.connect("doctree-read", _leave_builtins_alone)
    app.connect("source-read", _leave_out_missing_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
