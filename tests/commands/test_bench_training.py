"""The benchmarks of training beside `lvm bench train`, small: what they report is what they say."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import ranks
from lvm.commands import bench
from lvm.runtime import UserError, read_json
from lvm.runtime.machine import num_cores

ROOT = Path(__file__).parents[2]


def run(module: str, *options: str) -> dict:
    """In a process of its own: these benchmarks change the training loop, or start processes."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return read_json(next(option for option in options if option.startswith("json=")).removeprefix("json="))


@pytest.mark.skipif(num_cores() < 2, reason="two ranks need two cores")
def test_two_ranks_and_one_learn_the_same(tmp_path):
    small = ["seq_len=32", "windows=1", "steps=1", "rounds=1", "compile=false", "precision=fp32"]
    found = run("ranks", "model=debug", *small, f"json={tmp_path / 'found.json'}")
    assert found["ours"]["first_loss"] == pytest.approx(found["alternative"]["first_loss"], rel=1e-5)
    assert found["tokens_per_rank_and_step"] == 32 and found["ratio"] > 0
    with pytest.raises(UserError, match="ranks is 1"):
        ranks.run(ranks.Options(ranks=1))


def test_a_save_blocks_for_no_longer_than_it_takes(tmp_path):
    small = ["seq_len=32", "batch_size=1", "steps=9", "save_every_steps=3"]
    found = run("saving", "model=debug", *small, f"json={tmp_path / 'found.json'}")["result"]
    assert len(found["blocked_seconds"]) == len(found["writing_seconds"]) == 2
    assert all(blocked > 0 for blocked in found["blocked_seconds"]) and found["step_seconds"] > 0


def test_memory_is_that_of_states_and_more():
    train = bench.benchmark("train")
    options = train.Options("debug", seq_len=32, batch_size=1, compile=False, precision="fp32")
    setting = train.Setting.of(options)
    smaller = train.Setting.of(train.Options("debug", num_codes=512, compile=False)).config
    assert smaller.num_params < setting.config.num_params and smaller.vocab_size == 512 + 100
    found = train.peak_bytes(asdict(options), "ours")
    assert 16 * setting.config.num_params <= found["bytes"] <= 1.5 * train.planned_bytes(options, setting)
