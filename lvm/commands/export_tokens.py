"""Write sentences to a foreign token file: lvm export-tokens CONFIG|STORE FILE [--format delvm] [--sentences N]

A STORE gives every item's pictures as they are stored, one sentence an item, in the order in which they were read. A
CONFIG (a data config with its KEY=VALUE overrides, as of lvm data plan) gives one epoch of --entry, or with --sentences
the mixture as it is scheduled. The files hold codes alone; jsonl is the reference's format, delvm is train.bin with
train.bin.meta.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lvm.commands.data import open_plan
from lvm.data import TokenPlan
from lvm.interop import meta_path, plan_sentences, store_sentences, write_delvm, write_jsonl
from lvm.runtime import UserError
from lvm.store import TokenStore

WRITERS: dict[str, Callable[..., int]] = {"jsonl": write_jsonl, "delvm": write_delvm}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CONFIG|STORE")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of CONFIG")
    parser.add_argument("--format", choices=WRITERS, default="jsonl", help="of FILE (jsonl)")
    parser.add_argument("--sentences", type=int, metavar="N", help="how many; all of a store or epoch if not said")
    parser.add_argument("--entry", help="of CONFIG: sentences of this entry alone")
    parser.add_argument("--channel", help="of STORE: which channel of its items (image)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.sentences is not None and arguments.sentences < 1:
        raise UserError(f"--sentences {arguments.sentences}: must be at least 1")
    source: TokenStore | None = None
    if Path(arguments.source).is_dir():
        for option, value in (("--entry", arguments.entry), ("KEY=VALUE", arguments.overrides)):
            if value:
                raise UserError(f"{option} is for a CONFIG, {arguments.source} is a folder; leave it out")
        source = TokenStore(arguments.source)
        sentences = store_sentences(source, arguments.sentences, arguments.channel or "image")
        num_codes = source.num_codes
    else:
        if arguments.channel:
            raise UserError("--channel is for a STORE; the recipes of a CONFIG name their own")
        plan = open_plan(arguments.source, arguments.overrides)
        if not isinstance(plan, TokenPlan):
            raise UserError(f"{arguments.source} reads a token file as it stands; copy that file")
        sentences = plan_sentences(plan, arguments.sentences, arguments.entry)
        num_codes = plan.num_codes
    count = WRITERS[arguments.format](arguments.file, sentences)
    print(f"{arguments.file}: {count:,} sentences")
    if arguments.format == "delvm":
        print(f"{meta_path(arguments.file)}: their bytes and lengths")
    else:
        fields = f"<|{num_codes}|>,{{tokens}},<|{num_codes + 1}|>"
        print(f"the reference's trainer adds BOS and EOS with --text_processor.fields='{fields}'")
    return 0
