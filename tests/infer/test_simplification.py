"""A captured graph is written anew with fewer operations, and computes the same."""

import math
import random

import pytest
import torch
from models import schools
from torch import nn
from torch.distributions import Normal

from pyro_naf.infer.capture import trace
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.simplification import simplified

aten = torch.ops.aten
N = 6


def graphs(function, *examples):
    """The graph of a function of float64 tensors as recorded, and as simplified."""
    module = trace(lambda *inputs: function(*inputs), *examples)
    return module, simplified(module)


def targets(module):
    return [n.target for n in module.graph.nodes if n.op == "call_function"]


def assert_same(function, *shapes, points=3):
    """The simplified graph agrees with the function at points it was not recorded at."""
    examples = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    module, simple = graphs(function, *examples)
    for scale in range(points):
        inputs = [torch.randn(shape, dtype=torch.float64) * 3**scale for shape in shapes]
        expected = function(*(x.clone() for x in inputs))
        found = simple(*(x.clone() for x in inputs))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
        assert found.is_contiguous() or not expected.is_contiguous()
    return module, simple


def gradient(function):
    """Values and gradients of a function of one draw, for many: what is captured of a model."""

    def both(u):
        value, pull = torch.func.vjp(torch.vmap(function), u)
        return torch.cat([value[:, None], pull(torch.ones_like(value))[0]], 1)

    return both


def test_scale_is_not_expanded_before_its_logarithm_is_taken():
    data = torch.randn(50, dtype=torch.float64)

    def log_density(u):
        scale = u[1].exp().expand(50)
        return Normal(u[0], scale, validate_args=False).log_prob(data).sum()

    module, simple = assert_same(gradient(log_density), (N, 2))
    assert entries_of_logarithms(module) == [N * 50]
    assert entries_of_logarithms(simple) == [N]


def entries_of_logarithms(module):
    found = []

    class Looking(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if target is aten.log.default:
                found.append(args[0].numel())
            return super().call_function(target, args, kwargs)

    Looking(module).run(torch.zeros(N, 2, dtype=torch.float64))
    return found


def test_sum_over_a_flattened_tensor_runs_over_its_axes():
    _, simple = assert_same(
        lambda x, y: (x[:, :, None] * y[:, None]).reshape(N, -1).sum(1), (N, 3), (N, 4)
    )
    sums = [n for n in simple.graph.nodes if n.target is aten.sum.dim_IntList]
    assert [n.args[1] for n in sums] == [[1, 2]]
    assert aten.reshape.default not in [n.args[0].target for n in sums]


def test_sum_over_what_is_broadcast_is_a_product():
    _, simple = assert_same(lambda x: x[:, None].expand(N, 7).exp().sum(1), (N,))
    assert aten.sum.dim_IntList not in targets(simple)


@pytest.mark.parametrize("size", [2, 3])
def test_sums_of_few_entries_are_written_out(size):
    shape = (2, 4000, size, 2)
    _, simple = assert_same(lambda x: x.sum(2) + x.logsumexp(2), shape)
    assert aten.sum.dim_IntList not in targets(simple)
    assert aten.logsumexp.default not in targets(simple)


def test_log_sum_exp_of_few_entries_keeps_infinities():
    x = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf], [math.inf, 1.0]])
    _, simple = graphs(lambda x: x.logsumexp(1), x)
    torch.testing.assert_close(simple(x), x.logsumexp(1))


def test_derivatives_are_not_multiplied_by_ones():
    _, simple = assert_same(gradient(lambda u: (u.square() * u.sin()).sum()), (N, 3))
    assert not {aten.ones_like.default, aten.zeros_like.default, aten.expand.default} & set(
        targets(simple)
    )


def test_what_depends_on_constants_alone_is_a_constant():
    scale = torch.arange(1.0, 4.0, dtype=torch.float64)
    _, simple = assert_same(lambda x: x / torch.ones_like(scale) + (1 / scale), (N, 3))
    assert len(targets(simple)) == 1


