"""Each kind of failure, on answers made to fail so."""

import json

import numpy as np
import pytest
from tiny_prompter import small_model, small_vqgan

from lvm.commands.evaluate import main
from lvm.evaluation.ask import Codes
from lvm.evaluation.suites import failures
from lvm.evaluation.suites.base import Context
from lvm.inference.prompter import Prompter
from lvm.runtime import UserError, build
from lvm.sources import open_source
from lvm.store import TokenStore, build_store

WORLD = {"kind": "world", "num_scenes": 24, "num_clips": 0, "num_things": [2, 3]}
NONE = {"any": 0, "other_task": 0, "one_colour": 0, "copies_query": 0, "copies_pair": 0}


@pytest.fixture(scope="module")
def prompter():
    vq = small_vqgan()
    return Prompter(small_model(vq), vq)


@pytest.fixture(scope="module")
def store(prompter, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "store"
    build_store(open_source({**WORLD, "split": "test"}), path, prompter.vq)
    return path


def suite_of(prompter, **options):
    context = Context(None, 16, 6, num_cases=12, encode=Codes(prompter.vq), decode=prompter.decode, world=WORLD)
    return failures.make(context, build(failures.Options, {"only": ["edge"], "pairs": 2, **options}))


def answers_of(prompter, case):
    """Failure -> an answer that fails so, and the truth."""
    through = lambda picture: prompter.decode(prompter.encode(picture[None]))[0]
    query = case.facts["query"]
    return {
        "other_task": through(query["depth"]),
        "one_colour": np.full((16, 16, 3), 90, np.uint8),
        "copies_query": query["image"],
        "copies_pair": case.facts["shown"][0][1],
        None: through(case.truth[0]),
    }


def test_each_failure_is_found_where_it_was_made(prompter):
    suite = suite_of(prompter)
    found = {name: [] for name in answers_of(prompter, suite.case(0))}
    for n in range(len(suite)):
        case = suite.case(n)
        for name, answer in answers_of(prompter, case).items():
            scores = suite.judge(case, [answer])
            assert scores["any"] == max(value for key, value in scores.items() if key != "any")
            found[name].append(scores.get(name, scores["any"]))
    assert np.mean(found.pop(None)) == 0
    assert all(np.mean(values) > 0.8 for values in found.values()), {k: np.mean(v) for k, v in found.items()}


def test_a_copy_of_the_truth_is_no_failure_where_the_truth_is_plain_or_the_query_itself(prompter):
    suite = suite_of(prompter)
    case = suite.case(0)
    plain = np.full((16, 16, 3), 90, np.uint8)
    same = type(case)(
        **{**vars(case), "truth": (plain,), "facts": {**case.facts, "query": {"image": plain, "edge": plain}}}
    )
    assert suite.judge(same, [plain]) == NONE


def test_copies_of_training_pictures_are_found_by_their_codes(prompter, store):
    suite = suite_of(prompter, train=str(store), overlap=1.0)
    trained = TokenStore(store)
    bit = trained.columns().channel_mask >> trained.bit("edge") & 1 == 1
    codes = trained.pictures(np.flatnonzero(bit), "edge")
    assert suite._training.most_equal(codes[3].astype(np.int64), "edge") == 1.0
    assert suite._training.most_equal(codes[3].astype(np.int64), "pose") == 0.0
    altered = codes[3].astype(np.int64)
    altered[:4] = (altered[:4] + 1) % 32
    assert 12 / 16 <= suite._training.most_equal(altered, "edge") < 1.0
    # here the queries themselves were trained on: the truth is such a copy too, and none is counted
    assert all(suite.judge(suite.case(n), suite.case(n).truth)["copies_training"] == 0 for n in range(4))


def test_the_command_reports_rates(prompter, store, tmp_path):
    prompter.vq.save_pretrained(tmp_path / "tokenizer")
    prompter.model.save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "model"), "--tokenizer", str(tmp_path / "tokenizer"), "--suite", "failures"]
    words += ["--targets", "20", "--out", str(tmp_path / "out"), "only=[depth]", "pairs=2", f"train={store}"]
    assert main(words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    right = report["tasks"]["depth"]["conditions"]["right"]
    assert set(right) >= {"any", "copies_training"} and right["any"]["items"] == 20
    assert report["tasks"]["depth"]["baselines"]["copy_query"]["copies_query"]["mean"] > 0.8
    assert report["settings"]["train"]["items"] == len(TokenStore(store))


@pytest.mark.parametrize(
    ("options", "said"), [({"overlap": 0.0}, "overlap 0.0 must be"), ({"train": "/nowhere"}, "/nowhere")]
)
def test_bad_options_are_one_line(prompter, options, said):
    with pytest.raises(UserError, match=said):
        suite_of(prompter, **options)
