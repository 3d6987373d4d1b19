"""Train a model; the arguments are overrides of configs/train.yaml, as for train.py.

The world's store is built if it is missing. The same command again continues the run: its folder is `run_dir`, or a
name made of the experiment and the overrides, never of the time.
"""

import hashlib
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lvm.cluster.evaluation_jobs import EvaluationConfig, evaluations
from lvm.cluster.self_test import is_launched, self_test
from lvm.data import Plan, TokenPlan, held_out_plan, open_plan
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError, build, read_json
from lvm.runtime.config_files import load_config
from lvm.runtime.distributed import Distributed, lost_peers_named, meeting
from lvm.runtime.rendezvous import first_process, open_fabric
from lvm.runtime.requeue import come_back, count_restart, newest_step, number_of_restart
from lvm.runtime.signals import StopFlag
from lvm.training import Answer, OptimConfig, RunOptions, TrainerConfig, TrainResult, TrainState, train
from lvm.training.outcome import FILE as OUTCOME_FILE

# Overrides that may change from call to call of one run.
_NOT_IN_NAME = re.compile(
    r"(run_dir|experiment|logger|evaluation\.\w+|"
    r"trainer\.(max_steps|\w+_every_steps|loader_workers|devices|num_nodes))="
)


def run_name(overrides: Sequence[str]) -> str:
    """A folder name for a command without run_dir: demo, demo-seed=1, or ending in a hash if that would be long."""
    experiment = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "train")
    rest = sorted(o for o in overrides if not _NOT_IN_NAME.match(o))
    name = "-".join([experiment, *(re.sub(r"[^\w.=+-]", "_", o) for o in rest)])
    digest = hashlib.sha256("\n".join([experiment, *rest]).encode()).hexdigest()[:8]
    return name if len(name) <= 80 and not re.search(r"[^\w.=+-]", "".join(rest)) else f"{name[:70]}-{digest}"


def fill_world_store(config: dict[str, Any], ranks: Distributed) -> dict[str, Any]:
    """The data config, with the world's store where it names none; rank 0 builds it while the others wait."""
    data = {key: value for key, value in config["data"].items() if key != "new_plan"}
    world = data.get("sources", {}).get("world")
    if world is None or world.get("store"):
        return data
    problem, path = None, None
    if ranks.is_main:
        try:
            from lvm.store.ensure import ensure_world_store
            from tokenizer import VQGAN, pretrained_names

            vqgan = VQGAN.from_pretrained(config["vqgan"] or pretrained_names()[0])
            path = str(ensure_world_store(config["world"], vqgan))
        except Exception as error:
            problem = error
    ranks.together(problem)
    return data | {"sources": data["sources"] | {"world": world | {"store": ranks.broadcast(path)}}}


def tokenizer_of(name: str | None, fingerprint: str, who: str) -> Any:
    """The tokenizer that the stores were made with. Raises `UserError` for another one, saying `who` needs it."""
    from tokenizer import VQGAN, pretrained_names

    name = name or pretrained_names()[0]
    vqgan = VQGAN.from_pretrained(name)
    if fingerprint not in ("", vqgan.fingerprint):
        raise UserError(
            f"{who} needs the tokenizer of the stores, {fingerprint[:12]}; {name} is {vqgan.fingerprint[:12]}; "
            "pass tokenizer=NAME_OR_FOLDER"
        )
    return vqgan


def new_model(config: dict[str, Any], plan: Plan, empty: bool = False) -> LVM:
    """The model as a run of this config begins; with `empty` on the meta device, for `train` to fill once sharded."""
    fingerprint = plan.tokenizer_fingerprint
    model_config = replace(build(LVMConfig, config["model"], "model"), tokenizer_fingerprint=fingerprint)
    if empty and not config["codebook_start"]:
        with torch.device("meta"):
            return LVM(model_config)
    model = LVM(model_config, config["seed"])
    if config["codebook_start"]:
        codebook = tokenizer_of(config["vqgan"], fingerprint, "codebook_start=true").quantize.embedding.weight
        model.start_from_codebook(codebook.detach(), config["seed"])
    return model


def evaluation(
    config: dict[str, Any], trainer: TrainerConfig, model: LVMConfig, plan: Plan, run_dir: Path
) -> tuple[TokenPlan | None, Answer | None]:
    """What a run validates on and what answers its prompts, as far as its trainer asks for them."""
    if not trainer.validate_every_steps and not trainer.answer_every_steps:
        return None, None
    held_out = held_out_plan(plan)
    if not trainer.answer_every_steps:
        return held_out, None
    from lvm.commands._answers import HeldOutAnswers
    from lvm.commands._suites import LiveSuites

    fingerprint = plan.tokenizer_fingerprint
    tokenizer = tokenizer_of(config["vqgan"], fingerprint, "trainer.answer_every_steps")
    room = model.pictures_per_window(plan.tokens_per_picture)
    painted = HeldOutAnswers(held_out, tokenizer, run_dir / "answers", room)
    jobs = evaluation_jobs(config, trainer)
    if not jobs.live:
        return held_out, painted
    suites = LiveSuites(jobs.live, jobs.live_targets, jobs.data, config, tokenizer, room)
    return held_out, lambda model, step: {**painted(model, step), **suites(model, step)}


