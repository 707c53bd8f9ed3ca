"""The scalar maps against float64, mpmath, autograd and the plain formulas of the paper."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import mpmath
import pytest
import torch
from registry import TRANSFORMERS, sharp_parameters, sharp_phi
from torch import Tensor

from pyro_naf.formulas.elementary import softplus_inverse
from pyro_naf.formulas.spec import spread_biases
from pyro_naf.transformers import (
    Affine,
    DeepDenseSigmoidal,
    DeepSigmoidal,
    RationalQuadraticSpline,
    Transformer,
)

SIGMOIDAL = ["dsf", "ddsf-1", "ddsf-2", "ddsf-4"]

#: Layers, hidden units, and whether the sigmoids step at places that are spread.
of_all_sizes = pytest.mark.parametrize(
    "num_layers, hidden_units, centred",
    list(itertools.product([1, 2, 4], [1, 4, 64], [False, True])),
)


def sigmoidal(num_layers: int, hidden_units: int) -> DeepSigmoidal | DeepDenseSigmoidal:
    """DSF for one layer, DDSF for more."""
    if num_layers == 1:
        return DeepSigmoidal(hidden_units)
    return DeepDenseSigmoidal(hidden_units, num_layers)


def in_double(transformer: Transformer) -> Transformer:
    return copy.deepcopy(transformer).double()


def relative(got: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to max(1, |exact|)."""
    return float(((got - exact).abs() / exact.abs().clamp(min=1)).max())


@torch.no_grad()
def errors(
    transformer: Transformer, params: Sequence[Tensor], x: Tensor, device: torch.device
) -> tuple[float, float]:
    """Errors of float32 value and log-slope against float64."""
    transformer, x, params = transformer.to(device), x.to(device), [p.to(device) for p in params]
    got = transformer.evaluate(x, *params)
    exact = in_double(transformer).evaluate(x.double(), *[p.double() for p in params])
    return relative(got[0], exact[0]), relative(got[1], exact[1])


def mp_sigmoidal(x: float, a: Sequence[float], b: Sequence[float], w: Sequence[float]) -> tuple:
    """Eq. 28 and the logarithm of its derivative, as written, with as many digits as it takes."""
    with mpmath.workdps(1200):

        def sigmoid(u: mpmath.mpf) -> mpmath.mpf:
            return 1 / (1 + mpmath.exp(-u))

        weights = [mpmath.exp(w_h) for w_h in w]
        u = [mpmath.mpf(a_h) * x + b_h for a_h, b_h in zip(a, b, strict=True)]
        total = mpmath.fsum(weights)
        left = mpmath.fsum(w_h * sigmoid(u_h) for w_h, u_h in zip(weights, u, strict=True))
        right = mpmath.fsum(w_h * sigmoid(-u_h) for w_h, u_h in zip(weights, u, strict=True))
        density = mpmath.fsum(
            w_h * a_h * sigmoid(u_h) * sigmoid(-u_h)
            for w_h, a_h, u_h in zip(weights, a, u, strict=True)
        )
        slope = density * total / (left * right)
        return float(mpmath.log(left / right)), float(mpmath.log(slope))


# ------------------------------------------------------------------------- the formulas themselves


