"""Scenes' animation.glb, drawn by three.js, beside our own render at the same cameras and times.

python benchmarks/glb_in_three.py outputs/<scene> outputs/<another> --sheet sheet.png

Prints the PSNR of each scene, mean and worst picture, and the mean of the worst scene, which is
`glb.three_psnr`; the sheet has some of ours above three.js's. Needs Playwright and a Chromium,
which draws in software.
"""

import argparse
import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from animate124.data.cameras import Cameras
from animate124.files.figures import record
from animate124.files.pictures import save_png
from animate124.host.argument_types import positive_int
from animate124.pipeline.places import ROOT
from animate124.system.trained import Scene, load_scene
from PIL import Image
from playwright.sync_api import sync_playwright

STAGES = ("stage3", "stage2", "stage1")
SHARP = 4  # three.js draws so many pixels for one of ours, a side; their mean is compared
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# scene (x, y, z) is glTF's (y, z, x)
DRAW = """
async ({glb, views, size, fovy}) => {
  const bytes = Uint8Array.from(atob(glb), c => c.charCodeAt(0));
  const gltf = await new THREE.GLTFLoader().parseAsync(bytes.buffer, '');
  const scene = new THREE.Scene(); scene.add(gltf.scene);
  const renderer = new THREE.WebGLRenderer({preserveDrawingBuffer: true});
  renderer.setSize(size, size, false); renderer.setClearColor(0xffffff);
  const camera = new THREE.PerspectiveCamera(fovy, 1, 0.1, 100);
  const mixer = new THREE.AnimationMixer(gltf.scene);
  const length = gltf.animations[0]?.duration ?? 0;
  for (const clip of gltf.animations) mixer.clipAction(clip).play();
  return views.map(({eye: [x, y, z], tau}) => {
    mixer.setTime(Math.min(tau, 1 - 1e-6) * length);
    camera.position.set(y, z, x); camera.lookAt(0, 0, 0);
    renderer.render(scene, camera);
    return renderer.domElement.toDataURL().split(',')[1];
  });
}
"""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenes", type=Path, nargs="+", help="animate.py's folders")
    parser.add_argument("--size", type=positive_int, default=128, help="pixels of a side (128)")
    parser.add_argument(
        "--views", type=positive_int, default=8, help="cameras around the scene (8)"
    )
    parser.add_argument("--times", type=positive_int, default=4, help="moments from tau 0 to 1 (4)")
    parser.add_argument("--sheet", type=Path, help="PNG of some pictures, ours above three.js's")
    parser.add_argument("--figures", type=Path, help="figures.json to write into")
    return parser


def looks(scene: Scene, views: int, times: int) -> tuple[Cameras, torch.Tensor]:
    """Cameras around the scene as the reference camera stands, and the moment of each."""
    image = scene.data.image
    azimuth = image.default_azimuth_deg + 360 * torch.arange(views) / views
    tau = torch.zeros(1) if scene.static else torch.linspace(0, 1, times)
    elevation, distance = image.default_elevation_deg, image.default_camera_distance
    azimuth = azimuth.repeat(len(tau))
    cameras = Cameras.of(elevation, azimuth, distance, image.default_fovy_deg)
    return cameras, tau.repeat_interleave(views)


def ours(scene: Scene, cameras: Cameras, tau: torch.Tensor, size: int) -> np.ndarray:
    """[N size size 3] in [0, 1]."""
    found = []
    for i in range(len(tau)):
        one = cameras.map(lambda v, i=i: v[i : i + 1])
        found.append(scene.look(one, tau[i : i + 1], size, size)["comp_rgb"][0].cpu().numpy())
    return np.stack(found).clip(0, 1)


def theirs(page: Any, glb: Path, cameras: Cameras, tau: torch.Tensor, size: int) -> np.ndarray:
    """The same pictures, as three.js draws the file."""
    views = [
        {"eye": eye, "tau": t}
        for eye, t in zip(cameras.position.tolist(), tau.tolist(), strict=True)
    ]
    asked = {
        "glb": base64.b64encode(glb.read_bytes()).decode(),
        "views": views,
        "size": SHARP * size,
        "fovy": float(cameras.fovy_deg[0]),
    }
    drawn = [Image.open(io.BytesIO(base64.b64decode(png))) for png in page.evaluate(DRAW, asked)]
    fine = np.stack([np.asarray(picture.convert("RGB")) for picture in drawn]) / 255
    return fine.reshape(len(fine), size, SHARP, size, SHARP, 3).mean((2, 4))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """dB of each picture."""
    return -10 * np.log10(((a - b) ** 2).mean((1, 2, 3)))


def main() -> None:
    args = options().parse_args()
    means, rows = [], []
    with sync_playwright() as p:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        page = p.chromium.launch(executable_path=path, args=FLAGS).new_page()
        page.set_content("<!doctype html><title>three.js</title>")
        page.add_script_tag(content=(ROOT / "pipeline/three/three.min.js").read_text())
        for folder in args.scenes:
            trial = next(folder / name for name in STAGES if (folder / name / "ckpts").is_dir())
            scene = load_scene(trial / "configs/parsed.yaml", trial / "ckpts/last.ckpt")
            cameras, tau = looks(scene, args.views, args.times)
            pair = [
                ours(scene, cameras, tau, args.size),
                theirs(page, folder / "result/animation.glb", cameras, tau, args.size),
            ]
            db = psnr(*pair)
            means.append(float(db.mean()))
            said = {"scene": folder.name, "mean": round(means[-1], 2), "worst": round(db.min(), 2)}
            print(json.dumps(said), flush=True)
            rows += [np.concatenate(list(each[:: args.views // 2]), 1) for each in pair]
    print(f"glb.three_psnr: {min(means):.2f} dB, the worst of {len(means)}")
    if args.sheet:
        save_png(args.sheet, np.rint(255 * np.concatenate(rows)).astype(np.uint8))
    if args.figures:
        worst = {"glb.three_psnr": (round(min(means), 2), "dB")}
        record(worst, f"python benchmarks/glb_in_three.py, {len(means)} scenes", args.figures)


if __name__ == "__main__":
    main()
