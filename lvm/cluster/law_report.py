"""What `lvm sweep fit` shows: law.json, one self-contained page with its plots (also as SVG files), a short table."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lvm.cluster.law_fit import interval
from lvm.cluster.law_points import Point, levels
from lvm.cluster.laws import Findings, flops_by_token
from lvm.runtime.charts import GREEN, ORANGE, ORDERED, RED, Series, log_chart, short
from lvm.runtime.files import atomic_write, write_json
from lvm.runtime.page import document, number, section, table, tile

GREY = "#8a8f98"
LOSS = "validation loss, nats a token"
SVG_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


# Numbers in words.


def ends(pair: Sequence[float] | None, form: str = ".3g") -> str:
    return "–" if pair is None else f"[{pair[0]:{form}}, {pair[1]:{form}}]"


def scaled(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"[{short(pair[0])}, {short(pair[1])}]"


def how_far(beyond: Mapping[str, float]) -> str:
    """ "2.0x N, 8.0x C beyond the runs", or "within the runs"."""
    names = {"n": "N", "tokens": "D", "flops": "C"}
    outside = [f"{value:.3g}× {names[key]}" for key, value in beyond.items() if value > 1.01]
    return f"{', '.join(outside)} beyond the runs" if outside else "within the runs"


def formula(law: Mapping[str, Any]) -> str:
    """The law with its constants, as one line."""
    values = {name: row["value"] for name, row in law["constants"].items()}
    terms = [f"{values['E']:.3f}"]
    if "A" in values:
        terms.append(f"{values['A']:.4g} / N^{values['alpha']:.3f}")
    if "B" in values:
        terms.append(f"{values['B']:.4g} / D^{values['beta']:.3f}")
    return " + ".join(terms)


def law_rows(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(what it is, law) of every law that was fitted."""
    laws = record["laws"]
    rows = [("L(N, D)", laws["n_and_d"])] if laws["n_and_d"] else []
    rows += [(f"L(N), D {short(one['tokens'])}", one) for one in laws["n"]]
    return rows + [(f"L(D), N {short(one['n'])}", one) for one in laws["d"]]


# The short table.


def summary(findings: Findings) -> str:
    record = findings.record
    used = findings.used
    lines = [
        f"{len(record['points'])} points ({len(used)} at the best lr of their size and tokens), "
        f"{len(record['left_out'])} runs left out"
    ]
    for name, law in law_rows(record):
        lines.append(f"{name:<22} L = {formula(law)}   {law['runs']} runs, rms residual {law['rms_residual']:.2%}")
        intervals = [f"{key} {ends(row['interval'])}" for key, row in law["constants"].items() if row["interval"]]
        if intervals:
            lines.append(f"{'':<22} 95%: {', '.join(intervals)}")
    if record["frontier"]:
        share = record["frontier"]["exponents_6nd"]["n"]
        lines.append(f"{'compute-optimal':<22} N ~ C^{share['value']:.3f} {ends(share['interval'])}, C = 6 N D")
        for row in record["frontier"]["at"]:
            lines.append(
                f"{'':<22} C {short(row['flops']):>8}: N {short(row['n'])} {scaled(row['n_interval'])}, "
                f"D {short(row['tokens'])}; {how_far(row['beyond'])}"
            )
    for row in record["held_back"]["predictions"]:
        lines.append(
            f"{'held back':<22} {row['name']}: predicted {row['predicted']:.4f} {ends(row['interval'], '.4f')}, "
            f"measured {row['measured']:.4f}, error {row['error']:+.2%}; {how_far(row['beyond'])}"
        )
    if rates := record["rates"]["law"]:
        lines.append(
            f"{'best lr':<22} {rates['factor']:.3g} N^{rates['exponent']:.3f} {ends(rates['exponent_interval'])}, "
            f"{rates['points']} sizes at {short(rates['tokens'])} tokens"
        )
    lines += [f"warning: {warning}" for warning in record["warnings"]]
    return "\n".join(lines + [f"left out: {one['name']}: {one['why']}" for one in record["left_out"]])


# Plots.


