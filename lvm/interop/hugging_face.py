"""A Hugging Face folder written with one tensor in memory at a time, complete or absent.

config.json, generation_config.json, the safetensors (above 5 GB several and their index), the files of the visual
vocabulary, a model card, and training_data.json where it is known.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lvm.interop.model_card import Training, model_card
from lvm.interop.training_data import TrainingData
from lvm.interop.visual_vocabulary import write_vocabulary
from lvm.model import LVM, LVMConfig, config_to_hugging_face, generation_to_hugging_face, hugging_face_name
from lvm.runtime import UserError, atomic_folder, atomic_write, write_json

STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors calls them
SHARD_BYTES = 5 * 10**9


def parameters_of(config: LVMConfig) -> dict[str, tuple[str, torch.Size]]:
    """Our name and the shape of each tensor, by its name in the folder."""
    with torch.device("meta"):
        return {hugging_face_name(name): (name, p.shape) for name, p in LVM(config).named_parameters()}


def write_hugging_face(
    out: Path,
    config: LVMConfig,
    tensor_of: Callable[[str], Tensor],
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
    training: Training | None = None,
    data: TrainingData | None = None,
) -> None:
    """Write the new folder `out`; `tensor_of` is asked for each tensor by its name there. Raises `UserError`."""
    if out.exists():
        raise UserError(f"{out} exists; remove it or name another folder")
    shapes = {name: shape for name, (_, shape) in parameters_of(config).items()}
    with atomic_folder(out) as folder:
        files = shards_of(shapes, dtype.itemsize, shard_bytes)
        for file, names in files.items():
            write_safetensors(folder / file, {name: shapes[name] for name in names}, dtype, tensor_of)
        if len(files) > 1:
            total = dtype.itemsize * sum(shape.numel() for shape in shapes.values())
            weight_map = {name: file for file, names in files.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(folder / "model.safetensors.index.json", index)
        write_vocabulary(folder, config)
        stored = str(dtype).removeprefix("torch.")
        atomic_write(folder / "README.md", model_card(config, stored, training))
        if data:
            data.save(folder)
        write_json(folder / "generation_config.json", generation_to_hugging_face(config))
        write_json(folder / "config.json", config_to_hugging_face(config, stored))


def shards_of(shapes: Mapping[str, torch.Size], bytes_each: int, shard_bytes: int) -> dict[str, list[str]]:
    """Names of tensors by file, in order, as many as fit `shard_bytes` (one at least)."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if shards[-1] and held + bytes_each * shape.numel() > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += bytes_each * shape.numel()
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def write_safetensors(
    path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, tensor_of: Callable[[str], Tensor]
) -> None:
    """A safetensors file of tensors that are asked for one by one; the library wants all of them at once.

    The format: the header's length (8 bytes), a JSON header padded with spaces to a multiple of 8 bytes, the data.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": STORED[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            tensor = tensor_of(name).to(dtype).contiguous()
            if tensor.shape != shape:
                raise UserError(f"{name} is {list(tensor.shape)}, its config makes it {list(shape)}; export it again")
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
