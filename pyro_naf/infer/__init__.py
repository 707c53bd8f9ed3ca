"""Guides for SVI, their refinement, and how good they are."""

from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .compiled_svi import CompiledSVI
from .correction import Correction, mcmc_correct
from .diagnostics import ImportanceDiagnostics, draws, importance_diagnostics, importance_resample
from .elbos import TraceDReG_ELBO, TraceSTL_ELBO
from .forward_kl import ForwardKL
from .gaussian import fit_gaussian
from .refinement import Refinement, refine

__all__ = [
    "AutoDDSFNormal",
    "AutoDSFNormal",
    "AutoFlowNormal",
    "CompiledSVI",
    "Correction",
    "ForwardKL",
    "ImportanceDiagnostics",
    "Refinement",
    "TraceDReG_ELBO",
    "TraceSTL_ELBO",
    "draws",
    "fit_gaussian",
    "importance_diagnostics",
    "importance_resample",
    "mcmc_correct",
    "refine",
]
