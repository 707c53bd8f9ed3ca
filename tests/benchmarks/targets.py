"""Posteriors with reference draws, and distributions with exact samplers and known evidence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.hmm import _sequential_logmatmulexp
from torch import Tensor
from torch.distributions import Distribution

DTYPE = torch.double
Draws = Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """A model in float64, vectorised over particles, whose posterior is known.

    :ivar columns: draws of a guide, site to ``(n, ...)``, as a matrix ``(n, D)``.
    :ivar sample: exact or reference draws ``(n, D)`` of the same parameters.
    :ivar log_evidence: where it is known.
    :ivar modes: assigns each row of a matrix of draws to one of ``num_modes``.
    """

    name: str
    model: Callable[[], Any]
    columns: Callable[[Draws], Tensor]
    sample: Callable[[int], Tensor]
    log_evidence: float | None = None
    modes: Callable[[Tensor], Tensor] | None = None
    num_modes: int = 1


def flat(size: int) -> dist.TorchDistribution:
    """A flat prior on R^size; Pyro's ImproperUniform cannot be sampled."""
    return dist.Normal(torch.zeros(size, dtype=DTYPE), 1.0).mask(False).to_event(1)


def positive_flat() -> dist.TorchDistribution:
    return dist.HalfNormal(torch.ones((), dtype=DTYPE)).mask(False)


def half_cauchy(scale: float) -> dist.TorchDistribution:
    return dist.HalfCauchy(torch.tensor(scale, dtype=DTYPE))


def normal(loc: Any, scale: Any) -> dist.Normal:
    return dist.Normal(torch.as_tensor(loc, dtype=DTYPE), scale)


def observe(name: str, law: dist.TorchDistribution, value: Tensor) -> None:
    pyro.sample(name, law.to_event(1), obs=value)


# ------------------------------------------------------------------------------- posteriordb


def eight_schools(y: Tensor, sigma: Tensor, centred: bool, **_: Any) -> None:
    mu = pyro.sample("mu", normal(0.0, 5.0))
    tau = pyro.sample("tau", half_cauchy(5.0))
    if centred:
        law = dist.Normal(mu.unsqueeze(-1).expand(*mu.shape, 8), tau.unsqueeze(-1))
        theta = pyro.sample("theta", law.to_event(1))
    else:
        raw = pyro.sample("raw", normal(torch.zeros(8), 1.0).to_event(1))
        theta = pyro.deterministic("theta", mu[..., None] + tau[..., None] * raw, event_dim=1)
    observe("y", dist.Normal(theta, sigma), y)


