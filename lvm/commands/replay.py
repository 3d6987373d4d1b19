"""Make a bad step of a run again, on one device, and name what is to blame: lvm replay RUN [--step 37]

Without --step the last one of RUN/bad-steps. It starts from the newest checkpoint before that step, reads the same
windows up to it, and then gives each window of the step a loss of its own. RUN is only read. The exit code is 0 where
it is seen again: a loss or gradient that is not finite, or the norm of a spike to a tenth. Else 1: something of the
other machine.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from lvm.commands.train import fill_world_store, new_model
from lvm.data import open_plan
from lvm.runtime import UserError, build, read_json, write_json
from lvm.runtime.distributed import Distributed
from lvm.training import OptimConfig, TrainerConfig
from lvm.training.replay import Replay, replay


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--step", type=int, help="as the metrics and the files in RUN/bad-steps count")
    parser.add_argument("--json", type=Path, help="write what was found, window by window")
    arguments = parser.parse_args(argv)
    found = replay_run(arguments.run, arguments.step)
    if arguments.json is not None:
        write_json(arguments.json, finite_or_text(found.plain()))
    print(report(found))
    return 0 if found.reproduced else 1


def replay_run(run_dir: Path, step: int | None) -> Replay:
    """The given step of a run, or its last bad one. Raises `UserError`."""
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} holds no config.json; give the folder of a run that train.py wrote")
    config = read_json(run_dir / "config.json")
    step, record = bad_step(run_dir, step)
    plan = open_plan(fill_world_store(config, Distributed()))
    trainer = build(TrainerConfig, config["trainer"], "trainer")
    optim = build(OptimConfig, config["optim"], "optim")
    wanted = "cuda" if torch.cuda.is_available() and trainer.accelerator != "cpu" else "cpu"
    model = new_model(config, plan)
    init_from = Path(config["init_from"]) if config.get("init_from") else None
    return replay(trainer, optim, plan, model, run_dir, step, record, config["seed"], wanted, init_from)


def bad_step(run_dir: Path, step: int | None) -> tuple[int, dict[str, Any]]:
    """The step and its file; without a file any step can be asked for by its number."""
    files = sorted((run_dir / "bad-steps").glob("step-*.json"))
    if step is None:
        if not files:
            raise UserError(f"{run_dir} has no bad steps; name any step with --step")
        step = int(files[-1].stem.removeprefix("step-"))
    if step < 1:
        raise UserError(f"--step is {step}; steps count from 1")
    file = run_dir / "bad-steps" / f"step-{step:08d}.json"
    return step, read_json(file) if file.is_file() else {}


def report(found: Replay) -> str:
    """For the terminal: the windows to blame, and what stands in them."""
    recorded = "" if found.spike is None else f" (recorded: {found.spike:.4g})"
    lines = [
        f"step {found.step} from {found.start_from}: loss {found.loss:.4g} on {len(found.windows)} windows, "
        f"norm of the gradient {found.gradient_norm:.4g}{recorded}"
    ]
    lines.append(
        "all of them finite here; those of the largest gradient:"
        if found.finite
        else f"{len(found.blamed)} of them not finite:"
    )
    for window in found.blamed:
        lines.append(
            f"  window {window['window']}: loss {window['loss']:.4g}, norm of its gradient "
            f"{window['gradient_norm']:.4g} ({window['times_the_median_norm']:.3g} times the median)"
        )
        if window["first_bad_token"] is not None:
            lines.append(f"    not finite after token {window['first_bad_token']}, and what follows it")
        for sentence in window["sentences"]:
            items = ", ".join(dict.fromkeys(picture["id"] for picture in sentence["pictures"]))
            lines.append(
                f"    tokens {sentence['start']}..{sentence['end'] - 1}: entry {sentence['entry']}, "
                f"source {sentence['source']}: {items}"
            )
    return "\n".join(lines)


def finite_or_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite_or_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_or_text(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
