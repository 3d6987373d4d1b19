"""The optimisers, their learning rate and the windows of a step: AdamW with decay groups, Muon, schedules.

    config = with_length(config, max_steps)
    lr = learning_rate(config, *progress(config, step, tokens, targets))
    windows = batch_size_at(config.batch_warmup, batch_size, step)

Schedules are pure functions of the finished optimiser steps, or of the tokens trained on, and never of micro-steps;
so nothing of them is saved or resumed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lvm.runtime import UserError
from lvm.training.muon import Muon


@dataclass(frozen=True)
class OptimConfig:
    matrices: Literal["adamw", "muon"] = "adamw"  # what updates the blocks' matrices; AdamW all the rest
    momentum: float = 0.95  # of muon
    lr: float = 3e-4  # the highest learning rate
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["matrices", "all"] = "matrices"  # all: norms too, as the reference does
    clip: float = 1.0  # largest global gradient norm
    schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: constant, then linear (MiniCPM, arXiv 2404.06395)
    schedule_unit: Literal["steps", "tokens"] = "steps"  # what the lengths below count; keys of the other: null
    warmup_steps: int = 100  # linear, from 0
    warmup_tokens: float = 0.0
    schedule_steps: int | None = None  # the schedule's length, warm-up included; None: trainer.max_steps
    schedule_tokens: float | None = None
    stable_share: float = 0.4  # wsd: share of the schedule after which the rate falls; 1: it never does
    decay_from_step: int | None = None  # wsd: where the fall starts, instead of stable_share; a checkpoint's step
    decay_from_token: float | None = None
    decay_steps: int | None = None  # wsd: how long the fall is; without decay_from the schedule's last ones
    decay_tokens: float | None = None
    final_share: float = 0.1  # of lr, at the end of the schedule and after it
    batch_warmup: tuple[tuple[int, int], ...] = ()  # (step, windows): so many a step before it, then trainer.batch_size

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip <= 0:
            raise UserError(f"optim.lr is {self.lr:g} and optim.clip {self.clip:g}; both must be above 0")
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise UserError(f"optim.schedule_steps is {self.schedule_steps}; use 1 or more")
        for name in ("stable_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} is {getattr(self, name):g}; it is a share, from 0 to 1")
        self._check_schedule()
        steps, sizes = [step for step, _ in self.batch_warmup], [size for _, size in self.batch_warmup]
        if steps != sorted(set(steps)) or min([*steps, *sizes], default=1) < 1:
            raise UserError(f"optim.batch_warmup is {self.batch_warmup}; use pairs (step, windows) of growing steps")

    def _check_schedule(self) -> None:
        unit, other = ("steps", "tokens") if self.schedule_unit == "steps" else ("tokens", "steps")
        for name in _lengths(other):
            if getattr(self, name) and name != "warmup_steps":  # it has a default
                raise UserError(f"optim.{name} is set and optim.schedule_unit is {unit}; use the keys in {unit}")
        start, length = (getattr(self, name) for name in _lengths(unit)[2:])
        if self.schedule == "cosine" and (start or length):
            raise UserError("optim.decay_* shape the end of schedule=wsd, not of cosine; use optim.schedule=wsd")
        if start is not None and not length:
            raise UserError(f"the rate falls from {start:g} {unit} on and optim.decay_{unit} does not say for how long")
        for name in _lengths(unit):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"optim.{name} is {getattr(self, name):g}; use 0 or more")
        if unit == "tokens" and self.needs_length and not self.schedule_tokens:
            raise UserError("optim.schedule_unit is tokens and optim.schedule_tokens is not set; say how many")

    @property
    def needs_length(self) -> bool:
        """Whether the rate depends on the schedule's length; not if it never falls, or from a given step on."""
        if self.schedule == "cosine":
            return True
        _, _, start, fall = (getattr(self, name) for name in _lengths(self.schedule_unit))
        return start is None and (fall is not None or self.stable_share < 1)


def _lengths(unit: str) -> tuple[str, str, str, str]:
    """The keys of warm-up, schedule, start of the fall and its length."""
    return f"warmup_{unit}", f"schedule_{unit}", f"decay_from_{unit.removesuffix('s')}", f"decay_{unit}"


