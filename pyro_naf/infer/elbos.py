r"""ELBOs for SVI whose gradient runs along the path of the draws, without the score of the guide.

With :math:`z = z_\theta(\epsilon)` drawn from :math:`q_\theta`, the gradient of a bound made of
:math:`\log w = \log p(x, z) - \log q_\theta(z)` has two parts: along the path
:math:`\theta \to z \to \log w`, and the score :math:`-\nabla_\theta \log q_\theta(z)` at fixed z.
The latter is noise for the ELBO (Roeder et al. 2017), and for the importance-weighted bound it can
be turned into a path itself (Tucker et al. 2018).

To tell the two apart, a guide is handed its own draws as leaves of the autograd graph. Every draw
then depends on the parameters at its own site alone, and :math:`d\log w/dz`, with later draws
moving along, is carried back through the sites from last to first.
"""

from __future__ import annotations

import math

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.trace_elbo import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape, warn_if_nan
from torch import Tensor
from torch.autograd.graph import Node

from ..guides.wrapping import for_elements, peel
from ..support.calls import Args, Kwargs, Model
from .path_gradient import score


class _PathELBO(Trace_ELBO):
    """Traces of model and guide in which the draws are cut off from one another."""

    def _get_trace(
        self, model: Model, guide: Model, args: Args, kwargs: Kwargs
    ) -> tuple[Trace, Trace]:
        unwrapped = poutine.unwrap(guide)
        with _Cut() as cut:
            if isinstance(unwrapped, Messenger):  # it runs the model itself
                guide(*args, **kwargs)
                model_trace, guide_trace = unwrapped.get_traces()
            else:
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        if not isinstance(unwrapped, Messenger):
            model = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(model).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            check_if_enumerated(guide_trace)
        model_trace, guide_trace = map(prune_subsample_sites, (model_trace, guide_trace))
        for name, draw in cut.draws.items():
            site = guide_trace.nodes[name]
            # Flows know the draw, but not the leaf.
            site["leaf"], site["value"] = site["value"], draw
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        for site in [*_sample_sites(model_trace), *_sample_sites(guide_trace)]:
            if is_validation_enabled():
                check_site_shape(site, self.max_plate_nesting)
        for site in _sample_sites(guide_trace):
            if not is_identically_zero(site["score_parts"].score_function):
                raise ValueError(
                    f"site {site['name']!r} of the guide draws from {type(site['fn']).__name__}, "
                    f"which is not reparameterised, and {type(self).__name__} needs the gradient "
                    "of every draw; use Trace_ELBO"
                )
        return model_trace, guide_trace


class TraceSTL_ELBO(_PathELBO):
    r"""The ELBO, its gradient without the score of the guide (sticking the landing).

    .. math:: \nabla_\theta \mathrm{ELBO} \approx
        \left(\nabla_z \log p(x, z) - \nabla_z \log q_\theta(z)\right) \nabla_\theta z

    It has the mean of :class:`~pyro.infer.Trace_ELBO`'s gradient and vanishes draw by draw where
    q = p, however few the draws; the value is the same. The model's parameters get their usual
    gradient. Guides with several draws that depend on one another, amortised guides, plates, masks
    and subsampling are all served. The flows of this package are not inverted where the transforms
    around them remember their samples (``cache_size=1``); other transforms are. A ``Delta`` site
    of the guide keeps its whole gradient: where the site maps other draws by trained parameters,
    these parameters get their usual gradient.

    A step costs one more backward pass through the model than Trace_ELBO's where the model has
    parameters, and a few more through the flows that the guide has.

    :param num_particles: the number of draws that the ELBO is averaged over; the other arguments
        are :class:`~pyro.infer.elbo.ELBO`'s as well.
    :raises ValueError: when run, naming a site of the guide that is not reparameterised.

    Source: Roeder et al. 2017 [arXiv:1703.09194].

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer import SVI
    >>> from pyro.infer.autoguide import AutoNormal
    >>> from pyro.optim import Adam
    >>> def model():
    ...     pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> svi = SVI(model, AutoNormal(model), Adam({"lr": 1e-2}), TraceSTL_ELBO())
    >>> loss = svi.step()
    """

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[float, Tensor | float]:
        loss, _ = super()._differentiable_loss_particle(model_trace, guide_trace)
        return loss, -_Particle(model_trace, guide_trace).surrogate(1.0)


