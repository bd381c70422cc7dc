"""What lies in a trial's folder already: nothing that took time is overwritten without a word."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threestudio.log import warn
from threestudio.utils.config import config_to_primitive, load_yaml


def keep_earlier(trial: Path) -> None:
    """Moves an earlier run's checkpoints aside, which a run from the start would replace."""
    ckpts = trial / "ckpts"
    if not any(ckpts.glob("*.ckpt")):
        return
    number = 1
    while (kept := trial / f"ckpts-earlier-{number}").exists():
        number += 1
    ckpts.rename(kept)
    warn(
        f"{trial} has checkpoints of an earlier run: they are kept in {kept}. "
        f"To go on with it instead: resume={kept / 'last.ckpt'}"
    )


def say_what_resumes(cfg: Any, step: int) -> None:
    """Says where resuming has nothing left to train, or goes on with other settings."""
    most = cfg.trainer.get("max_steps", -1)
    if 0 < most <= step:
        warn(
            f"{cfg.resume} is of step {step} and trainer.max_steps is {most}: there is nothing "
            "left to train. More steps go on with it."
        )
    before = Path(cfg.resume).parent.parent / "configs" / "parsed.yaml"
    if not before.is_file():
        return
    earlier, now = load_yaml(str(before)), {}
    for section in ("data", "system"):
        now[section] = config_to_primitive(cfg[section])
    earlier = config_to_primitive(earlier)
    changed = list(_changes({key: earlier.get(key) for key in now}, now))
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        warn(f"resume goes on with other settings than before: {'; '.join(changed[:5])}{more}.")


def _changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{key}.{name}" if key else str(name)
            yield from _changes(before.get(name), now.get(name), inner)
    elif before != now and key != "system.weights":
        old, new = ("unset" if value is None else value for value in (before, now))
        yield f"{key} {old} -> {new}"
