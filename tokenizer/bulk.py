"""Many pictures, fast: uint8 pictures -> uint16 codes and back, in batches of one fixed size.

Every batch has `batch_size` pictures (the last is padded), so a picture's codes depend on its place in its batch at
most, and a job that repeats the same batches repeats the same bytes. bfloat16 where the machine multiplies it in
hardware; distances to the codebook are always float32.
"""

import collections
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from tokenizer.model import VQGAN, TokenizerError, choose_grid, full_float32

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8, UInt16

Precision = Literal["auto", "bf16", "exact"]
BATCHES_UNDER_WAY = 2  # on a GPU, before the host waits for the oldest


def bf16_pays(device: torch.device) -> bool:
    """Whether the device has matrix units for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("amx_tile", "avx512_bf16"))
    return device.type == "cpu" and any(check() for check in checks if check is not None)


class ChannelsLastGroupNorm(nn.Module):
    """GroupNorm by way of the statistics of each channel, float32 inside, for a GPU.

    There torch's own makes a channels_last picture contiguous, and compiled it reads a group's few channels with long
    strides. Here both passes read whole rows of channels, and compiled the second fuses with the SiLU that follows.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n c y x']":
        var, mean = torch.var_mean(x.float(), (2, 3), correction=0)
        mean = rearrange(mean, "n (g d) -> n g d", g=self.num_groups)
        group_mean = reduce(mean, "n g d -> n g 1", "mean")
        between = reduce((mean - group_mean).square(), "n g d -> n g", "mean")
        group_var = between + reduce(var, "n (g d) -> n g", "mean", g=self.num_groups)
        width = len(self.weight) // self.num_groups
        scale = self.weight * repeat(torch.rsqrt(group_var + self.eps), "n g -> n (g d)", d=width)
        shift = self.bias - scale * repeat(group_mean, "n g 1 -> n (g d)", d=width)
        return (x.float() * scale[:, :, None, None] + shift[:, :, None, None]).to(x.dtype)


class BulkEncoder:
    """Encodes and decodes pictures of the tokenizer's own size.

    `precision` "exact" is float32 throughout ("auto": bf16 where it pays). `compile` costs a minute or so and pays
    from some ten thousand small pictures on. The weights are read when it is built: build another after training on.
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
        self.vq = self._own_copy(vq)
        self._encode: Callable[[Tensor], Tensor] = self._encode_batch
        self._decode: Callable[[Tensor, int], Tensor] = self._decode_batch
        if compile:
            self._encode = torch.compile(self._encode_batch, dynamic=False)
            self._decode = torch.compile(self._decode_batch, dynamic=False)

    def _own_copy(self, vq: VQGAN) -> VQGAN:
        """The net to compute with: convolutions converted once, normalisation and codebook in float32."""
        with torch.device("meta"):
            copy = VQGAN(vq.config)
        copy.to_empty(device=self.device)
        copy.load_state_dict(vq.state_dict())
        copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.bf16:
            copy.encoder.conv_in.weight.data /= 255
            for module in (*copy.encoder.modules(), *copy.decoder.modules()):
                if isinstance(module, nn.Conv2d):
                    module.to(torch.bfloat16)
        if self.bf16 and self.device.type == "cuda":
            for parent in list(copy.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.GroupNorm):
                        setattr(parent, name, ChannelsLastGroupNorm(child))
        return copy.eval().requires_grad_(False)

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
        return self._in_batches(pictures, lambda batch: self._encode(batch).to(torch.int32), (tokens,), np.uint16)

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
        """`function` of each batch. On a GPU the host stays ahead: pinned memory both ways, and it waits for an event
        behind the oldest batch's copy, never for the batches queued since."""
        out: np.ndarray = np.empty((len(values), *shape), dtype)
        on_gpu = self.device.type == "cuda"
        under_way: collections.deque[tuple[int, Tensor, torch.cuda.Event | None]] = collections.deque()
        with torch.inference_mode(), full_float32(), torch.cuda.device(self.device) if on_gpu else _NOTHING:
            for start in range(0, len(values), self.batch_size):
                piece = values[start : start + self.batch_size]
                if len(piece) < self.batch_size:
                    padding = np.zeros((self.batch_size - len(piece), *values.shape[1:]), values.dtype)
                    piece = np.concatenate([piece, padding])
                batch = torch.from_numpy(np.require(piece, requirements=["C", "W"]))
                if on_gpu:
                    batch = batch.pin_memory().to(self.device, non_blocking=True)
                result, copied = function(batch), None
                if on_gpu:
                    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                    result, copied = host.copy_(result, non_blocking=True), torch.cuda.Event()
                    copied.record()
                under_way.append((start, result, copied))
                if len(under_way) > (BATCHES_UNDER_WAY if on_gpu else 0):
                    _store(out, *under_way.popleft())
            while under_way:
                _store(out, *under_way.popleft())
        return out

    def _encode_batch(self, pictures: "UInt8[Tensor, 'n y x c']") -> "Int[Tensor, 'n t']":
        pixels = rearrange(pictures, "n y x c -> n c y x").float()  # a view: channels_last from the start
        if self.bf16:
            # 255 times the net's input is a whole number, which bfloat16 holds exactly; conv_in's weights have the
            # 1 / 255. The last product and the distances are float32: they decide between two near codes.
            low, high = self.config.input_range
            whole = pixels * (high - low) + 255 * low
            latents = self.vq.quant_conv(self.vq.encoder(whole.to(torch.bfloat16)).float())
        else:
            latents = self.vq.latents(pixels / 255)
        codes = self.vq.quantize.nearest(rearrange(latents, "n d h w -> (n h w) d"))
        return rearrange(codes, "(n t) -> n t", n=len(pictures))

    def _decode_batch(self, codes: "Int[Tensor, 'n t']", rows: int) -> "UInt8[Tensor, 'n y x c']":
        latents = rearrange(self.vq.quantize.lookup(codes), "n (h w) d -> n d h w", h=rows)
        if self.bf16:
            decoded = self.vq.decoder(self.vq.post_quant_conv(latents).to(torch.bfloat16))
            pixels = self.vq.in_unit_range(decoded.float())
        else:
            pixels = self.vq.pixels(latents)
        return rearrange((pixels.clamp(0, 1) * 255).round().to(torch.uint8), "n c y x -> n y x c")


_NOTHING = contextlib.nullcontext()


def _store(out: np.ndarray, start: int, result: Tensor, copied: "torch.cuda.Event | None") -> None:
    if copied is not None:
        copied.synchronize()
    stop = min(start + len(result), len(out))
    out[start:stop] = result.numpy()[: stop - start]
