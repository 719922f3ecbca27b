"""From what users give as a filter to what the receiving loop calls.

A filter is None, a callable `filter(packet, addr)`, or a regular expression: text, bytes, a compiled pattern, or any
object with a `match` method (another engine's pattern). A regular expression is matched at the start of the packet's
*bytes*, for a packet has no encoding; a pattern given as text is encoded as UTF-8.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .errors import FilterError

__all__ = ["Filter", "HasMatch", "Predicate", "class_filter", "predicate"]


@runtime_checkable
class HasMatch(Protocol):
    """A compiled pattern of any engine: `re`, or one that promises linear time."""

    def match(self, packet: bytes, /) -> object:
        """Return something true when the start of `packet` matches."""


#: What the receiving loop calls.
Predicate: TypeAlias = Callable[[bytes, Any], object]
#: What users may give.
Filter: TypeAlias = Predicate | HasMatch | str | bytes | re.Pattern[str] | re.Pattern[bytes] | None


def pattern(filter: Filter) -> re.Pattern[bytes] | None:
    """Return the regular expression on bytes that `filter` means, or None when it is not one of `re`'s.

    Raises `FilterError` when it does not compile.
    """
    flags = 0
    given: Any = filter
    if isinstance(given, re.Pattern):
        # The same expression on bytes; re.UNICODE has no meaning there, and re refuses it.
        flags = given.flags & ~re.UNICODE
        given = given.pattern
    if not isinstance(given, (str, bytes)):
        return None
    try:
        if isinstance(given, str):
            given = given.encode(errors="surrogateescape")  # bytes from a command line come as such text
        return re.compile(given, flags)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        where = f" at position {error.pos}" if isinstance(error, re.error) and error.pos is not None else ""
        reason = error.msg if isinstance(error, re.error) else str(error)
        raise FilterError(
            f"the filter {filter!r} is not a regular expression: {reason}{where};"
            " for literal text use re.escape(), for anything else a callable filter(packet, addr)"
        ) from None


def predicate(filter: Filter) -> Predicate | None:
    """Return the callable `(packet, addr)` that decides for `filter`; None when every packet passes.

    Raises `FilterError` for what is no filter, and for an expression that does not compile.
    """
    if filter is None:
        return None
    compiled = pattern(filter)
    match = compiled.match if compiled is not None else getattr(filter, "match", None)
    if callable(match):
        return lambda packet, addr: match(packet)
    if callable(filter):
        return filter
    raise FilterError(
        f"a filter is None, a callable filter(packet, addr) or a regular expression, not {filter!r}"
    )


def class_filter(instance: object) -> Filter:
    """Return what the class of `instance` says in its attribute `filter`.

    A function there takes `(packet, addr)`, as in ``filter = lambda packet, addr: ...``; one that takes
    `(self, packet, addr)` is a method.
    """
    for base in type(instance).__mro__:
        if "filter" in vars(base):
            found = vars(base)["filter"]
            break
    else:
        return None
    if isinstance(found, (staticmethod, classmethod, property)):
        bound: Filter = found.__get__(instance, type(instance))
        return bound
    if inspect.isfunction(found):
        needed = [
            parameter
            for parameter in inspect.signature(found).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            and parameter.default is parameter.empty
        ]
        method: Filter = found.__get__(instance) if len(needed) == 3 else found
        return method
    other: Filter = found
    return other
