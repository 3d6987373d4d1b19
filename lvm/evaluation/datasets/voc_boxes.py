"""VOC2012's boxes as the published detection benchmark filters them (amirbar/visual_prompting, evaluate_detection):
pictures with one object that fills less than a fifth; queries are of the val list, pairs of the train list."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from PIL import Image

from lvm.evaluation import filled_boxes
from lvm.evaluation.datasets.voc import Entry, VocItems, need, need_files, read_lines
from lvm.pictures import decode
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

CHANNEL = "object_box"
MOST_BYTES = 2**20  # of an annotation
EXPECTED = "VOC2012/{JPEGImages/NAME.jpg, Annotations/NAME.xml, ImageSets/Main/{train,val}.txt}"


@dataclass(frozen=True)
class Marked:
    """A picture's size and objects: (class, left, top, right, bottom) in pixels from 0, the last two exclusive."""

    width: int
    height: int
    objects: tuple[tuple[str, float, float, float, float], ...]

    @property
    def share(self) -> float:
        """Of the picture, that the first object's box fills."""
        _, left, top, right, bottom = self.objects[0]
        return (right - left) * (bottom - top) / (self.width * self.height)


def open_boxes(root: Path, size: int, largest: float) -> "tuple[VocItems[Marked], list[str]]":
    """Pictures with one object that fills less than `largest`, and the annotations that cannot be read. Raises
    `UserError` that names what is missing."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main/train.txt", "ImageSets/Main/val.txt"):
        need(root / part, EXPECTED)
    entries: list[Entry[Marked]] = []
    broken: list[str] = []
    for part in ("val", "train"):
        names = read_lines(root / "ImageSets" / "Main" / f"{part}.txt")
        need_files(root / "Annotations", (f"{name}.xml" for name in names), f"annotations of the {part} list", EXPECTED)
        need_files(root / "JPEGImages", (f"{name}.jpg" for name in names), f"pictures of the {part} list", EXPECTED)
        for name in names:
            try:
                marked = read_annotation(root / "Annotations" / f"{name}.xml")
            except ValueError as error:
                broken.append(f"{root / 'Annotations' / name}.xml: {error}")
                continue
            if len(marked.objects) == 1 and marked.share < largest:
                entries.append(Entry(name, name, marked.objects[0][0], marked, asked=part == "val"))
    if not any(entry.asked for entry in entries):
        raise UserError(
            f"{root / 'ImageSets' / 'Main' / 'val.txt'} has no picture with one object that fills less than {largest:g}"
        )
    return VocItems(root, entries, CHANNEL, draw_box, size), broken


def draw_box(entry: Entry[Marked], image: Image.Image, size: int) -> "Picture":
    marked = entry.annotation
    if image.size != (marked.width, marked.height):
        wide, high = image.size
        raise decode.PictureError(
            f"{entry.name}.xml", f"is of a picture of {marked.width} x {marked.height}; it has {wide} x {high}"
        )
    _, *box = marked.objects[0]
    left, top, right, bottom = box
    return filled_boxes.draw(filled_boxes.scaled((left, top, right, bottom), *image.size, size), size)


# Annotations.


def read_annotation(file: Path) -> Marked:
    """Raises ValueError, in a few words, for what is no annotation."""
    data = file.read_bytes()
    if len(data) > MOST_BYTES:
        raise ValueError(f"has {len(data)} bytes; an annotation has at most {MOST_BYTES}")
    tree = parse_xml(data)
    size = tree.find("size")
    if size is None:
        raise ValueError("has no <size>")
    width, height = (number(size, side) for side in ("width", "height"))
    if min(width, height) < 1:
        raise ValueError(f"says that its picture is {width:g} x {height:g}")
    return Marked(int(width), int(height), tuple(read_objects(tree, width, height)))


def read_objects(tree: Element, width: float, height: float) -> Iterator[tuple[str, float, float, float, float]]:
    for found in tree.findall("object"):
        box = found.find("bndbox")
        if box is None:
            raise ValueError("has an <object> without <bndbox>")
        left, top = number(box, "xmin") - 1, number(box, "ymin") - 1  # written from 1, both ends inclusive
        right, bottom = number(box, "xmax"), number(box, "ymax")
        if not (-1 <= left < right <= width + 1 and -1 <= top < bottom <= height + 1):
            raise ValueError(f"has a box {left + 1:g} {top + 1:g} {right:g} {bottom:g} outside {width:g} x {height:g}")
        yield (found.findtext("name") or "").strip(), left, top, right, bottom


def number(parent: Element, tag: str) -> float:
    text = parent.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"has {text!r} as <{tag}>, not a number") from None


def parse_xml(data: bytes) -> Element:
    """Without document types, and so without entities: none can be declared that grow or reach outside."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"is no XML ({error})") from None
    return builder.close()


def refuse_doctype(*_: object) -> None:
    raise ValueError("declares a document type, which may hold entities; annotations have none")
