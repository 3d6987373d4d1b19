"""Validation and answers in the middle of a run: they change nothing of it, on one rank and on two."""

import numpy as np
import pytest
import torch
from fake_plan import FakePlan, answers, run, start_ranks
from PIL import Image

from lvm.commands import _answers, train
from lvm.runtime import UserError
from lvm.runtime.metrics import read_metrics


def validated(folder):
    return [record for record in read_metrics(folder / "metrics") if "validation_loss" in record]


def test_a_run_with_validation_and_answers_has_the_bits_of_one_without(tmp_path):
    torch.manual_seed(5)
    plain, _ = run(tmp_path / "plain")
    noise = torch.get_rng_state()
    torch.manual_seed(5)
    looked, _ = run(
        tmp_path / "looked", validate_every_steps=2, validation_windows=6, answer_every_steps=3, answer=answers
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), looked.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), noise) and looked.training
    records = read_metrics(tmp_path / "looked" / "metrics")
    assert [r["step"] for r in records if "validation_loss" in r] == [2, 4, 6, 8]
    assert [(r["step"], r["training"]) for r in records if "answers" in r] == [(3, False), (6, False)]
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name / "metrics") if "loss" in r] for name in ("plain", "looked")
    ]
    assert losses[0] == losses[1]


def test_the_validation_loss_is_the_mean_over_targets_by_source_and_in_all(tmp_path):
    model, _ = run(tmp_path, max_steps=2, precision="fp32", validate_every_steps=2, validation_windows=7)
    window = FakePlan(7).windows(0, 7)
    with torch.no_grad():
        nll = model.nll(torch.from_numpy(window.tokens))
    counted, source = torch.from_numpy(window.role[:, 1:] != 3), torch.from_numpy(window.source[:, 1:])
    (record,) = validated(tmp_path)
    assert record["validation_loss"] == pytest.approx(float(nll[counted].mean()), rel=1e-5)
    for number, name in enumerate(FakePlan.names):
        mine = float(nll[counted & (source == number)].mean())
        assert record["validation_loss_by_source"][name] == pytest.approx(mine, rel=1e-5)


def test_one_rank_and_two_validate_and_answer_alike_and_go_on(tmp_path):
    options = {"max_steps": 4, "precision": "fp32", "validate_every_steps": 2, "validation_windows": 7}
    run(tmp_path / "one", answer=answers, answer_every_steps=2, **options)
    start_ranks(tmp_path / "two", 2, answer_every_steps=2, save_every_steps=2, **options)
    one, two = (validated(tmp_path / name) for name in ("one", "two"))
    assert [r["step"] for r in one] == [r["step"] for r in two] == [2, 4]
    for a, b in zip(one, two):
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-5)
        assert b["validation_loss_by_source"] == pytest.approx(a["validation_loss_by_source"], rel=1e-5)
        assert b["answers"] == a["answers"]
    run(tmp_path / "two", max_steps=4, precision="fp32")  # what was saved after validation is whole


def test_what_fails_while_answering_ends_the_run(tmp_path):
    def fail(model, step):
        raise UserError("no room for the sheet")

    with pytest.raises(UserError, match="no room for the sheet"):
        run(tmp_path, answer=fail, answer_every_steps=1)


def test_prompts_are_answered_as_pictures_while_a_run_learns(small, tmp_path, monkeypatch):
    overrides = [o for o in small[0] if not o.startswith("run_dir=")] + [f"run_dir={tmp_path / 'run'}"]
    sheets, generated = [], []
    draw, generate = _answers.sheet, _answers.generate
    monkeypatch.setattr(_answers, "sheet", lambda rows: sheets.append(rows) or draw(rows))

    def remember(model, prompts, *arguments, **options):
        generated.append(generate(model, prompts, *arguments, **options))
        return generated[-1]

    monkeypatch.setattr(_answers, "generate", remember)
    assert train.main([*overrides, "trainer.max_steps=4", "trainer.answer_every_steps=2", "trainer.devices=1"]) == 0
    records = [r for r in read_metrics(tmp_path / "run" / "metrics") if "answers" in r]
    assert [r["step"] for r in records] == [2, 4] and len(sheets) == 2
    for record, rows, answer in zip(records, sheets, generated):
        with Image.open(record["answers"]) as picture:
            assert record["answers"] == str(tmp_path / "run" / "answers" / f"step-{record['step']:08d}.png")
            assert picture.size == draw(rows).size and len(set(picture.convert("L").tobytes())) > 16
        assert len(rows) == len(answer.tokens) >= 2 and [row.cells[-1].name for row in rows] == ["answer"] * len(rows)
        right = [np.array_equal(row.cells[-1].decoded, row.cells[-2].decoded) for row in rows]
        assert 0 <= record["answers_right"] <= 1 and (record["answers_right"] == 1) == all(right)
    shown = [[cell.decoded.tobytes() for row in rows for cell in row.cells[:-1]] for rows in sheets]
    assert shown[0] == shown[1], "the prompts of a run stay the same"
