"""Which densities ``architecture="auto"`` tries, by the number of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, field

from .architectures import WITH_CLASSES, parse
from .closed_form import CLOSED

#: Folds of the cross-validation.
FOLDS = 5

#: Rows below which only the Gaussian is fitted.
FEW_ROWS = 20

#: Mixtures of Gaussians and of t's, which reach heavy tails, and the number of rows that the prior
#: of each part is worth: a small number for parts that lie in planes, or None for the default.
MIXTURES: tuple[tuple[str, float | None], ...] = (
    ("gmm-2", 0.3), ("gmm-3", 0.3), ("gmm-5", 0.3), ("gmm-5", None), ("gmm-8", None),
    ("student-1", None), ("student-3", 0.3),
)  # fmt: skip
MANY_PARTS: tuple[str, float | None] = ("gmm-16", 3.0)
LARGE_MIXTURES: tuple[tuple[str, float | None], ...] = (
    ("gmm-5", 0.3), ("gmm-10", None), ("student-1", None), ("student-5", None),
)  # fmt: skip

#: Mixtures tried where cells are missing, and those tried beside where rows are many.
WITH_GAPS = ("gmm-2", "gmm-3", "gmm-5", "student-1", "student-2", "copula-1", "copula-2")
LARGE_WITH_GAPS = ("gmm-8", "copula-3", "copula-5")

#: Number of rows for each column that each Gaussian of such a mixture needs, or of many, or each t.
ROWS_A_COLUMN = 5

#: Gaussians in the marginal law of a column, in a copula, from this number of rows on.
MARGINALS = {2000: 8, 300: 4, 0: 2}


@dataclass(frozen=True)
class Candidate:
    """A density to try.

    :param architecture: a name of :mod:`pyro_naf.density.architectures`.
    :param overrides: its options.
    :param training: how it is trained, as fields of :class:`Training`.
    :param share: its part of the budget of both flows; 0 for what has no steps.
    """

    architecture: str
    overrides: dict[str, object] = field(default_factory=dict)
    training: dict[str, object] = field(default_factory=dict)
    share: float = 0.0


def candidates(
    rows: int,
    dim: int,
    context_dim: int,
    *,
    crossed: bool,
    gaps: bool = False,
    classes: bool = False,
    given_classes: bool = False,
) -> list[Candidate]:
    """List the densities to try for this many rows and columns, the Gaussian first.

    :param crossed: they are cross-validated, on rows that are few.
    :param gaps: cells are missing: only mixtures of Gaussians, t's and normal scores are tried.
    :param classes: rows hold classes beside the numbers; the first candidate is then a Gaussian of
        the numbers, and classes that are independent.
    :param given_classes: the context holds classes, and nothing else.

    >>> [c.architecture for c in candidates(500, 8, 2, crossed=True)]
    ['gaussian', 'maf-affine-2', 'maf-dsf-2']
    """
    found = [Candidate("gmm-1" if classes else "gaussian")]
    if rows < FEW_ROWS:
        return found
    if gaps:
        tried = _with_gaps(rows, dim, crossed)
        kinds = WITH_CLASSES if classes else CLOSED
        return found + [c for c in tried if parse(c.architecture)[0] in kinds]
    if context_dim == 0 or given_classes:
        mixtures = MIXTURES if crossed else LARGE_MIXTURES
        if crossed and parse(MANY_PARTS[0])[1] * ROWS_A_COLUMN * dim <= rows:
            mixtures = (*mixtures, MANY_PARTS)
        found += [
            Candidate(name, {"prior_rows": worth})
            for name, worth in mixtures
            if parse(name)[1] * _rows_for_a_part(name, dim) <= rows
            and (parse(name)[0] in WITH_CLASSES or not given_classes)
        ]
    return found + (_small(rows, dim) if crossed else _large())


def _with_gaps(rows: int, dim: int, crossed: bool) -> list[Candidate]:
    marginal = {"components": next(j for n, j in MARGINALS.items() if rows >= n)}
    few = {"prior_rows": MIXTURES[0][1]} if crossed else {}
    return [
        Candidate(name, {**few, **(marginal if name.startswith("copula") else {})})
        for name in WITH_GAPS + (() if crossed else LARGE_WITH_GAPS)
        if parse(name)[1] * max(FEW_ROWS, ROWS_A_COLUMN * dim) <= rows
    ]


def _rows_for_a_part(name: str, dim: int) -> int:
    """Return how many rows each part of a mixture needs.

    The likelihood of a t has no maximum where rows are hardly more than columns (Kent & Tyler 1991,
    Redescending M-estimates): its degrees of freedom fall towards zero, and draws lie anywhere.
    """
    return max(FEW_ROWS, ROWS_A_COLUMN * dim) if parse(name)[0] == "student" else FEW_ROWS


def _small(rows: int, dim: int) -> list[Candidate]:
    options = {"hidden_dims": (64,), "dropout": 0.1, "activation": "silu", "whiten": True}
    batch = max(32, min(128, rows // 4))
    training = {
        "batch_size": batch,
        "lr": 3e-3,
        "weight_decay": 1e-2,
        "schedule": "constant",
        "polyak": 0.99,
        "evaluate_every": max(1, rows * (FOLDS - 1) // FOLDS // batch),
        "patience": 40,
        "max_steps": 2000,
    }
    sigmoids = {"affine": True, "sharpness": 1.5, "hidden_units": 16}
    larger = {**options, **sigmoids, "hidden_dims": (64, 64), "dropout": 0.2}
    return [
        Candidate("maf-affine-2", options, training, 0.4),
        Candidate("maf-dsf-2", larger, training, 0.6),
    ]


def _large() -> list[Candidate]:
    options = {"whiten": True, "affine": True, "sharpness": 2.0, "hidden_dims": (64, 64)}
    return [
        Candidate("maf-dsf-2", options, {"max_steps": 3000}, 0.1),
        Candidate("maf-ddsf-5", {"whiten": True}, {}, 0.9),
    ]
