"""A skeleton of few bones that moves a mesh as its tracks do: linear blend skinning, fitted.

x_v(tau) = sum_b w_vb (R_b(tau) x_v(0) + t_b(tau)), at most four weights a vertex. Smooth skinning
decomposition with rigid bones (Le and Deng, "Smooth Skinning Decomposition with Rigid Bones",
SIGGRAPH Asia 2012): rigid clusters first, then weights and transforms in turn, each the best for
the other. The bones are chained as the weights say (which bones share vertices), each around the
middle of what it shares with its parent, so that who turns an arm turns the hand; a chain of
rigid transforms says the same as free ones, it costs nothing in accuracy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from .moving_mesh import MovingMesh

MOST_INFLUENCES = 4  # of one vertex: what glTF's JOINTS_0 holds
FITTED_VERTICES = 1500  # the bones are found on so many, spread over the mesh
ROUNDS = 12  # of weights and transforms in turn
GROWING_ROUNDS = 3  # of clusters and transforms after each new bone
DESCENT_STEPS = 60  # of the weights over all bones, before the best four are solved for exactly


@dataclass
class Skeleton:
    """K bones, in order: a parent stands before its children."""

    parents: Integer[np.ndarray, " K"]  # -1: no parent
    pivots: Float[np.ndarray, "K 3"]  # where each bone turns, at the first frame time
    rotations: Float[np.ndarray, "K F 3 3"]  # of the mesh at the first frame time, in the scene
    translations: Float[np.ndarray, "K F 3"]
    joints: Integer[np.ndarray, "V J"]  # bones of each vertex, the strongest first; J <= 4
    weights: Float[np.ndarray, "V J"]  # 255ths >= 0, which bytes hold exactly; they sum to 1

    def pose(self, rest: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "F V 3"]:
        """Where skinning takes the vertices of the first frame time."""
        posed = np.zeros((self.rotations.shape[1], len(rest), 3))
        for joint, weight in zip(self.joints.T, self.weights.T, strict=True):
            for bone in np.unique(joint):
                of = joint == bone
                moved = _moved(rest[of], self.rotations[bone], self.translations[bone])
                posed[:, of] += weight[of, None] * moved
        return posed


def skinning_error(skeleton: Skeleton, mesh: MovingMesh) -> tuple[float, float]:
    """Root mean square and largest distance between the skinned vertices and their tracks, over all
    frames, in shares of the scene's size (the diagonal of the box of all frames)."""
    distance = np.linalg.norm(skeleton.pose(mesh.places[0]) - mesh.places, axis=-1)
    size = np.linalg.norm(np.ptp(mesh.places.reshape(-1, 3), axis=0))
    return float(np.sqrt(np.mean(distance**2)) / size), float(distance.max() / size)


