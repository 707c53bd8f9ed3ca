"""Density estimation: named architectures, an estimator, data sets and a training loop."""

from ..files.stored import ModelFileError
from . import architectures, datasets
from .estimator import FlowDensity
from .pictures import plot_density
from .reverse_kl import energy_bound, fit_energy

__all__ = [
    "FlowDensity",
    "ModelFileError",
    "architectures",
    "datasets",
    "energy_bound",
    "fit_energy",
    "plot_density",
]
