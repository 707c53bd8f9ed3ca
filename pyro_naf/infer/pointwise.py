r"""What a model says at draws of its latents: log-likelihood of each observation, and more.

The model is run for one draw, and :func:`torch.vmap` makes the batch
(:class:`~pyro_naf.infer.joint.Joint`). So any model that ``refine`` takes will do.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..guides.flat_priors import FlatPriors
from ..guides.pyro_internals import log_prob_sum, log_probs_apart
from ..guides.sites import masked_out, sample_sites
from ..support.calls import Args, Kwargs
from ..support.seeding import kept
from .joint import Joint
from .lanes import REFUSALS, Values, vmapped, vmapped_with_help

#: Relative difference between the log-likelihood of all data and the sum over observations up to
#: which observations are independent given the latents.
_INDEPENDENT = 1e-3

#: Number of draws at which the independence of observations is checked.
_LOOKED_AT = 4


def is_deterministic(site: Message) -> bool:
    """Whether a site was made by ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def observed_sites(trace: Trace) -> dict[str, Message]:
    """Sites of data, by name: observed, neither ``pyro.deterministic`` nor ``pyro.factor``."""
    return {
        name: site
        for name, site in sample_sites(trace)
        if site["is_observed"] and not is_deterministic(site) and not _is_factor(site)
    }


def example(joint: Joint) -> Trace:
    """Trace of a run at the start of a joint density, discrete latents drawn and not enumerated."""
    start = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
    with kept(), torch.no_grad():
        return joint.trace(start, lambda _: joint.model)


def observed_data(joint: Joint) -> dict[str, Tensor]:
    """Return the data of the model, by site."""
    return {n: torch.as_tensor(s["value"]) for n, s in observed_sites(example(joint)).items()}


def deterministic(joint: Joint, values: Values) -> dict[str, Tensor]:
    """Values ``(N, ...)`` of ``pyro.deterministic`` sites at draws of the latents.

    Those that depend on a discrete latent, which is summed out, have no value and are left out.
    """
    shapes = {
        name: torch.as_tensor(site["value"]).shape
        for name, site in sample_sites(example(joint))
        if is_deterministic(site)
    }
    if not shapes:
        return {}

    def function(z: Values) -> dict[str, Tensor]:
        nodes = joint.trace(z).nodes
        found = {name: torch.as_tensor(nodes[name]["value"]) for name in shapes}
        return {name: value for name, value in found.items() if value.shape == shapes[name]}

    return joint.over_draws(function, values)


def log_likelihood(joint: Joint, values: Values) -> dict[str, Tensor]:
    r"""Log-likelihood :math:`\log p(y_i \mid z)` of each observation at draws of the latents.

    An observation is an element of the batch shape of an observed site; where that is one event of
    independent numbers, as of ``Normal(loc, 1).to_event(1)`` outside of plates, it is each number.
    An observation that a mask leaves out has zero. ``poutine.scale`` does not act on it, save
    where discrete latents are summed out. Discrete
    latents are summed out, for each observation on its own, as in a mixture whose labels are local.

    :param values: latent site to ``(N, *site shape)``.
    :return: observed site to ``(N, *shape of the observations)``.
    :raises ValueError: for a model without observed sites, and when discrete latents that are
        summed out join observations to one another, as in a hidden Markov model.
    """
    sites = observed_sites(example(joint))
    if not sites:
        raise ValueError(
            "the model has no observed sites, so that there is no log-likelihood of an "
            "observation; give the data to pyro.sample(..., obs=...), not to pyro.factor"
        )
    if joint.discrete:
        shapes = {name: site["fn"].log_prob(site["value"]).shape for name, site in sites.items()}
        return _summed_out(joint, values, shapes)

    def function(z: Values) -> dict[str, Tensor]:
        nodes = joint.trace(z).nodes
        return {name: _of_each(nodes[name]) for name in sites}

    return joint.over_draws(function, values)


def _of_each(site: Message) -> Tensor:
    """Log-likelihood of each observation of a site."""
    fn, value = site["fn"], site["value"]
    if isinstance(fn, torch.distributions.Independent) and fn.batch_shape.numel() == 1:
        return torch.where(masked_out(site).reshape(()), 0.0, fn.base_dist.log_prob(value))
    return torch.where(masked_out(site), 0.0, fn.log_prob(value))


