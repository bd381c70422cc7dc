"""The moving GLB in programs of others: Khronos's validator, three.js under Node, trimesh."""

import numpy as np
import pytest
import trimesh
from animate124.exporter.morph_glb import write_moving_glb

from moving_meshes import bending_tube
from node_packages import khronos_issues, run_node

FPS = 12.0
# The file as three.js plays it: where its first vertices are in the scene at asked times.
PLAY = """
const fs = require('fs');
const [file, asked] = process.argv.slice(1);
globalThis.self = globalThis;
globalThis.ProgressEvent ??= class {};
(async () => {
  const { dirname, join } = require('path');
  const { pathToFileURL } = require('url');
  const build = dirname(require.resolve('three'));
  const THREE = await import(pathToFileURL(join(build, 'three.module.js')));
  const loaders = join(build, '../examples/jsm/loaders/GLTFLoader.js');
  const { GLTFLoader } = await import(pathToFileURL(loaders));
  const bytes = fs.readFileSync(file);
  const loader = new GLTFLoader();
  loader.register(() => ({ name: 'no pictures', loadTexture: async () => new THREE.Texture() }));
  const gltf = await loader.parseAsync(bytes.buffer.slice(bytes.byteOffset,
    bytes.byteOffset + bytes.byteLength), '');
  let mesh;
  gltf.scene.traverse(o => { if (o.isMesh) mesh = o; });
  const mixer = new THREE.AnimationMixer(gltf.scene);
  for (const clip of gltf.animations) mixer.clipAction(clip).play();
  const shown = JSON.parse(asked).map(seconds => {
    mixer.setTime(seconds);
    gltf.scene.updateMatrixWorld(true);
    const vertices = [];
    for (let i = 0; i < mesh.geometry.attributes.position.count; i += 50) {
      const v = new THREE.Vector3();
      mesh.getVertexPosition(i, v);
      vertices.push(v.applyMatrix4(mesh.matrixWorld).toArray());
    }
    return { weights: [...(mesh.morphTargetInfluences ?? [])], vertices };
  });
  console.log(JSON.stringify({
    shown, names: mesh.morphTargetDictionary ?? {}, length: gltf.animations[0]?.duration ?? 0,
    unlit: mesh.material.isMeshBasicMaterial === true, map: mesh.material.map !== null,
    colours: mesh.geometry.attributes.color !== undefined,
    turns: (mesh.geometry.morphAttributes.normal ?? []).length,
  }));
})();
"""


def played(path, *seconds):
    return run_node(PLAY, str(path), str(list(seconds)), packages=("three",))


def in_gltf(places):
    """The scene's z up as glTF's y up: what the root node does."""
    return places[..., [1, 2, 0]]


@pytest.mark.parametrize("texture", [True, False])
def test_three_js_plays_the_motion(tmp_path, texture):
    mesh, *_ = bending_tube(texture=texture)
    write_moving_glb(tmp_path / "tube.glb", mesh, FPS)
    last = (len(mesh.places) - 1) / FPS
    moments = [0.0, 1 / FPS, 2.5 / FPS, 3.25 / FPS, last - 1e-6]
    found = played(tmp_path / "tube.glb", *moments)
    assert found["length"] == pytest.approx(last)
    assert list(found["names"]) == [f"frame_{i:04d}" for i in range(1, len(mesh.places))]
    assert found["unlit"] and found["map"] is texture and found["colours"] is not texture
    assert found["turns"] == len(mesh.places) - 1
    for seconds, shown in zip(moments, found["shown"], strict=True):
        at = seconds * FPS
        weights = (1 - np.abs(at - np.arange(len(mesh.places)))).clip(0)[1:]
        np.testing.assert_allclose(shown["weights"], weights, atol=1e-4)
        before = min(int(at), len(mesh.places) - 2)
        part = at - before
        place = (1 - part) * mesh.places[before] + part * mesh.places[before + 1]
        np.testing.assert_allclose(shown["vertices"], in_gltf(place)[::50], atol=1e-4)


def test_in_a_loop_three_js_begins_again(tmp_path):
    """After the last frame comes the first, whose place a loop's last frame has."""
    mesh, *_ = bending_tube()
    mesh.places[-1], mesh.normals[-1] = mesh.places[0], mesh.normals[0]
    write_moving_glb(tmp_path / "tube.glb", mesh, FPS)
    last = (len(mesh.places) - 1) / FPS
    end, start = played(tmp_path / "tube.glb", last - 1e-6, last + 1e-6)["shown"]
    np.testing.assert_allclose(end["vertices"], start["vertices"], atol=1e-4)


@pytest.mark.parametrize("texture", [True, False])
@pytest.mark.parametrize("lit", [True, False])
def test_khronos_has_nothing_to_say(tmp_path, texture, lit):
    mesh, *_ = bending_tube(texture=texture)
    mesh.places[3] = mesh.places[0]  # a target that moves nothing
    mesh.places[4, 50:] = mesh.places[0, 50:]  # one that moves little: sparse
    write_moving_glb(tmp_path / "tube.glb", mesh, FPS, lit=lit)
    assert khronos_issues(tmp_path / "tube.glb") == []


def test_trimesh_reads_the_first_frame_and_its_texture(tmp_path):
    mesh, *_ = bending_tube()
    write_moving_glb(tmp_path / "tube.glb", mesh, FPS)
    scene = trimesh.load(tmp_path / "tube.glb", process=False)
    (name,) = scene.graph.nodes_geometry
    turn, geometry = scene.graph.get(name)
    found = scene.geometry[geometry]
    np.testing.assert_allclose(found.vertices @ turn[:3, :3].T, in_gltf(mesh.places[0]), atol=1e-6)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    np.testing.assert_allclose(found.visual.uv, mesh.uv, atol=1e-6)
    picture = np.asarray(found.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_array_equal(picture, mesh.texture)
