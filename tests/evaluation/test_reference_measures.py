"""Every measure of pictures equals a reference on random inputs within 1e-4: torchmetrics where it has it, else the
arithmetic of the code that published it, written plainly."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
    multiclass_jaccard_index,
)
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lvm.evaluation import annotations, depth_measures, measures
from lvm.evaluation.colour_measures import normalised_mse
from lvm.evaluation.two_colours import mask_scores
from tokenizer.evaluate import ssim

SEEDS = range(8)


def close(wanted: float) -> object:
    return pytest.approx(float(wanted), abs=1e-4)


def noise(rng: np.random.Generator, size: int = 32) -> np.ndarray:
    return rng.integers(0, 256, (size, size, 3)).astype(np.uint8)


def near(rng: np.random.Generator, picture: np.ndarray, spread: int) -> np.ndarray:
    return np.clip(picture.astype(int) + rng.integers(-spread, spread + 1, picture.shape), 0, 255).astype(np.uint8)


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float64)).permute(2, 0, 1)[None]


# Pixels.


@pytest.mark.parametrize("seed", SEEDS)
def test_psnr_is_that_of_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    truth = noise(rng)
    answer = near(rng, truth, 1 + 12 * seed)
    found = measures.psnr(answer, truth)
    assert found == close(peak_signal_noise_ratio(tensor(answer), tensor(truth), data_range=(0.0, 255.0)))
    where = rng.random(truth.shape[:2]) < 0.3
    masked = [torch.from_numpy(p[where].astype(np.float64)) for p in (answer, truth)]
    assert measures.psnr(answer, truth, where) == close(peak_signal_noise_ratio(*masked, data_range=(0.0, 255.0)))


@pytest.mark.parametrize("seed", SEEDS)
def test_psnr_of_what_moves_is_that_of_torchmetrics_on_the_pixels_that_move(seed):
    rng = np.random.default_rng(seed)
    last = noise(rng)
    truth = near(rng, last, 30)
    answer = near(rng, truth, 20)
    moved = np.array([[abs(truth[y, x].astype(int) - last[y, x]).sum() / 3 > 16 for x in range(32)] for y in range(32)])
    assert 0 < moved.sum() < moved.size
    given = [torch.from_numpy(p[moved].astype(np.float64)) for p in (answer, truth)]
    wanted = peak_signal_noise_ratio(*given, data_range=(0.0, 255.0))
    assert measures.moving_psnr(answer, truth, last) == close(wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_ssim_is_that_of_torchmetrics_where_the_window_fits(seed):
    """Torchmetrics also averages over reflected borders; the paper's code and scikit-image leave them out, as we do."""
    rng = np.random.default_rng(seed)
    truth = noise(rng)
    a, b = (tensor(picture) / 255 for picture in (near(rng, truth, 1 + 12 * seed), truth))
    _, places = structural_similarity_index_measure(a, b, data_range=1.0, sigma=1.5, return_full_image=True)
    assert float(ssim(a, b)) == close(places[..., 5:-5, 5:-5].mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_mse_of_normalised_pixels_is_that_of_the_published_code(seed):
    rng = np.random.default_rng(seed)
    answer, truth = noise(rng, 111), noise(rng, 111)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    # amirbar/visual_prompting, evaluate_colorization.py: both normalised, channels first, then squared and averaged
    ours, target = (
        (np.transpose(p / 255.0, [2, 0, 1]) - mean[:, None, None]) / std[:, None, None] for p in (answer, truth)
    )
    assert normalised_mse(answer, truth) == close(((target - ours) ** 2).mean())


# Classes, masks, lines, boxes.


def class_maps(seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (24, 24))
    return np.where(rng.random((24, 24)) < 0.4, rng.integers(0, classes, (24, 24)), truth), truth


PALETTE = np.array([(0, 0, 0), (230, 30, 30), (40, 70, 235), (20, 200, 60), (250, 240, 40)], np.uint8)


@pytest.mark.parametrize("seed", SEEDS)
def test_miou_is_that_of_torchmetrics_after_snapping_to_the_nearest_colour(seed):
    rng = np.random.default_rng(seed)
    found, true = class_maps(seed)
    answer, truth = near(rng, PALETTE[found], 140), PALETTE[true]
    away = torch.cdist(torch.from_numpy(answer.reshape(-1, 3)).double(), torch.from_numpy(PALETTE).double())
    snapped = away.argmin(1).reshape(24, 24)
    assert (snapped.numpy() != found).any()
    wanted = multiclass_jaccard_index(snapped, torch.from_numpy(true), num_classes=5, average="macro")
    assert measures.miou(answer, truth, PALETTE) == close(wanted)
    of_maps = multiclass_jaccard_index(torch.from_numpy(found), torch.from_numpy(true), num_classes=5)
    assert annotations.class_miou(found, true) == close(of_maps)


def test_miou_leaves_out_classes_that_the_truth_lacks():
    found, true = class_maps(1)
    true[true == 4] = 0
    each = multiclass_jaccard_index(torch.from_numpy(found), torch.from_numpy(true), num_classes=5, average="none")
    assert each[4] == 0 and (found == 4).any()
    assert measures.miou(PALETTE[found], PALETTE[true], PALETTE) == close(each[:4].mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_scored_as_by_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    true = rng.random((24, 24)) < 0.3
    found = true ^ (rng.random((24, 24)) < 0.1 * seed)
    given = torch.from_numpy(found), torch.from_numpy(true)
    scores = mask_scores(found, true)
    assert scores["iou"] == close(binary_jaccard_index(*given))
    assert scores["accuracy"] == close(binary_accuracy(*given))
    blind = max(binary_jaccard_index(given[0], given[1]), binary_jaccard_index(~given[0], given[1]))
    assert scores["colour_blind_iou"] == close(blind)


@pytest.mark.parametrize("seed", SEEDS)
def test_f1_of_lines_is_that_of_torchmetrics_on_lines_grown_by_a_pixel(seed):
    rng = np.random.default_rng(seed)
    answer, truth = (rng.random((24, 24)) < share for share in (0.02 + 0.02 * seed, 0.08))
    a, t = (torch.from_numpy(lines) for lines in (answer, truth))
    grown_a, grown_t = (torch.nn.functional.max_pool2d(x[None].float(), 3, 1, 1)[0] for x in (a, t))
    precision, recall = binary_precision(a.float(), grown_t), binary_recall(grown_a, t.float())
    assert measures.tolerant_f1(answer, truth) == close(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("seed", SEEDS)
def test_iou_of_boxes_is_that_of_their_masks(seed):
    rng = np.random.default_rng(seed)
    boxes, masks = [], []
    for _ in range(2):
        left, top = rng.integers(0, 14, 2).tolist()
        right, bottom = int(rng.integers(left + 1, 24)), int(rng.integers(top + 1, 24))
        boxes.append((left, top, right, bottom))
        masks.append(torch.zeros(24, 24, dtype=torch.bool))
        masks[-1][top:bottom, left:right] = True
    assert annotations.iou(*boxes) == close(binary_jaccard_index(*masks))


# Depth and normals.


def depths(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a prediction and of the truth, a fifth of it unknown."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.6, 10, (24, 24))
    found = truth * np.exp(rng.normal(0, 0.05 + 0.1 * seed, truth.shape))
    return found, np.where(rng.random(truth.shape) < 0.2, np.nan, truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_of_depth_are_those_of_monodepth(seed):
    found, truth = depths(seed)
    gt, pred = truth[~np.isnan(truth)], found[~np.isnan(truth)]
    # mrharicot/monodepth, evaluation_utils.py: compute_errors
    thresh = np.maximum((gt / pred), (pred / gt))
    wanted = {
        "abs_rel": np.mean(np.abs(gt - pred) / gt),
        "rmse": np.sqrt(((gt - pred) ** 2).mean()),
        "rmse_log": np.sqrt(((np.log(gt) - np.log(pred)) ** 2).mean()),
        "delta_1": (thresh < 1.25).mean(),
        "delta_2": (thresh < 1.25**2).mean(),
        "delta_3": (thresh < 1.25**3).mean(),
    }
    assert depth_measures.errors(found, truth) == {name: close(value) for name, value in wanted.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_alignment_is_that_of_midas(seed):
    rng = np.random.default_rng(seed)
    _, truth = depths(seed)
    level = 255 * (0.3 / np.nan_to_num(truth, nan=3) + 0.1) + rng.normal(0, 3 + 4 * seed, truth.shape)
    cap = 8.0
    # MiDaS' protocol: the normal equations of scale and shift on known pixels, disparity at least 1 / cap
    mask, target = ~np.isnan(truth), np.zeros_like(truth)
    target[mask] = 1.0 / truth[mask]
    a_00, a_01, a_11 = (mask * level * level).sum(), (mask * level).sum(), mask.sum()
    b_0, b_1 = (mask * level * target).sum(), (mask * target).sum()
    det = a_00 * a_11 - a_01 * a_01
    scale, shift = (a_11 * b_0 - a_01 * b_1) / det, (-a_01 * b_0 + a_00 * b_1) / det
    disparity = scale * level + shift
    assert (disparity < 1 / cap).any()
    disparity[disparity < 1 / cap] = 1 / cap
    np.testing.assert_allclose(depth_measures.aligned(level, truth, cap), 1 / disparity, rtol=1e-6)


def test_nothing_known_is_no_score():
    unknown = np.full((4, 4), np.nan)
    found = depth_measures.errors(depth_measures.aligned(np.ones((4, 4)), unknown, 10), unknown)
    assert set(found) == set(depth_measures.NAMES) and np.isnan(list(found.values())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_read_back_from_pictures_has_the_same_abs_rel_in_every_report(seed):
    found, truth = depths(seed)
    scores, errors = annotations.depth_scores(found, truth), depth_measures.errors(found, truth)
    assert scores["abs_rel"] == close(errors["abs_rel"]) and scores["d1"] == close(errors["delta_1"])


@pytest.mark.parametrize("seed", SEEDS)
def test_angles_of_normals_are_those_of_the_cosine_similarity(seed):
    rng = np.random.default_rng(seed)
    found, true = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in rng.normal(size=(2, 16, 16, 3)))
    true[rng.random((16, 16)) < 0.2] = 0
    surface = true.any(-1)
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(found[surface]), torch.from_numpy(true[surface]))
    assert annotations.mean_degrees(found, true) == close(torch.rad2deg(torch.arccos(cosine)).mean())
