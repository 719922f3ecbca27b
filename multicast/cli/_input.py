"""What commands send: a file or standard input, read as packets or messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ._errors import BadData
from ._output import Output, printable, quoted

__all__ = ["Input", "named", "unhex"]

_CHUNK = 65536


def named(path: str, dash: str) -> str:
    """Return the name of a file for people; `dash` is what - stands for, standard input or output."""
    return dash if path == "-" else printable(path)


class Input:
    """A file or pipe that is read as packets, in pieces, whatever its size.

    After each piece comes a None: what was cut from it is sent before the next piece is waited for, which may be long
    in coming. `advice` says what to do about a line that is too long.
    """

    def __init__(self, out: Output, path: str, as_hex: bool, advice: str) -> None:
        self._out = out
        self._name = "standard input" if path == "-" else path
        self._hex = as_hex
        self._advice = advice
        self._fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._fd:
            os.close(self._fd)

    def _read(self) -> bytes:
        with self._out.reading_input():
            try:
                return os.read(self._fd, _CHUNK)
            except OSError as error:
                error.filename = self._name
                raise

    def lines(self, longest: int) -> Iterator[bytes | None]:
        """One packet for each line, without its end."""
        rest, number = b"", 0
        while chunk := self._read():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                yield self._checked(line, number, longest)
            if len(rest) > 3 * longest:  # even in hexadecimal digits with spaces between
                self._checked(rest, number + 1, 0)
            yield None
        if rest:
            yield self._checked(rest, number + 1, longest)

    def pieces(self, size: int) -> Iterator[bytes | None]:
        """Packets of `size` bytes; the last may be shorter."""
        rest = b""
        while chunk := self._read():
            rest += chunk
            for start in range(0, len(rest) - size + 1, size):
                yield rest[start : start + size]
            rest = rest[len(rest) - len(rest) % size :]
            yield None
        if rest:
            yield rest

    def _checked(self, line: bytes, number: int, longest: int) -> bytes:
        where = f"{self._name}, line {number}"
        if self._hex and longest:
            line = unhex(line.decode("ascii", "replace"), lambda text: BadData(f"{where}: {text}"))
        if len(line) > longest:
            raise BadData(f"{where} does not fit in one UDP packet; {self._advice}")
        return line


def unhex(digits: str, problem: Callable[[str], Exception]) -> bytes:
    """Return the bytes that hexadecimal digits stand for; blanks, colons and 0x between them do not count."""
    plain = digits.lower().replace("0x", "").replace(":", "").replace(",", "")
    try:
        return bytes.fromhex(plain)
    except ValueError:
        raise problem(f"{quoted(digits[:60])} is not bytes in hexadecimal digits, such as 02 00 ff 10") from None
