"""How good a guide is: ELBO, Pareto k-hat, effective sample size and evidence, from one sample."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..checks import check_integers
from .flat_priors import FlatPriors
from .psis import khat_threshold, pareto_khat, smooth

#: Fewer draws leave fewer than ten in the tail that k-hat is fitted to.
MIN_PARTICLES = 50

#: So many are weighed, if they are asked for, however long it takes.
FEWEST = 5000

#: Effective sample size of importance weights below which resampled draws are mostly repetitions.
_FEW_EFFECTIVE = 100

#: Particles evaluated at once, and how many log-densities of data: 64 MiB in float32.
_CHUNK, _CHUNK_NUMBERS = 1000, 2**24


@dataclass(frozen=True)
class ImportanceDiagnostics:
    r"""What the importance weights :math:`w_n = p(x, z_n)/q(z_n)`, :math:`z_n \sim q`, tell.

    :ivar log_weights: :math:`\log w_n`, shape ``(N,)``.
    :ivar elbo: their mean; ``elbo_se`` its standard error.
    :ivar khat: shape of the Pareto tail of the weights (Vehtari et al. 2015 [arXiv:1507.02646]);
        below 0.7 importance correction is sound. It does not see a mode that q has lost.
    :ivar ess: effective sample size :math:`(\sum w)^2 / \sum w^2`, in (0, N].
    :ivar log_evidence: :math:`\log \frac1N \sum w_n`; ``log_evidence_se`` its standard error.
    """

    log_weights: Tensor = field(repr=False)
    elbo: float
    elbo_se: float
    khat: float
    ess: float
    log_evidence: float
    log_evidence_se: float

    @property
    def num_particles(self) -> int:
        """The number N of draws."""
        return len(self.log_weights)

    @property
    def smoothed_log_weights(self) -> Tensor:
        """Pareto-smoothed log-weights ``(N,)``, normalised: their exponentials add up to one."""
        return smooth(self.log_weights)


def importance_diagnostics(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 20_000,
    **kwargs: Any,
) -> ImportanceDiagnostics:
    """Draws from the guide, weighs by the model, and says how well they agree.

    :param model: a Pyro model; it and the guide must be vectorised over particles.
    :param guide: a guide for it.
    :param args: the model's arguments, as are ``kwargs``.
    :param num_particles: N >= 50. k-hat has a standard error of about 0.1 with 4,000 draws, 0.06
        with 50,000.
    :raises ValueError: for fewer particles, for a guide that does not draw just the model's latents
        in their shapes, when a log-density is NaN or all are -inf (naming the sites), when a plate
        is subsampled, or when the model's log-density for one draw depends on the others (it is
        not vectorised).

    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = importance_diagnostics(model, model)
    >>> result.elbo, result.khat, round(result.ess)
    (0.0, 0.0, 20000)
    """
    return diagnose(model, guide, num_particles, math.inf, args, kwargs)


@torch.no_grad()
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    num_particles: int,
    seconds: float,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ImportanceDiagnostics:
    """:func:`importance_diagnostics`, which stops weighing after ``seconds``.

    5000 draws are weighed in any case, if so many are asked for. Raises what that raises.
    """
    if num_particles < MIN_PARTICLES:
        raise ValueError(
            f"num_particles must be at least {MIN_PARTICLES} for a tail of ten draws that k-hat "
            f"can be fitted to, got {num_particles}"
        )
    start, log_weights, weighed = time.monotonic(), [], 0
    for _, some in _weighted_draws(model, guide, num_particles, False, args, kwargs):
        log_weights.append(some)
        weighed += len(some)
        if weighed >= FEWEST and time.monotonic() - start > seconds:
            break
    return _diagnose(torch.cat(log_weights))


@torch.no_grad()
def importance_resample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    num_particles: int = 20_000,
    replacement: bool = True,
    **kwargs: Any,
) -> dict[str, Tensor]:
    r"""Draws of the posterior: the guide's, resampled by their Pareto-smoothed weights.

    Each of ``num_samples`` draws is one of ``num_particles`` of the guide's, chosen with
    probability proportional to its smoothed weight (sampling importance resampling).

    :param model: as in :func:`importance_diagnostics`, as are ``guide``, ``args``, ``kwargs``.
    :param num_samples: number of draws returned.
    :param num_particles: N >= 50, how many of the guide's are weighed.
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
    weighed = list(_weighted_draws(model, guide, num_particles, True, args, kwargs))
    found = _diagnose(torch.cat([log_weights for _, log_weights in weighed]))
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
        name: torch.cat([values[name] for values, _ in weighed])[chosen] for name in weighed[0][0]
    }


