"""Test log-likelihoods in nats as published, mean and error: what a result is set beside."""

from __future__ import annotations

DATASETS = ("power", "gas", "hepmass", "miniboone", "bsds300")

# NAF: Huang et al. 2018, table 2; TAN: Oliva et al. 2018 as published at ICML (the NAF paper quotes
# a draft); BNAF: De Cao et al. 2019; splines: Durkan et al. 2019; TraDE: Fakoor et al. 2020 and
# DEformer: Alcorn & Nguyen 2021, which have no architecture here.
_ROWS = """
made-mog       0.40 ± .01 |  8.47 ± .02 | -15.15 ± .02 | -12.27 ± .47 | 153.71 ± .28
maf-affine-5   0.14 ± .01 |  9.07 ± .02 | -17.70 ± .02 | -11.75 ± .44 | 155.69 ± .28
maf-affine-10  0.24 ± .01 | 10.08 ± .02 | -17.73 ± .02 | -12.24 ± .45 | 154.93 ± .28
maf-mog-5      0.30 ± .01 |  9.59 ± .02 | -17.39 ± .02 | -11.68 ± .44 | 156.36 ± .28
tan            0.60 ± .01 | 12.06 ± .02 | -13.78 ± .02 | -11.01 ± .48 | 159.80 ± .07
maf-ddsf-5     0.62 ± .01 | 11.91 ± .13 | -15.09 ± .40 |  -8.86 ± .15 | 157.73 ± .04
maf-ddsf-10    0.60 ± .02 | 11.96 ± .33 | -15.32 ± .23 |  -9.01 ± .01 | 157.43 ± .30
bnaf           0.61 ± .01 | 12.06 ± .09 | -14.71 ± .38 |  -8.95 ± .07 | 157.36 ± .03
nsf-ar         0.66 ± .01 | 13.09 ± .02 | -14.01 ± .03 |  -9.22 ± .48 | 157.31 ± .28
TraDE          0.73       | 13.27       | -12.01       |  -9.49       | 160.01
DEformer       0.541      | 13.17       | -11.98       |  -9.32       | 157.04
"""


def _parsed(rows: str) -> dict[tuple[str, str], str]:
    found = {}
    for row in rows.strip().splitlines():
        name, figures = row.split(maxsplit=1)
        for dataset, figure in zip(DATASETS, figures.split("|"), strict=True):
            found[name, dataset] = figure.strip()
    return found


PUBLISHED = _parsed(_ROWS)


def published(architecture: str, dataset: str) -> str | None:
    """Return the published figure, where there is one.

    >>> published("maf-ddsf-5", "power")
    '0.62 ± .01'
    """
    return PUBLISHED.get((architecture, dataset))


def published_of(dataset: str) -> dict[str, str]:
    """Return the published figures of all models on a data set.

    >>> published_of("power")["TraDE"]
    '0.73'
    """
    return {name: figure for (name, of), figure in PUBLISHED.items() if of == dataset}
