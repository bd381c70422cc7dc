"""The data module: cameras, frame times and the reference image, batch by batch.

A training batch is a dict. An image batch has "random_camera" and "reference". A video batch has
"clip" and "num_frames"; where its clips start from time zero, it has the other two as well. Each of
the three is a dict of threestudio's camera keys for its own cameras (see `Cameras.batch`);
"reference" also has "rgb" and "mask". Batch k of a rank depends on the seed, k and the rank alone.

Batches k of all ranks are of one kind, which rank 0 draws: a step takes as long as the slowest
rank's, and a clip that starts from zero costs more than another.

Cameras are drawn on the CPU. Their rays are made on the device that trains: a clip's rays would
take a busy CPU tens of milliseconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytorch_lightning as pl
import threestudio
import torch
from threestudio.utils.misc import get_rank
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .cameras import Cameras, sample_azimuth_deg, sample_elevation_deg, uniform
from .config import (
    DataConfig,
    MultiViewConfig,
    RandomCameraConfig,
    SingleViewConfig,
    parse_data_config,
)
from .frame_times import FrameTimes, sample_frame_times
from .reference_image import reference
from .trajectories import TRAJECTORIES

T = TypeVar("T")
FIXED_CLIPS = -(2**32)  # numbers of the fixed clips' random numbers, downwards: no batch has them


def batch_generator(seed: int, rank: int, k: int) -> torch.Generator:
    """Random numbers of batch k of a rank, unlike those of every other (seed, rank, k)."""
    state = 0
    for word in (seed, rank, k):
        # splitmix64's finaliser: neighbouring numbers become unrelated seeds
        state = (state + word + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


def perturb(cameras: Cameras, cfg: RandomCameraConfig, generator: torch.Generator) -> Cameras:
    """The cameras with the config's perturbations, angles updated."""
    return cameras.perturbed(
        cfg.camera_perturb, cfg.center_perturb, cfg.up_perturb, generator=generator
    )


def random_cameras(cfg: SingleViewConfig, generator: torch.Generator) -> Cameras:
    """`batch_size` cameras, independent of each other (but for `batch_uniform_azimuth`)."""
    n = cfg.batch_size
    cameras = Cameras(
        sample_elevation_deg(n, cfg.elevation_range, generator=generator),
        sample_azimuth_deg(
            n, cfg.azimuth_range, stratified=cfg.batch_uniform_azimuth, generator=generator
        ),
        uniform(n, cfg.camera_distance_range, generator=generator),
        uniform(n, cfg.fovy_range, generator=generator),
    )
    return perturb(cameras, cfg, generator)


def fixed_cameras(cfg: SingleViewConfig, n: int, generator: torch.Generator) -> list[Cameras]:
    """n batches of cameras, the azimuths of all of them stratified."""
    many = replace(cfg, batch_size=n * cfg.batch_size, batch_uniform_azimuth=True)
    cameras = random_cameras(many, generator)
    return [cameras.map(lambda v, j=j: v[j::n]) for j in range(n)]


def camera_ring(cfg: MultiViewConfig, generator: torch.Generator) -> Cameras:
    """`n_view` cameras around the subject, at one elevation, distance and field of view."""
    start = sample_azimuth_deg(1, cfg.azimuth_range, generator=generator)
    cameras = Cameras.of(
        sample_elevation_deg(1, cfg.elevation_range, generator=generator),
        start + torch.arange(cfg.n_view) * 360 / cfg.n_view,
        uniform(1, cfg.camera_distance_range, generator=generator),
        uniform(1, cfg.fovy_range, generator=generator),
    )
    return perturb(cameras, cfg, generator)


def one_clip(cfg: SingleViewConfig, generator: torch.Generator) -> FrameTimes:
    """Frame times [F] of a random clip."""
    return sample_frame_times(
        cfg.num_frames,
        cfg.sample_rand_frames,
        precision=cfg.frame_precision,
        zero_rate=cfg.zero_rate,
        mirror_rate=cfg.mirror_rate,
        generator=generator,
    )


def clip_times(
    cfg: SingleViewConfig, starts_from_zero: bool, generator: torch.Generator
) -> FrameTimes:
    """Frame times [B*F] of `batch_size` clips that all start from zero, or none of them does."""
    clips = []
    while len(clips) < cfg.batch_size:
        # a clip chose between the two outcomes, so this takes two draws a clip on average
        clip = one_clip(cfg, generator)
        if clip.starts_from_zero == starts_from_zero:
            clips.append(clip.tau)
    return FrameTimes(torch.cat(clips), starts_from_zero)


