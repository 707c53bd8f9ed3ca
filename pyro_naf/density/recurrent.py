"""A recurrent network as autoregressive conditioner (TAN's, Oliva et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..conditioners import Sweep
from ..support.checks import check_integers


class RecurrentConditioner(nn.Module):
    r"""A GRU that reads one dimension after another: :math:`s_t = \mathrm{GRU}(x_{t-1}, s_{t-1})`.

    The pseudo-parameters of dimension t are a linear map of its state and of t itself. Weights are
    shared by all dimensions, which suits sequences and smooth orders.

    :param input_dim: D >= 1, in natural order or, with ``reverse``, from the last to the first.
    :param hidden_dim: width H of the state.
    :param num_params: number P of pseudo-parameters of each dimension.
    :param context_dim: width C of a context that makes the first state.

    Shapes: ``x`` ``(..., D)``, ``context`` ``(..., C)``; returns ``(..., D, P)``.

    Source: Oliva et al. 2018 [arXiv:1801.09819], section 3.2 and 4.

    >>> RecurrentConditioner(3, 16, num_params=2)(torch.randn(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    permutation: Tensor

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_params: int,
        *,
        context_dim: int = 0,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        check_integers(
            input_dim=(input_dim, 1),
            hidden_dim=(hidden_dim, 1),
            num_params=(num_params, 1),
            context_dim=(context_dim, 0),
        )
        self.input_dim, self.num_params, self.context_dim = input_dim, num_params, context_dim
        order = torch.arange(input_dim)
        self.register_buffer("permutation", order.flip(0) if reverse else order)
        self.gru = nn.GRU(1, hidden_dim, batch_first=True)
        self.start = nn.Parameter(torch.zeros(hidden_dim))
        self.of_context = nn.Linear(context_dim, hidden_dim, bias=False) if context_dim else None
        self.weight = nn.Parameter(0.05 * torch.randn(num_params, hidden_dim) / hidden_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(input_dim, num_params))

    def get_permutation(self) -> Tensor:
        """Return the order: entry t is the dimension that comes t-th, shape ``(D,)``."""
        return self.permutation

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Pseudo-parameters ``(..., D, P)`` of all dimensions at once."""
        batch = x.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        x = x.expand(*batch, -1).reshape(-1, self.input_dim)
        first = self._first_state(len(x), context, batch)
        states = first.unsqueeze(1)
        if self.input_dim > 1:
            seen = x.index_select(-1, self.permutation[:-1]).unsqueeze(-1)
            states = torch.cat([states, self.gru(seen, first.unsqueeze(0))[0]], 1)
        phi = states @ self.weight.T + self.bias
        # The order is its own inverse.
        return phi.index_select(-2, self.permutation).view(*batch, self.input_dim, -1)

    def sweep(self, batch: int, context: Tensor | None = None) -> Sweep:
        """One step of the network a dimension; as :meth:`pyro_naf.conditioners.MADE.sweep`."""
        state = self._first_state(batch, context, torch.Size([batch]))
        for place in range(self.input_dim):
            x = yield state @ self.weight.T + self.bias[place]
            if place < self.input_dim - 1:
                seen = x.view(batch, 1, 1)
                state = self.gru(seen, state.unsqueeze(0))[0].squeeze(1)

    def _first_state(self, rows: int, context: Tensor | None, batch: torch.Size) -> Tensor:
        width = 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            raise ValueError(
                f"context must have shape (..., {self.context_dim}), got "
                f"{None if context is None else tuple(context.shape)}"
            )
        state = self.start.expand(rows, -1)
        if self.of_context is None or context is None:
            return state.contiguous()
        return state + self.of_context(context.expand(*batch, -1).reshape(rows, -1))
