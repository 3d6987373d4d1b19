"""Train a tokenizer: python -m tokenizer.train experiment=world_48 out=runs/tokenizer [key=value ...]

`experiment` is a file of configs/tokenizer/ (or a path); `pictures` a .npy of uint8 [n,y,x,3], a folder of pictures or
a file of configs/data/source/, or a list of them. `devices=N` or torchrun trains on several. The same command again
continues a stopped run. In `out`: config.json, metrics/ (JSON lines), sheet.png (held-out pictures over their
reconstructions), unreadable.jsonl where pictures could not be read, checkpoints/ and, when finished, tokenizer/ for
`from_pretrained`.

The net first trains some steps without a codebook; k-means of its latents then starts the codes; codes that no latent
chose for a while move onto latents. A discriminator, where the loss has one, starts later and is heard more and more.
Settings are in settings.py, a step in training.py, pictures in pictures.py.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from lvm.runtime import UserError, build, config_folder, exit_with_one_line, write_json
from lvm.runtime.checkpoint import CheckpointWriter, load_checkpoint, newest_checkpoint, read_state
from lvm.runtime.distributed import Distributed, StopAgreement
from lvm.runtime.hashing import seed_from
from lvm.runtime.lease import held_lease
from lvm.runtime.machine import compile_problem, git_commit, machine_description, set_threads
from lvm.runtime.memory import keep_freed_memory
from lvm.runtime.metrics import MetricsLog
from lvm.runtime.rendezvous import first_process, open_fabric
from lvm.runtime.requeue import come_back, count_restart, newest_step
from lvm.runtime.signals import StopFlag
from tokenizer.bulk import BulkEncoder, bf16_pays
from tokenizer.evaluate import decibels, squared_errors, usage_of
from tokenizer.journal import Journal
from tokenizer.model import VQGAN
from tokenizer.pictures import OneAhead, TrainingPictures, read_pictures, save_sheet, shared_between_ranks
from tokenizer.settings import TrainConfig, adversarial_weight, crop_of, micro_batches, progress_of, schedule
from tokenizer.training import (
    Objective,
    TrainState,
    average_over_ranks,
    finished_tokenizer,
    new_state,
    reset_revived,
    set_optimizer_steps,
    state_tensors,
    update_average,
)

# What may differ when a run goes on: it changes no weight (or, as devices, only by rounding).
FREE_TO_CHANGE = {
    "pictures", "readers", "minutes", "usage_floor", "usage_floor_after_steps", "compile", "threads",
    "log_every_steps", "save_every_minutes", "judged_pictures", "keep_checkpoints", "save_dtype", "accelerator",
    "devices", "num_nodes", "wandb",
}  # fmt: skip


@dataclass(frozen=True)
class TrainResult:
    step: int
    tokenizer: VQGAN | None  # the finished one; None: stopped by a signal, to be continued
    signal: int | None = None  # which


def train(
    config: TrainConfig,
    out: Path,
    pictures: TrainingPictures,
    say: Callable[[str], None] = print,
    device: torch.device | str | None = None,
) -> TrainResult:
    """Train until the schedule ends, or go on where `out` stopped; every rank calls it alike.

    Raises UserError for a run folder in use or of another run, a collapsed codebook and numbers that are not finite.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ranks = Distributed()
    set_threads(config.threads)
    micro_batches(config, ranks.world_size, None)
    compiled = _use_compile(config, say)
    identity = run_identity(config, pictures)
    with ExitStack() as stack:
        lease = stack.enter_context(held_lease(out, ranks))
        flag = stack.enter_context(StopFlag())
        newest = _claim(out, identity, ranks)
        state = new_state(config, device, fresh=newest is None)
        if newest is not None:
            restore(newest, state, config)
            if ranks.is_main:
                say(f"continuing {newest} at step {state.step} of {config.steps}")
        if progress_of(config, state.step, state.seconds) >= 1 and (out / "tokenizer" / "model.safetensors").is_file():
            return TrainResult(state.step, VQGAN.from_pretrained(out / "tokenizer"))
        if ranks.is_main:
            write_json(out / "config.json", _plain(config))
            write_json(out / "machine.json", machine_description() | {"commit": git_commit()})
            if not len(pictures.held_out):
                say(
                    f"no picture is held out of {len(pictures.train)}: no sheet.png and no held-out PSNR; "
                    f"give more pictures or a larger held_out_per_mille than {config.held_out_per_mille}"
                )
        writer = CheckpointWriter(out / "checkpoints", lease, config.keep_checkpoints)
        log = None
        if ranks.is_main:
            log = stack.enter_context(closing(MetricsLog(out / "metrics", state.step, config.wandb)))
        journal = Journal(config, state, ranks, log, say)
        batches = stack.enter_context(closing(OneAhead(pictures.batch)))
        objective = Objective(config, state, device, compiled)
        started = config.init_from is not None or state.step > config.quantizer.continuous_steps
        quantized = torch.tensor(float(started), device=device)
        clock, saved_at, saved_step = state.seconds, time.monotonic(), state.step if newest else -1

        def save(judging: bool = True) -> None:
            journal.check_finite()
            content = {"step": state.step, "seconds": state.seconds, "identity": identity}
            writer.save(state.step, state_tensors(state), content, {"pictures": identity["pictures"]})
            if ranks.is_main and started and judging:
                journal.write(judge(state, config, out, pictures))

        stop = StopAgreement(ranks)
        while (progress := progress_of(config, state.step, state.seconds)) < 1 and not stop.agreed():
            stop.submit(flag.requested)
            began = time.monotonic()
            if not started and state.step >= config.quantizer.continuous_steps:
                start_codebook(state, config, pictures, device, ranks)
                started = True
                quantized.fill_(1.0)
            crop = crop_of(config, progress)
            num_micro = micro_batches(config, ranks.world_size, crop)
            adversarial = adversarial_weight(config, state.step)
            latents: Tensor | None = None
            for number in range(num_micro):
                now, following = (
                    batch_arguments(config, ranks, *divmod(state.step * num_micro + i, num_micro), num_micro, crop)
                    for i in (number, number + 1)
                )
                batch = batches(now, following)
                pixels = torch.from_numpy(batch)
                if device.type == "cuda":  # the host waits for the copy of what is not pinned
                    pixels = pixels.pin_memory()
                figures, codes, latents = objective.backward(
                    pixels.to(device, non_blocking=True), quantized, 1 / num_micro, adversarial
                )
                journal.add(figures, 1 / num_micro)
                if started:
                    state.used += state.keeper.observe(codes, latents)
            make_step(state, config, schedule(config, state.step, progress), adversarial is not None, journal)
            state.step += 1
            if started:
                assert latents is not None
                generator = torch.Generator().manual_seed(seed_from("restart", config.seed, state.step))
                after = progress_of(config, state.step, state.seconds)
                revived = state.keeper.tend(state.step, generator, latents, after)
                update_average(state, config.ema_decay)
                if len(revived):
                    reset_revived(state, revived)
                journal.revived += len(revived)
            else:
                update_average(state, config.ema_decay)
            clock += time.monotonic() - began
            on_time = state.step % config.log_every_steps == 0
            if on_time or ranks.world_size == 1:
                state.seconds = ranks.broadcast(clock)  # the schedule may depend on it: one clock for all
            if on_time:
                journal.log()
                if ranks.broadcast(time.monotonic() - saved_at >= 60 * config.save_every_minutes):
                    save()
                    saved_at, saved_step = time.monotonic(), state.step
                    journal.restart_clock()
        if saved_step != state.step:
            save(judging=not stop.agreed())  # a scheduler that wants to stop the run does not wait long
        writer.wait()
        if progress_of(config, state.step, state.seconds) < 1:
            return TrainResult(state.step, None, flag.received)
        if ranks.is_main:
            finished_tokenizer(state, config).save_pretrained(out / "tokenizer", getattr(torch, config.save_dtype))
            say(f"finished: {out / 'tokenizer'} after {state.step} steps, {state.seconds / 60:.1f} minutes")
        ranks.barrier()
        return TrainResult(state.step, VQGAN.from_pretrained(out / "tokenizer"))


