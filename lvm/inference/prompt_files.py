"""What is asked: prompts given as picture files or as codes, from a command's words or from a file of many.

A file of prompts is a JSON list, or JSONL with one object a line; picture paths are relative to the file, and a folder
stands for its pictures in natural order (2 before 10):

    {"sequence": [picture, ...], "num_pictures": 2}               what comes next
    {"pairs": [[input, answer], ...], "query": picture}           the answer to the query
    {"pictures": [...], "tuple": k, "num_pictures": 1}            pictures that come in tuples of k; what is missing
    {"tokens": [[code, ...], ...]}                                codes instead of files, a list for each picture; one
                                                                  flat list; or the reference's base64 of int32
    {"input": [picture, ...], "output": file, "target": [...]}    the reference's list (see reference_protocol.py)

"id" names the prompt and its answer; without one it is the stem of the last picture, made unique.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.inference.rollout import Prompt
from lvm.pictures.decode import SUFFIXES
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Int64

Kind = Literal["sequence", "analogy", "tuples", "tokens"]
MOST_PICTURES = 100_000  # that one prompt may ask for
RESERVED = ("answers.jsonl", "failed.jsonl", "generate.json")  # what else lies beside the answers
LONGEST_ID = 200  # bytes; file names end at 255
KEYS: dict[str, set[str]] = {  # by the key that tells the form of a prompt, those that may stand beside it
    "sequence": {"num_pictures"},
    "pairs": {"query"},
    "pictures": {"tuple", "num_pictures"},
    "tokens": {"tuple", "num_pictures"},
    "input": {"output", "target"},
}


@dataclass(frozen=True)
class Asked:
    """One prompt: its pictures by their files, or their codes."""

    id: str
    kind: Kind
    files: tuple[str, ...] = ()  # paths that can be opened
    codes: "Int64[np.ndarray, 'n t'] | None" = None  # of kind tokens
    num_pictures: int = 1
    tuple_size: int = 1
    where: str = ""  # file and line, for messages
    output: str | None = None  # of the reference's list: the file for its answers
    targets: tuple[str, ...] = ()  # of the reference's list: the true pictures

    @property
    def length(self) -> int:
        return len(self.files) if self.codes is None else len(self.codes)

    @property
    def prefix(self) -> tuple[Any, ...]:
        """Equal for prompts that have all but their last picture in common."""
        return self.files[:-1] if self.codes is None else (self.codes[:-1].tobytes(),)

    def prompt(self, codes: "Int64[np.ndarray, 'n t']") -> Prompt:
        return Prompt(codes, self.num_pictures, self.tuple_size)

    def facts(self, folder: Path) -> list[Any]:
        """All that decides the answer, as JSON; files relative to `folder`, so that the whole may be moved."""
        files = [relative(file, folder) for file in (*self.files, "", *self.targets)]
        codes = None if self.codes is None else hashlib.sha256(self.codes.tobytes()).hexdigest()
        return [self.id, self.kind, files, codes, self.num_pictures, self.tuple_size, self.output]


def relative(file: str, folder: Path) -> str:
    """However the path is spelled; those outside the folder whole."""
    path, base = os.path.abspath(file), os.path.abspath(folder)
    return path.removeprefix(f"{base}/") if file else file


def fingerprint(prompts: Sequence[Asked], folder: Path) -> str:
    facts = [asked.facts(folder) for asked in prompts]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


# Pictures.


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by in which a number counts as one: frame2 before frame10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def expand(paths: Sequence[str]) -> list[str]:
    """Each folder as its pictures in natural order. Raises `UserError` for one without."""
    found: list[str] = []
    for path in paths:
        if not is_folder(path):
            found.append(path)
            continue
        names = [file.name for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES]
        names = sorted((name for name in names if not name.startswith(".")), key=natural)
        if not names:
            raise UserError(f"{path or repr(path)} holds no picture; a folder of a prompt holds {', '.join(SUFFIXES)}")
        found += [str(Path(path) / name) for name in names]
    return found


def is_folder(path: str) -> bool:
    """What cannot be a path is none: reading it says so, and fails its own prompt alone."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


