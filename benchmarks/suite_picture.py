"""The README's sheet of the suite: sheets of some of its characters, two by two.

python -m animate124.evaluation.suite --suite --budget full --out SUITE
python benchmarks/suite_picture.py SUITE/deformation docs/toy-suite.png fox frog duck panda
"""

import argparse
from pathlib import Path

from PIL import Image

GAP = 16  # pixels between sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", type=Path, help="a field of its --out, with a folder a species")
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("species", nargs="+", help="whose sheets, row by row")
    args = parser.parse_args()

    sheets = [Image.open(args.suite / name / "sheet.png").convert("RGB") for name in args.species]
    width, height = sheets[0].width + GAP, sheets[0].height + GAP
    rows = -(-len(sheets) // 2)
    picture = Image.new("RGB", (2 * width - GAP, rows * height - GAP), "white")
    for i, sheet in enumerate(sheets):
        picture.paste(sheet, (i % 2 * width, i // 2 * height))
    # few colours are left, each near its own, and the file is a third
    picture.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
