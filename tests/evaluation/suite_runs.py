"""A small model and its tokenizer as folders, and `lvm evaluate` on them."""

import json
from pathlib import Path

from tiny_prompter import small_model, small_vqgan

from lvm.commands.evaluate import main


def save_prompter(folder: Path, **change: int) -> list[str]:
    """Writes folder/tokenizer and folder/model; the words of a command line that name them. `change`: of the model."""
    vq = small_vqgan()
    vq.save_pretrained(folder / "tokenizer")
    small_model(vq, **change).save_pretrained(folder / "model")
    return [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--workers", "0"]


def evaluate(suite: str, prompter: list[str], out: Path, *rest: str) -> tuple[int, dict]:
    code = main([*prompter, "--suite", suite, "--out", str(out), *rest])
    return code, json.loads((out / "report.json").read_text())
