"""LoRA files of each writer's names, and networks in one file, on random tiny networks."""

import json

import diffusers
import pytest
import threestudio
import torch
from animate124.pretrained import models
from animate124.pretrained.lora import add_lora
from safetensors.torch import save_file

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
RANK = 2
NAMES = {  # of the three layers, and of the two matrices
    "peft": ("unet.{}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers": ("unet.{}", ".lora.down.weight", ".lora.up.weight"),
    "kohya": ("lora_unet_{}", ".lora_down.weight", ".lora_up.weight"),
    "ours": ("{}", ".lora_A.default.weight", ".lora_B.default.weight"),
}


@pytest.fixture
def unet(random_priors):
    return models.load_component(
        diffusers.UNet2DConditionModel, str(random_priors / "sd"), "unet", torch.float32
    )


def matrices(unet):
    """Of each layer, A and B of rank 2."""
    made = {}
    for name in (LINEAR, OUT, CONVOLUTION):
        weight = unet.get_submodule(name).weight
        up = (len(weight), RANK, *[1] * (weight.ndim - 2))
        made[name] = torch.randn(RANK, *weight.shape[1:]), torch.randn(up)
    return made


def write(path, made, names, metadata=None, **more):
    before, down, up = NAMES[names]
    held = dict(more)
    for name, (a, b) in made.items():
        name = before.format(name.replace(".", "_") if names == "kohya" else name)
        held |= {name + down: a, name + up: b}
    save_file(held, path, metadata)
    return str(path)


@pytest.mark.parametrize("names", NAMES)
def test_a_layer_does_what_the_two_matrices_beside_it_would(unet, tmp_path, names):
    """W x + scale B (A x), layer by layer, by the layers' own forwards."""
    made = matrices(unet)
    inputs = {
        LINEAR: torch.randn(3, 8),
        OUT: torch.randn(3, 8),
        CONVOLUTION: torch.randn(2, 8, 5, 5),
    }
    expected = {}
    with torch.no_grad():
        for name, (a, b) in made.items():
            layer, x = unet.get_submodule(name), inputs[name]
            if name == CONVOLUTION:
                low = torch.nn.functional.conv2d(x, a, padding=1)
                beside = torch.nn.functional.conv2d(low, b)
            else:
                beside = x @ a.T @ b.T
            expected[name] = layer(x) + 0.7 * beside
        untouched = unet.conv_in.weight.clone()
        add_lora(unet, write(tmp_path / "lora.safetensors", made, names), 0.7)
        for name, x in inputs.items():
            torch.testing.assert_close(
                unet.get_submodule(name)(x), expected[name], atol=1e-4, rtol=1e-4
            )
    assert torch.equal(unet.conv_in.weight, untouched)


@pytest.mark.parametrize("where", ["alpha", "metadata"])
def test_alpha_weighs_what_is_added(unet, tmp_path, where):
    a, b = matrices(unet)[LINEAR]
    before = unet.get_submodule(LINEAR).weight.clone()
    stated = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 0.5})}
    more = {f"unet.{LINEAR}.alpha": torch.tensor(0.5)} if where == "alpha" else {}
    metadata = stated if where == "metadata" else None
    path = write(tmp_path / "lora.safetensors", {LINEAR: (a, b)}, "peft", metadata, **more)
    add_lora(unet, path, 1.0)
    added = unet.get_submodule(LINEAR).weight - before
    torch.testing.assert_close(added, 0.5 / RANK * b @ a, atol=1e-5, rtol=1e-5)


