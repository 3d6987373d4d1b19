"""Cases made and judged by other processes: the same rows, and one line where a process dies."""

import errno
import json
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tiny_prompter import small_model, small_vqgan

from lvm.evaluation import job
from lvm.evaluation.annotated import WorldItems
from lvm.evaluation.ask import Codes, ask
from lvm.evaluation.cases import Case
from lvm.evaluation.helpers import CaseWorker, Helpers
from lvm.evaluation.job import EvaluationJob
from lvm.evaluation.rows import StaysHere
from lvm.evaluation.suites import SUITES
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.inference.prompter import Prompter
from lvm.runtime import UserError
from lvm.runtime.served import Served
from lvm.sources import open_source
from lvm.sources.base import BrokenItem

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
        here = CaseWorker(suite).cases(numbers)
        assert list(map(pickled_pictures, there)) == list(map(pickled_pictures, here))
        asked = ask(prompter, here, "exact")
        assert json.dumps(helpers.rows(asked).result()) == json.dumps(CaseWorker(suite).rows(asked))


def pickled_pictures(case):
    assert isinstance(case, Case)
    return case.id, [[picture.tobytes() for picture in shown.pictures] for shown in case.prompts.values()]


def test_a_suite_that_needs_the_tokenizer_stays_in_this_process(prompter):
    suite = open_suite("failures", context(prompter), ["pairs=1"])
    with pytest.raises(StaysHere):
        pickle.dumps(suite)
    with Helpers(suite, 2) as helpers:
        assert helpers.num_processes == 0
        assert isinstance(helpers.cases([0]).result()[0], Case)


class Torn:
    """The world's scenes, some of which cannot be read."""

    broken = frozenset({3, 4, 8, 17})

    def __init__(self, suite):
        self.suite = suite
        self.name = suite.name

    def __len__(self):
        return 20

    def case(self, i):
        if i in self.broken:
            raise BrokenItem(f"{i}.png", "is torn")
        return self.suite.case(i)

    def judge(self, case, pictures):
        return self.suite.judge(case, pictures)


@pytest.mark.parametrize("workers", [0, 2])
def test_cases_that_fail_keep_their_places_among_the_others(prompter, tmp_path, workers):
    suite = open_suite("depth", context(prompter), ["pairs=2"])
    torn = EvaluationJob(tmp_path / "out", Torn(suite), {})
    torn.run(prompter, workers=workers)
    rows = torn.rows()
    assert [row["case"] for row in rows] == list(range(20))
    assert {row["case"] for row in rows if row.get("failed") == "is torn"} == Torn.broken
    assert [row["id"] for row in rows if "id" in row] == [suite.case(i).id for i in range(20) if i not in Torn.broken]


def test_the_rows_of_a_block_are_written_while_the_next_is_asked(prompter, tmp_path, monkeypatch):
    """So that a kill loses the block that is asked, and no other."""
    written = []

    def ask_and_look(*arguments):
        if asked:
            until = time.monotonic() + 20
            while not (tmp_path / "out/.rows/block-00000.json").is_file() and time.monotonic() < until:
                time.sleep(0.01)
        asked.append(1)
        written.append(len(list((tmp_path / "out" / ".rows").iterdir())))
        return ask(*arguments)

    asked = []
    monkeypatch.setattr(job, "ask", ask_and_look)
    rows_of(prompter, tmp_path / "out", 0, ["pairs=1"])
    assert written == [0, 1]


def test_no_process_or_thread_is_left(prompter):
    before = threading.active_count()
    with Helpers(open_suite("depth", context(prompter)), 2) as helpers:
        helpers.cases(range(36))  # never waited for
        processes = [served.process for served in helpers._processes]
    assert all(process.poll() is not None for process in processes) and threading.active_count() == before


def test_helpers_do_not_import_torch():
    modules = "lvm.runtime.served, lvm.evaluation.helpers, lvm.evaluation.suites.depth"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Faulty:
    """What a process may do wrong."""

    def __init__(self, at_start=""):
        self.at_start = at_start

    def __setstate__(self, state):
        if state["at_start"]:
            raise ValueError(state["at_start"])

    def unpicklable(self):
        return lambda: None

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere")

    def odd(self, array):
        return [array, np.arange(3.0), array[::2]]


def test_what_goes_wrong_in_a_process_is_told_as_it_is():
    served = Served(pickle.dumps(Faulty()), "is faulty")
    with pytest.raises(RuntimeError, match=r"(?s)a process that is faulty failed.*pickle"):
        served("unpicklable")
    with pytest.raises(OSError, match="No space left on device: '/somewhere'"):
        served("full")
    given = np.arange(7, dtype=np.uint8)
    found = served("odd", given)
    assert all(np.array_equal(a, b) for a, b in zip(found, [given, np.arange(3.0), given[::2]]))
    assert found[1].ctypes.data % 8 == 0
    served.close()
    served = Served(pickle.dumps(Faulty("no such thing")), "is faulty")
    with pytest.raises(RuntimeError, match="no such thing"):
        served("full")
    served.close()


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
