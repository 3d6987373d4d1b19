"""Before a run starts, each shard is looked at: one that is missing, cut short or of another store is named."""

import shutil

import numpy as np
import pytest

from lvm.data import TokenPlan
from lvm.runtime import UserError
from lvm.store import TokenStore, layout, verify
from lvm.store import store as store_module


@pytest.fixture
def copy(toy_store, tmp_path):
    return TokenStore(shutil.copytree(toy_store.path, tmp_path / "store"))


def plan_of(store):
    entry = {"source": "toy", "recipe": "single", "weight": 1}
    config = {"seq_len": 33, "sources": {"toy": {"store": str(store.path)}}, "entries": {"single": entry}, "period": 64}
    return TokenPlan.from_config(config)


def test_a_whole_store_passes(copy):
    copy.check_files()


def test_a_missing_tar_is_named(copy):
    path, _ = copy.tar(2)
    path.unlink()
    with pytest.raises(
        UserError, match=rf"^{path} cannot be read \(No such file .*; copy that shard again or tokenize"
    ):
        copy.check_files()


def test_a_truncated_tar_is_named(copy):
    path, size = copy.tar(1)
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(UserError, match=rf"^{path} has {size // 2} bytes and store.json says {size}; copy that shard"):
        copy.check_files()


def test_a_shard_of_another_store_is_named(copy):
    sidecar = layout.sidecar_path(copy.path, "00001")
    sidecar.write_text(layout.sidecar_path(copy.path, "00000").read_text())
    with pytest.raises(UserError, match=rf"^{sidecar} is not the sidecar that store.json was made from; copy that"):
        copy.check_files()
    sidecar.unlink()
    with pytest.raises(UserError, match=rf"^{sidecar} is missing; copy that shard"):
        copy.check_files()


def test_other_content_of_the_same_size_is_found_by_verify_alone(copy):
    path, size = copy.tar(0)
    content = bytearray(path.read_bytes())
    content[size // 2] ^= 1
    path.write_bytes(content)
    copy.check_files()
    with pytest.raises(UserError, match=r"shard 00000 of .* is damaged"):
        verify(copy.path)


def test_a_tar_of_another_size_is_refused_when_it_is_read_too(copy):
    path, _ = copy.tar(0)
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(UserError, match=r"00000.tar is damaged \(its size has changed\)"):
        copy.pictures(np.array([0]), "image")


def test_a_plan_checks_all_its_stores(copy):
    plan = plan_of(copy)
    plan.check_files()
    copy.tar(3)[0].unlink()
    with pytest.raises(UserError, match=r"00003.tar cannot be read"):
        plan.check_files()


def test_the_table_of_the_blocks_of_many_shards_is_kept(toy_store, tmp_path, monkeypatch):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_module, "KEPT_TABLE", 4)
    first = TokenStore(toy_store.path).blocks
    monkeypatch.setattr(TokenStore, "_read_block_table", None)  # nobody reads them again
    again = TokenStore(toy_store.path).blocks
    for name in ("channel_mask", "num_pictures", "first_item", "shard", "offset"):
        expected = getattr(toy_store.blocks, name)
        assert np.array_equal(getattr(first, name), expected) and np.array_equal(getattr(again, name), expected)
