"""What the tests of preprocess/ share."""

from pathlib import Path

import animate124
import numpy as np
from animate124.preprocess import command
from PIL import Image

ROOT = Path(animate124.__file__).parent
PANDA = ROOT / "load" / "toy-panda"


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def alpha_mask(path):
    return np.asarray(Image.open(path))[..., 3] > 127


def run(*arguments):
    return command.main([str(a) for a in arguments])


def pixels(path):
    return np.asarray(Image.open(path))


def on_disk(folder):
    return {path.name for path in folder.iterdir()}


def saved(path, image, **options):
    image.save(path, **options)
    return path
