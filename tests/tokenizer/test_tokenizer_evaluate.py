"""Scores stream: the known numbers, whatever the batch; unreadable pictures are counted; the command writes all."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lvm.commands.evaluate_tokenizer import main
from lvm.runtime import UserError
from tokenizer import VQGAN, TokenizerError, VQGANConfig
from tokenizer.evaluate import EvenSample, Picture, PictureStream, decibels, evaluate, thumbnails

CONFIG = VQGANConfig(
    hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, quantized_embed_dim=4,
    num_embeddings=16, resolution=16, norm_groups=2,
)  # fmt: skip
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    return VQGAN(CONFIG).eval()


def photos(number, side=16):
    return RNG.integers(0, 256, (number, side, side, 3), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_scores_are_those_of_the_decoded_pictures_and_do_not_depend_on_the_batch(vq):
    pictures = photos(11)
    stream = [Picture("image" if n % 3 else "depth", p) for n, p in enumerate(pictures)]
    one = evaluate(vq, stream, batch_size=4).scores
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    codes = vq.encode(pixels)
    decoded = (vq.decode(codes) * 255).round() / 255
    psnrs = [decibels(float(e)) for e in ((pixels - decoded) ** 2).mean((1, 2, 3))]
    assert one["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-3)
    assert one["channels"]["depth"]["psnr"] == pytest.approx(np.mean(psnrs[::3]), abs=1e-3)
    assert one["channels"]["depth"]["pictures"] == 4 and one["pictures"] == 11
    assert one["tokens"] == codes.numel() and one["dead_codes"] == 16 - len(codes.unique())
    assert one["code_usage"] == len(codes.unique()) / 16 and one["pictures_per_second"] > 0
    for batch_size in (1, 64):
        other = evaluate(vq, iter(stream), batch_size=batch_size).scores
        for name in ("psnr", "ssim", "thumbnail_psnr", "code_usage", "code_perplexity"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), name


def test_thumbnails_keep_flat_pictures_and_blur_a_checkerboard_to_gray():
    flat = torch.full((1, 3, 16, 16), 51 / 255)
    torch.testing.assert_close(thumbnails(flat, (8, 8)), flat)
    checkers = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8).expand(1, 3, 16, 16)
    assert (thumbnails(checkers, (8, 8)) - 0.5).abs().max() < 0.003


def test_a_stream_is_read_no_further_than_asked_and_nothing_is_refused(vq):
    drawn = []

    def endless():
        while True:
            drawn.append(None)
            yield Picture("image", photos(1)[0])

    assert evaluate(vq, itertools.islice(endless(), 9), batch_size=4).scores["pictures"] == 9 == len(drawn)
    with pytest.raises(TokenizerError, match="there are no pictures"):
        evaluate(vq, [])


def test_what_a_judge_says_is_averaged_by_channel_and_nan_left_out(vq):
    pictures = photos(6)
    seen = []

    def judge(channel, picture, decoded, photo):
        seen.append((channel, photo is not None, decoded.shape))
        return {"even": float(len(seen)) if len(seen) % 2 else float("nan")} if channel == "depth" else {}

    stream = [Picture("depth", p, pictures[0]) for p in pictures[:4]] + [Picture("image", p) for p in pictures[4:]]
    rows = evaluate(vq, stream, judge=judge).scores["channels"]
    assert rows["depth"]["even"] == 2.0 and "even" not in rows["image"]
    assert seen[0] == ("depth", True, (16, 16, 3)) and seen[-1][:2] == ("image", False)


def test_rfid_is_the_distance_of_the_images_features_and_lpips_a_mean(vq):
    pictures = photos(6)
    widen = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    stream = [*(Picture("image", p) for p in pictures), Picture("depth", pictures[0])]
    scores = evaluate(
        vq, stream, batch_size=4, lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)),
        inception=lambda pixels: pixels.mean((2, 3)) @ widen,
    ).scores  # fmt: skip
    assert scores["rfid_pictures"] == 6 and scores["rfid"] > 0 and 0 < scores["lpips"] < 1
    assert evaluate(vq, stream[:1], inception=lambda p: p.mean((2, 3)) @ widen).scores.get("rfid") is None


@pytest.mark.parametrize("total", [0, 1, 3, 4, 7, 8, 100])
def test_an_even_sample_holds_few_and_is_evenly_spaced(total):
    sample = EvenSample(4)
    for i in range(total):
        if sample.wants():
            sample.keep(i)
        assert len(sample.kept) < 8
    chosen = sample.chosen()
    assert len(chosen) == min(4, total) and chosen == sorted(set(chosen))
    if total == 100:
        assert chosen[0] == 0 and chosen[-1] >= 75 and max(np.diff(chosen)) <= 3 * min(np.diff(chosen))


def test_a_folder_streams_what_lies_in_it_with_the_photo_of_each_annotation(tmp_path):
    for i, picture in enumerate(photos(5)):
        save(tmp_path / f"images/{i}.png", picture)
        save(tmp_path / f"masks/{i}.png", (picture[..., 0] > 99).astype(np.uint8))
    found = list(PictureStream(str(tmp_path), 16, max_pictures=7))
    assert [p.channel for p in found] == ["image", "segmentation"] * 3 + ["image"]
    assert found[0].photo is None and np.array_equal(found[1].photo, found[0].pixels)
    assert {p.channel for p in PictureStream(str(tmp_path), 16, 99, ["derived=[gray]"])} == {
        "image", "segmentation", "gray"
    }  # fmt: skip


def test_held_out_groups_alone_are_taken_where_asked_for(tmp_path):
    for i, picture in enumerate(photos(40, 8)):
        save(tmp_path / f"{i}.png", picture)
    everything = len(list(PictureStream(str(tmp_path), 8, 99)))
    some = len(list(PictureStream(str(tmp_path), 8, 99, held_out_per_mille=300)))
    assert everything == 40 and 0 < some < 30
    np.save(tmp_path / "a.npy", np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8))
    rows = [int(p.pixels[0, 0, 0]) for p in PictureStream(str(tmp_path / "a.npy"), 8, 99, held_out_per_mille=300)]
    assert rows == [7, 8, 9]


def test_unreadable_pictures_are_counted_and_named_and_a_folder_of_nothing_else_is_refused(tmp_path):
    for i, picture in enumerate(photos(3, 32)):
        save(tmp_path / f"{i}.jpg", picture)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:400])
    stream = PictureStream(str(tmp_path), 16, 99)
    for _ in range(2):  # counted anew each time
        assert len(list(stream)) == 3 and stream.num_unreadable == 2
    assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in stream.unreadable) == ["empty.jpg", "short.jpg"]
    for i in range(3):
        (tmp_path / f"{i}.jpg").unlink()
    with pytest.raises(UserError, match=r"yields no pictures to judge .*; 2 could not be read, as .*\.jpg: "):
        list(PictureStream(str(tmp_path), 16, 99))


def test_arrays_of_another_size_and_options_for_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", photos(3, 8))
    with pytest.raises(UserError, match=r"uint8 \[3, 8, 8, 3\]; it must be uint8 \[n, 16, 16, 3\]"):
        PictureStream(str(tmp_path / "a.npy"), 16, 9)
    with pytest.raises(UserError, match=r"'resize=crop' is an option of a source"):
        PictureStream(str(tmp_path / "a.npy"), 8, 9, ["resize=crop"])


class Corners(torch.nn.Module):
    """Twelve features instead of Inception's 2048, whose eigenvectors take seconds."""

    def forward(self, pixels):
        return pixels[:, :, ::15, ::15].flatten(1)


