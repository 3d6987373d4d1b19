"""The benchmarks of prompting beside `lvm bench generate`, small: what they report is what they say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import generate_agreement, generate_memory
from lvm.commands import bench
from lvm.runtime import UserError

ROOT = Path(__file__).parents[2]


def test_float32_answers_agree_and_bfloat16_is_reported():
    found = generate_agreement.run(generate_agreement.Options(prompts=6, tokens=5, longest=40))
    exact = found["float32"]
    assert exact["equal_to_one_by_one"] == exact["equal_to_whole_forward"] == 1.0
    assert exact["apart_and_no_tie"] == 0 and exact["codes"] == 30
    assert 0 <= found["bfloat16"]["equal_to_whole_forward"] <= 1


def test_a_difference_counts_until_the_first_of_an_answer():
    same = torch.tensor([[True, False, True, False], [True, True, True, True]])
    counted = generate_agreement.until_first_difference(same)
    assert counted.tolist() == [[True, True, False, False], [True] * 4]


def test_memory_is_measured_in_processes_of_their_own():
    found = generate_memory.run(generate_memory.Options(model="demo", pictures=3, candidates="1,4", device="cpu"))
    one, four = found["rows"]
    assert four["answer_cache"] == 4 * one["answer_cache"] and four["prompt_cache"] == one["prompt_cache"]
    assert one["peak"] > one["weights"] + one["prompt_cache"]
    with pytest.raises(UserError):
        generate_memory.run(generate_memory.Options(model="nowhere"))


def test_shared_pictures_are_counted_once_and_too_many_are_refused(tmp_path):
    module = bench.benchmark("generate")
    config = bench.DEMO
    work = module.Work(config, shared=10, own=5, answer=4, prompts=3, candidates=2, itemsize=4)
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_size
    assert work.step_bytes() == [4 * (work.matrices + per_token * (10 + 3 * (5 + 2 * i))) for i in (1, 2, 3)]
    alone = module.Work(config, shared=0, own=15, answer=4, prompts=1, candidates=2, itemsize=4)
    three = module.Work(config, shared=10, own=5, answer=4, prompts=3, candidates=2, itemsize=4)
    assert alone.prefill_flops() < three.prefill_flops() < 3 * alone.prefill_flops()
    with pytest.raises(UserError, match="shared is 15"):
        module.run(module.Options(shared=15))
    with pytest.raises(UserError, match="tokens is 37"):
        module.run(module.Options(tokens=37))


def test_a_window_that_moves_needs_a_model():
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.long_context"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert ended.returncode == 2 and "model is missing" in ended.stderr
