"""The field and its renderer, together, learn a scene from pictures: no diffusion involved."""

import pytest
import threestudio
import torch
from animate124.data.cameras import Cameras
from animate124.toyworld.characters import make_character
from animate124.toyworld.ray_tracing import render

GEOMETRY = {
    "density_bias": "blob_magic3d",
    "density_activation": "softplus",
    "pos_encoding_config": {
        "otype": "HashGridSpatialTime",
        "static": True,
        "n_levels": 8,
        "log2_hashmap_size": 14,
        "per_level_scale": 1.447269237440378,
    },
}


def build_renderer():
    geometry = threestudio.find("animate124-implicit-volume")(GEOMETRY)
    material = threestudio.find("no-material")({"n_output_dims": 3})
    background = threestudio.find("solid-color-background")({"color": [1.0, 1.0, 1.0]})
    return geometry, threestudio.find("animate124-nerf-volume-renderer")(
        {"num_samples_per_ray": 64, "return_comp_normal": False},
        geometry=geometry,
        material=material,
        background=background,
    )


@pytest.mark.parametrize("species", ["panda"])
def test_a_character_is_learnt_from_views_and_seen_right_from_others(species):
    i = torch.arange(30)
    elevation = torch.rad2deg(torch.asin(0.8 * (1 - (2 * i + 1) / 30)))
    cameras = Cameras.of(elevation, (i * 137.508) % 360).batch(40, 40)
    truth = render(make_character(species).at_rest(), cameras, supersample=2)
    unseen = i % 6 == 0
    rays = [cameras["rays_o"], cameras["rays_d"], truth["rgb"], truth["alpha"]]
    origins, directions, rgb, alpha = (x[~unseen].flatten(0, 2) for x in rays)

    geometry, renderer = build_renderer()
    optimizer = torch.optim.Adam(
        [
            {"params": geometry.encoding.parameters(), "lr": 0.01},
            {"params": geometry.density_network.parameters(), "lr": 0.005},
            {"params": geometry.feature_network.parameters(), "lr": 0.005},
        ],
        betas=(0.9, 0.99),
    )
    for step in range(150):
        renderer.update_step(0, step)
        picked = torch.randint(0, len(origins), (1536,))
        image = (1, 1536, 1, -1)
        out = renderer(origins[picked].view(image), directions[picked].view(image))
        loss = (out["comp_rgb"] - rgb[picked].view(image)).abs().mean()
        loss = loss + 0.1 * (out["opacity"] - alpha[picked].view(image)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    renderer.eval()
    with torch.no_grad():
        seen = renderer(cameras["rays_o"][unseen], cameras["rays_d"][unseen])["comp_rgb"]
    error = (seen - truth["rgb"][unseen]).square().flatten(1).mean(1)
    assert (-10 * error.log10()).mean() >= 26
