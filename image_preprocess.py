"""A photo -> `_rgba.png`, `_depth.png`, `_normal.png`, `_caption.txt` beside it.

    python image_preprocess.py photo.jpg --size 512 --border_ratio 0.1 --need_caption

Images are RGB(A) in [0, 255] uint8 unless a name says otherwise; alpha is [H W] in [0, 1]. Depth is
relative: 255 nearest, 1 farthest, 0 outside the subject. Normals are in camera axes (x right, y up,
z towards the camera), stored as 127.5 (n + 1). No step overwrites its own input, and files appear
whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import secrets
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent / "host"))

from argument_types import finite_number, path, text_with_content, whole_number
from git_lfs import refuse_pointer

DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
CAPTION_MODEL = "Salesforce/blip-image-captioning-base"
MIN_SIDE = 16  # pixels; below this there is nothing to cut out
LARGEST_SIDE = 8192  # pixels, of the results
WORKING_SIDE = 2048  # pixels; larger photos are reduced to this before anything else
SMALLEST_SHARE, LARGEST_SHARE = 0.002, 0.98  # of the picture that a subject may cover
LOOSE_SHARE = 0.05  # of a subject outside its largest piece; from there on it is said
BY_HAND = (
    "cut the subject out by hand, save it as _rgba.png beside the photo and pass "
    "--use_existing_background (to animate.py: preprocess.use_existing_background=true)"
)


class PreprocessError(ValueError):
    """An input that can't be used; the message says what came and what to try."""


# ---------------------------------------------------------------------------------- reading


