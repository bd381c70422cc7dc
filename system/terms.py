"""The terms of the loss: which view each looks at, what it is made of and what weighs it.

A further guidance is a row of `GUIDANCE_TERMS`: the system's config gets its sections, training
loads it where its weight isn't 0, and the checks and their hints know it.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any, NamedTuple

import threestudio
from threestudio.utils.config import C_max

from . import losses

CLIP, REFERENCE, RANDOM = "clip", "reference", "random_camera"  # the views of a batch


class GuidanceTerm(NamedTuple):
    """What a guidance says of a view."""

    weight: str  # key of `loss`
    view: str  # of the batch
    guidance: str  # attribute and config section of the guidance
    prompt_processor: str | None  # ... and of its prompt processor
    usual: str  # registered name of a guidance that would do


GUIDANCE_TERMS = (
    GuidanceTerm("lambda_sd", RANDOM, "guidance", "prompt_processor", "animate124-image-guidance"),
    GuidanceTerm("lambda_3d_sd", RANDOM, "guidance_3d", None, "animate124-zero123-guidance"),
    GuidanceTerm(
        "lambda_sds_video", CLIP, "guidance", "prompt_processor", "animate124-zeroscope-guidance"
    ),
    GuidanceTerm(
        "lambda_cn_sds",
        CLIP,
        "guidance_cn",
        "prompt_processor_cn",
        "animate124-controlnet-tile-guidance",
    ),
)
REFERENCE_TERMS = {
    "lambda_rgb": lambda out, reference: losses.rgb_on_mask(
        out["comp_rgb"], reference["rgb"], reference["mask"]
    ),
    "lambda_mask": lambda out, reference: losses.mask_bce(out["opacity"], reference["mask"]),
}
REGULARISERS = {  # weight: loss, and the render's outputs that it takes
    "lambda_normal_smoothness_2d": (losses.normal_smoothness_2d, ("comp_normal",)),
    "lambda_orient": (losses.orientation, ("weights", "normal", "t_dirs", "opacity")),
    "lambda_sparsity": (losses.sparsity, ("opacity",)),
    "lambda_opaque": (losses.opaque, ("opacity",)),
    "lambda_z_variance": (losses.z_variance, ("z_variance", "opacity")),
    "lambda_tv": (losses.total_variation, ("comp_rgb",)),
}
PER_SAMPLE = ("weights", "normal", "t_dirs")  # of a render's outputs: a row a sample
# weight: what `geometry.rigidity` calls it, of a scene that a deformation moves
RIGIDITY_TERMS = {"lambda_arap": "arap", "lambda_fold": "fold"}


def weights() -> list[str]:
    """The keys of `loss`."""
    guided = (term.weight for term in GUIDANCE_TERMS)
    return [*REFERENCE_TERMS, *guided, *REGULARISERS, *RIGIDITY_TERMS]


def guidances() -> list[str]:
    """Their attributes and config sections, each once."""
    return list(dict.fromkeys(term.guidance for term in GUIDANCE_TERMS))


def priors() -> list[str]:
    """The prompt processors', then the guidances': the order in which training loads them."""
    named = (term.prompt_processor for term in GUIDANCE_TERMS if term.prompt_processor)
    return [*dict.fromkeys(named), *guidances()]


def with_priors(config: type) -> type:
    """The dataclass with two fields for each prior that it doesn't know yet: `<name>_type`, the
    registered name of its module, and `<name>`, that module's config."""
    known = {f.name for f in fields(config)}
    new: list[tuple[str, type, Any]] = []
    for name in priors():
        if name not in known:
            new.append((f"{name}_type", str, field(default="")))
            new.append((name, dict, field(default_factory=dict)))
    return make_dataclass("Config", new, bases=(config,))


def weighs(weight: str, loss: Mapping[str, Any]) -> bool:
    """Whether a weight is other than 0 at some step."""
    return C_max(loss.get(weight, 0)) != 0


