"""The demo: one straight function from pictures to a report, by the same functions that the commands call.

The world's tokens are kept under $LVM_CACHE and training continues from its last checkpoint: a second run re-uses both.
"""

import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lvm.commands.train import train_config
from lvm.evaluation.prompts import source_prompts, world_clips, world_prompts
from lvm.evaluation.report import write_report
from lvm.evaluation.sheet import report_sheet
from lvm.evaluation.suite import Evaluation, evaluate_prompts
from lvm.evaluation.tasks import Task, tasks_of
from lvm.inference.prompter import check_pair
from lvm.model import LVMConfig
from lvm.runtime import UserError, build, read_json
from lvm.runtime.config_files import load_config
from lvm.runtime.hashing import held_out
from lvm.runtime.machine import compile_problem, git_commit, machine_description
from lvm.runtime.metrics import read_metrics
from lvm.runtime.page import number
from lvm.sources import Source, open_source
from lvm.sources.world import WorldConfig, WorldSource
from lvm.store import TokenStore, build_store
from lvm.store.ensure import ensure_world_store
from lvm.training import OptimConfig, TrainerConfig, model_of_run
from lvm.world.annotate import LATENT_CHANNELS
from tokenizer import VQGAN, pretrained_names

NUM_TARGETS = 200  # of a task
NUM_CLIPS = 200
NUM_HELD_OUT_LATENT_TARGETS = 60
EVALUATION_SCENES = 4096  # of the world's test split, from which the prompts are drawn
PHOTOS_TOKENIZER = "photos-48px-f8-1024"  # of a user's pictures: the first one shipped knows the world alone
VIEWS = 4  # draws of holes, noise and exposure for each of a user's pictures
PASSES = 2.0  # over the tokens of a user's pictures at most: a small folder is soon known by heart
MAX_BROKEN = 0.1  # share of a user's pictures that may be unreadable: they are named and left out


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
    name = tokenizer or (pretrained_names()[0] if pictures is None else PHOTOS_TOKENIZER)
    vq = VQGAN.from_pretrained(name)
    changes = ["experiment=demo", f"vqgan={quoted(name)}", f"seed={seed}", f"data.seed={seed}"]
    if pictures is None:
        out = out or Path("runs") / ("demo" if seed == 0 else f"demo-seed-{seed}")
        changes.append(f"world.seed={seed}")
        config = checked_config([*changes, *overrides], vq)
        with stage("pictures to tokens"):
            store = ensure_world_store(config["world"], vq)
        changes.append(f"data.sources.world.store={quoted(store)}")
    else:
        source = open_source({"kind": "pictures", "path": str(pictures), "views": VIEWS})
        out = out or Path("runs") / f"demo-{pictures.resolve().name}"
        changes += ["data=pictures", "optim.matrices=adamw"]  # Muon soon has a small folder by heart (docs/log.md)
        config = checked_config([*changes, *(o for o in overrides if ".entries." not in o)], vq)
        with stage("pictures to tokens"):
            opened = picture_store(source, out, vq, name)
        per_mille = int(config["data"]["held_out_per_mille"])
        room = int(config["data"]["seq_len"]) // vq.tokens_per_picture
        changes += folder_overrides(opened, out / "store", per_mille, room)
        changes.append(f"trainer.max_steps={folder_steps(opened, vq, config)}")
    changes += overrides

    with stage("training"):
        result = train_config([f"run_dir={quoted(out / 'run')}", *changes])
    if not result.finished:
        print("the same command continues it")
        return 128 + (result.signal or signal.SIGTERM)
    model = model_of_run(out / "run")

    with stage("pictures for the prompts"):
        if pictures is None:
            sets, clips, unseen = world_evaluation(build(WorldConfig, without_kind(config["world"]), "world"), vq, seed)
        else:
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


