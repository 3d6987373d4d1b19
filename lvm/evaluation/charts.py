"""Small charts as inline SVG: readable on light and dark ground, no script, nothing loaded from elsewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

BLUE, ORANGE, RED, GREEN = "#3d85c6", "#d9822b", "#d64545", "#3f9e6b"  # seen on white and on black
INK = 'fill="currentColor"'


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]  # (x, y)
    colour: str = BLUE
    width: float = 2.0
    opacity: float = 1.0


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten within [low, high]."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**d for d in decades for f in (1, 2, 5) if low <= f * 10.0**d <= high]


def short(value: float) -> str:
    """A number in few characters: 1.2M, 34k, 7.9, 0.33."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def text(x: float, y: float, content: str, anchor: str = "middle", size: int = 12, more: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {more}>{escape(content)}</text>'


def path(points: Sequence[tuple[float, float]], colour: str, width: float = 2.0, more: str = "") -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width}" {more}/>'


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="0.18"/>'


def svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">{body}</svg>'
    )


def line_chart(
    lines: Sequence[Line], x_title: str, y_title: str, width: int = 720, height: int = 280, from_zero: bool = False
) -> str:
    """Lines over a common linear x; y linear, from zero if asked."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = (0.0 if from_zero else min(ys)), max(ys)
    margin = 0.04 * (y_high - y_low) or 1.0
    y_low, y_high = (y_low if from_zero else y_low - margin), y_high + margin
    left, right, top, bottom = 52, width - 22, 34, height - 40
    at_x = lambda x: left + (x - x_low) / (x_high - x_low) * (right - left)
    at_y = lambda y: bottom - (y - y_low) / (y_high - y_low) * (bottom - top)
    parts = []
    for tick in nice_ticks(y_low, y_high):
        parts += [rule(left, at_y(tick), right, at_y(tick)), text(left - 6, at_y(tick) + 4, short(tick), "end", 11)]
    for tick in nice_ticks(x_low, x_high, 6):
        parts.append(text(at_x(tick), bottom + 16, short(tick), size=11))
    parts += [text((left + right) / 2, height - 6, x_title), text(left - 40, 16, y_title, "start")]
    for line in lines:
        placed = [(at_x(x), at_y(y)) for x, y in line.points]
        parts.append(path(placed, line.colour, line.width, f'stroke-opacity="{line.opacity}"'))
    parts += legend([(line.name, line.colour) for line in lines if line.name], right)
    return svg(width, height, parts, f"{y_title} against {x_title}")


def legend(entries: Sequence[tuple[str, str]], right: float, y: float = 16) -> list[str]:
    """Names in their colours, set from the right."""
    parts, x = [], right
    for name, colour in reversed(entries):
        parts.append(text(x, y, name, "end", 12, f'fill="{colour}" font-weight="600"'))
        x -= 6.4 * len(name) + 14
    return parts


def step_chart(
    labels: Sequence[str],
    lines: Mapping[str, Sequence[float | None]],
    colours: Mapping[str, str],
    title: str = "",
    apart: int | None = None,
    width: int = 330,
    height: int = 225,
) -> str:
    """Values at named steps on a logarithmic y, each written at its point. Steps from number `apart` on stand for
    themselves: no line leads to them."""
    values = [v for line in lines.values() for v in line if v is not None and v > 0]
    if not values:
        return ""
    spread = max(values) / min(values)  # room for the numbers above and below the points
    low, high = min(values) / (1.3 * spread**0.12), max(values) * 1.2 * spread**0.06
    left, right, top, bottom = 34, width - 22, 50, height - 26
    at_x = lambda i: left + (i + 0.35) / max(1, len(labels) - 0.3) * (right - left)
    at_y = lambda v: bottom - (math.log(v) - math.log(low)) / (math.log(high) - math.log(low)) * (bottom - top)
    parts = [text(4, 17, title, "start", 14, f'{INK} font-weight="600"')]
    ticks = log_ticks(low, high)
    for tick in ticks if len(ticks) < 6 else [t for t in ticks if f"{t:g}"[0] == "1"]:
        parts += [
            rule(left, at_y(tick), right + 14, at_y(tick)),
            text(left - 5, at_y(tick) + 4, short(tick), "end", 10),
        ]
    for i, label in enumerate(labels):
        colour = f'fill="{RED}" font-weight="600"' if apart is not None and i >= apart else INK
        parts.append(text(at_x(i), bottom + 19, label, size=12, more=colour))
    for name, line in lines.items():
        known = [(i, v) for i, v in enumerate(line) if v is not None and v > 0]
        joined = [(at_x(i), at_y(v)) for i, v in known if apart is None or i < apart]
        parts.append(path(joined, colours[name]))
        for i, v in known:
            others = [other[i] for key, other in lines.items() if key != name]
            under = any(other is not None and other > v for other in others)  # the lower value is written below
            parts.append(f'<circle cx="{at_x(i):.1f}" cy="{at_y(v):.1f}" r="3.4" fill="{colours[name]}"/>')
            label = f'fill="{colours[name]}"'
            parts.append(text(at_x(i), at_y(v) + (16 if under else -8), short(v), size=11, more=label))
    parts += legend([(name, colours[name]) for name in lines], width - 6, 33) if len(lines) > 1 else []
    return svg(width, height, parts, f"{title} by {', '.join(labels)}")


def bar_chart(bars: Mapping[str, float], unit: str, width: int = 720) -> str:
    """Horizontal bars with their values."""
    if not bars:
        return ""
    row, left = 26, 170
    most = max(max(bars.values()), 1e-9)
    parts = []
    for i, (name, value) in enumerate(bars.items()):
        y = i * row + 5
        length = value / most * (width - left - 90)
        parts += [
            text(left - 8, y + 14, name, "end", 13),
            f'<rect x="{left}" y="{y}" width="{max(length, 1):.1f}" height="18" rx="3" fill="{BLUE}"/>',
            text(left + length + 8, y + 14, f"{short(round(value, 1))} {unit}", "start", 12),
        ]
    return svg(width, row * len(bars) + 8, parts, "bars")
