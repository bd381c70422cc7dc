"""The README's moving picture, of the quickstart's result: the photo, the reference view in motion,
the camera that turns while time runs, the camera that turns while time stands still.

python benchmarks/moving_picture.py outputs/toy-panda-a_panda_is_dancing docs/toy-panda.webp
"""

import argparse
from pathlib import Path

import imageio.v3 as iio
from PIL import Image

VIDEOS = ("reference_view", "animation", "turntable")  # a result's


def frames(video: Path, count: int) -> list[Image.Image]:
    """So many frames; a shorter video begins again."""
    pictures = [Image.fromarray(frame) for frame in iio.imread(video)]
    return [pictures[i % len(pictures)] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scene", type=Path, help="folder of a scene that is done")
    parser.add_argument("out", type=Path, help="animated .webp to write")
    parser.add_argument("--fps", type=int, default=16, help="as the result's videos")
    args = parser.parse_args()

    result = args.scene / "result"
    count = len(iio.imread(result / "animation.mp4"))
    rows = list(zip(*(frames(result / f"{name}.mp4", count) for name in VIDEOS), strict=True))
    width, height = rows[0][0].size
    photo = Image.open(args.scene / "input" / "photo.png").convert("RGB").resize((width, height))
    pictures = []
    for row in rows:
        picture = Image.new("RGB", (width * (1 + len(row)), height))
        for column, part in enumerate((photo, *row)):
            picture.paste(part, (column * width, 0))
        pictures.append(picture)
    pictures[0].save(
        args.out,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / args.fps),
        loop=0,
        quality=85,
        method=6,
    )


if __name__ == "__main__":
    main()
