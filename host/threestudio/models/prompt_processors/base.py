"""Prompt processors: a sentence -> text embeddings, one for each direction it is looked at from.

Azimuth and elevation in degrees. Embeddings come out with the conditional half first.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.multiprocessing as mp
from jaxtyping import Bool, Float, Integer
from pytorch_lightning.utilities import rank_zero_only
from threestudio.log import debug, info, warn
from threestudio.utils.base import BaseObject
from threestudio.utils.bounds import bounded, path_of
from threestudio.utils.misc import barrier, cleanup
from threestudio.utils.ops import shifted_expotional_decay
from torch import Tensor


def hash_prompt(model: str, prompt: str) -> str:
    """The name of a cached embedding."""
    return hashlib.md5(f"{model}-{prompt}".encode(), usedforsecurity=False).hexdigest()


def shift_azimuth_deg(azimuth: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The same angle in [-180, 180)."""
    return (azimuth + 180) % 360 - 180


@dataclass
class DirectionConfig:
    """A direction to look from: its words, and which cameras (ele, azi, dis) have it."""

    name: str
    prompt: Callable[[str], str]
    negative_prompt: Callable[[str], str]
    condition: Callable[
        [Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]], Bool[Tensor, " B"]
    ]


@dataclass
class PromptProcessorOutput:
    """All embeddings [N tokens, Nf features] of a prompt; guidances pick by camera."""

    text_embeddings: Float[Tensor, "1 N Nf"]
    uncond_text_embeddings: Float[Tensor, "1 N Nf"]
    text_embeddings_vd: Float[Tensor, "Nv N Nf"]  # one for each direction
    uncond_text_embeddings_vd: Float[Tensor, "Nv N Nf"]
    directions: list[DirectionConfig]
    direction2idx: dict[str, int]
    use_perp_neg: bool
    perp_neg_f_sb: tuple[float, float, float]
    perp_neg_f_fsb: tuple[float, float, float]
    perp_neg_f_fs: tuple[float, float, float]
    perp_neg_f_sf: tuple[float, float, float]
    prompt: str
    prompts_vd: list[str]

    def _direction_idx(
        self,
        elevation: Float[Tensor, " B"],
        azimuth: Float[Tensor, " B"],
        distances: Float[Tensor, " B"],
    ) -> Integer[Tensor, " B"]:
        """Which direction each camera has; a later one wins over an earlier one."""
        index = torch.zeros_like(elevation, dtype=torch.long)
        for direction in self.directions:
            index[direction.condition(elevation, azimuth, distances)] = self.direction2idx[
                direction.name
            ]
        return index

    def get_text_embeddings(
        self,
        elevation: Float[Tensor, " B"],
        azimuth: Float[Tensor, " B"],
        camera_distances: Float[Tensor, " B"],
        view_dependent_prompting: bool = True,
    ) -> Float[Tensor, "BB N Nf"]:
        """[2B N Nf]: B conditional embeddings, then B unconditional ones."""
        if view_dependent_prompting:
            index = self._direction_idx(elevation, azimuth, camera_distances)
            pair = self.text_embeddings_vd[index], self.uncond_text_embeddings_vd[index]
        else:
            n = elevation.shape[0]
            pair = (
                self.text_embeddings.expand(n, -1, -1),
                self.uncond_text_embeddings.expand(n, -1, -1),
            )
        return torch.cat(pair)

    def get_text_embeddings_perp_neg(
        self,
        elevation: Float[Tensor, " B"],
        azimuth: Float[Tensor, " B"],
        camera_distances: Float[Tensor, " B"],
        view_dependent_prompting: bool = True,
    ) -> tuple[Float[Tensor, "BBBB N Nf"], Float[Tensor, "B 2"]]:
        """Perp-Neg: [4B N Nf], B interpolated conditionals, B unconditionals, 2B negatives, and
        the negatives' weights.

        Between two of front, side and back the conditional is their blend; the negatives are the
        views to avoid.
        """
        if not view_dependent_prompting:
            raise ValueError("Perp-Neg needs view-dependent prompting.")
        index = self._direction_idx(elevation, azimuth, camera_distances)
        view = {name: self.text_embeddings_vd[i] for name, i in self.direction2idx.items()}
        positive, negative, weights = [], [], []
        for i, azi in zip(index, shift_azimuth_deg(azimuth).abs(), strict=True):
            if i == self.direction2idx["overhead"]:
                positive.append(view["overhead"])
                negative += [self.uncond_text_embeddings_vd[i]] * 2
                weights.append(torch.zeros(2, device=azi.device))
                continue
            if azi < 90:  # r: 1 at the front, 0 at the side
                r = 1 - azi / 90
                positive.append(r * view["front"] + (1 - r) * view["side"])
                negative += [view["front"], view["side"]]
                decays = (self.perp_neg_f_fs, r), (self.perp_neg_f_sf, 1 - r)
            else:  # r: 1 at the side, 0 at the back
                r = 2 - azi / 90
                positive.append(r * view["side"] + (1 - r) * view["back"])
                negative += [view["side"], view["front"]]
                decays = (self.perp_neg_f_sb, r), (self.perp_neg_f_fsb, r)
            weights.append(torch.stack([-shifted_expotional_decay(*f, x) for f, x in decays]))
        embeddings = [
            torch.stack(positive),
            self.uncond_text_embeddings_vd[index],
            torch.stack(negative),
        ]
        return torch.cat(embeddings), torch.stack(weights).to(elevation)


