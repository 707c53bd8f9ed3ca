"""Hierarchical posteriors of 26 to 1,000 latents: models that structure is measured on.

Eight are those of ``large/`` in PYRO_NAF_DATA, written as its README says; the others are
simulated, or put another model on its data. All are vectorised over leading dimensions, in the
dtype of their data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from targets import Target, evenly
from torch import Tensor

Data = Mapping[str, Tensor]
Posterior = tuple[Callable[..., None], tuple[Any, ...]]


def normal(name: str, loc: Any, scale: Any, size: int = 0) -> Tensor:
    """A latent vector of iid entries, or a scalar; loc and scale are ``(...)``."""
    loc, scale = torch.broadcast_tensors(*map(torch.as_tensor, (loc, scale)))
    if not size:
        return pyro.sample(name, dist.Normal(loc, scale))
    shape = (*loc.shape, size)
    fn = dist.Normal(loc[..., None].expand(shape), scale[..., None].expand(shape))
    return pyro.sample(name, fn.to_event(1))


def half_normal(name: str, like: Tensor, scale: float = 1.0) -> Tensor:
    return pyro.sample(name, dist.HalfNormal(like.new_tensor(scale)))


def half_cauchy(name: str, like: Tensor, scale: float) -> Tensor:
    return pyro.sample(name, dist.HalfCauchy(like.new_tensor(scale)))


def _wide(like: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return like.new_tensor(0.0), like.new_tensor(scale)


def radon_hier(data: Data) -> None:
    y, county = data["log_radon"], data["county"].long()
    mu = normal("mu_alpha", *_wide(y, 10))
    sigma_alpha, sigma_y = (half_normal(name, y) for name in ("sigma_alpha", "sigma_y"))
    beta = normal("beta", *_wide(y, 10), 2)
    alpha = normal("alpha", mu, sigma_alpha, 85)
    loc = alpha[..., county] + beta[..., :1] * data["log_uppm"] + beta[..., 1:] * data["floor"]
    pyro.sample("y", dist.Normal(loc, sigma_y[..., None]).to_event(1), obs=y)


def radon_nc(data: Data) -> None:
    y, county = data["log_radon"], data["county"].long()
    mu = normal("mu_alpha", *_wide(y, 10))
    sigma_alpha, sigma_y = (half_normal(name, y) for name in ("sigma_alpha", "sigma_y"))
    beta = normal("beta", *_wide(y, 10))
    alpha = mu[..., None] + sigma_alpha[..., None] * normal("alpha_raw", *_wide(y, 1), 85)
    loc = alpha[..., county] + beta[..., None] * data["floor"]
    pyro.sample("y", dist.Normal(loc, sigma_y[..., None]).to_event(1), obs=y)


def radon_slopes(data: Data) -> None:
    """Intercepts and slopes of the floor, one of each for every county."""
    y, county = data["log_radon"], data["county"].long()
    mu_alpha, mu_beta = (normal(name, *_wide(y, 10)) for name in ("mu_alpha", "mu_beta"))
    names = ("sigma_alpha", "sigma_beta", "sigma_y")
    sigma_alpha, sigma_beta, sigma_y = (half_normal(name, y) for name in names)
    alpha = normal("alpha", mu_alpha, sigma_alpha, 85)
    beta = normal("beta", mu_beta, sigma_beta, 85)
    loc = alpha[..., county] + beta[..., county] * data["floor"]
    pyro.sample("y", dist.Normal(loc, sigma_y[..., None]).to_event(1), obs=y)


def irt_2pl(data: Data) -> None:
    y = data["y"]
    items, students = y.shape
    names = ("sigma_theta", "sigma_a", "sigma_b")
    sigma_theta, sigma_a, sigma_b = (half_cauchy(name, y, 2) for name in names)
    mu_b = normal("mu_b", *_wide(y, 5))
    theta = normal("theta", y.new_tensor(0.0), sigma_theta, students)
    shape = (*sigma_a.shape, items)
    log_normal = dist.LogNormal(y.new_zeros(shape), sigma_a[..., None].expand(shape))
    a = pyro.sample("a", log_normal.to_event(1))
    b = normal("b", mu_b, sigma_b, items)
    logits = a[..., None] * (theta[..., None, :] - b[..., None])
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y)


def irt_regression(y: Tensor, covariates: Tensor) -> None:
    """Item response with a regression of the abilities on covariates ``(students, K)``."""
    items = len(y)
    zeros = y.new_zeros(items)
    a = pyro.sample("a", dist.LogNormal(zeros + 0.5, zeros + 0.5).to_event(1))
    b = normal("b", *_wide(y, 2), items)
    slope = normal("slope", *_wide(y, 2), covariates.shape[-1])
    loc = slope @ covariates.mT
    theta = pyro.sample("theta", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
    logits = a[..., None] * theta[..., None, :] - b[..., None]
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y)


def rats(data: Data) -> None:
    y, rat = data["y"], data["rat"].long()
    mu_alpha, mu_beta = (normal(name, *_wide(y, 100)) for name in ("mu_alpha", "mu_beta"))
    names = ("sigma_y", "sigma_alpha", "sigma_beta")
    uniform = dist.Uniform(*_wide(y, 100))
    sigma_y, sigma_alpha, sigma_beta = (pyro.sample(name, uniform) for name in names)
    alpha = normal("alpha", mu_alpha, sigma_alpha, 30)
    beta = normal("beta", mu_beta, sigma_beta, 30)
    loc = alpha[..., rat] + beta[..., rat] * (data["x"] - data["xbar"])
    pyro.sample("y", dist.Normal(loc, sigma_y[..., None]).to_event(1), obs=y)


def glmm_poisson(data: Data) -> None:
    year, counts = data["year"], data["counts"]
    alpha = pyro.sample("alpha", dist.Uniform(-20 * year.new_ones(()), 20 * year.new_ones(())))
    bound = 10 * year.new_ones(())
    beta = [pyro.sample(f"beta{i}", dist.Uniform(-bound, bound)) for i in (1, 2, 3)]
    sigma = pyro.sample("sigma", dist.Uniform(0 * bound, bound / 2))
    eps = normal("eps", year.new_tensor(0.0), sigma, len(year))
    log_rate = alpha[..., None] + eps
    for power, slope in enumerate(beta, 1):
        log_rate = log_rate + slope[..., None] * year**power
    pyro.sample("counts", dist.Poisson(log_rate.exp()).to_event(1), obs=counts)


def accel_gp(data: Data) -> None:
    y = data["y"]
    one = y.new_ones(())
    loc = pyro.sample("Intercept", dist.StudentT(3 * one, -13 * one, 36 * one))
    loc = loc[..., None] + _eigen(data, "", 40)
    log_scale = pyro.sample("Intercept_sigma", dist.StudentT(3 * one, 0 * one, 10 * one))
    log_scale = log_scale[..., None] + _eigen(data, "_sigma", 20)
    pyro.sample("y", dist.Normal(loc, log_scale.exp()).to_event(1), obs=y)


def _eigen(data: Data, which: str, count: int) -> Tensor:
    one = data["y"].new_ones(())
    half_t = _Positive(3 * one, 0 * one, 36 * one)
    sdgp = pyro.sample(f"sdgp{which}_1", half_t)
    lscale = pyro.sample(f"lscale{which}_1", dist.InverseGamma(1.124909 * one, 0.0177 * one))
    zgp = normal(f"zgp{which}_1", 0 * one, one, count)
    frequencies = data[f"slambda{which}"]
    damping = -0.25 * lscale[..., None].square() * frequencies.square()
    weight = sdgp * (math.sqrt(2 * math.pi) * lscale).sqrt()
    return (weight[..., None] * damping.exp() * zgp) @ data[f"X{which}"].mT


class _Positive(dist.StudentT):
    """Student's t on the positive numbers, normalised."""

    support = dist.constraints.positive

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + math.log(2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(sample_shape).abs()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(_Positive))


