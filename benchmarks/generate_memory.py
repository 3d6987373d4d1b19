"""Peak memory of answering, by the number of candidates: python -m benchmarks.generate_memory [model=100m json=FILE]

Each number in a process of its own: on a CPU its largest resident size, on a GPU the most that torch had allocated.
What it is made of stands beside it: weights, and the keys and values of prompt and candidates.
"""

import resource
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.alone import in_own_process, run_alone
from lvm.runtime.machine import git_commit, machine_description


@dataclass(frozen=True)
class Options:
    model: str = "100m"  # demo, or a name in configs/model
    pictures: int = 15
    candidates: str = "1,8"
    device: str = "auto"
    json: str = ""


def peak_bytes(name: str, pictures: int, candidates: int, device: str) -> dict[str, int]:
    """In this process: answer one prompt with so many candidates."""
    import torch

    from lvm.commands.bench import choose_device, model_config
    from lvm.inference import generate
    from lvm.inference.cache import bytes_per_token
    from lvm.model import LVM

    where, config = choose_device(device), model_config(name)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    with torch.device("meta"):
        model = LVM(config)
    model = model.to(dtype).to_empty(device=where).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    picture = config.tokens_per_picture or 256
    prompt = torch.randint(config.num_codes, (1, pictures * picture), device=where)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    generate(model, prompt, picture, candidates)
    on_gpu = where.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = bytes_per_token(config, dtype.itemsize)
    return {
        "candidates": candidates,
        "peak": peak,
        "before": 0 if on_gpu else before,
        "weights": config.num_params * dtype.itemsize,
        "prompt_cache": each * (1 + pictures * picture),
        "answer_cache": each * candidates * (picture - 1),
    }


def run(options: Options) -> dict[str, Any]:
    rows = []
    for candidates in options.candidates.split(","):
        rows.append(
            in_own_process(
                "generate_memory", "peak_bytes", options.model, options.pictures, int(candidates), options.device
            )
        )
        row = rows[-1]
        print(
            f"{row['candidates']:>3} candidates: {row['peak'] / 1e9:.3f} GB at most "
            f"(weights {row['weights'] / 1e9:.3f}, prompt {row['prompt_cache'] / 1e9:.3f}, "
            f"answers {row['answer_cache'] / 1e9:.3f}); "
            f"{row['peak'] / rows[0]['peak']:.2f}x of {rows[0]['candidates']}"
        )
    return {"rows": rows, "options": asdict(options), "machine": machine_description(), "commit": git_commit()}


if __name__ == "__main__":
    run_alone(Options, run)
