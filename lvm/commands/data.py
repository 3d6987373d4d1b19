"""What a mixture holds, and what is in any window of it.

    lvm data plan data/demo sources.world.store=STORE
    lvm data explain data/demo --window 81203 sources.world.store=STORE [--out w.png --tokenizer NAME_OR_PATH]
    lvm data plan data/uvd_v1 --tokens 100e9                     # how often each entry is seen in so many
    lvm data plan data/demo sources.world.store=STORE --out s.png    # a sentence of each entry, drawn
    lvm data plan data/reference jsonl=FILE

CONFIG is a data config (a file, or a name below configs/), or the config of a run with a `data` group; KEY=VALUE
overrides follow it. Nothing is written but the picture of --out.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import lvm.data
from lvm.data import Plan
from lvm.runtime import UserError, atomic_path
from lvm.runtime.config_files import load_config

LAST = 10**12  # number of a window or draw; of larger ones token counts would not fit 64 bits


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("plan", "explain"), help="the whole mixture, or one window of it")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--tokens", type=float, help="plan: count epochs of so many picture tokens, as 420e9")
    parser.add_argument("--window", type=int, help="explain: its number, from 0")
    parser.add_argument("--out", type=Path, help="draw into this PNG: the window, or a sentence of each entry")
    parser.add_argument("--draw", type=int, help="plan: which draw of each entry --out shows (0)")
    parser.add_argument("--tokenizer", help="the one --out decodes with; the one the store remembers, if not given")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.action == "explain" and arguments.window is None:
        raise UserError("lvm data explain needs --window N, a number from 0")
    for option in ("window",) if arguments.action == "plan" else ("tokens", "draw"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} says nothing to lvm data {arguments.action}; leave it out")
    for option in ("window", "draw"):
        if not 0 <= (getattr(arguments, option) or 0) <= LAST:
            raise UserError(f"--{option} is {getattr(arguments, option)}; use a number from 0 to {LAST}")
    if arguments.tokens is not None and not 0 < arguments.tokens < math.inf:
        raise UserError(f"--tokens is {arguments.tokens:g}; use a number above 0")
    if arguments.draw is not None and arguments.out is None:
        raise UserError("--draw chooses what --out draws; give --out FILE too")
    if arguments.out is not None and arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a folder; name the PNG to write")
    plan = open_plan(arguments.config, arguments.overrides)
    if arguments.action == "plan":
        rows = plan.describe(arguments.tokens)
        print(plan_json(plan, rows) if arguments.json else plan_text(plan, rows))
        sentences = plan.samples(arguments.draw or 0) if arguments.out else []
        titles = [""] * len(sentences)
    else:
        sentences = plan.explain(arguments.window)
        print(json.dumps(sentences, indent=1) if arguments.json else window_text(sentences))
        titles = ["tokens {start}..{end}: ".format(**one | {"end": one["end"] - 1}) for one in sentences]
    if arguments.out is not None:
        draw(plan, sentences, titles, arguments.tokenizer, arguments.out)
    return 0


def open_plan(name: str, overrides: list[str]) -> Plan:
    try:
        config = load_config(name, overrides)
    except UserError:
        plain = [override.removeprefix("data.") for override in overrides]
        if plain == overrides:
            raise
        config = load_config(name, plain)  # remedies say data.KEY; in a data config alone KEY is at the top
    data = config["data"] if "entries" not in config and "data" in config else config
    return lvm.data.open_plan({key: value for key, value in data.items() if key != "new_plan"})


def plan_json(plan: Plan, rows: list[dict[str, Any]]) -> str:
    waste = [plan.waste(stage) for stage in range(len(plan.stages))]
    return json.dumps({"fingerprint": plan.fingerprint, "waste": waste, "entries": rows}, indent=1)


def plan_text(plan: Plan, all_rows: list[dict[str, Any]]) -> str:
    titles: tuple[str, ...] = (
        "entry",
        "source",
        "recipe",
        "pictures",
        "units",
        "sentences",
        "tokens/epoch",
        "of tokens",
        "of sentences",
        "epochs",
    )
    if all(row["epochs"] is None for row in all_rows):
        titles = titles[:-1]
    lines = []
    for number, stage in enumerate(plan.stages):
        rows = [row for row in all_rows if row["stage"] == number]
        cells = [
            (
                *(str(row[key]) for key in ("entry", "source", "recipe", "pictures")),
                *(f"{row[key]:,}" for key in ("units", "sentences", "tokens")),
                *(share(row[key]) for key in ("token_share", "sentence_share")),
                *([] if row["epochs"] is None else [f"{row['epochs']:.3g}"]),
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


def share(value: float) -> str:
    """Per cent, with as many digits as a small one needs."""
    return f"{value:.2%}" if value >= 0.001 else f"{100 * value:.2g}%"


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


def draw(plan: Plan, sentences: list[dict[str, Any]], titles: list[str], tokenizer: str | None, out: Path) -> None:
    """One strip of decoded pictures a sentence, its answers marked."""
    from lvm.commands._strips import find_tokenizer, sentence_rows, sheet

    vqgan = find_tokenizer(next(iter(plan.stores.values())), tokenizer)
    rows = sentence_rows(plan, vqgan, sentences, titles)
    if not rows:
        raise UserError("this window shows no whole picture; --out has nothing to draw")
    with atomic_path(out) as aside:
        sheet(rows).save(aside, format="PNG")
