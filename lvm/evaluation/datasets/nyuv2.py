"""NYU Depth v2, the labelled set (1,449 indoor pictures of a Kinect), as folders.

    DIR/rgb/0001.png      640 x 480, or .jpg
        depth/0001.png    16 bits, millimetres, 0 unknown; of the same name
        test.txt          the pictures of the official test list, one name a line (654); without it all are asked
        scenes.txt        NAME SCENE a line; without it every picture is its own scene

The set comes as nyu_depth_v2_labeled.mat (MATLAB 7.3), splits.mat beside it (cs.nyu.edu/~silberman/datasets). Once:

    import h5py, numpy as np, scipy.io
    from PIL import Image
    data, splits = h5py.File("nyu_depth_v2_labeled.mat"), scipy.io.loadmat("splits.mat")
    for i, (picture, depth) in enumerate(zip(data["images"], data["depths"]), 1):
        Image.fromarray(np.transpose(picture, (2, 1, 0))).save(f"rgb/{i:04d}.png")
        Image.fromarray(np.rint(1000 * depth.T).astype(np.uint16)).save(f"depth/{i:04d}.png")
    open("test.txt", "w").write("".join(f"{i:04d}\\n" for i in splits["testNdxs"].ravel()))

Pairs are of pictures outside the test list, and of other scenes. Distances are scored in metres inside the crop of
Eigen et al. 2014 (rows 45 to 470, columns 41 to 600 of 640 x 480) up to 10 m.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lvm.evaluation.annotated import Remembered
from lvm.evaluation.datasets.layout import derived_channels, pictures_in, refuse
from lvm.evaluation.depth_truth import DepthTruth, OtherDepth, known
from lvm.pictures import decode, depth
from lvm.pictures.derive import DERIVED
from lvm.pictures.geometry import Geometry, Resize, geometries
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem
from lvm.sources.pictures import CLIP_FOLDERS, PICTURE_FOLDERS

if TYPE_CHECKING:
    from jaxtyping import Float

    from lvm.evaluation.cases import Picture

TREE = "rgb/NAME.png (or .jpg), depth/NAME.png (16 bits, millimetres), and where there are lists test.txt, scenes.txt"
MAT = "nyu_depth_v2_labeled.mat"
HEAD = "lvm/evaluation/datasets/nyuv2.py"
EIGEN_CROP = (slice(45, 471), slice(41, 601))  # rows, columns of 640 x 480
CAP = 10.0  # metres


def is_nyuv2(folder: Path) -> bool:
    """By its test list beside rgb/, or beside depth/ where no other folder has the pictures; or the file as it is
    distributed. What such a folder lacks is for `NYUv2` to say."""
    parts = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    named = "rgb" in parts or ("depth" in parts and not parts & {*PICTURE_FOLDERS, *CLIP_FOLDERS})
    return (named and (folder / "test.txt").is_file()) or (folder / MAT).is_file()


class NYUv2:
    """`Annotated` with distances. `near` and `far` (metres): every picture is drawn between them; without, each between
    its own percentiles. Raises `UserError` for a folder that lacks something."""

    unit = "metres"
    remedy = f"write it with the lines at the head of {HEAD}"
    channels: tuple[str, ...] = ("image", "depth", *DERIVED)

    def __init__(
        self,
        folder: Path,
        size: int,
        resize: Resize = "squash",
        crop: bool = True,
        drawn: tuple[float, float] | None = None,
    ) -> None:
        self.name, self._size, self._resize, self._crop, self._drawn = "nyuv2", size, resize, crop, drawn
        self._pictures, self._depths = (_files(folder, name) for name in ("rgb", "depth"))
        lacking = sorted(self._pictures.keys() ^ self._depths.keys())
        if lacking:
            side = "depth" if lacking[0] in self._pictures else "rgb"
            raise refuse(f"{folder / side} has no {lacking[0]} ({len(lacking)} of the pictures lack one part)", TREE)
        self.ids = list(self._pictures)
        self.labels: Sequence[str] = [""] * len(self.ids)
        scenes = _scenes(folder / "scenes.txt", self.ids)
        self.groups = [scenes.get(id, id) for id in self.ids]
        self.test = _listed(folder / "test.txt", self.ids)
        self._kept = Remembered()
        self.one_range = drawn is not None
        between = f"{drawn[0]} and {drawn[1]} m" if drawn else "its own 2nd and 98th percentile"
        region = "inside the Eigen crop" if crop else "everywhere"
        self.about = f"16-bit millimetres, sampled at the nearest pixel, {region}; drawn between {between}"

    def __len__(self) -> int:
        return len(self.ids)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels

    def may_ask(self, i: int) -> bool:
        return not self.test or self.ids[i] in self.test

    def may_show(self, i: int) -> bool:
        return not self.test or self.ids[i] not in self.test

    def views(self, i: int) -> Sequence[int]:
        return [0]

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        return self._kept(i, lambda: self._draw(i))

    def __call__(self, item: int, view: int) -> DepthTruth:
        values, near, far = self._distances(item, self._depth(item))
        cap = min(far, CAP)
        return DepthTruth(known(values, cap), near, far, cap)

    def _draw(self, i: int) -> "Mapping[str, Picture]":
        try:
            image = decode.load(self._pictures[self.ids[i]])
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        distances = self._depth(i)
        if image.size != distances.shape[::-1]:
            (width, height), (high, wide) = image.size, distances.shape
            depth_file, photo = self._depths[self.ids[i]], self._pictures[self.ids[i]]
            raise BrokenItem(str(depth_file), f"is {wide} x {high}, its picture {photo} {width} x {height}")
        picture = decode.shrink(image, self._size, self._geometry(distances), self.ids[i])
        sampled, near, far = self._distances(i, distances, crop=False)
        drawn = depth.draw(sampled, near, far)
        return {"image": picture, "depth": drawn, **derived_channels(self.ids[i], picture)}

    def _depth(self, i: int) -> "Float[np.ndarray, 'h w']":
        """Metres, 0 unknown."""
        file = self._depths[self.ids[i]]
        try:
            image = decode.load(file)
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        if image.mode not in decode.DEEP_MODES:
            raise OtherDepth(str(file), f"has mode {image.mode}, depth is 16-bit millimetres")
        return np.asarray(image).astype(np.float32) / 1000

    def _geometry(self, distances: Any) -> Geometry:
        height, width = distances.shape
        return geometries(width, height, self._resize)[0]

    def _distances(
        self, i: int, distances: "Float[np.ndarray, 'h w']", crop: bool = True
    ) -> "tuple[Float[np.ndarray, 'y x'], float, float]":
        """Sampled, 0 where unknown or cropped away; and the near and far of the picture."""
        whole = _sample(distances, self._geometry(distances), self._size)
        near, far = self._drawn or depth.percentiles(whole)
        if not (crop and self._crop and distances.shape == (480, 640)):
            return whole, near, far
        inside = np.zeros_like(distances)
        inside[EIGEN_CROP] = distances[EIGEN_CROP]
        return _sample(inside, self._geometry(distances), self._size), near, far

    def fingerprint(self) -> str:
        lines = [f"{self._size} {self._resize} {self._crop} {self._drawn}"]
        lines += [f"{id} {group} {id in self.test}" for id, group in zip(self.ids, self.groups)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sample(values: "Float[np.ndarray, 'h w']", geometry: Geometry, size: int) -> "Float[np.ndarray, 'y x']":
    return np.asarray(geometry.cut(Image.fromarray(values)).resize((size, size), Image.Resampling.NEAREST))


def _files(folder: Path, name: str) -> dict[str, Path]:
    if not (folder / name).is_dir():
        if (folder / MAT).is_file():
            raise UserError(
                f"{folder / MAT} is not read itself; write rgb/, depth/ and test.txt with h5py, "
                f"by the lines at the head of {HEAD}"
            )
        raise refuse(f"{folder / name} is missing", TREE)
    found = pictures_in(folder / name)
    if not found:
        raise refuse(f"{folder / name} holds no pictures", TREE)
    return found


def _listed(file: Path, ids: Sequence[str]) -> frozenset[str]:
    """The pictures of a list: their names with or without suffix, or their numbers. Empty without one."""
    if not file.is_file():
        return frozenset()
    by_number = {int(id): id for id in ids if id.isdigit()}
    names, found = frozenset(ids), set()
    for line in file.read_text().split():
        stem = Path(line).stem
        name = stem if stem in names else by_number.get(int(stem)) if stem.isdigit() else None
        if name is None:
            raise refuse(f"{file} lists {line}, of which there is no picture", TREE)
        found.add(name)
    if not found:
        raise refuse(f"{file} is empty", TREE)
    return frozenset(found)


def _scenes(file: Path, ids: Sequence[str]) -> dict[str, str]:
    if not file.is_file():
        return {}
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    bad = next((row for row in rows if len(row) != 2), None)
    if bad:
        raise refuse(f"{file} has the line {' '.join(bad)!r}, which is not NAME SCENE", TREE)
    scenes = {Path(name).stem: scene for name, scene in rows}
    lacking = [id for id in ids if id not in scenes]
    if lacking:
        raise refuse(f"{file} has no scene of {lacking[0]}", TREE)
    return scenes
