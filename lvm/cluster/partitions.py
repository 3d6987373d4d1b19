"""What a cluster offers: its partitions with their nodes and limits, and what of ours is in its queue.

check_request(partition, nodes, gpus, cpus, minutes)     # one line where no node could ever run that
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lvm.cluster.slurm import slurm
from lvm.runtime import UserError


@dataclass(frozen=True)
class Node:
    name: str
    cpus: int
    gpus: int


@dataclass
class Partition:
    name: str
    default: bool
    max_minutes: int | None  # None: no limit
    nodes: list[Node] = field(default_factory=list)


def minutes(time: str | int) -> int:
    """Minutes of a time as Slurm writes it: 90, 24:00:00, 2-12, 2-12:00:00. Raises `UserError`."""
    text = str(time)
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"(\d+-\d+(:\d+){0,2})|(\d+(:\d+){0,2})", text):
        raise UserError(f"time is {text!r}; write 24:00:00, 2-12:00:00 (days-hours) or a number of minutes")
    numbers = [int(part) for part in parts]
    if dash:
        hours, mins, seconds = (numbers + [0, 0])[:3]
    else:  # M, M:S or H:M:S
        hours, mins, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = int(days or 0) * 1440 + hours * 60 + mins + -(-seconds // 60)
    if total < 1:
        raise UserError(f"time is {text!r}; give a minute or more")
    return total


def num_gpus(gres: str) -> int:
    """Of sinfo's list of generic resources: gpu:h100:8(S:0-1),nvme:1 has 8."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres)
    return sum(map(int, counts))


def partitions() -> dict[str, Partition]:
    """Of this cluster, by name."""
    found: dict[str, Partition] = {}
    for line in slurm("sinfo", "--noheader", "--all", "--Node", "--format=%R|%P|%l|%N|%c|%G").splitlines():
        name, marked, limit, node, cpus, gres = line.strip().split("|")
        limited = None if limit == "infinite" else minutes(limit)
        partition = found.setdefault(name, Partition(name, marked.endswith("*"), limited))
        partition.nodes.append(Node(node, int(cpus.rstrip("+")), num_gpus(gres)))
    return found


def choose_partition(name: str | None) -> Partition:
    """The one of this name, or the default. Raises `UserError` with the known ones."""
    known = partitions()
    names = ", ".join(sorted(known))
    chosen = known.get(name) if name else next((p for p in known.values() if p.default), None)
    if chosen is None and name is None:
        raise UserError(f"this cluster has no default partition; give partition=NAME, one of {names}")
    if chosen is None:
        raise UserError(f"partition {name!r} is unknown; this cluster has {names}")
    return chosen


def check_request(partition: Partition, nodes: int, gpus: int, cpus: int, time: str | int) -> None:
    """Raise `UserError` for what no node of the partition, or not so many of them, could ever run."""
    most = max(node.gpus for node in partition.nodes)
    if gpus > most:
        raise UserError(f"gpus={gpus} is more than a node of partition {partition.name} has ({most}); use more nodes")
    fitting = [node for node in partition.nodes if node.gpus >= gpus]
    if cpus > max(node.cpus for node in fitting):
        raise UserError(
            f"{cpus} CPUs a node are more than partition {partition.name} has ({max(n.cpus for n in fitting)}); "
            "lower cpus_per_task or tasks_per_node"
        )
    fitting = [node for node in fitting if node.cpus >= cpus]
    if nodes > len(fitting):
        raise UserError(f"nodes={nodes} is more than partition {partition.name} has of that size ({len(fitting)})")
    if partition.max_minutes is not None and minutes(time) > partition.max_minutes:
        raise UserError(f"time={time} is over the limit of partition {partition.name}, {partition.max_minutes} minutes")


def cpus_for_each(partition: Partition, gpus: int, tasks: int) -> int:
    """CPUs a task: a node's shared among its GPUs, so that other jobs keep theirs; without GPUs among the tasks."""
    fitting = [node for node in partition.nodes if node.gpus >= gpus] or partition.nodes
    node = min(fitting, key=lambda node: node.cpus)
    return max(1, node.cpus // (node.gpus if gpus else tasks))


def binds_tasks() -> bool:
    """Whether Slurm gives a task CPUs of its own; where it does not, asking for it is a complaint in each log."""
    plugins = re.search(r"^TaskPlugin\s*=\s*(\S+)", slurm("scontrol", "show", "config"), re.MULTILINE)
    return plugins is not None and bool(re.search("affinity|cgroup", plugins[1]))


@dataclass(frozen=True)
class Queued:
    id: str  # of an array: 12_3, or 12_[4-7] of those that wait
    state: str
    nodes: str


def queued(ids: Sequence[str]) -> list[Queued]:
    """Which of these jobs (the tasks of an array too) wait or run."""
    if not ids:
        return []
    lines = slurm("squeue", "--noheader", "--all", "--me", "--format=%F|%i|%T|%N").splitlines()
    rows = [line.strip().split("|") for line in lines if line.strip()]
    return [Queued(*row[1:]) for row in rows if row[0] in ids]
