"""The command `completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ._app import command, program
from ._errors import Exit
from ._output import Output

#: The shells there are scripts for.
SHELLS = ("bash", "zsh", "fish")


@command(
    "completion",
    examples=[
        'eval "$(multicast completion bash)"',
        "multicast completion zsh > ~/.zfunc/_multicast",
        "multicast completion fish > ~/.config/fish/completions/multicast.fish",
    ],
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(out: Output, shell: str) -> Exit:
    """Print the script that has a shell complete commands and options of multicast.

    For bash 4.4 or later the line above belongs in ~/.bashrc. For zsh the directory must be in $fpath before compinit
    is called. fish finds the file by itself.
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 -- click has all of them
    script = found(program, {}, "multicast", "_MULTICAST_COMPLETE")
    # Not its source(), which asks the bash that is installed here for its version.
    out.line((script.source_template % script.source_vars()).rstrip())
    return Exit.YES
