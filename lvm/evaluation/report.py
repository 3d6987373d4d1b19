"""One self-contained page of an evaluation or a demo run: pictures, curves and tables, nothing loaded from elsewhere.

    write_report("runs/demo", report, grids, metrics=read_metrics("runs/demo/train"), timings={...})

writes report.json (the numbers as given) and report.html (the same to look at). Either is complete or absent.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lvm.evaluation.suite import Grid
from lvm.evaluation.tasks import TASKS
from lvm.runtime import charts
from lvm.runtime.files import atomic_write, write_json
from lvm.runtime.page import document, number, section, table, tile

if TYPE_CHECKING:
    from jaxtyping import UInt8

LARGEST = 160  # pixels a side of a picture on the page; larger ones are reduced
TITLES = {task.name: task.title for task in TASKS}
METRICS = {
    "miou": "mIoU",
    "line_f1": "line F1",
    "box_f1": "line F1",
    "psnr": "PSNR, dB",
    "psnr_moving": "PSNR on moving pixels, dB",
}


def interval(value: Mapping[str, float] | None) -> str:
    if not value or value.get("mean") is None:
        return "–"
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def beats(row: Mapping[str, Any], baseline: str) -> bool:
    """Whether the model's score is better than a baseline's; false where either is missing."""
    ours, theirs = row.get("model"), row.get(baseline)
    if ours is None or theirs is None:
        return False
    return ours > theirs if row.get("higher_is_better", True) else ours < theirs


def headline(report: Mapping[str, Any]) -> dict[str, float]:
    """What the tasks come to in a few numbers; counts are out of `tasks`."""
    tasks = list(report.get("tasks", {}).values())
    answered = [row for row in tasks if row.get("model") is not None]
    ratios = [row["perplexity"]["wrong"] / _most(row["perplexity"]) for row in tasks if "wrong" in row["perplexity"]]
    first = [(_most(row["first_token"]), row["first_token"]["0"]) for row in tasks]
    found: dict[str, float] = {
        "tasks": len(tasks),
        "beat_both_copies": sum(beats(row, "copy_query") and beats(row, "copy_last_answer") for row in answered),
        "pairs_help": sum(row["saved_nats"]["low"] > 0 for row in tasks if row["saved_nats"]["low"] is not None),
        "wrong_pairs_1_5x": sum(ratio >= 1.5 for ratio in ratios),
        "wrong_pairs_worse": sum(ratio > 1 for ratio in ratios),
    }
    if answered:
        found["right_task"] = float(np.mean([row["right_task"] for row in answered]))
        found["right_task_least"] = float(min(row["right_task"] for row in answered))
    if first:
        with_pairs, without = np.mean(first, axis=0)  # ratio of the means over tasks
        found["first_token"] = float(with_pairs / without)
    frames = report.get("frames") or {}
    if frames.get("gain", {}).get("mean") is not None:
        found["next_frame_gain"] = frames["gain"]["mean"]
    return found


def _most(by_pairs: Mapping[str, float]) -> float:
    """The value with the most pairs."""
    return by_pairs[max((k for k in by_pairs if k.isdigit()), key=int)]


# Pieces of the page. Each is a string of HTML, or nothing where its data is missing.


def png(picture: "UInt8[np.ndarray, 'y x 3']") -> str:
    """A picture as a data address."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def tiles(report: Mapping[str, Any]) -> str:
    found = headline(report)
    count = int(found["tasks"])
    shown = []
    if "right_task" in found:
        shown.append((f"{found['right_task']:.0%}", "of answers are of the asked kind"))
        shown.append((f"{found['beat_both_copies']:.0f} of {count}", "tasks beat both copies"))
    if "first_token" in found:
        shown.append((f"{found['first_token']:.2f}×", "first-token perplexity, five pairs against none"))
    if count:
        shown.append((f"{found['wrong_pairs_1_5x']:.0f} of {count}", "tasks: wrong pairs cost 1.5× perplexity or more"))
    if "next_frame_gain" in found:
        shown.append((f"{found['next_frame_gain']:+.1f} dB", "next frame against the last one, moving pixels"))
    for key, caption in (("parameters", "parameters"), ("tokens_seen", "tokens trained on")):
        if report.get(key):
            shown.append((charts.short(report[key]), caption))
    if report.get("seconds"):
        minutes, seconds = divmod(round(report["seconds"]), 60)
        shown.append((f"{minutes} min {seconds:02d} s", "from pictures to this page"))
    return f"<div class=tiles>{''.join(tile(*pair) for pair in shown)}</div>" if shown else ""


