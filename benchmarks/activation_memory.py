"""What the forward pass keeps for the backward one, against `lvm cost`: python -m benchmarks.activation_memory

The bytes that malloc has handed out between the two passes, less those before, of one rank on the CPU in bf16, for each
way of recomputation, uncompiled and compiled; beside it the formula of `lvm cost`, which plans for compiled blocks,
with the weights' copy in bf16 where that stays.
Options: model=ladder_10m seq_len=1024 windows=4 json=FILE.
"""

import ctypes
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.alone import run_alone
from lvm.commands.cost import activation_bytes_per_token, model_config
from lvm.model import LVM
from lvm.runtime.machine import git_commit, machine_description
from lvm.training.parallel import ParallelConfig, Recomputation, make_loss

WAYS: tuple[Recomputation, ...] = ("none", "selective", "mlp", "full")


@dataclass(frozen=True)
class Options:
    model: str = "ladder_10m"
    seq_len: int = 1024
    windows: int = 4
    json: str = ""  # file for the result


class _Mallinfo2(ctypes.Structure):
    """Of malloc.h; only the fields hblkhd and uordblks are read."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (*"abcd", "mapped", *"fg", "used", *"ij"))


def allocated() -> int:
    """Bytes that glibc's malloc has handed out and not got back."""
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.used + info.mapped)


def kept(options: Options, way: Recomputation, compile: bool) -> int:
    """Bytes between forward and backward pass."""
    config = model_config(options.model)
    model = LVM(config, 0).train()
    model.attention_implementation = "auto"  # as the trainer's default
    parallel = ParallelConfig(activation_checkpointing=way)
    loss_of = make_loss(model, torch.bfloat16, False, compile, "all", parallel)
    tokens = torch.randint(config.num_codes, (options.windows, options.seq_len + 1))
    arguments = tokens, torch.ones_like(tokens), torch.tensor(float(options.windows * options.seq_len))
    bytes_kept = 0
    for _ in range(3):  # gradients are there from the first on, caches too
        before = allocated()
        loss, nll = loss_of(*arguments)
        bytes_kept = allocated() - before
        loss.backward()
        del loss, nll
    return bytes_kept


def measure(options: Options) -> dict[str, Any]:
    config, tokens = model_config(options.model), options.windows * options.seq_len
    result: dict[str, Any] = {"options": asdict(options)}
    print(f"{options.model}, {options.windows} x {options.seq_len} tokens in bf16: bytes a token that are kept")
    print(f"{'recomputed':12} {'uncompiled':>12} {'compiled':>12} {'lvm cost':>12}")
    for way in WAYS:
        found = {"uncompiled": kept(options, way, False) / tokens, "compiled": kept(options, way, True) / tokens}
        # Without recomputation the bf16 copy of the weights stays as well.
        found["formula"] = (
            activation_bytes_per_token(config, way) + (2 * config.num_params if way == "none" else 0) / tokens
        )
        result[way] = found
        print(f"{way:12} {found['uncompiled']:12,.0f} {found['compiled']:12,.0f} {found['formula']:12,.0f}", flush=True)
    return result | {"machine": machine_description(), "commit": git_commit()}


if __name__ == "__main__":
    run_alone(Options, measure)
