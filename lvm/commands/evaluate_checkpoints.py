"""Evaluate the checkpoints of a run: lvm evaluate-checkpoints RUN [--suites held_out ...] [--steps N ...] [--follow]

All that are kept and have no result yet, oldest first; results are joined into the run's metrics by step, and lie in
RUN/evaluations. Suites: held_out, the loss on windows of what the run's plan holds out; all others are those of
`lvm evaluate`. Options that are not given are those of the run's config, `evaluation`.
--follow goes on with new checkpoints until the run ends; --submit leaves the work to jobs of Slurm (evaluation.launcher
=local of the run: to processes).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lvm.cluster import evaluation_jobs as jobs
from lvm.cluster.evaluation_jobs import EvaluationConfig
from lvm.cluster.runs import open_run, state_of
from lvm.commands import evaluate
from lvm.commands._suites import figures_of
from lvm.commands.train import fill_world_store
from lvm.data import held_out_plan, open_plan
from lvm.runtime import UserError, build, is_user_error, read_json
from lvm.runtime.distributed import Distributed
from lvm.training import TrainerConfig, model_of_run
from lvm.training.loop import compute_dtype
from lvm.training.parallel import ParallelConfig, loss_on_mesh
from lvm.training.validation import Validation
from tokenizer import pretrained_names

POLL_SECONDS = 5.0
ENDED = ("finished", "stopped", "cancelled", "failed", "interrupted", "new")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--suites", nargs="+", metavar="SUITE", help=" ".join(jobs.SUITES))
    parser.add_argument("--steps", nargs="+", type=int, metavar="N", help="of these checkpoints alone")
    parser.add_argument("--windows", type=int, help="of held_out")
    parser.add_argument("--targets", type=int, help="queries a task, of all but held_out")
    parser.add_argument("--follow", action="store_true", help="and those to come, until the run ends")
    parser.add_argument("--submit", action="store_true", help="as jobs, one a checkpoint")
    parser.add_argument("--in-turn", action="store_true", help="not while another evaluation of this run works")
    arguments = parser.parse_args(argv)
    open_run(arguments.run)  # or it is none
    run_config = read_json(arguments.run / "config.json")
    config = evaluation_config(run_config, arguments)
    check_steps(arguments)
    begun, code = set[int](), 0
    while True:
        ended = not arguments.follow or state_of(*open_run(arguments.run))[0] in ENDED
        for step, checkpoint in to_do(arguments.run, config, arguments.steps, arguments.submit).items():
            if step in begun:
                continue
            begun.add(step)
            try:
                if arguments.submit:
                    print(f"step {step}: {jobs.submit_evaluation(arguments.run, checkpoint, config)}", flush=True)
                else:
                    failed = evaluate_checkpoint(arguments.run, checkpoint, run_config, config, arguments.in_turn)
                    code = max(code, failed)
            except Exception as error:
                if not is_user_error(error):
                    raise
                code = 2
                print(f"error: step {step}: {error}", file=sys.stderr, flush=True)
        if ended:
            return code
        time.sleep(POLL_SECONDS)


def evaluation_config(run_config: dict[str, Any], arguments: argparse.Namespace) -> EvaluationConfig:
    """The run's, with what the command says instead."""
    config = build(EvaluationConfig, run_config.get("evaluation") or {}, "evaluation")
    given = {name: getattr(arguments, name) for name in ("windows", "targets") if getattr(arguments, name) is not None}
    if arguments.suites:
        given["suites"] = tuple(arguments.suites)
    if arguments.submit:
        if given:
            raise UserError("--submit evaluates as the run's config says; leave --suites, --windows and --targets out")
        given["launcher"] = "local" if config.launcher == "local" else "slurm"
    return replace(config, **given)


def check_steps(arguments: argparse.Namespace) -> None:
    known = jobs.checkpoints_of(arguments.run)
    for step in arguments.steps or ():
        if step not in known and not jobs.results_of(arguments.run, step):
            kept = ", ".join(map(str, known)) or "none"
            raise UserError(f"{arguments.run} has no checkpoint of step {step}; kept: {kept}")
    if not known and not arguments.follow and not arguments.steps:
        raise UserError(f"{arguments.run} has no checkpoint; train it first")


