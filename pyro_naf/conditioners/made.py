"""MADE, the masked autoregressive network, evaluated in autoregressive order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..support.checks import check_callable, check_integers, check_widths
from ..support.modes import needs_plain_operations
from .activations import is_plain, slope_of
from .masked_linear import masked_linear, staircase
from .order import Ordered, cumulative, hidden_degrees
from .protocol import Sweep

#: Applies the masked linear layer of a given number: to all units, or to the units of one degree.
#: Features are rows and samples columns, ``(H, N)``.
Linear = Callable[[int, Tensor], Tensor]

#: Number of products with a vector that a Jacobian may cost: about as many as an iteration takes.
_FEW = 3


class MADE(Ordered):
    r"""A masked network whose outputs for dimension t see only the preceding dimensions.

    Units carry degrees; a unit sees the units of lower or equal degree in the layer below, an
    output only units of lower degree than the place of its dimension in the order. Everything is
    sorted by degree and place: inputs, hidden units and outputs. So the masks are staircases, half
    of whose products are skipped, and :meth:`sweep` evaluates the network one degree at a time, at
    the cost of one pass. The pseudo-parameters lie in memory as ``(D, P, N)``: a transformer's sum
    over them adds rows.

    :param input_dim: D >= 1.
    :param hidden_dims: widths of the hidden layers, any number >= 0 of any width >= 1.
    :param num_params: P, the number of outputs for each dimension.
    :param context_dim: width C of a context that every output may see.
    :param order: the autoregressive order: "random" (from torch's global generator, as Pyro's),
        "natural", "reversed", or a permutation whose entry t is the dimension that comes t-th.
    :param residual: hidden layers become residual blocks of two layers each, behind a first
        linear layer; all widths must agree (Nash & Durkan 2019).
    :param head_dim: factorises the last layer: an r-dimensional head for every dimension, then an
        ``(r, P)`` map shared by all dimensions. With D = 500, P = 48 and 512 hidden units r = 8
        makes 2.3 M parameters of 12.6 M.
    :param activation: elementwise nonlinearity. A bounded one, as the default, bounds the
        pseudo-parameters, so that the flow and its inverse grow at most linearly however far out;
        with ELU (the NAF paper's) or ReLU preimages of far points explode along the order.
    :raises ValueError: when an argument is out of its range; it is named.
    :raises TypeError: for an ``activation`` that is no function.

    Source: Germain et al. 2015 [arXiv:1502.03509].

    Shapes: ``x`` ``(..., D)``, ``context`` ``(..., C)``; batch shapes broadcast; returns
    ``(..., D, P)``.

    >>> made = MADE(3, [16], num_params=2, order="natural")
    >>> made(torch.randn(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        num_params: int,
        *,
        context_dim: int = 0,
        order: str | Sequence[int] | Tensor = "random",
        residual: bool = False,
        head_dim: int | None = None,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        check_callable(activation=(activation, "a function of a tensor, such as torch.tanh"))
        check_integers(
            num_params=(num_params, 1), head_dim=(1 if head_dim is None else head_dim, 1)
        )
        hidden_dims = _checked(hidden_dims, residual)
        super().__init__(input_dim, context_dim, order)
        self.hidden_dims, self.num_params = hidden_dims, num_params
        self.residual, self.head_dim, self.activation = residual, head_dim, activation

        widths = list(hidden_dims)
        if residual:
            widths = widths[:1] + [h for width in hidden_dims for h in (width, width)]
        self._degrees = [hidden_degrees(h, input_dim, context_dim > 0) for h in widths]
        fan_ins = [context_dim + input_dim, *widths]
        outputs = input_dim * (num_params if head_dim is None else head_dim)
        self.weights = nn.ParameterList(
            torch.empty(out, fan_in)
            for out, fan_in in zip([*widths, outputs], fan_ins, strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(h) for h in widths)
        self.head = None if head_dim is None else nn.Parameter(torch.empty(num_params, head_dim))
        self.output_bias = nn.Parameter(torch.zeros(input_dim, num_params))
        self._staircases = []
        for i, mask in enumerate(self._masks()):
            self.register_buffer(f"mask_{i}", mask, persistent=False)
            self._staircases.append(staircase(mask.sum(1)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Hidden layers keep the scale of their inputs; outputs start near zero."""
        for i, weight in enumerate(self.weights):
            fan_in = self._mask(i).sum(1, keepdim=True).clamp(min=1)
            gain = 0.05 if i == len(self.weights) - 1 and self.head is None else 1.0
            weight.normal_().mul_(gain * fan_in.rsqrt())
        for bias in self.biases:
            bias.uniform_(-0.5, 0.5)
        if self.head is not None:
            self.head.normal_(std=0.05 / self.head.shape[1] ** 0.5)
        self.output_bias.zero_()

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Zeros and ones ``(outputs, inputs)`` that each layer's weights are multiplied by.

        Columns of the first are the context's, then the dimensions in autoregressive order; rows of
        the last are a dimension's P outputs (or its head's), then the next one's.

        >>> MADE(3, [2], num_params=1, order="natural").masks[-1]
        tensor([[0., 0.],
                [1., 0.],
                [1., 1.]])
        """
        return tuple(self._mask(i) for i in range(len(self.weights)))

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, in_order: bool = False
    ) -> Tensor:
        """Pseudo-parameters ``(..., D, P)`` of all dimensions at once.

        :param in_order: the dimensions of x and of the result are sorted by their places
            (:meth:`sort`): it is cheaper to sort x than the result.
        """
        if in_order or self.is_natural:
            return self._in_order(x, context)
        return self._in_order(self.sort(x), context).index_select(-2, self.places)

    def _in_order(self, x: Tensor, context: Tensor | None) -> Tensor:
        def linear(i: int, z: Tensor) -> Tensor:
            bias = self.biases[i] if i < last else last_bias
            return masked_linear(z, weights[i], self._mask(i), bias, self._staircases[i])

        context, weights, last = self._check_context(context), self._weights(), len(self.biases)
        last_bias = self.output_bias.view(-1) if self.head is None else None
        if context is not None:
            batch = torch.broadcast_shapes(context.shape[:-1], x.shape[:-1])
            x = torch.cat([context.expand(*batch, -1), x.expand(*batch, -1)], -1)
        # No size is read as a number: a trace or an export is for batches of any size.
        columns = x.reshape(-1, x.shape[-1]).t()
        out = linear(last, self._features(columns, linear)).unflatten(0, (self.input_dim, -1))
        if self.head is not None:
            head = self.head.expand(self.input_dim, -1, -1)
            out = torch.baddbmm(self.output_bias.unsqueeze(-1), head, out)
        found: Tensor = out.permute(2, 0, 1).reshape(*x.shape[:-1], self.input_dim, self.num_params)
        return found

    @property
    def has_jacobian(self) -> bool:
        """Whether there is :meth:`jacobian`, for the price of a few products with a vector.

        Layers between hidden ones make it dear. An activation must be known to compute anew what
        it computed before.
        """
        *inner, outputs = (weight.numel() for weight in self.weights)
        price = outputs + self.input_dim * sum(inner)
        return is_plain(self.activation) and price <= _FEW * (outputs + sum(inner))

    def jacobian(self, x: Tensor, by_phi: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Jacobian :math:`\sum_p w_{tp} \, \partial\phi_{tp}/\partial x_s`, without gradient.

        The sum over p comes first. For :attr:`has_jacobian`.

        :param x: points ``(..., D)``, the dimensions in autoregressive order.
        :param by_phi: w, shape ``(..., D, P)``, in that order.
        :param context: ``(..., C)``, or None where the conditioner takes none.
        :return: entry t, s, both in order, ``(..., D, D)``; zero for s >= t.

        >>> made = MADE(3, [4], num_params=2, order="natural")
        >>> made.jacobian(torch.randn(5, 3), torch.ones(5, 3, 2)).shape
        torch.Size([5, 3, 3])
        """
        dim, context = self.input_dim, self._check_context(context)
        columns = x.detach().reshape(-1, dim).t()
        rows = by_phi.reshape(columns.shape[1], dim, -1)
        if self.head is not None:
            rows = rows @ self.head.detach()
        if context is not None:
            context = context.detach().expand(*x.shape[:-1], -1).reshape(len(rows), -1)
            columns = torch.cat([context.t(), columns])
        weights = [w.detach() * self._mask(i) for i, w in enumerate(self._weights())]
        outputs: list[Tensor] = []  # of the linear layers

        def linear(i: int, z: Tensor) -> Tensor:
            outputs.append(weights[i] @ z + self.biases[i].detach().unsqueeze(-1))
            return outputs[-1]

        self._features(columns, linear)
        last = weights[-1].unflatten(0, (dim, -1)).mT
        by_features = torch.bmm(last, rows.permute(1, 2, 0)).transpose(0, 1).contiguous()
        by_inputs = self._pulled(by_features, weights, outputs)[self.context_dim :]
        found: Tensor = by_inputs.permute(2, 1, 0).reshape(*x.shape, dim)
        return found

    def _pulled(self, g: Tensor, weights: list[Tensor], outputs: list[Tensor]) -> Tensor:
        """Carry gradients ``(H, D, N)`` with respect to the features back to the inputs."""

        def slope(z: Tensor) -> Tensor:
            return slope_of(self.activation, z).unsqueeze(1)

        def back(i: int, g: Tensor) -> Tensor:
            product: Tensor = weights[i].t() @ g.flatten(1)
            return product.view(-1, *g.shape[1:])

        if not outputs:
            return g
        if not self.residual:
            for i in range(len(outputs) - 1, -1, -1):
                g = back(i, g * slope(outputs[i]))
            return g
        h = [outputs[0]]
        for block in outputs[2::2]:
            h.append(h[-1] + block)
        g = g * slope(h.pop())
        for i in range(len(outputs) - 2, 0, -2):
            inner = back(i + 1, g) * slope(outputs[i])
            g = g + back(i, inner) * slope(h.pop())
        return back(0, g)

    def _weights(self) -> list[Tensor]:
        """Read each weight once: a parametrisation computes them anew at every reading."""
        for hook in self.weights._forward_pre_hooks.values():  # torch.nn.utils.weight_norm
            hook(self.weights, ())
        return list(self.weights)

    def sweep(self, batch: int, context: Tensor | None = None) -> Sweep:
        """Evaluate the network one dimension at a time, each unit once.

        At step t only the hidden units of degree t and the outputs of the t-th dimension are
        computed: the whole sweep costs one pass (less: it skips what the masks would zero).

        :param batch: number N of samples.
        :param context: ``(N, C)``, or None where the conditioner takes none.
        :return: a generator that yields ``(N, P)`` for the dimensions in autoregressive order, and
            after each is sent the dimension's value ``(N,)``.
        """
        context = self._check_context(context)
        # The masks beside the order of rows and columns: somebody may have zeroed more.
        weights = [weight * self._mask(i) for i, weight in enumerate(self._weights())]
        # ends[i][d]: how many units of hidden layer i have a degree of at most d.
        ends = [cumulative(degrees, self.input_dim) for degrees in self._degrees]
        seen = [_Rows(weight.shape[1], batch, weight) for weight in weights]

        def linear(i: int, z: Tensor) -> Tensor:
            rows = slice(ends[i][place - 1] if place else 0, ends[i][place])
            z = seen[i].append(z)
            return torch.addmm(self.biases[i][rows, None], weights[i][rows, : len(z)], z)

        outputs = weights[-1].unflatten(0, (self.input_dim, -1))
        new = self.output_bias.new_empty(0, batch) if context is None else context.t()
        for place in range(self.input_dim):
            features = seen[-1].append(self._features(new, linear))
            out = outputs[place, :, : len(features)] @ features
            out = (out if self.head is None else self.head @ out) + self.output_bias[place, :, None]
            x = yield out.t()
            new = x.unsqueeze(0)

    def _features(self, z: Tensor, linear: Linear) -> Tensor:
        """Evaluate the hidden layers, in a whole pass or for one degree of a sweep."""
        if not self.hidden_dims:
            return z
        h = linear(0, z)
        if not self.residual:
            for i in range(1, len(self.biases)):
                h = linear(i, self.activation(h))
            return self.activation(h)
        for i in range(1, len(self.biases), 2):
            h = h + linear(i + 1, self.activation(linear(i, self.activation(h))))
        return self.activation(h)

    def _mask(self, i: int) -> Tensor:
        found: Tensor = getattr(self, f"mask_{i}")
        return found

    def _masks(self) -> Iterator[Tensor]:
        """One for each layer; every row is ones, then zeros."""
        place = torch.arange(1, self.input_dim + 1)
        degrees = [torch.cat([place.new_zeros(self.context_dim), place]), *self._degrees]
        for below, above in pairwise(degrees):
            yield (above.unsqueeze(-1) >= below).to(self.output_bias.dtype)
        per_dimension = self.weights[-1].shape[0] // self.input_dim
        places = place.repeat_interleave(per_dimension)
        yield (places.unsqueeze(-1) > degrees[-1]).to(self.output_bias.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        if f"{prefix}permutation" in state_dict and f"{prefix}places" not in state_dict:
            self._sort_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _sort_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Version 0.1.0 kept the dimensions of weights and biases in their own order."""
        order = state_dict[f"{prefix}permutation"]
        columns = torch.cat([order.new_tensor(range(self.context_dim)), self.context_dim + order])
        first, last = f"{prefix}weights.0", f"{prefix}weights.{len(self.weights) - 1}"
        state_dict[f"{prefix}places"] = torch.argsort(order)
        state_dict[first] = state_dict[first][:, columns]
        state_dict[last] = state_dict[last].unflatten(0, (len(order), -1))[order].flatten(0, 1)
        state_dict[f"{prefix}output_bias"] = state_dict[f"{prefix}output_bias"][order]

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return (
            f"input_dim={self.input_dim}, hidden_dims={list(self.hidden_dims)}, "
            f"num_params={self.num_params}, context_dim={self.context_dim}, "
            f"residual={self.residual}, head_dim={self.head_dim}"
        )


class _Rows:
    """Inputs of a layer as they become known, ``(n, N)``: its first n."""

    def __init__(self, most: int, batch: int, like: Tensor) -> None:
        # Without gradients they are written side by side; autograd needs every stage as it was.
        side_by_side = not (torch.is_grad_enabled() or needs_plain_operations(like))
        self.space = like.new_empty(most, batch) if side_by_side else None
        self.known = like.new_empty(0, batch)

    def append(self, new: Tensor) -> Tensor:
        """All that are known with these."""
        if self.space is None:
            self.known = torch.cat([self.known, new])
        else:
            n = len(self.known)
            self.space[n : n + len(new)] = new
            self.known = self.space[: n + len(new)]
        return self.known


def _checked(hidden_dims: Sequence[int], residual: bool) -> tuple[int, ...]:
    widths = check_widths(hidden_dims)
    if any(width < 1 for width in widths):
        raise ValueError(f"hidden_dims must be at least 1 each, got {list(widths)}")
    if residual and len(set(widths)) != 1:
        raise ValueError(
            f"hidden_dims must hold one and the same width with residual=True, got {list(widths)}"
        )
    return widths
