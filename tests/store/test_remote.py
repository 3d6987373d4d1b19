"""A store that lies elsewhere: read as if it were here, fetched once, checked, and never more of it than the bound."""

import gc
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from lvm.commands import run
from lvm.data import TokenPlan
from lvm.runtime import UserError
from lvm.store import TokenStore, exclude, remote, run_job, verify
from lvm.store import store as store_module
from lvm.store.tar_cache import TarCache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    return tmp_path / "cache" / "remote"


@pytest.fixture
def memory(toy_store):
    files = fsspec.filesystem("memory")
    files.put(str(toy_store.path), "/bucket/toy", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def all_pictures(store):
    items = np.flatnonzero(store.has("image"))
    return store.pictures(items, "image")


def tars(cache):
    return sorted(path.name for path in cache.glob("*/shards/[0-9]*.tar"))


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_store_elsewhere_reads_as_one_on_this_machine(protocol, toy_store, memory):
    url = "memory://bucket/toy" if protocol == "memory" else f"file://{toy_store.path}"
    store = TokenStore(url)
    assert store.fingerprint == toy_store.fingerprint and store.where == url and len(store) == len(toy_store)
    assert np.array_equal(all_pictures(store), all_pictures(toy_store))
    for i in (0, 100, 279):
        assert store.strings(i) == toy_store.strings(i) and store.meta(i) == toy_store.meta(i)
        assert store.locate(i, "image" if store.view[i] == 0 else "noisy")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.where == url and np.array_equal(all_pictures(copy), all_pictures(toy_store))


def test_files_are_fetched_once_and_tars_when_they_are_first_used(toy_store, memory, cache, monkeypatch):
    asked = []
    get, cat = type(memory).get, type(memory).cat_file
    monkeypatch.setattr(type(memory), "get", lambda self, *a, **k: (asked.extend(a[0]), get(self, *a, **k))[1])
    monkeypatch.setattr(type(memory), "cat_file", lambda self, *a, **k: (asked.append(a[0]), cat(self, *a, **k))[1])
    store = TokenStore("memory://bucket/toy")
    assert [path.rpartition("/")[2] for path in asked] == ["store.json", "exclude.txt"] and tars(cache) == []
    assert (store.view == toy_store.view).all() and tars(cache) == []
    store.pictures(np.array([0]), "image")
    assert tars(cache) == ["00000.tar"]
    all_pictures(store)
    assert len(asked) == len(set(asked)) and len(tars(cache)) == 4
    assert not [path for path in asked if path.endswith((".block.npy", ".row.npy", ".group.npy", ".jsonl"))]
    asked.clear()
    all_pictures(TokenStore("memory://bucket/toy"))
    assert [path.rpartition("/")[2] for path in asked] == ["store.json", "exclude.txt"]


def test_the_cache_stays_under_its_bound_and_drops_what_was_longest_not_used(toy_store, memory, cache):
    sizes = [shard["bytes"] for shard in toy_store.info["shards"]]
    bound = max(sizes) * 2 + min(sizes) // 2
    store = TokenStore("memory://bucket/toy", cache_bytes=bound)
    for _ in range(2):
        assert np.array_equal(all_pictures(store), all_pictures(toy_store))
        assert sum(path.stat().st_size for path in cache.glob("*/shards/[0-9]*.tar")) <= bound
    firsts = [int(store.items_of_shard(shard).start) for shard in range(4)]
    channel = ["image" if store.view[i] == 0 else "noisy" for i in firsts]
    for shard in (0, 1, 0, 2):
        store.pictures(np.array([firsts[shard]]), channel[shard])
    assert tars(cache) == ["00000.tar", "00002.tar"]
    del store
    with pytest.raises(UserError, match=r"LVM_REMOTE_CACHE_BYTES is 100; raise it"):
        all_pictures(TokenStore("memory://bucket/toy", cache_bytes=100))


def test_a_tar_that_another_reader_has_mapped_stays(toy_store, memory, cache):
    sizes = [shard["bytes"] for shard in toy_store.info["shards"]]
    reader = TokenStore("memory://bucket/toy")
    reader.pictures(np.array([0]), "image")
    other = TokenStore("memory://bucket/toy", cache_bytes=max(sizes) * 2)
    all_pictures(other)
    assert "00000.tar" in tars(cache) and len(tars(cache)) == 2
    del reader
    gc.collect()
    other.pictures(np.array([other.items_of_shard(1).start]), "image")
    other.pictures(np.array([other.items_of_shard(2).start]), "image")
    assert "00000.tar" not in tars(cache)


def test_two_processes_share_one_cache(toy_store, cache):
    sizes = [shard["bytes"] for shard in toy_store.info["shards"]]
    code = (
        "import sys, numpy as np\n"
        "from lvm.store import TokenStore\n"
        f"store = TokenStore('file://{toy_store.path}', cache_bytes={max(sizes) + min(sizes) // 2})\n"
        "items = np.flatnonzero(store.has('image'))\n"
        "for _ in range(20):\n"
        "    codes = store.pictures(items, 'image')\n"
        "print(int(codes.astype(np.int64).sum()))\n"
    )
    readers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    expected = str(int(all_pictures(toy_store).astype(np.int64).sum()))
    assert [reader.communicate()[0].strip() for reader in readers] == [expected] * 3
    assert not list(cache.rglob(".tmp-*"))


def test_what_arrives_damaged_is_refused_and_not_kept(toy_store, memory, cache):
    good = memory.cat_file("/bucket/toy/shards/00000.tar")
    memory.pipe("/bucket/toy/shards/00000.tar", good[:-1] + b"x")
    store = TokenStore("memory://bucket/toy")
    with pytest.raises(UserError, match=r"memory://bucket/toy/shards/00000.tar is damaged"):
        store.pictures(np.array([0]), "image")
    memory.rm("/bucket/toy/shards/00000.tar")
    with pytest.raises(UserError, match=r"00000.tar is missing"):
        store.pictures(np.array([0]), "image")
    assert tars(cache) == [] and not list(cache.rglob(".tmp-*"))
    memory.pipe("/bucket/toy/shards/00000.tar", good)
    assert np.array_equal(all_pictures(store), all_pictures(toy_store))
    memory.pipe("/bucket/toy/shards/00001.json", b'{"sha256": "of another", "files": {}}')
    shutil.rmtree(cache)
    with pytest.raises(UserError, match=r"00001.json is not the one of store.json"):
        assert len(TokenStore("memory://bucket/toy").view)


def test_a_failure_that_passes_is_tried_again(memory, monkeypatch):
    failures = [OSError("reset by peer")] * 2
    cat = type(memory).cat_file

    def cat_file(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return cat(self, *arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    assert len(TokenStore("memory://bucket/toy")) == 280
    failures += [OSError("reset by peer")] * 3
    with pytest.raises(
        UserError, match=r"store.json could not be fetched 3 times \(reset by peer\); check the network"
    ):
        TokenStore("memory://bucket/toy")
    failures += [OSError("not asked again"), PermissionError("no access")]
    with pytest.raises(UserError, match=r"store.json could not be fetched \(no access\); check the network"):
        TokenStore("memory://bucket/toy")
    assert len(failures) == 1


def test_a_tar_of_many_parts_is_fetched_by_several_requests(toy_store, memory, cache, monkeypatch):
    monkeypatch.setattr(remote, "PART", 1000)
    asked, cat = [], type(memory).cat_file
    whole = {
        f"/bucket/toy/shards/{name}.tar": toy_store.tar(shard)[1] for shard, (name, _) in enumerate(toy_store.shards)
    }

    def cat_file(self, path, start=None, end=None):
        asked.append((path, start, end))
        ignores_ranges = path.endswith("00002.tar")
        return cat(self, path) if ignores_ranges else cat(self, path, start, end)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    assert np.array_equal(all_pictures(TokenStore("memory://bucket/toy")), all_pictures(toy_store))
    for path, size in whole.items():
        parts = [(start, end) for name, start, end in asked if name == path]
        assert parts == [(start, min(start + 1000, size)) for start in range(0, size, 1000)]
    assert not list(cache.rglob(".tmp-*"))


def test_what_a_killed_reader_was_fetching_leaves_the_cache_and_what_a_living_one_fetches_counts(tmp_path):
    shards = tmp_path / "cache" / "remote" / "abc" / "shards"
    tars = TarCache(tmp_path / "cache" / "remote", bound=100)
    with tars.writing(shards / "00000.tar", 60, lambda: False) as first:
        first.write(b"a" * 60)
        with tars.writing_ahead(shards / "00001.tar", 60, ()) as second:
            assert second is None
        with tars.writing_ahead(shards / "00001.tar", 40, ()) as second:
            assert second is not None
    assert sorted(path.name for path in shards.iterdir()) == ["00000.tar", "00001.tar"]
    (shards / ".tmp-12345678-00002.tar").write_bytes(b"b" * 90)  # nobody holds its lock
    with tars.writing_ahead(shards / "00003.tar", 60, needed={shards / "00000.tar"}) as third:
        assert third is None  # 00001 left for it, but that was not enough
    with tars.writing_ahead(shards / "00003.tar", 40, needed={shards / "00000.tar"}) as third:
        assert third is not None
    with pytest.raises(OSError), tars.writing(shards / "00004.tar", 60, lambda: False):
        raise OSError("the network is down")
    assert sorted(path.name for path in shards.iterdir()) == ["00003.tar"]


def test_a_store_elsewhere_is_checked_by_one_listing(toy_store, memory, monkeypatch):
    listed, ls = [], type(memory).ls
    monkeypatch.setattr(type(memory), "ls", lambda self, *a, **k: (listed.append(a[0]), ls(self, *a, **k))[1])
    store = TokenStore("memory://bucket/toy")
    store.check_files()
    assert listed == ["/bucket/toy/shards"]
    good = memory.cat_file("/bucket/toy/shards/00001.tar")
    memory.pipe("/bucket/toy/shards/00001.tar", good[:-1])
    with pytest.raises(UserError, match=r"^memory://bucket/toy/shards/00001.tar has \d+ bytes and store.json says"):
        store.check_files()
    memory.rm("/bucket/toy/shards/00001.tar")
    with pytest.raises(UserError, match=r"^memory://bucket/toy/shards/00001.tar is missing; copy that shard again"):
        store.check_files()


def test_a_store_written_anew_is_not_mixed_with_the_old_one_and_takedowns_are_heard(toy_store, memory, tmp_path):
    store = TokenStore("memory://bucket/toy")
    all_pictures(store)
    memory.pipe("/bucket/toy/exclude.txt", b"unit7\n")
    assert TokenStore("memory://bucket/toy").admitted.sum() == 277
    info = json.loads(memory.cat_file("/bucket/toy/store.json"))
    memory.pipe("/bucket/toy/store.json", json.dumps({**info, "tokenizer": "another name"}).encode())
    assert TokenStore("memory://bucket/toy").path != store.path


def test_addresses_that_cannot_be_are_one_line(memory, vqgan, monkeypatch):
    with pytest.raises(UserError, match=r"memory://bucket/none is not a complete token store"):
        TokenStore("memory://bucket/none")
    with pytest.raises(UserError, match="nope://x cannot be opened"):
        TokenStore("nope://x")
    for action in (verify, lambda url: exclude(url, ["a"]), lambda url: run_job(None, url, vqgan)):
        with pytest.raises(UserError, match=r"memory://bucket/toy: .* a folder of this machine"):
            action("memory://bucket/toy")
    monkeypatch.setenv("LVM_REMOTE_CACHE_BYTES", "much")
    with pytest.raises(UserError, match="LVM_REMOTE_CACHE_BYTES is 'much'; give a number"):
        TokenStore("memory://bucket/toy")


def test_plans_and_commands_take_an_address(toy_store, memory, tmp_path, capsys):
    config = {
        "seq_len": 33,
        "sources": {"toy": {"store": "memory://bucket/toy"}},
        "entries": {"single": {"source": "toy", "recipe": "single", "weight": 1}},
        "period": 64,
    }
    here = {**config, "sources": {"toy": {"store": str(toy_store.path)}}}
    plan, local = TokenPlan.from_config(config), TokenPlan.from_config(here)
    assert plan.fingerprint == local.fingerprint
    assert np.array_equal(plan.windows(0, 9).tokens, local.windows(0, 9).tokens)
    assert plan.explain(0)[0]["pictures"][0]["store"] == "memory://bucket/toy"
    assert run(["store", "ls", "memory://bucket/toy"]) == 0
    assert run(["store", "cat", "memory://bucket/toy", "unit3", "--channel", "image"]) == 0
    assert '"id": "unit3"' in capsys.readouterr().out
    assert run(["store", "merge", str(tmp_path / "copy"), "memory://bucket/toy"]) == 0
    assert TokenStore(tmp_path / "copy").fingerprint == toy_store.fingerprint


def test_no_more_files_are_held_open_than_allowed(toy_store, monkeypatch):
    monkeypatch.setattr(store_module, "kept_tars", lambda: 2)
    store = TokenStore(toy_store.path)
    for _ in range(2):
        assert np.array_equal(all_pictures(store), all_pictures(toy_store))
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".tar")]
        assert len(store._rows) == 2 and mapped
