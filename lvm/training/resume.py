"""What survives a restart: `TrainState`, the tensors, and the identity that a resumed run must share.

On resume only what does not change the weights may differ (max_steps where the schedule does not depend on it,
cadences, logger, devices, micro-batch), and how the learning rate falls if it has not begun to. Anything else is
refused, and the difference shown.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvm.data import Plan
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError, build
from lvm.runtime.checkpoint import load_checkpoint, newest_checkpoint, read_state, verify_checkpoint
from lvm.runtime.configs import differences, shown
from lvm.training.optim import OptimConfig, Optimizers, only_the_fall_differs, progress


@dataclass(frozen=True)
class TrainState:
    """All that must survive a restart beside weights and moments. Noise is keyed, so there is no generator here."""

    step: int = 0  # finished optimiser steps
    tokens: int = 0  # targets trained on, PAD left out; those of skipped steps included
    skipped_steps: int = 0  # bad ones, whose update was left out
    next_window: int = 0  # the next step reads from here
    seconds: float = 0.0  # spent in the loop, over all attempts
    num_threads: int = 0  # of torch on the CPU: other bits with another number
    loss_sums: list[list[float]] = field(
        default_factory=list
    )  # [source + 1] -> (sum of nll, targets) since the last log
    gradient_norms: list[float] = field(default_factory=list)  # the last ones, where spikes are looked for


def run_tensors(model: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    """Weights and moments by name, sharded where the model is."""
    tensors: dict[str, Tensor] = {}
    state = optimizer.state
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in state[parameter].items():
            if key != "step":  # follows from TrainState
                tensors[f"optim.{key}.{name}"] = value
    return tensors


def restore(
    path: Path,
    model: nn.Module,
    optimizer: Optimizers,
    identity: Mapping[str, Any],
    plan: Plan,
    new_plan: bool,
) -> TrainState:
    """Read a checkpoint in place. Raises `UserError`, showing what differs, for a checkpoint of another run."""
    saved = read_state(path)
    saved["identity"]["trainer"].setdefault("loss_on", "all")  # what it was before there was a choice
    saved["identity"].setdefault("init_from", None)
    saved["identity"].setdefault("codebook_start", identity["codebook_start"])  # these two were not written down
    saved["identity"]["trainer"].setdefault("spike_factor", identity["trainer"]["spike_factor"])
    saved["identity"]["trainer"].setdefault("precision", identity["trainer"]["precision"])  # was not written down
    for group, defaults in (("model", LVMConfig()), ("optim", OptimConfig())):
        saved["identity"][group] = asdict(defaults) | saved["identity"][group]  # as well
    state = TrainState(**saved["train"])
    before, now = (build(OptimConfig, side["optim"], "optim") for side in (saved["identity"], identity))
    if only_the_fall_differs(before, now, progress(before, state.step, state.tokens, 0)[0]):
        saved["identity"]["optim"] = identity["optim"]
    if lines := differences(saved["identity"], identity):
        raise UserError(f"{path} was trained with other settings: {shown(lines)}; set them back or use another run_dir")
    if saved["plan"]["fingerprint"] != plan.fingerprint:
        if not new_plan:
            lines = differences(saved["plan"]["facts"], plan.facts)
            raise UserError(
                f"{path} was trained on another plan: {shown(lines)}; set it back, or data.new_plan=true starts the "
                "new one at window 0 and keeps step and tokens"
            )
        state = replace(state, next_window=0, loss_sums=[])
    load_checkpoint(path, run_tensors(model, optimizer))
    for kept in optimizer.state.values():
        if "step" in kept:
            kept["step"].fill_(state.step - state.skipped_steps)
    return state


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the newest complete one of a run folder. Raises `UserError`."""
    if (path / "manifest.json").is_file():
        verify_checkpoint(path)
        return path
    found = newest_checkpoint(path / "checkpoints")
    if found is None:
        raise UserError(f"{path} holds no complete checkpoint; give a run folder or one of its checkpoints/step-*")
    return found


def config_of_run(checkpoint: Path) -> LVMConfig:
    return build(LVMConfig, read_state(checkpoint)["identity"]["model"], str(checkpoint))


def model_of_run(path: Path) -> LVM:
    """The model of a run's newest checkpoint, or of this one, on the CPU in float32. Raises `UserError`."""
    checkpoint = find_checkpoint(Path(path))
    config = config_of_run(checkpoint)
    with torch.device("meta"):
        model = LVM(config)
    model = model.to_empty(device="cpu")
    if config.tie_embeddings:  # to_empty makes two of the one
        model.head.weight = model.embed.weight
    load_checkpoint(checkpoint, {f"model.{name}": p for name, p in model.named_parameters()}, prefix="model.")
    return model.eval()


def saved_state(state: TrainState, identity: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    described = {"facts": plan.facts, "fingerprint": plan.fingerprint}
    return {"train": asdict(state), "identity": dict(identity), "plan": described}
