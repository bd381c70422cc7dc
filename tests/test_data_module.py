"""The data module: what is in a batch, that it can be repeated, and what its options change."""

import dataclasses
import math
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from animate124.data.cameras import Cameras
from animate124.data.config import (
    DataConfig,
    ImageConfig,
    MultiViewConfig,
    SingleViewConfig,
    parse_data_config,
)
from animate124.data.image_video_datamodule import (
    EvaluationViews,
    ImageVideoDataModule,
    TrainingBatches,
    batch_generator,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from threestudio.utils.bounds import alternatives
from torch.utils.data import DataLoader

CAMERA_KEYS = {
    "rays_o", "rays_d", "c2w", "mvp_mtx", "camera_positions", "light_positions", "elevation",
    "azimuth", "camera_distances", "fovy", "height", "width", "frame_times",
}  # fmt: skip


@pytest.fixture(scope="session")
def image_path(tmp_path_factory):
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[5:15, 5:15] = (200, 50, 0, 255)
    path = tmp_path_factory.mktemp("image") / "_rgba.png"
    Image.fromarray(rgba).save(path)
    return str(path)


@pytest.fixture(scope="session")
def config(image_path):
    """A small config; `section__key=value` and `key=value` change it."""

    def config(**changes):
        cfg = {
            "image": {"image_path": image_path, "height": 7, "width": 7},
            "single_view": {
                "num_frames": 4, "width": 6, "height": 5, "width_vid": 4, "height_vid": 3,
                "eval_height": 6, "eval_width": 8,
            },
            "multi_view": {"width": 3, "height": 4},
        }  # fmt: skip
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (cfg[section] if section else cfg)[name] = value
        return cfg

    return config


@pytest.fixture(scope="session")
def batches(config):
    """TrainingBatches of a changed config."""
    return lambda seed=0, rank=0, **changes: TrainingBatches(
        parse_data_config(config(**changes)), seed, rank
    )


def flat(batch, prefix=""):
    """Nested dict -> {"reference.rgb": tensor}."""
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def same(a, b):
    a, b = dict(flat(a)), dict(flat(b))
    return a.keys() == b.keys() and all(
        torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a
    )


def clip_of(data, starts, tries=200):
    """The first video batch that starts from zero, or doesn't."""
    return next(b for b in map(data.collate, range(tries)) if ("reference" in b) == starts)


# ------------------------------------------------------------------ contents


def test_an_image_batch_is_a_random_camera_and_the_reference_at_time_zero(batches):
    batch = batches(single_view__batch_size=2).collate(0)
    assert batch.keys() == {"random_camera", "reference"}
    assert batch["random_camera"].keys() == CAMERA_KEYS
    assert batch["reference"].keys() == CAMERA_KEYS | {"rgb", "mask"}
    assert batch["random_camera"]["rays_d"].shape == (2, 5, 6, 3)
    assert batch["reference"]["rays_d"].shape == (1, 7, 7, 3)
    assert batch["reference"]["rgb"].shape == (1, 7, 7, 3)
    assert batch["reference"]["mask"].shape == (1, 7, 7, 1)
    for part in batch.values():
        assert (part["frame_times"] == 0).all()


def test_the_reference_camera_is_the_configured_one(batches):
    data = batches(
        image__default_elevation_deg=10,
        image__default_azimuth_deg=20,
        image__default_camera_distance=3,
        image__default_fovy_deg=50,
    )
    want = Cameras.of(10, 20, 3, 50).batch(7, 7)
    got = data.collate(3)["reference"]
    assert all(torch.equal(torch.as_tensor(got[k]), torch.as_tensor(want[k])) for k in want)


def test_a_video_batch_has_two_clips_frames_adjacent(batches):
    data = batches(prob_single_view_video=1.0, single_view__batch_size=2)
    for k in range(20):
        batch = data.collate(k)
        clip, frames = batch["clip"], batch["num_frames"]
        assert clip.keys() == CAMERA_KEYS and frames == 4
        assert clip["rays_d"].shape == (8, 3, 4, 3)
        times = clip["frame_times"].view(2, frames)
        assert (times.diff(dim=1) > 0).all()
        assert (clip["azimuth"].view(2, frames).diff(dim=1).abs() <= 180 / 8).all()
        starts = times[:, 0] == 0
        assert ("reference" in batch) == ("random_camera" in batch)
        if "reference" in batch:  # clips share the draw
            assert starts.all()
            assert (batch["random_camera"]["frame_times"] == 0).all()
        told = Cameras.of(clip["elevation"], clip["azimuth"], clip["camera_distances"])
        torch.testing.assert_close(told.position, clip["rays_o"][:, 0, 0])


def test_clips_of_a_batch_are_different_clips(batches):
    data = batches(prob_single_view_video=1.0, single_view__batch_size=2)
    clips = [data.collate(k)["clip"] for k in range(10)]
    assert any(not torch.equal(*c["frame_times"].view(2, 4)) for c in clips)
    assert all(not torch.equal(*c["azimuth"].view(2, 4)) for c in clips)


def test_share_of_video_batches_and_of_those_from_zero(batches):
    data = batches(prob_single_view_video=0.3, single_view__zero_rate=1.0)
    got = [data.collate(k) for k in range(200)]
    videos = [b for b in got if "clip" in b]
    assert len(videos) / len(got) == pytest.approx(0.3, abs=0.1)
    assert sum("reference" in b for b in videos) / len(videos) == pytest.approx(0.5, abs=0.2)
    assert all("reference" in b for b in got if "clip" not in b)


def test_modes_of_frame_times_decide_on_the_reference(batches):
    whole = batches(prob_single_view_video=1.0, single_view__sample_rand_frames=None)
    assert all("reference" in whole.collate(k) for k in range(5))
    for rate in (0.0, 1.0):
        offset = batches(
            prob_single_view_video=1.0,
            single_view__sample_rand_frames="t0",
            single_view__zero_rate=rate,
        )
        assert all(("reference" in offset.collate(k)) == (rate == 1) for k in range(5))


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_clips_from_zero_begin_at_the_references_camera_at_their_rate(batches, rate):
    single = {"zero_rate": 1.0, "reference_rate": rate, "batch_size": 2}
    named = {f"single_view__{key}": value for key, value in single.items()}
    data = batches(prob_single_view_video=1.0, image__default_azimuth_deg=30.0, **named)
    there = []
    for batch in map(data.collate, range(100)):
        assert not torch.equal(*batch["clip"]["azimuth"].view(2, 4)[:, 1:])  # each drifts
        if "reference" not in batch:  # mirrored
            continue
        first = {key: batch["clip"][key][::4] for key in ("c2w", "frame_times", "fovy")}
        same = [torch.allclose(x, batch["reference"][key]) for key, x in first.items()]
        there += [all(same)]
    assert sum(there) / len(there) == pytest.approx(rate, abs=0.2 if 0 < rate < 1 else 0)


def test_a_multi_view_ring_is_even_at_one_elevation(batches):
    data = batches(prob_multi_view=1.0, multi_view__n_view=5)
    for k in range(5):
        ring = data.collate(k)["random_camera"]
        assert ring["rays_d"].shape == (5, 4, 3, 3)
        torch.testing.assert_close(
            ring["azimuth"].diff(), torch.full((4,), 72.0), atol=1e-3, rtol=0
        )
        for key in ("elevation", "camera_distances", "fovy"):
            assert (ring[key] == ring[key][0]).all()
    starts = [data.collate(k)["random_camera"]["azimuth"][0].item() for k in range(5)]
    assert len(set(starts)) == 5


def test_share_of_multi_view_batches(batches):
    data = batches(prob_multi_view=0.4)
    sizes = [len(data.collate(k)["random_camera"]["azimuth"]) for k in range(150)]
    assert set(sizes) == {1, 4}
    assert sizes.count(4) / 150 == pytest.approx(0.4, abs=0.12)


# --------------------------------------------------------- several processes


def kind_of(batch):
    """What a batch has: clips, the reference, and so many random cameras."""
    cameras = len(batch["random_camera"]["azimuth"]) if "random_camera" in batch else 0
    return "clip" in batch, "reference" in batch, cameras


@pytest.mark.parametrize("fixed", [0, 6])
def test_batches_of_all_ranks_are_of_one_kind_and_show_different_views(batches, fixed):
    options = {"prob_single_view_video": 0.7, "prob_multi_view": 0.4, "single_view__n_clips": fixed}
    ranks = [batches(rank=rank, single_view__zero_rate=0.5, **options) for rank in range(3)]
    rows = [[data.collate(k) for data in ranks] for k in range(60)]
    kinds = [{kind_of(batch) for batch in row} for row in rows]
    assert all(len(kind) == 1 for kind in kinds) and len(set.union(*kinds)) == 5
    for row in rows:
        views = [batch.get("clip", batch.get("random_camera"))["azimuth"] for batch in row]
        assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])


