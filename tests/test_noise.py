"""Ways of noising: an analytic denoiser of a Gaussian, put as each one's networks put it, says what
the noise is, pulls to the mean, and weighs the same as the others.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from animate124.guidance import noise, sds
from animate124.guidance.distillation import ScoreDistillation
from animate124.guidance.targets import KeptTargets
from animate124.pretrained.flow_schedules import flow_schedule
from hypothesis import given, settings
from hypothesis import strategies as st

diffusers = pytest.importorskip("diffusers", minversion="0.33")  # older ones know no flows
from diffusers import (
    CogVideoXDDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALPHA_BAR = DDPMScheduler(**BETAS).alphas_cumprod.double()
ALPHA_BAR_TO_ZERO = CogVideoXDDIMScheduler(
    **BETAS, rescale_betas_zero_snr=True, snr_shift_scale=3.0
).alphas_cumprod.double()
MEAN, STD = 0.7, 0.4  # of the Gaussian that the models here know


@dataclass
class Family:
    """A way of noising and how its networks put z0_hat and eps_hat."""

    noise: Any
    answer: Any  # of z0_hat, eps_hat, z_t, alpha, sigma
    time_of: Any = lambda t: t  # the noise's t of the network's
    scale_of: Any = torch.ones_like  # z_t is so many times the network's input


def edm_answer(z0, eps, z_t, alpha, sigma):
    """F of z0 = z_t / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F."""
    return -(z0 - z_t / (sigma**2 + 1)) * (sigma**2 + 1).sqrt() / sigma


FAMILIES = {
    "epsilon": Family(noise.DDPM(ALPHA_BAR), lambda z0, eps, *rest: eps),
    "velocity": Family(
        noise.DDPM(ALPHA_BAR, "v_prediction"),
        lambda z0, eps, z_t, alpha, sigma: alpha * eps - sigma * z0,
    ),
    "velocity, noise alone at the end": Family(
        noise.DDPM(ALPHA_BAR_TO_ZERO, "v_prediction"),
        lambda z0, eps, z_t, alpha, sigma: alpha * eps - sigma * z0,
    ),
    "rectified flow": Family(
        noise.RectifiedFlow(shift=3.0), lambda z0, eps, *rest: eps - z0, lambda t: t / 1000
    ),
    "edm": Family(noise.EDM(), edm_answer, lambda t: (4 * t).exp(), lambda t: (t**2 + 1).sqrt()),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def best_denoiser(family, z_t, t, mean=MEAN):
    """The best denoiser of N(mean, STD^2), and the answer of a network that is it."""
    alpha, sigma = (noise.per_row(x, z_t) for x in family.noise.scales(t))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    z0 = mean + gain * (z_t - alpha * mean)
    eps = (z_t - alpha * z0) / sigma
    return eps, family.answer(z0, eps, z_t, alpha, sigma)


def times(family, n=64):
    """Times of the whole way but its ends."""
    generator = torch.Generator().manual_seed(0)
    t = family.noise.draw(n, 0.02, 0.98, device="cpu", generator=generator)
    return t.double() if t.is_floating_point() else t


@every_family
def test_noise_of_a_networks_answer_is_the_noise(family):
    t = times(family)
    z_t = torch.randn(len(t), 4, 3, 3, dtype=torch.float64)
    eps, answer = best_denoiser(family, z_t, t)
    torch.testing.assert_close(family.noise.noise_of(answer, z_t, t), eps, rtol=1e-9, atol=1e-9)


@every_family
@pytest.mark.parametrize("weighting", sds.WEIGHTS)
def test_distillation_pulls_to_the_mean_of_a_gaussian(family, weighting):
    """E of w (eps_hat - eps) = w alpha sigma (z - MEAN) / (alpha^2 STD^2 + sigma^2); linear in
    eps, so a pair of opposite draws is the expectation."""
    t = times(family)
    z = torch.randn(len(t), 4, dtype=torch.float64)
    alpha, sigma = family.noise.scales(t)
    weight = sds.WEIGHTS[weighting](noise.alpha_bar_of(alpha, sigma))
    grads = []
    drawn = torch.randn_like(z)
    for eps in (drawn, -drawn):
        z_t = noise.add_noise(z, eps, alpha, sigma)
        eps_hat = family.noise.noise_of(best_denoiser(family, z_t, t)[1], z_t, t)
        grads.append(sds.sds_gradient(eps_hat, eps, weight))
    pull = weight * alpha * sigma / (alpha**2 * STD**2 + sigma**2)
    expected = noise.per_row(pull, z) * (z - MEAN)
    torch.testing.assert_close(sum(grads) / 2, expected, rtol=1e-8, atol=1e-8)


class GaussianPrior(ScoreDistillation):
    """All images are N(mean, STD^2), whatever they are conditioned on: its best denoiser, given
    what `family`'s networks are given, a scaled z_t and their own time."""

    def __init__(self, family, mean, **changes):
        self.family, self.noise, self.mean = family, family.noise, mean
        self.cfg = self.Config(guidance_scale=3.0, **changes)
        self.range = self.cfg.min_step_percent, self.cfg.max_step_percent
        self.clip = self.cfg.grad_clip
        self.recorded = self.recorded_score = None
        self.kept_targets = KeptTargets(self.cfg.target_uses)
        self.update_step(0, 0)

    def prepare(self, images, prompt_utils, camera):
        return images, {}

    def to_latents(self, pictures):
        return pictures

    def to_pictures(self, z):
        return z

    def predict_noise(self, z_t, t, condition):
        t = self.family.time_of(t)
        z_t = z_t * noise.per_row(self.family.scale_of(t.double()), z_t)
        return best_denoiser(self.family, z_t, t, self.mean)[1]


