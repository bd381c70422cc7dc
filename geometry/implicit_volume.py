"""The 4D field as a threestudio geometry: points and frame times -> density, features, normals.

Points lie in the box [-radius, radius]^3, tau in [0, 1]. Outside the box the encoding is that of
the nearest point of the box; the density bias goes on. Everything runs in the parameters' float
type, also under AMP, which would turn small differences of density into noise.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import threestudio
import torch
import torch.nn.functional as F
from jaxtyping import Float
from threestudio.models.geometry.base import BaseImplicitGeometry, contract_to_unisphere
from threestudio.utils.config import parse_structured
from threestudio.utils.ops import get_activation
from torch import Tensor

from ..bounds import Bounded, bounded
from . import rigidity
from .deformation import Deformation
from .encoding import CompositeEncoding
from .mlp import MLP
from .otypes import make_encoding, parse_encoding
from .stencil import central_difference_normal, neighbours
from .times import Runs, Times, random_moments, repeated

BLOBS = ("blob_magic3d", "blob_dreamfusion")
NORMAL_TYPES = ("finite_difference", "pred", "analytic")
EMPTY = 0.1  # weight of empty space in `rigidity`


@dataclass
class MLPConfig(Bounded):
    otype: str = bounded("VanillaMLP", names=("VanillaMLP",))  # linear layers without bias
    activation: str = "ReLU"  # after each hidden layer
    output_activation: str = "none"
    n_neurons: int = bounded(64, 1, 2**16)  # a hidden layer
    n_hidden_layers: int = bounded(1, 0, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.activation, self.output_activation):
            get_activation(name)


def density_bias(
    points: Float[Tensor, "*N 3"], kind: float | str, scale: float, std: float
) -> Float[Tensor, "*N 1"] | float:
    """What is added to density before its activation: a number, or a blob around the origin."""
    if kind == "blob_magic3d":  # arXiv 2211.10440: a cone
        return scale - (scale / std) * points.norm(dim=-1, keepdim=True)
    if kind == "blob_dreamfusion":  # arXiv 2209.14988: a Gaussian
        return scale * torch.exp(-0.5 * points.square().sum(dim=-1, keepdim=True) / std**2)
    return float(kind)


@threestudio.register("animate124-implicit-volume")
class ImplicitVolume(BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config, Bounded):
        radius: float = bounded(1.0, above=0, high=1e6)  # half the side of the box around the scene
        n_input_dims: int = bounded(3, 3, 3)  # of a point; time is an argument of its own
        # features a point has beside density; 0 for none
        n_feature_dims: int = bounded(3, 0, 2**16)
        density_activation: str | None = "softplus"
        # a blob, or a number
        density_bias: int | float | str = bounded("blob_magic3d", names=BLOBS, numbers=True)
        density_blob_scale: float = 10.0  # the blob's bias at the origin
        density_blob_std: float = bounded(0.5, above=0)  # the blob's size, in world units
        pos_encoding_config: dict = field(default_factory=dict)  # its otype's keys
        mlp_network_config: dict = field(default_factory=dict)  # MLPConfig's keys
        # null for none
        normal_type: str | None = bounded("finite_difference", names=(*NORMAL_TYPES, None))
        # half the distance differenced, world units
        finite_difference_normal_eps: float = bounded(0.01, above=0)
        # density on the surface of a mesh
        isosurface_threshold: float | str = bounded(25.0, above=0, names=("auto",))
        isosurface_resolution: int = bounded(128, 2, 4096)  # grid points along an edge of the box

        def __post_init__(self) -> None:
            super().__post_init__()
            get_activation(self.density_activation)
            parse_encoding(self.pos_encoding_config)
            parse_structured(MLPConfig, self.mlp_network_config)

    cfg: Config
    # to be looked at: without six more densities a sample, for nothing
    light: ClassVar[dict[str, Any]] = {"normal_type": None}
    with_normals: ClassVar[dict[str, Any]] = {"normal_type": "finite_difference"}  # or with them

    def configure(self) -> None:
        super().configure()
        self.density_activation = get_activation(self.cfg.density_activation)
        # what each frame's call reads, out of the config, where reading takes 20 us
        self.density_bias = functools.partial(
            density_bias,
            kind=self.cfg.density_bias,
            scale=self.cfg.density_blob_scale,
            std=self.cfg.density_blob_std,
        )
        self.eps = self.cfg.finite_difference_normal_eps
        self.radius = self.cfg.radius
        self.eps_in_unit_cube = self.eps / (2 * self.radius)
        self.has_features = self.cfg.n_feature_dims > 0

        network = parse_structured(MLPConfig, self.cfg.mlp_network_config)
        activations = get_activation(network.activation), get_activation(network.output_activation)
        sizes = network.n_neurons, network.n_hidden_layers

        settings = parse_encoding(self.cfg.pos_encoding_config)
        encoding = make_encoding(settings)
        fast = settings.get("backend", "auto") in ("auto", "cuda")
        self.encoding = CompositeEncoding(encoding)
        dim_in = encoding.n_output_dims
        self.density_network = MLP(dim_in, 1, *sizes, *activations, fast)
        if self.has_features:
            self.feature_network = MLP(dim_in, self.cfg.n_feature_dims, *sizes, *activations, fast)
        self.normal_type = self.cfg.normal_type  # once: reading a config takes 20 us
        if self.normal_type == "pred":
            self.normal_network = MLP(dim_in, 3, *sizes, *activations, fast)
        for network in self.children():
            if isinstance(network, MLP):
                network.requires_grad_(not encoding.frozen)

    def take_layout(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Gets ready for the tables of a state dict in which the geometry's keys begin so."""
        self.encoding.encoding.take_layout(state_dict, f"{prefix}encoding.encoding.")

    def ever_moved(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether such a state dict was ever trained to change with time."""
        return self.encoding.encoding.ever_moved(state_dict, f"{prefix}encoding.encoding.")

    @property
    def fresh(self) -> tuple[str, ...]:
        """Beginnings of the parameters' names that an earlier stage's checkpoint may lack."""
        return tuple(f"encoding.encoding.{name}" for name in self.encoding.encoding.fresh)

    @property
    def deformation(self) -> Deformation | None:
        """D, if points of this scene move and nothing else of it changes."""
        encoding = self.encoding.encoding
        return encoding.deformation if encoding.deforms else None

    @property
    def static(self) -> bool:
        """Whether the field is the same at all times."""
        return self.encoding.encoding.static

    def forward(
        self,
        points: Float[Tensor, "*N 3"],
        output_normal: bool = False,
        times: Times | None = None,
    ) -> dict[str, Float[Tensor, "..."]]:
        """density [*N 1], features [*N C], and normal = shading_normal [*N 3] if asked for.

        times: tau of each point, or one for all, or in runs; None is tau = 0. Many points are
            faster with one.
        Normals point to where density falls.
        """
        evaluate = self._without_normal
        if output_normal:
            if self.normal_type is None:
                raise ValueError(
                    f"Normals were asked for, but geometry.normal_type is null. "
                    f"Set it to one of {', '.join(NORMAL_TYPES)}."
                )
            evaluate = getattr(self, f"_with_{self.normal_type}_normal")
        output = self._evaluate(evaluate, points, times)
        if output_normal:
            output["shading_normal"] = output["normal"]
        return output

    def forward_density(
        self, points: Float[Tensor, "*N 3"], times: Times | None = None
    ) -> Float[Tensor, "*N 1"]:
        return self._evaluate(self._only_density, points, times)["density"]

    def rigidity(self, moments: int = 4) -> dict[str, Float[Tensor, ""]]:
        """How far a deformed scene is, at random times, from moving rigidly where it has density
        (`arap`, a mean over such places), and from folding space anywhere (`fold`, likewise).

        Empty space counts EMPTY as much as a place that is opaque: it may stretch, but not freely.
        """
        deformation = self.deformation
        assert deformation is not None
        table = deformation.table(random_moments(moments, self.bbox.device))
        gradient = rigidity.lattice_gradient(table)
        with torch.no_grad():
            centres = rigidity.canonical_centres(table)
            cell = 2 * self.cfg.radius / (table.shape[-1] - 1)
            density = self.forward_density(self._in_world(centres))[..., 0]
            weight = (1 - (-density * cell).exp()).clamp(min=EMPTY)
        arap = (weight * rigidity.arap(gradient)).sum() / weight.sum()
        return {"arap": arap, "fold": rigidity.fold(gradient).mean()}

    @torch.no_grad()
    def tracks(
        self, points: Float[Tensor, "N 3"], taus: Float[Tensor, " T"]
    ) -> tuple[Float[Tensor, "T N 3"], Float[Tensor, "T N"]]:
        """Where points of the scene at tau = 0 are at each of `taus`, world units, and how far from
        each point its place comes from: rounding, as long as space isn't folded there. Where it is,
        several places come from a point, of which this is one, or (then the error is larger) near
        one. Points may lie outside the box.

        Raises:
            ValueError: the scene changes with time without points of it moving.
        """
        if self.static:
            return points.expand(len(taus), -1, -1), points.new_zeros(len(taus), len(points))
        deformation = self.deformation
        if deformation is None:
            raise ValueError(
                f"{type(self.encoding.encoding).__name__} repaints a scene with time: no point of "
                "it moves, so that none can be followed. A scene with "
                "pos_encoding_config.otype=HashGridDeformation can."
            )
        x = self._in_unit_cube(points.to(self.bbox))
        found = [deformation.inverse(x, tau.view(1, 1)) for tau in taus.to(self.bbox)]
        places = torch.stack([place for place, _ in found]) if found else x.new_empty(0, *x.shape)
        errors = torch.stack([error for _, error in found]) if found else x.new_empty(0, len(x))
        return self._in_world(places), 2 * self.cfg.radius * errors

    def forward_field(
        self, points: Float[Tensor, "*N 3"], times: Float[Tensor, "*#N 1"] | None = None
    ) -> tuple[Float[Tensor, "*N 1"], None]:
        """(density, None): the lattice that an isosurface is taken on stays undeformed."""
        return self.forward_density(points, times), None

    def forward_level(
        self, field: Float[Tensor, "*N 1"], threshold: float
    ) -> Float[Tensor, "*N 1"]:
        """Negative inside the surface."""
        return threshold - field

    def export(
        self,
        points: Float[Tensor, "*N 3"],
        times: Float[Tensor, "*#N 1"] | None = None,
        **kwargs: Any,
    ) -> dict[str, Float[Tensor, "*N C"]]:
        if not self.has_features:
            return {}
        return self._evaluate(self._only_features, points, times)

    def _evaluate(self, function, points, times):
        """The function's dict for points of any shape, made of one for [M 3], times [M 1], [1 1] or
        None. Of a deformed scene it sees the points where they were at tau = 0, and no times."""
        shape = points.shape[:-1]
        points = points.reshape(-1, 3).to(self.bbox.dtype)
        if isinstance(times, Runs):
            times = times._replace(moments=times.moments.to(self.bbox.dtype))
            times = times.of_each() if self.deformation is None else times
        elif times is not None:
            times = times.reshape(-1, 1).to(self.bbox.dtype)
        with torch.autocast(points.device.type, enabled=False):
            if times is None or self.deformation is None:
                output = function(points, times)
            else:
                output = function(self._canonical(points, times), None)
                if "normal" in output:
                    output["normal"] = self._turned(output["normal"], points.detach(), times)
        return {name: value.view(*shape, value.shape[-1]) for name, value in output.items()}

    def _canonical(self, points, times):
        """x_c = x + D, in the world; as far as D is 0, to the bit what came in."""
        x = self._in_unit_cube(points)
        return points + 2 * self.radius * (self.encoding.encoding.canonical(x, times) - x)

    @torch.no_grad()
    def _derivative(self, points, times):
        """dx_c/dx [M 3 3], a row for each component of x_c."""
        near = neighbours(points, self.eps)
        near = self._canonical(near.flatten(0, 1), repeated(times, 6)).view_as(near)
        return ((near[:, 0::2] - near[:, 1::2]) / (2 * self.eps)).mT

    def _turned(self, normal, points, times):
        """A normal at x_c as one at x: the gradient of density(x_c(x)) is F^T that at x_c."""
        return F.normalize((normal[:, None] @ self._derivative(points, times))[:, 0], dim=-1)

    def _in_unit_cube(self, points):
        if self.unbounded:
            return contract_to_unisphere(points, self.bbox, True)
        return (points + self.radius) / (2 * self.radius)  # the same, of a cube around the origin

    def _in_world(self, x):
        return self.bbox[0] + 2 * self.cfg.radius * x

    def _encode(self, points, times):
        return self.encoding(self._in_unit_cube(points), times)

    def _only_density(self, points, times):
        return {"density": self._density(points, self._encode(points, times))}

    def _only_features(self, points, times):
        return {"features": self.feature_network(self._encode(points, times))}

    def _density(self, points, encoding):
        return self.density_activation(self.density_network(encoding) + self.density_bias(points))

    def _without_normal(self, points, times, encoding=None):
        encoding = self._encode(points, times) if encoding is None else encoding
        output = {"density": self._density(points, encoding)}
        if self.has_features:
            output["features"] = self.feature_network(encoding)
        return output

    def _with_pred_normal(self, points, times):
        encoding = self._encode(points, times)
        normal = F.normalize(self.normal_network(encoding), dim=-1)
        return {**self._without_normal(points, times, encoding), "normal": normal}

    def _with_finite_difference_normal(self, points, times):
        """All seven points go through the encoding at once."""
        encoding, encoding_near = self.encoding.stencil(
            self._in_unit_cube(points), self.eps_in_unit_cube, times
        )
        near = neighbours(points, self.eps).flatten(0, 1)
        density = self._density(near, encoding_near.flatten(0, 1)).view(-1, 6)
        output = self._without_normal(points, times, encoding)
        return {**output, "normal": central_difference_normal(density)}

    def _with_analytic_normal(self, points, times):
        wants_grad = torch.is_grad_enabled()
        # validation runs in inference mode, whose tensors autograd refuses: hence the clones
        with torch.inference_mode(False), torch.enable_grad():
            if not (wants_grad and points.requires_grad):
                points = points.detach().clone().requires_grad_()
                times = None if times is None else times.detach().clone()
            output = self._without_normal(points, times)
            (gradient,) = torch.autograd.grad(
                output["density"].sum(), points, create_graph=wants_grad
            )
            output["normal"] = -F.normalize(gradient, dim=-1)
        return output if wants_grad else {name: value.detach() for name, value in output.items()}
