"""Whatever a subclass, an object or a hook changes: a flow and its inverse stay one map."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from pyro_naf.conditioners import MADE
from pyro_naf.transformers import Affine, DeepSigmoidal, RationalQuadraticSpline, Scaled
from pyro_naf.transforms import AutoregressiveFlow, DeepSigmoidalFlow


class Gentle(MADE):
    def forward(self, x: Tensor, context: Tensor | None = None, **kwargs: Any) -> Tensor:
        return 0.2 * super().forward(x, context, **kwargs)


class GentleFeatures(MADE):
    def _features(self, z: Tensor, linear: Any) -> Tensor:
        return 0.2 * super()._features(z, linear)


class GentleCall(MADE):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 0.2 * super().__call__(*args, **kwargs)


class Mixin:
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 0.2 * super().forward(*args, **kwargs)  # type: ignore[misc]


class GentleByMixin(Mixin, MADE):
    pass


class Low(nn.Module):
    """A matrix with an update of rank one, as LoRA makes it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(weight.shape[0], 1))
        self.right = nn.Parameter(torch.randn(1, weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.3 * self.left @ self.right


def forward_of(made: MADE) -> None:
    made.forward = types.MethodType(lambda self, x, c=None: 0.2 * MADE.forward(self, x, c), made)


def old_weight_norm(made: MADE) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(made.weights, "0")
    with torch.no_grad():
        made.weights._parameters["0_g"].mul_(2.0)


def sparser(made: MADE) -> None:
    made.mask_0 = made.mask_0 * (torch.rand(made.mask_0.shape) > 0.5)


#: Everything that may be done to a conditioner: classes, and changes of an object.
CONDITIONERS: dict[str, Any] = {
    "forward": Gentle,
    "features": GentleFeatures,
    "__call__": GentleCall,
    "mixin": GentleByMixin,
    "forward hook": lambda m: m.register_forward_hook(lambda _, args, out: 0.2 * out),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda _, args: (0.5 * args[0],)),
    "forward of the object": forward_of,
    "weight_norm": lambda m: parametrizations.weight_norm(m.weights, "0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.weights, "1"),
    "LoRA": lambda m: parametrize.register_parametrization(m.weights, "1", Low(m.weights[1])),
    "weight_norm by hooks": old_weight_norm,
    "a sparser mask": sparser,
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", CONDITIONERS)
def test_inverse_follows_what_changes_a_conditioner(name: str, later: bool) -> None:
    change = CONDITIONERS[name]
    is_class = isinstance(change, type)
    made = (change if is_class else MADE)(4, [16, 16], 24).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.5 * torch.randn_like(p))
    flow = AutoregressiveFlow(MADE(4, [16], 24).double() if later else made, DeepSigmoidal(8))
    if not is_class:
        change(made)
    flow.eval().arn = made.eval()  # in training mode spectral_norm changes at every reading
    y = torch.randn(20, 4).double()
    for grad_enabled in (False, True):
        with torch.set_grad_enabled(grad_enabled):
            torch.testing.assert_close(flow(flow.inv(y).clone()), y, rtol=1e-9, atol=1e-9)


def test_functional_calls_reach_both_directions() -> None:
    flow = DeepSigmoidalFlow(MADE(4, [16], 24), 8).double()
    moved = {name: p.detach() + 0.3 * torch.randn_like(p) for name, p in flow.named_parameters()}

    class RoundTrip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = flow

        def forward(self, y: Tensor) -> Tensor:
            return self.flow(self.flow.inv(y).clone())

    y = torch.randn(20, 4).double()
    named = {f"flow.{name}": p for name, p in moved.items()}
    torch.testing.assert_close(torch.func.functional_call(RoundTrip(), named, (y,)), y)


class Clamped(Affine):
    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        m, s = super().constrain(phi)
        return m, s.clamp(-0.1, 0.1)


class Steeper(DeepSigmoidal):
    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        a, b, w = super().constrain(phi)
        return 3 * a, b, w


class Doubled(DeepSigmoidal):
    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = super().evaluate(x, *params)
        return y + x, (log_slope.exp() + 1).log()

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.full_like(y, 1e3)
        return -ends, ends


class Flat(RationalQuadraticSpline):
    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        return super().constrain(0.1 * phi)


@pytest.mark.parametrize("kernel", ["plain", "compiled"])
@pytest.mark.parametrize("cls", [Clamped, Steeper, Doubled, Flat])
def test_inverse_follows_a_transformers_formula(
    cls: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_NAF_KERNEL", kernel)
    transformer, y = cls().double(), torch.randn(50).double()
    phi = 2 * torch.randn(50, transformer.num_params).double()
    x = transformer.inverse(y, phi)
    value, log_slope = transformer(x, phi)
    torch.testing.assert_close(value, y, rtol=1e-9, atol=1e-9)
    plain, plain_slope = transformer.evaluate(x, *transformer.constrain(phi))
    torch.testing.assert_close((value, log_slope), (plain, plain_slope))


def method(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("never called")


#: Base class to methods that a subclass changes alone, and what the refusal says is missing.
HALVES: dict[type, dict[str, str]] = {
    DeepSigmoidal: dict.fromkeys(["forward", "plain"], "preimage")
    | dict.fromkeys(["preimage", "root"], "forward or evaluate"),
    Affine: {"evaluate": "preimage", "bracket": "forward or evaluate"},
    RationalQuadraticSpline: dict.fromkeys(["forward", "evaluate"], "preimage"),
    Scaled: dict.fromkeys(["constrain", "evaluate"], "plain and preimage"),
    AutoregressiveFlow: {"_call": "_inverse"},
    DeepSigmoidalFlow: {
        "value_and_log_slope": "_inverse",
        "_inverse": "value_and_log_slope",
        "_call _inverse": "log_abs_det_jacobian",
    },
}


@pytest.mark.parametrize(
    "base, names, missing",
    [(b, names.split(), missing) for b, half in HALVES.items() for names, missing in half.items()],
)
def test_a_class_that_changes_one_direction_is_refused_when_it_is_made(
    base: type, names: list[str], missing: str
) -> None:
    with pytest.raises(TypeError, match=f"Half overrides {', '.join(names)}, but not .*{missing}"):
        type("Half", (base,), dict.fromkeys(names, method))
    both = {"forward", "plain", "evaluate", "preimage", "bracket", "_call", "_inverse"}
    type("Whole", (base,), dict.fromkeys(both | {"log_abs_det_jacobian"}, method))


def test_a_sweep_that_overrides_alone_is_refused_when_the_flow_is_made() -> None:
    alone: Callable[..., Any] = type("Alone", (MADE,), {"sweep": method})
    with pytest.raises(TypeError, match="Alone overrides sweep, but not forward"):
        AutoregressiveFlow(alone(4, [16], 24), DeepSigmoidal(8))


@pytest.mark.parametrize("changes", [False, True])
def test_a_hook_on_the_transformer_is_looked_through_or_refused(changes: bool) -> None:
    flow, y = DeepSigmoidalFlow(MADE(4, [16], 24), 8), torch.randn(20, 4)
    seen = []

    def hook(module: nn.Module, args: Any, out: tuple[Tensor, Tensor]) -> Any:
        seen.append(out)
        return (2 * out[0], out[1]) if changes else None

    flow.transformer.register_forward_hook(hook)
    if changes:
        with pytest.raises(NotImplementedError, match="hooks that change its value"):
            flow.inv(y)
    else:
        torch.testing.assert_close(flow(flow.inv(y).clone()), y, rtol=1e-4, atol=1e-4)
    assert seen
