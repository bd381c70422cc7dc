"""Kills a scene's run at random moments, runs it again, and looks at what becomes of it.

    python tests/faults/kills.py --kills 16 --out /tmp/kills --json figures.json

A chain is one scene, killed a few times on its way: animate.py or the step's process, by SIGKILL,
SIGTERM, Ctrl-C once or twice, or by closing the pipe that it prints to. After each kill the command
is given again, half of the time at once. In the end the chain is to be what a run is that nobody
disturbed: the same tensors in the last checkpoint, the same token, no unfinished files, nothing
still running; never two trainers at a time, and what was done stays done. Not collected by pytest:
a chain takes minutes. Linux only (it reads /proc).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("launch.py", "textual_inversion.py", "image_preprocess.py")
SCRIPTS += ("pipeline/result.py", "pipeline/assets.py")
KINDS = {  # who, and which signals
    "run SIGKILL": ("run", [signal.SIGKILL]),
    "run SIGTERM": ("run", [signal.SIGTERM]),
    "run Ctrl-C": ("run", [signal.SIGINT]),
    "run Ctrl-C twice": ("run", [signal.SIGINT, signal.SIGINT]),
    "run, closed pipe": ("pipe", []),
    "step SIGKILL": ("step", [signal.SIGKILL]),
    "step SIGTERM": ("step", [signal.SIGTERM]),
    "step Ctrl-C": ("step", [signal.SIGINT]),
}
STAGES = ("stage1", "stage2", "stage3")
SMALL = [
    "preprocess.size=64",
    "token.max_train_steps=6",
    "token.checkpointing_steps=2",
    "token.num_validation_images=0",
    *(f"{stage}.trainer.max_steps=8" for stage in STAGES),
    *(f"{stage}.checkpoint.every_n_train_steps=2" for stage in STAGES),
    *(f"{stage}.trainer.val_check_interval=8" for stage in STAGES),
    *(f"{stage}.data.single_view.num_frames_factor=1" for stage in STAGES[1:]),
    "stage1.data.single_view.n_test_views=2",
    "result.size=32",
    "result.frames=2",
    "assets.resolution=24",
    "assets.texture=none",
]


def command(out: Path) -> list[str]:
    words = [str(ROOT / "load" / "toy-panda" / "image.png"), "--prompt", "a panda is dancing"]
    words += ["--preset", "toy", "--out", str(out), *SMALL]
    return [sys.executable, str(ROOT / "animate.py"), *words]


def processes(out: Path) -> Iterator[tuple[int, int, str]]:
    """Number, parent's number and command line of what works in `out`, this script aside."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if f"{out}" in line and state != "Z" and int(folder.name) != os.getpid():
            yield int(folder.name), int(parent), line


def steps_of(out: Path) -> list[int]:
    """Processes of a scene's steps, their own children aside: one that a step has just forked has
    its command line until it runs another."""
    found = {
        pid: parent for pid, parent, line in processes(out) if line.split()[1].endswith(SCRIPTS)
    }
    return [pid for pid, parent in found.items() if parent not in found]


class Trainers(threading.Thread):
    """Counts the steps' processes of a scene, ten times a second."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.most, self.over = out, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.most = max(self.most, len(steps_of(self.out)))


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, bytes]]:
    """The bytes of every tensor in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        yield (
            name,
            value.contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else (str(value.item()).encode()),
        )
    elif isinstance(value, dict):
        for key, held in value.items():
            yield from tensors(held, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for n, held in enumerate(value):
            yield from tensors(held, f"{name}.{n}")


def digest(checkpoint: Path) -> str:
    held = torch.load(checkpoint, map_location="cpu", weights_only=True)
    found = hashlib.sha256()
    for name, content in tensors({k: held[k] for k in ("state_dict", "optimizer_states")}):
        found.update(name.encode() + content)
    return found.hexdigest()


def outcome(scene: Path) -> dict[str, str]:
    """What a finished scene is compared by."""
    token = torch.load(scene / "token" / "learned_embeds.bin", weights_only=True)
    found = hashlib.sha256()
    for _, content in tensors(token):
        found.update(content)
    stages = {stage: digest(scene / stage / "ckpts" / "last.ckpt") for stage in STAGES}
    return {"token": found.hexdigest(), **stages}


def progress(scene: Path) -> dict[str, int]:
    """Training steps in the checkpoints of what is half done; 10**6 for a step that is done."""
    done = {}
    if (scene / "manifest.json").is_file():
        records = json.loads((scene / "manifest.json").read_text())["steps"]
        done = {name: 10**6 for name, record in records.items() if record["finished"]}
    for stage in STAGES:
        path = scene / stage / "ckpts" / "last.ckpt"
        if stage not in done and path.is_file():
            held = torch.load(path, map_location="cpu", weights_only=True)
            done[stage] = held["global_step"]
    for path in (scene / "token").glob("checkpoint-*/state.pt"):
        done["token"] = max(done.get("token", 0), int(path.parent.name.rpartition("-")[2]))
    return done


def leftovers(scene: Path) -> list[str]:
    unfinished = [p for p in scene.rglob(".*") if ".part" in p.name or p.name.endswith(".tmp")]
    return [p.relative_to(scene).as_posix() for p in unfinished]


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def read_all(run: subprocess.Popen) -> threading.Thread:
    """Reads what a run prints, so that it doesn't wait; until its pipe is closed from here."""
    said: list[bytes] = []

    def read() -> None:
        try:
            while block := os.read(run.stdout.fileno(), 1 << 16):
                said.append(block)
        except (OSError, ValueError):
            return

    thread = threading.Thread(target=read, daemon=True)
    thread.said = said
    thread.start()
    return thread


def kill(out: Path, run: subprocess.Popen, kind: str) -> str:
    """Returns which step was at work."""
    who, signals = KINDS[kind]
    steps = steps_of(out)
    at_work = "between steps"
    for pid, _, line in processes(out):
        if pid in steps:
            names = [name for name in STAGES if f"tag={name} " in line]
            at_work = names[0] if names else line.split()[1]
    if who == "pipe":
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, run.stdout.fileno())  # closes our end of the pipe, whoever reads it
        os.close(null)
    for n, number in enumerate(signals):
        targets = [run.pid] if who == "run" else steps
        for pid in targets:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        time.sleep(0.3 if n == 0 and len(signals) > 1 else 0)
    return at_work


