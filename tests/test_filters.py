"""Filters: what users may give, and what it then lets through."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import helpers
import pytest

from multicast import FilterError, MulticastError
from multicast.filters import class_filter, predicate

ADDR = ("127.0.0.1", 4242)


def accepts(filter: Any, packet: bytes, addr: Any = ADDR) -> bool:
    decide = predicate(filter)
    assert decide is not None
    return bool(decide(packet, addr))


# -- regular expressions -------------------------------------------------------------------------------------


def test_no_filter_lets_everything_pass_without_a_call() -> None:
    assert predicate(None) is None


@pytest.mark.parametrize("filter", ["te.t", b"te.t", re.compile("te.t"), re.compile(b"te.t")], ids=helpers.name)
def test_a_regular_expression_is_matched_at_the_start_of_the_packet(filter: Any) -> None:
    assert accepts(filter, b"test")
    assert accepts(filter, b"text and more")
    assert not accepts(filter, b" test")
    assert not accepts(filter, b"")


@pytest.mark.parametrize("filter", ["", b"", re.compile("")], ids=helpers.name)
def test_the_empty_expression_matches_everything(filter: Any) -> None:
    assert accepts(filter, b"")
    assert accepts(filter, b"anything")


@pytest.mark.parametrize("filter", ["größe:", re.compile("größe:")], ids=helpers.name)
def test_a_pattern_given_as_text_is_matched_as_utf_8(filter: Any) -> None:
    assert accepts(filter, "größe: 5".encode())
    assert not accepts(filter, "größe: 5".encode("latin-1"))


def test_a_packet_that_is_no_text_is_matched_too() -> None:
    assert accepts(b"\xff\x00.", b"\xff\x00\xfe")
    assert accepts("(?s).*end", b"\xff\n\xfeend")


def test_the_flags_of_a_compiled_pattern_are_kept() -> None:
    assert accepts(re.compile("TEST", re.IGNORECASE), b"test")
    assert accepts(re.compile(".*end", re.DOTALL), b"one\nend")
    assert accepts(re.compile(b"a b", re.VERBOSE), b"ab")
    assert accepts(re.compile("te st", re.VERBOSE | re.IGNORECASE | re.MULTILINE), b"TEST")


def test_dollars_are_what_they_are_in_regular_expressions() -> None:
    assert accepts("name$", b"name")
    assert not accepts("name$", b"name = value")
    assert accepts(r"\$name", b"$name")
    assert accepts("a$$", b"a")


@pytest.mark.parametrize("filter", ["(", b"[", "*", "a{2,1}", "(?P<name>", "\\"], ids=helpers.name)
def test_what_does_not_compile_is_refused_with_the_place_and_advice(filter: Any) -> None:
    with pytest.raises(FilterError, match=re.escape(repr(filter))) as refused:
        predicate(filter)
    assert "position" in str(refused.value)
    assert "re.escape()" in str(refused.value)
    assert isinstance(refused.value, ValueError)


def test_text_that_stands_for_bytes_is_taken_as_these_bytes() -> None:
    assert accepts(os.fsdecode(b"\xff."), b"\xff\x01")


def test_text_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(FilterError, match="not a regular expression"):
        predicate("\ud800")


@pytest.mark.parametrize("filter", [r"(?u)\w", "(" * 5000 + ")" * 5000], ids=["unicode flag", "too deep"])
def test_what_cannot_be_matched_on_bytes_or_is_too_much_is_refused(filter: str) -> None:
    with pytest.raises(MulticastError):
        predicate(filter)


# -- other objects -------------------------------------------------------------------------------------------


class Prefix:
    """Another engine's pattern."""

    def __init__(self, start: bytes) -> None:
        self.start = start

    def match(self, packet: bytes) -> object:
        return packet.startswith(self.start) or None


def test_anything_with_a_match_method_is_a_pattern() -> None:
    assert accepts(Prefix(b"te"), b"test")
    assert not accepts(Prefix(b"te"), b"TEST")


def test_an_object_with_match_that_can_be_called_is_a_pattern() -> None:
    class Both(Prefix):
        def __call__(self, packet: bytes, addr: Any) -> bool:
            raise AssertionError("match comes first")

    assert accepts(Both(b"te"), b"test")


def test_a_callable_gets_the_packet_and_the_address() -> None:
    seen = []

    def mine(packet: bytes, addr: Any) -> bool:
        seen.append((packet, addr))
        return packet == b"yes"

    assert accepts(mine, b"yes")
    assert not accepts(mine, b"no")
    assert seen == [(b"yes", ADDR), (b"no", ADDR)]


def test_any_true_value_accepts() -> None:
    assert accepts(lambda packet, addr: "yes", b"")
    assert not accepts(lambda packet, addr: None, b"")
    assert accepts(functools.partial(lambda start, packet, addr: packet.startswith(start), b"te"), b"test")


@pytest.mark.parametrize("filter", [5, 0, 1.5, [], ["a"], object(), bytearray(b"te")], ids=helpers.name)
def test_anything_else_is_refused(filter: Any) -> None:
    with pytest.raises(FilterError, match="a filter is None, a callable"):
        predicate(filter)


# -- the class attribute -------------------------------------------------------------------------------------


def decides(cls: type, packet: bytes) -> bool:
    return accepts(class_filter(cls()), packet)


def test_a_lambda_in_the_class_takes_packet_and_address() -> None:
    class Mine:
        filter = lambda packet, addr: packet == b"yes"  # noqa: E731 -- as the specification writes it

    assert decides(Mine, b"yes")
    assert not decides(Mine, b"no")


def test_a_function_with_defaults_in_the_class_takes_packet_and_address() -> None:
    class Mine:
        def filter(packet, addr, wanted=b"yes"):  # type: ignore[no-untyped-def]  # noqa: N805
            return packet == wanted

    assert decides(Mine, b"yes")
    assert not decides(Mine, b"no")


def test_a_method_in_the_class_gets_its_object() -> None:
    class Mine:
        wanted = b"yes"

        def filter(self, packet: bytes, addr: Any) -> bool:
            return packet == self.wanted

    assert decides(Mine, b"yes")
    assert not decides(Mine, b"no")


def test_static_and_class_methods_and_properties_work() -> None:
    class Static:
        @staticmethod
        def filter(packet: bytes, addr: Any) -> bool:
            return packet == b"yes"

    class OfClass:
        wanted = b"yes"

        @classmethod
        def filter(cls, packet: bytes, addr: Any) -> bool:
            return packet == cls.wanted

    class Computed:
        @property
        def filter(self) -> str:
            return "yes"

    for one in (Static, OfClass, Computed):
        assert decides(one, b"yes")
        assert not decides(one, b"no")


@pytest.mark.parametrize("filter", ["yes", b"yes", re.compile("yes"), Prefix(b"yes")], ids=helpers.name)
def test_a_regular_expression_in_the_class_works(filter: Any) -> None:
    cls = type("Mine", (), {"filter": filter})
    assert decides(cls, b"yes")
    assert not decides(cls, b"no")


def test_a_class_inherits_the_filter_of_its_base_and_may_take_it_off() -> None:
    class Base:
        filter = lambda packet, addr: packet == b"yes"  # noqa: E731

    class Inheriting(Base):
        pass

    class Open(Base):
        filter = None  # type: ignore[assignment]

    assert not decides(Inheriting, b"no")
    assert class_filter(Open()) is None
    assert class_filter(object()) is None