@pytest.mark.parametrize("name", ["cameras", "clips"])
def test_what_comes_again_comes_in_the_same_steps_on_all_ranks(batches, name):
    """So all of them paint a target for it, or none does."""
    options = {"prob_single_view_video": float(name == "clips"), f"single_view__n_{name}": 3}
    ranks = [batches(rank=rank, **options) for rank in range(2)]

    def order(data):
        views = [data.collate(k) for k in range(9)]
        seen = [tuple(v.get("clip", v.get("random_camera"))["azimuth"].tolist()) for v in views]
        return [seen.index(view) for view in seen]

    assert order(ranks[0]) == order(ranks[1])
    assert len({*order(ranks[0])}) == 3


# --------------------------------------------------------------- determinism


def test_a_batch_depends_on_seed_rank_and_number_alone(batches):
    options = {"prob_single_view_video": 0.5, "prob_multi_view": 0.5}
    data, again = batches(**options), batches(**options)
    forward = [data.collate(k) for k in range(6)]
    torch.manual_seed(123)  # torch's global numbers play no part, nor does the order
    backward = [again.collate(k) for k in reversed(range(6))][::-1]
    assert all(map(same, forward, backward))
    others = batches(seed=1, **options), batches(rank=1, **options)
    for other in others:
        assert not any(same(data.collate(k), other.collate(k)) for k in range(6))
    assert not any(same(forward[0], batch) for batch in forward[1:])


