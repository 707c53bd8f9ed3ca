"""Pairs of model and guide, all in float64, for the tests of ELBOs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from models import SCHOOLS_SIGMA, SCHOOLS_Y
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from torch import Tensor

from pyro_naf import affine_autoregressive_flow, conditional_deep_sigmoidal_flow
from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from pyro_naf.transforms import deep_sigmoidal_flow

SMALL = {"hidden_dims": [4], "hidden_units": 3}
Pair = tuple[Any, Any]


def schools() -> None:
    """Latents in and out of a plate, one of them positive, and a parameter of the model."""
    width = pyro.param("width", torch.tensor(5.0), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, width))
    tau = pyro.sample("tau", dist.LogNormal(1.0, 0.5))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SCHOOLS_SIGMA.double()), obs=SCHOOLS_Y.double())


def auto(make: Callable[..., Any], **kw: Any) -> Callable[[], Pair]:
    return lambda: (schools, make(schools, **kw))


def listed() -> Pair:
    """A flow for the global latents, a normal for the local ones."""
    guide = AutoGuideList(schools)
    guide.append(AutoDSFNormal(poutine.block(schools, hide=["theta"]), **SMALL))
    guide.append(AutoNormal(poutine.block(schools, expose=["theta"])))
    return schools, guide


def point_estimate() -> Pair:
    guide = AutoGuideList(schools)
    guide.append(AutoDelta(poutine.block(schools, expose=["tau"])))
    guide.append(AutoNormal(poutine.block(schools, hide=["tau"])))
    return schools, guide


def hierarchical() -> Pair:
    """Three levels, by hand; the encoder of the last is a network."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 16))

    def guide() -> None:
        pyro.module("network", network)
        loc = pyro.param("loc", torch.tensor(0.3))
        slope = pyro.param("slope", torch.tensor(0.2))
        mu = pyro.sample("mu", dist.Normal(loc, 0.7))
        tau = pyro.sample("tau", dist.LogNormal(0.5 + slope * mu, 0.3 + 0.1 * slope))
        # (..., 1, 2) or (2,) to (..., 8)
        out = network(torch.stack(torch.broadcast_tensors(mu, tau), -1))
        loc, scale = out.reshape(*out.shape[:-2], 16).chunk(2, -1) if mu.dim() else out.chunk(2, -1)
        with pyro.plate("schools", 8):
            pyro.sample("theta", dist.Normal(loc, scale.exp()))

    return schools, guide


def vectors() -> None:
    """Two vector latents, the second of which depends on the first."""
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(a[..., :2].tanh(), 0.5).to_event(1))
    pyro.sample("y", dist.Normal(b, 0.7).to_event(1), obs=torch.tensor([0.5, -1.0]))


def flows_by_hand() -> Pair:
    """A flow, and a second one that has the first one's draw for context."""
    first = deep_sigmoidal_flow(3, **SMALL)
    second = conditional_deep_sigmoidal_flow(2, 3, **SMALL)

    def guide() -> None:
        pyro.module("first", first)
        pyro.module("second", second)
        scale = pyro.param("scale", 0.5 * torch.ones(3), constraint=dist.constraints.positive)
        # Without a cache the flow would not know its own samples behind the affine map.
        affine = dist.transforms.AffineTransform(torch.ones(3), scale, event_dim=1, cache_size=1)
        transforms = [first, affine]
        normal = dist.Normal(torch.zeros(3), 2.0).to_event(1)
        a = pyro.sample("a", dist.TransformedDistribution(normal, transforms))
        normal = dist.Normal(a[..., 1:], 1.0).to_event(1)
        transforms = [second.condition(a), dist.transforms.TanhTransform(cache_size=1)]
        pyro.sample("b", dist.TransformedDistribution(normal, transforms))

    return vectors, guide


def subsampled() -> Pair:
    """An amortised guide for 5 of 20 data, some of them masked, with a global latent."""
    data = torch.randn(20, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Linear(1, 2)

    def model() -> None:
        noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5) as index, poutine.mask(mask=index % 3 > 0):
            x = pyro.sample("x", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(x, noise), obs=data[index])

    def guide() -> None:
        pyro.module("network", network)
        loc = pyro.param("loc", torch.tensor(0.1))
        mean = pyro.sample("mean", dist.Normal(loc, 0.3))
        with pyro.plate("data", 20, subsample_size=5) as index, poutine.mask(mask=index % 3 > 0):
            loc, scale = network(data[index, None]).unbind(-1)
            pyro.sample("x", dist.Normal(loc + mean, scale.exp()))

    return model, guide


