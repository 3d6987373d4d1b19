"""Metrics: one JSON line a record, one file an attempt, merged by step when read.

    metrics/attempt-0000.jsonl    a run's first incarnation
    metrics/attempt-0001.jsonl    the next one, which resumed at a checkpoint and so repeats some steps

    evaluations/step-*.json       results of evaluations beside the training, which may come long after their step

A file is only appended to, so a killed run costs at most half a line. wandb and TensorBoard are fed too where they
are asked for. A value that is a `Path` is a picture: its name in the JSON, itself in the others.
"""

import contextlib
import json
import math
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvm.runtime.files import atomic_write

_PATTERN = "attempt-*.jsonl"
_EVALUATIONS = "evaluations"


class MetricsLog:
    """Rank 0's log of one attempt. `folder` is `RUN/metrics`; the attempt's number is the next free one.

    `resumed_at` is the step this attempt continued from (default: the one before its first record): what former
    attempts logged after it counts no more.
    `wandb` holds arguments of `wandb.init` (project, name, id ...), or None. Without an API key it runs offline;
    whatever fails in it is said once and never stops the run; its id is kept in RUN/wandb_id for the next attempt.
    `tensorboard` writes events to `RUN/tensorboard`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resumed_at: int | None = None,
        wandb: Mapping[str, Any] | None = None,
        tensorboard: bool = False,
    ) -> None:
        folder = Path(folder)
        self._first: dict[str, Any] = {} if resumed_at is None else {"resumed_at": int(resumed_at)}
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.stem.removeprefix("attempt-")) for path in folder.glob(_PATTERN)), default=-1)
        while True:
            self.path = folder / f"attempt-{number:04d}.jsonl"
            try:
                self._file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115
                break
            except FileExistsError:
                number += 1
        self._wandb = _open_wandb(folder, wandb) if wandb is not None else None
        self._tensorboard = _open_tensorboard(folder, resumed_at) if tensorboard else None
        self._evaluations = folder.parent / _EVALUATIONS
        self._shown: dict[Path, int] = {}  # results of evaluations that the loggers have, and when they were written

    def log(self, step: int, **values: Any) -> None:
        """Write one record: `step`, the time, and numbers, strings or nested mappings of them."""
        plain = {key: _plain(value) for key, value in values.items()}
        record = {"step": int(step), "time": round(time.time(), 3)} | self._first | plain
        self._first = {}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._show_evaluations(int(step))
        if self._wandb is not None:
            try:
                self._wandb.log(plain | _wandb_pictures(values), step=int(step))
            except Exception as error:
                warnings.warn(f"wandb stopped ({error}); metrics go on in {self.path}", stacklevel=2)
                self._wandb = None
        if self._tensorboard is not None:
            try:
                _to_tensorboard(self._tensorboard, int(step), plain | _paths(values))
            except Exception as error:
                warnings.warn(f"TensorBoard stopped ({error}); metrics go on in {self.path}", stacklevel=2)
                self._tensorboard = None

    def _show_evaluations(self, step: int) -> None:
        """To wandb and TensorBoard, what came since the last record. An attempt shows all: the one before may not have
        come to it. wandb goes on at `step` and draws these over a step of their own."""
        if self._wandb is None and self._tensorboard is None:
            return
        for path in sorted(self._evaluations.glob("step-*.json")):
            written = path.stat().st_mtime_ns
            result = _read_evaluation(path)
            if result is None or self._shown.get(path) == written:
                continue
            self._shown[path] = written
            evaluated, results = result
            if self._wandb is not None:
                try:
                    self._wandb.define_metric("evaluation/*", step_metric="evaluation/step")
                    flat = dict(_numbers(results, "evaluation/"))
                    self._wandb.log({"evaluation/step": evaluated, **flat}, step=step)
                except Exception as error:
                    warnings.warn(f"wandb did not take the evaluation of step {evaluated} ({error})", stacklevel=3)
            if self._tensorboard is not None:
                try:
                    for name, value in _numbers(results, "evaluation/"):
                        self._tensorboard.add_scalar(name, value, evaluated)
                except Exception as error:
                    warnings.warn(f"TensorBoard stopped ({error}); metrics go on in {self.path}", stacklevel=3)
                    self._tensorboard = None

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            try:
                self._wandb.finish()
            except Exception as error:
                warnings.warn(f"wandb could not finish ({error})", stacklevel=2)
            self._wandb = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of all attempts as one history, by step.

    An attempt overrules what earlier ones logged after the step it resumed at, and at each step it logged itself.
    Records of one attempt at one step (loss and evaluation) are merged, the later value of a key winning.
    A half line at the end of a file, left by a kill, is left out. What RUN/evaluations holds of a step is its
    `evaluation`, whenever it came.
    """
    history: dict[int, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob(_PATTERN), key=lambda path: int(path.stem.removeprefix("attempt-"))):
        records = _read_lines(path)
        if not records:
            continue
        resumed_at = records[0].pop("resumed_at", records[0]["step"] - 1)
        mine: dict[int, dict[str, Any]] = {}
        for record in records:
            mine[record["step"]] = mine.get(record["step"], {}) | record
        history = {step: record for step, record in history.items() if step <= resumed_at} | mine
    for path in (Path(folder).parent / _EVALUATIONS).glob("step-*.json"):
        if (result := _read_evaluation(path)) is not None:
            step, results = result
            history[step] = history.get(step, {"step": step}) | {"evaluation": results}
    return [history[step] for step in sorted(history)]


