r"""A full-rank Gaussian for a model, without step sizes: modes, Laplace, then matched scores.

L-BFGS climbs from many starts, until it finds no new mode. At points of its paths, not only at
their ends (a hierarchical model has its mode where there is no mass), Gaussians are laid by the
Hessian, and the ELBO chooses among them (as in Pathfinder, Zhang et al. 2022 [arXiv:2108.03782]).
It is then moved to match the scores of the posterior (batch and match, Cai et al. 2024
[arXiv:2402.14758]): closed-form steps, invariant to scale and correlation, with the exact Gaussian
as fixed point.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from torch import Tensor

from ..support.deprecation import renamed
from .climbs import climb
from .flat_priors import start_flat_priors
from .joint import Joint
from .pace import Pace

#: Points of every path at which a Gaussian is tried. Into a funnel a path takes few steps past its
#: mass and many beyond.
_TRIED_POINTS = 12

#: Climbs in a search for modes, at most, in multiples of those in a row that may be futile.
_MOST_CLIMBS = 10

#: Climbs at once. They are the fewest, too: half of those of an oscillator's posterior end at modes
#: without mass.
_AT_ONCE = 16

#: Evaluations that a climb takes to its mode, roughly.
_EVALUATIONS = 60

#: Points that the start of a climb is drawn from, and the share of the time for all their values.
_CANDIDATES, _CANDIDATES_SHARE = 200, 0.1

#: Part of the time of a search by which it may be late: each mode that was found is to be tried.
_LATE = 0.5

#: Share of the time for the Hessians of one batch of points.
_HESSIANS_SHARE = 0.1

#: Draws behind every estimate of an ELBO, the same for all Gaussians; and so few of them choose so
#: many that are worth them all.
_ELBO_DRAWS, _FEW_DRAWS, _FINALISTS = 256, 32, 3

#: Between two modes the log-density falls by more than this.
_DIP = 1.0

#: A mode whose Gaussian has an ELBO so much below the best one's holds no mass worth a search.
_NEGLIGIBLE = 7.0

#: An unconstrained latent that is farther out, or wider, belongs to no proper posterior.
_FAR = 1e7

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gaussian:
    """N(loc, L L^T) on R^D, and its ELBO; L is lower triangular, or a vector for a diagonal one."""

    loc: Tensor
    factor: Tensor
    elbo: float

    @property
    def scale(self) -> Tensor:
        """Standard deviations ``(D,)``."""
        return self.factor if self.factor.dim() == 1 else self.factor.norm(dim=-1)

    def draw(self, normal: Tensor) -> Tensor:
        """Images of standard normal points ``(N, D)``."""
        if self.factor.dim() == 1:
            return self.loc + normal * self.factor
        return self.loc + normal @ self.factor.T

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``(N,)`` at z ``(N, D)``."""
        if self.factor.dim() == 1:
            return torch.distributions.Normal(self.loc, self.factor).log_prob(z).sum(-1)
        law = torch.distributions.MultivariateNormal(self.loc, scale_tril=self.factor)
        return law.log_prob(z)