#: Builders of a model and a guide that does not fit it.
PAIRS = {
    "AutoNormal": auto(AutoNormal),
    "AutoDiagonalNormal": auto(AutoDiagonalNormal),
    "AutoMultivariateNormal": auto(AutoMultivariateNormal),
    "AutoLowRankMultivariateNormal": auto(AutoLowRankMultivariateNormal),
    "AutoIAFNormal": auto(AutoIAFNormal, hidden_dim=[11]),
    "AutoDSFNormal": auto(AutoDSFNormal, **SMALL),
    "AutoDDSFNormal-full-rank": auto(AutoDDSFNormal, full_rank=True, **SMALL),
    "AutoFlowNormal": lambda: (schools, AutoFlowNormal(schools, affine_autoregressive_flow)),
    "AutoGuideList": listed,
    "point-estimate": point_estimate,
    "hierarchical": hierarchical,
    "flows-by-hand": flows_by_hand,
    "subsampled": subsampled,
}
WITH_FLOWS = ["AutoDSFNormal", "AutoDDSFNormal-full-rank", "AutoGuideList", "flows-by-hand"]


# Guides that are their model, except that their parameters are trained.


def mean_field() -> Pair:
    mean = torch.tensor([1.0, -1.0, 0.5])

    def model() -> None:
        pyro.sample("x", dist.Normal(mean, 2.0).to_event(1))
        pyro.sample("s", dist.LogNormal(0.5, 0.3))

    guide = AutoNormal(model)
    guide()
    with torch.no_grad():
        guide.locs.x.copy_(mean)
        guide.locs.s.fill_(0.5)
    guide.scales.x, guide.scales.s = torch.full((3,), 2.0), torch.tensor(0.3)
    return model, guide


def full_rank() -> Pair:
    mean, factor = torch.tensor([1.0, -1.0, 0.5]), torch.eye(3) + 0.4 * torch.ones(3, 3).tril(-1)

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=factor))

    guide = AutoMultivariateNormal(model)
    guide()
    with torch.no_grad():
        guide.loc.copy_(mean)
    guide.scale, guide.scale_tril = torch.ones(3), factor
    return model, guide


def messenger() -> Pair:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(1.0, 0.5))
        pyro.sample("b", dist.Normal(a, 1.0))

    class Guide(AutoNormalMessenger):
        def get_posterior(self, name: str, prior: Any) -> Any:
            bias = pyro.param(f"{name}_bias", torch.tensor(0.0))
            slope = pyro.param(f"{name}_slope", torch.tensor(1.0))
            return dist.Normal(slope * prior.loc + bias, prior.scale)

    return model, Guide(model)


def chain() -> Pair:
    def program(param: Callable[[str, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            loc, slope = param("loc", torch.tensor(0.3)), param("slope", torch.tensor(0.2))
            a = pyro.sample("a", dist.Normal(loc, 1.0))
            b = pyro.sample("b", dist.Normal(slope * a, 0.7 + slope))
            with pyro.plate("plate", 3):
                pyro.sample("c", dist.Normal(a * slope + b.sin(), 1.0))

        return run

    return program(lambda name, value: value), program(pyro.param)


def autoflow() -> Pair:
    def prior() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    guide = AutoDSFNormal(prior, full_rank=True, **SMALL)
    guide()
    target = copy.deepcopy(shaken(guide))

    def model() -> None:
        pyro.sample("z", target.get_posterior())

    return model, guide


def flow_chain() -> Pair:
    def program(modules: Any) -> Callable[[], None]:
        first, second = modules

        def run() -> None:
            normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
            a = pyro.sample("a", dist.TransformedDistribution(normal, [first]))
            normal = dist.Normal(a[..., 1:], 1.0).to_event(1)
            pyro.sample("b", dist.TransformedDistribution(normal, [second.condition(a)]))

        return run

    flows = [deep_sigmoidal_flow(3, **SMALL), conditional_deep_sigmoidal_flow(2, 3, **SMALL)]
    modules = shaken(torch.nn.ModuleList(flows))
    run = program(modules)

    def guide() -> None:
        pyro.module("flows", modules)
        run()

    return program(copy.deepcopy(modules)), guide


def shaken(module: Any) -> Any:
    """The module with other weights: a flow starts near the identity."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return module


MATCHED = {f.__name__: f for f in (mean_field, full_rank, messenger, chain, autoflow, flow_chain)}
