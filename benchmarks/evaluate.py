"""What an evaluation costs beside its answers: python -m benchmarks.evaluate model=FOLDER|SHAPE [suite=depth cases=96]

The answers of a suite's prompts by the engine alone, as `lvm bench generate` measures it (all prompts at hand as codes,
nothing scored), and the same prompts as `lvm evaluate` asks them: pictures drawn and encoded, blocks of cases,
likelihoods, answers decoded and judged. Both in one run, in turn; `ratio` is of answered pictures a second. A SHAPE is
one of configs/model with random weights: what the answers say does not change what they cost.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.alone import run_alone
from lvm.commands.bench import choose_device, model_config
from lvm.evaluation import ask as asking
from lvm.evaluation.ask import Codes
from lvm.evaluation.job import EvaluationJob
from lvm.evaluation.perplexity import autocast
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.inference.prompter import Prompter
from lvm.inference.rollout import Prompt
from lvm.model import LVM
from lvm.runtime.machine import git_commit, machine_description
from tokenizer import VQGAN


@dataclass(frozen=True)
class Options:
    model: str = "runs/demo/model"  # folder, or a name of configs/model
    pictures: int = 16  # of the context of a SHAPE
    tokenizer: str = "world-48px-f8-1024"
    suite: str = "depth"
    cases: int = 96  # of each task
    workers: int = 0  # processes that make and judge the cases
    rounds: int = 3
    json: str = ""  # file for the result


def main(options: Options) -> dict[str, Any]:
    prompter = opened(options)
    codes = Codes(prompter.vq)
    size, room = prompter.vq.config.resolution, prompter.pictures_per_window
    context = Context(None, size, room, options.cases, encode=codes, decode=prompter.decode)
    suite = open_suite(options.suite, context)
    cases = [suite.case(i) for i in range(options.cases)]
    prompts = [
        Prompt(codes(shown.pictures), len(case.truth), case.tuple_size)
        for case in cases
        for shown in case.prompts.values()
        if shown.answered
    ]
    pictures = sum(prompt.num_pictures for prompt in prompts)

    def engine() -> None:
        with autocast(prompter.model.head.weight.device, "auto"):
            for _ in prompter.continuations(prompts):
                pass

    def evaluation() -> None:
        with tempfile.TemporaryDirectory() as folder:
            job = EvaluationJob(Path(folder) / "out", open_suite(options.suite, context), {})
            job.run(prompter, workers=options.workers)

    engine(), evaluation()  # warm
    seconds: dict[str, list[float]] = {"engine": [], "evaluation": []}
    parts: dict[str, float] = {}
    for _ in range(options.rounds):
        seconds["engine"].append(timed(engine))
        with counted(parts, "likelihoods"), counted(parts, "answered"), counted(parts, "decoded"):
            seconds["evaluation"].append(timed(evaluation))
    speed = {name: pictures / statistics.median(values) for name, values in seconds.items()}
    found = {
        "options": asdict(options),
        "prompts": len(prompts),
        "ours": {"pictures_per_second": speed["evaluation"], "seconds": seconds["evaluation"]},
        "alternative": {"pictures_per_second": speed["engine"], "seconds": seconds["engine"]},
        "ratio": speed["evaluation"] / speed["engine"],
        "parts_seconds": {name: total / options.rounds for name, total in parts.items()},
        "machine": machine_description(),
        "commit": git_commit(),
    }
    print(f"{len(prompts)} prompts: {speed['evaluation']:.2f} answers a second evaluated, {speed['engine']:.2f} by the")
    print(f"engine alone: ratio {found['ratio']:.2f}; seconds of parts: {found['parts_seconds']}")
    return found


def opened(options: Options) -> Prompter:
    if Path(options.model).is_dir():
        return Prompter.from_pretrained(options.model, options.tokenizer)
    device = choose_device("auto")
    vq = VQGAN.from_pretrained(options.tokenizer).to(device)
    shape = replace(
        model_config(options.model),
        num_codes=vq.config.num_embeddings,
        vocab_size=0,  # as the codes need
        tokens_per_picture=vq.tokens_per_picture,
        max_position=options.pictures * vq.tokens_per_picture,
    )
    torch.manual_seed(0)
    return Prompter(LVM(shape).to(device).eval(), vq)


def timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@contextmanager
def counted(parts: dict[str, float], name: str) -> Any:
    """Seconds spent in a function of `lvm.evaluation.ask`."""
    function = getattr(asking, name)

    def wrapped(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - began

    setattr(asking, name, wrapped)
    try:
        yield
    finally:
        setattr(asking, name, function)


if __name__ == "__main__":
    run_alone(Options, main)
