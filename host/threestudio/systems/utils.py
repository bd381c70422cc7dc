"""Optimizers and learning-rate schedules from a config."""

from typing import Any

import torch
import torch.nn as nn
from threestudio.registry import close_names
from threestudio.utils.config import config_to_primitive
from torch.optim import lr_scheduler


def _named(module: Any, name: str, what: str) -> Any:
    """An attribute of a torch module, or an error with the close names."""
    if not hasattr(module, name) or name.startswith("_"):
        near = close_names(name, [n for n in dir(module) if n[0].isupper()])
        raise ValueError(
            f"There is no {what} {name!r} in torch. Close names: {', '.join(near) or 'none'}."
        )
    return getattr(module, name)


def _call(function: Any, what: str, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs); an argument it doesn't take is said to be the config's."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{what}.args {kwargs} don't suit {function.__name__}: {error}") from error


def get_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters below a dotted path (a module or one parameter)."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, nn.Module):
        return list(found.parameters())
    if isinstance(found, nn.Parameter):
        return [found]
    paths = [n for n, _ in model.named_modules() if n] + [n for n, _ in model.named_parameters()]
    near = close_names(name, paths)
    raise ValueError(
        f"optimizer.params has {name!r}, but {type(model).__name__} has no module or "
        "parameter of that path. "
        f"Close paths: {', '.join(near or [n for n, _ in model.named_children()])}."
    )


def parse_optimizer(config: Any, model: nn.Module) -> torch.optim.Optimizer:
    """`{name, args, params: {path: {lr, ...}}}`.

    Each path becomes a parameter group of that name; without params, all are in one group.
    """
    # plain numbers and lists: they go into the checkpoint, which is to hold data only
    config = config_to_primitive(config)
    if not config.get("name"):
        raise ValueError("optimizer.name must be given, for example Adam.")
    if config.get("params"):
        groups: Any = [
            {**(options or {}), "params": get_parameters(model, path), "name": path}
            for path, options in config["params"].items()
        ]
    else:
        groups = list(model.parameters())
    return _call(
        _named(torch.optim, config["name"], "optimizer"),
        "optimizer",
        groups,
        **config.get("args", {}),
    )


def check_optimizer(config: Any, scheduler: Any) -> None:
    """Builds both with a stand-in for the parameters, so that torch says what won't do.

    Raises:
        ValueError: a name, an argument or a value, with where it stands.
    """
    config = config_to_primitive(config)
    if not config.get("name"):
        raise ValueError("system.optimizer.name must be given, for example Adam.")
    kind = _named(torch.optim, config["name"], "optimizer")
    where, given = "system.optimizer", config
    try:
        # a group's options aren't looked at by torch, the optimizer's own are
        for path, options in (config.get("params") or {}).items():
            where = f"system.optimizer.params.{path}"
            given = {**(config.get("args") or {}), **(options or {})}
            _dummy_optimizer(kind, **given)
        where, given = "system.optimizer.args", config.get("args") or {}
        optimizer = _dummy_optimizer(kind, **given)
        if scheduler is not None:
            where, given = "system.scheduler", config_to_primitive(scheduler)
            schedule = parse_scheduler(scheduler, optimizer)["scheduler"]
            if not isinstance(schedule, lr_scheduler.ReduceLROnPlateau):  # it wants to see a loss
                optimizer.step()
                schedule.step()
    except Exception as error:
        raise ValueError(f"{where} {given} won't do: {error}") from error


def _dummy_optimizer(kind: Any, **options: Any) -> torch.optim.Optimizer:
    return kind([nn.Parameter(torch.zeros(1))], **options)


def parse_scheduler_to_instance(config: Any, optimizer: torch.optim.Optimizer) -> Any:
    """`{name, args}`, or a SequentialLR or ChainedScheduler of `schedulers`."""
    config = config_to_primitive(config)
    name = config.get("name")
    if not name:
        raise ValueError("scheduler.name must be given, for example ExponentialLR.")
    if name in ("Sequential", "SequentialLR", "ChainedScheduler"):
        parts = [parse_scheduler_to_instance(part, optimizer) for part in config["schedulers"]]
        if name == "ChainedScheduler":
            return lr_scheduler.ChainedScheduler(parts)
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=config["milestones"])
    return _call(
        _named(lr_scheduler, name, "scheduler"), "scheduler", optimizer, **config.get("args", {})
    )


def parse_scheduler(config: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The same with Lightning's `interval`, after which the scheduler moves on: epoch or step."""
    interval = config.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise ValueError(f"scheduler.interval should be 'epoch' or 'step', not {interval!r}.")
    return {"scheduler": parse_scheduler_to_instance(config, optimizer), "interval": interval}
