"""The page of one suite's evaluation: what was scored, against what, and cases to look at. One file, nothing loaded.

    write_suite_page(out, suite, report, rows, prompter)     OUT/report.html, OUT/sheet.png

`report` is report.json (lvm/evaluation/summary.py), `rows` are those of rows.jsonl; pictures are drawn again from both.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lvm.evaluation.cases import CEILING, NONE, RIGHT, SHUFFLED, WRONG_TASK, Suite
from lvm.evaluation.report import pair_charts, png, title_of
from lvm.evaluation.sheet import strip_sheet
from lvm.evaluation.strips import Cell, Strip, draw_strips
from lvm.evaluation.summary import OF_A_TASK, in_order
from lvm.inference.prompter import Prompter
from lvm.runtime import charts
from lvm.runtime.files import atomic_write
from lvm.runtime.page import document, number, section, table, tile

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

Report = Mapping[str, Any]
Task = Mapping[str, Any]  # of the report
Interval = Mapping[str, Any]

PER_ANSWER = "perplexity, mean over answers"
MOST_BYTES = 1_100_000  # of all pictures, before base64 makes a third more of them
# Pixels a side and quality, tried in turn until the pictures are within `MOST_BYTES`; the first is exact.
ENCODINGS = ((160, None), (160, 95), (160, 85), (112, 80), (80, 75), (56, 70), (40, 60))
COLOURS = {RIGHT: charts.BLUE, WRONG_TASK: charts.RED, SHUFFLED: charts.ORANGE, NONE: "#8a63c9", CEILING: charts.GREEN}


def write_suite_page(
    folder: Path, suite: Suite, report: Report, rows: Sequence[Mapping[str, Any]], prompter: Prompter
) -> Path:
    """Both files, each complete or absent; the page's path."""
    strips = draw_strips(suite, rows, prompter)
    strip_sheet(folder / "sheet.png", strips)
    atomic_write(folder / "report.html", suite_page(report, strips))
    return folder / "report.html"


def suite_page(report: Report, strips: Sequence[Strip]) -> str:
    tasks, measures = report["tasks"], report["measures"]
    painted = bool(measures) and any(row["conditions"].get(RIGHT, {}).get(row["measure"]) for row in tasks.values())
    rank = (
        f"{measures[0]['name']} of the right prompt's answer" if painted else "NLL of the truth after the right prompt"
    )
    answers = "the answers after each kind of prompt (outlined), " if painted else ""
    sections = [
        section(
            "At a glance",
            "Mean and 95% interval of each task under each kind of prompt, and what the tokenizer can reach.",
            overview(report),
        ),
        section("By number of pictures shown", "The same targets after more or fewer pictures.", curves(report)),
        section(
            "Best, median and worst",
            f"By {rank}. Above, small, the prompt; below, the query, {answers}the truth through the tokenizer and the "
            "truth. Nats: NLL of the whole truth after that prompt.",
            strips_of(strips),
        ),
        section(
            "Scores",
            "Mean and 95% bootstrap interval over cases, those of one query drawn together. right − it: the paired "
            "difference over the same cases, bold where the right prompt is better and the interval beyond 0, red "
            "where it is worse. nats: by how much the truth is more likely after the right prompt. No correction is "
            "made for the number of intervals.",
            *(f"<h3>{escape(title_of(name))}</h3>{task_table(row, measures)}" for name, row in tasks.items()),
        ),
        section("Over all cases of a task", "What is no mean over cases.", over_all(tasks)),
        section(
            "Published",
            "Printed figures beside ours. Read the caveats: none is a like-for-like row.",
            published(report),
        ),
        section("Measures", "", measure_table(measures)),
        section("Cases that failed", "They are in no number above.", failed_table(report["failed"])),
        section("Settings", "Everything that decides the numbers.", settings_table(report)),
    ]
    title = f"{report['title']}: {Path(str(report.get('model', ''))).name}".removesuffix(": ")
    intro = (
        "Every task is a picture, every prompt a sentence of pictures. The same queries are asked after the right "
        "prompt, after pairs of another task, after pairs whose answers changed places, and alone."
    )
    raw = escape(json.dumps(report, indent=1, sort_keys=True), quote=False)
    details = f"<details><summary>All numbers (report.json)</summary><pre>{raw}</pre></details>"
    body = f"<h1>{escape(title)}</h1><p class=soft>{escape(intro)}</p>{tiles(report)}{''.join(sections)}{details}"
    return document(title, body)


# What the intervals say.


def sign_of(measure: Mapping[str, Any]) -> int:
    return 1 if measure["higher_is_better"] else -1


