"""The training loop: next window, forward, backward, clip, step, log, validate, answer, save, stop.

    result = train(config, optim, plan, model, run, device, held_out, answer)

A step reads `batch_size` windows from `TrainState.next_window` on, whatever the number of ranks and micro-batches, so
a resumed or moved run sees the windows it would have seen. Nothing waits for the device but on steps that log or save.
"""

import math
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lvm.attention import AttentionName, choose_attention
from lvm.data import Plan, WindowLoader
from lvm.model import LVM
from lvm.runtime import UserError, write_json
from lvm.runtime.checkpoint import CheckpointWriter
from lvm.runtime.distributed import Distributed, StopAgreement, lost_peers_named, meeting
from lvm.runtime.files import sweep
from lvm.runtime.lease import held_lease
from lvm.runtime.machine import bf16_is_fast, compile_problem, git_commit, machine_description, set_threads
from lvm.runtime.peer_watch import PeerWatch
from lvm.runtime.requeue import own_job, requeue_own_job
from lvm.runtime.signals import StopFlag
from lvm.runtime.whereabouts import Whereabouts
from lvm.training.answering import Answer, ask
from lvm.training.bad_steps import BadStepPolicy, BadSteps, Policy, update_unless
from lvm.training.journal import Journal, LossBySource, peak_flops
from lvm.training.optim import (
    OptimConfig,
    batch_size_at,
    clip_gradients,
    learning_rate,
    make_optimizer,
    progress,
    set_learning_rate,
    with_length,
)
from lvm.training.outcome import forget_outcome, write_outcome
from lvm.training.parallel import (
    ANSWER_ROLE,
    PAD_ROLE,
    LossFunction,
    LossOn,
    ParallelConfig,
    counted,
    data_rank,
    full,
    loss_on_mesh,
    make_mesh,
    reduce_gradients_on,
)
from lvm.training.profiling import Profiling
from lvm.training.resume import TrainState, restore, run_tensors, saved_state
from lvm.training.start import draw_weights, find_newest, find_start, load_start
from lvm.training.validation import Validation


def due(every_steps: int, step: int) -> bool:
    return every_steps > 0 and step % every_steps == 0


