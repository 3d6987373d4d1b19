"""Which groups a model is asked about: those its training held out, as a run's config or an exported folder says."""

import json
from dataclasses import asdict

import pytest
from PIL import Image
from suite_runs import evaluate
from tiny_prompter import pictures, small_model, small_vqgan

from lvm.commands._suites import HELD_OUT, kept_out, world_of
from lvm.commands.evaluate import main, make_parser, read_prompts
from lvm.commands.export import export
from lvm.evaluation.annotated import HeldOut
from lvm.interop.training_data import FILE, TrainingData, data_of_config, data_of_model
from lvm.runtime import UserError, read_json, write_json
from lvm.runtime.checkpoint import CheckpointWriter
from lvm.runtime.hashing import group_hash
from lvm.training.resume import TrainState

SHARE = 20
EVERY = {f"p{i}": group_hash(f"p{i}") % 1000 for i in range(1000)}  # per mille
LOW = [name for name, share in EVERY.items() if share < SHARE][:3]
MIDDLE = [name for name, share in EVERY.items() if SHARE <= share < HELD_OUT][:8]  # trained on
NAMED, *HIGH = [name for name, share in EVERY.items() if share >= HELD_OUT][:4]
WORLD = {"kind": "world", "seed": 3, "num_scenes": 40, "num_clips": 0, "num_things": [2, 3]}
DATA = {
    "held_out_per_mille": SHARE,
    "sources": {"world": {"store": None}, "photos": {"exclude_groups": [NAMED]}, "clips": None},
}
CONFIG = {"trainer": {}, "world": WORLD, "data": DATA}
FACTS = {"held_out_per_mille": SHARE, "excluded": {"photos": {"views": [], "groups": [NAMED]}}}
DEPTH = ("only=[depth]", "shots=[1]")
ASSUMED = f"does not say what its training held out: {HELD_OUT} per mille of the groups are assumed; --held-out N"


def save_run(folder, model, config=CONFIG):
    """A run of one checkpoint."""
    writer = CheckpointWriter(folder / "checkpoints")
    state = {"identity": {"model": asdict(model.config)}, "train": asdict(TrainState()), "plan": {"facts": FACTS}}
    writer.save(1, {f"model.{name}": p.detach() for name, p in model.named_parameters()}, state, {})
    writer.wait()
    write_json(folder / "config.json", config)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    vq = small_vqgan()
    vq.save_pretrained(folder / "tokenizer")
    small_model(vq).save_pretrained(folder / "foreign")
    export(save_run(folder / "run", small_model(vq)), folder / "exported")
    names = [*LOW, *MIDDLE, NAMED, *HIGH]
    for name, picture in zip(names, pictures(len(names), 32)):
        for channel, pixels in (("images", picture), ("depths", picture[..., 0])):
            (folder / "photos" / channel).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "photos" / channel / f"{name}.png")
    return folder


def asked(folder, model, out, *more):
    """The ids of all queries of depth, and the report."""
    words = [str(folder / model), "--tokenizer", str(folder / "tokenizer"), "--workers", "0"]
    data = ["--data", str(folder / "photos"), "--targets", "40"]
    code, report = evaluate("perplexity", words, out, *data, *DEPTH, *more)
    assert code == 0
    return {json.loads(line)["id"].partition("#")[0] for line in (out / "rows.jsonl").read_text().splitlines()}, report


def test_an_exported_folder_says_what_its_training_held_out(folder):
    expected = {"held_out_per_mille": SHARE, "exclude_groups": [NAMED], "world": WORLD}
    assert read_json(folder / "exported" / FILE) == expected
    assert data_of_model(folder / "exported") == data_of_model(folder / "run") == data_of_config(CONFIG)
    assert set(read_json(folder / "exported" / "config.json")).isdisjoint(expected)
    assert world_of(data_of_model(folder / "exported")) == WORLD


