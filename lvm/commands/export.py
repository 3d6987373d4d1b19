"""Write a run's newest checkpoint as a Hugging Face folder: lvm export RUN_OR_CHECKPOINT OUT [--dtype bfloat16]

OUT holds config.json, generation_config.json and model.safetensors, which transformers' AutoModelForCausalLM and
`LVM.from_pretrained` open.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lvm.model import LVM
from lvm.runtime import UserError, atomic_folder
from lvm.training import model_of_run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(path: Path, out: Path, dtype: torch.dtype | None = None) -> LVM:
    """Write the model of a run or checkpoint to the new folder `out`. Raises `UserError`."""
    if out.exists():
        raise UserError(f"{out} exists; remove it or name another folder")
    model = model_of_run(path)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder, dtype)
    return model


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32, as trained")
    arguments = parser.parse_args(argv)
    model = export(arguments.run, arguments.out, DTYPES[arguments.dtype])
    print(f"{arguments.out}: {model.num_params():,} parameters, {arguments.dtype}")
    return 0
