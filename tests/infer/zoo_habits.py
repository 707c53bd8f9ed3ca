"""Habits of strangers: what models do with Python, numpy and torch on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from scipy import stats
from torch import Tensor
from zoo_case import Model, built, case, gaussian, one, quadrature, real

_rng = np.random.default_rng(11)
Y = 1.3 + _rng.normal(size=6)
T = np.linspace(-1, 1, 6)
TABLE = _rng.normal(size=(5, 4)) + np.arange(4)
ONES = np.ones((6, 6))
#: y ~ N(mu, 1), mu ~ N(0, 3).
WIDE = gaussian(Y, 9 * ONES + np.eye(6))


@case(lambda: (Y,), evidence=lambda: WIDE)
def numpy_data(y: np.ndarray) -> None:
    """The data is an array of numpy; the model makes tensors of it and reads its shape."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", y.shape[0]):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.as_tensor(y).to(mu.dtype))


@case(lambda: (Y.tolist(),), evidence=lambda: WIDE)
def observed_numbers(y: list[float]) -> None:
    """Numbers of Python as observations, one site each."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    for i, value in enumerate(y):
        pyro.sample(f"y {i}", dist.Normal(mu, 1.0), obs=torch.tensor(value, dtype=mu.dtype))


@dataclasses.dataclass
class Experiment:
    y: Tensor
    sd: float = 1.0
    note: str = "second run"


@built(evidence=lambda: WIDE)
def dataclass_of_data() -> tuple:
    """Data, settings and a note in one object."""

    def model(experiment: Experiment, prior: dict[str, float] | None = None) -> None:
        prior = prior or {"loc": 0.0, "scale": 3.0}
        mu = pyro.sample("mu", dist.Normal(prior["loc"], prior["scale"]))
        with pyro.plate("rows", len(experiment.y)):
            pyro.sample("y", dist.Normal(mu, experiment.sd), obs=experiment.y)

    return model, (Experiment(one(Y)),), {"prior": {"loc": 0.0, "scale": 3.0}}


def _logged(model: Model) -> Model:
    @functools.wraps(model)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wrapped.calls += 1  # type: ignore[attr-defined]
        print("call", wrapped.calls)  # type: ignore[attr-defined]
        return model(*args, **kwargs)

    wrapped.calls = 0  # type: ignore[attr-defined]
    return wrapped


@built(vmap=False, evidence=lambda: WIDE)
def decorated_and_loud() -> tuple:
    """A decorator counts calls, and the model prints."""

    @_logged
    def model(y: Tensor) -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            print(f"mu = {mu}", file=out)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        return mu

    return model, (one(Y),), {}


@case(lambda: real(Y), evidence=lambda: WIDE)
def strange_names(y: Tensor) -> None:
    """Names with blanks, dots, Greek letters, and those that objects of the package have."""
    names = ["the mean", "θ", "a.b", "model", "loc", "forward", "training"]
    parts = [pyro.sample(name, dist.Normal(0.0, (9 / 7) ** 0.5)) for name in names]
    with pyro.plate("rows/all", len(y)):
        pyro.sample("y[obs]", dist.Normal(sum(parts), 1.0), obs=y)


@case(lambda: real(Y), vmap=False, evidence=lambda: WIDE)
def draws_on_the_side(y: Tensor) -> None:
    """Random numbers of torch and numpy are consumed, and change nothing."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    noise = torch.randn(3).sum() + float(np.random.randn())
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + 0 * noise, 1.0), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def without_gradients_inside(y: Tensor) -> None:
    """Constants are prepared without gradients, from the shape of a latent."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with torch.no_grad():
        ones = torch.ones_like(mu) * torch.full((len(y),), 2.0).to(mu) / 2
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu * ones, 1.0), obs=y)


@case(lambda: real(Y), vmap=False, evidence=lambda: WIDE)
def changed_in_place(y: Tensor) -> None:
    """Tensors are written to, scaled and clamped in place."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    loc = torch.empty(len(y), dtype=y.dtype)
    loc[:3] = mu
    loc[3:].fill_(0.0)
    loc[3:] += mu
    loc.mul_(2.0).div_(2.0).clamp_(-1e6, 1e6)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def double_latent(y: Tensor) -> None:
    """A latent in double precision beside data in the default's."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=torch.double), 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(lambda: real(Y, T), evidence=lambda: gaussian(Y, 4 * ONES + np.outer(T, T) + np.eye(6)))
def mixed_precision(y: Tensor, t: Tensor) -> None:
    """One latent in double and one in single precision."""
    a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.double), 2.0))
    b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a + b * t.double(), 1.0), obs=y.double())


@case(evidence=lambda: 0.0)
def prior_only() -> None:
    """No data at all."""
    a = pyro.sample("a", dist.Normal(1.0, 2.0))
    with pyro.plate("three", 3):
        pyro.sample("b", dist.Normal(a, 0.5))


@case(lambda: real(Y), evidence=lambda: WIDE)
def empty_latent(y: Tensor) -> None:
    """No covariates: a vector of coefficients without entries."""
    X = torch.zeros(len(y), 0, dtype=y.dtype)
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(0, dtype=y.dtype), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + X @ b, 1.0), obs=y)


@case(lambda: (one(Y), None, True), evidence=lambda: WIDE)
def latents_in_a_loop(y: Tensor, weights: Any, intercept: bool) -> None:
    """Latents with f-string names collected in a list, arguments None and True."""
    levels = [pyro.sample(f"level[{k}]", dist.Normal(0.0, (9 / 12) ** 0.5)) for k in range(12)]
    mu = torch.stack(levels).sum() * int(intercept)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class _Scaled(PyroModule):
    def __init__(self, sd: float) -> None:
        super().__init__()
        self.register_buffer("sd", one(sd))
        self.weight = PyroSample(dist.Normal(one(0.0), 1.0))

    def forward(self, t: Tensor) -> Tensor:
        return self.sd * self.weight * t


@built(evidence=lambda: gaussian(Y, 4 * ONES + np.outer(T, T) / 4 + np.eye(6)))
def nested_modules_with_buffers() -> tuple:
    """Modules inside a ModuleDict inside a module, each with a prior and a buffer."""

    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            parts = {"level": _Scaled(2.0), "slope": _Scaled(0.5)}
            self.parts = PyroModule[torch.nn.ModuleDict](parts)

        def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
            mean = self.parts["level"](torch.ones_like(t)) + self.parts["slope"](t)
            with pyro.plate("rows", len(t)):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
            return mean

    return Net(), real(T), {"y": one(Y)}


@built(evidence=lambda: WIDE)
def plates_made_outside() -> tuple:
    """Plates are objects that the model uses again and again."""
    rows, three = pyro.plate("rows", 6, dim=-1), pyro.plate("three", 3, dim=-2)

    def model(y: Tensor) -> None:
        with three:
            parts = pyro.sample("parts", dist.Normal(0.0, 3**0.5))
        with rows:
            pyro.sample("y", dist.Normal(parts.sum(), 1.0), obs=y)

    return model, (one(Y),), {}


@case(lambda: real(Y))
def scripted_function(y: Tensor) -> None:
    """A function compiled by torch.jit in the middle."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(_bent(a, b), 1.0), obs=y)


@torch.jit.script
def _bent(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * 2 + b * b


def _choice() -> float:
    def log_density(mu: np.ndarray) -> np.ndarray:
        sd = np.where(mu > 1.5, 2.0, 1.0)[..., None]
        return stats.norm.logpdf(Y, mu[..., None], sd).sum(-1) + stats.norm.logpdf(mu, 0, 3)

    grid = np.r_[np.linspace(-5, 1.5, 2001), np.linspace(1.5 + 1e-9, 8, 2001)]
    return quadrature(log_density, grid)


@case(lambda: real(Y), vmap=False, evidence=_choice)
def branch_on_a_latent(y: Tensor) -> None:
    """The noise is another where the mean is large, by an `if`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    sd = 2.0 if mu > 1.5 else 1.0
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)
