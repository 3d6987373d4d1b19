"""`TokenPlan`: the endless list of windows of a mixture, each a pure function of the plan and its number.

    plan = TokenPlan.from_config(config)
    plan.windows(next_window, 8).tokens         # int64 [8, T + 1]

Window -> sentences (packing) -> entry and draw (schedule) -> units (keyed permutation) -> pictures (recipe) -> codes
(store). Rank, world size, batch size and restarts do not enter. Nothing is random but by keyed hashes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.data import about
from lvm.data.base import Window
from lvm.data.config import DataConfig, data_config, make_recipe
from lvm.data.entries import Draws, Entry
from lvm.data.kept import LEAST_KEPT, Tables, kept
from lvm.data.mixture import Wish, sentence_shares
from lvm.data.packing import ConcatPacking, Packing, Placed, kept_packing, make_packing
from lvm.data.schedule import Schedule, make_schedule, slot_counts
from lvm.data.units import Marks, Units, find_units
from lvm.runtime import UserError
from lvm.runtime.hashing import seed_from
from lvm.sentences import PAD, ROLES, SPECIAL, Pictures
from lvm.store import SimulatedStore, TokenStore

if TYPE_CHECKING:
    from jaxtyping import Int64

    from lvm.data.units import Store


@dataclass(frozen=True)
class Stage:
    first_window: int
    schedule: Schedule
    packing: Packing
    draws_before: "Int64[np.ndarray, 'entries']"  # draws of each entry in the stages before


@dataclass(frozen=True)
class Sentences:
    """Sentences of some windows, in window order."""

    placed: Placed
    entry: "Int64[np.ndarray, 's']"  # row of `TokenPlan.entries`
    draw: "Int64[np.ndarray, 's']"  # k, counted from the first stage on


class TokenPlan:
    """Build with `from_config`. Pickled, it is opened anew from its config and stores."""

    def __init__(self, config: DataConfig, stores: "Mapping[str, Store]"):
        self.config = config
        self.stores = dict(stores)
        first = next(iter(self.stores.values()))
        self.tokens_per_picture, self.num_codes = int(first.tokens_per_picture), int(first.num_codes)
        self.bos, self.eos, self.pad = self.num_codes, self.num_codes + 1, self.num_codes + 2
        self.seq_len = config.seq_len
        self.names, used = tuple(config.entries), config.used_entries()
        # `source` is the place in the config, which entries of weight 0 keep.
        self.index = np.array([self.names.index(name) for name in used])
        recipes = {name: make_recipe(config, name) for name in used}
        self._refuse_long_sentences({name: recipe.pictures for name, recipe in recipes.items()})
        if sum(map(len, self.stores.values())) + config.period * len(config.stages) < LEAST_KEPT:
            tables, said = self._make_tables()
        else:
            tables, said = kept(about.identity(self), self._make_tables)
        units = _units(tables, said)
        self.draws = Draws(used, list(recipes.values()), units, config.seed, config.shuffle_block)
        self.entries = [
            Entry(
                name,
                config.entries[name].source,
                recipe,
                self.stores[config.entries[name].source],
                int(units.count[row]),
                int(self.draws.num_sentences[row]),
                said["left_out"][row],
            )
            for row, (name, recipe) in enumerate(recipes.items())
        ]
        self.stages = [self._stage(number, tables, said) for number in range(len(config.stages))]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenPlan, (self.config, self.stores)

    @classmethod
    def from_config(
        cls,
        config: DataConfig | Mapping[str, Any],
        stores: "Mapping[str, Store] | None" = None,
        tokenizer_fingerprint: str | None = None,
    ) -> "TokenPlan":
        """A plan over the stores that the config names, or over `stores` (source -> opened store) in their place.

        Only sources of entries with a weight are opened.
        Raises `UserError` for a config that cannot be: a missing store, stores of different tokenizers or of another
        one than `tokenizer_fingerprint`, an empty source, an unknown channel, a context too short for a sentence.
        """
        config = data_config(config)
        opened: dict[str, Any] = {}
        for name in dict.fromkeys(config.entries[entry].source for entry in config.used_entries()):
            source = config.sources[name]
            if stores is not None and name in stores:
                opened[name] = stores[name]
            elif source.simulated:
                opened[name] = SimulatedStore(name, source.simulated)
            elif source.store:
                opened[name] = TokenStore(source.store, source.exclude)
            else:
                raise UserError(
                    f"source {name!r} has no store; set data.sources.{name}.store=FOLDER (see lvm tokenize)"
                )
        _check_tokenizers(opened, tokenizer_fingerprint)
        return cls(config, opened)

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that made all its stores."""
        return next(iter(self.stores.values())).tokenizer_fingerprint

    # Tables: computed once, kept where they are large.

    def _refuse_long_sentences(self, pictures: Mapping[str, int]) -> None:
        for name, count in pictures.items():
            if self.config.packing == "aligned" and (tokens := count * self.tokens_per_picture) > self.seq_len:
                raise UserError(
                    f"entry {name!r} has sentences of {tokens} picture tokens, which do not fit data.seq_len="
                    f"{self.seq_len} when aligned; use data.seq_len={tokens}, fewer pictures or data.packing=concat"
                )

    def _make_tables(self) -> tuple[Tables, Any]:
        """All arrays that the plan needs, and what is said of them as JSON."""
        config, names = self.config, self.config.used_entries()
        units = find_units(config, self.stores, names)
        recipes = [make_recipe(config, name) for name in names]
        draws = Draws(names, recipes, units, config.seed, config.shuffle_block)
        lengths = np.array([recipe.pictures for recipe in recipes]) * self.tokens_per_picture + 2
        tables: Tables = {
            "count": units.count,
            "num_groups": units.num_groups,
            "group_size": units.group_size,
            "items": units.items,
        }
        for row, marks in units.marks.items():
            tables |= {f"marks-{row}-words": marks.words, f"marks-{row}-before": marks.before}
        draws_before = np.zeros(len(names), np.int64)
        slots = []
        for number, stage in enumerate(config.stages):
            shares = self._shares(number, recipes, draws.num_sentences)
            counts = slot_counts(shares, config.period, names)
            schedule = make_schedule(counts, seed_from("schedule", config.seed, number))
            packing = make_packing(config.packing, lengths[schedule.slots], config.seq_len)
            tables |= {
                f"stage-{number}-{name}": table
                for name, table in {
                    "slots": schedule.slots,
                    "rank": schedule.rank,
                    "counts": counts,
                    "draws-before": draws_before,
                    **packing.tables(),
                }.items()
            }
            slots.append(schedule.sha256)
            if number + 1 < len(config.stages):
                windows = config.stages[number + 1].from_window - stage.from_window
                draws_before = draws_before + _drawn(schedule, packing, windows)
        said = {
            "left_out": [dict(reasons) for reasons in units.left_out],
            "marked": sorted(units.marks),
            "slots": slots,
        }
        return tables, said

    def _shares(self, number: int, recipes: Any, num_sentences: "Int64[np.ndarray, 'entries']") -> Any:
        """Share of sentences of each entry in a stage."""
        config, wishes = self.config, []
        weights = dict(zip(config.entries, config.weights(number)))
        for name, recipe, sentences in zip(config.used_entries(), recipes, num_sentences.tolist()):
            entry, tokens = config.entries[name], sentences * recipe.pictures * self.tokens_per_picture
            by_epochs = entry.epochs is not None
            wishes.append(
                Wish(
                    name,
                    recipe.pictures,
                    tokens,
                    None if by_epochs else weights[name],
                    entry.epochs,
                    None if by_epochs else config.most_epochs(name),
                )
            )
        return sentence_shares(wishes, config.weights_by, config.total_tokens)

    def _stage(self, number: int, tables: Tables, said: Any) -> Stage:
        mine = {
            name.removeprefix(f"stage-{number}-"): table
            for name, table in tables.items()
            if name.startswith(f"stage-{number}-")
        }
        schedule = Schedule(mine["slots"], mine["rank"], mine["counts"], said["slots"][number])
        packing = kept_packing(self.config.packing, mine, self.seq_len)
        return Stage(self.config.stages[number].from_window, schedule, packing, mine["draws-before"])

    # Windows.

    def window(self, i: int) -> Window:
        """Window i, each field [T+1]."""
        batch = self.windows(i, 1)
        return Window(batch.tokens[0], batch.source[0], batch.role[0])

    def __getitem__(self, i: int) -> "Int64[np.ndarray, 't']":
        """The tokens of window i alone."""
        return self.window(i).tokens

    def windows(self, i: int, n: int) -> Window:
        """Windows i .. i+n-1, each field [n, T+1]; equal to n calls of `window`."""
        parts = [self._render(*part) for part in self.by_stage(i, n)]
        if len(parts) == 1:
            return parts[0]
        return Window(*(np.concatenate(column) for column in zip(*((p.tokens, p.source, p.role) for p in parts))))

    def by_stage(self, i: int, n: int) -> Iterator[tuple[Stage, int, int]]:
        """(stage, window within it, how many) for windows i .. i+n-1."""
        if i < 0 or n < 1:
            raise IndexError(f"windows {i} .. {i + n - 1}")
        starts = [stage.first_window for stage in self.stages]
        for number, stage in enumerate(self.stages):
            end = starts[number + 1] if number + 1 < len(starts) else i + n
            first, last = max(i, starts[number]), min(i + n, end)
            if first < last:
                yield stage, first - starts[number], last - first

    def sentences(self, stage: Stage, window: int, n: int) -> Sentences:
        placed = stage.packing.place(window, n)
        return Sentences(placed, *self.scheduled(stage, placed.sentence))

    def scheduled(
        self, stage: Stage, sentence: "Int64[np.ndarray, 's']"
    ) -> "tuple[Int64[np.ndarray, 's'], Int64[np.ndarray, 's']]":
        """(row of `entries`, draw) of sentences by their number in the stage's stream."""
        period, slot = np.divmod(sentence, self.config.period)
        entry = stage.schedule.slots[slot].astype(np.int64)
        return entry, stage.draws_before[entry] + period * stage.schedule.counts[entry] + stage.schedule.rank[slot]

    def compose(
        self, entry: "Int64[np.ndarray, 's']", draw: "Int64[np.ndarray, 's']"
    ) -> Iterator[tuple[int, Any, Pictures]]:
        """(entry, which of the sentences, their pictures) for each entry among the sentences."""
        drawn = self.draws.draw(entry, draw)
        order = entry.argsort(kind="stable")
        ordered = entry[order]
        (last,) = (ordered[1:] != ordered[:-1]).nonzero()
        for first, end in zip([0, *(last + 1).tolist()], [*(last + 1).tolist(), len(order)]):
            here = order[first:end]
            row = int(ordered[first])
            recipe = self.entries[row].recipe
            items = drawn.unit[drawn.first[here][:, None] + np.arange(recipe.units)]
            yield row, here, recipe.compose(items, drawn.key[here], self.entries[row].store)

    def _render(self, stage: Stage, window: int, n: int) -> Window:
        sentences, width = self.sentences(stage, window, n), self.seq_len + 1
        concat = isinstance(stage.packing, ConcatPacking)
        size = n * self.seq_len + 1 if concat else n * width
        start, length = sentences.placed.start, self._lengths[sentences.entry]
        written = np.minimum(length, width) if not concat else length
        # Sentences of a concat window stick out at both ends: pictures are cut where the margins are cut off.
        margin = int(length.max()) if concat else 0
        tokens = np.full(size + 2 * margin, self.pad, np.int64)
        runs = overlapping(tokens, self.tokens_per_picture)
        for name, pictures, place in self._shown(sentences, start + margin + 1, margin, margin + size):
            runs[place] = self.stores[name].pictures(*pictures)
        tokens[start + margin] = self.bos
        tokens[(start + margin + length - 1)[written == length]] = self.eos
        source, role = self._marked(sentences.entry, start + margin, written, size + 2 * margin)
        fields = (tokens, source, role)
        if concat:
            return Window(*(overlapping(f[margin : margin + size], width)[:: self.seq_len].copy() for f in fields))
        return Window(*(f.reshape(n, width) for f in fields))

    def _shown(
        self, sentences: Sentences, first: "Int64[np.ndarray, 's']", least: int, most: int
    ) -> "Iterator[tuple[str, list[Any], Int64[np.ndarray, 'p']]]":
        """(source, (items, channels, frames), place of their first token) of the pictures that lie in least..most-1.

        `first` is the place of each sentence's first picture. All pictures of one source come together.
        """
        t = self.tokens_per_picture
        of_source: dict[str, list[Any]] = {}
        for row, here, shown in self.compose(sentences.entry, sentences.draw):
            place = first[here][:, None] + t * np.arange(shown.item.shape[1])
            four = (shown.item, shown.channel, shown.frame, place)
            of_source.setdefault(self.entries[row].source, []).append([one.reshape(-1) for one in four])
        for name, parts in of_source.items():
            *pictures, place = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts)]
            seen = (place + t > least) & (place < most)
            if not seen.all():
                pictures, place = [one[seen] for one in pictures], place[seen]
            yield name, pictures, place

    def _marked(self, entry: Any, start: Any, written: Any, size: int) -> "tuple[Any, Any]":
        """Source and role of each token of a buffer, from where its sentences lie in it."""
        source, role = np.full(size, -1, np.int16), np.full(size, PAD, np.int8)
        if len(entry) == 0:
            return source, role
        of_entry = [self.entries[row].roles for row in entry.tolist()]
        if (start[1:] == (start + written)[:-1]).all():  # no gap: one piece
            first, end = int(start[0]), int(start[-1] + written[-1])
            source[first:end] = np.repeat(self.index[entry].astype(np.int16), written)
            role[first:end] = np.concatenate([roles[:w] for roles, w in zip(of_entry, written.tolist())])
            return source, role
        for at, count, index, roles in zip(start.tolist(), written.tolist(), self.index[entry].tolist(), of_entry):
            source[at : at + count] = index
            role[at : at + count] = roles[:count]
        return source, role

    @cached_property
    def _lengths(self) -> "Int64[np.ndarray, 'entries']":
        return np.array([entry.length for entry in self.entries], np.int64)

    def shards(self, i: int, n: int) -> "list[tuple[str, int]]":
        """(source, shard) that windows i .. i+n-1 are read from, in the order of their first use. Reads no token."""
        found: dict[tuple[str, int], None] = {}
        for stage, window, count in self.by_stage(i, n):
            sentences = self.sentences(stage, window, count)
            size = count * self.seq_len + 1
            uses = []
            for name, (items, channels, _), place in self._shown(sentences, sentences.placed.start + 1, 0, size):
                order = np.argsort(place)  # entries come one after the other
                shard, first = np.unique(self.stores[name].shards_of(items, channels)[order], return_index=True)
                uses += [(int(p), name, int(s)) for p, s in zip(place[order][first], shard)]
            found |= dict.fromkeys((name, shard) for _, name, shard in sorted(uses))
        return list(found)

    def check_files(self) -> None:
        """Raise `UserError` that names the first shard of its stores that is missing or changed, reading no token."""
        for store in self.stores.values():
            store.check_files()

    # What the plan says of itself.

    def target_roles(self, i: int, n: int) -> "Int64[np.ndarray, '4']":
        """How many targets (all tokens of a window but its first) of each role windows i .. i+n-1 hold.

        From lengths alone: every data rank knows the weight of the global batch without a collective.
        """
        totals = np.zeros(len(ROLES), np.int64)
        for stage, window, count in self.by_stage(i, n):
            sentences = self.sentences(stage, window, count)
            start = sentences.placed.start
            concat = isinstance(stage.packing, ConcatPacking)
            first, end = (1, count * self.seq_len + 1) if concat else (0, count * (self.seq_len + 1))
            for row in np.unique(sentences.entry):
                roles = self.entries[row].roles[: stage.packing.written(self.entries[row].length)]
                before = np.zeros((len(roles) + 1, len(ROLES)), np.int64)  # tokens of each role before a place
                before[1:] = np.cumsum(roles[:, None] == np.arange(len(ROLES)), axis=0)
                mine = start[sentences.entry == row]
                ends = before[np.clip(end - mine, 0, len(roles))]
                totals += (ends - before[np.clip(first - mine, 0, len(roles))]).sum(0)
            if not concat:
                totals[SPECIAL] -= count  # each bin's first token is a BOS and never a target
        totals[PAD] = n * self.seq_len - totals.sum()
        return totals

    def explain(self, i: int) -> list[dict[str, Any]]:
        """The sentences of window i: entry, draw, place, origin of every picture. See `lvm.data.about`."""
        return about.explain(self, i)

    def samples(self, draw: int = 0) -> list[dict[str, Any]]:
        """Sentence `draw` of each entry and the origin of its pictures. See `lvm.data.about`."""
        return about.samples(self, draw)

    def describe(self, total_tokens: float | None = None) -> list[dict[str, Any]]:
        """One row for each stage and entry: sentences, tokens, shares, what was left out. See `lvm.data.about`."""
        return about.describe(self, total_tokens)

    def waste(self, stage: int = 0) -> float:
        """Share of tokens that is PAD."""
        return self.stages[stage].packing.waste()

    def left_out(self) -> Counter[str]:
        """Reason -> items that no sentence may show, summed over entries."""
        return sum((Counter(entry.left_out) for entry in self.entries), Counter())

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that decides the bytes of windows, as JSON; a refused resume shows which differ."""
        return about.facts(self)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of `facts`: equal fingerprint, equal bytes."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def overlapping(buffer: Any, width: int) -> Any:
    """[p, width]: the run of `width` elements from each place p of a contiguous buffer on. Writable, no copy."""
    step = buffer.itemsize
    return np.ndarray((len(buffer) - width + 1, width), buffer.dtype, buffer, strides=(step, step))


def _units(tables: Tables, said: Any) -> Units:
    marks = {row: Marks(tables[f"marks-{row}-words"], tables[f"marks-{row}-before"]) for row in said["marked"]}
    return Units(tables["count"], tables["num_groups"], tables["group_size"], tables["items"], marks, said["left_out"])


def _drawn(schedule: Schedule, packing: Packing, windows: int) -> "Int64[np.ndarray, 'entries']":
    """Draws of each entry in the first `windows` windows of a stage."""
    periods, slots = packing.started(windows)
    draws = periods * schedule.counts
    begun = schedule.slots[slots]
    np.maximum.at(draws, begun, (periods * schedule.counts)[begun] + schedule.rank[slots] + 1)
    return draws


def _check_tokenizers(stores: "Mapping[str, Store]", expected: str | None) -> None:
    first_name, first = next(iter(stores.items()))
    for name, store in stores.items():
        if expected is not None and store.tokenizer_fingerprint != expected:
            raise UserError(
                f"the store of source {name!r} was made by tokenizer {store.tokenizer_fingerprint[:12]}, not by "
                f"{expected[:12]}; tokenize that source again or name the other tokenizer"
            )
        for what in ("tokenizer_fingerprint", "tokens_per_picture", "num_codes"):
            one, other = (str(getattr(of, what))[:12] for of in (first, store))
            if one != other:
                raise UserError(
                    f"the stores of {first_name!r} and {name!r} were made by different tokenizers ({what} {one} and "
                    f"{other}); tokenize one again"
                )
