"""VQGAN: picture -> grid of codes -> picture, in the architecture and with the state-dict keys of the published nets.

Esser, Rombach, Ommer 2021 (taming-transformers), in the form open-muse and LVM published: no attention, any widths.
The defaults of `VQGANConfig` are LVM's second tokenizer (277 tensors, 146,244,675 parameters).

    vq = VQGAN.from_pretrained("world-48px-f8-1024")
    codes = vq.encode(pixels)      # float [n,3,y,x] in [0,1] -> int64 [n,t], row-major
    vq.decode(codes)               # -> float [n,3,y,x] in [0,1]
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import operator
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from tokenizer.norm import GroupNorm
from tokenizer.quantizer import VectorQuantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

RANGE_TOLERANCE = 1e-4


class TokenizerError(ValueError):
    """Pixels, codes, a configuration or a file that the tokenizer cannot take; the message names the remedy."""

    user_error = True


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    hidden_channels: int = 128  # width at full resolution
    channel_mult: tuple[int, ...] = (
        1,
        2,
        2,
        4,
        6,
    )  # width of each level; between two, the picture is halved
    num_res_blocks: int = 2  # per level of the encoder; the decoder has one more
    attn_resolutions: tuple[int, ...] = ()  # side lengths of the feature map at which attention follows each block
    no_attn_mid_block: bool = True  # False: attention between the two middle blocks
    z_channels: int = 64  # what the encoder puts out
    quantized_embed_dim: int = 64  # width of a code
    num_embeddings: int = 8192  # number of codes
    resolution: int = 256  # side of the square pictures the net was made for
    num_channels: int = 3
    dropout: float = 0.0
    resample_with_conv: bool = True
    commitment_cost: float = 0.25  # weight of the encoder's pull towards its code, in training
    input_range: tuple[float, float] = (0.0, 1.0)  # what the net itself takes; (-1, 1) for taming's
    grid: tuple[int, int] | None = None  # rows and columns of codes of one picture; None: square, from the resolution
    norm_groups: int = 32  # of every GroupNorm; hidden_channels / 8 for small nets, which otherwise lose flat colours

    def __post_init__(self) -> None:
        for name in (
            "hidden_channels",
            "num_res_blocks",
            "z_channels",
            "quantized_embed_dim",
            "num_embeddings",
            "num_channels",
            "norm_groups",
        ):
            if getattr(self, name) < 1:
                raise TokenizerError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.channel_mult or self.resolution % self.factor or self.resolution < 1:
            raise TokenizerError(
                f"resolution {self.resolution} does not divide by {self.factor}, "
                f"the reduction of channel_mult {list(self.channel_mult)}; change one of them"
            )
        for mult in self.channel_mult:
            if mult < 1 or self.hidden_channels * mult % self.norm_groups:
                raise TokenizerError(
                    f"{self.hidden_channels * mult} channels do not divide into norm_groups {self.norm_groups}; "
                    f"use hidden_channels / 8 = {max(1, self.hidden_channels // 8)}"
                )
        if len(self.input_range) != 2 or not -math.inf < self.input_range[0] < self.input_range[1] < math.inf:
            raise TokenizerError(f"input_range {list(self.input_range)} must be (low, high) with low < high")
        if not 0 <= self.dropout < 1:
            raise TokenizerError(f"dropout is {self.dropout:g}; it must be in [0, 1), e.g. 0")
        if not 0 <= self.commitment_cost < math.inf:
            raise TokenizerError(f"commitment_cost is {self.commitment_cost:g}; it must be at least 0, e.g. 0.25")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise TokenizerError(f"grid is {list(self.grid)}; it must be rows and columns of at least 1, e.g. [6, 6]")

    @property
    def factor(self) -> int:
        """How many pixels a side one code stands for (f)."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def square_grid(self) -> tuple[int, int]:
        """The codes of a square picture of `resolution`."""
        side = self.resolution // self.factor
        return side, side

    @property
    def code_grid(self) -> tuple[int, int]:
        return self.grid or self.square_grid


# Published nets by name, to build untrained (`VQGAN(PRESETS["lvm-f16-8192"])`) or to compare a checkpoint with.
TAMING = VQGANConfig(
    channel_mult=(1, 1, 2, 2, 4),
    attn_resolutions=(16,),
    no_attn_mid_block=False,
    z_channels=256,
    quantized_embed_dim=256,
    num_embeddings=1024,
    input_range=(-1.0, 1.0),
)
PRESETS = {
    "lvm-f16-8192": VQGANConfig(),  # LVM 2024 and open-muse: the same architecture
    "taming-f16-1024": TAMING,  # Esser et al. 2021, both trained on ImageNet
    "taming-f16-16384": dataclasses.replace(TAMING, num_embeddings=16384),
}


