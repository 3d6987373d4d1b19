"""Many prompts answered into one folder: restartable, in one process or in N, the same bytes either way.

    OUT/ID/...              answers of a prompt, complete or absent (answer_files.py)
        answers.jsonl       a line for each prompt in the order asked: id, tokens, scores, chosen, seed, files
        failed.jsonl        id, file, reason of those that could not be answered; absent if there are none
        generate.json       what was asked: another model, other options or prompts are refused for this folder
        .shard-I-of-N.json  the lease of a process; .failed/ID.json what failed so far
        .rounds/BLOCK/      long answers under way (rounds.py)

The unit of work is a block of prompts, those that share their pictures together. A block is always computed as a whole,
also where some of its answers are there already, so that no answer depends on when a job was killed. Shard I of N takes
every N-th block. Whichever process finds all prompts done writes answers.jsonl.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lvm.inference.answer_files import Answered
from lvm.inference.answering import Failed
from lvm.inference.prompt_files import Asked
from lvm.pictures.decode import PictureError
from lvm.runtime.files import atomic_write, read_json, sweep, write_json
from lvm.runtime.job_folder import check_folder, freeze_question, refuse_other_numbers
from lvm.runtime.lease import RunLease
from lvm.runtime.progress import Progress

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128  # prompts; the larger hold some hundred MB of pictures
BLOCKS = 16  # of a short list, so that several processes find work
VERSION = 1
QUESTION = "generate.json"

ROUNDS = ".rounds"

Answers = Generator[Answered | Failed, None, None]
# Answers a block; its long answers are kept in the folder, and only those of the ids are given back.
Answering = Callable[[Sequence[Asked], Path, Collection[str]], Answers]


class Outputs(Protocol):
    """Where answers are written: `Folders` or the reference's `OutputFiles`."""

    def is_done(self, asked: Asked) -> bool: ...
    def write(self, answered: Answered) -> None: ...
    def record(self, asked: Asked) -> dict[str, Any]: ...


# Work.


def blocks(prompts: Sequence[Asked]) -> list[list[Asked]]:
    """The prompts in groups that share all but their last picture, cut where a block is full; no thought of shards."""
    size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, -(-len(prompts) // BLOCKS)))
    groups: dict[Any, list[Asked]] = {}
    for asked in prompts:
        groups.setdefault(asked.prefix, []).append(asked)
    found: list[list[Asked]] = [[]]
    for group in groups.values():
        if len(found[-1]) + len(group) > size and found[-1]:
            found.append([])
        for asked in group:
            if len(found[-1]) == size:
                found.append([])
            found[-1].append(asked)
    return found


class PromptJob:
    """Shard `shard` of `num_shards` of a list of prompts with ids.

    Raises `UserError` where `out` was asked something else, or a live process works at this shard, or at another
    number of shards.
    """

    def __init__(
        self,
        out: Path,
        prompts: Sequence[Asked],
        outputs: Outputs,
        question: dict[str, Any],
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        self.out, self.prompts, self.outputs = out, list(prompts), outputs
        self.shard, self.num_shards = shard, num_shards
        self.question = json.loads(json.dumps({"version": VERSION, **question}))
        check_folder(out, QUESTION, self.question)
        self.mine = {number: block for number, block in enumerate(blocks(prompts)) if number % num_shards == shard}

    def is_done(self) -> bool:
        """Whether nothing of this shard is left to do; what failed is tried again."""
        return all(map(self.outputs.is_done, self.asked()))

    def asked(self) -> list[Asked]:
        """The prompts of this shard."""
        return [asked for block in self.mine.values() for asked in block]

    def run(self, answer: Answering) -> None:
        """Answer what is missing."""
        freeze_question(self.out, QUESTION, self.question)
        refuse_other_numbers(self.out, self.num_shards)
        with RunLease(self.out, f".shard-{self.shard}-of-{self.num_shards}.json", over_hosts=True) as lease:
            total = len(self.asked())
            missing = [asked for asked in self.asked() if not self.outputs.is_done(asked)]
            sweep_killed(self.out, missing)
            with Progress(total, "prompts", done=total - len(missing)) as progress:
                for number in self.mine:
                    self._do_block(number, answer, lease, progress)

    def _do_block(self, number: int, answer: Answering, lease: RunLease, progress: Progress) -> None:
        block, under_way = self.mine[number], self.out / ROUNDS / str(number)
        missing = {asked.id for asked in block if not self.outputs.is_done(asked)}
        if missing:
            with contextlib.closing(answer(block, under_way, frozenset(missing))) as results:
                for result in results:
                    lease.check()
                    self._keep(result)
                    missing.remove(result.asked.id)
                    progress.update()
                    if not missing:  # what failed comes first: where nothing else is missing nothing is generated
                        break
        shutil.rmtree(under_way, ignore_errors=True)

    def _keep(self, result: Answered | Failed) -> None:
        mark = self._mark(result.asked)
        if isinstance(result, Answered):
            try:
                self.outputs.write(result)
                return mark.unlink(missing_ok=True)
            except PictureError as error:
                result = Failed(result.asked, error.file, error.reason)
        write_json(mark, result.record())

    def _mark(self, asked: Asked) -> Path:
        return self.out / ".failed" / f"{asked.id}.json"

    # What is derived of all shards' answers.

    def finish(self) -> list[dict[str, Any]] | None:
        """Write failed.jsonl, and answers.jsonl if every prompt is answered or failed; what failed, None if some are
        still to do."""
        failed = self._write_failed()
        names = {row["id"] for row in failed}
        answered = [asked for asked in self.prompts if asked.id not in names]
        if not all(map(self.outputs.is_done, answered)):
            return None
        atomic_write(self.out / "answers.jsonl", "".join(summary(self.outputs.record(asked)) for asked in answered))
        if not failed:  # else another shard may be trying again
            shutil.rmtree(self.out / ROUNDS, ignore_errors=True)
        return failed

    def _write_failed(self) -> list[dict[str, Any]]:
        """Once again where other shards ended meanwhile: whoever writes last has seen the last one's."""
        file = self.out / "failed.jsonl"
        while True:
            failed = self.failed()
            text = "".join(json.dumps(row) + "\n" for row in failed)
            if text:
                atomic_write(file, text)
            else:
                file.unlink(missing_ok=True)
            if failed == self.failed():
                return failed

    def failed(self) -> list[dict[str, Any]]:
        present = {file.stem for file in (self.out / ".failed").glob("*.json")}
        marks = [self._mark(asked) for asked in self.prompts if asked.id in present]
        return [read_json(mark) for mark in marks if mark.is_file()]

    def records(self) -> list[dict[str, Any]]:
        """Of all prompts that are answered, in the order asked."""
        return [self.outputs.record(asked) for asked in self.prompts if self.outputs.is_done(asked)]


def summary(record: dict[str, Any]) -> str:
    """The line of answers.jsonl."""
    keys = ("id", "tokens", "scores", "choices", "chosen", "seed", "mse")
    line = {key: record[key] for key in keys if key in record} | {"files": record["pictures"]}
    return json.dumps(line) + "\n"


# The folder's state.


def sweep_killed(out: Path, prompts: Sequence[Asked]) -> None:
    """Remove what killed writers of these prompts left; whoever holds the lease is their only writer."""
    names = {asked.id for asked in prompts} | {Path(asked.output).name for asked in prompts if asked.output}
    folders = {out} | {(out / asked.output).parent for asked in prompts if asked.output}
    for folder in folders:
        sweep(folder, *names, *(f"{name}.json" for name in names))
