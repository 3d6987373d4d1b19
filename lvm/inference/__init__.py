"""Prompting: codes in, codes out, and pictures in, pictures out.

generate.py answers to prompts of codes; engine.py a list of them with the cells of a cache kept full; sharing.py which
begin alike; cache.py the decoder with kept keys and values; parts.py attention over keys in several places; sampling.py
how a code is drawn. prompter.py prompts of pictures; rollout.py and sliding.py answers beyond the context, rounds.py
what is kept of them while they grow, decoded.py their pictures; choosing.py one of several candidates.
prompt_files.py, answering.py, answer_files.py, prompt_job.py and reference_protocol.py are `lvm generate`: lists of
prompts in, files of answers out.
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