# Prompts of a command's words.


def sequence(pictures: Sequence[str], num_pictures: int) -> Asked:
    return Asked("", "sequence", tuple(expand(pictures)), num_pictures=num_pictures)


def check_pairs(pictures: Sequence[str]) -> None:
    if len(pictures) % 2:
        raise UserError(
            f"--pairs has {len(pictures)} pictures, the last is {pictures[-1]}; "
            "each input needs its answer: in1 out1 in2 out2 ..."
        )


def analogies(pairs: Sequence[str], queries: Sequence[str]) -> list[Asked]:
    """One prompt for each query, all after the same pairs."""
    check_pairs(pairs)
    return [Asked("", "analogy", (*pairs, query), tuple_size=2) for query in expand(queries)]


# Files of prompts.


def read_prompts(path: Path, base: Path | None = None, num_pictures: int = 1) -> list[Asked]:
    """The prompts of a JSON list or of JSONL, without ids made up. Raises `UserError` with file and line.

    Pictures are relative to `base`, the file's folder if None; `num_pictures` holds where a prompt says none.
    """
    base = path.parent if base is None else base
    prompts = [parse(where, value, base, num_pictures) for where, value in objects(path)]
    if not prompts:
        raise UserError(f"{path} holds no prompt; give at least one")
    return prompts


def objects(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each prompt."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{path} cannot be read ({reason}); --prompts names a JSON or JSONL file") from None
    if text.lstrip().startswith("["):
        yield from ((f"{path} prompt {n}", value) for n, value in enumerate(parse_json(text, str(path)), 1))
        return
    for line, row in enumerate(text.split("\n"), 1):  # not splitlines: JSON texts may hold other separators
        if row.strip():
            where = f"{path} line {line}"
            yield where, parse_json(row, where)


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if "\n" in text else ""
        raise UserError(f"{where}{line}: not JSON ({error.msg} at column {error.colno}); mend that line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); mend it") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"{twice!r} stands there twice")
    return found


def parse(where: str, value: Any, base: Path, num_pictures: int) -> Asked:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {shortened(value)} is no object; a prompt is one, as {{'sequence': [..]}}")
    forms = [key for key in KEYS if key in value]
    if len(forms) != 1:
        had = " and ".join(map(repr, forms)) or "none"
        raise UserError(f"{where}: has {had} of {', '.join(KEYS)}; a prompt has one of them")
    [form] = forms
    if form != "input" and (unknown := sorted(set(value) - KEYS[form] - {form, "id"})):
        allowed = ", ".join(sorted(KEYS[form] | {"id"}))
        raise UserError(f"{where}: unknown key {unknown[0]!r}; beside {form!r} may stand {allowed}")
    if form == "input" and (ours := sorted({"id", "num_pictures", "tuple"} & set(value))):
        raise UserError(f"{where}: {ours[0]!r} has no meaning in the reference's list; leave it out")
    try:
        asked = PARSERS[form](value, base, num_pictures)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    name = value.get("id", "") if form != "input" else ""  # in the reference's list the output names the prompt
    if not isinstance(name, (str, int)) or isinstance(name, bool) or ("id" in value and name == "" and form != "input"):
        raise UserError(f"{where}: id {shortened(name)} is no name")
    return replace(asked, id=str(name), where=where)


def shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def file_names(value: Any, what: str, base: Path) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{what} is {shortened(value)}; it must be a list of picture files")
    return [str(base / name) for name in names]


def whole_number(value: dict[str, Any], key: str, default: int) -> int:
    number = value.get(key, default)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"{key} is {shortened(number)}; it must be a whole number, at least 1")
    if number > MOST_PICTURES:
        raise UserError(f"{key} is {number}; at most {MOST_PICTURES} are answered")
    return number


