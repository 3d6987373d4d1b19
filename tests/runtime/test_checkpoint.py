"""Checkpoints are complete or absent, verified before they are trusted, and readable by any number of ranks."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import filesystem

from lvm.runtime import UserError, checkpoint
from lvm.runtime.checkpoint import (
    CheckpointWriter,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_shapes,
    read_state,
    superseded,
    verify_checkpoint,
)
from lvm.runtime.lease import RunLease


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(6, 4, generator=generator),
        "model.half": torch.randn(5, generator=generator).bfloat16(),
        "model.strided": torch.randn(3, 4, generator=generator).T,
        "optim.weight.step": torch.tensor(float(seed)),
        "optim.count": torch.tensor([1, 2, 3]),
    }


def zeros_like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def write(folder: Path, steps: list[int], keep_last: int = 9) -> None:
    writer = CheckpointWriter(folder, keep_last=keep_last)
    for step in steps:
        writer.save(step, some_tensors(step), {"step": step}, {"plan": "p"})
    writer.wait()


def test_what_was_saved_is_loaded_bit_for_bit_with_its_state(tmp_path):
    tensors, state = some_tensors(), {"step": 7, "loss": 0.1 + 0.2, "nested": {"list": [1, None, "x"]}}
    writer = CheckpointWriter(tmp_path)
    writer.save(7, tensors, state, {"plan": "abc"})
    writer.wait()
    path = newest_checkpoint(tmp_path)
    assert path == tmp_path / "step-00000007"
    loaded = zeros_like(tensors)
    assert load_checkpoint(path, loaded) == state
    assert_equal(loaded, tensors)
    assert read_state(path) == state
    assert verify_checkpoint(path)["fingerprints"] == {"plan": "abc"}
    shapes = read_shapes(path / "tensors")
    assert {key: size for key, (size, _) in shapes.items()} == {key: tensor.shape for key, tensor in tensors.items()}


@settings(deadline=None, max_examples=6)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True),
        st.tuples(
            st.lists(st.integers(1, 4), max_size=3),
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_names_shapes_and_dtypes_round_trip(tmp_path_factory, specification):
    folder = tmp_path_factory.mktemp("round")
    tensors = {key: (torch.randn(shape) * 3).to(dtype) for key, (shape, dtype) in specification.items()}
    writer = CheckpointWriter(folder)
    writer.save(1, tensors, {}, {})
    writer.wait()
    loaded = zeros_like(tensors)
    load_checkpoint(folder / "step-00000001", loaded)
    assert_equal(loaded, tensors)


def test_a_save_holds_the_values_of_its_call_though_training_goes_on(tmp_path):
    tensors = some_tensors()
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    writer = CheckpointWriter(tmp_path)
    writer.save(1, tensors, {}, {})
    for tensor in tensors.values():
        tensor.add_(1)
    writer.wait()
    loaded = zeros_like(tensors)
    load_checkpoint(tmp_path / "step-00000001", loaded)
    assert_equal(loaded, before)


def test_a_save_does_not_wait_for_the_stream_that_trains(tmp_path, monkeypatch):
    """With a GPU torch would load what it writes by a stream of its own making, and wait for it every 10 MB."""

    class WithGPU:
        cuda = SimpleNamespace(is_available=lambda: True)

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(filesystem, "torch", WithGPU())
    monkeypatch.setattr(filesystem, "_OverlappingCpuLoader", None)
    writer = CheckpointWriter(tmp_path)
    writer.save(1, some_tensors(), {}, {})
    writer.wait()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"


def test_one_prefix_can_be_loaded_alone(two_checkpoints):
    model = {key: tensor for key, tensor in some_tensors(1).items() if key.startswith("model.")}
    loaded = zeros_like(model)
    load_checkpoint(two_checkpoints / "step-00000001", loaded, prefix="model.")
    assert_equal(loaded, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.weight"), "holds model.weight, unknown here"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "lacks model.extra"),
        (lambda t: t.update({"model.weight": torch.zeros(4, 6)}), r"model.weight has shape \[6, 4\].*\[4, 6\]"),
        (lambda t: t.update({"model.half": torch.zeros(5)}), "model.half has dtype torch.bfloat16"),
    ],
)
def test_another_models_checkpoint_is_refused_by_name_and_nothing_changes(two_checkpoints, change, message):
    target = zeros_like(some_tensors())
    change(target)
    with pytest.raises(UserError, match=message):
        load_checkpoint(two_checkpoints / "step-00000001", target)
    assert all(not tensor.any() for tensor in target.values())


def test_only_the_last_ones_are_kept(tmp_path):
    write(tmp_path, [1, 2, 3, 4], keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_milestones_are_kept_for_ever_and_the_best_as_long_as_they_are():
    figures = {10: 3.0, 20: None, 30: 2.0, 40: float("nan"), 50: 2.5, 60: 2.0, 70: 9.0}
    assert superseded(figures, keep_last=2) == [10, 20, 30, 40, 50]
    assert superseded(figures, keep_last=1, keep_every_steps=20) == [10, 30, 50]
    assert superseded(figures, keep_last=1, keep_best=2) == [10, 20, 40, 50]
    assert superseded(figures, keep_last=1, keep_best=1) == [10, 20, 30, 40, 50]  # of equal ones the newest


def test_a_best_checkpoint_is_known_as_such_after_a_restart(tmp_path):
    for step, figure in ((1, 0.5), (2, 0.1), (3, 0.4), (4, None)):
        writer = CheckpointWriter(tmp_path, keep_last=1, keep_best=1)
        writer.save(step, some_tensors(step), {}, {}, figure)
        writer.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004"]
    with pytest.raises(UserError, match="keep_best -1"):
        CheckpointWriter(tmp_path, keep_best=-1)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write(folder, [1, 2])
    return folder


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_flipped_bit_or_cut_is_found_and_the_checkpoint_passed_over(two_checkpoints, tmp_path_factory, data):
    said = io.StringIO()
    folder = tmp_path_factory.mktemp("damage") / "copy"
    shutil.copytree(two_checkpoints, folder)
    newest = folder / "step-00000002"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    if file.name == "manifest.json":
        content = content.rstrip()  # the line's end says nothing
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    file.write_bytes(content)
    with contextlib.redirect_stderr(said):
        assert newest_checkpoint(folder) == folder / "step-00000001"
    assert re.fullmatch(rf"passed over a damaged checkpoint: .*{file.name}.*\n", said.getvalue())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 99, "files": {}}'])
def test_a_damaged_manifest_is_passed_over(tmp_path, two_checkpoints, content, capsys):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    (tmp_path / "step-00000002" / "manifest.json").write_text(content)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert "passed over" in capsys.readouterr().err


def test_tensors_damaged_after_they_were_verified_are_an_error_of_the_user(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "step-00000001" / "tensors").iterdir()
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 16 + content[16:])
    with pytest.raises(UserError, match="tensors cannot be read"):
        load_checkpoint(tmp_path / "step-00000001", zeros_like(some_tensors()))


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    tensors = tmp_path / "step-00000001" / "tensors"
    (tensors / "shard-00002-model-00001-of-00001.safetensors").write_bytes(next(tensors.iterdir()).read_bytes())
    with pytest.raises(UserError, match=r"shard-00002.*not in the manifest"):
        load_checkpoint(tmp_path / "step-00000001", zeros_like(some_tensors()))


def test_a_damaged_later_checkpoint_is_replaced_and_never_pushes_out_a_good_one(tmp_path, capsys):
    write(tmp_path, [1, 3])
    (tmp_path / "step-00000003" / "state.json").write_text("{}")
    write(tmp_path, [2], keep_last=1)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    assert "passed over" in capsys.readouterr().err
    write(tmp_path, [3], keep_last=1)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003"]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "no") is None


def test_a_failed_save_surfaces_at_the_next_call_and_leaves_nothing(tmp_path):
    lease, other = RunLease(tmp_path / "run"), RunLease(tmp_path / "elsewhere")
    writer = CheckpointWriter(tmp_path / "checkpoints", lease)
    lease.path.write_text(other.path.read_text())  # as if another incarnation had taken it
    writer.save(1, some_tensors(), {}, {})
    with pytest.raises(UserError, match="taken over"):
        writer.save(2, some_tensors(), {}, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_disk_that_refuses_is_an_error_of_the_user_that_names_the_folder(tmp_path):
    writer = CheckpointWriter(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("a file in its place")
    writer.save(1, some_tensors(), {}, {})
    with pytest.raises(UserError, match=r"step 1 could not be written to .*checkpoints: .*Not a directory"):
        writer.wait()
    writer.wait()


def test_a_state_that_is_not_json_is_refused_at_the_call(tmp_path):
    with pytest.raises(TypeError):
        CheckpointWriter(tmp_path).save(1, some_tensors(), {"x": torch.zeros(1)}, {})


SLOW_SAVER = """
import sys, time, torch
import lvm.runtime.checkpoint as checkpoint
folder, where = sys.argv[1:]
writer = checkpoint.CheckpointWriter(folder)
tensors = {f"model.{i}": torch.full((64, 64), float(i)) for i in range(8)}
writer.save(1, tensors, {"step": 1}, {})
writer.wait()

