"""Recipes: how the pictures of one sentence are chosen and ordered. One file each, pure, known by name in a config."""

from lvm.sentences.annotated_video import AnnotatedVideo
from lvm.sentences.annotations import Annotations
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
from lvm.sentences.category import Category
from lvm.sentences.multiview import Multiview
from lvm.sentences.pairs import Pairs
from lvm.sentences.puzzles import Puzzles
from lvm.sentences.single import Single
from lvm.sentences.tuples import Tuples
from lvm.sentences.verbatim import Verbatim
from lvm.sentences.video import Video

_ALL = (Single, Category, Pairs, Tuples, Annotations, Video, AnnotatedVideo, Multiview, Puzzles, Verbatim)
RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in _ALL}

__all__ = [
    "ANSWER",
    "INPUT",
    "PAD",
    "RECIPES",
    "ROLES",
    "SPECIAL",
    "AnnotatedVideo",
    "Annotations",
    "Catalogue",
    "Category",
    "Columns",
    "Condition",
    "Kinds",
    "Multiview",
    "Pairs",
    "Pictures",
    "Puzzles",
    "Recipe",
    "Single",
    "Tuples",
    "Verbatim",
    "Video",
]
