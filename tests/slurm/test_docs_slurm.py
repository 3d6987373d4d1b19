"""docs/slurm.md from its first command to its last, on a real Slurm, with smaller numbers and a tiny model."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import tiny_run, tiny_tokenizer

from lvm.cluster import slurm
from lvm.cluster.launch import submitted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "slurm.md"


def shown_commands():
    text = PAGE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [" ".join(line.split()) for line in lines if re.match(r"(lvm|python|export) ", line)]


@pytest.fixture
def smaller(tmp_path):
    """What is written -> what is run instead."""
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    pictures = tmp_path / "data" / "photos"
    pictures.mkdir(parents=True)
    for number in range(24):
        picture = Image.new("RGB", (16, 16), (number * 10, 0, 0))
        picture.paste((0, 255, number), (0, 0, 8, 8))
        picture.save(pictures / f"{number:02}.png")
    (tmp_path / "grid.txt").write_text("optim.lr=1e-3\noptim.lr=2e-3\n")
    demo = [*tiny_run(tokenizer), "trainer.max_steps=2", "trainer.accelerator=cpu"]
    model = [word for word in demo if word.startswith("model.")]
    small = ["model=debug", *model, "trainer.accelerator=cpu", "trainer.compile=false", "trainer.num_threads=1"]
    return {
        "install --editable": "install --dry-run --no-deps --no-build-isolation --editable",
        '".[slurm,video]"': f'"{ROOT}[slurm,video]"',
        "/scratch/": f"{tmp_path}/scratch/",
        "/data/photos": str(pictures),
        "photos-256px-f16-8192": str(tokenizer),
        "--workers 8": "--workers 0 --shard-size 4",
        "tasks=64": "tasks=2",
        "recommended model=3b": f"recommended {' '.join(small)}",
        "data.seq_len=4096": "data.seq_len=16",
        "batch_size=512 trainer.micro_batch_size=8": "batch_size=4 trainer.micro_batch_size=1",
        "save_every_steps=500": "save_every_steps=50",
        "nodes=2 gpus=8 time=24:00:00 partition=gpu": "nodes=2 gpus=1 time=24:00:00 partition=main",
        "experiment=demo": " ".join(demo),
        "world-48px-f8-1024": f"{tokenizer} --targets 2 --clips 0 --workers 0",
    }


def until(condition, what, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.3)


def test_every_command_of_the_page_runs(cluster, smaller, tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"USER": "me", "LVM_CACHE": str(tmp_path / "cache")}
    unused = set(smaller)

    def run(command):
        for written, instead in smaller.items():
            if written in command:
                unused.discard(written)
                command = command.replace(written, instead)
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def logs():
        return "\n".join(f"{path}:\n{path.read_text()[-2500:]}" for path in tmp_path.glob("runs/*/logs/*"))

    def all_ended():
        return not cluster.run("squeue", "-h").strip()

    kept = tmp_path / "runs" / "3b"
    for command in shown_commands():
        said = run(command)
        if not command.startswith("lvm launch"):
            continue
        if "run_dir=runs/3b" in command:  # followed and cancelled by the commands after it
            if "--dry-run" in command:
                assert said.startswith("#!/bin/bash") and not kept.exists()
            else:
                until(lambda: list(kept.glob("checkpoints/step-*")) or all_ended(), logs)
                assert not all_ended(), logs()
        elif "background=true" in command:
            until(lambda: list(tmp_path.glob("runs/*/result.json")) and "finished" in logs(), logs)
        else:
            until(all_ended, logs)
        if "lvm cancel" in command:
            until(all_ended, logs)
    assert not unused, f"{PAGE} no longer has {unused}"

    states = {}
    for folder in (tmp_path / "runs").iterdir():
        for job in submitted(folder):
            states[folder.name, job] = slurm.jobs([job])[job].state
    assert len(states) >= 6 and set(states.values()) <= {"COMPLETED", "FAILED"}, f"{states}\n{logs()}"
    failed = {name for (name, _), state in states.items() if state == "FAILED"}
    assert failed <= {"3b"}, logs()  # the cancelled one exits with its signal's number
    assert json.loads((kept / "result.json").read_text())["signal"]
    assert (tmp_path / "runs" / "report" / "report.json").is_file()
