"""Every use of a private name of Pyro's: enumeration, subsampled plates, sites of a trace.

Pyro computes the log-density of a model for one draw. These functions make that computation run
under :func:`torch.vmap` and :func:`torch.fx.experimental.proxy_tensor.make_fx` as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.infer.util import Dice
from pyro.nn.module import PyroModule
from pyro.ops import packed
from pyro.ops.contract import _partition_terms, contract_tensor_tree
from pyro.ops.einsum import torch_log
from pyro.ops.rings import LogRing
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger, _bound_partial
from pyro.poutine.runtime import _PYRO_STACK, Message
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._python_dispatch import _disable_current_modes

from ..support.autograd import Context
from ..support.calls import Model


def is_subsample(site: Message) -> bool:
    """Whether a site of a trace is a plate's choice of indices."""
    return isinstance(site.get("fn"), _Subsample)


def without_start(model: Model) -> Model:
    """Return the model without the initialisation that an autoguide has put around it."""
    return _inside(model, InitMessenger)


def without_block(model: Model) -> Model:
    """Find the model inside ``poutine.block``, which hides discrete latents from autoguides."""
    return _inside(without_start(model), BlockMessenger)


def _inside(model: Model, kind: type[Messenger]) -> Model:
    """Find the model inside a handler of this kind, or return the model itself."""
    if isinstance(model, _bound_partial):
        handler, inner = model.func.args[:2]
        if isinstance(handler, kind):
            return inner
    return model


def store_decides(module: PyroModule) -> bool:
    """Whether Pyro's param store, and not the module, holds the parameters of this call."""
    context = module._pyro_context
    return bool(context.active) and not pyro.settings.get("module_local_params")


def full_name(module: PyroModule, name: str) -> str:
    """Name of a module's parameter or part in Pyro's param store."""
    return module._pyro_get_fullname(name)


def unconstrained_values(guide: AutoContinuous, u: Tensor, nesting: int) -> dict[str, Tensor]:
    """Unconstrained values of the sites from an autoguide's vectors u, flat: ``(N, size)``.

    :param u: ``(N, D)``, or ``(N, *rows, D)`` with the rows of a guide's context.
    :param nesting: number of dimensions that the plates around the guide's sites use.
    """
    between = [1] * (nesting + 2 - u.dim())
    aligned = u.reshape(len(u), *between, *u.shape[1:])
    return {site["name"]: free.reshape(len(u), -1) for site, free in guide._unpack_latent(aligned)}


def enumerated(model: Model, max_plate_nesting: int) -> Model:
    """Return the model with its finite discrete latents enumerated in parallel, as NUTS runs it.

    :param max_plate_nesting: number of dimensions, from the right, that plates may use.
    """
    return _EnumMessenger(-1 - max_plate_nesting)(config_enumerate(model))


def log_prob_sum(trace: Trace, max_plate_nesting: int | None) -> Tensor:
    """Log-density of a trace; with ``max_plate_nesting`` its enumerated sites are summed out."""
    # Validation looks for NaN in every site, which is control flow that depends on data.
    with without_checks(), _differentiable_logarithm():
        if max_plate_nesting is None:
            return trace.log_prob_sum()
        return TraceEinsumEvaluator(trace, True, max_plate_nesting).log_prob(trace)


def log_probs_apart(
    trace: Trace, max_plate_nesting: int, names: Collection[str]
) -> dict[str, Tensor] | None:
    """Log-density of every element of observed sites, enumerated sites summed out for each.

    :param names: the observed sites.
    :return: site to a tensor of its batch shape, or one that broadcasts to that; None where an
        enumerated site joins elements, or two of the sites, by the structure of the model.
    """
    with without_checks(), _differentiable_logarithm():
        evaluator = TraceEinsumEvaluator(trace, True, max_plate_nesting)
        plates, dims = evaluator.ordering, evaluator._enum_dims  # noqa: SLF001
        site_of = {trace.nodes[name]["packed"]["log_prob"]: name for name in plates}
        found: dict[str, Tensor] = {}
        for terms, _ in _partition_terms(LogRing(), list(site_of), dims):
            together = {site_of[term]: term for term in terms}
            seen = [name for name in together if name in names]
            if not seen:
                continue
            if len(seen) > 1 or any(plates[seen[0]] - plates[name] for name in together):
                return None
            alone = dict(together)
            data = together[seen[0]]
            alone[seen[0]] = torch.zeros_like(data)
            alone[seen[0]]._pyro_dims = data._pyro_dims  # noqa: SLF001
            values = []
            for part in (together, alone):
                tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
                for name, term in part.items():
                    tree.setdefault(plates[name], []).append(term)
                ((value,),) = contract_tensor_tree(tree, dims).values()
                values.append(packed.unpack(value, trace.symbol_to_dim))
            found[seen[0]] = values[0] - values[1]
        return found


