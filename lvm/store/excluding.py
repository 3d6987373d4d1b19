"""Taking items down: their ids go into the store's exclude.txt, and no reader shows them again.

The tars stay as they are, and so do the numbers of items: `lvm store merge` writes a store without the codes too.
"""

from collections.abc import Collection
from pathlib import Path

from lvm.runtime import UserError, atomic_write
from lvm.runtime.files import locked
from lvm.store import layout
from lvm.store.remote import refuse_url
from lvm.store.store import TokenStore, read_ids


def exclude(path: str | Path, ids: Collection[str], ignore_unknown: bool = False) -> tuple[TokenStore, list[str]]:
    """Add ids to the list of the store; the store as it reads then, and the ids that are not in it.

    Raises `UserError` naming those, and changes nothing, unless `ignore_unknown`.
    """
    refuse_url(path, "exclude writes into", "run it where the store lies")
    store = TokenStore(path)
    found = store.find(ids)
    unknown = [id for id in dict.fromkeys(ids) if id not in found]
    if not ignore_unknown:
        check_known(store, ids, found, "mend the list, or give --ignore-unknown to exclude the others")
    target = layout.exclude_path(store.path)
    with locked(target.with_name(".exclude.lock")):
        listed = read_ids(target) if target.is_file() else []
        already = set(listed)
        listed += [id for id in found if id not in already]
        atomic_write(target, "".join(f"{id}\n" for id in listed))
    return TokenStore(path), unknown


def check_known(store: TokenStore, ids: Collection[str], found: Collection[str], remedy: str) -> None:
    """Raise `UserError` naming ids that are not in the store."""
    unknown = [id for id in dict.fromkeys(ids) if id not in found]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(f"{store.where} has no {', '.join(unknown[:5])}{more}; {remedy}")
