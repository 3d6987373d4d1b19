"""lvm tokenize, store and inspect, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from lvm.commands import run
from lvm.runtime import UserError
from lvm.store import TokenStore


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images/cat", "images/dog", "masks/cat"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    for i in range(6):
        name = f"{'cat' if i < 3 else 'dog'}/{i}"
        photo = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(photo).save(tmp_path / "photos" / "images" / f"{name}.jpg")
        if i < 3:
            Image.fromarray(photo[..., 0] // 64).save(tmp_path / "photos" / "masks" / f"{name}.png")
    return tmp_path / "photos"


def test_tokenize_then_ls_verify_and_inspect(photos, tokenizer_folder, tmp_path, capsys):
    store = tmp_path / "store"
    command = ["tokenize", str(photos), str(store), "--tokenizer", str(tokenizer_folder), "--workers", "1", "views=1"]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "30 pictures encoded" not in said and "3 pictures lack an annotation" in said
    assert (store / "unmatched.txt").read_text().splitlines() == [f"dog/{i}: no segmentation" for i in (3, 4, 5)]
    assert len(TokenStore(store)) == 12 and TokenStore(store).labels == ("cat", "dog")
    assert run(command) == 0
    assert "no new work" in capsys.readouterr().out
    assert run(["store", "ls", str(store)]) == 0
    listed = capsys.readouterr().out
    assert "photos (6 units, 16 px, squash)" in listed and "segmentation  3 pictures" in listed
    assert run(["store", "verify", str(store)]) == 0
    assert run(["inspect", str(store), "--out", str(tmp_path / "sheet.png"), "--items", "4"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 4 * 96 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100


def test_tasks_of_an_array_share_the_work(photos, tokenizer_folder, tmp_path, capsys):
    store = tmp_path / "store"
    command = ["tokenize", str(photos), str(store), "--tokenizer", str(tokenizer_folder), "--workers", "0"]
    command += ["--shard-size", "2", "--num-shards", "2"]
    assert run([*command, "--shard", "0"]) == 0
    assert "waits for the shards of other tasks" in capsys.readouterr().out
    assert run([*command, "--shard", "1"]) == 0
    assert "complete" in capsys.readouterr().out and len(TokenStore(store).shards) == 3
    with pytest.raises(UserError, match=r"shard 2 of 2: must be 0..1"):
        run([*command, "--shard", "2"])


def test_size_and_broken_limit_are_heard(photos, tokenizer_folder, tmp_path):
    (photos / "images" / "cat" / "0.jpg").write_bytes(b"no picture")
    command = ["tokenize", str(photos), str(tmp_path / "s"), "--tokenizer", str(tokenizer_folder), "--workers", "0"]
    with pytest.raises(UserError, match=r"0.jpg: is not a picture"):
        run(command)
    assert run([*command, "--max-broken", "20%"]) == 0
    assert run([*command[:2], str(tmp_path / "t"), *command[3:], "--size", "32", "--max-broken", "0.2"]) == 0
    assert TokenStore(tmp_path / "t").grid == (8, 8)


def test_the_precision_is_heard_and_kept(photos, tokenizer_folder, tmp_path):
    command = ["tokenize", str(photos), str(tmp_path / "s"), "--tokenizer", str(tokenizer_folder), "--workers", "0"]
    assert run([*command, "--precision", "exact"]) == 0
    assert json.loads((tmp_path / "s" / "plan.json").read_text())["precision"] == "exact"
    with pytest.raises(UserError, match="says precision = 'exact', this job 'auto'"):
        run(command)


def test_a_damaged_shard_is_named_and_the_exit_code_is_2(photos, tokenizer_folder, tmp_path, capsys):
    from lvm.runtime.errors import exit_with_one_line

    run(["tokenize", str(photos), str(tmp_path / "s"), "--tokenizer", str(tokenizer_folder), "--workers", "0"])
    tar = tmp_path / "s" / "shards" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit) as exit:
        exit_with_one_line(lambda: run(["store", "verify", str(tmp_path / "s")]))
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "shard 00000" in error and "damaged" in error


def test_inspect_needs_the_tokenizer_of_the_store(photos, tokenizer_folder, tmp_path, vqgan):
    import torch

    from tokenizer import VQGAN

    torch.manual_seed(5)
    VQGAN(vqgan.config).save_pretrained(tmp_path / "other")
    run(["tokenize", str(photos), str(tmp_path / "s"), "--tokenizer", str(tokenizer_folder), "--workers", "0"])
    with pytest.raises(UserError, match=r"other .* is not the one .* was made with"):
        run(["inspect", str(tmp_path / "s"), "--out", str(tmp_path / "a.png"), "--tokenizer", str(tmp_path / "other")])
    with pytest.raises(UserError, match=r"ends in .png"):
        run(["inspect", str(tmp_path / "s"), "--out", str(tmp_path / "a.txt")])
    assert not (tmp_path / "a.png").exists()


def test_cat_prints_the_codes_of_an_item(photos, tokenizer_folder, tmp_path, capsys):
    store = tmp_path / "store"
    run(["tokenize", str(photos), str(store), "--tokenizer", str(tokenizer_folder), "--workers", "0", "views=1"])
    capsys.readouterr()
    opened = TokenStore(store)
    zero = int(np.flatnonzero(opened.view == 0)[0])
    assert run(["store", "cat", str(store), opened.id(zero)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["view"], line["channel"], line["frame"]) for line in lines} >= {(0, "image", 0), (1, "masked", 0)}
    (image,) = (line["codes"] for line in lines if line["channel"] == "image")
    assert image == opened.pictures(np.array([zero]), "image")[0].tolist()
    assert run(["store", "cat", str(store), opened.id(zero), "--channel", "image"]) == 0
    assert json.loads(capsys.readouterr().out)["codes"] == image
    with pytest.raises(UserError, match="has no item nobody"):
        run(["store", "cat", str(store), "nobody"])
    with pytest.raises(UserError, match="no channel 'pose'"):
        run(["store", "cat", str(store), opened.id(zero), "--channel", "pose"])


def test_merge_and_split_as_a_user_types_them(photos, tokenizer_folder, tmp_path, capsys):
    store, a, b = (str(tmp_path / name) for name in ("store", "a", "b"))
    run(["tokenize", str(photos), store, "--tokenizer", str(tokenizer_folder), "--workers", "0", "views=0"])
    (tmp_path / "ids.txt").write_text(TokenStore(store).id(0) + "\n")
    assert run(["store", "split", store, a, b, "--ids", str(tmp_path / "ids.txt")]) == 0
    assert (len(TokenStore(a)), len(TokenStore(b))) == (5, 1)
    assert run(["store", "merge", str(tmp_path / "whole"), b, a]) == 0
    assert f"{tmp_path / 'whole'}: 2 shards, 6 items" in capsys.readouterr().out
    assert run(["store", "split", str(tmp_path / "whole"), a + "2", b + "2", "--share", "50%"]) == 0
    with pytest.raises(UserError, match=r"a exists; name another folder"):
        run(["store", "split", store, a, b, "--share", "0.5"])


def test_flat_pictures_are_left_out_unless_asked_for_and_the_card_says_the_command(
    photos, tokenizer_folder, tmp_path, capsys
):
    Image.new("RGB", (24, 24), (255, 255, 255)).save(photos / "images" / "dog" / "white.jpg")
    command = ["--tokenizer", str(tokenizer_folder), "--workers", "0", "views=0"]
    assert run(["tokenize", str(photos), str(tmp_path / "s"), *command]) == 0
    assert (
        "1 items of one flat colour were left out" in capsys.readouterr().out and len(TokenStore(tmp_path / "s")) == 6
    )
    assert f"`lvm tokenize {photos} {tmp_path}/s --tokenizer" in (tmp_path / "s" / "README.md").read_text()
    assert run(["tokenize", str(photos), str(tmp_path / "kept"), *command, "--keep-blank"]) == 0
    assert len(TokenStore(tmp_path / "kept")) == 7