@settings(deadline=None, max_examples=50)
@given(*[st.tuples(*[st.integers(0, 5)] * 3)] * 2)
def test_generators_of_different_batches_are_unrelated(a, b):
    draw = lambda key: torch.rand(4, generator=batch_generator(*key))  # noqa: E731
    assert torch.equal(draw(a), draw(b)) == (a == b)


def stream(data, workers, n):
    context = multiprocessing.get_context("fork") if workers else None
    loader = DataLoader(
        data,
        batch_size=None,
        collate_fn=data.collate,
        num_workers=workers,
        multiprocessing_context=context,
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(n)]


def test_workers_change_neither_batches_nor_their_order(batches):
    data = batches(prob_single_view_video=0.5)
    assert all(map(same, stream(data, 0, 5), stream(data, 2, 5)))


def module(config, **changes):
    data = ImageVideoDataModule(OmegaConf.create(config(**changes)))  # as the launcher does
    data.setup()
    return data


def test_a_batch_is_made_on_its_device(config):
    cfg = parse_data_config(config(prob_single_view_video=1, single_view__zero_rate=1))
    batch = TrainingBatches(cfg, 0, 0, device="meta").collate(0)
    views = [batch[name] for name in ("clip", "random_camera", "reference")]
    tensors = [value for view in views for value in view.values() if torch.is_tensor(value)]
    assert len(tensors) > 30 and {value.device.type for value in tensors} == {"meta"}


def test_resuming_goes_on_with_the_batch_that_comes_next(config):
    whole, resumed = module(config), module(config)
    resumed.trainer = SimpleNamespace(global_step=3, accumulate_grad_batches=2)
    iterator = iter(whole.train_dataloader())
    want = [next(iterator) for _ in range(8)][6:]
    iterator = iter(resumed.train_dataloader())
    assert all(map(same, want, [next(iterator) for _ in range(2)]))


