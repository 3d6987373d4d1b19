"""Whether a store's files are what its sidecars say they were when they were written."""

from pathlib import Path

import numpy as np

from lvm.runtime import UserError, sha256_file
from lvm.store import layout
from lvm.store.job import sidecars
from lvm.store.remote import refuse_url
from lvm.store.store import TokenStore


def verify(path: str | Path) -> TokenStore:
    """Read every byte once; the store if all is well. Raises `UserError` that names the first damaged shard."""
    refuse_url(path, "verify reads", "run it where the store lies; what is fetched from there is checked as it arrives")
    store = TokenStore(path)
    by_name = {sidecar["name"]: sidecar for sidecar in sidecars(store.path)}
    for shard, (name, sha256) in enumerate(store.shards):
        remedy = f"remove {layout.sidecar_path(store.path, name)} and run the same `lvm tokenize` again"
        if "made_by" in store.info:
            remedy = f"make the store again with `lvm store {store.info['made_by'].split()[0]}`"
        if by_name.get(name, {}).get("sha256") != sha256:
            raise UserError(f"shard {name} of {path}: its sidecar is missing or not the one of store.json; {remedy}")
        files = {f"shards/{name}.tar": sha256, **by_name[name]["files"]}
        for file, expected in files.items():
            if not (store.path / file).is_file():
                raise UserError(f"shard {name} of {path}: {file} is missing; {remedy}")
            if sha256_file(store.path / file) != expected:
                raise UserError(f"shard {name} of {path}: {file} is damaged; {remedy}")
        _check_codes(store, shard, remedy)
    return store


def _check_codes(store: TokenStore, shard: int, remedy: str) -> None:
    """Codes of a foreign tokenizer hash as well as any: they must at least be codes of this one."""
    name = store.shards[shard][0]
    offsets = layout.load_column(store.path, name, "block_offset")
    rows = layout.load_column(store.path, name, "block_rows")
    flat = np.memmap(layout.tar_path(store.path, name), dtype="<u2", mode="r")
    for block, count in enumerate(rows.tolist()):
        for start in offsets[block][offsets[block] >= 0].tolist():
            codes = flat[start // 2 : start // 2 + count * store.tokens_per_picture]
            if len(codes) and int(codes.max()) >= store.num_codes:
                raise UserError(f"shard {name} of {store.path}: code {codes.max()} of {store.num_codes}; {remedy}")
