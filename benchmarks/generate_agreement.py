"""Whether the ways to one answer agree: python -m benchmarks.generate_agreement [model=FOLDER prompts=1000 json=FILE]

Greedy answers to random prompts of many lengths, a third of which begin alike: all together against one by one, and
against the whole forward pass without a cache. In float32 they are to be equal but where two logits tie within 1e-4
(counted apart); in bfloat16 the share that is equal is reported. One by one only the first difference of an answer
counts: what follows answers something else.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.alone import run_alone
from lvm.commands.bench import DEMO
from lvm.inference import generate
from lvm.model import LVM
from lvm.runtime.machine import git_commit, machine_description

TIE = 1e-4


@dataclass(frozen=True)
class Options:
    model: str = ""  # a folder in the Hugging Face layout; "": the demo's net with random weights, enlarged
    prompts: int = 1000
    tokens: int = 36  # of each answer
    longest: int = 500  # tokens of a prompt
    json: str = ""


def random_net() -> LVM:
    model = LVM(DEMO)
    for parameter in model.parameters():
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)  # far from uniform predictions
    return model


def whole_forward(model: LVM, prompts: list[Tensor], answers: Tensor) -> tuple[Tensor, Tensor]:
    """Of each code of the answers: whether the forward pass of all before it says the same, and by how much not."""
    same, gaps = [], []
    bos = torch.tensor([model.config.bos] if model.config.prompt_bos else [], dtype=torch.int64)
    for prompt, answer in zip(prompts, answers):
        fed = torch.cat([bos, prompt, answer])[None]
        with torch.inference_mode():
            logits = model(fed)[0, -len(answer) - 1 : -1, : model.config.num_codes].float()
        best = logits.max(-1)
        same.append(best.indices == answer)
        gaps.append(best.values - logits.gather(-1, answer[:, None])[:, 0])
    return torch.stack(same), torch.stack(gaps)


def until_first_difference(same: Tensor) -> Tensor:
    """Which codes count: those up to the first that differs, that one included."""
    before = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1)
    return before.cummin(dim=1).values.bool()


def compare(model: LVM, prompts: list[Tensor], num_tokens: int) -> dict[str, float]:
    together = generate(model, prompts, num_tokens, temperature=0.0).tokens[:, 0]
    alone = torch.cat([generate(model, [prompt], num_tokens, temperature=0.0).tokens[:, 0] for prompt in prompts])
    same, gaps = whole_forward(model, prompts, together)
    apart = until_first_difference(together == alone) & (together != alone)
    _, gaps_alone = whole_forward(model, prompts, alone)
    no_tie = apart & (gaps >= TIE) | apart & (gaps_alone >= TIE)
    return {
        "answers": len(prompts),
        "codes": together.numel(),
        "equal_to_one_by_one": float((together == alone).all(1).float().mean()),
        "apart_from_one_by_one": int(apart.sum()),
        "apart_from_one_by_one_and_no_tie": int(no_tie.sum()),
        "equal_to_whole_forward": float(same.all(1).float().mean()),
        "codes_apart_from_whole_forward": int((~same).sum()),  # teacher-forced: each code counts for itself
        "largest_gap": float(gaps.max()),
        "apart_and_no_tie": int((~same & (gaps >= TIE)).sum()),
    }


def run(options: Options) -> dict[str, Any]:
    model = (LVM.from_pretrained(options.model) if options.model else random_net()).eval()
    generator = np.random.default_rng(0)
    longest = min(options.longest, model.config.max_position - options.tokens - 1)
    lengths = generator.integers(1, longest + 1, options.prompts)
    draw = lambda n: torch.from_numpy(generator.integers(0, model.config.num_codes, n))
    shared = [draw(longest // 2) for _ in range(8)]
    prompts = [draw(n) for n in lengths]
    for number in range(0, options.prompts, 3):
        beginning = shared[number % 8]
        prompts[number] = torch.cat([beginning, draw(1 + lengths[number] % (longest - len(beginning)))])
    found = {"float32": compare(model, prompts, options.tokens)}
    found["bfloat16"] = compare(model.bfloat16(), prompts, options.tokens)
    for name, row in found.items():
        print(
            f"{name}: of {row['answers']} answers {row['equal_to_one_by_one']:.1%} are those of one prompt at a time, "
            f"({row['apart_from_one_by_one_and_no_tie']} apart without a tie), "
            f"{row['equal_to_whole_forward']:.1%} those of the whole forward pass; of {row['codes']:,} codes "
            f"{row['codes_apart_from_whole_forward']} differ from it, {row['apart_and_no_tie']} of them by more than "
            f"{TIE:g} (at most {row['largest_gap']:.2g})"
        )
    return {**found, "options": asdict(options), "machine": machine_description(), "commit": git_commit()}


if __name__ == "__main__":
    run_alone(Options, run)
