"""Look after token stores: lvm store ls|verify|cat|merge|split|exclude STORE ...

lvm store ls STORE                            what is in it
lvm store verify STORE                        read every byte; exit 2 and the damaged shard's name if one is
lvm store cat STORE ID [--channel C]          codes of an item, a line of JSON for each picture
lvm store merge OUT STORE STORE ...           one store of several
lvm store split STORE OUT_A OUT_B --share S   two stores of one, no group on both sides
lvm store exclude STORE FILE | --ids ID ...   take items down: no reader shows them from now on
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lvm.commands.tokenize import share
from lvm.runtime import UserError
from lvm.store import TokenStore, exclude, merge, split, verify
from lvm.store.card import facts
from lvm.store.store import read_ids


def summary(store: TokenStore) -> str:
    """What is in a store, a few lines for people."""
    rows = facts(store)
    if len(store.excluded):
        rows.append(("excluded", f"{len(store.excluded):,} of the items"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def cat(store: TokenStore, id: str, channel: str | None = None) -> Iterator[str]:
    """A line of JSON for each picture that the views of an id hold themselves. Raises `UserError` if there is none."""
    found = store.find([id])
    if id not in found:
        raise UserError(f"{store.where} has no item {id}; `lvm inspect` shows some that it has")
    wanted = [store.bit(channel)] if channel is not None else range(len(store.channels))
    shown = False
    for i in found[id][np.argsort(store.view[found[id]])].tolist():
        for bit in wanted:
            if not store.channel_mask[i] >> bit & 1:
                continue
            count = int(store.num_pictures[i])
            codes = store.pictures(np.full(count, i), bit, np.arange(count))
            for frame in range(count):
                shown = True
                line = {"id": id, "view": int(store.view[i]), "channel": store.channels[bit], "frame": frame}
                strings = {key: text for key, text in store.strings(i).items() if key != "id"}
                yield json.dumps({**line, "codes": codes[frame].tolist(), **strings}, ensure_ascii=False)
    if not shown:
        raise UserError(f"{id} in {store.where} has no channel {channel!r}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "lvm store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name in ("ls", "verify"):
        actions.add_parser(name).add_argument("store")
    action = actions.add_parser("cat")
    action.add_argument("store")
    action.add_argument("id")
    action.add_argument("--channel", help="this one alone")
    action = actions.add_parser("merge")
    action.add_argument("out")
    action.add_argument("stores", nargs="+", metavar="store")
    action = actions.add_parser("split")
    action.add_argument("store")
    action.add_argument("out_a")
    action.add_argument("out_b")
    rule = action.add_mutually_exclusive_group(required=True)
    rule.add_argument("--share", type=share, help="of the groups, to OUT_B: 0.1 or 10%%")
    rule.add_argument("--ids", metavar="FILE", help="ids, one a line, that go to OUT_B with their whole groups")
    action = actions.add_parser("exclude")
    action.add_argument("store")
    listed = action.add_mutually_exclusive_group(required=True)
    listed.add_argument("file", nargs="?", help="ids, one a line")
    listed.add_argument("--ids", nargs="+", metavar="ID")
    action.add_argument("--ignore-unknown", action="store_true", help="exclude the others, if some are not there")
    arguments = parser.parse_args(argv)

    if arguments.action == "ls":
        print(summary(TokenStore(arguments.store)))
    elif arguments.action == "verify":
        store = verify(arguments.store)
        print(f"{arguments.store}: {len(store.shards)} shards, {len(store):,} items, all as written")
    elif arguments.action == "cat":
        for line in cat(TokenStore(arguments.store), arguments.id, arguments.channel):
            print(line)
    elif arguments.action == "merge":
        _say(merge(arguments.out, arguments.stores))
    elif arguments.action == "split":
        ids = None if arguments.ids is None else read_ids(Path(arguments.ids))
        for store in split(arguments.store, arguments.out_a, arguments.out_b, arguments.share, ids):
            _say(store)
    elif arguments.action == "exclude":
        ids = arguments.ids if arguments.ids is not None else read_ids(Path(arguments.file))
        store, unknown = exclude(arguments.store, ids, arguments.ignore_unknown)
        print(f"{store.where}: {len(store.excluded):,} of {len(store):,} items are excluded")
        if unknown:
            print(f"{len(unknown)} of {len(ids)} ids are not there: {', '.join(unknown[:5])}", file=sys.stderr)
    return 0


def _say(store: TokenStore) -> None:
    print(f"{store.where}: {len(store.shards)} shards, {len(store):,} items")
