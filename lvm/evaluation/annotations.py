"""What an annotation still says after a tokenizer: each kind is read back from the decoded picture and compared.

`AnnotationJudge` is the callable that `tokenizer.evaluate` takes; below it, one function a kind.

    segmentation, instance   miou             classes told apart by the nearest colour that this channel uses
    depth                    depth_mae        of inverse depth, as a share of the drawn range; abs_rel where it is known
    normal                   normal_degrees   angle between normals, mean over surfaces
    edge                     edge_f1          within one pixel
    box                      box_f1, box_iou  of the drawn lines; of the boxes read back from them
    pose, keypoints          keypoints_found  joints or dots within a twentieth of the picture's shorter side;
                             keypoint_error   distance of those, in pixels
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lvm.evaluation.measures import (
    MAX_PALETTE,
    box_f1,
    colours_from,
    colours_of,
    count_colours,
    grow,
    line_f1,
    line_pixels,
    miou,
)
from lvm.evaluation.point_measures import matched
from lvm.pictures import depth, keypoints, normals, skeletons
from lvm.pictures.pieces import Box, bounds, find, label

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8

LEAST_PART = 3  # pixels of a colour that count as a drawn part of a pose
REACH = 1 / 20  # of the picture's shorter side: a joint or dot within it is found


class AnnotationJudge:
    """(channel, picture, decoded, photo) -> scores by name; {} for channels that are no annotations.

    `depth_range` is the (near, far) that depth pictures were drawn between, where all share it.
    """

    def __init__(self, depth_range: tuple[float, float] | None = None) -> None:
        self.depth_range = depth_range
        self._pixels_of: dict[int, int] = {}  # the colours of all class maps so far

    def __call__(
        self,
        channel: str,
        picture: "UInt8[np.ndarray, 'y x 3']",
        decoded: "UInt8[np.ndarray, 'y x 3']",
        photo: "UInt8[np.ndarray, 'y x 3'] | None" = None,
    ) -> dict[str, float]:
        match channel:
            case "segmentation":
                return {"miou": miou(decoded, picture, self._palette(picture))}
            case "instance":  # a colour means something in its own picture alone
                return {"miou": miou(decoded, picture, colours_of(picture))}
            case "depth":
                return depth_errors(picture, decoded, self.depth_range)
            case "normal":
                return {"normal_degrees": normal_degrees(picture, decoded)}
            case "edge":
                return {"edge_f1": line_f1(decoded, picture)}
            case "box" if photo is not None:
                return {"box_f1": box_f1(decoded, picture, photo), "box_iou": box_iou(decoded, picture, photo)}
            case "keypoints" if photo is not None:
                return dot_errors(picture, decoded, photo)
            case "pose":
                return joint_errors(picture, decoded)
        return {}

    def _palette(self, picture: "UInt8[np.ndarray, 'y x 3']") -> "UInt8[np.ndarray, 'k 3']":
        """The colours of all class maps so far, this one included: a class is also told from those it does not show."""
        for key, count in zip(*count_colours(picture)):
            self._pixels_of[int(key)] = self._pixels_of.get(int(key), 0) + int(count)
        common = sorted(self._pixels_of, key=lambda key: (-self._pixels_of[key], key))
        return colours_from(np.array(common[:MAX_PALETTE]))


def depth_errors(
    picture: "UInt8[np.ndarray, 'y x 3']",
    decoded: "UInt8[np.ndarray, 'y x 3']",
    depth_range: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Mean error of inverse depth as a share of its range, and |d - d'| / d for a known (near, far); both where the
    picture is not black (unknown, or beyond far). NaN without such pixels."""
    known = picture.any(-1)
    if not known.any():
        return {"depth_mae": float("nan")}
    share = np.abs(picture.astype(np.float32).mean(-1) - decoded.astype(np.float32).mean(-1))[known].mean() / 255
    found = {"depth_mae": float(share)}
    if depth_range is not None:
        true, read = depth.read(picture, *depth_range)[known], depth.read(decoded, *depth_range)[known]
        found["abs_rel"] = float((np.abs(read - true) / true).mean())
    return found


def normal_degrees(picture: "UInt8[np.ndarray, 'y x 3']", decoded: "UInt8[np.ndarray, 'y x 3']") -> float:
    """Mean angle in degrees over the pixels that show a surface; NaN where none does."""
    return mean_degrees(normals.read(decoded), normals.read(picture))


def pieces(mask: "Bool[np.ndarray, 'y x']") -> list[Box]:
    """Bounding boxes of the connected pieces of a mask (eight neighbours; gaps of two pixels count as closed)."""
    return sorted(bounds(np.where(mask, label(grow(mask)), 0)).values())


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def box_iou(
    decoded: "UInt8[np.ndarray, 'y x 3']", picture: "UInt8[np.ndarray, 'y x 3']", photo: "UInt8[np.ndarray, 'y x 3']"
) -> float:
    """Mean over the boxes of `picture` of the IoU with the one matched to it in `decoded`, 0 where none is left.

    Both are read back alike: pixels of the line's colour, connected pieces, their bounding boxes (boxes whose lines
    touch are one). See `matched_iou`.
    """
    found, true = (pieces(mask) for mask in line_pixels(decoded, picture, photo))
    return matched_iou(found, true)


