"""What a mixture holds, and what is in any window of it.

    lvm data plan data/demo sources.world.store=STORE
    lvm data explain data/demo --window 81203 sources.world.store=STORE [--out w.png --tokenizer NAME_OR_PATH]
    lvm data plan data/reference jsonl=FILE

CONFIG is a data config (a file, or a name below configs/), or the config of a run with a `data` group; KEY=VALUE
overrides follow it. Nothing is written but the picture of --out.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lvm.data
from lvm.data import TokenPlan
from lvm.runtime import UserError, atomic_path
from lvm.runtime.config_files import load_config

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray

EDGE = {"input": (90, 90, 90), "answer": (40, 150, 80)}  # frames round the pictures of --out


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("plan", "explain"), help="the whole mixture, or one window of it")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--window", type=int, help="explain: its number, from 0")
    parser.add_argument("--out", type=Path, help="explain: draw the window as strips, one a sentence, into this PNG")
    parser.add_argument("--tokenizer", help="the store's tokenizer, which --out decodes with")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.action == "explain" and (arguments.window is None or arguments.window < 0):
        raise UserError("lvm data explain needs --window N, a number from 0")
    token_plan = open_plan(arguments.config, arguments.overrides)
    if arguments.action == "plan":
        print(plan_json(token_plan) if arguments.json else plan_text(token_plan))
        return 0
    sentences = token_plan.explain(arguments.window)
    print(json.dumps(sentences, indent=1) if arguments.json else window_text(sentences))
    if arguments.out is not None:
        draw(token_plan, sentences, arguments.tokenizer, arguments.out)
    return 0


def open_plan(name: str, overrides: list[str]) -> TokenPlan:
    try:
        config = load_config(name, overrides)
    except UserError:
        plain = [override.removeprefix("data.") for override in overrides]
        if plain == overrides:
            raise
        config = load_config(name, plain)  # remedies say data.KEY; in a data config alone KEY is at the top
    data = config["data"] if "entries" not in config and "data" in config else config
    return lvm.data.open_plan({key: value for key, value in data.items() if key != "new_plan"})


def plan_json(plan: TokenPlan) -> str:
    waste = [plan.waste(stage) for stage in range(len(plan.stages))]
    return json.dumps({"fingerprint": plan.fingerprint, "waste": waste, "entries": plan.describe()}, indent=1)


def plan_text(plan: TokenPlan) -> str:
    titles = (
        "entry",
        "source",
        "recipe",
        "pictures",
        "units",
        "sentences",
        "tokens/epoch",
        "of tokens",
        "of sentences",
    )
    lines = []
    for number, stage in enumerate(plan.stages):
        rows = [row for row in plan.describe() if row["stage"] == number]
        cells = [
            (
                *(str(row[key]) for key in ("entry", "source", "recipe", "pictures")),
                *(f"{row[key]:,}" for key in ("units", "sentences", "tokens")),
                *(f"{row[key]:.2%}" for key in ("token_share", "sentence_share")),
            )
            for row in rows
        ]
        widths = [max(len(line[column]) for line in (titles, *cells)) for column in range(len(titles))]
        lines += [
            f"stage {number}, from window {stage.first_window}: "
            f"{sum(row['sentences_per_period'] for row in rows)} sentences a period, "
            f"{plan.config.packing} windows of {plan.seq_len} tokens, {plan.waste(number):.2%} of them PAD",
            "",
        ]
        for cell in (titles, *cells):
            left = [text.ljust(width) for text, width in zip(cell[:3], widths[:3])]
            lines.append("  ".join(left + [text.rjust(width) for text, width in zip(cell[3:], widths[3:])]))
        lines += ["", "left out, in items:"]
        for row in rows:
            lines.append(
                f"  {row['entry']}: " + (", ".join(f"{n:,} {why}" for why, n in row["left_out"].items()) or "none")
            )
        lines.append("")
    for name, store in plan.stores.items():
        if unknown := getattr(store, "unknown_ids", []):
            lines.append(f"{len(unknown)} ids of the exclude list of {name} are not in its store, as {unknown[0]!r}")
    return "\n".join([*lines, f"fingerprint {plan.fingerprint}"])


def window_text(sentences: list[dict[str, Any]]) -> str:
    lines = []
    for sentence in sentences:
        lines.append(
            "tokens {start}..{end}: {entry} ({recipe} of {source}), stage {stage} sentence {sentence}, draw {draw} "
            "in epoch {epoch}".format(**sentence | {"end": sentence["end"] - 1})
        )
        for picture in sentence["pictures"]:
            place = "byte {byte}" if "byte" in picture else "shard {shard} {member} row {row}"
            text = "    {role:<6}  {id} view {view} {channel} frame {frame}    {store} " + place
            lines.append(text.format(**picture))
    return "\n".join(lines)


def draw(plan: TokenPlan, sentences: list[dict[str, Any]], tokenizer: str | None, out: Path) -> None:
    """One strip of decoded pictures a sentence, answers framed in green; pictures that the window cuts are whole."""
    import numpy as np
    import torch
    from PIL import Image

    from tokenizer import VQGAN

    if tokenizer is None:
        raise UserError("--out draws pictures: name the store's tokenizer with --tokenizer")
    vqgan = VQGAN.from_pretrained(tokenizer)
    known = (plan.tokenizer_fingerprint or vqgan.fingerprint, plan.num_codes)
    if known != (vqgan.fingerprint, vqgan.config.num_embeddings):
        raise UserError(f"--tokenizer {tokenizer} is not the one this store was made with; name that one")
    strips: list[Any] = []
    for sentence in sentences:
        pictures = sentence["pictures"]
        store = plan.stores[sentence["source"]]
        if not pictures:
            continue
        bits = np.array([store.channels.index(picture["channel"]) for picture in pictures])
        codes = store.pictures(
            np.array([picture["item"] for picture in pictures]),
            bits,
            np.array([picture["frame"] for picture in pictures]),
        )
        with torch.inference_mode():
            decoded = vqgan.decode(torch.from_numpy(codes.astype(np.int64)), store.grid)
        pixels = (decoded * 255).round().byte().permute(0, 2, 3, 1).numpy()  # n c y x -> n y x c
        strips.append(np.concatenate([framed(p, EDGE[about["role"]]) for p, about in zip(pixels, pictures)], axis=1))
    if not strips:
        raise UserError("this window shows no whole picture; --out has nothing to draw")
    sheet = np.full((sum(len(s) for s in strips), max(s.shape[1] for s in strips), 3), 255, np.uint8)
    top = 0
    for strip in strips:
        sheet[top : top + len(strip), : strip.shape[1]] = strip
        top += len(strip)
    with atomic_path(out) as aside:
        Image.fromarray(sheet).save(aside, format="PNG")


def framed(picture: "UInt8[ndarray, 'y x 3']", colour: tuple[int, int, int]) -> "UInt8[ndarray, 'y x 3']":
    import numpy as np

    canvas = np.empty((picture.shape[0] + 4, picture.shape[1] + 4, 3), np.uint8)
    canvas[:] = colour
    canvas[2:-2, 2:-2] = picture
    return canvas