def gp_pois_regr(x: Tensor, k: Tensor, **_: Any) -> None:
    rho = pyro.sample("rho", dist.Gamma(torch.tensor(25.0, dtype=DTYPE), 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(torch.tensor(2.0, dtype=DTYPE)))
    raw = pyro.sample("raw", normal(torch.zeros(len(x)), 1.0).to_event(1))
    gap = (x[:, None] - x) / rho[..., None, None]
    kernel = alpha[..., None, None] ** 2 * torch.exp(-0.5 * gap**2)
    factor = torch.linalg.cholesky(kernel + 1e-10 * torch.eye(len(x), dtype=DTYPE))
    f = pyro.deterministic("f", (factor @ raw[..., None]).squeeze(-1), event_dim=1)
    observe("k", dist.Poisson(f.exp()), k)


def ordered_pair(name: str, means: tuple[float, float], first: Any) -> Tensor:
    """first < second, each normal around its mean with sd 1 before they were ordered."""
    first = pyro.sample(f"{name}_first", first)
    gap = pyro.sample(f"{name}_gap", positive_flat())
    pair = pyro.deterministic(name, torch.stack([first, first + gap], -1), event_dim=1)
    pyro.factor(f"{name}_prior", normal(torch.tensor(means), 1.0).log_prob(pair).sum(-1))
    return pair


def two_states(emission: Tensor, concentration: Tensor) -> None:
    """A hidden Markov chain summed over its states; emission log-densities are ``(..., T, 2)``."""
    rows = [pyro.sample(f"theta{i + 1}", dist.Dirichlet(concentration[i])) for i in range(2)]
    transition = torch.stack(rows, -2).log()
    steps = transition.unsqueeze(-3) + emission[..., 1:, None, :]
    through = _sequential_logmatmulexp(steps)
    pyro.factor("chain", (emission[..., 0, :, None] + through).flatten(-2).logsumexp(-1))


def hmm_example(y: Tensor, **_: Any) -> None:
    mu = ordered_pair("mu", (3.0, 10.0), positive_flat())
    emission = dist.Normal(mu.unsqueeze(-2), 1.0).log_prob(y[:, None])
    two_states(emission, torch.ones(2, 2, dtype=DTYPE))


def hmm_drive(u: Tensor, v: Tensor, alpha: Tensor, tau: float, rho: float, **_: Any) -> None:
    real = dist.Normal(torch.zeros((), dtype=DTYPE), 1.0).mask(False)
    phi, lam = (ordered_pair(name, (0.0, 3.0), real) for name in ("phi", "lambda"))
    emission = dist.Normal(phi.unsqueeze(-2), tau).log_prob(u[:, None])
    emission = emission + dist.Normal(lam.unsqueeze(-2), rho).log_prob(v[:, None])
    two_states(emission, alpha)


def runge_kutta(
    slope: Callable[[float, Tensor], Tensor], z: Tensor, start: float, times: Tensor, steps: int
) -> Tensor:
    """z at ``times`` ``(T,)``, stacked on the last axis but one, by ``steps`` steps between."""
    path, t = [], start
    for end in times.tolist():
        h = (end - t) / steps
        for _ in range(steps):
            a = slope(t, z)
            b = slope(t + h / 2, z + h / 2 * a)
            c = slope(t + h / 2, z + h / 2 * b)
            d = slope(t + h, z + h * c)
            z, t = z + h / 6 * (a + 2 * (b + c) + d), t + h
        path.append(z)
    return torch.stack(path, -2)


def lotka_volterra(ts: Tensor, y_init: Tensor, y: Tensor, steps: int = 4, **_: Any) -> None:
    loc, scale = torch.tensor([[1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05]], dtype=DTYPE)
    law = dist.Normal(loc, scale)
    theta = pyro.sample(
        "theta", dist.HalfNormal(torch.ones(4, dtype=DTYPE)).mask(False).to_event(1)
    )
    pyro.factor("theta_prior", law.log_prob(theta).sum(-1))
    start = dist.LogNormal(torch.full((2,), math.log(10), dtype=DTYPE), 1.0)
    z_init = pyro.sample("z_init", start.to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-torch.ones(2, dtype=DTYPE), 1.0).to_event(1))
    alpha, beta, gamma, delta = theta.unbind(-1)

    def slope(t: float, z: Tensor) -> Tensor:
        prey, predator = z.unbind(-1)
        growth = (alpha - beta * predator) * prey
        return torch.stack([growth, (delta * prey - gamma) * predator], -1)

    z = runge_kutta(slope, z_init, 0.0, ts, steps).clamp(min=1e-12)
    observe("y_init", dist.LogNormal(z_init.log(), sigma), y_init)
    pyro.sample("y", dist.LogNormal(z.log(), sigma.unsqueeze(-2)).to_event(2), obs=y)


def one_compartment(
    t0: float, D: float, V: float, times: Tensor, C_hat: Tensor, steps: int = 4, **_: Any
) -> None:
    names = ("k_a", "K_m", "V_m", "sigma")
    k_a, k_m, v_m, sigma = (pyro.sample(name, half_cauchy(1.0)) for name in names)

    def slope(t: float, c: Tensor) -> Tensor:
        dose = torch.exp(-k_a * t)[..., None] * D * k_a[..., None] / V if t > 0 else 0 * c
        return dose - v_m[..., None] / V * c / (k_m[..., None] + c)

    zero = torch.zeros_like(k_a)[..., None]
    c = runge_kutta(slope, zero, t0, times, steps).squeeze(-1).clamp(min=1e-12)
    observe("C_hat", dist.LogNormal(c.log(), sigma[..., None]), C_hat)


def regression(x: Tensor, y: Tensor, scale_prior: Any, beta_prior: Any = None) -> None:
    beta = pyro.sample("beta", beta_prior or flat(x.shape[-1]))
    sigma = pyro.sample("sigma", scale_prior)
    observe("y", dist.Normal(beta @ x.T, sigma[..., None]), y)


def low_dim_gauss_mix(y: Tensor, **_: Any) -> None:
    first = pyro.sample("mu_first", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0).mask(False))
    gap = pyro.sample("mu_gap", positive_flat())
    mu = pyro.deterministic("mu", torch.stack([first, first + gap], -1), event_dim=1)
    pyro.factor("mu_prior", normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0, dtype=DTYPE)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(torch.tensor(5.0, dtype=DTYPE), 5.0))
    terms = dist.Normal(mu.unsqueeze(-2), sigma.unsqueeze(-2)).log_prob(y[:, None])
    weights = torch.stack([theta, 1 - theta], -1).log()
    pyro.factor("y", (terms + weights.unsqueeze(-2)).logsumexp(-1).sum(-1))


