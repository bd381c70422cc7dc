"""How large the toy priors are, and how long each part of them trains."""

import dataclasses

SIZE = 64  # pixels
PARTS = ("vae", "sd", "controlnet", "zero123", "video", "image_video", "flow_vae", "flow")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the banks and models, and how long each part trains."""

    characters: int = 4000  # of each bank
    pictures: int = 12  # of each character
    frames: int = 8  # of a clip
    steps: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(
            vae=2500,
            sd=5000,
            controlnet=2000,
            zero123=6000,
            video=7000,
            image_video=4000,
            flow_vae=2000,
            flow=15500,
        )
    )
    batch: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(
            vae=128,
            sd=256,
            controlnet=128,
            zero123=256,
            video=32,
            image_video=32,
            flow_vae=32,
            flow=64,
        )
    )
    width: int = 128  # of the text and image embeddings
    channels: tuple[int, ...] = (64, 128, 192)  # Zero123's UNet
    sd_channels: tuple[int, ...] = (64, 64, 96)
    video_channels: tuple[int, ...] = (64, 64, 96)
    image_video_channels: tuple[int, ...] = (64, 64, 64)
    vae_channels: tuple[int, ...] = (32, 64, 64)
    flow_clips: int = 20_000  # the transformer learns from more of them than the UNets
    flow_frames: int = 9  # 4 k + 1, as the causal VAE takes them
    flow_vae_channels: int = 32  # of its first level
    flow_latents: int = 24  # channels of its latents
    flow_heads: int = 8  # of 32 channels each
    flow_layers: int = 6
    learning_rate: float = 1e-3
    sampling_steps: int = 30  # DDIM's or Euler's, for quality.json and the sheets


TINY = Plan(
    characters=6,
    pictures=2,
    frames=2,
    steps=dict.fromkeys(PARTS, 3),
    batch=dict.fromkeys(PARTS, 2),
    width=32,
    channels=(32, 32, 32),
    sd_channels=(32, 32, 32),
    video_channels=(32, 32, 32),
    image_video_channels=(32, 32, 32),
    vae_channels=(8, 16, 16),
    flow_clips=6,
    flow_frames=5,
    flow_vae_channels=8,
    flow_latents=4,
    flow_heads=1,
    flow_layers=1,
    sampling_steps=1,
)
