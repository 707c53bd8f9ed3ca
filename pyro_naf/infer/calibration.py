r"""Simulation-based calibration: whether a way to fit posteriors is right on average.

Latents are drawn from the prior and data from the model; the fit of that data gives draws. If the
fit is exact, the rank of the true value among the draws is uniform, for every scalar quantity. A
:math:`\cup` means draws that are too narrow, a :math:`\cap` too wide, a slope a bias.

Sources: Talts et al. 2018 [arXiv:1804.06788]; for variational fits, whose ranks need only be
symmetric for their means to be right (VSBC), Yao et al. 2018 [arXiv:1802.02538]; the simultaneous
test of uniformity, Säilynoja, Bürkner & Vehtari 2022 [arXiv:2103.10522].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from ..guides.sites import latent_sites
from ..support.calls import Args, Kwargs, Model
from ..support.checks import check_integers
from ..support.deprecation import renamed
from ..support.seeding import seeded
from ..support.tables import Shown, Table
from .pointwise import Simulated, observed_sites
from .ranks import draws_of, ranks_of
from .uniformity import band, symmetry, uniformity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Probability with which a right fit is called wrong, over all quantities together.
_LEVEL = 0.01

#: Levels of the central intervals whose coverage is told.
_INTERVALS = (0.5, 0.8, 0.95)

#: Number of rows and panels that are shown.
_SHOWN = 12


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """Ranks of true values among draws, and what they say: what :func:`sbc` returns.

    :ivar names: labels of the scalar quantities.
    :ivar ranks: where each true value lies among its draws, from 0 to 1, shape
        ``(num_simulations, K)``; ties and the discreteness of ranks are broken at random, so that
        they are uniform exactly for a fit that is right.
    :ivar failed: message of each simulation whose fit raised an error; these have no ranks.
    """

    names: tuple[str, ...]
    ranks: Tensor = field(repr=False)
    failed: tuple[str, ...] = ()

    @property
    def uniformity(self) -> dict[str, float]:
        """p-value of uniform ranks, by quantity (SBC)."""
        return {n: uniformity(r) for n, r in zip(self.names, self.ranks.T, strict=True)}

    @property
    def symmetry(self) -> dict[str, float]:
        """p-value of ranks that are symmetric about a half, by quantity (VSBC).

        A fit with wrong widths and right means passes this.
        """
        return {n: symmetry(r) for n, r in zip(self.names, self.ranks.T, strict=True)}

    def coverage(self, level: float = 0.9) -> dict[str, float]:
        """Share of true values inside the central interval of this level, by quantity.

        :raises ValueError: for a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}")
        inside = ((self.ranks - 0.5).abs() < level / 2).double().mean(0)
        return dict(zip(self.names, inside.tolist(), strict=True))

    @property
    def verdict(self) -> str:
        """Whether the fit is calibrated, at a level of 1 % over all quantities."""
        level = _LEVEL / len(self.names)
        wrong = [name for name, p in self.uniformity.items() if p < level]
        runs = f"{len(self.ranks)} simulations"
        if self.failed:
            runs += f", {len(self.failed)} fits failed ({self.failed[0]})"
        if not wrong:
            return f"calibrated, as far as {runs} can tell"
        biased = [name for name, p in self.symmetry.items() if p < level]
        kinds = [f"{name} ({self._kind(name, name in biased)})" for name in wrong[:3]]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return f"not calibrated: {', '.join(kinds)}{more}, by {runs}"

    def _kind(self, name: str, is_biased: bool) -> str:
        rank = self.ranks[:, self.names.index(name)]
        if is_biased:
            return "draws too low" if float(rank.mean()) > 0.5 else "draws too high"
        return "draws too narrow" if float(rank.var()) > 1 / 12 else "draws too wide"

    def table(self) -> Table:
        """p-values and coverage of each quantity, and the verdict."""
        covers = {level: self.coverage(level) for level in _INTERVALS}
        uniform, symmetric = self.uniformity, self.symmetry
        rows = [
            [name, f"{uniform[name]:.3f}", f"{symmetric[name]:.3f}"]
            + [f"{covers[level][name]:.2f}" for level in _INTERVALS]
            for name in self.names[:_SHOWN]
        ]
        notes = [f"verdict {self.verdict}"]
        if len(self.names) > _SHOWN:
            notes.insert(0, f"... and {len(self.names) - _SHOWN} quantities more")
        header = ["", "p uniform", "p symmetric", *(f"in {100 * v:g}%" for v in _INTERVALS)]
        return Table(header, rows, notes)

    def plot(self) -> Figure:
        """Cumulative ranks minus the diagonal, with the band that uniform ranks stay in.

        :raises ImportError: without matplotlib.
        """
        from ..plot.checks import plot_calibration

        shown = self.names[:_SHOWN]
        columns = {name: self.ranks[:, i].numpy() for i, name in enumerate(shown)}
        return plot_calibration(columns, band(len(self.ranks)))