def test_attention_processors_of_older_files_are_known(unet, tmp_path):
    """to_out_lora is the layer to_out.0."""
    block = LINEAR.removesuffix(".to_q")
    a, b = matrices(unet)[OUT]
    names = {"down": a, "up": b}
    held = {f"unet.{block}.processor.to_out_lora.{k}.weight": v for k, v in names.items()}
    held["text_encoder.layers.0.lora_A.weight"] = torch.randn(2, 2)  # isn't used
    save_file(held, tmp_path / "lora.safetensors")
    before = unet.get_submodule(OUT).weight.clone()
    add_lora(unet, str(tmp_path / "lora.safetensors"), 1.0)
    torch.testing.assert_close(unet.get_submodule(OUT).weight - before, b @ a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"unet.elsewhere.lora_A.weight": torch.ones(1, 1)},
            r"another network: 1 of its 4.*elsewh",
        ),
        (
            {f"unet.{LINEAR}.lora_A.weight": torch.ones(2, 3)},
            r"doesn't fit.*\[8, 2\] times \[2, 3\]",
        ),
        ({f"unet.{LINEAR}.dora_scale": torch.ones(1)}, r"no LoRA, or of a variant \(DoRA"),
        ({f"unet.{LINEAR}.alpha": torch.ones(2)}, r"no LoRA, or of a variant"),
        ({f"unet.{LINEAR}.lora_A.weight": torch.ones(2, 8).to(torch.int8)}, r"no LoRA, or of a"),
        ({f"unet.{LINEAR}.lora_A.weight": torch.tensor(1.0)}, r"doesn't fit.* times \[\]"),
        (
            {
                f"unet.{LINEAR}.lora_A.weight": torch.ones(0, 8),
                f"unet.{LINEAR}.lora_B.weight": torch.ones(8, 0),
            },
            r"doesn't fit.*\[8, 0\] times \[0, 8\]",
        ),
        (
            {f"unet.{LINEAR}.lora_A.weight": torch.full((2, 8), torch.nan)},
            r"1 layers hold nan.*lora_scale",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_and_add_nothing(unet, tmp_path, change, says):
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    path = tmp_path / "lora.safetensors"
    made = {
        f"unet.{k}.lora_{m}.weight": v
        for k, ab in matrices(unet).items()
        for m, v in zip("AB", ab, strict=True)
    }
    save_file(made | change, path)
    with pytest.raises(ValueError, match=says):
        add_lora(unet, str(path), 1.0)
    assert all(torch.equal(before[name], weight) for name, weight in unet.state_dict().items())


@pytest.mark.parametrize("stated", ["{", "[1]", '{"unet.lora_alpha": null}'])
def test_what_a_file_states_of_itself_may_be_nonsense(unet, tmp_path, stated):
    names = ("peft", {"lora_adapter_metadata": stated})
    path = write(tmp_path / "lora.safetensors", matrices(unet), *names)
    with pytest.raises(ValueError, match=r"lora\.safetensors can't be read.*metadata"):
        add_lora(unet, path, 1.0)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.safetensors"):
        add_lora(unet, str(tmp_path / "none.safetensors"), 1.0)


def test_guidance_takes_a_lora_and_a_network_in_one_file(random_priors, tmp_path, unet):
    """Of the folder with that LoRA, and of a file that holds its sum, the prior is the same."""
    kind = threestudio.find("animate124-image-guidance")
    model = {"pretrained_model_name_or_path": str(random_priors / "sd"), "size": 64}
    path = write(tmp_path / "lora.safetensors", matrices(unet), "peft")
    with_lora = kind({**model, "lora": path, "lora_scale": 0.5})
    add_lora(unet, path, 0.5)
    save_file(unet.state_dict(), tmp_path / "network.safetensors")
    of_file = kind({**model, "network_file": str(tmp_path / "network.safetensors")})
    plain, *others = (p.network.state_dict() for p in (kind(model), with_lora, of_file))
    for name, weight in others[0].items():
        torch.testing.assert_close(weight, others[1][name])
    assert not torch.equal(plain[f"{LINEAR}.weight"], others[0][f"{LINEAR}.weight"])
    assert not any(p.requires_grad for p in of_file.network.parameters())


def test_a_network_in_the_names_of_the_program_that_trained_it(tmp_path):
    """LTX-Video's own names, of which diffusers knows its own."""
    import tiny_models as tiny

    made = tiny.ltx_transformer()
    made.save_pretrained(tmp_path / "transformer")
    renamed = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm"}
    renamed["norm_k"] = "k_norm"
    held = {}
    for key, weight in made.state_dict().items():
        for ours, theirs in renamed.items():
            key = key.replace(ours, theirs)
        held[f"model.diffusion_model.{key}"] = weight
    save_file(held, tmp_path / "all.safetensors")
    kind = diffusers.LTXVideoTransformer3DModel
    place = str(tmp_path / "all.safetensors"), str(tmp_path), "transformer", torch.float32
    loaded = models.load_single_file(kind, *place)
    for name, weight in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    del held["model.diffusion_model.scale_shift_table"]
    save_file(held, tmp_path / "all.safetensors")
    with pytest.raises(ValueError, match=r"all\.safetensors"):
        models.load_single_file(kind, *place)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_file_is_as_precise_as_a_folder(tmp_path, dtype):
    """Wan's norms and times stay in float32."""
    import tiny_models as tiny

    made, kind = tiny.wan_transformer(), diffusers.WanTransformer3DModel
    made.save_pretrained(tmp_path / "transformer")
    place = str(tmp_path), "transformer", dtype
    save_file(made.state_dict(), tmp_path / "all.safetensors")
    one = models.load_single_file(kind, str(tmp_path / "all.safetensors"), *place).state_dict()
    kinds = set()
    for name, weight in models.load_component(kind, *place).state_dict().items():
        torch.testing.assert_close(one[name], weight, atol=0, rtol=0)
        kinds.add(weight.dtype)
    assert kinds == {torch.float32, dtype}
    save_file({"a.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"states: it has not all of its layers\. Is it of another"
    ):
        models.load_single_file(kind, str(tmp_path / "other.safetensors"), *place)


def test_single_files_that_can_not_be_read_are_refused(random_priors, tmp_path, unet):
    folder = str(random_priors / "sd")

    def load(name, kind=diffusers.UNet2DConditionModel):
        return models.load_single_file(kind, str(tmp_path / name), folder, "unet", torch.float32)

    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.safetensors"):
        load("nothing.safetensors")
    (tmp_path / "network.ckpt").touch()
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        load("network.ckpt")
    save_file({"a.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"can't be read as the UNet2DConditionModel"):
        load("other.safetensors")
    with pytest.raises(ValueError, match=r"holds a UNet2DConditionModel, but a ControlNetModel"):
        load("other.safetensors", diffusers.ControlNetModel)
    with pytest.raises(ValueError, match=r"reads no single file of a UNet3DConditionModel"):
        load("other.safetensors", diffusers.UNet3DConditionModel)
