"""Charts as inline SVG: colours come from the page's CSS classes, so they follow light, dark and print.

Knows nothing of reports: it gets numbers and words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_MOST_POINTS = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 124, 14, 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    """Written at its right end."""
    points: Sequence[tuple[float, float]]
    """(x, y), x rising."""
    style: str
    """CSS class: ``line-main``, ``line-second`` or ``line-faint``."""
    has_dots: bool = False
    """Mark every point: for few of them."""


def line_chart(series: Sequence[Series], x_label: str, y_label: str, width: int = 960, height: int = 320) -> Markup:
    """Lines over a common x axis, labelled at their ends."""
    kept = [(s, thin(s.points)) for s in series if s.points]
    if not kept:
        return Markup("")
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 8), ticks(min(ys), max(ys), 5)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = (x - x_low) / (x_high - x_low), (y_high - y) / (y_high - y_low)
        return _LEFT + across * (width - _LEFT - _RIGHT), _TOP + down * (height - _TOP - _BOTTOM)

    parts = [_axes(x_ticks, y_ticks, place, (x_label, y_label), (width, height))]
    labels: list[tuple[float, str, str]] = []
    for one, points in kept:
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line {one.style}" points="{path}"/>')
        if one.has_dots:
            parts += [f'<circle class="dot {one.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        if one.name:
            labels.append((placed[-1][1], f"{one.name} {points[-1][1]:.3g}", one.style))
    parts += _end_labels(labels, width)
    title = escape(f"{y_label} / {x_label}")
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>')


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    place: Callable[[float, float], tuple[float, float]],
    labels: tuple[str, str],
    size: tuple[int, int],
) -> str:
    (x_label, y_label), (width, height) = labels, size
    parts: list[str] = []
    for tick in y_ticks:
        _, y = place(0.0, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x, y = place(tick, 0.0)[0], height - _BOTTOM + 18
        if _LEFT - 0.5 <= x <= width - _RIGHT + 0.5:
            parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{number(tick)}</text>')
    middle = (_LEFT + width - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    turn = f"rotate(-90 12 {height / 2})"
    parts.append(
        f'<text class="tick" x="12" y="{height / 2}" text-anchor="middle" transform="{turn}">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _end_labels(labels: list[tuple[float, str, str]], width: int) -> list[str]:
    """Names at the right ends, pushed apart where they would overlap."""
    parts: list[str] = []
    lowest = -math.inf
    for y, text, style in sorted(labels):
        y = max(y, lowest + 16)
        lowest = y
        parts.append(f'<text class="end {style}" x="{width - _RIGHT + 8}" y="{y + 4:.1f}">{escape(text)}</text>')
    return parts


def range_mark(value: float, low: float, high: float, bounds: tuple[float, float], width: int = 132) -> Markup:
    """A dot with its interval on a scale shared by one row of a table."""
    start, end = bounds
    span = (end - start) or 1.0

    def x(number_: float) -> float:
        return 4 + (number_ - start) / span * (width - 8)

    return Markup(
        f'<svg class="range" viewBox="0 0 {width} 12" aria-hidden="true">'
        f'<line class="rail" x1="4" x2="{width - 4}" y1="6" y2="6"/>'
        f'<line class="span" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="6" y2="6"/>'
        f'<circle class="mark" cx="{x(value):.1f}" cy="6" r="4"/></svg>'
    )


def bar_mark(share: float, style: str = "") -> Markup:
    """A horizontal bar filling ``share`` (0 to 1) of its cell; never thinner than visible."""
    width = 0 if share <= 0 else max(0.4, 100 * min(share, 1.0))
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" width="100" height="10"/>'
        f'<rect class="fill {escape(style)}" width="{width:.2f}" height="10"/></svg>'
    )


def smooth(points: Sequence[tuple[float, float]], half_life: float) -> list[tuple[float, float]]:
    """Exponential moving average over points, weights halved every ``half_life`` of them, without start-up bias."""
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    mean = weight = 0.0
    smoothed: list[tuple[float, float]] = []
    for x, y in points:
        mean, weight = keep * mean + y, keep * weight + 1.0
        smoothed.append((x, mean / weight))
    return smoothed


def thin(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: each the mean of its neighbours; the last one stays as it is."""
    if len(points) <= most:
        return list(points)
    size = len(points) / (most - 1)
    means: list[tuple[float, float]] = []
    for number_ in range(most - 1):
        part = points[int(number_ * size) : int((number_ + 1) * size)]
        means.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return [*means, points[-1]]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, about this many."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number_ * step, 12) for number_ in range(first, last + 1)]


def number(value: float) -> str:
    """``1,500``, ``0.25``: as short as it can be."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.4g}"
