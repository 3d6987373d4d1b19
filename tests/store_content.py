"""What two token stores must have in common to be the same one."""

from pathlib import Path


def content(store):
    """All files of a store but leases and what killed processes were writing; of the card all but the command."""
    found = {}
    for path in sorted(Path(store).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            lines = path.read_bytes().split(b"\n")
            found[str(path.relative_to(store))] = [line for line in lines if not line.startswith(b"| made by |")]
    return found
