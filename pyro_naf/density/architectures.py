"""Named architectures: the rows of the NAF paper's table, and what came later, from the same parts.

===================== ===========================================================================
auto                  the best mixture of a Gaussian, Gaussian mixtures and flows, by rows that
                      were left out; see :mod:`pyro_naf.density.automatic`
gaussian              one multivariate normal, its covariance shrunk by cross-validation
gmm-K                 a mixture of K of them
copula-K              the same of normal scores: every column is first mapped by a mixture of
                      Gaussians of its own values; copula-1 is a Gaussian copula
made                  one affine layer: a Gaussian whose moments depend on the dimensions before
made-mog              an autoregressive mixture of Gaussians
maf-affine-K          K affine layers (MAF)
maf-mog-K             the same over an autoregressive mixture
maf-dsf-K, maf-ddsf-K K neural autoregressive layers (NAF)
maf-nsf-K, nsf-ar     K (by default 5) rational-quadratic spline layers
iaf-affine-K, ...     affine, dsf, ddsf or nsf in the sampling direction: draws are one pass,
                      densities of data are numerical
tan                   a linear map, two recurrent shifts and an autoregressive mixture
bnaf, bnaf-K          K (by default 5) of Pyro's block neural autoregressive flows; no draws
planar-K              K of Pyro's planar flows; no density of data
===================== ===========================================================================
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pyro.distributions.transforms import BlockAutoregressive, Planar
from torch import nn

from ..conditioners import MADE
from ..files.archive import plain
from ..flows.starts import spread_sigmoids
from ..support.checks import check_integers
from ..transformers import (
    Affine,
    DeepDenseSigmoidal,
    DeepSigmoidal,
    RationalQuadraticSpline,
    Scaled,
    Shift,
    Transformer,
)
from ..transforms import AutoregressiveFlow, ConditionalAutoregressiveFlow
from .flow import NormalizingFlow
from .gaussian import ConditionalWhitening, Whitening
from .gaussian_mixture import GaussianMixture
from .linear import Diagonal, LULinear, Reversal
from .mixture import AutoregressiveMixture, StandardNormal
from .normal_scores import NormalScores
from .recurrent import RecurrentConditioner

#: Names without their number of layers, and that number where none is given (None: required).
NAMES: dict[str, int | None] = {
    "made": 1,
    "made-mog": 0,
    "maf-affine": None,
    "maf-mog": None,
    "maf-dsf": None,
    "maf-ddsf": None,
    "maf-nsf": None,
    "nsf-ar": 5,
    "iaf-affine": None,
    "iaf-dsf": None,
    "iaf-ddsf": None,
    "iaf-nsf": None,
    "tan": 2,
    "bnaf": 5,
    "planar": None,
    "gaussian": 0,
    "gmm": None,
    "copula": None,
    "auto": 0,
}

#: Architectures that model numbers and classes together.
WITH_CLASSES = ("gmm", "copula")

#: Names that take no number.
UNNUMBERED = ("auto", "gaussian", "made", "made-mog")

_MADE = ("hidden_dims", "residual", "activation", "dropout", "head_dim", "linear")
_DSF = (*_MADE, "hidden_units", "sharpness", "affine", "kernel")

#: The fields of :class:`Options` that architectures make use of.
USED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("auto", "maf-ddsf"): (*_DSF, "num_layers", "whiten"),
    ("maf-dsf",): (*_DSF, "whiten"),
    ("maf-affine", "made"): (*_MADE, "whiten"),
    ("maf-mog", "made-mog"): (*_MADE, "components", "whiten"),
    ("maf-nsf", "nsf-ar"): (*_MADE, "bins", "bound", "whiten"),
    ("iaf-affine",): _MADE,
    ("iaf-dsf",): _DSF,
    ("iaf-ddsf",): (*_DSF, "num_layers"),
    ("iaf-nsf",): (*_MADE, "bins", "bound"),
    ("tan",): ("hidden_dims", "components"),
    ("bnaf",): ("hidden_dims", "hidden_units", "linear"),
    ("gmm",): ("prior_rows",),
    ("copula",): ("components", "prior_rows"),
    ("gaussian", "planar"): (),
}

#: The architectures of the NAF paper's table, and of later work, as they stand in it.
TABLE = (
    "made",
    "made-mog",
    "maf-affine-5",
    "maf-affine-10",
    "maf-mog-5",
    "tan",
    "maf-dsf-5",
    "maf-ddsf-5",
    "maf-ddsf-10",
    "bnaf",
    "nsf-ar",
)

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Options:
    """What an architecture leaves open.

    :param hidden_dims: widths of the conditioner's hidden layers (``tan``: the first is the
        recurrent state's; ``bnaf``: so many layers of ``hidden_units`` a dimension).
    :param hidden_units: K, the sigmoids of DSF and DDSF; the width of BNAF a dimension.
    :param num_layers: layers of a DDSF transformer.
    :param sharpness: slope at which all sigmoids but one start, at places spread over the data;
        see :func:`~pyro_naf.flows.starts.spread_sigmoids`.
    :param affine: the conditioner also gives an affine map around the sigmoids.
    :param bins: bins of a spline, on [-``bound``, ``bound``].
    :param components: Gaussians of an autoregressive mixture.
    :param prior_rows: number of rows that the prior under each covariance of ``gmm-K`` is worth; by
        default D + 2.
    :param residual: residual blocks in the conditioner, behind a first linear layer.
    :param linear: "reversal" of the dimensions between layers and a diagonal map at the end, or
        "lu": a full linear map around every layer.
    :param whiten: put the data's Gaussian in front, as a linear map that is not trained: a flow
        that starts near the identity then starts near this Gaussian.
    :param activation: "relu", "elu" (the paper's), "silu" or "tanh".
    :param dropout: probability with which hidden units are dropped in training.
    :param head_dim: factorises the conditioner's last layer; see
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
    residual: bool = False
    linear: str = "reversal"
    whiten: bool = False
    activation: str = "relu"
    dropout: float = 0.0
    head_dim: int | None = None
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_dims, Sequence):
            raise TypeError(f"hidden_dims must be a sequence of widths, got {self.hidden_dims!r}")
        object.__setattr__(self, "hidden_dims", tuple(self.hidden_dims))  # lists come from files
        if self.linear not in ("reversal", "lu"):
            raise ValueError(f"linear must be 'reversal' or 'lu', got {self.linear!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


def build(
    name: str,
    input_dim: int,
    context_dim: int = 0,
    *,
    sizes: Sequence[int] = (),
    **overrides: Any,
) -> NormalizingFlow:
    """The named architecture, freshly initialised (from torch's global generator).

    :param name: see the table above; a number at its end is that of the layers.
    :param input_dim: D >= 1.
    :param context_dim: width C of a context, 0 for none.
    :param sizes: number of values of each of M classes, which x ``(..., D + M)`` then holds too, by
        their places: for "gmm-K" and "copula-K".
    :param overrides: fields of :class:`Options`.
    :raises ValueError: for an unknown name, an option out of its range, or an architecture that
        takes no context, or no classes.
    :raises TypeError: for an unknown option, or one that no file could hold.

    >>> import torch
    >>> build("maf-dsf-2", 3, hidden_dims=[16]).log_prob(torch.randn(5, 3)).shape
    torch.Size([5])
    """
    kind, number = parse(name)
    check_integers(input_dim=(input_dim, 0 if sizes else 1), context_dim=(context_dim, 0))
    options = check_options(name, overrides)
    parts = _Parts(operator.index(input_dim), operator.index(context_dim), options)
    if kind == "auto":
        raise ValueError("architecture 'auto' is fitted by FlowDensity, and cannot be built alone")
    if sizes and kind not in WITH_CLASSES:
        raise ValueError(f"architecture {name!r} takes no classes beside numbers: name 'gmm-5'")
    if kind in ("gaussian", *WITH_CLASSES):
        return _gaussian(parts, kind, number, sizes)
    if kind == "planar":
        return _planar(parts, number)
    if kind == "bnaf":
        return _bnaf(parts, number)
    if kind == "tan":
        return _tan(parts, number)
    sampling = kind.startswith("iaf")
    transformer = {"made": "affine", "nsf-ar": "nsf"}.get(kind, kind.split("-")[-1])
    layers = [parts.flow("affine" if transformer == "mog" else transformer) for _ in range(number)]
    base = parts.mixture() if transformer == "mog" else StandardNormal(input_dim)
    front = [parts.whitening()] if options.whiten else []
    if front and sampling:
        raise ValueError(f"whiten is for flows from data to base, not for architecture {name!r}")
    return NormalizingFlow([*front, *parts.stacked(layers)], base, sampling=sampling)


def check_options(name: str, overrides: Mapping[str, Any]) -> Options:
    """The options of a named architecture.

    :raises ValueError: for an unknown name, or an option out of its range.
    :raises TypeError: for an unknown option, or one that no file could hold.
    """
    parse(name)
    unknown = sorted(set(overrides) - {field.name for field in fields(Options)})
    if unknown:
        known = ", ".join(field.name for field in fields(Options))
        raise TypeError(f"unknown option {unknown[0]!r} of {name}; there are: {known}")
    return Options(**{key: plain(key, value) for key, value in overrides.items()})


def unused_options(name: str, overrides: Mapping[str, Any]) -> list[str]:
    """The options that a named architecture makes no use of.

    >>> unused_options("maf-nsf-5", {"bins": 16, "hidden_units": 8})
    ['hidden_units']
    """
    kind, _ = parse(name)
    used = next(options for kinds, options in USED.items() if kind in kinds)
    return [option for option in overrides if option not in used]


def parse(name: str) -> tuple[str, int]:
    """Kind and number of layers.

    :raises ValueError: when there is no such architecture.

    >>> parse("maf-ddsf-10"), parse("tan")
    (('maf-ddsf', 10), ('tan', 2))
    """
    match = re.fullmatch(r"(.+?)(?:-(\d+))?", name) if isinstance(name, str) else None
    kind = match.group(1) if match else ""
    if match is None or kind not in NAMES:
        known = ", ".join(k if n is not None else f"{k}-K" for k, n in NAMES.items())
        raise ValueError(f"architecture must be one of {known}, got {name!r}")
    default = NAMES[kind]
    if match.group(2) is not None and kind in UNNUMBERED:
        raise ValueError(f"architecture {kind!r} takes no number of layers, got {name!r}")
    if match.group(2) is None and default is None:
        raise ValueError(
            f"architecture must say its number of layers, as in '{kind}-5'; got {name!r}"
        )
    number = int(match.group(2)) if match.group(2) is not None else int(default or 0)
    if number < 1 and kind not in UNNUMBERED:
        raise ValueError(f"architecture must have at least one layer, got {name!r}")
    return kind, number


class _Parts:
    """The parts that all architectures are made of, for these dimensions and options."""

    def __init__(self, input_dim: int, context_dim: int, options: Options) -> None:
        self.input_dim, self.context_dim, self.options = input_dim, context_dim, options

    def made(self, num_params: int) -> MADE:
        o = self.options
        activation = ACTIVATIONS[o.activation]()
        if o.dropout:
            activation = nn.Sequential(activation, nn.Dropout(o.dropout))
        return MADE(
            self.input_dim,
            o.hidden_dims,
            num_params,
            context_dim=self.context_dim,
            order="natural",
            residual=o.residual,
            head_dim=o.head_dim,
            activation=activation,
        )

    def transformer(self, kind: str) -> Transformer:
        o = self.options
        if kind == "affine":
            return Affine()
        if kind == "nsf":
            return RationalQuadraticSpline(o.bins, o.bound)
        sigmoids: DeepSigmoidal | DeepDenseSigmoidal = (
            DeepSigmoidal(o.hidden_units, kernel=o.kernel)
            if kind == "dsf"
            else DeepDenseSigmoidal(o.hidden_units, o.num_layers, kernel=o.kernel)
        )
        return Scaled(sigmoids, log_scale_slope=1.0) if o.affine else sigmoids

    def flow(self, kind: str) -> nn.Module:
        transformer = self.transformer(kind)
        made = self.made(transformer.num_params)
        if kind in ("dsf", "ddsf"):
            spread_sigmoids(made, transformer, self.options.sharpness)
        return self.autoregressive(made, transformer)

    def autoregressive(self, conditioner: nn.Module, transformer: Transformer) -> nn.Module:
        if self.context_dim:
            return ConditionalAutoregressiveFlow(conditioner, transformer)
        return AutoregressiveFlow(conditioner, transformer)

    def mixture(self, conditioner: nn.Module | None = None) -> AutoregressiveMixture:
        components = self.options.components
        return AutoregressiveMixture(conditioner or self.made(3 * components), components)

    def whitening(self) -> nn.Module:
        if self.context_dim:
            return ConditionalWhitening(self.input_dim, self.context_dim)
        return Whitening(self.input_dim)

    def recurrent(self, num_params: int, reverse: bool = False) -> RecurrentConditioner:
        width = (*self.options.hidden_dims, 32)[0]
        return RecurrentConditioner(
            self.input_dim, width, num_params, context_dim=self.context_dim, reverse=reverse
        )

    def stacked(self, flows: Sequence[nn.Module]) -> list[nn.Module]:
        """The flows with linear maps between and behind them."""
        if not flows:
            return []
        if self.options.linear == "lu":
            around = [part for flow in flows for part in (LULinear(self.input_dim), flow)]
            return [*around, LULinear(self.input_dim)]
        between = [part for flow in flows for part in (flow, Reversal())]
        return [*between[:-1], Diagonal(self.input_dim)]


def _gaussian(parts: _Parts, kind: str, components: int, sizes: Sequence[int]) -> NormalizingFlow:
    if kind == "gaussian":
        return NormalizingFlow([parts.whitening()], StandardNormal(parts.input_dim))
    if parts.context_dim:
        raise ValueError(f"architecture {kind!r} takes no context: name 'gaussian', or a flow")
    copula = kind == "copula" and parts.input_dim > 0
    scores = [NormalScores(parts.input_dim, parts.options.components)] if copula else []
    return NormalizingFlow(
        scores, GaussianMixture(parts.input_dim, components, parts.options.prior_rows, sizes)
    )


def _tan(parts: _Parts, number: int) -> NormalizingFlow:
    shifts = [
        parts.autoregressive(parts.recurrent(1, reverse=i % 2 == 1), Shift()) for i in range(number)
    ]
    base = parts.mixture(parts.recurrent(3 * parts.options.components))
    return NormalizingFlow([LULinear(parts.input_dim), *shifts], base)


class _OneWay(nn.Module):
    """Pyro's layers without an inverse: they say so, and can be copied.

    They keep their last evaluation with its graph, which cannot be.
    """

    no_inverse: str

    def _inverse(self, _: Any) -> Any:
        raise NotImplementedError(self.no_inverse)

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_cached")}
        return {**kept, "_cached_x_y": (None, None), "_cached_logDetJ": None, "_inv": None}


class _BlockAutoregressive(_OneWay, BlockAutoregressive):
    """With a gate, a residual connection, that starts near the identity.

    Without one Pyro's layer has a bounded range, and the flow's density does not integrate to one.
    """

    gate: nn.Parameter
    no_inverse = "bnaf has no inverse, so that nothing can be drawn: choose maf-dsf-5, say"

    def __init__(self, input_dim: int, hidden_factors: Sequence[int]) -> None:
        super().__init__(input_dim, list(hidden_factors), residual="gated")
        nn.init.constant_(self.gate, 2.0)


class _Planar(_OneWay, Planar):
    no_inverse = (
        "planar flows have no inverse, so that data cannot be scored: fit them to an energy "
        "(fit_energy), or choose maf-dsf-5, say"
    )


def _bnaf(parts: _Parts, number: int) -> NormalizingFlow:
    if parts.context_dim:
        raise ValueError(
            "architecture 'bnaf' takes no context: Pyro's BlockAutoregressive has none"
        )
    factors = [parts.options.hidden_units] * len(parts.options.hidden_dims)
    flows = [_BlockAutoregressive(parts.input_dim, factors) for _ in range(number)]
    return NormalizingFlow(
        parts.stacked(flows),
        StandardNormal(parts.input_dim),
        no_inverse=_BlockAutoregressive.no_inverse,
    )


def _planar(parts: _Parts, number: int) -> NormalizingFlow:
    if parts.context_dim:
        raise ValueError("architecture 'planar' takes no context")
    return NormalizingFlow(
        [*(_Planar(parts.input_dim) for _ in range(number)), Diagonal(parts.input_dim)],
        StandardNormal(parts.input_dim),
        sampling=True,
        no_inverse=_Planar.no_inverse,
    )
