"""Puzzles as pictures: the matrix with its last cell blank or filled, single panels, the choices."""

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from lvm.world.puzzles import NUM_TURNS, SHAPES, Panel, Puzzle

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

PAPER, BLANK, LINE = (248, 246, 240), (150, 150, 150), (40, 40, 46)
_HUES = np.array([(214, 48, 49), (40, 100, 220), (30, 150, 70), (240, 150, 20), (140, 60, 190), (120, 120, 125)])
_RADII = (0.44, 0.61, 0.80, 1.0)  # of the sizes, as shares of the room for a shape
# Where shapes stand, in panels from -1 to 1: the corners that are bits of `places`, and the layouts of 1 to 4 shapes.
_CORNERS = ((-0.46, -0.46), (0.46, -0.46), (-0.46, 0.46), (0.46, 0.46))
_LAYOUTS = {1: ((0.0, 0.0),), 2: ((-0.46, 0.0), (0.46, 0.0)), 3: ((0.0, -0.46), *_CORNERS[2:]), 4: _CORNERS}


def matrix(puzzle: Puzzle, size: int, last: Panel | None = None) -> "UInt8[np.ndarray, 'y x 3']":
    """All nine cells, the last one blank or holding `last`."""
    canvas, scale = _canvas(size)
    pen, side = ImageDraw.Draw(canvas), canvas.width / 3
    for k, panel in enumerate([*puzzle.panels[:8], last]):
        left, top = side * (k % 3), side * (k // 3)
        if panel is None:
            pen.rectangle((left, top, left + side, top + side), fill=BLANK)
        else:
            _draw(pen, panel, puzzle, left + side / 2, top + side / 2, side / 2)
    width = max(scale, round(canvas.width / 80))
    for at in (0.0, side, 2 * side, canvas.width - 1.0):
        half = width / 2
        pen.rectangle((at - half, 0, at + half - 1, canvas.width), fill=LINE)
        pen.rectangle((0, at - half, canvas.width, at + half - 1), fill=LINE)
    return np.asarray(canvas.reduce(scale))


def panel(puzzle: Puzzle, shown: Panel, size: int) -> "UInt8[np.ndarray, 'y x 3']":
    """One panel that fills the picture."""
    canvas, scale = _canvas(size)
    _draw(ImageDraw.Draw(canvas), shown, puzzle, canvas.width / 2, canvas.width / 2, canvas.width / 2)
    return np.asarray(canvas.reduce(scale))


def panels(puzzle: Puzzle, size: int) -> "UInt8[np.ndarray, '9 y x 3']":
    return np.stack([panel(puzzle, shown, size) for shown in puzzle.panels])


def choices(puzzle: Puzzle, size: int) -> "UInt8[np.ndarray, '8 y x 3']":
    """The panels to choose from; number `puzzle.answer` is right."""
    return np.stack([panel(puzzle, shown, size) for shown in puzzle.choices])


def _canvas(size: int) -> tuple[Image.Image, int]:
    """Paper at a whole multiple of the size, for smooth rims, and that multiple."""
    scale = max(2, -(-384 // size))
    return Image.new("RGB", (size * scale, size * scale), PAPER), scale


def _draw(pen: ImageDraw.ImageDraw, panel: Panel, puzzle: Puzzle, x: float, y: float, half: float) -> None:
    """A panel about (x, y), from which its sides are `half` away."""
    if panel.places:
        spots: Any = [spot for k, spot in enumerate(_CORNERS) if panel.places >> k & 1]
    else:
        spots = _LAYOUTS[panel.count]
    radius = half * _RADII[panel.size] * (0.74 if puzzle.grid == 1 else 0.38)
    outline, line = _OUTLINES[SHAPES[panel.shape]], max(1, round(half / 24))
    angle = 2 * np.pi / NUM_TURNS * panel.rotation
    cos, sin = np.cos(angle), np.sin(angle)
    turned = outline @ np.array([[cos, sin], [-sin, cos]])
    fill = shade(puzzle.hue, panel.shade)
    for across, down in spots:
        points = turned * radius + (x + across * half, y + down * half)
        corners = [(float(a), float(b)) for a, b in points]
        pen.polygon(corners, fill=fill)
        pen.line([*corners, *corners[:2]], fill=LINE, width=line, joint="curve")


def shade(hue: int, level: int) -> tuple[int, int, int]:
    """From nearly white over the hue to black."""
    share = (0.14, 0.5, 1.0, 0.5, 0.04)[level]
    ground = np.array(PAPER if level < 2 else (0, 0, 0))
    red, green, blue = np.rint(share * _HUES[hue] + (1 - share) * ground).astype(int).tolist()
    return red, green, blue


def _arc(start: float, stop: float, count: int, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Any:
    """Points of a circle between two angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, count))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


def _star() -> Any:
    angles, radii = np.radians(np.arange(10) * 36 - 90), np.where(np.arange(10) % 2, 0.45, 1.08)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _cross(arm: float = 0.34) -> Any:
    quarter = np.array([(arm, -arm), (arm, -1), (-arm, -1)])
    turn = np.array([[0, -1], [1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _heart() -> Any:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], 1) / 16


# Within about 1 of the middle, y down; those that point somewhere point up.
_OUTLINES: "dict[str, Float[np.ndarray, 'k 2']]" = {
    "circle": _arc(0, 360, 48)[:-1] * 0.95,
    "square": np.array([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "triangle": np.array([(0, -1.0), (1.0, 0.75), (-1.0, 0.75)]),
    "star": _star(),
    "cross": _cross(),
    "arrow": np.array([(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)]),
    "drop": np.concatenate([[(0.0, -1.1)], _arc(-25, 205, 24, 0.62, 0.0, 0.38)]),
    "half disc": _arc(180, 360, 24, 1.0, 0.0, 0.45),
    "heart": _heart(),
    "key": np.array([(-0.3, -1.0), (0.24, -1.0), (0.24, 0.2), (0.7, 0.2), (0.7, 0.78), (-0.3, 0.78)]),
}