def with_length(config: OptimConfig, max_steps: int, share: float = 1.0) -> OptimConfig:
    """The config with its schedule's length written out, where the rate depends on one."""
    if not config.needs_length:
        return replace(config, schedule_steps=None, schedule_tokens=None)
    if config.schedule_unit == "steps":
        return replace(config, schedule_steps=math.ceil((config.schedule_steps or max_steps) * share))
    assert config.schedule_tokens
    return replace(config, schedule_tokens=config.schedule_tokens * share)


def progress(config: OptimConfig, step: int, tokens: int, targets: int) -> tuple[int, int]:
    """What is done before the next update and what it adds, in the schedule's unit; `targets` are that update's."""
    return (step, 1) if config.schedule_unit == "steps" else (tokens, targets)


def warmup_and_fall(config: OptimConfig) -> tuple[float, float, float]:
    """Where the warm-up ends, where the rate starts to fall (infinite: never), and where it has fallen."""
    warmup, length, start, fall = (getattr(config, name) for name in _lengths(config.schedule_unit))
    if not config.needs_length:
        return (warmup, math.inf, math.inf) if start is None else (warmup, start, start + fall)
    assert length, "the config is one of with_length"
    if config.schedule == "cosine":
        return warmup, warmup, length
    return warmup, max(warmup, config.stable_share * length if fall is None else length - fall), length


def learning_rate(config: OptimConfig, done: float, adds: float = 1) -> float:
    """The rate of the update that adds `adds` to `done` finished steps or tokens; `config` is one of `with_length`."""
    warmup, start, end = warmup_and_fall(config)
    if done < warmup:
        return config.lr * min(done + adds, warmup) / warmup
    gone = min(1.0, (done - start) / max(1, end - start)) if done > start else 0.0
    share = 0.5 * (1 + math.cos(math.pi * gone)) if config.schedule == "cosine" else 1 - gone
    return config.lr * (config.final_share + (1 - config.final_share) * share)


FALL = ("schedule", "stable_share", "final_share", *_lengths("steps")[1:], *_lengths("tokens")[1:])


def only_the_fall_differs(saved: OptimConfig, now: OptimConfig, done: float) -> bool:
    """Whether a run of `saved` with `done` steps or tokens behind it may go on as `now`, as if it had always been so.

    They may differ in the keys `FALL`, and the rate has begun to fall in neither: a long constant run is branched by
    decay_from_step (at the checkpoint or later) and decay_steps. Both are of `with_length`.
    """
    if replace(saved, **{name: getattr(now, name) for name in FALL}) != now:
        return False
    return done <= min(warmup_and_fall(saved)[1], warmup_and_fall(now)[1])


# Windows of a step.


def batch_size_at(warmup: Sequence[tuple[int, int]], batch_size: int, step: int) -> int:
    """Windows that the update after `step` finished ones reads (batch-size warm-up, arXiv 2005.14165, appendix B)."""
    return next((windows for until, windows in warmup if step < until), batch_size)


def windows_before(warmup: Sequence[tuple[int, int]], batch_size: int, step: int) -> int:
    """Windows that the first `step` updates read: the first window of the next one."""
    total = start = 0
    for until, windows in warmup:
        total += windows * max(0, min(step, until) - start)
        start = until
    return total + batch_size * max(0, step - start)


class Optimizers:
    """One or two optimisers as one; each has parameters of its own."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """What each parameter's optimiser keeps of it; its tensors may be changed in place."""
        return {parameter: kept for part in self.parts for parameter, kept in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizers:
    """The optimisers over float32 weights, their moments already there (zero), so that a checkpoint is read into them.

    `matrices` "muon" orthogonalises the updates of the blocks' matrices (Keller Jordan 2024), scaled so that AdamW's
    learning rate and weight decay fit (arXiv 2502.16982); embedding, head and norms stay with AdamW.
    """
    by_muon: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            is_matrix = not name.endswith(("norm.weight", ".bias"))
            if config.matrices == "muon" and name.startswith("layers.") and is_matrix:
                by_muon.append(p)
            else:
                (decayed if is_matrix or config.decay == "all" else kept).append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )
    for p in decayed + kept:
        adamw.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    if not by_muon:
        return Optimizers(adamw)
    muon = Muon(by_muon, config.lr, config.weight_decay, config.momentum)
    return Optimizers(adamw, muon)


def set_learning_rate(optimizer: Optimizers, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `largest`; the norm before, without waiting for it."""
    return torch.nn.utils.clip_grad_norm_(parameters, largest)
