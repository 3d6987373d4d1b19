"""LVM: train, evaluate and prompt autoregressive large vision models (arXiv 2312.00785)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvm.inference.prompter import Prompter

__all__ = ["Prompter"]


def __getattr__(name: str) -> Any:
    if name == "Prompter":  # on demand: torch and the tokenizer come with it
        from lvm.inference.prompter import Prompter

        return Prompter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