def _read_evaluation(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and results by suite; None for a file that is damaged or gone."""
    try:
        content = json.loads(path.read_bytes())
        return int(content["step"]), dict(content["results"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings under names with slashes."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def read_tail(folder: str | os.PathLike[str], num_bytes: int = 64 * 1024) -> list[dict[str, Any]]:
    """The last records of the newest attempt that has any, and of the one before it, oldest first; whatever is damaged
    is left out. At most `num_bytes` of a file are read: a glance, where `read_metrics` is the history."""
    found: list[list[dict[str, Any]]] = []
    for path in sorted(Path(folder).glob(_PATTERN), reverse=True):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - num_bytes))
            if records := _parse(file.read()):
                found.append(records)
        if len(found) == 2:
            break
    return [record for records in reversed(found) for record in records]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return _parse(path.read_bytes())


def _parse(content: bytes) -> list[dict[str, Any]]:
    """The whole records among these bytes."""
    records: list[dict[str, Any]] = []
    for line in content.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _plain(value: Any) -> Any:
    """JSON values of tensors, arrays and mappings; a number that is not finite becomes its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, numpy arrays and numpy numbers
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def _paths(values: Mapping[str, Any]) -> dict[str, Path]:
    return {key: value for key, value in values.items() if isinstance(value, Path)}


def _wandb_pictures(values: Mapping[str, Any]) -> dict[str, Any]:
    paths = _paths(values)
    if not paths:
        return {}
    import wandb

    return {key: wandb.Image(str(path)) for key, path in paths.items()}


def _open_tensorboard(folder: Path, resumed_at: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn(f"tensorboard is not installed (pip install tensorboard); metrics are in {folder}", stacklevel=3)
        return None
    # Events of a former attempt after the step this one resumed at are hidden.
    return SummaryWriter(str(folder.parent / "tensorboard"), purge_step=None if resumed_at is None else resumed_at + 1)  # type: ignore[no-untyped-call]


def _to_tensorboard(writer: Any, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _to_tensorboard(writer, step, value, f"{prefix}{key}/")
        elif isinstance(value, Path):
            import numpy as np
            from PIL import Image

            with Image.open(value) as picture:
                writer.add_image(prefix + key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        elif isinstance(value, int | float):
            writer.add_scalar(prefix + key, value, step)


def _open_wandb(folder: Path, arguments: Mapping[str, Any]) -> Any:
    try:
        import wandb

        has_key = bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in _netrc()
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
        own = {"mode": mode, "resume": "allow", "id": _wandb_id(folder.parent)}
        return wandb.init(dir=str(folder.parent), **(own | dict(arguments)))
    except Exception as error:
        warnings.warn(f"wandb could not start ({error}); metrics are in {folder}", stacklevel=3)
        return None


def _wandb_id(run_dir: Path) -> str:
    """All attempts of a run are one run there too."""
    path = run_dir / "wandb_id"
    if not path.exists():
        atomic_write(path, uuid.uuid4().hex[:8])
    return path.read_text()


def _netrc() -> str:
    try:
        return Path("~/.netrc").expanduser().read_text()
    except OSError:
        return ""