def batch_arguments(
    config: TrainConfig, ranks: Distributed, step: int, number: int, num_micro: int, crop: int | None
) -> tuple[Any, ...]:
    """Of `TrainingPictures.batch`, for micro-batch `number` of a step on this rank."""
    part = (number * ranks.world_size + ranks.rank, num_micro * ranks.world_size)
    return config.seed, step, config.batch_size, part, crop, config.flip


def make_step(state: TrainState, config: TrainConfig, share: float, judged: bool, journal: Journal) -> None:
    """Mean of the gradients over ranks, clip, step; the discriminator's too where it is trained."""
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    average_over_ranks(parameters)
    journal.norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    _optimize(state.optimizer, config.learning_rate * share)
    if judged:
        assert state.discriminator is not None and state.discriminator_optimizer is not None
        average_over_ranks(list(state.discriminator.parameters()))
        _optimize(state.discriminator_optimizer, config.discriminator.learning_rate * share)


def _optimize(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def start_codebook(
    state: TrainState, config: TrainConfig, pictures: TrainingPictures, device: torch.device, ranks: Distributed
) -> None:
    """K-means of the latents of enough pictures for 64 latents a code (at most 4,096 pictures), by rank 0."""
    side = config.crop or config.model.resolution
    tokens = (side // config.model.factor) ** 2
    each = config.batch_size // config.accumulate
    wanted = min(4096, max(each, 64 * config.model.num_embeddings // tokens))
    latents = []
    for start in range(0, wanted if ranks.is_main else each, each):
        batch = torch.from_numpy(pictures.batch(config.seed, -1 - start, each, crop=config.crop, flip=config.flip))
        pixels = rearrange(batch.to(device), "n y x c -> n c y x").float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device)):
            latents.append(rearrange(state.model.latents(pixels), "n d h w -> (n h w) d").float())
    generator = torch.Generator().manual_seed(seed_from("kmeans", config.seed))
    state.keeper.start(torch.cat(latents), generator)
    state.average.quantize.embedding.weight.copy_(state.model.quantize.embedding.weight)


def judge(state: TrainState, config: TrainConfig, out: Path, pictures: TrainingPictures) -> dict[str, Any]:
    """PSNR and code usage of held-out pictures through the averaged weights, and the sheet."""
    sample = np.asarray(pictures.held_out[: config.judged_pictures])
    if not len(sample):
        return {}
    rows, columns = sample.shape[1:3]
    vq = finished_tokenizer(state, config)
    bulk = BulkEncoder(vq, batch_size=max(1, min(64, 64 * 96 * 96 // (rows * columns))))
    codes = bulk.encode(sample)
    again = bulk.decode(codes)
    each = [decibels(float(error)) for error in squared_errors(sample, again)]
    save_sheet(out / "sheet.png", sample, again)
    usage, _ = usage_of(np.bincount(codes.reshape(-1), minlength=config.model.num_embeddings))
    return {"held_out_psnr": round(float(np.mean(each)), 2), "held_out_code_usage": round(usage, 4)}


# A run's folder.


def _plain(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def run_identity(config: TrainConfig, pictures: TrainingPictures) -> dict[str, Any]:
    """What decides the weights: a resumed run must agree in all of it."""
    settings = {key: value for key, value in _plain(config).items() if key not in FREE_TO_CHANGE}
    return settings | {"pictures": pictures.fingerprint()}


def _claim(out: Path, identity: dict[str, Any], ranks: Distributed) -> Path | None:
    """The newest complete checkpoint of this run, on every rank; one of another run is refused by all."""
    newest, problem = None, None
    if ranks.is_main:
        try:
            if (out / "checkpoint.safetensors").exists():
                raise UserError(f"{out} holds a run of an older version; use another out=")
            newest = newest_checkpoint(out / "checkpoints")
            if newest is not None:
                _refuse_other_run(newest, identity)
        except Exception as error:
            problem = error
    ranks.together(problem)
    found: Path | None = ranks.broadcast(newest)
    return found


def _refuse_other_run(checkpoint: Path, identity: dict[str, Any]) -> None:
    before = read_state(checkpoint).get("identity")
    if not isinstance(before, dict):
        raise UserError(f"{checkpoint} is not of a tokenizer's training; use another out=")
    for key in sorted(before.keys() | identity.keys()):
        if before.get(key) == identity.get(key):
            continue
        if key == "pictures":
            raise UserError(f"{checkpoint} is of a run on other pictures; give those again or use another out=")
        raise UserError(
            f"{checkpoint} is of a run with {key} = {before.get(key)}, not {identity.get(key)}; use another out="
        )


def restore(checkpoint: Path, state: TrainState, config: TrainConfig) -> None:
    """Fill `state` from a checkpoint whose content was verified."""
    content = load_checkpoint(checkpoint, state_tensors(state))
    state.step, state.seconds = int(content["step"]), float(content["seconds"])
    set_optimizer_steps(state, config)


def _use_compile(config: TrainConfig, say: Callable[[str], None]) -> bool:
    if config.compile is False:
        return False
    problem = compile_problem()
    if problem is None:
        return True
    if config.compile is True:
        raise UserError(f"compile=true, but {problem}; use compile=auto")
    say(f"not compiled, about a quarter of the speed: {problem}")
    return False


# The command.


def read_config(arguments: list[str]) -> tuple[TrainConfig, Path]:
    """From `experiment=NAME out=DIR key=value ...`; unknown keys are errors. With `init_from` the net is that
    tokenizer's, and `model` may hold what changes no weight (resolution)."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    wrong = next((a for a in arguments if "=" not in a), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is not key=value; e.g. experiment=world_48 out=runs/tokenizer pictures=FILE.npy")
    given = dict(argument.split("=", 1) for argument in arguments)
    experiment, out = given.pop("experiment", None), given.pop("out", None)
    if experiment is None or out is None:
        raise UserError(
            f"{'experiment' if experiment is None else 'out'}= is missing; e.g. experiment=world_48 out=DIR"
        )
    folder = config_folder() / "tokenizer"
    file = Path(experiment) if experiment.endswith(".yaml") else folder / f"{experiment}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise UserError(f"experiment={experiment}: {file} is missing; known are {known}")
    try:
        dotted = OmegaConf.from_dotlist([f"{key}={value}" for key, value in given.items()])
        values = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(file), dotted), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {error}") from None
    assert isinstance(values, dict)
    if values.get("init_from"):
        theirs = dataclasses.asdict(VQGAN.from_pretrained(values["init_from"]).config)
        theirs["grid"] = None if theirs["grid"] and len(set(theirs["grid"])) == 1 else theirs["grid"]
        values["model"] = theirs | (values.get("model") or {})
    config = build(TrainConfig, values)  # type: ignore[arg-type]
    if config.init_from is not None:
        for key, value in dataclasses.asdict(config.model).items():
            if key not in ("dropout", "commitment_cost", "resolution", "grid") and value != theirs[key]:
                raise UserError(
                    f"model.{key} is {value}, that of init_from={config.init_from} {theirs[key]}; leave it out"
                )
    return config, Path(out)


def main() -> int:
    """0 for a finished run; one stopped by a signal is saved and exits with 128 + its number."""
    keep_freed_memory()
    config, out = read_config(sys.argv[1:])
    if not config.pictures:
        raise UserError("pictures= is missing; give FILE.npy, a folder, or a file of configs/data/source/")
    strategy = "auto" if config.devices == config.num_nodes == 1 and "RANK" not in os.environ else "ddp"
    fabric = open_fabric(config.accelerator, strategy, config.devices, config.num_nodes)
    if not (out / "tokenizer" / "model.safetensors").is_file():
        count_restart(out, newest_step(out), first_process())
    with StopFlag((signal.SIGUSR2,)):  # the warning before the time limit may come before the loop
        fabric.launch()
        try:

            def say(line: str) -> None:
                if fabric.is_global_zero:
                    print(line, flush=True)

            def read() -> TrainingPictures:
                return read_pictures(
                    config.pictures or (),
                    config.model.resolution,
                    config.max_pictures,
                    config.frames_per_clip,
                    config.held_out_per_mille,
                    config.picture_weights,
                    config.readers,
                    say,
                    out / "unreadable.jsonl",
                )

            pictures = shared_between_ranks(read, Distributed(), fabric.local_rank)
            say(f"{len(pictures.train)} pictures to train on, {len(pictures.held_out)} held out")
            result = train(config, out, pictures, say, fabric.device)
            if result.tokenizer is None:
                say(f"stopped at step {result.step}: {out}")
                come_back(out, result.signal, result.step, Distributed())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    if result.tokenizer is not None:
        return 0
    return 128 + (result.signal or signal.SIGTERM)


if __name__ == "__main__":
    exit_with_one_line(main)
