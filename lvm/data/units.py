"""Which items of its store each entry of a mixture may use: found once, in runs of items, kept in a few flat arrays.

An entry's units stand in the order of their item numbers, those of one group (label, view, ...) beside one another.
Few of them are listed; of many ungrouped ones each item has a bit, and the r-th set bit is found by counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.data.config import DataConfig, OnlyConfig, make_recipe
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, held_out
from lvm.sentences import Columns, Condition, Recipe
from lvm.sentences.base import channel_bit

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8, UInt32, UInt64

    from lvm.store import SimulatedStore, TokenStore

    Store = TokenStore | SimulatedStore

MOST_LISTED = 1 << 22  # units of an entry; of more, each item of the store has a bit
RUN = 1 << 20  # items looked at together
THREADS = 2
SPAN = 512  # bits of `Marks` between counts


@dataclass(frozen=True)
class Marks:
    """A set of item numbers as bits."""

    words: "UInt64[np.ndarray, 'spans 8']"
    before: "Int64[np.ndarray, 'spans']"  # bits set before each span

    @classmethod
    def of(cls, packed: "UInt8[np.ndarray, 'bytes']") -> "Marks":
        """From bits packed little end first."""
        whole = np.zeros(-(-max(len(packed), 1) * 8 // SPAN) * SPAN // 8, np.uint8)
        whole[: len(packed)] = packed
        words = whole.view("<u8").reshape(-1, 8)
        count = np.bitwise_count(words).sum(1, dtype=np.int64)
        return cls(words, np.cumsum(count) - count)

    def select(self, place: "Int64[np.ndarray, 'n']") -> "Int64[np.ndarray, 'n']":
        """The numbers of the set bits `place`, counted from 0."""
        span = np.searchsorted(self.before, place, side="right") - 1
        left = place - self.before[span]
        count = np.bitwise_count(self.words[span].view(np.uint8)).astype(np.int64)  # n 64: of each byte
        upto = np.cumsum(count, axis=1)
        byte = (upto <= left[:, None]).sum(1)
        row = np.arange(len(place))
        left -= upto[row, byte] - count[row, byte]
        value = self.words[span].view(np.uint8)[row, byte]
        return span * SPAN + byte * 8 + _BIT_OF[value, left]


_BIT_OF = np.zeros((256, 8), np.int64)  # place of the k-th set bit of a byte
for _value in range(256):
    _set = [bit for bit in range(8) if _value >> bit & 1]
    _BIT_OF[_value, : len(_set)] = _set


@dataclass(frozen=True)
class Units:
    """The units of all entries of a plan. Groups of an entry follow one another; one without has one group."""

    count: "Int64[np.ndarray, 'entries']"
    num_groups: "Int64[np.ndarray, 'entries']"
    group_size: "Int64[np.ndarray, 'groups']"
    items: "UInt32[np.ndarray, 'listed']"  # of the entries that are listed, one after the other
    marks: Mapping[int, Marks]  # of the others, by their row
    left_out: Sequence[Mapping[str, int]]  # why -> items, of each entry

    def take(
        self, entry: "Int64[np.ndarray, 'n']", place: "Int64[np.ndarray, 'n']", first: "Int64[np.ndarray, 'entries']"
    ) -> "Int64[np.ndarray, 'n']":
        """Item numbers of the units `place` of entries; `first` says where an entry's list begins."""
        if not self.marks:
            return self.items[first[entry] + place].astype(np.int64)
        taken = np.empty(len(place), np.int64)
        listed = np.ones(len(place), bool)
        for row, marks in self.marks.items():
            (here,) = np.nonzero(entry == row)
            if here.size:
                taken[here], listed[here] = marks.select(place[here]), False
        if listed.any():
            taken[listed] = self.items[first[entry[listed]] + place[listed]]
        return taken

    def lists_from(self) -> "Int64[np.ndarray, 'entries']":
        """Where the list of each entry begins in `items`."""
        listed = np.where([row in self.marks for row in range(len(self.count))], 0, self.count)
        return np.cumsum(listed) - listed


@dataclass
class _Found:
    """The units of one entry as they are found, run after run."""

    name: str
    recipe: Recipe
    only: OnlyConfig
    strict: bool  # an item that lacks a channel is an error
    packed: "list[UInt8[np.ndarray, 'bytes']]"
    items: "list[Int64[np.ndarray, 'units']]"
    values: list[Any]  # what units agree on
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Lacks:
    """The first item of a run without a channel, where that is an error."""

    what: str
    item: int


