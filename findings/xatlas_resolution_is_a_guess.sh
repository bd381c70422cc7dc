#!/usr/bin/env bash
# xatlas 0.0.11 (PyPI): PackOptions.resolution alone isn't the atlas's size. texels_per_unit is guessed from it
# ("to approximately match", says the docstring), and the atlas is as large as the charts then need: here a
# fifth larger, and not square. Texture coordinates are divided by the atlas's own width and height. A texture
# of resolution x resolution thus has fewer texels than were packed for, and less padding than asked for.
# Expected, from the name: no side longer than resolution. atlas.width and atlas.height say what came out.
# With texels_per_unit set as well the size is exact. But what doesn't fit then goes to a second atlas, without
# a word, and its texture coordinates lie over the first one's; get_mesh_vertex_assignment tells them apart.
# Seen, on a sphere of 1280 triangles: 512 gives 622 x 621, 1024 gives 1169 x 1204, 2048 gives 2340 x 2376.
# 1024 with 200 texels a unit gives one atlas of 1024 x 1024, with 250 two.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q xatlas==0.0.11 numpy==2.3.5
cat > pack.py <<'PY'
import numpy as np
import xatlas


def icosphere(levels):
    g = (1 + 5**0.5) / 2
    points = np.array([(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g),
                       (0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)])
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    near = np.abs(distance - 2) < 1e-6
    faces = np.array([(a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]])
    outward = np.linalg.det(points[faces]) > 0
    faces = np.where(outward[:, None], faces, faces[:, ::-1])
    for _ in range(levels):
        edges, index = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)), axis=0, return_inverse=True)
        (a, b, c), (ab, bc, ca) = faces.T, len(points) + index.reshape(-1, 3).T
        points = np.concatenate([points, points[edges].mean(1)])
        faces = np.concatenate([np.stack(f, 1) for f in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), faces.astype(np.uint32)


def pack(resolution, texels_per_unit=0.0):
    options = xatlas.PackOptions()
    options.resolution, options.texels_per_unit, options.padding = resolution, texels_per_unit, 2
    atlas = xatlas.Atlas()
    atlas.add_mesh(*icosphere(3))
    atlas.generate(pack_options=options)
    print(f"resolution {resolution}, texels_per_unit {texels_per_unit:3.0f}: {atlas.atlas_count} of {atlas.width} x {atlas.height}")
    return atlas


for resolution in (512, 1024, 2048):
    atlas = pack(resolution)
    size = np.array([atlas.width, atlas.height])
    assert atlas.atlas_count == 1 and (size > 1.1 * resolution).all()
    assert np.allclose(atlas[0][2].max(0) * size, size - 0.5, atol=0.01)  # coordinates are in units of that size
for texels_per_unit, count in ((200, 1), (250, 2)):
    atlas = pack(1024, texels_per_unit)
    assert (atlas.width, atlas.height, atlas.atlas_count) == (1024, 1024, count)
first = [atlas[0][2][atlas.get_mesh_vertex_assignment(0)[0] == k].min(0) for k in (0, 1)]
print("lowest texture coordinates in either of the two:", *first)
assert np.allclose(first, 0, atol=0.01)
PY
venv/bin/python pack.py
