"""What the extension computes in the host at hand, written to OUT as .npz, to compare hosts.

    python probe.py OUT --priors DIR --image FILE                     # in the bundled host
    python probe.py OUT --priors DIR --image FILE --checkout FOLDER   # in an unmodified threestudio

The second is run from a folder with custom/threestudio-animate124 in it, which the checkout's
launch.py loads with its own loader. Weights and random numbers are the same in both: renders of a
random 4D field, and for each guidance the loss and its gradient at the rendered frames."""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import torch

STAGES = {"stage1": ["guidance"], "stage3": ["guidance", "guidance_3d", "guidance_cn"]}


def enter_host(checkout: str | None) -> str:
    """Loads the extension as a user of the host does; the name that it then has."""
    if checkout is None:
        importlib.import_module("animate124")
        return "animate124"
    import on_cpu

    on_cpu.prepare(checkout)
    importlib.import_module("launch").load_custom_modules()
    return "threestudio-animate124"


def registered() -> set[str]:
    import threestudio

    return set(threestudio.__modules__)


def overrides(stage: str, priors: str, image: str) -> list[str]:
    """The toy config on the given priors and image, from nothing."""
    values = {
        "data.image.image_path": image,
        "system.weights": "null",
        "system.renderer.return_comp_normal": "true",
        "system.prompt_processor.prompt": "a panda is dancing",
        "system.guidance.pretrained_model_name_or_path": f"{priors}/sd",
        "system.guidance_3d.pretrained_model_name_or_path": f"{priors}/zero123",
    }
    if stage == "stage3":
        values |= {
            "system.guidance.pretrained_model_name_or_path": f"{priors}/text-to-video",
            "system.guidance_cn.pretrained_model_name_or_path": f"{priors}/sd",
            "system.guidance_cn.controlnet_name_or_path": f"{priors}/controlnet-tile",
        }
    return [f"{key}={value}" for key, value in values.items()]


def random_field(geometry) -> None:
    """The same weights in every host, large enough that the field is neither smooth nor still."""
    generator = torch.Generator().manual_seed(7)
    for _, parameter in sorted(geometry.named_parameters()):
        values = torch.rand(parameter.shape, generator=generator)
        parameter.data.copy_(0.6 * values - 0.3)


def probe(extension: str, stage: str, priors: str, image: str) -> dict[str, np.ndarray]:
    """Renders of three cameras at three times, and the guidances' gradients at noise."""
    import threestudio
    from threestudio.utils.config import load_config

    cameras = importlib.import_module(f"{extension}.data.cameras")
    folder = Path(__file__).parents[2] / "configs" / "toy"
    cfg = load_config(
        str(folder / f"{stage}.yaml"), cli_args=overrides(stage, priors, image), n_gpus=1
    )
    system = threestudio.find(cfg.system_type)(cfg.system)
    random_field(system.geometry)
    torch.manual_seed(1)
    system.renderer.train().update_step(0, 0)
    camera = cameras.Cameras.of([0.0, 20.0, -30.0], [0.0, 75.0, 190.0]).batch(
        32, 32, torch.tensor([0.0, 0.4, 0.9])
    )
    with torch.no_grad():
        rendered = system.renderer.eval()(**camera)
    names = ["comp_rgb", "opacity", "depth", "comp_normal"]
    found = {f"{stage}/render/{name}": rendered[name].numpy() for name in names}

    four = cameras.Cameras.of([0.0, 5.0, 10.0, 15.0], [0.0, 10.0, 20.0, 30.0]).batch(32, 32)
    for name in STAGES[stage]:
        guidance = threestudio.find(cfg.system[f"{name}_type"])(cfg.system[name])
        prompt = name.replace("guidance", "prompt_processor")
        arguments = []
        if f"{prompt}_type" in cfg.system:
            processor = threestudio.find(cfg.system[f"{prompt}_type"])(cfg.system[prompt])
            arguments = [processor()]
        torch.manual_seed(2)
        rgb = torch.rand(4, 32, 32, 3, requires_grad=True)
        loss = guidance(rgb, *arguments, **four, num_frames=4)["loss_sds"]
        loss.backward()
        found[f"{stage}/{name}/loss"] = loss.detach().numpy()
        found[f"{stage}/{name}/gradient"] = rgb.grad.numpy()
    return found


def mixed(priors: str) -> dict[str, np.ndarray]:
    """Our prompts and guidance with threestudio's own, crosswise, on two views."""
    import threestudio

    model = {"pretrained_model_name_or_path": f"{priors}/sd"}
    prompt = {"prompt": "a panda is dancing", **model}
    camera = {
        "elevation": torch.tensor([0.0, 70.0]),
        "azimuth": torch.tensor([0.0, 100.0]),
        "camera_distances": torch.tensor([2.5, 2.5]),
    }
    prompts = {
        "ours": threestudio.find("animate124-prompt-processor")(prompt)(),
        "stock": threestudio.find("stable-diffusion-prompt-processor")(
            {**prompt, "spawn": False}
        )(),
    }
    guidances = {
        "ours": threestudio.find("animate124-image-guidance")({"size": 64, **model}),
        "stock": threestudio.find("stable-diffusion-guidance")(
            {"half_precision_weights": False, **model}
        ),
    }
    found = {}
    for prompt_name, prompt_utils in prompts.items():
        found[f"embeddings/{prompt_name}"] = prompt_utils.get_text_embeddings(**camera).numpy()
        for guidance_name, guidance in guidances.items():
            torch.manual_seed(2)
            rgb = torch.rand(2, 32, 32, 3, requires_grad=True)
            guidance(rgb, prompt_utils, **camera)["loss_sds"].backward()
            found[f"gradient/{guidance_name} on {prompt_name}"] = rgb.grad.numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--priors", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--checkout")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    extension = enter_host(args.checkout)
    found = {"registered": np.array(sorted(registered()))}
    for stage in STAGES:
        found |= probe(extension, stage, args.priors, args.image)
    if args.checkout:
        found |= mixed(args.priors)
    np.savez(args.out, **found)


if __name__ == "__main__":
    main()
