"""What Pyro and Python let a model be: handlers, reparametrisations, parameters, control flow."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.distributions import constraints
from pyro.infer.reparam import AutoReparam, LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy import stats
from torch import Tensor, nn
from zoo_case import built, case, gaussian, one, quadrature, real

Y = np.array([0.8, 1.9, 0.3, 1.4, 2.2, -0.1])
ONES = np.ones((6, 6))
WIDE = gaussian(Y, ONES + np.eye(6))  # mu ~ N(0, 1), y ~ N(mu, 1)
LINE = np.linspace(-8, 8, 801)


def _mean(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(
    lambda: real(Y),
    evidence=lambda: quadrature(
        lambda m: stats.norm.logpdf(m) + 3 * stats.norm.logpdf(Y[:, None], m).sum(0), LINE
    ),
)
def scaled(y: Tensor) -> None:
    """Each row counts three times."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.scale(scale=3.0):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@built(
    evidence=lambda: quadrature(
        lambda m: 0.5 * stats.norm.logpdf(m) + 0.5 * stats.norm.logpdf(Y[:, None], m).sum(0), LINE
    )
)
def scaled_outside() -> tuple:
    """The whole model tempered from without, its prior too."""
    return poutine.scale(_mean, scale=0.5), real(Y), {}


@case(
    lambda: (*real(Y), torch.tensor(Y > 0.5)),
    evidence=lambda: gaussian(Y[Y > 0.5], 1 + np.eye((Y > 0.5).sum())),
)
def masked(y: Tensor, seen: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(
    lambda: (*real(Y), torch.tensor(Y > 0.5)),
    evidence=lambda: gaussian(Y[Y > 0.5], 1 + np.eye((Y > 0.5).sum())),
)
def masked_distribution(y: Tensor, seen: Tensor) -> None:
    """The mask on the distribution, to_event after it."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).mask(seen).to_event(1), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def factors_only(y: Tensor) -> None:
    """A flat prior over a wide interval, and everything else in pyro.factor."""
    mu = pyro.sample("mu", dist.Uniform(-50.0, 50.0))
    prior = dist.Normal(0.0, 1.0).log_prob(mu) + torch.tensor(100.0).log()
    pyro.factor("joint", prior + dist.Normal(mu, 1.0).log_prob(y).sum())


@built(evidence=lambda: WIDE)
def deterministic_blocked() -> tuple:
    """Deterministic parts that nobody wants to see."""

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        mu = pyro.deterministic("mu", z / 2)
        pyro.deterministic("square", mu**2)
        pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).to_event(1), obs=y)

    return poutine.block(model, hide=["mu", "square"]), real(Y), {}


@case(lambda: real(Y), evidence=lambda: gaussian(Y, 4 * ONES + 0.25 * np.eye(6), 1.0))
def parameters(y: Tensor) -> None:
    """pyro.param in the model: NUTS takes them as they are."""
    loc = pyro.param("loc", torch.tensor(1.0))
    width = pyro.param("width", torch.tensor(2.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(loc, width))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 0.5), obs=y)


@built()
def registered_module() -> tuple:
    """A decoder of fixed weights by pyro.module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        decoder = nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 6))

    def model(y: Tensor) -> None:
        pyro.module("decoder", decoder)
        z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
        pyro.sample("y", dist.Normal(decoder(z), 0.5).to_event(1), obs=y)

    return model, real(Y), {}


@built(evidence=lambda: gaussian(Y, 9 * ONES + np.eye(6)))
def module_with_parameters() -> tuple:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.width = PyroParam(torch.tensor(3.0), constraint=constraints.positive)
            self.register_buffer("noise", torch.tensor(1.0))

        def forward(self, y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, self.width))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(mu, self.noise), obs=y)

    return Model(), real(Y), {}