def test_dsf_is_the_logit_of_the_mixture_of_eq_28() -> None:
    dsf = DeepSigmoidal(6).double()
    phi, x = torch.randn(200, 18).double(), torch.randn(200).double()
    a, b, w = dsf.constrain(phi)
    mixture = (torch.softmax(w, -1) * torch.sigmoid(a * x.unsqueeze(-1) + b)).sum(-1)
    y, _ = dsf(x, phi)
    torch.testing.assert_close(y, torch.logit(mixture), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_ddsf_is_eq_29_with_a_softmax_matrix_for_every_sample(num_layers: int) -> None:
    k = 5
    ddsf = DeepDenseSigmoidal(k, num_layers).double()
    params = ddsf.constrain(torch.randn(50, ddsf.num_params).double())
    h = x = torch.randn(50, 1).double()
    for layer in range(num_layers):
        a, b, e = params[3 * layer : 3 * layer + 3]
        if layer > 0:
            e_u = params[3 * num_layers + layer - 1]
            u = torch.softmax(ddsf.u[layer - 1] + e_u.unsqueeze(-2), -1)
            h = (u @ h.unsqueeze(-1)).squeeze(-1)
        w = torch.softmax(ddsf.w[layer] + e.unsqueeze(-2), -1)
        h = torch.logit((w @ torch.sigmoid(a * h + b).unsqueeze(-1)).squeeze(-1))
    y, _ = ddsf.evaluate(x.squeeze(-1), *params)
    torch.testing.assert_close(y, h.squeeze(-1), rtol=1e-12, atol=1e-12)


def test_ddsf_of_one_layer_is_dsf() -> None:
    dsf, ddsf = DeepSigmoidal(7).double(), DeepDenseSigmoidal(7, 1).double()
    with torch.no_grad():
        ddsf.w[0].zero_()
    x, phi = 3 * torch.randn(100).double(), torch.randn(100, 21).double()
    torch.testing.assert_close(ddsf(x, phi), dsf(x, phi), rtol=1e-13, atol=1e-13)


def test_affine_is_eq_15_and_gated_affine_is_eq_26() -> None:
    x, phi = torch.randn(20).double(), torch.randn(20, 2).double()
    m, s = phi.unbind(-1)
    y, log_slope = Affine()(x, phi)
    torch.testing.assert_close(y, m + s.exp() * x)
    torch.testing.assert_close(log_slope, s)
    gate = torch.sigmoid(s + 1.5)
    y, log_slope = Affine(gated=True, gate_bias=1.5)(x, phi)
    torch.testing.assert_close(y, gate * x + (1 - gate) * m)
    torch.testing.assert_close(log_slope, gate.log())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_log_slope_is_the_log_of_the_autograd_derivative(name: str, device: torch.device) -> None:
    transformer = TRANSFORMERS[name]().to(device).double()
    x = (4 * torch.randn(300)).double().to(device).requires_grad_()
    y, log_slope = transformer(x, torch.randn(300, transformer.num_params).double().to(device))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shapes_are_those_of_x(name: str) -> None:
    transformer = TRANSFORMERS[name]()
    for shape in [(), (3,), (2, 3), (0,), (2, 0, 3)]:
        y, log_slope = transformer(torch.randn(shape), torch.randn(*shape, transformer.num_params))
        assert y.shape == log_slope.shape == shape


# ----------------------------------------------------------------------------------------- float32


@pytest.mark.parametrize("hidden_units", [1, 2, 4, 16, 64])
def test_float32_dsf_is_right_to_a_few_roundings_within_ten(
    hidden_units: int, device: torch.device
) -> None:
    dsf = DeepSigmoidal(hidden_units)
    params = sharp_parameters(dsf, 4000)
    value, log_slope = errors(dsf, params, torch.rand(4000) * 20 - 10, device)
    assert value <= 1e-6
    assert log_slope <= 5e-6


@pytest.mark.parametrize("hidden_units", [1, 4, 16, 64])
@pytest.mark.parametrize("num_layers", [2, 4])
def test_float32_ddsf_is_right_to_1e_5_within_ten(
    num_layers: int, hidden_units: int, device: torch.device
) -> None:
    # Layers whose slopes multiply to 50. With 50 in each, the rounding of x alone would move y by
    # more than 1e-5: see the test below.
    ddsf = DeepDenseSigmoidal(hidden_units, num_layers)
    params = sharp_parameters(ddsf, 2000, max_slope=50 ** (1 / num_layers))
    value, log_slope = errors(ddsf, params, torch.rand(2000) * 20 - 10, device)
    assert value <= 1e-5
    assert log_slope <= 1e-5


def condition(f: Tensor, inputs: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
    """What a relative change of 1 in every input may change ``f`` ``(N,)`` by, to first order."""
    total = f.detach().abs() + 1
    grads = torch.autograd.grad(f.sum(), inputs, retain_graph=True, allow_unused=True)
    for p, g in zip(inputs, grads, strict=True):
        if g is not None:
            total = total + (p * g).abs().flatten(1).sum(1) if p.dim() > 1 else total + abs(p * g)
    lanes = torch.eye(len(f), dtype=f.dtype, device=f.device)
    for m in matrices:
        (g,) = torch.autograd.grad(f, m, lanes, retain_graph=True, is_grads_batched=True)
        total = total + (m * g).abs().flatten(1).sum(1)
    return total.detach()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("hidden_units", [1, 4, 16, 64])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_float32_error_is_that_of_rounding_the_inputs(
    num_layers: int, hidden_units: int, centred: bool, device: torch.device
) -> None:
    # Slopes to 50 in each layer, and steep units stepping anywhere: the problem itself is
    # ill-conditioned, and no algorithm does better than a multiple of this bound.
    samples = 400 if hidden_units < 16 else 60
    transformer = sigmoidal(num_layers, hidden_units)
    params = [p.to(device) for p in sharp_parameters(transformer, samples, centred=centred)]
    x = (torch.rand(samples) * 20 - 10).to(device)
    transformer = transformer.to(device)
    with torch.no_grad():
        single = transformer.evaluate(x, *params)
    exact_transformer = in_double(transformer)
    inputs = [t.double().requires_grad_() for t in (x, *params)]
    exact = exact_transformer.evaluate(*inputs)
    for got, true in zip(single, exact, strict=True):
        bound = condition(true, inputs, list(exact_transformer.parameters()))
        error = (got - true).detach().abs() / (torch.finfo(torch.float).eps * bound)
        assert float(error.max()) <= 8


@of_all_sizes
def test_float32_is_finite_with_finite_gradients_to_a_million(
    num_layers: int, hidden_units: int, centred: bool, device: torch.device
) -> None:
    transformer = sigmoidal(num_layers, hidden_units)
    params = sharp_parameters(transformer, 1000, centred=centred)
    inputs = [torch.cat([torch.logspace(-6, 6, 500), -torch.logspace(-6, 6, 500)]), *params]
    inputs = [t.to(device).requires_grad_() for t in inputs]
    y, log_slope = transformer.to(device).evaluate(*inputs)
    assert torch.isfinite(y).all() and torch.isfinite(log_slope).all()
    for output in (y, log_slope):
        leaves = [*inputs, *transformer.parameters()]
        grads = torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)


@of_all_sizes
def test_float32_increases_strictly_wherever_float32_can_tell(
    num_layers: int, hidden_units: int, centred: bool, device: torch.device
) -> None:
    functions, points = 6, 2000
    transformer = sigmoidal(num_layers, hidden_units)
    slope = 50 ** (1 / num_layers)
    params = sharp_parameters(transformer, functions, max_slope=slope, centred=centred)
    params = tuple(p.unsqueeze(1).to(device) for p in params)
    far = torch.logspace(1, 6, points // 4)
    grid = torch.cat([-far.flip(0), torch.linspace(-9.99, 9.99, points // 2), far]).to(device)
    transformer = transformer.to(device)
    with torch.no_grad():
        y, _ = transformer.evaluate(grid, *params)
        exact, _ = in_double(transformer).evaluate(grid.double(), *[p.double() for p in params])
    ulp = torch.finfo(torch.float).eps * exact.abs().clamp(min=1)
    # Where a steep unit steps far from zero, a x + b itself is rounded by many ulps of y.
    apart = exact.diff() > (32 if centred else 4) * ulp[:, 1:]
    assert apart.double().mean() > 0.5
    assert (y.diff()[apart] > 0).all()


@pytest.mark.parametrize("name", [*SIGMOIDAL, "affine"])
@pytest.mark.parametrize("magnitude", [1e3, 1e6, 1e8, 1e20])
def test_float32_at_the_start_has_the_right_log_slope_far_out(name: str, magnitude: float) -> None:
    # All slopes are equal here, so every unit counts however far out x is.
    transformer = TRANSFORMERS[name]()
    x, phi = torch.tensor([-magnitude, magnitude]), torch.zeros(2, transformer.num_params)
    with torch.no_grad():
        y, log_slope = transformer(x, phi)
        exact = in_double(transformer)(x.double(), phi.double())
    assert relative(y, exact[0]) <= 1e-6
    assert relative(log_slope, exact[1]) <= 5e-6


@pytest.mark.parametrize("x", [1e20, -1e20, 1e6, -1e6, 1.0])
def test_float32_dsf_agrees_with_mpmath_at_1e20(x: float) -> None:
    # Far out the slope is that of the flattest unit: log(0.29588) = -1.2178.
    a, b, w = [3.0, 0.29588, 1.7], [0.5, -1.0, 2.0], [0.0, -2.0, -4.0]
    a, b, w = (torch.tensor(p).tolist() for p in (a, b, w))
    y, log_slope = DeepSigmoidal(3).evaluate(torch.tensor(x), *map(torch.tensor, (a, b, w)))
    # At 1e20 the digits that the formula needs are more than any computer's: its limit is affine.
    exact = mp_sigmoidal(x, a, b, w) if abs(x) < 100 else affine_limit(x, a, b, w)
    assert y.item() == pytest.approx(exact[0], rel=1e-6)
    assert log_slope.item() == pytest.approx(exact[1], rel=5e-6)
    if abs(x) == 1e20:
        assert log_slope.item() == pytest.approx(-1.2178, abs=5e-5)


def affine_limit(x: float, a: list[float], b: list[float], w: list[float]) -> tuple[float, float]:
    """Where only the flattest unit is not saturated: y = a x + b -+ log of its weight."""
    flat = min(range(len(a)), key=a.__getitem__)
    log_weight = w[flat] - float(torch.logsumexp(torch.tensor(w).double(), 0))
    sign = 1 if x > 0 else -1
    return a[flat] * x + b[flat] - sign * log_weight, float(mpmath.log(a[flat]))


def test_affine_limit_is_where_mpmath_goes() -> None:
    a, b, w = [3.0, 0.5, 1.7], [0.5, -1.0, 2.0], [0.0, -2.0, -4.0]
    for x in (-150.0, 150.0):
        assert affine_limit(x, a, b, w) == pytest.approx(mp_sigmoidal(x, a, b, w), rel=1e-12)


@pytest.mark.parametrize("x", [-4.0, -0.5, 0.0, 0.25, 3.0])
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("name", ["dsf", "ddsf-1"])
def test_deep_plateau_keeps_its_log_slope(name: str, dtype: torch.dtype, x: float) -> None:
    # Between steep steps the slope is exp(-245): far below the smallest float32.
    a, b, w = [50.0, 50.0], [250.0, -250.0], [0.0, -0.5]
    transformer = DeepSigmoidal(2) if name == "dsf" else DeepDenseSigmoidal(2, 1)
    if isinstance(transformer, DeepDenseSigmoidal):
        with torch.no_grad():
            transformer.w[0].zero_()
    inputs = [torch.tensor(t, dtype=dtype, requires_grad=True) for t in (x, a, b, w)]
    y, log_slope = transformer.to(dtype).evaluate(*inputs)
    exact = mp_sigmoidal(x, a, b, w)
    tolerance = {torch.float: 1e-6, torch.double: 1e-14}[dtype]
    assert exact[1] < -40
    assert y.item() == pytest.approx(exact[0], rel=tolerance, abs=tolerance)
    assert log_slope.item() == pytest.approx(exact[1], rel=5 * tolerance)
    grads = torch.autograd.grad(log_slope, inputs)
    assert all(bool(torch.isfinite(g).all()) for g in grads)


@pytest.mark.parametrize("seed", range(5))
def test_float64_dsf_agrees_with_mpmath(seed: int) -> None:
    torch.manual_seed(seed)
    a, b, w = (p[0].double() for p in sharp_parameters(DeepSigmoidal(8), 1, centred=seed > 2))
    for x in (-9.0, -0.3, 0.0, 4.0):
        got = DeepSigmoidal(8).evaluate(torch.tensor(x, dtype=torch.double), a, b, w)
        exact = mp_sigmoidal(x, a.tolist(), b.tolist(), w.tolist())
        assert [t.item() for t in got] == pytest.approx(exact, rel=1e-12, abs=1e-12)


# --------------------------------------------------------------------------- brackets and inverses


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("bound", [1.0, 4.0, 50.0])
@pytest.mark.parametrize("size", [0, 1, 8, 100])
def test_the_splines_inverse_stays_in_its_bin_to_rounding_or_says_so(
    size: float, bound: float, dtype: torch.dtype
) -> None:
    # Flat and steep bins, knots themselves, and beyond the bound.
    spline = RationalQuadraticSpline(8, bound)
    phi = (size * torch.randn(4000, spline.num_params)).to(dtype)
    knots_x, knots_y, _ = spline.constrain(phi)
    anywhere = bound * 1.2 * (2 * torch.rand(2000) - 1).to(dtype)
    y = torch.cat([anywhere, knots_y[2000:].gather(1, torch.randint(9, (2000, 1))).squeeze(1)])
    x, error = spline.preimage(y, phi)
    value, log_slope = spline(x, phi)
    eps, residual = torch.finfo(dtype).eps, (value - y).abs()
    bin_ = (y.unsqueeze(-1) >= knots_y[:, 1:-1]).sum(-1, keepdim=True)
    inside = y.abs() < bound
    ends = [knots_x.gather(1, bin_ + end).squeeze(1) for end in (0, 1)]
    slack = 4 * eps * bound
    assert ((x >= ends[0] - slack) & (x <= ends[1] + slack))[inside].all()
    assert torch.equal(x[~inside], y[~inside])
    allowed = 32 * eps * y.abs().clamp(min=1) + 8 * eps * bound * log_slope.exp()
    assert (residual <= allowed)[error == 0].all()
    assert (residual[error == 0] <= 4 * eps**0.5 * y.abs().clamp(min=1)[error == 0]).all()
    assert (error != 0).double().mean() < 0.01


def test_the_splines_inverse_says_where_it_is_lost() -> None:
    spline = RationalQuadraticSpline(4)
    phi = torch.zeros(3, spline.num_params)
    phi[2] = torch.nan
    _, error = spline.preimage(torch.tensor([0.5, torch.inf, 0.5]), phi)
    assert error is not None and [bool(e == 0) for e in error] == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_bracket_holds_the_preimage(name: str, dtype: torch.dtype) -> None:
    transformer = TRANSFORMERS[name]().to(dtype)
    x = torch.cat([3 * torch.randn(500), 1e4 * torch.randn(100)]).to(dtype)
    params = transformer.constrain(torch.randn(600, transformer.num_params).to(dtype))
    y, _ = transformer.evaluate(x, *params)
    lo, hi = transformer.bracket(y, *params)
    room = 1e2 * torch.finfo(dtype).eps * x.abs().clamp(min=1) * (1 + y.abs() / x.abs())
    assert lo.shape == hi.shape == x.shape
    assert (lo <= x + room).all() and (x <= hi + room).all()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_inverse_gives_back_x(name: str, device: torch.device) -> None:
    transformer = TRANSFORMERS[name]().to(device).double()
    x = (5 * torch.randn(1000)).double().to(device)
    phi = torch.randn(1000, transformer.num_params).double().to(device)
    torch.testing.assert_close(
        transformer.inverse(transformer(x, phi)[0], phi), x, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("hidden_units", [2, 16, 64])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_inverse_of_sharp_parameters_is_right_to_the_spacing_of_x(
    num_layers: int, hidden_units: int, centred: bool, device: torch.device
) -> None:
    # y may jump by many of its own roundings between neighbouring x: the root must be one of them.
    transformer = sigmoidal(num_layers, hidden_units).double()
    slope = 50 ** (1 / num_layers)
    phi = sharp_phi(transformer, 500, max_slope=slope, centred=centred).to(device)
    transformer = transformer.to(device)
    y = (10 * torch.randn(500)).double().to(device)
    for kernel in ("plain", "auto"):
        transformer.kernel = kernel
        x = transformer.inverse(y, phi)
        value, log_slope = transformer.plain(x, phi)
        spacing = 4 * torch.finfo(torch.double).eps * x.abs() * log_slope.exp()
        assert ((value - y).abs() <= 1e-12 * y.abs().clamp(min=1) + spacing).all()


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("hidden_units", [1, 2, 16])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_inverse_converges_for_steep_units_anywhere_and_far_values(
    num_layers: int, hidden_units: int, dtype: torch.dtype, device: torch.device
) -> None:
    # Composite slopes to 6e6, of which float32 cannot hold the roots: there 50 in all.
    transformer = sigmoidal(num_layers, hidden_units)
    slope = 50 if dtype == torch.double else 50 ** (1 / num_layers)
    phi = sharp_phi(transformer, 1000, max_slope=slope, centred=True).to(device, dtype)
    transformer = transformer.to(device, dtype)
    y = torch.cat([torch.randn(800), torch.logspace(0, 6, 200)]).to(device, dtype)
    for kernel in ("plain", "auto"):
        transformer.kernel = kernel
        with torch.no_grad():
            assert torch.isfinite(transformer.inverse(y, phi)).all()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_gradients_of_value_log_slope_and_inverse_pass_gradcheck(name: str) -> None:
    transformer = TRANSFORMERS[name]().double()
    x = torch.randn(3).double().requires_grad_()
    phi = torch.randn(3, transformer.num_params).double().requires_grad_()
    assert torch.autograd.gradcheck(transformer, (x, phi), fast_mode=True)
    assert torch.autograd.gradcheck(transformer.inverse, (x, phi), fast_mode=True)
    assert torch.autograd.gradgradcheck(transformer, (x, phi), fast_mode=True)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shared_matrices_pass_gradcheck(name: str) -> None:
    transformer = TRANSFORMERS[name]().double()
    matrices = dict(transformer.named_parameters())
    x, phi = torch.randn(3).double(), torch.randn(3, transformer.num_params).double()

    class Inverse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = transformer

        def forward(self) -> Tensor:
            return self.inner.inverse(x, phi)

    def value(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(matrices, tensors, strict=True))
        return torch.func.functional_call(transformer, named, (x, phi))

    def inverse(*tensors: Tensor) -> Tensor:
        named = {f"inner.{k}": t for k, t in zip(matrices, tensors, strict=True)}
        return torch.func.functional_call(Inverse(), named, ())

    if matrices:
        assert torch.autograd.gradcheck(value, tuple(matrices.values()), fast_mode=True)
        assert torch.autograd.gradcheck(inverse, tuple(matrices.values()), fast_mode=True)


@pytest.mark.parametrize("name", ["dsf", "ddsf"])
def test_gradients_are_exact_where_u_and_y_are_zero(name: str) -> None:
    # |u| and |y| have kinks at 0 that the formulas must not inherit: this map is the identity.
    transformer = DeepSigmoidal(1) if name == "dsf" else DeepDenseSigmoidal(1, 2)
    transformer = transformer.double()
    x, phi = torch.zeros(1).double().requires_grad_(), torch.zeros(1, transformer.num_params)
    y, log_slope = transformer(x, phi.double())
    assert y.item() == 0.0
    (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (curvature,) = torch.autograd.grad(log_slope.sum(), x)
    assert slope.item() == pytest.approx(1.0, rel=1e-12)
    assert curvature.item() == pytest.approx(0.0, abs=1e-12)


# ------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("hidden_units", [1, 2, 16, 64])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_zero_pseudo_parameters_give_nearly_the_identity(
    num_layers: int, hidden_units: int
) -> None:
    transformer = sigmoidal(num_layers, hidden_units)
    x = torch.linspace(-4, 4, 101)
    with torch.no_grad():
        y, _ = transformer(x, torch.zeros(101, transformer.num_params))
    # A few units of several layers, each shifted by its bias, do not average to the identity.
    assert (y - x).abs().max() < (0.15 if hidden_units > 2 else 0.5)


def test_hidden_units_differ_from_the_first_gradient_on() -> None:
    phi = torch.zeros(50, 48, requires_grad=True)
    y, log_slope = DeepSigmoidal(16)(torch.randn(50), phi)
    (y.square() / 2 - log_slope).sum().backward()
    assert phi.grad is not None
    slopes, biases, _ = phi.grad.sum(0).view(3, 16)
    assert len(slopes.unique()) == 16 and len(biases.unique()) == 16


def test_common_slope_at_the_start_makes_the_derivative_at_zero_one() -> None:
    dsf = DeepSigmoidal(16, spread=2.0).double()
    x = torch.zeros(1).double()
    _, log_slope = dsf(x, torch.zeros(1, 48).double())
    assert log_slope.item() == pytest.approx(0.0, abs=1e-6)
    biases, slope = spread_biases(16, 2.0)
    assert biases[0] == -2.0 and biases[-1] == 2.0 and slope > 1


def test_slopes_never_fall_below_min_slope() -> None:
    dsf = DeepSigmoidal(4, min_slope=0.2)
    a, _, _ = dsf.constrain(torch.full((1, 12), -1e4))
    assert (a >= 0.2).all()
    _, log_slope = dsf(torch.tensor([3.0]), torch.full((1, 12), -1e4))
    assert log_slope.item() >= torch.tensor(0.2).log().item() - 1e-6


@pytest.mark.parametrize("value", [1e-3, 0.1, 1.0, 30.0, 500.0])
def test_softplus_inverse_undoes_softplus(value: float) -> None:
    raw = torch.tensor(softplus_inverse(value)).double()
    assert torch.nn.functional.softplus(raw, threshold=1e3).item() == pytest.approx(value, rel=1e-7)