def test_the_seed_is_torchs_when_the_module_is_made(config):
    def first(seed, then):
        torch.manual_seed(seed)
        data = ImageVideoDataModule(config())
        torch.manual_seed(then)
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    assert same(first(1, then=2), first(1, then=3))
    assert not same(first(1, then=2), first(2, then=2))


# -------------------------------------------------------- validation and test


def views(config, split, **changes):
    data = EvaluationViews(parse_data_config(config(**changes)), split)
    return list(DataLoader(data, batch_size=None))


def test_validation_views_go_around_the_subject(config):
    items = views(config, "val", single_view__n_val_views=3, single_view__eval_elevation_deg=15)
    assert [i["azimuth"].item() for i in items] == [0, 120, 240]
    assert [i["index"].tolist() for i in items] == [[0], [1], [2]]
    for item in items:
        assert item.keys() == CAMERA_KEYS | {"index"}
        assert item["rays_d"].shape == (1, 6, 8, 3)
        assert (item["height"], item["width"]) == (6, 8)
        assert item["elevation"].item() == 15


@pytest.mark.parametrize("split", ["val", "test"])
def test_time_runs_in_evaluation_where_it_runs_in_training(config, split):
    still = views(config, split)
    moving = views(config, split, prob_single_view_video=1.0)
    assert all(item["frame_times"].item() == 0 for item in still)
    assert moving[0]["frame_times"].item() == 0
    assert moving[-1]["frame_times"].item() == 1


def test_test_trajectories(config):
    smooth = views(config, "test", single_view__num_frames_factor=2, prob_single_view_video=1.0)
    assert len(smooth) == 4 * 4 * 2  # rounds, frames, factor
    circle = views(config, "test", single_view__test_traj="circle", single_view__n_test_views=6)
    assert [round(i["azimuth"].item()) for i in circle] == [0, 60, 120, 180, 240, 300]


# ------------------------------------------------- options and their effects


@pytest.mark.parametrize(
    "key, value, part, shape",
    [
        ("single_view__width_vid", 9, "clip", (4, 3, 9, 3)),
        ("single_view__height_vid", 8, "clip", (4, 8, 4, 3)),
        ("single_view__num_frames", 2, "clip", (2, 3, 4, 3)),
        ("single_view__batch_size", 3, "clip", (12, 3, 4, 3)),
        ("single_view__width", 9, "random_camera", (1, 5, 9, 3)),
        ("single_view__height", 9, "random_camera", (1, 9, 6, 3)),
        ("image__height", 9, "reference", (1, 9, 7, 3)),
        ("image__width", 9, "reference", (1, 7, 9, 3)),
        ("multi_view__width", 9, "ring", (4, 4, 9, 3)),
        ("multi_view__height", 9, "ring", (4, 9, 3, 3)),
        ("multi_view__n_view", 2, "ring", (2, 4, 3, 3)),
    ],
)
def test_sizes_change_the_rays(batches, key, value, part, shape):
    ring = part == "ring"
    data = batches(**{key: value}, prob_single_view_video=1.0, prob_multi_view=float(ring))
    batch = clip_of(data, starts=True)
    assert batch["random_camera" if ring else part]["rays_d"].shape == shape


@pytest.mark.parametrize("section", ["single_view", "multi_view"])
@pytest.mark.parametrize(
    "name, bounds, key",
    [
        ("elevation_range", [20, 30], "elevation"),
        ("azimuth_range", [40, 50], "azimuth"),
        ("camera_distance_range", [3, 4], "camera_distances"),
        ("fovy_range", [60, 70], "fovy"),
    ],
)
def test_ranges_are_where_cameras_come_from(batches, section, name, bounds, key):
    prob_multi_view = float(section == "multi_view")
    data = batches(**{f"{section}__{name}": bounds}, prob_multi_view=prob_multi_view)
    drawn = torch.stack([data.collate(k)["random_camera"][key][0] for k in range(60)])
    if key == "fovy":
        drawn = torch.rad2deg(drawn)
    low, high = bounds
    assert (drawn >= low - 1e-3).all() and (drawn <= high + 1e-3).all()
    assert drawn.max() - drawn.min() > 0.7 * (high - low)


