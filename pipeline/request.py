"""A scene: what a person asked for, and where it goes."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from .wording import Subject, subject_of, subject_of_caption

# stems that say nothing: the folder names the picture
ANY_PICTURE = {"image", "img", "input", "photo", "picture", "rgba"}


@dataclass(frozen=True)
class Request:
    """An image, a sentence and options; paths are as they stand in commands."""

    image: Path
    prompt: str
    out: Path = Path("outputs")
    subject: str | None = None  # None: from the prompt, else from the caption
    static_prompt: str | None = None  # None: the preset's wording
    refine_prompt: str | None = None  # None: the prompt with the token for the subject
    preset: str = "modelscope"
    vram: float | None = None  # GB; None: no limit
    gpu: str | None = None  # as launch.py's, or cpu
    fast: bool = False
    overrides: dict[str, dict[str, str]] = field(default_factory=dict)  # task -> key -> value

    @property
    def name(self) -> str:
        """Such as toy-panda-a_panda_is_dancing."""
        stem = self.image.stem.strip("_-. ")
        if stem.lower() in ANY_PICTURE:
            stem = self.image.absolute().parent.name
        return "-".join(slug(part) for part in (stem, self.prompt) if slug(part))

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def caption(self) -> str | None:
        """What image_preprocess.py wrote about the picture, here or earlier beside it."""
        for folder in (self.folder / "input", self.image.parent):
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

    def needs_caption(self) -> bool:
        return self.subject is None and subject_of(self.prompt) is None

    def who(self) -> Subject | None:
        """The subject; None as long as only a caption that isn't there yet can tell."""
        if self.subject is not None:
            return Subject.named(self.subject)
        found = subject_of(self.prompt)
        caption = self.caption() if found is None else None
        if caption is not None:
            found = subject_of_caption(caption)
        return found


def slug(text: str, longest: int = 80) -> str:
    """Letters, digits, - and _; what is too long ends in its hash."""
    name = re.sub(r"[^\w-]+", "_", text).strip("_-")
    if len(name.encode()) <= longest:
        return name
    start = name.encode()[: longest - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
