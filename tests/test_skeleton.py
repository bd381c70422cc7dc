"""Skeletons fitted to motions that are known, and their parts against slow or other twins."""

import itertools

import numpy as np
import pytest
from animate124.exporter.moving_mesh import MovingMesh
from animate124.exporter.skeleton import (
    best_on_simplex,
    chain,
    fit_skeleton,
    in_255ths,
    on_simplex,
    rigid_motion,
    skinning_error,
    spread_out,
)
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from moving_meshes import bending_tube, turned_about_z

BYTES = 1e-3  # of the scene's size: what weights in 255ths cost, at most


def skinned(skeleton, rest):
    """Linear blend skinning written out, one vertex at a time."""
    frames = skeleton.rotations.shape[1]
    posed = np.zeros((frames, len(rest), 3))
    for v, point in enumerate(rest):
        for bone, weight in zip(skeleton.joints[v], skeleton.weights[v], strict=True):
            for f in range(frames):
                moved = skeleton.rotations[bone, f] @ point + skeleton.translations[bone, f]
                posed[f, v] += weight * moved
    return posed


def test_three_bones_are_found_again():
    """Their weights, their motion, and the joints they turn about; in a chain."""
    mesh, weights, rotations, _ = bending_tube()
    skeleton = fit_skeleton(mesh, bones=3)
    rms, largest = skinning_error(skeleton, mesh)
    assert rms < BYTES / 3 and largest < BYTES
    assert skeleton.parents.tolist().count(-1) == 1
    found = np.zeros_like(weights)
    np.put_along_axis(found, skeleton.joints, skeleton.weights, 1)
    truth = [int(np.argmax(column @ found)) for column in weights.T]  # which is which
    assert sorted(truth) == [0, 1, 2]
    np.testing.assert_allclose(found[:, truth], weights, atol=0.02)
    np.testing.assert_allclose(skeleton.rotations[truth], rotations, atol=0.01)
    # left and right hang on the middle, or it hangs on one of them
    links = {frozenset((i, int(p))) for i, p in enumerate(skeleton.parents) if p >= 0}
    left, middle, right = truth
    assert links == {frozenset((left, middle)), frozenset((middle, right))}
    joints = sorted(skeleton.pivots[i, 0] for i, p in enumerate(skeleton.parents) if p >= 0)
    np.testing.assert_allclose(joints, [-1 / 3, 1 / 3], atol=0.01)


def test_the_pose_is_linear_blend_skinning():
    mesh = bending_tube(around=6, along=9)[0]
    skeleton = fit_skeleton(mesh, bones=4)
    rest = mesh.places[0].astype(float)
    truth = skinned(skeleton, rest)
    np.testing.assert_allclose(skeleton.pose(rest), truth, atol=1e-12)
    apart = np.linalg.norm(truth - mesh.places, axis=-1)
    box = np.ptp(mesh.places.reshape(-1, 3), axis=0)
    rms = np.sqrt((apart**2).mean()) / np.linalg.norm(box)
    largest = apart.max() / np.linalg.norm(box)
    np.testing.assert_allclose(skinning_error(skeleton, mesh), (rms, largest))


def curling(frames=6):
    """The tube rolled up smoothly: no skeleton does it exactly, the more bones the better."""
    mesh = bending_tube(frames)[0]
    rest = mesh.places[0]
    bend = 1.5 * mesh.taus[:, None] * rest[:, 0]
    radius = 1 / np.maximum(1.5 * mesh.taus, 1e-6)[:, None]
    places = np.stack(
        [
            (radius - rest[:, 1]) * np.sin(bend),
            radius - (radius - rest[:, 1]) * np.cos(bend),
            np.broadcast_to(rest[:, 2], bend.shape),
        ],
        -1,
    )
    places[0] = rest
    return MovingMesh(mesh.taus, places.astype("f4"), mesh.normals, mesh.faces, mesh.colours)


def test_more_bones_come_closer():
    mesh = curling()
    errors = [skinning_error(fit_skeleton(mesh, bones), mesh)[0] for bones in (1, 2, 4, 8)]
    assert errors[0] > 0.05 and errors[-1] < 0.003
    assert all(more < 0.7 * less for less, more in itertools.pairwise(errors))


def test_weights_are_what_files_hold():
    mesh = curling()
    skeleton = fit_skeleton(mesh, bones=12)
    assert skeleton.joints.shape[1] == 4 and (skeleton.weights >= 0).all()
    bytes_ = 255 * skeleton.weights
    np.testing.assert_allclose(bytes_, np.rint(bytes_), atol=1e-9)
    np.testing.assert_array_equal(np.rint(bytes_).sum(1), 255)
    assert all(p < i for i, p in enumerate(skeleton.parents))  # a parent first
    # the seam of the texture: the same place, the same weights, or a crack opens
    seam = mesh.places[0].reshape(33, 25, 3)
    np.testing.assert_array_equal(seam[:, 0], seam[:, -1])
    for held in (skeleton.joints, skeleton.weights):
        np.testing.assert_array_equal(
            held.reshape(33, 25, -1)[:, 0], held.reshape(33, 25, -1)[:, -1]
        )