def _design(*columns: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def _kidiq(kid_score: Tensor, mom_hs: Tensor, mom_iq: Tensor, **_: Any) -> None:
    regression(_design(mom_hs, mom_iq, mom_hs * mom_iq), kid_score, half_cauchy(2.5))


def _mesquite(weight: Tensor, **d: Any) -> None:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    regression(_design(*(d[name] for name in names)), weight, positive_flat())


def _nes(partyid7: Tensor, age_discrete: Tensor, **d: Any) -> None:
    ages = [(age_discrete == age).to(DTYPE) for age in (2, 3, 4)]
    columns = (d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"])
    regression(_design(*columns), partyid7, positive_flat())


def _sblri(X: Tensor, y: Tensor, **_: Any) -> None:
    beta = normal(torch.zeros(X.shape[-1]), 10.0).to_event(1)
    regression(X, y, dist.HalfNormal(torch.tensor(10.0, dtype=DTYPE)), beta)


MODELS: dict[str, Callable[..., None]] = {
    "eight_schools_centered": partial(eight_schools, centred=True),
    "eight_schools_noncentered": partial(eight_schools, centred=False),
    "gp_pois_regr": gp_pois_regr,
    "hmm_example": hmm_example,
    "hmm_drive_1": hmm_drive,
    "lotka_volterra": lotka_volterra,
    "kidscore_interaction": _kidiq,
    "low_dim_gauss_mix": low_dim_gauss_mix,
    "mesquite": _mesquite,
    "nes": _nes,
    "one_comp_mm_elim_abs": one_compartment,
    "blr": _sblri,
}


def posteriordb(folder: Path) -> dict[str, Target]:
    """The posteriors in ``folder / "posteriordb"``, by the name of their model."""
    folder = folder / "posteriordb"
    entries = json.loads((folder / "manifest.json").read_text())["posteriors"]
    return {entry["model"]: _posterior(folder, entry) for entry in entries}


def _posterior(folder: Path, entry: Mapping[str, Any]) -> Target:
    raw = json.loads((folder / entry["data"]).read_text())
    data = {k: torch.tensor(v, dtype=DTYPE) if isinstance(v, list) else v for k, v in raw.items()}
    stored = np.load(folder / entry["draws"])
    names = [str(name) for name in stored["names"]]
    draws = torch.from_numpy(stored["draws"]).flatten(0, 1)
    sites = list(dict.fromkeys(name.split("[")[0] for name in names))
    model = partial(MODELS[entry["model"]], **data)

    def columns(values: Draws) -> Tensor:
        return torch.cat([values[s].reshape(len(values[s]), -1) for s in sites], -1)

    def sample(n: int) -> Tensor:
        return draws[torch.randperm(len(draws))[:n]]

    return Target(entry["model"], model, columns, sample)


# ----------------------------------------------------------------------------- known evidence


def density(name: str, dim: int, log_prob: Callable[[Tensor], Tensor], **known: Any) -> Target:
    """A target on R^dim given by its log-density, with evidence ``exp(log_evidence)``."""

    def model() -> None:
        z = pyro.sample("z", flat(dim))
        pyro.factor("density", log_prob(z))

    return Target(name, model, lambda values: values["z"].reshape(-1, dim), **known)


def funnel(dim: int = 10) -> Target:
    """Neal's: v ~ N(0, 3), x_i ~ N(0, exp(v / 2))."""
    wide = dist.Normal(torch.tensor(0.0, dtype=DTYPE), 3.0)

    def log_prob(z: Tensor) -> Tensor:
        v, x = z[..., 0], z[..., 1:]
        return wide.log_prob(v) + dist.Normal(0.0, (v / 2).exp()[..., None]).log_prob(x).sum(-1)

    def sample(n: int) -> Tensor:
        v = wide.sample((n, 1))
        return torch.cat([v, torch.randn(n, dim - 1, dtype=DTYPE) * (v / 2).exp()], -1)

    return density("funnel", dim, log_prob, sample=sample, log_evidence=0.0)


def banana() -> Target:
    """Twice x ~ N(0, 1), y ~ N(x^2, 0.3)."""

    def log_prob(z: Tensor) -> Tensor:
        x, y = z[..., ::2], z[..., 1::2]
        return (dist.Normal(0.0, 1.0).log_prob(x) + dist.Normal(x**2, 0.3).log_prob(y)).sum(-1)

    def sample(n: int) -> Tensor:
        x = torch.randn(n, 2, dtype=DTYPE)
        y = x**2 + 0.3 * torch.randn(n, 2, dtype=DTYPE)
        return torch.stack([x, y], -1).flatten(1)

    return density("banana", 4, log_prob, sample=sample, log_evidence=0.0)


def student_t(dim: int = 8) -> Target:
    """Multivariate, three degrees of freedom, correlations 0.5^|i - j|."""
    lag = (torch.arange(dim)[:, None] - torch.arange(dim)).abs()
    factor = torch.linalg.cholesky(torch.tensor(0.5, dtype=DTYPE) ** lag)
    law = dist.MultivariateStudentT(3.0, torch.zeros(dim, dtype=DTYPE), factor)
    return _from_law("student_t", law)


def two_arcs() -> Target:
    """Radius N(3, 0.2), angle von Mises around 0 or pi."""
    radius = dist.Normal(torch.tensor(3.0, dtype=DTYPE), 0.2)
    angles = [dist.VonMises(torch.tensor(a, dtype=DTYPE), 8.0) for a in (0.0, math.pi)]

    def log_prob(z: Tensor) -> Tensor:
        r, angle = z.norm(dim=-1).clamp(min=1e-9), torch.atan2(z[..., 1], z[..., 0])
        arcs = torch.logaddexp(*(law.log_prob(angle) for law in angles)) - math.log(2)
        return radius.log_prob(r) - r.log() + arcs

    def sample(n: int) -> Tensor:
        r, angle = radius.sample((n,)), angles[0].sample((n,))
        angle = angle + math.pi * torch.randint(2, (n,))
        return torch.stack([r * angle.cos(), r * angle.sin()], -1)

    modes = dict(modes=lambda z: (z[:, 0] > 0).long(), num_modes=2)
    return density("two_arcs", 2, log_prob, sample=sample, log_evidence=0.0, **modes)


def _from_law(name: str, law: Distribution, **modes: Any) -> Target:
    dim = law.event_shape[0]
    sample = lambda n: law.sample((n,))  # noqa: E731
    return density(name, dim, law.log_prob, sample=sample, log_evidence=0.0, **modes)


def mixture(name: str, centres: Tensor, sd: float, weights: Tensor) -> Target:
    """Spherical Gaussians around ``centres`` ``(M, D)``."""
    parts = dist.Normal(centres, sd).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(weights), parts)
    modes = dict(modes=lambda z: torch.cdist(z, centres).argmin(-1), num_modes=len(centres))
    return _from_law(name, law, **modes)


def grid() -> Target:
    """Nine Gaussians of sd 0.5 at distances of 4."""
    axis = torch.tensor([-4.0, 0.0, 4.0], dtype=DTYPE)
    return mixture("grid", torch.cartesian_prod(axis, axis), 0.5, torch.ones(9, dtype=DTYPE))


def mixture_20d() -> Target:
    """Two Gaussians of sd 0.5 with weights 0.4 and 0.6, 27 of their widths apart."""
    centre = torch.full((20,), 1.5, dtype=DTYPE)
    weights = torch.tensor([0.4, 0.6], dtype=DTYPE)
    return mixture("mixture_20d", torch.stack([centre, -centre]), 0.5, weights)


def frequency() -> Target:
    """The frequency of a sine wave seen at few times: four modes, evidence by quadrature."""
    times = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=DTYPE)
    seen = torch.sin(2 * math.pi * 0.3 * times) + 0.3 * torch.tensor(
        [0.2, -0.5, 0.4, 0.1, -0.3], dtype=DTYPE
    )
    prior = dist.Normal(torch.tensor(0.0, dtype=DTYPE), 0.8)

    def log_prob(z: Tensor) -> Tensor:
        wave = torch.sin(2 * math.pi * z * times)
        return prior.log_prob(z[..., 0]) + dist.Normal(wave, 0.3).log_prob(seen).sum(-1)

    points = torch.linspace(-6, 6, 400_001, dtype=DTYPE)
    values = log_prob(points[:, None])
    step = float(points[1] - points[0])
    log_evidence = float(values.logsumexp(0)) + math.log(step)
    cumulative = (values - log_evidence).exp().cumsum(0) * step
    # Modes whose mass is beyond a percent: between them the density is below any that counts.
    valleys = _valleys(points, values)

    def sample(n: int) -> Tensor:
        return points[
            torch.searchsorted(cumulative, torch.rand(n, dtype=DTYPE)).clamp(max=400_000)
        ][:, None]

    return density(
        "frequency",
        1,
        log_prob,
        sample=sample,
        log_evidence=log_evidence,
        modes=lambda z: torch.bucketize(z[:, 0].contiguous(), valleys),
        num_modes=len(valleys) + 1,
    )


def _valleys(points: Tensor, values: Tensor) -> Tensor:
    """Where a density falls deepest between peaks that are within 5 nats of the highest."""
    peaks = (values[1:-1] > values[:-2]) & (values[1:-1] > values[2:])
    places = [i for i in (peaks.nonzero()[:, 0] + 1).tolist() if values[i] > values.max() - 5]
    between = zip(places, places[1:], strict=False)
    return torch.stack([points[a + int(values[a:b].argmin())] for a, b in between])


def known() -> dict[str, Target]:
    """All targets with exact samplers."""
    made = (funnel(), banana(), student_t(), two_arcs(), frequency(), grid(), mixture_20d())
    return {target.name: target for target in made}
