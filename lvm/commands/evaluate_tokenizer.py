"""Score a tokenizer on pictures: lvm evaluate-tokenizer NAME_OR_PATH --data DIR --json FILE

PSNR, SSIM, codes in use, and beside them the PSNR of one mean colour a code, blown up: near it, a picture is a blur. Of
sources with annotations also what each decoded annotation still says. LPIPS and rFID need weight files of your own.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from lvm.evaluation.annotations import AnnotationJudge
from lvm.runtime import UserError, write_json
from lvm.sources.world import WorldSource
from lvm.world.render import FAR, NEAR
from tokenizer import VQGAN
from tokenizer.evaluate import Evaluation, PictureStream, evaluate
from tokenizer.fid import load_inception

RESIZE = {"squash": "squashed to", "crop": "central square resized to", "none": "drawn or stored at"}
ALL = ("psnr", "thumbnail_psnr", "ssim", "lpips")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "lvm evaluate-tokenizer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", help="name of a shipped tokenizer, or its folder or .ckpt")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of the source, as resize=crop")
    parser.add_argument("--data", required=True, help="folder of pictures, a source in configs/data/source, or a .npy")
    parser.add_argument("--json", required=True, help="file to write the scores to")
    parser.add_argument("--sheet", metavar="FILE.png", help="also write pictures, decoded ones and thumbnails")
    parser.add_argument("--max-pictures", type=int, default=2048, help="at most as many (2048)")
    parser.add_argument(
        "--held-out", type=int, default=0, metavar="PER_MILLE",
        help="only the groups that a training with this share held out; 0: all (0)",
    )  # fmt: skip
    parser.add_argument(
        "--lpips", nargs="+", metavar="FILE", help="weights of LPIPS: VGG16's features and the heads, one file or two"
    )
    parser.add_argument("--inception", metavar="FILE", help="weights of FID's Inception (pt_inception-*.pth), for rFID")
    parser.add_argument("--device", help="as cuda:1 (cuda where there is one)")
    parser.add_argument("--precision", choices=("exact", "auto"), default="exact", help="auto: bfloat16 where it pays")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.max_pictures < 1:
        raise UserError(f"--max-pictures {arguments.max_pictures}: must be at least 1")
    if not 0 <= arguments.held_out <= 1000:
        raise UserError(f"--held-out {arguments.held_out}: must be from 0 to 1000")
    device = open_device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    vq = VQGAN.from_pretrained(arguments.tokenizer)
    size = vq.config.resolution
    if vq.config.code_grid != vq.config.square_grid:
        (rows, columns), (side, _) = vq.config.code_grid, vq.config.square_grid
        raise UserError(
            f"{arguments.tokenizer} has a grid of {rows} x {columns} codes, but pictures are read as squares of {size} "
            f"px, which fill {side} x {side}; score it with tokenizer.evaluate.evaluate on pictures of its own size"
        )
    lpips = None
    if arguments.lpips:
        from tokenizer.perceptual import LPIPS

        lpips = LPIPS.from_files(arguments.lpips).to(device)
    inception = load_inception(arguments.inception).to(device) if arguments.inception else None
    stream = PictureStream(
        arguments.data, size, arguments.max_pictures, arguments.overrides, held_out_per_mille=arguments.held_out
    )
    cell = size * max(1, 96 // size)
    triples = max(1, 1536 // (3 * cell))
    found = evaluate(
        vq,
        stream,
        device=device,
        precision=arguments.precision,
        judge=AnnotationJudge((NEAR, FAR) if isinstance(stream.source, WorldSource) else None),
        lpips=lpips,
        inception=inception,
        examples=2 * triples if arguments.sheet else 0,
    )
    scores = found.scores | {
        "tokenizer": arguments.tokenizer,
        "fingerprint": vq.fingerprint,
        "data": arguments.data,
        "device": str(device),
        "precision": arguments.precision,
        "resize": stream.resize,
        "crop": "centre" if stream.resize == "crop" else "none",
        "size": size,
        "range": [0.0, 1.0],
        "net_range": list(vq.config.input_range),
        "unreadable": stream.num_unreadable,
        "unreadable_files": stream.unreadable,
    }
    write_json(arguments.json, scores)
    print("\n".join(lines(scores, vq)))
    if arguments.sheet:
        write_sheet(arguments.sheet, found, vq, triples, cell)
        print(arguments.sheet)
    return 0


def open_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {name!r} cannot be used ({reason})") from None


def lines(scores: dict[str, Any], vq: VQGAN) -> list[str]:
    """What is printed: how the pictures were made, the scores of all, a row for each channel."""
    size, (low, high) = scores["size"], vq.config.input_range
    rows, columns = vq.config.code_grid
    out = [
        f"{scores['pictures']} pictures of {scores['data']}, {RESIZE[scores['resize']]} {size} x {size} pixels "
        f"in [0,1] (the net takes [{low:g},{high:g}]), compared as 8-bit; {scores['precision']} on {scores['device']}"
    ]
    if scores["unreadable"]:
        named = "; ".join(scores["unreadable_files"][:3])
        out.append(f"{scores['unreadable']} units could not be read and are left out: {named}")
    thumbnail = f"{rows} x {columns} thumbnail"
    out.append(f"psnr {scores['psnr']:.2f} dB ({thumbnail} blown up {scores['thumbnail_psnr']:.2f})  " + extras(scores))
    out.append(
        f"codes in use {scores['code_usage']:.1%} of {vq.config.num_embeddings} ({scores['dead_codes']} dead) over "
        f"{scores['tokens']:,} tokens, perplexity {scores['code_perplexity']:.1f}; "
        f"{scores['pictures_per_second']:.4g} pictures/s"
    )
    if list(scores["channels"]) != ["image"]:
        for channel, row in scores["channels"].items():
            said = "".join(f"  {name} {value:.4g}" for name, value in row.items() if name not in (*ALL, "pictures"))
            out.append(
                f"{channel:<14}{row['pictures']:>6}  psnr {row['psnr']:.2f} ({row['thumbnail_psnr']:.2f})  "
                f"ssim {row['ssim']:.3f}{said}"
            )
    return out


def extras(scores: dict[str, Any]) -> str:
    text = f"ssim {scores['ssim']:.4f}"
    if "lpips" in scores:
        text += f"  lpips {scores['lpips']:.4f}"
    if "rfid" in scores:
        few = ", too few to compare with others' figures" if scores["rfid_pictures"] < 10_000 else ""
        text += f"  rfid {scores['rfid']:.3f} (over {scores['rfid_pictures']} images{few})"
    return text


def write_sheet(file: str, found: Evaluation, vq: VQGAN, triples: int, cell: int) -> None:
    """Each channel's title beside two rows of picture, decoded picture, thumbnail, `triples` times."""
    from lvm.evaluation import Grid, report_sheet

    rows, columns = vq.config.code_grid
    names = ("picture", "decoded", f"{rows} x {columns}") * triples
    grids = []
    for channel, examples in found.examples.items():
        pictures = [picture for triple in examples for picture in triple]
        cut = [pictures[i : i + len(names)] for i in range(0, len(pictures), len(names))]
        grids.append(Grid(channel, channel, names, cut))
    report_sheet(file, grids, rows_each=2, cell=cell)
