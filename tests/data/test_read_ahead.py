"""Shards of a store elsewhere: fetched once, in the order they are needed, ahead of it, within the bound."""

import json
import shutil
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest

from lvm.data import TokenPlan, WindowLoader
from lvm.data.read_ahead import ReadAhead
from lvm.runtime import UserError, write_json
from lvm.runtime.files import locked
from lvm.sources import Item
from lvm.store import TokenStore, layout, remote
from lvm.store.remote import RemoteFolder
from lvm.store.shard import Shard, write_shard
from lvm.store.tar_cache import _size

SHARDS, PICTURES, TOKENS = 12, 64, 16


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A store of random codes: shards of so many pictures with two channels."""
    folder, random, shards = tmp_path_factory.mktemp("random"), np.random.default_rng(0), []
    for number in range(SHARDS):
        shard, units = Shard(("image", "depth")), range(number * PICTURES, (number + 1) * PICTURES)
        for i in units:
            shard.add(Item(f"{i}", f"{i}", 0, -1, {channel: np.empty(1) for channel in shard.channels}))
        codes = random.integers(0, 1024, (shard.num_pictures, TOKENS)).astype(np.uint16)
        write_shard(folder, number, units, shard, codes)
        sidecar = json.loads(layout.sidecar_path(folder, layout.shard_name(number)).read_text())
        shards.append({key: sidecar[key] for key in ("name", "bytes", "sha256", "ids", "items", "blocks")})
    about = {"version": layout.VERSION, "source": "random", "channels": ["image", "depth"], "labels": []}
    made = {"tokenizer_fingerprint": "0" * 64, "num_codes": 1024, "grid": [4, 4]}
    write_json(folder / "store.json", {**about, **made, "shards": shards})
    return TokenStore(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remote"


@pytest.fixture
def memory(local, cache, monkeypatch):
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: 0.001)
    files = fsspec.filesystem("memory")
    files.put(str(local.path), "/bucket/random", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def plan_of(store, shuffle_block=PICTURES):
    config = {
        "seq_len": 64,
        "period": 64,
        "shuffle_block": shuffle_block,
        "sources": {"random": {}},
        "entries": {
            "single": {"source": "random", "weight": 1, "recipe": "single"},
            "pairs": {"source": "random", "weight": 1, "recipe": "pairs", "input": "image", "output": "depth"},
        },
    }
    config["entries"]["pairs"] |= {"agree": "none", "pictures": 4}
    return TokenPlan.from_config(config, {"random": store})


def tars(cache):
    return sorted(path.name for path in cache.glob("*/shards/[0-9]*.tar"))


def one_run(first, steps):
    """A rank of one, whose steps are four windows."""
    yield first, 4 * steps


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def fetched(monkeypatch):
    """(tar, thread) of each fetch, as they begin."""
    log, fetch = [], RemoteFolder._fetch_tar

    def logged(self, name, *arguments):
        log.append((name.removeprefix("shards/").removesuffix(".tar"), threading.current_thread().name))
        return fetch(self, name, *arguments)

    monkeypatch.setattr(RemoteFolder, "_fetch_tar", logged)
    return log


def test_shards_are_fetched_in_the_order_of_their_first_use_within_the_horizon(local, memory, fetched, cache):
    plan = plan_of(TokenStore("memory://bucket/random"))
    expected = [f"{shard:05d}" for _, shard in plan.shards(8, 64)]
    assert 2 < len(expected) < SHARDS  # the windows ahead need a part of the store
    ahead = ReadAhead(plan, one_run, 4, next_window=8, horizon=64, threads=1)
    wait_until(lambda: len(tars(cache)) == len(expected))
    ahead.advance(4000)  # the reader has overtaken it
    later = [f"{shard:05d}" for _, shard in plan.shards(4000, 64)]
    wait_until(lambda: set(later) <= {name.removesuffix(".tar") for name in tars(cache)})
    ahead.close()
    assert ahead.problem is None
    assert [name for name, _ in fetched] == [*expected, *(name for name in later if name not in expected)]


def test_a_reader_finds_all_shards_there_and_each_is_fetched_once(local, memory, fetched, cache):
    plan, here = plan_of(TokenStore("memory://bucket/random")), plan_of(local)
    with WindowLoader(plan, batch_size=4) as loader:
        wait_until(lambda: len(tars(cache)) == SHARDS)
        fetched_before = len(fetched)
        for step in range(100):  # several epochs
            assert np.array_equal(next(loader)[0]["tokens"].numpy(), here.windows(4 * step, 4).tokens)
    assert fetched_before == len(fetched) == len({name for name, _ in fetched}) == SHARDS


def test_two_ranks_of_a_machine_fetch_each_shard_once(local, memory, fetched, cache):
    plan, here = plan_of(TokenStore("memory://bucket/random")), plan_of(local)
    other = plan_of(TokenStore("memory://bucket/random"))
    with (
        WindowLoader(plan, batch_size=2, rank=0, ranks=2) as first,
        WindowLoader(other, batch_size=2, rank=1, ranks=2) as second,
    ):
        for step in range(30):
            both = np.concatenate([next(first)[0]["tokens"].numpy(), next(second)[0]["tokens"].numpy()])
            assert np.array_equal(both, here.windows(4 * step, 4).tokens)
        wait_until(lambda: len(tars(cache)) == SHARDS)
    assert len(fetched) == len({name for name, _ in fetched})


@pytest.mark.parametrize("tars_held", [2, 3, 5])
def test_the_bound_holds_at_every_moment_and_a_small_one_changes_no_window(
    tars_held, local, memory, fetched, cache, monkeypatch
):
    size = local.tar(0)[1]
    seen, cat = [], type(memory).cat_file

    def cat_file(self, path, *arguments, **options):
        if not path.endswith(".tar"):
            return cat(self, path, *arguments, **options)
        with locked(cache / ".lock"):  # none leaves and none is begun while they are counted; one may become complete
            complete = sum(path.stat().st_size for path in cache.glob("*/shards/[0-9]*.tar"))
            seen.append(complete + sum(_size(path) for path in cache.glob("*/shards/.tmp-*.tar")))
        return cat(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    bound = size * tars_held + 10
    plan, here = plan_of(TokenStore("memory://bucket/random", cache_bytes=bound)), plan_of(local)
    with WindowLoader(plan, batch_size=4) as loader:
        for step in range(60):
            assert np.array_equal(next(loader)[0]["tokens"].numpy(), here.windows(4 * step, 4).tokens)
    assert len(fetched) > SHARDS and max(seen) <= bound


def test_what_is_needed_next_does_not_leave_for_what_is_needed_later(local, memory, fetched, cache):
    size = local.tar(0)[1]
    plan = plan_of(TokenStore("memory://bucket/random", cache_bytes=size * 5))
    ahead = ReadAhead(plan, one_run, 4, next_window=0, horizon=400)
    first = [f"{shard:05d}.tar" for _, shard in plan.shards(0, 400)][:4]  # room for one more is left to the reader
    wait_until(lambda: len(tars(cache)) == 4)
    time.sleep(0.1)
    assert tars(cache) == sorted(first) and len(fetched) == 4
    ahead.close()


def test_one_step_that_needs_more_than_the_cache_holds_is_warned_of(local, memory, cache):
    plan = plan_of(TokenStore("memory://bucket/random", cache_bytes=local.tar(0)[1] * 2), shuffle_block=4096)
    with pytest.warns(
        UserWarning, match=r"one step reads \d+ tars .*; raise LVM_REMOTE_CACHE_BYTES or lower"
    ) as warned:
        ahead = ReadAhead(plan, one_run, 4, next_window=0, horizon=4)
        wait_until(lambda: len(warned))
        ahead.close()


@pytest.fixture
def failing(memory, monkeypatch):
    """Tar -> how often a request for it fails yet."""
    left, cat = {}, type(memory).cat_file

    def cat_file(self, path, *arguments, **options):
        name = path.rpartition("/")[2]
        if left.get(name):
            left[name] -= 1
            raise OSError("reset by peer")
        return cat(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    return left


def test_a_shard_that_fails_once_recovers(local, memory, failing, fetched):
    failing |= {f"{shard:05d}.tar": 1 for shard in range(SHARDS)}
    plan, here = plan_of(TokenStore("memory://bucket/random")), plan_of(local)
    with WindowLoader(plan, batch_size=4) as loader:
        for step in range(40):
            assert np.array_equal(next(loader)[0]["tokens"].numpy(), here.windows(4 * step, 4).tokens)
    assert not any(failing.values()) and len(fetched) == SHARDS


def test_a_shard_that_stays_away_is_named_when_it_is_needed(local, memory, failing, cache):
    plan = plan_of(TokenStore("memory://bucket/random"))
    first_use = next(i for i in range(400) if ("random", 7) in plan.shards(4 * i, 4))
    assert first_use > 3
    failing["00007.tar"] = 10**6
    with WindowLoader(plan, batch_size=4) as loader:
        wait_until(lambda: failing["00007.tar"] <= 10**6 - 3 and len(tars(cache)) == SHARDS - 1)
        for _ in range(first_use):
            next(loader)
        with pytest.raises(UserError, match=r"^memory://bucket/random/shards/00007.tar could not be fetched 3 times"):
            next(loader)
    assert failing["00007.tar"] == 10**6 - 6  # three ahead of the reader, three by it


def test_a_shard_that_is_not_there_is_asked_for_once(local, memory, failing):
    memory.rm("/bucket/random/shards/00007.tar")
    plan = plan_of(TokenStore("memory://bucket/random"))
    with (
        WindowLoader(plan, batch_size=4) as loader,
        pytest.raises(UserError, match=r"shards/00007.tar is missing; copy"),
    ):
        for _ in range(400):
            next(loader)


def test_closing_does_not_wait_for_what_is_fetched_ahead(local, memory, cache, monkeypatch):
    monkeypatch.setattr(remote, "PART", 256)
    begun, cat = threading.Event(), type(memory).cat_file

    def cat_file(self, path, *arguments, **options):
        if path.endswith(".tar"):
            begun.set()
            time.sleep(0.01)
        return cat(self, path, *arguments, **options)

    plan = plan_of(TokenStore("memory://bucket/random"))
    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    ahead = ReadAhead(plan, one_run, 4, next_window=0, horizon=400, threads=2)
    assert begun.wait(20)
    ahead.close()
    assert len(tars(cache)) < 4 and not list(cache.rglob(".tmp-*")) and ahead.problem is None


def test_a_local_store_has_nothing_read_ahead(local):
    with WindowLoader(plan_of(local), batch_size=4) as loader:
        assert loader._read_ahead is None


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_read_what_the_parent_fetched(local, cache, fetched):
    plan, here = plan_of(TokenStore(f"file://{local.path}")), plan_of(local)
    with WindowLoader(plan, batch_size=4, workers=1) as loader:
        for step in range(20):
            assert np.array_equal(next(loader)[0]["tokens"].numpy(), here.windows(4 * step, 4).tokens)
    assert len(fetched) == len({name for name, _ in fetched}) >= 6


def test_a_killed_reader_leaves_no_broken_file(local, cache, tmp_path):
    store = shutil.copytree(local.path, tmp_path / "copy")
    code = (
        "import time, numpy as np\n"
        "from fsspec.implementations.local import LocalFileSystem\n"
        "from lvm.store import TokenStore, remote\n"
        "remote.PART = 512\n"
        "cat = LocalFileSystem.cat_file\n"
        "def slow(self, path, start=None, end=None, **options):\n"
        "    if start == 512 * 6:\n"
        "        print('fetching', flush=True)\n"
        "        time.sleep(60)\n"
        "    return cat(self, path, start, end, **options)\n"
        "LocalFileSystem.cat_file = slow\n"
        f"TokenStore('file://{store}').pictures(np.array([0]), 'image')\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "fetching\n"
    reader.kill()
    reader.wait()
    assert tars(cache) == [] and len(list(cache.rglob(".tmp-*.tar"))) == 1
    items = np.arange(len(local))
    assert np.array_equal(TokenStore(f"file://{store}").pictures(items, "depth"), local.pictures(items, "depth"))
    assert not list(cache.rglob(".tmp-*"))
