"""Codes to batches: lvm bench data [pictures=20000 batch_size=32 seq_len=4096 rounds=5 workers=2]

Ours: `TokenPlan.windows` and its conversion to torch tensors, the whole work of the loader's thread, from a store on
disk. The alternative: the published loader, implemented anew: JSON lines of base64 int32, decoded into one growing
Python list that is cut into batches, either in this process or by a pool of workers (the faster one counts).
Limit: rows of uint16 gathered from memory by one index, without order, sentences, roles or conversion.
Both read the same sentences in the same order and the first batch is compared. Beside them, what single windows at
random cost, one at a time.
"""

import base64
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np

from lvm.commands.bench import measured, result, seconds_of, table, take_turns
from lvm.data import TokenPlan
from lvm.data.loader import to_batch
from lvm.model import LVMConfig
from lvm.runtime import UserError, write_json
from lvm.sources import Item
from lvm.store import TokenStore, layout
from lvm.store.shard import Shard, write_shard

CHANNELS = ("image", "depth")
EXAMPLES_AT_ONCE, CHUNK = 1024, 32  # of the published loader's pool


@dataclass(frozen=True)
class Options:
    pictures: int = 20_000  # of each of two channels in the store
    tokens_per_picture: int = 256
    num_codes: int = 8192
    seq_len: int = 4096
    batch_size: int = 32  # windows
    batches: int = 64  # in a round; two of the pool's portions of 1,024 sentences at 16 pictures of 256 tokens
    random_windows: int = 2000
    sentences: int = 2048  # in the published loader's file, which it reads in circles
    rounds: int = 5
    workers: int = 2  # of the published loader's pool


def write_store(folder: Path, options: Options, shard_size: int = 4096) -> TokenStore:
    """A store of random codes, of pictures with two channels, so many in a shard."""
    side = options.tokens_per_picture
    plan = {
        "version": layout.VERSION,
        "source": "random",
        "channels": list(CHANNELS),
        "labels": [],
        "tokenizer_fingerprint": "0" * 64,
        "num_codes": options.num_codes,
        "grid": [1, side],
    }
    random, shards = np.random.default_rng(0), []
    for number, start in enumerate(range(0, options.pictures, shard_size)):
        shard, units = Shard(CHANNELS), range(start, min(start + shard_size, options.pictures))
        for i in units:
            shard.add(Item(f"{i}", f"{i}", 0, -1, {channel: np.empty(1) for channel in CHANNELS}))
        codes = random.integers(0, options.num_codes, (shard.num_pictures, side)).astype(np.uint16)
        write_shard(folder, number, units, shard, codes)
        sidecar = json.loads(layout.sidecar_path(folder, layout.shard_name(number)).read_text())
        shards.append({key: sidecar[key] for key in ("name", "bytes", "sha256", "ids", "items", "blocks")})
    write_json(folder / "store.json", {**plan, "shards": shards})
    return TokenStore(folder)


def make_plan(store: TokenStore, options: Options) -> TokenPlan:
    """Half of the tokens in sentences of eight pairs, half in single pictures."""
    pairs = {"recipe": "pairs", "input": "image", "output": "depth", "agree": "none"}
    config = {
        "seq_len": options.seq_len,
        "packing": "concat",
        "sources": {"random": {}},
        "entries": {
            "pairs": {"source": "random", "weight": 1.0, **pairs},
            "single": {"source": "random", "weight": 1.0, "recipe": "single"},
        },
    }
    return TokenPlan.from_config(config, {"random": store})


def plan_for(config: LVMConfig, folder: Path, seq_len: int) -> TokenPlan:
    """A plan over a small store of random codes, written to `folder`, that a model of `config` can be trained on."""
    options = Options(1000, config.tokens_per_picture or 256, config.num_codes, seq_len)
    return make_plan(write_store(folder, options), options)


def write_json_lines(path: Path, plan: TokenPlan, number: int) -> None:
    """The plan's first sentences as the published scripts write them: one a line, without BOS and EOS."""
    left, window, rest = number, 0, np.zeros(0, np.int64)
    with path.open("w") as file:
        while left:
            stream = np.concatenate([rest, plan.windows(window, 64).tokens[:, :-1].reshape(-1)])
            window += 64
            ends = np.flatnonzero(stream == plan.eos)[:left]
            for sentence in np.split(stream, ends + 1)[: len(ends)]:
                codes = base64.b64encode(sentence[1:-1].astype("<i4").tobytes()).decode()
                file.write(json.dumps({"tokens": codes}) + "\n")
            rest = stream[ends[-1] + 1 :] if len(ends) else stream
            left -= len(ends)


# The published loader (EasyLM's JSON dataset as LVM uses it), implemented anew from its description.


def read_lines(path: Path) -> Iterator[dict[str, str]]:
    """Parsed lines, from the beginning again at the end of the file."""
    with path.open() as file:
        while True:
            line = file.readline()
            file.tell()  # the state it can be resumed from
            if line:
                yield json.loads(line)
            else:
                file.seek(0)


class Decode:
    """An example to its tokens and loss weights, as Python lists."""

    def __init__(self, bos: int, eos: int):
        self.bos, self.eos = bos, eos

    def __call__(self, example: dict[str, str]) -> tuple[list[int], list[float]]:
        codes = np.frombuffer(base64.b64decode(example["tokens"]), dtype="<i4").tolist()
        return [self.bos, *codes, self.eos], [1.0] * (len(codes) + 2)


