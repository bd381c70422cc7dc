"""Small maths: activations, chunks, rays and projections.

Camera frame: x right, y up, looking along -z. c2w columns: right, up, backward, position.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Num
from threestudio.log import warn
from threestudio.registry import close_names
from torch import Tensor


def dot(x: Num[Tensor, "*B D"], y: Num[Tensor, "*B D"]) -> Num[Tensor, "*B 1"]:
    """Scalar product over the last dimension, which stays."""
    return (x * y).sum(-1, keepdim=True)


def reflect(x: Float[Tensor, "*B D"], n: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """x mirrored about the unit vector n, both pointing away from the surface."""
    return 2 * dot(x, n) * n - x


def scale_tensor(dat: Num[Tensor, "*B D"], inp_scale: Any, tgt_scale: Any) -> Num[Tensor, "*B D"]:
    """Linear map of the range inp_scale to tgt_scale.

    Ranges are pairs of numbers or tensors [2 D]; None is (0, 1).
    """
    inp_scale = (0, 1) if inp_scale is None else inp_scale
    tgt_scale = (0, 1) if tgt_scale is None else tgt_scale
    unit = (dat - inp_scale[0]) / (inp_scale[1] - inp_scale[0])
    return unit * (tgt_scale[1] - tgt_scale[0]) + tgt_scale[0]


class _TruncatedExp(torch.autograd.Function):
    """exp whose gradient stops growing at exp(15)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.exp(x.clamp(max=15))


def trunc_exp(x: Tensor) -> Tensor:
    """exp in float32, its gradient cut off at x = 15 (Instant-NGP's density activation)."""
    return _TruncatedExp.apply(x.float())


def _lin2srgb(x: Tensor) -> Tensor:
    curve = x.clamp(min=0.0031308) ** (1 / 2.4) * 1.055 - 0.055
    return torch.where(x > 0.0031308, curve, 12.92 * x).clamp(0, 1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "lin2srgb": _lin2srgb,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1),
    "trunc_exp": trunc_exp,
    "shifted_trunc_exp": lambda x: trunc_exp(x - 1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "shifted_softplus": lambda x: F.softplus(x - 1),
    "scale_-11_01": lambda x: x * 0.5 + 0.5,
}


def get_activation(name: str | None) -> Callable[[Tensor], Tensor]:
    """An activation by its name: one of ACTIVATIONS, or of torch.nn.functional's."""
    name = "none" if name is None else name.lower()
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if hasattr(F, name):
        return getattr(F, name)
    near = close_names(
        name, [*ACTIVATIONS, "relu", "softplus", "silu", "elu", "gelu", "leaky_relu"]
    )
    raise ValueError(f"Unknown activation {name!r}. Close names: {', '.join(near or ACTIVATIONS)}.")


def chunk_batch(func: Callable, chunk_size: int, *args, **kwargs) -> Any:
    """func(*args, **kwargs) with every tensor argument cut along its first dimension, the results
    put together.

    func may return a tensor, or a list, tuple or dict of tensors and Nones. chunk_size <= 0: one
    call.
    """
    if chunk_size <= 0:
        return func(*args, **kwargs)
    sizes = [a.shape[0] for a in [*args, *kwargs.values()] if isinstance(a, Tensor)]
    if not sizes:
        raise ValueError("chunk_batch needs a tensor among the arguments to know what to cut.")

    def cut(argument, start):
        return argument[start : start + chunk_size] if isinstance(argument, Tensor) else argument

    parts = []
    for start in range(0, max(1, sizes[0]), chunk_size):  # an empty batch is one call too
        part = func(*(cut(a, start) for a in args), **{k: cut(a, start) for k, a in kwargs.items()})
        if part is not None:
            parts.append(part)
    return _join(parts) if parts else None


def _join(parts: list) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        joined = torch.cat(parts)
        return joined if torch.is_grad_enabled() else joined.detach()
    if all(part is None for part in parts):
        return None
    if isinstance(first, dict):
        return {k: _join([part[k] for part in parts]) for k in first}
    if isinstance(first, (list, tuple)):
        return type(first)([_join(list(column)) for column in zip(*parts, strict=True)])
    raise TypeError(
        "chunk_batch can join tensors, lists, tuples and dicts of them, not "
        f"{type(first).__name__}."
    )


def get_ray_directions(
    H: int,
    W: int,
    focal: float | tuple[float, float],
    principal: tuple[float, float] | None = None,
    use_pixel_centers: bool = True,
) -> Float[Tensor, "H W 3"]:
    """Directions through the pixels in the camera's frame, z = -1; focal, principal in pixels."""
    fx, fy = focal if isinstance(focal, (tuple, list)) else (focal, focal)
    cx, cy = (W / 2, H / 2) if principal is None else principal
    centre = 0.5 if use_pixel_centers else 0.0
    y, x = torch.meshgrid(torch.arange(H) + centre, torch.arange(W) + centre, indexing="ij")
    return torch.stack([(x - cx) / fx, -(y - cy) / fy, -torch.ones_like(x)], dim=-1)


