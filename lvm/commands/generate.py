"""Prompt a model with pictures: lvm generate MODEL --tokenizer T (--sequence .. | --pairs .. --query q.png) --out DIR

--sequence a.png b.png ... (or a folder): what comes next. --pairs in1.png out1.png ... --query q.png: the answer to the
query. Writes answer-<candidate>.png (answer-<candidate>-<picture>.png for several pictures), grid.png (the prompt, then
a row for each candidate) and answer.json (tokens, scores = mean log-probability of a code, seed).

Many prompts: --pairs ... --queries FOLDER, or --prompts FILE (JSON or JSONL, docs/prompting.md). Each gets a folder of
its own below --out; answers.jsonl sums up and failed.jsonl names what could not be read (exit code 1). The same command
again does what is missing. Answers beyond the context, one or many, go on where a killed process was, but for --window
reuse.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from lvm.inference.answer_files import Folders, files_of, is_complete, read_record, write_folder
from lvm.inference.answering import Failed, Options, answer_prompts, open_picture
from lvm.inference.choosing import RULES
from lvm.inference.prompt_files import (
    MOST_PICTURES,
    Asked,
    analogies,
    check_codes,
    check_pairs,
    check_room,
    check_tuples,
    fingerprint,
    is_folder,
    named,
    read_prompts,
    sequence,
    shortened,
)
from lvm.inference.prompt_job import Answers, Outputs, PromptJob
from lvm.inference.prompter import Prompter, check_pair
from lvm.inference.reference_protocol import DEFAULTS, DTYPE, SETTINGS, OutputFiles, check_targets
from lvm.inference.rounds import Rounds
from lvm.inference.sampling import Sampling
from lvm.model import LVM, LVMConfig, config_from_hugging_face
from lvm.model_folder import read_json as read_model_json
from lvm.runtime import UserError
from lvm.runtime.files import claimed, sweep
from lvm.runtime.job_folder import refuse_other_question
from lvm.runtime.model_files import model_fingerprint
from lvm.runtime.progress import Progress
from lvm.runtime.tasks import local_rank, read_shard, shard_of_environment, task_of_array
from tokenizer import VQGAN

NAMED_FILES = 8  # of a candidate, printed one by one; of more the first and the last
LONGEST_NAME = 230  # bytes; what is written aside has a longer one
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says more")


@dataclass(frozen=True)
class Setting:
    """What all answers of a call have in common."""

    model: Path
    config: LVMConfig
    vq: VQGAN
    options: Options
    device: str
    dtype: str
    given: dict[str, Any]  # the first keys of each record
    question: dict[str, Any]  # decides the answers, beside the prompts

    def prompter(self) -> Prompter:
        model = LVM.from_pretrained(self.model, dtype=DTYPES[self.dtype], device=self.device)
        model.config = self.config
        return Prompter(model, self.vq.to(self.device))

    @property
    def pictures_per_window(self) -> int:
        return self.config.pictures_per_window(self.vq.tokens_per_picture)


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    check_out(arguments.out)
    prompts = asked_prompts(arguments)
    options = make_options(arguments)
    shard, num_shards = chosen_shard(arguments)
    check_model(arguments.model)
    setting = make_setting(arguments, options)
    prompts = checked(prompts, setting)
    if options.protocol == "reference":
        say(arguments, f"protocol reference: {shown_settings(setting)}")
    if arguments.prompts or arguments.queries:
        return answer_many(arguments, setting, prompts, shard, num_shards)
    if shard:
        say(arguments, f"one prompt is answered by shard 0 of {num_shards}; nothing to do here")
        return 0
    return answer_one(arguments, setting, prompts[0])


def chosen_shard(arguments: argparse.Namespace) -> tuple[int, int]:
    """(I, N). Raises `UserError` for one prompt in an array whose tasks may each have their own."""
    if arguments.shard:
        return read_shard(arguments.shard)
    task, tasks = task_of_array()
    if tasks > 1 and not (arguments.prompts or arguments.queries):
        raise UserError(f"one prompt in task {task} of {tasks} of an array; if it is this task's own add --shard 0/1")
    return shard_of_environment()


# The words of the command.


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("lvm generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder in the Hugging Face layout; `lvm export` makes one of a run")
    parser.add_argument("--tokenizer", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--out", required=True, type=Path, help="folder for the answers; it must not hold anything yet")

    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--sequence", nargs="+", metavar="PICTURE", help="pictures to continue, or a folder of them")
    asked.add_argument("--pairs", nargs="+", metavar="PICTURE", help="examples: input, answer, input, answer, ...")
    asked.add_argument("--query", metavar="PICTURE", help="the input to answer, after --pairs")
    asked.add_argument(
        "--queries", nargs="+", metavar="PICTURE", help="many queries after the same --pairs; or a folder"
    )
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="many prompts, as JSON or JSONL")
    asked.add_argument("--base", type=Path, metavar="DIR", help="what paths in --prompts are relative to (its folder)")
    asked.add_argument("--num-pictures", type=int, default=1, help="how far to continue a sequence (1)")
    asked.add_argument(
        "--window", choices=("refuse", "move", "reuse"), default="refuse",
        help="prompts beyond the context: refused, or the first pictures left out; reuse: as move, and long answers "
        "keep the old keys, faster and not quite the same (refuse)",
    )  # fmt: skip

    drawing = parser.add_argument_group("how it is answered")
    drawing.add_argument("--candidates", type=int, help="answers to draw (4; 1 at temperature 0)")
    drawing.add_argument("--temperature", type=float, default=1.0, help="0: the most likely code each time (1.0)")
    drawing.add_argument("--top-k", type=int, help="draw from the k most likely codes only")
    drawing.add_argument("--top-p", type=float, help="draw from the fewest codes with this probability together")
    drawing.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    drawing.add_argument("--choose", metavar="RULE", help=f"copy the best answer to answer.png: {', '.join(RULES)}")
    drawing.add_argument("--device", help="cuda, cuda:1, cpu (a GPU if there is one, of several that of this task)")
    drawing.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights (float32)")
    drawing.add_argument(
        "--protocol", choices=("ours", "reference"), default="ours",
        help="reference: prompts, sampling and pictures as ytongbai/LVM's batch generation has them (ours)",
    )  # fmt: skip
    drawing.add_argument("--mse", action="store_true", help="of --protocol reference: against each line's target")

    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--original-size", action="store_true", help="answers in the size of the prompt's last picture"
    )
    written.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True, help="write grid.png")
    written.add_argument(
        "--include-input", action="store_true", help="of --protocol reference: the prompt before the answers"
    )
    written.add_argument("--json", action="store_true", help="print the whole record to stdout, nothing else")
    written.add_argument("--shard", metavar="I/N", help="do part I of N (as Slurm or torchrun say, else 0/1)")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    arguments = make_parser().parse_args(argv)
    check_asked(arguments)
    reference = arguments.protocol == "reference"
    for name in ("mse", "include_input"):
        if getattr(arguments, name) and not reference:
            raise UserError(f"--{name.replace('_', '-')} belongs to --protocol reference; add that")
    if arguments.mse and not arguments.prompts:
        raise UserError("--mse needs --prompts with a target for each")
    if reference:
        arguments.top_k = DEFAULTS["top_k"] if arguments.top_k is None else arguments.top_k
        arguments.top_p = DEFAULTS["top_p"] if arguments.top_p is None else arguments.top_p
    if arguments.candidates is None:
        arguments.candidates = 1 if arguments.temperature == 0 else DEFAULTS["num_candidates"] if reference else 4
    if arguments.temperature == 0 and arguments.candidates > 1:
        raise UserError(
            f"--candidates {arguments.candidates} at temperature 0 would all be the same; "
            "use --candidates 1 or a temperature above 0"
        )
    return arguments


def check_asked(arguments: argparse.Namespace) -> None:
    if sum(map(bool, (arguments.sequence, arguments.pairs, arguments.prompts))) != 1:
        raise UserError(
            "give either --sequence with the pictures to continue or --pairs and --query, or --prompts with many"
        )
    if arguments.pairs:
        check_pairs(arguments.pairs)
    if arguments.query and is_folder(arguments.query):
        raise UserError(f"--query {arguments.query} is a folder; --queries answers all its pictures")
    queries = bool(arguments.query) + bool(arguments.queries)
    if queries == 2:
        raise UserError("give --query with one picture or --queries with many")
    if bool(arguments.pairs) != bool(queries):
        name = "--queries" if arguments.queries else "--query"
        raise UserError(
            "--query is missing; it is the picture to answer" if arguments.pairs else f"{name} needs --pairs"
        )
    if arguments.num_pictures < 1:
        raise UserError(f"num_pictures {arguments.num_pictures} must be at least 1")
    if arguments.num_pictures > MOST_PICTURES:
        raise UserError(f"--num-pictures {arguments.num_pictures} is too many; at most {MOST_PICTURES} are answered")
    if arguments.pairs and arguments.num_pictures != 1:
        raise UserError(f"--num-pictures {arguments.num_pictures} continues a --sequence; a query has one answer")
    if arguments.base and not arguments.prompts:
        raise UserError("--base is where the pictures of --prompts lie; it needs --prompts")


def asked_prompts(arguments: argparse.Namespace) -> list[Asked]:
    if arguments.prompts:
        return named(read_prompts(arguments.prompts, arguments.base, arguments.num_pictures))
    if arguments.sequence:
        return named([sequence(arguments.sequence, arguments.num_pictures)])
    return named(analogies(arguments.pairs, arguments.queries or [arguments.query]))


def make_options(arguments: argparse.Namespace) -> Options:
    return Options(
        num_candidates=arguments.candidates,
        sampling=Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        seed=arguments.seed,
        window="frames" if arguments.protocol == "reference" else arguments.window,
        choose=arguments.choose,
        original_size=arguments.original_size,
        protocol=arguments.protocol,
        include_input=arguments.include_input,
        mse=arguments.mse,
    )


def check_out(out: Path) -> None:
    """Raises `UserError` for a place where no folder can be made: before the weights are read."""
    try:
        place = out.resolve()
        longest = max(len(part.encode()) for part in place.parts)
        above = next(parent for parent in place.parents if parent.exists())
        if out.is_dir() and place == Path.cwd():
            raise UserError(f"--out {out} is the folder you work in; name a new one")
        if longest > LONGEST_NAME or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"--out {shortened(str(out))} cannot be made; name a folder where you may write")
    except OSError:
        raise UserError(f"--out {shortened(str(out))} cannot be made; name another folder") from None


# The model.


def check_model(model: Path) -> None:
    if not model.is_dir():
        raise UserError(f"{model} is not a folder; MODEL is a folder with config.json and safetensors")
    if not (model / "config.json").is_file() and ((model / "manifest.json").is_file() or any(model.glob("step-*"))):
        raise UserError(f"{model} is a run or a checkpoint; `lvm export {model} OUT` makes a model folder of it")


def choose_device(name: str | None) -> str:
    """The GPU of this task, by its number on its node."""
    if name is None:
        return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu") or (device.type == "cpu" and device.index):
        raise UserError(f"--device {name!r} is unknown; use cuda, cuda:1 or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; use cpu")
    return name


def make_setting(arguments: argparse.Namespace, options: Options) -> Setting:
    """All but the weights, which take longer. Raises `UserError` where model and tokenizer do not belong together."""
    device = choose_device(arguments.device)
    reference = options.protocol == "reference"
    dtype = arguments.dtype or (DTYPE if reference and device != "cpu" else "float32")
    file = arguments.model / "config.json"
    config = config_from_hugging_face(read_model_json(file), str(file))
    vq = VQGAN.from_pretrained(arguments.tokenizer)
    check_pair(config, vq, str(arguments.model), str(arguments.tokenizer))
    if reference:
        config = replace(config, prompt_bos=False)
    common = {"dtype": dtype, **options.record(), "choose": options.choose, "original_size": options.original_size}
    question = {"model": model_fingerprint(arguments.model), "tokenizer": vq.fingerprint, **common}
    question |= {"grid": arguments.grid, "include_input": options.include_input, "mse": options.mse}
    given: dict[str, Any] = {"model": str(arguments.model), "tokenizer": str(arguments.tokenizer), "dtype": dtype}
    if reference:
        given["settings"] = {**SETTINGS, **options.record()}
    return Setting(arguments.model, config, vq, options, device, dtype, given, question)


def shown_settings(setting: Setting) -> str:
    settings = setting.given["settings"] | {"dtype": setting.dtype, "context_pictures": setting.pictures_per_window}
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def checked(prompts: list[Asked], setting: Setting) -> list[Asked]:
    """Raises `UserError` for codes that are none and prompts that do not fit: before anything is read or written."""
    vq, options = setting.vq, setting.options
    prompts = [check_codes(asked, vq.config.num_embeddings, vq.tokens_per_picture) for asked in prompts]
    for asked in prompts:
        if options.window != "frames":
            check_tuples(asked, setting.pictures_per_window)
        if options.window == "refuse":
            check_room(asked, setting.pictures_per_window, setting.config.max_position)
    if options.mse:
        check_targets(prompts)
    return prompts


# One prompt.


def answer_one(arguments: argparse.Namespace, setting: Setting, asked: Asked) -> int:
    out: Path = arguments.out.resolve()
    under_way = out.with_name(f".rounds-{out.name}")
    question = json.loads(json.dumps({**setting.question, "prompt": fingerprint([asked], Path.cwd())}))
    record = answered_before(arguments.out, question) or draw_one(arguments, setting, asked, question, under_way)
    shutil.rmtree(under_way, ignore_errors=True)
    return report_one(arguments, record)


def draw_one(
    arguments: argparse.Namespace, setting: Setting, asked: Asked, question: dict[str, Any], under_way: Path
) -> dict[str, Any]:
    """The record of the answer, which is written; or of another process's, which was drawing it."""
    out: Path = arguments.out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {arguments.out} exists and is not empty; name a new folder")
    for file in asked.files:
        open_picture(file, setting.options.protocol)  # before the weights, which take longer
    with claimed(arguments.out) as alone:
        if alone:
            sweep(out.parent, out.name)
        if (record := answered_before(arguments.out, question)) is not None:
            return record
        given, progress = {**setting.given, "question": question}, progress_of(asked, setting)
        rounds = partial(Rounds, under_way, question)
        (result,) = answer_prompts(setting.prompter(), [asked], setting.options, given, progress, rounds)
        if isinstance(result, Failed):
            raise UserError(f"{result.file}: {result.reason}")
        write_folder(result, out, arguments.grid)
    return result.record


