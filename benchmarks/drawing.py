"""A small log-log drawing as SVG text: one column a quantity, time above memory, one line a way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Series = Mapping[str, Mapping[int, Mapping[str, float]]]  # way -> x -> {"seconds", "bytes"}
COLOURS = ("#6b7280", "#1d4ed8", "#d97706", "#047857")
PANEL_WIDTH, PANEL_HEIGHT, MARGIN = 250, 170, 58
ROWS = (("seconds", "seconds", 1.0), ("bytes", "MiB", 1 / 2**20))


def draw(found: Mapping[str, Series], title: str) -> str:
    """Return an SVG document of all series, axes logarithmic; dotted: proportional to the quantity."""
    width = len(found) * (PANEL_WIDTH + MARGIN) + MARGIN
    height = len(ROWS) * (PANEL_HEIGHT + MARGIN) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        _text(MARGIN, 22, title, size=14),
        *_legend([*next(iter(found.values()))]),
    ]
    for row, (key, unit, scale) in enumerate(ROWS):
        for column, (quantity, series) in enumerate(found.items()):
            lines = {way: {x: point[key] * scale for x, point in points.items()} for way, points in series.items()}
            left, top = MARGIN + column * (PANEL_WIDTH + MARGIN), 56 + row * (PANEL_HEIGHT + MARGIN)
            parts += _panel(lines, left, top, quantity, unit)
    return "\n".join([*parts, "</svg>\n"])


def _legend(ways: Sequence[str]) -> list[str]:
    parts = []
    for place, way in enumerate(ways):
        x = MARGIN + 120 * place
        parts += [f'<rect x="{x}" y="32" width="14" height="4" fill="{COLOURS[place]}"/>', _text(x + 20, 38, way)]
    return parts


def _panel(lines: Mapping[str, Mapping[int, float]], left: float, top: float, quantity: str, unit: str) -> list[str]:
    xs = sorted(next(iter(lines.values())))
    values = [y for points in lines.values() for y in points.values()]
    low, high = min(values) * 0.8, max(values) * 1.25

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = math.log(max(min(y, high), low) / low) / math.log(high / low)
        return left + across * PANEL_WIDTH, top + (1 - up) * PANEL_HEIGHT

    bottom = top + PANEL_HEIGHT
    parts = [f'<path d="M{left} {top}V{bottom}H{left + PANEL_WIDTH}" fill="none" stroke="#111"/>']
    for x in xs:
        parts.append(_text(place(x, low)[0], bottom + 14, str(x), anchor="middle"))
    parts.append(_text(left + PANEL_WIDTH / 2, bottom + 30, quantity, anchor="middle"))
    for y in _ticks(low, high):
        height = place(xs[0], y)[1]
        parts.append(f'<path d="M{left} {height:.1f}h{PANEL_WIDTH}" stroke="#e5e7eb"/>')
        parts.append(_text(left - 4, height + 4, f"{y:g}", anchor="end"))
    parts.append(_text(left - 4, top - 6, unit, anchor="end"))
    first = [*lines.values()][0]
    guide = [place(x, first[xs[-1]] * x / xs[-1]) for x in xs]
    parts.append(_line(guide, "#9ca3af", ' stroke-dasharray="2 4"'))
    for colour, points in zip(COLOURS, lines.values(), strict=False):
        parts.append(_line([place(x, points[x]) for x in xs], colour, ' stroke-width="2"'))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]


def _line(points: Sequence[tuple[float, float]], colour: str, more: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{text}</text>'
