"""Annotations as pictures and back: one module a kind, `draw(...)` beside `read(...)`; derived channels; safe decoding.

A picture is uint8 [y, x, 3], RGB. `draw` and `read` are inverses up to the stated bound, before any tokenizer.
"""
