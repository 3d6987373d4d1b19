"""Shares of a mixture: weights, epochs, caps; and those of the paper's mixture."""

import numpy as np
import pytest
from fakes import FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture, pairs

from lvm.data import TokenPlan
from lvm.data.mixture import Wish, sentence_shares, shared
from lvm.data.schedule import slot_counts
from lvm.runtime import UserError
from lvm.runtime.config_files import load_config


def token_shares(wishes, total=None):
    shares = sentence_shares(wishes, "tokens", total) * [wish.pictures for wish in wishes]
    return shares / shares.sum()


def test_epochs_of_all_entries_make_the_mixture():
    wishes = [Wish("a", 16, 1000, None, 2), Wish("b", 1, 6000, None, 1)]
    assert token_shares(wishes).tolist() == pytest.approx([0.25, 0.75])
    assert token_shares(wishes, 8000).tolist() == pytest.approx([0.25, 0.75])


def test_entries_of_weights_share_what_epochs_leave():
    wishes = [Wish("a", 16, 1000, None, 2), Wish("b", 1, 100, 3), Wish("c", 4, 100, 1)]
    assert token_shares(wishes, 10_000).tolist() == pytest.approx([0.2, 0.6, 0.2])


def test_a_capped_entry_leaves_the_rest_to_the_others():
    wishes = [Wish("small", 16, 1000, 1, None, 2.0), Wish("b", 1, 10**6, 1), Wish("c", 4, 10**6, 2)]
    assert token_shares(wishes, 10_000).tolist() == pytest.approx([0.2, 0.8 / 3, 1.6 / 3])
    assert token_shares(wishes, 3000).tolist() == pytest.approx([0.25, 0.25, 0.5])  # not reached


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.05, 2)), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_no_share_is_above_its_cap_and_those_below_keep_their_proportions(pairs):
    weight, most = map(np.array, zip(*pairs))
    if most.sum() < 1:
        with pytest.raises(UserError, match="max_epochs leave"):
            shared(weight, most, 1.0)
        return
    share = shared(weight, most, 1.0)
    assert share.sum() == pytest.approx(1) and (share <= most + 1e-12).all()
    below = share < most - 1e-9
    if below.any():
        ratio = share / weight
        assert np.allclose(ratio[below], ratio[below][0])
        assert (ratio[~below] <= ratio[below][0] + 1e-9).all()  # who is capped would have had more


@pytest.mark.parametrize(
    ("wishes", "total", "says"),
    [
        ([Wish("a", 1, 10, None, 1), Wish("b", 1, 10, 1)], None, "entry 'a' has epochs beside entries of weights"),
        ([Wish("a", 1, 10, 1, None, 2)], None, r"entry 'a' has max_epochs; say in data\.total_tokens"),
        ([Wish("a", 1, 10, None, 3), Wish("b", 1, 10, 1)], 20, "make 30 tokens, data.total_tokens is 20; raise it"),
        ([Wish("a", 1, 10, None, 1)], 20, "lower it or give an entry a weight"),
        ([Wish("a", 1, 10, None, 2), Wish("b", 1, 10, 1)], 20, "nothing is left for entry 'b'; raise it"),
        ([Wish("a", 1, 10, 1, None, 1)], 20, r"max_epochs leave 10 of data\.total_tokens to no entry"),
    ],
)
def test_wishes_that_contradict_one_another_are_refused(wishes, total, says):
    with pytest.raises(UserError, match=says):
        sentence_shares(wishes, "tokens", total)


STORE = FakeStore(scenes=60, clips=8, frames=(16, 40))


def plan_with(**changes):
    config = mixture(period=512)
    for name, change in changes.items():
        if name in config["entries"]:
            config["entries"][name] = config["entries"][name] | change
        else:
            config[name] = change
    return TokenPlan.from_config(config, {"world": STORE})


