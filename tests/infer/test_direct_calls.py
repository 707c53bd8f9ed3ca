"""Claims about graphs whose operations are called as torch's functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_naf.infer.direct_calls import with_direct_calls


def on_fresh_points(function: Callable[[Tensor], Tensor]) -> tuple[fx.GraphModule, Tensor, Tensor]:
    """The graph with direct calls, its value at new points, and the function's."""
    graph = with_direct_calls(make_fx(function)(torch.rand(4, 3)), [torch.rand(4, 3)])
    x = torch.rand(4, 3)
    return graph, graph(x), function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x @ x.mT).view(-1)[3:9:2].clamp(0.2) ** 2,
        lambda x: x.sum(-1, keepdim=True).expand(4, 3).masked_fill(x > 0.5, 2.0),
        lambda x: torch.add(x, x.exp(), alpha=-2).logsumexp(0).std(),
        lambda x: torch.where(x < 0.5, x.lgamma(), x.new_full((), 3.0)).amax(1),
        lambda x: x[:, torch.tensor([0, 2])].index_add(0, torch.tensor([0, 0]), x[:2, :2]),
        lambda x: torch.stack(x.split([1, 2], 1)[1].unbind(-1)).mean(0).cumsum(0),
        lambda x: torch.linalg.solve_triangular(x[:3] + torch.eye(3), x[:3], upper=True),
        lambda x: x.to(torch.float64).pow(0.5).to(torch.int64) * 2,
    ],
)
def test_graphs_with_direct_calls_give_the_same(function: Callable[[Tensor], Tensor]) -> None:
    _, found, expected = on_fresh_points(function)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_common_operations_are_called_directly() -> None:
    graph, *_ = on_fresh_points(lambda x: (x.view(-1).exp() * 2 - 1).sum())
    assert "torch.ops" not in graph.code


def test_a_graph_whose_inputs_fail_stays_as_it_is() -> None:
    graph = make_fx(lambda x: x.exp())(torch.rand(2))
    assert with_direct_calls(graph, []) is graph
