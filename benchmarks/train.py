"""Training steps: lvm bench train [model=demo seq_len=576 batch_size=4 steps=5 rounds=7 compile=auto precision=auto]

Ours: the loss function, clipping and AdamW of the training loop on one device. The alternative: transformers'
LlamaForCausalLM of the same sizes and weights, bf16 by autocast, compiled, the same cross-entropy, clipping and AdamW
on the same batch. Limit: the model's FLOPs (all of attention) at the speed of a matrix product.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from lvm.model import LVM, LVMConfig
from lvm.runtime.machine import bf16_is_fast, compile_problem
from lvm.training.optim import OptimConfig, clip_gradients, make_optimizer
from lvm.training.parallel import make_loss

Step = Callable[[], Tensor]  # one optimiser step; the loss before it


@dataclass(frozen=True)
class Options:
    model: str = "demo"  # demo, or a name in configs/model
    seq_len: int = 576
    batch_size: int = 4
    steps: int = 5  # in a round
    rounds: int = 7
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    device: str = "auto"


def make_tokens(config: LVMConfig, batch_size: int, seq_len: int, device: torch.device) -> Tensor:
    """Random windows [b, T + 1] that begin with BOS."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.num_codes, (batch_size, seq_len + 1), generator=generator)
    tokens[:, 0] = config.bos
    return tokens.to(device)


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


def our_step(model: LVM, tokens: Tensor, dtype: torch.dtype, compiled: bool) -> Step:
    loss_of = make_loss(model, dtype, document_mask=False, compile=compiled)
    role = torch.zeros_like(tokens, dtype=torch.int8)
    targets = torch.tensor(float(tokens[:, 1:].numel()), device=tokens.device)
    return make_step(model, lambda: loss_of(tokens, role, targets)[0])


def their_step(net: nn.Module, tokens: Tensor, dtype: torch.dtype, compiled: bool) -> Step:
    def loss() -> Tensor:
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            logits = net(input_ids=tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    return make_step(net, torch.compile(loss, dynamic=False) if compiled else loss)


def run(options: Options) -> dict[str, Any]:
    device, config = choose_device(options.device), model_config(options.model)
    wanted = options.precision == "bf16" or (options.precision == "auto" and bf16_is_fast(device))
    dtype = torch.bfloat16 if wanted else torch.float32
    compiled = compile_problem() is None if options.compile == "auto" else options.compile
    kind = f"{'bf16' if wanted else 'fp32'}, {'compiled' if compiled else 'eager'}"
    model = LVM(config).to(device).train()
    net = hugging_face_model(model)
    tokens = make_tokens(config, options.batch_size, options.seq_len, device)

    steps = {"ours": our_step(model, tokens, dtype, compiled)}
    if net is not None:
        steps["alternative"] = their_step(net.train(), tokens, dtype, compiled)
    first_loss: dict[str, float] = {}
    first_seconds = {}
    for name, step in steps.items():
        start = time.perf_counter()
        first_loss[name] = float(step())
        first_seconds[name] = time.perf_counter() - start

    def some(step: Step) -> Callable[[], float]:
        return lambda: seconds_of(lambda: [step() for _ in range(options.steps)], device)

    seconds = take_turns({name: some(step) for name, step in steps.items()}, options.rounds)
    amount, unit = options.steps * options.batch_size * options.seq_len, "tokens/s"

    def one(name: str, what: str) -> dict[str, Any]:
        more = {"first_loss": first_loss[name], "first_step_seconds": first_seconds[name]}
        return measured(f"{what}: {kind}", amount, unit, seconds[name], **more)

    flops, peak = config.flops_per_token(options.seq_len), matmul_peak(str(device))
    fastest = max(peak.values())
    found = result(
        "train",
        options,
        one("ours", "the training loop's step"),
        one("alternative", "transformers' LlamaForCausalLM")
        if net is not None
        else {"what": "transformers is not installed; pip install transformers"},
        {
            "what": f"{flops / 1e6:,.2f} MFLOP a token at the matrix product's {fastest / 1e12:.3f} TFLOP/s",
            "rate": fastest / flops,
            "unit": unit,
            "flops_per_token": flops,
            "matmul_flops": peak,
        },
        params=config.num_params,
    )
    print(table(found))
    return found
