"""The bound on the log-scale of an affine map, and models from before there was one."""

from __future__ import annotations

import pickle

import pytest
import torch

from pyro_naf.formulas.affine import bounded, unbounded
from pyro_naf.transformers import DeepSigmoidal, Scaled
from pyro_naf.transformers.scaled import MAX_LOG_SCALE

LIMITS = torch.tensor([6.0, 0.1], dtype=torch.double)


def test_the_log_scale_stays_within_its_bound_with_the_right_derivative() -> None:
    far = 10 ** torch.linspace(-3, 20, 47).double()
    raw = torch.cat([-far.flip(0), torch.zeros(1).double(), far]).requires_grad_()
    s = bounded(raw, LIMITS)
    assert (s.abs() <= 6).all() and (s.diff() >= 0).all()
    (derivative,) = torch.autograd.grad(s.sum(), raw)
    true = 0.1 * (1 + (raw.detach() * 0.1 / 6).square()) ** -1.5
    near = raw.abs() < 1e4  # farther out autograd's difference of two equal terms is rounding
    torch.testing.assert_close(derivative[near], true[near], rtol=1e-8, atol=0)
    torch.testing.assert_close(s, 6 * torch.sin(torch.atan(raw * 0.1 / 6)), rtol=1e-12, atol=0)
    assert bounded(torch.tensor([torch.nan, torch.inf]), LIMITS.float()).tolist()[1] == 6
    assert bounded(torch.tensor(torch.nan), LIMITS.float()).isnan()


@pytest.mark.parametrize("log_scale", [-5.5, -1.0, 0.0, 1e-6, 4.0])
def test_a_log_scale_within_the_bound_is_found_again(log_scale: float) -> None:
    wanted = torch.tensor(log_scale).double()
    torch.testing.assert_close(bounded(unbounded(wanted, LIMITS), LIMITS), wanted)


def test_no_pseudo_parameter_scales_by_more_than_the_bound() -> None:
    transformer = Scaled(DeepSigmoidal(4))
    phi = torch.zeros(3, transformer.num_params)
    phi[:, -1] = torch.tensor([-1e20, 0.0, 1e20])
    _, log_slope = transformer(torch.zeros(3), phi)
    wanted = torch.tensor([-MAX_LOG_SCALE, 0.0, MAX_LOG_SCALE])
    torch.testing.assert_close(log_slope, log_slope[1] + wanted)


def test_models_from_before_the_bound_are_the_maps_that_they_were() -> None:
    old = Scaled(DeepSigmoidal(4))
    del old._buffers["log_scale_limits"]
    pickled, state = pickle.dumps(old), old.state_dict()
    loaded = Scaled(DeepSigmoidal(4))
    loaded.load_state_dict(state)
    x, phi = torch.randn(5), torch.randn(5, loaded.num_params)
    phi[:, -1] *= 9
    y, log_slope = DeepSigmoidal(4)(x, phi[:, :-2])
    for model in (loaded, pickle.loads(pickled)):
        got = model(x, phi)
        torch.testing.assert_close(got[0], phi[:, -1].exp() * y + phi[:, -2])
        torch.testing.assert_close(got[1], log_slope + phi[:, -1])
    again = Scaled(DeepSigmoidal(4))
    again.load_state_dict(loaded.state_dict())
    torch.testing.assert_close(again(x, phi), loaded(x, phi))
