"""Random tiny parts of video models, of diffusers' and transformers' own classes."""

import functools
import json

import diffusers
import torch
import transformers

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [2.0, 1.5, 0.7, 1.0]  # of the VAEs' latent channels
WORDS = ["a", "panda", "fox", "is", "dancing", ",", "front", "side", "back", "overhead", "view"]
TEXT_WIDTH, TEXT_LENGTH = 16, 12


def wan_vae(dim_mult=(1, 1, 1, 1), num_res_blocks=1, z_dim=4, **options):
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=z_dim,
        dim_mult=list(dim_mult),
        num_res_blocks=num_res_blocks,
        temperal_downsample=[False, True, True],
        latents_mean=MEAN * (z_dim // 4),
        latents_std=STD * (z_dim // 4),
        **options,
    )


def wan_22_vae(**options):
    """Of 2 x 2 pixels a channel each, and with means as shortcuts."""
    pixels = {"patch_size": 2, "in_channels": 12, "out_channels": 12}
    return wan_vae(is_residual=True, scale_factor_spatial=16, **pixels, **options)


def ltx_vae(scaling_factor=0.9, **further):
    widths, layers = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=layers,
        decoder_layers_per_block=layers,
        scaling_factor=scaling_factor,
        **further,
    )
    vae.latents_mean.copy_(torch.tensor(MEAN))
    vae.latents_std.copy_(torch.tensor(STD))
    return vae


def cogvideox_vae(channels=4):
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def ltx_transformer():
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=TEXT_WIDTH,
    )


TINY_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 24,
    "num_layers": 2,
}


def wan_transformer(channels=4):
    return diffusers.WanTransformer3DModel(in_channels=channels, out_channels=4, **TINY_WAN)


def skyreels_transformer():
    sizes = {"in_channels": 36, "out_channels": 16, "image_dim": 16, "added_kv_proj_dim": 24}
    return diffusers.SkyReelsV2Transformer3DModel(**sizes, **TINY_WAN)


def vace_transformer():
    """Its branch is random, too: a fresh one says 0."""
    sizes = {"in_channels": 4, "out_channels": 4, "vace_in_channels": 72, "vace_layers": [0, 1]}
    network = diffusers.WanVACETransformer3DModel(**sizes, **TINY_WAN)
    for block in network.vace_blocks:
        for layer in (block.proj_out, getattr(block, "proj_in", None)):
            if layer is not None:
                torch.nn.init.normal_(layer.weight, std=0.3)
    return network


def skyreels_clip():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    config = transformers.CLIPVisionConfig(
        **sizes, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=16
    )
    return transformers.CLIPVisionModelWithProjection(config)


def clip_images():
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )


def wan_scheduler(shift=3.0):
    """As the published folders of Wan have it."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def write_family(folder, pipeline, kind, parts, **stated):
    """A model's folder as diffusers writes it: `parts` by their name, a text encoder of `kind`, and
    the model_index.json of that pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    index = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__, **stated}
    for name, make in parts.items():
        part = make()
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    write_text(folder, kind)
    for name, of in (("tokenizer", "T5TokenizerFast"), ("text_encoder", kind)):
        index[name] = ["transformers", of]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_wan(folder, **options):
    """Wan's text-to-video model."""
    parts = {"transformer": wan_transformer, "vae": wan_vae, "scheduler": wan_scheduler}
    return write_family(folder, "WanPipeline", "UMT5EncoderModel", parts, **options)


def cogvideox_transformer(in_channels=16, **options):
    """For clips of 5 frames of 64 x 32 pixels."""
    sizes = {"sample_width": 8, "sample_height": 4, "sample_frames": 5}
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=16,
        time_embed_dim=8,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        **(sizes | options),
    )


COGVIDEOX = {  # pipeline, shift of the SNR, transformer's options
    "2b": ("CogVideoXPipeline", 3.0, {}),
    "5b": ("CogVideoXPipeline", 1.0, {"use_rotary_positional_embeddings": True}),
    "5b-I2V": (
        "CogVideoXImageToVideoPipeline",
        1.0,
        {
            "in_channels": 32,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": True,
        },
    ),
}


