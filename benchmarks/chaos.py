"""A run killed at random moments, again and again: python -m benchmarks.chaos [--kills 100] [--ranks 2] [--json FILE]

The command of `train.py` on several ranks (gloo, a net of seconds, the world's store, validation, checkpoints written
beside the training) is sent SIGKILL, one rank or all of them, and started again, until it has been killed so often and
has finished. Each kill is aimed at a phase: this process watches the run's files, waits until the phase begins for the
first, second or third time, and then a random part of the time it takes. What counts is the phase the kill fell into.

Ranks are processes forked from this one, which has torch imported, so that a start costs no import; a kill is a kill.
Their fsync and unlink take some milliseconds more, as on a shared disk, so that moments between them can be hit.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from benchmarks.alone import free_port
from lvm.commands import train
from lvm.runtime import UserError, exit_with_one_line, write_json
from lvm.runtime.checkpoint import list_checkpoints, verify_checkpoint
from lvm.runtime.config_files import load_config
from lvm.runtime.machine import git_commit, machine_description
from lvm.runtime.metrics import read_metrics
from tokenizer import VQGAN, VQGANConfig

SAVE_EVERY, VALIDATE_EVERY, KEEP = 6, 4, 2
STEPS_PER_KILL = 5  # of the run's length; a run that ends too early is followed by another one
PEER_TIMEOUT, START_TIMEOUT = 10.0, 15.0
STUCK = 90.0  # seconds after which a survivor counts as one that does not end by itself
# How many of a hundred kills are aimed at each phase, in the order in which a run comes to them.
PHASES = {
    "starting": 15,  # until the lease is taken: config, plan, process group
    "resuming": 17,  # checkpoints verified and read, model and loader made
    "training": 14,
    "validating": 12,
    "saving": 20,  # tensors, state and manifest are being written and synced
    "renaming": 10,  # the manifest is there and the folder not in its place
    "removing": 9,  # an old checkpoint
    "ending": 3,  # after the last step
}


# The ranks.


def overrides(folder: Path, run: str, ranks: int, steps: int) -> list[str]:
    model = "num_codes=32 tokens_per_picture=4 hidden_size=32 intermediate_size=48"
    trainer = f"max_steps={steps} batch_size=4 log_every_steps=1 num_threads=1 accelerator=cpu devices={ranks} "
    trainer += f"save_every_steps={SAVE_EVERY} keep_checkpoints={KEEP} peer_timeout_seconds={PEER_TIMEOUT:g} "
    trainer += f"start_timeout_seconds={START_TIMEOUT:g} validate_every_steps={VALIDATE_EVERY} validation_windows=32"
    return [
        "experiment=debug",
        f"run_dir={folder / run}",
        f"tokenizer={folder / 'tokenizer'}",
        *(f"model.{setting}" for setting in model.split()),
        *(f"trainer.{setting}" for setting in trainer.split()),
        *("world.num_scenes=120", "world.num_clips=12", "data.seq_len=16", "data.period=32"),
    ]


def write_tokenizer(folder: Path) -> None:
    """A random one of 4 codes a picture."""
    sizes = {"hidden_channels": 8, "z_channels": 4, "quantized_embed_dim": 4, "num_embeddings": 32, "resolution": 16}
    torch.manual_seed(4)
    VQGAN(VQGANConfig(channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=2, **sizes)).save_pretrained(folder)


def slowly(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments, **options)

    return slow


def forked(work: Callable[[], object], log: Path) -> int:
    """A process that does `work` and exits as a command would, its output appended to `log`; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        exit_with_one_line(work)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_ranks(folder: Path, run: str, ranks: int, steps: int, slow_disk: bool) -> list[int]:
    """The command, as torchrun starts it; pids by rank."""
    command, port = overrides(folder, run, ranks, steps), free_port()

    def work(rank: int) -> object:
        launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "chaos"}
        os.environ |= {key: str(value) for key, value in launcher.items()} | {"LVM_CACHE": str(folder / "cache")}
        if slow_disk:
            os.fsync, os.unlink = slowly(os.fsync, 0.01), slowly(os.unlink, 0.005)
        return train.main(command)

    return [forked(lambda: work(rank), folder / f"{run}.rank-{rank}.log") for rank in range(ranks)]  # noqa: B023


# What a run's files say of the moment.


