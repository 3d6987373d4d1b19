"""Steps that would spoil the weights: a loss or gradient that is not finite, or a sudden spike of the gradient.

The verdict is made on the device, the same on every rank, and there the update is left out. The host learns of it
where it waits anyhow, on steps that log or save: then the run stops, or goes on without those steps. Each leaves
RUN/bad-steps/step-00000037.json, of which `lvm replay` finds the window, the item and the source.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lvm.runtime import UserError, write_json
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.distributed import Distributed
from lvm.training.optim import Optimizers
from lvm.training.resume import TrainState

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

NORMS = 64  # gradient norms of which a spike is compared with the median
LEAST_NORMS = 16  # before so many are known nothing is a spike

Policy = Literal["stop", "skip"]


class NotFinite(UserError):
    """A bad step ended the run; no checkpoint holds what came of it."""


@dataclass(frozen=True)
class BadStepPolicy:
    on_bad_step: Policy  # skip: its update is left out, and training goes on
    spike_factor: float  # times the median of the last gradient norms; 0: a finite step is never bad
    max_in_a_row: int  # at so many even skip stops


@dataclass(frozen=True)
class _Step:
    number: int  # that it would have had, counted from 1
    first_window: int
    num_windows: int


class BadSteps:
    """Judges every step; every rank makes one and calls it alike.

    A step is `note` for each micro-batch, then `judge`; `read`, at the latest after `capacity` steps, waits for the
    device.
    """

    def __init__(
        self,
        run_dir: Path,
        policy: BadStepPolicy,
        capacity: int,
        num_micro: int,
        device: torch.device,
        ranks: Distributed,
        state: TrainState,
        facts: Mapping[str, Any],
        finish_saving: Callable[[], None] = lambda: None,
    ):
        """`facts` go into the files: what a replay must know of the run. `finish_saving` waits for a save in flight."""
        self._run_dir, self._policy, self._ranks, self._facts = run_dir, policy, ranks, dict(facts)
        self._finish_saving = finish_saving
        self._losses = torch.zeros(capacity, num_micro, device=device)  # this rank's share of each micro-batch
        self._figures = torch.zeros(capacity, 3, device=device)  # loss and gradient norm over all ranks, bad or not
        self._steps: list[_Step] = []
        self._in_a_row = 0
        self._norms = torch.full((NORMS,), math.inf, device=device)  # of good steps, a ring; inf: not filled yet
        self._norms[: len(state.gradient_norms)] = torch.tensor(state.gradient_norms, device=device)
        self._num_norms = torch.full((), len(state.gradient_norms), dtype=torch.int64, device=device)
        self._place = torch.arange(NORMS, device=device)

    def note(self, micro_batch: int, loss: "Float32[Tensor, '']") -> None:
        self._losses[len(self._steps), micro_batch] = loss.detach()

    def judge(self, norm: "Float32[Tensor, '']", state: TrainState, num_windows: int) -> "Bool[Tensor, '']":
        """Whether the step from `state` is bad, on the device. `norm` is that of the whole gradient."""
        row = len(self._steps)
        self._steps.append(_Step(state.step + 1, state.next_window, num_windows))
        loss = self._losses[row].sum()
        if self._ranks.world_size > 1:
            dist.all_reduce(loss)
            loss = loss / self._ranks.world_size  # each share was multiplied by it, see `make_sharded_loss`
        bad = ~(loss.isfinite() & norm.isfinite())
        if self._policy.spike_factor:
            bad = bad | self._is_spike(norm)
            self._remember(norm, bad)
        self._figures[row] = torch.stack([loss, norm.float(), bad.float()])
        return bad

    def _is_spike(self, norm: Tensor) -> Tensor:
        known = self._num_norms.clamp(max=NORMS)
        median = self._norms.sort().values.index_select(0, (known // 2).clamp(max=NORMS - 1).view(1))[0]
        return (self._num_norms >= LEAST_NORMS) & (norm > self._policy.spike_factor * median)

    def _remember(self, norm: Tensor, bad: Tensor) -> None:
        here = (self._place == self._num_norms % NORMS) & ~bad
        self._norms = torch.where(here, norm.float(), self._norms)
        self._num_norms = self._num_norms + (~bad).long()

    def read(self, state: TrainState) -> TrainState:
        """The state with what is known of bad steps in it. Raises `NotFinite`, on every rank, where the run must end.

        Waits for the device.
        """
        steps, figures = self._steps, self._figures[: len(self._steps)].tolist()
        bad = [number for number, (_, _, is_bad) in enumerate(figures) if is_bad]
        if bad:
            self._finish_saving()  # what the run, or a replay, starts from
            self._write(steps, figures, bad)
        for number, (loss, norm, is_bad) in enumerate(figures):
            self._in_a_row = self._in_a_row + 1 if is_bad else 0
            if is_bad and (self._policy.on_bad_step == "stop" or self._in_a_row >= self._policy.max_in_a_row):
                raise NotFinite(self._message(steps[number], loss, norm))
        self._steps = []
        self._losses.zero_()
        return replace(state, skipped_steps=state.skipped_steps + len(bad), gradient_norms=self._norms_in_order())

    def _message(self, step: _Step, loss: float, norm: float) -> str:
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm:.4g}"
        more = f", for the {self._in_a_row}th time in a row" if self._in_a_row > 1 else ""
        return (
            f"{what} at step {step.number}{more}; `lvm replay {self._run_dir}` finds what is to blame (see "
            f"{self._file(step)}); mend the data, lower optim.lr, or go on without such steps: trainer.on_bad_step=skip"
        )

    def _norms_in_order(self) -> list[float]:
        """From the oldest on."""
        count = int(self._num_norms.item())
        norms: list[float] = self._norms.roll(-(count % NORMS) if count > NORMS else 0).tolist()
        return norms[: min(count, NORMS)]

    def _file(self, step: _Step) -> Path:
        return self._run_dir / "bad-steps" / f"step-{step.number:08d}.json"

    def _write(self, steps: list[_Step], figures: list[list[float]], bad: list[int]) -> None:
        """One file for each, with the loss of each micro-batch of each rank."""
        scale = self._ranks.world_size
        mine = {number: self._losses[number].tolist() for number in bad}
        of_ranks = self._ranks.gather(mine)
        if not self._ranks.is_main:
            return
        for number in bad:
            step, (loss, norm, _) = steps[number], figures[number]
            before = [path for path in list_checkpoints(self._run_dir / "checkpoints") if _step_of(path) < step.number]
            content = {
                "step": step.number,
                "first_window": step.first_window,
                "last_window": step.first_window + step.num_windows - 1,
                "loss": _json(loss),
                "gradient_norm": _json(norm),
                "loss_by_rank_and_micro_batch": [[_json(v / scale) for v in losses[number]] for losses in of_ranks],
                "skipped": self._policy.on_bad_step == "skip",
                "start_from": str(before[-1].relative_to(self._run_dir)) if before else "the initial weights",
                **self._facts,
            }
            self._file(step).parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file(step), content)


def update_unless(optimizer: Optimizers, bad: "Bool[Tensor, '']") -> None:
    """A step of the optimisers that changes no weight and no moment where `bad` is true. Nothing waits for the device.

    Fused AdamW and our Muon look at the flag themselves.
    """
    for part in optimizer.parts:
        part.found_inf = bad.float()  # type: ignore[attr-defined]
        part.step()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