def chain(out: Path, kinds: list[str], seconds: float, rng: random.Random) -> list[dict[str, Any]]:
    """One scene, killed once for each of `kinds`, then run to its end."""
    shutil.rmtree(out, ignore_errors=True)
    scene = out / SCENE
    watch = Trainers(out)
    watch.start()
    rows = []
    before: dict[str, int] = {}
    for kind in kinds:
        run = start(out)
        read_all(run)
        delay = rng.uniform(0.05, 0.5) * seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(delay)
        ended = run.poll() is not None
        at_work = "ended before" if ended else kill(out, run, kind)
        killed = time.monotonic()
        code = run.wait(120)
        at_once = rng.random() < 0.5
        row = {"kind": kind, "after": round(delay, 1), "at": at_work, "code": code}
        if at_once:
            row["gone_after"] = None  # the next run waits for what is left
        else:
            while list(processes(out)) and time.monotonic() - killed < 90:
                time.sleep(0.1)
            row["gone_after"] = round(time.monotonic() - killed, 1)
            row["left_running"] = len(list(processes(out)))
            after = progress(scene)
            row["lost"] = [name for name, steps in before.items() if after.get(name, 0) < steps]
            before = after
        rows.append(row)
    run = start(out)
    reader = read_all(run)
    code = run.wait(600)
    reader.join(5)
    time.sleep(0.5)
    watch.over.set()
    end = {
        "code": code,
        "most_trainers": watch.most,
        "left_running": len(list(processes(out))),
        "leftovers": leftovers(scene),
        "earlier": sorted(p.name for p in (scene / "earlier").glob("*")),
    }
    if code == 0:
        end["outcome"] = outcome(scene)
    else:
        end["said"] = b"".join(reader.said)[-2000:].decode(errors="replace")
    return [*rows, end]


SCENE = "toy-panda-a_panda_is_dancing"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=16)
    p.add_argument("--chain", type=int, default=4, help="kills of one scene")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True, help="a folder for the scenes")
    p.add_argument("--json", type=Path, help="the figures go there too")
    args = p.parse_args()
    rng = random.Random(args.seed)
    out = args.out.resolve() / "scene"  # the same for all: checkpoints hold paths

    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    whole = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True)
    if whole.returncode != 0:
        print(whole.stdout[-3000:], whole.stderr[-3000:], file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    right = outcome(out / SCENE)
    print(f"A run that nobody disturbs takes {seconds:.0f} s.", flush=True)

    kinds = [list(KINDS)[n % len(KINDS)] for n in range(args.kills)]
    rng.shuffle(kinds)
    print("| kill | after s | at | exit code | all gone after s | lost |")
    print("|---|---|---|---|---|---|", flush=True)
    rows: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for n in range(0, len(kinds), args.chain):
        *kills, end = chain(out, kinds[n : n + args.chain], seconds, rng)
        rows += kills
        ends.append(end)
        for row in kills:
            gone = row["gone_after"] if row["gone_after"] is not None else "run again at once"
            lost = ", ".join(row.get("lost", [])) or "nothing"
            cells = [row["kind"], row["after"], row["at"], row["code"], gone, lost]
            print("| " + " | ".join(map(str, cells)) + " |")
        end["same"] = end.get("outcome") == right
        print(
            f"chain: exit code {end['code']}, same bits {end['same']}, at most "
            f"{end['most_trainers']} trainer at a time, left running {end['left_running']}, "
            f"unfinished files {end['leftovers']}, earlier {end['earlier']}",
            flush=True,
        )
        if "said" in end:
            print(end["said"])
    figures = {
        "kills": sum(row["at"] != "ended before" for row in rows),
        "chains": len(ends),
        "same_bits": sum(end["same"] for end in ends),
        "most_trainers": max(end["most_trainers"] for end in ends),
        "left_running": sum(row.get("left_running", 0) for row in rows)
        + sum(end["left_running"] for end in ends),
        "leftovers": sum(len(end["leftovers"]) for end in ends),
        "lost": sum(len(row.get("lost", [])) for row in rows),
        "slowest_gone": max((row["gone_after"] or 0 for row in rows), default=0),
        "seconds_undisturbed": round(seconds, 1),
    }
    print(json.dumps(figures))
    if args.json is not None:
        args.json.write_text(json.dumps({**figures, "rows": rows, "ends": ends}, indent=1) + "\n")
    bad = figures["left_running"] + figures["leftovers"] + figures["lost"]
    return 0 if not bad and figures["same_bits"] == len(ends) else 1


if __name__ == "__main__":
    sys.exit(main())
