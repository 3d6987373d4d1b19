"""Where pictures come from: one small protocol (`base.py`), folders of pictures, the procedural world."""

from lvm.sources.base import BrokenItem, Item, Source

__all__ = ["BrokenItem", "Item", "Source"]