def weighing(loss: Mapping[str, Any]) -> list[GuidanceTerm]:
    """The guidances' terms that count at some step."""
    return [term for term in GUIDANCE_TERMS if weighs(term.weight, loss)]


def of_one_view(loss: Mapping[str, Any], names: Collection[str]) -> set[str]:
    """The guidances among `names` that count at some step and look at what another one looks at."""
    views = [{t.guidance for t in weighing(loss) if t.view == view} for view in (CLIP, RANDOM)]
    ours = [guidances & set(names) for guidances in views]
    return {name for there in ours if len(there) > 1 for name in there}


def used_priors(cfg: Any) -> list[str]:
    """The priors that a system with this config loads to train."""
    used = {name for term in weighing(cfg.loss) for name in (term.guidance, term.prompt_processor)}
    return [name for name in priors() if name in used and cfg[f"{name}_type"]]


# ------------------------------------------------------------------------------- what can't be


def check_weights(loss: Mapping[str, Any]) -> None:
    """A KeyError for each key of `loss` that no term has."""
    for key in loss:
        if key not in weights():
            near = difflib.get_close_matches(key, weights(), n=3) or weights()
            raise KeyError(f"No loss has the weight system.loss.{key}. Close: {', '.join(near)}.")


def check_priors(cfg: Any) -> None:
    """A ValueError for a weight whose loss no prior gives."""
    for term in weighing(cfg.loss):
        if not getattr(cfg, f"{term.guidance}_type"):
            raise ValueError(
                f"system.loss.{term.weight} is {cfg.loss[term.weight]}, but there is no "
                f"system.{term.guidance}_type to give that loss. Name one, such as {term.usual}, "
                "or set the weight to 0."
            )


def check_views(cfg: Any) -> None:
    """A ValueError where a guidance that knows clips alone would be shown single pictures."""
    for term in weighing(cfg.loss):
        kind = cfg[f"{term.guidance}_type"]
        if term.view != CLIP and getattr(threestudio.find(kind), "clips_only", False):
            on_clips = [
                other.weight
                for other in GUIDANCE_TERMS
                if other.guidance == term.guidance and other.view == CLIP
            ]
            raise ValueError(
                f"system.loss.{term.weight} is {cfg.loss[term.weight]}: it weighs what "
                f"system.{term.guidance} says of single pictures, but {kind} looks at clips alone. "
                f"Set it to 0 ({' or '.join(on_clips)} weighs what it says of clips), or name "
                f"another guidance, such as {term.usual}."
            )


def check_clips(loss: Mapping[str, Any], clips: bool) -> None:
    """A ValueError if losses on clips have a weight, but the data module makes no clips."""
    idle = [term.weight for term in weighing(loss) if term.view == CLIP]
    if idle and not clips:
        raise ValueError(
            f"{' and '.join(f'system.loss.{weight}' for weight in idle)} would do nothing: there "
            "are no clips to look at, since data.prob_single_view_video is 0. Give it a "
            "probability, such as 1.0, or set the weight to 0."
        )


def check_lengths(cfg: Any, data: Any) -> None:
    """A ValueError for clips of a length that their guidance's model can't take."""
    length = getattr(getattr(data, "single_view", None), "num_frames", None)
    for term in weighing(cfg.loss):
        check = getattr(threestudio.find(cfg[f"{term.guidance}_type"]), "check_frames", None)
        if term.view == CLIP and length is not None and check is not None:
            check(length)


