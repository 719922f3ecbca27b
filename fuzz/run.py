"""Fuzz one target after the other, each for FUZZ_SECONDS (600); keep what is new in fuzz/corpus/.

    python fuzz/run.py [TARGET ...]

`batch` is the C module and needs clang; the others need atheris, which is installed with ``make fuzz``. Only one runs
at a time, and with the lowest priority. What breaks a promise stops the run with exit code 1, and the bytes that did it
are left in fuzz/found/. To see it again: ``python fuzz/targets.py TARGET FILE``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = int(os.environ.get("FUZZ_SECONDS", "600"))
PYTHON_TARGETS = [
    "group", "framers", "captures", "measures", "replies", "details", "chat", "expressions", "seals", "feed_packets",
    "feed_requests", "decoders",
]  # fmt: skip


def clang() -> str | None:
    """Return the newest clang there is."""
    names = ["clang", *(f"clang-{version}" for version in range(22, 13, -1))]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(into: Path) -> list[str] | None:
    """Compile the target of the C module; return the command that runs it, or None where there is no compiler for it.

    Raises `SystemExit` when it does not compile.
    """
    compiler = clang()
    if compiler is None:
        print("batch: left out, as there is no clang (Debian: apt-get install clang)")
        return None
    variables = sysconfig.get_config_vars("INCLUDEPY", "LIBDIR", "LDVERSION", "LIBS", "SYSLIBS")
    include, directory, version, *libraries = variables
    program = into / "batch"
    command = [compiler, "-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=fuzzer,address,undefined"]
    command.append("-fno-sanitize-recover=all")
    command += ["-DPy_LIMITED_API=0x030B0000", f"-I{include}", str(HERE / "batch.c"), "-o", str(program)]
    command += [f"-L{directory}", f"-Wl,-rpath,{directory}", f"-lpython{version}", "-rdynamic"]
    command += " ".join(libraries).split()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"batch: the target does not build:\n{done.stderr}")
    return [str(program)]


def fuzz(name: str) -> bool:
    """Run one target; return whether it kept its promises."""
    corpus, found = HERE / "corpus" / name, HERE / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made: list[str] | None
        if name == "batch":
            made = build(Path(scratch))
        else:
            made = [sys.executable, str(HERE / "targets.py"), name]
        if made is None:
            return True
        fresh, program = Path(scratch, "fresh"), Path(scratch, "program")
        fresh.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.join(made)} "$@"\n')
        program.chmod(0o700)
        options = [f"-artifact_prefix={found}/{name}-", "-max_len=2048", "-timeout=20", "-rss_limit_mb=4096"]
        command = ["nice", "-n", "19", *made, str(fresh), str(corpus), f"-max_total_time={SECONDS}", *options]
        environment = {**os.environ, "FUZZ_PROGRAM": str(program)}
        if name == "batch":
            environment["PYTHONHOME"] = sys.base_prefix
        log = Path(scratch, "log")
        with log.open("w") as output:
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
            )
        text = log.read_text(errors="replace")
        counted = re.search(r"Done (\d+) runs in (\d+) second", text)
        if done.returncode or counted is None:
            print(text[-6000:])
            if any(path.stat().st_mtime >= program.stat().st_mtime for path in found.glob(f"{name}-*")):
                print(f"{name}: a promise is broken; the input is in {found}")
            else:
                print(f"{name}: did not run to its end; what it said is above")
            return False
        subprocess.run(
            ["nice", "-n", "19", *made, "-set_cover_merge=1", str(corpus), str(fresh)],
            capture_output=True,
            env=environment,
            check=False,
        )
        kept = len(list(corpus.iterdir()))
        print(f"{name}: {int(counted[1]):,} inputs in {counted[2]} s, nothing found; {kept} kept", flush=True)
    return True


def main(names: list[str]) -> int:
    """Run the targets named, or all."""
    unknown = set(names) - {"batch", *PYTHON_TARGETS}
    if unknown:
        print(f"no such target: {', '.join(sorted(unknown))}; there are batch, {', '.join(PYTHON_TARGETS)}")
        return 2
    results = [fuzz(name) for name in names or ["batch", *PYTHON_TARGETS]]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