def fit_skeleton(mesh: MovingMesh, bones: int = 16) -> Skeleton:
    """The skeleton of `bones` bones, fewer where the mesh has too few vertices or moves too little.

    Vertices that are together in all frames (both sides of a seam of the texture) get the same
    weights: no crack opens there. Nothing is drawn at random.

    Raises:
        ValueError: `bones` is less than 1.
    """
    if bones < 1:
        raise ValueError(f"A skeleton of {bones} bones moves nothing. Ask for 1 or more.")
    tracks = mesh.places.transpose(1, 0, 2).astype(np.float64)  # [V F 3]
    _, first, copy_of = np.unique(
        mesh.places.transpose(1, 0, 2).reshape(len(tracks), -1),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    tracks, copy_of = tracks[first], copy_of.reshape(-1)
    sample = tracks[spread_out(tracks[:, 0], FITTED_VERTICES)]
    rotations, translations = grow_bones(sample, bones)
    for _ in range(ROUNDS):
        weights = fit_weights(sample, rotations, translations)
        fit_transforms(sample, weights, rotations, translations)
    weights = fit_weights(tracks, rotations, translations)
    used = weights.max(0) > 0
    weights, rotations, translations = weights[:, used], rotations[used], translations[used]
    parents, pivots, order = chain(weights, tracks[:, 0])
    strongest = np.argsort(-weights[:, order], axis=1)[:, :MOST_INFLUENCES]
    chosen = np.take_along_axis(weights[:, order], strongest, 1)
    return Skeleton(
        parents,
        pivots,
        rotations[order],
        translations[order],
        strongest[copy_of],
        in_255ths(chosen)[copy_of],
    )


def in_255ths(weights: Float[np.ndarray, "V J"]) -> Float[np.ndarray, "V J"]:
    """The nearest multiples of 1/255 that still sum to 1: the largest remainders are rounded up."""
    whole = np.floor(255 * weights)
    behind = np.argsort(np.argsort(whole - 255 * weights, axis=1, kind="stable"), axis=1)
    return (whole + (behind < np.rint(255 - whole.sum(1, keepdims=True)))) / 255


def spread_out(points: Float[np.ndarray, "V 3"], count: int) -> Integer[np.ndarray, " n"]:
    """Indices of at most `count` points, evenly spread along a space-filling order (Morton's)."""
    if len(points) <= count:
        return np.arange(len(points))
    low, high = points.min(0), points.max(0)
    cells = (1023 * (points - low) / np.maximum((high - low).max(), 1e-12)).astype(np.int64)
    code = np.zeros(len(points), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")[np.linspace(0, len(points) - 1, count).astype(int)]


def _moved(
    rest: Float[np.ndarray, "V 3"],
    rotation: Float[np.ndarray, "F 3 3"],
    translation: Float[np.ndarray, "F 3"],
) -> Float[np.ndarray, "F V 3"]:
    return rest @ rotation.transpose(0, 2, 1) + translation[:, None]


def residuals(
    tracks: Float[np.ndarray, "V F 3"],
    rotations: Float[np.ndarray, "K F 3 3"],
    translations: Float[np.ndarray, "K F 3"],
) -> Float[np.ndarray, "V K D"]:
    """Where each bone alone takes each vertex, less where the vertex goes; D = 3 F."""
    vertices, frames, _ = tracks.shape
    apart = np.empty((vertices, len(rotations), frames, 3))
    for bone, (rotation, translation) in enumerate(zip(rotations, translations, strict=True)):
        moved = _moved(tracks[:, 0], rotation, translation)
        np.subtract(moved.swapaxes(0, 1), tracks, out=apart[:, bone])
    return apart.reshape(vertices, len(rotations), -1)


def rigid_motion(
    rest: Float[np.ndarray, "V 3"],
    goals: Float[np.ndarray, "F V 3"],
    weights: Float[np.ndarray, " V"],
) -> tuple[Float[np.ndarray, "F 3 3"], Float[np.ndarray, "F 3"]]:
    """Rotations and translations that minimise sum_v |w_v (R x_v + t) - g_v|^2 in each frame
    (the closed form of Le and Deng, section 4.2; with w = 1 it is Kabsch's)."""
    total = (weights**2).sum()
    centre = (weights**2) @ rest / total
    goal_centre = np.einsum("v,fvi->fi", weights, goals) / total
    left = weights[:, None] * (rest - centre)
    right = goals - weights[:, None] * goal_centre[:, None]
    u, _, vt = np.linalg.svd(np.einsum("vi,fvj->fij", left, right))
    turned = np.linalg.det(u) * np.linalg.det(vt) < 0
    u[turned, :, -1] *= -1  # a rotation, not a reflection
    rotation = (u @ vt).transpose(0, 2, 1)
    return rotation, goal_centre - rotation @ centre


def grow_bones(
    tracks: Float[np.ndarray, "V F 3"], bones: int
) -> tuple[Float[np.ndarray, "K F 3 3"], Float[np.ndarray, "K F 3"]]:
    """Rigid clusters, one more at a time: a new one starts with the neighbours that
    are worst off together (one vertex alone may be off for other reasons)."""
    from scipy.spatial import KDTree

    rest, goals = tracks[:, 0], tracks.transpose(1, 0, 2)
    ones = np.ones(len(rest))
    size = np.linalg.norm(np.ptp(tracks.reshape(-1, 3), axis=0))
    count = min(len(rest), max(3, len(rest) // (4 * bones)))
    around = KDTree(rest).query(rest, count)[1].reshape(len(rest), count)

    def errors() -> Float[np.ndarray, "K V"]:
        return np.stack([((_moved(rest, *motion) - goals) ** 2).sum((0, 2)) for motion in motions])

    motions = [rigid_motion(rest, goals, ones)]
    while len(motions) < bones:
        worse = errors().min(0)[around].mean(1)
        if np.sqrt(worse.max()) < 1e-6 * size:
            break
        seed = around[worse.argmax()]
        motions.append(rigid_motion(rest[seed], goals[:, seed], ones[seed]))
        for _ in range(GROWING_ROUNDS):
            nearest = errors().argmin(0)
            for bone in np.unique(nearest):
                of = nearest == bone
                if of.sum() >= 3:
                    motions[bone] = rigid_motion(rest[of], goals[:, of], ones[of])
    rotations, translations = (np.stack(part) for part in zip(*motions, strict=True))
    return rotations, translations


def fit_weights(
    tracks: Float[np.ndarray, "V F 3"],
    rotations: Float[np.ndarray, "K F 3 3"],
    translations: Float[np.ndarray, "K F 3"],
    chunk: int = 4096,
) -> Float[np.ndarray, "V K"]:
    """The best weights for bones that are given: >= 0, they sum to 1, four of them at most.

    Of weights that sum to 1 the error is a quadratic form, w^T Q w with Q = D D^T of the bones'
    residuals D. Over all bones it is lowered by projected gradient steps; the four largest are
    then solved for exactly."""
    parts = []
    for start in range(0, len(tracks), chunk):
        apart = residuals(tracks[start : start + chunk], rotations, translations)
        form = apart @ apart.transpose(0, 2, 1)
        soft = _descend(form)
        four = np.argsort(-soft, axis=1)[:, :MOST_INFLUENCES]
        small = form[np.arange(len(four))[:, None, None], four[:, :, None], four[:, None, :]]
        weights = np.zeros_like(soft)
        np.put_along_axis(weights, four, best_on_simplex(small), axis=1)
        parts.append(weights)
    return np.concatenate(parts)


def on_simplex(values: Float[np.ndarray, "V K"]) -> Float[np.ndarray, "V K"]:
    """The nearest points with entries >= 0 that sum to 1 (Held, Wolfe, Crowder 1974)."""
    falling = -np.sort(-values, axis=1)
    above = (np.cumsum(falling, axis=1) - 1) / np.arange(1, values.shape[1] + 1)
    count = (falling > above).sum(1)
    return np.maximum(values - above[np.arange(len(values)), count - 1, None], 0)


def _descend(form: Float[np.ndarray, "V K K"]) -> Float[np.ndarray, "V K"]:
    """Accelerated projected gradient (FISTA) on w^T Q w over the simplex."""
    step = 1 / np.maximum(np.abs(form).sum(-1).max(-1), 1e-30)[:, None]  # >= the largest eigenvalue
    weights = np.eye(form.shape[1])[np.diagonal(form, axis1=1, axis2=2).argmin(1)]
    ahead, pace = weights, 1.0
    for _ in range(DESCENT_STEPS):
        new = on_simplex(ahead - step * (form @ ahead[..., None])[..., 0])
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = new + (pace - 1) / faster * (new - weights)
        weights, pace = new, faster
    return weights


def best_on_simplex(form: Float[np.ndarray, "V J J"]) -> Float[np.ndarray, "V J"]:
    """The minimum of w^T Q w over weights >= 0 that sum to 1, exactly: the best of all its faces.

    On the face of a set of bones w is Q^-1 1, scaled; J is small, so every set is tried."""
    n = form.shape[1]
    scale = np.maximum(np.trace(form, axis1=1, axis2=2), 1e-30)
    form = form / scale[:, None, None] + 1e-9 * np.eye(n)  # two bones may move alike
    best = np.zeros(form.shape[:2])
    lowest = np.full(len(form), np.inf)
    for chosen in range(1, 2**n):
        face = [bone for bone in range(n) if chosen >> bone & 1]
        part = form[:, face][:, :, face]
        direction = np.linalg.solve(part, np.ones((len(form), len(face), 1)))[..., 0]
        weights = direction / direction.sum(1, keepdims=True)
        value = np.einsum("vk,vkl,vl->v", weights, part, weights)
        better = (weights >= 0).all(1) & (value < lowest)
        lowest[better] = value[better]
        row = np.zeros((int(better.sum()), n))
        row[:, face] = weights[better]
        best[better] = row
    return best


def fit_transforms(
    tracks: Float[np.ndarray, "V F 3"],
    weights: Float[np.ndarray, "V K"],
    rotations: Float[np.ndarray, "K F 3 3"],
    translations: Float[np.ndarray, "K F 3"],
) -> None:
    """Each bone in turn, in place: its best rigid motion for what the others leave undone."""
    rest = tracks[:, 0]
    missing = tracks.transpose(1, 0, 2).copy()
    for weight, rotation, translation in zip(weights.T, rotations, translations, strict=True):
        missing -= weight[:, None] * _moved(rest, rotation, translation)
    for bone, weight in enumerate(weights.T):
        of = weight > 0
        if of.sum() < 3:
            continue  # nothing tells how it should turn
        share = weight[of][:, None]
        missing[:, of] += share * _moved(rest[of], rotations[bone], translations[bone])
        motion = rigid_motion(rest[of], missing[:, of], weight[of])
        rotations[bone], translations[bone] = motion
        missing[:, of] -= share * _moved(rest[of], *motion)


def chain(
    weights: Float[np.ndarray, "V K"], rest: Float[np.ndarray, "V 3"]
) -> tuple[Integer[np.ndarray, " K"], Float[np.ndarray, "K 3"], Integer[np.ndarray, " K"]]:
    """Parents, pivots and the order of the bones (a parent first), by what vertices they share.

    The tree is the one that shares most (a maximum spanning tree); its root is the bone that
    carries most. Where parts share nothing, their strongest bone hangs on the root."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    shared = weights.T @ weights
    carried = weights.sum(0)
    np.fill_diagonal(shared, 0)
    root = int(carried.argmax())
    # costs: the more is shared the less; what shares nothing hangs on the root
    cost = np.where(shared > 0, 1 / (1 + shared), 0)
    cost[root] = np.where(cost[root] > 0, cost[root], 2 + 1 / (1 + carried))
    cost[:, root], cost[root, root] = cost[root], 0
    tree = minimum_spanning_tree(csr_array(cost))
    order, before = breadth_first_order(tree, root, directed=False)
    place = np.argsort(order)  # of each bone in the new order
    parents = np.array([-1 if bone == root else place[before[bone]] for bone in order])
    pivots = np.empty((len(order), 3))
    for i, bone in enumerate(order):
        joint = weights[:, bone] * (1 if parents[i] < 0 else weights[:, before[bone]])
        around = joint if joint.sum() > 0 else weights[:, bone]
        pivots[i] = around @ rest / around.sum()
    return parents, pivots, order
