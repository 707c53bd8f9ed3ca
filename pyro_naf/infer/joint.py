r"""The joint log-density of any model, at many points of its unconstrained latents at once.

.. math:: \log p(x, z(u)) + \log|\det \partial z/\partial u|

The model is run for one draw, as NUTS runs it, and :func:`torch.vmap` makes the batch. So no model
has to be vectorised, and no draw can see another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Protocol

import torch
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..guides.sites import Latents, Site, find_sites, site_log_probs, split
from ..support.autograd import Context
from ..support.calls import Args, Kwargs, Model
from ..support.seeding import kept
from .capture import Graph, ValueAndGrad, check_equal
from .exploration import (
    chunk_size,
    find_rung,
    points_near,
    refuse_changing_shapes,
    refuse_given_subsamples,
    refuse_iterators,
    refuse_nan,
    with_dependent_supports,
    with_idle,
)
from .lanes import RUNGS, Batched, Values, explained_gradients, with_refusals
from .pace import Pace
from .runs import Runs


class Joint(Runs):
    r""":math:`\log p(x, z(u)) + \log|\det \partial z/\partial u|` of unconstrained latents u.

    Discrete latents with a finite support are summed out, as NUTS does it. Entries of u that no
    density depends on (the observed half of ``obs_mask``) get a standard normal of their own.
    Where the model refuses a point, or its density is not finite, that point's density is -inf and
    the others stand. Subsampled plates are run with all their elements.

    :param model: any model that Pyro's NUTS takes.
    :param args: the model's arguments, as are ``kwargs``.
    :param init_loc_fn: Pyro's initialisation function for the point :attr:`start`.
    :ivar sites: the continuous latent sites and their places in u.
    :ivar dim: D, the length of u.
    :ivar start: a point ``(D,)``, with the dtype and device of u.
    :ivar rung: how a batch is evaluated: "vmapped", "vmapped with help", "vmapped with copies" or
        "one draw after another".
    :raises ValueError: when an argument is a generator, or the model has no continuous latents,
        discrete ones that are not finite, latents whose shape changes from run to run, NaN in its
        data, or a subsampled plate that cannot be run with all its elements; naming argument, site
        or plate.

    Shapes: u ``(N, D)`` to ``(N,)``.

    >>> import pyro, pyro.distributions as dist
    >>> def model():
    ...     b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    ...     pyro.sample("x", dist.Uniform(0.0, b))
    >>> joint = Joint(model)
    >>> joint(torch.zeros(5, joint.dim)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        model: Model,
        args: Args = (),
        kwargs: Kwargs | None = None,
        init_loc_fn: Callable[..., Tensor] = init_to_median,
    ) -> None:
        refuse_iterators(args, kwargs or {})
        super().__init__(model, args, kwargs)
        self.sites: dict[str, Site] = {}
        self.graph: Graph | None = None
        #: Value and gradient by operations that a graph can hold, where there is a graph.
        self.recordable: ValueAndGrad | None = None
        # What is found out about the model leaves the user's generators alone; that it can be
        # differentiated is known where the caller needs no gradients too.
        generators = kept()
        with generators, torch.enable_grad():
            self._explore(init_loc_fn)

    def _explore(self, init_loc_fn: Callable[..., Tensor]) -> None:
        """Run the model a few times: its sites, their supports, and the way to a batch."""
        trace = self.first(init_loc_fn)
        refuse_given_subsamples(trace)
        refuse_nan(trace)
        self.sites = find_sites(trace)
        if not self.sites:
            what = "observed or discrete" if self.discrete else "observed"
            raise ValueError(
                f"the model has no continuous latent variables: every sample statement is {what}"
            )
        self.dim = sum(site.size for site in self.sites.values())
        self.start = torch.cat(
            [s.transform.inv(trace.nodes[n]["value"]).reshape(-1) for n, s in self.sites.items()]
        ).detach()
        self.chunk = chunk_size(trace)
        refuse_changing_shapes(self, self.sites)
        self.sites = with_dependent_supports(self, self.sites, self.start)
        self.sites = with_idle(self, self.sites, self.start, trace)
        self.rung = find_rung(self._log_density, self.sites, self.start)

    def __call__(self, u: Tensor) -> Tensor:
        """Log-density at points ``(N, D)``; -inf, with gradient 0, where the model has none."""
        if torch.is_grad_enabled() and u.requires_grad:
            return _Density.apply(u, self)
        if self.graph is not None and (self.graph.is_compiled or len(u) <= self.graph.count):
            return self.graph(u)[0]
        with torch.no_grad():  # the model may have parameters of its own
            return self.uncaptured(u)

    def uncaptured(self, u: Tensor) -> Tensor:
        """Log-density by runs of the model, differentiable as often as the model is."""
        function = self._over_lanes(self._log_density)
        parts = [function(self.split(part)) for part in u.split(self.chunk)]
        return self._finite(torch.cat(parts))

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density ``(N,)`` and gradient ``(N, D)``; -inf and 0 where one is not finite."""
        if self.graph is not None:
            return self.graph(u.detach())
        u = u.detach().requires_grad_()
        with torch.enable_grad(), explained_gradients():
            value = self.uncaptured(u)
            gradient = _gradient(value, u)
        return _usable(value.detach(), gradient)

    def capture(self, count: int = 64) -> None:
        """Capture value and gradient at ``count`` points as a graph, where that is possible."""
        if self.graph is not None or self.rung == list(RUNGS)[-1]:
            return

        example = points_near(self.start, *[0.1] * count)  # the user's generators are left alone
        rungs = list(RUNGS)
        for rung in rungs[rungs.index(self.rung) : -1]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    recordable = self._on_rung(rung)
                    graph = Graph(recordable, example)
                    check_equal(graph(example), self.value_and_grad(example))
            except Exception:  # noqa: BLE001 - what cannot be captured is run as before
                continue
            self.graph, self.recordable = graph, recordable
            return

    def _on_rung(self, rung: str) -> ValueAndGrad:
        """Value and gradient by the transforms of :mod:`torch.func`, which a graph can hold."""

        def function(u: Tensor) -> tuple[Tensor, Tensor]:
            over_lanes = RUNGS[rung](torch.func.grad_and_value(self._log_density))
            grads, value = over_lanes(self.split(u))
            grad = torch.cat([grads[name].reshape(len(u), -1) for name in self.sites], -1)
            return _usable(self._finite(value), grad)

        return function

    @cached_property
    def pace(self) -> Pace:
        """What value and gradient cost without a graph, measured once."""
        with explained_gradients():
            return Pace.of(self.uncaptured, self.start)

    @property
    def way(self) -> str:
        """How the density is evaluated now: :attr:`rung`, or by a graph, captured or compiled."""
        if self.graph is None:
            return self.rung
        return "captured and compiled" if self.graph.is_compiled else "captured"

    def minibatch(self, u: Tensor) -> Tensor:
        """Estimate the log-density without bias, by a new subsample of the subsampled plates."""
        elements = {
            name: torch.randperm(size, device=some.device)[: len(some)]
            for name, (size, some) in self.subsampled.items()
        }
        function = self._over_lanes(lambda free: self._log_density(free, elements))
        return self._finite(function(self.split(u)))

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\log p(x, z)` ``(N,)`` at constrained latents, site to ``(N, *site shape)``.

        Idle elements have the density that a standard normal has in their support.
        """

        def density(z: Values) -> Tensor:
            return self.log_density(Latents(self.sites, z, constrained=True))

        return self._finite(self._over_lanes(density)(values))

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites at points ``(N, D)``, site to ``(N, *site shape)``."""
        if all(site.transform is not None for site in self.sites.values()):
            free = self.split(u)
            return {name: s.transform(free[name].to(s.dtype)) for name, s in self.sites.items()}

        def values(one: Values) -> dict[str, Tensor]:
            latents = Latents(self.sites, one)
            self.run(latents)
            return latents.values

        function = self._over_lanes(values)
        parts = [function(self.split(part)) for part in u.split(self.chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.sites}

    def trace(self, values: Values, handler: Callable[[Model], object] | None = None) -> Trace:
        """Trace of one run at one draw of constrained latents.

        :param handler: put around the model, inside the handler that sets the latents.
        """
        return self.run(Latents(self.sites, values, constrained=True), handler)

    def over_draws(
        self, function: Callable[[Values], dict[str, Tensor]], values: Values
    ) -> dict[str, Tensor]:
        """Return what a function of one draw, which may use :meth:`trace`, gives for many, stacked.

        :param values: latent site to ``(N, *site shape)``; further tensors ``(N, ...)`` may be
            among them.
        """
        values = {name: value.to(self.start.device) for name, value in values.items()}
        count = len(next(iter(values.values())))
        batched, parts = self._over_lanes(function), []
        with torch.no_grad():
            for start in range(0, count, self.chunk):
                part = {name: value[start : start + self.chunk] for name, value in values.items()}
                parts.append(batched(part))
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("the model can be run at none of the draws; fit the guide again")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Unconstrained values of the sites from points ``(..., D)``."""
        return split(u, self.sites)

    def culprits(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Sites whose log-density at one draw of constrained latents is not finite, with it."""
        with torch.no_grad():
            found = site_log_probs(self.run(Latents(self.sites, values, constrained=True)))
        sums = {name: float(value.sum()) for name, value in found.items()}
        return {name: value for name, value in sums.items() if not abs(value) < float("inf")}

    def _log_density(self, free: Values, elements: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.log_density(Latents(self.sites, free, elements=elements))

    def _over_lanes(self, function: Callable[[Values], object]) -> Batched:
        return with_refusals(RUNGS[self.rung](function), function)

    def _finite(self, log_p: Tensor) -> Tensor:
        return torch.where(log_p.isfinite(), log_p, -torch.inf).to(self.start.dtype)


class _DensityContext(Context, Protocol):
    joint: Joint


class _Density(torch.autograd.Function):
    """The log-density with a gradient that is known with it; second derivatives run the model."""

    @staticmethod
    def forward(ctx: _DensityContext, u: Tensor, joint: Joint) -> Tensor:
        value, grad = joint.value_and_grad(u)
        ctx.save_for_backward(u, grad)
        ctx.joint = joint
        return value

    @staticmethod
    def backward(ctx: _DensityContext, cotangent: Tensor) -> tuple[Tensor, None]:
        u, grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            (grad,) = torch.autograd.grad(ctx.joint.uncaptured(u).sum(), u, create_graph=True)
        return cotangent[:, None] * grad, None


def _usable(value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients, -inf and 0 where one of the two is not finite."""
    usable = value.isfinite() & grad.isfinite().all(-1)
    return torch.where(usable, value, -torch.inf), torch.where(usable[:, None], grad, 0.0)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    """Gradients of the finite values ``(N,)`` at u ``(N, D)``, 0 where nothing depends on u."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    finite = value.isfinite().to(value)
    return torch.autograd.grad(value, u, finite, materialize_grads=True)[0]