def get_rays(
    directions: Float[Tensor, "*D 3"],
    c2w: Float[Tensor, "*B 4 4"],
    keepdim: bool = False,
    noise_scale: float = 0.0,
    normalize: bool = True,
) -> tuple[Float[Tensor, "*R 3"], Float[Tensor, "*R 3"]]:
    """World rays (origins, directions) from directions [N 3], [H W 3] or [B H W 3] and poses [4
    4] or [B 4 4].

    [N 3] directions take one pose each, or one for all; images take one pose an image, [H W 3]
    are then shared by all. Without keepdim the rays come out flat. noise_scale shifts all rays by
    one random vector.
    """
    poses = c2w[:, None, None] if directions.ndim > 2 and c2w.ndim == 3 else c2w
    rays_d = (poses[..., :3, :3] @ directions[..., None])[..., 0]
    rays_o = poses[..., :3, 3].expand(rays_d.shape)
    if noise_scale > 0:
        rays_o = rays_o + torch.randn(3, device=rays_o.device) * noise_scale
        rays_d = rays_d + torch.randn(3, device=rays_d.device) * noise_scale
    if normalize:
        rays_d = F.normalize(rays_d, dim=-1)
    return (rays_o, rays_d) if keepdim else (rays_o.reshape(-1, 3), rays_d.reshape(-1, 3))


def get_projection_matrix(
    fovy: Float[Tensor, " B"], aspect_wh: float, near: float, far: float
) -> Float[Tensor, "B 4 4"]:
    """OpenGL's perspective with y down, as nvdiffrast's images have it; fovy in radians."""
    cot = 1 / torch.tan(fovy / 2)
    proj = torch.zeros(*fovy.shape, 4, 4, dtype=torch.float32, device=fovy.device)
    proj[:, 0, 0] = cot / aspect_wh
    proj[:, 1, 1] = -cot
    proj[:, 2, 2] = -(far + near) / (far - near)
    proj[:, 2, 3] = -2 * far * near / (far - near)
    proj[:, 3, 2] = -1
    return proj


def get_mvp_matrix(
    c2w: Float[Tensor, "B 4 4"], proj_mtx: Float[Tensor, "B 4 4"]
) -> Float[Tensor, "B 4 4"]:
    """World -> clip space; c2w is a rotation and a shift, so its inverse is a transpose."""
    rotation = c2w[:, :3, :3].transpose(1, 2)
    w2c = torch.zeros_like(c2w)
    w2c[:, :3, :3] = rotation
    w2c[:, :3, 3:] = -rotation @ c2w[:, :3, 3:]
    w2c[:, 3, 3] = 1
    return proj_mtx @ w2c


def binary_cross_entropy(
    input: Float[Tensor, "*B"], target: Float[Tensor, "*B"]
) -> Float[Tensor, ""]:
    """Mean cross entropy of probabilities inside (0, 1); torch's own refuses to run under AMP."""
    return -(target * torch.log(input) + (1 - target) * torch.log(1 - input)).mean()


Number = TypeVar("Number", Tensor, float)


def shifted_expotional_decay(a: float, b: float, c: float, r: Number) -> Number:
    """a exp(-b r) + c (the spelling is the public name's)."""
    if isinstance(r, Tensor):
        return a * torch.exp(-b * r) + c
    return a * math.exp(-b * r) + c


def shifted_cosine_decay(a: float, b: float, c: float, r: Number) -> Number:
    """a cos(b r + c) + a."""
    if isinstance(r, Tensor):
        return a * torch.cos(b * r + c) + a
    return a * math.cos(b * r + c) + a


def perpendicular_component(
    x: Float[Tensor, "B C H W"], y: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """The part of x that is perpendicular to y, an image at a time (Perp-Neg)."""
    dims = (1, 2, 3)
    along = (x * y).sum(dims, keepdim=True) / (y * y).sum(dims, keepdim=True).clamp(min=1e-6)
    return x - along * y


def validate_empty_rays(
    ray_indices: Integer[Tensor, " N"], t_start: Float[Tensor, " N"], t_end: Float[Tensor, " N"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The samples, or one of zero length on ray 0 when there is none."""
    if ray_indices.nelement() > 0:
        return ray_indices, t_start, t_end
    warn("No ray meets anything.")
    return ray_indices.new_zeros(1), t_start.new_zeros(1), t_end.new_zeros(1)
