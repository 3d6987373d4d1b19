"""Make a token store of a foreign token file: lvm import-tokens FILE STORE --tokenizer NAME_OR_PATH [--format delvm]

FILE is the reference's JSONL, or DeLVM's train.bin with train.bin.meta beside it. Every sentence becomes an item of the
store, shown by entries with `recipe: verbatim` (options `pictures`, how many a sentence holds). The file does not say
which tokenizer its codes are of: name the one it was made with.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lvm.interop import READERS, Vocabulary, import_tokens
from lvm.interop.to_store import SHARD_SIZE
from tokenizer import VQGAN


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("store", type=Path, metavar="STORE", help="folder to write")
    parser.add_argument("--tokenizer", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--format", choices=READERS, default="jsonl", help="of FILE (jsonl)")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"sentences in a tar ({SHARD_SIZE})")
    arguments = parser.parse_args(argv)
    vqgan = VQGAN.from_pretrained(arguments.tokenizer)
    config = vqgan.config
    vocabulary = Vocabulary(
        arguments.tokenizer, vqgan.fingerprint, config.num_embeddings, config.code_grid, config.resolution
    )
    store = import_tokens(arguments.file, arguments.store, vocabulary, arguments.format, arguments.shard_size)
    print(f"{arguments.store}: {len(store):,} sentences")
    for pictures, sentences in sorted(Counter(store.num_pictures.tolist()).items()):
        print(f"  {sentences:,} of {pictures} pictures: recipe verbatim, pictures {pictures}")
    return 0
