"""Draw the charts of the documentation from the figures that run.py has written.

``python charts.py FIGURES.json DIRECTORY`` draws them again without measuring.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

# Ours, those of others, and what is a limit rather than a peer; told apart without colour too, by the words.
OURS, OTHERS, FLOOR = "#1b6ca8", "#b8bec4", "#5f6b73"
plt.rcParams.update(
    {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "svg.fonttype": "path",
        "svg.hashsalt": "multicast",  # the same figures give the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
        "savefig.facecolor": "white",  # pages may be dark
    }
)


def colour(name: str) -> str:
    if "floor" in name:
        return FLOOR
    return OURS if "multicast" in name and "expert" not in name else OTHERS


def bars(path: Path, title: str, unit: str, values: dict[str, float], *, logarithmic: bool = False) -> None:
    """Draw one bar for each value, the smallest on top."""
    names = sorted(values, key=values.__getitem__, reverse=True)
    figure, axes = plt.subplots(figsize=(8.5, 0.42 * len(names) + 1.2), layout="constrained")
    axes.barh(names, [values[name] for name in names], color=[colour(name) for name in names], height=0.7)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(left=min(values.values()) / 2, right=max(values.values()) * 3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xlim(right=max(values.values()) * 1.15)
    for place, name in enumerate(names):
        value = values[name]
        text = f" {value:,.0f}" if value >= 100 else f" {value:,.1f}"
        axes.text(value, place, text, va="center")
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw(result: dict[str, Any], directory: Path) -> None:
    """Draw all charts for which there are figures."""
    directory.mkdir(parents=True, exist_ok=True)
    values = {row["what"]: row["value"] for row in result["rows"]}

    def part(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    received = part("receive: ")
    singles = {name: value for name, value in received.items() if "details" not in name and "LCM" not in name}
    if singles:
        bars(
            directory / "receive.svg",
            "Receiving: the cost of a packet of 64 bytes (less is better)",
            "nanoseconds for each packet, on a logarithmic scale",
            singles,
            logarithmic=True,
        )
    sent = part("send: ")
    if sent:
        bars(
            directory / "send.svg",
            "Sending 20,000 equal packets of 64 bytes (less is better)",
            "nanoseconds for each packet",
            sent,
        )
    trips = part("round trip, p50: ")
    if trips:
        named = {f"multicast, {name}" if "loop" in name else name: value for name, value in trips.items()}
        bars(directory / "latency.svg", "Round trip, median (less is better)", "microseconds", named)
    filtered = part("filter: ")
    if filtered:
        bars(
            directory / "filter.svg",
            "A filter that one packet in a hundred passes: the receiver's cost (less is better)",
            "nanoseconds for each packet sent",
            {f"multicast, {name}": value for name, value in filtered.items()},
        )


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
