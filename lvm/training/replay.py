"""A step of a run once more, on one rank: which of its windows spoils it, and what stands there.

The loop itself leads there: `train` in a folder of its own, from the newest checkpoint before the step (or from the
initial weights), without saving. Then each window of the step gets a loss and a gradient of its own.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lvm.data import Plan
from lvm.data.loader import to_batch
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints, read_state, verify_checkpoint
from lvm.runtime.distributed import Distributed
from lvm.training.loop import RunOptions, TrainerConfig, compute_dtype, num_targets, run_lengths, train, use_compile
from lvm.training.optim import OptimConfig, batch_size_at
from lvm.training.parallel import counted, make_loss
from lvm.training.resume import TrainState
from lvm.training.start import find_start, load_start

MOST_NAMED = 3  # windows, where all are finite
SAME_SPIKE = 0.1  # of its norm; another machine, or ranks that add in another order, come this near


@dataclass(frozen=True)
class WindowLoss:
    """What one window of the step comes to."""

    window: int
    loss: float  # nats a target
    gradient_norm: float
    first_bad_token: int | None  # place of the first token after which a target is not finite

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class Replay:
    step: int
    start_from: str  # the checkpoint, or "the initial weights"
    loss: float  # of the whole step
    gradient_norm: float  # of the whole step
    spike: float | None  # that norm as it was recorded, where the step was finite
    windows: list[WindowLoss]
    blamed: list[dict[str, Any]]  # the windows that are not finite, else those of the largest gradient, explained

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and all(window.finite for window in self.windows)

    @property
    def reproduced(self) -> bool:
        """What spoiled the step is seen here too: a figure that is not finite, or the norm of a recorded spike."""
        if self.spike is None or not self.finite:
            return not self.finite
        return abs(self.gradient_norm - self.spike) <= SAME_SPIKE * self.spike

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"reproduced": self.reproduced}


def replay(
    config: TrainerConfig,
    optim: OptimConfig,
    plan: Plan,
    model: LVM,
    run_dir: Path,
    step: int,
    record: Mapping[str, Any],
    seed: int = 0,
    device: torch.device | str = "cpu",
    init_from: Path | None = None,
) -> Replay:
    """Make the steps before `step` again and look at its windows one by one; `model` is that of the run's start.

    `record` is the step's file in RUN/bad-steps, or empty. Raises `UserError` for another plan than the run's.
    """
    device = torch.device(device)
    if record and record["plan"] != plan.fingerprint:
        raise UserError(f"the data of {run_dir} changed since step {step}: the plan is another; set the stores back")
    start = newest_before(run_dir, step)
    state = steps_before(config, optim, plan, model, start, step, record, seed, device, init_from)
    first = int(record["first_window"]) if record else state.next_window
    last = (
        int(record["last_window"])
        if record
        else first + batch_size_at(optim.batch_warmup, config.batch_size, step - 1) - 1
    )
    dtype = compute_dtype(config.precision, device)
    loss_of = make_loss(model, dtype, config.document_mask, False, config.loss_on)
    numbers = range(first, last + 1)
    of_targets = [num_targets(plan, number, 1, config.loss_on) for number in numbers]
    gradient = [torch.zeros_like(parameter) for parameter in model.parameters()]
    windows = []
    for number, targets in zip(numbers, of_targets):
        windows.append(look_at(model, plan, number, loss_of, config, device))
        for whole, parameter in zip(gradient, model.parameters()):
            if parameter.grad is not None:
                whole.add_(parameter.grad, alpha=targets / max(1, sum(of_targets)))
        model.zero_grad()
    loss = sum(w.loss * n for w, n in zip(windows, of_targets) if n) / max(1, sum(of_targets))
    guilty = [window for window in windows if not window.finite]
    named = guilty or sorted(windows, key=lambda window: -window.gradient_norm)[:MOST_NAMED]
    typical = statistics.median(window.gradient_norm for window in windows)
    where = str(start) if start else "the initial weights"
    norm = float(torch.nn.utils.get_total_norm(gradient))
    recorded = [record.get(key) for key in ("loss", "gradient_norm")]
    spike = float(record["gradient_norm"]) if all(isinstance(value, float | int) for value in recorded) else None
    blamed = [explained(plan, window, typical) for window in named]
    return Replay(step, where, float(loss), norm, spike, windows, blamed)


def newest_before(run_dir: Path, step: int) -> Path | None:
    """The newest checkpoint from which `step` follows; None: the run's start. Raises `UserError` if damaged."""
    before = [path for path in list_checkpoints(run_dir / "checkpoints") if int(path.name.split("-")[1]) < step]
    if before:
        verify_checkpoint(before[-1])
    return before[-1] if before else None


def steps_before(
    config: TrainerConfig,
    optim: OptimConfig,
    plan: Plan,
    model: LVM,
    start: Path | None,
    step: int,
    record: Mapping[str, Any],
    seed: int,
    device: torch.device,
    init_from: Path | None,
) -> TrainState:
    """Train `model` up to the step before `step`, in a folder that is gone afterwards."""
    _, optim = run_lengths(config, optim, use_compile(config.compile))
    changed = replace(
        config,
        max_steps=max(1, step - 1),
        share_without_compile=1.0,
        micro_batch_size=record.get("micro_batch_size", config.micro_batch_size),
        parallel=replace(config.parallel, shard="auto", replicate=1),
        save_every_steps=0,
        validate_every_steps=0,
        answer_every_steps=0,
        profile_steps=None,
        memory_snapshot=False,
        num_threads=read_state(start)["train"]["num_threads"] if start else config.num_threads,
    )
    if step == 1:
        model.to(device).train()
        if (weights := find_start(init_from, Distributed())) is not None:
            load_start(weights, model)
        return TrainState()
    with TemporaryDirectory(prefix="replay-") as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        if start is not None:
            (checkpoints / start.name).symlink_to(start.resolve(), target_is_directory=True)
        options = RunOptions(Path(folder), seed, init_from=init_from)
        return train(changed, optim, plan, model, options, device).state


def look_at(
    model: LVM, plan: Plan, number: int, loss_of: Any, config: TrainerConfig, device: torch.device
) -> WindowLoss:
    """Its gradient stays in the model."""
    batch = to_batch(plan.windows(number, 1))
    tokens, role = batch["tokens"].to(device), batch["role"].to(device)
    counts = counted(role, config.loss_on)
    targets = counts.sum().clamp(min=1).float()
    loss, nll = loss_of(tokens, role, targets)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    bad = (~nll[0].isfinite()).nonzero()
    mean = nll.sum() / targets
    return WindowLoss(number, float(mean), float(norm), int(bad[0]) if len(bad) else None)


def explained(plan: Plan, found: WindowLoss, typical_norm: float) -> dict[str, Any]:
    """The window with the sentences it holds; where a token is known to be the first bad one, its sentence alone."""
    sentences = plan.explain(found.window)
    if found.first_bad_token is not None:
        sentences = [s for s in sentences if s["start"] <= found.first_bad_token < s["end"]] or sentences
    return {
        **asdict(found),
        "times_the_median_norm": found.gradient_norm / typical_norm if typical_norm else math.nan,
        "sources": sorted({sentence["source"] for sentence in sentences}),
        "entries": sorted({sentence["entry"] for sentence in sentences}),
        "items": list(dict.fromkeys(picture["id"] for s in sentences for picture in s["pictures"])),
        "sentences": sentences,
    }
