"""The shipped mixtures over a store of the world: windows rebuilt from the tars, and `lvm data plan|explain`."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from lvm.commands.data import main as data_command
from lvm.data import TokenPlan
from lvm.runtime import UserError
from lvm.runtime.config_files import load_config
from lvm.sources.world import WorldConfig, WorldSource
from lvm.store import TokenStore, build_store
from tokenizer import VQGAN, VQGANConfig

TOKENS = 16  # of a 32-px picture at 8 px a code


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(store folder, tokenizer folder) of 40 scenes under 4 latents and 4 clips; the tokenizer is untrained."""
    torch.manual_seed(0)
    config = VQGANConfig(
        hidden_channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, quantized_embed_dim=4,
        num_embeddings=128, resolution=32, norm_groups=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("world")
    vqgan = VQGAN(config).eval()
    vqgan.save_pretrained(folder / "other")
    with torch.no_grad():  # codes are latents of random pictures, so that pictures differ in their codes
        latents = vqgan.latents(torch.rand(16, 3, 32, 32)).permute(0, 2, 3, 1).reshape(-1, 4)
        vqgan.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:128]])
    vqgan.save_pretrained(folder / "tokenizer")
    source = WorldSource(WorldConfig(num_scenes=40, num_clips=4, num_latents=4))
    build_store(source, folder / "store", vqgan, shard_size=15, workers=1, progress=False, compile=False)
    return folder / "store", folder / "tokenizer"


def mixture(name, world, **changes):
    pictures = 4 if name == "debug" else 16
    config = load_config(
        f"data/{name}", [f"sources.world.store={world[0]}", f"seq_len={pictures * TOKENS}", "period=128"]
    )
    return {**config, **changes}


def read_from_tar(picture):
    with tarfile.open(f"{picture['store']}/shards/{picture['shard']}.tar") as tar:
        return np.load(io.BytesIO(tar.extractfile(picture["member"]).read()))[picture["row"]].astype(np.int64)


@pytest.mark.parametrize(("name", "packing"), [("demo", "aligned"), ("world", "concat"), ("debug", "aligned")])
def test_the_tars_rows_that_explain_names_rebuild_the_window(world, name, packing):
    plan = TokenPlan.from_config(mixture(name, world))
    assert plan.config.packing == packing and len(np.unique(plan.windows(0, 20).tokens)) > 20
    for i in (0, 1, 40, 12_345):
        tokens = np.full(plan.seq_len + 1, plan.pad)
        for sentence in plan.explain(i):
            whole = [plan.bos, *np.concatenate([read_from_tar(p) for p in sentence["pictures"]]), plan.eos]
            for place in range(max(0, sentence["start"]), min(plan.seq_len + 1, sentence["end"])):
                tokens[place] = whole[place - sentence["start"]]
        assert np.array_equal(tokens, plan[i])


def test_pairs_that_depend_on_a_latent_share_it_and_take_the_photo_from_view_0(world):
    plan, store = TokenPlan.from_config(mixture("demo", world)), TokenStore(world[0])
    seen = {}
    for i in range(120):
        for sentence in plan.explain(i):
            if sentence["recipe"] == "pairs":
                views = {p["view"] for p in sentence["pictures"]}
                assert len(views) == 1
                seen.setdefault(sentence["entry"], set()).update(views)
                photo = next(p for p in sentence["pictures"] if p["channel"] in ("image", "gray"))
                base = int(store.base[photo["item"]])
                assert store.view[base] == 0 and store.id(base) == photo["id"]
                assert store.locate(base, photo["channel"])[1:] == (photo["member"], photo["row"])
    steady = {"depth", "normal", "gray"}
    assert all(views == {0} for entry, views in seen.items() if entry in steady)
    assert all(0 not in views and len(views) > 1 for entry, views in seen.items() if entry not in steady)
    assert set(seen) == {name for name, entry in plan.config.entries.items() if entry.recipe == "pairs"}


