"""The mixture of a plan over what it holds out: the windows of validation, the sentences of prompts."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

from lvm.data.base import Plan
from lvm.data.config import DataConfig, StageConfig
from lvm.data.plan import TokenPlan
from lvm.data.units import TooFewItems
from lvm.runtime import UserError


def held_out_plan(plan: Plan) -> TokenPlan:
    """Each entry with its share of the first stage's tokens. One that the held-out groups cannot fill is left out, and
    named in a warning; the others keep their places, so that `source` means the same.

    Raises `UserError` where nothing is held out.
    """
    if not isinstance(plan, TokenPlan):
        raise UserError("a JSONL holds nothing out: use trainer.validate_every_steps=0 trainer.answer_every_steps=0")
    share = {row["entry"]: row["token_share"] for row in plan.describe() if row["stage"] == 0}
    while share:
        try:
            return TokenPlan(_config(plan.config, share), plan.stores)
        except TooFewItems as error:
            for name in error.entries:
                del share[name]
            warnings.warn(f"not validated, too little is held out: {', '.join(error.entries)}", stacklevel=2)
    raise UserError(
        f"the {plan.config.held_out_per_mille} per mille that are held out fill no sentence; raise "
        "data.held_out_per_mille (of a new run), or use trainer.validate_every_steps=0 trainer.answer_every_steps=0"
    )


def _config(config: DataConfig, share: Mapping[str, float]) -> DataConfig:
    return replace(
        config,
        split="held_out",
        stages=(StageConfig(0),),
        weights_by="tokens",
        total_tokens=None,
        sources={name: replace(source, max_epochs=None) for name, source in config.sources.items()},
        entries={
            name: replace(entry, weight=share.get(name, 0.0), epochs=None, max_epochs=None)
            for name, entry in config.entries.items()
        },
    )
