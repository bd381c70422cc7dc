"""Loading pretrained models: which files are chosen, offline use, and what goes wrong."""

import json
import math
import pickle
import re
import shutil
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import threestudio
import torch
from animate124.pretrained import models
from animate124.pretrained.models import (
    choose_weights,
    load_component,
    model_folder,
    multiplies_bfloat16,
)
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizerFast

PLAIN = "diffusion_pytorch_model.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"
PICKLE = "diffusion_pytorch_model.bin"
HALF_PICKLE = "diffusion_pytorch_model.fp16.bin"
EMA = "diffusion_pytorch_model.fp16_ema.safetensors"


def rewrite(path, weights):
    """Replaces a file; models that were loaded from it may still be mapped onto the old one."""
    path.unlink()
    save_file(weights, path, {"format": "pt"})


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(threestudio, "warn", messages.append)
    return messages


@pytest.fixture
def sd(random_priors, tmp_path):
    """A copy of the tiny Stable Diffusion, to be spoilt."""
    return shutil.copytree(random_priors / "sd", tmp_path / "sd")


# ---- which files


@pytest.mark.parametrize(
    "names, half, full",
    [
        ([PLAIN, HALF, PICKLE, HALF_PICKLE, EMA], HALF, PLAIN),
        ([HALF, EMA], HALF, HALF),  # some Zero123 folders
        ([PLAIN, PICKLE], PLAIN, PLAIN),
        ([PICKLE, HALF_PICKLE], HALF_PICKLE, PICKLE),
        ([PICKLE, HALF], HALF, HALF),  # safetensors come first
        ([EMA], EMA, EMA),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors", "model.safetensors"),
        (["flax_model.msgpack", "model.onnx", "config.json", "lora.safetensors"], None, None),
        ([], None, None),
    ],
)
def test_choice_of_weights(names, half, full):
    for wants_half, expected in ((True, half), (False, full)):
        chosen = choose_weights(names, wants_half)
        assert (chosen and chosen.names) == (expected and (expected,))
    if half == HALF:
        assert choose_weights(names, True).variant == "fp16"


def test_shards_belong_together():
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    old_half = [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    index = "diffusion_pytorch_model.safetensors.index.json"
    assert choose_weights([*shards, *half, index], False).names == tuple(shards)
    assert choose_weights([*shards, *half, index], True).names == tuple(half)
    assert choose_weights([*shards, *old_half, index], True).names == tuple(old_half)


@pytest.mark.parametrize("multiplies", (False, True))
def test_precision_is_half_where_the_device_multiplies_it(multiplies, monkeypatch):
    monkeypatch.setattr(models, "multiplies_bfloat16", lambda: multiplies)
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    assert models.weights_dtype(True, gpu) == torch.float16
    assert models.weights_dtype(True, gpu, torch.bfloat16) == torch.bfloat16
    assert models.weights_dtype(False, gpu) == torch.float32
    assert models.weights_dtype(True, cpu) == (torch.bfloat16 if multiplies else torch.float32)
    assert models.weights_dtype(False, cpu) == torch.float32


def test_the_processor_says_whether_it_multiplies_bfloat16():
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or not hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        pytest.skip("needs Linux's list of the processor's instructions, and a torch that asks")
    words = flags.read_text().split()
    assert multiplies_bfloat16() == bool({"avx512_bf16", "amx_tile"} & {*words})


def test_a_component_is_frozen_and_holds_the_file(random_priors):
    unet = load_component(UNet2DConditionModel, str(random_priors / "sd"), "unet", torch.float32)
    stored = load_file(random_priors / "sd" / "unet" / PLAIN)
    assert stored.keys() == unet.state_dict().keys()
    for name, value in unet.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)
    assert not unet.training and not any(p.requires_grad for p in unet.parameters())


