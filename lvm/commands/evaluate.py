"""Evaluate a model: lvm evaluate MODEL --tokenizer T --suite NAME [--data DIR|YAML] --out DIR [KEY=VALUE ...]

    perplexity    the true annotation after 0, 1, 3, 5, 7 pairs, for every annotation of the data
    context       the next frame after 1, 3, 7, 11, 15 frames
    pascal5i      masks of one class: Pascal-5i's four folds, or any folder of picture, mask and class
    depth         AbsRel, RMSE, delta           colorization  MSE on normalised pixels, LPIPS
    detection     filled boxes, IoU             keypoints     PCK@0.1
    video         the next frames: PSNR, SSIM, IoU of what moves
    puzzles       3x3 matrices, by likelihood over choices and by generation
    failures      answers of another task, of one colour, copies of the query or of a training picture
    all           each of these that the data allow, into DIR/NAME
    demo          perplexities, answers and pictures of the embedded world's tasks on one page

Without --data on scenes of the embedded world that no training reads. In every suite the same queries are asked after
the right pairs, those of another task, shuffled ones and none, beside answers that need no model and the tokenizer's
ceiling. KEY=VALUE sets an option of the suite (docs/evaluation.md). Writes report.json, report.html, sheet.png and
rows.jsonl; the same command again continues an evaluation that was stopped, --shard I/N (or Slurm, or torchrun) does a
part of it.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvm.commands._suites import HELD_OUT, kept_out, world_of
from lvm.commands.generate import choose_device
from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.ask import Codes
from lvm.evaluation.cases import Suite
from lvm.evaluation.job import EvaluationJob
from lvm.evaluation.perplexity import Precision
from lvm.evaluation.prompts import ClipSet, PromptSet, source_prompts, world_clips, world_prompts
from lvm.evaluation.report import write_report
from lvm.evaluation.sheet import report_sheet
from lvm.evaluation.suite import evaluate_prompts
from lvm.evaluation.suite_page import write_suite_page
from lvm.evaluation.suites import SUITES
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.summary import summarise
from lvm.inference.prompter import Prompter, check_pair
from lvm.interop.training_data import TrainingData, data_of_model
from lvm.model import LVM
from lvm.runtime import UserError, read_json, write_json
from lvm.runtime.machine import git_commit, machine_description, num_cores
from lvm.runtime.model_files import model_fingerprint
from lvm.runtime.tasks import read_shard, shard_of_environment
from lvm.sources import Source, open_source
from lvm.sources.world import WorldConfig, WorldSource
from lvm.training import model_of_run
from lvm.training.resume import find_checkpoint
from tokenizer import VQGAN

MOST_WORKERS = 8


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lvm evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder in the Hugging Face layout, a run (its newest checkpoint), a checkpoint")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the suite")
    parser.add_argument("--tokenizer", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--suite", required=True, help=", ".join((*SUITES, "all", "demo")))
    parser.add_argument("--data", metavar="DIR|YAML", help="folder of pictures or YAML of a source (the world)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    parser.add_argument("--targets", type=int, help="queries a task (the suite's own number)")
    parser.add_argument("--clips", type=int, default=128, help="of demo: clips of the world; 0: no frames (128)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the choice of targets (0)")
    parser.add_argument(
        "--held-out", type=int,
        help="groups of --data held out in training, per mille; 1000: all (as the model was trained; "
        f"{HELD_OUT} where nothing says)",
    )  # fmt: skip
    parser.add_argument("--held-out-groups", nargs="+", metavar="GROUP", help="and these (exclude_groups of the run)")
    parser.add_argument(
        "--workers", type=int,
        help="processes that read pictures and judge answers (2; beside a GPU one for each CPU but one, at most 8); "
        "0: this one",
    )  # fmt: skip
    parser.add_argument("--shard", metavar="I/N", help="do part I of N, from 0 (as Slurm or torchrun say)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (a GPU if there is one, of several that of this task)")
    parser.add_argument("--exact", action="store_true", help="in float32, not bfloat16 where that is faster")
    return parser


def main(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_intermixed_args(argv)
    if arguments.targets is not None and arguments.targets < 1:
        raise UserError(f"--targets {arguments.targets}: must be at least 1")
    if arguments.held_out is not None and not 0 <= arguments.held_out <= 1000:
        raise UserError(f"--held-out {arguments.held_out}: must be from 0 to 1000, per mille")
    if arguments.workers is None:
        arguments.workers = default_workers(choose_device(arguments.device))
    if arguments.suite == "demo":
        return evaluate_demo(arguments)
    if arguments.suite == "all" and arguments.options:
        raise UserError(f"{arguments.options[0]} is an option of one suite; name it with --suite, not all")
    prompter = open_prompter(arguments)
    context = make_context(arguments, prompter)
    if arguments.suite != "all":
        suite = open_suite(arguments.suite, context, arguments.options)
        return evaluate_suite(arguments, suite, prompter, arguments.out)
    codes = []
    for name in SUITES:
        try:
            suite = open_suite(name, context)
        except UserError as error:
            print(f"{name}: not run: {error}", file=sys.stderr)
        else:
            codes.append(evaluate_suite(arguments, suite, prompter, arguments.out / name))
    if not codes:
        raise UserError("no suite could be run; the lines above say why")
    return max(codes)


def default_workers(device: str) -> int:
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # of torchrun; Slurm gives each task cores of its own
    return 2 if device == "cpu" else max(1, min(MOST_WORKERS, num_cores() // ranks_here - 1))


def evaluate_suite(arguments: argparse.Namespace, suite: Suite, prompter: Prompter, out: Path) -> int:
    began = time.monotonic()
    precision: Precision = "exact" if arguments.exact else "auto"
    question = {
        "suite": suite.name,
        "model": identity(Path(arguments.model)),
        "tokenizer": prompter.vq.fingerprint,
        "precision": precision,
        "settings": dict(suite.settings),
    }
    assumed = assumed_held_out(arguments, suite.settings.get("held_out"))
    shard, num_shards = read_shard(arguments.shard) if arguments.shard else shard_of_environment()
    job = EvaluationJob(out, suite, question, shard, num_shards)
    job.run(prompter, precision, arguments.workers)
    if not job.is_complete():
        print(f"shard {shard} of {num_shards} is done; other shards are not yet")
        failed = [row for block in job.missing for row in read_json(job.file(block)) if "failed" in row]
        return say_failed(failed, sum(len(job.blocks[block]) for block in job.mine), f"{out}/.rows")
    rows = job.write_rows()
    report = summarise(suite, rows, arguments.seed)
    if assumed:
        report["settings"]["held_out"] = assumed
    report |= {
        "model": str(arguments.model),
        "model_fingerprint": question["model"],
        "parameters": prompter.model.num_params(),
        "tokenizer": prompter.vq.fingerprint,
        "precision": precision,
        "machine": machine_description(),
        "commit": git_commit(),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(out / "report.json", report)
    page = write_suite_page(out, suite, report, rows, prompter)
    print_report(report)
    print(page)
    return max(say_failed(report["failed"], report["items"], "report.json"), say_unreadable(report["unreadable"]))


def say_failed(failed: Sequence[Mapping[str, Any]], items: int, where: str) -> int:
    """The exit code, and a line on stderr where cases failed; `where` lists all of them."""
    if failed:
        first = f"{failed[0]['file']}: {failed[0]['failed']}"
        print(
            f"error: {len(failed)} of {items} cases failed, the first {first}; all are in {where}; the same command "
            "tries them again",
            file=sys.stderr,
        )
    return int(bool(failed))


def say_unreadable(files: Sequence[str]) -> int:
    if files:
        print(
            f"error: {len(files)} files of the data could not be read and were left out, the first {files[0]}; all are "
            "in report.json",
            file=sys.stderr,
        )
    return int(bool(files))


def assumed_held_out(arguments: argparse.Namespace, held_out: Any) -> dict[str, Any]:
    """The setting of a suite of files, marked and said on stderr where nothing says what the model was trained on; else
    {}. It is no part of what was asked: the same queries are asked of a model that says the same."""
    known = arguments.held_out is not None or data_of_model(Path(arguments.model)).held_out_per_mille is not None
    if known or not isinstance(held_out, Mapping):  # the test split of a world, the lists of a public layout
        return {}
    print(
        f"{arguments.model} does not say what its training held out: {held_out['per_mille']} per mille of the groups "
        "are assumed; --held-out N says otherwise (1000: all, for data that were never trained on)",
        file=sys.stderr,
    )
    return {**held_out, "assumed": True}


def print_report(report: Mapping[str, Any]) -> None:
    """A line a task: its first measure right, under the controls, and what copies and the tokenizer reach."""
    for name, row in report["tasks"].items():
        measure = row["measure"]
        parts = []
        for condition, found in row["conditions"].items():
            score = (found.get(measure) or {}).get("mean") if measure else found.get("perplexity")
            if score is not None:
                parts.append(f"{condition} {score:.3g}")
        if measure:
            parts += [
                f"{kind} {found[measure]['mean']:.3g}" for kind, found in row["baselines"].items() if measure in found
            ]
        print(f"{name:<18} {measure or 'perplexity':<11} {'  '.join(parts)}")


def open_prompter(arguments: argparse.Namespace) -> Prompter:
    device = choose_device(arguments.device)
    vq = VQGAN.from_pretrained(arguments.tokenizer).to(device)
    model = open_model(Path(arguments.model), device)
    check_pair(model.config, vq)
    return Prompter(model, vq)


def open_model(path: Path, device: str) -> LVM:
    if is_run(path):
        return model_of_run(path).to(device)
    return LVM.from_pretrained(path, device=device)


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or (path / "manifest.json").is_file()


def identity(path: Path) -> str:
    """Which weights these are."""
    if is_run(path):
        return hashlib.sha256((find_checkpoint(path) / "manifest.json").read_bytes()).hexdigest()
    return model_fingerprint(path)


def kept_out_of(arguments: argparse.Namespace, trained_on: TrainingData) -> HeldOut:
    return kept_out(trained_on, arguments.held_out, arguments.held_out_groups or ())


def make_context(arguments: argparse.Namespace, prompter: Prompter) -> Context:
    trained_on = data_of_model(Path(arguments.model))
    return Context(
        data=arguments.data,
        size=prompter.vq.config.resolution,
        room=prompter.pictures_per_window,
        num_cases=arguments.targets,
        seed=arguments.seed,
        kept_out=kept_out_of(arguments, trained_on),
        encode=Codes(prompter.vq),
        decode=prompter.decode,
        workers=arguments.workers,
        world=world_of(trained_on),
        prompt_bos=prompter.model.config.prompt_bos,
    )


# The page of the demo.


def evaluate_demo(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    prompter = open_prompter(arguments)
    model, vq = prompter.model, prompter.vq
    sets, clips, held_out, about = read_prompts(arguments, vq)
    options = {"seed": arguments.seed, "precision": "exact" if arguments.exact else "auto"}
    found = evaluate_prompts(model, vq, sets, clips, **options)
    facts = {"suite": arguments.suite, "seed": arguments.seed, "parameters": model.num_params()}
    report = {**found.report, **facts, **about}
    if held_out is not None:
        again = evaluate_prompts(model, vq, held_out, **options)
        report["held_out_latents"] = again.report
    report["seconds"] = round(time.monotonic() - began, 1)
    page = write_report(arguments.out, report, found.grids, title=f"Evaluation of {Path(arguments.model).name}")
    report_sheet(arguments.out / "sheet.png", found.grids)
    for name, row in report["tasks"].items():
        by_pairs = "  ".join(f"{key}: {value:.2f}" for key, value in row["perplexity"].items())
        print(f"{name:<14} {by_pairs}")
    print(page)
    return say_unreadable(about.get("unreadable", ()))


def read_prompts(
    arguments: argparse.Namespace, vq: VQGAN
) -> tuple[list[PromptSet], ClipSet | None, PromptSet | None, dict[str, Any]]:
    """Prompts and clips; of the world also prompts under latents that no training sentence had; of files what the
    report says of them."""
    seed, workers, targets = arguments.seed, arguments.workers, arguments.targets or 200
    source: Source = WorldSource(WorldConfig(seed=seed)) if arguments.data is None else open_source(arguments.data)
    if not isinstance(source, WorldSource):
        chosen = kept_out_of(arguments, data_of_model(Path(arguments.model)))
        held_out, broken = vars(chosen), list[str]()
        assumed = assumed_held_out(arguments, held_out)
        sets, clips = source_prompts(
            source, vq, chosen.per_mille, targets, seed, workers=workers, exclude_groups=chosen.groups, broken=broken
        )
        return sets, clips, None, {"held_out": assumed or held_out, "unreadable": broken}
    world = WorldSource(replace(source.config, split="test"))
    prompts = world_prompts(world, vq, targets, seed, workers=workers)
    clips = world_clips(world, vq, arguments.clips, seed, workers=workers) if arguments.clips else None
    unseen = list(world.held_out_latents)
    under_unseen = world_prompts(world, vq, max(1, targets // 4), seed, unseen, workers) if unseen else None
    return [prompts], clips, under_unseen, {}
