"""A process of several runs in a row on many ranks: one start of the ranks pays for many tests.

RANK=0 WORLD_SIZE=2 python many_runs.py INIT_FILE '[{"weights": [1, 2]}, {"folder": "a", "max_steps": 4}]'
"""

import functools
import hashlib
import json
import os
import resource
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from fake_plan import MODEL, FakePlan, run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import lvm.training.muon as muon
from lvm.model import LVM, LVMConfig
from lvm.runtime import exit_with_one_line
from lvm.training.parallel import ParallelConfig, loss_on_mesh, make_mesh, reduce_gradients_on
from lvm.training.start import draw_weights

LARGE = LVMConfig(hidden_size=512, intermediate_size=1408, num_layers=16, num_heads=8)  # 60M parameters


def drawn(config: LVMConfig, replicate: int) -> LVM:
    """A model that was sharded while it was empty, and then filled."""
    parallel = ParallelConfig(replicate=replicate)
    mesh = make_mesh(parallel, dist.get_world_size(), "cpu")
    with torch.device("meta"):
        model = LVM(config)
    loss_on_mesh(model, torch.device("cpu"), mesh, torch.float32, False, False, "all", parallel)
    draw_weights(model, 1)
    return model


def digest(model: LVM) -> str:
    """Of all weights, whole."""
    weights = [getattr(p.detach(), "full_tensor", p.detach)() for p in model.parameters()]
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest()


def grown_by_large_model() -> float:
    """Peak memory of this process as a share of the model's, while the model is made, sharded over all ranks."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = drawn(LARGE, replicate=1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * model.num_params())


class Killed(FakePlan):
    """Rank 1 of a run on this plan is sent a signal when it reads a window."""

    def __init__(self, at: int, number: int):
        super().__init__()
        self.at, self.number = at, number

    def windows(self, i, n):
        if i >= self.at and dist.get_rank() == 1:
            os.kill(os.getpid(), self.number)
        return super().windows(i, n)


def muon_on_shards(at_once: int) -> dict:
    """Four steps of Muon, one of them bad, by shards and whole: whether bits are equal, and what this rank did."""
    shapes = [(12, 12), (30, 12), (12, 12), (3, 30), (12, 12), (30, 12), (7, 5), (12, 12), (12, 12)]
    muon.ELEMENTS_AT_ONCE, plain_newton_schulz, made = at_once, muon.newton_schulz, []
    generator = torch.Generator().manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
    shard = lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])
    parts = [nn.Parameter(shard(matrix.detach())) for matrix in whole]
    ours, expected = (muon.Muon(some, lr=0.1, weight_decay=0.2, momentum=0.9) for some in (parts, whole))
    for step in range(4):
        for part, matrix in zip(parts, whole):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            part.grad = shard(matrix.grad)
        ours.found_inf = expected.found_inf = torch.tensor(float(step == 2))  # a bad step changes nothing
        expected.step()
        muon.newton_schulz = lambda x: made.append(len(x)) or plain_newton_schulz(x)
        ours.step()
        muon.newton_schulz = plain_newton_schulz
    equal = all(torch.equal(part.detach().full_tensor(), matrix) for part, matrix in zip(parts, whole))
    return {"equal": equal, "orthogonalised": sum(made), "at_once": max(made)}


def collectives(replicate: int, micro_batches: int, every: bool) -> dict[str, int]:
    """What the ranks exchange in one step of so many micro-batches, by the collective's name."""
    parallel = ParallelConfig(replicate=replicate)
    mesh = make_mesh(parallel, dist.get_world_size(), "cpu")
    model = LVM(MODEL, 1)
    loss_of = loss_on_mesh(model, torch.device("cpu"), mesh, torch.float32, False, False, "all", parallel)
    tokens, role = torch.zeros(1, 17, dtype=torch.int64), torch.zeros(1, 17, dtype=torch.int8)
    newer = hasattr(dist, "reduce_scatter_single")  # torch 2.13
    names = {
        "all_gather": "all_gather_single" if newer else "all_gather_into_tensor",
        "reduce_scatter": "reduce_scatter_single" if newer else "reduce_scatter_tensor",
        "all_reduce": "all_reduce",
    }
    counts, originals = dict.fromkeys(names, 0), {name: getattr(dist, name) for name in names.values()}

    def counted(kind, original, *arguments, **options):
        counts[kind] += 1
        return original(*arguments, **options)

    try:
        for kind, name in names.items():
            setattr(dist, name, functools.partial(counted, kind, originals[name]))
        for number in range(micro_batches):
            reduce_gradients_on(model, number == micro_batches - 1, every)
            loss_of(tokens, role, torch.tensor(16.0))[0].backward()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return counts


def do(job: dict) -> object:
    if "muon" in job:
        return [muon_on_shards(at_once) for at_once in job["muon"]]
    if "collectives" in job:
        return [collectives(*arguments) for arguments in job["collectives"]]
    if "large" in job:
        return grown_by_large_model()
    if "weights" in job:
        return [digest(drawn(MODEL, replicate)) for replicate in job["weights"]]
    plan = Killed(*job.pop("signal")) if "signal" in job else FakePlan()
    job["parallel"] = ParallelConfig(**job.get("parallel", {}))
    if "init_from" in job:
        job["init_from"] = Path(job["init_from"])
    _, result = run(Path(job.pop("folder")), plan, **job)
    return {"step": result.state.step, "read": sorted(set(plan.read))}


def main() -> None:
    init_file, jobs = sys.argv[1:]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", f"file://{init_file}", rank=rank, world_size=world_size, timeout=timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    try:
        reports = [do(job) for job in json.loads(jobs)]
        Path(f"{init_file}-{rank}.json").write_text(json.dumps(reports))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    exit_with_one_line(main)