def write_cogvideox(folder, name, **changes):
    """CogVideoX's folder as its published ones are, by COGVIDEOX's name."""
    pipeline, shift, options = COGVIDEOX[name]

    def transformer():
        made = cogvideox_transformer(**(options | changes))
        if options.get("use_learned_positional_embeddings"):
            made.patch_embed.pos_embedding.normal_()
        return made

    def scheduler():
        return diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=shift,
            clip_sample=False,
            timestep_spacing="trailing",
        )

    parts = {
        "transformer": transformer,
        "vae": lambda: cogvideox_vae(16),
        "scheduler": scheduler,
    }
    return write_family(folder, pipeline, "T5EncoderModel", parts)


def write_wan_ti2v(folder, **options):
    """Wan 2.2's model of text and a first frame."""
    scheduler = functools.partial(wan_scheduler, 5.0)
    parts = {"transformer": wan_transformer, "vae": wan_22_vae, "scheduler": scheduler}
    options = {"expand_timesteps": True} | options
    return write_family(folder, "WanPipeline", "UMT5EncoderModel", parts, **options)


def write_parts(folder, parts):
    """Parts of a model by the names of their folders, "" for the folder itself."""
    torch.manual_seed(0)
    for name, make in parts.items():
        make().save_pretrained(folder / name)
    return folder


def svd_unet(frames):
    return diffusers.UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=(2, 2),
        num_frames=frames,
    )


def svd_vae():
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32)
    )


def svd_scheduler(**changes):
    stated = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "sigma_max": 700.0,
        "sigma_min": 0.002,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }
    return diffusers.EulerDiscreteScheduler(**(stated | changes))


def clip_vision():
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=112,
            projection_dim=TEXT_WIDTH,
        )
    )


def write_svd(folder, frames=4):
    """Stable Video Diffusion's folder as its published ones are."""
    parts = {
        "unet": lambda: svd_unet(frames),
        "vae": svd_vae,
        "scheduler": svd_scheduler,
        "image_encoder": clip_vision,
        "feature_extractor": transformers.CLIPImageProcessor,
    }
    return write_parts(folder, parts)


def motion_adapter(**changes):
    """For the UNet of toyworld.random_priors."""
    fits = {"block_out_channels": (8, 16), "motion_layers_per_block": 1}
    fits |= {"motion_norm_num_groups": 4, "motion_num_attention_heads": 2}
    adapter = diffusers.MotionAdapter(**(fits | changes))
    return not_zero(adapter)


def sparsectrl(**changes):
    made = diffusers.SparseControlNetModel(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
        motion_num_attention_heads=2,
        **changes,
    )
    return not_zero(made)


def not_zero(module):
    """Layers that start at zero, so that what is added begins with nothing, do something."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module


def write_skyreels(folder):
    """SkyReels V2's image-to-video model."""
    parts = {
        "transformer": skyreels_transformer,
        "vae": lambda: wan_vae(z_dim=16),
        "scheduler": functools.partial(wan_scheduler, 5.0),
        "image_encoder": skyreels_clip,
        "image_processor": clip_images,
    }
    return write_family(folder, "SkyReelsV2ImageToVideoPipeline", "UMT5EncoderModel", parts)


def write_vace(folder):
    """Wan 2.1's VACE."""
    parts = {"transformer": vace_transformer, "vae": wan_vae, "scheduler": wan_scheduler}
    return write_family(folder, "WanVACEPipeline", "UMT5EncoderModel", parts)


def ltx_scheduler():
    """As the published folder has it."""
    shifts = {"base_shift": 0.95, "base_image_seq_len": 1024, "max_shift": 2.05}
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_image_seq_len=4096, shift_terminal=0.1, **shifts
    )


def write_ltx(folder):
    """LTX-Video, whose factor of the latents is 1."""
    vae = functools.partial(ltx_vae, 1.0)
    parts = {"transformer": ltx_transformer, "vae": vae, "scheduler": ltx_scheduler}
    return write_family(folder, "LTXPipeline", "T5EncoderModel", parts)


def write_text(folder, kind="T5EncoderModel"):
    """Tokenizer and text encoder of a model that reads with `kind` (T5's or UMT5's), below it."""
    pieces = [(piece, -float(i)) for i, piece in enumerate(["▁", *("▁" + word for word in WORDS)])]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    options = {"extra_ids": 0, "model_max_length": TEXT_LENGTH}
    tokenizer = transformers.T5TokenizerFast(vocab=vocabulary, **options)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = transformers.AutoConfig.for_model(
        kind.lower().removesuffix("encodermodel"),
        vocab_size=len(vocabulary),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
    )
    getattr(transformers, kind)(config).save_pretrained(folder / "text_encoder")
    return folder