def seeds_centered(data: Data) -> None:
    n, total, x1, x2 = (data[name] for name in ("n", "N", "x1", "x2"))
    names = ("alpha0", "alpha1", "alpha12", "alpha2")
    alpha0, alpha1, alpha12, alpha2 = (normal(name, *_wide(n, 1))[..., None] for name in names)
    sigma = half_cauchy("sigma", n, 1)
    c = normal("c", n.new_tensor(0.0), sigma, len(n))
    logits = alpha0 + alpha1 * x1 + alpha2 * x2 + alpha12 * x1 * x2 + c - c.mean(-1, keepdim=True)
    pyro.sample("n", dist.Binomial(total, logits=logits).to_event(1), obs=n)


def dogs(data: Data) -> None:
    y = data["y"]
    one = y.new_ones(())
    base = dist.TransformedDistribution(
        dist.Uniform(0 * one, one), [dist.transforms.SigmoidTransform().inv]
    )
    mu = torch.stack([pyro.sample(f"mu_{i}", base) for i in (1, 2)], -1)
    s = torch.stack([half_normal(f"s_{i}", y) for i in (1, 2)], -1)
    corr = pyro.sample("L", dist.LKJCholesky(2, 2 * one))
    z = normal("z", 0 * one, one, 2 * len(y)).unflatten(-1, (len(y), 2))
    logits = mu[..., None, :] + (z @ corr.mT) * s[..., None, :]
    log_a, log_b = torch.nn.functional.logsigmoid(logits).unbind(-1)
    log_p = log_a[..., None] * data["shocks_before"] + log_b[..., None] * data["avoided_before"]
    log_not = torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))
    pyro.factor("y", torch.where(y > 0, log_p, log_not).sum((-1, -2)))