def parse_sequence(value: dict[str, Any], base: Path, num_pictures: int) -> Asked:
    files = expand(file_names(value["sequence"], "sequence", base))
    return Asked("", "sequence", tuple(files), num_pictures=whole_number(value, "num_pictures", num_pictures))


def parse_pairs(value: dict[str, Any], base: Path, num_pictures: int) -> Asked:
    pairs = value["pairs"]
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f"pairs is {shortened(pairs)}; it must be a list of [input, answer]")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"pair {number} is {shortened(pair)}; a pair is [input, answer]")
    if not isinstance(value.get("query"), str) or not value["query"]:
        raise UserError(f"query is {shortened(value.get('query'))}; it must be the picture to answer")
    files = file_names([picture for pair in pairs for picture in pair], "pairs", base)
    return Asked("", "analogy", (*files, str(base / value["query"])), tuple_size=2)


def parse_tuples(value: dict[str, Any], base: Path, num_pictures: int) -> Asked:
    size = whole_number(value, "tuple", 1)
    files = expand(file_names(value["pictures"], "pictures", base))
    missing = size - len(files) % size  # of the tuple begun, or a whole one
    return Asked("", "tuples", tuple(files), None, whole_number(value, "num_pictures", missing), size)


def parse_tokens(value: dict[str, Any], base: Path, num_pictures: int) -> Asked:
    codes = rows_of(value["tokens"])
    if "tuple" in value and "num_pictures" not in value:
        raise UserError("tokens in tuples need num_pictures: how many are to follow")
    size = whole_number(value, "tuple", 1)
    return Asked("", "tokens", (), codes, whole_number(value, "num_pictures", num_pictures), size)


def rows_of(tokens: Any) -> "Int64[np.ndarray, 'n t']":
    """The codes as they stand; flat ones are one row, which `check_codes` cuts into pictures."""
    if isinstance(tokens, str):
        try:
            raw = base64.b64decode(tokens, validate=True)
        except ValueError:
            raise UserError("tokens is a text that is no base64") from None
        if len(raw) % 4:
            raise UserError(f"tokens is base64 of {len(raw)} bytes, no whole number of int32")
        return np.frombuffer(raw, "<i4").astype(np.int64)[None]
    rows = tokens if isinstance(tokens, list) and tokens and isinstance(tokens[0], list) else [tokens]
    lengths = {len(row) if isinstance(row, list) else -1 for row in rows}
    if len(lengths) != 1 or -1 in lengths:
        raise UserError("tokens must be a list of codes for each picture, all of the same length, or base64 of int32")
    for number, row in enumerate(rows):
        for at, code in enumerate(row):
            if not isinstance(code, int) or isinstance(code, bool) or abs(code) >= 2**63:
                raise UserError(f"token {at} of picture {number} is {shortened(code)}, no code")
    return np.array(rows, dtype=np.int64)


def parse_reference(value: dict[str, Any], base: Path, num_pictures: int) -> Asked:
    files = file_names(value["input"], "input", base)
    output = value.get("output")
    if not isinstance(output, str) or Path(output).suffix.lower() not in SUFFIXES:
        raise UserError(f"output is {shortened(output)}; it must be a picture file, as answers/1.png")
    parts = PurePosixPath(output).parts
    if PurePosixPath(output).is_absolute() or ".." in parts:
        raise UserError(f"output {output} leads out of --out; give a path below it")
    if not output.isprintable() or any(part[0] == "." or len(part.encode()) > LONGEST_ID for part in parts):
        raise UserError(f"output {shortened(output)} cannot name a file; use short plain names")
    output = "/".join(parts)
    targets = file_names(value["target"], "target", base) if "target" in value else []
    return Asked("", "sequence", tuple(files), None, num_pictures, output=output, targets=tuple(targets))


