"""What a person types while other things happen: a line editor, and standard input on a poller."""

from __future__ import annotations

import codecs
import os
import re
import sys
import termios
import tty
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from multicast.poller import Poller
from multicast.streams import Lines

__all__ = ["Editor", "Keyboard", "typing"]

# In characters; nobody types more in one line.
_LONGEST = 1000


def _width(text: str) -> int:
    """Return how many columns a terminal takes for the text."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)


class Editor:
    """The line that is being typed; no I/O."""

    # Keys that send more than a character: CSI and SS3 sequences (ECMA-48), of which none means anything here.
    _SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])")
    _BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?$")

    def __init__(self) -> None:
        #: What has been typed since the last line.
        self.text = ""
        #: The end was typed (Ctrl-D).
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """Take what the keyboard sent; return the lines that are complete."""
        typed = self._SEQUENCE.sub("", self._rest + self._decoder.decode(data))
        begun = self._BEGUN.search(typed)
        self._rest = begun[0] if begun else ""
        lines = []
        for character in typed[: begun.start()] if begun else typed:
            if character in "\r\n":
                lines.append(self.text)
                self.text = ""
            elif character in "\x7f\b":
                self.text = self.text[:-1]
            elif character == "\x15":  # Ctrl-U: the whole line
                self.text = ""
            elif character == "\x17":  # Ctrl-W: the last word
                self.text = self.text.rstrip().rpartition(" ")[0]
                self.text += " " if self.text else ""
            elif character == "\x04":  # Ctrl-D: the end, but only of an empty line
                if not self.text:
                    self.ended = True
                    break
            elif character.isprintable() and len(self.text) < _LONGEST:
                self.text += character
        return lines

    def shown(self, columns: int) -> str:
        """Return the end of the line that fits in so many columns."""
        text = self.text
        while _width(text) > columns:
            text = text[1:]
        return text


class Keyboard:
    """Standard input, line by line: a terminal, a pipe or a file.

    `say` is called with each line that is not empty, `changed` when what is being typed has changed. The line
    ``/quit`` ends the input, as its end does.
    """

    def __init__(
        self, poller: Poller, editor: Editor | None, changed: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._poller = poller
        self._editor = editor
        self._changed = changed
        self._say = say
        self._lines = Lines(limit=1 << 20)
        #: There is nothing more to come.
        self.ended = False
        try:
            poller.register(self)
        except PermissionError:  # a file: always ready, so it cannot be watched
            poller.call_soon(self._read_all)

    def fileno(self) -> int:
        """Return the descriptor of standard input."""
        return 0

    def handle_read(self) -> None:
        """Read what was typed, and say the lines that are complete."""
        try:
            data = os.read(0, 4096)
        except OSError:  # the terminal is gone
            data = b""
        if self._editor is not None and data:
            lines = self._editor.feed(data)
            self.ended = self._editor.ended
        else:
            self._lines.feed(data)
            lines = [line.decode(errors="replace") for line in iter(self._lines.take, None)]
            self.ended = not data
            if self.ended and (rest := self._lines.end()):
                lines.append(rest.decode(errors="replace"))
        for line in lines:
            if line.strip() == "/quit":
                self.ended = True
                break
            if line.strip():
                self._say(line.strip())
        if self.ended:
            self._poller.unregister(self)
        else:
            self._changed()

    def _read_all(self) -> None:
        while not self.ended:
            self.handle_read()


@contextmanager
def typing() -> Iterator[Editor | None]:
    """Have a terminal give us each key as it is pressed; None where there is no terminal to draw on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        yield None
        return
    before = termios.tcgetattr(0)
    tty.setcbreak(0)  # Ctrl-C and Ctrl-Z go on working
    try:
        yield Editor()
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
