"""An evaluation as a job: restartable, in one process or in N, the same report either way.

    OUT/evaluation.json      what was asked: another model, other data or options are refused for this folder
        .rows/block-0003.json  rows of the cases of a block, complete or absent
        .shard-I-of-N.json     the lease of a process
        rows.jsonl           a line for each case, in order; what `lvm compare` reads
        report.json          measures, controls, baselines (summary.py); report.html the same to look at

A block of cases is the unit of work and always computed as a whole, so no number depends on when a job was killed or
on how many work at it. Shard I of N takes every N-th block; whichever process finds all blocks done writes the report.
"""

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lvm.evaluation.ask import ask
from lvm.evaluation.cases import Case, Suite
from lvm.evaluation.helpers import Helpers, Pending
from lvm.evaluation.perplexity import Precision
from lvm.inference.prompter import Prompter
from lvm.runtime.files import atomic_write, read_json, write_json
from lvm.runtime.job_folder import check_folder, freeze_question, refuse_other_numbers
from lvm.runtime.lease import RunLease
from lvm.runtime.progress import Progress

SMALLEST_BLOCK, LARGEST_BLOCK = 32, 64  # cases: the engine is fastest with some hundred prompts at hand
BLOCKS = 16  # of a list between, so that several processes find work
QUESTION = "evaluation.json"
VERSION = 2


class EvaluationJob:
    """Shard `shard` of `num_shards` of a suite's cases.

    Raises `UserError` where `out` was asked something else, or a live process works at this shard.
    """

    def __init__(self, out: Path, suite: Suite, question: dict[str, Any], shard: int = 0, num_shards: int = 1) -> None:
        self.out, self.suite, self.shard, self.num_shards = out, suite, shard, num_shards
        self.question = json.loads(json.dumps({"version": VERSION, "cases": len(suite), **question}))
        check_folder(out, QUESTION, self.question)
        size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, -(-len(suite) // BLOCKS)))
        self.blocks = [range(start, min(start + size, len(suite))) for start in range(0, len(suite), size)]
        self.mine = [number for number in range(len(self.blocks)) if number % num_shards == shard]

    def file(self, block: int) -> Path:
        return self.out / ".rows" / f"block-{block:05d}.json"

    @property
    def missing(self) -> list[int]:
        """Blocks of this shard that are still to do, or have a case that failed."""
        return [
            block for block in self.mine if not self.file(block).is_file() or failed_in(read_json(self.file(block)))
        ]

    def run(self, prompter: Prompter, precision: Precision = "auto", workers: int = 0) -> None:
        """Do what is missing. While the cases of a block are asked, the next are made and the last judged, by `workers`
        processes."""
        todo = self.missing
        if not todo:
            return
        freeze_question(self.out, QUESTION, self.question)
        refuse_other_numbers(self.out, self.num_shards)
        lease_file = f".shard-{self.shard}-of-{self.num_shards}.json"
        with RunLease(self.out, lease_file, over_hosts=True) as lease, Helpers(self.suite, workers) as helpers:
            (self.out / ".rows").mkdir(exist_ok=True)
            total = sum(len(self.blocks[block]) for block in self.mine)
            done = total - sum(len(self.blocks[block]) for block in todo)
            with Progress(total, "cases", done=done) as progress, ThreadPoolExecutor(1) as closer:
                coming = helpers.cases(self.blocks[todo[0]])
                closed: Future[None] | None = None
                for block, later in itertools.zip_longest(todo, todo[1:]):
                    made = coming.result()
                    if later is not None:
                        coming = helpers.cases(self.blocks[later])
                    asked = ask(prompter, [case for case in made if isinstance(case, Case)], precision)
                    if closed:
                        closed.result()
                    failed = [None if isinstance(case, Case) else case for case in made]
                    closed = closer.submit(self._close, block, failed, helpers.rows(asked), lease, progress)
                if closed:
                    closed.result()

    def _close(
        self,
        block: int,
        failed: Sequence[dict[str, Any] | None],
        judged: Pending,
        lease: RunLease,
        progress: Progress,
    ) -> None:
        """Write the rows of a block as soon as they are judged: of each case that failed its own."""
        rows = iter(judged.result())
        whole = [row or {"case": number, **next(rows)} for number, row in zip(self.blocks[block], failed)]
        lease.check()
        write_json(self.file(block), whole)
        progress.update(len(whole))

    # What is derived of all shards' rows.

    def is_complete(self) -> bool:
        return all(self.file(block).is_file() for block in range(len(self.blocks)))

    def rows(self) -> list[dict[str, Any]]:
        return [row for block in range(len(self.blocks)) for row in read_json(self.file(block))]

    def write_rows(self) -> list[dict[str, Any]]:
        rows = self.rows()
        atomic_write(self.out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def failed_in(rows: list[dict[str, Any]]) -> bool:
    return any("failed" in row for row in rows)
