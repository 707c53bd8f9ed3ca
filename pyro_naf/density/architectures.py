"""Named architectures: the rows of the NAF paper's table, and what came later, from the same parts.

===================== ===========================================================================
auto                  the best mixture of a Gaussian, mixtures of Gaussians and of t's, and flows,
                      by rows that were left out; see :mod:`pyro_naf.density.automatic`
gaussian              one multivariate normal, its covariance shrunk by cross-validation
gmm-K                 a mixture of K of them
student-K             a mixture of K multivariate Student's t's, which has heavy tails
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
attention-ddsf-K, ... maf-ddsf-K (K = 1 by default) with attention for its conditioner; so are
                      attention-dsf-K, attention-affine-K, and attention-mog from made-mog
tan                   a linear map, two recurrent shifts and an autoregressive mixture
bnaf, bnaf-K          K (by default 5) of Pyro's block neural autoregressive flows; no draws
planar-K              K of Pyro's planar flows; no density of data
===================== ===========================================================================
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from torch import nn

from ..conditioners import MADE, AttentionConditioner
from ..conditioners import choice as conditioners
from ..conditioners.protocol import Conditioner
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
from .closed_form import CLOSED
from .flow import NormalizingFlow
from .gaussian import ConditionalWhitening, Whitening
from .gaussian_mixture import GaussianMixture
from .given_classes import GivenClasses
from .linear import Diagonal, LULinear, Reversal
from .mixture import AutoregressiveMixture, StandardNormal
from .normal_scores import NormalScores
from .one_way import GatedBlock, PlanarLayer
from .options import ACTIVATIONS, BASES, USED, Options
from .recurrent import RecurrentConditioner
from .settings import Training
from .student import Student

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
    "attention-affine": 1,
    "attention-dsf": 1,
    "attention-ddsf": 1,
    "attention-mog": 0,
    "tan": 2,
    "bnaf": 5,
    "planar": None,
    "gaussian": 0,
    "gmm": None,
    "student": None,
    "copula": None,
    "auto": 0,
}

#: Architectures that model numbers and classes together.
WITH_CLASSES = ("gmm", "copula")

#: Architectures that, given classes, model numbers that rows of some classes lack.
WITH_HOLES = (
    "gaussian", "auto", "made", "maf-affine", "maf-dsf", "maf-ddsf", "maf-nsf", "nsf-ar",
    "attention-affine", "attention-dsf", "attention-ddsf",
)  # fmt: skip

#: Names that take no number.
UNNUMBERED = ("auto", "gaussian", "made", "made-mog", "attention-mog")

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


def build(
    name: str,
    input_dim: int,
    context_dim: int = 0,
    *,
    sizes: Sequence[int] = (),
    holes: Mapping[int, int] | None = None,
    classes: Sequence[int] = (),
    **overrides: object,
) -> NormalizingFlow | GivenClasses:
    """Build the named architecture, freshly initialised (from torch's global generator).

    :param name: see the table above; a number at its end is that of the layers.
    :param input_dim: D >= 1.
    :param context_dim: width C of a context, 0 for none.
    :param sizes: number of values of each of M classes, which x ``(..., D + M)`` then holds too, by
        their places: for "gmm-K" and "copula-K".
    :param holes: dimensions that rows lack where an entry of the context is 0, the latter by its
        number: see :mod:`pyro_naf.density.holes`.
    :param classes: number of values of each class that the context holds as zeros and ones;
        "gmm-K" and "copula-K" take no other context.
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
    if kind.startswith("attention"):
        options = replace(options, conditioner="attention")
    if options.conditioner == "attention" and (options.residual or options.head_dim is not None):
        raise ValueError(
            "residual and head_dim are options of a MADE: leave them out with attention"
        )
    parts = _Parts(operator.index(input_dim), operator.index(context_dim), options)
    _refuse_kind(kind, name, options, sizes)
    if kind in WITH_CLASSES and classes:
        joint = _closed(_Parts(parts.input_dim, 0, options), kind, number, classes, None)
        return GivenClasses(joint, classes, dict(holes or {}))
    if holes and (kind not in WITH_HOLES or options.linear == "lu"):
        raise ValueError(f"architecture {name!r} takes no dimensions that rows lack")
    if kind in CLOSED:
        return _closed(parts, kind, number, sizes, holes)
    if kind == "planar":
        return _planar(parts, number)
    if kind == "bnaf":
        return _bnaf(parts, number)
    if kind == "tan":
        return _tan(parts, number)
    sampling = kind.startswith("iaf")
    transformer = {"made": "affine", "nsf-ar": "nsf"}.get(kind, kind.split("-")[-1])
    layers = [parts.flow("affine" if transformer == "mog" else transformer) for _ in range(number)]
    base = parts.mixture() if transformer == "mog" else parts.base()
    front = [parts.whitening()] if options.whiten else []
    if front and sampling:
        raise ValueError(f"whiten is for flows from data to base, not for architecture {name!r}")
    return NormalizingFlow([*front, *parts.stacked(layers)], base, sampling=sampling, holes=holes)


def _refuse_kind(kind: str, name: str, options: Options, sizes: Sequence[int]) -> None:
    """Raise ValueError for what a named architecture does not go with."""
    if kind == "auto":
        raise ValueError("architecture 'auto' is fitted by FlowDensity, and cannot be built alone")
    if sizes and kind not in WITH_CLASSES:
        raise ValueError(f"architecture {name!r} takes no classes beside numbers: name 'gmm-5'")
    if options.base != "normal" and (kind in (*CLOSED, "tan") or kind.endswith("mog")):
        raise ValueError(f"architecture {name!r} takes no base: it has one of its own")


def check_options(name: str, overrides: Mapping[str, object]) -> Options:
    """Check the options of a named architecture.

    :raises ValueError: for an unknown name, or an option out of its range.
    :raises TypeError: for an unknown option, or one that no file could hold.
    """
    parse(name)
    unknown = sorted(set(overrides) - {field.name for field in fields(Options)})
    if unknown:
        known = [field.name for field in fields(Options)]
        of_fit = [field.name for field in fields(Training)]
        close = difflib.get_close_matches(unknown[0], known + of_fit, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ";"
        raise TypeError(
            f"unknown option {unknown[0]!r} of {name}{meant} there are: {', '.join(known)}; and "
            f"for the fit: {', '.join(of_fit)}"
        )
    make: Callable[..., Options] = Options
    return make(**{key: plain(key, value) for key, value in overrides.items()})


def unused_options(name: str, overrides: Mapping[str, object]) -> list[str]:
    """List the options that a named architecture makes no use of.

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

    def conditioner(self, num_params: int) -> MADE | AttentionConditioner:
        o = self.options
        activation = ACTIVATIONS[o.activation]()
        options = {"context_dim": self.context_dim, "order": "natural", "activation": activation}
        if o.conditioner == "attention":
            options |= {"num_heads": o.num_heads, "dropout": o.dropout}
        else:
            options |= {"residual": o.residual, "head_dim": o.head_dim}
            if o.dropout:
                options["activation"] = nn.Sequential(activation, nn.Dropout(o.dropout))
        return conditioners.make(
            o.conditioner, self.input_dim, o.hidden_dims, num_params, **options
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
        conditioner = self.conditioner(transformer.num_params)
        if kind in ("dsf", "ddsf"):
            spread_sigmoids(conditioner, transformer, self.options.sharpness)
        return self.autoregressive(conditioner, transformer)

    def autoregressive(self, conditioner: Conditioner, transformer: Transformer) -> nn.Module:
        if self.context_dim:
            return ConditionalAutoregressiveFlow(conditioner, transformer)
        return AutoregressiveFlow(conditioner, transformer)

    def base(self) -> StandardNormal | Student:
        return BASES[self.options.base](self.input_dim)

    def mixture(
        self, conditioner: MADE | AttentionConditioner | RecurrentConditioner | None = None
    ) -> AutoregressiveMixture:
        components = self.options.components
        return AutoregressiveMixture(conditioner or self.conditioner(3 * components), components)

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
        """Stack the flows with linear maps between and behind them."""
        if not flows:
            return []
        if self.options.linear == "lu":
            around = [part for flow in flows for part in (LULinear(self.input_dim), flow)]
            return [*around, LULinear(self.input_dim)]
        between = [part for flow in flows for part in (flow, Reversal())]
        return [*between[:-1], Diagonal(self.input_dim)]


def _closed(
    parts: _Parts,
    kind: str,
    components: int,
    sizes: Sequence[int],
    holes: Mapping[int, int] | None,
) -> NormalizingFlow:
    if kind == "gaussian":
        return NormalizingFlow([parts.whitening()], StandardNormal(parts.input_dim), holes=holes)
    if parts.context_dim:
        what = "no context" if kind in WITH_CLASSES else "neither context nor classes"
        raise ValueError(f"architecture {kind!r} takes {what}: name 'gaussian', or a flow")
    copula, prior_rows = kind == "copula" and parts.input_dim > 0, parts.options.prior_rows
    scores = [NormalScores(parts.input_dim, parts.options.components)] if copula else []
    mixture = GaussianMixture(
        parts.input_dim, components, prior_rows, sizes, heavy_tails=kind == "student"
    )
    return NormalizingFlow(scores, mixture)


def _tan(parts: _Parts, number: int) -> NormalizingFlow:
    shifts = [
        parts.autoregressive(parts.recurrent(1, reverse=i % 2 == 1), Shift()) for i in range(number)
    ]
    base = parts.mixture(parts.recurrent(3 * parts.options.components))
    return NormalizingFlow([LULinear(parts.input_dim), *shifts], base)


def _bnaf(parts: _Parts, number: int) -> NormalizingFlow:
    if parts.context_dim:
        raise ValueError(
            "architecture 'bnaf' takes no context: Pyro's BlockAutoregressive has none"
        )
    factors = [parts.options.hidden_units] * len(parts.options.hidden_dims)
    flows = [GatedBlock(parts.input_dim, factors) for _ in range(number)]
    return NormalizingFlow(
        parts.stacked(flows),
        parts.base(),
        no_inverse=GatedBlock.no_inverse,
    )


def _planar(parts: _Parts, number: int) -> NormalizingFlow:
    if parts.context_dim:
        raise ValueError("architecture 'planar' takes no context")
    return NormalizingFlow(
        [*(PlanarLayer(parts.input_dim) for _ in range(number)), Diagonal(parts.input_dim)],
        parts.base(),
        sampling=True,
        no_inverse=PlanarLayer.no_inverse,
    )
