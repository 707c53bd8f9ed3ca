"""A small network for each latent, which reads only the latents that the structure allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..support.checks import check_integers
from .activations import is_plain, slope_of
from .groups import grouped
from .order import Ordered
from .protocol import Sweep
from .structure import Structure

#: Largest number of pairs of a latent and one that it reads for which all derivatives are kept.
_MOST_PAIRS = 1 << 14


class GraphConditioner(Ordered):
    r"""A network of one hidden layer for each latent, which reads its ancestors alone.

    .. math:: \phi_v = V_v \tanh(W_v\, x_{\mathrm{ancestors}(v)} + U_v c + b_v) + a_v

    For :math:`z = f(\epsilon)`, which a guide draws by, this loses nothing (see
    :class:`~pyro_naf.conditioners.Structure`), and compositions keep the pattern. With ``inverse``
    it is for :math:`\epsilon = f(z)`, and the network reads the parents at elimination.

    Latents with about equally many inputs are one batched product. A latent of more than
    ``2 * window`` ancestors reads the nearest ``window`` to ``2 * window`` themselves, and the
    others through ``summary_dim`` tanh units that it shares with its relatives: a dense graph of D
    latents has of the order of ``D * window * hidden`` weights, not of :math:`D^2` times P.

    :param structure: of the D latents.
    :param num_params: P, the number of outputs for each latent.
    :param hidden: width of each latent's hidden layer.
    :param context_dim: width C of a context that every output may see.
    :param inverse: read the parents, not the ancestors.
    :param window: ancestors that are read themselves; see above. Parents always are.
    :param summary_dim: width of the summaries.
    :param activation: elementwise nonlinearity, bounded so that pseudo-parameters are.
    :raises ValueError: when a size is below 1 (``context_dim``: 0).

    Shapes: ``x`` ``(..., D)``, ``context`` ``(..., C)``; batch shapes broadcast; returns
    ``(..., D, P)``.

    >>> chain = torch.ones(5, 5).tril(1).triu(-1)
    >>> conditioner = GraphConditioner(Structure.from_adjacency(chain), num_params=2)
    >>> conditioner(torch.randn(7, 5)).shape
    torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        structure: Structure,
        num_params: int,
        hidden: int = 16,
        *,
        context_dim: int = 0,
        inverse: bool = False,
        window: int = 64,
        summary_dim: int = 32,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        check_integers(
            num_params=(num_params, 1),
            hidden=(hidden, 1),
            window=(window, 1),
            summary_dim=(summary_dim, 1),
        )
        super().__init__(structure.dim, context_dim, structure.order)
        self.num_params, self.hidden, self.inverse = num_params, hidden, inverse
        self.window, self.summary_dim, self.activation = window, summary_dim, activation
        order = structure.order
        self._depth = structure.depth[order].tolist()
        summaries = [] if inverse else self._find_summaries(structure.ancestors[order][:, order])
        self._set_up_summaries(summaries)
        inputs = (structure.parents if inverse else structure.ancestors)[order][:, order]
        self._set_up_groups(inputs, summaries)
        self._levels = self._find_levels()

        self.bias = nn.Parameter(torch.empty(structure.dim, hidden, 1))
        self.output_weight = nn.Parameter(torch.empty(structure.dim, num_params, hidden))
        self.output_bias = nn.Parameter(torch.empty(structure.dim, num_params, 1))
        width = (structure.dim, hidden, context_dim)
        self.context_weight = nn.Parameter(torch.empty(width)) if context_dim else None
        self.reset_parameters()

    # ------------------------------------------------------------------------------------ set-up

    @property
    def depth(self) -> int:
        """Length of the longest chain of latents that depend on one another, the last left out."""
        return int(max(self._depth))

    def _find_summaries(self, ancestors: Tensor) -> list[_Summary]:
        """Find the latents, at multiples of the window in depth, whose ancestors are summed up.

        Everything is numbered by places in the autoregressive order.
        """
        found: list[_Summary] = []
        number: dict[int, int] = {}
        depth = torch.tensor(self._depth)
        for v in range(self.input_dim):
            level = self._depth[v] // self.window
            first = (level + 1) * self.window  # the depth from which on it is read
            if self._depth[v] % self.window or not level:
                continue
            if not bool((ancestors[:, v] & (depth >= first)).any()):
                continue
            above = ancestors[v] & (depth >= self._depth[v] - self.window)
            (root,) = (ancestors[v] & (depth == self._depth[v] - self.window)).nonzero()
            number[v] = len(found)
            found.append(_Summary(v, above.nonzero().flatten(), number.get(int(root), -1)))
        return found

    def _set_up_summaries(self, summaries: list[_Summary]) -> None:
        """Group summaries of equal depth into stages; each reads the stage above."""
        self._stages: list[range] = []
        self.summary_weights = nn.ParameterList()
        self.summary_biases = nn.ParameterList()
        for i, summary in enumerate(summaries):
            depth = self._depth[summary.place]
            if not i or depth != self._depth[summaries[i - 1].place]:
                self._stages.append(range(i, i))
            self._stages[-1] = range(self._stages[-1].start, i + 1)
        for k, stage in enumerate(self._stages):
            members = [summaries[i] for i in stage]
            fan_in = self.window + (self.summary_dim if k else 0)
            self._buffer(f"stage_{k}", torch.stack([m.inputs for m in members]) + 1)
            above = torch.tensor([m.above for m in members])
            self._buffer(f"stage_above_{k}", above if k else above[:0])
            shape = (len(members), self.summary_dim, fan_in)
            self.summary_weights.append(torch.empty(shape))
            self.summary_biases.append(torch.empty(len(members), self.summary_dim, 1))

    def _set_up_groups(self, inputs: Tensor, summaries: list[_Summary]) -> None:
        """Latents with about equally many inputs, as indices that are padded with zero.

        Index 0 is a row of zeros, index i + 1 the latent at place i.
        """
        number = {summary.place: i for i, summary in enumerate(summaries)}
        direct, above = [], []
        for v, row in enumerate(inputs):
            (read,) = row.nonzero(as_tuple=True)
            first, summary = 0, -1
            if summaries and self._depth[v] >= 2 * self.window:
                first = (self._depth[v] // self.window - 1) * self.window
                (root,) = [i for i in read.tolist() if self._depth[i] == first]
                summary = number[root]
                read = read[torch.tensor([self._depth[i] >= first for i in read.tolist()])]
            direct.append(read)
            above.append(summary)
        counts = [(len(read), summary >= 0) for read, summary in zip(direct, above, strict=True)]
        members = grouped(counts)
        self.weights = nn.ParameterList()
        self._members = members
        self._padding = []
        for k, group in enumerate(members):
            size = max(1, *(counts[v][0] for v in group))
            index = torch.zeros(len(group), size, dtype=torch.long)
            for i, v in enumerate(group):
                index[i, : counts[v][0]] = direct[v] + 1
            has_summary = counts[group[0]][1]
            self._buffer(f"group_{k}", index)
            self._buffer(f"places_{k}", torch.tensor(group))
            self._buffer(
                f"above_{k}", torch.tensor([above[v] for v in group if has_summary]).long()
            )
            self._padding.append([size - counts[v][0] for v in group])
            fan_in = size + self.summary_dim * has_summary
            self.weights.append(torch.empty(len(group), self.hidden, fan_in))
        arranged = torch.tensor([v for group in members for v in group])
        self._arranged = bool((arranged[1:] > arranged[:-1]).all())
        self._buffer("arranged", arranged.argsort())

    def _find_levels(self) -> list[_Level]:
        """For each depth its first place, its last, and the rows of groups that are there."""
        where = {v: (k, i) for k, group in enumerate(self._members) for i, v in enumerate(group)}
        levels: list[_Level] = []
        start = 0
        while start < self.input_dim:
            end = start
            while end < self.input_dim and self._depth[end] == self._depth[start]:
                end += 1
            parts: dict[int, tuple[list[int], list[int]]] = {}
            for v in range(start, end):
                k, i = where[v]
                rows, positions = parts.setdefault(k, ([], []))
                rows.append(i)
                positions.append(v - start)
            levels.append(_Level(start, end, parts))
            start = end
        return levels

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Hidden units keep the scale of their inputs; outputs start near zero."""
        for weight, padding in zip(self.weights, self._padding, strict=True):
            fan_in = weight.shape[-1] - weight.new_tensor(padding)[:, None, None]
            weight.normal_().mul_(fan_in.clamp(min=1).rsqrt())
        for weight, bias in zip(self.summary_weights, self.summary_biases, strict=True):
            weight.normal_(std=weight.shape[-1] ** -0.5)
            bias.uniform_(-0.5, 0.5)
        if self.context_weight is not None:
            self.context_weight.normal_(std=self.context_dim**-0.5)
        self.bias.uniform_(-0.5, 0.5)
        self.output_weight.normal_(std=0.05 * self.hidden**-0.5)
        self.output_bias.zero_()

    # -------------------------------------------------------------------------------- evaluation

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, in_order: bool = False
    ) -> Tensor:
        """Pseudo-parameters ``(..., D, P)`` of all latents at once.

        :param in_order: the latents of x and of the result are in autoregressive order
            (:meth:`sort`).
        """
        context, batch = self._check_context(context), x.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(context.shape[:-1], batch)
            context = context.expand(*batch, -1).reshape(-1, self.context_dim).t()
        in_order = in_order or self.is_natural
        x = x if in_order else self.sort(x)
        rows = x.expand(*batch, -1).reshape(-1, self.input_dim).t()
        known = torch.cat([rows.new_zeros(1, rows.shape[1]), rows])
        summaries = self._summaries(known)
        hidden = torch.cat([self._hidden(k, known, summaries) for k in range(len(self.weights))])
        if not self._arranged:
            hidden = hidden.index_select(0, self._index("arranged"))
        phi = self._outputs(slice(None), hidden, context)
        phi = phi.permute(2, 0, 1).reshape(*batch, self.input_dim, self.num_params)
        return phi if in_order else phi.index_select(-2, self.places)

    def _outputs(self, places: slice, hidden: Tensor, context: Tensor | None) -> Tensor:
        """``(n, P, N)`` of the latents at these places from their sums of inputs ``(n, H, N)``."""
        hidden = hidden + self.bias[places]
        if context is not None and self.context_weight is not None:
            hidden = hidden + self.context_weight[places] @ context
        out_bias = self.output_bias[places]
        return torch.baddbmm(out_bias, self.output_weight[places], self.activation(hidden))

    def _hidden(
        self, k: int, known: Tensor, summaries: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Weighted inputs ``(n, H, N)`` of a group, or of some of its rows."""
        index, above, weight = self._index(f"group_{k}"), self._index(f"above_{k}"), self.weights[k]
        if rows is not None:
            index, weight = index[rows], weight[rows]
            above = above[rows] if len(above) else above
        inputs = _gathered(known, index)
        if len(above):
            inputs = torch.cat([inputs, summaries.index_select(0, above)], 1)
        return torch.bmm(weight, inputs)

    def _summaries(self, known: Tensor) -> Tensor:
        """All summaries ``(S, R, N)``, from the latents ``(D + 1, N)`` behind a row of zeros."""
        found = known.new_zeros(0, self.summary_dim, known.shape[1])
        for k in range(len(self._stages)):
            found = self._add_stage(k, known, found)
        return found

    def _add_stage(self, k: int, known: Tensor, found: Tensor) -> Tensor:
        inputs = _gathered(known, self._index(f"stage_{k}"))
        above = self._index(f"stage_above_{k}")
        if len(above):
            inputs = torch.cat([inputs, found.index_select(0, above)], 1)
        new = torch.baddbmm(self.summary_biases[k], self.summary_weights[k], inputs)
        return torch.cat([found, self.activation(new)])

    @property
    def has_products(self) -> bool:
        """Whether there is :meth:`products`: few pairs, and no latent reads summaries of others."""
        sizes = (self._index(f"group_{k}").numel() for k in range(len(self.weights)))
        return not self._stages and sum(sizes) <= _MOST_PAIRS and is_plain(self.activation)

    @torch.no_grad()
    def products(
        self, x: Tensor, by_phi: Tensor, context: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        r"""Products :math:`\sum_{tp} v_t w_{tp} \, \partial\phi_{tp}/\partial x_s` with any v.

        The sums over p are made once; a product costs as much as there are pairs of a latent and
        one that it reads. For :attr:`has_products`.

        :param x: points ``(N, D)``, the latents in autoregressive order.
        :param by_phi: w, shape ``(N, D, P)``, in that order.
        :param context: ``(N, C)``, or None where the conditioner takes none.
        :return: a function of v ``(N, D)`` to ``(N, D)``, in order.
        """
        columns = None if (context := self._check_context(context)) is None else context.t()
        rows = x.t()
        known = torch.cat([rows.new_zeros(1, rows.shape[1]), rows])
        entries, targets, sources = [], [], []
        for k, weight in enumerate(self.weights):
            index, places = self._index(f"group_{k}"), self._index(f"places_{k}")
            hidden = self._hidden(k, known, known[:0]) + self.bias[places]
            if columns is not None and self.context_weight is not None:
                hidden = hidden + self.context_weight[places] @ columns
            given = by_phi.permute(1, 2, 0).index_select(0, places)
            sums = torch.bmm(self.output_weight[places].mT, given)
            by_inputs = torch.bmm(weight.mT, sums * slope_of(self.activation, hidden))
            entries.append(by_inputs.flatten(0, 1))
            targets.append(index.flatten())
            sources.append(places.repeat_interleave(index.shape[1]))
        matrix, target, source = torch.cat(entries), torch.cat(targets), torch.cat(sources)

        def product(v: Tensor) -> Tensor:
            parts = matrix * v.t().index_select(0, source)
            found: Tensor = torch.zeros_like(known).index_add(0, target, parts)[1:].t()
            return found

        return product

    def sweep(self, batch: int, context: Tensor | None = None) -> Sweep:
        """Evaluate each unit once, all latents of equal depth in the tree together.

        Arguments and result: see :meth:`MADE.sweep <pyro_naf.conditioners.MADE.sweep>`.
        """
        columns = self._check_context(context)
        columns = None if columns is None else columns.t()
        known = self.bias.new_zeros(1, batch)
        summaries = self.bias.new_zeros(0, self.summary_dim, batch)
        for level in self._levels:
            for k in range(len(self._stages)):
                if self._depth[level.start] == (k + 1) * self.window:
                    summaries = self._add_stage(k, known, summaries)
            phi = self._of_level(level, known, summaries, columns)
            values = []
            for i in range(level.end - level.start):
                x = yield phi[i].t()
                values.append(x)
            known = torch.cat([known, torch.stack(values)])

    def _of_level(
        self, level: _Level, known: Tensor, summaries: Tensor, context: Tensor | None
    ) -> Tensor:
        parts, positions = [], []
        for k, (rows, places) in level.parts.items():
            index = torch.tensor(rows, device=known.device)
            parts.append(self._hidden(k, known, summaries, index))
            positions += places
        hidden = torch.cat(parts)
        if positions != sorted(positions):
            hidden = hidden[torch.tensor(positions, device=known.device).argsort()]
        return self._outputs(slice(level.start, level.end), hidden, context)

    def _index(self, name: str) -> Tensor:
        found: Tensor = getattr(self, name)
        return found

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return (
            f"input_dim={self.input_dim}, num_params={self.num_params}, hidden={self.hidden}, "
            f"context_dim={self.context_dim}, inverse={self.inverse}"
        )


class _Summary(NamedTuple):
    """The ancestors that the latent at ``place`` reads itself, and the summary above it."""

    place: int
    inputs: Tensor
    above: int


class _Level(NamedTuple):
    """Places ``start`` to ``end`` of one depth, and group to its rows and positions there."""

    start: int
    end: int
    parts: dict[int, tuple[list[int], list[int]]]


def _gathered(known: Tensor, index: Tensor) -> Tensor:
    """Rows of ``known`` ``(., N)`` for each entry of the index ``(n, A)``: ``(n, A, N)``."""
    found: Tensor = known.index_select(0, index.flatten()).unflatten(0, index.shape)
    return found
