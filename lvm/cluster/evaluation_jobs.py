"""Evaluations of a run's checkpoints, as jobs of their own while it trains or after it.

    evaluation.every_steps=2000         of a training: each such checkpoint is evaluated by another job
    lvm evaluate-checkpoints RUN        here and now, all that are kept and have no result yet

    RUN/evaluations/step-00002000.json              {"step", "time", "results": {suite: figures}}, joined into the run's
                                                    metrics by `read_metrics`, and shown by the loggers
                    checkpoints/step-00002000/      what waits for its evaluation: hard links, so that the run may
                                                    delete its own meanwhile; removed when the result is there
                    jobs.jsonl                      what was submitted

Rank 0 links a checkpoint when it is complete and submits from a thread, which may wait for Slurm: neither the loop nor
the next save does. What fails here is a line in the run's log. In a Slurm job the evaluation is one too, elsewhere a
process of low priority on this machine's CPU.
"""

import json
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lvm.cluster import slurm
from lvm.cluster.job_script import python_words
from lvm.cluster.runs import read_mapping, read_rows
from lvm.evaluation.suites import SUITES as EVALUATIONS
from lvm.runtime import UserError, atomic_write, write_json
from lvm.runtime.checkpoint import linked, list_checkpoints
from lvm.runtime.files import locked

SUITES = ("held_out", *EVALUATIONS, "demo")
FOLDER = "evaluations"
# What a job would take for its own: another job's, and a rank's.
_OF_THIS_JOB = ("SLURM_", "PMI", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "LVM_CHAIN_LINK")
_ABOUT_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class EvaluationConfig:
    every_steps: int = 0  # checkpoints of these steps are evaluated, a multiple of trainer.save_every_steps; 0: none
    suites: tuple[str, ...] = ("held_out",)  # held_out: the loss on held-out windows; those of `lvm evaluate`
    live: tuple[str, ...] = ()  # suites of `lvm evaluate` asked in the training itself, at trainer.answer_every_steps
    live_targets: int = 8  # queries a task, of live
    windows: int = 256  # of held_out
    targets: int = 200  # queries a task, of all but held_out
    clips: int = 128  # of demo on the world; 0: no frames
    data: str | None = None  # of all but held_out: a folder of pictures, YAML of a source; null: the world
    launcher: Literal["auto", "slurm", "local"] = "auto"  # auto: slurm in a job of Slurm, else local
    most_waiting: int = 8  # checkpoints kept for evaluations that have not ended; beyond them one is left out
    time: str = "1:00:00"  # limit of a job
    gpus: int = 1  # of a job; 0: on the CPU
    cpus: int = 4  # of a job
    partition: str | None = None  # null, here and below: as the training was launched
    account: str | None = None
    qos: str | None = None
    sbatch: tuple[str, ...] = ()  # further options, as --exclusive

    def __post_init__(self) -> None:
        for name in ("every_steps", "clips", "gpus"):
            if getattr(self, name) < 0:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; use 0 or more")
        for name in ("windows", "targets", "live_targets", "most_waiting", "cpus"):
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; use 1 or more")
        if not self.suites:
            raise UserError(f"evaluation.suites is empty; name some of {', '.join(SUITES)}")
        for name, known in (("suites", SUITES), ("live", EVALUATIONS)):
            for suite in getattr(self, name):
                if suite not in known:
                    raise UserError(f"evaluation.{name} has {suite!r}; known: {', '.join(known)}")

    def check_cadence(self, save_every_steps: int) -> None:
        """Raise `UserError` where checkpoints that are to be evaluated are never saved."""
        if self.every_steps and (not save_every_steps or self.every_steps % save_every_steps):
            raise UserError(
                f"evaluation.every_steps {self.every_steps} is no multiple of trainer.save_every_steps "
                f"{save_every_steps}; only what is saved can be evaluated"
            )


# Files of a run.


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def result_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}.json"


def results_of(run: Path, step: int) -> dict[str, Any]:
    """Figures by suite; empty where there are none yet."""
    results = read_mapping(result_path(run, step)).get("results")
    return results if isinstance(results, dict) else {}


def write_result(run: Path, step: int, suite: str, figures: Mapping[str, Any]) -> None:
    results = results_of(run, step) | {suite: dict(figures)}
    write_json(result_path(run, step), {"step": step, "time": round(time.time(), 3), "results": results})


def waiting(run: Path) -> list[Path]:
    """Checkpoints that are held for their evaluation, oldest first."""
    return list_checkpoints(run / FOLDER / "checkpoints")


def checkpoints_of(run: Path) -> dict[int, Path]:
    """By step: those of the run, and those held for an evaluation."""
    every = [*list_checkpoints(run / "checkpoints"), *waiting(run)]
    return {step_of(path): path for path in sorted(every, key=step_of)}


def hold(run: Path, checkpoint: Path) -> Path:
    """The checkpoint under `evaluations`, where no rule of the run deletes it."""
    held = _held(run, step_of(checkpoint))
    return held if held.is_dir() else linked(checkpoint, held.parent)


def is_held(run: Path, step: int) -> bool:
    return _held(run, step).is_dir()


def let_go(run: Path, step: int) -> None:
    shutil.rmtree(_held(run, step), ignore_errors=True)


