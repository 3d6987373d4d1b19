"""Prompt a model with pictures: lvm generate MODEL --tokenizer T (--sequence .. | --pairs .. --query q.png) --out DIR

--sequence a.png b.png ...: what comes next. --pairs in1.png out1.png ... --query q.png: the answer to the query.
Writes answer-<candidate>.png (answer-<candidate>-<picture>.png for several pictures), grid.png (the prompt, then a row
for each candidate) and answer.json (tokens, scores = mean log-probability of a code, seed).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from PIL import Image

from lvm.inference import Answer, Prompter
from lvm.pictures.decode import load, to_rgb
from lvm.runtime import UserError, atomic_folder, write_json

if TYPE_CHECKING:
    from jaxtyping import UInt8

GAP = 4  # pixels between the cells of the grid
CELL = 96  # pixels: smaller pictures are enlarged in the grid by a whole factor


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says more")


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    files: list[str] = arguments.sequence or [*arguments.pairs, arguments.query]
    check_out(arguments.out)
    check_model(Path(arguments.model))
    pictures = [to_rgb(load(file)) for file in files]  # before the weights, which take longer
    prompter = Prompter.from_pretrained(arguments.model, arguments.tokenizer)
    check_room(prompter, len(files), bool(arguments.pairs))

    options: dict[str, Any] = {
        "num_candidates": arguments.candidates,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
    }
    if arguments.sequence:
        answer = prompter.sequence(pictures, arguments.num_pictures, **options)
    else:
        answer = prompter.analogy(list(zip(pictures[:-1:2], pictures[1:-1:2])), pictures[-1], **options)

    record = {
        "model": arguments.model,
        "tokenizer": arguments.tokenizer,
        "kind": "sequence" if arguments.sequence else "analogy",
        "prompt": files,
        "pictures": answer_names(answer),
        "tokens": answer.tokens.tolist(),
        "scores": [float(score) for score in answer.scores],
        "picture_scores": answer.log_probs.mean(2).astype(float).tolist(),
        **{key: value for key, value in options.items() if key != "num_candidates"},
    }
    write(answer, record, arguments.out)
    for names, score in zip(record["pictures"], record["scores"]):
        print(f"{score:8.3f}  {'  '.join(str(arguments.out / name) for name in names)}")
    print(arguments.out / "grid.png")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser("lvm generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder in the Hugging Face layout; `lvm export` makes one of a run")
    parser.add_argument("--tokenizer", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--sequence", nargs="+", metavar="PICTURE", help="pictures to continue")
    parser.add_argument("--pairs", nargs="+", metavar="PICTURE", help="examples: input, answer, input, answer, ...")
    parser.add_argument("--query", metavar="PICTURE", help="the input to answer, after --pairs")
    parser.add_argument("--candidates", type=int, help="answers to draw (4; 1 at temperature 0)")
    parser.add_argument("--num-pictures", type=int, default=1, help="how far to continue a --sequence (1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most likely code each time (1.0)")
    parser.add_argument("--top-k", type=int, help="draw from the k most likely codes only")
    parser.add_argument("--top-p", type=float, help="draw from the fewest codes with this probability together")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the answers; it must not hold anything yet")
    arguments = parser.parse_args(argv)

    if bool(arguments.sequence) == bool(arguments.pairs):
        raise UserError("give either --sequence with the pictures to continue or --pairs and --query")
    if arguments.pairs and len(arguments.pairs) % 2:
        raise UserError(
            f"--pairs has {len(arguments.pairs)} pictures, the last is {arguments.pairs[-1]}; "
            "each input needs its answer: in1 out1 in2 out2 ..."
        )
    if bool(arguments.pairs) != bool(arguments.query):
        raise UserError(
            "--query is missing; it is the picture to answer" if arguments.pairs else "--query needs --pairs"
        )
    if arguments.pairs and arguments.num_pictures != 1:
        raise UserError(f"--num-pictures {arguments.num_pictures} continues a --sequence; a query has one answer")
    if arguments.candidates is None:
        arguments.candidates = 1 if arguments.temperature == 0 else 4
    if arguments.temperature == 0 and arguments.candidates > 1:
        raise UserError(
            f"--candidates {arguments.candidates} at temperature 0 would all be the same; "
            "use --candidates 1 or a temperature above 0"
        )
    return arguments


def check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; name a new folder")


def check_model(model: Path) -> None:
    if not model.is_dir():
        raise UserError(f"{model} is not a folder; MODEL is a folder with config.json and safetensors")
    if not (model / "config.json").is_file() and ((model / "manifest.json").is_file() or any(model.glob("step-*"))):
        raise UserError(f"{model} is a run or a checkpoint; `lvm export {model} OUT` makes a model folder of it")


def check_room(prompter: Prompter, num_pictures: int, in_pairs: bool) -> None:
    room = prompter.pictures_per_window - 1
    if num_pictures > room:
        most = f"{(room - 1) // 2} pairs and the query" if in_pairs else f"{room} pictures"
        raise UserError(
            f"a prompt of {num_pictures} pictures and an answer exceed the model's context of {room + 1} pictures "
            f"({prompter.model.config.max_position} tokens); give at most {most}"
        )


def answer_names(answer: Answer) -> list[list[str]]:
    """File names by candidate and picture."""
    candidates, num_pictures = answer.pictures.shape[:2]
    if num_pictures == 1:
        return [[f"answer-{c}.png"] for c in range(candidates)]
    return [[f"answer-{c}-{n}.png" for n in range(num_pictures)] for c in range(candidates)]


def answer_grid(answer: Answer) -> "UInt8[np.ndarray, 'y x 3']":
    """The prompt on the first row, and beside it a row of answers for each candidate; white between them."""
    candidates, num_answers, y, x = answer.pictures.shape[:4]
    num_prompt = len(answer.prompt)
    scale = max(1, -(-CELL // min(y, x)))
    high, wide = y * scale + GAP, x * scale + GAP
    aside = 2 * GAP  # more room between prompt and answers
    grid = np.full((candidates * high + GAP, (num_prompt + num_answers) * wide + GAP + aside, 3), 255, np.uint8)

    def place(picture: np.ndarray, row: int, column: int) -> None:
        top, left = GAP + row * high, GAP + column * wide + (aside if column >= num_prompt else 0)
        grid[top : top + y * scale, left : left + x * scale] = picture.repeat(scale, 0).repeat(scale, 1)

    for column, picture in enumerate(answer.prompt):
        place(picture, 0, column)
    for row, pictures in enumerate(answer.pictures):
        for column, picture in enumerate(pictures):
            place(picture, row, num_prompt + column)
    return grid


def write(answer: Answer, record: dict[str, Any], out: Path) -> None:
    if out.is_dir():
        out.rmdir()  # empty, as checked; the finished folder takes its place
    with atomic_folder(out) as folder:
        for names, pictures in zip(answer_names(answer), answer.pictures):
            for name, picture in zip(names, pictures):
                Image.fromarray(picture).save(folder / name)
        Image.fromarray(answer_grid(answer)).save(folder / "grid.png")
        write_json(folder / "answer.json", record)
