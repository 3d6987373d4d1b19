"""lvm compare: differences of the same cases, signs and counts, what is refused, folders of suites, runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_prompter import small_model, small_vqgan

from lvm.commands import compare
from lvm.commands.evaluate import main as evaluate
from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.comparison import compare_values, verdict
from lvm.runtime import UserError, write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nets and their evaluations A/depth, B/depth, B/puzzles, and A's depth after one pair."""
    folder = tmp_path_factory.mktemp("compared")
    vq = small_vqgan()
    vq.save_pretrained(folder / "tokenizer")
    for name in ("A", "B"):
        model = small_model(vq)
        if name == "B":
            model.head.weight.data = model.head.weight.data.flip(1) * 0.2  # another net
        model.save_pretrained(folder / "models" / name)
    run(folder, "A", "depth", folder / "A" / "depth")
    run(folder, "B", "depth", folder / "B" / "depth")
    run(folder, "B", "puzzles", folder / "B" / "puzzles")
    run(folder, "A", "puzzles", folder / "A" / "puzzles")
    run(folder, "A", "depth", folder / "one_pair", "pairs=1")
    return folder


def run(folder: Path, model: str, suite: str, out: Path, *options: str) -> None:
    words = [str(folder / "models" / model), "--tokenizer", str(folder / "tokenizer"), "--workers", "0"]
    assert evaluate([*words, "--suite", suite, "--targets", "6", "--out", str(out), *options]) == 0


