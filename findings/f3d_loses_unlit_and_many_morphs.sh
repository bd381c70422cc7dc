#!/usr/bin/env bash
# F3D 4.0.0 (PyPI) and animated GLBs. (a) A mesh with morph targets or a skin, whose material has
# KHR_materials_unlit, is not drawn at all: its vertex shader sets vertexVCVSOutput from MCVCMatrix, neither is
# declared without lights, and so it doesn't compile. Only the DEBUG log says so. (b) Of a mesh's morph targets
# the first four play; those from the fifth on never move anything, without a word.
# Expected: the same pixels move, lit or not. glTF sets no limit to the number of targets; a viewer should do
# at least eight that have positions alone, says its specification.
# Seen, a triangle that goes from left to right: lit, it goes by the skin and by the targets 1 to 4; moved by
# the target 5 or 8 it stands still. Unlit, only the file without targets and skin is drawn.
# Around it: (a) options["model.unlit"] = False draws it, with lights; (b) four targets a mesh at most.
# The files are valid by gltf-validator. F3D renders off screen: it needs EGL or OSMesa, no display and no GPU.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q f3d==4.0.0 numpy==2.3.5
npm init -y >/dev/null; npm install --silent gltf-validator@2.0.0-dev.3.10 >/dev/null
cat > make.py <<'PY'
# A red triangle that goes 4 to the right in one second: by a morph target, or by the one joint of its skin
import json
import struct

WIDTH, CODE = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}, {"f": 5126, "B": 5121}


def write(path, unlit, targets=0, moved=0, skin=False):
    binary, views, accessors = bytearray(), [], []

    def add(rows, kind, code="f", vertices=False, bounds=False):
        data = struct.pack(f"<{len(rows) * WIDTH[kind]}{code}", *(x for row in rows for x in row))
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)})
        accessors.append({"bufferView": len(views) - 1, "componentType": CODE[code], "type": kind, "count": len(rows)})
        if vertices:
            views[-1]["target"] = 34962
        if bounds:
            accessors[-1].update(min=list(map(min, zip(*rows))), max=list(map(max, zip(*rows))))
        binary.extend(data + bytes(-len(data) % 4))
        return len(accessors) - 1

    corners = [(-3.0, -1.0, 0.0), (-1.0, -1.0, 0.0), (-2.0, 1.0, 0.0)]
    attributes = {"POSITION": add(corners, "VEC3", vertices=True, bounds=True),
                  "NORMAL": add([(0.0, 0.0, 1.0)] * 3, "VEC3", vertices=True)}
    mesh, node = {"primitives": [{"attributes": attributes, "material": 0}]}, {"mesh": 0}
    material = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1], "metallicFactor": 0}, "doubleSided": True}
    gltf = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [node], "meshes": [mesh],
            "materials": [material]}
    if unlit:
        material["extensions"], gltf["extensionsUsed"] = {"KHR_materials_unlit": {}}, ["KHR_materials_unlit"]
    if targets:
        shifts = [add([(4.0, 0.0, 0.0)] * 3, "VEC3", vertices=True, bounds=True) for _ in range(targets)]
        mesh["primitives"][0]["targets"], mesh["weights"] = [{"POSITION": s} for s in shifts], [0] * targets
        values = add([(0.0,)] * targets + [(float(k == moved),) for k in range(targets)], "SCALAR")
        target = {"node": 0, "path": "weights"}
    if skin:
        attributes["JOINTS_0"] = add([(0, 0, 0, 0)] * 3, "VEC4", "B", vertices=True)
        attributes["WEIGHTS_0"] = add([(1.0, 0.0, 0.0, 0.0)] * 3, "VEC4", vertices=True)
        identity = add([[float(i % 5 == 0) for i in range(16)]], "MAT4")
        gltf["skins"], node["skin"] = [{"joints": [1], "inverseBindMatrices": identity}], 0
        gltf["nodes"].append({"name": "joint"})
        gltf["scenes"][0]["nodes"].append(1)
        values = add([(0.0, 0.0, 0.0), (4.0, 0.0, 0.0)], "VEC3")
        target = {"node": 1, "path": "translation"}
    if targets or skin:
        sampler = {"input": add([(0.0,), (1.0,)], "SCALAR", bounds=True), "output": values}
        gltf["animations"] = [{"samplers": [sampler], "channels": [{"sampler": 0, "target": target}]}]
    gltf.update(accessors=accessors, bufferViews=views, buffers=[{"byteLength": len(binary)}])
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    with open(path, "wb") as file:
        file.write(struct.pack("<5I", 0x46546C67, 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A) + text)
        file.write(struct.pack("<2I", len(binary), 0x004E4942) + binary)


for light in ("lit", "unlit"):
    write(f"still_{light}.glb", light == "unlit")
    write(f"skin_{light}.glb", light == "unlit", skin=True)
    for targets, moved in ((1, 0), (4, 3), (5, 0), (5, 3), (5, 4), (8, 3), (8, 7)):
        write(f"target_{moved + 1}_of_{targets}_{light}.glb", light == "unlit", targets, moved)
PY
cat > check.mjs <<'JS'
import fs from "fs";
import validator from "gltf-validator";
for (const path of process.argv.slice(2)) {
  const { issues } = await validator.validateBytes(new Uint8Array(fs.readFileSync(path)));
  if (issues.numErrors + issues.numWarnings) throw new Error(`${path}: ${JSON.stringify(issues.messages)}`);
}
console.log(`gltf-validator: ${process.argv.length - 2} files, no errors, no warnings`);
JS
cat > render.py <<'PY'
# Where the red pixels are at 0, 0.5 and 1 s, as columns of 96 (None: there are none)
from pathlib import Path

import f3d
import numpy as np

f3d.Log.set_verbose_level(f3d.Log.VerboseLevel.WARN)
f3d.Engine.autoload_plugins()


def columns(path, **options):
    engine = f3d.Engine.create(True)
    engine.window.size = 96, 96
    for name, value in {"render.grid.enable": False, "scene.animation.indices": [0], **options}.items():
        engine.options[name] = value
    engine.scene.add(str(path))
    camera = engine.window.camera
    camera.focal_point, camera.position, camera.view_up = (0, 0, 0), (0, 0, 12), (0, 1, 0)
    found = []
    for time in (0.0, 0.5, 1.0):
        if engine.scene.animation.count():
            engine.scene.animation.load_time(time)
        image = engine.window.render_to_image()
        pixels = np.frombuffer(image.content, np.uint8).reshape(image.height, image.width, -1).astype(int)
        red = np.nonzero(pixels[..., 0] > pixels[..., 2] + 60)[1]
        found.append(round(float(red.mean())) if len(red) > 100 else None)
    return found


for path in sorted(Path().glob("*_lit.glb")):
    name = path.stem.removesuffix("_lit")
    lit, unlit = columns(path), columns(f"{name}_unlit.glb")
    around = columns(f"{name}_unlit.glb", **{"model.unlit": False})
    print(f"{name:13}  lit {lit!s:13} unlit {unlit!s:19} unlit, but model.unlit off {around}")
    plays = name not in ("still", "target_5_of_5", "target_8_of_8")
    assert (lit[0] + 25 < lit[1] < lit[2] - 25) if plays else (lit[0] == lit[1] == lit[2])
    assert unlit == (lit if name == "still" else [None] * 3)
    assert around == lit
PY
venv/bin/python make.py
node check.mjs *.glb
venv/bin/python render.py
