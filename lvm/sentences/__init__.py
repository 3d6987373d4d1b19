"""Recipes: how the pictures of one sentence are chosen and ordered. One file each, pure, known by name in a config."""

from lvm.sentences.base import (
    ANSWER,
    INPUT,
    PAD,
    ROLES,
    SPECIAL,
    Catalogue,
    Columns,
    Condition,
    Kinds,
    Pictures,
    Recipe,
)
from lvm.sentences.pairs import Pairs
from lvm.sentences.single import Single
from lvm.sentences.verbatim import Verbatim
from lvm.sentences.video import Video

RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (Single, Video, Pairs, Verbatim)}

__all__ = [
    "ANSWER",
    "INPUT",
    "PAD",
    "RECIPES",
    "ROLES",
    "SPECIAL",
    "Catalogue",
    "Columns",
    "Condition",
    "Kinds",
    "Pairs",
    "Pictures",
    "Recipe",
    "Single",
    "Verbatim",
    "Video",
]