def answered_before(out: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an answer that is there whole. Raises `UserError` where it is one to another question."""
    record = read_record(out / "answer.json")
    if record is None or "question" not in record or not is_complete(out):
        return None
    refuse_other_question(out, record["question"], question)
    return record


def progress_of(asked: Asked, setting: Setting) -> Callable[[int], None] | None:
    """A line every few seconds of an answer of many pictures."""
    if asked.num_pictures == 1:
        return None
    return Progress(asked.num_pictures * setting.options.num_candidates, "pictures").update


def report_one(arguments: argparse.Namespace, record: dict[str, Any]) -> int:
    if arguments.json:
        print(json.dumps(record))
        return 0
    if record.get("pictures_left_out"):
        print(f"the first {record['pictures_left_out']} pictures are left out: the context does not hold them")
    rule, choices = record["choose"], record["choices"]
    for number, (files, score) in enumerate(zip(files_of(record, arguments.out), record["scores"])):
        chosen = number == record["chosen"]
        mark = f"  chosen by {rule}, {choices['by_rule'][rule][number]:.3f}" if chosen else ""
        mark += "  of one colour" if choices["one_colour"][number] else ""
        named = files if len(files) <= NAMED_FILES else [files[0], "...", files[-1]]
        print(f"{score:8.3f}  {'  '.join(named)}{mark}")
    if rule and record["chosen"] is None:
        print(f"none is chosen by {rule}: {choices['left_out'][rule]}")
    if arguments.grid:
        print(arguments.out / "grid.png")
    return 0


# Many prompts.


def answer_many(
    arguments: argparse.Namespace, setting: Setting, prompts: list[Asked], shard: int, num_shards: int
) -> int:
    base = Path.cwd() if arguments.prompts is None else arguments.base or arguments.prompts.parent
    question = {**setting.question, "prompts": len(prompts), "prompts_sha256": fingerprint(prompts, base)}
    job = PromptJob(arguments.out, prompts, make_outputs(arguments, prompts), question, shard, num_shards)
    if not job.is_done():
        prompter = setting.prompter()

        def answer(block: Sequence[Asked], under_way: Path, wanted: Collection[str]) -> Answers:
            rounds = partial(Rounds, under_way, setting.question)
            return answer_prompts(prompter, block, setting.options, setting.given, rounds=rounds, wanted=wanted)

        job.run(answer)
    return report_many(arguments, job, job.finish())


def make_outputs(arguments: argparse.Namespace, prompts: list[Asked]) -> Outputs:
    from_list = sum(asked.output is not None for asked in prompts)
    if not from_list:
        return Folders(arguments.out, arguments.grid)
    if arguments.protocol != "reference":
        raise UserError(f"{arguments.prompts} has the reference's input and output; add --protocol reference")
    if from_list < len(prompts):
        raise UserError(f"{arguments.prompts} mixes input and output with other prompts; use two files")
    return OutputFiles(arguments.out, arguments.include_input)


def report_many(arguments: argparse.Namespace, job: PromptJob, failed: list[dict[str, Any]] | None) -> int:
    records = job.records()
    if arguments.json:
        print(json.dumps({"answers": records, "failed": job.failed()}))
    if failed is None:
        done = sum(map(job.outputs.is_done, job.asked()))
        say(arguments, f"shard {job.shard} of {job.num_shards} has {done} answers; other shards are not done yet")
        return 1 if job.failed() else 0
    if arguments.mse and records:
        say(arguments, f"MSE: {sum(record['mse'] for record in records) / len(records)}")
    say(arguments, f"{len(records)} answers: {arguments.out / 'answers.jsonl'}")
    blank = [
        (record["choices"]["one_colour"][record["chosen"]], record["choices"]["one_colour"][0])
        for record in records
        if record["chosen"] is not None
    ]
    if blank:
        chosen, random = (sum(column) / len(blank) for column in zip(*blank))
        say(arguments, f"of one colour: {chosen:.1%} of the chosen answers, {random:.1%} of random ones")
    if not failed:
        return 0
    first = failed[0]
    print(
        f"error: {len(failed)} prompts failed, the first {first['id']} ({first['file']}: {first['reason']}); "
        f"all are in {arguments.out / 'failed.jsonl'}; the same command tries them again",
        file=sys.stderr,
    )
    return 1


def say(arguments: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout)
