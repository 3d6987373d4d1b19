"""Peak memory of training a tokenizer, in a process of its own:
python -m benchmarks.tokenizer_memory [json=FILE] [KEY=VALUE of tokenizer.train ...]

    python -m benchmarks.tokenizer_memory experiment=photos_256 crop=null batch_size=8
    python -m benchmarks.tokenizer_memory experiment=photos_256 crop=null batch_size=8 accumulate=8 grow_from=null \\
        model.hidden_channels=128 model.channel_mult=[1,2,2,4,6] model.num_res_blocks=2 model.z_channels=64 \\
        model.quantized_embed_dim=64 model.norm_groups=32                                      # the published net

Three steps on a few pictures of the world: the process's largest resident size (pictures, code and compiler included),
and on a GPU what was allocated there at most.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from lvm.runtime import UserError, exit_with_one_line, write_json
from lvm.runtime.machine import git_commit, machine_description
from lvm.runtime.metrics import read_metrics

FEW = [
    "pictures=world",
    "picture_weights=null",
    "max_pictures=300",
    "steps=3",
    "log_every_steps=1",
    "judged_pictures=4",
]


def peak_gigabytes(options: list[str]) -> tuple[float, float | None]:
    """Of the host, and of the GPU if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tokenizer.train", f"out={folder}/run", *FEW, *options]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise UserError(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "the training failed")
        records = read_metrics(Path(folder) / "run" / "metrics")
    on_gpu = [record["gpu_memory_gb"] for record in records if "gpu_memory_gb" in record]
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, max(on_gpu, default=None)  # kilobytes on Linux


def main() -> None:
    file = next((Path(a.removeprefix("json=")) for a in sys.argv[1:] if a.startswith("json=")), None)
    options = [a for a in sys.argv[1:] if not a.startswith("json=")]
    peak, on_gpu = peak_gigabytes(options)
    there = "" if on_gpu is None else f", {on_gpu:.2f} GB on the GPU"
    print(f"{peak:.2f} GB at most{there}: {' '.join(options)}")
    if file is not None:
        found = {"options": options, "peak_gigabytes": peak, "gpu_peak_gigabytes": on_gpu}
        write_json(file, found | {"machine": machine_description(), "commit": git_commit()})


if __name__ == "__main__":
    exit_with_one_line(main)
