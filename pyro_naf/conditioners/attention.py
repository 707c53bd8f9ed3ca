"""A transformer decoder as autoregressive conditioner: masked attention over the dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..support.checks import check_callable, check_integers, check_widths
from ..support.modes import needs_plain_backward, needs_plain_operations, plain_gradients
from .order import Ordered
from .protocol import Sweep

#: Slopes at which the features of a value start, log-uniformly, at places that are normally
#: distributed as the values are: smooth ones and sharp ones.
SLOPES = (0.5, 8.0)

#: Width of the hidden layer in a block, in units of the block's own width.
FEED_FORWARD = 2


class AttentionConditioner(Ordered):
    r"""A sequence of L pre-norm transformer blocks, whose step t has read :math:`x_{<t}` alone.

    The dimensions, in autoregressive order, are a sequence that is shifted by one: step t begins
    with the embedding of the value before it, :math:`h_t = p_t + \tanh(a_t x_{t-1} + b_t) + U c`
    with :math:`x_{-1} = 0`, where position p, slopes a and shifts b are its own. Each block adds
    causal attention with several heads, then a feed-forward network of one hidden layer:

    .. math:: h \leftarrow h + \mathrm{Attention}(\mathrm{LayerNorm}(h)), \qquad
        h \leftarrow h + W_2\, g(W_1\, \mathrm{LayerNorm}(h))

    and :math:`\phi_t = V_t\, \mathrm{LayerNorm}(h_t) + v_t`. Blocks are shared by all steps. The
    last LayerNorm bounds the pseudo-parameters, so that the flow and its inverse grow at most
    linearly however far out. :meth:`sweep` keeps the keys and values of the steps before: D steps
    cost one pass.

    :param input_dim: D >= 1.
    :param hidden_dims: widths of the blocks, L >= 1 of them, all equal to H, which ``num_heads``
        divides.
    :param num_params: P, the number of outputs for each dimension.
    :param num_heads: number of heads of each attention.
    :param context_dim: width C of a context that every step sees.
    :param order: as in :class:`~pyro_naf.conditioners.MADE`.
    :param dropout: probability in [0, 1) with which entries of what a block adds are dropped in
        training mode.
    :param activation: g, an elementwise nonlinearity.
    :raises ValueError: when an argument is out of its range; it is named.
    :raises TypeError: for an ``activation`` that is no function.

    Source: Vaswani et al. 2017 [arXiv:1706.03762]; Fakoor et al. 2020, TraDE [arXiv:2004.02441];
    Patacchiola et al. 2024, Transformer neural autoregressive flows [arXiv:2401.01855].

    Shapes: ``x`` ``(..., D)``, ``context`` ``(..., C)``; batch shapes broadcast; returns
    ``(..., D, P)``.

    >>> attention = AttentionConditioner(3, [16, 16], num_params=2, order="natural")
    >>> attention(torch.randn(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    future: Tensor

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        num_params: int,
        *,
        num_heads: int = 4,
        context_dim: int = 0,
        order: str | Sequence[int] | Tensor = "random",
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        check_callable(activation=(activation, "a function of a tensor, such as torch.tanh"))
        check_integers(num_params=(num_params, 1), num_heads=(num_heads, 1))
        widths = _checked(hidden_dims, num_heads)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        super().__init__(input_dim, context_dim, order)
        self.hidden_dims, self.num_params, width = widths, num_params, widths[0]
        self.num_heads, self.dropout = num_heads, dropout
        self.position = nn.Parameter(torch.empty(input_dim, width))
        self.slope = nn.Parameter(torch.empty(input_dim, width))
        self.shift = nn.Parameter(torch.empty(input_dim, width))
        self.of_context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        self.blocks = nn.ModuleList(_Block(width, num_heads, dropout, activation) for _ in widths)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Parameter(torch.empty(input_dim, num_params, width))
        self.output_bias = nn.Parameter(torch.empty(input_dim, num_params))
        future = torch.ones(input_dim, input_dim, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Hidden layers keep the scale of their inputs; outputs start near zero."""
        width = self.position.shape[1]
        self.position.normal_(std=0.3)
        low, high = SLOPES
        self.slope.uniform_(math.log(low), math.log(high)).exp_()
        self.slope.mul_(torch.randint_like(self.slope, 2) * 2 - 1)
        self.shift.normal_().mul_(self.slope)
        if self.of_context is not None:
            self.of_context.weight.normal_(std=self.context_dim**-0.5)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, _Block):
                module.reset_parameters(len(self.blocks))
        self.head.normal_(std=0.05 * width**-0.5)
        self.output_bias.zero_()

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, in_order: bool = False
    ) -> Tensor:
        """Pseudo-parameters ``(..., D, P)`` of all dimensions at once.

        :param in_order: the dimensions of x and of the result are sorted by their places
            (:meth:`sort`).
        """
        if in_order or self.is_natural:
            return self._in_order(x, context)
        return self._in_order(self.sort(x), context).index_select(-2, self.places)

    def _in_order(self, x: Tensor, context: Tensor | None) -> Tensor:
        context = self._check_context(context)
        if context is not None:
            batch = torch.broadcast_shapes(context.shape[:-1], x.shape[:-1])
            context = context.expand(*batch, -1).reshape(-1, 1, self.context_dim)
            x = x.expand(*batch, -1)
        # No size of the batch is read as a number: a trace or an export is for any.
        before = F.pad(x.reshape(-1, self.input_dim)[:, :-1], (1, 0))
        h = self._embedded(before, slice(None), context)
        for block in self.blocks:
            h = block(h, self.future)
        phi = torch.baddbmm(
            self.output_bias.unsqueeze(-1), self.head, self.norm(h).permute(1, 2, 0)
        )
        return phi.permute(2, 0, 1).reshape(*x.shape[:-1], self.input_dim, self.num_params)

    def _embedded(self, before: Tensor, places: slice, context: Tensor | None) -> Tensor:
        """Return the first h ``(N, T, H)`` of steps whose preceding values are ``(N, T)``."""
        value = before.unsqueeze(-1) * self.slope[places] + self.shift[places]
        h = self.position[places] + torch.tanh(value)
        return h if context is None or self.of_context is None else h + self.of_context(context)

    def sweep(self, batch: int, context: Tensor | None = None) -> Sweep:
        """Evaluate one step at a time, which reads the cached keys and values of those before.

        :param batch: number N of samples.
        :param context: ``(N, C)``, or None where the conditioner takes none.
        :return: a generator that yields ``(N, P)`` for the dimensions in autoregressive order, and
            after each is sent the dimension's value ``(N,)``.
        """
        context = self._check_context(context)
        context = None if context is None else context.unsqueeze(1)
        caches = [_Cache() for _ in self.blocks]
        x = self.output_bias.new_zeros(batch)
        for place in range(self.input_dim):
            h = self._embedded(x.unsqueeze(1), slice(place, place + 1), context)
            for block, cache in zip(self.blocks, caches, strict=True):
                h = block(h, cache=cache)
            h = self.norm(h).squeeze(1)
            x = yield torch.addmm(self.output_bias[place], h, self.head[place].t())

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return (
            f"input_dim={self.input_dim}, hidden_dims={list(self.hidden_dims)}, "
            f"num_params={self.num_params}, num_heads={self.num_heads}, "
            f"context_dim={self.context_dim}, dropout={self.dropout}"
        )


class _Cache:
    """Keys and values ``(N, heads, T, H / heads)`` of the steps until now."""

    def __init__(self) -> None:
        self.known: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All that are known with these."""
        if self.known is not None:
            keys, values = (
                torch.cat(pair, -2) for pair in zip(self.known, (keys, values), strict=True)
            )
        self.known = keys, values
        return self.known


class _Block(nn.Module):
    """Attention and a feed-forward network, each behind a LayerNorm and added to its input."""

    def __init__(
        self, width: int, num_heads: int, dropout: float, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.num_heads, self.activation = num_heads, activation
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.up = nn.Linear(width, FEED_FORWARD * width)
        self.down = nn.Linear(FEED_FORWARD * width, width)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self, num_blocks: int) -> None:
        """Scale the last layers so that all blocks together add about the scale of their input."""
        for linear in (self.queries_keys_values, self.joined, self.up, self.down):
            gain = (2 * num_blocks) ** -0.5 if linear in (self.joined, self.down) else 1.0
            linear.weight.normal_(std=gain * linear.in_features**-0.5)
            linear.bias.zero_()

    def forward(
        self, h: Tensor, future: Tensor | None = None, cache: _Cache | None = None
    ) -> Tensor:
        """h ``(N, T, H)`` of all steps; or of one, which all in the cache precede."""
        heads = self.queries_keys_values(self.norms[0](h)).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            keys, values = cache.append(keys, values)
        found = attention(queries, keys, values, future).transpose(1, 2).flatten(2)
        h = h + self.dropout(self.joined(found))
        h = h + self.dropout(self.down(self.activation(self.up(self.norms[1](h)))))
        return h


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None
) -> Tensor:
    r"""Attention :math:`\mathrm{softmax}(q k^\top / \sqrt d)\, v`, each ``(N, heads, T, d)``.

    :param future: the upper triangle ``(T, T)`` that is not to be read; None reads all.

    >>> q, k, v = torch.randn(3, 2, 1, 4, 8)
    >>> future = torch.ones(4, 4).triu(1).bool()
    >>> bool((attention(q, k, v, future)[:, :, 0] - v[:, :, 0]).abs().max() < 1e-6)
    True
    """
    if future is None or needs_plain_operations(queries):
        return _plain(queries, keys, values, future)
    found: Tensor = _Fused.apply(queries, keys, values, future)
    return found


def _plain(queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None) -> Tensor:
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    if future is not None:
        scores = scores.masked_fill(future, -torch.inf)
    found: Tensor = scores.softmax(-1) @ values
    return found


class _Fused(torch.autograd.Function):
    """torch's fused attention, whose own gradient cannot be differentiated again."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        future: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, future)
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        *inputs, future = ctx.saved_tensors  # type: ignore[attr-defined]
        plain = needs_plain_backward(grad)

        def again(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor]:
            if plain:
                return (_plain(queries, keys, values, future),)
            return (F.scaled_dot_product_attention(queries, keys, values, is_causal=True),)

        return *plain_gradients(again, inputs, [grad]), None


def _checked(hidden_dims: Sequence[int], num_heads: int) -> tuple[int, ...]:
    """Check the widths of the blocks."""
    widths = check_widths(hidden_dims)
    if len(set(widths)) != 1 or widths[0] < 1 or widths[0] % num_heads:
        raise ValueError(
            f"hidden_dims must hold one width for each block, at least one, all equal and a "
            f"positive multiple of num_heads = {num_heads}, got {list(widths)}"
        )
    return widths