def stochastic_volatility(y: Tensor) -> None:
    """An AR(1) of log-variances around mu, with persistence phi."""
    one = y.new_ones(())
    mu = pyro.sample("mu", dist.Cauchy(0 * one, 10 * one))
    phi = pyro.sample("phi", dist.Uniform(-one, one))
    sigma = half_cauchy("sigma", y, 5)
    h = _flat("h", mu, len(y))
    first = dist.Normal(mu, sigma * (1 - phi.square()).rsqrt()).log_prob(h[..., 0])
    loc = mu[..., None] + phi[..., None] * (h[..., :-1] - mu[..., None])
    rest = dist.Normal(loc, sigma[..., None]).log_prob(h[..., 1:]).sum(-1)
    pyro.factor("h_prior", first + rest)
    pyro.sample("y", dist.Normal(torch.zeros_like(h), (h / 2).exp()).to_event(1), obs=y)


def _flat(name: str, like: Tensor, size: int) -> Tensor:
    shape = (*like.shape, size)
    flat = dist.Normal(like.new_zeros(shape), like.new_ones(shape)).mask(False).to_event(1)
    return pyro.sample(name, flat)


def conjugate_hierarchy(y: Tensor) -> None:
    """Groups of groups with known variances: a Gaussian posterior, and its evidence is known."""
    outer, inner, _ = y.shape
    mu = normal("mu", *_wide(y, 1))
    top = normal("top", mu, torch.ones_like(mu), outer)
    loc = top.repeat_interleave(inner, -1)
    middle = pyro.sample("middle", dist.Normal(loc, 0.5 * torch.ones_like(loc)).to_event(1))
    shaped = middle.unflatten(-1, (outer, inner))[..., None].expand(*mu.shape, *y.shape)
    pyro.sample("y", dist.Normal(shaped, torch.ones_like(shaped)).to_event(3), obs=y)