def stop(*_, **__):
    print("saving", flush=True)
    time.sleep(60)

target, name = {
    "after the tensors": (checkpoint, "_describe"),
    "before the rename": (checkpoint, "sync_folder"),
}[where]
setattr(target, name, stop)
writer.save(2, tensors, {"step": 2}, {})
writer.wait()
"""


@pytest.mark.parametrize("where", ["after the tensors", "before the rename"])
def test_a_kill_during_a_save_leaves_the_previous_checkpoint(tmp_path, where):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW_SAVER, str(tmp_path), where], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(path.name.startswith(".tmp-step-00000002") for path in tmp_path.iterdir())
    path = newest_checkpoint(tmp_path)
    assert path == tmp_path / "step-00000001"
    tensors = {f"model.{i}": torch.zeros(64, 64) for i in range(8)}
    assert load_checkpoint(path, tensors) == {"step": 1}
    assert all((tensors[f"model.{i}"] == i).all() for i in range(8))
    CheckpointWriter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


RANK = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from lvm.runtime.checkpoint import CheckpointWriter, load_checkpoint
from lvm.runtime.errors import end_rank
folder = sys.argv[1]
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
full = {
    "model.even": torch.arange(24.0).view(6, 4),
    "model.uneven": torch.arange(9.0).view(3, 3),
    "model.single": torch.arange(5.0).view(1, 5),
    "model.second": torch.arange(10.0).view(2, 5).bfloat16(),
    "model.same": torch.arange(4.0),
}
axes = {"model.second": Shard(1), "model.same": Replicate()}
tensors = {key: distribute_tensor(value, mesh, [axes.get(key, Shard(0))]) for key, value in full.items()}
tensors["optim.step"] = torch.tensor(3.0)
writer = CheckpointWriter(folder)
for step in (1, 2):
    writer.save(step, tensors, {"step": step, "rank": dist.get_rank()}, {"plan": "x"})
    for _ in range(20):  # training goes on beside the save
        dist.all_reduce(torch.ones(1))
writer.wait()
for tensor in tensors.values():
    tensor.zero_()
assert load_checkpoint(folder + "/step-00000002", tensors) == {"step": 2, "rank": 0}
for key, value in full.items():
    assert torch.equal(tensors[key].full_tensor(), value), key
assert tensors["optim.step"].item() == 3.0
dist.destroy_process_group()
end_rank()
"""


