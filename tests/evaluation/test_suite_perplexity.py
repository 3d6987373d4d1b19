"""perplexity: the likelihood of annotations by number of pairs, with BOS and without, by hand and by the command."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from suite_runs import evaluate, save_prompter
from tiny_prompter import SIZE, TOKENS

from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.cases import BesidePublished
from lvm.evaluation.suite_page import interval
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.suites.perplexity import PUBLISHED
from lvm.evaluation.summary import summarise
from lvm.inference.prompter import Prompter
from lvm.runtime import UserError

ROOM = 12  # pictures: five pairs, a query and its answer
OPTIONS = ["shots=[0,1,3,5]", "only=[segmentation,depth,normal,edge]"]
CONDITION_OF = {"0": "none", "1": "1", "3": "3", "5": "right"}


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
    return save_prompter(tmp_path_factory.mktemp("prompter"), max_position=TOKENS * ROOM)


@pytest.fixture(scope="module")
def asked(prompter, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    began = time.process_time()
    code, report = evaluate("perplexity", prompter, out, "--targets", "20", "--exact", *OPTIONS)
    assert time.process_time() - began < 20
    assert code == 0
    return out, report, rows_of(out)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def suite_of(*options: str, room: int = ROOM, targets: int = 20, **context):
    return open_suite("perplexity", Context(None, SIZE, room, targets, **context), list(options))


def test_both_averages_are_of_the_same_targets_by_number_of_pairs(asked):
    _, report, rows = asked
    assert set(report["tasks"]) == {"segmentation", "depth", "normal", "edge"} and report["items"] == 80
    for name, task in report["tasks"].items():
        own = [row for row in rows if row["task"] == name]
        assert len(own) == task["targets"] == 20 and set(task["perplexity"]) == {*CONDITION_OF, "wrong"}
        for found, suffix in ((task, ""), (task["without_bos"], "_without_bos")):
            for pairs, condition in CONDITION_OF.items():
                nll = np.array([row["conditions"][condition + suffix]["nll"] for row in own]) / TOKENS
                first = np.array([row["conditions"][condition + suffix]["first_token"] for row in own])
                np.testing.assert_allclose(found["perplexity"][pairs], np.exp(nll.mean()))
                np.testing.assert_allclose(found["per_answer_perplexity"][pairs], np.exp(nll).mean())
                np.testing.assert_allclose(found["first_token"][pairs], np.exp(first.mean()))
                assert found["per_answer_perplexity"][pairs] > found["perplexity"][pairs]
        assert set(task["without_bos"]["perplexity"]) == set(CONDITION_OF)
        none, right, wrong = (
            np.mean([row["conditions"][key]["nll"] for row in own]) for key in ("none", "right", "wrong_task")
        )
        assert task["saved_nats"]["mean"] == pytest.approx(none - right)
        assert task["wrong_costs_nats"]["mean"] == pytest.approx(wrong - right)
    assert all("codes" not in found for row in rows for found in row["conditions"].values()), "nothing is painted"


def test_shots_and_bos_of_each_prompt_are_what_was_fed(asked, prompter):
    """Fewer pairs are the last ones of the most; likelihoods are those of one pass over prompt and answer."""
    _, _, rows = asked
    fed = Prompter.from_pretrained(Path(prompter[0]), Path(prompter[2]), device="cpu")
    suite = suite_of(*OPTIONS)
    again = {f"{name}_without_bos" for name in CONDITION_OF.values()}
    for row in rows[:2] + rows[-1:]:
        case = suite.case(row["case"])
        wanted = {*CONDITION_OF.values(), "wrong_task", "shuffled", *again}
        assert case.id == row["id"] and set(case.prompts) == set(row["conditions"]) == wanted
        right = case.prompts["right"].pictures
        for pairs, condition in CONDITION_OF.items():
            for name in (condition, f"{condition}_without_bos"):
                pictures = case.prompts[name].pictures
                assert len(pictures) == 2 * int(pairs) + 1
                np.testing.assert_array_equal(np.stack(pictures), np.stack(right[-len(pictures) :]))
        for name, shown in case.prompts.items():
            codes = fed.encode(np.stack([*shown.pictures, *case.truth])).reshape(-1).tolist()
            bos = [] if name.endswith("_without_bos") else [fed.model.config.bos]
            with torch.no_grad():
                nll = fed.model.nll(torch.tensor([[*bos, *codes]]))[0, -TOKENS:].double().sum().item()
            assert row["conditions"][name]["nll"] == pytest.approx(nll, abs=1e-2), name


def test_a_default_run_asks_the_published_number_of_pairs_and_frames_without_bos():
    case = suite_of(room=16).case(0)
    of = lambda prompts: {name for name, shown in prompts.items() if shown.bos is False and not shown.answered}
    assert of(case.prompts) == {f"{name}_without_bos" for name in ("none", "1", "3", "5", "right")}
    assert len(case.prompts["5_without_bos"].pictures) == 11 and len(case.prompts["right"].pictures) == 15
    assert not of(suite_of("other_bos=false", room=16).case(0).prompts)


def test_a_model_prompted_without_bos_is_asked_with_it_and_its_own_prompts_are_the_published_ones():
    suite = suite_of(*OPTIONS, prompt_bos=False)
    prompts = suite.case(0).prompts
    assert {name for name, shown in prompts.items() if shown.bos} == {f"{k}_with_bos" for k in CONDITION_OF.values()}
    rows = [made_row("a", 20.0), made_row("b", 25.0)]
    rows = [{**row, "conditions": {"right": row["conditions"]["right"]}} for row in rows]
    assert summarise(suite, rows)["ours"]["depth"] == pytest.approx(np.exp([2.0, 2.5]).mean())
    assert summarise(suite_of(*OPTIONS), rows)["ours"]["depth"] is None  # theirs had BOS


def test_figure_4s_columns_of_ours_are_5_pairs_without_bos_averaged_over_answers(asked):
    out, report, rows = asked
    assert isinstance(suite_of(), BesidePublished) and set(report["ours"]) == set(PUBLISHED[0].scores)
    for name, ours in report["ours"].items():
        nll = [row["conditions"]["right_without_bos"]["nll"] / TOKENS for row in rows if row["task"] == name]
        assert ours == pytest.approx(np.exp(nll).mean())
    line = (out / "report.html").read_text().partition("this model</td>")[2].partition("</tr>")[0]
    assert line.count("<td") == 5 and "–" not in line
    for said in ("5 pairs", "mean over answers", "without BOS"):
        assert all(said in row["caveat"] for row in report["published"])


def test_nothing_stands_beside_figure_4_where_5_pairs_were_not_asked():
    suite = suite_of("shots=[0,1]", "only=[depth]", room=6)
    row = made_row("a", 1.0)
    row["conditions"] = dict.fromkeys(suite.case(0).prompts, row["conditions"]["right"])
    report = summarise(suite, [row])
    assert report["tasks"]["depth"]["perplexity"].keys() == {"0", "1", "wrong"}
    assert report["ours"] == dict.fromkeys(PUBLISHED[0].scores)
    with pytest.raises(UserError, match="at least one pair must fit into 3 pictures"):
        suite_of(room=3)


def made_row(name: str, nll: float, tokens: int = 10) -> dict:
    found = {"nll": nll, "first_token": nll / tokens, "tokens": tokens}
    conditions = {"right": found, "none": {**found, "nll": 2 * nll}}
    return {"case": 0, "id": name, "task": "depth", "label": "", "conditions": conditions, "baselines": {}}


def test_intervals_of_both_averages_resample_queries(asked):
    """By hand: draws of cases, exp of the mean NLL over their tokens, and the mean of their perplexities."""
    _, report, rows = asked
    own = [row for row in rows if row["task"] == "edge"]
    assert not any("#" in row["id"] for row in own)
    for condition, found in report["tasks"]["edge"]["perplexity_intervals"].items():
        nll = np.array([row["conditions"][condition]["nll"] for row in own])
        drawn = np.random.default_rng(0).integers(20, size=(2000, 20))
        both = {
            "perplexity": (np.exp(nll[drawn].sum(1) / (20 * TOKENS)), np.exp(nll.sum() / (20 * TOKENS))),
            "per_answer_perplexity": (np.exp(nll / TOKENS)[drawn].mean(1), np.exp(nll / TOKENS).mean()),
        }
        for average, (draws, mean) in both.items():
            low, high = np.quantile(draws, [0.025, 0.975])
            wanted = {"mean": mean, "low": low, "high": high, "items": 20}
            assert found[average] == pytest.approx(wanted, rel=1e-4)
            assert found[average]["mean"] == pytest.approx(report["tasks"]["edge"]["conditions"][condition][average])


def test_intervals_are_on_the_page(asked):
    out, report, _ = asked
    html = (out / "report.html").read_text().partition("<details>")[0]
    for task in report["tasks"].values():
        for found in task["perplexity_intervals"].values():
            assert all(f"<td>{interval(found[average])}</td>" in html for average in found)


def test_a_query_asked_again_is_drawn_with_itself():
    """Three queries asked four times each say as much as three, whatever their answers' lengths."""
    nll = {"a": 12.0, "b": 20.0, "c": 31.0}
    once = [made_row(name, value) for name, value in nll.items()]
    again = [made_row(name + (f"#{k}" if k else ""), value) for k in range(4) for name, value in nll.items()]
    suite = suite_of("only=[depth]", room=6)
    one, four = (summarise(suite, rows)["tasks"]["depth"] for rows in (once, again))
    assert (one["distinct_targets"], four["distinct_targets"], four["targets"]) == (3, 3, 12)
    for condition in ("right", "none"):
        for average, found in one["perplexity_intervals"][condition].items():
            repeated = four["perplexity_intervals"][condition][average]
            assert {**repeated, "items": 3} == pytest.approx(found) and repeated["items"] == 12
    ends = lambda found: [found[key] for key in ("mean", "low", "high")]
    assert ends(four["controls"]["none"]["nats"]) == pytest.approx(ends(one["controls"]["none"]["nats"]))
    files = [made_row(f"frame#{k}", value) for k, value in enumerate(nll.values(), 1)]  # names of files, each its own
    assert summarise(suite, files)["tasks"]["depth"]["distinct_targets"] == 3


def test_intervals_without_repeats_are_those_of_the_plain_bootstrap():
    values = np.random.default_rng(0).normal(size=300)
    rng = np.random.default_rng(3)
    means = values[rng.integers(300, size=(2000, 300))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    wanted = {"mean": values.mean(), "low": low, "high": high}
    assert bootstrap_mean(values, 3) == wanted == bootstrap_mean(values, 3, queries=[f"q{k}" for k in range(300)])
    weighted = bootstrap_mean(values, 3, weights=np.full(300, 36.0))
    assert weighted == pytest.approx(wanted)
    lengths = np.where(np.arange(300) < 150, 1.0, 3.0)
    assert bootstrap_mean(values, 3, weights=lengths)["mean"] == pytest.approx(np.average(values, weights=lengths))