class TraceDReG_ELBO(_PathELBO):
    r"""The importance-weighted bound (IWAE), with the doubly reparameterised gradient.

    .. math:: \mathrm{E} \log \frac1K \sum_{k=1}^K w_k, \qquad w_k = p(x, z_k) / q_\theta(z_k)

    for K draws. With :math:`\tilde w_k = w_k / \sum_j w_j` the gradient is

    .. math:: \sum_k \tilde w_k^2 \, \nabla_z \log w_k \, \nabla_\theta z_k

    for the guide, and :math:`\sum_k \tilde w_k \nabla \log w_k` for the parameters of the
    model and of ``Delta`` sites. It has the mean of ``RenyiELBO(alpha=0)``'s gradient, whose
    signal-to-noise ratio for the guide falls as :math:`K^{-1/2}` (Rainforth et al. 2018
    [arXiv:1802.04537]), while this one's rises. With K = 1 it is :class:`TraceSTL_ELBO`.

    As in RenyiELBO there is one bound over the joint weight of all sites, except for plates that
    all sites of model and guide are in: these have a bound for each element, and their sum is
    returned. A scale, as of a subsampled plate, is a power of the weights. A scale or mask c of a
    guide's site turns :math:`\tilde w^2` into :math:`\tilde w (1 - c (1 - \tilde w))`, so that the
    mean is RenyiELBO's there too.

    :param num_particles: K >= 1, the draws in the bound.
    :param kwargs: ``vectorize_particles``, ``max_plate_nesting``, ``retain_graph`` and further
        arguments of :class:`~pyro.infer.elbo.ELBO`.
    :raises ValueError: as :class:`TraceSTL_ELBO`.

    Source: Tucker et al. 2018 [arXiv:1810.04152], eq. 8; Burda et al. 2015 [arXiv:1509.00519].

    >>> import pyro
    >>> model = lambda: pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))
    >>> guide = pyro.infer.autoguide.AutoNormal(model)
    >>> elbo = TraceDReG_ELBO(num_particles=8, vectorize_particles=True)
    >>> loss = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo).step()
    """

    def __init__(self, num_particles: int = 2, **kwargs: object) -> None:
        super().__init__(num_particles, **kwargs)

    @torch.no_grad()
    def loss(self, model: Model, guide: Model, *args: object, **kwargs: object) -> float:
        """Minus the bound, from ``num_particles`` draws."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Model, guide: Model, *args: object, **kwargs: object) -> float:
        """Minus the bound; the gradient is added to the parameters' ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def differentiable_loss(
        self, model: Model, guide: Model, *args: object, **kwargs: object
    ) -> Tensor:
        """Minus the bound, a scalar with the gradient above."""
        particles = [_Particle(*pair) for pair in self._get_traces(model, guide, args, kwargs)]
        log_weights = [particle.log_weight.detach() for particle in particles]
        together = self.vectorize_particles and self.num_particles > 1
        log_weight = log_weights[0] if together else torch.stack(log_weights)
        loss = -(log_weight.logsumexp(0) - math.log(self.num_particles)).sum()
        warn_if_nan(loss, "loss")
        weights = log_weight.softmax(0)
        shares = [weights] if together else weights.unbind()
        pairs = zip(particles, shares, strict=True)
        surrogate = torch.stack([particle.surrogate(share) for particle, share in pairs]).sum()
        return loss - (surrogate - surrogate.detach())