def test_half_variant_alone_is_loaded_at_any_precision(sd):
    plain = load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)
    weights = load_file(sd / "unet" / PLAIN)
    save_file({k: v.half() for k, v in weights.items()}, sd / "unet" / HALF, {"format": "pt"})
    half = load_component(UNet2DConditionModel, str(sd), "unet", torch.float16)
    assert half.dtype == torch.float16
    (sd / "unet" / PLAIN).unlink()
    wide = load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)
    assert wide.dtype == torch.float32
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32))
    torch.testing.assert_close(wide(*inputs).sample, plain(*inputs).sample, atol=1e-2, rtol=1e-2)
    for value, narrow in zip(wide.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(value, narrow.float(), rtol=0, atol=0)


def test_a_transformers_variant_is_loaded(sd):
    weights = sd / "text_encoder" / "model.safetensors"
    weights.rename(sd / "text_encoder" / "model.fp16.safetensors")
    encoder = load_component(CLIPTextModel, str(sd), "text_encoder", torch.float32)
    table = load_file(sd / "text_encoder" / "model.fp16.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    torch.testing.assert_close(encoder.get_input_embeddings().weight, table[name])


@pytest.mark.parametrize("part, name", [("unet", PICKLE), ("text_encoder", "pytorch_model.bin")])
def test_pickles_of_tensors_are_loaded(sd, part, name):
    kind = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}[part]
    before = load_component(kind, str(sd), part, torch.float32).state_dict()
    stored = next((sd / part).glob("*.safetensors"))
    torch.save(load_file(stored), sd / part / name)
    stored.unlink()
    after = load_component(kind, str(sd), part, torch.float32).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_stable_diffusions_own_old_names_are_understood(sd):
    """Its VAE still has the names of the first diffusers, its text encoder a position buffer."""
    before = load_component(AutoencoderKL, str(sd), "vae", torch.float32).state_dict()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(sd / "vae" / PLAIN)
    for new, old in names.items():
        assert any(new in name for name in weights)
        weights = {name.replace(new, old): value for name, value in weights.items()}
    rewrite(sd / "vae" / PLAIN, weights)
    after = load_component(AutoencoderKL, str(sd), "vae", torch.float32).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    path = sd / "text_encoder" / "model.safetensors"
    buffer = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    rewrite(path, load_file(path) | buffer)
    load_component(CLIPTextModel, str(sd), "text_encoder", torch.float32)


class Mischief:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_pickles_of_anything_else_are_not_run(sd, write):
    stored = sd / "unet" / PLAIN
    write({"conv_in.weight": Mischief(sd / "was-here")}, sd / "unet" / PICKLE)
    stored.unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is not a plain file"):
        load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)
    assert not (sd / "was-here").exists()


# ---- what can be wrong with a folder


@pytest.mark.parametrize("model", ["load/toy-priors/sd", "./sd", "/nowhere/sd", "sd", "a b/c"])
def test_missing_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist.*diffusers' format.*hub id"):
        model_folder(model)


def test_file_for_a_folder(tmp_path):
    (tmp_path / "sd.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        model_folder(str(tmp_path / "sd.safetensors"))


def test_missing_component_and_missing_weights(sd):
    with pytest.raises(FileNotFoundError, match=r"no folder 'controlnet'.*'unet', 'vae'"):
        load_component(UNet2DConditionModel, str(sd), "controlnet", torch.float32)
    (sd / "unet" / PLAIN).unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights.*config\.json.*cut off"):
        load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)


def test_weights_that_are_cut_off(sd):
    path = sd / "vae" / PLAIN
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"can't be loaded.*download it again"):
        load_component(AutoencoderKL, str(sd), "vae", torch.float32)


