"""Perplexity by number of pairs, prompted tasks and their scores, baselines and controls, reports.

tasks.py       which channel answers which
prompts.py     evaluation data: sentences that end in a query, pixels and codes
perplexity.py  teacher-forced NLL of answers, by number of pairs and after wrong pairs
answers.py     greedy answers as pictures
measures.py    scores of an answer against the truth
baselines.py   copies, the tokenizer's ceiling, which task an answer looks like
bootstrap.py   intervals
suite.py       all of these together: one dictionary, and the pictures to look at
charts.py, sheet.py, report.py   the same as something to look at
"""
