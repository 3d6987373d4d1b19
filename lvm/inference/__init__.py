"""Prompting: cached generation of codes, and pictures in, pictures out.

sampling.py how a code is drawn; cache.py the decoder with kept keys and values; generate.py answers to prompts of
codes; prompter.py prompts of pictures.
"""

from typing import TYPE_CHECKING, Any

from lvm.inference.generate import Generation, generate

if TYPE_CHECKING:
    from lvm.inference.prompter import Answer, Prompter

__all__ = ["Answer", "Generation", "Prompter", "generate"]


def __getattr__(name: str) -> Any:
    if name in ("Answer", "Prompter"):
        from lvm.inference import prompter

        return getattr(prompter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
