"""What the training of a flow guide descends: four losses, of four phases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioners import MADE, GraphConditioner
from ..kernels import library
from .autoguides import AutoFlowNormal
from .flow_graph import CapturedPath, FlowGraph
from .gaussian import LogDensity
from .joint import Joint
from .mixture import Pool, Pushed
from .path_gradient import FlowPath

#: In the landing some draws of the base are multiplied by 1 to 1 + this number over the root of D.
#: The length of a draw, about the root of D, is so raised by up to this number.
_WIDER = 1.5

#: With a pool, the number of draws of the pool and of the guide, each in multiples of those for
#: climbing; and the learning rate in multiples of climbing's. It is higher as there is less noise:
#: no draw depends on the weights.
_FROM_POOL, FASTER = 2, 3.0

#: Bounds of the log-weights in balancing, below and above the median log-weight of the pool. Far
#: below lie draws of the guide between modes. Far above lie draws of a mode that the guide lacks:
#: at the bound their gradient is the forward divergence's.
_UNEVEN = (-10.0, 1.0)

#: Weight, in learning, of draws of the Gaussian with the moments of all modes. Where x_1 lies
#: between modes no draw of the pool trains the conditional of x_2, and the guide's few draws there
#: would be thrown far away.
_AROUND = 0.05

#: Relative error of the scores that the landing takes, far below their noise.
_TOLERANCE = 1e-3

#: Bounds of the log-weight of a wider draw, below and above the median: k-hat depends on the large
#: weights alone.
_OUTLYING = (-0.1, 1.0)

#: Variance of the log-weights up to which the wider draws count in full; above it they count in
#: inverse proportion. Where the guide cannot reach a part of the posterior, such as the neck of a
#: funnel, that part must not govern the fit.
_CLOSE = 1e-3


#: Number of steps of a phase after which the guide's part of a step is captured, and of those that
#: must be left: capturing costs as much as a hundred or two save.
_CAPTURED_AFTER, _STEPS_LEFT = 150, 300

#: Largest product of the numbers of weights and draws at which a captured step is worth it. With a
#: larger one a step is arithmetic, and more of it: a graph makes the products that masks zero.
_MOST_PRODUCTS = 1 << 25

#: Conditioners of few operations.
_QUICK = (MADE, GraphConditioner)

#: Gradients with respect to weights, None where nothing depends on one.
Gradients = list[Tensor | None]


class Loss(NamedTuple):
    """A loss as it is reported, and the gradients that weights follow."""

    value: float
    gradients: Callable[[Sequence[Tensor]], Gradients]


class Objective:
    r"""The losses of a guide.

    Where the posterior has one mode, two phases follow one another, as the budget says:

    * *climb*: ascends the ELBO.
    * *land*: ascends the ELBO by its path gradient (sticking the landing), while the rate falls to
      zero and the weights are averaged. Added is the log-variance divergence
      :math:`\tfrac12 \mathrm{Var}_r[\log p(z) - \log q(z)]`: at q = p it is zero for every
      distribution r, with a gradient of no variance (Richter et al. 2020 [arXiv:2010.10436]). Here
      r is the guide with a wider base. The ELBO alone fits the tails only as often as draws of the
      guide fall there; elsewhere the flow is arbitrary, and a few wrong weights make k-hat large.
      Deviations are bounded (Huber's loss), and the divergence counts in full only where the fit is
      close already.

    Where the posterior has several modes, the ELBO loses modes: once they are apart, only draws
    between them tell its gradient how much mass each should have. Two other phases take the place
    of these, for a guide whose density is one pass (``inverse``), so that each of its conditionals
    is a mixture:

    * *learn*: maximises the likelihood of a pool of draws of the posterior, found by weighting
      Gaussians at its modes, and, with a small weight, of draws around all modes.
    * *balance*: descends the log-variance divergence, where r is half that pool and half the guide
      with a wider base. The gradient holds the draws fixed, so that all draws in a mode determine
      the mode's mass. As any r will do, draws of the guide serve 1 + D / 2 steps: the cost of the
      inverse that makes them grows with D.

    :param guide: trained in place.
    :param target: the log-density p of its latent vectors, of the posterior up to a factor.
    :param num_particles: draws for each gradient.
    :param pool: draws of the posterior, where it has several modes; the guide must be ``inverse``.
    :param estimate: unbiased estimates of the log-density for the gradients, by default itself.
    """

    def __init__(
        self,
        guide: AutoFlowNormal,
        target: LogDensity,
        num_particles: int,
        pool: Pool | None = None,
        estimate: LogDensity | None = None,
    ) -> None:
        self.guide, self.target, self.pool = guide, target, pool
        self.num_particles, self.estimate = num_particles, estimate or target
        self.phases = ("climb", "land") if pool is None else ("learn", "balance")
        self.own: tuple[Tensor, ...] = ()
        self._graphs: dict[tuple[bool, int], FlowGraph | None] = {}
        self._passes: Counter[tuple[bool, int]] = Counter()
        self._steps_left = math.inf

    def of(self, phase: str, step: int, steps_left: float = math.inf) -> Loss:
        """Compute the loss of a phase, in a step of this number.

        :param steps_left: how many steps of the phase there will be, roughly.
        """
        self._steps_left = steps_left
        if phase == "balance":
            return self.balance(step)
        losses = {"climb": self.climb, "land": self.land, "learn": self.learn}
        return losses[phase]()

    def climb(self) -> Loss:
        """Minus the ELBO."""
        path = self._path(self.normal(self.num_particles), scores=False)
        log_p, slopes = _value_and_grad(self.estimate, path.z)
        loss, shares = _mean(path.log_q.detach() - log_p)
        by_z = -shares[:, None] * slopes
        return Loss(loss.item(), partial(path.gradients, by_log_q=shares, by_z=by_z))

    def learn(self) -> Loss:
        """Minus the log-likelihood of draws of the pool, and of some around them."""
        assert self.pool is not None
        count = _FROM_POOL * self.num_particles
        z, log_p = self.pool.draw(count)
        around = self.pool.around.draw(self.normal(max(count // 16, 1)))
        log_q = self.guide.get_posterior().log_prob(torch.cat([z, around]))
        stand_in = -log_q[:count].mean() - _AROUND * log_q[count:].mean()
        loss, _ = _mean(log_q[:count].detach() - log_p)
        return Loss(loss.item(), partial(_gradients, stand_in))

    def balance(self, step: int) -> Loss:
        """Take the gradient of the log-variance divergence at fixed draws."""
        assert self.pool is not None
        count = _FROM_POOL * self.num_particles
        posterior = self.guide.get_posterior()
        if step % (1 + self.guide.latent_dim // 2) == 0 or not self.own:
            with torch.no_grad():
                z = Pushed(posterior).draw(self._wide(count))
                self.own = z, self.target(z)
        pairs = zip(self.pool.draw(count), self.own, strict=True)
        z, log_p = (torch.cat(pair) for pair in pairs)
        log_q = posterior.log_prob(z)
        with torch.no_grad():
            log_w = log_p - log_q
            loss, _ = _mean(-log_w[count:])
            deviations = _huber(log_w, log_w[:count], _UNEVEN)
        stand_in = -((deviations - deviations.mean()) * log_q).mean()
        return Loss(loss.item(), partial(_gradients, stand_in))

    def land(self) -> Loss:
        """Take the path gradient, and that of the log-variance divergence."""
        count = self.num_particles
        path = self._path(
            torch.cat([self.normal(count), self._wide(max(count // 2, 2))]), scores=True
        )
        log_q, scores = path.log_q.detach(), path.score(_TOLERANCE)
        # At the wider draws, where the density may not be finite, its gradient is not taken.
        log_p, slopes = _value_and_grad(self.estimate, path.z)
        loss, shares = _mean((log_q - log_p)[:count])
        log_w = log_p - log_q
        part = (_CLOSE / log_w[:count].var()).clamp(max=1).nan_to_num(nan=0.0)
        outer = _huber(log_w[count:], log_w[count:], _OUTLYING)
        # log q(z) - score z has the gradient of log q at fixed z.
        fixed = torch.cat([torch.full_like(shares, 1 / count), part * outer / len(outer)])
        by_log_q, by_z = -fixed, fixed[:, None] * scores
        by_log_q[:count] += shares
        by_z[:count] -= shares[:, None] * slopes[:count]
        return Loss(loss.item(), partial(path.gradients, by_log_q=by_log_q, by_z=by_z))

    def _path(self, base: Tensor, scores: bool) -> FlowPath | CapturedPath:
        """Send draws of the base through the guide, by a captured graph after some steps."""
        kind = scores, len(base)
        self._passes[kind] += 1
        is_due = self._passes[kind] >= _CAPTURED_AFTER and self._steps_left >= _STEPS_LEFT
        if is_due and kind not in self._graphs and self._is_worth_capturing(len(base)):
            try:
                self._graphs[kind] = FlowGraph(self.guide, base, scores, _TOLERANCE)
            except Exception:  # noqa: BLE001 - what cannot be captured is computed as before
                self._graphs[kind] = None
        graph = self._graphs.get(kind)
        return FlowPath(self.guide.get_transform(), base) if graph is None else graph(base)

    def _is_worth_capturing(self, count: int) -> bool:
        """Whether the density is a graph already, and the guide's part is overhead for the most."""
        guide = self.guide
        if getattr(self.target, "graph", None) is None or guide.loc.device.type != "cpu":
            return False
        flows = getattr(guide.flow, "parts", [guide.flow])
        if guide.inverse or not all(isinstance(flow.arn, _QUICK) for flow in flows):
            return False
        size = sum(weight.numel() for weight in guide.parameters())
        return library.is_built() and size * count <= _MOST_PRODUCTS

    def normal(self, count: int) -> Tensor:
        """Draw points ``(count, D)`` of the base."""
        return torch.randn(count, self.guide.latent_dim).to(self.guide.loc)

    def _wide(self, count: int) -> Tensor:
        normal = self.normal(count)
        return normal * (1 + _WIDER / normal.shape[-1] ** 0.5 * torch.rand_like(normal[:, :1]))


def _value_and_grad(function: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(N,)`` and gradients ``(N, D)``, 0 where the value is not finite."""
    if isinstance(function, Joint):
        return function.value_and_grad(z)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
    if not value.requires_grad:
        return value, torch.zeros_like(z)
    (grad,) = torch.autograd.grad(value.sum(), z)
    value = value.detach()
    return value, torch.where(value.isfinite()[:, None], grad, 0.0)


def _gradients(stand_in: Tensor, weights: Sequence[Tensor]) -> Gradients:
    # Not backward(): the model's own parameters must not collect gradients.
    return list(torch.autograd.grad(stand_in, weights, allow_unused=True))


def _mean(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the draws of finite density, and the share of each; infinite where most have none.

    A draw where the model has no density has no gradient either. The other draws go on.
    """
    finite = losses.isfinite()
    shares = finite.to(losses) / finite.sum()
    if 2 * int(finite.sum()) < len(losses):
        return losses.mean(), shares
    return torch.where(finite, losses, 0.0).sum() / finite.sum(), shares


def _huber(log_weights: Tensor, typical: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Deviations ``(N,)`` from the median of the typical ones, bounded; zero where they are NaN."""
    finite = typical[typical.isfinite()]
    if not len(finite):
        return torch.zeros_like(log_weights)
    return (log_weights - finite.median()).clamp(*bounds).nan_to_num(nan=0.0)
