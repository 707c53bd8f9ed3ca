"""Transformers: monotone scalar maps with pseudo-parameters (slides eq. 26 to 30)."""

from .affine import Affine
from .base import Transformer
from .dense_sigmoidal import DeepDenseSigmoidal
from .scaled import Scaled
from .sigmoidal import DeepSigmoidal

__all__ = ["Affine", "DeepDenseSigmoidal", "DeepSigmoidal", "Scaled", "Transformer"]
