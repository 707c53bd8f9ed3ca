"""Posteriors that guides are measured on: twelve of posteriordb, and seven with known evidence.

All are in float64 and vectorised over leading dimensions; no plate is needed, as every site of
more than one number is one event.

References:

1. Magnusson et al., posteriordb: a set of posteriors for Bayesian inference.
   https://github.com/stan-dev/posteriordb
2. Radford M. Neal (2003), Slice sampling (the funnel). Annals of Statistics 31(3), 705-767.
3. Danilo Rezende and Shakir Mohamed (2015), Variational inference with normalizing flows (the
   ring). [arXiv:1505.05770]
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

Sites = Mapping[str, Tensor]


def real(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.double)


def normal(loc: Any, scale: Any) -> dist.Normal:
    return dist.Normal(real(loc), real(scale))


def concatenated(sites: Sites) -> Tensor:
    """The sites in their order, side by side: (n, ...) each to (n, D)."""
    return torch.cat([value.reshape(len(value), -1) for value in sites.values()], -1)


def split(columns: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Inverse of :func:`concatenated`; a site of size 0 is a scalar."""
    parts = columns.split([max(size, 1) for size in sizes.values()], -1)
    return {
        name: part if size else part[..., 0]
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }


@dataclass(frozen=True)
class Target:
    """A posterior with exact or reference draws.

    :ivar sizes: the sites and their lengths, 0 for a scalar.
    :ivar names: D names, of the columns of its draws.
    :ivar sample: n to as many draws ``(n, D)``, at most 10,000 where they are reference draws.
    :ivar log_evidence: of the model as it stands, None where it is not known.
    :ivar modes: draws ``(n, D)`` to the number of the mode that each belongs to ``(n,)``.
    :ivar num_modes: 1 where there is one or it is not known.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    sizes: dict[str, int]
    names: tuple[str, ...]
    sample: Callable[[int], Tensor]
    log_evidence: float | None = None
    modes: Callable[[Tensor], Tensor] | None = None
    num_modes: int = 1
    columns_of: Callable[[dict[str, Tensor]], Tensor] | None = None
    sites_of: Callable[[Tensor], dict[str, Tensor]] | None = None

    def columns(self, sites: Sites) -> Tensor:
        """Sites, (n, ...) each, to a matrix ``(n, D)`` with columns as in ``names``."""
        ordered = {name: sites[name] for name in self.sizes}
        return self.columns_of(ordered) if self.columns_of else concatenated(ordered)

    def sites(self, columns: Tensor) -> dict[str, Tensor]:
        """Inverse of :meth:`columns`."""
        return self.sites_of(columns) if self.sites_of else split(columns, self.sizes)

    @property
    def multimodal(self) -> bool:
        return self.num_modes > 1

    def mode_masses(self, columns: Tensor) -> Tensor:
        """Fraction of the draws in each mode ``(num_modes,)``."""
        if self.modes is None:
            return columns.new_ones(1)
        return self.modes(columns).bincount(minlength=self.num_modes) / len(columns)


class Parameter(dist.TorchDistribution):
    """A parameter as Stan declares it: a support, and a density there that is not renormalised.

    :param prior: flat where None.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        support: Any,
        size: int = 0,
        prior: dist.TorchDistribution | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        event = [size] if size else []
        self._arguments = (support, size, prior)
        self._support = constraints.independent(support, len(event) - support.event_dim)
        super().__init__(batch_shape, torch.Size(event), validate_args=False)

    @property
    def support(self) -> Any:
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Parameter:
        return Parameter(*self._arguments, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        prior = self._arguments[-1]
        if prior is None:
            return value.new_zeros(value.shape[: value.dim() - self.event_dim])
        log_prob = prior.log_prob(value)
        return log_prob.sum(-1) if self.event_dim > prior.event_dim else log_prob

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """A standard normal in unconstrained space: only to start from."""
        to_support = biject_to(self.support)
        shape = to_support.inverse_shape(self.shape(torch.Size(sample_shape)))
        return to_support(torch.randn(shape, dtype=torch.double))


def parameter(
    name: str, support: Any = constraints.real, size: int = 0, prior: Any = None
) -> Tensor:
    return pyro.sample(name, Parameter(support, size, prior))


# The models of posteriordb, in Stan's names.

Data = Mapping[str, Tensor]
_positive = constraints.positive


def eight_schools_centered(data: Data) -> None:
    mu = parameter("mu", prior=normal(0, 5))
    tau = parameter("tau", _positive, prior=dist.Cauchy(real(0), real(5)))
    # Expanded by adding, as mu has the shape of all leading dimensions.
    loc = mu[..., None] + torch.zeros_like(data["y"])
    theta = pyro.sample("theta", dist.Normal(loc, tau[..., None]).to_event(1))
    pyro.sample("y", dist.Normal(theta, data["sigma"]).to_event(1), obs=data["y"])


def eight_schools_noncentered(data: Data) -> None:
    mu = parameter("mu", prior=normal(0, 5))
    tau = parameter("tau", _positive, prior=dist.Cauchy(real(0), real(5)))
    theta_trans = parameter("theta_trans", size=len(data["y"]), prior=normal(0, 1))
    theta = mu[..., None] + tau[..., None] * theta_trans
    pyro.sample("y", dist.Normal(theta, data["sigma"]).to_event(1), obs=data["y"])


def gp_cholesky(x: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    """The factor (..., N, N) of a squared-exponential covariance, with Stan's jitter."""
    squared = ((x[:, None] - x) / rho[..., None, None]).square()
    covariance = alpha[..., None, None].square() * torch.exp(-0.5 * squared)
    return torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(x), dtype=x.dtype))


