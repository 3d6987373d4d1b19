"""RUN/result.json: what a run came to, for those who compare runs.

    finished                whether max_steps were made; false: it stopped, `signal` says why, and can be continued
    step, max_steps, tokens, seconds
    loss, loss_by_source    of the last record of training
    validation_loss, validation_loss_by_source, validation_step     the last ones, where the run validated
    parameters, non_embedding_parameters, flops_per_token           of the model; 6 (N - embedding) + 12 L d T

It is there when a run has ended by itself, and absent while it works or after it failed.
"""

from pathlib import Path
from typing import Any

from lvm.model import LVMConfig
from lvm.runtime import write_json
from lvm.runtime.metrics import read_metrics
from lvm.training.resume import TrainState

FILE = "result.json"
_LOSSES = ("loss", "loss_by_source")
_VALIDATION = ("validation_loss", "validation_loss_by_source")


def non_embedding(config: LVMConfig) -> int:
    """Parameters without the embedding and the head."""
    return config.num_params - config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)


def write_outcome(
    run_dir: Path, state: TrainState, max_steps: int, signal: int | None, model: LVMConfig, seq_len: int
) -> None:
    history = read_metrics(run_dir / "metrics")
    figures: dict[str, Any] = {}
    for record in history:
        figures |= {key: record[key] for key in (*_LOSSES, *_VALIDATION) if key in record}
        if "validation_loss" in record:
            figures["validation_step"] = record["step"]
    outcome = {
        "finished": state.step >= max_steps,
        "signal": signal,
        "step": state.step,
        "max_steps": max_steps,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        **figures,
        "parameters": model.num_params,
        "non_embedding_parameters": non_embedding(model),
        "flops_per_token": model.flops_per_token(seq_len),
    }
    write_json(run_dir / FILE, outcome)


def forget_outcome(run_dir: Path) -> None:
    """The run goes on."""
    (run_dir / FILE).unlink(missing_ok=True)