@every_family
def test_distillation_moves_an_image_to_the_mean_of_a_gaussian(family):
    """Through the whole step, as a guidance takes it."""
    mean = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(5))
    prior = GaussianPrior(family, mean)
    image = torch.full((8, 3, 3, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.02)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 300)
        optimizer.zero_grad()
        prior(image)["loss_sds"].backward()
        optimizer.step()
    found = image.detach().mean(0).permute(2, 0, 1)
    torch.testing.assert_close(found, mean, atol=0.08, rtol=0)


@every_family
@pytest.mark.parametrize("weighting", sds.WEIGHTS)
def test_weights_agree_between_parametrisations_of_the_same_model(family, weighting):
    """The gradient at one ratio of signal to noise is that of DDPM with epsilon, whatever the scale
    of z_t."""
    t = times(family)
    z, eps = torch.randn(2, len(t), 4, dtype=torch.float64).unbind()
    alpha, sigma = family.noise.scales(t)
    alpha_bar = (1 + (sigma / alpha) ** 2) ** -1
    reference = Family(noise.DDPM(alpha_bar), FAMILIES["epsilon"].answer)
    rows = torch.arange(len(t))
    grads = []
    for each, at in ((family, t), (reference, rows)):
        alpha, sigma = each.noise.scales(at)
        z_t = noise.add_noise(z, eps, alpha, sigma)
        eps_hat = each.noise.noise_of(best_denoiser(each, z_t, at)[1], z_t, at)
        weight = sds.WEIGHTS[weighting](noise.alpha_bar_of(alpha, sigma))
        grads.append(sds.sds_gradient(eps_hat, eps, weight))
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


@every_family
def test_times_run_from_the_data_to_the_noise(family):
    at = torch.tensor([family.noise.time_at(k / 20) for k in range(1, 20)])
    alpha, sigma = family.noise.scales(at)
    assert ((sigma / alpha).diff() > 0).all()
    drawn = family.noise.draw(500, 0.3, 0.5, device="cpu")
    low, high = family.noise.time_at(0.3), family.noise.time_at(0.5)
    assert drawn.shape == (500,)
    assert (drawn >= low).all() and (drawn <= high).all()
    assert drawn.float().std() > 0.2 * (high - low)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_timesteps_stay_inside(a, b, num_timesteps):
    ddpm = noise.DDPM(torch.linspace(0.9, 0.1, num_timesteps))
    low, high = ddpm.time_at(min(a, b)), ddpm.time_at(max(a, b))
    assert 0 <= low <= high <= num_timesteps - 1


def test_timesteps_of_the_method():
    at = FAMILIES["epsilon"].noise.time_at
    assert [at(x) for x in (0.0, 0.02, 0.2, 0.58, 0.6, 0.98, 1.0)] == [
        0,
        20,
        200,
        580,
        600,
        980,
        999,
    ]


def test_a_timestep_that_is_noise_alone_is_refused():
    at = FAMILIES["velocity, noise alone at the end"].noise.time_at
    assert ALPHA_BAR_TO_ZERO[-1] == 0 and at(0.998) == 998
    with pytest.raises(ValueError, match=r"timestep 999 of 1000.*max_step_percent=0.998 or less"):
        at(1.0)


def test_timesteps_cover_the_range_and_both_ends():
    generator = torch.Generator().manual_seed(0)
    t = FAMILIES["epsilon"].noise.draw(2000, 0.003, 0.007, device="cpu", generator=generator)
    assert t.unique().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("low, high", [(-0.1, 0.5), (0.6, 0.2), (0.5, 1.1), (20, 980)])