class _Only(Messenger):
    """Handler that lets chosen elements of observed sites count, and no others."""

    def __init__(self, chosen: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.chosen = chosen

    def _pyro_sample(self, msg: Message) -> None:
        """Pyro calls this at every sample statement."""
        if msg["name"] in self.chosen:
            mask = self.chosen[msg["name"]]
            msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask


class Simulated(Messenger):
    """Handler by which data is drawn and not given; deterministic sites and factors stay."""

    def _pyro_sample(self, msg: Message) -> None:
        """Pyro calls this at every sample statement."""
        if msg["is_observed"] and not is_deterministic(msg) and not _is_factor(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def _summed_out(
    joint: Joint, values: Values, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Log-likelihoods of models with discrete latents."""
    some = {name: value[:_LOOKED_AT] for name, value in values.items()}
    whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    together = _of_chosen(joint, some, {name: mask[None] for name, mask in whole.items()})[:, 0]
    for way in (_by_structure, _one_by_one):
        looked_at = way(joint, some, shapes)
        if looked_at is None:
            continue
        apart = sum(value.reshape(len(value), -1).sum(1) for value in looked_at.values())
        if torch.allclose(together, torch.as_tensor(apart), rtol=_INDEPENDENT, atol=_INDEPENDENT):
            found = way(joint, values, shapes)
            assert found is not None
            return found
    raise ValueError(
        f"observations of {sorted(shapes)} depend on one another through the discrete latents "
        f"{joint.discrete}, which are summed out, so that none has a log-likelihood of its own"
    )


def _by_structure(
    joint: Joint, values: Values, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor] | None:
    """Log-likelihoods by one run, where the plates tell that each is a sum of its own."""
    assert joint.nesting is not None
    nesting, joined = joint.nesting, False

    def function(z: Values) -> dict[str, Tensor]:
        nonlocal joined
        found = log_probs_apart(joint.trace(z), nesting, shapes)
        joined = found is None or any(
            found[name].numel() != shape.numel() for name, shape in shapes.items()
        )
        if found is None or joined:
            return {"joined": torch.zeros(())}
        return {name: found[name].reshape(shape) for name, shape in shapes.items()}

    found = joint.over_draws(function, values)
    return None if joined else found


def _one_by_one(
    joint: Joint, values: Values, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Log-likelihoods by one run for each observation, the others hidden by masks."""
    total = sum(shape.numel() for shape in shapes.values())
    at_once = max(1, joint.chunk // len(next(iter(values.values()))))
    columns = []
    for first in range(0, total, at_once):
        places = torch.arange(first, min(first + at_once, total))
        chosen = torch.zeros(len(places), total, dtype=torch.bool)
        chosen[torch.arange(len(places)), places] = True
        parts = chosen.split([shape.numel() for shape in shapes.values()], 1)
        masks = {
            name: part.reshape(len(places), *shape)
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }
        columns.append(_of_chosen(joint, values, masks))
    parts = torch.cat(columns, 1).split([shape.numel() for shape in shapes.values()], 1)
    return {
        name: part.reshape(len(part), *shape)
        for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }


def _of_chosen(joint: Joint, values: Values, chosen: Mapping[str, Tensor]) -> Tensor:
    """Log-likelihood ``(N, M)`` at N draws of the observations in each of M masks, together.

    :param chosen: observed site to its masks ``(M, *shape)``.
    """

    def function(z: Values) -> dict[str, Tensor]:
        only = _Only({name: z[f"_only {name}"] for name in chosen})
        return {"sum": log_prob_sum(joint.trace(z, only), joint.nesting)}

    none = {name: torch.zeros_like(mask[:1]) for name, mask in chosen.items()}
    count = len(next(iter(values.values())))

    def density(masks: Mapping[str, Tensor]) -> Tensor:
        many = len(next(iter(masks.values())))
        lanes = {name: value.repeat_interleave(many, 0) for name, value in values.items()}
        for name, mask in masks.items():
            lanes[f"_only {name}"] = mask.repeat(count, *[1] * (mask.dim() - 1))
        return joint.over_draws(function, lanes)["sum"].reshape(count, many)

    return density(chosen) - density(none)


def predictive(joint: Joint, values: Values, args: Args, kwargs: Kwargs) -> dict[str, Tensor]:
    """Draws of everything but the latents, from one run of the model at each draw of these.

    :param values: latent site to ``(N, *site shape)``.
    :param args: the model's arguments, as are ``kwargs``; observed sites are drawn, and not taken
        from them.
    :return: site to ``(N, ...)``; deterministic sites are among them.
    :raises ValueError: when the model with these arguments has a latent of another shape.
    """
    model = Simulated()(joint.model)
    with joint.in_full(), torch.no_grad(), poutine.block(), FlatPriors():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    sites = dict(sample_sites(trace))
    for name, value in values.items():
        if name in sites and sites[name]["value"].shape != value.shape[1:]:
            raise ValueError(
                f"with these arguments the latent {name!r} has the shape "
                f"{tuple(sites[name]['value'].shape)}, its draws have {tuple(value.shape[1:])}: "
                "draws say nothing of new groups; predict for the groups of the fit, or condition "
                "a model of one new group by hand"
            )
    values = {name: value.to(joint.start.device) for name, value in values.items()}
    shown = [name for name, s in sites.items() if name not in values and not _is_factor(s)]
    if not shown:
        return {}

    def one(z: Values) -> dict[str, Tensor]:
        with pyro.validation_enabled(False), poutine.block(), joint.in_full():
            conditioned = poutine.condition(model, data=dict(z))
            nodes = poutine.trace(conditioned).get_trace(*args, **kwargs).nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in shown}

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch, of what vmap does slowly
        return _at_all(one, values)


def _is_factor(site: Message) -> bool:
    return isinstance(site["fn"], dist.Unit)


def _at_all(function: Callable[[Values], dict[str, Tensor]], values: Values) -> dict[str, Tensor]:
    """Return a function of one draw, with random numbers of its own, at all of them."""
    for batched in (vmapped, vmapped_with_help):
        with contextlib.suppress(NotImplementedError, *REFUSALS):
            return batched(function)(values)
    count = len(next(iter(values.values())))
    found = [function({n: v[i] for n, v in values.items()}) for i in range(count)]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}
