"""Prompts by view: what all prompt processors share. Angles are in degrees. Seen from azimuth 0 a
subject shows its front, from 180 its back; views are numbered as in threestudio: side, front, back,
overhead. Embeddings are [L D] a prompt; conditional ones come before unconditional ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import threestudio
import torch
from jaxtyping import Bool, Float, Int, Shaped
from threestudio.utils.base import BaseObject
from torch import Tensor

from ..bounds import Bounded, bounded, needed, path_of
from ..pretrained.embedding_cache import read_texts
from ..pretrained.learned_tokens import LearnedTokens

VIEWS = ("side", "front", "back", "overhead")


def view_of(
    elevation: Float[Tensor, " B"],
    azimuth: Float[Tensor, " B"],
    front: float,
    back: float,
    overhead: float,
) -> Int[Tensor, " B"]:
    """Index in VIEWS: front within `front` of azimuth 0, back within `back` of 180, from `overhead`
    up overhead (it wins), else side. All in degrees."""
    turn = ((azimuth + 180) % 360 - 180).abs()  # from the front, 0..180
    view = torch.where(turn < front, VIEWS.index("front"), VIEWS.index("side"))
    view = torch.where(turn > 180 - back, VIEWS.index("back"), view)
    return torch.where(elevation > overhead, VIEWS.index("overhead"), view)


@dataclass
class PromptEmbeddings:
    """What a processor returns. threestudio's own guidances take it as a PromptProcessorOutput."""

    text_embeddings: Float[Tensor, "1 L D"]
    uncond_text_embeddings: Float[Tensor, "1 L D"]
    text_embeddings_vd: Float[Tensor, "4 L D"]  # in the order of VIEWS
    prompt: str
    prompts_vd: list[str]
    thresholds: tuple[float, float, float]  # front, back, overhead: degrees, see view_of
    masks: Bool[Tensor, "6 L"] | None = None  # tokens that count: text, uncond, VIEWS; None: all
    use_perp_neg: bool = False  # threestudio's guidances ask; Perp-Neg isn't offered here

    @property
    def uncond_text_embeddings_vd(self) -> Float[Tensor, "4 L D"]:
        """The negative prompt is the same from everywhere."""
        return self.uncond_text_embeddings.expand_as(self.text_embeddings_vd)

    def get_text_embeddings(
        self,
        elevation: Float[Tensor, " B"],
        azimuth: Float[Tensor, " B"],
        camera_distances: Float[Tensor, " B"],
        view_dependent_prompting: bool = True,
    ) -> Float[Tensor, "B2 L D"]:
        """Embeddings for B cameras, [2B L D]; their distance doesn't matter."""
        held = self.text_embeddings, self.uncond_text_embeddings, self.text_embeddings_vd
        return self.by_camera(*held, elevation, azimuth, view_dependent_prompting)

    def get_text_masks(
        self,
        elevation: Float[Tensor, " B"],
        azimuth: Float[Tensor, " B"],
        camera_distances: Float[Tensor, " B"],
        view_dependent_prompting: bool = True,
    ) -> Bool[Tensor, "B2 L"] | None:
        """Which tokens of `get_text_embeddings` count, [2B L]; None: all, padding too."""
        if self.masks is None:
            return None
        held = self.masks[:1], self.masks[1:2], self.masks[2:]
        return self.by_camera(*held, elevation, azimuth, view_dependent_prompting)

    def by_camera(
        self,
        text: Shaped[Tensor, " 1 *shape"],
        uncond: Shaped[Tensor, " 1 *shape"],
        views: Shaped[Tensor, " 4 *shape"],
        elevation: Float[Tensor, " B"],
        azimuth: Float[Tensor, " B"],
        view_dependent: bool,
    ) -> Shaped[Tensor, " B2 *shape"]:
        """The one that belongs to each of B cameras, then B times the unconditional one."""
        n = len(elevation)
        rows = text.expand(n, *text.shape[1:])
        if view_dependent:
            view = view_of(elevation, azimuth, *self.thresholds)
            rows = views[view.to(views.device)]
        return torch.cat([rows, uncond.expand(n, *uncond.shape[1:])])


class PromptProcessor(BaseObject):
    """Encodes the prompt, its views and the negative prompt, once, when it is built."""

    @dataclass
    class Config(BaseObject.Config, Bounded):
        pretrained_model_name_or_path: str = path_of(
            "model"
        )  # its tokenizer and text_encoder are used
        prompt: str = needed()
        negative_prompt: str = ""
        prompt_front: str | None = None  # whole prompts for single views; null derives them
        prompt_side: str | None = None
        prompt_back: str | None = None
        prompt_overhead: str | None = None
        view_dependent_prompt_front: bool = False  # "front view of ..." for "..., front view"
        front_threshold: float = bounded(45.0, 0, 180)  # degrees of azimuth from the front
        back_threshold: float = bounded(45.0, 0, 180)  # degrees of azimuth from the back
        overhead_threshold: float = bounded(60.0, -90, 90)  # degrees of elevation
        # reads on the CPU: text encoders of billions of weights may be too large for the GPU
        read_on_cpu: bool = False
        use_cache: bool = True  # keep embeddings in .threestudio_cache/text_embeddings

    cfg: Config
    text_length: ClassVar[int | None] = None  # tokens of a prompt; None: what the model states

    def configure(self) -> None:
        cfg = self.cfg
        if not cfg.prompt.strip():
            raise ValueError(
                f"{type(self).__name__} has no prompt. Say what the picture shows, for instance "
                'system.prompt_processor.prompt="a panda is dancing" (prompt_processor_cn.prompt '
                "for the tile prior)."
            )
        prompts_vd = [getattr(cfg, f"prompt_{v}") or self.view_prompt(v) for v in VIEWS]
        threestudio.info(f"Prompts: {prompts_vd}, negative: {cfg.negative_prompt!r}")
        embeddings, masks = read_texts(
            cfg.pretrained_model_name_or_path,
            [cfg.prompt, cfg.negative_prompt, *prompts_vd],
            learned=self.learned_tokens([cfg.prompt, *prompts_vd]),
            device="cpu" if cfg.read_on_cpu else self.device,
            use_cache=cfg.use_cache,
            length=self.text_length,
        )
        embeddings = embeddings.to(self.device)
        masks = None if masks is None else masks.to(self.device)
        self.output = PromptEmbeddings(
            embeddings[:1],
            embeddings[1:2],
            embeddings[2:],
            cfg.prompt,
            prompts_vd,
            (cfg.front_threshold, cfg.back_threshold, cfg.overhead_threshold),
            masks,
        )

    def view_prompt(self, view: str) -> str:
        if not self.cfg.view_dependent_prompt_front:
            return f"{self.cfg.prompt}, {view} view"
        return f"{'backside' if view == 'back' else view} view of {self.cfg.prompt}"

    def learned_tokens(self, prompts: list[str]) -> LearnedTokens:
        """Tokens that these prompts use and that the model doesn't know."""
        return {}

    def __call__(self) -> PromptEmbeddings:
        return self.output
