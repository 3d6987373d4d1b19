"""What a plan is made of, as frozen dataclasses: the keys of configs/data/*.yaml.

    seq_len: 576
    packing: aligned
    sources:
      world: {store: PATH}
    entries:
      depth: {source: world, recipe: pairs, weight: 10, input: image, output: depth}
      clips: {source: world, recipe: video, weight: 20, strides: [1]}

An entry's keys beyond source, recipe and weight are the options of its recipe (`lvm/sentences/`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lvm.data.schedule import LONGEST_PERIOD
from lvm.runtime import UserError, build
from lvm.sentences import RECIPES, Recipe
from lvm.store import SimulatedConfig

LAST_STAGE = 1 << 40  # windows
PLAN_VERSION = 1  # raised by any change that gives other windows for an equal config


@dataclass(frozen=True)
class SourceConfig:
    store: str | None = None  # folder of a token store, or s3://...; None where the store is handed over opened
    exclude: str | None = None  # file of ids taken down, one a line, besides exclude.txt of the store
    exclude_views: tuple[int, ...] = ()  # views that no sentence may show (held-out latents)
    exclude_groups: tuple[str, ...] = ()  # groups held out by name, for a source of few groups
    max_epochs: float | None = None  # of each of its entries that does not say itself
    simulated: SimulatedConfig | None = None  # in place of a store: items that are not there, to plan with

    def __post_init__(self) -> None:
        if self.store and self.simulated:
            raise UserError(f"a source has store {self.store} and simulated; set simulated=null to use the store")
        if self.exclude and self.simulated:
            raise UserError(f"a simulated source has exclude {self.exclude}, and no ids; leave one of the two out")


@dataclass(frozen=True)
class OnlyConfig:
    """Which items of its source an entry may use, beside what its recipe needs."""

    channels: tuple[str, ...] = ()  # items that have all of these, in themselves or in their view 0
    pictures: tuple[int, int] | None = None  # items of so many pictures, from and to: clips of one length
    labels: tuple[int, int] | None = None  # items of these classes, from and to

    def __post_init__(self) -> None:
        for name in ("pictures", "labels"):
            given = getattr(self, name)
            if given is not None and given[0] > given[1]:
                raise UserError(f"only.{name} is {list(given)}; give from and to, the smaller first")


@dataclass(frozen=True)
class EntryConfig:
    source: str  # a key of `sources`; the entry's own name if not given
    recipe: str  # one of lvm/sentences
    weight: float | None = None  # share of the mixture, relative to the other entries; see `weights_by`
    epochs: float | None = None  # in place of a weight: how often each of its sentences is seen in `total_tokens`
    max_epochs: float | None = None  # no more of it than so often in `total_tokens`; the others share the rest
    only: OnlyConfig = field(default_factory=OnlyConfig)  # some of the source's items
    missing: Literal["skip", "error"] = "skip"  # items with some of its channels, not all: left out, or refused
    options: dict[str, Any] = field(default_factory=dict)  # of the recipe


@dataclass(frozen=True)
class StageConfig:
    from_window: int  # first window of the stage, which starts a fresh stream there; 0 for the first
    weights: dict[str, float] = field(default_factory=dict)  # entry -> weight in place of its own; 0 leaves it out


@dataclass(frozen=True)
class DataConfig:
    seq_len: int  # T, tokens the model is fed; a window holds one more
    sources: dict[str, SourceConfig]
    entries: dict[str, EntryConfig]
    packing: Literal["concat", "aligned"] = "concat"  # aligned: no sentence is cut, the rest of a window is PAD
    seed: int = 0  # of the order of everything
    held_out_per_mille: int = 10  # groups that are in no window: hash(group) mod 1000 below this
    split: Literal["train", "held_out"] = "train"  # held_out: windows of those groups alone, and of exclude_groups
    weights_by: Literal["tokens", "sentences"] = "tokens"  # what the weights are shares of
    total_tokens: float | None = None  # picture tokens of the whole run, which `epochs` and `max_epochs` refer to
    period: int = 4096  # sentences in which the mixture repeats; longer for entries of tiny weight
    shuffle_block: int = 65536  # neighbouring units shuffled together; smaller reads less of a source at a time
    stages: tuple[StageConfig, ...] = (StageConfig(0),)

    def __post_init__(self) -> None:
        for name, least in (("seq_len", 1), ("period", 1), ("shuffle_block", 1), ("held_out_per_mille", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name} is {getattr(self, name)}; use {least} or more")
        if self.period > LONGEST_PERIOD:
            raise UserError(f"data.period is {self.period}; use {LONGEST_PERIOD} or less")
        if self.total_tokens is not None and not 0 < self.total_tokens < math.inf:
            raise UserError(f"data.total_tokens is {self.total_tokens:g}; use a number above 0, or null")
        if self.held_out_per_mille >= 1000:
            raise UserError(
                f"data.held_out_per_mille is {self.held_out_per_mille}; 1000 holds out everything, use less"
            )
        if not self.entries:
            raise UserError("data.entries is empty; name at least one entry")
        for name, entry in self.entries.items():
            if entry.source not in self.sources:
                known = ", ".join(self.sources) or "none is named"
                raise UserError(
                    f"entry {name!r} reads source {entry.source!r}, which data.sources lacks; known: {known}"
                )
            if entry.recipe not in RECIPES:
                raise UserError(f"entry {name!r} has recipe {entry.recipe!r}; use one of {', '.join(RECIPES)}")
            if (entry.weight is None) == (entry.epochs is None):
                raise UserError(f"entry {name!r} needs either weight or epochs")
            for key in ("weight", "epochs"):
                if (given := getattr(entry, key)) is not None and not 0 <= given < math.inf:
                    raise UserError(f"entry {name!r} has {key} {given:g}; use 0 (left out) or more")
            if (most := self.most_epochs(name)) is not None and not most > 0:
                raise UserError(f"entry {name!r} has max_epochs {most:g}; use more than 0")
            if most is not None and entry.epochs is not None and entry.epochs > most:
                raise UserError(
                    f"entry {name!r} has epochs {entry.epochs:g} and max_epochs {most:g}; change one of them"
                )
        limited = [name for name in self.entries if self.entries[name].epochs is not None or self.most_epochs(name)]
        if limited and len(self.stages) > 1:
            raise UserError(f"entry {limited[0]!r} has epochs or max_epochs, which need a mixture without stages")
        starts = [stage.from_window for stage in self.stages]
        if starts[:1] != [0] or starts != sorted(set(starts)):
            raise UserError(f"data.stages start at windows {starts}; the first must be 0 and each later than the last")
        if starts[-1] > LAST_STAGE:
            raise UserError(f"data.stages start at windows {starts}; use numbers up to {LAST_STAGE}")
        for number, stage in enumerate(self.stages):
            for name, weight in stage.weights.items():
                if name not in self.entries:
                    known = ", ".join(self.entries)
                    raise UserError(f"data.stages[{number}].weights names {name!r}, which is no entry; known: {known}")
                if not 0 <= weight < math.inf:
                    raise UserError(f"data.stages[{number}].weights.{name} is {weight:g}; use 0 (left out) or more")
                if weight and self.entries[name].epochs is not None:
                    raise UserError(
                        f"data.stages[{number}].weights.{name} is {weight:g} and entry {name!r} has epochs; "
                        "drop one of them"
                    )
            if not any(weight > 0 for weight in self.weights(number)):
                raise UserError(f"no entry of data.stages[{number}] has a weight above 0")

    def most_epochs(self, name: str) -> float | None:
        """The entry's `max_epochs`, or its source's."""
        own = self.entries[name].max_epochs
        return self.sources[self.entries[name].source].max_epochs if own is None else own

    def weights(self, stage: int) -> list[float]:
        """Weight of each entry in a stage; its epochs where it has these."""
        own = self.stages[stage].weights
        return [float(own.get(name, entry.weight or entry.epochs or 0)) for name, entry in self.entries.items()]

    def used_entries(self) -> list[str]:
        """Entries with a weight in some stage, in order."""
        by_entry = zip(*(self.weights(stage) for stage in range(len(self.stages))))
        return [name for name, weights in zip(self.entries, by_entry) if any(weight > 0 for weight in weights)]


def data_config(config: "DataConfig | Mapping[str, Any]") -> DataConfig:
    """A `DataConfig` from plain containers. `entries` is a mapping of names, or a list of mappings with `name`.

    Raises `UserError` for unknown or missing keys, those of recipes included.
    """
    if isinstance(config, DataConfig):
        return config
    values = dict(config)
    entries = values.get("entries", {})
    if not isinstance(entries, Mapping | list | tuple):
        raise UserError(f"data.entries is {entries!r}; it must be a mapping of entries, or a list of them with names")
    if not isinstance(entries, Mapping):
        named = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or "name" not in entry:
                raise UserError(f"data.entries[{index}] has no name; give it one")
            if entry["name"] in named:
                raise UserError(f"data.entries has two entries named {entry['name']!r}; rename one")
            named[entry["name"]] = {key: value for key, value in entry.items() if key != "name"}
        entries = named
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise UserError(
                f"data.entries.{name} is {entry!r}; it must be a mapping, or ~data.entries.{name} leaves it out"
            )
    own = {f.name for f in fields(EntryConfig)} - {"options"}
    values["entries"] = {
        name: {
            "source": name,
            **{key: value for key, value in entry.items() if key in own},
            "options": {key: value for key, value in entry.items() if key not in own},
        }
        for name, entry in entries.items()
    }
    built = build(DataConfig, values, "data")
    for name in built.entries:
        make_recipe(built, name)
    return built


def make_recipe(config: DataConfig, name: str) -> Recipe:
    entry = config.entries[name]
    return build(RECIPES[entry.recipe], entry.options, f"data.entries.{name}")
