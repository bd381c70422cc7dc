"""The subject of a photo without any weights: GrabCut, from a first guess of our own."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray


def grabcut(rgb: UInt8[ndarray, "H W 3"], working_side: int = 384) -> Float[ndarray, "H W"]:
    """Alpha of the subject by GrabCut (Rother et al. 2004); before a background of one colour
    by `one_colour_border`.

    Needs no weights. Specks and pinholes are removed.
    """
    plain = one_colour_border(rgb)
    if plain is not None:
        return plain.astype(np.float32)
    height, width = rgb.shape[:2]
    scale = min(1.0, working_side / max(height, width))
    small_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(rgb, small_size, interpolation=cv2.INTER_AREA)
    classes = first_guess(small)
    if not (classes == cv2.GC_PR_FGD).any():
        return np.zeros((height, width), np.float32)
    models = np.zeros((1, 65)), np.zeros((1, 65))  # of the two sides' colours; OpenCV's workspace
    bgr, unused = small[..., ::-1].copy(), (0, 0, 0, 0)  # the mask says it all
    cv2.grabCut(bgr, classes, unused, *models, 6, cv2.GC_INIT_WITH_MASK)
    subject = tidy(np.isin(classes, (cv2.GC_FGD, cv2.GC_PR_FGD)))
    return cv2.resize(subject.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def one_colour_border(
    rgb: UInt8[ndarray, "H W 3"], tolerance: float = 4.0
) -> Bool[ndarray, "H W"] | None:
    """Subject mask before a background of a single colour; None where it doesn't do.

    The background is what lies within `tolerance` (Lab units; 2.3 is just noticeable) of the
    border's colour and hangs together with the border: a drawing's paper, a render's backdrop.
    GrabCut would take pale parts of the subject for it. It doesn't do where the border has other
    colours, or where most of the outline is as soft as a shadow's.
    """
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    colour = np.median(border, axis=0)
    if np.percentile(np.linalg.norm(border - colour, axis=-1), 90) > tolerance / 4:
        return None
    distance = np.linalg.norm(lab - colour, axis=-1)
    near = (distance < tolerance).astype(np.uint8)
    _, labels = cv2.connectedComponents(near, connectivity=4)
    touching = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    subject = tidy(~np.isin(labels, touching[touching > 0]))
    outline = subject & ~cv2.erode(subject.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    soft = distance[outline] < 2.5 * tolerance
    return None if soft.size and soft.mean() > 0.5 else subject


def first_guess(rgb: UInt8[ndarray, "H W 3"]) -> UInt8[ndarray, "H W"]:
    """GrabCut's classes to start from: background, probably background, probably subject.

    The subject has another colour than the border (`border_distance`), is enclosed by an outline
    (`path_cost`), and stands in the middle.
    """
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    h, w = lab.shape[:2]
    frame = max(2, round(0.03 * min(h, w)))
    border = np.ones((h, w), bool)
    border[frame:-frame, frame:-frame] = False
    distance = border_distance(lab, border)
    enclosed = np.minimum(path_cost(lab, border & (distance < 4)), 60) / 60
    distance = cv2.GaussianBlur(distance, (0, 0), 1)
    y, x = np.mgrid[0:h, 0:w]
    off_centre = 2 * np.maximum(abs(x / w - 0.5), abs(y / h - 0.5))
    score = np.sqrt(enclosed * np.minimum(distance, 20) / 20) * np.clip(1.5 - off_centre, 0.3, 1)
    score = (255 * score).astype(np.uint8)
    threshold, _ = cv2.threshold(score, 0, 255, cv2.THRESH_OTSU)
    guess = np.where(score > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    # what has the background's own colour is background also inside an outline: a wheel, a handle
    guess[(border & (score <= threshold)) | (distance < 0.7)] = cv2.GC_BGD
    return guess


def border_distance(
    lab: Float[ndarray, "H W 3"], border: Bool[ndarray, "H W"]
) -> Float[ndarray, "H W"]:
    """How far each pixel's colour is from the background's, in standard deviations.

    The colours of the border (a mask) are clustered. A cluster is background if it fills 4 %
    of the border and of two sides at least: what the border cuts off is mostly on one side.
    """
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    pixels = lab[border]
    labels = np.empty((len(pixels), 1), np.int32)
    _, found, centres = cv2.kmeans(pixels, 8, labels, stop, 2, cv2.KMEANS_PP_CENTERS)
    label = np.full(border.shape, -1)
    label[border] = found[:, 0]
    sides = [side[side >= 0] for side in (label[:2], label[-2:], label[:, :2], label[:, -2:])]
    shares = np.array([np.bincount(x, minlength=8) / len(x) for x in (label[border], *sides)])
    large = shares >= 0.04
    background = large[0] & (large[1:].sum(0) >= 2)
    distances = []
    for k in np.flatnonzero(background if background.any() else large[0]):
        spread = np.maximum(pixels[found[:, 0] == k].std(0), 3.0)  # 3: flat colours have noise too
        distances.append(np.linalg.norm((lab - centres[k]) / spread, axis=-1))
    return np.min(distances, axis=0)


def path_cost(
    lab: Float[ndarray, "H W 3"], source: Bool[ndarray, "H W"], working_side: int = 96
) -> Float[ndarray, "H W"]:
    """Least change of colour along any path from the mask `source` to each pixel.

    High inside closed outlines, whatever the colour there (geodesic saliency, Wei et al. 2012).
    Steps under 3 (of 8-bit Lab) are free: gradients of light.
    """
    height, width = source.shape
    scale = min(1.0, working_side / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    lab = cv2.resize(lab, size, interpolation=cv2.INTER_AREA)
    source = cv2.resize(source.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.3
    down = np.maximum(np.linalg.norm(np.diff(lab, axis=0), axis=-1) - 3, 0)
    right = np.maximum(np.linalg.norm(np.diff(lab, axis=1), axis=-1) - 3, 0)
    cost, before = np.where(source, 0, np.float32(1e6)), None
    while before is None or (cost < before).any():
        before = cost.copy()
        cost[1:] = np.minimum(cost[1:], cost[:-1] + down)
        cost[:-1] = np.minimum(cost[:-1], cost[1:] + down)
        cost[:, 1:] = np.minimum(cost[:, 1:], cost[:, :-1] + right)
        cost[:, :-1] = np.minimum(cost[:, :-1], cost[:, 1:] + right)
    return cv2.resize(cost, (width, height), interpolation=cv2.INTER_LINEAR)


def tidy(mask: Bool[ndarray, "H W"]) -> Bool[ndarray, "H W"]:
    """Without pieces under 5 % of the largest, and without holes under 0.2 % of the picture."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    area = stats[:, cv2.CC_STAT_AREA]
    if count > 1:
        mask = np.isin(labels, 1 + np.flatnonzero(area[1:] >= 0.05 * area[1:].max()))
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8))
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 0.002 * mask.size)
    return mask | (np.isin(labels, small) & ~mask)
