"""The system: one scene, its guidances, and a training step that reads top to bottom.

A batch brings up to three views, each a dict of cameras (data/image_video_datamodule.py):
"reference" (the given image's camera, tau = 0), "random_camera" (tau = 0) and "clip" (the frames of
video clips). The step renders each view that some loss of non-zero weight reads, and sums
weight * loss over

* the guidances, each on the view of its term;
* the reference losses, on "reference";
* the regularisers, on every rendered view: a view's pictures are smoothed as much beside other
  views as alone;
* the rigidity of a deformation, of the scene itself.

`terms.py` has their tables.

`train/loss_*` are logged before their weight. Every weight of `loss` is a number or a `C` schedule.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import threestudio
import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import barrier, get_rank
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..bounds import Bounded, bounded
from ..data.original_keys import adopt
from ..files.pictures import colour_depth, depth_range, save_png, surface_depth, to_picture
from ..files.torch_files import not_finite
from ..files.videos import FrameStore, compose_videos
from ..geometry.otypes import is_deformed
from ..geometry.times import is_static
from ..guidance.distillation import ScoreDistillation
from ..guidance.speed import COMPILE
from . import checkpoints, terms
from .finite import check_loaded, optimizer_tensors, some
from .lanes import Lanes
from .loss_watch import PATIENCE, LossWatch
from .losses import total
from .snapshots import Snapshots
from .views import render_together

MODULES = ("geometry", "material", "background", "renderer")
NOT_CAMERA = ("rgb", "mask", "index")  # what a view holds beside its cameras and frame times
LEAST_SCALE = 2.0**-16  # of GradScaler: it starts at 2^16, and halves where a gradient overflows


def step_seed(base: int, batch: int, rank: int) -> int:
    """A seed of its own for each batch of each process."""
    return int(np.random.SeedSequence((base, batch, rank)).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global random numbers (seed < 2^32), of CPU and GPUs.

    torch.manual_seed also asks accelerators that there aren't, each with the whole call stack.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- whoever still draws from the global one is repeatable
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def camera_of(view: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in view.items() if k not in NOT_CAMERA}


@dataclass
class SpeedConfig(Bounded):
    compile: Any = bounded(False, names=COMPILE)  # of the guidances' networks (guidance/speed.py)
    beside: bool = True  # guidances of the same view work beside each other; false saves memory


@threestudio.register("animate124-system")
class Animate124(BaseLift3DSystem):
    @dataclass
    class Config(terms.with_priors(BaseLift3DSystem.Config), Bounded):
        exporter_type: str = "animate124-4d-exporter"  # used by --export only
        speed: dict = field(default_factory=dict)  # SpeedConfig's keys
        loss: dict = bounded({}, 0, schedule=True)  # weights lambda_*
        test_fps: int = bounded(30, 1, 1000)  # frames a second of the test videos
        keep_test_frames: bool = False  # keep each rgb frame of the test video as a PNG as well

        def __post_init__(self) -> None:
            super().__post_init__()
            if isinstance(self.loss, Mapping):
                terms.check_weights(self.loss)
                terms.check_priors(self)
            parse_structured(SpeedConfig, self.speed)

    cfg: Config

    def __init__(self, cfg: Mapping[str, Any], resumed: bool = False) -> None:
        adopted = adopt(cfg, "system")
        if resumed:  # the checkpoint overwrites what it once started from, which may be gone
            adopted = OmegaConf.merge(adopted, {"weights": None})
        super().__init__(adopted, resumed)

    def configure(self) -> None:
        self.base_seed = torch.initial_seed()  # before the first step reseeds
        self.speed = parse_structured(SpeedConfig, self.cfg.speed)
        self.loss_weights = dict(self.cfg.loss)  # once: reading a config takes 20 us a value
        self.loss_watch = LossWatch(self.way_back)
        self.snapshots = Snapshots(None)
        self.lanes = Lanes()
        self.targets_before: dict[str, dict] = {}  # of the priors, by the run that goes on
        self.writes_down = True  # whether the trainer writes down what this step logs
        super().configure()

    @classmethod
    def used_in_training(cls, cfg: Any) -> list[str]:
        """The sections whose modules training loads: of the priors those that weigh something."""
        return [*MODULES, *terms.used_priors(cfg)]

    @classmethod
    def check_with_data(cls, cfg: Any, data: Any) -> None:
        """Raises a ValueError for settings of one section that another can't take."""
        terms.check_clips(cfg.loss, getattr(data, "dynamic", True))
        terms.check_views(cfg)
        terms.check_any(cfg.loss)
        terms.check_targets(cfg, data)
        terms.check_lengths(cfg, data)
        terms.check_rigidity(cfg.loss, is_deformed(cfg.geometry))
        features = cfg.geometry.get("n_feature_dims", 3)
        if cfg.material_type == "no-material" and features != cfg.material.get("n_output_dims", 3):
            raise ValueError(
                f"system.geometry.n_feature_dims is {features}, but system.material.n_output_dims "
                f"is {cfg.material.get('n_output_dims', 3)}: they have to be the same."
            )
        ours = cfg.renderer_type == "animate124-nerf-volume-renderer"
        if ours and not cfg.renderer.get("return_comp_normal", False):
            terms.check_normals(cfg.loss)
        clip = getattr(getattr(data, "single_view", None), "num_frames", None)
        for name in terms.used_priors(cfg):
            frames = cfg[name].get("fixed_frames")
            if clip and frames and frames > clip:
                raise ValueError(
                    f"system.{name}.fixed_frames is {frames}, but a clip has {clip} frames "
                    "(data.single_view.num_frames): give at most that many."
                )

    def on_fit_start(self) -> None:
        """Loads the priors: here, so that nothing but training needs them."""
        super().on_fit_start()
        data = getattr(self._trainer, "datamodule", None)  # tests and tools have no trainer
        self.check_with_data(self.cfg, getattr(data, "cfg", None))
        wanted = terms.used_priors(self.cfg)
        for name in terms.priors():
            kind = self.cfg[f"{name}_type"]
            if not kind or hasattr(self, name):
                continue
            if name in wanted:
                setattr(self, name, threestudio.find(kind)(self.cfg[name]))
            else:
                threestudio.info(f"system.{name} ({kind}) is not loaded: its losses weigh 0.")
        for name, prior in self.our_priors().items():
            if name in self.targets_before:
                prior.kept_targets.take(self.targets_before[name], self.device)
        self.snapshots = Snapshots.asked_for(self)
        self.speed_up()

    def speed_up(self) -> None:
        """`system.speed`, of our own guidances. Those that look at the same view work beside each
        other, each in memory of its own: alone none of them fills a GPU all the time."""
        ours = self.our_priors()
        if self.device.type == "cuda" and self.speed.compile and self.speed.beside:
            self.lanes = Lanes(terms.of_one_view(self.cfg.loss, ours))
        pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        for name, prior in ours.items():
            prior.speed_up(self.speed.compile, None if name in self.lanes.names else pool)

    def our_priors(self) -> dict[str, ScoreDistillation]:
        """The guidances by name, but threestudio's own."""
        priors = {name: getattr(self, name, None) for name in terms.guidances()}
        return {k: prior for k, prior in priors.items() if isinstance(prior, ScoreDistillation)}

    def on_train_start(self) -> None:
        """Of several processes each keeps its own occupancy grid, as good as any. Before each step
        torch would write rank 0's over it, past the count of changes that `occupied_box` reads.
        """
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.broadcast_buffers = False

    def on_train_batch_start(self, batch: dict, batch_idx: int, unused: int = 0) -> None:
        """This batch's random numbers, before anything draws: a resumed run repeats them."""
        parts = self.trainer.accumulate_grad_batches
        number = self.global_step * parts + batch_idx % parts
        # 0: never; Lightning gives its Trainer the name in a connector
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        self.writes_down = every > 0 and (self.global_step + 1) % every == 0
        seed_everything(step_seed(self.base_seed, number, get_rank()))
        super().on_train_batch_start(batch, batch_idx, unused)

    def forward(self, view: dict[str, Any]) -> dict[str, Any]:
        """What the renderer sees of the scene from a view's cameras, at its frame times."""
        return self.renderer(**camera_of(view))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One step over a batch; see the module's docstring."""
        weights = {key: self.C(value) for key, value in self.loss_weights.items()}
        weights = {key: weight for key, weight in weights.items() if weight != 0}
        views = terms.views_of(batch, weights)
        renders = self.render(views, weights)
        parts: dict[str, list[Tensor]] = defaultdict(list)  # weight -> its losses, a view each

        # first of all: a GPU has most to do for them, and meanwhile the rest is launched
        for term in terms.GUIDANCE_TERMS:
            if term.view in renders and term.weight in weights:
                rgb = renders[term.view]["comp_rgb"]
                camera = camera_of(views[term.view])
                if term.view == terms.CLIP:
                    camera["num_frames"] = batch["num_frames"]
                with self.lanes.lane(term.guidance):
                    parts[term.weight].append(self.distill(term, rgb, camera))

        if terms.REFERENCE in renders:
            for key, loss in terms.REFERENCE_TERMS.items():
                if key in weights:
                    parts[key].append(loss(renders[terms.REFERENCE], views[terms.REFERENCE]))

        for key in terms.REGULARISERS:
            if key in weights:
                parts[key] += [terms.regulariser(key, render) for render in renders.values()]

        if not terms.RIGIDITY_TERMS.keys().isdisjoint(weights):
            bent = self.geometry.rigidity()
            for key, name in terms.RIGIDITY_TERMS.items():
                if key in weights:
                    parts[key].append(bent[name])

        self.lanes.join()
        values = {key: total(found) for key, found in parts.items()}
        if values:
            loss = total(weights[key] * value for key, value in values.items())
        else:  # nothing weighs anything: a zero that still has a graph, for DDP
            loss = 0 * total(render["opacity"].sum() for render in renders.values())
        named = {key.replace("lambda_", "loss_"): value.detach() for key, value in values.items()}
        for name, value in named.items():
            self.note(f"train/{name}", value, prog_bar=True)
        for key, weight in weights.items():
            self.note(f"train_params/{key}", weight)
        # here, since Lightning's checkpoints are written before on_train_batch_end
        self.loss_watch.look(self.true_global_step + 1, {"loss": loss, **named}, weights)
        return {"loss": loss, **named}

    @property
    def waits_for_launches(self) -> bool:
        """Whether it takes a call to launch its kernels, and not only what they compute."""
        return self.device.type == "cuda"

    def render(
        self, views: Mapping[str, dict[str, Any]], weights: Mapping[str, float]
    ) -> dict[str, dict[str, Any]]:
        """The renders of a batch's views, on a GPU in one call; of several in one call nobody could
        say whose samples are whose, where losses of these weights ask for them."""
        if self.waits_for_launches and not terms.read_samples(weights):
            return render_together(self, {name: camera_of(view) for name, view in views.items()})
        return {name: self(view) for name, view in views.items()}

    def distill(
        self, term: terms.GuidanceTerm, rgb: Float[Tensor, "N H W 3"], camera: dict
    ) -> Tensor:
        """The sum of the losses that a term's guidance returns on pictures of `camera`."""
        prompt = getattr(self, term.prompt_processor or "", None)
        prompt_utils = () if prompt is None else (prompt(),)
        said = getattr(self, term.guidance)(rgb, *prompt_utils, **camera)
        # threestudio's Stable Diffusion also gives HiFA's loss on pixels, which has no weight here
        parts = [v for k, v in said.items() if k.startswith("loss_") and k != "loss_sd_img"]
        if not parts:
            kind = self.cfg[f"{term.guidance}_type"]
            raise KeyError(f"{kind} returned {sorted(said)}: there is no loss_* to weigh.")
        name = term.weight.replace("lambda_", "")
        if "lost" in said:
            self.watch_gradient(term.guidance, said.pop("lost"))
        for key, value in said.items() if self.writes_down else ():
            if not key.startswith("loss_") and torch.as_tensor(value).numel() == 1:
                self.note(f"train/{key}_{name}", value)
        return total(parts)

    def watch_gradient(self, name: str, lost: Float[Tensor, ""]) -> None:
        """lost: the share of the gradient of the guidance `name` that isn't finite."""
        prior, kind = getattr(self, name), self.cfg[f"{name}_type"]
        model = prior.cfg.pretrained_model_name_or_path
        patience = 1 if prior.dtype == torch.float32 else PATIENCE
        self.loss_watch.gradient(f"system.{name} ({kind}, {model})", lost, patience)

    def note(self, name: str, value: Tensor | float, **options: Any) -> None:
        """`log`, in the steps that the trainer writes down: it takes its time."""
        if self.writes_down:
            # a number becomes a CPU tensor: Lightning would wait for the GPU
            self.log(name, torch.as_tensor(value).float(), **options)

    def on_train_batch_end(self, outputs: Any, batch: dict, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.snapshots.take(self)

    def on_train_end(self) -> None:
        """The last step's weights have to be numbers as well, saved or not."""
        self.snapshots.remove()
        self.check_finite(self.state_dict())

    # ------------------------------------------------------------------ numbers that are none

    def check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """A FloatingPointError if training has come to numbers that aren't finite, up to now."""
        self.loss_watch.finish()
        if bad := not_finite(tensors):
            raise FloatingPointError(
                f"After step {self.true_global_step} {some(bad)} is NaN or infinite: that is not "
                "saved. A lower learning rate or weight would do, or trainer.precision=32. "
                f"{self.way_back()}"
            )
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < LEAST_SCALE:
            raise FloatingPointError(
                f"Up to step {self.true_global_step} the gradients of step after step overflowed "
                "in half precision, so that nothing was trained: trainer.precision=bf16-mixed or "
                f"32 would do, or lower weights. {self.way_back()}"
            )

    def way_back(self) -> str:
        """Where a run that failed can go on, for its message."""
        folders = [getattr(c, "dirpath", None) for c in self.trainer.checkpoint_callbacks]
        found = [path for folder in folders if folder for path in Path(folder).glob("*.ckpt")]
        newest = max(found, key=lambda path: path.stat().st_mtime, default=self.trainer.ckpt_path)
        if newest is None:
            return "Nothing was saved before that: start again with such a change."
        return (
            f"With such a change, resume={newest} goes on from what was saved before that; with "
            "the same settings it would come to this again."
        )

    # ------------------------------------------------------------------ checkpoints

    def load_weights(self, weights: str, ignore_modules: Sequence[str] | None = None) -> None:
        """`system.weights`: what fits of another stage's checkpoint, if it is of this geometry."""
        ignored = tuple(ignore_modules or ())
        state_dict, epoch, global_step = checkpoints.read(weights, ignored)
        checkpoints.check_fit(self, state_dict, weights, ignored)
        if self.cfg.guidance_cn_type and not checkpoints.ever_moved(self, state_dict):
            threestudio.warn(
                f"Nothing moves in {weights} (that was never trained): is it stage 1's? "
                "This config refines a moving scene; stage 2's checkpoint would do."
            )
        anew = checkpoints.may_lack(self, state_dict)
        loaded = self.load_state_dict(state_dict, strict=False)
        checkpoints.say_misfits(loaded, weights, ignored, anew)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, **options: Any
    ) -> Any:
        """torch's, for `system.weights` and `resume` both, without the original's copies."""
        own = checkpoints.without_copies(state_dict)
        return super().load_state_dict(own, strict=strict, **options)

    def stage(self) -> dict[str, Any]:
        """What tells one stage's checkpoints from another's."""
        kinds = [self.cfg[f"{name}_type"] for name in terms.guidances()]
        return {"static": self.static, "guidance": kinds}

    @property
    def static(self) -> bool:
        """Whether the scene stands still."""
        return is_static(self.geometry)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What isn't finite is not written: the checkpoint before it stays."""
        self.check_finite({**checkpoint["state_dict"], **optimizer_tensors(checkpoint)})
        checkpoint["animate124_stage"] = self.stage()
        targets = {name: prior.kept_targets.kept for name, prior in self.our_priors().items()}
        if any(targets.values()) and self.true_global_step < self.trainer.max_steps:
            checkpoint["animate124_targets"] = targets  # a later stage has no use for them

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """`resume`: training goes on within a stage; a test may look at any scene that fits."""
        path = str(self.trainer.ckpt_path)
        checkpoints.check_file(path)
        if self.trainer.training:
            check_loaded(optimizer_tensors(checkpoint), path)
        checkpoints.check_fit(self, checkpoint["state_dict"], path)
        if self.trainer.training:
            checkpoints.check_goes_on(checkpoint, self.stage())
            checkpoints.reorder_groups(checkpoint, list(self.cfg.optimizer.get("params") or ()))
            self.targets_before = checkpoint.get("animate124_targets", {})

    # ------------------------------------------------------------------ pictures and videos

    def save_path(self, name: str) -> Path:
        return Path(self.get_save_path(name))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """`it<step>-<view>.png`: colour, normals and depth side by side."""
        layers = picture_layers(self(batch))
        near, far = depth_range([layers["depth"]])
        layers["depth"] = colour_depth(layers["depth"], near, far)
        row = [layers[name] for name in ("rgb", "normal", "depth") if name in layers]
        path = self.save_path(f"it{self.true_global_step}-{int(batch['index'])}.png")
        save_png(path, np.concatenate(row, axis=1))

    def on_validation_epoch_end(self) -> None:
        """Each view is written already."""

    def test_frames(self) -> FrameStore:
        return FrameStore(self.save_path(f"it{self.true_global_step}-test-frames"))

    def start_test(self) -> None:
        self.resting_view: tuple[Tensor, Tensor] | None = None  # c2w and its picture at tau = 0
        if get_rank() == 0:
            self.test_frames().clear()
        barrier()

    def on_test_start(self) -> None:
        self.start_test()

    def on_predict_start(self) -> None:
        super().on_predict_start()
        self.start_test()

    def on_predict_epoch_end(self) -> None:
        """Saves what the exporter made, which may then tidy up what an earlier export left."""
        super().on_predict_epoch_end()
        tidy = getattr(self.exporter, "tidy", None)
        if get_rank() == 0 and tidy is not None:
            tidy(self.save_path(f"it{self.true_global_step}-export"))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Renders a view of the test trajectory, and if time runs, again with time frozen at 0."""
        layers = picture_layers(self(batch))
        layers["depth"] = layers["depth"].astype(np.float16)  # 0.05 % is fine enough
        if not self.static:
            layers["frozen"] = to_picture(self.frozen(batch))
        self.test_frames().put(int(batch["index"]), **layers)

    def frozen(self, view: dict[str, Any]) -> Float[Tensor, "H W 3"]:
        """A view's colours at tau = 0, rendered once for as long as the camera rests."""
        if self.resting_view is None or not torch.equal(self.resting_view[0], view["c2w"]):
            at_zero = {**view, "frame_times": torch.zeros_like(view["frame_times"])}
            self.resting_view = view["c2w"], self(at_zero)["comp_rgb"][0]
        return self.resting_view[1]

    def on_test_epoch_end(self) -> None:
        """Rank zero makes the videos of the frames of all ranks."""
        barrier()
        if get_rank() != 0:
            return
        store, path = self.test_frames(), self.save_path(f"it{self.true_global_step}-test")
        for video in compose_videos(store, path, self.cfg.test_fps):
            threestudio.info(f"Test video: {video}")
        if self.cfg.keep_test_frames:
            for index, picture in enumerate(store.read("rgb")):
                save_png(path / f"{index}.png", picture)
            for old in path.glob("*.png"):  # of a longer test before
                if old.stem.isdigit() and int(old.stem) > index:
                    old.unlink()
        store.clear()


def picture_layers(render: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of a render of one view: colours and normals as pictures, depth as numbers."""
    layers = {"rgb": to_picture(render["comp_rgb"][0])}
    if "comp_normal" in render:
        layers["normal"] = to_picture(render["comp_normal"][0])
    layers["depth"] = surface_depth(render["depth"][0], render["opacity"][0])
    return layers
