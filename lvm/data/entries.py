"""The entries of a mixture over their stores: which items they may use, and which units draw k of an entry takes.

Nothing here reads a token. All entries lie in one table, so that the draws of many entries are one vectorised call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.data.bijection import permute, permute_in_blocks
from lvm.data.config import DataConfig, make_recipe
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, hash64, held_out, seed_from
from lvm.sentences import SPECIAL, Recipe

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int64, UInt64

    from lvm.store import TokenStore


@dataclass(frozen=True)
class Entry:
    """One entry of the mixture, bound to its store."""

    name: str
    source: str
    recipe: Recipe
    store: "TokenStore"
    units: "Int64[np.ndarray, 'units']"  # item numbers, those of one group beside one another
    group_sizes: "Int64[np.ndarray, 'groups']"  # units of each group; one group where nothing must agree
    left_out: dict[str, int]  # why -> items

    @property
    def num_sentences(self) -> int:
        """N_e, the sentences of one epoch."""
        return int((self.group_sizes // self.recipe.units).sum())

    @property
    def length(self) -> int:
        """Tokens of a sentence, BOS and EOS included."""
        return self.recipe.pictures * self.store.tokens_per_picture + 2

    def roles(self) -> "Int[np.ndarray, 'length']":
        inner = np.repeat(self.recipe.roles(), self.store.tokens_per_picture)
        return np.concatenate([[SPECIAL], inner, [SPECIAL]]).astype(np.int8)


def open_entries(config: DataConfig, stores: "Mapping[str, TokenStore]", names: Sequence[str]) -> list[Entry]:
    """The entries called `names`. Raises `UserError` for one that no item can fill."""
    allowed = {name: _allowed(config, name, store) for name, store in stores.items()}
    return [_open_entry(config, name, stores[config.entries[name].source], allowed) for name in names]


def _allowed(config: DataConfig, source: str, store: "TokenStore") -> "list[tuple[str, Bool[np.ndarray, 'items']]]":
    """The rules of a whole source: (what is said of items that break it, who keeps it)."""
    options = config.sources[source]
    group = np.asarray(store.group)
    rules = [("taken down", store.admitted), ("held out", ~held_out(group, config.held_out_per_mille))]
    if options.exclude_groups:
        named = np.array([group_hash(name) for name in options.exclude_groups], np.uint64)
        rules.append(("excluded group", ~np.isin(group, named)))
    if options.exclude_views:
        rules.append(("excluded view", ~np.isin(np.asarray(store.view), np.asarray(options.exclude_views))))
    return rules


def _open_entry(
    config: DataConfig, name: str, store: "TokenStore", allowed: "dict[str, list[tuple[str, Any]]]"
) -> Entry:
    options = config.entries[name]
    recipe = make_recipe(config, name)
    if len(store) == 0:
        raise UserError(f"source {options.source!r} is empty; tokenize pictures into it or remove entry {name!r}")
    try:
        conditions = recipe.conditions(store)
    except UserError as error:
        raise UserError(f"entry {name!r}: {error}") from None
    left = np.ones(len(store), bool)
    left_out: dict[str, int] = {}
    for reason, kept in [*allowed[options.source], *conditions]:
        lost = int(np.count_nonzero(left & ~kept))
        if lost:
            left_out[reason] = left_out.get(reason, 0) + lost
        left &= kept
    items = np.flatnonzero(left)
    if recipe.agree == "none":
        sizes = np.array([len(items)], np.int64)
    else:
        column = np.asarray(getattr(store, recipe.agree))[items]
        if recipe.agree == "label" and (unlabelled := int(np.count_nonzero(column < 0))):
            left_out["no label"] = unlabelled
            items, column = items[column >= 0], column[column >= 0]
        order = np.argsort(column, kind="stable")
        items, column = items[order], column[order]
        _, sizes = np.unique(column, return_counts=True)
        whole = sizes >= recipe.units
        if not whole.all():
            left_out[f"fewer than {recipe.units} of one {recipe.agree}"] = int(sizes[~whole].sum())
            items, sizes = items[np.repeat(whole, sizes)], sizes[whole]
    if int((sizes // recipe.units).sum()) == 0:
        why = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "nothing was left out"
        raise UserError(
            f"entry {name!r} has {len(items)} usable items in source {options.source!r} and needs {recipe.units} a "
            f"sentence (left out of {len(store)}: {why}); add pictures, change the entry or give it weight 0"
        )
    return Entry(name, options.source, recipe, store, items.astype(np.int64), sizes.astype(np.int64), left_out)


@dataclass(frozen=True)
class Drawn:
    """The units of some draws, one draw after the other, and where each draw's begin."""

    unit: "Int64[np.ndarray, 'units']"  # item numbers
    first: "Int64[np.ndarray, 'draws']"
    key: "UInt64[np.ndarray, 'draws']"  # noise for the recipe
    epoch: "Int64[np.ndarray, 'draws']"


class Draws:
    """(entry, k) -> units. Sentence k of an entry takes units pi_epoch(m (k mod N_e) + 0..m-1), epoch = k div N_e.

    Where units must agree on a column, pi_epoch orders the sentences of all groups, and another keyed permutation
    the units of each group: sentence c of group g takes the group's units m c + 0..m-1 in that order.
    """

    def __init__(self, entries: list[Entry], seed: int, shuffle_block: int):
        self.shuffle_block = shuffle_block
        self.key = np.array([seed_from("entry", seed, entry.name) for entry in entries], np.uint64)
        self.units_each = np.array([entry.recipe.units for entry in entries], np.int64)
        self.num_sentences = np.array([entry.num_sentences for entry in entries], np.int64)
        self.grouped = np.array([entry.recipe.agree != "none" for entry in entries])
        self.items = np.concatenate([entry.units for entry in entries])
        self.group_size = np.concatenate([entry.group_sizes for entry in entries])
        self.group_unit = np.cumsum(self.group_size) - self.group_size  # first unit of each group
        sentences = np.concatenate([entry.group_sizes // entry.recipe.units for entry in entries])
        self.group_sentence = np.cumsum(sentences) - sentences  # first sentence of each group, over all entries
        self.first_sentence = np.cumsum(self.num_sentences) - self.num_sentences

    def draw(self, entry: "Int64[np.ndarray, 'draws']", k: "Int64[np.ndarray, 'draws']") -> Drawn:
        count = self.num_sentences[entry]
        epoch, sentence = np.divmod(k, count)
        key = hash64(self.key[entry], epoch)
        grouped = np.flatnonzero(self.grouped[entry])
        if grouped.size:
            sentence[grouped] = permute(sentence[grouped], count[grouped], hash64(key[grouped], 0))
        sentence += self.first_sentence[entry]
        group = np.searchsorted(self.group_sentence, sentence, side="right") - 1
        m = self.units_each[entry]
        first = np.cumsum(m) - m
        draw = np.repeat(np.arange(len(entry)), m)
        within = np.arange(len(draw)) - first[draw]
        place = (m * (sentence - self.group_sentence[group]))[draw] + within
        group_key = hash64(key, 1, group - np.searchsorted(self.group_sentence, self.first_sentence[entry]))
        place = permute_in_blocks(place, self.group_size[group][draw], group_key[draw], self.shuffle_block)
        unit = self.items[self.group_unit[group][draw] + place]
        return Drawn(unit, first, hash64(self.key[entry], 2, k), epoch)
