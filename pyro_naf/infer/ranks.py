"""Draws of whatever a fit is or returns, and where true values lie among them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..support.calls import Args, Kwargs, Model
from ..support.labels import entry_labels, scalar_parameters
from .posterior import Posterior, Results


def draws_of(
    fit: Callable[..., object], model: Model, args: Args, kwargs: Kwargs, count: int
) -> dict[str, Tensor]:
    """Draws ``(count, ...)`` that count equally, of whatever a fit is or returns."""
    if _is_guide(fit, model, args, kwargs):
        return Posterior(model, fit, *args, **kwargs).draws(count)
    found: Any = fit(model, *args, **kwargs)
    if hasattr(found, "get_samples"):  # Pyro's MCMC
        found = found.get_samples()
    if isinstance(found, Mapping):
        return {name: torch.as_tensor(value) for name, value in found.items()}
    if isinstance(found, Results):
        sample = found.even_draws()
        places = torch.randint(len(next(iter(sample.values()))), (count,))
        return {name: value[places] for name, value in sample.items()}
    if not callable(found):
        raise TypeError(
            "fit must return what refine or mcmc_correct returns, Pyro's MCMC, a fitted guide, or "
            f"draws as a dict of site to (L, ...), got {type(found).__name__}"
        )
    return Posterior(model, found, *args, **kwargs).draws(count)


def _is_guide(fit: Callable[..., object], model: Model, args: Args, kwargs: Kwargs) -> bool:
    """Tell whether a fit takes the model's arguments alone, as a guide does."""
    if hasattr(fit, "prototype_trace"):
        return True
    signature = inspect.signature(fit.forward if isinstance(fit, nn.Module) else fit)
    return not _takes(signature, model, *args, **kwargs) and _takes(signature, *args, **kwargs)


def _takes(signature: inspect.Signature, *args: object, **kwargs: object) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def ranks_of(
    truth: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    quantities: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None,
) -> tuple[tuple[str, ...], Tensor]:
    """Labels ``(K,)`` and ranks ``(K,)`` of the true values."""
    missing = truth.keys() - draws.keys()
    if missing:
        raise KeyError(f"fit must return draws of {sorted(truth)}, {sorted(missing)} are missing")
    latents = {name: _shaped(name, draws[name], value.shape) for name, value in truth.items()}
    if quantities is not None:
        truth = quantities(dict(truth))
        rows = range(len(next(iter(latents.values()))))
        each = [quantities({name: v[i] for name, v in latents.items()}) for i in rows]
        latents = {n: torch.stack([torch.as_tensor(one[n]) for one in each]) for n in truth}
    names, ranks = [], []
    columns = scalar_parameters(latents)
    for name, value in truth.items():
        flat = torch.as_tensor(value).reshape(-1).tolist()
        for label, true in zip(entry_labels(name, torch.as_tensor(value).shape), flat, strict=True):
            column = columns[label]
            below, ties = int((column < true).sum()), int((column == true).sum())
            place = below + float(torch.rand(())) * (ties + 1)
            names.append(label)
            ranks.append(place / (len(column) + 1))
    return tuple(names), torch.tensor(ranks, dtype=torch.double)


def _shaped(name: str, draws: Tensor, shape: torch.Size) -> Tensor:
    """Draws ``(L, *shape)``; Pyro's Predictive puts axes of length one between."""
    ones = draws.dim() > 0 and draws[:1].numel() == shape.numel()
    if not ones or [n for n in draws.shape[1:] if n > 1] != [n for n in shape if n > 1]:
        raise TypeError(
            f"fit must return draws of {name!r} with shape {('L', *shape)}, got "
            f"{tuple(draws.shape)}"
        )
    return draws.reshape(-1, *shape)
