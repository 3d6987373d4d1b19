"""Reading a token store: every picture where the index says, in any layout of shards, by us and by webdataset."""

import dataclasses
import io
import pickle
import tarfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from toy_source import ToySource

from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash
from lvm.store import TokenStore, build_store
from lvm.store.columns import Blocks, ItemColumns
from lvm.store.layout import BLOCK_COLUMNS, ITEM_COLUMNS
from lvm.store.shard import Record, Shard, write_shard
from tokenizer import BulkEncoder


class Described(ToySource):
    def read(self, i, size):
        items = super().read(i, size)[:1]
        origin = f"https://example.org/{i}.jpg"
        known = {"licence": "CC-BY", "origin": origin, "caption": "a line\u2028and another"}
        return [dataclasses.replace(item, **known if i < 2 else {"licence": ""}) for item in items]


def expected(vqgan, unit, view, channel, frame):
    picture = ToySource().picture(unit, channel, view * 100 + frame, 16)
    return BulkEncoder(vqgan).encode(picture[None])[0]


def test_every_picture_is_read_back_as_the_codes_of_its_pixels(vqgan, toy_store):
    for i in range(0, len(toy_store), 7):
        unit, view = int(toy_store.id(i).removeprefix("unit")), int(toy_store.view[i])
        for bit, channel in enumerate(toy_store.channels):
            if toy_store.channel_mask[i] >> bit & 1:
                for frame in range(toy_store.num_pictures[i]):
                    codes = toy_store.pictures(np.array([i]), channel, frame)
                    assert np.array_equal(codes[0], expected(vqgan, unit, view, channel, frame))


def test_pictures_of_many_items_at_once_are_those_read_one_by_one(toy_store):
    rng = np.random.default_rng(0)
    items = rng.integers(0, len(toy_store), 300)
    frames = rng.integers(0, toy_store.num_pictures[items])
    bits = np.where(toy_store.has("noisy")[items] & (rng.random(300) < 0.5), toy_store.bit("noisy"), 0)
    together = toy_store.pictures(items, bits, frames)
    assert together.dtype == np.uint16 and together.shape == (300, toy_store.tokens_per_picture)
    for i in range(300):
        assert np.array_equal(together[i], toy_store.pictures(items[i : i + 1], int(bits[i]), int(frames[i]))[0])
    assert len(np.unique(together, axis=0)) > 100  # the tokenizer of the tests tells pictures apart


def test_a_channel_that_a_view_lacks_is_read_from_view_0(vqgan, toy_store):
    (views,) = np.nonzero(toy_store.view == 2)
    i = int(views[11])
    unit = int(toy_store.id(i).removeprefix("unit"))
    assert toy_store.channel_mask[i] == 1 << toy_store.bit("noisy")
    assert np.array_equal(toy_store.pictures(np.array([i]), "depth")[0], expected(vqgan, unit, 0, "depth", 0))
    assert toy_store.id(int(toy_store.base[i])) == toy_store.id(i) and toy_store.view[toy_store.base[i]] == 0
    assert toy_store.has("depth")[i] and not toy_store.has("noisy")[toy_store.base[i]]


def test_a_channel_frame_or_item_that_does_not_exist_is_refused_by_name(toy_store):
    zero = int(np.flatnonzero(toy_store.view == 0)[0])
    with pytest.raises(UserError, match=f"{toy_store.id(zero)}.*no channel 'noisy'"):
        toy_store.pictures(np.array([zero]), "noisy")
    with pytest.raises(UserError, match="no channel 'edge'; it has image, depth, noisy"):
        toy_store.pictures(np.array([zero]), "edge")
    with pytest.raises(IndexError, match="frame 1"):
        toy_store.pictures(np.array([zero]), "image", 1)
    with pytest.raises(IndexError):
        toy_store.pictures(np.array([len(toy_store)]), "image")


