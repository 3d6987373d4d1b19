"""colorization: a gray picture in colour, by MSE on normalised pixels as published, PSNR, and LPIPS from local weights.

The published protocol (Bar et al. 2022, arXiv 2209.00647, on which table 1 of LVM's paper compares) asks about 1,000
validation pictures of ImageNet after one pair, cuts the central 111 x 111 pixels out of each file without shrinking it,
and draws supports from the first 999 pictures, about 20 classes:

    lvm evaluate MODEL --tokenizer T --suite colorization --data IMAGENET --out DIR \\
        pairs=1 part=centre_111 queries=published supports=first_999

By default the central square, five pairs of any pictures. On scenes of the world and any source of pictures too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lvm.evaluation.annotated import Annotated, SourceItems
from lvm.evaluation.cases import Case, Measure, Published
from lvm.evaluation.colour_measures import Lpips, normalised_mse
from lvm.evaluation.datasets.imagenet import CENTRE, ImageNetVal, Part, is_imagenet
from lvm.evaluation.measures import MAX_PSNR, psnr
from lvm.evaluation.pairing import PairCases, missing_controls
from lvm.evaluation.suites.base import Context, PairOptions, PairSuite, describe_pairs, open_items
from lvm.evaluation.tasks import TASKS
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

TASK = next(task for task in TASKS if task.name == "colorization")
NUM_CASES, NUM_PUBLISHED = 200, 1000
FIRST = 999
RESIZE: dict[Part, str] = {
    "crop": "the central square, bicubic",
    "squash": "squashed to a square, bicubic",
    "centre_111": f"the central {CENTRE} x {CENTRE} pixels of the file, then bicubic where the size is another",
}
CAVEAT = (
    "1,000 ImageNet validation pictures at 111 px, supports of the first 999 pictures; LVM's size, number of pairs and "
    "the net of LPIPS are not stated; another size of picture changes MSE and LPIPS"
)
PUBLISHED = [
    Published(model, {"mse": mse, "lpips": lpips}, "table 1", CAVEAT)
    for model, mse, lpips in (
        ("MAE (IN-1k)", 1.13, 0.87),
        ("MAE-VQGAN (IN-1k)", 3.31, 0.75),
        ("MAE (CVF)", 0.43, 0.55),
        ("MAE-VQGAN (CVF)", 0.67, 0.40),
        ("LVM", 0.51, 0.46),
    )
]
MSE = Measure(
    "mse", False, "", "mean squared difference of pixels in [0,1], less ImageNet's mean, over its standard deviation"
)
PSNR = Measure("psnr", True, "dB", f"of pixels in [0,255], at most {MAX_PSNR:g}")
LPIPS = Measure("lpips", False, "", "version 0.1 on VGG16, of the files named")


@dataclass(frozen=True)
class Options(PairOptions):
    layout: Literal["auto", "source", "imagenet"] = "auto"  # auto: imagenet by the names of its classes or pictures
    part: Part = "crop"  # of imagenet's pictures: the central square, all of it squashed, or the published 111 pixels
    queries: Literal["any", "published"] = "any"  # of imagenet; published: the 1,000 of the published code
    supports: Literal["any", "first_999"] = "any"  # pictures that pairs are made of
    lpips: str = ""  # FILE or FILE,HEADS: weights of VGG16 and of LPIPS; without, LPIPS is not computed


def judge(lpips: "Callable[[Picture, Picture], float] | None", case: Case, pictures: "Sequence[Picture]") -> Any:
    answer, truth = pictures[0], case.truth[0]
    found = {"mse": normalised_mse(answer, truth), "psnr": psnr(answer, truth)}
    return found | ({"lpips": lpips(answer, truth)} if lpips else {})


def open_pictures(context: Context, options: Options) -> Annotated:
    folder = Path(context.data).expanduser() if context.data is not None else None
    if options.layout == "imagenet" or (
        options.layout == "auto" and folder is not None and folder.is_dir() and is_imagenet(folder)
    ):
        if folder is None:
            raise UserError("layout=imagenet needs --data, the folder of ImageNet's validation pictures")
        return ImageNetVal(folder, context.size, options.part, options.queries == "published")
    if options.queries == "published" or options.part != "crop":
        raise UserError("queries and part are options of ImageNet's pictures; a source says `resize` in its YAML")
    return open_items(context, "scene")


def first_ones(data: Annotated) -> Callable[[int], bool]:
    """Whether an item is of the first 999 pictures of the data."""
    number = data.unit if isinstance(data, SourceItems) else int
    return lambda i: number(i) < FIRST


def make(context: Context, options: Options) -> PairSuite:
    data = open_pictures(context, options)
    config = options.pairing(context)
    public = isinstance(data, ImageNetVal)
    number = context.num_cases or (NUM_PUBLISHED if public else NUM_CASES)
    may_show = first_ones(data) if options.supports == "first_999" else None
    lpips = Lpips(options.lpips.split(",")) if options.lpips else None
    cases = PairCases(data, [TASK], config, number, context.seed, False, context.encode, may_show)
    settings: dict[str, Any] = {
        **describe_pairs(data, TASK, config, context),
        **missing_controls([cases]),
        "supports": options.supports,
        "gray": "ITU-R 601 luma of the drawn square",
        "scored_at": f"{context.size} x {context.size} pixels, against the picture itself, not its tokenised form",
        "lpips_weights": lpips.fingerprint if lpips else None,
    }
    if public:
        told = {"part": options.part, "queries": options.queries, "held_out": "all of it"}
        settings |= told | {"resize": RESIZE[options.part]}
    measures = [MSE, PSNR, *([LPIPS] if lpips else [])]
    return PairSuite(
        "colorization", "Colorization", measures, cases, partial(judge, lpips), settings, PUBLISHED, cases.broken
    )
