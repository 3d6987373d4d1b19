"""Prompts to answers: lvm bench generate [model=demo pictures=15 shared=0 candidates=4 prompts=1 rounds=7]

Ours: `lvm.inference.generate`: keys and values of a prompt, and of the pictures that prompts share (`shared=10`: five
pairs), kept once. The alternative, the reference's way: transformers' `generate` for one candidate at a time, each with
the prompt fed again. Beside it transformers with all candidates of a prompt in one call. All in one numeric type, BOS
first, codes alone allowed, one picture an answer (`tokens=N`: so many codes of it), temperature 1.
Limit: for each code after the first the weights, and the keys and values of prompts and answers, read once at the speed
of a copy; the FLOPs of what is fed at the speed of a matrix product. A net that fits the processor's cache is not bound
by the first.

    lvm bench generate model=100m rounds=1 warm_up=false             # 4 candidates after 15 pictures
    lvm bench generate model=100m pictures=11 shared=10 prompts=8 candidates=1 rounds=1 warm_up=false
                                                                     # 8 queries after the same 5 pairs
    lvm bench generate model=3b candidates=1 device=cuda
    lvm bench generate model=3b candidates=1 prompts=64 device=cuda
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
    shared: int = 0  # of these, the first ones that all prompts have alike
    candidates: int = 4
    prompts: int = 1
    tokens: int = 0  # of each answer; 0: a picture
    rounds: int = 7
    warm_up: bool = True  # a round before, not kept; answers that take minutes need none
    batched: bool = True  # also transformers with all candidates of a prompt together
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: fp32 on the CPU, bf16 on a GPU
    device: str = "auto"


def theirs(
    net: nn.Module, prompts: Tensor, config: LVMConfig, num_tokens: int, candidates: int, greedy: bool, at_once: int = 1
) -> Tensor:
    """Codes [b, candidates, t], one `generate` for every `at_once` candidates of a prompt."""
    bos = torch.full_like(prompts[:, :1], config.bos)
    fed = torch.cat([bos, prompts], dim=1)
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    answers = [
        net.generate(  # type: ignore[operator]
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            num_return_sequences=at_once,
            suppress_tokens=list(range(config.num_codes, config.vocab_size)),
            eos_token_id=None,
            pad_token_id=config.pad,
            **sampling,
        )[:, fed.shape[1] :]
        for prompt in fed
        for _ in range(candidates // at_once)
    ]
    return torch.cat(answers).view(len(prompts), candidates, num_tokens)


@dataclass(frozen=True)
class Work:
    """What has to be fed and read at least, in tokens."""

    config: LVMConfig
    shared: int  # of the prompts, fed and kept once
    own: int  # of each prompt, behind the shared ones
    answer: int
    prompts: int
    candidates: int
    itemsize: int

    @property
    def matrices(self) -> int:
        """Weights that every token meets: all but the embedding, of which it reads a row."""
        config = self.config
        return config.num_params - (0 if config.tie_embeddings else config.vocab_size * config.hidden_size)

    def prefill_flops(self) -> float:
        """Of the matrices, and of the half of attention that is needed."""
        width, fed = self.config.num_heads * self.config.head_size, self.shared + self.own
        pairs = self.shared**2 / 2 + self.prompts * (fed**2 - self.shared**2) / 2  # of tokens that meet
        head = self.config.vocab_size * self.config.hidden_size
        of_matrices = (self.matrices - head) * (self.shared + self.prompts * self.own) + head * self.prompts
        return 2 * of_matrices + 4 * self.config.num_layers * width * pairs

    def step_bytes(self) -> list[int]:
        """Read by each step: the weights once, and every key and value that is kept."""
        per_token = 2 * self.config.num_layers * self.config.num_kv_heads * self.config.head_size
        kept = [self.shared + self.prompts * (self.own + self.candidates * number) for number in range(1, self.answer)]
        return [self.itemsize * (self.matrices + per_token * tokens) for tokens in kept]

    def step_flops(self) -> float:
        return 2.0 * self.matrices * self.prompts * self.candidates * (self.answer - 1)


def check(options: Options, config: LVMConfig, picture: int) -> None:
    most = config.max_position // picture - 1
    if not 1 <= options.pictures <= most:
        raise UserError(
            f"pictures is {options.pictures}; the context of {options.model} takes 1 to {most} and one more"
        )
    if not 0 <= options.shared < options.pictures:
        raise UserError(f"shared is {options.shared}; use 0 to {options.pictures - 1}, fewer than pictures")
    if not 0 <= options.tokens <= picture:
        raise UserError(f"tokens is {options.tokens}; a picture of {options.model} has {picture}")


def make_prompts(options: Options, config: LVMConfig, picture: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(config.num_codes, (options.prompts, options.pictures * picture), generator=generator)
    prompts[:, : options.shared * picture] = prompts[:1, : options.shared * picture]
    return prompts


def run(options: Options) -> dict[str, Any]:
    device, config = choose_device(options.device), model_config(options.model)
    picture = config.tokens_per_picture or 256
    check(options, config, picture)
    num_tokens = options.tokens or picture
    bf16 = options.precision == "bf16" or (options.precision == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if bf16 else torch.float32
    with torch.device("meta"):
        model = LVM(config)
    model = model.to_empty(device=device)
    model.init_weights(0)
    model = model.to(dtype).eval()
    net = hugging_face_model(model)
    prompts = make_prompts(options, config, picture).to(device)

    def ours(count: int) -> Tensor:
        return generate(model, prompts, count, options.candidates).tokens

    contestants: dict[str, Callable[[], float]] = {
        "ours": lambda: seconds_of(lambda: ours(num_tokens), device),
        "ours_first_code": lambda: seconds_of(lambda: ours(1), device),
    }
    equal = None
    if net is not None:
        net.eval()
        greedy = generate(model, prompts[:1], num_tokens, temperature=0.0).tokens
        alike = theirs(net, prompts[:1], config, num_tokens, 1, greedy=True) == greedy
        equal = float(alike.float().mean())
        contestants["alternative"] = lambda: seconds_of(
            lambda: theirs(net, prompts, config, num_tokens, options.candidates, greedy=False), device
        )
        if options.batched and options.candidates > 1:
            contestants["batched"] = lambda: seconds_of(
                lambda: theirs(net, prompts, config, num_tokens, options.candidates, False, options.candidates), device
            )
    seconds = take_turns(contestants, options.rounds, options.warm_up)
    return report(options, config, str(device), bf16, num_tokens, picture, seconds, equal)


def report(
    options: Options,
    config: LVMConfig,
    device: str,
    bf16: bool,
    num_tokens: int,
    picture: int,
    seconds: dict[str, list[float]],
    equal: float | None,
) -> dict[str, Any]:
    kind = "bf16" if bf16 else "fp32"
    shared = 1 + options.shared * picture if options.shared else 0
    own = 1 + options.pictures * picture - shared
    work = Work(config, shared, own, num_tokens, options.prompts, options.candidates, 2 if bf16 else 4)
    bandwidth, peak = copy_bandwidth(device), matmul_peak(device)["bfloat16" if bf16 else "float32"]
    moved = sum(work.step_bytes())
    least = work.prefill_flops() / peak + max(moved / bandwidth, work.step_flops() / peak)
    amount, unit = options.prompts * options.candidates, "answers/s"

    prefill = sorted(seconds["ours_first_code"])[len(seconds["ours_first_code"]) // 2]
    decode = max(1e-9, sorted(seconds["ours"])[len(seconds["ours"]) // 2] - prefill)
    phases = {
        "prefill_seconds": prefill,
        "prefill_flops_per_second": work.prefill_flops() / prefill,
        "prefill_share_of_peak": work.prefill_flops() / prefill / peak,
        "steps_per_second": (num_tokens - 1) / decode,
        "bytes_per_step": moved / max(1, num_tokens - 1),
        "bytes_per_second": moved / decode,
        "decode_share_of_bandwidth": moved / decode / bandwidth,
    }
    nothing = {"what": "transformers is not installed; pip install transformers"}
    found = result(
        "generate",
        options,
        measured(f"generate: {kind}, {options.candidates} candidates together", amount, unit, seconds["ours"]),
        measured(f"transformers' generate: {kind}, one at a time", amount, unit, seconds["alternative"])
        if "alternative" in seconds
        else nothing,
        {
            "what": f"steps at a copy's {bandwidth / 1e9:,.1f} GB/s, prompts at {peak / 1e12:.3f} TFLOP/s",
            "rate": amount / least,
            "unit": unit,
            "copy_bytes_per_second": bandwidth,
            "matmul_flops": matmul_peak(device),
        },
        phases=phases,
        tokens_per_answer=num_tokens,
        prompt_tokens=shared + own,
        equal_greedy_codes=equal,
    )
    if "batched" in seconds:
        what = f"transformers' generate: {kind}, {options.candidates} candidates together"
        found["batched"] = measured(what, amount, unit, seconds["batched"])
    print(table(found))
    if "batched" in seconds:
        ratio = found["ours"]["rate"] / found["batched"]["rate"]
        print(f"  {found['batched']['rate']:.3g} {unit} {found['batched']['what']}; ours {ratio:.2f}x")
    print(
        f"  prompts {prefill:.2f} s, {phases['prefill_share_of_peak']:.0%} of the peak; then "
        f"{phases['steps_per_second']:.1f} steps/s, {phases['bytes_per_step'] / 1e6:,.0f} MB each, "
        f"{phases['decode_share_of_bandwidth']:.0%} of the bandwidth"
    )
    if equal is not None:
        print(f"  {equal:.2%} of the greedy codes are equal")
    return found
