"""What a tokenizer's training says of itself: one line and one JSON record at a time, and the checks that end it."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lvm.runtime import UserError
from lvm.runtime.distributed import Distributed
from lvm.runtime.machine import peak_memory
from lvm.runtime.metrics import MetricsLog
from tokenizer.evaluate import usage_of
from tokenizer.losses import psnr
from tokenizer.settings import TrainConfig
from tokenizer.training import TrainState


class Journal:
    """Figures of the steps of one attempt. Nothing waits for the device but where it logs or saves."""

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        ranks: Distributed,
        log: MetricsLog | None,
        say: Callable[[str], None],
    ):
        self.config, self.state, self.ranks = config, state, ranks
        self.revived = 0  # codes, since the last line
        self.norm: Tensor | None = None  # of the last step's gradient: equal on all ranks
        self._finite: Tensor | None = None
        self._figures: dict[str, Tensor] = {}
        self._log, self._say = log, say
        self._lap, self._lap_step = time.monotonic(), state.step
        self._figures_step = -1

    def add(self, figures: dict[str, Tensor], share: float) -> None:
        """The figures of a micro-batch of the current step; its line shows the mean over the last step."""
        if self._figures_step != self.state.step:
            self._note_finite()
            self._figures, self._figures_step = {}, self.state.step
        for name, value in figures.items():
            self._figures[name] = self._figures.get(name, 0.0) + share * value

    def _note_finite(self) -> None:
        if self.norm is not None:
            finite = torch.isfinite(self.norm)
            self._finite = finite if self._finite is None else self._finite & finite
            self.norm = None

    def check_finite(self) -> None:
        """Raise on every rank once a gradient was infinite or not a number: such weights are never saved."""
        self._note_finite()
        if self._finite is not None and not bool(self._finite):
            raise UserError(
                f"the loss or its gradient is not finite before step {self.state.step}; the checkpoint before it is "
                f"kept, lower learning_rate {self.config.learning_rate:g} or discriminator.max_weight"
            )

    def log(self) -> None:
        """One line and one record."""
        config, state = self.config, self.state
        names = list(self._figures)
        means = torch.stack([self._figures[name].float() for name in names])
        if self.ranks.world_size > 1:
            dist.all_reduce(means)
            means /= self.ranks.world_size
        figures = dict(zip(names, means.tolist()))
        figures["psnr"] = float(psnr(torch.tensor(figures.pop("squared_error"))))
        norm = math.nan if self.norm is None else float(self.norm)
        used = state.used.cpu().numpy()
        usage, perplexity = usage_of(used)
        now = time.monotonic()
        speed = (state.step - self._lap_step) * config.batch_size / max(1e-9, now - self._lap)
        shown: dict[str, Any] = {"minutes": round(state.seconds / 60, 2)}
        shown |= {name: round(value, 5 if name != "psnr" else 2) for name, value in figures.items()}
        shown |= {
            "gradient_norm": round(norm, 4),
            "code_usage": round(usage, 4),
            "code_perplexity": round(perplexity, 1),
            "dead_codes": int((used == 0).sum()),
            "revived": self.revived,
            "pictures_per_second": round(speed, 1),
        }
        if (on_gpu := peak_memory(state.used.device)["device"]) is not None:
            shown["gpu_memory_gb"] = round(on_gpu / 1e9, 2)
        self.write(shown)
        self._lap, self._lap_step, self.revived = now, state.step, 0
        self.check_finite()
        state.used.zero_()
        judged_from = config.usage_floor_after_steps
        judged_from += 0 if config.init_from is not None else config.quantizer.continuous_steps
        if state.step >= judged_from and usage < config.usage_floor:
            raise UserError(
                f"the codebook collapsed: {usage:.1%} of the codes in use at step {state.step}, below usage_floor "
                f"{config.usage_floor:.0%}; lower learning_rate or loss.gradient_l2, or try quantizer.kind=ema"
            )

    def restart_clock(self) -> None:
        """Time spent on a save is no training."""
        self._lap = time.monotonic()

    def write(self, figures: dict[str, Any]) -> None:
        if self._log is not None and figures:
            self._log.log(self.state.step, **figures)
            self._say("  ".join(f"{key} {value}" for key, value in ({"step": self.state.step} | figures).items()))
