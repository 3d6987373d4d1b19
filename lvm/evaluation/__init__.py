"""Evaluation: tasks given as prompts, their scores and likelihoods, baselines, controls, reports.

tasks.py       which channel answers which
prompts.py     evaluation data: sentences that end in a query, pixels and codes
perplexity.py  teacher-forced NLL of answers, by number of pairs and after wrong pairs
answers.py     greedy answers as pictures
measures.py    scores of an answer against the truth
baselines.py   copies, the tokenizer's ceiling, which task an answer looks like
bootstrap.py   intervals
suite.py       all of these together: one dictionary, and the pictures to look at
sheet.py, report.py   the same as something to look at
suites/        what `lvm evaluate` asks, one file a suite; each makes cases (cases.py)
annotated.py, clips.py, datasets/   pictures and clips to ask about: the world, sources of files, public layouts
pairing.py, parts.py   which pairs stand before a query, under which conditions
ask.py, job.py, summary.py   cases to rows, blocks of rows on disk, rows to a report
strips.py, suite_page.py   cases of a suite drawn again from their rows, its page
comparison.py, comparison_page.py   two evaluations of the same cases
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvm.evaluation.prompts import ClipSet, PromptSet, source_prompts, world_clips, world_prompts
    from lvm.evaluation.report import headline, write_report
    from lvm.evaluation.sheet import report_sheet
    from lvm.evaluation.suite import Evaluation, Grid, evaluate_prompts

_HOMES = {
    "prompts": ("ClipSet", "PromptSet", "source_prompts", "world_clips", "world_prompts"),
    "report": ("headline", "write_report"),
    "sheet": ("report_sheet",),
    "suite": ("Evaluation", "Grid", "evaluate_prompts"),
}

__all__ = [
    "ClipSet",
    "Evaluation",
    "Grid",
    "PromptSet",
    "evaluate_prompts",
    "headline",
    "report_sheet",
    "source_prompts",
    "world_clips",
    "world_prompts",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Imported when asked for: processes that only draw pictures (`prompts.Drawings`) must not load torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"lvm.evaluation.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
