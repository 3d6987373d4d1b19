"""Pictures to codes: lvm bench tokenize [tokenizer=NAME_OR_PATH pictures=256 batch_size=64 rounds=5 compile=auto]

Ours: `BulkEncoder`, as `lvm tokenize` uses it (bf16 where the device has units for it, channels_last, compiled where
that is possible). The alternative: `VQGAN.encode` in eager float32 and NCHW, the same pictures in the same batches.
Limit: the encoder's FLOPs at the speed of a matrix product. Uncompiled and compiled work is the same net.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange, repeat
from torch.utils.flop_counter import FlopCounterMode

from lvm.commands.bench import choose_device, matmul_peak, measured, result, seconds_of, table, take_turns
from lvm.runtime.machine import compile_problem
from tokenizer import VQGAN, BulkEncoder, VQGANConfig, pretrained_names

# The demo's tokenizer (configs/tokenizer/world_48.yaml); speed does not depend on its weights.
DEMO = VQGANConfig(
    hidden_channels=32,
    channel_mult=(1, 1, 2, 3),
    num_res_blocks=1,
    z_channels=8,
    quantized_embed_dim=8,
    num_embeddings=1024,
    resolution=48,
    norm_groups=4,
)


@dataclass(frozen=True)
class Options:
    tokenizer: str = ""  # a name or folder; "": the shipped one, or an untrained net of its sizes
    pictures: int = 256  # in a round
    batch_size: int = 64
    rounds: int = 5
    compile: Literal["auto"] | bool = "auto"
    device: str = "auto"


def load(name: str) -> VQGAN:
    names = pretrained_names()
    if name or names:
        return VQGAN.from_pretrained(name or names[0])
    torch.manual_seed(0)
    return VQGAN(DEMO).eval()


def make_pictures(number: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [n, y, x, 3]: coloured blocks with noise over them."""
    random = np.random.default_rng(0)
    rows, columns = size
    blocks = random.integers(0, 256, (number, -(-rows // 8), -(-columns // 8), 3))
    pixels = repeat(blocks, "n y x c -> n (y a) (x b) c", a=8, b=8)[:, :rows, :columns]
    return np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


def eager(vq: VQGAN, pictures: np.ndarray, batch_size: int) -> torch.Tensor:
    """Codes [n, t] in eager float32."""
    device = vq.quant_conv.weight.device
    codes = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch_size):
            batch = torch.from_numpy(pictures[start : start + batch_size]).to(device)
            pixels = rearrange(batch, "n y x c -> n c y x").contiguous().float() / 255
            codes.append(vq.encode(pixels))
    return torch.cat(codes).cpu()


def run(options: Options) -> dict[str, Any]:
    device = choose_device(options.device)
    compiled = compile_problem() is None if options.compile == "auto" else options.compile
    vq = load(options.tokenizer).to(device).eval()
    bulk = BulkEncoder(vq, compile=compiled, batch_size=options.batch_size)
    pictures = make_pictures(options.pictures, bulk.size)

    compile_seconds = seconds_of(lambda: bulk.encode(pictures[: options.batch_size]), device)
    ours_codes = bulk.encode(pictures)
    their_codes = eager(vq, pictures, options.batch_size).numpy()
    contestants: dict[str, Callable[[], float]] = {
        "ours": lambda: seconds_of(lambda: bulk.encode(pictures), device),
        "alternative": lambda: seconds_of(lambda: eager(vq, pictures, options.batch_size), device),
    }
    seconds = take_turns(contestants, options.rounds)
    with FlopCounterMode(display=False) as counter:
        eager(vq, pictures[:1], 1)
    flops, peak = counter.get_total_flops(), matmul_peak(str(device))
    fastest = max(peak.values())
    kind = f"{'bf16' if bulk.bf16 else 'fp32'}, channels_last, {'compiled' if compiled else 'eager'}"
    unit, amount = "pictures/s", options.pictures
    found = result(
        "tokenize",
        options,
        measured(f"BulkEncoder: {kind}", amount, unit, seconds["ours"], first_call_seconds=compile_seconds),
        measured("VQGAN.encode: fp32, NCHW, eager", amount, unit, seconds["alternative"]),
        {
            "what": f"{flops / 1e9:.2f} GFLOP a picture at the matrix product's {fastest / 1e12:.3f} TFLOP/s",
            "rate": fastest / flops,
            "unit": unit,
            "flops_per_picture": flops,
            "matmul_flops": peak,
        },
        pixels=list(bulk.size),
        equal_codes=float((ours_codes == their_codes).mean()),
    )
    print(table(found))
    print(f"  {found['equal_codes']:.2%} of the codes are equal")
    return found
