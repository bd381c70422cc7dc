"""The files beside a photo: none is written over its own input, each whole or not at all."""

from pathlib import Path

from PIL import Image

from ..files.whole import whole_file
from .errors import PreprocessError

NAMES = {
    "rgba": "_rgba.png",
    "depth": "_depth.png",
    "normal": "_normal.png",
    "caption": "_caption.txt",
}


class Results:
    """What comes of one photo."""

    def __init__(self, photo: Path) -> None:
        self.photo = photo
        self.paths = {kind: photo.parent / name for kind, name in NAMES.items()}
        self.written: dict[str, Path] = {}  # those of this run, by kind

    def save(self, kind: str, content: Image.Image | str) -> None:
        """
        Raises:
            PreprocessError: the file is the photo itself, or can't be written.
        """
        path = self.paths[kind]
        if path.exists() and self.photo.exists() and path.samefile(self.photo):
            raise PreprocessError(
                f"{path.name} would overwrite its own input: rename the photo, or pass "
                "--use_existing_background."
            )
        try:
            with whole_file(path) as part:
                if isinstance(content, str):
                    part.write_text(f"{content}\n", encoding="utf-8", newline="\n")
                else:
                    content.save(part, "PNG")
        except OSError as error:
            raise PreprocessError(
                f"{path} can't be written ({error.strerror or error}). The results go beside "
                "the photo: copy it into a folder in which you may write."
            ) from error
        print(f"wrote {path}")
        self.written[kind] = path
