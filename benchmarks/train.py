"""Training steps: lvm bench train [model=demo seq_len=576 batch_size=4 steps=5 rounds=7 compile=auto precision=auto]

Ours: windows from a store of random codes by the loader, the loss function, clipping and AdamW of the training loop, on
one device. The alternative: transformers' LlamaForCausalLM of the same sizes and weights, bf16 by autocast, compiled,
the same cross-entropy, clipping and AdamW, on the first of these batches. Limit: the model's FLOPs (all of attention)
at the speed of a matrix product; of a GPU the peak of its data sheet stands beside it, as MFU.

`data_wait` is the share of our time in which the step had to wait for its windows. `work` splits a step by a profile:
products of linear layers, which are the same for both, so that their share bounds the ratio; products of attention,
where it is made of such; attention where it is fused, its products within; and the rest (norms, rotations, softmax,
casts, updates, host). `memory=true` runs each again in a process of its own and takes what torch had allocated at most
in a step; weights, gradients and moments are 16 bytes a parameter of it. What `lvm cost` plans with stands beside it.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.alone import in_own_process
from benchmarks.data import plan_for
from lvm.commands.bench import (
    choose_device,
    hugging_face_model,
    matmul_peak,
    measured,
    model_config,
    result,
    seconds_of,
    table,
    take_turns,
)
from lvm.commands.cost import activation_bytes_per_token, gathered_bytes, recomputed_bytes_per_token
from lvm.cross_entropy import LOGITS_AT_ONCE
from lvm.data import WindowLoader
from lvm.data.loader import Batch
from lvm.model import LVM, LVMConfig
from lvm.runtime.machine import compile_problem
from lvm.training.journal import peak_flops
from lvm.training.loop import compute_dtype
from lvm.training.optim import OptimConfig, clip_gradients, make_optimizer
from lvm.training.parallel import ParallelConfig, Recomputation, make_loss

Step = Callable[[], Tensor]  # one optimiser step; the loss before it
Names = Literal["ours", "alternative"]
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "_linear_pointwise", "mkl_linear", "packed_linear")
STATE_BYTES = 16  # a parameter: float32 weight, gradient and two moments


@dataclass(frozen=True)
class Options:
    model: str = "demo"  # demo, or a name in configs/model
    num_codes: int = 0  # of the vocabulary; 0: the model's own
    seq_len: int = 576
    batch_size: int = 4
    steps: int = 5  # in a round
    rounds: int = 7
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    activation_checkpointing: Recomputation = "none"  # of ours
    recomputed_share: float = 1.0  # of our blocks
    device: str = "auto"
    memory: bool = True  # measure it too, each in a process of its own
    alternative: bool = True  # false: ours alone, where the states of two models do not fit the device


@dataclass(frozen=True)
class Setting:
    """What the options come to on this machine."""

    config: LVMConfig
    device: torch.device
    dtype: torch.dtype
    compiled: bool
    parallel: ParallelConfig

    @classmethod
    def of(cls, options: Options) -> "Setting":
        device = choose_device(options.device)
        compiled = compile_problem() is None if options.compile == "auto" else options.compile
        dtype = compute_dtype(options.precision, device)
        config = model_config(options.model)
        if options.num_codes:
            config = replace(config, num_codes=options.num_codes, vocab_size=0)
        parallel = ParallelConfig(
            activation_checkpointing=options.activation_checkpointing, recomputed_share=options.recomputed_share
        )
        return cls(config, device, dtype, compiled, parallel)

    def __str__(self) -> str:
        return f"{'bf16' if self.dtype == torch.bfloat16 else 'fp32'}, {'compiled' if self.compiled else 'eager'}"


class Windows:
    """Batches of the training loader on the device, and the seconds spent waiting for them."""

    def __init__(self, loader: WindowLoader, device: torch.device):
        self._loader, self._device, self.waited = loader, device, 0.0

    def next(self) -> Batch:
        start = time.perf_counter()
        (batch,) = next(self._loader)
        self.waited += time.perf_counter() - start
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def windows_of(options: Options, setting: Setting) -> Iterator[Windows]:
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_for(setting.config, Path(folder) / "store", options.seq_len)
        with WindowLoader(plan, options.batch_size, pin=setting.device.type == "cuda") as loader:
            yield Windows(loader, setting.device)


def make_step(parameters_of: nn.Module, loss: Step) -> Step:
    """Forward, backward, clip, update: the same for both."""
    optim = OptimConfig()
    optimizer = make_optimizer(parameters_of, optim)

    def step() -> Tensor:
        value = loss()
        value.backward()
        clip_gradients(parameters_of.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def our_step(model: LVM, windows: Windows, setting: Setting) -> Step:
    model.attention_implementation = "auto"  # as the trainer's default
    loss_of = make_loss(model, setting.dtype, False, setting.compiled, parallel=setting.parallel)

    def loss() -> Tensor:
        batch = windows.next()
        targets = torch.full((), float(batch["tokens"][:, 1:].numel()), device=setting.device)
        return loss_of(batch["tokens"], batch["role"], targets)[0]

    return make_step(model, loss)


def their_step(net: nn.Module, tokens: Tensor, setting: Setting) -> Step:
    def loss() -> Tensor:
        with torch.autocast(tokens.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            logits = net(input_ids=tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    return make_step(net, torch.compile(loss, dynamic=False) if setting.compiled else loss)


def first_tokens(options: Options, setting: Setting) -> Tensor:
    with windows_of(options, setting) as windows:
        return windows.next()["tokens"]


def is_attention(name: str) -> bool:
    return "attention" in name or "attn" in name


def callers(event: Any) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name


def work_of(step: Step, steps: int, device: torch.device) -> dict[str, float]:
    """Seconds of a step by a profile: products of linear layers, those of attention, fused attention, and all else."""
    on_gpu = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    with torch.profiler.profile(activities=kinds) as profile:
        whole = seconds_of(lambda: [step() for _ in range(steps)], device) / steps
    seconds = {"products": 0.0, "attention": 0.0, "products of attention": 0.0}
    for event in profile.events():
        library, _, name = event.name.rpartition("::")
        spent = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / steps
        if library and name in PRODUCTS:
            seconds["products of attention" if any(map(is_attention, callers(event))) else "products"] += spent
        elif library and is_attention(name):
            seconds["attention"] += spent
    return seconds | {"rest": whole - sum(seconds.values()), "step": whole}


def peak_bytes(values: dict[str, Any], name: Names) -> dict[str, int]:
    """In this process: what torch had allocated at most in a step after the first ones."""
    options = Options(**values)
    setting = Setting.of(options)
    on_gpu = setting.device.type == "cuda"
    tokens = first_tokens(options, setting)
    model = LVM(setting.config).to(setting.device).train()
    with windows_of(options, setting) as windows:
        if name == "ours":
            step = our_step(model, windows, setting)
        else:
            net = hugging_face_model(model)
            del model
            step = their_step(net.train(), tokens, setting)
        step()
        step()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            step()
            return {"bytes": torch.cuda.max_memory_allocated()}
        kept = (STATE_BYTES - 4) * setting.config.num_params  # between steps there are no gradients
        return {"bytes": kept + allocated_on_top(step)}


def allocated_on_top(step: Step) -> int:
    """Bytes that torch's allocator for the CPU gives out in a step at most, beside what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held, default=0)