@dataclass(frozen=True)
class Kind:
    """What a batch's cost hangs on."""

    video: bool  # it has clips
    starts_from_zero: bool  # it has the reference and a random camera
    multi_view: bool  # which is a ring of them


class TrainingBatches(IterableDataset):
    """An endless stream of batch numbers, and `collate`, which makes a number's batch.

    seed: the same on all ranks.
    """

    def __init__(
        self,
        cfg: DataConfig,
        seed: int,
        rank: int,
        first_batch: Callable[[], int] | None = None,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.cfg, self.seed, self.rank, self.device = cfg, seed, rank, device
        self.first_batch = first_batch  # asked whenever an epoch begins; None: 0
        image = cfg.image
        self.taken_from = Cameras.of(
            image.default_elevation_deg,
            image.default_azimuth_deg,
            image.default_camera_distance,
            image.default_fovy_deg,
        )
        # random numbers of batches that there never are, as in `in_turn`
        single, generator = cfg.single_view, batch_generator(seed, rank, -1)
        self.fixed = fixed_cameras(single, single.n_cameras, generator)
        self.fixed_clips = [
            self.new_clips(
                one_clip(single, batch_generator(seed, 0, FIXED_CLIPS - j)).starts_from_zero,
                batch_generator(seed, rank, FIXED_CLIPS - j),
                cameras,
            )
            for j, cameras in enumerate(fixed_cameras(single, single.n_clips, generator))
        ]
        rgb, mask = reference(image.image_path, image.height, image.width)
        self.reference = self.taken_from.to(device).batch(image.height, image.width)
        self.reference |= {"rgb": rgb[None].to(device), "mask": mask[None].to(device)}

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        k = 0 if self.first_batch is None else self.first_batch()
        k, step = (k, 1) if worker is None else (k + worker.id, worker.num_workers)
        while True:
            yield k
            k += step

    def in_turn(self, k: int, fixed: Sequence[T]) -> T:
        """The fixed one of batch k: each len(fixed) batches have all, in random order, which is one
        for all ranks: so they paint their targets (guidance/targets.py) in the same steps."""
        round_, place = divmod(k, len(fixed))
        generator = batch_generator(self.seed, 0, -2 - round_)
        return fixed[int(torch.randperm(len(fixed), generator=generator)[place])]

    def new_clips(
        self,
        starts_from_zero: bool,
        generator: torch.Generator,
        cameras: Cameras | None = None,
    ) -> tuple[Cameras, FrameTimes]:
        """Cameras [B*F] and frame times of a batch's clips; cameras: of their first frames, None
        for random ones."""
        single = self.cfg.single_view
        times = clip_times(single, starts_from_zero, generator)
        if cameras is None:
            cameras = random_cameras(single, generator)
        if self.at_reference(times, generator):
            cameras = self.taken_from.frames(single.batch_size)
        if single.train_dynamic_camera:
            return cameras.drift(single.num_frames, generator=generator), times
        return cameras.frames(single.num_frames), times

    def at_reference(self, times: FrameTimes, generator: torch.Generator) -> bool:
        """Whether clips begin where the reference image was taken."""
        rate = self.cfg.single_view.reference_rate
        if not times.starts_from_zero or rate <= 0:
            return False
        return bool(uniform(1, (0, 1), generator=generator)[0] < rate)

    def kind(self, k: int) -> Kind:
        """Of batch k of all ranks: what rank 0's numbers say."""
        generator = batch_generator(self.seed, 0, k)
        video, multi_view = uniform(2, (0, 1), generator=generator)
        has_clips = bool(video < (self.cfg.prob_single_view_video or 0))
        starts_from_zero = True
        if has_clips and self.fixed_clips:
            starts_from_zero = self.in_turn(k, self.fixed_clips)[1].starts_from_zero
        elif has_clips:
            starts_from_zero = one_clip(self.cfg.single_view, generator).starts_from_zero
        return Kind(has_clips, starts_from_zero, bool(multi_view < (self.cfg.prob_multi_view or 0)))

    def collate(self, k: int) -> dict[str, Any]:
        """Batch k of this rank."""
        kind, generator = self.kind(k), batch_generator(self.seed, self.rank, k)
        uniform(2, (0, 1), generator=generator)  # those that a kind is of
        batch: dict[str, Any] = {}
        if kind.video:
            single = self.cfg.single_view
            if self.fixed_clips:
                cameras, times = self.in_turn(k, self.fixed_clips)
            else:
                cameras, times = self.new_clips(kind.starts_from_zero, generator)
            size = single.height_vid, single.width_vid
            batch["clip"] = cameras.batch(*size, times.tau, self.device)
            batch["num_frames"] = single.num_frames
        if kind.starts_from_zero:
            if kind.multi_view:
                section, cameras = self.cfg.multi_view, camera_ring(self.cfg.multi_view, generator)
            else:
                section = self.cfg.single_view
                if self.fixed:
                    cameras = self.in_turn(k, self.fixed)
                else:
                    cameras = random_cameras(section, generator)
            size = section.height, section.width
            batch["random_camera"] = cameras.batch(*size, device=self.device)
            batch["reference"] = dict(self.reference)
        return with_event(batch, torch.device(self.device))


def with_event(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch, on a GPU each of its views with the event that it is `made`: a renderer may begin
    then, and needn't wait for all that the GPU has to do before."""
    if device.type == "cuda":
        made = torch.cuda.Event()
        made.record(torch.cuda.current_stream(device))
        for view in batch.values():
            if isinstance(view, dict):
                view["made"] = made
    return batch


class EvaluationViews(Dataset):
    """Camera and time, one view an item, of a validation or a test."""

    def __init__(self, cfg: DataConfig, split: str):
        self.cfg = cfg.single_view
        if split == "val":
            n = self.cfg.n_val_views
            azimuth, tau = torch.arange(n) * 360 / n, torch.linspace(0, 1, n)
        else:
            azimuth, tau = TRAJECTORIES[cfg.test_traj](self.cfg)
        self.azimuth_deg = azimuth  # [T]
        self.tau = tau if cfg.dynamic else torch.zeros_like(tau)  # [T]

    def __len__(self) -> int:
        return len(self.azimuth_deg)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no view {index}; the last one is {len(self) - 1}.")
        view = slice(index, index + 1)
        camera = Cameras.of(
            self.cfg.eval_elevation_deg,
            self.azimuth_deg[view],
            self.cfg.eval_camera_distance,
            self.cfg.eval_fovy_deg,
        )
        batch = camera.batch(self.cfg.eval_height, self.cfg.eval_width, self.tau[view])
        return batch | {"index": torch.tensor([index])}


@threestudio.register("animate124-image-video-combined-camera-datamodule")
class ImageVideoDataModule(pl.LightningDataModule):
    """Batches of one reference image; see the module's docstring and `config.py`."""

    def __init__(self, cfg: Mapping[str, Any] | None = None):
        super().__init__()
        self.cfg = parse_data_config(cfg)
        single = self.cfg.single_view
        if self.cfg.dynamic and single.sample_rand_frames == "t0" and single.zero_rate == 0:
            threestudio.warn(
                "data.single_view.sample_rand_frames=t0 with zero_rate=0: no clip starts exactly "
                "at time 0, so that video batches have no reference image and no random camera."
            )
        # now: later the system reseeds torch at every step
        self.seed = torch.initial_seed()

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            seed, rank, device = self.seed, get_rank(), torch.device("cpu")
            if self.trainer is not None:
                strategy = self.trainer.strategy
                seed = strategy.broadcast(seed)  # a launcher gives each rank one of its own
                rank, device = self.trainer.global_rank, strategy.root_device
            self.train_dataset = TrainingBatches(self.cfg, seed, rank, self.first_batch, device)
        if stage in (None, "fit", "validate"):
            self.val_dataset = EvaluationViews(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = EvaluationViews(self.cfg, "test")

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """A training batch is made on its device: its dozens of tensors needn't be asked one by
        one, as Lightning does."""
        views = [view for view in batch.values() if isinstance(view, dict)]
        if views and all(view["rays_o"].device == device for view in views):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def first_batch(self) -> int:
        """Number of the next batch: those that a resumed run has behind it are skipped."""
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> DataLoader:
        # in this process: a batch is made in milliseconds, and a worker couldn't ask the trainer
        collate: Any = self.train_dataset.collate  # of one number, not of a list of them
        return DataLoader(self.train_dataset, batch_size=None, collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_dataset, batch_size=None)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_dataset, batch_size=None)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.test_dataset, batch_size=None)