@dataclass(frozen=True)
class TrainerConfig:
    max_steps: int  # optimiser steps after which the run is finished
    batch_size: int  # windows an optimiser step, over all ranks
    micro_batch_size: int | None = None  # windows a forward pass on one rank; None: batch_size / ranks
    document_mask: bool = False  # attention and positions stay inside a sentence
    loss_on: LossOn = "all"  # all tokens, as published; answers: those of answers alone
    attention: AttentionName = "auto"  # sdpa, blocks, flex, flash: lvm/attention.py; auto: the fastest that can run
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the device multiplies it in hardware
    compile: Literal["auto"] | bool = "auto"  # auto: torch.compile where it can work, else one line says why not
    share_without_compile: float = 1.0  # share of max_steps and of the schedule to train where compile=auto is off
    log_every_steps: int = 10
    save_every_steps: int = 1000  # 0: never, not at the end either
    validate_every_steps: int = 0  # loss by source on windows of what is held out; 0: never
    validation_windows: int = 256  # the same ones each time
    answer_every_steps: int = 0  # pictures of answers to held-out prompts, RUN/answers; 0: never
    on_bad_step: Policy = "stop"  # a loss or gradient not finite, or a spike; skip: its update is left out
    spike_factor: float = 0.0  # a gradient norm so many times the median of the last 64 is a spike; 0: none is
    max_bad_steps: int = 10  # in a row, at which skip stops too
    profile_steps: tuple[int, int] | None = None  # first and last step to trace, RUN/profile
    memory_snapshot: bool = False  # of the GPU, written at the end or when memory runs out, RUN/profile
    keep_checkpoints: int = 2  # the newest ones
    keep_every_steps: int = 0  # checkpoints of these steps are kept for ever; 0: none
    keep_best: int = 0  # those of the lowest validation loss are kept too
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # shards, copies, recomputation
    peer_timeout_seconds: float = 45.0  # silence after which a rank counts as lost and all end; 0: wait for ever
    start_timeout_seconds: float = 900.0  # in which all ranks must have started and found each other; 0: any time
    hung_seconds: float = 600.0  # without progress, at which all end; six times that in the first step; 0: never
    loader_workers: int = 0  # processes that prepare windows, a rank; 0: a thread, see lvm/data/loader.py
    num_threads: int | None = None  # of torch on the CPU, a rank; None: the cores shared among this machine's ranks
    accelerator: str = "auto"  # auto, cpu, cuda
    devices: int | Literal["auto"] = 1  # processes on this machine
    num_nodes: int = 1
    self_test: Literal["auto", "never"] = "auto"  # auto: of many ranks and in jobs, lvm/cluster/self_test.py

    @property
    def writes_every_steps(self) -> tuple[int, ...]:
        """Beside the log."""
        return self.save_every_steps, self.validate_every_steps, self.answer_every_steps

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "log_every_steps", "validation_windows", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name} is {getattr(self, name)}; use 1 or more")
        cadences = ("save_every_steps", "validate_every_steps", "answer_every_steps")
        for name in (*cadences, "hung_seconds", "start_timeout_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"trainer.{name} is {getattr(self, name)}; use 0 (never) or more")
        if self.keep_best and not due(self.validate_every_steps, self.save_every_steps):
            raise UserError(
                f"trainer.keep_best is {self.keep_best} and checkpoints are not of steps that are validated; use a "
                f"validate_every_steps that divides save_every_steps {self.save_every_steps}"
            )
        if self.keep_checkpoints < 1:
            raise UserError(f"trainer.keep_checkpoints is {self.keep_checkpoints}; use 1 or more")
        if self.spike_factor and not self.spike_factor > 1:
            raise UserError(f"trainer.spike_factor is {self.spike_factor:g}; use more than 1, or 0 for none")
        if self.profile_steps and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise UserError(f"trainer.profile_steps is {list(self.profile_steps)}; give first and last, from 1")
        if self.loader_workers < 0:
            raise UserError(f"trainer.loader_workers is {self.loader_workers}; use 0 or more")
        if not 0 < self.share_without_compile <= 1:
            raise UserError(f"trainer.share_without_compile is {self.share_without_compile:g}; use above 0, at most 1")


@dataclass(frozen=True)
class RunOptions:
    """Of one run, beside its trainer and optimiser."""

    run_dir: Path
    seed: int = 0  # of the initial weights
    init_from: Path | None = None  # weights to start from: Hugging Face folder, run, checkpoint; not read on resuming
    codebook_start: bool = False  # the model given was made to start from its tokenizer's codebook
    branch_from: Path | None = None  # checkpoint (or run: its newest) that this run continues in a folder of its own
    new_plan: bool = False  # continue a checkpoint of another plan at window 0 of this one
    wandb: dict[str, Any] | None = None  # arguments of wandb.init; None: JSON lines alone
    tensorboard: bool = False  # events for TensorBoard too
    config: dict[str, Any] | None = None  # the whole config, written into the run folder


@dataclass(frozen=True)
class TrainResult:
    state: TrainState
    finished: bool  # false: stopped by a signal, to be continued
    signal: int | None = None  # which


# What a config comes to here: pure functions.


def micro_batches(
    batch_size: int, micro_batch_size: int | None, ranks: int, name: str = "trainer.batch_size"
) -> tuple[int, int]:
    """(windows of a micro-batch, micro-batches a step and rank). Raises `UserError` where they do not divide."""
    size = micro_batch_size or batch_size // ranks
    if size < 1 or batch_size % (ranks * size):
        rounded = max(1, size) * ranks * max(1, round(batch_size / (max(1, size) * ranks)))
        raise UserError(f"{name} {batch_size} is no multiple of {ranks} ranks x {max(1, size)} windows; use {rounded}")
    return size, batch_size // (ranks * size)


def micro_batch_counts(size: int, batch_size: int, warmup: Sequence[tuple[int, int]], ranks: int) -> list[int]:
    """Micro-batches a step and rank, of the full batch and of those that lead up to it. Raises `UserError`."""
    smaller = [micro_batches(windows, size, ranks, "a batch of optim.batch_warmup,")[1] for _, windows in warmup]
    return [batch_size // (ranks * size), *smaller]


def use_compile(wanted: Literal["auto"] | bool) -> bool:
    """Whether to compile; where `auto` cannot, one line says why."""
    if wanted is False:
        return False
    problem = compile_problem()
    if problem is None:
        return True
    if wanted is True:
        raise UserError(f"trainer.compile=true is not possible here: {problem}; install it or use trainer.compile=auto")
    warnings.warn(f"training without torch.compile, about a third of the speed: {problem}", stacklevel=2)
    return False


def run_lengths(config: TrainerConfig, optim: OptimConfig, compiled: bool) -> tuple[int, OptimConfig]:
    """Steps of the run, and its schedule; fewer where `compile: auto` could not and the config asks for fewer."""
    share = config.share_without_compile if config.compile == "auto" and not compiled else 1.0
    return math.ceil(config.max_steps * share), with_length(optim, config.max_steps, share)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    wanted = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    return torch.bfloat16 if wanted else torch.float32


def num_targets(plan: Plan, i: int, n: int, loss_on: LossOn = "all") -> int:
    """Targets that count in windows i .. i+n-1. From the plan: no rank asks another."""
    roles = plan.target_roles(i, n)
    return int(roles.sum() - roles[PAD_ROLE]) if loss_on == "all" else int(roles[ANSWER_ROLE])


def check_model_fits_plan(model: LVM, plan: Plan) -> None:
    config = model.config
    if config.num_codes != plan.num_codes or config.vocab_size <= plan.pad:
        raise UserError(
            f"the model is made for {config.num_codes} codes and the stores hold {plan.num_codes}; "
            f"use model.num_codes={plan.num_codes} model.vocab_size=0"
        )
    if config.tokens_per_picture not in (None, plan.tokens_per_picture):
        raise UserError(
            f"model.tokens_per_picture is {config.tokens_per_picture} and the stores hold {plan.tokens_per_picture}; "
            f"use model.tokens_per_picture={plan.tokens_per_picture}"
        )
    if config.max_position < plan.seq_len:
        raise UserError(
            f"model.max_position {config.max_position} is below data.seq_len; use model.max_position={plan.seq_len}"
        )


def check_files(plan: Plan, ranks: Distributed) -> None:
    """Refuse a plan whose shards are missing or changed before a step is made; rank 0 looks for all."""
    problem = None
    try:
        if ranks.is_main:
            plan.check_files()
    except Exception as error:
        problem = error
    ranks.together(problem)


def run_identity(
    model: LVM, optim: OptimConfig, trainer: TrainerConfig, run: RunOptions, dtype: torch.dtype
) -> dict[str, Any]:
    """What decides the weights beside the plan: a resumed run must agree in all of it.

    Not in it is what changes rounding alone (ranks, micro-batches, threads, compilation, recomputation, kernels), and
    what is done about a bad step, since `on_bad_step=skip` is a way to go on.
    """
    return {
        "model": asdict(model.config),
        "optim": asdict(optim),
        "trainer": {
            "batch_size": trainer.batch_size,
            "document_mask": trainer.document_mask,
            "loss_on": trainer.loss_on,
            "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
            "spike_factor": trainer.spike_factor,
        },
        "seed": run.seed,
        "init_from": None if run.init_from is None else str(run.init_from),
        "codebook_start": run.codebook_start,
    }


# What stands around the loop.


def write_down(run: RunOptions) -> None:
    """What this attempt runs, and where."""
    write_json(run.run_dir / "config.json", run.config or {}, sort_keys=False)  # entries count by their order
    write_json(run.run_dir / "machine.json", machine_description() | {"commit": git_commit()})


def come_back_after_hang() -> str | None:
    """Ask Slurm for another start, by the rank that found what hangs; a line that says what comes next.

    No look at the run folder, which may be what hangs: what counts restarts sees at the next start what was saved.
    """
    return requeue_own_job(signal.SIGTERM, step=0, newest_step=0) if own_job() else None


def make_journal(
    config: TrainerConfig,
    plan: Plan,
    model: LVM,
    run: RunOptions,
    state: TrainState,
    max_steps: int,
    device: torch.device,
    ranks: Distributed,
) -> Journal:
    peak = peak_flops(device)
    return Journal(
        run.run_dir / "metrics" if ranks.is_main and state.step < max_steps else None,
        state,
        max_steps,
        seq_len=plan.seq_len,
        flops_per_token=[model.config.flops_per_token(plan.seq_len, causal=causal) for causal in (False, True)],
        peak=peak and peak * ranks.world_size,
        device=device,
        wandb=run.wandb,
        tensorboard=run.tensorboard,
        tokens_of=partial(num_targets, plan),
    )


def make_bad_steps(
    config: TrainerConfig,
    plan: Plan,
    run: RunOptions,
    state: TrainState,
    num_micro: int,
    size: int,
    device: torch.device,
    ranks: Distributed,
    finish_saving: Callable[[], None],
) -> BadSteps:
    policy = BadStepPolicy(config.on_bad_step, config.spike_factor, config.max_bad_steps)
    facts = {"plan": plan.fingerprint, "ranks": ranks.world_size, "micro_batch_size": size, "seed": run.seed}
    return BadSteps(run.run_dir, policy, config.log_every_steps, num_micro, device, ranks, state, facts, finish_saving)


def make_profiling(config: TrainerConfig, run: RunOptions, device: torch.device, ranks: Distributed) -> Profiling:
    return Profiling(run.run_dir / "profile", config.profile_steps, config.memory_snapshot, device, ranks.rank)


def make_validation(
    config: TrainerConfig,
    held_out: Plan | None,
    plan: Plan,
    model: LVM,
    loss_of: LossFunction,
    size: int,
    device: torch.device,
    ranks: Distributed,
) -> Validation | None:
    if not config.validate_every_steps:
        return None
    if held_out is None or (held_out.names, held_out.seq_len) != (plan.names, plan.seq_len):
        raise UserError("trainer.validate_every_steps needs a plan of what is held out, with the sources of training")
    windows, rank, num_ranks = config.validation_windows, ranks.rank, ranks.world_size
    return Validation(held_out, windows, size, rank, num_ranks, model, loss_of, config.loss_on, device)


def train(
    config: TrainerConfig,
    optim: OptimConfig,
    plan: Plan,
    model: LVM,
    run: RunOptions,
    device: torch.device | str = "cpu",
    held_out: Plan | None = None,
    answer: Answer | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> TrainResult:
    """Train `model` in place on the windows of `plan`, continuing the newest checkpoint in `run.run_dir`.

    Every rank calls it alike, the process group (if any) being there already. `held_out` is what is validated on;
    `answer(model, step)`, called on rank 0, returns figures for the log, a `Path` among them being a picture;
    `on_checkpoint(path)` is called there for each complete one, by the thread that writes them.
    Raises `UserError` for a config that cannot be, a run folder in use, a checkpoint of another run; `NotFinite` for a
    step that would spoil the weights.
    """
    device = torch.device(device)
    with meeting(config.start_timeout_seconds):
        ranks = Distributed()
    check_model_fits_plan(model, plan)
    check_files(plan, ranks)
    size, _ = micro_batches(config.batch_size, config.micro_batch_size, ranks.world_size)
    counts = micro_batch_counts(size, config.batch_size, optim.batch_warmup, ranks.world_size)
    at_once = math.gcd(*counts)  # micro-batches that the loader hands out together
    compiled = use_compile(config.compile)
    max_steps, optim = run_lengths(config, optim, compiled)
    dtype = compute_dtype(config.precision, device)
    choose_attention(config.attention, device, dtype, config.document_mask)  # refused before the first step
    with meeting(config.start_timeout_seconds):
        mesh = make_mesh(config.parallel, ranks.world_size, device.type)
    identity = run_identity(model, optim, config, run, dtype)
    num_threads = set_threads(config.num_threads)

    with ExitStack() as stack:
        stack.enter_context(lost_peers_named(ranks))
        lease = stack.enter_context(held_lease(run.run_dir, ranks))
        release = lease.release if lease is not None else lambda: None
        must_be_ours = lease.check if lease is not None else lambda: None
        if ranks.is_main:
            sweep(run.run_dir, "config.json", "machine.json", "result.json")
        where = Whereabouts()
        silent, hung = config.peer_timeout_seconds, config.hung_seconds
        stack.enter_context(PeerWatch(ranks, where, run.run_dir, silent, hung, release, come_back_after_hang))
        flag = stack.enter_context(StopFlag())
        folder = run.run_dir / "checkpoints"
        newest = find_newest(folder, run.branch_from, ranks)
        start_weights = None if newest is not None else find_start(run.init_from, ranks)
        empty = next(model.parameters()).is_meta
        model.attention_implementation = config.attention
        loss_of = loss_on_mesh(
            model.train(), device, mesh, dtype, config.document_mask, compiled, config.loss_on, config.parallel
        )
        loss_of = where.each_call(loss_of)
        if start_weights is not None:
            load_start(start_weights, model)
        elif newest is None and empty:
            draw_weights(model, run.seed)
        optimizer = make_optimizer(model, optim)
        keep = config.keep_checkpoints, config.keep_every_steps, config.keep_best
        writer = CheckpointWriter(folder, lease, *keep, on_checkpoint)
        state = TrainState()
        if newest is not None:
            state = restore(newest, model, optimizer, identity, plan, run.new_plan)
            if ranks.is_main:
                print(f"continuing {newest} at step {state.step} of {max_steps}")
        state = replace(state, num_threads=num_threads)
        if ranks.is_main and state.step < max_steps:
            forget_outcome(run.run_dir)
            write_down(run)
        rank, num_ranks, pin = data_rank(mesh), ranks.world_size, device.type == "cuda"
        loader = WindowLoader(
            plan, size, state.next_window, at_once, rank, num_ranks, pin=pin, workers=config.loader_workers
        )
        stack.enter_context(loader)
        by_source = LossBySource(len(plan.names), device, state.loss_sums if ranks.is_main else [])
        journal = stack.enter_context(closing(make_journal(config, plan, model, run, state, max_steps, device, ranks)))
        bad_steps = make_bad_steps(config, plan, run, state, max(counts), size, device, ranks, writer.wait)
        profiling = stack.enter_context(closing(make_profiling(config, run, device, ranks)))
        validate = make_validation(config, held_out, plan, model, loss_of, size, device, ranks)
        saved_step, seconds_before, start = state.step, state.seconds, time.monotonic()

        def save(figure: float | None = None) -> int:
            sums = by_source.gather(reset=False)
            content = saved_state(replace(state, loss_sums=sums), identity, plan)
            fingerprints = {"plan": plan.fingerprint, "tokenizer": model.config.tokenizer_fingerprint}
            where.enter("waiting for a save")
            writer.wait()
            where.enter("saving")
            must_be_ours()
            writer.save(state.step, run_tensors(model, optimizer), content, fingerprints, figure)
            return state.step

        stop = StopAgreement(ranks)
        while state.step < max_steps and not stop.agreed():
            stop.submit(flag.requested)
            profiling.before(state.step + 1)
            num_windows = batch_size_at(optim.batch_warmup, config.batch_size, state.step)
            num_micro = num_windows // (size * ranks.world_size)
            where.enter("loading data", state.step)
            with journal.waiting():
                batches = [batch for _ in range(num_micro // at_once) for batch in next(loader)]
            targets = num_targets(plan, state.next_window, num_windows, config.loss_on)
            where.enter("forward and backward")
            for number, batch in enumerate(batches):
                tokens, role, source = (
                    batch[key].to(device, non_blocking=True) for key in ("tokens", "role", "source")
                )
                reduce_gradients_on(model, number == num_micro - 1, config.parallel.reduce_every_micro_batch)
                loss, nll = loss_of(tokens, role, torch.full((), float(max(targets, 1)), device=device))
                loss.backward()
                by_source.add(nll, source[:, 1:].where(counted(role, config.loss_on), -1))
                bad_steps.note(number, loss)
            where.enter("optimiser")
            norm = full(clip_gradients(model.parameters(), optim.clip))
            lr = learning_rate(optim, *progress(optim, state.step, state.tokens, targets))
            set_learning_rate(optimizer, lr)
            bad = bad_steps.judge(norm, state, num_windows)
            update_unless(optimizer, bad)
            by_source.settle(bad)
            optimizer.zero_grad()
            state = replace(
                state,
                step=state.step + 1,
                tokens=state.tokens + targets,
                next_window=state.next_window + num_windows,
                seconds=seconds_before + time.monotonic() - start,
            )
            where.enter("logging", state.step)
            journal.advance()
            on_time, last = due(config.log_every_steps, state.step), state.step == max_steps
            if on_time or last or any(due(every, state.step) for every in config.writes_every_steps):
                must_be_ours()
            if on_time or last or due(config.save_every_steps, state.step):
                state = bad_steps.read(state)
            if on_time or last:  # a last odd interval is kept, for a run that max_steps prolongs
                sums = by_source.gather(reset=on_time)
                must_be_ours()  # again: the sums were waited for
                journal.log(state, sums, plan.names, lr, float(norm))
            with journal.paused():
                validation: dict[str, Any] = {}
                if validate is not None and due(config.validate_every_steps, state.step):
                    where.enter("validation")
                    validation = validate()
                    must_be_ours()
                    journal.write(state.step, validation)
                if answer is not None and due(config.answer_every_steps, state.step):
                    where.enter("answering")
                    answers = ask(answer, model, state.step, ranks)
                    must_be_ours()
                    journal.write(state.step, answers)
                if due(config.save_every_steps, state.step):
                    saved_step = save(validation.get("validation_loss"))
            where.enter("waiting for other ranks")
        if saved_step != state.step and config.save_every_steps:
            state = bad_steps.read(state)
            save()
        where.enter("waiting for a save")
        writer.wait()
        where.enter("ending")
        must_be_ours()
        if ranks.is_main:
            write_outcome(run.run_dir, state, max_steps, flag.received, model.config, plan.seq_len)
        return TrainResult(state, state.step >= max_steps, flag.received)
