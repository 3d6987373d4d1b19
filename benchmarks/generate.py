"""Prompts to answers: lvm bench generate [model=demo pictures=15 candidates=4 prompts=1 rounds=7]

Ours: `lvm.inference.generate`, candidates together on the shared keys and values of their prompt. The alternative: as
the published code does, transformers' `generate` for one candidate at a time, each with the prompt fed again. Both in
one numeric type, BOS first, codes alone allowed, one picture an answer, temperature 1.
Limit: the weights, and the prompt's and answers' keys and values, read once for each code at the speed of a copy, and
the prompt's FLOPs at that of a matrix product. A net that fits the processor's cache is not bound by the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lvm.commands.bench import (
    choose_device,
    copy_bandwidth,
    hugging_face_model,
    matmul_peak,
    measured,
    model_config,
    result,
    seconds_of,
    table,
    take_turns,
)
from lvm.inference import generate
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError


@dataclass(frozen=True)
class Options:
    model: str = "demo"  # demo, or a name in configs/model
    pictures: int = 15  # of each prompt
    candidates: int = 4
    prompts: int = 1
    rounds: int = 7
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: fp32 on the CPU, bf16 on a GPU
    device: str = "auto"


def theirs(
    net: nn.Module, prompts: Tensor, config: LVMConfig, num_tokens: int, candidates: int, greedy: bool
) -> Tensor:
    """Codes [b, candidates, t], one `generate` a candidate."""
    bos = torch.full_like(prompts[:, :1], config.bos)
    fed = torch.cat([bos, prompts], dim=1)
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    answers = [
        net.generate(  # type: ignore[operator]
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            suppress_tokens=list(range(config.num_codes, config.vocab_size)),
            eos_token_id=None,
            pad_token_id=config.pad,
            **sampling,
        )[0, fed.shape[1] :]
        for prompt in fed
        for _ in range(candidates)
    ]
    return torch.stack(answers).view(len(prompts), candidates, num_tokens)


def fewest_seconds(
    config: LVMConfig, prompt: int, answer: int, options: Options, itemsize: int, bandwidth: float, flops: float
) -> float:
    """Of all prompts, each after the other: memory traffic of the codes after the first, and FLOPs of the prompt."""
    weights = config.num_params - (0 if config.tie_embeddings else config.vocab_size * config.hidden_size)
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_size
    kept = [prompt + options.candidates * i for i in range(1, answer)]
    read = itemsize * sum(weights + per_token * tokens for tokens in kept)
    return options.prompts * (read / bandwidth + 2 * weights * prompt / flops)


def run(options: Options) -> dict[str, Any]:
    device, config = choose_device(options.device), model_config(options.model)
    num_tokens = config.tokens_per_picture or 256
    if options.pictures < 1 or (options.pictures + 1) * num_tokens > config.max_position:
        most = config.max_position // num_tokens - 1
        raise UserError(
            f"pictures is {options.pictures}; the context of {options.model} takes 1 to {most} and one more"
        )
    bf16 = options.precision == "bf16" or (options.precision == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = LVM(config).to(device=device, dtype=dtype).eval()
    net = hugging_face_model(model)
    generator = torch.Generator().manual_seed(0)
    shape = (options.prompts, options.pictures * num_tokens)
    prompts = torch.randint(config.num_codes, shape, generator=generator).to(device)

    def ours(temperature: float) -> Tensor:
        return generate(model, prompts, num_tokens, options.candidates, temperature=temperature).tokens

    contestants: dict[str, Callable[[], float]] = {"ours": lambda: seconds_of(lambda: ours(1.0), device)}
    equal = None
    if net is not None:
        net.eval()
        alike = theirs(net, prompts, config, num_tokens, 1, greedy=True) == ours(0.0)[:, :1]
        equal = float(alike.float().mean())
        contestants["alternative"] = lambda: seconds_of(
            lambda: theirs(net, prompts, config, num_tokens, options.candidates, greedy=False), device
        )
    seconds = take_turns(contestants, options.rounds)

    bandwidth, peak = copy_bandwidth(str(device)), matmul_peak(str(device))
    itemsize = 2 if bf16 else 4
    least = fewest_seconds(config, shape[1] + 1, num_tokens, options, itemsize, bandwidth, max(peak.values()))
    amount, unit = options.prompts * options.candidates, "answers/s"
    kind = "bf16" if bf16 else "fp32"
    found = result(
        "generate",
        options,
        measured(f"generate: {kind}, {options.candidates} candidates together", amount, unit, seconds["ours"]),
        measured(f"transformers' generate: {kind}, one at a time", amount, unit, seconds["alternative"])
        if net is not None
        else {"what": "transformers is not installed; pip install transformers"},
        {
            "what": f"codes at a copy's {bandwidth / 1e9:,.1f} GB/s, prompt at {max(peak.values()) / 1e12:.3f} TFLOP/s",
            "rate": amount / least,
            "unit": unit,
            "copy_bytes_per_second": bandwidth,
            "matmul_flops": peak,
        },
        tokens_per_answer=num_tokens,
        prompt_tokens=shape[1] + 1,
        equal_greedy_codes=equal,
    )
    print(table(found))
    if equal is not None:
        print(f"  {equal:.2%} of the greedy codes are equal")
    return found
