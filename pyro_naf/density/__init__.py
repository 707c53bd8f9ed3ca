"""Density estimation: named architectures, an estimator, data sets and a training loop."""

from . import architectures
from .checkpoints import ModelFileError
from .estimator import FlowDensity

__all__ = ["FlowDensity", "ModelFileError", "architectures"]
