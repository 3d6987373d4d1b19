"""The house keeps its rules: linted, typed, imports only in the stated direction, every config composes."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What stands beside the tokenizer's core, trains and scores it.
TOKENIZER_TRAINING = [f"tokenizer.{name}" for name in ("train", "training", "journal", "pictures", "evaluate")]

# Room -> rooms it may import; most rooms of lvm/ may import runtime (docs/architecture.md has the table).
MAY_IMPORT = {
    "tokenizer": set(),
    **{name: {"tokenizer", "lvm.runtime", "lvm.sources", "lvm.pictures"} for name in TOKENIZER_TRAINING},
    "lvm.runtime": set(),
    "lvm.pictures": set(),
    "lvm.world": {"lvm.pictures"},
    "lvm.sources": {"lvm.pictures", "lvm.world"},
    "lvm.store": {"tokenizer", "lvm.sources"},
    "lvm.sentences": set(),
    "lvm.data": {"lvm.sentences", "lvm.store"},
    "lvm.attention": set(),
    "lvm.cross_entropy": set(),
    "lvm.model_folder": set(),
    "lvm.model": {"lvm.attention", "lvm.cross_entropy", "lvm.model_folder"},
    "lvm.interop": {"lvm.model", "lvm.data", "lvm.sentences", "lvm.store", "lvm.sources"},
    "lvm.training": {"lvm.data", "lvm.attention", "lvm.model"},
    "lvm.cluster": {"lvm.model", "lvm.training", "lvm.evaluation"},
    "lvm.inference": {"lvm.model", "tokenizer", "lvm.pictures"},
    "lvm.evaluation": {
        "lvm.inference",
        "lvm.model",
        "lvm.data",
        "lvm.sentences",
        "lvm.store",
        "lvm.sources",
        "lvm.pictures",
        "lvm.world",
        "tokenizer",
    },
}
NOT_EVEN_RUNTIME = {"lvm.model", "lvm.model_folder", "lvm.attention", "lvm.cross_entropy", "lvm.runtime"}
FREE = {"lvm.demo", "lvm.commands", "lvm.__main__", "lvm"}


def modules():
    for top in ("lvm", "tokenizer"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}: a relative import; name the module in full")


def within(name, room):
    return name == room or name.startswith(room + ".")


def room_of(module):
    return max((room for room in MAY_IMPORT if within(module, room)), key=len, default=None)


def test_imports_follow_the_table():
    wrong = []
    for path, module in modules():
        room = room_of(module)
        if room is None:
            assert any(within(module, free) for free in FREE - {"lvm"}) or module == "lvm", f"{module} is in no room"
            continue
        allowed = MAY_IMPORT[room] | {room}
        if room.startswith("lvm.") and room not in NOT_EVEN_RUNTIME:
            allowed = allowed | {"lvm.runtime"}
        for name in imported_names(path):
            if (within(name, "lvm") or within(name, "tokenizer")) and not any(within(name, a) for a in allowed):
                wrong.append(f"{module} imports {name}")
            if room == "tokenizer" and any(within(name, other) for other in TOKENIZER_TRAINING):
                wrong.append(f"the tokenizer's core {module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_core_needs_few_packages():
    """The model, tokenizer and generation import with torch, numpy, einops and safetensors alone."""
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'webdataset', 'wandb', 'lightning', 'jaxtyping', 'transformers', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "import lvm.model, tokenizer, lvm.inference\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_linters_are_silent(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_name_is_undefined():
    """Names of an axis, which the linter takes for forward references, stand first in a string of their own."""
    check = ["ruff", "check", "--isolated", "--select", "F821", "--output-format", "json", "."]
    done = subprocess.run([sys.executable, "-m", *check], cwd=ROOT, capture_output=True, text=True)
    undefined = []
    for found in json.loads(done.stdout):
        path, place = Path(found["filename"]), found["location"]
        line = path.read_text().splitlines()[place["row"] - 1]
        if line[place["column"] - 2] != "'":
            undefined.append(f"{path.relative_to(ROOT)}:{place['row']}: {found['message']}")
    assert not undefined, undefined


def test_no_file_holds_a_second_idea():
    long = [
        f"{path.relative_to(ROOT)}: {n}" for path, _ in modules() if (n := len(path.read_text().splitlines())) > 600
    ]
    assert not long, long


def test_every_package_travels_in_the_wheel():
    """Listed by hand: a search finds no folder that lies outside, as configs/ and slurm/ do."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inside = {
        str(file.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("lvm", "tokenizer")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == inside | {"lvm.configs", "lvm.slurm"}
