"""Measure ours and the alternative in one run: lvm bench tokenize|data|train|generate [KEY=VALUE ...] --json FILE

Without a name all four run, small. Each is a module of benchmarks/ in the checkout (they are no part of an installed
wheel) with `Options` and `run(options) -> dict`; this file has the command and what they share: rounds in which the
contestants take turns, medians, and the physical limits of the machine.
"""

import argparse
import functools
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lvm.commands._options import options_from
from lvm.inference.cache import product
from lvm.model import LVM, LVMConfig, config_to_hugging_face, hugging_face_name
from lvm.runtime import UserError, build, write_json
from lvm.runtime.machine import git_commit, machine_description

NAMES = ("tokenize", "data", "train", "generate")
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
# The net of configs/model/demo.yaml with a context of sixteen pictures whatever the demo's own is, so that figures stay
# comparable; here because benchmarks run without Hydra (a test compares the two).
DEMO = LVMConfig(
    num_codes=1024,
    tokens_per_picture=36,
    hidden_size=128,
    intermediate_size=344,
    num_layers=4,
    num_heads=2,
    max_position=576,
)
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}
LIMIT_SECONDS = 0.5  # spent on each limit


# Measuring.


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: no GPU can be used here; use device=cpu")
    return device


def seconds_of(function: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Wall-clock seconds, until the device is done."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; every other round in reverse order. A first round is not kept.

    In turns, so that what else the machine does meets all of them alike.
    """
    if rounds < 1:
        raise UserError(f"rounds is {rounds}; use 1 or more")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for number in range(0 if warm_up else 1, rounds + 1):
        for name in order if number % 2 else reversed(order):
            measured = contestants[name]()
            if number:
                seconds[name].append(measured)
    return seconds


def measured(what: str, amount: float, unit: str, seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    """One contestant's result: its rate at the median of its rounds."""
    middle = statistics.median(seconds)
    return {"what": what, "rate": amount / middle, "unit": unit, "seconds": middle, "rounds": list(seconds), **more}


@functools.cache
def matmul_peak(device: str) -> dict[str, float]:
    """FLOP/s of a square matrix product by type, the best of several: what arithmetic can reach here at most."""
    side = MATMUL_SIDE[torch.device(device).type]
    peak = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a = torch.randn(side, side, device=device).to(dtype)
        ways = (torch.mm, product)  # the same but where MKL is slow
        peak[name] = 2 * side**3 / min(best_seconds(functools.partial(way, a, a), device) for way in ways)
    return peak


@functools.cache
def copy_bandwidth(device: str) -> float:
    """Bytes/s that a copy of memory larger than any cache reads and writes together, the best of several."""
    source = torch.zeros(COPY_BYTES[torch.device(device).type] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)


def best_seconds(function: Callable[[], Any], device: str) -> float:
    """The fastest of as many runs as fit `LIMIT_SECONDS`, a first one not counted."""
    function()
    best, spent = float("inf"), 0.0
    while spent < LIMIT_SECONDS:
        seconds = seconds_of(function, device)
        best, spent = min(best, seconds), spent + seconds
    return best


def result(
    name: str, options: Any, ours: dict[str, Any], alternative: dict[str, Any], limit: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """What a benchmark returns and `--json` writes. `ratio` is ours / alternative, None where that could not run."""
    return {
        "benchmark": name,
        "ours": ours,
        "alternative": alternative,
        "ratio": ours["rate"] / alternative["rate"] if alternative.get("rate") else None,
        "limit": {**limit, "share": ours["rate"] / limit["rate"]},
        **more,
        "options": asdict(options),
        "machine": machine_description(),
        "commit": git_commit(),
    }


def table(found: Mapping[str, Any]) -> str:
    """A result as lines to read."""
    rows = [(name, found[name]) for name in ("ours", "alternative", "limit")]
    lines = [f"{found['benchmark']}: {found['ours']['unit']}"]
    for name, row in rows:
        rate = f"{row['rate']:>14,.1f}" if row.get("rate") else f"{'-':>14}"
        lines.append(f"  {name:<12}{rate}  {row['what']}")
    ratio = "no ratio" if found["ratio"] is None else f"{found['ratio']:.2f}x the alternative"
    lines.append(f"  {ratio}, {found['limit']['share']:.1%} of the limit")
    return "\n".join(lines)


def model_config(name: str) -> LVMConfig:
    """The demo's model, or one of configs/model; without Hydra too, which these files do not need."""
    if name == "demo":
        return DEMO
    from lvm.runtime.config_files import find_config, load_config

    if importlib.util.find_spec("hydra") is not None:
        return build(LVMConfig, load_config(f"model/{name}"), "model")
    import yaml

    return build(LVMConfig, yaml.safe_load(find_config(f"model/{name}").read_text()), "model")


def hugging_face_model(model: LVM) -> Any:
    """transformers' LlamaForCausalLM of the same sizes and weights; None where transformers is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    weight = model.embed.weight
    values = config_to_hugging_face(model.config, str(weight.dtype).removeprefix("torch."))
    values["attn_implementation"] = "sdpa"
    net: Any = LlamaForCausalLM(LlamaConfig(**values))
    net.to(device=weight.device, dtype=weight.dtype)
    tensors = {hugging_face_name(name): parameter.detach() for name, parameter in model.named_parameters()}
    net.load_state_dict(tensors, strict=not model.config.tie_embeddings)
    return net


# The command.


def benchmark(name: str) -> ModuleType:
    """The module benchmarks/NAME.py, found beside this package in a checkout."""
    path = FOLDER / f"{name}.py"
    if not path.is_file():
        raise UserError(f"{path} is missing: benchmarks come with a checkout of the project, installed by pip -e")
    if str(FOLDER.parent) not in sys.path:
        sys.path.insert(0, str(FOLDER.parent))
    return importlib.import_module(f"benchmarks.{name}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="NAME KEY=VALUE", help=f"{', '.join(NAMES)}; their options")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there; of all four by name")
    given = parser.parse_intermixed_args(argv)
    if not given.arguments:
        every = {name: run(name, []) for name in NAMES}
        if given.json:
            write_json(given.json, every)
        return 0
    name, *pairs = given.arguments
    if name not in NAMES:
        raise UserError(f"there is no benchmark {name!r}; use one of {', '.join(NAMES)}")
    found = run(name, pairs)
    if given.json:
        write_json(given.json, found)
    return 0


def run(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Run one benchmark and print its table."""
    module = benchmark(name)
    found: dict[str, Any] = module.run(options_from(module.Options, pairs))
    return found