@pytest.mark.parametrize("section", ["single_view", "multi_view"])
@pytest.mark.parametrize("name", ["camera_perturb", "center_perturb", "up_perturb"])
def test_perturbations_move_the_rays(batches, section, name):
    options = {"prob_multi_view": float(section == "multi_view")}
    plain = batches(**options).collate(0)["random_camera"]
    moved = batches(**options, **{f"{section}__{name}": 0.1}).collate(0)["random_camera"]
    assert not torch.allclose(plain["rays_d"], moved["rays_d"], atol=1e-3)
    told = Cameras.of(moved["elevation"], moved["azimuth"], moved["camera_distances"])
    torch.testing.assert_close(told.position, moved["camera_positions"])


def test_a_still_camera_where_it_is_asked_for(batches):
    data = batches(prob_single_view_video=1.0, single_view__train_dynamic_camera=False)
    c2w = data.collate(0)["clip"]["c2w"]
    assert torch.equal(c2w, c2w[:1].expand_as(c2w))


def test_uniform_azimuths_of_a_batch_are_spread(batches):
    data = batches(single_view__batch_size=4, single_view__batch_uniform_azimuth=True)
    for k in range(10):
        quarters = ((data.collate(k)["random_camera"]["azimuth"] + 180) / 90).int()
        assert quarters.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_fixed_cameras_come_again_in_every_round(batches, batch_size):
    """Each of 5 batches once in 5, the azimuths of all of them spread; other seeds have others."""
    views = {"single_view__n_cameras": 5, "single_view__batch_size": batch_size}
    data = batches(**views)
    seen = [data.collate(k)["random_camera"] for k in range(15)]
    rounds = [sorted(v["azimuth"].tolist() for v in seen[k : k + 5]) for k in (0, 5, 10)]
    assert rounds[0] == rounds[1] == rounds[2]
    n = 5 * batch_size
    parts = (torch.tensor(rounds[0]).flatten() + 180) * n / 360
    assert sorted(parts.int().tolist()) == [*range(n)]
    orders = {tuple(v["azimuth"][0].item() for v in seen[k : k + 5]) for k in (0, 5, 10)}
    assert len(orders) > 1
    assert same(batches(**views).collate(12), data.collate(12))
    other = batches(seed=1, **views).collate(0)["random_camera"]["azimuth"]
    assert other.tolist() not in rounds[0]


