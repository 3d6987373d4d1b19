"""The benchmark of annotations through a tokenizer: drawing and reading alone lose next to nothing."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from lvm.runtime import UserError


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.annotations")


def test_without_the_tokenizer_scores_are_near_perfect_and_with_it_they_are_numbers(benchmark, tmp_path, capsys):
    report = benchmark.run(benchmark.Options("world-48px-f8-1024", count=2, json=tmp_path / "found.json"))
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["channels"] == report["channels"] and len(written["fingerprint"]) == 64
    drawn = {channel: next(iter(of.values()))["drawn"] for channel, of in report["channels"].items()}
    for channel in ("segmentation", "instance", "edge", "box, filled"):
        assert drawn[channel] > 0.99, channel
    assert drawn["keypoints"] > 0.8  # of dots that lie within a dot's width of each other one is found
    assert drawn["depth"] < 0.01 and drawn["normal"] < 0.7 and drawn["image"] == 100
    printed = capsys.readouterr().out
    for channel, metrics in report["channels"].items():
        assert channel in printed
        assert all(np.isfinite(pair["decoded"]) for pair in metrics.values()), channel


def test_no_scenes_are_refused(benchmark):
    with pytest.raises(UserError, match="count 0"):
        benchmark.run(benchmark.Options(count=0))
