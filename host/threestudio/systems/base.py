"""Systems: Lightning modules that a config builds, with their hooks, weights and optimizers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from threestudio.log import aside, info, warn
from threestudio.models.exporters.base import Exporter
from threestudio.registry import find
from threestudio.systems.utils import parse_optimizer, parse_scheduler
from threestudio.utils.base import Updateable
from threestudio.utils.bounds import Bounded, bounded, path_of
from threestudio.utils.checkpoints import misfits, shortened
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import C, cleanup, find_last_path, get_device, load_module_weights
from threestudio.utils.saving import SaverMixin


def sections(config: type) -> list[str]:
    """The sections of a system's config that a `<section>_type` belongs to."""
    names = [f.name for f in fields(config)]
    return [name for name in names if f"{name}_type" in names]


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    @dataclass
    class Config(Bounded):
        loggers: dict = field(default_factory=dict)  # wandb: {enable, project, name}
        loss: dict = bounded({}, schedule=True)  # weights lambda_*, numbers or schedules
        optimizer: dict = field(default_factory=dict)  # {name, args, params}
        scheduler: dict | None = None  # {name, args, interval}
        # checkpoint to start from; @LAST stands for the newest trial
        weights: str | None = path_of("checkpoint", None)
        weights_ignore_modules: list[str] | None = None  # modules of it that are left out
        cleanup_after_validation_step: bool = False  # give memory back after each validation view
        cleanup_after_test_step: bool = False  # give memory back after each test view

    cfg: Config

    def __init__(self, cfg, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self._save_dir: str | None = None
        self._resumed: bool = resumed
        self._resumed_eval: bool = False
        self._resumed_eval_status: dict = {"global_step": 0, "current_epoch": 0}
        self.create_loggers(self.cfg.loggers)
        self.cfg.weights = find_last_path(self.cfg.weights)
        if self.cfg.weights is not None and not os.path.exists(self.cfg.weights):
            load_module_weights(self.cfg.weights)  # says what is missing, before models are loaded

        self.configure()
        if self.cfg.weights is not None:
            self.load_weights(self.cfg.weights, self.cfg.weights_ignore_modules)
        self.post_configure()

    # weights

    def load_weights(self, weights: str, ignore_modules: list[str] | None = None) -> None:
        """Takes over what fits of a checkpoint and says what doesn't; an error if nothing fits."""
        state_dict, epoch, global_step = load_module_weights(
            weights, ignore_modules=ignore_modules, map_location="cpu"
        )
        own = self.state_dict()
        misfit = misfits(own, state_dict)
        if misfit["wrong shape"]:
            raise ValueError(
                f"{weights} has other shapes than this config's: "
                f"{shortened(misfit['wrong shape'])}. "
                "Use the settings it was trained with, or leave the module out with "
                "weights_ignore_modules."
            )
        if len(misfit["unexpected"]) == len(state_dict):
            raise ValueError(
                f"Nothing in {weights} fits {type(self).__name__}. It has {shortened(state_dict)}; "
                f"the system has {shortened(own)}. Is it another stage's or another "
                "method's checkpoint?"
            )
        unexpected = self.load_state_dict(state_dict, strict=False).unexpected_keys
        ignored = tuple(f"{name}." for name in ignore_modules or [])
        missing = [k for k in misfit["missing"] if not (ignored and k.startswith(ignored))]
        if missing:
            warn(f"{weights} lacks {shortened(missing)}: they keep their initial values.")
        if unexpected:
            warn(f"{weights} also has {shortened(unexpected)}: not used here.")
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ):
        """torch's, with an error that a person can read (this is what `resume` goes through)."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            found = [
                f"{kind}: {shortened(names)}"
                for kind, names in misfits(self.state_dict(), state_dict).items()
                if names
            ]
            raise ValueError(
                f"The checkpoint doesn't fit {type(self).__name__}. {'; '.join(found) or error}. "
                "To take over only what fits, use system.weights=... in place of resume=..."
            ) from None

    # where training is

    def set_resume_status(self, current_epoch: int, global_step: int) -> None:
        """Lightning doesn't restore these for validation, test and export."""
        self._resumed_eval = True
        self._resumed_eval_status = {"global_step": global_step, "current_epoch": current_epoch}

    @property
    def resumed(self) -> bool:
        """Whether training goes on from a checkpoint."""
        return self._resumed

    @property
    def true_global_step(self) -> int:
        return self._resumed_eval_status["global_step"] if self._resumed_eval else self.global_step

    @property
    def true_current_epoch(self) -> int:
        return (
            self._resumed_eval_status["current_epoch"] if self._resumed_eval else self.current_epoch
        )

    def C(self, value: Any) -> float:
        """A schedule's value now."""
        return C(value, self.true_current_epoch, self.true_global_step)

    # to override

    def configure(self) -> None:
        """Builds the modules."""

    def post_configure(self) -> None:
        """Runs after weights were loaded."""

    @classmethod
    def used_in_training(cls, cfg: Any) -> list[str]:
        """The config's sections (`<section>_type` names their module) that training builds."""
        return sections(cls.Config)

    @classmethod
    def check_with_data(cls, cfg: Any, data: Any) -> None:
        """Raises a ValueError where the system's config and the data's don't go together."""

    def training_step(self, batch, batch_idx):
        raise NotImplementedError

    def validation_step(self, batch, batch_idx):
        raise NotImplementedError

    def test_step(self, batch, batch_idx):
        raise NotImplementedError

    def predict_step(self, batch, batch_idx):
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        """After the last validation view."""

    def on_test_epoch_end(self) -> None:
        """After the last test view."""

    def on_predict_epoch_end(self) -> None:
        """After the last view of an export."""

    def preprocess_data(self, batch, stage: str) -> None:
        """Changes a batch in place, before the step; stage: train, validation, test or predict."""

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = parse_optimizer(self.cfg.optimizer, self)
        if self.cfg.scheduler is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": parse_scheduler(self.cfg.scheduler, optimizer),
        }

    # every batch: the data set (an attribute like any module) and the modules are told the step

    def _before_batch(self, batch, stage: str, loader: Any) -> None:
        self.preprocess_data(batch, stage)
        self.dataset = getattr(loader, "dataset", None)
        self.do_update_step(self.true_current_epoch, self.true_global_step)

    def _after_batch(self, loader: Any, clean: bool) -> None:
        self.dataset = getattr(loader, "dataset", None)
        self.do_update_step_end(self.true_current_epoch, self.true_global_step)
        if clean:
            cleanup()

    def on_train_batch_start(self, batch, batch_idx, unused=0):
        self._before_batch(batch, "train", self.trainer.train_dataloader)

    def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self._before_batch(batch, "validation", self.trainer.val_dataloaders)

    def on_test_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self._before_batch(batch, "test", self.trainer.test_dataloaders)

    def on_predict_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self._before_batch(batch, "predict", self.trainer.predict_dataloaders)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._after_batch(self.trainer.train_dataloader, clean=False)

    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        self._after_batch(self.trainer.val_dataloaders, self.cfg.cleanup_after_validation_step)

    def on_test_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        self._after_batch(self.trainer.test_dataloaders, self.cfg.cleanup_after_test_step)

    def on_predict_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        self._after_batch(self.trainer.predict_dataloaders, self.cfg.cleanup_after_test_step)


