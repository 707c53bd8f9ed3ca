"""Adam's update of all parameters in one call, with the state that Pyro's optimisers keep.

Pyro makes an optimiser of torch for every parameter. What these do one after another costs a few
operations of Python each; here one operation of torch does them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

#: Options of Adam that one call does not serve, or that are there for other devices.
_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable", "fused", "centered_variance")


class _Entry(NamedTuple):
    """A parameter and its optimiser, with what the optimiser keeps."""

    name: str
    param: Tensor
    optimiser: Optimizer
    #: As torch keeps them: numbers, tensors and flags by name.
    settings: dict[str, Any]
    states: dict[Tensor, dict[str, Any]]
    state: dict[str, Any]


class FusedOptimiser:
    """A Pyro optimiser's step, given the gradients.

    Adam, AdamW and ClippedAdam of parameters on a CPU take one call for all that have the same
    settings. Others are called one after another, as Pyro does it. Learning rates are read anew in
    every step, so that schedulers act.

    :param optim: the optimiser, which has taken a step of these parameters.
    :param params: leaves, by name.
    """

    def __init__(self, optim: PyroOptim, params: Mapping[str, Tensor]) -> None:
        self.optim, self.params = optim, dict(params)
        self._objects: Mapping[Tensor, PyroOptim] | None = None
        self._entries: list[_Entry] | None = None

    def step(self, grads: Mapping[str, Tensor]) -> None:
        """Move the parameters that have a gradient here."""
        if not self._holds():
            self._gather(grads)
        if self._entries is None:
            trained = [self.params[name] for name in grads]
            for name, grad in grads.items():
                self.params[name].grad = grad
            self.optim(trained)
            zero_grads(trained)
            return
        for members in self._together():
            _adam(members, [grads[member.name].contiguous() for member in members])

    def _holds(self) -> bool:
        """Whether the optimisers and their states are those that were gathered."""
        if self.optim.optim_objs is not self._objects or self._entries is None:
            return False
        return all(
            e.optimiser.state is e.states and e.optimiser.param_groups[0] is e.settings
            for e in self._entries
        )

    def _gather(self, grads: Mapping[str, Tensor]) -> None:
        self._objects = self.optim.optim_objs
        entries = [self._entry(name) for name in grads]
        self._entries = None if None in entries else [e for e in entries if e is not None]

    def _entry(self, name: str) -> _Entry | None:
        """Return the parameter, if one call can serve it, else None."""
        p = self.params[name]
        optimiser = self.optim.optim_objs.get(p)
        optimiser = getattr(optimiser, "optimizer", optimiser)  # a scheduler holds its optimiser
        if type(optimiser) not in (Adam, AdamW, ClippedAdam) or self.optim.grad_clip[p] is not None:
            return None
        (settings,) = optimiser.param_groups
        state = optimiser.state.get(p, {})
        if any(settings.get(option) for option in _OPTIONS) or "exp_avg" not in state:
            return None
        if optimiser._optimizer_step_pre_hooks or optimiser._optimizer_step_post_hooks:
            return None
        if not p.is_contiguous() or p.device.type != "cpu" or state["exp_avg"].dtype != p.dtype:
            return None
        return _Entry(name, p, optimiser, settings, optimiser.state, state)

    def _together(self) -> list[list[_Entry]]:
        """Return the parameters by what they must have in common to be moved in one call."""
        assert self._entries is not None
        parts: dict[tuple[object, ...], list[_Entry]] = {}
        for e in self._entries:
            s, count = e.settings, e.state["step"]
            key: tuple[object, ...] = (
                type(e.optimiser),
                s["lr"],
                s["betas"],
                s["eps"],
                s["weight_decay"],
            )
            if not isinstance(count, Tensor):  # of ClippedAdam
                key = (*key, count, s["clip_norm"], s["lrd"])
            parts.setdefault(key, []).append(e)
        return list(parts.values())


@torch.no_grad()
def _adam(members: list[_Entry], grads: list[Tensor]) -> None:
    """One step of parameters that share their settings."""
    first = members[0]
    settings, (beta1, beta2) = first.settings, map(float, first.settings["betas"])
    lr, eps = settings["lr"], settings["eps"]
    if isinstance(first.optimiser, ClippedAdam):
        lr = lr * settings["lrd"]
        for member in members:
            member.settings["lr"] = lr
            member.state["step"] += 1
        count = first.state["step"]
        # Its eps is added to a root of the mean square that is not corrected for its bias.
        eps = eps / math.sqrt(1 - beta2**count)
        steps = [torch.tensor(float(count))] * len(members)
        grads = list(torch._foreach_clamp_min(grads, -settings["clip_norm"]))
        torch._foreach_clamp_max_(grads, settings["clip_norm"])
    else:
        steps = [member.state["step"] for member in members]
        torch._foreach_add_(steps, 1)
    decoupled = settings.get("decoupled_weight_decay", isinstance(first.optimiser, AdamW))
    update = torch._fused_adamw_ if decoupled else torch._fused_adam_
    update(
        [member.param for member in members],
        grads,
        [member.state["exp_avg"] for member in members],
        [member.state["exp_avg_sq"] for member in members],
        [],
        steps,
        lr=float(lr),
        beta1=beta1,
        beta2=beta2,
        weight_decay=settings["weight_decay"],
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
