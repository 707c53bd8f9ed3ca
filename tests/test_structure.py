"""Claims about structures: elimination, graph conditioners, and affine maps of their pattern."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from registry import roughen
from test_conditioners import dependence, run_sweep
from torch import Tensor

from pyro_naf.conditioners import GraphConditioner, Structure
from pyro_naf.flows.linear import StructuredAffine, factor_of, has_pattern, triangular
from pyro_naf.transforms import DeepSigmoidalFlow


def random_graph(dim: int, share: float) -> Tensor:
    half = torch.rand(dim, dim) < share
    return (half | half.T) & ~torch.eye(dim, dtype=torch.bool)


def chain(dim: int, common: int = 0) -> Tensor:
    """A chain, all of whose latents are adjacent to the first few."""
    adjacency = torch.ones(dim, dim).tril(1).triu(-1).bool()
    adjacency[:common] = adjacency[:, :common] = True
    return adjacency & ~torch.eye(dim, dtype=torch.bool)


def grid(side: int) -> Tensor:
    line = chain(side).long()
    eye = torch.eye(side, dtype=torch.long)
    return (torch.kron(line, eye) + torch.kron(eye, line)).bool()


GRAPHS = {
    "one": torch.zeros(1, 1, dtype=torch.bool),
    "two": ~torch.eye(2, dtype=torch.bool),
    "none": torch.zeros(6, 6, dtype=torch.bool),
    "chain": chain(17),
    "chain with common latents": chain(20, 2),
    "grid": grid(5),
    "dense": ~torch.eye(12, dtype=torch.bool),
}


def graph(name: str) -> Tensor:
    if name in GRAPHS:
        return GRAPHS[name]
    return random_graph(24, float(name.removeprefix("random ")))


every_graph = pytest.mark.parametrize("name", [*GRAPHS, "random 0.05", "random 0.15"])


def precision_of(adjacency: Tensor) -> Tensor:
    """A random precision with exactly this pattern, float64."""
    entries = torch.rand(adjacency.shape, dtype=torch.double) + 0.1
    entries = (entries + entries.T) * adjacency
    return torch.diag(entries.sum(1) + 0.5) - entries


# ------------------------------------------------------------------------------------- elimination


@every_graph
def test_parents_are_the_cholesky_factors_pattern_and_ancestors_its_inverses(name: str) -> None:
    structure = Structure.from_adjacency(graph(name))
    eliminated = structure.order.flip(0)
    precision = precision_of(structure.adjacency)[eliminated][:, eliminated]
    lower = torch.linalg.cholesky(precision)
    # All entries beside the diagonal are of one sign, so that none cancels.
    back = eliminated.argsort()
    off = ~torch.eye(structure.dim, dtype=torch.bool)
    assert torch.equal((lower.T != 0)[back][:, back] & off, structure.parents)
    inverse = torch.linalg.inv(lower.T)
    assert torch.equal((inverse.abs() > 1e-14)[back][:, back] & off, structure.ancestors)


@every_graph
def test_ancestors_come_first_and_are_the_way_to_the_root(name: str) -> None:
    structure = Structure.from_adjacency(graph(name))
    order = structure.order
    assert not structure.ancestors[order][:, order].triu().any()
    assert not (structure.parents & ~structure.ancestors).any()
    for v in range(structure.dim):
        way, u = [], int(structure.tree[v])
        while u >= 0:
            way.append(u)
            u = int(structure.tree[u])
        assert sorted(way) == structure.ancestors[v].nonzero().flatten().tolist()


def test_a_chain_has_a_tree_of_logarithmic_depth() -> None:
    structure = Structure.from_adjacency(chain(303, 3))
    assert int(structure.depth.max()) <= 3 + 9 and structure.share < 0.08


def test_a_hierarchys_locals_have_no_others_as_ancestors() -> None:
    groups, common = 50, 3
    adjacency = torch.zeros(groups * 2 + common, groups * 2 + common, dtype=torch.bool)
    adjacency[:common] = adjacency[:, :common] = True
    for k in range(groups):
        i, j = common + 2 * k, common + 2 * k + 1
        adjacency[i, j] = adjacency[j, i] = True
    structure = Structure.from_adjacency(adjacency)
    assert int(structure.depth.max()) == common + 1


def test_a_dense_graph_is_a_full_map() -> None:
    found = Structure.from_adjacency(torch.ones(9, 9))
    assert found.is_dense and found.share == 1 and Structure.dense(9).is_dense
    assert not Structure.from_adjacency(chain(9)).is_dense


@pytest.mark.parametrize(
    "adjacency, words",
    [
        (torch.ones(2, 3), "square matrix"),
        (torch.ones(3), "square matrix"),
        (torch.zeros(0, 0), "square matrix"),
        (torch.ones(3, 3).tril(), "symmetric.*adjacency.T"),
        (torch.full((2, 2), 0.5), "zeros and ones"),
        (torch.full((2, 2), float("nan")), "zeros and ones"),
        ("chain", "'auto', 'full'"),
        ({0: [1]}, "'auto', 'full'"),
        (None, "'auto', 'full'"),
    ],
)
def test_what_is_no_adjacency_is_refused_in_a_sentence(adjacency: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Structure.from_adjacency(adjacency)


def test_lists_and_numbers_are_adjacencies_too() -> None:
    assert Structure.from_adjacency([[1, 1], [1, 0]]).is_dense


# ------------------------------------------------------------------------------------- conditioner

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inverse": {"inverse": True},
    "context": {"context_dim": 2},
    "summaries": {"window": 3, "summary_dim": 4},
    "summaries of single ancestors": {"window": 1, "summary_dim": 2},
}


def conditioner_of(name: str, option: str) -> tuple[GraphConditioner, Structure]:
    structure = Structure.from_adjacency(graph(name))
    conditioner = GraphConditioner(structure, 3, 5, **OPTIONS[option]).double()
    roughen(conditioner)
    return conditioner, structure


@pytest.mark.parametrize("option", OPTIONS)
@every_graph
def test_a_latent_reads_its_ancestors_or_parents_and_a_sweep_is_the_pass(
    name: str, option: str
) -> None:
    conditioner, structure = conditioner_of(name, option)
    x = torch.randn(3, structure.dim, dtype=torch.double)
    context = torch.randn(3, 2, dtype=torch.double) if option == "context" else None
    order = conditioner.get_permutation()
    read = structure.parents if option == "inverse" else structure.ancestors
    assert torch.equal(dependence(conditioner, x, context), read[order][:, order])
    swept = run_sweep(conditioner, x, context)
    assert torch.allclose(swept, conditioner(x, context), atol=1e-12)


def test_summaries_bound_the_weights_of_a_dense_graph() -> None:
    def count(dim: int, window: int) -> int:
        conditioner = GraphConditioner(Structure.dense(dim), 26, window=window)
        return sum(p.numel() for p in conditioner.parameters())

    assert count(175, 64) < 400_000
    # Linear in D from the window on, where a full map is quadratic.
    assert count(240, 16) < 2.2 * count(120, 16)


def test_it_starts_near_zero_and_its_gradients_are_those_of_the_sweep() -> None:
    structure = Structure.from_adjacency(chain(9, 1))
    conditioner = GraphConditioner(structure, 4).double()
    x = torch.randn(50, 9, dtype=torch.double)
    assert float(conditioner(x).detach().abs().max()) < 0.5
    for result in (conditioner(x), run_sweep(conditioner, x)):
        result.square().sum().backward()
    doubled = [p.grad.clone() for p in conditioner.parameters() if p.grad is not None]
    conditioner.zero_grad()
    conditioner(x).square().sum().backward()
    once = [p.grad for p in conditioner.parameters() if p.grad is not None]
    assert all(torch.allclose(a, 2 * b, rtol=1e-8) for a, b in zip(doubled, once, strict=True))


def test_batch_shapes_broadcast_with_the_context() -> None:
    conditioner, _ = conditioner_of("chain", "context")
    x = torch.randn(4, 1, 17, dtype=torch.double)
    context = torch.randn(3, 2, dtype=torch.double)
    phi = conditioner(x, context)
    assert phi.shape == (4, 3, 17, 3)
    assert torch.allclose(phi[1, 2], conditioner(x[1, 0], context[2]))
    with pytest.raises(ValueError, match="context must have shape"):
        conditioner(x)


def test_copies_and_pickles_compute_alike() -> None:
    conditioner, _ = conditioner_of("grid", "plain")
    x = torch.randn(2, 25, dtype=torch.double)
    for twin in (copy.deepcopy(conditioner), pickle.loads(pickle.dumps(conditioner))):
        assert torch.equal(twin(x), conditioner(x))


@pytest.mark.parametrize("option", ["plain", "inverse", "summaries"])
@every_graph
def test_a_flow_on_it_has_the_pattern_and_an_exact_inverse(name: str, option: str) -> None:
    structure = Structure.from_adjacency(graph(name))
    conditioner = GraphConditioner(structure, 14, 5, **OPTIONS[option])
    flow = DeepSigmoidalFlow(conditioner, 4, affine=True).double()
    roughen(flow, 0.5)
    x = torch.randn(structure.dim, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.value_and_log_slope(x)[0], x)
    read = structure.parents if option == "inverse" else structure.ancestors
    assert torch.equal(jacobian != 0, read | torch.eye(structure.dim, dtype=torch.bool))
    y = flow(x).detach()
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(flow.log_abs_det_jacobian(x, y), log_det, atol=1e-10)
    flow.clear_cache()
    assert float((flow.inv(y[None]) - x).detach().abs().max()) < 1e-9
    back = copy.deepcopy(flow)(flow.inv(y[None]))
    assert float((back - y).detach().abs().max()) < 1e-11


# -------------------------------------------------------------------------------------- affine map


@every_graph
def test_a_gaussian_of_the_graph_has_an_exact_factor_of_the_pattern(name: str) -> None:
    structure = Structure.from_adjacency(graph(name))
    precision = precision_of(structure.adjacency)
    covariance = torch.linalg.inv(precision)
    for given in ({"precision": precision}, {"covariance": covariance}):
        factor = factor_of(structure, **given)
        assert torch.allclose(factor @ factor.T, covariance, rtol=1e-9, atol=1e-12)
        assert has_pattern(structure, factor)
        affine = StructuredAffine(torch.randn(structure.dim).double(), factor, structure.order)
        x = torch.randn(4, structure.dim, dtype=torch.double)
        y = affine(x)
        assert torch.allclose(affine.with_cache(0).inv(y), x, atol=1e-10)
        log_det = 0.5 * torch.linalg.slogdet(covariance).logabsdet
        assert torch.allclose(affine.log_abs_det_jacobian(x, y), log_det.expand(4))


def test_of_another_covariance_the_closest_gaussian_is_taken() -> None:
    structure = Structure.from_adjacency(chain(6))
    root = torch.randn(6, 6, dtype=torch.double)
    covariance = root @ root.T + torch.eye(6)
    factor = factor_of(structure, covariance=covariance)

    def divergence(factor: Tensor) -> float:
        precision = torch.linalg.inv(factor @ factor.T)
        return float((precision @ covariance).trace() - torch.linalg.slogdet(precision).logabsdet)

    least = divergence(factor)
    for _ in range(20):
        pairs = int(structure.ancestors.sum())
        nudge = triangular(
            structure,
            1 + 0.01 * torch.randn(6, dtype=torch.double),
            0.01 * torch.randn(pairs, dtype=torch.double),
        )
        # Maps with the pattern can be composed: this is a neighbour in the family.
        assert has_pattern(structure, factor @ nudge)
        inverse = torch.linalg.inv(factor @ nudge)
        order = structure.order
        cut = torch.where(structure.parents | torch.eye(6).bool(), inverse, 0.0)[order][:, order]
        neighbour = torch.linalg.inv(cut)[order.argsort()][:, order.argsort()]
        assert divergence(neighbour) >= least - 1e-12


def test_arguments_of_the_factor_are_checked() -> None:
    structure = Structure.from_adjacency(chain(3))
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="exactly one of precision"):
        factor_of(structure)
    with pytest.raises(ValueError, match="exactly one of precision"):
        factor_of(structure, precision=eye, covariance=eye)
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        factor_of(structure, precision=torch.eye(4))
    for given in ({"precision": -eye}, {"covariance": -eye}):
        with pytest.raises(ValueError, match="positive definite"):
            factor_of(structure, **given)