def read_photo(path: Path, longest: int = WORKING_SIDE) -> Image.Image:
    """The photo upright (EXIF), 8 bit, as RGB, or RGBA if it really has transparency.

    It is reduced to `longest` pixels first, so that a huge one takes little time and memory.

    Raises:
        PreprocessError: no such file, a folder, unreadable, tiny, or too large to be read safely.
    """
    if path.is_dir():
        raise PreprocessError(f"{path} is a folder. Pass the path of one photo (jpg, png, webp).")
    if not path.is_file():
        raise PreprocessError(
            f"There is no image at {path}. Pass the path of a photo (jpg, png, webp)."
        )
    try:
        refuse_pointer(path)
    except (ValueError, OSError) as error:
        raise PreprocessError(str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is reduced below
            file = Image.open(path)
        size = file.size
        image = eight_bit(upright(file, longest))
    except Image.DecompressionBombError as error:
        raise PreprocessError(
            f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels. "
            f"Reduce it first; {longest} a side are used."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what PIL's readers raise
        raise PreprocessError(
            f"{path} can't be read as an image ({first_line(error)}). Re-save it as PNG."
        ) from error
    if min(image.size) < MIN_SIDE:
        raise PreprocessError(
            f"{path} is {size[0]} x {size[1]} pixels; {MIN_SIDE} a side is the least"
            + ("." if min(size) < MIN_SIDE else f", also once the longer side is {longest}.")
        )
    return image


def upright(file: Image.Image, longest: int) -> Image.Image:
    """The picture with sides of at most `longest`, turned as EXIF says; deep modes stay deep."""
    file.draft(None, (2 * longest, 2 * longest))  # a huge JPEG is decoded small; no-op for others
    file.load()
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)  # TIFFs are turned by now
    image = file
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    elif image.mode in ("1", "P", "PA") or "transparency" in image.info:  # can't be averaged
        clear = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if clear else "RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def eight_bit(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where something is transparent; PIL's own convert() clips 16 bit and float."""
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if image.mode == "I" else max(values.max(), 1e-12)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if "A" not in image.getbands():
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = np.asarray(image)[..., 3]
    opaque = (alpha > 127).mean()
    if opaque <= LARGEST_SHARE:
        return image
    if alpha.min() < alpha.max():  # rounded corners, say: there's no cut-out yet
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info["opaque"] = opaque  # what `cut_out` says
    return image


# ------------------------------------------------------------------------------- background


def border_distance(lab: np.ndarray, border: np.ndarray) -> np.ndarray:
    """How far each pixel's colour is from the background's, in standard deviations -> [H W].

    The colours of the border (a mask, [H W]) are clustered. A cluster is background if it fills 4 %
    of the border and of two sides at least: what the border cuts off is mostly on one side.
    """
    import cv2

    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    pixels = lab[border]
    _, found, centres = cv2.kmeans(pixels, 8, None, stop, 2, cv2.KMEANS_PP_CENTERS)
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


def path_cost(lab: np.ndarray, source: np.ndarray, working_side: int = 96) -> np.ndarray:
    """Least change of colour along any path from the mask `source` to each pixel -> [H W].

    High inside closed outlines, whatever the colour there (geodesic saliency, Wei et al. 2012).
    Steps under 3 (of 8-bit Lab) are free: gradients of light.
    """
    import cv2

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


def one_colour_border(rgb: np.ndarray, tolerance: float = 4.0) -> np.ndarray | None:
    """Subject mask [H W] before a background of a single colour; None where it doesn't do.

    The background is what lies within `tolerance` (Lab units; 2.3 is just noticeable) of the
    border's colour and hangs together with the border: a drawing's paper, a render's backdrop.
    GrabCut would take pale parts of the subject for it. It doesn't do where the border has other
    colours, or where most of the outline is as soft as a shadow's.
    """
    import cv2

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


def first_guess(rgb: np.ndarray) -> np.ndarray:
    """GrabCut's classes [H W] to start from: background, probably background, probably subject.

    The subject has another colour than the border (`border_distance`), is enclosed by an outline
    (`path_cost`), and stands in the middle.
    """
    import cv2

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


def grabcut(rgb: np.ndarray, working_side: int = 384) -> np.ndarray:
    """Alpha [H W] of the subject by GrabCut (Rother et al. 2004); before a background of one colour
    by `one_colour_border`.

    Needs no weights. Specks and pinholes are removed.
    """
    import cv2

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
    cv2.grabCut(small[..., ::-1].copy(), classes, None, *models, 6, cv2.GC_INIT_WITH_MASK)
    subject = tidy(np.isin(classes, (cv2.GC_FGD, cv2.GC_PR_FGD)))
    return cv2.resize(subject.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def tidy(mask: np.ndarray) -> np.ndarray:
    """Without pieces under 5 % of the largest, and without holes under 0.2 % of the picture."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    area = stats[:, cv2.CC_STAT_AREA]
    if count > 1:
        mask = np.isin(labels, 1 + np.flatnonzero(area[1:] >= 0.05 * area[1:].max()))
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8))
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 0.002 * mask.size)
    return mask | (np.isin(labels, small) & ~mask)


def by_rembg(rgb: np.ndarray) -> np.ndarray:
    """Alpha by rembg with U^2-Net (its default model differs between versions)."""
    if importlib.util.find_spec("onnxruntime") is None:  # importing rembg would end the process
        raise ImportError("it needs onnxruntime, `pip install 'rembg[cpu]'`")
    import rembg

    mask = rembg.remove(Image.fromarray(rgb), session=rembg.new_session("u2net"), only_mask=True)
    return np.asarray(mask.convert("L"), np.float32) / 255


def by_backgroundremover(rgb: np.ndarray) -> np.ndarray:
    """Alpha by the backgroundremover package (U^2-Net)."""
    import io

    from backgroundremover.bg import remove

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    cut = Image.open(io.BytesIO(remove(buffer.getvalue(), model_name="u2net")))
    return np.asarray(cut.convert("RGBA"), np.float32)[..., 3] / 255


REMOVERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # in the order of "auto"
    "backgroundremover": by_backgroundremover,
    "rembg": by_rembg,
    "grabcut": grabcut,
}
PACKAGES = {"backgroundremover": "backgroundremover", "rembg": "rembg[cpu]"}  # what pip is told


def subject_alpha(rgb: np.ndarray, name: str) -> np.ndarray:
    """Alpha [H W] by the remover of that name.

    Raises:
        PreprocessError: it isn't installed, fails (no weights, usually), or finds no subject.
    """
    if name in PACKAGES and importlib.util.find_spec(name) is None:
        raise PreprocessError(f"{name} isn't installed: pip install '{PACKAGES[name]}'")
    try:
        alpha = REMOVERS[name](rgb)
    except Exception as error:  # the packages' own, pickle's and onnxruntime's errors
        raise PreprocessError(f"{name} can't run here: {first_line(error)}") from error
    share = float((alpha > 0.5).mean())
    if not SMALLEST_SHARE < share < LARGEST_SHARE:
        found = "found no subject" if share <= SMALLEST_SHARE else "found no background"
        raise PreprocessError(f"{name} {found} (it took {100 * share:.1f} % of the picture)")
    return alpha


def cut_out(image: Image.Image, background: str = "auto") -> Image.Image:
    """RGBA with the background removed; a photo that is transparent already keeps its alpha.

    `auto` takes the first remover that is installed and finds a subject.

    Raises:
        PreprocessError: nothing was found, the remover that was asked for can't run, or next to
            nothing of a transparent photo is opaque.
    """
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A")) / 255
        check_not_empty(alpha)
        print(f"background: the picture is cut out already; {coverage(alpha)}")
        return image
    if "opaque" in image.info:
        share = 100 * image.info["opaque"]
        print(f"background: {share:.0f} % of the picture is opaque, so its alpha is left out")
    rgb = np.asarray(image)
    installed = [n for n in REMOVERS if n not in PACKAGES or importlib.util.find_spec(n)]
    names = installed if background == "auto" else [background]
    for name in names:
        try:
            alpha = subject_alpha(rgb, name)
        except PreprocessError as error:
            if name == names[-1]:
                raise PreprocessError(
                    f"{error}. Try another --background ({', '.join(REMOVERS)}), a plainer photo, "
                    f"or {BY_HAND}."
                ) from error
            print(f"background: {error}; trying the next")
            continue
        print(f"background: removed by {name}; {coverage(alpha)}")
        return Image.fromarray(np.dstack([rgb, (alpha * 255).round().astype(np.uint8)]))
    raise AssertionError("GrabCut is always installed")


def check_not_empty(alpha: np.ndarray) -> None:
    """A PreprocessError if some, but next to none, of the picture is opaque."""
    opaque = int((alpha > 0.5).sum())
    if 0 < opaque < SMALLEST_SHARE * alpha.size:
        raise PreprocessError(
            f"Of the picture {opaque} pixel{'s are' if opaque > 1 else ' is'} opaque, under "
            f"{100 * SMALLEST_SHARE:g} %: that is no subject. Cut it out again, or crop the "
            "picture closer to it."
        )


def check_photo(path: Path) -> None:
    """A PreprocessError for what can be known of a photo before anything is cut out."""
    photo = read_photo(path)
    if photo.mode == "RGBA":
        alpha = np.asarray(photo)[..., 3] / 255
        if not (alpha > 0.5).any():
            raise PreprocessError(f"{path} has no opaque pixel: there is no subject.")
        try:
            check_not_empty(alpha)
        except PreprocessError as error:
            raise PreprocessError(f"{path}: {error}") from None


def coverage(alpha: np.ndarray) -> str:
    """Words on how much of the picture the subject covers, where the border cuts it off, and
    whether it hangs together."""
    mask = alpha > 0.5
    edges = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    cut = [side for side, edge in edges.items() if edge.mean() > 0.05]
    words = f"the subject covers {100 * mask.mean():.0f} %"
    if cut:
        words += f" and is cut off at the {', '.join(cut)}"
    if mask.mean() < 0.05:
        words += ": look whether that is all of it"
    pieces, loose = loose_share(mask)
    if loose >= LOOSE_SHARE:
        words += (
            f"; it is in {pieces} pieces, {100 * loose:.0f} % of it outside the largest: look at "
            f"_rgba.png. If they don't belong to it, try another --background, or {BY_HAND}"
        )
    return words


def loose_share(mask: np.ndarray) -> tuple[int, float]:
    """A mask's pieces (of 0.5 % of it or more), and which share of it is outside the largest."""
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not areas.size:
        return 0, 0.0
    return int((areas >= 0.005 * areas.sum()).sum()), float(1 - areas.max() / areas.sum())


def recentre(rgba: Image.Image, size: int, border_ratio: float) -> Image.Image:
    """The subject in the middle of size x size pixels, `border_ratio` of a side being margin.

    Raises:
        PreprocessError: no opaque pixel.
    """
    box = rgba.getchannel("A").point(lambda a: 255 * (a > 12)).getbbox()
    if box is None:
        raise PreprocessError(
            "The picture is transparent everywhere: there is no subject to recentre."
        )
    subject = premultiplied(rgba.crop(box))
    scale = size * (1 - border_ratio) / max(subject.shape[:2])
    height, width = (max(1, round(scale * side)) for side in subject.shape[:2])
    resized = np.dstack(
        [
            np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS))
            for channel in np.moveaxis(subject, -1, 0)
        ]
    )
    canvas = np.zeros((size, size, 4), np.float32)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = resized
    return straight(canvas)


