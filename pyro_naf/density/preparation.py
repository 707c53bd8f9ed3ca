"""Rows of numbers as a density needs them: checked, and standardised."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .arrays import RowsLike, as_tensor
from .discrete import LOOKED_AT, discrete_columns, present

#: Standard deviation, in that of most rows, beyond which a column is said to hold outliers.
OUTLYING = 20

#: Number of usual standard deviations beyond which a row is left out of the fit, where fewer than
#: this part of the rows are.
FAR = 100
FAR_SHARE = 0.01

#: Standard deviation, in that of its column, of what other columns leave open, below which they
#: determine it.
DEPENDENT = 1e-6

#: Part of a column, and number of rows, from which on one value among others is warned of.
ATOM_SHARE = 0.1
FEW_REPEATED = 5

#: Rows or columns named in a message.
NAMED = 5

#: Rows standardised at once, which is done in double precision.
CHUNK = 65_536


def as_rows(value: object, name: str, width: int, device: torch.device | None = None) -> Tensor:
    """Make a detached tensor ``(N, width)`` of floating-point numbers of what holds numbers.

    :raises TypeError: when it holds no real numbers.
    :raises ValueError: when its shape is another.
    """
    rows = as_tensor(value, name).detach()
    rows = rows.clone() if rows.is_inference() else rows
    if rows.dim() != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} must have shape (N, {width}), got {tuple(rows.shape)}")
    return rows.to(device) if device is not None else rows


def width_of(value: object, name: str) -> int:
    """Count the columns of rows ``(N, D)``.

    :raises TypeError: when they hold no real numbers.
    :raises ValueError: when they have another shape.
    """
    rows = as_tensor(value, name)
    if rows.dim() != 2 or rows.shape[1] == 0:
        shape = tuple(rows.shape)
        if rows.dim() == 2:
            raise ValueError(
                f"{name} has 0 feature(s) (shape={shape}) while a minimum of 1 is required."
            )
        remedy = ": pass one column as reshape(-1, 1)" if rows.dim() == 1 else ""
        raise ValueError(f"{name} must have shape (N, D), D >= 1, got {shape}{remedy}")
    return rows.shape[1]


def as_context(context: RowsLike | None, width: int) -> RowsLike | None:
    """Prepare the context of rows: a vector is one column, and labels are none."""
    if context is None or (isinstance(context, Tensor) and context.dim() != 1):
        return context
    if not isinstance(context, Tensor) and np.asarray(context).ndim != 1:
        return context
    if width == 0:
        return None
    return as_tensor(context, "context").unsqueeze(1) if width == 1 else context


def check_width(t: Tensor, name: str, width: int) -> None:
    """Raise ValueError for a tensor that is not ``(..., width)``."""
    if t.dim() == 0 or t.shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., {width}), got {tuple(t.shape)}")


def as_weight(value: RowsLike | None, rows: Tensor) -> Tensor | None:
    """Prepare the weights of rows: a tensor ``(N,)`` on their device; None where there are none.

    :raises ValueError: for another shape, a weight below 0 or not finite, or none above 0.
    """
    if value is None:
        return None
    weight = as_tensor(value, "sample_weight").detach().double().to(rows.device)
    if weight.shape != rows.shape[:1]:
        raise ValueError(
            f"sample_weight must have shape ({len(rows)},), one weight for each row, got "
            f"{tuple(weight.shape)}"
        )
    if not (weight.isfinite() & (weight >= 0)).all():
        raise ValueError("sample_weight must be finite and at least 0")
    if not weight.sum() > 0:
        raise ValueError("sample_weight must not be zero for all rows")
    return weight


def check_finite(
    rows: Tensor, name: str, lines: Sequence[int] | None = None, *, gaps: bool = False
) -> None:
    """Refuse NaN and infinity, count them and name the rows.

    :param gaps: take NaN, a missing cell.
    :param lines: the lines of a file that the rows are in, where those are to be named.
    :raises ValueError: so.
    """
    bad = rows.isinf() if gaps else ~rows.isfinite()
    if not bad.any():
        return
    nan, infinite = 0 if gaps else int(rows.isnan().sum()), int(rows.isinf().sum())
    at = bad.any(1).nonzero().squeeze(1).tolist()
    where = listed("row", at) if lines is None else listed("line", [lines[i] for i in at])
    raise ValueError(f"{name} holds {nan} NaN and {infinite} infinite values, in {where}")


def statistics(
    rows: Tensor, name: str, columns: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(D,)`` of the columns, in double precision.

    :raises ValueError: when a column is constant, which has no density, or when the square of its
        spread over- or underflows.
    """
    if rows.shape[1] == 0:
        return torch.zeros(0).double(), torch.ones(0).double()
    _refuse_constant(rows, name, columns)
    loc, scale = _moments(rows)
    _refuse_range(scale, name, columns)
    return loc, scale


