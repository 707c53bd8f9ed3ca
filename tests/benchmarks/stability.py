"""Whether plain SVI of the autoguides diverges: ten models, three learning rates, one draw a step.

    python tests/benchmarks/stability.py [--models poisson,gp] [--lrs 0.01] [--seeds 0,1]

Every line gives the ELBO of the trained guides by 2000 draws, one for each seed, or "NaN at step n"
where training failed.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal
from pyro.optim import Adam

from pyro_naf.examples import eight_schools
from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal

#: Draws behind each ELBO.
DRAWS = 2000

GUIDES: dict[str, Callable] = {
    "AutoIAFNormal": lambda model: AutoIAFNormal(model, num_transforms=2),
    "AutoDSFNormal": AutoDSFNormal,
    "AutoDDSFNormal": AutoDDSFNormal,
}


def poisson() -> Callable:
    """Thirty random effects of counts."""
    counts = torch.poisson(torch.full((30,), 3.0))

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        sd = pyro.sample("sd", dist.HalfNormal(2.0))
        with pyro.plate("groups", 30):
            e = pyro.sample("e", dist.Normal(0.0, sd))
            pyro.sample("y", dist.Poisson((a + e).exp()), obs=counts)

    return model


def logistic() -> Callable:
    """Logistic regression with a random intercept."""
    x, group = torch.randn(200, 5), torch.arange(200) % 20
    y = torch.bernoulli(
        torch.sigmoid(x @ torch.tensor([1.0, -1, 0.5, 0, 2]) + torch.randn(20)[group])
    )

    def model() -> None:
        b = pyro.sample("b", dist.Normal(0.0, 5.0).expand([5]).to_event(1))
        sd = pyro.sample("sd", dist.HalfCauchy(1.0))
        with pyro.plate("groups", 20):
            e = pyro.sample("e", dist.Normal(0.0, sd))
        with pyro.plate("data", 200):
            pyro.sample("y", dist.Bernoulli(logits=x @ b + e[group]), obs=y)

    return model


def negative_binomial() -> Callable:
    """Overdispersed counts."""
    x = torch.randn(150, 4)
    rate = (
        torch.distributions.Gamma(2.0, 2.0).sample((150,))
        * (1 + x @ torch.tensor([0.5, -0.5, 0.3, 0])).exp()
    )
    y = torch.poisson(rate)

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0).expand([4]).to_event(1))
        shape = pyro.sample("shape", dist.Exponential(0.5))
        logits = a + x @ b - shape.log()
        with pyro.plate("data", 150):
            pyro.sample("y", dist.NegativeBinomial(shape, logits=logits), obs=y)

    return model


def funnel() -> Callable:
    """Schools, centred: the effects' scale may be near zero."""
    return eight_schools.model


def gaussian_process() -> Callable:
    """A latent function of 25 places under a squared-exponential kernel, with counts."""
    t = torch.linspace(0, 1, 25)
    y = torch.poisson((1 + torch.sin(6 * t)).exp())

    def model() -> None:
        length = pyro.sample("length", dist.InverseGamma(5.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        cov = scale.square() * torch.exp(-0.5 * ((t[:, None] - t) / length).square())
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([25]).to_event(1))
        f = torch.linalg.cholesky(cov + 1e-3 * torch.eye(25)) @ z
        with pyro.plate("data", 25):
            pyro.sample("y", dist.Poisson(f.clamp(max=30).exp()), obs=y)

    return model


def student() -> Callable:
    """Robust regression with unknown degrees of freedom."""
    x = torch.randn(100, 6)
    noise = torch.distributions.StudentT(2.0).sample((100,))
    y = x @ torch.linspace(-2, 2, 6) + noise

    def model() -> None:
        b = pyro.sample("b", dist.Normal(0.0, 10.0).expand([6]).to_event(1))
        df = pyro.sample("df", dist.Gamma(2.0, 0.1))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("data", 100):
            pyro.sample("y", dist.StudentT(df, x @ b, scale), obs=y)

    return model


def gammas() -> Callable:
    """Gamma observations of twelve groups; rates and shapes on the positive numbers."""
    y = torch.distributions.Gamma(3.0, 0.01).sample((10, 12))

    def model() -> None:
        alpha = pyro.sample("alpha", dist.Gamma(1.0, 0.1))
        rate0 = pyro.sample("rate0", dist.Gamma(1.0, 1.0))
        with pyro.plate("groups", 12, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1 / rate0))
            with pyro.plate("data", 10, dim=-2):
                pyro.sample("y", dist.Gamma(alpha, rate), obs=y)

    return model