@pytest.mark.parametrize(
    "kind, part, name",
    [
        (UNet2DConditionModel, "unet", "conv_in.weight"),
        (CLIPTextModel, "text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"),
    ],
)
def test_weights_that_lack_a_tensor(sd, kind, part, name):
    """The libraries would keep random numbers for it."""
    path = next((sd / part).glob("*.safetensors"))
    weights = load_file(path)
    del weights[name]
    rewrite(path, weights)
    with pytest.raises(ValueError, match=name.split(".")[-2]):
        load_component(kind, str(sd), part, torch.float32)


def test_another_kind_of_model(random_priors):
    with pytest.raises(ValueError, match=r"holds a UNet3DConditionModel, but a UNet2D.* is needed"):
        model = str(random_priors / "text-to-video")
        load_component(UNet2DConditionModel, model, "unet", torch.float32)


def spoil(path, content):
    """Replaces a file; b"-" stands for its first half, other dicts change a JSON file."""
    whole = path.read_bytes()
    if isinstance(content, dict):
        content = json.dumps({**json.loads(whole), **content}).encode()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2] if content == b"-" else content)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 3819\n"
CONFIGS = {
    "unet/config.json": UNet2DConditionModel,
    "vae/config.json": AutoencoderKL,
    "text_encoder/config.json": CLIPTextModel,
    "scheduler/scheduler_config.json": DDPMScheduler,
    "tokenizer/vocab.json": CLIPTokenizerFast,
    "tokenizer/tokenizer_config.json": CLIPTokenizerFast,
}


@pytest.mark.parametrize("content", [b"", b"-", b"[]", b"\xff\xfe\x00", b"null", POINTER])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_json_file_is_named(sd, name, content):
    part = name.partition("/")[0]
    spoil(sd / name, content)
    dtype = None if part in ("scheduler", "tokenizer") else torch.float32
    with pytest.raises(ValueError, match=re.escape(f"{name}'")) as error:
        load_component(CONFIGS[name], str(sd), part, dtype)
    assert "\n" not in str(error.value)
    assert ("git lfs pull" in str(error.value)) == (content == POINTER)


@pytest.mark.parametrize("content", [b"", b"-", b"rubbish", POINTER])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_damaged_weights_are_named(sd, suffix, content):
    path = sd / "unet" / PLAIN
    if suffix == "bin":
        torch.save(load_file(path), sd / "unet" / PICKLE)
        path.unlink()
        path = sd / "unet" / PICKLE
    spoil(path, content)
    with pytest.raises(ValueError, match=re.escape(path.name)) as error:
        load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    assert ("git lfs pull" in str(error.value)) == (content == POINTER)


def test_a_flipped_bit_of_a_pickle_is_seen(sd):
    weights = load_file(sd / "unet" / PLAIN)
    (sd / "unet" / PLAIN).unlink()
    torch.save(weights, sd / "unet" / PICKLE)
    load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)
    whole = bytearray((sd / "unet" / PICKLE).read_bytes())
    whole[whole.index(weights["conv_in.weight"].numpy().tobytes())] ^= 1
    spoil(sd / "unet" / PICKLE, bytes(whole))
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin' is damaged"):
        load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)