class BaseLift3DSystem(BaseSystem):
    """A geometry, a material and a background, seen by a renderer."""

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""
        geometry: dict = field(default_factory=dict)
        # checkpoint whose geometry is turned into this config's kind
        geometry_convert_from: str | None = path_of("checkpoint", None)
        geometry_convert_inherit_texture: bool = False  # with its colour network
        geometry_convert_override: dict = field(
            default_factory=dict
        )  # settings of the old geometry to change first

        material_type: str = ""
        material: dict = field(default_factory=dict)

        background_type: str = ""
        background: dict = field(default_factory=dict)

        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)

        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)

        prompt_processor_type: str = ""
        prompt_processor: dict = field(default_factory=dict)

        exporter_type: str = "dummy-exporter"  # used by --export only
        exporter: dict = field(default_factory=dict)

    cfg: Config

    def configure(self) -> None:
        self.cfg.geometry_convert_from = find_last_path(self.cfg.geometry_convert_from)
        # converting is a start: weights and resume bring the geometry along
        if self.cfg.geometry_convert_from and not self.cfg.weights and not self.resumed:
            self.geometry = self._convert_geometry(self.cfg.geometry_convert_from)
        else:
            self.geometry = find(self.cfg.geometry_type)(self.cfg.geometry)
        self.material = find(self.cfg.material_type)(self.cfg.material)
        self.background = find(self.cfg.background_type)(self.cfg.background)
        self.renderer = find(self.cfg.renderer_type)(
            self.cfg.renderer,
            geometry=self.geometry,
            material=self.material,
            background=self.background,
        )

    def _convert_geometry(self, path: str) -> Any:
        """This config's kind of geometry, made from an earlier trial's.

        The earlier config is found beside the checkpoint, where the launcher puts it.
        """
        info(f"Taking the geometry from {path}.")
        state_dict, epoch, global_step = load_module_weights(
            path, module_name="geometry", map_location="cpu"
        )
        earlier = OmegaConf.load(
            os.path.join(os.path.dirname(path), "..", "configs", "parsed.yaml")
        )
        earlier_cfg = parse_structured(self.Config, earlier.system)
        earlier_cfg.geometry.update(self.cfg.geometry_convert_override)
        geometry = find(earlier_cfg.geometry_type)(earlier_cfg.geometry)
        geometry.load_state_dict(state_dict, strict=False)
        geometry.do_update_step(epoch, global_step, on_load_weights=True)
        converted = find(self.cfg.geometry_type).create_from(
            geometry.to(get_device()),
            self.cfg.geometry,
            copy_net=self.cfg.geometry_convert_inherit_texture,
        )
        del geometry
        cleanup()
        return converted

    def on_fit_start(self) -> None:
        if self._save_dir is not None:
            aside(f"Pictures will be saved to {self._save_dir}.")
        else:
            warn("No folder to save to was set: no pictures will be saved.")

    def on_test_end(self) -> None:
        if self._save_dir is not None:
            aside(f"Test results are in {self._save_dir}.")

    def on_predict_start(self) -> None:
        self.exporter: Exporter = find(self.cfg.exporter_type)(
            self.cfg.exporter,
            geometry=self.geometry,
            material=self.material,
            background=self.background,
        )

    def predict_step(self, batch, batch_idx):
        if self.exporter.cfg.save_video:
            self.test_step(batch, batch_idx)

    def on_predict_epoch_end(self) -> None:
        if self.exporter.cfg.save_video:
            self.on_test_epoch_end()
        for output in self.exporter():
            save = getattr(self, f"save_{output.save_type}", None)
            if save is None:
                raise ValueError(
                    f"The exporter wants to save a {output.save_type!r}, which SaverMixin cannot."
                )
            save(f"it{self.true_global_step}-export/{output.save_name}", **output.params)

    def on_predict_end(self) -> None:
        if self._save_dir is not None:
            aside(f"Exported files are in {self._save_dir}.")

    def guidance_evaluation_save(
        self, comp_rgb: torch.Tensor, guidance_eval_out: Mapping[str, Any]
    ) -> None:
        """A picture of the renders [B H W 3] and what a guidance makes of them."""
        size = comp_rgb.shape[1:3]

        def column(images):
            images = F.interpolate(
                images.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
            )
            return images.permute(0, 2, 3, 1).flatten(0, 1)

        names = ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final")
        columns = [comp_rgb.flatten(0, 1), *(column(guidance_eval_out[name]) for name in names)]
        self.save_image_grid(
            f"it{self.true_global_step}-train.png",
            [{"type": "rgb", "img": image, "kwargs": {"data_format": "HWC"}} for image in columns],
            name="train_step",
            step=self.true_global_step,
            texts=guidance_eval_out["texts"],
        )
