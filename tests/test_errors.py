"""Bad input works, or raises an error that names the argument, the value and what is expected."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import AutoRegressiveNN
from registry import make_flow, roughen

import pyro_naf as naf
from pyro_naf.conditioners import MADE
from pyro_naf.rootfinding import RootNotFoundError
from pyro_naf.transformers import Affine, DeepDenseSigmoidal, DeepSigmoidal


def raises(message: str, exception: type[Exception] = ValueError) -> Any:
    return pytest.raises(exception, match=re.escape(message))


# ------------------------------------------------------------------------------------ x, y, context


def each_way(flow: naf.AutoregressiveFlow) -> list[tuple[str, Callable[[torch.Tensor], Any]]]:
    return [
        ("x", flow),
        ("y", flow.inv),
        ("x", lambda x: flow.log_abs_det_jacobian(x, x)),
    ]


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2", "dsf-pyro"])
def test_wrong_width_names_the_argument_and_both_shapes(name: str) -> None:
    flow = make_flow(name, 3)
    for argument, call in each_way(flow):
        for shape in [(5, 4), (3, 1), (5, 0), ()]:
            with raises(f"{argument} must have shape (..., 3), got {shape}"):
                call(torch.randn(shape))


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2", "dsf-pyro"])
def test_wrong_dtype_names_the_argument_and_both_dtypes(name: str) -> None:
    flow = make_flow(name, 3)
    for argument, call in each_way(flow):
        for dtype in (torch.double, torch.half, torch.long):
            with raises(
                f"{argument} must be torch.float32 like the flow's parameters, got {dtype}"
            ):
                call(torch.zeros(5, 3, dtype=dtype))
    with raises("x must be torch.float64 like the flow's parameters, got torch.float32"):
        flow.double()(torch.randn(5, 3))


def test_wrong_device_names_the_argument_and_both_devices() -> None:
    flow = make_flow("dsf", 3)
    for argument, call in each_way(flow):
        with raises(f"{argument} must be on cpu like the flow's parameters, got meta"):
            call(torch.empty(5, 3, device="meta"))
    conditional = naf.conditional_deep_sigmoidal_flow(3, 2)
    with raises("context must be on cpu like the flow's parameters, got meta"):
        conditional.condition(torch.empty(2, device="meta"))(torch.randn(5, 3))


def test_wrong_context_names_it_and_both_shapes() -> None:
    flow = naf.conditional_deep_sigmoidal_flow(3, 2)
    for shape in [(3,), (5, 1), ()]:
        with raises(f"context must have shape (..., 2), got {shape}"):
            flow.condition(torch.randn(shape))
    with raises("context must have shape (..., 2), got None"):
        naf.AutoregressiveFlow(flow.arn, flow.transformer)(torch.randn(5, 3))
    with raises("context must have shape (..., 2), got None"):
        naf.AutoregressiveFlow(flow.arn, flow.transformer).inv(torch.randn(5, 3))
    with raises("context must have shape (..., 0), got (2,)"):
        unconditional = naf.deep_sigmoidal_flow(3)
        naf.AutoregressiveFlow(
            unconditional.arn, unconditional.transformer, context=torch.randn(2)
        )(torch.randn(5, 3))
    with raises("context must be torch.float32 like the flow's parameters, got torch.float64"):
        flow.condition(torch.randn(2).double())(torch.randn(5, 3))


def test_a_conditional_flow_called_without_a_context_says_how_to_give_one() -> None:
    with raises("call flow.condition(context)(x)", TypeError):
        naf.conditional_deep_sigmoidal_flow(3, 2)(torch.randn(4, 3))


def test_context_that_does_not_broadcast_names_both_shapes() -> None:
    flow = naf.conditional_deep_sigmoidal_flow(3, 2).condition(torch.randn(4, 2))
    for call in (flow, flow.inv):
        with pytest.raises(ValueError, match=r"context.*\(4, 2\).*\(5, 3\)"):
            call(torch.randn(5, 3))


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_inverting_what_is_not_finite_raises_and_counts(name: str, bad: float) -> None:
    flow = make_flow(name, 3)
    y = torch.randn(2, 5, 3)
    y[0, 1, 2] = y[1, 3, 0] = y[1, 3, 1] = bad
    with raises("y must be finite to be inverted, got NaN or infinity in 2 of 10 samples"):
        flow.inv(y)


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
def test_nan_in_x_stays_in_its_own_sample(name: str) -> None:
    flow = make_flow(name, 3)
    x = torch.randn(4, 3)
    clean = flow(x)
    x = x.clone()
    x[1] = torch.nan
    y = flow(x)
    log_det = flow.log_abs_det_jacobian(x, y)
    assert y[1].isnan().all() and log_det[1].isnan()
    torch.testing.assert_close(y[[0, 2, 3]], clean[[0, 2, 3]])
    assert torch.isfinite(log_det[[0, 2, 3]]).all()


def test_density_of_bad_data_is_refused_by_the_distribution() -> None:
    density = dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), [make_flow("dsf", 3).inv]
    )
    with pytest.raises(ValueError, match="support"):
        density.log_prob(torch.full((3,), torch.nan))


def test_base_distribution_of_the_wrong_width_is_named() -> None:
    flow = make_flow("dsf", 3)
    for shape in [(2,), (5, 4)]:
        base = dist.Normal(torch.zeros(shape), 1.0).to_event(1)
        with raises(f"base distribution must have shape (..., 3), got {shape}"):
            dist.TransformedDistribution(base, [flow])


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
def test_parameters_that_are_not_finite_make_the_inverse_raise(name: str) -> None:
    flow = make_flow(name, 3)
    with torch.no_grad():
        flow.arn.output_bias[flow.arn.places[1]] = torch.nan
    with pytest.raises(RootNotFoundError, match="in dimension 1 for 4 of 4 samples"):
        flow.inv(torch.randn(4, 3))


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
def test_an_inverse_that_overflows_raises_naming_dimension_and_samples(name: str) -> None:
    flow = make_flow(name, 3, rough=False)
    with torch.no_grad():
        # The preimage of 3e38 under a slope of 1e-3 (affine: e^-200) is no float32.
        flow.arn.output_bias[0] = -200.0
    y = torch.randn(4, 3)
    y[2] = 3e38
    with pytest.raises(RootNotFoundError, match=r"in dimension . for"):
        flow.inv(y)


# ------------------------------------------------------------------------------------- constructors


@pytest.mark.parametrize(
    "message, call",
    [
        ("input_dim must be at least 1, got 0", lambda: MADE(0, [8], 2)),
        ("input_dim must be at least 1, got -3", lambda: naf.deep_sigmoidal_flow(-3)),
        ("num_params must be at least 1, got 0", lambda: MADE(3, [8], 0)),
        ("context_dim must be at least 0, got -1", lambda: MADE(3, [8], 2, context_dim=-1)),
        ("head_dim must be at least 1, got 0", lambda: MADE(3, [8], 2, head_dim=0)),
        ("hidden_dims must be at least 1 each, got [8, 0]", lambda: MADE(3, [8, 0], 2)),
        (
            "hidden_dims must hold one and the same width with residual=True, got [8, 9]",
            lambda: MADE(3, [8, 9], 2, residual=True),
        ),
        (
            "hidden_dims must hold one and the same width with residual=True, got []",
            lambda: MADE(3, [], 2, residual=True),
        ),
        (
            "order must be 'random', 'natural', 'reversed' or a permutation, got 'upwards'",
            lambda: MADE(3, [8], 2, order="upwards"),
        ),
        (
            "order must be a permutation of 0..2, got [0, 1, 1]",
            lambda: MADE(3, [8], 2, order=[0, 1, 1]),
        ),
        ("order must be a permutation of 0..2, got [1, 0]", lambda: MADE(3, [8], 2, order=[1, 0])),
        (
            "order must be a permutation of 0..2, got [1, 2, 3]",
            lambda: MADE(3, [8], 2, order=[1, 2, 3]),
        ),
        ("hidden_units must be at least 1, got 0", lambda: DeepSigmoidal(0)),
        ("hidden_units must be at least 1, got 0", lambda: DeepDenseSigmoidal(0)),
        ("num_layers must be at least 1, got 0", lambda: DeepDenseSigmoidal(4, 0)),
        ("min_slope must lie in (0, 0.5), got 0.5", lambda: DeepSigmoidal(4, min_slope=0.5)),
        ("min_slope must lie in (0, 0.5), got -0.1", lambda: DeepDenseSigmoidal(4, min_slope=-0.1)),
        ("min_slope must lie in (0, 0.5), got nan", lambda: DeepSigmoidal(4, min_slope=torch.nan)),
    ],
)
def test_a_number_out_of_range_is_named_with_its_range(
    message: str, call: Callable[[], Any]
) -> None:
    with raises(message):
        call()


@pytest.mark.parametrize(
    "argument, call",
    [
        ("hidden_dims", lambda: naf.deep_sigmoidal_flow(3, 16)),  # type: ignore[arg-type]
        ("order", lambda: naf.deep_sigmoidal_flow(3, order=[0.5, 1.2, 2.1])),
        ("input_dim must be an integer, got '3'", lambda: naf.deep_sigmoidal_flow("3")),  # type: ignore[arg-type]
        ("activation", lambda: naf.deep_sigmoidal_flow(3, activation="relu")),
    ],
    ids=["hidden_dims", "order", "input_dim", "activation"],
)
def test_an_argument_of_the_wrong_type_is_named(argument: str, call: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=argument):
        call()


def test_zero_hidden_units_or_layers_of_a_factory_are_named() -> None:
    with raises("hidden_units must be at least 1, got 0"):
        naf.deep_sigmoidal_flow(3, hidden_units=0)
    with raises("hidden_units must be at least 1, got 0"):
        naf.deep_dense_sigmoidal_flow(3, hidden_units=0)
    with raises("num_layers must be at least 1, got 0"):
        naf.deep_dense_sigmoidal_flow(3, num_layers=0)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="hiden_dims"):
        naf.deep_sigmoidal_flow(3, hiden_dims=[8])
    with pytest.raises(TypeError, match="gated"):
        naf.deep_sigmoidal_flow(3, gated=True)


@pytest.mark.parametrize(
    "cls, given, needed",
    [
        (naf.AffineAutoregressiveFlow, 3, 2),
        (naf.DeepSigmoidalFlow, 16, 48),
        (naf.DeepDenseSigmoidalFlow, 48, 112),
        (naf.ConditionalDeepSigmoidalFlow, 16, 48),
    ],
)
def test_conditioner_with_the_wrong_number_of_outputs_is_refused(
    cls: Callable[[Any], Any], given: int, needed: int
) -> None:
    expected = rf"conditioner gives {given} pseudo-parameters.* needs {needed}"
    with pytest.raises(ValueError, match=f"(?s){expected}"):
        cls(MADE(3, [8], given))
    if given > 3:
        with pytest.raises(ValueError, match=f"(?s){expected}"):
            cls(AutoRegressiveNN(3, [8], param_dims=[given]))


# -------------------------------------------------------------------------- what simply has to work


def test_one_dimension_works_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factory in (
            naf.affine_autoregressive_flow,
            naf.deep_sigmoidal_flow,
            naf.deep_dense_sigmoidal_flow,
        ):
            for order in ("random", "natural", "reversed", [0]):
                flow = factory(1, [4], order=order)
                roughen(flow)
                x = torch.randn(5, 1)
                torch.testing.assert_close(flow.inv(flow(x).clone()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden_dims", [[1], [2, 3], [], (4,), torch.Size([5])])
def test_hidden_widths_below_the_dimension_work(hidden_dims: Any) -> None:
    flow = naf.deep_sigmoidal_flow(6, hidden_dims, 4)
    x = torch.randn(5, 6)
    torch.testing.assert_close(flow.inv(flow(x).clone()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
def test_an_empty_batch_works_in_every_direction(name: str) -> None:
    flow = make_flow(name, 3)
    x = torch.randn(0, 3, requires_grad=True)
    y = flow(x)
    log_det = flow.log_abs_det_jacobian(x, y)
    assert y.shape == (0, 3) and log_det.shape == (0,)
    assert flow.inv(torch.randn(0, 3)).shape == (0, 3)
    (y.sum() + log_det.sum()).backward()


def test_non_contiguous_input_works() -> None:
    flow = make_flow("dsf", 3)
    x = torch.randn(3, 5).T
    torch.testing.assert_close(flow(x), flow(x.contiguous()))
    torch.testing.assert_close(flow.inv(x), flow.inv(x.contiguous()))
    expanded = torch.randn(3).expand(5, 3)
    torch.testing.assert_close(flow.inv(expanded), flow.inv(expanded.contiguous()))


def test_flow_with_nothing_to_train_accepts_any_dtype() -> None:
    class Zero(torch.nn.Module):
        input_dim = 2

        def get_permutation(self) -> torch.Tensor:
            return torch.arange(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(*x.shape, 2)

    flow = naf.AutoregressiveFlow(Zero(), Affine())
    for dtype in (torch.float, torch.double):
        x = torch.randn(5, 2, dtype=dtype)
        assert torch.equal(flow(x), x) and torch.equal(flow.inv(x), x)
