"""Where a member of a sweep stands, read from its run folder, and what earlier stages decide for it.

    decision = decide(sweep, member)         # the rest of its overrides, or what it waits for
    state = look(member, decision.overrides) # finished, running, stopped, begun, new

A folder whose config is another's is refused; settings that do not change what comes out may differ.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvm.cluster import slurm
from lvm.cluster.runs import read_mapping
from lvm.cluster.sweeps import RESULT, Best, BranchFrom, Member, Sweep, compose, hydra_text
from lvm.runtime import UserError, read_json
from lvm.runtime.checkpoint import step_folder
from lvm.runtime.configs import differences, flat, shown
from lvm.runtime.lease import may_take_over

RECORD = "sweep.json"  # of the sweep: what its last call saw of each member
GIVEN_UP = ("failed", "stopped", "refused", "blocked")  # for this call: the next one tries again

# Where and how a run works, and how often it speaks and saves: not what comes out of it.
_FREE = re.compile(
    r"(run_dir|logger(\..*)?|trainer\.(micro_batch_size|attention|compile|log_every_steps|save_every_steps|"
    r"answer_every_steps|profile_steps.*|memory_snapshot|keep_\w+|parallel\..*|\w+_timeout_seconds|loader_workers|"
    r"num_threads|accelerator|devices|num_nodes))"
)
_PATHS = ("branch_from", "init_from")


@dataclass(frozen=True)
class Decision:
    """`overrides` are complete unless `waits_for` says what is missing."""

    overrides: tuple[str, ...]
    waits_for: str = ""
    notes: tuple[str, ...] = ()  # what a reader of the results must know


@dataclass(frozen=True)
class State:
    kind: str  # finished, stopped (by a signal, after saving), running, begun (no longer running), new
    result: dict[str, Any] | None = None
    why: str = ""


# What earlier stages decide.


def decide(sweep: Sweep, member: Member) -> Decision:
    overrides = list(member.overrides)
    notes: list[str] = []
    if member.best is not None:
        value, waits_for, notes = best_value(sweep, member, member.best)
        if value is None:
            return Decision(tuple(overrides), waits_for)
        overrides.append(f"{member.best.key}={value}")
    if member.branch_from is not None:
        checkpoint = checkpoint_of(sweep, member, member.branch_from)
        overrides.append(f"branch_from={hydra_text(str(checkpoint))}")
        if not (checkpoint / "manifest.json").is_file():
            return Decision(tuple(overrides), f"needs {checkpoint}, which is not there", tuple(notes))
    return Decision(tuple(overrides), notes=tuple(notes))


def related(sweep: Sweep, member: Member, stage: str, by: str | None) -> list[Member]:
    return [m for m in sweep.members[stage] if by is None or m.values[by] == member.values[by]]


def best_value(sweep: Sweep, member: Member, best: Best) -> tuple[str | None, str, list[str]]:
    """(the best value as in an override, what is missing where there is none, notes)."""
    group = related(sweep, member, best.stage, best.by)
    of_whom = f"{best.by}={member.values[best.by]}" if best.by else "all"
    results = {m: read_result(m.folder) for m in group}
    losses = {m: loss for m, result in results.items() if (loss := final_loss(result)) is not None}
    told = told_states(sweep)
    if coming := [m.id for m in group if not is_finished(results[m]) and told.get(m.id) not in GIVEN_UP]:
        return None, f"needs {', '.join(coming[:2])}{' and more' if len(coming) > 2 else ''}, not finished yet", []
    if not losses:
        return None, f"needs a finished member of stage {best.stage} with {of_whom} and a final validation loss", []
    winner = min(losses, key=losses.__getitem__)
    notes = []
    if missing := [m.values[best.key] for m in group if m not in losses]:
        notes.append(f"best {best.key} for {of_whom} is of an incomplete grid: {', '.join(missing)} came to no loss")
    if (side := border(winner.values[best.key], [m.values[best.key] for m in group])) is not None:
        notes.append(
            f"best {best.key} for {of_whom} is {winner.values[best.key]}, the {side} of the grid: "
            f"a better one may lie {'below' if side == 'lowest' else 'above'}"
        )
    return winner.value(best.key), "", notes


def border(value: str, grid: Sequence[str]) -> str | None:
    """lowest or highest where a number is at the end of its grid; None inside it and for what is no number."""
    try:
        numbers = sorted({float(text) for text in grid})
    except ValueError:
        return None
    if len(numbers) < 2 or float(value) not in (numbers[0], numbers[-1]):
        return None
    return "lowest" if float(value) == numbers[0] else "highest"


def checkpoint_of(sweep: Sweep, member: Member, branch: BranchFrom) -> Path:
    found = related(sweep, member, branch.stage, branch.by)
    if len(found) != 1:
        raise UserError(
            f"{member.id}: branch_from finds {len(found)} members in stage {branch.stage}; give `by`, a key that "
            "tells them apart"
        )
    step = branch.step if isinstance(branch.step, int) else member.value(branch.step)
    if step is None:
        raise UserError(f"{member.id}: branch_from.step is {branch.step}, which is none of its overrides")
    return step_folder(found[0].folder / "checkpoints", int(step))


# Where a member stands.


def look(member: Member, overrides: Sequence[str]) -> State:
    """Raises `UserError` for a folder that holds a run of another config."""
    if not (member.folder / "config.json").is_file():
        return State("new")
    saved = read_json(member.folder / "config.json")
    if lines := config_differences(saved, compose(overrides), compose([])):
        raise UserError(
            f"{member.folder} holds a run of another config: {shown(lines)}; remove it or give out=OTHER_FOLDER"
        )
    result = read_result(member.folder)
    if is_finished(result):
        return State("finished", result)
    if is_running(member.folder):
        return State("running", result)
    if result is not None:
        return State("stopped", result, f"stopped by signal {result['signal']} at step {result['step']}")
    return State("begun")


def read_result(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULT
    result: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return result


def is_finished(result: Mapping[str, Any] | None) -> bool:
    return bool(result and result["finished"])


def told_states(sweep: Sweep) -> dict[str, str]:
    """Member id -> its state in sweep.json."""
    path = sweep.folder / RECORD
    members = read_json(path)["members"] if path.is_file() else {}
    return {name: facts.get("state", "") for name, facts in members.items()}


def final_loss(result: Mapping[str, Any] | None) -> float | None:
    """Validation loss after the last step of a finished run; None for one that is not finite too."""
    if result is None or not is_finished(result) or result.get("validation_step") != result["step"]:
        return None
    loss = float(result["validation_loss"])
    return loss if math.isfinite(loss) else None


def is_running(folder: Path) -> bool:
    """Whether somebody holds the run's lease and may live."""
    lease = read_mapping(folder / "lease.json")
    if not lease or lease.get("released") or may_take_over(lease):
        return False
    if (job_id := slurm.job_of_lease(lease)) and slurm.has_slurm():
        job = slurm.jobs([job_id]).get(job_id)
        return job is not None and not job.ended
    return True


def owner(folder: Path) -> str:
    """Who holds the run's lease."""
    lease = read_mapping(folder / "lease.json")
    return f"pid {lease.get('pid')} on {lease.get('host')} since {lease.get('since')}"


def config_differences(saved: Mapping[str, Any], now: Mapping[str, Any], default: Mapping[str, Any]) -> list[str]:
    """As `differences`, of the keys that decide what comes out.

    A key that came into being since the run counts only where it is not at its default.
    """
    before, after, plain = (_deciding(config) for config in (saved, now, default))
    mixture = ("data.entries.", "data.sources.")
    new_keys = {key: plain[key] for key in after if key in plain and not key.startswith(mixture)}
    return differences(new_keys | before, after)


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    leaves = {key: value for key, value in flat(config) if not _FREE.fullmatch(key)}
    return leaves | {key: str(Path(leaves[key]).resolve()) for key in _PATHS if leaves.get(key)}
