"""From what users give as a filter to what the receiving loop calls.

A filter is None, a callable `filter(packet, addr)`, or a regular expression: text, bytes, a compiled pattern, or any
object with a `match` method (another engine's pattern). A regular expression is matched at the start of the packet's
*bytes*, for a packet has no encoding; a pattern given as text is encoded as UTF-8. Characters beyond ASCII are then
several bytes each: in a class such as ``[äö]``, and before ``?*+``, give them as alternatives in parentheses.

A program for the kernel (classic BPF, socket(7): SO_ATTACH_FILTER) can refuse packets before they take room in the
socket's buffer and time in the process. Two things become such programs: what is certain of the first bytes of all
packets that an expression matches, and which of several sockets a packet belongs to. The first never decides alone:
it lets through what it cannot be sure of, and the expression in Python stays the judge. A program returns 0 (refused)
or 0xffffffff (whole); lengths between would cut packets without a sign.
"""

from __future__ import annotations

import importlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from .errors import ArgumentError, FilterError, check_amount, check_number

__all__ = [
    "Filter",
    "HasMatch",
    "Instruction",
    "Limited",
    "Predicate",
    "ShardKey",
    "assemble",
    "class_filter",
    "predicate",
    "refusals",
    "shard_refusals",
]


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


class _OutOfTime(Exception):
    """The time for a match is over."""


class Limited:
    """A regular expression with bounds, for packets from strangers: a filter.

    `filter` is a regular expression as text, bytes or compiled. Some expressions, such as ``(a+)+$``, take a time that
    doubles with every byte of a packet made for it. Here a match that takes longer than `seconds` is given up: the
    packet is refused and counted in `timeouts`. With `length` only so many bytes at the start are looked at.

    The time is kept by ITIMER_REAL and SIGALRM (setitimer(2)), which only the main thread can do; in others the length
    alone is bounded. It costs some microseconds a packet. An engine that takes linear time, with `match` as `re` has
    it, needs none of this: give its pattern as the filter. Raises `FilterError` and `ArgumentError`.

    >>> from multicast.filters import Limited
    >>> slow = Limited(r"(a+)+$", seconds=0.01)
    >>> slow.match(b"aaaa") is not None, slow.match(b"a" * 40 + b"!") is not None, slow.timeouts
    (True, False, 1)
    """

    def __init__(self, filter: Filter, *, seconds: float = 0.05, length: int | None = None) -> None:
        compiled = pattern(filter)
        if compiled is None:
            raise FilterError(f"only a regular expression can be limited, not {filter!r}")
        check_amount("seconds", seconds, "seconds", zero=False)
        if length is not None:
            check_number("length", length, of="bytes")
        self.seconds = seconds
        self.length = length
        #: How many packets were refused because their time was over.
        self.timeouts = 0
        self._match = compiled.match
        self._armed = False

    def match(self, packet: bytes, /) -> object:
        """Return what the expression's own `match` returns, or None when the time is over."""
        if self.length is not None:
            packet = packet[: self.length]
        if threading.current_thread() is not threading.main_thread():
            return self._match(packet)
        before = signal.signal(signal.SIGALRM, self._ring)
        begin = time.monotonic()
        left, again = signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            self._armed = True
            return self._match(packet)
        except _OutOfTime:
            self.timeouts += 1
            return None
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if left:
                # An alarm that somebody else has set rings when it would have, or now if that is past.
                rest = max(left - (time.monotonic() - begin), 1e-6)
                signal.setitimer(signal.ITIMER_REAL, rest, again)

    def _ring(self, number: int, frame: object) -> None:
        if self._armed:
            self._armed = False
            raise _OutOfTime


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
    if isinstance(found, FunctionType):
        import inspect  # not small, and few need it

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


# -- what is certain of the first bytes ----------------------------------------------------------------------------

