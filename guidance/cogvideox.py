"""Video priors: CogVideoX (Yang et al. 2024), 2B and 5B from text, 5B from a picture and text.
Guidance is uncond + scale (text - uncond), with scale 25 from text and 6 from a picture; one t a
clip in 0.02..0.98 of the timesteps, w(t) = 1 - alpha_bar.

Noise is DDPM's with the SNR shifted and none of it left at the last timestep; the network predicts
v. Latents are 1 + (F - 1) / 4 frames and an eighth of the pixels, a sample of the VAE's posterior
times its factor. The network reads all of T5's 226 tokens, padding too.

The picture is the clip's first frame (first_frames.py): a sample of the posterior (as their
pipeline has it), scaled, beside the first latent frame; zeros beside the others. Both halves see
it, so that guidance pulls at what the text says alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..bounds import bounded, path_of
from ..pretrained import models
from .clips import CausalDistillation
from .conditions import Condition, both
from .first_frames import RENDERED, FirstFrameDistillation
from .noise import DDPM, Noise

Size = tuple[int, int, int]  # tokens of a clip: frames, rows, columns
Places = list[Float[Tensor, " _"]]  # ... and where they are in the grid that was trained


def places_of(tokens: Size, trained: tuple[int, int]) -> Places:
    """Where a clip's tokens are among the rows and columns of the trained size: the largest centred
    part of its shape, as CogVideoX's pipelines have it; frames count from 0."""
    frames, rows, columns = tokens
    height, width = trained
    share = min(height / rows, width / columns)
    found = [torch.arange(frames, dtype=torch.float32)]
    for n, all_of_them in ((rows, height), (columns, width)):
        covered = round(share * n)
        start = round((all_of_them - covered) / 2)
        found.append(torch.linspace(start, (start + covered) * (n - 1) / n, n))
    return found