def test_the_plan_command_says_what_the_mixture_holds(world, capsys):
    arguments = [f"data.sources.world.store={world[0]}", "seq_len=64", "data.period=128"]
    assert data_command(["plan", "data/debug", *arguments]) == 0
    text = capsys.readouterr().out
    assert (
        "stage 0, from window 0" in text and "segmentation" in text and "neither image nor depth of their own" in text
    )
    data_command(["plan", "data/debug", *arguments, "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert {row["entry"] for row in plan["entries"]} == {"segmentation", "depth", "clip", "single"}
    assert plan["fingerprint"] in text


def test_the_explain_command_names_and_draws_the_window(world, capsys, tmp_path):
    from PIL import Image

    arguments = ["data/debug", f"sources.world.store={world[0]}", "seq_len=64", "period=128"]
    out = tmp_path / "w.png"
    data_command(["explain", *arguments, "--window", "7", "--out", str(out), "--tokenizer", str(world[1])])
    text = capsys.readouterr().out
    assert text.count("shard 0000") >= 3 and "tokens 0.." in text
    data_command(["explain", *arguments, "--window", "7", "--json"])
    sentences = json.loads(capsys.readouterr().out)
    assert sum(len(s["pictures"]) for s in sentences) == text.count("shard 0000")
    assert Image.open(out).size == size_of_strips([len(s["pictures"]) for s in sentences])


def size_of_strips(pictures):
    """Of cells of 96 px under a line of text, above another."""
    return 4 + 100 * max(pictures), 4 + len(pictures) * (96 + 2 + 12 + 4 + 12)


def test_the_plan_command_draws_a_sentence_of_each_entry(world, capsys, tmp_path):
    from PIL import Image

    out = tmp_path / "strips.png"
    arguments = [f"sources.world.store={world[0]}", "seq_len=64", "period=128", "--tokenizer", str(world[1])]
    assert data_command(["plan", "data/debug", *arguments, "--out", str(out), "--tokens", "1e6"]) == 0
    assert "epochs" in capsys.readouterr().out
    assert Image.open(out).size == size_of_strips([4, 4, 4, 1])
    first = Image.open(out).tobytes()
    data_command(["plan", "data/debug", *arguments, "--out", str(out), "--draw", "1"])
    assert "epochs" not in capsys.readouterr().out and Image.open(out).tobytes() != first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "data/debug"], r"source 'world' has no store; set data\.sources\.world\.store"),
        (["explain", "data/debug"], "needs --window N"),
        (["explain", "data/debug", "--window", "-1"], "--window is -1; use a number from 0"),
        (["explain", "data/debug", "--window", str(1 << 63)], "use a number from 0 to 1000000000000"),
        (["plan", "data/debug", "--draw", "-1"], "--draw is -1; use a number from 0"),
        (["plan", "data/debug", "--tokens", "nan"], "--tokens is nan; use a number above 0"),
        (["plan", "data/debug", "--out", "/tmp"], "--out /tmp is a folder"),
        (["plan", "data/debgu"], "did you mean"),
        (["plan", "data/debug", "=3"], "one of the overrides =3 is no KEY=VALUE"),
        (["plan", "data/debug", "--window", "3"], "--window says nothing to lvm data plan; leave it out"),
        (["explain", "data/debug", "--window", "3", "--draw", "1"], "--draw says nothing to lvm data explain"),
        (["plan", "data/debug", "--draw", "1"], "--draw chooses what --out draws; give --out FILE too"),
        (["plan", "data/debug", "entries.depth.weigth=3"], "weight"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments, says):
    with pytest.raises(UserError, match=says) as error:
        data_command(arguments)
    assert "\n" not in str(error.value)


def test_a_drawing_without_or_with_another_tokenizer_is_refused(world, tmp_path):
    arguments = ["explain", "data/debug", f"sources.world.store={world[0]}", "seq_len=64", "--window", "0", "--out"]
    with pytest.raises(UserError, match="--tokenizer"):
        data_command([*arguments, str(tmp_path / "w.png")])
    with pytest.raises(UserError, match=r"is not the one .* was made with"):
        data_command([*arguments, str(tmp_path / "w.png"), "--tokenizer", str(world[0].parent / "other")])
    assert not list(tmp_path.iterdir())
