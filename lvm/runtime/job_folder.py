"""The folder of a job in shards: one question asked of it, frozen by the first process; leases of those at work."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from lvm.runtime.configs import differences, shown
from lvm.runtime.errors import UserError
from lvm.runtime.files import read_json
from lvm.runtime.lease import owner_is_alive


def check_folder(out: Path, file: str, question: dict[str, Any]) -> None:
    """Raise `UserError` where `out` holds something else, or the answers to another question than its `file`."""
    if (out / file).is_file():
        refuse_other_question(out, read_json(out / file), question)
    elif out.exists() and (not out.is_dir() or any(not name.startswith(".") for name in os.listdir(out))):
        raise UserError(f"--out {out} exists and is not empty; name a new folder")


def freeze_question(out: Path, file: str, question: dict[str, Any]) -> None:
    """Write what is asked, unless another process was first: then it is judged by that."""
    out.mkdir(parents=True, exist_ok=True)
    link_new(out / file, json.dumps(question, indent=1, sort_keys=True) + "\n")
    refuse_other_question(out, read_json(out / file), question)


def link_new(file: Path, text: str) -> None:
    """Write a file that several may start to write: the first one counts."""
    aside = file.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{file.name}")
    try:
        aside.write_text(text)
        os.link(aside, file)
    except FileExistsError:
        pass
    finally:
        aside.unlink(missing_ok=True)


def refuse_other_question(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if lines := differences(before, now):
        raise UserError(f"--out {out} holds the answers to another question: {shown(lines)}; name a new folder")


def refuse_other_numbers(out: Path, num_shards: int) -> None:
    """Raise `UserError` where a live process of this host works on the folder in another number of shards."""
    for file in out.glob(".shard-*-of-*.json"):
        if not file.name.endswith(f"-of-{num_shards}.json") and owner_is_alive(owner := read_json(file)):
            raise UserError(
                f"{out} is being worked on by pid {owner.get('pid')} as {file.name[1:-5]}; "
                "wait for it, or use the same number of shards"
            )