def conjugate_log_evidence(y: Tensor) -> float:
    """By the sums: the mean of each inner group is all that matters, the rest is a constant."""
    _, inner, count = y.shape
    y = y.double().reshape(-1)
    i = torch.arange(len(y))
    same_inner = (i[:, None] // count == i // count).double()
    same_outer = (i[:, None] // (count * inner) == i // (count * inner)).double()
    covariance = 1 + same_outer + 0.25 * same_inner + torch.eye(len(y), dtype=torch.double)
    return float(dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


LARGE: dict[str, Callable[[Data], None]] = {
    "radon_hier": radon_hier,
    "radon_nc": radon_nc,
    "irt_2pl": irt_2pl,
    "rats": rats,
    "glmm_poisson": glmm_poisson,
    "accel_gp": accel_gp,
    "seeds_centered": seeds_centered,
    "dogs": dogs,
}


def posteriors(data_dir: Path, dtype: torch.dtype = torch.float) -> dict[str, Posterior]:
    """Model and arguments by name; the simulated ones need no folder."""

    def read(name: str) -> dict[str, Tensor]:
        raw = json.loads((data_dir / "large" / "data" / f"{name}.json").read_text())
        return {key: torch.tensor(value, dtype=dtype) for key, value in raw.items()}

    found: dict[str, Posterior] = {name: (model, (read(name),)) for name, model in LARGE.items()}
    found["radon_slopes"] = (radon_slopes, (read("radon_hier"),))
    found["volatility"] = (stochastic_volatility, (simulated_returns().to(dtype),))
    answers = simulated_answers()
    found["irt_regression"] = (irt_regression, tuple(t.to(dtype) for t in answers))
    found["hierarchy"] = (conjugate_hierarchy, (simulated_groups().to(dtype),))
    return found


#: Sites of each posterior with reference draws, and their lengths, in the order of its columns.
_SITES: dict[str, dict[str, int]] = {
    "radon_hier": {"alpha": 85, "beta": 2, "mu_alpha": 0, "sigma_alpha": 0, "sigma_y": 0},
    "radon_nc": {"alpha_raw": 85, "beta": 0, "mu_alpha": 0, "sigma_alpha": 0, "sigma_y": 0},
    "irt_2pl": {"sigma_theta": 0, "theta": 100, "sigma_a": 0, "a": 20, "mu_b": 0, "sigma_b": 0}
    | {"b": 20},
    "rats": {"alpha": 30, "beta": 30, "mu_alpha": 0, "mu_beta": 0, "sigma_y": 0, "sigma_alpha": 0}
    | {"sigma_beta": 0},
    "glmm_poisson": {"alpha": 0, "beta1": 0, "beta2": 0, "beta3": 0, "eps": 40, "sigma": 0},
    "accel_gp": {"Intercept": 0, "sdgp_1": 0, "lscale_1": 0, "zgp_1": 40, "Intercept_sigma": 0}
    | {"sdgp_sigma_1": 0, "lscale_sigma_1": 0, "zgp_sigma_1": 20},
    "seeds_centered": {"alpha0": 0, "alpha1": 0, "alpha12": 0, "alpha2": 0, "c": 21, "sigma": 0},
    "dogs": {"mu_1": 0, "mu_2": 0, "s_1": 0, "s_2": 0, "L": 4, "z": 60},
}


def _columns(name: str, sites: dict[str, Tensor]) -> Tensor:
    """Sites ``(n, ...)`` in the columns of the reference draws ``(n, D)``."""
    if name == "radon_nc":
        mu, sigma = sites["mu_alpha"][:, None], sites["sigma_alpha"][:, None]
        sites = sites | {"alpha_raw": mu + sigma * sites["alpha_raw"]}
    if name == "dogs":
        mu, s = (torch.stack([sites[f"{kind}_{i}"] for i in (1, 2)], -1) for kind in ("mu", "s"))
        z = sites["z"].unflatten(-1, (-1, 2)) @ sites["L"].mT
        logit_ab = mu[:, None] + s[:, None] * z
        sites = {"mu": mu, "s": s, "rho": sites["L"][:, 1, 0], "logit_ab": logit_ab}
    return torch.cat([value.reshape(len(value), -1) for value in sites.values()], -1).double()


def with_references(data_dir: Path, dtype: torch.dtype = torch.float) -> dict[str, Target]:
    """The eight posteriors of ``large/`` with their reference draws."""
    found = {}
    for name, (model, args) in posteriors(data_dir, dtype).items():
        if name not in _SITES:
            continue
        stored = np.load(data_dir / "large" / "draws" / f"{name}.npz")
        draws = torch.from_numpy(stored["draws"]).double().flatten(0, 1)
        found[name] = Target(
            name=name,
            model=model,
            args=args,
            sizes=_SITES[name],
            names=tuple(stored["names"].tolist()),
            sample=partial(evenly, draws),
            columns_of=partial(_columns, name),
        )
    return found


def simulated_returns(steps: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, steps, generator=generator)
    h = [torch.tensor(-1.0)]
    for e in noise[0, 1:]:
        h.append(-1 + 0.95 * (h[-1] + 1) + 0.25 * e)
    return torch.stack(h).div(2).exp() * noise[1]


def simulated_answers(items: int = 14, students: int = 500) -> tuple[Tensor, Tensor]:
    """Answers ``(items, students)`` and covariates ``(students, 3)``: D = 531."""
    generator = torch.Generator().manual_seed(2)
    covariates = torch.randn(students, 3, generator=generator)
    theta = covariates @ torch.tensor([0.5, -0.3, 0.0])
    theta = theta + torch.randn(students, generator=generator)
    a = (0.5 + 0.4 * torch.randn(items, 1, generator=generator)).exp()
    b = torch.randn(items, 1, generator=generator)
    p = torch.sigmoid(a * theta - b)
    return (torch.rand(items, students, generator=generator) < p).float(), covariates


def simulated_groups(outer: int = 27, inner: int = 36, count: int = 2) -> Tensor:
    """Data ``(27, 36, 2)`` of a hierarchy of 1 + 27 + 27 * 36 = 1,000 latents."""
    generator = torch.Generator().manual_seed(3)
    top = torch.randn(outer, 1, 1, generator=generator)
    middle = top + 0.5 * torch.randn(outer, inner, 1, generator=generator)
    return middle + torch.randn(outer, inner, count, generator=generator)