def _refuse_constant(rows: Tensor, name: str, columns: Sequence[str] | None) -> None:
    seen = [present(column) for column in rows.unbind(1)]
    empty = torch.tensor([len(column) == 0 for column in seen])
    if empty.any():
        raise ValueError(
            f"{name} has no value in {_named(empty, columns)} among the rows that are fitted to: "
            "leave the column out"
        )
    constant = torch.stack([(column == column[0]).all() for column in seen])
    if constant.any():
        raise ValueError(
            f"{name} is constant in {_named(constant, columns)}, and has no density there: leave "
            "out what does not vary"
        )


def context_statistics(
    rows: Tensor, name: str, columns: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Do the same for a context, whose constant columns do no harm: their scale is 1."""
    loc, scale = _moments(rows)
    scale = torch.where((rows == rows[0]).all(0), 1.0, scale)
    _refuse_range(scale, name, columns)
    return loc, scale


def _refuse_range(scale: Tensor, name: str, columns: Sequence[str] | None) -> None:
    tiny = torch.finfo(torch.double).tiny
    for bad, how in ((~torch.isfinite(scale), "widely"), (scale.square() < tiny, "little")):
        if bad.any():
            raise ValueError(
                f"{name} varies too {how} to be standardised in {_named(bad, columns)}: choose "
                "another unit"
            )


def _named(chosen: Tensor, columns: Sequence[object] | None) -> str:
    """Name the columns that a mask chooses, by name where they have one."""
    at = chosen.nonzero().squeeze(1).tolist()
    return listed("column", [columns[i] if columns is not None else i for i in at])


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    # One column at a time: all at once in double precision can be more than the data itself.
    seen = [present(column).double() for column in rows.unbind(1)]
    moments = [torch.std_mean(column, correction=0) for column in seen]
    scale, loc = (torch.stack(parts) for parts in zip(*moments, strict=True))
    return loc, scale


def standardised(rows: Tensor, loc: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``(rows - loc) / scale``, computed in double precision."""
    return torch.cat([((part - loc) / scale).to(dtype) for part in rows.split(CHUNK)])


def warn_of_atoms(rows: Tensor, name: str, columns: Sequence[str], at: Sequence[int]) -> None:
    """Warn of what has no density: columns of few values, and rows that occur repeatedly.

    :param at: the columns that are modelled as real numbers without noise.
    """
    if not at:
        return
    discrete = [columns[i] for i in discrete_columns(rows) if i in at]
    if discrete:
        warnings.warn(
            f"{name} takes few different values in {listed('column', discrete)}: a density rises "
            "there without bound; say columns={name: 'integer'}, or 'categorical', or add noise as "
            "wide as their steps (pyro-naf fit --dequantise)",
            stacklevel=3,
        )
    for i in at:
        _warn_of_one_value(rows[:, i], f"{name} in column {columns[i]}", columns[i] in discrete)
    repeated = repeated_rows(rows[~rows.isnan().any(1)])
    if repeated and not discrete:
        warnings.warn(
            f"{repeated} of {len(rows)} rows of {name} occur before: the likelihood of "
            "validation rows that are also trained on says too much",
            stacklevel=3,
        )


def _warn_of_one_value(column: Tensor, where: str, discrete: bool) -> None:
    """Warn where one value, such as zero, recurs among others that do not."""
    seen = present(column)
    values, counts = seen.unique(return_counts=True)
    most = int(counts.max()) if len(counts) else 0
    if discrete or most < max(ATOM_SHARE * len(seen), FEW_REPEATED):
        return
    value = f"{float(values[counts.argmax()]):g}"
    warnings.warn(
        f"{where} is {value} in {most} of {len(seen)} rows: a density rises there without bound; "
        f"say columns={{name: ('spiked', {value})}}, as 'auto' finds out by itself, or make these "
        f"cells missing (NaN), and add a column that says where it is {value}",
        stacklevel=4,
    )


def _outlying(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, usual standard deviation and whether that is far exceeded, of each column ``(D,)``.

    The usual one is that of the shortest interval that holds half of the rows, whose width is 1.35
    standard deviations of a Gaussian.
    """
    found = []
    for column in rows[:: max(1, len(rows) // LOOKED_AT)].double().unbind(1):
        ordered = present(column).sort().values
        if len(ordered) < 3:
            found.append((ordered.new_zeros(()), ordered.new_zeros(())))
            continue
        half = (len(ordered) + 1) // 2
        width, at = (ordered[half:] - ordered[:-half]).min(0)
        found.append((ordered[at + half // 2], width / 1.349))
    centre, usual = (torch.stack(parts) for parts in zip(*found, strict=True))
    _, scale = _moments(rows)
    return centre, usual, (usual > 0) & (scale > OUTLYING * usual)


def near_rows(rows: Tensor) -> Tensor | None:
    """Which rows are not so far out, in a column of outliers, that they are no measurements.

    None where that is all of them, or where a hundredth of them or more are far out: tails.
    """
    if len(rows) < 3 or rows.shape[1] == 0:
        return None
    centre, usual, outlying = _outlying(rows)
    far = (((rows - centre).abs() > FAR * usual) & outlying).any(1)
    number = int(far.sum())
    return ~far if 0 < number < max(FAR_SHARE * len(rows), 1.5) else None


def warn_of_dependence(rows: Tensor, name: str, columns: Sequence[object]) -> None:
    """Warn of columns that others determine: the density rises there without bound."""
    rows = rows[~rows.isnan().any(1)]
    if len(rows) <= rows.shape[1] or rows.shape[1] < 2:
        return
    u = rows[:: max(1, len(rows) // LOOKED_AT)].double()
    u = (u - u.mean(0)) / u.std(0, correction=0)
    solved = torch.linalg.qr(u / len(u) ** 0.5).R.diagonal().abs() < DEPENDENT
    if solved.any():
        warnings.warn(
            f"{name} is determined in {_named(solved, columns)} by the columns before: the density "
            "rises there without bound; leave out what follows from the rest",
            stacklevel=3,
        )


def warn_of_outliers(
    rows: Tensor, name: str, columns: Sequence[str] | None = None, left_out: bool = False
) -> None:
    """Warn of columns whose standard deviation is due to few rows: typing errors, sentinels.

    :param left_out: say that the rows are left out of the fit.
    """
    if len(rows) < 2 or rows.shape[1] == 0:
        return
    centre, usual, outlying = _outlying(rows)
    if outlying.any():
        far = ((rows - centre).abs() > OUTLYING * usual)[:, outlying].any(1)
        places = listed("row", far.nonzero().squeeze(1).tolist())
        warnings.warn(
            f"{name} has a standard deviation in {_named(outlying, columns)} more than {OUTLYING} "
            f"times that of most rows, because of {places}"
            + (", and the farthest are left out of the fit" if left_out else "")
            + ": correct or leave out what is no measurement, and take logarithms of what varies "
            "by orders of magnitude",
            stacklevel=3,
        )


def p_values(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the share of known values ``(M,)``, ascending, that are no higher, itself counted.

    >>> p_values(np.array([0.5]), np.array([0.0, 1.0, 2.0])).tolist()
    [0.5]
    """
    return (1 + np.searchsorted(known, values, side="right")) / (1 + len(known))


def repeated_rows(rows: Tensor) -> int:
    """How many rows are equal to one before."""
    code = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for column in rows.unbind(1):
        bits = (column.double() + 0.0).view(torch.long)  # + 0.0: -0 is 0
        code = (code ^ bits) * 1_000_003 + (bits >> 29)
    return len(rows) - len(code.unique())


def listed(what: str, items: Sequence[object]) -> str:
    """List the first few items by name.

    >>> listed("row", [3]), listed("row", range(7))
    ('row 3', 'rows 0, 1, 2, 3, 4 and 2 more')
    """
    shown = ", ".join(str(item) for item in items[:NAMED])
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{what}{'s' if len(items) > 1 else ''} {shown}{more}"
