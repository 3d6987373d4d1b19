"""The bulk job: same bytes whatever happens, nothing lost silently, nothing foreign mixed in."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_source import ToySource

from lvm.runtime import UserError
from lvm.sources import Item
from lvm.store import TokenStore, build_store, ensure_world_store, job, run_job, verify
from tokenizer import VQGAN, BulkEncoder


def content(store):
    """All that a job leaves behind but who it was."""
    files = [p for p in sorted(Path(store).rglob("*")) if p.is_file()]
    return {str(p.relative_to(store)): p.read_bytes() for p in files if not p.name.startswith((".task-", ".lease"))}


def test_processes_and_shards_already_there_do_not_change_a_byte(vqgan, tmp_path):
    alone = build_store(ToySource(), tmp_path / "alone", vqgan, shard_size=30, workers=0)
    build_store(ToySource(), tmp_path / "workers", vqgan, shard_size=30, workers=2)
    for shard in (1, 0):
        report = run_job(ToySource(), tmp_path / "tasks", vqgan, shard_size=30, workers=0, num_shards=2, shard=shard)
        assert report.complete == (shard == 0)
        if not report.complete:
            with pytest.raises(UserError, match="incomplete"):
                TokenStore(tmp_path / "tasks")
    assert content(tmp_path / "alone") == content(tmp_path / "workers") == content(tmp_path / "tasks")
    assert verify(tmp_path / "tasks").fingerprint == alone.fingerprint


def start_job(store, vqgan, workers):
    """A job in a process of its own, forked so that it need not import torch: one thread, or torch may hang."""

    def build():
        torch.set_num_threads(1)
        build_store(ToySource(seconds_per_unit=0.004), store, vqgan, shard_size=10, workers=workers)

    job = multiprocessing.get_context("fork").Process(target=build)
    job.start()
    return job


def num_shards(store):
    return len(list(store.glob("shards/*.json")))


def test_a_job_killed_at_any_moment_resumes_to_the_same_bytes(vqgan, tmp_path):
    build_store(ToySource(), tmp_path / "whole", vqgan, shard_size=10, workers=0)
    random.seed(0)
    killed, seen = tmp_path / "killed", [0]
    for _ in range(6):
        job = start_job(killed, vqgan, workers=0)
        while job.is_alive() and num_shards(killed) == seen[-1]:
            time.sleep(0.001)
        time.sleep(random.random() * 0.04)
        job.kill()
        job.join()
        seen.append(num_shards(killed))
        assert not (killed / "store.json").exists()
    assert seen == sorted(set(seen)) and seen[-1] < 10  # each run went on where the last was killed
    build_store(ToySource(), killed, vqgan, workers=0)  # the shard size is the frozen one
    found = {name: data for name, data in content(killed).items() if not Path(name).name.startswith(".tmp")}
    assert found == content(tmp_path / "whole")


def test_the_processes_that_read_end_with_the_job_that_started_them(vqgan, tmp_path):
    job = start_job(tmp_path / "s", vqgan, workers=2)
    while job.is_alive() and num_shards(tmp_path / "s") < 2:
        time.sleep(0.002)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) == 2
    for child in children:  # a scheduler signals every process of a job; readers leave the decision to the parent
        os.kill(int(child), signal.SIGTERM)
        os.kill(int(child), signal.SIGUSR2)
    shards = num_shards(tmp_path / "s")
    while job.is_alive() and num_shards(tmp_path / "s") == shards:
        time.sleep(0.002)
    assert job.is_alive() and all(_running(child) for child in children)
    job.kill()
    job.join()
    deadline = time.time() + 10
    while any(_running(child) for child in children) and time.time() < deadline:
        time.sleep(0.02)
    assert not any(_running(child) for child in children)


def _running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_complete_store_is_returned_without_reading_a_unit(vqgan, tmp_path):
    build_store(ToySource(pictures=10, clips=0), tmp_path / "s", vqgan, workers=0)
    before = content(tmp_path / "s")
    unreadable = ToySource(pictures=10, clips=0, broken=tuple(range(10)))
    assert len(build_store(unreadable, tmp_path / "s", vqgan, workers=0)) == 30
    assert content(tmp_path / "s") == before


def test_what_a_killed_job_left_behind_is_removed_once_the_store_is_complete(vqgan, tmp_path):
    (tmp_path / "s" / "shards").mkdir(parents=True)
    run_job(ToySource(4, 0), tmp_path / "t", vqgan, workers=0)
    (tmp_path / "s" / "plan.json").write_bytes((tmp_path / "t" / "plan.json").read_bytes())
    old, new = (tmp_path / "s" / "shards" / f".tmp-{age}-00000.tar" for age in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    build_store(ToySource(4, 0), tmp_path / "s", vqgan, workers=0)
    assert new.exists() and not old.exists()


def test_what_is_given_is_stored_or_in_quarantine(vqgan, tmp_path):
    broken = (3, 40, 99)
    source = ToySource(broken=broken)
    report = run_job(source, tmp_path / "s", vqgan, shard_size=30, workers=1, max_broken=0.03)
    store = TokenStore(tmp_path / "s")
    lines = [json.loads(line) for line in (tmp_path / "s" / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [{"id": f"unit{i}", "file": f"file{i}.jpg", "reason": "is made to fail"} for i in broken]
    assert report.broken == lines and sum(shard["broken"] for shard in store.info["shards"]) == 3
    assert len({store.id(i) for i in range(len(store))}) + len(lines) == len(source)


def test_more_broken_than_allowed_stops_the_job_and_names_the_first(vqgan, tmp_path):
    source = ToySource(broken=(3, 40, 41))
    with pytest.raises(UserError, match=r"file3.jpg: is made to fail; 2 broken where 1 are allowed.*quarantine.jsonl"):
        build_store(source, tmp_path / "s", vqgan, shard_size=30, workers=0)
    assert not (tmp_path / "s" / "store.json").exists()
    assert len((tmp_path / "s" / "quarantine.jsonl").read_text().splitlines()) == 2
    store = build_store(source, tmp_path / "s", vqgan, workers=0, max_broken=0.05)  # goes on from the first shard
    assert sum(shard["broken"] for shard in store.info["shards"]) == 3


def test_a_source_that_yields_nothing_leaves_no_store(vqgan, tmp_path):
    with pytest.raises(UserError, match="'toy' has nothing in it"):
        build_store(ToySource(pictures=0, clips=0), tmp_path / "a", vqgan)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="nothing of source 'toy' could be read"):
        build_store(ToySource(2, 0, broken=(0, 1)), tmp_path / "b", vqgan, workers=0, max_broken=1.0)
    assert not (tmp_path / "b" / "store.json").exists()


def test_a_foreign_tokenizer_source_or_folder_is_refused_by_name(vqgan, tmp_path):
    source = ToySource(pictures=4, clips=0)
    build_store(source, tmp_path / "s", vqgan, workers=0)
    torch.manual_seed(1)
    other = VQGAN(vqgan.config)
    with pytest.raises(UserError, match=f"tokenizer {vqgan.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        build_store(source, tmp_path / "s", other, workers=0)
    with pytest.raises(UserError, match=r"holds source 'toy'.*4 units.*not 'toy'.*5 units"):
        build_store(ToySource(pictures=5, clips=0), tmp_path / "s", vqgan, workers=0)
    with pytest.raises(UserError, match="says size = 16, this job 32"):
        build_store(source, tmp_path / "s", vqgan, workers=0, size=32)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "important.txt").write_text("kept")
    with pytest.raises(UserError, match="exists and is not a token store"):
        build_store(source, tmp_path / "notes", vqgan, workers=0)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["important.txt"]


def test_pictures_of_another_size_get_a_larger_grid_of_the_same_tokenizer(vqgan, tmp_path):
    store = build_store(ToySource(pictures=4, clips=0), tmp_path / "s", vqgan, workers=0, size=32)
    assert store.grid == (8, 8) and store.tokens_per_picture == 64
    picture = torch.from_numpy(ToySource().picture(0, "image", 0, 32)).permute(2, 0, 1)[None].float() / 255
    exact = vqgan.encode(picture).numpy()
    assert (store.pictures(np.array([0]), "image") == exact).mean() > 0.9  # bf16 moves a near tie now and then
    with pytest.raises(UserError, match="18 px do not divide into the tokenizer's cells of 4 px"):
        build_store(ToySource(), tmp_path / "t", vqgan, size=18)


@pytest.mark.parametrize("grid", [(2, 8), (3, 3)])
def test_a_tokenizer_whose_grid_square_pictures_do_not_fill_is_refused(vqgan, tmp_path, grid):
    other = VQGAN(dataclasses.replace(vqgan.config, grid=grid))
    with pytest.raises(UserError, match=rf"a grid of {grid[0]} x {grid[1]} codes; .* whose 16 px fill 4 x 4; use"):
        build_store(ToySource(4, 0), tmp_path / "s", other, workers=0)
    assert not (tmp_path / "s").exists()


def test_verify_names_the_damaged_shard(vqgan, tmp_path):
    build_store(ToySource(), tmp_path / "s", vqgan, shard_size=30, workers=0)
    verify(tmp_path / "s")
    for file in ("shards/00002.tar", "index/00001.row.npy", "strings/00003.jsonl"):
        path = tmp_path / "s" / file
        good = path.read_bytes()
        path.write_bytes(good[:-700] + bytes([good[-700] ^ 1]) + good[-699:] if len(good) > 700 else good[:-1])
        with pytest.raises(UserError, match=rf"shard {path.name[:5]} .*{path.name} is damaged"):
            verify(tmp_path / "s")
        path.unlink()
        with pytest.raises(UserError, match=rf"shard {path.name[:5]} .*{path.name} is missing"):
            verify(tmp_path / "s")
        path.write_bytes(good)
    (tmp_path / "s" / "shards" / "00001.json").unlink()
    with pytest.raises(UserError, match=r"shard 00001 .*run the same `lvm tokenize` again"):
        verify(tmp_path / "s")
    build_store(ToySource(), tmp_path / "s", vqgan, workers=0)  # the remedy
    verify(tmp_path / "s")


def test_a_truncated_tar_is_one_line_when_it_is_read(vqgan, tmp_path):
    store = build_store(ToySource(pictures=9, clips=0), tmp_path / "s", vqgan, workers=0)
    tar = tmp_path / "s" / "shards" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"00000.tar is damaged .*lvm store verify"):
        TokenStore(store.path).pictures(np.array([0]), "image")


def test_the_world_store_is_built_once_and_found_again(vqgan, tmp_path, monkeypatch):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path))
    world = {"num_scenes": 4, "num_clips": 1}
    path = ensure_world_store(world, vqgan, workers=0, progress=False)
    assert path.is_relative_to(tmp_path) and len(TokenStore(path)) > 4
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert ensure_world_store(world, vqgan) == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before
    assert ensure_world_store({**world, "seed": 1}, vqgan, workers=0) != path


@dataclass(frozen=True)
class Blanks(ToySource):
    """Unit 3 is white but for a pixel that JPEG might have moved, clip 12 black, the noisy views of 5 are flat."""

    def picture(self, i, channel, frame, size):
        picture = super().picture(i, channel, frame, size)
        if (i, channel) == (3, "image"):
            picture[:] = 252
            picture[0, 0, 1] = 255
        if i == 12 or (i, channel) == (5, "noisy"):
            picture[:] = (0, 90, 200)
        return picture


def test_pictures_of_one_flat_colour_are_left_out_counted_and_named(vqgan, tmp_path):
    source = Blanks(12, 3, broken=(8,))
    report = run_job(source, tmp_path / "s", vqgan, shard_size=6, workers=0, max_broken=0.1)  # blanks are not broken
    store = TokenStore(tmp_path / "s")
    assert report.blank == 4 and [shard["blank"] for shard in store.info["shards"]] == [3, 0, 1]
    lines = [json.loads(line) for line in (tmp_path / "s" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], line.get("view")) for line in lines if line["reason"] == "blank"] == [
        ("unit3", 0),
        ("unit3", 1),  # its own pictures are not flat, but what they are of is not there
        ("unit3", 2),
        ("unit12", 0),
    ]
    assert {"unit3", "unit12"}.isdisjoint(store.id(i) for i in range(len(store))) and store.find(["unit5"])
    assert verify(tmp_path / "s") and run_job(source, tmp_path / "s", vqgan, workers=0, max_broken=0.1).blank == 4
    kept = build_store(source, tmp_path / "kept", vqgan, workers=0, max_broken=0.1, keep_blank=True)
    assert len(kept) == len(store) + 4 and kept.find(["unit12"])
    with pytest.raises(UserError, match="says keep_blank = False, this job True"):
        build_store(source, tmp_path / "s", vqgan, workers=0, max_broken=0.1, keep_blank=True)


def test_a_store_begun_before_the_filter_is_finished_without_it(vqgan, tmp_path):
    build_store(Blanks(12, 3), tmp_path / "s", vqgan, shard_size=6, workers=0, keep_blank=True)
    plan = json.loads((tmp_path / "s" / "plan.json").read_text())
    del plan["keep_blank"]
    (tmp_path / "s" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "s" / "shards" / "00002.json").unlink()
    assert build_store(Blanks(12, 3), tmp_path / "s", vqgan, workers=0).find(["unit12"])


def test_exact_encoding_is_part_of_the_plan_and_another_precision_is_refused(vqgan, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizer.bulk.bf16_pays", lambda device: True)
    assert job.make_encoder(vqgan, 16, False, 4).bf16 and not job.make_encoder(vqgan, 16, False, 4, "exact").bf16
    source = ToySource(pictures=12, clips=0)
    store = build_store(source, tmp_path / "exact", vqgan, workers=0, precision="exact")
    many = np.concatenate([source.picture(i, "image", 0, 16)[None] for i in range(12)])
    expected = BulkEncoder(vqgan, precision="exact").encode(many)
    items = np.concatenate([store.find([f"unit{i}"])[f"unit{i}"][:1] for i in range(12)])
    assert np.array_equal(store.pictures(items, "image").reshape(expected.shape), expected)
    with pytest.raises(UserError, match="says precision = 'exact', this job 'auto'; name another folder"):
        build_store(source, tmp_path / "exact", vqgan, workers=0)

    build_store(source, tmp_path / "auto", vqgan, workers=0)
    plan_file = tmp_path / "auto" / "plan.json"
    plan = json.loads(plan_file.read_text())
    assert plan.pop("precision") == "auto"
    plan_file.write_text(json.dumps(plan))  # as written before there was a choice
    build_store(source, tmp_path / "auto", vqgan, workers=0)
    with pytest.raises(UserError, match="says precision = 'auto', this job 'exact'"):
        build_store(source, tmp_path / "auto", vqgan, workers=0, precision="exact")
    with pytest.raises(UserError, match="precision is 'double'; use one of auto, bf16, exact"):
        build_store(source, tmp_path / "new", vqgan, workers=0, precision="double")
    assert not (tmp_path / "new").exists()


def test_the_card_counts_what_is_there_and_says_what_made_it(vqgan, tmp_path):
    for name, shard_size in (("a", 7), ("b", 7)):
        run_job(Blanks(12, 3), tmp_path / name, vqgan, shard_size=shard_size, workers=0, command=f"make {name}")
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.replace("make a", "make b") == (tmp_path / "b" / "README.md").read_text()
    rows = dict(
        line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and line != "|  |  |"
    )
    assert rows["image"] == "23 pictures" and rows["noisy"] == "22 pictures" and rows["blank"] == "4"
    assert rows["CC0"] == "13" and rows["tokenizer's fingerprint"] == vqgan.fingerprint
    assert rows["made by"] == "`make a`" and rows["tokens"].startswith("896 (4 x 4 a picture")


def test_a_task_that_a_live_job_works_at_is_refused_and_a_dead_ones_is_taken_over(vqgan, tmp_path):
    job = start_job(tmp_path / "s", vqgan, workers=0)
    while job.is_alive() and num_shards(tmp_path / "s") == 0:
        time.sleep(0.001)
    os.kill(job.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=rf"s is in use by pid {job.pid} on .*\.task-0-of-1\.json"):
        build_store(ToySource(), tmp_path / "s", vqgan, workers=0)
    report = run_job(ToySource(), tmp_path / "s", vqgan, workers=0, num_shards=2, shard=1)  # another task may work
    assert report.pictures and not report.complete
    job.kill()
    job.join()
    assert len(build_store(ToySource(), tmp_path / "s", vqgan, workers=0)) == 280
    verify(tmp_path / "s")


class Surprising(ToySource):
    def read(self, i, size):
        return [Item("a", "a", 0, -1, {"other": np.zeros((1, size, size, 3), np.uint8)})]


def test_units_that_yield_what_the_source_did_not_announce_are_a_bug(vqgan, tmp_path):
    with pytest.raises(ValueError, match=r"item 'a' has channels \['other'\]"):
        build_store(Surprising(), tmp_path / "s", vqgan, workers=0)
    assert not (tmp_path / "s" / "store.json").exists()


def test_a_full_disk_is_one_line_and_the_same_command_continues(vqgan, tmp_path, monkeypatch):
    source, written = ToySource(20, 0), job.write_shard

    def full(path, n, *rest):
        if n == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, n, *rest)

    monkeypatch.setattr(job, "write_shard", full)
    with pytest.raises(UserError, match=r"No space left on device.*the same command continues"):
        build_store(source, tmp_path / "store", vqgan, shard_size=5, workers=0)
    monkeypatch.setattr(job, "write_shard", written)
    again = build_store(source, tmp_path / "store", vqgan, shard_size=5, workers=0)
    assert again.fingerprint == build_store(source, tmp_path / "whole", vqgan, shard_size=5, workers=0).fingerprint


def test_a_task_that_another_overtakes_takes_the_plan_that_it_finds(tmp_path, monkeypatch):
    plan, store, exists = {"tokenizer_fingerprint": "t", "source_fingerprint": "s"}, tmp_path / "store", Path.exists

    def overtaken(path):
        answer = exists(path)
        if path.name == "plan.json" and not answer:  # and by the next line the other task is at work
            store.mkdir()
            path.write_text(json.dumps(plan))
            (store / ".task-1-of-2.json").write_text("{}")
        return answer

    monkeypatch.setattr(Path, "exists", overtaken)
    assert job.freeze_plan(store, dict(plan)) == plan
    monkeypatch.undo()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(UserError, match="is not a token store"):
        job.freeze_plan(tmp_path / "mine", plan)
