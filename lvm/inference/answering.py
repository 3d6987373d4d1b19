"""Prompts of files answered: pictures read and encoded once each, all prompts handed to the engine, answers scored.

    for result in answer_prompts(prompter, prompts, options):
        result          # Answered, or Failed with the file that could not be read; in the order in which they are done

Pictures that prompts share (the pairs of many queries) are read and encoded once. One unreadable picture fails its
prompts and no others.
"""

import contextlib
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.inference.answer_files import Answered, answer_names
from lvm.inference.choosing import RULES, Scores, score_candidates, seen_prompt
from lvm.inference.decoded import Decoded
from lvm.inference.prompt_files import Asked
from lvm.inference.prompter import Prompter
from lvm.inference.reference_protocol import decoded_as_reference, opened_as_reference
from lvm.inference.rollout import Continuation, Prompt, Window
from lvm.inference.rounds import Rounds
from lvm.inference.sampling import Sampling
from lvm.pictures.decode import PictureError, load, to_rgb
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8
    from PIL import Image

MOST_CANDIDATES = 4096
READERS = 4  # threads that read pictures
FREE_RULES = ("log_prob", "agreement")  # cost no pass of the model
# How the engine moves the window: `refuse` is about prompts; an answer may go beyond the context whatever it says.
WINDOWS: dict[str, Window] = {"refuse": "tuples", "move": "tuples", "reuse": "reuse", "frames": "frames"}


@dataclass(frozen=True)
class Options:
    """What decides the answers, beside the model and the prompts."""

    num_candidates: int = 4
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    window: str = "refuse"  # prompts beyond the context: refuse; or move, reuse, frames as in `WINDOWS`
    choose: str | None = None  # a rule of `RULES`
    original_size: bool = False  # answers get the size of the prompt's last picture
    protocol: str = "ours"  # or reference: pictures read and written as the reference does
    include_input: bool = False  # of the reference's pictures: the prompt before the answers
    mse: bool = False  # of the reference: against the prompts' targets

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise UserError(f"num_candidates {self.num_candidates} must be at least 1")
        if self.num_candidates > MOST_CANDIDATES:
            raise UserError(f"num_candidates {self.num_candidates} is too many; at most {MOST_CANDIDATES} are drawn")
        if self.choose is not None and self.choose not in RULES:
            raise UserError(f"there is no rule {self.choose!r} to choose by; use one of {', '.join(RULES)}")
        if self.choose == "agreement" and self.num_candidates < 3:
            raise UserError(f"agreement says nothing about {self.num_candidates} candidates; draw at least 3")

    @property
    def rules(self) -> tuple[str, ...]:
        free = FREE_RULES if self.num_candidates > 2 else FREE_RULES[:1]
        return tuple(rule for rule in RULES if rule in free or rule == self.choose)

    def record(self) -> dict[str, Any]:
        sampling = {key: getattr(self.sampling, key) for key in ("temperature", "top_k", "top_p")}
        own = {key: getattr(self, key) for key in ("seed", "window", "protocol")}
        return sampling | own | {"num_candidates": self.num_candidates}


@dataclass(frozen=True)
class Failed:
    asked: Asked
    file: str
    reason: str

    def record(self) -> dict[str, Any]:
        return {"id": self.asked.id, "file": self.file, "reason": self.reason, "where": self.asked.where}


@dataclass(frozen=True)
class Shown:
    """A picture as the tokenizer is given it, and its size before: width, height."""

    pixels: "UInt8[np.ndarray, 'y x 3']"
    size: tuple[int, int]


def answer_prompts(
    prompter: Prompter,
    prompts: Sequence[Asked],
    options: Options,
    given: "dict[str, Any] | None" = None,
    progress: Callable[[int], None] | None = None,
    rounds: Callable[[Sequence[Prompt]], Rounds] | None = None,
    wanted: "Collection[str] | None" = None,
) -> Generator[Answered | Failed, None, None]:
    """Answers as they are done; `given` stands in every record, before all else; `progress` is told of pictures.

    What `rounds` makes of the prompts keeps long answers while they grow. All prompts are answered together; of those
    whose ids are `wanted` (None: all) the results are given.
    """
    pictures = read_pictures(prompter, prompts, options)
    whole: list[Asked] = []
    for asked in prompts:
        broken = next(
            (found for file in needed(asked, options) if isinstance(found := pictures[file], PictureError)), None
        )
        if broken is None:
            whole.append(asked)
        elif wanted is None or asked.id in wanted:
            yield Failed(asked, broken.file, broken.reason)
    codes = encode_files(prompter, whole, pictures)
    asked_codes = [asked.prompt(codes_of(asked, codes)) for asked in whole]
    if options.window == "frames":  # told to the scores too, which see the window as it was
        asked_codes = [replace(prompt, tuple_size=1) for prompt in asked_codes]
    how = (options.num_candidates, options.sampling, options.seed, WINDOWS[options.window])
    with contextlib.closing(rounds(asked_codes)) if rounds else contextlib.nullcontext() as kept:
        for number, answer in prompter.continuations(asked_codes, *how, progress, kept):
            if wanted is None or whole[number].id in wanted:
                yield answered(prompter, whole[number], asked_codes[number], answer, pictures, options, given or {})