Rule = Callable[[Columns, int, int], Condition]


class TooFewItems(UserError):
    """Entries that no sentence can be made of; the message is about the first."""

    def __init__(self, message: str, entries: Sequence[str]):
        super().__init__(message)
        self.entries = tuple(entries)


def find_units(config: DataConfig, stores: "Mapping[str, Store]", names: Sequence[str]) -> Units:
    """The units of the entries `names`. Raises `TooFewItems` for those that no sentence can be made of."""
    found = {name: _start(config, name, stores[config.entries[name].source]) for name in names}
    for source, store in stores.items():
        mine = [found[name] for name in names if config.entries[name].source == source]
        rules = _rules(config, source, store)

        def look(start: int, store: Any = store, mine: Any = mine, rules: Any = rules) -> list[Any]:
            stop = min(start + RUN, len(store))
            return list(_look(mine, rules, store.columns(start, stop), start, stop))

        with ThreadPoolExecutor(THREADS) as pool:
            for start, results in zip(range(0, len(store), RUN), pool.map(look, range(0, len(store), RUN))):
                for entry, result in zip(mine, results):
                    _add(entry, result, source, store, start)
    tables = [_finish(entry) for entry in found.values()]
    few = {
        entry.name: int(sizes.sum()) for entry, (sizes, _) in zip(found.values(), tables) if _no_sentence(entry, sizes)
    }
    if few:
        entry, total = found[next(iter(few))], next(iter(few.values()))
        source = config.entries[entry.name].source
        why = "; ".join(f"{count} {reason}" for reason, count in entry.left_out.items()) or "nothing was left out"
        raise TooFewItems(
            f"entry {entry.name!r} has {total} usable items in source {source!r} and needs {entry.recipe.units} a "
            f"sentence (left out of {len(stores[source])}: {why}); add pictures, change the entry or give it weight 0",
            list(few),
        )
    listed = [table[1] for table in tables if isinstance(table[1], np.ndarray)]
    return Units(
        np.array([int(table[0].sum()) for table in tables], np.int64),
        np.array([len(table[0]) for table in tables], np.int64),
        np.concatenate([table[0] for table in tables]).astype(np.int64),
        np.concatenate([np.zeros(0, np.uint32), *listed]).astype(np.uint32),
        {row: table[1] for row, table in enumerate(tables) if isinstance(table[1], Marks)},
        [entry.left_out for entry in found.values()],
    )


def _start(config: DataConfig, name: str, store: "Store") -> _Found:
    """An entry before any item was looked at."""
    options, recipe = config.entries[name], make_recipe(config, name)
    if len(store) == 0:
        raise UserError(f"source {options.source!r} is empty; tokenize pictures into it or remove entry {name!r}")
    if len(store) >= 1 << 32:
        raise UserError(f"source {options.source!r} has {len(store)} items; split it into stores of fewer than 2^32")
    try:
        recipe.check(store.blocks)
        list(_wanted(options.only, store.columns(0, 0)))  # names of channels
        recipe.conditions(store.columns(0, 0))
    except UserError as error:
        raise UserError(f"entry {name!r}: {error}") from None
    return _Found(name, recipe, options.only, options.missing == "error", [], [], [], {})


def _rules(config: DataConfig, source: str, store: "Store") -> list[Rule]:
    """What holds for a whole source, whatever the entry."""
    options = config.sources[source]
    gone = np.asarray(store.excluded)
    named = np.array([group_hash(name) for name in options.exclude_groups], np.uint64)
    views = np.asarray(options.exclude_views)

    def taken_down(columns: Columns, start: int, stop: int) -> Condition:
        admitted = np.ones(stop - start, bool)
        admitted[gone[slice(*np.searchsorted(gone, (start, stop)))] - start] = False
        return Condition("taken down", admitted)

    def not_held_out(columns: Columns, start: int, stop: int) -> Condition:
        return Condition("held out", ~held_out(columns.group, config.held_out_per_mille))

    def only_held_out(columns: Columns, start: int, stop: int) -> Condition:
        return Condition(
            "trained on", held_out(columns.group, config.held_out_per_mille) | np.isin(columns.group, named)
        )

    def other_group(columns: Columns, start: int, stop: int) -> Condition:
        return Condition("excluded group", ~np.isin(columns.group, named))

    def other_view(columns: Columns, start: int, stop: int) -> Condition:
        return Condition("excluded view", ~np.isin(np.asarray(columns.view), views))

    return [
        *([taken_down] if len(gone) else []),
        *([not_held_out] if config.split == "train" else [only_held_out]),
        *([other_group] if len(named) and config.split == "train" else []),
        *([other_view] if len(views) else []),
    ]


