"""`lvm tokenize` as an array job, one task of which is killed at work: submitted again, it ends in the same store."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from store_content import content

from lvm.cluster import slurm
from lvm.store import TokenStore, verify
from tokenizer import VQGAN, VQGANConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PICTURES, SHARD_SIZE, TASKS, KILLED = 360, 2, 3, 1


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of small pictures, and a random tokenizer whose codes differ from picture to picture."""
    folder = tmp_path_factory.mktemp("tokenize")
    (folder / "pictures").mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (PICTURES, 4, 4, 3), dtype=np.uint8)
    for number, picture in enumerate(drawn.repeat(4, 1).repeat(4, 2)):
        Image.fromarray(picture).save(folder / "pictures" / f"{number:04}.png")
    torch.manual_seed(0)
    sizes = {"hidden_channels": 8, "z_channels": 4, "quantized_embed_dim": 4, "num_embeddings": 64, "resolution": 16}
    vqgan = VQGAN(VQGANConfig(channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=1, **sizes)).eval()
    with torch.no_grad():
        latents = vqgan.latents(torch.rand(64, 3, 16, 16)).permute(0, 2, 3, 1).reshape(-1, 4)
        vqgan.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:64]])
    vqgan.save_pretrained(folder / "tokenizer")
    return folder


def command(work, store):
    options = ["--tokenizer", work / "tokenizer", "--workers", "0", "--shard-size", SHARD_SIZE]
    return [sys.executable, "-m", "lvm", "tokenize", work / "pictures", store, *options]


def script(work, store):
    text = " ".join(map(str, command(work, store)))
    path = work / "array.sh"
    path.write_text(
        f"#!/bin/bash\n#SBATCH --output={work}/task-%a.txt --open-mode=append --no-requeue\nexport OMP_NUM_THREADS=1\n"
        f"exec {text} --num-shards {TASKS} --shard $SLURM_ARRAY_TASK_ID\n"
    )
    return path


def finished_shards(store, task):
    """Shards of this task that are there; every third is its own."""
    return [path for path in store.glob("shards/[0-9]*.tar") if int(path.stem) % TASKS == task]


def kill_at_work(store):
    """SIGKILL to the task that is to die, once it has written some of its shards and not all."""
    deadline = time.monotonic() + 240
    while len(finished_shards(store, KILLED)) < 3:
        assert time.monotonic() < deadline, "the task wrote nothing"
        time.sleep(0.001)
    lease = json.loads((store / f".task-{KILLED}-of-{TASKS}.json").read_text())
    os.kill(lease["pid"], signal.SIGKILL)


def test_an_array_of_which_one_task_is_killed_writes_the_store_of_one_process(cluster, work):
    whole, store = work / "whole", work / "store"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command(work, whole)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    job = slurm.submit(script(work, store), f"--array=0-{TASKS - 1}")
    kill_at_work(store)
    ends = [cluster.wait(f"{job}_{task}", "COMPLETED", "FAILED", seconds=240) for task in range(TASKS)]
    assert ends == ["FAILED" if task == KILLED else "COMPLETED" for task in range(TASKS)]
    shards = PICTURES // SHARD_SIZE // TASKS
    assert [len(finished_shards(store, task)) for task in (0, 2)] == [shards, shards]
    assert 3 <= len(finished_shards(store, KILLED)) < shards and not (store / "store.json").exists()

    again = slurm.submit(script(work, store), f"--array={KILLED}")
    assert cluster.wait(f"{again}_{KILLED}", "COMPLETED", "FAILED", seconds=240) == "COMPLETED"
    assert content(store) == content(whole)
    verify(store)
    assert TokenStore(store).fingerprint == TokenStore(whole).fingerprint and len(TokenStore(store)) >= PICTURES