def check_targets(cfg: Any, data: Any) -> None:
    """A ValueError for targets that are kept for cameras which never come again."""
    views, rings = getattr(data, "single_view", None), getattr(data, "prob_multi_view", 0)
    n_cameras, n_clips = (getattr(views, name, 1) for name in ("n_cameras", "n_clips"))
    comes_again = {RANDOM: n_cameras and not rings, CLIP: n_clips}
    for term in weighing(cfg.loss):
        uses = cfg[term.guidance].get("target_uses", 1)
        if uses > 1 and not comes_again.get(term.view):
            raise ValueError(
                f"system.{term.guidance}.target_uses is {uses}, but the cameras of its pictures "
                "never come again: random cameras do with data.single_view.n_cameras, such as 24, "
                "and data.prob_multi_view=0, clips with data.single_view.n_clips, such as 8. "
                "Otherwise target_uses=1 will do."
            )


def check_any(loss: Mapping[str, Any]) -> None:
    """A ValueError if nothing has a weight."""
    if not any(C_max(loss.get(weight, 0)) for weight in weights()):
        raise ValueError(
            "Every weight of system.loss is 0, so nothing would be trained. Give one, such as "
            "system.loss.lambda_rgb=1000."
        )


def check_normals(loss: Mapping[str, Any]) -> None:
    """A ValueError if a regulariser reads normals, for renders without any."""
    for weight, (_, takes) in REGULARISERS.items():
        if any("normal" in name for name in takes) and weighs(weight, loss):
            raise ValueError(
                f"system.loss.{weight} is {loss[weight]}, but no normals are rendered: set "
                "system.renderer.return_comp_normal=true, or the weight to 0."
            )


def check_rigidity(loss: Mapping[str, Any], deformed: bool) -> None:
    """A ValueError if rigidity has a weight in a scene that no deformation moves."""
    idle = [weight for weight in RIGIDITY_TERMS if weighs(weight, loss)]
    if idle and not deformed:
        raise ValueError(
            f"system.loss.{idle[0]} is {loss[idle[0]]}, but it weighs how a deformation bends the "
            "scene, and this geometry has none. Set it to 0, or "
            "system.geometry.pos_encoding_config.otype=HashGridDeformation."
        )


# -------------------------------------------------------------------------------- of one batch


def views_of(batch: dict[str, Any], given: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The batch's views that a loss of the given weights reads; one at least."""
    readers = {REFERENCE: list(REFERENCE_TERMS), RANDOM: [], CLIP: []}
    for term in GUIDANCE_TERMS:
        readers[term.view].append(term.weight)
    present = {name: batch[name] for name in readers if name in batch}
    regularised = not REGULARISERS.keys().isdisjoint(given)
    read = {name: [key for key in keys if key in given] for name, keys in readers.items()}
    # a video batch has "reference" and "random_camera" only if its clips start from time zero
    needed = [] if CLIP in batch else [REFERENCE, RANDOM]
    missing = [name for name in needed if read[name] and name not in present]
    if missing or not present:
        needs = {name: read[name] for name in missing or readers}
        raise KeyError(
            f"The batch has {sorted(batch)}, but of the views {needs} are needed for these weights "
            "of system.loss. data_type: animate124-image-video-combined-camera-datamodule brings "
            "them; or set those weights to 0."
        )
    wanted = {name: view for name, view in present.items() if read[name] or regularised}
    return wanted or dict([next(iter(present.items()))])


def read_samples(given: Mapping[str, float]) -> bool:
    """Whether a loss of the given weights reads a render's samples, and not its pictures alone."""
    taken = {name for key in REGULARISERS.keys() & given for name in REGULARISERS[key][1]}
    return not taken.isdisjoint(PER_SAMPLE)


def regulariser(key: str, render: dict[str, Any]) -> losses.Scalar:
    """The loss of a weight in REGULARISERS on one render."""
    loss, inputs = REGULARISERS[key]
    missing = [name for name in inputs if name not in render]
    if missing:
        raise KeyError(
            f"system.loss.{key} reads {missing}, which the renderer didn't return (it has "
            f"{sorted(render)}). system.renderer.return_comp_normal: true with a "
            "system.geometry.normal_type other than none would do, or a weight of 0."
        )
    return loss(*(render[name] for name in inputs))
