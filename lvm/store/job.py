"""The bulk job: a source goes in, a token store comes out, and a kill at any moment costs one shard's work.

Processes of `lvm.sources.reading` read units while this one encodes. A shard is a fixed range of units; its pictures
go through the encoder in a fixed order in batches of one size, so that a resumed job writes the same bytes.
"""

import contextlib
import dataclasses
import errno
import json
import os
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lvm.runtime import UserError, atomic_write, read_json, write_json
from lvm.runtime.lease import RunLease
from lvm.runtime.machine import compile_problem
from lvm.sources.base import BrokenItem, Source
from lvm.sources.reading import read_units
from lvm.store import layout
from lvm.store.blank import is_blank
from lvm.store.card import card
from lvm.store.remote import refuse_url
from lvm.store.shard import Shard, lines_of, write_shard
from lvm.store.store import TokenStore
from tokenizer import VQGAN, BulkEncoder
from tokenizer.bulk import Precision

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16

COMPILE_FROM_UNITS = 4096


@dataclass
class JobReport:
    """What one run of the job did; shards that were there already are not counted in pictures or seconds."""

    complete: bool = False  # of the whole store, including other jobs' shards
    pictures: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0  # the encoder had nothing to encode
    broken: list[dict[str, Any]] = field(default_factory=list)  # of this job's shards, earlier runs included
    blank: int = 0  # items left out, of the same shards

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / max(self.seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        return self.waiting_seconds / max(self.seconds, 1e-9)


# The plan: what all jobs of a store agree on.


def make_plan(
    source: Source,
    vqgan: VQGAN,
    size: int,
    shard_size: int,
    keep_blank: bool | None = None,
    precision: Precision | None = None,
) -> dict[str, Any]:
    """plan.json; one that does not say `keep_blank` keeps blank pictures, without `precision` it is "auto"."""
    grid = _grid(vqgan, size)
    return {
        "version": layout.VERSION,
        "source": source.name,
        "source_fingerprint": source.fingerprint(),
        "units": len(source),
        "shard_size": shard_size,
        "channels": list(source.channels),
        "labels": list(getattr(source, "labels", ())),
        "size": size,
        "resize": getattr(source, "resize", "none"),
        "tokenizer_fingerprint": vqgan.fingerprint,
        "num_codes": vqgan.config.num_embeddings,
        "grid": list(grid),
        "block_pictures": layout.BLOCK_PICTURES,
        **({} if keep_blank is None else {"keep_blank": keep_blank}),
        **({} if precision is None else {"precision": precision}),
    }


def freeze_plan(path: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Write plan.json if no job has; else return the one that is there, or refuse if it is of something else.

    The frozen shard size wins over the one given: it only decides how the work is cut.
    """
    target = path / "plan.json"
    if not target.exists():
        if path.exists() and any(path.iterdir()) and not target.exists():  # by now another task may have begun
            raise UserError(f"{path} exists and is not a token store; name another folder")
        path.mkdir(parents=True, exist_ok=True)
        aside = path.parent / f".tmp-{uuid.uuid4().hex[:8]}-plan.json"
        try:
            aside.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")
            os.link(aside, target)  # fails if another job was first
            return plan
        except FileExistsError:
            pass
        finally:
            aside.unlink(missing_ok=True)
    frozen = read_json(target)
    if frozen.get("tokenizer_fingerprint") != plan["tokenizer_fingerprint"]:
        raise UserError(
            f"{path} was made with tokenizer {str(frozen.get('tokenizer_fingerprint'))[:12]}, this one is "
            f"{plan['tokenizer_fingerprint'][:12]}; name another folder or the same tokenizer"
        )
    if frozen.get("source_fingerprint") != plan["source_fingerprint"]:
        raise UserError(
            f"{path} holds source {frozen.get('source')!r} ({str(frozen.get('source_fingerprint'))[:12]}, "
            f"{frozen.get('units')} units), not {plan['source']!r} ({plan['source_fingerprint'][:12]}, "
            f"{plan['units']} units); name another folder, or the same files and options"
        )
    for key in plan:
        if key in ("shard_size", "labels", "tokenizer") or (key == "keep_blank" and key not in frozen):
            continue  # the frozen plan is older than the filter of blank pictures
        before = frozen.get(key, "auto" if key == "precision" else None)
        if before != plan[key]:
            raise UserError(f"{target} says {key} = {before!r}, this job {plan[key]!r}; name another folder")
    return frozen


def _grid(vqgan: VQGAN, size: int) -> tuple[int, int]:
    config = vqgan.config
    if size % config.factor:
        raise UserError(f"pictures of {size} px do not divide into the tokenizer's cells of {config.factor} px")
    if size != config.resolution:
        return size // config.factor, size // config.factor
    h, w = config.code_grid
    if (h, w) != config.square_grid:
        raise UserError(
            f"the tokenizer has a grid of {h} x {w} codes; sources draw square pictures, whose {size} px fill "
            f"{size // config.factor} x {size // config.factor}; use a tokenizer of such a grid"
        )
    return h, w


def num_shards_of(plan: dict[str, Any]) -> int:
    """Tars of a store. A plan of one made of other stores says how many: it has no units to cut."""
    return plan["num_shards"] if "num_shards" in plan else -(-plan["units"] // plan["shard_size"])


def unit_range(plan: dict[str, Any], n: int) -> range:
    """The units of tar shard n."""
    return range(n * plan["shard_size"], min((n + 1) * plan["shard_size"], plan["units"]))


# The job.


def build_store(source: Source, path: str | Path, vqgan: VQGAN, **options: Any) -> TokenStore:
    """Tokenise all of `source` into `path` and open it; options as of `run_job`.

    Idempotent: a complete store of the same source and tokenizer is returned at once, a partial one is resumed,
    any other is refused with a `UserError`.
    """
    run_job(source, path, vqgan, **options)
    return TokenStore(path)


def run_job(
    source: Source,
    path: str | Path,
    vqgan: VQGAN,
    *,
    size: int | None = None,
    shard_size: int = 2048,
    workers: int = 2,
    num_shards: int = 1,
    shard: int = 0,
    max_broken: float = 0.01,
    keep_blank: bool = False,
    progress: bool = True,
    compile: bool | str = "auto",
    precision: Precision = "auto",
    tokenizer: str = "",
    command: str = "",
    exclusive: bool = True,
) -> JobReport:
    """Task `shard` of `num_shards`: encode the tar shards whose number is `shard` modulo `num_shards`.

    `size` is the side of the pictures in pixels (the tokenizer's resolution if None), `shard_size` the units in a tar,
    `max_broken` the share of this task's units that may be unreadable, `keep_blank` whether pictures of one flat colour
    are kept, `precision` as of `BulkEncoder`; `tokenizer` is the name or path that the store remembers for looking at
    it, `command` what its card says that made it. Whichever task finds all shards present writes store.json and the
    card.

    A live process that works at the same task is an error, unless `exclusive` is false: both write the same bytes then.
    Raises `UserError`.
    """
    refuse_url(path, "a store is written into", "name one and copy it there")
    path = Path(path)
    if not 0 <= shard < num_shards:
        raise UserError(f"shard {shard} of {num_shards}: must be 0..{num_shards - 1}")
    if not len(source):
        raise UserError(f"source {source.name!r} has nothing in it")
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}; use one of {', '.join(get_args(Precision))}")
    report = JobReport()
    try:
        plan = make_plan(source, vqgan, size or vqgan.config.resolution, shard_size, keep_blank, precision)
        plan = freeze_plan(path, {**plan, "tokenizer": tokenizer})
        mine = range(shard, num_shards_of(plan), num_shards)
        if _missing(path, mine):
            with contextlib.ExitStack() as held:
                name = f".task-{shard}-of-{num_shards}.json"
                lease = held.enter_context(RunLease(path, name, over_hosts=True)) if exclusive else None
                todo = _missing(path, mine)  # who held the lease until now may have written some
                _count_done(path, set(mine) - set(todo), report)
                limit = max_broken * sum(len(unit_range(plan, n)) for n in mine)
                _encode_shards(source, path, vqgan, plan, todo, limit, workers, progress, compile, lease, report)
        else:
            _count_done(path, mine, report)
        report.complete = finish(path, command)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{path} cannot be written ({error.strerror}); the same command continues") from None
        raise
    return report


def _missing(path: Path, numbers: Iterable[int]) -> list[int]:
    return [n for n in numbers if not layout.sidecar_path(path, layout.shard_name(n)).is_file()]


def _count_done(path: Path, numbers: Iterable[int], report: JobReport) -> None:
    for n in numbers:
        sidecar = read_json(layout.sidecar_path(path, layout.shard_name(n)))
        report.broken += sidecar["broken"]
        report.blank += len(sidecar.get("blank", []))


def _encode_shards(
    source: Source,
    path: Path,
    vqgan: VQGAN,
    plan: dict[str, Any],
    todo: list[int],
    limit: float,
    workers: int,
    progress: bool,
    compile: bool | str,
    lease: RunLease | None,
    report: JobReport,
) -> None:
    ranges = {n: unit_range(plan, n) for n in todo}
    keep_blank = plan.get("keep_blank", True)
    encoder = make_encoder(vqgan, plan["size"], compile, plan["units"], plan.get("precision", "auto"))
    start = time.perf_counter()
    reads = read_units(source, [unit for n in todo for unit in ranges[n]], plan["size"], workers=workers)
    line = _ProgressLine(progress, source.name, sum(len(ranges[n]) for n in todo))
    try:
        for n in todo:
            shard = Shard(tuple(plan["channels"]))
            batcher = _Batcher(encoder, plan["grid"][0] * plan["grid"][1])
            for _ in ranges[n]:
                waited = time.perf_counter()
                unit, items = next(reads)
                report.waiting_seconds += time.perf_counter() - waited
                if isinstance(items, BrokenItem):
                    broken = {"id": source.unit_id(unit), "file": items.file, "reason": items.reason}
                    shard.broken.append(broken)
                    report.broken.append(broken)
                    if len(report.broken) > limit:
                        write_quarantine(path, [*shard.broken, *shard.blank])
                        raise _too_many(path, report.broken, limit)
                else:
                    for item in items:
                        shard.check(item)
                        if not keep_blank and is_blank(item, items):
                            origin = getattr(item, "origin", "")
                            shard.blank.append({"id": item.id, "view": item.view, "file": origin, "reason": "blank"})
                            continue
                        for pictures in shard.add(item):
                            batcher.add(pictures)
                report.seconds = time.perf_counter() - start
                line.show(1, report, report.pictures + batcher.num_pictures)
            codes = batcher.finish()
            if lease is not None:
                lease.check()
            write_shard(path, n, ranges[n], shard, codes)
            report.pictures += shard.num_pictures
            report.blank += len(shard.blank)
            report.seconds = time.perf_counter() - start
    finally:
        reads.close()  # type: ignore[attr-defined]
        line.end()


def _too_many(path: Path, broken: list[dict[str, Any]], limit: float) -> UserError:
    first = broken[0]
    return UserError(
        f"{first['file']}: {first['reason']}; {len(broken)} broken where {int(limit)} are allowed (all named in "
        f"{path / 'quarantine.jsonl'}): mend or remove them, or raise max_broken"
    )


class _Batcher:
    """Pictures in, codes out, in batches of the encoder's size; only a shard's last batch is shorter."""

    def __init__(self, encoder: BulkEncoder, tokens_per_picture: int) -> None:
        self.encoder = encoder
        self.pending: list[np.ndarray] = []
        self.num_pending = 0
        self.num_pictures = 0
        self.codes: list[np.ndarray] = [np.zeros((0, tokens_per_picture), np.uint16)]

    def add(self, pictures: "UInt8[np.ndarray, 'n y x 3']") -> None:
        self.pending.append(pictures)
        self.num_pending += len(pictures)
        self.num_pictures += len(pictures)
        if self.num_pending >= self.encoder.batch_size:
            full = self.num_pending // self.encoder.batch_size * self.encoder.batch_size
            joined = np.concatenate(self.pending)
            self.codes.append(self.encoder.encode(joined[:full]))
            self.pending, self.num_pending = [joined[full:]], self.num_pending - full

    def finish(self) -> "UInt16[np.ndarray, 'p t']":
        if self.num_pending:
            self.codes.append(self.encoder.encode(np.concatenate(self.pending)))
            self.pending, self.num_pending = [], 0
        return np.concatenate(self.codes)


def make_encoder(
    vqgan: VQGAN, size: int, compile: bool | str, units: int, precision: Precision = "auto"
) -> BulkEncoder:
    """`compile` "auto" compiles where the machine can and the source is large enough to pay for it.

    The size of the whole source decides, not what is left to do: a resumed job must compute as the first one did.
    """
    if size != vqgan.config.resolution:
        resized = VQGAN(dataclasses.replace(vqgan.config, resolution=size, grid=None))
        resized.load_state_dict(vqgan.state_dict())
        vqgan = resized.to(next(vqgan.parameters()).device)
    if compile == "auto":
        compile = units >= COMPILE_FROM_UNITS and compile_problem() is None
    return BulkEncoder(vqgan, compile=bool(compile), precision=precision)


class _ProgressLine:
    """Units done, pictures/s and the encoder's waiting share, rewritten once a second on a terminal."""

    def __init__(self, show: bool, name: str, total: int) -> None:
        self.on = show and sys.stderr.isatty()
        self.name, self.total, self.done, self.last = name, total, 0, 0.0

    def show(self, units: int, report: JobReport, pictures: int) -> None:
        self.done += units
        if self.on and time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            speed = pictures / max(report.seconds, 1e-9)
            left = report.seconds / self.done * (self.total - self.done)
            text = f"tokenize {self.name}: {self.done}/{self.total} units, {speed:,.0f} pictures/s, "
            print(f"\r{text}waiting {report.waiting_share:.0%}, {left:.0f} s left  ", end="", file=sys.stderr)

    def end(self) -> None:
        if self.on:
            print(file=sys.stderr)


# What is derived once shards are there.


def finish(path: Path, command: str = "") -> bool:
    """Write quarantine.jsonl, and store.json and the card once every shard of the plan is present; whether it is."""
    plan = read_json(path / "plan.json")
    present = write_quarantine(path)
    if len(present) < num_shards_of(plan):
        return False
    if not sum(sidecar["items"] for sidecar in present):
        raise UserError(f"nothing of source {plan['source']!r} could be read; see {path / 'quarantine.jsonl'}")
    info = {**plan, "shards": [_counts(sidecar) for sidecar in present]}
    if not (path / "store.json").is_file() or read_json(path / "store.json") != info:
        layout.card_path(path).unlink(missing_ok=True)
        write_json(path / "store.json", info)
        _sweep(path)
    if not layout.card_path(path).is_file():
        atomic_write(layout.card_path(path), card(TokenStore(path), command))
    return True


def _counts(sidecar: dict[str, Any]) -> dict[str, Any]:
    """What store.json says of a shard."""
    counts = {key: sidecar[key] for key in ("name", "bytes", "sha256", "units", "ids", "items", "blocks", "pictures")}
    return counts | {key: len(sidecar[key]) for key in ("broken", "blank") if key in sidecar}


def _sweep(path: Path) -> None:
    """Remove what killed jobs were writing; what is younger than an hour may still be written by another task."""
    for file in path.rglob(".tmp-*"):
        with contextlib.suppress(FileNotFoundError):  # another task was first
            if time.time() - file.stat().st_mtime > 3600:
                file.unlink()


def sidecars(path: Path) -> list[dict[str, Any]]:
    """Of the shards that are there, in order."""
    names = [layout.shard_name(n) for n in range(num_shards_of(read_json(path / "plan.json")))]
    return [read_json(file) for file in (layout.sidecar_path(path, name) for name in names) if file.is_file()]


def write_quarantine(path: Path, more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Name in quarantine.jsonl all that was left out, and `more`; the sidecars that say so.

    Once again where other tasks finished shards meanwhile: whoever writes last has seen the last shard.
    """
    while True:
        present = sidecars(path)
        left_out = [entry for sidecar in present for entry in (*sidecar["broken"], *sidecar.get("blank", []))]
        file, text = path / "quarantine.jsonl", lines_of([*left_out, *more])
        if text != (file.read_text("utf-8") if file.is_file() else ""):
            atomic_write(file, text)
        if len(present) == len(sidecars(path)):
            return present
