"""The reference's batch generation, step by step (ytongbai/LVM, evaluation/vqlm_demo/batch_generation.py).

What it does otherwise than this project, and `lvm generate --protocol reference` does as it:

    reading     PIL's convert("RGB") alone: no rotation by EXIF, transparency dropped, 16 bit clipped
    prompt      no BOS; of more pictures than the context holds less one, the last
    window      beyond the context it moves by one picture, also between a pair's halves
    sampling    temperature 1, top_p 1, and top_k 50: Hugging Face's default, which its code leaves as it is
    candidates  2 (batch_generation), each drawn by a call of its own
    pixels      cut to uint8, not rounded
    output      one file a prompt: candidates below each other, pictures side by side (include_input: the prompt before
                them), stretched as a whole where the original size is wanted
    MSE         over all candidates and pixels in [0, 1], times three

The noise is ours, so samples differ; greedy answers are equal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image

from lvm.inference.answer_files import Answered, read_record
from lvm.inference.decoded import PICTURES_AT_ONCE
from lvm.inference.prompt_files import Asked
from lvm.inference.prompter import Prompter
from lvm.pictures.decode import PictureError
from lvm.runtime.errors import UserError
from lvm.runtime.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

DEFAULTS: dict[str, Any] = {"num_candidates": 2, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
DTYPE = "float16"  # on a GPU
SETTINGS = {"bos": False, "window": "frames", "rounding": "truncated", "noise": "ours"}


def opened_as_reference(file: str) -> Image.Image:
    """`load` has judged the file before."""
    with Image.open(file) as image:
        return image.convert("RGB")


@torch.no_grad()
def decoded_as_reference(prompter: Prompter, codes: "Int64[np.ndarray, 'n t']") -> "Float32[np.ndarray, 'n y x 3']":
    """Pixels in [0, 1], which it cuts to uint8 and measures before."""
    vq = prompter.vq
    device = vq.quant_conv.weight.device
    pieces = torch.from_numpy(np.ascontiguousarray(codes)).to(device).split(PICTURES_AT_ONCE)
    pixels = torch.cat([vq.decode(piece, vq.config.code_grid) for piece in pieces])
    return rearrange(pixels.float(), "n c y x -> n y x c").cpu().numpy()


def check_targets(prompts: Sequence[Asked]) -> None:
    for asked in prompts:
        if len(asked.targets) != asked.num_pictures:
            raise UserError(
                f"{asked.where}: {len(asked.targets)} targets and {asked.num_pictures} pictures to answer; "
                "--mse needs a target for each"
            )


def combined(answered: Answered, include_input: bool) -> "UInt8[np.ndarray, 'y x 3']":
    """Its output picture: a row for each candidate."""
    pictures = np.stack(list(answered.pictures), axis=1)
    if include_input:
        shown = repeat(answered.shown, "n y x k -> c n y x k", c=len(pictures))
        pictures = np.concatenate([shown, pictures], axis=1)
    joined: np.ndarray = rearrange(pictures, "c n y x k -> (c y) (n x) k")
    if answered.size is None:
        return joined
    wide, high = answered.size[0] * pictures.shape[1], answered.size[1] * pictures.shape[0]
    return np.asarray(Image.fromarray(joined).resize((wide, high), Image.Resampling.BICUBIC))


class OutputFiles:
    """The picture that a line of the reference's list names, below `out`; the record beside it as NAME.json."""

    def __init__(self, out: Path, include_input: bool) -> None:
        self.out, self.include_input = out, include_input

    def picture(self, asked: Asked) -> Path:
        return self.out / str(asked.output)

    def _record(self, asked: Asked) -> Path:
        return self.picture(asked).with_name(self.picture(asked).name + ".json")

    def is_done(self, asked: Asked) -> bool:
        return read_record(self._record(asked)) is not None and self.picture(asked).is_file()

    def write(self, answered: Answered) -> None:
        file = self.picture(answered.asked)
        picture = Image.fromarray(combined(answered, self.include_input))
        try:
            with atomic_path(file) as aside:
                picture.save(aside)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk, not of the format
                raise
            size = f"{picture.width} x {picture.height}"
            raise PictureError(str(file), f"cannot hold {size} pixels ({error})") from None
        names = [[str(answered.asked.output)]] * answered.pictures.num_candidates
        write_json(self._record(answered.asked), answered.record | {"pictures": names})

    def record(self, asked: Asked) -> dict[str, Any]:
        record: dict[str, Any] = read_json(self._record(asked))
        return record
