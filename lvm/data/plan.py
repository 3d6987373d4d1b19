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
from lvm.data.config import DataConfig, data_config
from lvm.data.entries import Draws, Entry, open_entries
from lvm.data.packing import AlignedPacking, ConcatPacking, Placed
from lvm.data.schedule import Schedule, make_schedule, sentence_shares, slot_counts
from lvm.runtime import UserError
from lvm.runtime.hashing import seed_from
from lvm.sentences import PAD, ROLES, SPECIAL, Pictures
from lvm.store import TokenStore

if TYPE_CHECKING:
    from jaxtyping import Int8, Int16, Int64


@dataclass(frozen=True)
class Window:
    """T + 1 tokens (the model is fed the first T), of one window or of n: shapes [T+1] or [n, T+1]."""

    tokens: "Int64[np.ndarray, '*n t']"
    source: "Int16[np.ndarray, '*n t']"  # index of the entry, -1 for PAD
    role: "Int8[np.ndarray, '*n t']"  # input 0, answer 1, special 2 (BOS, EOS), pad 3


@dataclass(frozen=True)
class Stage:
    first_window: int
    schedule: Schedule
    packing: ConcatPacking | AlignedPacking
    draws_before: "Int64[np.ndarray, 'entries']"  # draws of each entry in the stages before


@dataclass(frozen=True)
class Sentences:
    """Sentences of some windows, in window order."""

    placed: Placed
    entry: "Int64[np.ndarray, 's']"  # row of `TokenPlan.entries`
    draw: "Int64[np.ndarray, 's']"  # k, counted from the first stage on