def _wanted(only: OnlyConfig, columns: Columns) -> Iterator[Condition]:
    """What the config asks of an entry's items."""
    for channel in only.channels:
        channel_bit(columns.channels, channel)
        yield Condition(f"not among those with {channel}", np.asarray(columns.has(channel)))
    for bounds, column, what in (
        (only.pictures, "num_pictures", "not of {} pictures"),
        (only.labels, "label", "not of labels {}"),
    ):
        if bounds is not None:
            values = np.asarray(getattr(columns, column))
            wanted = f"{bounds[0]} to {bounds[1]}" if bounds[0] < bounds[1] else f"{bounds[0]}"
            yield Condition(what.format(wanted), (values >= bounds[0]) & (values <= bounds[1]))


def _look(entries: list[_Found], rules: list[Rule], columns: Columns, start: int, stop: int) -> Iterator[Any]:
    """For each entry, of one run of items: what is left, by which column it agrees, how many each condition lost."""
    of_source = [rule(columns, start, stop) for rule in rules]
    for entry in entries:
        left = np.ones(stop - start, bool)
        lost: list[tuple[str, int]] = []
        conditions = [*of_source, *_wanted(entry.only, columns), *entry.recipe.conditions(columns)]
        if entry.recipe.agree == "label":
            conditions.append(Condition("no label", np.asarray(columns.label) >= 0))
        for condition in conditions:
            fails = left & ~condition.holds
            count = int(np.count_nonzero(fails))
            if count and condition.lacks and entry.strict:
                yield _Lacks(condition.otherwise, start + int(np.argmax(fails)))
                break
            if count:
                lost.append((condition.otherwise, count))
                left &= condition.holds
        else:
            if entry.recipe.agree == "none":
                yield np.packbits(left, bitorder="little"), None, lost
            else:
                items = np.flatnonzero(left)
                yield items + start, np.asarray(getattr(columns, entry.recipe.agree))[items], lost


def _add(entry: _Found, result: Any, source: str, store: "Store", start: int) -> None:
    if isinstance(result, _Lacks):
        raise UserError(
            f"entry {entry.name!r}: {store.id(result.item)} of source {source!r} has {result.what}; tokenize it with "
            "that channel, or leave such items out with missing: skip"
        )
    one, values, lost = result
    (entry.packed if values is None else entry.items).append(one)
    if values is not None:
        entry.values.append(values)
    for reason, count in lost:
        entry.left_out[reason] = entry.left_out.get(reason, 0) + count


def _no_sentence(entry: _Found, sizes: "Int64[np.ndarray, 'groups']") -> bool:
    together = entry.recipe.together
    return int((sizes // together).sum()) * together < entry.recipe.units


def _finish(entry: _Found) -> tuple[Any, Any]:
    """(sizes of the groups, units): a list of item numbers, or marks."""
    recipe = entry.recipe
    if recipe.agree == "none":
        total = sum(int(np.bitwise_count(run).sum(dtype=np.int64)) for run in entry.packed)
        sizes: Any = np.array([total], np.int64)
        if total > MOST_LISTED:
            units: Any = Marks.of(np.concatenate(entry.packed))
        else:  # run after run: a byte for each item of a large store would be much more than the list is
            found = [np.flatnonzero(np.unpackbits(run, bitorder="little")) for run in entry.packed]
            units = np.concatenate([RUN * number + places for number, places in enumerate(found)]).astype(np.uint32)
    else:
        items, values = np.concatenate(entry.items), np.concatenate(entry.values)
        order = np.argsort(values, kind="stable")
        items, values = items[order], values[order]
        _, sizes = np.unique(values, return_counts=True)
        whole = sizes >= recipe.together
        if not whole.all():
            entry.left_out[f"fewer than {recipe.together} of one {recipe.agree}"] = int(sizes[~whole].sum())
            items, sizes = items[np.repeat(whole, sizes)], sizes[whole]
        units = items.astype(np.uint32)
    return sizes, units