def compared(*words: object, out: Path) -> dict:
    assert compare.main([*map(str, words), "--json", str(out / "found.json")]) == 0
    return json.loads((out / "found.json").read_text())


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def change_rows(folder: Path, change) -> None:
    rows = rows_of(folder)
    change(rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_differences_are_those_of_the_same_cases(made: Path, tmp_path: Path) -> None:
    [found] = compared(made / "A" / "depth", made / "B" / "depth", out=tmp_path)["suites"]
    a, b = rows_of(made / "A" / "depth"), rows_of(made / "B" / "depth")
    task = found["tasks"]["depth"]
    assert task["items"] == 6 and set(task["conditions"]) == {"right", "wrong_task", "shuffled", "none"}
    for condition, given in task["conditions"].items():
        nats = np.array([y["conditions"][condition]["nll"] - x["conditions"][condition]["nll"] for x, y in zip(a, b)])
        nll = given["nll"]
        assert {key: nll["difference"][key] for key in ("mean", "low", "high")} == bootstrap_mean(nats)
        assert (nll["won"], nll["lost"], nll["tied"]) == ((nats < 0).sum(), (nats > 0).sum(), 0)
        tokens = a[0]["conditions"][condition]["tokens"]
        perplexity = [np.exp(sum(r["conditions"][condition]["nll"] for r in rows) / (6 * tokens)) for rows in (a, b)]
        assert nll["perplexity_ratio"]["mean"] == pytest.approx(perplexity[1] / perplexity[0])
        assert nll["perplexity_ratio"]["low"] <= nll["perplexity_ratio"]["mean"] <= nll["perplexity_ratio"]["high"]
        errors = [[row["conditions"][condition]["scores"]["abs_rel"] for row in rows] for rows in (a, b)]
        assert given["abs_rel"]["difference"]["mean"] == pytest.approx(np.mean(errors[1]) - np.mean(errors[0]))
        assert given["abs_rel"]["a"] == pytest.approx(np.mean(errors[0]))
    assert any(of["abs_rel"]["difference"]["mean"] for of in task["conditions"].values())  # they answer differently


def test_an_evaluation_is_no_better_than_itself(made: Path, tmp_path: Path) -> None:
    [found] = compared(made / "A" / "depth", made / "A" / "depth", out=tmp_path)["suites"]
    for given in found["tasks"]["depth"]["conditions"].values():
        for of in given.values():
            assert of["difference"]["mean"] == 0 == of["won"] == of["lost"] and of["tied"] == of["difference"]["items"]
            assert verdict(of, True) == "" == verdict(of, False)
        assert given["nll"]["perplexity_ratio"]["mean"] == 1


def test_swapping_the_two_turns_signs_and_counts(made: Path, tmp_path: Path) -> None:
    [one] = compared(made / "A" / "depth", made / "B" / "depth", out=tmp_path)["suites"]
    [other] = compared(made / "B" / "depth", made / "A" / "depth", out=tmp_path)["suites"]
    here, there = (found["tasks"]["depth"]["conditions"]["right"]["nll"] for found in (one, other))
    assert here["difference"]["mean"] == -there["difference"]["mean"] and here["won"] == there["lost"]
    assert here["perplexity_ratio"]["mean"] == pytest.approx(1 / there["perplexity_ratio"]["mean"])


def test_a_case_without_a_value_counts_on_neither_side() -> None:
    both = [(1.0, 2.0), (None, 50.0), (3.0, 3.0), (5.0, 2.0)]
    pairs = [({"id": str(i), "v": ours}, {"id": str(i), "v": theirs}) for i, (ours, theirs) in enumerate(both)]
    read = lambda row: row["v"]
    higher, lower = compare_values(pairs, read, 1, 0), compare_values(pairs, read, -1, 0)
    assert (higher["a"], higher["b"]) == (3.0, pytest.approx(7 / 3)) and higher["difference"]["items"] == 3
    assert [higher[key] for key in ("won", "lost", "tied")] == [1, 1, 1]
    assert [lower[key] for key in ("won", "lost", "tied")] == [1, 1, 1]
    assert compare_values(pairs[1:2], read, 1, 0) == {}
    assert verdict({"difference": {"low": 0.1, "high": 0.2}}, True) == "better"
    assert verdict({"difference": {"low": 0.1, "high": 0.2}}, False) == "worse"
    assert verdict({"difference": {"low": None, "high": None}}, True) == ""


def test_choices_are_compared(made: Path, tmp_path: Path) -> None:
    [found] = compared(made / "A" / "puzzles", made / "B" / "puzzles", out=tmp_path)["suites"]
    [task] = found["tasks"].values()
    rows = rows_of(made / "B" / "puzzles")
    hits = np.mean([row["conditions"]["right"]["choice"] == row["right_choice"] for row in rows])
    assert task["conditions"]["right"]["right_choice"]["b"] == pytest.approx(hits)


def test_the_terminal_has_the_right_prompts_and_all_others_when_asked(made: Path, tmp_path: Path, capsys) -> None:
    folders = [str(made / name / "depth") for name in ("A", "B")]
    assert compare.main(folders) == 0
    said = capsys.readouterr().out
    assert re.search(r"depth +right +nll", said) and "wrong_task" not in said and "B is better in" in said
    assert compare.main([*folders, "--all"]) == 0
    assert "wrong_task" in capsys.readouterr().out


def test_the_page_has_a_table_for_each_task(made: Path, tmp_path: Path) -> None:
    assert compare.main([str(made / "A"), str(made / "B"), "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "compare.html").read_text()
    assert html.count("<table>") >= 2 and not [word for word in ("<script", "src=", "href=") if word in html]
    assert '<td class="good">' in html and "Won: cases in which B is better" in html
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [suite["suite"] for suite in found["suites"]] == ["depth", "puzzles"]


# What is refused.


def test_other_settings_are_one_line_that_names_them(made: Path) -> None:
    with pytest.raises(UserError, match=r"different questions: settings\.pairs is 2 and 1") as error:
        compare.main([str(made / "A" / "depth"), str(made / "one_pair")])
    assert "\n" not in str(error.value) and "model" not in str(error.value).partition("questions")[2]
    with pytest.raises(UserError, match=r"of suite depth and .* of suite puzzles"):
        compare.main([str(made / "A" / "depth"), str(made / "A" / "puzzles")])


def test_other_cases_under_the_same_settings_are_refused(made: Path, tmp_path: Path) -> None:
    other = shutil.copytree(made / "B" / "depth", tmp_path / "other")
    change_rows(other, lambda rows: rows[2].update(id="scene-x"))
    with pytest.raises(UserError, match=r"case 2 is depth of \S+ in .* and depth of scene-x in"):
        compare.main([str(made / "A" / "depth"), str(other)])


def test_what_is_no_complete_evaluation_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        compare.main([str(tmp_path / "absent"), str(made / "A")])
    with pytest.raises(UserError, match="holds no evaluation"):
        compare.main([str(tmp_path), str(made / "A")])
    broken = shutil.copytree(made / "B" / "depth", tmp_path / "broken")
    (broken / "report.json").unlink()
    with pytest.raises(UserError, match=r"has no report\.json"):
        compare.main([str(made / "A" / "depth"), str(broken)])
    half = shutil.copytree(made / "B" / "depth", tmp_path / "half")
    (half / "rows.jsonl").write_text('{"case": 0')
    with pytest.raises(UserError, match="is damaged"):
        compare.main([str(made / "A" / "depth"), str(half)])


def test_failed_cases_are_left_out_and_counted(made: Path, tmp_path: Path, capsys) -> None:
    other = shutil.copytree(made / "B" / "depth", tmp_path / "other")
    change_rows(other, lambda rows: rows.__setitem__(1, {"case": 1, "file": "x", "failed": "broken"}))
    [found] = compared(made / "A" / "depth", other, out=tmp_path)["suites"]
    assert found["left_out"] == 1 and found["tasks"]["depth"]["items"] == 5
    assert "1 cases failed" in capsys.readouterr().out


def test_likelihoods_of_other_codes_are_not_compared(made: Path, tmp_path: Path, capsys) -> None:
    other = shutil.copytree(made / "B" / "depth", tmp_path / "other")
    question = json.loads((other / "evaluation.json").read_text())
    write_json(other / "evaluation.json", question | {"tokenizer": "f" * 64})
    [found] = compared(made / "A" / "depth", other, out=tmp_path)["suites"]
    assert "nll" not in found["tasks"]["depth"]["conditions"]["right"]
    assert "abs_rel" in found["tasks"]["depth"]["conditions"]["right"]
    assert "different tokenizers" in capsys.readouterr().out


def test_a_suite_that_only_one_has_is_named(made: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(made / "B" / "depth", tmp_path / "C" / "depth")
    found = compared(made / "A", tmp_path / "C", out=tmp_path)
    assert [suite["suite"] for suite in found["suites"]] == ["depth"]
    assert found["notes"] == ["puzzles: only one of them has it"]


# Runs.


def make_run(folder: Path, loss: float, evaluated: dict[int, Path]) -> Path:
    write_json(folder / "config.json", {"trainer": {}})
    (folder / "metrics").mkdir()
    lines = [{"step": step, "loss": loss - step / 100} for step in (10, 20, 30)]
    (folder / "metrics" / "attempt-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, suite in evaluated.items():
        shutil.copytree(suite, folder / "evaluations" / f"step-{step:08d}-depth")
        result = {"step": step, "time": 0, "results": {"held_out": {"loss": loss + step}}}
        write_json(folder / "evaluations" / f"step-{step:08d}.json", result)
    return folder


def test_runs_are_compared_at_the_newest_step_that_both_have_evaluated(made: Path, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", 5.0, {10: made / "A" / "depth", 20: made / "A" / "depth", 30: made / "A" / "depth"})
    b = make_run(tmp_path / "b", 4.0, {10: made / "B" / "depth", 20: made / "B" / "depth"})
    found = compared(a, b, out=tmp_path)
    assert found["notes"] == ["depth: step 20, the newest that both have"]
    assert found["suites"][0]["folders"][1].endswith("b/evaluations/step-00000020-depth")
    assert (
        found["suites"][0]["tasks"]
        == compared(made / "A" / "depth", made / "B" / "depth", out=tmp_path)["suites"][0]["tasks"]
    )
    assert found["metrics"]["step"] == 20
    assert found["metrics"]["figures"]["evaluation.held_out.loss"] == {"a": 25.0, "b": 24.0}


def test_runs_without_evaluations_are_compared_by_their_metrics(tmp_path: Path, capsys) -> None:
    a, b = make_run(tmp_path / "a", 5.0, {}), make_run(tmp_path / "b", 4.0, {})
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    assert "metrics of step 30" in capsys.readouterr().out
    assert "Metrics of both runs" in (tmp_path / "out" / "compare.html").read_text()
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["metrics"] == {"step": 30, "figures": {"loss": {"a": 4.7, "b": 3.7}}}


def test_a_run_is_not_compared_with_a_folder(made: Path, tmp_path: Path) -> None:
    run_folder = make_run(tmp_path / "a", 5.0, {})
    with pytest.raises(UserError, match=r"is a run and .* is none"):
        compare.main([str(run_folder), str(made / "A")])