def run_ranks(world_size: int, script: str, *arguments: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], env=common | {"RANK": str(rank)})
        for rank in range(world_size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * world_size


def test_what_two_ranks_saved_two_ranks_and_one_load_alike(tmp_path):
    run_ranks(2, RANK, str(tmp_path))
    path = newest_checkpoint(tmp_path)
    assert path == tmp_path / "step-00000002"
    assert json.loads((path / "manifest.json").read_text())["world_size"] == 2
    assert len(list((path / "tensors").iterdir())) == 2
    loaded = {
        "model.even": torch.zeros(6, 4),
        "model.uneven": torch.zeros(3, 3),
        "model.single": torch.zeros(1, 5),
        "model.second": torch.zeros(2, 5, dtype=torch.bfloat16),
        "model.same": torch.zeros(4),
        "optim.step": torch.tensor(0.0),
    }
    assert load_checkpoint(path, loaded) == {"step": 2, "rank": 0}
    assert loaded.pop("optim.step") == 3
    for key, tensor in loaded.items():
        assert torch.equal(tensor.flatten(), torch.arange(tensor.numel()).to(tensor.dtype)), key


def test_training_goes_on_while_a_save_is_written(tmp_path, monkeypatch):
    disk_is_free = threading.Event()
    describe = checkpoint._describe
    monkeypatch.setattr(checkpoint, "_describe", lambda file: (disk_is_free.wait(), describe(file))[1])
    writer = CheckpointWriter(tmp_path)
    writer.save(1, some_tensors(), {}, {})  # returns though nothing can be written yet
    assert newest_checkpoint(tmp_path) is None
    disk_is_free.set()
    writer.wait()
    assert newest_checkpoint(tmp_path) is not None
