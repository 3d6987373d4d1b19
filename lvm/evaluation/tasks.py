"""Which channel answers which: a task is shown by pairs of (input, output) pictures."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    name: str
    input: str  # channel of the query
    output: str  # channel of the answer
    title: str  # for people


TASKS = (
    Task("segmentation", "image", "segmentation", "Segmentation"),
    Task("depth", "image", "depth", "Depth"),
    Task("normal", "image", "normal", "Surface normals"),
    Task("edge", "image", "edge", "Edges"),
    Task("box", "image", "box", "Boxes"),
    Task("relit", "image", "relit", "Relighting"),
    Task("colorization", "gray", "image", "Colorization"),
    Task("inpainting", "masked", "image", "Inpainting"),
    Task("denoising", "noisy", "image", "Denoising"),
    Task("low_light", "dark", "image", "Low light"),
)
RESTORED = frozenset(task.input for task in TASKS if task.output == "image")


def tasks_of(channels: Iterable[str]) -> list[Task]:
    """The tasks these channels allow, in the order of `TASKS`; a channel unknown here is an annotation of the image."""
    held = list(channels)
    if "image" not in held:
        return []
    known = {task.output for task in TASKS} | RESTORED
    others = [Task(c, "image", c, c.replace("_", " ").capitalize()) for c in held if c not in known]
    return [task for task in TASKS if task.input in held and task.output in held] + others