@renamed(seconds="max_seconds")
def fit_gaussian(
    model: Callable[..., Any],
    *args: Any,
    num_starts: int = 16,
    temperature: float = 1.0,
    max_seconds: float | None = None,
    **kwargs: Any,
) -> tuple[AutoMultivariateNormal, list[Gaussian]]:
    r"""Fit an ``AutoMultivariateNormal`` guide to the model, and find its modes.

    :param model: any model that Pyro's NUTS takes; finite discrete latents are summed out.
    :param args: its arguments, as are ``kwargs``.
    :param num_starts: the search for modes ends when so many climbs in a row have found no new one.
        The first is from the priors' medians, the others by turns from uniform points of [-2, 2] or
        [-5, 5] in unconstrained space, and from 3 to 10 widths around a mode.
    :param temperature: fits :math:`p^{1/T}`, which is wider.
    :param max_seconds: time for the search for modes; half as long again goes to the last Gaussian.
    :return: the guide, whose location has shape ``(D,)`` in unconstrained space, and a Gaussian for
        p itself at every mode that was found, the best first; without those that are negligible.
    :raises ValueError: as :class:`~pyro_naf.infer.joint.Joint`, when the log-density is finite at
        none of the starts, or when the posterior is improper.

    The sign of x is unknown, so that there are two modes:

    >>> import pyro, pyro.distributions as dist
    >>> _ = pyro.set_rng_seed(0)
    >>> def model(y):
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x.square(), 0.1), obs=y)
    >>> guide, modes = fit_gaussian(model, torch.tensor(1.0))
    >>> guide.loc.shape, sorted(round(mode.loc.item(), 1) for mode in modes)
    (torch.Size([1]), [-1.0, 1.0])
    """
    joint = Joint(model, args, kwargs)
    best, modes = find_gaussian(joint, num_starts, temperature, max_seconds)
    hidden = poutine.block(model, hide=list(joint.discrete)) if joint.discrete else model
    guide = AutoMultivariateNormal(hidden, init_loc_fn=start_flat_priors(init_to_median))
    guide._pyro_name = free_name(f"{type(guide).__name__}_start")
    with poutine.block():
        guide._setup_prototype(*args, **kwargs)
    set_gaussian(guide, best)
    return guide, modes


def find_gaussian(
    joint: Joint, num_starts: int, temperature: float = 1.0, seconds: float | None = None
) -> tuple[Gaussian, list[Gaussian]]:
    """Fit the nearest Gaussian to a joint density, and one at every mode."""
    normal = matched_normal(max(_ELBO_DRAWS, 4 * joint.dim), joint.start)
    limit = math.inf if seconds is None else seconds
    deadline = time.monotonic() + limit
    tried, modes = search(joint, joint.start, normal, num_starts, deadline)
    if not modes:
        raise_for_start(joint)
    best = modes[0]
    tempered: LogDensity = lambda z: joint(z) / temperature  # noqa: E731
    if temperature != 1:
        best = _best(tempered, tried, normal, deadline + 0.2 * limit) or best
    best = match(tempered, best, normal, deadline=deadline + 0.5 * limit)
    _check_proper(joint, best)
    return best, modes


@torch.no_grad()
def set_gaussian(guide: AutoMultivariateNormal, gaussian: Gaussian) -> None:
    """Make the guide this Gaussian."""
    guide.loc.copy_(gaussian.loc)
    scale = gaussian.factor.diagonal().clone()
    guide.scale, guide.scale_tril = scale, gaussian.factor / scale[:, None]


def search(
    target: LogDensity,
    middle: Tensor,
    normal: Tensor,
    num_starts: int,
    deadline: float = math.inf,
) -> tuple[Tensor, list[Gaussian]]:
    """Points along paths of L-BFGS to modes ``(N, D)``, and the best Gaussian of each mode's path.

    The search ends when ``num_starts`` climbs in a row, the first counted, have found no new mode,
    or at the deadline, a value of :func:`time.monotonic`.
    """
    tried = middle[None][:0]
    modes: list[Gaussian] = []
    tops: list[Tensor] = []
    found: list[list[Tensor]] = []  # points of all paths to each top
    climbs = futile = 0
    latest = deadline + _LATE * max(deadline - time.monotonic(), 0.0)
    thrift = _Thrift.of(target, middle, deadline)
    at_once = min(thrift.climbs, num_starts)
    while futile < num_starts and climbs < _MOST_CLIMBS * num_starts:
        numbers = range(climbs, climbs + at_once)
        starts = torch.stack([_start(target, i, middle, modes, thrift.candidates) for i in numbers])
        known, new = len(modes), len(tops)
        for path in filter(len, climb(target, starts, deadline=deadline)):
            led = [_leads(target, top, path[-1]) for top in tops]
            if not any(led):
                tops.append(path[-1])
                found.append([])
            found[led.index(True) if any(led) else -1].append(_spread(path))
        for points in _highest_first(target, found[new:]):
            tried = torch.cat([tried, points])
            if modes and time.monotonic() > deadline:  # of the others the tops alone are tried
                points = points[-1:]
            if modes and time.monotonic() > latest:
                break
            if best := _best(target, points, normal, deadline, thrift.hessians):
                best = match(target, best, normal, steps=10, deadline=deadline)
                modes = distinct(target, [*modes, best])
        climbs += len(numbers)
        futile = 1 if len(modes) > known else futile + len(numbers)
        if time.monotonic() > deadline:
            break
    return tried, modes