def grid(item: Grid) -> str:
    """One task's rows of pictures under their column names; the model's answers outlined."""
    names = "".join(f"<span>{escape(name)}</span>" for name in item.columns)
    cells = []
    for row in item.rows:
        for name, picture in zip(item.columns, row):
            kinds = (["answer"] if name == "answer" else []) + (["small"] if max(picture.shape[:2]) <= 64 else [])
            alt = escape(f"{item.title}: {name or 'answer of the pair'}", quote=True)
            cells.append(f'<img class="{" ".join(kinds)}" alt="{alt}" src="{png(picture)}">')
    columns = f"grid-template-columns:repeat({len(item.columns)},1fr)"
    body = f'<div class=grid style="{columns}">{names}{"".join(cells)}</div>'
    return f"<h3>{escape(item.title)}</h3><div class=wide>{body}</div>"


def title_of(task: str) -> str:
    return TITLES.get(task, task.replace("_", " ").capitalize())


def score_table(tasks: Mapping[str, Any]) -> str:
    rows = []
    for name, row in tasks.items():
        if row.get("model") is None:
            continue
        both = beats(row, "copy_query") and beats(row, "copy_last_answer")
        scores = [number(row.get(key)) for key in ("copy_query", "copy_last_answer", "tokenizer_ceiling")]
        share = (f"{row['right_task']:.0%}", "" if row["right_task"] >= 0.7 else "bad")
        ours = (number(row["model"]), "good" if both else "bad")
        rows.append([title_of(name), METRICS.get(row["metric"], row["metric"]), ours, *scores, share])
    return table(["task", "score", "model", "copy query", "copy last answer", "tokenizer ceiling", "right task"], rows)