def planned_bytes(options: Options, setting: Setting) -> int:
    """What `lvm cost` plans with on one device: states, their copy in bf16, logits, activations."""
    config, logits = setting.config, 14 * LOGITS_AT_ONCE[setting.device.type]
    recomputed = options.activation_checkpointing, options.recomputed_share
    token = activation_bytes_per_token(config, *recomputed) + recomputed_bytes_per_token(config, *recomputed)
    activations = token * options.batch_size * options.seq_len
    return STATE_BYTES * config.num_params + gathered_bytes(config, 1, *recomputed) + logits + activations


def run(options: Options) -> dict[str, Any]:
    setting = Setting.of(options)
    tokens = first_tokens(options, setting)
    model = LVM(setting.config).to(setting.device).train()
    net = hugging_face_model(model) if options.alternative else None
    with windows_of(options, setting) as windows:
        steps = {"ours": our_step(model, windows, setting)}
        if net is not None:
            steps["alternative"] = their_step(net.train(), tokens, setting)
        first_loss: dict[str, float] = {}
        first_seconds = {}
        for name, step in steps.items():
            start = time.perf_counter()
            first_loss[name] = float(step())
            first_seconds[name] = time.perf_counter() - start

        def some(step: Step) -> Callable[[], float]:
            return lambda: seconds_of(lambda: [step() for _ in range(options.steps)], setting.device)

        windows.waited = 0.0
        seconds = take_turns({name: some(step) for name, step in steps.items()}, options.rounds)
        data_wait = windows.waited / sum(seconds["ours"]) * options.rounds / (options.rounds + 1)
        work = {name: work_of(step, min(3, options.steps), setting.device) for name, step in steps.items()}
    del model, net, steps, step
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes that measure memory
    amount, unit = options.steps * options.batch_size * options.seq_len, "tokens/s"
    flops, peak = setting.config.flops_per_token(options.seq_len), matmul_peak(str(setting.device))
    of_sheet = peak_flops(setting.device)

    def one(name: Names, what: str) -> dict[str, Any]:
        more: dict[str, Any] = {"first_loss": first_loss[name], "first_step_seconds": first_seconds[name]}
        more["work"] = work[name]
        found = measured(f"{what}: {setting}", amount, unit, seconds[name], **more)
        found["mfu"] = of_sheet and found["rate"] * flops / of_sheet
        if options.memory:
            found["memory"] = in_own_process("train", "peak_bytes", asdict(options), name)
        return found

    fastest = max(peak.values())
    found = result(
        "train",
        options,
        one("ours", "the training loop's step") | {"data_wait": data_wait},
        one("alternative", "transformers' LlamaForCausalLM")
        if "alternative" in seconds
        else {"what": "not asked for" if not options.alternative else "transformers is not installed; pip install it"},
        {
            "what": f"{flops / 1e6:,.2f} MFLOP a token at the matrix product's {fastest / 1e12:.3f} TFLOP/s",
            "rate": fastest / flops,
            "unit": unit,
            "flops_per_token": flops,
            "flops_per_token_causal": setting.config.flops_per_token(options.seq_len, causal=True),
            "matmul_flops": peak,
            "data_sheet_flops": of_sheet,
        },
        params=setting.config.num_params,
        state_bytes=STATE_BYTES * setting.config.num_params,
        planned_bytes=planned_bytes(options, setting),
    )
    print(table(found))
    print(details(found))
    return found


