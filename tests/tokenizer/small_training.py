"""A training of seconds for the tests; as a program one rank of it, which may kill itself:

python small_training.py OUT CHANGES_AS_JSON KILL_AT_STEP INIT_FILE        (RANK and WORLD_SIZE in the environment)
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from lvm.runtime import build
from lvm.runtime.errors import end_rank
from tokenizer.pictures import TrainingPictures
from tokenizer.settings import TrainConfig

SMALL = {
    "model": {
        "hidden_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "z_channels": 4, "quantized_embed_dim": 4,
        "num_embeddings": 16, "resolution": 16, "norm_groups": 2,
    },
    "quantizer": {"continuous_steps": 10, "restart_every_steps": 10},
    "discriminator": {"num_layers": 1, "width": 8, "start_step": 8, "ramp_steps": 8},
    "steps": 150, "batch_size": 8, "warmup_steps": 5, "log_every_steps": 10, "learning_rate": 3e-3,
    "compile": False, "ema_decay": 0.9, "save_dtype": "float32", "threads": 1,
}  # fmt: skip


def small(**changes: object) -> TrainConfig:
    """SMALL with `changes`; those of a section are added to it."""
    merged = {
        key: {**SMALL[key], **value} if isinstance(SMALL.get(key), dict) and isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return build(TrainConfig, {**SMALL, **merged})


def flat_pictures(n: int = 64) -> TrainingPictures:
    """Eight pictures of four random colours, again and again; the last eight are held out."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), dtype=np.uint8)
    pictures = np.tile(colours.repeat(8, axis=1).repeat(8, axis=2), (n // 8, 1, 1, 1))
    return TrainingPictures(pictures[:-8], pictures[-8:])


def digest(tensors: dict) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def main() -> None:
    out, changes, kill_at, init_file = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    import torch.distributed as dist

    import tokenizer.train as module

    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size)

    def say(line: str) -> None:
        words = line.split()
        if kill_at and words[0] == "step" and int(words[1]) >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    states = []
    real = module.new_state
    module.new_state = lambda *arguments, **options: states.append(real(*arguments, **options)) or states[-1]
    module.train(small(**changes), out, flat_pictures(), say, "cpu")
    (out / f"rank-{rank}.json").write_text(json.dumps(digest(module.state_tensors(states[0]))))
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
    end_rank()
