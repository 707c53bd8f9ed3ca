"""A posterior in the coordinates of a guide: its standard normal base, or a Gaussian like it."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial

import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from ..guides.pyro_internals import unconstrained_values
from ..guides.sites import batch_depth
from ..support.calls import Args, Model
from .capture import Graph, ValueAndGrad, is_enabled
from .effort import capture_seconds
from .joint import Joint
from .laplace import cholesky
from .path_gradient import FlowPath
from .pointwise import deterministic
from .proposals import GuideProposal
from .psis import pareto_khat, smooth

#: Number of draws of the guide from which k-hat and the starts of the chains are computed, and the
#: smallest number.
_POOL, _FEWEST = 20_000, 1000

#: Number of points of unconstrained space at which a site's value must be the same to be constant.
_PROBES = 16

#: Share of the time for chains that capturing their density may take: a gradient by a graph is
#: several times cheaper.
_CAPTURING = 0.5

#: Draws of a guide for each latent, and at least, that its Gaussian's moments are taken from.
_MOMENTS, _FEWEST_MOMENTS = 20, 2000


class BaseSpace:
    """The posterior in the guide's base space; points are ``(N, *rows, D)``.

    :raises TypeError: for a guide without a transform of a standard normal.
    """

    def __init__(
        self,
        model: Model,
        guide: AutoContinuous,
        args: Args,
        kwargs: dict[str, object],
    ) -> None:
        if not isinstance(guide, AutoContinuous):
            raise TypeError(_no_transform(guide))
        with poutine.block():
            guide(*args, **kwargs)  # one that was never run is set up
        try:
            self.base = guide.get_base_dist()
            self.transform = guide.get_transform(*args, **kwargs)
        except NotImplementedError:
            raise TypeError(_no_transform(guide)) from None
        self.guide, self.joint = guide, Joint(model, args, kwargs)
        self.nesting = batch_depth(GuideProposal(self.joint, guide, args, kwargs).trace)
        self.rows = guide.get_posterior(*args, **kwargs).batch_shape
        self.graph: Graph | None = None

    def normal(self, *shape: int) -> Tensor:
        """Draws of the base ``(*shape, *rows, D)``."""
        return self.base.sample((*shape, *self.rows))

    def log_density(self, eps: Tensor) -> Tensor:
        r""":math:`\log \pi(\epsilon)` up to a constant, ``(N,)``, without gradients."""
        path = FlowPath(self.transform, eps)
        return self.joint(self._packed(path.z)) + _total(path.log_det)

    def capture(self, count: int) -> Graph | None:
        """Capture density and map at ``count`` points as one graph, where that is possible.

        It is slower than the loops of the map's kernels until it is compiled, and used from then
        on. Until then the density has a graph of its own.
        """
        if not is_enabled() or self.rows or self.graph is not None:
            return self.graph
        self.joint.capture(count)
        if self.joint.recordable is not None:
            function = partial(self._value_and_grad, self.joint.recordable)
            # What cannot be captured is run as before.
            with contextlib.suppress(Exception), torch.random.fork_rng():
                self.graph = Graph(function, self.normal(count))
        return self.graph

    def value_and_grad(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\log \pi(\epsilon)` ``(N,)`` up to a constant, and its gradient, as ``eps``."""
        if self.graph is not None and self.graph.is_ready():
            return self.graph(eps)
        parts = [
            self._value_and_grad(self.joint.value_and_grad, part)
            for part in eps.split(self.joint.chunk)
        ]
        values, grads = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(grads)

    def _value_and_grad(self, density: ValueAndGrad, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient, by those of the density of the latents."""
        with torch.enable_grad():
            path = FlowPath(self.transform, eps)
            u, log_det = self._packed(path.z), _total(path.log_det)
        value, grad = density(u.detach())
        total = (u * grad).sum() + log_det.sum()
        return value + log_det.detach(), torch.autograd.grad(total, path.normal)[0]

    def _packed(self, u: Tensor) -> Tensor:
        """Vectors of all latents ``(N, D)`` from the guide's, which may have rows."""
        free = unconstrained_values(self.guide, u, self.nesting)
        return torch.cat([free[name] for name in self.joint.sites], -1)

    def log_base(self, eps: Tensor) -> Tensor:
        r""":math:`\log N(\epsilon; 0, I)`, ``(N,)``."""
        return _total(self.base.log_prob(eps))

    @torch.no_grad()
    def log_weight(self, eps: Tensor) -> Tensor:
        r""":math:`\log w(\epsilon)`, ``(N,)``; -inf where it is not a number."""
        parts = eps.split(self.joint.chunk)
        log_density = torch.cat([self.log_density(part) for part in parts])
        log_weight = (log_density - self.log_base(eps)).double()
        return torch.where(log_weight < math.inf, log_weight, -math.inf)

    @torch.no_grad()
    def unconstrained(self, eps: Tensor) -> Tensor:
        """Vectors of all latents ``(N, D)`` from points of the base space."""
        parts = eps.split(self.joint.chunk)
        return torch.cat([self._packed(self.transform(part)) for part in parts])

    @torch.no_grad()
    def draws(self, u: Tensor) -> dict[str, Tensor]:
        """Constrained draws ``(num_chains, num_samples, ...)`` from latents of such shape."""
        latents = self.joint.constrained(u.flatten(0, 1))
        everything = latents | deterministic(self.joint, latents)
        return {name: value.unflatten(0, u.shape[:2]) for name, value in everything.items()}

    @torch.no_grad()
    def fixed(self) -> dict[str, Tensor]:
        """Whether entries of each site are constants of its support, wherever the latents are."""
        found = self.draws(self.unconstrained(self.normal(_PROBES))[None])
        return {name: (value == value[:, :1]).flatten(0, 1).all(0) for name, value in found.items()}

    def culprits(self, eps: Tensor) -> list[str]:
        """Name the model's sites whose log-density is not finite at the first of the points."""
        point = {
            name: value[0, 0]
            for name, value in self.draws(self.unconstrained(eps[:1])[None]).items()
        }
        return sorted(self.joint.culprits(point))


class GaussianSpace:
    """The posterior in units of the Gaussian with the moments of a guide's draws.

    Its density costs no pass through the guide's flows; points are ``(N, D)``.
    """

    @torch.no_grad()
    def __init__(self, space: BaseSpace) -> None:
        self.joint = space.joint
        count = max(_MOMENTS * self.joint.dim, _FEWEST_MOMENTS)
        u = space.unconstrained(space.normal(count)).double()
        u = u[u.isfinite().all(-1)]
        self.loc = u.mean(0)
        centred = u - self.loc
        (self.factor,) = cholesky((centred.mT @ centred / len(u))[None])

    def points(self, u: Tensor) -> Tensor:
        """Points from vectors of all latents ``(N, D)``."""
        centred = (u.double() - self.loc).mT
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).mT.to(u)

    def unconstrained(self, x: Tensor) -> Tensor:
        """Vectors of all latents from points."""
        return self.loc.to(x) + x @ self.factor.mT.to(x)

    def capture(self, count: int, seconds: float | None) -> None:
        """Capture and compile the joint density as a refinement with as many draws does it.

        What that has left on disk is found at once.

        :param seconds: time that is left; where it is short the density stays as it is.
        """
        if is_enabled() and (seconds is None or capture_seconds(self.joint) < _CAPTURING * seconds):
            self.joint.capture(count + max(count // 2, 2))
        if self.joint.graph is not None:
            self.joint.graph.compile()

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density ``(N,)`` up to a constant, and its gradient ``(N, D)``."""
        value, grad = self.joint.value_and_grad(self.unconstrained(x))
        return value, grad @ self.factor.to(grad)


def _total(log_det: Tensor) -> Tensor:
    """Sum log-determinants ``(N, *rows)`` over rows: ``(N,)``."""
    return log_det.reshape(len(log_det), -1).sum(-1)


def _no_transform(guide: object) -> str:
    return (
        "guide must be an autoguide with a transform of a standard normal (AutoDSFNormal, "
        "AutoMultivariateNormal, AutoIAFNormal, refine(...).guide, "
        f"AutoLaplaceApproximation(...).laplace_approximation()), got {type(guide).__name__}"
    )


def find_starts(
    space: BaseSpace, num_chains: int, seconds: float = math.inf
) -> tuple[Tensor, float]:
    """Draws of the guide, all different, chosen by their smoothed weights; and k-hat.

    :param seconds: time after which no further draws are weighted.
    """
    pools, log_weights = list[Tensor](), list[Tensor]()
    began, count, finite = time.monotonic(), 0, 0
    while count < _POOL and (finite < num_chains or time.monotonic() - began < seconds):
        more = _POOL if math.isinf(seconds) else max(count, _FEWEST, 2 * num_chains)
        pools.append(space.normal(min(more, _POOL - count)))
        log_weights.append(space.log_weight(pools[-1]).cpu())
        count += len(pools[-1])
        finite += int((log_weights[-1] > -math.inf).sum())
    pool, log_weight = torch.cat(pools), torch.cat(log_weights)
    if finite < num_chains:
        raise ValueError(
            f"the log-density is finite at {finite} of {count} draws of the guide, too few for "
            f"{num_chains} chains to start from, because of the sites {space.culprits(pool)}; "
            "look for NaN or impossible values in their data, and fit the guide"
        )
    # Weights may underflow; draws that are impossible must not be chosen even then.
    weights = (smooth(log_weight).exp() + 1e-300) * (log_weight > -math.inf)
    chosen = torch.multinomial(weights, num_chains)
    return pool[chosen.to(pool.device)], pareto_khat(log_weight)