def details(found: dict[str, Any]) -> str:
    """Where the time of a step goes, and its memory, one contestant beside the other."""
    ours, other = found["ours"], found["alternative"]
    lines = []
    for name, one in (("ours", ours), ("alternative", other)):
        if "work" not in one:
            continue
        work, memory = one["work"], one.get("memory")
        names = ("products", "products of attention", "attention", "rest")
        parts = ", ".join(f"{part} {work[part] / work['step']:.0%}" for part in names if work[part])
        line = f"  {name:<12}{work['step'] * 1e3:14,.1f} ms a step: {parts}"
        line += f"; {memory['bytes'] / 1e9:.2f} GB" if memory else ""
        lines.append(line + (f"; MFU {one['mfu']:.1%}" if one["mfu"] else ""))
    if "memory" in ours:
        states, planned = (found[key] / 1e9 for key in ("state_bytes", "planned_bytes"))
        lines.append(f"  of the memory {states:.2f} GB are states; lvm cost plans with {planned:.2f} GB in all")
    lines.append(f"  ours waited for its windows {ours['data_wait']:.1%} of the time")
    if "work" in other:
        beside, theirs = (one["work"]["step"] - one["work"]["products"] for one in (ours, other))
        line = f"  ours / alternative: time beside products {beside / theirs:.2f}"
        if "memory" in ours:
            line += f", memory {ours['memory']['bytes'] / other['memory']['bytes']:.2f}"
        lines.append(line)
    return "\n".join(lines)
