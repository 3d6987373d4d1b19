"""Window i is a pure function of the plan and i, holds what the recipes say, and never what is held out."""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import STAGES, mixture, pairs

from lvm.data import TokenPlan
from lvm.runtime import UserError
from lvm.runtime.hashing import held_out
from lvm.sentences import ANSWER, INPUT, PAD, RECIPES, SPECIAL

STORE = FakeStore(scenes=60, clips=8, frames=(16, 40))
CONFIGS = {
    "aligned": mixture(),
    "concat": mixture("concat", seq_len=50),
    "staged": mixture(stages=STAGES, seed=3),
}
# A change of any of these is a change of every user's data order: raise PLAN_VERSION with it.
GOLDEN = {
    "aligned": "f10926ab01e97f0a",
    "concat": "1696c211db07aabd",
    "staged": "e88852e47e8a84be",
}


def plan_of(name):
    return TokenPlan.from_config(CONFIGS[name], {"world": STORE})


PLANS = {name: plan_of(name) for name in CONFIGS}
each_plan = pytest.mark.parametrize("name", list(CONFIGS))


def digest(plan):
    window = plan.windows(0, 300)
    fields = (window.tokens.astype("<i8"), window.source.astype("<i2"), window.role.astype("i1"))
    return hashlib.sha256(b"".join(np.ascontiguousarray(field).tobytes() for field in fields)).hexdigest()[:16]


@each_plan
def test_windows_are_the_golden_ones(name):
    assert digest(PLANS[name]) == GOLDEN[name]


def test_options_that_came_later_leave_the_fingerprint_of_older_plans():
    """Runs that were begun before there were `only` and `either` go on."""
    assert PLANS["aligned"].fingerprint == "9b372fa04595db9a22eaae679c47453ad18f0f0659f3616794516b937f88605e"
    for change in ({"either": True}, {"only": {"labels": [0, 1]}}):
        assert TokenPlan.from_config(with_entry(**change), {"world": STORE}).fingerprint != PLANS["aligned"].fingerprint


SIMULATED = {
    "stills": {"items": 300, "channels": ["image", "depth", "edge"], "classes": 5},
    "clips": {"items": 40, "channels": ["image", "mask"], "pictures": 24},
    "panels": {"items": 30, "pictures": 9, "classes": 3},
}
EVERY_RECIPE = {
    "single": {"source": "stills", "recipe": "single"},
    "pairs": {"source": "stills", "recipe": "pairs", "input": "image", "output": "depth", "either": True},
    "tuples": {"source": "stills", "recipe": "tuples", "channels": ["image", "edge", "depth"]},
    "annotations": {"source": "stills", "recipe": "annotations", "channels": ["image", "edge", "depth"], "choose": 2},
    "video": {"source": "clips", "recipe": "video", "strides": [1, 2], "frames": 8},
    "annotated_video": {"source": "clips", "recipe": "annotated_video", "channels": ["image", "mask"]},
    "category": {"source": "stills", "recipe": "category", "channels": ["image", "edge"], "classes": 2, "each": 3},
    "multiview": {"source": "clips", "recipe": "multiview", "around": True, "reverse": True},
    "masks": {"source": "clips", "recipe": "multiview", "objects": 2, "views": 4, "channels": ["image", "mask"]},
    "puzzles": {"source": "panels", "recipe": "puzzles", "puzzles": 2, "agree": "label"},
    "verbatim": {"source": "panels", "recipe": "verbatim", "pictures": 9},
}


def test_every_recipe_composes_what_it_composed():
    small = {"tokens_per_picture": 4, "num_codes": 100}
    config = {
        "seq_len": 70,
        "packing": "concat",
        "period": 300,
        "shuffle_block": 16,
        "sources": {name: {"simulated": {**options, **small}} for name, options in SIMULATED.items()},
        "entries": {name: {"weight": 1, **entry} for name, entry in EVERY_RECIPE.items()},
    }
    plan = TokenPlan.from_config(config)
    assert {entry.recipe.name for entry in plan.entries} == set(RECIPES)
    assert digest(plan) == "a83c7cec807bfd2c"