def decoded(path: Path, decode: Decode, pool: Pool | None) -> Iterator[tuple[list[int], list[float]]]:
    """Examples decoded here, or in a pool that works on the next portion while one is used."""
    lines = read_lines(path)
    if pool is None:
        yield from map(decode, lines)
        return
    following = pool.map_async(decode, list(islice(lines, EXAMPLES_AT_ONCE)), chunksize=CHUNK)
    try:
        while True:
            current = following
            following = pool.map_async(decode, list(islice(lines, EXAMPLES_AT_ONCE)), chunksize=CHUNK)
            yield from current.get()
    finally:
        following.wait()  # whoever is measured next has the machine to itself


def batches(
    examples: Iterator[tuple[list[int], list[float]]], batch_size: int, seq_len: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches cut from one list of all tokens."""
    size, tokens, weights = batch_size * seq_len, list[int](), list[float]()
    for more_tokens, more_weights in examples:
        tokens.extend(more_tokens)
        weights.extend(more_weights)
        while len(tokens) > size + 1:
            yield {
                "input_tokens": np.array(tokens[:size], np.int32).reshape(batch_size, -1),
                "target_tokens": np.array(tokens[1 : size + 1], np.int32).reshape(batch_size, -1),
                "loss_masks": np.array(weights[1 : size + 1], np.float32).reshape(batch_size, -1),
            }
            tokens, weights = tokens[size:], weights[size:]


# The benchmark.


def run(options: Options) -> dict[str, Any]:
    if options.workers < 1:
        raise UserError(f"workers is {options.workers}; use 1 or more")
    # Forked before anything starts a thread. The workers only decode.
    with tempfile.TemporaryDirectory() as temporary, get_context("fork").Pool(options.workers) as pool:
        folder = Path(temporary)
        plan = make_plan(write_store(folder / "store", options), options)
        lines = folder / "sentences.jsonl"
        write_json_lines(lines, plan, options.sentences)
        return compare(options, plan, lines, pool)


def compare(options: Options, plan: TokenPlan, lines: Path, pool: Pool) -> dict[str, Any]:
    decode, b = Decode(plan.bos, plan.eos), options.batch_size
    (store,) = plan.stores.values()
    next_window = 0

    def ours() -> None:
        nonlocal next_window
        for _ in range(options.batches):
            to_batch(plan.windows(next_window, b))
            next_window += b

    def published(workers: Pool | None) -> float:
        examples = decoded(lines, decode, workers)
        seconds = seconds_of(lambda: list(map(len, islice(batches(examples, b, options.seq_len), options.batches))))
        examples.close()  # type: ignore[attr-defined]
        return seconds

    random = np.random.default_rng(0)
    rows = random.integers(0, options.num_codes, (2 * options.pictures, options.tokens_per_picture)).astype(np.uint16)
    per_batch = -(-b * options.seq_len // options.tokens_per_picture)

    index = random.integers(0, len(rows), (options.batches, per_batch))

    def gather() -> None:
        for of_batch in index:
            rows[of_batch]

    examples = decoded(lines, decode, None)
    first = next(batches(examples, b, options.seq_len))
    window = plan.windows(0, b).tokens
    same = np.array_equal(first["input_tokens"], window[:, :-1]) and np.array_equal(
        first["target_tokens"], window[:, 1:]
    )
    contestants: dict[str, Callable[[], float]] = {
        "ours": lambda: seconds_of(ours),
        "in_process": lambda: published(None),
        "workers": lambda: published(pool),
        "gather": lambda: seconds_of(gather),
    }
    seconds = take_turns(contestants, options.rounds)
    one_by_one = random_windows(plan, options.random_windows)
    amount, unit = options.batches * b * options.seq_len, "tokens/s"
    published_results = {
        "in_process": measured("the published loader, in this process", amount, unit, seconds["in_process"]),
        "workers": measured(f"the published loader, {options.workers} workers", amount, unit, seconds["workers"]),
    }
    gathered = options.batches * per_batch * options.tokens_per_picture
    found = result(
        "data",
        options,
        measured("TokenPlan.windows to torch tensors", amount, unit, seconds["ours"]),
        max(published_results.values(), key=lambda one: one["rate"]),
        measured("uint16 rows gathered from memory, nothing else", gathered, unit, seconds["gather"]),
        alternatives=published_results,
        same_first_batch=bool(same),
        random_window=one_by_one,
        store_bytes=sum(shard["bytes"] for shard in store.info["shards"]),
        json_lines_bytes=lines.stat().st_size,
    )
    print(table(found))
    for one in published_results.values():
        print(f"  {one['what']}: {one['rate']:,.0f}")
    print(f"  the first batch is {'the same' if same else 'NOT the same'}")
    print(
        "  a window at random: {median:.2f} ms, {p99:.2f} ms at the 99th percentile".format(
            **{name: 1000 * value for name, value in one_by_one.items()}
        )
    )
    return found


def random_windows(plan: TokenPlan, count: int) -> dict[str, float]:
    """Seconds of `plan.window(i)` at random i."""
    taken = []
    for i in np.random.default_rng(1).integers(0, 10**9, count).tolist():
        start = time.perf_counter()
        plan.window(i)
        taken.append(time.perf_counter() - start)
    return {"median": float(np.median(taken)), "p99": float(np.percentile(taken, 99))}
