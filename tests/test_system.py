"""The training step on made-up modules: who sees what, and what the loss is the sum of."""

import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import threestudio
import torch
from animate124.data.cameras import Cameras
from animate124.renderer.occupancy_grid import OccupancyGrid
from animate124.renderer.ray_marching import occupied_box
from animate124.system import animate124, checkpoints, losses, terms
from animate124.system.animate124 import seed_everything, step_seed
from animate124.system.loss_watch import PATIENCE, LossWatch, Numbers, culprits
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.utils.base import BaseObject
from torch.nn.parallel import DistributedDataParallel

H, W, F = 6, 5, 3  # of the views here


@threestudio.register("test-geometry")
class Paint(BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config):
        static: bool = False  # whether the scene stands still
        size: int = 4  # numbers in the paint

    def configure(self):
        super().configure()
        self.paint = torch.nn.Parameter(torch.rand(self.cfg.size))
        self.static = self.cfg.static

    def forward(self, points, output_normal=False, times=None):
        raise NotImplementedError("test-renderer asks for nothing but the paint")


@threestudio.register("test-renderer")
class Painter(VolumeRenderer):
    """Pictures that depend on paint, camera and time, and a record of what was asked."""

    def configure(self, geometry, material, background):
        super().configure(geometry, material, background)
        self.asked = []

    def forward(self, rays_o, rays_d, frame_times, **camera):
        assert not {"rgb", "mask", "index"} & set(camera)
        self.asked.append(frame_times.tolist())
        shade = (rays_d + frame_times[:, None, None, None]).sin()  # [B H W 3]
        rgb = (shade * self.geometry.paint[:3] + self.geometry.paint[3]).sigmoid()
        out = {
            "comp_rgb": rgb,
            "opacity": rgb[..., :1],
            "depth": 2 + rgb[..., 1:2],
            "z_variance": rgb[..., 1:2].square(),
            "comp_normal": rgb.flip(-1),
        }
        flat = rgb.reshape(-1, 3)
        packed = {"weights": flat[:, :1], "normal": flat - 0.5, "t_dirs": rays_d.reshape(-1, 3)}
        return out | packed if self.training else out