def _held(run: Path, step: int) -> Path:
    return run / FOLDER / "checkpoints" / f"step-{step:08d}"


@contextmanager
def alone_with(run: Path, step: int, in_turn: bool = False) -> Iterator[None]:
    """One process evaluates a checkpoint; with `in_turn` it also waits for those of other steps."""
    (run / FOLDER).mkdir(exist_ok=True)
    with ExitStack() as stack:
        if in_turn:
            stack.enter_context(locked(run / FOLDER / ".turn.lock"))
        stack.enter_context(locked(run / FOLDER / f".step-{step:08d}.lock"))
        yield


# Jobs.


def submit_evaluation(run: Path, checkpoint: Path, config: EvaluationConfig) -> str:
    """Hold a checkpoint and start its evaluation elsewhere; what was started. Where that fails it is held no more."""
    step = step_of(checkpoint)
    hold(run, checkpoint)
    try:
        if runs_in_slurm(config):
            job = submit_job(run, step, config)
            started = {"step": step, "id": job}
        else:
            started = {"step": step, "pid": start_process(run, step).pid}
    except BaseException:
        let_go(run, step)
        raise
    with open(run / FOLDER / "jobs.jsonl", "a") as file:
        file.write(json.dumps(started | {"time": round(time.time(), 3)}) + "\n")
    return f"job {started['id']}" if "id" in started else f"process {started['pid']}"


def runs_in_slurm(config: EvaluationConfig) -> bool:
    return config.launcher == "slurm" or (config.launcher == "auto" and "SLURM_JOB_ID" in os.environ)


def command(run: Path, step: int, *options: str) -> list[str]:
    """The evaluation as a process: of the suites that the run's config names."""
    return [*python_words(), "-m", "lvm", "evaluate-checkpoints", str(run.resolve()), "--steps", str(step), *options]


def submit_job(run: Path, step: int, config: EvaluationConfig) -> str:
    script = run / FOLDER / "evaluate.sh"
    (run / "logs").mkdir(exist_ok=True)
    atomic_write(script, f'#!/bin/bash\nexec {shlex.join(command(run, step)[:-1])} "$1"\n')
    launched = read_mapping(run / "slurm" / "launch.json").get("launcher") or {}
    options = {
        "job-name": f"evaluate-{run.resolve().name}",
        "time": config.time,
        "cpus-per-task": config.cpus,
        "gpus-per-node": config.gpus or None,
        **{name: getattr(config, name) or launched.get(name) for name in ("partition", "account", "qos")},
        "output": run.resolve() / "logs" / f"evaluate-{step:08d}.log",
        "open-mode": "append",
        "chdir": Path.cwd(),
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    environment = outside_this_job(os.environ)
    return slurm.submit(script, "--requeue", *given, *config.sbatch, arguments=[str(step)], environment=environment)


def start_process(run: Path, step: int) -> "subprocess.Popen[bytes]":
    """On the CPU at low priority, and one after the other: training comes first."""
    (run / "logs").mkdir(exist_ok=True)
    with open(run / "logs" / f"evaluate-{step:08d}.log", "ab") as log:
        return subprocess.Popen(
            ["nice", "-n", "10", *command(run, step, "--in-turn")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=outside_this_job(os.environ) | {"CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C and the end of the training are not its own
        )


def outside_this_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what says which job and rank this process is."""
    return {
        key: value
        for key, value in environment.items()
        if key in _ABOUT_THE_CLUSTER or not key.startswith(_OF_THIS_JOB)
    }


def submitted_jobs(run: Path) -> dict[str, int]:
    """Steps by the id of their job, as submitted."""
    rows = read_rows(run / FOLDER / "jobs.jsonl")
    return {str(row["id"]): row["step"] for row in rows if row.get("id") and isinstance(row.get("step"), int)}


def on_their_way(run: Path) -> set[int]:
    """Steps whose job has not ended."""
    steps = submitted_jobs(run)
    known = slurm.jobs(list(steps)) if steps else {}
    return {steps[job.id] for job in known.values() if not job.ended}


def evaluations(
    run: Path, config: EvaluationConfig, say: Callable[[str], None] = print
) -> Callable[[Path], None] | None:
    """What a training calls with each complete checkpoint, or None where it asks for no evaluations. Never raises."""
    if not config.every_steps:
        return None

    def on_checkpoint(checkpoint: Path) -> None:
        step = step_of(checkpoint)
        if step % config.every_steps:
            return
        with said_instead_of_raised(step):
            if (held := len(waiting(run))) >= config.most_waiting:
                say(f"step {step} is not evaluated: {held} checkpoints wait for that (evaluation.most_waiting)")
            else:
                hold(run, checkpoint)
                # No daemon: the process does not end before the last one is submitted.
                threading.Thread(target=submit, args=(checkpoint,), name=f"evaluate-{checkpoint.name}").start()

    def submit(checkpoint: Path) -> None:
        step = step_of(checkpoint)
        with said_instead_of_raised(step):
            say(f"step {step} is evaluated by {submit_evaluation(run, checkpoint, config)}")

    @contextmanager
    def said_instead_of_raised(step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it is no reason to stop training
            said = " ".join(str(error).split())
            say(f"step {step} is not evaluated ({said}); lvm evaluate-checkpoints {run} does it while it is kept")

    return on_checkpoint
