"""The staircase leaves out products with zeros, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_naf import deep_sigmoidal_flow
from pyro_naf.conditioners import MADE
from pyro_naf.conditioners import masked_linear as module
from pyro_naf.conditioners.masked_linear import STEPS, masked_linear, staircase


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH", dict.fromkeys(["cpu", "cuda"], -1))


def inputs(
    rows: int, columns: int, batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    widths = torch.randint(columns + 1, (rows,)).sort().values
    mask = (torch.arange(columns) < widths.unsqueeze(-1)).double().to(device)
    z, weight, bias = (
        torch.randn(shape).double().to(device).requires_grad_()
        for shape in [(columns, batch), (rows, columns), (rows,)]
    )
    return widths, z, weight, mask, bias


@pytest.mark.parametrize("rows, columns, batch", [(40, 17, 9), (3, 5, 2), (8, 1, 1), (20, 6, 0)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_gradients_are_those_of_the_masked_product(
    rows: int, columns: int, batch: int, with_bias: bool, device: torch.device
) -> None:
    widths, z, weight, mask, bias = inputs(rows, columns, batch, device)
    wanted = [z, weight, bias][: 2 + with_bias]
    grad = torch.randn(rows, batch).double().to(device)
    true = (weight * mask) @ z + (bias.unsqueeze(-1) if with_bias else 0.0)
    got = masked_linear(z, weight, mask, bias if with_bias else None, staircase(widths))
    assert "Staircase" in type(got.grad_fn).__name__
    torch.testing.assert_close(got, true)
    for g, t in zip(
        torch.autograd.grad(got, wanted, grad), torch.autograd.grad(true, wanted, grad), strict=True
    ):
        torch.testing.assert_close(g, t)


def test_second_and_batched_derivatives_are_right(device: torch.device) -> None:
    widths, z, weight, mask, bias = inputs(12, 5, 3, device)
    steps = staircase(widths)

    def layer(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_linear(z, weight, mask, bias, steps)

    assert torch.autograd.gradgradcheck(layer, (z, weight, bias), fast_mode=True)
    out = layer(z, weight, bias)[:, 0]
    eye = torch.eye(12).double().to(device)
    (jacobian,) = torch.autograd.grad(out, z, eye, is_grads_batched=True)
    torch.testing.assert_close(jacobian[:, :, 0], weight.detach() * mask)


def test_half_of_the_products_are_left_out() -> None:
    steps = staircase(torch.arange(1, 801))
    made = sum((s.stop - s.start) * s.width for s in steps)
    assert [s.start for s in steps[1:]] == [s.stop for s in steps[:-1]]
    assert made / 800**2 == pytest.approx((1 + 1 / STEPS) / 2)


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"head_dim": 3}, {"context_dim": 2}])
def test_a_network_gives_the_same_either_way(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MADE(5, [11, 11], 4, **options).double()
    x = torch.randn(6, 5).double()
    context = (torch.randn(6, 2).double(),) if "context_dim" in options else ()
    outputs = []
    for worth in (-1, 1 << 60):
        monkeypatch.setattr(module, "WORTH", {"cpu": worth})
        phi = made(x, *context)
        outputs.append([phi, *torch.autograd.grad(phi.sin().sum(), list(made.parameters()))])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_torch_func_and_compile_pass_through() -> None:
    flow = deep_sigmoidal_flow(3, [8], 4).double()
    x = torch.randn(5, 3).double()
    y = flow(x)
    torch.testing.assert_close(torch.func.vmap(flow.value_and_log_slope)(x)[0], y)
    compiled = torch.compile(flow.value_and_log_slope, backend="eager")
    torch.testing.assert_close(compiled(x)[0], y)
