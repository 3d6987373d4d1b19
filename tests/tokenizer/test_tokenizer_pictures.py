"""The pictures of a training: drawn by keys, the same for any number of ranks; read by several processes, or a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvm.runtime import UserError
from tokenizer.pictures import TrainingPictures, read_pictures, save_sheet, sheet


def numbered(n: int = 50, side: int = 8, **options) -> TrainingPictures:
    """Picture i is all i, but for its place: a gradient to the right in the second channel."""
    pictures = np.zeros((n, side, side, 3), np.uint8)
    pictures[..., 0] = np.arange(n)[:, None, None]
    pictures[..., 1] = np.arange(side)
    return TrainingPictures(pictures, pictures[:2], **options)


@pytest.mark.parametrize("options", [{}, {"crop": 4, "flip": True}])
def test_one_rank_and_two_read_the_same_pictures_crops_and_flips(options):
    pictures = numbered()

    def as_set(parts):
        return sorted(
            picture.tobytes() for part in range(parts) for picture in pictures.batch(3, 7, 16, (part, parts), **options)
        )

    assert as_set(1) == as_set(2) == as_set(8)
    again = pictures.batch(3, 7, 16, **options)
    assert np.array_equal(again, pictures.batch(3, 7, 16, **options))
    assert not np.array_equal(again, pictures.batch(3, 8, 16, **options))
    assert not np.array_equal(again, pictures.batch(4, 7, 16, **options))


def test_crops_lie_everywhere_and_half_are_mirrored_only_where_asked_for():
    pictures = numbered()
    crops = pictures.batch(0, 0, 400, crop=4)
    assert crops.shape == (400, 4, 4, 3)
    assert set(crops[:, 0, 0, 1]) == {0, 1, 2, 3, 4} and (np.diff(crops[..., 1].astype(int), axis=2) == 1).all()
    mirrored = np.diff(pictures.batch(0, 0, 400, flip=True)[:, 0, :2, 1].astype(int), axis=1) < 0
    assert 150 < mirrored.sum() < 250


def test_sources_are_drawn_by_their_weights_whatever_their_size():
    pictures = numbered(100, sizes=(90, 10), weights=(1.0, 3.0))
    drawn = np.concatenate([pictures.batch(0, step, 100)[:, 0, 0, 0] for step in range(20)])
    assert 0.7 < (drawn >= 90).mean() < 0.8 and set(drawn[drawn >= 90]) == set(range(90, 100))


def test_arrays_and_folders_are_read_together_and_all_are_held_out_in_turn(tmp_path):
    np.save(tmp_path / "a.npy", np.full((40, 8, 8, 3), 200, np.uint8))
    (tmp_path / "photos").mkdir()
    for i in range(30):
        Image.new("RGB", (20, 10), (i, 0, 0)).save(tmp_path / "photos" / f"{i:02d}.png")
    where = [str(tmp_path / "a.npy"), str(tmp_path / "photos")]
    # "derived" channels (gray, noisy ...) come with each photo
    pictures = read_pictures(where, 8, 60, held_out_per_mille=100, weights=[2.0, 1.0])
    assert pictures.sizes[0] == 36 and pictures.sizes[1] >= 15 and sum(pictures.sizes) == len(pictures.train)
    assert (pictures.train[:36] == 200).all() and (pictures.train[36:, 0, 0, 0] != 200).any()
    if len(pictures.held_out) > 4:
        assert (pictures.held_out[0] == 200).all() and not (pictures.held_out[1] == 200).all()
    assert pictures.fingerprint() != read_pictures(where, 8, 60, held_out_per_mille=100).fingerprint()


def test_processes_read_what_one_reads(tmp_path):
    (tmp_path / "world.yaml").write_text("kind: world\nnum_scenes: 10\nnum_clips: 2\nnum_frames: 4\n")
    alone, two = (read_pictures(str(tmp_path / "world.yaml"), 16, 80, 2, 100, workers=n) for n in (0, 2))
    assert np.array_equal(alone.train, two.train) and np.array_equal(alone.held_out, two.held_out)
    assert len(alone.train) + len(alone.held_out) >= 80


def test_broken_pictures_are_counted_and_all_are_named_in_a_file(tmp_path):
    for folder in ("a", "b", "whole"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "a" / "2.png").write_bytes((tmp_path / "a" / "2.png").read_bytes()[:40])
    (tmp_path / "a" / "3.png").write_bytes(b"")
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    said, file = [], tmp_path / "run" / "unreadable.jsonl"
    where = [str(tmp_path / folder) for folder in ("a", "whole", "b")]
    pictures = read_pictures(where, 8, 100, held_out_per_mille=0, say=said.append, unreadable_file=file)
    assert pictures.sizes == (2, 4, 3)
    assert len(said) == 2 and "2 units could not be read" in said[0] and ".png: " in said[0]
    assert all(line.endswith(f"all are named in {file}") for line in said)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted((line["source"], Path(line["file"]).name, bool(line["reason"])) for line in lines) == [
        (where[0], "2.png", True),
        (where[0], "3.png", True),
        (where[2], "1.png", True),
    ]
    read_pictures(where[1], 8, 100, held_out_per_mille=0, say=said.append, unreadable_file=file)
    assert not file.exists() and len(said) == 2


def test_what_yields_nothing_or_does_not_fit_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 16, 16, 3), np.uint8))
    np.save(tmp_path / "float.npy", np.full((4, 16, 16, 3), np.nan, np.float32))
    for name, message in (("a.npy", r"\[4, 8, 8, 3\]"), ("none.npy", "yields no pictures"), ("float.npy", "float32")):
        with pytest.raises(UserError, match=message):
            read_pictures(str(tmp_path / name), 16, 100)
    with pytest.raises(UserError, match="picture_weights"):
        read_pictures([str(tmp_path / "a.npy")], 8, 100, weights=[1.0, 2.0])
    with pytest.raises(UserError, match="does not exist"):
        read_pictures(str(tmp_path / "missing"), 8, 100)


def test_sheets_have_room_for_large_pictures(tmp_path):
    pictures = np.zeros((5, 8, 8, 3), np.uint8)
    assert sheet(pictures, pictures, columns=4, zoom=1).shape == (2 * 19, 4 * 9, 3)
    large = np.zeros((20, 256, 256, 3), np.uint8)
    save_sheet(tmp_path / "sheet.png", large, large)
    assert Image.open(tmp_path / "sheet.png").width < 2100


SHARE = """
import json, sys, time
import numpy as np, torch.distributed as dist
from lvm.runtime.distributed import Distributed
from lvm.runtime.errors import end_rank
from tokenizer.pictures import TrainingPictures, shared_between_ranks
rank, folder, fail = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "fail"
dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
def read():
    assert rank == 0, "only the machine's first rank reads"
    if fail:
        raise ValueError("no pictures here")
    train = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    return TrainingPictures(train, train[:1], (1, 3), (1.0, 2.0))
try:
    p = shared_between_ranks(read, Distributed(), rank, folder=folder)
    result = [p.train.sum().item(), p.held_out.shape[0], p.sizes, p.weights, p.fingerprint()]
except Exception as error:
    result = str(error)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(result, file)
dist.destroy_process_group()
end_rank()
"""


@pytest.mark.parametrize("case", ["read", "fail"])
def test_a_machines_first_rank_reads_for_all(tmp_path, case):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path), case]
    ranks = [subprocess.Popen([sys.executable, "-c", SHARE, str(r), *arguments], env=environment) for r in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    if case == "fail":
        assert first == "no pictures here" and "rank 0 failed with ValueError: no pictures here" in second
    else:
        assert first == second and first[:4] == [sum(range(48)), 1, [1, 3], [1.0, 2.0]]
    assert not list(tmp_path.glob("tokenizer-pictures-*"))
