"""Cases made and judged by other processes: the same rows, and one line where a process dies."""

import json
import pickle

import numpy as np
import pytest
from tiny_prompter import small_model, small_vqgan

from lvm.evaluation.annotated import WorldItems
from lvm.evaluation.ask import Codes, HoldsTokenizer, ask
from lvm.evaluation.cases import Case
from lvm.evaluation.helpers import Desk, Helpers
from lvm.evaluation.job import EvaluationJob
from lvm.evaluation.suites import SUITES
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.inference.prompter import Prompter
from lvm.runtime import UserError
from lvm.runtime.served import Served
from lvm.sources import open_source

WORLD = {
    "kind": "world",
    "num_scenes": 40,
    "num_clips": 12,
    "num_objects": 170,
    "num_turntables": 12,
    "num_puzzles": 80,
    "num_things": [2, 3],
    "num_frames": 6,
}


@pytest.fixture(scope="module")
def prompter():
    vq = small_vqgan()
    return Prompter(small_model(vq), vq)


def context(prompter, **more):
    size, room = prompter.vq.config.resolution, prompter.pictures_per_window
    return Context(None, size, room, 36, world=WORLD, encode=Codes(prompter.vq), decode=prompter.decode, **more)


def rows_of(prompter, folder, workers, options):
    suite = open_suite("depth", context(prompter), options)
    EvaluationJob(folder, suite, {}).run(prompter, workers=workers)
    return EvaluationJob(folder, suite, {}).rows()


@pytest.mark.parametrize("options", [["pairs=2"], ["pairs=1", "choose=nearest", "pool=6"]])
def test_rows_do_not_depend_on_who_makes_and_judges_the_cases(prompter, tmp_path, options):
    alone = rows_of(prompter, tmp_path / "alone", 0, options)
    assert len(alone) == 36 and rows_of(prompter, tmp_path / "helped", 2, options) == alone


@pytest.mark.parametrize("name", sorted({*SUITES} - {"failures"}))
def test_every_suite_works_in_another_process(prompter, name):
    suite = open_suite(name, context(prompter))
    numbers = [0, 1]
    with Helpers(suite, 1) as helpers:
        assert helpers.num_processes == 1
        there = helpers.cases(numbers).result()
        here = Desk(suite).cases(numbers)
        assert list(map(pickled_pictures, there)) == list(map(pickled_pictures, here))
        asked = ask(prompter, here, "exact")
        assert json.dumps(helpers.rows(asked).result()) == json.dumps(Desk(suite).rows(asked))


def pickled_pictures(case):
    assert isinstance(case, Case)
    return case.id, [[picture.tobytes() for picture in shown.pictures] for shown in case.prompts.values()]


def test_a_suite_that_needs_the_tokenizer_stays_in_this_process(prompter):
    suite = open_suite("failures", context(prompter), ["pairs=1"])
    with pytest.raises(HoldsTokenizer):
        pickle.dumps(suite)
    with Helpers(suite, 2) as helpers:
        assert helpers.num_processes == 0
        assert isinstance(helpers.cases([0]).result()[0], Case)


def test_a_process_that_dies_is_one_line_and_the_job_goes_on_later(prompter, tmp_path, monkeypatch):
    called = Served.__call__

    def dying(self, method, *arguments):
        if method == "rows":
            self.process.kill()
        return called(self, method, *arguments)

    monkeypatch.setattr(Served, "__call__", dying)
    with pytest.raises(
        UserError, match=r"reads and judges pictures ended \(code -9\), often for lack of memory; use fewer"
    ):
        rows_of(prompter, tmp_path / "out", 1, ["pairs=2"])
    assert not list((tmp_path / "out" / ".rows").iterdir())
    monkeypatch.undo()
    assert rows_of(prompter, tmp_path / "out", 0, ["pairs=2"]) == rows_of(prompter, tmp_path / "whole", 0, ["pairs=2"])


@pytest.mark.parametrize("kind", ["scene", "object", "turntable"])
def test_only_the_channels_that_are_shown_are_drawn(kind):
    world = open_source({**WORLD, "split": "test"})
    items = WorldItems(world, kind, 32)
    view = items.views(3)[0]
    every, some = items.read(3, view), items.read(3, view, ("image", "depth"))
    assert {"image", "depth"} == {*some} < {*every}
    assert all(np.array_equal(some[name], every[name]) for name in some)
