"""Small charts as inline SVG without scripts: lines with axes, and a value with its interval. Colours come from CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
DOT = 4
MOST_POINTS = 400
"""Points drawn for one line; more are averaged in equal stretches."""

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: of the line.
        style: a CSS class: raw, soft, main or second.
        x, y: floats [n], its points.
        low, high: floats [n], ends of a bar at each point, NaN for no bar; None where there are no bars.
    """

    name: str
    style: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers (steps of 1, 2, 2.5 or 5 times a power of ten) that lie in [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def power(exponent: int) -> str:
    """Return a power of ten as people write it: 10⁻³."""
    return "10" + str(exponent).translate(SUPERSCRIPT)


def tick_label(value: float, as_percent: bool = False) -> str:
    """Return a short name of an axis value: 0.25, 12k or 95 %."""
    if as_percent:
        return f"{value * 100:.6g}\u202f%"
    return f"{value / 1000:.6g}k" if abs(value) >= 10_000 else f"{value:.6g}"


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """Return the centred running mean of y over `window` points (fewer at the ends), float64 [n]."""
    window = max(1, min(window, len(y)))
    ones = np.ones(window)
    return np.convolve(y, ones, "same") / np.convolve(np.ones(len(y)), ones, "same") if len(y) else y


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `most` points: the means of equal stretches of x and y."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(np.int64)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def line_chart(
    lines: Sequence[Line], title: str, x_label: str, y_range: tuple[float, float], as_percent: bool = False
) -> Markup:
    """Return a chart of lines over one x axis, as wide as its place in the page.

    Args:
        lines: drawn in order, the last on top; each has at least one point.
        title: read to people who cannot see the chart.
        x_label: name of the x axis.
        y_range: lower and upper end of the y axis; what lies beyond is cut off.
        as_percent: y values are shares, labelled in percent.
    """
    low_x = min(float(line.x.min()) for line in lines)
    high_x = max(float(line.x.max()) for line in lines)
    x_range = (low_x, high_x if high_x > low_x else low_x + 1)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in ticks(*y_range):
        y = TOP + height * (1 - _share(value, y_range))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        label = tick_label(value, as_percent)
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in ticks(*x_range):
        x = LEFT + width * _share(value, x_range)
        parts.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
        label = tick_label(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    name = f'<text class="tick" x="{LEFT + width / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
    # The inner svg cuts off what lies outside the axes, but for the width of a dot.
    inner = f'x="{LEFT - DOT}" y="{TOP - DOT}" width="{width + 2 * DOT}" height="{height + 2 * DOT}"'
    parts += [name, f'<svg {inner} viewBox="{-DOT} {-DOT} {width + 2 * DOT} {height + 2 * DOT}">']
    parts += [_drawn(line, x_range, y_range, width, height) for line in lines]
    return Markup("".join(parts) + "</svg></svg>")


def _share(value: float, of: tuple[float, float]) -> float:
    return (value - of[0]) / (of[1] - of[0])


def _drawn(line: Line, x_range: tuple[float, float], y_range: tuple[float, float], width: float, height: float) -> str:
    x, y = thin(line.x, line.y)
    across = width * (x - x_range[0]) / (x_range[1] - x_range[0])

    def down_to(values: np.ndarray) -> np.ndarray:
        # Far beyond the axes is as good as anywhere beyond, and keeps the numbers short.
        return np.clip(height * (1 - (values - y_range[0]) / (y_range[1] - y_range[0])), -height, 2 * height)

    down = down_to(y)
    bars = ""
    if line.low is not None and line.high is not None and len(x) == len(line.low):
        ends = zip(across, down_to(line.low), down_to(line.high), strict=True)
        bars = "".join(f'<path class="spread" d="M{a:.1f} {b:.1f}V{c:.1f}"/>' for a, b, c in ends if b == b and c == c)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    if len(x) == 1:
        return f'{bars}<circle class="dot {line.style}" cx="{across[0]:.1f}" cy="{down[0]:.1f}" r="3.5"/>'
    dots = ""
    if line.style in ("main", "second") and len(x) <= 40:
        dots = "".join(
            f'<circle class="dot {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>'
            for a, b in zip(across, down, strict=True)
        )
    return f'{bars}<polyline class="line {line.style}" points="{points}"/>{dots}'


def whisker(value: float | None, low: float | None, high: float | None, scale: tuple[float, float]) -> Markup:
    """Return a value as a dot with its interval as a bar, on a track that spans `scale`; empty if undefined."""
    if value is None:
        return Markup("")
    width = 120

    def place(number: float) -> float:
        return 4 + (width - 8) * min(1.0, max(0.0, _share(number, scale)))

    bar = ""
    if low is not None and high is not None:
        bar = f'<path class="spread" d="M{place(low):.1f} 8H{place(high):.1f}"/>'
    return Markup(
        f'<svg class="whisker" viewBox="0 0 {width} 16" aria-hidden="true"><path class="grid" d="M4 8H{width - 4}"/>'
        f'{bar}<circle class="dot main" cx="{place(value):.1f}" cy="8" r="3.5"/></svg>'
    )
