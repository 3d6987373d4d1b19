"""Taking items down: no reader shows them, and nothing else moves."""

import pickle
import shutil
import time

import numpy as np
import pytest

from lvm.commands import run
from lvm.data import TokenPlan
from lvm.runtime import UserError
from lvm.store import TokenStore, exclude, merge, verify


@pytest.fixture
def store(toy_store, tmp_path):
    shutil.copytree(toy_store.path, tmp_path / "store")
    return TokenStore(tmp_path / "store")


def mixture(store):
    return {
        "seq_len": 2 * 16 + 1,
        "sources": {"toy": {"store": str(store.path)}},
        "entries": {"single": {"source": "toy", "recipe": "single", "weight": 1}},
        "period": 64,
    }


def test_excluded_ids_keep_their_numbers_and_can_no_longer_be_read(store, toy_store):
    now, unknown = exclude(store.path, ["unit7", "unit95"])
    assert unknown == [] and (store.path / "exclude.txt").read_text() == "unit7\nunit95\n"
    assert len(now) == len(toy_store) and now.admitted.sum() == len(toy_store) - 4  # three views and a clip
    assert {now.id(i) for i in now.excluded.tolist()} == {"unit7", "unit95"}
    items = np.flatnonzero(now.admitted & now.has("image"))
    assert np.array_equal(now.pictures(items, "image"), toy_store.pictures(items, "image"))
    with pytest.raises(UserError, match="unit7 is on the exclude list"):
        now.pictures(now.excluded[:1], "image")
    copy = pickle.loads(pickle.dumps(now))
    (now.path / "exclude.txt").unlink()
    assert np.array_equal(copy.excluded, now.excluded)
    assert TokenStore(store.path).admitted.all()
    verify(store.path)


def test_a_list_outside_the_store_counts_as_well_and_may_name_ids_of_other_stores(store, tmp_path):
    (tmp_path / "list.txt").write_text("unit3\nof-another-store\n\n")
    exclude(store.path, ["unit4"])
    both = TokenStore(store.path, exclude=tmp_path / "list.txt")
    assert {both.id(i) for i in both.excluded.tolist()} == {"unit3", "unit4"}
    assert pickle.loads(pickle.dumps(both)).excluded.tolist() == both.excluded.tolist()
    with pytest.raises(UserError, match=r"none.txt cannot be read as a list of ids"):
        TokenStore(store.path, exclude=tmp_path / "none.txt")


def test_ids_that_are_not_there_are_named_and_nothing_is_written(store, tmp_path, capsys):
    with pytest.raises(UserError, match=r"has no unit700; mend the list, or give --ignore-unknown"):
        exclude(store.path, ["unit7", "unit700"])
    assert not (store.path / "exclude.txt").exists()
    (tmp_path / "list.txt").write_text("unit7\nunit700\n")
    assert run(["store", "exclude", str(store.path), str(tmp_path / "list.txt"), "--ignore-unknown"]) == 0
    assert run(["store", "exclude", str(store.path), "--ids", "unit8", "unit7"]) == 0
    said = capsys.readouterr()
    assert "6 of 280 items are excluded" in said.out and "1 of 2 ids are not there: unit700" in said.err
    assert (store.path / "exclude.txt").read_text() == "unit7\nunit8\n"


def test_no_window_of_a_plan_shows_them_and_its_fingerprint_tells(store, tmp_path):
    before = TokenPlan.from_config(mixture(store))
    listed = mixture(store)
    listed["sources"]["toy"]["exclude"] = str(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("".join(f"{store.id(i)}\n" for i in range(0, 60)))
    by_list = TokenPlan.from_config(listed)
    exclude(store.path, [store.id(i) for i in range(0, 60)])
    after = TokenPlan.from_config(mixture(store))
    gone = set(TokenStore(store.path).excluded.tolist())
    assert "items" not in before.facts["excluded"]["toy"] and after.facts["excluded"]["toy"]["items"]
    assert before.fingerprint != after.fingerprint == by_list.fingerprint
    assert after.left_out()["taken down"] == len(gone)
    shown = {picture["item"] for i in range(100) for row in after.explain(i) for picture in row["pictures"]}
    assert shown and not shown & gone
    assert after.windows(0, 50).tokens.shape == (50, 2 * 16 + 2)


def test_cat_and_ls_know_of_them_and_merge_leaves_them_behind(store, tmp_path, capsys):
    exclude(store.path, ["unit7"])
    with pytest.raises(UserError, match="unit7 is on the exclude list"):
        run(["store", "cat", str(store.path), "unit7"])
    assert run(["store", "ls", str(store.path)]) == 0
    assert "excluded   3 of the items" in capsys.readouterr().out
    clean = merge(tmp_path / "clean", [store.path])
    assert clean.find(["unit7"]) == {} and len(clean) == len(store) - 3 and clean.admitted.all()


def test_a_long_list_of_taken_down_items_does_not_slow_reading(toy_store):
    store = TokenStore(toy_store.path)
    store.excluded = np.concatenate([[3], len(store) + 5 * np.arange(1_000_000)])  # as of a store of millions
    items = np.flatnonzero(store.has("image"))
    items = items[items != 3]
    start = time.perf_counter()
    for _ in range(20):
        codes = store.pictures(items, "image")
    assert time.perf_counter() - start < 1  # going through the list takes 0.1 s and more each time
    assert np.array_equal(codes, toy_store.pictures(items, "image"))
    with pytest.raises(UserError, match="is on the exclude list"):
        store.pictures([3], "image")


def test_many_ids_are_found_in_one_pass_with_all_their_views(toy_store):
    ids = list(dict.fromkeys(toy_store.id(i) for i in range(len(toy_store))))[::-1]
    found = toy_store.find([*ids, "nobody"])
    assert found.keys() == set(ids)
    for id in ids[::7]:
        assert found[id].tolist() == [i for i in range(len(toy_store)) if toy_store.id(i) == id]
