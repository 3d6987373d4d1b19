"""Where pictures come from: one small protocol (`base.py`), folders of pictures, the procedural world."""

from lvm.sources.base import BrokenItem, Item, Source
from lvm.sources.opening import open_source
from lvm.sources.reading import read_units

__all__ = ["BrokenItem", "Item", "Source", "open_source", "read_units"]