def group_norm(width: int, config: VQGANConfig) -> GroupNorm:
    return GroupNorm(config.norm_groups, width, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, config: VQGANConfig):
        super().__init__()
        self.norm1 = group_norm(width_in, config)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = group_norm(width_out, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n e y x']":
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention of one head over all positions; its projections are 1x1 convolutions."""

    def __init__(self, width: int, config: VQGANConfig):
        super().__init__()
        self.norm = group_norm(width, config)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n d y x']":
        h = self.norm(x)
        q, k, v = (rearrange(conv(h), "n d y x -> n 1 (y x) d") for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "n 1 (y x) d -> n d y x", y=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, width: int, with_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2) if with_conv else None

    def forward(self, x: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n d y/2 x/2']":
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as published


class Upsample(nn.Module):
    def __init__(self, width: int, with_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if with_conv else None

    def forward(self, x: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n d 2*y 2*x']":
        # Not F.interpolate: compiled for the CPU in bfloat16 (torch 2.13) its backward is zero for channels_last.
        x = rearrange(repeat(x, "n d y x -> n (y a) (x b) d", a=2, b=2), "n y x d -> n d y x")
        return x if self.conv is None else self.conv(x)


class Level(nn.Module):
    """The blocks of one resolution; `attn` is empty or holds one attention for each block."""

    def __init__(self, width_in: int, width_out: int, num_blocks: int, resolution: int, config: VQGANConfig):
        super().__init__()
        widths = [width_in] + [width_out] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, config) for a, b in itertools.pairwise(widths))
        with_attention = resolution in config.attn_resolutions
        self.attn = nn.ModuleList(AttnBlock(width_out, config) for _ in range(num_blocks if with_attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n e y2 x2']":
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Middle(nn.Module):
    def __init__(self, width: int, config: VQGANConfig):
        super().__init__()
        self.block_1 = ResnetBlock(width, width, config)
        self.attn_1 = None if config.no_attn_mid_block else AttnBlock(width, config)
        self.block_2 = ResnetBlock(width, width, config)

    def forward(self, x: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n d y x']":
        x = self.block_1(x)
        return self.block_2(x if self.attn_1 is None else self.attn_1(x))


class Encoder(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.hidden_channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(config.num_channels, config.hidden_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else config.hidden_channels
            level = Level(before, width, config.num_res_blocks, config.resolution // 2**i, config)
            if i + 1 < len(widths):
                level.downsample = Downsample(width, config.resample_with_conv)
            self.down.append(level)
        self.mid = Middle(widths[-1], config)
        self.norm_out = group_norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n z h w']":
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.hidden_channels * mult for mult in config.channel_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList()  # index 0 is full resolution, which runs last
        for i, width in enumerate(widths):
            before = widths[min(i + 1, last)]
            level = Level(before, width, config.num_res_blocks + 1, config.resolution // 2**i, config)
            if i > 0:
                level.upsample = Upsample(width, config.resample_with_conv)
            self.up.append(level)
        self.norm_out = group_norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], config.num_channels, 3, padding=1)

    def features(self, z: "Float[Tensor, 'n z h w']") -> "Float[Tensor, 'n d y x']":
        """What the last layer, `conv_out`, is fed."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return F.silu(self.norm_out(x))

    def forward(self, z: "Float[Tensor, 'n z h w']") -> "Float[Tensor, 'n c y x']":
        return self.conv_out(self.features(z))


class VQGAN(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.num_embeddings, config.quantized_embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.quantized_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.quantized_embed_dim, config.z_channels, 1)

    @classmethod
    def from_pretrained(cls, path_or_name: "str | os.PathLike[str]") -> "VQGAN":
        """From a folder (published or ours), a taming `.ckpt`, or one of `pretrained_names()`; float32, eval mode.

        Raises TokenizerError naming the first missing, foreign or misshapen tensor.
        """
        from tokenizer.load import load

        return load(path_or_name)

    def save_pretrained(
        self, path: "str | os.PathLike[str]", dtype: torch.dtype = torch.float32, for_reference: bool = False
    ) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`; float16 is computed in float32 again.

        `for_reference` writes what LVM's and open-muse's code opens: their configuration keys alone, and the state
        dict as `pytorch_model.bin`, the one weight file it looks for. A TokenizerError where it would compute another
        net: another input range or number of groups, a grid that is not square, attention on levels of one block.
        """
        from tokenizer.load import save, save_for_reference

        if for_reference:
            save_for_reference(self, path, dtype)
        else:
            save(self, path, dtype)

    @property
    def tokens_per_picture(self) -> int:
        return math.prod(self.config.code_grid)

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides which codes a picture gets: equal fingerprint, same vocabulary of codes."""
        decides_nothing = ("dropout", "commitment_cost")
        config = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in decides_nothing}
        config["grid"] = self.config.code_grid
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.", "quantize.")):
                values = tensor.detach().float().cpu().contiguous()
                digest.update(f"{name} {list(values.shape)}".encode())
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def latents(self, pixels: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n d h w']":
        """What is quantised; pixels in [0,1], nothing is checked."""
        low, high = self.config.input_range
        if (low, high) != (0.0, 1.0):
            pixels = pixels * (high - low) + low
        return self.quant_conv(self.encoder(pixels))

    def pixels(self, latents: "Float[Tensor, 'n d h w']") -> "Float[Tensor, 'n c y x']":
        """The inverse of `latents`; about [0,1], not clamped."""
        return self.in_unit_range(self.decoder(self.post_quant_conv(latents)))

    def in_unit_range(self, decoded: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n c y x']":
        """From the net's own range of pixels to [0,1]."""
        low, high = self.config.input_range
        return decoded if (low, high) == (0.0, 1.0) else (decoded - low) / (high - low)

    @torch.no_grad()
    def encode(self, pixels: "Float[Tensor, 'n c y x']") -> "Int[Tensor, 'n t']":
        """Codes, row-major. Any size that divides by `config.factor`; else, or outside [0,1], a TokenizerError."""
        _check_pixels(pixels, self.config)
        if not len(pixels):
            num_tokens = math.prod(side // self.config.factor for side in pixels.shape[2:])
            return torch.zeros(0, num_tokens, dtype=torch.int64, device=pixels.device)
        with full_float32():
            latents = self.latents(pixels.to(self.quant_conv.weight.dtype))
            codes = self.quantize.nearest(rearrange(latents, "n d h w -> (n h w) d"))
        return rearrange(codes, "(n t) -> n t", n=len(pixels))

    @torch.no_grad()
    def decode(self, codes: "Int[Tensor, 'n t']", grid: tuple[int, int] | None = None) -> "Float[Tensor, 'n c y x']":
        """Pixels in [0,1]. `grid` (rows, columns) defaults to the tokenizer's own, or square for another number."""
        rows, columns = choose_grid(codes.shape, self.config, grid)
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TokenizerError(f"codes are {codes.dtype}; they must be integers")
        codes = codes.long()  # torch has no minimum of uint16, which a store holds
        if codes.numel():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.config.num_embeddings:
                bad = low if low < 0 else high
                raise TokenizerError(
                    f"code {bad} is outside 0..{self.config.num_embeddings - 1}, the codes of this tokenizer"
                )
        latents = rearrange(self.quantize.lookup(codes), "n (h w) d -> n d h w", h=rows, w=columns)
        with full_float32():
            return self.pixels(latents).float().clamp(0.0, 1.0)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 within: a GPU's float32 convolutions use it by default, and codes would differ from the reference's."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def choose_grid(
    shape: tuple[int, ...] | torch.Size, config: VQGANConfig, grid: tuple[int, int] | None
) -> tuple[int, int]:
    """The (rows, columns) that codes [n,t] are laid out in."""
    if len(shape) != 2:
        raise TokenizerError(f"codes have shape {list(shape)}; they must be [pictures, tokens]")
    num_tokens = int(shape[1])
    side = math.isqrt(num_tokens)
    if grid is None:
        grid = config.code_grid if math.prod(config.code_grid) == num_tokens else (side, side)
    try:
        rows, columns = (operator.index(length) for length in grid)
    except (TypeError, ValueError):
        raise TokenizerError(f"grid is {grid!r}; it must be (rows, columns), e.g. {config.code_grid}") from None
    if rows < 1 or columns < 1 or rows * columns != num_tokens:
        raise TokenizerError(f"{num_tokens} codes do not fill {rows} x {columns}; pass grid=(rows, columns)")
    return rows, columns


def _check_pixels(pixels: Tensor, config: VQGANConfig) -> None:
    f, c = config.factor, config.num_channels
    if pixels.ndim != 4 or pixels.shape[1] != c:
        raise TokenizerError(f"pixels have shape {list(pixels.shape)}; they must be [pictures, {c}, rows, columns]")
    if not pixels.is_floating_point():
        raise TokenizerError(f"pixels are {pixels.dtype}; divide by 255 for floats in [0,1]")
    y, x = pixels.shape[2:]
    if y % f or x % f or not y or not x:
        raise TokenizerError(f"pictures of {y} x {x} pixels do not divide by {f}; resize them to {config.resolution}")
    if pixels.numel():
        low, high = (float(value) for value in torch.aminmax(pixels))
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # also false for NaN
            raise TokenizerError(f"pixels lie in [{low:.4g}, {high:.4g}]; they must be in [0,1] and not NaN")