def perplexity_table(tasks: Mapping[str, Any]) -> str:
    keys = _keys(row["perplexity"] for row in tasks.values())
    rows = []
    for name, row in tasks.items():
        first = row["first_token"]
        rows.append(
            [title_of(name)]
            + [number(row["perplexity"].get(key)) for key in keys]
            + [f"{number(first['0'])} → {number(_most(first))}", interval(row.get("saved_nats"))]
        )
    head = [f"{key} pairs" if key.isdigit() else "wrong pairs" for key in keys]
    return table(["task", *head, "first token", "nats saved an answer"], rows)


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Numbers in order, then words."""
    keys = {key for mapping in mappings for key in mapping}
    return sorted(keys, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0))


def pair_charts(tasks: Mapping[str, Any]) -> str:
    keys = _keys(row["perplexity"] for row in tasks.values())
    apart = next((i for i, key in enumerate(keys) if not key.isdigit()), None)
    colours = {"whole answer": charts.BLUE, "first token": charts.ORANGE}
    drawn = []
    for name, row in tasks.items():
        lines = {
            "whole answer": [row["perplexity"].get(key) for key in keys],
            "first token": [row["first_token"].get(key) for key in keys],
        }
        drawn.append(charts.step_chart(keys, lines, colours, title_of(name), apart))
    return f"<div class=charts>{''.join(drawn)}</div>" if drawn else ""


def frame_parts(frames: Mapping[str, Any]) -> str:
    keys = _keys([frames["perplexity"]])
    values: list[float | None] = [frames["perplexity"][key] for key in keys]
    title = "Next frame, by frames shown"
    chart = charts.step_chart(keys, {"perplexity": values}, {"perplexity": charts.BLUE}, title, width=420)
    scores = ""
    if frames.get("model") is not None:
        names = {
            "model": "model",
            "copy_last_frame": "last frame again (tokenised)",
            "tokenizer_ceiling": "tokenizer ceiling",
        }
        cells = [[text, number(frames[key])] for key, text in names.items() if key in frames]
        cells.append(["model − last frame, 95% interval", interval(frames.get("gain"))])
        scores = table(["next frame", METRICS["psnr_moving"]], cells)
    return f"<div class=beside><div>{chart}</div><div class=wide>{scores}</div></div>"


def loss_chart(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Training loss by step as logged, and its running mean."""
    points = [(float(row["step"]), float(row["loss"])) for row in metrics if "loss" in row and "step" in row]
    points = [(x, y) for x, y in points if np.isfinite(y)]
    if len(points) < 2:
        return ""
    stride = max(1, len(points) // 1500)
    window = np.ones(max(1, len(points) // 40))
    values = np.array([y for _, y in points])
    means = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    smooth = [(x, float(y)) for (x, _), y in zip(points, means)]
    lines = [
        charts.Line("", points[::stride], charts.BLUE, 1.0, 0.35),
        charts.Line("training loss, running mean", smooth[::stride], charts.BLUE, 2.2),
    ]
    held = [(float(row["step"]), float(row["val_loss"])) for row in metrics if "val_loss" in row and "step" in row]
    if held:
        lines.append(charts.Line("held-out loss", held, charts.ORANGE, 2.2))
    return charts.line_chart(lines, "step", "nats a token")


def held_out_table(report: Mapping[str, Any]) -> str:
    rows = []
    for name, row in report.get("held_out_latents", {}).get("tasks", {}).items():
        known = report.get("tasks", {}).get(name)
        if known is None:
            continue
        cells = [f"{number(_most(known['perplexity']))} / {number(_most(row['perplexity']))}"]
        cells.append(f"{number(known['perplexity'].get('wrong'))} / {number(row['perplexity'].get('wrong'))}")
        if row.get("model") is not None:
            cells.append(f"{number(known['model'])} / {number(row['model'])}")
            cells.append(f"{known['right_task']:.0%} / {row['right_task']:.0%}")
        rows.append([title_of(name), *cells])
    return table(["task", "perplexity, most pairs", "wrong pairs", "score", "right task"], rows)


def page(
    report: Mapping[str, Any],
    grids: Sequence[Grid],
    metrics: Sequence[Mapping[str, Any]],
    timings: Mapping[str, float],
    title: str,
    intro: str,
    notes: Sequence[str],
) -> str:
    tasks, frames = report.get("tasks", {}), report.get("frames")
    targets = ", ".join(map(str, sorted({row["targets"] for row in tasks.values() if "targets" in row})))
    cycled = [title_of(name) for name, row in tasks.items() if row.get("distinct_targets", 0) < row.get("targets", 0)]
    again = (
        f" {', '.join(cycled)}: fewer different queries than targets, so queries return with other pairs."
        if cycled
        else ""
    )
    sections = [
        section(
            "What it answers",
            "A prompt is a row of pictures: input, answer, input, answer, …, query. The model continues the row. Shown "
            "are the last two of five pairs, the query, the model's greedy answer (outlined), the true answer as the "
            "tokenizer can draw it, and the truth. Rows are not chosen by score.",
            *(grid(item) for item in grids if item.name != "frames"),
        ),
        section(
            "What comes next",
            "Frames of unseen clips, and the frame the model puts after them. The first clips that move.",
            *(grid(item) for item in grids if item.name == "frames"),
        ),
        section(
            "Scores",
            f"Greedy answers after five pairs, mean over {escape(targets)} targets a task, against true pixels. "
            "Bold: better than both copies; red: not. The ceiling is the truth through the tokenizer. Right task: the "
            f"answer is nearer (L2) to the asked channel than to any other channel of its query.{escape(again)}",
            score_table(tasks),
        ),
        section(
            "Perplexity by number of pairs",
            "exp of the mean NLL over the tokens of the true answers, the same targets for every number of pairs; "
            "logarithmic. wrong: as many pairs of another task before the same query, the control that shows that "
            "the pairs are read.",
            pair_charts(tasks),
            perplexity_table(tasks) if tasks else "",
        ),
        section(
            "Perplexity by number of frames",
            "The same target frames after more or fewer frames before them. Scores are on the pixels that change.",
            frame_parts(frames) if frames else "",
        ),
        section(
            "Held-out latents",
            "Palettes, line colours, lights and strengths that no training sentence had. Each cell: trained latents / "
            "held-out ones.",
            held_out_table(report),
        ),
        section("Training", "Next-token cross-entropy over all tokens.", loss_chart(metrics)),
        section("What took how long", "Wall-clock seconds by stage.", charts.bar_chart(dict(timings), "s")),
        section("Notes", "", f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""),
    ]
    numbers = escape(json.dumps(report, indent=1, sort_keys=True))
    body = f"<h1>{escape(title)}</h1><p class=soft>{escape(intro)}</p>{tiles(report)}{''.join(sections)}"
    raw = f"<details><summary>All numbers (report.json)</summary><pre>{numbers}</pre></details>"
    return document(title, body + raw)


def write_report(
    folder: str | Path,
    report: Mapping[str, Any],
    grids: Sequence[Grid] = (),
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    timings: Mapping[str, float] | None = None,
    title: str = "LVM: one evaluation",
    intro: str = "Every task is a picture, every prompt a sentence of pictures; nothing else is said to the model.",
    notes: Sequence[str] = (),
) -> Path:
    """Write report.json and report.html into `folder`; returns the page's path.

    `report` has the keys of `Evaluation.report` and, where known, seconds, parameters, tokens_seen and held_out_latents
    ({"tasks": ...}); `metrics` are rows with step and loss; `timings` seconds by stage.
    """
    folder = Path(folder)
    html = page(report, grids, metrics, timings or {}, title, intro, notes)
    write_json(folder / "report.json", report)
    atomic_write(folder / "report.html", html)
    return folder / "report.html"