def gp_pois_regr(data: Data) -> None:
    rho = pyro.sample("rho", dist.Gamma(real(25), real(4)))
    alpha = parameter("alpha", _positive, prior=normal(0, 2))
    f_tilde = parameter("f_tilde", size=len(data["x"]), prior=normal(0, 1))
    f = (gp_cholesky(data["x"], rho, alpha) @ f_tilde[..., None])[..., 0]
    pyro.sample("k", dist.Poisson(f.exp()).to_event(1), obs=data["k"])


def hmm_example(data: Data) -> None:
    theta = [parameter(f"theta{k}", constraints.simplex, 2) for k in (1, 2)]
    mu = parameter("mu", constraints.ordered_vector, 2, normal([3, 10], 1))
    emission = dist.Normal(mu[..., None, :], real(1)).log_prob(data["y"][:, None])
    pyro.factor("forward", hmm_log_prob(torch.stack(theta, -2).log(), emission))


def hmm_drive_1(data: Data) -> None:
    theta = [
        parameter(f"theta{k}", constraints.simplex, 2, dist.Dirichlet(data["alpha"][k - 1]))
        for k in (1, 2)
    ]
    phi = parameter("phi", constraints.ordered_vector, 2, normal([0, 3], 1))
    lambda_ = parameter("lambda", constraints.ordered_vector, 2, normal([0, 3], 1))
    emission = dist.Normal(phi[..., None, :], data["tau"]).log_prob(data["u"][:, None])
    emission = emission + dist.Normal(lambda_[..., None, :], data["rho"]).log_prob(
        data["v"][:, None]
    )
    pyro.factor("forward", hmm_log_prob(torch.stack(theta, -2).log(), emission))