@built(evidence=lambda: gaussian(Y, 4 * ONES + np.eye(6), 1.0))
def lifted() -> tuple:
    """A parameter made a latent by poutine.lift."""

    def model(y: Tensor) -> None:
        mu = pyro.param("mu", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return poutine.lift(model, prior={"mu": dist.Normal(one(1.0), 2.0)}), real(Y), {}


def _dependent_prior() -> float:
    def log_density(scale: np.ndarray) -> np.ndarray:
        covariance = scale[..., None, None] ** 2 * ONES + np.eye(6)
        return gaussian(Y, covariance) + stats.expon.logpdf(scale)

    return quadrature(log_density, np.linspace(0, 40, 2001))


@built(evidence=_dependent_prior)
def module_with_dependent_prior() -> tuple:
    """A PyroSample whose prior is a function of another."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroSample(dist.Exponential(1.0))
            self.mu = PyroSample(lambda self: dist.Normal(0.0, self.scale))

        def forward(self, y: Tensor) -> None:
            mu = self.mu
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return Model(), real(Y), {}


def _generative() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.Gamma(2.0, 2.0))
    with pyro.plate("rows", 6):
        pyro.sample("y", dist.Normal(mu, sigma))


@built(
    evidence=lambda: quadrature(
        lambda m, s: (
            stats.norm.logpdf(m)
            + stats.gamma.logpdf(s, 2, scale=0.5)
            + sum(stats.norm.logpdf(y, m, s) for y in Y)
        ),
        LINE,
        np.geomspace(0.1, 10, 401),
    )
)
def conditioned() -> tuple:
    """A generative model without data, which pyro.condition brings."""
    return pyro.condition(_generative, data={"y": one(Y)}), (), {}


@built(evidence=lambda: gaussian(Y, ONES + 0.25 * np.eye(6)))
def intervened() -> tuple:
    """pyro.do fixes the noise, and its prior counts no more."""
    model = pyro.condition(_generative, data={"y": one(Y)})
    return pyro.do(model, data={"sigma": one(0.5)}), (), {}


def _centred(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pyro.plate("rows", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def _centred_evidence() -> float:
    def log_density(tau: np.ndarray) -> np.ndarray:
        covariance = ONES + (1 + tau[..., None, None] ** 2) * np.eye(6)
        return gaussian(Y, covariance) + stats.lognorm.logpdf(tau, 0.5)

    return quadrature(log_density, np.geomspace(0.05, 20, 300))


@built(evidence=_centred_evidence)
def decentred() -> tuple:
    return poutine.reparam(_centred, config={"theta": LocScaleReparam(0.0)}), real(Y), {}


@built(evidence=_centred_evidence)
def half_centred() -> tuple:
    return poutine.reparam(_centred, config={"theta": LocScaleReparam(0.5)}), real(Y), {}


@built(evidence=_centred_evidence)
def reparametrised_by_strategy() -> tuple:
    return poutine.reparam(_centred, config=AutoReparam(centered=0.0)), real(Y), {}


@built(evidence=_centred_evidence)
def transform_reparam() -> tuple:
    """A transformed prior within a plate, its base the latent."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
        with pyro.plate("rows", len(y)), poutine.reparam(config={"theta": TransformReparam()}):
            base = dist.Normal(0.0, 1.0).expand([len(y)])
            move = T.AffineTransform(mu, tau)
            theta = pyro.sample("theta", dist.TransformedDistribution(base, move))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    return model, real(Y), {}


@built(evidence=_centred_evidence)
def infer_config() -> tuple:
    """Notes for inference that only some guides read."""
    return (
        poutine.infer_config(_centred, config_fn=lambda site: {"is_auxiliary": False}),
        real(Y),
        {},
    )


class Worker:
    """Keeps its data, and is a model by its call and by a method."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __call__(self) -> None:
        _mean(self.y)

    def likelihood(self, sd: float) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, sd).expand([len(self.y)]).to_event(1), obs=self.y)


@built(evidence=lambda: WIDE)
def object_with_call() -> tuple:
    return Worker(one(Y)), (), {}


@built(evidence=lambda: gaussian(Y, ONES + 4 * np.eye(6)))
def bound_method() -> tuple:
    return Worker(one(Y)).likelihood, (2.0,), {}


def _options(y: Tensor, *, sd: float = 1.0, seed: int = 0, flow: bool = True) -> None:
    mu = pyro.sample("mu", dist.Normal(float(seed), 1.0 if flow else 2.0))
    pyro.sample("y", dist.Normal(mu, sd).expand(y.shape).to_event(1), obs=y)


@built(evidence=lambda: gaussian(Y, ONES + 4 * np.eye(6), 1.0))
def partial_application() -> tuple:
    """Arguments whose names are options of this package's too, bound beforehand."""
    return partial(_options, sd=2.0, seed=1), real(Y), {}


@built(evidence=lambda: gaussian(Y, ONES + 4 * np.eye(6)))
def anonymous() -> tuple:
    return lambda y: _options(y, sd=2.0), real(Y), {}


@built(evidence=lambda: gaussian(Y, ONES + 0.49 * np.eye(6)))
def keywords_only() -> tuple:
    def model(*, response: Tensor, noise: float) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(response)):
            pyro.sample("y", dist.Normal(mu, noise), obs=response)

    return model, (), {"response": one(Y), "noise": 0.7}


