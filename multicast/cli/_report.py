"""The page that `top --report` writes: charts of what was measured, in one file that loads nothing.

What comes from the network, and the command line, is escaped; the page forbids itself every request and script.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from html import escape

from multicast import batch
from multicast.measure import Cell, Flow, Meters, Numbering

from ._output import plural, where

# So many flows have charts: first those with losses, then those with most packets. All are in the table.
_CHARTS = 40
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 400, 150, 68, 20, 10
_NAMES = {
    Numbering.NONE: "not numbered", Numbering.RTP: "RTP", Numbering.TS: "MPEG-TS", Numbering.PROBE: "multicast ping",
    Numbering.MOLDUDP64: "MoldUDP64",
}  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1d2430; --soft: #5b6675; --line: #dfe3e8; --card: #f7f8fa;
  --rate: #2563a8; --loss: #c2410c; --jitter: #6d43b0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --ink: #e4e8ee; --soft: #9aa5b3; --line: #30363f;
  --card: #1b1f26; --rate: #6db1f2; --loss: #f59468; --jitter: #b79af0; } }
body { margin: 0 auto; max-width: 82rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
p, dl { margin: 0 0 1rem; color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left; }
td.bad { color: var(--loss); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { display: flex; justify-content: space-between; gap: 1rem; margin-bottom: .25rem; font-size: .85rem; }
figcaption span { color: var(--soft); }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.rate { stroke: var(--rate); } .jitter { stroke: var(--jitter); } .loss { fill: var(--loss); }
.area { fill: var(--rate); opacity: .12; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.5rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
"""


def _bits(value: float) -> str:
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} bit/s"


def _octets(value: float) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.3g} %"


def _time(value: float) -> str:
    if math.isnan(value):
        return "-"
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{1e6 * value:.3g} \N{MICRO SIGN}s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _nice(most: float) -> float:
    """Return a round number not below `most`, for the top of an axis."""
    if not most > 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= most * 0.999999)


