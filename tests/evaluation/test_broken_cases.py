"""Cases that cannot be read when they are asked or drawn: counted, named, and no report is lost."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from suite_runs import evaluate
from tiny_prompter import SIZE, small_model, small_vqgan

from lvm.commands._suites import figures
from lvm.commands.evaluate import main
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.depth import DepthSuite
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.suites.perplexity import PerplexitySuite
from lvm.inference.prompter import Prompter
from lvm.sources.base import BrokenItem

MORE = ("--targets", "40", "only=[depth]", "shots=[0,1]")


def fails(monkeypatch: pytest.MonkeyPatch, suite: type, which: Callable[[int], bool]) -> None:
    plain = suite.case

    def case(self, i):
        if which(i):
            raise BrokenItem(f"{i}.png", "is truncated")
        return plain(self, i)

    monkeypatch.setattr(suite, "case", case)


def test_a_shard_says_that_its_cases_failed_before_there_is_a_report(saved_prompter, tmp_path, capsys, monkeypatch):
    words = [*saved_prompter, "--suite", "perplexity", "--out", str(tmp_path / "out"), *MORE]
    with monkeypatch.context() as patched:
        fails(patched, PerplexitySuite, {33, 35}.__contains__)  # of the second block
        assert main([*words, "--shard", "1/2"]) == 1
        said = capsys.readouterr()
        assert "error: 2 of 8 cases failed, the first 33.png: is truncated; all are in" in said.err
        assert "shard 1 of 2 is done; other shards are not yet" in said.out
        assert not (tmp_path / "out" / "report.json").exists()
        assert main([*words, "--shard", "0/2"]) == 1  # the last one: of all
        assert "error: 2 of 40 cases failed, the first 33.png" in capsys.readouterr().err
    assert main([*words, "--shard", "1/2"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["failed"] == []


def test_figures_of_a_training_count_the_cases_that_failed(monkeypatch):
    vq = small_vqgan()
    prompter = Prompter(small_model(vq), vq)
    suite = open_suite("depth", Context(None, SIZE, 6, 4), ["pairs=2"])
    assert set(figures(prompter, suite)) == {"depth"}
    fails(monkeypatch, DepthSuite, {0, 2, 3}.__contains__)
    found = figures(prompter, suite)
    assert found["failed"] == 3 and np.isfinite(found["depth"]["score"]["abs_rel"])


def test_a_case_that_is_gone_when_the_page_is_drawn_is_left_out_and_named(
    saved_prompter: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[int] = set()
    worst: list[int] = []

    def again(i: int) -> bool:
        """Only the first case that is drawn again is gone."""
        if i in asked and not worst:
            worst.append(i)
        asked.add(i)
        return worst == [i]

    fails(monkeypatch, PerplexitySuite, again)
    code, report = evaluate("perplexity", saved_prompter, tmp_path / "out", *MORE)
    assert code == 0 and report["tasks"]["depth"]["items"] == 40
    html = (tmp_path / "out" / "report.html").read_text()
    assert "median of 40" in html and "worst of 40" in html and "best of 40" not in html
    said = capsys.readouterr().err
    assert "depth: the best case, " in said and f"is not on the page: {worst[0]}.png: is truncated" in said
