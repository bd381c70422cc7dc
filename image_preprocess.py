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
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
CAPTION_MODEL = "Salesforce/blip-image-captioning-base"
MIN_SIDE = 16  # pixels; below this there is nothing to cut out
WORKING_SIDE = 2048  # pixels; larger photos are reduced to this before anything else


class PreprocessError(ValueError):
    """An input that can't be used; the message says what came and what to try."""


# ---------------------------------------------------------------------------------- reading


def read_photo(path: Path) -> Image.Image:
    """The photo upright (EXIF), 8 bit, as RGB, or RGBA if it really has transparency.

    Raises:
        PreprocessError: missing, unreadable or tiny file.
    """
    if not path.is_file():
        raise PreprocessError(
            f"There is no image at {path}. Pass the path of a photo (jpg, png, webp)."
        )
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        image.load()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise PreprocessError(
            f"{path} can't be read as an image ({error}). Re-save it as PNG."
        ) from error
    if min(image.size) < MIN_SIDE:
        raise PreprocessError(
            f"{path} is {image.width} x {image.height} pixels; {MIN_SIDE} a side is the least."
        )
    if image.mode.startswith(
        ("I", "F")
    ):  # 16 bit and float greyscale: PIL's own convert() clips them
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(values.max(), 1e-12)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() == 255:
            image = image.convert("RGB")
    else:
        image = image.convert("RGB")
    if max(image.size) > WORKING_SIDE:
        image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return image


# ------------------------------------------------------------------------------- background


def border_distance(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel's colour is from those of the border -> (distance [H W], border mask).

    The border's Lab colours are clustered; a cluster that fills under 4 % of it doesn't count as
    background, so that a subject cut off by the border is not taken for it. Distances are in
    standard deviations of the nearest cluster.
    """
    import cv2

    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    width = max(2, round(0.03 * min(lab.shape[:2])))
    border = np.ones(lab.shape[:2], bool)
    border[width:-width, width:-width] = False
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    pixels = lab[border]
    _, labels, centres = cv2.kmeans(pixels, 8, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    distance = np.full(border.shape, np.inf, np.float32)
    for k, centre in enumerate(centres):
        own = pixels[labels[:, 0] == k]
        if len(own) >= 0.04 * len(pixels):
            spread = np.maximum(own.std(0), 3.0)  # 3: a flat background still has noise
            distance = np.minimum(distance, np.linalg.norm((lab - centre) / spread, axis=-1))
    return distance, border


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


def grabcut(rgb: np.ndarray, working_side: int = 384) -> np.ndarray:
    """Alpha [H W] of the subject by GrabCut (Rother et al. 2004), started from `border_distance`;
    before a background of one colour by `one_colour_border`.

    Needs no weights. The start favours the middle of the picture; specks and pinholes are removed.
    """
    import cv2

    plain = one_colour_border(rgb)
    if plain is not None:
        return plain.astype(np.float32)
    height, width = rgb.shape[:2]
    scale = min(1.0, working_side / max(height, width))
    small_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(rgb, small_size, interpolation=cv2.INTER_AREA)
    distance, border = border_distance(small)
    h, w = distance.shape
    y, x = np.mgrid[0:h, 0:w]
    off_centre = 2 * np.maximum(abs(x / w - 0.5), abs(y / h - 0.5))
    score = np.minimum(cv2.GaussianBlur(distance, (0, 0), 1), 20) / 20
    score = (255 * score * np.clip(1.5 - off_centre, 0.3, 1)).astype(np.uint8)
    threshold, _ = cv2.threshold(score, 0, 255, cv2.THRESH_OTSU)
    seed = np.where(score > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    seed[border & (score <= threshold)] = cv2.GC_BGD
    if not (seed == cv2.GC_PR_FGD).any():
        return np.zeros((height, width), np.float32)
    cv2.grabCut(
        small[..., ::-1].copy(),
        seed,
        None,
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        6,
        cv2.GC_INIT_WITH_MASK,
    )
    subject = tidy(np.isin(seed, (cv2.GC_FGD, cv2.GC_PR_FGD)))
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
    """Alpha by rembg's default model (U^2-Net)."""
    import rembg

    return np.asarray(rembg.remove(Image.fromarray(rgb), only_mask=True), np.float32) / 255


def by_backgroundremover(rgb: np.ndarray) -> np.ndarray:
    """Alpha by the backgroundremover package (U^2-Net)."""
    import io

    from backgroundremover.bg import remove

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    cut = Image.open(io.BytesIO(remove(buffer.getvalue(), model_name="u2net")))
    return np.asarray(cut.convert("RGBA"), np.float32)[..., 3] / 255


REMOVERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "backgroundremover": by_backgroundremover,
    "rembg": by_rembg,
    "grabcut": grabcut,
}


