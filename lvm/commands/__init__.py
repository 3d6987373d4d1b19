"""`lvm <verb> [arguments]`: each verb is a module in this folder, imported only when it is asked for.

A verb's module has `main(argv: list[str]) -> int | None`; the first line of its docstring is its line in the list.
An underscore in the module's name is a dash in the verb. Errors of the user are one line and exit code 2.
"""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lvm.runtime.errors import UserError, exit_with_one_line
from lvm.runtime.memory import keep_freed_memory


def verbs() -> dict[str, Path]:
    """Every verb and the file it lives in, sorted."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {file.stem.replace("_", "-"): file for file in files if not file.stem.startswith("_")}


def help_line(file: Path) -> str:
    """The first line of a module's docstring, read without importing the module (and torch with it)."""
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    return docstring.splitlines()[0] if docstring else ""


def list_of_verbs() -> str:
    known = verbs()
    width = max(map(len, known), default=0)
    lines = [f"  {verb:<{width}}  {help_line(file)}".rstrip() for verb, file in known.items()]
    return "\n".join(["lvm <verb> [arguments]; lvm <verb> --help says more", "", *lines])


def run(argv: Sequence[str]) -> int | None:
    """Run one verb; raises `UserError` for an unknown one."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(list_of_verbs())
        return 0
    verb, *arguments = argv
    known = verbs()
    if verb not in known:
        near = difflib.get_close_matches(verb, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"lvm has no verb {verb!r}; {hint}")
    sys.argv = [f"lvm {verb}", *arguments]  # what argparse calls the program in usage and errors
    result: int | None = importlib.import_module(f"lvm.commands.{known[verb].stem}").main(arguments)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """The console script; always ends in SystemExit."""
    keep_freed_memory()
    given = sys.argv[1:] if argv is None else argv
    exit_with_one_line(lambda: run(given))
