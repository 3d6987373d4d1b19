"""Perplexity by number of pairs, prompted tasks and their scores, baselines and controls, reports.

tasks.py       which channel answers which
prompts.py     evaluation data: sentences that end in a query, pixels and codes
perplexity.py  teacher-forced NLL of answers, by number of pairs and after wrong pairs
answers.py     greedy answers as pictures
measures.py    scores of an answer against the truth
baselines.py   copies, the tokenizer's ceiling, which task an answer looks like
bootstrap.py   intervals
suite.py       all of these together: one dictionary, and the pictures to look at
sheet.py, report.py   the same as something to look at
cases.py, pairing.py, ask.py, job.py, summary.py, suites/   suites: cases asked under several prompts, rows, a report
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
