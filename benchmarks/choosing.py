"""What choosing among candidates is worth: python -m benchmarks.choosing model=FOLDER [queries=40 candidates=8 ...]

For each task of the world, and for next frames, `candidates` answers to each query are judged against the truth. Beside
the best by each rule of `lvm.inference.choosing`: a random choice (the mean of the candidates), the best possible, and
greedy decoding. `gain` is the difference to a random choice with its 95% interval, bootstrapped over queries; the share
is that of the gain that is possible, all tasks weighing the same. `equal_codes` is agreement measured by codes, not by
pixels: what `agreement` was chosen over.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from benchmarks.alone import run_alone
from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.measures import moving_psnr, score_of
from lvm.evaluation.perplexity import task_tokens
from lvm.evaluation.prompts import NUM_PAIRS, ClipSet, PromptSet, world_clips, world_prompts
from lvm.evaluation.sheet import report_sheet
from lvm.evaluation.suite import Grid
from lvm.inference.choosing import RULES, one_colour, score_candidates
from lvm.inference.prompter import Prompter
from lvm.inference.rollout import Prompt
from lvm.inference.sampling import GREEDY, Sampling
from lvm.runtime import UserError
from lvm.runtime.machine import git_commit, machine_description
from lvm.sources import open_source
from lvm.sources.world import WorldSource

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8

CHOICES = ("random", *RULES, "equal_codes", "greedy", "best possible")
SHOWN = 3  # queries of a task on the sheet


@dataclass(frozen=True)
class Options:
    model: str = "runs/demo/model"
    tokenizer: str = "world-48px-f8-1024"
    source: str = "world_demo"  # the world the model was trained on; its test split asks
    queries: int = 40  # of each task
    candidates: int = 8
    temperatures: tuple[float, ...] = (1.0, 0.7)
    seed: int = 0
    json: str = ""  # file for the result
    sheet: str = ""  # PNG of the first queries' candidates, by temperature


@dataclass(frozen=True)
class Question:
    """A task's prompts, and how an answer to each is judged."""

    name: str
    metric: str
    prompts: list[Prompt]
    truth: "UInt8[np.ndarray, 'n y x 3']"
    query: "UInt8[np.ndarray, 'n y x 3']"
    judge: "Callable[[int, UInt8[np.ndarray, 'y x 3']], float]"  # of query i and an answer; higher is better


@dataclass(frozen=True)
class Judged:
    """Of n queries and c candidates; greedy answers and truth stand for themselves."""

    pictures: "UInt8[np.ndarray, 'n c y x 3']"
    truth: "Float[np.ndarray, 'n c']"
    by_rule: "dict[str, Float[np.ndarray, 'n c']]"  # NaN where a rule says nothing about a query
    blank: "Bool[np.ndarray, 'n c']"
    greedy: "Float[np.ndarray, 'n']"
    greedy_blank: "Bool[np.ndarray, 'n']"


# What is asked.


def questions_of(prompts: PromptSet, clips: ClipSet | None) -> Iterator[Question]:
    for task in prompts.tasks:
        score = score_of(task.name)
        assert score.higher_is_better
        tokens = prompts.codes[task.output].shape[-1]
        shown = rearrange(task_tokens(prompts, task, NUM_PAIRS)[:, :-tokens], "n (p t) -> n p t", t=tokens)
        inputs, outputs = prompts.pixels[task.input], prompts.pixels[task.output]

        def judge(i: int, answer: Any, score: Any = score, inputs: Any = inputs, outputs: Any = outputs) -> float:
            return float(score.of(answer, outputs[i, -1], inputs[i, -1], list(outputs[i, :-1])))

        asked = [Prompt(codes.astype(np.int64), 1, 2) for codes in shown]
        yield Question(task.name, score.metric, asked, outputs[:, -1], inputs[:, -1], judge)
    if clips is not None:
        truth, last = clips.pixels[:, -1], clips.pixels[:, -2]
        asked = [Prompt(codes.astype(np.int64)) for codes in clips.codes[:, :-1]]
        yield Question("next_frame", "psnr_moving", asked, truth, last, lambda i, a: moving_psnr(a, truth[i], last[i]))


# What is answered.


def answer(prompter: Prompter, question: Question, options: Options, temperature: float) -> Judged:
    pictures, truth, by_rule, blank = [], [], [], []
    found_all = prompter.continuations(question.prompts, options.candidates, Sampling(temperature), options.seed)
    for i, found in sorted(found_all, key=lambda pair: pair[0]):
        drawn = prompter.decode(found.tokens[:, 0])
        scores = score_candidates(prompter, question.prompts[i], found, drawn[:, None])
        nothing = np.full(len(drawn), np.nan)
        given = {rule: scores.by_rule.get(rule, nothing) for rule in RULES}
        by_rule.append({**given, "equal_codes": equal_codes(found.tokens)})
        pictures.append(drawn)
        truth.append([question.judge(i, picture) for picture in drawn])
        blank.append(scores.one_colour)
    most_likely = greedy_pictures(prompter, question)
    return Judged(
        np.stack(pictures),
        np.array(truth),
        {rule: np.stack([row[rule] for row in by_rule]) for rule in by_rule[0]},
        np.stack(blank),
        np.array([question.judge(i, picture) for i, picture in enumerate(most_likely)]),
        np.asarray(one_colour(most_likely)),
    )


