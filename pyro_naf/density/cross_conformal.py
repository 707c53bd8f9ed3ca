r"""p-values of rows under a cross-validated density, by what each fold's density was not fitted to.

The density returned is a mixture of those of all folds, and knows every row of the fit; its
log-density of new rows is another than that of the rows left out, each by its own fold. A new row
is therefore compared with the rows of each fold under that fold's density :math:`p_k`,

.. math:: p(x) = \frac{1 + \sum_k \#\{i \in k: \log p_k(x_i) \le \log p_k(x)\}}{1 + N}.

Source: Vovk 2015, Cross-conformal predictors [arXiv:1208.0806].
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .stacked import Stacked
from .table_density import TableDensity


def of_fold(density: TableDensity, parts: list[tuple[int, int]], k: int) -> TableDensity:
    """Return the density that a fold was left out of, its candidates weighted as in all."""
    stacked = density.flow
    weights = dict.fromkeys((i for i, _ in parts), 0.0)
    for (i, _), weight in zip(parts, stacked.log_weights.exp().tolist(), strict=True):
        weights[i] += weight
    mine = [at for at, (_, fold) in enumerate(parts) if fold == k]
    own = torch.tensor([weights[parts[at][0]] for at in mine], dtype=torch.double)
    made = copy.copy(density)
    made._modules = dict(density._modules)
    flow = Stacked(stacked.input_dim, [stacked.parts[at] for at in mine], own)
    made.flow = flow.to(stacked.log_weights.device, stacked.log_weights.dtype)
    return made


@torch.no_grad()
def p_values(density: TableDensity, rows: Sequence[Tensor]) -> np.ndarray:
    """Return p-values ``(N,)`` of rows, with contexts if any; the fit was cross-validated."""
    folds, held_out = density.folds, density.held_out
    assert folds is not None and held_out is not None
    below = np.ones(len(rows[0]))
    for k in folds.rows.unique().tolist():
        known = np.sort(held_out[folds.rows == k].cpu().numpy())
        values = of_fold(density, folds.parts, k).log_prob(*rows).double().cpu().numpy()
        below = below + np.searchsorted(known, values, side="right")
    return below / (1 + len(held_out))
