"""Tokenise pictures into a token store: lvm tokenize SOURCE STORE --tokenizer NAME_OR_PATH"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lvm.runtime import UserError, atomic_write
from lvm.sources import open_source
from lvm.store import run_job
from tokenizer import VQGAN


def share(text: str) -> float:
    """0.01 or 1%."""
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lvm tokenize", description=__doc__)
    parser.add_argument("source", help="folder of pictures, YAML file of a source, or its name in configs/data/source")
    parser.add_argument("store", help="folder to write; the same command continues what is there")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of the source, as clips=true")
    parser.add_argument("--tokenizer", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--views", type=int, help="draws of the degraded channels of each picture (the source's own)")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (the tokenizer's resolution)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (2); 0: this one reads")
    parser.add_argument("--shard-size", type=int, default=2048, help="units in a tar; the first job decides (2048)")
    parser.add_argument("--num-shards", type=int, default=1, help="tasks that share the work, as in a job array (1)")
    parser.add_argument("--shard", type=int, default=0, help="this task's number, from 0")
    parser.add_argument("--max-broken", type=share, default=0.01, help="share of units that may be unreadable (1%%)")
    parser.add_argument("--keep-blank", action="store_true", help="keep pictures of one flat colour")
    parser.add_argument(
        "--precision", choices=("auto", "exact"), default="auto", help="auto: bfloat16 where it pays; exact: float32"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_intermixed_args(argv)

    views = [] if arguments.views is None else [f"views={arguments.views}"]
    source = open_source(arguments.source, [*arguments.overrides, *views])
    vqgan = VQGAN.from_pretrained(arguments.tokenizer)
    if torch.cuda.is_available():
        vqgan = vqgan.to("cuda")
    if arguments.shard_size < 1:
        raise UserError(f"--shard-size {arguments.shard_size}: must be at least 1")
    report = run_job(
        source,
        arguments.store,
        vqgan,
        size=arguments.size,
        shard_size=arguments.shard_size,
        workers=arguments.workers,
        num_shards=arguments.num_shards,
        shard=arguments.shard,
        max_broken=arguments.max_broken,
        keep_blank=arguments.keep_blank,
        precision=arguments.precision,
        tokenizer=arguments.tokenizer,
        command=shlex.join(["lvm", "tokenize", *argv]),
    )
    speed = f"{report.pictures_per_second:,.0f} a second, the encoder waited {report.waiting_share:.0%}"
    print(
        f"{report.pictures:,} pictures encoded in {report.seconds:.1f} s ({speed})"
        if report.pictures
        else "no new work"
    )
    where = f"{arguments.store}/quarantine.jsonl"
    if report.blank:
        print(f"{report.blank:,} items of one flat colour were left out; see {where}, or give --keep-blank")
    if report.broken:
        print(f"{len(report.broken)} of {len(source)} units could not be read; see {where}", file=sys.stderr)
    if unmatched := getattr(source, "unmatched", []):
        file = Path(arguments.store) / "unmatched.txt"
        atomic_write(file, "".join(f"{line}\n" for line in unmatched))
        print(f"{len(unmatched):,} pictures lack an annotation that others beside them have; see {file}")
    state = "complete" if report.complete else "waits for the shards of other tasks"
    print(f"{arguments.store}: {state}")
    return 0