@renamed(num_draws="num_samples")
def sbc(
    model: Model,
    fit: Callable[..., object],
    *args: object,
    num_simulations: int = 100,
    num_samples: int = 200,
    quantities: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
    arguments: Callable[[dict[str, Tensor]], tuple[object, ...]] | None = None,
    seed: int | None = 0,
    progress: bool = True,
    **kwargs: object,
) -> Calibration:
    """Whether a way to fit a model's posterior is right on average, by simulated data.

    Each simulation draws latents and data from the model. ``fit`` is then given the model
    conditioned on that data, and returns a result of :func:`~pyro_naf.infer.refine` or
    :func:`~pyro_naf.infer.mcmc_correct`, Pyro's MCMC, a fitted guide, or draws, site to ``(L,
    ...)``. Draws of a result are weighted where k-hat allows that, as its summary does; those of a
    guide are not.

    :param model: a model with proper priors; the data among its arguments gives only shapes.
    :param fit: called as ``fit(conditioned, *args, **kwargs)``, such as ``lambda m, *a: refine(m,
        *a, progress=False)``. An amortised guide, of ours or written by hand, is given as it is,
        without a new fit: it takes the model's arguments alone.
    :param args: the model's arguments, as are ``kwargs``.
    :param num_simulations: number of simulated data sets, >= 10.
    :param num_samples: draws of each fit that the true value is ranked among.
    :param quantities: maps latents of one draw, site to ``(...)``, to quantities to be ranked; by
        default the latents themselves.
    :param arguments: maps simulated data, observed site to value, to the model's arguments, for
        models and guides that need the data there, as an amortised guide does: ``lambda data:
        (data["y"],)``. The model is then not conditioned, but called with these.
    :param seed: of the simulations; None lets torch's generator go on.
    :param progress: show a progress bar.
    :raises ValueError: for an argument out of range, a model without observed sites, or when all
        fits fail. A fit that raises one, or a RuntimeError, is counted in ``failed``.
    :raises TypeError: for a fit that returns something else, or draws of another shape.
    :raises KeyError: for a fit whose draws lack a site.

    Source: Talts et al. 2018 [arXiv:1804.06788].

    >>> import pyro, pyro.distributions as dist
    >>> def model(y):
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    >>> def exact(conditioned, y):
    ...     data = poutine.trace(conditioned).get_trace(y).nodes["y"]["value"]
    ...     return {"x": data / 2 + 0.5**0.5 * torch.randn(200)}
    >>> sbc(model, exact, torch.tensor(0.0), progress=False).verdict
    'calibrated, as far as 100 simulations can tell'
    """
    check_integers(num_simulations=(num_simulations, 10), num_samples=(num_samples, 10))
    ranks: list[Tensor] = []
    failed: list[str] = []
    names: tuple[str, ...] = ()
    with seeded(seed):
        for _ in tqdm(range(num_simulations), disable=not progress, desc="sbc", unit="fit"):
            truth, data = _simulated(model, args, kwargs)
            given, called = args, dict(kwargs)
            if arguments is None:
                conditioned = poutine.condition(Simulated()(model), data=data)
            else:
                conditioned, given, called = model, tuple(arguments(data)), {}
            try:
                # Guides of the same name would share the parameters of the first.
                with pyro.get_param_store().scope():
                    draws = draws_of(fit, conditioned, given, called, num_samples)
            except (RuntimeError, ValueError, ArithmeticError) as error:
                failed.append((str(error).splitlines() or [type(error).__name__])[0])
                continue
            names, rank = ranks_of(truth, draws, quantities)
            ranks.append(rank)
    if not ranks:
        raise ValueError(f"all {num_simulations} fits failed: {failed[0]}")
    return Calibration(names, torch.stack(ranks), tuple(failed))


@torch.no_grad()
def _simulated(
    model: Model, args: Args, kwargs: Kwargs
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Latents from the prior, and data from the model."""
    with poutine.block():
        observed = observed_sites(poutine.trace(model).get_trace(*args, **kwargs))
        if not observed:
            raise ValueError(
                "the model has no observed sites, so that there is no data to draw; give data "
                "among its arguments, of which only the shape matters"
            )
        trace = poutine.trace(Simulated()(model)).get_trace(*args, **kwargs)
    sites = latent_sites(trace)
    truth = {
        name: site["value"]
        for name, site in sites.items()
        if name not in observed and not site["fn"].support.is_discrete
    }
    return truth, {name: site["value"] for name, site in sites.items() if name in observed}
