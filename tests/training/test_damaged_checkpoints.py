"""What a disk does to checkpoints: a damaged one is named and the one before it taken, a full disk costs none of them.

A run of which every checkpoint is damaged does not begin again in silence.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plan import MODEL, run
from small_disk import small_disk
from test_parallel import on_ranks, start

from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints, verify_checkpoint
from lvm.runtime.metrics import read_metrics
from lvm.training import model_of_run

FILE_OF_RANK_1 = "tensors/shard-00002-model-00001-of-00001.safetensors"


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": (cut, FILE_OF_RANK_1),
    "flipped": (flip, FILE_OF_RANK_1),
    "of_rank_0": (flip, FILE_OF_RANK_1.replace("00002", "00001")),
    "missing": (Path.unlink, FILE_OF_RANK_1),
    "without_manifest": (Path.unlink, "manifest.json"),
    "cut_manifest": (cut, "manifest.json"),
    "flipped_state": (flip, "state.json"),
}


def test_two_ranks_pass_over_what_is_damaged_and_refuse_where_all_is(tmp_path):
    job = lambda name, steps: {"folder": str(tmp_path / name), "max_steps": steps, "save_every_steps": 2}
    names = [*DAMAGE, "all"]
    on_ranks(tmp_path / "before", 2, [job(name, 4) for name in names])
    newest = lambda name: list_checkpoints(tmp_path / name / "checkpoints")[-1]
    for name, (damage, file) in DAMAGE.items():
        damage(newest(name) / file)
    for path in list_checkpoints(tmp_path / "all" / "checkpoints"):
        cut(path / FILE_OF_RANK_1)

    ranks = start(tmp_path / "after", 2, [job(name, 5) for name in names])
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    said = [line for line in errors[0].splitlines() if "passed over" in line]
    assert len(said) == len(DAMAGE) and "passed over" not in errors[1]
    for line, (name, (_, file)) in zip(said, DAMAGE.items(), strict=True):
        assert f"{name}/checkpoints/step-00000004/{file}" in line and line.endswith("going on with step-00000002")
        assert [record["step"] for record in read_metrics(tmp_path / name / "metrics")] == [2, 4, 5]
        assert [path.name for path in list_checkpoints(tmp_path / name / "checkpoints")][-2:] == [
            "step-00000004",
            "step-00000005",
        ]
        for path in list_checkpoints(tmp_path / name / "checkpoints"):
            verify_checkpoint(path)
    for text in errors:
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert "all/checkpoints holds no checkpoint that is whole" in line and "Traceback" not in text
        assert f"step-00000004/{FILE_OF_RANK_1}" in line and f"step-00000002/{FILE_OF_RANK_1}" in line
        assert "remove all step-* in it to begin again at step 0" in line
    assert [record["step"] for record in read_metrics(tmp_path / "all" / "metrics")] == [2, 4]


def test_once_the_damaged_ones_are_removed_the_run_begins_again(tmp_path):
    run(tmp_path, max_steps=2)
    cut(list_checkpoints(tmp_path / "checkpoints")[-1] / "manifest.json")
    with pytest.raises(UserError, match=r"no checkpoint that is whole: .*manifest.json is not JSON .*remove all step-"):
        run(tmp_path, max_steps=2)
    with pytest.raises(UserError, match="no checkpoint that is whole"):
        model_of_run(tmp_path)
    list_checkpoints(tmp_path / "checkpoints")[-1].rename(tmp_path / "aside")
    assert run(tmp_path, max_steps=2)[1].state.step == 2


# A full disk.


def test_a_full_disk_ends_two_ranks_with_one_line_and_leaves_the_checkpoints_before(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        job = {"folder": str(disk / "run"), "max_steps": 2000, "save_every_steps": 1, "keep_checkpoints": 200}
        ranks = start(tmp_path / "ranks", 2, [job])
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [2, 2], errors
        for text in errors:
            (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
            assert "could not be written to" in line and "No space left" in line and "Traceback" not in text
        folder = disk / "run" / "checkpoints"
        kept = list_checkpoints(folder)
        assert kept and sorted(folder.iterdir()) == kept  # nothing half-written
        for path in kept:
            verify_checkpoint(path)
        assert model_of_run(disk / "run").config == MODEL and not (disk / "run" / "result.json").exists()
        step = int(kept[-1].name.removeprefix("step-"))
        shutil.rmtree(kept[0])
        on_ranks(tmp_path / "again", 2, [job | {"max_steps": step + 1, "keep_checkpoints": 1}])
        assert [path.name for path in list_checkpoints(folder)] == [f"step-{step + 1:08d}"]


SMALL_FILES = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fake_plan import run
from lvm.runtime import exit_with_one_line
run(Path(sys.argv[2]), max_steps=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
exit_with_one_line(lambda: run(Path(sys.argv[2]), max_steps=4) and 0)
"""


def test_a_file_that_may_not_grow_is_one_line_and_leaves_the_checkpoint_before(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SMALL_FILES, Path(__file__).parent, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the checkpoint of step 4 could not be written to" in line and "File too large" in line
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert run(tmp_path / "run", max_steps=4)[1].state.step == 4
