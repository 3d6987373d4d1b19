"""What a run starts from: weights drawn from its seed, those of a trained model (`init_from`), or all that another run
was at one of its checkpoints (`branch_from`).

The first two work on a model that was sharded before it had weights: each rank fills its part. Of a drawn tensor that
part is cut from the whole, so that weights do not depend on the mesh, and one tensor at a time is whole on the CPU; of
a stored one the part alone is read.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lvm.model import LVM, LVMConfig, config_from_hugging_face, hugging_face_name, initial_weight
from lvm.runtime import UserError, read_json
from lvm.runtime.checkpoint import linked, load_tensors, newest_checkpoint
from lvm.runtime.configs import differences, shown
from lvm.runtime.distributed import Distributed
from lvm.training.resume import config_of_run, find_checkpoint

# What may differ from the model whose weights are taken: they fit, and mean the same.
_FREE = ("max_position", "z_loss", "tokens_per_picture", "prompt_bos", "tokenizer_fingerprint")


@torch.no_grad()
def draw_weights(model: LVM, seed: int) -> None:
    """The published start, the same numbers on any mesh."""
    for name, parameter in model.named_parameters():
        copy_part(parameter, initial_weight(name, parameter.shape, seed))


def copy_part(target: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of `whole` into `target`."""
    if isinstance(target, DTensor):
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        whole = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape))]
        target = target.to_local()
    target.copy_(whole)


def find_newest(folder: Path, branch_from: Path | None, ranks: Distributed) -> Path | None:
    """The newest complete checkpoint of a run; in an empty `folder` first a copy of the one it branches from.

    Raises `UserError` on every rank.
    """
    path, problem = None, None
    if ranks.is_main:
        try:
            path = newest_checkpoint(folder)
            if path is None and branch_from is not None:
                path = linked(find_checkpoint(branch_from), folder)
        except UserError as error:
            problem = error
        except OSError as error:  # a full disk; the others wait
            problem = UserError(f"{folder}: {error}")
    ranks.together(problem)
    return ranks.broadcast(path)


def find_start(init_from: Path | None, ranks: Distributed) -> Path | None:
    """A Hugging Face folder as it is, or the newest checkpoint of a run; rank 0 looks, and reads that once to check it.

    Raises `UserError` on every rank.
    """
    path, problem = None, None
    if init_from is not None and ranks.is_main:
        try:
            path = init_from if is_hugging_face(init_from) else find_checkpoint(init_from)
        except UserError as error:
            problem = error
    ranks.together(problem)
    return ranks.broadcast(path)


def is_hugging_face(path: Path) -> bool:
    """A run folder has a config.json too."""
    if not path.is_dir():
        raise UserError(f"init_from={path} is no folder; give a Hugging Face folder, a run folder or a checkpoint")
    return (path / "config.json").is_file() and not (path / "checkpoints").is_dir()


@torch.no_grad()
def load_start(path: Path, model: LVM) -> None:
    """Read the weights found by `find_start` into `model` as float32; every rank reads its part.

    Raises `UserError`, showing what differs, for weights of another model.
    """
    of_run = (path / "manifest.json").is_file()
    if of_run:
        config = config_of_run(path)
        folder, stored_name = path / "tensors", lambda name: f"model.{name}"
    else:
        config = config_from_hugging_face(read_json(path / "config.json"), str(path / "config.json"))
        folder, stored_name = path, hugging_face_name
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"init_from={path} holds no *.safetensors; convert it with LVM.from_pretrained and save_pretrained"
            )
    check_fits(path, config, model.config)
    load_tensors(folder, {stored_name(name): parameter.detach() for name, parameter in model.named_parameters()})


def check_fits(path: Path, theirs: LVMConfig, ours: LVMConfig) -> None:
    """Raise `UserError` where weights made for `theirs` are none of `ours`, or their codes mean other patches."""
    before, after = ({k: v for k, v in asdict(c).items() if k not in _FREE} for c in (theirs, ours))
    if lines := differences(before, after):
        raise UserError(f"init_from={path} holds another model: {shown([f'model.{line}' for line in lines])}")
    tokenizers = theirs.tokenizer_fingerprint, ours.tokenizer_fingerprint
    if all(tokenizers) and tokenizers[0] != tokenizers[1]:
        raise UserError(
            f"init_from={path} was trained on codes of the tokenizer {tokenizers[0][:12]} and the stores hold those of "
            f"{tokenizers[1][:12]}; use stores of its tokenizer"
        )
