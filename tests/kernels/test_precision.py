"""Transformers compute in float32 at least, under autocast and in 16 bits."""

from __future__ import annotations

import pytest
import torch
from registry import FLOWS, TRANSFORMERS, make_flow

from pyro_naf.conditioners import MADE
from pyro_naf.density.linear import LULinear
from pyro_naf.density.mixture import AutoregressiveMixture

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("narrow", HALF)
def test_autocast_changes_no_number_of_a_transformer(name: str, narrow: torch.dtype) -> None:
    transformer = TRANSFORMERS[name]()
    x, phi = torch.randn(20), torch.randn(20, transformer.num_params).to(narrow)
    true = transformer(x, phi.float())
    with torch.autocast("cpu", narrow):
        found = transformer(x, phi)
        back = transformer.inverse(true[0], phi)
        from_narrow = transformer(x.to(narrow), phi)
    assert all(t.dtype == torch.float for t in (*found, back, *from_narrow))
    torch.testing.assert_close(found, true)
    torch.testing.assert_close(back, transformer.inverse(true[0], phi.float()))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("narrow", HALF)
def test_sixteen_bits_are_rounded_once_at_the_end(name: str, narrow: torch.dtype) -> None:
    transformer = TRANSFORMERS[name]().to(narrow)
    x, phi = torch.randn(20).to(narrow), torch.randn(20, transformer.num_params).to(narrow)
    wide = TRANSFORMERS[name]()
    wide.load_state_dict(transformer.state_dict())
    for got, true in zip(transformer(x, phi), wide(x.float(), phi.float()), strict=True):
        assert got.dtype == narrow
        eps = torch.finfo(narrow).eps
        torch.testing.assert_close(got.float(), true, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-4", "dsf-affine", "dsf-conditional"])
@pytest.mark.parametrize("narrow", HALF)
def test_the_inverse_of_a_flow_under_autocast_is_the_one_without(
    name: str, narrow: torch.dtype
) -> None:
    assert name in FLOWS
    flow, y = make_flow(name, 5), torch.randn(30, 5)
    true = flow.inv(y)
    flow.clear_cache()
    with torch.autocast("cpu", narrow):
        found = flow.inv(y.clone())
    torch.testing.assert_close(found, true)


def test_mixtures_and_linear_layers_leave_out_autocast() -> None:
    mixture = AutoregressiveMixture(MADE(4, [16], num_params=30), 10)
    linear = LULinear(4)
    z = torch.randn(50, 4)
    with torch.no_grad():
        true = mixture.log_prob(z), linear(z)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(linear(z.clone()), true[1])
            found = mixture.log_prob(z)
    assert found.dtype == torch.float
    # The conditioner alone is in bfloat16.
    torch.testing.assert_close(found, true[0], rtol=0, atol=0.05)