def hmm_log_prob(log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """The forward algorithm, halving the chain; both states weigh one at the start, as in Stan.

    :param log_transition: (..., K, K), from row to column.
    :param log_emission: (..., T, K).
    """
    chain = log_transition[..., None, :, :] + log_emission[..., 1:, None, :]
    while chain.shape[-3] > 1:
        even = chain.shape[-3] // 2 * 2
        left, right = chain[..., 0:even:2, :, :], chain[..., 1:even:2, :, :]
        product = torch.logsumexp(left[..., :, :, None] + right[..., None, :, :], -2)
        chain = torch.cat([product, chain[..., even:, :, :]], -3)
    return torch.logsumexp(log_emission[..., 0, :, None] + chain[..., 0, :, :], (-2, -1))


def lotka_volterra(data: Data) -> None:
    theta = parameter("theta", _positive, 4, normal([1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05]))
    z_init = parameter("z_init", _positive, 2, dist.LogNormal(real(10).log(), real(1)))
    sigma = parameter("sigma", _positive, 2, dist.LogNormal(real(-1), real(1)))
    alpha, beta, gamma, delta = theta.unbind(-1)
    rate = torch.stack([alpha, -gamma], -1)
    coupling = torch.stack([-beta, delta], -1)

    def velocity(t: float, log_z: Tensor) -> Tensor:
        # Bounded, far above the data, so that no draw of a guide overflows.
        return rate + coupling * log_z.clamp(max=12).exp().flip(-1)

    # In logarithms, where the solution is smoother and stays positive.
    log_z = runge_kutta(velocity, z_init.log(), [0.0, *data["ts"].tolist()], substeps=4)
    log_y = torch.cat([data["y_init"][None], data["y"]]).log()
    observed = dist.Normal(log_z.movedim(0, -2), sigma[..., None, :])
    pyro.sample("log_y", observed.to_event(2), obs=log_y)


def one_comp_mm_elim_abs(data: Data) -> None:
    cauchy = dist.Cauchy(real(0), real(1))
    k_a, K_m, V_m, sigma = (
        parameter(name, _positive, prior=cauchy) for name in ("k_a", "K_m", "V_m", "sigma")
    )
    dose = data["D"] * k_a / data["V"]

    def velocity(t: float, c: Tensor) -> Tensor:
        # Where it is stiff a step may end below zero, close to the pole.
        c = c.clamp(min=0)
        return dose * torch.exp(-k_a * t) - V_m / data["V"] * c / (K_m + c)

    c = runge_kutta(velocity, torch.zeros_like(k_a), [0.0, *data["times"].tolist()], substeps=3)
    log_c = c[1:].clamp(min=1e-6).log().movedim(0, -1)
    observed = dist.LogNormal(log_c, sigma[..., None])
    pyro.sample("C_hat", observed.to_event(1), obs=data["C_hat"])


def runge_kutta(
    velocity: Callable[[float, Tensor], Tensor], start: Tensor, times: list[float], substeps: int
) -> Tensor:
    """The classical method of fourth order with as many equal steps between any two times."""
    found = [start]
    z = start
    for begin, end in itertools.pairwise(times):
        h = (end - begin) / substeps
        for i in range(substeps):
            t = begin + i * h
            k1 = velocity(t, z)
            k2 = velocity(t + h / 2, z + h / 2 * k1)
            k3 = velocity(t + h / 2, z + h / 2 * k2)
            k4 = velocity(t + h, z + h * k3)
            z = z + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        found.append(z)
    return torch.stack(found)


def linear_regression(
    x: Tensor, y: Tensor, *, beta_prior: Any = None, sigma_prior: Any = None
) -> None:
    beta = parameter("beta", size=x.shape[-1], prior=beta_prior)
    sigma = parameter("sigma", _positive, prior=sigma_prior)
    pyro.sample("y", dist.Normal(beta @ x.T, sigma[..., None]).to_event(1), obs=y)


def _kidiq(data: Data) -> tuple[Tensor, Tensor]:
    hs, iq = data["mom_hs"], data["mom_iq"]
    return torch.stack([torch.ones_like(hs), hs, iq, hs * iq], -1), data["kid_score"]


def _mesquite(data: Data) -> tuple[Tensor, Tensor]:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    weight = data["weight"]
    return torch.stack([torch.ones_like(weight), *(data[n] for n in names)], -1), weight


def _nes(data: Data) -> tuple[Tensor, Tensor]:
    ages = [(data["age_discrete"] == age).double() for age in (2, 3, 4)]
    before, after = (
        [data[n] for n in names]
        for names in (("real_ideo", "race_adj"), ("educ1", "gender", "income"))
    )
    y = data["partyid7"]
    return torch.stack([torch.ones_like(y), *before, *ages, *after], -1), y


def low_dim_gauss_mix(data: Data) -> None:
    mu = parameter("mu", constraints.ordered_vector, 2, normal(0, 2))
    sigma = parameter("sigma", _positive, 2, normal(0, 2))
    theta = pyro.sample("theta", dist.Beta(real(5), real(5)))
    weights = torch.stack([theta, 1 - theta], -1).log()[..., None, :]
    # log_prob(y) in the form (..., N, 2), with one division a component.
    z = (data["y"][:, None] - mu[..., None, :]) / sigma[..., None, :]
    log_joint = weights - sigma.log()[..., None, :] - 0.5 * (z.square() + math.log(2 * math.pi))
    pyro.factor("y", torch.logsumexp(log_joint, -1).sum(-1))


#: Model of each of posteriordb's models, and its arguments from the data.
_STAN: dict[str, tuple[Callable[..., None], Callable[[Data], tuple[Any, ...]]]] = {
    "eight_schools_centered": (eight_schools_centered, lambda data: (data,)),
    "eight_schools_noncentered": (eight_schools_noncentered, lambda data: (data,)),
    "gp_pois_regr": (gp_pois_regr, lambda data: (data,)),
    "hmm_example": (hmm_example, lambda data: (data,)),
    "hmm_drive_1": (hmm_drive_1, lambda data: (data,)),
    "lotka_volterra": (lotka_volterra, lambda data: (data,)),
    "low_dim_gauss_mix": (low_dim_gauss_mix, lambda data: (data,)),
    "one_comp_mm_elim_abs": (one_comp_mm_elim_abs, lambda data: (data,)),
    "kidscore_interaction": (
        partial(linear_regression, sigma_prior=dist.Cauchy(real(0), real(2.5))),
        _kidiq,
    ),
    "mesquite": (linear_regression, _mesquite),
    "nes": (linear_regression, _nes),
    "blr": (
        partial(linear_regression, beta_prior=normal(0, 10), sigma_prior=normal(0, 10)),
        lambda data: (data["X"], data["y"]),
    ),
}


def _schools_columns(sites: dict[str, Tensor]) -> Tensor:
    mu, tau = sites["mu"][:, None], sites["tau"][:, None]
    return torch.cat([mu + tau * sites["theta_trans"], mu, tau], -1)


def _schools_sites(columns: Tensor) -> dict[str, Tensor]:
    theta, mu, tau = columns.split([8, 1, 1], -1)
    return {"mu": mu[:, 0], "tau": tau[:, 0], "theta_trans": (theta - mu) / tau}


def _gp_columns(x: Tensor, sites: dict[str, Tensor]) -> Tensor:
    rho, alpha = sites["rho"], sites["alpha"]
    f = (gp_cholesky(x, rho, alpha) @ sites["f_tilde"][..., None])[..., 0]
    return torch.cat([rho[:, None], alpha[:, None], f], -1)


def _gp_sites(x: Tensor, columns: Tensor) -> dict[str, Tensor]:
    rho, alpha, f = columns[:, 0], columns[:, 1], columns[:, 2:, None]
    solved = torch.linalg.solve_triangular(gp_cholesky(x, rho, alpha), f, upper=False)
    return {"rho": rho, "alpha": alpha, "f_tilde": solved[..., 0]}


def posteriordb(data_dir: Path) -> dict[str, Target]:
    """The twelve posteriors by name, read from ``data_dir / "posteriordb"``."""
    folder = data_dir / "posteriordb"
    entries = json.loads((folder / "manifest.json").read_text())["posteriors"]
    return {entry["posterior"]: _of_posteriordb(folder, entry) for entry in entries}


def _of_posteriordb(folder: Path, entry: dict[str, Any]) -> Target:
    data = {k: real(v) for k, v in json.loads((folder / entry["data"]).read_text()).items()}
    stored = np.load(folder / entry["draws"])
    draws = torch.from_numpy(stored["draws"]).flatten(0, 1)
    sizes = {name: size if size > 1 else 0 for name, size in entry["dimensions"].items()}
    conversions: dict[str, Any] = {}
    if entry["model"] == "eight_schools_noncentered":
        sizes = {"mu": 0, "tau": 0, "theta_trans": 8}
        conversions = {"columns_of": _schools_columns, "sites_of": _schools_sites}
    if entry["model"] == "gp_pois_regr":
        sizes = {"rho": 0, "alpha": 0, "f_tilde": 11}
        conversions = {
            "columns_of": partial(_gp_columns, data["x"]),
            "sites_of": partial(_gp_sites, data["x"]),
        }
    model, arguments = _STAN[entry["model"]]
    return Target(
        name=entry["posterior"],
        model=model,
        args=arguments(data),
        sizes=sizes,
        names=tuple(stored["names"].tolist()),
        sample=partial(evenly, draws),
        **conversions,
    )


def evenly(draws: Tensor, n: int) -> Tensor:
    """n of the draws, evenly spaced, so that all chains have their share."""
    if n > len(draws):
        raise ValueError(f"there are {len(draws)} reference draws, not {n}")
    return draws[torch.arange(n) * len(draws) // n]


# Targets whose evidence and exact draws are known.


def funnel() -> None:
    """Neal's funnel: v ~ N(0, 3), x_i ~ N(0, exp(v/2)), i = 1, ..., 9."""
    v = pyro.sample("v", normal(0, 3))
    scale = torch.exp(v / 2)[..., None].expand(*v.shape, 9)
    pyro.sample("x", dist.Normal(torch.zeros_like(scale), scale).to_event(1))


def banana() -> None:
    """Two bent ridges: x_i ~ N(0, 1), y_i ~ N(x_i^2 - 1, 1/2), i = 1, 2."""
    x = pyro.sample("x", normal(torch.zeros(2), 1).to_event(1))
    pyro.sample("y", dist.Normal(x.square() - 1, real(0.5)).to_event(1))


def student_t() -> None:
    """Multivariate t in eight dimensions, 3 degrees of freedom, correlations 0.7^|i - j|."""
    i = torch.arange(8)
    factor = torch.linalg.cholesky(real(0.7) ** (i[:, None] - i).abs())
    zeros = torch.zeros(8, dtype=torch.double)
    pyro.sample("x", dist.MultivariateStudentT(real(3), zeros, factor))


def mixture(name: str, weights: Tensor, centres: Tensor, scale: float) -> Target:
    """Spherical Gaussians at ``centres`` (K, D)."""
    components = dist.Normal(centres, real(scale)).to_event(1)
    density = dist.MixtureSameFamily(dist.Categorical(weights), components)
    count, dim = centres.shape
    return Target(
        name,
        # The mixture's own support is of a kind that no autoguide knows.
        partial(parameter, "x", size=dim, prior=density),
        (),
        {"x": dim},
        _column_names({"x": dim}),
        lambda n: density.sample((n,)),
        log_evidence=0.0,
        modes=lambda columns: torch.cdist(columns, centres).argmin(-1),
        num_modes=count,
    )


def ring_log_density(x: Tensor) -> Tensor:
    """Rezende and Mohamed's first potential, not normalised: radius 2 +- 0.4, ends at x_1 = +-2."""
    radius = x.norm(dim=-1)
    ends = torch.stack([(x[..., 0] - 2) / 0.6, (x[..., 0] + 2) / 0.6], -1)
    return torch.logsumexp(-0.5 * ends.square(), -1) - 0.5 * ((radius - 2) / 0.4).square()


def ring() -> None:
    pyro.factor("density", ring_log_density(parameter("x", size=2)))


def ring_log_evidence() -> float:
    axis = torch.linspace(-8, 8, 1601, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    return float(ring_log_density(grid).logsumexp(0)) + 2 * math.log(axis[1] - axis[0])


def ring_sample(n: int) -> Tensor:
    """By rejection in polar coordinates; radii beyond 5.2 (8 sd) do not come up."""
    accepted: list[Tensor] = []
    while sum(map(len, accepted)) < n:
        radius = 2 + 0.4 * torch.randn(4 * n, dtype=torch.double)
        angle = 2 * math.pi * torch.rand(4 * n, dtype=torch.double)
        x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
        ends = ring_log_density(x) + 0.5 * ((radius - 2) / 0.4).square()
        keep = torch.rand(4 * n, dtype=torch.double) < radius / 5.2 * ends.exp()
        accepted.append(x[keep])
    return torch.cat(accepted)[:n]


#: Times and noisy values of a sine wave of frequency 1.3. The times are almost whole numbers, so
#: that the frequencies 0.3, 2.3 and 3.3 fit almost as well.
_TIMES = real([1.03, 1.97, 3.015, 3.985, 5.03, 5.97, 7.021, 7.991])
_VALUES = real([1.0, -0.67, -0.42, 1.15, -0.42, -0.97, 0.6, 0.92])
_NOISE = 0.5
_TOP = 4.0


def sine_log_likelihood(f: Tensor) -> Tensor:
    wave = torch.sin(2 * math.pi * f[..., None] * _TIMES)
    return dist.Normal(wave, real(_NOISE)).log_prob(_VALUES).sum(-1)


def sine() -> None:
    """y_t = sin(2 pi f t) + noise, with the frequency f uniform on (0, 4)."""
    f = pyro.sample("f", dist.Uniform(real(0), real(_TOP)))
    pyro.factor("y", sine_log_likelihood(f))


def _sine_grid() -> tuple[Tensor, Tensor]:
    """Midpoints of a grid, and the logarithm of the prior mass times the likelihood there."""
    cells = 2**16
    f = (torch.arange(cells, dtype=torch.double) + 0.5) * _TOP / cells
    return f, sine_log_likelihood(f) - math.log(cells)


def sine_sample(n: int) -> Tensor:
    """By the inverse of the distribution function on the grid, uniform within a cell."""
    f, log_mass = _sine_grid()
    cdf = log_mass.softmax(0).cumsum(0)
    cell = torch.searchsorted(cdf, torch.rand(n, dtype=torch.double)).clamp(max=len(f) - 1)
    within = torch.rand(n, dtype=torch.double) - 0.5
    return (f[cell] + within * (f[1] - f[0]))[:, None]


def _without_data(name: str, model: Callable[[], None], sizes: dict[str, int]) -> Target:
    """A normalised density: the model itself is the exact sampler, and the evidence is one."""

    def sample(n: int) -> Tensor:
        with pyro.poutine.block(), pyro.plate("draws", n):
            trace = pyro.poutine.trace(model).get_trace()
        return concatenated({site: trace.nodes[site]["value"] for site in sizes})

    return Target(name, model, (), sizes, _column_names(sizes), sample, log_evidence=0.0)


def _column_names(sizes: dict[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{site}[{i}]" if size else site
        for site, size in sizes.items()
        for i in range(1, max(size, 1) + 1)
    )


def known() -> dict[str, Target]:
    """Targets with exact draws and known evidence, by name."""
    axis = real([-3, 0, 3])
    nine = torch.cartesian_prod(axis, axis)
    two = torch.stack([torch.ones(20), -torch.ones(20)]).double()
    targets = [
        _without_data("funnel", funnel, {"v": 0, "x": 9}),
        _without_data("banana", banana, {"x": 2, "y": 2}),
        _without_data("student_t", student_t, {"x": 8}),
        Target(
            "ring",
            ring,
            (),
            {"x": 2},
            ("x[0]", "x[1]"),
            ring_sample,
            log_evidence=ring_log_evidence(),
            modes=lambda columns: (columns[:, 0] < 0).long(),
            num_modes=2,
        ),
        Target(
            "sine",
            sine,
            (),
            {"f": 0},
            ("f",),
            sine_sample,
            log_evidence=float(_sine_grid()[1].logsumexp(0)),
            modes=lambda columns: columns[:, 0].long().clamp(0, 3),
            num_modes=4,
        ),
        mixture("nine_gaussians", torch.full((9,), 1 / 9).double(), nine, 0.5),
        mixture("mixture_20d", real([0.4, 0.6]), two, 1.0),
    ]
    return {target.name: target for target in targets}