PARSERS = {
    "sequence": parse_sequence,
    "pairs": parse_pairs,
    "pictures": parse_tuples,
    "tokens": parse_tokens,
    "input": parse_reference,
}


# What holds for all of them.


def named(prompts: Sequence[Asked]) -> list[Asked]:
    """Each with an id that can name a folder; made up from the last picture's name where none is given."""
    seen: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for asked in prompts:
        if asked.id:
            check_id(asked, seen)
            seen[asked.id] = asked.where
        if asked.output in outputs:
            raise UserError(f"{asked.where}: output {asked.output} is that of {outputs[asked.output]} too")
        if asked.output is not None:
            outputs[asked.output] = asked.where
    for output, where in outputs.items():
        for above in PurePosixPath(output).parents:
            if str(above) in outputs:
                raise UserError(f"{where}: output {output} lies below the file {above} of {outputs[str(above)]}")
    return [replace(asked, id=asked.id or free_name(asked, number, seen)) for number, asked in enumerate(prompts, 1)]


def check_id(asked: Asked, seen: dict[str, str]) -> None:
    name = asked.id
    plain = name == Path(name).name and not name.startswith(".") and name.isprintable()
    if not plain or name in RESERVED or len(name.encode()) > LONGEST_ID:
        raise UserError(f"{asked.where}: id {shortened(name)} cannot name a folder; use a short plain name")
    if name in seen:
        raise UserError(f"{asked.where}: id {name!r} is that of {seen[name]} too; give each prompt its own")


def free_name(asked: Asked, number: int, seen: dict[str, str]) -> str:
    stem = Path(asked.output or (asked.files or (f"prompt-{number:05}",))[-1]).stem
    stem = re.sub(r"[^\w.=+ -]", "_", stem)[: LONGEST_ID // 4].lstrip(".") or "prompt"
    name, count = stem, 1
    while name in seen or name in RESERVED:
        count += 1
        name = f"{stem}-{count}"
    seen[name] = asked.where
    return name


def check_codes(asked: Asked, num_codes: int, tokens_per_picture: int) -> Asked:
    """Codes as whole pictures of the tokenizer. Raises `UserError` naming line, value and range."""
    if asked.codes is None:
        return asked
    codes, where = asked.codes, asked.where
    if len(codes) == 1 and codes.size % tokens_per_picture == 0 and codes.size:
        codes = codes.reshape(-1, tokens_per_picture)
    if not codes.size or codes.shape[1] != tokens_per_picture:
        raise UserError(f"{where}: {codes.shape[-1]} tokens are no whole pictures of {tokens_per_picture}")
    outside = (codes < 0) | (codes >= num_codes)
    if outside.any():
        picture, at = np.argwhere(outside)[0]
        raise UserError(
            f"{where}: token {at} of picture {picture} is {codes[picture, at]}; "
            f"the tokenizer's codes are 0..{num_codes - 1}"
        )
    return replace(asked, codes=codes)


def check_tuples(asked: Asked, pictures_per_window: int) -> None:
    """Raise `UserError` where not even one tuple and a picture fit the context, so that no window can move."""
    if asked.tuple_size >= pictures_per_window:
        raise UserError(
            f"{asked.where}: tuples of {asked.tuple_size} pictures do not fit the model's context of "
            f"{pictures_per_window} pictures; a tuple must be smaller"
        )


def check_room(asked: Asked, pictures_per_window: int, max_position: int) -> None:
    """Raise `UserError` where a prompt and one picture after it exceed the context."""
    room = pictures_per_window - 1
    if asked.length <= room:
        return
    most = f"{(room - 1) // 2} pairs and the query" if asked.kind == "analogy" else f"{room} pictures"
    most += ", or --window move leaves out the first"
    place = f"{asked.where}: " if asked.where else ""
    raise UserError(
        f"{place}a prompt of {asked.length} pictures and an answer exceed the model's context of {room + 1} pictures "
        f"({max_position} tokens); give at most {most}"
    )