def fit(rgba: Image.Image, size: int) -> Image.Image:
    """The whole picture, padded with transparency to a square and resized to size x size."""
    side = max(rgba.size)
    square = Image.new("RGBA", (side, side))
    square.paste(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    channels = np.moveaxis(premultiplied(square), -1, 0)
    resized = [
        np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.LANCZOS))
        for c in channels
    ]
    return straight(np.dstack(resized))


def premultiplied(rgba: Image.Image) -> np.ndarray:
    """[H W 4] float32 with colour times alpha, the form in which pictures may be resized."""
    values = np.asarray(rgba, np.float32)
    return np.concatenate([values[..., :3] * values[..., 3:] / 255, values[..., 3:]], axis=-1)


def straight(values: np.ndarray) -> Image.Image:
    """The inverse of `premultiplied`."""
    alpha = values[..., 3:].clip(0, 255)
    colour = np.divide(
        values[..., :3] * 255, alpha, out=np.zeros_like(values[..., :3]), where=alpha > 0.5
    )
    return Image.fromarray(
        np.concatenate([colour, alpha], -1).round().clip(0, 255).astype(np.uint8)
    )


# ----------------------------------------------------------------- depth, normals, caption


def check_model(option: str, model: str) -> None:
    """A PreprocessError if a model is neither a folder nor could be a name on the hub."""
    if not Path(model).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model):
        what = "it is a file" if Path(model).is_file() else "there is no such folder"
        raise PreprocessError(
            f"{option}: {model} can't be used here: {what}. Pass a folder with a model, or its "
            f"name on the hub, such as {DEPTH_MODEL}."
        )