def is_better(difference: Interval | None, sign: int = 1) -> bool:
    """Whether a 95% interval lies beyond 0 on the better side."""
    if not difference or difference.get("low") is None:
        return False
    return bool(difference["low"] > 0 if sign > 0 else difference["high"] < 0)


def beyond(difference: Interval | None, sign: int = 1) -> tuple[str, str]:
    """The text of a paired difference and how it is set."""
    kind = "good" if is_better(difference, sign) else "bad" if is_better(difference, -sign) else ""
    return interval(difference, signed=True), kind


def interval(value: Interval | None, signed: bool = False) -> str:
    if not value or value.get("mean") is None:
        return "–"
    mean = number(float(value["mean"]))
    plus = "+" if signed and value["mean"] > 0 else ""
    if value.get("low") is None or value.get("high") is None:
        return plus + mean
    return f"{plus}{mean} [{number(float(value['low']))}, {number(float(value['high']))}]"


def main_score(row: Task) -> float | None:
    """The first measure of the right prompt, or its perplexity where nothing was painted."""
    right = row["conditions"].get(RIGHT, {})
    found = right.get(row["measure"]) if row["measure"] else None
    value: float | None = found["mean"] if found else right.get("perplexity")
    return value


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def mean(found: Sequence[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


# Pieces of the page.


def tiles(report: Report) -> str:
    tasks = list(report["tasks"].values())
    shown = [*answer_tiles(tasks, report["measures"]), *control_tiles(tasks)]
    shown.append((number(report["items"]), f"cases, {len(tasks)} task{'s' * (len(tasks) != 1)}"))
    if report["failed"]:
        shown.append((number(len(report["failed"])), "cases failed"))
    if report.get("parameters"):
        shown.append((charts.short(report["parameters"]), "parameters"))
    return f"<div class=tiles>{''.join(tile(*pair) for pair in shown)}</div>"


def answer_tiles(tasks: Sequence[Task], measures: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The first measure of the right prompt, and how many tasks are answered better than without a model."""
    if not measures:
        return
    name, unit, sign = measures[0]["name"], measures[0]["unit"], sign_of(measures[0])
    score = mean([(row["conditions"].get(RIGHT, {}).get(name) or {}).get("mean") for row in tasks])
    if score is not None:
        over = "" if len(tasks) == 1 else ", mean over tasks"
        yield f"{number(score)} {unit}".strip(), f"{name} after the right prompt{over}"
    rivals = [{kind: of for kind, of in row["over_baselines"].items() if kind != CEILING} for row in tasks]
    won = [all(is_better(of.get(name), sign) for of in found.values()) for found in rivals if found]
    if won:
        yield f"{sum(won)} of {len(won)}", "tasks beat every baseline"


def control_tiles(tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """What the right prompt is worth in likelihood."""
    for control, words in ((WRONG_TASK, "those of another task"), (SHUFFLED, "shuffled ones"), (NONE, "none")):
        known = [row["controls"][control]["nats"] for row in tasks if control in row["controls"]]
        caption = f"likelier truth after right pairs than after {words}"
        if len(known) == 1 and known[0]["mean"] is not None:
            sure = is_better(known[0]) or is_better(known[0], -1)
            yield f"{number(known[0]['mean'])} nats", caption + ("" if sure else "; the interval holds 0")
        elif known:
            yield f"{sum(map(is_better, known))} of {len(known)}", f"tasks: {caption}"
    both = [[row["conditions"].get(name, {}).get("perplexity") for name in (RIGHT, NONE)] for row in tasks]
    ratios = [right / alone for right, alone in both if right and alone]
    if ratios:
        yield f"{geometric_mean(ratios):.2f}×", "perplexity with pairs against none"


def overview(report: Report) -> str:
    rows = {title_of(name): list(dots(row)) for name, row in report["tasks"].items()}
    first = (
        report["measures"][0] if report["measures"] else {"name": "perplexity", "higher_is_better": False, "unit": ""}
    )
    better = "higher is better" if first["higher_is_better"] else "lower is better"
    unit = f", {first['unit']}" if first["unit"] else ""
    chart = charts.dot_chart(rows, f"{first['name']}{unit} ({better})", logarithmic=not report["measures"])
    return f"<div class=chart>{chart}</div>" if chart else ""


def dots(row: Task) -> Iterator[charts.Dot]:
    found = {**row["conditions"], **row["baselines"]}
    for name, colour in COLOURS.items():
        given = found.get(name, {})
        value = given.get(row["measure"]) if row["measure"] else perplexity_of(row, name)
        if value and value["mean"] is not None:
            yield charts.Dot(name.replace("_", " "), value["mean"], colour, value.get("low"), value.get("high"))


def perplexity_of(row: Task, condition: str, average: str = "perplexity") -> Interval:
    """With its interval, or as `per_answer_perplexity`; of a baseline nothing."""
    known = row.get("perplexity_intervals", {}).get(condition, {})
    return known.get(average) or {"mean": row["conditions"].get(condition, {}).get(average)}


def numbers_of(row: Task) -> dict[str, Mapping[str, Any]]:
    """Conditions that are named by a number of pictures."""
    found = {name: given for name, given in row["conditions"].items() if name.isdigit()}
    return dict(sorted(found.items(), key=lambda pair: int(pair[0])))


def curves(report: Report) -> str:
    """Perplexities by number where a suite has them over all cases, else of the conditions that are numbers."""
    tasks = report["tasks"]
    whole = {name: row for name, row in tasks.items() if "perplexity" in row and "first_token" in row}
    if whole:
        return pair_charts(whole)
    drawn = []
    for name, row in tasks.items():
        found = numbers_of(row)
        if len(found) < 2:
            continue
        lines = {"perplexity": [given.get("perplexity") for given in found.values()]}
        if row["measure"]:
            lines[row["measure"]] = [(given.get(row["measure"]) or {}).get("mean") for given in found.values()]
        colours = dict(zip(lines, (charts.BLUE, charts.ORANGE)))
        drawn += [
            charts.step_chart(list(found), {key: line}, colours, f"{title_of(name)}: {key}")
            for key, line in lines.items()
        ]
    return f"<div class=charts>{''.join(drawn)}</div>" if any(drawn) else ""


def task_table(row: Task, measures: Sequence[Mapping[str, Any]]) -> str:
    """A line for each kind of prompt and each baseline; columns that nothing fills are left out."""
    averages = ("perplexity", "per_answer_perplexity")
    lines = [
        (name, {**found, **{key: perplexity_of(row, name, key) for key in averages}}, row["controls"].get(name, {}))
        for name, found in in_order(row["conditions"])
    ]
    over = {name: given for name, given in row["over_baselines"].items() if name != CEILING}
    lines += [(name, found, over.get(name, {})) for name, found in row["baselines"].items()]
    columns: list[tuple[str, Callable[[Any, Any], Any]]] = [
        ("perplexity", lambda found, over: interval(found.get("perplexity"))),
        (PER_ANSWER, lambda found, over: interval(found.get("per_answer_perplexity"))),
        ("first code", lambda found, over: number(found.get("first_token"))),
        ("nats", lambda found, over: beyond(over.get("nats"))),
    ]
    for measure in measures:
        name, sign = measure["name"], sign_of(measure)
        columns.append((name, lambda found, over, name=name: interval(found.get(name))))  # type: ignore[misc]
        columns.append((f"right − it, {name}", lambda found, over, name=name, sign=sign: beyond(over.get(name), sign)))  # type: ignore[misc]
    cells = {head: [cell(found, over) for _, found, over in lines] for head, cell in columns}
    empty = lambda cell: (cell if isinstance(cell, str) else cell[0]) == "–"
    kept = {head: column for head, column in cells.items() if not all(map(empty, column))}
    body = [[name.replace("_", " "), *(column[k] for column in kept.values())] for k, (name, *_) in enumerate(lines)]
    body = [line for line in body if not all(map(empty, line[1:]))]
    return table([f"{row['items']} cases", *kept], body)


def strips_of(strips: Sequence[Strip]) -> str:
    pictures = [cell.picture for strip in strips for cells in (strip.prompt, *strip.rows) for cell in cells]
    addresses = iter(encoded(pictures))
    parts, task = [], None
    for strip in strips:
        if strip.task != task:
            task = strip.task
            parts.append(f"<h3>{escape(title_of(task))}</h3>")
        parts.append(f"<p class=soft>{escape(strip.title)}</p>")
        for kind, cells in (("strip prompt", strip.prompt), *(("strip", cells) for cells in strip.rows)):
            drawn = "".join(figure(cell, next(addresses), strip.task) for cell in cells)
            parts.append(f'<div class="{kind}">{drawn}</div>' if cells else "")
    return "".join(parts)


def figure(cell: Cell, address: str, task: str) -> str:
    small = ' class="small"' if max(cell.picture.shape[:2]) <= 64 else ""
    notes = "".join(f"<br>{escape(note)}" for note in cell.notes)
    alt = escape(f"{task}: {cell.name}", quote=True)
    kind = ' class="answer"' if cell.answer else ""
    caption = f"<figcaption><b>{escape(cell.name)}</b>{notes}</figcaption>"
    return f'<figure{kind}><img{small} alt="{alt}" src="{address}">{caption}</figure>'


def encoded(pictures: "Sequence[Picture]") -> list[str]:
    """As data addresses: exact where all of them are small enough together, else reduced as far as that needs."""
    found: list[str] = []
    for side, quality in ENCODINGS:
        found = [png(picture) if quality is None else webp(picture, side, quality) for picture in pictures]
        if sum(map(len, found)) <= MOST_BYTES * 4 // 3:
            break
    return found


def webp(picture: "Picture", side: int, quality: int) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def over_all(tasks: Mapping[str, Any]) -> str:
    """What suites add to the reports of their tasks: numbers and intervals in one table, mappings in one each, those of
    mappings with a line for each of theirs."""
    single: dict[str, dict[str, Any]] = {}
    several: dict[str, dict[str, Any]] = {}
    for name, row in tasks.items():
        title = title_of(name)
        for key in (key for key in row if key not in OF_A_TASK):
            value = row[key]
            if is_figure(value):
                single.setdefault(title, {})[key] = value
            elif value and all(map(is_figure, value.values())):
                several.setdefault(key, {})[title] = value
            else:
                lines = {f"{title}, {inner}": of for inner, of in value.items()}
                several.setdefault(key, {}).update(lines)
    parts = [cross_table("", single), *(cross_table(key.replace("_", " "), rows) for key, rows in several.items())]
    return "".join(parts)


def is_figure(value: Any) -> bool:
    """A number, a text or an interval."""
    return not isinstance(value, Mapping) or "mean" in value


def cross_table(title: str, rows: Mapping[str, Any]) -> str:
    """A line for each of `rows`, a column for each key of theirs."""
    known = {name: {"": row} if is_figure(row) else row for name, row in rows.items()}
    columns = list(dict.fromkeys(key for row in known.values() for key in row))
    lines = [[name, *(cell_text(row.get(key)) for key in columns)] for name, row in known.items()]
    heading = f"<h3>{escape(title)}</h3>" if title and lines else ""
    return heading + table(["", *(key.replace("_", " ") for key in columns)], lines)


def cell_text(value: Any) -> str:
    if isinstance(value, Mapping) and "mean" in value:
        return interval(value)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)


def published(report: Report) -> str:
    rows = report["published"]
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row["scores"]))
    ours = [(number(our_score(report, key)), "good") for key in keys]
    lines = [[("this model", "good"), *ours, ("these settings", "text")]]
    for row in rows:
        source = (f"{row['source']}: {row['caveat']}", "text")
        lines.append([(row["name"], ""), *((number(row["scores"].get(key)), "") for key in keys), source])
    return table(["model", *(key.replace("_", " ") for key in keys), ("source and caveat", "text")], lines)


def our_score(report: Report, key: str) -> float | None:
    """What stands in a published column: what the suite says is comparable; else what we have under its name, a task,
    or a measure or figure as the mean over tasks."""
    if key in (known := report.get("ours", {})):
        given: float | None = known[key]
        return given
    tasks = report["tasks"]
    if key in tasks:
        return main_score(tasks[key])
    found = [row["conditions"].get(RIGHT, {}).get(key, row.get(key)) for row in tasks.values()]
    return mean([value.get("mean") if isinstance(value, Mapping) else value for value in found])


def measure_table(measures: Sequence[Mapping[str, Any]]) -> str:
    likelihood = [
        [
            "perplexity",
            "lower",
            "",
            ("exp of the mean NLL of all codes of the true answers, over the whole softmax", "text"),
        ],
        [PER_ANSWER, "lower", "", ("of each answer's own perplexity, as published", "text")],
        ["first code", "lower", "", ("the perplexity of the first code of each answer alone", "text")],
    ]
    lines = [
        [m["name"], "higher" if m["higher_is_better"] else "lower", m["unit"], (m["about"], "text")] for m in measures
    ]
    return table(["measure", "better", "unit", ("how it is computed", "text")], [*lines, *likelihood])


def failed_table(failed: Sequence[Mapping[str, Any]]) -> str:
    rows = [[str(row["case"]), (str(row["file"]), "text"), (str(row["failed"]), "text")] for row in failed]
    return table(["case", ("file", "text"), ("why", "text")], rows)


def settings_table(report: Report) -> str:
    about = ("suite", "model", "model_fingerprint", "parameters", "tokenizer", "precision", "commit", "seconds")
    named = {key: report[key] for key in about if key in report} | {"machine": report.get("machine", {})}
    lines = [[key.replace("_", " "), (value, "text")] for key, value in flat({**report["settings"], **named})]
    return table(["setting", ("value", "text")], lines)


def flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of each value; of mappings each of theirs."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{where}{key}, ")
        else:
            yield f"{where}{key}", value if isinstance(value, str) else json.dumps(value)
