"""The manifest: what each task was made from and what it made, so that what is done stays done.

A task is done if it was finished with the same inputs and its outputs are still the files it wrote.
Inputs are the task's settings and the contents of the files it reads; where those lie plays no
part, so a scene's folder may be moved. `manifest.json` is replaced whole after every change.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..files.whole import whole_file

FORMAT = 1
# what text that is no manifest raises
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
CONTENT = 64 << 20  # bytes; of a model's larger files size and time of change are looked at
State = Literal["done", "half", "new"]


def file_hash(path: Path) -> str | None:
    """sha256 of the content; None where there is no file."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@functools.cache  # several tasks have the same model
def model_hash(model: str) -> str:
    """What tells a model from others: its id, and for a local folder what is in it."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        what = file_hash(path) if size <= CONTENT else str(path.stat().st_mtime_ns)
        digest.update(f"{path.relative_to(folder)} {size} {what}\n".encode())
    return digest.hexdigest()


def settings_hash(settings: Any) -> str:
    """sha256 of nested dicts, lists, texts and numbers, whatever the order of keys."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_records(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Raises:
        ValueError, KeyError, TypeError, AttributeError: a record isn't what `Manifest` writes.
    """
    for name, record in tasks.items():
        right = (
            isinstance(record["inputs"], str)
            and isinstance(record["finished"], bool)
            and is_number(record["seconds"])
            and all(is_number(peak) for peak in record["peak_memory"].values())
            and isinstance(record.get("command", ""), str)
        )
        if record["finished"]:
            right = right and all(isinstance(digest, str) for digest in record["outputs"].values())
        if not right:
            raise ValueError(f"the record of {name} has values of other kinds")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Manifest:
    """The records of a scene's tasks, `manifest.json` in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "manifest.json"
        self.records: dict[str, dict[str, Any]] = {}
        self.scene: dict[str, Any] | None = None  # whose folder this is
        if self.path.exists():
            try:
                held = json.loads(self.path.read_text(encoding="utf-8"))
                self.records = held["steps"]
                check_records(self.records)
                self.scene = held.get("scene")
            except (OSError, *UNREADABLE) as error:
                raise ValueError(
                    f"{self.path} can't be read ({error!r}). Put a copy of it back, if you have "
                    "one. Delete it if not: every task then runs again, and what they made is kept "
                    f"in {folder / 'earlier'}."
                ) from error

    def save(self) -> None:
        held = {"format": FORMAT, "scene": self.scene, "steps": self.records}
        text = json.dumps(held, indent=1)
        with whole_file(self.path) as part:
            part.write_text(text + "\n", encoding="utf-8")

    def claim(self, prompt: str, image: Path) -> None:
        """Notes whose folder this is. The picture may change, or lie elsewhere, but not both.

        Raises:
            ValueError: it is another scene's, whose name is the same.
        """
        ours = {"prompt": prompt, "image": str(image.absolute()), "sha256": file_hash(image)}
        held = self.scene if isinstance(self.scene, dict) else ours  # older runs noted nothing
        same_picture = held.get("sha256") == ours["sha256"] or held.get("image") == ours["image"]
        if held.get("prompt") != prompt or not same_picture:
            raise ValueError(
                f"{self.folder} is of another scene, the prompt {held.get('prompt')!r} with the "
                f"picture {held.get('image')}. Pass another --out, or move that folder away."
            )
        self.scene = ours

    def state(self, name: str, inputs: str | None, checkpoint: Path | None = None) -> State:
        """Whether a task is done; `half`: it was begun with these inputs and has a checkpoint.

        inputs: its hash; None while something that it reads is still to be made.
        """
        record = self.records.get(name)
        if record is None or inputs is None or record["inputs"] != inputs:
            return "new"
        if record["finished"]:
            return "new" if self.changed(name, inputs) else "done"
        return "half" if checkpoint is not None and checkpoint.exists() else "new"

    def changed(self, name: str, inputs: str) -> list[str]:
        """What a task that was finished with these inputs wrote, and is gone or other now."""
        record = self.records.get(name)
        if record is None or record["inputs"] != inputs or not record["finished"]:
            return []
        outputs = record["outputs"].items()
        return [path for path, digest in outputs if file_hash(self.folder / path) != digest]

    def begin(self, name: str, inputs: str, again: bool) -> None:
        """A task starts, or goes on where it stopped (`again`)."""
        before = self.records.get(name, {}) if again else {}
        self.records[name] = {
            "inputs": inputs,
            "finished": False,
            "seconds": before.get("seconds", 0.0),
            "peak_memory": before.get("peak_memory", {}),
        }
        self.save()

    def add(self, name: str, seconds: float, peak_memory: Mapping[str, float]) -> None:
        """What a run of a task took, added to its earlier ones; memory in GB, by kind."""
        record = self.records[name]
        record["seconds"] += seconds
        kept = record["peak_memory"]
        for kind, peak in peak_memory.items():
            kept[kind] = max(peak, kept.get(kind, 0.0))
        self.save()

    def finish(self, name: str, outputs: Iterable[Path], **facts: Any) -> None:
        """A task ended well.

        Raises:
            FileNotFoundError: an output isn't there.
        """
        record = self.records[name]
        hashes = {}
        for path in outputs:
            digest = file_hash(path)
            if digest is None:
                raise FileNotFoundError(f"The task {name} ended, but didn't write {path}.")
            hashes[path.relative_to(self.folder).as_posix()] = digest
        record.update(finished=True, outputs=hashes, **facts)
        self.save()

    def forget(self, names: Iterable[str]) -> None:
        """These tasks have to run again."""
        for name in names:
            self.records.pop(name, None)
        if self.path.exists():
            self.save()
