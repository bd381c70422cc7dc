"""Configs of the original Animate124, read as they stand: what its keys are called here.

A key of `MOVED` gives its value to its counterpart, with a line that says so. A key of `LEFT_OUT`
means nothing here; all that a config has are named in one warning. Any other key stays where it is,
for the error that unknown keys get. A section's own class comes first: what it reads is not ours to
rename (threestudio's own guidances do read `guidance_type`).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import threestudio
from omegaconf import DictConfig, OmegaConf, open_dict

OURS = "animate124-"  # what the names of our modules begin with
CLIPS = "data.prob_single_view_video"
RINGS = "data.prob_multi_view"
STATIC = "data.single_view.static"
MOVED = {  # the original's key: ours
    "data.image.random_camera": "data.single_view",  # each of its keys
    STATIC: CLIPS,  # true: no clips, whatever the original's probabilities are
    "data.single_view.prob_single_view_video": CLIPS,
    "system.prob_single_view_video": CLIPS,
    "data.single_view.prob_multi_view": RINGS,
    "system.prob_multi_view": RINGS,
}

ANY = ("*",)
LEFT_OUT: dict[str, tuple] = {  # key: the values that ask for what is done here anyway
    "data.single_view.simultan": ANY,  # a clip that starts at time 0 brings the image along
    "data.*.resolution_milestones": ([],),
    "data.*.progressive_until": (0,),
    "data.*.rays_d_normalize": (True,),
    "data.*.eval_batch_size": (1,),
    "data.*.light_*": ANY,
    "data.image.batch_size": (1,),
    "data.image.use_random_camera": (True,),
    "data.image.requires_*": ANY,
    "data.image.rays_noise_scale": ANY,
    "system.stage": ANY,
    "system.simultan": ANY,
    "system.sr": ANY,
    "system.prob_*": ANY,  # a system without a data module of ours
    "system.loss.lambda_sd_img": (0,),
    "system.geometry.pos_encoding_config.num_frames": ANY,  # time is continuous
    "system.geometry.isosurface_deformable_grid": (False,),
    "system.geometry.anneal_density_blob_std_config": (None,),
    "system.material.mlp_network_config": (None,),
    "system.material.input_feature_dims": (None,),
    "system.renderer.estimator": ("occgrid",),
    "system.prompt_processor*.spawn": ANY,  # prompts are encoded in this process
    "system.prompt_processor*.use_perp_neg": (False,),
    "system.prompt_processor*.use_prompt_debiasing": (False,),
    "system.guidance*.guidance_type": ("sds",),
    "system.guidance*.use_img_loss": ANY,  # its weight lambda_sd_img counts
    "system.guidance*.sqrt_anneal": (False,),
    "system.guidance*.token_merging": (False,),
    "system.guidance*.enable_*": ANY,
    "system.guidance*.return_rgb_*": ANY,
    "system.guidance*.vsd_*": ANY,  # read with guidance_type: vsd alone
}


class Found(NamedTuple):
    """A key that a config has."""

    section: DictConfig  # that it stands in
    key: Any  # as the section has it
    path: str  # with dots

    @property
    def value(self) -> Any:
        value = self.section[self.key]
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def adopt(cfg: Mapping[str, Any] | None, section: str) -> DictConfig:
    """`cfg`, a config's section "data" or "system", with our key names.

    The config that it is a part of is changed in place, both of its sections where they are ours:
    so a warning comes once, and the trial's parsed.yaml has our names. Raises a ValueError where a
    key of the original asks for what isn't done here, or two of them contradict each other.
    """
    ours: Any = cfg if OmegaConf.is_config(cfg) else OmegaConf.create(dict(cfg or {}))
    root = {section: ours}
    whole = ours._get_root()
    if section in whole and whole[section] is ours:
        for name in ("data", "system"):
            if str(whole.get(f"{name}_type")).startswith(OURS):
                root[name] = whole[name]
    with contextlib.ExitStack() as stack:
        for part in root.values():
            stack.enter_context(open_dict(part))
        move(root)
        leave_out(root)
    return ours


def move(root: Mapping[str, DictConfig]) -> None:
    """Gives the values of MOVED's keys to their counterparts; one that has a value keeps it."""
    givers: dict[str, str] = {}  # counterpart: the original's key that its value is from
    for pattern, ours in MOVED.items():
        for found in list(keys(root, pattern)):
            if ours.partition(".")[0] not in root:
                continue
            inner = found.section[found.key]
            if OmegaConf.is_dict(inner):
                for key in inner:
                    give(root, Found(inner, key, f"{found.path}.{key}"), f"{ours}.{key}", givers)
            elif found.path != STATIC or found.value is True:
                give(root, found, ours, givers)
            del found.section[found.key]


def give(root: Mapping[str, DictConfig], found: Found, ours: str, givers: dict[str, str]) -> None:
    """Gives a key's value to its counterpart."""
    value = 0.0 if found.path == STATIC else found.value
    name, *parts, key = ours.split(".")
    target = root[name]
    for part in parts:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
    there, giver = target.get(key), givers.get(ours)
    if there is None:
        target[key] = value
        givers[ours] = found.path
        threestudio.info(f"{found.path}={found.value} is read as {ours}={value}.")
    elif there != value and giver is None:
        threestudio.warn(f"{found.path}={found.value} is passed over: {ours} is {there}.")
    elif there != value and giver != STATIC:
        raise ValueError(
            f"{giver} says {there}, {found.path} says {value}, and both mean {ours} here. "
            f"Say which one with {ours}={there} or {ours}={value}."
        )


def leave_out(root: Mapping[str, DictConfig]) -> None:
    """Takes LEFT_OUT's keys away and names them in a warning."""
    named = []
    for pattern, values in LEFT_OUT.items():
        for found in list(keys(root, pattern)):
            if values != ANY and found.value not in values:
                raise ValueError(
                    f"{found.path} is {found.value!r}, but only {' or '.join(map(repr, values))} "
                    "is done here: give it that value, or leave the key out."
                )
            named.append(f"{found.path} ({found.value})")
            del found.section[found.key]
    if named:
        threestudio.warn(f"These keys of the original mean nothing here: {', '.join(named)}.")


def keys(root: Mapping[str, DictConfig], pattern: str) -> Iterator[Found]:
    """The keys of a config that a pattern such as `system.guidance*.vsd_*` names."""
    name, *parts = pattern.split(".")
    if name in root:
        for found in matches(root[name], parts, name):
            if not is_read(root[name], found.path):
                yield found


def matches(section: DictConfig, parts: Sequence[str], path: str) -> Iterator[Found]:
    """Those below one section."""
    for key in section:
        if not fnmatchcase(str(key), parts[0]) or OmegaConf.is_missing(section, key):
            continue
        if len(parts) == 1:
            yield Found(section, key, f"{path}.{key}")
        elif OmegaConf.is_dict(section[key]):
            yield from matches(section[key], parts[1:], f"{path}.{key}")


def is_read(section: DictConfig, path: str) -> bool:
    """Whether the key belongs to a module that has it, or that isn't ours to know better."""
    name, part, *rest = path.split(".")
    kind = section.get(f"{part}_type") if rest else None
    if name != "system" or not kind:
        return False
    try:
        module = threestudio.find(kind)
    except KeyError:  # said where it is built
        return True
    known = {field.name for field in dataclasses.fields(module.Config)}
    return rest[0] in known and (len(rest) == 1 or not kind.startswith(OURS))
