"""Evaluate a model: lvm evaluate MODEL --tokenizer T --suite perplexity|demo [--data DIR|YAML] --out DIR

perplexity: teacher-forced NLL of answers by number of pairs, after pairs of another task, and of next frames.
demo: the same, and greedy answers with their scores, baselines, the tokenizer's ceiling and pictures.
Without --data on scenes of the embedded world that no training reads. Writes report.json, report.html (and sheet.png).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lvm.evaluation.prompts import ClipSet, PromptSet, source_prompts, world_clips, world_prompts
from lvm.evaluation.report import write_report
from lvm.evaluation.sheet import report_sheet
from lvm.evaluation.suite import evaluate_prompts
from lvm.inference.prompter import check_pair
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.sources import Source, open_source
from lvm.sources.world import WorldConfig, WorldSource
from lvm.training import model_of_run
from tokenizer import VQGAN

SUITES = ("perplexity", "demo")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lvm evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder in the Hugging Face layout, a run (its newest checkpoint), a checkpoint")
    parser.add_argument("--tokenizer", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--suite", required=True, help=" or ".join(SUITES))
    parser.add_argument("--data", metavar="DIR|YAML", help="folder of pictures or YAML of a source (the world)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    parser.add_argument("--targets", type=int, default=200, help="queries a task (200)")
    parser.add_argument("--clips", type=int, default=128, help="clips of the world; 0: no frames (128)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the choice of targets (0)")
    parser.add_argument(
        "--held-out", type=int, default=150, help="groups of --data held out in training, per mille (150)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (2); 0: this one reads")
    parser.add_argument(
        "--exact", action="store_true", help="perplexities in float32, not bfloat16 where that is faster"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.suite not in SUITES:
        raise UserError(f"--suite {arguments.suite!r} is unknown; use {' or '.join(SUITES)}")
    if arguments.targets < 1:
        raise UserError(f"--targets {arguments.targets}: must be at least 1")

    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vq = VQGAN.from_pretrained(arguments.tokenizer).to(device)
    model = open_model(Path(arguments.model), device)
    check_pair(model.config, vq)
    sets, clips, held_out = read_prompts(arguments, vq)
    options = {"seed": arguments.seed, "generate_answers": arguments.suite == "demo"}
    options["precision"] = "exact" if arguments.exact else "auto"
    found = evaluate_prompts(model, vq, sets, clips, **options)
    report = {**found.report, "suite": arguments.suite, "seed": arguments.seed, "parameters": model.num_params()}
    if held_out is not None:
        again = evaluate_prompts(model, vq, held_out, **options)
        report["held_out_latents"] = again.report
    report["seconds"] = round(time.monotonic() - began, 1)
    page = write_report(arguments.out, report, found.grids, title=f"Evaluation of {Path(arguments.model).name}")
    if found.grids:
        report_sheet(arguments.out / "sheet.png", found.grids)
    for name, row in report["tasks"].items():
        by_pairs = "  ".join(f"{key}: {value:.2f}" for key, value in row["perplexity"].items())
        print(f"{name:<14} {by_pairs}")
    print(page)
    return 0


def open_model(path: Path, device: str) -> LVM:
    if (path / "checkpoints").is_dir() or (path / "manifest.json").is_file():
        return model_of_run(path).to(device)
    return LVM.from_pretrained(path, device=device)


def read_prompts(arguments: argparse.Namespace, vq: VQGAN) -> tuple[list[PromptSet], ClipSet | None, PromptSet | None]:
    """Prompts, clips, and of the world also prompts under latents that no training sentence had."""
    seed, workers = arguments.seed, arguments.workers
    source: Source = WorldSource(WorldConfig(seed=seed)) if arguments.data is None else open_source(arguments.data)
    if not isinstance(source, WorldSource):
        sets, clips = source_prompts(source, vq, arguments.held_out, arguments.targets, seed, workers=workers)
        return sets, clips, None
    world = WorldSource(replace(source.config, split="test"))
    prompts = world_prompts(world, vq, arguments.targets, seed, workers=workers)
    clips = world_clips(world, vq, arguments.clips, seed, workers=workers) if arguments.clips else None
    unseen = list(world.held_out_latents)
    held_out = world_prompts(world, vq, max(1, arguments.targets // 4), seed, unseen, workers) if unseen else None
    return [prompts], clips, held_out
