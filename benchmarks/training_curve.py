"""A training's curve as a table to keep and a chart to look at:
python -m benchmarks.training_curve RUN --command "experiment=photos_256" --out FILE.json [--chart FILE.svg]

Of a tokenizer's run folder: at each step that was judged, minutes of training, PSNR of the batch and of held-out
pictures, codes in use; between them one row in `--every` logged ones.
"""

import argparse
from pathlib import Path
from typing import Any

from lvm.runtime import UserError, atomic_write, exit_with_one_line, read_json, write_json
from lvm.runtime.charts import BLUE, GREEN, ORANGE, Line, line_chart
from lvm.runtime.metrics import read_metrics

KEPT = ("step", "minutes", "loss", "psnr", "held_out_psnr", "code_usage", "held_out_code_usage")


def rows_of(run: Path, every: int) -> list[dict[str, Any]]:
    by_step: dict[int, dict[str, Any]] = {}
    for row in read_metrics(run / "metrics"):
        by_step.setdefault(row["step"], {}).update({key: row[key] for key in KEPT if key in row})
    rows = [by_step[step] for step in sorted(by_step)]
    if not rows:
        raise UserError(f"{run} has no metrics; name the folder of a training")
    return [row for n, row in enumerate(rows) if n % every == 0 or "held_out_psnr" in row or row is rows[-1]]


def chart(rows: list[dict[str, Any]], title: str) -> str:
    """One axis: decibels, and the share of the codes in use in tenths."""
    lines = [
        Line("batch, dB", [(row["step"], row["psnr"]) for row in rows if "psnr" in row], BLUE, 1.5, 0.7),
        Line("held out, dB", [(r["step"], r["held_out_psnr"]) for r in rows if "held_out_psnr" in r], ORANGE, 2.5),
        Line(
            "codes in use, tenths", [(r["step"], 10 * r["code_usage"]) for r in rows if "code_usage" in r], GREEN, 1.5
        ),
    ]
    drawn = line_chart([line for line in lines if line.points], "step", title, from_zero=True)
    head, tail = drawn.split(">", 1)  # white ground: GitHub shows SVG files on its own
    return f'{head} color="#222"><rect width="100%" height="100%" fill="#fff"/>{tail}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="kept with the table: what was run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--every", type=int, default=4)
    arguments = parser.parse_args()
    rows = rows_of(arguments.run, arguments.every)
    machine = read_json(arguments.run / "machine.json")
    write_json(arguments.out, {"command": arguments.command, "machine": machine, "curve": rows})
    if arguments.chart is not None:
        atomic_write(arguments.chart, chart(rows, "PSNR, dB"))


if __name__ == "__main__":
    exit_with_one_line(main)