@torch.no_grad()
def _highest_first(target: LogDensity, paths: list[list[Tensor]]) -> list[Tensor]:
    """Points of the paths to each top, those of the highest top first."""
    points = [torch.cat(parts) for parts in paths]
    return sorted(points, key=lambda z: -float(target(z[-1:])))


@dataclass(frozen=True)
class _Thrift:
    """What a search can afford at once: climbs, candidates for each start, points with Hessians."""

    climbs: int = _AT_ONCE
    candidates: int = _CANDIDATES
    hessians: int = _AT_ONCE

    @classmethod
    def of(cls, target: LogDensity, middle: Tensor, deadline: float) -> _Thrift:
        """By the cost of a gradient, and the time until the deadline."""
        if not math.isfinite(deadline):
            return cls()
        pace, left = Pace.of(target, middle), max(deadline - time.monotonic(), 0.0)
        climbs = pace.points(left) // _EVALUATIONS
        candidates = pace.values(_CANDIDATES_SHARE * left) // max(1, min(climbs, _AT_ONCE))
        # A Hessian takes some three gradients for each latent, and its Gaussian's ELBO some draws.
        each = 3 * len(middle) + _FEW_DRAWS
        hessians = pace.points(_HESSIANS_SHARE * left) // each
        return cls(
            climbs=max(1, min(climbs, _AT_ONCE)),
            candidates=max(1, min(candidates, _CANDIDATES)),
            hessians=max(1, min(hessians, _AT_ONCE)),
        )


