"""Small inline SVG charts for the site; colours come from the page, so they follow its theme."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

STRIP_WIDTH, STRIP_HEIGHT = 180, 26
CHART_WIDTH, CHART_HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 34
#: Dash patterns that tell blocks apart without colour.
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "12 4")


def effect_strip(row: Mapping, label: str) -> Markup:
    """A verdict's effect on a line: right of the middle is where the claim wants it.

    Draws the margin that matters as a band, the interval as a bar with a filled dot, and the
    published effect as a hollow diamond. A bar that leaves the strip ends in no cap.

    Args:
        row: a row of claims.csv.
        label: the same in words, for readers who do not see it.
    """
    sign = 1 if row["direction"] == "higher" else -1
    effect, published = sign * row["effect"], sign * row["published_effect"]
    ends = sorted((sign * row["low"], sign * row["high"]))
    marks = [abs(v) for v in (effect, published, row["matters"]) if not math.isnan(v)]
    widest = max([abs(v) for v in ends if not math.isnan(v)], default=0)
    reach = 1.15 * max(*marks, min(widest, 3 * max(marks)), 1e-9)
    middle = STRIP_HEIGHT / 2

    def x(value: float) -> float:
        return (max(-1, min(1, value / reach)) + 1) / 2 * STRIP_WIDTH

    margin = row["matters"]
    parts = [
        f'<rect class="band" x="{x(-margin):.1f}" y="3" width="{x(margin) - x(-margin):.1f}" '
        f'height="{STRIP_HEIGHT - 6}"/>',
        f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{STRIP_HEIGHT}"/>',
    ]
    if not math.isnan(ends[0]):
        parts.append(_bar(x(ends[0]), x(ends[1]), middle, middle))
        caps = [x(e) for e in ends if abs(e) < reach]
        parts += [_bar(at, at, middle - 5, middle + 5) for at in caps]
    if not math.isnan(effect):
        parts.append(f'<circle class="dot" cx="{x(effect):.1f}" cy="{middle}" r="4.5"/>')
    if not math.isnan(published):
        at = x(published)
        parts.append(
            f'<path class="paper" d="M{at:.1f} {middle - 6} l6 6 l-6 6 l-6 -6 z">'
            "<title>published</title></path>"
        )
    return _svg(STRIP_WIDTH, STRIP_HEIGHT, "strip", label, parts)


def _bar(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="bar" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1}" y2="{y2}"/>'


def _svg(width: int, height: int, kind: str, label: str, parts: Sequence[str]) -> Markup:
    escaped = Markup.escape(label)
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escaped}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """About four round numbers in a range."""
    if logarithmic:
        steps = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5)]
        inside = [t for t in steps if low <= t <= high]
        return inside[:: max(1, math.ceil(len(inside) / 5))] or [low, high]
    raw = (high - low) / 4 or 1
    step = 10 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw)
    return [t * step for t in range(math.ceil(low / step), math.floor(high / step) + 1)]


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str
) -> Markup:
    """Lines over a common axis, y logarithmic where every value is positive.

    Args:
        series: name → x and y; points that are not finite are left out.
    """
    points = {
        name: [(a, b) for a, b in zip(*xy, strict=True) if math.isfinite(a) and math.isfinite(b)]
        for name, xy in series.items()
    }
    every = [p for line in points.values() for p in line]
    if not every:
        return Markup('<p class="quiet">Nothing finite to draw.</p>')
    xs, ys = [p[0] for p in every], [p[1] for p in every]
    logarithmic = min(ys) > 0
    scale = math.log if logarithmic else float
    x0, x1, y0, y1 = min(xs), max(xs), scale(min(ys)), scale(max(ys))

    def place(a: float, b: float) -> tuple[float, float]:
        across = (a - x0) / ((x1 - x0) or 1)
        up = (scale(b) - y0) / ((y1 - y0) or 1)
        return (
            LEFT + across * (CHART_WIDTH - LEFT - RIGHT),
            CHART_HEIGHT - BOTTOM - up * (CHART_HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for tick in _ticks(min(ys), max(ys), logarithmic):
        y = place(x0, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{CHART_WIDTH - RIGHT}" y1="{y:.1f}" '
                     f'y2="{y:.1f}"/><text x="{LEFT - 6}" y="{y + 4:.1f}" '
                     f'text-anchor="end">{tick:.3g}</text>')  # fmt: skip
    for tick in _ticks(x0, x1, False):
        parts.append(f'<text x="{place(tick, min(ys))[0]:.1f}" y="{CHART_HEIGHT - 18}" '
                     f'text-anchor="middle">{tick:g}</text>')  # fmt: skip
    parts.append(f'<text x="{(LEFT + CHART_WIDTH) / 2}" y="{CHART_HEIGHT - 3}" '
                 f'text-anchor="middle">{Markup.escape(x_label)}</text>')  # fmt: skip
    for index, line in enumerate(points.values()):
        path = " ".join("{:.1f},{:.1f}".format(*place(a, b)) for a, b in line)
        dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if index else ""
        parts.append(f'<polyline class="line c{index % 6}"{dash} points="{path}"/>')
    return _svg(CHART_WIDTH, CHART_HEIGHT, "chart", f"{y_label} over {x_label}", parts)
