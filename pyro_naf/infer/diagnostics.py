"""How good a guide is: ELBO, Pareto k-hat, effective sample size and evidence, from one sample."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..guides.sites import batch_depth
from ..support.calls import Model
from ..support.checks import check_callable, check_integers
from ..support.tables import Shown, Table
from .doubt import DRAWS, largest_doubt
from .joint import Joint
from .lanes import vmapped_with_help
from .proposals import GuideProposal, Proposal, Weighted
from .psis import khat_standard_error, khat_threshold, pareto_khat, smooth

#: Smallest number of draws: with fewer the tail that k-hat is fitted to has less than ten.
MIN_PARTICLES = 50

#: Draws of the first batch where time is limited, and of the largest one.
_FIRST_BATCH, _LARGEST_BATCH = 64, 1000

#: Effective sample size of importance weights below which resampled draws are mostly repetitions.
_FEW_EFFECTIVE = 100


@dataclass(frozen=True, repr=False)
class ImportanceDiagnostics(Shown):
    r"""What the importance weights :math:`w_n = p(x, z_n)/q(z_n)`, :math:`z_n \sim q`, tell.

    :ivar log_weights: :math:`\log w_n`, shape ``(N,)``.
    :ivar elbo: their mean, -inf where the model has no density at one of the draws; ``elbo_se`` its
        standard error.
    :ivar khat: shape of the Pareto tail of the weights (Vehtari et al. 2015 [arXiv:1507.02646]);
        below 0.7 importance correction is sound. It does not see a mode that q has lost.
    :ivar ess: effective sample size :math:`(\sum w)^2 / \sum w^2`, in (0, N].
    :ivar log_evidence: :math:`\log \frac1N \sum w_n`; ``log_evidence_se`` its standard error.
    :ivar doubt: how far the weights move the latent that they move most, in standard deviations
        (see :func:`~pyro_naf.infer.doubt.doubts`), by 10,000 of the draws.
    """

    log_weights: Tensor = field(repr=False)
    elbo: float
    elbo_se: float
    khat: float
    ess: float
    log_evidence: float
    log_evidence_se: float
    doubt: float = math.nan

    @property
    def num_particles(self) -> int:
        """The number N of draws."""
        return len(self.log_weights)

    @property
    def khat_se(self) -> float:
        """Standard error of :attr:`khat` as a maximum-likelihood estimate of a Pareto tail."""
        return khat_standard_error(self.khat, self.num_particles)

    @property
    def smoothed_log_weights(self) -> Tensor:
        """Pareto-smoothed log-weights ``(N,)``, normalised: their exponentials add up to one."""
        return smooth(self.log_weights)

    @property
    def refused(self) -> float:
        """Share of the draws where the model has no density, which make the ELBO -inf."""
        return float((self.log_weights == -math.inf).double().mean())

    def shown_elbo(self, sign: str = "+-") -> str:
        """Write the ELBO with its standard error, or why it is -inf.

        >>> weights = torch.tensor([-1.0, -1.0, -1.0, -math.inf])
        >>> ImportanceDiagnostics(weights, -math.inf, math.nan, 0.0, 3.0, -1.3, 0.3).shown_elbo()
        '-inf: 25% of the draws outside of the support'
        """
        if not self.refused:
            return f"{self.elbo:.3f} {sign} {self.elbo_se:.3f}"
        return f"-inf: {100 * self.refused:.2g}% of the draws outside of the support"

    def table(self) -> Table:
        """ELBO, k-hat, effective sample size and log evidence."""
        cells = [
            self.shown_elbo(),
            f"{self.khat:.2f} +- {self.khat_se:.2f}",
            f"{self.ess:.0f} of {self.num_particles}",
            f"{self.log_evidence:.3f} +- {self.log_evidence_se:.3f}",
        ]
        return Table(["", "ELBO", "k-hat", "ESS", "log evidence"], [["guide", *cells]])


def importance_diagnostics(
    model: Model,
    guide: Model,
    *args: object,
    num_particles: int = 20_000,
    **kwargs: object,
) -> ImportanceDiagnostics:
    """Weight draws of a guide by the model, and say how well the two agree.

    :param model: any model that Pyro's NUTS takes. Finite discrete latents are summed out, and
        subsampled plates are run with all their elements.
    :param guide: a guide for its continuous latents; neither has to be vectorised.
    :param args: the model's arguments, as are ``kwargs``.
    :param num_particles: N >= 50. k-hat has a standard error of about 0.1 with 4,000 draws, 0.06
        with 50,000.
    :raises ValueError: for fewer particles, for a guide that does not draw just the model's latents
        in their shapes, when the density is finite at none of a thousand draws (naming the sites),
        or when a plate is subsampled and cannot be run whole.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = importance_diagnostics(model, model)
    >>> result.elbo, result.khat, round(result.ess)
    (0.0, 0.0, 20000)
    """
    if num_particles < MIN_PARTICLES:
        raise ValueError(
            f"num_particles must be at least {MIN_PARTICLES} for a tail of ten draws that k-hat "
            f"can be fitted to, got {num_particles}"
        )
    proposal = GuideProposal(Joint(model, args, kwargs), guide, args, kwargs)
    result = diagnose(proposal, num_particles)
    if refused := int((result.log_weights == -math.inf).sum()):
        warnings.warn(
            f"the model's log-density is not finite for {refused} of {num_particles} draws of the "
            "guide; they count as draws without density",
            stacklevel=2,
        )
    return result


@torch.no_grad()
def diagnose(
    proposal: Proposal, num_particles: int, seconds: float = math.inf
) -> ImportanceDiagnostics:
    """Diagnostics from the weighted draws of a proposal; arguments of :func:`weighted_draws`."""
    held, kept, parts = 0, [], []
    for chunk in weighted_draws(proposal, num_particles, seconds):
        parts.append(chunk.log_weights)
        if held < DRAWS:  # of the others only the weights are needed
            kept.append(chunk)
            held += len(chunk.log_weights)
    found = _diagnose(torch.cat(parts))
    return replace(found, doubt=largest_doubt(kept, found.smoothed_log_weights.exp()))


@torch.no_grad()
def importance_resample(
    model: Model,
    guide: Model,
    *args: object,
    num_samples: int = 1000,
    num_particles: int = 20_000,
    replacement: bool = True,
    **kwargs: object,
) -> dict[str, Tensor]:
    r"""Draws of the posterior: the guide's, resampled by their Pareto-smoothed weights.

    Each of ``num_samples`` draws is one of ``num_particles`` of the guide's, chosen with
    probability proportional to its smoothed weight (sampling importance resampling).

    :param model: as in :func:`importance_diagnostics`, as are ``guide``, ``args``, ``kwargs``.
    :param num_samples: number of draws returned.
    :param num_particles: N >= 50, the number of the guide's draws that are weighted.
    :param replacement: whether a draw of large weight may come more than once. Without, all differ,
        at the price of a bias towards the guide that grows with ``num_samples / num_particles``.
    :return: latent site to constrained draws ``(num_samples, ...)``.
    :raises ValueError: as there, and without replacement for more samples than half of the
        particles, or than there are particles with a positive weight.
    :warns UserWarning: when the weights cannot be relied on: k-hat is above its threshold for this
        number of draws (0.7 from 2,200 draws on), or the effective sample size is below 100 and
        below a tenth of the particles.

    Source: Vehtari et al. 2015 [arXiv:1507.02646]; Gelman et al., *Bayesian Data Analysis*, 10.4.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> importance_resample(model, model, num_samples=100)["x"].shape
    torch.Size([100])
    """
    check_integers(num_samples=(num_samples, 1), num_particles=(num_particles, MIN_PARTICLES))
    if not replacement and 2 * num_samples > num_particles:
        raise ValueError(
            "num_samples must be at most half of num_particles without replacement, got "
            f"{num_samples} of {num_particles}"
        )
    proposal = GuideProposal(Joint(model, args, kwargs), guide, args, kwargs)
    chunks = list(weighted_draws(proposal, num_particles))
    found = _diagnose(torch.cat([log_weights for _, log_weights in chunks]))
    _warn_of_weights(found)
    weights = found.smoothed_log_weights.exp()
    if not replacement and (possible := int((weights > 0).sum())) < num_samples:
        raise ValueError(
            f"num_samples must be at most the number of draws with a positive weight ({possible} "
            f"of {num_particles}) without replacement, got {num_samples}; refine the guide, or "
            "take more particles"
        )
    chosen = torch.multinomial(weights, num_samples, replacement)
    return {
        name: torch.cat([values[name] for values, _ in chunks])[chosen]
        for name in proposal.joint.sites
    }


def _warn_of_weights(found: ImportanceDiagnostics) -> None:
    """Warn the caller of :func:`importance_resample` of weights that cannot be relied on."""
    threshold = khat_threshold(found.num_particles)
    if found.khat > threshold:
        reason = f"k-hat is {found.khat:.2f}, above {threshold:.2f}"
    elif found.ess < min(_FEW_EFFECTIVE, found.num_particles / 10):
        reason = f"the weights are worth {found.ess:.1f} of {found.num_particles} draws"
    else:
        return
    warnings.warn(
        f"{reason}: resampling does not mend this guide; refine it",
        stacklevel=4,  # this function, its caller, and torch.no_grad
    )


def growing(total: int, largest: int = _LARGEST_BATCH) -> Iterator[int]:
    """Sizes of batches that add up to ``total``: each twice the one before, up to the largest.

    >>> list(growing(3000))
    [64, 128, 256, 512, 1000, 1000, 40]
    """
    size = min(_FIRST_BATCH, largest)
    while total > 0:
        yield min(size, total)
        total, size = total - size, min(2 * size, largest)


def weighted_draws(
    proposal: Proposal, num_particles: int, seconds: float = math.inf
) -> Iterator[Weighted]:
    """Draws of a guide and their log-weights, on the CPU, in batches, until ``seconds`` are over.

    The first batch of 64 draws, which k-hat needs, is made in any case.

    :raises ValueError: when the first thousand draws have no finite density, naming the sites.
    """
    start, drawn, possible = time.monotonic(), 0, False
    for count in growing(num_particles, min(_LARGEST_BATCH, proposal.joint.chunk)):
        values, log_weights = proposal.draw(count)
        drawn += len(log_weights)
        is_last = drawn == num_particles or time.monotonic() - start > seconds
        possible |= bool(log_weights.max() > -math.inf)
        if not possible and (is_last or drawn >= 1000):
            _raise_for_density(proposal.joint, values, drawn)
        yield Weighted({name: v.cpu() for name, v in values.items()}, log_weights.cpu())
        if is_last:
            break


def _raise_for_density(joint: Joint, values: Mapping[str, Tensor], count: int) -> None:
    found = joint.culprits({name: value[0] for name, value in values.items()})
    because = f", because of the sites {sorted(found)}" if found else ""
    raise ValueError(
        f"the model's log-density is not finite at any of {count} draws of the guide{because}; "
        "look for NaN or impossible values in their data, and for parameters out of range"
    )


def _diagnose(log_weights: Tensor) -> ImportanceDiagnostics:
    n = len(log_weights)
    weights = (log_weights - log_weights.max()).exp()
    ess = float(weights.sum() ** 2 / weights.pow(2).sum())
    return ImportanceDiagnostics(
        log_weights=log_weights,
        elbo=float(log_weights.mean()),
        elbo_se=float(log_weights.std()) / math.sqrt(n),
        khat=pareto_khat(log_weights),
        ess=ess,
        log_evidence=float(log_weights.logsumexp(0)) - math.log(n),
        # The delta method: sd of w over its mean, over sqrt(N).
        log_evidence_se=math.sqrt(max(1 / ess - 1 / n, 0.0)),
    )


@torch.no_grad()
def draws(
    guide: Callable[..., dict[str, Tensor]],
    *args: object,
    num_samples: int = 4000,
    **kwargs: object,
) -> dict[str, Tensor]:
    """Draws of an autoguide, all at once: site to tensor ``(num_samples, ...)``.

    :param guide: an autoguide, or another guide that returns its draws.
    :param args: the guide's arguments, as are ``kwargs``.
    :param num_samples: number of draws, at least 1.
    :raises TypeError: for a guide that cannot be called.
    :raises ValueError: for ``num_samples`` below 1.

    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro.distributions as dist
    >>> guide = AutoNormal(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    >>> draws(guide, num_samples=100)["x"].shape
    torch.Size([100])
    """
    check_callable(guide=(guide, "a guide of Pyro, called with the model's arguments"))
    check_integers(num_samples=(num_samples, 1))
    with poutine.block():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        single = trace.nodes["_RETURN"]["value"]
        if not isinstance(guide, AutoGuide):
            lanes = {"lane": torch.zeros(num_samples)}
            return vmapped_with_help(lambda _: guide(*args, **kwargs))(lanes)
        with pyro.plate("_draws", num_samples, dim=-batch_depth(trace) - 1):
            many = guide(*args, **kwargs)
    # A site of k dimensions inside fewer plates than the deepest has axes of length one between.
    return {name: many[name].reshape(num_samples, *value.shape) for name, value in single.items()}