def test_windows_are_equal_in_a_fresh_process():
    code = "import test_plan as t; print({name: t.digest(plan) for name, plan in t.PLANS.items()} == t.GOLDEN)"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr


@given(st.sampled_from(list(CONFIGS)), st.integers(0, 100_000), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_is_the_same_alone_and_in_any_batch(name, first, n, data):
    plan = PLANS[name]
    if data.draw(st.booleans()):
        first %= 100  # where the stages change
    batch = plan.windows(first, n)
    i = data.draw(st.integers(0, n - 1))
    alone = plan.window(first + i)
    assert np.array_equal(alone.tokens, batch.tokens[i]) and np.array_equal(plan[first + i], alone.tokens)
    assert np.array_equal(alone.source, batch.source[i]) and np.array_equal(alone.role, batch.role[i])
    assert batch.tokens.dtype == np.int64 and batch.source.dtype == np.int16 and batch.role.dtype == np.int8


def rebuilt(plan, i):
    """Window i from what `explain` says of it, by the store alone."""
    tokens = np.full(plan.seq_len + 1, plan.pad, np.int64)
    for sentence in plan.explain(i):
        codes = [[plan.bos]]
        for picture in sentence["pictures"]:
            codes.append(STORE.pictures([picture["item"]], picture["channel"], [picture["frame"]])[0].astype(np.int64))
        codes = np.concatenate([*codes, [plan.eos]])
        for place in range(max(0, sentence["start"]), min(plan.seq_len + 1, sentence["end"])):
            tokens[place] = codes[place - sentence["start"]]
    return tokens


def borders(plan):
    """Windows at the borders of periods, epochs and stages, and far away."""
    bins = getattr(plan.stages[0].packing, "num_bins", 64 * 20 // 50)
    for border in (0, bins, 10 * bins, 23, 60, 10_000):
        yield from range(max(0, border - 2), border + 3)


@each_plan
def test_what_explain_names_rebuilds_the_window_byte_for_byte(name):
    plan = PLANS[name]
    for i in borders(plan):
        assert np.array_equal(rebuilt(plan, i), plan[i]), i


@each_plan
def test_roles_and_sources_are_those_of_the_tokens(name):
    plan = PLANS[name]
    windows = plan.windows(0, 200)
    assert np.array_equal(windows.role == SPECIAL, (windows.tokens == plan.bos) | (windows.tokens == plan.eos))
    assert np.array_equal(windows.role == PAD, windows.tokens == plan.pad)
    assert np.array_equal(windows.source == -1, windows.role == PAD)
    single = windows.source == list(plan.names).index("single")
    assert not (windows.role[single] == ANSWER).any()
    clip = windows.source == list(plan.names).index("clip")
    assert (windows.role[clip] == ANSWER).sum() > 10 * (windows.role[clip] == INPUT).sum()


def test_neighbouring_concat_windows_share_one_token_and_join_into_whole_sentences():
    plan = PLANS["concat"]
    windows = plan.windows(5, 100)
    assert np.array_equal(windows.tokens[1:, 0], windows.tokens[:-1, -1])
    stream = np.concatenate([windows.tokens[0], *windows.tokens[1:, 1:]])
    starts, ends = np.flatnonzero(stream == plan.bos), np.flatnonzero(stream == plan.eos)
    ends = ends[ends > starts[0]]
    lengths = ends - starts[: len(ends)] + 1
    assert set(lengths.tolist()) == {66, 34, 6}
    assert np.array_equal(starts[1 : len(ends)], ends[:-1] + 1)


def test_aligned_windows_start_with_bos_and_end_with_pad_or_a_whole_sentence():
    plan = PLANS["aligned"]
    windows = plan.windows(0, 200)
    assert (windows.tokens[:, 0] == plan.bos).all()
    pad = windows.tokens == plan.pad
    assert (np.diff(pad.astype(int), axis=1) >= 0).all()  # PAD only at the end
    long = ~pad[:, -1] & (windows.tokens[:, -1] != plan.eos)
    assert ((windows.role[long] == SPECIAL).sum(1) == 1).all()  # a sentence of T + 2 tokens lacks its EOS


@each_plan
def test_nothing_held_out_is_ever_shown(name):
    plan = PLANS[name]
    banned = {STORE.ids[i] for i in np.flatnonzero(held_out(STORE.group, 100))}
    assert banned
    shown = {p["id"] for i in range(200) for s in plan.explain(i) for p in s["pictures"]}
    assert shown and not shown & banned


def test_excluded_views_and_groups_of_a_source_are_in_no_entry():
    config = mixture(sources={"world": {"exclude_views": [2], "exclude_groups": ["world-scene-1", "world-clip-0"]}})
    plan = TokenPlan.from_config(config, {"world": STORE})
    pictures = [p for i in range(150) for s in plan.explain(i) for p in s["pictures"]]
    assert {p["view"] for p in pictures} == {0, 1, 3}
    assert not {p["id"] for p in pictures} & {"world-scene-1", "world-clip-0"}
    assert plan.left_out()["excluded group"] > 0 and plan.left_out()["excluded view"] > 0


def sentences_of(plan, windows):
    """Every sentence of some windows once, by stage and number."""
    found = {}
    for i in windows:
        for sentence in plan.explain(i):
            found[sentence["stage"], sentence["sentence"]] = sentence
    return list(found.values())


@each_plan
def test_an_epoch_shows_no_unit_twice_and_leaves_out_fewer_than_one_sentence_a_group(name):
    plan = PLANS[name]
    sentences = sentences_of(plan, range(250))
    for entry in plan.entries:
        mine = [s for s in sentences if s["entry"] == entry.name]
        draws = [s["draw"] for s in mine]
        assert len(set(draws)) == len(draws)  # stages go on counting
        for epoch in range(min(s["epoch"] for s in mine), max(s["epoch"] for s in mine)):
            units = [
                item for s in mine if s["epoch"] == epoch for item in dict.fromkeys(p["item"] for p in s["pictures"])
            ]
            assert len(set(units)) == len(units)
            complete = sum(s["epoch"] == epoch for s in mine) == entry.num_sentences
            if complete:
                lost = entry.num_units - len(units)
                groups = int(plan.draws.units.num_groups[plan.entries.index(entry)])
                assert 0 <= lost <= groups * (entry.recipe.units - 1)


def test_whole_epochs_come_in_whole_and_each_in_another_order():
    plan = PLANS["concat"]
    by_epoch = {}
    for s in sentences_of(plan, range(400)):
        if s["entry"] == "single":
            by_epoch.setdefault(s["epoch"], []).append((s["draw"], s["pictures"][0]["item"]))
    orders = [[item for _, item in sorted(by_epoch[e])] for e in range(3)]
    shown = np.flatnonzero(~held_out(STORE.group, 100) & (STORE.num_pictures == 1) & (STORE.view == 0))
    assert all(sorted(order) == shown.tolist() for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_the_units_of_a_sentence_agree_on_the_column_their_entry_names():
    plan = PLANS["aligned"]
    views = set()
    for s in sentences_of(plan, range(200)):
        items = [p["item"] for p in s["pictures"]]
        if s["entry"] in ("segmentation", "masked"):
            (view,) = {int(STORE.view[item]) for item in items}
            views.add(view)
            assert len({p["id"] for p in s["pictures"]}) == 8
        if s["entry"] == "kind":
            assert len({int(STORE.label[item]) for item in items}) == 1
    assert views == {1, 2, 3}


def test_each_entry_gets_its_share_of_the_picture_tokens():
    config = mixture(period=4096)
    plan = TokenPlan.from_config(config, {"world": STORE})
    rows = {row["entry"]: row for row in plan.describe()}
    total = sum(entry["weight"] for entry in config["entries"].values())
    for name, entry in config["entries"].items():
        assert rows[name]["token_share"] == pytest.approx(entry["weight"] / total, abs=0.002)
    windows = plan.windows(0, plan.stages[0].packing.num_bins)
    pictures = windows.role <= ANSWER
    counted = np.bincount(windows.source[pictures], minlength=6) / pictures.sum()
    assert [rows[name]["token_share"] for name in plan.names] == pytest.approx(counted.tolist())
    assert plan.waste() == pytest.approx((windows.role == PAD).mean())


@each_plan
def test_target_counts_need_no_tokens(name):
    plan = PLANS[name]
    for first, n in ((0, 1), (0, 7), (20, 50), (999, 3)):
        roles = plan.windows(first, n).role[:, 1:]
        assert plan.target_roles(first, n).tolist() == np.bincount(roles.ravel(), minlength=4).tolist()


def test_a_stage_starts_a_fresh_stream_with_its_own_weights():
    plan = PLANS["staged"]
    clip = list(plan.names).index("clip")
    source = plan.windows(0, 120).source
    assert (source[:23] == clip).any() and not (source[23:60] == clip).any() and (source[60:] == clip).any()
    assert plan.explain(23)[0]["start"] == 0 and plan.explain(23)[0]["sentence"] in range(64)


def test_the_fingerprint_names_the_bytes():
    base = PLANS["aligned"].fingerprint
    assert base == plan_of("aligned").fingerprint
    changes = [
        {"seed": 1},
        {"seq_len": 65},
        {"packing": "concat"},
        {"period": 65},
        {"shuffle_block": 17},
        {"held_out_per_mille": 101},
        {"stages": STAGES},
        {"sources": {"world": {"exclude_views": [7]}}},
        {"sources": {"world": {"exclude_groups": ["nobody"]}}},
        {"weights_by": "sentences"},
    ]
    prints = [TokenPlan.from_config(mixture(**change), {"world": STORE}).fingerprint for change in changes]
    reversed_clip = copy.deepcopy(mixture())
    reversed_clip["entries"]["clip"]["reverse"] = False
    prints.append(TokenPlan.from_config(reversed_clip, {"world": STORE}).fingerprint)
    other = FakeStore(scenes=61, clips=8, frames=(16, 40))
    prints.append(TokenPlan.from_config(mixture(), {"world": other}).fingerprint)
    assert len({base, *prints}) == len(prints) + 1


def test_the_facts_survive_json():
    assert json.loads(json.dumps(PLANS["staged"].facts)) == PLANS["staged"].facts


def test_a_list_of_named_entries_is_the_same_plan_as_a_mapping():
    config = mixture()
    config["entries"] = [{"name": name, **entry} for name, entry in config["entries"].items()]
    assert TokenPlan.from_config(config, {"world": STORE}).fingerprint == PLANS["aligned"].fingerprint


def test_adding_an_entry_leaves_the_draws_of_the_others_alone():
    config = copy.deepcopy(mixture())
    config["entries"] = {"new": pairs("image", "normal", "none"), **config["entries"]}
    more = TokenPlan.from_config(config, {"world": STORE})
    first = {}
    for plan in (PLANS["aligned"], more):
        for s in sentences_of(plan, range(60)):
            if s["entry"] == "depth" and s["draw"] == 3:
                first[plan] = [p["item"] for p in s["pictures"]]
    assert first[PLANS["aligned"]] == first[more]


TWO = {"world": {}, "b": {}}


def with_entry(sources=None, **changes):
    config = copy.deepcopy(mixture(sources=sources or {"world": {}}))
    config["entries"]["depth"].update(changes)
    return config


def other_tokenizer():
    store = FakeStore(name="other")
    store.tokenizer_fingerprint = "f" * 64
    return store


@pytest.mark.parametrize(
    ("config", "stores", "says"),
    [
        (mixture(seq_len=63), {}, r"do not fit data\.seq_len=63 when aligned; use data\.seq_len=64"),
        (mixture(), {"world": FakeStore(scenes=0, clips=0)}, "source 'world' is empty"),
        (with_entry(output="depht"), {}, "entry 'depth': unknown channel 'depht'; this store holds image, depth"),
        (with_entry(source="wrld"), {}, "entry 'depth' reads source 'wrld', which data.sources lacks; known: world"),
        (with_entry(recipe="pair"), {}, "recipe 'pair'; use one of .*pairs"),
        (with_entry(ouput="x"), {}, r"unknown config key 'data\.entries\.depth\.ouput'; did you mean 'output'"),
        (
            {**with_entry(pictures=200), "packing": "concat"},
            {},
            "entry 'depth' has .* usable items in source 'world' and needs 100 a sentence",
        ),
        (with_entry(weight=-1), {}, "weight -1"),
        (with_entry(weight=float("nan")), {}, "entry 'depth' has weight nan; use 0"),
        (
            {**with_entry(weight=1e-30), "period": 5},
            {},
            "sentences of entry 'depth'; give it a larger share, or weight 0",
        ),
        (with_entry(pictures=-2), {}, "not -2; use 2"),
        (mixture(entries=None), {}, r"data\.entries is None; it must be a mapping"),
        (mixture(entries={"a": None}), {}, r"data\.entries\.a is None; it must be a mapping, or ~data\.entries\.a"),
        (mixture(period=1 << 40), {}, r"data\.period is 1099511627776; use 268435456 or less"),
        (mixture(stages=[{"from_window": 0}, {"from_window": 1 << 70}]), {}, "use numbers up to 1099511627776"),
        (mixture(stages=[{"from_window": 0, "weights": {"clip": float("inf")}}]), {}, "weights.clip is inf; use 0"),
        (mixture(sources={"world": {"store": "x", "simulated": {"items": 3}}}), {}, "set simulated=null to use the"),
        (mixture(period=4), {}, r"period 4 is too short .* entry 'segmentation'; use data\.period=19"),
        (mixture(entries={}), {}, "data.entries is empty"),
        (with_entry(source="b", sources=TWO), {"b": other_tokenizer()}, "made by different tokenizers"),
        (with_entry(source="b", sources=TWO), {"b": FakeStore(tokens=5)}, "tokens_per_picture 4 and 5"),
        (mixture(sources={"world": {"simulated": {"items": 5}, "exclude": "x"}}), {}, "leave one of the two out"),
        (mixture(stages=[{"from_window": 5}]), {}, "the first must be 0"),
        (mixture(stages=[{"from_window": 0, "weights": {"x": 1}}]), {}, "names 'x', which is no entry"),
        (mixture(seq_length=3), {}, r"unknown config key 'data\.seq_length'; did you mean 'seq_len'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_remedy(config, stores, says):
    with pytest.raises(UserError, match=says):
        TokenPlan.from_config(config, {"world": STORE, **stores})


def test_a_missing_store_and_one_of_another_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"source 'world' has no store; set data\.sources\.world\.store=FOLDER"):
        TokenPlan.from_config(mixture())
    with pytest.raises(UserError, match="is not a token store"):
        TokenPlan.from_config(mixture(sources={"world": {"store": str(tmp_path)}}))
    with pytest.raises(UserError, match=r"was made by tokenizer .*, not by cccccccccccc"):
        TokenPlan.from_config(mixture(), {"world": STORE}, tokenizer_fingerprint="c" * 64)


def test_a_source_of_entries_without_weight_need_not_be_there():
    plan = TokenPlan.from_config(with_entry(source="b", sources=TWO, weight=0), {"world": STORE})
    depth = list(plan.names).index("depth")
    assert set(np.unique(plan.windows(0, 50).source)) == {-1, 0, 1, 2, 3, 4, 5} - {depth}


def test_negative_windows_are_refused():
    with pytest.raises(IndexError):
        PLANS["aligned"].window(-1)
