"""Who moves: what a person said, else what the prompt says, else the picture's caption."""

from .request import Request
from .wording import Subject, subject_of, subject_of_caption

LATER = Subject("SUBJECT", "a SUBJECT")  # stands in a plan until the caption is there


def needs_caption(request: Request) -> bool:
    return request.subject is None and subject_of(request.prompt) is None


def who(request: Request) -> Subject | None:
    """The subject; None as long as only a caption that isn't there yet can tell."""
    if request.subject is not None:
        return Subject.named(request.subject)
    found = subject_of(request.prompt)
    written = caption(request) if found is None else None
    return found if written is None else subject_of_caption(written)


def caption(request: Request) -> str | None:
    """What image_preprocess.py wrote about the picture, here or earlier beside it."""
    for folder in (request.folder / "input", request.image.parent):
        path = folder / "_caption.txt"
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} isn't text in UTF-8 ({error.reason}). Write it anew, as one sentence "
                "about the picture, or delete it and pass --subject."
            ) from error
        if text:
            return text
    return None