def test_columns_say_what_the_source_said(toy_store):
    assert len(toy_store) == 90 * 3 + 10 and len(toy_store.shards) == 4
    assert Counter(toy_store.num_pictures.tolist()) == {1: 270, 6: 10}
    for i in (0, 100, len(toy_store) - 1):
        unit = int(toy_store.id(i).removeprefix("unit"))
        assert toy_store.group[i] == group_hash(f"group{unit // 2}")
        assert toy_store.label[i] == (unit % 3 if unit < 90 else -1)
        assert toy_store.strings(i)["licence"] == "CC0"
        assert toy_store.meta(i) == ({"unit": unit} if toy_store.view[i] == 0 else {})
    ids = [toy_store.id(i) for i in range(len(toy_store))]
    assert len(set(zip(ids, toy_store.view.tolist()))) == len(ids)
    assert len(set(zip(ids, toy_store.item.tolist()))) == 100  # one number an id


def test_licence_origin_and_caption_are_kept_for_each_id(vqgan, tmp_path):
    store = build_store(Described(3, 0), tmp_path / "s", vqgan, workers=0)
    assert [store.strings(i) for i in range(3)] == [
        {
            "id": "unit0",
            "licence": "CC-BY",
            "origin": "https://example.org/0.jpg",
            "caption": "a line\u2028and another",
        },
        {
            "id": "unit1",
            "licence": "CC-BY",
            "origin": "https://example.org/1.jpg",
            "caption": "a line\u2028and another",
        },
        {"id": "unit2"},
    ]
    assert "| CC-BY | 2 |" in (store.path / "README.md").read_text()
    assert "| not known | 1 |" in (store.path / "README.md").read_text()


def test_locate_names_the_tar_member_that_holds_the_picture(toy_store):
    for i, channel, frame in ((3, "image", 0), (len(toy_store) - 1, "image", 4), (200, "depth", 0)):
        shard, member, row = toy_store.locate(i, channel, frame)
        with tarfile.open(toy_store.path / "shards" / f"{shard}.tar") as tar:
            codes = np.load(io.BytesIO(tar.extractfile(member).read()))
        assert np.array_equal(codes[row], toy_store.pictures(np.array([i]), channel, frame)[0])


def test_the_plain_webdataset_library_reads_the_shards(toy_store):
    paths = [str(toy_store.path / "shards" / f"{name}.tar") for name, _ in toy_store.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    counts = Counter()
    for sample in samples:
        for key, value in sample.items():
            if key.endswith(".npy"):
                assert value.dtype == np.uint16 and value.shape[1] == toy_store.tokens_per_picture
                counts[key.removesuffix(".npy")] += len(value)
    assert counts == {"image": 90 + 60, "depth": 90, "noisy": 180}
    first = int(np.flatnonzero((toy_store.blocks.of_items(np.arange(len(toy_store))) == 0) & toy_store.has("image"))[0])
    assert np.array_equal(samples[0]["image.npy"][0], toy_store.pictures(np.array([first]), "image")[0])


def test_a_token_costs_little_more_than_its_two_bytes(tmp_path):
    shard, codes = Shard(("image",)), np.random.default_rng(0).integers(0, 8192, (2048, 256)).astype(np.uint16)
    for i in range(2048):
        shard.add_record(Record(f"n{i:08d}", group_hash(str(i)), 0, -1, {"licence": "CC0"}, {}), 1, 1)
    write_shard(tmp_path, 0, range(2048), shard, codes)
    size = {
        folder: sum(p.stat().st_size for p in (tmp_path / folder).iterdir())
        for folder in ("shards", "index", "strings")
    }
    sidecar = (tmp_path / "shards" / "00000.json").stat().st_size
    assert (size["shards"] - sidecar + size["index"]) / codes.size <= 2.2
    assert size["strings"] / len(codes) <= 40


def test_tars_are_plain_ustar_without_times_or_owners(toy_store):
    path = toy_store.path / "shards" / "00000.tar"
    assert path.read_bytes()[257:265] == b"ustar\x0000"
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_blocks_hold_one_channel_mask_and_whole_clips_of_at_most_2048_pictures(vqgan, tmp_path):
    store = build_store(ToySource(pictures=0, clips=350), tmp_path / "store", vqgan, shard_size=1000, workers=0)
    rows = np.diff(store.blocks.first_item)
    assert rows.tolist() == [341, 9]  # 341 clips of 6 are 2046 pictures
    assert store.pictures(np.array([349]), "image", 5).shape == (1, 16)
    with tarfile.open(store.path / "shards" / "00000.tar") as tar:
        assert [len(np.load(io.BytesIO(tar.extractfile(m).read()))) for m in tar] == [2046, 54]


def test_the_index_costs_at_most_24_bytes_a_picture_and_maps_into_memory(toy_store, vqgan, tmp_path):
    assert sum(np.dtype(d).itemsize for d in ITEM_COLUMNS.values()) <= 24
    assert "block_offset" in BLOCK_COLUMNS
    one = build_store(ToySource(), tmp_path / "store", vqgan, shard_size=1000, workers=0)
    for column in (one.view, one.label, one.group, one.item):
        base = column
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)
    order_one = {(one.id(i), int(one.view[i])): i for i in range(len(one))}
    for i in (0, 77, 150):  # the same pictures, however the units are cut into shards
        j = order_one[toy_store.id(i), int(toy_store.view[i])]
        channel = "noisy" if toy_store.view[i] else "image"
        assert np.array_equal(one.pictures(np.array([j]), channel), toy_store.pictures(np.array([i]), channel))


