"""Pictures to codes and back: lvm bench tokenize [net=NAME_OR_PATH pictures=256 batch_size=64 rounds=5 compile=auto]

Ours: `BulkEncoder`, as `lvm tokenize` uses it (bf16 where the device has units for it, channels_last, compiled where
that is possible). The alternative: the reference's way, eager float32 and NCHW, in the best batch of 1 to 8, chosen by
measuring each first. Limit: the net's FLOPs at the speed of a matrix product; `limit.with_memory`, where each layer
takes the longer of its FLOPs and of its values in and out at the bandwidth of a copy, too. `ours`, `alternative`,
`ratio` and `limit` are of encoding; `decode` holds the same four for decoding.

    lvm bench tokenize net=lvm-f16-8192 pictures=8 batch_size=8 rounds=2    # the published net: ten minutes on one core
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lvm.commands import bench
from lvm.commands.bench import (
    choose_device,
    copy_bandwidth,
    matmul_peak,
    measured,
    result,
    seconds_of,
    table,
    take_turns,
)
from lvm.runtime.machine import compile_problem, set_threads
from tokenizer import VQGAN, BulkEncoder, VQGANConfig, pretrained_names
from tokenizer.model import PRESETS, Upsample

THEIR_BATCHES = (1, 2, 4, 8)
LEAST_SQUARE = 1e-6  # of a PSNR's error: equal pictures have 108 dB


@dataclass(frozen=True)
class Options:
    net: str = ""  # shipped name, folder, .ckpt or preset (untrained); "": the demo's
    pictures: int = 256  # in a round
    batch_size: int = 64  # of ours
    rounds: int = 5
    compile: Literal["auto"] | bool = "auto"
    precision: Literal["auto", "bf16", "exact"] = "auto"  # of ours
    threads: int = 0  # of the CPU; 0: as torch has it
    device: str = "auto"


def load(name: str) -> tuple[VQGAN, bool]:
    """The net, and whether it was trained."""
    if name in PRESETS:
        torch.manual_seed(0)
        return VQGAN(PRESETS[name]).eval(), False
    return VQGAN.from_pretrained(name or pretrained_names()[0]), True


def make_pictures(number: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [n, y, x, 3]: coloured blocks with noise over them."""
    random = np.random.default_rng(0)
    rows, columns = size
    blocks = random.integers(0, 256, (number, -(-rows // 8), -(-columns // 8), 3))
    pixels = repeat(blocks, "n y x c -> n (y a) (x b) c", a=8, b=8)[:, :rows, :columns]
    return np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


# The alternative.


class NearestUpsample(Upsample):
    """As the reference has it: our own leaves NCHW."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0)
        return x if self.conv is None else self.conv(x)


def as_the_reference(vq: VQGAN) -> VQGAN:
    net = copy.deepcopy(vq)
    for module in net.modules():
        if isinstance(module, Upsample):
            module.__class__ = NearestUpsample
    return net


def as_pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """float32 NCHW in [0,1]."""
    return rearrange(torch.from_numpy(pictures).to(device), "n y x c -> n c y x").contiguous().float() / 255


def eager_encode(vq: VQGAN, pictures: np.ndarray, batch_size: int) -> np.ndarray:
    device = vq.quant_conv.weight.device
    starts = range(0, len(pictures), batch_size)
    with torch.inference_mode():
        codes = [vq.encode(as_pixels(pictures[start : start + batch_size], device)).cpu() for start in starts]
    return torch.cat(codes).numpy()


def eager_decode(vq: VQGAN, codes: np.ndarray, batch_size: int) -> np.ndarray:
    device, pieces = vq.quant_conv.weight.device, []
    with torch.inference_mode():
        for start in range(0, len(codes), batch_size):
            batch = torch.from_numpy(codes[start : start + batch_size].astype(np.int64)).to(device)
            pixels = (vq.decode(batch, vq.config.code_grid) * 255).round().to(torch.uint8)
            pieces.append(rearrange(pixels, "n c y x -> n y x c").cpu())
    return torch.cat(pieces).numpy()


def best_batch(run: Callable[[int], Any], pictures: int, device: torch.device) -> tuple[int, dict[int, float]]:
    """The batch size of most pictures a second, and the seconds a picture of each. `run` does one batch of a size."""
    seconds: dict[int, float] = {}
    for size in THEIR_BATCHES:
        if size > pictures:
            break
        spent = 0.0
        while spent < bench.LIMIT_SECONDS:
            once = seconds_of(lambda size=size: run(size), device)
            seconds[size], spent = min(seconds.get(size, once / size), once / size), spent + once
    return min(seconds, key=seconds.__getitem__), seconds


# What the figures are held against.


def spread_codebook(vq: VQGAN, pictures: np.ndarray) -> None:
    """Codes drawn like the latents: with an untrained net's own, all of a picture has one code and equality is idle."""
    with torch.no_grad():
        latents = rearrange(vq.latents(as_pixels(pictures, vq.quant_conv.weight.device)), "n d h w -> (n h w) d")
        codebook = vq.quantize.embedding.weight
        noise = torch.randn(codebook.shape, generator=torch.Generator().manual_seed(0)).to(codebook.device)
        codebook.copy_(latents.mean(0) + latents.std(0) * noise)


def flops_per_picture(config: VQGANConfig) -> tuple[int, int]:
    """Of encoding (with the distances to the codebook) and of decoding; counted without computing anything."""
    rows, columns = config.code_grid
    with torch.device("meta"):
        vq = VQGAN(config)
        pixels = torch.empty(1, config.num_channels, rows * config.factor, columns * config.factor)
        with FlopCounterMode(display=False) as encoding:
            vq.latents(pixels)
        with FlopCounterMode(display=False) as decoding:
            vq.pixels(torch.empty(1, config.quantized_embed_dim, rows, columns))
    distances = 2 * rows * columns * config.quantized_embed_dim * config.num_embeddings
    return encoding.get_total_flops() + distances, decoding.get_total_flops()


def layers(config: VQGANConfig) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(FLOPs, values read and written for a picture) of each convolution and GroupNorm of the encoder and of the
    decoder. Of a GroupNorm: a pass for its sums, and one that reads, scales, and writes; what follows a layer value by
    value (SiLU, sums) is taken as part of it, weights as kept near."""
    rows, columns = config.code_grid
    sides: list[list[tuple[int, int]]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            flops = 2 * out.numel() * module.in_channels * math.prod(module.kernel_size) // module.groups
            sides[-1].append((flops, given[0].numel() + out.numel()))
        else:
            sides[-1].append((0, 2 * given[0].numel() + out.numel()))

    with torch.device("meta"):
        vq = VQGAN(config)
        for module in vq.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.register_forward_hook(note)
        pixels = torch.empty(1, config.num_channels, rows * config.factor, columns * config.factor)
        for side in (
            lambda: vq.latents(pixels),
            lambda: vq.pixels(torch.empty(1, config.quantized_embed_dim, rows, columns)),
        ):
            sides.append([])
            side()
    return sides[0], sides[1]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    square = float(np.square(a.astype(np.float64) - b).mean())
    return float(10 * np.log10(255**2 / max(square, LEAST_SQUARE)))


def run(options: Options) -> dict[str, Any]:
    if options.threads:
        set_threads(options.threads)
    device = choose_device(options.device)
    compiled = compile_problem() is None if options.compile == "auto" else options.compile
    vq, trained = load(options.net)
    vq = vq.to(device).eval()
    pictures = make_pictures(options.pictures, BulkEncoder(vq, batch_size=1).size)
    if not trained:
        spread_codebook(vq, pictures[:1])
    bulk = BulkEncoder(vq, compile=compiled, batch_size=options.batch_size, precision=options.precision)
    reference = as_the_reference(vq)

    first_encode = seconds_of(lambda: bulk.encode(pictures[: options.batch_size]), device)
    size, tried = best_batch(lambda size: eager_encode(reference, pictures[:size], size), len(pictures), device)
    codes, their_codes = bulk.encode(pictures), eager_encode(reference, pictures, size)
    encoding = take_turns(
        {
            "ours": lambda: seconds_of(lambda: bulk.encode(pictures), device),
            "alternative": lambda: seconds_of(lambda: eager_encode(reference, pictures, size), device),
        },
        options.rounds,
    )
    first_decode = seconds_of(lambda: bulk.decode(codes[: options.batch_size]), device)
    back, back_tried = best_batch(lambda size: eager_decode(reference, codes[:size], size), len(codes), device)
    again, their_again = bulk.decode(codes), eager_decode(reference, their_codes, back)
    decoding = take_turns(
        {
            "ours": lambda: seconds_of(lambda: bulk.decode(codes), device),
            "alternative": lambda: seconds_of(lambda: eager_decode(reference, codes, back), device),
        },
        options.rounds,
    )

    kind = f"{'bf16' if bulk.bf16 else 'fp32'}, channels_last, {'compiled' if compiled else 'eager'}"
    peak, unit = matmul_peak(str(device)), "pictures/s"
    bandwidth, value_bytes = copy_bandwidth(str(device)), 2 if bulk.bf16 else 4

    def outcome(
        seconds: dict[str, list[float]],
        first: float,
        size: int,
        tried: dict[int, float],
        flops: int,
        costs: list[tuple[int, int]],
    ) -> Any:
        rate, ours = max(peak.values()) / flops, f"BulkEncoder, batches of {options.batch_size}: {kind}"
        moved = value_bytes * sum(values for _, values in costs)
        least = sum(max(f / max(peak.values()), value_bytes * values / bandwidth) for f, values in costs)
        by_batch = {str(tried_size): 1 / each for tried_size, each in tried.items()}
        return (
            measured(ours, options.pictures, unit, seconds["ours"], first_call_seconds=first),
            measured(
                f"VQGAN, batches of {size}: fp32, NCHW, eager",
                options.pictures,
                unit,
                seconds["alternative"],
                rate_by_batch=by_batch,
            ),
            {
                "what": f"{flops / 1e9:.2f} GFLOP a picture at the matrix product's {rate * flops / 1e12:.3f} TFLOP/s",
                "rate": rate,
                "unit": unit,
                "flops_per_picture": flops,
                "matmul_flops": peak,
                "bytes_per_picture": moved,
                "copy_bytes_per_second": bandwidth,
                "with_memory": 1 / least,
            },
        )

    encode_flops, decode_flops = flops_per_picture(vq.config)
    encoder, decoder = layers(vq.config)
    decoded = result("tokenize", options, *outcome(decoding, first_decode, back, back_tried, decode_flops, decoder))
    found = result(
        "tokenize",
        options,
        *outcome(encoding, first_encode, size, tried, encode_flops, encoder),
        decode={key: decoded[key] for key in ("ours", "alternative", "ratio", "limit")},
        pixels=list(bulk.size),
        threads=torch.get_num_threads(),
        trained=trained,
        equal_codes=float((codes == their_codes).mean()),
        psnr_between_decodes=psnr(again, their_again),
    )
    for part in (found, found["decode"] | {"benchmark": "decode"}):
        limit = part["limit"]
        print(table(part))
        both, moved = limit["with_memory"], limit["bytes_per_picture"]
        print(
            f"  {both:,.1f} where a layer's values take longer than its FLOPs ({moved / 1e6:,.1f} MB a picture at a "
            f"copy's {bandwidth / 1e9:,.1f} GB/s): {part['ours']['rate'] / both:.1%} of it"
        )
    between = f"{found['psnr_between_decodes']:.1f} dB between the two ways there and back"
    print(f"  {found['equal_codes']:.2%} of the codes are equal; {between}")
    return found