@torch.no_grad()
def _start(
    target: LogDensity,
    number: int,
    middle: Tensor,
    modes: list[Gaussian],
    candidates: int = _CANDIDATES,
) -> Tensor:
    """By turns a point of a box, and one 3 to 10 widths from a mode: scales are not known.

    It is drawn from many such points by their density, to a power that leaves a choice of a tenth:
    among dozens of modes those with mass are found first.
    """
    if number == 0:
        return middle
    if number % 2 or not modes:
        box = (2.0, 5.0)[number // 2 % 2]
        z = (2 * torch.rand(candidates, len(middle)).to(middle) - 1) * box
    else:
        mode = modes[int(torch.randint(len(modes), ()))]
        widths = 3 + 7 * torch.rand(candidates, 1).to(middle)
        z = mode.draw(torch.randn(candidates, len(middle)).to(middle) * widths)
    if candidates == 1:
        return z[0]
    log_p = target(z).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    if not log_p.isfinite().any():
        return z[0]
    return z[even_softmax(log_p, 0.1).multinomial(1)[0]]


def laplace(target: LogDensity, z: Tensor, normal: Tensor) -> list[Gaussian]:
    """Make a Gaussian at each of the points ``(N, D)``, its precision the repaired Hessian."""
    precision = -_hessians(target, z)
    usable = precision.flatten(1).isfinite().all(-1)
    values, vectors = torch.linalg.eigh(torch.where(usable[:, None, None], precision, 0.0))
    # Where the density curves upwards a width of that curvature is still the best guess.
    values = values.abs().clamp(min=1e-8)
    factors = cholesky(vectors / values[:, None, :] @ vectors.mT)
    found = zip(z, factors, usable.tolist(), strict=True)
    return [_scored(target, loc, f, normal) for loc, f, good in found if good]


def _best(
    target: LogDensity,
    z: Tensor,
    normal: Tensor,
    deadline: float = math.inf,
    at_once: int = _AT_ONCE,
) -> Gaussian | None:
    """Return the best of the Gaussians at points ``(N, D)``: few draws judge all, all draws a few.

    The points come one group after another, the last ones first, until the deadline.
    """
    rough: list[Gaussian] = []
    for part in z.flip(0).split(at_once):
        rough += laplace(target, part, normal[:_FEW_DRAWS])
        if time.monotonic() > deadline:
            break
    rough.sort(key=lambda g: -g.elbo)
    finalists = [_scored(target, g.loc, g.factor, normal) for g in rough[:_FINALISTS]]
    return max(finalists, key=lambda g: g.elbo, default=None)


def match(
    target: LogDensity,
    start: Gaussian,
    normal: Tensor,
    steps: int = 40,
    batch: int = 64,
    deadline: float = math.inf,
) -> Gaussian:
    """Return the best Gaussian on the way of batch and match from ``start``, until the deadline."""
    best = start
    loc, factor = start.loc, start.factor
    dim = len(loc)
    for step in range(steps):
        z = (loc + torch.randn(batch, dim).to(loc) @ factor.T).requires_grad_()
        value = target(z)
        (score,) = torch.autograd.grad(value.sum(), z)
        good = value.isfinite() & score.isfinite().all(-1)
        if good.sum() <= 2:
            break
        z, score = z.detach()[good], score[good]
        rate = batch * dim / (step + 1)
        z_mean, s_mean = z.mean(0), score.mean(0)
        u = rate * _covariance(score) + rate / (1 + rate) * torch.outer(s_mean, s_mean)
        shift = loc - z_mean
        v = factor @ factor.T + rate * _covariance(z)
        v = v + rate / (1 + rate) * torch.outer(shift, shift)
        # Sigma U Sigma + Sigma = V, solved in the eigenvectors of L^T U L with V = L L^T.
        (left,) = cholesky(v[None])
        values, vectors = torch.linalg.eigh(left.T @ u @ left)
        root = left @ vectors * (2 / (1 + (1 + 4 * values.clamp(min=0)).sqrt())).sqrt()
        covariance = root @ root.T
        if not covariance.isfinite().all():
            break
        (factor,) = cholesky(covariance[None])
        loc = loc / (1 + rate) + rate / (1 + rate) * (covariance @ s_mean + z_mean)
        found = _scored(target, loc, factor, normal)
        best = max(best, found, key=lambda g: g.elbo)
        if time.monotonic() > deadline:
            break
    return best


def free_name(name: str) -> str:
    """Return a guide name that no other guide has, in this process or another.

    A guide of the same name would read the weights of this one from Pyro's param store, or this one
    those of a guide that is loaded, or that was made after the store was cleared.
    """
    return f"{name}_{secrets.token_hex(4)}"


def raise_for_start(joint: Joint) -> NoReturn:
    """Raise ValueError that names the sites whose log-density is not finite at the start."""
    point = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
    for name, value in joint.culprits(point).items():
        raise ValueError(
            f"the log-density of site {name!r} is {value} at the priors' medians, and not finite "
            "at any other start; look for NaN in its data and for impossible values"
        )
    raise ValueError("the derivatives of the model's log-density are not finite at any start")


def _check_proper(joint: Joint, gaussian: Gaussian) -> None:
    extent = gaussian.loc.abs() + gaussian.factor.norm(dim=-1)
    for name, part in joint.split(extent).items():
        if not (part < _FAR).all():
            raise ValueError(
                f"the posterior seems to be improper: site {name!r} escapes to infinity; give it a "
                "proper prior"
            )


def matched_normal(count: int, like: Tensor) -> Tensor:
    """Draw normal points ``(count, D)`` whose mean is 0 and covariance I: exact for quadratics."""
    normal = torch.randn(count, len(like)).to(like)
    normal = normal - normal.mean(0)
    factor = torch.linalg.cholesky(_covariance(normal))
    return torch.linalg.solve_triangular(factor, normal.T, upper=False).T


def _scored(target: LogDensity, loc: Tensor, factor: Tensor, normal: Tensor) -> Gaussian:
    with torch.no_grad():
        energy = target(loc + normal @ factor.T).double().mean()
        entropy = factor.diagonal().double().log().sum() + 0.5 * len(loc) * 2.8378770664093453
    elbo = float(energy + entropy)
    return Gaussian(loc, factor, elbo if elbo == elbo else -torch.inf)


def _hessians(target: LogDensity, z: Tensor) -> Tensor:
    """Second derivatives ``(N, D, D)``: one backward pass a dimension, for all points at once."""
    try:
        if getattr(target, "graph", None) is not None:  # gradients cost far less than the model
            hessian = _differences(target, z.detach())
        else:
            hessian = _second_derivatives(target, z)
    except (NotImplementedError, RuntimeError):  # a formula that is differentiable only once
        hessian = torch.full_like(z[:, None] * z[..., None], torch.nan)
    if not hessian.isfinite().all():
        hessian = torch.where(hessian.isfinite(), hessian, _differences(target, z.detach()))
    return (hessian + hessian.mT) / 2


def _second_derivatives(target: LogDensity, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (grad,) = torch.autograd.grad(target(z).sum(), z, create_graph=True)
    rows = [
        torch.autograd.grad(column.sum(), z, retain_graph=True, materialize_grads=True)[0]
        if column.requires_grad
        else torch.zeros_like(z)
        for column in grad.unbind(-1)
    ]
    return torch.stack(rows, -2)


def _differences(target: LogDensity, z: Tensor) -> Tensor:
    """Second derivatives from gradients around z: some formulas are differentiable only once."""
    width = torch.finfo(z.dtype).eps ** (1 / 3) * z.abs().amax(-1, keepdim=True).clamp(min=1)
    steps = torch.diag_embed(width.expand_as(z))
    around = torch.stack([z[:, None] + steps, z[:, None] - steps]).requires_grad_()
    (grad,) = torch.autograd.grad(target(around.flatten(0, 2)).sum(), around)
    return (grad[0] - grad[1]) / (2 * width[..., None])


def cholesky(covariance: Tensor) -> Tensor:
    """Factors of matrices ``(N, D, D)`` that are positive definite up to rounding."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[..., -1:].abs() * 10 * torch.finfo(values.dtype).eps
    root = vectors * values.clamp(min=floor).sqrt()[..., None, :]
    # A QR factorisation squares no condition number.
    _, upper = torch.linalg.qr(root.mT)
    return upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def even_softmax(log_weights: Tensor, least: float = 0.05) -> Tensor:
    """Weights ``(N,)``, normalised, to the largest power <= 1 with an ESS of N times ``least``.

    >>> even_softmax(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    low, high, power = 0.0, 1.0, 1.0
    for _ in range(20):
        weights = (power * log_weights).softmax(0)
        if even := bool(1 / weights.square().sum() >= least * len(weights)):
            low = power
        else:
            high = power
        if even and power == 1:
            break
        power = (low + high) / 2
    return weights


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


def _spread(path: Tensor) -> Tensor:
    """Points evenly along a path, its end among them."""
    places = torch.linspace(0, len(path) - 1, min(len(path), _TRIED_POINTS))
    return path[places.round().long()]


def distinct(target: LogDensity, gaussians: list[Gaussian]) -> list[Gaussian]:
    """Return the best of each mode, without negligible ones, the best first."""
    kept: list[Gaussian] = []
    for g in sorted(gaussians, key=lambda g: -g.elbo):
        if kept and g.elbo < kept[0].elbo - _NEGLIGIBLE:
            break
        if all(_dip(target, g.loc, k.loc) > _DIP for k in kept):
            kept.append(g)
    return kept


@torch.no_grad()
def _leads(target: LogDensity, top: Tensor, end: Tensor) -> bool:
    """Whether one climbs from ``end`` to ``top``; a saddle where a path has ended is no top."""
    return float(target(end[None]) - target(top[None])) < _DIP and _dip(target, end, top) < _DIP


@torch.no_grad()
def _dip(target: LogDensity, a: Tensor, b: Tensor) -> float:
    """How far the log-density falls on the way from a to b, below the lower of the two."""
    values = target(torch.lerp(a, b, torch.linspace(0, 1, 21).to(a)[:, None]))
    return float(torch.minimum(values[0], values[-1]) - values.min())