def test_epochs_and_caps_of_a_config_decide_how_often_a_sentence_is_seen():
    plan = plan_with(total_tokens=40_000, single={"weight": None, "epochs": 5}, clip={"max_epochs": 3})
    rows = {row["entry"]: row for row in plan.describe()}
    assert rows["single"]["epochs"] == pytest.approx(5, rel=0.05)
    assert rows["clip"]["epochs"] <= 3.2 < rows["depth"]["epochs"]
    by_source = plan_with(total_tokens=60_000, single={"weight": None, "epochs": 5})
    assert {row["entry"]: row for row in by_source.describe()}["clip"]["epochs"] > 3.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"single": {"epochs": 1}}, "entry 'single' needs either weight or epochs"),
        ({"single": {"weight": None}}, "entry 'single' needs either weight or epochs"),
        ({"single": {"weight": None, "epochs": -1}}, "entry 'single' has epochs -1"),
        ({"single": {"weight": None, "epochs": float("inf")}}, "entry 'single' has epochs inf"),
        ({"single": {"max_epochs": 0}}, "entry 'single' has max_epochs 0; use more than 0"),
        ({"single": {"max_epochs": float("nan")}}, "entry 'single' has max_epochs nan; use more than 0"),
        ({"single": {"weight": None, "epochs": 3, "max_epochs": 2}}, "has epochs 3 and max_epochs 2; change one"),
        (
            {"single": {"weight": None, "epochs": 3}, "stages": [{"from_window": 0, "weights": {"single": 2}}]},
            r"weights\.single is 2 and entry 'single' has epochs; drop one of them",
        ),
        ({"total_tokens": 0}, r"data\.total_tokens is 0; use a number above 0, or null"),
        ({"total_tokens": float("nan")}, r"data\.total_tokens is nan"),
        (
            {"single": {"max_epochs": 2}, "stages": [{"from_window": 0}, {"from_window": 9}]},
            "entry 'single' has epochs or max_epochs, which need a mixture without stages",
        ),
    ],
)
def test_epochs_that_cannot_be_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        plan_with(**changes)


def test_an_entry_that_lacks_a_channel_is_left_out_and_counted_or_refused_by_name():
    short, gray = FakeStore(scenes=5, clips=2), STORE.channels.index("gray")
    config = mixture("concat", entries={"gray": pairs("gray", "image", "none", pictures=4, missing="skip")})
    short.channel_mask = np.where(np.arange(len(short)) == 3, short.channel_mask & ~(1 << gray), short.channel_mask)
    config["held_out_per_mille"] = 0
    plan = TokenPlan.from_config(config, {"world": short})
    assert plan.left_out()["no gray"] == 1
    config["entries"]["gray"]["missing"] = "error"
    says = r"entry 'gray': world-scene-1 of source 'world' has no gray; tokenize it with that channel.*missing: skip"
    with pytest.raises(UserError, match=says):
        TokenPlan.from_config(config, {"world": short})


KINDS = {"single": "single", "video": "video", "annotated_video": "annotated video", "multiview": "objects"}


def test_the_papers_mixture_has_the_papers_shares():
    config = load_config("data/uvd_v1")
    names = list(config["entries"])
    assert len(names) == len(config["sources"]) == 72
    pictures = [1 if entry["recipe"] == "single" else 16 for entry in config["entries"].values()]
    wishes = [Wish(name, n, 1, config["entries"][name]["weight"]) for name, n in zip(names, pictures)]
    shares = sentence_shares(wishes, "tokens")
    counts = slot_counts(shares, config["period"], names)
    assert np.abs(counts - shares * config["period"]).max() <= 1 and counts.min() >= 1
    tokens = counts * np.array(pictures) / (counts * np.array(pictures)).sum()
    of_kind = {}
    for name, share in zip(names, tokens):
        kind = KINDS.get(config["entries"][name]["recipe"], "annotated pictures")
        of_kind[kind] = of_kind.get(kind, 0) + 100 * share
    assert of_kind["single"] == pytest.approx(88.46, abs=0.005)
    assert of_kind["annotated pictures"] == pytest.approx(7.18, abs=0.01)
    assert of_kind["video"] == pytest.approx(4.25, abs=0.005)
    assert 0.06 <= of_kind["annotated video"] < 0.08
    assert of_kind["annotated video"] - 100 * tokens[names.index("youtube_vos_annotation")] == pytest.approx(
        0.06, abs=0.005
    )
    assert of_kind["objects"] == pytest.approx(0.04, abs=0.005)