# A set of bytes is a number: bit b is set when byte b is in it.
_ALL = (1 << 256) - 1
_CATEGORIES = {
    "CATEGORY_DIGIT": rb"\d",
    "CATEGORY_NOT_DIGIT": rb"\D",
    "CATEGORY_SPACE": rb"\s",
    "CATEGORY_NOT_SPACE": rb"\S",
    "CATEGORY_WORD": rb"\w",
    "CATEGORY_NOT_WORD": rb"\W",
}
_LETTERS = sum(1 << byte for byte in range(ord("A"), ord("Z") + 1))
_CASE = ord("a") - ord("A")
# A packet that differs in none of so many bytes mostly is one that matches. Further bytes would only make the program
# longer, which costs each packet that does match about a nanosecond for four of them.
_POSITIONS = 64


def prefix(compiled: re.Pattern[bytes]) -> tuple[list[int], int]:
    """Return the sets of bytes that can stand at the first places of a packet that matches, and its least length.

    The list ends where the expression may go on in ways of different length. Where nothing is known it is empty.
    """
    if compiled.flags & re.LOCALE:  # what a letter is can change at any time
        return [], 0
    try:
        # How the parser of `re` writes down an expression is its own business: what is not recognised here ends the
        # list, and without the module there is none.
        parser = importlib.import_module("re._parser")
        parsed = parser.parse(compiled.pattern, compiled.flags & ~re.DEBUG)
        least = min(int(parsed.getwidth()[0]), 65535)
        sets, _ = _sets(parsed, parsed.state.flags, _POSITIONS)
    except (ImportError, AttributeError, LookupError, TypeError, ValueError, RecursionError, Warning):
        return [], 0
    return sets, least


def _sets(items: Iterable[tuple[Any, Any]], flags: int, room: int) -> tuple[list[int], bool]:
    """Return the sets of bytes for what is parsed, and whether it is of one width and all of it is in them."""
    sets: list[int] = []
    for operation, argument in items:
        if len(sets) >= room:
            return sets[:room], False
        name = str(operation)
        inner: list[int]
        whole = True
        if name == "LITERAL":
            inner = [_folded(1 << argument, flags)]
        elif name == "NOT_LITERAL":
            inner = [_ALL ^ _folded(1 << argument, flags)]
        elif name == "ANY":
            inner = [_ALL if flags & re.DOTALL else _ALL ^ (1 << ord("\n"))]
        elif name == "IN":
            inner = [_class(argument, flags)]
        elif name in ("AT", "ASSERT", "ASSERT_NOT"):
            continue  # of no width; to leave it out can only let more through
        elif name == "SUBPATTERN":
            _, more, fewer, inside = argument
            if more & re.LOCALE:
                return sets, False
            inner, whole = _sets(inside, (flags | more) & ~fewer, room - len(sets))
        elif name == "ATOMIC_GROUP":
            inner, whole = _sets(argument, flags, room - len(sets))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inside = argument
            once, whole = _sets(inside, flags, room - len(sets))
            times = (min(int(least), room) if whole else min(int(least), 1)) if once else 0
            inner = once * times
            whole = whole and int(least) == int(most)
        elif name == "BRANCH":
            ways = [_sets(way, flags, room - len(sets)) for way in argument[1]]
            widths = {len(known) for known, _ in ways}
            inner = [0] * min(widths)
            for known, _ in ways:
                inner = [one | other for one, other in zip(inner, known, strict=False)]
            whole = len(widths) == 1 and all(complete for _, complete in ways)
        else:
            return sets, False
        sets += inner
        if not whole:
            return sets[:room], False
    return sets[:room], len(sets) <= room


def _folded(bits: int, flags: int) -> int:
    """Return the set with the letters of the other case, where the expression does not tell them apart."""
    if flags & re.IGNORECASE:
        bits |= (bits & _LETTERS) << _CASE | (bits >> _CASE) & _LETTERS
    return bits