class Watch:
    """The phase of one incarnation, from what lies in its folder."""

    def __init__(self, run_dir: Path, steps: int):
        self.run_dir, self.steps = run_dir, steps
        self.checkpoints, self.metrics = run_dir / "checkpoints", run_dir / "metrics"
        self._lease = self._read_lease()
        self._file = self.metrics / f"attempt-{sum(1 for _ in self.metrics.glob('attempt-*')):04d}.jsonl"

    def _read_lease(self) -> str:
        try:
            return str(json.loads((self.run_dir / "lease.json").read_text())["token"])
        except (OSError, ValueError, KeyError):
            return ""

    def last_record(self) -> dict[str, Any] | None:
        """Of this incarnation; None before there is one."""
        try:
            with open(self._file, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().split(b"\n")[:-1]
            return dict(json.loads(lines[-1])) if lines else None
        except (OSError, ValueError):
            return None

    def phase(self) -> str:
        if not self._file.exists():
            return "starting" if self._read_lease() == self._lease else "resuming"
        names = set(os.listdir(self.checkpoints))
        if any(name.startswith(".old-") for name in names):
            return "removing"
        for name in names:
            if name.startswith(".tmp-"):
                return "renaming" if (self.checkpoints / name / "manifest.json").exists() else "saving"
        record = self.last_record() or {"step": 0}
        if record["step"] and record["step"] % VALIDATE_EVERY == 0 and "validation_loss" not in record:
            return "validating"
        return "ending" if record["step"] >= self.steps else "training"

    def records(self) -> list[dict[str, Any]]:
        """Of this incarnation; of a half line nothing."""
        try:
            return [json.loads(line) for line in self._file.read_bytes().split(b"\n")[:-1]]
        except FileNotFoundError:
            return []

    def newest_step(self) -> int:
        return max((int(path.name.removeprefix("step-")) for path in list_checkpoints(self.checkpoints)), default=0)


# One incarnation: started, killed, buried.


@dataclass(frozen=True)
class Aim:
    phase: str
    time: int  # which time the phase is entered
    part: float  # of what the phase takes
    victims: tuple[int, ...]  # ranks; all of them at once, or one


@dataclass
class Life:
    """What became of one incarnation."""

    seconds: float = 0.0
    codes: dict[int, int] = field(default_factory=dict)  # exit codes by rank, negative for signals
    phase: str = ""  # in which it was killed; "" where it was not
    victims: tuple[int, ...] = ()
    steps_lost: int = 0
    seconds_lost: float = 0.0  # of its life, what has to be lived again: all but what led to its last checkpoint
    survivor_seconds: list[float] = field(default_factory=list)  # from the kill until a survivor ended by itself
    stuck: int = 0  # survivors that did not
    resumed_wrong: bool = False  # not at the newest checkpoint there was
    spans: dict[str, list[float]] = field(default_factory=dict)  # seconds of each phase that came to its end


def aims(kills: int, ranks: int, draw: random.Random) -> list[Aim]:
    """As many of each phase as PHASES says, in a random order; those at the end of the run come last."""
    names = [name for name, weight in PHASES.items() for _ in range(weight)]
    chosen = [names[int((i + draw.random()) * len(names) / kills)] for i in range(kills)]
    draw.shuffle(chosen)
    chosen.sort(key="ending".__eq__)
    everyone = tuple(range(ranks))
    victims = [everyone if draw.random() < 0.5 else (draw.randrange(ranks),) for _ in chosen]
    once = ("starting", "resuming", "ending")
    times = [1 if name in once else draw.randint(1, 3) for name in chosen]
    return [Aim(*drawn) for drawn in zip(chosen, times, (draw.random() for _ in chosen), victims)]


def live(folder: Path, run: str, ranks: int, steps: int, aim: Aim | None, takes: dict[str, float]) -> Life:
    """One start of the command, killed as `aim` says; `takes`: seconds of each phase."""
    watch, life = Watch(folder / run, steps), Life()
    step_before, start = watch.newest_step(), time.time()
    pids = start_ranks(folder, run, ranks, steps, slow_disk=True)
    ended: dict[int, tuple[int, float]] = {}
    phase, since, loop_started, entered = "", start, 0.0, Counter[str]()
    kill_at, killed_at = float("inf"), 0.0
    while len(ended) < ranks:
        for rank, pid in enumerate(pids):
            if rank not in ended and (found := os.waitpid(pid, os.WNOHANG))[0]:
                ended[rank] = os.waitstatus_to_exitcode(found[1]), time.time()
        now = time.time()
        if killed_at:
            if now > killed_at + STUCK:
                life.stuck = max(life.stuck, ranks - len(ended))
                kill(pids, set(range(ranks)) - set(ended))
            time.sleep(0.01)
            continue
        if (seen := watch.phase()) != phase:
            if phase:
                life.spans.setdefault(phase, []).append(now - since)
            phase, since = seen, now
            entered[phase] += 1
            if not loop_started and phase not in ("starting", "resuming"):
                loop_started = now
            if aim is not None and (phase, entered[phase]) == (aim.phase, aim.time):
                kill_at = now + aim.part * takes[phase]
        if aim is not None and not ended and (now >= kill_at or missed(watch, aim, step_before)):
            kill(pids, set(aim.victims))
            life.phase, life.victims, killed_at = watch.phase(), aim.victims, time.time()
        time.sleep(0.001)
    died = max(when for _, when in ended.values())
    life.seconds, life.codes = died - start, {rank: code for rank, (code, _) in ended.items()}
    if killed_at:
        life.survivor_seconds = [when - killed_at for code, when in ended.values() if code != -signal.SIGKILL]
        count_losses(life, watch, step_before, loop_started)
    return life


def kill(pids: Sequence[int], ranks: set[int]) -> None:
    for rank in ranks:
        os.kill(pids[rank], signal.SIGKILL)


def missed(watch: Watch, aim: Aim, step_before: int) -> bool:
    """Whether a phase that is over in a blink was never seen, so that the kill comes now."""
    if aim.phase == "ending":
        return False
    record = watch.last_record()
    return record is not None and record["step"] > step_before + 5 * SAVE_EVERY


def count_losses(life: Life, watch: Watch, step_before: int, loop_started: float) -> None:
    records = watch.records()
    newest = watch.newest_step()
    useful = next((r["time"] - loop_started for r in records if r["step"] == newest > step_before), 0.0)
    life.seconds_lost = life.seconds - useful
    if records:
        life.steps_lost = records[-1]["step"] - newest
        life.resumed_wrong = records[0]["resumed_at"] != step_before


# The whole.


def whole_run(folder: Path, ranks: int, steps: int) -> dict[str, float]:
    """The run that nobody kills; how long each phase took, the middle one of its times."""
    live(folder, "first", ranks, 1, None, {})  # builds the store, which no later start waits for
    life = live(folder, "whole", ranks, steps, None, {})
    if set(life.codes.values()) != {0}:
        raise UserError(f"the undisturbed run failed: {said(folder, 'whole')}")
    middle = {phase: sorted(spans)[len(spans) // 2] for phase, spans in life.spans.items()}
    return {phase: middle.get(phase, 0.02) for phase in PHASES}


def said(folder: Path, run: str) -> str:
    return " | ".join(path.read_text()[-600:] for path in sorted(folder.glob(f"{run}.rank-*.log")))


def content(run_dir: Path) -> tuple[str, list[Any]]:
    """What must be equal to the bit: the last checkpoint's tensors, and the loss at each step of the merged history."""
    digest, checkpoints = hashlib.sha256(), list_checkpoints(run_dir / "checkpoints")
    for path in checkpoints:
        verify_checkpoint(path)
    for file in sorted((checkpoints[-1] / "tensors").iterdir()):
        for name, tensor in sorted(safetensors.deserialize(file.read_bytes())):  # whose order in the file is no fact
            digest.update(f"{file.name} {name} {tensor['dtype']} {tensor['shape']}".encode() + tensor["data"])
    losses = [(r["step"], r["loss"], r.get("validation_loss")) for r in read_metrics(run_dir / "metrics")]
    return digest.hexdigest(), losses


def left_behind(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir)) for mark in (".tmp-*", ".old-*") for path in run_dir.rglob(mark))


def processor_seconds() -> float:
    """Of this process and its ranks."""
    return sum(sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = lambda share: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
    return {"p50": at(0.5), "p90": at(0.9), "max": at(1.0)} if ordered else {}


def warm_up(folder: Path) -> None:
    """Import here what each start would import; this process may have no second thread."""
    import lightning.fabric  # noqa: F401
    import torch._dynamo  # noqa: F401

    load_config("train", [setting for setting in overrides(folder, "", 2, 1) if not setting.startswith("tokenizer=")])
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a process of several threads cannot be forked")


def torment(folder: Path, kills: int, ranks: int, seed: int) -> dict[str, Any]:
    steps = STEPS_PER_KILL * kills + 2 * SAVE_EVERY + 2
    write_tokenizer_apart(folder)
    warm_up(folder)
    takes = whole_run(folder, ranks, steps)
    expected = content(folder / "whole")
    todo, lives, runs, failures = aims(kills, ranks, random.Random(seed)), list[Life](), 0, list[str]()
    identical, left, begun = True, list[str](), time.time()
    while todo:
        runs += 1
        run = f"run-{runs}"
        while True:
            life = live(folder, run, ranks, steps, todo[0] if todo else None, takes)
            lives.append(life)
            if life.phase:
                todo.pop(0)
                tell(kills - len(todo), life)
            elif set(life.codes.values()) == {0}:
                break
            else:
                failures.append(f"a start failed ({life.codes}): {said(folder, run)}")
                if len(failures) == 3:
                    raise UserError(f"three starts failed; {failures[-1]}")
        identical &= content(folder / run) == expected
        left += left_behind(folder / run)
    killed = [life for life in lives if life.phase]
    wrong = sum(life.resumed_wrong for life in lives)
    by_phase = {phase: [life for life in killed if life.phase == phase] for phase in PHASES} | {"all": killed}
    return {
        "kills": len(killed),
        "recovered": len(killed) - len(failures) - wrong,
        "weights_and_losses_identical": identical,
        "left_behind": left,
        "failed_starts": failures,
        "not_resumed_at_the_newest_checkpoint": wrong,
        "runs": runs,
        "starts": len(lives),
        "steps": steps,
        "seconds": round(time.time() - begun, 1),
        "processor_seconds": round(processor_seconds(), 1),  # of the undisturbed run too
        "seconds_of_a_phase_undisturbed": {phase: round(seconds, 3) for phase, seconds in takes.items()},
        "by_phase": {phase: figures(some) for phase, some in by_phase.items() if some},
        "survivors": {
            "ended_by_themselves": sum(len(life.survivor_seconds) for life in killed),
            "stuck": sum(life.stuck for life in killed),
            "seconds": spread([seconds for life in killed for seconds in life.survivor_seconds]),
        },
    }


def tell(number: int, life: Life) -> None:
    survived = "".join(f", a survivor ended after {seconds:.1f} s" for seconds in life.survivor_seconds)
    lost = f"{life.steps_lost} steps and {life.seconds_lost:.1f} s lost"
    print(f"{number:4} {life.phase:<11} ranks {life.victims}: {lost}{survived}", flush=True)


def figures(lives: Sequence[Life]) -> dict[str, Any]:
    return {
        "kills": len(lives),
        "of_all_ranks": sum(len(life.victims) > 1 for life in lives),
        "steps_lost": spread([life.steps_lost for life in lives]),
        "seconds_lost": spread([life.seconds_lost for life in lives]),
    }


def write_tokenizer_apart(folder: Path) -> None:
    """In a process of its own: one that computed would have threads, and could not be forked."""
    pid = forked(lambda: write_tokenizer(folder / "tokenizer"), folder / "tokenizer.log")
    if os.waitpid(pid, 0)[1]:
        raise UserError(f"no tokenizer: {(folder / 'tokenizer.log').read_text()[-600:]}")


def show(found: dict[str, Any]) -> None:
    print(f"{'killed while':<14}{'kills':>6}   steps lost p50 p90 max    seconds lost p50 p90 max")
    for phase, row in found["by_phase"].items():
        steps, seconds = (
            " ".join(f"{value:7.1f}" for value in row[key].values()) for key in ("steps_lost", "seconds_lost")
        )
        print(f"{phase:<14}{row['kills']:>6} {steps}   {seconds}")
    print(f"survivors: {found['survivors']}")
    print(
        f"{found['recovered']} of {found['kills']} recovered; weights and losses identical: "
        f"{found['weights_and_losses_identical']}; left behind: {found['left_behind'] or 'nothing'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.chaos", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--json", default="", help="file for the result")
    parser.add_argument("--folder", default="", help="to keep the runs in; default: a temporary one")
    options = parser.parse_args()
    if options.kills < 1 or options.ranks < 2:
        raise UserError(f"--kills {options.kills} --ranks {options.ranks}: at least 1 kill and 2 ranks are needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = torment(folder, options.kills, options.ranks, options.seed)
    show(found)
    if options.json:
        about = {"ranks": options.ranks, "seed": options.seed, "machine": machine_description(), "commit": git_commit()}
        write_json(options.json, {"benchmark": "chaos", "result": found, **about})
    whole = found["recovered"] == found["kills"] and found["weights_and_losses_identical"] and not found["left_behind"]
    return 0 if whole else 1


if __name__ == "__main__":
    exit_with_one_line(main)
