"""What a model of the zoo is, how it joins the registry, and helpers for data and truths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from scipy.special import logsumexp
from torch import Tensor

Model = Callable[..., Any]
Made = tuple[Model, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model as people write it for NUTS, with its data and what is known about it."""

    make: Callable[[], Made]
    """Model, arguments and keyword arguments, in torch's default dtype at the time of the call."""
    evidence: Callable[[], float] | None = None
    """Log evidence in closed form or by quadrature, to 1e-3 or better."""
    log_joint: (
        Callable[[Model, tuple[Any, ...], dict[str, Any], dict[str, Tensor]], Tensor] | None
    ) = None
    """log p(x, z) at constrained latents z, where the trace of one draw does not give it."""
    discrete: tuple[str, ...] = ()
    """Names of the discrete latent sites, which are summed out."""
    flat: tuple[str, ...] = ()
    """Improper sites: no density (the seen half of `obs_mask`), or one that repeats for ever."""
    nuts: Callable[[], dict[str, Any]] = dict
    """Options without which Pyro's NUTS does not take the model."""
    vmap: bool = True
    """Whether `torch.vmap` can run the model for many draws at once."""
    slow: bool = False
    """Whether `log_joint` takes a second, so that quick runs leave it out."""


ZOO: dict[str, Case] = {}


def built(**known: Any) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Enter a function that builds model, arguments and keyword arguments, under its name."""

    def enter(make: Callable[[], Made]) -> Callable[[], Made]:
        if make.__name__ in ZOO:
            raise ValueError(f"the zoo has a model {make.__name__!r} already")
        log_joint = summed_out if known.get("discrete") else None
        ZOO[make.__name__] = Case(make, **{"log_joint": log_joint} | known)
        return make

    return enter


def case(data: Callable[[], tuple[Any, ...]] = tuple, **known: Any) -> Callable[[Model], Model]:
    """Enter a model, under its name; `data` makes its positional arguments."""

    def enter(model: Model) -> Model:
        def make() -> Made:
            return model, data(), {}

        make.__name__ = model.__name__
        built(**known)(make)
        return model

    return enter


def real(*values: Any) -> tuple[Tensor, ...]:
    """Tensors of torch's default dtype."""
    return tuple(
        torch.tensor(np.asarray(value, float)).to(torch.get_default_dtype()) for value in values
    )


def one(value: Any) -> Tensor:
    """One tensor of torch's default dtype."""
    return real(value)[0]


def whole(*values: Any) -> tuple[Tensor, ...]:
    """Tensors of whole numbers."""
    return tuple(torch.tensor(np.asarray(value, int)) for value in values)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def traced(model: Model, args: tuple, kwargs: dict, z: dict[str, Tensor]) -> Tensor:
    """Log-density of the model's trace at given latents, every one of which must be given."""
    trace = poutine.trace(poutine.condition(model, z)).get_trace(*args, **kwargs)
    free = set(trace.stochastic_nodes) - set(z)
    free -= {name for name in free if type(trace.nodes[name]["fn"]).__name__ == "_Subsample"}
    if free:
        raise ValueError(f"no values for the latents {sorted(free)}")
    return trace.log_prob_sum()


def summed_out(model: Model, args: tuple, kwargs: dict, z: dict[str, Tensor]) -> Tensor:
    """log of the sum of p(x, z, k) over all joint values k of the discrete latents."""
    with poutine.block():
        trace = poutine.trace(poutine.condition(model, z)).get_trace(*args, **kwargs)
    sites, choices = [], []
    for name in trace.stochastic_nodes:
        fn = trace.nodes[name]["fn"]
        if fn.has_enumerate_support:
            support = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
            every = itertools.product(support, repeat=fn.batch_shape.numel())
            sites.append(name)
            choices.append([torch.stack(values).reshape(fn.shape()) for values in every])
    logs = [
        traced(model, args, kwargs, z | dict(zip(sites, values, strict=True)))
        for values in itertools.product(*choices)
    ]
    return torch.stack(logs).logsumexp(0)


def reference_log_joint(case: Case) -> Callable[[dict[str, Tensor]], Tensor]:
    """log p(x, z) in float64 by the trace of one draw, as a function of the constrained latents."""
    with default_dtype(torch.float64):
        model, args, kwargs = case.make()

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        with default_dtype(torch.float64), pyro.get_param_store().scope():
            return (case.log_joint or traced)(model, args, kwargs, z)

    return log_joint


def quadrature(log_density: Callable[..., Any], *axes: np.ndarray) -> float:
    """log of an integral by the trapezoid rule on a grid; the density sums over the data itself."""
    mesh = np.meshgrid(*axes, indexing="ij", sparse=True)
    logs = np.broadcast_to(log_density(*mesh), tuple(len(axis) for axis in axes))
    for axis in reversed(axes):
        gaps = np.diff(axis)
        logs = logsumexp(logs + np.log((np.r_[gaps, 0] + np.r_[0, gaps]) / 2), axis=-1)
    return float(logs)


def gaussian(y: np.ndarray, covariance: np.ndarray, mean: float = 0.0) -> Any:
    """Log-density of a multivariate Gaussian, for covariances (..., n, n)."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), (y - mean)[:, None])
    logdet = np.linalg.slogdet(covariance)[1]
    return -0.5 * ((white**2).sum((-1, -2)) + logdet + len(y) * np.log(2 * np.pi))
