"""From run folders to the points of a scaling law: size, tokens, validation loss where the rate has fallen, rate.

A run is a point when it is finished, its learning rate has fallen to the end of its schedule, and it validated on its
last step. A trunk at a constant rate is none: its loss drops by some hundredths once the rate falls. What is left out
is named with the reason. Runs on other data, another tokenizer or validated otherwise are refused, not mixed.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lvm.runtime import UserError, build, read_json
from lvm.runtime.configs import differences, flat, shown
from lvm.training.optim import OptimConfig, warmup_and_fall, with_length
from lvm.training.outcome import FILE

Parameters = Literal["non_embedding", "all"]
ALIKE = 0.05  # budgets or tokens that differ by less are one: steps are whole

# Beside size, tokens and rate these may differ between runs of one law without a word.
_EXPECTED = (
    *("run_dir", "branch_from", "seed", "model", "logger", "optim.lr", "optim.stable_share", "optim.schedule"),
    *(
        "optim.schedule_",
        "optim.decay_",
        "optim.warmup_",
        "trainer.max_steps",
        "trainer.num_threads",
        "trainer.compile",
    ),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.parallel", "trainer.micro_batch_size"),
    *("trainer.loader_workers", "trainer.keep_", "trainer.save_every", "trainer.log_every", "trainer.validate_every"),
    *("trainer.answer_every", "trainer.profile", "trainer.memory", "trainer.peer_timeout", "data.new_plan"),
)
_VALIDATED = ("trainer.validation_windows", "trainer.loss_on", "trainer.document_mask")


@dataclass(frozen=True)
class Point:
    """A run's figures. `n` is what the law counts as its size: all parameters, or those beside embedding and head."""

    name: str
    n: float
    tokens: float
    loss: float
    lr: float
    flops_per_token: float
    seed: int = 0
    non_embedding: int = 0
    parameters: int = 0

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def order(self) -> tuple[Any, ...]:
        """Points stand in an order that knows nothing of folders."""
        return self.n, self.tokens, self.lr, self.seed, self.loss


@dataclass(frozen=True)
class LeftOut:
    name: str
    why: str


@dataclass(frozen=True)
class Gathered:
    points: tuple[Point, ...]  # in the order of their figures
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]


# Run folders.


