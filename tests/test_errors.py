"""Errors: the tree, and the words that go with what the kernel says."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

import multicast
from multicast import errors
from multicast.errors import advise, describe

ALSO = {
    "ArgumentError": (ValueError,),
    "GroupError": (multicast.ArgumentError,),
    "FilterError": (multicast.ArgumentError,),
    "PacketSizeError": (multicast.ArgumentError,),
    "PacketTypeError": (TypeError,),
    "InterfaceError": (LookupError,),
    "RegistrationError": (TypeError, ValueError),
    "FrameError": (ValueError,),
    "CaptureError": (ValueError,),
    "MessagesLost": (LookupError,),
    "BridgeError": (ConnectionError,),
    "NoReply": (TimeoutError,),
}


@pytest.mark.parametrize("name", ALSO)
def test_each_error_is_also_the_built_in_one_would_catch(name: str) -> None:
    cls = getattr(multicast, name)
    assert cls is getattr(errors, name)
    assert issubclass(cls, multicast.MulticastError)
    for base in ALSO[name]:
        assert issubclass(cls, base)
    made = cls("in words")
    assert str(pickle.loads(pickle.dumps(made))) == str(made)  # noqa: S301 -- our own


def test_an_error_of_ours_is_an_os_error_only_where_that_is_meant() -> None:
    for name in errors.__all__:
        cls = getattr(errors, name)
        if isinstance(cls, type) and issubclass(cls, OSError):
            assert issubclass(cls, TimeoutError), name


def test_advice_is_added_and_the_error_stays_what_it_is() -> None:
    error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    assert advise(error, "bind", port=4242) is error
    assert error.errno == errno.EADDRINUSE
    (note,) = error.__notes__
    assert "4242" in note
    assert "SO_REUSEADDR and SO_REUSEPORT" in note


def test_what_is_not_in_the_table_comes_back_as_it_was() -> None:
    for error in (OSError(errno.EINTR, "interrupted"), OSError("without a number")):
        assert advise(error, "send") is error
        assert not hasattr(error, "__notes__")
    assert not hasattr(advise(OSError(errno.EADDRINUSE, ""), "receive"), "__notes__")


def test_a_limit_is_told_with_its_present_value() -> None:
    (note,) = advise(OSError(errno.ENOBUFS, ""), "join").__notes__
    limit = Path("/proc/sys/net/ipv4/igmp_max_memberships").read_text().strip()
    assert f"net.ipv4.igmp_max_memberships is {limit} groups" in note
    assert "net.ipv4.igmp_max_msf" in note


def test_names_that_are_not_known_become_plain_words() -> None:
    (note,) = advise(OSError(errno.ENETUNREACH, ""), "send", route="ip route add 224.0.0.0/4 dev INTERFACE").__notes__
    assert note.startswith("This host has no route to the address.")
    assert "224.0.0.0/4" in note


def test_braces_in_what_is_told_do_no_harm() -> None:
    (note,) = advise(OSError(errno.ENODEV, ""), "join", group="{x} {sysctl:y}", interfaces="{0}").__notes__
    assert "{x} {sysctl:y}" in note


def test_an_error_is_described_in_one_line() -> None:
    error = advise(PermissionError(errno.EPERM, "Operation not permitted"), "send", address="239.1.1.1")
    line = describe(error)
    assert line.startswith("Operation not permitted (errno 1, EPERM). A local firewall rule")
    assert "\n" not in line
    error.add_note("And one more.")
    assert describe(error) == f"{line} And one more."
    assert describe(FileNotFoundError(errno.ENOENT, "x", "some.pcap")).startswith("some.pcap: No such file")
    assert describe(multicast.InterfaceError("no interface 'x'")) == "no interface 'x'"
    assert describe(ValueError()) == "ValueError"
    assert describe(KeyError("key")) == "key"
