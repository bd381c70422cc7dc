"""Files that are whole or not there, and what killed writes leave."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from animate124.files import pictures, videos
from animate124.files.whole import PART, check_room, clear_parts, running, whole_file
from threestudio.utils.checkpoints import AtomicCheckpointIO


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with whole_file(path) as part:
        assert part.parent == path.parent and part.suffix == ".txt" and not path.exists()
        assert PART.fullmatch(part.name)[1] == str(os.getpid())
        part.write_text("one")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_it_may_be_read_by_whom_other_files_may(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_names_of_parts_cannot_be_predicted(tmp_path):
    """Nor is what lies in the way followed: a link to a person's file."""
    names = set()
    for _ in range(8):
        with whole_file(tmp_path / "a") as part:
            names.add(part.name)
    assert len(names) == 8


def test_parts_of_ended_processes_are_cleared_and_nothing_else(tmp_path):
    dead, lives = gone(), os.getppid()
    folder = tmp_path / "stage1" / "ckpts"
    folder.mkdir(parents=True)
    left = [f".last.ckpt.{dead}-0123abcd.part", f".a.{dead}-0123abcd.part.png"]
    stay = [
        f".a.{lives}-0123abcd.part.png",
        f"a.{dead}-0123abcd.part",
        f".a.{dead}.part",
        "last.ckpt",
    ]
    for name in [*left, *stay]:
        (folder / name).touch()
    assert sorted(path.name for path in clear_parts(tmp_path)) == sorted(left)
    assert sorted(path.name for path in folder.iterdir()) == sorted(stay)
    assert running(lives) and not running(dead)
    for name in left:
        (folder / name).touch()
    AtomicCheckpointIO().save_checkpoint({}, folder / "last.ckpt")
    assert sorted(path.name for path in folder.iterdir()) == sorted(stay)


def saved(folder):
    with whole_file(folder / "a.bin") as part, part.open("wb") as file:
        torch.save({"rows": torch.zeros(1 << 16)}, file)


WRITERS = {
    "last.ckpt": lambda folder: AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {"a": torch.zeros(1 << 16)}}, folder / "last.ckpt"
    ),
    "a.bin": saved,
    "a.png": lambda folder: pictures.save_png(
        folder / "a.png", np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    ),
    "a.mp4": lambda folder: videos.write_video(
        folder / "a.mp4", np.random.default_rng(0).integers(0, 255, (8, 256, 256, 3), np.uint8)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_with_the_file(name, tmp_path):
    """Files of at most 50 kB stand for a full disk."""
    (tmp_path / name).write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=f"{name}|{Path(name).stem}.*part") as caught:
            WRITERS[name](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "large" in str(caught.value) or "-25" in str(caught.value)
    assert (tmp_path / name).read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named_with_what_to_try(tmp_path):
    """Also where the copier's error names the file that is read, as shutil's does."""
    wanted = tmp_path / "a.bin"
    for names in [(), ("source",)]:
        with pytest.raises(OSError, match="No space left") as caught, whole_file(wanted) as part:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)
            error.filename2 = str(part) if names else None
            raise error
        said = str(caught.value)
        assert said.endswith(f"'{wanted}'") and " MB are free; make room there" in said
    assert not list(tmp_path.iterdir())


def test_room_is_asked_for_before_a_file_is_written(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "a", free // 2)
    with pytest.raises(OSError, match=r"MB may be needed and .* TMPDIR says which.*/a'") as caught:
        check_room(tmp_path / "a", 2 * free + 10**6)
    assert caught.value.errno == errno.ENOSPC