def probit() -> Callable:
    """Probit regression with a horseshoe-like prior."""
    x = torch.randn(80, 10)
    y = (x[:, 0] - x[:, 1] + torch.randn(80) > 0).float()

    def model() -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(0.1))
        lam = pyro.sample("lam", dist.HalfCauchy(1.0).expand([10]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([10]).to_event(1)) * tau * lam
        p = torch.special.ndtr(x @ b).clamp(1e-6, 1 - 1e-6)
        with pyro.plate("data", 80):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    return model


def mixture() -> Callable:
    """Two Gaussian components, their indicator summed out."""
    y = torch.cat([torch.randn(60) - 2, 0.5 * torch.randn(40) + 2])

    def model() -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 1.0]), 3.0).to_event(1))
        sd = pyro.sample("sd", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", 100):
            parts = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, sd))
            pyro.sample("y", parts, obs=y)

    return model


def volatility() -> Callable:
    """Stochastic volatility: an AR(1) of 60 log-variances."""
    h = torch.zeros(60)
    for i in range(1, 60):
        h[i] = 0.95 * h[i - 1] + 0.3 * torch.randn(())
    y = (h / 2).exp() * torch.randn(60)

    def model() -> None:
        phi = pyro.sample("phi", dist.Beta(20.0, 1.5))
        sd = pyro.sample("sd", dist.HalfNormal(1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        h = pyro.sample("h", dist.Normal(0.0, 10.0).expand([60]).mask(False).to_event(1))
        pyro.factor(
            "walk",
            dist.Normal(mu + phi * (h[:-1] - mu), sd).log_prob(h[1:]).sum()
            + dist.Normal(mu, sd).log_prob(h[0]),
        )
        with pyro.plate("data", 60):
            pyro.sample("y", dist.Normal(0.0, (h / 2).exp()), obs=y)

    return model


MODELS: dict[str, Callable[[], Callable]] = {
    "poisson": poisson,
    "logistic": logistic,
    "negative-binomial": negative_binomial,
    "schools": funnel,
    "gp": gaussian_process,
    "student": student,
    "gamma": gammas,
    "probit": probit,
    "mixture": mixture,
    "volatility": volatility,
}


def train(make: Callable, model: Callable, lr: float, seed: int, steps: int) -> tuple[float, str]:
    """The ELBO after training, and what there is to say of it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make(model)
    svi = SVI(model, guide, Adam({"lr": lr}), Trace_ELBO())
    for step in range(steps):
        try:
            loss = svi.step()
        except (ValueError, RuntimeError):
            loss = math.nan
        if not math.isfinite(loss):
            return -math.inf, f"NaN at step {step}"
    elbos = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for _ in range(DRAWS):
            trace = poutine.trace(guide).get_trace()
            replayed = poutine.trace(poutine.replay(model, trace)).get_trace()
            elbos.append(float(replayed.log_prob_sum() - trace.log_prob_sum()))
    elbo = sum(elbos) / DRAWS
    return elbo, f"{elbo:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names with commas between")
    parser.add_argument("--guides", default=",".join(GUIDES))
    parser.add_argument("--lrs", default="0.001,0.01,0.1")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in given.models.split(","):
        torch.manual_seed(1)
        model = MODELS[name]()
        for guide in given.guides.split(","):
            for lr in given.lrs.split(","):
                found = [
                    train(GUIDES[guide], model, float(lr), int(seed), given.steps)[1]
                    for seed in given.seeds.split(",")
                ]
                print(f"{name:18s} {guide:15s} lr {lr:6s} {found}", flush=True)


if __name__ == "__main__":
    main()
