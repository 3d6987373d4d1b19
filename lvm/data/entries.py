"""The entries of a mixture over their stores, and which units draw k of an entry takes.

Nothing here reads a token. Units of all entries lie in one table, so that the draws of many entries are one vectorised
call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.data.bijection import permute, permute_in_blocks
from lvm.data.units import Units
from lvm.runtime.hashing import hash64, seed_from
from lvm.sentences import SPECIAL, Recipe

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Entry:
    """One entry of the mixture, bound to its store."""

    name: str
    source: str
    recipe: Recipe
    store: Any  # lvm.store.TokenStore or SimulatedStore
    num_units: int
    num_sentences: int  # N_e, of one epoch
    left_out: dict[str, int]  # why -> items

    @property
    def length(self) -> int:
        """Tokens of a sentence, BOS and EOS included."""
        return self.recipe.pictures * self.store.tokens_per_picture + 2

    @property
    def epoch_tokens(self) -> int:
        """Picture tokens of one epoch."""
        return self.num_sentences * self.recipe.pictures * self.store.tokens_per_picture

    @cached_property
    def roles(self) -> "Int8[np.ndarray, 'length']":
        inner = np.repeat(self.recipe.roles(), self.store.tokens_per_picture)
        return np.concatenate([[SPECIAL], inner, [SPECIAL]]).astype(np.int8)


@dataclass(frozen=True)
class Drawn:
    """The units of some draws, one draw after the other, and where each draw's begin."""

    unit: "Int64[np.ndarray, 'units']"  # item numbers
    first: "Int64[np.ndarray, 'draws']"
    key: "UInt64[np.ndarray, 'draws']"  # noise for the recipe
    epoch: "Int64[np.ndarray, 'draws']"


class Draws:
    """(entry, k) -> units. Sentence k of an entry takes units pi_epoch(m (k mod N_e) + 0..m-1), epoch = k div N_e.

    Where units must agree on a column, c = `together` of them at a time, each group is cut into bundles of c units in
    the order of a keyed permutation of the group; another one orders the bundles of all groups, and a sentence takes
    the next m / c of them.
    """

    def __init__(self, names: Sequence[str], recipes: Sequence[Recipe], units: Units, seed: int, shuffle_block: int):
        self.shuffle_block, self.units = shuffle_block, units
        self.key = np.array([seed_from("entry", seed, name) for name in names], np.uint64)
        self.grouped = np.array([recipe.agree != "none" for recipe in recipes])
        together = np.array([recipe.together if recipe.agree != "none" else recipe.units for recipe in recipes])
        self.together = together.astype(np.int64)
        self.bundles_each = np.array([recipe.units for recipe in recipes], np.int64) // self.together
        self.lists_from = units.lists_from()
        self.first_unit = np.cumsum(units.count) - units.count
        self.first_group = np.cumsum(units.num_groups) - units.num_groups
        bundles = units.group_size // np.repeat(self.together, units.num_groups)
        self.group_unit = np.cumsum(units.group_size) - units.group_size  # first unit of each group, over all entries
        self.group_bundle = np.cumsum(bundles) - bundles  # first bundle of each group, over all entries
        self.num_bundles = np.add.reduceat(bundles, self.first_group)
        self.first_bundle = np.cumsum(self.num_bundles) - self.num_bundles
        self.num_sentences = self.num_bundles // self.bundles_each

    def draw(self, entry: "Int64[np.ndarray, 'draws']", k: "Int64[np.ndarray, 'draws']") -> Drawn:
        epoch, sentence = np.divmod(k, self.num_sentences[entry])
        epoch_key = hash64(self.key[entry], epoch)
        draw, within = _counted(self.bundles_each[entry])
        of = entry[draw]  # entry of each bundle
        bundle = sentence[draw] * self.bundles_each[of] + within
        key = epoch_key[draw]
        (grouped,) = self.grouped[of].nonzero()
        if grouped.size:
            bundle[grouped] = permute(bundle[grouped], self.num_bundles[of[grouped]], hash64(key[grouped], 0))
        bundle += self.first_bundle[of]
        group = self.group_bundle.searchsorted(bundle, side="right") - 1
        group_key = hash64(key, 1, group - self.first_group[of])
        base = self.together[of] * (bundle - self.group_bundle[group])
        one, within = _counted(self.together[of])
        group = group[one]
        place = permute_in_blocks(base[one] + within, self.units.group_size[group], group_key[one], self.shuffle_block)
        of = of[one]
        unit = self.units.take(of, self.group_unit[group] - self.first_unit[of] + place, self.lists_from)
        m = self.together[entry] * self.bundles_each[entry]
        return Drawn(unit, m.cumsum() - m, hash64(self.key[entry], 2, k), epoch)


def _counted(counts: "Int64[np.ndarray, 'n']") -> "tuple[Int64[np.ndarray, 'm'], Int64[np.ndarray, 'm']]":
    """Each index as often as it counts, and which of its copies each is."""
    index = np.arange(len(counts)).repeat(counts)  # methods: numpy's functions cost a microsecond more each
    return index, np.arange(len(index)) - (counts.cumsum() - counts)[index]