def colours(points: Sequence[Point]) -> dict[float, str]:
    """One colour a size, in a fixed order."""
    sizes = sorted({point.n for point in points})
    spread = np.linspace(0, len(ORDERED) - 1, len(sizes)).round().astype(int) if len(sizes) <= len(ORDERED) else None
    return {n: ORDERED[spread[i] if spread is not None else i % len(ORDERED)] for i, n in enumerate(sizes)}


def dots(points: Sequence[Point], x: str, colour_of: Mapping[float, str]) -> list[Series]:
    return [
        Series(f"N {short(n)}", [(getattr(p, x), p.loss) for p in points if p.n == n], colour, "dots")
        for n, colour in colour_of.items()
    ]


def banded(places: Any, predicted: Any, colour: str, kind: str = "line", name: str = "") -> Series:
    """A law's curve and its interval; `predicted` is [rows, places]."""
    pairs = [(float(x), interval(column[1:])) for x, column in zip(places, predicted.T)]
    band = [(x, pair[0], pair[1]) for x, pair in pairs if pair is not None]
    return Series(name, list(zip(places.tolist(), predicted[0].tolist())), colour, kind, band)


def loss_by_tokens(findings: Findings) -> str:
    colour_of = colours(findings.used)
    lines, tokens = [], [point.tokens for point in findings.used]
    if len(levels(tokens)) == 1:
        return ""
    if findings.joint is not None:
        places = np.geomspace(min(tokens) / 1.3, max(tokens) * 3, 40)
        lines = [banded(places, findings.joint.fits.loss(n, places), colour) for n, colour in colour_of.items()]
    return log_chart([*lines, *dots(findings.used, "tokens", colour_of)], "tokens D", LOSS)


def loss_by_size(findings: Findings) -> str:
    """L(N) at each number of tokens, the law of that budget alone."""
    if not findings.by_tokens:
        return ""
    series = []
    for i, (tokens, law) in enumerate(findings.by_tokens.items()):
        colour = ORDERED[(2 * i + 1) % len(ORDERED)]
        sizes = [point.n for point in law.points]
        places = np.geomspace(min(sizes) / 1.2, max(sizes) * 2, 40)
        series.append(banded(places, law.fits.loss(places), colour))
        series.append(Series(f"D {short(tokens)}", [(p.n, p.loss) for p in law.points], colour, "dots"))
    return log_chart(series, "size N", LOSS)


def loss_by_compute(findings: Findings) -> str:
    colour_of = colours(findings.used)
    series = dots(findings.used, "flops", colour_of)
    for n, colour in colour_of.items():
        own = sorted((p.flops, p.loss) for p in findings.used if p.n == n)
        series.append(Series("", own, colour, "dashed"))
    if (joint := findings.joint) is not None:
        flops = [point.flops for point in findings.used]
        per_token = flops_by_token(findings.used)
        places = np.geomspace(min(flops), max(flops) * 10, 40)
        sizes = np.geomspace(min(colour_of) / 100, max(colour_of) * 100, 400)
        losses = np.array([joint.fits.loss(sizes, budget / per_token(sizes)).min(1) for budget in places]).T
        inside = places <= max(flops) * 1.0001
        last = int(inside.sum()) - 1
        series.append(banded(places[inside], losses[:, inside], GREY, name="optimal"))
        series.append(banded(places[last:], losses[:, last:], GREY, "dashed", "beyond the runs"))
    return log_chart(series, "FLOPs C", LOSS)


def optimum_by_compute(record: Mapping[str, Any]) -> str:
    """N and D of the compute-optimal run with their intervals, solid within the budgets that ran."""
    if not record["frontier"]:
        return ""
    rows = [row for row in record["frontier"]["at"] if row["in_sight"]]
    series = []
    for key, name, colour in (("n", "N", ORANGE), ("tokens", "D", GREEN)):
        band = [(row["flops"], *row[f"{key}_interval"]) for row in rows if row[f"{key}_interval"]]
        inside = [(row["flops"], row[key]) for row in rows if row["beyond"]["flops"] <= 1.01]
        after = [*inside[-1:], *((row["flops"], row[key]) for row in rows if row["beyond"]["flops"] > 1.01)]
        series += [Series(name, inside, colour, "line", band), Series("", after, colour, "dashed")]
    return log_chart(series, "FLOPs C", "compute-optimal size N and tokens D", height=300)


