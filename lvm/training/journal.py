"""What a training run says of itself: losses by source, speed, learning rate, the bar. Nothing waits between logs."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lvm.runtime import UserError
from lvm.runtime.metrics import MetricsLog
from lvm.runtime.progress import Progress
from lvm.training.resume import TrainState

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

# bf16 matmul peaks of the data sheets, dense, FLOP/s
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


class NotFinite(UserError):
    """The loss is infinite or not a number; no checkpoint of such weights is written."""


def peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


class LossBySource:
    """Sums of nll and counts of targets by source, on the device until somebody reads them."""

    def __init__(self, num_sources: int, device: torch.device, sums: list[list[float]]):
        """`sums`: those of a resumed run, on rank 0; empty elsewhere."""
        start = torch.tensor(sums, dtype=torch.float64) if sums else torch.zeros(num_sources + 1, 2).double()
        self._sums = start.to(device)  # row 0: what does not count

    def add(self, nll: "Float32[Tensor, 'b t']", source: "Int[Tensor, 'b t']") -> None:
        """`source` of each target; -1 where it does not count."""
        values = torch.stack([nll.double(), torch.ones_like(nll, dtype=torch.float64)], dim=-1)
        self._sums.index_add_(0, source.flatten().long() + 1, values.flatten(0, 1))

    def gather(self, reset: bool) -> list[list[float]]:
        """The sums over all ranks (every rank asks); they stay with rank 0 unless `reset`."""
        many = dist.is_initialized() and dist.get_world_size() > 1
        if many:
            dist.all_reduce(self._sums)
        sums: list[list[float]] = self._sums.tolist()
        if reset or (many and dist.get_rank() > 0):
            self._sums.zero_()
        return sums


def mean_losses(sums: list[list[float]], names: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """Mean nll over all targets, and by source."""
    total, targets = (sum(row[i] for row in sums[1:]) for i in (0, 1))
    return total / max(1.0, targets), {name: nll / count for name, (nll, count) in zip(names, sums[1:]) if count}


class Journal:
    """Metrics and progress of one attempt; on ranks other than 0 it only measures."""

    def __init__(
        self,
        folder: Path | None,
        state: TrainState,
        max_steps: int,
        tokens_per_step: int,
        flops_per_token: Sequence[int],
        peak: float | None,
        wandb: Mapping[str, Any] | None,
    ):
        """`folder`: of the metrics, None on other ranks than 0. `flops_per_token`: all of attention, its causal half.

        `peak` is that of all devices together, in FLOP/s.
        """
        self._log = MetricsLog(folder, state.step, wandb) if folder is not None else None
        self._progress = Progress(max_steps, "train", state.step) if folder is not None else None
        self._tokens_per_step, self._flops, self._peak = tokens_per_step, flops_per_token, peak
        self._start = self._lap = time.monotonic()
        self._lap_step = state.step
        self._shown: dict[str, Any] = {}

    def log(self, state: TrainState, sums: list[list[float]], names: tuple[str, ...], lr: float, norm: float) -> None:
        """The figures since the last call. Raises `NotFinite`."""
        loss, by_source = mean_losses(sums, names)
        now = time.monotonic()
        speed = (state.step - self._lap_step) * self._tokens_per_step / (now - self._lap)
        figures = {
            "loss": loss,
            "loss_by_source": by_source,
            "lr": lr,
            "grad_norm": norm,
            "tokens": state.tokens,
            "tokens_per_second": speed,
            "seconds": now - self._start,
        }
        if self._peak is not None:
            figures |= {"mfu": speed * self._flops[0] / self._peak, "mfu_causal": speed * self._flops[1] / self._peak}
        self._lap, self._lap_step = now, state.step
        self._shown = {"loss": loss, "tokens/s": round(speed)}
        self.write(state.step, figures)
        if not math.isfinite(loss):
            raise NotFinite(
                f"the loss is {loss} at step {state.step}; lower optim.lr and start from a checkpoint before it"
            )

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.log(step, **figures)

    def pause(self) -> float:
        return time.monotonic()

    def resume(self, since: float) -> None:
        """Time since `pause` was not training."""
        self._lap += time.monotonic() - since

    def advance(self) -> None:
        if self._progress is not None:
            self._progress.update(1, **self._shown)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
        if self._log is not None:
            self._log.close()
