"""Foreign token files: the JSONL of the reference (ytongbai/LVM) and the train.bin of DeLVM, in and out, code for code.

    store = import_tokens("davis.jsonl", "runs/davis", vocabulary)                  # each line an item of the store
    write_jsonl("davis.jsonl", store_sentences(store))                              # the same bytes again
    write_delvm("train.bin", plan_sentences(plan, entry="depth"))                   # one epoch of one entry

Both formats hold codes alone, without BOS or EOS; code 0 is a code like any other. Foreign files come without ids: a
sentence is known as `<file>:<line>`, which is also the group that held-out decisions are made on.
"""

from lvm.interop.delvm import meta_path, read_delvm, write_delvm
from lvm.interop.from_store import plan_sentences, store_sentences
from lvm.interop.jsonl import read_jsonl, write_jsonl
from lvm.interop.to_store import READERS, Vocabulary, import_tokens
from lvm.interop.token_file import Sentence

__all__ = [
    "READERS",
    "Sentence",
    "Vocabulary",
    "import_tokens",
    "meta_path",
    "plan_sentences",
    "read_delvm",
    "read_jsonl",
    "store_sentences",
    "write_delvm",
    "write_jsonl",
]
