"""The one thing setup.cfg cannot say: the optional C module, multicast._batch.

The package does everything without it, so a machine without a compiler gets a working, slower installation.
Two environment variables decide otherwise:

MULTICAST_REQUIRE_EXT=1  a module that does not build is an error (for makers of wheels, and for the tests)
MULTICAST_PURE=1         the module is left out
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

SOURCE = "multicast/_batch.c"


def wanted(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


pure, required = wanted("MULTICAST_PURE"), wanted("MULTICAST_REQUIRE_EXT")
if pure and required:
    raise SystemExit("MULTICAST_PURE=1 leaves out what MULTICAST_REQUIRE_EXT=1 demands; set one of them.")


class Build(build_ext):
    """Says what to do where the C module is demanded and cannot be built."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # of each version of setuptools it is another
            raise BaseError(
                f"the C module multicast._batch cannot be built: {error}. MULTICAST_REQUIRE_EXT=1 demands it: install a"
                " C compiler and the headers of Python (Debian: apt-get install gcc python3-dev), or leave the variable"
                " out and do without the module."
            ) from None


if pure or not Path(__file__).with_name("multicast").joinpath("_batch.c").exists():
    setup()
else:
    setup(
        ext_modules=[
            Extension(
                "multicast._batch",
                [SOURCE],
                # The limited API of 3.11: one wheel serves every later version.
                define_macros=[("Py_LIMITED_API", "0x030B0000")],
                py_limited_api=True,
                extra_compile_args=["-Wall", "-Wextra"],
                optional=not required,
            )
        ],
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
