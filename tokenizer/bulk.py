"""Many pictures, fast: uint8 pictures -> uint16 codes and back, in batches of one fixed size.

Every batch has `batch_size` pictures (the last is padded), so a picture's codes depend on its place in its batch at
most, and a job that repeats the same batches repeats the same bytes. bfloat16 where the machine multiplies it in
hardware; distances to the codebook are always float32.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tokenizer.model import VQGAN, TokenizerError, choose_grid

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8, UInt16

Precision = Literal["auto", "bf16", "exact"]


def bf16_pays(device: torch.device) -> bool:
    """Whether the device has matrix units for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("amx_tile", "avx512_bf16"))
    return device.type == "cpu" and any(check() for check in checks if check is not None)


class BulkEncoder:
    """Encodes and decodes pictures of the tokenizer's own size.

    `compile` costs a minute or so and pays from some ten thousand small pictures on. `precision` "exact" is float32
    throughout ("auto": bf16 where it pays). The weights are read when it is built: build another after training on.
    """

    def __init__(
        self,
        vq: VQGAN,
        device: torch.device | str | None = None,
        compile: bool = False,
        batch_size: int = 64,
        precision: Precision = "auto",
    ):
        if batch_size < 1:
            raise TokenizerError(f"batch_size is {batch_size}; it must be at least 1")
        if precision not in ("auto", "bf16", "exact"):
            raise TokenizerError(f"precision is {precision!r}; use 'auto', 'bf16' or 'exact'")
        self.config = vq.config
        if self.config.num_embeddings > 2**16:
            raise TokenizerError(f"{self.config.num_embeddings} codes do not fit uint16; use VQGAN.encode")
        self.device = torch.device(device) if device is not None else vq.quant_conv.weight.device
        self.batch_size = batch_size
        self.bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(self.device))
        copy = VQGAN(vq.config)
        copy.load_state_dict(vq.state_dict())
        copy.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vq = copy.eval().requires_grad_(False)
        self._encode: Callable[[Tensor], Tensor] = self._encode_batch
        self._decode: Callable[[Tensor, int], Tensor] = self._decode_batch
        if compile:
            self._encode = torch.compile(self._encode_batch, dynamic=False)
            self._decode = torch.compile(self._decode_batch, dynamic=False)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of pixels of one picture."""
        rows, columns = self.config.code_grid
        return rows * self.config.factor, columns * self.config.factor

    def encode(self, pictures: "UInt8[np.ndarray, 'n y x c']") -> "UInt16[np.ndarray, 'n t']":
        """Codes of each picture, row-major. Raises TokenizerError for another size or dtype."""
        wanted = (*self.size, self.config.num_channels)
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != wanted:
            found = f"{pictures.dtype} {list(pictures.shape)}"
            raise TokenizerError(f"pictures are {found}; this tokenizer takes uint8 [n, {', '.join(map(str, wanted))}]")
        tokens = self.config.code_grid[0] * self.config.code_grid[1]
        codes = self._in_batches(pictures, self._encode, (tokens,), np.uint16)
        return codes

    def decode(
        self, codes: "Int[np.ndarray, 'n t']", grid: tuple[int, int] | None = None
    ) -> "UInt8[np.ndarray, 'n y x c']":
        """Pictures, rounded to uint8. Raises TokenizerError for codes outside the codebook or that fill no grid."""
        rows, columns = choose_grid(codes.shape, self.config, grid)
        if codes.dtype.kind not in "iu":
            raise TokenizerError(f"codes are {codes.dtype}; they must be integers")
        if codes.size and not (int(codes.min()) >= 0 and int(codes.max()) < self.config.num_embeddings):
            bad = int(codes.min()) if int(codes.min()) < 0 else int(codes.max())
            raise TokenizerError(
                f"code {bad} is outside 0..{self.config.num_embeddings - 1}, the codes of this tokenizer"
            )
        f = self.config.factor
        shape = (rows * f, columns * f, self.config.num_channels)
        return self._in_batches(codes.astype(np.int64), lambda batch: self._decode(batch, rows), shape, np.uint8)

    def _in_batches(
        self, values: np.ndarray, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: type
    ) -> np.ndarray:
        """`function` of each batch. One batch is copied back when the next is under way, so that a GPU never idles."""
        out: np.ndarray = np.empty((len(values), *shape), dtype)
        waiting: tuple[int, Tensor] | None = None
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            for start in range(0, len(values), self.batch_size):
                piece = values[start : start + self.batch_size]
                if len(piece) < self.batch_size:
                    padding = np.zeros((self.batch_size - len(piece), *values.shape[1:]), values.dtype)
                    piece = np.concatenate([piece, padding])
                batch = torch.from_numpy(np.require(piece, requirements=["C", "W"]))
                result = function(batch.to(self.device, non_blocking=True))
                if waiting is not None:
                    _copy_back(out, *waiting)
                waiting = (start, result)
        if waiting is not None:
            _copy_back(out, *waiting)
        return out

    def _encode_batch(self, pictures: "UInt8[Tensor, 'n y x c']") -> "Int[Tensor, 'n t']":
        pixels = rearrange(pictures, "n y x c -> n c y x").float() / 255  # a view: channels_last from the start
        latents = self.vq.latents(pixels)
        codes = self.vq.quantize.nearest(rearrange(latents, "n d h w -> (n h w) d"))
        return rearrange(codes, "(n t) -> n t", n=len(pictures))

    def _decode_batch(self, codes: "Int[Tensor, 'n t']", rows: int) -> "UInt8[Tensor, 'n y x c']":
        latents = rearrange(self.vq.quantize.lookup(codes), "n (h w) d -> n d h w", h=rows)
        pixels = self.vq.pixels(latents).float().clamp(0, 1)
        return rearrange((pixels * 255).round().to(torch.uint8), "n c y x -> n y x c")


def _copy_back(out: np.ndarray, start: int, result: Tensor) -> None:
    values = result.cpu().numpy()
    stop = min(start + len(values), len(out))
    out[start:stop] = values[: stop - start]
