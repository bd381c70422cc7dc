"""The frozen UNets of a step, recorded as CUDA graphs: diffusers' own, with channels_last weights
where it takes them, through torch.compile (--inductor), and ours; full size, random weights.
Both halves of guidance see the same, but for their text (and Zero123's for its picture).

    python benchmarks/unets.py [--repeats 20] [--inductor] [--tiny]

Milliseconds of one call with classifier-free guidance, seconds until the first result (compiling,
recording), and the noise's relative error against float32. `--tiny` tries it on a CPU, where
nothing is recorded.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial

import diffusers
import torch
from animate124.guidance.conditions import both
from animate124.guidance.speed import Recorded, channels_last, prepare_network
from animate124.host.argument_types import positive_int
from animate124.toyworld import random_priors
from full_size_models import COMPONENTS, make
from measuring import milliseconds, now
from torch import Tensor, nn

Inputs = dict[str, Tensor]
# name: models as COMPONENTS has them, latents, tokens of the text
CASES = {
    "SD 1.5, 512 px": ([("sd", "unet")], (2, 4, 64, 64), (2, 77, 768)),
    "Zero123, 256 px": ([("zero123", "unet")], (2, 8, 32, 32), (2, 1, 768)),
    "video, 16 frames of 256 px": (
        [("text-to-video", "unet")],
        (2, 4, 16, 32, 32),
        (2, 77, 1024),
    ),
    "tile, 2 frames of 1024 px": (
        [("sd", "unet"), ("controlnet-tile", "")],
        (4, 4, 128, 128),
        (4, 77, 768),
    ),
}
TINY = {
    ("sd", "unet"): random_priors.UNET_2D,
    ("zero123", "unet"): {**random_priors.UNET_2D, "in_channels": 8},
    ("text-to-video", "unet"): random_priors.UNET_3D,
    ("controlnet-tile", ""): random_priors.CONTROLNET,
}


# a network, and whether the halves differ in their text alone
PREPARE: dict[str, Callable[[nn.Module, bool], object]] = {
    "as it is": lambda network, _: None,
    "channels_last": lambda network, _: channels_last(network),
    "inductor": lambda network, _: prepare_network(network, "inductor"),
    "ours": lambda network, only_text: prepare_network(network, "graph", only_text),
}


def predict(networks: list[nn.Module], inputs: Inputs) -> Tensor:
    """The noise, as the guidances ask for it."""
    unet, *control = networks
    latents, t, tokens = inputs["latents"], inputs["t"], inputs["tokens"]
    extra = {}
    if control:
        down, middle = control[0](
            latents, t, tokens, controlnet_cond=inputs["control"], return_dict=False
        )
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet(latents, t, tokens, **extra).sample


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


@torch.no_grad()
def measure(name: str, ways: list[str], args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts, latents, tokens = CASES[name]
    if args.tiny:
        latents, tokens = (*latents[:-2], 8, 8), (*tokens[:2], random_priors.WIDTH)
        for part in parts:
            COMPONENTS[part] = COMPONENTS[part][0], TINY[part]
    torch.manual_seed(0)
    exact = [make(*part, torch.float32, device) for part in parts]
    side = 8 * latents[-1]
    n, only_text = latents[0] // 2, "zero123" not in parts[0]
    inputs = {
        "latents": torch.randn(n if only_text else 2 * n, *latents[1:], device=device),
        "t": torch.full(latents[:1], 500, device=device),
        "tokens": torch.randn(tokens, device=device),
        "control": both(torch.rand(n, 3, side, side, device=device)),
    }
    if only_text:
        inputs["latents"] = both(inputs["latents"])
    expected = predict(exact, inputs)
    half = torch.float16 if device == "cuda" else torch.bfloat16
    inputs = cast(inputs, half)
    for way in ways:
        networks = [copy.deepcopy(network).to(half) for network in exact]
        for network in networks:
            PREPARE[way](network, only_text)
        call = partial(predict, networks)
        start = now()
        if device == "cuda":
            call = Recorded(call, way, torch.cuda.graph_pool_handle())
        result = call(inputs)
        ready = now() - start
        times = milliseconds(partial(call, inputs), args.repeats)
        error = (result.float() - expected).norm() / expected.norm()
        print(
            f"| {name} | {way} | {statistics.median(times):.1f} ({min(times):.1f} to "
            f"{max(times):.1f}) | {ready:.1f} | {error:.1e} |",
            flush=True,
        )
        del call, networks, result
        if device == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=positive_int, default=20)
    parser.add_argument("--inductor", action="store_true", help="torch.compile too: minutes")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this on a CPU")
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}")
    print("| UNet | way | ms | ready, s | error |\n|---|---|---|---|---|")
    for name in CASES:
        measure(name, [way for way in PREPARE if way != "inductor" or args.inductor], args)


if __name__ == "__main__":
    main()
