"""The optimisers and their learning rate: AdamW with decay groups, Muon, and schedules counted in optimiser steps.

`learning_rate_share(config, step, ...)` is a pure function of the step, so nothing of it is saved or resumed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lvm.runtime import UserError


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
    warmup_steps: int = 100  # linear, from 0
    schedule_steps: int | None = None  # the schedule's length, warm-up included; None: trainer.max_steps
    stable_share: float = 0.4  # wsd: share of the schedule after which the rate falls
    final_share: float = 0.1  # of lr, at the end of the schedule and after it

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip <= 0:
            raise UserError(f"optim.lr is {self.lr:g} and optim.clip {self.clip:g}; both must be above 0")
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise UserError(f"optim.schedule_steps is {self.schedule_steps}; use 1 or more")
        for name in ("stable_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} is {getattr(self, name):g}; it is a share, from 0 to 1")


def learning_rate(config: OptimConfig, step: int, schedule_steps: int) -> float:
    """The rate of the update that follows `step` finished ones."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        gone = (step - config.warmup_steps) / max(1, schedule_steps - config.warmup_steps)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, gone)))
    else:
        start = max(config.warmup_steps, config.stable_share * schedule_steps)
        share = 1 - min(1.0, max(0.0, step - start) / max(1, schedule_steps - start))
    return config.lr * (config.final_share + (1 - config.final_share) * share)


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
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            of_block = name.startswith("layers.") and p.ndim == 2
            (by_muon if of_block and config.matrices == "muon" else others).append(p)
    decayed = [p for p in others if p.ndim > 1 or config.decay == "all"]
    kept = [p for p in others if p.ndim <= 1 and config.decay != "all"]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )
    for p in others:
        adamw.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    if not by_muon:
        return Optimizers(adamw)
    muon = torch.optim.Muon(
        by_muon,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    for p in by_muon:
        muon.state[p] = {"momentum_buffer": torch.zeros_like(p)}
    return Optimizers(adamw, muon)


def set_learning_rate(optimizer: Optimizers, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `largest`; the norm before, without waiting for it."""
    return torch.nn.utils.clip_grad_norm_(parameters, largest)