@threestudio.register("test-prompt-processor")
class Prompt(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        prompt: str = ""  # handed on as it is

    def __call__(self):
        return f"embedding of {self.cfg.prompt}"


@threestudio.register("test-guidance")
class Opinion(BaseObject):
    """Says two losses, and remembers what it was shown."""

    @dataclass
    class Config(BaseObject.Config):
        factor: float = 1.0  # of the first loss

    def configure(self):
        self.shown = []

    def __call__(self, rgb, *prompt, **camera):
        self.shown.append((len(rgb), prompt, camera))
        return {
            "loss_a": self.cfg.factor * rgb.mean(),
            "loss_b": rgb.square().mean(),
            "grad_norm": torch.ones(()),
            "a_picture": rgb.detach(),
        }


def config(loss, **others):
    return {
        "geometry_type": "test-geometry",
        "material_type": "no-material",
        "background_type": "solid-color-background",
        "renderer_type": "test-renderer",
        "guidance_type": "test-guidance",
        "guidance": {"factor": 2.0},
        "prompt_processor_type": "test-prompt-processor",
        "prompt_processor": {"prompt": "a panda"},
        "guidance_3d_type": "test-guidance",
        "guidance_3d": {"factor": 3.0},
        "guidance_cn_type": "test-guidance",
        "guidance_cn": {"factor": 5.0},
        "prompt_processor_cn_type": "test-prompt-processor",
        "prompt_processor_cn": {"prompt": "a <token>"},
        "loss": loss,
        "optimizer": {"name": "SGD", "args": {"lr": 0.1}},
        **others,
    }


def system_with(loss, **others):
    system = animate124.Animate124(config(loss, **others))
    system.on_fit_start()
    return system


def view(n, times):
    cameras = Cameras(
        torch.zeros(n), torch.linspace(0, 90, n), torch.full((n,), 2.5), torch.full((n,), 40.0)
    )
    return cameras.batch(H, W, torch.tensor(times))


def image_batch():
    reference = view(1, [0.0])
    reference |= {"rgb": torch.rand(1, H, W, 3), "mask": (torch.rand(1, H, W, 1) > 0.5).float()}
    return {"random_camera": view(2, [0.0, 0.0]), "reference": reference}


def clip_batch(from_zero):
    batch = {"clip": view(2 * F, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "num_frames": F}
    return batch | image_batch() if from_zero else batch


def rendered(system, camera):
    camera = {k: v for k, v in camera.items() if k not in ("rgb", "mask")}
    return system.renderer(**camera)


def opinion(rgb, factor):
    return factor * rgb.mean() + rgb.square().mean()


WEIGHTS = {
    "lambda_rgb": 1000.0,
    "lambda_mask": 100.0,
    "lambda_sd": 0.5,
    "lambda_3d_sd": 40.0,
    "lambda_sds_video": 2.0,
    "lambda_cn_sds": 3.0,
    "lambda_normal_smoothness_2d": 7.0,
    "lambda_orient": 11.0,
    "lambda_sparsity": 13.0,
    "lambda_opaque": 17.0,
    "lambda_z_variance": 19.0,
    "lambda_tv": 23.0,
}


def expected_loss(system, batch, w):
    """The method's table, written out."""
    total, outs = 0.0, {k: rendered(system, batch[k]) for k in batch if k != "num_frames"}
    if "reference" in batch:
        rgb, opacity = outs["reference"]["comp_rgb"], outs["reference"]["opacity"]
        given, mask = batch["reference"]["rgb"], batch["reference"]["mask"]
        total += w["lambda_rgb"] * ((rgb - given) * mask).square().mean()
        bce = torch.nn.functional.binary_cross_entropy(opacity, mask)
        total += w["lambda_mask"] * bce
    if "random_camera" in batch:
        rgb = outs["random_camera"]["comp_rgb"]
        total += w["lambda_sd"] * opinion(rgb, 2) + w["lambda_3d_sd"] * opinion(rgb, 3)
    if "clip" in batch:
        rgb = outs["clip"]["comp_rgb"]
        total += w["lambda_sds_video"] * opinion(rgb, 2) + w["lambda_cn_sds"] * opinion(rgb, 5)
    for out in outs.values():
        opacity = out["opacity"]
        total += w["lambda_normal_smoothness_2d"] * losses.normal_smoothness_2d(out["comp_normal"])
        packed = (out["weights"], out["normal"], out["t_dirs"], opacity)
        total += w["lambda_orient"] * losses.orientation(*packed)
        total += w["lambda_sparsity"] * losses.sparsity(opacity)
        total += w["lambda_opaque"] * losses.opaque(opacity)
        total += w["lambda_z_variance"] * losses.z_variance(out["z_variance"], opacity)
        total += w["lambda_tv"] * losses.total_variation(out["comp_rgb"])
    return total


BATCHES = {
    "image": image_batch,
    "clip": lambda: clip_batch(False),
    "clip from zero": lambda: clip_batch(True),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_the_loss_is_the_weighted_sum_of_all_that_the_batch_brings(kind):
    system, batch = system_with(WEIGHTS), BATCHES[kind]()
    said = system.training_step(batch, 0)
    expected = expected_loss(system, batch, WEIGHTS)
    torch.testing.assert_close(said["loss"], expected)
    grads = [
        torch.autograd.grad(loss, system.geometry.paint)[0] for loss in (said["loss"], expected)
    ]
    torch.testing.assert_close(*grads)
    shown = {"image": (1, 1, 0), "clip": (1, 0, 1), "clip from zero": (2, 1, 1)}[kind]
    guidances = (system.guidance, system.guidance_3d, system.guidance_cn)
    assert tuple(len(g.shown) for g in guidances) == shown


@pytest.mark.parametrize("kind", BATCHES)
def test_views_of_one_size_are_one_call_where_launching_costs(kind, monkeypatch):
    weights = WEIGHTS | {"lambda_orient": 0.0}  # it reads samples
    system, batch = system_with(weights), BATCHES[kind]()
    results = []
    for waits in (False, True):
        monkeypatch.setattr(animate124.Animate124, "waits_for_launches", waits)
        system.renderer.asked.clear()
        loss = system.training_step(batch, 0)["loss"]
        results.append((loss.detach(), torch.autograd.grad(loss, system.geometry.paint)[0]))
    torch.testing.assert_close(*results)
    assert len(system.renderer.asked) == 1
    batch.get("clip", batch.get("random_camera"))["height"] = H + 1  # as if it were of another size
    system.renderer.asked.clear()
    system.training_step(batch, 0)
    assert len(system.renderer.asked) == (1 if kind == "clip" else 2)


def test_views_are_rendered_one_by_one_where_a_loss_reads_their_samples(monkeypatch):
    system = system_with(WEIGHTS)
    monkeypatch.setattr(animate124.Animate124, "waits_for_launches", True)
    system.training_step(clip_batch(True), 0)
    assert len(system.renderer.asked) == 3


@pytest.mark.parametrize("key", WEIGHTS)
def test_each_weight_alone_counts_and_renders_only_what_it_reads(key):
    alone = {name: WEIGHTS[name] if name == key else 0 for name in WEIGHTS}
    system, batch = system_with(alone), clip_batch(True)
    said = system.training_step(batch, 0)
    asked = len(system.renderer.asked)
    torch.testing.assert_close(said["loss"], expected_loss(system, batch, alone))
    assert said["loss"] > 0
    torch.testing.assert_close(
        said[key.replace("lambda_", "loss_")] * WEIGHTS[key], said["loss"].detach()
    )
    regulariser = key in terms.REGULARISERS
    assert asked == (3 if regulariser else 1)


def test_guidances_see_prompts_angles_and_frames_of_their_slot():
    system = system_with(WEIGHTS)
    batch = clip_batch(True)
    system.training_step(batch, 0)
    (images, on_images), (_, on_clips) = (
        (call[0], call) for call in sorted(system.guidance.shown, key=lambda call: call[0])
    )
    assert images == 2 and on_images[1] == ("embedding of a panda",)
    assert "num_frames" not in on_images[2] and on_clips[2]["num_frames"] == F
    torch.testing.assert_close(on_clips[2]["azimuth"], batch["clip"]["azimuth"])
    (count, prompt, camera) = system.guidance_3d.shown[0]
    assert (count, prompt) == (2, ())
    torch.testing.assert_close(camera["elevation"], batch["random_camera"]["elevation"])
    (count, prompt, camera) = system.guidance_cn.shown[0]
    assert (count, prompt, camera["num_frames"]) == (2 * F, ("embedding of a <token>",), F)


def test_weights_follow_their_schedule():
    system = system_with({"lambda_rgb": [10, 4.0, 0.0, 20], "lambda_mask": 0})
    batch = image_batch()
    mse = losses.rgb_on_mask(
        rendered(system, batch["reference"])["comp_rgb"],
        batch["reference"]["rgb"],
        batch["reference"]["mask"],
    )
    for step, weight in ((0, 4.0), (10, 4.0), (15, 2.0), (20, 0.0), (99, 0.0)):
        system.set_resume_status(0, step)
        torch.testing.assert_close(system.training_step(batch, 0)["loss"], weight * mse)


def test_a_prior_whose_losses_weigh_nothing_is_neither_loaded_nor_called():
    system = system_with({"lambda_sd": 1.0, "lambda_3d_sd": 0.0, "lambda_cn_sds": [0, 0.0, 0.0, 5]})
    assert not hasattr(system, "guidance_3d") and not hasattr(system, "guidance_cn")
    assert not hasattr(system, "prompt_processor_cn")
    system.training_step(image_batch(), 0)
    assert len(system.guidance.shown) == 1


@pytest.mark.parametrize("name", ["guidance_3d", "guidance"])  # not loaded; threestudio's own
def test_a_run_goes_on_without_the_targets_of_a_prior_that_takes_none(name):
    system = animate124.Animate124(config({"lambda_sd": 1.0}))
    system.targets_before = {name: {"a view": (torch.zeros(1), 2)}}
    system.on_fit_start()
    assert hasattr(system, "guidance") and not hasattr(system, "guidance_3d")


def test_a_step_that_nothing_weighs_in_changes_nothing():
    system = system_with({"lambda_rgb": 1.0})
    loss = system.training_step(clip_batch(False), 0)["loss"]
    assert loss == 0
    loss.backward()
    assert not system.geometry.paint.grad.any()


def test_a_further_guidance_is_a_row_of_the_table(monkeypatch):
    row = terms.GuidanceTerm("lambda_new", terms.CLIP, "guidance_new", None, "test-guidance")
    monkeypatch.setattr(terms, "GUIDANCE_TERMS", (*terms.GUIDANCE_TERMS, row))

    class WithOneMore(animate124.Animate124):
        Config = terms.with_priors(animate124.Animate124.Config)

    loss = {"lambda_new": 3.0, "lambda_sd": 0.0}
    extra = {"guidance_new_type": "test-guidance", "guidance_new": {"factor": 7.0}}
    system = WithOneMore(config(loss, **extra))
    assert system.used_in_training(system.cfg)[-1] == row.guidance
    system.on_fit_start()
    batch = clip_batch(False)
    said = system.training_step(batch, 0)
    expected = 3 * opinion(rendered(system, batch["clip"])["comp_rgb"], 7)
    torch.testing.assert_close(said["loss"], expected)
    assert said.keys() == {"loss", "loss_new"} and not hasattr(system, "guidance")
    with pytest.raises(ValueError, match=r"lambda_new.*guidance_new_type.*such as test-guidance"):
        WithOneMore(config(loss))


def test_priors_wait_for_training():
    system = animate124.Animate124(config(WEIGHTS))
    assert not any(hasattr(system, name) for name in terms.priors())


def test_a_guidance_without_a_loss_is_an_error(monkeypatch):
    system = system_with({"lambda_sd": 1.0})
    monkeypatch.setattr(Opinion, "__call__", lambda self, rgb, *prompt, **camera: {"eps": 1})
    with pytest.raises(KeyError, match=r"test-guidance returned \['eps'\]"):
        system.training_step(image_batch(), 0)


class Trainer:
    """What the system asks of Lightning's."""

    training = True
    ckpt_path = None
    checkpoint_callbacks = ()
    precision_plugin = None


@pytest.fixture
def trainer(monkeypatch):
    stand_in = Trainer()
    monkeypatch.setattr(animate124.Animate124, "trainer", stand_in)
    monkeypatch.setattr(animate124.Animate124, "global_step", 6)
    monkeypatch.setattr(animate124.Animate124, "log", lambda *args, **options: None)
    return stand_in


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"lambda_rgb": 1e39, "lambda_sd": 1.0}, r"not finite: loss_rgb 0\.\d+ times .*rgb 1e\+39"),
        ({"lambda_sd": 1e39}, r"step 7 .* times system\.loss\.lambda_sd 1e\+39"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(trainer, loss, words):
    system = system_with(loss, guidance={"factor": 5.0})
    with pytest.raises(FloatingPointError, match=f"{words}.*start again"):
        system.training_step(image_batch(), 0)


def test_losses_that_overflow_only_together_are_all_named():
    said = culprits(
        {"loss": INF, "loss_a": 1.0, "loss_b": 1.0}, {"lambda_a": 2e38, "lambda_b": 3e38}
    )
    assert (
        said
        == "loss_a 1 times system.loss.lambda_a 2e+38, loss_b 1 times system.loss.lambda_b 3e+38"
    )


def test_a_loss_still_on_its_way_is_looked_at_before_anything_is_saved(trainer):
    system = system_with({"lambda_rgb": 1.0})
    checkpoint = {"state_dict": system.state_dict()}
    system.on_save_checkpoint(checkpoint)
    for then in (lambda: system.on_save_checkpoint(checkpoint), system.on_train_end):
        system.loss_watch.pending = Numbers(6, ("loss",), (), {}, torch.tensor([NAN]), None)
        with pytest.raises(FloatingPointError, match="loss of step 6 is not finite: nan"):
            then()


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_weights_that_are_not_finite_are_neither_saved_nor_taken_for_an_end(trainer, number):
    system = system_with({"lambda_rgb": 1.0})
    moments = {"step": torch.tensor(6.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    checkpoint = {
        "state_dict": system.state_dict(),
        "optimizer_states": [{"state": {0: moments}, "param_groups": []}],
    }
    system.on_save_checkpoint(checkpoint)
    system.on_train_end()
    moments["exp_avg_sq"][2] = number
    with pytest.raises(FloatingPointError, match=r"step 6 .*exp_avg_sq of parameter 0 is NaN or"):
        system.on_save_checkpoint(checkpoint)
    system.geometry.paint.data[1] = number
    for then in (lambda: system.on_save_checkpoint(checkpoint), system.on_train_end):
        with pytest.raises(FloatingPointError, match=r"step 6 geometry\.paint"):
            then()


def test_gradients_that_overflow_without_end_are_found(trainer):
    scale = 2.0**16
    scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer.precision_plugin = SimpleNamespace(scaler=scaler)
    system = system_with({"lambda_rgb": 1.0})
    system.on_train_end()
    scale = 2.0**-17  # 33 steps that overflowed
    with pytest.raises(FloatingPointError, match=r"overflowed.*trainer\.precision=bf16-mixed"):
        system.on_save_checkpoint({"state_dict": system.state_dict()})


def test_the_way_back_is_a_checkpoint_that_exists(trainer, tmp_path):
    system = system_with({"lambda_rgb": 1.0})
    assert "Nothing was saved before" in system.way_back()
    trainer.ckpt_path = "elsewhere/last.ckpt"  # what this run was resumed from
    trainer.checkpoint_callbacks = [SimpleNamespace(dirpath=tmp_path), SimpleNamespace()]
    assert "resume=elsewhere/last.ckpt" in system.way_back()
    for i, name in enumerate(("last.ckpt", "epoch=0-step=4.ckpt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i))
    assert f"resume={tmp_path / 'epoch=0-step=4.ckpt'} goes on" in system.way_back()


def lose(watch, *shares, patience=PATIENCE):
    """Steps in which a prior loses these shares of its gradient."""
    for step, share in enumerate(shares):
        watch.gradient("system.guidance (a-prior)", torch.tensor(share), patience)
        watch.look(step, {"loss": torch.ones(())}, {})


@pytest.mark.parametrize(
    ("patience", "fine", "stops"),
    [
        (1, [0.5, 0.0], [1.0]),  # float32: a whole gradient ends the run
        (1, [0.1, 0.1, 0.0, 0.1, 0.1], [0.1]),  # part of it, three steps in a row
        (1, [0.001] * 9, [1.0]),  # single elements may be left out for ever
        (3, [1.0, 1.0, 0.0, 1.0, 0.3], [1.0]),  # half precision may overflow once
    ],
)
def test_a_prior_whose_gradient_is_lost_stops_the_run_and_is_named(patience, fine, stops):
    watch = LossWatch(lambda: "Back to last.ckpt.")
    lose(watch, *fine, patience=patience)
    with pytest.raises(FloatingPointError, match=r"system\.guidance \(a-prior\).*Back to last"):
        lose(watch, *stops, patience=patience)


@pytest.mark.gpu
def test_a_gpus_loss_is_looked_at_a_step_later_and_at_the_end():
    good, bad = ({"loss": torch.tensor(x, device="cuda")} for x in (1.0, INF))
    watch = LossWatch(lambda: "")
    watch.look(0, good, {})
    watch.look(1, bad, {})
    with pytest.raises(FloatingPointError, match=r"loss of step 1 .*: inf"):
        watch.look(2, good, {})
    watch.look(3, bad, {})
    with pytest.raises(FloatingPointError, match="loss of step 3 "):
        watch.finish()
    watch.finish()


class Seen(torch.nn.Module):
    """A scene that two processes train, and its occupancy grid."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.grid = OccupancyGrid(torch.tensor([-1.0, -1, -1, 1, 1, 1]), resolution=4)

    def forward(self):
        return self.weight.sum()


def look_on_both(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    wrapped = DistributedDataParallel(Seen(), find_unused_parameters=True)
    strategy = SimpleNamespace(model=wrapped)
    trained = SimpleNamespace(trainer=SimpleNamespace(strategy=strategy))
    animate124.Animate124.on_train_start(cast(Any, trained))
    grid, boxes = wrapped.module.grid, []
    for _ in range(2):
        wrapped().backward()  # a step, in which both meet
        grid.update(0, lambda points: (points[:, 0] * (-1) ** rank > 0.5).float())
        boxes.append((grid.occupied_box(), occupied_box(grid.binaries[0], grid.aabbs[0])))
        wrapped().backward()
        boxes.append((grid.occupied_box(), occupied_box(grid.binaries[0], grid.aabbs[0])))
    torch.save(boxes, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_each_of_several_processes_looks_within_the_box_of_its_own_occupancy_grid(tmp_path):
    torch.multiprocessing.start_processes(look_on_both, (tmp_path,), 2, start_method="fork")
    boxes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kept, found in [*boxes[0], *boxes[1]]:
        torch.testing.assert_close(kept, found)
    assert boxes[0][-1][0][0][0] == 0.5 and boxes[1][-1][0][0][0] == -1  # the low corner's x


@pytest.mark.parametrize("compile", ["fast", True])
def test_an_unknown_way_to_compile_is_an_error(compile):
    with pytest.raises(ValueError, match=r"compile is .*graph.*inductor"):
        animate124.Animate124(config(WEIGHTS, speed={"compile": compile}))


def test_a_misspelt_speed_key_is_an_error():
    with pytest.raises(Exception, match="compil"):
        animate124.Animate124(config(WEIGHTS, speed={"compil": "graph"}))


def test_every_step_of_every_process_draws_its_own_random_numbers_again_and_again():
    def draws(seed):
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    places = [(base, k, rank) for base in (0, 1) for k in range(20) for rank in range(4)]
    seeds = [step_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert [step_seed(*place) for place in places] == seeds
    for n in range(3):
        numbers = [draws(seed)[n] for seed in seeds[:40]]
        assert len(set(numbers)) == 40
        assert [draws(seed)[n] for seed in seeds[:40]] == numbers


def test_the_seeds_are_those_of_torch():
    seed_everything(11)
    found = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(found, torch.rand(3))


def save(system, path, **entries):
    checkpoint = {"state_dict": system.state_dict(), "epoch": 0, "global_step": 3, **entries}
    torch.save(checkpoint, path)
    return str(path)


def test_weights_start_a_scene_from_another_run(tmp_path):
    before = system_with(WEIGHTS)
    path = save(before, tmp_path / "last.ckpt")
    after = animate124.Animate124(config(WEIGHTS, weights=path))
    torch.testing.assert_close(after.geometry.paint, before.geometry.paint)


def test_a_resumed_run_does_not_look_for_the_weights_it_once_started_from(tmp_path):
    gone = str(tmp_path / "gone.ckpt")
    assert animate124.Animate124(config(WEIGHTS, weights=gone), resumed=True).cfg.weights is None


def test_weights_of_another_geometry_are_refused(tmp_path):
    path = save(system_with(WEIGHTS, geometry={"size": 5}), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"geometry.paint: \(5,\).*\(4,\)") as e:
        animate124.Animate124(config(WEIGHTS, weights=path))
    assert "All stages of a scene share system.geometry" in str(e.value)


def test_weights_without_a_geometry_are_refused(tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"no geometry.*'weight'"):
        animate124.Animate124(config(WEIGHTS, weights=path))


def test_ignored_modules_are_not_asked_of_the_weights(tmp_path):
    path = save(system_with(WEIGHTS, geometry={"size": 5}), tmp_path / "last.ckpt")
    ignoring = config(WEIGHTS, weights=path, weights_ignore_modules=["geometry"])
    assert animate124.Animate124(ignoring).geometry.paint.shape == (4,)


def test_tables_of_release_0_1_start_and_resume_a_scene(tmp_path, trainer):
    field = {
        "pos_encoding_config": {"n_levels": 3, "base_resolution": 4, "per_level_scale": 2**0.5},
        "mlp_network_config": {"n_neurons": 4},
    }
    options = {"geometry_type": "animate124-implicit-volume", "geometry": field}
    before = system_with(WEIGHTS, **options)
    names = {k: v for k, v in before.state_dict().items() if k.endswith("params")}
    grids = before.geometry.encoding.encoding
    for name, grid in zip(names, (grids.encoding, grids.encoding_time), strict=True):
        size = replace(grid.spec, float64_scale=True).n_params
        assert size != grid.spec.n_params
        names[name] = torch.rand(size)
    before.geometry.take_layout(names, "geometry.")
    before.load_state_dict(names, strict=False)
    path = trainer.ckpt_path = save(before, tmp_path / "last.ckpt")
    after = animate124.Animate124(config(WEIGHTS, weights=path, **options))
    resumed = animate124.Animate124(config(WEIGHTS, **options))
    checkpoint = torch.load(path, weights_only=True)
    resumed.on_load_checkpoint(checkpoint)
    resumed.load_state_dict(checkpoint["state_dict"])
    points = torch.rand(9, 3)
    for system in (after, resumed):
        assert torch.equal(system.geometry(points)["density"], before.geometry(points)["density"])


def test_only_the_same_stage_is_resumed(trainer, tmp_path):
    trainer.ckpt_path = tmp_path / "last.ckpt"  # looked at for damage
    torch.save({}, trainer.ckpt_path)
    static = system_with({"lambda_sd": 1.0}, geometry={"static": True})
    dynamic = system_with(WEIGHTS)
    of_original = {"state_dict": dynamic.state_dict()}  # it says nothing of its stage
    checkpoint = {"state_dict": static.state_dict()}
    static.on_save_checkpoint(checkpoint)

    static.on_load_checkpoint(checkpoint)
    dynamic.on_load_checkpoint(of_original)
    with pytest.raises(ValueError, match=r"system\.weights instead of resume"):
        dynamic.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"geometry\.paint"):
        system_with(WEIGHTS, geometry={"size": 5}).on_load_checkpoint(of_original)
    trainer.training = False
    dynamic.on_load_checkpoint(checkpoint)


def test_a_checkpoint_that_is_not_finite_or_damaged_is_not_loaded(trainer, tmp_path):
    system = system_with({"lambda_rgb": 1.0})
    path = trainer.ckpt_path = tmp_path / "last.ckpt"
    checkpoint = {"state_dict": {k: v.clone() for k, v in system.state_dict().items()}}
    moments = {"exp_avg": torch.tensor([0.0, NAN])}
    checkpoint["optimizer_states"] = [{"state": {0: moments}}]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"last\.ckpt.* holds NaN.*exp_avg"):
        system.on_load_checkpoint(checkpoint)
    trainer.training = False
    system.on_load_checkpoint(checkpoint)  # what is only looked at needs no moments
    checkpoint["state_dict"]["geometry.paint"][0] = NAN
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"last\.ckpt.* holds NaN.*geometry\.paint"):
        system.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"last\.ckpt.* holds NaN.*geometry\.paint"):
        animate124.Animate124(config({}, weights=str(path)))


@pytest.mark.parametrize("host_asks", [True, False])
def test_a_damaged_checkpoint_is_refused_whether_or_not_the_host_asks(
    trainer, tmp_path, monkeypatch, host_asks
):
    """The real threestudio doesn't look at the checksums of what it reads."""
    monkeypatch.setattr(checkpoints, "HOST_ASKS", host_asks)
    system = system_with({"lambda_rgb": 1.0})
    path = trainer.ckpt_path = save(system, tmp_path / "last.ckpt")
    whole = Path(path).read_bytes()
    at = whole.index(b"geometry.paint")
    Path(path).write_bytes(whole[:at] + b"G" + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"last\.ckpt.* damaged"):
        animate124.Animate124(config({}, weights=str(path)))
    if not host_asks:
        with pytest.raises(ValueError, match=r"last\.ckpt.* damaged"):
            system.on_load_checkpoint({"state_dict": system.state_dict()})


def test_weights_are_read_once_and_what_they_lack_or_have_too_much_is_said(
    tmp_path, monkeypatch, caplog
):
    path = save(system_with(WEIGHTS), tmp_path / "last.ckpt")
    held = torch.load(path, weights_only=True)
    held["state_dict"] |= {"prior.weight": torch.ones(1)}
    del held["state_dict"]["background.env_color"]
    torch.save(held, path)
    reads = []
    read = checkpoints.load_module_weights
    monkeypatch.setattr(
        checkpoints, "load_module_weights", lambda *a, **k: reads.append(a) or read(*a, **k)
    )
    animate124.Animate124(config(WEIGHTS, weights=path))
    assert len(reads) == 1
    said = caplog.text
    assert "lacks background.env_color: they keep" in said
    assert "also has prior.weight: not used" in said


def test_a_resting_camera_is_rendered_once_while_time_stands_still():
    system = system_with(WEIGHTS)
    system.eval()
    system.resting_view = None
    first, second = view(1, [0.3]), view(1, [0.6])
    picture = system.frozen(first)
    torch.testing.assert_close(system.frozen(second), picture)
    assert system.renderer.asked == [[0.0]]
    second["c2w"] = second["c2w"] + 1
    system.frozen(second)
    assert system.renderer.asked == [[0.0], [0.0]]
