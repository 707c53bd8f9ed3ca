"""Expectation and maximisation: the likeliest Gaussians of rows with missing cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import student
from .incomplete import Gaussians, Patterns
from .settings import Stop

#: Largest number of steps of expectation and maximisation, and the gain in nats a row below which
#: they end: for one Gaussian, and for several.
MAX_STEPS = 200
GAINS = (1e-5, 1e-4)

#: Part of a variance that is added to the variance.
RIDGE = 1e-7

#: Number of rows that the prior of a mean, the mean of all rows, is worth: where parts are far
#: apart for their widths, a whole row would move a mean by these.
CENTRE_ROWS = 0.01

#: Number of rows that the prior of a class's probabilities, the shares among all rows, is worth.
CLASS_ROWS = 1.0


def moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and covariance ``(D, D)`` of the likeliest Gaussian of rows with gaps."""
    seen = (~x.isnan()).to(x) * weight.unsqueeze(1)
    count = seen.sum(0).clamp(min=torch.finfo(x.dtype).tiny)
    mean = (seen * x.nan_to_num(nan=0.0)).sum(0) / count
    variance = (seen * (x - mean).nan_to_num(nan=0.0).square()).sum(0) / count
    spread = torch.diag(variance.clamp(min=1e-12))
    start = Gaussians(torch.zeros(1).to(x), mean.unsqueeze(0), spread.unsqueeze(0))
    # One row of the columns' own variances keeps what few rows see together from being singular.
    found, _ = maximised(x, weight, start, (mean, spread, 1.0))
    return found.means[0], found.covariances[0]


def maximised(
    x: Tensor,
    weight: Tensor,
    law: Gaussians,
    prior: tuple[Tensor, Tensor, float],
    stop: Stop | None = None,
    max_steps: int = MAX_STEPS,
) -> tuple[Gaussians, float]:
    """Iterate expectation and maximisation; return the Gaussians, and their mean log-likelihood.

    :param x: ``(N, D + M)``, NaN where a cell is missing.
    :param weight: of the rows, ``(N,)``.
    :param prior: mean of the means, mean of the covariances, and the rows that the latter is worth.
    :param stop: asked after each step whether the time is over.
    """
    patterns, before = Patterns(x, law), -math.inf
    gain = GAINS[min(len(law.log_weights), 2) - 1]
    for _ in range(max_steps):
        updated, value = _step(patterns, weight, law, prior)
        if value - before < gain:
            break
        law, before = updated, value
        if stop is not None and stop():
            break
    return law, max(value, before)


def _step(
    patterns: Patterns, weight: Tensor, law: Gaussians, prior: tuple[Tensor, Tensor, float]
) -> tuple[Gaussians, float]:
    """One step of expectation and maximisation, and the mean log-likelihood before it."""
    centre, spread, worth = prior
    count, total = torch.zeros_like(law.log_weights), weight.new_zeros(())
    classes = law.class_terms(patterns.codes)
    members = torch.zeros_like(classes)
    u, log_u = torch.zeros_like(count), torch.zeros_like(count)
    sums, scatter = torch.zeros_like(law.means), torch.zeros_like(law.covariances)
    for rows, at, group in patterns.groups(law):
        x = patterns.x[rows]
        centred, square = group.expected(group.centred(x), at)
        terms = group.terms(square, at) + classes[rows]
        likelihood = terms.logsumexp(1, keepdim=True)
        member = (terms - likelihood).exp() * weight[rows].unsqueeze(1)
        total = total + (weight[rows] * likelihood.squeeze(1)).sum()
        count, members[rows] = count + member.sum(0), member
        own_u, own_log_u = group.factors(square, at)
        u, log_u = u + (member * own_u).sum(0), log_u + (member * own_log_u).sum(0)
        weighted = (member * own_u).unsqueeze(-1) * centred
        sums = sums + weighted.sum(0)
        scatter = scatter + weighted.permute(1, 2, 0) @ centred.transpose(0, 1)
        scatter = scatter + group.spread(member, at)
    # The scatter about the old means, moved to the new ones, which the prior draws to the centre.
    shift = (sums + CENTRE_ROWS * (centre - law.means)) / (u + CENTRE_ROWS).unsqueeze(1)
    cross = sums.unsqueeze(-1) * shift.unsqueeze(-2)
    square = u.view(-1, 1, 1) * shift.unsqueeze(-1) * shift.unsqueeze(-2)
    covariances = scatter - cross - cross.mT + square
    covariances = (covariances + worth * spread) / (count + worth).view(-1, 1, 1)
    covariances = covariances + RIDGE * torch.diag_embed(covariances.diagonal(dim1=-2, dim2=-1))
    log_weights = ((count + 1) / (count + 1).sum()).log()
    degrees = None
    if law.degrees is not None:
        some = count.clamp(min=torch.finfo(count.dtype).tiny)
        degrees = student.likeliest(u / some, log_u / some)
    sizes = [table.shape[1] for table in law.tables]
    tables = class_tables(patterns.codes, members, weight, sizes)
    updated = Gaussians(log_weights, law.means + shift, covariances, degrees, tables)
    return updated, float(total / weight.sum())


def class_tables(
    codes: Tensor, member: Tensor, weight: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """Return the likeliest log-probabilities ``(K, S)`` of each class, given the rows' Gaussians.

    :param codes: ``(N, M)``, NaN where a cell is missing.
    :param member: weight of each row in each Gaussian, ``(N, K)``.
    :param weight: of the rows, ``(N,)``.
    :param sizes: number S of values of each class.
    """
    found = []
    for code, size in zip(codes.unbind(1), sizes, strict=True):
        seen = ~code.isnan()
        one_hot = torch.nn.functional.one_hot(code[seen].long(), size).to(member)
        shares = weight[seen] @ one_hot + 0.5
        counts = member[seen].T @ one_hot + CLASS_ROWS * shares / shares.sum()
        found.append((counts / counts.sum(1, keepdim=True)).log())
    return tuple(found)