def rotations(places: Places, width: int) -> tuple[Float[Tensor, "N {width}"], ...]:
    """cos and sin of each token's rotary embedding (Su et al. 2021): a quarter of a head's width
    for the time, three eighths each for row and column; two numbers an angle."""
    grid = torch.meshgrid(*places, indexing="ij")
    angles = []
    for at, n in zip(grid, (width // 4, width // 8 * 3, width // 8 * 3), strict=True):
        speeds = 1 / 10000 ** (torch.arange(0, n, 2, dtype=torch.float32) / n)
        angles.append(at.flatten()[:, None] * speeds)
    angle = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
    return angle.cos(), angle.sin()


def placed(
    table: Float[Tensor, "1 M D"], n_text: int, trained: tuple[int, int], places: Places
) -> Float[Tensor, "1 N D"]:
    """The learned embedding of text and clip tokens, at a clip's places in its grid; between rows
    and columns it is linear. At the trained size it is the table's own beginning."""
    text, clip = table[:, :n_text], table[0, n_text:]
    grid = clip.unflatten(0, (-1, *trained))[: len(places[0])].permute(0, 3, 1, 2).float()
    ends = zip(places[1:], trained, strict=True)
    rows, columns = (2 * at.to(grid) / (n - 1) - 1 for at, n in ends)  # -1 to 1, as torch has it
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    at = torch.stack([x, y], dim=-1).expand(len(grid), -1, -1, -1)
    found = F.grid_sample(grid, at, align_corners=True)  # [frames D rows columns]
    return torch.cat([text, found.permute(0, 2, 3, 1).flatten(0, 2)[None].to(text)], dim=1)


@threestudio.register("animate124-cogvideox-guidance")
class CogVideoXGuidance(CausalDistillation):
    """A clip is one sample: [B*F H W 3], F = 4k + 1 frames of a clip adjacent -> latents
    [B 16 k+1 h w]."""

    @dataclass
    class Config(CausalDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "THUDM/CogVideoX-2b")
        guidance_scale: float = 25.0  # of classifier-free guidance

    cfg: Config
    vae_class: ClassVar[str] = "AutoencoderKLCogVideoX"
    network_class: ClassVar[type | str] = "CogVideoXTransformer3DModel"

    def configure(self) -> None:
        super().configure()
        network = self.network.config
        if getattr(network, "patch_size_t", None) is not None:
            raise ValueError(
                f"{self.cfg.pretrained_model_name_or_path} is CogVideoX 1.5, whose tokens span "
                "several frames. The first version will do: THUDM/CogVideoX-2b, -5b or -5b-I2V."
            )
        self.trained = tuple(n // self.patch for n in (network.sample_height, network.sample_width))
        # of each size of latents that came: a recording needs its own to stay
        self.positions: dict[Size, tuple[Any, Tensor | None]] = {}
        self.learned = (
            self.network.patch_embed.pos_embedding
            if network.use_learned_positional_embeddings
            else None
        )

    def usual_size(self) -> tuple[int, int]:
        network, factor = self.network.config, self.codec.pixel_factor
        return network.sample_width * factor, network.sample_height * factor

    def load_noise(self, model: str) -> Noise:
        kind = models.class_of_diffusers("CogVideoXDDIMScheduler")
        scheduler = models.load_component(kind, model, "scheduler")
        levels = scheduler.alphas_cumprod.float().to(self.device)
        return DDPM(levels, scheduler.config.prediction_type)

    def place(self, size: Size) -> Any:
        """Rotary embeddings [N D] of latents of this size, None for a network without; gives the
        network its learned ones for it, which it would refuse or replace (diffusers 0.42)."""
        if size not in self.positions:
            network = self.network.config
            tokens = size[0], size[1] // self.patch, size[2] // self.patch
            places = places_of(tokens, self.trained)
            turns = learned = None
            if network.use_rotary_positional_embeddings:
                turns = rotations(places, network.attention_head_dim)
                turns = tuple(turn.to(self.device) for turn in turns)
            if self.learned is not None:
                self.check_learned(size[0])
                learned = placed(self.learned, network.max_text_seq_length, self.trained, places)
            self.positions[size] = turns, learned
        turns, learned = self.positions[size]
        if learned is not None:
            embed = self.network.patch_embed
            embed.pos_embedding = learned
            embed.sample_frames = (size[0] - 1) * embed.temporal_compression_ratio + 1
            embed.sample_height, embed.sample_width = size[1:]
        return turns

    def check_learned(self, latent_frames: int) -> None:
        """A ValueError for clips that are longer than the learned places."""
        factor, most = self.frame_factor, self.network.config.sample_frames
        if latent_frames > (most - 1) // factor + 1:
            raise ValueError(
                f"Clips have {(latent_frames - 1) * factor + 1} frames, but "
                f"{self.cfg.pretrained_model_name_or_path} has learned places for at most {most}: "
                f"take data.single_view.num_frames={most} or fewer."
            )

    def predict_noise(
        self, z_t: Float[Tensor, "B2 c f h w"], t: Int[Tensor, " B2"], condition: Condition
    ) -> Float[Tensor, "B2 C f h w"]:
        frames, height, width = z_t.shape[2:]
        answer = self.network(
            z_t.to(self.dtype).transpose(1, 2),
            encoder_hidden_states=condition["tokens"].to(self.dtype),
            timestep=t,
            image_rotary_emb=self.place((frames, height, width)),
            return_dict=False,
        )[0]
        return answer.transpose(1, 2)


@threestudio.register("animate124-cogvideox-image-guidance")
class CogVideoXImageGuidance(FirstFrameDistillation, CogVideoXGuidance):
    """... which is shown the first frame."""

    @dataclass
    class Config(FirstFrameDistillation.Config, CogVideoXGuidance.Config):
        pretrained_model_name_or_path: str = path_of("model", "THUDM/CogVideoX-5b-I2V")
        guidance_scale: float = 6.0  # of classifier-free guidance
        first_frame: str = bounded(RENDERED, names=(RENDERED,))  # the network knows no clip without

    cfg: Config
    extra_channels: ClassVar[int] = 16

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        first = self.codec.encode_clips(self.shown_frames(clips, camera)[:, None])
        later = (clips.shape[1] - 1) // self.frame_factor
        return {"channels": both(F.pad(first, (0, 0, 0, 0, 0, later)))}