def cut_out(image: Image.Image, background: str = "auto") -> Image.Image:
    """RGBA with the background removed; a photo that is transparent already keeps its alpha.

    `auto` takes the first remover that is installed and whose weights can be had.

    Raises:
        PreprocessError: nothing was found, or the remover that was asked for isn't there.
    """
    if image.mode == "RGBA":
        return image
    rgb = np.asarray(image)
    names = REMOVERS if background == "auto" else (background,)
    for name in names:
        if name != "grabcut" and importlib.util.find_spec(name) is None:
            if background != "auto":
                raise PreprocessError(f"--background {name} needs `pip install {name}`.")
            continue
        try:
            alpha = REMOVERS[name](rgb)
        except (OSError, RuntimeError, ImportError) as error:  # weights that can't be fetched
            if background != "auto":
                raise PreprocessError(f"--background {name} failed: {error}") from error
            print(f"background: {name} can't run here ({first_line(error)}); trying the next")
            continue
        share = float((alpha > 0.5).mean())
        if not 0.002 < share < 0.98:
            raise PreprocessError(
                f"The subject that {name} found covers {100 * share:.1f} % of the picture. Try "
                f"another --background ({', '.join(REMOVERS)}), a plainer photo, or cut it out "
                "by hand, save it as _rgba.png beside the photo and pass --use_existing_background."
            )
        print(f"background: removed by {name}; the subject covers {100 * share:.0f} %")
        return Image.fromarray(np.dstack([rgb, (alpha * 255).round().astype(np.uint8)]))
    raise AssertionError("GrabCut needs nothing but OpenCV")


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


def estimate_depth(rgb: Image.Image, model: str) -> np.ndarray:
    """Relative inverse depth [H W], larger is nearer, by transformers' depth estimation."""
    from transformers import pipeline

    estimator = pipeline("depth-estimation", model=model)
    depth = np.asarray(estimator(rgb)["predicted_depth"], np.float32).squeeze()
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
    from diffusers import MarigoldNormalsPipeline

    prediction = MarigoldNormalsPipeline.from_pretrained(model)(rgb).prediction[0]
    return prediction / np.linalg.norm(prediction, axis=-1, keepdims=True).clip(1e-6)


def caption(rgb: Image.Image, model: str) -> str:
    """One sentence about the picture, by BLIP."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor = BlipProcessor.from_pretrained(model)
    network = BlipForConditionalGeneration.from_pretrained(model)
    tokens = network.generate(**processor(rgb, return_tensors="pt"), max_new_tokens=30)
    return processor.decode(tokens[0], skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------------- writing


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def optional(step: str, asked: bool, function: Callable, *arguments):
    """function(*arguments), or None with a line of explanation when its model can't be had.

    Raises:
        PreprocessError: the same, when the model was asked for by name.
    """
    try:
        return function(*arguments)
    except (OSError, ImportError, ValueError) as error:
        if asked:
            raise PreprocessError(
                f"{step}: {arguments[-1]} can't be loaded: {first_line(error)}"
            ) from error
        print(f"{step}: skipped, {arguments[-1]} can't be loaded here ({first_line(error)})")
        return None


def write(path: Path, content: Image.Image | str, source: Path) -> None:
    """Writes whole or not at all, and never over the photo it was made from.

    Raises:
        PreprocessError: path is the input.
    """
    if path.exists() and source.exists() and path.samefile(source):
        raise PreprocessError(
            f"{path.name} would overwrite its own input: rename the photo, or pass "
            "--use_existing_background."
        )
    part = path.with_name(f".{path.name}.part")
    if isinstance(content, str):
        part.write_text(content + "\n", encoding="utf-8")
    else:
        content.save(part, "PNG")
    os.replace(part, path)
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
    if size < MIN_SIDE:
        raise PreprocessError(f"--size {size}: at least {MIN_SIDE} pixels.")
    if not 0 <= border_ratio < 1:
        raise PreprocessError(f"--border_ratio {border_ratio}: from 0 (no margin) to under 1.")
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
        if not paths["rgba"].is_file():
            raise PreprocessError(f"--use_existing_background: there is no {paths['rgba']}.")
        rgba = read_photo(paths["rgba"])
        if rgba.mode != "RGBA":
            raise PreprocessError(
                f"--use_existing_background: {paths['rgba']} has no transparency."
            )
    else:
        rgba = cut_out(read_photo(photo), background)
        rgba = fit(rgba, size) if dont_recenter else recentre(rgba, size, border_ratio)
        save("rgba", rgba)
    mask = np.asarray(rgba)[..., 3] > 127
    if not mask.any():
        raise PreprocessError(f"{paths['rgba']} has no opaque pixel: there is no subject.")
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("image", type=Path, help="the photo; the results are written beside it")
    p.add_argument("--size", type=int, default=512, help="side of the square results in pixels")
    p.add_argument(
        "--border_ratio", type=float, default=0.2, help="share of the side that is margin"
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
    p.add_argument("--depth_model", help=f"transformers depth model (default {DEPTH_MODEL})")
    p.add_argument(
        "--normal_model", help="diffusers normals model; without it normals come from depth"
    )
    p.add_argument("--caption_model", help=f"BLIP model (default {CAPTION_MODEL})")
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
    sys.exit(main())
