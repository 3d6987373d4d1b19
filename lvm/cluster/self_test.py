"""Before the first step: do all ranks agree, can they talk, is there room? A wrong node is named in one line.

    report = self_test(ranks, device, run_dir, config, checkpoint_bytes)     # RUN/self_test.json; raises UserError

Seconds, beside what the first collective of a GPU takes to set up, which training would pay as well.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lvm.runtime import UserError, write_json
from lvm.runtime.configs import differences, shown
from lvm.runtime.distributed import Distributed
from lvm.runtime.files import cache_folder
from lvm.runtime.machine import git_commit

FILE = "self_test.json"
MAX_CLOCK_SECONDS = 5.0  # by which two nodes may differ
CACHE_BYTES = 64 * 2**20  # that must be free there
PROBE_BYTES = 2**20  # written to the run's folder and the cache: a quota shows itself only then
REDUCE_SECONDS = 120.0  # for all collectives of the test, the setting-up of a GPU's among them
REDUCE_BYTES = {"cuda": 256 * 2**20, "cpu": 4 * 2**20}
REPEATS = 3


@dataclass(frozen=True)
class Facts:
    """Of one rank."""

    rank: int
    node: str
    clock: float
    code: str  # sha256 of the sources of lvm and tokenizer
    commit: str
    config: str  # sha256 of the composed config
    torch: str
    cuda: str
    python: str
    device: str
    free_bytes: dict[str, int]
    problem: str | None  # what this rank cannot do at all


def node_name() -> str:
    """Slurm's name of the node, which need not be that of the host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def digest_of_code() -> str:
    """Of every source file, so that a copy or a container without git is compared too."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for file in sorted([*(root / "lvm").rglob("*.py"), *(root / "tokenizer").rglob("*.py")]):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def digest_of(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


# What one rank finds out by itself.


def existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def disk_problem(path: Path, needed: int, free: int, what: str) -> str | None:
    if free < needed:
        return f"has {free / 1e9:,.2f} GB free in {path} and {what} takes {needed / 1e9:,.2f} GB; make room there"
    if not path.is_dir():
        return None
    probe = path / f".tmp-{uuid.uuid4().hex[:8]}-self-test"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write to {path} ({error.strerror}); make room or give it the right to"
    finally:
        probe.unlink(missing_ok=True)
    return None


def device_problem(device: torch.device) -> str | None:
    """A product of ones, whose numbers are known."""
    try:
        ones = torch.ones(512, 512, device=device)
        right = bool((ones @ ones == 512).all())
    except Exception as error:
        return f"cannot compute on {device}: {' '.join(str(error).split())[:200]}"
    return None if right else f"computes wrong numbers on {device}; have the node looked at"


def own_facts(
    ranks: Distributed,
    device: torch.device,
    run_dir: Path,
    config: Mapping[str, Any],
    checkpoint_bytes: int,
    clock: Callable[[], float],
) -> Facts:
    """Everything that takes no other rank but for a barrier, after which the clock is read."""
    needed = {run_dir: (checkpoint_bytes, "a checkpoint"), cache_folder(): (CACHE_BYTES, "the cache")}
    free = {path: shutil.disk_usage(existing(path)).free for path in needed}
    problems = [disk_problem(path, bytes_, free[path], what) for path, (bytes_, what) in needed.items()]
    problems.append(device_problem(device))
    code, commit = digest_of_code(), git_commit()
    ranks.barrier()
    return Facts(
        ranks.rank,
        node_name(),
        clock(),
        code,
        commit,
        digest_of(config),
        torch.__version__,
        str(torch.version.cuda),
        platform.python_version(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        {str(path): size for path, size in free.items()},
        next((problem for problem in problems if problem), None),
    )


# What follows from the facts of all.


def named(facts: Sequence[Facts]) -> str:
    """node n2 (ranks 8-15); several nodes by "and"."""
    by_node: dict[str, list[int]] = {}
    for fact in facts:
        by_node.setdefault(fact.node, []).append(fact.rank)
    return " and ".join(f"node {node} ({_ranks(own)})" for node, own in by_node.items())


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    row = ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {ranks[0]}-{ranks[-1]}" if row else f"ranks {', '.join(map(str, ranks))}"


def odd_ones(facts: Sequence[Facts], field: str) -> tuple[list[Facts], Facts]:
    """Those whose field is not what most have (rank 0, where it is a draw), and one of the others."""
    values = Counter(getattr(fact, field) for fact in facts)
    most = max(values.values())
    usual = next(fact for fact in facts if values[getattr(fact, field)] == most)
    return [fact for fact in facts if getattr(fact, field) != getattr(usual, field)], usual


def problems_of(facts: Sequence[Facts]) -> list[str]:
    """One line for each thing that is wrong, naming the node."""
    found = [f"{named([fact])} {fact.problem}" for fact in facts if fact.problem]
    for field in ("torch", "cuda", "python"):
        odd, usual = odd_ones(facts, field)
        if odd:
            theirs, ours = getattr(odd[0], field), getattr(usual, field)
            found.append(
                f"{named(odd)} has {field} {theirs}, {named([usual])} {ours}; use one environment on all nodes"
            )
    odd, usual = odd_ones(facts, "code")
    if odd:
        found.append(
            f"{named(odd)} runs other code (commit {odd[0].commit[:12]}, sources {odd[0].code[:8]}) than "
            f"{named([usual])} ({usual.commit[:12]}, {usual.code[:8]}); use one installation on all nodes"
        )
    clocks = sorted(fact.clock for fact in facts)
    middle = clocks[len(clocks) // 2] if len({fact.node for fact in facts}) > 2 else facts[0].clock
    wrong = [fact for fact in facts if abs(fact.clock - middle) > MAX_CLOCK_SECONDS]
    if wrong:
        off = wrong[0].clock - middle
        found.append(
            f"the clock of {named(wrong)} is {abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} the others'; "
            "set it (chrony or ntp)"
        )
    return found


def config_problem(ranks: Distributed, facts: Sequence[Facts], config: Mapping[str, Any]) -> str | None:
    """The difference itself, which only those two hold who differ."""
    odd, usual = odd_ones(facts, "config")
    if not odd:
        return None
    configs = ranks.gather(dict(config) if ranks.rank in (odd[0].rank, usual.rank) else None)
    lines = differences(configs[usual.rank], configs[odd[0].rank])
    told = shown([line.replace(" and was ", f" and on {usual.node} ") for line in lines])
    return f"{named(odd)} has another config: {told}; start all ranks with the same overrides"


# The network.


def timed_all_reduce(ranks: Distributed, device: torch.device) -> tuple[dict[str, float], bool]:
    """Bandwidth over all ranks, as nccl-tests count that of the bus; whether this rank got the right sum.

    Raises `UserError` where it takes too long.
    """
    count, size = REDUCE_BYTES[device.type] // 4, ranks.world_size
    deadline, wanted = time.monotonic() + REDUCE_SECONDS, size * (size + 1) / 2
    right, fastest = True, float("inf")
    for _ in range(1 + REPEATS):  # the first sets up the connections
        numbers = torch.full((count,), float(ranks.rank + 1), device=device)
        ranks.barrier()
        start = time.monotonic()
        work = dist.all_reduce(numbers, async_op=True)
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise UserError(
                    f"no all-reduce among {size} ranks within {REDUCE_SECONDS:.0f} s; NCCL_DEBUG=INFO "
                    f"says what {node_name()} waits for"
                )
            time.sleep(0.0005)
        work.wait()
        fastest = min(fastest, time.monotonic() - start)
        right = right and bool((numbers == wanted).all())
    moved = 2 * (size - 1) / size * count * 4
    return {"bytes": count * 4, "seconds": fastest, "bytes_per_second": moved / fastest}, right


# The whole.


def is_launched(ranks: Distributed) -> bool:
    """Whether there is anything to agree on, or nobody looks on."""
    return ranks.world_size > 1 or "SLURM_JOB_ID" in os.environ


def self_test(
    ranks: Distributed,
    device: torch.device,
    run_dir: Path,
    config: Mapping[str, Any],
    checkpoint_bytes: int,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Every rank calls it alike; rank 0 writes RUN/self_test.json. Raises `UserError` on all, with the same line."""
    start = time.monotonic()
    facts: list[Facts] = ranks.gather(own_facts(ranks, device, run_dir, config, checkpoint_bytes, clock))
    problems = problems_of(facts)
    if problem := config_problem(ranks, facts, config):
        problems.append(problem)
    speed = None
    if ranks.world_size > 1 and not problems:
        speed, right = timed_all_reduce(ranks, device)
        wrong = [fact for fact, good in zip(facts, ranks.gather(right), strict=True) if not good]
        if wrong:
            problems.append(f"{named(wrong)} got a wrong sum of all ranks; have the node and its network looked at")
    report = {
        "passed": not problems,
        "problems": problems,
        "seconds": round(time.monotonic() - start, 3),
        "clock_spread_seconds": round(max(fact.clock for fact in facts) - min(fact.clock for fact in facts), 3),
        "all_reduce": speed,
        "ranks": [asdict(fact) for fact in facts],
    }
    if ranks.is_main and run_dir.is_dir() and not any(fact.problem for fact in facts):
        write_json(run_dir / FILE, report)
    if problems:
        raise UserError("; ".join(problems))
    if ranks.is_main:
        print(summary(report), flush=True)
    return report


def summary(report: Mapping[str, Any]) -> str:
    facts, speed = report["ranks"], report["all_reduce"]
    nodes = len({fact["node"] for fact in facts})
    told = f", all-reduce {speed['bytes_per_second'] / 1e9:.2f} GB/s" if speed else ""
    return f"self-test: {len(facts)} ranks on {nodes} nodes agree{told}, {report['seconds']:.1f} s"
