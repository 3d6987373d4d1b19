"""Training: the loop, how it is spread over ranks, the optimiser, and what makes a run resumable to the bit."""

from lvm.training.answering import Answer
from lvm.training.bad_steps import NotFinite
from lvm.training.loop import RunOptions, TrainerConfig, TrainResult, train
from lvm.training.optim import OptimConfig, learning_rate
from lvm.training.resume import TrainState, find_checkpoint, model_of_run

__all__ = [
    "Answer",
    "NotFinite",
    "OptimConfig",
    "RunOptions",
    "TrainResult",
    "TrainState",
    "TrainerConfig",
    "find_checkpoint",
    "learning_rate",
    "model_of_run",
    "train",
]
