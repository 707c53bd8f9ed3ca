r"""An autoregressive flow as a Pyro transform: a conditioner and a transformer joined.

.. math:: y_t = \tau(c(x_{<t}), x_t)

(Huang et al. 2018, eq. 3.) ``flow(x)`` is one pass, ``flow.inv`` is numerical, one dimension after
another at the cost of a few passes; both are exact and differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ..conditioners import MADE, GraphConditioner, as_conditioner, sweep
from ..conditioners.order import Ordered
from ..conditioners.protocol import Conditioner, check_overrides, is_unchanged
from ..rootfinding import RootNotFoundError, check_roots
from ..support.modes import needs_plain_operations
from ..support.overrides import has_hooks, redefined, refuse
from ..support.precision import widened, without_autocast
from ..transformers import Transformer
from .cache import Evaluation, Memory

#: The methods of a flow's three parts: a subclass that overrides one part must override all three.
_VALUE = frozenset({"__call__", "_call", "in_parts", "_finite_parts", "value_and_log_slope"})
_INVERSE = frozenset({"_inv_call", "_inverse"})
_LOG_DET = frozenset({"log_abs_det_jacobian"})


class Parts(NamedTuple):
    """A pass and what it computes on the way, with the dimensions in the order of :meth:`sort`.

    x, y and the log-slope are ``(..., D)``, the pseudo-parameters phi ``(..., D, P)``. Those depend
    on preceding dimensions; y and its log-slope on the same dimension of x and phi alone.
    """

    x: Tensor
    phi: Tensor
    y: Tensor
    log_slope: Tensor
    #: The conditioner that has the order; None where all is in the order of the dimensions.
    ordered: Ordered | None
    #: From weights w ``(..., D, P)`` the Jacobian of the sums of w phi with respect to x,
    #: ``(..., D, D)``; None where the conditioner has none.
    jacobian: Callable[[Tensor], Tensor] | None
    #: From w ``(N, D, P)`` the products of that Jacobian, transposed, with any v ``(N, D)``.
    products: Callable[[Tensor], Callable[[Tensor], Tensor]] | None
    #: Length of the longest chain of dimensions that depend on one another, the last left out.
    depth: int

    def sort(self, t: Tensor, back: bool = False) -> Tensor:
        """Bring the last axis of a tensor into the order of the parts, or ``back`` from it."""
        return t if self.ordered is None else self.ordered.sort(t, back)


class AutoregressiveFlow(TransformModule):
    r"""The general autoregressive flow :math:`y_t = \tau(c(x_{<t}), x_t)`.

    The Jacobian is triangular, so that
    :math:`\log|\det J| = \sum_t \log \partial\tau/\partial x_t`; it is computed
    together with the value. A guide uses ``[flow]``: sampling is one pass. A density model uses
    ``[flow.inv]``: scoring data is one pass. A NaN in ``x`` gives NaN, as everywhere in torch.

    The last evaluation ``y = flow(x)`` is remembered for these two tensors, while nothing has
    changed: the log-determinant of a fresh sample, and its preimage, cost nothing.

    :param conditioner: :class:`~pyro_naf.conditioners.MADE`, Pyro's
        :class:`~pyro.nn.AutoRegressiveNN`, or any callable with ``input_dim`` and
        ``get_permutation()`` that maps ``(..., D)`` to pseudo-parameters ``(..., D, P)``.
    :param transformer: a :class:`~pyro_naf.transformers.Transformer` with P pseudo-parameters.
    :param context: fixes the context of a conditional conditioner, shape ``(..., C)``.
    :raises ValueError: when the conditioner's P is not the transformer's; when called, for an
        input of another width, dtype or device than the flow's; by the inverse, for a value that
        is not finite.
    :raises ~pyro_naf.rootfinding.RootNotFoundError: by the inverse, when it does not converge.

    Shapes: x and y ``(..., D)``, log-determinant ``(...)``.

    Source: Huang et al. 2018 [arXiv:1804.00779].

    >>> from pyro_naf.conditioners import MADE
    >>> from pyro_naf.transformers import Affine
    >>> flow = AutoregressiveFlow(MADE(3, [16], num_params=2), Affine())
    >>> x = torch.randn(5, 3)
    >>> flow.log_abs_det_jacobian(x, flow(x)).shape
    torch.Size([5])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    sign = +1
    autoregressive = True
    #: Whether a subclass has methods of its own in place of those that make the map.
    has_own_map: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        changed = redefined(cls, AutoregressiveFlow) & (_VALUE | _INVERSE | _LOG_DET)
        for directions in (_VALUE, _INVERSE, _LOG_DET):
            if changed and not changed & directions:
                raise refuse(cls, changed, sorted(directions)[-1])
        cls.has_own_map = cls.has_own_map or bool(changed)

    def __init__(
        self,
        conditioner: Conditioner,
        transformer: Transformer,
        *,
        context: Tensor | None = None,
    ) -> None:
        super().__init__(cache_size=1)
        self.arn = as_conditioner(conditioner)
        self.transformer = transformer
        self.context = context
        self._memory = Memory()
        check_overrides(self.arn)
        _check_num_params(self.arn, transformer)

    @property
    def input_dim(self) -> int:
        """The dimension D."""
        return self.arn.input_dim

    def __call__(self, x: Tensor) -> Tensor:
        """Map x ``(..., D)``; the result remembers that it is the image of x."""
        y = self._memory.image(self, self.context, x)
        return self._call(x) if y is None else y

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._value_and_log_det(x)
        self._memory.remember(self, self.context, Evaluation(x, y, log_det))
        return y

    def _value_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.in_parts(x)
        return parts.sort(parts.y, back=True), parts.log_slope.sum(-1)  # a sum has no order

    def _inv_call(self, y: Tensor) -> Tensor:
        x = self._memory.preimage(self, self.context, y)
        if x is not None:
            return x
        # A compiler leaves the search to Python.
        compiles = torch.compiler.is_compiling()
        inverse = torch.compiler.disable(self._inverse) if compiles else self._inverse
        # A sweep's products have other shapes than a pass's: in 16 bits it would invert another
        # map. So the flow is inverted in the precision of its parameters.
        y = widened(y)
        with without_autocast(y):
            return inverse(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\log|\det \partial y/\partial x|` at ``x`` ``(..., D)``, shape ``(...)``."""
        log_det = self._memory.log_det(self, self.context, x, y)
        # Of x alone: y is not known to be the image of x.
        return self._value_and_log_det(x)[1] if log_det is None else log_det

    def value_and_log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""One pass, past the cache: y and :math:`\log \partial y_t/\partial x_t`, ``(..., D)``."""
        parts = self.in_parts(x)
        return parts.sort(parts.y, back=True), parts.sort(parts.log_slope, back=True)

    def in_parts(self, x: Tensor, *, is_finite: bool = False) -> Parts:
        """One pass, past the cache, with what it computes on the way.

        An infinite x_t is its own image, its log-slope is that at zero, and its successors see a
        zero: a density is zero there, and not NaN.

        :param is_finite: x is taken to be finite, without a look; else NaN may come out.
        """
        self._check(x, "x")
        if is_finite:
            return self._finite_parts(x)
        infinite = x.isinf()
        if x.device.type == "cpu" and not needs_plain_operations(x) and not infinite.any():
            return self._finite_parts(x)
        parts = self._finite_parts(x.masked_fill(infinite, 0.0))
        return parts._replace(y=torch.where(parts.sort(infinite), parts.sort(x), parts.y))

    def _finite_parts(self, x: Tensor) -> Parts:
        context = () if self.context is None else (self.context,)
        arn, unchanged = self.arn, is_unchanged(self.arn)
        if not (isinstance(arn, Ordered) and unchanged) or arn.is_natural:
            phi, ordered = arn(x, *context), None
        else:
            # Sorting x and y is cheaper than sorting the pseudo-parameters.
            x, ordered = arn.sort(x), arn
            phi = arn(x, *context, in_order=True)
        y, log_slope = self.transformer(x, phi)
        jacobian, products, depth = None, None, self.input_dim - 1
        if unchanged and isinstance(arn, MADE) and arn.has_jacobian:
            jacobian = partial(arn.jacobian, x, context=self.context)
        elif unchanged and isinstance(arn, GraphConditioner):
            depth = arn.depth
            if x.dim() == 2 and arn.has_products:
                products = partial(arn.products, x, context=self.context)
        return Parts(x, phi, y, log_slope, ordered, jacobian, products, depth)

    def _inverse(self, y: Tensor) -> Tensor:
        self._check(y, "y")
        looks = not needs_plain_operations(y, autocast=False)
        if looks:
            _check_finite(y, "y")
        context, shape = self.context, y.shape
        if context is not None:
            shape = self.forward_shape(shape)
            context = context.expand(*shape[:-1], -1).reshape(-1, context.shape[-1])
        columns = y.expand(shape).reshape(-1, self.input_dim).unbind(-1)
        steps = sweep(self.arn, columns[0].shape[0], context, like=y)
        x: list[Tensor] = list(columns)
        phi = next(steps)
        order = self.arn.get_permutation().tolist()
        errors = []
        for place, dim in enumerate(order):
            try:
                x[dim], error = self.transformer.preimage(columns[dim], phi)
            except RootNotFoundError as lost:
                raise lost.located(f" in dimension {dim}") from None
            errors.append(error)
            if place < len(order) - 1:
                phi = steps.send(x[dim])
        if looks:
            check_roots(errors, order)
        found = torch.stack(x, -1).view(shape)
        if has_hooks(self.transformer):
            self._check_hooks(found, y)
        return found

    @torch.no_grad()
    def _check_hooks(self, x: Tensor, y: Tensor) -> None:
        """Refuse an inverse that does not follow what hooks do to the transformer's output."""
        off = (self._value_and_log_det(x)[0] - y).abs() / y.abs().clamp(min=1)
        if bool((off > torch.finfo(y.dtype).eps ** 0.5).any()):
            raise NotImplementedError(
                f"{type(self.transformer).__name__} has forward hooks that change its value, which "
                "the inverse cannot follow; put the change into a subclass with its own preimage"
            )

    def clear_cache(self) -> None:
        """Forget the last evaluation, and free its graph."""
        self._memory.forget()

    def _apply(self, *args: object, **kwargs: object) -> AutoregressiveFlow:
        self.clear_cache()  # .to() and its kin replace the parameters' data
        found: AutoregressiveFlow = super()._apply(*args, **kwargs)
        return found

    def _check(self, x: Tensor, name: str) -> None:
        _check_tensor(x, name)
        if x.dim() == 0 or x.shape[-1] != self.input_dim:
            raise ValueError(
                f"{name} must have shape (..., {self.input_dim}), got {tuple(x.shape)}"
            )
        if torch.compiler.is_compiling():  # which cannot follow the hash of a module of Pyro
            return
        parameter = next(self.parameters(), None)
        if parameter is None or (
            x.device == parameter.device and torch.is_autocast_enabled(x.device.type)
        ):
            return
        if self.context is not None:
            self._check_context_shape(x, name)
        for other, other_name in ((x, name), (self.context, "context")):
            if other is None:
                continue
            if other.dtype != parameter.dtype:
                raise ValueError(
                    f"{other_name} must be {parameter.dtype} like the flow's parameters, got "
                    f"{other.dtype}; convert it, or the flow with .to(dtype)"
                )
            if other.device != parameter.device:
                raise ValueError(
                    f"{other_name} must be on {parameter.device} like the flow's parameters, got "
                    f"{other.device}; move it, or the flow with .to(device)"
                )

    def _check_context_shape(self, x: Tensor, name: str) -> None:
        assert self.context is not None
        try:
            torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"context must have a batch shape that broadcasts with {name}'s, got context "
                f"{tuple(self.context.shape)} and {name} {tuple(x.shape)}"
            ) from None

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of ``flow(x)``: x's shape, broadcast with the context's batch shape."""
        if len(shape) == 0 or shape[-1] != self.input_dim:
            raise ValueError(
                f"the base distribution must have shape (..., {self.input_dim}), got {tuple(shape)}"
            )
        if self.context is None:
            return torch.Size(shape)
        found: torch.Size = torch.broadcast_shapes(
            shape[:-1], self.context.shape[:-1]
        ) + torch.Size(shape[-1:])
        return found

    inverse_shape = forward_shape

    def with_cache(self, cache_size: int = 1) -> AutoregressiveFlow:
        """Return the flow itself, whose cache is always on and never stale."""
        return self

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)


class ConditionalAutoregressiveFlow(ConditionalTransformModule):
    r"""An autoregressive flow with a context z, :math:`y_t = \tau(c(x_{<t}, z), x_t)`.

    :param conditioner: :class:`~pyro_naf.conditioners.MADE` with ``context_dim``, or Pyro's
        :class:`~pyro.nn.ConditionalAutoRegressiveNN`.
    :param transformer: as in :class:`AutoregressiveFlow`.
    :raises ValueError: as there, and by :meth:`condition` for a context of the wrong width.

    >>> from pyro_naf.conditioners import MADE
    >>> from pyro_naf.transformers import Affine
    >>> flow = ConditionalAutoregressiveFlow(MADE(3, [16], num_params=2, context_dim=2), Affine())
    >>> flow.condition(torch.randn(5, 2))(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, conditioner: Conditioner, transformer: Transformer) -> None:
        super().__init__()
        self.arn = as_conditioner(conditioner)
        self.transformer = transformer
        check_overrides(self.arn)
        _check_num_params(self.arn, transformer)

    def condition(self, context: Tensor) -> AutoregressiveFlow:
        """Return the flow for this context ``(..., C)``; it shares this one's parameters."""
        _check_tensor(context, "context")
        width = getattr(self.arn, "context_dim", None)
        if width is not None and (context.dim() == 0 or context.shape[-1] != width):
            raise ValueError(f"context must have shape (..., {width}), got {tuple(context.shape)}")
        return AutoregressiveFlow(self.arn, self.transformer, context=context)

    def forward(self, x: Tensor) -> Tensor:
        """Refuse a call without a context.

        :raises TypeError: always, with the remedy.
        """
        raise TypeError(
            f"{type(self).__name__} maps nothing without a context: call "
            "flow.condition(context)(x), with context (..., C)"
        )


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def _check_num_params(conditioner: Conditioner, transformer: Transformer) -> None:
    given = getattr(conditioner, "num_params", None)
    if given is not None and given != transformer.num_params:
        raise ValueError(
            f"conditioner gives {given} pseudo-parameters a dimension, but {transformer} needs "
            f"{transformer.num_params}"
        )


def _check_finite(y: Tensor, name: str) -> None:
    bad = ~torch.isfinite(y).all(-1)
    if bad.any():
        raise ValueError(
            f"{name} must be finite to be inverted, got NaN or infinity in {int(bad.sum())} of "
            f"{bad.numel()} samples"
        )