def test_fixed_clips_come_again_with_their_times_and_their_drift(batches):
    """Each of 4 in 4 batches; azimuths of the first frames are spread; the rest is unlike it."""
    clips = {"single_view__n_clips": 4, "prob_single_view_video": 1.0}
    data = batches(**clips, single_view__sample_rand_frames="t0")

    def seen(k):
        clip = data.collate(k)["clip"]
        return tuple(map(tuple, (clip["azimuth"].tolist(), clip["frame_times"].tolist())))

    rounds = [[seen(k) for k in range(first, first + 4)] for first in (0, 4, 8, 12)]
    assert all(set(round_) == set(rounds[0]) for round_ in rounds)
    assert len(set(rounds[0])) == 4 and any(round_ != rounds[0] for round_ in rounds)
    assert sorted(int((azimuth[0] + 180) // 90) for azimuth, _ in rounds[0]) == [0, 1, 2, 3]
    assert all(len(set(azimuth)) > 1 for azimuth, _ in rounds[0]), "the camera drifts"
    ever_new = batches(prob_single_view_video=1.0)
    assert len({tuple(ever_new.collate(k)["clip"]["azimuth"].tolist()) for k in range(8)}) == 8


def test_zero_mirror_and_precision_reach_the_clips(batches):
    video = {"prob_single_view_video": 1.0}
    always = batches(**video, single_view__zero_rate=1.0, single_view__mirror_rate=0.0)
    assert all("reference" in always.collate(k) for k in range(10))
    never = batches(**video, single_view__mirror_rate=1.0)
    assert not any("reference" in never.collate(k) for k in range(10))
    coarse = batches(**video, single_view__frame_precision=4, single_view__mirror_rate=0.0)
    times = coarse.collate(0)["clip"]["frame_times"]
    torch.testing.assert_close(times, torch.tensor([0, 0.25, 0.5, 0.75]))


@pytest.mark.parametrize(
    "name, value, key, want",
    [
        ("eval_elevation_deg", 12, "elevation", 12),
        ("eval_camera_distance", 3, "camera_distances", 3),
        ("eval_fovy_deg", 90, "fovy", np.pi / 2),
        ("eval_height", 9, "height", 9),
        ("eval_width", 9, "width", 9),
    ],
)
def test_evaluation_cameras_are_the_configured_ones(config, name, value, key, want):
    item = views(config, "val", **{f"single_view__{name}": value})[0]
    assert float(item[key]) == pytest.approx(want)
    assert item["rays_d"].shape == (1, item["height"], item["width"], 3)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "cfg, names",
    [
        ({"singel_view": {}}, "'singel_view' in data. Close names: single_view"),
        ({"single_view": {"hight_vid": 1}}, "in data.single_view. Close names: height_vid"),
        ({"image": {"path": "a"}}, "in data.image. Close names: image_path"),
        ({"multi_view": {"xyzzy": 1}}, "in data.multi_view. It has: width, height"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_at_any_depth(cfg, names):
    with pytest.raises(KeyError) as error:
        ImageVideoDataModule(cfg)
    assert names in str(error.value)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("single_view", "num_frames", 0, "data.single_view.num_frames is 0"),
        ("single_view", "num_frames", 257, "257 frames of a clip don't fit into frame_precision"),
        ("single_view", "num_frames", "many", "data.single_view.num_frames"),
        (
            "single_view",
            "sample_rand_frames",
            "f",
            "sample_rand_frames is 'f', but has to be one of fps, t0, null",
        ),
        ("single_view", "test_traj", "spiral", "has to be one of motion_smooth, circle"),
        ("single_view", "batch_size", 0, "data.single_view.batch_size is 0"),
        ("single_view", "zero_rate", 1.5, "zero_rate is 1.5, but has to be between 0 and 1"),
        ("single_view", "elevation_range", [50, -50], "has to be [low, high]"),
        ("single_view", "elevation_range", [-100, 0], "elevation_range is -100"),
        ("multi_view", "fovy_range", [40], "has to be [low, high]"),
        ("multi_view", "n_view", 0, "data.multi_view.n_view is 0"),
        ("image", "height", 0, "data.image.height is 0"),
        ("image", "default_camera_distance", -1.0, "default_camera_distance is -1.0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(section, key, value, message):
    with pytest.raises(ValueError) as error:
        ImageVideoDataModule({section: {key: value}})
    assert message in str(error.value)


@pytest.mark.parametrize("section", [ImageConfig, SingleViewConfig, MultiViewConfig, DataConfig])
def test_every_number_states_its_bounds_itself(section):
    """A name that resembles another's gives it nothing."""
    numbers = {int, float, list[float]}
    fields = [f for f in dataclasses.fields(section) if alternatives(f.type) & numbers]
    assert fields
    for field in fields:
        assert math.isfinite(field.metadata["bounds"].low), field.name
        assert math.isfinite(field.metadata["bounds"].high), field.name


@pytest.mark.parametrize("key", ["prob_multi_view", "prob_single_view_video"])
def test_a_probability_is_one(key):
    with pytest.raises(ValueError, match=f"data.{key} is 2.0"):
        ImageVideoDataModule({key: 2.0})
    ImageVideoDataModule({key: None})


def test_training_needs_an_image_and_testing_does_not(config):
    data = ImageVideoDataModule(config(image__image_path=""))
    data.setup("test")
    data.setup("validate")
    with pytest.raises(ValueError, match=r"pass data\.image\.image_path="):
        data.setup("fit")
    data = ImageVideoDataModule(config(image__image_path="nowhere.png"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        data.setup("fit")


# ----------------------------------------------------------- under Lightning


class Recorder(pl.LightningModule):
    """Trains nothing that matters and writes down which batches it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.azimuths, self.views = [], []

    def training_step(self, batch, batch_idx):
        self.trainer.train_dataloader.dataset.collate  # threestudio's systems go this way  # noqa: B018
        self.azimuths.append(batch["random_camera"]["azimuth"].item())
        return (self.weight**2).sum()

    def validation_step(self, batch, batch_idx):
        self.views.append(batch["index"].item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, steps, **options):
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(config, tmp_path, accumulate):
    def fit(steps, ckpt=None):
        torch.manual_seed(7)
        data, model = ImageVideoDataModule(config()), Recorder()
        run = trainer(tmp_path, steps, accumulate_grad_batches=accumulate, limit_val_batches=0)
        run.fit(model, datamodule=data, ckpt_path=ckpt)
        run.save_checkpoint(tmp_path / "last.ckpt")
        return model.azimuths

    whole = fit(5)
    assert len(whole) == len(set(whole)) == 5 * accumulate
    assert fit(2) + fit(5, tmp_path / "last.ckpt") == whole


def test_validation_in_between_does_not_disturb_training(config, tmp_path):
    def fit(**options):
        torch.manual_seed(7)
        model = Recorder()
        run = trainer(tmp_path, 5, **options)
        run.fit(model, datamodule=ImageVideoDataModule(config()))
        return model

    plain = fit(limit_val_batches=0)
    validated = fit(val_check_interval=2, check_val_every_n_epoch=None)
    epochs = fit(limit_val_batches=0, limit_train_batches=2)
    assert validated.views == [0, 1, 2, 3] * 2
    assert plain.azimuths == validated.azimuths == epochs.azimuths


class RankRecorder(Recorder):
    """Writes down each rank's cameras, views and kinds of batch."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.kinds = folder, []

    def training_step(self, batch, batch_idx):
        self.kinds.append(kind_of(batch))
        self.azimuths += batch.get("random_camera", batch.get("clip"))["azimuth"].tolist()
        return (self.weight**2).sum()

    def on_fit_end(self):
        found = self.azimuths, self.views, self.kinds
        torch.save(found, self.folder / f"{self.trainer.global_rank}.pt")


class OwnSeeds(ImageVideoDataModule):
    """Each rank's seed is its own, as a launcher's are."""

    def setup(self, stage=None):
        self.seed += self.trainer.global_rank
        super().setup(stage)


def test_ranks_have_their_own_cameras_and_kinds_and_views_together(config, tmp_path):
    model = RankRecorder(tmp_path)
    options = {"prob_single_view_video": 0.6, "prob_multi_view": 0.5, "single_view__zero_rate": 0.7}
    run = trainer(tmp_path, 12, strategy="ddp_fork", devices=2, val_check_interval=12)
    run.fit(model, datamodule=OwnSeeds(config(**options)))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not {*first[0]} & {*second[0]}
    assert (sorted(first[1]), sorted(second[1])) == ([0, 2], [1, 3])
    assert first[2] == second[2] and len({*first[2]}) > 3


def test_a_batch_goes_to_a_device_if_it_is_not_there(config):
    data = ImageVideoDataModule(config())
    data.setup("fit")
    batch = data.train_dataset.collate(0)
    here, there = torch.device("cpu"), torch.device("meta")
    assert data.transfer_batch_to_device(batch, here, 0) is batch
    sent = dict(flat(data.transfer_batch_to_device(batch, there, 0)))
    assert sent.keys() == dict(flat(batch)).keys()
    assert all(v.device == there for v in sent.values() if torch.is_tensor(v))
    view = {"rays_o": torch.zeros(1), "index": torch.zeros(1)}  # as an evaluation's batches are
    assert data.transfer_batch_to_device(view, there, 0)["rays_o"].device == there
