"""How large the toy priors are, and how long each part of them trains."""

import dataclasses

SIZE = 64  # pixels
PARTS = ("vae", "sd", "controlnet", "zero123", "video", "image_video")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the banks and models, and how long each part trains."""

    characters: int = 4000  # of each bank
    pictures: int = 12  # of each character
    frames: int = 8  # of a clip
    steps: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(
            vae=2500, sd=5000, controlnet=2000, zero123=6000, video=7000, image_video=4000
        )
    )
    batch: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(
            vae=128, sd=256, controlnet=128, zero123=256, video=32, image_video=32
        )
    )
    width: int = 128  # of the text and image embeddings
    channels: tuple[int, ...] = (64, 128, 192)  # Zero123's UNet
    sd_channels: tuple[int, ...] = (64, 64, 96)
    video_channels: tuple[int, ...] = (64, 64, 96)
    image_video_channels: tuple[int, ...] = (64, 64, 64)
    vae_channels: tuple[int, ...] = (32, 64, 64)
    learning_rate: float = 1e-3
    sampling_steps: int = 30  # DDIM, for quality.json and the sheets


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
    sampling_steps=1,
)