def test_a_store_survives_pickling(toy_store):
    copy = pickle.loads(pickle.dumps(toy_store))
    items = np.arange(len(copy))[::5]
    assert copy.fingerprint == toy_store.fingerprint
    assert np.array_equal(copy.pictures(items, "image"), toy_store.pictures(items, "image"))


def test_the_fingerprint_is_of_the_tokenizer_and_the_shards(toy_store, vqgan, tmp_path):
    same = build_store(ToySource(), tmp_path / "a", vqgan, shard_size=25, workers=0)
    assert same.fingerprint == toy_store.fingerprint
    fewer = build_store(ToySource(pictures=80), tmp_path / "b", vqgan, shard_size=25, workers=0)
    assert fewer.fingerprint != toy_store.fingerprint


def test_folders_that_are_no_store_are_refused_in_one_line(tmp_path, toy_store):
    with pytest.raises(UserError, match="not a token store"):
        TokenStore(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="incomplete token store; run the same"):
        TokenStore(tmp_path)
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="store version 99"):
        TokenStore(tmp_path)


def test_gathering_is_fast_enough_for_any_loader(toy_store):
    import time

    items = np.random.default_rng(0).integers(0, len(toy_store), 4096)
    toy_store.pictures(items, "image")
    best = min(_timed(lambda: toy_store.pictures(items, "image"), time.perf_counter) for _ in range(20))
    assert 4096 * toy_store.tokens_per_picture / best > 3e6  # tokens a second; ten times that on a free core


def _timed(function, clock):
    start = clock()
    function()
    return clock() - start


def test_reading_a_store_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, lvm.store.store, lvm.runtime.served, lvm.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert torch is not None


def test_a_clip_borrows_no_channel_from_a_view_0_of_another_length():
    """Views of an id may come from two stores that were merged; a frame of one must be a frame of the other."""
    mask, lengths = np.array([1, 2, 2]), np.array([6, 6, 12], np.uint16)
    blocks = Blocks.of(("image", "mask"), [3], mask, lengths, lengths, np.zeros((3, 2), np.int64))
    store = SimpleNamespace(
        blocks=blocks, channels=blocks.channels, bit=blocks.channels.index, base_of=lambda items: np.zeros_like(items)
    )
    columns = ItemColumns(store, 0, 3)
    assert columns.has("image").tolist() == [True, True, False] and columns.has("mask").tolist() == [False, True, True]
