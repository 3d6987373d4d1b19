"""The demo: one straight function from pictures to a report, by the same functions that the commands call.

The world's tokens are kept under $LVM_CACHE and training continues from its last checkpoint: a second run re-uses both.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvm.commands.train import train_config
from lvm.evaluation.prompts import source_prompts, world_clips, world_prompts
from lvm.evaluation.report import write_report
from lvm.evaluation.sheet import report_sheet
from lvm.evaluation.suite import Evaluation, evaluate_prompts
from lvm.evaluation.tasks import Task, tasks_of
from lvm.runtime import UserError, build
from lvm.runtime.config_files import load_config
from lvm.runtime.machine import compile_problem, git_commit, machine_description
from lvm.runtime.metrics import read_metrics
from lvm.sources import open_source
from lvm.sources.world import WorldConfig, WorldSource
from lvm.store import TokenStore, build_store
from lvm.store.ensure import ensure_world_store
from lvm.training import model_of_run
from lvm.world.annotate import LATENT_CHANNELS
from tokenizer import VQGAN, pretrained_names

NUM_TARGETS = 240  # of a task
NUM_CLIPS = 240
NUM_HELD_OUT_LATENT_TARGETS = 120
EVALUATION_SCENES = 4096  # of the world's test split, from which the prompts are drawn
VIEWS = 4  # draws of holes, noise and exposure for each of a user's pictures


class Stages:
    """Says what is being done, and remembers how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def run_demo(
    seed: int = 0,
    pictures: Path | None = None,
    out: Path | None = None,
    tokenizer: str | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Store -> training -> answers -> report in `out`. Returns the exit code; raises `UserError`.

    Ctrl-C leaves a run that the same call continues.
    """
    stage = Stages()
    vq = VQGAN.from_pretrained(tokenizer or pretrained_names()[0])
    if pictures is None:
        out = out or Path("runs") / ("demo" if seed == 0 else f"demo-seed-{seed}")
        config = load_config("train", ["experiment=demo", f"world.seed={seed}", *overrides])
        with stage("pictures to tokens"):
            store = ensure_world_store(config["world"], vq)
        changes = [f"data.sources.world.store={store}", f"world.seed={seed}"]
    else:
        source = open_source({"kind": "pictures", "path": str(pictures), "views": VIEWS})
        out = out or Path("runs") / f"demo-{pictures.resolve().name}"
        with stage("pictures to tokens"):
            opened = build_store(source, out / "store", vq, tokenizer=tokenizer or pretrained_names()[0])
        changes = folder_overrides(opened, out / "store")
    if tokenizer:
        changes.append(f"tokenizer={tokenizer}")
    changes += [f"seed={seed}", f"data.seed={seed}", *overrides]

    with stage("training"):
        result = train_config(["experiment=demo", f"run_dir={out / 'run'}", *changes])
    if not result.finished:
        print("stopped; the same command continues here")
        return 130
    model = model_of_run(out / "run")

    with stage("pictures for the prompts"):
        if pictures is None:
            sets, clips, unseen = world_evaluation(build(WorldConfig, without_kind(config["world"]), "world"), vq, seed)
        else:
            per_mille = load_config("train", ["experiment=demo", *changes])["data"]["held_out_per_mille"]
            sets, clips = source_prompts(source, vq, per_mille, NUM_TARGETS, seed)
            unseen = None
    with stage("answers and scores"):
        evaluation = evaluate_prompts(model, vq, sets, clips, seed=seed)
        report: dict[str, Any] = {
            "seconds": 0.0,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens_seen": result.state.tokens,
            **evaluation.report,
        }
        if unseen is not None:
            names = [task.name for task in unseen.tasks if {task.input, task.output} & set(LATENT_CHANNELS)]
            report["held_out_latents"] = evaluate_prompts(model, vq, unseen, None, names, seed, examples=0).report
    report |= {
        "seconds": round(sum(stage.seconds.values()), 1),
        "stages": stage.seconds,
        "training_seconds_all_attempts": result.state.seconds,
        "tokenizer": vq.fingerprint,
        "machine": machine_description(),
        "commit": git_commit(),
    }
    page = write_demo_report(out, report, evaluation, stage.seconds, pictures)
    print(f"\n{summary(report)}\n\nreport: {page}  (numbers: {page.with_suffix('.json')})")
    return 0


def world_evaluation(config: WorldConfig, vq: VQGAN, seed: int) -> tuple[Any, Any, Any]:
    """Prompts and clips of the test split, and prompts under the latents that training never draws."""
    test = WorldSource(replace(config, split="test", num_scenes=EVALUATION_SCENES, num_clips=NUM_CLIPS))
    prompts = world_prompts(test, vq, NUM_TARGETS, seed)
    clips = world_clips(test, vq, NUM_CLIPS, seed)
    unseen = world_prompts(test, vq, NUM_HELD_OUT_LATENT_TARGETS, seed + 1, tuple(test.held_out_latents))
    return prompts, clips, unseen


def without_kind(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "kind"}


def folder_overrides(store: TokenStore, path: Path) -> list[str]:
    """The mixture for a user's pictures: 70% pairs of every task the channels allow, 20% clips, 10% single pictures.

    Raises `UserError` where nothing of the folder fills a sentence.
    """
    changes = ["data=pictures", f"data.sources.pictures.store={path}"]
    held = [channel for channel in store.channels if store.has(channel).any()]
    tasks = [task for task in tasks_of(held) if enough(store, task)]
    for task in tasks:
        agree = "view" if {task.input, task.output} & {"masked", "noisy", "dark"} else "none"
        changes.append(
            f"+data.entries.{task.name}={{source:pictures,recipe:pairs,weight:{70 / len(tasks):.3f},"
            f"input:{task.input},output:{task.output},agree:{agree}}}"
        )
    longest = int(max(store.num_pictures))
    if longest >= 8:
        frames = min(16, longest)
        changes.append(f"+data.entries.clip={{source:pictures,recipe:video,weight:20,frames:{frames},strides:[1]}}")
    if not tasks and longest < 8:
        raise UserError(f"{path} holds {len(store)} items; at least 8 pictures, or a clip of 8 frames, fill a sentence")
    changes.append("+data.entries.single={source:pictures,recipe:single,weight:10}")
    return changes


def enough(store: TokenStore, task: Task, pairs: int = 8) -> bool:
    """Whether more items than a sentence needs have both channels (some are held out)."""
    both = store.has(task.input) & store.has(task.output) & (store.num_pictures == 1)
    return int(both.sum()) > 2 * pairs


def write_demo_report(
    out: Path, report: Mapping[str, Any], evaluation: Evaluation, seconds: Mapping[str, float], pictures: Path | None
) -> Path:
    """report.html, report.json and sheet.png in `out`."""
    notes = [
        f"{report['parameters']:,} parameters, {report['tokens_seen']:,} tokens seen.",
        f"Machine: {report['machine']}. Commit {report['commit']}.",
        "Perplexities are teacher-forced over the answer's tokens; answers are greedy.",
    ]
    problem = compile_problem()
    if problem:
        notes.append(f"Trained without torch.compile ({problem}), hence for a third of the steps.")
    title = "From pictures to a prompted answer" + (f": {pictures}" if pictures else "")
    page = write_report(
        out,
        report,
        evaluation.grids,
        metrics=read_metrics(out / "run"),
        timings=seconds,
        title=title,
        notes=notes,
    )
    report_sheet(out / "sheet.png", evaluation.grids)
    return page


def summary(report: Mapping[str, Any]) -> str:
    """A table for the terminal: a line for each task."""
    lines = [f"{'task':<14}{'0 pairs':>9}{'5 pairs':>9}{'wrong':>9}{'answer':>9}{'copies':>16}{'ceiling':>9}  metric"]
    for name, row in report["tasks"].items():
        perplexity = row["perplexity"]
        cells = [f"{perplexity.get(k, float('nan')):9.1f}" for k in ("0", "5", "wrong")]
        cells += [f"{row['model']:9.2f}", f"{row['copy_query']:8.2f}{row['copy_last_answer']:8.2f}"]
        lines.append(f"{name:<14}{''.join(cells)}{row['tokenizer_ceiling']:9.2f}  {row['metric']}")
    frames = report.get("frames")
    if frames:
        by_number = ", ".join(f"{k}: {p:.1f}" for k, p in frames["perplexity"].items())
        lines.append(f"next frame, perplexity by frames shown: {by_number}")
    return "\n".join(lines)
