"""Write a run's newest checkpoint as a Hugging Face folder: lvm export RUN_OR_CHECKPOINT OUT [--dtype bfloat16]

OUT holds config.json, generation_config.json and model.safetensors (above 5 GB several and their index), which
transformers' AutoModelForCausalLM and `LVM.from_pretrained` open. Tensors pass one by one, so a model of any size is
exported in the memory of its largest tensor.
"""

import argparse
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lvm.model import LVM, LVMConfig, config_to_hugging_face, hugging_face_name
from lvm.runtime import UserError, atomic_folder, write_json
from lvm.runtime.checkpoint import load_tensors
from lvm.training.resume import config_of_run, find_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors calls them
SHARD_BYTES = 5 * 10**9


def export(path: Path, out: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES) -> LVMConfig:
    """Write the model of a run or checkpoint to the new folder `out`. Raises `UserError`."""
    if out.exists():
        raise UserError(f"{out} exists; remove it or name another folder")
    checkpoint = find_checkpoint(path)
    config = config_of_run(checkpoint)
    with torch.device("meta"):
        parameters = {hugging_face_name(name): (name, p.shape) for name, p in LVM(config).named_parameters()}
    shapes = {name: shape for name, (_, shape) in parameters.items()}

    def read(name: str) -> Tensor:
        ours, shape = parameters[name]
        tensor = torch.empty(shape)
        load_tensors(checkpoint / "tensors", {f"model.{ours}": tensor})
        return tensor.to(dtype)

    with atomic_folder(out) as folder:
        files = shards_of(shapes, dtype.itemsize, shard_bytes)
        for file, names in files.items():
            write_safetensors(folder / file, {name: shapes[name] for name in names}, dtype, read)
        if len(files) > 1:
            total = dtype.itemsize * sum(shape.numel() for shape in shapes.values())
            weight_map = {name: file for file, names in files.items() for name in names}
            write_json(
                folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        described = config_to_hugging_face(config, str(dtype).removeprefix("torch."))
        generation = {key: described[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(folder / "generation_config.json", generation)
        write_json(folder / "config.json", described)
    return config


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
        for name in shapes:
            file.write(tensor_of(name).contiguous().flatten().view(torch.uint8).numpy().data)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32, as trained")
    arguments = parser.parse_args(argv)
    config = export(arguments.run, arguments.out, DTYPES[arguments.dtype])
    print(f"{arguments.out}: {config.num_params:,} parameters, {arguments.dtype}")
    return 0
