"""Transformers: monotone scalar maps with pseudo-parameters (Huang et al. 2018, section 3)."""

from .affine import Affine
from .base import Transformer
from .dense_sigmoidal import DeepDenseSigmoidal
from .scaled import Scaled
from .shift import Shift
from .sigmoidal import DeepSigmoidal
from .spline import RationalQuadraticSpline

__all__ = [
    "Affine",
    "DeepDenseSigmoidal",
    "DeepSigmoidal",
    "RationalQuadraticSpline",
    "Scaled",
    "Shift",
    "Transformer",
]
