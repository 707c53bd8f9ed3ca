r"""Mixtures of Gaussians as densities of numbers given classes.

A mixture of numbers x and classes c, independent given the Gaussian that a row is of, gives

.. math:: p(x \mid c) = p(x, c) / p(c),

a mixture whose weights depend on the classes. Beside a softmax of the classes it stands in one
stack with flows, which have the classes for a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import holes
from .closed_form import Part
from .flow import NormalizingFlow
from .gaussian_mixture import GaussianMixture
from .settings import Stop


class GivenClasses(nn.Module):
    """The density of D numbers given M classes, by a mixture of both.

    It has the interface of a :class:`~pyro_naf.density.flow.NormalizingFlow`.

    :param joint: of rows ``(..., D + M)``, a mixture, or one of normal scores.
    :param sizes: number of values of each class; the context ``(..., C)`` has zeros and ones.
    :param lacking: numbers that rows lack, as the flow's ``holes``.

    >>> from pyro_naf.density.architectures import build
    >>> law = build("gmm-3", 2, 5, classes=[2, 3])
    >>> context = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0]])
    >>> law.log_prob(law.rsample(4, context)[:, 0], context).shape
    torch.Size([4])
    """

    sampling = False
    no_inverse: str | None = None

    def __init__(
        self, joint: NormalizingFlow, sizes: Sequence[int], lacking: dict[int, int]
    ) -> None:
        super().__init__()
        self.joint, self.sizes, self.holes = joint, list(sizes), lacking
        self.dim = self.base.dim

    @property
    def base(self) -> GaussianMixture:
        """The mixture."""
        assert isinstance(self.joint.base, GaussianMixture)
        return self.joint.base

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`."""
        return self.log_prob(x, context)

    def start(
        self,
        x: Tensor,
        context: Tensor | None = None,
        weight: Tensor | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Fit the mixture to rows ``(N, D)`` and their classes."""
        self.joint.start(self._beside(x, context), None, weight, stop)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of x ``(..., D)`` given classes."""
        rows = self._beside(x, context)
        codes = rows[..., self.dim :].reshape(-1, len(self.sizes))
        of_classes = self.base.class_log_prob(codes).view(rows.shape[:-1])
        return self.joint.log_prob(rows) - of_classes

    def _beside(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Rows ``(..., D + M)`` with the places of the classes, and NaN in what rows lack."""
        assert context is not None
        here = holes.present(x, context, self.holes)
        codes = [part.argmax(-1).to(x) for part in context.split(self.sizes, -1)]
        stacked = torch.stack(codes, -1).expand(*here.shape[:-1], -1)
        return torch.cat([torch.where(here, x, torch.nan), stacked], -1)

    def closed_form(self) -> list[Part] | None:
        """Return None: a conditional density has no marginals of some classes."""
        return None

    def rsample(self, n: int, context: Tensor | None = None) -> Tensor:
        """n draws ``(n, ..., D)``, with zeros in what rows lack."""
        assert context is not None
        unknown = context.new_full((n, *context.shape[:-1], self.dim), torch.nan)
        rows = self._beside(unknown, context).double().flatten(0, -2)
        parts: Any = self.joint.closed_form()
        drawn = parts[0].drawn(rows)[:, : self.dim].to(unknown).view(unknown.shape)
        return torch.where(holes.present(drawn, context, self.holes), drawn, 0.0)