class TokenPlan:
    """Build with `from_config`. Cheap to pickle as long as its stores are."""

    def __init__(self, config: DataConfig, stores: "Mapping[str, TokenStore]"):
        self.config = config
        self.stores = dict(stores)
        first = next(iter(self.stores.values()))
        self.tokens_per_picture, self.num_codes = int(first.tokens_per_picture), int(first.num_codes)
        self.bos, self.eos, self.pad = self.num_codes, self.num_codes + 1, self.num_codes + 2
        self.seq_len = config.seq_len
        self.names, used = tuple(config.entries), config.used_entries()
        opened = {entry.name: entry for entry in open_entries(config, self.stores, used)}
        self.entries: list[Entry] = list(opened.values())
        # `source` is the place in the config, which entries of weight 0 keep.
        self.index = np.array([self.names.index(name) for name in used])
        self.draws = Draws(self.entries, config.seed, config.shuffle_block)
        self.stages = self._make_stages()

    @classmethod
    def from_config(
        cls,
        config: DataConfig | Mapping[str, Any],
        stores: "Mapping[str, TokenStore] | None" = None,
        tokenizer_fingerprint: str | None = None,
    ) -> "TokenPlan":
        """A plan over the stores that the config names, or over `stores` (source -> opened store) in their place.

        Only sources of entries with a weight are opened.
        Raises `UserError` for a config that cannot be: a missing store, stores of different tokenizers or of another
        one than `tokenizer_fingerprint`, an empty source, an unknown channel, a context too short for a sentence.
        """
        config = data_config(config)
        opened: dict[str, TokenStore] = {}
        for name in dict.fromkeys(config.entries[entry].source for entry in config.used_entries()):
            folder, exclude = config.sources[name].store, config.sources[name].exclude
            if stores is not None and name in stores:
                opened[name] = stores[name]
            elif folder:
                opened[name] = TokenStore(folder, exclude)
            else:
                raise UserError(
                    f"source {name!r} has no store; set data.sources.{name}.store=FOLDER (see lvm tokenize)"
                )
        _check_tokenizers(opened, tokenizer_fingerprint)
        return cls(config, opened)

    def _make_stages(self) -> list[Stage]:
        config, stages = self.config, []
        lengths = np.array([entry.length for entry in self.entries], np.int64)
        packing_type = AlignedPacking if config.packing == "aligned" else ConcatPacking
        if config.packing == "aligned":
            for entry in self.entries:
                if entry.length > self.seq_len + 2:
                    raise UserError(
                        f"entry {entry.name!r} has sentences of {entry.length - 2} picture tokens, which do not fit "
                        f"data.seq_len={self.seq_len} when aligned; use data.seq_len={entry.length - 2}, fewer "
                        "pictures or data.packing=concat"
                    )
        draws_before = np.zeros(len(self.entries), np.int64)
        for number, stage in enumerate(config.stages):
            weights = np.array(config.weights(number))[self.index]
            shares = sentence_shares(weights, [entry.recipe.pictures for entry in self.entries], config.weights_by)
            counts = slot_counts(shares, config.period, [entry.name for entry in self.entries])
            schedule = make_schedule(counts, seed_from("schedule", config.seed, number))
            packing = packing_type(lengths[schedule.slots], config.seq_len)
            stages.append(Stage(stage.from_window, schedule, packing, draws_before))
            if number + 1 < len(config.stages):
                periods, slots = packing.started(config.stages[number + 1].from_window - stage.from_window)
                draws = periods * counts
                np.maximum.at(
                    draws, schedule.slots[slots], (periods * counts)[schedule.slots[slots]] + schedule.rank[slots] + 1
                )
                draws_before = draws_before + draws
        return stages

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
        order = np.argsort(entry, kind="stable")
        borders = np.flatnonzero(np.diff(entry[order])) + 1
        for here in np.split(order, borders):
            row = int(entry[here[0]])
            recipe = self.entries[row].recipe
            items = drawn.unit[drawn.first[here][:, None] + np.arange(recipe.units)]
            yield row, here, recipe.compose(items, drawn.key[here], self.entries[row].store)

    def _render(self, stage: Stage, window: int, n: int) -> Window:
        sentences, width = self.sentences(stage, window, n), self.seq_len + 1
        concat = isinstance(stage.packing, ConcatPacking)
        size = n * self.seq_len + 1 if concat else n * width
        margin = max(entry.length for entry in self.entries) if concat else 0  # sentences may stick out at both ends
        tokens = np.full(size + 2 * margin, self.pad, np.int64)
        source = np.full(size + 2 * margin, -1, np.int16)
        role = np.full(size + 2 * margin, PAD, np.int8)
        composed = list(self.compose(sentences.entry, sentences.draw))
        for (row, here, _), codes in zip(composed, self._codes(composed)):
            entry = self.entries[row]
            written = stage.packing.written(entry.length)
            places = sentences.placed.start[here][:, None] + (np.arange(written) + margin)
            sentence = np.empty((len(here), entry.length), np.int64)
            sentence[:, 0], sentence[:, -1] = self.bos, self.eos
            sentence[:, 1:-1] = codes
            tokens[places] = sentence[:, :written]
            source[places] = self.index[row]
            role[places] = self._roles[row][:written]
        fields = (tokens, source, role)
        if concat:
            cut = (
                np.lib.stride_tricks.sliding_window_view(f[margin : margin + size], width)[:: self.seq_len]
                for f in fields
            )
            return Window(*(np.ascontiguousarray(view) for view in cut))
        return Window(*(f.reshape(n, width) for f in fields))

    def _codes(self, composed: "list[tuple[int, Any, Pictures]]") -> "list[Int64[np.ndarray, 's t']]":
        """The codes of each group of sentences, all pictures of one store gathered at once."""
        codes: list[Any] = [None] * len(composed)
        for name, store in self.stores.items():
            mine = [i for i, (row, _, _) in enumerate(composed) if self.entries[row].source == name]
            if not mine:
                continue
            pictures = [composed[i][2] for i in mine]
            flat = (np.concatenate([getattr(p, f).reshape(-1) for p in pictures]) for f in ("item", "channel", "frame"))
            gathered = store.pictures(*flat)
            first = 0
            for i, p in zip(mine, pictures):
                codes[i] = gathered[first : first + p.item.size].reshape(len(p.item), -1)
                first += p.item.size
        return codes

    @cached_property
    def _roles(self) -> "list[Int8[np.ndarray, 'length']]":
        return [entry.roles() for entry in self.entries]

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
                roles = self._roles[row][: stage.packing.written(self.entries[row].length)]
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

    def describe(self) -> list[dict[str, Any]]:
        """One row for each stage and entry: sentences, tokens, shares, what was left out. See `lvm.data.about`."""
        return about.describe(self)

    def waste(self, stage: int = 0) -> float:
        """Share of tokens that is PAD."""
        return self.stages[stage].packing.waste()

    def left_out(self) -> Counter[str]:
        """Reason -> items that no sentence may show, summed over entries."""
        return sum((Counter(entry.left_out) for entry in self.entries), Counter())

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that all stores were made with."""
        return next(iter(self.stores.values())).tokenizer_fingerprint

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that decides the bytes of windows, as JSON; a refused resume shows which differ."""
        return about.facts(self)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of `facts`: equal fingerprint, equal bytes."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def _check_tokenizers(stores: "Mapping[str, TokenStore]", expected: str | None) -> None:
    first_name, first = next(iter(stores.items()))
    for name, store in stores.items():
        if expected is not None and store.tokenizer_fingerprint != expected:
            raise UserError(
                f"the store of source {name!r} was made by tokenizer {store.tokenizer_fingerprint[:12]}, not by "
                f"{expected[:12]}; tokenize that source again or name the other tokenizer"
            )
        if (store.tokenizer_fingerprint, store.tokens_per_picture, store.num_codes) != (
            first.tokenizer_fingerprint,
            first.tokens_per_picture,
            first.num_codes,
        ):
            raise UserError(
                f"the stores of {first_name!r} and {name!r} were made by different tokenizers ("
                f"{first.tokenizer_fingerprint[:12]} and {store.tokenizer_fingerprint[:12]}); tokenize one again"
            )
