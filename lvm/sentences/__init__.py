"""Recipes: how the pictures of one sentence are chosen and ordered. One file each, pure, known by name in a config."""

from lvm.sentences.base import ANSWER, INPUT, PAD, ROLES, SPECIAL, Columns, Pictures, Recipe
from lvm.sentences.pairs import Pairs
from lvm.sentences.single import Single
from lvm.sentences.verbatim import Verbatim
from lvm.sentences.video import Video

RECIPES: dict[str, type] = {"single": Single, "video": Video, "pairs": Pairs, "verbatim": Verbatim}

__all__ = [
    "ANSWER",
    "INPUT",
    "PAD",
    "RECIPES",
    "ROLES",
    "SPECIAL",
    "Columns",
    "Pairs",
    "Pictures",
    "Recipe",
    "Single",
    "Verbatim",
    "Video",
]