def hub_answers() -> bool:
    """Whether Hugging Face's hub can be reached: one question of 5 s at most.

    The loaders ask for many files and try each for half a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # requests' or httpx's own families; HF_HUB_OFFLINE
        return False
    return True


def only_local(model: str) -> bool:
    """Whether a model, a folder or a name on the hub, has to be loaded from files that are here.

    Raises:
        FileNotFoundError: it has to, and there are none.
    """
    if Path(model).is_dir():
        return True
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    if hub_answers():
        return False
    try:
        snapshot_download(model, local_files_only=True)
    except HFValidationError as error:
        raise FileNotFoundError("there is no such folder") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{constants.ENDPOINT} can't be reached, and it is neither a folder nor in "
            f"{constants.HF_HUB_CACHE}"
        ) from error
    return True


def estimate_depth(rgb: Image.Image, model: str) -> np.ndarray:
    """Relative inverse depth [H W], larger is nearer, by transformers' depth estimation."""
    local = {"local_files_only": only_local(model), "trust_remote_code": False}
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor = AutoImageProcessor.from_pretrained(model, **local)
    network = AutoModelForDepthEstimation.from_pretrained(model, **local).eval()
    with torch.no_grad():
        depth = network(**processor(rgb, return_tensors="pt")).predicted_depth[0].float().numpy()
    kind = getattr(network.config, "depth_estimation_type", None)
    if kind == "metric" or network.config.model_type in ("glpn", "zoedepth"):  # metres
        depth = 1 / depth.clip(1e-3)
    return np.asarray(Image.fromarray(depth).resize(rgb.size, Image.Resampling.BICUBIC))


