"""Triangles to pictures, as any viewer draws them without light: nearest first, colours in
perspective. What renders of meshes are held against; nothing of it is the product's."""

import numpy as np


def candidates(low, high):
    """Every (triangle, row, column) of the triangles' boxes of pixels, as three columns."""
    size = np.maximum(high - low, 0)
    count = size.prod(-1)
    triangle = np.repeat(np.arange(len(count)), count)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    width = size[triangle, 0]
    return triangle, low[triangle, 1] + place // width, low[triangle, 0] + place % width


def hits(vertices, faces, mvp, height, width):
    """The nearest triangle at each pixel's centre that has one: (pixel, triangle, weights [N 3]),
    the weights those of the triangle's corners in space.

    mvp: world to clip space, x right, y down, all of the mesh before the camera."""
    clip = np.concatenate([vertices, np.ones((len(vertices), 1))], -1) @ mvp.T
    depth = clip[:, 3]
    screen = (clip[:, :2] / depth[:, None] / 2 + 0.5) * [width, height]
    corners, depths = screen[faces], depth[faces]  # [T 3 2], [T 3]
    low = np.ceil(corners.min(1) - 0.5).clip(0, [width, height]).astype(int)
    high = (np.floor(corners.max(1) - 0.5) + 1).clip(0, [width, height]).astype(int)
    triangle, row, column = candidates(low, high)
    point = np.stack([column + 0.5, row + 0.5], -1)

    def area(a, b, c):
        (ux, uy), (vx, vy) = (b - a).T, (c - a).T
        return ux * vy - uy * vx

    a, b, c = corners[triangle].transpose(1, 0, 2)
    whole = area(a, b, c)
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = np.stack([area(point, b, c), area(point, c, a), area(point, a, b)], -1)
        flat /= whole[:, None]
    inside = (flat >= 0).all(-1)  # false where there is no area, too
    triangle, flat = triangle[inside], flat[inside]
    pixel = (row * width + column)[inside]
    weights = flat / depths[triangle]
    near = weights.sum(-1)  # 1 / depth
    order = np.lexsort((-near, pixel))
    first = order[np.r_[True, np.diff(pixel[order]) > 0]] if len(order) else order
    return pixel[first], triangle[first], weights[first] / near[first, None]


def looked_up(texture, uv):
    """Bilinear, as viewers do; (0, 0) is the picture's lower left corner."""
    height, width = texture.shape[:2]
    x = (uv[:, 0] * width - 0.5).clip(0, width - 1)
    y = ((1 - uv[:, 1]) * height - 0.5).clip(0, height - 1)
    left, top = x.astype(int).clip(0, width - 2), y.astype(int).clip(0, height - 2)
    across, down = (x - left)[:, None], (y - top)[:, None]
    upper = texture[top, left] * (1 - across) + texture[top, left + 1] * across
    lower = texture[top + 1, left] * (1 - across) + texture[top + 1, left + 1] * across
    return upper * (1 - down) + lower * down


def picture(moving, i, mvp, height, width, background, samples=3):
    """A MovingMesh's frame, sRGB in [0, 1] [H W 3]; each pixel is the mean of samples^2."""
    h, w = samples * height, samples * width
    pixel, triangle, weights = hits(moving.places[i].astype(float), moving.faces, mvp, h, w)
    image = np.tile(np.asarray(background, float), (h * w, 1))

    def blend(values):
        return (values[moving.faces[triangle]] * weights[..., None]).sum(1)

    if moving.texture is None:
        image[pixel] = blend(moving.colours)
    else:
        image[pixel] = looked_up(moving.texture / 255, blend(moving.uv))
    return image.reshape(height, samples, width, samples, 3).mean((1, 3))


def psnr(a, b):
    """dB between two pictures in [0, 1]."""
    return float(-10 * np.log10(np.mean((np.asarray(a) - np.asarray(b)) ** 2)))