class _Cut(Messenger):
    """Keeps the draws of a guide, and goes on with leaves of the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Message) -> None:
        value = msg["value"]
        # A Delta is no draw: what it maps to moves with its parameters and with earlier draws.
        if msg["is_observed"] or isinstance(peel(msg["fn"])[0], Delta):
            return
        if getattr(value, "requires_grad", False):
            self.draws[msg["name"]] = value
            msg["value"] = value.detach().requires_grad_()


class _Particle:
    r"""One run of guide and model: :math:`\log w`, and how it moves with each draw.

    ``log_weight`` has the dimensions of the plates that all sites are in; other dimensions have
    size 1. ``direct`` is its part that leaves the densities of the draws out.
    """

    def __init__(self, model_trace: Trace, guide_trace: Trace) -> None:
        model_sites, guide_sites = map(_sample_sites, (model_trace, guide_trace))
        self.draws = [site for site in guide_sites if "leaf" in site]
        others = [site for site in guide_sites if "leaf" not in site]
        dims = _dims_to_sum(model_sites + guide_sites)
        self.direct = _total(model_sites, dims) - _total(others, dims)
        self.log_weight = self.direct - _total(self.draws, dims)
        self.gradients = self._gradients()

    def _gradients(self) -> list[Tensor]:
        r""":math:`d\log w/dz` of each draw with later draws moving along, parameters fixed."""
        # The scores come first: a backward pass makes the flows forget their draws.
        scores = [_weigh(site, score(site["fn"], site["value"])) for site in self.draws]
        leaves = [site["leaf"] for site in self.draws]
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        _add_gradients(self.direct.sum(), leaves, totals)
        for i in reversed(range(1, len(leaves))):
            site = self.draws[i]
            later = (totals[i] * site["value"]).sum() - site["log_prob_sum"]
            _add_gradients(later, leaves[:i], totals)
        return [total - s for total, s in zip(totals, scores, strict=True)]

    def surrogate(self, weight: Tensor | float) -> Tensor:
        """Return a scalar with the gradient of the bound, given the weight of ``log_weight``."""
        surrogate = torch.zeros(())
        if _has_other_leaves(self.direct, [site["leaf"] for site in self.draws]):
            surrogate = surrogate + (weight * self.direct).sum()
        for site, gradient in zip(self.draws, self.gradients, strict=True):
            share = for_elements(weight, site["fn"].event_dim)
            # A score of multiplicity c holds c w, whose own gradient is c w (1 - w) dlog w.
            multiplicity = _weigh(site, torch.ones_like(gradient))
            factor = share * (1 - multiplicity * (1 - share))
            surrogate = surrogate + (factor * gradient * site["value"]).sum()
        return surrogate


def _sample_sites(trace: Trace) -> list[Message]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _dims_to_sum(sites: list[Message]) -> list[int]:
    """Return the dimensions of plates that some sites are not in."""
    plates = [{(f.name, f.dim) for f in site["cond_indep_stack"] if f.vectorized} for site in sites]
    common = set.intersection(*plates) if plates else set()
    return sorted({dim for _, dim in set().union(*plates) - common})


def _total(sites: list[Message], dims: list[int]) -> Tensor:
    total = torch.zeros(())
    for site in sites:
        log_prob = site["log_prob"]
        present = [dim for dim in dims if -dim <= log_prob.dim()]
        total = total + (log_prob.sum(present, keepdim=True) if present else log_prob)
    return total


def _weigh(site: Message, tensor: Tensor) -> Tensor:
    """Multiply what belongs to the elements of a draw by how often each counts in log q."""
    fn = site["fn"]
    mask = True if site["mask"] is None else site["mask"]
    mask = peel(fn)[1] & for_elements(mask, fn.event_dim)
    return scale_and_mask(tensor, for_elements(site["scale"], fn.event_dim), mask).detach()


def _add_gradients(y: Tensor, leaves: list[Tensor], totals: list[Tensor]) -> None:
    if not (leaves and y.requires_grad):
        return
    gradients = torch.autograd.grad(y, leaves, retain_graph=True, allow_unused=True)
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            totals[i] = totals[i] + gradient


def _has_other_leaves(y: Tensor, leaves: list[Tensor]) -> bool:
    """Whether y depends on anything but these; where not, a backward pass is saved."""
    known = {id(leaf) for leaf in leaves}
    stack, seen = [y.grad_fn], set[Node]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in known:
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False
