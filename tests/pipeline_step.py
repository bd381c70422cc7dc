"""One step of a diffusers pipeline from a chosen noise level, and what it then takes for clean."""

from typing import Any


def one_step(pipe: Any, **levels: Any) -> dict[str, Any]:
    """Makes the pipeline's next call a single step; levels: attributes of its scheduler, such as
    timesteps. `z` of the dict that is returned is then what that step takes for clean."""
    scheduler, seen = pipe.scheduler, {}
    pipe.set_progress_bar_config(disable=True)

    def set_timesteps(*args, **options):
        for name, value in {"num_inference_steps": 1, **levels}.items():
            setattr(scheduler, name, value)

    def step(*args, return_dict=True, **options):
        out = take(*args, **options)
        seen.update(z=out.pred_original_sample)
        return out if return_dict else (out.prev_sample,)

    take, scheduler.step, scheduler.set_timesteps = scheduler.step, step, set_timesteps
    return seen
