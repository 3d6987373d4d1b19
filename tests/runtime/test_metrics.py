"""Metrics survive kills, and attempts that repeat steps read as one history."""

import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvm.runtime.metrics import MetricsLog, read_metrics


def losses(folder) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(folder)}


def test_each_attempt_has_its_file_and_lines_are_there_at_once(tmp_path):
    for number in range(3):
        log = MetricsLog(tmp_path)
        log.log(number, loss=float(number))
        lines = (tmp_path / f"attempt-{number:04d}.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["loss"] == number
        log.close()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 1)), min_size=1, max_size=5), st.integers(1, 3))
def test_attempts_read_as_the_history_of_the_steps_that_count(tmp_path_factory, attempts, every):
    folder = tmp_path_factory.mktemp("metrics")
    expected: dict[int, float] = {}
    reached = 0
    for number, (length, share) in enumerate(attempts):
        resumed_at = int(share * reached)
        expected = {step: value for step, value in expected.items() if step <= resumed_at}
        logged = 0
        with MetricsLog(folder, resumed_at) as log:
            for step in range(resumed_at + 1, resumed_at + length + 1):
                if step % every == 0:
                    log.log(step, loss=float(number))
                    expected[step] = float(number)
                    logged += 1
        if not logged:
            # An attempt that logged nothing left no trace; its steps are the former attempt's still.
            expected = losses(folder)
        reached = resumed_at + length
    assert losses(folder) == expected


def test_the_later_attempt_wins_at_a_step_both_logged(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(10, loss=1.0)
        log.log(20, loss=2.0)
    with MetricsLog(tmp_path, resumed_at=10) as log:
        log.log(10, loss=9.0)
    assert losses(tmp_path) == {10: 9.0}


def test_records_of_one_step_are_merged(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(5, loss=1.0)
        log.log(5, evaluation={"perplexity": 3.5})
    (record,) = read_metrics(tmp_path)
    assert record["loss"] == 1.0 and record["evaluation"] == {"perplexity": 3.5}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200))
def test_a_kill_in_the_middle_of_a_line_loses_that_line_only(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("half")
    with MetricsLog(folder) as log:
        for step in (1, 2, 3):
            log.log(step, loss=0.5, name="naïve")
    content = log.path.read_bytes()
    log.path.write_bytes(content[: len(content) - cut])
    lines = content[: len(content) - cut].count(b"\n")
    assert len(losses(folder)) in (lines, lines + 1)  # a line that lacks its newline alone is whole
    assert all(value == 0.5 for value in losses(folder).values())


def test_tensors_arrays_and_numbers_that_are_not_finite_become_json(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(1, a=torch.tensor(2.0), b=np.arange(2), c=float("nan"), d=np.float32(1), e={"f": torch.ones(1)})
    record = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert (record["a"], record["b"], record["c"], record["d"], record["e"]) == (2.0, [0, 1], "nan", 1.0, {"f": [1.0]})


def test_wandb_gets_the_figures_offline_without_a_key_and_never_stops_the_run(tmp_path, monkeypatch):
    calls: list = []

    class Run:
        def log(self, values, step):
            calls.append((values, step))
            if step == 2:
                raise OSError("network is gone")

        def finish(self):
            calls.append("finish")

    fake = types.ModuleType("wandb")
    fake.init = lambda **arguments: (calls.append(arguments), Run())[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with MetricsLog(tmp_path / "run" / "metrics", wandb={"project": "p"}) as log:
        log.log(1, loss=1.0)
        with pytest.warns(UserWarning, match="network is gone"):
            log.log(2, loss=2.0)
        log.log(3, loss=3.0)
    assert calls[0]["mode"] == "offline" and calls[0]["project"] == "p"
    assert calls[1:] == [({"loss": 1.0}, 1), ({"loss": 2.0}, 2)]
    assert losses(tmp_path / "run" / "metrics") == {1: 1.0, 2: 2.0, 3: 3.0}


def test_a_wandb_that_cannot_start_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="wandb could not start"):
        log = MetricsLog(tmp_path, wandb={})
    log.log(1, loss=1.0)
    log.close()
    assert losses(tmp_path) == {1: 1.0}


def test_tensorboard_gets_numbers_nested_ones_and_pictures(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def add_image(self, name, picture, step, dataformats):
            calls.append((name, picture.shape, step, dataformats))

        def close(self):
            calls.append("close")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    Image.new("RGB", (5, 3)).save(tmp_path / "sheet.png")
    with MetricsLog(tmp_path / "run" / "metrics", resumed_at=6, tensorboard=True) as log:
        log.log(7, loss=1.0, by={"a": 2.0}, mfu=None, name="x", answers=tmp_path / "sheet.png")
    assert calls == [
        (str(tmp_path / "run" / "tensorboard"), 7),
        ("loss", 1.0, 7),
        ("by/a", 2.0, 7),
        ("answers", (3, 5, 3), 7, "HWC"),
        "close",
    ]
    (record,) = read_metrics(tmp_path / "run" / "metrics")
    assert record["answers"] == str(tmp_path / "sheet.png")


def test_a_tensorboard_that_fails_at_an_evaluation_does_not_stop_the_run(tmp_path, monkeypatch):
    class Writer:
        def __init__(self, *_, **__):
            pass

        def add_scalar(self, *_):
            raise OSError("no space left on device")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "step-00000001.json").write_text('{"step": 1, "results": {"answers": {"share": 0.5}}}')
    with MetricsLog(tmp_path / "metrics", tensorboard=True) as log, pytest.warns(UserWarning, match="no space left"):
        log.log(2, loss=1.0)
    assert read_metrics(tmp_path / "metrics")[-1]["loss"] == 1.0


def test_a_tensorboard_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match=r"tensorboard is not installed \(pip install tensorboard\); metrics are in"):
        log = MetricsLog(tmp_path, tensorboard=True)
    log.log(1, loss=1.0)
    log.close()
    assert losses(tmp_path) == {1: 1.0}


def test_tensorboard_itself_reads_two_attempts_as_one_curve(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    Image.new("RGB", (5, 3), (200, 10, 30)).save(tmp_path / "sheet.png")
    with MetricsLog(tmp_path / "run" / "metrics", tensorboard=True) as log:
        for step in range(1, 6):
            log.log(step, loss=float(step), by={"a": 1.0})
    with MetricsLog(tmp_path / "run" / "metrics", resumed_at=3, tensorboard=True) as log:
        log.log(4, loss=40.0, answers=tmp_path / "sheet.png")
    events = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    (picture,) = events.Images("answers")
    with Image.open(io.BytesIO(picture.encoded_image_string)) as shown:
        assert (picture.step, shown.size, shown.getpixel((4, 2))) == (4, (5, 3), (200, 10, 30))