def _class(items: Iterable[tuple[Any, Any]], flags: int) -> int:
    bits, negated = 0, False
    for operation, argument in items:
        name = str(operation)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            bits |= 1 << argument
        elif name == "RANGE":
            low, high = argument
            bits |= (1 << high + 1) - (1 << low)
        else:
            expression = _CATEGORIES[str(argument)]
            bits |= sum(1 << byte for byte in range(256) if re.match(expression, bytes((byte,))))
    bits = _folded(bits, flags)
    return _ALL ^ bits if negated else bits


# -- programs for the kernel ---------------------------------------------------------------------------------------

#: One instruction of classic BPF (linux/filter.h, struct sock_filter): code, jumps if true and false, constant.
Instruction: TypeAlias = tuple[int, int, int, int]
#: By what packets are dealt out: the sender, or a field of the payload at an offset, of 1, 2 or 4 bytes.
ShardKey: TypeAlias = "Literal['source'] | tuple[int, int]"

# linux/bpf_common.h
_LD_WORD, _LD_HALF, _LD_BYTE, _LD_LENGTH = 0x20, 0x28, 0x30, 0x80
_JEQ, _JGT, _JGE = 0x15, 0x25, 0x35
_AND, _MUL, _RSH, _MOD, _XOR_X, _TAX, _RET = 0x54, 0x24, 0x74, 0x94, 0xAC, 0x07, 0x06
# Offsets from here on count from the network header (SKF_NET_OFF); plain ones from the UDP header of 8 bytes.
_NETWORK = 0xFFF00000
_PAYLOAD = 8
# A jump to the end, where packets are refused; put in by `assemble`.
_REFUSE = -1
# Ranges of bytes tested one by one; a set in more pieces is taken for everything between its ends.
_PIECES = 8
# A jump reaches 255 instructions, and those of a shard come on top.
_LENGTH = 160


def refusals(filter: Filter) -> list[Instruction]:
    """Return the part of a program that refuses what the expression `filter` certainly does not match.

    It is empty for a filter that is no expression of `re`, and for one of which nothing is certain.
    """
    compiled = pattern(filter)
    if compiled is None:
        return []
    sets, least = prefix(compiled)
    code: list[Instruction] = []
    looked = 0  # bytes that are known to be there, as the kernel refuses a packet that is read beyond its end
    place = 0
    while place < len(sets) and len(code) < _LENGTH:
        masks = [_masked(bits) for bits in sets[place : place + 4]]
        width = next((number for number, mask in enumerate(masks) if mask is None), len(masks))
        width = 4 if width == 4 else 2 if width >= 2 else width
        if masks[0] == (0, 0):  # any byte
            place += 1
            continue
        if width == 0:
            code += _piecewise(sets[place], place)
            place += 1
        else:
            mask = value = 0
            for one in masks[:width]:
                assert one is not None  # noqa: S101 -- for the type checker
                mask, value = mask << 8 | one[0], value << 8 | one[1]
            load = {4: _LD_WORD, 2: _LD_HALF, 1: _LD_BYTE}[width]
            code.append((load, 0, 0, _PAYLOAD + place))
            if mask != (1 << 8 * width) - 1:
                code.append((_AND, 0, 0, mask))
            code.append((_JEQ, 0, _REFUSE, value))
            place += width
        looked = place
    if max(least, len(sets)) > looked:
        code = [(_LD_LENGTH, 0, 0, 0), (_JGE, 0, _REFUSE, _PAYLOAD + max(least, len(sets))), *code]
    return code


def _masked(bits: int) -> tuple[int, int] | None:
    """Return mask and value that pick just this set of bytes, or None where there are none such."""
    members = [byte for byte in range(256) if bits >> byte & 1]
    if not members:
        return None
    varying = 0
    for member in members:
        varying |= member ^ members[0]
    if len(members) != 1 << varying.bit_count():
        return None
    return 255 ^ varying, members[0] & ~varying


