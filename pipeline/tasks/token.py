"""A word of the subject's own, learned from its cut-out for the stage that refines."""

from ...textual_inversion.parser import parser
from ..draft import Draft
from ..manifest import model_hash
from ..overrides import flags
from ..places import located, model_shown, models_of, shown
from ..presets import FAST
from ..task import Task
from ..wording import TOKEN

NAME = "token"
SCRIPT = "textual-inversion/textual_inversion.py"
PLANNED = {  # flags that the plan sets, and the option that a person has for it
    "train_data_dir": "IMAGE",
    "output_dir": "--out",
    "placeholder_token": "--refine-prompt",
    "resume_from_checkpoint": "--from token",
}


def make(draft: Draft) -> Task:
    folder, options = draft.folder(NAME), draft.flags(NAME)
    if draft.request.fast and "max_train_steps" not in draft.overrides(NAME):
        options["max_train_steps"] = max(1, options["max_train_steps"] // FAST)
    system = draft.configs[draft.refined.name]["system"]
    model = system["guidance_cn"]["pretrained_model_name_or_path"]
    options = {
        "pretrained_model_name_or_path": model_shown(model),
        "learnable_property": "object",
        "placeholder_token": TOKEN,
        "initializer_token": draft.subject.noun,
        **options,
    }
    paths = {"train_data_dir": shown(draft.cut_out), "output_dir": shown(folder)}
    return Task(
        name=NAME,
        command=[SCRIPT, *flags(NAME, {**options, **paths}, parser())],
        folder=folder,
        settings={**options, "model": model_hash(located(model))},
        reads={"cut-out": draft.cut_out},
        outputs=[draft.learned_token],
        cost=draft.preset.costs[NAME],
        steps=int(options["max_train_steps"]),
        checkpoint=folder,
        resume=["--resume_from_checkpoint", "latest"],
        models=frozenset(model for _, model in models_of(options)),
        slight=("logs/*/events.out.tfevents.*", "logs/*/hparams.yml"),
    )