def isoflop_chart(record: Mapping[str, Any]) -> str:
    if not record["isoflop"]:
        return ""
    series = []
    for i, profile in enumerate(record["isoflop"]["profiles"]):
        colour, runs = ORDERED[(2 * i) % len(ORDERED)], profile["runs"]
        series.append(Series(f"C {short(profile['flops'])}", runs, colour, "dots"))
        z = np.log([n for n, _ in runs])
        shape = np.polyfit(z - z.mean(), [loss for _, loss in runs], 2)
        places = np.linspace(z.min(), z.max(), 40)
        curve = np.polyval(shape, places - z.mean())
        series.append(Series("", list(zip(np.exp(places).tolist(), curve.tolist())), colour))
        if profile["n"] is not None:
            series.append(Series("", [(profile["n"], profile["loss"])], RED, "rings"))
    return log_chart(series, "size N", LOSS)


def loss_by_rate(findings: Findings) -> str:
    """The grids of learning rates at the budget that has most of them."""
    rows = [row for row in findings.record["rates"]["rows"] if len(row["losses"]) > 1]
    if not rows:
        return ""
    budgets = [row["tokens"] for row in rows]
    tokens = max(sorted(set(budgets)), key=budgets.count)
    colour_of = colours(findings.used)
    series = []
    for row in rows:
        if row["tokens"] == tokens:
            colour = colour_of[row["n"]]
            lowest = min(loss for _, loss in row["losses"])
            above = [(lr, loss - lowest) for lr, loss in row["losses"]]
            best, others = [p for p in above if p[0] == row["best_lr"]], [p for p in above if p[0] != row["best_lr"]]
            series.append(Series("", above, colour))
            series += [Series(f"N {short(row['n'])}", best, colour, "dots"), Series("", others, colour, "rings")]
    title = f"learning rate, at {short(tokens)} tokens"
    return log_chart(series, title, "loss above the lowest of the size, nats a token", log_y=False)


def errors_by_compute(findings: Findings) -> str:
    """How far each run is from the law of all, and a held-back run from that of the others, with its interval."""
    record = findings.record
    fitted = [(row["flops"], percent(row["loss"], row["fitted"])) for row in record["points"] if row["fitted"]]
    apart = record["held_back"]["predictions"]
    if not fitted and not apart:
        return ""
    flops = [point.flops for point in findings.used]
    series = [Series("", [(min(flops), 0.0), (max(flops), 0.0)], GREY)]
    if fitted:
        series.append(Series("fitted", fitted, ORDERED[1], "dots"))
    for i, row in enumerate(apart):
        error = percent(row["measured"], row["predicted"])
        series.append(Series("" if i else "held back", [(row["flops"], error)], RED, "rings"))
        if row["interval"]:
            bar = [(row["flops"], percent(end, row["predicted"])) for end in row["interval"]]
            series.append(Series("" if i else "95% of a run", bar, RED))
    return log_chart(series, "FLOPs C", "measured against the law, %", log_y=False)


def percent(loss: float, law: float) -> float:
    return 100 * (loss / law - 1)


def plots(findings: Findings) -> dict[str, str]:
    """Name -> SVG; empty where the runs do not tell it."""
    return {
        "loss_by_tokens": loss_by_tokens(findings),
        "loss_by_size": loss_by_size(findings),
        "loss_by_compute": loss_by_compute(findings),
        "optimum_by_compute": optimum_by_compute(findings.record),
        "isoflop": isoflop_chart(findings.record),
        "loss_by_rate": loss_by_rate(findings),
        "errors_by_compute": errors_by_compute(findings),
    }


# Tables and the page.


def law_table(record: Mapping[str, Any]) -> str:
    rows = []
    for name, law in law_rows(record):
        cells = []
        for key in ("E", "A", "alpha", "B", "beta"):
            row = law["constants"].get(key)
            text = constant(row) if row else ""
            cells.append((text, "" if row is None or row["determined"] else "bad"))
        rows.append([name, *cells, f"{law['runs']}", f"{law['rms_residual']:.2%}"])
    return table(["law", "E", "A", "alpha", "B", "beta", "runs", "residual"], rows)


