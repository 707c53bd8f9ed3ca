"""Autoregressive flows as Pyro transforms, under the names that users import.

The general flow is in :mod:`.flows.autoregressive`, the flows by name in :mod:`.flows.named`, and
what makes them on a fresh conditioner in :mod:`.flows.factories`.
"""

from .flows.autoregressive import (
    AutoregressiveFlow,
    ConditionalAutoregressiveFlow,
)
from .flows.factories import (
    affine_autoregressive_flow,
    conditional_affine_autoregressive_flow,
    conditional_deep_dense_sigmoidal_flow,
    conditional_deep_sigmoidal_flow,
    deep_dense_sigmoidal_flow,
    deep_sigmoidal_flow,
)
from .flows.named import (
    AffineAutoregressiveFlow,
    ConditionalAffineAutoregressiveFlow,
    ConditionalDeepDenseSigmoidalFlow,
    ConditionalDeepSigmoidalFlow,
    DeepDenseSigmoidalFlow,
    DeepSigmoidalFlow,
)

__all__ = [
    "AffineAutoregressiveFlow",
    "AutoregressiveFlow",
    "ConditionalAffineAutoregressiveFlow",
    "ConditionalAutoregressiveFlow",
    "ConditionalDeepDenseSigmoidalFlow",
    "ConditionalDeepSigmoidalFlow",
    "DeepDenseSigmoidalFlow",
    "DeepSigmoidalFlow",
    "affine_autoregressive_flow",
    "conditional_affine_autoregressive_flow",
    "conditional_deep_dense_sigmoidal_flow",
    "conditional_deep_sigmoidal_flow",
    "deep_dense_sigmoidal_flow",
    "deep_sigmoidal_flow",
]
