"""What a sweep came to, one row a member: SWEEP/table.json and table.md."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lvm.cluster.sweep_run import Record
from lvm.cluster.sweep_state import decide, final_loss, is_finished, look, read_result
from lvm.cluster.sweeps import Member, Sweep
from lvm.runtime import UserError, atomic_write, read_json, write_json

COLUMNS = ("member", "size", "lr", "tokens", "flops", "validation_loss", "tokens_per_second", "state", "why")


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    record = Record(sweep)
    return [_row(sweep, member, record.members[member.id]) for member in sweep.all_members()]


def _row(sweep: Sweep, member: Member, known: Mapping[str, Any]) -> dict[str, Any]:
    state, why, notes = _state(sweep, member, known)
    row: dict[str, Any] = {"member": member.id, "stage": member.stage, **member.values}
    row |= {"state": state, "why": why, "notes": notes, "folder": str(member.folder)}
    config = member.folder / "config.json"
    row["lr"] = read_json(config)["optim"]["lr"] if config.is_file() else None
    result = read_result(member.folder) or {}
    row["size"] = result.get("non_embedding_parameters")
    row["parameters"] = result.get("parameters")
    row["steps"], row["tokens"], row["seconds"] = (result.get(key) for key in ("step", "tokens", "seconds"))
    row["flops"] = result["flops_per_token"] * result["tokens"] if result else None
    row["loss"] = result.get("loss")
    row["validation_loss"] = final_loss(result)
    row["validation_loss_by_source"] = result.get("validation_loss_by_source") if final_loss(result) else None
    row["tokens_per_second"] = result["tokens"] / result["seconds"] if result.get("seconds") else None
    return row


def _state(sweep: Sweep, member: Member, known: Mapping[str, Any]) -> tuple[str, str, Sequence[str]]:
    """What the folder says now; why a run failed only the one who watched it knows."""
    try:
        decision = decide(sweep, member)
        if decision.waits_for and is_finished(read_result(member.folder)):  # made by hand, ahead of its turn
            return "finished", "", (f"{member.id} was made before what it {decision.waits_for}",)
        if decision.waits_for:
            return known.get("state", "waits"), known.get("why") or decision.waits_for, decision.notes
        state = look(member, decision.overrides)
    except UserError as error:
        return "refused", str(error), ()
    if state.kind in ("finished", "running", "stopped"):
        return state.kind, state.why, decision.notes
    told = known.get("state") if known.get("state") not in ("finished", "running", None) else None
    return told or ("failed" if state.kind == "begun" else "new"), known.get("why", ""), decision.notes


# As text.

_FORMATS = {
    "size": lambda v: f"{v:,}",
    "lr": lambda v: f"{v:g}",
    "tokens": lambda v: f"{v:,}",
    "flops": lambda v: f"{v:.3g}",
    "validation_loss": lambda v: f"{v:.4f}",
    "tokens_per_second": lambda v: f"{v:,.0f}",
}


def _cell(column: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    return _FORMATS.get(column, str)(value)


def as_text(table: Sequence[Mapping[str, Any]]) -> str:
    """For a terminal; why a member failed stands in lines of its own."""
    columns = [column for column in COLUMNS if column != "why"]
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [[_cell(column, row[column]) for column in columns] for row in table]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
    reasons = [f"{row['member']}: {row['why']}" for row in table if row["why"] and row["state"] != "waits"]
    return "\n".join([*lines, *reasons, *_notes(table)])


def as_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| " + " | ".join(column.replace("_", " ") for column in COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cell(c, row[c]).replace("|", "\\|") for c in COLUMNS) + " |" for row in table]
    lines += ["", *(f"- {note}" for note in _notes(table))]
    by_source = [row for row in table if row["validation_loss_by_source"]]
    if len({tuple(row["validation_loss_by_source"]) for row in by_source}) > 1:
        lines += ["", *_by_source(by_source)]
    return "\n".join(lines) + "\n"


def _by_source(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Members of different mixtures are validated on different ones: only a source's own loss compares."""
    names = list(dict.fromkeys(name for row in table for name in row["validation_loss_by_source"]))
    lines = ["Final validation loss by source; the members were validated on different mixtures.", ""]
    lines += ["| member | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in table:
        losses = [row["validation_loss_by_source"].get(name) for name in names]
        lines.append("| " + " | ".join([row["member"], *("" if v is None else f"{v:.4f}" for v in losses)]) + " |")
    return lines


def _notes(table: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(note for row in table for note in row["notes"]))


def as_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Every figure; losses by source in columns of their own."""
    flat = []
    for row in table:
        by_source = row["validation_loss_by_source"] or {}
        plain = {key: value for key, value in row.items() if key not in ("validation_loss_by_source", "notes")}
        flat.append(plain | {f"validation_loss.{name}": loss for name, loss in by_source.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def write_table(sweep: Sweep) -> list[dict[str, Any]]:
    table = rows(sweep)
    write_json(sweep.folder / "table.json", table, sort_keys=False)
    atomic_write(sweep.folder / "table.md", as_markdown(table))
    return table