def run_folders(places: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder of every run below `places`; a name is the folder from what all have in common on."""
    found = set()
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is no folder; give run folders, or folders of them such as runs/scaling")
        for folder, inner, files in os.walk(place):
            if "config.json" in files or FILE in files:
                found.add(Path(folder).resolve())
                inner.clear()
    if not found:
        raise UserError(f"there is no run below {', '.join(map(str, places))}; a run folder holds config.json")
    common = Path(os.path.commonpath([folder.parent for folder in found]))
    return {str(folder.relative_to(common)): folder for folder in sorted(found)}


def why_not(config: Mapping[str, Any], result: Mapping[str, Any] | None) -> str | None:
    """Why this run is no point of a law; None for one that is."""
    if result is None:
        return f"not ended (no {FILE})"
    if not result["finished"]:
        return f"stopped at step {result['step']} of {result['max_steps']}"
    if why := rate_has_not_fallen(config, result):
        return why
    loss = result.get("validation_loss")
    if loss is None:
        return "never validated; set trainer.validate_every_steps"
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        return f"its validation loss is {loss}"
    if result.get("validation_step") != result["step"]:
        return f"last validated at step {result.get('validation_step')} and not at its end, step {result['step']}"
    return None


def rate_has_not_fallen(config: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    trainer = config["trainer"]
    share = trainer.get("share_without_compile", 1.0)
    shortened = share < 1 and result["max_steps"] == math.ceil(trainer["max_steps"] * share)
    optim = build(OptimConfig, config["optim"], "optim")
    optim = with_length(optim, trainer["max_steps"], share if shortened else 1.0)
    _, _, end = warmup_and_fall(optim)
    done, unit = (result["step"], "step") if optim.schedule_unit == "steps" else (result["tokens"], "token")
    if math.isinf(end) or optim.final_share == 1:
        return "its rate is constant (a trunk); a branch in which the rate falls is a point"
    if done < end:
        return f"its rate falls until {unit} {end:,.0f} and it ended at {done:,}"
    return None


def read_point(name: str, config: Mapping[str, Any], result: Mapping[str, Any], parameters: Parameters) -> Point:
    sizes = {"non_embedding": result["non_embedding_parameters"], "all": result["parameters"]}
    return Point(
        name,
        float(sizes[parameters]),
        float(result["tokens"]),
        float(result["validation_loss"]),
        float(config["optim"]["lr"]),
        float(result["flops_per_token"]),
        int(config.get("seed", 0)),
        sizes["non_embedding"],
        sizes["all"],
    )


def gather(places: Sequence[Path], parameters: Parameters = "non_embedding") -> Gathered:
    """The points of all runs below `places`. Raises `UserError` where there is none or they do not compare."""
    points, left_out, configs, folders = [], [], {}, run_folders(places)
    for name, folder in folders.items():
        config = read_json(folder / "config.json")
        result = read_json(folder / FILE) if (folder / FILE).is_file() else None
        try:
            why = why_not(config, result)
            if why is None and result is not None:
                points.append(read_point(name, config, result, parameters))
                configs[name] = config
        except KeyError as error:
            why = f"its config.json or {FILE} has no {error}"
        if why is not None:
            left_out.append(LeftOut(name, why))
    if not points:
        reasons = "; ".join(f"{one.name}: {one.why}" for one in left_out[:3])
        raise UserError(f"none of {len(folders)} runs is a point of a law ({reasons}); finish them first")
    refuse_mixed({point.name: folders[point.name] for point in points}, configs)
    kept = sorted(points, key=lambda point: point.order)
    copies = [b.name for a, b in pairwise(kept) if a.order == b.order]
    left_out += [LeftOut(name, "the same figures as another run: a copy") for name in copies]
    kept = [point for point in kept if point.name not in copies]
    return Gathered(tuple(kept), tuple(sorted(left_out, key=lambda one: one.name)), tuple(other_differences(configs)))


# What may be compared.


def data_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    data = {key: value for key, value in config.get("data", {}).items() if key != "new_plan"}
    return {"data": data, "world": config.get("world"), "vqgan": config.get("vqgan")}


def validation_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    leaves = dict(flat(config))
    return {key: leaves.get(key) for key in _VALIDATED}


def fingerprints(folder: Path) -> dict[str, str] | None:
    """Of the plan and the tokenizer, as the newest checkpoint has them; None without a checkpoint."""
    manifests = sorted(folder.glob("checkpoints/step-*/manifest.json"))
    return read_json(manifests[-1]).get("fingerprints") if manifests else None


def refuse_mixed(folders: Mapping[str, Path], configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `UserError` for runs whose losses are not of the same thing, naming two of them and what differs."""
    prints = {name: fingerprints(folder) for name, folder in folders.items()}
    first, *others = folders
    for name in others:
        lines = differences(validation_facts(configs[first]), validation_facts(configs[name]))
        ours, theirs = prints[first], prints[name]
        if ours is None or theirs is None or ours != theirs:
            lines += differences(data_facts(configs[first]), data_facts(configs[name]))
        if ours is not None and theirs is not None and ours != theirs and not lines:
            lines = differences(*({f"the {key}": value[:12] for key, value in side.items()} for side in (ours, theirs)))
        if lines:
            raise UserError(
                f"{name} and {first} are not of one law, their data or validation differ: {shown(lines, 3)}; give the "
                "runs of one kind"
            )


def other_differences(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A warning for each key that varies among the points and is neither size, length nor rate."""
    seen: dict[str, set[str]] = {}
    for config in configs.values():
        for key, value in flat(config):
            if not key.startswith((*_EXPECTED, "data.", "world.", "vqgan")):
                seen.setdefault(key, set()).add(str(value))
    return [
        f"{key} differs between the runs ({', '.join(sorted(values))}); the law takes no account of it"
        for key, values in sorted(seen.items())
        if len(values) > 1
    ]


# Points in groups.


def levels(values: Iterable[float], tolerance: float = ALIKE) -> list[float]:
    """Different values, sorted, those within `tolerance` of the former taken as one (the first of them)."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value > found[-1] * (1 + tolerance):
            found.append(value)
    return found


def level_of(value: float, known: Sequence[float]) -> float:
    return max(level for level in known if level <= value)


def by_size_and_tokens(points: Sequence[Point]) -> dict[tuple[float, float], list[Point]]:
    """(size, tokens) -> its points; tokens alike are one budget."""
    budgets = levels(point.tokens for point in points)
    found: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        found.setdefault((point.n, level_of(point.tokens, budgets)), []).append(point)
    return found


def rates_of(points: Sequence[Point]) -> dict[float, float]:
    """Learning rate -> mean loss of its runs (seeds), of points of one size and budget."""
    rates: dict[float, list[float]] = {}
    for point in points:
        rates.setdefault(point.lr, []).append(point.loss)
    return {lr: float(np.mean(losses)) for lr, losses in sorted(rates.items())}


def at_best_rate(points: Sequence[Point]) -> list[Point]:
    """Of each size and budget the runs at the rate of the lowest loss."""
    best = []
    for group in by_size_and_tokens(points).values():
        rates = rates_of(group)
        lr = min(rates, key=lambda rate: rates[rate])
        best += [point for point in group if point.lr == lr]
    return sorted(best, key=lambda point: point.order)
