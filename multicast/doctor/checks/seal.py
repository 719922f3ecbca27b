"""Are the packets sealed with the key that the program has?"""

from __future__ import annotations

from multicast.doctor.evidence import Evidence
from multicast.doctor.messages import Finding

from .facts import about, finding, listed, ok, packets, skip

__all__ = ["check_seal"]


def check_seal(e: Evidence) -> Finding:
    """Do packets arrive that a program with this key opens?"""
    name = "seal"
    if not e.seals:
        return skip(name, "no packet arrived that could be sealed")
    sealed = [one for one in e.seals if one.key]
    plain = sum(one.packets for one in e.seals if not one.key)
    ids = [one.key for one in sealed]
    total = sum(one.packets for one in e.seals)
    if not e.key:
        if not sealed:
            return ok(name, "the packets are not sealed")
        told = f"{packets(total - plain)} of {total} sealed with the key {listed(ids)}"
        return ok(name, f"{told}; `--key FILE` compares it with a program's")
    mine = [one for one in sealed if one.key == e.key]
    words = {**about(e), "key": e.key, "others": listed(ids) if ids else ""}
    if not mine:
        if not sealed:
            return finding(name, "fail", "not-sealed", f"{packets(plain)} without a seal", **words)
        seen = f"{packets(total - plain)} sealed with {listed(ids)}, none with {e.key}"
        return finding(name, "fail", "other-key", seen, **words)
    (one,) = mine
    if e.max_age is not None and abs(one.skew) > e.max_age:
        side = "behind" if one.skew < 0 else "ahead of"
        seen = f"{packets(one.packets)} sealed {abs(one.skew):.0f} s {'before' if one.skew < 0 else 'after'} arrival"
        return finding(name, "fail", "other-clock", seen, **words, side=side, skew=f"{abs(one.skew):.0f}",
                       most=f"{e.max_age:g}")
    text = f"{packets(one.packets)} of {total} sealed with the key {e.key}"
    return ok(name, f"{text}, {abs(one.skew):.1f} s from this clock")