@contextmanager
def plates_with(indices: Callable[[str, int], Tensor | None]) -> Iterator[None]:
    """Let ``indices(name, size)`` choose the elements of every plate inside.

    Where it returns None a plate chooses as usual. Chosen indices may be of another number than
    the plate asks for: all of them, where the whole data is wanted.
    """
    original = SubsampleMessenger._subsample

    def subsample(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Tensor | None = None,
        *args: object,
    ) -> tuple[int, int, Tensor | None]:
        chosen = None
        if size is not None and subsample is None:
            chosen = indices(name, size)
        if chosen is not None:
            subsample, subsample_size = chosen, len(chosen)
        return original(name, size, subsample_size, subsample, *args)

    SubsampleMessenger._subsample = staticmethod(subsample)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)


@contextmanager
def loops_over_numbers() -> Iterator[None]:
    """Let sequential plates inside run over numbers, while a graph is captured too.

    Their indices are tensors, and no graph may depend on a number read out of one of its tensors.
    """
    original = IndepMessenger.__iter__

    def iterate(plate: IndepMessenger) -> Iterator[int | float]:
        with _disable_current_modes():
            plate._indices = torch.as_tensor(plate.indices).tolist()  # noqa: SLF001
        return original(plate)

    IndepMessenger.__iter__ = iterate
    try:
        yield
    finally:
        IndepMessenger.__iter__ = original


@contextmanager
def without_checks() -> Iterator[None]:
    """Inside, no loss is searched for NaN, and no value is compared with a support.

    That is control flow that depends on data. ``pyro.validation_enabled(False)`` does not reach
    distributions that ``expand`` made before.
    """
    family: type[Any] = Distribution  # mypy takes no assignment to a method
    is_nan, validate = pyro.util.torch_isnan, family._validate_sample
    pyro.util.torch_isnan = lambda x: False
    family._validate_sample = lambda self, value: None
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        pyro.util.torch_isnan, family._validate_sample = is_nan, validate


@contextmanager
def without_masks_of_dice() -> Iterator[None]:
    """Inside, losses that enumerate leave out nothing whose probability under the guide is zero.

    Pyro looks for such terms among the values, which is control flow that depends on data. Where
    all of the guide's draws are reparametrised and none is enumerated, each has probability one.
    """
    original = Dice.compute_expectation

    def compute_expectation(self: Dice, costs: Mapping[object, Sequence[Tensor]]) -> Tensor | int:
        if self.log_probs or self.log_denom:
            return original(self, costs)
        return sum(cost.sum() for terms in costs.values() for cost in terms)

    Dice.compute_expectation = compute_expectation
    try:
        yield
    finally:
        Dice.compute_expectation = original


def handlers_are_active() -> bool:
    """Whether the caller stands inside effect handlers, which see or change every statement."""
    return bool(_PYRO_STACK)


class _EnumMessenger(EnumMessenger):
    """Pyro's, without the use of ``value.data``, which tensors under vmap do not have."""

    def _pyro_post_sample(self, msg: Message) -> None:
        fn, value = msg["fn"], msg["value"]
        if value is None or not hasattr(fn, "event_dim"):
            return
        shape = value.shape[: value.dim() - fn.event_dim]
        ids = msg["infer"].setdefault("_dim_to_id", {})
        ids.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in ids.items() if len(shape) >= -dim and shape[dim] > 1
        }


class _Log(torch.autograd.Function):
    """Logarithm whose gradient at 0 is bounded, as Pyro's, in the form that vmap takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=torch.finfo(x.dtype).eps)


@contextmanager
def _differentiable_logarithm() -> Iterator[None]:
    original = torch_log.safe_log
    torch_log.safe_log = _Log.apply
    try:
        yield
    finally:
        torch_log.safe_log = original
