"""The files of a model's folder: JSON and tensors, safetensors or pytorch_model.bin. Loading never executes code."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor


class ModelError(ValueError):
    """A model folder or config the user can mend; the message names the file, the value and the remedy."""

    user_error = True


def stored_tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) of a folder's weights; never unpickles anything but tensors."""
    from safetensors import SafetensorError, safe_open

    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if whole.is_file():
            files = [whole]
        elif index.is_file():
            files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
        else:
            continue
        for file in files:
            if file.parent != folder or not file.is_file():
                raise ModelError(f"{file} is named by {index.name} and missing; download the folder again")
            try:
                if suffix == "safetensors":
                    with safe_open(file, framework="pt") as opened:
                        for name in opened.keys():  # noqa: SIM118, not a dict
                            yield file, name, opened.get_tensor(name)
                else:
                    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
                    yield from ((file, name, tensor) for name, tensor in loaded.items())
            except UnpicklingError:
                remedy = "convert it to safetensors"
                raise ModelError(f"{file} holds more than tensors and was not opened; {remedy}") from None
            except (SafetensorError, RuntimeError, EOFError, ValueError, AttributeError) as error:
                raise ModelError(f"{file} cannot be read ({error}); download it again") from None
        return
    raise ModelError(f"{folder} has neither model.safetensors nor pytorch_model.bin (nor an index of shards)")


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelError(f"{file} is missing; a model folder holds config.json and model.safetensors") from None
    except (ValueError, UnicodeDecodeError, NotADirectoryError) as error:
        raise ModelError(f"{file} is not JSON ({error}); write it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object; write it again")
    return value


def write_json(file: Path, value: dict[str, Any]) -> None:
    aside = file.with_name(f".tmp-{file.name}")
    aside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    os.replace(aside, file)
