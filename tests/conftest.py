"""Shapes in signatures are checked while tests run; shared fixtures."""

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py

sys.path.append(str(Path(__file__).parents[1] / "host"))

import threestudio.utils.typechecking  # noqa: F401  (the checker has to be there before it is named)
from jaxtyping import install_import_hook

install_import_hook("animate124", "threestudio.utils.typechecking.typechecked")

import animate124  # through the hook
import pytest
import torch
from animate124.pretrained import models

# Files that train, start processes or run whole scripts: `make quick` leaves them out. Single tests
# of other files have the marker themselves.
SLOW = """
    cases values animate before benchmarks configs cuda_program evaluate fit fork_server launch
    method original pipeline_plan pipeline_process pipeline_run stages textual_inversion threestudio
    toyworld_characters toyworld_motions toyworld_priors wheel
""".split()  # noqa: SIM905


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def priors_in_float32():
    """On a CPU, whatever it multiplies: what is compared here is compared exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session")
def random_priors(tmp_path_factory):
    """Folder with random tiny models: sd, zero123, text-to-video, controlnet-tile."""
    from animate124.toyworld.random_priors import make_random_priors

    out = tmp_path_factory.mktemp("priors")
    make_random_priors(out, seed=0)
    return out


@pytest.fixture
def photo(tmp_path):
    """The toy panda alone in a folder; nothing is installed or cached that could help."""
    panda = Path(animate124.__file__).parent / "load" / "toy-panda" / "image.png"
    return Path(shutil.copy(panda, tmp_path))
