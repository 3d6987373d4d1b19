"""List runs: lvm runs [FOLDER] [--json] [--watch SECONDS]

One line a run below FOLDER (default: runs), sweeps too: state (Slurm's where it was submitted), step, tokens, loss,
loss of validation, tokens/s, last checkpoint and its age, restarts, time left to the last step and to the job's limit,
and where it runs. A failed one tells the last error of its logs. docs/slurm.md explains the states.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lvm.cluster.runs import as_json, list_runs, table
from lvm.runtime import UserError

CLEAR = "\x1b[2J\x1b[H"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="a list of objects; times in seconds")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="again and again, until interrupted")
    arguments = parser.parse_args(argv)
    if arguments.watch is not None and not arguments.watch > 0:
        raise UserError(f"--watch {arguments.watch:g}: give seconds above 0")
    try:
        while True:
            runs = list_runs(arguments.folder)
            text = as_json(runs) if arguments.json else table(runs) if runs else f"no runs below {arguments.folder}"
            again = arguments.watch is not None
            print(f"{CLEAR if again and sys.stdout.isatty() else ''}{text}", flush=True)
            if not again:
                return 0
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        if arguments.watch is None:
            raise
        return 0