def test_what_is_known_is_kept_by_another_export_and_told_by_a_checkpoint_alone(folder, tmp_path):
    export(folder / "exported", tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (folder / "exported" / FILE).read_bytes()
    (folder / "run" / "checkpoints" / "step-00000001").rename(tmp_path / "alone")
    export(tmp_path / "alone", tmp_path / "hf")
    (tmp_path / "alone").rename(folder / "run" / "checkpoints" / "step-00000001")
    assert data_of_model(tmp_path / "hf") == TrainingData(SHARE, (NAMED,))  # the world stands in the run's config
    export(folder / "foreign", tmp_path / "unknown")
    assert not (tmp_path / "unknown" / FILE).exists()


@pytest.mark.parametrize("model", ["exported", "run"])
def test_no_group_that_was_trained_on_is_asked_about(folder, tmp_path, capsys, model):
    ids, report = asked(folder, model, tmp_path / "out")
    assert ids == {*LOW, NAMED} and all(EVERY[name] < SHARE for name in ids - {NAMED})
    assert report["settings"]["held_out"] == {"per_mille": SHARE, "groups": [NAMED]}
    assert "assumed" not in capsys.readouterr().err


def test_the_demos_page_asks_about_the_same_groups(folder, capsys):
    def prompts(model):
        words = [str(folder / model), "--tokenizer", "", "--suite", "demo", "--out", "", "--workers", "0"]
        words += ["--data", str(folder / "photos"), "--targets", "20"]
        sets, _, _, about = read_prompts(make_parser().parse_args(words), small_vqgan())
        return {name for prompts in sets for name in prompts.ids}, about

    known = {"per_mille": SHARE, "groups": (NAMED,)}
    assert prompts("exported") == prompts("run") == ({*LOW, NAMED}, {"held_out": known, "unreadable": []})
    assert not capsys.readouterr().err
    ids, about = prompts("foreign")
    assert ids == {*LOW, *MIDDLE} and about["held_out"]["assumed"] is True
    assert capsys.readouterr().err.count(ASSUMED) == 1


def test_where_nothing_is_known_the_share_is_assumed_and_said(folder, tmp_path, capsys):
    ids, report = asked(folder, "foreign", tmp_path / "out")
    assert ids == {*LOW, *MIDDLE} and report["settings"]["held_out"]["assumed"] is True
    assert capsys.readouterr().err.count(ASSUMED) == 1
    question = read_json(tmp_path / "out" / "evaluation.json")["settings"]["held_out"]
    assert question == {"per_mille": HELD_OUT, "groups": []}  # as of a model that says so
    ids, report = asked(folder, "foreign", tmp_path / "all", "--held-out", "1000")
    assert len(ids) == 15 and "assumed" not in report["settings"]["held_out"]
    words = [str(folder / "foreign"), "--tokenizer", str(folder / "tokenizer"), "--workers", "0", "--targets", "2"]
    _, report = evaluate("perplexity", words, tmp_path / "world", *DEPTH)
    assert report["settings"]["held_out"] == "test split" and "assumed" not in capsys.readouterr().err


def test_what_a_config_says_of_its_data():
    assert data_of_config({}) == TrainingData() and not TrainingData()
    assert data_of_config({"data": {"jsonl": "tokens.jsonl"}, "world": WORLD}) == TrainingData()  # knows no groups
    photos = {"data": {"sources": {"photos": {"store": "x"}}}, "world": WORLD}
    assert data_of_config(photos) == TrainingData(10)  # what a plan holds out unless told; of no world
    assert kept_out(TrainingData()) == HeldOut(HELD_OUT) and kept_out(TrainingData(0)) == HeldOut(0)
    known = TrainingData(20, ("a",))
    assert kept_out(known) == HeldOut(20, ("a",)) and kept_out(known, 0, ["b"]) == HeldOut(0, ("b",))


def test_a_file_that_says_nonsense_is_one_line(tmp_path):
    for key, value, said in (("held_out", 20, "held_out.*did you mean"), ("held_out_per_mille", 2000, "is 2000; use")):
        write_json(tmp_path / FILE, {key: value})
        with pytest.raises(UserError, match=said):
            data_of_model(tmp_path)


def test_files_of_the_demos_page_that_cannot_be_read_are_named(folder, tmp_path, capsys):
    cut = folder / "photos" / "images" / f"{HIGH[0]}.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:60])
    words = [str(folder / "exported"), "--tokenizer", str(folder / "tokenizer"), "--workers", "0", "--targets", "2"]
    try:
        code = main([*words, "--suite", "demo", "--data", str(folder / "photos"), "--out", str(tmp_path / "out")])
    finally:
        cut.write_bytes(whole)
    (line,) = read_json(tmp_path / "out" / "report.json")["unreadable"]
    assert code == 1 and f"images/{HIGH[0]}.png: " in line
    assert "error: 1 files of the data could not be read" in capsys.readouterr().err
