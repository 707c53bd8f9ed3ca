"""Bayesian networks and Gaussian processes: PyroModules, PyroSamples, pyro.contrib.gp."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from scipy import stats
from torch import Tensor
from zoo_case import built, case, gaussian, one, quadrature, real
from zoo_regression import HEADS, T, Y, line


@built(evidence=lambda: line(1.0, 0.5))
def module_linear() -> tuple:
    """Pyro's tutorial on Bayesian regression: PyroModule[nn.Linear] with PyroSamples."""

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[torch.nn.Linear](1, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)
            return mean

    return Regression(), real(T[:, None], Y), {}


@built()
def module_network() -> tuple:
    """Two layers of nested modules, all weights with priors, and a noise of its own."""

    class Layer(PyroModule):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2))
            self.bias = PyroSample(dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight, self.bias)

    class Network(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Layer(1, 4), Layer(4, 1)
            self.noise = PyroSample(dist.Gamma(2.0, 4.0))

        def forward(self, x: Tensor, y: Tensor) -> None:
            mean = self.last(torch.tanh(self.first(x))).squeeze(-1)
            noise = self.noise
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    return Network(), real(T[:, None], np.sin(3 * T)), {}


@case(lambda: real(np.stack([T, T**2], 1), HEADS))
def network_by_hand(X: Tensor, y: Tensor) -> None:
    """A Bayesian neural network as in NumPyro's examples: matrices of weights, matmul, tanh."""
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(2, 3), torch.ones(2, 3)).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
    logits = (torch.tanh(X @ w1 + b1) @ w2).squeeze(-1)
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


@built()
def module_sequential() -> tuple:
    """A network of torch, its weights lifted to priors in a loop over its modules."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    to_pyro_module_(net)
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())
            setattr(module, name, PyroSample(prior))
    assert isinstance(net, PyroModule)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.sample("y", dist.Normal(net(x)[..., 0], 0.3).to_event(1), obs=y)

    return model, real(T[:, None], np.abs(T)), {}


def _gp_regression() -> float:
    def log_density(variance: np.ndarray, length: np.ndarray) -> np.ndarray:
        v, s = variance[..., None, None], length[..., None, None]
        K = v * np.exp(-0.5 * ((T[:, None] - T) / s) ** 2) + 0.1 * np.eye(20)
        prior = stats.lognorm.logpdf(variance, 1) + stats.lognorm.logpdf(length, 1)
        return prior + gaussian(np.sin(3 * T), K)

    return quadrature(log_density, np.geomspace(0.02, 60, 121), np.geomspace(0.05, 20, 121))


@built(evidence=_gp_regression)
def gp_regression() -> tuple:
    """pyro.contrib.gp with priors on the kernel."""
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    x, y = real(T, np.sin(3 * T))
    return gp.models.GPRegression(x, y, kernel, noise=one(0.1), jitter=1e-9).model, (), {}


@built()
def gp_sparse() -> tuple:
    """pyro.contrib.gp's sparse regression, whose approximation adds a factor."""
    kernel = gp.kernels.Matern52(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 0.5))
    x, y, inducing = real(T, np.sin(3 * T), np.linspace(-1, 1, 5))
    process = gp.models.SparseGPRegression(x, y, kernel, inducing, one(0.1), approx="VFE")
    process.noise = PyroSample(dist.LogNormal(-2.0, 0.5))
    return process.model, (), {}


@built()
def gp_classification() -> tuple:
    """A latent function with a kernel of pyro.contrib.gp, whitened by hand."""

    class Classifier(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = gp.kernels.RBF(input_dim=1)
            self.kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))

        def forward(self, x: Tensor, y: Tensor) -> None:
            K = self.kernel(x) + 1e-4 * torch.eye(len(x))
            white = pyro.sample("white", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
            f = torch.linalg.cholesky(K) @ white
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    return Classifier(), real(T, HEADS), {}


@case(lambda: real(T, HEADS))
def gp_latent(t: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.InverseGamma(3.0, 2.0))
    K = torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + 1e-3 * torch.eye(len(t))
    f = pyro.sample(
        "f", dist.MultivariateNormal(torch.zeros(len(t)), scale_tril=torch.linalg.cholesky(K))
    )
    with pyro.plate("data", len(t)):
        pyro.sample("y", dist.Bernoulli(logits=2 * f), obs=y)


@case(lambda: real(T, np.sin(3 * T)))
def gp_indefinite(t: Tensor, y: Tensor) -> None:
    """A kernel matrix that is not positive definite where the length is long."""
    length = pyro.sample("length", dist.LogNormal(-1.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(0.1))
    K = torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + noise**4 * torch.eye(len(t))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(t)), K), obs=y)
