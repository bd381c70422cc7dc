"""Skinned GLB files: played here as the glTF specification says it, and held against the tracks."""

import dataclasses
import io

import numpy as np
import pygltflib
import pytest
from animate124.exporter.gltf import FACING_Z_UP_Y
from animate124.exporter.skeleton import fit_skeleton, skinning_error
from animate124.exporter.skinned_glb import quaternions, write_skinned_glb
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

from moving_meshes import bending_tube, turned_about_z
from node_packages import khronos_issues, run_node

FPS = 12.0


def values(gltf, index):
    """An accessor in floats."""
    accessor = gltf.accessors[index]
    view = gltf.bufferViews[accessor.bufferView]
    kind = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}[accessor.componentType]
    columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor.type]
    found = np.frombuffer(gltf.binary_blob(), kind, accessor.count * columns, view.byteOffset)
    most = {"u1": 255, "<u2": 65535}[kind] if accessor.normalized else 1
    return found.reshape(accessor.count, columns) / most


def node_matrix(node, rotation, translation):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(rotation).as_matrix()
    matrix[:3, 3] = translation
    assert node.scale is None and node.matrix is None
    return matrix


def played(gltf, seconds):
    """Where the vertices are, in glTF's frame: keys between which LINEAR goes, nodes on nodes,
    joint matrices, weights."""
    keyed = {}
    for channel in gltf.animations[0].channels:
        sampler = gltf.animations[0].samplers[channel.sampler]
        assert sampler.interpolation == "LINEAR"
        times, keys = values(gltf, sampler.input)[:, 0], values(gltf, sampler.output)
        if channel.target.path == "rotation":
            value = Slerp(times, Rotation.from_quat(keys))(seconds).as_quat()
        else:
            value = [np.interp(seconds, times, column) for column in keys.T]
        keyed[channel.target.node, channel.target.path] = value
    world = {}

    def walk(number, above):
        node = gltf.nodes[number]
        rotation = keyed.get((number, "rotation"), node.rotation or [0, 0, 0, 1])
        translation = keyed.get((number, "translation"), node.translation or [0, 0, 0])
        world[number] = above @ node_matrix(node, rotation, translation)
        for child in node.children or []:
            walk(child, world[number])

    for top in gltf.scenes[0].nodes:
        walk(top, np.eye(4))
    (skin,) = gltf.skins
    inverse = values(gltf, skin.inverseBindMatrices).reshape(-1, 4, 4).transpose(0, 2, 1)
    joint = np.stack([world[node] for node in skin.joints]) @ inverse
    (primitive,) = gltf.meshes[0].primitives
    rest = values(gltf, primitive.attributes.POSITION)
    rest = np.concatenate([rest, np.ones((len(rest), 1))], 1)
    bones = values(gltf, primitive.attributes.JOINTS_0).astype(int)
    weights = values(gltf, primitive.attributes.WEIGHTS_0)
    np.testing.assert_allclose(weights.sum(1), 1)
    return np.einsum("vj,vjab,vb->va", weights, joint[bones], rest)[:, :3]


@pytest.fixture(scope="module")
def skinned(tmp_path_factory):
    mesh = bending_tube()[0]
    skeleton = fit_skeleton(mesh, bones=4)
    path = tmp_path_factory.mktemp("skinned") / "tube.glb"
    write_skinned_glb(path, mesh, skeleton, FPS)
    return mesh, skeleton, path


def test_it_plays_the_tracks(skinned):
    mesh, skeleton, path = skinned
    gltf = pygltflib.GLTF2().load(str(path))
    turn = Rotation.from_quat(FACING_Z_UP_Y).as_matrix()
    size = np.linalg.norm(np.ptp(mesh.places.reshape(-1, 3), axis=0))
    posed = skeleton.pose(mesh.places[0])
    for frame in range(7):
        found = played(gltf, frame / FPS)
        np.testing.assert_allclose(found, posed[frame] @ turn.T, atol=1e-6)
        apart = np.linalg.norm(found - mesh.places[frame] @ turn.T, axis=-1).max()
        assert apart < skinning_error(skeleton, mesh)[1] * size + 1e-6
    # between two keys it is between two frames
    halfway = (mesh.places[3] + mesh.places[4]) / 2
    np.testing.assert_allclose(played(gltf, 3.5 / FPS), halfway @ turn.T, atol=0.01)
    assert values(gltf, gltf.animations[0].samplers[0].input)[-1] == np.float32(6 / FPS)


def test_at_rest_it_is_the_first_frame(skinned):
    """What a viewer without animations shows, and what one edits in bind pose."""
    mesh, _, path = skinned
    gltf = pygltflib.GLTF2().load(str(path))
    gltf.animations[0].channels = []
    turn = Rotation.from_quat(FACING_Z_UP_Y).as_matrix()
    np.testing.assert_allclose(played(gltf, 0), mesh.places[0] @ turn.T, atol=1e-6)
    assert [node.name for node in gltf.nodes[:3]] == ["scene", "scene_mesh", "bone_00"]
    assert gltf.skins[0].name == "scene_skeleton" and gltf.animations[0].name == "motion"


