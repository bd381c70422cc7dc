"""The subject, cut out of the photo; its depth, normals and, if asked for, its caption."""

from pathlib import Path

from ...preprocess.command import parser
from ..draft import Draft
from ..overrides import flags
from ..places import shown
from ..subject import needs_caption
from ..task import Task

NAME = "preprocess"
SCRIPT = "image_preprocess.py"
PLANNED: dict[str, str] = {}  # flags that the plan sets, and the option that a person has for it


def make(draft: Draft) -> Task:
    request, options = draft.request, draft.flags(NAME)
    if needs_caption(request):
        options["need_caption"] = "true"
    folder = draft.folder("input")
    photo = folder / f"photo{request.image.suffix.lower()}"
    reads = {"image": request.image}
    copies = [(request.image, photo)]
    if str(options.get("use_existing_background", "")).lower() == "true":
        reads["cut-out by hand"] = by_hand = request.image.parent / "_rgba.png"
        copies.append((by_hand, draft.cut_out))
        if not by_hand.is_file():
            raise FileNotFoundError(
                f"preprocess.use_existing_background: there is no {by_hand}. Save the subject, cut "
                "out, under that name."
            )
    return Task(
        name=NAME,
        command=[SCRIPT, *flags(NAME, options, parser(), shown(photo))],
        folder=folder,
        settings=options,
        reads=reads,
        outputs=[draft.cut_out],
        cost=draft.preset.costs[NAME],
        copies=tuple((Path(shown(source)), Path(shown(target))) for source, target in copies),
        slight=(photo.name,),
    )
