"""A plan in memory with the interface of TokenPlan, and one short run on it; also a process of a run of many ranks.

RANK=0 WORLD_SIZE=2 python fake_plan.py INIT_FILE RUN_DIR '{"max_steps": 4}'
"""

import hashlib
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from lvm.data import Window
from lvm.inference import generate
from lvm.model import LVM, LVMConfig
from lvm.runtime.errors import end_rank
from lvm.training import OptimConfig, RunOptions, TrainerConfig, TrainResult, train

MODEL = LVMConfig(num_codes=20, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, tokens_per_picture=4)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=2, schedule_steps=20)
TRAINER = TrainerConfig(
    max_steps=8, batch_size=4, compile=False, num_threads=1, log_every_steps=2, save_every_steps=1000, devices=1
)


class FakePlan:
    """Window i counts from a hash of i, its second half answers; its last i mod 3 tokens are PAD; source i mod 2."""

    names = ("even", "odd")
    num_codes, tokens_per_picture, seq_len, bos, eos, pad = 20, 4, 16, 20, 21, 22
    stores: ClassVar[dict[str, object]] = {}

    def check_files(self) -> None:
        """There is none."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.read: list[int] = []
        self.facts = {"seed": seed, "stages": [{"from_window": 0}]}
        self.fingerprint = hashlib.sha256(json.dumps(self.facts).encode()).hexdigest()

    def windows(self, i: int, n: int) -> Window:
        self.read += range(i, i + n)
        parts = [self._window(j) for j in range(i, i + n)]
        return Window(*(np.stack(column) for column in zip(*parts)))

    def _window(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = int(hashlib.sha256(f"{self.seed}/{i}".encode()).hexdigest()[:8], 16)
        tokens = (start + np.arange(17) * (1 + i % 2)) % 20
        tokens[0] = self.bos
        source, role = np.full(17, i % 2, np.int16), (np.arange(17) >= 9).astype(np.int8)
        if i % 3:
            tokens[-(i % 3) :], source[-(i % 3) :], role[-(i % 3) :] = self.pad, -1, 3
        return tokens, source, role

    def target_roles(self, i: int, n: int) -> np.ndarray:
        role = np.stack([self._window(j)[2] for j in range(i, i + n)])[:, 1:]
        return np.bincount(role.ravel(), minlength=4)


def run(folder: Path, plan: FakePlan | None = None, **changes: object) -> tuple[LVM, TrainResult]:
    """Train the tiny model; `changes` are fields of the trainer, the optimiser, the model or the run; or `device`."""
    parts = []
    options = RunOptions(folder, seed=1)
    for config in (TRAINER, OPTIM, MODEL, options):
        own = {key: value for key, value in changes.items() if hasattr(config, key)}
        parts.append(type(config)(**(vars(config) | own)))
    trainer, optim, model_config, options = parts
    model = LVM(model_config, options.seed)
    return model, train(
        trainer,
        optim,
        plan or FakePlan(),
        model,
        options,
        str(changes.get("device", "cpu")),
        held_out=FakePlan(7),
        answer=changes.get("answer"),  # type: ignore[arg-type]
    )


def start_ranks(folder: Path, world_size: int, **changes: object) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    init_file = folder.parent / f"init-{folder.name}-{len(list(folder.parent.iterdir()))}"
    command = [sys.executable, __file__, str(init_file), str(folder)]
    environment = os.environ | {"WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}
    ranks = [
        subprocess.Popen([*command, json.dumps(changes)], env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(world_size)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors.decode()[-2000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def answers(model: LVM, step: int) -> dict[str, object]:
    """Greedy answers to two prompts, as evaluation in the middle of a run would ask for them."""
    tokens = generate(model, torch.arange(8).view(2, 4), 4, temperature=0.0).tokens
    return {"answers": tokens.flatten().tolist(), "training": model.training}


if __name__ == "__main__":
    init_file, folder, changes = sys.argv[1:]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", f"file://{init_file}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)
    plan = FakePlan()
    try:
        _, result = run(Path(folder), plan, answer=answers, **json.loads(changes))
        report = {"step": result.state.step, "read": sorted(set(plan.read)), "next_window": result.state.next_window}
        (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(report))
    finally:
        dist.destroy_process_group()
    end_rank()
