"""Matrices of 3x3 panels with eight choices for the ninth: of the embedded world, or any that give their panels.

Each is known in two forms: as one picture (channels `image`, the last cell blank, and `solution`, all cells) and as
nine pictures of one panel each.
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np

from lvm.evaluation.annotated import Annotated, WorldItems
from lvm.sources.world import WorldSource
from lvm.world import puzzle_pictures

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from lvm.world.puzzles import Puzzle


class Matrices(Annotated, Protocol):
    """Labels are the rules (or whatever kind of matrix there is), groups the ids."""

    def right_choice(self, i: int) -> int: ...

    def panels(self, i: int) -> "UInt8[np.ndarray, '9 y x 3']":
        """In reading order; the last one is the answer."""

    def choices(self, i: int) -> "UInt8[np.ndarray, '8 y x 3']":
        """Panels."""

    def filled(self, i: int) -> "UInt8[np.ndarray, '8 y x 3']":
        """The whole matrix, its last cell holding one choice after the other."""


class WorldMatrices(WorldItems):
    def __init__(self, world: WorldSource, size: int):
        super().__init__(world, "puzzle", size)
        self._side = size

    def _puzzle(self, i: int) -> "Puzzle":
        return self.world.puzzle(i)

    def right_choice(self, i: int) -> int:
        return self._puzzle(i).answer

    def panels(self, i: int) -> "UInt8[np.ndarray, '9 y x 3']":
        return puzzle_pictures.panels(self._puzzle(i), self._side)

    def choices(self, i: int) -> "UInt8[np.ndarray, '8 y x 3']":
        return puzzle_pictures.choices(self._puzzle(i), self._side)

    def filled(self, i: int) -> "UInt8[np.ndarray, '8 y x 3']":
        puzzle = self._puzzle(i)
        return np.stack([puzzle_pictures.matrix(puzzle, self._side, choice) for choice in puzzle.choices])