def _frame(length: float, top: float, wording: Callable[[float], str]) -> list[str]:
    """Return grid and axes."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - 4}"/>')
        label = wording(share * top) if share else "0"
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = _LEFT + share * (_WIDTH - 4 - _LEFT)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{_clock(share * length)}</text>'
        )
    return parts


def chart(
    title: str,
    note: str,
    kind: str,
    cells: Sequence[Cell],
    length: float,
    values: Sequence[float],
    wording: Callable[[float], str],
) -> str:
    """Return a chart of `values`, one for each cell, as a figure; `kind` is rate, loss or jitter."""
    known = [value for value in values if not math.isnan(value)]
    top = _nice(max(known, default=0))
    if kind == "loss" and not any(known):
        top = 0.01
    across, up = (_WIDTH - 4 - _LEFT) / max(length, 1e-9), (_HEIGHT - _BOTTOM - _TOP) / top
    floor = _HEIGHT - _BOTTOM
    parts = _frame(length, top, wording)
    if kind == "loss" and not any(value > 0 for value in known):
        middle = f'x="{(_LEFT + _WIDTH) / 2:.0f}" y="{(_TOP + floor) / 2 - 8:.0f}"'
        parts.append(f'<text {middle} text-anchor="middle">{"nothing lost" if known else "nothing came"}</text>')
    elif kind == "loss":
        for cell, value in zip(cells, values, strict=True):
            if value > 0:
                x, width = _LEFT + across * cell.start, max(1.5, across * cell.seconds - 0.5)
                height = max(1.5, up * value)
                parts.append(
                    f'<rect class="loss" x="{x:.1f}" y="{floor - height:.1f}" width="{width:.1f}"'
                    f' height="{height:.1f}"><title>{_clock(cell.start)}: {escape(wording(value))},'
                    f" {cell.lost} lost</title></rect>"
                )
    else:
        runs: list[list[tuple[float, float]]] = [[]]
        for cell, value in zip(cells, values, strict=True):
            if math.isnan(value):
                runs.append([])
            else:
                runs[-1].append((_LEFT + across * (cell.start + cell.seconds / 2), floor - up * value))
        for run in filter(None, runs):
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
            if kind == "rate":
                area = f"M{run[0][0]:.1f} {floor}L{line}L{run[-1][0]:.1f} {floor}Z"
                parts.append(f'<path class="area" d="{area}"/>')
            if len(run) == 1:
                line += f"h{max(1.5, across / 2):.1f}"
            parts.append(f'<path class="curve {kind}" d="M{line}"/>')
    drawing = "".join(parts)
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over time">{drawing}</svg>'
        "</figure>"
    )


def _charts(flow: Flow, length: float) -> str:
    cells = list(flow.moments)
    if len(cells) > 1 and cells[-1].seconds < cells[-2].seconds / 3:
        cells[-2:] = [cells[-2].and_(cells[-1])]  # so short a time has no rate worth a point
    numbered = flow.numbering is not Numbering.NONE
    mean = 8 * flow.bytes / length if length else 0.0
    parts = [
        chart("Rate", f"mean {_bits(mean)}", "rate", cells, length, [cell.bits for cell in cells], _bits),
    ]
    if numbered:
        loss = [cell.loss for cell in cells]
        note = f"{flow.lost} of {flow.lost + flow.numbered}"
        parts.append(chart("Loss", note, "loss", cells, length, loss, _percent))
    jitter = [cell.jitter for cell in cells]
    what = "RFC 3550" if flow.numbering in (Numbering.RTP, Numbering.PROBE) else "between packets"
    parts.append(chart("Jitter", what, "jitter", cells, length, jitter, _time))
    key = flow.key
    title = f"{where(key.group, key.port)} from {where(key.source, key.source_port)} by {key.interface}"
    return f'<h2>{escape(title)}</h2><div class="charts">{"".join(parts)}</div>'


_HEAD = ("Group", "Source", "Interface", "Type", "Packets", "Bytes", "Mean rate", "Lost", "Loss", "Twice",
         "Reordered", "Dropped", "Jitter")  # fmt: skip


def _row(flow: Flow, length: float) -> str:
    key, numbered = flow.key, flow.numbering is not Numbering.NONE
    dropped = sum(cell.dropped for cell in flow.moments)
    cells = [
        (where(key.group, key.port), False),
        (where(key.source, key.source_port), False),
        (key.interface, False),
        (_NAMES[flow.numbering], False),
        (f"{flow.packets:,}".replace(",", "\N{NO-BREAK SPACE}"), False),
        (_octets(flow.bytes), False),
        (_bits(8 * flow.bytes / length if length else 0), False),
        (str(flow.lost) if numbered else "-", flow.lost > 0),
        (_percent(flow.loss), flow.lost > 0),
        (str(flow.duplicates) if numbered else "-", False),
        (str(flow.reordered) if numbered else "-", False),
        (str(dropped), dropped > 0),
        (_time(flow.jitter), False),
    ]
    return "<tr>" + "".join(
        f'<td class="bad">{escape(text)}</td>' if bad else f"<td>{escape(text)}</td>" for text, bad in cells
    ) + "</tr>"


def page(meters: Meters, began: float, length: float, dropped: int, arguments: Sequence[str]) -> str:
    """Return the page: `began` in seconds since 1970, `length` in seconds, what the kernel dropped, the command."""
    # What went wrong stands first.
    flows = sorted(meters, key=lambda flow: (flow.lost > 0, flow.packets), reverse=True)
    groups = len({flow.key[:2] for flow in flows})
    summary = f"{plural(len(flows), 'source')} in {plural(groups, 'group')}, {_clock(length)} from "
    summary += time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(began))
    summary += f"; the kernel dropped {plural(dropped, 'packet') if dropped else 'nothing'}"
    if meters.others:
        summary += f"; {plural(meters.others, 'packet')} of more sources than are kept apart"
    if len(flows) > _CHARTS:
        summary += f"; charts of the first {_CHARTS}"
    package = sys.modules[__package__.partition(".")[0]]
    about = {
        "Command": "multicast " + shlex.join(arguments),
        "Version": f"multicast {package.__version__}, engine {batch.ENGINE}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Kernel": f"{platform.system()} {platform.release()}",
        "Loss": "of what is numbered: RTP packets, pieces of MPEG transport streams, packets of multicast ping and"
        " bench. Dropped: what arrived and the kernel had no room for, at this program's socket.",
    }
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in about.items())
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    rows = "".join(_row(flow, length) for flow in flows)
    charts = "".join(_charts(flow, length) for flow in flows[:_CHARTS])
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>multicast top</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>multicast top</h1>\n<p>{escape(summary)}</p>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n'
        f"{charts}\n<h2>About this page</h2>\n<dl>{facts}</dl>\n</body>\n</html>\n"
    )


class Report:
    """A file that is to have the page. It is made at once, so that nobody measures for an hour in vain."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd, self._draft = tempfile.mkstemp(".html", ".multicast-", os.path.dirname(path) or ".")
        except OSError as error:
            error.filename = path
            raise

    def write(
        self, meters: Meters, began: float, length: float, dropped: int, arguments: Sequence[str]
    ) -> None:
        """Put the page in its place; what was there before is replaced by it as a whole."""
        with os.fdopen(self._fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            self._fd = -1
            file.write(page(meters, began, length, dropped, arguments))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(self._draft, 0o666 & ~mask)
        os.replace(self._draft, self.path)
        self._draft = ""

    def close(self) -> None:
        """Remove what was not finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._draft:
            os.unlink(self._draft)
            self._draft = ""