def constant(row: Mapping[str, Any]) -> str:
    """A value and its interval, in few characters."""
    value = short(row["value"]) if row["value"] >= 100 else f"{row['value']:.3f}"
    if row["interval"] is None:
        return value
    return f"{value} {ends(row['interval'], '.2f') if row['interval'][1] < 100 else scaled(row['interval'])}"


def held_back_table(record: Mapping[str, Any]) -> str:
    rows = []
    for row in record["held_back"]["predictions"]:
        verdict = {True: ("inside", "good"), False: ("outside", "bad"), None: ("–", "")}[row["inside"]]
        figures = [f"{row['predicted']:.4f}", ends(row["interval"], ".4f"), f"{row['measured']:.4f}"]
        rows.append([row["name"], *figures, f"{row['error']:+.2%}", verdict, how_far(row["beyond"])])
    return table(["run", "predicted", "95% of a run", "measured", "error", "", "how far"], rows)


def frontier_table(record: Mapping[str, Any]) -> str:
    rows = []
    for row in (record["frontier"] or {"at": []})["at"]:
        n, tokens = (f"{short(row[key])} {scaled(row[f'{key}_interval'])}" for key in ("n", "tokens"))
        seen = how_far(row["beyond"]) if row["in_sight"] else "no optimum in sight"
        rows.append(
            [short(row["flops"]), n, tokens, number(row["tokens_per_parameter"]), f"{row['loss']:.3f}", (seen, "")]
        )
    return table(["FLOPs C", "size N", "tokens D", "D / N", "loss", "how far"], rows)


def rate_table(record: Mapping[str, Any]) -> str:
    rows = []
    for row in record["rates"]["rows"]:
        if len(row["losses"]) > 1:
            tried = ", ".join(f"{lr:g}: {loss:.4f}" for lr, loss in row["losses"])
            border = (f"{row['at_border']} tried", "bad") if row["at_border"] else ("inside", "")
            bottom = number(row["lr_at_bottom"])
            rows.append([short(row["n"]), short(row["tokens"]), f"{row['best_lr']:g}", bottom, border, tried])
    return table(["size N", "tokens D", "best lr", "bottom of the parabola", "", "loss by lr"], rows)


def point_table(record: Mapping[str, Any]) -> str:
    rows = []
    for row in record["points"]:
        fitted = "–" if row["fitted"] is None else f"{row['fitted']:.4f} ({percent(row['loss'], row['fitted']):+.2f}%)"
        figures = [short(row[key]) for key in ("n", "tokens", "flops")]
        used = ("yes", "good") if row["at_best_lr"] else ("", "")
        rows.append([row["name"], *figures, f"{row['lr']:g}", f"{row['loss']:.4f}", used, fitted])
    head = [
        "run",
        "size N",
        "tokens D",
        "FLOPs",
        "6 N D",
        "lr",
        "seed",
        "loss",
        "best lr",
        "fitted (measured − fitted)",
    ]
    return table(head, rows)


def tiles(record: Mapping[str, Any]) -> str:
    shown = []
    if law := record["laws"]["n_and_d"]:
        constants = law["constants"]
        for name, caption in (("alpha", "exponent of size"), ("beta", "exponent of tokens"), ("E", "floor, nats")):
            row = constants[name]
            sure = "" if row["determined"] else "; not determined"
            shown.append((f"{row['value']:.3f}", f"{name}, {caption} {ends(row['interval'])}{sure}"))
    if record["frontier"]:
        share = record["frontier"]["exponents_6nd"]["n"]
        shown.append((f"C^{share['value']:.2f}", f"optimal size, C = 6 N D {ends(share['interval'])}"))
    errors = [abs(row["error"]) for row in record["held_back"]["predictions"]]
    if errors:
        inside = sum(row["inside"] is True for row in record["held_back"]["predictions"])
        shown.append((f"{max(errors):.1%}", f"largest error of a held-back run; {inside} of {len(errors)} in interval"))
    return f"<div class=tiles>{''.join(tile(*pair) for pair in shown)}</div>"


