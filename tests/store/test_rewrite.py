"""Stores made of stores: the same codes under the same names, no group on two sides, the same bytes each time."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_source import ToySource

from lvm.runtime import UserError
from lvm.store import TokenStore, build_store, merge, split, verify
from lvm.store.rewrite import _how_encoded
from tokenizer import VQGAN


def content(store):
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(Path(store).rglob("*")) if p.is_file()}


def pictures_of(store):
    """(id, view, channel, frame) -> codes of everything that may be read."""
    found = {}
    for i in np.flatnonzero(store.admitted).tolist():
        for bit, channel in enumerate(store.channels):
            if store.channel_mask[i] >> bit & 1:
                for frame in range(store.num_pictures[i]):
                    codes = store.pictures(np.array([i]), bit, frame)[0]
                    found[store.id(i), int(store.view[i]), channel, frame] = codes.tobytes()
    return found


def facts_of(store):
    return {
        (store.id(i), int(store.view[i])): (
            int(store.group[i]),
            int(store.label[i]),
            int(store.channel_mask[store.base[i]]) if store.base[i] >= 0 else None,
            store.strings(i),
            store.meta(i),
        )
        for i in np.flatnonzero(store.admitted).tolist()
    }


@dataclass(frozen=True)
class Other(ToySource):
    """Other ids, another order of channels and one more, other classes."""

    key: str = "other"
    name: str = "other"
    channels: tuple[str, ...] = ("edge", "depth", "noisy", "image")
    labels: tuple[str, ...] = ("dog", "cat", "bird")

    def unit_id(self, i):
        return f"other{i}"


@dataclass(frozen=True)
class Named(ToySource):
    labels: tuple[str, ...] = ("cat", "cow", "dog")


@pytest.fixture(scope="module")
def other(vqgan, tmp_path_factory):
    return build_store(Other(20, 3), tmp_path_factory.mktemp("other") / "store", vqgan, shard_size=9, workers=0)


def test_a_store_merged_alone_has_the_bytes_of_the_first_writing(toy_store, tmp_path):
    store = merge(tmp_path / "out", [toy_store.path])
    assert store.fingerprint == toy_store.fingerprint
    for folder in ("index", "strings"):
        assert content(tmp_path / "out" / folder) == content(toy_store.path / folder)
    verify(tmp_path / "out")


def test_a_merged_store_holds_the_codes_of_all_under_their_names(vqgan, other, tmp_path):
    named = build_store(Named(30, 2), tmp_path / "named", vqgan, shard_size=20, workers=0)
    merged = merge(tmp_path / "out", [named.path, other.path])
    verify(merged.path)
    assert merged.channels == ("image", "depth", "noisy", "edge") and merged.name == "toy+other"
    assert pictures_of(merged) == pictures_of(named) | pictures_of(other)
    assert merged.labels == ("cat", "cow", "dog", "bird") and len(merged) == len(named) + len(other)
    label = {store.id(i): store.labels[store.label[i]] for store in (named, other) for i in range(len(store) // 2)}
    for i in range(0, len(merged), 7):
        if merged.id(i) in label and merged.label[i] >= 0:
            assert merged.labels[merged.label[i]] == label[merged.id(i)]
    again = merge(tmp_path / "again", [named.path, other.path])
    assert content(again.path) == content(merged.path)
    assert merge(tmp_path / "swapped", [other.path, named.path]).fingerprint != merged.fingerprint


def test_a_new_store_says_how_its_codes_were_made(vqgan, toy_store, other, tmp_path):
    exact = build_store(
        Named(40, 0), tmp_path / "exact", vqgan, shard_size=20, workers=0, precision="exact", keep_blank=True
    )
    for side in split(exact.path, tmp_path / "a", tmp_path / "b", share=0.5):
        assert (side.info["precision"], side.info["keep_blank"]) == ("exact", True)
    both = merge(tmp_path / "both", [other.path, exact.path])
    assert (both.info["precision"], both.info["keep_blank"]) == ("auto+exact", True)
    assert "| precision | auto+exact |" in (both.path / "README.md").read_text()
    assert _how_encoded([both, other])["precision"] == "auto+exact", "each kind once"
    alone = merge(tmp_path / "alone", [other.path])
    assert (alone.info["precision"], alone.info["keep_blank"]) == ("auto", False)


def test_what_was_said_of_an_item_is_said_of_it_in_the_new_store(toy_store, tmp_path):
    a, b = split(toy_store.path, tmp_path / "a", tmp_path / "b", share=0.3)
    assert facts_of(a) | facts_of(b) == facts_of(toy_store)


def test_views_of_one_id_from_two_stores_come_together_and_the_same_view_is_refused(vqgan, tmp_path):
    @dataclass(frozen=True)
    class Views(ToySource):
        views: tuple[int, ...] = (0,)

        def read(self, i, size):
            return [item for item in super().read(i, size) if item.view in self.views]

    zero = build_store(Views(12, 0), tmp_path / "zero", vqgan, shard_size=5, workers=0)
    rest = build_store(Views(12, 0, key="rest", views=(1, 2)), tmp_path / "rest", vqgan, shard_size=4, workers=0)
    assert (rest.base < 0).all()
    merged = merge(tmp_path / "merged", [zero.path, rest.path])
    whole = build_store(ToySource(12, 0), tmp_path / "whole", vqgan, workers=0)
    assert facts_of(merged) == facts_of(whole) and pictures_of(merged) == pictures_of(whole)
    verify(merged.path)
    with pytest.raises(UserError, match=r"unit0 \(view 0\) is both in .*zero and in .*whole"):
        merge(tmp_path / "twice", [zero.path, whole.path])
    assert not (tmp_path / "twice").exists() and not list(tmp_path.glob(".tmp-*"))


def test_stores_that_do_not_go_together_are_refused_by_name(vqgan, toy_store, other, tmp_path):
    torch.manual_seed(3)
    foreign = build_store(Other(4, 0), tmp_path / "foreign", VQGAN(vqgan.config), workers=0)
    with pytest.raises(UserError, match=r"foreign has tokenizer .*tokenize one of them again"):
        merge(tmp_path / "out", [toy_store.path, foreign.path])
    large = build_store(Other(4, 0), tmp_path / "large", vqgan, workers=0, size=32)
    with pytest.raises(UserError, match=r"large has grid 8 x 8, .* has 4 x 4"):
        merge(tmp_path / "out", [toy_store.path, large.path])
    with pytest.raises(UserError, match=r"has class 2 without a name"):
        merge(tmp_path / "out", [toy_store.path, other.path])
    with pytest.raises(UserError, match=r"large exists; name another folder"):
        merge(tmp_path / "large", [toy_store.path])
    assert not (tmp_path / "out").exists()


def test_no_group_is_on_both_sides_of_a_split(toy_store, tmp_path):
    a, b = split(toy_store.path, tmp_path / "a", tmp_path / "b", share=0.3)
    assert not set(a.group.tolist()) & set(b.group.tolist())
    assert pictures_of(a) | pictures_of(b) == pictures_of(toy_store) and len(a) + len(b) == len(toy_store)
    groups = [len(np.unique(side.group)) for side in (a, b)]
    assert 0.15 < groups[1] / sum(groups) < 0.45
    for side in (a, b):
        verify(side.path)
    assert len(b.shards) <= len(a.shards) <= len(toy_store.shards)
    again, _ = split(toy_store.path, tmp_path / "c", tmp_path / "d", share=0.3)
    assert content(again.path) == content(a.path)
    together = merge(tmp_path / "together", [a.path, b.path])
    assert pictures_of(together) == pictures_of(toy_store)


def test_ids_named_go_to_the_second_side_with_their_groups(toy_store, tmp_path):
    _, b = split(toy_store.path, tmp_path / "a", tmp_path / "b", ids=["unit4", "unit90"])
    assert {b.id(i) for i in range(len(b))} == {"unit4", "unit5", "unit90", "unit91"}  # a group holds two units
    with pytest.raises(UserError, match=r"has no unit900, unit901; mend the list"):
        split(toy_store.path, tmp_path / "c", tmp_path / "d", ids=["unit900", "unit1", "unit901"])
    with pytest.raises(UserError, match=r"d would be empty"):
        split(toy_store.path, tmp_path / "c", tmp_path / "d", ids=[])
    assert not (tmp_path / "c").exists() and not (tmp_path / "d").exists()


def test_merge_keeps_the_list_of_what_could_not_be_read(vqgan, tmp_path):
    build_store(ToySource(20, 0, broken=(3, 12)), tmp_path / "s", vqgan, shard_size=8, workers=0, max_broken=0.5)
    merged = merge(tmp_path / "out", [tmp_path / "s"])
    assert (merged.path / "quarantine.jsonl").read_bytes() == (tmp_path / "s" / "quarantine.jsonl").read_bytes()
    assert [shard["broken"] for shard in merged.info["shards"]] == [1, 1, 0]


def test_a_damaged_shard_of_a_made_store_is_to_be_made_again(toy_store, tmp_path):
    merge(tmp_path / "out", [toy_store.path])
    tar = tmp_path / "out" / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"00001.tar is damaged; make the store again with `lvm store merge`"):
        verify(tmp_path / "out")
    assert TokenStore(tmp_path / "out").info["made_by"] == "merge"


@dataclass(frozen=True)
class Regrouped(ToySource):
    """The same ids as views of other groups."""

    key: str = "regrouped"

    def read(self, i, size):
        return [replace(item, view=item.view + 100, group="other") for item in super().read(i, size)]


def test_views_of_two_groups_do_not_become_one_item(toy_store, vqgan, tmp_path):
    again = build_store(Regrouped(4, 0), tmp_path / "again", vqgan, workers=0)
    with pytest.raises(UserError, match="has another group or resize rule"):
        merge(tmp_path / "out", [toy_store.path, again.path])
    assert not (tmp_path / "out").exists()