@pytest.mark.parametrize(
    "kind, part, name",
    [
        (UNet2DConditionModel, "unet", "conv_in.weight"),
        (CLIPTextModel, "text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(sd, kind, part, name, value):
    path = next((sd / part).glob("*.safetensors"))
    weights = load_file(path)
    weights[name].view(-1)[3] = value
    rewrite(path, weights)
    with pytest.raises(ValueError, match=rf"{path.name}: 1 weights of .* hold nan or infinity"):
        load_component(kind, str(sd), part, torch.float32)


def test_weights_of_another_shape_are_named(sd):
    spoil(sd / "unet" / "config.json", {"in_channels": 5})
    with pytest.raises(ValueError, match=r"UNet2DConditionModel in .*unet can't be loaded from"):
        load_component(UNet2DConditionModel, str(sd), "unet", torch.float32)


# ---- schedulers


@pytest.mark.parametrize("name", [f"{name}Scheduler" for name in models.SAMPLERS_OF_DDPM])
def test_samplers_of_ddpm_models_tell_the_same_noise_levels(sd, name):
    """What diffusers itself writes for each, so that the names are real ones."""
    ddpm = load_component(DDPMScheduler, str(sd), "scheduler")
    # the one needs a package of its own, and older versions lack some
    if name != "DPMSolverSDEScheduler" and hasattr(diffusers, name):
        getattr(diffusers, name).from_config(ddpm.config).save_pretrained(sd / "scheduler")
    else:
        spoil(sd / "scheduler" / "scheduler_config.json", {"_class_name": name})
    assert json.loads((sd / "scheduler/scheduler_config.json").read_text())["_class_name"] == name
    read = load_component(DDPMScheduler, str(sd), "scheduler")
    assert torch.equal(read.alphas_cumprod, ddpm.alphas_cumprod)
    assert read.config.prediction_type == ddpm.config.prediction_type


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
def test_a_flow_matching_folder_is_no_ddpm(sd, name):
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    shutil.rmtree(sd / "scheduler")
    getattr(diffusers, name)().save_pretrained(sd / "scheduler")
    with pytest.raises(ValueError, match=rf"flow-matching model \(its class is {name}\).*Stable"):
        load_component(DDPMScheduler, str(sd), "scheduler")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "EDMEulerScheduler"}, "its class is EDMEulerScheduler"),
        ({"_class_name": None}, "its class is None"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow-matching"),
        ({"prediction_type": "flow_prediction"}, "flow-matching"),
        ({"beta_start": "a"}, "can't be loaded"),
        ({"beta_start": math.nan}, r"aren't in \[0, 1\]"),
        ({"beta_schedule": "rubbish"}, "can't be loaded"),
        ({"num_train_timesteps": -3}, "can't be loaded"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(sd, change, message):
    spoil(sd / "scheduler" / "scheduler_config.json", change)
    with pytest.raises(ValueError, match=message) as error:
        load_component(DDPMScheduler, str(sd), "scheduler")
    assert "scheduler" in str(error.value)


def test_a_scheduler_without_betas_is_refused(sd):
    path = sd / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    with pytest.raises(ValueError, match=r"lacks \['beta_end', 'beta_schedule', 'beta_start'\]"):
        load_component(DDPMScheduler, str(sd), "scheduler")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*scheduler_config\.json"):
        load_component(DDPMScheduler, str(sd), "scheduler")


# ---- the hub, offline


@pytest.fixture
def hub_cache(random_priors, tmp_path, monkeypatch):
    """Puts models into a hub cache; the tests' HF_HUB_OFFLINE=1 keeps the network out."""
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_HUB_CACHE", str(cache))
    models.living_id.cache_clear()

    def add(model, commit="c0ffee", folder="sd"):
        repository = cache / ("models--" + model.replace("/", "--"))
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        snapshot = repository / "snapshots" / commit
        shutil.copytree(random_priors / folder, snapshot)
        return snapshot

    cache.mkdir()
    yield add
    models.living_id.cache_clear()


def test_cached_models_need_no_network(hub_cache):
    snapshot = hub_cache("someone/tiny-sd")
    assert model_folder("someone/tiny-sd", "unet") == snapshot
    load_component(UNet2DConditionModel, "someone/tiny-sd", "unet", torch.float32)
    assert load_component(DDPMScheduler, "someone/tiny-sd", "scheduler").config.beta_end == 0.012


def test_a_local_folder_wins_over_the_hub(hub_cache, random_priors, tmp_path, monkeypatch):
    hub_cache("someone/tiny-sd")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(random_priors / "sd", tmp_path / "someone" / "tiny-sd")
    assert str(model_folder("someone/tiny-sd", "unet")) == "someone/tiny-sd"


def test_offline_without_the_model(hub_cache):
    with pytest.raises(FileNotFoundError) as error:
        model_folder("someone/not-here")
    for part in ("'someone/not-here'", "HF_HUB_OFFLINE is set", "hf download someone/not-here"):
        assert part in str(error.value)


def test_dead_ids_lead_to_living_ones(hub_cache, warnings):
    living = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    snapshot = hub_cache(living)
    for _ in range(2):
        assert model_folder("runwayml/stable-diffusion-v1-5", "unet") == snapshot
    assert len(warnings) == 1 and "gone from the hub" in warnings[0] and living in warnings[0]
    assert not set(models.LIVING_IDS) & set(models.LIVING_IDS.values())


def test_a_dead_id_that_is_still_cached_is_used(hub_cache, warnings):
    snapshot = hub_cache("runwayml/stable-diffusion-v1-5")
    assert model_folder("runwayml/stable-diffusion-v1-5", "unet") == snapshot
    assert not warnings


def test_online_only_the_wanted_files_are_downloaded(hub_cache, monkeypatch):
    """The listing decides; the network is played."""
    snapshot = hub_cache("someone/tiny-sd")
    listed = ["model_index.json", f"unet/{PLAIN}", f"unet/{HALF}", f"unet/{PICKLE}"]
    listed += ["unet/config.json", "unet/deeper/config.json", f"vae/{PLAIN}", "README.md"]
    listed += ["tokenizer/spiece.model", "tokenizer/vocab.json", "tokenizer/spiece.png"]
    asked = []

    def download(model, allow_patterns=None, local_files_only=False):
        asked.append(sorted(allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, model: listed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("someone/tiny-sd", "unet", half=True) == snapshot
    model_folder("someone/tiny-sd", "unet", half=False)
    model_folder("someone/tiny-sd")  # a ControlNet's files lie at the top
    model_folder("someone/tiny-sd", "tokenizer")
    assert asked == [
        ["unet/config.json", f"unet/{HALF}"],
        ["unet/config.json", f"unet/{PLAIN}"],
        ["model_index.json"],
        ["tokenizer/spiece.model", "tokenizer/vocab.json"],
    ]


# ---- fingerprints


def test_fingerprint_is_of_the_contents(sd, tmp_path):
    parts = ("tokenizer", "text_encoder")
    first = models.fingerprint(str(sd), parts)
    moved = shutil.move(sd, tmp_path / "elsewhere")
    assert models.fingerprint(str(moved), parts) == first
    (moved / "unet" / "config.json").write_text("{}")  # none of a text embedding's business
    assert models.fingerprint(str(moved), parts) == first
    path = moved / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    name = "text_model.final_layer_norm.bias"
    weights[name][0] += 1e-3
    rewrite(path, weights)
    changed = models.fingerprint(str(moved), parts)
    merges = moved / "tokenizer" / "merges.txt"
    merges.write_text(merges.read_text().rsplit("\n", 2)[0])
    assert len({first, changed, models.fingerprint(str(moved), parts)}) == 3


def test_fingerprint_of_a_hub_model_is_its_commit(hub_cache):
    hub_cache("someone/tiny-sd", "aaa")
    first = models.fingerprint("someone/tiny-sd", ("tokenizer", "text_encoder"))
    hub_cache("someone/tiny-sd", "bbb")
    second = models.fingerprint("someone/tiny-sd", ("tokenizer", "text_encoder"))
    assert first == "models--someone--tiny-sd@aaa" and second == "models--someone--tiny-sd@bbb"


def test_zero123_projection_is_diffusers_format(random_priors):
    from animate124.guidance.zero123_model import CLIPCameraProjection

    model = str(random_priors / "zero123")
    layer = load_component(CLIPCameraProjection, model, "clip_camera_projection", torch.float32)
    config = json.loads((random_priors / "zero123/clip_camera_projection/config.json").read_text())
    assert layer.proj.in_features == config["embedding_dim"] + 4
    assert layer.proj.out_features == config["embedding_dim"]