def greedy_pictures(prompter: Prompter, question: Question) -> "UInt8[np.ndarray, 'n y x 3']":
    found = dict(prompter.continuations(question.prompts, 1, GREEDY))
    return prompter.decode(np.stack([found[i].tokens[0, 0] for i in range(len(found))]))


def equal_codes(tokens: "Int64[np.ndarray, 'c n t']") -> "Float[np.ndarray, 'c']":
    """Mean share of codes that a candidate has in common with each of the others."""
    flat = tokens.reshape(len(tokens), -1)
    same: np.ndarray = (flat[:, None] == flat).mean(-1)
    return (same.sum(1) - 1) / (len(flat) - 1)


# What it is worth.


def by_choice(judged: Judged) -> "dict[str, tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]]":
    """(score, whether blank) of each query by each way to choose that says something about all of them."""
    rows = np.arange(len(judged.truth))
    chosen = {rule: values.argmax(1) for rule, values in judged.by_rule.items() if not np.isnan(values).any()}
    chosen["best possible"] = np.nan_to_num(judged.truth, nan=-np.inf).argmax(1)
    found = {name: (judged.truth[rows, best], judged.blank[rows, best]) for name, best in chosen.items()}
    found["random"] = (judged.truth.mean(1), judged.blank.mean(1))
    found["greedy"] = (judged.greedy, judged.greedy_blank)
    return {name: found[name] for name in CHOICES if name in found}


def task_row(question: Question, judged: Judged, seed: int) -> dict[str, Any]:
    found = by_choice(judged)
    random = found["random"][0]
    return {
        "metric": question.metric,
        "truth_one_colour": float(np.mean(one_colour(question.truth))),
        "choices": {
            name: {
                "score": float(np.nanmean(score)),
                "gain": bootstrap_mean(score - random, seed),
                "one_colour": float(blank.mean()),
            }
            for name, (score, blank) in found.items()
        },
    }


def overall(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """Of each choice: the share of the possible gain, over the tasks where it says something; blanks over the same."""
    shares: dict[str, list[Any]] = {}
    blanks: dict[str, list[Any]] = {}
    for found in map(by_choice, judged):
        random = found["random"][0]
        possible = np.nanmean(found["best possible"][0] - random)
        for name, (score, blank) in found.items():
            shares.setdefault(name, []).append((score - random) / possible)
            blanks.setdefault(name, []).append(blank)
    return {
        name: {
            "share_of_possible_gain": bootstrap_mean(np.concatenate(shares[name]), seed),
            "one_colour": float(np.concatenate(blanks[name]).mean()),
            "tasks": len(shares[name]),
        }
        for name in CHOICES
        if name in shares
    }


def show(row: dict[str, Any]) -> str:
    lines = []
    for name, of in row["overall"].items():
        share = of["share_of_possible_gain"]
        interval = f"{share['mean']:7.1%} [{share['low']:.1%}, {share['high']:.1%}]"
        lines.append(f"  {name:16s} {interval:28s} one colour {of['one_colour']:6.1%}   {of['tasks']} tasks")
    return "\n".join(lines)


def grid(question: Question, judged: Judged) -> Grid:
    columns = ("query", "truth", *(str(number) for number in range(judged.truth.shape[1])))
    rows = [[question.query[i], question.truth[i], *judged.pictures[i]] for i in range(min(SHOWN, len(judged.truth)))]
    return Grid(question.name, question.name, columns, rows)


def run(options: Options) -> dict[str, Any]:
    if options.candidates < 3:
        raise UserError(f"candidates is {options.candidates}; give at least 3, so that they can agree")
    prompter = Prompter.from_pretrained(options.model, options.tokenizer)
    source = open_source(options.source, ["split=test"])
    if not isinstance(source, WorldSource):
        raise UserError(f"source {options.source} is not a world; use one of configs/data/source/world*.yaml")
    prompts = world_prompts(source, prompter.vq, options.queries, options.seed)
    questions = list(questions_of(prompts, world_clips(source, prompter.vq, options.queries, options.seed)))
    results = []
    for temperature in options.temperatures:
        judged = [answer(prompter, question, options, temperature) for question in questions]
        row = {
            "temperature": temperature,
            "overall": overall(judged, options.seed),
            "tasks": {q.name: task_row(q, j, options.seed) for q, j in zip(questions, judged)},
        }
        print(f"temperature {temperature}: share of the possible gain over a random choice\n{show(row)}", flush=True)
        results.append(row)
        if options.sheet:
            path = Path(options.sheet)
            grids = [grid(question, found) for question, found in zip(questions, judged)]
            report_sheet(path.with_stem(f"{path.stem}-{temperature}"), grids, SHOWN, cell=48)
    machine = {"machine": machine_description(), "commit": git_commit()}
    return {"benchmark": "choosing", "results": results, "options": asdict(options), **machine}


if __name__ == "__main__":
    run_alone(Options, run)
