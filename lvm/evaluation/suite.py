"""All of an evaluation together: model + tokenizer + prompts -> one dictionary of numbers, and pictures behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation import baselines, measures
from lvm.evaluation.answers import answer_clips, answer_task
from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.perplexity import FRAMES, PAIRS, Precision, frame_nll, per_answer_perplexity, perplexity, task_nll
from lvm.evaluation.prompts import ClipSet, PromptSet
from lvm.evaluation.tasks import Task
from lvm.inference.prompter import check_pair
from tokenizer import BulkEncoder

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from lvm.model import LVM
    from tokenizer import VQGAN


@dataclass(frozen=True)
class Grid:
    """Rows of pictures under column names; what people look at."""

    name: str  # of the task, or "frames"
    title: str
    columns: tuple[str, ...]
    rows: "list[list[UInt8[np.ndarray, 'y x 3']]]"


@dataclass(frozen=True)
class Evaluation:
    report: dict[str, Any]  # {"tasks": {...}, "frames": {...}}, plain JSON values
    grids: list[Grid] = field(default_factory=list)


Decode = Callable[[Any], Any]  # codes [n, t] -> pictures uint8 [n, y, x, 3]

ANSWER_COLUMNS = ("pair 4", "", "pair 5", "", "query", "answer", "tokenised truth", "truth")


def evaluate_prompts(
    model: "LVM",
    vq: "VQGAN",
    prompts: PromptSet | Sequence[PromptSet],
    clips: ClipSet | None = None,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    generate_answers: bool = True,
    examples: int = 3,
    precision: Precision = "auto",
) -> Evaluation:
    """Evaluate the named tasks (default: all that the prompts hold) and the next frame of the clips.

    Without `generate_answers` only perplexities are measured; `precision` as in `answer_nll`. Raises `UserError`
    for a foreign tokenizer.
    """
    check_pair(model.config, vq)
    decode = BulkEncoder(vq).decode
    was_training = model.training
    model.eval()
    sets = [prompts] if isinstance(prompts, PromptSet) else list(prompts)
    report: dict[str, Any] = {"tasks": {}}
    grids = []
    for prompt_set in sets:
        wanted = [task for task in prompt_set.tasks if tasks is None or task.name in tasks]
        tokenised = baselines.tokenised_queries(prompt_set, decode)
        for task in wanted:
            row, grid = evaluate_task(
                model,
                decode,
                prompt_set,
                task,
                tokenised,
                seed,
                generate_answers,
                examples,
                len(report["tasks"]),
                precision,
            )
            report["tasks"][task.name] = row
            grids.extend([grid] if grid is not None else [])
    if clips is not None:
        report["frames"], grid = evaluate_clips(model, decode, clips, seed, generate_answers, examples, precision)
        grids.extend([grid] if grid is not None else [])
    model.train(was_training)
    return Evaluation(plain(report), grids)


def pairs_that_fit(model: "LVM", tokens_per_picture: int) -> tuple[int, ...]:
    room = model.config.pictures_per_window(tokens_per_picture)
    return tuple(k for k in PAIRS if 2 * k + 2 <= room)


def evaluate_task(
    model: "LVM",
    decode: Decode,
    prompts: PromptSet,
    task: Task,
    tokenised: dict[str, Any],
    seed: int,
    generate_answers: bool,
    examples: int,
    first_example: int,
    precision: Precision,
) -> tuple[dict[str, Any], Grid | None]:
    """One row of the report and the pictures of a few targets (not chosen by score)."""
    pairs = pairs_that_fit(model, prompts.codes[task.output].shape[-1])
    nll = task_nll(model, prompts, task, seed, pairs, precision)
    most = str(max(pairs))
    interval = lambda a, b: bootstrap_mean(nll[a].sum(1) - nll[b].sum(1), seed)  # nats an answer, paired
    row: dict[str, Any] = {
        "perplexity": {k: perplexity(values) for k, values in nll.items()},
        "first_token": {k: perplexity(values[:, :1]) for k, values in nll.items()},
        "per_answer_perplexity": {k: per_answer_perplexity(values) for k, values in nll.items()},
        "saved_nats": interval("0", most),
        "targets": len(prompts),
        "distinct_targets": prompts.num_distinct,
    }
    if "wrong" in nll:
        row["wrong_costs_nats"] = interval("wrong", most)
    if not generate_answers:
        return row, None
    codes = answer_task(model, prompts, task, int(most), precision)
    answers = decode(codes)
    score = measures.score_of(task.name)
    judged = {
        "model": answers,
        **baselines.copies(prompts, task),
        "copy_query_tokenised": tokenised[task.input],
        "tokenizer_ceiling": tokenised[task.output],
    }
    by_target = {name: baselines.scores(score, prompts, task, pictures) for name, pictures in judged.items()}
    row |= {name: float(values.mean()) for name, values in by_target.items()}
    row |= {
        "metric": score.metric,
        "higher_is_better": score.higher_is_better,
        "model_interval": bootstrap_mean(by_target["model"], seed),
        "right_task": float(baselines.right_task(answers, tokenised, task).mean()),
    }
    rows = []
    for i in range(min(examples, len(prompts))):
        n = (first_example * examples + i) % len(prompts)
        given, wanted = prompts.pixels[task.input][n], prompts.pixels[task.output][n]
        shown = [given[-3], wanted[-3], given[-2], wanted[-2], given[-1]]
        rows.append([*shown, answers[n], tokenised[task.output][n], wanted[-1]])
    return row, Grid(task.name, task.title, ANSWER_COLUMNS, rows) if rows else None


def evaluate_clips(
    model: "LVM", decode: Decode, clips: ClipSet, seed: int, generate_answers: bool, examples: int, precision: Precision
) -> tuple[dict[str, Any], Grid | None]:
    """Perplexity of the next frame by number of frames, and the greedy frame on the pixels that move."""
    tokens = clips.codes.shape[-1]
    room = model.config.pictures_per_window(tokens) - 1
    nll = frame_nll(model, clips, [k for k in FRAMES if k <= room], precision)
    most = max(map(int, nll))
    row: dict[str, Any] = {
        "perplexity": {k: perplexity(values) for k, values in nll.items()},
        "per_answer_perplexity": {k: per_answer_perplexity(values) for k, values in nll.items()},
        "saved_nats": bootstrap_mean(nll[str(min(map(int, nll)))].sum(1) - nll[str(most)].sum(1), seed),
        "targets": len(clips),
        "frames_shown": most,
    }
    if not generate_answers:
        return row, None
    answers = decode(answer_clips(model, clips, most, precision))
    last, truth = clips.pixels[:, -2], clips.pixels[:, -1]
    held_last, held_truth = decode(clips.codes[:, -2]), decode(clips.codes[:, -1])
    judge = lambda pictures: np.array([measures.moving_psnr(*three) for three in zip(pictures, truth, last)])
    model_scores, copy_scores = judge(answers), judge(held_last)
    row |= {
        "metric": "psnr_moving",
        "higher_is_better": True,
        "model": mean(model_scores),
        "copy_last_frame": mean(copy_scores),
        "tokenizer_ceiling": mean(judge(held_truth)),
        "gain": bootstrap_mean(model_scores - copy_scores, seed),
        "moving_targets": int((~np.isnan(model_scores)).sum()),
    }
    moved = np.flatnonzero(~np.isnan(model_scores))
    f = clips.pixels.shape[1]
    seen = range(max(0, f - 6), f - 1)
    rows = [
        [*clips.pixels[n, seen.start : seen.stop], answers[n], held_truth[n], truth[n]]
        for n in (moved if len(moved) else np.arange(len(clips)))[: examples + 1]
    ]
    columns = (*(f"frame {k + 1}" for k in seen), "answer", "tokenised truth", "truth")
    return row, Grid("frames", "Next frame", columns, rows)


def mean(values: Any) -> float:
    """Mean without the targets that have no score; NaN without any."""
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def plain(value: Any) -> Any:
    """JSON values: NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