def evaluation_jobs(config: dict[str, Any], trainer: TrainerConfig) -> EvaluationConfig:
    """What is evaluated beside the training. Raises `UserError`."""
    jobs = build(EvaluationConfig, config["evaluation"], "evaluation")
    jobs.check_cadence(trainer.save_every_steps)
    if jobs.live and not trainer.answer_every_steps:
        raise UserError("evaluation.live is asked with the prompts of a run; set trainer.answer_every_steps too")
    return jobs


def finished_before(run_dir: Path, max_steps: int) -> TrainResult | None:
    """What a restarted job or a later link of a chain finds finished: nothing has to be loaded to say so."""
    outcome = run_dir / OUTCOME_FILE
    if not number_of_restart() or not outcome.is_file():
        return None
    facts = read_json(outcome)
    if not facts["finished"] or facts["max_steps"] < max_steps:
        return None
    return TrainResult(TrainState(step=facts["step"], tokens=facts["tokens"], seconds=facts["seconds"]), True)


def train_config(overrides: Sequence[str]) -> TrainResult:
    """Compose configs/train.yaml with `overrides` and train; every rank of a launched job calls it alike."""
    # `tokenizer` is a folder of configs, whose files Hydra would look for.
    composed = [re.sub(r"^tokenizer=", "vqgan=", override) for override in overrides]
    config = load_config("train", composed)
    trainer = build(TrainerConfig, config["trainer"], "trainer")
    optim = build(OptimConfig, config["optim"], "optim")
    build(LVMConfig, config["model"], "model")  # a mistake is said before any store is built
    evaluation_jobs(config, trainer)
    run_dir = Path(config["run_dir"] or Path("runs") / run_name(overrides))
    result = finished_before(run_dir, trainer.max_steps)
    if result is not None:
        if first_process():
            print(f"finished at step {result.state.step}: {run_dir}")
        return result
    count_restart(run_dir, newest_step(run_dir), first_process())
    with StopFlag((signal.SIGUSR2,)):  # the warning before the time limit may come before the loop
        return launch_and_train(config, trainer, optim, run_dir)


def launch_and_train(config: dict[str, Any], trainer: TrainerConfig, optim: OptimConfig, run_dir: Path) -> TrainResult:
    from lightning.fabric.strategies.launchers import subprocess_script

    strategy = "auto" if trainer.devices == trainer.num_nodes == 1 else "ddp"  # ddp: Fabric opens the process group
    fabric = open_fabric(trainer.accelerator, strategy, trainer.devices, trainer.num_nodes)
    # Lightning would kill rank 0 without a word when another rank ends; `lost_peers_named` says it instead.
    subprocess_script._launch_process_observer = lambda child_processes: None
    with meeting(trainer.start_timeout_seconds):
        fabric.launch()
        ranks = Distributed()
    try:
        with lost_peers_named(ranks):
            if trainer.self_test == "auto" and is_launched(ranks):
                checkpoint_bytes = (
                    12 * build(LVMConfig, config["model"], "model").num_params if trainer.save_every_steps else 0
                )
                self_test(ranks, fabric.device, run_dir, config, checkpoint_bytes)
            plan = open_plan(fill_world_store(config, ranks))
            model = new_model(config, plan, empty=True)
            start, trunk = (Path(config[key]) if config[key] else None for key in ("init_from", "branch_from"))
            options = {
                "init_from": start,
                "codebook_start": config["codebook_start"],
                "branch_from": trunk,
                "new_plan": config["data"]["new_plan"],
                "config": config,
            }
            run = RunOptions(run_dir, config["seed"], **options, **config["logger"])
            held_out, answer = evaluation(config, trainer, model.config, plan, run_dir)
            on_checkpoint = evaluations(run_dir, evaluation_jobs(config, trainer))
            result = train(trainer, optim, plan, model, run, fabric.device, held_out, answer, on_checkpoint)
            if ranks.is_main:
                print(f"{'finished' if result.finished else 'stopped'} at step {result.state.step}: {run_dir}")
            if not result.finished:
                come_back(run_dir, result.signal, result.state.step, ranks)
            return result
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: Sequence[str]) -> int:
    """0 for a finished run; one stopped by a signal is saved and exits with 128 + its number."""
    if any(a in ("-h", "--help") for a in argv):
        print(__doc__)
        return 0
    result = train_config(list(argv))
    if result.finished:
        return 0
    return 128 + (result.signal or signal.SIGTERM)
