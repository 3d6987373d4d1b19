"""lvm inspect: a store looked at, beside what it was made of, with the sentences that training reads."""

import numpy as np
import pytest
from PIL import Image

from lvm.commands import run
from lvm.commands.inspect import counts, item_rows
from lvm.runtime import UserError
from lvm.sources import open_source
from lvm.store import TokenStore, exclude, run_job
from tokenizer import VQGAN, VQGANConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection of photos with depth and of clips, its store, and the tokenizer's folder."""
    folder = tmp_path_factory.mktemp("inspect")
    random = np.random.default_rng(0)
    for n in range(4):
        for path in (f"photos/images/{n}.png", f"films/frames/walk/{n}.png"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / path)
    (folder / "source.yaml").write_text(
        f"kind: collection\nname: both\nroot: {folder}\nsources:\n"
        "  photos: {kind: pictures, path: photos, derived: [gray]}\n  films: {kind: pictures, path: films}\n"
    )
    small = {"hidden_channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1, "norm_groups": 2, "resolution": 16}
    vq = VQGAN(VQGANConfig(**small, z_channels=4, quantized_embed_dim=4, num_embeddings=16)).eval()
    vq.save_pretrained(folder / "tokenizer")
    source = open_source(folder / "source.yaml")
    run_job(source, folder / "store", vq, workers=0, progress=False, tokenizer=str(folder / "tokenizer"))
    return folder


def test_pictures_are_counted_by_source_and_channel(made):
    store = TokenStore(made / "store")
    assert store.channels == ("image", "gray")
    assert counts(store) == [["films", 1, 4, 0, 4 * 64], ["photos", 4, 4, 4, 8 * 64], ["all", 5, 8, 4, 12 * 64]]


def test_originals_stand_beside_what_their_tokens_say(made):
    store = TokenStore(made / "store")
    vq = VQGAN.from_pretrained(made / "tokenizer")
    source = open_source(made / "source.yaml")
    rows = item_rows(store, vq, 5, source)
    by_name = {row.title.split()[0]: row for row in rows}
    photo = next(row for name, row in by_name.items() if name.startswith("photos/"))
    number = int(photo.title.split()[0].rsplit("/", 1)[1])
    unit = [source.unit_id(i) for i in range(len(source))].index(f"photos/{number}")
    np.testing.assert_array_equal(photo.cells[0].original, source.read(unit, 16)[0].channels["image"][0])
    assert [cell.name for cell in photo.cells] == ["image", "gray"]
    assert len(by_name["films/walk"].cells) == 4 and by_name["films/walk"].cells[3].original is not None


def test_a_page_holds_all_of_it(made, capsys):
    page = made / "page.html"
    assert run(["inspect", str(made / "store"), "--out", str(page), "--originals", str(made / "source.yaml")]) == 0
    assert "5 items" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<img") == 2 * (4 * 2 + 4) and "http" not in text
    assert ">films<" in text and "photos/0" in text


def test_sentences_are_shown_as_training_reads_them(made):
    config = made / "data.yaml"
    config.write_text(
        f"seq_len: 1100\npacking: aligned\nseed: 0\nheld_out_per_mille: 0\nweights_by: sentences\nperiod: 8\n"
        f"sources: {{both: {{store: {made / 'store'}}}}}\n"
        "entries:\n"
        "  colour: {source: both, weight: 1, recipe: pairs, input: gray, output: image, agree: none, pictures: 4}\n"
    )
    page = made / "sentences.html"
    command = ["inspect", str(made / "store"), "--out", str(page), "--sentences", str(config), "--windows", "1"]
    assert run(command) == 0
    text = page.read_text()
    assert "colour (pairs)" in text and text.count("image →") % 2 == 0 and "image →" in text


def test_items_taken_down_are_not_shown(made, tmp_path):
    import shutil

    shutil.copytree(made / "store", tmp_path / "store")
    exclude(tmp_path / "store", ["photos/1", "films/walk"])
    store = TokenStore(tmp_path / "store")
    rows = item_rows(store, VQGAN.from_pretrained(made / "tokenizer"), 5)
    assert {row.title.split()[0] for row in rows} == {"photos/0", "photos/2", "photos/3"}
    assert counts(store)[-1][1] == 3


def test_another_source_and_another_suffix_are_one_line(made, tmp_path):
    store = str(made / "store")
    with pytest.raises(UserError, match=r"is not what .* was made of"):
        run(["inspect", store, "--out", str(tmp_path / "a.png"), "--originals", str(made / "photos")])
    with pytest.raises(UserError, match=r"ends in \.png or \.html"):
        run(["inspect", store, "--out", str(tmp_path / "a.txt")])
