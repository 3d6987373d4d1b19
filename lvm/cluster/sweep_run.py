"""Running a sweep: stage after stage, members that are done skipped, those that failed started again.

What it found is in SWEEP/sweep.json (members, their state, why they failed, what a reader must know), rewritten as it
changes. One process at a time runs a sweep (sweep-lease.json); its members outlive it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from lvm.cluster import slurm
from lvm.cluster.sweep_launchers import LaunchOptions, SubmititLauncher, Work, last_line, make_launcher, written_at
from lvm.cluster.sweep_state import RECORD, decide, is_running, look, owner
from lvm.cluster.sweeps import RESULT, Member, Sweep
from lvm.runtime import UserError, read_json, write_json
from lvm.runtime.lease import RunLease
from lvm.runtime.signals import StopFlag


class Record:
    """SWEEP/sweep.json: one entry a member, {"state", "why", "notes", "job", "overrides"}."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.path = sweep.folder / RECORD
        saved = read_json(self.path)["members"] if self.path.is_file() else {}
        self.members: dict[str, dict[str, Any]] = {m.id: saved.get(m.id, {}) for m in sweep.all_members()}

    def note(self, member: Member, **facts: Any) -> None:
        self.members[member.id] |= facts
        write_json(self.path, self._content(), sort_keys=False)

    def _content(self) -> dict[str, Any]:
        config = asdict(self.sweep.config)
        return {"name": self.sweep.name, "overrides": self.sweep.overrides, "config": config, "members": self.members}


def check_before(sweep: Sweep, stages: Sequence[str], check: Callable[[Sequence[str]], None]) -> None:
    """Refuse before anything is started: overrides that make no config, folders of other runs, a stage whose members
    can none of them be decided and whose needs no stage of this call fills."""
    for stage in stages:
        waiting = []
        for member in sweep.members[stage]:
            decision = decide(sweep, member)
            check(decision.overrides)
            if not decision.waits_for:
                look(member, decision.overrides)
            waiting.append(decision.waits_for)
        reference = sweep.config.stages[stage]
        needs = {r.stage for r in (reference.best, reference.branch_from) if r is not None}
        if all(waiting) and not needs & set(stages):
            raise UserError(f"stage {stage}: every member {waiting[0].removeprefix('needs ')} is missing; run it first")


def run_sweep(
    sweep: Sweep,
    options: LaunchOptions,
    check: Callable[[Sequence[str]], None],
    stages: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
    poll_seconds: float = 0.5,
) -> int | None:
    """Run what is not done. The number of a signal that stopped it, or None; what became of members is in sweep.json.

    Raises `UserError` before anything is started.
    """
    chosen = list(sweep.members) if stages is None else list(stages)
    check_before(sweep, chosen, check)
    launcher = make_launcher(options, sweep.folder)
    with RunLease(sweep.folder, "sweep-lease.json"), StopFlag() as flag:
        record = Record(sweep)
        for stage in chosen:
            works, foreign = _sort_out(sweep, stage, options, record, say)
            try:
                _start(stage, works, launcher, record, say)
                completed = _watch(works, foreign, launcher, record, say, flag, poll_seconds)
            except BaseException:
                launcher.leave()
                raise
            if not completed:
                say(f"stopped: {launcher.leave()}")
                return int(flag.received or 0)
    return None


def _sort_out(
    sweep: Sweep, stage: str, options: LaunchOptions, record: Record, say: Callable[[str], None]
) -> tuple[list[Work], list[Work]]:
    """(members to start, members that others run already) of a stage."""
    works, foreign = [], []
    counts = dict.fromkeys(("finished", "running"), 0)
    for member in sweep.members[stage]:
        try:
            decision = decide(sweep, member)
            if decision.waits_for:
                record.note(member, state="blocked", why=decision.waits_for, overrides=decision.overrides)
                say(f"{member.id}: {decision.waits_for}")
                continue
            state = look(member, decision.overrides)
        except UserError as error:
            record.note(member, state="refused", why=str(error))
            say(f"{member.id}: {error}")
            continue
        job = record.members[member.id].get("job", "")
        work = Work(member, (*decision.overrides, *options.devices()), job)
        known = dict(overrides=decision.overrides, notes=decision.notes)
        for text in decision.notes:
            say(f"{member.id}: {text}")
        if state.kind == "finished":
            counts["finished"] += 1
            record.note(member, state="finished", why="", **known)
        elif state.kind == "running" or _is_queued(job):
            counts["running"] += 1
            record.note(member, state="running", why="", **known)
            who = f"job {job}" if _is_queued(job) else owner(member.folder)
            say(f"{member.id}: at work already by {who}, waited for")
            foreign.append(work)
        else:
            record.note(member, state="queued", why="", job="", **known)
            works.append(work)
    say(f"stage {stage}: {counts['finished']} done, {counts['running']} running already, {len(works)} to run")
    return works, foreign


def _is_queued(job: str) -> bool:
    """Whether a job of an earlier call still waits or works."""
    found = slurm.jobs([job]).get(job) if job and slurm.has_slurm() else None
    return found is not None and not found.ended


def _start(stage: str, works: list[Work], launcher: Any, record: Record, say: Callable[[str], None]) -> None:
    if not works:
        return
    launcher.start(stage, works)
    for work in works:
        record.note(work.member, job=work.job)
    if works[0].job:
        say(f"stage {stage}: submitted as {', '.join(work.job for work in works)}")


def _watch(
    works: list[Work],
    foreign: list[Work],
    launcher: Any,
    record: Record,
    say: Callable[[str], None],
    flag: StopFlag,
    poll_seconds: float,
) -> bool:
    """Until all have ended; false if a signal came first."""
    started = {id(work) for work in works}
    still_open = [*works, *foreign]
    if isinstance(launcher, SubmititLauncher):
        for work in foreign:
            if work.job:
                launcher.adopt(work)
                started.add(id(work))
    while still_open:
        for work in list(still_open):
            ours = id(work) in started
            ended = launcher.poll(work) if ours else _poll_foreign(work)
            if ended is not None:
                still_open.remove(work)
                _settle(work, ended, record, say)
        if flag.requested:
            return False
        if still_open:
            time.sleep(poll_seconds)
    return True


def _poll_foreign(work: Work) -> str | None:
    return None if is_running(work.member.folder) or _is_queued(work.job) else "ended elsewhere"


def _settle(work: Work, ended: str, record: Record, say: Callable[[str], None]) -> None:
    """Write down what a member came to."""
    state = look(work.member, work.overrides)
    if state.kind == "finished":
        assert state.result is not None
        record.note(work.member, state="finished", why="")
        loss = float(state.result.get("validation_loss", state.result["loss"]))  # a text where it is not finite
        say(f"{work.member.id}: finished, loss {loss:.4f}")
        return
    if state.kind == "stopped" and written_at(work.member.folder / RESULT) != work.former_result:
        record.note(work.member, state="stopped", why=state.why)
    else:
        line = last_line(work.log, work.log_start)
        record.note(work.member, state="failed", why=f"{ended}; {line}" if line else ended)
    facts = record.members[work.member.id]
    say(f"{work.member.id}: {facts['state']}: {facts['why']}")


def not_done(sweep: Sweep, stages: Sequence[str]) -> list[str]:
    """Ids of members that did not finish, with why."""
    record = Record(sweep)
    open_members = [m for s in stages for m in sweep.members[s] if record.members[m.id].get("state") != "finished"]
    return [f"{m.id} ({record.members[m.id].get('state', 'not begun')})" for m in open_members]
