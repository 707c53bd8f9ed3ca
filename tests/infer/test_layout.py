"""Claims about the places of sites in latent vectors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to

from pyro_naf.guides.layout import Layout


def model(sets: int = 5) -> None:
    """Latents of each set: a scalar, a simplex, and one in a plate to the left of the sets'."""
    with pyro.plate("sets", sets, dim=-2):
        pyro.sample("a", dist.Gamma(2.0, 1.0))
        with pyro.plate("right", 3, dim=-1):
            pyro.sample("b", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("left", 2, dim=-3):
            pyro.sample("c", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def layout(row_dims: tuple[int, ...]) -> Layout:
    sites = [site for _, site in poutine.trace(model).get_trace().iter_stochastic_nodes()]
    sites = [site for site in sites if site["name"] in "abc"]
    shapes = {s["name"]: biject_to(s["fn"].support).inv(s["value"]).shape for s in sites}
    return Layout(sites, shapes, row_dims)


@pytest.mark.parametrize("row_dims", [(), (-2,)], ids=["one row", "a row for each set"])
@pytest.mark.parametrize("lead", [(), (7,)])
def test_packing_undoes_unpacking(row_dims: tuple[int, ...], lead: tuple[int, ...]) -> None:
    places = layout(row_dims)
    rows = (5, 1) if row_dims else ()
    assert places.latent_dim == 1 + 3 * 3 + 2 * 2 if row_dims else 5 * 14
    aligned = lead + (1,) * (3 - len(rows)) + rows if lead else rows
    latent = torch.randn(*aligned, places.latent_dim)
    values = {
        site["name"]: biject_to(site["fn"].support)(u).reshape(lead + site["value"].shape)
        for site, u in places.unpack(latent)
    }
    packed, log_det = places.pack(values)
    torch.testing.assert_close(packed, latent.reshape(*lead, *rows, -1), rtol=1e-3, atol=1e-4)
    assert log_det.shape == (*lead, *rows)


def test_a_set_has_all_its_entries_in_its_own_row() -> None:
    places = layout((-2,))
    latent = torch.arange(5.0).reshape(5, 1, 1).expand(5, 1, 14)
    values = {site["name"]: value for site, value in places.unpack(latent)}
    assert {n: v.shape for n, v in values.items()} == {
        "a": (5, 1),
        "b": (5, 3, 3),
        "c": (2, 5, 1, 2),
    }
    assert all(torch.equal(v[i], torch.full_like(v[i], i)) for v in [values["b"]] for i in range(5))
    assert torch.equal(values["c"][1, :, 0, 0], torch.arange(5.0))


def test_vectors_whose_batch_axis_lies_at_a_plate_are_refused() -> None:
    places = layout(())
    expected = (
        r"length one at the plates of site 'a', whose batch shape is \(5, 1\), got \(7, 1, 70\)"
    )
    with pytest.raises(ValueError, match=expected):
        list(places.unpack(torch.randn(7, 1, 70)))
    values = {site["name"]: value for site, value in places.unpack(torch.randn(7, 1, 1, 1, 70))}
    assert values["b"].shape == (7, 1, 5, 3, 3)
