"""The Gaussian of some rows: its covariance, shrunk by cross-validation, and a whitening map."""

from __future__ import annotations

import torch
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from ..support.checks import check_integers
from ..support.precision import without_autocast
from . import expectation, incomplete
from .linear import Linear

#: Shares of the diagonal that a covariance can be shrunk by.
SHRINKAGES = (
    0.0, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85,
    1.0,
)  # fmt: skip

#: Part of a variance that is added to the variance: exact dependence leaves the covariance
#: singular.
RIDGE = 1e-7

#: Smallest variance of a standardised column.
SMALLEST = 1e-12

#: Folds of the cross-validation that chooses the shrinkage. Four fifths of rows that are hardly
#: more than the columns need far more of it than all rows. Where cells are missing there are fewer
#: folds: each is an expectation and maximisation of its own.
FOLDS, FOLDS_WITH_GAPS = 20, 5

#: Rows for each column beyond which a covariance is not shrunk.
MANY_ROWS = 100

#: Ridge on the slopes of a regression on a context, in units of one row.
SLOPE_RIDGE = 1.0


def shrunk_moments(x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Estimate the mean ``(D,)`` of rows, and the covariance ``(D, D)``, shrunk to its diagonal.

    :math:`(1 - a) S + a\,\mathrm{diag}\,S`, with the share a that gives rows which are left out the
    highest Gaussian likelihood; 0 where there are a hundred rows for each column.

    :param x: rows ``(N, D)``, N >= 1, in double precision; NaN where a cell is missing, where the
        covariance is the likeliest by expectation and maximisation.
    :param weight: of the rows, ``(N,)``; 1 by default.

    >>> x = torch.randn(40, 20).double()
    >>> _, shrunk = shrunk_moments(x)
    >>> bool(torch.linalg.cond(shrunk) < torch.linalg.cond(x.T.cov()))
    True
    """
    weight = torch.ones_like(x[:, 0]) if weight is None else weight.to(x)
    if not weight.all():
        x, weight = x[weight > 0], weight[weight > 0]
    mean, covariance = _moments(x, weight)
    if len(x) >= MANY_ROWS * x.shape[1] > 0:
        return mean, _shrunk(covariance, 0.0)
    different, place = x.unique(dim=0, return_inverse=True)  # copies are left out together
    folds = min(FOLDS_WITH_GAPS if x.isnan().any() else FOLDS, len(different))
    if folds < 2:
        return mean, _shrunk(covariance, 1.0)
    fold = place % folds
    totals = torch.zeros(len(SHRINKAGES), dtype=torch.double)
    for k in range(folds):
        kept = fold != k
        centre, part = _moments(x[kept], weight[kept])
        totals += (weight[~kept] @ _log_densities(x[~kept] - centre, part)).cpu()
    return mean, _shrunk(covariance, SHRINKAGES[int(totals.argmax())])


def _moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if x.isnan().any():
        return expectation.moments(x, weight)
    total = weight.sum().clamp(min=torch.finfo(x.dtype).tiny)
    mean = weight @ x / total
    centred = x - mean
    return mean, (weight.unsqueeze(1) * centred).T @ centred / total


def _shrunk(covariance: Tensor, share: float) -> Tensor:
    variances = covariance.diagonal().clamp(min=SMALLEST)
    return (1 - share) * covariance + torch.diag((share + RIDGE) * variances)


def _log_densities(centred: Tensor, covariance: Tensor) -> Tensor:
    """Return the log-densities ``(N, S)`` of rows, up to a constant, with each of the shrinkages.

    All shrunk correlations have the eigenvectors of the one that is not shrunk.
    """
    if centred.isnan().any():
        zero = torch.zeros_like(centred[:1])
        shrunk = torch.stack([_shrunk(covariance, share) for share in SHRINKAGES])
        laws = [incomplete.Gaussians(zero[:, 0], zero, own.unsqueeze(0)) for own in shrunk]
        return torch.cat([incomplete.log_terms(law, centred) for law in laws], 1)
    scale = covariance.diagonal().clamp(min=SMALLEST).sqrt()
    values, vectors = torch.linalg.eigh(covariance / scale / scale.unsqueeze(1))
    share = torch.tensor(SHRINKAGES).to(values).unsqueeze(1)
    spectrum = (1 - share) * values.clamp(min=0) + share + RIDGE
    squares = (centred / scale @ vectors).square()
    return -0.5 * (squares @ (1 / spectrum).T + spectrum.log().sum(1)) - scale.log().sum()


def precision_factor(covariance: Tensor) -> Tensor:
    r"""Return the lower triangular W ``(..., D, D)`` with :math:`W \Sigma W^\top = I`."""
    lower = torch.linalg.cholesky(covariance)
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)


class Whitening(Linear):
    r"""The map :math:`z = W (x - m)` that makes the Gaussian of some rows a standard normal.

    W is lower triangular with a positive diagonal, :math:`W \Sigma W^\top = I` for the shrunk
    covariance of the rows; neither it nor the mean m is trained. It starts as the identity.

    :param input_dim: D >= 1.

    >>> x = torch.randn(500, 2) @ torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> whitening = Whitening(2)
    >>> whitening.start(x)
    >>> bool((whitening(x).T.cov() - torch.eye(2)).abs().max() < 0.02)
    True
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        check_integers(input_dim=(input_dim, 1))
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("factor", torch.eye(input_dim))

    @torch.no_grad()
    def start(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Take mean and covariance from rows ``(N, D)`` with weights ``(N,)``."""
        mean, covariance = shrunk_moments(x.double(), weight)
        self.mean.copy_(mean)
        self.factor.copy_(precision_factor(covariance))

    @property
    def gaussians(self) -> incomplete.Gaussians:
        """The Gaussian that the map makes a standard normal, in double precision."""
        factor, mean = self.factor.detach().double(), self.mean.detach().double()
        eye = torch.eye(len(mean)).to(mean)
        lower = torch.linalg.solve_triangular(factor, eye, upper=False)
        return incomplete.Gaussians(mean.new_zeros(1), mean[None], (lower @ lower.T)[None])

    @property
    def lower(self) -> Tensor:
        """The matrix W ``(D, D)``."""
        return self.factor

    @property
    def centre(self) -> Tensor:
        """What is mapped to zero, ``(D,)``."""
        return self.mean

    @property
    def log_slopes(self) -> Tensor:
        r""":math:`\log W_{tt}`, ``(D,)``."""
        return self.factor.diagonal().log()

    def _call(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return (x.to(self.factor.dtype) - self.mean) @ self.factor.T

    def _inverse(self, z: Tensor) -> Tensor:
        solved = torch.linalg.solve_triangular(self.factor, z.unsqueeze(-1), upper=False)
        return solved.squeeze(-1) + self.mean

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\sum_t \log W_{tt}`, of shape ``(...)``."""
        return self.factor.diagonal().log().sum().expand(x.shape[:-1])


class ConditionalWhitening(ConditionalTransformModule):
    r"""The map :math:`z = W (x - m - B c)` for rows x with a context c: a linear regression first.

    :param input_dim: D >= 1.
    :param context_dim: C >= 1.

    >>> c = torch.randn(500, 1)
    >>> whitening = ConditionalWhitening(2, 1)
    >>> whitening.start(3 * c + torch.randn(500, 2), c)
    >>> whitening.condition(torch.zeros(1))(torch.zeros(4, 2)).shape
    torch.Size([4, 2])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    slopes: Tensor

    def __init__(self, input_dim: int, context_dim: int) -> None:
        super().__init__()
        check_integers(context_dim=(context_dim, 1))
        self.whitening = Whitening(input_dim)
        self.register_buffer("slopes", torch.zeros(input_dim, context_dim))

    @torch.no_grad()
    def start(self, x: Tensor, context: Tensor, weight: Tensor | None = None) -> None:
        """Take the regression and the covariance of its residuals from rows and contexts."""
        x, c = x.double(), context.double()
        each = torch.ones_like(x[:, 0]) if weight is None else weight.to(x)
        gaps = x.isnan()
        if gaps.any():
            seen = [(~column).nonzero().squeeze(1) for column in gaps.unbind(1)]
            found = [_slopes(x[i, t : t + 1], c[i], each[i]) for t, i in enumerate(seen)]
            slopes = torch.cat(found)
        else:
            slopes = _slopes(x, c, each)
        self.slopes.copy_(slopes)
        self.whitening.start(x - c @ slopes.T, weight=weight)

    def condition(self, context: Tensor) -> _Shifted:
        """Return the map for this context ``(..., C)``."""
        return _Shifted(self.whitening, context @ self.slopes.T)


def _slopes(x: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """Fit the slopes ``(D, C)`` of a regression of x ``(N, D)`` on c ``(N, C)``, with a ridge."""
    total = weight.sum().clamp(min=torch.finfo(x.dtype).tiny)
    centred = c - weight @ c / total
    weighted = weight.unsqueeze(1) * centred
    gram = weighted.T @ centred
    gram.diagonal().add_(SLOPE_RIDGE)
    return torch.linalg.solve(gram, weighted.T @ (x - weight @ x / total)).T


class _Shifted(Linear):
    """A whitening after a shift ``(..., D)``."""

    def __init__(self, whitening: Whitening, shift: Tensor) -> None:
        super().__init__()
        self.whitening, self.shift = whitening, shift

    @property
    def lower(self) -> Tensor:
        """The matrix W ``(D, D)``."""
        return self.whitening.lower

    @property
    def centre(self) -> Tensor:
        """What is mapped to zero, ``(..., D)``."""
        return self.whitening.centre + self.shift

    @property
    def log_slopes(self) -> Tensor:
        r""":math:`\log W_{tt}`, ``(D,)``."""
        return self.whitening.log_slopes

    def _call(self, x: Tensor) -> Tensor:
        return self.whitening._call(x - self.shift)

    def _inverse(self, z: Tensor) -> Tensor:
        return self.whitening._inverse(z) + self.shift

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.whitening.log_abs_det_jacobian(y, y)