def depth_picture(depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[H W] uint8: 1..255 from farthest to nearest inside the mask, 0 outside."""
    inside = depth[mask]
    near, far = inside.max(), inside.min()
    scaled = 1 + 254 * (depth - far) / max(near - far, 1e-12)
    return np.where(mask, scaled.round(), 0).clip(0, 255).astype(np.uint8)


def normals_from_depth(depth: np.ndarray, mask: np.ndarray, relief: float = 0.5) -> np.ndarray:
    """Unit normals [H W 3] (x right, y up, z to the camera) of the height field of a depth map.

    Relative depth has no scale: the mask's depth range is taken as `relief` of its width.
    """
    import cv2

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    inside = depth[mask]
    height = (depth - inside.min()) / max(np.ptp(inside), 1e-12) * relief * extent
    height = np.where(mask, height, 0).astype(np.float32)
    weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)
    height = cv2.GaussianBlur(height, (0, 0), 1.5) / np.maximum(weight, 1e-6)  # blurred inside only
    slope_y, slope_x = np.gradient(height)
    normal = np.dstack([-slope_x, slope_y, np.ones_like(height)])
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def estimate_normals(rgb: Image.Image, model: str) -> np.ndarray:
    """Unit normals [H W 3] by a diffusers normals pipeline (Marigold, for example)."""
    local = {"local_files_only": only_local(model), "trust_remote_code": False}
    import torch
    from diffusers import MarigoldNormalsPipeline

    pipeline = MarigoldNormalsPipeline.from_pretrained(model, **local)
    pipeline.set_progress_bar_config(disable=True)
    prediction = pipeline(rgb, generator=torch.Generator().manual_seed(0)).prediction[0]
    return prediction / np.linalg.norm(prediction, axis=-1, keepdims=True).clip(1e-6)


def caption(rgb: Image.Image, model: str) -> str:
    """One sentence about the picture, by BLIP."""
    local = {"local_files_only": only_local(model), "trust_remote_code": False}
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor = BlipProcessor.from_pretrained(model, **local)
    network = BlipForConditionalGeneration.from_pretrained(model, **local).eval()
    tokens = network.generate(**processor(rgb, return_tensors="pt"), max_new_tokens=30)
    return processor.decode(tokens[0], skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------------- writing


def first_line(error: BaseException) -> str:
    """The error's message in one line, with its name where the message alone says little."""
    line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, (OSError, ValueError, ImportError, PreprocessError)) and line:
        return line
    return f"{type(error).__name__}: {line}"


def optional(step: str, asked: bool, function: Callable, rgb: Image.Image, model: str):
    """function(rgb, model), or None with a line of explanation when the model can't be had.

    Raises:
        PreprocessError: the same, when the model was asked for by name.
    """
    try:
        return function(rgb, model)
    except Exception as error:  # the libraries' own errors about files, versions and kinds of model
        reason = f"{model} can't be used here: {first_line(error)}"
        if asked:
            raise PreprocessError(f"{step}: {reason}") from error
        print(f"{step}: skipped, {reason}")
        return None


