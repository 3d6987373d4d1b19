"""Units of entries: bits and lists name the same items, runs do not matter, agreeing units come a few at a time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fakes import FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture

from lvm.data import TokenPlan, about, kept, units
from lvm.data.units import Marks
from lvm.runtime import UserError
from lvm.store import SimulatedConfig, SimulatedStore

STORE = FakeStore(scenes=60, clips=8, frames=(16, 40))
CONCAT = mixture("concat", seq_len=50)


@given(st.integers(0, 5000), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_the_kth_mark_is_the_kth_set_bit(size, density, seed):
    marked = np.random.default_rng(seed).random(size) < density
    places = np.flatnonzero(marked)
    marks = Marks.of(np.packbits(marked, bitorder="little"))
    order = np.random.default_rng(seed).permutation(len(places))
    assert np.array_equal(marks.select(order), places[order])


@pytest.mark.parametrize("change", ["marks", "short runs", "kept"])
def test_windows_do_not_depend_on_how_units_are_found_and_kept(change, monkeypatch, tmp_path):
    whole = TokenPlan.from_config(CONCAT, {"world": STORE})
    if change == "marks":
        monkeypatch.setattr(units, "MOST_LISTED", 10)
    elif change == "short runs":
        monkeypatch.setattr(units, "RUN", 16)
    else:
        monkeypatch.setenv("LVM_CACHE", str(tmp_path))
        monkeypatch.setattr("lvm.data.plan.LEAST_KEPT", 0)
    for _ in range(2):  # the second from what the first kept
        plan = TokenPlan.from_config(CONCAT, {"world": STORE})
        assert (change == "marks") == bool(plan.draws.units.marks)
        assert plan.fingerprint == whole.fingerprint and plan.left_out() == whole.left_out()
        assert np.array_equal(plan.windows(3, 90).tokens, whole.windows(3, 90).tokens)
    assert len(list(tmp_path.glob("plans/*/about.json"))) == (change == "kept")


@pytest.mark.parametrize("packing", ["concat", "aligned"])
def test_a_kept_plan_is_another_for_another_mixture_or_packing(packing, monkeypatch, tmp_path):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path))
    monkeypatch.setattr("lvm.data.plan.LEAST_KEPT", 0)
    stages = [{"from_window": 0}, {"from_window": 23, "weights": {"clip": 0}}]
    for changes in ({}, {"seed": 1}, {"stages": stages}, {"held_out_per_mille": 50}):
        config = mixture(packing, **changes)
        plan = TokenPlan.from_config(config, {"world": STORE})
        monkeypatch.setattr("lvm.data.plan.LEAST_KEPT", 1 << 40)
        made = TokenPlan.from_config(config, {"world": STORE})
        monkeypatch.setattr("lvm.data.plan.LEAST_KEPT", 0)
        assert plan.facts == made.facts and np.array_equal(plan.windows(0, 80).source, made.windows(0, 80).source)
    assert len(list(tmp_path.glob("plans/*/about.json"))) == 4


def test_all_that_decides_the_tables_of_a_plan_names_their_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path))
    clip = mixture()["entries"]["clip"]
    changes = [
        {"weights_by": "sentences"},
        {"period": 65},
        {"shuffle_block": 17},
        {"seq_len": 65},
        {"sources": {"world": {"exclude_views": [2]}}},
        {"sources": {"world": {"exclude_groups": ["world-clip-0"]}}},
        {"sources": {"world": {"max_epochs": 90}}, "total_tokens": 20_000},
        {"sources": {"world": {"max_epochs": 90}}, "total_tokens": 30_000},
        {"sources": {"world": {"max_epochs": 91}}, "total_tokens": 30_000},
        *({"entries": mixture()["entries"] | {"clip": clip | change}} for change in (
            {"weight": 21}, {"missing": "error"}, {"strides": [1]}, {"only": {"pictures": [16, 16]}},
        )),
    ]  # fmt: skip
    plans = [TokenPlan.from_config(mixture(**change), {"world": STORE}) for change in [{}, *changes]]
    assert len({kept.folder_of(about.identity(plan)) for plan in plans}) == len(plans)
    less = FakeStore(scenes=60, clips=8, frames=(16, 40))
    less.excluded, less.exclusion = np.array([3]), "3"
    assert kept.folder_of(about.identity(TokenPlan.from_config(mixture(), {"world": less}))) not in {
        kept.folder_of(about.identity(plan)) for plan in plans
    }


def test_tables_of_another_form_are_not_taken_for_ours(monkeypatch):
    before = kept.folder_of({"plan": 1})
    monkeypatch.setattr(kept, "TABLES_VERSION", kept.TABLES_VERSION + 1)
    assert kept.folder_of({"plan": 1}) != before


def test_a_plan_that_cannot_be_made_keeps_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path))
    monkeypatch.setattr("lvm.data.plan.LEAST_KEPT", 0)
    with pytest.raises(UserError, match="period 4 is too short"):
        TokenPlan.from_config(mixture(period=4), {"world": STORE})
    assert not [path for path in kept.folder_of({}).parent.glob("*") if path.is_dir()]


def test_one_process_makes_the_tables_and_the_others_wait_for_them(monkeypatch, tmp_path):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path))
    made = []

    def make():
        made.append(1)
        time.sleep(0.3)
        return {"table": np.arange(5)}, {"said": [1]}

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: kept.kept({"plan": 1}, make), range(4)))
    assert len(made) == 1
    for tables, said in results:
        assert tables["table"].tolist() == [0, 1, 2, 3, 4] and said == {"said": [1]}


def test_tables_that_cannot_be_written_are_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LVM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written to .*file/plans .*set LVM_CACHE to another folder"):
        kept.kept({}, lambda: ({}, None))


@pytest.mark.parametrize("damage", ["cut", "emptied", "lost", "no about", "torn about"])
def test_damaged_tables_are_one_line_that_names_the_folder(damage, monkeypatch, tmp_path):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path))
    monkeypatch.setattr("lvm.data.plan.LEAST_KEPT", 0)
    TokenPlan.from_config(CONCAT, {"world": STORE})
    (about,) = tmp_path.glob("plans/*/about.json")
    table = about.with_name("items.npy")
    if damage in ("cut", "emptied"):
        os.truncate(table, 140 if damage == "cut" else 0)
    elif damage == "torn about":
        about.write_text('{"tables": [')
    else:
        (table if damage == "lost" else about).unlink()
    with pytest.raises(UserError, match=f"tables of this plan are damaged .*; remove {about.parent}"):
        TokenPlan.from_config(CONCAT, {"world": STORE})


def categories(classes, each, items=500, num_classes=7):
    simulated = SimulatedStore("s", SimulatedConfig(items=items, classes=num_classes, tokens_per_picture=4))
    entry = {"source": "s", "recipe": "category", "weight": 1, "classes": classes, "each": each}
    config = {"seq_len": 64, "packing": "concat", "period": 8, "sources": {"s": {}}, "entries": {"category": entry}}
    return simulated, TokenPlan.from_config(config, {"s": simulated})


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_units_agree_a_few_at_a_time_and_each_is_shown_once_an_epoch(classes, each, num_classes):
    store, plan = categories(classes, each, num_classes=num_classes)
    entry = plan.entries[0]
    k = np.arange(2 * entry.num_sentences)
    drawn = plan.draws.draw(np.zeros(len(k), np.int64), k)
    runs = store.columns().label[drawn.unit].reshape(-1, each)
    assert (runs == runs[:, :1]).all()
    first, second = np.split(drawn.unit, 2)
    assert len(set(first.tolist())) == len(first) == len(set(second.tolist())) and first.tolist() != second.tolist()
    assert entry.num_units - len(first) <= num_classes * (each - 1) + classes * each  # what whole sentences leave over
    alone = plan.draws.draw(np.zeros(1, np.int64), k[3:4])
    assert np.array_equal(alone.unit, drawn.unit[3 * classes * each : 4 * classes * each])


def test_too_few_groups_for_one_sentence_are_refused_with_what_was_left_out():
    with pytest.raises(
        UserError, match=r"has 0 usable items in source 's' and needs 16 .* 20 fewer than 4 of one label"
    ):
        categories(4, 4, items=20)


@pytest.mark.parametrize(
    ("only", "holds"),
    [
        ({"channels": ["depth"]}, lambda i: STORE.columns().has("depth")[i]),
        ({"pictures": [40, 40]}, lambda i: STORE.num_pictures[i] == 40),
        ({"pictures": [2, 20]}, lambda i: STORE.num_pictures[i] == 16),
        ({"labels": [1, 2]}, lambda i: STORE.label[i] in (1, 2)),
    ],
)
def test_an_entry_uses_only_the_items_its_config_wants(only, holds):
    recipe = {"recipe": "video", "frames": 4} if "pictures" in only else {"recipe": "single"}
    entry = {"source": "world", "weight": 1, **recipe}
    plan, whole = (
        TokenPlan.from_config(mixture("concat", entries={"e": entry | more}), {"world": STORE})
        for more in ({"only": only}, {})
    )
    shown = {p["item"] for i in range(60) for s in plan.explain(i) for p in s["pictures"]}
    assert shown and all(holds(i) for i in shown)
    assert plan.fingerprint != whole.fingerprint and any(why.startswith("not ") for why in plan.left_out())
    assert sum(plan.left_out().values()) == len(STORE) - plan.entries[0].num_units


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ({"channels": ["edgy"]}, "entry 'e': unknown channel 'edgy'; this store holds image"),
        ({"pictures": [20, 2]}, r"only\.pictures is \[20, 2\]; give from and to, the smaller first"),
        ({"labels": [90, 99]}, "has 0 usable items .* not of labels 90 to 99"),
        ({"label": 1}, r"unknown config key 'data\.entries\.e\.only\.label'; did you mean 'labels'"),
    ],
)
def test_items_that_cannot_be_wanted_are_refused(only, says):
    entry = {"source": "world", "weight": 1, "recipe": "single", "only": only}
    with pytest.raises(UserError, match=says):
        TokenPlan.from_config(mixture("concat", entries={"e": entry}), {"world": STORE})


def test_a_simulated_store_is_the_same_wherever_it_is_opened():
    config = SimulatedConfig(items=10**9, channels=("image", "depth"), pictures=3, tokens_per_picture=4)
    a, b = SimulatedStore("s", config), SimulatedStore("s", config)
    items = np.array([0, 10**9 - 1])
    assert a.fingerprint == b.fingerprint and np.array_equal(a.pictures(items, 1, 2), b.pictures(items, 1, 2))
    assert not np.array_equal(a.pictures(items, 0, 2), a.pictures(items, 1, 2))
    assert not np.array_equal(SimulatedStore("t", config).pictures(items, 0), a.pictures(items, 0))
    assert np.array_equal(a.columns(5, 9).group, a.columns(0, 20).group[5:9])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_codes": 70_000}, "num_codes is 70000; use 65536 or less"),
        ({"pictures": 2**70}, "pictures is .*; use 2048 or less"),
        ({"classes": -1}, "classes is -1; use 0"),
        ({"channels": ("image", "image")}, "name 1 to 63, each once"),
        ({"channels": ()}, "name 1 to 63, each once"),
    ],
)
def test_a_simulated_store_holds_no_more_than_a_store_could(options, says):
    with pytest.raises(UserError, match=says):
        SimulatedConfig(items=5, **options)


def test_who_trains_on_a_simulated_store_is_told_that_it_is_noise():
    _, plan = categories(1, 2)
    with pytest.warns(UserWarning, match="source 's' is simulated: its pictures are noise"):
        plan.check_files()