@every_family
def test_ranges_that_are_none_are_named(family, low, high):
    with pytest.raises(ValueError, match=rf"from {low} to {high}.*min_step_percent"):
        family.noise.draw(1, low, high, device="cpu")


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 4, 5, 8, 8)])  # images, clips
def test_ddpm_is_diffusers(shape):
    scheduler = DDPMScheduler(**BETAS)
    velocity = noise.DDPM(scheduler.alphas_cumprod, "v_prediction")
    z, eps = torch.randn(shape), torch.randn(shape)
    t = torch.randint(0, 1000, shape[:1])
    z_t = noise.add_noise(z, eps, *velocity.scales(t))
    torch.testing.assert_close(z_t, scheduler.add_noise(z, eps, t))
    answer = scheduler.get_velocity(z, eps, t)
    torch.testing.assert_close(velocity.noise_of(answer, z_t, t), eps, atol=1e-5, rtol=1e-5)


def test_rectified_flow_is_diffusers_schedule():
    """A scheduler that is built with the shift (one that is given it later has other sigmas)."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    flow = noise.RectifiedFlow(shift=3.0)
    index = torch.tensor([0, 250, 700, 998])
    s = torch.tensor([flow.time_at(1 - i / 1000) for i in index.tolist()])
    torch.testing.assert_close(scheduler.sigmas[index], s)
    torch.testing.assert_close(scheduler.timesteps[index], flow.model_time(s))
    z, eps = torch.randn(2, 4, 4, 5).unbind()
    noised = torch.cat(
        [scheduler.scale_noise(z[k : k + 1], scheduler.timesteps[i : i + 1], eps[k : k + 1])
         for k, i in enumerate(index.tolist())]
    )  # fmt: skip
    torch.testing.assert_close(noise.add_noise(z, eps, *flow.scales(s)), noised)


def test_a_flow_draws_no_time_at_which_nothing_is_left_of_the_data():
    flow = noise.RectifiedFlow(3.0)
    assert flow.draw(64, 0.98, 1.0, device="cpu").max() < 1
    with pytest.raises(ValueError, match=r"min_step_percent=1.*noise alone.*0\.98"):
        flow.draw(1, 1.0, 1.0, device="cpu")


def test_a_flow_folder_states_its_samplers_schedule(tmp_path):
    """Whatever the sampler: Wan's folders have UniPC, others Euler. LTX's shift grows."""
    kept = {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "flow_prediction"}
    longer = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05}
    for scheduler, tokens, mu in (
        (UniPCMultistepScheduler(**kept), 1, None),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 1, None),
        (FlowMatchEulerDiscreteScheduler(**longer), 256, 0.95),
        (FlowMatchEulerDiscreteScheduler(**longer), 4096, 2.05),
    ):
        scheduler.save_pretrained(tmp_path / "scheduler")
        schedule = flow_schedule(str(tmp_path))
        asked = {"mu": mu} if mu else {}
        scheduler.set_timesteps(sigmas=np.array([0.9, 0.5, 0.1]), **asked)
        flow = noise.RectifiedFlow(schedule.shift_of(tokens), schedule.num_timesteps)
        s = torch.tensor([flow.time_at(fraction) for fraction in (0.9, 0.5, 0.1)])
        torch.testing.assert_close(scheduler.sigmas[:-1].float(), s)
        assert (scheduler.timesteps - flow.model_time(s)).abs().max() < 1  # UniPC's are whole
    path = tmp_path / "scheduler" / "scheduler_config.json"
    stated = json.loads(path.read_text())
    for change in ({"max_image_seq_len": 256}, {"shift": 0.0}, {"num_train_timesteps": 0}):
        path.write_text(json.dumps(stated | change))
        with pytest.raises(ValueError, match=r"scheduler_config\.json can't be read.*a shift"):
            flow_schedule(str(tmp_path))
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=r"no model of rectified flow.*DDPMScheduler"):
        flow_schedule(str(tmp_path))
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="cut off"):
        flow_schedule(str(tmp_path))


def test_edm_is_diffusers_way_of_stable_video_diffusion():
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        timestep_spacing="leading",
        **BETAS,
    )
    scheduler.set_timesteps(12)
    edm = noise.EDM()
    sigmas = torch.tensor([edm.time_at(1 - k / 11) for k in range(12)])
    torch.testing.assert_close(scheduler.sigmas[:-1], sigmas, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps, edm.model_time(scheduler.sigmas[:-1]))
    z_t, answer = torch.randn(2, 1, 4, 5).unbind()
    for k in (0, 5, 10):
        scheduler._step_index = None
        t = scheduler.sigmas[k : k + 1]
        shown = scheduler.scale_model_input(z_t, scheduler.timesteps[k])
        torch.testing.assert_close(edm.model_input(z_t, t), shown)
        denoised = scheduler.step(answer, scheduler.timesteps[k], z_t).pred_original_sample
        expected = (z_t - denoised) / t
        torch.testing.assert_close(edm.noise_of(answer, z_t, t), expected, rtol=1e-4, atol=1e-4)


def test_unknown_predictions_are_refused():
    with pytest.raises(ValueError, match=r"'sample'.*epsilon or v_prediction"):
        noise.DDPM(ALPHA_BAR, "sample")
