"""Claims about what a graph of a model holds, and what it leaves out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from pyro_naf.infer.joint import Joint

Y = torch.tensor([2.0, 0.0, 3.0, 1.0])
GROUP = torch.tensor([0, 1, 1, 2])


def reads_its_data(y: Tensor) -> None:
    groups = int(GROUP.max()) + 1
    level = pyro.sample("level", dist.Normal(float(y.mean()), 1.0).expand([groups]).to_event(1))
    if (y >= 0).all():
        pyro.sample("y", dist.Poisson(level[GROUP].exp()).to_event(1), obs=y)


def runs_in_a_loop(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(y)):
        pyro.sample(f"y_{i}", dist.Poisson(mu.exp()), obs=y[i])


class Checked(PyroModule):
    """Its prior was made where distributions check their values."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = PyroSample(dist.Gamma(2.0, 1.0, validate_args=True).expand([2]).to_event(1))

    def forward(self, y: Tensor) -> None:
        pyro.sample("y", dist.Poisson(self.rate.sum()).expand([len(y)]).to_event(1), obs=y)


def prints(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    assert f"{mu}" and str(mu)
    pyro.sample("y", dist.Poisson(mu.exp()).expand([len(y)]).to_event(1), obs=y)


def writes_constants(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sizes = y.clone()
    sizes[sizes == 0] = 1.0
    sizes.mul_(2.0)
    pyro.sample("y", dist.Poisson(mu.exp() * sizes).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model", [reads_its_data, runs_in_a_loop, Checked(), prints, writes_constants]
)
def test_a_model_is_captured_and_evaluates_alike_again_and_again(model: object) -> None:
    joint = Joint(model, (Y,))  # type: ignore[arg-type]
    u = joint.start + torch.linspace(-1, 1, 3)[:, None]
    value, grad = joint.value_and_grad(u)
    joint.capture(3)
    assert joint.way == "captured"
    for _ in range(3):
        again, its_grad = joint.value_and_grad(u)
        torch.testing.assert_close(again, value)
        torch.testing.assert_close(its_grad, grad)


def test_what_depends_on_data_alone_is_computed_once() -> None:
    joint = Joint(reads_its_data, (Y,))
    joint.capture(3)
    assert joint.graph is not None
    assert "exp" in joint.graph._code and "lgamma" not in joint.graph._code


def test_draws_that_are_added_to_a_constant_are_new_in_every_run_of_the_graph() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        noise = torch.zeros(3)
        noise += torch.rand(3)
        pyro.factor("f", mu * 0 + noise.sum() / 1e6)

    with pytest.warns(UserWarning, match="random numbers"):
        joint = Joint(model)
    joint.capture(2)
    with torch.no_grad():
        values = [float(joint(torch.zeros(2, 1))[0]) for _ in range(20)]
    assert max(values) - min(values) < 4e-6  # they do not add up


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_networks_run_for_all_draws_at_once(kind: type) -> None:
    net = kind(1, 2)

    def model(y: Tensor) -> None:
        weights = {
            name: pyro.sample(name, dist.Normal(torch.zeros_like(w), 0.5).to_event(w.dim()))
            for name, w in net.named_parameters()
        }
        h, _ = torch.func.functional_call(net, weights, (y[:, None, None],))
        pyro.sample("y", dist.Normal(h[:, 0].sum(-1), 0.5).to_event(1), obs=y)

    joint = Joint(model, (Y,))
    assert joint.rung == "vmapped with help"
