"""What a moving window costs: python -m benchmarks.long_context model=FOLDER [frames=64 shown=8 json=FILE]

Clips of the embedded world continued far beyond the context, the window fed anew at each move (`tuples`) and on the old
keys (`reuse`), each in a process of its own, a clip at a time. For each: seconds a picture, the largest resident size
after 16 pictures and after all, and how far its draws are from a window fed anew: the mean over codes of
log p(drawn | old keys) - log p(drawn | fed anew), which in expectation is the Kullback-Leibler divergence of the two,
in nats a code, with an interval over clips.
"""

import resource
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.alone import in_own_process, run_alone
from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.prompts import world_clips
from lvm.inference import Prompter
from lvm.inference.choosing import answer_log_probs
from lvm.inference.rollout import Continuation, Prompt, Window
from lvm.inference.sampling import Sampling
from lvm.runtime import UserError
from lvm.runtime.machine import git_commit, machine_description
from lvm.sources.world import WorldConfig, WorldSource


@dataclass(frozen=True)
class Options:
    model: str = ""  # a folder in the Hugging Face layout
    tokenizer: str = "world-48px-f8-1024"
    clips: int = 8
    shown: int = 8
    frames: int = 64  # drawn
    seed: int = 0
    json: str = ""


def measure(options: Options, window: Window) -> dict[str, Any]:
    """In this process: one clip after the other."""
    prompter = Prompter.from_pretrained(options.model, options.tokenizer)
    world = WorldSource(WorldConfig(split="test", seed=options.seed))
    clips = world_clips(world, prompter.vq, options.clips, options.seed, options.shown, workers=0)
    prompts = [] if clips is None else [Prompt(codes.astype(np.int64)) for codes in clips.codes]
    if not prompts:
        raise UserError(f"shown is {options.shown}; the world has no clip of so many frames")

    def drawn(prompt: Prompt, number: int) -> Continuation:
        asked = [replace(prompt, num_pictures=number)]
        [(_, found)] = prompter.continuations(asked, 1, Sampling(), options.seed, window=window)
        return found

    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    drawn(prompts[0], 16)
    after_few = resident()
    began = time.perf_counter()
    found = [drawn(prompt, options.frames) for prompt in prompts]
    seconds = time.perf_counter() - began
    after_all = resident()
    excess = [one.log_probs - answer_log_probs(prompter, prompt, one.tokens) for prompt, one in zip(prompts, found)]
    beyond = prompter.pictures_per_window - options.shown  # before that no window has moved
    divergence = np.array([clip[:, beyond:].mean() for clip in excess])
    return {
        "pictures_per_window": prompter.pictures_per_window,
        "seconds_a_picture": seconds / (options.frames * len(prompts)),
        "resident_after_16": after_few,
        "resident_after_all": after_all,
        "divergence_nats_a_code": bootstrap_mean(divergence, 0),
        "mean_log_prob": float(np.mean([one.log_probs[:, beyond:].mean() for one in found])),
    }


def measure_in(options: dict[str, Any], window: Window) -> dict[str, Any]:
    return measure(Options(**options), window)


def run(options: Options) -> dict[str, Any]:
    if not options.model:
        raise UserError("model is missing; name a folder in the Hugging Face layout, `lvm export RUN OUT` makes one")
    found: dict[str, Any] = {}
    for window in ("tuples", "reuse"):
        row = found[window] = in_own_process("long_context", "measure_in", asdict(options), window)
        apart = row["divergence_nats_a_code"]
        print(
            f"{window:<7} {row['seconds_a_picture'] * 1e3:8.1f} ms a picture   "
            f"{row['resident_after_16'] / 1e6:,.0f} MB after 16, {row['resident_after_all'] / 1e6:,.0f} MB after all   "
            f"{apart['mean']:.4f} [{apart['low']:.4f}, {apart['high']:.4f}] nats a code from a window fed anew"
        )
    return {**found, "options": asdict(options), "machine": machine_description(), "commit": git_commit()}


if __name__ == "__main__":
    run_alone(Options, run)
