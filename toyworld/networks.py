"""The networks of the toy priors: the architectures of the published models, narrower."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    ControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    WanTransformer3DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from . import folders
from .folders import Network
from .plan import SIZE, Plan


def make_vae(plan: Plan) -> Network:
    n = len(plan.vae_channels)
    config: dict[str, Any] = dict(
        down_block_types=["DownEncoderBlock2D"] * n,
        up_block_types=["UpDecoderBlock2D"] * n,
        block_out_channels=plan.vae_channels,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIZE,
    )
    return AutoencoderKL(**config)


def make_unet(plan: Plan, channels: tuple[int, ...], in_channels: int = 4) -> Network:
    """A UNet over pictures' latents."""
    return UNet2DConditionModel(in_channels=in_channels, **unet_config(plan, channels, "2D"))


def make_video_unet(plan: Plan) -> Network:
    return UNet3DConditionModel(in_channels=4, **unet_config(plan, plan.video_channels, "3D"))


def make_image_video_unet(plan: Plan, video: Network) -> Network:
    """A UNet of clips that also sees a picture's latents, on four more channels.

    It starts with all weights of `video`, the UNet that sees none, that have the same shape here;
    the further channels' are 0.
    """
    config = unet_config(plan, plan.image_video_channels, "3D")
    unet: Network = UNet3DConditionModel(in_channels=8, **config)
    shapes = {k: w.shape for k, w in unet.state_dict().items()}
    started = {k: w for k, w in video.state_dict().items() if w.shape == shapes.get(k)}
    unet.load_state_dict(started, strict=False)
    with torch.no_grad():
        narrow, wide = video.conv_in, unet.conv_in
        wide.weight.zero_()[:, : narrow.in_channels] = narrow.weight
    return unet


def unet_config(plan: Plan, channels: tuple[int, ...], kind: str) -> dict[str, Any]:
    return dict(
        sample_size=SIZE // 4,
        out_channels=4,
        down_block_types=[f"CrossAttnDownBlock{kind}"] * 2 + [f"DownBlock{kind}"],
        up_block_types=[f"UpBlock{kind}"] + [f"CrossAttnUpBlock{kind}"] * 2,
        block_out_channels=channels,
        layers_per_block=1,
        attention_head_dim=32 if kind == "3D" else 4,
        norm_num_groups=32,
        cross_attention_dim=plan.width,
    )


def make_causal_vae(plan: Plan) -> Network:
    """Wan 2.2's kind of video VAE: 2 x 2 pixels are one, residual paths around each level; 8 pixels
    a side and 4 frames (the first one alone) are one latent."""
    n = plan.flow_latents
    vae: Network = AutoencoderKLWan(
        base_dim=plan.flow_vae_channels,
        z_dim=n,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * n,  # until it is trained
        latents_std=[1.0] * n,
    )
    with torch.no_grad():  # else its latents begin as noise, and it stays with that for long
        vae.quant_conv.bias[n:] = -6.0  # of the posterior's log variance
    return vae


def make_transformer(plan: Plan, text_width: int) -> Network:
    """Wan's transformer; a token is one latent of a frame."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=plan.flow_heads,
        attention_head_dim=32,
        in_channels=plan.flow_latents,
        out_channels=plan.flow_latents,
        text_dim=text_width,
        freq_dim=64,
        ffn_dim=96 * plan.flow_heads,
        num_layers=plan.flow_layers,
        rope_max_seq_len=32,
    )


def make_controlnet(unet: Network) -> Network:
    """A ControlNet that starts as the UNet's own encoder."""
    net: Network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    return net.requires_grad_(True)


def make_text_encoder(plan: Plan, vocabulary: list[str]) -> Network:
    config = folders.text_config(vocabulary, plan.width)
    return CLIPTextModel(CLIPTextConfig(**config, max_position_embeddings=folders.MAX_TOKENS))


def make_image_encoder(plan: Plan) -> Network:
    config = folders.vision_config(plan.width, SIZE)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config))


def make_camera_projection(plan: Plan) -> nn.Linear:
    """Zero123's layer over an image embedding and four camera numbers."""
    return nn.Linear(plan.width + 4, plan.width)