def matched_iou(found: Sequence[Box], true: Sequence[Box]) -> float:
    """Mean over the true boxes of the IoU with the one found for it, 0 where none is left; matched from the best pair
    down. NaN without true boxes."""
    if not true:
        return float("nan")
    pairs = sorted(((iou(a, b), i, j) for i, a in enumerate(true) for j, b in enumerate(found)), reverse=True)
    total, taken_true, taken_found = 0.0, set[int](), set[int]()
    for value, i, j in pairs:
        if i not in taken_true and j not in taken_found:
            total += value
            taken_true.add(i)
            taken_found.add(j)
    return total / len(true)


def dot_errors(
    picture: "UInt8[np.ndarray, 'y x 3']", decoded: "UInt8[np.ndarray, 'y x 3']", photo: "UInt8[np.ndarray, 'y x 3']"
) -> dict[str, float]:
    """Of red dots on the photo (`lvm.pictures.keypoints`), any of them for any other, as far as they are found in the
    untouched picture; NaN without dots."""
    true = keypoints.read(picture, photo=photo)
    found, untouched = (keypoints.find(shown, photo)[: len(true)] for shown in (decoded, picture))  # the clearest
    return _point_errors([(matched(found, true), matched(untouched, true))], picture)


def joint_errors(picture: "UInt8[np.ndarray, 'y x 3']", decoded: "UInt8[np.ndarray, 'y x 3']") -> dict[str, float]:
    """Of skeletons (`lvm.pictures.skeletons`) of any number of people and joints: dots are what `picture` holds in
    colours of full brightness and saturation, as far as they are found in it untouched; those of one colour stand for
    each other. NaN without dots."""
    palette = colours_from(count_colours(picture)[0])
    distances = []
    for colour in palette[(palette.max(1) == 255) & (palette.min(1) == 0)]:
        boxes = [np.array(piece.box) for piece in find((picture == colour).all(-1)) if piece.size >= LEAST_PART]
        true = np.array([(box[:2] + box[2:] - 1) / 2 for box in boxes]).reshape(-1, 2)
        places = [skeletons.find_dots(shown, colour, len(true)) for shown in (decoded, picture)]
        distances.append((matched(places[0], true), matched(places[1], true)))
    return _point_errors(distances, picture)


def _point_errors(
    distances: "Sequence[tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k']]]",
    picture: "UInt8[np.ndarray, 'y x 3']",
) -> dict[str, float]:
    """`distances`: of true points to those found in the decoded and in the untouched picture."""
    reach = REACH * min(picture.shape[:2])
    readable = np.concatenate([np.zeros(0), *(decoded[untouched <= reach] for decoded, untouched in distances)])
    near = readable[readable <= reach]
    return {
        "keypoint_error": float(near.mean()) if len(near) else float("nan"),
        "keypoints_found": len(near) / len(readable) if len(readable) else float("nan"),
    }


# What was read back against what was drawn: no pictures from here on.


def class_miou(found: "Int[np.ndarray, 'y x']", true: "Int[np.ndarray, 'y x']") -> float:
    """Intersection over union of class maps, mean over the classes of the true one."""
    return float(np.mean([_mask_iou(found == k, true == k) for k in np.unique(true)]))


def instance_miou(found: "Int[np.ndarray, 'y x']", true: "Int[np.ndarray, 'y x']") -> float:
    """Mean over the true instances (0 is none) of the IoU with the found one that overlaps it best, whatever its
    number; NaN without instances."""
    best = []
    for mask in (true == k for k in np.unique(true) if k != 0):
        overlapping = [n for n in np.unique(found[mask]) if n != 0]
        best.append(max((_mask_iou(found == n, mask) for n in overlapping), default=0.0))
    return float(np.mean(best)) if best else float("nan")


def depth_scores(found: "Float[np.ndarray, 'y x']", true: "Float[np.ndarray, 'y x']") -> dict[str, float]:
    """`abs_rel`, the mean of |d - d'| / d, and `d1`, the share within a factor of 1.25, where the truth is finite and
    above 0; NaN where nothing is."""
    known = np.isfinite(true) & (true > 0)
    if not known.any():
        return {"abs_rel": float("nan"), "d1": float("nan")}
    found, true = found[known], true[known]
    ratio = np.maximum(found / true, true / found)
    return {"abs_rel": float((np.abs(found - true) / true).mean()), "d1": float((ratio < 1.25).mean())}


def mean_degrees(found: "Float[np.ndarray, 'y x 3']", true: "Float[np.ndarray, 'y x 3']") -> float:
    """Mean angle between unit vectors where the true one is not zero; NaN where all are."""
    surface = true.any(-1)
    if not surface.any():
        return float("nan")
    cosines = (found[surface] * true[surface]).sum(-1)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean())


def pck(found: "Float[np.ndarray, 'k 2']", true: "Float[np.ndarray, 'k 2']", reach: float) -> float:
    """Share of the true joints (not NaN) that were found within `reach` pixels: PCK@0.1 for a tenth of the person's
    box; NaN without joints."""
    known = np.isfinite(true).all(1)
    near = np.linalg.norm(found - true, axis=1)[known] <= reach  # never of NaN
    return float(near.mean()) if known.any() else float("nan")


def _mask_iou(a: "Bool[np.ndarray, 'y x']", b: "Bool[np.ndarray, 'y x']") -> float:
    return float((a & b).sum() / (a | b).sum())
