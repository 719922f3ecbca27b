"""Compressed capture files: which there are, and the libraries for them.

The end of a name says how a file is written; its first bytes say how one is read.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

from multicast.errors import ArgumentError

__all__ = ["compressor", "split_name", "zstd_module"]

_ENDINGS = (".gz", ".zst")
# The packets wait meanwhile, so what is quick is right: a megabyte takes zlib some 10 ms at level 1 and 30 at level 6,
# and zstd 3 ms at level 3, its default.
_GZIP_LEVEL = 1
_GZIP = 31  # the window of zlib, 15, and 16 for the head and the end of gzip (zlib.h, deflateInit2)


def split_name(path: str) -> tuple[str, str]:
    """Return the name that a file has uncompressed, and its end that says how it is compressed; "" where it is not."""
    for ending in _ENDINGS:
        if path.endswith(ending):
            return path.removesuffix(ending), ending
    return path, ""


def compressor(ending: str) -> Callable[[bytes], bytes] | None:
    """Return what makes a whole compressed stream of some bytes; None for an `ending` of "".

    Such streams one after the other are one file (RFC 1952 section 2.2, RFC 8878 section 3). Raises `ArgumentError`
    where there is no library.
    """
    if ending == ".gz":
        return _gzip
    if ending == ".zst":
        zstd = zstd_module()
        if zstd is None:
            raise ArgumentError(
                "a name that ends in .zst needs zstd, which this Python has not: pip install"
                " 'multicast-poller[capture]', or write .gz"
            )
        compress: Callable[[bytes], bytes] = zstd.compress
        return compress
    return None


def _gzip(data: bytes) -> bytes:
    stream = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)
    return stream.compress(data) + stream.flush()


def zstd_module() -> Any:
    """Return the library for zstd, None where there is none."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        return None
    return zstd
