"""Views of a batch in one call of the renderer. On a GPU its kernels take as long to launch, and
the host waits as often for its sizes, for one picture as for several.

A view is a dict of cameras, tensors [B ...] and numbers, as data/cameras.py makes it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..renderer.ahead import ahead_of_queue, handed_over

View = dict[str, Any]
MADE = "made"  # of a view: the event since when it is on the GPU


def render_together(render: Callable[[View], View], views: Mapping[str, View]) -> dict[str, View]:
    """What `render` says of each view, its pictures [B H W C] alone: views of pictures of one size
    are rendered in one call, and their samples belong to none of them."""
    alike: dict[tuple, list[str]] = {}
    for name, view in views.items():
        alike.setdefault(likeness(view), []).append(name)
    renders: dict[str, View] = {}
    for names in alike.values():
        group = [views[name] for name in names]
        sizes = [len(view["rays_o"]) for view in group]
        rendered = render({**stacked(group), "pictures_only": True})
        renders |= zip(names, apart(rendered, sizes), strict=True)
    return {name: renders[name] for name in views}


def likeness(view: View) -> tuple:
    """The same for views that can be stacked."""
    held = {k: v.shape[1:] if isinstance(v, Tensor) else v for k, v in view.items() if k != MADE}
    return tuple(sorted(held.items()))


def stacked(views: list[View]) -> View:
    """One view with the pictures of all, one after the other, made ahead of what the GPU has to do
    where these were."""
    first, *others = views
    if not others:
        return first

    def together(name: str, value: Any) -> Any:
        parts = [value, *(view[name] for view in others)]
        return torch.cat(parts) if isinstance(value, Tensor) else value

    own = {name: value for name, value in first.items() if name != MADE}
    if not all(MADE in view for view in views):
        return {name: together(name, value) for name, value in own.items()}
    made = torch.cuda.Event()
    with ahead_of_queue(first["rays_o"].device, [view[MADE] for view in views]):
        whole = {name: together(name, value) for name, value in own.items()}
        made.record()
    handed_over(value for value in whole.values() if isinstance(value, Tensor))
    return {**whole, MADE: made}


def apart(render: View, sizes: list[int]) -> list[View]:
    """The pictures of each of the views that were rendered together."""
    pictures = {k: v.split(sizes) for k, v in render.items() if is_pictures(v, sum(sizes))}
    return [{k: parts[i] for k, parts in pictures.items()} for i in range(len(sizes))]


def is_pictures(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and len(value) == count