def to_do(run: Path, config: EvaluationConfig, steps: Sequence[int] | None, submit: bool) -> dict[int, Path]:
    """Checkpoints that lack a result of some suite, and that no job is about to evaluate if it is to be one."""
    known = jobs.checkpoints_of(run)
    wanted = {step: path for step, path in known.items() if steps is None or step in steps}
    missing = {step: path for step, path in wanted.items() if set(config.suites) - set(jobs.results_of(run, step))}
    at_work = jobs.on_their_way(run) if submit and missing and config.launcher == "slurm" else set()
    return {step: path for step, path in missing.items() if step not in at_work}


def evaluate_checkpoint(
    run: Path, checkpoint: Path, run_config: dict[str, Any], config: EvaluationConfig, in_turn: bool
) -> int:
    """The highest exit code of its suites."""
    step, code = jobs.step_of(checkpoint), 0
    with jobs.alone_with(run, step, in_turn):
        suites = [suite for suite in config.suites if suite not in jobs.results_of(run, step)]
        if not suites:  # another process was faster
            return code
        others = jobs.is_held(run, step)  # for an evaluation by the run's own suites, which this one need not be
        held = jobs.hold(run, checkpoint)
        for suite in suites:
            began = time.monotonic()
            if suite == "held_out":
                figures = held_out_loss(held, run_config, config.windows)
            else:
                out = run / jobs.FOLDER / f"{held.name}-{suite}"
                figures, failed = suite_figures(held, run_config, config, suite, out)
                code = max(code, failed)
            jobs.write_result(run, step, suite, figures)
            said = ", ".join(f"{key} {value:.4f}" for key, value in figures.items() if isinstance(value, float))
            print(f"step {step}: {suite} {said} ({time.monotonic() - began:.1f} s)", flush=True)
        own = build(EvaluationConfig, run_config.get("evaluation") or {}, "evaluation").suites
        if not others or not set(own) - set(jobs.results_of(run, step)):
            jobs.let_go(run, step)
    return code


def held_out_loss(checkpoint: Path, run_config: dict[str, Any], num_windows: int) -> dict[str, Any]:
    """`loss` and `loss_by_source` in nats a target, as the training's own validation on as many windows."""
    trainer = build(TrainerConfig, run_config["trainer"], "trainer")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held_out = held_out_plan(open_plan(fill_world_store(run_config, Distributed())))
    model = model_of_run(checkpoint)
    dtype = compute_dtype(trainer.precision, device)
    loss_of = loss_on_mesh(model, device, None, dtype, trainer.document_mask, False, trainer.loss_on, ParallelConfig())
    size = min(trainer.micro_batch_size or trainer.batch_size, num_windows)
    validation = Validation(held_out, num_windows, size, 0, 1, model, loss_of, trainer.loss_on, device)()
    return {"loss": validation["validation_loss"], "loss_by_source": validation["validation_loss_by_source"]}


def suite_figures(
    checkpoint: Path, run_config: dict[str, Any], config: EvaluationConfig, suite: str, out: Path
) -> tuple[dict[str, Any], int]:
    """Perplexities by task and number of pairs, and scores; the exit code. The whole report is in `out`."""
    options = {
        "--tokenizer": run_config.get("vqgan") or pretrained_names()[0],
        "--suite": suite,
        "--out": out,
        "--targets": config.targets,
        "--clips": config.clips if suite == "demo" else None,
        "--data": config.data,
    }
    given = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
    code = evaluate.main([str(checkpoint), *given])
    report = read_json(out / "report.json")
    if suite == "demo":
        rows = report["tasks"] | ({"frames": report["frames"]} if "frames" in report else {})
        return {name: {"perplexity": row["perplexity"], "score": row["model"]} for name, row in rows.items()}, code
    return figures_of(report), code
