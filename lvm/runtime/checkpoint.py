"""Checkpoints: sharded safetensors, complete or absent, written while training goes on.

    step-00001234/tensors/shard-*.safetensors   one file a rank; any other number of ranks can read them
                  state.json                    everything that is not a tensor
                  manifest.json                 bytes and sha256 of each file above and of itself, step, world size,
                                                fingerprints, figure of validation

A save copies the tensors at the step boundary; a thread then writes `.tmp-step-00001234.<attempt>/` and, when every
rank has synced its file, rank 0 writes the manifest and renames the folder. Nothing is pickled, neither way: torch's
own checkpoint format would be, hence its Hugging Face writer and reader.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from lvm.runtime.errors import UserError, is_user_error
from lvm.runtime.files import atomic_folder, read_json, sha256_file, sync_folder
from lvm.runtime.lease import RunLease

FORMAT_VERSION = 1
_STEP = re.compile(r"step-(\d{8,})")

warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a folder, oldest first, not verified."""
    if not Path(folder).is_dir():
        return []
    found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def linked(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint in another folder of checkpoints; its files are the same ones where the file system can do that."""
    with atomic_folder(folder / checkpoint.name) as aside:
        shutil.copytree(checkpoint, aside, copy_function=_link_or_copy, dirs_exist_ok=True)
    return folder / checkpoint.name


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; a line names each damaged one passed over.

    None if there is no checkpoint at all; raises `UserError` if there are some and each is damaged: a run that began
    again at step 0 without a word would lose them.
    Reads all files once (sha256). In a run of several ranks let one rank ask and tell the others.
    """
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except UserError as error:
            damaged.append(str(error).partition(";")[0])
            continue
        for text in damaged:
            print(f"passed over a damaged checkpoint: {text}; going on with {path.name}", file=sys.stderr)
        return path
    if damaged:
        raise UserError(
            f"{folder} holds no checkpoint that is whole: {', '.join(damaged[:4])}{', ...' if damaged[4:] else ''}; "
            f"put a good copy of one there, or remove all step-* in it to begin again at step 0"
        )
    return None


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest, after checking that exactly the files it lists are there with the sizes it lists."""
    path = Path(path)
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UserError(f"{path}/manifest.json lists no files; use another checkpoint")
    if manifest.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path}/manifest.json says format {manifest.get('version')!r}; this version reads {FORMAT_VERSION}"
        )
    if manifest.pop("sha256", None) != _digest(manifest):
        raise UserError(f"{path}/manifest.json is damaged (its sha256 differs); use another checkpoint")
    for name, entry in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            raise UserError(f"{path / name} is missing; use another checkpoint") from None
        if size != entry["bytes"]:
            raise UserError(f"{path / name} has {size} bytes instead of {entry['bytes']}; use another checkpoint")
    foreign = {f"tensors/{file.name}" for file in (path / "tensors").glob("*")} - set(manifest["files"])
    if foreign:
        raise UserError(f"{path / min(foreign)} is not in the manifest; remove it")
    return manifest


def verify_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`read_manifest`, and the sha256 of each file as well; raises `UserError` naming the damaged file."""
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        if sha256_file(Path(path) / name) != entry["sha256"]:
            raise UserError(f"{Path(path) / name} is damaged (its sha256 differs); use another checkpoint")
    return manifest


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state of a checkpoint alone, without its tensors."""
    read_manifest(path)
    state: dict[str, Any] = read_json(Path(path) / "state.json")
    return state


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Global shape and dtype of each tensor in a folder of safetensors (a checkpoint's `tensors/`), by name."""
    try:
        metadata = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:  # safetensors has an exception of its own, json and dict add theirs
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint") from error
    return {key: (entry.size, entry.properties.dtype) for key, entry in metadata.items()}  # type: ignore[union-attr]


def load_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Read a checkpoint into `tensors` in place and return its state.

    DTensors receive their part, whatever the ranks it was saved from; no collective is used, so each rank may call
    on its own. `prefix` ("model.") reads the tensors of that prefix only. Names and sizes of the files are checked;
    `newest_checkpoint` or `verify_checkpoint` check their content. Raises `UserError`, before changing any tensor,
    for a tensor that only one side has, and for another shape or dtype.
    """
    path = Path(path)
    read_manifest(path)
    saved = {key: value for key, value in read_shapes(path / "tensors").items() if key.startswith(prefix)}
    if missing := sorted(set(tensors) - set(saved)):
        raise UserError(f"{path} lacks {_some(missing)}; it belongs to another model or optimiser")
    if foreign := sorted(set(saved) - set(tensors)):
        raise UserError(f"{path} holds {_some(foreign)}, unknown here; it belongs to another model or optimiser")
    for key, tensor in tensors.items():
        size, dtype = saved[key]
        if size != tensor.shape:
            raise UserError(f"{path}: {key} has shape {list(size)}, here it is {list(tensor.shape)}")
        if dtype != tensor.dtype:
            raise UserError(f"{path}: {key} has dtype {dtype}, here it is {tensor.dtype}")
    _read_tensors(path / "tensors", tensors)
    state: dict[str, Any] = read_json(path / "state.json")
    return state


def load_tensors(folder: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Read some tensors of a folder of safetensors (a model's, or a checkpoint's `tensors/`) in place.

    As `load_checkpoint`: of DTensors a rank reads its part alone, and no collective is used. Values are cast to the
    type of `tensors`. Raises `UserError`, before changing any tensor, for one that is missing or of another shape.
    """
    stored = read_shapes(folder)
    if missing := sorted(set(tensors) - set(stored)):
        raise UserError(f"{folder} lacks {_some(missing)}; it belongs to another model, or a file of it is missing")
    for key, tensor in tensors.items():
        if stored[key][0] != tensor.shape:
            raise UserError(f"{folder}: {key} has shape {list(stored[key][0])}, here it is {list(tensor.shape)}")
    _read_tensors(Path(folder), tensors)


def _read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        return
    plain = {key: tensor.detach() for key, tensor in tensors.items()}
    try:
        dcp.load(plain, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0] if error.failures else error
        raise UserError(f"{folder} cannot be read ({cause}); use another checkpoint") from cause


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time, from a thread; every rank makes one and calls `save` alike.

    Making one removes what a killed save left behind, so rank 0 must hold the run's lease by then.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        lease: RunLease | None = None,
        keep_last: int = 2,
        keep_every_steps: int = 0,
        keep_best: int = 0,
        on_complete: Callable[[Path], None] | None = None,
    ) -> None:
        """Kept are the `keep_last` newest, those of every `keep_every_steps` steps for ever (0: none), and the
        `keep_best` whose `figure` is lowest. `on_complete` is called on rank 0 with each complete checkpoint, by the
        thread that wrote it; what it raises ends the run."""
        if keep_last < 1 or keep_every_steps < 0 or keep_best < 0:
            raise UserError(
                f"keep_last is {keep_last}, keep_every_steps {keep_every_steps} and keep_best {keep_best}; at least 1 "
                "checkpoint must be kept, and none of the others can be below 0"
            )
        self.folder, self.lease = Path(folder), lease
        self._rules = keep_last, keep_every_steps, keep_best
        self._on_complete = on_complete
        self._distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        # Its own group: collectives from a thread beside training's on one group deadlock.
        self._group = dist.new_group(backend="gloo") if self._distributed else None
        self._rank = dist.get_rank() if self._distributed else 0
        self._world_size = dist.get_world_size() if self._distributed else 1
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._staging: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if self._rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if lease is not None:
                lease.check()
            for pattern in (".tmp-*", ".old-*"):  # of saves, branches and removals
                for left in self.folder.glob(pattern):
                    shutil.rmtree(left, ignore_errors=True)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        figure: float | None = None,
    ) -> None:
        """Copy the tensors and write them in the background; waits first for a save that is still in flight.

        `tensors` are this rank's (DTensors, or plain ones that every rank holds alike); `state` and `fingerprints`
        are JSON values, and rank 0's are written. `figure` (a validation loss; lower is better) is kept in the manifest
        and decides which are the best. Raises what went wrong in the save before.
        """
        self.wait()
        content = json.dumps(dict(state), indent=1, sort_keys=True) + "\n"
        staged = self._stage(tensors)
        self._thread = threading.Thread(
            target=self._run,
            args=(step, staged, content, {"fingerprints": dict(fingerprints), "figure": figure}),
            name=f"save-step-{step}",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the save in flight is complete on every rank; raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _stage(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies in host memory; the buffers (pinned if the tensors are on a GPU) are used again by the next save."""
        staged: dict[str, Tensor] = {}
        on_gpu = False
        for key, tensor in tensors.items():
            tensor = tensor.detach()
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            buffer = self._staging.get(key)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
                self._staging[key] = buffer
            buffer.copy_(local, non_blocking=local.is_cuda)
            on_gpu |= local.is_cuda
            # Not DTensor.from_local: it would copy the buffer back to the mesh's device.
            staged[key] = DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer
        if on_gpu:
            torch.cuda.synchronize()
        return staged

    def _run(self, step: int, tensors: dict[str, Tensor], state: str, facts: dict[str, Any]) -> None:
        try:
            if self._device is not None:  # a new thread starts on GPU 0, and would take memory there on every rank
                torch.cuda.set_device(self._device)
            self._write(step, tensors, state, facts)
        except BaseException as error:
            self._error = error

    def _write(self, step: int, tensors: dict[str, Tensor], state: str, facts: dict[str, Any]) -> None:
        attempt = self.lease.attempt if self.lease is not None else 0
        name = self._broadcast(f".tmp-step-{step:08d}.{attempt}-{uuid.uuid4().hex[:8]}")
        aside = self.folder / name
        problem: BaseException | None = None
        mine: dict[str, dict[str, Any]] = {}
        try:
            writer = HuggingFaceStorageWriter(str(aside / "tensors"), save_distributed=True)
            writer.per_thread_copy_ahead = 0  # all lies in memory: else each 10 MB wait for the stream that trains
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=not self._distributed)
            mine = {
                f"tensors/{file.name}": _describe(file)
                for file in (aside / "tensors").glob(f"shard-{self._rank + 1:05d}-*")
            }
        except CheckpointException as error:  # what went wrong on each rank
            problem = next(iter(error.failures.values()))[0] if error.failures else error
        except Exception as error:
            problem = error
        parts = self._gather((mine, _as_failure(problem)))
        failure = next((failure for _, failure in parts if failure is not None), None)
        if self._rank == 0:
            try:
                if failure is None:
                    files = {name: entry for part, _ in parts for name, entry in part.items()}
                    self._complete(step, aside, files, state, facts)
            except Exception as error:
                problem, failure = error, _as_failure(error)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        failure = self._broadcast(failure)
        if failure is not None:
            text, is_users = failure
            kind = UserError if is_users else RuntimeError
            raise kind(f"the checkpoint of step {step} could not be written to {self.folder}: {text}") from problem
        if self._rank == 0 and self._on_complete is not None:
            self._on_complete(step_folder(self.folder, step))

    def _complete(self, step: int, aside: Path, files: dict[str, Any], state: str, facts: dict[str, Any]) -> None:
        """Rank 0: state, manifest, rename, and the oldest folders removed."""
        if self.lease is not None:  # it would make the folder again that the run's new owner removed
            self.lease.check()
        (aside / "tensors").mkdir(parents=True, exist_ok=True)
        _write_synced(aside / "state.json", state)
        manifest: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "step": step,
            "world_size": self._world_size,
            **facts,
            "files": files | {"state.json": _describe(aside / "state.json")},
        }
        manifest["sha256"] = _digest(manifest)
        _write_synced(aside / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        sync_folder(aside / "tensors")
        sync_folder(aside)
        if self.lease is not None:
            self.lease.check()
        final = step_folder(self.folder, step)
        old = self.folder / f".old-{final.name}"
        if final.exists():  # a damaged one that was passed over, or the same step saved again
            os.rename(final, old)
        os.rename(aside, final)
        sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        # A damaged later folder must not count: it would push out the good ones.
        earlier = {
            number: path
            for path in list_checkpoints(self.folder)
            if (number := int(path.name.removeprefix("step-"))) <= step
        }
        best = self._rules[2] > 0
        for number in superseded({n: _figure(path) if best else None for n, path in earlier.items()}, *self._rules):
            _remove(earlier[number])

    def _broadcast(self, value: Any) -> Any:
        if not self._distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _gather(self, value: Any) -> list[Any]:
        if not self._distributed:
            return [value]
        gathered: list[Any] | None = [None] * self._world_size if self._rank == 0 else None
        dist.gather_object(value, gathered, dst=0, group=self._group)
        return gathered or []


def superseded(
    figures: Mapping[int, float | None], keep_last: int, keep_every_steps: int = 0, keep_best: int = 0
) -> list[int]:
    """Steps of the checkpoints that no rule keeps. `figures`: by step; None or not a number is never among the best."""
    steps = sorted(figures)
    ranked = sorted((figure, -step) for step, figure in figures.items() if figure is not None and figure == figure)
    kept = {*steps[-keep_last:], *(-step for _, step in ranked[:keep_best])}
    if keep_every_steps:
        kept |= {step for step in steps if step % keep_every_steps == 0}
    return [step for step in steps if step not in kept]


def _remove(path: Path) -> None:
    """A kill on the way leaves no half of a checkpoint under its name."""
    aside = path.with_name(f".old-{path.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):  # it stays, and is superseded at the next save again
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _figure(path: Path) -> float | None:
    """What was given to `save` with a checkpoint; None for a damaged one too."""
    try:
        figure = read_json(path / "manifest.json")["figure"]
    except (UserError, OSError, KeyError, TypeError):
        return None
    return float(figure) if isinstance(figure, int | float) else None


def _as_failure(error: BaseException | None) -> tuple[str, bool] | None:
    """What other ranks are told: the text, and whether the user can mend it (a full disk, a lost lease)."""
    if error is None:
        return None
    # safetensors writes files itself, and has an error of its own for what the system says
    return str(error), isinstance(error, OSError | SafetensorError) or is_user_error(error)


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_synced(path: Path, content: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