# Pictures in.


def needed(asked: Asked, options: Options) -> tuple[str, ...]:
    return (*asked.files, *asked.targets) if options.mse else asked.files


def read_pictures(prompter: Prompter, prompts: Sequence[Asked], options: Options) -> "dict[str, Shown | PictureError]":
    """Each file once, in order."""
    files = list(dict.fromkeys(file for asked in prompts for file in needed(asked, options)))

    def read(file: str) -> Shown | PictureError:
        try:
            image = open_picture(file, options.protocol)
        except PictureError as error:
            return error
        return Shown(prompter.pixels([image])[0], image.size)

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(files, pool.map(read, files)))


def open_picture(file: str, protocol: str) -> "Image.Image":
    image = load(file)
    return opened_as_reference(file) if protocol == "reference" else to_rgb(image, file)


def encode_files(
    prompter: Prompter, prompts: Sequence[Asked], pictures: "dict[str, Shown | PictureError]"
) -> "dict[str, Int64[np.ndarray, 't']]":
    files = list(dict.fromkeys(file for asked in prompts for file in asked.files))
    if not files:
        return {}
    return dict(zip(files, prompter.encode(pixels_of(files, pictures))))


def pixels_of(files: Sequence[str], pictures: "dict[str, Shown | PictureError]") -> "UInt8[np.ndarray, 'n y x 3']":
    return np.stack([shown.pixels for file in files if isinstance(shown := pictures[file], Shown)])


def codes_of(asked: Asked, codes: "dict[str, Int64[np.ndarray, 't']]") -> "Int64[np.ndarray, 'n t']":
    return asked.codes if asked.codes is not None else np.stack([codes[file] for file in asked.files])


# Answers out.


def answered(
    prompter: Prompter,
    asked: Asked,
    prompt: Prompt,
    found: Continuation,
    read: "dict[str, Shown | PictureError]",
    options: Options,
    given: dict[str, Any],
) -> Answered:
    def as_reference(codes: "Int64[np.ndarray, 'n t']") -> "UInt8[np.ndarray, 'n y x 3']":
        pixels: np.ndarray = (decoded_as_reference(prompter, codes) * 255).astype(np.uint8)
        return pixels

    pictures = Decoded(as_reference if options.protocol == "reference" else prompter.decode, found.tokens)
    last = read[asked.files[-1]] if asked.files else None
    shown = pixels_of(asked.files, read) if asked.files else prompter.decode(prompt.codes)
    scores = score_candidates(prompter, prompt, found, pictures, options.rules)
    record = given | record_of(asked, found, scores, options)
    record["pictures_left_out"] = len(prompt.codes) - len(seen_prompt(prompt, prompter.pictures_per_window).codes)
    if isinstance(last, Shown):
        record["original_size"] = list(last.size)
    if options.mse:
        record["mse"] = reference_mse(prompter, found.tokens, pixels_of(asked.targets, read))
    size = last.size if options.original_size and isinstance(last, Shown) else None
    return Answered(asked, shown, pictures, record, size)


def record_of(asked: Asked, found: Continuation, scores: Scores, options: Options) -> dict[str, Any]:
    candidates, num_pictures = found.tokens.shape[:2]
    chosen = options.choose if options.choose in scores.by_rule else None
    return {
        "id": asked.id,
        "kind": asked.kind,
        "prompt": list(asked.files),
        "tuple_size": asked.tuple_size,
        "pictures": answer_names(candidates, num_pictures),
        "tokens": found.tokens.tolist(),
        "scores": found.log_probs.mean((1, 2)).astype(float).tolist(),
        "picture_scores": found.log_probs.mean(2).astype(float).tolist(),
        "choices": scores.record(),
        "choose": options.choose,
        "chosen": None if chosen is None else scores.best(chosen),
        **options.record(),
    }


def reference_mse(
    prompter: Prompter, tokens: "Int64[np.ndarray, 'candidates n t']", targets: "UInt8[np.ndarray, 'n y x 3']"
) -> float:
    """Of pixels in [0, 1], the mean over all candidates, times the channels: as the reference reports it."""
    errors = []
    for number, target in enumerate(targets):
        found = decoded_as_reference(prompter, tokens[:, number])
        true = (target / 255.0).astype(np.float32)
        errors.append(np.mean((found - true) ** 2) * found.shape[-1])
    return float(np.mean(errors))
