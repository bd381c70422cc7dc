"""The prompts that stages take, all of them from the person's one sentence."""

from .presets import TEXT, Preset
from .request import Request
from .subject import LATER
from .wording import TOKEN, Subject, refined


def make_prompts(request: Request, preset: Preset, subject: Subject) -> dict[str, str]:
    """By the names that a preset's rows have for them; an empty one is left out of a config.

    Raises:
        ValueError: no prompt with the learned token can be derived, or the one given lacks it.
    """
    static = request.static_prompt or preset.static_prompt.format(**subject._asdict())
    refine = request.refine_prompt
    if not any("refine" in stage.prompts.values() for stage in preset.stages):
        refine = TOKEN  # nobody reads it
    if refine is None:
        refine = TOKEN if subject is LATER else refined(request.prompt, subject)
    if refine is None:
        raise ValueError(
            f"The prompt {request.prompt!r} doesn't name the subject {subject.noun!r}, so it is "
            f'not clear where the learned token stands. Pass --refine-prompt, such as "a {TOKEN} '
            f'is dancing", or another --subject.'
        )
    if TOKEN not in refine:
        raise ValueError(
            f"--refine-prompt {refine!r} has no {TOKEN}, which stands for the learned token; such "
            f'as "a {TOKEN} is dancing".'
        )
    return {
        "static": static,
        "prompt": request.prompt,
        "refine": refine,
        "video_negative": preset.video_negative.format(**subject._asdict()),
        "refine_negative": preset.refine_negative.format(prompt=request.prompt),
    }


def by_stage(prompts: dict[str, str], preset: Preset) -> dict[str, str]:
    """The same for people: each stage's own, and what else the stages take."""
    own = {stage.name: prompts[stage.prompts[TEXT]] for stage in preset.stages}
    taken = {name for stage in preset.stages for name in stage.prompts.values()}
    beside = taken - {stage.prompts[TEXT] for stage in preset.stages}
    return own | {name: prompts[name] for name in prompts if name in beside}
