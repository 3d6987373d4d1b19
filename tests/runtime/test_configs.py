"""Strict configs: dataclasses from mappings, and Hydra's composition with one-line errors."""

import dataclasses
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.runtime import UserError, build, config_files
from lvm.runtime.config_files import flat_keys, load_config


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    name: str | None = None
    mode: bool | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    weights: dict[str, float] = field(default_factory=dict)
    folder: Path = Path(".")


INNERS = st.builds(
    Inner,
    rate=st.floats(allow_nan=False),
    name=st.none() | st.text(),
    mode=st.booleans() | st.just("auto"),
)
OUTERS = st.builds(
    Outer,
    steps=st.integers(),
    inner=INNERS,
    sizes=st.lists(st.integers()).map(tuple),
    weights=st.dictionaries(st.text(), st.floats(allow_nan=False)),
)


@settings(deadline=None)
@given(OUTERS)
def test_a_config_built_from_its_own_plain_values_is_the_same(config):
    assert build(Outer, dataclasses.asdict(config)) == config


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda key: key not in {f.name for f in dataclasses.fields(Inner)}))
def test_every_unknown_key_is_refused_with_its_full_name(key):
    with pytest.raises(UserError, match="unknown config key"):
        build(Outer, {"steps": 1, "inner": {key: 1}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "iner": {}}, "unknown config key 'iner'; did you mean 'inner'"),
        ({"steps": 1, "inner": {"rat": 1}}, "unknown config key 'inner.rat'; did you mean 'rate'"),
        ({"inner": {}}, "'steps' is missing"),
        ({"steps": "many"}, "steps is 'many'; it must be of type int"),
        ({"steps": True}, "steps is True"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": 1, "sizes": [1, "x"]}, r"sizes\[1\] is 'x'"),
        ({"steps": 1, "sizes": 3}, "it must be a list"),
        ({"steps": 1, "inner": None}, "inner is None; it must be a mapping"),
        ({"steps": 1, "inner": {"mode": "atuo"}}, "it must be bool or 'auto'"),
        ({"steps": 1, "weights": {"a": "b"}}, "weights.a is 'b'"),
    ],
)
def test_wrong_values_are_quoted_with_their_key(values, message):
    with pytest.raises(UserError, match=message):
        build(Outer, values)


def test_numbers_that_yaml_reads_as_text_or_float_are_accepted():
    config = build(Outer, {"steps": 1e3, "inner": {"rate": "1e-4"}, "folder": "a/b"})
    assert (config.steps, config.inner.rate, config.folder) == (1000, 1e-4, Path("a/b"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "defaults: [{net: small}, _self_]\nsteps: 3\noptim: {lr: 1e-3, name: '${who}'}\nwho: me\n"
    )
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "small.yaml").write_text("width: 8\n")
    (tmp_path / "net" / "large.yaml").write_text("width: 64\n")
    return tmp_path


def test_composition_gives_plain_resolved_values_again_and_again(folder):
    for _ in range(3):
        config = load_config(folder / "run.yaml", ["net=large", "steps=5", "+new.key=[1,2]"])
        assert config == {
            "net": {"width": 64},
            "steps": 5,
            "optim": {"lr": 1e-3, "name": "me"},
            "who": "me",
            "new": {"key": [1, 2]},
        }
        assert type(config["new"]["key"]) is list and type(config["optim"]) is dict


def test_composition_leaves_no_global_hydra_state(folder):
    from hydra.core.global_hydra import GlobalHydra

    load_config(folder / "run.yaml")
    with pytest.raises(UserError):
        load_config(folder / "run.yaml", ["nothing=1"])
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stps=4", "unknown config key 'stps'; did you mean 'steps'"),
        ("optim.lrr=4", "unknown config key 'optim.lrr'; did you mean 'optim.lr'"),
        ("lr=4", "did you mean 'optim.lr'"),
        ("steps.x=4", "unknown config key 'steps.x'"),
        ("~stepz", "unknown config key 'stepz'; did you mean 'steps'"),
        ("net=huge", "net=huge is unknown; known: large, small"),
        ("nett=small", "unknown config key 'nett'; did you mean 'net'"),
        ("+steps=4", "'steps' exists already"),
        ("+net=large", "'net' exists already"),
        ("who=???", "'who' has no value"),
        ("who=${nobody}", r"'optim.name' refers to \$\{nobody\}|'who' refers to \$\{nobody\}"),
        ("noequals", "override 'noequals' cannot be read"),
        ("who=a b=c", "override 'who=a b=c' cannot be read"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_remedy(folder, override, message):
    with pytest.raises(UserError, match=message) as raised:
        load_config(folder / "run.yaml", [override])
    assert "\n" not in str(raised.value) and "run.yaml" in str(raised.value)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["steps", "optim.lr", "optim.name", "net.width"]), st.integers(0, 8), st.sampled_from("qzx"))
def test_a_key_with_one_wrong_letter_is_refused_and_the_right_one_named(key, place, letter):
    place = min(place, len(key) - 1)
    wrong = key[:place] + letter + key[place + 1 :]
    if key[place] == "." or place < 2:
        return
    with tempfile.TemporaryDirectory() as name:
        Path(name, "run.yaml").write_text("steps: 3\noptim: {lr: 1, name: a}\nnet: {width: 2}\n")
        with pytest.raises(UserError, match=f"did you mean '{key}'"):
            load_config(Path(name) / "run.yaml", [f"{wrong}=1"])


def test_a_missing_or_broken_file_is_named(folder):
    with pytest.raises(UserError, match=r"'.*nothing.yaml' does not exist"):
        load_config(folder / "nothing.yaml")
    (folder / "broken.yaml").write_text("a: [1, 2\nb: {")
    with pytest.raises(UserError, match=r"broken.yaml .* is not YAML") as raised:
        load_config(folder / "broken.yaml")
    assert "\n" not in str(raised.value)


def test_flat_keys_name_inner_and_outer_nodes():
    assert list(flat_keys({"a": {"b": 1}, "c": 2})) == ["a", "a.b", "c"]


def test_a_name_below_configs_and_a_users_file_both_reach_our_groups(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(config_files, "config_folder", lambda: folder)
    (folder / "net" / "wide.yaml").write_text("defaults: [large, _self_, /other: x]\ndepth: 2\n")
    (folder / "other").mkdir()
    (folder / "other" / "x.yaml").write_text("y: 1\n")
    assert load_config("run", ["steps=1"])["steps"] == 1
    assert load_config("net/wide") == {"width": 64, "depth": 2, "other": {"y": 1}}
    mine = tmp_path_factory.mktemp("mine")
    (mine / "my.run.yaml").write_text("defaults: [run, _self_]\nsteps: 9\n")
    assert load_config(mine / "my.run.yaml", ["net=large"]) == load_config("run", ["net=large", "steps=9"])
    with pytest.raises(UserError, match=r"'rum' does not exist; did you mean run"):
        load_config("rum")