def _warn_of_weights(found: ImportanceDiagnostics) -> None:
    """Warns the caller of :func:`importance_resample` of weights that cannot be relied on."""
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


class Prepared(NamedTuple):
    """What is known of a model and a guide after checking that they can be weighed."""

    nesting: int
    shapes: dict[str, torch.Size]
    chunk: int


def prepare(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> Prepared:
    """The depth of plates, the latents' shapes, and how many draws to weigh at once."""
    shapes = latent_shapes(model, *args, **kwargs)
    _check_sites(shapes, latent_shapes(guide, *args, **kwargs))
    nesting = max_plate_nesting(model, guide, *args, **kwargs)
    refuse_subsampling(model, *args, **kwargs)
    numbers = check_draws_stay_apart(model, guide, nesting, *args, **kwargs)
    return Prepared(nesting, shapes, max(2, min(_CHUNK, _CHUNK_NUMBERS // max(numbers, 1))))


def _check_sites(ours: dict[str, torch.Size], theirs: dict[str, torch.Size]) -> None:
    """Raises ValueError when model and guide do not draw the same sites, in the same shapes."""
    if not ours:
        raise ValueError("the model has no latent variables: every sample statement is observed")
    if foreign := theirs.keys() - ours.keys():
        raise ValueError(
            f"the guide draws {sorted(foreign)}, which the model does not have (its latents are "
            f"{sorted(ours)}): it is a guide for another model"
        )
    if missing := ours.keys() - theirs.keys():
        raise ValueError(
            f"the guide does not draw {sorted(missing)}, which the model does: weights need a "
            "guide for all of its latents, such as an AutoGuideList; sum over discrete ones in the "
            "model"
        )
    for name, shape in ours.items():
        if shape != theirs[name]:
            raise ValueError(
                f"the guide draws {name!r} with shape {tuple(theirs[name])}, the model with "
                f"{tuple(shape)}: it is a guide for another model, or for data of another size, "
                "which need a new guide or, without fitting again, one with a context_fn"
            )


def _weighted_draws(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    num_particles: int,
    keep: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The guide's draws (where they are to be kept) and log-weights, on the CPU, in chunks."""
    nesting, shapes, chunk = prepare(model, guide, *args, **kwargs)
    chunks = [chunk] * (num_particles // chunk)
    # A chunk of one would lose the plate over particles; hence it joins the last one.
    if (leftover := num_particles % chunk) == 1:
        chunks[-1] += 1
    elif leftover:
        chunks.append(leftover)
    shapes = shapes if keep else {}
    for n in chunks:
        log_weights, trace, guide_trace = vectorized_importance_weights(
            model, guide, *args, num_samples=n, max_plate_nesting=nesting, **kwargs
        )
        _check_weights(log_weights, trace, guide_trace)
        values = {
            name: trace.nodes[name]["value"].reshape(n, *shape).cpu()
            for name, shape in shapes.items()
        }
        yield values, log_weights.double().cpu()


def _check_weights(log_weights: Tensor, *traces: Any) -> None:
    """Raises ValueError naming the sites that make a weight NaN, or all weights zero."""
    n, bad = len(log_weights), int(log_weights.isnan().sum())
    if not bad and log_weights.max() > -math.inf:
        return
    culprits = {
        name
        for trace in traces
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not torch.isfinite(site["log_prob"]).all()
    }
    extent = f"NaN for {bad} of {n} draws" if bad else f"-inf for all {n} draws"
    raise ValueError(
        f"the log-density is {extent} of the guide, because of the sites {sorted(culprits)}; look "
        "for NaN or impossible values in their data, and for parameters out of range"
    )


@torch.no_grad()
def latent_shapes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, torch.Size]:
    """Shapes of the latent sites that a model or guide draws, auxiliary ones left out; runs it."""
    with poutine.block(), FlatPriors():
        trace = poutine.trace(fn).get_trace(*args, **kwargs)
    return {
        name: site["value"].shape
        for name, site in prune_subsample_sites(trace).iter_stochastic_nodes()
        if not site["infer"].get("is_auxiliary")
    }


def refuse_subsampling(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raises ValueError naming a plate that the model subsamples: all draws share its choice."""
    with poutine.block(), FlatPriors():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    for name, site in trace.nodes.items():
        fn = site.get("fn")
        size = getattr(fn, "subsample_size", None)
        if type(fn).__name__ == "_Subsample" and size is not None and size < fn.size:
            raise ValueError(
                f"plate {name!r} is subsampled ({fn.subsample_size} of {fn.size}), and weights of "
                "a random part of the data say nothing of the posterior; give the model all of it"
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
def max_plate_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> int:
    """The depth of the deepest vectorised plate in model and guide; runs each once."""
    with poutine.block(), FlatPriors():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
            *args, **kwargs
        )
    depths = [
        -frame.dim
        for trace in (guide_trace, model_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.dim is not None
    ]
    return max(depths, default=0)


@torch.no_grad()
def log_probs(
    model: Callable[..., Any], point: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> dict[str, Tensor]:
    """Log-density of every site of the model with its latents at ``point``."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)  # a subsampled plate must choose the same rows every time
        conditioned = poutine.condition(model, data=dict(point))
        trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    sites = prune_subsample_sites(trace).nodes.items()
    return {name: site["log_prob"] for name, site in sites if "log_prob" in site}


@torch.no_grad()
def check_draws_stay_apart(
    model: Callable[..., Any], guide: Callable[..., Any], nesting: int, *args: Any, **kwargs: Any
) -> int:
    """Compares the model for one draw alone with the same draw among three.

    A model that sums over all draws, where it means one, raises nothing: it is just wrong.

    :return: the number of log-densities that the model has for one draw.
    :raises ValueError: naming the site whose log-density depends on the other draws.
    """

    def sites() -> dict[str, Tensor]:
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        found = prune_subsample_sites(trace).iter_stochastic_nodes()
        return {n: s["value"] for n, s in found if not s["infer"].get("is_auxiliary")}

    with poutine.block():
        shapes = {name: value.shape for name, value in sites().items()}
        with pyro.plate("_draws", 3, dim=-nesting - 1):
            many = sites()
            together = log_probs(model, many, *args, **kwargs)
        draws = [{n: many[n][i].reshape(s) for n, s in shapes.items()} for i in range(3)]
        singles = [log_probs(model, draw, *args, **kwargs) for draw in draws]
    for i, single in enumerate(singles):
        for name, log_prob in single.items():
            alone, among = log_prob.sum(), together[name].reshape(3, -1)[i].sum()
            if not torch.allclose(among, alone, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise ValueError(
                    f"the model mixes its draws when it runs for many at once: {name} has the "
                    f"log-density {alone:.4g} alone and {among:.4g} among others; keep to "
                    "the dimensions counted from the right (dim=-1), and use plates"
                )
    return sum(log_prob.numel() for log_prob in singles[0].values())


@torch.no_grad()
def draws(
    guide: Callable[..., dict[str, Tensor]], *args: Any, num_samples: int = 4000, **kwargs: Any
) -> dict[str, Tensor]:
    """Draws of an autoguide, all at once: site to tensor ``(num_samples, ...)``.

    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro.distributions as dist
    >>> guide = AutoNormal(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    >>> draws(guide, num_samples=100)["x"].shape
    torch.Size([100])
    """
    with poutine.block():
        single = guide(*args, **kwargs)
        nesting = max_plate_nesting(lambda *a, **k: None, guide, *args, **kwargs)
        with pyro.plate("_draws", num_samples, dim=-nesting - 1):
            many = guide(*args, **kwargs)
    # A site of k dimensions inside fewer plates than the deepest has axes of length one between.
    return {name: many[name].reshape(num_samples, *value.shape) for name, value in single.items()}
