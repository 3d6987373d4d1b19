"""Score a tokenizer on pictures: lvm evaluate-tokenizer NAME_OR_PATH --data DIR --json FILE"""

import argparse
from collections.abc import Sequence

import numpy as np

from lvm.runtime import UserError, write_json
from tokenizer import VQGAN
from tokenizer.evaluate import evaluate_tokenizer, read_pictures


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lvm evaluate-tokenizer", description=__doc__)
    parser.add_argument("tokenizer", help="name of a shipped tokenizer, or its folder or .ckpt")
    parser.add_argument("--data", required=True, help="folder of pictures, a source in configs/data/source, or a .npy")
    parser.add_argument("--json", required=True, help="file to write the scores to")
    parser.add_argument("--max-pictures", type=int, default=2048, help="as many, whole units at a time (2048)")
    arguments = parser.parse_args(argv)
    if arguments.max_pictures < 1:
        raise UserError(f"--max-pictures {arguments.max_pictures}: must be at least 1")
    vq = VQGAN.from_pretrained(arguments.tokenizer)
    found = read_pictures(arguments.data, vq.config.resolution, arguments.max_pictures, held_out_per_mille=0)
    pictures = np.ascontiguousarray(found.train[: arguments.max_pictures])
    scores = evaluate_tokenizer(vq, pictures)
    write_json(arguments.json, scores)
    print("  ".join(f"{key} {value:.4g}" for key, value in scores.items()))
    return 0
