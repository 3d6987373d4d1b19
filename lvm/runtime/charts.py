"""Small charts as inline SVG: readable on light and dark ground, no script, nothing loaded from elsewhere."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

BLUE, ORANGE, RED, GREEN = "#3d85c6", "#d9822b", "#d64545", "#3f9e6b"  # seen on white and on black
INK = 'fill="currentColor"'
ORDERED = ("#8a63c9", BLUE, "#2a9fa8", GREEN, "#a8932a", ORANGE, RED, "#c2569b")  # for a row of sizes


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
    """A number in few characters: 2e15, 1.2M, 34k, 7.9, 0.33."""
    if abs(value) >= 1e12:
        return f"{value:.3g}".replace("e+", "e")
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


@dataclass(frozen=True)
class Series:
    """What `log_chart` draws: a line, or dots (hollow ones are set apart), and a band around it."""

    name: str  # in the legend; "" is not in it
    points: Sequence[tuple[float, float]]
    colour: str = BLUE
    kind: str = "line"  # line, dashed, dots, rings
    band: Sequence[tuple[float, float, float]] = ()  # (x, low, high)


def log_chart(
    series: Sequence[Series], x_title: str, y_title: str, width: int = 720, height: int = 340, log_y: bool = True
) -> str:
    """Series over a logarithmic x; y logarithmic too, unless asked otherwise. The legend stands at the right."""
    xs = [x for one in series for x, _ in one.points] + [x for one in series for x, _, _ in one.band]
    ys = [y for one in series for _, y in one.points] + [y for one in series for _, *ends in one.band for y in ends]
    if not xs:
        return ""
    names = [(one.name, one.colour) for one in series if one.name]
    to_y = math.log if log_y else float
    x_low, x_high, y_low, y_high = math.log(min(xs)), math.log(max(xs)), to_y(min(ys)), to_y(max(ys))
    x_pad, y_pad = 0.03 * (x_high - x_low) or 0.1, 0.06 * (y_high - y_low) or 0.05
    left, top, bottom = 58, 34, height - 42
    right = width - 16 - (max(7.2 * len(name) for name, _ in names) + 10 if names else 0)
    at_x = lambda x: left + (math.log(x) - x_low + x_pad) / (x_high - x_low + 2 * x_pad) * (right - left)
    at_y = lambda y: bottom - (to_y(y) - y_low + y_pad) / (y_high - y_low + 2 * y_pad) * (bottom - top)
    parts = [text((left + right) / 2, height - 6, x_title), text(left - 50, 16, y_title, "start")]
    for tick in _y_ticks(min(ys), max(ys), log_y):
        parts += [rule(left, at_y(tick), right, at_y(tick)), text(left - 6, at_y(tick) + 4, short(tick), "end", 11)]
    ticks = _few(log_ticks(min(xs), max(xs)))
    for tick in ticks if len(ticks) > 1 else nice_ticks(min(xs), max(xs)):
        parts += [rule(at_x(tick), top, at_x(tick), bottom), text(at_x(tick), bottom + 16, short(tick), size=11)]
    for one in sorted(series, key=lambda one: one.kind in ("dots", "rings")):  # dots above lines
        parts += _drawn(one, at_x, at_y)
    for i, (name, colour) in enumerate(names):
        parts.append(text(right + 12, top + 12 + 18 * i, name, "start", 12, f'fill="{colour}" font-weight="600"'))
    return svg(width, height, parts, f"{y_title} against {x_title}")


def _y_ticks(low: float, high: float, log_y: bool) -> list[float]:
    if log_y and high > 8 * low:
        return _few(log_ticks(low, high))
    return nice_ticks(low, high)


def _few(ticks: list[float]) -> list[float]:
    """Powers of ten alone where there would be too many."""
    return ticks if len(ticks) <= 9 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]


def _drawn(one: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    parts = []
    if one.band:
        edge = [(x, high) for x, _, high in one.band] + [(x, low) for x, low, _ in reversed(one.band)]
        joined = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in edge)
        parts.append(f'<polygon points="{joined}" fill="{one.colour}" fill-opacity="0.14"/>')
    placed = [(at_x(x), at_y(y)) for x, y in one.points]
    if one.kind in ("dots", "rings"):
        fill = one.colour if one.kind == "dots" else "none"
        ring = f'fill="{fill}" stroke="{one.colour}" stroke-width="2"'
        return parts + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {ring}/>' for x, y in placed]
    return parts + [path(placed, one.colour, 2.0, 'stroke-dasharray="6 5"' if one.kind == "dashed" else "")]


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


@dataclass(frozen=True)
class Dot:
    name: str
    value: float
    colour: str
    low: float | None = None  # of an interval
    high: float | None = None


def dot_chart(rows: Mapping[str, Sequence[Dot]], x_title: str, logarithmic: bool = False, width: int = 460) -> str:
    """A line for each row with its dots and their intervals, over a common x."""
    dots = [dot for row in rows.values() for dot in row if not logarithmic or dot.value > 0]
    if not dots:
        return ""
    to_x = math.log if logarithmic else float
    ends = [to_x(x) for dot in dots for x in (dot.value, dot.low, dot.high) if x is not None]
    low, high = min(ends), max(ends)
    pad = 0.03 * (high - low) or 0.5
    left, right, top, each = 8 + 6.6 * min(20, max(map(len, rows))), width - 14, 32, 24
    bottom = top + each * len(rows)
    at_x = lambda x: left + (to_x(x) - low + pad) / (high - low + 2 * pad) * (right - left)
    ticks = log_ticks(math.exp(low), math.exp(high)) if logarithmic else []
    parts = []
    for tick in _few(ticks) if len(ticks) > 1 else nice_ticks(math.exp(low) if logarithmic else low, high, 4):
        parts += [rule(at_x(tick), top, at_x(tick), bottom), text(at_x(tick), bottom + 14, short(tick), size=10)]
    parts.append(text((left + right) / 2, bottom + 30, x_title, size=11))
    for k, (name, row) in enumerate(rows.items()):
        y = top + each * (k + 0.5)
        parts += [rule(left, y, right, y), text(left - 6, y + 4, name, "end", 11)]
        for dot in reversed(row):  # the first one on top
            if dot.low is not None and dot.high is not None:
                parts.append(path([(at_x(dot.low), y), (at_x(dot.high), y)], dot.colour, 2.0, 'stroke-opacity="0.6"'))
            parts.append(f'<circle cx="{at_x(dot.value):.1f}" cy="{y:.1f}" r="4.5" fill="{dot.colour}"/>')
    parts += legend(list({dot.name: dot.colour for dot in dots}.items()), right, 16)
    return svg(width, int(bottom) + 36, parts, x_title)