@built(evidence=lambda: WIDE)
def frame_of_columns() -> tuple:
    """One argument, a dict that holds data and more."""

    def model(frame: dict) -> dict:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i, value in enumerate(frame["y"]):
            pyro.sample(f"y/{i}", dist.Normal(mu, 1.0), obs=torch.as_tensor(value))
        return {"mu": mu, "name": frame["name"]}

    return model, ({"y": one(Y), "name": "table"},), {}


def _branches() -> float:
    slope = np.where(LINE > 0, 2.0, 1.0)
    logs = stats.norm.logpdf(LINE, 0, 2) + stats.norm.logpdf(Y[:, None], slope * LINE).sum(0)
    return quadrature(lambda _: logs, LINE)


@case(lambda: real(Y), vmap=False, evidence=_branches)
def control_flow(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    slope = 2.0 if a > 0 else 1.0
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * a, 1.0), obs=y)


@case(lambda: real(Y), vmap=False, evidence=_branches)
def reads_an_item(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    slope = 1 + float(a.item() > 0)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * a, 1.0), obs=y)


@case(lambda: real(Y), vmap=False, evidence=lambda: WIDE)
def goes_through_numpy(y: Tensor) -> None:
    """A check in NumPy of what has been drawn, as people write while they debug."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    assert np.isfinite(mu.detach().numpy()).all()
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(
    lambda: real(Y),
    evidence=lambda: quadrature(
        lambda m: (
            stats.norm.logpdf(m)
            + np.where(m > 0, 0, -np.inf)
            + stats.norm.logpdf(Y[:, None], m).sum(0)
        ),
        np.linspace(0, 8, 4001)[1:],
    ),
)
def impossible_half(y: Tensor) -> None:
    """-inf from a factor where a constraint is broken."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    allowed = torch.where(mu > 0, torch.zeros(()), torch.tensor(-float("inf")))
    pyro.factor("allowed", allowed)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def no_plate_no_event(y: Tensor) -> None:
    """Batch axes that no plate declares; NUTS does not mind."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), torch.ones(1)))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(
    lambda: real(Y),
    evidence=lambda: gaussian(Y, 4 * np.eye(6) + np.kron(np.eye(3), np.ones((2, 2)))),
)
def expanded_by_plate(y: Tensor) -> None:
    """A plate that expands its sites by itself, beside expand_by and a view."""
    with pyro.plate("pairs", 3):
        pair = pyro.sample("pair", dist.Normal(0.0, 1.0))
    own = pyro.sample("own", dist.Normal(0.0, 3.0**0.5).expand_by([6]).to_event(1))
    mean = own.view(3, 2) + pair.unsqueeze(-1)
    pyro.sample("y", dist.Normal(mean.reshape(-1), 1.0).to_event(1), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def priors_in_a_dict(y: Tensor) -> None:
    """Priors kept in a dict and sampled in a loop, one of them without data."""
    priors = {
        "mu": dist.Normal(0.0, 1.0),
        "spare": dist.Gamma(2.0, 1.0),
        "angle": dist.Dirichlet(torch.ones(3)),
    }
    z = {name: pyro.sample(name, prior) for name, prior in priors.items()}
    noise = torch.ones(()) if y is not None else z["spare"]
    pyro.sample("y", dist.Normal(z["mu"], noise).expand(y.shape).to_event(1), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def fixed_by_delta(y: Tensor) -> None:
    """An observed Delta, and observations that are latent values of another site."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("copy", dist.Delta(mu), obs=mu)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def scoped_prior(y: Tensor) -> None:
    """A prior in a function of its own, whose names get a prefix from autoname's scope."""

    @scope(prefix="inner")
    def prior() -> Tensor:
        return pyro.sample("mu", dist.Normal(0.0, 1.0))

    mu = prior()
    with pyro.plate("rows", len(y)) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


@case(
    lambda: (*real(Y), torch.ones(6, dtype=torch.bool)),
    evidence=lambda: gaussian(Y, ONES + 0.25 * np.eye(6)),
)
def subsample_of_all(y: Tensor, keep: Tensor) -> None:
    """A plate whose subsample is the whole, by its size."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=len(y)) as rows:
        batch = y.index_select(0, rows)
        with poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(mu, 0.5), obs=batch)
