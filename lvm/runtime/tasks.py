"""Which part of a job is this process's: given, or told by Slurm (an array, tasks of srun) or torchrun."""

import os
import re

from lvm.runtime.errors import UserError
from lvm.runtime.rendezvous import num_tasks


def read_shard(text: str) -> tuple[int, int]:
    """I/N, I from 0. Raises `UserError`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text!r} must be I/N with I from 0 to N - 1, as 0/4")
    return int(match[1]), int(match[2])


def shard_of_environment() -> tuple[int, int]:
    """(I, N) of this process among an array's tasks and the tasks of each; (0, 1) where there is one alone."""
    task, tasks = task_of_array()
    rank, ranks = rank_of_process()
    return task * ranks + rank, tasks * ranks


def task_of_array() -> tuple[int, int]:
    """Of an array without gaps; one with gaps says nothing of the others. Raises `UserError` for such a one."""
    number = lambda key, default: int(os.environ.get(f"SLURM_ARRAY_TASK_{key}") or default)
    if not os.environ.get("SLURM_ARRAY_TASK_ID"):
        return 0, 1
    count, first, step = number("COUNT", 1), number("MIN", 0), number("STEP", 1)
    task, rest = divmod(number("ID", 0) - first, step)
    if rest or task >= count:
        raise UserError(
            f"array task {number('ID', 0)} is none of {count} from {first} in steps of {step}; "
            "give --shard I/N, as --shard $SLURM_ARRAY_TASK_ID/8"
        )
    return task, count


def rank_of_process() -> tuple[int, int]:
    if num_tasks() > 1:
        return int(os.environ["SLURM_PROCID"]), num_tasks()
    return int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int:
    """This process's number on its node."""
    key = "SLURM_LOCALID" if num_tasks() > 1 else "LOCAL_RANK"
    return int(os.environ.get(key) or 0)
