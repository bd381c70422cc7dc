"""How the flow prior is trained: Wan 2.2's image-to-video model (a causal video VAE, a transformer,
rectified flow, the first frame clean) at the toy world's size. The text encoder is text-to-video's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import networks
from .autoencoder import signed
from .clip_coder import ClipCoder, clip_moments
from .folders import Network
from .recipes import Workshop, worn
from .rectified_flow import Predict, flow_loss


def causal_autoencoder(shop: Workshop) -> Network:
    """The video VAE; its config states the mean and deviation of its latents' channels."""
    seed = shop.seeded("flow_vae")
    vae = networks.make_causal_vae(shop.plan).to(shop.device)
    clips = shop.flow_clips.images

    def loss() -> Tensor:
        x = signed(clips[shop.rows(len(clips), "flow_vae")]).transpose(1, 2)
        with half(shop.device):
            posterior = vae.encode(x).latent_dist
            z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
            y = vae.decode(z).sample.float()
        kl = posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()
        return F.mse_loss(y, x) + 0.05 * F.l1_loss(y, x) + 1e-6 * kl.mean()

    shop.train("flow_vae", seed, {"vae": vae}, loss)
    means, stds = (x.transpose(0, 1).flatten(1) for x in clip_moments(vae, clips[:2048]))
    spread = (means.var(1) + stds.square().mean(1)).sqrt()
    vae.register_to_config(latents_mean=means.mean(1).tolist(), latents_std=spread.tolist())
    return vae


def flow_transformer(shop: Workshop, coder: ClipCoder, text: Network) -> Network:
    """The transformer. Its clips' first frame comes as a coarse render shows it, as the UNet's
    does; caption and picture are left out each for itself."""
    seed = shop.seeded("flow")
    net = networks.make_transformer(shop.plan, text.config.hidden_size).to(shop.device)
    bank = shop.flow_clips
    draw = coder.latents(bank.images)
    ids, empty = shop.tokens(bank.captions), shop.tokens([""])

    def loss() -> Tensor:
        rows = shop.rows(len(ids), "flow")
        states = text(torch.where(shop.dropped(len(rows)), empty, ids[rows])).last_hidden_state
        first = coder.first(worn(bank.images[rows, 0].float() / 255))
        seen = ~shop.dropped(len(rows))[:, 0]
        with half(shop.device):
            return flow_loss(velocity(net, states), draw(rows), first, seen)

    shop.train("flow", seed, {"net": net}, loss)
    return net


def half(device: str) -> torch.autocast:
    """bfloat16 on a GPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False)


def velocity(net: Network, states: Float[Tensor, "B L D"]) -> Predict:
    """What the transformer says of latents and their frames' times, with this text."""

    def predict(z: Tensor, times: Tensor) -> Tensor:
        tokens = times[:, :, None].expand(-1, -1, z.shape[3] * z.shape[4]).flatten(1)
        return net(z, 1000 * tokens, states, return_dict=False)[0]

    return predict
