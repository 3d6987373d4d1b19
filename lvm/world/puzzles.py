"""Puzzles in the manner of Raven's matrices: nine panels whose rows obey rules, the ninth to be found.

Each attribute of a panel is governed by a rule along its row, or is the same in all nine. A puzzle is kept only if
every rule that its first eight panels obey gives the same ninth value. The eight choices are the answer with each
subset of three attributes altered (the attribute bisection tree of I-RAVEN, Hu et al. 2021): four of them have the
answer's value of such an attribute and four another, so that the choices alone say nothing.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "arrow", "drop", "half disc", "heart", "key")
NUM_PLAIN = 5  # the first ones; those after them point somewhere, and a puzzle that turns its shapes has these alone
NUM_TURNS = 8  # of 45 degrees
# The values of each attribute. Places are bits of the four corners; 0 where `count` says how many shapes there are.
LEVELS = {
    "shape": range(NUM_PLAIN),
    "size": range(4),
    "count": range(1, 5),
    "places": range(1, 16),
    "shade": range(5),
    "rotation": range(NUM_TURNS),
}
# Of attributes without a rule: what all nine panels may have.
_UNGOVERNED = {
    "shape": range(NUM_PLAIN),
    "size": (2, 3),
    "count": (1, 1, 2, 3, 4),
    "places": (0,),
    "shade": range(1, 5),
    "rotation": (0,),
}
NUM_HUES = 6

# Which rule governs which attribute, by number: the label of a puzzle.
RULE_SETS: tuple[dict[str, str], ...] = (
    {"shape": "distribute"},
    {"size": "progression"},
    {"count": "progression"},
    {"shade": "progression"},
    {"rotation": "progression"},
    {"count": "arithmetic"},
    {"places": "xor"},
    {"shade": "distribute"},
    {"shape": "distribute", "shade": "progression"},
    {"shape": "constant", "size": "progression"},
    {"shape": "distribute", "count": "progression"},
    {"size": "progression", "shade": "progression"},
    {"shape": "constant", "count": "arithmetic"},
    {"shade": "constant", "places": "xor"},
    {"shade": "constant", "rotation": "progression"},
    {"shape": "distribute", "size": "distribute"},
    {"count": "progression", "shade": "distribute"},
    {"size": "constant", "rotation": "distribute"},
    {"shape": "distribute", "size": "progression", "shade": "constant"},
    {"shape": "constant", "count": "progression", "shade": "distribute"},
    {"shape": "distribute", "count": "arithmetic", "shade": "constant"},
    {"shape": "constant", "places": "xor", "shade": "progression"},
    {"size": "constant", "shade": "distribute", "rotation": "progression"},
    {"shape": "distribute", "size": "constant", "shade": "progression"},
)


@dataclass(frozen=True)
class Panel:
    shape: int  # index into SHAPES
    size: int
    count: int
    places: int
    shade: int
    rotation: int  # in steps of 45 degrees, clockwise


@dataclass(frozen=True)
class Puzzle:
    rule_set: int
    rules: dict[str, str]  # RULE_SETS[rule_set]
    panels: tuple[Panel, ...]  # nine, in reading order; the last is the answer
    choices: tuple[Panel, ...]  # eight, all different
    answer: int  # which of the choices
    hue: int  # of all shapes
    grid: int  # 1: one shape fills a panel; 2: they are small enough for four


Row = tuple[int, int, int]
Rule = Callable[[str, Row, Row, int, int], set[int]]  # an attribute, two rows and two panels of the third -> the next


def sample_puzzle(rng: np.random.Generator, rule_set: int) -> Puzzle:
    """A puzzle under rule set `rule_set`, and its choices."""
    rules = RULE_SETS[rule_set]
    columns = [_column(rng, name, rules) for name in LEVELS]
    panels = tuple(Panel(*values) for values in zip(*columns))
    grid = 2 if "places" in rules or max(panel.count for panel in panels) > 1 else 1
    choices = _bisect(rng, rules, panels[8], grid)
    order = rng.permutation(len(choices)).tolist()
    return Puzzle(
        rule_set=rule_set,
        rules=dict(rules),
        panels=panels,
        choices=tuple(choices[k] for k in order),
        answer=order.index(0),
        hue=int(rng.integers(NUM_HUES)),
        grid=grid,
    )


def _column(rng: np.random.Generator, name: str, rules: dict[str, str]) -> list[int]:
    """The values of an attribute in all nine panels."""
    first = NUM_PLAIN if name == "shape" and "rotation" in rules else 0
    while name in rules:
        rows = _SAMPLERS[rules[name]](rng, name)
        values = [value for row in rows for value in row]
        if rows[0] != rows[1] and predictions(name, values[:8]) == {values[8]}:
            return [first + value for value in values]
    alone = name == "count" and "size" in rules  # the least of four small shapes is too small to be told
    value = 1 if alone else int(rng.choice(_UNGOVERNED[name]))
    return [0 if name == "count" and "places" in rules else first + value] * 9


def _bisect(rng: np.random.Generator, rules: dict[str, str], answer: Panel, grid: int) -> list[Panel]:
    """The answer and the seven panels that differ from it in one, two or three of three attributes.

    The other value of an attribute is drawn as the answer's was: either could have been the answer, equally likely.
    """
    free = {"shape", "size", "shade"} | ({"count"} if grid == 2 and "places" not in rules else set())
    altered = [*rules, *rng.permutation(sorted(free - {*rules})).tolist()][:3]
    values = []
    for name in altered:
        own = other = getattr(answer, name)
        while other == own or (name == "count" and name not in rules and other == 1):
            other = _column(rng, name, rules)[8]
        values.append((own, other))
    return [replace(answer, **dict(zip(altered, chosen))) for chosen in itertools.product(*values)]


# Rules as they are drawn: three rows of an attribute.


def _sample_constant(rng: np.random.Generator, name: str) -> list[Row]:
    return [(value, value, value) for value in rng.choice(LEVELS[name], 3, replace=False).tolist()]


def _sample_progression(rng: np.random.Generator, name: str) -> list[Row]:
    steps = (-2, -1, 1, 2) if name == "rotation" else (-1, 1)
    step, levels = int(rng.choice(steps)), LEVELS[name]
    starts = [v for v in levels if name == "rotation" or v + 2 * step in levels]
    rows = [(v, v + step, v + 2 * step) for v in rng.choice(starts, 3).tolist()]
    return [(a % NUM_TURNS, b % NUM_TURNS, c % NUM_TURNS) for a, b, c in rows]


def _sample_distribute(rng: np.random.Generator, name: str) -> list[Row]:
    a, b, c = rng.choice(LEVELS[name], 3, replace=False).tolist()
    rows: list[Row] = [(a, b, c), (b, c, a), (c, a, b)]
    return rows if rng.integers(2) else [rows[0], rows[2], rows[1]]


def _sample_arithmetic(rng: np.random.Generator, name: str) -> list[Row]:
    levels = LEVELS[name]
    sums = [(a, b, a + b) for a in levels for b in levels if a + b in levels]
    if rng.integers(2):
        sums = [(total, b, a) for a, b, total in sums]
    return [sums[k] for k in rng.choice(len(sums), 3)]


def _sample_xor(rng: np.random.Generator, name: str) -> list[Row]:
    pairs = [rng.choice(LEVELS[name], 2, replace=False).tolist() for _ in range(3)]
    return [(a, b, a ^ b) for a, b in pairs]


_SAMPLERS: dict[str, Callable[[np.random.Generator, str], list[Row]]] = {
    "constant": _sample_constant,
    "progression": _sample_progression,
    "distribute": _sample_distribute,
    "arithmetic": _sample_arithmetic,
    "xor": _sample_xor,
}

# Rules as they are found: what they say of the ninth panel, nothing where the first eight do not obey them.


def predictions(name: str, values: Sequence[int]) -> set[int]:
    """Every ninth value of attribute `name` that some rule gives which the first eight `values` obey."""
    a, b, c, d, e, f, g, h = values
    return {ninth for rule in _FINDERS for ninth in rule(name, (a, b, c), (d, e, f), g, h)}


def _find_constant(name: str, one: Row, two: Row, g: int, h: int) -> set[int]:
    return {h} if len(set(one)) == len(set(two)) == 1 and g == h else set()


def _find_progression(name: str, one: Row, two: Row, g: int, h: int) -> set[int]:
    turn = NUM_TURNS if name == "rotation" else 1000
    steps = {(after - before) % turn for row in (one, two, (g, h)) for before, after in itertools.pairwise(row)}
    if name in ("shape", "places") or len(steps) > 1 or steps == {0}:
        return set()
    ninth = (h + steps.pop()) % turn
    return {ninth} if name == "rotation" or ninth in LEVELS[name] else set()


def _find_distribute(name: str, one: Row, two: Row, g: int, h: int) -> set[int]:
    return set(one) - {g, h} if len({*one}) == 3 and {*one} == {*two} and g != h and {g, h} < {*one} else set()


def _find_arithmetic(name: str, one: Row, two: Row, g: int, h: int) -> set[int]:
    if name != "count":
        return set()
    signs = [sign for sign in (-1, 1) if all(a + sign * b == c for a, b, c in (one, two))]
    return {g + sign * h for sign in signs} & {*LEVELS[name]}


def _find_xor(name: str, one: Row, two: Row, g: int, h: int) -> set[int]:
    obeyed = name == "places" and all(a ^ b == c for a, b, c in (one, two))
    return {g ^ h} - {0} if obeyed else set()


_FINDERS: tuple[Rule, ...] = (_find_constant, _find_progression, _find_distribute, _find_arithmetic, _find_xor)
