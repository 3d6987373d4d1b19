"""Write a run's newest checkpoint as a Hugging Face folder: lvm export RUN_OR_CHECKPOINT OUT [--dtype bfloat16]

OUT holds config.json, generation_config.json, model.safetensors (above 5 GB several and their index), the tokenizer
files of the visual vocabulary, a model card and training_data.json: which groups the training held out, for `lvm
evaluate`. transformers' AutoModelForCausalLM, vLLM and `LVM.from_pretrained` open it (docs/serving.md). Tensors of a
run pass one by one, so a model of any size is exported in the memory of its largest.

RUN_OR_CHECKPOINT may be a model folder too, DeLVM's for one: a plain Llama comes out, which loads without its code.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lvm.interop.hugging_face import SHARD_BYTES, parameters_of, write_hugging_face
from lvm.interop.model_card import Training
from lvm.interop.padded_heads import pad_config, pad_tensor
from lvm.interop.training_data import data_of_model
from lvm.model import LVM, LVMConfig, hugging_face_name
from lvm.runtime import UserError
from lvm.runtime.checkpoint import load_tensors, read_state
from lvm.training.resume import config_of_run, find_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TensorOf = Callable[[str], Tensor]  # by the name that Hugging Face gives it


def export(
    path: Path,
    out: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    head_size: int | None = None,
) -> tuple[LVMConfig, torch.dtype]:
    """Write the model of a run, checkpoint or model folder to the new folder `out`; its config and type.

    `dtype` None: float32 of a run, of a model folder the type it is stored in. Raises `UserError`.
    """
    if out.exists():
        raise UserError(f"{out} exists; remove it or name another folder")
    of_a_run = (path / "checkpoints").is_dir() or not (path / "config.json").is_file()
    source = find_checkpoint(path) if of_a_run else path
    config, tensor_of, training, stored = of_checkpoint(source) if of_a_run else of_model(source)
    data = data_of_model(source)
    dtype = dtype or stored
    if head_size is None:
        write_hugging_face(out, config, tensor_of, dtype, shard_bytes, training, data)
        return config, dtype
    padded = pad_config(config, head_size)
    pad = lambda name: pad_tensor(name, tensor_of(name), config, head_size)
    write_hugging_face(out, padded, pad, dtype, shard_bytes, training, data)
    return padded, dtype


def of_checkpoint(checkpoint: Path) -> tuple[LVMConfig, TensorOf, Training | None, torch.dtype]:
    config = config_of_run(checkpoint)
    parameters = parameters_of(config)

    def read(name: str) -> Tensor:
        ours, shape = parameters[name]
        tensor = torch.empty(shape)
        load_tensors(checkpoint / "tensors", {f"model.{ours}": tensor})
        return tensor

    trained = read_state(checkpoint)["train"]
    return config, read, Training(trained["step"], trained["tokens"]), torch.float32


def of_model(folder: Path) -> tuple[LVMConfig, TensorOf, Training | None, torch.dtype]:
    model = LVM.from_pretrained(folder, dtype=None)
    tensors = {hugging_face_name(name): parameter.detach() for name, parameter in model.named_parameters()}
    stored = model.embed.weight.dtype
    return (
        model.config,
        lambda name: tensors[name].float(),
        None,
        stored if stored in DTYPES.values() else torch.float32,
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 of a run, of a model folder as it is stored")
    wider = "zeros in each head up to this size, answers equal, for kernels that lack the model's (100 of 3b: use 128)"
    parser.add_argument("--head-size", type=int, help=wider)
    arguments = parser.parse_args(argv)
    asked = DTYPES[arguments.dtype] if arguments.dtype else None
    config, dtype = export(arguments.run, arguments.out, asked, head_size=arguments.head_size)
    print(f"{arguments.out}: {config.num_params:,} parameters, {str(dtype).removeprefix('torch.')}")
    return 0