def test_the_command_writes_scores_preparation_and_sheet(vq, tmp_path, capsys, monkeypatch):
    vq.save_pretrained(tmp_path / "vq")
    for i, picture in enumerate(photos(4, 24)):
        save(tmp_path / f"data/images/{i}.png", picture)
        save(tmp_path / f"data/masks/{i}.png", (picture[..., 0] > 99).astype(np.uint8))
    (tmp_path / "data/images/empty.png").write_bytes(b"")
    monkeypatch.setattr("lvm.commands.evaluate_tokenizer.load_inception", lambda file: Corners())
    main([
        str(tmp_path / "vq"), "--data", str(tmp_path / "data"), "--json", str(tmp_path / "a.json"), "resize=crop",
        "--sheet", str(tmp_path / "a.png"), "--inception", str(tmp_path / "inception.pth"), "--device", "cpu",
    ])  # fmt: skip
    scores, said = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().out
    assert scores["pictures"] == 8 and scores["channels"]["segmentation"].keys() >= {"psnr", "miou", "thumbnail_psnr"}
    for name in ("psnr", "ssim", "code_usage", "code_perplexity", "thumbnail_psnr", "dead_codes", "rfid", "tokens"):
        assert isinstance(scores[name], (int, float)), name
    assert (scores["resize"], scores["crop"], scores["size"], scores["range"]) == ("crop", "centre", 16, [0.0, 1.0])
    assert scores["unreadable"] == 1 and "empty.png" in scores["unreadable_files"][0]
    assert "central square resized to 16 x 16" in said and "8 x 8 thumbnail blown up" in said and "empty.png" in said
    assert Image.open(tmp_path / "a.png").size[0] > 300


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max-pictures", "0"], "--max-pictures 0: must be at least 1"),
        (["--held-out", "2000"], "--held-out 2000: must be from 0 to 1000"),
        (["--device", "tpu9"], "--device 'tpu9' cannot be used"),
        (["--inception", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["resise=crop"], "unknown config key 'resise'"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line(vq, tmp_path, arguments, message):
    vq.save_pretrained(tmp_path / "vq")
    save(tmp_path / "data/a.png", photos(1)[0])
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path / "vq"), "--data", str(tmp_path / "data"), "--json", str(tmp_path / "a.json"), *arguments])
    assert not (tmp_path / "a.json").exists()


def test_a_tokenizer_whose_pictures_are_not_square_is_refused_by_the_command(tmp_path):
    VQGAN(dataclasses.replace(CONFIG, grid=(4, 16))).save_pretrained(tmp_path / "vq")
    with pytest.raises(UserError, match=r"vq has a grid of 4 x 16 codes, but .* squares of 16 px, which fill 8 x 8; "):
        main([str(tmp_path / "vq"), "--data", str(tmp_path), "--json", str(tmp_path / "a.json")])


def test_pictures_that_are_not_square_are_scored_from_python(tmp_path):
    wide = VQGAN(dataclasses.replace(CONFIG, grid=(6, 16))).eval()
    scores = evaluate(wide, [Picture("image", photo) for photo in photos(3, 32)[:, :12]]).scores
    assert scores["pictures"] == 3 and np.isfinite(scores["psnr"])