def _piecewise(bits: int, place: int) -> list[Instruction]:
    """Return the test of one byte against a set that is made of ranges."""
    ranges: list[tuple[int, int]] = []
    for byte in range(256):
        if bits >> byte & 1:
            if ranges and ranges[-1][1] == byte - 1:
                ranges[-1] = (ranges[-1][0], byte)
            else:
                ranges.append((byte, byte))
    load = (_LD_BYTE, 0, 0, _PAYLOAD + place)
    if not ranges:  # nothing matches
        return [load, (_JGE, _REFUSE, _REFUSE, 0)]
    if len(ranges) > _PIECES:
        ranges = [(ranges[0][0], ranges[-1][1])]
    code = [load]
    for number, (low, high) in enumerate(ranges):
        last = number == len(ranges) - 1
        # Above this range: try the next. Below it: in the gap before it. Else: on to what follows the last test.
        rest = 2 * (len(ranges) - number - 1)
        code.append((_JGT, _REFUSE if last else 1, 0, high))
        code.append((_JGE, rest, _REFUSE, low))
    return code


def shard_refusals(shard: tuple[int, int], key: ShardKey, ipv6: bool) -> list[Instruction]:
    """Return the part of a program that refuses the packets of all shards but number `shard[0]` of `shard[1]`.

    Each packet belongs to one of them: by a hash of the sender's address and port, or by the remainder of a field of
    the payload, read in network order; packets too short to have the field belong to shard 0. Raises `ArgumentError`.
    """
    if not (isinstance(shard, tuple) and len(shard) == 2 and all(type(number) is int for number in shard)):
        raise ArgumentError(f"shard must be (index, count), such as (0, 4) for the first of four, not {shard!r}")
    index, count = shard
    if not 1 <= count <= 65536 or not 0 <= index < count:
        raise ArgumentError(
            "shard must be (index, count) with a count from 1 to 65536 and an index from 0 to count - 1, not"
            f" {shard!r}"
        )
    if count == 1:
        return []
    belongs = [(_MOD, 0, 0, count), (_JEQ, 0, _REFUSE, index)]
    if key == "source":
        words = range(8, 24, 4) if ipv6 else range(12, 16, 4)
        code: list[Instruction] = [(_LD_HALF, 0, 0, 0)]  # the port it was sent from
        for word in words:
            code += [(_MUL, 0, 0, 0x9E3779B1), (_TAX, 0, 0, 0), (_LD_WORD, 0, 0, _NETWORK + word), (_XOR_X, 0, 0, 0)]
        # Ports and addresses of neighbours differ in their last bits only; this spreads them over all.
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            code += [(_TAX, 0, 0, 0), (_RSH, 0, 0, shift), (_XOR_X, 0, 0, 0), (_MUL, 0, 0, factor)]
        return [*code, (_TAX, 0, 0, 0), (_RSH, 0, 0, 16), (_XOR_X, 0, 0, 0), *belongs]
    if not (isinstance(key, tuple) and len(key) == 2 and all(type(number) is int for number in key)):
        raise ArgumentError(f"shard_key must be 'source' or (offset, length) of a field in the payload, not {key!r}")
    offset, length = key
    loads = {1: _LD_BYTE, 2: _LD_HALF, 4: _LD_WORD}
    if length not in loads or not 0 <= offset <= 65535 - length:
        raise ArgumentError(
            "shard_key must be 'source' or (offset, length) with a length of 1, 2 or 4 bytes, all of them among the"
            f" first 65535 of the payload, not {key!r}"
        )
    field = [(loads[length], 0, 0, _PAYLOAD + offset), *belongs]
    short = len(field) if index == 0 else _REFUSE
    return [(_LD_LENGTH, 0, 0, 0), (_JGE, 0, short, _PAYLOAD + offset + length), *field]


def assemble(code: list[Instruction]) -> list[Instruction]:
    """Return the program made of `code`: it lets everything through that no part of it refuses."""
    end = len(code) + 1
    done = []
    for number, (operation, true, false, constant) in enumerate(code):
        away = end - number - 1
        done.append((operation, away if true == _REFUSE else true, away if false == _REFUSE else false, constant))
    return [*done, (_RET, 0, 0, 0xFFFFFFFF), (_RET, 0, 0, 0)]
