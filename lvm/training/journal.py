"""What a training run says of itself, in RUN/metrics, to wandb or TensorBoard, and the bar. Nothing waits between logs.

Every `log_every_steps`, and after the last step:

    loss, loss_by_source    nats a target, mean over the steps since the last record, all ranks
    lr, grad_norm           of the last step; the norm before clipping
    tokens                  targets so far, PAD left out, those of skipped steps included
    skipped_steps           so far, see bad_steps.py
    tokens_per_second       fed to the model, all ranks; time that was no training is left out here and below
    mfu, mfu_causal         share of the devices' peak: 6 (N - embedding) + 12 L d T FLOPs a token, or 6 L d T for the
                            half of attention that is needed; null where the peak is unknown
    data_wait               share of the time in which the loop waited for its windows, on rank 0
    step_seconds            p50, p90 and p99 of single steps, on rank 0: by events on a GPU, else by the clock
    memory                  device and host: most bytes so far, on rank 0; device is what torch allocated
    seconds                 since this attempt began

`validation_loss`, `validation_loss_by_source` come every `validate_every_steps`; `answers` (a picture) and
`answers_right` (share of the codes of greedy answers that are those of the truth) every `answer_every_steps`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lvm.runtime.machine import peak_memory
from lvm.runtime.metrics import MetricsLog
from lvm.runtime.progress import Progress
from lvm.training.resume import TrainState

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int

# bf16 matmul peaks of the data sheets, dense, FLOP/s
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


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
        self._of_step = torch.zeros_like(self._sums)

    def add(self, nll: "Float32[Tensor, 'b t']", source: "Int[Tensor, 'b t']") -> None:
        """`source` of each target; -1 where it does not count."""
        values = torch.stack([nll.double(), torch.ones_like(nll, dtype=torch.float64)], dim=-1)
        self._of_step.index_add_(0, source.flatten().long() + 1, values.flatten(0, 1))

    def settle(self, left_out: "Bool[Tensor, '']") -> None:
        """Count what was added since the last call, unless `left_out`, on the device."""
        self._sums += torch.where(left_out, 0.0, self._of_step)
        self._of_step.zero_()

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
    return total / targets if targets else math.nan, {
        name: nll / count for name, (nll, count) in zip(names, sums[1:]) if count
    }


class StepClock:
    """Seconds of single steps: by events on a GPU, whose steps end long after the host has asked for them."""

    def __init__(self, device: torch.device):
        self._on_gpu, self._laps = device.type == "cuda", list[tuple[Any, Any]]()
        self.start()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self._begun = self._now()

    def lap(self) -> None:
        """A step ends here and the next one begins."""
        now = self._now()
        self._laps.append((self._begun, now))
        self._begun = now

    def read(self) -> dict[str, float]:
        """Percentiles since the last call; waits for the device."""
        laps, self._laps = self._laps, []
        if not laps:
            return {}
        if self._on_gpu:
            laps[-1][1].synchronize()
        seconds = sorted(a.elapsed_time(b) / 1000 if self._on_gpu else b - a for a, b in laps)
        return {f"p{share}": seconds[min(len(seconds) - 1, len(seconds) * share // 100)] for share in (50, 90, 99)}


class Journal:
    """Metrics and progress of one attempt; on ranks other than 0 it only measures."""

    def __init__(
        self,
        folder: Path | None,
        state: TrainState,
        max_steps: int,
        seq_len: int,
        flops_per_token: Sequence[int],
        peak: float | None,
        device: torch.device,
        wandb: Mapping[str, Any] | None,
        tensorboard: bool = False,
        tokens_of: Callable[[int, int], int] | None = None,
    ):
        """`folder`: of the metrics, None on other ranks than 0. `flops_per_token`: all of attention, its causal half.

        `peak` is that of all devices together, in FLOP/s; `tokens_of(i, n)` are those of windows i .. i+n-1 that are no
        PAD (None: all), which alone count as work done.
        """
        self._log = MetricsLog(folder, state.step, wandb, tensorboard) if folder is not None else None
        self._progress = Progress(max_steps, "train", state.step) if folder is not None else None
        self._seq_len, self._flops, self._peak = seq_len, flops_per_token, peak
        self._tokens_of = tokens_of or (lambda i, n: n * seq_len)
        self._start = self._lap = time.monotonic()
        self._lap_window, self._waited = state.next_window, 0.0
        self._device, self._clock = device, StepClock(device)
        self._shown: dict[str, Any] = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the loop waits for."""
        since = time.monotonic()
        yield
        self._waited += time.monotonic() - since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        since = time.monotonic()
        yield
        self._lap += time.monotonic() - since
        self._clock.start()

    def advance(self) -> None:
        """A step is done, as far as the host is concerned."""
        self._clock.lap()
        if self._progress is not None:
            self._progress.update(1, **self._shown)

    def log(self, state: TrainState, sums: list[list[float]], names: tuple[str, ...], lr: float, norm: float) -> None:
        """The figures since the last call."""
        loss, by_source = mean_losses(sums, names)
        step_seconds = self._clock.read()
        now = time.monotonic()
        seconds = max(now - self._lap, 1e-9)
        num_windows = state.next_window - self._lap_window
        speed = num_windows * self._seq_len / seconds
        work = self._tokens_of(self._lap_window, num_windows) / seconds if self._peak else 0.0
        mfu, mfu_causal = (self._peak and work * flops / self._peak for flops in self._flops)
        figures = {
            "loss": loss,
            "loss_by_source": by_source,
            "lr": lr,
            "grad_norm": norm,
            "tokens": state.tokens,
            "skipped_steps": state.skipped_steps,
            "tokens_per_second": speed,
            "mfu": mfu,
            "mfu_causal": mfu_causal,
            "data_wait": self._waited / seconds,
            "step_seconds": step_seconds,
            "memory": peak_memory(self._device),
            "seconds": now - self._start,
        }
        self._lap, self._lap_window, self._waited = now, state.next_window, 0.0
        self._shown = {"loss": loss, "tokens/s": round(speed)}
        self.write(state.step, figures)

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        if self._log is not None and figures:
            self._log.log(step, **figures)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
        if self._log is not None:
            self._log.close()
