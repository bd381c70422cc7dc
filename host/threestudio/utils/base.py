"""Bases of everything a config builds: typed configs, and being told of every step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from omegaconf import DictConfig
from threestudio.utils.bounds import Bounded, path_of
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import find_last_path, get_device, load_module_weights


class Configurable:
    """Something with a config."""

    @dataclass
    class Config(Bounded):
        pass

    def __init__(self, cfg: dict | DictConfig | None = None) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)


class Updateable:
    """Something that changes with the step; its attributes are told before itself."""

    def _updateable_attributes(self) -> Iterator["Updateable"]:
        attributes = dict(vars(self))
        if isinstance(self, nn.Module):
            attributes.update(self._modules)
        found = [name for name, value in attributes.items() if isinstance(value, Updateable)]
        yield from (attributes[name] for name in sorted(found) if not name.startswith("_"))

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        for attribute in self._updateable_attributes():
            attribute.do_update_step(epoch, global_step, on_load_weights=on_load_weights)
        self.update_step(epoch, global_step, on_load_weights=on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        for attribute in self._updateable_attributes():
            attribute.do_update_step_end(epoch, global_step)
        self.update_step_end(epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Override to prepare for a step.

        While weights are being loaded, modules may still lie on different devices.
        """

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Override to do something after a step."""


def update_if_possible(module: Any, epoch: int, global_step: int) -> None:
    if isinstance(module, Updateable):
        module.do_update_step(epoch, global_step)


def update_end_if_possible(module: Any, epoch: int, global_step: int) -> None:
    if isinstance(module, Updateable):
        module.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """Something with a config that is not trained (guidance, prompt processor, exporter)."""

    @dataclass
    class Config(Bounded):
        pass

    cfg: Config

    def __init__(self, cfg: dict | DictConfig | None = None, *args, **kwargs) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args, **kwargs) -> None:
        """Override to build what the object needs."""


class BaseModule(nn.Module, Updateable):
    """A torch module with a config."""

    @dataclass
    class Config(Bounded):
        # `path/to/checkpoint:module` to start from that module's weights
        weights: str | None = path_of("weights", None)

    cfg: Config

    def __init__(self, cfg: dict | DictConfig | None = None, *args, **kwargs) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)
        if self.cfg.weights is not None:
            self._load_weights(self.cfg.weights)
        self._dummy: torch.Tensor  # tells which device the module is on
        self.register_buffer("_dummy", torch.zeros(0), persistent=False)

    def _load_weights(self, weights: str) -> None:
        path, colon, module_name = weights.rpartition(":")
        if not colon:
            raise ValueError(
                f"weights: {weights!r} should be <checkpoint>:<module>, for example "
                "last.ckpt:geometry."
            )
        state_dict, epoch, step = load_module_weights(
            find_last_path(path), module_name=module_name, map_location="cpu"
        )
        try:
            self.load_state_dict(state_dict)
        except RuntimeError as error:
            raise ValueError(
                f"weights: {weights!r} doesn't fit {type(self).__name__}: {error}"
            ) from None
        self.do_update_step(epoch, step, on_load_weights=True)

    def configure(self, *args, **kwargs) -> None:
        """Override to build what the module needs."""