class PromptProcessor(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        prompt: str = "a hamburger"  # `lib:word_word` looks one up in load/prompt_library.json
        prompt_front: str | None = None  # in place of the prompt with ", front view"
        prompt_side: str | None = None  # likewise
        prompt_back: str | None = None  # likewise
        prompt_overhead: str | None = None  # likewise
        negative_prompt: str = ""
        # whose text encoder
        pretrained_model_name_or_path: str = path_of(
            "model", "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
        # elevation above which a camera looks from overhead, degrees
        overhead_threshold: float = bounded(60.0, -90, 90)
        front_threshold: float = bounded(
            45.0, 0, 180
        )  # azimuth around 0 that is front, degrees to each side
        back_threshold: float = bounded(
            45.0, 0, 180
        )  # azimuth around 180 that is back, degrees to each side
        view_dependent_prompt_front: bool = (
            False  # "front view of ..." instead of "..., front view"
        )
        use_cache: bool = True  # embeddings of earlier runs are used again
        spawn: bool = False  # encode in a child process, which takes its memory with it

        use_perp_neg: bool = False  # asks the guidance for Perp-Neg
        perp_neg_f_sb: tuple[float, float, float] = (
            1,
            0.5,
            -0.606,
        )  # (a, b, c) of the weight a exp(-b r) + c
        perp_neg_f_fsb: tuple[float, float, float] = (1, 0.5, 0.967)  # likewise
        perp_neg_f_fs: tuple[float, float, float] = (4, 0.5, -2.426)  # likewise
        perp_neg_f_sf: tuple[float, float, float] = (4, 0.5, -2.426)  # likewise

    cfg: Config

    def configure(self) -> None:
        self._cache_dir = ".threestudio_cache/text_embeddings"
        self.directions = self._make_directions()
        self.direction2idx = {d.name: i for i, d in enumerate(self.directions)}
        self.prompt = self.preprocess_prompt(self.cfg.prompt)
        self.negative_prompt = self.cfg.negative_prompt
        self.prompts_vd = [
            getattr(self.cfg, f"prompt_{d.name}", None) or d.prompt(self.prompt)
            for d in self.directions
        ]
        self.negative_prompts_vd = [
            d.negative_prompt(self.negative_prompt) for d in self.directions
        ]
        info(f"Prompt: {self.prompt!r}; to avoid: {self.negative_prompt!r}.")
        debug(f"Prompts by direction: {self.prompts_vd}")
        self.prepare_text_embeddings()
        self.load_text_embeddings()

    def _make_directions(self) -> list[DirectionConfig]:
        cfg = self.cfg
        conditions = {
            "side": lambda ele, azi, dis: torch.ones_like(ele, dtype=torch.bool),
            "front": lambda ele, azi, dis: shift_azimuth_deg(azi).abs() < cfg.front_threshold,
            "back": lambda ele, azi, dis: shift_azimuth_deg(azi).abs() > 180 - cfg.back_threshold,
            "overhead": lambda ele, azi, dis: ele > cfg.overhead_threshold,
        }

        def worded(name):
            if cfg.view_dependent_prompt_front:
                start = "backside" if name == "back" else name
                return lambda s: f"{start} view of {s}"
            return lambda s: f"{s}, {name} view"

        return [
            DirectionConfig(name, worded(name), lambda s: s, c) for name, c in conditions.items()
        ]

    def preprocess_prompt(self, prompt: str) -> str:
        """The prompt, looked up in the library if it is written `lib:word_word`."""
        if not prompt.startswith("lib:"):
            return prompt
        path = os.path.join("load", "prompt_library.json")
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"The prompt {prompt!r} asks for a prompt library, but there is no {path!r}."
            )
        with open(path) as file:
            library = json.load(file)["dreamfusion"]
        words = prompt.removeprefix("lib:").lower().split("_")
        found = [entry for entry in library if all(word in entry.lower() for word in words)]
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} prompts of {path} have the words {words}; exactly one should."
            )
        return found[0]

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Override: encodes prompts, each into <cache_dir>/<hash_prompt(model, prompt)>.pt."""
        raise NotImplementedError

    def _cache_path(self, prompt: str) -> str:
        name = hash_prompt(self.cfg.pretrained_model_name_or_path, prompt)
        return os.path.join(self._cache_dir, f"{name}.pt")

    @rank_zero_only
    def prepare_text_embeddings(self) -> None:
        """Encodes what is not cached yet."""
        os.makedirs(self._cache_dir, exist_ok=True)
        prompts = [self.prompt, self.negative_prompt, *self.prompts_vd, *self.negative_prompts_vd]
        prompts = list(dict.fromkeys(prompts))
        if self.cfg.use_cache:
            prompts = [p for p in prompts if self._read_cached(p) is None]
        if not prompts:
            return
        arguments = (self.cfg.pretrained_model_name_or_path, prompts, self._cache_dir)
        if self.cfg.spawn:
            process = mp.get_context("spawn").Process(target=self.spawn_func, args=arguments)
            process.start()
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(
                    "The process that encodes the prompts failed; spawn: false shows why."
                )
        else:
            self.spawn_func(*arguments)
        cleanup()

    def load_text_embeddings(self) -> None:
        """Reads the embeddings, in every process, once rank 0 has them ready."""
        barrier()
        self.text_embeddings = self.load_from_cache(self.prompt)[None]
        self.uncond_text_embeddings = self.load_from_cache(self.negative_prompt)[None]
        self.text_embeddings_vd = torch.stack([self.load_from_cache(p) for p in self.prompts_vd])
        self.uncond_text_embeddings_vd = torch.stack(
            [self.load_from_cache(p) for p in self.negative_prompts_vd]
        )

    def _read_cached(self, prompt: str) -> Tensor | None:
        """None where there is no embedding, or, with a warning, where the file is damaged."""
        path = self._cache_path(prompt)
        if not os.path.exists(path):
            return None
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip():  # asks the checksums, which torch.load doesn't
                        raise zipfile.BadZipFile(path)
            return torch.load(path, map_location=self.device, weights_only=True)
        except Exception:  # damaged files make zipfile and torch raise errors of many classes
            warn(f"The text embedding {path} isn't what was written; it is made again.")
        return None

    def load_from_cache(self, prompt: str) -> Float[Tensor, "N Nf"]:
        embedding = self._read_cached(prompt)
        if embedding is None:
            raise FileNotFoundError(
                f"The embedding {self._cache_path(prompt)} of the prompt {prompt!r} "
                f"for {self.cfg.pretrained_model_name_or_path} was not written."
            )
        return embedding

    def __call__(self) -> PromptProcessorOutput:
        return PromptProcessorOutput(
            text_embeddings=self.text_embeddings,
            uncond_text_embeddings=self.uncond_text_embeddings,
            text_embeddings_vd=self.text_embeddings_vd,
            uncond_text_embeddings_vd=self.uncond_text_embeddings_vd,
            directions=self.directions,
            direction2idx=self.direction2idx,
            use_perp_neg=self.cfg.use_perp_neg,
            perp_neg_f_sb=self.cfg.perp_neg_f_sb,
            perp_neg_f_fsb=self.cfg.perp_neg_f_fsb,
            perp_neg_f_fs=self.cfg.perp_neg_f_fs,
            perp_neg_f_sf=self.cfg.perp_neg_f_sf,
            prompt=self.prompt,
            prompts_vd=self.prompts_vd,
        )