def test_equal_operations_are_made_once():
    _, simple = assert_same(lambda x: x.exp() * 2 + x.exp(), (N,))
    assert targets(simple).count(aten.exp.default) == 1


CASES = {
    "own tensor written": lambda x: x.exp().add_(1.0).mul_(x).log_(),
    "a part written": lambda x: _with_part_written(x),
    "input written": lambda x: x.add_(1.0) * 2,
    "view read after a write": lambda x: _read_through_view(x),
    "result read under both names": lambda x: _two_names(x),
    "squeeze in place": lambda x: x[:, None].exp().squeeze_(1) + x,
    "integers": lambda x: x * torch.arange(4).reshape(1, 4) // 2 + (x > 0).sum(1, keepdim=True),
    "booleans": lambda x: (x > 0) * (x < 1) * 1.0 + torch.where(x > 0, x, 0.0),
    "other dtype": lambda x: (x.float() * torch.ones(4)).double() + x * torch.zeros(4),
    "powers": lambda x: x**1 + x**2.0 + 2.0**x + x.abs() ** x,
    "division": lambda x: 1 / x + x / 1 - (-1) / x + torch.div(x, 0.3, rounding_mode="floor"),
    "signs": lambda x: torch.neg(-x) + (0 - x) - (-1.0) * x,
    "alpha": lambda x: torch.add(x, x.exp(), alpha=2) - torch.sub(x, x.sin(), alpha=0.5),
    "products added": lambda x: x.sin() + x * x.cos() - x * 0.25 + (x.exp() - x * x.tanh()),
    "permuted": lambda x: x[:, :1].expand(N, 4).t().exp().reshape(2, -1, 3).sum((0, 2)),
    "selected": lambda x: x[:, :1].expand(N, 4)[:, 2] + x[:, :1].expand(N, 4)[:, 1:3].sum(1),
    "regrouped": lambda x: x[:, None].expand(N, 3, 4).reshape(N * 3, 2, 2).exp().sum(1),
    "mixed axes": lambda x: x[:, :, None].expand(N, 4, 2).reshape(N, 8).sin().cumsum(1),
    "concatenated": lambda x: torch.cat([x[:, :1].expand(N, 3), torch.ones_like(x)], 1).cumsum(1),
    "masked": lambda x: x.masked_fill(x < 0, -math.inf).clamp(max=1) * torch.ones_like(x),
    "factor": lambda x: torch.linalg.cholesky(x.mT @ x + torch.eye(4).double()).log().tril(),
    "not a number": lambda x: torch.zeros_like(x) * x.log(),
    "constant result": lambda x: torch.ones_like(x)[:, None].expand(N, 2, 4) * 2,
    "indexed": lambda x: x[:, torch.tensor([0, 0, 3])].exp().sum(1),
    "scattered": lambda x: torch.zeros(N, 3).double().index_put((torch.tensor([0, 1]),), x[:2, :3]),
    "sum of no axes": lambda x: x + x.sum().logsumexp(-1) + x.sum().transpose(0, -1).exp(),
    "many writes": lambda x: _written_often(x),
    "number too large for its dtype": lambda x: x + torch.full((20,), 1e38).sum().clamp(max=1.0),
    "no entries of what is infinite": lambda x: x + (x[:, :1] / 0).expand(N, 3)[:, :0].sum(),
    "permuted twice": lambda x: x.expand(2, N, 4).permute(1, 2, 0).permute(2, 0, 1).exp()[1].t(),
    "an axis of one moved": lambda x: x[:, :1, None].expand(N, 4, 1).permute(2, 0, 1).sin().sum(0),
    "nothing": lambda x: x[:, :0].exp().sum(1) + x[:, 0],
}  # fmt: skip


def _with_part_written(x):
    whole = x.exp()
    whole[:, 0] = 3.0
    return whole * x


def _read_through_view(x):
    whole = x.exp()
    view = whole[:, :2]
    whole.mul_(2.0)
    return view + 1


def _written_often(x):
    whole = x.exp()
    for i in range(50):
        whole += x * i
    return whole.squeeze_(0)


