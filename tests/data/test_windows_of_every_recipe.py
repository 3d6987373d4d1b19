"""Every recipe over a store of the world: windows rebuilt from rows of the tars alone, wherever something begins."""

import io
import tarfile

import numpy as np
import pytest
import torch

from lvm.data import TokenPlan
from lvm.runtime.config_files import load_config
from lvm.runtime.hashing import group_hash, held_out
from lvm.sentences import RECIPES, ROLES
from lvm.sources import open_source
from lvm.store import TokenStore, build_store
from tokenizer import VQGAN, VQGANConfig

TOKENS = 16  # of a 32-px picture at 8 px a code
SIZES = {
    "num_scenes": 12, "num_clips": 6, "num_objects": 102, "num_turntables": 3, "num_puzzles": 72, "num_latents": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The world that has something for each recipe, made small; the tokenizer is untrained."""
    torch.manual_seed(0)
    config = VQGANConfig(
        hidden_channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, quantized_embed_dim=4,
        num_embeddings=128, resolution=32, norm_groups=1,
    )  # fmt: skip
    vqgan = VQGAN(config).eval()
    with torch.no_grad():  # codes are latents of random pictures, so that pictures differ in their codes
        latents = vqgan.latents(torch.rand(16, 3, 32, 32)).permute(0, 2, 3, 1).reshape(-1, 4)
        vqgan.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:128]])
    source = open_source("world_sentences", [f"{name}={number}" for name, number in SIZES.items()])
    folder = tmp_path_factory.mktemp("world") / "store"
    return build_store(source, folder, vqgan, shard_size=40, workers=1, progress=False, compile=False)


STAGES = [{"from_window": 0}, {"from_window": 71, "weights": {"depth": 0, "single": 40}}, {"from_window": 160}]


def plan_of(store, packing="concat", **changes):
    config = load_config("data/sentences", [f"sources.world.store={store.path}"])
    config |= {"seq_len": 16 * TOKENS, "period": 150, "packing": packing, "stages": STAGES, "held_out_per_mille": 60}
    config["entries"]["matrices"]["pictures"] = 4  # three of each set of rules
    return TokenPlan.from_config({**config, **changes})


class Tars:
    """Members of the tars, read without any code of ours."""

    def __init__(self):
        self.members = {}

    def __call__(self, picture):
        key = picture["store"], picture["shard"], picture["member"]
        if key not in self.members:
            with tarfile.open(f"{picture['store']}/shards/{picture['shard']}.tar") as tar:
                self.members[key] = np.load(io.BytesIO(tar.extractfile(picture["member"]).read()))
        return self.members[key][picture["row"]].astype(np.int64)


@pytest.mark.parametrize("packing", ["concat", "aligned"])
def test_windows_are_the_rows_that_explain_names_wherever_a_period_an_epoch_or_a_stage_begins(store, packing):
    plan, read, seen = plan_of(store, packing), Tars(), {}
    windows = range(220)
    batch = plan.windows(0, len(windows))
    for i in windows:
        tokens = np.full(plan.seq_len + 1, plan.pad)
        roles, sources = np.full(plan.seq_len + 1, 3), np.full(plan.seq_len + 1, -1)
        for s in plan.explain(i):
            whole = [plan.bos, *np.concatenate([read(p) for p in s["pictures"]]), plan.eos]
            marks = [2, *np.repeat([ROLES.index(p["role"]) for p in s["pictures"]], TOKENS), 2]
            here = slice(max(0, s["start"]), min(plan.seq_len + 1, s["end"]))
            there = slice(here.start - s["start"], here.stop - s["start"])
            tokens[here], roles[here], sources[here] = whole[there], marks[there], plan.names.index(s["entry"])
            seen.setdefault((s["stage"], s["entry"]), set()).add((s["sentence"] // 150, s["epoch"]))
        assert np.array_equal(tokens, batch.tokens[i]) and np.array_equal(tokens, plan[i]), i
        assert np.array_equal(roles, batch.role[i]) and np.array_equal(sources, batch.source[i]), i
    assert {stage for stage, _ in seen} == {0, 1, 2}
    assert max(period for places in seen.values() for period, _ in places) >= 1
    epochs = {
        entry: {epoch for (_, e), places in seen.items() if e == entry for _, epoch in places} for _, entry in seen
    }
    assert epochs.keys() == set(plan.names)
    assert sum(len(found) > 1 for found in epochs.values()) >= 10, "epochs begin among these windows"


def test_every_recipe_that_the_config_has_shows_what_it_says(store):
    plan = plan_of(store)
    assert {entry.recipe.name for entry in plan.entries} == set(RECIPES) - {"verbatim"}
    by_entry = {}
    for draw in range(6):
        for sentence in plan.samples(draw):
            by_entry.setdefault(sentence["entry"], []).append(sentence["pictures"])
    labels = {store.id(i): int(store.label[i]) for i in range(len(store))}
    for pictures in by_entry["classes"]:
        runs = [[labels[p["id"]] for p in pictures[first : first + 4]] for first in (0, 4, 8, 12)]
        assert all(len(set(run)) == 1 and 0 <= run[0] < 17 for run in runs)
    for pictures in by_entry["turntable"]:
        frames = np.array([p["frame"] for p in pictures])
        assert len({p["id"] for p in pictures}) == 1 and set(np.diff(frames) % 24) in ({1}, {23})
    for pictures in by_entry["turntable_masks"]:
        assert [p["channel"] for p in pictures] == 2 * (4 * ["image"] + 4 * ["mask"])
        assert [p["frame"] for p in pictures[:4]] == [p["frame"] for p in pictures[4:8]]
    for pictures in by_entry["matrices"]:
        assert [p["channel"] for p in pictures] == 2 * ["image", "solution"]
        assert len({labels[p["id"]] for p in pictures}) == 1
    for pictures in by_entry["puzzles"]:
        assert [p["frame"] for p in pictures] == list(range(9)) and pictures[-1]["role"] == "answer"
        assert all(p["id"].endswith("-panels") for p in pictures)
    for pictures in by_entry["annotations"]:
        order = [p["channel"] for p in pictures[:5]]
        assert sorted(order) == ["depth", "edge", "gray", "image", "normal"]
        assert [p["channel"] for p in pictures] == 3 * order
    assert len({tuple(p["channel"] for p in pictures[:5]) for pictures in by_entry["annotations"]}) > 1


def test_what_is_held_out_is_in_no_sentence_of_any_recipe(store):
    plan = plan_of(store)
    banned = {store.id(i) for i in np.flatnonzero(held_out(store.group, 60))}
    shown = {p["id"] for i in range(150) for s in plan.explain(i) for p in s["pictures"]}
    assert banned and not shown & banned
    puzzle = next(id for id in shown if id.endswith("-panels"))  # its group is the puzzle's: both or neither
    assert not held_out(np.array([group_hash(puzzle.removesuffix("-panels"))], np.uint64), 60)


def test_shards_are_named_in_the_order_in_which_a_window_needs_them(store):
    plan = plan_of(store)
    for i in (0, 3, 70, 199):
        named = [(s["source"], p["shard"]) for s in plan.explain(i) for p in visible(plan, s)]
        assert [(name, TokenStore(store.path).shards[number][0]) for name, number in plan.shards(i, 1)] == list(
            dict.fromkeys(named)
        )
    assert set(plan.shards(0, 30)) == {shard for i in range(30) for shard in plan.shards(i, 1)}


def visible(plan, sentence):
    """The pictures of a sentence that lie in its window, in part at least."""
    for place, picture in enumerate(sentence["pictures"]):
        start = sentence["start"] + 1 + place * TOKENS
        if start + TOKENS > 0 and start < plan.seq_len + 1:
            yield picture