def items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def rate_law(record: Mapping[str, Any]) -> str:
    if not (law := record["rates"]["law"]):
        return "Too few sizes with a best rate inside of their grid for a law of it."
    return (
        f"The bottoms follow {law['factor']:.3g} · N^{law['exponent']:.3f} {ends(law['exponent_interval'])} "
        f"({law['points']} sizes at {short(law['tokens'])} tokens)."
    )


def held_back_law(record: Mapping[str, Any]) -> str:
    if not (rows := record["held_back"]["predictions"]):
        return "Nothing was held back."
    forms = sorted({f"{row['form']} of the other {row['runs']} runs" for row in rows})
    return f"Held-back runs are predicted by {' and by '.join(forms)}."


def page(findings: Findings, drawn: Mapping[str, str]) -> str:
    record = findings.record
    counted = {"non_embedding": "parameters beside the embedding and the head", "all": "all parameters"}
    n = counted.get(record.get("parameters", ""), "parameters")
    law = record["laws"]["n_and_d"]
    intro = f"L = {formula(law)}" if law else f"L(N, D) was not fitted: {record['not_fitted']['n_and_d']}"
    isoflop = record["isoflop"]
    parabolas = ""
    if isoflop and isoflop["law"]:
        fitted = isoflop["law"]
        parabolas = f" Their bottoms: N ~ C^{fitted['exponent']:.3f} {ends(fitted['exponent_interval'])}."
    left_out = table(["run", "why"], [[one["name"], one["why"]] for one in record["left_out"]])
    sections = [
        section("What to know first", "", items(record["warnings"])),
        section(
            "The laws",
            f"N: {n}; D: tokens trained on; L: {LOSS} where the rate has fallen. Huber loss on log L, "
            f"{record['level']:.0%} intervals from resampled runs. Red: not determined by these runs (the interval is "
            "wider than the value, or there is none). Residual: root mean square, of log L.",
            law_table(record),
        ),
        section(
            "Loss by tokens",
            "Dots are runs, curves L(N, D) with its interval; to three times the tokens that ran.",
            drawn["loss_by_tokens"],
        ),
        section("Loss by size", "At each number of tokens its own law L(N), to twice the size.", drawn["loss_by_size"]),
        section(
            "Loss by compute",
            "FLOPs that the nets take, attention and head included. Grey: the lowest loss of a budget.",
            drawn["loss_by_compute"],
        ),
        section(
            "Compute-optimal runs",
            "The size and the tokens of the lowest loss for a budget, with intervals. Dashed, and in the table named "
            "by how far: beyond what ran.",
            drawn["optimum_by_compute"],
            frontier_table(record),
        ),
        section("Equal compute", f"Parabolas through runs of one budget.{parabolas}", drawn["isoflop"]),
        section(
            "Learning rate by size",
            f"Filled: the best of each size, the run that counts. {rate_law(record)}",
            drawn["loss_by_rate"],
            rate_table(record),
        ),
        section(
            "Predicted and measured",
            f"{held_back_law(record)} The interval is where 95% of such runs would be.",
            drawn["errors_by_compute"],
            held_back_table(record),
        ),
        section("Points", "", point_table(record)),
        section("Left out", "Runs that are no points of a law.", left_out),
    ]
    title = "Scaling laws"
    count = f"{len(record['points'])} points, {len(findings.used)} of them at the best rate of their size and tokens"
    head = f"<h1>{title}</h1><p><b>{escape(intro)}</b></p><p class=soft>{count}.</p>"
    return document(title, head + tiles(record) + "".join(sections))


def write_report(out: Path, findings: Findings) -> Path:
    """Write law.json, the plots and index.html, whose path is returned."""
    drawn = plots(findings)
    write_json(out / "law.json", findings.record)
    for name, drawing in drawn.items():
        if drawing:
            atomic_write(out / f"{name}.svg", SVG_HEAD + drawing)
        else:
            (out / f"{name}.svg").unlink(missing_ok=True)  # of a former fit
    atomic_write(out / "index.html", page(findings, drawn))
    return out / "index.html"