def test_it_is_textured(skinned):
    """By a JPEG, which is a small part of the PNG's size and looks the same."""
    mesh, _, path = skinned
    gltf = pygltflib.GLTF2().load(str(path))
    (primitive,) = gltf.meshes[0].primitives
    uv = values(gltf, primitive.attributes.TEXCOORD_0)
    np.testing.assert_allclose(uv, mesh.uv * [1, -1] + [0, 1], atol=1e-6)
    view = gltf.bufferViews[gltf.images[0].bufferView]
    kept = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    with Image.open(io.BytesIO(kept)) as picture:
        assert picture.format == "JPEG" and gltf.images[0].mimeType == "image/jpeg"
        off = np.asarray(picture).astype(float) - mesh.texture
    assert np.abs(off).max() < 12 and np.sqrt((off**2).mean()) < 2


@pytest.mark.parametrize("case", ["textured", "coloured, lit", "still"])
def test_khronos_validator_is_content(tmp_path, case):
    mesh = bending_tube(frames=1 if case == "still" else 5)[0]
    if case == "coloured, lit":
        mesh = dataclasses.replace(mesh, uv=None, texture=None)
    skeleton = fit_skeleton(mesh, bones=5)
    write_skinned_glb(tmp_path / "tube.glb", mesh, skeleton, FPS, lit=case == "coloured, lit")
    assert khronos_issues(tmp_path / "tube.glb") == []


def test_the_size_is_a_fraction(tmp_path):
    """60 bytes a vertex and its triangles, whatever the number of frames."""
    sizes = []
    for frames in (5, 25):
        mesh = dataclasses.replace(bending_tube(frames)[0], uv=None, texture=None)
        write_skinned_glb(tmp_path / "tube.glb", mesh, fit_skeleton(mesh, bones=4), FPS)
        sizes.append((tmp_path / "tube.glb").stat().st_size)
    assert sizes[0] < 60 * len(mesh.colours) + 8192
    keys = 20 * (4 * 4 * 7 + 4)  # of each frame: four bones, and its time
    assert sizes[1] - sizes[0] < keys + 512  # longer numbers in the JSON


def test_quaternions_go_the_short_way():
    angles = np.linspace(0, 4 * np.pi, 40)
    found = quaternions(turned_about_z(angles))
    assert ((found[1:] * found[:-1]).sum(-1) > 0.9).all()
    np.testing.assert_allclose(Rotation.from_quat(found).as_matrix(), turned_about_z(angles))


def test_more_bones_than_bytes_number_are_refused(skinned, tmp_path):
    mesh, skeleton, _ = skinned
    bones = {"parents": np.arange(-1, 299), "pivots": np.zeros((300, 3))}
    for name in ("rotations", "translations"):
        bones[name] = np.repeat(getattr(skeleton, name)[:1], 300, axis=0)
    many = dataclasses.replace(skeleton, **bones)
    with pytest.raises(ValueError, match=r"300 bones are more than .* 256 or less"):
        write_skinned_glb(tmp_path / "tube.glb", mesh, many, FPS)


THREE = """
const {pathToFileURL} = require('url'), path = require('path');
const load = file => import(pathToFileURL(file));
(async () => {
  const three = await load(path.join(path.dirname(require.resolve('three')), 'three.module.js'));
  const {GLTFLoader} = await load(require.resolve('three/examples/jsm/loaders/GLTFLoader.js'));
  const bytes = require('fs').readFileSync(process.argv[1]);
  const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const gltf = await new GLTFLoader().parseAsync(data, '');
  const mixer = new three.AnimationMixer(gltf.scene), clip = gltf.animations[0];
  mixer.clipAction(clip).play();
  const mesh = gltf.scene.getObjectByProperty('isSkinnedMesh', true);
  const places = process.argv.slice(2).map(time => {
    mixer.setTime(Number(time));
    gltf.scene.updateMatrixWorld(true);
    const points = [], at = mesh.geometry.attributes.position;
    for (let v = 0; v < at.count; v++) {
      const point = new three.Vector3().fromBufferAttribute(at, v);
      points.push(mesh.localToWorld(mesh.applyBoneTransform(v, point)).toArray());
    }
    return points;
  });
  console.log(JSON.stringify({duration: clip.duration, bones: mesh.skeleton.bones.length, places}));
})();
"""


def test_three_js_plays_it(tmp_path):
    mesh = dataclasses.replace(bending_tube(around=8)[0], uv=None, texture=None)
    skeleton = fit_skeleton(mesh, bones=4)
    path = tmp_path / "tube.glb"
    write_skinned_glb(path, mesh, skeleton, FPS)
    moments = [0, 1 / FPS, 2.5 / FPS, 5.9999 / FPS]  # three.js begins again at the very end
    said = run_node(THREE, str(path), *map(str, moments), packages=("three",))
    assert said["duration"] == pytest.approx(6 / FPS) and said["bones"] == len(skeleton.parents)
    gltf = pygltflib.GLTF2().load(str(path))
    for moment, places in zip(moments, said["places"], strict=True):
        np.testing.assert_allclose(places, played(gltf, moment), atol=1e-5)