def quoted(value: object) -> str:
    """The value of an override as Hydra reads it back, whatever signs are in it."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def checked_config(overrides: Sequence[str], vq: VQGAN) -> dict[str, Any]:
    """The composed config; what would stop the training after minutes of tokenising raises its `UserError` here."""
    config = load_config("train", overrides)
    build(TrainerConfig, config["trainer"], "trainer")
    build(OptimConfig, config["optim"], "optim")
    model = build(LVMConfig, config["model"], "model")
    codes, tokens = vq.config.num_embeddings, vq.tokens_per_picture
    check_pair(model, vq, remedy=f"use another tokenizer, or model.num_codes={codes} model.tokens_per_picture={tokens}")
    return config


def picture_store(source: Source, out: Path, vq: VQGAN, tokenizer: str) -> TokenStore:
    """The store of a user's pictures. One that no run has read makes way when the pictures have changed since."""
    path = out / "store"
    if (path / "plan.json").is_file() and not (out / "run").exists():
        plan = read_json(path / "plan.json")
        if (plan["source_fingerprint"], plan["tokenizer_fingerprint"]) != (source.fingerprint(), vq.fingerprint):
            shutil.rmtree(path)
    store = build_store(source, path, vq, tokenizer=tokenizer, max_broken=MAX_BROKEN)
    broken = sum(shard["broken"] for shard in store.info["shards"])
    if broken:
        print(f"{broken} of {len(source)} could not be read and are left out; see {path / 'quarantine.jsonl'}")
    return store


def folder_overrides(store: TokenStore, path: Path, per_mille: int, room: int) -> list[str]:
    """The mixture for a user's pictures: 70% pairs of every task the channels allow, 20% clips, 10% single pictures.

    Sentences of pairs and clips have `room` pictures, clips as few as 8 where none is longer.
    Raises `UserError` where nothing of the folder fills a sentence, or nothing is held out to ask about.
    """
    changes = [f"data.sources.pictures.store={quoted(path)}"]
    trained = ~held_out(store.group, per_mille)
    held = [channel for channel in store.channels if store.has(channel).any()]
    tasks = [task for task in tasks_of(held) if enough(store, task, trained, room // 2)]
    for task in tasks:
        agree = "view" if {task.input, task.output} & {"masked", "noisy", "dark"} else "none"
        changes.append(
            f"+data.entries.{task.name}={{source:pictures,recipe:pairs,weight:{70 / len(tasks):.3f},"
            f"input:{task.input},output:{task.output},agree:{agree},pictures:{room // 2 * 2}}}"
        )
    longest = int(store.num_pictures[trained].max(initial=0))
    if longest >= 8:
        frames = min(room, longest)
        changes.append(f"+data.entries.clip={{source:pictures,recipe:video,weight:20,frames:{frames},strides:[1]}}")
    if not tasks and longest < 8:
        raise UserError(
            f"{path} holds {len(np.unique(store.item))} pictures or clips; more than {room // 2} pictures, or a clip "
            "of 8 frames, fill a sentence (some are held out)"
        )
    if trained.all():
        raise UserError(
            f"none of the {len(np.unique(store.group))} pictures or clips of {path} is held out to ask about; "
            "add pictures, or data.held_out_per_mille=300"
        )
    if (trained & (store.num_pictures == 1) & (store.view == 0)).any():
        changes.append("+data.entries.single={source:pictures,recipe:single,weight:10}")
    return changes


def folder_steps(store: TokenStore, vq: VQGAN, config: Mapping[str, Any]) -> int:
    """Steps of the demo's run, fewer where those would go through the folder more than `PASSES` times."""
    pictures = sum(int(store.num_pictures[store.has(channel)].sum()) for channel in store.channels)
    step_tokens = int(config["trainer"]["batch_size"]) * int(config["data"]["seq_len"])
    passes = math.ceil(PASSES * pictures * vq.tokens_per_picture / step_tokens)
    return min(int(config["trainer"]["max_steps"]), max(200, passes))


def enough(store: TokenStore, task: Task, trained: Any, pairs: int) -> bool:
    """Whether more pictures than a sentence needs have both channels and are not held out."""
    both = store.has(task.input) & store.has(task.output) & (store.num_pictures == 1) & trained
    return len(np.unique(store.item[both])) > pairs


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
        metrics=read_metrics(out / "run" / "metrics"),
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
        cells = [f"{number(perplexity.get(k)):>9}" for k in ("0", "5", "wrong")]
        for key, width in (("model", 9), ("copy_query", 8), ("copy_last_answer", 8), ("tokenizer_ceiling", 9)):
            cells.append(f"{number(row[key]):>{width}}")
        lines.append(f"{name:<14}{''.join(cells)}  {row['metric']}")
    frames = report.get("frames")
    if frames:
        by_number = ", ".join(f"{k}: {number(p)}" for k, p in frames["perplexity"].items())
        lines.append(f"next frame, perplexity by frames shown: {by_number}")
    return "\n".join(lines)
