"""What an architecture leaves open: sizes, activation, base, and how it is regularised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ..conditioners import choice as conditioners
from ..support.checks import check_widths
from .mixture import StandardNormal
from .student import Student

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


#: Base distributions of flows.
BASES: dict[str, type[StandardNormal] | type[Student]] = {
    "normal": StandardNormal,
    "student": Student,
}


@dataclass(frozen=True)
class Options:
    """What an architecture leaves open.

    :param hidden_dims: widths of the conditioner's hidden layers (``tan``: the first is the
        recurrent state's; ``bnaf``: that number of layers of ``hidden_units`` for each dimension).
    :param hidden_units: K, the sigmoids of DSF and DDSF; the width of BNAF a dimension.
    :param num_layers: layers of a DDSF transformer.
    :param sharpness: slope at which all sigmoids but one start, at places spread over the data;
        see :func:`~pyro_naf.flows.starts.spread_sigmoids`.
    :param affine: the conditioner also gives an affine map around the sigmoids.
    :param bins: bins of a spline, on [-``bound``, ``bound``].
    :param components: Gaussians of an autoregressive mixture.
    :param prior_rows: number of rows that the prior under each covariance of ``gmm-K`` and
        ``student-K`` is worth; by default D + 2.
    :param base: "normal", or "student" for a flow with heavy tails: independent t's, whose degrees
        of freedom are trained. Not for mixtures, which have a base of their own.
    :param conditioner: "made" or "attention": blocks as in
        :class:`~pyro_naf.conditioners.AttentionConditioner`, of the widths in ``hidden_dims``. The
        architectures ``attention-...`` have it whatever is said here.
    :param num_heads: heads of each attention.
    :param residual: residual blocks in a MADE, behind a first linear layer.
    :param linear: "reversal" of the dimensions between layers and a diagonal map at the end, or
        "lu": a full linear map around every layer.
    :param whiten: put the data's Gaussian in front, as a linear map that is not trained: a flow
        that starts near the identity then starts near this Gaussian.
    :param activation: "relu", "elu" (the paper's), "gelu", "silu" or "tanh".
    :param dropout: probability with which hidden units are dropped in training.
    :param head_dim: factorises the last layer of a MADE; see
        :class:`~pyro_naf.conditioners.MADE`.
    :param kernel: how sigmoids are evaluated; see :mod:`pyro_naf.kernels`.
    """

    hidden_dims: Sequence[int] = (128, 128)
    hidden_units: int = 16
    num_layers: int = 2
    sharpness: float = 4.0
    affine: bool = False
    bins: int = 8
    bound: float = 4.0
    components: int = 10
    prior_rows: float | None = None
    base: str = "normal"
    conditioner: str = "made"
    num_heads: int = 4
    residual: bool = False
    linear: str = "reversal"
    whiten: bool = False
    activation: str = "relu"
    dropout: float = 0.0
    head_dim: int | None = None
    kernel: str = "auto"

    def __post_init__(self) -> None:
        # Lists come from files.
        object.__setattr__(self, "hidden_dims", check_widths(self.hidden_dims))
        if self.linear not in ("reversal", "lu"):
            raise ValueError(f"linear must be 'reversal' or 'lu', got {self.linear!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        conditioners.check_name(self.conditioner)
        if self.base not in BASES:
            raise ValueError(f"base must be one of {', '.join(BASES)}, got {self.base!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


_CONDITIONED = ("hidden_dims", "activation", "dropout", "num_heads", "linear")
_MADE = (*_CONDITIONED, "conditioner", "residual", "head_dim")
_SIGMOIDS = ("hidden_units", "sharpness", "affine", "kernel")
_SPLINE = ("bins", "bound")

#: The fields of :class:`Options` that architectures make use of.
USED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("auto", "maf-ddsf"): (*_MADE, *_SIGMOIDS, "num_layers", "base", "whiten"),
    ("maf-dsf",): (*_MADE, *_SIGMOIDS, "base", "whiten"),
    ("maf-affine", "made"): (*_MADE, "base", "whiten"),
    ("maf-mog", "made-mog"): (*_MADE, "components", "whiten"),
    ("maf-nsf", "nsf-ar"): (*_MADE, *_SPLINE, "base", "whiten"),
    ("iaf-affine",): (*_MADE, "base"),
    ("iaf-dsf",): (*_MADE, *_SIGMOIDS, "base"),
    ("iaf-ddsf",): (*_MADE, *_SIGMOIDS, "num_layers", "base"),
    ("iaf-nsf",): (*_MADE, *_SPLINE, "base"),
    ("attention-affine",): (*_CONDITIONED, "base", "whiten"),
    ("attention-dsf",): (*_CONDITIONED, *_SIGMOIDS, "base", "whiten"),
    ("attention-ddsf",): (*_CONDITIONED, *_SIGMOIDS, "num_layers", "base", "whiten"),
    ("attention-mog",): (*_CONDITIONED, "components", "whiten"),
    ("tan",): ("hidden_dims", "components"),
    ("bnaf",): ("hidden_dims", "hidden_units", "linear", "base"),
    ("gmm", "student"): ("prior_rows",),
    ("copula",): ("components", "prior_rows"),
    ("planar",): ("base",),
    ("gaussian",): (),
}