def test_parts_that_share_nothing_hang_on_one_root():
    tube = bending_tube()[0]
    apart = tube.places + np.array([0, 0, 3], "f4")
    both = MovingMesh(
        tube.taus,
        np.concatenate([tube.places, apart[::-1]], 1),  # the other one backwards in time
        np.concatenate([tube.normals, tube.normals[::-1]], 1),
        np.concatenate([tube.faces, tube.faces + len(tube.colours)]),
        np.concatenate([tube.colours, tube.colours]),
    )
    skeleton = fit_skeleton(both, bones=6)
    assert skeleton.parents.tolist().count(-1) == 1 and skeleton.parents[0] == -1
    assert skinning_error(skeleton, both)[0] < 0.01
    high = skeleton.pivots[:, 2] > 1.5
    assert 0 < high.sum() < len(high)


def test_what_stands_still_has_one_bone():
    still = bending_tube()[0]
    still.places[:] = still.places[0]
    skeleton = fit_skeleton(still, bones=8)
    assert len(skeleton.parents) == 1
    assert skinning_error(skeleton, still)[1] < 1e-6
    one = bending_tube(frames=1)[0]
    assert len(fit_skeleton(one, bones=8).parents) == 1


def test_no_bones_are_refused():
    with pytest.raises(ValueError, match=r"A skeleton of 0 bones.*1 or more"):
        fit_skeleton(bending_tube()[0], bones=0)


def test_rigid_motion_is_the_best_rotation():
    rng = np.random.default_rng(0)
    rest, goals = rng.normal(size=(20, 3)), rng.normal(size=(4, 20, 3))
    rotations, translations = rigid_motion(rest, goals, np.ones(20))
    for rotation, translation, goal in zip(rotations, translations, goals, strict=True):
        truth, _ = Rotation.align_vectors(goal - goal.mean(0), rest - rest.mean(0))
        np.testing.assert_allclose(rotation, truth.as_matrix(), atol=1e-9)
        np.testing.assert_allclose(translation, goal.mean(0) - rotation @ rest.mean(0), atol=1e-12)
    # weighted, where the truth is known: goals are w (R x + t)
    turn = turned_about_z(np.array([0.3, -1.2]))
    weights = rng.random(20)
    goals = weights[:, None] * (rest @ turn.transpose(0, 2, 1) + [1.0, 2.0, 3.0])
    rotations, translations = rigid_motion(rest, goals, weights)
    np.testing.assert_allclose(rotations, turn, atol=1e-9)
    np.testing.assert_allclose(translations, [[1, 2, 3]] * 2, atol=1e-9)


def test_the_best_weights_are_those_of_a_general_solver():
    rng = np.random.default_rng(1)
    roots = rng.normal(size=(12, 4, 5))
    forms = roots @ roots.transpose(0, 2, 1)
    for form, found in zip(forms, best_on_simplex(forms), strict=True):
        truth = minimize(
            lambda w, form=form: w @ form @ w,
            np.full(4, 0.25),
            jac=lambda w, form=form: 2 * form @ w,
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-12,
        )
        np.testing.assert_allclose(found, truth.x, atol=1e-5)
    assert (best_on_simplex(forms) == 0).any() and (best_on_simplex(forms) < 1).all()


def test_on_the_simplex_nothing_is_nearer():
    """The projection's optimality condition: values less a constant, cut at 0."""
    values = np.random.default_rng(2).normal(size=(50, 6))
    nearest = on_simplex(values)
    np.testing.assert_allclose(nearest.sum(1), 1)
    for value, near in zip(values, nearest, strict=True):
        shifts = (value - near)[near > 0]
        np.testing.assert_allclose(shifts, shifts[0])
        assert (value[near == 0] <= shifts[0] + 1e-12).all() and (near >= 0).all()


def test_255ths():
    weights = np.array([[0.5, 0.25, 0.25, 0.0], [1.0, 0, 0, 0], [0.3334, 0.3333, 0.3333, 0.0]])
    np.testing.assert_array_equal(
        np.rint(255 * in_255ths(weights)), [[127, 64, 64, 0], [255, 0, 0, 0], [85, 85, 85, 0]]
    )


def test_the_chain_shares_most():
    """Four bones in a row, of which the third carries most."""
    rest = np.stack([np.arange(8.0), np.zeros(8), np.zeros(8)], -1)
    weights = np.zeros((8, 4))
    weights[[0, 2, 5, 6], [0, 1, 2, 3]] = 1
    weights[4, 2] = 1
    weights[1, [0, 1]] = weights[3, [1, 2]] = weights[7, [2, 3]] = 0.5
    parents, pivots, order = chain(weights, rest)
    above = {
        int(bone): int(order[p]) if p >= 0 else None for bone, p in zip(order, parents, strict=True)
    }
    assert above == {2: None, 1: 2, 3: 2, 0: 1}
    at = dict(zip(order.tolist(), pivots[:, 0].tolist(), strict=True))
    assert (at[1], at[3], at[0]) == (3, 7, 1)  # where each meets its parent


def test_points_are_spread_evenly():
    points = np.random.default_rng(3).random((5000, 3))
    chosen = spread_out(points, 500)
    assert len(np.unique(chosen)) == 500
    eighths = (points[chosen] > 0.5) @ [1, 2, 4]
    np.testing.assert_allclose(np.bincount(eighths), 500 / 8, atol=8)
    np.testing.assert_array_equal(spread_out(points[:20], 500), np.arange(20))