def _two_names(x):
    whole = x.exp()
    other = whole.mul_(2.0)
    other.add_(1.0)
    return whole * other


@pytest.mark.parametrize("name", CASES)
def test_graph_computes_the_same(name):
    assert_same(CASES[name], (N, 4))


@pytest.mark.parametrize("number", [0.01, 0.1])
def test_numbers_are_rounded_as_their_tensors_are(number):
    scale = torch.bfloat16 if number == 0.01 else torch.float32

    def function(x):
        return x * torch.full((4,), number, dtype=scale).to(x.dtype) * 1e6

    assert_same(function, (N, 4))


def test_outputs_are_tensors_of_their_own():
    """Callers write into gradients; neither inputs nor constants of the graph may change."""
    x = torch.randn(1, 1)
    _, simple = graphs(lambda x: (x * 1.0, torch.ones_like(x), x.reshape(1), x.exp(), x.exp()), x)
    y = torch.randn(1, 1)
    expected = (y.clone(), torch.ones(1, 1), y.reshape(1).clone(), y.exp(), y.exp())
    for _ in range(2):
        found = simple(y)
        torch.testing.assert_close(found, expected)
        for out in found:
            out.mul_(5.0)


def test_permutations_that_change_nothing_are_left_out() -> None:
    _, simple = assert_same(lambda x: x[:, :, None].permute(0, 2, 1)[:, 0].t().t().exp(), (N, 3))
    assert not [node for node in simple.graph.nodes if "permute" in str(node.target)]


def test_random_operations_are_left_alone():
    def noisy(x):
        return x + torch.rand_like(x) - torch.rand_like(x)

    x = torch.zeros(1000)
    _, simple = graphs(noisy, x)
    assert targets(simple).count(aten.rand_like.default) == 2
    assert simple(x).std() > 0.3


UNARY = [
    torch.exp,
    torch.sin,
    torch.neg,
    torch.tanh,
    lambda x: x**2,
    lambda x: x * 1.0,
    lambda x: 2 - x,
]
BINARY = [torch.add, torch.mul, torch.sub, lambda x, y: x / (1 + y.square()), torch.maximum]


def random_program(seed):
    """A function of a tensor (N, 4): axes are broadcast, summed and regrouped at random."""
    choose = random.Random(seed)
    plan = [(choose.random(), choose.random(), choose.random()) for _ in range(25)]

    def pick(options, at):
        return options[int(at * len(options))]

    def function(x):
        known = [x, x[:, :1].expand(N, 4), torch.ones_like(x), torch.full_like(x, 0.5)]
        for what, first, second in plan:
            a, b = pick(known, first), pick(known, second)
            if what < 0.3:
                new = pick(UNARY, second)(a)
            elif what < 0.7:
                new = pick(BINARY, what * 97 % 1)(a, b)
            elif what < 0.8:
                new = a.sum(1, keepdim=True).expand(N, 4)
            elif what < 0.9:
                new = a.reshape(N // 2, 8).sum(pick([0, 1], second)).sum() * b
            else:
                new = a[:, pick([0, 3], second)].unsqueeze(1).expand(N, 4)
            known.append(new.clamp(-5, 5))
        return torch.stack(known[-6:]).sum(0)

    return function


@pytest.mark.parametrize("seed", range(30))
def test_random_programs_and_their_derivatives_are_the_same(seed):
    function = random_program(seed)

    def both(x):
        value, pull = torch.func.vjp(function, x)
        return value + pull(torch.ones_like(value))[0]

    assert_same(both, (N, 4))


def test_network_is_the_same():
    net = nn.Sequential(nn.Linear(4, 8), nn.ELU(), nn.Linear(8, 1)).double()
    assert_same(gradient(lambda u: net(u).sum()), (N, 4))


def test_eight_schools_takes_less_than_two_thirds_of_its_operations():
    joint = Joint(schools)
    module = trace(lambda u: joint.value_and_grad(u), joint.start + torch.randn(N, joint.dim))
    assert len(targets(simplified(module))) < 0.67 * len(targets(module))