def write(path: Path, content: Image.Image | str, source: Path) -> None:
    """Writes whole or not at all, and never over the photo it was made from.

    Raises:
        PreprocessError: path is the input, or can't be written.
    """
    if path.exists() and source.exists() and path.samefile(source):
        raise PreprocessError(
            f"{path.name} would overwrite its own input: rename the photo, or pass "
            "--use_existing_background."
        )
    # as files/whole.py does it; this script also runs where the package can't be imported
    part = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with part.open("xb") as file:
            if isinstance(content, str):
                file.write(f"{content}\n".encode())
            else:
                content.save(file, "PNG")
        os.replace(part, path)
    except OSError as error:
        raise PreprocessError(
            f"{path} can't be written ({error.strerror or error}). The results go beside "
            "the photo: copy it into a folder in which you may write."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {path}")


def preprocess(
    photo: Path,
    *,
    size: int = 512,
    border_ratio: float = 0.2,
    background: str = "auto",
    dont_recenter: bool = False,
    use_existing_background: bool = False,
    need_caption: bool = False,
    depth_model: str | None = None,
    normal_model: str | None = None,
    caption_model: str | None = None,
) -> dict[str, Path]:
    """Writes the files beside the photo; returns the paths of those written, by kind.

    Raises:
        PreprocessError: an unusable input, an option out of range, a named model that can't load.
    """
    if not MIN_SIDE <= size <= LARGEST_SIDE:
        raise PreprocessError(f"--size {size}: from {MIN_SIDE} to {LARGEST_SIDE} pixels.")
    if not 0 <= border_ratio < 1:
        raise PreprocessError(f"--border_ratio {border_ratio}: from 0 (no margin) to under 1.")
    for option, model in {
        "depth": depth_model,
        "normal": normal_model,
        "caption": caption_model,
    }.items():
        if model is not None:
            check_model(f"--{option}_model", model)
    names = {
        "rgba": "_rgba.png",
        "depth": "_depth.png",
        "normal": "_normal.png",
        "caption": "_caption.txt",
    }
    paths = {kind: photo.parent / name for kind, name in names.items()}
    written = {}

    def save(kind: str, content: Image.Image | str) -> None:
        write(paths[kind], content, photo)
        written[kind] = paths[kind]

    if use_existing_background:
        if not photo.is_file():
            raise PreprocessError(f"There is no image at {photo}.")
        if not paths["rgba"].is_file():
            raise PreprocessError(f"--use_existing_background: there is no {paths['rgba']}.")
        rgba = read_photo(paths["rgba"])
        if rgba.mode != "RGBA":
            raise PreprocessError(
                f"--use_existing_background: {paths['rgba']} has no transparent background."
            )
        check_not_empty(np.asarray(rgba)[..., 3] / 255)
    else:
        rgba = cut_out(read_photo(photo), background)
        rgba = fit(rgba, size) if dont_recenter else recentre(rgba, size, border_ratio)
    mask = np.asarray(rgba)[..., 3] > 127
    if not mask.any():
        raise PreprocessError("The picture has no opaque pixel: there is no subject.")
    if mask.mean() < SMALLEST_SHARE:
        raise PreprocessError(
            f"Of {size} x {size} pixels the subject would cover {mask.sum()}: that is too few. "
            "Lower --border_ratio, or raise --size."
        )
    if not use_existing_background:
        save("rgba", rgba)
    on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")

    depth = optional(
        "depth", depth_model is not None, estimate_depth, on_white, depth_model or DEPTH_MODEL
    )
    if depth is not None:
        save("depth", Image.fromarray(depth_picture(depth, mask)))
    if normal_model is not None:
        normal = optional("normals", True, estimate_normals, on_white, normal_model)
    else:
        normal = None if depth is None else normals_from_depth(depth, mask)
    if normal is not None:
        picture = np.where(mask[..., None], 127.5 * (normal + 1), 0).round().astype(np.uint8)
        save("normal", Image.fromarray(picture))
    if need_caption:
        asked = caption_model is not None
        text = optional("caption", asked, caption, on_white, caption_model or CAPTION_MODEL)
        if text:
            save("caption", text)
    return written


def model_name(text: str) -> str:
    """A folder, with `~` as a shell reads it, or a name on the hub."""
    return os.path.expanduser(text_with_content(text))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("image", type=path, help="the photo; the results are written beside it")
    p.add_argument(
        "--size",
        type=whole_number(MIN_SIDE, LARGEST_SIDE),
        default=512,
        help="side of the square results in pixels",
    )
    p.add_argument(
        "--border_ratio",
        type=finite_number(0, below=1),
        default=0.2,
        help="share of the side that is margin",
    )
    p.add_argument(
        "--background", choices=["auto", *REMOVERS], default="auto", help="what removes it"
    )
    p.add_argument("--dont_recenter", action="store_true", help="keep the subject where it is")
    p.add_argument(
        "--use_existing_background",
        action="store_true",
        help="keep the _rgba.png that is there, as it is",
    )
    p.add_argument("--need_caption", action="store_true", help="also write _caption.txt")
    p.add_argument(
        "--depth_model", type=model_name, help=f"transformers depth model (default {DEPTH_MODEL})"
    )
    p.add_argument(
        "--normal_model",
        type=model_name,
        help="diffusers normals model; without it normals come from depth",
    )
    p.add_argument("--caption_model", type=model_name, help=f"BLIP model (default {CAPTION_MODEL})")
    return p


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    try:
        preprocess(options.pop("image"), **options)
    except PreprocessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while libraries were loaded, or a model at work
        sys.exit(130)
