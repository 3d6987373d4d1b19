"""Every file below configs/ composes and builds its dataclass, under a name it can be asked for by."""

import importlib

import pytest

from lvm.cluster.job_script import LauncherConfig
from lvm.data import JsonLinesConfig
from lvm.data.config import DataConfig, data_config
from lvm.model import LVMConfig
from lvm.runtime import build, config_folder
from lvm.runtime.config_files import load_config
from lvm.sources.opening import KINDS
from lvm.training import OptimConfig, TrainerConfig
from tokenizer.train import TrainConfig, read_config

ROOT = config_folder()
GROUPS = (
    "model",
    "data",
    "data/source",
    "optim",
    "trainer",
    "logger",
    "experiment",
    "debug",
    "tokenizer",
    "sweep",
    "launcher",
)
SOURCES = {
    kind: getattr(importlib.import_module(f"lvm.sources.{module}"), config)
    for kind, (module, config, _) in KINDS.items()
}


def names(group):
    return sorted(file.stem for file in (ROOT / group).glob("*.yaml"))


def build_run(config):
    """What a training builds before it opens a store."""
    build(TrainerConfig, config["trainer"], "trainer")
    build(OptimConfig, config["optim"], "optim")
    model = build(LVMConfig, config["model"], "model")
    build_source(config["world"])
    return model, {key: value for key, value in config["data"].items() if key != "new_plan"}


def build_source(config):
    return build(SOURCES[config["kind"]], {key: value for key, value in config.items() if key != "kind"})


def test_no_config_lies_in_a_folder_that_nothing_builds():
    known = {ROOT / "train.yaml"} | {ROOT / group / f"{name}.yaml" for group in GROUPS for name in names(group)}
    assert set(ROOT.rglob("*.yaml")) == known


@pytest.mark.parametrize("name", names("model"))
def test_a_model_builds_alone_and_in_a_run(name):
    alone = build(LVMConfig, load_config(f"model/{name}"), "model")
    assert alone == build(LVMConfig, load_config("train", [f"model={name}"])["model"], "model")


@pytest.mark.parametrize("name", [None, *names("experiment")])
def test_an_experiment_builds_and_its_model_has_room_for_its_windows(name):
    model, data = build_run(load_config("train", [f"experiment={name}"] if name else []))
    mixture = data_config(data)
    if name:
        assert model.max_position >= mixture.seq_len
        assert mixture.seq_len // model.tokens_per_picture >= 3, "two pictures shown and one asked for"


@pytest.mark.parametrize("group", ["optim", "trainer", "logger", "debug"])
def test_the_options_of_a_group_build(group):
    for name in names(group):
        config = load_config("train", [f"{group}={name}"])
        build_run(config)
        if group in ("optim", "trainer", "logger"):  # an overlay of `debug` changes several groups
            alone = load_config(f"{group}/{name}")
            assert alone and alone.items() <= config[group].items(), "the run has what the file says"


@pytest.mark.parametrize("name", names("data"))
def test_a_mixture_builds(name):
    config = load_config(f"data/{name}")
    if "jsonl" in config:
        assert isinstance(build(JsonLinesConfig, config, "data"), JsonLinesConfig)
        return
    if not config["entries"]:  # lvm demo fills them in
        config = load_config(f"data/{name}", ["+entries.a={source: pictures, recipe: single, weight: 1}"])
    assert isinstance(data_config(config), DataConfig)


@pytest.mark.parametrize("name", names("data/source"))
def test_a_source_builds(name):
    assert build_source(load_config(f"data/source/{name}")) is not None


@pytest.mark.parametrize("name", names("tokenizer"))
def test_a_tokenizer_builds(name, tmp_path):
    config, _ = read_config([f"experiment={name}", f"out={tmp_path}"])
    assert isinstance(config, TrainConfig)


@pytest.mark.parametrize("name", names("launcher"))
def test_a_launcher_builds(name):
    assert build(LauncherConfig, load_config(f"launcher/{name}"), "launcher").type == name
