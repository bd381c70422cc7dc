"""An unmodified threestudio on a machine without CUDA, arranged from outside.

    python on_cpu.py CHECKOUT CHECKOUT/launch.py --config ... --train ...
    python on_cpu.py CHECKOUT -m pytest ...

runs a script or module as it stands, after `prepare(CHECKOUT)`: packages that only a CUDA machine
can build are absent but importable, threestudio's `get_device` answers the CPU, and Lightning's
Trainer takes the CPU when launch.py asks for all GPUs. What our extension computes with is
untouched."""

import importlib.machinery
import runpy
import sys
import types
from pathlib import Path

# imported by threestudio's own modules; none of them is used by this extension on a CPU
CUDA_ONLY = ["tinycudann", "nvdiffrast", "nvdiffrast.torch", "envlight", "pysdf", "igl"]
CUDA_ONLY += ["controlnet_aux"]
_KEPT = []  # declared operators live as long as their library object


class AbsentModule(types.ModuleType):
    """Gives any name that is imported from it; using one is an error that says so."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__path__ = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args, **kwargs):
            raise NotImplementedError(f"{self.__name__}.{name} needs CUDA; this is a CPU test run.")

        return refuse


def declare_torchvision_operators() -> None:
    """PyPI's torchvision is a CUDA build. Beside a CPU torch its operators can't load, so that its
    import fails unless the two that its Python code names are declared."""
    import torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


def use_the_cpu() -> None:
    """Replaces `get_device` wherever threestudio has copied the name, and Lightning's Trainer."""
    import pytorch_lightning
    import threestudio.utils.misc as misc
    import torch

    original = misc.get_device

    def get_device():
        return torch.device("cpu")

    for module in list(sys.modules.values()):
        if vars(module).get("get_device") is original:
            module.get_device = get_device

    class CpuTrainer(pytorch_lightning.Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"accelerator": "cpu", "devices": 1})

    pytorch_lightning.Trainer = CpuTrainer


def lend_type_checks() -> None:
    """tests/conftest.py checks shapes with the bundled host's `threestudio.utils.typechecking`."""
    import threestudio.utils

    bundled = Path(__file__).resolve().parents[2] / "host" / "threestudio" / "utils"
    threestudio.utils.__path__.append(str(bundled))


def prepare(checkout: str | Path) -> None:
    """Imports the checkout's threestudio, ready for a CPU."""
    for name in CUDA_ONLY:
        sys.modules[name] = AbsentModule(name)
    sys.modules["nvdiffrast"].torch = sys.modules["nvdiffrast.torch"]
    sys.modules["tinycudann"].free_temporary_memory = lambda: None  # part of every cleanup()
    sys.path.insert(0, str(checkout))
    declare_torchvision_operators()
    use_the_cpu()


if __name__ == "__main__":
    _, root, what, *arguments = sys.argv
    prepare(root)
    if what == "-m":
        lend_type_checks()
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *arguments]
        runpy.run_path(what, run_name="__main__")
