"""What a plan says of itself: where the tokens of a window come from, what is in it, what decides its bytes."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.data.config import PLAN_VERSION, OnlyConfig, make_recipe
from lvm.sentences import ROLES, Recipe

if TYPE_CHECKING:
    from lvm.data.entries import Entry
    from lvm.data.plan import TokenPlan


def explain(plan: "TokenPlan", i: int) -> list[dict[str, Any]]:
    """The sentences of window i in order: entry, recipe, draw, where its tokens lie, and every picture's origin.

    `start` is the place of the sentence's BOS in the window (negative where the window cuts it), `end` that behind
    its last token. Each picture says where its codes stand: store, shard, member of the tar and row.
    """
    ((stage, window, _),) = plan.by_stage(i, 1)
    sentences = plan.sentences(stage, window, 1)
    epochs = plan.draws.draw(sentences.entry, sentences.draw).epoch
    rows: list[dict[str, Any]] = [{} for _ in sentences.entry]
    for row, here, pictures in plan.compose(sentences.entry, sentences.draw):
        entry = plan.entries[row]
        for place, at in enumerate(here.tolist()):
            start = int(sentences.placed.start[at])
            rows[at] = {
                **_of_entry(plan, row),
                "stage": plan.stages.index(stage),
                "sentence": int(sentences.placed.sentence[at]),
                "draw": int(sentences.draw[at]),
                "epoch": int(epochs[at]),
                "start": start,
                "end": start + stage.packing.written(entry.length),
                "pictures": _pictures(entry, pictures, place),
            }
    return rows


def samples(plan: "TokenPlan", draw: int = 0) -> list[dict[str, Any]]:
    """Sentence `draw` of each entry, in the words of `explain`."""
    rows = []
    entries = np.arange(len(plan.entries))
    for row, _, pictures in plan.compose(entries, np.full(len(entries), draw)):
        rows.append({**_of_entry(plan, row), "draw": draw, "pictures": _pictures(plan.entries[row], pictures, 0)})
    return rows


def _of_entry(plan: "TokenPlan", row: int) -> dict[str, Any]:
    entry = plan.entries[row]
    return {"entry": entry.name, "source": entry.source, "recipe": entry.recipe.name}


def _pictures(entry: "Entry", shown: Any, place: int) -> list[dict[str, Any]]:
    numbers = (shown.item[place], shown.channel[place], shown.frame[place], entry.recipe.roles())
    return [_picture(entry, *map(int, four)) for four in zip(*numbers)]


def _picture(entry: "Entry", item: int, bit: int, frame: int, role: int) -> dict[str, Any]:
    store = entry.store
    channel = store.channels[bit]
    shard, member, row = store.locate(item, channel, frame)
    return {
        "item": item,
        "id": store.id(item),
        "view": store.view_of(item),
        "channel": channel,
        "frame": frame,
        "role": ROLES[role],
        "store": getattr(store, "where", entry.source),
        "shard": shard,
        "member": member,
        "row": row,
    }


def describe(plan: "TokenPlan", total_tokens: float | None = None) -> list[dict[str, Any]]:
    """One row for each stage and entry of it: what `lvm data plan` prints. Token shares are of picture tokens.

    `epochs` is how often an entry's sentences are seen in `total_tokens` picture tokens (None: those of the config) of
    that stage alone; None where nobody said how long the run is.
    """
    rows, total_tokens = [], total_tokens or plan.config.total_tokens
    for number, stage in enumerate(plan.stages):
        counts = stage.schedule.counts
        pictures = counts * np.array([entry.recipe.pictures for entry in plan.entries])
        for row, entry in enumerate(plan.entries):
            if counts[row] == 0:
                continue
            rows.append(
                {
                    "stage": number,
                    "entry": entry.name,
                    "source": entry.source,
                    "recipe": plan.config.entries[entry.name].recipe,
                    "units": entry.num_units,
                    "sentences": entry.num_sentences,
                    "pictures": entry.recipe.pictures,
                    "tokens": entry.num_sentences * entry.length,
                    "sentences_per_period": int(counts[row]),
                    "sentence_share": float(counts[row] / counts.sum()),
                    "token_share": float(pictures[row] / pictures.sum()),
                    "epochs": total_tokens
                    and total_tokens * float(pictures[row] / pictures.sum()) / entry.epoch_tokens,
                    "left_out": dict(entry.left_out),
                }
            )
    return rows


def facts(plan: "TokenPlan") -> dict[str, Any]:
    """All that decides the bytes of windows. Paths are not among it."""
    facts = _given(plan)
    for entry in plan.entries:
        facts["entries"][entry.name]["sentences"] = entry.num_sentences
    facts["stages"] = [{"from_window": stage.first_window, "slots": stage.schedule.sha256} for stage in plan.stages]
    return facts


def identity(plan: "TokenPlan") -> dict[str, Any]:
    """All that decides the tables of a plan, before they are made."""
    config = plan.config
    wishes = {
        name: [config.entries[name].weight, config.entries[name].epochs, config.most_epochs(name)]
        for name in config.used_entries()
    }
    strict = [name for name in config.used_entries() if config.entries[name].missing == "error"]
    return {
        **_given(plan),
        "wishes": wishes,
        "strict": strict,
        "stages": [[stage.from_window, config.weights(number)] for number, stage in enumerate(config.stages)],
        "mixture": [config.weights_by, config.total_tokens, config.period],
    }


def _given(plan: "TokenPlan") -> dict[str, Any]:
    """What of the facts a config and its stores say by themselves."""
    config = plan.config
    return {
        "plan_version": PLAN_VERSION,
        "stores": {name: store.fingerprint for name, store in plan.stores.items()},
        "vocabulary": {"num_codes": plan.num_codes, "bos": plan.bos, "eos": plan.eos, "pad": plan.pad},
        "tokens_per_picture": plan.tokens_per_picture,
        "seq_len": config.seq_len,
        "packing": config.packing,
        "seed": config.seed,
        "shuffle_block": config.shuffle_block,
        "held_out_per_mille": config.held_out_per_mille,
        **({} if config.split == "train" else {"split": config.split}),
        "excluded": {
            name: {
                "views": sorted(config.sources[name].exclude_views),
                "groups": sorted(config.sources[name].exclude_groups),
                **({"items": store.exclusion} if store.exclusion else {}),
            }
            for name, store in plan.stores.items()
        },
        "entries": {
            name: {
                "index": int(index),
                "source": config.entries[name].source,
                "recipe": config.entries[name].recipe,
                "options": _options(make_recipe(config, name)),
                **_only(config.entries[name].only),
            }
            for name, index in zip(config.used_entries(), plan.index)
        },
    }


# What came later is left out where it changes nothing: runs that were begun before go on.


def _options(recipe: Recipe) -> dict[str, Any]:
    options = _plain(dataclasses.asdict(recipe))  # type: ignore[call-overload]
    return {key: value for key, value in options.items() if (recipe.name, key, value) != ("pairs", "either", False)}


def _only(only: OnlyConfig) -> dict[str, Any]:
    return {} if only == OnlyConfig() else {"only": _plain(dataclasses.asdict(only))}


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that facts are equal before and after JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
